"""The tasks that the lines measure. Importable, so that every competitor sends them by name.

numpy is imported inside: a worker that runs only no-ops must not pay for it at its start.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

MB = 1_000_000

_kept: list[np.ndarray] = []  # at most one: what `keep` left in this worker


def no_op() -> None:
    pass


def add_one(number: int) -> int:
    return number + 1


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
