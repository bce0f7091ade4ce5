"""The globals of `__main__` that a worker is sent: when each is bound.

They are queued among the tasks, and each is bound when the main thread comes to it. But a task that
waits for a borrowed future may need one that is queued behind it, to load the value: that one is
bound before its turn. When its turn comes it is bound again only if the name has been bound to
something else meanwhile; what the worker's own code has assigned since then stays.
"""

from __future__ import annotations

import pickle
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from ..wire.functions import Decoder


class Bindings:
    """Binds namespace entries, in any thread, in the order in which they fall due.

    Args:
        decoder: applies them.
        future_factory: makes a future from its address, for futures inside their values.
    """

    def __init__(self, decoder: Decoder, future_factory: Callable[[Any], Any]) -> None:
        self._decoder = decoder
        self._future_factory = future_factory
        self._due: deque[tuple[Any, ...]] = deque()
        self._bound: dict[str, int] = {}  # {global name: key of the entry that was bound last}
        # Held while an entry is loaded, which runs the user's code. Loading may load more.
        self._lock = threading.RLock()

    def due(self, message: tuple[Any, ...]) -> None:
        """Have an ENTRY bound before anything else is loaded. The worker's lock is held."""
        self._due.append(message)

    def apply_due(self) -> None:
        """Bind what is due, and wait for another thread that is at it. No lock is held."""
        with self._lock:
            while self._due:
                _, key, body = self._due.popleft()
                name: str = pickle.loads(body)[0]
                if self._bound.get(name) != key:
                    self._bound[name] = key
                    self._decoder.apply_entry(key, body, self._future_factory)
