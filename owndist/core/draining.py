"""When everything is over: after `Drained` the workers are told to end, whatever they own.

The driver knows of its own tasks, and has heard from each other owner whether it has any (`busy` in
DEMAND). But what it has heard comes by several links, and is read in any order. Task X of owner A
runs in worker B, submits Y there and ends. B says that it is busy, and only then tells A of the end
of X; only then A says that it is not. If the driver reads A's link first, nobody seems to be busy,
although Y has not even started.

So it looks again: it reads all links once more, each to its end. If nobody has said meanwhile that
it is busy, all is over. Why one look is enough: suppose that some task is unfinished when the look
begins, say Y, of owner B. B had no tasks by what was read before; so that it has one now, it has
written or is about to write.

  * It has written: then that lies in the socket, and the look finds it.
  * It is about to write: then it is in the middle of submitting, inside of a task X that it runs
    and that is unfinished too. The same can be said of X and its owner A, and so on. Each of these
    tasks is inside of another one that somebody submitted earlier, so this ends: at one whose owner
    has written, or at one of the driver's own. But the driver has none.

What a thread or a callback submits that its task has left behind is not inside of any task. It is
waited for if it is heard of in time, and lost if not: in the driver, too, nothing can be submitted
by a callback that comes after `shutdown`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .commands import Drained, LookAgain
from .ids import DRIVER
from .reports import LookedAgain

if TYPE_CHECKING:
    from .machine import Machine


class Draining:
    """The part of the driver's machine that finds out when everything is over."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._looking = False  # a `LookAgain` has no answer yet
        self._busy_before = 0  # how often somebody had said that it is busy, when that was asked

    def proceed(self) -> None:
        """After every report, once there are to be no more submissions."""
        machine = self._machine
        if self._looking or not self._seems_over():
            return
        self._looking = True
        self._busy_before = machine.lessor.times_busy
        machine.commands.append(LookAgain())

    def on_looked_again(self, report: LookedAgain, now: int) -> None:
        """All links have been read to their ends."""
        machine = self._machine
        self._looking = False
        if machine.lessor.times_busy == self._busy_before and self._seems_over():
            machine.drained = machine.recovery.over = True
            machine.lessor.retire_all()
            machine.commands.append(Drained())

    def _seems_over(self) -> bool:
        machine = self._machine
        return (
            machine.number == DRIVER
            and not machine.submission.tasks
            and not machine.lessor.is_busy()
        )
