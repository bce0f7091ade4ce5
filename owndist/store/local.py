"""The store of one process: it writes values into its own segments and reads those of any other.

A value is a pickle stream (the head) and the buffers that the pickler left out of it. Together
they fill one extent: a run of whole pages in a segment of the process that wrote it. No two
processes allocate from the same segment, so they need no lock between them.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from owndist.store.segments import (
    GRANULE,
    MAX_NAME,
    PIECE_BYTES,
    SHM_DIRECTORY,
    open_segment,
    segment_name,
    sweep,
    unlink_segment,
    unlink_segments,
)

TYPE_CHECKING = False  # the name is known to type checkers; importing typing costs 3 ms
if TYPE_CHECKING:
    from pickle import PickleBuffer
    from typing import Any

    from owndist.store.allocator import Allocator, Place
    from owndist.store.ledger import Ledger
    from owndist.store.mappings import Key, Mapping, Mappings

    Buffer = bytes | bytearray | memoryview | PickleBuffer

__all__ = ["Extent", "Store", "Stored", "sweep", "unlink_segment", "unlink_segments"]

#: (number, serial, segment, offset, size); see `mappings.Extent`.
Extent = tuple[int, int, str, int, int]
#: (offset, length) in bytes, relative to the extent.
Span = tuple[int, int]
#: (extent, head, spans): the head's bytes or where they lie, and where each buffer lies.
Stored = tuple[Extent, "bytes | Span", tuple[Span, ...]]

#: Up to here, in bytes, the head travels in the descriptor. A value that is one array then fills
#: its pages with nothing but its own bytes.
INLINE_HEAD_BYTES = 8 << 10

#: Whoever waits for room looks again after so many seconds: others may have removed something of
#: theirs, from which no event comes.
_LOOK_AGAIN_S = 0.2

#: Buffers start at multiples of this many bytes, as wide vector instructions like it.
ALIGNMENT = 64

#: Buffers of this many bytes and more start at a page: then writing to one of them leaves the
#: pages of its neighbours alone, and these can still be proven to be unmodified.
PAGE_ALIGNED_FROM_BYTES = 64 << 10


class Store:
    """The store of one process.

    Args:
        session: name of the session, letters and digits, the same for all processes of one
            executor and different from that of any other on this host.
        number: of this process in the session.
        spill_directory: for values that shared memory has no room for. It is made when needed.
        cache_limit_bytes: how much memory to keep for reuse; see `cached_bytes`.
        on_segment: called with n when this process is about to make its n-th segment, and before
            its name can be seen anywhere: there are never more than n. The number should be put
            where it survives this process. Called with a lock held: it must not use the store.
        on_unmapped: called when a mapping has died. That can happen in any thread, at any
            allocation, with any lock held, so it must do next to nothing: set a flag, or write one
            byte to a non-blocking descriptor.
        ledger: counts the shared memory of all processes against the session's limit; None for
            no limit.
        room_wait_s: how long `write` waits, where there is no room at all, before it gives up.
        may_wait: whether the calling thread may; one that would free memory itself may not.

    Raises:
        ValueError: the names of segments would be too long for macOS, or ambiguous.

    Thread safety: complete. No lock is held while bytes are copied.

    A store belongs to the process that made it. In a child made by fork `write` raises, and what
    would give segments away does nothing.
    """

    def __init__(
        self,
        session: str,
        number: int,
        spill_directory: str,
        *,
        cache_limit_bytes: int,
        on_segment: Callable[[int], None] | None = None,
        on_unmapped: Callable[[], None] | None = None,
        ledger: Ledger | None = None,
        room_wait_s: float = 0.0,
        may_wait: Callable[[], bool] = lambda: True,
    ) -> None:
        if not session.isalnum() or len(segment_name(session, number, 9999)) > MAX_NAME:
            raise ValueError(f"session {session!r} does not fit into the name of a segment")
        self.session = session
        self.number = number
        # Many processes never have a large value. The two halves of the store are imported and
        # made when the first one comes.
        self._allocator_arguments = (
            session,
            number,
            spill_directory,
            cache_limit_bytes,
            on_segment,
            ledger,
        )
        self._on_unmapped = on_unmapped
        self._making = threading.Lock()
        self._made_allocator: Allocator | None = None
        self._made_mappings: Mappings | None = None
        self._ledger = ledger
        self._room_wait_s, self._may_wait = room_wait_s, may_wait
        # Each is released to wake its thread. Not a condition, which a Ctrl-C can leave locked.
        self._waiting: deque[Any] = deque()
        self._warned = False
        self._pid = os.getpid()
        self._spills = True
        self._closed = False
        self._serials = itertools.count()  # its next() is atomic
        self._places: dict[int, Place] = {}  # {serial: where the value lies}, until it is freed
        self._copies: dict[
            int, Place
        ] = {}  # {serial: its file}, until it is known which is to stay

    def __repr__(self) -> str:
        return (
            f"<Store {self.session}-{self.number}{' closed' if self._closed else ''}: "
            f"{self.live_values} values of {self.live_bytes} bytes, {self.cached_bytes} bytes kept>"
        )

    @property
    def _allocator(self) -> Allocator:
        """Where values are written."""
        if self._made_allocator is None:
            from owndist.store.allocator import Allocator

            with self._making:
                if self._made_allocator is None:
                    made = Allocator(*self._allocator_arguments)
                    if self._closed:
                        made.close()
                    self._made_allocator = made
        return self._made_allocator

    @property
    def _mappings(self) -> Mappings:
        """What is read."""
        if self._made_mappings is None:
            from owndist.store.mappings import Mappings

            with self._making:
                if self._made_mappings is None:
                    self._made_mappings = Mappings(self._on_unmapped)
        return self._made_mappings

    @property
    def live_bytes(self) -> int:
        """Bytes held by values that this process wrote and that were not freed, files included."""
        return self._made_allocator.live_bytes if self._made_allocator is not None else 0

    @property
    def live_values(self) -> int:
        """How many values this process wrote that were not freed."""
        return len(self._places)

    @property
    def cached_bytes(self) -> int:
        """Bytes of shared memory that hold no value and are kept for the next ones.

        Copying into pages that are there already takes a seventh of the time.
        """
        return self._made_allocator.cached_bytes if self._made_allocator is not None else 0

    def write(self, head: Buffer, buffers: Sequence[Buffer]) -> Stored:
        """Writes a value.

        Args:
            head: its pickle stream.
            buffers: what the pickler's `buffer_callback` was given, or other contiguous bytes.

        Returns:
            Where it is, for `read` in any process of this host.

        Raises:
            StoreFull: neither shared memory nor the disk has room.
            RuntimeError: the store is closed, or belongs to the parent of this process.

        Cost: one copy: 0.02 to 0.06 ms a MiB into recycled memory, 0.35 into new memory.
        """
        if os.getpid() != self._pid:
            raise RuntimeError("this store belongs to the process that this one was forked from")
        from owndist.store.allocator import round_up

        stream = plain_bytes(head)
        inline = len(stream) <= INLINE_HEAD_BYTES
        parts = [] if inline else [(0, stream)]  # (offset in the extent, bytes)
        size = 0 if inline else len(stream)
        spans = []
        for data in map(plain_bytes, buffers):
            large = len(data) >= PAGE_ALIGNED_FROM_BYTES
            offset = round_up(size, GRANULE if large else ALIGNMENT)
            spans.append((offset, len(data)))
            if data:
                parts.append((offset, data))
                size = offset + len(data)
        # Never empty, so that every value has an extent. An empty buffer at the end may be given
        # an offset up to one alignment behind the last byte, but not behind the last page.
        place = self._fill(max(round_up(size, GRANULE), GRANULE), parts)
        if not self._allocator.seal(place):
            self._allocator.discard(place)
            raise RuntimeError("the store is closed")
        serial = next(self._serials)
        self._places[serial] = place
        extent = (self.number, serial, place.segment.name, place.offset, place.size)
        return extent, bytes(stream) if inline else (0, len(stream)), tuple(spans)

    def free(self, extent_serial: int) -> None:
        """Gives up a value that this process wrote; its memory may hold another one next.

        Only when no process has it mapped, and none is about to map it. Serials that are not
        known, because they were freed already, are ignored.
        """
        if os.getpid() != self._pid:
            return
        place = self._places.pop(extent_serial, None)
        if place is not None:
            self._allocator.release(place)
        self._give_up_copy(extent_serial)
        self._tell_of_room()

    def _tell_of_room(self) -> None:
        while self._waiting:
            try:
                self._waiting.popleft().release()
            except IndexError:
                break  # another thread was faster

    def spill(self, extent_serial: int) -> str | None:
        """Copies a value that this process wrote to a file.

        Both are kept until `choose` says which is to stay, or `free` that none is.

        Returns:
            The file, whose first byte is that of the extent; or None if the value was freed
            meanwhile, lies in a file already, or the disk has no room for it.

        Cost: that of writing to the disk. No lock is held.
        """
        place = self._places.get(extent_serial) if self._spills else None
        if os.getpid() != self._pid or place is None or place.segment.in_file:
            return None
        try:
            copy = self._allocator.make_file(place.size)
        except (OSError, RuntimeError):
            return None  # no room, or the store was closed
        try:
            _copy(place, copy)
        except OSError:
            self._allocator.discard(copy)
            return None  # a disk error, or the segment is gone: it was freed meanwhile
        if not self._allocator.seal(copy):
            return None
        # In this order: `free` takes them out in the other one, so one of the two finds it.
        self._copies[extent_serial] = copy
        if extent_serial not in self._places:
            self._give_up_copy(extent_serial)
            return None
        return copy.segment.name

    def stop_spilling(self) -> None:
        """From here on `spill` does nothing: the store is about to be closed."""
        self._spills = False

    def choose(self, extent_serial: int, copy: bool) -> None:
        """Which of a value and its copy is to stay; the other is given up."""
        if not copy:
            self._give_up_copy(extent_serial)
            return
        file = self._copies.pop(extent_serial, None)
        place = self._places.get(extent_serial)
        if file is not None and place is not None:
            self._places[extent_serial] = file
            self._allocator.release(place)

    def _give_up_copy(self, extent_serial: int) -> None:
        copy = self._copies.pop(extent_serial, None)
        if copy is not None:
            self._allocator.release(copy)

    def abandon(self, extent_serial: int) -> None:
        """Gives up a value that nobody needs any more, and that somebody may still have mapped.

        Its memory is not used again. It goes with the last mapping, or, if it shares a segment with
        other values, with the store.
        """
        if os.getpid() != self._pid:
            return
        place = self._places.pop(extent_serial, None)
        if place is not None:
            self._allocator.abandon(place)
        self._give_up_copy(extent_serial)
        self._tell_of_room()

    def check_segment(self, name: str) -> None:
        """Somebody did not find a segment of this process: if it is gone, it is used no more."""
        if os.getpid() == self._pid and self._made_allocator is not None:
            self._made_allocator.check_segment(name)

    def read(self, stored: Stored) -> tuple[Mapping, bytes | memoryview, list[memoryview]]:
        """Maps a value of any process of this host.

        Returns:
            The mapping, the pickle stream, and the buffers. These may be written to; nobody else
            sees that. They keep the mapping alive, and it keeps the bytes valid, whatever becomes
            of the segment's name.

        Raises:
            ObjectLost: the segment is gone.

        Cost: 10 µs, and the page faults of whoever reads the bytes: 0.07 ms a MiB. Before Python
            3.13 a process with very many live mappings gets copies instead; see `Mappings`.
        """
        extent, head, spans = stored
        mapping = self._mappings.open(extent)
        view = memoryview(mapping)
        stream = head if isinstance(head, bytes) else view[head[0] : head[0] + head[1]]
        return mapping, stream, [view[offset : offset + length] for offset, length in spans]

    def mapped(self) -> list[Key]:
        """The extents that have a live mapping in this process, as (number, serial)."""
        return self._made_mappings.keys() if self._made_mappings is not None else []

    def take_unmapped(self) -> list[Key]:
        """The extents whose last mapping has died since the last call, as (number, serial).

        One that was mapped again meanwhile is not among them. One that was read as a copy is.
        """
        return self._made_mappings.take_gone() if self._made_mappings is not None else []

    def alias(self, head: Buffer, buffers: Sequence[Buffer]) -> Stored | None:
        """Where these very bytes lie already, if this process got them by `read`.

        All buffers must lie in one live mapping, and the kernel must say that the pages under them
        were not written to. While the buffers live, so does the mapping; after that it is the
        caller's part to see that the extent is not freed before the reader has it.

        Returns:
            A description of the same value, made without a copy; or None if in any doubt.

        Cost: 30 µs, and 8 ns a page.
        """
        stream = plain_bytes(head)
        if len(stream) > INLINE_HEAD_BYTES or self._made_mappings is None:
            return None
        from owndist.store.pages import address_of, all_unwritten

        ranges: list[tuple[int, int]] = []  # (address, length); an empty buffer has address 0
        for data in map(plain_bytes, buffers):
            address = address_of(data) if data else 0
            if address is None:
                return None
            ranges.append((address, len(data)))
        filled = [(address, length) for address, length in ranges if length]
        found = self._mappings.find(*filled[0]) if filled else None
        if found is None:
            return None
        extent, start = found
        end = start + extent[4]
        if not all(start <= address and address + length <= end for address, length in filled):
            return None
        if not all_unwritten(filled):
            return None
        spans = tuple((address - start if length else 0, length) for address, length in ranges)
        return extent, bytes(stream), spans

    def trim(self, keep_bytes: int = 0) -> int:
        """Gives memory that holds no value back to the system, the longest unused first.

        Args:
            keep_bytes: how much of it to keep.

        Returns:
            The bytes given back.
        """
        if self._made_allocator is None or os.getpid() != self._pid:
            return 0
        return self._made_allocator.shed(keep_bytes)

    def close(self) -> None:
        """Unlinks all segments that this process made. Views of mappings stay valid.

        Further calls do nothing.
        """
        if os.getpid() != self._pid:
            return
        with self._making:
            self._closed = True
        if self._made_allocator is not None:
            self._made_allocator.close()
        self._places.clear()
        self._copies.clear()
        if self._ledger is not None:
            self._ledger.close()

    def _fill(self, size: int, parts: list[tuple[int, memoryview]]) -> Place:
        """Finds a place and copies the parts to it; waits if there is none."""
        found = self._try_to_fill(size, parts)
        until: float | None = None
        while isinstance(found, OSError):
            now = time.monotonic()
            if until is None:
                until = now + (self._room_wait_s if self._may_wait() else 0.0)
                if now < until:
                    self._warn_of_waiting(size)
            if now >= until:
                raise self._full(size, found) from found
            alarm = threading.Lock()
            alarm.acquire()
            self._waiting.append(alarm)
            alarm.acquire(timeout=min(until - now, _LOOK_AGAIN_S))
            found = self._try_to_fill(size, parts)
        return found

    def _try_to_fill(self, size: int, parts: list[tuple[int, memoryview]]) -> Place | OSError:
        from owndist.store.allocator import bare

        failure: OSError = OSError()
        allocator = self._allocator
        left = [allocator.find_in_file, allocator.find_in_memory]
        while left:
            find = left.pop()
            try:
                place = find(size)
            except OSError as error:
                failure = bare(error)
                continue
            try:
                place.segment.write([(place.offset + offset, data) for offset, data in parts])
                return place
            except FileNotFoundError:
                # Somebody has removed the segment: not there, then.
                allocator.discard(place)
                allocator.check_segment(place.segment.name)
                left.append(find)
            except OSError as error:
                # Its room was reserved, so this is rare: a disk error, no more mappings.
                failure = bare(error)
                allocator.discard(place)
            except BaseException:
                allocator.discard(place)
                raise
        return failure

    def _warn_of_waiting(self, size: int) -> None:
        if not self._warned:
            self._warned = True
            logging.getLogger("owndist.store").warning(
                "neither shared memory nor the disk has room for a value of %s bytes: waiting up "
                "to %s s until others are freed (%s)",
                f"{size:,}",
                self._room_wait_s,
                self._describe_holders(),
            )

    def _full(self, size: int, failure: OSError) -> Exception:
        from owndist.errors import StoreFull  # a dear import, needed only when it is raised
        from owndist.store.allocator import describe_room

        spill_directory = self._allocator.spill_directory
        memory = describe_room(SHM_DIRECTORY) + self._allocator.describe_limit()
        return StoreFull(
            f"no room for a value of {size:,} bytes, neither in shared memory "
            f"({memory}) nor on disk ({describe_room(spill_directory)}; "
            f"spill directory {spill_directory}): {failure}; {self._describe_holders()}"
        )

    def _describe_holders(self) -> str:
        sizes = sorted([place.size for place in list(self._places.values())], reverse=True)
        text = f"this process, pid {self._pid}, has written {len(sizes)} values that are kept"
        if sizes:
            text += ", the largest of " + ", ".join(f"{size:,}" for size in sizes[:3]) + " bytes"
        holders = self._ledger.holders() if self._ledger is not None else []
        if holders:
            text += "; most memory is held by " + ", ".join(
                f"pid {pid} ({size:,} bytes)" for pid, size in holders[:5]
            )
        return text


def _copy(place: Place, copy: Place) -> None:
    """Copies the bytes of a value to a file of its own.

    By descriptor and not by a mapping: if it is freed meanwhile, its pages may be gone.
    """
    source = open_segment(place.segment.name, os.O_RDONLY)
    try:
        for start in range(0, place.size, PIECE_BYTES):
            wanted = min(PIECE_BYTES, place.size - start)
            piece = os.pread(source, wanted, place.offset + start)
            copy.segment.write([(start, memoryview(piece))])
    finally:
        os.close(source)


def plain_bytes(buffer: Buffer) -> memoryview:
    """A view of a contiguous buffer as unsigned bytes in one dimension."""
    raw = getattr(buffer, "raw", None)  # a PickleBuffer, which can do this in Fortran order too
    view: memoryview = raw() if raw is not None else memoryview(buffer)
    return view if view.format == "B" and view.ndim == 1 and view.contiguous else view.cast("B")
