"""The peer in the driver process: submitting tasks, and answering their futures."""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError
from concurrent.futures import Future as AnyFuture
from typing import Any

from ..config import TaskOptions
from ..core.reports import (
    CancelAsked,
    CancelWithdrawn,
    Fulfilled,
    HandleAdded,
    HandlesDropped,
    Mapped,
    Promised,
    Stored,
    Submitted,
)
from ..core.values import (
    CANCELLED,
    ERROR,
    FAILED,
    INLINE_LIMIT,
    READY,
    extent_key,
    extent_of,
)
from ..futures import Detached, Future
from ..wire.failures import exception_of
from ..wire.pickling import Encoded, loads
from ..wire.stateless import is_stateless
from .arguments import Slots, call_carried
from .shell import Shell, Ticket

# Every so many submissions the submitting thread reads what the workers have sent, so that they
# do not run dry while a busy interpreter keeps the reader waiting. At about 10 µs a submission
# that is every 0.3 ms, a tenth of what workers hold.
_READ_EVERY = 32

# During a burst, tasks are sent so many at a time: the system call, and waking a worker that has
# just gone to sleep, cost as much as all the rest of a submission.
_SEND_EVERY = 16

# When so many definitions of functions have piled up, those that nobody needs are forgotten. A
# definition is about a kilobyte, here and in every worker.
_FORGET_AT = 10_000

# How long `cancel` waits for a worker's word on whether the task has started. Seconds. It answers
# within milliseconds, unless its interpreter is held by a call into C.
_CANCEL_WAIT_S = 1.0

_now = time.monotonic_ns


class _Forgotten(Exception):
    """A definition that a task needs was forgotten before the task was known."""


class Driver(Shell):
    """What the executor and its futures call. Any thread may."""

    # -- tasks and values

    def submit(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: TaskOptions,
        continued: bool = False,
    ) -> Any:
        """Submit a task; see `OwnershipExecutor.submit`.

        Args:
            continued: it goes on with a batched map that was begun before any `shutdown`.
        """
        if self._gate is not None and not continued:
            self._ready()
            if not self._reader.is_current():  # a callback: nothing would end while it waits
                self._gate.wait(self.end_burst)
        while True:
            try:
                return self._submit(fn, args, kwargs, options, continued)
            except _Forgotten:
                continue

    def _submit(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: TaskOptions,
        continued: bool,
    ) -> Any:
        if not continued:
            self._ready()
        name = options.name
        if name is None:
            name = getattr(fn, "__qualname__", None) or type(fn).__qualname__
        carried = not is_stateless(fn)
        if carried:
            fn, args = call_carried, (fn, *args)
        try:
            key, entries, held = self._encoder.function(fn)
            encoded, slots = self._encode(args, kwargs, carried)
            value = self._value_of(encoded)
        except Exception as error:
            # As in the standard library, what cannot be pickled fails its own future.
            return self.streams.failed(error, name, options)
        if encoded.entries:
            entries = (*entries, *encoded.entries)
        if held or encoded.futures:
            held = (*held, *encoded.futures)
        judged = bool(options.retry_exceptions)
        foreign: list[tuple[int, AnyFuture[Any]]] = []
        with self._lock:
            if self.machine.closing:
                self._discard(value)
                raise RuntimeError("cannot schedule new futures after shutdown")
            known = self._encoder.definitions
            if key not in known or not all(map(known.__contains__, entries)):
                # Another thread has just had definitions forgotten. Once more.
                self._discard(value)
                raise _Forgotten
            nested = tuple([self._id_of(future) for future in held]) if held else ()
            with self._change:
                slot_ids: tuple[int, ...] = ()
                if slots:
                    slot_ids = tuple([self._object_for(future, foreign) for future in slots])
                self._last_id = task = self._last_id + 1
                future: Any = Future(self, task, name)
                self._pending[task] = future
                if self._gate is not None:
                    self._gate.add(task, encoded.size)
                if judged:
                    self._retry_types[task] = options.retry_exceptions
                report = Submitted(
                    task,
                    key,
                    entries,
                    value,
                    slot_ids,
                    nested,
                    name,
                    options.max_retries,
                    judged,
                )
                if options.num_returns != 1:
                    future = self.streams.several(future, report, options)
                self._feed(report)
                self._since_read += 1
                if self._since_read >= _READ_EVERY:
                    self._since_read = 0
                    self._pool.read_all()
                    self._reader.note_reading(_now())
                if not self._reader.in_burst or self._since_read % _SEND_EVERY == 0:
                    self._pool.flush()
                if len(self._encoder.definitions) >= self._forget_at:
                    self._forget_definitions()
        if self._completions and not self._reader.in_burst:
            self._reader.poke()
        for object_id, other in foreign:
            other.add_done_callback(functools.partial(self._fulfil, object_id))
        return future

    def _forget_definitions(self) -> None:
        """Lock held. A loop that submits ever new closures must not fill the memory."""
        submission = self.machine.submission
        in_use: set[int] = set()
        for task in submission.tasks.values():
            in_use.add(task.function)
            in_use.update(task.entries)
        for entry in self.machine.references.entries.values():
            in_use.update(entry.entries)
        self._encoder.forget(in_use)
        kept = self._encoder.definitions
        self._pool.forget(kept)
        for key in [key for key in submission.estimates if key not in kept]:
            del submission.estimates[key]
        self._forget_at = 2 * len(kept) + _FORGET_AT

    def failed_future(self, failure: Any, name: str) -> Future[Any]:
        """The future of a task that cannot even be sent."""
        with self._lock:
            self._last_id = object_id = self._last_id + 1
            future: Future[Any] = Future(self, object_id, name)
            self._feed(Promised(object_id))
            self._feed(Fulfilled(object_id, FAILED, failure))
        future._complete(FAILED, failure)
        return future

    def put(self, obj: Any) -> Future[Any]:
        """Store a value; see `OwnershipExecutor.put`."""
        self._ready()
        encoded = self._encoder.value(obj)
        value = self._value_of(encoded)
        nested = tuple([self._id_of(future) for future in encoded.futures])
        with self._lock:
            if self.machine.closing:
                self._discard(value)
                raise RuntimeError("cannot put values after shutdown")
            with self._change:
                self._last_id = object_id = self._last_id + 1
                future: Future[Any] = Future(self, object_id, f"put {type(obj).__qualname__}")
                if extent_of(value) is not None:
                    self._stored[object_id] = future
                self._feed(Stored(object_id, value, nested))
                self.machine.references.entries[object_id].entries = encoded.entries
        future._complete(READY, value)
        return future

    def _ready(self) -> None:
        """Check that work can be taken, and start if this is the first."""
        if os.getpid() != self.pid:
            raise RuntimeError(
                "this executor belongs to the process that this one was forked from; "
                "make another one here"
            )
        machine = self.machine
        if machine.broken is not None and not machine.closing:
            raise exception_of(machine.broken)
        if machine.closing or self._close_asked:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if not self._started:
            with self._lock:
                if not self._started:
                    self._start()

    def _encode(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], carried: bool
    ) -> tuple[Encoded, list[AnyFuture[Any]]]:
        """The arguments as bytes, and the futures that they need as values.

        Args:
            carried: the first argument is what the user wants called.
        """
        slots = Slots()
        new_args, new_kwargs = slots.replace_top_level(args, kwargs)

        def describe(error: Exception) -> str:
            from ..wire.explain import explain

            return explain(new_args, new_kwargs, error, carried)

        try:
            encoded = self._encoder.value((new_args, new_kwargs), describe)
        except Exception:
            # A future of another executor, deeper down, cannot be pickled. If there is one,
            # there is another way; if not, the error stands.
            try:
                inner_args, inner_kwargs = slots.replace_all((new_args, new_kwargs))
            except RecursionError:
                inner_args, inner_kwargs = new_args, new_kwargs  # too deep for us as well
            if inner_args is new_args and inner_kwargs is new_kwargs:
                raise
            return self._encoder.value((inner_args, inner_kwargs), describe), slots.futures
        if encoded.futures:
            inner = slots.replace_all((new_args, new_kwargs))
            if inner[0] is not new_args or inner[1] is not new_kwargs:
                encoded = self._encoder.value(inner, describe)
        return encoded, slots.futures

    def _value_of(self, encoded: Encoded) -> Any:
        if encoded.size <= INLINE_LIMIT:
            if not encoded.buffers:
                return encoded.head
            return encoded.head, tuple([bytes(part.raw()) for part in encoded.buffers])
        value = self._store.write(encoded.head, encoded.buffers)
        self._bytes_put += encoded.size
        return value

    def _discard(self, value: Any) -> None:
        extent = extent_of(value)
        if extent is not None:
            self._store.free(extent[1])

    def _object_for(self, future: AnyFuture[Any], foreign: list[tuple[int, AnyFuture[Any]]]) -> int:
        """Lock held. The id of an own object; a foreign future becomes a promise."""
        if isinstance(future, Future) and future._peer is self:
            return self._id_of(future)
        self._last_id = object_id = self._last_id + 1
        self._feed(Promised(object_id))
        foreign.append((object_id, future))
        return object_id

    def _fulfil(self, object_id: int, future: AnyFuture[Any]) -> None:
        """A future of somebody else's, which a task takes, is done."""
        status, value = READY, None
        entries: tuple[int, ...] = ()
        try:
            encoded = self._encoder.value(future.result(0))
            value, entries = self._value_of(encoded), encoded.entries
        except CancelledError:
            status = CANCELLED
        except BaseException as error:
            from ..wire.outcomes import dump_error

            status, value = FAILED, (ERROR, dump_error(error), "")
        with self._lock:
            if self.ended.is_set():
                return
            entry = self.machine.references.entries.get(object_id)
            if entry is None:
                if status == READY:
                    self._discard(value)
                return
            entry.entries = entries
            self._feed(Fulfilled(object_id, status, value))
            self._feed(HandlesDropped([object_id]))
            self._pool.flush()
        self._reader.poke()

    # -- futures

    def cancel(self, future: Future[Any]) -> bool:
        """Keep the future's task from running; waits for its worker's word if it has one."""
        if os.getpid() != self.pid:
            return False
        ticket = Ticket()
        with self._lock, self._change:
            task = self.streams.task_of(self._id_of(future))
            self._cancels.setdefault(task, []).append(ticket)
            self._feed(CancelAsked(task))
            self._pool.flush()
            if ticket.cancelled is None:
                ticket.answered = threading.Event()  # its worker is asked
        if ticket.answered is not None:
            if self._reader.is_current():
                self._reader.pump(ticket.answered.is_set, _CANCEL_WAIT_S)
            else:
                ticket.answered.wait(_CANCEL_WAIT_S)
            if ticket.cancelled is None:
                self._give_up_cancel(task, ticket)
        if ticket.cancelled:
            future._complete(CANCELLED, None)
        if self._completions:
            self._reader.poke()
        return bool(ticket.cancelled)

    def _give_up_cancel(self, task: int, ticket: Ticket) -> None:
        """`cancel` returns False now, so the task must not be cancelled by an answer to come."""
        with self._lock, self._change:
            tickets = self._cancels.get(task)
            if tickets is None or ticket not in tickets:
                return  # the answer has just come
            tickets.remove(ticket)
            if not tickets:  # else somebody else goes on waiting
                del self._cancels[task]
                self._feed(CancelWithdrawn(task))

    def cancel_soon(self, futures: Iterable[Future[Any]]) -> None:
        """Keep these from running, if they have not started; nobody waits for the answers."""
        if os.getpid() != self.pid:
            return
        with self._lock:
            if self.ended.is_set():
                return
            with self._change:
                for future in futures:
                    if not future._is_settled():
                        self._feed(CancelAsked(self._id_of(future)))
                self._pool.flush()
        self._reader.poke()

    def _id_of(self, future: AnyFuture[Any]) -> int:
        """The id of a future of this process's own."""
        if not isinstance(future, Future) or future._peer is not self:
            raise TypeError(
                f"{future!r} belongs to another executor; give it as an argument, where the task "
                "gets its value"
            )
        object_id: int = future._object  # type: ignore[assignment]
        return object_id

    def is_running(self, object_id: Any) -> bool:
        """Whether a worker has started the task: it is the first of those that the worker has."""
        with self._lock:
            task = self.machine.submission.task_of(object_id)
            if task is None or task.worker is None:
                return False
            return bool(next(iter(task.worker.queue), None) == task.id)

    def wait_for(self, future: Future[Any], timeout: float | None) -> None:
        """Wait for a future. In a callback, the reader goes on reading meanwhile."""
        if self._reader.is_current():
            self._reader.pump(future._is_settled, timeout)
            future._block(0)
        elif os.getpid() != self.pid:
            raise RuntimeError("this future belongs to the process that this one was forked from")
        else:
            if self._reader.in_burst:
                self.end_burst()
            if self._change.halfway:
                self._reader.poke()  # interrupted so late that nobody was woken
            future._block(timeout)

    def wait_until(
        self, changed: threading.Condition, done: Callable[[], bool], timeout: float | None
    ) -> bool:
        """Wait for something that the reader brings about and tells by `changed`."""
        if self._reader.is_current():
            self._reader.pump(done, timeout)
            return done()
        with changed:
            return changed.wait_for(done, timeout)

    def load(self, value: Any) -> Any:
        """The object that a value stands for."""
        if type(value) is bytes:
            return loads(value, (), self.future_for)
        extent = extent_of(value)
        if extent is None:
            # Copied, so that what is made of the buffers can be written to.
            return loads(value[0], [bytearray(part) for part in value[1]], self.future_for)
        with self._lock:
            if self.ended.is_set():
                raise Detached
            value = self.machine.references.current(value)  # it may have been moved to disk
            mapping, head, views = self._store.read(value)
            with self._change:
                self._feed(Mapped(extent_key(extent)))
            self._bytes_mapped += extent[4]
        try:
            return loads(head, views, self.future_for)
        finally:
            del mapping, head, views

    def future_for(self, address: Any) -> Future[Any]:
        """The future for an own object, whose reference came back inside a value."""
        object_id = address[2]
        with self._lock:
            future = self._pending.get(object_id)
            if future is not None:
                return future
            entry = self.machine.references.entries.get(object_id)
            if entry is None:
                from ..errors import ObjectLost

                raise ObjectLost(f"object {object_id} was let go while a reference travelled")
            self._feed(HandleAdded(object_id))
            future = Future(self, object_id, f"object {object_id}")
            status, value = entry.status, entry.value
            if extent_of(value) is not None:
                self._stored[object_id] = future
        future._complete(status, value)
        return future

    def note_dropped(self, object_id: Any, stored: bool) -> None:
        """A future was collected. Any thread, any time, any lock held."""
        self._dropped.append(object_id)
        if stored:
            self._reader.poke()  # shared memory waits for it; the rest can wait for the next input

    def _detach_futures(self) -> None:
        for object_id, value in self.machine.live_values():
            future = self._stored.get(object_id)
            if future is not None and extent_of(value) is not None:
                future._detach(self._keep_mapped(value))

    def _keep_mapped(self, value: Any) -> Callable[[], Any]:
        """A mapping that outlives the store, for a value that may still be asked for."""
        try:
            mapping, head, views = self._store.read(value)
        except Exception as error:
            # Somebody has removed its segment. That is for the one who asks for the value.
            lost = error

            def fail() -> Any:
                raise lost

            return fail

        def load() -> Any:
            return loads(head, views, self.future_for)

        load.mapping = mapping  # type: ignore[attr-defined]
        return load

    def make_waiters(self, future: Future[Any]) -> list[Any]:
        """The list through which `wait` and `as_completed` wait for a future."""
        return []

    # -- batched maps

    def open_run(self) -> None:
        """A batched map has begun: it may submit more, even after `shutdown` was called."""
        with self._lock:
            self._open_runs += 1

    def close_run(self) -> None:
        """That map will submit no more."""
        with self._lock:
            self._open_runs -= 1
        if self._started:  # or not even its first task was taken
            self._reader.poke()
