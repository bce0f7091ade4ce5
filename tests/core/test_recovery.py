"""Values whose memory is gone: what runs again, what does not, and what those who wait hear."""

from __future__ import annotations

import pytest

from owndist.core import messages as m
from owndist.core.commands import CheckSegment, Send
from owndist.core.reports import Mapped, Unmapped
from owndist.core.values import DIED, FAILED, LOST, PENDING, READY, UNREAD

from .door import Door, done, extent, only, sends
from .losses import door_with, lose, outcomes_of, runs


def one_value(door: Door) -> None:
    """`x = submit(make)`, done by worker 1, which wrote extent 1."""
    door.submit(1)
    door.up(1)
    door.done(1, 1, extent(1, 1))


def test_a_lost_value_is_computed_again_into_the_same_object() -> None:
    """Read, and gone (Laws 37 and 39)."""
    door = door_with()
    one_value(door)
    lose(door, 1, 1, 1)
    assert door.tasks_sent() == [(1, 1, 1), (1, 1, 2)]
    commands = door.done(1, 1, extent(1, 2), attempt=2)
    assert outcomes_of(commands) == {1: (READY, extent(1, 2))}
    assert door.machine.recovery.recomputed == 1
    door.drop(1)
    door.assert_empty()


def test_readers_at_the_same_time_are_one_execution() -> None:
    """Two threads, a borrower and a new task want the lost value (Law 40)."""
    door = door_with(workers=2)
    one_value(door)
    door.keeps(1, 1, 7)
    lose(door, 1, 1, 1)
    lose(door, 1, 1, 1)
    door.say(1, (m.LOST_VALUE, 1, (1, 1), "s1"))
    door.submit(2, slots=(1,))
    assert runs(door) == {1: 2}
    commands = door.done(1, 1, extent(1, 2), attempt=2)
    assert sends(commands, m.OUTCOME, 1) == [(m.OUTCOME, 1, READY, extent(1, 2), ())]
    assert runs(door) == {1: 2, 2: 1}


def test_what_was_freed_is_computed_again_too_and_each_task_once() -> None:
    """A diamond; all but the last value were freed, and that one is lost (Law 39)."""
    door = door_with()
    door.submit(1)
    door.submit(2, slots=(1,))
    door.submit(3, slots=(1,))
    door.submit(4, slots=(2, 3))
    door.drop(1, 2, 3)
    door.up(1)
    for task in (1, 2, 3, 4):
        door.done(1, task, extent(1, task))
    assert sorted(door.freed()) == [(1, 1), (1, 2), (1, 3)]
    lose(door, 4, 1, 4)
    for task in (1, 2, 3, 4):
        door.done(1, task, extent(1, 10 + task), attempt=2)
    assert runs(door) == {1: 2, 2: 2, 3: 2, 4: 2}
    assert door.machine.references.entries[4].value == extent(1, 14)
    door.drop(4)
    door.assert_empty()


def test_only_what_is_lost_runs_again() -> None:
    """`y = f(x)`, y lost, x still there (Laws 38 and 39)."""
    door = door_with()
    one_value(door)
    door.submit(2, slots=(1,))
    door.done(1, 2, extent(1, 2))
    lose(door, 2, 1, 2)
    assert runs(door) == {1: 1, 2: 2}


def test_a_task_that_finds_its_argument_gone_waits_for_it_and_is_not_charged() -> None:
    """`y = f(x)`; x is gone when the worker wants to read it (Law 39)."""
    door = door_with()
    one_value(door)
    door.submit(2, slots=(1,), max_retries=0)
    lost = ("s1", (1, 1))
    door.say(1, done(2, lost, 1, status=UNREAD))
    assert door.tasks_sent()[-1] == (1, 1, 2)
    door.done(1, 1, extent(1, 2), attempt=2)
    assert door.tasks_sent()[-1] == (1, 2, 2)
    commands = door.done(1, 2, b"y", attempt=2)
    assert outcomes_of(commands) == {2: (READY, b"y")}


def test_a_value_that_was_moved_meanwhile_is_not_lost() -> None:
    """The worker was sent the old place (Law 38)."""
    door = door_with()
    one_value(door)
    door.submit(2, slots=(1,))
    record = door.machine.references.extents[1, 1]
    door.machine.references.resident.pop((1, 1))
    door.machine.references.relocate(record, "/spill/file")
    door.say(1, done(2, ("s1", (1, 1)), 1, status=UNREAD))
    assert runs(door) == {1: 1, 2: 2}
    lose(door, 1, 1, 1)
    assert runs(door) == {1: 1, 2: 2}


def test_what_was_put_cannot_be_computed_again_and_says_so() -> None:
    """`x = put(v); y = f(x)`; x is gone (Laws 43 and 46)."""
    door = door_with()
    door.put(1, extent(0, 1))
    door.submit(2, slots=(1,))
    door.submit(3, slots=(2,))
    door.up(1)
    commands = door.say(1, done(2, ("s0", (0, 1)), 1, status=UNREAD))
    assert only(commands, CheckSegment) != []
    outcomes = outcomes_of(commands)
    assert set(outcomes) == {1, 2, 3}
    for status, failure in outcomes.values():
        assert status == FAILED and failure[0] == LOST and "put()" in failure[1]


def test_lost_arguments_of_a_task_fail_it() -> None:
    """They were given by value, and lie in shared memory (Law 46)."""
    door = door_with()
    door.submit(1, args=extent(0, 1))
    door.up(1)
    commands = door.say(1, done(1, ("s0", (0, 1)), 1, status=UNREAD))
    status, failure = outcomes_of(commands)[1]
    assert status == FAILED and failure[0] == LOST and "arguments" in failure[1]


def test_an_argument_that_nobody_keeps_fails_the_task_and_does_not_go_round() -> None:
    """A worker reports memory that the task does not take (Law 46)."""
    door = door_with()
    one_value(door)
    door.submit(2, slots=(1,))
    commands = door.say(1, done(2, ("s9", (9, 9)), 1, status=UNREAD))
    assert outcomes_of(commands)[2][0] == FAILED


@pytest.mark.parametrize(
    ("retries", "limit_bytes", "reason"),
    [(0, 1 << 20, "max_retries=0"), (3, 0, "lineage_bytes=0"), (3, 1, "lineage evicted")],
)
def test_what_may_not_run_again_says_why(retries: int, limit_bytes: int, reason: str) -> None:
    """A budget of nothing, no lineage, too little room for it (Laws 35 and 45)."""
    door = door_with(limit_bytes=limit_bytes)
    door.submit(1, max_retries=retries)
    door.up(1)
    door.done(1, 1, extent(1, 1))
    status, failure = outcomes_of(lose(door, 1, 1, 1))[1]
    assert status == FAILED and failure[0] == LOST and reason in failure[1]
    assert runs(door) == {1: 1}


def test_crashes_and_recomputations_share_one_budget() -> None:
    """Two retries: a crash, a loss, then another loss (Law 33)."""
    door = door_with(workers=2)
    door.submit(1, max_retries=2)
    door.up(1)
    door.end(1, running=1)
    door.up(2)
    door.done(2, 1, extent(2, 1), attempt=2)
    lose(door, 1, 2, 1)
    door.done(2, 1, extent(2, 2), attempt=3)
    status, failure = outcomes_of(lose(door, 1, 2, 2))[1]
    assert status == FAILED and "has run 3 times" in failure[1]
    assert runs(door) == {1: 3}


def test_a_recomputation_that_keeps_crashing_ends() -> None:
    """Law 46."""
    door = door_with()
    one_value(door)
    door.submit(2, slots=(1,))
    lose(door, 1, 1, 1)
    for worker in (1, 2, 3):
        door.up(worker)
        commands = door.end(worker, running=1)
    outcomes = outcomes_of(commands)
    assert outcomes[1][0] == FAILED and outcomes[1][1][0] == DIED
    assert outcomes[2] == outcomes[1]


def test_the_writer_hears_before_it_could_write_there_again() -> None:
    """It would put the next value into a segment that nobody can open."""
    door = door_with()
    one_value(door)
    commands = lose(door, 1, 1, 1)
    told = [c.message[0] for c in only(commands, Send) if c.message[0] in (m.CHECK, m.FREE)]
    assert told == [m.CHECK, m.FREE]


def test_all_that_had_these_bytes_have_lost_them() -> None:
    """`y = identity(x)`: one extent, two objects; each is made again when it is wanted."""
    door = door_with()
    one_value(door)
    door.submit(2, slots=(1,))
    door.done(1, 2, extent(1, 1))
    lose(door, 2, 1, 1)
    assert runs(door) == {1: 2, 2: 1}
    door.done(1, 1, extent(1, 2), attempt=2)
    door.done(1, 2, extent(1, 2), attempt=2)
    assert runs(door) == {1: 2, 2: 2}
    assert door.machine.references.entries[2].value == extent(1, 2)
    door.drop(1, 2)
    door.assert_empty()


def test_a_value_that_holds_a_future_for_its_own_bytes_is_lost_once() -> None:
    """A task puts x, and returns x's array and a future for x: one extent; y alone keeps x."""
    door = door_with()
    door.submit(1, max_retries=0)
    door.up(1)
    door.put(2, extent(0, 1))
    door.done(1, 1, extent(0, 1), nested=(2,))
    door.drop(2)
    door.feed(Mapped((0, 1)))
    lose(door, 1, 0, 1)
    door.feed(Unmapped([(0, 1)]))
    assert door.freed() == [(0, 1)]
    door.drop(1)
    door.assert_empty()


def test_waiting_tasks_wait_on_when_one_of_their_arguments_is_lost() -> None:
    """`f(x, z)`, z still to come, x lost by somebody else's reading."""
    door = door_with()
    one_value(door)
    door.submit(2)
    door.submit(3, slots=(1, 2))
    lose(door, 1, 1, 1)
    door.done(1, 2, b"z")
    assert runs(door) == {1: 2, 2: 1}
    door.done(1, 1, b"small this time", attempt=2)
    assert runs(door) == {1: 2, 2: 1, 3: 1}


def test_a_task_that_comes_back_to_a_lost_argument_waits_for_it() -> None:
    """It was sent ahead, x was lost meanwhile, and its worker died."""
    door = door_with(workers=2)
    one_value(door)
    door.submit(2, slots=(1,))
    lose(door, 1, 1, 1)
    door.end(1, running=2)
    door.up(2)
    assert door.tasks_sent()[-1] == (2, 1, 3)
    door.done(2, 1, extent(2, 1), attempt=3)
    assert door.tasks_sent()[-1] == (2, 2, 2)


def test_a_new_handle_to_a_lost_object_has_it_made_again() -> None:
    """The reference came back in a message."""
    from owndist.core.reports import HandleAdded

    door = door_with()
    one_value(door)
    door.submit(2, slots=(1,))
    door.done(1, 2, extent(1, 1))
    lose(door, 2, 1, 1)
    door.done(1, 1, extent(1, 3), attempt=2)
    door.done(1, 2, extent(1, 4), attempt=2)
    lose(door, 1, 1, 3)
    door.done(1, 1, extent(1, 5), attempt=3)
    door.feed(HandleAdded(1, None))
    assert door.machine.references.entries[1].status == READY
    door.drop(1, 1, 2)
    door.assert_empty()


def test_the_pool_that_is_broken_computes_nothing_again() -> None:
    """Law 46."""
    door = door_with()
    one_value(door)
    door.say(1, (m.INIT_FAILED, b"error"))
    outcomes = outcomes_of(lose(door, 1, 1, 1))
    assert outcomes[1][0] == FAILED
    assert all(e.status != PENDING for e in door.machine.references.entries.values())
