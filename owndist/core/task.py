"""One submitted task. A task is

    WAITING   some argument is still to come     (found in the `dependents` of those entries)
    READY     it may run                         (in `ready`, unless cancelled meanwhile)
    SENT      a worker has it                    (in that worker's `queue`)
    JUDGING   it raised; is that to be retried?  (nowhere but in `tasks`)
    STOPPING  it is cancelled, and a worker still has it: see `cancelling`  (in its `queue`)
    OVER      it has its outcome                 (no longer in `tasks`)

`ready`, `queue` and `tasks` are those of `submission` and `leasing`; `tasks` holds all but those
that are OVER.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .ids import ExecutionKey
from .reports import Submitted
from .values import Failure

if TYPE_CHECKING:
    from .leasing import Worker
    from .returns import Returns

T_WAITING, T_READY, T_SENT, T_JUDGING, T_STOPPING, T_OVER = range(6)


class Task:
    """One submitted task, until it has its outcome."""

    __slots__ = (
        "args",
        "attempt",
        "cancel_asked",
        "charged",
        "cost_ns",
        "entries",
        "failure",
        "function",
        "id",
        "judged",
        "max_retries",
        "name",
        "nested",
        "parent",
        "returns",
        "slots",
        "state",
        "waiting",
        "wanted",
        "worker",
    )

    def __init__(self, report: Submitted) -> None:
        self.id = report.task
        self.function = report.function
        self.entries = report.entries
        self.args = report.args
        self.slots = report.slots
        self.nested = report.nested
        self.name = report.name
        self.max_retries = report.max_retries
        self.judged = report.judged
        self.state = T_READY
        self.attempt = 0  # counts dispatches: what comes back with another number is stale
        self.charged = 0  # executions that ended in a death or a retried error
        self.waiting = 0  # slots whose objects are still to come
        self.worker: Worker | None = None
        self.cost_ns = 0  # estimate at the last dispatch
        self.cancel_asked = False
        self.wanted = False  # a worker waits for it
        self.parent: ExecutionKey | None = None  # in which it was submitted
        self.failure: Failure | None = None  # what is being judged
        self.returns: Returns | None = None  # of a task with more than one value

    def objects(self) -> range:
        """The objects that it makes; of a stream, its end."""
        count = 1 if self.returns is None else self.returns.count or 1
        return range(self.id, self.id + count)

    def runs_on(self, worker: Worker, attempt: int) -> bool:
        """Whether the worker has it in this attempt: what else comes of it is stale."""
        if self.worker is not worker or self.attempt != attempt:
            return False
        return self.state == T_SENT or self.state == T_STOPPING
