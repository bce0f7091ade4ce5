"""What the owner knows of each of its objects, and when nobody needs it any more.

Rules of this file: everything that counts references changes here, and only here; a count says
what is counted, when something is added and when it is taken away. Frees come out of
`take_freed`, in the order in which they fell due. Nothing is freed twice.

An *entry* is kept while any of these holds (`Entry.needed`):

    handles      a `Future` for it lives in this process
    arguments    a submitted task that takes it has no outcome yet
    contained    a live object's value has its future inside
    borrowers    another process has said that it keeps a handle
    status       it is still to come: its task runs even when nobody looks (as in the stdlib)

An *extent* is the piece of shared memory that holds a value. It may hold the value of several
entries: a task that returns its argument as it got it gives the same bytes a second name. It is
kept while an entry or a pending task's arguments hold it (`holders`) or a process maps it
(`pins`): a view that the user still has is never overwritten.

See the Ownership paper, section 4.2, and Ray's reference counter. Registrations of borrowers
carry tokens: a late release of an old registration must not undo a newer one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .ids import ExtentKey, ObjectId, ProcessNumber
from .values import PENDING, Extent, Failure, Value, extent_key, extent_of, is_file

if TYPE_CHECKING:
    from .task import Task


class Entry:
    """One object of this owner."""

    __slots__ = (
        "arguments",
        "borrowers",
        "contained",
        "dependents",
        "entries",
        "handles",
        "id",
        "nested",
        "status",
        "subscribers",
        "value",
    )

    def __init__(self, object_id: ObjectId, handles: int) -> None:
        self.id = object_id
        self.status = PENDING
        self.value: Value | Failure | None = None
        # Futures of this process. Added when one is made, taken away when it has been collected.
        self.handles = handles
        # Submitted tasks without an outcome that take it, once for each. Added at submission,
        # taken away when the task has its outcome (not at dispatch: it may have to run again).
        self.arguments = 0
        # Live objects whose value has a future for this one inside.
        self.contained = 0
        # {(process, token)}: handles elsewhere. Added by a task's DONE, taken away by RELEASE of
        # the same token, or by the death of the process. Each process counts its own tokens.
        self.borrowers: dict[tuple[ProcessNumber, int], None] | None = None
        # Tasks that cannot start before this object is there; each entry stands for one slot.
        self.dependents: list[Task] | None = None
        # Processes that want to hear the outcome.
        self.subscribers: list[ProcessNumber] | None = None
        # The objects whose futures are inside the value.
        self.nested: tuple[ObjectId, ...] = ()
        # Keys of the namespace entries that a process needs to load the value.
        self.entries: tuple[int, ...] = ()

    def needed(self) -> bool:
        """Whether anything keeps the entry."""
        return bool(
            self.handles
            or self.arguments
            or self.contained
            or self.borrowers
            or self.status == PENDING
        )


class ExtentRecord:
    """One extent that holds values of this owner."""

    __slots__ = ("extent", "holders", "pins", "told")

    def __init__(self, extent: Extent) -> None:
        self.extent = extent  # where it lies now; see `spilling`
        self.holders = 0  # entries with this value, and pending tasks with these arguments
        self.pins: dict[ProcessNumber, None] = {}  # processes that map it
        self.told = False  # a borrower was given it as an outcome, and may read it at any time


class ReferenceTable:
    """The objects that this process owns, and the extents that hold their values."""

    def __init__(self) -> None:
        self.entries: dict[ObjectId, Entry] = {}
        self.extents: dict[ExtentKey, ExtentRecord] = {}
        # Those in shared memory that could be moved to disk, the longest unused first.
        self.resident: dict[ExtentKey, ExtentRecord] = {}
        self.memory_bytes = self.file_bytes = 0  # what all extents take up, in memory and on disk
        self.file_reads = 0  # how often a value was handed out that lay on disk
        self._freed: list[Extent] = []

    # -- entries

    def create(self, object_id: ObjectId, handles: int = 1) -> Entry:
        """A new object, still to come, that already has a handle."""
        entry = self.entries[object_id] = Entry(object_id, handles)
        return entry

    def settle(
        self,
        entry: Entry,
        status: int,
        value: Value | Failure | None,
        nested: tuple[ObjectId, ...] = (),
    ) -> None:
        """The object is there, or has failed."""
        entry.status = status
        entry.value = value
        if type(value) is tuple:
            self.hold(value)
        for inner in nested:
            # An inner object that is gone was dropped by a worker that no longer exists; the
            # value's reader will be told.
            found = self.entries.get(inner)
            if found is not None:
                found.contained += 1
                entry.nested += (inner,)
        self.release_if_unneeded(entry)

    def drop_handles(self, objects: Iterable[ObjectId]) -> None:
        """So many handles are gone."""
        entries = self.entries
        for object_id in objects:
            entry = entries.get(object_id)
            if entry is not None:
                entry.handles -= 1
                if entry.handles == 0:
                    self.release_if_unneeded(entry)

    def drop_argument(self, object_id: ObjectId) -> None:
        """A task that takes the object has its outcome."""
        entry = self.entries[object_id]
        entry.arguments -= 1
        self.release_if_unneeded(entry)

    def add_borrower(self, object_id: ObjectId, process: ProcessNumber, token: int) -> None:
        """Another process keeps a handle."""
        entry = self.entries.get(object_id)
        if entry is not None:
            if entry.borrowers is None:
                entry.borrowers = {}
            entry.borrowers[process, token] = None

    def take_extras(
        self, process: ProcessNumber, extras: Any
    ) -> tuple[tuple[ObjectId, ...], tuple[int, ...]]:
        """What a worker tells with a value: what it keeps. Returns (nested, entries)."""
        if extras is None:
            return (), ()
        borrowed, pinned, nested, entries = extras
        for object_id, token in borrowed:
            self.add_borrower(object_id, process, token)
        for key in pinned:
            self.pin(process, key)
        return nested, entries

    def drop_borrower(self, object_id: ObjectId, process: ProcessNumber, token: int) -> None:
        """The borrower has let go. Twice is as once, and an unknown token changes nothing."""
        entry = self.entries.get(object_id)
        if entry is not None and entry.borrowers and (process, token) in entry.borrowers:
            del entry.borrowers[process, token]
            self.release_if_unneeded(entry)

    def drop_process(self, process: ProcessNumber) -> None:
        """A process is dead: what it borrowed and mapped is let go."""
        for entry in list(self.entries.values()):
            if entry.borrowers:
                for number, token in list(entry.borrowers):
                    if number == process:
                        self.drop_borrower(entry.id, process, token)
            if entry.subscribers and process in entry.subscribers:
                entry.subscribers = [p for p in entry.subscribers if p != process]
        for key in [k for k, record in self.extents.items() if process in record.pins]:
            self.unpin(process, key)

    def release_if_unneeded(self, entry: Entry) -> None:
        """Drop the entry, and what only it kept. Not recursive: nests may be deep."""
        todo = [entry]
        while todo:
            gone = todo.pop()
            if gone.needed() or self.entries.get(gone.id) is not gone:
                continue
            del self.entries[gone.id]
            if type(gone.value) is tuple:
                self.drop(gone.value)
            for inner in gone.nested:
                found = self.entries.get(inner)
                if found is not None:
                    found.contained -= 1
                    todo.append(found)

    # -- extents

    def hold(self, value: Value | Failure) -> None:
        """One more holder of a value; nothing for an inline one."""
        extent = extent_of(value)
        if extent is not None:
            key = extent_key(extent)
            record = self.extents.get(key)
            if record is None:
                record = self.extents[key] = ExtentRecord(extent)
                if is_file(extent):
                    self.file_bytes += extent[4]
                else:
                    self.memory_bytes += extent[4]
                    self.resident[key] = record
            record.holders += 1

    def current(self, value: Any) -> Any:
        """A value that is about to be read, and where it lies now: it may have been moved."""
        extent = extent_of(value)
        if extent is None:
            return value
        key = extent_key(extent)
        record = self.extents.get(key)
        if record is None:
            return value
        if key in self.resident:
            self.resident[key] = self.resident.pop(key)  # to the end: it was used just now
        elif is_file(record.extent):
            self.file_reads += 1
        if record.extent[2] == extent[2]:
            return value
        return (record.extent, *value[1:])

    def tell(self, value: Any) -> Any:
        """The same, for a borrower that keeps what it is told: the value is not moved any more."""
        extent = extent_of(value)
        if extent is not None:
            record = self.extents.get(extent_key(extent))
            if record is not None:
                record.told = True
        return self.current(value)

    def relocate(self, record: ExtentRecord, segment: str) -> None:
        """An extent lies in a file of its own from now on."""
        number, serial, _, _, size = record.extent
        record.extent = (number, serial, segment, 0, size)
        self.memory_bytes -= size
        self.file_bytes += size

    def strand(self, writer: ProcessNumber) -> None:
        """Nobody can move any more what this process wrote."""
        for key in [key for key in self.resident if key[0] == writer]:
            del self.resident[key]

    def is_lost(self, value: Value | Failure, sender: ProcessNumber) -> bool:
        """Whether a value names memory that nobody keeps: it may hold something else by now.

        What the sender has written itself is new, and has no record yet.
        """
        extent = extent_of(value)
        return extent is not None and extent[0] != sender and extent_key(extent) not in self.extents

    def drop(self, value: Value | Failure) -> None:
        """One holder less."""
        extent = extent_of(value)
        if extent is not None:
            record = self.extents[extent_key(extent)]
            record.holders -= 1
            self._release_extent(record)

    def pin(self, process: ProcessNumber, key: ExtentKey) -> None:
        """A process maps an extent beyond the end of a task."""
        record = self.extents.get(key)
        if record is not None:
            record.pins[process] = None

    def unpin(self, process: ProcessNumber, key: ExtentKey) -> None:
        """The process's last mapping of the extent is gone."""
        record = self.extents.get(key)
        if record is not None and process in record.pins:
            del record.pins[process]
            self._release_extent(record)

    def _release_extent(self, record: ExtentRecord) -> None:
        if not record.holders and not record.pins:
            extent = record.extent
            key = extent_key(extent)
            del self.extents[key]
            self.resident.pop(key, None)
            if is_file(extent):
                self.file_bytes -= extent[4]
            else:
                self.memory_bytes -= extent[4]
            self._freed.append(extent)

    def take_freed(self) -> list[Extent]:
        """The extents that fell free since the last call."""
        freed = self._freed
        if freed:
            self._freed = []
        return freed

    def check(self) -> None:
        """The invariants; raises AssertionError naming the object."""
        contained: dict[ObjectId, int] = {}
        holders: dict[ExtentKey, int] = {}
        for entry in self.entries.values():
            assert entry.needed(), f"object {entry.id} is kept by nothing"
            assert entry.handles >= 0, f"object {entry.id} has {entry.handles} handles"
            assert entry.arguments >= 0, f"object {entry.id}: {entry.arguments} arguments"
            assert entry.status == PENDING or not entry.dependents, (
                f"object {entry.id} is settled and has dependents"
            )
            for inner in entry.nested:
                contained[inner] = contained.get(inner, 0) + 1
            extent = extent_of(entry.value)
            if extent is not None:
                key = extent_key(extent)
                holders[key] = holders.get(key, 0) + 1
        for entry in self.entries.values():
            assert entry.contained == contained.get(entry.id, 0), (
                f"object {entry.id} counts {entry.contained} containers"
            )
        for key, count in holders.items():
            record = self.extents.get(key)
            assert record is not None and record.holders >= count, f"extent {key} has no record"
        for key, record in self.extents.items():
            assert record.holders > 0 or record.pins, f"extent {key} is kept by nothing"
            assert extent_key(record.extent) == key, f"extent {key} has lost its name"
        files = [r.extent[4] for r in self.extents.values() if is_file(r.extent)]
        assert self.file_bytes == sum(files)
        total = sum(record.extent[4] for record in self.extents.values())
        assert self.memory_bytes == total - self.file_bytes
        for key in self.resident:
            assert not is_file(self.extents[key].extent), f"extent {key} is on disk already"
