"""Which worker processes this host has, and which of them can take a task now.

Rules of this file: it knows workers and how loaded they are, not what tasks are for. A worker is
in `idle` if it is up and has nothing to do, in `hungry` if it has work but room for more, in
neither if it is full, stuck behind a long task (recalled from), starting, at its last tasks,
waiting in user code (blocked) or about to end.

    STARTING  asked for                          uses a slot
    UP        takes tasks                        uses a slot
    LAST      has all the tasks that it may get  uses a slot
    BLOCKED   its task waits for a future        lends its slot
    RETIRING  has been, or will be, told to end  uses none

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

STARTING, UP, LAST, BLOCKED, RETIRING = range(5)


class Worker:
    """One worker process, from the request to start it until it has ended."""

    __slots__ = (
        "asked_back",
        "assigned",
        "load_ns",
        "number",
        "pid",
        "progress_at",
        "queue",
        "recalls",
        "status",
    )

    def __init__(self, number: ProcessNumber) -> None:
        self.number = number
        self.status = STARTING
        self.pid: int | None = None
        self.queue: dict[TaskId, Task] = {}  # sent and without outcome, oldest first
        self.load_ns = 0  # estimated work in the queue
        self.assigned = 0  # tasks sent so far, for max_tasks_per_child
        self.progress_at = 0  # when it last reported or, idle before, was given a task
        self.asked_back = False  # a recall of all that it has not started is under way
        # For each recall without an answer, oldest first, the attempts that were asked for. The
        # answers come in this order; what they say of an older attempt is no news of the present.
        self.recalls: deque[dict[TaskId, int]] = deque()


class Leasing:
    """The workers of this host."""

    def __init__(self, max_workers: int, max_tasks_per_worker: int | None) -> None:
        self.max_workers = max_workers
        self.max_tasks_per_worker = max_tasks_per_worker
        # A task that waits for a future lends its slot to another worker. The cap keeps a wide
        # graph of waiting tasks from filling the machine with processes. When every process
        # waits it is exceeded, by one, for a task that one of them waits for: so the excess is
        # at most the depth of the waiting, not its width.
        self.max_processes = 2 * max_workers + 4
        self.workers: dict[ProcessNumber, Worker] = {}
        self.idle: dict[ProcessNumber, Worker] = {}
        self.hungry: dict[ProcessNumber, Worker] = {}
        self.starting = 0  # workers in STARTING
        self.slots_used = 0  # workers in STARTING, UP or LAST
        self._last_number = 0

    def spawn_for(self, waiting: int, wanted: bool) -> list[ProcessNumber]:
        """Numbers of the workers to start now.

        Args:
            waiting: how many tasks are ready and found none; counted up to `max_workers`.
            wanted: whether a worker waits for one of the tasks that are ready.
        """
        numbers = []
        while (
            self.slots_used < self.max_workers
            and self.starting < waiting
            and (len(self.workers) < self.max_processes or (not self.slots_used and wanted))
        ):
            self._last_number += 1
            worker = Worker(self._last_number)
            self.workers[worker.number] = worker
            self.starting += 1
            self.slots_used += 1
            numbers.append(worker.number)
        return numbers

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
        worker.assigned += 1
        if worker.assigned == self.max_tasks_per_worker:
            # It keeps its slot while it works, or more than max_workers would run at a time.
            worker.status = LAST
            self.hungry.pop(worker.number, None)
        elif worker.load_ns < AHEAD_NS:
            # To the end, so that hungry workers take turns.
            self.hungry.pop(worker.number, None)
            self.hungry[worker.number] = worker
        else:
            self.hungry.pop(worker.number, None)

    def relieve(self, worker: Worker, task: Task) -> None:
        """The task is no longer the worker's. The caller says `settle_down` when it is done."""
        del worker.queue[task.id]
        worker.load_ns -= task.cost_ns

    def settle_down(self, worker: Worker) -> bool:
        """After changes to its queue: put the worker where it belongs. True: it should stop."""
        if worker.status == UP:
            if not worker.queue:
                if self.slots_used > self.max_workers:
                    # It was started in the place of one that waited, and that one is back.
                    self._leave_service(worker, RETIRING)
                    return True
                self.hungry.pop(worker.number, None)
                self.idle[worker.number] = worker
            elif worker.load_ns * 2 <= AHEAD_NS:
                self.hungry[worker.number] = worker
            return False
        if worker.status == LAST and not worker.queue:
            self._leave_service(worker, RETIRING)
        return worker.status == RETIRING and not worker.queue

    def pass_over(self, worker: Worker) -> None:
        """It seems stuck: nothing more for it until it reports a task."""
        self.hungry.pop(worker.number, None)

    def came_up(self, worker: Worker, pid: int) -> None:
        """The worker is ready for tasks."""
        worker.status = UP
        worker.pid = pid
        self.starting -= 1

    def block(self, worker: Worker) -> bool:
        """The worker's task waits for a future: its slot is free for another. False: it was."""
        if worker.status not in (UP, LAST):
            return False
        self._leave_service(worker, BLOCKED)
        return True

    def unblock(self, worker: Worker) -> None:
        """The worker's task goes on."""
        if worker.status == BLOCKED:
            worker.status = LAST if worker.assigned == self.max_tasks_per_worker else UP
            self.slots_used += 1

    def remove(self, number: ProcessNumber) -> Worker | None:
        """The worker has ended."""
        worker = self.workers.pop(number, None)
        if worker is not None:
            if worker.status == STARTING:
                self.starting -= 1
            if worker.status in (STARTING, UP, LAST):
                self.slots_used -= 1
            self.idle.pop(number, None)
            self.hungry.pop(number, None)
        return worker

    def retire_all(self) -> list[Worker]:
        """No more tasks will come. The workers that can be told to stop at once."""
        stoppable = []
        for worker in self.workers.values():
            if worker.status in (STARTING, UP, LAST):
                if worker.status == STARTING:
                    self.starting -= 1
                self._leave_service(worker, RETIRING)
            worker.status = RETIRING
            if not worker.queue:
                stoppable.append(worker)
        return stoppable

    def _leave_service(self, worker: Worker, status: int) -> None:
        worker.status = status
        self.slots_used -= 1
        self.idle.pop(worker.number, None)
        self.hungry.pop(worker.number, None)

    def check(self) -> None:
        """The invariants; raises AssertionError naming the worker."""
        up = [w for w in self.workers.values() if w.status in (UP, LAST)]
        assert self.starting == sum(w.status == STARTING for w in self.workers.values())
        assert self.slots_used == self.starting + len(up)
        for worker in self.workers.values():
            load = sum(task.cost_ns for task in worker.queue.values())
            assert worker.load_ns == load, f"worker {worker.number}: load {worker.load_ns}"
            assert (worker.number in self.idle) == (worker.status == UP and not worker.queue), (
                f"worker {worker.number} and the idle table disagree"
            )
            assert worker.status != LAST or worker.queue, f"worker {worker.number} does not end"
            assert worker.number not in self.hungry or (worker.status == UP and worker.queue), (
                f"worker {worker.number} cannot be hungry"
            )
