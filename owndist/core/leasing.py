"""The workers that this process has leased, and which of them can take a task now.

Rules of this file: it knows workers and how loaded they are, not what tasks are for. A leased
worker is in `idle` if it has nothing to do, in `hungry` if it has work but room for more, in
neither if it is full, stuck behind a long task (recalled from), waiting in user code (`waits`), at
its last tasks, or about to be given back (`leaving`).

Tasks are sent ahead to a busy worker only as far as `AHEAD_NS` of estimated work, so that a
worker need not wait for the owner between short tasks, and nothing waits long behind another.
What was sent ahead can be recalled until it starts.

Ray removed pipelining and stealing in 2022 and needs a round trip for every task since; the
Ownership paper's own latency figures use 100 tasks in flight per worker.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from .ids import ProcessNumber, TaskId

if TYPE_CHECKING:
    from .task import Task

# Estimated work that a worker may hold, in nanoseconds. An interpreter switches threads every
# 5 ms when one of them computes, so the owner may be that late; 4 ms is nearly always enough, and
# 4 ms is as long as a task can wait behind its like.
AHEAD_NS = 4_000_000

# A task sent ahead is called back when the one before it has run for so long. Longer than a
# thread switch, or a busy but healthy worker would look stuck.
OVERDUE_NS = 10_000_000


class Worker:
    """One worker process, as long as it is leased."""

    __slots__ = (
        "asked_back",
        "leaving",
        "left",
        "load_ns",
        "number",
        "progress_at",
        "queue",
        "ran",
        "recalls",
        "waits",
    )

    def __init__(self, number: ProcessNumber, left: int | None = None) -> None:
        self.number = number
        self.queue: dict[TaskId, Task] = {}  # sent and without outcome, oldest first
        self.load_ns = 0  # estimated work in the queue
        self.left = left  # how many more tasks it may be sent, for max_tasks_per_child
        self.ran = 0  # how many it was sent and has not given back
        self.progress_at = 0  # when it last reported or, idle before, was given a task
        self.waits = False  # its task waits for a future
        self.leaving = False  # to be given back when its queue is empty
        self.asked_back = False  # a recall of all that it has not started is under way
        # For each recall without an answer, oldest first, the attempts that were asked for. The
        # answers come in this order; what they say of an older attempt is no news of the present.
        self.recalls: deque[dict[TaskId, int]] = deque()

    @property
    def open(self) -> bool:
        """Whether it may be sent more tasks."""
        return not self.waits and not self.leaving and self.left != 0


class Leases:
    """The workers that one owner has leased."""

    def __init__(self) -> None:
        self.workers: dict[ProcessNumber, Worker] = {}
        self.idle: dict[ProcessNumber, Worker] = {}
        self.hungry: dict[ProcessNumber, Worker] = {}

    def add(self, number: ProcessNumber, left: int | None) -> Worker:
        """A worker has been leased."""
        worker = self.workers[number] = self.idle[number] = Worker(number, left)
        return worker

    def pick(self, cost_ns: int) -> Worker | None:
        """The worker that should take a task of this estimated cost now, if one can."""
        if self.idle:
            # The last one to become idle: its caches are warm, and it may still be awake.
            return self.idle.popitem()[1]
        for worker in self.hungry.values():
            if worker.load_ns + cost_ns <= AHEAD_NS:
                return worker
        return None

    def assign(self, worker: Worker, task: Task, now: int) -> None:
        """The worker gets the task."""
        if not worker.queue:
            worker.progress_at = now
        worker.queue[task.id] = task
        worker.load_ns += task.cost_ns
        worker.ran += 1
        if worker.left is not None:
            worker.left -= 1
        self.hungry.pop(worker.number, None)
        if worker.load_ns < AHEAD_NS and worker.left != 0:
            # To the end, so that hungry workers take turns.
            self.hungry[worker.number] = worker

    def relieve(self, worker: Worker, task: Task) -> None:
        """The task is no longer the worker's. The caller says `settle_down` when it is done."""
        del worker.queue[task.id]
        worker.load_ns -= task.cost_ns

    def take_back(self, worker: Worker, task: Task) -> None:
        """The worker has not started the task, and will not. As `relieve`.

        It does not count for max_tasks_per_child either. A worker that loads a large module for
        its first task gives back all that it is sent meanwhile; it would be replaced before it has
        run anything, and so would the one in its place.
        """
        self.relieve(worker, task)
        worker.ran -= 1
        if worker.left is not None:
            worker.left += 1

    def settle_down(self, worker: Worker) -> bool:
        """After changes to its queue: put it where it belongs. True: it is to be given back."""
        if not worker.open:
            return not worker.queue and not worker.waits
        if not worker.queue:
            self.hungry.pop(worker.number, None)
            self.idle[worker.number] = worker
        elif worker.load_ns * 2 <= AHEAD_NS:
            self.hungry[worker.number] = worker
        return False

    def pass_over(self, worker: Worker) -> None:
        """It seems stuck: nothing more for it until it reports a task."""
        self.hungry.pop(worker.number, None)

    def revoke(self, worker: Worker) -> None:
        """The lessor wants it back."""
        worker.leaving = True
        self.idle.pop(worker.number, None)
        self.hungry.pop(worker.number, None)

    def block(self, worker: Worker) -> bool:
        """The worker's task waits for a future. False: it does already."""
        if worker.waits:
            return False
        worker.waits = True
        self.idle.pop(worker.number, None)
        self.hungry.pop(worker.number, None)
        return True

    def remove(self, number: ProcessNumber) -> Worker | None:
        """It was given back, or has ended."""
        self.idle.pop(number, None)
        self.hungry.pop(number, None)
        return self.workers.pop(number, None)

    def check(self) -> None:
        """The invariants; raises AssertionError naming the worker."""
        for worker in self.workers.values():
            load = sum(task.cost_ns for task in worker.queue.values())
            assert worker.load_ns == load, f"worker {worker.number}: load {worker.load_ns}"
            assert (worker.number in self.idle) == (worker.open and not worker.queue), (
                f"worker {worker.number} and the idle table disagree"
            )
            assert worker.open or worker.queue or worker.waits, (
                f"worker {worker.number} is not given back"
            )
            assert worker.number not in self.hungry or (worker.open and worker.queue), (
                f"worker {worker.number} cannot be hungry"
            )
