"""All commands: what a machine asks of its process. Named in the imperative."""

from __future__ import annotations

from typing import Any

from .ids import ExecutionKey, ExtentKey, ObjectId, ProcessNumber, Ref, TaskId
from .messages import Message
from .records import Record
from .values import Failure, Value


class Send(Record):
    """Send a message to a peer. To one that is gone: drop it."""

    __slots__ = ("peer", "message")

    def __init__(
        self,
        peer: ProcessNumber,
        message: Message,
    ) -> None:
        self.peer = peer
        self.message = message


class Complete(Record):
    """An object has its outcome: complete the future that waits for it."""

    __slots__ = ("object", "status", "value")

    def __init__(
        self,
        object: Ref,
        status: int,
        value: Value | Failure | None,
    ) -> None:
        self.object = object
        self.status = status
        self.value = value


class Delivered(Record):
    """A stream's task has yielded a value, with this outcome; a handle to it is taken."""

    __slots__ = ("task", "object", "status", "value")

    def __init__(
        self,
        task: TaskId,
        object: ObjectId,
        status: int,
        value: Value | Failure | None,
    ) -> None:
        self.task = task
        self.object = object
        self.status = status
        self.value = value


class CancelAnswered(Record):
    """Answers `CancelAsked`. True: the task will not run, and its future is cancelled."""

    __slots__ = ("task", "cancelled")

    def __init__(
        self,
        task: TaskId,
        cancelled: bool,
    ) -> None:
        self.task = task
        self.cancelled = cancelled


class JudgeError(Record):
    """Say by `ErrorJudged` whether this error is among those that the task retries."""

    __slots__ = ("task", "attempt", "error", "types")

    def __init__(
        self,
        task: TaskId,
        attempt: int,
        error: bytes,
        types: Any,  # what `Submitted` said
    ) -> None:
        self.task = task
        self.attempt = attempt
        self.error = error
        self.types = types


class Free(Record):
    """An extent that this process wrote is needed no more."""

    __slots__ = ("serial",)

    def __init__(
        self,
        serial: int,
    ) -> None:
        self.serial = serial


class LookFor(Record):
    """Is the memory of an object's value there? If not, that is to be told (`ValueLost`)."""

    __slots__ = ("object", "extent", "segment")

    def __init__(
        self,
        object: Ref,
        extent: ExtentKey,
        segment: str,
    ) -> None:
        self.object = object
        self.extent = extent
        self.segment = segment


class CheckSegment(Record):
    """A segment that this process made was not found: if it is gone, write nothing more there."""

    __slots__ = ("segment",)

    def __init__(
        self,
        segment: str,
    ) -> None:
        self.segment = segment


class Spill(Record):
    """Copy an extent that this process wrote to disk, and answer by `Spilled`."""

    __slots__ = ("owner", "serial")

    def __init__(
        self,
        owner: ProcessNumber,
        serial: int,
    ) -> None:
        self.owner = owner
        self.serial = serial


class Moved(Record):
    """Of an extent and its copy on disk, one is needed no more: the extent, if `taken`."""

    __slots__ = ("serial", "taken")

    def __init__(
        self,
        serial: int,
        taken: bool,
    ) -> None:
        self.serial = serial
        self.taken = taken


class Unlink(Record):
    """Nothing in this segment of a dead process is needed any more."""

    __slots__ = ("segment",)

    def __init__(
        self,
        segment: str,
    ) -> None:
        self.segment = segment


class SweepDead(Record):
    """A worker is dead: unlink all its segments but these, which hold live values."""

    __slots__ = ("worker", "keep")

    def __init__(
        self,
        worker: ProcessNumber,
        keep: frozenset[str],
    ) -> None:
        self.worker = worker
        self.keep = keep


class Spawn(Record):
    """Start a worker process under this number."""

    __slots__ = ("worker",)

    def __init__(
        self,
        worker: ProcessNumber,
    ) -> None:
        self.worker = worker


class Kill(Record):
    """End this worker process, which runs a task that must not go on."""

    __slots__ = ("worker",)

    def __init__(
        self,
        worker: ProcessNumber,
    ) -> None:
        self.worker = worker


class KillIfRunning(Record):
    """Kill this worker if it runs this execution of an owner's task; not while it runs another."""

    __slots__ = ("worker", "owner", "execution")

    def __init__(
        self,
        worker: ProcessNumber,
        owner: ProcessNumber,
        execution: int,
    ) -> None:
        self.worker = worker
        self.owner = owner
        self.execution = execution


class Interrupt(Record):
    """Have this execution, which runs here, raise `TaskCancelled`; with `force` die at once.

    `children` is not None: tell by `Interrupted` when it has raised, or has ended.
    """

    __slots__ = ("execution", "force", "children")

    def __init__(
        self,
        execution: ExecutionKey,
        force: bool,
        children: bool | None,
    ) -> None:
        self.execution = execution
        self.force = force
        self.children = children


class Abandon(Record):
    """An extent that this process wrote is needed no more, but may have readers: no reuse."""

    __slots__ = ("serial",)

    def __init__(
        self,
        serial: int,
    ) -> None:
        self.serial = serial


class Orphaned(Record):
    """The task that runs here belongs to a process that has died: end this process."""

    __slots__ = ()


class LookAgain(Record):
    """Read all links, each as far as it has something by now, and answer by `LookedAgain`."""

    __slots__ = ()


class Drained(Record):
    """After `ShutdownAsked`: every task has its outcome; workers may stop."""

    __slots__ = ()


class Log(Record):
    """Something that a person watching the logs should know."""

    __slots__ = ("level", "text", "args")

    def __init__(
        self,
        level: int,
        text: str,
        args: tuple[object, ...],
    ) -> None:
        self.level = level
        self.text = text
        self.args = args


Command = (
    Send
    | Complete
    | Delivered
    | CancelAnswered
    | JudgeError
    | LookFor
    | CheckSegment
    | Free
    | Spill
    | Moved
    | Unlink
    | SweepDead
    | Spawn
    | Kill
    | KillIfRunning
    | Interrupt
    | Abandon
    | Orphaned
    | LookAgain
    | Drained
    | Log
)

__all__ = [
    "Abandon",
    "CancelAnswered",
    "Command",
    "Complete",
    "Delivered",
    "Drained",
    "ExtentKey",
    "Free",
    "Interrupt",
    "JudgeError",
    "Kill",
    "KillIfRunning",
    "Log",
    "LookAgain",
    "Moved",
    "Orphaned",
    "Send",
    "Spawn",
    "Spill",
    "SweepDead",
    "Unlink",
]
