"""The globals of `__main__` that a worker is sent: when each is bound.

They are queued among the tasks, and each is bound when the main thread comes to it. But a task that
waits for a borrowed future may need one that is queued behind it, to load the value: that one is
bound before its turn. When its turn comes it is bound again only if the name has been bound to
something else meanwhile; what the worker's own code has assigned since then stays.

Several owners may send tasks to one worker, and each expects the globals that it has sent. Where
two have sent different values under one name, each of their tasks finds its own owner's.
"""

from __future__ import annotations

import pickle
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from ..wire import namespace
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
        self.waiting: deque[tuple[int, tuple[Any, ...]]] = deque()  # what is due
        self.at_work: list[None] = []  # one for each that is being bound
        self._bound: dict[str, int] = {}  # {global name: key of the entry that was bound last}
        self._binder: dict[str, int] = {}  # {global name: the owner who sent that}
        # {owner: {global name: (key, value)}}: what it had bound, and another owner has replaced.
        self.replaced: dict[int, dict[str, tuple[int, Any]]] = {}
        # Held while an entry is loaded, which runs the user's code. Loading may load more.
        self._lock = threading.RLock()

    def due(self, owner: int, message: tuple[Any, ...]) -> None:
        """Have an ENTRY bound before anything else is loaded. The worker's lock is held."""
        self.waiting.append((owner, message))

    def apply_due(self) -> None:
        """Bind what is due, and wait for another thread that is at it. No lock is held.

        There is nothing to do if both `waiting` and then `at_work` are empty.
        """
        with self._lock:
            while self.waiting:
                self.at_work.append(None)  # first: it must be seen in one of them
                try:
                    self._bind(*self.waiting.popleft())
                finally:
                    self.at_work.pop()

    def _bind(self, owner: int, message: tuple[Any, ...]) -> None:
        _, key, body = message
        name: str = pickle.loads(body)[0]
        self.replaced.get(owner, {}).pop(name, None)
        if self._bound.get(name) != key:
            self._keep_for_binder(name, owner)
            self._bound[name] = key
            self._decoder.apply_entry(key, body, self._future_factory)
        self._binder[name] = owner

    def _keep_for_binder(self, name: str, owner: int) -> None:
        """Another owner binds a name: the one before will expect its own for its next tasks."""
        before = self._binder.get(name)
        if before is not None and before != owner and name in namespace.here.entries:
            self.replaced.setdefault(before, {})[name] = namespace.here.entries[name]

    def restore(self, owner: int) -> None:
        """A task of this owner is about to start: bind what it had sent, and another replaced.

        No lock is held: a thread that binds has this one's, and may want the worker's for a future.
        """
        with self._lock:
            replaced = self.replaced.pop(owner, {})
            for name, (key, value) in replaced.items():
                self._keep_for_binder(name, owner)
                self._binder[name], self._bound[name] = owner, key
                namespace.here.entries[name] = (key, value)
                namespace.main_namespace()[name] = value
