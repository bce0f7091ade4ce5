"""A simulated worker process: what `owndist.runtime.worker` does around its machine."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from owndist.core import messages as m
from owndist.core.commands import Abandon, CheckSegment, Complete, Free, Moved, Send, Spill
from owndist.core.ids import DRIVER, Address, ExtentKey, execution_id
from owndist.core.machine import Machine
from owndist.core.reports import (
    HandleAdded,
    HandlesDropped,
    Mapped,
    Received,
    Returning,
    Spilled,
    TaskEnded,
    Unmapped,
    ValueLost,
    WaitBegun,
    WaitEnded,
)
from owndist.core.values import ERROR, FAILED, PENDING, READY, UNREAD

from .memory import Gone, Payload, inline
from .specs import ALIAS, PARTS, STORED, Spec

if TYPE_CHECKING:
    from .world import World

BOOTING, RUNNING, DEAD, EXITED = range(4)


class Job:
    """The task that the main thread runs."""

    def __init__(self, message: Any, spec: Spec) -> None:
        self.message = message
        self.spec = spec
        self.futures: list[Address] = []  # local variables
        self.views: list[ExtentKey] = []
        self.texts: list[str] = []
        self.to_read: list[Address] = []
        self.phase = "taken"
        self.blocked = False
        self.passed_on: list[ExtentKey] = []  # views that keep what is returned
        self.unread: tuple[Any, ...] | None = None  # what of its arguments was gone


class SimWorker:
    """One worker process, from its fork to its end."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.number = number
        self.machine = Machine(number)
        self.status = BOOTING
        self.down: deque[Any] = deque()  # from the driver, on the wire
        self.up: deque[Any] = deque()  # to the driver, on the wire
        self.outbox: list[Any] = []  # in the crash record, not sent yet
        self.record_running = 0
        self.job: Job | None = None
        self.futures: dict[Address, list[Any]] = {}  # {address: [references, outcome or None]}
        self.dropped: list[Address] = []  # collected, and the machine has not been told
        self.globals: list[Address] = []
        self.kept_views: list[ExtentKey] = []
        self.unmapped: list[ExtentKey] = []
        self.spills: list[Spill] = []  # copies that are to be made

    # -- what can happen next

    def actions(self) -> list[tuple[str, int]]:
        """(name, weight) of every step that this process can take."""
        if self.status == DEAD or self.status == EXITED:
            return []
        if self.status == BOOTING:
            return [("boot", 6)]
        if self.job is not None and self.job.phase == "reported":
            return [("work", 8)]  # the lock is held until the record says so too
        found = []
        if self.down:
            found.append(("receive", 8))
        if self.outbox:
            found.append(("flush", 4))
        if self.dropped:
            found.append(("forget", 2))
        if self.unmapped:
            found.append(("tell_unmapped", 2))
        if self.spills:
            found.append(("spill", 2))
        execution = self.machine.execution
        job = self.job
        if job is None:
            if execution.queue:
                found.append(("take", 8))
            elif self.machine.may_leave():
                found.append(("exit", 8))
        elif not (job.blocked and self.futures[job.to_read[0]][1] is None):
            found.append(("work", 8))
        return found

    def idle_actions(self) -> list[tuple[str, int]]:
        """Steps that nothing forces: globals are overwritten, views collected."""
        found = []
        if self.status == RUNNING and not (self.job and self.job.phase == "reported"):
            if self.globals:
                found.append(("drop_global", 1))
            if self.kept_views:
                found.append(("drop_view", 1))
        return found

    def private_action(self) -> str | None:
        """A step that can happen and that no other process can tell from one that has not."""
        if self.status == BOOTING:
            return "boot"
        job = self.job
        if self.status != RUNNING or job is None:
            return None
        handed_futures = job.spec.nested or job.futures
        silent = job.phase in ("taken", "reported") or (
            job.phase in ("started", "loaded") and not handed_futures
        )
        return "work" if silent else None

    # -- steps

    def boot(self) -> None:
        self.status = RUNNING
        if self.world.initializer_fails:
            self._say((m.INIT_FAILED, b"initializer"))
        else:
            self._say((m.ALIVE, 1000 + self.number))

    def receive(self) -> None:
        count = self.world.rng.randint(1, len(self.down))
        self._handle(Received(DRIVER, [self.down.popleft() for _ in range(count)]))

    def flush(self) -> None:
        self.up.extend(self.outbox)
        self.outbox.clear()

    def forget(self) -> None:
        if self.dropped:
            dropped, self.dropped = self.dropped, []
            self._handle(HandlesDropped(list(dropped)))

    def tell_unmapped(self) -> None:
        still = self.world.memory.mapped(self.number)
        gone, self.unmapped = dict.fromkeys(self.unmapped), []
        told = [key for key in gone if key not in still]
        if told:
            self._handle(Unmapped(told))

    def spill(self) -> None:
        command = self.spills.pop(0)
        file = self.world.copy(self.number, command.serial)
        self._handle(Spilled(command.owner, command.serial, file))

    def drop_global(self) -> None:
        self._release(self.globals.pop(self.world.rng.randrange(len(self.globals))))

    def drop_view(self) -> None:
        self._unmap(self.kept_views.pop())

    def take(self) -> None:
        item = self.machine.take()
        assert item is not None
        if item[1][0] == m.TASK:
            self.job = Job(item[1], self.world.specs[item[1][1]])

    def exit(self) -> None:
        self.flush()
        self.status = EXITED
        self.world.memory.process_died(self.number)

    def die(self) -> None:
        """SIGKILL. It may hit between the sending of the outbox and its clearing."""
        sending = self.job is None or self.job.phase != "reported"
        if self.outbox and sending and self.world.rng.random() < 0.5:
            self.up.extend(self.outbox)
        self.status = DEAD
        self.down.clear()
        self.world.memory.process_died(self.number)

    def work(self) -> None:
        """The next step of the running task."""
        job = self.job
        assert job is not None
        spec = job.spec
        if job.phase == "taken":
            self.record_running = spec.execution = execution_id(spec.id, job.message[2])
            spec.history.append("start")
            spec.read_ids = []
            spec.passed_on = None
            job.phase = "started"
        elif job.phase == "started":
            try:
                self._load_arguments(job)
                job.phase = "loaded"
            except Gone as gone:
                job.unread = gone.args
                job.phase = "done"
        elif job.phase == "loaded":
            if job.to_read:
                self._read_next(job)
            else:
                job.phase = "done"
        elif job.phase == "done":
            self._end(job)
            job.phase = "reported"
        else:
            self.record_running = 0
            self.job = None

    def _load_arguments(self, job: Job) -> None:
        _, task, attempt, function, _, args, slots, name, _, _ = job.message
        (text, _) = self._read(job, args)
        assert text == f"args{task}"
        for value in slots or ():
            job.texts.append(self._read(job, value)[0])
        job.to_read = job.futures[: job.spec.reads]
        # Only what was submitted before it: a task that waits for its own dependent waits for ever.
        known = [a for a in self.globals if a.id < task]
        if job.spec.uses_globals and known:
            self.globals.remove(known[0])
            job.to_read.append(known[0])
            job.futures.append(known[0])

    def _read(self, job: Job, value: Any) -> Payload:
        payload, key = self.world.memory.read(self.number, value)
        if key is not None:
            job.views.append(key)
        for object_id in payload[1]:
            job.futures.append(self._future_for(Address(0, DRIVER, object_id)))
        return payload

    def _read_next(self, job: Job) -> None:
        address = job.to_read[0]
        outcome = self.futures[address][1]
        if outcome is None:
            job.blocked = True
            self._handle(WaitBegun((address,)))
            return
        if job.blocked:
            job.blocked = False
            self._handle(WaitEnded())
        job.to_read.pop(0)
        status, value = outcome
        try:
            text = self._read(job, value)[0] if status == READY else "!"
        except Gone as gone:
            job.to_read.insert(0, address)
            self.futures[address][1] = None
            self._handle(ValueLost(address, gone.args[1], gone.args[0]))
            entry = self.machine.references.entries[address]
            if entry.status != PENDING:
                self.futures[address][1] = (entry.status, entry.value)
            return
        if status == READY and type(value) is tuple and type(value[0]) is tuple:
            self._handle(Mapped((value[0][0], value[0][1])))
        job.texts.append(text)
        job.spec.read_ids.append(address.id)
        if self.world.rng.random() < 0.5:
            # The variable is overwritten while the task goes on; the view of the value stays.
            job.futures.remove(address)
            self._release(address)
            if self.world.rng.random() < 0.5:
                self.forget()

    def _end(self, job: Job) -> None:
        spec = job.spec
        status, value, nested = self._outcome(job)
        if spec.keeps_futures and job.futures:
            self.globals.append(job.futures.pop())
        if spec.keeps_views and job.views:
            self.kept_views.append(job.views.pop())
        late = self.world.rng.random() < 0.3  # a traceback or a cycle keeps the locals a while
        if nested:
            late = True  # they are in the result, which is there until its owner is told
            self._handle(Returning(tuple(Address(0, DRIVER, inner) for inner in nested)))
        if not late:
            self._drop_locals(job)
        self.forget()
        mapped = tuple(self.world.memory.mapped(self.number))
        if status == UNREAD:
            spec.history.pop()  # it has not run
        else:
            spec.history.append("return" if status == READY else "raise")
        self._handle(TaskEnded(spec.id, job.message[2], status, value, spec.elapsed_ns, mapped))
        if late:
            self._drop_locals(job)
        # Only now: perhaps nothing else has kept what the DONE names.
        for key in job.passed_on:
            self._unmap(key)

    def _outcome(self, job: Job) -> tuple[int, Any, tuple[int, ...]]:
        spec = job.spec
        if job.unread is not None:
            return UNREAD, job.unread, ()
        if spec.history.count("raise") < spec.raises:
            return FAILED, (ERROR, b"error", f"task {spec.id}"), ()
        if spec.passes_on and self.kept_views:
            value, payload = self.world.memory.again(self.kept_views[-1])
            known = self.machine.running.may_pass_on(self.kept_views[-1])
            if known and not payload[1]:  # the futures inside may be gone
                job.passed_on.append(self.kept_views.pop())
                spec.passed_on = payload[0]
                return READY, value, ()
        if spec.returns == ALIAS and spec.slots:
            value = job.message[6][0]
            try:
                payload, key = self.world.memory.read(self.number, value)
            except Gone:
                return FAILED, (ERROR, b"error", f"task {spec.id}"), ()
            if key is not None:
                self._unmap(key)
            return READY, value, payload[1]
        refs = tuple(address.id for address in job.futures) if spec.returns_futures else ()
        payload = (f"t{spec.id}({','.join(job.texts)})", refs)
        if spec.returns == STORED:
            return READY, self.world.memory.write(self.number, payload), refs
        return READY, inline(payload, spec.returns == PARTS), refs

    def _drop_locals(self, job: Job) -> None:
        for address in job.futures:
            self._release(address)
        for key in job.views:
            self._unmap(key)
        job.futures, job.views = [], []

    # -- around the machine

    def _future_for(self, address: Address) -> Address:
        known = self.futures.get(address)
        if known is not None:
            known[0] += 1
        else:
            self.futures[address] = [1, None]
            self._handle(HandleAdded(address, DRIVER))
            entry = self.machine.references.entries[address]
            if entry.status != PENDING:
                self.futures[address][1] = (entry.status, entry.value)
        return address

    def _release(self, address: Address) -> None:
        known = self.futures[address]
        known[0] -= 1
        if not known[0]:
            del self.futures[address]
            self.dropped.append(address)

    def _unmap(self, key: ExtentKey) -> None:
        if self.world.memory.unmap(self.number, key):
            self.unmapped.append(key)

    def _say(self, message: Any) -> None:
        self.outbox.append(message)
        self.flush()

    def _handle(self, report: object) -> None:
        for command in self.world.feed(self.machine, report):
            if isinstance(command, Send):
                self.outbox.append(command.message)
                if command.message[0] != m.DONE:
                    self.flush()
            elif isinstance(command, CheckSegment):
                self.world.memory.check(command.segment)
            elif isinstance(command, Free):
                self.world.memory.free(self.number, command.serial)
            elif isinstance(command, Abandon):
                self.world.memory.abandon(self.number, command.serial)
            elif isinstance(command, Spill):
                self.spills.append(command)
            elif isinstance(command, Moved):
                self.world.memory.moved(self.number, command.serial, command.taken)
            elif isinstance(command, Complete):
                known = self.futures.get(command.object)  # type: ignore[call-overload]
                if known is not None:
                    known[1] = (command.status, command.value)
            else:
                raise AssertionError(f"a worker is asked for {command}")
