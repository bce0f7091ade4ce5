"""How much shared memory the processes of a session have taken, in a page that all of them map.

Each process writes only its own slot, so there is no lock that a dead one could hold. To take
memory is to write one's own figure first and to add up all figures then: of two that take at once,
the later sees the sum of both. So the sum never stays above the limit, and no process is asked for
leave.

The alternative, that owners count what they are told of, would be late: a value is there before its
owner hears of it, and each owner knows its own values only.
"""

from __future__ import annotations

import mmap
import os
import sys
import threading

#: How many processes may be counted at a time. One that finds no slot takes no memory: its values
#: go to files.
SLOTS = 4000

_LIMIT, _SLOTS_USED, _FIRST = 0, 1, 2
_PIDS = _FIRST + SLOTS  # of the processes that have the slots
_SIZE = 64 << 10


def create_ledger(limit_bytes: int) -> int:
    """An anonymous file for one session's ledger; returns its descriptor, for forks to inherit."""
    if sys.platform == "linux":
        fd = os.memfd_create("owndist-ledger")
    else:
        import tempfile

        fd, path = tempfile.mkstemp(prefix="owndist-")
        os.unlink(path)
    os.ftruncate(fd, _SIZE)
    os.pwrite(fd, limit_bytes.to_bytes(8, sys.byteorder), 8 * _LIMIT)
    return fd


class Ledger:
    """The ledger as one process sees it.

    Args:
        fd: of the session's ledger. It may be closed afterwards.
        slot: this process's own; `SLOTS` or more if there was none left.

    Thread safety: complete.
    """

    def __init__(self, fd: int, slot: int) -> None:
        self._map = mmap.mmap(fd, _SIZE)
        self._words = memoryview(self._map).cast("Q")
        self._slot = slot
        self._lock = threading.Lock()
        if slot < SLOTS:
            self._words[_SLOTS_USED] = max(self._words[_SLOTS_USED], slot + 1)
            self._words[_PIDS + slot] = os.getpid()

    @property
    def limit_bytes(self) -> int:
        """How much all processes together may take."""
        return self._words[_LIMIT]

    @property
    def taken_bytes(self) -> int:
        """How much they have taken, with what they keep free for their next values."""
        return sum(self._words[_FIRST : _FIRST + self._words[_SLOTS_USED]])

    @property
    def is_tight(self) -> bool:
        """Whether so much is taken that nothing should be kept free."""
        return self.taken_bytes > self.limit_bytes * 4 // 5

    def holders(self) -> list[tuple[int, int]]:
        """(pid, bytes) of the processes that have taken something, the largest first."""
        used = self._words[_SLOTS_USED]
        taken = zip(
            self._words[_PIDS : _PIDS + used], self._words[_FIRST : _FIRST + used], strict=True
        )
        return sorted([item for item in taken if item[1]], key=lambda item: -item[1])

    def take(self, size: int) -> bool:
        """Asks for memory. False: it would be more than the limit."""
        if self._slot >= SLOTS:
            return False
        with self._lock:
            self._words[_FIRST + self._slot] += size
            if self.taken_bytes <= self.limit_bytes:
                return True
            self._words[_FIRST + self._slot] -= size
            return False

    def give(self, size: int) -> None:
        """Gives memory back."""
        if self._slot < SLOTS:
            with self._lock:
                self._words[_FIRST + self._slot] -= size

    def bury(self, slot: int, left_bytes: int) -> None:
        """The process that had this slot is dead. What is left of its memory is this one's now."""
        if slot < SLOTS and self._slot < SLOTS:
            with self._lock:
                self._words[_FIRST + self._slot] += left_bytes
                self._words[_FIRST + slot] = 0

    def close(self) -> None:
        """Unmaps it. From here on nothing is taken, and nothing counted."""
        with self._lock:
            self._slot = SLOTS
            words, self._words = self._words, memoryview(bytearray(8 * _FIRST)).cast("Q")
            words.release()
            self._map.close()
