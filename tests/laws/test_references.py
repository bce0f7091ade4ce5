"""`executor.references()`: what is kept, and why."""

from __future__ import annotations

import os
from concurrent.futures import wait
from typing import Any

import numpy as np

from owndist import OwnershipExecutor, Reference, current_executor
from tests.parity.conftest import Bell, Gate
from tests.parity.tasks import ring_and_pass

LENGTH = 100_000  # numbers; 800 kB


def _make(number: int) -> Any:
    return np.full(LENGTH, number)


def _double(array: Any) -> Any:
    return array * 2


def _inside() -> tuple[str, int]:
    """A task that owns values: its own table, and the number of its rows."""
    executor = current_executor()
    futures = [executor.submit(_make, n) for n in range(3)]
    wait(futures)
    found = executor.references()
    return str(found), sum(item.owner == f"pid {os.getpid()}" for item in found)


def _by_name(pool: OwnershipExecutor) -> dict[str, Reference]:
    return {item.name: item for item in pool.references()}


def test_each_reason_is_named(pool: OwnershipExecutor, gate: Gate, bell: Bell) -> None:
    """A future, a pending argument, a view, a borrower, lineage, a future inside (Laws 12, 14)."""
    made = pool.submit(_make, 1)
    view = made.result()
    doubled = pool.submit(_double, made)
    wait([doubled])
    kept = pool.put([made])
    task = pool.submit(ring_and_pass, bell.path, gate.path, pool.shared(doubled))
    bell.wait()
    found = _by_name(pool)
    assert found["_make"].where == "shared memory" and found["_make"].size >= 8 * LENGTH
    assert found["_make"].kept_by == (
        "1 future",
        "1 value with its future inside",
        "1 value made from it",
        f"mapped by pid {os.getpid()}",
    )
    worker = found["_double"].kept_by[2].removeprefix("borrowed by pid ")
    assert found["_double"].kept_by[:2] == ("1 future", "1 pending argument")
    assert worker.isdigit() and int(worker) != os.getpid()
    assert found["put"].where == "message" and found["ring_and_pass"].state == "pending"
    gate.open()
    task.result()
    del kept, view


def test_the_table_is_for_people(pool: OwnershipExecutor) -> None:
    """The largest first, a line for each, and a sum."""
    small, large = pool.put(1), pool.put(np.zeros(LENGTH))
    lines = str(pool.references()).splitlines()
    assert lines[0].split()[:4] == ["object", "owner", "task", "state"]
    assert "shared memory" in lines[1] and "message" in lines[2]
    assert lines[-1].startswith("2 objects, 80")
    del small, large
    assert str(pool.references()).splitlines()[1:] == ["0 objects, 0 bytes"]


def test_an_executor_without_tasks_knows_nothing() -> None:
    """Nothing is started for the question."""
    with OwnershipExecutor(1) as executor:
        assert executor.references() == ()
        assert executor.statistics().workers == 0


def test_inside_a_task_it_tells_of_that_process(pool: OwnershipExecutor) -> None:
    """The worker is the owner."""
    table, own = pool.submit(_inside).result()
    assert own == 3
    assert "_make" in table
