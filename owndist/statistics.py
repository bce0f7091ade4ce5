"""What an executor tells of itself."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Statistics"]


class Statistics(NamedTuple):
    """What an executor has done so far; see `OwnershipExecutor.statistics`.

    Attributes:
        tasks_submitted: tasks taken in, chunks of a batched `map` counted as one.
        tasks_finished: tasks that returned a value.
        tasks_failed: tasks that raised, or could not be run.
        tasks_cancelled: tasks that were cancelled, or took a cancelled future.
        tasks_retried: executions of tasks that had failed: their workers had died, or they had
            raised what `retry_exceptions` names.
        tasks_recomputed: executions of tasks whose values had been lost.
        workers: worker processes now.
        workers_died: workers that ended without having been told to.
        bytes_sent: from this process to its workers, through their links.
        bytes_received: from the workers.
        bytes_mapped: values in shared memory that this process has asked for.
        bytes_put: values that this process has written to shared memory.
        store_bytes: shared memory that holds values now.
        store_values: how many values there are outside of messages, in shared memory or on disk.
        spilled_bytes: values that are on disk now, for want of shared memory.
        spills: values that were moved from shared memory to disk.
        spill_reads: how often a value that was on disk was handed out to be read; more than once
            for a task that was called back from one worker and sent to another.
    """

    tasks_submitted: int
    tasks_finished: int
    tasks_failed: int
    tasks_cancelled: int
    tasks_retried: int
    tasks_recomputed: int
    workers: int
    workers_died: int
    bytes_sent: int
    bytes_received: int
    bytes_mapped: int
    bytes_put: int
    store_bytes: int
    store_values: int
    spilled_bytes: int
    spills: int
    spill_reads: int


Statistics.__module__ = "owndist"
