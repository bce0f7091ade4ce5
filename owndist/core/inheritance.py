"""What becomes of the memory that a dead process had written.

Values outlive their writer. Its segments that hold any are kept, and removed when the last value
in them is needed no more. Their owners may be several processes: the lessor asks each of them which
segments it needs (HOLDING), removes the others, and is told when one is needed no more (UNHOLD).
"""

from __future__ import annotations

from collections.abc import Iterable

from .commands import Abandon, Command, Free, Send, SweepDead, Unlink
from .ids import DRIVER, ProcessNumber
from .messages import ABANDON, FREE, HOLDING, UNHOLD, Message
from .references import ReferenceTable
from .values import Extent


class Inheritance:
    """The extents of other processes that are to be freed, some of them of dead ones."""

    def __init__(
        self, number: ProcessNumber, references: ReferenceTable, commands: list[Command]
    ) -> None:
        self.number = number
        self._references = references
        self._commands = commands
        # {dead writer: {segment: extents in it that hold values of ours}}
        self.dead: dict[ProcessNumber, dict[str, int]] = {}
        # In the lessor: {dead writer: {segment: {who needs it}}}, and who has not answered yet.
        self.held: dict[ProcessNumber, dict[str, dict[ProcessNumber, None]]] = {}
        self.awaited: dict[ProcessNumber, dict[ProcessNumber, None]] = {}

    def free(self, freed: Iterable[tuple[Extent, bool]]) -> None:
        """Tell whoever wrote the extents that they are free, or given up."""
        by_writer: dict[tuple[ProcessNumber, int], list[int]] = {}
        for (number, serial, segment, _, _), strayed in freed:
            if number == self.number:
                self._commands.append(Abandon(serial) if strayed else Free(serial))
            elif number in self.dead:
                self._one_less(number, segment)
            else:
                by_writer.setdefault((number, ABANDON if strayed else FREE), []).append(serial)
        for (number, code), serials in by_writer.items():
            self._commands.append(Send(number, (code, tuple(serials))))

    def _one_less(self, number: ProcessNumber, segment: str) -> None:
        segments = self.dead[number]
        if segment not in segments:
            return
        segments[segment] -= 1
        if segments[segment]:
            return
        del segments[segment]
        if not segments:
            del self.dead[number]
        if self.number == DRIVER:
            self._unheld(number, segment, DRIVER)
        else:
            self._commands.append(Send(DRIVER, (UNHOLD, number, segment)))

    def _keep_own(self, number: ProcessNumber) -> tuple[str, ...]:
        """A process is dead: which of its segments hold values of ours."""
        self.free(self._references.take_freed())
        segments: dict[str, int] = {}
        for record in self._references.extents.values():
            if record.mine and record.extent[0] == number:
                segment = record.extent[2]
                segments[segment] = segments.get(segment, 0) + 1
        if segments:
            self.dead[number] = segments
        return tuple(segments)

    def answer(self, number: ProcessNumber) -> None:
        """Tell the lessor which segments of a dead process are needed here."""
        self._commands.append(Send(DRIVER, (HOLDING, number, self._keep_own(number))))

    # -- in the lessor

    def begin(self, number: ProcessNumber, owners: Iterable[ProcessNumber]) -> None:
        """A process is dead. It may have been asked about others, and need segments of them."""
        for dead in list(self.held):
            if dead != number:
                for segment in list(self.held[dead]):
                    self._unheld(dead, segment, number)
        self.held[number] = {segment: {DRIVER: None} for segment in self._keep_own(number)}
        self.awaited[number] = {owner: None for owner in owners if owner != DRIVER}
        for dead in list(self.awaited):
            self.awaited[dead].pop(number, None)
            self._sweep_if_known(dead)

    def on_holding(self, peer: ProcessNumber, message: Message, now: int) -> None:
        """An owner has answered."""
        _, number, segments = message
        awaited = self.awaited.get(number)
        if awaited is None or peer not in awaited:
            return  # it has answered before: what a dead process has sent may come twice
        for segment in segments:
            self.held[number].setdefault(segment, {})[peer] = None
        del awaited[peer]
        self._sweep_if_known(number)

    def on_unhold(self, peer: ProcessNumber, message: Message, now: int) -> None:
        """An owner needs a segment no more."""
        self._unheld(message[1], message[2], peer)

    def _sweep_if_known(self, number: ProcessNumber) -> None:
        if not self.awaited[number]:
            del self.awaited[number]
            held = self.held[number]
            self._commands.append(SweepDead(number, frozenset(held)))
            if not held:
                del self.held[number]

    def _unheld(self, number: ProcessNumber, segment: str, owner: ProcessNumber) -> None:
        held = self.held.get(number, {})
        holders = held.get(segment)
        if holders is None or owner not in holders:
            return
        del holders[owner]
        if not holders:
            del held[segment]
            if number not in self.awaited:  # else the sweep takes it
                self._commands.append(Unlink(segment))
                if not held:
                    del self.held[number]
