"""How the two threads of a worker wait for its links, and wake each other.

Both wait on the links in an epoll set of their own, with EPOLLEXCLUSIVE: the kernel wakes the
first waiter in the order of registration, so the main thread when it is idle, and the reader
only when it is not. Where there is no epoll only the reader reads.
"""

from __future__ import annotations

import os
import select
from typing import Any


class Wakeups:
    """Who is woken by what: the main thread or the reader, by a link or by each other."""

    def __init__(self) -> None:
        self._main_out, self._main_in = _wake_pair()
        self._reader_out, self._reader_in = _wake_pair()
        self._exclusive = hasattr(select, "EPOLLEXCLUSIVE")
        if self._exclusive:
            self._main: Any = select.epoll()
            self._reader: Any = select.epoll()
            self._main.register(self._main_out, select.EPOLLIN)
        else:
            self._main = None
            self._reader = select.poll()
        self._reader.register(self._reader_out, select.POLLIN)

    def add(self, fd: int) -> None:
        """Wait on a link, too."""
        if self._exclusive:
            exclusive = select.EPOLLIN | select.EPOLLEXCLUSIVE
            # In this order: the main thread first.
            self._main.register(fd, exclusive)
            self._reader.register(fd, exclusive)
        else:
            self._reader.register(fd, select.POLLIN)
            self.wake_reader()  # `poll` does not see what is added while it waits

    def remove(self, fd: int) -> None:
        """Wait on it no more; it is about to be closed."""
        if self._exclusive:
            self._main.unregister(fd)
        self._reader.unregister(fd)

    def watch_room(self, fd: int, on: bool) -> None:
        """Have the reader wait until the link takes more, too; or no longer."""
        self._reader.unregister(fd)  # what is exclusive cannot be modified
        if on:
            self._reader.register(fd, select.POLLIN | select.POLLOUT)
        elif self._exclusive:
            self._reader.register(fd, select.EPOLLIN | select.EPOLLEXCLUSIVE)
        else:
            self._reader.register(fd, select.POLLIN)
        if not self._exclusive:
            self.wake_reader()

    def wait_main(self) -> list[int]:
        """The main thread has nothing to do. Returns the links that may have something."""
        if self._main is None:
            os.read(self._main_out, 1)
            return []
        readable = []
        for fd, _ in self._main.poll():
            if fd == self._main_out:
                _drain(self._main_out)
            else:
                readable.append(fd)
        return readable

    def wait_reader(self, timeout_s: float | None) -> list[int]:
        """The reader's wait. Returns the links that have something, or room for more."""
        if self._main is None:
            events = self._reader.poll(None if timeout_s is None else timeout_s * 1000)
        else:
            events = self._reader.poll(timeout_s)
        readable = []
        for fd, _ in events:
            if fd == self._reader_out:
                _drain(self._reader_out)
            else:
                readable.append(fd)
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
