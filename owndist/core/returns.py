"""Tasks with more than one value: `num_returns=n`, and streams.

The object with the task's own id is settled last, by the DONE, as it is for every task: for n
values it is the first of them, for a stream its end. The others come before it, each by a YIELD,
as soon as it is written: so each can be used, spilled and freed by itself while the next is made.

They come in order, and `delivered` counts them. What has a smaller index is a duplicate of a dying
worker's, and is dropped. An execution that begins anew is told where to go on (`first`): the values
before it are not stored, nor sent, a second time.

Lost values (see `recovery`): the task runs once more for all of them, and what it makes besides is
freed as it comes. So the first value may not be wanted either, when the DONE brings it. A value
that is lost while its task still runs is pending again: the next execution begins with it, and if
this one has ended well there is one for its sake.

Back-pressure: a stream's task may yield values with an index below `until`. The owner raises that
as values are taken, so at most `buffer` of them are there that nobody has taken. A task that has
used it up is paused in its worker, which lends its slot meanwhile. `last` says that there will be
no more: the generator is closed where it would have to wait. `until` is an index and no increment,
so it does not matter if one is lost, or comes twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .commands import Command, Delivered, LookFor, Send
from .ids import ObjectId, Ref, TaskId, streamed_id
from .messages import CREDIT
from .task import T_READY, T_SENT, T_WAITING, Task
from .values import (
    CANCELLED,
    FAILED,
    GONE,
    LOST,
    PENDING,
    READY,
    Failure,
    Value,
    extent_key,
    extent_of,
)

if TYPE_CHECKING:
    from .leasing import Worker
    from .references import Entry
    from .reports import Submitted
    from .submission import Submission

STREAM = 0  # as a number of values: one after the other, until there are no more


class Returns:
    """What the owner knows of the values of one task that has several."""

    __slots__ = (
        "buffer",
        "closed",
        "count",
        "cut",
        "delivered",
        "granted",
        "missing",
        "retained",
        "taken",
    )

    def __init__(self, count: int, buffer: int) -> None:
        self.count = count
        self.buffer = buffer
        self.delivered = 0 if count == STREAM else 1  # the index of the next value to come
        self.missing = count  # the first index of those that came and are lost, if any is below it
        self.retained = 0  # values for which `lineage` keeps the task
        self.taken = 0  # by the stream's reader
        self.granted = buffer  # the `until` that its worker was told last
        self.cut = False  # it gets no more credit
        self.closed = False  # nobody takes any more

    def begin(self) -> tuple[int, int, int, bool]:
        """An execution begins: what goes with its TASK."""
        if self.missing < self.delivered and self.count != STREAM:
            self.delivered, self.missing = self.missing, self.count
        return self.count, self.delivered, self.granted, self.cut

    def lose(self, index: int) -> None:
        """A value is to come again; the first comes with the DONE, as it always does."""
        if 0 < index < self.delivered:
            self.missing = min(self.missing, index)


def expect(submission: Submission, task: Task, report: Submitted) -> None:
    """A task with several values has been submitted; its own entry is there."""
    task.returns = Returns(report.returns, report.buffer)
    for object_id in task.objects()[1:]:
        submission.references.create(object_id).name = task.name
        submission.makers[object_id] = task


def expect_again(submission: Submission, task: Task) -> None:
    """It is to run again, for those of its values that are gone.

    Who removes the memory of one value may have removed that of the others, which nobody has read
    yet: it is looked whether they are there, so that one execution is for all of them.
    """
    assert task.returns is not None
    task.returns.delivered, task.returns.missing = 1, task.returns.count
    for object_id in task.objects():
        if object_id != task.id:
            submission.makers[object_id] = task
        entry = submission.references.entries.get(object_id)
        if entry is not None and entry.status == GONE:
            entry.status = PENDING
        elif entry is not None and entry.status == READY:
            value = submission.references.current(entry.value)
            extent = extent_of(value)
            if extent is not None:
                look = LookFor(object_id, extent_key(extent), extent[2])
                submission._commands.append(look)


def is_awaited(submission: Submission, object_id: ObjectId) -> bool:
    """Whether a value is to come, and not there already, or not wanted any more."""
    entry = submission.references.entries.get(object_id)
    return entry is not None and entry.status == PENDING


def settle(
    submission: Submission,
    task: Task,
    status: int,
    value: Value | Failure | None,
    nested: tuple[Ref, ...],
) -> list[Task]:
    """The task is over: what it has not delivered has its outcome. Returns what `settle_entry` does
    for all of that."""
    dependents: list[Task] = []
    for object_id in task.objects():
        entry = submission.references.entries.get(object_id)
        if entry is None:
            continue
        if entry.status != PENDING:
            if status != READY:
                entry.fate = "its task has failed since, or was cancelled"
        elif status != READY or object_id == task.id:
            dependents += submission.settle_entry(entry, status, value, nested)
    return dependents


def take_missing(submission: Submission, task: Task) -> list[ObjectId]:
    """The task has ended well: what was delivered, and lost before that, and is wanted."""
    missing = [ref for ref in task.objects() if is_awaited(submission, ref)]
    for object_id in missing:
        submission.references.entries[object_id].status = GONE
    return missing


def forget(submission: Submission, task: Task) -> None:
    """The task is over."""
    for object_id in task.objects()[1:]:
        del submission.makers[object_id]


def on_yield(submission: Submission, worker: Worker | None, message: tuple[Any, ...]) -> None:
    """A worker has one of several values of a task."""
    _, task_id, attempt, index, status, value, extras = message
    task = submission.tasks.get(task_id)
    references = submission.references
    returns = None
    if worker is not None and task is not None and task.runs_on(worker, attempt):
        returns = task.returns
    if worker is None or task is None or returns is None or index < returns.delivered:
        if extras is not None:  # stale
            references.release_all(extras[1], submission.number)
        return
    returns.delivered = index + 1
    nested, entries = submission.borrowing.take_extras(worker.number, extras)
    if status == READY and references.is_lost(value, worker.number):
        status, value = FAILED, (LOST, "it was let go before its task had passed it on", task.name)
    entry: Entry | None
    if returns.count != STREAM:
        entry = references.entries.get(task_id + index)
    else:
        entry = None if returns.closed else references.create(streamed_id(task_id, index))
        if entry is not None:
            entry.name = task.name
            entry.fate = "it came out of a stream"
    if entry is None or entry.status != PENDING:
        submission.borrowing.discard(worker.number, status, value, nested)
        return
    entry.entries = entries
    if returns.count == STREAM:
        references.settle(entry, status, value, nested)
        made = streamed_id(task_id, index)
        submission._commands.append(Delivered(task_id, made, status, value))
        return
    for dependent in submission.settle_entry(entry, status, value, nested):
        if status != READY:
            submission.settle(dependent, status, value)


def on_consumed(submission: Submission, task_id: TaskId, taken: int) -> None:
    """So many values of a stream have been taken: others may come."""
    task = submission.tasks.get(task_id)
    if task is None or task.returns is None:
        return
    returns = task.returns
    if returns.cut or taken <= returns.taken:
        return
    returns.taken = taken
    # Told by halves, which saves messages. A reader that has taken all finds credit given: what is
    # left ungiven is less than the buffer.
    if 2 * (taken + returns.buffer - returns.granted) >= returns.buffer:
        returns.granted = taken + returns.buffer
        _tell(submission._commands, task)


def close(submission: Submission, task_id: TaskId) -> None:
    """Nobody takes any more values of a stream: it does not start, or ends at its next value."""
    task = submission.tasks.get(task_id)
    if task is None or task.returns is None or task.returns.closed:
        return
    task.returns.closed = task.returns.cut = True
    task.returns.granted = 0
    if task.state in (T_WAITING, T_READY):
        submission.settle(task, CANCELLED, None)
    else:
        _tell(submission._commands, task)


def cut(submission: Submission) -> None:
    """No stream gets more credit than it has: all tasks are to come to their ends."""
    for task in submission.tasks.values():
        returns = task.returns
        if returns is not None and returns.count == STREAM and not returns.cut:
            returns.cut = True
            _tell(submission._commands, task)


def _tell(commands: list[Command], task: Task) -> None:
    if task.state == T_SENT:
        assert task.worker is not None and task.returns is not None
        credit = (CREDIT, task.id, task.attempt, task.returns.granted, task.returns.cut)
        commands.append(Send(task.worker.number, credit))
