"""The one door to the protocol: `Machine.handle(input, now)` takes what happened, and returns what
is to be done about it.

The same machine runs in every process. It owns the objects of the tasks that its process submits
(`references`, `submission`) and leases workers for them (`leasing`), runs the tasks that it is sent
(`execution`), and borrows from other owners (`borrowing`). One machine per host, the driver's, is
also the lessor of the host's workers (`lessor`).

Theory of operation; owner, executor and lessor may be any processes, or one and the same:

    submit ──► submission ──► leasing picks a worker ──► TASK ──► execution ──► (user's function)
                   ▲                                                                  │
                   └────── references: value and counts ◄──── DONE ◄──────────────────┘

It is pure. Time comes in as an argument, in nanoseconds of any monotonic clock; what it wants
done goes out as commands; a test can drive every interleaving. It never iterates over a set, so
one sequence of inputs gives one sequence of commands, in any process.

It is not thread-safe: its process calls it under one lock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from . import messages as m
from . import returns
from .borrowing import Borrowing
from .cancelling import Cancelling, cancel_all, cancel_unsent, fail_all
from .commands import (
    Command,
    Send,
)
from .deaths import Deaths
from .draining import Draining
from .execution import Execution
from .granting import Granting
from .ids import DRIVER, LOCAL_HOST, Address, ProcessNumber, Ref
from .inheritance import Inheritance
from .landlords import LocalLandlord, RemoteLandlord
from .leasing import OVERDUE_NS, Leases, Worker
from .lessor import Lessor
from .messages import Message
from .pressure import Pressure
from .recalling import on_recalled, recall_overdue
from .recovery import Recovery
from .references import Entry, ReferenceTable
from .reports import (
    Aborted,
    CancelAsked,
    CancelWithdrawn,
    Consumed,
    ErrorJudged,
    Fulfilled,
    HandleAdded,
    HandlesDropped,
    Interrupted,
    LookedAgain,
    Mapped,
    MemoryShort,
    Promised,
    Received,
    Returning,
    ShutdownAsked,
    Spilled,
    Stored,
    StreamClosed,
    StreamsCut,
    Submitted,
    TaskEnded,
    TimerDue,
    Unmapped,
    ValueLost,
    WaitBegun,
    WaitEnded,
    WorkerEnded,
    Yielded,
)
from .running import Running, take_awaited
from .spilling import Spilling
from .submission import Submission
from .values import BROKEN, FAILED, PENDING, READY, Failure

_NOTHING: list[Command] = []


class Machine:
    """The protocol state of one process.

    Args:
        number: the number of this process.
        max_workers: how many workers there may be; 0 in a process that is not their lessor.
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
        self.execution = Execution()
        self.borrowing = Borrowing(number, self.references, self.commands)
        self.leases = Leases()
        self.granting = Granting(self)
        self.lessor = Lessor(
            max_workers,
            max_tasks_per_worker,
            self.commands,
            self.granting.grant_here,
            self.granting.revoke_here,
            self.granting.take_idle,
        )
        landlord: Any = (
            LocalLandlord(self.lessor)
            if number == DRIVER
            else RemoteLandlord(self.execution, self.commands)
        )
        self.submission = Submission(
            number,
            self.references,
            self.borrowing,
            self.leases,
            self.execution,
            landlord,
            self.commands,
        )
        self.recovery = Recovery(
            number, self.references, self.borrowing, self.submission, self.commands
        )
        self.submission.recover = self.recovery.recover
        self.submission.unread = self.recovery.on_unread
        self.inheritance = Inheritance(number, self.references, self.commands)
        self.spilling = Spilling(
            number, self.references, self.leases, self._is_reachable, self.commands
        )
        self.broken: Failure | None = None  # why no worker can be had any more
        self.closing = False  # no more submissions
        self.drained = False  # and every task has its outcome
        self.workers_died = 0
        self._overdue_at: int | None = None  # when to look for tasks stuck behind a long one
        self.running = Running(
            number,
            self.execution,
            self.references,
            self.borrowing,
            self.submission,
            self.commands,
        )
        self.deaths = Deaths(self)
        self.pressure = Pressure(self.leases, self.lessor, self.commands)
        self.draining = Draining(self)
        self.cancelling = Cancelling(self)
        self._on_report = self._report_handlers()
        self._on_message = self._message_handlers()

    # -- the door

    def handle(self, report: object, now: int) -> list[Command]:
        """Take one report (see `reports`) at time `now` (ns); return the commands it leads to."""
        self._on_report[type(report)](report, now)
        submission = self.submission
        to_itself = self.number != DRIVER  # which runs no tasks, and borrows nothing of its own
        if to_itself and self.commands:
            self._hear_oneself(now)
        if submission.ready:
            submission.dispatch(now)
            if to_itself:
                self._hear_oneself(now)
            if submission.sent_ahead and self._overdue_at is None:
                self._overdue_at = now + OVERDUE_NS
        demand = submission.demand
        hears_busy = to_itself  # the lessor in another process does
        if not submission.ready and (demand.told_any or (hears_busy and submission.tasks)):
            demand.tell((), bool(submission.tasks), now)
        if self.borrowing.lost:
            self._fail_lost()
        if self.broken is not None and submission.tasks:
            fail_all(submission, self.broken, now)
        references = self.references
        if references.freed:
            self.inheritance.free(references.take_freed())
        if references.releases:
            self.borrowing.send_releases()
        if references.memory_bytes and self.spilling.is_due():
            self.spilling.relieve(now)
        if self.closing and not self.drained:
            self.draining.proceed()
        commands = self.commands
        if not commands:
            return _NOTHING
        told = commands[:]
        commands.clear()
        return told

    def _hear_oneself(self, now: int) -> None:
        """Take in the messages to this process itself, before anything is made of them."""
        commands = self.commands
        number = self.number
        while True:
            for command in commands:
                if type(command) is Send and command.peer == number:
                    break
            else:
                return
            said = [c for c in commands if type(c) is Send and c.peer == number]
            commands[:] = [c for c in commands if type(c) is not Send or c.peer != number]
            for command in said:
                self._on_message[command.message[0]](number, command.message, now)

    def take(self) -> tuple[ProcessNumber, Message] | None:
        """For the executing thread: the next item to run or apply, which counts as started."""
        return self.execution.take()

    def take_awaited(self, refs: Iterable[Ref]) -> tuple[ProcessNumber, Message] | None:
        """For the executing thread, while its task waits for these: one to run meanwhile."""
        running = self.execution.running
        if running is None or not running[1][9]:
            return None
        message = take_awaited(self.submission, refs)
        if message is None:
            return None
        item = (self.number, message)
        self.execution.started.append(item)
        return item

    def next_deadline(self) -> int | None:
        """When `TimerDue` is wanted, in ns; None for never. Ask after every `handle`."""
        due = self._overdue_at
        if self.cancelling.kill_at:
            due = _earlier(due, self.cancelling.next_deadline())
        lessor = self.lessor
        # With one owner only, as a rule, the lessor has none.
        if len(lessor.demands) > 1 or lessor.spare or lessor.orphans:
            due = _earlier(due, lessor.next_deadline())
        return due

    def may_leave(self) -> bool:
        """Whether a worker that was told to stop may end (Law 26: not while it owns objects)."""
        execution = self.execution
        if not execution.stopping or execution.queue:
            return False
        return execution.final or not (
            self.submission.tasks or any(type(ref) is int for ref in self.references.entries)
        )

    def check(self) -> None:
        """The invariants, in code; raises AssertionError."""
        self.references.check()
        self.borrowing.check()
        self.submission.check()
        self.cancelling.check()
        self.leases.check()
        self.lessor.check()
        self.spilling.check()

    def _report_handlers(self) -> dict[type, Callable[[Any, int], None]]:
        return {
            Submitted: self.submission.submit,
            Received: self._on_received,
            HandlesDropped: self._on_handles_dropped,
            ValueLost: self.recovery.on_value_lost,
            MemoryShort: self.pressure.on_memory_short,
            HandleAdded: self._on_handle_added,
            Stored: self._on_stored,
            Promised: self._on_promised,
            Fulfilled: self._on_fulfilled,
            Mapped: self._on_mapped,
            Unmapped: self.running.on_unmapped,
            CancelAsked: self.cancelling.on_asked,
            CancelWithdrawn: self.cancelling.on_withdrawn,
            Interrupted: self.cancelling.on_interrupted,
            ErrorJudged: self._on_error_judged,
            WorkerEnded: self.deaths.on_worker_ended,
            ShutdownAsked: self._on_shutdown_asked,
            Aborted: self._on_aborted,
            LookedAgain: self.draining.on_looked_again,
            TimerDue: self._on_timer_due,
            Returning: self.running.on_returning,
            TaskEnded: self.running.on_task_ended,
            WaitBegun: self.running.on_wait_begun,
            WaitEnded: self.running.on_wait_ended,
            Spilled: self.spilling.on_own_spilled,
            Yielded: self.running.on_yielded,
            Consumed: self._on_consumed,
            StreamClosed: self._on_stream_closed,
            StreamsCut: self._on_streams_cut,
        }

    def _message_handlers(self) -> dict[int, Callable[[ProcessNumber, Message, int], None]]:
        borrowing, inheritance, granting = self.borrowing, self.inheritance, self.granting
        return {
            m.DONE: self._on_done,
            m.TASK: self._on_work,
            m.ENTRY: self._on_work,
            m.ALIVE: granting.on_alive,
            m.INIT_FAILED: self.deaths.on_init_failed,
            m.RECALL: self._on_recall,
            m.RECALLED: self._on_recalled,
            m.INTERRUPT: self.cancelling.on_interrupt,
            m.CONDEMN: self.cancelling.on_condemn,
            m.FREE: self.running.on_free,
            m.ABANDON: self.running.on_abandon,
            m.UNMAPPED: self._on_unmapped,
            m.BLOCKED: granting.on_blocked,
            m.UNBLOCKED: granting.on_unblocked,
            m.STOP: self._on_stop,
            m.REGISTER: borrowing.on_register,
            m.REGISTERED: borrowing.on_registered,
            m.BORROW: self.recovery.on_borrow,
            m.LOST_VALUE: self.recovery.on_lost,
            m.CHECK: self.recovery.on_check,
            m.RELEASE: borrowing.on_release,
            m.CONFIRM: borrowing.on_confirm,
            m.OUTCOME: self._on_outcome,
            m.WANT: self._on_want,
            m.DEMAND: granting.on_demand,
            m.GIVE_BACK: granting.on_give_back,
            m.GRANT: granting.on_grant,
            m.REVOKE: granting.on_revoke,
            m.VACANT: granting.on_vacant,
            m.SAID: self._on_said,
            m.GONE: self.deaths.on_gone,
            m.HOLDING: inheritance.on_holding,
            m.UNHOLD: inheritance.on_unhold,
            m.BROKE: self._on_broke,
            m.SPILL: self.spilling.on_spill,
            m.SPILLED: self.spilling.on_spilled,
            m.MOVED: self.spilling.on_moved,
            m.YIELD: self._on_yield,
            m.CREDIT: self._on_credit,
            m.CONNECT: self._on_connect,
        }

    # -- reports of the process's own code

    def _on_stored(self, report: Stored, now: int) -> None:
        entry = self.references.create(report.object)
        entry.fate = "it was stored by put(), not computed by a task"
        entry.name = "put"
        self.submission.settle_entry(entry, READY, report.value, report.nested)

    def _on_promised(self, report: Promised, now: int) -> None:
        self.references.create(report.object).fate = "it came from a future of another executor"

    def _on_fulfilled(self, report: Fulfilled, now: int) -> None:
        entry = self.references.entries.get(report.object)
        if entry is not None and entry.status == PENDING:
            self._settle(entry, report.status, report.value)

    def _settle(self, entry: Entry, status: int, value: Any) -> None:
        """An object that is not made by a task of ours has its outcome."""
        dependents = self.submission.settle_entry(entry, status, value)
        if status != READY:
            for task in dependents:
                self.submission.settle(task, status, value)

    def _on_handle_added(self, report: HandleAdded, now: int) -> None:
        self.borrowing.acquire(report.object, report.lender)
        self.recovery.recover(report.object)

    def _on_handles_dropped(self, report: HandlesDropped, now: int) -> None:
        self.references.drop_handles(report.objects)

    def _on_mapped(self, report: Mapped, now: int) -> None:
        self.references.pin(self.number, report.extent)

    def _on_error_judged(self, report: ErrorJudged, now: int) -> None:
        self.submission.on_judged(report.task, report.attempt, report.retry)

    def _on_shutdown_asked(self, report: ShutdownAsked, now: int) -> None:
        self.closing = True
        if report.cancel:
            cancel_all(self.submission)

    def _on_aborted(self, report: Aborted, now: int) -> None:
        self.closing = True
        if self.broken is None:
            self.broken = (BROKEN, (report.text, None), "")
        cancel_unsent(self.submission)
        fail_all(self.submission, self.broken, now)
        self.lessor.forget_demands()

    def _on_timer_due(self, report: TimerDue, now: int) -> None:
        if self._overdue_at is not None and self._overdue_at <= now:
            self._overdue_at = recall_overdue(self.submission, now)
            self.submission.sent_ahead = self._overdue_at is not None
        self.cancelling.time_passed(now)
        if self.number == DRIVER:
            self.lessor.time_passed(now)

    def _on_consumed(self, report: Consumed, now: int) -> None:
        returns.on_consumed(self.submission, report.task, report.taken)

    def _on_stream_closed(self, report: StreamClosed, now: int) -> None:
        returns.close(self.submission, report.task)

    def _on_streams_cut(self, report: StreamsCut, now: int) -> None:
        returns.cut(self.submission)

    # -- messages

    def _on_received(self, report: Received, now: int) -> None:
        peer = report.peer
        handlers = self._on_message
        for message in report.messages:
            handlers[message[0]](peer, message, now)

    def _on_done(self, peer: ProcessNumber, message: Message, now: int) -> None:
        workers = self.leases.workers
        worker = workers.get(peer) if peer != self.number else self._executor_of(peer, message[1])
        self.submission.on_done(worker, message, now)

    def _on_yield(self, peer: ProcessNumber, message: Message, now: int) -> None:
        returns.on_yield(self.submission, self._executor_of(peer, message[1]), message)

    def _executor_of(self, peer: ProcessNumber, task_id: int) -> Worker | None:
        """The leased worker that says something of a task; this process, for what it waits for."""
        here = self.submission.here
        if peer == self.number and task_id in here.queue:
            return here
        return self.leases.workers.get(peer)

    def _on_credit(self, peer: ProcessNumber, message: Message, now: int) -> None:
        self.execution.on_credit(peer, message)

    def _on_work(self, peer: ProcessNumber, message: Message, now: int) -> None:
        self.execution.queue.append((peer, message))

    def _on_recall(self, peer: ProcessNumber, message: Message, now: int) -> None:
        self.commands.append(Send(peer, self.execution.recall(peer, message[1])))

    def _on_recalled(self, peer: ProcessNumber, message: Message, now: int) -> None:
        worker = self._executor_of(peer, message[1][0])
        if worker is not None:
            on_recalled(self.submission, worker, message[1], message[2], now)

    def _on_unmapped(self, peer: ProcessNumber, message: Message, now: int) -> None:
        for key in message[1]:
            self.references.unpin(peer, key)

    def _on_outcome(self, peer: ProcessNumber, message: Message, now: int) -> None:
        _, object_id, status, value, entries = message
        entry = self.references.entries.get(Address(LOCAL_HOST, peer, object_id))
        if entry is not None and entry.status == PENDING:
            entry.entries = entries
            self._settle(entry, status, value)

    def _on_want(self, peer: ProcessNumber, message: Message, now: int) -> None:
        self.submission.want(message[1])

    def _on_stop(self, peer: ProcessNumber, message: Message, now: int) -> None:
        self.execution.stopping = True
        self.execution.final |= message[1]

    def _on_connect(self, peer: ProcessNumber, message: Message, now: int) -> None:
        """A worker wants a link to another one, which the shell has seen to."""

    # -- ends

    def fail_with(self, failure: Failure, now: int) -> None:
        """No worker can be had any more."""
        self.broken = failure
        fail_all(self.submission, failure, now)

    def _on_broke(self, peer: ProcessNumber, message: Message, now: int) -> None:
        self.fail_with(message[1], now)

    def _on_said(self, peer: ProcessNumber, message: Message, now: int) -> None:
        _, number, messages = message
        self._on_received(Received(number, messages), now)

    def _is_reachable(self, number: ProcessNumber) -> bool:
        """Whether a writer of extents is there to be asked for something."""
        return number == self.number or number not in self.borrowing.dead

    def _fail_lost(self) -> None:
        for entry in self.borrowing.take_lost():
            self._settle(entry, FAILED, self.borrowing.failure_of(entry))

    def live_values(self) -> list[tuple[Ref, Any]]:
        """(object, value) of every object, own or borrowed, whose value is in shared memory."""
        return [
            (entry.id, self.references.current(entry.value))
            for entry in self.references.entries.values()
            if entry.status == READY and type(entry.value) is tuple
        ]


def _earlier(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)
