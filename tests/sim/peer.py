"""A simulated process around its machine: what `owndist.runtime` does in driver and workers."""

from __future__ import annotations

import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

from owndist.core import messages as m
from owndist.core.commands import (
    Abandon,
    CancelAnswered,
    CheckSegment,
    Complete,
    Free,
    JudgeError,
    Log,
    LookFor,
    Moved,
    Orphaned,
    Send,
    Spill,
)
from owndist.core.ids import Address, ExtentKey
from owndist.core.machine import Machine
from owndist.core.reports import (
    CancelAsked,
    CancelWithdrawn,
    ErrorJudged,
    HandleAdded,
    HandlesDropped,
    Mapped,
    Spilled,
    Stored,
    Submitted,
    TimerDue,
    Unmapped,
    ValueLost,
)
from owndist.core.values import GONE, PENDING, READY, extent_key, extent_of

from .bodies import Body, Failed, Handle, Loaded, Steps, View, decode, encode, lost
from .judging import check_outcome
from .memory import Gone
from .specs import INLINE, STORED
from .trees import Plan, Thing

if TYPE_CHECKING:
    from .session import Session


class Ended(Exception):
    """The process has ended in the middle of a step."""


class Peer:
    """What every process has that submits tasks."""

    def __init__(self, session: Session, number: int, machine: Machine) -> None:
        self.session = session
        self.memory = session.memory
        self.number = number
        self.machine = machine
        machine.references.lineage.limit_bytes = session.lineage_bytes
        self.alive = True
        self.main: Steps = self._main()
        self.until: Any = None  # what the main thread waits for
        self.locked = False  # it has the lock
        self.linked: dict[int, None] = {}
        self.pending: dict[int, Handle] = {}
        self.borrowed: weakref.WeakValueDictionary[Address, Handle] = weakref.WeakValueDictionary()
        self.globals: list[Handle] = []
        self.kept_views: list[View] = []
        self.lingering: list[Body] = []
        self.dropped: list[Any] = []  # collected, and the machine has not been told
        self.unmapped: list[ExtentKey] = []
        self.completions: deque[tuple[Handle, int, Any]] = deque()
        self.recovering: dict[int | Address, Handle] = {}  # read, lost, and to come again
        self.missed: list[ValueLost] = []
        self.judgements: list[JudgeError] = []
        self.spills: list[Spill] = []
        self.answers: dict[int, bool | None] = {}  # {task: the answer to `cancel`}
        self._last_id = 0

    def _main(self) -> Steps:
        raise NotImplementedError

    def post(self, peer: int, message: Any) -> None:
        raise NotImplementedError

    def flush(self) -> None:
        raise NotImplementedError

    def take_in(self, number: int, messages: list[Any]) -> None:
        raise NotImplementedError

    # -- what can happen next

    def actions(self) -> list[tuple[str, int, int]]:
        """(name, which, weight) of every step that this process can take."""
        if self.locked:
            return [("work", 0, 8)]
        found = []
        for number in self.linked:
            if self.session.wires.get((number, self.number)) or self.session.is_dead(number):
                found.append(("hear", number, self.session.speed(number, self.number)))
        if self.until is None or self.until():
            found.append(("work", 0, 8))
        for name, there, weight in (
            ("complete", self.completions, 6),
            ("judge", self.judgements, 4),
            ("tell_missed", self.missed, 8),
            ("forget", self.dropped, 2),
            ("tell_unmapped", self.unmapped, 2),
            ("spill", self.spills, 2),
        ):
            if there:
                found.append((name, 0, weight))
        deadline = self.machine.next_deadline()
        if deadline is not None and deadline <= self.session.now:
            found.append(("timer", 0, 4))
        return found

    def idle_actions(self) -> list[tuple[str, int, int]]:
        """Steps that nothing forces."""
        if self.locked:
            return []
        kept = (self.globals, self.kept_views, self.lingering)
        return [("lose", k, 1) for k, things in enumerate(kept) if things]

    def do(self, name: str, which: int) -> None:
        if name == "hear":
            self.hear(which)
        elif name == "lose":
            things: list[Any] = (self.globals, self.kept_views, self.lingering)[which]  # type: ignore[assignment]
            del things[self.session.rng.randrange(len(things))]
        elif name == "timer":
            self.feed(TimerDue())
        else:
            getattr(self, name)()

    def work(self) -> None:
        try:
            self.until = next(self.main)
        except StopIteration:
            self.stop()

    def stop(self) -> None:
        """The main thread has ended."""
        self.until = lambda: False

    def hear(self, number: int) -> None:
        raise NotImplementedError

    def complete(self) -> None:
        while self.completions:
            handle, status, value = self.completions.popleft()
            if handle.outcome is None:
                handle.outcome = (status, value)

    def judge(self) -> None:
        while self.judgements:
            command = self.judgements.pop(0)
            self.feed(ErrorJudged(command.task, command.attempt, True))
        self.flush()

    def forget(self) -> None:
        if self.dropped:
            dropped, self.dropped = self.dropped, []
            self.feed(HandlesDropped(dropped))

    def tell_missed(self) -> None:
        while self.missed:
            self.feed(self.missed.pop(0))
        self.flush()

    def tell_unmapped(self) -> None:
        gone, self.unmapped = dict.fromkeys(self.unmapped), []
        still = self.memory.mapped(self.number)
        told = [key for key in gone if key not in still]
        if told:
            self.feed(Unmapped(told))

    def spill(self) -> None:
        command = self.spills.pop(0)
        full = self.session.rng.random() < 0.1
        file = None if full else self.memory.spill(self.number, command.serial)
        self.feed(Spilled(command.owner, command.serial, file))

    # -- the machine

    def feed(self, report: object) -> None:
        session = self.session
        commands = self.machine.handle(report, session.now)
        session.tell(self.number, report, commands)
        self.machine.check()
        for command in commands:
            if isinstance(command, Send):
                if command.message[0] == m.TASK:
                    session.check_sent(self.number, command.message[1])
                self.post(command.peer, command.message)
            elif isinstance(command, Complete):
                self._outcome(command)
            elif isinstance(command, Free):
                self.memory.free(self.number, command.serial)
            elif isinstance(command, CheckSegment):
                self.memory.check(command.segment)
            elif isinstance(command, LookFor):
                if command.segment in self.memory.lost:
                    missed = ValueLost(command.object, command.extent, command.segment)
                    self.missed.append(missed)
            elif isinstance(command, Abandon):
                self.memory.abandon(self.number, command.serial)
            elif isinstance(command, Spill):
                self.spills.append(command)
            elif isinstance(command, Moved):
                self.memory.moved(self.number, command.serial, command.taken)
            elif isinstance(command, JudgeError):
                self.judgements.append(command)
            elif isinstance(command, CancelAnswered):
                if command.cancelled:
                    session.cancelled[self.number, command.task] = None
                if command.task in self.answers:
                    self.answers[command.task] = command.cancelled
            elif isinstance(command, Orphaned):
                self.flush()
                self.alive = False
                raise Ended
            else:
                self.perform(command)

    def perform(self, command: object) -> None:
        assert isinstance(command, Log), f"process {self.number} is asked for {command}"
        if "computing it again" in command.text:
            owner, task = map(int, command.args[0].split("."))
            recomputed = self.session.recomputed
            recomputed[owner, task] = recomputed.get((owner, task), 0) + 1

    def _outcome(self, command: Complete) -> None:
        ref = command.object
        own = isinstance(ref, int)
        address = Address(0, self.number, ref) if isinstance(ref, int) else ref
        check_outcome(self.session, address, command.status, command.value, own)
        handle = self.pending.pop(ref, None) if isinstance(ref, int) else self.borrowed.get(ref)
        for one in (handle, self.recovering.pop(ref, None)):
            if one is not None:
                self.completions.append((one, command.status, command.value))

    # -- what bodies call

    def submit(self, plan: Plan, slots: list[Handle], nested: list[Handle]) -> list[Handle]:
        addresses = [handle.address for handle in nested]
        way = STORED if plan.args_stored else INLINE
        value = encode(self, self.number, f"arguments of {plan.name}", addresses, way, None)
        handle = self._new(plan)
        handles = [handle, *(self._new(other) for other in plan.others)]
        assert isinstance(handle.ref, int)
        for made in handles:
            self.pending[made.ref] = made  # type: ignore[index]
            self.session.makers[self.number, made.ref] = (self.number, handle.ref)  # type: ignore[index]
        self.feed(
            Submitted(
                handle.ref,
                plan.function,
                (),
                value,
                tuple(slot.ref for slot in slots),
                tuple(inner.ref for inner in nested),
                f"{self.number}.{handle.ref}",
                plan.max_retries,
                plan.judged,
                len(handles),
            )
        )
        return handles

    def put(self, thing: Thing, nested: list[Handle], stored: bool) -> Handle:
        addresses = [handle.address for handle in nested]
        way = STORED if stored else INLINE
        value = encode(self, self.number, thing.text, addresses, way, None)
        handle = self._new(thing)
        assert isinstance(handle.ref, int)
        self.feed(Stored(handle.ref, value, tuple(inner.ref for inner in nested)))
        if handle.outcome is None:
            handle.outcome = (READY, value)
        return handle

    def _new(self, thing: Thing) -> Handle:
        self._last_id += 1
        self.session.things[self.number, self._last_id] = thing
        return Handle(self, self._last_id)

    def cancel(self, handle: Handle, waits: bool) -> Steps:
        task = handle.ref
        if not isinstance(task, int) or handle.outcome is not None:
            return
        self.answers[task] = None
        running, force = self.session.how_to_cancel()
        self.feed(CancelAsked(task, running, force))
        assert self.answers[task] is not None or not (running or force), (
            f"who stops task {task} has to wait"
        )
        self.flush()
        if waits:
            yield lambda: self.answers[task] is not None
        else:
            yield None
            if self.answers[task] is None:
                self.feed(CancelWithdrawn(task))
                self.session.doubtful[self.number, task] = None
        del self.answers[task]

    def result(self, handle: Handle, helps: bool) -> Steps:
        """As `Future.result`; raises Failed."""
        if handle.outcome is None:
            yield from self.wait_for(handle, helps)
        assert handle.outcome is not None
        status, value = handle.outcome
        if status != READY:
            raise Failed(value)
        if handle.loaded is None:
            handle.loaded = yield from self._load_object(handle.ref, value)
        return handle.loaded

    def _load_object(self, ref: int | Address, value: Any) -> Steps:
        """As `Owner.load`; raises Failed."""
        lender = ref.owner if isinstance(ref, Address) else None
        while True:
            entry = self.machine.references.entries.get(ref)
            if extent_of(value) is not None and entry is not None and entry.status == READY:
                value = entry.value
            try:
                if extent_of(value) is not None and entry is not None and entry.status != READY:
                    raise Gone("known to be lost", (0, 0))
                return (yield from self.load(value, lender))
            except Gone as gone:
                segment, key = gone.args
            while True:
                again = self.recovering.get(ref)
                if again is None:
                    again = self.recovering[ref] = Handle(self, ref)
                    self.feed(HandleAdded(ref))
                self.feed(ValueLost(ref, key, segment))
                self.tell_missed()
                entry = self.machine.references.entries[ref]
                if entry.status == PENDING:
                    yield from self.wait_for(again, True)
                else:
                    self.recovering.pop(ref, None)
                status, value = entry.status, entry.value
                del again
                if status != PENDING and status != GONE:
                    break
            if status != READY:
                raise Failed(value)

    def wait_for(self, handle: Handle, helps: bool) -> Steps:
        yield lambda: handle.outcome is not None

    def load(self, value: Any, lender: int | None, is_argument: bool = False) -> Steps:
        """The object that a value stands for; raises Failed."""
        view = None
        extent = extent_of(value)
        if extent is not None:
            if not is_argument:
                value = self.machine.references.current(value)
            self.session.perhaps_steal(value)
            there = extent_of(value)
            if self.memory.is_unlinked(value) and there[2] not in self.memory.lost:
                keeper = self.session.keepers[extent_key(extent)]
                assert self.session.is_dead(keeper), f"{keeper} keeps {extent}, and it is gone"
                raise Gone(there[2], extent_key(extent))
            payload, key = self.memory.read(self.number, value)
            assert key is not None
            view = View(self, key)
            if not is_argument:
                self.feed(Mapped(extent_key(extent)))
        text, refs, content = decode(value)
        assert extent is None or payload[0] == content, f"{text}: {payload[0]} in its memory"
        handles = [self.future_for(Address(*address), lender) for address in refs]
        if self.machine.borrowing.unanswered:
            unanswered = self.machine.borrowing.unanswered
            yield lambda: not unanswered
        return Loaded(text, handles, view, content)

    def future_for(self, address: Address, lender: int | None) -> Handle:
        own = address.owner == self.number
        ref: Any = address.id if own else address
        known = self.pending.get(ref) if own else self.borrowed.get(address)
        if known is not None:
            return known
        if own and ref not in self.machine.references.entries:
            raise lost("let go while a reference travelled")
        handle = Handle(self, ref)
        if not own:
            self.borrowed[address] = handle
        self.feed(HandleAdded(ref, lender))
        self.flush()
        entry = self.machine.references.entries[ref]
        if own and entry.status == PENDING:
            self.pending[ref] = handle  # its value was lost, and is computed again
        if entry.status != PENDING:
            handle.outcome = (entry.status, entry.value)
        return handle
