"""How many messages and bytes pass through each process, on the links between processes.

Counted by wrappers around the few functions that every message passes: put in place before the
executor is made, so that forked workers inherit them, and the memory that they count in.
"""

from __future__ import annotations

import mmap
import os
import struct
from multiprocessing.connection import Connection
from typing import Any

_ROWS = 4096  # a process counts in the row that is the remainder of its pid
_CELLS = 4  # sent: messages, bytes; received: messages, bytes: each has but one writer at a time
_LENGTH = struct.Struct("<I")


class Tap:
    """The counters of all processes below this one, and of this one."""

    def __init__(self) -> None:
        self._cells = memoryview(mmap.mmap(-1, _ROWS * _CELLS * 8)).cast("Q")
        self._tap_connections()
        self._tap_links()

    def _count(self, received: bool, messages: int, size: int) -> None:
        cell = (os.getpid() % _ROWS) * _CELLS + 2 * received
        self._cells[cell] += messages
        self._cells[cell + 1] += size

    def busiest(self) -> tuple[int, int]:
        """Messages and bytes so far through the process that has had most of them."""
        cells = self._cells.tolist()
        rows = [cells[at : at + _CELLS] for at in range(0, len(cells), _CELLS)]
        return max(row[0] + row[2] for row in rows), max(row[1] + row[3] for row in rows)

    def clear(self) -> None:
        self._cells[:] = memoryview(bytes(len(self._cells) * 8)).cast("Q")

    def _tap_connections(self) -> None:
        """The standard library's, which ProcessPoolExecutor, Pool and loky use, too."""
        send, receive = Connection._send_bytes, Connection._recv_bytes  # type: ignore[attr-defined]

        def sends(connection: Connection, data: Any) -> None:
            send(connection, data)
            self._count(False, 1, len(data))

        def receives(connection: Connection, limit: int | None = None) -> Any:
            got = receive(connection, limit)
            self._count(True, 1, got.getbuffer().nbytes)
            return got

        Connection._send_bytes = sends  # type: ignore[attr-defined]
        Connection._recv_bytes = receives  # type: ignore[attr-defined]

    def _tap_links(self) -> None:
        """Those of owndist: what goes out is a list of messages, or bytes of whole frames."""
        from owndist.transport import link

        encode, write, feed = link.encode_frame, link.Link.write, link.FrameDecoder.feed

        def encodes(messages: list[Any]) -> bytes:
            frame = encode(messages)
            self._count(False, len(messages), len(frame))
            return frame

        def writes(self_: link.Link, data: Any) -> bool:
            self._count(False, _frames(data), len(data))
            return write(self_, data)

        def feeds(decoder: link.FrameDecoder, data: bytes) -> list[Any]:
            messages = feed(decoder, data)
            self._count(True, len(messages), len(data))
            return messages

        link.encode_frame = encodes
        link.Link.write = writes  # type: ignore[method-assign]
        link.FrameDecoder.feed = feeds  # type: ignore[method-assign]


def _frames(data: Any) -> int:
    """How many frames: a worker makes one of each reply, and writes many together."""
    count = start = 0
    while start < len(data):
        start += _LENGTH.size + _LENGTH.unpack_from(data, start)[0]
        count += 1
    return count
