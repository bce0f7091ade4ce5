"""How processes, tasks, objects and extents are named.

A *process number* is given once and never again within a session: the driver is 0, workers count
up from 1. A replacement for a dead worker has a new number, so the number is its incarnation too:
whatever a dead one still says cannot be mistaken for its successor's.

A *task id* is an integer that its owner counts up. The task's return values are objects with the
ids `task, task + 1, ...`: a function of the task id, so that a second execution refills the same
objects (Ray gives return ids the same way). A stream has nobody knows how many values, so these
have ids out of the tasks' way (`streamed_id`), and `task` stands for its end.

An *attempt* counts how often a task has been sent to a worker. `execution_id` makes one number of
task and attempt, which a worker can note with a single store to memory.

An *address* says where to ask for an object from anywhere: (host, owner's process number, id).
"""

from __future__ import annotations

from typing import NamedTuple

LOCAL_HOST = 0
DRIVER = 0

ObjectId = int
TaskId = int
ProcessNumber = int
ExtentKey = tuple[int, int]  # (writer's process number, serial)
ExecutionKey = tuple[int, int, int]  # (owner's process number, task, attempt)


class Address(NamedTuple):
    """Names one object of one owner, from anywhere in the session."""

    host: int
    owner: ProcessNumber
    id: ObjectId


def streamed_id(task: TaskId, index: int) -> ObjectId:
    """The value that a stream's task yields after `index` others. Task ids stay below 2**48."""
    return task << 48 | index


def execution_id(task: TaskId, attempt: int) -> int:
    """Names one execution of a task; never 0. Attempts that are 65,536 apart look the same."""
    return task << 16 | attempt & 0xFFFF


# How a process's tables name an object: its own by their ids, those of others by their addresses.
Ref = ObjectId | Address
