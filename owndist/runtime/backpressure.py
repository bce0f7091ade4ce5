"""Where `submit` waits while too much is pending.

The waiting thread is woken by the reader, after each of its rounds, and looks again: a task may
have ended, the executor too, or nothing that is pending may be able to go on. In that case it is
let through: what the tasks wait for may be what the waiting thread is about to do.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from ..core.machine import Machine


class Gate:
    """Lets tasks in as long as there is room.

    Args:
        lock: guards the machine.
        machine: has the tasks.
        max_tasks: how many may be pending, that is without an outcome.
        max_bytes: how large their arguments may be together.
    """

    def __init__(
        self, lock: Any, machine: Machine, max_tasks: int | None, max_bytes: int | None
    ) -> None:
        self._lock = lock
        self._machine = machine
        self._max_tasks, self._max_bytes = max_tasks, max_bytes
        self._sizes: dict[int, int] = {}  # {pending task: bytes of its arguments}
        self._bytes = 0
        # Each is released to wake its thread. Not a condition: a Ctrl-C could leave that locked,
        # and the reader would wait for it.
        self._waiting: deque[Any] = deque()

    def wait(self, hurry: Callable[[], None]) -> None:
        """Wait until there is room, or no use in waiting. Not in the reader's thread.

        Args:
            hurry: sees to it that tasks are sent and answers are read. Called without the lock.
        """
        while True:
            alarm = threading.Lock()
            alarm.acquire()
            self._waiting.append(alarm)  # before looking, so that nothing is missed
            with self._lock:
                if not self._is_full() or self._machine.closing or not self._goes_on():
                    return
            hurry()
            alarm.acquire()

    def look_again(self) -> None:
        """Something may have changed. Any thread; it never waits."""
        while self._waiting:
            try:
                self._waiting.popleft().release()
            except IndexError:
                return  # another thread was faster

    def add(self, task: int, size: int) -> None:
        """Lock held. A task has come."""
        self._sizes[task] = size
        self._bytes += size

    def remove(self, task: int) -> None:
        """Lock held. It has its outcome."""
        self._bytes -= self._sizes.pop(task, 0)

    def _is_full(self) -> bool:
        tasks = len(self._machine.submission.tasks)
        return (self._max_tasks is not None and tasks >= self._max_tasks) or (
            self._max_bytes is not None and self._bytes >= self._max_bytes
        )

    def _goes_on(self) -> bool:
        """Whether a task can end without help from outside."""
        machine = self._machine
        return bool(machine.submission.ready) or any(
            worker.queue and not worker.waits for worker in machine.leases.workers.values()
        )
