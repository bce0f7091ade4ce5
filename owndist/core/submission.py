"""The owner's side of tasks: from submission to outcome.

Rules of this file: every change of a task's state (see `task`) happens here. Dependencies are
resolved here, at the owner, before a worker is sought (Ownership paper, section 4.1; Ray does the
same): a task that is READY has every value it needs.

An attempt number goes with every dispatch and comes back with the result; anything that carries
another one is stale and changes nothing. Purity does not save one from late reports; numbers do.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from . import returns as several
from .commands import CancelAnswered, Command, Complete, JudgeError, Log, Send, Spawn
from .ids import ObjectId, ProcessNumber, TaskId, execution_id
from .leasing import AHEAD_NS, OVERDUE_NS, UP, Leasing, Worker
from .messages import OUTCOME, RECALL, STOP, TASK
from .references import Entry, ReferenceTable
from .reports import Submitted
from .task import T_JUDGING, T_OVER, T_READY, T_SENT, T_WAITING, Task
from .values import CANCELLED, DIED, ERROR, FAILED, LOST, PENDING, READY, Failure, Value

# What a task costs a worker besides the user's function: reading, unpickling, replying. It bounds
# how many no-op tasks are sent ahead.
LEAST_COST_NS = 10_000

_WARNING = 30  # logging's number; the core imports no logging


class Submission:
    """The tasks of this owner."""

    def __init__(
        self, references: ReferenceTable, leasing: Leasing, commands: list[Command]
    ) -> None:
        self.references = references
        self.leasing = leasing
        self.tasks: dict[TaskId, Task] = {}
        # Tasks with several values, by the objects that do not have the task's own id.
        self.makers: dict[ObjectId, Task] = {}
        self.ready: deque[Task] = deque()
        self.estimates: dict[int, int] = {}  # {function: nanoseconds per task, lately}
        self.submitted = self.finished = self.failed = self.cancelled = self.retried = 0
        self.cancelling_all = False  # what has not started is not to start any more
        self.sent_ahead = False  # something may wait behind a task on a worker
        self._commands = commands

    # -- coming in

    def submit(self, report: Submitted) -> None:
        """A new task; its future exists and counts as a handle."""
        references = self.references
        entries = references.entries
        self.submitted += 1
        task = Task(report)
        self.tasks[task.id] = task
        references.create(task.id)
        if report.returns != 1:
            several.expect(self, task, report)
        if type(task.args) is tuple:
            references.hold(task.args)
        if task.nested:
            for object_id in task.nested:
                entries[object_id].arguments += 1
        if task.slots:
            bad = None
            for object_id in task.slots:
                entry = entries[object_id]
                entry.arguments += 1
                if entry.status == PENDING:
                    task.waiting += 1
                    if entry.dependents is None:
                        entry.dependents = []
                    entry.dependents.append(task)
                elif entry.status != READY and bad is None:
                    bad = entry
            if bad is not None:
                self.failed += bad.status == FAILED
                self.settle(task, bad.status, bad.value)
                return
            if task.waiting:
                task.state = T_WAITING
                return
        self.ready.append(task)

    # -- to the workers

    def dispatch(self, now: int) -> None:
        """Hand ready tasks to workers that can take one, and ask for more workers if need be."""
        ready = self.ready
        leasing = self.leasing
        current = self.references.current
        while ready:
            task = ready[0]
            if task.state != T_READY:
                ready.popleft()  # cancelled, or failed with an argument, since it was queued
                continue
            cost = self.estimates.get(task.function, AHEAD_NS)
            worker = leasing.pick(cost)
            if worker is None:
                if leasing.slots_used < leasing.max_workers:
                    self._ask_for_workers()
                return
            ready.popleft()
            task.state = T_SENT
            task.worker = worker
            task.attempt += 1
            task.cost_ns = cost
            if worker.queue:
                self.sent_ahead = True
            leasing.assign(worker, task, now)
            needs = task.entries
            slots: Any = None
            if task.slots:
                objects = [self.references.entries[object_id] for object_id in task.slots]
                slots = tuple([current(entry.value) for entry in objects])
                for entry in objects:
                    needs += entry.entries
            self._commands.append(
                Send(
                    worker.number,
                    (
                        TASK,
                        task.id,
                        task.attempt,
                        task.function,
                        needs,
                        task.args if type(task.args) is bytes else current(task.args),
                        slots,
                        task.name,
                        None if task.returns is None else task.returns.for_worker(),
                    ),
                )
            )

    def _ask_for_workers(self) -> None:
        """Tasks are ready and no worker can take one."""
        leasing = self.leasing
        waiting = 0
        for task in self.ready:
            waiting += task.state == T_READY  # not cancelled meanwhile
            if waiting == leasing.max_workers:
                break
        wanted = not leasing.slots_used and any(
            task.wanted and task.state == T_READY for task in self.ready
        )
        for number in leasing.spawn_for(waiting, wanted):
            self._commands.append(Spawn(number))

    def task_of(self, object_id: ObjectId) -> Task | None:
        """The task that makes an object, until it has its outcome."""
        return self.tasks.get(object_id) or self.makers.get(object_id)

    def want(self, object_id: ObjectId) -> None:
        """A worker waits for this object: its task, and those that it waits for, go first."""
        todo = [object_id]
        while todo:
            wanted = todo.pop()
            task = self.task_of(wanted)
            if task is None or task.wanted:
                continue
            task.wanted = True
            if task.state == T_READY:
                self.ready.remove(task)
                self.ready.appendleft(task)
            else:
                todo.extend(task.slots)

    def recall_overdue(self, now: int) -> int | None:
        """Call back what waits behind a task that runs long. When to look again, if ever."""
        leasing = self.leasing
        if leasing.slots_used == 1 and leasing.max_workers == 1:
            return None  # there is nobody else to run it
        due = None
        for worker in leasing.workers.values():
            if len(worker.queue) > 1:
                at = worker.progress_at + OVERDUE_NS
                if at <= now:
                    if not worker.asked_back:
                        self.recall(worker)
                    at = now + OVERDUE_NS  # what it is sent meanwhile may have to come back too
                if due is None or at < due:
                    due = at
        return due

    def recall(self, worker: Worker) -> None:
        """Ask the worker for all that it has not started."""
        self.leasing.pass_over(worker)
        worker.asked_back = True
        tasks = list(worker.queue)
        worker.recalls.append({task.id: task.attempt for task in worker.queue.values()})
        self._commands.append(Send(worker.number, (RECALL, tuple(tasks))))

    def on_recalled(self, worker: Worker, asked: tuple[int, ...], given: tuple[int, ...]) -> None:
        """The worker's answer: what it gives back it will not start."""
        worker.asked_back = False
        attempts = worker.recalls.popleft() if worker.recalls else {}
        given_set = frozenset(given)
        for task_id in reversed(asked):  # so that they stand in the old order at the front
            task = worker.queue.get(task_id)
            if task is None or attempts.get(task_id, task.attempt) != task.attempt:
                continue
            if task_id not in given_set:
                if task.cancel_asked:
                    task.cancel_asked = False
                    self._commands.append(CancelAnswered(task_id, False))
                continue
            self.leasing.relieve(worker, task)
            self._requeue(task)
        if not worker.queue:
            # With a task that has started it stays passed over: what has just come back must
            # not go there again while somebody else could run it.
            self.settle_down(worker)

    def _requeue(self, task: Task) -> None:
        task.worker = None
        if task.cancel_asked or (task.returns is not None and task.returns.closed):
            if task.cancel_asked:
                self._commands.append(CancelAnswered(task.id, True))
            self.settle(task, CANCELLED, None)
        else:
            task.state = T_READY
            self.ready.appendleft(task)

    def settle_down(self, worker: Worker) -> None:
        """After changes to a worker's queue."""
        if self.leasing.settle_down(worker):
            self._commands.append(Send(worker.number, (STOP,)))

    # -- coming back

    def on_done(self, worker: Worker | None, message: tuple[Any, ...], now: int) -> None:
        """A worker has run a task."""
        _, task_id, attempt, status, value, elapsed_ns, extras = message
        task = self.tasks.get(task_id)
        if worker is None or task is None or not task.runs_on(worker, attempt):
            # Stale. A stored value's memory goes with its worker: it may have been freed before.
            return
        leasing = self.leasing
        del worker.queue[task_id]
        worker.load_ns -= task.cost_ns
        worker.progress_at = now
        # A moving mean that falls fast and rises slowly: the first call of a function pays for
        # imports, and a task that turns out long is called back from behind anyway.
        cost = elapsed_ns if elapsed_ns > LEAST_COST_NS else LEAST_COST_NS
        estimate = self.estimates.get(task.function)
        if estimate is not None:
            cost = estimate + ((cost - estimate) >> (1 if cost < estimate else 3))
        self.estimates[task.function] = cost
        if worker.status == UP and worker.queue:
            if worker.load_ns * 2 <= AHEAD_NS:
                leasing.hungry[worker.number] = worker
        else:
            self.settle_down(worker)
        if task.cancel_asked:
            task.cancel_asked = False
            self._commands.append(CancelAnswered(task_id, False))
        nested: tuple[ObjectId, ...] = ()
        if extras is not None:
            # Before the arguments are let go: from here on these keep what they name.
            nested, entries = self.references.take_extras(worker.number, extras)
            if entries:
                self.references.entries[task_id].entries = entries
        if status == READY and self.references.is_lost(value, worker.number):
            self.failed += 1
            text = "it was let go before its task had passed it on"
            self.settle(task, FAILED, (LOST, text, task.name))
        elif status == READY:
            self.finished += 1
            self.settle(task, READY, value, nested)
        elif status == CANCELLED:
            self.settle(task, CANCELLED, None)  # a stream that was not let go on to its end
        elif task.judged and value[0] == ERROR and task.charged < task.max_retries:
            task.state = T_JUDGING
            task.worker = None
            task.failure = value
            self._commands.append(JudgeError(task_id, attempt, value[1]))
        else:
            self.failed += 1
            self.settle(task, FAILED, value)

    def on_judged(self, task_id: TaskId, attempt: int, retry: bool) -> None:
        """Whether a raised error is one that the task retries."""
        task = self.tasks.get(task_id)
        if task is None or task.state != T_JUDGING or task.attempt != attempt:
            return
        if retry:
            task.charged += 1
            task.failure = None
            self.retried += not task.cancel_asked
            self._requeue(task)
        else:
            if task.cancel_asked:
                self._commands.append(CancelAnswered(task_id, False))
            self.failed += 1
            self.settle(task, FAILED, task.failure)

    def on_worker_ended(
        self, worker: Worker, running: int, pid: int | None, exitcode: int | None, stack: str
    ) -> None:
        """A worker is gone. What it ran is charged a retry; what only waited there is not.

        A task may have come back to the worker that has just reported it, so the attempt counts.
        """
        for task in reversed(list(worker.queue.values())):
            if execution_id(task.id, task.attempt) != running:
                self._requeue(task)
                continue
            task.charged += 1
            if task.charged <= task.max_retries:
                if not task.cancel_asked:
                    self.retried += 1
                    text = "worker %s (pid %s) ended (%s) while it ran task %r; running it again"
                    details = (worker.number, pid, exitcode, task.name)
                    self._commands.append(Log(_WARNING, text, details))
                self._requeue(task)
            else:
                if task.cancel_asked:
                    self._commands.append(CancelAnswered(task.id, False))
                self.failed += 1
                self.settle(task, FAILED, (DIED, (pid, exitcode, task.charged, stack), task.name))
        worker.queue.clear()

    # -- outcomes

    def settle(
        self,
        task: Task,
        status: int,
        value: Value | Failure | None,
        nested: tuple[ObjectId, ...] = (),
    ) -> None:
        """The task has its outcome; whoever takes its value goes on, or fails with it."""
        todo = [task]
        while todo:
            task = todo.pop()
            if task.state == T_OVER:
                continue
            if task.state == T_WAITING:
                # It stays among `dependents`, to be passed over: taking it out is a walk for each.
                self.failed += status == FAILED
            if status == CANCELLED:
                self.cancelled += 1
            task.state = T_OVER
            del self.tasks[task.id]
            references = self.references
            entry = references.entries[task.id]
            dependents = self.settle_entry(entry, status, value, nested)
            if task.returns is not None:
                dependents = dependents + several.settle_rest(self, task, status, value)
            if type(task.args) is tuple:
                references.drop(task.args)
            task.args = b""
            for object_id in task.slots:
                references.drop_argument(object_id)
            for object_id in task.nested:
                references.drop_argument(object_id)
            if dependents and status != READY:
                todo.extend(dependents)
                nested = ()

    def settle_entry(
        self,
        entry: Entry,
        status: int,
        value: Value | Failure | None,
        nested: tuple[ObjectId, ...] = (),
    ) -> list[Task]:
        """An object has its outcome. Returns the tasks that waited for it, already made ready
        if it is there, to be failed by the caller if not."""
        dependents, entry.dependents = entry.dependents, None
        subscribers, entry.subscribers = entry.subscribers, None
        self._commands.append(Complete(entry.id, status, value))
        self.references.settle(entry, status, value, nested)
        if subscribers:
            told = self.references.tell(value)
            for peer in subscribers:
                outcome = (OUTCOME, entry.id, status, told, entry.entries)
                self._commands.append(Send(peer, outcome))
        if not dependents:
            return []
        if status == READY:
            for task in dependents:
                task.waiting -= 1
                if not task.waiting and task.state == T_WAITING:
                    task.state = T_READY
                    if task.wanted:
                        self.ready.appendleft(task)
                    else:
                        self.ready.append(task)
        return dependents

    # -- cancelling

    def cancel(self, task_id: TaskId) -> None:
        """Keep the task from running, if it has not started, or not again."""
        task = self.task_of(task_id)
        if task is None:
            self._commands.append(CancelAnswered(task_id, False))
        elif task.state == T_JUDGING:
            task.cancel_asked = True  # whether it would run again is about to be known
        elif task.state == T_SENT:
            assert task.worker is not None
            if not task.cancel_asked:
                task.cancel_asked = True
                task.worker.recalls.append({task.id: task.attempt})
                self._commands.append(Send(task.worker.number, (RECALL, (task.id,))))
        else:
            self._commands.append(CancelAnswered(task.id, True))
            self.settle(task, CANCELLED, None)

    def withdraw_cancel(self, task_id: TaskId) -> None:
        """Who asked has given up, and said so. If its worker gives it back, it goes elsewhere."""
        task = self.task_of(task_id)
        if task is not None and not self.cancelling_all:
            task.cancel_asked = False

    def cancel_all(self) -> None:
        """Keep every task from running that has not started."""
        self.cancelling_all = True
        self.cancel_unsent()
        for worker in self.leasing.workers.values():
            for task in worker.queue.values():
                task.cancel_asked = True
            if worker.queue:
                self.recall(worker)

    def cancel_unsent(self) -> None:
        """Keep every task from running that no worker has."""
        for task in list(self.tasks.values()):
            if task.state in (T_WAITING, T_READY):
                self.settle(task, CANCELLED, None)

    def fail_all(self, failure: Failure) -> None:
        """No worker will ever run them."""
        relieved: dict[ProcessNumber, Worker] = {}
        for task in list(self.tasks.values()):
            if task.state == T_OVER:
                continue
            if task.worker is not None and task.state == T_SENT:
                self.leasing.relieve(task.worker, task)
                relieved[task.worker.number] = task.worker
            if task.state != T_WAITING:
                self.failed += 1
            if task.cancel_asked:
                self._commands.append(CancelAnswered(task.id, False))
            self.settle(task, FAILED, failure)
        for worker in relieved.values():
            self.settle_down(worker)

    def check(self) -> None:
        """The invariants; raises AssertionError naming the task."""
        _check(self)


def _check(submission: Submission) -> None:
    entries = submission.references.entries
    arguments: dict[ObjectId, int] = {}
    for task in submission.tasks.values():
        entry = entries.get(task.id)
        assert entry is not None and entry.status == PENDING, f"task {task.id}: no entry"
        pending = [s for s in task.slots if entries[s].status == PENDING]
        assert task.waiting == len(pending), f"task {task.id} waits for {task.waiting}"
        assert (task.state == T_WAITING) == bool(pending), f"task {task.id}: {task.state}"
        for slot in task.slots + task.nested:
            arguments[slot] = arguments.get(slot, 0) + 1
        if task.state == T_SENT:
            assert task.worker is not None and task.worker.queue.get(task.id) is task
            assert task.worker.number in submission.leasing.workers
        assert task.charged <= task.max_retries, f"task {task.id} overspent its retries"
    for entry in entries.values():
        assert entry.arguments == arguments.get(entry.id, 0), (
            f"object {entry.id} counts {entry.arguments} pending arguments"
        )
    for object_id, task in submission.makers.items():
        assert submission.tasks.get(task.id) is task, f"object {object_id} has no task"
    ready = [task for task in submission.ready if task.state == T_READY]
    assert len(ready) == sum(t.state == T_READY for t in submission.tasks.values())
