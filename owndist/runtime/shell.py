"""The machine of a driver, and what carries out its commands.

One lock guards the machine and all that belongs to it. Whoever feeds the machine, any thread, holds
the lock and carries out what it asks for: handing that to another thread would make a task wait
until the interpreter switches threads, up to 5 ms, while the submitting thread computes.

Everything that comes back is read by the reader thread, which also completes the futures and runs
their callbacks, one after the other, as the standard library's executor does. Nothing of the
user's ever runs with the lock held.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any

from ..core.commands import (
    Abandon,
    CancelAnswered,
    CheckSegment,
    Command,
    Complete,
    Delivered,
    Drained,
    Free,
    JudgeError,
    Kill,
    KillIfRunning,
    Log,
    LookAgain,
    LookFor,
    Moved,
    Send,
    Spawn,
    Spill,
    SweepDead,
    Unlink,
)
from ..core.ids import DRIVER
from ..core.machine import Machine
from ..core.reports import (
    Aborted,
    ErrorJudged,
    HandlesDropped,
    LookedAgain,
    MemoryShort,
    ShutdownAsked,
    Spilled,
    StreamsCut,
    TimerDue,
    Unmapped,
    WorkerEnded,
)
from ..core.values import (
    BROKEN,
    ERROR,
    FAILED,
)
from ..futures import Future
from ..wire.failures import exception_of
from .change import Change
from .launch import Launched, launch
from .owner import Owner
from .parts import make_parts
from .spiller import Spiller
from .template import NOT_STARTED

if TYPE_CHECKING:
    from .memory_watch import MemoryWatch

_log = logging.getLogger("owndist.driver")
_workers_log = logging.getLogger("owndist.workers")
# Silent unless the application sets logging up: without any handler, Python prints warnings.
logging.getLogger("owndist").addHandler(logging.NullHandler())

# When workers take longer to end after their last task (user threads, finalizers), that is said.
# It is waited for, as the standard library does. Seconds.
_PATIENCE_S = 5.0

# How often it is tried again to make what there were no descriptors for. Seconds.
_RETRY_S = 0.1

_now = time.monotonic_ns


class Shell(Owner):
    """The machine of a driver, with all that it needs to act.

    Args:
        max_workers: how many workers at most.
        method: "fork", "forkserver" or "spawn".
        initializer, initargs: run in every worker before its first task.
        max_tasks_per_child: after so many tasks a worker is replaced.
        store_bytes: how much shared memory all values may take; None to choose.
        max_pending_tasks, max_pending_bytes: beyond them `submit` waits; None for any amount.
        worker_memory_bytes: how much memory all workers may use; None for any amount.
        lineage_bytes: the limit of what is kept to compute lost values again.
        max_retries: of tasks that tasks submit.
    """

    def __init__(
        self,
        max_workers: int,
        method: str,
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
        max_tasks_per_child: int | None,
        store_bytes: int | None,
        max_pending_tasks: int | None,
        max_pending_bytes: int | None,
        worker_memory_bytes: int | None,
        lineage_bytes: int,
        max_retries: int,
    ) -> None:
        super().__init__(DRIVER, Machine(DRIVER, max_workers, max_tasks_per_child))
        self.pid = os.getpid()
        self.ended = threading.Event()  # nothing of the executor is left
        self._answered = threading.Condition(self._lock)  # owners have answered
        self._awaiting = 0  # threads that wait for that
        self._max_workers = max_workers
        self._method = method
        self._initializer = initializer
        self._initargs = initargs
        self._store_bytes = store_bytes
        self._max_retries = max_retries
        self._worker_memory_bytes = worker_memory_bytes
        self._watch: MemoryWatch | None = None
        self.machine.references.lineage.limit_bytes = lineage_bytes
        if max_pending_tasks is not None or max_pending_bytes is not None:
            from .backpressure import Gate

            self._gate = Gate(self._lock, self.machine, max_pending_tasks, max_pending_bytes)
        self._started = False  # there are the `Parts`
        self._since_read = 0  # submissions
        # What the reader is to do; appended to by anyone, without the lock.
        self._callbacks: deque[Future[Any]] = deque()  # futures that are done and have some
        self._logs: deque[tuple[Any, ...]] = deque()  # level, text, arguments
        self._change = Change(self._wake)
        self._unspawned: deque[tuple[int, str]] = deque()  # workers that could not be started
        self._deadline: int | None = None  # what the reader waits for; the machine's, in ns
        # Ending, in this order: asked for; every task done; workers gone (`ended`).
        self._close_asked = False
        self._open_runs = 0  # batched maps that may still submit; closing waits for them
        self._is_short = False  # links or a template are to be made, and could not be
        self._look_again = False  # all links are to be read
        self._drained = False
        self._remark_at: float | None = None
        self._aborted = False
        _all.add(self)

    # -- starting

    def start(self, launched: Launched) -> None:
        """Make all that tasks need beside the template process: the first one is here.

        Args:
            launched: is undone if this raises.
        """
        with self._lock:
            self._start(launched)

    def _start(self, launched: Launched | None = None) -> None:
        """Lock held. As `start`; without `launched`, the template process is made, too."""
        register: Any = threading._register_atexit  # type: ignore[attr-defined]
        try:
            register(_exit_hook(self))
        except RuntimeError:
            if launched is not None:
                launched.undo()
            text = "cannot schedule new futures after interpreter shutdown"
            raise RuntimeError(text) from None
        # A Ctrl-C in the middle waits until all is there, or undone.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            if launched is None:
                launched = launch(
                    self._max_workers,
                    self._method,
                    self._initializer,
                    self._initargs,
                    self._store_bytes,
                    self.machine.references.lineage.limit_bytes,
                    self._max_retries,
                )
            self.machine.spilling.set_limit(launched.store_bytes)
            self._parts = parts = make_parts(self, self._feed, self._log_later, launched)
            self._encoder, self._store = parts.encoder, parts.store
            self._pool, self._reader = parts.pool, parts.reader
            self._spiller = Spiller(parts.store, self._on_spilled)
            if self._worker_memory_bytes is not None:
                from .memory_watch import MemoryWatch

                limit = self._worker_memory_bytes
                self._watch = MemoryWatch(limit, self._pool.pids, self._on_memory_short)
            self._started = True
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    # -- the machine's commands, with the lock held

    def _feed(self, report: object) -> None:
        for command in self.machine.handle(report, _now()):
            kind = type(command)
            if kind is Send:
                self._pool.post(command.peer, command.message)  # type: ignore[union-attr]
            elif kind is Delivered:
                self.streams.deliver(command)  # type: ignore[arg-type]
            elif kind is Complete:
                self._outcome(command.object, command.status, command.value)  # type: ignore[union-attr]
            else:
                self._perform(command)
        deadline = self.machine.next_deadline()
        if deadline is not None and (self._deadline is None or deadline < self._deadline):
            self._deadline = deadline
            self._reader.poke()

    def _perform(self, command: Command) -> None:
        if isinstance(command, Free):
            self._store.free(command.serial)
        elif isinstance(command, Abandon):
            self._store.abandon(command.serial)
        elif isinstance(command, Spawn):
            try:
                self._pool.spawn(command.worker)
            except OSError as error:
                # No descriptors, or no memory. To the machine it is a worker that ended at once.
                self._unspawned.append((command.worker, f"it could not be started: {error}"))
                self._reader.poke()
        elif isinstance(command, CancelAnswered):
            for ticket in self._cancels.pop(command.task, ()):
                ticket.answer(command.cancelled)
        elif isinstance(command, JudgeError):
            self._judgements.append(command)
            self._reader.poke()
        elif isinstance(command, Unlink):
            self._pool.unlink(command.segment)
        elif isinstance(command, Spill):
            self._spiller.order(command)
        elif isinstance(command, Moved):
            self._store.choose(command.serial, command.taken)
        elif isinstance(command, LookFor):
            self._look_for(command)
        elif isinstance(command, CheckSegment):
            self._store.check_segment(command.segment)
        elif isinstance(command, SweepDead):
            self._pool.sweep(command.worker, command.keep)
        elif isinstance(command, Kill):
            self._pool.kill(command.worker)
        elif isinstance(command, KillIfRunning):
            self._pool.kill_if_running(command.worker, command.owner, command.execution)
        elif isinstance(command, Log):
            self._log_later(command.level, command.text, command.args)
        elif isinstance(command, LookAgain):
            # Not at once: one of them may be in the middle of being read.
            self._look_again = True
            self._reader.poke()
        elif isinstance(command, Drained):
            self._drained = True
            self._remark_at = time.monotonic() + _PATIENCE_S
            self._reader.poke()

    def _on_spilled(self, report: Spilled) -> None:
        """In the spiller's thread: a value has been copied to disk, or could not be."""
        with self._lock:
            self._feed(report)
            self._pool.flush()

    def _wake(self) -> None:
        self._reader.poke()

    def _flush(self) -> None:
        self._pool.flush()

    def _is_over(self) -> bool:
        return self.ended.is_set()

    def _on_memory_short(self, used: int) -> None:
        """In the watch's thread."""
        with self._lock:
            if not self.ended.is_set() and not self._change.halfway:
                self._feed(MemoryShort(used, self._worker_memory_bytes or 0))
                self._pool.flush()
        self._reader.poke()

    def _log_later(self, level: int, text: str, args: tuple[Any, ...]) -> None:
        """Lock held. Handlers are the user's code, and may ask us things: not under the lock."""
        self._logs.append((level, text, *args))
        self._reader.poke()

    # -- what the reader calls

    def next_timeout(self) -> float | None:
        """Seconds until there is something to do without an input."""
        timeout = None
        if self._deadline is not None:
            timeout = max(0.0, (self._deadline - _now()) / 1e9)
        if self._remark_at is not None:
            left = max(0.0, self._remark_at - time.monotonic())
            timeout = left if timeout is None else min(left, timeout)
        if self._is_short:
            timeout = _RETRY_S if timeout is None else min(_RETRY_S, timeout)
        return timeout

    def on_ready(self, data: object, events: int) -> None:
        """A link or the template has something."""
        with self._lock:
            self._pool.on_ready(data, events)
            if self._pool.unflushed:
                self._pool.flush()
            if self._awaiting:
                self._answered.notify_all()

    def end_burst(self) -> None:
        """Nothing more is submitted for now: send what waits for company, let the reader read."""
        with self._lock:
            self._reader.clear_burst()
            if not self.ended.is_set():
                self._pool.flush()

    def do_chores(self, nested: bool) -> bool:
        """What others have left for the reader to do. True: the executor has ended.

        Args:
            nested: a callback is running; others wait until it returns.
        """
        with self._lock:
            self._catch_up()
            if self._pool.unflushed:
                self._pool.flush()
        if self._gate is not None:
            self._gate.look_again()
        while self._logs:
            _workers_log.log(*self._logs.popleft())
        while self._judgements:
            self._judge(self._judgements.popleft())
        while self._completions:
            future, status, value = self._completions[0]  # see `_release_conditions`
            if future._settle(status, value):
                self._callbacks.append(future)
            self._completions.popleft()
            if "_callback" in future.__dict__:
                future._run_then()
            del future, value  # or they would live until the next round
        if nested:
            return False
        while self._callbacks:
            self._callbacks.popleft()._run_callbacks()
        if not self._drained or self._pool.processes or self._completions:
            return False
        self._finish()
        return True

    def _catch_up(self) -> None:
        self._change.check()
        if self._dropped:
            dropped: list[Any] = []
            while self._dropped:
                dropped.append(self._dropped.popleft())
            self._feed(HandlesDropped(dropped))
        self._tell_missed()
        self.streams.catch_up()
        gone = self._store.take_unmapped()
        if gone:
            still = frozenset(self._store.mapped())
            self._feed(Unmapped([key for key in gone if key not in still]))
        while self._unspawned:
            number, reason = self._unspawned.popleft()
            self._feed(WorkerEnded(number, 0, None, NOT_STARTED, reason))
        if self._deadline is not None and self._deadline <= _now():
            self._feed(TimerDue())
        self._deadline = self.machine.next_deadline()
        self._pool.make_late()
        self._is_short = self._pool.is_short
        if self._close_asked and not self.machine.closing and not self._open_runs:
            self._feed(ShutdownAsked(False))
        while self._look_again:
            self._look_again = False
            self._pool.read_all()
            self._feed(LookedAgain())
        if self._remark_at is not None and time.monotonic() >= self._remark_at:
            if self._aborted:
                self._pool.kill_all(signal.SIGKILL)  # whatever has become of the first one
                self._remark_at = time.monotonic() + _PATIENCE_S
            else:
                self._pool.tell_of_laggards()
                self._remark_at = None

    def _judge(self, command: JudgeError) -> None:
        retry = isinstance(exception_of((ERROR, command.error, "")), command.types)
        with self._lock:
            self._feed(ErrorJudged(command.task, command.attempt, retry))
            self._pool.flush()

    def reader_failed(self, error: BaseException) -> None:
        """A bug. Nobody may wait for ever because of it."""
        _log.critical("the reader thread failed; the executor is broken", exc_info=error)
        text = f"owndist has failed internally: {type(error).__name__}: {error}"
        if isinstance(error, BrokenProcessPool):
            text = str(error)
        failure = (BROKEN, (text, None), "")
        self.machine.closing = True
        self.machine.broken = failure
        while self._completions:
            future, status, value = self._completions.popleft()
            future._complete(status, value)
        for future in list(self._pending.values()):
            future._complete(FAILED, failure)
        with self._lock:
            self._pool.kill_all(signal.SIGKILL)
        self._finish()

    # -- ending

    def ask_close(self) -> None:
        """Take no more work, and end when all is done. Any thread, any time: it only notes."""
        self._close_asked = True
        if self._started:
            self._reader.poke()
        else:
            self.ended.set()

    def shutdown(self, wait: bool, cancel_futures: bool) -> None:
        """See `OwnershipExecutor.shutdown`."""
        if os.getpid() != self.pid or self._never_started():
            return
        with self._lock:
            if not self.ended.is_set():
                self._close_asked = True
                self._release_conditions()
                if not self._change.halfway and (cancel_futures or not self._open_runs):
                    self._feed(ShutdownAsked(cancel_futures))
                if wait and not self._change.halfway:
                    # Or it would wait for whoever takes their values, which may be the caller.
                    self._feed(StreamsCut())
                    self._pool.flush()
        self._reader.poke()
        if wait and not self._reader.is_current():
            try:
                self.ended.wait()
                self._reader.join()
            except BaseException:
                # Ctrl-C while waiting: whoever presses it does not want to wait any more.
                self.abort("the executor was interrupted while it shut down")
                raise

    def abort(self, text: str, signum: int = signal.SIGKILL) -> None:
        """End now: queued tasks are cancelled, running ones fail, workers get a signal."""
        if os.getpid() != self.pid or self._never_started():
            return
        with self._lock:
            if self.ended.is_set():
                return
            self._aborted = True
            self._release_conditions()
            if not self._change.halfway:
                self._feed(Aborted(text))
                self._pool.flush()
            # Else the reader finds it so, and fails all that is pending.
            self._pool.kill_all(signum)
        self._reader.poke()

    def _release_conditions(self) -> None:
        """Lock held. Unlock the conditions of unsettled futures that the calling thread has.

        The standard library's `wait` and `as_completed` lock those of all their futures one after
        the other. A Ctrl-C in the middle leaves them locked, and the reader waits for ever.
        """
        for future in [*self._pending.values(), *(item[0] for item in tuple(self._completions))]:
            future._unlock()

    def _never_started(self) -> bool:
        """Whether nothing was ever submitted; then it ends here."""
        with self._lock:
            if not self._started:
                self.machine.closing = True
                self.ended.set()
            return not self._started

    def _finish(self) -> None:
        """Every task is done and every worker gone: let go of all the rest."""
        self._spiller.close()
        if self._watch is not None:
            self._watch.close()
        if self._gate is not None:
            self._gate.look_again()
        with self._lock:
            self._detach_futures()
            self._parts.close()
            # What the user gave us is not kept any longer than it is needed.
            self._initializer, self._initargs = None, ()
            self.ended.set()
            self._answered.notify_all()

    def _detach_futures(self) -> None:
        """Lock held. The store is about to close: see that futures can still get their values."""

    # -- looking

    def describe(self) -> str:
        """The state in words."""
        if self.pid != os.getpid():
            return "of another process"
        if not self._started or self.ended.is_set():
            return "shut down" if self.ended.is_set() else "no workers yet"
        if self.machine.broken is not None:
            return "broken"
        tasks = len(self.machine.submission.tasks)
        closing = "shutting down, " if self._close_asked else ""
        return (
            f"{closing}{tasks} tasks pending, {len(self._pool.processes)} of "
            f"{self._max_workers} workers"
        )

    def let_go_in_child(self) -> None:
        """In a process forked from the driver: nothing here is ours."""
        if self.pid == -1 or self.ended.is_set():
            return  # a worker is forked from a template that has done this already
        self.pid = -1
        if self._started:
            self._parts.let_go()


def _exit_hook(driver: Shell) -> Callable[[], None]:
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


# For the hook below only: which drivers' descriptors a forked child must close.
_all: weakref.WeakSet[Shell] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for driver in list(_all):
        driver.let_go_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
