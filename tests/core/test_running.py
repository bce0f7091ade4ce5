"""A worker's machine: its tasks, those that run on top of them, and who is told what of that."""

from __future__ import annotations

from typing import Any

from owndist.core import messages as m
from owndist.core.commands import Abandon, CancelAnswered
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

from .door import extent, only, sends

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


def task_of(owner: int, task: int, slots: Any, helps: bool = True) -> Received:
    """A TASK of an owner's, with arguments in shared memory."""
    message = (m.TASK, task, 1, 1, (), b"args", slots, f"{owner}.{task}", None, helps)
    return Received(owner, [message])


def test_an_owner_is_told_only_of_the_mappings_of_what_it_has_sent() -> None:
    """A view of another owner's value lives on in a global: this one could not keep it, and must
    not be given it as a result by its name (Laws 5, 15)."""
    inside = Inside()
    machine = inside.machine
    sent, others = extent(DRIVER, 1), extent(1, 5)  # the second was written here, for owner 2
    inside.feed(TaskEnded(1, 1, READY, b"value", 1, ((1, 5),)))
    inside.feed(task_of(DRIVER, 2, (sent,)))
    assert machine.take() is not None
    (done,) = sends(inside.feed(TaskEnded(2, 1, READY, b"", 1, ((DRIVER, 1), (1, 5)))), m.DONE)
    assert done[6] == (((DRIVER, 1),), (), ())
    inside.feed(task_of(2, 1, (others,)))
    assert machine.take() is not None and machine.running.may_pass_on((1, 5))
    inside.feed(TaskEnded(1, 1, READY, b"", 1, ((1, 5),)))
    inside.feed(task_of(DRIVER, 3, None))
    assert machine.take() is not None
    assert machine.running.may_pass_on((DRIVER, 1)) and not machine.running.may_pass_on((1, 5))


def test_what_is_passed_on_is_not_given_up_with_its_second_owner() -> None:
    """A value that this process wrote for one owner comes back as another's argument, and is its
    result, too. That one dies: the memory is the first one's still (Law 48)."""
    inside = Inside()
    machine = inside.machine
    inside.feed(TaskEnded(1, 1, READY, extent(1, 1), 1, ()))
    inside.feed(task_of(2, 1, (extent(1, 1),)))
    assert machine.take() is not None
    inside.feed(TaskEnded(1, 1, READY, extent(1, 1), 1, ((1, 1),)))
    inside.feed(task_of(2, 2, None))
    assert machine.take() is not None
    inside.feed(TaskEnded(2, 1, READY, extent(1, 2), 1, ()))
    gone = (m.GONE, 2, DRIVER, 0, 1002, -9, "")
    assert [c.serial for c in only(inside.feed(Received(DRIVER, [gone])), Abandon)] == [2]


def test_of_two_workers_that_are_granted_at_once_one_can_be_too_many() -> None:
    """Two were asked for; then one of the tasks was cancelled (Law 52)."""
    machine = Machine(1)
    for task in (1, 2):
        machine.handle(Submitted(task, 1, (), b"args", (), (), f"task {task}", 3, False), 0)
    machine.handle(CancelAsked(2), 0)
    commands = machine.handle(Received(DRIVER, [(m.GRANT, 2, None), (m.GRANT, 3, None)]), 0)
    machine.check()
    assert sends(commands, m.TASK, 2)
    assert sends(commands, m.GIVE_BACK) == [(m.GIVE_BACK, 3, 0)]
