"""The executor's side of tasks: what has been sent to this process and not started.

Rules of this file: items leave in the order in which they came. A task that has been taken has
started; a recall gives back only tasks that have not. Namespace entries stay in place when the
tasks around them are recalled: each says what a global is from there on.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from .commands import Send
from .ids import ProcessNumber, TaskId
from .messages import DONE, RECALLED, TASK, Message
from .reports import TaskEnded


class Execution:
    """The queue of a process that runs tasks."""

    def __init__(self) -> None:
        self.queue: deque[tuple[ProcessNumber, Message]] = deque()  # (owner, TASK or ENTRY)
        self.running: tuple[ProcessNumber, Message] | None = None
        self.stopping = False  # told to end when the queue is empty

    def take(self) -> tuple[ProcessNumber, Message] | None:
        """The next item; a task counts as started from here on. None: nothing to do."""
        if not self.queue:
            return None
        item = self.queue.popleft()
        if item[1][0] == TASK:
            self.running = item
        return item

    def recall(self, owner: ProcessNumber, asked: tuple[TaskId, ...]) -> Message:
        """Give back those of the owner's tasks that have not started."""
        wanted = frozenset(asked)
        kept: deque[tuple[ProcessNumber, Message]] = deque()
        given = []
        for item in self.queue:
            if item[0] == owner and item[1][0] == TASK and item[1][1] in wanted:
                given.append(item[1][1])
            else:
                kept.append(item)
        self.queue = kept
        return (RECALLED, asked, tuple(given))

    def end(self, report: TaskEnded, extras: Any) -> Send:
        """The running task is over: its owner is to be told."""
        assert self.running is not None and self.running[1][1] == report.task
        owner = self.running[0]
        self.running = None
        return Send(
            owner,
            (
                DONE,
                report.task,
                report.attempt,
                report.status,
                report.value,
                report.elapsed_ns,
                extras,
            ),
        )
