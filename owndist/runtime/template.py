"""The template process: it forks the workers, reaps them, and cleans up after the driver.

Under `fork` it is itself forked from the driver when the first task is submitted, so workers
inherit what the driver had then. Under `spawn` and `forkserver` it is a fresh interpreter. Either
way it has one thread and never runs user code, so forking from it is safe at any time: a
replacement for a dead worker is never forked from a process with threads (which deadlocks when
another thread held a lock at that moment).

It is the parent of all workers, so it learns how each ended, and can kill them without a risk of
hitting a stranger that got the same process id.

When its control socket closes, the driver has ended or died. Then whatever is left of the workers
is killed, and the session's segments and spill directory are removed.

On the control socket go fixed records. To the template: START (worker, 0) with two descriptors,
KILL (worker, signal). From it: STARTED (worker, pid), ENDED (worker, exit code).
"""

from __future__ import annotations

import gc
import os
import pickle
import select
import signal
import socket
import struct
import sys
import threading
from typing import Any

from .setup import WorkerSetup

RECORD = struct.Struct("<Bii")
START, KILL, STARTED, ENDED, ADOPT = range(5)

NOT_STARTED = -1000  # an exit code that no process can have


def run_forked(control: socket.socket, setup: WorkerSetup) -> None:
    """In a child just forked from the driver: be the template. Never returns."""
    status = 1
    try:
        _leave_foreground()
        _serve(control, setup)
        status = 0
    except BaseException:
        # Nothing above this frame may run: it is the driver's code, in the wrong process.
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def run_fresh(fd: int) -> None:
    """In a fresh interpreter: read the setup from the control socket, and be the template.

    The collector is off until all is loaded: until then it would find no garbage.
    """
    _leave_foreground()
    control = socket.socket(fileno=fd)
    size = struct.unpack("<I", _read_exactly(control, 4))[0]
    preparation, setup = pickle.loads(_read_exactly(control, size))
    main_names = preparation.pop("owndist_main")
    from multiprocessing import spawn

    spawn.prepare(preparation)
    import types

    # The workers' __main__: functions of the driver's __main__ get it as their globals. The
    # script itself is never run again.
    main = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = __builtins__
    main.__dict__.update(main_names)
    sys.modules["__main__"] = sys.modules["__mp_main__"] = main
    load_what_workers_need()
    gc.enable()
    with control:
        _serve(control, setup)


def _read_exactly(control: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = control.recv(size - len(data))
        if not part:
            os._exit(0)  # the driver ended before it had said anything
        data += part
    return data


def _leave_foreground() -> None:
    """Signals that a terminal sends to the driver's process group are the driver's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, nobody would learn how workers ended
    signal.set_wakeup_fd(-1)  # an event loop's, if the driver runs one
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    try:
        # A group of its own, so that it outlives a SIGKILL sent to the driver's whole group.
        os.setpgid(0, 0)
    except OSError:
        pass  # a session leader may not; then it dies with the group


def load_what_workers_need() -> None:
    """Import it once for all of them: what is there when they are forked, they share."""
    import faulthandler  # noqa: F401
    import multiprocessing.popen_fork  # noqa: F401

    from . import worker  # noqa: F401

    if threading.active_count() > 1:
        # Another thread may be importing what is otherwise imported when it is needed, and would
        # leave it locked in the child. With one thread there is no such danger.
        from ..store import allocator, mappings  # noqa: F401


def _serve(control: socket.socket, setup: WorkerSetup) -> None:
    import multiprocessing

    load_what_workers_need()
    from ..store.session_lock import sweep_dead_sessions
    from .worker import prepare_workers

    prepare_workers(setup)
    sweep_dead_sessions()  # here, while the driver makes what it needs
    # What is here now is here for good. The collectors of the workers leave it alone: to look at an
    # object is to write to it, and so to copy its page.
    gc.freeze()
    context = multiprocessing.get_context("fork")
    # A daemonic process may not have children, says multiprocessing; it means to keep them from
    # outliving their parent, and ours do not.
    here: Any = multiprocessing.current_process()
    here._config.pop("daemon", None)
    workers: dict[int, Any] = {}  # {worker number: Process}
    numbers: dict[int, int] = {}  # {descriptor that tells of the end: worker number}
    adopted: list[int] = []  # pidfds of workers whose template died
    poller = select.poll()
    poller.register(control, select.POLLIN)
    control.setblocking(True)
    while True:
        for fd, _ in poller.poll():
            if fd == control.fileno():
                try:
                    data, fds, _, _ = socket.recv_fds(control, RECORD.size, 2)
                except ConnectionError:
                    data = b""  # the driver went without reading what it had been told
                if not data:
                    _clean_up(workers, adopted, setup)
                    return
                if len(data) < RECORD.size:
                    data += _read_exactly(control, RECORD.size - len(data))
                operation, number, argument = RECORD.unpack(data)
                if operation == START:
                    _start(context, control, workers, numbers, poller, number, fds, setup)
                elif operation == KILL:
                    process = workers.get(number)
                    # Asked first, for it may have been reaped by the start of another one, and
                    # its pid be somebody else's by now.
                    if process is not None and process.exitcode is None:
                        os.kill(process.pid, argument)
                elif operation == ADOPT:
                    _adopt(adopted, argument)
            else:
                number = numbers.pop(fd)
                poller.unregister(fd)
                process = workers.pop(number)
                process.join()
                exitcode = process.exitcode
                if fd != process.sentinel:
                    os.close(fd)
                process.close()
                _tell(control, ENDED, number, exitcode)


def _start(
    context: Any,
    control: socket.socket,
    workers: dict[int, Any],
    numbers: dict[int, int],
    poller: Any,
    number: int,
    fds: list[int],
    setup: WorkerSetup,
) -> None:
    from .worker import worker_main

    if len(fds) < 2:
        # The template has no descriptors left for them.
        for fd in fds:
            os.close(fd)
        _tell(control, ENDED, number, NOT_STARTED)
        return
    inherited = [control.fileno(), *numbers]
    process = context.Process(
        target=worker_main,
        args=(number, fds[0], fds[1], setup, inherited),
        name=f"OwndistWorker-{number}",
    )
    try:
        process.start()
    except OSError:
        # No process could be made (limits). The driver counts it as one that ended at once.
        _tell(control, ENDED, number, NOT_STARTED)
        return
    finally:
        for fd in fds:
            os.close(fd)
    workers[number] = process
    watched = _watch(process)
    numbers[watched] = number
    poller.register(watched, select.POLLIN)
    _tell(control, STARTED, number, process.pid)


def _watch(process: Any) -> int:
    """A descriptor that becomes readable when the process has ended.

    The sentinel of multiprocessing is a pipe: children that a task forks keep it open after the
    worker's death, and a task that closes all descriptors closes it before. A pidfd is neither.
    """
    opener = getattr(os, "pidfd_open", None)
    if opener is not None:
        try:
            return int(opener(process.pid))
        except OSError:
            pass  # not allowed here, as in some containers
    return int(process.sentinel)


def _tell(control: socket.socket, operation: int, number: int, argument: int) -> None:
    try:
        control.sendall(RECORD.pack(operation, number, argument))
    except OSError:
        pass  # the driver is gone; the next poll sees it and cleans up


def _adopt(adopted: list[int], pid: int) -> None:
    """Watch a worker that another template had started, to end it with the driver."""
    opener = getattr(os, "pidfd_open", None)
    if opener is not None:
        try:
            adopted.append(opener(pid))
        except OSError:
            pass  # it has ended meanwhile


def _clean_up(workers: dict[int, Any], adopted: list[int], setup: WorkerSetup) -> None:
    for process in workers.values():
        process.kill()
    for pidfd in adopted:
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except OSError:
            pass  # it has ended
    for process in workers.values():
        process.join()
    from ..store.segments import sweep

    sweep(setup.session, setup.spill_directory)
