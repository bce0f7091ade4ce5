"""Both ends of a lease, as the machine hears of them: what a lessor grants, what an owner is given.

The driver is lessor and owner in one, so its two ends talk to each other by calls; between
processes they talk by messages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .commands import Send
from .ids import DRIVER, ProcessNumber
from .messages import BROKE, Message

if TYPE_CHECKING:
    from .machine import Machine


class Granting:
    """The part of a machine that leases workers."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    # -- an owner in the lessor's own process

    def grant_here(self, number: ProcessNumber, left: int | None) -> None:
        """The lessor has given this process a worker."""
        self._machine.submission.demand.granted()
        self._machine.leases.add(number, left)

    def revoke_here(self, number: ProcessNumber, now: int) -> None:
        """The lessor wants it back."""
        worker = self._machine.leases.workers.get(number)
        if worker is not None:
            self._machine.submission.revoke(worker, now)

    def take_idle(self) -> ProcessNumber | None:
        """An idle worker of this process's goes to somebody else."""
        leases = self._machine.leases
        if not leases.idle:
            return None
        number, worker = next(iter(leases.idle.items()))
        leases.remove(number)
        self._machine.lessor.processes[number].ran += worker.ran
        return number

    # -- to an owner elsewhere

    def on_grant(self, peer: ProcessNumber, message: Message, now: int) -> None:
        """The lessor has given this process a worker."""
        machine = self._machine
        _, number, left = message
        machine.submission.demand.granted()
        if number in machine.borrowing.dead:
            return
        worker = machine.leases.add(number, left)
        machine.submission.dispatch(now)  # now: the next grant may be one too many
        if worker.number in machine.leases.idle:
            machine.submission.settle_down(worker, now)

    def on_revoke(self, peer: ProcessNumber, message: Message, now: int) -> None:
        """The lessor wants one back."""
        self.revoke_here(message[1], now)

    # -- to the lessor

    def on_alive(self, peer: ProcessNumber, message: Message, now: int) -> None:
        """A worker is ready for tasks."""
        machine = self._machine
        if peer in machine.lessor.processes:
            machine.deaths.started_well()
            machine.lessor.came_up(peer, message[1], now)

    def on_demand(self, peer: ProcessNumber, message: Message, now: int) -> None:
        """A worker that owns tasks could use others."""
        machine = self._machine
        if peer not in machine.lessor.processes:
            return
        _, count, granted, wanted, busy = message
        if machine.broken is not None and count:
            machine.commands.append(Send(peer, (BROKE, machine.broken)))
            count = 0
        machine.lessor.demand(peer, count, granted, wanted, busy, now)

    def on_give_back(self, peer: ProcessNumber, message: Message, now: int) -> None:
        """It needs one no more."""
        self._machine.lessor.give_back(peer, message[1], message[2], now)

    def on_vacant(self, peer: ProcessNumber, message: Message, now: int) -> None:
        """It has nothing of a dead owner's."""
        self._machine.lessor.vacant(peer, now)

    # -- to both

    def on_blocked(self, peer: ProcessNumber, message: Message, now: int) -> None:
        """A worker's task waits for a future."""
        machine = self._machine
        worker = machine.leases.workers.get(peer)
        if worker is not None:
            machine.submission.block(worker)
        if machine.number == DRIVER:
            machine.lessor.block(peer, now)

    def on_unblocked(self, peer: ProcessNumber, message: Message, now: int) -> None:
        """It waits no more."""
        machine = self._machine
        if machine.number == DRIVER:
            machine.lessor.unblock(peer, now)
        worker = machine.leases.workers.get(peer)
        if worker is not None:
            machine.submission.unblock(worker, now)
