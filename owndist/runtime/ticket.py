"""Waiting for the word on whether a task was cancelled."""

from __future__ import annotations

import threading


class Ticket:
    """Somebody wants to hear whether a task was cancelled.

    Attributes:
        cancelled: the answer, or None.
        answered: set with the answer; made when there is none at once.
    """

    def __init__(self) -> None:
        self.cancelled: bool | None = None
        self.answered: threading.Event | None = None

    def answer(self, cancelled: bool) -> None:
        """Say whether the task was cancelled."""
        self.cancelled = cancelled
        if self.answered is not None:
            self.answered.set()
