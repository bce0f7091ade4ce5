"""Law 10, and what else holds for tasks that return more than one value."""

from __future__ import annotations

import gc
from concurrent.futures import CancelledError, wait
from typing import Any

import pytest

from owndist import OwnershipExecutor
from owndist.errors import NotSerializable, WorkerDied
from tests.parity.conftest import Bell, Gate

from . import tasks
from .helpers import PATIENCE_S, at_rest, store_bytes


def two_arrays(first: int, second: int) -> tuple[Any, Any]:
    return tasks.make_bytes(first), tasks.make_bytes(second)


def as_they_are(*values: Any) -> Any:
    return values


def one_of_them(value: Any) -> Any:
    return value


def refuse(value: int) -> Any:
    return value, lambda: open("/dev/null"), (part for part in ())


def test_each_value_has_a_future_of_its_own(pool: OwnershipExecutor) -> None:
    """Laws 1, 2 and 37: a list of futures, each an ordinary one."""
    futures = pool.options(num_returns=3).submit(as_they_are, 1, "two", [3])
    assert isinstance(futures, list) and len(futures) == 3
    assert wait(futures, PATIENCE_S).not_done == set()
    assert [future.result() for future in futures] == [1, "two", [3]]
    first, second, _ = futures
    assert pool.submit(as_they_are, second, [first]).result(PATIENCE_S) == ("two", [1])


def test_one_value_is_the_value_itself(pool: OwnershipExecutor) -> None:
    """`num_returns=1` is the default: a tuple stays a tuple."""
    assert pool.options(num_returns=1).submit(as_they_are, 1).result(PATIENCE_S) == (1,)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ((1, 2, 3), "a tuple of 3"),
        ([1], "a list of 1"),
        ("ab", "one value, a str"),
        ({1: 2, 3: 4}, "one value, a dict"),
        (None, "one value, a NoneType"),
    ],
)
def test_another_number_of_values_fails_all(pool: OwnershipExecutor, value: Any, told: str) -> None:
    """Law 10: also where something else could be taken apart into as many."""
    futures = pool.options(num_returns=2, name="pair").submit(one_of_them, value)
    for future in futures:
        with pytest.raises(ValueError, match="'pair' returned " + told) as caught:
            future.result(PATIENCE_S)
        assert "num_returns=2" in str(caught.value)
    at_rest(pool, 2)


def test_values_are_freed_one_by_one(pool: OwnershipExecutor) -> None:
    """Laws 9 and 13: large ones lie in shared memory, each by itself."""
    a, b = pool.options(num_returns=2).submit(two_arrays, 1, 2)
    total = pool.submit(tasks.total, b).result(PATIENCE_S)
    both = store_bytes(pool)
    assert total == 2 * tasks.LARGE and both >= 2 * tasks.LARGE
    del a
    at_rest(pool, 1)
    assert tasks.LARGE <= store_bytes(pool) <= both // 2
    assert int(b.result()[0]) == 2
    del b
    at_rest(pool, 0)


def test_an_error_and_a_death_fail_all(pool: OwnershipExecutor) -> None:
    """Laws 4 and 46: every future is resolved, and so is what waits for one."""
    futures = pool.options(num_returns=2).submit(tasks.fail, "no")
    last = pool.submit(one_of_them, futures[1])
    kinds = {type(future.exception(PATIENCE_S)) for future in [*futures, last]}
    assert len(kinds) == 1 and kinds != {type(None)}
    dying = pool.options(num_returns=3, max_retries=0).submit(tasks.die)
    for future in dying:
        with pytest.raises(WorkerDied):
            future.result(PATIENCE_S)


def test_an_argument_that_cannot_be_sent_fails_all(pool: OwnershipExecutor) -> None:
    """As for one value: no error of `submit` itself."""
    futures = pool.options(num_returns=2).submit(one_of_them, (n for n in ()))
    for future in futures:
        with pytest.raises(NotSerializable):
            future.result(PATIENCE_S)


def test_a_value_that_cannot_be_pickled_fails_alone(pool: OwnershipExecutor) -> None:
    """Law 67."""
    number, function, generator = pool.options(num_returns=3).submit(refuse, 5)
    assert number.result(PATIENCE_S) == 5 and callable(function.result(PATIENCE_S))
    with pytest.raises(NotSerializable):
        generator.result(PATIENCE_S)


def test_cancel_of_one_cancels_all(single: OwnershipExecutor, gate: Gate, bell: Bell) -> None:
    """Law 65: there is one task behind them, and its body runs 0 times."""
    running = single.submit(tasks.ring_and_pass, bell.path, gate.path)
    bell.wait()
    futures = single.options(num_returns=3).submit(as_they_are, 1, 2, 3)
    assert futures[2].cancel()
    gate.open()
    for future in futures:
        with pytest.raises(CancelledError):
            future.result(PATIENCE_S)
    running.result(PATIENCE_S)
    assert single.statistics().tasks_cancelled == 1


def test_a_retry_fills_the_same_futures(pool: OwnershipExecutor, diary: Any) -> None:
    """Laws 32 and 37."""

    def die_once(path: str) -> tuple[int, int]:
        return tasks.die_until(path, 1), 7

    a, b = pool.options(num_returns=2).submit(die_once, str(diary))
    assert (a.result(PATIENCE_S), b.result(PATIENCE_S)) == (2, 7)
    del a, b
    gc.collect()
    at_rest(pool, 0)


@pytest.mark.parametrize("wrong", [0, -1, True, 1.5, "streaming", None])
def test_what_is_no_number_of_values_is_refused(pool: OwnershipExecutor, wrong: Any) -> None:
    """At once, with the name of the option; and a mistyped name is told the nearest."""
    with pytest.raises((TypeError, ValueError), match="num_returns"):
        pool.options(num_returns=wrong)
    with pytest.raises((TypeError, ValueError), match="stream_buffer"):
        pool.options(stream_buffer=wrong)
    with pytest.raises(TypeError, match="did you mean 'num_returns'"):
        pool.options(num_return=2)


def test_map_has_one_value_for_each_item(pool: OwnershipExecutor) -> None:
    """It would be unclear what its results are."""
    for wrong in (2, "stream"):
        with pytest.raises(ValueError, match="num_returns is for submit"):
            pool.options(num_returns=wrong).map(one_of_them, [1])
