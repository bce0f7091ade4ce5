"""The worker processes of this host, and to whom each is leased. One process per host, the driver,
is the lessor.

Rules of this file: it knows processes and owners, not tasks. An owner that has tasks which no
worker of its own can take says how many more workers it could use (its *demand*). It gets free
ones, then new ones up to `max_workers`; when there are none, an owner that has more of them is
asked to give one back. A worker is leased to one owner at a time, which sends it task after task
without asking again.

    STARTING  asked for                          uses a slot
    UP        free, or leased                    uses a slot
    BLOCKED   its task waits for a future        lends its slot
    SPARE     it has no slot to go back to       uses none
    RETIRING  has been told to end               uses none

The driver is an owner too; its idle workers stay leased to it until somebody else wants them, so
that with one owner nothing is ever asked for or given back.
"""

from __future__ import annotations

from collections.abc import Callable

from .commands import Command, Kill, Send, Spawn
from .ids import DRIVER, ProcessNumber
from .messages import GRANT, REVOKE, STOP

# Where there are not enough workers for all owners, one that has none gets one that somebody else
# has had for so long. A task that runs at that time is finished there first.
QUANTUM_NS = 20_000_000

# A worker that has run a dead owner's task, and does not end or answer within this time, is killed.
ORPHAN_NS = 500_000_000

# A worker that was started in the place of one that waited, and is too many now, is kept so long
# for the next one that waits: a wide tree of tasks waits and goes on all the time.
SPARE_NS = 1_000_000_000

STARTING, UP, BLOCKED, SPARE, RETIRING = range(5)


class Process:
    """One worker process, from the request to start it until it has ended."""

    __slots__ = (
        "granted_at",
        "holder",
        "number",
        "orphaned_at",
        "pid",
        "promised",
        "ran",
        "revoked",
        "spare_at",
        "status",
    )

    def __init__(self, number: ProcessNumber) -> None:
        self.number = number
        self.status = STARTING
        self.pid: int | None = None
        self.holder: ProcessNumber | None = None  # who has leased it
        self.granted_at = 0
        self.revoked = False  # it was asked for back
        self.promised: ProcessNumber | None = None  # for whom that was
        self.spare_at = 0  # since when it has no slot
        self.ran = 0  # tasks that it has run for those who have given it back
        self.orphaned_at: int | None = None  # when its holder's death was told it


class Demand:
    """What an owner has asked for."""

    __slots__ = ("busy", "count", "granted", "wanted")

    def __init__(self) -> None:
        self.count = 0  # workers, besides those granted
        self.granted = 0  # since it first asked
        self.wanted = False  # a worker waits for one of the tasks that are ready
        self.busy = False  # it has unfinished tasks


class Lessor:
    """The workers of this host.

    Args:
        max_workers: how many there may be that are not waiting; 0 in a process that is no lessor.
        max_tasks_per_worker: after so many tasks a worker is replaced; None for never.
        commands: where to put what is to be done.
        grant_here, revoke_here: lease a worker to the lessor's own process, and ask for it back.
        take_idle: takes an idle worker away from the lessor's own process, if it has one.
    """

    def __init__(
        self,
        max_workers: int,
        max_tasks_per_worker: int | None,
        commands: list[Command],
        grant_here: Callable[[ProcessNumber, int | None], None],
        revoke_here: Callable[[ProcessNumber, int], None],
        take_idle: Callable[[], ProcessNumber | None],
    ) -> None:
        self.max_workers = max_workers
        self.max_tasks_per_worker = max_tasks_per_worker
        # A task that waits for a future lends its slot to another worker. The cap keeps a wide
        # graph of waiting tasks from filling the machine with processes. When every process
        # waits it is exceeded, by one, for a task that one of them waits for: so the excess is
        # at most the depth of the waiting, not its width. One that is to end is not counted: it may
        # stay for long, for the sake of what it owns, and runs nothing.
        self.max_processes = 2 * max_workers + 4
        self.processes: dict[ProcessNumber, Process] = {}
        self.free: dict[ProcessNumber, Process] = {}  # up and leased to nobody
        self.orphans: dict[ProcessNumber, Process] = {}  # have a dead owner's tasks
        self.spare: dict[ProcessNumber, Process] = {}  # the one that is spare longest comes first
        self.demands: dict[ProcessNumber, Demand] = {}  # the one served last comes last
        self.times_busy = 0  # how often an owner has said that it has unfinished tasks
        self.slots_used = 0  # STARTING and UP
        self.starting = 0
        self.retiring = False  # no more tasks will come
        self._last_number = 0
        self._commands = commands
        self._grant_here = grant_here
        self._revoke_here = revoke_here
        self._take_idle = take_idle

    # -- what owners say

    def demand(
        self, owner: ProcessNumber, count: int, granted: int, wanted: bool, busy: bool, now: int
    ) -> None:
        """An owner could use so many more workers than the `granted` ones that it knows of."""
        known = self.demands.get(owner)
        if known is None:
            known = self.demands[owner] = Demand()
        # Others are on their way to it: what is granted must not be granted again.
        count = max(0, count - (known.granted - granted))
        known.count, known.wanted, known.busy = count, wanted, busy
        self.times_busy += busy
        if count:
            self.balance(now)

    def give_back(self, owner: ProcessNumber, number: ProcessNumber, ran: int, now: int) -> None:
        """An owner needs a worker no more, or was asked for it."""
        process = self.processes.get(number)
        if process is None or process.holder != owner:
            return
        process.ran += ran
        promised = process.promised
        self._vacate(process, now)
        if promised is not None and process.number in self.free:
            demand = self.demands.get(promised)
            if demand is not None and demand.count > 0:
                # Nobody else gets it, or what was asked back for one owner's sake would go to
                # another, who may be the one that gave it: that would go on for ever.
                del self.free[process.number]
                self._grant(process, promised, now)
        self.balance(now)

    def _vacate(self, process: Process, now: int) -> None:
        """Nobody leases it any more."""
        process.holder = None
        process.revoked = False
        process.promised = None
        process.orphaned_at = None
        self.orphans.pop(process.number, None)
        if process.status != UP:
            return
        if self.retiring or self._is_worn(process):
            self._retire(process)
        elif self.slots_used > self.max_workers:
            process.status = SPARE
            process.spare_at = now
            self.slots_used -= 1
            self.spare[process.number] = process
        else:
            self.free[process.number] = process

    def _is_worn(self, process: Process) -> bool:
        most = self.max_tasks_per_worker
        return most is not None and process.ran >= most

    @property
    def has_surplus(self) -> bool:
        """Whether a worker was started in the place of one that waited, and that one is back."""
        return self.slots_used > self.max_workers

    def is_wanted_by_others(self) -> bool:
        """Whether some other owner waits for a worker."""
        return len(self.demands) > 1 and any(
            demand.count > 0 for owner, demand in self.demands.items() if owner != DRIVER
        )

    def is_busy(self) -> bool:
        """Whether some other owner has unfinished tasks."""
        return any(demand.busy for owner, demand in self.demands.items() if owner != DRIVER)

    def forget_demands(self) -> None:
        """No worker can be had any more: nobody is served."""
        for demand in self.demands.values():
            demand.count = 0

    # -- what becomes of workers

    def came_up(self, number: ProcessNumber, pid: int, now: int) -> None:
        """A worker is ready for tasks."""
        process = self.processes.get(number)
        if process is None:
            return
        process.pid = pid
        if process.status == STARTING:
            process.status = UP
            self.starting -= 1
            self.free[number] = process
            self.balance(now)

    def block(self, number: ProcessNumber, now: int) -> None:
        """The worker's task waits for a future: its slot is free for another."""
        process = self.processes.get(number)
        if process is not None and process.status == UP:
            process.status = BLOCKED
            self.slots_used -= 1
            self.free.pop(number, None)
            self.balance(now)

    def unblock(self, number: ProcessNumber, now: int) -> None:
        """The worker's task goes on."""
        process = self.processes.get(number)
        if process is not None and process.status == BLOCKED:
            process.status = UP
            self.slots_used += 1
            if process.holder is None:
                self._vacate(process, now)
                self.balance(now)

    def remove(self, number: ProcessNumber, now: int) -> Process | None:
        """The worker has ended. What it had leased is told of that by `GONE`, and vacant after."""
        process = self.processes.pop(number, None)
        if process is None:
            return None
        if process.status == STARTING:
            self.starting -= 1
        if process.status in (STARTING, UP):
            self.slots_used -= 1
        self.free.pop(number, None)
        self.spare.pop(number, None)
        self.orphans.pop(number, None)
        self.demands.pop(number, None)
        for other in self.processes.values():
            if other.holder == number:
                other.holder = None
                other.orphaned_at = now
                self.orphans[other.number] = other
        return process

    def vacant(self, number: ProcessNumber, now: int) -> None:
        """An orphaned worker has nothing of its dead holder's any more."""
        process = self.processes.get(number)
        if process is not None and process.orphaned_at is not None:
            self._vacate(process, now)
            self.balance(now)

    def retire_all(self) -> None:
        """No more tasks will come, from anybody."""
        self.retiring = True
        for process in self.processes.values():
            if process.status == STARTING:
                self.starting -= 1
            if process.status in (STARTING, UP):
                self.slots_used -= 1
            process.status = RETIRING
            self._commands.append(Send(process.number, (STOP, True)))
        self.free.clear()
        self.spare.clear()

    def _retire(self, process: Process) -> None:
        if process.status == UP:
            self.slots_used -= 1
        process.status = RETIRING
        self._commands.append(Send(process.number, (STOP, False)))

    # -- deciding

    def balance(self, now: int) -> None:
        """Serve demands as far as that is possible, the neediest owner first."""
        if self.retiring:
            return
        while True:
            owner = self._neediest()
            if owner is None:
                return
            process = self._available(owner)
            if process is None:
                break
            self._grant(process, owner, now)
        unmet = 0
        wanted = False
        for demand in self.demands.values():
            unmet += demand.count
            wanted |= demand.wanted and demand.count > 0
        self._spawn(unmet, wanted and not self.slots_used)
        self._ask_back(now)

    def _neediest(self) -> ProcessNumber | None:
        """Who is served next: whom a worker waits for, then who has fewest, then by turns."""
        best = None
        least = (True, 0)
        for owner, demand in self.demands.items():
            if demand.count > 0:
                need = (not demand.wanted, self._held(owner))
                if best is None or need < least:
                    best, least = owner, need
        return best

    def _held(self, owner: ProcessNumber) -> int:
        if len(self.demands) == 1:
            return 0
        return sum(p.holder == owner and p.status == UP for p in self.processes.values())

    def _available(self, owner: ProcessNumber) -> Process | None:
        if self.free:
            return self.free.popitem()[1]
        if owner != DRIVER:
            number = self._take_idle()
            if number is not None:
                return self.processes[number]
        if self.spare and self.slots_used < self.max_workers:
            process = self.spare.popitem()[1]
            process.status = UP
            self.slots_used += 1
            return process
        return None

    def _grant(self, process: Process, owner: ProcessNumber, now: int) -> None:
        process.holder = owner
        process.granted_at = now
        demand = self.demands.pop(owner)
        demand.count -= 1
        demand.granted += 1
        self.demands[owner] = demand  # served last, so last in turn
        most = self.max_tasks_per_worker
        left = None if most is None else most - process.ran
        if owner == DRIVER:
            self._grant_here(process.number, left)
        else:
            self._commands.append(Send(owner, (GRANT, process.number, left)))

    def _spawn(self, waiting: int, wanted: bool) -> None:
        """Start workers for tasks that found none.

        Args:
            waiting: how many more workers could be used.
            wanted: every worker waits, and one of them for one of these tasks.
        """
        if self.slots_used >= self.max_workers or self.starting >= waiting:
            return
        staying = sum(process.status != RETIRING for process in self.processes.values())
        while (
            self.slots_used < self.max_workers
            and self.starting < waiting
            and (staying < self.max_processes or (wanted and not self.slots_used))
        ):
            staying += 1
            self._last_number += 1
            process = Process(self._last_number)
            self.processes[process.number] = process
            self.starting += 1
            self.slots_used += 1
            self._commands.append(Spawn(process.number))

    def _ask_back(self, now: int) -> None:
        """Demand is left that nothing free can serve: ask owners who have more."""
        if len(self.demands) == 1 or self.starting:
            return  # not: or there is a free slot; the cap may keep it from being used
        coming = sum(p.revoked and p.status == UP for p in self.processes.values())
        for owner, demand in self.demands.items():
            if demand.count <= 0:
                continue
            if coming:
                coming -= 1
                continue
            held = self._held(owner)
            process = self._victim(owner, held, now)
            if process is not None:
                process.revoked = True
                process.promised = owner
                assert process.holder is not None
                if process.holder == DRIVER:
                    self._revoke_here(process.number, now)
                else:
                    self._commands.append(Send(process.holder, (REVOKE, process.number)))
                return

    def _victim(self, owner: ProcessNumber, held: int, now: int) -> Process | None:
        """A worker that somebody else has more of, or has had for long enough."""
        best = None
        most = (0, False)
        for process in self.processes.values():
            if not self._can_be_asked_for(process, owner):
                continue
            assert process.holder is not None
            theirs = self._held(process.holder)
            # Its own process helps an owner only once the task there, which it needs, is over.
            fair = theirs > held + 1 and process.number != owner
            if fair or (not held and now - process.granted_at >= QUANTUM_NS):
                rank = (theirs, process.number != owner)
                if rank > most:
                    best, most = process, rank
        return best

    def _can_be_asked_for(self, process: Process, owner: ProcessNumber) -> bool:
        return (
            process.status == UP
            and not process.revoked
            and process.holder is not None
            and process.holder != owner
        )

    # -- time

    def next_deadline(self) -> int | None:
        """When to come back for somebody who has no worker, or for an orphan; in ns."""
        due = None
        for process in self.orphans.values():
            assert process.orphaned_at is not None
            at = process.orphaned_at + ORPHAN_NS
            due = at if due is None else min(due, at)
        for process in self.spare.values():
            at = process.spare_at + SPARE_NS
            due = at if due is None else min(due, at)
            break
        if not self.starting:
            for owner, demand in self.demands.items():
                if demand.count > 0 and not self._held(owner):
                    over = self._next_quantum(owner)
                    if over is not None:
                        due = over if due is None else min(due, over)
        return due

    def _next_quantum(self, owner: ProcessNumber) -> int | None:
        """When somebody else has had a worker for long enough; None if one is coming anyway."""
        due = None
        for process in self.processes.values():
            if process.revoked and process.status == UP:
                return None
            if self._can_be_asked_for(process, owner):
                at = process.granted_at + QUANTUM_NS
                due = at if due is None else min(due, at)
        return due

    def time_passed(self, now: int) -> None:
        """Do what has fallen due."""
        for process in self.orphans.values():
            assert process.orphaned_at is not None
            if process.orphaned_at + ORPHAN_NS <= now:
                process.orphaned_at = now  # again, should it survive
                self._commands.append(Kill(process.number))
        for process in list(self.spare.values()):
            if process.spare_at + SPARE_NS > now:
                break
            del self.spare[process.number]
            self._retire(process)
        if any(demand.count > 0 for demand in self.demands.values()):
            self.balance(now)

    def check(self) -> None:
        """The invariants; raises AssertionError naming the worker."""
        processes = self.processes.values()
        assert self.starting == sum(p.status == STARTING for p in processes)
        assert self.slots_used == sum(p.status in (STARTING, UP) for p in processes)
        for process in processes:
            free = process.status == UP and process.holder is None and process.orphaned_at is None
            assert (process.number in self.free) == free, f"worker {process.number}: free?"
            orphan = process.orphaned_at is not None
            assert (process.number in self.orphans) == orphan, f"worker {process.number}: orphan?"
            spare = process.status == SPARE
            assert (process.number in self.spare) == spare, f"worker {process.number}: spare?"
        for number in self.demands:
            assert number == DRIVER or number in self.processes, f"owner {number} is gone"
