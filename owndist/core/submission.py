"""The owner's side of tasks: from submission to outcome.

Rules of this file: every change of a task's state (see `task`) happens here or in `cancelling`.
Dependencies are resolved here, at the owner, before a worker is sought (Ownership paper, section
4.1; Ray does the same): a task that is READY has every value it needs.

An attempt number goes with every dispatch and comes back with the result; anything that carries
another one is stale and changes nothing. Purity does not save one from late reports; numbers do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from . import returns as several
from .borrowing import Borrowing
from .commands import CancelAnswered, Command, Complete, JudgeError, Log, Send
from .demand import Demand, Landlord
from .execution import Execution
from .ids import ExtentKey, ObjectId, ProcessNumber, Ref, TaskId, execution_id
from .inputs import await_inputs
from .leasing import AHEAD_NS, Leases, Worker
from .messages import OUTCOME, TASK, WANT
from .recalling import is_wanted, recall
from .references import Entry, ReferenceTable
from .reports import Submitted
from .task import T_JUDGING, T_OVER, T_READY, T_SENT, T_STOPPING, T_WAITING, Task
from .values import (
    CANCELLED,
    DIED,
    ERROR,
    FAILED,
    GONE,
    LOST,
    PENDING,
    READY,
    UNREAD,
    Failure,
    Value,
)

# What a task costs a worker besides the user's function: reading, unpickling, replying. It bounds
# how many no-op tasks are sent ahead.
LEAST_COST_NS = 10_000

_WARNING = 30  # logging's number; the core imports no logging


class Submission:
    """The tasks of this owner."""

    def __init__(
        self,
        number: ProcessNumber,
        references: ReferenceTable,
        borrowing: Borrowing,
        leases: Leases,
        execution: Execution,
        landlord: Landlord,
        commands: list[Command],
    ) -> None:
        self.number = number
        self.references = references
        self.borrowing = borrowing
        self.leases = leases
        self.landlord = landlord
        # This process as a worker of its own: it runs tasks for which it waits.
        self.here = Worker(number)
        self.tasks: dict[TaskId, Task] = {}
        # Tasks with several values, by the objects that do not have the task's own id.
        self.makers: dict[ObjectId, Task] = {}
        self.ready: deque[Task] = deque()
        self.estimates: dict[int, int] = {}  # {function: nanoseconds per task, lately}
        self.submitted = self.finished = self.failed = self.cancelled = self.retried = 0
        self.cancelling_all = False  # what has not started is not to start any more
        self.sent_ahead = False  # something may wait behind a task on a worker
        self.sent_to_idle = False  # a worker has been given something that had nothing to do
        self.demand = Demand(landlord)
        # Set by the machine; see `recovery`.
        self.recover: Callable[[Ref], None]
        self.unread: Callable[[Task, str, ExtentKey], None]
        self._execution = execution
        self._commands = commands

    # -- coming in

    def submit(self, report: Submitted, now: int) -> None:
        """A new task; its future exists and counts as a handle."""
        references = self.references
        entries = references.entries
        self.submitted += 1
        task = Task(report)
        if self._execution.started:
            task.parent = self._execution.current()
        self.tasks[task.id] = task
        references.create(task.id).name = task.name
        if report.returns != 1:
            several.expect(self, task, report)
        if type(task.args) is tuple:
            references.hold(task.args)
        if task.nested:
            for object_id in task.nested:
                entries[object_id].arguments += 1
        if task.slots:
            for object_id in task.slots:
                entries[object_id].arguments += 1
            await_inputs(self, task)
            if task.state != T_READY:
                return
        self.ready.append(task)

    # -- to the workers

    def dispatch(self, now: int) -> None:
        """Hand ready tasks to workers that can take one, and ask for more workers if need be."""
        ready = self.ready
        leases = self.leases
        while ready:
            task = ready[0]
            if task.state != T_READY:
                ready.popleft()  # cancelled, failed with an argument, or run here meanwhile
                continue
            cost = self.estimates.get(task.function, AHEAD_NS)
            worker = leases.pick(cost)
            if worker is None:
                self.demand.tell(ready, bool(self.tasks), now)
                worker = leases.pick(cost)  # it may have been had at once
                if worker is None:
                    return
            ready.popleft()
            if worker.queue:
                self.sent_ahead = True
            else:
                self.sent_to_idle = True
            task.cost_ns = cost
            leases.assign(worker, task, now)
            self._commands.append(Send(worker.number, self.start(task, worker)))

    def start(self, task: Task, worker: Worker) -> tuple[Any, ...]:
        """The task goes to the worker, which has it in its queue already."""
        task.state = T_SENT
        task.worker = worker
        task.attempt += 1
        needs = task.entries
        slots: Any = None
        if task.slots:
            objects = [self.references.entries[ref] for ref in task.slots]
            slots = tuple([self.references.current(entry.value) for entry in objects])
            for entry in objects:
                needs += entry.entries
        return (
            TASK,
            task.id,
            task.attempt,
            task.function,
            needs,
            task.args if type(task.args) is bytes else self.references.current(task.args),
            slots,
            task.name,
            None if task.returns is None else task.returns.begin(),
            # A task that it ran itself might have been what killed the last one.
            task.charged == 0 and task.max_retries > 0,
        )

    def task_of(self, object_id: ObjectId) -> Task | None:
        """The task that makes an object, until it has its outcome."""
        return self.tasks.get(object_id) or self.makers.get(object_id)

    def want(self, ref: Ref) -> None:
        """A worker waits for this object: its task, and those that it waits for, go first."""
        todo = [ref]
        while todo:
            wanted = todo.pop()
            if type(wanted) is not int:
                self._commands.append(Send(wanted.owner, (WANT, wanted.id)))  # type: ignore[union-attr]
                continue
            task = self.task_of(wanted)
            if task is None or task.wanted:
                continue
            task.wanted = True
            if task.state == T_READY:
                self.demand.wanted = True
                self.ready.remove(task)
                self.ready.appendleft(task)
            else:
                todo.extend(task.slots)

    def requeue(self, task: Task) -> None:
        """No worker has the task any more, and it has no outcome."""
        if task.state == T_STOPPING:
            self.let_go(task)
            return
        task.worker = None
        if task.cancel_asked or (task.returns is not None and task.returns.closed):
            self.settle(task, CANCELLED, None)
            return
        if task.slots:
            await_inputs(self, task)  # a value may have been lost meanwhile
            if task.state != T_READY:
                return
        task.state = T_READY
        self.demand.wanted |= task.wanted
        self.ready.appendleft(task)

    def settle_down(self, worker: Worker, now: int) -> None:
        """After changes to a worker's queue."""
        if worker is self.here:
            return
        leases = self.leases
        if leases.settle_down(worker) or (
            worker.number in leases.idle and self.landlord.wants_back()
        ):
            self.give_back(worker, now)

    def give_back(self, worker: Worker, now: int) -> None:
        """A worker with nothing to do goes back to the lessor."""
        self.leases.remove(worker.number)
        self.landlord.give_back(worker.number, worker.ran, now)

    def give_back_idle(self, now: int) -> None:
        """Nothing here will need them soon."""
        for worker in list(self.leases.idle.values()):
            self.give_back(worker, now)

    def revoke(self, worker: Worker, now: int) -> None:
        """The lessor wants it back: it does what it has started, and no more."""
        self.leases.revoke(worker)
        if len(worker.queue) > 1 and not worker.asked_back:
            recall(self, worker)
        self.settle_down(worker, now)

    def block(self, worker: Worker) -> None:
        """The worker's task waits for a future; what stands behind it goes elsewhere."""
        if self.leases.block(worker) and len(worker.queue) > 1:
            recall(self, worker)

    def unblock(self, worker: Worker, now: int) -> None:
        """It waits no more."""
        if worker.waits:
            worker.waits = False
            if not worker.queue or not worker.open:  # else it is passed over until it reports
                self.settle_down(worker, now)

    # -- coming back

    def on_done(self, worker: Worker | None, message: tuple[Any, ...], now: int) -> None:
        """A worker has run a task."""
        _, task_id, attempt, status, value, elapsed_ns, extras = message
        task = self.tasks.get(task_id)
        if worker is None or task is None or not task.runs_on(worker, attempt):
            # Stale. A stored value's memory goes with its worker: it may have been freed before.
            if extras is not None:
                self.references.release_all(extras[1], self.number)
            return
        del worker.queue[task_id]
        worker.load_ns -= task.cost_ns
        worker.progress_at = now
        if status == UNREAD and task.state == T_SENT:
            self.settle_down(worker, now)
            self.borrowing.take_extras(worker.number, extras)
            self.unread(task, *value)
            return
        if task.state == T_SENT:
            _learn(self.estimates, task.function, elapsed_ns)
        if worker.queue and not worker.waits and not worker.leaving and worker.left != 0:
            if worker.load_ns * 2 <= AHEAD_NS and worker is not self.here:
                self.leases.hungry[worker.number] = worker
        else:
            self.settle_down(worker, now)
        if task.cancel_asked:
            task.cancel_asked = False
            self._commands.append(CancelAnswered(task_id, False))
        nested: tuple[Ref, ...] = ()
        if extras is not None:
            # Before the arguments are let go: from here on these keep what they name.
            nested, entries = self.borrowing.take_extras(worker.number, extras)
            entry = self.references.entries.get(task_id) if entries else None
            if entry is not None and entry.status == PENDING and task.state == T_SENT:
                entry.entries = entries
        if task.state == T_STOPPING:
            self.borrowing.discard(worker.number, status, value, nested)
            self.let_go(task)
        elif task.returns is not None and status == READY and not several.is_awaited(self, task_id):
            self.borrowing.discard(worker.number, status, value, nested)
            self.finished += 1
            self.settle(task, READY, None)  # it ran again for other values
        elif (
            status == READY
            and type(value) is tuple
            and self.references.is_lost(value, worker.number)
        ):
            self.failed += 1
            text = "it was let go before its task had passed it on"
            self.settle(task, FAILED, (LOST, text, task.name))
            self.references.release_unneeded(nested)
        elif status == READY:
            self.finished += 1
            self.settle(task, READY, value, nested)
        elif status == CANCELLED:
            self.settle(task, CANCELLED, None)  # a stream that was not let go on to its end
        elif task.judged and value[0] == ERROR and task.charged < task.max_retries:
            task.state = T_JUDGING
            task.worker = None
            task.failure = value
            self._commands.append(JudgeError(task_id, attempt, value[1], task.judged))
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
            self.requeue(task)
        else:
            self.failed += 1
            self.settle(task, FAILED, task.failure)

    def on_worker_ended(
        self, worker: Worker, running: int, pid: int | None, exitcode: int | None, stack: str
    ) -> None:
        """A leased worker is gone. What it ran is charged a retry; what only waited is not.

        `running` is the execution of a task of this owner that it had started, or 0. A task may
        have come back to the worker that has just reported it, so the attempt counts.
        """
        backwards = list(worker.queue.values())[::-1]
        for task in sorted(backwards, key=is_wanted):
            if execution_id(task.id, task.attempt) != running or task.state == T_STOPPING:
                self.requeue(task)
                continue
            task.charged += 1
            if task.charged <= task.max_retries:
                if not task.cancel_asked:
                    self.retried += 1
                    text = "worker %s (pid %s) ended (%s) while it ran task %r; running it again"
                    details = (worker.number, pid, exitcode, task.name)
                    self._commands.append(Log(_WARNING, text, details))
                self.requeue(task)
            else:
                self.failed += 1
                self.settle(task, FAILED, (DIED, (pid, exitcode, task.charged, stack), task.name))
        worker.queue.clear()

    # -- outcomes

    def settle(
        self,
        task: Task,
        status: int,
        value: Value | Failure | None,
        nested: tuple[Ref, ...] = (),
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
            dependents = self.conclude(task, status, value, nested)
            # What lies inline is lost only with this process; see `lineage`.
            stored = type(value) is tuple and type(value[0]) is tuple
            self.let_go(task, status == READY and (stored or task.returns is not None))
            if dependents and status != READY:
                todo.extend(dependents)
                nested = ()

    def conclude(
        self,
        task: Task,
        status: int,
        value: Value | Failure | None,
        nested: tuple[Ref, ...] = (),
    ) -> list[Task]:
        """All that the task has not given yet has its outcome. Returns what `settle_entry` does."""
        if task.cancel_asked:
            task.cancel_asked = False
            self._commands.append(CancelAnswered(task.id, status == CANCELLED))
        self.cancelled += status == CANCELLED
        if task.returns is not None:
            return several.settle(self, task, status, value, nested)
        return self.settle_entry(self.references.entries[task.id], status, value, nested)

    def let_go(self, task: Task, retain: bool = False) -> None:
        """The task is over: it needs its arguments no more, unless it may have to run again."""
        task.state = T_OVER
        task.parent = None  # if it runs again, that is for whoever wants its value
        del self.tasks[task.id]
        missing: list[ObjectId] = []
        if task.returns is not None:
            several.forget(self, task)
            if retain:
                missing = several.take_missing(self, task)
        references = self.references
        retained = retain and references.lineage.retain(task)
        if not retained:
            if type(task.args) is tuple:
                references.drop(task.args)
            task.args = b""
        for object_id in task.slots:
            references.drop_argument(object_id)
        for object_id in task.nested:
            references.drop_argument(object_id)
        if retained:
            references.release_unneeded(task.objects())  # perhaps only others' lineage keeps them
            references.lineage.evict()
        for object_id in missing:
            self.recover(object_id)

    def settle_entry(
        self,
        entry: Entry,
        status: int,
        value: Value | Failure | None,
        nested: tuple[Ref, ...] = (),
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
                        self.demand.wanted = True
                        self.ready.appendleft(task)
                    else:
                        self.ready.append(task)
        return dependents

    def check(self) -> None:
        """The invariants; raises AssertionError naming the task."""
        _check(self)


def _learn(estimates: dict[int, int], function: int, elapsed_ns: int) -> None:
    """How long a call of a function takes: a moving mean that falls fast and rises slowly.

    The first call of a function pays for imports, and a task that turns out long is called back
    from behind anyway.
    """
    cost = elapsed_ns if elapsed_ns > LEAST_COST_NS else LEAST_COST_NS
    estimate = estimates.get(function)
    if estimate is not None:
        cost = estimate + ((cost - estimate) >> (1 if cost < estimate else 3))
    estimates[function] = cost


def _check(submission: Submission) -> None:
    references, leases = submission.references, submission.leases
    entries = references.entries
    arguments: dict[Ref, int] = {}
    for task in submission.tasks.values():
        if task.state != T_STOPPING:
            awaited = [several.is_awaited(submission, ref) for ref in task.objects()]
            lost_since = task.returns is not None  # what it runs for again may be unwanted by now
            assert any(awaited) or lost_since, f"task {task.id}: no entry"
        pending = [s for s in task.slots if entries[s].status == PENDING]
        if task.state in (T_WAITING, T_READY):
            assert task.waiting == len(pending), f"task {task.id} waits for {task.waiting}"
            assert (task.state == T_WAITING) == bool(pending), f"task {task.id}: {task.state}"
            assert all(entries[s].status != GONE for s in task.slots), f"task {task.id} waits"
        for slot in task.slots + task.nested:
            arguments[slot] = arguments.get(slot, 0) + 1
        if task.state in (T_SENT, T_STOPPING):
            assert task.worker is not None and task.worker.queue.get(task.id) is task
            here = task.worker is submission.here
            assert here or leases.workers.get(task.worker.number) is task.worker
        assert task.charged <= task.max_retries, f"task {task.id} overspent its retries"
    for entry in entries.values():
        assert entry.arguments == arguments.get(entry.id, 0), (
            f"object {entry.id} counts {entry.arguments} pending arguments"
        )
    for object_id, task in submission.makers.items():
        assert submission.tasks.get(task.id) is task, f"object {object_id} has no task"
    ready = {task.id for task in submission.ready if task.state == T_READY}
    assert len(ready) == sum(t.state == T_READY for t in submission.tasks.values())
