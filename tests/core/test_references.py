"""What keeps an object and its memory, and when they go."""

from __future__ import annotations

from typing import Any

import pytest

from owndist.core import messages as m
from owndist.core.commands import Abandon, Free, SweepDead, Unlink
from owndist.core.references import ReferenceTable
from owndist.core.reports import HandleAdded, Mapped, Unmapped
from owndist.core.values import FAILED, LOST, PENDING, READY

from .door import Door, done, extent, only, sends


def test_value_is_freed_once_when_its_last_handle_goes() -> None:
    """`x = put(array); y = x; del x; del y` (Laws 13, 14, 16)."""
    door = Door()
    door.put(1, extent(0, 1))
    door.feed(HandleAdded(1))
    door.drop(1)
    assert not door.freed()
    door.drop(1)
    assert door.freed() == [(0, 1)]
    door.drop(1)
    assert door.freed() == [(0, 1)]
    door.assert_empty()


def test_pending_argument_keeps_the_value() -> None:
    """`x = put(array); y = submit(f, x); del x` (Law 12)."""
    door = Door()
    door.put(1, extent(0, 1))
    door.submit(2, slots=(1,))
    door.drop(1)
    door.up(1)
    door.end(1, running=2)  # it may have to run again
    assert not door.freed()
    door.up(2)
    door.done(2, 2, attempt=2)
    assert door.freed() == [(0, 1)]


def test_result_that_nobody_wants_is_freed_when_it_comes() -> None:
    """`submit(make_array)`, and the future is dropped at once (Laws 13, 14)."""
    door = Door()
    door.submit(1)
    door.up(1)
    door.drop(1)
    door.done(1, 1, extent(1, 1))
    assert door.freed() == [(1, 1)]
    door.assert_empty()


def test_stored_arguments_are_held_until_the_outcome() -> None:
    """`submit(f, big_list)`: the arguments themselves lie in shared memory (Laws 12, 13)."""
    door = Door()
    door.submit(1, args=extent(0, 1))
    door.up(1)
    assert not door.freed()
    door.done(1, 1)
    assert door.freed() == [(0, 1)]


def test_view_keeps_its_bytes_after_every_handle() -> None:
    """`a = fut.result(); del fut`, in the driver (Law 15)."""
    door = Door()
    door.put(1, extent(0, 1))
    door.feed(Mapped((0, 1)))
    door.drop(1)
    assert not door.freed() and not door.machine.references.entries
    door.feed(Unmapped([(0, 1)]))
    door.feed(Unmapped([(0, 1)]))
    assert door.freed() == [(0, 1)]


def test_view_in_a_worker_keeps_its_bytes() -> None:
    """A task stores its argument's array in a global; the driver drops the future (Law 15)."""
    door = Door()
    door.put(1, extent(0, 1))
    door.submit(2, slots=(1,))
    door.drop(1)
    door.up(1)
    door.say(1, done(2, pinned=((0, 1),)))
    assert not door.freed()
    door.say(1, (m.UNMAPPED, ((0, 1),)))
    assert door.freed() == [(0, 1)]


def test_memory_is_not_used_again_if_a_dead_borrower_may_have_passed_it_on() -> None:
    """A task of worker 1 that gave a borrowed value to a task of its own, whose process keeps a
    view and has told worker 1 alone. Of a value that was not told nobody has one (Laws 15, 21)."""
    for writer in (0, 3):
        door = Door(max_workers=3)
        door.put(1, extent(writer, 1))
        door.put(2, extent(writer, 2))
        door.put(3)
        door.submit(4, nested=(1, 2))
        door.submit(5, nested=(3,))
        door.submit(6, nested=(3,))
        door.up(1, 2, 3)
        door.keeps(1, 1, token=1)
        door.keeps(1, 2, token=2)
        door.say(1, (m.BORROW, 1))
        door.done(1, 4)
        door.end(1)
        commands = door.drop(1, 2)
        if writer:
            assert sends(commands, m.FREE, 3) == [(m.FREE, (2,))]
            assert sends(commands, m.ABANDON, 3) == [(m.ABANDON, (1,))]
        else:
            assert only(commands, Free) == [Free(2)] and only(commands, Abandon) == [Abandon(1)]


def test_two_names_for_one_extent_free_it_once() -> None:
    """`y = submit(identity, x)`: the result is the argument's memory (Laws 13, 14)."""
    for order in ((1, 2), (2, 1)):
        door = Door()
        door.put(1, extent(0, 1))
        door.submit(2, slots=(1,))
        door.up(1)
        door.done(1, 2, extent(0, 1))
        door.drop(order[0])
        assert not door.freed()
        door.drop(order[1])
        assert door.freed() == [(0, 1)]
        door.assert_empty()


def test_second_name_that_comes_twice_frees_nothing_twice() -> None:
    """As before; the worker dies between sending its outbox and clearing it (Laws 1, 19)."""
    door = Door()
    door.submit(1)
    door.up(1)
    door.done(1, 1, extent(1, 1))
    door.end(1)
    door.submit(2, slots=(1,))
    door.up(2)
    door.drop(1, 2)
    door.done(2, 2, extent(1, 1))
    segments = [c.segment for _, cs in door.story for c in only(cs, Unlink)]
    assert segments == ["s1"]
    assert not door.done(2, 2, extent(1, 1))  # and not a KeyError either
    door.assert_empty()


def test_future_inside_a_value_keeps_its_object() -> None:
    """`outer = put([shared(x)]); del x` (Laws 12, 14)."""
    door = Door()
    door.put(1, extent(0, 1))
    door.put(2, nested=(1,))
    door.drop(1)
    assert not door.freed()
    door.drop(2)
    assert door.freed() == [(0, 1)]
    door.assert_empty()


def test_deep_nests_do_not_recurse() -> None:
    """A linked list of 5,000 futures is dropped at its head."""
    table = ReferenceTable()
    for k in range(1, 5001):
        entry = table.create(k)
        table.settle(entry, READY, b"", (k - 1,) if k > 1 else ())
    table.drop_handles(range(1, 5000))
    assert len(table.entries) == 5000
    table.drop_handles([5000])
    assert not table.entries


def test_borrower_keeps_the_object_until_it_releases() -> None:
    """A task stores `shared(x)` in a global of its worker (Laws 12, 17)."""
    door = Door()
    door.put(1, extent(0, 1))
    door.submit(2, nested=(1,))
    door.drop(1)
    door.up(1)
    door.keeps(1, 1, 1)
    door.say(1, done(2))
    assert not door.freed()
    door.say(1, (m.RELEASE, ((1, 1),)))
    door.say(1, (m.RELEASE, ((1, 1),)))
    assert door.freed() == [(0, 1)]


def test_two_borrowers_with_the_same_token_are_two() -> None:
    """Every worker counts its tokens from 1; both keep `shared(x)` (Laws 12, 17, 19)."""
    door = Door(max_workers=2)
    door.put(1, extent(0, 1))
    door.submit(2, nested=(1,))
    door.submit(3, nested=(1,))
    door.drop(1)
    door.up(1, 2)
    door.keeps(1, 1, 1)
    door.say(1, done(2))
    door.keeps(2, 1, 1)
    door.say(2, done(3))
    door.say(2, (m.RELEASE, ((1, 1),)))
    assert not door.freed()
    door.say(1, (m.RELEASE, ((1, 1),)))
    assert door.freed() == [(0, 1)]


def test_late_release_does_not_undo_a_newer_registration() -> None:
    """The worker dropped its handle and got another one, by two tasks (Law 19)."""
    door = Door()
    door.put(1, extent(0, 1))
    door.submit(2, nested=(1,))
    door.submit(3, nested=(1,))
    door.drop(1)
    door.up(1)
    door.keeps(1, 1, 1)
    door.say(1, done(2))
    door.keeps(1, 1, 2)
    door.say(1, done(3))
    door.say(1, (m.RELEASE, ((1, 1),)))
    assert not door.freed()
    door.say(1, (m.RELEASE, ((1, 2),)))
    assert door.freed() == [(0, 1)]


def test_dead_borrower_and_mapper_lets_go() -> None:
    """SIGKILL of a worker with a future and a view in its globals (Laws 19, 21)."""
    door = Door()
    door.put(1, extent(0, 1))
    door.submit(2, nested=(1,))
    door.drop(1)
    door.up(1)
    door.keeps(1, 1, 1)
    door.say(1, done(2, pinned=((0, 1),)))
    door.say(1, (m.RELEASE, ((1, 1),)))
    assert not door.freed()
    door.end(1)
    assert door.freed() == [(0, 1)]


def test_borrower_hears_an_outcome_that_is_there_or_comes_or_is_lost() -> None:
    """`shared(f).result()` inside a task."""
    door = Door()
    door.put(1, b"one")
    door.machine.references.entries[1].entries = (5,)  # what whoever loads it needs
    assert sends(door.say(1, (m.BORROW, 1)), m.OUTCOME) == [(m.OUTCOME, 1, READY, b"one", (5,))]
    door.submit(2)
    assert not sends(door.say(1, (m.BORROW, 2)), m.OUTCOME)
    door.cancel(2)
    assert [o[1] for o in door.sent(m.OUTCOME)] == [1, 2]
    [lost] = sends(door.say(1, (m.BORROW, 99)), m.OUTCOME)
    assert lost[2] == FAILED and lost[3][0] == "lost"


def test_values_of_a_dead_worker_stay_until_their_last_holder_goes() -> None:
    """Results of a killed worker: two in one segment, one in another (Law 32)."""
    door = Door()
    values: list[Any] = [extent(1, 1, "s-a"), extent(1, 2, "s-a"), extent(1, 3, "s-b")]
    for task in (1, 2, 3):
        door.submit(task)
    door.up(1)
    for task in (1, 2, 3):
        door.done(1, task, values[task - 1])
    [sweep] = only(door.end(1), SweepDead)
    assert sweep.keep == {"s-a", "s-b"}
    assert not only(door.drop(1), Unlink)
    assert [c.segment for c in only(door.drop(2), Unlink)] == ["s-a"]
    assert [c.segment for c in only(door.drop(3), Unlink)] == ["s-b"]
    assert not door.machine.inheritance.dead, "a dead worker is remembered for ever"


def test_dead_worker_without_live_values_is_swept_whole() -> None:
    """What it wrote and never reported goes (Law 29)."""
    door = Door()
    door.submit(1)
    door.up(1)
    door.done(1, 1, extent(1, 1))
    door.drop(1)
    [sweep] = only(door.end(1), SweepDead)
    assert sweep.keep == frozenset()
    assert not door.machine.inheritance.dead


def test_a_value_that_nobody_keeps_is_lost_and_not_made_anew() -> None:
    """A worker passes on what it has already said that it maps no more (Law 46)."""
    door = Door(max_workers=2)
    door.put(1, extent(0, 1))
    door.submit(2, slots=(1,))
    door.up(1)
    door.done(1, 2, b"kept in a global", pinned=((0, 1),))
    door.drop(1)
    door.submit(3)
    door.say(1, (m.UNMAPPED, ((0, 1),)))
    assert door.freed() == [(0, 1)]
    door.done(1, 3, extent(0, 1))
    status, failure = door.outcomes()[3]
    assert (status, failure[0]) == (FAILED, LOST)
    assert not door.machine.references.extents
    # What it has written itself is new.
    door.submit(4)
    door.done(1, 4, extent(1, 1))
    assert door.outcomes()[4][0] == READY
    door.drop(2, 3, 4)
    door.assert_empty()


def test_check_notices_what_is_kept_by_nothing() -> None:
    """The invariants are not empty words."""
    table = ReferenceTable()
    entry = table.create(1)
    assert entry.status == PENDING
    table.settle(entry, READY, extent(0, 1))
    table.check()
    entry.handles = 0
    with pytest.raises(AssertionError, match="kept by nothing"):
        table.check()
