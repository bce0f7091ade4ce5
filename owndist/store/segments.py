"""Segments: named pieces of memory that one process creates and every process of the host can map.

A segment is POSIX shared memory, or a file below the spill directory where there is no room for
that. Its name says which: the name of a file is an absolute path. It is called
`od-<session>-<number>-<k>`: the k-th segment made by process `number` of a session. So a process's
segments can be found and unlinked after its death by counting alone, also on systems that cannot
list shared memory.

No descriptor is kept. A segment is opened by name for the few calls that need one, because the
stock limit of 1,024 descriptors is a poor thing to share with the user's program.
"""

from __future__ import annotations

import errno
import mmap
import os
import sys
import threading

try:
    import _posixshmem  # type: ignore[import-not-found]
except ImportError:  # a Python built without it: every segment is a file
    _posixshmem = None

#: Extents start and end at multiples of this. 4096 on most systems; where mappings must start at
#: larger steps (16 KiB on Apple's own processors) it is that step.
GRANULE = max(4096, mmap.ALLOCATIONGRANULARITY)

#: The largest piece handed to one system call or one copy, in bytes. Between two pieces other
#: threads may run, and a signal is served: tmpfs undoes a whole reservation that a signal
#: interrupts, so reserving 1 GiB at once under a profiler's timer might never end.
PIECE_BYTES = 16 << 20

#: Where Linux keeps POSIX shared memory.
SHM_DIRECTORY = "/dev/shm"

#: Longest name that every system accepts: macOS takes 31 characters with the slash.
MAX_NAME = 30

# posix_fallocate is not there on every file system. Then the first write, which goes through
# pwrite, is what meets a full disk.
_NO_FALLOCATE = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)

# Shared memory of macOS knows no pwrite: there all writes go through a mapping.
_CAN_PWRITE_SHM = sys.platform != "darwin"

# MADV_POPULATE_READ of Linux 5.14; the mmap module has no name for it. Elsewhere the pages are
# faulted in one by one. For a shared mapping of tmpfs it makes entries that can be written through
# too, at half the price of MADV_POPULATE.
_POPULATE = 22 if sys.platform == "linux" else None


def segment_name(session: str, number: int, k: int) -> str:
    """The name of the k-th segment of a process, without a slash."""
    return f"od-{session}-{number}-{k}"


def lock_name(session: str) -> str:
    """The name of the file that is locked while the session lives; see `session_lock`."""
    return f"od-{session}-lock"


def open_segment(name: str, flags: int) -> int:
    """Opens a segment by name and returns the descriptor, which is not inherited.

    Raises:
        OSError: as `open(2)`.
    """
    if os.path.isabs(name):
        return os.open(name, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    if _posixshmem is None:
        raise OSError(errno.ENOSYS, "this Python has no POSIX shared memory", name)
    fd: int = _posixshmem.shm_open("/" + name, flags, mode=0o600)
    return fd


def unlink_segment(name: str) -> bool:
    """Removes a segment's name; mappings of it stay valid.

    Returns:
        False if there was no such segment.
    """
    try:
        if os.path.isabs(name):
            os.unlink(name)
        elif _posixshmem is None:
            return False
        else:
            _posixshmem.shm_unlink("/" + name)
    except FileNotFoundError:
        return False
    return True


def is_there(name: str) -> bool:
    """Whether a segment of any process is found by its name, as far as that can be told."""
    try:
        os.close(open_segment(name, os.O_RDONLY))
    except FileNotFoundError:
        return False
    except OSError:
        pass  # no descriptors, perhaps
    return True


def size_of_segment(name: str) -> int:
    """How much memory a segment of any process has; 0 if it is gone."""
    try:
        fd = open_segment(name, os.O_RDONLY)
    except OSError:
        return 0
    try:
        return os.fstat(fd).st_blocks * 512  # the unit of st_blocks, whatever the file system's is
    finally:
        os.close(fd)


class Segment:
    """One segment that this process created, and may write to.

    The cheapest way to write differs with the age of the pages. Measured on 2 cores of x86-64
    under Linux 6.18 with Python 3.11, medians, in ms:

        =============================================  ========  ========
        into pages never touched                        256 MiB     1 MiB
        reserve, then pwrite                                113      0.32
        pwrite alone                                        103      0.29
        reserve, then copy through a new mapping            153      0.53
        the same, all its page entries made first           190      0.65
        ---------------------------------------------  --------  --------
        into pages of an earlier value
        copy through a kept mapping                          14     0.020
        pwrite                                               52      0.11
        copy through a new mapping                           88      0.28
        the same, all its page entries made first            37      0.12
        =============================================  ========  ========

    Hence: what was never written goes by pwrite; what was goes through one mapping that is kept,
    whose page entries are made in one sweep before they are used. Pages are reserved before they
    are written although that costs 10 %: then a copy through the mapping can never meet a page for
    which there is no room, which would kill the process (SIGBUS).

    Thread safety: `reserve`, `shrink` and `written` need the caller's lock; `write` may run in
    several threads, for extents that do not overlap.
    """

    __slots__ = ("name", "size", "reserved", "written", "_populated", "_mapping", "_resizing")

    def __init__(self, name: str, size: int) -> None:
        """Creates the segment, without any pages yet.

        Raises:
            FileExistsError: the name is taken.
            OSError: as `open(2)` and `ftruncate(2)`.
        """
        #: Name of the shared memory, or absolute path of the file.
        self.name = name
        #: Length in bytes; how much of it has memory behind it, `reserved` says.
        self.size = size
        #: Bytes from the start that have memory behind them. Added by `reserve`, removed by
        #: `shrink`.
        self.reserved = 0
        #: Bytes from the start that were written once at least. Set by the caller when an extent
        #: is complete.
        self.written = 0
        self._populated = 0  # bytes from the start that the kept mapping has page entries for
        self._mapping: mmap.mmap | None = None
        # Held while the file may be shorter than `size`: then it cannot be mapped.
        self._resizing = threading.Lock()
        fd = open_segment(name, os.O_CREAT | os.O_EXCL | os.O_RDWR)
        try:
            os.ftruncate(fd, size)
        except BaseException:
            unlink_segment(name)
            raise
        finally:
            os.close(fd)

    @property
    def in_file(self) -> bool:
        """Whether this is a file of the spill directory."""
        return os.path.isabs(self.name)

    def reserve(self, end: int) -> None:
        """Makes sure that the bytes up to `end` have memory (or disk) behind them.

        Raises:
            OSError: there is no room (ENOSPC and kin). What had been reserved before stays.
        """
        if end <= self.reserved:
            return
        if hasattr(os, "posix_fallocate"):
            fd = open_segment(self.name, os.O_RDWR)
            try:
                for start in range(self.reserved, end, PIECE_BYTES):
                    os.posix_fallocate(fd, start, min(PIECE_BYTES, end - start))
                    self.reserved = min(start + PIECE_BYTES, end)
            except OSError as error:
                if error.errno not in _NO_FALLOCATE:
                    raise
            finally:
                os.close(fd)
        self.reserved = end

    def write(self, parts: list[tuple[int, memoryview]]) -> None:
        """Copies each part of plain bytes to its offset.

        Cost: see the class.

        Raises:
            OSError: from pwrite: no room after all, a disk error.
        """
        end = max((offset + len(data) for offset, data in parts), default=0)
        if end <= self.written or not (self.in_file or _CAN_PWRITE_SHM):
            mapping = self._writable(end)
            for offset, data in parts:
                for start in range(0, len(data), PIECE_BYTES):
                    piece = data[start : start + PIECE_BYTES]
                    mapping[offset + start : offset + start + len(piece)] = piece
            return
        fd = open_segment(self.name, os.O_RDWR)
        try:
            for offset, data in parts:
                done = 0
                while done < len(data):
                    done += os.pwrite(fd, data[done : done + PIECE_BYTES], offset + done)
        finally:
            os.close(fd)

    def shrink(self, end: int) -> int:
        """Gives the pages behind `end` back to the system; the length stays.

        Returns:
            The bytes given back.
        """
        given_back = self.reserved - end
        if given_back <= 0:
            return 0
        fd = open_segment(self.name, os.O_RDWR)
        try:
            with self._resizing:
                try:
                    os.ftruncate(fd, end)
                except OSError:
                    return 0  # macOS sizes shared memory only once: they stay until the unlinking
                # From here on the pages are gone, so no copy may go there.
                self.reserved = end
                self.written = min(self.written, end)
                self._populated = min(self._populated, end)
                os.ftruncate(fd, self.size)
        finally:
            os.close(fd)
        return given_back

    def unlink(self) -> None:
        """Removes the name and lets the kept mapping go."""
        # Not close(): another thread may be copying through it. It is unmapped when that is done.
        self._mapping = None
        unlink_segment(self.name)

    def _writable(self, end: int) -> mmap.mmap:
        """The kept mapping, with page entries made up to `end` at least."""
        mapping = self._mapping
        if mapping is None:
            fd = open_segment(self.name, os.O_RDWR)
            try:
                with self._resizing:
                    mapping = mmap.mmap(fd, self.size)
            finally:
                os.close(fd)
            self._mapping = mapping
            self._populated = 0
        start, self._populated = self._populated, max(end, self._populated)
        if _POPULATE is not None and start < end:
            start -= start % mmap.PAGESIZE
            try:
                for first in range(start, end, PIECE_BYTES):
                    mapping.madvise(_POPULATE, first, min(PIECE_BYTES, end - first))
            except OSError:
                pass  # only a hint: an older kernel does not know it, and faults the pages in
        return mapping


def unlink_segments(
    session: str, number: int, count: int, spill_directory: str | None = None
) -> None:
    """Unlinks the first `count` segments of a process that has died; missing ones are ignored.

    Args:
        session: name of the session.
        number: process that made the segments.
        count: what its store last told `on_segment`.
        spill_directory: where that process would have put files, to remove these too.
    """
    for k in range(count):
        name = segment_name(session, number, k)
        unlink_segment(name)
        if spill_directory is not None:
            unlink_segment(os.path.join(os.path.abspath(spill_directory), name))


def sweep(session: str, spill_directory: str) -> None:
    """Removes all that a session left behind: its shared memory, its files, the spill directory.

    Only names of that session are touched. Shared memory can be listed on Linux alone; elsewhere
    `unlink_segments` must be called for each process.
    """
    prefix = f"od-{session}-"
    lock = lock_name(session)
    if sys.platform == "linux":
        for name in _names(SHM_DIRECTORY):
            if name.startswith(prefix) and name != lock:
                unlink_segment(name)
    spill_directory = os.path.abspath(spill_directory)
    for name in _names(spill_directory):
        if name.startswith(prefix):
            unlink_segment(os.path.join(spill_directory, name))
    try:
        os.rmdir(spill_directory)
    except OSError:
        pass  # never made, or it holds what is not ours: then it is not ours to remove
    if sys.platform == "linux":
        unlink_segment(lock)  # the last, so that a sweep which is cut short will be made again


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []  # no such directory: nothing to remove there
