"""The driver's side of the template process: starting it, and asking it for workers."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import struct
import sys
import warnings
from collections.abc import Callable
from typing import Any

from ..core.records import Record
from . import template
from .setup import WorkerSetup
from .template import ADOPT, ENDED, KILL, RECORD, START, STARTED


class Started(Record):
    """A worker process exists."""

    __slots__ = (
        "worker",
        "pid",
    )

    def __init__(
        self,
        worker: int,
        pid: int,
    ) -> None:
        self.worker = worker
        self.pid = pid


class Ended(Record):
    """A worker process is gone, with this exit status (None: unknown)."""

    __slots__ = (
        "worker",
        "exitcode",
    )

    def __init__(
        self,
        worker: int,
        exitcode: int | None,
    ) -> None:
        self.worker = worker
        self.exitcode = exitcode


class Nursery:
    """A running template process, as its driver sees it.

    Args:
        setup: what to tell every worker.
        keep_fds: descriptors that a fresh interpreter and its workers are to inherit: the lock of
            the session, and those of pipes and queues among the initializer's arguments.
    """

    def __init__(self, setup: WorkerSetup, keep_fds: tuple[int, ...]) -> None:
        ours, theirs = socket.socketpair()
        self._control = ours
        self._buffer = b""
        try:
            if setup.method == "fork":
                self.pid = _fork(ours, theirs, setup)
            else:
                self.pid = _exec(theirs, setup, keep_fds)
                _send_setup(ours, setup)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()

    def fileno(self) -> int:
        """The descriptor to wait on for `reports`."""
        return self._control.fileno()

    def start_worker(self, number: int, link: socket.socket, record_fd: int) -> None:
        """Have a worker forked, with its end of the link."""
        self._send(RECORD.pack(START, number, 0), [link.fileno(), record_fd])

    def kill(self, number: int, signum: int = signal.SIGKILL) -> None:
        """Send a signal to a worker, if it still lives."""
        self._send(RECORD.pack(KILL, number, signum), [])

    def adopt(self, pid: int) -> None:
        """Have it see to the end of a worker that an earlier template started."""
        self._send(RECORD.pack(ADOPT, 0, pid), [])

    def _send(self, record: bytes, fds: list[int]) -> None:
        try:
            # Blocking, whatever thread: records are tiny, and the template always reads.
            socket.send_fds(self._control, [record], fds)
        except ConnectionError:
            pass  # the template is gone: `reports` tells

    def reports(self) -> tuple[list[Started | Ended], bool]:
        """What has happened, and whether the template still lives."""
        alive = True
        try:
            while True:
                data = self._control.recv(65536, socket.MSG_DONTWAIT)
                if not data:
                    alive = False
                    break
                self._buffer += data
        except BlockingIOError:
            pass  # that was all
        except OSError:
            alive = False
        found: list[Started | Ended] = []
        whole = len(self._buffer) - len(self._buffer) % RECORD.size
        for operation, number, argument in RECORD.iter_unpack(self._buffer[:whole]):
            if operation == STARTED:
                found.append(Started(number, argument))
            elif operation == ENDED:
                found.append(Ended(number, argument))
        self._buffer = self._buffer[whole:]
        return found, alive

    def close(self) -> None:
        """Tell the template that this is the end, and wait until it has cleaned up."""
        try:
            # Not only closed: a process that was forked at the wrong moment may have a copy.
            self._control.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the template is gone
        self._control.close()
        try:
            os.waitpid(self.pid, 0)
        except ChildProcessError:
            pass  # somebody who waits for all children was faster

    def abandon(self) -> None:
        """In a process forked from the driver: close our copy of the descriptor."""
        self._control.close()


def _fork(ours: socket.socket, theirs: socket.socket, setup: WorkerSetup) -> int:
    # What is buffered would be written again by every worker.
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, ValueError, OSError):
            pass  # None, closed, or broken: then nothing is written twice either
    # A Ctrl-C between fork and the line that ignores it would unwind the driver's stack in the
    # child.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        pid = os.fork()
        if pid == 0:
            try:
                ours.close()
            finally:
                template.run_forked(theirs, setup)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return pid


def fork_quietly(make: Callable[[], Nursery]) -> Nursery:
    """Make a nursery from a process that has threads, without Python's warning about it.

    Only for a template that replaces one which was killed. Python 3.12 warns because a lock may
    be held by another thread; the template takes none, and the workers are no worse off than
    those of the standard library.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return make()


def _exec(theirs: socket.socket, setup: WorkerSetup, keep_fds: tuple[int, ...]) -> int:
    from multiprocessing import resource_tracker, spawn, util

    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())  # as it is
    # As the standard library does: workers share the driver's tracker, so that shared memory
    # made by a task outlives its worker.
    tracker_fd = int(resource_tracker.getfd() or 0)
    package_parent = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    code = (
        f"import gc, sys; gc.disable(); sys.path.insert(0, {package_parent!r}); "
        "from multiprocessing import resource_tracker; "
        f"resource_tracker._resource_tracker._fd = {tracker_fd}; "
        f"from owndist.runtime.template import run_fresh; run_fresh({theirs.fileno()})"
    )
    executable = os.fsdecode(spawn.get_executable())
    arguments = [executable, *util._args_from_interpreter_flags(), "-c", code]  # type: ignore[attr-defined]
    passed = sorted({theirs.fileno(), tracker_fd, *keep_fds})
    spawn_process: Any = util.spawnv_passfds
    # Only now, for the tracker's start lets it in again. A Ctrl-C of a terminal goes to the new
    # process, too, which would end with a traceback until it can ignore it.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        return int(spawn_process(os.fsencode(executable), arguments, passed))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _send_setup(ours: socket.socket, setup: WorkerSetup) -> None:
    from multiprocessing import spawn

    preparation: dict[str, Any] = spawn.get_preparation_data("OwndistTemplate")
    # The script is not run again in the workers: what a task needs of __main__ travels with it.
    # Only where the script lies is told: a task may start processes by multiprocessing itself, or
    # import from its own package (`python -m package.module`).
    main = sys.modules["__main__"]
    preparation["owndist_main"] = {
        name: getattr(main, name) for name in ("__file__", "__package__") if hasattr(main, name)
    }
    preparation.pop("init_main_from_name", None)
    preparation.pop("init_main_from_path", None)
    # Process.authkey refuses to be pickled outside multiprocessing's own spawning.
    preparation["authkey"] = bytes(preparation.get("authkey", b""))
    data = pickle.dumps((preparation, setup))
    ours.sendall(struct.pack("<I", len(data)) + data)
