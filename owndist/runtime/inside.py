"""A worker process as its tasks see it: loading and storing values, submitting, and waiting.

What `current_executor` gives a task leads here.
"""

from __future__ import annotations

import os
import socket
import threading
from abc import abstractmethod
from collections.abc import Callable, Container
from typing import TYPE_CHECKING, Any

from ..core.ids import Ref
from ..core.machine import Machine
from ..core.reports import Spilled
from ..core.values import INLINE_LIMIT, extent_key
from ..store.ledger import Ledger
from ..store.local import Store
from ..transport.link import Link
from ..wire import namespace
from ..wire.functions import Decoder, Encoder
from .bindings import Bindings
from .change import Change
from .courier import Courier
from .crash_record import CrashRecord
from .helping import Waiting
from .links import Links
from .process import DROPPED_BATCH
from .setup import ROOM_WAIT_S, WorkerSetup
from .spiller import Spiller
from .ticket import Ticket
from .wakeups import Wakeups

if TYPE_CHECKING:
    from ..core.listing import Row
    from .backpressure import Gate

# How long `cancel` waits for another worker's word on whether a task has started. Seconds.
_CANCEL_WAIT_S = 1.0


class Inside(Waiting):
    """Machine, store and links of a worker, and what its tasks may call."""

    def __init__(self, number: int, link_fd: int, record_fd: int, setup: WorkerSetup) -> None:
        super().__init__(number, Machine(number))
        self.machine.references.lineage.limit_bytes = setup.lineage_bytes
        self.pid = os.getpid()
        os.register_at_fork(after_in_child=self._let_go_in_child)
        self._setup = setup
        self.credit = threading.Condition(self._lock)  # for the running task, if it is a stream's
        self._record = CrashRecord(record_fd)
        self._decoder = Decoder()
        self._bindings = Bindings(self._decoder, self.future_for)
        self._signals = Wakeups()
        self._links = Links(
            Link(socket.socket(fileno=link_fd), takes_fds=True), self._signals, self._make_courier
        )
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
        self._spiller = Spiller(self._store, self._on_spilled)
        self._change = Change(self._poke_reader)
        self._has_encoder = False
        self._answered = threading.Condition(self._lock)  # owners have answered
        self._awaiting = 0  # threads that wait for that

    # -- what the threads do

    @abstractmethod
    def _poke_reader(self) -> None:
        """Have the reader thread look at everything soon."""

    @abstractmethod
    def _on_spilled(self, report: Spilled) -> None:
        """In the spiller's thread: a value has been copied to disk, or could not be."""

    # -- as an owner

    def _let_go_in_child(self) -> None:
        """In a process that a task has forked: it is no worker."""
        self.copied = True
        self._has_encoder = False  # see `_ready`

    def _ready(self) -> None:
        if not self._has_encoder:
            if self.copied:
                raise RuntimeError(
                    "this executor belongs to the process that this one was forked from; "
                    "make another one here"
                )
            with self._lock:
                self._make_encoder()

    def _make_encoder(self) -> None:
        """Lock held."""
        if not self._has_encoder:
            inherits = self._setup.method == "fork"
            self._encoder = Encoder(namespace.here.inherited if inherits else None)
            self._has_encoder = True

    def _make_courier(self) -> Courier:
        self._make_encoder()
        return Courier(self._encoder, set(), {})

    def _wait_at_gate(self, gate: Gate) -> None:
        """A task's executor has no gate: what it submits, it will wait for itself."""

    def _after_submission(self) -> None:
        self._links.flush()

    def _wake_if_needed(self) -> None:
        self._poke_reader()

    def _wake(self) -> None:
        self._poke_reader()

    def _is_over(self) -> bool:
        return False

    def _is_ours(self) -> bool:
        return os.getpid() == self.pid

    def _await_answer(self, ticket: Ticket) -> None:
        assert ticket.answered is not None
        ticket.answered.wait(_CANCEL_WAIT_S)

    def _tell_forgotten(self, kept: Container[int]) -> None:
        self._links.tell_forgotten(kept)

    def _await_owners(self) -> None:
        unanswered = self.machine.borrowing.unanswered
        if unanswered:
            with self._answered:
                self._awaiting += 1
                try:
                    self._answered.wait_for(lambda: not unanswered)
                finally:
                    self._awaiting -= 1

    def note_dropped(self, object_id: Ref, stored: bool) -> None:
        """A future was collected. Any thread, any time: only append."""
        self._dropped.append(object_id)
        if stored or not len(self._dropped) % DROPPED_BATCH:
            self._poke_reader()

    def is_running(self, object_id: Ref) -> bool:
        """Whether a worker has started the task; of what others own it is not known here."""
        with self._lock:
            task = self.machine.submission.task_of(object_id)  # type: ignore[arg-type]
            if task is None or task.worker is None:
                return False
            return bool(next(iter(task.worker.queue), None) == task.id)

    # -- what user code needs

    def load_argument(self, value: Any, lender: int) -> Any:
        """The object that an argument's value stands for."""
        if self._bindings.waiting or self._bindings.at_work:
            self._bindings.apply_due()
        if type(value) is bytes:
            return self._load(value, (), lender)
        if type(value[0]) is tuple:
            mapping, head, views = self._store.read(value)
            try:
                return self._load(head, views, lender)
            finally:
                del mapping, head, views
        # Inline buffers are copied, so that what is made of them can be written to.
        return self._load(value[0], [bytearray(part) for part in value[1]], lender)

    def load(self, ref: Ref, value: Any, lender: int | None = None) -> Any:
        """The object that a future's value stands for."""
        self._bindings.apply_due()
        return super().load(ref, value, lender)

    def store_result(self, head: bytes, buffers: list[Any], size: int) -> Any:
        """A result's parts as a value: inline if small, else in shared memory."""
        if size <= INLINE_LIMIT:
            if not buffers:
                return head
            return head, tuple([bytes(part.raw()) for part in buffers])
        same = self._store.alias(head, buffers)
        if same is not None:
            with self._lock:
                if self.machine.running.may_pass_on(extent_key(same[0])):
                    return same
        return self._store.write(head, buffers)

    def function(self, key: int, lender: int) -> Callable[..., Any]:
        """The function of a definition."""
        return self._decoder.function(key, lambda address: self.future_for(address, lender))

    # -- as the executor of a task

    def ask_close(self) -> None:
        """A task's executor is the driver's, and stays."""

    def list_objects(self) -> tuple[list[Row], dict[int, int]]:
        """For `OwnershipExecutor.references`: the objects, and {process: pid}."""
        from ..core.listing import list_objects

        with self._lock:
            return list_objects(self.machine), {self.number: self.pid}

    def counters(self) -> dict[str, int]:
        """Figures for `OwnershipExecutor.statistics`, of this worker as an owner."""
        with self._lock:
            submission = self.machine.submission
            sent, received = self._links.traffic()
            return {
                "tasks_submitted": submission.submitted,
                "tasks_finished": submission.finished,
                "tasks_failed": submission.failed,
                "tasks_cancelled": submission.cancelled,
                "tasks_retried": submission.retried,
                "tasks_recomputed": self.machine.recovery.recomputed,
                "workers": len(self.machine.leases.workers),
                "workers_died": 0,
                "bytes_sent": sent,
                "bytes_received": received,
                "bytes_mapped": self._bytes_mapped,
                "bytes_put": self._bytes_put,
                **self.machine.spilling.figures(),
            }

    def describe(self) -> str:
        """The state in words."""
        return f"in a task: {len(self.machine.submission.tasks)} tasks of its own pending"

    def abort(self, text: str, signum: int = 0) -> None:
        """Not for a task to do."""
        raise RuntimeError("a task cannot end the workers of the executor that runs it")

    def shutdown(self, wait: bool, cancel_futures: bool) -> None:
        """Not for a task to do."""
        raise RuntimeError("a task cannot shut down the executor that runs it")
