"""Several calls of a mapped function in one task, in the worker."""

from __future__ import annotations

import functools
import pickle
import time
from collections.abc import Callable
from typing import Any

from ..wire.outcomes import dump_error
from ..wire.stateless import ATOMS, is_fixed

# (True, value) or (False, pickled exception), for each item that was run.
Outcome = tuple[bool, Any]


def chunk_call(fn: Callable[..., Any], limit_s: float) -> Callable[..., Any]:
    """What to submit, with a list of items, to have `fn` called for them for a limited time."""
    call = functools.partial(run_for, fn, limit_s)
    # What errors and logs call the task: the user's function.
    call.__qualname__ = getattr(fn, "__qualname__", None) or type(fn).__qualname__  # type: ignore[attr-defined]
    return call


def run_for(fn: Callable[..., Any], limit_s: float, items: list[tuple[Any, ...]]) -> ChunkResult:
    """Call a function for the first of these items.

    It ends early in two cases, and the rest is given back. One is that the time is over: so slow
    items do not hold up those after them, and chunks can be made before anybody knows how long an
    item takes. The other is a value that a later call could change, or that shares something with
    a later value: as in a task of its own, it is pickled before anything else runs.
    """
    until = time.monotonic() + limit_s
    outcomes: list[Outcome] = []
    for item in items:
        try:
            value = fn(*item)
        except BaseException as error:
            # As in a task of its own: whatever is raised is that item's outcome.
            outcomes.append((False, dump_error(error)))
        else:
            outcomes.append((True, value))
            if type(value) not in ATOMS and not is_fixed(value):
                break
        if time.monotonic() >= until:
            break
    return ChunkResult(outcomes)


class ChunkResult:
    """The outcomes of the first items of a chunk; of all, if nothing came in between."""

    def __init__(self, outcomes: list[Outcome]) -> None:
        self.outcomes = outcomes

    def isolate(self) -> None:
        """A value cannot be pickled: make that the outcome of its own item alone."""
        for index, (fine, value) in enumerate(self.outcomes):
            if fine:
                try:
                    pickle.dumps(value, 5)
                except BaseException as error:
                    self.outcomes[index] = (False, dump_error(error))
