"""How many more workers this owner could use, as it tells whoever leases them out."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from .ids import ProcessNumber
from .task import T_READY, Task


class Landlord(Protocol):
    """From whom this owner leases its workers: the lessor, in this process or in another."""

    most: int  # how many more workers are asked for at a time
    hears_busy: bool  # whether it wants to hear that there are unfinished tasks

    def demand(self, count: int, granted: int, wanted: bool, busy: bool, now: int) -> None: ...
    def give_back(self, worker: ProcessNumber, ran: int, now: int) -> None: ...
    def wants_back(self) -> bool: ...
    def has_others(self) -> bool: ...


class Demand:
    """What the landlord was told last, and whether that is still so."""

    def __init__(self, landlord: Landlord) -> None:
        self.wanted = False  # a worker waits for one of the tasks that are ready
        self._landlord = landlord
        self._told = (0, False, False)  # count, wanted, busy
        self._granted = 0  # workers, so far
        self.told_any = False  # of these

    def tell(self, ready: Collection[Task], unfinished: bool, now: int) -> None:
        """Tell the landlord how many more workers could be used, if that is news."""
        told, told_wanted, told_busy = self._told
        landlord = self._landlord
        busy = unfinished and landlord.hears_busy
        if not ready and not told and busy == told_busy:
            return
        if ready and told >= landlord.most and busy == told_busy and self.wanted == told_wanted:
            return
        count = 0
        wanted = False
        for task in ready:
            if task.state == T_READY:  # not cancelled meanwhile
                count = min(count + 1, landlord.most)
                wanted |= task.wanted
                # What has been recalled may stand before one that a worker waits for.
                if count == landlord.most and (wanted or not self.wanted):
                    break
        self.wanted = wanted
        # A few more or less are no news, for each that is granted is counted off.
        if count > told or (told and not count) or wanted != told_wanted or busy != told_busy:
            self._told = (count, wanted, busy)
            self.told_any = count > 0 or busy
            landlord.demand(count, self._granted, wanted, busy, now)

    def granted(self) -> None:
        """The landlord has given one of those that were asked for."""
        self._granted += 1
        count, wanted, busy = self._told
        self._told = (max(0, count - 1), wanted, busy)
        self.told_any = count > 1 or busy
