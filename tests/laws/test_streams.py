"""Law 70: the values of a generator task, one by one."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest

from owndist import FutureStream, OwnershipExecutor
from owndist.errors import NotSerializable, WorkerDied
from tests.parity.conftest import Bell, Gate

from . import tasks
from .helpers import PATIENCE_S, at_rest, entries, eventually, store_bytes


def numbers(count: int) -> Iterator[int]:
    yield from range(count)


def arrays(count: int) -> Iterator[Any]:
    for number in range(count):
        yield tasks.make_bytes(number)


def endless(path: str = os.devnull) -> Iterator[Any]:
    """Writes down how often it was asked, and that it was closed."""
    number = 0
    try:
        while True:
            tasks.write_down(path, number)
            yield tasks.make_bytes(number % 256)
            number += 1
    finally:
        tasks.write_down(path, "closed")


def fail_after(count: int) -> Iterator[int]:
    yield from range(count)
    raise ZeroDivisionError("as was to be expected")


def stop_at_gate(gate: str) -> Iterator[str]:
    yield "before"
    tasks.pass_gate(gate)
    yield "after"


def die_in_the_middle(path: str, count: int, deaths: int) -> Iterator[Any]:
    """The first executions get on by three values each before they die."""
    tasks.write_down(path, "start")
    starts = Path(path).read_text().count("start")
    for number in range(count):
        if starts <= deaths and number == 3 * starts:
            os.kill(os.getpid(), signal.SIGKILL)
        yield tasks.make_bytes(number)


def with_a_bad_one() -> Iterator[Any]:
    yield 1
    yield (part for part in ())
    yield 3


def stream_of(pool: OwnershipExecutor, fn: Any, *args: Any, **options: Any) -> FutureStream[Any]:
    stream = pool.options(num_returns="stream", **options).submit(fn, *args)
    assert isinstance(stream, FutureStream)
    return stream


def test_values_come_in_order_as_done_futures(pool: OwnershipExecutor) -> None:
    """Law 70."""
    futures = list(stream_of(pool, numbers, 100))
    assert all(future.done() for future in futures)
    assert [future.result() for future in futures] == list(range(100))
    assert list(stream_of(pool, numbers, 0)) == []
    del futures
    at_rest(pool, 0)


def test_a_value_can_be_used_while_the_generator_goes_on(
    pool: OwnershipExecutor, gate: Gate
) -> None:
    """Law 70: the generator stands at a gate that opens only after the value was used."""
    stream = stream_of(pool, stop_at_gate, gate.path)
    assert pool.submit(tasks.echo, next(stream)).result(PATIENCE_S) == "before"
    gate.open()
    assert [future.result() for future in stream] == ["after"]


def test_an_error_comes_at_its_place(pool: OwnershipExecutor) -> None:
    """Law 70: as a future that raises it; then the stream ends."""
    *good, bad = stream_of(pool, fail_after, 3)
    assert [future.result() for future in good] == [0, 1, 2]
    with pytest.raises(ZeroDivisionError, match="expected"):
        bad.result()
    with pytest.raises(ZeroDivisionError):
        pool.submit(tasks.echo, bad).result(PATIENCE_S)


def test_an_iterable_will_do_and_anything_else_is_told(pool: OwnershipExecutor) -> None:
    """A list is gone through; a number fails the first future."""
    assert [f.result() for f in stream_of(pool, tasks.echo, [1, [2]])] == [1, [2]]
    [bad] = stream_of(pool, tasks.echo, 5, name="five")
    with pytest.raises(TypeError, match="'five' returned one value, of type int"):
        bad.result()


def test_a_value_that_cannot_be_pickled_fails_alone(pool: OwnershipExecutor) -> None:
    """Law 67."""
    one, bad, three = stream_of(pool, with_a_bad_one)
    assert (one.result(), three.result()) == (1, 3)
    with pytest.raises(NotSerializable):
        bad.result()


def test_what_cannot_be_sent_or_run_is_the_only_future(pool: OwnershipExecutor) -> None:
    """Law 4, and as for other tasks: no error of `submit` itself."""
    [unsent] = stream_of(pool, tasks.echo, (n for n in ()))
    with pytest.raises(NotSerializable):
        unsent.result()
    failed = pool.submit(tasks.fail, "no")
    [unrun] = stream_of(pool, numbers, failed)
    assert type(unrun.exception()) is type(failed.exception(PATIENCE_S))


@pytest.mark.parametrize("buffer", [1, 4])
def test_no_more_values_exist_than_the_buffer_holds(
    pool: OwnershipExecutor, diary: Path, buffer: int
) -> None:
    """Laws 57 and 70: seen in the store, and by the generator itself."""
    stream = stream_of(pool, endless, str(diary), stream_buffer=buffer)
    for taken in range(1, 20):
        future = next(stream)
        assert int(future.result()[0]) == taken - 1
        del future
        assert store_bytes(pool) <= (buffer + 1) * (tasks.LARGE + 4096)
        assert len(diary.read_text().split()) <= taken + buffer
    stream.close()
    at_rest(pool, 0)


def test_a_paused_generator_lends_its_workers_place(single: OwnershipExecutor) -> None:
    """Law 53: with one worker, each value is waited for before the next is taken."""
    stream = stream_of(single, arrays, 12, stream_buffer=2)
    assert [single.submit(tasks.total, f).result(PATIENCE_S) for f in stream] == [
        number * tasks.LARGE for number in range(12)
    ]


@pytest.mark.parametrize("how", ["close", "with", "collected"])
def test_a_stream_that_is_left_closes_its_generator(
    pool: OwnershipExecutor, diary: Path, how: str
) -> None:
    """Law 70: what nobody took is freed, and `finally` runs in the worker."""
    stream = stream_of(pool, endless, str(diary), stream_buffer=3)
    kept = next(stream)
    if how == "with":
        with stream:
            next(stream)
    elif how == "close":
        stream.close()
        stream.close()
    if how != "collected":
        assert list(stream) == []
    del stream
    gc.collect()
    eventually(lambda: "closed" in diary.read_text(), "the generator is not closed")
    assert diary.read_text().split()[-1] == "closed"
    at_rest(pool, 1)
    assert int(kept.result()[0]) == 0
    assert pool.submit(tasks.add, 1, 2).result(PATIENCE_S) == 3


def test_a_stream_that_is_closed_before_it_starts_never_does(
    single: OwnershipExecutor, gate: Gate, bell: Bell, diary: Path
) -> None:
    """Law 65."""
    running = single.submit(tasks.ring_and_pass, bell.path, gate.path)
    bell.wait()
    stream_of(single, endless, str(diary)).close()
    gate.open()
    running.result(PATIENCE_S)
    single.submit(tasks.add, 1, 2).result(PATIENCE_S)
    assert not diary.exists() or not diary.read_text()


def test_a_death_in_the_middle_repeats_no_value(pool: OwnershipExecutor, diary: Path) -> None:
    """Laws 1, 32 and 37: three executions die, and what was delivered is passed over."""
    stream = stream_of(pool, die_in_the_middle, str(diary), 20, 3, stream_buffer=2)
    assert [int(future.result()[0]) for future in stream] == list(range(20))
    assert diary.read_text().count("start") == 4
    assert pool.statistics().tasks_retried == 3
    del stream
    at_rest(pool, 0)


def test_the_last_death_is_an_error_at_its_place(pool: OwnershipExecutor, diary: Path) -> None:
    """Law 46: no value is lost that was there, and the stream ends."""
    *good, bad = stream_of(pool, die_in_the_middle, str(diary), 20, 9, max_retries=1)
    assert [int(future.result()[0]) for future in good] == list(range(6))
    with pytest.raises(WorkerDied):
        bad.result()


def test_leaving_the_executor_does_not_wait_for_a_reader(diary: Path) -> None:
    """What is there stays readable; that there was more is told."""
    with OwnershipExecutor(1) as pool:
        stream = stream_of(pool, endless, str(diary), stream_buffer=3)
        short = stream_of(pool, numbers, 2)
    *good, last = stream
    assert [int(future.result()[0]) for future in good] == [0, 1, 2]
    with pytest.raises(CancelledError):
        last.result()
    assert [future.result() for future in short] == [0, 1]
    assert diary.read_text().split()[-1] == "closed"


def test_an_executor_that_only_its_stream_knows_goes_on() -> None:
    """It is not garbage while values are to come."""
    stream = stream_of(OwnershipExecutor(1), numbers, 100)
    gc.collect()
    assert [future.result() for future in stream] == list(range(100))


def test_killed_workers_end_a_stream(pool: OwnershipExecutor, gate: Gate) -> None:
    """`kill_workers`: whoever waits is told."""
    stream = stream_of(pool, stop_at_gate, gate.path)
    assert next(stream).result() == "before"
    pool.kill_workers()
    [bad] = stream
    assert bad.exception() is not None


def test_it_can_be_gone_through_asynchronously(pool: OwnershipExecutor) -> None:
    """`async for`, two of them at the same time."""

    async def collect(count: int) -> list[int]:
        return [await future async for future in stream_of(pool, numbers, count, stream_buffer=2)]

    async def both() -> list[list[int]]:
        return await asyncio.gather(collect(30), collect(20))

    assert asyncio.run(both()) == [list(range(30)), list(range(20))]


def test_a_callback_can_go_through_a_stream(pool: OwnershipExecutor) -> None:
    """It runs in the reader, which goes on reading meanwhile."""
    found: list[list[int]] = []
    stream = stream_of(pool, numbers, 40, stream_buffer=2)
    first = pool.submit(tasks.add, 1, 2)
    first.add_done_callback(lambda _: found.append([f.result() for f in stream]))
    first.result(PATIENCE_S)
    eventually(lambda: found, "the callback does not come to its end")
    assert found == [list(range(40))]


def test_it_cannot_be_pickled_and_tells_its_state(pool: OwnershipExecutor) -> None:
    """For one reader; the futures are what is handed on."""
    stream = stream_of(pool, numbers, 1, name="one")
    with pytest.raises(TypeError, match="hand on the futures"):
        pickle.dumps(stream)
    assert len(list(stream)) == 1
    assert repr(stream) == "<FutureStream one: 0 to take, ended>"
    del stream
    assert entries(pool) == 0


@pytest.mark.slow
@pytest.mark.parametrize("how", ["exit", "interrupt"])
def test_a_program_with_an_open_stream_ends(how: str) -> None:
    """Law 68, and at exit: nobody takes what the stream has, and nothing hangs."""
    program = f"""
import itertools, os, signal
from owndist import OwnershipExecutor
executor = OwnershipExecutor(1)
stream = executor.options(num_returns="stream").submit(itertools.count)
print(next(stream).result())
if {how!r} == "interrupt":
    stopped = executor.options(num_returns="stream").submit(input)
    os.kill(os.getpid(), signal.SIGINT)
    list(stream)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.stdout == "0\n"
    if how == "exit":
        assert (done.returncode, done.stderr) == (0, "")
    else:
        assert "KeyboardInterrupt" in done.stderr
