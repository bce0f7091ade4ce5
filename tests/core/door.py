"""The machine behind one door that checks its invariants and keeps the story."""

from __future__ import annotations

from typing import Any, TypeVar

from owndist.core import messages as m
from owndist.core.commands import CancelAnswered, Command, Complete, Free, LookAgain, Send, Spawn
from owndist.core.ids import DRIVER, LOCAL_HOST, Address, execution_id
from owndist.core.machine import Machine
from owndist.core.reports import (
    CancelAsked,
    CancelWithdrawn,
    HandlesDropped,
    LookedAgain,
    Received,
    Stored,
    Submitted,
    TimerDue,
    WorkerEnded,
)
from owndist.core.values import ERROR, FAILED, READY

C = TypeVar("C")

MS = 1_000_000  # nanoseconds


def extent(writer: int, serial: int, segment: str | None = None) -> Any:
    """A value in shared memory."""
    return ((writer, serial, segment or f"s{writer}", 0, 64), b"head", ((0, 64),))


class Door:
    """`handle` and `check` in one, with the verbs of a driver and of its workers."""

    def __init__(self, max_workers: int = 1, max_tasks: int | None = None) -> None:
        self.machine = Machine(DRIVER, max_workers, max_tasks)
        self.now = 0
        self.links_are_empty = True  # nothing is on its way when the machine looks again
        self.story: list[tuple[object, list[Any]]] = []

    def feed(self, report: object) -> list[Any]:
        commands: list[Any] = self.machine.handle(report, self.now)
        self.story.append((report, commands))
        self.machine.check()
        if self.links_are_empty and only(commands, LookAgain):
            commands = commands + self.feed(LookedAgain())
        return commands

    # -- the user

    def submit(self, task: int, **fields: Any) -> list[Any]:
        known: dict[str, Any] = {
            "function": 1,
            "entries": (),
            "args": b"args",
            "slots": (),
            "nested": (),
            "name": f"task {task}",
            "max_retries": 3,
            "judged": False,
        }
        known.update(fields)
        return self.feed(Submitted(task, **known))

    def put(self, object_id: int, value: Any = b"value", nested: tuple[int, ...] = ()) -> list[Any]:
        return self.feed(Stored(object_id, value, nested))

    def drop(self, *objects: int) -> list[Any]:
        return self.feed(HandlesDropped(list(objects)))

    def cancel(self, task: int) -> list[Any]:
        return self.feed(CancelAsked(task))

    def stop(
        self, task: int, running: bool = True, force: bool = False, recursive: bool = False
    ) -> list[Any]:
        """`cancel(running=..., force=..., recursive=...)`."""
        return self.feed(CancelAsked(task, running, force, recursive))

    def withdraw(self, task: int) -> list[Any]:
        """Whoever wanted it cancelled waits for the answer no more."""
        return self.feed(CancelWithdrawn(task))

    def tick(self, ns: int) -> list[Any]:
        """Time passes; the timer goes off if it is due."""
        self.now += ns
        deadline = self.machine.next_deadline()
        if deadline is None or deadline > self.now:
            return []
        return self.feed(TimerDue())

    # -- the workers

    def say(self, worker: int, *messages: Any) -> list[Any]:
        return self.feed(Received(worker, list(messages)))

    def up(self, *workers: int) -> list[Any]:
        """These workers are ready."""
        return [c for number in workers for c in self.say(number, (m.ALIVE, 1000 + number))]

    def done(
        self, worker: int, task: int, value: Any = b"value", attempt: int = 1, **extra: Any
    ) -> list[Any]:
        """A worker returns a value, after 1 microsecond."""
        return self.say(worker, done(task, value, attempt, **extra))

    def raised(self, worker: int, task: int, attempt: int = 1) -> list[Any]:
        return self.say(worker, done(task, (ERROR, b"error", ""), attempt, status=FAILED))

    def end(self, worker: int, running: int = 0, exitcode: int = -9) -> list[Any]:
        if running:
            known = self.machine.submission.tasks.get(running)
            running = execution_id(running, known.attempt if known else 1)
        return self.feed(WorkerEnded(worker, running, 1000 + worker, exitcode, ""))

    def keeps(self, worker: int, object_id: int, token: int) -> list[Any]:
        """The worker registers: it keeps a handle."""
        return self.say(worker, (m.REGISTER, 0, ((object_id, worker, token),)))

    def blocked(self, worker: int, object_id: int) -> list[Any]:
        return self.say(worker, (m.WANT, object_id), (m.BLOCKED,))

    def unblocked(self, worker: int) -> list[Any]:
        return self.say(worker, (m.UNBLOCKED,))

    def make_short(self, function: int = 1) -> None:
        """From here on the function counts as short, so that its tasks are sent ahead."""
        self.machine.submission.estimates[function] = 20_000

    # -- looking

    def outcomes(self) -> dict[int, tuple[int, Any]]:
        """{object: (status, value)}; fails if one was completed twice."""
        found: dict[int, tuple[int, Any]] = {}
        for _, commands in self.story:
            for command in only(commands, Complete):
                assert command.object not in found, f"{command.object} completed twice"
                found[command.object] = (command.status, command.value)
        return found

    def sent(self, kind: int, worker: int | None = None) -> list[Any]:
        """All messages of a kind sent so far."""
        return [x for _, commands in self.story for x in sends(commands, kind, worker)]

    def tasks_sent(self) -> list[tuple[int, int, int]]:
        """(worker, task, attempt) of every dispatch so far."""
        return [
            (c.peer, c.message[1], c.message[2])
            for _, commands in self.story
            for c in only(commands, Send)
            if c.message[0] == m.TASK
        ]

    def spawned(self) -> list[int]:
        return [c.worker for _, commands in self.story for c in only(commands, Spawn)]

    def freed(self) -> list[tuple[int, int]]:
        """(writer, serial) of every extent freed so far, in order."""
        found = []
        for _, commands in self.story:
            for command in commands:
                if isinstance(command, Free):
                    found.append((DRIVER, command.serial))
                elif isinstance(command, Send) and command.message[0] == m.FREE:
                    found += [(command.peer, serial) for serial in command.message[1]]
        return found

    def answers(self) -> list[tuple[int, bool]]:
        return [
            (c.task, c.cancelled)
            for _, commands in self.story
            for c in only(commands, CancelAnswered)
        ]

    def assert_empty(self) -> None:
        """Law 14: nothing is left."""
        assert not self.machine.references.entries
        assert not self.machine.references.extents
        assert not self.machine.submission.tasks


def done(
    task: int,
    value: Any = b"value",
    attempt: int = 1,
    *,
    status: int = READY,
    pinned: tuple[tuple[int, int], ...] = (),
    nested: tuple[int, ...] = (),
    elapsed_ns: int = 1_000,
) -> Any:
    """A DONE message."""
    given = tuple((Address(LOCAL_HOST, DRIVER, object_id), 0) for object_id in nested)
    extras = (pinned, given, ()) if pinned or nested else None
    return (m.DONE, task, attempt, status, value, elapsed_ns, extras)


def yielded(task: int, index: int, value: Any = b"value", attempt: int = 1, **more: Any) -> Any:
    """A YIELD message."""
    return (m.YIELD, task, attempt, index, more.get("status", READY), value, more.get("extras"))


def only(commands: list[Command], kind: type[C]) -> list[C]:
    """The commands of one kind."""
    return [command for command in commands if isinstance(command, kind)]


def sends(commands: list[Any], kind: int, worker: int | None = None) -> list[Any]:
    """The messages of one kind among the commands."""
    return [
        c.message
        for c in commands
        if isinstance(c, Send) and c.message[0] == kind and worker in (None, c.peer)
    ]
