"""What is kept so that a value can be computed again: the tasks that made values, and for how long.

A value and what is known of it end at different times. When nobody needs the *value* of an object
any more, its memory is freed. Its *entry* stays, GONE, and so does the task that made it, while a
retained task takes it: that one may have to run again, and then needs it. (Ray tells the same two
ends apart: OutOfScope and ShouldDelete.)

Rules of this file: a task is retained when its value has come, if that lies in shared memory (an
inline one is lost only with its owner) and the task may run again. It is let go of with its entry,
or when all retained tasks take up more than the limit: then the oldest go, until half is left.

What cannot be computed again (a value that was `put` or promised, or whose task may not run again)
is not freed while a retained task takes it. Neither are a retained task's own stored arguments.

So far nothing is computed again from what is kept here, so executors set no limit, and nothing is
retained.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .ids import ObjectId
from .values import inline_size

if TYPE_CHECKING:
    from .task import Task

# What a retained task takes up besides its arguments: the task, its entry, their places in tables.
TASK_BYTES = 1_000


class Lineage:
    """The retained tasks, oldest first.

    Args:
        limit_bytes: how much memory of this process they may take; 0 for none.
    """

    def __init__(self, limit_bytes: int = 0) -> None:
        self.limit_bytes = limit_bytes
        self.tasks: dict[ObjectId, Task] = {}
        # Of the tasks, and of the inline values that they take.
        self.used_bytes = 0

    def add(self, task: Task) -> None:
        """Retain a task; its inputs have been counted."""
        self.tasks[task.id] = task
        self.used_bytes += task_bytes(task)

    def remove(self, object_id: ObjectId) -> Task | None:
        """Retain it no longer; its inputs are the caller's to uncount."""
        task = self.tasks.pop(object_id, None)
        if task is not None:
            self.used_bytes -= task_bytes(task)
        return task

    def over_limit(self) -> Iterator[ObjectId]:
        """The tasks to let go of, one after the other, while there is more than the limit allows.

        The caller removes each before it asks for the next.
        """
        if self.used_bytes > self.limit_bytes:
            while self.tasks and self.used_bytes > self.limit_bytes // 2:
                yield next(iter(self.tasks))


def task_bytes(task: Task) -> int:
    """What a retained task takes up in the memory of this process."""
    return TASK_BYTES + inline_size(task.args)
