"""Laws 32, 33, 36 and 67: each way in which a task can take its worker down, or nearly."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import threading
from typing import Any, NoReturn

import psutil
import pytest

from owndist import OwnershipExecutor
from owndist.errors import WorkerDied
from tests.laws import tasks
from tests.laws.helpers import PATIENCE_S, at_rest
from tests.parity.conftest import Gate

from .conftest import ROOT


def read_address_zero() -> NoReturn:
    ctypes.string_at(0)
    raise AssertionError("still alive")


def crash_deeper(depth: int) -> Any:
    return crash_deeper(depth - 1) if depth else read_address_zero()


def signal_myself(signum: int) -> NoReturn:
    signal.signal(signum, signal.SIG_DFL) if signum != signal.SIGKILL else None
    os.kill(os.getpid(), signum)
    raise AssertionError("still alive")


def exit_in_a_thread(code: int) -> None:
    threading.Thread(target=os._exit, args=[code]).start()
    threading.Event().wait()


def exhaust_memory(allowed: int) -> NoReturn:
    """Ask for more memory than this process may have."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    most = psutil.Process().memory_info().vms + allowed
    resource.setrlimit(resource.RLIMIT_AS, (most, limits[1]))
    try:
        hoard = []
        while True:
            hoard.append(bytearray(16 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def recurse_for_ever(depth: int = 0) -> int:
    return recurse_for_ever(depth + 1)


DEADLY: dict[str, tuple[Any, tuple[Any, ...], int]] = {
    "segfault": (read_address_zero, (), -signal.SIGSEGV),
    "abort": (os.abort, (), -signal.SIGABRT),
    "SIGKILL": (signal_myself, (signal.SIGKILL,), -signal.SIGKILL),
    "SIGTERM": (signal_myself, (signal.SIGTERM,), -signal.SIGTERM),
    "SIGBUS": (signal_myself, (signal.SIGBUS,), -signal.SIGBUS),
    "_exit(0)": (os._exit, (0,), 0),
    "_exit(7)": (os._exit, (7,), 7),
    "_exit in a thread": (exit_in_a_thread, (8,), 8),
}


@pytest.mark.parametrize("max_retries", [0, 2])
@pytest.mark.parametrize("way", DEADLY)
def test_the_error_says_how_the_worker_ended(
    pool: OwnershipExecutor, way: str, max_retries: int
) -> None:
    """Laws 33, 36 and 67: pid, exit code or signal, and how often it was tried."""
    function, arguments, exitcode = DEADLY[way]
    alive = {pool.submit(os.getpid).result(PATIENCE_S) for _ in range(5)}
    future = pool.options(max_retries=max_retries, name="mine").submit(function, *arguments)
    error = future.exception(PATIENCE_S)
    assert isinstance(error, WorkerDied)
    assert (error.task, error.exitcode) == ("mine", exitcode)
    assert error.attempts == 1 + max_retries
    assert error.pid not in {None, os.getpid()} and (error.pid in alive or max_retries)
    text = str(error)
    assert "'mine'" in text and str(error.pid) in text
    expected = f"exit code {exitcode}" if exitcode >= 0 else signal.Signals(-exitcode).name
    assert expected in text
    statistics = pool.statistics()
    assert (statistics.workers_died, statistics.tasks_retried) == (1 + max_retries, max_retries)
    assert pool.submit(tasks.add, 1, 2).result(PATIENCE_S) == 3


@pytest.mark.parametrize("max_retries", [0, 2])
def test_a_segfault_comes_with_the_stack_of_the_task(
    pool: OwnershipExecutor, max_retries: int
) -> None:
    """Law 36: as faulthandler saw it, at the last attempt."""
    future = pool.options(max_retries=max_retries).submit(crash_deeper, 3)
    error = future.exception(PATIENCE_S)
    assert isinstance(error, WorkerDied)
    assert "Segmentation fault" in error.stack
    assert error.stack.count("in crash_deeper") == 4
    assert "in read_address_zero" in error.stack
    assert error.stack.rstrip() in str(error)


def test_a_death_without_a_crash_has_no_stack(pool: OwnershipExecutor) -> None:
    """Law 36: nothing is made up."""
    error = pool.options(max_retries=0).submit(os._exit, 1).exception(PATIENCE_S)
    assert isinstance(error, WorkerDied) and error.stack == ""


def test_a_kill_like_the_kernels_says_what_it_may_have_been(pool: OwnershipExecutor) -> None:
    """Law 67: the out-of-memory killer leaves no other trace."""
    error = pool.options(max_retries=0).submit(tasks.die).exception(PATIENCE_S)
    assert isinstance(error, WorkerDied) and "out-of-memory" in str(error)


@pytest.mark.parametrize("code", [None, 0, 3, "text"])
def test_sys_exit_is_an_ordinary_error(single: OwnershipExecutor, code: Any) -> None:
    """Laws 34 and 67: of the task, not of the worker, which goes on."""
    pid = single.submit(os.getpid).result(PATIENCE_S)
    error = single.submit(sys.exit, code).exception(PATIENCE_S)
    assert type(error) is SystemExit and error.code == code
    assert single.submit(os.getpid).result(PATIENCE_S) == pid
    assert single.statistics().workers_died == 0


def test_running_out_of_memory_is_an_ordinary_error(single: OwnershipExecutor) -> None:
    """Laws 34 and 67: MemoryError, if the limit is the process's own; and the worker goes on."""
    pid = single.submit(os.getpid).result(PATIENCE_S)
    for _ in range(3):
        error = single.submit(exhaust_memory, 256 << 20).exception(PATIENCE_S)
        assert type(error) is MemoryError
    assert single.submit(os.getpid).result(PATIENCE_S) == pid
    assert tasks.total(single.submit(tasks.make_bytes, 1).result(PATIENCE_S)) == tasks.LARGE


def test_endless_recursion_is_an_ordinary_error(single: OwnershipExecutor) -> None:
    """Laws 34 and 67."""
    pid = single.submit(os.getpid).result(PATIENCE_S)
    assert type(single.submit(recurse_for_ever).exception(PATIENCE_S)) is RecursionError
    assert single.submit(os.getpid).result(PATIENCE_S) == pid


def test_crashes_of_every_kind_at_once_fail_nobody_else(pool: OwnershipExecutor) -> None:
    """Laws 32 and 36: 40 deaths among 400 tasks that may run only once."""
    once = pool.options(max_retries=0)
    ways = list(DEADLY.values())
    good, bad = [], []
    for number in range(400):
        if number % 10 == 5:
            function, arguments, exitcode = ways[number // 10 % len(ways)]
            bad.append((once.submit(function, *arguments), exitcode))
        good.append(once.submit(tasks.make_bytes, number % 256, 200_000 if number % 7 == 0 else 9))
    for future, exitcode in bad:
        error = future.exception(PATIENCE_S)
        assert isinstance(error, WorkerDied) and error.exitcode == exitcode
    for number, future in enumerate(good):
        assert int(future.result(PATIENCE_S)[0]) == number % 256
    assert pool.statistics().tasks_retried == 0
    assert pool.statistics().workers_died == 40
    del good, bad, future
    at_rest(pool, 0)


def leave_a_child_and_die(pipe: str) -> NoReturn:
    """The child lives until the pipe is opened for writing."""
    if os.fork() == 0:
        os.close(os.open(pipe, os.O_RDONLY))
        os._exit(0)
    os._exit(9)


def test_a_child_of_a_task_does_not_hide_that_its_worker_died(
    single: OwnershipExecutor, gate: Gate
) -> None:
    """Laws 32 and 46: it still holds the worker's end of the link."""
    os.unlink(gate.path)
    os.mkfifo(gate.path)
    view = single.options(max_retries=0)
    error = view.submit(leave_a_child_and_die, gate.path).exception(PATIENCE_S)
    assert isinstance(error, WorkerDied) and error.exitcode == 9
    assert single.submit(tasks.add, 1, 2).result(PATIENCE_S) == 3
    os.close(os.open(gate.path, os.O_WRONLY))  # now the child ends


def test_an_initializer_that_dies_breaks_the_pool_and_says_so() -> None:
    """Law 46: every task ends in a typed error, and none hangs."""
    script = (
        "import os\n"
        "from owndist import OwnershipExecutor\n"
        "pool = OwnershipExecutor(2, initializer=os._exit, initargs=(5,))\n"
        "futures = [pool.submit(int) for _ in range(5)]\n"
        "errors = {f'{type(f.exception()).__name__}' for f in futures}\n"
        "print(errors, '5' in str(futures[0].exception()))\n"
        "pool.shutdown()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env={**os.environ, "PYTHONPATH": ROOT},
    )
    assert (ended.stdout, ended.returncode) == ("{'BrokenProcessPool'} True\n", 0), ended.stderr
