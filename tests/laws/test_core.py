"""Laws 1, 14, 19, 32, 33, 35, 41, 44, 46, 51 and 65 on the pure core: messages late or twice."""

from __future__ import annotations

import array
import gc
import itertools
import random
import weakref
from typing import Any

import pytest

from owndist.core import messages as m
from owndist.core.commands import CancelAnswered, Complete, Free, Send, Spawn
from owndist.core.ids import DRIVER, LOCAL_HOST, Address, execution_id
from owndist.core.machine import Machine
from owndist.core.reports import (
    CancelAsked,
    HandlesDropped,
    Received,
    Submitted,
    WorkerEnded,
)
from owndist.core.values import CANCELLED, DIED, FAILED, READY


class Owner:
    """A driver's machine, and what it has asked for so far."""

    def __init__(self, max_workers: int = 1) -> None:
        self.machine = Machine(max_workers=max_workers)
        self.commands: list[Any] = []
        self._last_task = 0

    def tell(self, report: object, now: int = 0) -> list[Any]:
        commands = self.machine.handle(report, now)
        self.machine.check()
        self.commands += commands
        return commands

    def hear(self, worker: int, *messages: tuple[Any, ...]) -> list[Any]:
        return self.tell(Received(worker, list(messages)))

    def submit(self, *slots: int, max_retries: int = 3, args: Any = b"args") -> int:
        self._last_task += 1
        self.tell(Submitted(self._last_task, 7, (), args, slots, (), "task", max_retries, False))
        return self._last_task

    def start_worker(self) -> int:
        """The worker that was asked for last is up."""
        number: int = [c.worker for c in self.commands if type(c) is Spawn][-1]
        self.hear(number, (m.ALIVE, 1000 + number))
        return number

    def lose(self, worker: int, running: int) -> list[Any]:
        """The worker is killed; `running` is the task that it ran, or 0."""
        if running:
            running = execution_id(running, self.machine.submission.tasks[running].attempt)
        return self.tell(WorkerEnded(worker, running, 1000 + worker, -9, ""))

    def sent(self, task: int) -> list[tuple[int, int]]:
        """(worker, attempt) of each dispatch of a task."""
        return [
            (c.peer, c.message[2])
            for c in self.commands
            if type(c) is Send and c.message[:2] == (m.TASK, task)
        ]

    def outcomes(self, task: int) -> list[tuple[int, Any]]:
        return [(c.status, c.value) for c in self.commands if c.__class__ is Complete
                and c.object == task]  # fmt: skip


def done(task: int, attempt: int, value: Any = b"value", status: int = READY) -> tuple[Any, ...]:
    return (m.DONE, task, attempt, status, value, 1000, None)


def stored(worker: int, serial: int) -> tuple[Any, ...]:
    """A value in shared memory that this worker wrote."""
    return ((worker, serial, f"od-x-{worker}-0", 0, 200_000), b"head", ((0, 200_000),))


@pytest.fixture
def owner() -> Owner:
    return Owner()


def test_a_result_that_comes_twice_counts_once(owner: Owner) -> None:
    """Law 1: as when a worker is killed between sending its replies and noting that."""
    task = owner.submit()
    worker = owner.start_worker()
    owner.hear(worker, done(task, 1, b"first"), done(task, 1, b"second"))
    owner.hear(worker, done(task, 1, b"third"))
    assert owner.outcomes(task) == [(READY, b"first")]


def test_a_stored_result_that_comes_twice_is_freed_once(owner: Owner) -> None:
    """Laws 1 and 14: the copies name the same bytes, which the first one keeps."""
    task = owner.submit()
    worker = owner.start_worker()
    value = stored(worker, 3)
    owner.hear(worker, done(task, 1, value), done(task, 1, value))
    frees = [c for c in owner.commands if type(c) is Send and c.message[0] == m.FREE]
    assert frees == []
    owner.tell(HandlesDropped([task]))
    frees = [c for c in owner.commands if type(c) is Send and c.message[0] == m.FREE]
    assert frees == [Send(worker, (m.FREE, (3,)))]
    assert not owner.machine.references.entries and not owner.machine.references.extents


def test_the_result_of_an_older_attempt_is_ignored(owner: Owner) -> None:
    """Laws 1 and 51: from the dead worker, and under its successor's number."""
    task = owner.submit()
    first = owner.start_worker()
    owner.lose(first, running=task)
    second = owner.start_worker()
    assert owner.sent(task) == [(first, 1), (second, 2)]
    owner.hear(first, done(task, 1, b"late"))
    owner.hear(first, done(task, 2, b"late and lying"))
    owner.hear(second, done(task, 1, b"old attempt"))
    assert owner.outcomes(task) == []
    owner.hear(second, done(task, 2, b"right"))
    owner.hear(second, done(task, 1, b"old attempt"))
    assert owner.outcomes(task) == [(READY, b"right")]


def test_a_worker_number_is_never_used_twice(owner: Owner) -> None:
    """Law 51: so whatever a dead one still says cannot be its successor's."""
    task = owner.submit(max_retries=20)
    numbers = []
    for _ in range(10):
        numbers.append(owner.start_worker())
        owner.lose(numbers[-1], running=task)
    assert len(set(numbers)) == 10


def test_nothing_a_dead_worker_says_is_believed(owner: Owner) -> None:
    """Law 51: neither that it lives, nor what it gives back, keeps, maps or waits for."""
    task = owner.submit()
    first = owner.start_worker()
    owner.lose(first, running=task)
    second = owner.start_worker()
    before = len(owner.commands)
    owner.hear(
        first,
        (m.ALIVE, 1001),
        (m.RECALLED, (task,), (task,)),
        (m.RELEASE, ((task, 1),)),
        (m.UNMAPPED, ((first, 1),)),
        (m.BLOCKED,),
        (m.UNBLOCKED,),
        (m.DONE, task, 2, READY, b"no", 1, ((), (), ())),
    )
    assert owner.commands[before:] == []
    assert list(owner.machine.leases.workers) == [second]
    assert owner.machine.references.entries[task].borrowers is None


# Laws 41 and 65


def test_a_cancelled_task_that_was_sent_resolves_from_no_attempt(owner: Owner) -> None:
    """Law 41: the worker gave it back; whatever comes later changes nothing."""
    task = owner.submit()
    worker = owner.start_worker()
    owner.tell(CancelAsked(task))
    owner.hear(worker, (m.RECALLED, (task,), (task,)))
    assert CancelAnswered(task, True) in owner.commands
    owner.hear(worker, done(task, 1))
    assert owner.outcomes(task) == [(CANCELLED, None)]
    assert len(owner.sent(task)) == 1


def test_a_task_that_finished_before_its_recall_is_not_cancelled(owner: Owner) -> None:
    """Laws 41 and 65: its result had passed the recall on the way."""
    task = owner.submit()
    worker = owner.start_worker()
    owner.tell(CancelAsked(task))
    owner.hear(worker, done(task, 1))
    owner.hear(worker, (m.RECALLED, (task,), ()))
    assert [c for c in owner.commands if type(c) is CancelAnswered] == [CancelAnswered(task, False)]
    assert owner.outcomes(task) == [(READY, b"value")]


@pytest.mark.parametrize(("started", "max_retries"), [(False, 0), (True, 0), (True, 3)])
def test_a_task_being_cancelled_is_not_run_again_when_its_worker_dies(
    owner: Owner, started: bool, max_retries: int
) -> None:
    """Laws 41 and 65: what would run (again) is cancelled; what has no retry left has failed."""
    task = owner.submit(max_retries=max_retries)
    worker = owner.start_worker()
    owner.tell(CancelAsked(task))
    owner.lose(worker, running=task if started else 0)
    answers = [c for c in owner.commands if type(c) is CancelAnswered]
    spent = started and not max_retries
    assert answers == [CancelAnswered(task, not spent)]
    ((status, value),) = owner.outcomes(task)
    if spent:
        assert status == FAILED and value[0] == DIED
    else:
        assert status == CANCELLED
    assert len(owner.sent(task)) == 1
    assert not owner.machine.submission.tasks


# Laws 33 and 35


@pytest.mark.parametrize("max_retries", [0, 1, 3])
def test_executions_are_counted_by_starts_not_by_dispatches(owner: Owner, max_retries: int) -> None:
    """Laws 32, 33 and 35: a death before the start costs nothing, however often it comes."""
    task = owner.submit(max_retries=max_retries)
    for _ in range(1 + max_retries):
        for _ in range(3):
            owner.lose(owner.start_worker(), running=0)
        assert owner.outcomes(task) == []
        owner.lose(owner.start_worker(), running=task)
    ((status, failure),) = owner.outcomes(task)
    assert status == FAILED
    assert failure[0] == DIED and failure[1][2] == 1 + max_retries
    assert len(owner.sent(task)) == 4 * (1 + max_retries)


# Law 44


def test_nothing_is_kept_of_the_task_of_an_inline_value(owner: Owner) -> None:
    """Law 44: neither the arguments nor the record of the task, only the value itself."""
    argument = array.array("B", b"large")  # unlike bytes, it can be watched
    kept = weakref.ref(argument)
    task = owner.submit(args=(b"head", (argument,)))
    worker = owner.start_worker()
    owner.commands.clear()
    del argument
    assert kept() is not None
    owner.hear(worker, done(task, 1))
    gc.collect()
    assert kept() is None
    assert not owner.machine.submission.tasks and not owner.machine.submission.ready
    entry = owner.machine.references.entries[task]
    assert (entry.value, entry.arguments, entry.dependents) == (b"value", 0, None)
    owner.tell(HandlesDropped([task]))
    assert not owner.machine.references.entries


# Laws 14, 19 and 46: many orders


def test_counting_messages_that_come_twice_change_nothing(owner: Owner) -> None:
    """Laws 14 and 19: a release again, and the death after it."""
    inner = owner.submit()
    worker = owner.start_worker()
    owner.hear(worker, done(inner, 1))
    user = owner.submit()
    kept = ((inner, worker, 5), (inner, worker, 6))
    owner.hear(worker, (m.REGISTER, 0, kept), (m.REGISTER, 0, kept), done(user, 1))
    owner.tell(HandlesDropped([inner, user]))
    assert list(owner.machine.references.entries) == [inner]
    owner.hear(worker, (m.RELEASE, ((inner, 5), (inner, 5))))
    owner.hear(worker, (m.RELEASE, ((inner, 5),)))
    assert list(owner.machine.references.entries) == [inner]
    owner.lose(worker, running=0)
    assert not owner.machine.references.entries
    owner.hear(worker, (m.RELEASE, ((inner, 6),)))
    assert not owner.machine.references.entries


def test_every_order_of_result_release_drop_and_death_ends_with_nothing() -> None:
    """Laws 14 and 19: a borrow that ends in each of the ways in which it can."""
    for order in itertools.permutations(["release", "drop", "death", "unmapped"]):
        owner = Owner()
        inner = owner.submit()
        worker = owner.start_worker()
        owner.hear(worker, done(inner, 1, stored(worker, 1)))
        user = owner.submit()
        extras = (((worker, 1),), ((Address(LOCAL_HOST, DRIVER, inner), 0),), ())
        owner.hear(worker, (m.REGISTER, 0, ((inner, worker, 5),)))
        owner.hear(worker, (m.DONE, user, 1, READY, b"v", 1, extras))
        for step in order:
            assert inner in owner.machine.references.entries or step != "drop"
            if step == "release":
                owner.hear(worker, (m.RELEASE, ((inner, 5),)))
            elif step == "drop":
                owner.tell(HandlesDropped([inner, user]))
            elif step == "unmapped":
                owner.hear(worker, (m.UNMAPPED, ((worker, 1),)))
            else:
                owner.lose(worker, running=0)
        assert not owner.machine.references.entries, order
        assert not owner.machine.references.extents, order


def test_any_sequence_of_runs_and_deaths_ends_every_task(seed: int) -> None:
    """Laws 1, 33, 46 and 51: a random graph; late and doubled reports all the time."""
    chance = random.Random(seed)
    for _ in range(30):
        owner = Owner(max_workers=3)
        retries: dict[int, int] = {}
        said: list[tuple[int, tuple[Any, ...]]] = []
        for _ in range(20):
            slots = chance.sample(sorted(retries), min(len(retries), chance.randrange(3)))
            limit = chance.randrange(3)
            retries[owner.submit(*slots, max_retries=limit)] = limit
        starts = dict.fromkeys(retries, 0)
        running: dict[int, int] = {}
        while owner.machine.submission.tasks:
            processes = owner.machine.lessor.processes
            number = chance.choice(sorted(processes))
            worker = owner.machine.leases.workers.get(number)
            if worker is None:
                owner.hear(number, (m.ALIVE, number))
            elif worker.queue and number not in running:
                running[number] = next(iter(worker.queue))
                starts[running[number]] += 1
            elif chance.random() < 0.2:
                owner.lose(number, running=running.pop(number, 0))
            elif number in running:
                task = running.pop(number)
                said.append((number, done(task, worker.queue[task].attempt, b"right")))
                owner.hear(*said[-1])
            if said and chance.random() < 0.5:
                peer, message = chance.choice(said)
                owner.hear(peer, (*message[:4], b"wrong", *message[5:]))
        for task, limit in retries.items():
            ((status, value),) = owner.outcomes(task)
            assert (status, value) == (READY, b"right") or value[0] == DIED
            assert starts[task] <= 1 + limit
        owner.tell(HandlesDropped(list(retries)))
        assert not owner.machine.references.entries
        assert not [c for c in owner.commands if type(c) is Free]
