"""Laws 32 to 36 and 46: what a worker's death costs."""

from __future__ import annotations

import os
import signal
from concurrent.futures import wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

from owndist import OwnershipExecutor
from owndist.errors import WorkerDied
from tests.parity.conftest import Bell, Gate

from . import tasks
from .helpers import PATIENCE_S, at_rest, kill

# Law 32


def test_a_task_whose_worker_died_runs_again(pool: OwnershipExecutor, diary: Path) -> None:
    """Law 32."""
    assert pool.submit(tasks.die_until, str(diary), 3).result(PATIENCE_S) == 4
    statistics = pool.statistics()
    assert (statistics.tasks_retried, statistics.workers_died) == (3, 3)
    assert (statistics.tasks_finished, statistics.tasks_failed) == (1, 0)


def test_tasks_queued_behind_one_that_dies_lose_no_retry(
    single: OwnershipExecutor, diary: Path
) -> None:
    """Law 32: even those that may run only once are sent elsewhere."""
    # Short calls first, so that many of them are sent ahead.
    for number in range(1, 30):
        single.submit(tasks.die_if_zero, os.devnull, number).result(PATIENCE_S)
    once = single.options(max_retries=0)
    for _ in range(5):
        dying = once.submit(tasks.die_if_zero, str(diary), 0)
        behind = [once.submit(tasks.die_if_zero, str(diary), n) for n in range(1, 50)]
        assert [future.result(PATIENCE_S) for future in behind] == list(range(1, 50))
        assert isinstance(dying.exception(PATIENCE_S), WorkerDied)
    counts = diary.read_text().split()
    assert sorted(counts) == sorted(str(n) for n in range(50) for _ in range(5))
    assert single.statistics().tasks_retried == 0


def test_tasks_that_wait_for_a_lost_worker_lose_no_retry(
    single: OwnershipExecutor, gate: Gate, bell: Bell
) -> None:
    """Law 32: a long one runs, others stand behind it, and the worker is killed from outside."""
    pid = single.submit(os.getpid).result(PATIENCE_S)
    once = single.options(max_retries=0)
    running = once.submit(tasks.ring_and_pass, bell.path, gate.path)
    behind = [once.submit(tasks.add, n, n) for n in range(50)]
    waiting = once.submit(tasks.echo, running)
    bell.wait()
    kill(pid)
    assert [future.result(PATIENCE_S) for future in behind] == [2 * n for n in range(50)]
    for lost in (running, waiting):
        with pytest.raises(WorkerDied):
            lost.result(PATIENCE_S)


@pytest.mark.parametrize("size", [10, tasks.LARGE], ids=["inline", "stored"])
def test_finished_tasks_do_not_run_again_when_their_worker_dies(
    pool: OwnershipExecutor, diary: Path, size: int
) -> None:
    """Law 32: what they made survives its maker."""
    made = [
        pool.submit(lambda n=n: (tasks.write_down(str(diary), n), tasks.make_bytes(n, size))[1])
        for n in range(20)
    ]
    wait(made, PATIENCE_S)
    for _ in range(3):
        with pytest.raises(WorkerDied):
            pool.options(max_retries=0).submit(tasks.die).result(PATIENCE_S)
    sums = [pool.submit(tasks.total, future) for future in made]
    assert [future.result(PATIENCE_S) for future in sums] == [n * size for n in range(20)]
    assert [tasks.total(future.result()) for future in made] == [n * size for n in range(20)]
    assert sorted(map(int, diary.read_text().split())) == list(range(20))
    del made, sums
    at_rest(pool, 0)


def test_results_not_yet_sent_survive_their_worker(single: OwnershipExecutor, diary: Path) -> None:
    """Law 32: a worker collects replies; what it had finished is finished, whenever it dies."""
    for number in range(1, 30):
        single.submit(tasks.die_if_zero, os.devnull, number).result(PATIENCE_S)
    for _ in range(10):
        before = [single.submit(tasks.die_if_zero, str(diary), n) for n in range(1, 20)]
        single.options(max_retries=0).submit(tasks.die_if_zero, os.devnull, 0).exception(PATIENCE_S)
        assert [future.result(PATIENCE_S) for future in before] == list(range(1, 20))
    assert tasks.lines(diary) == 190
    assert single.statistics().tasks_retried == 0


# Laws 33 and 35


@pytest.mark.parametrize("max_retries", [0, 1, 4])
def test_a_task_that_always_dies_runs_once_and_max_retries_times(
    pool: OwnershipExecutor, diary: Path, max_retries: int
) -> None:
    """Laws 33 and 35: never more, never less, and the error counts them."""
    view = pool.options(max_retries=max_retries, name="deadly")
    future = view.submit(tasks.write_down_and_die, str(diary))
    error = future.exception(PATIENCE_S)
    assert isinstance(error, WorkerDied) and isinstance(error, BrokenProcessPool)
    assert tasks.lines(diary) == 1 + max_retries
    assert error.attempts == 1 + max_retries
    assert (error.task, error.exitcode) == ("deadly", -signal.SIGKILL)
    assert "'deadly'" in str(error) and "SIGKILL" in str(error)
    assert ("attempt 1" if max_retries == 0 else f"{1 + max_retries} times") in str(error)
    assert pool.statistics().tasks_retried == max_retries


def test_without_retries_a_task_that_lost_its_worker_is_not_run_again(
    single: OwnershipExecutor, diary: Path, gate: Gate, bell: Bell
) -> None:
    """Law 35: at most once, also if it would have worked the second time."""
    future = single.options(max_retries=0).submit(tasks.die_until, str(diary), 1)
    error = future.exception(PATIENCE_S)
    assert isinstance(error, WorkerDied) and error.attempts == 1
    assert single.submit(tasks.add, 1, 2).result(PATIENCE_S) == 3
    assert tasks.lines(diary) == 1


# Law 34


def test_errors_are_not_retried_unless_asked(pool: OwnershipExecutor, diary: Path) -> None:
    """Law 34."""
    future = pool.submit(tasks.write_down_and_fail, str(diary), 1, ValueError)
    assert type(future.exception(PATIENCE_S)) is ValueError
    assert tasks.lines(diary) == 1


@pytest.mark.parametrize(
    ("retried", "raised", "runs"),
    [
        ((OSError,), ConnectionError, 4),  # a subclass
        ((KeyError, ValueError), ValueError, 4),
        ((ConnectionError,), OSError, 1),  # a base class
        ((KeyError,), ValueError, 1),
        ((Exception,), SystemExit, 1),
        ((SystemExit,), SystemExit, 4),
    ],
)
def test_only_the_errors_that_were_named_are_retried(
    pool: OwnershipExecutor, diary: Path, retried: Any, raised: Any, runs: int
) -> None:
    """Law 34."""
    view = pool.options(retry_exceptions=retried, max_retries=3)
    future = view.submit(tasks.write_down_and_fail, str(diary), 1, raised)
    assert type(future.exception(PATIENCE_S)) is raised
    assert tasks.lines(diary) == runs


def test_errors_and_deaths_share_one_budget(pool: OwnershipExecutor, diary: Path) -> None:
    """Laws 33 and 34."""

    def alternate(path: str) -> None:
        tasks.write_down(path, 0)
        if tasks.lines(path) % 2:
            raise ValueError("odd")
        tasks.die()

    view = pool.options(retry_exceptions=[ValueError], max_retries=4)
    error = view.submit(alternate, str(diary)).exception(PATIENCE_S)
    assert type(error) is ValueError  # the fifth execution is the last
    assert tasks.lines(diary) == 5
    assert pool.statistics().tasks_retried == 4


# Laws 36 and 46


def test_a_segfault_fails_no_other_task(pool: OwnershipExecutor) -> None:
    """Law 36: the pool's other tasks, before, beside and after it, are as ever."""
    before = [pool.submit(tasks.make_bytes, n, 200_000) for n in range(5)]
    crashing = [pool.options(max_retries=1).submit(tasks.segfault) for _ in range(3)]
    beside = [pool.submit(tasks.add, n, n) for n in range(200)]
    using = [pool.submit(tasks.total, future) for future in before]
    assert [future.result(PATIENCE_S) for future in beside] == [2 * n for n in range(200)]
    assert [future.result(PATIENCE_S) for future in using] == [n * 200_000 for n in range(5)]
    for future in crashing:
        error = future.exception(PATIENCE_S)
        assert isinstance(error, WorkerDied) and error.exitcode == -signal.SIGSEGV
    assert pool.submit(tasks.add, 1, 2).result(PATIENCE_S) == 3


def test_every_task_that_needs_a_lost_one_fails_with_its_error(
    pool: OwnershipExecutor, diary: Path
) -> None:
    """Laws 4 and 46: a typed error for all, at once, and the bodies run 0 times."""
    lost = pool.options(max_retries=1, name="lost").submit(tasks.die)
    level = [lost]
    everybody = []
    for _ in range(4):
        level = [pool.submit(tasks.write_down_and, str(diary), 0, f) for f in level * 2]
        everybody += level
    for future in everybody:
        error = future.exception(PATIENCE_S)
        assert isinstance(error, WorkerDied) and (error.task, error.attempts) == ("lost", 2)
    assert diary.read_text() == ""
    del future, lost, level, everybody, error
    at_rest(pool, 0)
