"""Three real machines, the driver's and two workers', and every order of what happens between them.

The simulator's workers own nothing. Here they do: what is explored is who registers whom with which
owner, and what becomes of it when one of the three dies. Leasing is left out: who runs what is
given.
"""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable
from typing import Any

from owndist.core import messages as m
from owndist.core.commands import Orphaned, Send
from owndist.core.ids import DRIVER, LOCAL_HOST, Address, Ref, execution_id
from owndist.core.machine import Machine
from owndist.core.reports import (
    CancelAsked,
    HandleAdded,
    HandlesDropped,
    Received,
    Returning,
    Submitted,
    TaskEnded,
    WorkerEnded,
)
from owndist.core.values import READY

from .explorer import fingerprint

A, B = 1, 2
ENDED = "ended"  # the last thing that is heard of a process

_LEASING = frozenset({m.DEMAND, m.GIVE_BACK, m.VACANT, m.HOLDING, m.UNHOLD, m.STOP})

Step = Callable[["Net"], bool | None]  # False: it cannot be done yet
Program = dict[int, list[Step]]
Choice = tuple[Any, ...]


class Net:
    """The machines, and what is on its way between them, in order for each pair."""

    def __init__(self, program: Program) -> None:
        self.machines = {DRIVER: Machine(DRIVER, 2), A: Machine(A), B: Machine(B)}
        self.wires: dict[tuple[int, int], deque[Any]] = {
            (one, other): deque() for one in (0, A, B) for other in (0, A, B) if one != other
        }
        self.dead: list[int] = []
        self.position = dict.fromkeys(self.machines, 0)
        self.handles: dict[int, list[Ref]] = {number: [] for number in self.machines}
        self.program = program
        for task in (101, 102):
            self.submit(DRIVER, task)
        for number in (A, B):
            self.feed(DRIVER, Received(number, [(m.ALIVE, 1000 + number)]))
        for number, task in ((B, 102), (A, 101)):  # so the driver's next task goes to A
            self.feed(DRIVER, Received(number, [(m.DONE, task, 1, READY, b"", 1, None)]))
        self.drop(DRIVER, 101, 102)
        for wire in self.wires.values():
            wire.clear()

    # -- what processes do

    def feed(self, number: int, report: object) -> None:
        machine = self.machines[number]
        commands = machine.handle(report, 0)
        machine.check()
        for command in commands:
            if isinstance(command, Orphaned):
                self.die(number)
            elif isinstance(command, Send) and command.message[0] not in _LEASING:
                if command.peer not in self.dead:
                    self.wires[number, command.peer].append(command.message)

    def submit(self, number: int, task: int, *nested: Ref) -> None:
        self.feed(number, Submitted(task, 1, (), b"", (), nested, f"task {task}", 0, False))
        self.handles[number].append(task)

    def take(self, number: int) -> bool:
        """Start the task that has come."""
        return self.machines[number].take() is not None

    def hold(self, number: int, ref: Ref, lender: int | None) -> None:
        """A reference has come along: user code is about to get the future."""
        self.feed(number, HandleAdded(ref, lender))
        self.handles[number].append(ref)

    def answered(self, number: int) -> bool:
        """Whether all owners have answered, so that user code gets what it is to get."""
        return not self.machines[number].borrowing.unanswered

    def give(self, number: int, *refs: Ref) -> None:
        """The running task is about to return futures."""
        self.feed(number, Returning(refs))

    def end_task(self, number: int) -> None:
        _, message = self.machines[number].execution.running or (0, ())
        self.feed(number, TaskEnded(message[1], message[2], READY, b"value", 1, ()))

    def drop(self, number: int, *refs: Ref) -> None:
        self.feed(number, HandlesDropped(list(refs)))
        for ref in refs:
            self.handles[number].remove(ref)

    def die(self, number: int) -> None:
        """It is killed; what it has said will still be heard."""
        self.dead.append(number)
        for one, other in self.wires:
            if other == number:
                self.wires[one, other].clear()
        self.wires[number, DRIVER].append(ENDED)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "program": None}  # functions cannot be pickled

    # -- what can happen next

    def choices(self, mortal: tuple[int, ...]) -> list[Choice]:
        found: list[Choice] = [("deliver", *wire) for wire, queue in self.wires.items() if queue]
        found += [
            ("step", number)
            for number, steps in self.program.items()
            if self.position[number] < len(steps) and number not in self.dead
        ]
        found += [("die", number) for number in mortal if number not in self.dead]
        return found

    def do(self, choice: Choice) -> bool:
        """Returns whether that was possible."""
        kind, *numbers = choice
        if kind == "deliver":
            self._deliver(*numbers)
        elif kind == "die":
            self.die(*numbers)
        else:
            (number,) = numbers
            if self.program[number][self.position[number]](self) is False:
                return False
            self.position[number] += 1
        return True

    def _deliver(self, sender: int, receiver: int) -> None:
        message = self.wires[sender, receiver].popleft()
        if message == ENDED:
            running = self.machines[sender].execution.running
            owner, execution = DRIVER, 0
            if running is not None:
                owner, execution = running[0], execution_id(*running[1][1:3])
            self.feed(DRIVER, WorkerEnded(sender, execution, 1000 + sender, -9, "", owner))
            return
        if message[0] == m.GONE:  # after all that the dead one has said itself
            while self.wires[message[1], receiver]:
                self._deliver(message[1], receiver)
        if receiver not in self.dead:
            self.feed(receiver, Received(sender, [message]))

    def settle(self) -> None:
        """Deliver all that is under way, and what that leads to."""
        while wires := [wire for wire, queue in self.wires.items() if queue]:
            self._deliver(*wires[0])

    # -- what must hold

    def check(self) -> None:
        """Whoever needs the owner finds the object there, if the owner lives (Law 12)."""
        for number, machine in self.machines.items():
            if number in self.dead or not self.answered(number):
                continue
            for ref, entry in machine.references.entries.items():
                if isinstance(ref, Address) and ref.owner not in self.dead:
                    known = ref.id in self.machines[ref.owner].references.entries
                    assert known or type(entry.value) is bytes, (
                        f"{ref} is gone, and {number} has it"
                    )

    def let_go(self) -> None:
        """All handles die, and what found no worker is cancelled: nothing is left (Law 14)."""
        for number, refs in self.handles.items():
            if number not in self.dead:
                for task in list(self.machines[number].submission.tasks):
                    self.feed(number, CancelAsked(task))
                self.drop(number, *refs)
        self.settle()
        for number, machine in self.machines.items():
            left = [] if number in self.dead else list(machine.references.entries)
            assert not left, f"process {number} keeps {left}"


def explore(
    program: Program, mortal: tuple[int, ...], see: Callable[[Net], None]
) -> tuple[int, int]:
    """Try every order; returns the numbers of states and of ends.

    Args:
        program: the steps of each process, one after the other, each at any moment; the driver's
            first one comes first.
        mortal: the workers that may be killed, each at any moment.
        see: looks at the net at each end, before all handles are dropped.
    """
    seen: set[int] = set()
    states = ends = 0
    first = Net(program)
    first.do(("step", DRIVER))
    todo: list[tuple[bytes, tuple[Choice, ...]]] = [(pickle.dumps(first), ())]
    while todo:
        before, path = todo.pop()
        net: Net = pickle.loads(before)
        net.program = program
        try:
            if path and not net.do(path[-1]):
                continue
            key = hash(fingerprint({**vars(net), "program": None}, {}, 0))
            if key in seen:
                continue
            seen.add(key)
            states += 1
            net.check()
            here = pickle.dumps(net)
            choices = net.choices(mortal)
            if not any(kind == "deliver" or kind == "step" for kind, *_ in choices):
                ends += 1
                see(net)
                net.let_go()
        except AssertionError as error:
            raise AssertionError(f"{error}\nafter {list(path)}") from error
        todo.extend((here, (*path, choice)) for choice in choices)
    return states, ends


def own(owner: int, object_id: int) -> Address:
    """The address of an object of one of the three."""
    return Address(LOCAL_HOST, owner, object_id)
