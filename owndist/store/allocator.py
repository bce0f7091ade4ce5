"""Where the next value goes: arenas for small ones, a segment each for large ones, files at last.

A small value shares an arena segment with others. A large one gets a segment of its own; given
back, it is kept for a while, for a value of about its size. Where shared memory has no room left,
all that is kept free is given back to the system first, then values go to files below the spill
directory.

Keeping memory is what makes writing fast: making fresh pages costs several times the copy, and
taking them apart again as much as the copy (`Segment` has the figures).
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable

from owndist.store.arena import Arena
from owndist.store.ledger import Ledger
from owndist.store.segments import GRANULE, SHM_DIRECTORY, Segment, open_segment, segment_name

#: Arena segments double in size from the first to the second of these, in bytes. They get their
#: pages only as these are needed, so a large one costs nothing while it is empty.
ARENA_START_BYTES = 8 << 20
ARENA_LIMIT_BYTES = 64 << 20

#: A value larger than this part of the newest arena gets a segment of its own.
ARENA_SHARE = 4

#: Arenas reserve their memory in steps of this many bytes, so that not each value costs a call.
ARENA_STEP_BYTES = 1 << 20

#: A recycled segment may be larger than its value by up to this part of itself.
CACHE_WASTE = 0.25

_log = logging.getLogger("owndist.store")


class Place:
    """Where a value lies in a segment of this process."""

    __slots__ = ("segment", "arena", "offset", "size")

    def __init__(self, segment: Segment, arena: Arena | None, offset: int, size: int) -> None:
        self.segment = segment
        self.arena = arena  # None: the segment holds nothing else
        self.offset = offset
        self.size = size

    @property
    def held_bytes(self) -> int:
        """What the value takes up: more than its size in a recycled segment."""
        return self.size if self.arena is not None else self.segment.size


class Allocator:
    """The segments of one process: which are in use, which are kept free.

    Args:
        session, number, spill_directory, cache_limit_bytes, on_segment, ledger: as for `Store`.

    Thread safety: complete. Segments are unlinked, and those of large values made and reserved,
    with no lock held: that takes 0.15 and 0.25 ms a MiB.
    """

    def __init__(
        self,
        session: str,
        number: int,
        spill_directory: str,
        cache_limit_bytes: int,
        on_segment: Callable[[int], None] | None,
        ledger: Ledger | None,
    ) -> None:
        self._session = session
        self._number = number
        self.spill_directory = os.path.abspath(spill_directory)
        self._cache_limit_bytes = cache_limit_bytes
        self._on_segment = on_segment
        self._ledger = ledger
        self._lock = threading.Lock()
        # All below is guarded by the lock.
        self._closed = False
        self._segments_made = 0
        self._segments: dict[str, Segment] = {}  # {name: segment}, all that are to be unlinked
        self._arenas: list[tuple[Segment, Arena]] = []  # oldest first
        self._cache: list[Segment] = []  # free ones that held one value each, oldest first
        self._live_bytes = 0  # held by places that are sealed and not yet released
        self._warned = False

    @property
    def live_bytes(self) -> int:
        """Bytes held by values, files included."""
        return self._live_bytes

    @property
    def cached_bytes(self) -> int:
        """Bytes of memory that hold no value and are kept for the next ones."""
        with self._lock:
            return self._count_cached()

    def find_in_memory(self, size: int) -> Place:
        """Finds room in shared memory; gives up what is kept free if there is none otherwise.

        Args:
            size: bytes, whole granules.

        Raises:
            OSError: no room, or no shared memory at all.
            RuntimeError: closed.
        """
        try:
            return self._find(size)
        except FileNotFoundError:
            self.check_all()
        except OSError:
            if not self.shed(0):
                raise
        return self._find(size)

    def find_in_file(self, size: int) -> Place:
        """Makes a file for one value.

        Raises:
            OSError: no room on the disk, or the spill directory cannot be used.
            RuntimeError: closed.
        """
        self._warn(size)
        return self.make_file(size)

    def make_file(self, size: int) -> Place:
        """The same without a warning, for a value that is moved to disk."""
        _make_private_directory(self.spill_directory)
        return self._make_place(size, self.spill_directory)

    def seal(self, place: Place) -> bool:
        """Notes that a place has been written in full; False if all was closed meanwhile."""
        with self._lock:
            if self._closed:
                return False
            end = place.offset + place.size
            place.segment.written = max(place.segment.written, end)
            self._live_bytes += place.held_bytes
            return True

    def release(self, place: Place) -> None:
        """Takes a sealed place back, to keep its memory for later or not."""
        segment = place.segment
        keep = not segment.in_file and segment.size <= self._cache_limit_bytes
        with self._lock:
            if self._closed:
                return  # all is unlinked
            self._live_bytes -= place.held_bytes
            if place.arena is not None:
                place.arena.release(place.offset)
            elif keep and segment.name in self._segments:  # else somebody has removed it
                self._cache.append(segment)
        if place.arena is None and not keep:
            self._unlink(segment)
        tight = self._ledger is not None and self._ledger.is_tight
        self.shed(0 if tight else self._cache_limit_bytes)

    def discard(self, place: Place) -> None:
        """Takes a place back that could not be written, so that was never sealed."""
        if place.arena is None:
            self._unlink(place.segment)
        else:
            with self._lock:
                place.arena.release(place.offset)

    def abandon(self, place: Place) -> None:
        """Never uses a sealed place again, for it may have readers that nobody knows."""
        with self._lock:
            if self._closed:
                return  # all is unlinked
            self._live_bytes -= place.held_bytes
        if place.arena is None:
            self._unlink(place.segment)

    def check_all(self) -> None:
        """Uses no segment any more that somebody has removed."""
        with self._lock:
            names = list(self._segments)
        for name in names:
            self.check_segment(name)

    def check_segment(self, name: str) -> None:
        """Uses a segment no more if it cannot be opened by its name."""
        try:
            fd = open_segment(name, os.O_RDONLY)
        except OSError:
            pass  # it is gone: that is what is asked
        else:
            short = os.fstat(fd).st_size
            os.close(fd)
            with self._lock:
                known = self._segments.get(name)
                if known is None or short >= known.size:
                    return
        with self._lock:
            segment = self._segments.pop(name, None)
            if segment is None:
                return
            self._arenas = [pair for pair in self._arenas if pair[0] is not segment]
            self._cache = [kept for kept in self._cache if kept is not segment]
        segment.unlink()  # it may be there, and too short
        if not segment.in_file:
            self._give(segment.reserved)

    def shed(self, keep_bytes: int) -> int:
        """Brings the memory kept free down to `keep_bytes`, and returns what was given back.

        Segments that held one value go first, the longest unused of them before the others; then
        the free ends of arenas. Free runs between the values of an arena stay.
        """
        given_back = 0
        doomed = []
        with self._lock:
            excess = self._count_cached() - keep_bytes
            while given_back < excess and self._cache:
                segment = self._cache.pop(0)
                given_back += segment.size
                doomed.append(segment)
            for segment, arena in reversed(self._arenas):
                if given_back >= excess:
                    break
                enough = round_up(max(segment.reserved - (excess - given_back), 0), GRANULE)
                try:
                    shrunk = segment.shrink(max(arena.tail, enough))
                except FileNotFoundError:
                    continue  # somebody has removed it
                given_back += shrunk
                self._give(shrunk)
        for segment in doomed:
            self._unlink(segment)
        return given_back

    def close(self) -> None:
        """Unlinks every segment, once."""
        with self._lock:
            self._closed = True
            self._live_bytes = 0
            segments = list(self._segments.values())
            self._segments.clear()
            self._arenas.clear()
            self._cache.clear()
        for segment in segments:
            segment.unlink()

    # -- memory ----------------------------------------------------------------------------------

    def _find(self, size: int) -> Place:
        with self._lock:
            self._check_open()
            newest = self._arenas[-1][0].size if self._arenas else ARENA_START_BYTES
            small = size <= newest // ARENA_SHARE
            place = self._find_in_arenas(size) if small else self._find_in_cache(size)
        if place is not None:
            return place
        if not small:
            return self._make_place(size)
        wanted = min(2 * newest, ARENA_LIMIT_BYTES) if self._arenas else ARENA_START_BYTES
        segment = self._make(wanted)
        arena = Arena(wanted, GRANULE)
        try:
            with self._lock:
                place = self._allocate(segment, arena, size)
                assert place is not None, "an empty arena holds any value that may share one"
                self._arenas.append((segment, arena))
                return place
        except BaseException:
            self._unlink(segment)
            raise

    def _find_in_arenas(self, size: int) -> Place | None:
        """The oldest arena first, so that newer ones empty and can be given back."""
        failure: OSError | None = None
        for segment, arena in self._arenas:
            try:
                place = self._allocate(segment, arena, size)
            except OSError as error:
                # No memory for more pages. An older value's pages in another arena may yet do;
                # a new arena could not.
                failure = bare(error)
                continue
            if place is not None:
                return place
        if failure is not None:
            try:
                raise failure
            finally:
                failure = None  # it has this frame in its traceback
        return None

    def _find_in_cache(self, size: int) -> Place | None:
        best: Segment | None = None
        for segment in self._cache:
            if segment.size * (1 - CACHE_WASTE) <= size <= segment.size and (
                best is None or segment.size < best.size
            ):
                best = segment
        if best is None:
            return None
        self._cache.remove(best)
        return Place(best, None, 0, size)

    def _make_place(self, size: int, directory: str | None = None) -> Place:
        """A new segment for one value, with all its memory."""
        segment = self._make(size, directory)
        try:
            self._reserve(segment, size)
        except BaseException:
            self._unlink(segment)
            raise
        return Place(segment, None, 0, size)

    def _allocate(self, segment: Segment, arena: Arena, size: int) -> Place | None:
        """An extent of an arena with memory behind it, or None. The lock is held.

        Raises:
            OSError: there is no memory for it.
        """
        offset = arena.allocate(size)
        if offset is None:
            return None
        end = offset + size
        try:
            if end > segment.reserved:
                for wanted in (min(round_up(end, ARENA_STEP_BYTES), segment.size), end):
                    try:
                        self._reserve(segment, wanted)
                        break
                    except OSError:
                        if wanted == end:
                            raise  # else a whole step does not fit, but this value may
        except BaseException:
            arena.release(offset)
            raise
        return Place(segment, arena, offset, size)

    def _reserve(self, segment: Segment, end: int) -> None:
        """Has a segment get its memory, if the limit allows it."""
        missing = end - segment.reserved
        if self._ledger is None or segment.in_file or missing <= 0:
            segment.reserve(end)
            return
        if not self._ledger.take(missing):
            text = f"the limit of the executor's store, {self._ledger.limit_bytes:,} bytes"
            raise OSError(errno.ENOSPC, text)
        try:
            segment.reserve(end)
        except BaseException:
            self._ledger.give(max(end - segment.reserved, 0))
            raise

    def _give(self, size: int) -> None:
        if self._ledger is not None:
            self._ledger.give(size)

    def _count_cached(self) -> int:
        return sum(segment.size for segment in self._cache) + sum(
            segment.reserved - arena.live_bytes for segment, arena in self._arenas
        )

    # -- segments --------------------------------------------------------------------------------

    def _make(self, size: int, directory: str | None = None) -> Segment:
        """Creates a segment and enters it among those to be unlinked."""
        while True:
            with self._lock:
                self._check_open()
                name = segment_name(self._session, self._number, self._segments_made)
                self._segments_made += 1
                if self._on_segment is not None:
                    # Before the segment exists: a process killed between the two would leave one
                    # that nobody counts. To count one that never came to be does no harm.
                    self._on_segment(self._segments_made)
            if directory is not None:
                name = os.path.join(directory, name)
            try:
                segment = Segment(name, size)
            except FileExistsError:
                continue  # somebody else's, so not ours to touch
            with self._lock:
                if not self._closed:
                    self._segments[name] = segment
                    return segment
            segment.unlink()

    def _unlink(self, segment: Segment) -> None:
        with self._lock:
            if self._segments.pop(segment.name, None) is None:
                return  # closed meanwhile, and unlinked there
        segment.unlink()
        if not segment.in_file:
            self._give(segment.reserved)

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the store is closed")

    def describe_limit(self) -> str:
        """What of the session's limit is taken, in words to follow others."""
        ledger = self._ledger
        if ledger is None:
            return ""
        return f"; {ledger.taken_bytes:,} of the store's limit of {ledger.limit_bytes:,} bytes used"

    def _warn(self, size: int) -> None:
        """Says, once, that shared memory was not enough."""
        with self._lock:
            if self._warned:
                return
            self._warned = True
        _log.warning(
            "no room for a value of %s bytes in shared memory (%s%s): it goes to a file in %s "
            "(%s), as further ones may, which is slower. In a container, give it more shared "
            "memory, for example: docker run --shm-size=2g",
            f"{size:,}",
            describe_room(SHM_DIRECTORY),
            self.describe_limit(),
            self.spill_directory,
            describe_room(self.spill_directory),
        )


def bare(error: OSError) -> OSError:
    """An error that is kept while others are tried, without what it would keep with it.

    A traceback holds its frames, and these all their callers' frames up to the user's own. One of
    them would hold the error: nothing of all that would go before the next garbage collection.
    """
    error.__context__ = None
    return error.with_traceback(None)


def round_up(size: int, step: int) -> int:
    """The next multiple of `step`."""
    return -(-size // step) * step


def describe_room(directory: str) -> str:
    """How much of a file system is free, in words, for messages."""
    while True:
        try:
            room = os.statvfs(directory)
            break
        except OSError:
            parent = os.path.dirname(directory)
            if directory == SHM_DIRECTORY or parent == directory:
                return f"there is no {directory}"
            directory = parent  # the spill directory is made only when it is needed
    free, total = room.f_bavail * room.f_frsize, room.f_blocks * room.f_frsize
    return f"{free:,} of {total:,} bytes free in {directory}"


def _make_private_directory(path: str) -> None:
    """Makes a directory for this user alone.

    Raises:
        PermissionError: it is there already, and somebody else may have prepared it.
    """
    os.makedirs(path, mode=0o700, exist_ok=True)
    found = os.lstat(path)
    if os.path.islink(path) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise PermissionError(f"{path} belongs to another user, or others may write to it")
