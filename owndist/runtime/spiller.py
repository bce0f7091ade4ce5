"""The thread that copies values to disk, in whatever process wrote them.

A disk may be slow. Neither the thread that reads the links nor one that runs tasks waits for it,
and no lock is held meanwhile. The thread is started for the first value, so that a program whose
values fit into shared memory has none.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

from ..core.commands import Spill
from ..core.reports import Spilled
from ..store.local import Store


class Spiller:
    """Copies values to disk, one after the other.

    Args:
        store: of this process, which has written them.
        tell: takes the outcome of each, in the spiller's thread.
    """

    def __init__(self, store: Store, tell: Callable[[Spilled], None]) -> None:
        self._store = store
        self._tell = tell
        self._orders: SimpleQueue[Spill | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def order(self, command: Spill) -> None:
        """Have a value copied. Calls do not overlap: the machine's lock is held."""
        self._orders.put(command)
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="owndist-spiller", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                return  # no thread can be had now: the next order tries again, and takes this along
            self._thread = thread

    def close(self) -> None:
        """Wait for the copy that is being made, and leave the others. No lock is held."""
        if self._thread is not None:
            self._store.stop_spilling()
            self._orders.put(None)
            self._thread.join()

    def _run(self) -> None:
        while True:
            command = self._orders.get()
            if command is None:
                return
            file = self._store.spill(command.serial)
            self._tell(Spilled(command.owner, command.serial, file))
