"""Which task gives way when the workers use too much memory (Law 47)."""

from __future__ import annotations

from typing import Any

from owndist.core.commands import Kill, Log
from owndist.core.reports import MemoryShort

from .door import MS, Door, only


def short(door: Door) -> list[Any]:
    return door.feed(MemoryShort(2_000, 1_000))


def running(door: Door, *functions: int, **fields: Any) -> None:
    """Tasks 1, 2, ... of these functions, each begun 1 ms after the other."""
    for task, function in enumerate(functions, 1):
        door.submit(task, function=function, **fields)
        door.up(task)
        door.now += MS


def test_the_task_that_began_last_of_the_largest_group_goes() -> None:
    """Two of one function, then one of another."""
    door = Door(max_workers=3)
    running(door, 1, 1, 2)
    commands = short(door)
    assert [c.worker for c in only(commands, Kill)] == [2]
    (log,) = only(commands, Log)
    assert "task %r" in log.text and log.args == (2_000, 1_000, 2, 1002, "task 2")
    door.end(2, running=2)
    assert door.machine.submission.tasks[2].charged == 1


def test_one_at_a_time() -> None:
    """Until that worker is gone its memory may come back."""
    door = Door(max_workers=2)
    running(door, 1, 1)
    assert only(short(door), Kill) and not only(short(door), Kill)
    door.end(2, running=2)
    assert [c.worker for c in only(short(door), Kill)] == [1]


def test_a_task_that_may_not_run_again_is_left_alone() -> None:
    """That is said once."""
    door = Door(max_workers=2)
    running(door, 1, 1, max_retries=0)
    commands = short(door)
    assert not only(commands, Kill) and len(only(commands, Log)) == 1
    assert short(door) == []


def test_one_without_a_retry_left_goes_last() -> None:
    """It began later, and has died once."""
    door = Door(max_workers=2)
    running(door, 1, 1, max_retries=1)
    assert [c.worker for c in only(short(door), Kill)] == [2]
    door.end(2, running=2)
    door.up(3)
    assert [c.worker for c in only(short(door), Kill)] == [1]
    door.end(1, running=1)
    assert [c.worker for c in only(short(door), Kill)] == [3]


def test_idle_workers_are_left_alone() -> None:
    """Nothing runs."""
    door = Door()
    running(door, 1)
    door.done(1, 1)
    assert not only(short(door), Kill)
