"""A worker process: runs tasks in its main thread, and listens in one more.

The main thread takes tasks from the machine one after the other. When there is none it waits on
the links itself, so that a task that arrives at an idle worker needs no switch between threads.
While it runs user code, the reader thread listens: for recalls, for memory to free, for the
driver's death.

A worker has a link to the driver from its start. Links to other workers are made when there is
something to say to them: the driver makes both ends, and hands them over.

Replies are collected in the crash record and sent together: when the queue is empty, when they
have waited for `_LINGER_NS`, or by the reader when the task after them turns out to be long.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from ..core import messages as m
from ..core.commands import (
    Abandon,
    CancelAnswered,
    CheckSegment,
    Complete,
    Free,
    Interrupt,
    JudgeError,
    Log,
    LookFor,
    Moved,
    Orphaned,
    Send,
    Spill,
)
from ..core.ids import DRIVER, ExecutionKey, execution_id
from ..core.reports import (
    ErrorJudged,
    HandlesDropped,
    Interrupted,
    Received,
    Returning,
    Spilled,
    TaskEnded,
    TimerDue,
    Unmapped,
)
from ..core.values import ERROR, extent_key, extent_of
from ..wire.failures import exception_of
from . import current
from .copies import end_copy
from .crash_record import catch_crashes
from .inside import Inside
from .interrupts import Interrupts
from .mailbox import Mailbox
from .setup import WorkerSetup
from .usercode import call_task, end_multiprocessing, initialize

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

# A look whether a worker is to be killed takes microseconds, and a kill not much longer.
_SPARED_WITHIN_MS = 1_000

# What a process ends with whose task belongs to a dead owner.
ORPHANED = 77

# What a process ends with that has no descriptors left.
NO_DESCRIPTOR = 78

_log = logging.getLogger("owndist.worker")
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


class Worker(Inside):
    """The two threads of a worker process, and what they share."""

    def __init__(self, number: int, link_fd: int, record_fd: int, setup: WorkerSetup) -> None:
        super().__init__(number, link_fd, record_fd, setup)
        self._mailbox = Mailbox(self._record, self._links, self.machine.execution)
        self._main_waits = False  # the main thread is idle
        self._reader_ticks = False  # the reader looks at the outbox every _TICK_S
        self._tasks_begun = 0
        self._logs: deque[tuple[Any, ...]] = deque()  # level, text, arguments
        self._interrupts = Interrupts(
            self.machine.execution.current, self._poke_reader, self._interrupted
        )

    # -- the main thread

    def run(self) -> None:
        """Run tasks until told to stop."""
        self._interrupts.install()
        threading.Thread(target=self._read_for_ever, name="owndist-reader", daemon=True).start()
        failure = initialize(self._setup, self._decoder)
        if self.copied:
            end_copy()
        if failure is not None:
            # Before the pool is told to be broken: what the initializer put into a queue (a log,
            # as a rule) is sent by multiprocessing's finalizers.
            end_multiprocessing()
            self._say((m.INIT_FAILED, failure))
            self._wait_for_the_end()
            return
        current.here.worker = self
        self._say((m.ALIVE, os.getpid()))
        machine = self.machine
        while True:
            with self._lock:
                item = machine.take()
                if item is not None and item[1][0] == m.ENTRY:
                    self._bindings.due(*item)
                elif item is None:
                    if self._dropped:
                        self._forget_dropped()  # it may be all that keeps this process
                    self._flush()
                    if machine.execution.stopping and machine.may_leave():
                        break
                    self._main_waits = True
                elif len(machine.execution.queue) and not self._reader_ticks:
                    self._reader_ticks = True
                    self._signals.wake_reader()
            if item is None:
                self._wait_for_work()
                continue
            if item[1][0] == m.TASK:
                if self._bindings.replaced:
                    self._bindings.restore(item[0])
                self._run_task(*item)
            else:
                self._bindings.apply_due()
        self._leave()

    def _wait_for_work(self) -> None:
        for fd in self._signals.wait_main():
            self._receive(fd)
        self._main_waits = False
        if self.machine.cancelling.kill_at:
            self._poke_reader()  # which minds the time
        if self._judgements or self._completions:
            self._do_chores()

    def _run_task(self, owner: int, message: tuple[Any, ...]) -> None:
        _, task, attempt, function, _, args, slots, name, returns, _ = message
        self._tasks_begun += 1
        outermost = not self._nested
        if outermost and not self._record.start(execution_id(task, attempt), owner):
            self._start_if_spared(execution_id(task, attempt), owner)
        if owner == self.number and not self._decoder.has(function):
            self._decoder.define(function, self._encoder.definitions[function])
        begun = _now()
        deliver = None
        if returns is not None:
            from .deliveries import Deliveries

            deliver = Deliveries(self, task, attempt, name, returns).deliver
        outcome = call_task(self, owner, function, args, slots, name, deliver)
        del args, slots
        elapsed = _now() - begun
        status, value, futures, entries, buffers = outcome
        del outcome
        if futures:
            # They live until the owner is told of the result: it must not hear before that they
            # are needed no more.
            self.announce(futures)
        extent = extent_of(value) if type(value) is tuple else None
        if extent is None or not self.machine.running.is_told(extent_key(extent)):
            # A value that is passed on is kept by the arguments that it came with.
            buffers.clear()
        # Else it came with an earlier task, or as a future's value, and perhaps nothing keeps it
        # but our mapping. Were that to die now, the owner would hear of its end, or of the end of
        # that future, before it hears of the value. The reader tells of no extent that is mapped;
        # so nothing is said before the DONE.
        with self._lock:
            if self._interrupts.wanted:
                children = self._interrupts.end((owner, task, attempt))
                if children is not None:
                    self._feed(Interrupted((owner, task, attempt), children))
            mapped = tuple(self._store.mapped())
            self._feed(TaskEnded(task, attempt, status, value, elapsed, mapped, entries))
            futures.clear()
            if self._dropped:
                self._forget_dropped()
            if outermost:
                self._record.finish()
            if begun + elapsed - self._mailbox.since > _LINGER_NS:
                self._flush()

    def _start_if_spared(self, execution: int, owner: int) -> None:
        """The driver looks whether to kill this process for the sake of the task before this."""
        for _ in range(_SPARED_WITHIN_MS):
            time.sleep(0.001)
            if self._record.start(execution, owner):
                return
        os.kill(os.getpid(), signal.SIGKILL)  # somebody has killed the template before it did this

    def announce(self, futures: list[Future[Any]]) -> None:
        """The owners of the futures in a result hear who gets them, before that one does."""
        with self._lock:
            self._feed(Returning(tuple([future._object for future in futures])))
            self._flush()
        self._await_owners()

    def strike_if_due(self) -> None:
        """Raise if the running task is to be interrupted. No lock is held."""
        self._interrupts.strike_if_due()

    def _interrupted(self, execution: ExecutionKey, children: bool) -> None:
        """The running task is being interrupted: it submits nothing any more but to clean up."""
        with self._lock:
            self._feed(Interrupted(execution, children))
            self._flush()

    def _leave(self) -> None:
        """Told to stop: leave multiprocessing to run its finalizers and end the process."""
        with self._lock:
            self._flush()
            self._links.flush_for_good()

    def _wait_for_the_end(self) -> None:
        """Nothing can be run here; the driver will say when to go."""
        with self._lock:
            self._flush()
        while True:
            with self._lock:
                if self.machine.execution.stopping:
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
            deadline = self.machine.next_deadline()
            if deadline is not None:
                left = max(0.0, (deadline - _now()) / 1e9)
                timeout = left if timeout is None else min(timeout, left)
            readable = self._signals.wait_reader(self._interrupts.next_timeout(timeout))
            for fd in readable:
                self._receive(fd)
            with self._lock:
                self._forget_dropped()
                self._tell_unmapped()
                self._tell_missed()
                if deadline is not None and deadline <= _now():
                    self._feed(TimerDue())
                stuck = self._tasks_begun == seen and not self._main_waits
                seen = self._tasks_begun
                if self._reader_ticks and (stuck or self._main_waits):
                    # The task that runs now is long, or there is none: what is done goes out.
                    self._flush()
                    if not self.machine.execution.queue:
                        self._reader_ticks = False
                else:
                    self._links.flush()
                self._wake_main_if_due()
            self._interrupts.send_due()
            self._do_chores()
            if not readable and timeout == _TRIM_AFTER_S and self._main_waits:
                now = time.monotonic()
                if idle_since is not None and now - idle_since >= _TRIM_AFTER_S:
                    self._store.trim()
                idle_since = now
            else:
                idle_since = None

    def _receive(self, fd: int) -> None:
        """Take in what a link has. Either thread."""
        with self._lock:
            peer = self._links.by_fd.get(fd)
            if peer is None:
                return  # it was closed meanwhile
            messages, alive = peer.link.receive()
            if not alive and peer.number == DRIVER:
                # The driver is gone. Nobody waits for what runs here, and user threads or child
                # processes must not keep this process alive.
                os._exit(1)
            self._take_in(peer.number, messages)
            if self._missed:
                self._tell_missed()
            if not alive:
                self._links.close(peer)  # the driver tells how it ended
            if self._links.unflushed:
                self._links.flush()
            if self._awaiting:
                self._answered.notify_all()
            if self.machine.execution.credits:
                self.credit.notify_all()
            self._wake_main_if_due()
        if self._judgements or self._completions:
            self._do_chores()

    def _wake_main_if_due(self) -> None:
        """Lock held."""
        if self._main_waits and threading.get_ident() != self.main_thread:
            if self.machine.execution.queue or self.machine.may_leave():
                self._signals.wake_main()

    def _take_in(self, number: int, messages: list[tuple[Any, ...]]) -> None:
        """Lock held. Messages of a peer: some for the process itself, the rest for its machine."""
        rest: list[tuple[Any, ...]] = []
        for message in messages:
            code = message[0]
            if code == m.DEFINE:
                self._decoder.define(message[1], message[2])
            elif code == m.FORGET:
                if len(self._links.by_fd) == 1:  # else another owner may still count on them
                    self._decoder.forget(message[1])
            elif code == m.LINK:
                if not self._links.add(message[1]):
                    # What is meant for the other one could not be said. So this is the end: it is
                    # told to all, and what ran here runs again.
                    self._record.tell(
                        "It had no file descriptor left for a link to another worker."
                    )
                    os._exit(NO_DESCRIPTOR)
            elif code == m.SAID or code == m.GONE:
                # What it has sent by its own link comes before what was left in its record.
                self._hand_in(number, rest)
                rest = []
                other = self._links.by_number.get(message[1])
                if other is not None and other.link is not None:
                    self._take_in(message[1], other.link.receive()[0])
                if code == m.GONE:
                    self._links.forget(message[1])
                rest.append(message)
            else:
                rest.append(message)
        self._hand_in(number, rest)

    def _hand_in(self, number: int, messages: list[tuple[Any, ...]]) -> None:
        if not messages:
            return
        self._feed(Received(number, messages))
        for message in messages:
            if message[0] == m.OUTCOME and message[4]:
                # Before the value is loaded, which the running task may do at once.
                for owner, queued in self.machine.execution.queue:
                    if queued[0] == m.ENTRY and queued[1] in message[4]:
                        self._bindings.due(owner, queued)

    # -- commands, with the lock held

    def _feed(self, report: object) -> None:
        for command in self.machine.handle(report, _now()):
            kind = type(command)
            if kind is Send:
                self._mailbox.post(command.peer, command.message)  # type: ignore[union-attr]
            elif kind is Complete:
                self._outcome(command.object, command.status, command.value)  # type: ignore[union-attr]
            elif isinstance(command, Free):
                self._store.free(command.serial)
            elif isinstance(command, Spill):
                self._spiller.order(command)
            elif isinstance(command, Moved):
                self._store.choose(command.serial, command.taken)
            elif isinstance(command, CancelAnswered):
                for ticket in self._cancels.pop(command.task, ()):
                    ticket.answer(command.cancelled)
            elif isinstance(command, JudgeError):
                self._judgements.append(command)
            elif isinstance(command, LookFor):
                self._look_for(command)
            elif isinstance(command, CheckSegment):
                self._store.check_segment(command.segment)
            elif isinstance(command, Abandon):
                self._store.abandon(command.serial)
            elif isinstance(command, Log):
                self._logs.append((command.level, command.text, *command.args))
                self._poke_reader()
            elif isinstance(command, Interrupt):
                if command.force:
                    # The lock is held: it cannot have been reported, and no other one been taken.
                    os.kill(os.getpid(), signal.SIGKILL)
                self._interrupts.ask(command.execution, command.children)
            elif isinstance(command, Orphaned):
                self._flush()
                os._exit(ORPHANED)

    def _on_spilled(self, report: Spilled) -> None:
        """In the spiller's thread: a value has been copied to disk, or could not be."""
        with self._lock:
            self._feed(report)
            self._flush()

    def _flush(self) -> None:
        self._mailbox.flush()

    def _say(self, message: tuple[Any, ...]) -> None:
        with self._lock:
            self._mailbox.queue(message)
            self._mailbox.flush()

    # -- references and mappings

    def _poke_reader(self) -> None:
        self._signals.wake_reader()

    def _forget_dropped(self) -> None:
        """Lock held. Tell the machine of handles that are gone."""
        if self._dropped:
            dropped = []
            while self._dropped:
                dropped.append(self._dropped.popleft())
            self._feed(HandlesDropped(dropped))

    def _tell_unmapped(self) -> None:
        """Lock held. Tell of mappings that are gone."""
        gone = self._store.take_unmapped()
        if gone:
            still = set(self._store.mapped())
            told = [key for key in gone if key not in still]
            if told:
                self._feed(Unmapped(told))

    def _do_chores(self) -> None:
        """Complete futures, judge errors, log. The user's code runs here: no lock is held."""
        while self._logs:
            try:
                line = self._logs.popleft()
            except IndexError:
                break  # the other thread was faster
            _log.log(*line)
        while self._judgements:
            try:
                command = self._judgements.pop()
            except IndexError:
                break  # the other thread was faster
            retry = isinstance(exception_of((ERROR, command.error, "")), command.types)
            with self._lock:
                self._feed(ErrorJudged(command.task, command.attempt, retry))
                self._flush()
        while self._completions:
            try:
                future, status, value = self._completions.popleft()
            except IndexError:
                return
            future._complete(status, value)


__all__ = ["ORPHANED", "Worker", "worker_main"]
