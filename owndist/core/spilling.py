"""Which values are moved from shared memory to disk, and when.

Rules of this file: what is where changes here, and only here. The owner decides, because it alone
knows who needs a value; the process that wrote the value does the work, because it alone may touch
the memory:

    owner                               writer
    SPILL serial            ───►        copies the bytes to a file
                            ◄───        SPILLED serial, the file (or None: it could not)
    MOVED serial, taken     ───►        taken: the memory is free; else: the file is not needed

An extent keeps its key, (writer, serial), wherever it lies. Descriptors that the owner keeps, or
gets back, may name the old place; whoever hands one out asks `current` first. So a value may be
moved only while no other process could still use an older descriptor of it:

    not mapped      by any process, as far as its owner was told (`pins`)
    not sent        no task that a worker has takes it (`_busy`)
    not told        no borrower was given it as an outcome, which it may read at any time

All three may change while the writer copies. They are looked at again when it answers, under the
same lock that guards every change of them; if the value is wanted by then, it stays where it is. If
it was freed meanwhile, the writer has been told, and gives both places up.

Values that are least recently used go first: the order of `resident` is that of their use.

See Ray's local object manager, which spills from the same fraction of its store.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

from .commands import Command, Log, Moved, Send, Spill
from .ids import ExtentKey, ProcessNumber
from .leasing import Leases
from .messages import MOVED, SPILL, SPILLED, Message
from .references import ExtentRecord, ReferenceTable
from .reports import Spilled
from .values import extent_key, extent_of

# Spilling begins when values fill 4/5 of the limit, as in Ray. What is left is for what is written
# while the disk catches up.
_NUMERATOR, _DENOMINATOR = 4, 5

# How many values are looked at before a search gives up; those in use go to the end of the queue.
# After a search in vain there is none for so long: everything may be in use.
_SEARCH = 100
_SEARCH_AGAIN_NS = 5_000_000

# How much a writer is asked to copy at a time, beyond the first value. Copies that nobody has asked
# for yet can still be spared: their values may be freed or wanted first.
_BATCH_BYTES = 64 << 20

# After a writer could not spill (no room on the disk), it is not asked again for so long.
_PAUSE_NS = 1_000_000_000

_WARNING = 30  # logging's number; the core imports no logging


class Spilling:
    """Moves values of this owner to disk, when shared memory is nearly full.

    Args:
        number: of this process.
        references: its objects and their extents.
        leases: knows which tasks the workers have.
        reachable: whether a process is alive and can be sent a message.
        commands: takes what is to be done.
    """

    def __init__(
        self,
        number: ProcessNumber,
        references: ReferenceTable,
        leases: Leases,
        reachable: Callable[[ProcessNumber], bool],
        commands: list[Command],
    ) -> None:
        self.moving: dict[ExtentKey, int] = {}  # being copied, with their sizes
        self.spills = 0  # values that were moved to disk
        self._number = number
        self._references = references
        self._leases = leases
        self._reachable = reachable
        self._commands = commands
        self._mark: int | None = None  # bytes of values from which on some are moved
        self._moving_bytes = 0
        self._paused_until = 0
        self._warned = False

    def set_limit(self, limit_bytes: int | None) -> None:
        """How much shared memory values may take; None for any amount."""
        self._mark = None
        if limit_bytes is not None:
            self._mark = limit_bytes * _NUMERATOR // _DENOMINATOR

    # -- the owner

    def is_due(self) -> bool:
        """Whether memory is nearly full: a cheap question, asked after every input."""
        mark = self._mark
        return mark is not None and (self._references.memory_bytes - self._moving_bytes > mark)

    def relieve(self, now: int) -> None:
        """Have values moved until the rest is below the mark, as far as there are any unused."""
        assert self._mark is not None
        if now < self._paused_until or self._moving_bytes >= _BATCH_BYTES:
            return
        resident = self._references.resident
        excess = self._references.memory_bytes - self._moving_bytes - self._mark
        busy = self._busy()
        found: list[ExtentKey] = []
        for key, record in list(islice(resident.items(), _SEARCH)):
            if excess <= 0 or self._moving_bytes >= _BATCH_BYTES:
                break
            del resident[key]
            if self._is_wanted(record, busy) or not self._reachable(key[0]):
                resident[key] = record  # at the end now
                continue
            size = self.moving[key] = record.extent[4]
            self._moving_bytes += size
            excess -= size
            found.append(key)
        if not found:
            self._paused_until = now + _SEARCH_AGAIN_NS
        for writer, serial in found:
            if writer == self._number:
                self._commands.append(Spill(self._number, serial))
            else:
                self._commands.append(Send(writer, (SPILL, serial)))

    def on_own_spilled(self, report: Spilled, now: int) -> None:
        """This process has done what an owner asked for: perhaps itself."""
        if report.owner == self._number:
            self._settle((self._number, report.serial), report.segment, now)
        else:
            answer = (SPILLED, report.serial, report.segment)
            self._commands.append(Send(report.owner, answer))

    def on_spilled(self, peer: ProcessNumber, message: Message, now: int) -> None:
        """A writer's answer."""
        self._settle((peer, message[1]), message[2], now)

    def forget_writer(self, number: ProcessNumber) -> None:
        """It is dead: nobody can move what it wrote, and its answers will not come."""
        for key in [key for key in self.moving if key[0] == number]:
            self._moving_bytes -= self.moving.pop(key)
        self._references.strand(number)

    def _settle(self, key: ExtentKey, segment: str | None, now: int) -> None:
        size = self.moving.pop(key, None)
        if size is None:
            return  # of a writer that was taken for dead
        self._moving_bytes -= size
        record = self._references.extents.get(key)
        if record is None:
            return  # freed meanwhile; the writer has heard
        if segment is None:
            self._references.resident[key] = record
            self._paused_until = now + _PAUSE_NS
            self._warn(key[0])
            return
        taken = not self._is_wanted(record, self._busy())
        if taken:
            self.spills += 1
            self._references.relocate(record, segment)
        else:
            self._references.resident[key] = record
        if key[0] == self._number:
            self._commands.append(Moved(key[1], taken))
        else:
            self._commands.append(Send(key[0], (MOVED, key[1], taken)))

    def _is_wanted(self, record: ExtentRecord, busy: dict[ExtentKey, None]) -> bool:
        return bool(record.pins or record.told or extent_key(record.extent) in busy)

    def _busy(self) -> dict[ExtentKey, None]:
        """The extents that tasks take which workers have. Counted only when memory is short, so
        that it costs the others nothing; a worker has some hundred tasks at most."""
        entries = self._references.entries
        found: dict[ExtentKey, None] = {}
        for worker in self._leases.workers.values():
            for task in worker.queue.values():
                for value in (task.args, *[entries[ref].value for ref in task.slots]):
                    extent = extent_of(value)
                    if extent is not None:
                        found[extent_key(extent)] = None
        return found

    def _warn(self, writer: ProcessNumber) -> None:
        if not self._warned:
            self._warned = True
            text = "process %s could not move values to disk; they stay in shared memory"
            self._commands.append(Log(_WARNING, text, (writer,)))

    # -- the writer

    def on_spill(self, peer: ProcessNumber, message: Message, now: int) -> None:
        """An owner wants a value that this process wrote on disk."""
        self._commands.append(Spill(peer, message[1]))

    def on_moved(self, peer: ProcessNumber, message: Message, now: int) -> None:
        """Which of the two copies is to stay."""
        self._commands.append(Moved(message[1], message[2]))

    # -- for tests and statistics

    def check(self) -> None:
        """The invariants; raises AssertionError naming the extent."""
        references = self._references
        assert self._moving_bytes == sum(self.moving.values())
        for key in self.moving:
            assert key not in references.resident, f"extent {key} is moved twice"

    def figures(self) -> dict[str, Any]:
        """What `statistics` tells of it."""
        references = self._references
        return {
            "store_bytes": references.memory_bytes,
            "store_values": len(references.extents),
            "spilled_bytes": references.file_bytes,
            "spills": self.spills,
            "spill_reads": references.file_reads,
        }
