"""Which values are moved to disk when shared memory is nearly full, and which are not (Law 47)."""

from __future__ import annotations

from typing import Any

import pytest

from owndist.core import messages as m
from owndist.core.commands import Moved, Send, Spill, SweepDead, Unlink
from owndist.core.reports import Mapped, Spilled, Unmapped

from .door import MS, Door, extent, only, sends

# Each value has 64 bytes. From four fifths of 320 on, that is with the fifth, values are moved.
LIMIT = 320


def make_door(values: int, max_workers: int = 1) -> Door:
    """A door with a limit, one worker that is up, and so many values that it has returned."""
    door = Door(max_workers)
    door.machine.spilling.set_limit(LIMIT)
    for task in range(1, values + 1):
        door.submit(task)
        if task == 1:
            door.up(1)
        door.done(1, task, extent(1, task))
    return door


def asked(door: Door) -> list[int]:
    """The serials that worker 1 was asked to spill, in order."""
    return [message[1] for message in door.sent(m.SPILL, 1)]


def file_of(door: Door, object_id: int) -> Any:
    """Where the owner says that an object lies."""
    return door.machine.references.current(door.machine.references.entries[object_id].value)[0][2]


def test_nothing_moves_before_memory_is_nearly_full() -> None:
    """`kept = [submit(make_array) for _ in range(4)]` in a store with room for five."""
    assert asked(make_door(4)) == []


def test_the_longest_unused_value_moves_first() -> None:
    """Five arrays are kept; the first was used last (Law 47)."""
    door = make_door(4)
    door.submit(10, slots=(1,))
    door.done(1, 10)
    door.submit(5)
    door.done(1, 5, extent(1, 5))
    assert asked(door) == [2]
    commands = door.say(1, (m.SPILLED, 2, "/spill/x"))
    assert sends(commands, m.MOVED) == [(m.MOVED, 2, True)]
    assert file_of(door, 2) == "/spill/x"
    assert door.machine.spilling.figures() == {
        "store_bytes": 4 * 64,
        "store_values": 5,
        "spilled_bytes": 64,
        "spills": 1,
        "spill_reads": 1,  # by `file_of`
    }


def test_a_task_gets_the_place_where_its_argument_is_now() -> None:
    """`submit(total, array)` after the array was moved."""
    door = make_door(5)
    door.say(1, (m.SPILLED, 1, "/spill/x"))
    (message,) = sends(door.submit(6, slots=(1,)), m.TASK)
    assert message[6] == (((1, 1, "/spill/x", 0, 64), b"head", ((0, 64),)),)
    door.done(1, 6)
    door.drop(1)
    assert door.freed() == [(1, 1)]  # the file goes with the value


def test_what_a_worker_has_a_task_for_stays() -> None:
    """The argument of a task that runs is never moved."""
    door = make_door(4)
    door.submit(10, slots=(1,))  # it runs
    door.put(5, extent(0, 5))
    door.put(6, extent(0, 6))
    assert asked(door) == [2, 3]


def test_what_is_mapped_stays_until_it_is_unmapped() -> None:
    """`view = futures[0].result()` keeps the array where it is."""
    door = make_door(4)
    door.feed(Mapped((1, 1)))
    door.put(5, extent(0, 1))
    assert asked(door) == [2]
    door.say(1, (m.SPILLED, 2, None))  # the disk is full
    door.feed(Unmapped([(1, 1)]))
    assert asked(door) == [2]  # it is not asked again at once
    door.now += 2_000 * MS
    door.feed(Unmapped([]))
    assert asked(door) == [2, 3]


@pytest.mark.parametrize("wanted", ["sent", "mapped", "told"])
def test_a_value_that_is_wanted_while_it_is_copied_stays(wanted: str) -> None:
    """The writer copies; meanwhile a task takes the value, or somebody maps it, or is told."""
    door = make_door(5)
    assert asked(door) == [1]
    if wanted == "sent":
        door.submit(6, slots=(1,))
    elif wanted == "mapped":
        door.feed(Mapped((1, 1)))
    else:
        door.say(1, (m.BORROW, 1))
    commands = door.say(1, (m.SPILLED, 1, "/spill/x"))
    assert sends(commands, m.MOVED) == [(m.MOVED, 1, False)]
    assert file_of(door, 1) == "s1"
    assert 1 not in asked(door)[1:]


def test_a_value_that_is_freed_while_it_is_copied_is_freed_once() -> None:
    """`del futures[0]` at that moment: the writer gives both places up with the FREE."""
    door = make_door(5)
    door.drop(1)
    assert door.freed() == [(1, 1)]
    assert sends(door.say(1, (m.SPILLED, 1, "/spill/x")), m.MOVED) == []
    assert not door.machine.spilling.moving
    assert door.machine.spilling.spills == 0


def test_what_a_borrower_was_told_never_moves() -> None:
    """A task keeps `shared(future)`, and may ask for its value at any time."""
    door = make_door(4)
    door.say(1, (m.BORROW, 1))
    door.put(5, extent(0, 1))
    assert asked(door) == [2]


def test_a_writer_that_dies_while_it_copies_is_not_waited_for() -> None:
    """SIGKILL in the middle of a copy: its memory is looked after, its half file swept."""
    door = make_door(5)
    (sweep,) = only(door.end(1), SweepDead)
    assert sweep.keep == frozenset({"s1"})
    assert not door.machine.spilling.moving
    assert not door.machine.references.resident  # nobody can move those any more
    door.say(1, (m.SPILLED, 1, "/spill/x"))
    assert file_of(door, 1) == "s1"


def test_a_file_outlives_its_dead_writer_and_goes_with_its_value() -> None:
    """Law 32: what was moved is kept like a segment."""
    door = make_door(5)
    door.say(1, (m.SPILLED, 1, "/spill/x"))
    (sweep,) = only(door.end(1), SweepDead)
    assert sweep.keep == frozenset({"s1", "/spill/x"})
    assert only(door.drop(1), Unlink) == [Unlink("/spill/x")]


def test_the_owner_moves_its_own_values_too() -> None:
    """`kept = [put(array) for _ in range(5)]`."""
    door = Door()
    door.machine.spilling.set_limit(LIMIT)
    commands: list[Any] = []
    for number in range(1, 6):
        commands += door.put(number, extent(0, number))
    assert only(commands, Spill) == [Spill(0, 1)]
    assert only(door.feed(Spilled(0, 1, "/spill/x")), Moved) == [Moved(1, True)]
    assert file_of(door, 1) == "/spill/x"


def test_a_writer_answers_the_owner_who_asked() -> None:
    """In a worker: the values that it wrote belong to others."""
    door = Door()
    assert only(door.say(7, (m.SPILL, 3)), Spill) == [Spill(7, 3)]
    commands = door.feed(Spilled(7, 3, "/spill/x"))
    assert only(commands, Send) == [Send(7, (m.SPILLED, 3, "/spill/x"))]
    assert only(door.say(7, (m.MOVED, 3, True)), Moved) == [Moved(3, True)]


def test_a_search_in_vain_is_not_repeated_at_once() -> None:
    """Everything is mapped: looking for something to move costs next to nothing."""
    door = Door()
    for number in range(1, 7):
        door.put(number, extent(0, number))
        door.feed(Mapped((0, number)))
    door.machine.spilling.set_limit(LIMIT)
    door.feed(Unmapped([]))
    door.feed(Unmapped([(0, 1)]))
    assert not only(door.feed(Unmapped([])), Spill)
    door.now += 10 * MS
    assert only(door.feed(Unmapped([])), Spill) == [Spill(0, 1)]
