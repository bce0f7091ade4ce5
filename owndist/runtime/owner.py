"""What every process does that submits tasks: the driver, and each worker whose tasks do.

It turns calls and values into bytes, feeds the machine, and makes futures of what comes back. How
messages travel, and who reads them, is the business of the two subclasses.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError
from concurrent.futures import Future as AnyFuture
from types import FunctionType
from typing import Any

from ..config import TaskOptions
from ..core.ids import Address, Ref
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
    ValueLost,
)
from ..core.values import (
    CANCELLED,
    ERROR,
    FAILED,
    GONE,
    INLINE_LIMIT,
    PENDING,
    READY,
    Extent,
    extent_key,
    extent_of,
)
from ..futures import Detached, Future, Unreadable
from ..wire.failures import exception_of
from ..wire.pickling import Encoded, here, loads
from ..wire.stateless import is_stateless
from .arguments import Slots, call_carried
from .process import FORGET_AT, Process
from .ticket import Ticket


class Owner(Process):
    """What futures and executors call in any process. Any thread may."""

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
        if options.num_returns != 1:
            self.streams.check(options)
        if not continued:
            if self._gate is not None:
                self._ready()
                self._wait_at_gate(self._gate)
            self._ready()
        name = options.name
        if name is None:
            name = getattr(fn, "__qualname__", None) or type(fn).__qualname__
        called, given, carried = fn, args, False
        if (type(fn) is not FunctionType or fn.__closure__ is not None) and not is_stateless(fn):
            called, given, carried = call_carried, (fn, *args), True
        outer, here.submitter = here.submitter, self
        try:
            key, entries, held = self._encoder.function(called)
            encoded, slots = self._encode(given, kwargs, carried)
            if held or encoded.futures:
                held = (*held, *encoded.futures)
            # Before anything is stored: it may be refused.
            nested = tuple([self._ref_of(future) for future in held]) if held else ()
            value = self._value_of(encoded)
        except Exception as error:
            # As in the standard library, what cannot be pickled fails its own future.
            return self.streams.failed(error, name, options)
        finally:
            here.submitter = outer
        if encoded.entries:
            entries = (*entries, *encoded.entries)
        foreign: list[tuple[int, AnyFuture[Any]]] = []
        with self._lock:
            if self.machine.closing:
                self._discard(value)
                raise RuntimeError("cannot schedule new futures after shutdown")
            known = self._encoder.definitions
            future: Any = None
            if key not in known or (entries and not all(map(known.__contains__, entries))):
                self._discard(value)
            else:
                with self._change:
                    slot_refs: tuple[Ref, ...] = ()
                    if slots:
                        slot_refs = tuple([self._object_for(f, foreign) for f in slots])
                    self._last_id = task = self._last_id + 1
                    future = self._pending[task] = Future(self, task, name)
                    if self._gate is not None:
                        self._gate.add(task, encoded.size)
                    retries, judged = options.max_retries, options.retry_exceptions
                    report = Submitted(
                        task, key, entries, value, slot_refs, nested, name, retries, judged
                    )
                    if options.num_returns != 1:
                        future = self.streams.several(future, report, options)
                    self._feed(report)
                    self._after_submission()
                    if len(known) >= self._forget_at:
                        self._forget_definitions()
        if future is None:
            # Another thread has just had definitions forgotten. Once more.
            return self.submit(fn, args, kwargs, options, continued)
        if self._completions or self._judgements:
            self._wake_if_needed()
        for object_id, other in foreign:
            other.add_done_callback(functools.partial(self._fulfil, object_id))
        return future

    def _forget_definitions(self) -> None:
        """Lock held. A loop that submits ever new closures must not fill the memory."""
        submission = self.machine.submission
        in_use: set[int] = set()
        retained = self.machine.references.lineage.tasks
        for task in (*submission.tasks.values(), *retained.values()):
            in_use.add(task.function)
            in_use.update(task.entries)
        for entry in self.machine.references.entries.values():
            in_use.update(entry.entries)
        self._encoder.forget(in_use)
        kept = self._encoder.definitions
        self._tell_forgotten(kept)
        for key in [key for key in submission.estimates if key not in kept]:
            del submission.estimates[key]
        self._forget_at = 2 * len(kept) + FORGET_AT

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
        nested = tuple([self._ref_of(future) for future in encoded.futures])  # may be refused
        value = self._value_of(encoded)
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

    def _encode(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], carried: bool
    ) -> tuple[Encoded, list[AnyFuture[Any]]]:
        """The arguments as bytes, and the futures that they need as values.

        Args:
            carried: the first argument is what the user wants called.
        """
        slots: Slots | None = None
        new_args, new_kwargs = args, kwargs
        for arg in (*args, *kwargs.values()) if kwargs else args:
            if isinstance(arg, AnyFuture):
                slots = Slots()
                new_args, new_kwargs = slots.replace_top_level(args, kwargs)
                break

        def describe(error: Exception) -> str:
            from ..wire.explain import explain

            return explain(new_args, new_kwargs, error, carried)

        try:
            encoded = self._encoder.value((new_args, new_kwargs), describe)
        except Exception:
            # A future of another executor, deeper down, cannot be pickled. If there is one,
            # there is another way; if not, the error stands.
            slots = slots or Slots()
            try:
                inner_args, inner_kwargs = slots.replace_all((new_args, new_kwargs))
            except RecursionError:
                inner_args, inner_kwargs = new_args, new_kwargs  # too deep for us as well
            if inner_args is new_args and inner_kwargs is new_kwargs:
                raise
            return self._encoder.value((inner_args, inner_kwargs), describe), slots.futures
        if encoded.futures:
            slots = slots or Slots()
            inner = slots.replace_all((new_args, new_kwargs))
            if inner[0] is not new_args or inner[1] is not new_kwargs:
                encoded = self._encoder.value(inner, describe)
        return encoded, slots.futures if slots is not None else []

    def _value_of(self, encoded: Encoded) -> Any:
        if not encoded.buffers and len(encoded.head) <= INLINE_LIMIT:
            return encoded.head
        if encoded.size <= INLINE_LIMIT:
            return encoded.head, tuple([bytes(part.raw()) for part in encoded.buffers])
        value = self._store.write(encoded.head, encoded.buffers)
        self._bytes_put += encoded.size
        return value

    def _discard(self, value: Any) -> None:
        extent = extent_of(value)
        if extent is not None:
            self._store.free(extent[1])

    def _object_for(self, future: AnyFuture[Any], foreign: list[tuple[int, AnyFuture[Any]]]) -> Ref:
        """Lock held. How the tables name a future; one of another executor becomes a promise."""
        if isinstance(future, Future) and future._peer is self:
            return self._ref_of(future)
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
            if self._is_over():
                return
            entry = self.machine.references.entries.get(object_id)
            if entry is None:
                if status == READY:
                    self._discard(value)
                return
            entry.entries = entries
            self._feed(Fulfilled(object_id, status, value))
            self._feed(HandlesDropped([object_id]))
            self._flush()
        self._wake()

    def _ref_of(self, future: AnyFuture[Any]) -> Ref:
        """How the tables of this process name the object of a future."""
        if not isinstance(future, Future) or future._peer is not self:
            raise TypeError(
                f"{future!r} belongs to another executor; give it as an argument, where the task "
                "gets its value"
            )
        return future._object

    def load(self, ref: Ref, value: Any, lender: int | None = None) -> Any:
        """The object that a future's value stands for; if it was lost, it is computed again.

        Args:
            ref: the object that the future is for.
            lender: the process that the value came from.
        """
        while True:
            if type(value) is bytes:
                return self._load(value, (), lender)
            extent = extent_of(value)
            if extent is None:
                # Copied, so that what is made of the buffers can be written to.
                return self._load(value[0], [bytearray(part) for part in value[1]], lender)
            with self._lock:
                if self._is_over():
                    raise Detached
                references = self.machine.references
                entry = references.entries.get(ref)
                if entry is not None and entry.status == READY:
                    value = entry.value  # it may have been computed again
                    extent = extent_of(value)
                    if extent is None:
                        continue
                if entry is not None and entry.status != READY:
                    lost = extent  # that is known, and another value may be there by now
                else:
                    value = references.current(value)  # it may have been moved to disk
                    try:
                        mapping, head, views = self._store.read(value)
                    except Exception as error:
                        lost = _lost_extent(error)
                    else:
                        with self._change:
                            self._feed(Mapped(extent_key(extent)))
                        self._bytes_mapped += extent[4]
                        break
            value = self._make_again(ref, lost)
        try:
            return self._load(head, views, lender)
        finally:
            del mapping, head, views

    def _make_again(self, ref: Ref, lost: Extent) -> Any:
        """The new value of an object whose value could not be read.

        Raises:
            ObjectLost: there is none. Or what the task has raised this time.
        """
        with self._lock:
            if self._is_over():
                raise Detached
            with self._change:
                future = self._recovering.get(ref)
                if future is None:
                    # Somebody to wait for it: the object's own future is done already.
                    future = Future(self, ref, "a lost value")
                    self._recovering[ref] = future
                    self._feed(HandleAdded(ref))
                self._feed(ValueLost(ref, extent_key(lost), lost[2]))
                self._tell_missed()
                self._flush()
                entry = self.machine.references.entries[ref]
                if entry.status != PENDING:
                    self._recovering.pop(ref, None)
        if entry.status == PENDING:
            self.wait_for(future, None)
        with self._lock:
            if self._is_over():
                raise Detached
            status, value = entry.status, entry.value
        if status == READY:
            return value
        if status == PENDING or status == GONE:
            return self._make_again(ref, lost)
        if status == CANCELLED:
            raise CancelledError
        raise exception_of(value)  # type: ignore[arg-type]

    def _load(self, head: Any, buffers: Any, lender: int | None) -> Any:
        """Load a value; its futures are known to their owners before anybody sees them."""
        loaded = loads(head, buffers, functools.partial(self.future_for, lender=lender))
        if self.machine.borrowing.unanswered:
            self._await_owners()
        return loaded

    def future_for(self, address: Any, lender: int | None = None) -> Future[Any]:
        """The future for an object whose reference came inside a value.

        Args:
            lender: the process that the value came from; None if this one keeps the object already.
        """
        address = Address(*address)
        own = address.owner == self.number
        ref: Ref = address.id if own else address
        with self._lock:
            known = self._pending.get(ref) if own else self._borrowed.get(address)
            if known is not None:
                return known
            if own and ref not in self.machine.references.entries:
                from ..errors import ObjectLost

                raise ObjectLost(f"object {address.id} was let go while a reference travelled")
            name = f"object {address.id}"
            future: Future[Any] = Future(self, ref, name if own else f"{name} of {address.owner}")
            if not own:
                self._borrowed[address] = future
            self._feed(HandleAdded(ref, lender))
            self._flush()
            entry = self.machine.references.entries[ref]
            status, value = entry.status, entry.value
            if own and status == PENDING:
                self._pending[ref] = future  # its value was lost, and is computed again
            if extent_of(value) is not None:
                self._stored[ref] = future
        if status != PENDING:
            future._complete(status, value)
        return future

    def _outcome(self, ref: Ref, status: int, value: Any) -> None:
        """Lock held. An object has its outcome; its future is completed later."""
        if type(ref) is int:
            if self._gate is not None:
                self._gate.remove(ref)
            future = self._pending.pop(ref, None)
        else:
            future = self._borrowed.get(ref)  # type: ignore[arg-type]
        if future is not None:
            if status == READY and type(value) is tuple and extent_of(value) is not None:
                self._stored[ref] = future
            self._completions.append((future, status, value))
        again = self._recovering.pop(ref, None) if self._recovering else None
        if again is not None:
            self._completions.append((again, status, value))

    # -- cancelling

    def cancel(
        self,
        future: Future[Any],
        running: bool = False,
        force: bool = False,
        recursive: bool = False,
    ) -> bool:
        """Keep the future's task from running; waits for its worker's word if it has one.

        Args:
            running, force: if it runs, stop it; nobody's word is waited for then.
            recursive: and with it what it has submitted.
        """
        object_id = future._object
        if not self._is_ours() or not isinstance(object_id, int):
            return False
        ticket = Ticket()
        with self._lock, self._change:
            task = self.streams.task_of(object_id)
            self._cancels.setdefault(task, []).append(ticket)
            self._feed(CancelAsked(task, running, force, recursive))
            self._flush()
            if ticket.cancelled is None:
                ticket.answered = threading.Event()  # its worker is asked
        if ticket.answered is not None:
            self._await_answer(ticket)
            if ticket.cancelled is None:
                self._give_up_cancel(task, ticket)
        if ticket.cancelled:
            future._complete(CANCELLED, None)
        if self._completions or force:  # which has its time
            self._wake()
        return bool(ticket.cancelled) or future.cancelled()

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
        if not self._is_ours():
            return
        with self._lock:
            if self._is_over():
                return
            with self._change:
                for future in futures:
                    if not future._is_settled() and isinstance(future._object, int):
                        self._feed(CancelAsked(future._object))
                self._flush()
        self._wake()


def _lost_extent(error: Exception) -> Extent:
    """What could not be read; raises the error if it is another one."""
    if isinstance(error, OSError):
        raise Unreadable(error) from error
    from ..errors import ObjectLost  # only now: without descriptors nothing can be imported

    if not isinstance(error, ObjectLost) or error.extent is None:
        raise error
    return error.extent
