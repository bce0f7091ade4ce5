"""Which task gives way when the workers use too much memory.

One worker is ended at a time, and the next only once it is gone and memory is still short. Of the
tasks that run, those of one function are a group. Of the largest group the task that began last
goes, which has the least to lose; one that may run again goes before one that has no retry left
(Ray chooses alike). A task that was to run only once (`max_retries=0`) is left alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .commands import Command, Kill, Log
from .leasing import Leases, Worker
from .lessor import Lessor
from .reports import MemoryShort

if TYPE_CHECKING:
    from .task import Task

_WARNING = 30  # logging's number; the core imports no logging


class Pressure:
    """The part of the driver's machine that makes room."""

    def __init__(self, leases: Leases, lessor: Lessor, commands: list[Command]) -> None:
        self._leases = leases
        self._lessor = lessor
        self._commands = commands
        self._ending: int | None = None  # the worker that is being ended
        self._helpless = False  # it was said that nobody can be ended

    def on_memory_short(self, report: MemoryShort, now: int) -> None:
        """The workers use more than they may."""
        if self._ending in self._lessor.processes:
            return
        found = self._choose()
        if found is None:
            if not self._helpless:
                text = (
                    "the workers use %s bytes, more than worker_memory_bytes=%s, and none of them "
                    "runs a task that may run again"
                )
                self._commands.append(Log(_WARNING, text, (report.used, report.limit)))
                self._helpless = True
            return
        worker, task = found
        self._ending = worker.number
        self._helpless = False
        pid = self._lessor.processes[worker.number].pid
        text = (
            "the workers use %s bytes, more than worker_memory_bytes=%s: ending worker %s "
            "(pid %s), which runs task %r"
        )
        details = (report.used, report.limit, worker.number, pid, task.name)
        self._commands.append(Log(_WARNING, text, details))
        self._commands.append(Kill(worker.number))

    def _choose(self) -> tuple[Worker, Task] | None:
        groups: dict[tuple[bool, int], list[tuple[Worker, Task]]] = {}
        for worker in self._leases.workers.values():
            task = next(iter(worker.queue.values()), None)
            if task is not None and not worker.waits and task.max_retries:
                again = task.charged < task.max_retries
                groups.setdefault((again, task.function), []).append((worker, task))
        if not groups:
            return None
        key = max(groups, key=lambda key: (key[0], len(groups[key])))
        return max(groups[key], key=lambda found: found[0].progress_at)
