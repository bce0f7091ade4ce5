"""Tasks for the tests of lost values. Each notes in a file that it has run."""

from __future__ import annotations

from concurrent.futures import wait
from pathlib import Path
from typing import Any

import numpy as np

from owndist import Future, current_executor
from owndist.testing import lose_value

LENGTH = 400_000  # numbers: 3.2 MB, so that each value has a segment of its own


def _note(log: Path, what: str) -> None:
    with open(log, "a") as file:
        file.write(what + "\n")


def runs(log: Path) -> dict[str, int]:
    """{what: how often it has run}."""
    found: dict[str, int] = {}
    for line in log.read_text().split() if log.exists() else ():
        found[line] = found.get(line, 0) + 1
    return found


def make(log: Path, number: int) -> Any:
    _note(log, f"make{number}")
    return np.full(LENGTH, float(number))


def make_three(log: Path) -> tuple[Any, Any, Any]:
    """To be submitted with `num_returns=3`."""
    _note(log, "three")
    return np.full(LENGTH, 1.0), np.full(LENGTH, 2.0), np.full(LENGTH, 3.0)


def make_two_from(log: Path, array: Any) -> list[Any]:
    """To be submitted with `num_returns=2`."""
    _note(log, "two")
    return [array + 1.0, "small"]


def add(log: Path, name: str, *arrays: Any) -> Any:
    _note(log, name)
    return sum(arrays[1:], arrays[0].copy())


def first(array: Any) -> float:
    return float(array[0])


def first_of(future: Future[Any]) -> float:
    """Of a future that a task was given as one."""
    return float(future.result()[0])


def lose_inside(log: Path, outer: Future[Any]) -> float:
    """A task that owns values, and loses them; it borrows another."""
    executor = current_executor()
    one = executor.submit(make, log, 7)
    two = executor.submit(add, log, "inner", one, outer)
    two.exception()
    assert lose_value(two) and lose_value(one)
    return float(executor.submit(first, two).result())


def lose_two_of_three(log: Path) -> list[float]:
    """A task that owns a task's three values, and loses two."""
    futures = current_executor().options(num_returns=3).submit(make_three, log)
    wait(futures)
    assert lose_value(futures[1]) and lose_value(futures[0])
    return [float(future.result()[0]) for future in futures]


def fail_once(log: Path, times: int) -> Any:
    """Raises OSError the first times that it is run."""
    _note(log, "fail_once")
    if runs(log)["fail_once"] <= times:
        raise OSError("not yet")
    return np.zeros(LENGTH)
