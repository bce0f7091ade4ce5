"""Stopping tasks that a worker has: outcomes, bookkeeping, and what their workers are told."""

from __future__ import annotations

from typing import Any

from owndist.core import messages as m
from owndist.core.cancelling import GRACE_NS
from owndist.core.commands import CancelAnswered, Interrupt, KillIfRunning
from owndist.core.ids import DRIVER, execution_id
from owndist.core.leasing import OVERDUE_NS
from owndist.core.machine import Machine
from owndist.core.reports import (
    Aborted,
    CancelAsked,
    ErrorJudged,
    Interrupted,
    Received,
    ShutdownAsked,
    Submitted,
    TaskEnded,
    TimerDue,
)
from owndist.core.returns import STREAM
from owndist.core.values import CANCELLED, FAILED, READY

from .door import Door, done, extent, only, sends
from .test_returns import delivered, stream, yielded


def running(*, max_workers: int = 1, **fields: object) -> Door:
    """Task 1 is with worker 1."""
    door = Door(max_workers)
    door.submit(1, **fields)
    door.up(1)
    return door


def test_a_stopped_task_is_cancelled_at_once_and_whatever_it_returns_is_dropped() -> None:
    """`f.cancel(running=True)` of a task that takes no notice (Laws 1, 41, 66)."""
    door = running()
    commands = door.stop(1)
    assert door.answers() == [(1, True)]
    assert door.outcomes() == {1: (CANCELLED, None)}
    assert sends(commands, m.RECALL) == [(m.RECALL, (1,))]
    assert sends(commands, m.INTERRUPT) == [(m.INTERRUPT, 1, 1, False, None)]
    door.say(1, (m.RECALLED, (1,), ()), done(1, extent(1, 1)))
    assert door.outcomes() == {1: (CANCELLED, None)}
    assert door.freed() == [(1, 1)]
    door.drop(1)
    door.assert_empty()


def test_a_stopped_task_keeps_its_worker_busy_until_it_has_ended() -> None:
    """Nothing new is given to a worker that still unwinds (Law 52)."""
    door = running()
    door.stop(1)
    door.submit(2)
    assert [task for _, task, _ in door.tasks_sent()] == [1]
    door.raised(1, 1)
    assert [task for _, task, _ in door.tasks_sent()] == [1, 2]
    assert door.machine.submission.failed == 0


def test_arguments_of_a_stopped_task_are_kept_until_it_has_ended() -> None:
    """Its `finally` block may still look at the array (Laws 12, 15)."""
    door = Door()
    door.put(1, extent(DRIVER, 7))
    door.submit(2, slots=(1,), args=extent(DRIVER, 8))
    door.up(1)
    door.stop(2)
    door.drop(1, 2)
    assert not door.freed()
    door.raised(1, 2)
    assert sorted(door.freed()) == [(DRIVER, 7), (DRIVER, 8)]
    door.assert_empty()


def test_what_a_stopped_task_has_kept_is_registered() -> None:
    """It had put its argument into a global before it was interrupted (Laws 12, 17)."""
    door = Door()
    door.put(1, extent(DRIVER, 7))
    door.submit(2, nested=(1,))
    door.up(1)
    door.stop(2)
    door.drop(1, 2)
    door.keeps(1, 1, 5)
    door.done(1, 2, pinned=((DRIVER, 7),))
    assert 1 in door.machine.references.entries
    door.say(1, (m.RELEASE, ((1, 5),)))
    assert not door.freed()
    door.say(1, (m.UNMAPPED, ((DRIVER, 7),)))
    assert door.freed() == [(DRIVER, 7)]
    door.assert_empty()


def test_tasks_that_take_the_value_of_a_stopped_task_are_cancelled_with_it() -> None:
    """Law 4, down a chain."""
    door = running()
    door.submit(2, slots=(1,))
    door.submit(3, slots=(2,))
    door.stop(1)
    assert door.outcomes() == dict.fromkeys((1, 2, 3), (CANCELLED, None))
    door.raised(1, 1)
    assert door.machine.submission.cancelled == 3


def test_a_stopped_task_that_had_not_started_is_given_back_and_does_not_run() -> None:
    """It was sent ahead (Law 65)."""
    door = running()
    door.make_short()
    door.raised(1, 1)
    door.submit(2)
    door.submit(3)
    door.stop(3)
    door.say(1, (m.RECALLED, (3,), (3,)))
    door.done(1, 2)
    assert [task for _, task, _ in door.tasks_sent()] == [1, 2, 3]
    assert door.machine.leases.idle
    assert door.machine.submission.tasks == {}


def test_a_stopped_task_is_not_retried_and_nobody_is_charged_when_its_worker_dies() -> None:
    """Laws 32, 65 and 66."""
    door = running(max_retries=3)
    door.make_short()
    door.submit(2, max_retries=0)
    door.raised(1, 1)
    door.submit(3, max_retries=0)
    door.stop(2, running=False, force=True)
    door.end(1, running=2)
    door.up(*door.spawned()[1:])
    assert door.tasks_sent()[-1] == (2, 3, 2)
    door.done(2, 3, attempt=2)
    assert door.outcomes()[2] == (CANCELLED, None) and door.outcomes()[3][0] == READY
    assert door.machine.submission.retried == 0


def test_a_retried_task_is_stopped_in_its_present_attempt() -> None:
    """Its first worker died; whatever that one may have said is no news of the second (Law 51)."""
    door = running(max_retries=3)
    door.end(1, running=1)
    door.up(2)
    commands = door.stop(1, force=True)
    assert sends(commands, m.INTERRUPT, 2) == [(m.INTERRUPT, 1, 2, False, None)]
    door.done(2, 1, attempt=1)
    assert 1 in door.machine.submission.tasks
    assert only(door.tick(GRACE_NS), KillIfRunning) == [
        KillIfRunning(2, DRIVER, execution_id(1, 2))
    ]
    door.done(2, 1, attempt=2)
    assert door.outcomes() == {1: (CANCELLED, None)}
    door.drop(1)
    door.assert_empty()


def test_force_kills_at_once_and_again_until_the_task_is_over() -> None:
    """`f.cancel(force=True)`; the first look came before the worker had started it (Law 66)."""
    door = running()
    kill = KillIfRunning(1, DRIVER, execution_id(1, 1))
    commands = door.stop(1, running=False, force=True)
    assert only(commands, KillIfRunning) == [kill]
    assert sends(commands, m.INTERRUPT) == [(m.INTERRUPT, 1, 1, True, None)]
    assert only(door.tick(GRACE_NS), KillIfRunning) == [kill]
    door.end(1, running=1)
    assert not only(door.tick(GRACE_NS), KillIfRunning)
    assert door.machine.next_deadline() is None


def test_force_after_an_interrupt_gives_it_time() -> None:
    """`f.cancel(running=True, force=True)`: killed only if it does not end by itself (Law 66)."""
    for takes_notice in (True, False):
        door = running()
        commands = door.stop(1, force=True)
        assert not only(commands, KillIfRunning)
        assert sends(commands, m.INTERRUPT) == [(m.INTERRUPT, 1, 1, False, None)]
        if takes_notice:
            door.raised(1, 1)
        assert not only(door.tick(GRACE_NS - 1), KillIfRunning)
        kills = [] if takes_notice else [KillIfRunning(1, DRIVER, execution_id(1, 1))]
        assert only(door.tick(1), KillIfRunning) == kills


def test_the_time_of_a_kill_does_not_put_off_a_recall() -> None:
    """Two timers, one door: the earlier one counts."""
    door = running(max_workers=2)
    door.stop(1, force=True)
    door.make_short()
    for task in (2, 3, 4):
        door.submit(task)
    door.up(2)
    deadline = door.machine.next_deadline()
    assert deadline is not None and deadline - door.now <= OVERDUE_NS


def test_stopping_can_be_asked_for_more_than_once() -> None:
    """It took no notice of the first interrupt; the next call is harder (Law 66)."""
    door = running()
    door.stop(1)
    commands = door.stop(1)
    assert sends(commands, m.INTERRUPT) == [(m.INTERRUPT, 1, 1, False, None)]
    assert not sends(commands, m.RECALL)
    assert only(door.stop(1, running=False, force=True), KillIfRunning)
    door.cancel(1)
    assert door.answers() == [(1, True)] * 4
    assert door.outcomes() == {1: (CANCELLED, None)}


def test_a_finished_task_cannot_be_stopped() -> None:
    """Law 65: also with force. Nobody is told anything."""
    door = running()
    door.done(1, 1)
    commands = door.stop(1, force=True)
    assert door.answers() == [(1, False)]
    assert not sends(commands, m.INTERRUPT) and not only(commands, KillIfRunning)


def test_a_task_whose_error_is_being_judged_is_cancelled() -> None:
    """No worker has it: it is not run again, and that is known at once (Law 65)."""
    door = running(judged=True)
    door.raised(1, 1)
    door.stop(1)
    door.feed(ErrorJudged(1, 1, True))
    assert door.outcomes() == {1: (CANCELLED, None)}
    assert door.answers() == [(1, True)]
    assert len(door.tasks_sent()) == 1


def test_who_waits_for_a_plain_cancel_hears_of_the_stop() -> None:
    """Two threads: one asks, one insists. Each has an answer, and the same."""
    door = running()
    door.cancel(1)
    assert door.answers() == []
    door.stop(1)
    door.say(1, (m.RECALLED, (1,), ()))
    door.raised(1, 1)
    assert set(door.answers()) == {(1, True)}
    assert len(door.sent(m.RECALL)) == 1


def test_shutdown_waits_for_a_stopped_task() -> None:
    """As for one that runs; but it is not failed nor cancelled once more (Law 8)."""
    door = running()
    door.stop(1)
    door.feed(ShutdownAsked(True))
    assert not door.machine.drained
    door.raised(1, 1)
    assert door.machine.drained
    assert door.answers() == [(1, True)]


def test_aborted_while_a_task_is_being_stopped() -> None:
    """`kill_workers()` right after: its future stays cancelled."""
    door = running()
    door.stop(1, force=True)
    door.feed(Aborted("the workers were killed"))
    assert door.outcomes() == {1: (CANCELLED, None)}
    assert FAILED not in {status for status, _ in door.outcomes().values()}
    assert door.machine.submission.failed == 0
    door.end(1)
    door.drop(1)
    door.assert_empty()


# -- several values


def test_values_that_a_stopped_task_still_gives_are_dropped() -> None:
    """`a, b, c = options(num_returns=3).submit(f); a.cancel(running=True)` (Laws 1, 13, 66)."""
    door = running(returns=3)
    door.say(1, yielded(1, 1, extent(1, 5)))
    door.stop(3)
    assert {k: s for k, (s, _) in door.outcomes().items()} == {1: CANCELLED, 2: READY, 3: CANCELLED}
    door.say(1, yielded(1, 2, extent(1, 6)), done(1, extent(1, 7)))
    assert door.freed() == [(1, 6), (1, 7)]
    door.drop(1, 2, 3)
    door.assert_empty()


def test_any_future_of_a_task_with_several_values_can_stop_it_harder() -> None:
    """`a.cancel(running=True); b.cancel(force=True)` (Law 66)."""
    door = running(returns=2)
    door.stop(1)
    assert only(door.stop(2, running=False, force=True), KillIfRunning)
    door.end(1, running=1)
    door.drop(1, 2)
    door.assert_empty()


def test_a_stopped_stream_goes_on_to_no_more_values() -> None:
    """It may be paused: it is told to close, too. What it still yields is dropped (Law 70)."""
    door = stream()
    door.say(1, yielded(1, 0, extent(1, 5)))
    commands = door.stop(1)
    assert sends(commands, m.CREDIT) == [(m.CREDIT, 1, 1, 0, True)]
    assert sends(commands, m.INTERRUPT)
    assert door.outcomes() == {1: (CANCELLED, None)}
    door.say(1, yielded(1, 1, extent(1, 6)), done(1, None, status=CANCELLED))
    assert len(delivered(door)) == 1
    assert door.freed() == [(1, 6)]
    assert door.machine.submission.cancelled == 1


# -- in a worker


def working(*tasks: tuple[Any, ...]) -> Machine:
    """Worker 1, with these tasks of the driver's."""
    machine = Machine(1)
    machine.handle(Received(DRIVER, list(tasks)), 0)
    return machine


def task(number: int, attempt: int = 1) -> tuple[Any, ...]:
    return (m.TASK, number, attempt, 1, (), b"", None, "", None, True)


def ask(machine: Machine, number: int, attempt: int = 1, **fields: Any) -> list[Any]:
    told = (m.INTERRUPT, number, attempt, fields.get("force", False), fields.get("children"))
    return machine.handle(Received(DRIVER, [told]), 0)


def submit(machine: Machine, number: int) -> list[Any]:
    return machine.handle(Submitted(number, 1, (), b"", (), (), "", 3, False), 0)


def answers(commands: list[Any]) -> list[bool]:
    return [command.cancelled for command in only(commands, CancelAnswered)]


def test_only_the_execution_that_is_meant_is_interrupted() -> None:
    """Law 66: not the next task, not another attempt, not a task that only waits."""
    machine = working(task(7, 2), task(8, 2))
    assert not only(ask(machine, 7, 2), Interrupt)
    machine.take()
    assert only(ask(machine, 7, 2), Interrupt) == [Interrupt((DRIVER, 7, 2), False, None)]
    assert not only(ask(machine, 7, 1) + ask(machine, 8, 2), Interrupt)


def test_what_runs_on_top_of_a_stopped_task_is_cancelled_with_it() -> None:
    """Nothing below can be interrupted but with it; what is elsewhere goes on (Laws 53, 66)."""
    machine = working(task(7))
    machine.take()
    submit(machine, 1)
    submit(machine, 2)
    assert machine.take_awaited((1,)) is not None
    struck = [command.execution for command in only(ask(machine, 7), Interrupt)]
    assert sorted(struck) == [(DRIVER, 7, 1), (1, 1, 1)]
    assert 2 in machine.submission.tasks
    machine.handle(TaskEnded(1, 1, FAILED, None, 1, ()), 0)
    assert set(machine.submission.tasks) == {2}
    machine.check()


def test_a_task_on_top_of_another_is_interrupted_and_never_killed() -> None:
    """The process is that of the one below (Laws 65, 66)."""
    machine = working(task(7))
    machine.take()
    submit(machine, 1)
    machine.take_awaited((1,))
    assert answers(machine.handle(CancelAsked(1), 0)) == [False]
    assert answers(machine.handle(CancelAsked(1, False, True), 0)) == [False]
    commands = machine.handle(CancelAsked(1, True, True), 0)
    assert answers(commands) == [True]
    assert only(commands, Interrupt) == [Interrupt((1, 1, 1), False, None)]
    assert machine.next_deadline() is None
    assert not sends(commands, m.CONDEMN)
    machine.handle(TaskEnded(1, 1, FAILED, None, 1, ()), 0)
    assert not machine.submission.tasks
    assert machine.submission.cancelled == 1


def test_a_worker_asks_the_lessor_to_kill_a_task_of_its_own() -> None:
    """`child.cancel(force=True)` in a task; the lessor knows whose execution is meant (Law 66)."""
    machine = working(task(7))
    machine.take()
    submit(machine, 1)
    machine.handle(Received(DRIVER, [(m.GRANT, 2, None)]), 0)
    condemned = (m.CONDEMN, 2, execution_id(1, 1))
    commands = machine.handle(CancelAsked(1, False, True), 0)
    assert sends(commands, m.CONDEMN) == [condemned]
    assert sends(machine.handle(TimerDue(), GRACE_NS), m.CONDEMN) == [condemned]
    door = running()
    assert only(door.say(1, condemned), KillIfRunning) == [KillIfRunning(2, 1, execution_id(1, 1))]


def test_children_are_cancelled_where_that_is_asked_for() -> None:
    """`parent.cancel(running=True, recursive=True)`: those of that execution alone (Law 66)."""
    machine = working(task(7))
    machine.take()
    submit(machine, 1)
    machine.handle(Received(DRIVER, [(m.GRANT, 2, None)]), 0)
    submit(machine, 2)
    commands = ask(machine, 7, children=False)
    assert sends(commands, m.INTERRUPT, 2) == [(m.INTERRUPT, 1, 1, False, False)]
    assert set(machine.submission.tasks) == {1}  # it has not ended
    submit(machine, 3)
    machine.handle(Interrupted((DRIVER, 7, 1), False), 0)
    assert set(machine.submission.tasks) == {1}
    submit(machine, 4)  # to clean up
    machine.handle(TaskEnded(7, 1, FAILED, None, 1, ()), 0)
    machine.handle(Received(DRIVER, [task(8)]), 0)
    machine.take()
    submit(machine, 5)
    ask(machine, 7, children=False)  # late: it has ended, and what it has left goes
    assert set(machine.submission.tasks) == {1, 5}
    machine.check()


def test_children_of_a_stream_are_told_how_hard_they_are_stopped() -> None:
    """`stream.cancel(running=True, force=True, recursive=True)` (Law 66)."""
    door = running(returns=STREAM, buffer=2)
    commands = door.stop(1, force=True, recursive=True)
    assert sends(commands, m.INTERRUPT) == [(m.INTERRUPT, 1, 1, False, True)]
