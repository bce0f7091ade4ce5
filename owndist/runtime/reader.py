"""The thread that reads, and waking it."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import Protocol
else:
    Protocol = object  # making one takes as long as a small module's import

# Two readings by a submitting thread within so many nanoseconds are a burst of submissions.
# During one the reader keeps out of the way: the submitting thread does its reading, and two
# threads that fight for the interpreter and the lock take five times as long as one. It must be
# longer than the readings are apart while they do fight, on a slow and busy machine, or a burst
# would never be seen there.
BURST_NS = 10_000_000
# A burst is over when there has been no reading for twice the time between the last two, and this.
_SLACK_NS = 500_000
# However long it is, others may wait for a future, and callbacks and timers are due. So the reader
# makes a round every so many nanoseconds: as often as the interpreter switches threads.
_ROUND_NS = 5_000_000


class Owner(Protocol):
    """Whose thread it is."""

    def next_timeout(self) -> float | None: ...
    def on_ready(self, data: object, events: int) -> None: ...
    def do_chores(self, nested: bool) -> bool: ...
    def end_burst(self) -> None: ...
    def reader_failed(self, error: BaseException) -> None: ...


class Reader:
    """Waits for links and pokes, and calls its owner.

    Callbacks of futures run in this thread. One that waits for another future calls `pump`, so
    that reading goes on.
    """

    def __init__(self, owner: Owner) -> None:
        self.selector = selectors.DefaultSelector()
        self._owner = owner
        # Sockets rather than a pipe: an object that owns its descriptor closes it once, whoever
        # closes it, also in a child that is forked at any moment.
        self._out, self._into = socket.socketpair()
        self._out.setblocking(False)
        self._into.setblocking(False)
        self.selector.register(self._out, selectors.EVENT_READ, None)
        self._poked = False
        self._last_reading = 0
        # While somebody submits so fast that this thread had better sleep: until when (ns), unless
        # `_resume` is set. Else 0.
        self.burst_until = 0
        # Released to end that sleep. Not an Event, whose own lock a Ctrl-C can leave locked.
        self._resume = threading.Lock()
        self._resume.acquire()
        self._thread = threading.Thread(target=self._run, name="owndist-driver")

    def start(self) -> None:
        """Start the thread. The first thing it does is its owner's chores."""
        self.poke()
        self._thread.start()

    def is_current(self) -> bool:
        """Whether the calling thread is this one."""
        return threading.current_thread() is self._thread

    def join(self) -> None:
        """Wait until the thread has ended."""
        self._thread.join()

    def poke(self) -> None:
        """Have the owner's chores done soon. Any thread, any time, any lock held."""
        if self._poked:
            return
        try:
            self._poked = True
            self._into.send(b"x")
        except OSError:
            pass  # full: it will wake anyway; closed: there is no reader any more
        except BaseException:
            self._poked = False  # a Ctrl-C before the byte was sent: all later pokes would be lost
            raise

    # -- bursts of submissions

    def note_reading(self, now: int) -> None:
        """A submitting thread has done the reading, at `now` (ns)."""
        apart = now - self._last_reading
        if apart < BURST_NS:
            self.burst_until = now + 2 * apart + _SLACK_NS
        self._last_reading = now

    def clear_burst(self) -> None:
        """It is over. Called with the owner's lock held, as what was left unsent is sent."""
        self.burst_until = 0
        if self._resume.locked():
            self._resume.release()

    def _sleep_through_burst(self) -> None:
        if not self.burst_until:
            return
        now = time.monotonic_ns()
        round_at = now + _ROUND_NS
        while self.burst_until and now < round_at:
            if self.burst_until <= now:
                self._owner.end_burst()
            else:
                self._resume.acquire(timeout=(min(self.burst_until, round_at) - now) / 1e9)
                now = time.monotonic_ns()
        self._resume.acquire(blocking=False)

    # -- the thread

    def _run(self) -> None:
        try:
            while not self._step(None, nested=False):
                pass
        except BaseException as error:
            self._owner.reader_failed(error)

    def pump(self, done: Callable[[], bool], timeout: float | None) -> None:
        """In a callback that waits: do the reader's work until `done()`, or the time is over."""
        until = None if timeout is None else time.monotonic() + timeout
        while not done():
            left = None
            if until is not None:
                left = until - time.monotonic()
                if left <= 0:
                    return
            self._step(left, nested=True)

    def _step(self, limit_s: float | None, nested: bool) -> bool:
        """One round: wait, read, do the chores. True: there will be nothing more."""
        self._sleep_through_burst()
        timeout = self._owner.next_timeout()
        if limit_s is not None:
            timeout = limit_s if timeout is None else min(timeout, limit_s)
        for key, events in self.selector.select(timeout):
            data: Any = key.data
            if data is None:
                self._drain()
            else:
                self._owner.on_ready(data, events)
        return self._owner.do_chores(nested)

    def _drain(self) -> None:
        try:
            self._out.recv(4096)
        except BlockingIOError:
            pass  # nothing there
        # In this order: what was appended before this line is seen by the chores that follow,
        # what is appended after it wakes the reader again.
        self._poked = False

    def close(self) -> None:
        """Let go of the descriptors; in any process that has them."""
        self.selector.close()
        self._into.close()
        self._out.close()
