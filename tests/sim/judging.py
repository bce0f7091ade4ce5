"""Whether an outcome in a session of many owners is the right one, or excused by what happened."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

from owndist.core.ids import Address
from owndist.core.values import (
    CANCELLED,
    DIED,
    ERROR,
    FAILED,
    LOST,
    OWNER_DIED,
    PENDING,
    READY,
)

from .bodies import decode
from .trees import Plan, Thing

if TYPE_CHECKING:
    from .session import Session


def check_outcome(session: Session, address: Address, status: int, value: Any, own: bool) -> None:
    """An object has its outcome, somewhere: is it the right one, or excused?"""
    name = (address.owner, address.id)
    thing = session.things[name]
    if own:
        # A dead owner's memory goes, also what others have got by its name.
        twice = name in session.outcomes and not (session.memory.lost or session.killed)
        assert not twice, f"object {name} resolves twice"
        session.outcomes[name] = status
    if status == READY:
        assert not thing.doomed, f"{thing.name} has a value"
        text, refs, _ = decode(value)
        assert text == thing.text, f"{thing.name} is {text} instead of {thing.text}"
        inner = [session.things[ref[1], ref[2]] for ref in refs]
        assert inner == list(thing.refs), f"{thing.name} holds {inner}"
    elif status == CANCELLED:
        maker = session.makers[name]
        stopped = maker in session.cancelled or _takes_cancelled(session, session.things[maker])
        assert stopped, f"object {name} is cancelled without being asked for"
        session.cancelled[name] = session.cancelled[maker] = None
    else:
        assert status == FAILED
        _check_failure(session, value, thing)
        if not own:
            session.let_go[name] = None


def _takes_cancelled(session: Session, thing: Thing) -> bool:
    """Whether it takes what was cancelled with the task that ran on top of another."""
    slots = thing.slots if isinstance(thing, Plan) else ()
    return any(session.things[name] is slot for name in session.cancelled for slot in slots)


def _check_failure(session: Session, failure: Any, thing: Thing) -> None:
    """Whether something has happened that allows this (Laws 33, 46, 50)."""
    kind, detail, name = failure
    if kind == ERROR:
        said = pickle.loads(detail)
        if said[0] == "raised":
            task = session.things[said[1:]]
            assert isinstance(task, Plan)
            assert task.raises, f"{task.name} raises"
            excused = thing.doomed or session.dead or session.memory.lost
            assert excused, f"{thing.name} fails with {said}"
        elif said[1] is None:
            assert session.cancelled, f"{thing.name} has read what nobody has cancelled"
        else:
            _check_failure(session, said[1], thing)
    elif kind == DIED:
        owner, task_id = map(int, name.split("."))
        task = session.things[owner, task_id]
        assert isinstance(task, Plan)
        assert detail[2] == task.max_retries + 1, f"{thing.name}: retries left: {failure}"
        deaths = session.deaths.get((owner, task_id), 0)
        assert deaths, f"task {name} has died unseen"
        raised = session.raised.get((owner, task_id), 0)
        charged = deaths + raised + session.recomputed.get((owner, task_id), 0)
        assert charged >= detail[2], f"{thing.name}: {deaths} deaths, {failure}"
    elif kind == OWNER_DIED:
        number = int(detail.split()[1].rstrip(","))
        assert session.is_dead(number), f"{thing.name}: {failure}, who lives"
        # Or it left since all that it owned was let go of, with somebody else who was killed.
        assert session.killed or session.driver.drained, f"{thing.name}: {failure}, who has left"
    else:
        excused = session.killed or session.memory.lost
        assert kind == LOST and excused, f"{thing.name}: {failure}"


def check_borrowed(session: Session) -> None:
    """What a process keeps, its living owner keeps too (Laws 12, 17, 20)."""
    for process in session.processes():
        if process.machine.borrowing.unanswered:
            continue  # it may not have been seen by anybody yet
        for address in process.borrowed:
            owner = session.workers.get(address.owner) if address.owner else session.driver
            if owner is None or not owner.alive:
                continue
            entry = process.machine.references.entries.get(address)
            if session.memory.lost and entry is not None and entry.status == PENDING:
                continue  # the value that brought it may be lost; then its owner says so
            if entry is None or entry.status == FAILED or tuple(address)[1:] in session.let_go:
                continue
            assert address.id in owner.machine.references.entries, (
                f"object {address} was freed; process {process.number} borrows it"
            )
