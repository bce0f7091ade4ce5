"""Submitting, results, errors, callbacks and cancelling: the stdlib and owndist side by side."""

from __future__ import annotations

import concurrent.futures
import functools
import logging
import operator
import os
import pickle
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from . import tasks
from .conftest import PATIENCE_S, Bell, Flavour, Gate, MakePool

Pool = ProcessPoolExecutor


# Submitting


@pytest.mark.every_start_method
def test_submit_runs_the_call_in_another_process(pool: Pool) -> None:
    """Law 8."""
    future = pool.submit(os.getpid)
    assert isinstance(future, Future)
    assert future.result(PATIENCE_S) != os.getpid()


@pytest.mark.every_start_method
def test_arguments_reach_the_task_as_given(pool: Pool) -> None:
    """Also keywords that are parameters of submit itself."""
    future = pool.submit(tasks.capture, 1, "two", self=3, fn=4, timeout=5)
    assert future.result(PATIENCE_S) == ((1, "two"), {"self": 3, "fn": 4, "timeout": 5})


def test_submit_without_a_function_is_a_type_error(pool: Pool) -> None:
    with pytest.raises(TypeError):
        pool.submit()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        pool.submit(fn=tasks.add)  # type: ignore[call-arg]


@pytest.mark.every_start_method
@pytest.mark.parametrize(
    ("function", "args", "expected"),
    [
        (pow, (2, 8), 256),
        (operator.methodcaller("upper"), ("abc",), "ABC"),
        (functools.partial(tasks.add, 40), (2,), 42),
        (tasks.Box(40), (2,), 42),
        (tasks.Box(40).plus, (2,), 42),
        (tasks.Box.name, (), "Box"),
        (tasks.Box.double, (21,), 42),
        (int, ("42",), 42),
        ([3, 1, 2].index, (2,), 2),
    ],
    ids=["builtin", "methodcaller", "partial", "callable object", "method", "class method"]
    + ["static method", "class", "bound builtin"],
)
def test_any_picklable_callable_can_be_submitted(
    pool: Pool, function: Callable[..., Any], args: tuple[Any, ...], expected: Any
) -> None:
    assert pool.submit(function, *args).result(PATIENCE_S) == expected


@pytest.mark.parametrize("value", [None, False, (), "text", ValueError("a value"), ValueError])
def test_results_come_back_as_they_are(pool: Pool, value: Any) -> None:
    """An exception that is returned is a value like any other."""
    result = pool.submit(tasks.echo, value).result(PATIENCE_S)
    assert type(result) is type(value)
    assert repr(result) == repr(value)


@pytest.mark.every_start_method
@pytest.mark.parametrize("size", [0, 1, 100_000, 3_000_000])
def test_arrays_travel_unchanged_and_writable(pool: Pool, size: int) -> None:
    """Law 5: the task may write to what it got; the driver may write to what it gets back."""
    array = np.zeros(size + 1)
    result = pool.submit(tasks.set_first, array, 7.0).result(PATIENCE_S)
    assert result.shape == array.shape
    assert result[0] == 7.0
    assert array[0] == 0.0
    result[0] = 8.0
    assert not result[1:].any()


def test_a_task_that_changes_its_argument_changes_a_copy(pool: Pool) -> None:
    """Law 5."""
    items = [1, 2, 3]
    assert pool.submit(tasks.set_first, items, 9).result(PATIENCE_S) == [9, 2, 3]
    assert items == [1, 2, 3]


def test_one_worker_runs_tasks_in_the_order_of_submission(single: Pool, diary: Path) -> None:
    futures = [single.submit(tasks.write_down, str(diary), n) for n in range(30)]
    concurrent.futures.wait(futures)
    assert diary.read_text().split() == [str(n) for n in range(30)]


@pytest.mark.every_start_method
def test_two_workers_run_two_tasks_at_once(pool: Pool, gate: Gate, bell: Bell) -> None:
    futures = [pool.submit(tasks.ring_and_pass, bell.path, gate.path, n) for n in range(2)]
    bell.wait(2)
    gate.open()
    assert [f.result(PATIENCE_S) for f in futures] == [0, 1]


def test_there_are_no_more_processes_than_workers(pool: Pool) -> None:
    pids = {future.result(PATIENCE_S) for future in [pool.submit(os.getpid) for _ in range(50)]}
    assert 1 <= len(pids) <= 2


def test_many_threads_may_submit(pool: Pool) -> None:
    """Law 69: any number of threads may submit."""
    pool.submit(int).result(PATIENCE_S)  # under fork the stdlib forks now, before the threads
    results: dict[int, list[int]] = {}

    def submit_some(base: int) -> None:
        futures = [pool.submit(tasks.add, base, n) for n in range(50)]
        results[base] = [future.result(PATIENCE_S) for future in futures]

    threads = [threading.Thread(target=submit_some, args=(1000 * n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {1000 * n: [1000 * n + k for k in range(50)] for n in range(8)}


# Waiting for results


def test_result_and_exception_time_out_while_the_task_runs(pool: Pool, gate: Gate) -> None:
    future = pool.submit(tasks.pass_gate, gate.path, "through")
    with pytest.raises(concurrent.futures.TimeoutError):
        future.result(timeout=0)
    with pytest.raises(concurrent.futures.TimeoutError):
        future.exception(timeout=0.01)
    assert not future.done()
    gate.open()
    assert future.result(PATIENCE_S) == "through"
    assert future.exception() is None
    assert future.done()
    assert not future.running()


def test_several_threads_may_wait_for_one_result(pool: Pool, gate: Gate) -> None:
    future = pool.submit(tasks.pass_gate, gate.path, "through")
    seen: list[str] = []
    threads = [
        threading.Thread(target=lambda: seen.append(future.result(PATIENCE_S))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    gate.open()
    for thread in threads:
        thread.join()
    assert seen == ["through"] * 4


# Errors


@pytest.mark.every_start_method
def test_an_error_keeps_its_type_and_arguments(pool: Pool) -> None:
    """Law 67."""
    future = pool.submit(tasks.fail, ValueError, "bad", 42)
    with pytest.raises(ValueError, match="bad") as caught:
        future.result(PATIENCE_S)
    assert type(caught.value) is ValueError
    assert caught.value.args == ("bad", 42)
    assert type(future.exception()) is ValueError


def test_an_error_shows_where_it_was_raised_in_the_worker(pool: Pool) -> None:
    """Law 67: in its cause, and so in what the interpreter prints."""
    error = pool.submit(tasks.fail, RuntimeError, "far away").exception(PATIENCE_S)
    assert error is not None
    assert "the line that the remote traceback shows" in str(error.__cause__)
    assert "the line that the remote traceback shows" in describe(error)


def test_the_cause_of_an_error_is_in_its_remote_traceback(pool: Pool) -> None:
    """Law 67."""
    error = pool.submit(tasks.fail_with_cause).exception(PATIENCE_S)
    assert isinstance(error, ValueError)
    assert "KeyError: 'the inner one'" in str(error.__cause__)
    assert "direct cause" in str(error.__cause__)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have notes since 3.11")
def test_the_notes_of_an_error_come_along(pool: Pool) -> None:
    """Law 67."""
    error = pool.submit(tasks.fail_with_note).exception(PATIENCE_S)
    assert "in the cellar" in getattr(error, "__notes__", [])


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration])
def test_even_errors_that_end_programs_only_fail_their_task(
    pool: Pool, kind: type[BaseException]
) -> None:
    error = pool.submit(tasks.fail, kind, 3).exception(PATIENCE_S)
    assert type(error) is kind
    assert error.args == (3,)
    assert pool.submit(tasks.add, 1, 1).result(PATIENCE_S) == 2


@pytest.mark.every_start_method
def test_an_argument_that_cannot_be_pickled_fails_only_its_task(pool: Pool) -> None:
    good = pool.submit(tasks.add, 1, 1)
    bad = pool.submit(tasks.echo, tasks.BadArgument())
    error = bad.exception(PATIENCE_S)
    assert isinstance(error, (ValueError, pickle.PicklingError))
    assert "not today" in str(error) + str(error.__cause__)
    assert good.result(PATIENCE_S) == 2
    assert pool.submit(tasks.add, 2, 2).result(PATIENCE_S) == 4


def test_a_result_that_cannot_be_pickled_fails_only_its_task(pool: Pool) -> None:
    """Law 67."""
    bad = pool.submit(tasks.return_unpicklable)
    error = bad.exception(PATIENCE_S)
    assert isinstance(error, (TypeError, pickle.PicklingError))
    assert "pickle" in str(error)
    assert pool.submit(tasks.add, 2, 2).result(PATIENCE_S) == 4


def test_an_argument_that_cannot_be_unpickled_fails_only_its_task(
    flavour: Flavour, pool: Pool
) -> None:
    """Law 67: the stdlib's pool is then broken as a whole."""
    bad = pool.submit(tasks.echo, tasks.BadOnArrival())
    if not flavour.is_ours:
        assert isinstance(bad.exception(PATIENCE_S), BrokenProcessPool)
        return
    assert "broken on arrival" in describe(bad.exception(PATIENCE_S))
    assert pool.submit(tasks.add, 2, 2).result(PATIENCE_S) == 4


def test_a_result_that_cannot_be_unpickled_fails_only_its_reader(
    flavour: Flavour, pool: Pool
) -> None:
    """Law 67: the stdlib's pool is then broken as a whole."""
    bad = pool.submit(tasks.BadOnArrival)
    if not flavour.is_ours:
        assert isinstance(bad.exception(PATIENCE_S), BrokenProcessPool)
        return
    assert "broken on arrival" in describe(bad.exception(PATIENCE_S))
    assert pool.submit(tasks.add, 2, 2).result(PATIENCE_S) == 4


def describe(error: BaseException | None) -> str:
    """The error and its causes as the interpreter would show them."""
    assert error is not None
    return "".join(traceback.format_exception(type(error), error, error.__traceback__))


def test_a_worker_that_exits_is_a_broken_process_pool_to_its_task(pool: Pool) -> None:
    """Law 36: the stdlib's pool is then broken as a whole; ours goes on."""
    with pytest.raises(BrokenProcessPool):
        pool.submit(os._exit, 1).result(PATIENCE_S)


# Callbacks


def test_callbacks_run_once_in_order_in_the_driver(pool: Pool, gate: Gate) -> None:
    future = pool.submit(tasks.pass_gate, gate.path, "through")
    seen: list[tuple[str, int, Any]] = []
    finished = threading.Event()
    future.add_done_callback(lambda f: seen.append(("first", os.getpid(), f.result())))
    future.add_done_callback(lambda f: seen.append(("second", os.getpid(), f.result())))
    future.add_done_callback(lambda _: finished.set())
    assert seen == []
    gate.open()
    assert finished.wait(PATIENCE_S)
    assert seen == [("first", os.getpid(), "through"), ("second", os.getpid(), "through")]


def test_a_callback_added_late_runs_at_once(pool: Pool) -> None:
    future = pool.submit(tasks.add, 1, 2)
    future.result(PATIENCE_S)
    seen: list[Any] = []
    future.add_done_callback(seen.append)
    assert seen == [future]


def test_a_callback_that_raises_is_logged_and_the_others_run(
    pool: Pool, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    future = pool.submit(tasks.pass_gate, gate.path)
    finished = threading.Event()

    def explode(_: Future[Any]) -> None:
        raise RuntimeError("callback trouble")

    future.add_done_callback(explode)
    future.add_done_callback(lambda _: finished.set())
    with caplog.at_level(logging.ERROR, logger="concurrent.futures"):
        gate.open()
        assert finished.wait(PATIENCE_S)
    assert "exception calling callback" in caplog.text
    assert "callback trouble" in caplog.text
    caplog.clear()  # its records hold the traceback, and so the executor
    assert pool.submit(tasks.add, 1, 1).result(PATIENCE_S) == 2


def test_a_callback_may_submit_and_read_results(pool: Pool, gate: Gate) -> None:
    """It runs while the executor handles an answer, and must not lock itself out."""
    follow_ups: list[Future[int]] = []
    finished = threading.Event()

    def go_on(done: Future[int]) -> None:
        follow_ups.append(pool.submit(tasks.add, done.result(), 1))
        finished.set()

    pool.submit(tasks.pass_gate, gate.path, 41).add_done_callback(go_on)
    gate.open()
    assert finished.wait(PATIENCE_S)
    assert follow_ups[0].result(PATIENCE_S) == 42


def test_a_failed_future_calls_back_too(pool: Pool) -> None:
    seen: list[type[BaseException] | None] = []
    finished = threading.Event()
    future = pool.submit(tasks.fail, OSError, "gone")
    future.add_done_callback(lambda f: seen.append(type(f.exception())))
    future.add_done_callback(lambda _: finished.set())
    assert finished.wait(PATIENCE_S)
    assert seen == [OSError]


# Cancelling


@pytest.mark.every_start_method
def test_a_queued_task_can_be_cancelled_and_never_runs(
    single: Pool, gate: Gate, bell: Bell, diary: Path
) -> None:
    """Law 65."""
    first = single.submit(tasks.ring_and_pass, bell.path, gate.path)
    queued = [single.submit(tasks.write_down, str(diary), n) for n in range(10)]
    bell.wait()
    assert queued[9].cancel()
    assert queued[9].cancelled()
    assert queued[9].done()
    assert not queued[9].running()
    gate.open()
    with pytest.raises(CancelledError):
        queued[9].result(PATIENCE_S)
    with pytest.raises(CancelledError):
        queued[9].exception(PATIENCE_S)
    assert concurrent.futures.wait([first, *queued]).not_done == set()
    single.shutdown()
    assert diary.read_text().split() == [str(n) for n in range(9)]


def test_a_running_task_cannot_be_cancelled(pool: Pool, gate: Gate, bell: Bell) -> None:
    future = pool.submit(tasks.ring_and_pass, bell.path, gate.path, "through")
    bell.wait()
    assert not future.cancel()
    assert not future.cancelled()
    assert not future.done()
    gate.open()
    assert future.result(PATIENCE_S) == "through"


def test_a_task_in_the_middle_of_its_body_is_running(pool: Pool, gate: Gate, bell: Bell) -> None:
    future = pool.submit(tasks.ring_and_pass, bell.path, gate.path)
    bell.wait()
    assert future.running()
    gate.open()


def test_a_finished_task_cannot_be_cancelled(pool: Pool) -> None:
    """Law 65."""
    future = pool.submit(tasks.add, 1, 2)
    future.result(PATIENCE_S)
    assert not future.cancel()
    assert future.result() == 3


def test_cancelling_calls_back(single: Pool, gate: Gate, bell: Bell) -> None:
    single.submit(tasks.ring_and_pass, bell.path, gate.path)
    queued = [single.submit(tasks.add, n, n) for n in range(10)]
    bell.wait()
    seen: list[bool] = []
    queued[9].add_done_callback(lambda f: seen.append(f.cancelled()))
    assert queued[9].cancel()
    assert seen == [True]
    assert queued[9].cancel()  # twice is no error, and no second call
    assert seen == [True]


# What the worker looks like from inside


@pytest.mark.every_start_method
def test_a_worker_is_a_multiprocessing_child(pool: Pool) -> None:
    """Scripts ask `current_process().name == "MainProcess"` or `parent_process() is None`."""
    seen = pool.submit(tasks.describe_process).result(PATIENCE_S)
    assert seen["pid"] == seen["process_pid"]
    assert seen["name"] != "MainProcess"
    assert seen["has_parent"]
    assert not seen["daemon"]
    assert seen["on_main_thread"]


@pytest.mark.every_start_method
def test_a_task_may_start_a_process_of_its_own(pool: Pool) -> None:
    assert pool.submit(tasks.sum_in_child_process, [1, 2, 3]).result(PATIENCE_S) == 6


def test_workers_inherit_the_globals_of_the_moment_under_fork(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processes start at the first submit, not when the executor is made."""
    pool = make_pool(2)
    monkeypatch.setattr(tasks, "INHERITED", "set before the first submit")
    assert pool.submit(tasks.get_inherited).result(PATIENCE_S) == "set before the first submit"


@pytest.mark.every_start_method
def test_workers_see_the_environment_of_the_driver(
    flavour: Flavour, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if flavour.method == "forkserver" and not flavour.is_ours:
        pytest.skip("the stdlib's fork server keeps the environment of its own start")
    monkeypatch.setenv("PARITY_PROBE", "seen")
    assert pool.submit(os.getenv, "PARITY_PROBE").result(PATIENCE_S) == "seen"


def test_a_task_may_run_a_command(pool: Pool) -> None:
    future = pool.submit(subprocess.check_output, [sys.executable, "-c", "print(6 * 7)"], text=True)
    assert future.result(PATIENCE_S).strip() == "42"
