"""map, wait, as_completed and asyncio: the stdlib and owndist side by side."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import itertools
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION
from pathlib import Path
from typing import Any

import pytest

from . import tasks
from .conftest import PATIENCE_S, Bell, Flavour, Gate
from .test_executor import Pool

# map


@pytest.mark.every_start_method
@pytest.mark.parametrize("chunksize", [None, 1, 3, 10, 1000])
def test_map_yields_results_in_the_order_of_its_arguments(
    pool: Pool, chunksize: int | None
) -> None:
    """Law 8."""
    chunks = {} if chunksize is None else {"chunksize": chunksize}
    assert list(pool.map(tasks.add, range(10), range(10), **chunks)) == list(range(0, 20, 2))


def test_map_keeps_the_order_when_later_calls_end_first(
    pool: Pool, new_gate: Callable[[], Gate]
) -> None:
    gates = [new_gate(), new_gate()]
    gates[1].open()
    results = pool.map(tasks.pass_gate, [gate.path for gate in gates], ["first", "second"])
    gates[0].open()
    assert list(results) == ["first", "second"]


@pytest.mark.parametrize("chunksize", [1, 4])
def test_map_stops_at_the_shortest_iterable(pool: Pool, chunksize: int) -> None:
    results = pool.map(tasks.add, [1, 2, 3], itertools.count(), chunksize=chunksize)
    assert list(results) == [1, 3, 5]


def test_map_of_nothing_is_nothing(pool: Pool) -> None:
    assert list(pool.map(tasks.add, [], [])) == []
    assert list(pool.map(tasks.add)) == []


@pytest.mark.parametrize("chunksize", [0, -1])
def test_map_refuses_a_chunksize_below_one(pool: Pool, chunksize: int) -> None:
    with pytest.raises(ValueError, match="chunksize"):
        list(pool.map(tasks.echo, [1], chunksize=chunksize))


def test_map_raises_at_the_place_of_the_failing_call_and_ends(pool: Pool) -> None:
    results = pool.map(tasks.raise_if_three, range(6))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)
    with pytest.raises(StopIteration):
        next(results)


def test_a_failing_chunk_fails_as_a_whole(pool: Pool) -> None:
    results = pool.map(tasks.raise_if_three, range(6), chunksize=2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="three"):
        next(results)


def test_map_submits_before_it_is_iterated(pool: Pool, bell: Bell) -> None:
    results = pool.map(tasks.ring, [bell.path] * 3, range(3))
    bell.wait(3)
    assert list(results) == [0, 1, 2]


def test_map_takes_its_arguments_in_the_thread_of_the_caller(pool: Pool) -> None:
    threads = []

    def arguments() -> Iterator[int]:
        threads.append(threading.current_thread())
        yield from range(5)

    results = pool.map(tasks.echo, arguments())
    assert threads == [threading.current_thread()]
    assert list(results) == list(range(5))


def test_map_passes_on_an_error_of_its_iterable(pool: Pool) -> None:
    def arguments() -> Iterator[int]:
        yield 1
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        pool.map(tasks.echo, arguments())
    assert pool.submit(tasks.add, 1, 1).result(PATIENCE_S) == 2


def test_map_times_out_at_the_call_that_is_late(pool: Pool, gate: Gate) -> None:
    open_first = pool.submit(tasks.add, 1, 1)
    open_first.result(PATIENCE_S)  # the workers are up: the time limit is for the calls
    results = pool.map(tasks.pass_gate, [gate.path], timeout=0.05)
    with pytest.raises(concurrent.futures.TimeoutError):
        next(results)


def test_map_is_refused_after_shutdown(pool: Pool) -> None:
    pool.shutdown()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        pool.map(tasks.echo, [1])


def test_closing_the_results_of_map_cancels_the_calls_not_yet_begun(
    single: Pool, gate: Gate, diary: Path
) -> None:
    """Law 65: they never run."""
    results = single.map(
        tasks.pass_gate_unless_zero, [gate.path] * 50, [str(diary)] * 50, range(50)
    )
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]  # the stdlib's is a generator too
    gate.open()
    single.shutdown()
    done = [int(line) for line in diary.read_text().split()]
    # Not only the first ones: the worker goes on while one after the other is cancelled.
    assert done == sorted(done)
    assert len(done) < 25


def test_map_does_not_keep_results_it_has_yielded(pool: Pool) -> None:
    for box in pool.map(tasks.Box, range(5)):
        seen = weakref.ref(box)
        del box
        gc.collect()
        assert seen() is None


# map with a buffer: the stdlib's has one since 3.14, ours on every Python


def needs_buffersize(flavour: Flavour) -> None:
    if not flavour.is_ours and sys.version_info < (3, 14):
        pytest.skip("map has buffersize since 3.14")


@pytest.mark.parametrize("buffersize", [1, 2, 7, 100])
def test_map_with_a_buffer_yields_the_same(flavour: Flavour, pool: Pool, buffersize: int) -> None:
    """Law 8."""
    needs_buffersize(flavour)
    results = pool.map(tasks.add, range(20), range(20), buffersize=buffersize)  # type: ignore[call-arg]
    assert list(results) == list(range(0, 40, 2))


def test_map_with_a_buffer_takes_no_more_arguments_than_fit(flavour: Flavour, pool: Pool) -> None:
    """Law 8: an endless iterable is no trouble."""
    needs_buffersize(flavour)
    taken = itertools.count()
    results = pool.map(tasks.echo, taken, buffersize=4)  # type: ignore[call-arg]
    assert next(taken) == 4  # so 0 to 3 were taken; this takes one away from map
    assert [next(results) for _ in range(6)] == [0, 1, 2, 3, 5, 6]
    assert next(taken) == 11
    results.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("buffersize", [0, -1])
def test_map_refuses_a_buffer_below_one(flavour: Flavour, pool: Pool, buffersize: int) -> None:
    needs_buffersize(flavour)
    with pytest.raises(ValueError, match="buffersize"):
        pool.map(tasks.echo, [1], buffersize=buffersize)  # type: ignore[call-arg]


@pytest.mark.parametrize("buffersize", [1.5, "2"])
def test_map_refuses_a_buffer_that_is_no_integer(
    flavour: Flavour, pool: Pool, buffersize: Any
) -> None:
    needs_buffersize(flavour)
    with pytest.raises(TypeError, match="buffersize"):
        pool.map(tasks.echo, [1], buffersize=buffersize)


# wait and as_completed


def test_wait_returns_at_the_first_completed(pool: Pool, gate: Gate) -> None:
    held = pool.submit(tasks.pass_gate, gate.path)
    quick = pool.submit(tasks.add, 1, 2)
    done, not_done = concurrent.futures.wait([held, quick], PATIENCE_S, FIRST_COMPLETED)
    assert done == {quick}
    assert not_done == {held}


def test_wait_returns_at_the_first_exception(pool: Pool, gate: Gate) -> None:
    held = pool.submit(tasks.pass_gate, gate.path)
    quick = pool.submit(tasks.add, 1, 2)
    quick.result(PATIENCE_S)
    failing = pool.submit(tasks.fail, ValueError)
    done, not_done = concurrent.futures.wait([held, quick, failing], PATIENCE_S, FIRST_EXCEPTION)
    assert done == {quick, failing}
    assert not_done == {held}


def test_wait_for_all_counts_failed_and_cancelled_ones(
    single: Pool, gate: Gate, bell: Bell
) -> None:
    held = single.submit(tasks.ring_and_pass, bell.path, gate.path)
    failing = single.submit(tasks.fail, ValueError)
    queued = [single.submit(tasks.add, n, n) for n in range(10)]
    bell.wait()
    assert queued[9].cancel()
    gate.open()
    futures = [held, failing, *queued]
    done, not_done = concurrent.futures.wait(futures, PATIENCE_S, ALL_COMPLETED)
    assert done == set(futures)
    assert not_done == set()


def test_wait_times_out_with_what_it_has(pool: Pool, gate: Gate) -> None:
    held = pool.submit(tasks.pass_gate, gate.path)
    quick = pool.submit(tasks.add, 1, 2)
    quick.result(PATIENCE_S)
    done, not_done = concurrent.futures.wait([held, quick, quick], timeout=0)
    assert (done, not_done) == ({quick}, {held})


@pytest.mark.every_start_method
def test_as_completed_yields_in_the_order_of_completion(
    pool: Pool, new_gate: Callable[[], Gate]
) -> None:
    gates = [new_gate(), new_gate()]
    held = [pool.submit(tasks.pass_gate, gate.path, n) for n, gate in enumerate(gates)]
    completed = concurrent.futures.as_completed(held, PATIENCE_S)
    gates[1].open()
    assert next(completed) is held[1]
    gates[0].open()
    assert next(completed) is held[0]
    assert list(completed) == []


def test_as_completed_times_out_and_tells_how_many_are_left(pool: Pool, gate: Gate) -> None:
    held = pool.submit(tasks.pass_gate, gate.path)
    quick = pool.submit(tasks.add, 1, 2)
    quick.result(PATIENCE_S)
    completed = concurrent.futures.as_completed([held, quick], timeout=0)
    assert next(completed) is quick
    with pytest.raises(concurrent.futures.TimeoutError, match=r"1 \(of 2\) futures unfinished"):
        next(completed)


def test_as_completed_yields_a_cancelled_future(single: Pool, gate: Gate, bell: Bell) -> None:
    """Law 65."""
    held = single.submit(tasks.ring_and_pass, bell.path, gate.path)
    queued = [single.submit(tasks.add, n, n) for n in range(10)]
    bell.wait()
    completed = concurrent.futures.as_completed([held, *queued], PATIENCE_S)
    assert queued[9].cancel()
    gate.open()
    assert set(completed) == {held, *queued}


def test_futures_of_two_executors_can_be_waited_for_together(pool: Pool, gate: Gate) -> None:
    quick = pool.submit(tasks.add, 1, 2)
    quick.result(PATIENCE_S)
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        in_thread = threads.submit(gate.open)
        held = pool.submit(tasks.pass_gate, gate.path)
        done, not_done = concurrent.futures.wait([quick, in_thread, held], PATIENCE_S)
    assert done == {quick, in_thread, held}
    assert not_done == set()


# asyncio


def test_a_coroutine_may_run_tasks_in_the_executor(pool: Pool) -> None:
    """Law 8."""

    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        calls = [loop.run_in_executor(pool, tasks.add, n, n) for n in range(5)]
        return await asyncio.gather(*calls)

    assert asyncio.run(main()) == [0, 2, 4, 6, 8]


def test_a_coroutine_may_await_a_wrapped_future(pool: Pool) -> None:
    """Law 8."""

    async def main() -> Any:
        return await asyncio.wrap_future(pool.submit(tasks.echo, {"large": "x" * 500_000}))

    assert asyncio.run(main()) == {"large": "x" * 500_000}


def test_a_coroutine_sees_the_error_of_a_task(pool: Pool) -> None:
    async def main() -> None:
        await asyncio.wrap_future(pool.submit(tasks.fail, LookupError, "gone"))

    with pytest.raises(LookupError, match="gone"):
        asyncio.run(main())


def test_cancelling_a_wrapped_future_cancels_the_queued_task(
    single: Pool, gate: Gate, bell: Bell, diary: Path
) -> None:
    """Law 65."""
    single.submit(tasks.ring_and_pass, bell.path, gate.path)
    queued = [single.submit(tasks.write_down, str(diary), n) for n in range(10)]
    bell.wait()

    async def main() -> None:
        wrapped = asyncio.wrap_future(queued[9])
        wrapped.cancel()
        with pytest.raises(asyncio.CancelledError):
            await wrapped

    asyncio.run(main())
    assert queued[9].cancelled()
    gate.open()
    single.shutdown()
    assert diary.read_text().split() == [str(n) for n in range(9)]


def test_a_coroutine_that_gives_up_waiting_leaves_the_running_task_alone(
    pool: Pool, gate: Gate, bell: Bell
) -> None:
    running = pool.submit(tasks.ring_and_pass, bell.path, gate.path, "through")
    bell.wait()

    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.wrap_future(running), 0.01)

    asyncio.run(main())
    gate.open()
    assert running.result(PATIENCE_S) == "through"
