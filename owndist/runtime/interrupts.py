"""Interrupting the user's code that a worker's main thread runs.

Python runs a signal's handler in the main thread, between two of its instructions, whatever it is
doing there: that is what ends a sleep, a wait for a lock or a read. So an interrupt is a signal to
the main thread, and a handler that raises. It must hit nothing else: not the next task, not this
worker's own code, not a module that is half imported. The handler raises only if all of this holds:

* the execution on top of the stack of started tasks is one that is to be interrupted;
* the user's function is on Python's stack, called by `call_user`: so its arguments have been
  loaded, and its result is not being written;
* between that and the top of Python's stack there is no function of ours, nor of
  `concurrent.futures`, which would be left half done; except those that sleep until a future is
  done (`_SLEEPS`), and those that have called them;
* nor is there an import: a module that was left half done stays so for the tasks to come;
* nor a `__del__`, whose errors Python drops.

Since it runs in the thread that it looks at, nothing can change between the look and the raise.

If it does not hold the handler does nothing, and the reader thread sends the signal again, until
the exception is raised or the task has ended. It has to for another reason, too: the signal may
strike between Python's last look for signals and the system call that then sleeps.
"""

from __future__ import annotations

import importlib._bootstrap as _bootstrap
import signal
import sys
import threading
from collections.abc import Callable
from types import CodeType, FrameType

from ..core.ids import ExecutionKey
from ..futures import Future
from .arguments import call_carried
from .helping import HelpingEvent
from .usercode import call_user

# Ignored by default, so one that comes too late, or into a process where somebody has reset its
# handler, does no harm. Hardly anybody uses it: it tells of urgent data on a socket.
_SIGNAL = signal.SIGURG

# The signal is sent again after so long, then twice as long, and so on up to the second figure. It
# may interrupt a system call that begins anew each time, so it must become rare. Seconds.
_FIRST_S, _LAST_S = 0.005, 0.1

_PACKAGE = __name__.partition(".")[0]
_IMPORT = _bootstrap.__name__

_CALL: CodeType = call_user.__code__
# Functions of ours that may be left at any instruction: the first does nothing but call the user's,
# the others, `_SLEEPS`, do nothing but sleep.
_CALLS: CodeType = call_carried.__code__


class Interrupts:
    """Which executions are to be interrupted, and the handler that does it.

    Args:
        current: names the execution that runs now.
        wake_reader: has the reader thread call `send_due`.
        on_struck: is told of an execution that is being interrupted, if somebody wants to hear
            that. It takes the worker's lock, which the main thread does not hold there.
    """

    def __init__(
        self,
        current: Callable[[], ExecutionKey | None],
        wake_reader: Callable[[], None],
        on_struck: Callable[[ExecutionKey, bool], None],
    ) -> None:
        # {execution: what `on_struck` is to be told, or None}; the worker's lock is held for
        # changes, but not when one is taken out.
        self.wanted: dict[ExecutionKey, bool | None] = {}
        self._current = current
        self._wake_reader = wake_reader
        self._on_struck = on_struck
        self._wait_s = 0.0  # until the signal is sent again
        self._main = threading.main_thread().ident

    def install(self) -> None:
        """Take the signal. In the main thread."""
        signal.signal(_SIGNAL, self._on_signal)

    # -- the main thread

    def strike_if_due(self) -> None:
        """Raise if the running execution is to be interrupted: it has just waited.

        What it has waited for may have been cancelled with it. It must not hear of that first, or
        the interrupt would strike in the middle of what it does about it.
        """
        if self.wanted and threading.get_ident() == self._main:
            self._on_signal(0, sys._getframe())

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        execution = self._current()
        if execution is not None and execution in self.wanted and _may_raise(frame):
            # A dear import that hardly any worker ever needs. No trouble here: what was interrupted
            # is no import, and a signal that comes in the middle of this one finds that it is one.
            from ..errors import TaskCancelled

            children = self.wanted.pop(execution)
            if children is not None:
                self._on_struck(execution, children)
            raise TaskCancelled("the task was cancelled while it ran")

    # -- with the worker's lock held

    def ask(self, execution: ExecutionKey, children: bool | None) -> None:
        """Interrupt this execution, which has started and was not reported."""
        if children is None:
            children = self.wanted.get(execution)  # what was asked for before still counts
        self.wanted[execution] = children
        self._wait_s = 0.0
        self._wake_reader()

    def end(self, execution: ExecutionKey) -> bool | None:
        """The execution is over. Returns what `on_struck` would be told, if it did not strike."""
        return self.wanted.pop(execution, None)

    # -- the reader thread

    def next_timeout(self, timeout_s: float | None) -> float | None:
        """How long the reader may sleep, if it would sleep so long otherwise."""
        if not self.wanted:
            return timeout_s
        return self._wait_s if timeout_s is None else min(timeout_s, self._wait_s)

    def send_due(self) -> None:
        """Send the signal, if somebody is to be interrupted."""
        if self.wanted:
            self._wait_s = min(max(_FIRST_S, 2 * self._wait_s), _LAST_S)
            if self._current() in self.wanted:
                assert self._main is not None
                signal.pthread_kill(self._main, _SIGNAL)


_SLEEPS: tuple[CodeType, ...] = (
    Future._block.__code__,
    HelpingEvent.sleep.__code__,
    Interrupts.strike_if_due.__code__,
)


def _may_raise(frame: FrameType | None) -> bool:
    """Whether the thread that has this stack may be left where it is."""
    sleeps = False  # functions of ours are left behind that only sleep, or have called those
    works = False  # functions of ours are left behind that do not, unless they are called by those
    while frame is not None:
        code = frame.f_code
        if code is _CALL:
            return not works
        if code in _SLEEPS:
            sleeps, works = True, False
        elif code is not _CALLS:
            module = frame.f_globals.get("__name__")
            if module == _IMPORT or code.co_name == "__del__":
                return False
            if _is_ours(module):
                works = not sleeps
            elif works:
                return False
            else:
                sleeps = False
        frame = frame.f_back
    return False


def _is_ours(module: object) -> bool:
    if not isinstance(module, str):
        return False
    return module.partition(".")[0] == _PACKAGE or module == "concurrent.futures._base"
