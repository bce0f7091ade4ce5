"""Messages to bytes and back: a length, then one pickle of a list of messages.

Nothing here reads or writes: `encode_frame` gives the bytes to send, and a `FrameDecoder` is fed
whatever a read happened to return. Many messages share one frame, because one pickle of a hundred
tuples costs a fifth of a hundred pickles.

The frames travel on socket pairs between processes of one session, never to strangers, so a
pickle is safe here.
"""

from __future__ import annotations

import pickle
import struct
from typing import Any

_LENGTH = struct.Struct("<I")
_HEADER = _LENGTH.size
_LARGEST = 2**32 - 1
_pack = _LENGTH.pack
_unpack_from = _LENGTH.unpack_from
_dumps = pickle.dumps
_loads = pickle.loads


def encode_frame(messages: list[tuple[Any, ...]]) -> bytes:
    """Return one frame that holds all of `messages`.

    Raises:
        OverflowError: the frame would be 4 GiB or larger; values of that size belong in shared
            memory.
    """
    body = _dumps(messages, 5)
    size = len(body)
    if size > _LARGEST:
        raise OverflowError(f"a frame of {size} bytes is too large; the limit is {_LARGEST}")
    return _pack(size) + body


class FrameDecoder:
    """Turns the pieces in which a stream of frames arrives back into messages."""

    __slots__ = ("_have", "_need", "_pieces")

    def __init__(self) -> None:
        # The pieces of the frame that has begun but not ended, in order. They are joined once,
        # when enough of them are there, so that a frame of many reads costs linear time.
        self._pieces: list[bytes] = []
        # The bytes in `_pieces`.
        self._have = 0
        # How many bytes must be there before it is worth looking again.
        self._need = 0

    def feed(self, data: bytes) -> list[tuple[Any, ...]]:
        """Take the next bytes of the stream; return the messages that are now complete.

        Args:
            data: what a read returned; any split of the stream will do. It is not kept after
                its frames are complete.
        """
        if self._pieces:
            self._pieces.append(data)
            self._have += len(data)
            if self._have < self._need:
                return []
            data = b"".join(self._pieces)
            self._pieces.clear()
        size = len(data)
        if size >= _HEADER and _unpack_from(data)[0] + _HEADER == size:
            # The common case: one read, one whole frame.
            only: list[tuple[Any, ...]] = _loads(memoryview(data)[_HEADER:])
            return only
        messages: list[tuple[Any, ...]] = []
        view = memoryview(data)
        start = 0
        need = _HEADER
        while size - start >= _HEADER:
            need = _HEADER + _unpack_from(data, start)[0]
            if size - start < need:
                break
            messages += _loads(view[start + _HEADER : start + need])
            start += need
            need = _HEADER
        if start < size:
            rest = bytes(view[start:]) if start else bytes(data)
            self._pieces.append(rest)
            self._have = len(rest)
            self._need = need
        return messages

    @property
    def pending(self) -> int:
        """How many bytes of an unfinished frame are waiting; 0 at the end of a clean stream."""
        return self._have if self._pieces else 0
