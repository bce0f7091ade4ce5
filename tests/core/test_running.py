"""A worker's machine: its tasks, those that run on top of them, and who is told what of that."""

from __future__ import annotations

from typing import Any

from owndist.core import messages as m
from owndist.core.commands import CancelAnswered
from owndist.core.ids import DRIVER, Address
from owndist.core.machine import Machine
from owndist.core.reports import (
    CancelAsked,
    HandleAdded,
    Received,
    Submitted,
    TaskEnded,
    WaitBegun,
    WaitEnded,
)
from owndist.core.values import READY

from .door import only, sends

_LATE = Address(0, DRIVER, 7)  # an object of the driver's that is still to come


class Inside:
    """Worker 1, in a task 1 of the driver's."""

    def __init__(self) -> None:
        self.machine = Machine(1)
        self.feed(Received(DRIVER, [(m.TASK, 1, 1, 1, (), b"args", None, "outer", None, True)]))
        assert self.machine.take() is not None
        self.feed(HandleAdded(_LATE, DRIVER))

    def feed(self, report: object) -> list[Any]:
        commands: list[Any] = self.machine.handle(report, 0)
        self.machine.check()
        return commands

    def run_on_top(self, task: int) -> Any:
        """The running task submits one, waits for it, and so runs it."""
        self.feed(Submitted(task, 1, (), b"args", (), (), f"task {task}", 3, False))
        item = self.machine.take_awaited((task,))
        assert item is not None and item[1][1] == task
        return item

    def end(self, task: int) -> list[Any]:
        return self.feed(TaskEnded(task, 1, READY, b"value", 1, ()))


def told(commands: list[Any]) -> list[int]:
    """BLOCKED and UNBLOCKED among the commands."""
    codes = (m.BLOCKED, m.UNBLOCKED)
    return [message[0] for code in codes for message in sends(commands, code)]


def test_a_wait_that_a_task_on_top_leaves_behind_ends_with_that_task() -> None:
    """It has started a thread that waits; the task below does not (Law 53)."""
    inside = Inside()
    top = inside.run_on_top(1)
    assert told(inside.feed(WaitBegun((_LATE,)))) == [m.BLOCKED]
    assert told(inside.end(1)) == [m.UNBLOCKED]
    assert told(inside.feed(WaitEnded(top))) == []
    assert told(inside.feed(WaitBegun((_LATE,)))) == [m.BLOCKED]
    assert told(inside.feed(WaitEnded())) == [m.UNBLOCKED]


def test_a_thread_of_the_task_below_goes_on_waiting() -> None:
    """What runs on top ends; the wait that began before it does not (Law 53)."""
    inside = Inside()
    below = inside.machine.execution.running
    assert told(inside.feed(WaitBegun((_LATE,)))) == [m.BLOCKED]
    top = inside.run_on_top(1)
    assert told(inside.feed(WaitBegun((_LATE,)))) == []
    assert told(inside.feed(WaitEnded(top))) == []
    assert told(inside.end(1)) == []
    assert told(inside.feed(WaitEnded(below))) == [m.UNBLOCKED]
    assert told(inside.end(1)) == []


def test_cancel_of_a_task_that_runs_on_top_of_its_owner_is_answered_at_once() -> None:
    """Another thread of the parent wants it; it has started (Law 8)."""
    inside = Inside()
    inside.run_on_top(1)
    (answer,) = only(inside.feed(CancelAsked(1)), CancelAnswered)
    assert not answer.cancelled
    assert not only(inside.end(1), CancelAnswered)
