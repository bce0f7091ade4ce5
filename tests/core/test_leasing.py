"""Workers: who gets what, recalls, lending a slot, leaving."""

from __future__ import annotations

import pytest

from owndist.core import messages as m
from owndist.core.leasing import OVERDUE_NS
from owndist.core.lessor import SPARE_NS
from owndist.core.reports import Fulfilled, Promised
from owndist.core.values import READY

from .door import MS, Door, done, sends


def test_no_more_workers_than_tasks_or_slots() -> None:
    """Four workers allowed, two tasks; then ten."""
    door = Door(max_workers=4)
    door.submit(1)
    door.submit(2)
    assert door.spawned() == [1, 2]
    for task in range(3, 11):
        door.submit(task)
    assert door.spawned() == [1, 2, 3, 4]


def test_task_of_unknown_length_is_never_sent_ahead() -> None:
    """Two tasks of a new function, one worker."""
    door = Door()
    door.submit(1)
    door.submit(2)
    door.up(1)
    assert door.tasks_sent() == [(1, 1, 1)]
    assert door.machine.next_deadline() is None


def test_overdue_tasks_are_stolen_by_an_idle_worker() -> None:
    """One of many short tasks turns out long (Law 52)."""
    door = Door(max_workers=2)
    door.make_short()
    for task in (1, 2, 3):
        door.submit(task)
    door.up(1)
    assert [w for w, _, _ in door.tasks_sent()] == [1, 1, 1]
    door.up(2)
    commands = door.tick(OVERDUE_NS)
    assert sends(commands, m.RECALL, 1) == [(m.RECALL, (1, 2, 3))]
    door.say(1, (m.RECALLED, (1, 2, 3), (2, 3)))
    assert door.tasks_sent()[3:] == [(2, 2, 2), (2, 3, 2)]


def test_a_task_that_came_back_does_not_wear_its_worker_out() -> None:
    """max_tasks_per_child=2; the worker imports numpy before it can start the first of two."""
    door = Door(max_workers=2, max_tasks=2)
    door.make_short()
    door.submit(1)
    door.submit(2)
    door.up(1)
    assert [w for w, _, _ in door.tasks_sent()] == [1, 1]
    door.up(2)
    assert sends(door.tick(OVERDUE_NS), m.RECALL, 1)
    door.say(1, (m.RECALLED, (1, 2), (1, 2)))
    assert not door.sent(m.STOP, 1)
    assert len(door.tasks_sent()) == 4  # both are where they can run
    for worker, task, attempt in door.tasks_sent()[2:]:
        assert attempt == 2
        door.done(worker, task, attempt)
    assert door.spawned() == [1, 2]


def test_recalled_task_does_not_go_back_behind_the_long_one() -> None:
    """`f(0)` was short; `f(long)`, `f(1)`; one worker runs and two are allowed (Law 52)."""
    door = Door(max_workers=2)
    door.submit(1)
    door.up(1)
    door.done(1, 1)
    door.submit(2)
    door.submit(3)
    assert door.spawned() == [1]  # it counts as short: no second worker is worth while
    door.tick(OVERDUE_NS)
    door.say(1, (m.RECALLED, (2, 3), (3,)))
    assert door.spawned() == [1, 2]
    door.up(2)
    assert door.tasks_sent()[-1] == (2, 3, 2)


def test_recall_that_is_not_answered_does_not_stop_the_timer() -> None:
    """The worker's interpreter is held by a call into C; a task is sent behind it meanwhile."""
    door = Door(max_workers=2)
    door.make_short()
    for task in (1, 2):
        door.submit(task)
    door.up(1)
    door.tick(OVERDUE_NS)
    door.done(1, 1)
    door.submit(3)
    assert door.tasks_sent()[-1] == (1, 3, 1)
    door.tick(OVERDUE_NS)
    door.say(1, (m.RECALLED, (1, 2), ()))
    commands = door.tick(OVERDUE_NS)
    assert sends(commands, m.RECALL, 1) == [(m.RECALL, (2, 3))]


def test_one_worker_alone_is_never_recalled_from() -> None:
    """max_workers=1: nobody else could run it."""
    door = Door()
    door.make_short()
    door.submit(1)
    door.submit(2)
    door.up(1)
    assert not sends(door.tick(10 * OVERDUE_NS), m.RECALL)
    assert door.machine.next_deadline() is None


def test_blocked_worker_lends_its_slot() -> None:
    """With one worker, a task waits for a future that is still to be computed (Law 53)."""
    door = Door()
    door.submit(1)
    door.submit(2)
    door.up(1)
    door.blocked(1, 2)
    assert door.spawned() == [1, 2]
    door.up(2)
    assert door.tasks_sent() == [(1, 1, 1), (2, 2, 1)]
    door.done(2, 2)
    door.unblocked(1)
    # Two are up and one slot is there: whoever falls idle next goes, if nobody waits again soon.
    door.done(1, 1)
    assert sends(door.tick(SPARE_NS), m.STOP, 1) == [(m.STOP, False)]


def test_what_stands_behind_a_blocked_task_is_recalled() -> None:
    """The very future that it waits for was sent ahead to the same worker (Law 53)."""
    door = Door()
    door.make_short()
    door.submit(1)
    door.submit(2)
    door.up(1)
    commands = door.blocked(1, 2)
    assert sends(commands, m.RECALL, 1) == [(m.RECALL, (1, 2))]
    door.say(1, (m.RECALLED, (1, 2), (2,)))
    door.up(2)
    assert door.tasks_sent()[-1] == (2, 2, 2)


def test_what_stands_behind_the_last_task_of_a_worker_is_recalled_when_it_blocks() -> None:
    """max_tasks_per_child=2; the first task waits for the second (Law 53)."""
    door = Door(max_tasks=2)
    door.make_short()
    door.submit(1)
    door.submit(2)
    door.up(1)
    assert len(door.tasks_sent()) == 2
    assert sends(door.blocked(1, 2), m.RECALL, 1) == [(m.RECALL, (1, 2))]
    door.say(1, (m.RECALLED, (1, 2), (2,)))
    door.up(2)
    door.done(2, 2, attempt=2)
    door.unblocked(1)
    assert not sends(door.done(1, 1), m.STOP, 1)  # it has run one of two


def test_waiting_tasks_do_not_fill_the_machine_with_processes() -> None:
    """A hundred tasks wait for one whose argument is late (Law 53): a cap, and no dead-lock."""
    door = Door()
    cap = door.machine.lessor.max_processes
    door.feed(Promised(200))
    for task in range(1, 100):
        door.submit(task)
    door.submit(100, slots=(200,))
    for worker in range(1, cap + 1):
        door.up(worker)
        door.blocked(worker, 100)
    assert len(door.spawned()) == cap
    # All wait, and what they wait for is ready: one more process, and that task goes first.
    door.feed(Fulfilled(200, READY, b"late"))
    assert len(door.spawned()) == cap + 1
    door.up(cap + 1)
    assert door.tasks_sent()[-1] == (cap + 1, 100, 1)
    door.done(cap + 1, 100)
    assert len(door.spawned()) == cap + 1


def test_workers_that_stay_for_what_they_own_starve_nobody() -> None:
    """max_tasks_per_child=1, and each task has put something whose future is kept (Law 26)."""
    door = Door(max_tasks=1)
    count = door.machine.lessor.max_processes + 3
    for task in range(1, count + 1):
        door.submit(task)
        door.up(task)
        assert sends(door.done(task, task), m.STOP, task), "it does not end: it owns something"
    assert len(door.spawned()) == count and len(door.machine.lessor.processes) == count


def test_worker_is_replaced_after_its_tasks_and_keeps_its_slot_until_then() -> None:
    """max_tasks_per_child=1 with two workers and five tasks: never three at a time."""
    door = Door(max_workers=2, max_tasks=1)
    for task in range(1, 6):
        door.submit(task)
    door.up(1, 2)
    assert door.spawned() == [1, 2] and len(door.tasks_sent()) == 2
    commands = door.done(1, 1)
    assert sends(commands, m.STOP, 1) == [(m.STOP, False)]
    assert door.spawned() == [1, 2, 3]
    door.end(1, exitcode=0)
    assert door.machine.workers_died == 0
    assert door.spawned() == [1, 2, 3]


def test_estimates_fall_fast_and_rise_slowly() -> None:
    """A first call pays for imports."""
    door = Door()
    door.submit(1)
    door.up(1)
    door.say(1, done(1, elapsed_ns=400 * MS))
    first = door.machine.submission.estimates[1]
    door.submit(2)
    door.say(1, done(2, elapsed_ns=1 * MS))
    second = door.machine.submission.estimates[1]
    door.submit(3)
    door.say(1, done(3, elapsed_ns=first))
    third = door.machine.submission.estimates[1]
    assert second < 0.6 * first and third - second < 0.2 * first


@pytest.mark.parametrize("moment", ["starting", "idle", "running", "blocked", "last"])
def test_tables_add_up_when_a_worker_dies(moment: str) -> None:
    """A kill in each state (Law 29); `check` runs after every input."""
    door = Door(max_tasks=1 if moment == "last" else None)
    door.submit(1)
    if moment != "starting":
        door.up(1)
    if moment == "idle":
        door.done(1, 1)
    if moment == "blocked":
        door.blocked(1, 1)
    door.end(1, running=1 if moment in ("running", "blocked", "last") else 0)
    if moment != "idle":
        door.up(2)
        assert door.tasks_sent()[-1][:2] == (2, 1)
    assert door.machine.lessor.slots_used == (moment != "idle")


def test_no_worker_is_started_for_a_task_that_was_cancelled() -> None:
    """Three tasks, all but one cancelled while the first worker starts."""
    door = Door(max_workers=4)
    door.submit(1)
    assert door.spawned() == [1]
    door.submit(2)
    assert door.spawned() == [1, 2]
    for task in (1, 2):
        door.cancel(task)
    door.submit(3)
    assert door.spawned() == [1, 2]


def test_a_recalled_task_for_which_a_worker_waits_is_seen_behind_others() -> None:
    """Every process waits, the cap is reached, and the one task that would help was sent to one of
    them, behind another (Law 53)."""
    door = Door()
    door.make_short()
    door.machine.lessor.max_processes = 1
    for task in (1, 2, 3):
        door.submit(task)
    door.up(1)
    door.blocked(1, 3)
    assert sends(door.say(1, (m.RECALLED, (1, 2, 3), (2, 3))), m.TASK) == []
    assert door.spawned() == [1, 2]
    door.up(2)
    assert door.tasks_sent()[3:] == [(2, 3, 2), (2, 2, 2)]
