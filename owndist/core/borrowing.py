"""Registrations: how an owner comes to know of every process that keeps one of its objects.

A process that meets a reference to another's object registers itself with the owner at once
(REGISTER), and asks for the outcome (BORROW). If the reference came from the owner itself, that is
all: the owner keeps the object for the task that brought it, and hears of the registration before
it hears that the task has ended. If it came from somebody else, the process waits for the owner's
answer (REGISTERED) before the user's code sees the future. So there is no moment at which a future
is in use and the owner does not know it, whoever dies: a borrower that got its reference from a
process that has since died can still read it. (Ray tells the owner of such borrowers only when the
task that made them has ended, and loses the object if the lender dies before.)

A process that gives away a future of a third one, inside a result, registers the receiver before
it does (`register_for`), and names the registration in the result. If it dies in between, the
owner asks the receiver whether it has heard of it (CONFIRM).

Registrations carry tokens that are never used twice, whoever makes them. A release names the token
that it ends, so a release that is overtaken by a newer registration ends only the old one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .commands import Command, Send
from .ids import LOCAL_HOST, Address, ObjectId, ProcessNumber, Ref
from .messages import (
    BORROW,
    CONFIRM,
    OUTCOME,
    REGISTER,
    REGISTERED,
    RELEASE,
    Message,
)
from .references import Entry, ReferenceTable
from .values import FAILED, GONE, LOST, OWNER_DIED, PENDING, READY, Failure, Value

# Tokens of a process begin here, times its number: a trillion each.
_TOKENS = 1 << 40

_LET_GO: Failure = (LOST, "its owner had let it go", "")


def owner_died(owner: ProcessNumber) -> Failure:
    """What becomes of the objects of a dead process."""
    return (OWNER_DIED, f"process {owner}, whose task had submitted its task, has died", "")


class Borrowing:
    """What this process says to other owners, and hears from borrowers."""

    def __init__(
        self, number: ProcessNumber, references: ReferenceTable, commands: list[Command]
    ) -> None:
        self.number = number
        self.references = references
        self.dead: dict[ProcessNumber, None] = {}  # processes known to have ended
        # {number of a REGISTER that is to be answered: its objects}
        self.unanswered: dict[int, tuple[Address, ...]] = {}
        self.lost: list[Entry] = []  # entries that are to fail; see `take_lost`
        # {dead process: [(owner, (object, token))]}: asked about, before its end was known here.
        self._unconfirmed: dict[ProcessNumber, list[tuple[ProcessNumber, tuple[int, int]]]] = {}
        self._last_token = number * _TOKENS
        self._last_register = 0
        self._commands = commands

    # -- borrowing

    def acquire(self, ref: Ref, lender: ProcessNumber | None) -> Entry:
        """One more handle to an object, own or borrowed.

        Args:
            lender: the process that the reference came from, if it is not known to the owner
                already that this one keeps it.
        """
        entries = self.references.entries
        entry = entries.get(ref)
        if entry is None:
            entry = self.references.create(ref, 0)
        entry.handles += 1
        if type(ref) is not int:
            self._borrow(ref, entry, lender)  # type: ignore[arg-type]
        return entry

    def _borrow(self, address: Address, entry: Entry, lender: ProcessNumber | None) -> None:
        owner = address.owner
        if owner in self.dead:
            if entry.status == PENDING:
                self.lost.append(entry)
            return
        if not entry.tokens:
            token = self.new_token()
            entry.tokens = (token,)
            asked = 0
            if lender is not None and lender != owner:
                asked = self._ask((address,))
            item = (address.id, self.number, token)
            self._commands.append(Send(owner, (REGISTER, asked, (item,))))
        if entry.status == PENDING and not entry.asked:
            entry.asked = True
            self._commands.append(Send(owner, (BORROW, address.id)))

    def register_for(
        self, process: ProcessNumber, refs: Iterable[Ref]
    ) -> tuple[tuple[Address, int], ...]:
        """Register another process for objects whose futures it is about to get.

        It must not get them before `unanswered` is empty. Returns their addresses with the tokens;
        a token is 0 where there is none: the object is the other's own, or lost.
        """
        given: list[tuple[Address, int]] = []
        theirs: dict[ProcessNumber, list[tuple[ObjectId, ProcessNumber, int]]] = {}
        for ref in refs:
            if type(ref) is int:
                entry = self.references.entries.get(ref)
                token = 0
                if process != self.number and entry is not None and process not in self.dead:
                    token = self.new_token()
                    self.references.add_borrower(entry, process, token, self.number)
                given.append((Address(LOCAL_HOST, self.number, ref), token))
                continue
            address: Address = ref  # type: ignore[assignment]
            token = 0
            if address.owner != process and address.owner not in self.dead:
                token = self.new_token()
                theirs.setdefault(address.owner, []).append((address.id, process, token))
            given.append((address, token))
        for owner, items in theirs.items():
            addresses = tuple([Address(LOCAL_HOST, owner, item[0]) for item in items])
            asked = self._ask(addresses)
            self._commands.append(Send(owner, (REGISTER, asked, tuple(items))))
        return tuple(given)

    def new_token(self) -> int:
        """A token for a registration."""
        self._last_token += 1
        return self._last_token

    def _ask(self, addresses: tuple[Address, ...]) -> int:
        self._last_register += 1
        self.unanswered[self._last_register] = addresses
        return self._last_register

    def take_lost(self) -> list[Entry]:
        """The borrowed entries that have no owner any more, since the last call."""
        lost = self.lost
        if lost:
            self.lost = []
        return [entry for entry in lost if entry.status == PENDING]

    def on_registered(self, peer: ProcessNumber, message: Message, now: int) -> None:
        """The owner has answered; it may have let go of some."""
        _, asked, gone = message
        if self.unanswered.pop(asked, None) is not None:
            for object_id in gone:
                self._lose(Address(LOCAL_HOST, peer, object_id))

    def _lose(self, address: Address) -> None:
        entry = self.references.entries.get(address)
        if entry is not None and entry.status == PENDING:
            self.lost.append(entry)

    def failure_of(self, entry: Entry) -> Failure:
        """Why a borrowed entry is lost."""
        address: Address = entry.id  # type: ignore[assignment]
        return owner_died(address.owner) if address.owner in self.dead else _LET_GO

    def take_extras(
        self, process: ProcessNumber, extras: Any
    ) -> tuple[tuple[Ref, ...], tuple[int, ...]]:
        """What a worker tells with a value: what it keeps. Returns (nested, entries)."""
        if extras is None:
            return (), ()
        pinned, given, entries = extras
        for key in pinned:
            self.references.pin(process, key)
        return self._adopt(given) if given else (), entries

    def discard(
        self,
        process: ProcessNumber,
        status: int,
        value: Value | Failure | None,
        nested: tuple[Ref, ...],
    ) -> None:
        """A worker's value has come that nobody wants; something else may keep its memory."""
        references = self.references
        if status == READY and value is not None and not references.is_lost(value, process):
            references.hold(value)
            references.drop(value)
        references.release_unneeded(nested)

    def _adopt(self, given: tuple[tuple[Address, int], ...]) -> tuple[Ref, ...]:
        """The objects whose futures are inside a result; we are registered with their owners."""
        nested: list[Ref] = []
        for address, token in given:
            if address[1] == self.number:
                nested.append(address[2])
            else:
                borrowed = Address(*address)
                self.references.adopt(borrowed, token)
                nested.append(borrowed)
        return tuple(nested)

    def send_releases(self) -> None:
        """Tell owners of registrations that are needed no more."""
        for address, token in self.references.take_releases():
            if address.owner not in self.dead:
                self._commands.append(Send(address.owner, (RELEASE, ((address.id, token),))))

    # -- lending

    def on_register(self, peer: ProcessNumber, message: Message, now: int) -> None:
        """Somebody keeps, or is about to keep, handles to these."""
        _, asked, items = message
        gone = []
        for object_id, process, token in items:
            entry = self.references.entries.get(object_id)
            if entry is None:
                gone.append(object_id)
            elif process not in self.dead:
                self.references.add_borrower(entry, process, token, peer)
        if asked:
            self._commands.append(Send(peer, (REGISTERED, asked, tuple(gone))))

    def answer(self, peer: ProcessNumber, object_id: ObjectId) -> None:
        """Tell a borrower the outcome, now or when it is there."""
        entry = self.references.entries.get(object_id)
        if entry is None:
            self._commands.append(Send(peer, (OUTCOME, object_id, FAILED, _LET_GO, ())))
        elif entry.status in (PENDING, GONE):
            if entry.subscribers is None:
                entry.subscribers = []
            entry.subscribers.append(peer)
        else:
            value = self.references.tell(entry.value)
            outcome = (OUTCOME, object_id, entry.status, value, entry.entries)
            self._commands.append(Send(peer, outcome))

    def on_release(self, peer: ProcessNumber, message: Message, now: int) -> None:
        """A borrower has let go."""
        for object_id, token in message[1]:
            self.references.drop_borrower(object_id, peer, token)

    # -- deaths

    def process_ended(self, number: ProcessNumber) -> None:
        """A process is dead, and all that it had said has been heard."""
        self.dead[number] = None
        for process, items in self.references.drop_process(number).items():
            self._commands.append(Send(process, (CONFIRM, number, tuple(items))))
        for asked, addresses in list(self.unanswered.items()):
            if addresses[0].owner == number:
                del self.unanswered[asked]
        for entry in self.references.entries.values():
            if type(entry.id) is not int and entry.id.owner == number:  # type: ignore[union-attr]
                entry.tokens = ()
                if entry.status == PENDING:
                    self.lost.append(entry)
        for owner, item in self._unconfirmed.pop(number, ()):
            self._answer(owner, item)

    def on_confirm(self, peer: ProcessNumber, message: Message, now: int) -> None:
        """An owner asks whether we have heard of registrations that a dead process made for us.

        What the dead one said may still be under way; the answer waits until its end is known.
        """
        _, number, items = message
        for item in items:
            if number in self.dead:
                self._answer(peer, item)
            else:
                self._unconfirmed.setdefault(number, []).append((peer, item))

    def _answer(self, owner: ProcessNumber, item: tuple[int, int]) -> None:
        object_id, token = item
        address = Address(LOCAL_HOST, owner, object_id)
        if not self.references.has_token(address, token) and owner not in self.dead:
            self._commands.append(Send(owner, (RELEASE, ((object_id, token),))))

    def check(self) -> None:
        """The invariants; raises AssertionError."""
        for entry in self.references.entries.values():
            if type(entry.id) is int:
                assert not entry.tokens, f"object {entry.id} is borrowed from ourselves"
