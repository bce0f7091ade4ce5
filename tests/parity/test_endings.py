"""Forgotten executors, and the end of the interpreter: the stdlib and owndist side by side."""

from __future__ import annotations

import concurrent.futures
import gc
import os
import select
import socket
import threading
import time
import weakref
from pathlib import Path

import psutil
import pytest

from . import tasks
from .conftest import PATIENCE_S, Flavour, Gate, ScriptRunner

# Forgotten executors


@pytest.mark.every_start_method
def test_an_executor_nobody_holds_finishes_its_work_and_ends(flavour: Flavour) -> None:
    """Law 27."""
    pool = flavour.make(2)
    pid = pool.submit(os.getpid).result(PATIENCE_S)
    futures = [pool.submit(tasks.add, n, n) for n in range(20)]
    forgotten = weakref.ref(pool)
    del pool
    gc.collect()
    assert [future.result(PATIENCE_S) for future in futures] == list(range(0, 40, 2))
    gc.collect()
    assert forgotten() is None
    _wait_until_gone(pid)


def test_results_of_map_keep_coming_from_an_executor_nobody_holds(flavour: Flavour) -> None:
    pool = flavour.make(2)
    results = pool.map(tasks.add, range(20), range(20))
    del pool
    gc.collect()
    assert list(results) == list(range(0, 40, 2))


@pytest.mark.every_start_method
def test_an_executor_that_was_a_global_of_the_script_ends_too(
    flavour: Flavour, run_script: ScriptRunner
) -> None:
    """Also what the script had in its globals at the first submit is not kept alive."""
    ended = run_script(
        flavour,
        """
import gc
import os
import time
import weakref

class Treasure:
    pass

if __name__ == "__main__":
    treasure = Treasure()
    lost = weakref.ref(treasure)
    pool = make(2)
    pid = pool.submit(os.getpid).result()
    forgotten = weakref.ref(pool)
    del pool, treasure
    gc.collect()
    print(lost(), forgotten())
    deadline = time.monotonic() + 30
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
        time.sleep(0.005)
    print(os.path.exists(f"/proc/{pid}"))
""",
    )
    assert (ended.stdout, ended.stderr) == ("None None\nFalse\n", "")


def test_an_executor_that_has_ended_leaves_other_peoples_descriptors_alone(
    flavour: Flavour, gate: Gate
) -> None:
    """Law 16: it and its futures are dropped later, when its numbers mean something else."""
    pool = flavour.make(1)
    futures = [pool.submit(tasks.echo, b"x" * size) for size in (1, 3_000_000, 3_000_000)]
    concurrent.futures.wait(futures, PATIENCE_S)
    threads = threading.enumerate()
    last = pool.submit(tasks.pass_gate, gate.path)
    pool.shutdown(wait=False)
    gate.open()
    last.result(PATIENCE_S)
    for thread in threads:  # it ends by itself: nobody has just woken it
        if thread is not threading.current_thread():
            thread.join()
    # Whatever number is written to now, the byte arrives at the other end of one of these.
    pairs = [socket.socketpair() for _ in range(20)]
    pool.shutdown()
    del pool, futures, last
    gc.collect()
    ends = [end for pair in pairs for end in pair]
    readable, _, _ = select.select(ends, [], [], 0)
    strays = [end.recv(100) for end in readable]
    for end in ends:
        end.close()
    assert strays == []


def test_a_forked_child_and_its_children_keep_their_descriptors(
    flavour: Flavour, run_script: ScriptRunner
) -> None:
    """Law 69: what a child lets go of, its own child must not close once more."""
    ended = run_script(
        flavour,
        """
import os

def run_in_child(function):
    pid = os.fork()
    if pid == 0:
        status = 9
        try:
            status = function()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def child():
    descriptors = [fd for _ in range(40) for fd in os.pipe()]

    def grandchild():
        return sum(not os.path.exists(f"/proc/self/fd/{fd}") for fd in descriptors)

    return run_in_child(grandchild)

if __name__ == "__main__":
    with make(1) as pool:
        pool.submit(int).result()
        print("closed:", run_in_child(child))
        print(pool.submit(pow, 2, 3).result())
""",
    )
    assert ended.stdout == "closed: 0\n8\n"
    assert "OSError" not in ended.stderr


def _wait_until_gone(pid: int) -> None:
    """Look until the process is reaped; to wait for it would take its exit code from its parent."""
    deadline = time.monotonic() + PATIENCE_S
    while psutil.pid_exists(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.005)


# Interpreter exit

WORK = """
import os
import sys

def note(path, text):
    with open(path, "a") as file:
        file.write(text)

def speak(text):
    print(text)  # not flushed: that must happen when the worker ends

"""


@pytest.mark.every_start_method
def test_pending_work_is_done_when_the_program_ends_without_shutdown(
    flavour: Flavour, run_script: ScriptRunner, diary: Path
) -> None:
    """Laws 27 and 31: quietly, and with nothing left."""
    ended = run_script(
        flavour,
        WORK
        + f"""
if __name__ == "__main__":
    pool = make(2)
    for _ in range(10):
        pool.submit(note, {str(diary)!r}, "+")
    pool.submit(speak, "from a worker")
""",
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == "from a worker\n"
    assert diary.read_text() == "+" * 10


@pytest.mark.parametrize(
    ("last_line", "code", "message"),
    [("sys.exit(3)", 3, ""), ("raise ValueError('main fails')", 1, "main fails")],
)
def test_pending_work_is_done_when_the_program_fails(
    flavour: Flavour,
    run_script: ScriptRunner,
    diary: Path,
    last_line: str,
    code: int,
    message: str,
) -> None:
    ended = run_script(
        flavour,
        WORK
        + f"""
if __name__ == "__main__":
    pool = make(2)
    for _ in range(10):
        pool.submit(note, {str(diary)!r}, "+")
    {last_line}
""",
    )
    assert ended.returncode == code
    assert message in ended.stderr
    assert ended.stderr.count("Traceback") == bool(message)
    assert diary.read_text() == "+" * 10


def test_a_program_may_end_with_an_executor_that_was_never_used(
    flavour: Flavour, run_script: ScriptRunner
) -> None:
    ended = run_script(flavour, "pool = make(2)\n")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


@pytest.mark.every_start_method
def test_submit_while_the_program_ends_is_a_runtime_error(
    flavour: Flavour, run_script: ScriptRunner
) -> None:
    ended = run_script(
        flavour,
        """
import atexit

def run_last():
    try:
        pool.submit(id, None)
    except RuntimeError as exc:
        print(exc)

if __name__ == "__main__":
    atexit.register(run_last)
    pool = make(1)
    pool.submit(id, 42).result()
""",
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("cannot schedule new futures after")


@pytest.mark.every_start_method
def test_a_worker_does_not_read_the_input_of_the_program(
    flavour: Flavour, run_script: ScriptRunner
) -> None:
    ended = run_script(
        flavour,
        """
import sys

def read_input():
    return sys.stdin.read()

if __name__ == "__main__":
    with make(1) as pool:
        print("worker:", repr(pool.submit(read_input).result()))
    print("driver:", repr(sys.stdin.read()))
""",
        stdin="for the driver",
    )
    assert ended.stderr == ""
    assert ended.stdout == "worker: ''\ndriver: 'for the driver'\n"


def test_prints_of_tasks_are_in_the_output_of_the_program(
    flavour: Flavour, run_script: ScriptRunner
) -> None:
    ended = run_script(
        flavour,
        WORK
        + """
if __name__ == "__main__":
    print("before", flush=True)
    with make(2) as pool:
        list(pool.map(speak, ["a", "b", "c"]))
    print("after", flush=True)
""",
    )
    assert ended.stderr == ""
    lines = ended.stdout.split()
    assert (lines[0], sorted(lines[1:-1]), lines[-1]) == ("before", ["a", "b", "c"], "after")


def test_text_printed_before_the_first_submit_appears_once(
    flavour: Flavour, run_script: ScriptRunner
) -> None:
    """A forked worker must not flush what the driver had in its buffer."""
    ended = run_script(
        flavour,
        WORK
        + """
if __name__ == "__main__":
    print("buffered")
    with make(2) as pool:
        list(pool.map(speak, ["a", "b"]))
""",
    )
    assert sorted(ended.stdout.split()) == ["a", "b", "buffered"]
