"""Keeping tasks from running, those that have not started.

What a worker has been sent is called back, and its answer waited for: see `submission.recall`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .commands import CancelAnswered, Send
from .ids import TaskId
from .messages import RECALL
from .task import T_JUDGING, T_READY, T_SENT, T_WAITING
from .values import CANCELLED

if TYPE_CHECKING:
    from .submission import Submission


def cancel(submission: Submission, task_id: TaskId) -> None:
    """Keep the task from running, if it has not started, or not again."""
    task = submission.task_of(task_id)
    if task is None:
        submission._commands.append(CancelAnswered(task_id, False))
    elif task.state == T_JUDGING:
        task.cancel_asked = True  # whether it would run again is about to be known
    elif task.state == T_SENT:
        assert task.worker is not None
        if not task.cancel_asked:
            task.cancel_asked = True
            task.worker.recalls.append({task.id: task.attempt})
            submission._commands.append(Send(task.worker.number, (RECALL, (task.id,))))
    else:
        submission._commands.append(CancelAnswered(task.id, True))
        submission.settle(task, CANCELLED, None)


def withdraw_cancel(submission: Submission, task_id: TaskId) -> None:
    """Who asked has given up, and said so. If its worker gives it back, it goes elsewhere."""
    task = submission.task_of(task_id)
    if task is not None and not submission.cancelling_all:
        task.cancel_asked = False


def cancel_all(submission: Submission) -> None:
    """Keep every task from running that has not started."""
    submission.cancelling_all = True
    cancel_unsent(submission)
    for worker in submission.leases.workers.values():
        for task in worker.queue.values():
            task.cancel_asked = True
        if worker.queue:
            submission.recall(worker)


def cancel_unsent(submission: Submission) -> None:
    """Keep every task from running that no worker has."""
    for task in list(submission.tasks.values()):
        if task.state in (T_WAITING, T_READY):
            submission.settle(task, CANCELLED, None)
