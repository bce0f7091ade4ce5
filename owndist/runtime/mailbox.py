"""How a worker's messages go out: together, and so that a crash does not lose a result.

Everything is called with the worker's lock held.
"""

from __future__ import annotations

import os
import select
import time
from typing import Any

from ..core import messages as m
from ..core.execution import Execution
from ..core.ids import DRIVER
from ..wire.frames import encode_frame
from .crash_record import CrashRecord
from .links import Links

# A result that is lost would have to be computed again.
_RESULTS = frozenset({m.DONE, m.YIELD})

_now = time.perf_counter_ns


class Mailbox:
    """Messages on their way out.

    Args:
        record: keeps what is not sent, should this process be killed.
        links: to the driver and to other workers.
        execution: tells whether more results will come soon.
    """

    def __init__(self, record: CrashRecord, links: Links, execution: Execution) -> None:
        self._record = record
        self._links = links
        self._execution = execution
        self._outbox: list[bytes] = []  # unsent replies to the driver; in the crash record too
        self.since = 0  # when the oldest of them was written

    def post(self, peer: int, message: tuple[Any, ...]) -> None:
        """Lock held. Replies wait for company; all else goes out with the next flush."""
        if peer != DRIVER:
            if message[0] in _RESULTS:
                self._keep_in_record(encode_frame([(m.SAY, peer, [message])]))
            if self._links.post(peer, message):
                self.queue((m.CONNECT, peer))
                self.flush()
            elif message[0] not in _RESULTS or not self._main_is_busy():
                self._links.flush()
            return
        self.queue(message)
        if message[0] != m.DONE:
            self.flush()

    def _main_is_busy(self) -> bool:
        """Whether more replies will come soon, in the company of which this one can go."""
        return bool(self._execution.queue)

    def _keep_in_record(self, frame: bytes) -> None:
        if not self._record.append(frame):
            self.flush()
            self._record.append(frame)  # if it is too large even so, a crash loses it

    def queue(self, message: tuple[Any, ...]) -> None:
        """Put a message to the driver into the crash-safe outbox."""
        frame = encode_frame([message])
        if not self._outbox:
            self.since = _now()
        if not self._record.append(frame):
            self.flush()
            if not self._record.append(frame):
                self._send_all(frame)
                return
        self._outbox.append(frame)

    def flush(self) -> None:
        """Send all that waits."""
        if self._outbox:
            data = self._outbox[0] if len(self._outbox) == 1 else b"".join(self._outbox)
            self._outbox.clear()
            self._send_all(data)
        if self._links.flush() and self._record.outbox_length():
            # A kill between the two sends everything twice; the others drop what they have.
            self._record.clear_outbox()

    def _send_all(self, data: bytes) -> None:
        link = self._links.driver
        if not link.write(data):
            while not link.flush():
                self._wait_writable()
        if link.broken:
            # The driver is gone, or the task has closed our descriptor. What was to be said stays
            # in the crash record, where a living driver finds it.
            os._exit(1)

    def _wait_writable(self) -> None:
        # The driver always reads, whatever it is doing: this ends when it does.
        poller = select.poll()
        poller.register(self._links.driver.fileno(), select.POLLOUT)
        poller.poll()
