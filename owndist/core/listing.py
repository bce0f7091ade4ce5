"""What a process knows of its objects, as rows for people; see `OwnershipExecutor.references`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from .ids import Address, ProcessNumber, Ref
from .references import Entry
from .values import CANCELLED, FAILED, GONE, PENDING, READY, extent_key, extent_of, inline_size
from .values import is_file as _is_file

if TYPE_CHECKING:
    from .machine import Machine

_STATES = {
    PENDING: "pending",
    READY: "ready",
    FAILED: "failed",
    CANCELLED: "cancelled",
    GONE: "gone",
}


class Row(NamedTuple):
    """One object, and what keeps it."""

    object: int
    owner: ProcessNumber
    name: str
    state: str
    size: int
    where: str
    handles: int
    arguments: int
    contained: int
    lineage: int
    borrowers: tuple[ProcessNumber, ...]
    mapped_by: tuple[ProcessNumber, ...]


def list_objects(machine: Machine) -> list[Row]:
    """The objects that a process owns or borrows, in the order in which it came to know them."""
    return [_row(machine, ref, entry) for ref, entry in machine.references.entries.items()]


def _row(machine: Machine, ref: Ref, entry: Entry) -> Row:
    owner, number = machine.number, ref
    if isinstance(ref, Address):
        owner, number = ref.owner, ref.id
    mapped: tuple[ProcessNumber, ...] = ()
    size, where = 0, "nowhere"
    if entry.status == READY:
        value: Any = entry.value
        extent = extent_of(value)
        if extent is None:
            size, where = inline_size(value), "message"
        else:
            record = machine.references.extents[extent_key(extent)]
            size = record.extent[4]
            where = "disk" if _is_file(record.extent) else "shared memory"
            mapped = tuple(record.pins)
    return Row(
        object=number,  # type: ignore[arg-type]
        owner=owner,
        name=entry.name,
        state=_STATES[entry.status],
        size=size,
        where=where,
        handles=entry.handles,
        arguments=entry.arguments,
        contained=entry.contained,
        lineage=entry.lineage,
        borrowers=tuple(sorted({process for process, _ in entry.borrowers or ()})),
        mapped_by=mapped,
    )
