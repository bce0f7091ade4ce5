"""What follows when a process ends, or cannot be started.

The lessor hears first: it is the one that had the worker started. It tells all others (GONE), after
all that the dead one had said; each of them lets go of what it had kept for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import messages as m
from .commands import Log, Orphaned, Send
from .ids import DRIVER, ProcessNumber
from .lessor import STARTING
from .messages import Message
from .reports import WorkerEnded
from .values import BROKEN, Failure

if TYPE_CHECKING:
    from .machine import Machine

# Workers that end by themselves one after the other before they are ready: more attempts will not
# help. Of workers that were killed, or ended nobody knows how (with their template), it takes many
# more: that can be bad luck, unless it never ends.
FAILED_STARTS = 3
KILLED_STARTS = 50
_SIGKILL = -9

_ERROR = 40  # logging's number; the core imports no logging


class Deaths:
    """The part of a machine that buries others."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._failed_starts = self._killed_starts = 0  # in a row

    def started_well(self) -> None:
        """A worker is ready: whatever kept others from it is over."""
        self._failed_starts = self._killed_starts = 0

    def on_worker_ended(self, report: WorkerEnded, now: int) -> None:
        """A worker of this host has ended: the lessor tells everybody."""
        machine = self._machine
        process = machine.lessor.remove(report.worker, now)
        if process is None:
            return
        starting = process.status == STARTING
        leased = machine.leases.workers.get(report.worker)
        busy = leased is not None and leased.queue
        if starting or report.exitcode != 0 or busy:
            machine.workers_died += 1
        gone = (
            m.GONE,
            report.worker,
            report.owner,
            report.running,
            report.pid,
            report.exitcode,
            report.stack,
        )
        others = [p.number for p in machine.lessor.processes.values() if p.status != STARTING]
        for number in others:
            machine.commands.append(Send(number, gone))
        self._process_ended(gone, now)
        if starting and not machine.drained:
            self._count_failed_start(report, now)
        machine.inheritance.begin(report.worker, machine.lessor.demands)
        machine.lessor.balance(now)

    def _count_failed_start(self, report: WorkerEnded, now: int) -> None:
        machine = self._machine
        if report.exitcode is None or report.exitcode == _SIGKILL:
            self._killed_starts += 1
        else:
            self._failed_starts += 1
        if machine.broken is None and (
            self._failed_starts >= FAILED_STARTS or self._killed_starts >= KILLED_STARTS
        ):
            self._break(
                f"{self._failed_starts + self._killed_starts} workers in a row ended before they "
                f"were ready; the last one, pid {report.pid}, with exit status {report.exitcode}"
                + (f"\n{report.stack}" if report.stack else ""),
                None,
                now,
            )

    def on_init_failed(self, peer: ProcessNumber, message: Message, now: int) -> None:
        """The initializer raised."""
        machine = self._machine
        if machine.broken is None:
            self._break("the initializer raised in a worker", message[1], now)

    def _break(self, text: str, error: bytes | None, now: int) -> None:
        machine = self._machine
        failure: Failure = (BROKEN, (text, error), "")
        machine.commands.append(Log(_ERROR, "the pool is broken: %s", (text,)))
        for owner in machine.lessor.demands:
            if owner != DRIVER:
                machine.commands.append(Send(owner, (m.BROKE, failure)))
        machine.lessor.forget_demands()
        machine.fail_with(failure, now)

    def on_gone(self, peer: ProcessNumber, message: Message, now: int) -> None:
        """The lessor says that another process has ended."""
        machine = self._machine
        if message[1] in machine.borrowing.dead:
            return
        self._process_ended(message, now)
        machine.inheritance.answer(message[1])

    def _process_ended(self, message: Message, now: int) -> None:
        """Another process is dead, and all that it had said has been heard."""
        machine = self._machine
        _, number, owner, running, pid, exitcode, stack = message
        machine.borrowing.process_ended(number)
        machine.spilling.forget_writer(number)
        machine.running.process_ended(number)
        worker = machine.leases.remove(number)
        if worker is not None:
            mine = running if owner == machine.number else 0
            machine.submission.on_worker_ended(worker, mine, pid, exitcode, stack)
        if machine.execution.drop_owner(number):
            machine.commands.append(Orphaned())
        elif machine.number != DRIVER:
            machine.commands.append(Send(DRIVER, (m.VACANT,)))
