"""The peer in the driver process: submitting tasks, and answering their futures."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Container
from typing import TYPE_CHECKING, Any

from ..core.ids import DRIVER
from ..core.values import extent_of
from ..futures import Future, Unreadable
from ..wire.failures import exception_of
from ..wire.pickling import loads
from .process import DROPPED_BATCH
from .shell import Shell
from .ticket import Ticket

if TYPE_CHECKING:
    from ..core.listing import Row
    from .backpressure import Gate

# Every so many submissions the submitting thread reads what the workers have sent, so that they
# do not run dry while a busy interpreter keeps the reader waiting. At about 10 µs a submission
# that is every 0.3 ms, a tenth of what workers hold.
_READ_EVERY = 32

# During a burst, tasks for workers that are busy are sent so many at a time: the system call costs
# as much as all the rest of a submission.
_SEND_EVERY = 16

# How long `cancel` waits for a worker's word on whether the task has started. Seconds. It answers
# within milliseconds, unless its interpreter is held by a call into C.
_CANCEL_WAIT_S = 1.0

_now = time.monotonic_ns


class Driver(Shell):
    """What the executor and its futures call. Any thread may."""

    # -- tasks and values

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

    def _wait_at_gate(self, gate: Gate) -> None:
        if not self._reader.is_current():  # a callback: nothing would end while it waits
            gate.wait(self.end_burst)

    def _after_submission(self) -> None:
        self._since_read += 1
        if self._since_read >= _READ_EVERY:
            self._since_read = 0
            self._pool.read_all()
            # Who waits for each task before the next one submits no burst, and the reader, in which
            # callbacks run, would put itself to sleep.
            if len(self.machine.submission.tasks) >= _SEND_EVERY and not self._reader.is_current():
                self._reader.note_reading(_now())
        pool, submission = self._pool, self.machine.submission
        if pool.unflushed and (
            submission.sent_to_idle
            or not self._reader.burst_until
            or not self._since_read % _SEND_EVERY
        ):
            submission.sent_to_idle = False
            pool.flush()

    def _wake_if_needed(self) -> None:
        self._reader.poke()

    def _tell_forgotten(self, kept: Container[int]) -> None:
        self._pool.forget(kept)

    def _await_owners(self) -> None:
        unanswered = self.machine.borrowing.unanswered
        if self._reader.is_current():
            self._reader.pump(lambda: not unanswered, None)
            return
        with self._answered:
            self._awaiting += 1
            try:
                self._answered.wait_for(lambda: not unanswered or self.ended.is_set())
            finally:
                self._awaiting -= 1

    # -- futures

    def _await_answer(self, ticket: Ticket) -> None:
        assert ticket.answered is not None
        if self._reader.is_current():
            self._reader.pump(ticket.answered.is_set, _CANCEL_WAIT_S)
        else:
            ticket.answered.wait(_CANCEL_WAIT_S)

    def _is_ours(self) -> bool:
        return os.getpid() == self.pid

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
            if self._reader.burst_until:
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

    def note_dropped(self, object_id: Any, stored: bool) -> None:
        """A future was collected. Any thread, any time, any lock held."""
        self._dropped.append(object_id)
        # Shared memory waits for it. The rest can wait for the next input, but not without end: a
        # program that has dropped all its futures may have no more input for a long time.
        if stored or not len(self._dropped) % DROPPED_BATCH:
            self._reader.poke()

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
            # Somebody has removed its segment, or there are no descriptors. That is for the one who
            # asks for the value.
            lost = Unreadable(error) if isinstance(error, OSError) else error

            def fail() -> Any:
                raise lost

            return fail

        def load() -> Any:
            return loads(head, views, self.future_for)

        load.mapping = mapping  # type: ignore[attr-defined]
        return load

    def make_waiters(self, future: Future[Any], asleep: bool) -> list[Any]:
        """The list of those who wait for a future, or of its callbacks."""
        if asleep and self._reader.burst_until and self._is_ours():
            self.end_burst()  # who waits submits nothing
        return []

    # -- looking

    def counters(self) -> dict[str, int]:
        """Figures for `OwnershipExecutor.statistics`."""
        sent = received = workers = 0
        with self._lock:
            if self._started:
                if not self.ended.is_set():
                    self._catch_up()
                    self._pool.flush()
                sent, received = self._pool.traffic()
                workers = len(self._pool.processes)
            submission = self.machine.submission
            return {
                "tasks_submitted": submission.submitted,
                "tasks_finished": submission.finished,
                "tasks_failed": submission.failed,
                "tasks_cancelled": submission.cancelled,
                "tasks_retried": submission.retried,
                "tasks_recomputed": self.machine.recovery.recomputed,
                "workers": workers,
                "workers_died": self.machine.workers_died,
                "bytes_sent": sent,
                "bytes_received": received,
                "bytes_mapped": self._bytes_mapped,
                "bytes_put": self._bytes_put,
                **self.machine.spilling.figures(),
            }

    def list_objects(self) -> tuple[list[Row], dict[int, int]]:
        """For `OwnershipExecutor.references`: the objects, and {process: pid}."""
        from ..core.listing import list_objects

        with self._lock:
            if self._started and not self.ended.is_set():
                self._pool.read_all()  # who borrows has said so
                self._catch_up()
                self._pool.flush()
            processes = self.machine.lessor.processes
            pids = {number: p.pid for number, p in processes.items() if p.pid is not None}
            return list_objects(self.machine), {**pids, DRIVER: self.pid}

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
