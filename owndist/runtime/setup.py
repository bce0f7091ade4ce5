"""What every worker of an executor is told when it starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class InitPayload(NamedTuple):
    """An initializer as bytes, for workers that inherit nothing."""

    function: int
    entries: tuple[int, ...]
    definitions: dict[int, bytes]
    head: bytes
    buffers: list[bytes]


class WorkerSetup(NamedTuple):
    """Everything that a worker needs to know; the same for all workers of an executor."""

    session: str
    spill_directory: str
    cache_limit_bytes: int
    threads_per_worker: int  # for OpenMP and the BLAS libraries
    process_group: int  # that of the driver, so that a terminal treats them alike
    initializer: Callable[..., object] | None
    initargs: tuple[Any, ...]
    payload: InitPayload | None  # stands for the two before it where nothing is inherited
    method: str  # "fork", "forkserver" or "spawn"
