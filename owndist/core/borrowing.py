"""References of this process to objects that others own.

A process meets such a reference inside an argument, or inside the value of one. While the task
that brought it runs, its owner keeps the object for the task's sake. A handle that outlives the
task is told to the owner with the task's result, before the owner lets go of the arguments, so
there is no moment at which the object is kept by nothing.

Registrations carry tokens that are never used twice. A release names the token that it ends, so a
release that is overtaken by a newer registration of the same object ends only the old one.
"""

from __future__ import annotations

from .ids import Address, ObjectId, ProcessNumber


class Borrowed:
    """One object of another process, while handles to it exist here."""

    __slots__ = ("asked", "handles", "token")

    def __init__(self) -> None:
        self.handles = 0  # futures of this process for it
        self.token: int | None = None  # the registration at the owner, once made
        self.asked = False  # its outcome has been asked for, and is still to come


class Borrowing:
    """The borrowed objects of this process."""

    def __init__(self) -> None:
        self.objects: dict[Address, Borrowed] = {}
        self._last_token = 0

    def acquire(self, address: Address) -> bool:
        """One more handle. True: its outcome is to be asked for."""
        borrowed = self.objects.get(address)
        if borrowed is None:
            borrowed = self.objects[address] = Borrowed()
        borrowed.handles += 1
        first = not borrowed.asked
        borrowed.asked = True
        return first

    def answered(self, address: Address) -> bool:
        """The outcome is here. True: somebody waits for it.

        The next handle asks again: it may be for a new future, made before this machine has
        heard that the one which got this answer was collected.
        """
        borrowed = self.objects.get(address)
        if borrowed is None:
            return False
        borrowed.asked = False
        return True

    def drop(self, address: Address) -> tuple[ProcessNumber, ObjectId, int] | None:
        """One handle less. Returns the registration to release, if that was the last."""
        borrowed = self.objects.get(address)
        if borrowed is None:
            return None
        borrowed.handles -= 1
        if borrowed.handles:
            return None
        del self.objects[address]
        if borrowed.token is None:
            return None
        return address.owner, address.id, borrowed.token

    def register(self, owner: ProcessNumber) -> tuple[tuple[ObjectId, int], ...]:
        """Objects of this owner that it does not yet know to be kept here, now registered."""
        fresh = []
        for address, borrowed in self.objects.items():
            if borrowed.token is None and address.owner == owner:
                self._last_token += 1
                borrowed.token = self._last_token
                fresh.append((address.id, borrowed.token))
        return tuple(fresh)
