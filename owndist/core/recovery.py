"""Values whose memory is gone are computed again, by the tasks that made them.

Whoever wants to read a value finds out: this process itself (`ValueLost`), a worker for a task that
it was sent (UNREAD), a borrower (LOST). The owner then notes the loss, for every object that has
these bytes, and runs again what made the object that is wanted, and what made that task's own
inputs as far as they are lost, too. The others are computed again when somebody asks; of several
values of one task, all that are gone with the one that is wanted, by one execution. Everybody who
waits, here and elsewhere, gets the same new value: an object that is computed again is PENDING, as
it was at first, and the second execution fills the same object.

Recovery is not free of charge: each execution counts against the task's `max_retries`. So it ends,
whatever happens to the values meanwhile.

See the Ownership paper, section 4.3.2. Ray numbers returned objects in the same way for this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .borrowing import Borrowing
from .commands import CheckSegment, Command, Log, Send
from .ids import Address, ExtentKey, ProcessNumber, Ref
from .inputs import await_inputs, leave_dependents
from .messages import CHECK, LOST_VALUE, Message
from .references import Entry, ReferenceTable
from .reports import ValueLost
from .returns import expect_again
from .task import T_READY, T_STOPPING, T_WAITING, Task
from .values import FAILED, GONE, LOST, PENDING, Failure, extent_key, extent_of

if TYPE_CHECKING:
    from .submission import Submission

_WARNING = 30  # logging's number; the core imports no logging


class Recovery:
    """The losses of one process."""

    def __init__(
        self,
        number: ProcessNumber,
        references: ReferenceTable,
        borrowing: Borrowing,
        submission: Submission,
        commands: list[Command],
    ) -> None:
        self.recomputed = 0  # executions begun because a value was lost
        self.over = False  # no task will run any more
        self._todo: list[Ref] = []
        self._busy = False  # `recover` is at work
        self._number = number
        self._references = references
        self._borrowing = borrowing
        self._submission = submission
        self._commands = commands

    # -- who finds out

    def on_value_lost(self, report: ValueLost, now: int) -> None:
        """This process could not read a value."""
        self._lose(report.extent, report.segment)
        self.recover(report.object)

    def on_unread(self, task: Task, segment: str, key: ExtentKey) -> None:
        """A worker could not read an argument. The task is nobody's now, and has not run."""
        known = self._references.extents.get(key)
        moved = known is not None and known.extent[2] != segment
        extent = extent_of(task.args)
        if extent is not None and extent_key(extent) == key and not moved:
            self._lose(key, segment)
            text = f"the memory of its arguments, segment {segment}, was removed"
            self._submission.failed += 1
            self._submission.settle(task, FAILED, (LOST, text, task.name))
        elif moved or self._lose(key, segment) or self._lacks(task):
            self._submission.requeue(task)
        else:
            text = f"an argument names memory that nobody keeps, in segment {segment}"
            self._submission.failed += 1
            self._submission.settle(task, FAILED, (LOST, text, task.name))

    def _lacks(self, task: Task) -> bool:
        """Whether one of its arguments is to come, because somebody else has told of the loss."""
        entries = self._references.entries
        return any(entries[ref].status in (PENDING, GONE) for ref in task.slots)

    def on_lost(self, peer: ProcessNumber, message: Message, now: int) -> None:
        """A borrower could not read a value of ours: it hears of the object's outcome anew."""
        _, object_id, key, segment = message
        self._lose(key, segment)
        self._borrowing.answer(peer, object_id)
        self.recover(object_id)

    def on_borrow(self, peer: ProcessNumber, message: Message, now: int) -> None:
        """A borrower wants to hear the outcome."""
        self._borrowing.answer(peer, message[1])
        self.recover(message[1])

    # -- the writer

    def on_check(self, peer: ProcessNumber, message: Message, now: int) -> None:
        """An owner says that a segment of this process was not found."""
        self._commands.append(CheckSegment(message[1]))

    # -- what follows

    def _lose(self, key: ExtentKey, segment: str) -> bool:
        """Note that an extent is gone, unless that is no news. Whose value it was waits for it."""
        record = self._references.extents.get(key)
        if record is None or record.extent[2] != segment:
            return False  # it is known, or the value has been moved to disk meanwhile
        if record.mine:
            # Others in the same segment may be gone, too, and nothing new must be written there.
            if key[0] == self._number:
                self._commands.append(CheckSegment(segment))
            elif key[0] not in self._borrowing.dead:
                self._commands.append(Send(key[0], (CHECK, segment)))
        lost = self._references.lose(record)
        for entry in lost:
            if type(entry.id) is not int:
                address: Address = entry.id  # type: ignore[assignment]
                self._ask_owner(entry, address, key, segment)
        missing = {entry.id: None for entry in lost}
        for task in list(self._submission.tasks.values()):
            if task.state in (T_READY, T_WAITING) and any(ref in missing for ref in task.slots):
                leave_dependents(self._submission, task)
                await_inputs(self._submission, task)
        return True

    def _ask_owner(self, entry: Entry, address: Address, key: ExtentKey, segment: str) -> None:
        if address.owner in self._borrowing.dead:
            self._borrowing.lost.append(entry)
            return
        entry.asked = True
        self._commands.append(Send(address.owner, (LOST_VALUE, address.id, key, segment)))

    def recover(self, wanted: Ref) -> None:
        """Somebody wants this object: if its value is gone, see that it is made again."""
        # Not recursive: the inputs of a task that is to run again come here, too.
        self._todo.append(wanted)
        if self._busy:
            return
        self._busy = True
        while self._todo:
            ref = self._todo.pop()
            entry = self._references.entries.get(ref)
            if entry is not None and entry.status == GONE:
                self._run_again(ref, entry)
        self._busy = False

    def _run_again(self, ref: Ref, entry: Entry) -> None:
        task = self._references.lineage.tasks.get(ref)
        running = self._submission.task_of(ref)  # type: ignore[arg-type]
        if running is not None and running.state != T_STOPPING:
            assert running.returns is not None
            running.returns.lose(ref - running.id)  # type: ignore[operator]
            entry.status = PENDING  # see `returns`: its task has others to give yet
            self._pass_on_want(entry)
            return
        if task is None or self.over:
            fate = entry.fate or "nothing is kept that it could be computed from"
            if self.over:
                fate = "its executor has ended"
                for taken in self._references.lineage.forget(ref):
                    self._references.release_if_unneeded(taken)
            failure: Failure = (LOST, f"its memory was removed, and {fate}", "")
            for dependent in self._submission.settle_entry(entry, FAILED, failure):
                self._submission.settle(dependent, FAILED, failure)
            return
        task.charged += 1
        self.recomputed += 1
        self._submission.finished -= 1
        text = "the value of task %r was lost; computing it again"
        self._commands.append(Log(_WARNING, text, (task.name,)))
        self._references.lineage.restore(task)
        if task.returns is None:
            entry.status = PENDING
        else:
            expect_again(self._submission, task)
        task.worker = None
        task.wanted = False
        self._submission.tasks[task.id] = task
        await_inputs(self._submission, task)
        if task.state == T_READY:
            self._submission.ready.append(task)
        self._pass_on_want(entry)

    def _pass_on_want(self, entry: Entry) -> None:
        """What a worker waits for needs this object anew: nobody else will say so."""
        if any(dependent.wanted for dependent in entry.dependents or ()):
            self._submission.want(entry.id)
