"""In a worker: the values of a task that has several, told to its owner one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..core.reports import Yielded
from ..core.returns import STREAM
from ..core.values import extent_key, extent_of
from .copies import end_copy
from .usercode import Cut, call_user, store_one

if TYPE_CHECKING:
    from .worker import Worker


class Deliveries:
    """The values of one execution. Used by the thread that runs the task.

    Args:
        returns: what came with the TASK; see `core.returns`.
    """

    def __init__(
        self, worker: Worker, task: int, attempt: int, name: str, returns: tuple[Any, ...]
    ) -> None:
        self._worker = worker
        self._task, self._attempt, self._name = task, attempt, name
        self._count, self._first = returns[:2]

    def deliver(self, result: object) -> object:
        """Tell of all values but one, and return that: the first, or at a stream's end, how many.

        Raises:
            ValueError: the function has not returned as many values as were asked for.
            TypeError: a stream's function has returned nothing to go through.
            Cut: a stream is not wanted any more, or not to its end.
        """
        if self._count == STREAM:
            return self._stream(result)
        if not isinstance(result, (tuple, list)) or len(result) != self._count:
            raise ValueError(self._wrong_number(result))
        for index in range(self._first, self._count):
            self._tell(index, result[index])
        return result[0]

    def _tell(self, index: int, value: object) -> None:
        """Store a value and tell the owner of it."""
        worker = self._worker
        status, stored, futures, entries, buffers = store_one(worker, value, self._name)
        if futures:
            worker.announce(futures)
        extent = extent_of(stored)
        if extent is None or not worker.machine.running.is_told(extent_key(extent)):
            buffers.clear()  # as in `Worker._run_task`
        with worker._lock:
            mapped = tuple(worker._store.mapped())
            worker._feed(Yielded(self._task, self._attempt, index, status, stored, mapped, entries))
            futures.clear()
            worker._forget_dropped()

    def _may_yield(self, index: int) -> bool:
        """Wait until the task may yield this value, or never may."""
        worker = self._worker
        may_yield = worker.machine.execution.may_yield
        with worker._lock:
            may = may_yield(index)
        if may is None:
            # Nobody may take a value before a task has run that needs this worker's place.
            waiting = worker.begin_waiting(())
            try:
                with worker.credit:
                    while (may := may_yield(index)) is None:
                        worker.credit.wait()
            finally:
                worker.end_waiting(waiting)
        return may

    def _wrong_number(self, result: object) -> str:
        if isinstance(result, (tuple, list)):
            found = f"a {type(result).__name__} of {len(result)}"
        else:
            found = f"one value, a {type(result).__qualname__}"
        return (
            f"task {self._name!r} returned {found}; with num_returns={self._count} it has to "
            f"return a tuple or a list of {self._count}"
        )

    def _stream(self, result: Any) -> int:
        kind = type(result)
        if not hasattr(kind, "__iter__") and not hasattr(kind, "__getitem__"):
            raise TypeError(
                f"task {self._name!r} returned one value, of type {kind.__qualname__}; with "
                "num_returns='stream' it has to be a generator function, or to return an iterable"
            )
        values = call_user(iter, result)
        del result  # a list that is used up need not be kept by us
        index = 0
        # Asked before a value is made, so that no more of them exist than may; and again after it,
        # because nobody may want it by then.
        while self._may_yield(index):
            try:
                value = call_user(next, values)
            except StopIteration:
                return index
            if self._worker.copied:
                end_copy()  # before it waits for credit, which no thread here would bring
            if not self._may_yield(index):
                break
            if index >= self._first:
                self._tell(index, value)
            del value
            index += 1
        close = getattr(values, "close", None)
        if close is not None:
            close()  # an interrupt is of no use any more, and would spoil its `finally` blocks
        raise Cut
