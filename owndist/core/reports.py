"""All reports: what a machine is told by its own process. Named for what has happened."""

from __future__ import annotations

from typing import Any

from .ids import DRIVER, ExecutionKey, ExtentKey, ObjectId, ProcessNumber, Ref, TaskId
from .messages import Message
from .records import Record
from .values import Failure, Value


class Submitted(Record):
    """The process's own code has submitted a task; a handle to its result exists."""

    __slots__ = (
        "task",
        "function",
        "entries",
        "args",
        "slots",
        "nested",
        "name",
        "max_retries",
        "judged",
        "returns",
        "buffer",
    )

    def __init__(
        self,
        task: TaskId,
        function: int,
        entries: tuple[int, ...],
        args: Value,
        slots: tuple[Ref, ...],  # futures among the arguments, given as values
        nested: tuple[Ref, ...],  # futures among the arguments that stay futures
        name: str,
        max_retries: int,
        judged: Any,  # if true: by this (retry_exceptions) errors are judged before they count
        returns: int = 1,  # how many values; or `returns.STREAM`
        buffer: int = 0,  # of a stream: so many values may be there that nobody has taken
    ) -> None:
        self.task = task
        self.function = function
        self.entries = entries
        self.args = args
        self.slots = slots
        self.nested = nested
        self.name = name
        self.max_retries = max_retries
        self.judged = judged
        self.returns = returns
        self.buffer = buffer


class Stored(Record):
    """The process's own code has put a value; a handle to it exists."""

    __slots__ = ("object", "value", "nested")

    def __init__(
        self,
        object: ObjectId,
        value: Value,
        nested: tuple[Ref, ...],
    ) -> None:
        self.object = object
        self.value = value
        self.nested = nested


class Promised(Record):
    """Someone outside the session will give an object (a foreign future); a handle exists."""

    __slots__ = ("object",)

    def __init__(
        self,
        object: ObjectId,
    ) -> None:
        self.object = object


class Fulfilled(Record):
    """A promised object is there, or has failed."""

    __slots__ = ("object", "status", "value")

    def __init__(
        self,
        object: ObjectId,
        status: int,
        value: Value | Failure | None,
    ) -> None:
        self.object = object
        self.status = status
        self.value = value


class ValueLost(Record):
    """The value of an object could not be read: its memory is gone."""

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


class HandleAdded(Record):
    """One more handle exists in this process: to an own object (id) or to another's (address).

    `lender` is the process that the reference came from; None if the object is kept for it already.
    """

    __slots__ = ("object", "lender")

    def __init__(
        self,
        object: Ref,
        lender: ProcessNumber | None = None,
    ) -> None:
        self.object = object
        self.lender = lender


class HandlesDropped(Record):
    """Handles are gone; an id or address stands once for each."""

    __slots__ = ("objects",)

    def __init__(
        self,
        objects: list[Ref],
    ) -> None:
        self.objects = objects


class Returning(Record):
    """The running task is about to return a value with the futures of these objects inside."""

    __slots__ = ("objects",)

    def __init__(
        self,
        objects: tuple[Ref, ...],
    ) -> None:
        self.objects = objects


class TaskEnded(Record):
    """The executing thread has run a task; its value, if stored, is written.

    The futures inside the value are those of the last `Returning`. `mapped` are the extents that
    this process maps now; `entries` the keys of the namespace entries that whoever loads the value
    needs.
    """

    __slots__ = ("task", "attempt", "status", "value", "elapsed_ns", "mapped", "entries")

    def __init__(
        self,
        task: TaskId,
        attempt: int,
        status: int,
        value: Value | Failure | None,
        elapsed_ns: int,
        mapped: tuple[ExtentKey, ...],
        entries: tuple[int, ...] = (),
    ) -> None:
        self.task = task
        self.attempt = attempt
        self.status = status
        self.value = value
        self.elapsed_ns = elapsed_ns
        self.mapped = mapped
        self.entries = entries


class Yielded(Record):
    """The executing thread has one of several values; the rest is as in `TaskEnded`."""

    __slots__ = ("task", "attempt", "index", "status", "value", "mapped", "entries")

    def __init__(
        self,
        task: TaskId,
        attempt: int,
        index: int,
        status: int,
        value: Value | Failure | None,
        mapped: tuple[ExtentKey, ...],
        entries: tuple[int, ...] = (),
    ) -> None:
        self.task = task
        self.attempt = attempt
        self.index = index
        self.status = status
        self.value = value
        self.mapped = mapped
        self.entries = entries


class Consumed(Record):
    """So many values of a stream have been taken so far. Fewer than were told of change nothing."""

    __slots__ = ("task", "taken")

    def __init__(
        self,
        task: TaskId,
        taken: int,
    ) -> None:
        self.task = task
        self.taken = taken


class StreamClosed(Record):
    """Nobody takes any more values of this stream."""

    __slots__ = ("task",)

    def __init__(
        self,
        task: TaskId,
    ) -> None:
        self.task = task


class StreamsCut(Record):
    """Somebody waits for the end of all tasks: streams get no further than their buffers reach."""

    __slots__ = ()


class WaitBegun(Record):
    """The running task waits, in any of its threads, for one of these objects."""

    __slots__ = ("objects",)

    def __init__(
        self,
        objects: tuple[Ref, ...],
    ) -> None:
        self.objects = objects


class WaitEnded(Record):
    """A wait is over that began in this task (owner, TASK); None for the running one."""

    __slots__ = ("task",)

    def __init__(
        self,
        task: tuple[ProcessNumber, Message] | None = None,
    ) -> None:
        self.task = task


class Mapped(Record):
    """This process has mapped an extent, and tells when the mapping is gone (`Unmapped`)."""

    __slots__ = ("extent",)

    def __init__(
        self,
        extent: ExtentKey,
    ) -> None:
        self.extent = extent


class Unmapped(Record):
    """The last mappings of these extents in this process are gone."""

    __slots__ = ("extents",)

    def __init__(
        self,
        extents: list[ExtentKey],
    ) -> None:
        self.extents = extents


class Spilled(Record):
    """Answers `Spill`: the file that now holds a copy of the extent, or None."""

    __slots__ = ("owner", "serial", "segment")

    def __init__(
        self,
        owner: ProcessNumber,
        serial: int,
        segment: str | None,
    ) -> None:
        self.owner = owner
        self.serial = serial
        self.segment = segment


class CancelAsked(Record):
    """Somebody wants this task not to run. Answered by a `CancelAnswered`, now or later.

    `running`: it is interrupted if it runs; `force`: its worker is killed, after a while if both;
    `recursive`: what it has submitted is cancelled as well.
    """

    __slots__ = ("task", "running", "force", "recursive")

    def __init__(
        self,
        task: TaskId,
        running: bool = False,
        force: bool = False,
        recursive: bool = False,
    ) -> None:
        self.task = task
        self.running = running
        self.force = force
        self.recursive = recursive


class Interrupted(Record):
    """Answers `Interrupt`, if it said so: the execution has raised, or has ended."""

    __slots__ = ("execution", "children")

    def __init__(
        self,
        execution: ExecutionKey,
        children: bool,
    ) -> None:
        self.execution = execution
        self.children = children


class CancelWithdrawn(Record):
    """Nobody waits for that answer any more: the task is to run after all, and there is none."""

    __slots__ = ("task",)

    def __init__(
        self,
        task: TaskId,
    ) -> None:
        self.task = task


class ErrorJudged(Record):
    """Answers `JudgeError`: whether the task's error is one that is to be retried."""

    __slots__ = ("task", "attempt", "retry")

    def __init__(
        self,
        task: TaskId,
        attempt: int,
        retry: bool,
    ) -> None:
        self.task = task
        self.attempt = attempt
        self.retry = retry


class Received(Record):
    """Messages from a peer, in order."""

    __slots__ = ("peer", "messages")

    def __init__(
        self,
        peer: ProcessNumber,
        messages: list[Message],
    ) -> None:
        self.peer = peer
        self.messages = messages


class WorkerEnded(Record):
    """A worker of this host is gone, and all it had said has been handed in.

    `running` is the execution (see `ids.execution_id`) that it had started and not reported, 0 for
    none; `owner` is whose task that is.
    """

    __slots__ = ("worker", "running", "pid", "exitcode", "stack", "owner")

    def __init__(
        self,
        worker: ProcessNumber,
        running: int,
        pid: int | None,
        exitcode: int | None,
        stack: str,
        owner: ProcessNumber = DRIVER,
    ) -> None:
        self.worker = worker
        self.running = running
        self.pid = pid
        self.exitcode = exitcode
        self.stack = stack
        self.owner = owner


class ShutdownAsked(Record):
    """No more submissions; with `cancel`, what has not started is not to start."""

    __slots__ = ("cancel",)

    def __init__(
        self,
        cancel: bool,
    ) -> None:
        self.cancel = cancel


class LookedAgain(Record):
    """Answers `LookAgain`: what the links had when that was asked has been handed in."""

    __slots__ = ()


class MemoryShort(Record):
    """The workers use more memory than they may; both in bytes."""

    __slots__ = ("used", "limit")

    def __init__(self, used: int, limit: int) -> None:
        self.used = used
        self.limit = limit


class TimerDue(Record):
    """The time that `next_deadline` gave has come."""

    __slots__ = ()


class Aborted(Record):
    """The workers are being killed: what has not started is cancelled, what runs has failed."""

    __slots__ = ("text",)

    def __init__(
        self,
        text: str,
    ) -> None:
        self.text = text
