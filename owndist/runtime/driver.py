"""The peer in the driver process: the machine, one lock, the links, and one thread that reads.

Any thread may submit. It takes the lock, feeds the machine and carries out what the machine asks
for, so a task is on its way when `submit` returns: handing it to another thread would make it wait
until the interpreter switches threads, up to 5 ms, while the caller computes.

Everything that comes back is read by the reader thread, which also completes the futures and runs
their callbacks, one after the other, as the standard library's executor does. Nothing of the
user's ever runs with the lock held.
"""

from __future__ import annotations

import functools
import logging
import os
import selectors
import signal
import socket
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError
from concurrent.futures import Future as AnyFuture
from typing import Any

from ..config import TaskOptions
from ..core import messages as m
from ..core.commands import (
    CancelAnswered,
    Complete,
    Drained,
    Free,
    JudgeError,
    Log,
    Send,
    Spawn,
    SweepDead,
    Unlink,
)
from ..core.ids import DRIVER
from ..core.machine import Machine
from ..core.reports import (
    Aborted,
    CancelAsked,
    ErrorJudged,
    Fulfilled,
    HandleAdded,
    HandlesDropped,
    Mapped,
    Promised,
    Received,
    ShutdownAsked,
    Stored,
    Submitted,
    TimerDue,
    Unmapped,
    WorkerEnded,
)
from ..core.submission import Command
from ..core.values import CANCELLED, ERROR, FAILED, INLINE_LIMIT, READY, extent_key, extent_of
from ..futures import Future
from ..store.local import Store
from ..store.segments import segment_name, unlink_segment, unlink_segments
from ..transport.link import Link
from ..wire.failures import exception_of
from ..wire.frames import FrameDecoder
from ..wire.functions import Encoder
from ..wire.outcomes import dump_error
from ..wire.pickling import Encoded, loads
from .arguments import Slots
from .crash_record import CrashRecord, create_file
from .nursery import Ended, Nursery, Started, fork_quietly
from .setup import InitPayload, WorkerSetup

_log = logging.getLogger("owndist.driver")
_core_log = logging.getLogger("owndist.core")

# Every so many submissions the submitting thread reads what the workers have sent, so that they
# do not run dry while a busy interpreter keeps the reader waiting. At about 10 µs a submission
# that is every 0.3 ms, a tenth of what workers hold.
_READ_EVERY = 32

# Two such readings within so many nanoseconds are a burst of submissions. During one the reader
# keeps out of the way: the submitting thread does its reading, and two threads that fight for the
# interpreter and the lock take five times as long as one.
_BURST_NS = 2_000_000

# During a burst, tasks are sent so many at a time: the system call, and waking a worker that has
# just gone to sleep, cost as much as all the rest of a submission.
_SEND_EVERY = 16

# How long workers may take to end after their last task (user threads, finalizers). Seconds.
_STOP_GRACE_S = 5.0

# How long `cancel` waits for a worker's word on whether the task has started. Seconds. It answers
# within milliseconds, unless its interpreter is held by a call into C.
_CANCEL_WAIT_S = 1.0

_now = time.monotonic_ns


class WorkerProcess:
    """What the driver keeps about one worker process."""

    __slots__ = ("at_end", "entries", "known", "link", "number", "nursery", "pid", "record")

    def __init__(
        self, number: int, link: Link, record: CrashRecord, nursery: Nursery, known: set[int]
    ) -> None:
        self.number = number
        self.link = link
        self.record = record
        self.nursery = nursery  # the template that forks it, and tells of its end
        self.pid: int | None = None
        self.known = known  # definitions that it has
        self.entries: dict[str, int] = {}  # {global of __main__: key of what it was last sent}
        self.at_end = False  # the link is at its end


class Driver:
    """Owns the tasks that its process submits to one executor, and the workers that run them.

    Args:
        max_workers: how many workers at most.
        method: "fork", "forkserver" or "spawn".
        initializer, initargs: run in every worker before its first task.
        max_tasks_per_child: after so many tasks a worker is replaced.
    """

    def __init__(
        self,
        max_workers: int,
        method: str,
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
        max_tasks_per_child: int | None,
    ) -> None:
        self.pid = os.getpid()
        self.machine = Machine(DRIVER, max_workers, max_tasks_per_child)
        self.workers: dict[int, WorkerProcess] = {}
        self.ended = threading.Event()  # nothing of the executor is left
        self._max_workers = max_workers
        self._method = method
        self._initializer = initializer
        self._initargs = initargs
        # Guards the machine, the links and all tables below.
        self._lock = threading.Lock()
        self._started = False
        self._closing = False
        self._last_id = 0
        self._since_read = 0
        self._last_read = 0
        self._burst_until = 0  # the reader sleeps until then, unless `_resume` is set
        self._resume = threading.Event()
        self.done_condition = threading.Condition()  # see `Future`
        self._pending: dict[int, Future[Any]] = {}  # futures to come; keeps them alive
        self._stored: weakref.WeakValueDictionary[int, Future[Any]] = (
            weakref.WeakValueDictionary()
        )  # futures with values in shared memory
        self._retry_types: dict[int, tuple[type[BaseException], ...]] = {}
        self._cancels: dict[int, list[_Ticket]] = {}
        self._unflushed: dict[int, Link] = {}  # links with messages posted and not sent
        self._blocked: dict[int, Link] = {}  # links whose socket is full
        # What the reader is to do; appended to by anyone, without the lock.
        self._completions: deque[tuple[Future[Any], int, Any]] = deque()
        self._judgements: deque[JudgeError] = deque()
        self._dropped: deque[int] = deque()
        self._poked = False
        self._close_asked = False
        self._cancel_asked = False
        self._open_runs = 0  # batched maps that may still submit; shutdown waits for them
        self._kill_at: float | None = None
        self._reader_deadline: int | None = None
        self._reader_ident = 0
        self._past_sent = self._past_received = 0  # bytes of links that are closed
        self._bytes_mapped = self._bytes_put = 0
        _all.add(self)

    # -- starting

    def _start(self) -> None:
        """Lock held. Make the template, the store and the reader: the first task is here."""
        import tempfile

        session = _new_session()
        self._spill_directory = os.path.join(tempfile.gettempdir(), f"owndist-{session}")
        main = sys.modules["__main__"]
        inherits = self._method == "fork"
        self._encoder = Encoder(dict(vars(main)) if inherits else None)
        keep_fds: tuple[int, ...] = ()
        payload = None
        if not inherits and self._initializer is not None:
            payload, keep_fds = self._pack_initializer()
        setup = WorkerSetup(
            session=session,
            spill_directory=self._spill_directory,
            cache_limit_bytes=_cache_limit_bytes(self._max_workers),
            threads_per_worker=max(1, (os.cpu_count() or 1) // self._max_workers),
            process_group=os.getpgrp(),
            initializer=self._initializer if inherits else None,
            initargs=self._initargs if inherits else (),
            payload=payload,
            method=self._method,
        )
        self._session = session
        self._make_nursery = lambda: Nursery(setup, keep_fds)
        self._payload = payload
        # Before any thread of ours exists: under fork the template inherits a quiet process.
        self._nursery = self._make_nursery()
        self._store = Store(
            session,
            DRIVER,
            self._spill_directory,
            cache_limit_bytes=setup.cache_limit_bytes,
            on_unmapped=self._poke,
        )
        # Sockets rather than a pipe: an object that owns its descriptor closes it once, whoever
        # closes it, also in a child that is forked at any moment.
        self._wake_out, self._wake_in = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake_out, selectors.EVENT_READ, None)
        self._selector.register(self._nursery, selectors.EVENT_READ, self._nursery)
        reader = threading.Thread(target=self._read_for_ever, name="owndist-driver")
        register: Any = threading._register_atexit  # type: ignore[attr-defined]
        register(_exit_hook(self))
        self._started = True
        reader.start()

    def _pack_initializer(self) -> tuple[InitPayload, tuple[int, ...]]:
        from .initargs import pack_arguments

        assert self._initializer is not None
        key, entries, _ = self._encoder.function(self._initializer)
        encoded, fds = pack_arguments(self._encoder, self._initargs)
        wanted = dict.fromkeys([*entries, *encoded.entries])
        definitions = {k: self._encoder.definitions[k] for k in [*wanted, key]}
        payload = InitPayload(
            key,
            tuple(wanted),
            definitions,
            encoded.head,
            [bytes(part.raw()) for part in encoded.buffers],
        )
        return payload, fds

    # -- the user's threads

    def submit(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: TaskOptions,
        continued: bool = False,
    ) -> Future[Any]:
        """Submit a task; see `OwnershipExecutor.submit`.

        Args:
            continued: it goes on with a batched map that was begun before any `shutdown`.
        """
        if not continued:
            self._ready()
        name = options.name
        if name is None:
            name = getattr(fn, "__qualname__", None) or type(fn).__qualname__
        try:
            key, entries, held = self._encoder.function(fn)
            encoded, slots = self._encode(args, kwargs)
            value = self._value_of(encoded)
        except Exception as error:
            # As in the standard library, what cannot be pickled fails its own future.
            return self._failed(error, name)
        if encoded.entries:
            entries = (*entries, *encoded.entries)
        if held or encoded.futures:
            held = (*held, *encoded.futures)
        judged = bool(options.retry_exceptions)
        with self._lock:
            if self.machine.closing:
                self._discard(value)
                raise RuntimeError("cannot schedule new futures after shutdown")
            slot_ids: tuple[int, ...] = ()
            foreign: list[tuple[int, AnyFuture[Any]]] = []
            if slots:
                slot_ids = tuple([self._object_for(future, foreign) for future in slots])
            nested = tuple([self._id_of(future) for future in held]) if held else ()
            self._last_id = task = self._last_id + 1
            future: Future[Any] = Future(self, task, name)
            self._pending[task] = future
            if judged:
                self._retry_types[task] = options.retry_exceptions
            self._feed(
                Submitted(
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
            )
            self._since_read += 1
            if self._since_read >= _READ_EVERY:
                self._since_read = 0
                self._read_links()
                now = _now()
                if now - self._last_read < _BURST_NS:
                    self._burst_until = now + _BURST_NS
                self._last_read = now
            if not self._burst_until or self._since_read % _SEND_EVERY == 0:
                self._flush_links()
        if self._completions and not self._burst_until:
            self._poke()
        for object_id, other in foreign:
            other.add_done_callback(functools.partial(self._fulfil, object_id))
        return future

    def _failed(self, error: Exception, name: str) -> Future[Any]:
        """A future for a task that cannot even be sent."""
        failure = (ERROR, dump_error(error), name)
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
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Encoded, list[AnyFuture[Any]]]:
        """The arguments as bytes, and the futures that they need as values."""
        slots = Slots()
        new_args, new_kwargs = slots.replace_top_level(args, kwargs)

        def describe(error: Exception) -> str:
            
            return explain(new_args, new_kwargs, error)

        try:
            encoded = self._encoder.value((new_args, new_kwargs), describe)
        except Exception:
            # A future of another executor, deeper down, cannot be pickled. If there is one,
            # there is another way; if not, the error stands.
            inner_args, inner_kwargs = slots.replace_all((new_args, new_kwargs))
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

    def _object_for(
        self, future: AnyFuture[Any], foreign: list[tuple[int, AnyFuture[Any]]]
    ) -> int:
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
            self._flush_links()
        self._poke()

    def cancel(self, future: Future[Any]) -> bool:
        """Keep the future's task from running; waits for its worker's word if it has one."""
        if os.getpid() != self.pid:
            return False
        task = self._id_of(future)
        ticket = _Ticket()
        with self._lock:
            self._cancels.setdefault(task, []).append(ticket)
            self._feed(CancelAsked(task))
            self._flush_links()
        if threading.get_ident() == self._reader_ident:
            self._pump(ticket.answered.is_set, _CANCEL_WAIT_S)
        else:
            ticket.answered.wait(_CANCEL_WAIT_S)
        if ticket.cancelled:
            future._complete(CANCELLED, None)
        if self._completions:
            self._poke()
        return ticket.cancelled

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
            task = self.machine.submission.tasks.get(object_id)
            if task is None or task.worker is None:
                return False
            return bool(next(iter(task.worker.queue), None) == task.id)

    def wait_for(self, future: Future[Any], timeout: float | None) -> None:
        """Wait for a future. In a callback, the reader goes on reading meanwhile."""
        if threading.get_ident() == self._reader_ident:
            self._pump(future._is_settled, timeout)
            future._block(0)
        elif os.getpid() != self.pid:
            raise RuntimeError("this future belongs to the process that this one was forked from")
        else:
            if self._burst_until:
                self._end_burst()
            future._block(timeout)

    def _end_burst(self) -> None:
        """Nothing more is submitted for now: send what waits for company, let the reader read."""
        self._burst_until = 0
        with self._lock:
            self._flush_links()
        self._resume.set()

    def wait_until(
        self, changed: threading.Condition, done: Callable[[], bool], timeout: float | None
    ) -> bool:
        """Wait for something that the reader brings about and tells by `changed`."""
        if threading.get_ident() == self._reader_ident:
            self._pump(done, timeout)
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
            self._feed(Mapped(extent_key(extent)))
            mapping, head, views = self._store.read(value)
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
            self._poke()  # shared memory waits for it; the rest can wait for the next input

    def open_run(self) -> None:
        """A batched map has begun: it may submit more, even after `shutdown` was called."""
        with self._lock:
            self._open_runs += 1

    def close_run(self) -> None:
        """That map will submit no more."""
        with self._lock:
            self._open_runs -= 1
        self._poke()

    # -- ending

    def ask_close(self) -> None:
        """Take no more work, and end when all is done. Any thread, any time: it only notes."""
        self._close_asked = True
        if self._started:
            self._poke()
        else:
            self.ended.set()

    def shutdown(self, wait: bool, cancel_futures: bool) -> None:
        """See `OwnershipExecutor.shutdown`."""
        if os.getpid() != self.pid:
            return
        with self._lock:
            if not self._started:
                self.machine.closing = True
                self.ended.set()
                return
            if not self.ended.is_set():
                self._close_asked = True
                self._cancel_asked |= cancel_futures
                if cancel_futures or not self._open_runs:
                    self._feed(ShutdownAsked(cancel_futures))
                self._flush_links()
        self._poke()
        if wait and threading.get_ident() != self._reader_ident:
            try:
                self.ended.wait()
                self._reader.join()
            except BaseException:
                # Ctrl-C while waiting: whoever presses it does not want to wait any more.
                self.abort("the executor was interrupted while it shut down")
                raise

    def abort(self, text: str, signum: int = signal.SIGKILL) -> None:
        """End now: queued tasks are cancelled, running ones fail, workers get a signal."""
        if os.getpid() != self.pid:
            return
        with self._lock:
            if not self._started:
                self.machine.closing = True
                self.ended.set()
                return
            if self.ended.is_set():
                return
            self._feed(Aborted(text))
            for worker in self.workers.values():
                worker.nursery.kill(worker.number, signum)
            self._flush_links()
        self._poke()

    # -- the machine's commands, with the lock held

    def _feed(self, report: object) -> None:
        for command in self.machine.handle(report, _now()):
            self._carry_out(command)
        deadline = self.machine.next_deadline()
        if deadline is not None and self._reader_deadline is None:
            self._reader_deadline = deadline
            self._poke()

    def _carry_out(self, command: Command) -> None:
        kind = type(command)
        if kind is Send:
            self._post(command.peer, command.message)  # type: ignore[union-attr]
        elif kind is Complete:
            self._outcome(command.object, command.status, command.value)  # type: ignore[union-attr]
        else:
            self._perform(command)

    def _post(self, number: int, message: tuple[Any, ...]) -> None:
        worker = self.workers.get(number)
        if worker is None:
            return
        link = worker.link
        if message[0] == m.TASK:
            function, needs = message[3], message[4]
            if function not in worker.known:
                link.post((m.DEFINE, function, self._encoder.definitions[function]))
                worker.known.add(function)
            for key in needs:
                name = self._encoder.entry_name[key]
                if worker.entries.get(name) != key:
                    link.post((m.ENTRY, key, self._encoder.definitions[key]))
                    worker.entries[name] = key
        link.post(message)
        self._unflushed[number] = link

    def _outcome(self, task: int, status: int, value: Any) -> None:
        self._retry_types.pop(task, None)
        future = self._pending.pop(task, None)
        if future is not None:
            if status == READY and type(value) is tuple and extent_of(value) is not None:
                self._stored[task] = future
            self._completions.append((future, status, value))

    def _perform(self, command: Any) -> None:
        kind = type(command)
        if kind is Free:
            self._store.free(command.serial)
        elif kind is Spawn:
            self._spawn(command.worker)
        elif kind is CancelAnswered:
            for ticket in self._cancels.pop(command.task, ()):
                ticket.answer(command.cancelled)
        elif kind is JudgeError:
            self._judgements.append(command)
            self._poke()
        elif kind is Unlink:
            unlink_segment(command.segment)
        elif kind is SweepDead:
            pass  # done by the caller, who has the crash record
        elif kind is Log:
            _core_log.log(command.level, command.text, *command.args)
        elif kind is Drained:
            self._closing = True
            self._kill_at = time.monotonic() + _STOP_GRACE_S
            self._poke()

    def _spawn(self, number: int) -> None:
        ours, theirs = socket.socketpair()
        record_fd = create_file()
        try:
            link = Link(ours)
            known = set(self._payload.definitions) if self._payload is not None else set()
            worker = WorkerProcess(number, link, CrashRecord(record_fd), self._nursery, known)
            if self._payload is not None:
                for key in self._payload.entries:
                    worker.entries[self._encoder.entry_name[key]] = key
            self.workers[number] = worker
            self._selector.register(link, selectors.EVENT_READ, worker)
            self._nursery.start_worker(number, theirs, record_fd)
        finally:
            theirs.close()
            os.close(record_fd)

    def _flush_links(self) -> None:
        """Lock held. Send what was posted."""
        if not self._unflushed:
            return
        for number, link in self._unflushed.items():
            if not link.flush() and number not in self._blocked:
                self._blocked[number] = link
                self._selector.modify(
                    link, selectors.EVENT_READ | selectors.EVENT_WRITE, self.workers[number]
                )
        self._unflushed.clear()

    def _read_links(self) -> None:
        """Lock held. Take in what workers have sent."""
        for worker in list(self.workers.values()):
            self._read_link(worker)

    def _read_link(self, worker: WorkerProcess) -> None:
        if worker.at_end:
            return
        messages, alive = worker.link.receive()
        if messages:
            self._feed(Received(worker.number, messages))
        if not alive:
            worker.at_end = True
            self._selector.unregister(worker.link)
            self._blocked.pop(worker.number, None)
            if worker.nursery is not self._nursery:
                # Its template is dead, so nobody will tell how it ended.
                self._worker_ended(worker, None)

    def _worker_ended(self, worker: WorkerProcess, exitcode: int | None) -> None:
        """Lock held. A worker process is gone: take in what it left."""
        number = worker.number
        self._read_link(worker)
        if self.workers.pop(number, None) is None:
            return
        if not worker.at_end:
            # Something that it forked still holds its end of the link.
            worker.at_end = True
            self._selector.unregister(worker.link)
        self._blocked.pop(number, None)
        self._unflushed.pop(number, None)
        self._past_sent += worker.link.bytes_sent
        self._past_received += worker.link.bytes_received
        worker.link.close()
        record = worker.record
        unsent = FrameDecoder().feed(record.outbox())
        if unsent:
            self._feed(Received(number, unsent))
        running, segments, stack = record.running, record.segments, record.stack()
        record.close()
        report = WorkerEnded(number, running, worker.pid, exitcode, stack)
        keep: frozenset[str] = frozenset()
        for command in self.machine.handle(report, _now()):
            if type(command) is SweepDead:
                keep = command.keep
            else:
                self._carry_out(command)
        self._sweep_segments(number, segments, keep)

    def _sweep_segments(self, number: int, count: int, keep: frozenset[str]) -> None:
        if not keep:
            unlink_segments(self._session, number, count, self._spill_directory)
            return
        for k in range(count):
            name = segment_name(self._session, number, k)
            for place in (name, os.path.join(self._spill_directory, name)):
                if place not in keep:
                    unlink_segment(place)

    # -- the reader thread

    def _read_for_ever(self) -> None:
        self._reader = threading.current_thread()
        self._reader_ident = threading.get_ident()
        try:
            while not self._step(None):
                pass
        except BaseException as error:
            self._reader_failed(error)
        finally:
            self.ended.set()

    def _reader_failed(self, error: BaseException) -> None:
        """A bug. Nobody may wait for ever because of it."""
        _log.critical("the reader thread failed; the executor is broken", exc_info=error)
        text = f"owndist has failed internally: {type(error).__name__}: {error}"
        for future in list(self._pending.values()):
            future._complete(FAILED, ("broken", (text, None), ""))
        with self._lock:
            self.machine.closing = True
            self.machine.broken = ("broken", (text, None), "")
            for worker in self.workers.values():
                worker.link.close()
            self._nursery.close()

    def _pump(self, done: Callable[[], bool], timeout: float | None) -> None:
        """In a callback that waits: do the reader's work until `done()`."""
        until = None if timeout is None else time.monotonic() + timeout
        while not done():
            left = None
            if until is not None:
                left = until - time.monotonic()
                if left <= 0:
                    return
            if self._step(left):
                return

    def _step(self, limit_s: float | None) -> bool:
        """One round: wait, read, complete. True: the executor has ended."""
        while self._burst_until:
            left_ns = self._burst_until - _now()
            if left_ns <= 0:
                self._burst_until = 0
            else:
                self._resume.wait(left_ns / 1e9)
                self._resume.clear()
        for key, events in self._selector.select(self._timeout(limit_s)):
            data = key.data
            if data is None:
                self._drain_pokes()
            elif type(data) is WorkerProcess:
                with self._lock:
                    if events & selectors.EVENT_WRITE:
                        self._unblock(data)
                    self._read_link(data)
                    self._flush_links()
            elif data is self._nursery:
                self._hear_nursery()
        self._do_chores()
        while self._completions:
            future, status, value = self._completions.popleft()
            future._complete(status, value)
            del future, value  # or they would live until the next round
        return self._finish_if_done()

    def _timeout(self, limit_s: float | None) -> float | None:
        deadline = self._reader_deadline
        timeout = limit_s
        if deadline is not None:
            left = max(0.0, (deadline - _now()) / 1e9)
            timeout = left if timeout is None else min(left, timeout)
        if self._kill_at is not None:
            left = max(0.0, self._kill_at - time.monotonic())
            timeout = left if timeout is None else min(left, timeout)
        return timeout

    def _unblock(self, worker: WorkerProcess) -> None:
        if worker.at_end or not worker.link.flush():
            return
        self._blocked.pop(worker.number, None)
        self._selector.modify(worker.link, selectors.EVENT_READ, worker)

    def _hear_nursery(self) -> None:
        reports, alive = self._nursery.reports()
        with self._lock:
            for report in reports:
                worker = self.workers.get(report.worker)
                if worker is None:
                    continue
                if isinstance(report, Started):
                    worker.pid = report.pid
                elif isinstance(report, Ended):
                    self._worker_ended(worker, report.exitcode)
            if not alive:
                self._replace_nursery()
            self._flush_links()

    def _replace_nursery(self) -> None:
        """Lock held. The template was killed. Its workers live; they get a new one to end with."""
        old = self._nursery
        self._selector.unregister(old)
        old.close()
        _log.warning("the template process (pid %d) died; starting another one", old.pid)
        self._nursery = fork_quietly(self._make_nursery)
        self._selector.register(self._nursery, selectors.EVENT_READ, self._nursery)
        for worker in list(self.workers.values()):
            if worker.at_end:
                self._worker_ended(worker, None)
            elif worker.pid is not None:
                self._nursery.adopt(worker.pid)

    def _do_chores(self) -> None:
        """What others have left for the reader to do."""
        with self._lock:
            if self._dropped:
                dropped: list[Any] = []
                while self._dropped:
                    dropped.append(self._dropped.popleft())
                self._feed(HandlesDropped(dropped))
            gone = self._store.take_unmapped()
            if gone:
                still = frozenset(self._store.mapped())
                self._feed(Unmapped([key for key in gone if key not in still]))
            deadline = self.machine.next_deadline()
            if deadline is not None and deadline <= _now():
                self._feed(TimerDue())
            self._reader_deadline = self.machine.next_deadline()
            if self._close_asked and not self.machine.closing and not self._open_runs:
                self._feed(ShutdownAsked(False))
            if self._kill_at is not None and time.monotonic() >= self._kill_at:
                self._kill_at = None
                for worker in self.workers.values():
                    _log.warning("worker %d (pid %s) does not end; killing it",
                                 worker.number, worker.pid)  # fmt: skip
                    self._kill(worker)
            self._flush_links()
        while self._judgements:
            self._judge(self._judgements.popleft())

    def _kill(self, worker: WorkerProcess) -> None:
        if worker.nursery is self._nursery:
            worker.nursery.kill(worker.number)
        elif worker.pid is not None:
            os.kill(worker.pid, signal.SIGKILL)

    def _judge(self, command: JudgeError) -> None:
        types = self._retry_types.get(command.task, ())
        retry = isinstance(exception_of((ERROR, command.error, "")), types)
        with self._lock:
            self._feed(ErrorJudged(command.task, command.attempt, retry))
            self._flush_links()

    def _poke(self) -> None:
        """Wake the reader. Any thread, any time, any lock held."""
        if self._poked:
            return
        self._poked = True
        try:
            self._wake_in.send(b"x")
        except (OSError, AttributeError):
            pass  # full: it will wake anyway; closed or not open: there is no reader

    def _drain_pokes(self) -> None:
        try:
            self._wake_out.recv(4096)
        except BlockingIOError:
            pass  # nothing there
        # In this order: what was appended before this line is seen by the chores that follow,
        # what is appended after it wakes the reader again.
        self._poked = False

    def _finish_if_done(self) -> bool:
        if not self._closing or self.workers or self._completions:
            return False
        with self._lock:
            for object_id, value in self.machine.live_values():
                future = self._stored.get(object_id)
                if future is not None and extent_of(value) is not None:
                    future._detach(self._keep_mapped(value))
            self._store.close()
            self._nursery.close()
            self._selector.close()
            self._wake_in.close()
            self._wake_out.close()
            self.ended.set()
        return True

    def _keep_mapped(self, value: Any) -> Callable[[], Any]:
        """A mapping that outlives the store, for a value that may still be asked for."""
        mapping, head, views = self._store.read(value)

        def load() -> Any:
            return loads(head, views, self.future_for)

        load.mapping = mapping  # type: ignore[attr-defined]
        return load

    # -- looking

    def counters(self) -> dict[str, int]:
        """Figures for `OwnershipExecutor.statistics`."""
        with self._lock:
            if self._started and not self.ended.is_set():
                while self._dropped:
                    self._feed(HandlesDropped([self._dropped.popleft()]))
                self._flush_links()
            submission = self.machine.submission
            extents = self.machine.references.extents
            links = [worker.link for worker in self.workers.values()]
            return {
                "tasks_submitted": submission.submitted,
                "tasks_finished": submission.finished,
                "tasks_failed": submission.failed,
                "tasks_cancelled": submission.cancelled,
                "tasks_retried": submission.retried,
                "workers": len(self.workers),
                "workers_died": self.machine.workers_died,
                "bytes_sent": self._past_sent + sum(link.bytes_sent for link in links),
                "bytes_received": self._past_received
                + sum(link.bytes_received for link in links),
                "bytes_mapped": self._bytes_mapped,
                "bytes_put": self._bytes_put,
                "store_bytes": self.machine.references.live_bytes(),
                "store_values": len(extents),
            }

    def let_go_in_child(self) -> None:
        """In a process forked from the driver: nothing here is ours."""
        if self.pid == -1 or not self._started or self.ended.is_set():
            return  # a worker is forked from a template that has done this already
        self.pid = -1
        for worker in self.workers.values():
            worker.link.close()
        self._nursery.abandon()
        self._selector.close()
        self._wake_in.close()
        self._wake_out.close()


class _Ticket:
    """Somebody waits to hear whether a task was cancelled."""

    def __init__(self) -> None:
        self.answered = threading.Event()
        self.cancelled = False

    def answer(self, cancelled: bool) -> None:
        self.cancelled = cancelled
        self.answered.set()


def _exit_hook(driver: Driver) -> Callable[[], None]:
    reference = weakref.ref(driver)

    def at_exit() -> None:
        found = reference()
        if found is None or found.ended.is_set():
            return
        # As the standard library does, an exiting interpreter finishes the work it was given;
        # unless it exits because of Ctrl-C.
        last = getattr(sys, "last_value", None)
        if isinstance(last, KeyboardInterrupt):
            found.abort("the driver was interrupted")
        found.shutdown(wait=True, cancel_futures=False)

    return at_exit


def _new_session() -> str:
    """Five random bytes as eight letters and digits; short, for macOS's 31-character names."""
    import base64

    return base64.b32encode(os.urandom(5)).decode().lower()


def _cache_limit_bytes(max_workers: int) -> int:
    """How much freed shared memory each process may keep for reuse.

    All processes together at most a quarter of what there is, and 512 MiB each: enough for two
    arrays of 256 MB, beyond which a fresh page costs little next to the work done on it.
    """
    try:
        status = os.statvfs("/dev/shm")
        total = status.f_blocks * status.f_frsize
    except OSError:
        total = 1 << 30
    return int(min(512 << 20, total // 4 // (max_workers + 1)))


# For the hook below only: which drivers' descriptors a forked child must close.
_all: weakref.WeakSet[Driver] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for driver in list(_all):
        driver.let_go_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
