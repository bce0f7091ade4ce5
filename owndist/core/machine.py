"""The one door to the protocol: `Machine.handle(input, now)` takes what happened, and returns what
is to be done about it.

The same machine runs in every process. It owns the objects of the tasks that its process submits
(`references`, `submission`), runs the tasks that it is sent (`execution`), and borrows from other
owners (`borrowing`). One machine per host also leases out the host's workers (`leasing`).

Theory of operation, for one host whose driver owns everything:

    submit ──► submission ──► leasing picks a worker ──► TASK ──► execution ──► (user's function)
                   ▲                                                                  │
                   └────── references: value and counts ◄──── DONE ◄──────────────────┘

It is pure. Time comes in as an argument, in nanoseconds of any monotonic clock; what it wants
done goes out as commands; a test can drive every interleaving. It never iterates over a set, so
one sequence of inputs gives one sequence of commands, in any process.

It is not thread-safe: its process calls it under one lock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import returns
from .borrowing import Borrowing
from .commands import Command, Complete, Drained, Free, Log, Send, SweepDead, Unlink
from .execution import Execution
from .ids import DRIVER, Address, ObjectId, ProcessNumber
from .leasing import OVERDUE_NS, STARTING, Leasing
from .messages import (
    ALIVE,
    BLOCKED,
    BORROW,
    CREDIT,
    DONE,
    ENTRY,
    FREE,
    INIT_FAILED,
    MOVED,
    OUTCOME,
    PINNED,
    RECALL,
    RECALLED,
    RELEASE,
    SPILL,
    SPILLED,
    STOP,
    TASK,
    UNBLOCKED,
    UNMAPPED,
    YIELD,
    Message,
)
from .references import ReferenceTable
from .reports import (
    Aborted,
    CancelAsked,
    CancelWithdrawn,
    Consumed,
    ErrorJudged,
    Fulfilled,
    HandleAdded,
    HandlesDropped,
    Mapped,
    Promised,
    Received,
    ShutdownAsked,
    Spilled,
    Stored,
    StreamClosed,
    StreamsCut,
    Submitted,
    TaskEnded,
    TimerDue,
    Unmapped,
    WorkerEnded,
    Yielded,
)
from .spilling import Spilling
from .submission import Submission
from .values import BROKEN, FAILED, LOST, PENDING, READY, Failure

# Workers that end by themselves one after the other before they are ready: more attempts will not
# help. Of workers that were killed, or ended nobody knows how (with their template), it takes many
# more: that can be bad luck, unless it never ends.
FAILED_STARTS = 3
KILLED_STARTS = 50
_SIGKILL = -9

_ERROR, _WARNING, _INFO = 40, 30, 20  # logging's numbers; the core imports no logging


class Machine:
    """The protocol state of one process.

    Args:
        number: the number of this process.
        max_workers: how many workers this machine may lease out; 0 in a process that leases none.
        max_tasks_per_worker: after so many tasks a worker is replaced; None for never.
    """

    def __init__(
        self,
        number: ProcessNumber = DRIVER,
        max_workers: int = 0,
        max_tasks_per_worker: int | None = None,
    ) -> None:
        self.number = number
        self.commands: list[Command] = []
        self.references = ReferenceTable()
        self.leasing = Leasing(max_workers, max_tasks_per_worker)
        self.submission = Submission(self.references, self.leasing, self.commands)
        self.execution = Execution()
        self.borrowing = Borrowing()
        self.spilling = Spilling(
            number,
            self.references,
            self.leasing,
            self._is_reachable,
            self.commands,
        )
        self.broken: Failure | None = None  # why no worker can be had any more
        self.closing = False  # no more submissions
        self.drained = False  # and every task has its outcome
        self.workers_died = 0
        self._releases: list[tuple[ProcessNumber, ObjectId, int]] = []  # see `_release`
        self._failed_starts = self._killed_starts = 0  # in a row
        self._deadline: int | None = None
        self._dead: dict[ProcessNumber, dict[str, int]] = {}  # {dead writer: {segment: extents}}
        self._on_report: dict[type, Callable[[Any, int], None]] = {
            Submitted: self._on_submitted,
            Received: self._on_received,
            HandlesDropped: self._on_handles_dropped,
            HandleAdded: self._on_handle_added,
            Stored: self._on_stored,
            Promised: self._on_promised,
            Fulfilled: self._on_fulfilled,
            Mapped: self._on_mapped,
            Unmapped: self._on_own_unmapped,
            CancelAsked: self._on_cancel_asked,
            CancelWithdrawn: self._on_cancel_withdrawn,
            ErrorJudged: self._on_error_judged,
            WorkerEnded: self._on_worker_ended,
            ShutdownAsked: self._on_shutdown_asked,
            Aborted: self._on_aborted,
            TimerDue: self._on_timer_due,
            TaskEnded: self._on_task_ended,
            Spilled: self.spilling.on_own_spilled,
            Yielded: self._on_yielded,
            Consumed: self._on_consumed,
            StreamClosed: self._on_stream_closed,
            StreamsCut: self._on_streams_cut,
        }
        self._on_message: dict[int, Callable[[ProcessNumber, Message, int], None]] = {
            DONE: self._on_done,
            TASK: self._on_work,
            ENTRY: self._on_work,
            ALIVE: self._on_alive,
            INIT_FAILED: self._on_init_failed,
            RECALL: self._on_recall,
            RECALLED: self._on_recalled,
            FREE: self._on_free,
            RELEASE: self._on_release,
            UNMAPPED: self._on_unmapped,
            PINNED: self._on_pinned,
            BORROW: self._on_borrow,
            OUTCOME: self._on_outcome,
            BLOCKED: self._on_blocked,
            UNBLOCKED: self._on_unblocked,
            STOP: self._on_stop,
            SPILL: self.spilling.on_spill,
            SPILLED: self.spilling.on_spilled,
            MOVED: self.spilling.on_moved,
            YIELD: self._on_yield,
            CREDIT: self._on_credit,
        }

    # -- the door

    def handle(self, report: object, now: int) -> list[Command]:
        """Take one report (see `reports`) at time `now` (ns); return the commands it leads to."""
        self._on_report[type(report)](report, now)
        if self.submission.ready:
            self.submission.dispatch(now)
            if self.submission.sent_ahead and self._deadline is None:
                self._deadline = now + OVERDUE_NS
        freed = self.references.take_freed()
        if freed:
            self._free(freed)
        if self.spilling.is_due():
            self.spilling.relieve(now)
        if self.closing and not self.drained and not self.submission.tasks:
            self.drained = True
            for worker in self.leasing.retire_all():
                self.commands.append(Send(worker.number, (STOP,)))
            self.commands.append(Drained())
        commands = self.commands[:]
        self.commands.clear()
        return commands

    def take(self) -> tuple[ProcessNumber, Message] | None:
        """For the executing thread: the next item to run or apply, which counts as started."""
        return self.execution.take()

    def next_deadline(self) -> int | None:
        """When `TimerDue` is wanted, in ns; None for never. Ask after every `handle`."""
        return self._deadline

    def check(self) -> None:
        """The invariants, in code; raises AssertionError."""
        self.references.check()
        self.submission.check()
        self.leasing.check()
        self.spilling.check()

    # -- reports of the process's own code

    def _on_submitted(self, report: Submitted, now: int) -> None:
        self.submission.submit(report)
        if self.broken is not None:
            self.submission.fail_all(self.broken)

    def _on_stored(self, report: Stored, now: int) -> None:
        entry = self.references.create(report.object)
        self.submission.settle_entry(entry, READY, report.value, report.nested)

    def _on_promised(self, report: Promised, now: int) -> None:
        self.references.create(report.object)

    def _on_fulfilled(self, report: Fulfilled, now: int) -> None:
        entry = self.references.entries.get(report.object)
        if entry is None or entry.status != PENDING:
            return
        dependents = self.submission.settle_entry(entry, report.status, report.value)
        if report.status != READY:
            for task in dependents:
                self.submission.settle(task, report.status, report.value)

    def _on_handle_added(self, report: HandleAdded, now: int) -> None:
        if type(report.object) is int:
            self.references.entries[report.object].handles += 1
        else:
            address: Address = report.object  # type: ignore[assignment]
            if self.borrowing.acquire(address):
                self.commands.append(Send(address.owner, (BORROW, address.id)))

    def _on_handles_dropped(self, report: HandlesDropped, now: int) -> None:
        own = [item for item in report.objects if type(item) is int]
        if own:
            self.references.drop_handles(own)
        if len(own) < len(report.objects):
            for item in report.objects:
                if type(item) is not int:
                    released = self.borrowing.drop(item)  # type: ignore[arg-type]
                    if released is not None:
                        self._releases.append(released)
            self._release()

    def _release(self) -> None:
        """Tell owners of registrations that ended; while a task runs, that waits for its DONE.

        The task may have taken something out of the object before it let go of it: another
        future, a view of its memory. The owner hears of those with the DONE, and what it hears
        first must not be that nobody needs the object any more.
        """
        if self._releases and self.execution.running is None:
            for owner, object_id, token in self._releases:
                self.commands.append(Send(owner, (RELEASE, ((object_id, token),))))
            self._releases.clear()

    def _on_mapped(self, report: Mapped, now: int) -> None:
        self.references.pin(self.number, report.extent)

    def _on_own_unmapped(self, report: Unmapped, now: int) -> None:
        if self.number == DRIVER:
            for key in report.extents:
                self.references.unpin(self.number, key)
        else:
            # Every extent that a worker maps came as an argument, or inside one, from the driver.
            self.commands.append(Send(DRIVER, (UNMAPPED, tuple(report.extents))))

    def _on_cancel_asked(self, report: CancelAsked, now: int) -> None:
        self.submission.cancel(report.task)

    def _on_cancel_withdrawn(self, report: CancelWithdrawn, now: int) -> None:
        self.submission.withdraw_cancel(report.task)

    def _on_error_judged(self, report: ErrorJudged, now: int) -> None:
        self.submission.on_judged(report.task, report.attempt, report.retry)

    def _on_shutdown_asked(self, report: ShutdownAsked, now: int) -> None:
        self.closing = True
        if report.cancel:
            self.submission.cancel_all()

    def _on_aborted(self, report: Aborted, now: int) -> None:
        self.closing = True
        if self.broken is None:
            self.broken = (BROKEN, (report.text, None), "")
        self.submission.cancel_unsent()
        self.submission.fail_all(self.broken)

    def _on_timer_due(self, report: TimerDue, now: int) -> None:
        self._deadline = self.submission.recall_overdue(now)
        self.submission.sent_ahead = self._deadline is not None

    def _on_task_ended(self, report: TaskEnded, now: int) -> None:
        self.commands.append(self.execution.end(report, self._extras(report)))
        self._release()

    def _on_yielded(self, report: Yielded, now: int) -> None:
        self.commands.append(self.execution.tell(report, self._extras(report)))

    def _extras(self, report: TaskEnded | Yielded) -> Any:
        """What the owner of the running task hears with a value."""
        assert self.execution.running is not None
        owner = self.execution.running[0]
        borrowed = self.borrowing.register(owner) if self.borrowing.objects else ()
        if borrowed or report.mapped or report.nested or report.entries:
            return (borrowed, report.mapped, report.nested, report.entries)
        return None

    def _on_consumed(self, report: Consumed, now: int) -> None:
        returns.on_consumed(self.submission, report.task, report.taken)

    def _on_stream_closed(self, report: StreamClosed, now: int) -> None:
        returns.close(self.submission, report.task)

    def _on_streams_cut(self, report: StreamsCut, now: int) -> None:
        returns.cut(self.submission)

    def _on_worker_ended(self, report: WorkerEnded, now: int) -> None:
        worker = self.leasing.remove(report.worker)
        if worker is None:
            return
        self.references.drop_process(report.worker)
        starting = worker.status == STARTING
        expected = not starting and report.exitcode == 0 and not worker.queue
        if not expected:
            self.workers_died += 1
        self.submission.on_worker_ended(
            worker, report.running, report.pid, report.exitcode, report.stack
        )
        if starting and not self.drained:
            self._count_failed_start(report)
        self._adopt_segments(report.worker)

    def _count_failed_start(self, report: WorkerEnded) -> None:
        if report.exitcode is None or report.exitcode == _SIGKILL:
            self._killed_starts += 1
        else:
            self._failed_starts += 1
        if self.broken is None and (
            self._failed_starts >= FAILED_STARTS or self._killed_starts >= KILLED_STARTS
        ):
            self._break(
                f"{self._failed_starts + self._killed_starts} workers in a row ended before they "
                f"were ready; the last one, pid {report.pid}, with exit status {report.exitcode}"
                + (f"\n{report.stack}" if report.stack else ""),
                None,
            )

    # -- messages

    def _on_received(self, report: Received, now: int) -> None:
        peer = report.peer
        handlers = self._on_message
        for message in report.messages:
            handlers[message[0]](peer, message, now)

    def _on_done(self, peer: ProcessNumber, message: Message, now: int) -> None:
        self.submission.on_done(self.leasing.workers.get(peer), message, now)

    def _on_work(self, peer: ProcessNumber, message: Message, now: int) -> None:
        self.execution.queue.append((peer, message))

    def _on_alive(self, peer: ProcessNumber, message: Message, now: int) -> None:
        worker = self.leasing.workers.get(peer)
        if worker is None:
            return
        self._failed_starts = self._killed_starts = 0
        if worker.status == STARTING:
            self.leasing.came_up(worker, message[1])
            self.submission.settle_down(worker)

    def _on_init_failed(self, peer: ProcessNumber, message: Message, now: int) -> None:
        if self.broken is None:
            self._break("the initializer raised in a worker", message[1])

    def _break(self, text: str, error: bytes | None) -> None:
        self.broken = (BROKEN, (text, error), "")
        self.commands.append(Log(_ERROR, "the pool is broken: %s", (text,)))
        self.submission.fail_all(self.broken)

    def _on_recall(self, peer: ProcessNumber, message: Message, now: int) -> None:
        self.commands.append(Send(peer, self.execution.recall(peer, message[1])))

    def _on_recalled(self, peer: ProcessNumber, message: Message, now: int) -> None:
        worker = self.leasing.workers.get(peer)
        if worker is not None:
            self.submission.on_recalled(worker, message[1], message[2])

    def _on_free(self, peer: ProcessNumber, message: Message, now: int) -> None:
        for serial in message[1]:
            self.commands.append(Free(serial))

    def _on_release(self, peer: ProcessNumber, message: Message, now: int) -> None:
        for object_id, token in message[1]:
            self.references.drop_borrower(object_id, peer, token)

    def _on_pinned(self, peer: ProcessNumber, message: Message, now: int) -> None:
        for key in message[1]:
            self.references.pin(peer, key)

    def _on_unmapped(self, peer: ProcessNumber, message: Message, now: int) -> None:
        for key in message[1]:
            self.references.unpin(peer, key)

    def _on_borrow(self, peer: ProcessNumber, message: Message, now: int) -> None:
        object_id = message[1]
        entry = self.references.entries.get(object_id)
        if entry is None:
            failure = (LOST, "its owner had let it go", "")
            self.commands.append(Send(peer, (OUTCOME, object_id, FAILED, failure, ())))
        elif entry.status == PENDING:
            if entry.subscribers is None:
                entry.subscribers = []
            entry.subscribers.append(peer)
        else:
            value = self.references.tell(entry.value)
            outcome = (OUTCOME, object_id, entry.status, value, entry.entries)
            self.commands.append(Send(peer, outcome))

    def _on_outcome(self, peer: ProcessNumber, message: Message, now: int) -> None:
        _, object_id, status, value, _ = message
        address = Address(0, peer, object_id)
        if self.borrowing.answered(address):
            self.commands.append(Complete(address, status, value))  # type: ignore[arg-type]

    def _on_blocked(self, peer: ProcessNumber, message: Message, now: int) -> None:
        worker = self.leasing.workers.get(peer)
        if worker is None:
            return
        self.submission.want(message[1])
        if self.leasing.block(worker) and len(worker.queue) > 1:
            self.submission.recall(worker)

    def _on_unblocked(self, peer: ProcessNumber, message: Message, now: int) -> None:
        worker = self.leasing.workers.get(peer)
        if worker is not None:
            self.leasing.unblock(worker)
            if not worker.queue:  # its task has been given up meanwhile
                self.submission.settle_down(worker)

    def _on_yield(self, peer: ProcessNumber, message: Message, now: int) -> None:
        returns.on_yield(self.submission, self.leasing.workers.get(peer), message)

    def _on_credit(self, peer: ProcessNumber, message: Message, now: int) -> None:
        self.execution.on_credit(peer, message)

    def _on_stop(self, peer: ProcessNumber, message: Message, now: int) -> None:
        self.execution.stopping = True

    # -- memory

    def _free(self, freed: list[Any]) -> None:
        """Tell whoever wrote the extents that they are free."""
        by_writer: dict[ProcessNumber, list[int]] = {}
        for number, serial, segment, _, _ in freed:
            if number == self.number:
                self.commands.append(Free(serial))
            elif number in self._dead:
                segments = self._dead[number]
                segments[segment] -= 1
                if not segments[segment]:
                    del segments[segment]
                    self.commands.append(Unlink(segment))
                    if not segments:
                        del self._dead[number]
            elif number in self.leasing.workers:
                by_writer.setdefault(number, []).append(serial)
        for number, serials in by_writer.items():
            self.commands.append(Send(number, (FREE, tuple(serials))))

    def _adopt_segments(self, number: ProcessNumber) -> None:
        """A worker is dead; what it wrote lives on. From here on this machine looks after it."""
        self._free(self.references.take_freed())
        self.spilling.forget_writer(number)
        segments: dict[str, int] = {}
        for record in self.references.extents.values():
            if record.extent[0] == number:
                segment = record.extent[2]
                segments[segment] = segments.get(segment, 0) + 1
        if segments:
            self._dead[number] = segments
        self.commands.append(SweepDead(number, frozenset(segments)))

    def _is_reachable(self, number: ProcessNumber) -> bool:
        """Whether a writer of extents is there to be asked for something."""
        return number == self.number or number in self.leasing.workers

    def live_values(self) -> list[tuple[int, Any]]:
        """(object, value) of every object whose value is in shared memory."""
        return [
            (entry.id, self.references.current(entry.value))
            for entry in self.references.entries.values()
            if entry.status == READY and type(entry.value) is tuple
        ]
