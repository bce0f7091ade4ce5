"""What is kept so that values can be computed again, and when it goes (Laws 30, 42, 44, 45)."""

from __future__ import annotations

from owndist.core.values import GONE

from .door import Door, extent


def lineage_door(limit_bytes: int = 1 << 20) -> Door:
    """A machine that retains tasks."""
    door = Door()
    door.machine.references.lineage.limit_bytes = limit_bytes
    return door


def test_inline_values_keep_no_lineage() -> None:
    """`y = submit(f, x)`, both small (Law 44)."""
    door = lineage_door()
    door.submit(1)
    door.submit(2, slots=(1,))
    door.up(1)
    door.done(1, 1)
    door.drop(1)
    door.done(1, 2)
    assert list(door.machine.references.entries) == [2]
    assert not door.machine.references.lineage.tasks


def test_value_is_freed_before_the_entry_that_a_later_value_may_need() -> None:
    """`x = submit(make); y = submit(f, x); del x; ...; del y`."""
    door = lineage_door()
    door.submit(1)
    door.submit(2, slots=(1,))
    door.drop(1)
    door.up(1)
    door.done(1, 1, extent(1, 1))
    door.done(1, 2, extent(1, 2))
    assert door.freed() == [(1, 1)]
    assert door.machine.references.entries[1].status == GONE
    door.drop(2)
    assert door.freed() == [(1, 1), (1, 2)]
    door.assert_empty()


def test_what_was_put_stays_while_a_value_made_from_it_may_be_lost() -> None:
    """`x = put(v); y = submit(f, x); del x; ...; del y` (Law 42)."""
    door = lineage_door()
    door.put(1, extent(0, 1))
    door.submit(2, slots=(1,))
    door.drop(1)
    door.up(1)
    door.done(1, 2, extent(1, 1))
    assert not door.freed()
    door.drop(2)
    assert sorted(door.freed()) == [(0, 1), (1, 1)]
    door.assert_empty()


def test_stored_arguments_stay_as_long_as_their_task() -> None:
    """`y = submit(f, big_array)`, and `y` is large (Law 42)."""
    door = lineage_door()
    door.submit(1, args=extent(0, 1))
    door.up(1)
    door.done(1, 1, extent(1, 1))
    assert not door.freed()
    door.drop(1)
    assert sorted(door.freed()) == [(0, 1), (1, 1)]
    door.assert_empty()


def test_a_task_that_may_not_run_again_keeps_nothing() -> None:
    """`options(max_retries=0)` (Law 35)."""
    door = lineage_door()
    door.put(1, extent(0, 1))
    door.submit(2, slots=(1,), max_retries=0)
    door.drop(1)
    door.up(1)
    door.done(1, 2, extent(1, 1))
    assert door.freed() == [(0, 1)]


def test_the_oldest_go_when_there_is_no_room() -> None:
    """A chain of large values (Laws 30 and 45)."""
    door = lineage_door(10_000)
    references = door.machine.references
    door.submit(1)
    door.up(1)
    door.done(1, 1, extent(1, 1))
    for task in range(2, 100):
        door.submit(task, slots=(task - 1,))
        door.drop(task - 1)
        door.done(1, task, extent(1, task))
        assert references.lineage.used_bytes <= 10_000
    assert len(references.entries) < 12
    door.drop(99)
    door.assert_empty()
