"""A worker's links: one to the driver from the start, and those to other workers."""

from __future__ import annotations

import socket
from collections.abc import Callable, Container
from typing import Any

from ..core.ids import DRIVER
from ..transport.link import Link
from .courier import Courier
from .wakeups import Wakeups


class Peer:
    """Another process, and the link to it."""

    __slots__ = ("courier", "link", "number")

    def __init__(self, number: int, link: Link, courier: Courier | None) -> None:
        self.number = number
        self.link = link
        self.courier = courier


class Links:
    """All links of a worker. Everything is called with the worker's lock held.

    Args:
        driver: the link to the driver.
        signals: waits on the links.
        make_courier: makes what sends definitions to a new peer.
    """

    def __init__(self, driver: Link, signals: Wakeups, make_courier: Callable[[], Courier]) -> None:
        self.driver = driver
        self.by_number: dict[int, Peer] = {}
        self.by_fd: dict[int, Peer] = {driver.fileno(): Peer(DRIVER, driver, None)}
        self._signals = signals
        self._make_courier = make_courier
        self._waiting: dict[int, list[tuple[Any, ...]]] = {}  # for peers without a link
        self.unflushed: dict[int, Peer] = {}  # to whom something was posted
        self._blocked: dict[int, Peer] = {}  # whose socket is full
        self._gone: dict[int, None] = {}
        signals.add(driver.fileno())

    def post(self, number: int, message: tuple[Any, ...]) -> bool:
        """Have a message sent with the next `flush`. True: a link must be asked for."""
        peer = self.by_number.get(number)
        if peer is not None:
            self._post(peer, message)
            return False
        if number in self._gone:
            return False
        first = number not in self._waiting
        self._waiting.setdefault(number, []).append(message)
        return first

    def _post(self, peer: Peer, message: tuple[Any, ...]) -> None:
        assert peer.courier is not None
        peer.courier.post(peer.link, message)
        self.unflushed[peer.number] = peer

    def add(self, number: int) -> bool:
        """The driver has made a link: its descriptor is the next of those that came.

        Returns:
            False if this process had no room for the descriptor.
        """
        fd = self.driver.fds.popleft()
        if fd < 0:
            return False
        link = Link(socket.socket(fileno=fd))
        if number in self._gone:
            link.close()
            return True
        peer = Peer(number, link, self._make_courier())
        self.by_number[number] = peer
        self.by_fd[link.fileno()] = peer
        self._signals.add(link.fileno())
        for message in self._waiting.pop(number, ()):
            self._post(peer, message)
        return True

    def flush(self) -> bool:
        """Send what was posted to other workers. True: all is sent, as far as links stand."""
        if self.unflushed:
            for number, peer in self.unflushed.items():
                if peer.link.flush():
                    if self._blocked.pop(number, None) is not None:
                        self._signals.watch_room(peer.link.fileno(), False)
                elif number not in self._blocked:
                    self._blocked[number] = peer
                    self._signals.watch_room(peer.link.fileno(), True)
            self.unflushed = dict(self._blocked)
        return not self.unflushed and not self._waiting

    def flush_for_good(self) -> None:
        """Before the end: send all that is left."""
        import select

        while not self.flush() and self._blocked:
            poller = select.poll()
            for peer in self._blocked.values():
                poller.register(peer.link.fileno(), select.POLLOUT)
            poller.poll()

    def close(self, peer: Peer) -> None:
        """The link has broken."""
        self._signals.remove(peer.link.fileno())
        del self.by_fd[peer.link.fileno()]
        self.by_number.pop(peer.number, None)
        self.unflushed.pop(peer.number, None)
        self._blocked.pop(peer.number, None)
        self._gone[peer.number] = None
        peer.link.close()

    def forget(self, number: int) -> None:
        """That process is dead."""
        self._gone[number] = None
        self._waiting.pop(number, None)
        peer = self.by_number.get(number)
        if peer is not None:
            self.close(peer)

    def tell_forgotten(self, kept: Container[int]) -> None:
        """Have all executors drop all definitions but these."""
        for peer in self.by_number.values():
            if peer.courier is not None and peer.courier.forget(peer.link, kept):
                self.unflushed[peer.number] = peer

    def traffic(self) -> tuple[int, int]:
        """Bytes sent to and received from other workers, by the links that stand."""
        links = [peer.link for peer in self.by_number.values()]
        return sum(k.bytes_sent for k in links), sum(k.bytes_received for k in links)
