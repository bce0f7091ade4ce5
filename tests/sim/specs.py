"""What simulated tasks do, and which outcome a serial run of them would have had."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from owndist.core.values import BROKEN, CANCELLED, DIED, ERROR, FAILED, LOST, READY

INLINE, PARTS, STORED, ALIAS = range(4)  # how a task returns its value


@dataclass
class Spec:
    """One task of a simulated program, and what became of it."""

    id: int
    slots: tuple[int, ...] = ()
    nested: tuple[int, ...] = ()
    reads: int = 0  # so many of the futures that it was handed it waits for
    uses_globals: bool = False  # it reads, and then drops, futures that earlier tasks kept
    returns: int = INLINE
    returns_futures: bool = False
    keeps_futures: bool = False  # in globals of the worker
    keeps_views: bool = False
    passes_on: bool = False  # it returns a view that an earlier task kept, if there is one
    raises: int = 0  # so many of its executions raise
    judged: bool = False
    retried: bool = True  # what the judgement is
    max_retries: int = 3
    function: int = 1
    elapsed_ns: int = 20_000
    # what happened: "start", "return", "raise", "death"
    history: list[str] = field(default_factory=list)
    execution: int = 0  # the one that was started last
    read_ids: list[int] = field(default_factory=list)  # what its last execution waited for
    passed_on: str | None = None  # what that said
    cancel_granted: bool = False


Outcome = tuple[int, Any]


def expected_text(spec_id: int, specs: dict[int, Spec], outcomes: dict[int, Outcome]) -> str:
    """What the value of an object says, as a serial run would have made it."""
    spec = specs.get(spec_id)
    if spec is None:
        return f"put{spec_id}"
    if spec.passed_on is not None:
        return spec.passed_on
    arguments = [expected_text(slot, specs, outcomes) for slot in spec.slots]
    if spec.returns == ALIAS and arguments:
        return arguments[0]
    for other in spec.read_ids:
        ready = outcomes[other][0] == READY
        arguments.append(expected_text(other, specs, outcomes) if ready else "!")
    return f"t{spec_id}({','.join(arguments)})"


def check_outcome(
    spec: Spec,
    outcomes: dict[int, Outcome],
    specs: dict[int, Spec],
    cancelled_all: bool,
    lossy: bool,
) -> None:
    """The outcome is one that the task's history allows (the value itself is checked apart)."""
    status, value = outcomes[spec.id]
    history = spec.history
    starts = history.count("start")
    last = history[-1] if history else None
    deaths = history.count("death")
    raised = history.count("raise")
    story = f"task {spec.id}: {status} {value!r} after {history}"
    assert starts <= 1 + spec.max_retries, f"ran too often: {story}"
    if lossy:
        # Executions because of losses draw on the same budget, and an argument may have failed
        # after the task had run.
        if status == READY:
            assert "return" in history, story
        elif status == CANCELLED:
            by_argument = any(outcomes[s][0] == CANCELLED for s in spec.slots)
            assert spec.cancel_granted or cancelled_all or by_argument, story
        else:
            assert value[0] in (ERROR, DIED, LOST), story
        return
    bad_slots = [s for s in spec.slots if outcomes[s][0] != READY]
    if bad_slots:
        assert starts == 0, f"ran although an argument failed: {story}"
        assert (
            status in {outcomes[s][0] for s in bad_slots}
            or spec.cancel_granted
            or (cancelled_all and status == CANCELLED)
        ), story
        return
    if status == READY:
        assert last == "return", story
    elif status == CANCELLED:
        assert spec.cancel_granted or cancelled_all, story
        assert last in (None, "raise", "death"), f"cancelled, and yet it ran: {story}"
    else:
        assert status == FAILED
        if value[0] == ERROR:
            assert last == "raise", story
            if spec.judged and spec.retried:
                assert deaths + raised == spec.max_retries + 1, f"budget left: {story}"
        elif value[0] == DIED:
            assert last == "death", story
            retried = raised if spec.judged and spec.retried else 0
            assert deaths + retried == spec.max_retries + 1, f"budget left: {story}"
        else:
            assert value[0] != BROKEN, story
