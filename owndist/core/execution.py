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
from .messages import DONE, RECALLED, TASK, YIELD, Message
from .reports import TaskEnded, Yielded


class Execution:
    """The queue of a process that runs tasks."""

    def __init__(self) -> None:
        self.queue: deque[tuple[ProcessNumber, Message]] = deque()  # (owner, TASK or ENTRY)
        self.running: tuple[ProcessNumber, Message] | None = None
        self.stopping = False  # told to end when the queue is empty
        # {(owner, task): CREDIT}, of tasks that are here: the last that has come for each.
        self.credits: dict[tuple[ProcessNumber, TaskId], Message] = {}

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
                self.credits.pop((owner, item[1][1]), None)
            else:
                kept.append(item)
        self.queue = kept
        return (RECALLED, asked, tuple(given))

    def on_credit(self, owner: ProcessNumber, message: Message) -> None:
        """The owner says how far a stream's task may go."""
        here = [self.running, *self.queue]
        if any(i and i[0] == owner and i[1][:3] == (TASK, *message[1:3]) for i in here):
            self.credits[owner, message[1]] = message

    def may_yield(self, index: int) -> bool | None:
        """Whether the running task may yield a value with this index; None: not yet."""
        assert self.running is not None
        owner, task = self.running
        credit = self.credits.get((owner, task[1]))
        until, last = credit[3:5] if credit is not None else task[8][2:4]
        if index < until:
            return True
        return False if last else None

    def tell(self, report: Yielded, extras: Any) -> Send:
        """The running task has one of its values: its owner is to be told."""
        assert self.running is not None and self.running[1][1] == report.task
        return Send(
            self.running[0],
            (
                YIELD,
                report.task,
                report.attempt,
                report.index,
                report.status,
                report.value,
                extras,
            ),
        )

    def end(self, report: TaskEnded, extras: Any) -> Send:
        """The running task is over: its owner is to be told."""
        assert self.running is not None and self.running[1][1] == report.task
        owner = self.running[0]
        self.running = None
        if self.credits:
            self.credits.pop((owner, report.task), None)
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
