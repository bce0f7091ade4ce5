"""A condition for futures that nobody has to wait for any more."""

from __future__ import annotations

from threading import RLock
from typing import Any


class SettledCondition:
    """The condition of all futures that were settled before anybody waited for them.

    There is nothing to wait for, so nobody holds it: entering it only waits for a change of state
    that is being made. The standard library's `wait` holds the conditions of all its futures at
    once, in the order of their addresses; with one lock for several futures, two threads that do so
    would wait for each other for ever.

    Attributes:
        settling: held while a future without a condition of its own is settled.
    """

    def __init__(self) -> None:
        self.settling = RLock()

    def acquire(self, *_: Any) -> bool:
        """Wait until no state is being changed."""
        with self.settling:
            return True

    def release(self) -> None:
        """Nothing is held."""

    def __enter__(self) -> bool:
        with self.settling:
            return True

    def __exit__(self, *_: object) -> None:
        """Nothing is held."""

    def wait(self, timeout: float | None = None) -> bool:
        """It is settled: return at once."""
        return self.acquire()

    def notify_all(self) -> None:
        """Nobody waits."""

    notify = notify_all
