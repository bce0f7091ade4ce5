"""Writing, freeing and keeping memory."""

from __future__ import annotations

import mmap
import os
import pickle
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from owndist.store import allocator
from owndist.store.local import ALIGNMENT, INLINE_HEAD_BYTES, Store
from owndist.store.segments import GRANULE, Segment, unlink_segment, unlink_segments
from tests.store.pickled import SHM, get, put, run_python, segments

MakeStore = Callable[..., Store]
needs_dev_shm = pytest.mark.skipif(not SHM.is_dir(), reason="shared memory cannot be listed here")

LARGE = allocator.ARENA_START_BYTES  # gets a segment of its own in a new store


def held(session: str) -> int:
    """Bytes of memory behind a session's segments, as the system counts them."""
    return sum((SHM / name).stat().st_blocks * 512 for name in segments(session))


def filled(size: int, value: int = 1) -> np.ndarray[Any, Any]:
    return np.full(size, value, dtype=np.uint8)


# --- shape ----------------------------------------------------------------------------------------


def test_importing_the_store_loads_nothing_dear() -> None:
    """Workers start with this; numpy comes only where a value needs it."""
    output = run_python(
        """
from __future__ import annotations
import sys, os, mmap, struct, weakref, threading, errno, logging, itertools
import owndist  # has a budget of its own
before = set(sys.modules)
import owndist.store.local
new = {name for name in set(sys.modules) - before if not name.startswith("owndist")}
print(sorted(new - {"_posixshmem"}))
"""
    )
    assert output == "[]"


@pytest.mark.parametrize("size", [100 << 10, 1 << 20, 3 << 20, 20 << 20])
def test_a_value_comes_back_as_it_was(store: Store, size: int) -> None:
    array = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    for _ in range(3):  # into new memory, then into recycled
        stored = put(store, {"array": array, "text": "x"})
        value = get(store, stored)
        assert value["text"] == "x"
        assert np.array_equal(value["array"], array)
        del value
        store.free(stored[0][1])


def test_what_is_returned_is_plain_and_small(store: Store) -> None:
    stored = put(store, filled(1 << 20))
    extent, head, spans = stored
    number, serial, segment, offset, size = extent
    assert (number, serial, offset, size) == (1, 0, 0, 1 << 20)
    assert segment == f"od-{store.session}-1-0"
    assert type(extent) is tuple and type(head) is bytes and spans == ((0, 1 << 20),)
    assert len(pickle.dumps(stored, 5)) < 400


def test_a_long_stream_lies_in_shared_memory_and_a_short_one_does_not(store: Store) -> None:
    for length, inline in [(INLINE_HEAD_BYTES, True), (INLINE_HEAD_BYTES + 1, False)]:
        stream = os.urandom(length)
        stored = store.write(stream, [b"abc"])
        assert stored[1] == (stream if inline else (0, length))
        _, head, buffers = store.read(stored)
        assert bytes(head) == stream
        assert bytes(buffers[0]) == b"abc"


def test_buffers_are_aligned_and_large_ones_start_a_page(store: Store) -> None:
    sizes = [1, 63, 64, 65, 0, 5000, 64 << 10, 1, 100 << 10, 0]
    data = [os.urandom(size) for size in sizes]
    stored = store.write(bytes(20_000), data)
    extent, _, spans = stored
    assert [length for _, length in spans] == sizes
    assert all(offset % ALIGNMENT == 0 for offset, _ in spans)
    assert all(offset % GRANULE == 0 for offset, length in spans if length >= 64 << 10)
    assert extent[3] % GRANULE == extent[4] % GRANULE == 0
    assert all(0 <= offset <= offset + length <= extent[4] for offset, length in spans)
    _, _, buffers = store.read(stored)
    assert [bytes(buffer) for buffer in buffers] == data


@pytest.mark.parametrize("buffers", [[], [b""], [b"", b""], [b"", b"x", b""]])
def test_empty_buffers_are_values_too(store: Store, buffers: list[bytes]) -> None:
    stored = store.write(b"head", buffers)
    _, head, views = store.read(stored)
    assert head == b"head"
    assert [bytes(view) for view in views] == buffers
    assert stored[0][4] == GRANULE


@pytest.mark.parametrize(
    "value",
    [
        np.zeros((0, 5)),
        np.arange(600_000.0).reshape(1000, 600),
        np.asfortranarray(np.arange(600_000.0).reshape(1000, 600)),
        np.arange(600_000.0)[::3],  # not contiguous: numpy copies it into the stream
        [np.arange(9), np.zeros(0), np.full(200_000, 7, np.int8), "x"],
    ],
    ids=["empty", "rows", "columns", "strided", "list"],
)
def test_any_shape_of_value_comes_back(store: Store, value: Any) -> None:
    assert repr(get(store, put(store, value))) == repr(pickle.loads(pickle.dumps(value, 5)))


def test_any_kind_of_buffer_is_written_as_its_bytes(store: Store) -> None:
    numbers = np.arange(24, dtype=np.int32).reshape(4, 6)
    columns = np.asfortranarray(numbers)
    read_only = numbers.copy()
    read_only.setflags(write=False)
    buffers = [
        b"bytes",
        bytearray(b"array"),
        memoryview(b"view")[1:3],
        memoryview(numbers),
        pickle.PickleBuffer(columns),
        pickle.PickleBuffer(read_only),
    ]
    expected = [b"bytes", b"array", b"ie", *[numbers.tobytes()], columns.tobytes("F")]
    stored = store.write(bytearray(b"head"), buffers)
    _, head, views = store.read(stored)
    assert head == b"head"
    assert [bytes(view) for view in views] == [*expected, read_only.tobytes()]


def test_repr_tells_the_state(make_store: MakeStore) -> None:
    store = make_store()
    put(store, filled(1 << 20))
    assert repr(store) == (f"<Store {store.session}-1: 1 values of 1048576 bytes, 0 bytes kept>")
    store.close()
    assert repr(store).startswith(f"<Store {store.session}-1 closed: 0 values of 0 bytes")


@pytest.mark.parametrize("session", ["", "a-b", "a/b", "a" * 30])
def test_a_session_that_would_make_bad_names_is_refused(session: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="session"):
        Store(session, 1, str(tmp_path), cache_limit_bytes=0)


# --- memory: taken, kept, given back --------------------------------------------------------------


def test_a_freed_value_s_memory_holds_the_next_one(store: Store) -> None:
    for size in (200 << 10, 1 << 20, LARGE):
        first = put(store, filled(size))
        store.free(first[0][1])
        second = put(store, filled(size))
        assert second[0][2:] == first[0][2:], "the same segment, offset and size"
        assert second[0][1] != first[0][1], "but another serial"


def test_small_values_share_a_segment_and_large_ones_do_not(store: Store) -> None:
    small = [put(store, filled(300 << 10))[0] for _ in range(10)]
    large = [put(store, filled(3 << 20))[0] for _ in range(3)]
    assert len({extent[2] for extent in small}) == 1
    assert len({extent[2] for extent in large}) == 3
    assert all(extent[3] == 0 for extent in large)


def test_arenas_grow_with_need(store: Store) -> None:
    extents = [put(store, filled(1 << 20))[0] for _ in range(30)]
    sizes = [(SHM / name).stat().st_size for name in sorted({extent[2] for extent in extents})]
    start = allocator.ARENA_START_BYTES
    assert sizes == [start, 2 * start, 4 * start]
    # The last arena is mostly empty, and takes no memory where it is.
    assert held(store.session) == 30 << 20


@needs_dev_shm
def test_freed_bytes_are_gone_from_the_store_at_once(make_store: MakeStore) -> None:
    """Law 13: what is released is seen to be."""
    store = make_store(cache_limit_bytes=0)
    stored = [put(store, filled(size)) for size in (100 << 10, 1 << 20, LARGE)]
    total = (100 << 10) + (1 << 20) + LARGE
    assert (store.live_bytes, store.live_values) == (total, 3)
    assert held(store.session) >= total
    for extent, _, _ in stored:
        store.free(extent[1])
    assert (store.live_bytes, store.live_values, store.cached_bytes) == (0, 0, 0)
    assert held(store.session) == 0


def test_freeing_twice_or_what_is_not_known_does_nothing(store: Store) -> None:
    """Law 19: a message delivered twice changes nothing."""
    first = put(store, filled(1 << 20))
    store.free(first[0][1])
    second = put(store, filled(1 << 20))
    store.free(first[0][1])
    store.free(12345)
    assert store.live_values == 1
    third = put(store, filled(1 << 20, 3))
    assert np.array_equal(get(store, second), filled(1 << 20))
    assert np.array_equal(get(store, third), filled(1 << 20, 3))


@needs_dev_shm
def test_no_more_than_the_limit_is_kept_and_the_oldest_goes_first(make_store: MakeStore) -> None:
    store = make_store(cache_limit_bytes=2 * LARGE)
    extents = [put(store, filled(LARGE))[0] for _ in range(4)]
    names = [extent[2] for extent in extents]
    for extent in extents:
        store.free(extent[1])
    assert store.cached_bytes == 2 * LARGE
    assert segments(store.session) == sorted(names[2:])
    # One that is larger than the limit does not drive out the others.
    huge = put(store, filled(2 * LARGE + GRANULE))
    store.free(huge[0][1])
    assert segments(store.session) == sorted(names[2:])


def test_a_kept_segment_is_used_for_a_value_of_about_its_size_only(store: Store) -> None:
    sizes = [8 << 20, 12 << 20, 16 << 20]
    extents = {size: put(store, filled(size))[0] for size in sizes}
    for extent in extents.values():
        store.free(extent[1])
    assert put(store, filled(11 << 20))[0][2] == extents[12 << 20][2], "best fit"
    assert put(store, filled(12 << 20))[0][2] == extents[16 << 20][2], "25 % waste is allowed"
    kept = put(store, filled(5 << 20))[0]
    assert kept[2] not in {extent[2] for extent in extents.values()}, "38 % is too much"


@needs_dev_shm
def test_trim_gives_back_what_was_kept(store: Store) -> None:
    extents = [put(store, filled(size))[0] for size in (1 << 20, 1 << 20, LARGE, 2 * LARGE)]
    for extent in extents[1:]:
        store.free(extent[1])
    kept = (1 << 20) + 3 * LARGE
    assert store.cached_bytes == kept
    assert store.trim(keep_bytes=kept) == 0
    assert store.trim(keep_bytes=kept - 1) == LARGE, "the oldest"
    assert store.trim(keep_bytes=100 << 10) == 2 * LARGE + (1 << 20) - (100 << 10), "as needed"
    assert held(store.session) == (1 << 20) + (100 << 10)
    assert store.trim() == 100 << 10
    assert store.trim() == 0
    assert held(store.session) == store.live_bytes == 1 << 20
    # What was given back can be had again.
    again = [put(store, filled(size, 9)) for size in (2 << 20, LARGE)]
    assert np.array_equal(get(store, again[0]), filled(2 << 20, 9))
    assert np.array_equal(get(store, again[1]), filled(LARGE, 9))


def test_random_use_keeps_every_live_value_intact(make_store: MakeStore, seed: int) -> None:
    """Two stores that read each other, under all sizes, with little memory kept."""
    rng = random.Random(seed)
    stores = [make_store(number, cache_limit_bytes=6 << 20) for number in (1, 2)]
    live: list[tuple[int, Any, bytes]] = []
    for step in range(400):
        if live and rng.random() < 0.48:
            which, stored, content = live.pop(rng.randrange(len(live)))
            _, head, buffers = rng.choice(stores).read(stored)
            assert bytes(head) + b"".join(buffers) == content, step
            del head, buffers
            stores[which].free(stored[0][1])
        else:
            which = rng.randrange(2)
            head = rng.randbytes(rng.choice([10, 100, 30_000]))
            sizes = [rng.choice([0, 7, 70_000, 300_000, 2 << 20, 3 << 20]) for _ in range(2)]
            buffers = [rng.randbytes(1 << 10) * (size >> 10) + bytes(size & 1023) for size in sizes]
            live.append((which, stores[which].write(head, buffers), head + b"".join(buffers)))
        if rng.random() < 0.02:
            rng.choice(stores).trim(rng.randrange(4 << 20))
    for which, stored, content in live:
        _, head, buffers = stores[1 - which].read(stored)
        assert bytes(head) + b"".join(buffers) == content
        stores[which].free(stored[0][1])
    del head, buffers
    assert [store.live_bytes for store in stores] == [0, 0]
    assert all(store.cached_bytes <= 6 << 20 for store in stores)


def test_threads_may_write_read_and_free_at_once(store: Store, seed: int) -> None:
    """As a worker's reader thread, which frees, and its main thread, which writes."""
    errors: list[BaseException] = []
    handed_over: list[Any] = []  # written by one thread, freed by another
    start = threading.Barrier(4)

    def work(number: int) -> None:
        rng = random.Random(seed + number)
        try:
            start.wait()
            for step in range(60):
                size = rng.choice([100_000, 1 << 20, 3 << 20])
                stored = store.write(b"h", [bytes([number]) * size])
                _, _, (view,) = store.read(stored)
                assert view[0] == view[-1] == number and bytes(view).count(number) == size
                del view
                handed_over.append(stored)
                if step % 2:
                    store.free(handed_over.pop()[0][1])
                if step % 20 == 0:
                    store.trim(1 << 20)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert store.live_values == len(handed_over)
    for stored in handed_over:
        store.free(stored[0][1])
    assert store.live_bytes == 0
    assert len(store.take_unmapped()) == 240


# --- segments: counted, named, unlinked once ------------------------------------------------------


@needs_dev_shm
def test_a_segment_is_counted_before_it_can_be_seen(make_store: MakeStore) -> None:
    """Law 29: a process killed at any instant has no segment that its count does not cover."""
    seen: list[tuple[int, list[str]]] = []

    def on_segment(count: int) -> None:
        seen.append((count, segments(store.session)))

    store = make_store(on_segment=on_segment)
    for size in (1 << 20, LARGE, LARGE):
        put(store, filled(size))
    names = [f"od-{store.session}-1-{k}" for k in range(3)]
    assert seen == [(1, names[:0]), (2, names[:1]), (3, names[:2])]
    assert segments(store.session) == names


@needs_dev_shm
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_killed_at_any_instant_leaves_nothing_uncounted(
    session: str, spill: Path, seed: int
) -> None:
    """Laws 28 and 29: its count, kept outside of it, is enough to find all that it made."""
    rng = random.Random(seed)
    count = mmap.mmap(-1, 8)  # shared with the child, and still there when that is dead
    for number in range(1, 26):
        count[:] = bytes(8)
        readable, writable = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                child = Store(
                    session,
                    number,
                    str(spill),
                    cache_limit_bytes=3 << 20,
                    on_segment=lambda n: count.__setitem__(slice(8), n.to_bytes(8, "little")),
                )
                while True:
                    stored = [child.write(b"", [bytes(size)]) for size in (150_000, 2_500_000)]
                    os.write(writable, b".")
                    for extent, _, _ in stored:
                        child.free(extent[1])
                    child.trim(rng.choice([0, 1 << 20, 4 << 20]))
            finally:
                os._exit(1)
        os.close(writable)
        for _ in range(rng.randint(1, 6)):
            os.read(readable, 1)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(readable)
        unlink_segments(session, number, int.from_bytes(count, "little"), str(spill))
        assert segments(session) == []
    count.close()


def test_a_name_that_is_taken_is_passed_over(store: Store) -> None:
    foreign = Segment(f"od-{store.session}-1-0", GRANULE)
    try:
        assert put(store, filled(1 << 20))[0][2] == f"od-{store.session}-1-1"
        store.close()
        assert segments(store.session) == [foreign.name]
    finally:
        assert unlink_segment(foreign.name)


@needs_dev_shm
def test_closing_unlinks_everything_and_views_stay_valid(make_store: MakeStore) -> None:
    """Law 15: a view outlives every handle, the free, the segment's name and the store."""
    store = make_store()
    values = [filled(size, 5) for size in (200 << 10, LARGE, 2 * LARGE)]
    stored = [put(store, value) for value in values]
    views = [get(store, one) for one in stored[:2]]
    store.free(put(store, filled(LARGE))[0][1])  # something kept for reuse, too
    store.close()
    store.close()
    assert segments(store.session) == []
    assert store.live_bytes == store.cached_bytes == 0
    for view, value in zip(views, values, strict=False):
        assert np.array_equal(view, value)
        view[0] = 6
    for one in stored:
        store.free(one[0][1])
    with pytest.raises(RuntimeError, match="closed"):
        put(store, filled(1 << 20))
    with pytest.raises(RuntimeError, match="closed"):
        put(store, filled(LARGE))
    assert store.trim() == 0


@pytest.mark.parametrize("repeat", range(5))
def test_closing_while_others_write_leaves_nothing(make_store: MakeStore, repeat: int) -> None:
    """Law 27: no segment comes into being behind the back of the close."""
    store = make_store()
    start = threading.Barrier(3)
    outcomes: list[str] = []

    def write(size: int) -> None:
        data = bytes(size)
        start.wait()
        try:
            while True:
                store.write(b"", [data])
        except RuntimeError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=write, args=(size,)) for size in (100_000, 3 << 20)]
    for thread in threads:
        thread.start()
    start.wait()
    while store.live_values < 3 * repeat:
        pass
    store.close()
    for thread in threads:
        thread.join()
    assert outcomes == ["the store is closed"] * 2
    assert segments(store.session) == []
    assert (store.live_bytes, store.cached_bytes) == (0, 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_gives_nothing_of_its_parent_s_away(store: Store) -> None:
    """Law 69: a child that the user forked cannot corrupt the store."""
    stored = put(store, filled(LARGE))
    small = put(store, filled(1 << 20, 2))
    view = get(store, small)
    pid = os.fork()
    if not pid:
        code = 1
        try:
            store.free(stored[0][1])
            store.trim()
            try:
                put(store, filled(1 << 20))
            except RuntimeError:
                code = 0
            view[:] = 0
            store.close()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert np.array_equal(view, filled(1 << 20, 2))
    assert np.array_equal(get(store, stored), filled(LARGE))
    assert store.live_values == 2


def test_a_process_that_used_the_store_ends_in_silence(session: str, spill: Path) -> None:
    """Law 31: no tracker, no warning, no "Exception ignored", with live views at exit."""
    output = run_python(
        """
import sys, numpy
from tests.store.pickled import get, put
from owndist.store.local import Store
store = Store(sys.argv[1], 1, sys.argv[2], cache_limit_bytes=1 << 30, on_unmapped=lambda: None)
views = [get(store, put(store, numpy.ones(size))) for size in (50_000, 500_000, 5_000_000)]
cycle = [views[0]]
cycle.append(cycle)
sys.kept = views
store.close()
assert "multiprocessing" not in sys.modules, "nobody else may watch over our segments"
""",
        session,
        str(spill),
    )
    assert output == ""
