"""The future of a task: a `concurrent.futures.Future` whose value stays where it was made.

This is the one file that touches the private parts of the standard library's `Future`
(`_condition`, `_state`, `_waiters`), which `wait` and `as_completed` rely on and which every
subclass that completes itself has to keep in order.

A future is also a *handle*: as long as one lives, its owner keeps the object. The value is mapped
or unpickled when somebody first asks for it, and then kept by the future, as in the standard
library.
"""

from __future__ import annotations

import concurrent.futures
import sys
from collections.abc import Callable, Generator
from concurrent.futures._base import (
    CANCELLED,
    CANCELLED_AND_NOTIFIED,
    FINISHED,
    LOGGER,
    PENDING,
    RUNNING,
)
from threading import Condition, current_thread, main_thread
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .core import values
from .core.ids import LOCAL_HOST, Address, ObjectId
from .settled import SettledCondition
from .wire.failures import exception_of
from .wire.pickling import reduce_future

if TYPE_CHECKING:
    from typing import Protocol
else:
    Protocol = object  # making one takes as long as a small module's import

T = TypeVar("T")

__all__ = ["Future"]


class Peer(Protocol):
    """What a future needs of the process it lives in."""

    settled: SettledCondition
    number: int  # of the process

    def load(self, ref: ObjectId | Address, value: Any, lender: int | None = None) -> Any: ...
    def wait_for(self, future: Future[Any], timeout: float | None) -> None: ...
    def cancel(self, future: Future[Any], running: bool, force: bool, recursive: bool) -> bool: ...
    def is_running(self, object_id: ObjectId | Address) -> bool: ...
    def note_dropped(self, object_id: ObjectId | Address, stored: bool) -> None: ...
    def make_waiters(self, future: Future[Any], asleep: bool) -> list[Any]: ...


class Detached(Exception):
    """The store has closed; a future that can do without has been told how (`_detach`)."""


class Unreadable(Exception):
    """The value is there, but this process cannot map it now: it has no descriptors, or no memory.

    That is not the value's outcome: who asks later may have more luck.
    """

    def __init__(self, reason: OSError) -> None:
        super().__init__(reason)
        self.reason = reason


class Future(concurrent.futures.Future, Generic[T]):  # type: ignore[type-arg]
    """The outcome of a task, or a value that was `put`.

    Do not make one yourself: `OwnershipExecutor.submit` and `put` do. It is a real
    `concurrent.futures.Future`, for `wait`, `as_completed`, callbacks and
    `asyncio.wrap_future`; and it can be awaited.

    As an argument of `submit` it stands for its value: the task starts when the value is there,
    and gets it from the worker that made it. See `OwnershipExecutor.shared` for handing on the
    future itself.
    """

    # The parent's __init__ does not run. Its lock and lists are made when somebody needs them
    # (`__getattr__`): most futures are never waited for, and making the rest takes longer than
    # all else that a future costs.
    _state = PENDING
    _result: Any = None
    _exception: BaseException | None = None
    # What came back, until somebody asks for it: (status, value or failure).
    _outcome: tuple[int, Any] | None = None
    _stored = False  # whether the value lies in shared memory

    def __init__(self, peer: Peer, object_id: ObjectId | Address, name: str) -> None:
        self._peer = peer
        self._object = object_id  # an id of this process's own, or another's address
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        # setdefault is atomic: of two threads that come at once, both get the same object.
        if attribute == "_condition":
            return self.__dict__.setdefault("_condition", Condition())
        if attribute in ("_waiters", "_done_callbacks"):
            made = self._peer.make_waiters(self, attribute == "_waiters")
            return self.__dict__.setdefault(attribute, made)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {attribute!r}")

    @property
    def _address(self) -> Address:
        if isinstance(self._object, tuple):
            return self._object
        return Address(LOCAL_HOST, self._peer.number, self._object)

    @property
    def _lender(self) -> int | None:
        """From whom its value comes, if that is another process."""
        return self._object.owner if isinstance(self._object, Address) else None

    # -- asking

    def result(self, timeout: float | None = None) -> T:
        """Return the task's value.

        A large one is mapped from shared memory, not copied: arrays are views that can be written
        to, and nobody else sees the writes.

        Args:
            timeout: seconds to wait; None for as long as it takes.

        Raises:
            CancelledError: the task was cancelled, or one of its arguments was.
            TimeoutError: it is not done after `timeout` (`concurrent.futures.TimeoutError`).
            WorkerDied: its worker died, more often than it may be retried.
            ObjectLost: the value's memory was removed, and it cannot be computed again.
            OSError: the value cannot be mapped for want of descriptors or memory. Another call may
                succeed.
            Exception: whatever the task raised, or failed to be unpickled with.
        """
        if self._state in (PENDING, RUNNING):
            self._peer.wait_for(self, timeout)
        if self._outcome is not None:
            try:
                self._resolve(want_value=True)
            except Unreadable as error:
                raise error.reason from None
        if self._state == FINISHED and self._exception is None:
            return self._result  # type: ignore[no-any-return]
        value: T = super().result(0)
        return value

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what the task raised, or None. A value in shared memory is not fetched.

        But for asyncio it is, and what `result` would raise is returned: asyncio asks this first,
        then takes it for granted that there is a result.

        Args:
            timeout: seconds to wait; None for as long as it takes.

        Raises:
            CancelledError: the task was cancelled, or one of its arguments was.
            TimeoutError: it is not done after `timeout`.
        """
        if self._state in (PENDING, RUNNING):
            self._peer.wait_for(self, timeout)
        if self._outcome is not None:
            try:
                self._resolve(want_value=_asked_by_asyncio())
            except Unreadable as error:
                return error.reason
        return super().exception(0)

    def cancel(
        self, *, running: bool = False, force: bool = False, recursive: bool = False
    ) -> bool:
        """Keep the task from running, if it has not started yet; or stop it.

        Without arguments this is the standard library's `cancel`. Tasks that were sent ahead to a
        worker are called back. If the worker dies before it has answered, and the task would be
        run again, it is cancelled.

        Args:
            running: if the task runs, raise `owndist.errors.TaskCancelled` in it, also where it
                sleeps or waits in Python. Code that is busy in C is interrupted when it is back in
                Python. The future is cancelled whatever the task makes of that.
            force: if the task runs, kill its process, and with it all tasks that this one owns.
                Tasks that waited there run elsewhere. With `running`, only if the task has not
                ended a second after it was interrupted.
            recursive: with `running`, cancel the tasks that the task has submitted, too, and
                those that they have.

        A task that was cancelled is never retried. It can be called again, with more force.

        Returns:
            True if the task will not give a value and the future is cancelled; False if it is
            done, if it runs and neither `running` nor `force` was given, or if another process
            has submitted it.
        """
        insists = running or force
        with self._condition:
            if self._state in (CANCELLED, CANCELLED_AND_NOTIFIED):
                if not insists:
                    return True
            elif self._state != PENDING:
                return False
        return self._peer.cancel(self, running, force, recursive)

    def running(self) -> bool:
        """Return True if the task has been started and is not done."""
        with self._condition:
            if self._state != PENDING:
                return bool(self._state == RUNNING)
        return self._peer.is_running(self._object)

    def __await__(self) -> Generator[Any, None, T]:
        import asyncio

        return asyncio.wrap_future(self).__await__()

    def __repr__(self) -> str:
        state = self._state
        if state == PENDING and self._peer.is_running(self._object):
            state = RUNNING
        elif state == FINISHED and self._outcome is not None:
            state += " (failed)" if self._outcome[0] == values.FAILED else ""
        elif state == FINISHED and self._exception is not None:
            state += f" (failed: {type(self._exception).__name__})"
        return f"<Future {self._name}: {state.lower()}>"

    # -- answering: called by the process that the future lives in

    def _complete(self, status: int, value: Any) -> None:
        """The outcome is there. No lock may be held: callbacks run. Twice is as once."""
        callbacks = self._settle(status, value)
        self._run_then()
        if callbacks:
            self._run_callbacks()

    def _then(self, callback: Callable[[Future[T]], None]) -> None:
        """Have one of our own functions called when this is settled, by whoever settles it.

        Unlike the users' callbacks it is also called while one of those waits for something.
        """
        with self._condition:
            if not self._is_settled():
                self.__dict__["_callback"] = callback
                return
        callback(self)

    def _run_then(self) -> None:
        callback = self.__dict__.pop("_callback", None)
        if callback is not None:
            callback(self)

    def _settle(self, status: int, value: Any) -> bool:
        """Take the outcome and wake who waits. True: there are callbacks to run."""
        # A future that nobody has waited for gets the condition for those that are settled, before
        # its state changes. Whoever comes to wait from then on gets that one too, which lets
        # nobody in until the change is made.
        settled = self._peer.settled
        with settled.settling:
            condition = self.__dict__.setdefault("_condition", settled)
            if condition is settled:
                first = self._change_state(status, value)
        if condition is not settled:
            with condition:
                first = self._change_state(status, value)
                condition.notify_all()
        return first and "_done_callbacks" in self.__dict__

    def _run_callbacks(self) -> None:
        for callback in self._done_callbacks:
            try:
                callback(self)
            except BaseException as error:
                # Also one that exits: in a thread of ours that would end the thread, and with it
                # the executor. Only in the main thread it may be a Ctrl-C, and not the callback's.
                if not isinstance(error, Exception) and current_thread() is main_thread():
                    raise
                LOGGER.exception("exception calling callback for %r", self)
        # As a rule they lead back here, and would keep the value until the next collection.
        self._done_callbacks.clear()

    def _change_state(self, status: int, value: Any) -> bool:
        """Condition held. True: this was the first time."""
        if self._state not in (PENDING, RUNNING):
            return False
        waiters = self.__dict__.get("_waiters", ())
        if status == values.CANCELLED:
            self._state = CANCELLED_AND_NOTIFIED
            for waiter in waiters:
                waiter.add_cancelled(self)
            return True
        self._outcome = (status, value)
        if status == values.READY and type(value) is tuple:
            self._stored = values.extent_of(value) is not None
        self._state = FINISHED
        for waiter in waiters:
            if status == values.READY:
                waiter.add_result(self)
            else:
                waiter.add_exception(self)
        return True

    def _unlock(self) -> None:
        """Let go of the condition as often as the calling thread has it."""
        condition = self.__dict__.get("_condition")
        while isinstance(condition, Condition) and condition._is_owned():  # type: ignore[attr-defined]
            condition.release()

    def _detach(self, load: Any) -> None:
        """The store is about to go; `load` gives the value from then on, without it."""
        outcome = self._outcome
        if outcome is not None and outcome[0] == values.READY:
            self._outcome = (values.READY, load)

    # -- inside

    def _block(self, timeout: float | None) -> None:
        """Sleep until another thread completes this future; raises TimeoutError, CancelledError."""
        super().exception(timeout)

    def _is_settled(self) -> bool:
        return self._state not in (PENDING, RUNNING)

    def _is_ready(self) -> bool:
        """Whether the task has ended well; asked of one that nobody has read yet."""
        return self._outcome is not None and self._outcome[0] == values.READY

    def _resolve(self, want_value: bool) -> None:
        """Turn the outcome into `_result` or `_exception`.

        No lock is held: unpickling runs the user's code. Two threads may do it at once; the first
        to finish gives the object that both get.
        """
        outcome = self._outcome
        if outcome is None:
            return
        status, value = outcome
        if status == values.READY:
            if not want_value and (self._stored or callable(value)):
                return
            try:
                loaded = value() if callable(value) else self._load(value)
            except Detached:
                if self._outcome is not outcome:
                    self._resolve(want_value)  # told meanwhile, or resolved by another thread
                    return
                from .errors import ObjectLost

                lost = ObjectLost(f"the executor of {self._name!r} ended before the value was read")
                self.__dict__.setdefault("_exception", lost)
            except (KeyboardInterrupt, Unreadable):
                raise  # not the value's own: the next one to ask may have more luck
            except BaseException as error:
                # The value's class may raise anything. To this reader that is the outcome.
                self.__dict__.setdefault("_exception", _cannot_load(self._name, error))
            else:
                self.__dict__.setdefault("_result", loaded)
        else:
            self.__dict__.setdefault("_exception", exception_of(value, self._name))
        self._outcome = None

    def _load(self, value: Any) -> Any:
        return self._peer.load(self._object, value, self._lender)

    def _get_snapshot(self, *args: Any, **kwargs: Any) -> Any:
        """What asyncio looks at instead of `result()` from Python 3.15 on."""
        if self._state == FINISHED:
            self._resolve(want_value=True)
        return super()._get_snapshot(*args, **kwargs)  # type: ignore[misc]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return reduce_future(self)

    def __del__(self) -> None:
        # Any thread, any time, any lock held: the peer only makes a note of it.
        try:
            self._peer.note_dropped(self._object, self._stored)
        except AttributeError:
            pass  # `__init__` did not get far


def _asked_by_asyncio() -> bool:
    """Whether `exception` is called by asyncio, which asks for `result` next.

    Not whether a loop runs: others, who ask there only for the error, may hold locks that whoever
    brings the value needs (`wait` with FIRST_EXCEPTION does).
    """
    caller = sys._getframe(1).f_back
    return caller is not None and caller.f_globals.get("__name__") == "asyncio.futures"


def _cannot_load(name: str, error: BaseException) -> BaseException:
    from .errors import NotSerializable, OwndistError

    if isinstance(error, OwndistError) or not isinstance(error, Exception):
        return error
    told = NotSerializable(
        f"the result of task {name!r} could not be unpickled: {type(error).__name__}: {error}"
    )
    told.__cause__ = error
    return told


Future.__module__ = "owndist"
