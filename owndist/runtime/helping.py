"""What a task does while it waits for its own tasks: it runs them, or lends its worker's slot."""

from __future__ import annotations

import sys
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import _base
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..core.execution import Item
from ..core.ids import Ref
from ..core.machine import Machine
from ..core.reports import WaitBegun, WaitEnded
from .owner import Owner

if TYPE_CHECKING:
    from ..futures import Future

# A task that waits for a task of its own runs that one itself, on its own stack, so many deep.
_MOST_NESTED = 250


class Waiting(Owner):
    """A process whose tasks wait for futures."""

    def __init__(self, number: int, machine: Machine) -> None:
        super().__init__(number, machine)
        self._nested = 0  # tasks that run on top of others
        self.copied = False  # this is a process that a task has forked; see `copies`
        self.main_thread = threading.get_ident()

    @abstractmethod
    def _run_task(self, owner: int, message: tuple[Any, ...]) -> None:
        """Run a task from its message to its reply."""

    @abstractmethod
    def _do_chores(self) -> None:
        """Complete futures, judge errors. No lock is held."""

    @abstractmethod
    def strike_if_due(self) -> None:
        """Raise if the running task is to be interrupted. No lock is held."""

    def wait_for(self, future: Future[Any], timeout: float | None) -> None:
        """Wait for a future; meanwhile run what it needs, or lend this worker's slot."""
        refs = (future._object,)
        self._refuse_in_copy()
        if timeout is None:
            self.help(refs, future._is_settled)
        if future._is_settled():
            return
        waiting = self.begin_waiting(refs)
        try:
            future._block(timeout)
        finally:
            future._unlock()  # an interrupt may have come before the `with` that has locked it
            self.end_waiting(waiting)
            self.strike_if_due()

    def _refuse_in_copy(self) -> None:
        if self.copied:
            raise RuntimeError("this future belongs to the process that this one was forked from")

    def help(self, refs: tuple[Ref, ...], done: Callable[[], bool]) -> None:
        """While the running task waits for these: run those of its own tasks that it needs."""
        self._refuse_in_copy()
        if threading.get_ident() != self.main_thread:
            return
        while not done() and self._nested < _MOST_NESTED:
            with self._lock:
                item = self.machine.take_awaited(refs)
            if item is None:
                return
            self._nested += 1
            try:
                with deeper():
                    self._run_task(*item)
            finally:
                self._nested -= 1
            self._do_chores()
            self.strike_if_due()

    def begin_waiting(self, refs: tuple[Ref, ...]) -> Item | None:
        """Somebody waits for one of these, in any thread: so does the running task.

        Returns:
            What `end_waiting` is to be given.
        """
        self._refuse_in_copy()
        with self._lock:
            task = self.machine.execution.running
            if task is not None:
                self._feed(WaitBegun(refs))
                self._flush()
            return task

    def end_waiting(self, task: Item | None) -> None:
        """One wait less, if the task in which it began is still running."""
        with self._lock:
            if task is not None and task in self.machine.execution.started:
                self._feed(WaitEnded(task))
                self._flush()

    def make_waiters(self, future: Future[Any], asleep: bool) -> list[Any]:
        """A list of those who are told when the future is settled, and so wait for it."""
        return Waiters(self, future._object)


class HelpingEvent(threading.Event):
    """Stands for the event on which `wait` and `as_completed` sleep."""

    def __init__(self, worker: Waiting, may_help: bool) -> None:
        super().__init__()
        self._cond = threading.Condition()  # with a lock that knows who has it
        self.refs: list[Ref] = []
        self._worker = worker
        self._may_help = may_help

    def wait(self, timeout: float | None = None) -> bool:
        """As that of `threading.Event`; meanwhile other tasks run."""
        if self.is_set():
            return True
        refs = tuple(self.refs)
        if self._may_help and timeout is None:
            self._worker.help(refs, self.is_set)
            if self.is_set():
                return True
        waiting = self._worker.begin_waiting(refs)
        try:
            return self.sleep(timeout)
        finally:
            while self._cond._is_owned():  # type: ignore[attr-defined]  # see `Waiting.wait_for`
                self._cond.release()
            self._worker.end_waiting(waiting)
            self._worker.strike_if_due()

    def sleep(self, timeout: float | None) -> bool:
        """Wait until it is set; does nothing else."""
        return super().wait(timeout)


class Waiters(list[Any]):
    """Who waits for a future, or its callbacks.

    Those of `wait` and `as_completed` sleep on an event, which becomes a helping one. Anybody else
    (a callback, behind which stands an event loop) lends the worker's slot until it is told.
    """

    def __init__(self, worker: Waiting, ref: Ref) -> None:
        super().__init__()
        self._worker = worker
        self._ref = ref
        self._tasks: list[Item | None] = []  # in which each began to wait

    def append(self, waiter: Any) -> None:
        self._tasks.append(self._begin(waiter))
        super().append(waiter)

    def _begin(self, waiter: Any) -> Item | None:
        if not isinstance(waiter, _base._Waiter):
            return self._worker.begin_waiting((self._ref,))
        event = waiter.event
        if not isinstance(event, HelpingEvent):
            # One that waits for the first of several must not be kept by another one of them.
            first = type(waiter) is _base._FirstCompletedWaiter
            waiter.event = event = HelpingEvent(self._worker, not first)
        event.refs.append(self._ref)
        return None

    def remove(self, waiter: Any) -> None:
        index = self.index(waiter)
        del self[index]
        self._worker.end_waiting(self._tasks.pop(index))

    def clear(self) -> None:
        super().clear()
        while self._tasks:
            self._worker.end_waiting(self._tasks.pop())


@contextmanager
def deeper() -> Iterator[None]:
    """A task runs on top of another: it may recurse as deep as one that has the stack to itself."""
    limit = sys.getrecursionlimit()
    frame: Any = sys._getframe()
    depth = 0
    while frame is not None:
        depth += 1
        frame = frame.f_back
    base = getattr(_base_limit, "value", limit)
    _base_limit.value = base
    sys.setrecursionlimit(max(limit, base + depth))
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


_base_limit = threading.local()
