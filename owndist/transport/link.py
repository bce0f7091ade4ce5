"""One end of a connection between two processes of a host.

A socketpair, made by the process that needs it and handed over: nothing listens, nothing has a
name that a stranger could open. (`multiprocessing.Pipe()` is the same thing; measured here, it is
as fast as a pair of pipes, and one descriptor serves both directions.)

Never blocks: what does not fit into the socket waits in this object until `flush` is called
again. With blocking writes on both sides, two processes that both have much to say would wait for
each other for ever.
"""

from __future__ import annotations

import array
import os
import socket
from collections import deque
from typing import Any

from ..wire.frames import FrameDecoder, encode_frame

Message = tuple[Any, ...]

_TRUNCATED = int(socket.MSG_CTRUNC)  # as an enum it would take 1.5 µs at each read
_FDS_BYTES = socket.CMSG_SPACE(16 * array.array("i").itemsize)  # of one read

# One read. Python allocates so much for each and gives back what was not needed. From 128 KiB on
# the allocator has fresh pages from the system for that every time: a read of 256 KiB takes 20 µs,
# one of 64 KiB 4 µs.
_READ_BYTES = 64 * 1024


class Link:
    """A link to one peer. The caller sees to it that one thread at a time uses it.

    Args:
        sock: our end.
        takes_fds: descriptors may come with messages; they are put into `fds`, in order. In the
            place of one for which this process has no room stands -1.
    """

    def __init__(self, sock: socket.socket, takes_fds: bool = False) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._takes_fds = takes_fds
        self.fds: deque[int] = deque()
        self._with_fds: deque[tuple[Message, socket.socket]] = deque()
        self._decoder = FrameDecoder()
        self._outbox: list[Message] = []
        self._unsent = memoryview(b"")
        self.bytes_sent = 0
        self.bytes_received = 0
        self.broken = False  # the peer is gone, or somebody closed our descriptor

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._socket.fileno()

    def post(self, message: Message) -> None:
        """Have a message go out with the next `flush`."""
        self._outbox.append(message)

    def post_with_fd(self, message: Message, sock: socket.socket) -> None:
        """Have a message and a descriptor go out with the next `flush`; `sock` is then closed."""
        self._with_fds.append((message, sock))

    @property
    def unsent(self) -> bool:
        """Whether something waits for room in the socket."""
        return bool(self._unsent) or bool(self._outbox) or bool(self._with_fds)

    def flush(self) -> bool:
        """Write as much as the socket takes. True: all is written.

        To a peer that is gone, everything counts as written: its death is noticed elsewhere.
        """
        while True:
            if not self._unsent:
                if not self._outbox:
                    return not self._with_fds or self._send_fds()
                self._unsent = memoryview(encode_frame(self._outbox))
                self._outbox.clear()
            if not self._write():
                return False

    def _send_fds(self) -> bool:
        while self._with_fds:
            message, sock = self._with_fds[0]
            frame = encode_frame([message])
            try:
                sent = socket.send_fds(self._socket, [frame], [sock.fileno()])
            except BlockingIOError:
                return False
            except OSError:
                self.broken = True
                sent = len(frame)
            self._with_fds.popleft()
            sock.close()
            self.bytes_sent += sent
            self._unsent = memoryview(frame)[sent:]
            if not self._write():
                return False
        return True

    def write(self, data: bytes | memoryview) -> bool:
        """Write bytes that are whole frames, after what was posted. True: all is written."""
        if self.flush():
            self._unsent = memoryview(data)
            return self._write()
        # Rare: the socket is full. The bytes must follow what is already waiting.
        self._unsent = memoryview(bytes(self._unsent) + bytes(data))
        return False

    def _write(self) -> bool:
        while self._unsent:
            try:
                count = self._socket.send(self._unsent)
            except BlockingIOError:
                return False
            except OSError:
                self.broken = True
                self._unsent = memoryview(b"")
                self._outbox.clear()
                return True
            self.bytes_sent += count
            self._unsent = self._unsent[count:]
        return True

    def receive(self) -> tuple[list[Message], bool]:
        """All messages that are there, and whether the link still stands."""
        messages: list[Message] = []
        while True:
            try:
                if self._takes_fds:
                    data, ancillary, flags, _ = self._socket.recvmsg(_READ_BYTES, _FDS_BYTES)
                else:
                    data, ancillary, flags = self._socket.recv(_READ_BYTES), [], 0
            except BlockingIOError:
                return messages, True
            except OSError:
                return messages, False
            if not data:
                return messages, False
            self.bytes_received += len(data)
            messages += self._decoder.feed(data)
            if ancillary:
                self._take_fds(ancillary)
            elif flags & _TRUNCATED:
                self.fds.append(-1)  # a read ends where a descriptor comes: there was one
            elif len(data) < _READ_BYTES:
                return messages, True

    def _take_fds(self, ancillary: Any) -> None:
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
                for fd in fds:
                    os.set_inheritable(fd, False)
                    self.fds.append(fd)

    def close(self) -> None:
        """Let go of the descriptor. What was not sent is lost."""
        for _, sock in self._with_fds:
            sock.close()
        self._socket.close()
