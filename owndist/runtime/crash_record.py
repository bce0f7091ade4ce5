"""What a worker leaves behind when it is killed at any instruction.

A small piece of anonymous shared memory that the driver makes for each worker and both map. The
worker writes, and the driver reads once the worker is gone:

    running     the execution that it had started and not yet reported: that one is charged a
                retry, what was only queued is not
    slot        its place in the store's ledger; the driver writes it before there is a worker
    segments    how many shared-memory segments it has made: their names follow from the number
    outbox      frames that it had not yet sent: finished tasks are not run again
    stack       what `faulthandler` wrote when it crashed

and one thing that the driver writes while it lives:

    condemned   the execution for whose sake it is about to kill the worker, which starts nothing
                else after that one

A store into mapped memory is done or not done whatever happens to the process, so no order of
system calls has to be trusted.
"""

from __future__ import annotations

import mmap
import os
import sys

_RUNNING, _SEGMENTS, _LENGTH, _SLOT, _OWNER, _CONDEMNED, _CONDEMNED_OWNER = range(7)

_OUTBOX_AT = 4096
OUTBOX_BYTES = 128 * 1024  # replies of 100 KiB fit; larger ones do not exist (they are stored)
_STACK_AT = _OUTBOX_AT + OUTBOX_BYTES
_STACK_BYTES = 32 * 1024
_SIZE = _STACK_AT + _STACK_BYTES


def create_file() -> int:
    """An anonymous file for one record; returns its descriptor."""
    if sys.platform == "linux":
        fd = os.memfd_create("owndist-crash-record")
    else:
        import tempfile

        fd, path = tempfile.mkstemp(prefix="owndist-")
        os.unlink(path)
    os.ftruncate(fd, _SIZE)
    return fd


class CrashRecord:
    """One worker's record, as mapped by one process."""

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, _SIZE)
        self._view = memoryview(self._map)
        self._words = self._view[:4096].cast("Q")
        self._outbox = self._view[_OUTBOX_AT:_STACK_AT]
        self._last = (-1, 0)  # what was started last, in the worker: execution and owner

    # -- written by the driver

    @property
    def slot(self) -> int:
        """The worker's place in the store's ledger."""
        return self._words[_SLOT]

    @slot.setter
    def slot(self, slot: int) -> None:
        self._words[_SLOT] = slot

    # -- written by the worker

    def start(self, execution: int, owner: int) -> bool:
        """This execution of an owner's task is about to start; see `core.ids.execution_id`.

        False: it must not, yet. The driver is looking whether the one before it runs, or has seen
        that, and has sent a kill that would hit this one.
        """
        words = self._words
        if words[_CONDEMNED] == self._last[0] and words[_CONDEMNED_OWNER] == self._last[1]:
            return False
        self._last = (execution, owner)
        words[_OWNER] = owner
        words[_RUNNING] = execution
        return True

    def finish(self) -> None:
        """The started task has been reported: its reply is in the outbox, or sent."""
        self._words[_RUNNING] = 0

    def count_segments(self, count: int) -> None:
        """So many segments have been made, or are about to be."""
        self._words[_SEGMENTS] = count

    def append(self, frame: bytes) -> bool:
        """Put a frame into the outbox. False: it does not fit."""
        start = self._words[_LENGTH]
        end = start + len(frame)
        if end > OUTBOX_BYTES:
            return False
        self._outbox[start:end] = frame
        self._words[_LENGTH] = end  # only now does it count
        return True

    def outbox(self) -> bytes:
        """All frames that have not been cleared."""
        return bytes(self._outbox[: self._words[_LENGTH]])

    def outbox_length(self) -> int:
        """Bytes in the outbox."""
        return self._words[_LENGTH]

    def clear_outbox(self) -> None:
        """The frames have been sent."""
        self._words[_LENGTH] = 0

    def tell(self, text: str) -> None:
        """Say why this process ends, where the stack would be."""
        data = text.encode()
        self._view[_STACK_AT : _STACK_AT + len(data)] = data

    # -- read by the driver

    def condemn(self, execution: int, owner: int) -> bool:
        """True: the worker runs this execution, and starts no other one until it is killed."""
        words = self._words
        words[_CONDEMNED_OWNER] = owner
        words[_CONDEMNED] = execution
        # Only now: if it runs this now, it finds itself condemned before it starts another. Read
        # twice, for it writes owner and execution one after the other.
        if self.running == execution and self.owner == owner and self.running == execution:
            return True
        words[_CONDEMNED] = 0
        return False

    @property
    def running(self) -> int:
        """The execution that had started and was not reported; 0 for none."""
        return self._words[_RUNNING]

    @property
    def owner(self) -> int:
        """Whose task that is."""
        return self._words[_OWNER]

    @property
    def segments(self) -> int:
        """How many segments the worker made."""
        return self._words[_SEGMENTS]

    def stack(self) -> str:
        """What faulthandler wrote."""
        raw = bytes(self._view[_STACK_AT:])
        return raw.split(b"\0", 1)[0].decode("utf-8", "replace")

    def close(self) -> None:
        """Unmap."""
        self._words.release()
        self._outbox.release()
        self._view.release()
        self._map.close()


def catch_crashes(fd: int) -> None:
    """Have faulthandler write into the record if this process crashes. `fd` must stay open."""
    import faulthandler

    os.lseek(fd, _STACK_AT, os.SEEK_SET)
    faulthandler.enable(file=fd)
