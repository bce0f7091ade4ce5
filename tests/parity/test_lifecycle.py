"""Constructor, initializers and shutdown: the stdlib and owndist side by side."""

from __future__ import annotations

import concurrent.futures
import inspect
import os
import pickle
import threading
from concurrent.futures import CancelledError, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import psutil
import pytest

from . import tasks
from .conftest import PATIENCE_S, Bell, Flavour, Gate, MakePool
from .test_executor import Pool

# Making one


def test_an_executor_is_a_process_pool_executor(pool: Pool) -> None:
    """Law 8: adaptive, pipefunc and others ask."""
    assert isinstance(pool, ProcessPoolExecutor)
    assert isinstance(pool, concurrent.futures.Executor)


@pytest.mark.parametrize("max_workers", [0, -1])
def test_there_must_be_a_worker(flavour: Flavour, max_workers: int) -> None:
    with pytest.raises(ValueError, match="max_workers must be greater than 0"):
        flavour.make(max_workers)


def test_an_initializer_must_be_callable(flavour: Flavour) -> None:
    with pytest.raises(TypeError, match="initializer must be a callable"):
        flavour.make(1, initializer="not callable")


def test_the_default_is_at_least_one_worker(make_pool: MakePool) -> None:
    pool = make_pool(None)
    assert pool._max_workers >= 1  # type: ignore[attr-defined]  # dask and others read it
    assert pool.submit(tasks.add, 1, 2).result(PATIENCE_S) == 3


def test_the_first_four_parameters_may_be_positional(flavour: Flavour) -> None:
    with flavour.cls(1, flavour.context, tasks.keep, ("kept",)) as pool:
        assert pool.submit(tasks.read_kept).result(PATIENCE_S)[1:] == ("kept",)


def knows_max_tasks(flavour: Flavour) -> None:
    if "max_tasks_per_child" not in inspect.signature(flavour.cls).parameters:
        pytest.skip("the stdlib has max_tasks_per_child since 3.11")


@pytest.mark.parametrize("number", ["2", 1.5])
def test_max_tasks_per_child_must_be_an_integer(flavour: Flavour, number: Any) -> None:
    knows_max_tasks(flavour)
    with pytest.raises(TypeError, match="max_tasks_per_child must be an integer"):
        flavour.cls(1, max_tasks_per_child=number)


@pytest.mark.parametrize("number", [0, -1])
def test_max_tasks_per_child_must_be_positive(flavour: Flavour, number: int) -> None:
    knows_max_tasks(flavour)
    with pytest.raises(ValueError, match="max_tasks_per_child must be >= 1"):
        flavour.cls(1, max_tasks_per_child=number)


def test_a_worker_is_replaced_after_its_number_of_tasks(flavour: Flavour) -> None:
    """Without a context asked for: the stdlib then takes spawn."""
    knows_max_tasks(flavour)
    with flavour.cls(1, max_tasks_per_child=2) as pool:
        pids = [pool.submit(os.getpid).result(PATIENCE_S) for _ in range(5)]
    assert pids[0] == pids[1] != pids[2] == pids[3] != pids[4]
    assert len(set(pids)) == 3


def test_an_executor_cannot_be_pickled(pool: Pool) -> None:
    with pytest.raises((TypeError, pickle.PicklingError)):
        pickle.dumps(pool)


# Initializers


@pytest.mark.every_start_method
def test_an_initializer_runs_once_in_each_worker(make_pool: MakePool, new_gate: Any) -> None:
    pool = make_pool(2, initializer=tasks.keep, initargs=("kept",))
    bolt = new_gate()
    at_once = [pool.submit(tasks.read_kept_at, bolt.path) for _ in range(2)]
    bolt.open()
    later = [pool.submit(tasks.read_kept) for _ in range(10)]
    kept = {future.result(PATIENCE_S) for future in at_once + later}
    assert {value for _, value in kept} == {"kept"}
    assert len(kept) <= 2  # the first field is the process that ran the initializer
    assert os.getpid() not in {pid for pid, _ in kept}
    assert tasks.from_initializer is None  # not in the driver


@pytest.mark.every_start_method
def test_an_initializer_may_get_a_lock_and_a_shared_value(
    flavour: Flavour, make_pool: MakePool
) -> None:
    """They can only be inherited, never sent: the classic use of initargs."""
    lock, counter = flavour.context.Lock(), flavour.context.RawValue("i", 0)
    pool = make_pool(2, initializer=tasks.keep, initargs=(lock, counter))
    for future in [pool.submit(tasks.count_up, 50) for _ in range(8)]:
        future.result(PATIENCE_S)
    assert counter.value == 400


@pytest.mark.every_start_method
def test_an_initializer_may_get_a_queue(flavour: Flavour, make_pool: MakePool) -> None:
    queue = flavour.context.Queue()
    pool = make_pool(2, initializer=tasks.keep, initargs=(queue,))
    for number in range(10):
        pool.submit(tasks.put_into_queue, number)
    assert sorted(queue.get(timeout=PATIENCE_S) for _ in range(10)) == list(range(10))
    pool.shutdown()
    queue.close()
    queue.join_thread()


@pytest.mark.every_start_method
def test_what_an_initializer_puts_into_a_queue_arrives(
    flavour: Flavour, make_pool: MakePool
) -> None:
    """Its arguments live as long as the worker, also if it keeps none of them."""
    queue = flavour.context.Queue()
    pool = make_pool(1, initializer=tasks.put_all, initargs=(queue, 100))
    pool.submit(tasks.add, 1, 2).result(PATIENCE_S)
    assert [queue.get(timeout=PATIENCE_S) for _ in range(100)] == list(range(100))
    pool.shutdown()
    queue.close()
    queue.join_thread()


@pytest.mark.every_start_method
def test_a_failing_initializer_breaks_the_pool(make_pool: MakePool) -> None:
    pool = make_pool(2, initializer=tasks.fail, initargs=(ValueError, "no start"))
    future = pool.submit(tasks.add, 1, 2)
    with pytest.raises(BrokenProcessPool):
        future.result(PATIENCE_S)
    with pytest.raises(BrokenProcessPool):
        pool.submit(tasks.add, 1, 2).result(PATIENCE_S)


@pytest.mark.every_start_method
def test_what_a_failing_initializer_put_into_a_queue_is_there_when_the_pool_is_broken(
    flavour: Flavour, make_pool: MakePool
) -> None:
    """Logs go that way: the worker ends in order, and only then is the pool told to be broken."""
    queue = flavour.context.Queue()
    pool = make_pool(1, initializer=tasks.put_and_fail, initargs=(queue, tasks.SlowToPickle()))
    error = pool.submit(tasks.add, 1, 2).exception(PATIENCE_S)
    assert isinstance(error, BrokenProcessPool)
    assert queue.get_nowait() == "pickled slowly"
    pool.shutdown()
    queue.close()
    queue.join_thread()


# Shutdown


@pytest.mark.every_start_method
def test_leaving_the_context_waits_for_the_results(
    flavour: Flavour, gate: Gate, bell: Bell
) -> None:
    with flavour.make(2) as pool:
        futures = [pool.submit(tasks.pass_gate, gate.path, n) for n in range(10)]
        ringing = pool.submit(tasks.ring, bell.path, "rung")
        gate.open()
    assert all(future.done() for future in futures)
    assert [future.result(0) for future in futures] == list(range(10))
    assert ringing.result(0) == "rung"


def test_an_error_inside_the_context_passes_and_the_work_is_done(
    flavour: Flavour, diary: Path
) -> None:
    """Law 27: and nothing is left."""
    with pytest.raises(LookupError, match="mine"):
        with flavour.make(2) as pool:
            futures = [pool.submit(tasks.write_down, str(diary), n) for n in range(10)]
            raise LookupError("mine")
    assert [future.result(0) for future in futures] == list(range(10))
    assert len(diary.read_text().split()) == 10


@pytest.mark.parametrize("wait", [True, False])
def test_submit_after_shutdown_is_a_runtime_error(pool: Pool, wait: bool) -> None:
    pool.submit(tasks.add, 1, 2)
    pool.shutdown(wait=wait)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        pool.submit(tasks.add, 1, 2)


def test_shutdown_may_be_called_again_and_before_any_task(pool: Pool) -> None:
    pool.shutdown()
    pool.shutdown(wait=False)
    pool.shutdown(wait=True, cancel_futures=True)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        pool.submit(tasks.add, 1, 2)


def test_shutdown_ends_every_worker(pool: Pool) -> None:
    """Law 27."""
    pids = {future.result(PATIENCE_S) for future in [pool.submit(os.getpid) for _ in range(20)]}
    pool.shutdown()
    assert not [pid for pid in pids if psutil.pid_exists(pid)]


def test_results_can_be_read_after_shutdown(pool: Pool) -> None:
    small, large = pool.submit(tasks.add, 1, 2), pool.submit(tasks.echo, b"x" * 3_000_000)
    failed = pool.submit(tasks.fail, ValueError, "late")
    pool.shutdown()
    assert small.result(0) == 3
    assert large.result(0) == b"x" * 3_000_000
    assert isinstance(failed.exception(0), ValueError)


@pytest.mark.every_start_method
def test_shutdown_without_waiting_lets_the_tasks_finish(pool: Pool, gate: Gate) -> None:
    futures = [pool.submit(tasks.pass_gate, gate.path, n) for n in range(10)]
    pool.shutdown(wait=False)
    assert not futures[0].done()
    gate.open()
    assert [future.result(PATIENCE_S) for future in futures] == list(range(10))


def test_shutdown_may_wait_after_one_that_did_not(pool: Pool, gate: Gate) -> None:
    future = pool.submit(tasks.pass_gate, gate.path, "through")
    pool.shutdown(wait=False)
    gate.open()
    assert future.result(PATIENCE_S) == "through"
    pool.shutdown(wait=True)


@pytest.mark.every_start_method
def test_shutdown_with_cancel_drops_what_has_not_begun(
    single: Pool, gate: Gate, bell: Bell, diary: Path
) -> None:
    """Law 65: their bodies run 0 times, and the running one is left alone."""
    running = single.submit(tasks.ring_and_pass, bell.path, gate.path, "through")
    queued = [single.submit(tasks.write_down, str(diary), n) for n in range(20)]
    bell.wait()
    last_is_cancelled = threading.Event()
    queued[-1].add_done_callback(lambda _: last_is_cancelled.set())
    closer = threading.Thread(target=single.shutdown, kwargs={"cancel_futures": True})
    closer.start()
    assert last_is_cancelled.wait(PATIENCE_S)  # while the first task still runs
    gate.open()
    closer.join()
    assert running.result(0) == "through"
    assert all(future.done() for future in queued)
    cancelled = [future for future in queued if future.cancelled()]
    assert len(cancelled) > 10  # those handed to the worker ahead may still run
    with pytest.raises(CancelledError):
        cancelled[0].result(0)
    ran = [int(line) for line in diary.read_text().split()]
    assert ran == [n for n, future in enumerate(queued) if not future.cancelled()]


def test_shutdown_waits_while_another_thread_waits_for_a_result(pool: Pool, gate: Gate) -> None:
    future = pool.submit(tasks.pass_gate, gate.path, "through")
    seen: list[str] = []
    reader = threading.Thread(target=lambda: seen.append(future.result(PATIENCE_S)))
    closer = threading.Thread(target=pool.shutdown)
    reader.start()
    closer.start()
    gate.open()
    closer.join()
    reader.join()
    assert seen == ["through"]


def kills_workers(flavour: Flavour, name: str) -> None:
    if not hasattr(flavour.cls, name):
        pytest.skip("the stdlib has it since 3.14")


@pytest.mark.parametrize("name", ["terminate_workers", "kill_workers"])
def test_workers_can_be_ended_by_force(
    flavour: Flavour, pool: Pool, gate: Gate, bell: Bell, name: str
) -> None:
    kills_workers(flavour, name)
    running = pool.submit(tasks.ring_and_pass, bell.path, gate.path)
    queued = [pool.submit(tasks.pass_gate, gate.path) for _ in range(20)]
    bell.wait()
    ended = threading.Semaphore(0)
    for future in queued:
        future.add_done_callback(lambda _: ended.release())
    getattr(pool, name)()
    with pytest.raises(BrokenProcessPool):
        running.result(PATIENCE_S)
    for _ in queued:
        assert ended.acquire(timeout=PATIENCE_S)
    for future in queued:
        assert future.cancelled() or isinstance(future.exception(0), BrokenProcessPool)
    with pytest.raises(RuntimeError):
        pool.submit(tasks.add, 1, 2)
