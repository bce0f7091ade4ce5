"""Which bytes of a segment are taken: sizes in, offsets out, no input or output of its own.

An extent is a run of whole granules (pages). Its granules are all free or all taken, so two
extents never share a page: a reader maps its own pages and no other value's.

The free runs are kept in two dictionaries that mirror each other, by first offset and by end.
Giving an extent back looks up both neighbours and merges with them, so that free runs never touch.
A search walks all free runs. An arena of 64 MiB with values of 100 KiB has at most some 300 of
them, and usually fewer than ten, so a sorted structure would cost more than it saves.
"""

from __future__ import annotations


class Arena:
    """The free and taken extents of one segment.

    Args:
        capacity: bytes of the segment, a multiple of the granule.
        granule: bytes of the smallest extent; every offset and size is a multiple of it.

    Thread safety: none; the caller holds a lock.
    """

    __slots__ = ("capacity", "granule", "live_bytes", "_free_by_start", "_free_by_end", "_taken")

    def __init__(self, capacity: int, granule: int = 4096) -> None:
        if capacity <= 0 or capacity % granule:
            raise ValueError(f"capacity {capacity} is not a multiple of {granule}")
        self.capacity = capacity
        self.granule = granule
        #: Bytes in taken extents.
        self.live_bytes = 0
        self._free_by_start = {0: capacity}  # {start: end}
        self._free_by_end = {capacity: 0}  # {end: start}
        self._taken: dict[int, int] = {}  # {start: size}

    def allocate(self, size: int) -> int | None:
        """Takes an extent from the tightest free run that holds it.

        Args:
            size: bytes, rounded up to whole granules.

        Returns:
            The offset of the extent, or None if no free run is long enough.
        """
        size = -(-size // self.granule) * self.granule
        if size <= 0:
            raise ValueError(f"an extent of {size} bytes")
        best_start, best_length = -1, self.capacity + 1
        for start, end in self._free_by_start.items():
            length = end - start
            # Between equals the lower offset wins: the tail stays free, and can be given back.
            if size <= length and (length, start) < (best_length, best_start):
                best_start, best_length = start, length
        if best_start < 0:
            return None
        end = self._remove_free(best_start)
        if best_start + size < end:
            self._add_free(best_start + size, end)
        self._taken[best_start] = size
        self.live_bytes += size
        return best_start

    def release(self, offset: int) -> int:
        """Gives an extent back.

        Returns:
            The bytes that are free again.

        Raises:
            ValueError: no extent starts there.
        """
        size = self._taken.pop(offset, None)
        if size is None:
            raise ValueError(f"no extent starts at offset {offset}")
        self.live_bytes -= size
        start, end = offset, offset + size
        before = self._free_by_end.get(start)
        if before is not None:
            self._remove_free(before)
            start = before
        if end in self._free_by_start:
            end = self._remove_free(end)
        self._add_free(start, end)
        return size

    @property
    def tail(self) -> int:
        """The offset behind the last taken extent: from here on everything is free."""
        return self._free_by_end.get(self.capacity, self.capacity)

    def check(self) -> None:
        """Raises AssertionError if the books are wrong; for tests."""
        runs = sorted(
            [(start, end, "free") for start, end in self._free_by_start.items()]
            + [(start, start + size, "taken") for start, size in self._taken.items()]
        )
        position, last = 0, "taken"
        for start, end, kind in runs:
            assert start == position and end > start, runs
            assert not (kind == "free" and last == "free"), runs
            assert start % self.granule == 0, runs
            position, last = end, kind
        assert position == self.capacity, runs
        assert {end: start for start, end in self._free_by_start.items()} == self._free_by_end
        assert sum(self._taken.values()) == self.live_bytes

    def _add_free(self, start: int, end: int) -> None:
        self._free_by_start[start] = end
        self._free_by_end[end] = start

    def _remove_free(self, start: int) -> int:
        end = self._free_by_start.pop(start)
        del self._free_by_end[end]
        return end
