"""The tasks that run in this process, and what others are told of them.

Rules of this file: what an owner must know before it lets go of a task's arguments goes with the
result: the extents that are still mapped here, and the futures inside the value. The owner of a
future has been told before that (`Returning`), and answered.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from . import messages as m
from .borrowing import Borrowing
from .commands import Abandon, Command, Free, Send
from .execution import Execution, Item
from .ids import DRIVER, Address, ExtentKey, ProcessNumber, Ref
from .messages import Message
from .references import ReferenceTable
from .reports import Returning, TaskEnded, Unmapped, WaitBegun, WaitEnded, Yielded
from .submission import Submission
from .task import T_READY
from .values import extent_key, extent_of


class Running:
    """The executor's side of results, waits and mappings."""

    def __init__(
        self,
        number: ProcessNumber,
        execution: Execution,
        references: ReferenceTable,
        borrowing: Borrowing,
        submission: Submission,
        commands: list[Command],
    ) -> None:
        self._number = number
        self._execution = execution
        self._references = references
        self._borrowing = borrowing
        self._submission = submission
        self._commands = commands
        # {extent mapped here: the owners of tasks that know of it}
        self._told: dict[ExtentKey, dict[ProcessNumber, None]] = {}
        # {owner: extents written here for its objects}; for owners that can die before us
        self._written: dict[ProcessNumber, dict[int, None]] = {}
        self._given: tuple[tuple[Address, int], ...] = ()  # futures in the value to be returned
        # For each wait, in any thread: the task on top when it began. It ends with that, at the
        # latest: what a task leaves behind is no wait of the one below.
        self._waits: list[Item] = []

    def on_returning(self, report: Returning, now: int) -> None:
        """The running task is about to return futures."""
        assert self._execution.running is not None
        self._given = self._borrowing.register_for(self._execution.running[0], report.objects)

    def on_task_ended(self, report: TaskEnded, now: int) -> None:
        """It has ended."""
        started = self._execution.started
        task = started[-1]
        owner = task[0]
        extras = self._extras(report, owner)
        outermost = len(started) == 1
        if self._waits:
            self._keep_waits([other for other in self._waits if other != task])
        done = self._execution.end(report, extras)
        if owner not in self._borrowing.dead:
            self._commands.append(done)
        if outermost and self._submission.leases.idle and not self._execution.queue:
            self._submission.give_back_idle(now)

    def on_yielded(self, report: Yielded, now: int) -> None:
        """It has one of several values."""
        assert self._execution.running is not None
        owner = self._execution.running[0]
        told = self._execution.tell(report, self._extras(report, owner))
        if owner not in self._borrowing.dead:
            self._commands.append(told)

    def _extras(self, report: TaskEnded | Yielded, owner: ProcessNumber) -> Any:
        """What the owner of the running task hears with a value."""
        given, self._given = self._given, ()
        value = report.value
        extent = extent_of(value) if type(value) is tuple else None
        if (
            extent is not None
            and extent[0] == self._number
            and owner not in (DRIVER, self._number)
            and not self.may_pass_on(extent_key(extent))  # or it may have been another's before
        ):
            self._written.setdefault(owner, {})[extent[1]] = None
        pinned = self._tell_of_mapped(report.mapped, owner) if report.mapped else ()
        if pinned or given or report.entries:
            return (pinned, given, report.entries)
        return None

    def _tell_of_mapped(
        self, mapped: Iterable[ExtentKey], owner: ProcessNumber
    ) -> tuple[ExtentKey, ...]:
        """Those of the extents mapped here that the task's owner is to keep for that.

        Only what it has sent with the task: what came from others it does not know, and cannot
        keep. They were told themselves.
        """
        here = frozenset(mapped)
        fresh = []
        for key in self._execution.brought():
            if key in here:
                told = self._told.setdefault(key, {})
                if owner not in told:
                    told[owner] = None
                    fresh.append(key)
        return tuple(fresh)

    def on_wait_begun(self, report: WaitBegun, now: int) -> None:
        """It waits for something."""
        assert self._execution.running is not None
        self._waits.append(self._execution.running)
        for ref in report.objects:
            self._submission.want(ref)
        if len(self._waits) == 1:
            self._say_blocked(m.BLOCKED)

    def on_wait_ended(self, report: WaitEnded, now: int) -> None:
        """It waits no more."""
        task = report.task or self._execution.running
        if task in self._waits:
            at = self._waits.index(task)
            self._keep_waits(self._waits[:at] + self._waits[at + 1 :])

    def _keep_waits(self, waits: list[Item]) -> None:
        ended = self._waits and not waits
        self._waits = waits
        if ended:
            self._say_blocked(m.UNBLOCKED)

    def _say_blocked(self, code: int) -> None:
        """To the lessor, and to whoever may have sent tasks that wait behind this one."""
        started = self._execution.started
        owner = started[0][0] if started else DRIVER
        self._commands.append(Send(DRIVER, (code,)))
        if owner != DRIVER and owner not in self._borrowing.dead:
            self._commands.append(Send(owner, (code,)))

    def on_unmapped(self, report: Unmapped, now: int) -> None:
        """Mappings in this process are gone."""
        theirs: dict[ProcessNumber, list[ExtentKey]] = {}
        for key in report.extents:
            self._references.unpin(self._number, key)
            for owner in self._told.pop(key, ()):
                theirs.setdefault(owner, []).append(key)
        for owner, keys in theirs.items():
            if owner not in self._borrowing.dead:
                self._commands.append(Send(owner, (m.UNMAPPED, tuple(keys))))

    def on_free(self, peer: ProcessNumber, message: Message, now: int) -> None:
        """An owner needs these extents no more."""
        self._forget_written(peer, message[1])
        self._commands += [Free(serial) for serial in message[1]]

    def on_abandon(self, peer: ProcessNumber, message: Message, now: int) -> None:
        """Nor these; but somebody whom it does not know may still map them."""
        self._forget_written(peer, message[1])
        self._commands += [Abandon(serial) for serial in message[1]]

    def _forget_written(self, owner: ProcessNumber, serials: Iterable[int]) -> None:
        written = self._written.get(owner)
        if written is not None:
            for serial in serials:
                written.pop(serial, None)

    def is_told(self, key: ExtentKey) -> bool:
        """Whether somebody knows that this extent is mapped here beyond a task's end."""
        return key in self._told or key in self._references.extents

    def may_pass_on(self, key: ExtentKey) -> bool:
        """Whether the running task may return these bytes of somebody's by their name.

        Its owner must know them, and keep them until it hears of the result.
        """
        running = self._execution.running
        if running is None:
            return False
        owner = running[0]
        if key in self._execution.brought() or owner in self._told.get(key, ()):
            return True
        record = self._references.extents.get(key)
        if record is None:
            return False
        if owner == self._number:
            return True
        return record.lifeline is not None and record.lifeline.owner == owner

    def process_ended(self, number: ProcessNumber) -> None:
        """An owner is dead. What was written for it may still have readers that it alone knew."""
        for told in self._told.values():
            told.pop(number, None)
        for serial in self._written.pop(number, ()):
            self._commands.append(Abandon(serial))


def take_awaited(submission: Submission, refs: Iterable[Ref]) -> tuple[Any, ...] | None:
    """A task that may run in this process now, because its running task waits for it.

    It is one of those that make these objects, or on which these depend: nothing runs here,
    on top of a waiting task, that this task could do without. So it cannot come to wait for
    that task in turn, unless the program itself has made such a circle.
    """
    todo = list(refs)
    seen: set[Ref] = set()
    while todo:
        ref = todo.pop()
        task = submission.task_of(ref) if type(ref) is int else None
        if task is None or ref in seen:
            continue
        seen.add(ref)
        if task.state == T_READY:
            worker = submission.here
            task.cost_ns = 0
            worker.queue[task.id] = task
            return submission.start(task, worker)
        todo.extend(task.slots)
    return None
