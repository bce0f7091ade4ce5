"""The errors owndist raises, one class per cause.

Errors of the user's own functions are raised as themselves; these are for what goes wrong around
them. Every class keeps what it knows as attributes and survives a pickle round trip.

`BrokenProcessPool` and its kin live in `concurrent.futures.process`, a dear import, which the
executor needs anyway and a worker never does. So this module is imported only when an error of
its own is about to be raised or caught.
"""

from __future__ import annotations

import pickle
import signal as _signal
from concurrent.futures.process import BrokenProcessPool

__all__ = [
    "InternalError",
    "NotSerializable",
    "ObjectLost",
    "OwnerDied",
    "OwndistError",
    "RemoteError",
    "StoreFull",
    "TaskCancelled",
    "WorkerDied",
]


class OwndistError(Exception):
    """The base of every error that owndist itself raises."""


class WorkerDied(OwndistError, BrokenProcessPool):
    """A worker process ended while it ran a task, and the task's retries are used up.

    It is also a `concurrent.futures.process.BrokenProcessPool`, so that `except` clauses written
    for `ProcessPoolExecutor` keep working. Unlike there, the pool lives on.

    Attributes:
        task: the name of the task that the worker was running, or None if it ran none.
        pid: the process id of the worker that died last.
        exitcode: its exit status: 0 or more as given to `exit`, `-n` for death by signal `n`, or
            None when nobody could tell.
        attempts: how often the task was started.
        stack: the Python stack that `faulthandler` wrote when the worker crashed, or "".
    """

    def __init__(
        self,
        task: str | None,
        pid: int | None,
        exitcode: int | None,
        attempts: int,
        stack: str = "",
    ) -> None:
        self.task = task
        self.pid = pid
        self.exitcode = exitcode
        self.attempts = attempts
        self.stack = stack
        super().__init__(task, pid, exitcode, attempts, stack)

    def __str__(self) -> str:
        times = "once" if self.attempts == 1 else f"{self.attempts} times"
        if self.task is None:
            text = f"worker process {self.pid} {describe_exit(self.exitcode)}"
        else:
            text = (
                f"task {self.task!r} was started {times}; each time its worker process died. "
                f"The last one, pid {self.pid}, {describe_exit(self.exitcode)}"
            )
            if self.attempts == 1:
                text = (
                    f"the worker process running task {self.task!r} (attempt 1), "
                    f"pid {self.pid}, {describe_exit(self.exitcode)}"
                )
        if self.exitcode == -_signal.SIGKILL:
            text += " (a SIGKILL that nobody sent is often the kernel's out-of-memory killer)"
        if self.stack:
            text += f"\n{self.stack.rstrip()}"
        return text


class ObjectLost(OwndistError):
    """A value is gone and cannot be made again; the text says why not."""

    #: Inside owndist: the extent that could not be read, if that is all that is known.
    extent: tuple[int, int, str, int, int] | None = None


class OwnerDied(ObjectLost):
    """The process is dead whose task had submitted the task that makes this value, or had put it.

    The task that it ran is tried again by its own owner, and makes new futures. This one is of the
    old ones.
    """


class StoreFull(OwndistError, MemoryError):
    """Neither shared memory nor the spill directory has room for a value."""


class TaskCancelled(BaseException):
    """Raised inside a task that runs, by `Future.cancel(running=True)`.

    The task may clean up in `finally` blocks, or catch this and go on: its future is cancelled
    whatever it does. It is no `Exception`, for the same reason as `asyncio.CancelledError`: code
    that survives every error by `except Exception` would survive this, too. Nor is it one of the
    two `CancelledError` classes: they tell a reader that a future was cancelled, and a task that
    reads such a future must not look like one that was told to end.
    """


class NotSerializable(OwndistError, pickle.PicklingError):
    """An argument, a function or a result cannot be pickled; the text names the part at fault."""


class RemoteError(OwndistError):
    """Stands in for an exception of a task that could not itself be brought to the reader.

    Attributes:
        type_name: the qualified name of the exception's class.
    """

    def __init__(self, message: str, type_name: str = "") -> None:
        self.type_name = type_name
        super().__init__(message, type_name)

    def __str__(self) -> str:
        return str(self.args[0])


class InternalError(OwndistError):
    """A bug in owndist. Please report it, with this text."""


def describe_exit(exitcode: int | None) -> str:
    """Say in words how a process ended."""
    if exitcode is None:
        return "ended; its exit status is unknown"
    if exitcode >= 0:
        return f"ended with exit code {exitcode}"
    try:
        name = _signal.Signals(-exitcode).name
    except ValueError:
        name = f"signal {-exitcode}"
    return f"was killed by {name}"
