"""What a worker has been sent of an owner's definitions: each goes once, before its first use."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from ..core import messages as m
from ..transport.link import Link
from ..wire.functions import Encoder


class Courier:
    """Posts messages to one peer, and before them the definitions that they need.

    Args:
        encoder: has the definitions of the functions that are submitted.
        known: definitions that the peer has already.
        entries: {global of `__main__`: key of the entry that it has already}.
    """

    __slots__ = ("_encoder", "_entries", "_known")

    def __init__(self, encoder: Encoder, known: set[int], entries: dict[str, int]) -> None:
        self._encoder = encoder
        self._known = known
        self._entries = entries

    def post(self, link: Link, message: tuple[Any, ...]) -> None:
        """Have a message sent with the link's next `flush`, after what it needs."""
        if message[0] == m.TASK:
            function, needs = message[3], message[4]
            if function not in self._known:
                link.post((m.DEFINE, function, self._encoder.definitions[function]))
                self._known.add(function)
            if needs:
                self._post_entries(link, self._encoder.complete(needs))
        elif message[0] == m.OUTCOME and message[4]:
            # The value may be loaded by the task that runs now: the worker looks these up among
            # what is queued behind it.
            keys = self._encoder.complete(message[4])
            self._post_entries(link, keys)
            message = (*message[:4], keys)
        link.post(message)

    def _post_entries(self, link: Link, keys: tuple[int, ...]) -> None:
        """Post the namespace entries that differ from what the peer was last sent."""
        for key in keys:
            name = self._encoder.entry_name[key]
            if self._entries.get(name) != key:
                link.post((m.ENTRY, key, self._encoder.definitions[key]))
                self._entries[name] = key

    def forget(self, link: Link, kept: Container[int]) -> bool:
        """Have the peer drop all definitions but these. True: something was posted."""
        gone = tuple([key for key in self._known if key not in kept])
        if gone:
            self._known.difference_update(gone)
            link.post((m.FORGET, gone))
        return bool(gone)
