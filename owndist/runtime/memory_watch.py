"""The thread that watches how much memory the workers use, where there is a limit for that."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

# A task can take a gigabyte in a quarter of a second; to look more often costs more than it finds.
_EVERY_S = 0.25


class MemoryWatch:
    """Looks at the workers' memory.

    Args:
        limit: bytes that all of them together may use, without the shared memory of values.
        pids: gives the workers' process ids.
        tell: called with the bytes used, in the watch's thread, while they are more than that.
    """

    def __init__(
        self, limit: int, pids: Callable[[], Iterable[int]], tell: Callable[[int], None]
    ) -> None:
        self._limit = limit
        self._pids = pids
        self._tell = tell
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="owndist-memory", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread. No lock is held."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed.wait(_EVERY_S):
            used = sum(map(own_memory, self._pids()))
            if used > self._limit:
                self._tell(used)


def own_memory(pid: int) -> int:
    """The memory of a process in bytes, but for what it shares; 0 if it has ended."""
    import psutil

    try:
        info = psutil.Process(pid).memory_info()
    except psutil.Error:
        return 0
    return int(info.rss - getattr(info, "shared", 0))
