"""The tasks that the lines measure. Importable, so that every competitor sends them by name.

numpy is imported inside: a worker that runs only no-ops must not pay for it at its start.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

MB = 1_000_000

_kept: list[np.ndarray] = []  # at most one: what `keep` left in this worker


def no_op() -> None:
    pass


def add_one(number: int) -> int:
    return number + 1


def add(left: int, right: int) -> int:
    return left + right


def spin(seconds: float) -> None:
    """Uses a core for so long, as that core counts: a machine with others on it takes longer."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def pause(seconds: float) -> None:
    time.sleep(seconds)


def make(megabytes: float, fill: float = 1.0) -> np.ndarray:
    """An array of that many MB, all of one number."""
    import numpy as np

    return np.full(int(megabytes * MB) // 8, fill)


def look(array: np.ndarray) -> float:
    """Touches the two ends: what is left is the cost of getting the array here."""
    return float(array[0] + array[-1])


def total(array: np.ndarray) -> float:
    """Reads every number."""
    return float(array.sum())


def more(array: np.ndarray) -> np.ndarray:
    return array + 1.0


def pass_on(array: np.ndarray) -> np.ndarray:
    return array


def keep(megabytes: float) -> None:
    """The initializer of workers that `kept` will be run by."""
    _kept[:] = [make(megabytes)]


def kept() -> np.ndarray:
    """An array that was there before: returning it costs no making."""
    return _kept[0]


def hold(started: str, until: str) -> None:
    """Keeps one worker busy, without using its core, between two named pipes.

    Opening a named pipe waits for the other end to be opened too.
    """
    os.close(os.open(started, os.O_WRONLY))
    os.close(os.open(until, os.O_RDONLY))


def submit_all(fn: Callable[..., Any], count: int, *args: Any) -> int:
    """A task that submits tasks, and waits for them."""
    from owndist import current_executor

    executor = current_executor()
    for future in [executor.submit(fn, *args) for _ in range(count)]:
        future.result()
    return count


def length(value: bytes) -> int:
    return len(value)


def borrow(held: list[Future[bytes]], count: int) -> int:
    """Is lent a value, inside a list, and submits tasks that take it."""
    return submit_all(length, count, held[0])
