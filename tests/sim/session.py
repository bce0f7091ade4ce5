"""A simulated session in which every process owns: all of them run the real machine.

Between any two processes messages keep their order; what comes first from different ones is left
to chance. So is who dies, and when: also in the middle of sending. At the end everything that was
submitted has its outcome, what was dropped is gone in every process, and nobody waits.
"""

from __future__ import annotations

import gc
import pickle
import random
from collections import deque
from typing import Any

from owndist.core import messages as m
from owndist.core.commands import Drained, Kill, KillIfRunning, LookAgain, Spawn, SweepDead, Unlink
from owndist.core.ids import DRIVER, Address, ExtentKey
from owndist.core.machine import Machine
from owndist.core.reports import LookedAgain, Received, ShutdownAsked, WorkerEnded
from owndist.core.values import CANCELLED, DIED, ERROR, FAILED, LOST, OWNER_DIED, READY

from .bodies import Body, Failed, Steps, decode
from .inside import Worker
from .memory import Memory
from .peer import Ended, Peer
from .rest import check_rest, describe
from .trees import READ, Author, Plan, Thing


class Session:
    """The processes, and everything between them."""

    def __init__(
        self, rng: random.Random, program: Plan, max_workers: int, max_tasks: int | None
    ) -> None:
        self.rng = rng
        self.now = 0
        self.steps = 0
        self.deaths_left = 0
        self.sudden = 0.0  # how likely each message is the last one of its process
        self.full = 0.0  # how likely a socket is
        self.memory = Memory()
        self.wires: dict[tuple[int, int], deque[Any]] = {}
        self.speeds: dict[tuple[int, int], int] = {}  # some of them are slow
        self.dead: dict[int, None] = {}
        self.killed: dict[int, None] = {}  # those of them that did not end when they were told to
        self.told: list[str] | None = None  # the story, if it is wanted
        self.things: dict[tuple[int, int], Thing] = {}  # {(owner, object): what it is}
        self.keepers: dict[ExtentKey, int] = {}  # whose object each extent was written for
        self.outcomes: dict[tuple[int, int], int] = {}  # own objects that have one
        self.starts: dict[tuple[int, int], int] = {}
        self.deaths: dict[tuple[int, int], int] = {}  # {(owner, task): deaths while it ran}
        self.cancelled: dict[tuple[int, int], None] = {}
        self.stops: random.Random | None = None  # if tasks that run are stopped
        self.let_go: dict[tuple[int, int], None] = {}  # a borrower was told so
        self.doubtful: dict[tuple[int, int], None] = {}  # `cancel` gave up on them
        self.workers: dict[int, Worker] = {}
        self.driver = Driver(self, program, Machine(DRIVER, max_workers, max_tasks))

    # -- wires

    def is_dead(self, number: int) -> bool:
        return number in self.dead

    def send(self, source: int, target: int, messages: list[Any]) -> None:
        if messages and target not in self.dead:
            self.wires.setdefault((source, target), deque()).extend(messages)

    def speed(self, source: int, target: int) -> int:
        wire = (source, target)
        if wire not in self.speeds:
            self.speeds[wire] = self.rng.choice((16, 8, 8, 1))
        return self.speeds[wire]

    def receive(self, source: int, target: int, everything: bool = False) -> tuple[list[Any], bool]:
        """Messages that are there, and whether the link still stands."""
        wire = self.wires.get((source, target))
        if not wire:
            return [], not self.is_dead(source)
        count = len(wire) if everything else self.rng.randint(1, len(wire))
        messages = [wire.popleft() for _ in range(count)]
        over = not wire and self.is_dead(source) and (everything or self.rng.random() < 0.5)
        return messages, not over

    # -- deaths

    def perhaps_kill(self, worker: Worker) -> None:
        if self.deaths_left and self.rng.random() < self.sudden:
            self.deaths_left -= 1
            worker.alive = False
            raise Ended

    def bury(self, worker: Worker) -> None:
        """It has just died: what it has not sent is lost, but for its crash record."""
        number = worker.number
        worker.alive = False
        worker.main.close()
        worker.globals, worker.kept_views, worker.lingering = [], [], []
        self.memory.process_died(number)
        self.dead[number] = None
        if not worker.left:
            self.killed[number] = None
        for wire in [wire for wire in self.wires if wire[1] == number]:
            del self.wires[wire]
        self.say(f"process {number} {'ends' if worker.left else 'dies'}")

    # -- steps

    def choose(self, idle_chance: float) -> bool:
        """One step at random. False: nothing can happen any more by itself."""
        self.now += self.rng.choice((1_000, 20_000, 3_000_000))
        found = self._actions()
        if not found or self.rng.random() < idle_chance:
            found += self._idle_actions()
        if not found:
            deadlines = [p.machine.next_deadline() for p in self.processes()]
            due = [deadline for deadline in deadlines if deadline is not None]
            if not due:
                return False
            self.now = max(self.now, min(due))
            return True
        draw = self.rng.randrange(sum(weight for *_, weight in found))
        for process, name, which, weight in found:
            draw -= weight
            if draw < 0:
                self._do(process, name, which)
                break
        return True

    def processes(self) -> list[Peer]:
        """Those that live."""
        return [self.driver, *(w for w in self.workers.values() if w.alive)]

    def _actions(self) -> list[tuple[Peer, str, int, int]]:
        found: list[tuple[Peer, str, int, int]] = []
        for process in self.processes():
            found += [(process, *action) for action in process.actions()]
        found += [(self.driver, "end", w.number, 3) for w in self.workers.values() if not w.alive]
        return found

    def _idle_actions(self) -> list[tuple[Peer, str, int, int]]:
        found: list[tuple[Peer, str, int, int]] = []
        for process in self.processes():
            found += [(process, *action) for action in process.idle_actions()]
            if self.deaths_left and isinstance(process, Worker):
                found.append((process, "die", 0, 1))
        return found

    def _do(self, process: Peer, name: str, which: int) -> None:
        self.steps += 1
        self.say(f"-- {process.number} {name} {which}")
        if name == "die":
            self.deaths_left -= 1
            process.alive = False
        else:
            try:
                process.do(name, which)
            except Ended:
                pass  # in the middle of it, which the next lines see to
        if not process.alive and not self.is_dead(process.number):
            assert isinstance(process, Worker)
            self.bury(process)

    def settle(self) -> None:
        """Let everything happen that has to."""
        limit = self.steps + 30_000
        while self.choose(0.0):
            assert self.steps < limit, "it never comes to rest"

    # -- the story

    def say(self, text: str) -> None:
        if self.told is not None:
            self.told.append(text)

    def tell(self, number: int, report: object, commands: list[Any]) -> None:
        if self.told is not None:
            self.told.append(f"{self.now / 1e6:.2f} ms, {number}: {report}")
            self.told += [f"        {command}" for command in commands]

    # -- what must hold

    def started(self, worker: Worker, owner: int, task: int, plan: Plan) -> int:
        """A task starts: how often it has, with this time."""
        name = (owner, task)
        count = self.starts[name] = self.starts.get(name, 0) + 1
        assert count <= 1 + plan.max_retries, f"task {name} runs for the {count}th time"
        # One that was stopped may have been on its way to a worker.
        if self.stops is None:
            assert name not in self.cancelled, f"task {name} runs although it is cancelled"
        assert not any(slot.doomed for slot in plan.slots), f"task {name} runs on failed arguments"
        return count

    def how_to_cancel(self) -> tuple[bool, bool]:
        """`running` and `force`."""
        if self.stops is None:
            return False, False
        return self.stops.choice(((False, False), (True, False), (False, True), (True, True)))

    def check_sent(self, owner: int, task: int) -> None:
        """A task goes to a worker."""
        assert (owner, task) not in self.cancelled, f"task {task} is sent although it is cancelled"

    def check_outcome(self, address: Address, status: int, value: Any, own: bool) -> None:
        """An object has its outcome, somewhere: is it the right one, or excused?"""
        name = (address.owner, address.id)
        thing = self.things[name]
        if own:
            assert name not in self.outcomes, f"object {name} resolves twice"
            self.outcomes[name] = status
        if status == READY:
            assert not thing.doomed, f"{thing.name} has a value"
            text, refs, _ = decode(value)
            assert text == thing.text, f"{thing.name} is {text} instead of {thing.text}"
            inner = [self.things[ref[1], ref[2]] for ref in refs]
            assert inner == list(thing.refs), f"{thing.name} holds {inner}"
        elif status == CANCELLED:
            stopped = name in self.cancelled or self.takes_cancelled(thing)
            assert stopped, f"object {name} is cancelled without being asked for"
            self.cancelled[name] = None
        else:
            assert status == FAILED
            self.check_failure(value, thing)
            if not own:
                self.let_go[name] = None

    def takes_cancelled(self, thing: Thing) -> bool:
        """Whether it takes what was cancelled with the task that ran on top of another."""
        slots = thing.slots if isinstance(thing, Plan) else ()
        return any(self.things[name] is slot for name in self.cancelled for slot in slots)

    def check_failure(self, failure: Any, thing: Thing) -> None:
        """Whether something has happened that allows this (Laws 33, 46, 50)."""
        kind, detail, name = failure
        if kind == ERROR:
            said = pickle.loads(detail)
            if said[0] == "raised":
                task = self.things[said[1:]]
                assert isinstance(task, Plan)
                assert task.raises, f"{task.name} raises"
                assert thing.doomed or self.dead, f"{thing.name} fails with {said}"
            elif said[1] is None:
                assert self.cancelled, f"{thing.name} has read what nobody has cancelled"
            else:
                self.check_failure(said[1], thing)
        elif kind == DIED:
            owner, task_id = map(int, name.split("."))
            task = self.things[owner, task_id]
            assert isinstance(task, Plan)
            assert detail[2] == task.max_retries + 1, f"{thing.name}: retries left: {failure}"
            deaths = self.deaths.get((owner, task_id), 0)
            assert deaths, f"task {name} has died unseen"
            assert deaths + task.raises >= detail[2], f"{thing.name}: {deaths} deaths, {failure}"
        elif kind == OWNER_DIED:
            number = int(detail.split()[1].rstrip(","))
            assert self.is_dead(number), f"{thing.name}: {failure}, who lives"
            # Or it left since all that it owned was let go of, with somebody else who was killed.
            assert self.killed or self.driver.drained, f"{thing.name}: {failure}, who has left"
        else:
            assert kind == LOST and self.killed, f"{thing.name}: {failure}"

    def check_borrowed(self) -> None:
        """What a process keeps, its living owner keeps too (Laws 12, 17, 20)."""
        for process in self.processes():
            if process.machine.borrowing.unanswered:
                continue  # it may not have been seen by anybody yet
            for address in process.borrowed:
                owner = self.workers.get(address.owner) if address.owner else self.driver
                if owner is None or not owner.alive:
                    continue
                entry = process.machine.references.entries.get(address)
                if entry is None or entry.status == FAILED or tuple(address)[1:] in self.let_go:
                    continue
                assert address.id in owner.machine.references.entries, (
                    f"object {address} was freed; process {process.number} borrows it"
                )


class Driver(Peer):
    """The driver's process: its program, and the pool."""

    def __init__(self, session: Session, program: Plan, machine: Machine) -> None:
        self.program = program
        self.finished = False
        self.drained = self.looking = False
        self.links: dict[int, dict[int, None]] = {}  # {worker: those to which it has a link}
        super().__init__(session, DRIVER, machine)

    def _main(self) -> Steps:
        body = Body(self, self.program)
        for op in self.program.ops:
            try:
                yield from body.do(op)
            except Failed:
                if not (op.kind == READ and op.thing is not None and op.thing.doomed):
                    break
            yield None
        handle = None
        for handle in body.variables:
            if handle is not None and self.session.rng.random() < 0.7:
                try:
                    yield from self.result(handle, False)
                except Failed:
                    pass  # `check_outcome` has looked at it
        del body, handle
        self.finished = True

    def post(self, peer: int, message: Any) -> None:
        if peer in self.session.workers:
            self.session.send(DRIVER, peer, [message])

    def flush(self) -> None:
        """Everything is sent at once."""

    def perform(self, command: object) -> None:
        session = self.session
        if isinstance(command, Spawn):
            assert command.worker not in session.workers
            session.workers[command.worker] = Worker(session, command.worker)
            self.linked[command.worker] = None
            self.links[command.worker] = {}
        elif isinstance(command, Kill):
            worker = session.workers.get(command.worker)
            if worker is not None and worker.alive:
                # Perhaps it has not heard that its owner is dead, or not been heard.
                wires = (DRIVER, worker.number), (worker.number, DRIVER)
                assert any(map(session.wires.get, wires)), f"worker {worker.number} is killed"
                session.bury(worker)
        elif isinstance(command, KillIfRunning):
            worker = session.workers.get(command.worker)
            if worker is not None and worker.alive:
                if worker.running == (command.owner, command.execution):
                    session.bury(worker)
        elif isinstance(command, Unlink):
            self.memory.unlink(command.segment)
        elif isinstance(command, SweepDead):
            self.memory.sweep(command.worker, command.keep)
        elif isinstance(command, LookAgain):
            self.looking = True
        elif isinstance(command, Drained):
            self.drained = True
        else:
            super().perform(command)

    def actions(self) -> list[tuple[str, int, int]]:
        found = super().actions()
        if self.looking:
            found.append(("look_again", 0, 4))
        return found

    def look_again(self) -> None:
        self.looking = False
        for number in list(self.linked):
            self.take_in(number, self.session.receive(number, DRIVER, True)[0])
        self.feed(LookedAgain())

    def hear(self, number: int) -> None:
        messages, alive = self.session.receive(number, DRIVER)
        self.take_in(number, messages)
        if not alive:
            self.linked.pop(number, None)

    def take_in(self, number: int, messages: list[Any]) -> None:
        for message in messages:
            if message[0] == m.CONNECT:
                self._connect(number, message[1])
        if messages:
            self.feed(Received(number, messages))

    def _connect(self, one: int, other: int) -> None:
        if other not in self.links:
            self.post(one, (m.GONE, other, 0, 0, None, None, ""))
        elif other not in self.links[one] and other in self.linked:
            self.links[one][other] = self.links[other][one] = None
            self.post(one, (m.LINK, other))
            self.post(other, (m.LINK, one))

    def do(self, name: str, which: int) -> None:
        if name == "end":
            self._ended(self.session.workers[which])
        else:
            super().do(name, which)

    def _ended(self, worker: Worker) -> None:
        """As `WorkerPool._ended`: all it sent, then what it had perhaps not sent, then its end."""
        session, number = self.session, worker.number
        if number in self.linked:
            self.take_in(number, session.receive(number, DRIVER, True)[0])
            self.linked.pop(number, None)
        del session.workers[number], self.links[number]
        mine = [message for message in worker.record if message[0] not in (m.SAY, m.CONNECT)]
        if mine:
            self.feed(Received(number, mine))
        for message in worker.record:
            if message[0] == m.SAY:
                self.post(message[1], (m.SAID, number, message[2]))
        owner, running = worker.running
        if running:
            name = (owner, running >> 16)
            session.deaths[name] = session.deaths.get(name, 0) + 1
        exitcode = 0 if worker.left else -9
        self.feed(WorkerEnded(number, running, 1000 + number, exitcode, "", owner))


def simulate(seed: int, record: bool = False, stops: bool = False) -> Session:
    """Run one random program to its end; raises AssertionError where something is wrong.

    Args:
        stops: tasks that run are stopped, too.
    """
    rng = random.Random(f"owners {seed}")
    author = Author(rng, most=rng.choice((3, 8, 20, 40)), depth=rng.choice((1, 2, 2, 3, 4)))
    session = Session(
        rng, author.root, rng.choice((1, 1, 2, 2, 3, 4)), rng.choice((None, None, None, 1, 2, 5))
    )
    if record:
        session.told = []
    if stops:
        session.stops = random.Random(f"stops {seed}")
    session.deaths_left = rng.choice((0, 0, 1, 1, 2, 4, 8))
    session.sudden = rng.choice((0.0, 0.003, 0.02))
    session.full = rng.choice((0.0, 0.0, 0.3))
    if rng.random() < 0.3:
        lessor = session.driver.machine.lessor
        lessor.max_processes = lessor.max_workers
    if rng.random() < 0.3:
        session.driver.machine.spilling.set_limit(rng.choice((0, 64, 200, 640)))
    idle_chance = rng.choice((0.02, 0.1, 0.3))
    shutdown_early = rng.random() < 0.1
    collecting = gc.isenabled()
    gc.disable()  # cycles would be collected at another moment in each run
    try:
        _run(session, idle_chance, shutdown_early)
    except BaseException as error:
        error.add_note(describe(session)) if hasattr(error, "add_note") else None
        if session.told is not None:
            print("\n".join(session.told))
        raise
    finally:
        if collecting:
            gc.enable()
    return session


def _run(session: Session, idle_chance: float, shutdown_early: bool) -> None:
    driver = session.driver
    while not driver.finished:
        assert session.choose(idle_chance), "it stands still"
        session.check_borrowed()
        assert session.steps < 30_000, "it never ends"
    if shutdown_early:
        driver.feed(ShutdownAsked(False))
    for _ in range(session.rng.randint(0, 200)):
        session.choose(idle_chance)
    session.deaths_left = 0
    session.settle()
    for process in session.processes():
        process.globals.clear()
        process.kept_views.clear()
        process.lingering.clear()
    session.settle()
    for name, thing in session.things.items():
        if isinstance(thing, Plan) and not session.is_dead(name[0]):
            assert name in session.outcomes, f"task {name} never ended"
    if not shutdown_early:
        check_rest(session)
        driver.feed(ShutdownAsked(False))
        session.settle()
    check_rest(session)
    assert driver.drained and not session.workers, "the session does not end"
