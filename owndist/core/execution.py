"""The executor's side of tasks: what has been sent to this process, and what it has started.

Rules of this file: items leave in the order in which they came. A task that has been taken has
started; a recall gives back only tasks that have not. Namespace entries stay in place when the
tasks around them are recalled: each says what a global is from there on.

A task that waits for a task of its own may run that one itself, on top of its own stack. So what
has started is a stack too: its bottom was sent by somebody, all above it are this process's own.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from .commands import Send
from .ids import ExecutionKey, ExtentKey, ProcessNumber, TaskId
from .messages import DONE, RECALLED, TASK, YIELD, Message
from .reports import TaskEnded, Yielded
from .values import extent_key, extent_of

Item = tuple[ProcessNumber, Message]


class Execution:
    """The queue of a process that runs tasks."""

    def __init__(self) -> None:
        self.queue: deque[Item] = deque()  # (owner, TASK or ENTRY)
        self.started: list[Item] = []
        self.stopping = False  # told to end when the queue is empty
        self.final = False  # and when it is, not to wait for anything else
        # {(owner, task): CREDIT}, of tasks that are here: the last that has come for each.
        self.credits: dict[tuple[ProcessNumber, TaskId], Message] = {}

    @property
    def running(self) -> Item | None:
        """The task that has the main thread."""
        return self.started[-1] if self.started else None

    def current(self) -> ExecutionKey | None:
        """Names the execution that has the main thread."""
        if not self.started:
            return None
        owner, task = self.started[-1]
        return owner, task[1], task[2]

    def take(self) -> Item | None:
        """The next item; a task counts as started from here on. None: nothing to do."""
        if not self.queue:
            return None
        item = self.queue.popleft()
        if item[1][0] == TASK:
            self.started.append(item)
        return item

    def recall(self, owner: ProcessNumber, asked: tuple[TaskId, ...]) -> Message:
        """Give back those of the owner's tasks that have not started."""
        wanted = frozenset(asked)
        kept: deque[Item] = deque()
        given = []
        for item in self.queue:
            if item[0] == owner and item[1][0] == TASK and item[1][1] in wanted:
                given.append(item[1][1])
                self.credits.pop((owner, item[1][1]), None)
            else:
                kept.append(item)
        self.queue = kept
        return (RECALLED, asked, tuple(given))

    def drop_owner(self, owner: ProcessNumber) -> bool:
        """An owner is dead: its tasks do not start. True: one of them has."""
        self.queue = deque([i for i in self.queue if i[0] != owner or i[1][0] != TASK])
        return bool(self.started) and self.started[0][0] == owner

    def brought(self) -> list[ExtentKey]:
        """The extents that the running task's arguments are in."""
        running = self.running
        if running is None:
            return []
        _, _, _, _, _, args, slots, *_ = running[1]
        extents = [extent_of(value) for value in (args, *(slots or ()))]
        return [extent_key(extent) for extent in extents if extent is not None]

    def on_credit(self, owner: ProcessNumber, message: Message) -> None:
        """The owner says how far a stream's task may go."""
        here = (*self.started, *self.queue)
        if any(i[0] == owner and i[1][:3] == (TASK, *message[1:3]) for i in here):
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
        owner, message = self.started.pop()
        assert message[1] == report.task
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
