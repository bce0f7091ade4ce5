"""Several calls of a mapped function in one task, in the worker."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from typing import Any

from ..wire.outcomes import dump_error

# (True, value) or (False, pickled exception), for each item that was run.
Outcome = tuple[bool, Any]


class ChunkCall:
    """A function that is called for several items, for a limited time.

    The time limit keeps a slow item from holding up those after it: they are given back and run
    elsewhere. So chunks can be made before anybody knows how long an item takes.
    """

    def __init__(self, fn: Callable[..., Any], limit_s: float) -> None:
        self.fn = fn
        self.limit_s = limit_s
        # What errors and logs call the task: the user's function.
        self.__qualname__ = getattr(fn, "__qualname__", None) or type(fn).__qualname__

    def __reduce__(self) -> tuple[Any, ...]:
        return ChunkCall, (self.fn, self.limit_s)

    def __call__(self, items: list[tuple[Any, ...]]) -> ChunkResult:
        fn = self.fn
        until = time.monotonic() + self.limit_s
        outcomes: list[Outcome] = []
        for item in items:
            try:
                outcomes.append((True, fn(*item)))
            except BaseException as error:
                # As in a task of its own: whatever is raised is that item's outcome.
                outcomes.append((False, dump_error(error)))
            if time.monotonic() >= until:
                break
        return ChunkResult(outcomes)


class ChunkResult:
    """The outcomes of the first items of a chunk; of all, if there was time."""

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
