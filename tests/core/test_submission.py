"""Tasks from submission to outcome: dependencies, failures, cancelling, retries."""

from __future__ import annotations

import pytest

from owndist.core import messages as m
from owndist.core.commands import JudgeError
from owndist.core.ids import execution_id
from owndist.core.leasing import OVERDUE_NS
from owndist.core.reports import ErrorJudged, Fulfilled, Promised, ShutdownAsked, WorkerEnded
from owndist.core.values import CANCELLED, DIED, ERROR, FAILED, READY

from .door import Door, done, only, sends


def test_task_is_sent_when_its_argument_is_there() -> None:
    """`b = submit(g, submit(f))` (Law 3)."""
    door = Door()
    door.submit(1)
    door.submit(2, slots=(1,))
    door.up(1)
    assert door.tasks_sent() == [(1, 1, 1)]
    commands = door.done(1, 1, b"one")
    [task] = sends(commands, m.TASK)
    assert task[1] == 2 and task[6] == (b"one",)
    door.done(1, 2)
    assert {k: s for k, (s, _) in door.outcomes().items()} == {1: READY, 2: READY}


def test_argument_given_twice_is_waited_for_once() -> None:
    """`a = submit(f); submit(g, a, a)`."""
    door = Door()
    door.submit(1)
    door.submit(2, slots=(1, 1))
    door.up(1)
    [task] = sends(door.done(1, 1, b"one"), m.TASK)
    assert task[6] == (b"one", b"one")


def test_failure_cascades_and_no_body_runs() -> None:
    """`d = submit(h, submit(g, submit(f)))` and f raises (Law 4)."""
    door = Door()
    door.submit(1)
    door.submit(2, slots=(1,))
    door.submit(3, slots=(2,))
    door.up(1)
    door.raised(1, 1)
    failure = (ERROR, b"error", "")
    assert door.outcomes() == dict.fromkeys((1, 2, 3), (FAILED, failure))
    assert door.tasks_sent() == [(1, 1, 1)]
    door.drop(1, 2, 3)
    door.assert_empty()


def test_argument_that_has_failed_already_fails_the_task_and_counts() -> None:
    """`f1 = submit(f)` has raised; then `submit(g, f1)` (Law 4)."""
    door = Door()
    door.submit(1)
    door.up(1)
    door.raised(1, 1)
    door.submit(2, slots=(1,))
    assert door.outcomes()[2][0] == FAILED
    assert door.machine.submission.failed == 2


def test_failed_argument_with_another_still_to_come() -> None:
    """`submit(h, bad, late)`: fails at once; `late` may come when it likes."""
    door = Door()
    door.submit(1)
    door.submit(2)
    door.submit(3, slots=(1, 2))
    door.up(1)
    door.raised(1, 1)
    assert door.outcomes()[3][0] == FAILED
    door.done(1, 2)
    door.drop(1, 2, 3)
    door.assert_empty()


def test_cancel_while_waiting() -> None:
    """`b = submit(g, a); b.cancel()` before a is done (Law 65)."""
    door = Door()
    door.submit(1)
    door.submit(2, slots=(1,))
    door.submit(3, slots=(2,))
    door.cancel(2)
    assert door.answers() == [(2, True)]
    assert door.outcomes() == {2: (CANCELLED, None), 3: (CANCELLED, None)}
    door.up(1)
    door.done(1, 1)
    assert door.tasks_sent() == [(1, 1, 1)]


def test_cancel_while_ready() -> None:
    """More tasks than workers; the last one is cancelled (Law 65)."""
    door = Door()
    door.submit(1)
    door.cancel(1)
    door.up(1)
    assert door.outcomes() == {1: (CANCELLED, None)} and not door.tasks_sent()


def test_cancel_of_a_task_sent_ahead() -> None:
    """A short task waits on a worker behind another and is cancelled (Law 65)."""
    door = Door()
    door.make_short()
    door.submit(1)
    door.submit(2)
    door.up(1)
    commands = door.cancel(2)
    assert sends(commands, m.RECALL) == [(m.RECALL, (2,))] and not door.answers()
    door.say(1, (m.RECALLED, (2,), (2,)))
    assert door.answers() == [(2, True)] and door.outcomes()[2] == (CANCELLED, None)
    door.done(1, 1)
    assert [task for _, task, _ in door.tasks_sent()] == [1, 2]


def test_cancel_of_a_running_task() -> None:
    """It has started: it goes on, and its value counts."""
    door = Door()
    door.submit(1)
    door.up(1)
    door.cancel(1)
    door.say(1, (m.RECALLED, (1,), ()))
    assert door.answers() == [(1, False)]
    door.done(1, 1)
    assert door.outcomes()[1] == (READY, b"value")


def test_cancel_that_crosses_the_result() -> None:
    """The result was on its way when `cancel` was called; two asked, each is answered."""
    door = Door()
    door.submit(1)
    door.up(1)
    door.cancel(1)
    door.cancel(1)
    assert len(door.sent(m.RECALL)) == 1
    door.done(1, 1)
    door.say(1, (m.RECALLED, (1,), ()))
    assert door.answers() == [(1, False)]


def test_cancel_that_was_given_up_changes_nothing() -> None:
    """A worker inside of a long call into C answers too late; `cancel` has returned False."""
    door = Door()
    door.make_short()
    door.submit(1)
    door.submit(2)
    door.up(1)
    door.cancel(2)
    door.withdraw(2)
    door.say(1, (m.RECALLED, (2,), (2,)))
    assert not door.outcomes() and not door.answers()
    door.end(1, running=1)
    door.submit(3)
    door.up(2)
    door.done(2, 1, attempt=2)
    [(worker, _, attempt)] = [sent for sent in door.tasks_sent() if sent[1] == 2][-1:]
    door.done(worker, 2, attempt=attempt)
    assert door.outcomes()[2] == (READY, b"value")


def test_cancel_that_was_given_up_can_be_asked_for_again() -> None:
    """The answer to the first recall counts for the second `cancel`, too."""
    door = Door()
    door.make_short()
    door.submit(1)
    door.submit(2)
    door.up(1)
    door.cancel(2)
    door.withdraw(2)
    door.cancel(2)
    door.say(1, (m.RECALLED, (2,), (2,)))
    door.say(1, (m.RECALLED, (2,), ()))
    assert door.answers() == [(2, True)] and door.outcomes() == {2: (CANCELLED, None)}


def test_giving_up_a_cancel_does_not_undo_a_shutdown() -> None:
    """`shutdown(cancel_futures=True)` after `cancel` (Law 8)."""
    door = Door()
    door.make_short()
    door.submit(1)
    door.submit(2)
    door.up(1)
    door.cancel(2)
    door.feed(ShutdownAsked(cancel=True))
    door.withdraw(2)
    door.say(1, (m.RECALLED, (2,), (2,)))
    assert door.outcomes() == {2: (CANCELLED, None)}


@pytest.mark.parametrize("retry", [False, True])
def test_cancel_while_judging(retry: bool) -> None:
    """`options(retry_exceptions=(OSError,))`: it does not run again; else it has failed."""
    door = Door()
    door.submit(1, judged=True)
    door.up(1)
    door.raised(1, 1)
    door.cancel(1)
    door.feed(ErrorJudged(1, 1, retry))
    assert door.answers() == [(1, retry)]
    assert door.outcomes()[1][0] == (CANCELLED if retry else FAILED)
    assert len(door.tasks_sent()) == 1 and not door.machine.submission.retried


def test_a_death_is_charged_to_the_attempt_that_ran() -> None:
    """A worker that dies after its report, but before it has noted so, may have been sent the
    same task again; that attempt has not started (Law 32)."""
    door = Door()
    door.submit(1, judged=True, max_retries=1)
    door.up(1)
    stale = execution_id(1, 1)
    door.raised(1, 1)
    door.feed(ErrorJudged(1, 1, True))
    assert door.tasks_sent() == [(1, 1, 1), (1, 1, 2)]
    door.feed(WorkerEnded(1, stale, 1001, -9, ""))
    door.up(2)
    assert door.tasks_sent()[-1] == (2, 1, 3)
    door.done(2, 1, attempt=3)
    assert door.outcomes()[1] == (READY, b"value")


def test_cancel_when_done_or_unknown() -> None:
    """Law 65: of a finished one False."""
    door = Door()
    door.put(1)
    door.cancel(1)
    door.cancel(99)
    assert door.answers() == [(1, False), (99, False)]


def test_cancelled_task_whose_worker_dies_is_cancelled() -> None:
    """It only waited there, and the recall was never answered."""
    door = Door()
    door.make_short()
    door.submit(1)
    door.submit(2)
    door.up(1)
    door.cancel(2)
    door.end(1, running=1)
    assert door.answers() == [(2, True)] and door.outcomes()[2] == (CANCELLED, None)


def test_only_the_running_task_is_charged_for_a_death() -> None:
    """A worker with one running and two queued tasks is killed; max_retries=0 (Laws 32, 35)."""
    door = Door()
    door.make_short()
    for task in (1, 2, 3):
        door.submit(task, max_retries=0)
    door.up(1)
    door.end(1, running=1)
    assert door.outcomes() == {1: (FAILED, (DIED, (1001, -9, 1, ""), "task 1"))}
    door.up(2)
    assert door.tasks_sent()[3:] == [(2, 2, 2), (2, 3, 2)]
    door.done(2, 2, attempt=2)
    door.done(2, 3, attempt=2)
    assert door.machine.submission.retried == 0


def test_a_task_that_always_kills_runs_exactly_one_plus_max_retries() -> None:
    """`submit(os._exit)` (Law 33)."""
    door = Door()
    door.submit(1, max_retries=2)
    for worker in (1, 2, 3):
        door.up(worker)
        door.end(worker, running=1)
    assert [attempt for _, _, attempt in door.tasks_sent()] == [1, 2, 3]
    status, value = door.outcomes()[1]
    assert status == FAILED and value[1][2] == 3
    assert len(door.spawned()) == 3


def test_deaths_and_retried_errors_share_one_budget() -> None:
    """`options(max_retries=1, retry_exceptions=(OSError,))` (Laws 33, 34)."""
    door = Door()
    door.submit(1, max_retries=1, judged=True)
    door.up(1)
    [judge] = only(door.raised(1, 1), JudgeError)
    assert (judge.task, judge.attempt, judge.error) == (1, 1, b"error")
    door.feed(ErrorJudged(1, 1, True))
    door.end(1, running=1)
    assert door.outcomes()[1][1][0] == DIED


def test_error_that_is_not_to_be_retried_fails_the_task() -> None:
    """Law 34: only instances of the given types."""
    door = Door()
    door.submit(1, judged=True)
    door.up(1)
    door.raised(1, 1)
    door.feed(ErrorJudged(1, 1, False))
    assert door.outcomes()[1] == (FAILED, (ERROR, b"error", ""))
    assert door.machine.submission.retried == 0


def test_judgement_of_an_earlier_attempt_changes_nothing() -> None:
    """The reader judged slowly, or twice (Laws 41, 51)."""
    door = Door()
    door.submit(1, judged=True)
    door.up(1)
    door.raised(1, 1)
    door.feed(ErrorJudged(1, 1, True))
    door.feed(ErrorJudged(1, 1, False))
    assert 1 not in door.outcomes()
    door.done(1, 1, attempt=2)
    assert door.outcomes()[1][0] == READY


def test_result_that_comes_twice_counts_once() -> None:
    """A worker is killed between sending its outbox and clearing it (Law 1)."""
    door = Door()
    door.submit(1)
    door.up(1)
    door.say(1, done(1), done(1))
    door.end(1, running=1)
    assert door.outcomes() == {1: (READY, b"value")}
    assert door.machine.submission.finished == 1


def test_error_that_comes_twice_is_judged_once() -> None:
    """As before, and the task runs elsewhere when the copy comes (Laws 1, 41, 51)."""
    door = Door(max_workers=2)
    door.submit(1, judged=True)
    door.submit(2)
    door.up(1, 2)
    door.raised(1, 1)
    door.feed(ErrorJudged(1, 1, True))
    assert door.tasks_sent()[-1] == (1, 1, 2)
    assert not door.raised(1, 1)
    door.done(1, 1, b"second", attempt=2)
    assert door.outcomes()[1] == (READY, b"second")


def test_result_from_a_worker_that_lost_the_task_is_stale() -> None:
    """Recalled from one worker, sent to another; then the first one claims a result (Law 51)."""
    door = Door(max_workers=2)
    door.make_short()
    door.submit(1)
    door.submit(2)
    door.up(1)
    door.tick(OVERDUE_NS)
    door.say(1, (m.RECALLED, (1, 2), (2,)))
    door.up(2)
    assert door.tasks_sent()[-1] == (2, 2, 2)
    door.done(1, 2, b"stale", attempt=1)
    door.done(1, 2, b"stale", attempt=2)
    assert 2 not in door.outcomes()
    door.done(2, 2, b"right", attempt=2)
    assert door.outcomes()[2] == (READY, b"right")


def test_foreign_future_is_waited_for() -> None:
    """`submit(f, thread_pool_future)` (Law 2)."""
    door = Door()
    door.feed(Promised(1))
    door.submit(2, slots=(1,))
    door.up(*door.spawned())
    assert not door.tasks_sent()
    door.feed(Fulfilled(1, READY, b"foreign"))
    door.drop(1)
    assert door.spawned() == [1]
    [task] = sends(door.up(1), m.TASK)
    assert task[6] == (b"foreign",)
    door.done(1, 2)
    door.drop(2)
    door.assert_empty()


def test_foreign_future_that_fails_fails_the_task() -> None:
    """Law 4; and fulfilled twice is as once."""
    for status, value in ((FAILED, (ERROR, b"x", "")), (CANCELLED, None)):
        door = Door()
        door.feed(Promised(1))
        door.submit(2, slots=(1,))
        door.feed(Fulfilled(1, status, value))
        door.feed(Fulfilled(1, READY, b"late"))
        assert door.outcomes() == {1: (status, value), 2: (status, value)}


def test_shutdown_that_cancels_keeps_what_runs() -> None:
    """`shutdown(cancel_futures=True)` with one running, one sent ahead, one waiting (Law 8)."""
    door = Door()
    door.make_short()
    for task in (1, 2):
        door.submit(task)
    door.submit(3, slots=(1,))
    door.up(1)
    door.feed(ShutdownAsked(True))
    assert door.outcomes() == {3: (CANCELLED, None)}
    door.say(1, (m.RECALLED, (1, 2), (2,)))
    door.done(1, 1)
    assert door.outcomes()[1][0] == READY and door.outcomes()[2][0] == CANCELLED
    assert door.machine.drained
