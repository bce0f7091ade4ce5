"""Verbs for the tests of values whose memory is gone."""

from __future__ import annotations

from typing import Any

from owndist.core.commands import Complete
from owndist.core.reports import ValueLost

from .door import Door, only


def door_with(workers: int = 1, limit_bytes: int = 1 << 20) -> Door:
    """A machine that retains tasks, with this many workers up once there are tasks."""
    door = Door(max_workers=workers)
    door.machine.references.lineage.limit_bytes = limit_bytes
    return door


def lose(door: Door, object_id: int, writer: int, serial: int) -> list[Any]:
    """This process finds the value of an object gone."""
    return door.feed(ValueLost(object_id, (writer, serial), f"s{writer}"))


def outcomes_of(commands: list[Any]) -> dict[int, tuple[int, Any]]:
    return {c.object: (c.status, c.value) for c in only(commands, Complete)}


def runs(door: Door) -> dict[int, int]:
    """{task: how often it was sent}."""
    found: dict[int, int] = {}
    for _, task, _ in door.tasks_sent():
        found[task] = found.get(task, 0) + 1
    return found


def last_outcomes(door: Door) -> dict[object, tuple[int, Any]]:
    """The last outcome of each object."""
    found: dict[object, tuple[int, Any]] = {}
    for _, commands in door.story:
        found.update(outcomes_of(commands))  # type: ignore[arg-type]
    return found
