"""What an executor knows of the values that its futures stand for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .core.listing import Row

__all__ = ["Reference", "References"]


class Reference(NamedTuple):
    """One object: a task's value, or one that was `put`; see `OwnershipExecutor.references`.

    Attributes:
        object: its number; unique together with `owner`.
        owner: the process that owns it, because it submitted the task: "pid 4711"; inside a task
            "worker 3", where the pid is not known.
        name: of the task; "put" for a value that was `put`.
        state: "pending", "ready", "failed", "cancelled", or "gone": its value was freed or lost,
            and can be computed again.
        size: of the value, in bytes.
        where: "message": a small value, held by its owner; "shared memory", "disk", or "nowhere".
        kept_by: why it is not let go of, in words. Without any it is pending, which keeps it.
    """

    object: int
    owner: str
    name: str
    state: str
    size: int
    where: str
    kept_by: tuple[str, ...]


class References(tuple[Reference, ...]):
    """The objects, those that take up most first. As text: a table."""

    def __str__(self) -> str:
        rows = [("object", "owner", "task", "state", "bytes", "where", "kept by")]
        for item in self:
            size, why = f"{item.size:,}", ", ".join(item.kept_by)
            number = str(item.object)
            rows.append((number, item.owner, item.name, item.state, size, item.where, why))
        widths = [max(len(row[column]) for row in rows) for column in range(6)]
        lines = []
        for row in rows:
            cells = [
                cell.rjust(width) if column in (0, 4) else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=False))
            ]
            lines.append("  ".join([*cells, row[6]]).rstrip())
        total = sum(item.size for item in self)
        lines.append(f"{len(self)} objects, {total:,} bytes")
        return "\n".join(lines)


def describe(rows: Iterable[Row], pids: Mapping[int, int]) -> References:
    """Rows of a machine's tables, for people.

    Args:
        pids: {process number: pid}, as far as they are known.
    """

    def process(number: int) -> str:
        if number in pids:
            return f"pid {pids[number]}"
        return f"worker {number}" if number else "the driver"

    found = []
    for row in rows:
        kept_by = [
            _count(row.handles, "future"),
            _count(row.arguments, "pending argument"),
            _count(row.contained, "value with its future inside", "values with its future inside"),
            _count(row.lineage, "value made from it", "values made from it"),
            *[f"borrowed by {process(number)}" for number in row.borrowers],
            *[f"mapped by {process(number)}" for number in row.mapped_by],
        ]
        why = tuple(text for text in kept_by if text)
        owner = process(row.owner)
        found.append(Reference(row.object, owner, row.name, row.state, row.size, row.where, why))
    found.sort(key=lambda item: -item.size)
    return References(found)


def _count(number: int, one: str, many: str = "") -> str:
    if not number:
        return ""
    return f"1 {one}" if number == 1 else f"{number} {many or one + 's'}"


for _class in (Reference, References):
    _class.__module__ = "owndist"
