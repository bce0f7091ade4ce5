"""A random worker dies every 50 to 200 ms."""

from __future__ import annotations

import os
import random
import zlib
from typing import Any

import numpy as np
import psutil
import pytest

from owndist import OwnershipExecutor
from owndist.errors import WorkerDied
from tests.laws.helpers import (
    PATIENCE_S,
    SLACK,
    at_rest,
    entries,
    eventually,
    kill,
    killing,
    live_children,
    template_of,
)
from tests.leaks import stdlib_helpers

# A task: its number, how hard it works, how many bytes it makes, what it takes.
Plan = list[tuple[int, int, int, list[int]]]


def plan(seed: int, count: int) -> Plan:
    """A random graph: short tasks and long ones, small values and large ones, deep and wide."""
    chance = random.Random(seed)
    made: Plan = []
    for number in range(count):
        near = range(max(0, number - 10), number)
        far = range(number)
        choices = range(chance.randrange(4) if number else 0)
        takes = [chance.choice(chance.choice([near, far])) for _ in choices]
        size = chance.choice([0, 10, 1_000, 1_000, 5_000, 150_000])
        effort = chance.choice([0, 5, 50, 100, 200])
        made.append((number, effort, size, takes))
    return made


def work(number: int, effort: int, size: int, *taken: Any) -> tuple[int, Any]:
    """A checksum of the number and of all that was taken, and bytes that follow from it."""
    checksum = number
    for inner, data in taken:
        checksum = zlib.crc32(bytes(data), zlib.crc32(str(inner).encode(), checksum))
    for _ in range(effort):
        zlib.crc32(b"x" * 100_000)
    return checksum, np.full(size, checksum % 256, np.uint8)


def run_serially(steps: Plan) -> list[int]:
    """The checksums, without any executor."""
    values: list[Any] = []
    for number, _, size, takes in steps:
        values.append(work(number, 0, size, *[values[taken] for taken in takes]))
    return [checksum for checksum, _ in values]


def run_under_fire(seed: int, count: int, max_workers: int) -> int:
    """Run a random graph while workers are killed; returns how many were."""
    steps = plan(seed, count)
    expected = run_serially(steps)
    with OwnershipExecutor(max_workers, max_retries=1_000) as pool:
        template = template_of(pool.submit(os.getpid).result(PATIENCE_S))
        with killing(template, seed, 0.05, 0.2) as killed:
            futures: list[Any] = []
            for number, effort, size, takes in steps:
                task = (number, effort, size, *[futures[index] for index in takes])
                futures.append(pool.submit(work, *task))
                del task
            got = [future.result(PATIENCE_S)[0] for future in futures]
        assert got == expected
        eventually(lambda: entries(pool) == count, "too many or too few are kept", SLACK)
        statistics = pool.statistics()
        assert statistics.tasks_failed == statistics.tasks_cancelled == 0
        assert statistics.tasks_finished == count + 1
        assert statistics.tasks_retried <= statistics.workers_died
        del futures
        at_rest(pool, 0)
    return len(killed)


@pytest.mark.slow
def test_a_random_graph_is_right_while_workers_are_killed(seed: int) -> None:
    """Laws 14, 29, 32 and 46: 2,000 tasks; every value as in a serial run, and nothing is left."""
    assert run_under_fire(seed, 2_000, 3) > 0


@pytest.mark.soak
@pytest.mark.parametrize("run", range(20))
def test_random_graphs_are_right_while_workers_are_killed(seed: int, run: int) -> None:
    """Laws 14, 29, 32 and 46: again and again, with other graphs and other numbers of workers."""
    run_under_fire(seed + run, 2_000, 1 + run % 4)


def test_tasks_that_may_run_only_once_end_one_way_or_the_other(
    pool: OwnershipExecutor, seed: int
) -> None:
    """Laws 32, 33 and 46: under fire each gives its value or WorkerDied, and none runs twice."""
    once = pool.options(max_retries=0)
    template = template_of(pool.submit(os.getpid).result(PATIENCE_S))
    with killing(template, seed, 0.02, 0.05) as killed:
        futures = []
        while len(killed) < 15:
            batch = [once.submit(work, number, 5, 10) for number in range(100)]
            futures += [future.exception(PATIENCE_S) for future in batch]
            del batch
    errors = [error for error in futures if error is not None]
    assert all(isinstance(error, WorkerDied) and error.attempts == 1 for error in errors)
    assert len(errors) <= len(killed)
    assert pool.statistics().tasks_retried == 0
    del errors, futures
    at_rest(pool, 0)


# The template: the driver's only child, from which all workers are forked.


def test_the_death_of_the_template_costs_no_task_anything(
    pool: OwnershipExecutor, seed: int
) -> None:
    """Laws 14, 32 and 46: three times, in the middle of a graph."""
    steps = plan(seed, 600)
    expected = run_serially(steps)
    once = pool.options(max_retries=0)
    futures: list[Any] = []
    for number, effort, size, takes in steps:
        futures.append(once.submit(work, number, effort, size, *[futures[i] for i in takes]))
        if number % 200 == 100:
            (template,) = _templates()
            kill(template.pid)
            eventually(lambda old=template.pid: [t.pid for t in _templates()] not in ([], [old]),
                       "there is no other template")  # fmt: skip
    assert [future.result(PATIENCE_S)[0] for future in futures] == expected
    statistics = pool.statistics()
    assert (statistics.tasks_failed, statistics.tasks_retried) == (0, 0)
    del futures
    at_rest(pool, 0)


def test_workers_that_die_after_their_template_are_noticed(pool: OwnershipExecutor) -> None:
    """Laws 14, 29 and 32: nobody can tell how they ended, but that they did is seen."""
    workers = {pool.submit(os.getpid).result(PATIENCE_S) for _ in range(10)}
    (template,) = _templates()
    everybody = [child.pid for child in live_children(template)]
    assert workers <= set(everybody)
    values = [pool.submit(np.full, 300_000, n, np.uint8) for n in range(5)]
    assert [int(future.result(PATIENCE_S)[0]) for future in values] == list(range(5))
    kill(template.pid)
    for pid in everybody:
        kill(pid)
    assert pool.submit(os.getpid).result(PATIENCE_S) not in everybody
    sums = [pool.submit(np.sum, value, dtype=np.int64) for value in values]
    assert [int(future.result(PATIENCE_S)) for future in sums] == [n * 300_000 for n in range(5)]
    del values, sums
    at_rest(pool, 0)


def test_template_and_workers_die_in_random_order(pool: OwnershipExecutor, seed: int) -> None:
    """Laws 14, 29, 32 and 46."""
    chance = random.Random(seed)
    view = pool.options(max_retries=1_000)
    for _ in range(6):
        futures = [view.submit(work, number, 5, 150_000) for number in range(40)]
        futures += [view.submit(work, number, 5, 10, futures[number]) for number in range(40)]
        assert futures[chance.randrange(10)].result(PATIENCE_S)
        targets = [*_templates(), *[w for t in _templates() for w in live_children(t)]]
        chance.shuffle(targets)
        for target in targets[: chance.randrange(1, len(targets) + 1)]:
            kill(target.pid)
        got = [future.result(PATIENCE_S)[0] for future in futures]
        first = [work(number, 0, 150_000) for number in range(40)]
        assert got[:40] == [checksum for checksum, _ in first]
        assert got[40:] == [work(n, 0, 10, first[n])[0] for n in range(40)]
    assert pool.statistics().tasks_failed == 0
    del futures
    at_rest(pool, 0)


def _templates() -> list[psutil.Process]:
    """Our direct children that live, but for the helpers of multiprocessing."""
    helpers, _ = stdlib_helpers()
    return [child for child in live_children(psutil.Process()) if child.pid not in helpers]
