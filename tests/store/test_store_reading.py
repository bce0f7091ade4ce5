"""Reading: copy on write, across processes, and the news of mappings' ends."""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import pytest

from owndist.errors import ObjectLost
from owndist.store.local import Store
from owndist.store.segments import unlink_segment
from tests.store.pickled import ROOT, get, put, run_python

MakeStore = Callable[..., Store]


def filled(size: int, value: int = 1) -> np.ndarray[Any, Any]:
    return np.full(size, value, dtype=np.uint8)


def test_nobody_sees_what_a_reader_writes(make_store: MakeStore) -> None:
    """Law 5: not another reader, not a later read, not the process that wrote the value."""
    writer, reader = make_store(1), make_store(2)
    for size in (150_000, 9 << 20):
        stored = put(writer, filled(size))
        mine, yours = get(reader, stored), get(reader, stored)
        assert mine.flags.writeable
        mine += 1
        assert np.array_equal(yours, filled(size))
        assert np.array_equal(get(reader, stored), filled(size))
        assert np.array_equal(get(writer, stored), filled(size))
        assert np.array_equal(mine, filled(size, 2))


def test_a_recycled_extent_shows_nothing_of_what_was_written_to_the_old_view(store: Store) -> None:
    """Law 5: an old private mapping must not be what a later value is read through."""
    stored = put(store, filled(1 << 20, 1))
    view = get(store, stored)
    view[:] = 99
    del view
    store.free(stored[0][1])
    again = put(store, filled(1 << 20, 2))
    assert again[0][2:] == stored[0][2:]
    assert np.array_equal(get(store, again), filled(1 << 20, 2))


def test_other_processes_read_by_name(make_store: MakeStore, session: str) -> None:
    """A fresh process maps what this one wrote; a change there stays there."""
    store = make_store(1)
    stored = [put(store, np.arange(size)) for size in (20_000, 2_000_000)]
    stored.append(store.write(os.urandom(9000), [b"tail"]))
    child = """
import pickle, sys
from tests.store.pickled import get
from owndist.store.local import Store
stored = pickle.load(sys.stdin.buffer)
store = Store(sys.argv[1], 2, "unused", cache_limit_bytes=0)
for one in stored[:2]:
    value = get(store, one)
    print(value.sum())
    value[:] = 0
_, head, (tail,) = store.read(stored[2])
print(len(head), bytes(tail).decode(), store.mapped())
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", child, session],
        input=pickle.dumps(stored),
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=60,
    )
    assert done.stderr == b""
    sums = [sum(range(20_000)), sum(range(2_000_000))]
    # The second value dies only when `value` is bound anew, or never: here it still lives.
    assert done.stdout.decode().split("\n")[:2] == [str(s) for s in sums]
    assert done.stdout.decode().split("\n")[2] == "9000 tail [(1, 1), (1, 2)]"
    assert np.array_equal(get(store, stored[1]), np.arange(2_000_000))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_what_a_dead_process_wrote_can_still_be_read(make_store: MakeStore) -> None:
    """Law 32: on one host stored values survive the death of their producer."""
    readable, writable = os.pipe()
    writer = make_store(7)
    pid = os.fork()
    if not pid:
        try:
            child = Store(writer.session, 8, "unused", cache_limit_bytes=0)
            os.write(writable, pickle.dumps(put(child, filled(1 << 20, 8))))
        finally:
            os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)
    stored = pickle.loads(os.read(readable, 10_000))
    os.close(readable)
    os.close(writable)
    assert np.array_equal(get(writer, stored), filled(1 << 20, 8))
    assert unlink_segment(stored[0][2])


def test_a_missing_segment_is_an_object_lost(make_store: MakeStore) -> None:
    """Law 46: a loss ends in a typed error that names what is missing."""
    writer, reader = make_store(1), make_store(2)
    stored = put(writer, filled(1 << 20))
    segment = stored[0][2]
    writer.close()
    with pytest.raises(ObjectLost, match=f"1048576 bytes.*'{segment}' is gone"):
        reader.read(stored)
    assert reader.mapped() == reader.take_unmapped() == []


def test_a_segment_that_is_too_short_is_an_object_lost(make_store: MakeStore) -> None:
    writer, reader = make_store(1), make_store(2)
    (number, serial, segment, offset, size), head, spans = put(writer, filled(9 << 20))
    with pytest.raises(ObjectLost, match="too short"):
        reader.read(((number, serial, segment, offset, 2 * size), head, spans))


def test_an_extent_is_mapped_until_its_last_view_dies(store: Store) -> None:
    """Law 15: and only then may its writer be told."""
    told = threading.Event()
    reader = Store(store.session, 2, "unused", cache_limit_bytes=0, on_unmapped=told.set)
    stored = put(store, [filled(200_000), filled(200_000, 2)])
    key = (1, stored[0][1])
    assert reader.mapped() == reader.take_unmapped() == []
    first, second = get(reader, stored)
    part = second[1000:2000]
    assert reader.mapped() == [key]
    del first, second
    assert not told.is_set()
    assert reader.mapped() == [key] and reader.take_unmapped() == []
    assert part[0] == 2
    del part
    assert told.is_set()
    assert reader.mapped() == []
    assert reader.take_unmapped() == [key]
    assert reader.take_unmapped() == [], "told once"


def test_an_extent_read_twice_is_unmapped_when_both_are_gone(store: Store) -> None:
    stored = put(store, filled(200_000))
    key = (1, stored[0][1])
    one, two = get(store, stored), get(store, stored)
    del one
    assert store.mapped() == [key] and store.take_unmapped() == []
    del two
    assert store.mapped() == []
    three = get(store, stored)  # mapped again before anybody asked
    assert store.mapped() == [key] and store.take_unmapped() == []
    del three
    assert store.take_unmapped() == [key]
    four = get(store, stored)
    assert store.take_unmapped() == []
    del four
    assert store.take_unmapped() == [key], "each end is told"


def test_the_end_of_a_mapping_may_come_in_the_middle_of_any_call(store: Store) -> None:
    """Law 16: from any thread, inside any allocation, with the store's own lock held.

    Views in cycles die in the garbage collector, which here runs at nearly every allocation.
    """
    stored = [put(store, filled(150_000, number)) for number in range(5)]
    threshold = gc.get_threshold()
    errors: list[BaseException] = []

    def use() -> None:
        try:
            for step in range(100):
                value = get(store, stored[step % 5])
                assert value[-1] == step % 5
                cycle: list[Any] = [value]
                cycle.append(cycle)
                del value, cycle
                store.mapped()
                store.take_unmapped()
        except BaseException as error:
            errors.append(error)

    gc.set_threshold(1)
    try:
        threads = [threading.Thread(target=use) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads), "deadlock"
    finally:
        gc.set_threshold(*threshold)
    gc.collect()
    assert errors == []
    assert store.mapped() == []


def test_the_mapping_can_be_watched_and_dies_with_its_views(store: Store) -> None:
    mapping, _, (view,) = store.read(put(store, filled(200_000)))
    watch = weakref.ref(mapping)
    del mapping
    assert watch() is not None
    del view
    assert watch() is None


@pytest.mark.skipif(
    sys.version_info >= (3, 13), reason="from 3.13 on a mapping needs no descriptor"
)
def test_more_live_values_than_descriptors(session: str, tmp_path: Any) -> None:
    """A program that keeps a thousand results has no trouble with ProcessPoolExecutor."""
    output = run_python(
        """
import resource, sys, numpy
from tests.store.pickled import get, put
from owndist.store.local import Store
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
told = []
store = Store(sys.argv[1], 1, sys.argv[2], cache_limit_bytes=0, on_unmapped=lambda: told.append(1))
stored = [put(store, numpy.full(100_000, number, "u1")) for number in range(100)]
values = [get(store, one) for one in stored]
open("/dev/null").close()  # some are left for the user
print(len(store.mapped()), len(told), len(store.take_unmapped()))
assert all((value == number).all() for number, value in enumerate(values))
values[99][:] = 1
again = get(store, stored[99])
assert (again == 99).all()
del values, again
print(len(store.mapped()), len(store.take_unmapped()))
value = get(store, stored[0])
print(store.mapped())
store.close()
""",
        session,
        str(tmp_path),
    )
    # Half of the 64 descriptors, then copies, whose extents are at once free again.
    assert output.split("\n") == ["32 68 68", "0 33", "[(1, 0)]"]


@pytest.mark.skipif(sys.version_info < (3, 13), reason="before, a mapping holds a descriptor")
def test_live_values_hold_no_descriptors(store: Store) -> None:
    before = psutil.Process().num_fds()
    stored = put(store, filled(200_000))
    values = [get(store, stored) for _ in range(50)]
    assert psutil.Process().num_fds() == before
    assert len(values) == 50
