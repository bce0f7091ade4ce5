"""What a process knows of objects, its own and borrowed ones, and when it needs them no more.

Rules of this file: everything that counts references changes here, and only here; a count says
what is counted, when something is added and when it is taken away. Frees come out of
`take_freed` and `take_releases`, in the order in which they fell due. Nothing is freed twice.

An *entry* is kept while any of these holds (`Entry.needed`):

    handles      a `Future` for it lives in this process
    arguments    a task that this process submitted and that takes it has no outcome yet
    contained    the value of a live entry has its future inside
    borrowers    another process has said that it keeps a handle      (own objects only)
    status       it is still to come: its task runs even when nobody looks (own objects only)

An own object is known by its id, a borrowed one by its address. When a borrowed entry goes, its
registrations at the owner (`tokens`) are released; the owner counts a borrower until then.

An *extent* is the piece of shared memory that holds a value. It may hold the value of several
entries: a task that returns its argument as it got it gives the same bytes a second name. It is
kept while an entry or a pending task's arguments hold it (`holders`) or a process maps it
(`pins`): a view that the user still has is never overwritten. The extents of own objects are
`mine`: this process has the writer free them. One that came with a borrowed object is kept by the
registration there. The registration of the *first* such object stays until the extent is needed no
more, even when that object itself is not: views, and own objects with the same bytes, live on it.
The first, because it is older than any name that was given to the bytes through it: so no circle of
processes can keep each other's names alive.

See the Ownership paper, section 4.2, and Ray's reference counter. Registrations of borrowers
carry tokens: a late release of an old registration must not undo a newer one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .ids import Address, ExtentKey, ProcessNumber, Ref
from .lineage import Lineage
from .values import (
    CANCELLED,
    FAILED,
    GONE,
    PENDING,
    READY,
    Extent,
    Failure,
    Value,
    extent_key,
    extent_of,
    inline_size,
    is_file,
)

if TYPE_CHECKING:
    from .task import Task


# A registration to be released: (address, token).
Release = tuple[Address, int]


class Entry:
    """One object, of this process or borrowed."""

    __slots__ = (
        "arguments",
        "asked",
        "borrowers",
        "contained",
        "dependents",
        "entries",
        "fate",
        "handles",
        "id",
        "lineage",
        "name",
        "nested",
        "status",
        "subscribers",
        "tokens",
        "value",
    )

    def __init__(self, ref: Ref, handles: int) -> None:
        self.id = ref
        self.name = ""  # of its task, for people
        self.status = PENDING
        self.value: Value | Failure | None = None
        # Futures of this process. Added when one is made, taken away when it has been collected.
        self.handles = handles
        # Submitted tasks without an outcome that take it, once for each. Added at submission,
        # taken away when the task has its outcome (not at dispatch: it may have to run again).
        self.arguments = 0
        # Live objects whose value has a future for this one inside.
        self.contained = 0
        # Retained tasks that take it, once for each; see `lineage`. They may run again.
        self.lineage = 0
        # Why it cannot be computed again, once that is so.
        self.fate = ""
        # {(process, token): who registered it}: handles elsewhere. Added by REGISTER or with a
        # task's result, taken away by RELEASE of the same token, or by the death of the process.
        self.borrowers: dict[tuple[ProcessNumber, int], ProcessNumber] | None = None
        # Tasks that cannot start before this object is there; each entry stands for one slot.
        self.dependents: list[Task] | None = None
        # Processes that want to hear the outcome.
        self.subscribers: list[ProcessNumber] | None = None
        # The objects whose futures are inside the value.
        self.nested: tuple[Ref, ...] = ()
        # Of a borrowed object: the registrations at its owner, and whether its outcome was asked
        # for.
        self.tokens: tuple[int, ...] = ()
        self.asked = False
        # Keys of the namespace entries that a process needs to load the value.
        self.entries: tuple[int, ...] = ()

    def needed(self) -> bool:
        """Whether anything keeps the entry."""
        return bool(
            self.handles
            or self.arguments
            or self.contained
            or self.borrowers
            or (self.status == PENDING and type(self.id) is int)
        )


class ExtentRecord:
    """One extent that holds values which this process needs."""

    __slots__ = ("extent", "holders", "lifeline", "mine", "pins", "strayed", "told", "tokens")

    def __init__(self, extent: Extent, lifeline: Address | None) -> None:
        self.extent = extent  # where it lies now; see `spilling`
        self.mine = lifeline is None
        self.holders = 0  # entries with this value, and pending tasks with these arguments
        self.pins: dict[ProcessNumber, None] = {}  # processes that map it
        self.told = False  # a borrower was given it as an outcome, and may read it at any time
        # A borrower that was told has died. It may have passed the value on to tasks of its own,
        # whose processes told only it that they map it.
        self.strayed = False
        # Of one that is not mine: the first borrowed object with these bytes, and its
        # registrations once its entry is gone.
        self.lifeline = lifeline
        self.tokens: tuple[int, ...] = ()


class ReferenceTable:
    """The objects that this process owns or borrows, and the extents that hold their values."""

    def __init__(self) -> None:
        self.entries: dict[Ref, Entry] = {}
        self.lineage = Lineage(self)
        self.extents: dict[ExtentKey, ExtentRecord] = {}
        # Of own objects, those in shared memory that could be moved to disk, the longest unused
        # first; and what all take up, in memory and on disk.
        self.resident: dict[ExtentKey, ExtentRecord] = {}
        self.memory_bytes = self.file_bytes = 0
        self.file_reads = 0  # how often a value was handed out that lay on disk
        self.freed: list[tuple[Extent, bool]] = []  # and whether somebody may still map it
        self.releases: list[Release] = []  # not yet taken

    # -- entries

    def create(self, ref: Ref, handles: int = 1) -> Entry:
        """A new object, still to come."""
        entry = self.entries[ref] = Entry(ref, handles)
        return entry

    def settle(
        self,
        entry: Entry,
        status: int,
        value: Value | Failure | None,
        nested: tuple[Ref, ...] = (),
    ) -> None:
        """The object is there, or has failed."""
        entry.status = status
        entry.value = value
        if type(value) is tuple:
            self.hold(value, entry.id if isinstance(entry.id, Address) else None)
        if entry.lineage and status == READY:
            self.lineage.used_bytes += inline_size(value)  # type: ignore[arg-type]
        for inner in nested:
            # An inner object that is gone was dropped by a process that no longer exists; the
            # value's reader will be told.
            found = self.entries.get(inner)
            if found is not None:
                found.contained += 1
                entry.nested += (inner,)
        if not entry.handles:
            self.release_if_unneeded(entry)

    def adopt(self, address: Address, token: int) -> None:
        """Another process has registered this one for an object whose future it gives it."""
        entry = self.entries.get(address)
        if entry is None:
            entry = self.create(address, 0)
        if token:
            if entry.tokens:
                self.releases.append((address, token))  # one is enough
            else:
                entry.tokens = (token,)

    def release(self, address: Address, token: int) -> None:
        """A registration that nobody here will use."""
        if token:
            self.releases.append((address, token))

    def release_all(self, given: Iterable[tuple[Address, int]], number: ProcessNumber) -> None:
        """Registrations for this process, of number `number`, that nobody here will use."""
        for item, token in given:
            address = Address(*item)
            # A result may come twice, and what the first one brought is in use.
            if address.owner != number and not self.has_token(address, token):
                self.release(address, token)

    def release_unneeded(self, refs: Iterable[Ref]) -> None:
        """Drop those of these entries that nothing keeps."""
        for ref in refs:
            entry = self.entries.get(ref)
            if entry is not None:
                self.release_if_unneeded(entry)

    def has_token(self, address: Address, token: int) -> bool:
        """Whether this registration is in use."""
        entry = self.entries.get(address)
        if entry is not None and token in entry.tokens:
            return True
        return any(
            record.lifeline == address and token in record.tokens
            for record in self.extents.values()
        )

    def drop_handles(self, objects: Iterable[Ref]) -> None:
        """So many handles are gone."""
        entries = self.entries
        for ref in objects:
            entry = entries.get(ref)
            if entry is not None:
                entry.handles -= 1
                if entry.handles == 0:
                    self.release_if_unneeded(entry)

    def drop_argument(self, ref: Ref) -> None:
        """A task that takes the object has its outcome."""
        entry = self.entries[ref]
        entry.arguments -= 1
        self.release_if_unneeded(entry)

    def add_borrower(
        self, entry: Entry, process: ProcessNumber, token: int, sponsor: ProcessNumber
    ) -> None:
        """Another process keeps a handle; `sponsor` has said so, for itself or for that one."""
        if entry.borrowers is None:
            entry.borrowers = {}
        entry.borrowers[process, token] = sponsor

    def drop_borrower(self, ref: Ref, process: ProcessNumber, token: int) -> None:
        """The borrower has let go. Twice is as once, and an unknown token changes nothing."""
        entry = self.entries.get(ref)
        if entry is not None and entry.borrowers and (process, token) in entry.borrowers:
            del entry.borrowers[process, token]
            self.release_if_unneeded(entry)

    def drop_process(self, process: ProcessNumber) -> dict[ProcessNumber, list[tuple[int, int]]]:
        """A process is dead: what it borrowed and mapped is let go.

        Returns:
            {living process: [(object, token)]}: registrations that the dead one made for others,
            which may never have heard of them.
        """
        unsure: dict[ProcessNumber, list[tuple[int, int]]] = {}
        for entry in list(self.entries.values()):
            if entry.borrowers:
                for (number, token), sponsor in list(entry.borrowers.items()):
                    if number == process:
                        self._stray(entry)
                        self.drop_borrower(entry.id, process, token)
                    elif sponsor == process:
                        assert type(entry.id) is int
                        unsure.setdefault(number, []).append((entry.id, token))
            if entry.subscribers and process in entry.subscribers:
                entry.subscribers = [p for p in entry.subscribers if p != process]
        for key in [k for k, record in self.extents.items() if process in record.pins]:
            self.unpin(process, key)
        return unsure

    def _stray(self, entry: Entry) -> None:
        """A borrower is dead, and nobody knows who got the value from it."""
        extent = extent_of(entry.value) if entry.status == READY else None
        if extent is not None:
            record = self.extents[extent_key(extent)]
            record.strayed |= record.told

    def release_if_unneeded(self, entry: Entry) -> None:
        """Drop the entry, and what only it kept. Not recursive: nests may be deep."""
        todo = [entry]
        while todo:
            gone = todo.pop()
            if gone.needed() or self.entries.get(gone.id) is not gone:
                continue
            tokens: tuple[int, ...] = ()
            if gone.lineage:
                if gone.status != READY or gone.id not in self.lineage.tasks:
                    continue  # its value is gone already, or could not be made again
                gone.status = GONE
            else:
                del self.entries[gone.id]
                tokens = gone.tokens
                if gone.id in self.lineage.tasks:
                    todo.extend(self.lineage.forget(gone.id))
            if type(gone.value) is tuple:
                extent = extent_of(gone.value)
                if extent is not None:
                    record = self.extents[extent_key(extent)]
                    if record.lifeline == gone.id and not record.tokens:
                        record.tokens, tokens = tokens, ()
                    record.holders -= 1
                    self._release_extent(record)
            if tokens:
                address: Address = gone.id  # type: ignore[assignment]
                self.releases += [(address, token) for token in tokens]
            gone.value = None
            if gone.nested:
                todo.extend(self._uncount_nested(gone))

    def _uncount_nested(self, entry: Entry) -> list[Entry]:
        """Its value is not there any more. Returns what may be released with that."""
        nested, entry.nested = entry.nested, ()
        released = []
        for inner in nested:
            found = self.entries.get(inner)
            if found is not None:
                found.contained -= 1
                released.append(found)
        return released

    # -- losses

    def lose(self, record: ExtentRecord) -> list[Entry]:
        """The memory of an extent is gone. Returns the entries whose value it was."""
        key = extent_key(record.extent)
        lost = []
        for entry in self.entries.values():
            extent = extent_of(entry.value)
            if entry.status == READY and extent is not None and extent_key(extent) == key:
                lost.append(entry)
        released = []
        for entry in lost:
            entry.value = None
            entry.status = GONE if type(entry.id) is int else PENDING
            record.holders -= 1
            released += self._uncount_nested(entry)
        self._release_extent(record)
        # Only now: one of those inside may have had these bytes itself.
        for entry in (*released, *lost):
            self.release_if_unneeded(entry)
        return [entry for entry in lost if self.entries.get(entry.id) is entry]

    # -- extents

    def hold(self, value: Value | Failure, lifeline: Address | None = None) -> None:
        """One more holder of a value; nothing for an inline one.

        Args:
            lifeline: the borrowed object that it is the value of.
        """
        extent = extent_of(value)
        if extent is not None:
            key = extent_key(extent)
            record = self.extents.get(key)
            if record is None:
                record = self.extents[key] = ExtentRecord(extent, lifeline)
                if record.mine and is_file(extent):
                    self.file_bytes += extent[4]
                elif record.mine:
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
            if record.mine:
                if is_file(extent):
                    self.file_bytes -= extent[4]
                else:
                    self.memory_bytes -= extent[4]
                self.freed.append((extent, record.strayed))
            else:
                assert record.lifeline is not None
                self.releases += [(record.lifeline, token) for token in record.tokens]

    def take_freed(self) -> list[tuple[Extent, bool]]:
        """The extents that fell free since the last call; and whether somebody may map them."""
        freed = self.freed
        if freed:
            self.freed = []
        return freed

    def take_releases(self) -> list[Release]:
        """The registrations that are needed no more since the last call."""
        releases = self.releases
        if releases:
            self.releases = []
        return releases

    def check(self) -> None:
        """The invariants; raises AssertionError naming the object."""
        contained: dict[Ref, int] = {}
        holders: dict[ExtentKey, int] = {}
        for entry in self.entries.values():
            kept_value = entry.status == READY and entry.id not in self.lineage.tasks
            borrowed = type(entry.id) is not int
            assert entry.needed() or (
                entry.lineage
                and (entry.status in (GONE, FAILED, CANCELLED) or kept_value or borrowed)
            ), f"object {entry.id} is kept by nothing"
            assert not borrowed or entry.status != GONE, f"borrowed object {entry.id} is gone"
            assert entry.handles >= 0, f"object {entry.id} has {entry.handles} handles"
            assert entry.arguments >= 0, f"object {entry.id}: {entry.arguments} arguments"
            # A task that has failed with another argument stays among them; see `await_inputs`.
            assert entry.status in (PENDING, GONE) or not entry.dependents, (
                f"object {entry.id} is settled and has dependents"
            )
            assert type(entry.id) is int or not entry.borrowers, f"{entry.id} is lent by a borrower"
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
        self.lineage.check()
        for key, count in holders.items():
            record = self.extents.get(key)
            assert record is not None and record.holders >= count, f"extent {key} has no record"
        for key, record in self.extents.items():
            assert record.holders > 0 or record.pins, f"extent {key} is kept by nothing"
            assert extent_key(record.extent) == key, f"extent {key} has lost its name"
        mine = [record.extent for record in self.extents.values() if record.mine]
        assert self.file_bytes == sum(extent[4] for extent in mine if is_file(extent))
        assert self.memory_bytes == sum(extent[4] for extent in mine) - self.file_bytes
        for key in self.resident:
            assert not is_file(self.extents[key].extent), f"extent {key} is on disk already"
