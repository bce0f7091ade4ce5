"""From whom an owner leases its workers: see `demand.Landlord`."""

from __future__ import annotations

from .commands import Command, Send
from .execution import Execution
from .ids import DRIVER, ProcessNumber
from .lessor import Lessor
from .messages import DEMAND, GIVE_BACK

# How many more workers a process other than the lessor's asks for at a time.
_MOST = 64


class LocalLandlord:
    """The lessor is in this process: the driver."""

    hears_busy = False

    def __init__(self, lessor: Lessor) -> None:
        self._lessor = lessor
        self.most = lessor.max_workers

    def demand(self, count: int, granted: int, wanted: bool, busy: bool, now: int) -> None:
        """So many more workers could be used."""
        self._lessor.demand(DRIVER, count, granted, wanted, busy, now)

    def give_back(self, worker: ProcessNumber, ran: int, now: int) -> None:
        """This one is not needed, or was asked for."""
        self._lessor.give_back(DRIVER, worker, ran, now)

    def wants_back(self) -> bool:
        """Whether idle workers should be given back."""
        return self._lessor.has_surplus or self._lessor.is_wanted_by_others()

    def has_others(self) -> bool:
        """Whether some other worker could run a task that is stuck."""
        return self._lessor.slots_used > 1 or self._lessor.max_workers > 1


class RemoteLandlord:
    """The lessor is the driver, and this is a worker."""

    most = _MOST
    hears_busy = True

    def __init__(self, execution: Execution, commands: list[Command]) -> None:
        self._execution = execution
        self._commands = commands

    def demand(self, count: int, granted: int, wanted: bool, busy: bool, now: int) -> None:
        """So many more workers could be used."""
        self._commands.append(Send(DRIVER, (DEMAND, count, granted, wanted, busy)))

    def give_back(self, worker: ProcessNumber, ran: int, now: int) -> None:
        """This one is not needed, or was asked for."""
        self._commands.append(Send(DRIVER, (GIVE_BACK, worker, ran)))

    def wants_back(self) -> bool:
        """Whether idle workers should be given back: when no task runs that may submit more."""
        return not self._execution.started

    def has_others(self) -> bool:
        """Whether some other worker could run a task that is stuck."""
        return True
