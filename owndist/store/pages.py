"""Which pages of a private mapping were written: asked of the kernel, so that it is proof.

A private mapping shows a segment's own pages until one is written; then the kernel puts a copy in
its place. `/proc/self/pagemap` holds 64 bits for each page of the address space. Of these, bit 63
says that a page is present, bit 61 that it belongs to a file or to shared memory, bit 62 that it
was swapped out. A page of ours that was written is present without bit 61, or swapped out. One
that was only read is present with bit 61, and one never touched has none of the three.

Everything in doubt counts as written: then the bytes are copied, which is never wrong.
"""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Iterable

_PAGEMAP = "/proc/self/pagemap"
_ENTRY_BYTES = 8
_CHUNK_PAGES = 1 << 17  # entries read at a time: 1 MiB, for 512 MiB of memory

# Where in an entry the byte with bits 56 to 63 lies.
_TOP_BYTE = 7 if sys.byteorder == "little" else 0
_FILE, _SWAPPED, _PRESENT = 0x20, 0x40, 0x80

# The top bytes of pages that were not written. Deleting these from a slice leaves those that were,
# in one sweep at the speed of C: 0.15 ms for the 65,536 pages of 256 MiB, and 2 ms to read them.
_UNWRITTEN = bytes(
    top for top in range(256) if not top & _SWAPPED and (not top & _PRESENT or top & _FILE)
)


def address_of(data: memoryview) -> int | None:
    """The address of the first of some plain bytes, or None if it cannot be told cheaply.

    Only numpy can tell it, and only if the program has imported it; whoever has large buffers
    nearly always has.
    """
    numpy = sys.modules.get("numpy")
    frombuffer = getattr(numpy, "frombuffer", None)  # None too while another thread imports it
    if frombuffer is None:
        return None
    address: int = frombuffer(data, dtype="u1").__array_interface__["data"][0]
    return address


def all_unwritten(ranges: Iterable[tuple[int, int]]) -> bool:
    """Whether the kernel says that no page under these parts of private mappings was written.

    Args:
        ranges: (address, length in bytes) of each part.

    Returns:
        False also if the kernel does not say, as outside Linux, or in a process that has changed
        its user.

    Cost: about 8 ns a page.
    """
    spans: list[list[int]] = []  # [first page, page behind the last], sorted, apart
    for address, length in sorted(ranges):
        first = address // mmap.PAGESIZE
        behind = -(-(address + length) // mmap.PAGESIZE)
        if spans and first <= spans[-1][1]:
            spans[-1][1] = max(behind, spans[-1][1])
        else:
            spans.append([first, behind])
    try:
        fd = os.open(_PAGEMAP, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return _sees_writes(fd) and all(
            not _written(fd, page, min(page + _CHUNK_PAGES, behind))
            for first, behind in spans
            for page in range(first, behind, _CHUNK_PAGES)
        )
    except OSError:
        return False
    finally:
        os.close(fd)


def _written(fd: int, first: int, behind: int) -> bool:
    """Whether one of the pages from `first` up to but without `behind` may have been written."""
    wanted = (behind - first) * _ENTRY_BYTES
    entries = os.pread(fd, wanted, first * _ENTRY_BYTES)
    if len(entries) != wanted:
        return True
    return bool(entries[_TOP_BYTE::_ENTRY_BYTES].translate(None, _UNWRITTEN))


def _sees_writes(fd: int) -> bool:
    """Whether this file shows a write where there was one: some emulated kernels give only zeros.

    Asked every time: 10 µs are nothing beside the copy that it may save, and a state kept from
    earlier could be wrong after a fork or a change of user.
    """
    page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    page[0] = 1
    address = address_of(memoryview(page))
    if address is None:
        return False
    number = address // mmap.PAGESIZE
    return _written(fd, number, number + 1)
