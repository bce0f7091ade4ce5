"""Values whose memory is gone, with real processes and real shared memory."""

from __future__ import annotations

import os
import random
import threading
from concurrent.futures import wait
from pathlib import Path

import numpy as np
import pytest

from owndist import OwnershipExecutor
from owndist.errors import ObjectLost
from owndist.testing import lose_value

from .conftest import MakePool
from .helpers import eventually
from .lineage import (
    LENGTH,
    add,
    fail_once,
    first,
    first_of,
    lose_inside,
    lose_two_of_three,
    make,
    make_three,
    make_two_from,
    runs,
)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Where tasks note that they ran."""
    return tmp_path / "log"


def test_a_lost_value_is_computed_again_when_it_is_read(pool: OwnershipExecutor, log: Path) -> None:
    """Laws 37 and 39."""
    future = pool.submit(make, log, 3)
    wait([future])
    assert lose_value(future)
    assert future.result()[0] == 3.0
    assert runs(log) == {"make3": 2}
    assert pool.statistics().tasks_recomputed == 1


def test_a_diamond_runs_again_as_far_as_it_is_lost(pool: OwnershipExecutor, log: Path) -> None:
    """`d = b + c`, `b = a + a`, `c = a + a`; d and a and c are lost, b is not (Laws 38 and 39)."""
    a = pool.submit(make, log, 1)
    b = pool.submit(add, log, "b", a, a)
    c = pool.submit(add, log, "c", a, a)
    d = pool.submit(add, log, "d", b, c)
    wait([a, b, c, d])
    for future in (d, a, c):
        assert lose_value(future)
    assert pool.submit(first, d).result() == 4.0
    assert runs(log) == {"make1": 2, "b": 1, "c": 2, "d": 2}


def test_what_was_freed_meanwhile_is_computed_again(pool: OwnershipExecutor, log: Path) -> None:
    """A chain of which only the end is kept (Law 39)."""
    future = pool.submit(make, log, 1)
    for step in range(5):
        future = pool.submit(add, log, f"step{step}", future, future)
    wait([future])
    lose_value(future)
    assert future.result()[0] == 32.0
    assert runs(log) == {"make1": 2, **{f"step{step}": 2 for step in range(5)}}


def test_many_readers_are_one_execution(pool: OwnershipExecutor, log: Path) -> None:
    """Threads, tasks, and a task that was given the future itself (Law 40)."""
    future = pool.submit(make, log, 5)
    wait([future])
    lose_value(future)
    found: list[float] = []
    threads = [threading.Thread(target=lambda: found.append(future.result()[0])) for _ in range(4)]
    for thread in threads:
        thread.start()
    tasks = [pool.submit(first, future) for _ in range(4)]
    tasks.append(pool.submit(first_of, pool.shared(future)))
    assert [task.result() for task in tasks] == [5.0] * 5
    for thread in threads:
        thread.join()
    assert found == [5.0] * 4
    assert runs(log) == {"make5": 2}


def test_what_was_put_says_that_it_was(pool: OwnershipExecutor) -> None:
    """Read, given to a task, and given to a task as a future (Law 43)."""
    future = pool.put(np.ones(LENGTH))
    lose_value(future)
    for ask in (
        lambda: future.result(),
        lambda: pool.submit(first, future).result(),
        lambda: pool.submit(first_of, pool.shared(future)).result(),
    ):
        with pytest.raises(ObjectLost, match=r"put\(\)"):
            ask()


def test_a_lost_value_is_not_taken_for_what_is_in_its_place_now(make_pool: MakePool) -> None:
    """`x = put(v)`, moved to disk; the file is lost, and x's old memory holds another (Law 43)."""
    size = 200_000
    pool = make_pool(max_workers=1, store_bytes=24 << 20)
    x = pool.put(np.full(size, 1, "u1"))
    others = [pool.put(np.full(size, 2, "u1")) for _ in range((23 << 20) // size)]
    eventually(lambda: pool.statistics().spills > 0, "nothing is moved")
    assert lose_value(x)
    assert isinstance(pool.submit(len, x).exception(), ObjectLost)
    others += [pool.put(np.full(size, 9, "u1")) for _ in range(20)]
    with pytest.raises(ObjectLost, match=r"put\(\)"):
        x.result()


def test_a_value_stays_while_what_was_made_from_it_may_be_lost(
    pool: OwnershipExecutor, log: Path
) -> None:
    """`x = put(v); y = f(x); del x`; y is lost, computed again; `del y` frees x (Law 42)."""
    x = pool.put(np.full(LENGTH, 2.0))
    y = pool.submit(add, log, "y", x)
    wait([y])
    del x
    lose_value(y)
    assert y.result()[0] == 2.0
    del y
    pool.submit(first, np.ones(1)).result()
    assert pool.statistics().store_values == 0


def test_a_task_that_may_run_only_once_is_not_run_again(pool: OwnershipExecutor, log: Path) -> None:
    """Law 35."""
    future = pool.options(max_retries=0).submit(make, log, 1)
    wait([future])
    lose_value(future)
    with pytest.raises(ObjectLost, match="max_retries=0"):
        future.result()
    assert runs(log) == {"make1": 1}


@pytest.mark.parametrize(("limit", "reason"), [(0, "lineage_bytes=0"), (1, "lineage evicted")])
def test_without_room_for_lineage_a_lost_value_says_so(
    make_pool: MakePool, log: Path, limit: int, reason: str
) -> None:
    """Law 45: all else goes on."""
    pool = make_pool(max_workers=1, lineage_bytes=limit)
    future = pool.submit(make, log, 1)
    wait([future])
    lose_value(future)
    with pytest.raises(ObjectLost, match=reason):
        future.result()
    assert pool.submit(make, log, 2).result()[0] == 2.0


def test_errors_that_are_retried_are_retried_again(make_pool: MakePool, log: Path) -> None:
    """The first time well, then twice an OSError (Laws 33 and 34)."""
    pool = make_pool(max_workers=1)
    options = pool.options(retry_exceptions=[OSError], max_retries=3)
    future = options.submit(fail_once, log, 1)
    wait([future])
    lose_value(future)
    assert future.result()[0] == 0.0
    assert runs(log) == {"fail_once": 3}


def test_a_task_that_owns_values_recovers_them(pool: OwnershipExecutor, log: Path) -> None:
    """The worker is the owner: it runs its own tasks again; what it had borrowed it asks for."""
    outer = pool.submit(make, log, 10)
    wait([outer])
    lose_value(outer)
    assert pool.submit(lose_inside, log, pool.shared(outer)).result() == 17.0
    assert runs(log) == {"make10": 2, "make7": 2, "inner": 2}


@pytest.mark.parametrize("index", range(3))
def test_one_of_several_values_is_made_again(
    pool: OwnershipExecutor, log: Path, index: int
) -> None:
    """`a, b, c = options(num_returns=3).submit(f)`; one of them is lost (Laws 37 to 40)."""
    futures = pool.options(num_returns=3).submit(make_three, log)
    wait(futures)
    assert lose_value(futures[index])
    asked = [pool.submit(first, future) for future in futures]
    assert [task.result() for task in asked] == [1.0, 2.0, 3.0]
    assert futures[index].result()[0] == index + 1.0
    assert runs(log) == {"three": 2}
    assert pool.statistics().tasks_recomputed == 1
    assert pool.statistics().store_values == 3
    del asked, futures
    pool.submit(first, np.ones(1)).result()
    assert pool.statistics().store_values == 0


def test_all_of_several_values_are_made_again_by_one_execution(
    pool: OwnershipExecutor, log: Path
) -> None:
    """All are lost, and read by many at the same time (Law 40)."""
    futures = pool.options(num_returns=3, max_retries=1).submit(make_three, log)
    wait(futures)
    for future in futures:
        assert lose_value(future)
    asked = [pool.submit(add, log, "sum", *futures) for _ in range(3)]
    assert [task.result()[0] for task in asked] == [6.0] * 3
    assert [future.result()[0] for future in futures] == [1.0, 2.0, 3.0]
    assert runs(log) == {"three": 2, "sum": 3}
    assert pool.statistics().tasks_recomputed == 1


def test_several_values_and_what_they_were_made_from(pool: OwnershipExecutor, log: Path) -> None:
    """A chain through a task with two values, one of them small; only its end is kept (Law 39)."""
    large, small = pool.options(num_returns=2).submit(make_two_from, log, pool.submit(make, log, 1))
    end = pool.submit(add, log, "end", large, large)
    wait([end, small])
    del large
    pool.submit(first, np.ones(1)).result()
    lose_value(end)
    assert end.result()[0] == 4.0
    assert runs(log) == {"make1": 2, "two": 2, "end": 2}
    assert small.result() == "small"


def test_several_values_of_a_task_that_may_run_only_once(
    pool: OwnershipExecutor, log: Path
) -> None:
    """Law 35."""
    futures = pool.options(num_returns=3, max_retries=0).submit(make_three, log)
    wait(futures)
    lose_value(futures[2])
    with pytest.raises(ObjectLost, match="max_retries=0"):
        futures[2].result()
    assert [future.result()[0] for future in futures[:2]] == [1.0, 2.0]
    assert runs(log) == {"three": 1}


def test_a_task_that_owns_several_values_recovers_them(pool: OwnershipExecutor, log: Path) -> None:
    """The same in a worker (Law 39)."""
    assert pool.submit(lose_two_of_three, log).result() == [1.0, 2.0, 3.0]
    assert runs(log) == {"three": 2}


def test_a_stream_s_values_say_why_they_are_lost(pool: OwnershipExecutor, log: Path) -> None:
    """Law 46."""
    with pool.options(num_returns="stream").submit(make_three, log) as stream:
        future = next(stream)
        wait([future])
        lose_value(future)
        with pytest.raises(ObjectLost, match="stream"):
            future.result()


@pytest.mark.parametrize("seed", range(3))
def test_a_session_whose_memory_is_removed_all_the_time(
    make_pool: MakePool, log: Path, seed: int
) -> None:
    """Somebody empties /dev/shm at random moments: every result is right (Law 46)."""
    rng = random.Random(seed)
    pool = make_pool(max_workers=2)
    options = pool.options(max_retries=1000)
    futures = [options.submit(make, log, n) for n in range(4)]
    expected = [float(n) for n in range(4)]
    for step in range(40):
        left, right = rng.randrange(len(futures)), rng.randrange(len(futures))
        futures.append(options.submit(add, log, f"add{step}", futures[left], futures[right]))
        expected.append(expected[left] + expected[right])
        if rng.random() < 0.4:
            _remove_segments_of(pool, rng)
    order = list(range(len(futures)))
    rng.shuffle(order)
    for n in order:
        assert futures[n].result()[0] == expected[n]


def _remove_segments_of(pool: OwnershipExecutor, rng: random.Random) -> None:
    prefix = f"od-{pool._driver._store.session}-"
    names = sorted(n for n in os.listdir("/dev/shm") if n.startswith(prefix) and "lock" not in n)
    for name in names:
        if rng.random() < 0.5:
            try:
                os.unlink(f"/dev/shm/{name}")
            except FileNotFoundError:
                pass  # freed meanwhile
