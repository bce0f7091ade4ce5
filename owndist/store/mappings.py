"""The reading side: private mappings of extents, and the news of their ends.

Each read makes a mapping of its own, copy on write. So whoever has the value may write to it and
nobody else sees that, not even a later read in the same process; an older mapping could not be
handed out again, because its owner may have written to it.

The views of a value keep its mapping alive; when the last of them dies, so does the mapping. Nobody
ever closes one.
"""

from __future__ import annotations

import mmap
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable

from owndist.store.pages import address_of
from owndist.store.segments import open_segment

#: (number, serial, segment, offset, size): the process that wrote it, unique in that process, the
#: segment's name, where in it, how many bytes. Offset and size are whole granules.
Extent = tuple[int, int, str, int, int]
#: (number, serial) of an extent.
Key = tuple[int, int]

# Linux lets a process have 65,530 mappings. Half of them may be ours.
_MOST_MAPPINGS = 30_000

# macOS refuses private mappings of shared memory: there every read is a copy.
_CAN_MAP_SHM_PRIVATELY = sys.platform != "darwin"


class Mapping(mmap.mmap):
    """One extent, mapped privately. Views of it keep it alive; do not close it."""

    __slots__ = ()


class _Watch(weakref.ref[Mapping]):
    """A weak reference to a mapping that knows its extent."""

    __slots__ = ("extent", "address")

    extent: Extent
    address: int | None  # of the mapping, once somebody asked for it


class Mappings:
    """The live mappings of one process.

    There is a limit to their number. Beyond it a read gives a copy, whose extent counts as
    unmapped at once.

    Args:
        on_unmapped: called when a mapping has died; see `Store`.

    Thread safety: complete. A mapping may die in any thread, at any allocation, with any lock held
    (ours too); its end is only put into a queue, which the next call of a method reads.
    """

    def __init__(self, on_unmapped: Callable[[], None] | None) -> None:
        self._lock = threading.Lock()
        self._watches: dict[int, _Watch] = {}  # {id of watch: watch}, until its end is noticed
        self._counts: dict[Key, int] = {}  # {extent: mappings, all more than 0}
        self._gone: dict[Key, None] = {}  # extents without a mapping now, that nobody was told of
        self._dead: deque[_Watch] = deque()  # ends not yet noticed
        self._limit = _mapping_limit()
        dead, getpid, pid = self._dead, os.getpid, os.getpid()

        def on_death(watch: _Watch) -> None:
            dead.append(watch)
            # A child made by fork drops its copies of the mappings: nobody's news but its own.
            if on_unmapped is not None and getpid() == pid:
                on_unmapped()

        self._on_death = on_death
        self._on_unmapped = on_unmapped

    def open(self, extent: Extent) -> Mapping:
        """Maps an extent.

        Raises:
            ObjectLost: its segment is gone, or shorter than it was.
        """
        number, serial, segment, offset, size = extent
        with self._lock:
            self._notice()
            full = len(self._watches) >= self._limit
        try:
            fd = open_segment(segment, os.O_RDONLY)
        except FileNotFoundError:
            raise _lost(extent, "is gone") from None
        try:
            if os.fstat(fd).st_size < offset + size:
                raise _lost(extent, "is too short")
            if full or not (_CAN_MAP_SHM_PRIVATELY or os.path.isabs(segment)):
                return self._copy(extent, fd)
            mapping = _map_privately(fd, offset, size)
        finally:
            os.close(fd)
        watch = _Watch(mapping, self._on_death)
        watch.extent = extent
        watch.address = None
        with self._lock:
            self._watches[id(watch)] = watch
            self._counts[number, serial] = self._counts.get((number, serial), 0) + 1
            self._gone.pop((number, serial), None)
        return mapping

    def keys(self) -> list[Key]:
        """The extents that have a live mapping."""
        with self._lock:
            self._notice()
            return list(self._counts)

    def take_gone(self) -> list[Key]:
        """The extents that had a mapping, have none now, and were not in an earlier answer."""
        with self._lock:
            self._notice()
            gone = list(self._gone)
            self._gone.clear()
            return gone

    def find(self, address: int, length: int) -> tuple[Extent, int] | None:
        """The extent whose live mapping some bytes lie in, and the address of that mapping.

        The caller holds the bytes, so the mapping that is found stays alive.
        """
        with self._lock:
            watches = list(self._watches.values())
        for watch in watches:
            if watch.address is None:
                mapping = watch()
                if mapping is None:
                    continue
                watch.address = address_of(memoryview(mapping))
                if watch.address is None:
                    return None
            start = watch.address
            if start <= address and address + length <= start + watch.extent[4]:
                # The address of a dead mapping may already belong to another one.
                if watch() is not None:
                    return watch.extent, start
        return None

    def _copy(self, extent: Extent, fd: int) -> Mapping:
        """A mapping without a segment behind it, that holds a copy of the extent's bytes."""
        number, serial, _, offset, size = extent
        copy = Mapping(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        # Mapped for a moment, because shared memory of macOS cannot be read by descriptor.
        source = mmap.mmap(fd, size, prot=mmap.PROT_READ, offset=offset)
        copy[:] = source
        source.close()
        with self._lock:
            self._notice()
            if (number, serial) not in self._counts:
                self._gone[number, serial] = None
        if self._on_unmapped is not None:
            self._on_unmapped()
        return copy

    def _notice(self) -> None:
        """Enters the queued ends into the books. The lock is held."""
        while True:
            try:
                watch = self._dead.popleft()
            except IndexError:
                return
            del self._watches[id(watch)]
            key = watch.extent[0], watch.extent[1]
            self._counts[key] -= 1
            if not self._counts[key]:
                del self._counts[key]
                self._gone[key] = None


def _map_privately(fd: int, offset: int, size: int) -> Mapping:
    flags, prot = mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE
    if sys.version_info >= (3, 13):
        return Mapping(fd, size, flags=flags, prot=prot, offset=offset, trackfd=False)
    else:
        return Mapping(fd, size, flags=flags, prot=prot, offset=offset)


def _mapping_limit() -> int:
    """How many mappings may be alive before further reads are copies.

    Before Python 3.13 each mapping holds a descriptor for as long as it lives. A program that keeps
    a thousand results would run out of them, which it does not with ProcessPoolExecutor. Half of
    what the process may have is ours, the rest is for the user's files.
    """
    if sys.version_info >= (3, 13):
        return _MOST_MAPPINGS
    else:
        soft = os.sysconf("SC_OPEN_MAX")
        return _MOST_MAPPINGS if soft < 0 else min(soft // 2, _MOST_MAPPINGS)


def _lost(extent: Extent, what: str) -> Exception:
    from owndist.errors import ObjectLost  # a dear import, needed only when it is raised

    number, serial, segment, _, size = extent
    error = ObjectLost(
        f"value {serial} of process {number} ({size} bytes) cannot be read: "
        f"its segment {segment!r} {what}"
    )
    error.extent = extent
    return error
