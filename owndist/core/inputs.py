"""What a task needs before it can run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .task import T_READY, T_WAITING, Task
from .values import FAILED, GONE, PENDING, READY

if TYPE_CHECKING:
    from .submission import Submission


def await_inputs(submission: Submission, task: Task) -> None:
    """A task that no worker has: it is READY, or waits for what is missing, or fails with it.

    Where it is READY the caller puts it among the others that are. What is missing because its
    value is gone is made again.
    """
    entries = submission.references.entries
    task.waiting = 0
    task.state = T_READY
    bad = None
    for ref in task.slots:
        entry = entries[ref]
        if entry.status == PENDING or entry.status == GONE:
            task.waiting += 1
            if entry.dependents is None:
                entry.dependents = []
            entry.dependents.append(task)
        elif entry.status != READY and bad is None:
            bad = entry
    if bad is not None:
        submission.failed += bad.status == FAILED
        submission.settle(task, bad.status, bad.value)
    elif task.waiting:
        task.state = T_WAITING
        for ref in [ref for ref in task.slots if entries[ref].status == GONE]:
            submission.recover(ref)  # which may fail the task, and let go of its arguments
        if task.wanted and task.state == T_WAITING:
            for ref in task.slots:
                if entries[ref].status == PENDING:
                    submission.want(ref)  # a worker waits for it, too


def leave_dependents(submission: Submission, task: Task) -> None:
    """It is about to be counted anew what the task waits for."""
    for ref in task.slots:
        entry = submission.references.entries[ref]
        if entry.dependents:
            entry.dependents = [other for other in entry.dependents if other is not task]
