"""Laws 8, 52, 64, 65, 67 and 69: tasks, executors and the program do not disturb each other."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import (
    FIRST_EXCEPTION,
    CancelledError,
    InvalidStateError,
    ProcessPoolExecutor,
    as_completed,
    wait,
)
from concurrent.futures import Future as AnyFuture
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from owndist import OwnershipExecutor
from owndist.errors import NotSerializable, RemoteError
from owndist.testing import lose_value
from tests.parity.conftest import Bell, Gate

from . import tasks
from .conftest import MakePool
from .helpers import PATIENCE_S, at_rest, kill, live_children, template_of

# Law 8 (the rest of it is what the parity and conformance tests are about)


def test_futures_with_values_in_shared_memory_are_futures_like_any(
    pool: OwnershipExecutor,
) -> None:
    """Law 8: wait, as_completed, asyncio, callbacks, and states that cannot be set twice."""
    assert isinstance(pool, ProcessPoolExecutor)
    futures = [pool.submit(tasks.make_bytes, n) for n in range(10)]
    assert all(isinstance(future, AnyFuture) for future in futures)
    done, rest = wait(futures, PATIENCE_S)
    assert (len(done), len(rest)) == (10, 0)
    assert sorted(int(f.result()[0]) for f in as_completed(futures, PATIENCE_S)) == list(range(10))
    called = threading.Event()
    futures[0].add_done_callback(lambda future: called.set())
    assert called.is_set()
    with pytest.raises(InvalidStateError):
        futures[0].set_result(1)

    async def gather() -> list[Any]:
        more = [pool.submit(tasks.plus_one, future) for future in futures]
        return await asyncio.gather(*map(asyncio.wrap_future, more))

    assert [int(array[-1]) for array in asyncio.run(gather())] == list(range(1, 11))


# Law 52


def test_nothing_waits_behind_a_long_task(pool: OwnershipExecutor, gate: Gate, bell: Bell) -> None:
    """Law 52: also what was sent ahead, when calls of the same function used to be short."""
    for _ in range(50):
        pool.submit(tasks.pass_gate, "/dev/zero").result(PATIENCE_S)
    mixed = [pool.submit(tasks.pass_gate, "/dev/zero") for _ in range(20)]
    long = pool.submit(tasks.ring_and_pass, bell.path, gate.path)
    also_long = pool.submit(tasks.pass_gate, gate.path)
    behind = [pool.submit(tasks.pass_gate, "/dev/zero") for _ in range(100)]
    bell.wait()
    assert wait(mixed, PATIENCE_S).not_done == set()
    assert not long.done() and not also_long.done()
    gate.open()
    assert wait([*behind, long, also_long], PATIENCE_S).not_done == set()


def test_one_free_worker_does_all_that_can_be_done(
    pool: OwnershipExecutor, gate: Gate, bell: Bell
) -> None:
    """Law 52: the other one is busy for good, and 500 tasks pass it by."""
    for _ in range(100):
        pool.submit(tasks.add, 1, 1).result(PATIENCE_S)
    long = pool.submit(tasks.ring_and_pass, bell.path, gate.path)
    chain: Any = 0
    futures = []
    for number in range(500):
        chain = pool.submit(tasks.add, chain, 1)
        futures += [chain, pool.submit(tasks.add, number, number)]
    bell.wait()
    assert wait(futures, PATIENCE_S).not_done == set()
    assert chain.result() == 500
    assert not long.done()


def test_a_task_that_waits_inside_lends_its_place(make_pool: MakePool) -> None:
    """Law 52: with one worker, and something in front of it that asks for what stands behind."""
    single = make_pool(1)
    asked: AnyFuture[int] = AnyFuture()
    later = single.submit(tasks.add, asked, 1)
    waiting = single.submit(tasks.ask, single.shared(later))
    beside = [single.submit(tasks.add, n, n) for n in range(20)]
    assert [future.result(PATIENCE_S) for future in beside] == [2 * n for n in range(20)]
    asked.set_result(41)
    assert waiting.result(PATIENCE_S) == 42


# Law 64


def test_two_executors_never_see_each_other(make_pool: MakePool) -> None:
    """Law 64: other processes, other memory; the end of one is nothing to the other."""
    one, two = make_pool(2), make_pool(2)
    values = [pool.submit(tasks.make_and_tell, n) for n, pool in enumerate([one, two] * 5)]
    pids = [{f.result(PATIENCE_S)[0] for f in values[k::2]} for k in (0, 1)]
    assert not pids[0] & pids[1]
    crossing = two.submit(lambda pair: tasks.total(pair[1]), values[2])
    assert crossing.result(PATIENCE_S) == 2 * tasks.LARGE
    with pytest.raises(TypeError, match="this executor"):
        two.shared(values[2])
    for pid in pids[0]:
        kill(pid)
    assert two.submit(tasks.add, 1, 2).result(PATIENCE_S) == 3
    assert two.statistics().workers_died == 0
    one.kill_workers()
    one.shutdown()
    assert [int(f.result()[1][0]) for f in values[1::2]] == [1, 3, 5, 7, 9]
    chain = [two.submit(tasks.plus_one, two.submit(tasks.make_bytes, n)) for n in range(5)]
    assert [tasks.total(f.result(PATIENCE_S)) for f in chain] == [
        (n + 1) * tasks.LARGE for n in range(5)
    ]
    assert tasks.total(values[2].result()[1]) == 2 * tasks.LARGE


def surroundings() -> dict[str, Any]:
    """What of this process a library has no business to change."""
    return {
        "environment": dict(os.environ),
        "handlers": {n: signal.getsignal(n) for n in signal.valid_signals()},
        "blocked": signal.pthread_sigmask(signal.SIG_BLOCK, []),
        "wakeup": _wakeup_fd(),
        "directory": os.getcwd(),
        "umask": _umask(),
        "group": os.getpgrp(),
        "collector": (gc.isenabled(), gc.get_threshold()),
        "affinity": os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None,
        "priority": os.getpriority(os.PRIO_PROCESS, 0),
    }


def _wakeup_fd() -> int:
    fd = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(fd)
    return fd


def _umask() -> int:
    mask = os.umask(0o22)
    os.umask(mask)
    return mask


def test_the_program_is_left_as_it_was(make_pool: MakePool) -> None:
    """Law 64: environment, signal handlers and thread counts, before, meanwhile and after."""
    before = surroundings()
    pool = make_pool(2)
    assert pool.submit(os.getenv, "OMP_NUM_THREADS").result(PATIENCE_S)  # in a worker, yes
    pool.submit(tasks.plus_one, pool.put(np.ones(300_000))).result(PATIENCE_S)
    assert surroundings() == before
    with pytest.raises(BaseException, match="attempt 1"):
        pool.options(max_retries=0).submit(tasks.die).result(PATIENCE_S)
    pool.shutdown()
    assert surroundings() == before


# Law 65


def test_cancelled_tasks_never_run(
    single: OwnershipExecutor, gate: Gate, bell: Bell, diary: Path
) -> None:
    """Law 65: sent ahead, ready, or waiting for an argument; not even after a worker's death."""
    for _ in range(30):
        single.submit(tasks.write_down, os.devnull, 0).result(PATIENCE_S)
    first = single.submit(tasks.ring_and_pass, bell.path, gate.path, 1)
    queued = [single.submit(tasks.write_down, str(diary), n) for n in range(30)]
    waiting = [single.submit(tasks.write_down_and, str(diary), 100, first) for _ in range(3)]
    bell.wait()
    cancelled = queued[::2] + waiting
    assert all(future.cancel() for future in cancelled)
    assert not first.cancel()
    for child in live_children(template_of(_a_worker_of(single))):
        kill(child.pid)
    bell.wait()  # it runs again
    gate.open()
    assert [future.result(PATIENCE_S) for future in queued[1::2]] == list(range(1, 30, 2))
    for future in cancelled:
        assert future.cancelled() and future.cancel()
        with pytest.raises(CancelledError):
            future.result(0)
    assert first.result(PATIENCE_S) == 1 and not first.cancel()
    assert sorted(map(int, diary.read_text().split())) == list(range(1, 30, 2))
    assert single.statistics().tasks_cancelled == 18
    del first, queued, waiting, cancelled, future
    at_rest(single, 0)


def _a_worker_of(pool: OwnershipExecutor) -> int:
    """The pid of its worker; it may be busy."""
    for child in psutil.Process().children():
        for grandchild in child.children():
            return int(grandchild.pid)
    raise AssertionError("it has no worker")


def test_a_finished_task_cannot_be_cancelled(pool: OwnershipExecutor) -> None:
    """Law 65."""
    done = pool.submit(tasks.make_bytes, 1)
    failed = pool.submit(tasks.fail, ValueError, "no")
    wait([done, failed], PATIENCE_S)
    assert [done.cancel(), failed.cancel(), pool.put(1).cancel()] == [False] * 3
    assert tasks.total(done.result()) == tasks.LARGE


# Law 67


def test_errors_keep_all_that_they_are(pool: OwnershipExecutor) -> None:
    """Law 67: type, arguments, fields, text, cause, and where they were raised."""
    error = pool.submit(tasks.raise_odd).exception(PATIENCE_S)
    assert type(error) is tasks.OddError
    assert error.args == ("code 7 at the cellar",)
    assert (error.code, error.place) == (7, "the cellar")
    told = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    assert "in raise_odd" in told and "KeyError: 'the inner one'" in told
    remote = error.__cause__
    assert remote is not None and type(remote.__cause__) is KeyError


def test_an_error_that_cannot_be_pickled_has_a_stand_in(pool: OwnershipExecutor) -> None:
    """Law 67: for its own future and for those that depend on it; nobody else is touched."""
    bad = pool.submit(tasks.raise_unpicklable)
    after = pool.submit(tasks.echo, bad)
    for future in (bad, after):
        error = future.exception(PATIENCE_S)
        assert type(error) is RemoteError
        assert "Unpicklable" in error.type_name and "stays at home" in str(error)
    assert pool.submit(tasks.add, 1, 2).result(PATIENCE_S) == 3


def test_a_result_that_cannot_be_pickled_fails_only_its_own_future(
    pool: OwnershipExecutor,
) -> None:
    """Law 67: and the text names what it is."""
    beside = [pool.submit(tasks.add, n, n) for n in range(20)]
    bad = pool.submit(tasks.return_unpicklable)
    beside += [pool.submit(tasks.add, n, n) for n in range(20, 40)]
    error = bad.exception(PATIENCE_S)
    assert isinstance(error, NotSerializable) and "lock" in str(error)
    assert [future.result(PATIENCE_S) for future in beside] == [2 * n for n in range(40)]
    assert pool.statistics().workers_died == 0


@pytest.mark.parametrize("size", [10, 200_000])
def test_a_value_that_cannot_be_loaded_fails_only_its_reader(
    pool: OwnershipExecutor, size: int
) -> None:
    """Law 67: the driver cannot read it, a worker can, and the other way round."""
    bad_here = pool.submit(lambda pid: [tasks.BadOnArrival(pid), bytes(size)], os.getpid())
    assert pool.submit(lambda value: value[0], bad_here).result(PATIENCE_S) == "arrived"
    for _ in range(2):
        with pytest.raises(NotSerializable, match="ValueError: broken on arrival"):
            bad_here.result(PATIENCE_S)
    worker = pool.submit(os.getpid).result(PATIENCE_S)
    for _ in range(4):
        bad_there = pool.put([tasks.BadOnArrival(worker), bytes(size)])
        reader = pool.submit(lambda value: os.getpid(), bad_there)
        error = reader.exception(PATIENCE_S)
        if error is None:
            assert reader.result() != worker
        else:
            assert "broken on arrival" in "".join(traceback.format_exception(error))
        assert bad_there.result(PATIENCE_S)[0] == "arrived"
    del bad_here, bad_there, reader
    at_rest(pool, 0)


@pytest.mark.parametrize("size", [10, 200_000])
def test_a_coroutine_hears_that_a_value_cannot_be_loaded(
    pool: OwnershipExecutor, size: int
) -> None:
    """Laws 8 and 67: asyncio asks for the error first, and for the value only if there is none."""
    bad_here = pool.submit(lambda pid: [tasks.BadOnArrival(pid), bytes(size)], os.getpid())

    async def wait_for_it() -> None:
        await asyncio.wait_for(asyncio.wrap_future(bad_here), PATIENCE_S)

    with pytest.raises(NotSerializable, match="ValueError: broken on arrival"):
        asyncio.run(wait_for_it())


def test_who_asks_for_the_error_alone_fetches_no_value_in_a_coroutine_either(
    pool: OwnershipExecutor,
) -> None:
    """Laws 8 and 52: `wait` asks for it while it has all futures locked, which nobody completes."""
    lost = pool.submit(lambda: [time.sleep(0.3), np.ones(200_000)][1])
    wait([lost], PATIENCE_S)
    assert lose_value(lost)
    running = pool.submit(time.sleep, 0.1)  # ends while the other one would be computed again

    async def wait_for_them() -> Any:
        return wait([lost, running], PATIENCE_S, FIRST_EXCEPTION)

    assert not asyncio.run(wait_for_them()).not_done
    assert lost.result(PATIENCE_S)[0] == 1.0


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_a_callback_that_exits_ends_nothing(
    pool: OwnershipExecutor, gate: Gate, caplog: pytest.LogCaptureFixture, error: type
) -> None:
    """Law 36: it runs in a thread of the executor's, which all others need."""
    future = pool.submit(tasks.pass_gate, gate.path)
    finished = threading.Event()

    def leave(_: object) -> None:
        raise error

    future.add_done_callback(leave)
    future.add_done_callback(lambda _: finished.set())
    gate.open()
    assert finished.wait(PATIENCE_S)
    assert "exception calling callback" in caplog.text
    caplog.clear()  # its records hold the traceback, and so the executor
    assert pool.submit(abs, -1).result(PATIENCE_S) == 1


# Law 69


def test_a_forked_child_cannot_corrupt_the_executor(pool: OwnershipExecutor, gate: Gate) -> None:
    """Law 69: whatever it does with what it inherited, it is told no, and the parent goes on."""
    slow = pool.submit(tasks.pass_gate, gate.path, 1)
    large = [pool.submit(tasks.make_bytes, n) for n in range(5)]
    view = large[0].result(PATIENCE_S)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = _misbehave(pool, slow, large, view)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    _, ended = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(ended) == 0
    gate.open()
    assert slow.result(PATIENCE_S) == 1
    assert tasks.total(view) == 0
    sums = [pool.submit(tasks.total, future) for future in large]
    assert [f.result(PATIENCE_S) for f in sums] == [n * tasks.LARGE for n in range(5)]
    assert pool.statistics().workers_died == 0
    del slow, large, sums, view
    at_rest(pool, 0)


def _misbehave(pool: OwnershipExecutor, slow: Any, large: list[Any], view: Any) -> int:
    """In the child: all that one can do with the parent's executor. Returns 0 if all is well."""
    refused = 0
    attempts: list[Callable[[], Any]] = [
        lambda: pool.submit(tasks.add, 1, 2),
        lambda: pool.put(bytes(tasks.LARGE)),
        lambda: list(pool.map(tasks.add, [1], [2])),
        lambda: slow.result(5),
    ]
    for attempt in attempts:
        try:
            attempt()
        except RuntimeError:
            refused += 1
    if slow.cancel():
        return 2
    view[:] = 77
    large.clear()
    del view
    gc.collect()
    pool.kill_workers()
    pool.terminate_workers()
    pool.shutdown()
    with OwnershipExecutor(1) as own:
        if own.submit(tasks.add, 1, 2).result(PATIENCE_S) != 3:
            return 3
    return 0 if refused == len(attempts) else 4


def test_any_number_of_threads_may_submit(pool: OwnershipExecutor) -> None:
    """Law 69: submitting, asking, cancelling, dropping and mapping at once."""
    errors: list[BaseException] = []
    start = threading.Barrier(8)

    def work(index: int) -> None:
        try:
            start.wait(PATIENCE_S)
            chain: Any = index
            for number in range(60):
                chain = pool.submit(tasks.add, chain, 1)
                side = pool.submit(tasks.make_bytes, number, 150_000)
                if number % 3 == 0:
                    side.cancel()
                elif number % 3 == 1:
                    assert side.result(PATIENCE_S)[0] == number
            assert chain.result(PATIENCE_S) == index + 60
            squares = pool.map(tasks.add, range(50), range(50))
            assert list(squares) == list(range(0, 100, 2))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=[index]) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert errors == [] and not any(thread.is_alive() for thread in threads)
    at_rest(pool, 0)
