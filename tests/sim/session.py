"""A simulated session in which every process owns: all of them run the real machine.

Between any two processes messages keep their order; what comes first from different ones is left
to chance. So is who dies, and when: also in the middle of sending; and which memory is removed, and
when. At the end everything that was submitted has its outcome, what was dropped is gone in every
process, and nobody waits.
"""

from __future__ import annotations

import gc
import random
from collections import deque
from typing import Any

from owndist.core import messages as m
from owndist.core.commands import Drained, Kill, KillIfRunning, LookAgain, Spawn, SweepDead, Unlink
from owndist.core.ids import DRIVER, ExtentKey
from owndist.core.machine import Machine
from owndist.core.reports import LookedAgain, Received, ShutdownAsked, WorkerEnded
from owndist.core.values import extent_of

from .bodies import Body, Failed, Steps
from .inside import Worker
from .judging import check_borrowed
from .memory import Memory
from .peer import Ended, Peer
from .rest import check_rest, describe
from .trees import READ, Author, Plan, Thing


class Session:
    """The processes, and everything between them."""

    def __init__(
        self,
        rng: random.Random,
        program: Plan,
        max_workers: int,
        max_tasks: int | None,
        lineage_bytes: int = 0,
    ) -> None:
        self.rng = rng
        self.lineage_bytes = lineage_bytes
        self.losing = False  # memory is removed
        self.losses_left = 0
        self.thief = random.Random(0)
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
        self.makers: dict[tuple[int, int], tuple[int, int]] = {}  # whose value an object is
        self.starts: dict[tuple[int, int], int] = {}
        self.deaths: dict[tuple[int, int], int] = {}  # {(owner, task): deaths while it ran}
        self.recomputed: dict[tuple[int, int], int] = {}
        self.raised: dict[tuple[int, int], int] = {}  # {(owner, task): runs that ended so}
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

    def perhaps_steal(self, value: Any) -> None:
        """A value is about to be read: its memory may be gone just now."""
        if self.losses_left and self.thief.random() < 0.2:
            extent = extent_of(value)
            if extent is not None and self.memory.remove(extent[2]):
                self.losses_left -= 1
                self.say(f"{extent[2]} is removed")

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
        if self.losses_left:
            found.append((self.driver, "steal", 0, 2))
        return found

    def _do(self, process: Peer, name: str, which: int) -> None:
        self.steps += 1
        self.say(f"-- {process.number} {name} {which}")
        if name == "die":
            self.deaths_left -= 1
            process.alive = False
        elif name == "steal":
            self.losses_left -= 1
            self.memory.lose(self.thief)  # whatever it hits
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
            for command in commands:
                shown: object = command
                if isinstance(command, SweepDead):
                    shown = (command.worker, sorted(command.keep))  # sets have no order
                self.told.append(f"        {shown}")

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
        skipped = (m.SAY, m.CONNECT, m.RECALLED)
        mine = [message for message in worker.record if message[0] not in skipped]
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


def simulate(
    seed: int, record: bool = False, stops: bool = False, losses: bool | None = None
) -> Session:
    """Run one random program to its end; raises AssertionError where something is wrong.

    Args:
        stops: tasks that run are stopped, too.
        losses: memory is removed, and tasks have several values. None: for half of the seeds.
    """
    rng = random.Random(f"owners {seed}")
    # Draws of their own, so that the programs of known seeds stay what they are.
    thief = random.Random(f"losses {seed}")
    if losses is None:
        losses = thief.random() < 0.5
    author = Author(
        rng,
        most=rng.choice((3, 8, 20, 40)),
        depth=rng.choice((1, 2, 2, 3, 4)),
        several=thief if losses else None,
    )
    session = Session(
        rng,
        author.root,
        rng.choice((1, 1, 2, 2, 3, 4)),
        rng.choice((None, None, None, 1, 2, 5)),
        thief.choice((1 << 20, 1 << 20, 4_000, 0)) if losses else 0,
    )
    session.thief, session.losing = thief, losses
    session.losses_left = thief.choice((0, 1, 3, 10)) if losses else 0
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
        check_borrowed(session)
        assert session.steps < 30_000, "it never ends"
    if shutdown_early:
        driver.feed(ShutdownAsked(False))
    for _ in range(session.rng.randint(0, 200)):
        session.choose(idle_chance)
    session.deaths_left = session.losses_left = 0
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
