"""What a value looks like in messages and tables.

Three shapes, told apart without unpickling anything:

    bytes                       a pickle stream, nothing out of band
    (head, buffers)             a pickle stream and its out-of-band buffers, all inline
    (extent, head, spans)       in shared memory; see `owndist.store`

and what is known of an object that its task left without a value, a *failure*:

    (kind, detail, task name)   kind is one of the constants below
"""

from __future__ import annotations

from typing import Any

from .ids import ExtentKey

# 100 KiB, as in Ray (max_direct_call_object_size). Measured here: at 64 KiB a pipe and shared
# memory cost the same, at 1 MiB shared memory is ten times cheaper.
INLINE_LIMIT = 100 * 1024

Extent = tuple[int, int, str, int, int]  # number, serial, segment, offset, size in bytes
Value = bytes | tuple[Any, ...]
Failure = tuple[str, Any, str]

# Status of an object.
# GONE: it was READY, and its value is not there any more: nobody needed it, or its memory was lost.
PENDING, READY, FAILED, CANCELLED, GONE = range(5)

# In the place of a status, in DONE: the task did not start, because the memory of an argument is
# gone; the value says which: (segment, (number, serial)).
UNREAD = 5

# Kinds of failure. The detail of each:
ERROR = "error"  # bytes: the pickled exception of the task
DIED = "died"  # (pid, exit code, attempts, stack): the worker ended under the task
BROKEN = "broken"  # (text, error bytes or None): the pool cannot make workers
LOST = "lost"  # text: the value is gone
OWNER_DIED = "owner died"  # text: the process that had submitted its task is gone


def extent_of(value: Value | Failure | None) -> Extent | None:
    """The extent that holds a stored value, else None (also for a failure)."""
    if type(value) is tuple and type(value[0]) is tuple:
        extent: Extent = value[0]
        return extent
    return None


def extent_key(extent: Extent) -> ExtentKey:
    """What identifies an extent: who wrote it, and its serial there."""
    return (extent[0], extent[1])


def is_file(extent: Extent) -> bool:
    """Whether it lies on disk: the name of a file is an absolute path."""
    return extent[2].startswith("/")


def inline_size(value: Value) -> int:
    """Bytes that an inline value takes in a message; 0 for a stored one."""
    if isinstance(value, bytes):
        return len(value)
    if len(value) == 2:
        head, buffers = value
        return len(head) + sum(len(part) for part in buffers)
    return 0
