"""The definitions that a submitting process has made: bytes, under keys made from them.

A definition is a function, or a *namespace entry*: a name of `__main__` with its value. The same
bytes always have the same key, also in another process, so nothing is sent twice.
"""

from __future__ import annotations

import pickle
from _blake2 import blake2b
from collections.abc import Collection, Iterable


class Definitions:
    """Bodies by key, and what the namespace entries among them need.

    Thread safety: every method may be called from any thread.
    """

    def __init__(self) -> None:
        # key -> body of every definition made so far and not yet forgotten.
        self.bodies: dict[int, bytes] = {}
        # key -> the global name that a namespace entry sets.
        self.entry_name: dict[int, str] = {}
        # The global names that ever had an entry.
        self.bound_names: set[str] = set()
        # The global names that functions assign and do not read.
        self.assigned: set[str] = set()
        # key of an entry -> keys of the entries that must be there before it is loaded.
        self._needs_first: dict[int, tuple[int, ...]] = {}
        # key of an entry -> keys of the entries that its functions use when they are called.
        self._needs_later: dict[int, tuple[int, ...]] = {}

    def add_function(self, body: bytes, names: tuple[str, ...]) -> int:
        """Keep the definition of a function that needs these globals; return its key."""
        return self._add(pickle.dumps((names, body), 5))

    def add_entry(self, name: str, body: bytes, needs_first: tuple[int, ...]) -> int:
        """Keep a namespace entry which is loaded after the entries of these keys."""
        key = self._add(pickle.dumps((name, body), 5))
        self.entry_name[key] = name
        self.bound_names.add(name)
        self._needs_first[key] = needs_first
        return key

    def set_needs_later(self, key: int, needs: tuple[int, ...]) -> None:
        """Note what the functions of an entry use; the latest word counts."""
        self._needs_later[key] = needs

    def complete(self, entries: Iterable[int]) -> tuple[int, ...]:
        """Return these entries with all that they need, in the order in which to apply them.

        What an entry needs in order to be loaded comes before it. What the functions of *that*
        use comes before it too, wherever it can: loading an instance may call them.
        """
        wanted = self._all_needed(entries)
        ordered: dict[int, None] = {}
        placing: set[int] = set()

        def place(key: int) -> None:
            if key in ordered or key in placing:
                return
            placing.add(key)
            first = self._needs_first.get(key, ())
            for need in first:
                place(need)
            if first:
                for need in self._all_needed(first):
                    if need not in ordered and placing.isdisjoint(self._loaded_before(need)):
                        place(need)
            placing.discard(key)
            ordered[key] = None

        for key in wanted:
            place(key)
        return tuple(ordered)

    def reached(self, key: int) -> list[int]:
        """Return an entry and all it needs, in no useful order; nothing if some was forgotten."""
        found = self._all_needed((key,))
        for known in found:
            for need in self._needs_first[known] + self._needs_later.get(known, ()):
                if need not in self.bodies:
                    return []
        return found

    def forget(self, keep: Collection[int]) -> None:
        """Drop all but these keys."""
        for key in list(self.bodies):
            if key not in keep:
                self.bodies.pop(key, None)
                self.entry_name.pop(key, None)
                self._needs_first.pop(key, None)
                self._needs_later.pop(key, None)

    def _all_needed(self, entries: Iterable[int]) -> list[int]:
        """Return these entries and all that they need, at any time."""
        found = [key for key in dict.fromkeys(entries) if key in self.entry_name]
        known = set(found)
        for key in found:  # grows on the way
            for need in self._needs_first.get(key, ()) + self._needs_later.get(key, ()):
                if need not in known and need in self.entry_name:
                    known.add(need)
                    found.append(need)
        return found

    def _loaded_before(self, key: int) -> list[int]:
        """Return this entry and all that must be there before it is loaded."""
        found = [key]
        for known in found:  # grows on the way
            found += [need for need in self._needs_first.get(known, ()) if need not in found]
        return found

    def _add(self, body: bytes) -> int:
        key = int.from_bytes(blake2b(body, digest_size=8).digest(), "little")
        self.bodies.setdefault(key, body)
        return key
