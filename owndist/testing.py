"""For tests of programs that use owndist: what seldom goes wrong, when you want it to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .core.values import READY, extent_of
from .store.segments import unlink_segment

if TYPE_CHECKING:
    from .futures import Future

__all__ = ["lose_value"]


def lose_value(future: Future[Any]) -> bool:
    """Remove the memory that holds a future's value, as somebody who empties `/dev/shm` would.

    Whoever asks for the value from then on has it computed again, by the task that made it, unless
    that may not run again: see `max_retries` and `lineage_bytes` of `OwnershipExecutor`. Small
    values share memory, and are lost together. Views of the value that exist already stay valid.

    Args:
        future: one that is done, of an executor of this process, or of a task that runs in it.

    Returns:
        True if there was something to remove: the value was in shared memory or on disk. Values up
        to 100 KiB are in neither.
    """
    peer = future._peer
    machine = getattr(peer, "machine", None)
    if machine is None:
        raise TypeError(f"{future!r} belongs to no executor of this process")
    with peer._lock:  # type: ignore[attr-defined]
        entry = machine.references.entries.get(future._object)
        value = machine.references.current(entry.value) if entry and entry.status == READY else None
    extent = extent_of(value)
    return extent is not None and unlink_segment(extent[2])
