"""What every process that submits tasks is: its tables, and what differs between the two kinds."""

from __future__ import annotations

import threading
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Container
from typing import TYPE_CHECKING, Any

from ..core.commands import JudgeError, LookFor
from ..core.ids import Address, Ref
from ..core.machine import Machine
from ..core.reports import ValueLost
from ..futures import Future
from ..settled import SettledCondition
from ..store.local import Store
from ..wire.functions import Encoder
from .change import Change
from .streams import Streams
from .ticket import Ticket

if TYPE_CHECKING:
    from .backpressure import Gate

# When so many definitions of functions have piled up, those that nobody needs are forgotten. A
# definition is about a kilobyte, here and in every worker.
FORGET_AT = 10_000

# When so many futures have been collected, the machine is told, though nothing else happens: an
# object without memory of its own takes 0.7 KB, and up to 100 KiB with its value.
DROPPED_BATCH = 256


class Process(ABC):
    """The driver, or a worker.

    Args:
        number: the number of this process.
        machine: its protocol state.
    """

    _encoder: Encoder
    _store: Store
    _change: Change

    def __init__(self, number: int, machine: Machine) -> None:
        self.number = number
        self.machine = machine
        self.settled = SettledCondition()  # see `Future`
        # Guards the machine, the links and all tables below.
        self._lock = threading.Lock()
        self._last_id = 0
        self._forget_at = FORGET_AT  # definitions; see `_forget_definitions`
        self._pending: dict[Ref, Future[Any]] = {}  # own futures to come; keeps them alive
        # Futures for what others own, as long as the user keeps them.
        self._borrowed: weakref.WeakValueDictionary[Address, Future[Any]] = (
            weakref.WeakValueDictionary()
        )
        self._stored: weakref.WeakValueDictionary[Ref, Future[Any]] = (
            weakref.WeakValueDictionary()
        )  # futures with values in shared memory
        # {object whose value was lost: a future for it that is to come}
        self._recovering: dict[Ref, Future[Any]] = {}
        # What is to be done without the lock; appended to by anyone.
        self._completions: deque[tuple[Future[Any], int, Any]] = deque()
        self._judgements: deque[JudgeError] = deque()
        self._dropped: deque[Ref] = deque()
        self._missed: deque[ValueLost] = deque()  # see `_look_for`
        self._cancels: dict[int, list[Ticket]] = {}
        self._gate: Gate | None = None  # where `submit` waits while too much is pending
        self.streams = Streams(self)
        self._bytes_mapped = self._bytes_put = 0

    @abstractmethod
    def _ready(self) -> None:
        """Check that work can be taken, and make what is needed if this is the first."""

    @abstractmethod
    def _feed(self, report: object) -> None:
        """Lock held. Take a report to the machine, and carry out its commands."""

    def _look_for(self, command: LookFor) -> None:
        """Lock held. Is the memory of a value there? What is not is told after the commands."""
        from ..store.segments import is_there

        if not is_there(command.segment):
            self._missed.append(ValueLost(command.object, command.extent, command.segment))
            self._wake()

    def _tell_missed(self) -> None:
        """Lock held."""
        while self._missed:
            self._feed(self._missed.popleft())

    @abstractmethod
    def _flush(self) -> None:
        """Lock held. Send what was posted."""

    @abstractmethod
    def _after_submission(self) -> None:
        """Lock held. A task has been submitted: is anything to be read or sent?"""

    @abstractmethod
    def _wake_if_needed(self) -> None:
        """Something may have been left to whoever completes futures."""

    @abstractmethod
    def _wake(self) -> None:
        """Have what was left to others done soon."""

    @abstractmethod
    def _is_over(self) -> bool:
        """Lock held. Whether the store has closed."""

    @abstractmethod
    def _is_ours(self) -> bool:
        """Whether this is the process that the executor belongs to, and no child of it."""

    @abstractmethod
    def _await_answer(self, ticket: Ticket) -> None:
        """Wait for the word of a worker on whether it has started a task; not for ever."""

    @abstractmethod
    def _tell_forgotten(self, kept: Container[int]) -> None:
        """Lock held. Have executors drop all definitions but these."""

    @abstractmethod
    def wait_for(self, future: Future[Any], timeout: float | None) -> None:
        """Wait for a future."""

    @abstractmethod
    def is_running(self, object_id: Ref) -> bool:
        """Whether a worker has started the task, as far as is known here."""

    @abstractmethod
    def note_dropped(self, object_id: Ref, stored: bool) -> None:
        """A future was collected. Any thread, any time, any lock held."""

    @abstractmethod
    def make_waiters(self, future: Future[Any], asleep: bool) -> list[Any]:
        """The list through which `wait` and `as_completed` wait for a future, or of its callbacks.

        Args:
            asleep: it is the first: the calling thread is about to wait.
        """

    @abstractmethod
    def _wait_at_gate(self, gate: Gate) -> None:
        """Wait until there is room for one more task."""

    @abstractmethod
    def _await_owners(self) -> None:
        """Wait until the owners of borrowed futures know that they are borrowed."""
