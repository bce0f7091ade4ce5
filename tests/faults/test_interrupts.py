"""Law 68: Ctrl-C, as a terminal sends it, to the whole process group."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import threading
import time
from concurrent.futures import Future
from concurrent.futures._base import _AcquireFutures

import psutil
import pytest

from owndist import OwnershipExecutor
from tests.laws.helpers import PATIENCE_S, SLACK, eventually

from .conftest import StartScript

PREAMBLE = """
import multiprocessing, os, sys, threading, time
import numpy as np
from concurrent.futures import wait, as_completed
from owndist import OwnershipExecutor

def tell_and_sleep(path):
    fd = os.open(path, os.O_WRONLY)
    os.write(fd, b".")
    os.close(fd)
    time.sleep(1000)

def begin(pool, count):
    global view
    view = pool.submit(np.ones, 100_000).result()
    bell = os.path.join(os.environ["TMPDIR"], "bell")
    os.mkfifo(bell)
    opened = os.open(bell, os.O_RDWR)
    long = [pool.submit(tell_and_sleep, bell) for _ in range(count)]
    queued = [pool.submit(time.sleep, 1000) for _ in range(100)]
    for _ in range(count):
        os.read(opened, 1)
    os.unlink(bell)
    print("ready", flush=True)
    return long, queued

context = multiprocessing.get_context(METHOD)
"""

WAITS = {
    "result in with": """
with OwnershipExecutor(2, context) as pool:
    long, queued = begin(pool, 2)
    long[0].result()
""",
    "result": """
pool = OwnershipExecutor(2, context)
long, queued = begin(pool, 2)
long[0].result()
""",
    "result with timeout": """
pool = OwnershipExecutor(2, context)
long, queued = begin(pool, 2)
queued[5].result(500)
""",
    "wait": """
with OwnershipExecutor(2, context) as pool:
    wait(sum(begin(pool, 2), []))
""",
    "as_completed": """
with OwnershipExecutor(2, context) as pool:
    list(as_completed(sum(begin(pool, 2), [])))
""",
    "map": """
with OwnershipExecutor(2, context) as pool:
    begin(pool, 2)
    list(pool.map(time.sleep, [1000] * 50))
""",
    "shutdown": """
pool = OwnershipExecutor(2, context)
begin(pool, 2)
pool.shutdown()
""",
    "leaving with": """
with OwnershipExecutor(2, context) as pool:
    begin(pool, 2)
""",
    "the end of the program": """
pool = OwnershipExecutor(2, context)
begin(pool, 2)
""",
    "user code": """
with OwnershipExecutor(2, context) as pool:
    begin(pool, 2)
    while True:
        time.sleep(100)
""",
}


def interrupt(pid: int) -> None:
    """What a terminal does when Ctrl-C is pressed."""
    os.killpg(pid, signal.SIGINT)


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("waiting", WAITS)
def test_ctrl_c_ends_a_program_at_once(
    start_script: StartScript, waiting: str, method: str
) -> None:
    """Laws 27 and 68: everything is gone within 2 s, and only the driver says something."""
    script = start_script(f"METHOD = {method!r}\n" + PREAMBLE + WAITS[waiting])
    began = time.monotonic()
    interrupt(script.process.pid)
    script.process.wait(PATIENCE_S)
    assert time.monotonic() - began < 2 * SLACK
    processes, files = script.seconds_until_gone()
    assert files < 2 * SLACK and processes < 2 * SLACK
    said = script.errors.read_text()
    assert "KeyboardInterrupt" in said
    assert said.count("Traceback") <= 2  # an own one of `shutdown` at the end of the interpreter
    assert "Worker" not in said.replace("in _python_exit", "")


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_ctrl_c_while_the_template_starts_is_not_for_the_template(
    start_script: StartScript, method: str
) -> None:
    """Laws 27 and 68: it has not come as far as ignoring it."""
    script = start_script(
        f"METHOD = {method!r}\n"
        + PREAMBLE
        + """
with OwnershipExecutor(2, context) as pool:
    view = pool.put(np.ones(100_000)).result()
    future = pool.submit(os.getpid)  # the template is there, and its interpreter starts
    print("ready", flush=True)
    future.result()
    time.sleep(1000)
"""
    )
    interrupt(script.process.pid)
    script.process.wait(PATIENCE_S)
    processes, files = script.seconds_until_gone()
    assert files < 2 * SLACK and processes < 2 * SLACK
    said = script.errors.read_text()
    assert said.count("Traceback") == 1 and said.endswith("KeyboardInterrupt\n")


def test_after_ctrl_c_the_executor_is_usable(start_script: StartScript) -> None:
    """Law 68: for a program that catches it, nothing has happened to the tasks."""
    script = start_script(
        "METHOD = 'fork'\n"
        + PREAMBLE
        + """
def slow(bell):
    fd = os.open(bell, os.O_RDONLY)  # until the driver opens it
    return os.read(fd, 100)

with OwnershipExecutor(2, context) as pool:
    view = pool.submit(np.ones, 100_000).result()
    bell = os.path.join(os.environ["TMPDIR"], "bell")
    os.mkfifo(bell)
    future = pool.submit(slow, bell)
    workers = {pool.submit(os.getpid).result() for _ in range(20)}
    for about_to_wait in ("ready", "ready again"):
        try:
            print(about_to_wait, flush=True)
            future.result()
        except KeyboardInterrupt:
            print("caught", flush=True)
    with open(bell, "w") as file:
        file.write("the value")
    print("result", future.result().decode())
    print("same", workers <= {pool.submit(os.getpid).result() for _ in range(50)} | workers)
    print("died", pool.statistics().workers_died, flush=True)
    os.unlink(bell)
"""
    )
    assert script.process.stdout is not None
    interrupt(script.process.pid)
    assert script.process.stdout.readline() == "caught\n"
    assert script.process.stdout.readline() == "ready again\n"
    interrupt(script.process.pid)
    assert script.process.stdout.readline() == "caught\n"
    assert script.process.stdout.read() == "result the value\nsame True\ndied 0\n"
    assert script.process.wait(PATIENCE_S) == 0
    assert script.errors.read_text() == ""
    script.seconds_until_gone()


def test_a_ctrl_c_inside_wait_does_not_keep_the_executor_from_ending() -> None:
    """Law 27: it has left the futures locked, as `concurrent.futures.wait` locks them."""
    with OwnershipExecutor(1) as pool:
        gate: Future[int] = Future()
        futures = [pool.submit(abs, gate) for _ in range(10)]
        _AcquireFutures(futures).__enter__()
        gate.set_result(-1)
    assert [future.result(PATIENCE_S) for future in futures] == [1] * 10


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_program_that_a_task_starts_can_be_interrupted(method: str) -> None:
    """Law 68: by the task, and by Ctrl-C, although the workers themselves only go on."""
    with OwnershipExecutor(1, multiprocessing.get_context(method)) as pool:
        assert pool.submit(start_and_interrupt).result(PATIENCE_S) == -signal.SIGINT


def start_and_interrupt() -> int:
    started = subprocess.Popen(["sleep", str(PATIENCE_S)])
    started.send_signal(signal.SIGINT)
    return started.wait()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_worker_goes_on_with_whatever_a_ctrl_c_interrupts(method: str) -> None:
    """Law 68: waiting, computing, in a thread, or idle."""
    with OwnershipExecutor(1, multiprocessing.get_context(method)) as pool:
        pid = pool.submit(os.getpid).result(PATIENCE_S)
        for work in (sleep_interrupted, read_interrupted, compute_interrupted):
            assert pool.submit(work).result(PATIENCE_S) == "undisturbed"
            os.kill(pid, signal.SIGINT)
            assert pool.submit(os.getpid).result(PATIENCE_S) == pid
        assert pool.statistics().workers_died == 0


def interrupt_soon(count: int = 5) -> threading.Thread:
    """Send so many interrupts to this process, from a thread."""

    def strike() -> None:
        for _ in range(count):
            time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=strike)
    thread.start()
    return thread


def sleep_interrupted() -> str:
    began = time.monotonic()
    striker = interrupt_soon()
    time.sleep(0.2)
    striker.join()
    return "undisturbed" if time.monotonic() - began >= 0.2 else "woken"


def read_interrupted() -> str:
    out, into = os.pipe()
    striker = interrupt_soon()
    threading.Timer(0.2, os.write, (into, b"undisturbed")).start()
    said = os.read(out, 100)
    striker.join()
    os.close(out)
    os.close(into)
    return said.decode()


def compute_interrupted() -> str:
    striker = interrupt_soon()
    while striker.is_alive():
        sum(range(1000))
    return "undisturbed"


def test_a_cancel_that_was_refused_is_not_granted_later(single: OwnershipExecutor) -> None:
    """Law 65: the worker was stopped, and answers when `cancel` has returned False."""
    pid = single.submit(os.getpid).result(PATIENCE_S)
    for number in range(20):  # so that it counts as short, and is sent ahead
        single.submit(abs, number).result(PATIENCE_S)
    worker = psutil.Process(pid)
    worker.suspend()
    eventually(lambda: worker.status() == psutil.STATUS_STOPPED, "the worker does not stop")
    try:
        futures = [single.submit(abs, number) for number in range(3)]
        assert not futures[2].cancel()
    finally:
        worker.resume()
    assert [future.result(PATIENCE_S) for future in futures] == [0, 1, 2]
