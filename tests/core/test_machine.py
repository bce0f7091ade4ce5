"""Ends and breakages of the whole pool."""

from __future__ import annotations

from owndist.core import messages as m
from owndist.core.commands import Drained, Log, LookAgain
from owndist.core.ids import DRIVER
from owndist.core.machine import Machine
from owndist.core.reports import (
    Aborted,
    HandlesDropped,
    LookedAgain,
    Received,
    ShutdownAsked,
    Stored,
    Submitted,
)
from owndist.core.values import BROKEN, CANCELLED, FAILED, READY

from .door import Door, extent, only, sends


def test_shutdown_waits_for_all_tasks() -> None:
    """`with` ends: what was submitted is finished first (Law 8)."""
    door = Door()
    door.submit(1)
    door.submit(2, slots=(1,))
    door.up(1)
    assert not only(door.feed(ShutdownAsked(False)), Drained)
    door.done(1, 1)
    commands = door.done(1, 2)
    assert only(commands, Drained) and sends(commands, m.STOP, 1)
    door.end(1, exitcode=0)
    assert not door.machine.lessor.processes and door.machine.workers_died == 0


def test_shutdown_waits_for_a_grandchild_of_which_the_driver_has_not_heard() -> None:
    """A task leaves a child behind, and that one a grandchild (Law 8).

    The grandchild's owner, worker 2, has said that it is busy, and then worker 1 that it is not any
    more. These two are read the other way round.
    """
    door = Door(max_workers=3)
    door.links_are_empty = False
    door.submit(1)
    door.up(1)
    door.say(1, (m.DEMAND, 1, 0, False, True))
    door.done(1, 1)
    door.feed(ShutdownAsked(False))
    commands = door.say(1, (m.DEMAND, 0, 0, False, False))
    assert only(commands, LookAgain) and not only(commands, Drained)
    assert not only(door.up(2), LookAgain)  # asked for already
    door.say(2, (m.DEMAND, 1, 0, False, True))
    assert not only(door.feed(LookedAgain()), Drained) and not door.sent(m.STOP)
    commands = door.say(2, (m.DEMAND, 0, 0, False, False))
    assert only(commands, LookAgain)
    assert only(door.feed(LookedAgain()), Drained) and len(door.sent(m.STOP)) == 2


def test_an_owner_that_was_busy_only_during_the_look_has_it_repeated() -> None:
    """Whom it gave a task may have been looked at before that one said so (Law 8)."""
    door = Door(max_workers=3)
    door.links_are_empty = False
    door.submit(1)
    door.up(1)
    door.done(1, 1)
    assert only(door.feed(ShutdownAsked(False)), LookAgain)
    door.say(1, (m.DEMAND, 1, 0, False, True), (m.DEMAND, 0, 0, False, False))
    commands = door.feed(LookedAgain())
    assert only(commands, LookAgain) and not only(commands, Drained)
    assert only(door.feed(LookedAgain()), Drained)


def test_worker_that_was_still_starting_at_shutdown_is_stopped() -> None:
    """One short task, two workers asked for; the task ends before the second is up."""
    door = Door(max_workers=2)
    door.submit(1)
    door.submit(2)
    door.up(1)
    door.cancel(2)
    door.done(1, 1)
    commands = door.feed(ShutdownAsked(False))
    assert len(sends(commands, m.STOP)) == 2
    door.up(2)
    door.end(2, exitcode=0)
    assert door.machine.broken is None


def test_abort_cancels_what_waits_and_fails_what_runs() -> None:
    """`terminate_workers()` (Law 8)."""
    door = Door()
    door.make_short()
    for task in (1, 2):
        door.submit(task)
    door.up(1)
    door.submit(3, slots=(1,))
    commands = door.feed(Aborted("stopped"))
    assert only(commands, Drained)
    statuses = {k: s for k, (s, _) in door.outcomes().items()}
    assert statuses == {1: FAILED, 2: FAILED, 3: CANCELLED}
    assert not door.done(1, 1)  # it had been on its way
    door.end(1, running=2)
    assert not door.machine.lessor.processes


def test_abort_while_a_task_waits_for_a_future() -> None:
    """`kill_workers()` while a worker is blocked: its last words change nothing."""
    door = Door()
    door.submit(1)
    door.submit(2)
    door.up(1)
    door.blocked(1, 2)
    door.feed(Aborted("stopped"))
    door.unblocked(1)
    door.end(1, running=1)
    door.end(2)
    assert not door.machine.lessor.processes and door.machine.lessor.slots_used == 0


def test_initializer_that_raises_breaks_the_pool() -> None:
    """`OwnershipExecutor(initializer=bad)`: as in the stdlib, everything fails (Law 8)."""
    door = Door(max_workers=2)
    door.submit(1)
    door.submit(2, slots=(1,))
    commands = door.say(1, (m.INIT_FAILED, b"error"))
    assert only(commands, Log)
    assert {s for s, _ in door.outcomes().values()} == {FAILED}
    assert door.outcomes()[1][1][0] == BROKEN
    door.submit(3)
    assert door.outcomes()[3][0] == FAILED
    assert only(door.feed(ShutdownAsked(False)), Drained)


def test_pool_that_breaks_under_a_running_task() -> None:
    """The second worker's initializer raises while the first runs; its result comes late."""
    door = Door(max_workers=2)
    door.put(9, extent(0, 1))
    door.submit(1, slots=(9,))
    door.submit(2)
    door.up(1)
    door.say(2, (m.INIT_FAILED, b"error"))
    door.drop(9, 1)
    assert door.freed() == [(0, 1)]
    door.done(1, 1, extent(0, 1))  # it returns what it got: freed already, and not again
    assert door.freed() == [(0, 1)]


def test_a_task_that_submits_after_the_pool_broke_hears_of_it() -> None:
    """It runs on in worker 1; worker 2's initializer raised. Or shutdown would wait for it."""
    door = Door(max_workers=2)
    door.submit(1)
    door.submit(2)
    door.up(1)
    door.say(2, (m.INIT_FAILED, b"error"))
    assert not door.sent(m.BROKE)
    door.say(1, (m.DEMAND, 1, 0, False, True))
    ((_, failure),) = door.sent(m.BROKE, 1)
    assert failure[0] == BROKEN and not door.sent(m.GRANT)
    door.say(1, (m.DEMAND, 0, 0, False, False))
    assert len(door.sent(m.BROKE)) == 1
    assert only(door.feed(ShutdownAsked(False)), Drained)


def test_three_failed_starts_in_a_row_break_the_pool() -> None:
    """Workers that die in the initializer (`os._exit(1)`): no endless respawning."""
    door = Door()
    door.submit(1)
    for worker in (1, 2, 3):
        assert door.spawned()[-1] == worker
        door.end(worker, exitcode=1)
    assert door.outcomes()[1][1][0] == BROKEN and door.spawned() == [1, 2, 3]


def test_three_failed_starts_break_the_pool_during_shutdown_too() -> None:
    """`with OwnershipExecutor(initializer=dies) as ex: ex.submit(f)` (Law 46)."""
    door = Door()
    door.submit(1)
    door.feed(ShutdownAsked(False))
    for worker in (1, 2, 3):
        door.end(worker, exitcode=1)
    assert door.outcomes()[1][1][0] == BROKEN and door.machine.drained


def test_a_good_start_forgives_the_failed_ones() -> None:
    """Two failed starts, a good one, two failed ones: not three in a row."""
    door = Door()
    door.submit(1)
    door.end(1)
    door.end(2)
    door.up(3)
    door.end(3, running=1)
    door.end(4)
    door.end(5)
    door.up(6)
    door.done(6, 1, attempt=2)
    assert door.outcomes()[1][0] == READY


def test_commands_go_by_submission_order() -> None:
    """One sequence of inputs gives one sequence of commands."""
    stories = []
    for _ in range(2):
        door = Door(max_workers=3)
        for task in range(1, 20):
            door.submit(task, slots=(task // 2,) if task > 3 else ())
        door.up(1, 2, 3)
        for worker, task, attempt in door.tasks_sent():
            door.done(worker, task, attempt=attempt)
        stories.append(repr(door.story))
    assert stories[0] == stories[1]


def test_a_worker_that_owns_something_does_not_leave() -> None:
    """Told to stop, it waits for its objects and its tasks; told that all is over, for nothing
    (Law 26)."""
    machine = Machine(3)
    machine.handle(Stored(1, b"value", ()), 0)
    machine.handle(Submitted(2, 7, (), b"args", (), (), "task", 3, False), 0)
    machine.handle(HandlesDropped([2]), 0)
    machine.handle(Received(DRIVER, [(m.STOP, False)]), 0)
    assert not machine.may_leave()
    machine.handle(HandlesDropped([1]), 0)
    assert not machine.may_leave()  # the task is still to be run
    machine.handle(Received(DRIVER, [(m.GRANT, 4, None)]), 0)
    machine.handle(Received(4, [(m.DONE, 2, 1, READY, b"value", 1, None)]), 0)
    assert machine.may_leave()
    machine.handle(Stored(5, b"value", ()), 0)
    assert not machine.may_leave()
    machine.handle(Received(DRIVER, [(m.STOP, True)]), 0)
    assert machine.may_leave()
