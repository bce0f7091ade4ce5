"""A simulated session: the driver's process around its machine, the workers, the wires.

One step at a time: `actions` says what can happen next, `do` makes it happen. The random simulator
and the exhaustive explorer differ only in how they choose. After every input to a machine its
invariants are checked.
"""

from __future__ import annotations

import hashlib
import random
from typing import Any

from owndist.core.commands import (
    Abandon,
    CancelAnswered,
    CheckSegment,
    Command,
    Complete,
    Drained,
    Free,
    JudgeError,
    Kill,
    Log,
    LookAgain,
    Moved,
    Send,
    Spawn,
    Spill,
    SweepDead,
    Unlink,
)
from owndist.core.ids import DRIVER, ExtentKey
from owndist.core.machine import Machine
from owndist.core.messages import TASK
from owndist.core.reports import (
    Aborted,
    CancelAsked,
    CancelWithdrawn,
    ErrorJudged,
    Fulfilled,
    HandleAdded,
    HandlesDropped,
    LookedAgain,
    Mapped,
    Promised,
    Received,
    ShutdownAsked,
    Spilled,
    Stored,
    Submitted,
    TimerDue,
    Unmapped,
    ValueLost,
    WorkerEnded,
)
from owndist.core.values import BROKEN, CANCELLED, FAILED, PENDING, READY

from .memory import Gone, Memory, inline
from .specs import Outcome, Spec, check_outcome, expected_text
from .worker import DEAD, EXITED, RUNNING, SimWorker


class World:
    """A driver, its workers, and everything between them."""

    def __init__(
        self,
        rng: random.Random,
        max_workers: int,
        max_tasks_per_worker: int | None = None,
        deaths: int = 0,
        record: bool = False,
    ) -> None:
        self.rng = rng
        self.machine = Machine(DRIVER, max_workers, max_tasks_per_worker)
        self.memory = Memory()
        self.now = 0
        self.deaths_left = deaths
        self.disk = random.Random(0)  # when it is full
        self.initializer_fails = False
        self.aborted = False
        self.workers: dict[int, SimWorker] = {}
        self.specs: dict[int, Spec] = {}
        self.outcomes: dict[int, Outcome] = {}
        self.handles: list[int] = []  # the user's variables, one id each
        self.promises: list[int] = []  # still to be fulfilled
        self.judgements: list[JudgeError] = []
        self.cancels: list[int] = []  # asked for, not answered
        self.views: list[ExtentKey] = []  # of the user
        self.unmapped: list[ExtentKey] = []
        self.spills: list[Spill] = []  # copies that are to be made
        self.losses_left = 0
        self.thief = random.Random(0)
        self.recovering: dict[int, None] = {}  # read, lost, and not there again
        self.cancelled_all = False
        self.looking = False
        self.drained = False
        self.steps = 0
        self.log = hashlib.sha256() if record else None
        self._last_id = 0

    # -- the program's verbs; each is one input to the driver's machine

    def new_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def submit(self, spec: Spec, args_stored: bool = False) -> int:
        self.specs[spec.id] = spec
        payload = (f"args{spec.id}", spec.nested)
        value = self.memory.write(DRIVER, payload) if args_stored else inline(payload, False)
        self.handles.append(spec.id)
        self._feed(
            Submitted(
                spec.id,
                spec.function,
                (),
                value,
                spec.slots,
                spec.nested,
                f"task {spec.id}",
                spec.max_retries,
                spec.judged,
            )
        )
        return spec.id

    def put(self, stored: bool, nested: tuple[int, ...] = ()) -> int:
        object_id = self.new_id()
        payload = (f"put{object_id}", nested)
        value = self.memory.write(DRIVER, payload) if stored else inline(payload, False)
        self.handles.append(object_id)
        self._feed(Stored(object_id, value, nested))
        return object_id

    def promise(self) -> int:
        object_id = self.new_id()
        self.handles.append(object_id)
        self.promises.append(object_id)
        self._feed(Promised(object_id))
        return object_id

    def fulfil(self, object_id: int, status: int, stored: bool) -> None:
        self.promises.remove(object_id)
        value: Any = None
        if status == READY:
            payload = (f"put{object_id}", ())
            value = self.memory.write(DRIVER, payload) if stored else inline(payload, True)
        elif status != CANCELLED:
            value = ("error", b"foreign", "")
        self._feed(Fulfilled(object_id, status, value))

    def cancel(self, task: int) -> None:
        self.cancels.append(task)
        self._feed(CancelAsked(task))

    def withdraw_cancel(self, task: int) -> None:
        """`cancel()` gives up and returns False."""
        self.cancels = [other for other in self.cancels if other != task]
        self._feed(CancelWithdrawn(task))

    def drop_handles(self, objects: list[int]) -> None:
        for object_id in objects:
            self.handles.remove(object_id)
        self._feed(HandlesDropped(list(objects)))

    def read(self, object_id: int) -> bool:
        """`future.result()` of one that is done, in the driver. False: it is computed again."""
        if self.outcomes[object_id][0] != READY:
            return True
        entry = self.machine.references.entries[object_id]
        if entry.status == PENDING:
            return False
        value = entry.value
        try:
            if entry.status != READY:
                raise Gone("known to be lost", (0, 0))
            payload, key = self.memory.read(DRIVER, self.machine.references.current(value))
        except Gone as gone:
            self.recovering[object_id] = None
            self._feed(ValueLost(object_id, gone.args[1], gone.args[0]))
            if entry.status in (READY, FAILED):
                self.outcomes[object_id] = (entry.status, entry.value)
                self.recovering.pop(object_id, None)
            return False
        if type(value) is tuple and type(value[0]) is tuple:
            self._feed(Mapped((value[0][0], value[0][1])))
        if key is not None:
            self.views.append(key)
        if not self.memory.lost:  # what runs again may have read other futures
            assert payload[0] == expected_text(object_id, self.specs, self.outcomes)
        for inner in payload[1]:
            assert inner in self.machine.references.entries, (
                f"object {inner} was freed inside {object_id}"
            )
            self.handles.append(inner)
            self._feed(HandleAdded(inner))
        return True

    def lose(self) -> None:
        """Somebody removes shared memory."""
        self.losses_left -= 1
        self.memory.lose(self.thief)

    def drop_view(self) -> None:
        key = self.views.pop(self.rng.randrange(len(self.views)))
        if self.memory.unmap(DRIVER, key):
            self.unmapped.append(key)

    def spill(self) -> None:
        command = self.spills.pop(0)
        self._feed(Spilled(command.owner, command.serial, self.copy(DRIVER, command.serial)))

    def copy(self, process: int, serial: int) -> str | None:
        """A process spills an extent of its own; now and then there is no room on the disk."""
        full = self.disk.random() < 0.1
        return None if full else self.memory.spill(process, serial)

    def shutdown(self, cancel: bool) -> None:
        self.cancelled_all |= cancel
        self._feed(ShutdownAsked(cancel))

    def abort(self) -> None:
        """`terminate_workers()`: what has not ended is given up, and the workers are killed."""
        self.aborted = True
        self.memory.strict = False
        self._feed(Aborted("the workers were killed"))
        for worker in self.workers.values():
            if worker.status not in (DEAD, EXITED):
                worker.die()

    # -- steps

    def actions(self) -> list[tuple[int, str, int]]:
        """(process, name, weight) of everything that has to happen sooner or later."""
        found = []
        for number, worker in self.workers.items():
            for name, weight in worker.actions():
                found.append((number, name, weight))
            if worker.status in (DEAD, EXITED):
                found.append((number, "ended", 2))
            if worker.up:
                found.append((number, "hear", 8))
        if self.judgements:
            found.append((DRIVER, "judge", 4))
        if self.unmapped:
            found.append((DRIVER, "tell_unmapped", 2))
        if self.spills:
            found.append((DRIVER, "spill", 2))
        if self.looking:
            found.append((DRIVER, "look_again", 4))
        deadline = self.machine.next_deadline()
        if deadline is not None and deadline <= self.now:
            found.append((DRIVER, "timer", 4))
        return found

    def idle_actions(self) -> list[tuple[int, str, int]]:
        """(process, name, weight) of what may happen or not."""
        found = []
        for number, worker in self.workers.items():
            for name, weight in worker.idle_actions():
                found.append((number, name, weight))
            if self.deaths_left and worker.status not in (DEAD, EXITED):
                found.append((number, "die", 1))
        if self.views:
            found.append((DRIVER, "drop_view", 1))
        if self.losses_left:
            found.append((DRIVER, "lose", 1))
        return found

    def do(self, number: int, name: str) -> None:
        """One of the actions."""
        self.steps += 1
        if number != DRIVER:
            worker = self.workers[number]
            if name == "hear":
                self._hear(worker)
            elif name == "ended":
                self._ended(worker)
            else:
                if name == "die":
                    self.deaths_left -= 1
                getattr(worker, name)()
        elif name == "judge":
            command = self.judgements.pop(0)
            self._feed(ErrorJudged(command.task, command.attempt, self.specs[command.task].retried))
        elif name == "timer":
            self._feed(TimerDue())
        elif name == "tell_unmapped":
            gone, self.unmapped = dict.fromkeys(self.unmapped), []
            still = self.memory.mapped(DRIVER)
            self._feed(Unmapped([key for key in gone if key not in still]))
        else:
            getattr(self, name)()

    def choose(self, idle_chance: float) -> bool:
        """One step at random. False: nothing can happen any more by itself."""
        self.now += self.rng.choice((1_000, 20_000, 3_000_000))
        found = self.actions()
        if not found or self.rng.random() < idle_chance:
            found = found + self.idle_actions()
        if not found:
            deadline = self.machine.next_deadline()
            if deadline is None:
                return False
            self.now = max(self.now, deadline)
            return True
        total = self.rng.randrange(sum(weight for _, _, weight in found))
        for number, name, weight in found:
            total -= weight
            if total < 0:
                self.do(number, name)
                return True
        raise AssertionError("unreachable")

    def settle(self) -> None:
        """Let everything happen that has to."""
        limit = self.steps + 20_000
        while True:
            found = self.actions()
            if not found:
                deadline = self.machine.next_deadline()
                if deadline is None:
                    return
                self.now = max(self.now, deadline)
                continue
            number, name, _ = found[self.rng.randrange(len(found))]
            self.do(number, name)
            assert self.steps < limit, "it never comes to rest"

    def _hear(self, worker: SimWorker) -> None:
        count = self.rng.randint(1, len(worker.up))
        self._feed(Received(worker.number, [worker.up.popleft() for _ in range(count)]))

    def look_again(self) -> None:
        """Read all links to their ends."""
        self.looking = False
        for worker in list(self.workers.values()):
            if worker.up:
                said = list(worker.up)
                worker.up.clear()
                self._feed(Received(worker.number, said))
        self._feed(LookedAgain())

    def _ended(self, worker: SimWorker) -> None:
        """As `WorkerPool._ended` does: all it sent, then what it had not sent, then its end."""
        if worker.up:
            self._feed(Received(worker.number, list(worker.up)))
        if worker.outbox:
            self._feed(Received(worker.number, list(worker.outbox)))
        running = worker.record_running
        if running:
            spec = self.specs[running >> 16]
            # Perhaps it had just reported, and the task has been started elsewhere since.
            if spec.history[-1:] == ["start"] and spec.execution == running:
                spec.history.append("death")
        del self.workers[worker.number]
        exitcode = 0 if worker.status == EXITED else -9
        self._feed(WorkerEnded(worker.number, running, worker.number, exitcode, ""))

    # -- the machine's commands

    def feed(self, machine: Machine, report: object) -> list[Command]:
        """One input to any machine, and its invariants afterwards."""
        commands = machine.handle(report, self.now)
        machine.check()
        if self.log is not None:
            text = [sorted(c.keep) if isinstance(c, SweepDead) else c for c in commands]
            self.log.update(f"{self.now} {machine.number} {report} {text}\n".encode())
        return commands

    def _feed(self, report: object) -> None:
        for command in self.feed(self.machine, report):
            if isinstance(command, Send):
                if command.message[0] == TASK:
                    self._check_wanted(command.message[1], command.message[2])
                peer = self.workers.get(command.peer)
                if peer is not None and peer.status not in (DEAD, EXITED):
                    peer.down.append(command.message)
            elif isinstance(command, Complete):
                assert command.object not in self.outcomes or self.memory.lost, (
                    f"{command.object} resolves twice"
                )
                self.recovering.pop(command.object, None)  # type: ignore[call-overload]
                self.outcomes[command.object] = (command.status, command.value)
            elif isinstance(command, CheckSegment):
                self.memory.check(command.segment)
            elif isinstance(command, Free):
                self.memory.free(DRIVER, command.serial)
            elif isinstance(command, Abandon):
                self.memory.abandon(DRIVER, command.serial)
            elif isinstance(command, Spawn):
                assert command.worker not in self.workers
                self.workers[command.worker] = SimWorker(self, command.worker)
            elif isinstance(command, CancelAnswered):
                self._answered(command)
            elif isinstance(command, JudgeError):
                self.judgements.append(command)
            elif isinstance(command, Spill):
                self.spills.append(command)
            elif isinstance(command, Moved):
                self.memory.moved(DRIVER, command.serial, command.taken)
            elif isinstance(command, Unlink):
                self.memory.unlink(command.segment)
            elif isinstance(command, SweepDead):
                self.memory.sweep(command.worker, command.keep)
            elif isinstance(command, LookAgain):
                self.looking = True
            elif isinstance(command, Drained):
                self.drained = True
            elif isinstance(command, Kill):
                self.workers[command.worker].die()
            else:
                assert isinstance(command, Log)
        self._check_borrowed()

    def _check_wanted(self, task: int, attempt: int) -> None:
        """What nobody wants any more is not sent to a worker (Law 65).

        But what a worker had taken, and so could not be cancelled, is sent again if it died.
        """
        assert task not in self.cancels, f"task {task} is sent although it is to be cancelled"
        fresh = not self.specs[task].history and attempt == 1
        assert not (self.cancelled_all and fresh), f"task {task} is sent after the shutdown"

    def _check_borrowed(self) -> None:
        """What a live worker borrows is kept (Laws 12, 17, 20)."""
        entries = self.machine.references.entries
        for worker in self.workers.values():
            if worker.status == RUNNING:
                for address in worker.machine.references.entries:
                    assert address.id in entries or self.aborted, (
                        f"object {address.id} was freed; worker {worker.number} borrows it"
                    )

    def _answered(self, command: CancelAnswered) -> None:
        asked = command.task in self.cancels
        self.cancels = [task for task in self.cancels if task != command.task]
        assert asked or self.cancelled_all, f"an answer for {command.task} that nobody asked for"
        if command.cancelled:
            self.specs[command.task].cancel_granted = True

    # -- how it must end

    def check_outcomes(self) -> None:
        """Every future has exactly one outcome, and the right one."""
        for spec in self.specs.values():
            assert spec.id in self.outcomes, f"task {spec.id} never ended: {spec.history}"
            if not self._given_up(spec.id):
                lossy = bool(self.memory.lost)
                check_outcome(spec, self.outcomes, self.specs, self.cancelled_all, lossy)
        assert not self.cancels, f"cancels without an answer: {self.cancels}"

    def _given_up(self, task: int) -> bool:
        """Whether the task ended because the pool did: broken from the start, or aborted."""
        status, value = self.outcomes[task]
        broken = status == FAILED and value[0] == BROKEN
        if self.initializer_fails:
            assert not self.specs[task].history, f"task {task} ran though nothing was set up"
        if self.aborted:
            return broken or status == CANCELLED
        return broken and self.initializer_fails

    def check_rest(self) -> None:
        """All handles and views are gone: nothing is left in any table (Law 14)."""
        machine = self.machine
        assert not machine.references.entries, f"entries: {list(machine.references.entries)}"
        assert not machine.references.extents, f"extents: {list(machine.references.extents)}"
        assert not machine.submission.tasks
        for worker in machine.leases.workers.values():
            assert not worker.queue
        for process in self.workers.values():
            assert not process.machine.references.entries, "a worker still borrows"
            assert not process.machine.execution.queue
        assert not self.memory.live(), f"extents never freed: {self.memory.live()}"
        assert not self.memory.files(), f"files never removed: {self.memory.files()}"
        assert not machine.spilling.moving

    def check_work_conserving(self) -> None:
        """Nothing that could run waits while there is room (Law 52). Only at rest."""
        submission, lessor = self.machine.submission, self.machine.lessor
        ready = [task for task in submission.ready if task.state == 1]
        if ready:
            idle = self.machine.leases.idle or lessor.free
            assert not idle and lessor.slots_used >= lessor.max_workers, (
                f"tasks {[t.id for t in ready]} wait although there is room"
            )

    def let_go(self) -> None:
        """The user drops everything, and the workers' globals go too."""
        while self.views:
            self.drop_view()
        if self.handles:
            self.drop_handles(list(self.handles))
        for worker in self.workers.values():
            while worker.globals:
                worker.drop_global()
            while worker.kept_views:
                worker.drop_view()
        self.settle()
