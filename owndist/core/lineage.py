"""What is kept so that a value can be computed again: the tasks that made values, and for how long.

A value and what is known of it end at different times. When nobody needs the *value* of an object
any more, its memory is freed. Its *entry* stays, GONE, and so does the task that made it, while a
retained task takes it: that one may have to run again, and then needs it. (Ray tells the same two
ends apart: OutOfScope and ShouldDelete.)

Rules of this file: a task is retained when its value has come, if that lies in shared memory (an
inline one is lost only with its owner) and the task may run again. It is let go of with its entry,
or when all retained tasks take up more than the limit: then the oldest go, until half is left. A
task with several values is retained once, for those of them that could be lost, and let go of with
the entry of the last.

What cannot be computed again here (a value that was `put`, promised or borrowed, or whose task may
not run again) is not freed while a retained task takes it. Neither are a retained task's own stored
arguments. What happens when a value is lost is in `recovery`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .ids import Ref
from .values import GONE, READY, extent_of, inline_size

if TYPE_CHECKING:
    from .references import Entry, ReferenceTable
    from .task import Task

# One text for all: there may be a million such entries.
_EVICTED = "what it was made from is no longer kept: lineage evicted (lineage_bytes)"

# What a retained task takes up besides its arguments: the task, its entry, their places in tables.
TASK_BYTES = 1_000


class Lineage:
    """The retained tasks, oldest first.

    Args:
        table: the objects of this process, of which those that retained tasks take are counted.
    """

    def __init__(self, table: ReferenceTable) -> None:
        self.limit_bytes = 0  # how much memory of this process they may take; 0 for none
        self.tasks: dict[Ref, Task] = {}  # by each object that they could make again
        # Of the tasks, and of the inline values that they take.
        self.used_bytes = 0
        self._table = table

    def retain(self, task: Task) -> bool:
        """Keep what a task needs to run again, now that its values have come. False: no use."""
        entries = self._table.entries
        made = [entries[ref] for ref in task.objects() if ref in entries]
        if task.returns is not None:
            made = [entry for entry in made if entry.status == GONE or extent_of(entry.value)]
            task.returns.retained = len(made)
        fate = self._fate(task)
        for entry in made:
            entry.fate = fate
        if fate or not made:
            return False
        for ref in (*task.slots, *task.nested):
            taken = entries[ref]
            if not taken.lineage and taken.status == READY:
                self.used_bytes += inline_size(taken.value)  # type: ignore[arg-type]
            taken.lineage += 1
        for entry in made:
            self.tasks[entry.id] = task
        self.used_bytes += _task_bytes(task)
        return True

    def _fate(self, task: Task) -> str:
        if not self.limit_bytes:
            return "what values are made from is not kept (lineage_bytes=0)"
        if not task.max_retries:
            return "its task may run only once (max_retries=0)"
        if task.charged >= task.max_retries:
            return f"its task has run {task.charged + 1} times, which is all that it may"
        return ""

    def restore(self, task: Task) -> None:
        """A retained task is to run again: what kept its inputs for that keeps them for it now."""
        self._remove(task)
        for ref in (*task.slots, *task.nested):
            entry = self._table.entries[ref]
            entry.arguments += 1
            self._uncount(entry)

    def evict(self) -> None:
        """Let go of the oldest retained tasks, if all of them take up too much."""
        if self.used_bytes <= self.limit_bytes:
            return
        while self.tasks and self.used_bytes > self.limit_bytes // 2:
            task = next(iter(self.tasks.values()))
            made = [self._table.entries[ref] for ref in task.objects() if ref in self.tasks]
            released = self._let_go(task)
            for entry in made:
                entry.fate = _EVICTED
                self._table.release_if_unneeded(entry)
            for taken in released:
                self._table.release_if_unneeded(taken)

    def forget(self, ref: Ref) -> list[Entry]:
        """An object will not be made again. Returns what may be released with its task."""
        task = self.tasks.pop(ref, None)
        if task is None:
            return []
        if task.returns is not None:
            task.returns.retained -= 1
            if task.returns.retained:
                return []  # for the others
        return self._let_go(task)

    def _let_go(self, task: Task) -> list[Entry]:
        """Retain a task no longer. Returns what may be released with that."""
        self._remove(task)
        if type(task.args) is tuple:
            self._table.drop(task.args)
        task.args = b""
        taken = [self._table.entries[other] for other in (*task.slots, *task.nested)]
        return [entry for entry in taken if self._uncount(entry)]

    def _uncount(self, entry: Entry) -> bool:
        """One retained task less takes it. True: that was the last."""
        entry.lineage -= 1
        if entry.lineage:
            return False
        if entry.status == READY:
            self.used_bytes -= inline_size(entry.value)  # type: ignore[arg-type]
        return True

    def _remove(self, task: Task) -> None:
        for ref in task.objects():
            self.tasks.pop(ref, None)
        self.used_bytes -= _task_bytes(task)

    def check(self) -> None:
        """The invariants; raises AssertionError naming the object."""
        counts: dict[Ref, int] = {}
        used = 0
        entries = self._table.entries
        for ref, task in self.tasks.items():
            entry = entries.get(ref)
            assert entry is not None and entry.status in (READY, GONE), (
                f"task {task.id} is retained for object {ref}"
            )
            assert ref in task.objects(), f"task {task.id} does not make object {ref}"
        for task in {task.id: task for task in self.tasks.values()}.values():
            made = [ref for ref in task.objects() if ref in self.tasks]
            assert task.returns is None or task.returns.retained == len(made), (
                f"task {task.id} is retained for {made}"
            )
            assert task.charged < task.max_retries, f"task {task.id} may not run again"
            used += _task_bytes(task)
            for ref in (*task.slots, *task.nested):
                counts[ref] = counts.get(ref, 0) + 1
        for entry in entries.values():
            assert entry.lineage == counts.get(entry.id, 0), (
                f"object {entry.id} counts {entry.lineage} retained tasks"
            )
            if entry.lineage and entry.status == READY:
                used += inline_size(entry.value)  # type: ignore[arg-type]
        assert self.used_bytes == used


def _task_bytes(task: Task) -> int:
    """What a retained task takes up in the memory of this process."""
    return TASK_BYTES + inline_size(task.args)
