"""Tasks with several values, of which some are lost: one execution for all that are gone."""

from __future__ import annotations

from typing import Any

from owndist.core import messages as m
from owndist.core.commands import LookFor
from owndist.core.values import CANCELLED, FAILED, GONE, LOST, READY, UNREAD

from .door import Door, done, extent, only, yielded
from .losses import door_with, last_outcomes, lose, outcomes_of, runs


def three_values(door: Door, **fields: Any) -> None:
    """`a, b, c = options(num_returns=3).submit(f)`: worker 1 wrote extents 1 to 3 for 1 to 3."""
    door.submit(1, returns=3, **fields)
    door.up(1)
    give(door, (1, 2, 3), 1)


def give(door: Door, serials: tuple[int, int, int], attempt: int) -> list[Any]:
    """Worker 1 has run it. Returns what follows from the DONE, which brings the first value."""
    for index in (1, 2):
        door.say(1, yielded(1, index, extent(1, serials[index]), attempt))
    return door.done(1, 1, extent(1, serials[0]), attempt)


def values_of(door: Door) -> dict[object, Any]:
    entries = door.machine.references.entries
    return {ref: entry.value[0][1] for ref, entry in entries.items() if entry.status == READY}


def test_one_of_several_values_is_made_again_and_the_others_stay() -> None:
    """c is lost; the new a and b are freed as they come (Laws 37, 38 and 39)."""
    door = door_with()
    three_values(door)
    lose(door, 3, 1, 3)
    before = len(door.freed())
    commands = give(door, (11, 12, 13), 2)
    assert values_of(door) == {1: 1, 2: 2, 3: 13}
    assert door.freed()[before:] == [(1, 12), (1, 11)] and not outcomes_of(commands)
    assert door.machine.recovery.recomputed == 1 and door.machine.submission.finished == 1
    door.drop(1, 2, 3)
    assert sorted(door.freed()) == [(1, 1), (1, 2), (1, 3), (1, 11), (1, 12), (1, 13)]
    door.assert_empty()


def test_several_lost_values_are_one_execution() -> None:
    """b is found lost, and while it is made again c is, too (Law 40)."""
    door = door_with(workers=2)
    three_values(door)
    lose(door, 2, 1, 2)
    door.submit(4, slots=(2, 3))
    lose(door, 3, 1, 3)
    give(door, (11, 12, 13), 2)
    assert runs(door) == {1: 2, 4: 1}
    assert values_of(door) == {1: 1, 2: 12, 3: 13}


def test_when_one_is_lost_it_is_looked_for_the_others() -> None:
    """Somebody has removed all three, and reads c; one execution is for all (Law 40)."""
    door = door_with()
    three_values(door, max_retries=1)
    looked = [(c.object, c.extent) for c in only(lose(door, 3, 1, 3), LookFor)]
    assert looked == [(1, (1, 1)), (2, (1, 2))]
    for object_id, key in looked:
        lose(door, object_id, *key)
    give(door, (11, 12, 13), 2)
    assert values_of(door) == {1: 11, 2: 12, 3: 13} and runs(door) == {1: 2}
    door.drop(1, 2, 3)
    door.assert_empty()


def test_one_execution_makes_all_values_that_are_gone_by_then() -> None:
    """b and c had the same bytes; somebody waits for b (Law 40)."""
    door = door_with()
    door.submit(1, returns=3)
    door.up(1)
    give(door, (1, 2, 2), 1)
    lose(door, 2, 1, 2)
    assert outcomes_of(give(door, (11, 12, 12), 2)) == {}
    assert values_of(door) == {1: 1, 2: 12, 3: 12} and runs(door) == {1: 2}
    door.drop(1, 2, 3)
    door.assert_empty()


def test_the_first_of_several_values_is_made_again() -> None:
    """It comes with the DONE (Law 39)."""
    door = door_with()
    three_values(door)
    lose(door, 1, 1, 1)
    commands = give(door, (11, 12, 13), 2)
    assert outcomes_of(commands) == {1: (READY, extent(1, 11))}
    assert values_of(door) == {1: 11, 2: 2, 3: 3}
    door.drop(1, 2, 3)
    door.assert_empty()


def test_what_is_left_of_several_values_is_made_again() -> None:
    """a and c were dropped; the task is kept for b, with its inputs, and not longer (Law 42)."""
    door = door_with()
    door.put(4, extent(0, 1))
    three_values(door, slots=(4,))
    door.drop(1, 3, 4)
    assert (0, 1) not in door.freed()
    lose(door, 2, 1, 2)
    give(door, (11, 12, 13), 2)
    assert values_of(door)[2] == 12
    door.drop(2)
    assert sorted(door.freed()) == [(0, 1), (1, 1), (1, 2), (1, 3), (1, 11), (1, 12), (1, 13)]
    door.assert_empty()


def test_a_value_that_is_lost_while_its_task_still_runs_is_made_again() -> None:
    """b has come and is lost before a has come: one execution more, which begins with it."""
    door = door_with(workers=2)
    door.submit(1, returns=3)
    door.submit(4, slots=(2,))
    door.up(1)
    door.say(1, yielded(1, 1, extent(1, 2)))
    door.up(2)
    door.say(2, done(4, ("s1", (1, 2)), status=UNREAD))
    door.say(1, yielded(1, 2, extent(1, 3)))
    door.done(1, 1, extent(1, 1))
    assert runs(door) == {1: 2, 4: 1}
    assert door.sent(m.TASK)[-1][8][:2] == (3, 1)
    worker = door.tasks_sent()[-1][0]
    door.say(worker, yielded(1, 1, extent(worker, 12), 2), yielded(1, 2, extent(worker, 13), 2))
    door.done(worker, 1, extent(worker, 11), 2)
    assert runs(door) == {1: 2, 4: 2}
    assert values_of(door) == {1: 1, 2: 12, 3: 3}


def test_a_retry_brings_what_was_lost_of_the_first_attempt() -> None:
    """b is lost, and then the worker dies: the retry is all that it takes."""
    door = door_with()
    door.submit(1, returns=3)
    door.up(1)
    door.say(1, yielded(1, 1, extent(1, 2)), yielded(1, 2, extent(1, 3)))
    lose(door, 2, 1, 2)
    door.end(1, running=1)
    door.up(2)
    assert door.sent(m.TASK)[-1][8][:2] == (3, 1)
    door.say(2, yielded(1, 1, extent(2, 2), 2), yielded(1, 2, extent(2, 3), 2))
    door.done(2, 1, extent(2, 1), 2)
    assert runs(door) == {1: 2}
    assert {ref: value[0] for ref, (_, value) in last_outcomes(door).items()} == {
        1: extent(2, 1)[0],
        2: extent(2, 2)[0],
        3: extent(1, 3)[0],
    }


def test_an_error_the_second_time_fails_only_what_was_lost() -> None:
    """a is lost and the task raises; b is lost after that, and says why it stays so (Law 46)."""
    door = door_with()
    three_values(door)
    lose(door, 1, 1, 1)
    assert set(outcomes_of(door.raised(1, 1, attempt=2))) == {1}
    assert values_of(door) == {2: 2, 3: 3}
    status, failure = outcomes_of(lose(door, 2, 1, 2))[2]
    assert status == FAILED and failure[0] == LOST and "failed since" in failure[1]
    door.drop(1, 2, 3)
    door.assert_empty()


def test_several_values_share_one_budget_of_retries() -> None:
    """Each is lost in turn, and it may run three times (Law 33)."""
    door = door_with()
    three_values(door, max_retries=2)
    lose(door, 1, 1, 1)
    door.done(1, 1, extent(1, 11), attempt=2)
    lose(door, 3, 1, 3)
    give(door, (21, 22, 23), 3)
    status, failure = outcomes_of(lose(door, 2, 1, 2))[2]
    assert status == FAILED and "has run 3 times" in failure[1]
    assert runs(door) == {1: 3}
    door.drop(1, 2, 3)
    door.assert_empty()


def test_stopping_what_is_made_again_leaves_the_values_that_are_there() -> None:
    """`executor.submit(f, b).cancel(running=True)` reaches b's task through a lost b (Law 65)."""
    door = door_with()
    three_values(door)
    lose(door, 2, 1, 2)
    door.stop(2)
    lose(door, 3, 1, 3)
    outcomes = last_outcomes(door)
    assert outcomes[2] == (CANCELLED, None)
    assert outcomes[3][0] == FAILED and "cancelled" in outcomes[3][1][1]
    door.say(1, yielded(1, 1, extent(1, 12), 2), yielded(1, 2, extent(1, 13), 2))
    door.done(1, 1, extent(1, 11), attempt=2)
    assert values_of(door) == {1: 1} and runs(door) == {1: 2}
    door.drop(1, 2, 3)
    door.assert_empty()


def test_lineage_lets_go_of_all_values_of_a_task_at_once() -> None:
    """There is no room; each says so (Laws 30 and 45)."""
    door = door_with(limit_bytes=1)
    three_values(door)
    for object_id in (1, 2, 3):
        _, failure = outcomes_of(lose(door, object_id, 1, object_id))[object_id]
        assert "lineage evicted" in failure[1]
    door.drop(1, 2, 3)
    door.assert_empty()


def test_of_several_values_only_stored_ones_are_kept_for_recomputation() -> None:
    """a and b are small (Law 44); when c is dropped nothing is kept."""
    door = door_with()
    door.submit(1, returns=3)
    door.up(1)
    door.say(1, yielded(1, 1), yielded(1, 2, extent(1, 3)))
    door.done(1, 1)
    assert list(door.machine.references.lineage.tasks) == [3]
    door.drop(3)
    assert not door.machine.references.lineage.tasks
    door.drop(1, 2)
    door.assert_empty()


def test_values_that_only_lineage_needs_are_freed_and_made_again() -> None:
    """`y = g(b)`; a, b and c are dropped, y is lost: f runs once, g once (Law 39)."""
    door = door_with()
    door.submit(1, returns=3)
    door.submit(4, slots=(2, 3))
    door.drop(1, 2, 3)
    door.up(1)
    give(door, (1, 2, 3), 1)
    door.done(1, 4, extent(1, 4))
    assert sorted(door.freed()) == [(1, 1), (1, 2), (1, 3)]
    assert {e.status for e in door.machine.references.entries.values()} == {GONE, READY}
    lose(door, 4, 1, 4)
    give(door, (11, 12, 13), 2)
    door.done(1, 4, extent(1, 14), attempt=2)
    assert runs(door) == {1: 2, 4: 2}
    door.drop(4)
    door.assert_empty()
