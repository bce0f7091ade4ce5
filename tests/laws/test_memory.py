"""Law 47: what happens when memory is short."""

from __future__ import annotations

import gc
import os
import re
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from owndist import OwnershipExecutor

from .conftest import MakePool
from .helpers import (
    PATIENCE_S,
    at_rest,
    eventually,
    kill,
    live_children,
    segments_of,
    template_of,
)

MB = 1 << 20


def make(number: int, size: int = MB) -> np.ndarray[Any, Any]:
    return np.full(size, number % 251, "u1")


def check(array: np.ndarray[Any, Any], number: int) -> int:
    assert array[0] == array[-1] == number % 251, "the wrong value"
    return len(array)


def check_and_locate(array: np.ndarray[Any, Any], number: int) -> bool:
    """Whether the value is right; tells whether it lies in a file, by what is mapped here."""
    assert check(array, number) == MB
    address = array.ctypes.data
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, rest = line.partition(" ")
        start, end = (int(part, 16) for part in span.split("-"))
        if start <= address < end:
            return "/owndist-" in rest  # the folder of the session's files
    raise AssertionError("it lies nowhere")


def session_of(pool: OwnershipExecutor) -> tuple[str, Path]:
    """The name of a session, and the folder of its files."""
    store = pool._driver._store  # type: ignore[attr-defined]
    return store.session, Path(store._allocator.spill_directory)


def memory_of(session: str) -> int:
    """Shared memory that a session really takes up."""
    total = 0
    for name in segments_of(session):
        try:
            total += os.stat(f"/dev/shm/{name}").st_blocks * 512
        except FileNotFoundError:
            continue  # removed since it was listed
    return total


def own_memory(pool: OwnershipExecutor) -> dict[int, int]:
    """{pid: bytes} of driver and workers, without what they map of values and files."""
    workers = live_children(template_of(pool.submit(os.getpid).result(PATIENCE_S)))
    gc.collect()
    found = {}
    for pid in [os.getpid(), *(worker.pid for worker in workers)]:
        (line,) = re.findall(r"RssAnon:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        found[pid] = int(line) << 10
    return found


def run_window(pool: OwnershipExecutor, count: int, window: int, limit: int) -> int:
    """Make so many arrays and read each one when `window` younger ones are there.

    Returns:
        How many of them the readers found on disk.
    """
    live: deque[tuple[int, Any]] = deque()
    session = None
    reads: deque[Any] = deque()
    on_disk = 0
    for number in range(count + window):
        if number < count:
            live.append((number, pool.submit(make, number)))
        if number >= window:
            old, future = live.popleft()
            reads.append(pool.submit(check_and_locate, future, old))
            del future
        while len(reads) > 8:
            on_disk += reads.popleft().result(PATIENCE_S)
        if session is None:
            session, _ = session_of(pool)
        if number % 50 == 0:
            assert memory_of(session) <= limit + MB, "the limit is passed"
    while reads:
        on_disk += reads.popleft().result(PATIENCE_S)
    return on_disk


def left_by_window(pool: OwnershipExecutor, count: int, window: int, limit: int) -> int:
    """Run it twice, first only until all is warm; nothing has grown after the second time.

    Returns:
        How many arrays were found on disk, of both.
    """
    on_disk = run_window(pool, 2 * window, window, limit)
    at_rest(pool, 0)
    before = own_memory(pool)
    on_disk += run_window(pool, count, window, limit)
    at_rest(pool, 0)
    after = own_memory(pool)
    assert after.keys() == before.keys()
    grown = {pid: after[pid] - before[pid] for pid in after}
    print(f"{count} arrays, {on_disk} from disk; grown by {grown} bytes; {pool.statistics()}")
    assert all(size < 16 * MB for size in grown.values()), grown
    _, files = session_of(pool)
    eventually(lambda: not files.exists() or not list(files.iterdir()), "spilled files stay")
    return on_disk


SOAK = [pytest.mark.soak, pytest.mark.timeout(900)]


@pytest.mark.parametrize(
    ("count", "window", "limit"),
    [(300, 20, 64 * MB), pytest.param(10_000, 100, 256 * MB, marks=SOAK)],
)
def test_a_small_window_over_many_arrays_does_not_grow(
    make_pool: MakePool, count: int, window: int, limit: int
) -> None:
    """Law 47: a window that fits stays in memory."""
    pool = make_pool(2, store_bytes=limit)
    assert left_by_window(pool, count, window, limit) == 0
    figures = pool.statistics()
    assert figures.spills == figures.spill_reads == 0


@pytest.mark.parametrize(
    ("count", "window", "limit"),
    [(150, 50, 24 * MB), pytest.param(10_000, 400, 256 * MB, marks=SOAK)],
)
def test_a_window_larger_than_the_limit_goes_to_disk_and_comes_back(
    make_pool: MakePool, count: int, window: int, limit: int
) -> None:
    """Law 47: every value is right, the limit holds, and nothing grows, here or on the disk.

    Each array is read once, so what was moved to disk is read from there, and so is what was
    written there at once. It may have been handed out more often, to tasks that were called back.
    """
    pool = make_pool(2, store_bytes=limit)
    on_disk = left_by_window(pool, count, window, limit)
    figures = pool.statistics()
    assert 0 < figures.spills <= on_disk <= figures.spill_reads
    assert figures.spilled_bytes == 0


def test_what_the_driver_puts_goes_to_disk_too(make_pool: MakePool) -> None:
    """Law 47: and `result()` finds it there."""
    pool = make_pool(1, store_bytes=16 * MB)
    kept = [pool.put(make(number)) for number in range(40)]
    eventually(lambda: pool.statistics().store_bytes <= 13 * MB, "too much stays in memory")
    assert pool.statistics().spills > 0
    assert [check(future.result(), n) for n, future in enumerate(kept)] == [MB] * 40
    assert [pool.submit(check, f, n).result(PATIENCE_S) for n, f in enumerate(kept)] == [MB] * 40


def test_a_view_keeps_its_value_in_memory(make_pool: MakePool) -> None:
    """Law 15: what somebody looks at is not moved, and shows what it did."""
    pool = make_pool(1, store_bytes=16 * MB)
    first = pool.submit(make, 1)
    view = first.result(PATIENCE_S)
    others = [pool.submit(make, number) for number in range(2, 40)]
    for future in others:
        assert future.exception(PATIENCE_S) is None
    eventually(lambda: pool.statistics().spilled_bytes > 20 * MB, "nothing is moved")
    assert check(view, 1) == MB
    references = pool._driver.machine.references  # type: ignore[attr-defined]
    (pinned,) = [record for record in references.extents.values() if record.pins]
    assert not pinned.extent[2].startswith("/")


def test_what_a_dead_worker_moved_to_disk_is_there(make_pool: MakePool) -> None:
    """Laws 32 and 47: files are looked after like segments."""
    pool = make_pool(1, store_bytes=16 * MB)
    kept = [pool.submit(make, number) for number in range(30)]
    for future in kept:
        assert future.exception(PATIENCE_S) is None
    eventually(lambda: pool.statistics().spills > 0, "nothing is moved")
    kill(pool.submit(os.getpid).result(PATIENCE_S))
    assert [pool.submit(check, f, n).result(PATIENCE_S) for n, f in enumerate(kept)] == [MB] * 30
    assert [check(future.result(), n) for n, future in enumerate(kept)] == [MB] * 30
    del future
    kept.clear()
    at_rest(pool, 0)
    _, files = session_of(pool)
    eventually(lambda: not list(files.iterdir()), "spilled files stay")


def test_values_on_disk_can_be_read_after_the_end(make_pool: MakePool) -> None:
    """Law 15: of an executor."""
    pool = make_pool(1, store_bytes=8 * MB)
    kept = [pool.submit(make, number) for number in range(20)]
    pool.shutdown()
    assert [check(future.result(), n) for n, future in enumerate(kept)] == [MB] * 20


@pytest.mark.parametrize("wrong", [0, -1, "1", 1.5, True])
def test_a_limit_is_a_number_of_bytes(wrong: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="store_bytes"):
        OwnershipExecutor(1, store_bytes=wrong)
