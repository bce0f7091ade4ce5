"""How the two threads of a worker wait for its link, and wake each other.

Both wait on the link in an epoll set of their own, with EPOLLEXCLUSIVE: the kernel wakes the
first waiter in the order of registration, so the main thread when it is idle, and the reader
only when it is not. Where there is no epoll only the reader reads.
"""

from __future__ import annotations

import os
import select
from typing import Any


class Wakeups:
    """Who is woken by what: the main thread or the reader, by the link or by each other."""

    def __init__(self, link_fd: int) -> None:
        self._main_out, self._main_in = _wake_pair()
        self._reader_out, self._reader_in = _wake_pair()
        self._link_fd = link_fd
        if hasattr(select, "EPOLLEXCLUSIVE"):
            exclusive = select.EPOLLIN | select.EPOLLEXCLUSIVE
            # In this order: the main thread first.
            self._main: Any = select.epoll()
            self._main.register(link_fd, exclusive)
            self._reader: Any = select.epoll()
            self._reader.register(link_fd, exclusive)
        else:
            self._main = None
            self._reader = select.poll()
            self._reader.register(link_fd, select.POLLIN)
        if self._main is not None:
            self._main.register(self._main_out, select.EPOLLIN)
        self._reader.register(self._reader_out, select.POLLIN)

    def wait_main(self) -> bool:
        """The main thread has nothing to do. True: the link may have something to read."""
        if self._main is None:
            os.read(self._main_out, 1)
            return False
        readable = False
        for fd, _ in self._main.poll():
            if fd == self._link_fd:
                readable = True
            else:
                _drain(self._main_out)
        return readable

    def wait_reader(self, timeout_s: float | None) -> bool:
        """The reader's wait. True: the link has something to read."""
        if self._main is None:
            events = self._reader.poll(None if timeout_s is None else timeout_s * 1000)
        else:
            events = self._reader.poll(timeout_s)
        readable = False
        for fd, _ in events:
            if fd == self._link_fd:
                readable = True
            else:
                _drain(self._reader_out)
        return readable

    def wake_main(self) -> None:
        """End the main thread's wait, now or the next time."""
        _poke(self._main_in)

    def wake_reader(self) -> None:
        """End the reader's wait, now or the next time. Safe anywhere: it never blocks."""
        _poke(self._reader_in)


def _wake_pair() -> tuple[int, int]:
    out, into = os.pipe()
    os.set_blocking(into, False)
    return out, into


def _poke(fd: int) -> None:
    try:
        os.write(fd, b"x")
    except BlockingIOError:
        pass  # full of wake-ups that have not been seen yet


def _drain(fd: int) -> None:
    os.read(fd, 4096)
