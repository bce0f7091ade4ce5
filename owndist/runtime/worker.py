"""A worker process: runs tasks in its main thread, and listens in one more.

The main thread takes tasks from the machine one after the other. When there is none it waits on
the link itself, so that a task that arrives at an idle worker needs no switch between threads.
While it runs user code, the reader thread listens: for recalls, for memory to free, for the
driver's death.

Replies are collected in the crash record and sent together: when the queue is empty, when they
have waited for `_LINGER_NS`, or by the reader when the task after them turns out to be long.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..core import messages as m
from ..core.commands import Complete, Free, Moved, Send, Spill
from ..core.ids import DRIVER, Address, execution_id
from ..core.machine import Machine
from ..core.reports import HandleAdded, HandlesDropped, Received, Spilled, TaskEnded, Unmapped
from ..core.values import INLINE_LIMIT, extent_key, extent_of
from ..settled import SettledCondition
from ..store.ledger import Ledger
from ..store.local import Store
from ..transport.link import Link
from ..wire.frames import encode_frame
from ..wire.functions import Decoder
from ..wire.pickling import loads
from .bindings import Bindings
from .crash_record import CrashRecord, catch_crashes
from .setup import ROOM_WAIT_S, WorkerSetup
from .spiller import Spiller
from .usercode import call_task, end_multiprocessing, initialize
from .wakeups import Wakeups

if TYPE_CHECKING:
    from ..futures import Future

# Replies wait for company no longer than this. A no-op task takes about 10 µs, so some 20 share
# a system call and a wake-up of the driver.
_LINGER_NS = 200_000

# How often the reader looks whether replies are stuck behind a long task, while several tasks
# are queued. Seconds.
_TICK_S = 0.002

# Memory kept for reuse is given back after so long without work. Seconds.
_TRIM_AFTER_S = 2.0

_now = time.perf_counter_ns


def prepare_workers(setup: WorkerSetup) -> None:
    """In the template: do once what is the same for all workers, whose pages stay shared then."""
    threads = str(setup.threads_per_worker)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, threads)
    logging.getLogger("owndist").addHandler(logging.NullHandler())  # as in the driver


def worker_main(
    number: int, link_fd: int, record_fd: int, setup: WorkerSetup, inherited: list[int]
) -> None:
    """The main function of a worker process.

    Args:
        number: its process number.
        link_fd: the socket to the driver.
        record_fd: the file of its crash record.
        setup: what every worker is told.
        inherited: descriptors of the template that are not the worker's business.
    """
    for fd in inherited:
        try:
            os.close(fd)
        except OSError:
            pass  # closed by multiprocessing already
    try:
        os.setpgid(0, setup.process_group)
    except OSError:
        pass  # the driver's group is gone, and the driver with it: the link will tell
    # A Ctrl-C is for the driver to act on. It is not ignored, for what a task starts would inherit
    # that, while a handler ends with exec. What it interrupts goes on, in Python (PEP 475) and,
    # where the system can do it, in C.
    signal.signal(signal.SIGINT, _do_nothing)
    signal.siginterrupt(signal.SIGINT, False)
    catch_crashes(record_fd)
    Worker(number, link_fd, record_fd, setup).run()


def _do_nothing(signum: int, frame: object) -> None:
    """A signal that is not for this process."""


class Worker:
    """The peer in a worker process: machine, store, link and the two threads' shared state."""

    def __init__(self, number: int, link_fd: int, record_fd: int, setup: WorkerSetup) -> None:
        self.number = number
        self._setup = setup
        self._machine = Machine(number)
        # Guards the machine, the link and the outbox. User code never runs under it.
        self._lock = threading.Lock()
        self.credit = threading.Condition(self._lock)  # for the running task, if it is a stream's
        self._link = Link(socket.socket(fileno=link_fd))
        self._record = CrashRecord(record_fd)
        self._decoder = Decoder()
        self._bindings = Bindings(self._decoder, self.future_for)
        self._store = Store(
            setup.session,
            number,
            setup.spill_directory,
            cache_limit_bytes=setup.cache_limit_bytes,
            on_segment=self._record.count_segments,
            on_unmapped=self._poke_reader,
            ledger=Ledger(setup.ledger_fd, self._record.slot),
            room_wait_s=ROOM_WAIT_S,
        )

        def on_spilled(report: Spilled) -> None:
            with self._lock:
                for command in self._machine.handle(report, _now()):
                    self._perform(command)

        self._spiller = Spiller(self._store, on_spilled)
        self._pinned: dict[tuple[int, int], None] = {}  # extents the driver knows we map
        # Handles that were collected; appended to from `__del__`, in any thread at any time.
        self._dropped: deque[Any] = deque()
        self._futures: weakref.WeakValueDictionary[Any, Future[Any]] = weakref.WeakValueDictionary()
        self._completions: deque[tuple[Future[Any], int, Any]] = deque()
        self.settled = SettledCondition()  # see `Future`
        self._outbox_since = 0  # when the oldest unsent reply was written
        self._main_waits = False  # the main thread is idle
        self._reader_ticks = False  # the reader looks at the outbox every _TICK_S
        self._tasks_begun = 0
        self._waits = 0  # for futures, of the running task, in any of its threads; under the lock
        self.main_thread = threading.get_ident()
        self._signals = Wakeups(self._link.fileno())

    # -- the main thread

    def run(self) -> None:
        """Run tasks until told to stop."""
        threading.Thread(target=self._read_for_ever, name="owndist-reader", daemon=True).start()
        failure = initialize(self._setup, self._decoder)
        if failure is not None:
            # Before the pool is told to be broken: what the initializer put into a queue (a log,
            # as a rule) is sent by multiprocessing's finalizers.
            end_multiprocessing()
            self._say((m.INIT_FAILED, failure))
            self._wait_for_the_end()
            return
        self._say((m.ALIVE, os.getpid()))
        machine = self._machine
        while True:
            with self._lock:
                item = machine.take()
                if item is not None and item[1][0] == m.ENTRY:
                    self._bindings.due(item[1])
                elif item is None:
                    self._flush()
                    if machine.execution.stopping:
                        break
                    self._main_waits = True
                elif len(machine.execution.queue) and not self._reader_ticks:
                    self._reader_ticks = True
                    self._signals.wake_reader()
            if item is None:
                self._wait_for_work()
                continue
            message = item[1]
            if message[0] == m.TASK:
                self._run_task(message)
            else:
                self._bindings.apply_due()
        self._leave()

    def _wait_for_work(self) -> None:
        if self._signals.wait_main():
            self._receive()
        self._main_waits = False

    def _run_task(self, message: tuple[Any, ...]) -> None:
        _, task, attempt, function, _, args, slots, name, returns = message
        self._tasks_begun += 1
        self._record.start(execution_id(task, attempt))
        begun = _now()
        deliver = None
        if returns is not None:
            from .deliveries import Deliveries

            deliver = Deliveries(self, task, attempt, name, returns).deliver
        outcome = call_task(self, function, args, slots, name, deliver)
        del args, slots
        elapsed = _now() - begun
        status, value, nested, entries, buffers = outcome
        del outcome
        extent = extent_of(value)
        if extent is None or extent_key(extent) not in self._pinned:
            # A value that is passed on is kept by what it came with: the arguments, or a borrowed
            # future, whose release waits for the DONE.
            buffers.clear()
        # Else it came with an earlier task, and perhaps nothing keeps it but our mapping. Were that
        # to die now, the owner would hear of its end before it hears of the value. The reader tells
        # of no extent that is mapped; so nothing is said before the DONE.
        with self._lock:
            self._forget_dropped()
            if self._waits:
                # A thread or a callback that it has left behind. To its owner it waits no more.
                self._waits = 0
                self._queue_reply((m.UNBLOCKED,))
            mapped = self._new_pins()
            for command in self._machine.handle(
                TaskEnded(task, attempt, status, value, elapsed, nested, mapped, entries), begun
            ):
                self._perform(command)
            self._record.finish()
            if begun + elapsed - self._outbox_since > _LINGER_NS:
                self._flush()

    def _leave(self) -> None:
        """Told to stop: leave multiprocessing to run its finalizers and end the process."""
        with self._lock:
            self._flush()
            while self._link.unsent:
                self._wait_writable()

    def _wait_for_the_end(self) -> None:
        """Nothing can be run here; the driver will say when to go."""
        with self._lock:
            self._flush()
        while True:
            with self._lock:
                if self._machine.execution.stopping:
                    return
                self._main_waits = True
            self._wait_for_work()

    # -- the reader thread

    def _read_for_ever(self) -> None:
        seen = -1
        idle_since = None
        while True:
            timeout: float | None = None
            if self._reader_ticks:
                timeout = _TICK_S
            elif self._store.cached_bytes:
                timeout = _TRIM_AFTER_S
            readable = self._signals.wait_reader(timeout)
            if readable:
                self._receive()
            with self._lock:
                self._forget_dropped()
                self._tell_unmapped()
                stuck = self._tasks_begun == seen and not self._main_waits
                seen = self._tasks_begun
                if self._reader_ticks and (stuck or self._main_waits):
                    # The task that runs now is long, or there is none: what is done goes out.
                    self._flush()
                    if not self._machine.execution.queue:
                        self._reader_ticks = False
            self._complete()
            if not readable and timeout == _TRIM_AFTER_S and self._main_waits:
                now = time.monotonic()
                if idle_since is not None and now - idle_since >= _TRIM_AFTER_S:
                    self._store.trim()
                idle_since = now
            else:
                idle_since = None

    def _receive(self) -> None:
        """Take in what the link has. Either thread."""
        with self._lock:
            messages, alive = self._link.receive()
            if messages:
                rest = []
                for message in messages:
                    if message[0] == m.DEFINE:
                        self._decoder.define(message[1], message[2])
                    elif message[0] == m.FORGET:
                        self._decoder.forget(message[1])
                    else:
                        rest.append(message)
                commands = self._machine.handle(Received(DRIVER, rest), _now())
                execution = self._machine.execution
                for message in rest:
                    if message[0] == m.OUTCOME and message[4]:
                        # Before the value is loaded, which the running task may do at once.
                        for _, queued in execution.queue:
                            if queued[0] == m.ENTRY and queued[1] in message[4]:
                                self._bindings.due(queued)
                for command in commands:
                    self._perform(command)
                if execution.credits:
                    self.credit.notify_all()
                if (
                    self._main_waits
                    and threading.get_ident() != self.main_thread
                    and (execution.queue or execution.stopping)
                ):
                    self._signals.wake_main()
            if not alive:
                # The driver is gone. Nobody waits for what runs here, and user threads or child
                # processes must not keep this process alive.
                os._exit(1)
        self._complete()

    # -- commands, with the lock held

    def _perform(self, command: Any) -> None:
        kind = type(command)
        if kind is Send:
            message = command.message
            self._queue_reply(message)
            if message[0] != m.DONE:
                self._flush()
        elif kind is Free:
            self._store.free(command.serial)
        elif kind is Spill:
            self._spiller.order(command)
        elif kind is Moved:
            self._store.choose(command.serial, command.taken)
        elif kind is Complete:
            future = self._futures.get(command.object)
            if future is not None:
                self._completions.append((future, command.status, command.value))

    def _queue_reply(self, message: tuple[Any, ...]) -> None:
        """Put a message into the crash-safe outbox."""
        frame = encode_frame([message])
        if not self._record.outbox_length():
            self._outbox_since = _now()
        if not self._record.append(frame):
            self._flush()
            if not self._record.append(frame):
                self._send_all(frame)

    def _flush(self) -> None:
        if self._record.outbox_length():
            self._send_all(self._record.outbox())
            # A kill between the two sends everything twice; the driver drops what it has.
            self._record.clear_outbox()

    def _send_all(self, data: bytes) -> None:
        if not self._link.write(data):
            while not self._link.flush():
                self._wait_writable()
        if self._link.broken:
            # The driver is gone, or the task has closed our descriptor. What was to be said stays
            # in the crash record, where a living driver finds it.
            os._exit(1)

    def _wait_writable(self) -> None:
        # The driver always reads, whatever it is doing: this ends when it does.
        poller = select.poll()
        poller.register(self._link.fileno(), select.POLLOUT)
        poller.poll()

    def _say(self, message: tuple[Any, ...]) -> None:
        with self._lock:
            self._queue_reply(message)
            self._flush()

    # -- references and mappings

    def _poke_reader(self) -> None:
        self._signals.wake_reader()

    def _forget_dropped(self) -> None:
        """Lock held. Tell the machine of handles that are gone."""
        if self._dropped:
            # A release may follow. The views that are left must be known before it: a thread of
            # the user's may keep the array and not the future.
            pins = self._new_pins()
            if pins:
                self._queue_reply((m.PINNED, pins))
            dropped = []
            while self._dropped:
                dropped.append(self._dropped.popleft())
            for command in self._machine.handle(HandlesDropped(dropped), _now()):
                self._perform(command)

    def _new_pins(self) -> tuple[tuple[int, int], ...]:
        """Lock held. Extents still mapped that the driver has not been told of."""
        mapped = self._store.mapped()
        if not mapped:
            return ()
        fresh = tuple(key for key in mapped if key not in self._pinned)
        for key in fresh:
            self._pinned[key] = None
        return fresh

    def _tell_unmapped(self) -> None:
        """Lock held. Tell the driver of told mappings that are gone."""
        gone = self._store.take_unmapped()
        if gone:
            still = set(self._store.mapped())
            told = [key for key in gone if key in self._pinned and key not in still]
            if told:
                for key in told:
                    del self._pinned[key]
                for command in self._machine.handle(Unmapped(told), _now()):
                    self._perform(command)

    def _complete(self) -> None:
        """Complete borrowed futures. Callbacks of the user run here: no lock is held."""
        while self._completions:
            try:
                future, status, value = self._completions.popleft()
            except IndexError:
                return  # the other thread was faster
            future._complete(status, value)

    # -- what futures and user code need (the interface of a peer)

    def future_for(self, address: Any) -> Future[Any]:
        """The future for an object that somebody else owns."""
        from ..futures import Future

        address = Address(*address)
        with self._lock:
            known = self._futures.get(address)
            if known is not None:
                return known
            name = f"object {address.id} of process {address.owner}"
            future: Future[Any] = Future(self, address, name)
            self._futures[address] = future
            for command in self._machine.handle(HandleAdded(address), _now()):
                self._perform(command)
        return future

    def note_dropped(self, address: Any, _stored: bool) -> None:
        """A future was collected. Any thread, any time: only append."""
        self._dropped.append(address)

    def load(self, value: Any) -> Any:
        """The object that a value stands for."""
        self._bindings.apply_due()
        if type(value) is bytes:
            return loads(value, (), self.future_for)
        if type(value[0]) is tuple:
            mapping, head, views = self._store.read(value)
            try:
                return loads(head, views, self.future_for)
            finally:
                del mapping, head, views
        # Inline buffers are copied, so that what is made of them can be written to.
        return loads(value[0], [bytearray(part) for part in value[1]], self.future_for)

    def store_result(self, head: bytes, buffers: list[Any], size: int) -> Any:
        """A result's parts as a value: inline if small, else in shared memory."""
        if size <= INLINE_LIMIT:
            if not buffers:
                return head
            return head, tuple([bytes(part.raw()) for part in buffers])
        same = self._store.alias(head, buffers)
        return same if same is not None else self._store.write(head, buffers)

    def function(self, key: int) -> Callable[..., Any]:
        """The function of a definition."""
        return self._decoder.function(key, self.future_for)

    def wait_for(self, future: Future[Any], timeout: float | None) -> None:
        """Wait for a borrowed future; meanwhile this worker's slot is lent to another one."""
        task = self.begin_waiting(future._address.id)
        try:
            future._block(timeout)
        finally:
            self.end_waiting(task)

    def begin_waiting(self, object_id: int | None) -> object:
        """Somebody waits for an object, in any thread: that is what the running task waits for.

        Args:
            object_id: None if it waits for credit.

        Returns:
            What `end_waiting` is to be given.
        """
        with self._lock:
            task = self._machine.execution.running
            if task is not None:
                self._waits += 1
                self._queue_reply((m.BLOCKED, object_id))
                self._flush()
            return task

    def end_waiting(self, task: object) -> None:
        """One wait less, if the task in which it began is still running."""
        with self._lock:
            if task is not None and task is self._machine.execution.running:
                self._waits -= 1
                if not self._waits:
                    self._queue_reply((m.UNBLOCKED,))
                    self._flush()

    def make_waiters(self, future: Future[Any]) -> list[Any]:
        """A list of those who are told when the future is settled, and so wait for it."""
        return _Waiters(self, future._address.id)

    def cancel(self, future: Future[Any]) -> bool:
        """Only its owner can cancel a task."""
        return False

    def is_running(self, address: Any) -> bool:
        """Whether the task runs now; its owner knows, a borrower does not."""
        return False


class _Waiters(list[Any]):
    """Who waits for a future, or its callbacks: each lends its worker's slot to another one."""

    def __init__(self, worker: Worker, object_id: int) -> None:
        super().__init__()
        self._worker = worker
        self._object = object_id
        self._tasks: list[object] = []  # in which each began to wait

    def append(self, waiter: Any) -> None:
        self._tasks.append(self._worker.begin_waiting(self._object))
        super().append(waiter)

    def remove(self, waiter: Any) -> None:
        index = self.index(waiter)
        del self[index]
        self._worker.end_waiting(self._tasks.pop(index))

    def clear(self) -> None:
        super().clear()
        while self._tasks:
            self._worker.end_waiting(self._tasks.pop())
