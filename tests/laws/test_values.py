"""Laws 1 to 7 and 9: values and futures."""

from __future__ import annotations

import os
import pickle
import threading
import time
import traceback
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from concurrent.futures import Future as AnyFuture
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from owndist import OwnershipExecutor
from owndist.errors import NotSerializable
from tests.parity.conftest import Bell, Gate

from . import tasks
from .conftest import MakePool
from .helpers import PATIENCE_S, store_bytes, template_of

INLINE_LIMIT = 102_400  # bytes of pickle and buffers


# Law 1


def test_a_future_resolves_once_although_its_task_ran_three_times(
    pool: OwnershipExecutor, diary: Path
) -> None:
    """Law 1."""
    seen: list[Any] = []
    future = pool.submit(tasks.die_until, str(diary), 2)
    future.add_done_callback(lambda done: seen.append(done.result()))
    assert future.result(PATIENCE_S) == 3
    assert pool.submit(tasks.add, 1, 2).result(PATIENCE_S) == 3  # whatever is late has come by now
    assert seen == [3]
    assert future.result() == 3


def test_a_future_resolves_once_when_cancel_races_with_the_task(single: OwnershipExecutor) -> None:
    """Law 1: either it was cancelled, or it has the value; never both, nor twice."""
    for number in range(200):
        seen: list[bool] = []
        future = single.submit(tasks.echo, number)
        future.add_done_callback(lambda done, seen=seen: seen.append(done.cancelled()))
        cancelled = future.cancel()
        if cancelled:
            with pytest.raises(CancelledError):
                future.result(PATIENCE_S)
        else:
            assert future.result(PATIENCE_S) == number
        assert single.submit(tasks.echo, None).result(PATIENCE_S) is None
        assert seen == [cancelled]


# Law 2


def test_futures_reach_a_task_as_values_wherever_they_are(pool: OwnershipExecutor) -> None:
    """Law 2."""
    one, two, large = (pool.submit(tasks.echo, n) for n in (1, 2, b"x" * 200_000))
    args, kwargs = pool.submit(
        tasks.capture,
        one,
        [two, [one, (two,)]],
        {"a": {"b": [one]}, two: "key"},
        {one, 5},
        frozenset([two]),
        (),
        k=large,
        nested=[{"deep": (large,)}],
    ).result(PATIENCE_S)
    assert args == (1, [2, [1, (2,)]], {"a": {"b": [1]}, 2: "key"}, {1, 5}, frozenset([2]), ())
    assert kwargs == {"k": b"x" * 200_000, "nested": [{"deep": (b"x" * 200_000,)}]}


def test_futures_are_found_in_all_containers_of_the_standard_library(
    pool: OwnershipExecutor,
) -> None:
    """Law 2."""
    future = pool.submit(tasks.echo, 1)
    made = defaultdict(int, x=future)
    given = [tasks.Pair(future, 2), OrderedDict(a=future, b=3), made, deque([future, 4], 2)]
    expected = [tasks.Pair(1, 2), OrderedDict(a=1, b=3), {"x": 1}, deque([1, 4], 2)]
    arrived = pool.submit(tasks.echo, given).result(PATIENCE_S)
    assert arrived == expected
    assert [type(item) for item in arrived] == [type(item) for item in given]
    assert (arrived[2].default_factory, arrived[3].maxlen) == (int, 2)
    assert pool.submit(partial(tasks.sum_of, future), future, 5).result(PATIENCE_S) == 7


def test_what_is_nested_too_deep_says_so(pool: OwnershipExecutor) -> None:
    """Law 67."""
    nested: list[Any] = []
    for _ in range(5000):
        nested = [nested]
    with pytest.raises(NotSerializable, match="argument 1: value.*recursion") as info:
        pool.submit(tasks.echo, nested).result(PATIENCE_S)
    assert len(str(info.value)) < 400


def test_a_result_that_cannot_be_unpickled_names_its_task(pool: OwnershipExecutor) -> None:
    """Law 67: by itself the error does not tell where it comes from."""
    future = pool.submit(tasks.make_bad_on_arrival, os.getpid())
    with pytest.raises(NotSerializable, match="the result of task 'make_bad_on_arrival'") as info:
        future.result(PATIENCE_S)
    assert info.value.__cause__ is not None


def test_shared_and_held_futures_reach_a_task_as_futures(pool: OwnershipExecutor) -> None:
    """Law 2: a borrow."""
    future = pool.submit(tasks.echo, "value")
    assert pool.submit(tasks.is_future, pool.shared(future)).result(PATIENCE_S) is True
    assert pool.submit(tasks.ask, pool.shared(future)).result(PATIENCE_S) == "value"
    assert pool.submit(tasks.ask_inside, tasks.Holder(future)).result(PATIENCE_S) == "value"
    assert pool.submit(lambda: future.result()).result(PATIENCE_S) == "value"
    assert pool.submit(lambda: isinstance(future, AnyFuture)).result(PATIENCE_S) is True


def test_a_shared_future_may_still_be_to_come(pool: OwnershipExecutor, gate: Gate) -> None:
    """Law 2: its task starts at once, and waits inside."""
    slow = pool.submit(tasks.pass_gate, gate.path, "value")
    asking = pool.submit(tasks.ask, pool.shared(slow))
    assert pool.submit(tasks.echo, "meanwhile").result(PATIENCE_S) == "meanwhile"
    assert not asking.done()
    gate.open()
    assert asking.result(PATIENCE_S) == "value"


def test_futures_of_other_executors_are_waited_for(
    pool: OwnershipExecutor, make_pool: MakePool, gate: Gate
) -> None:
    """Law 2."""
    other = make_pool(1)
    with ThreadPoolExecutor(1) as threads:
        from_thread = threads.submit(tasks.pass_gate, gate.path, 1)
        from_other = other.submit(tasks.make_bytes, 1)
        by_hand: AnyFuture[int] = AnyFuture()
        sum_ = pool.submit(lambda a, b, c: a + int(b[0]) + c["x"], from_thread, from_other,
                           {"x": by_hand})  # fmt: skip
        assert not sum_.done()
        gate.open()
        by_hand.set_result(40)
        assert sum_.result(PATIENCE_S) == 42


# Law 3


def test_a_body_starts_only_when_every_argument_is_there(
    pool: OwnershipExecutor, new_gate: Callable[[], Gate], bell: Bell
) -> None:
    """Law 3."""
    gates = [new_gate(), new_gate()]
    slow = [pool.submit(tasks.pass_gate, gate.path, bell.path) for gate in gates]
    started = pool.submit(lambda path, same: tasks.ring(path, path == same), *slow)
    gates[0].open()
    assert slow[0].result(PATIENCE_S) == bell.path
    assert pool.submit(tasks.add, 1, 2).result(PATIENCE_S) == 3  # there was a worker for it
    assert not bell.was_rung()
    gates[1].open()
    bell.wait()
    assert started.result(PATIENCE_S) is True


def test_waiting_for_arguments_costs_no_polling(
    pool: OwnershipExecutor, gate: Gate, bell: Bell
) -> None:
    """Law 3: while everybody waits, nobody wakes up."""
    slow = pool.submit(tasks.ring_and_pass, bell.path, gate.path, 1)
    idle = pool.submit(os.getpid).result(PATIENCE_S)
    bell.wait()
    chain = [slow]
    for _ in range(50):
        chain.append(pool.submit(tasks.add, chain[-1], 1))
    done = threading.Event()
    chain[-1].add_done_callback(lambda _: done.set())
    everybody = [psutil.Process(idle), template_of(idle), psutil.Process()]
    everybody += [child for child in template_of(idle).children() if child.pid != idle]
    done.wait(0.2)  # what was under way comes to rest
    before = sum(process.num_ctx_switches().voluntary for process in everybody)
    began = time.monotonic()
    assert not done.wait(0.5)
    wakeups = sum(process.num_ctx_switches().voluntary for process in everybody) - before
    # Polling every 10 ms would be 50 for each of five threads.
    assert wakeups / (time.monotonic() - began) < 30
    gate.open()
    assert chain[-1].result(PATIENCE_S) == 51


# Law 4


def test_an_argument_that_failed_keeps_the_body_from_running(
    pool: OwnershipExecutor, diary: Path
) -> None:
    """Law 4: through a chain, and with the first error's own type and story."""
    bad = pool.submit(tasks.raise_odd)
    after = pool.submit(tasks.write_down, str(diary), bad)
    last = pool.submit(tasks.write_down_and, str(diary), 2, [{"deep": after}])
    for future in (bad, after, last):
        error = future.exception(PATIENCE_S)
        assert type(error) is tasks.OddError
        assert (error.code, error.place) == (7, "the cellar")
        told = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        assert "in raise_odd" in told and "the inner one" in told
    assert diary.read_text() == ""


def test_an_error_says_which_of_many_alike_tasks_failed_first(pool: OwnershipExecutor) -> None:
    """Law 4: the same function runs under many names; the reader of the last one must know."""
    bad = pool.options(name="the first to fail").submit(tasks.fail, ValueError, "no")
    last = pool.options(name="the last").submit(tasks.echo, bad)
    error = last.exception(PATIENCE_S)
    assert type(error) is ValueError
    told = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    assert "the first to fail" in told


def test_an_argument_that_was_cancelled_cancels_the_task(
    single: OwnershipExecutor, gate: Gate, bell: Bell, diary: Path
) -> None:
    """Law 4."""
    first = single.submit(tasks.ring_and_pass, bell.path, gate.path)
    bell.wait()
    queued = single.submit(tasks.write_down, str(diary), 1)
    after = single.submit(tasks.write_down, str(diary), queued)
    last = single.submit(tasks.echo, [after])
    assert queued.cancel()
    for future in (queued, after, last):
        with pytest.raises(CancelledError):
            future.result(PATIENCE_S)
    gate.open()
    first.result(PATIENCE_S)
    assert single.submit(tasks.echo, 1).result(PATIENCE_S) == 1
    assert diary.read_text() == ""


# Law 5


@pytest.mark.parametrize("size", [1_000, tasks.LARGE, 5_000_000], ids=["inline", "large", "own"])
def test_nobody_sees_what_a_task_writes_to_its_argument(pool: OwnershipExecutor, size: int) -> None:
    """Law 5: neither another task, nor the next one in the same worker, nor the driver."""
    values = [pool.put(tasks.make_bytes(1, size)), pool.submit(tasks.make_bytes, 1, size)]
    for value in values:
        for _ in range(2):
            writers = [pool.submit(tasks.overwrite, value, fill) for fill in (7, 8, 9)]
            readers = [pool.submit(tasks.total, value) for _ in range(3)]
            assert [w.result(PATIENCE_S) for w in writers] == [7 * size, 8 * size, 9 * size]
            assert [r.result(PATIENCE_S) for r in readers] == [size] * 3
        mine = value.result(PATIENCE_S)
        assert tasks.total(mine) == size
        mine[:] = 5  # the driver may write, too
        assert pool.submit(tasks.total, value).result(PATIENCE_S) == size


def test_a_task_that_returns_its_changed_argument_makes_a_new_value(
    pool: OwnershipExecutor,
) -> None:
    """Law 5: what was given stays as it was."""
    given = pool.submit(tasks.make_bytes, 1)

    def change(array: Any) -> Any:
        array[0] = 99
        return array

    changed = pool.submit(change, given)
    assert changed.result(PATIENCE_S)[0] == 99
    assert given.result(PATIENCE_S)[0] == 1
    assert pool.submit(tasks.total, given).result(PATIENCE_S) == tasks.LARGE


# Laws 6 and 7


@pytest.mark.parametrize("size", [10, 200_000])
def test_a_result_asked_for_twice_is_the_same_and_keeps_identities(
    pool: OwnershipExecutor, size: int
) -> None:
    """Law 6."""
    one = list(range(size))
    future = pool.submit(lambda: [one] * 99)
    first, second = future.result(PATIENCE_S), future.result(PATIENCE_S)
    assert first == second and len(first) == 99
    assert all(item is first[0] for item in first)
    again = pool.submit(lambda lists: (lists[0] is lists[98], lists), future).result(PATIENCE_S)
    assert again[0] is True and again[1][0] is again[1][98]


def sized(kind: str, size: int) -> Any:
    """A value whose pickle stream and buffers take exactly so many bytes."""
    make: dict[str, Callable[[int], Any]] = {
        "bytes": bytes,
        "bytearray": bytearray,
        "text": lambda n: "é" + "x" * n,
        "array": lambda n: np.arange(n, dtype=np.uint8),
        "list": lambda n: [b"y" * n, {"a": (1, None)}],
        "Fortran array": lambda n: np.zeros((n, 2), np.uint8, order="F")[: n // 2],
    }
    length = size
    for _ in range(4):  # what goes around the bytes changes a little with their number
        parts: list[pickle.PickleBuffer] = []
        head = pickle.dumps(make[kind](length), 5, buffer_callback=parts.append)
        taken = len(head) + sum(len(part.raw()) for part in parts)
        length += size - taken
    return make[kind](length)


@pytest.mark.parametrize("kind", ["bytes", "bytearray", "text", "array", "list", "Fortran array"])
def test_crossing_the_inline_threshold_cannot_be_seen(pool: OwnershipExecutor, kind: str) -> None:
    """Law 7: as pickle protocol 5 would bring it, on both sides of the threshold, byte by byte."""
    for size in (INLINE_LIMIT - 1, INLINE_LIMIT, INLINE_LIMIT + 1, 10 * INLINE_LIMIT):
        value = sized(kind, size)
        parts: list[Any] = []
        head = pickle.dumps(value, 5, buffer_callback=parts.append)
        expected = pickle.loads(head, buffers=[bytearray(part.raw()) for part in parts])
        for future in (pool.submit(tasks.echo, value), pool.put(value)):
            got = future.result(PATIENCE_S)
            assert type(got) is type(expected)
            if isinstance(got, np.ndarray):
                assert got.dtype == expected.dtype and got.strides == expected.strides
                assert got.flags.writeable and np.array_equal(got, expected)
            else:
                assert got == expected
            del got, future


def test_crossing_the_inline_threshold_shows_in_the_statistics(pool: OwnershipExecutor) -> None:
    """Law 7."""
    pool.submit(int).result(PATIENCE_S)
    small = pool.put(sized("bytes", INLINE_LIMIT - 64))
    assert store_bytes(pool) == 0
    large = pool.put(sized("bytes", INLINE_LIMIT + 64))
    assert store_bytes(pool) >= INLINE_LIMIT
    assert len(small.result()) + 128 == len(large.result())


# Law 9


def test_a_chain_of_large_values_passes_the_driver_by(pool: OwnershipExecutor) -> None:
    """Law 9: under 1 KiB a task on a chain of 10 MiB values, and no byte of them in the driver."""
    pool.submit(tasks.plus_one, pool.submit(tasks.make_bytes, 0, 10)).result(PATIENCE_S)
    before = pool.statistics()
    value = pool.submit(tasks.make_bytes, 0, 10 << 20)
    for _ in range(20):
        value = pool.submit(tasks.plus_one, value)
    assert pool.submit(tasks.total, value).result(PATIENCE_S) == 20 * (10 << 20)
    after = pool.statistics()
    crossed = after.bytes_sent + after.bytes_received - before.bytes_sent - before.bytes_received
    assert crossed < 22 * 1024
    assert (after.bytes_mapped, after.bytes_put) == (before.bytes_mapped, before.bytes_put)
    assert value.exception() is None  # asked whether it failed, not for the value
    assert pool.statistics().bytes_mapped == before.bytes_mapped
    assert value.result()[0] == 20
    assert pool.statistics().bytes_mapped >= 10 << 20
