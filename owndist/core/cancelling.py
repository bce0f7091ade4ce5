"""Keeping tasks from running, and stopping those that run; also all of them at once.

A task that no worker has is cancelled at once. For one that a worker has there are two ways:

*Call it back.* Whether it had started is known to its worker, so whoever asks waits for the answer.
A task that had started is not cancelled. That is all that the standard library's `cancel` does.

*Stop it* (`running`, `force`). Nobody has to be asked: from here on its result does not count, so
its future is cancelled at once, and all that takes its value with it. The task is STOPPING: its
worker is still busy with it, perhaps in a `finally` block, and what it was given stays where it is,
for it may be looked at. It is OVER when the worker has reported it, whatever it reports; when the
worker has given it back, because it had not started; or when the worker has ended. It never runs
again.

With `running` its worker is told to interrupt it (INTERRUPT). With `force` its worker is killed if
it runs just this execution, after `GRACE_NS` if it was to be interrupted first. A worker whose
interpreter is held by a call into C can do neither by itself, so whoever started it does the
killing: the lessor, whom another owner asks by CONDEMN. It looks whether the worker runs that
execution, and may look a moment too early: so it is asked again until the task is OVER.

A task on top of the one that waits for it shares its process with that one: it is interrupted, and
never killed. And nothing below it on the stack can be interrupted but with it. Such a task is the
waiting one's own, and is cancelled with it.

With `recursive` the worker cancels what that execution has submitted, too: when it hears of it, and
once more when the interrupt has struck, for what was submitted in between. Killing needs no such
thing: with a process go the tasks that it owns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import returns
from .commands import CancelAnswered, Interrupt, KillIfRunning, Send
from .ids import DRIVER, ExecutionKey, ProcessNumber, TaskId, execution_id
from .messages import CONDEMN, INTERRUPT, RECALL, Message
from .recalling import recall
from .reports import CancelAsked, CancelWithdrawn, Interrupted
from .task import T_JUDGING, T_OVER, T_READY, T_SENT, T_STOPPING, T_WAITING, Task
from .values import CANCELLED, FAILED, Failure

if TYPE_CHECKING:
    from .leasing import Worker
    from .machine import Machine
    from .submission import Submission

# How long a task may take to end after it was interrupted, when force is allowed; and how long
# after one attempt to kill its worker the next one follows.
GRACE_NS = 1_000_000_000


class Cancelling:
    """The part of a machine that cancels tasks, as their owner and as their executor."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._submission = machine.submission
        self.kill_at: dict[TaskId, int] = {}  # tasks that may not take longer than that

    # -- the owner's side

    def on_asked(self, report: CancelAsked, now: int) -> None:
        """Keep the task from running, if it has not started, or not again; or stop it."""
        task = self._submission.task_of(report.task)
        if task is None:
            self._answer(report.task, False)
        elif not report.running and not report.force:
            self._keep_from_starting(task)
        elif not self._stop(task, report.running, report.force, report.recursive, now):
            self._answer(task.id, False)

    def on_withdrawn(self, report: CancelWithdrawn, now: int) -> None:
        """Who asked has given up, and said so. If its worker gives it back, it goes elsewhere."""
        task = self._submission.task_of(report.task)
        if task is not None and not self._submission.cancelling_all:
            task.cancel_asked = False

    def _answer(self, task: TaskId, cancelled: bool) -> None:
        self._machine.commands.append(CancelAnswered(task, cancelled))

    def _keep_from_starting(self, task: Task) -> None:
        """Cancel the task unless it has started."""
        if task.state == T_JUDGING:
            task.cancel_asked = True  # whether it would run again is about to be known
        elif task.state == T_SENT and task.worker is self._submission.here:
            self._answer(task.id, False)
        elif task.state == T_SENT:
            if not task.cancel_asked:
                task.cancel_asked = True
                self._call_back(task)
        else:
            self._answer(task.id, True)
            if task.state != T_STOPPING:
                self._submission.settle(task, CANCELLED, None)

    def _call_back(self, task: Task) -> None:
        assert task.worker is not None
        task.worker.recalls.append({task.id: task.attempt})
        self._machine.commands.append(Send(task.worker.number, (RECALL, (task.id,))))

    def _stop(self, task: Task, running: bool, force: bool, recursive: bool, now: int) -> bool:
        """Cancel the task, whatever it does. False: it cannot be done."""
        kills = force and (task.worker is None or task.worker.number != self._machine.number)
        if not running and not kills:
            return False
        self._answer(task.id, True)  # others may have asked, too
        if task.state not in (T_SENT, T_STOPPING):
            task.cancel_asked = False
            self._submission.settle(task, CANCELLED, None)
            return True
        assert task.worker is not None
        if task.state == T_SENT:
            self._give_up(task)
        children = force if recursive else None
        message = (INTERRUPT, task.id, task.attempt, kills and not running, children)
        self._machine.commands.append(Send(task.worker.number, message))
        if kills:
            if running:
                self.kill_at.setdefault(task.id, now + GRACE_NS)
            else:
                self._kill(task, now)
        return True

    def _give_up(self, task: Task) -> None:
        """Its result does not count any more."""
        if task.returns is not None and task.returns.count == returns.STREAM:
            returns.close(self._submission, task.id)  # it may be paused
        if task.worker is not self._submission.here and not task.cancel_asked:
            self._call_back(task)
        task.cancel_asked = False
        task.state = T_STOPPING
        for dependent in self._submission.conclude(task, CANCELLED, None):
            self._submission.settle(dependent, CANCELLED, None)

    def _kill(self, task: Task, now: int) -> None:
        assert task.worker is not None
        number, execution = task.worker.number, execution_id(task.id, task.attempt)
        if self._machine.number == DRIVER:
            self._machine.commands.append(KillIfRunning(number, DRIVER, execution))
        else:
            self._machine.commands.append(Send(DRIVER, (CONDEMN, number, execution)))
        self.kill_at[task.id] = now + GRACE_NS

    def next_deadline(self) -> int | None:
        """When `time_passed` is wanted, if ever."""
        return min(self.kill_at.values()) if self.kill_at else None

    def time_passed(self, now: int) -> None:
        """Kill the workers of the tasks that have not ended in time."""
        for task_id, due in list(self.kill_at.items()):
            if due <= now:
                task = self._submission.tasks.get(task_id)
                if task is not None:
                    self._kill(task, now)
                else:
                    del self.kill_at[task_id]  # it is over

    # -- the lessor's side

    def on_condemn(self, peer: ProcessNumber, message: Message, now: int) -> None:
        """An owner wants a worker killed if it runs this execution."""
        self._machine.commands.append(KillIfRunning(message[1], peer, message[2]))

    # -- the executor's side

    def on_interrupt(self, peer: ProcessNumber, message: Message, now: int) -> None:
        """The owner of a task that may run here does not want it any more."""
        _, task, attempt, force, children = message
        execution = (peer, task, attempt)
        if children is not None and not force:  # else they go with this process
            self._stop_children(execution, children, now)
        started = self._machine.execution.started
        depth = 0
        while depth < len(started):
            owner, running = started[depth]
            if owner == peer and running[1] == task and running[2] == attempt:
                break
            depth += 1
        else:
            return
        for _, above in started[depth + 1 :]:
            own = self._submission.tasks.get(above[1])
            if own is not None:
                self._stop(own, True, False, children is not None, now)
        self._machine.commands.append(Interrupt(execution, force, children))

    def on_interrupted(self, report: Interrupted, now: int) -> None:
        """The interrupt has struck, or the task has ended before."""
        self._stop_children(report.execution, report.children, now)

    def _stop_children(self, execution: ExecutionKey, force: bool, now: int) -> None:
        for task in list(self._submission.tasks.values()):
            if task.parent == execution and task.state not in (T_STOPPING, T_OVER):
                self._stop(task, True, force, True, now)

    def check(self) -> None:
        """The invariants; raises AssertionError naming the task."""
        for task_id in self.kill_at:
            task = self._submission.tasks.get(task_id)
            assert task is None or task.state == T_STOPPING, f"task {task_id} may go on"


def cancel_all(submission: Submission) -> None:
    """Keep every task from running that has not started."""
    submission.cancelling_all = True
    cancel_unsent(submission)
    for worker in submission.leases.workers.values():
        for task in worker.queue.values():
            task.cancel_asked = task.state != T_STOPPING
        if worker.queue:
            recall(submission, worker)


def cancel_unsent(submission: Submission) -> None:
    """Keep every task from running that no worker has."""
    for task in list(submission.tasks.values()):
        if task.state in (T_WAITING, T_READY):
            submission.settle(task, CANCELLED, None)


def fail_all(submission: Submission, failure: Failure, now: int) -> None:
    """No worker will ever run them."""
    relieved: dict[ProcessNumber, Worker] = {}
    for task in list(submission.tasks.values()):
        if task.state == T_OVER:
            continue
        if task.worker is not None and task.state in (T_SENT, T_STOPPING):
            submission.leases.relieve(task.worker, task)
            relieved[task.worker.number] = task.worker
        if task.state == T_STOPPING:
            submission.let_go(task)
            continue
        if task.state != T_WAITING:
            submission.failed += 1
        submission.settle(task, FAILED, failure)
    for worker in relieved.values():
        submission.settle_down(worker, now)
