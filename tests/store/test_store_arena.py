"""The arithmetic of extents."""

from __future__ import annotations

import itertools
import random

import pytest

from owndist.store.arena import Arena

PAGE = 4096


def test_sizes_are_rounded_up_to_granules() -> None:
    arena = Arena(4 * PAGE)
    assert [arena.allocate(1), arena.allocate(PAGE), arena.allocate(PAGE + 1)] == [
        0,
        PAGE,
        2 * PAGE,
    ]
    assert arena.live_bytes == 4 * PAGE
    assert arena.allocate(1) is None


def test_the_tightest_free_run_is_taken_and_of_equals_the_first() -> None:
    arena = Arena(16 * PAGE)
    a, _, c, _, e, _ = (arena.allocate(n * PAGE) for n in (3, 1, 2, 1, 2, 1))
    for offset in (a, c, e):
        assert offset is not None
        arena.release(offset)
    # Free: 3 pages at 0, 2 at c, 2 at e, and the tail of 6.
    assert arena.allocate(2 * PAGE) == c
    assert arena.allocate(PAGE) == e
    assert arena.allocate(3 * PAGE) == a
    assert arena.allocate(4 * PAGE) == 10 * PAGE
    arena.check()


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (2, 1, 0), (1, 2, 0)])
def test_free_neighbours_become_one_run_in_any_order(order: tuple[int, ...]) -> None:
    arena = Arena(3 * PAGE)
    for _ in range(3):
        arena.allocate(PAGE)
    for index in order:
        arena.release(index * PAGE)
        arena.check()
    assert arena.allocate(3 * PAGE) == 0


def test_the_tail_is_what_lies_behind_the_last_extent() -> None:
    arena = Arena(4 * PAGE)
    assert arena.tail == 0
    arena.allocate(PAGE)
    arena.allocate(PAGE)
    arena.release(0)
    assert arena.tail == 2 * PAGE
    arena.release(PAGE)
    assert arena.tail == 0
    arena.allocate(4 * PAGE)
    assert arena.tail == 4 * PAGE


def test_an_offset_where_nothing_starts_is_refused() -> None:
    arena = Arena(4 * PAGE)
    arena.allocate(2 * PAGE)
    for offset in (PAGE, 2 * PAGE, 99):
        with pytest.raises(ValueError, match="no extent starts"):
            arena.release(offset)
    arena.release(0)
    with pytest.raises(ValueError, match="no extent starts"):
        arena.release(0)
    arena.check()


@pytest.mark.parametrize("capacity", [0, -PAGE, PAGE + 1])
def test_a_capacity_that_is_not_whole_granules_is_refused(capacity: int) -> None:
    with pytest.raises(ValueError, match="multiple"):
        Arena(capacity)


def test_an_empty_extent_is_refused() -> None:
    with pytest.raises(ValueError, match="0 bytes"):
        Arena(PAGE).allocate(0)


@pytest.mark.parametrize("granule", [PAGE, 4 * PAGE])
def test_random_use_never_overlaps_and_always_coalesces(seed: int, granule: int) -> None:
    rng = random.Random(seed)
    arena = Arena(256 * granule, granule)
    taken: dict[int, int] = {}  # {offset: bytes}, as the test sees it
    owner: list[int | None] = [None] * 256  # of each granule
    for _ in range(3000):
        if taken and rng.random() < 0.5:
            offset = rng.choice(list(taken))
            granules = -(-taken.pop(offset) // granule)
            assert arena.release(offset) == granules * granule
            first = offset // granule
            owner[first : first + granules] = [None] * granules
        else:
            size = rng.randint(1, rng.choice([2, 8, 64]) * granule)
            offset_or_none = arena.allocate(size)
            granules = -(-size // granule)
            if offset_or_none is None:
                runs = itertools.groupby(owner, key=lambda o: o is None)
                longest = max((len(list(run)) for free, run in runs if free), default=0)
                assert longest < granules, "there was a run long enough"
                continue
            first = offset_or_none // granule
            assert owner[first : first + granules] == [None] * granules, "overlap"
            owner[first : first + granules] = [offset_or_none] * granules
            taken[offset_or_none] = size
        arena.check()
        used = [index for index, o in enumerate(owner) if o is not None]
        assert arena.tail == (used[-1] + 1 if used else 0) * granule
        assert arena.live_bytes == len(used) * granule
    for offset in taken:
        arena.release(offset)
    arena.check()
    assert arena.allocate(256 * granule) == 0, "all free runs are one again"
