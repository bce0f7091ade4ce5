"""What every worker of an executor is told when it starts, and how that is found."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from ..core.records import Record


class InitPayload(Record):
    """An initializer as bytes, for workers that inherit nothing."""

    __slots__ = (
        "function",
        "entries",
        "definitions",
        "head",
        "buffers",
    )

    def __init__(
        self,
        function: int,
        entries: tuple[int, ...],
        definitions: dict[int, bytes],
        head: bytes,
        buffers: list[bytes],
    ) -> None:
        self.function = function
        self.entries = entries
        self.definitions = definitions
        self.head = head
        self.buffers = buffers


class WorkerSetup(Record):
    """Everything that a worker needs to know; the same for all workers of an executor."""

    __slots__ = (
        "session",
        "spill_directory",
        "cache_limit_bytes",
        "ledger_fd",
        "threads_per_worker",
        "process_group",
        "initializer",
        "initargs",
        "payload",
        "method",
        "max_workers",
        "lineage_bytes",
        "max_retries",
    )

    def __init__(
        self,
        session: str,
        spill_directory: str,
        cache_limit_bytes: int,
        ledger_fd: int,  # counts the shared memory of all processes; see `store.ledger`
        threads_per_worker: int,  # for OpenMP and the BLAS libraries
        process_group: int,  # that of the driver, so that a terminal treats them alike
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
        payload: InitPayload | None,  # stands for the two before it where nothing is inherited
        method: str,  # "fork", "forkserver" or "spawn"
        max_workers: int,  # of the executor, for tasks that submit tasks; so are the next two
        lineage_bytes: int,
        max_retries: int,
    ) -> None:
        self.session = session
        self.spill_directory = spill_directory
        self.cache_limit_bytes = cache_limit_bytes
        self.ledger_fd = ledger_fd
        self.threads_per_worker = threads_per_worker
        self.process_group = process_group
        self.initializer = initializer
        self.initargs = initargs
        self.payload = payload
        self.method = method
        self.max_workers = max_workers
        self.lineage_bytes = lineage_bytes
        self.max_retries = max_retries


# How long a value waits for room, in seconds, where neither shared memory nor the disk has any:
# long enough for what is on its way to be freed, short enough to be told while somebody watches.
ROOM_WAIT_S = 10.0


def new_session() -> str:
    """Five random bytes as ten digits; short, for macOS's 31-character names."""
    return os.urandom(5).hex()


def cache_limit_bytes(max_workers: int, store_bytes: int) -> int:
    """How much freed shared memory each process may keep for reuse.

    All processes together at most a quarter of what there is or may be taken, and 512 MiB each:
    enough for two arrays of 256 MB, beyond which a fresh page costs little next to the work done on
    it.
    """
    try:
        status = os.statvfs("/dev/shm")
        total = min(status.f_blocks * status.f_frsize, store_bytes)
    except OSError:
        total = 1 << 30
    return int(min(512 << 20, total // 4 // (max_workers + 1)))
