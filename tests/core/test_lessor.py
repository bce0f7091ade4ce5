"""The lessor: which owner gets which worker, who is asked for one back, what becomes of it then."""

from __future__ import annotations

import random

import pytest

from owndist.core import messages as m
from owndist.core.commands import Command, Send, Spawn
from owndist.core.ids import DRIVER
from owndist.core.lessor import QUANTUM_NS, SPARE_NS, Lessor

MS = 1_000_000


class Host:
    """A lessor, and owners that do what it says; `held` is who has leased what."""

    def __init__(self, max_workers: int) -> None:
        self.commands: list[Command] = []
        self.now = 0
        self.held: dict[int, int] = {}
        self.granted: dict[int, int] = {}  # how many workers each owner was given
        self.asked: list[tuple[int, int]] = []  # (owner, worker): asked for, not yet given back
        self.spawned: list[int] = []
        self.stopped: list[int] = []
        self.messages = 0
        self.lessor = Lessor(
            max_workers,
            None,
            self.commands,
            lambda number, left: self.grant(number, DRIVER),
            lambda number, now: self.asked.append((DRIVER, number)),
            lambda: None,
        )

    def grant(self, number: int, owner: int) -> None:
        self.held[number] = owner
        self.granted[owner] = self.granted.get(owner, 0) + 1

    def settle(self) -> None:
        """Carry out the commands that have been given."""
        for command in self.commands:
            if isinstance(command, Spawn):
                self.spawned.append(command.worker)
            elif isinstance(command, Send):
                self.messages += 1
                kind = command.message[0]
                if kind == m.GRANT:
                    self.grant(command.message[1], command.peer)
                elif kind == m.REVOKE:
                    self.asked.append((command.peer, command.message[1]))
                elif kind == m.STOP:
                    self.stopped.append(command.peer)
        self.commands.clear()
        self.lessor.check()

    def demand(self, owner: int, count: int, wanted: bool = False) -> None:
        self.lessor.demand(owner, count, self.granted.get(owner, 0), wanted, True, self.now)
        self.settle()

    def up(self, number: int) -> None:
        self.lessor.came_up(number, 1000 + number, self.now)
        self.settle()

    def give_back(self, number: int) -> None:
        owner = self.held.pop(number)
        if (owner, number) in self.asked:
            self.asked.remove((owner, number))
        self.lessor.give_back(owner, number, 0, self.now)
        self.settle()

    def block(self, number: int) -> None:
        self.lessor.block(number, self.now)
        self.settle()

    def unblock(self, number: int) -> None:
        self.lessor.unblock(number, self.now)
        self.settle()

    def tick(self, duration: int) -> None:
        self.now += duration
        self.lessor.time_passed(self.now)
        self.settle()

    def workers_of(self, owner: int) -> list[int]:
        return sorted(number for number, holder in self.held.items() if holder == owner)


def host_with(workers: int) -> Host:
    """So many workers are up, and the driver has all of them."""
    host = Host(workers)
    host.demand(DRIVER, workers)
    for number in list(host.spawned):
        host.up(number)
    assert host.workers_of(DRIVER) == list(range(1, workers + 1))
    return host


def test_an_owner_with_more_is_asked_for_one() -> None:
    """The driver has four; worker 1 has none, and is not given itself."""
    host = host_with(4)
    host.demand(1, 2)
    (asked,) = host.asked
    assert asked[0] == DRIVER and asked[1] != 1
    host.give_back(asked[1])
    assert host.workers_of(1) == [asked[1]]


def test_a_demand_that_crosses_a_grant_is_served_once() -> None:
    """A task submits one, and then waits for it: that is told twice, and one worker is enough."""
    host = host_with(2)
    host.give_back(2)
    host.lessor.demand(1, 1, 0, False, True, host.now)
    host.block(1)
    host.lessor.demand(1, 1, 0, True, True, host.now)
    host.settle()
    assert host.workers_of(1) == [2] and host.spawned == [1, 2]
    host.lessor.demand(1, 1, 1, True, True, host.now)
    host.settle()
    assert host.spawned == [1, 2, 3]


def test_an_idle_worker_is_asked_for_where_no_other_may_be_started() -> None:
    """Owner 1 waits and keeps it, all others wait too: a slot is free, and the cap is reached."""
    host = host_with(2)
    host.block(1)
    host.block(2)
    last = host.lessor.max_processes
    for number in range(3, last + 1):
        host.demand(1, 1)
        host.up(number)
        if number < last:
            host.block(number)
    host.demand(2, 1, wanted=True)
    assert host.lessor.slots_used == 1 and host.spawned[-1] == last
    host.tick(QUANTUM_NS)
    assert host.asked == [(1, last)]
    host.give_back(last)
    assert host.workers_of(2) == [last]


def test_one_apart_is_fair() -> None:
    """Two owners with one each, and one that wants more: nobody is asked."""
    host = host_with(2)
    host.give_back(2)
    host.demand(1, 1)
    assert host.workers_of(1) == [2]
    host.demand(1, 3)
    host.tick(QUANTUM_NS)
    assert host.asked == []


def test_an_owner_with_nothing_waits_no_longer_than_a_quantum() -> None:
    """One worker may run; the driver's blocked task leaves its slot, which another owner keeps."""
    host = host_with(2)
    host.demand(1, 1)  # worker 1, a task of the driver's, has children
    host.tick(QUANTUM_NS - 1)
    asked_before = len(host.asked)
    host.tick(1)
    assert asked_before <= len(host.asked) == 1


def test_what_is_asked_back_goes_to_whom_it_was_asked_for() -> None:
    """The one that gave it is needier by the usual order; it would be asked again, for ever."""
    host = host_with(3)
    host.demand(1, 8, wanted=True)
    ((_, second),) = host.asked
    host.give_back(second)
    host.block(1)
    host.up(4)
    assert host.workers_of(1) == sorted([second, 4])
    (third,) = host.workers_of(DRIVER)[1:]
    host.demand(third, 1)
    seen = host.messages
    for _ in range(50):
        host.tick(MS)
        for _, number in list(host.asked):
            host.give_back(number)
    assert len(host.workers_of(third)) == 1
    assert host.messages - seen < 5


def test_what_a_worker_left_behind_runs_on_itself_in_the_end() -> None:
    """It owns a task, nobody else may run, and the driver always has more for it."""
    host = host_with(1)
    host.demand(1, 1)
    host.tick(QUANTUM_NS)
    assert host.asked == [(DRIVER, 1)]
    host.give_back(1)
    assert host.workers_of(1) == [1]


def test_a_surplus_worker_is_kept_a_while_for_the_next_task_that_waits() -> None:
    """Its slot went back to the one that had waited."""
    host = host_with(1)
    host.block(1)
    host.demand(1, 1, wanted=True)
    assert host.spawned == [1, 2]
    host.up(2)
    host.unblock(1)
    host.give_back(2)
    assert host.stopped == [] and host.lessor.slots_used == 1
    host.block(1)
    host.demand(1, 1, wanted=True)
    assert host.workers_of(1) == [2] and host.spawned == [1, 2]
    host.unblock(1)
    host.give_back(2)
    due = host.lessor.next_deadline()
    assert due is not None
    host.tick(due - host.now)
    assert due == SPARE_NS and host.stopped == [2]
    assert host.lessor.next_deadline() is None


@pytest.mark.parametrize("seed", range(200))
def test_leases_settle_whatever_is_asked_for(seed: int) -> None:
    """Random demands, waits and returns; then no more news: messages end, and nobody starves."""
    rng = random.Random(seed)
    host = host_with(rng.randint(1, 4))
    lessor = host.lessor
    for _ in range(rng.randint(5, 60)):
        live = [p.number for p in lessor.processes.values() if p.status not in (0, 4)]
        event = rng.randrange(6)
        if event == 0:
            owner = rng.choice([DRIVER, *live])
            host.demand(owner, rng.randint(0, 5), rng.random() < 0.3)
        elif event == 1 and host.held:
            host.give_back(rng.choice(list(host.held)))
        elif event == 2:
            host.block(rng.choice(live))
        elif event == 3:
            host.unblock(rng.choice(live))
        elif event == 4:
            starting = [p.number for p in lessor.processes.values() if p.status == 0]
            if starting:
                host.up(starting[0])
        else:
            host.tick(rng.randint(0, 30) * MS)
    for number in list(lessor.processes):
        host.unblock(number)
        host.up(number)
    served: set[int] = set()
    for _ in range(40):
        served.update(owner for owner in lessor.demands if host.workers_of(owner))
        for _, number in list(host.asked):
            host.give_back(number)
        for number in list(lessor.processes):
            host.up(number)
        host.tick(QUANTUM_NS)
    wanting = {owner for owner, demand in lessor.demands.items() if demand.count}
    assert wanting <= served, f"{wanting - served} never had a worker"
    assert lessor.slots_used <= lessor.max_workers + sum(
        p.status == 1 and p.holder is not None for p in lessor.processes.values()
    )


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("late", [0, 100])
def test_two_owners_with_a_thousand_tasks_share(workers: int, late: int) -> None:
    """Law 55: tasks of 1 ms; the second owner comes when the first has done some already."""
    host = Host(workers)
    owners = (1, 2)
    host.demand(DRIVER, 2)
    for owner in owners:  # tasks that submit others, and wait for them
        host.up(owner)
        host.block(owner)
    host.demand(DRIVER, 0)
    left = dict.fromkeys(owners, 1000)
    done = dict.fromkeys(owners, 0)
    while all(left.values()):
        for owner in owners:
            if owner == 1 or done[1] >= late:
                host.demand(owner, min(64, left[owner]), wanted=True)
        for number in list(host.spawned):
            host.up(number)
        for owner in list(host.held.values()):
            if owner in owners and left[owner]:
                left[owner] -= 1
                done[owner] += 1
        host.tick(MS)
        for _, number in list(host.asked):
            if host.held.get(number) in owners:
                host.give_back(number)
    fast, slow = done[1] - late, done[2]
    assert min(fast, slow) * 2 >= max(fast, slow), done
