"""Calling tasks back that were sent ahead and have not started.

A worker is asked for all that it has when the task in front of it runs long, waits for a future, or
the worker is wanted by somebody else; and for single tasks that are to be cancelled. It gives back
what it has not started, and says of the rest that it will not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .commands import CancelAnswered, Send
from .leasing import OVERDUE_NS, Worker
from .messages import RECALL
from .task import Task

if TYPE_CHECKING:
    from .submission import Submission


def recall_overdue(submission: Submission, now: int) -> int | None:
    """Call back what waits behind a task that runs long. When to look again, if ever."""
    if not submission.landlord.has_others():
        return None  # there is nobody else to run it
    due = None
    for worker in submission.leases.workers.values():
        if len(worker.queue) > 1:
            at = worker.progress_at + OVERDUE_NS
            if at <= now:
                if not worker.asked_back:
                    recall(submission, worker)
                at = now + OVERDUE_NS  # what it is sent meanwhile may have to come back too
            if due is None or at < due:
                due = at
    return due


def recall(submission: Submission, worker: Worker) -> None:
    """Ask the worker for all that it has not started."""
    submission.leases.pass_over(worker)
    worker.asked_back = True
    tasks = list(worker.queue)
    worker.recalls.append({task.id: task.attempt for task in worker.queue.values()})
    submission._commands.append(Send(worker.number, (RECALL, tuple(tasks))))


def on_recalled(
    submission: Submission, worker: Worker, asked: tuple[int, ...], given: tuple[int, ...], now: int
) -> None:
    """The worker's answer: what it gives back it will not start."""
    worker.asked_back = False
    attempts = worker.recalls.popleft() if worker.recalls else {}
    given_set = frozenset(given)
    tasks = [worker.queue[task_id] for task_id in reversed(asked) if task_id in worker.queue]
    # So that they stand in the old order at the front, after those that a worker waits for.
    for task in sorted(tasks, key=is_wanted):
        task_id = task.id
        if attempts.get(task_id, task.attempt) != task.attempt:
            continue
        if task_id not in given_set:
            if task.cancel_asked:
                task.cancel_asked = False
                submission._commands.append(CancelAnswered(task_id, False))
            continue
        submission.leases.take_back(worker, task)
        submission.requeue(task)
    if not worker.queue:
        # With a task that has started it stays passed over: what has just come back must
        # not go there again while somebody else could run it.
        submission.settle_down(worker, now)


def is_wanted(task: Task) -> bool:
    """Whether a worker waits for it: of those that come back, it goes first."""
    return task.wanted
