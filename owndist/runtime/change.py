"""Noticing that a change of the driver's tables was left half done."""

from __future__ import annotations

from collections.abc import Callable


class Change:
    """Around each change that a thread of the user's makes, with the lock held.

    Args:
        wake: makes the reader look at the tables.

    Attributes:
        halfway: a change is being made. Still set when the lock is free: a Ctrl-C, which Python
            may raise at any line, has left that change half done.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self.halfway = False
        self._wake = wake

    def check(self) -> None:
        """Lock held. Raises if a change was left half done."""
        if self.halfway:
            # A dear import, which a worker does not need otherwise.
            from concurrent.futures.process import BrokenProcessPool

            raise BrokenProcessPool(
                "a Ctrl-C (or another exception from a signal handler) struck while this executor "
                "was taking in a task; its tables cannot be trusted any more, make another executor"
            )

    def __enter__(self) -> None:
        if self.halfway:
            self.check()
        self.halfway = True

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # Nothing of ours raises in the middle: whatever is refused is refused before.
        if kind is None:
            self.halfway = False
        else:
            self._wake()  # there may be nothing else to make the reader look
