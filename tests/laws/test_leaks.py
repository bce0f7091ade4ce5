"""Laws 27 and 29 to 31: what is left when it is over."""

from __future__ import annotations

import gc
import multiprocessing
import os
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from owndist import OwnershipExecutor
from owndist.errors import NotSerializable
from tests.leaks import Found, left_since, look, wait_until_gone
from tests.parity.conftest import Bell, Gate

from . import nested, tasks
from .conftest import MakePool
from .helpers import (
    PATIENCE_S,
    SLACK,
    at_rest,
    eventually,
    kill,
    killing,
    live_children,
    machine_of,
    sessions_of,
    template_of,
)

ROOT = str(Path(__file__).resolve().parents[2])
MIB = 1 << 20


def use(pool: OwnershipExecutor) -> list[Any]:
    """A bit of everything: results read and unread, errors, deaths, values large and small."""
    futures = [pool.submit(tasks.make_bytes, n) for n in range(5)]
    futures += [pool.put(tasks.make_bytes(9)), pool.submit(tasks.echo, 1)]
    futures += [pool.submit(tasks.plus_one, future) for future in futures[:3]]
    futures += [pool.submit(tasks.fail, ValueError, "no"), pool.submit(tasks.Holder, futures[0])]
    futures += [pool.options(max_retries=0).submit(tasks.die)]
    assert pool.submit(tasks.total, futures[-7]).result(PATIENCE_S) == 1
    assert list(pool.map(tasks.add, range(50), range(50))) == list(range(0, 100, 2))
    assert tasks.total(futures[4].result(PATIENCE_S)) == 4 * tasks.LARGE
    return futures


# Law 27


def left_of(sessions: set[str], before: Found) -> Found:
    """What is new, and of memory and files only what has to do with these sessions.

    Others may be running tests on this machine at the same time.
    """
    left = left_since(before)
    for kind in ("segment", "temporary file"):
        ours = {path: text for path, text in left.pop(kind, {}).items()
                if any(session in text for session in sessions)}  # fmt: skip
        if ours:
            left[kind] = ours
    return left


@pytest.mark.parametrize("ending", ["shutdown", "with", "error", "kill", "terminate", "cancel"])
def test_after_the_end_nothing_is_left(ending: str) -> None:
    """Law 27: at once, while the program still holds all futures and values.

    Results stay readable, so their memory stays mapped, and a mapping has a descriptor (before
    Python 3.13): these go with the last future.
    """
    before, mapped = look(), sessions_of([os.getpid()])
    pool = OwnershipExecutor(3)
    if ending == "with":
        with pool:
            futures = use(pool)
    elif ending == "error":
        with pytest.raises(ZeroDivisionError), pool:
            futures = use(pool)
            raise ZeroDivisionError
    else:
        futures = use(pool)
        if ending == "kill":
            pool.kill_workers()
        elif ending == "terminate":
            pool.terminate_workers()
        pool.shutdown(cancel_futures=ending == "cancel")
    sessions = sessions_of([os.getpid()]) - mapped
    assert len(sessions) == 1
    assert left_of(sessions, before).keys() <= {"descriptor"}
    assert all(future.done() for future in futures)
    del futures
    gc.collect()
    assert left_of(sessions, before) == {}


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_an_executor_that_cannot_start_leaves_nothing(method: str) -> None:
    """Law 27: each submit tries it again."""
    context = multiprocessing.get_context(method)
    initargs = ([1, threading.Lock()],)
    with OwnershipExecutor(1, context, initializer=print, initargs=initargs) as pool:
        for _ in range(2):
            with pytest.raises(
                NotSerializable, match=r"initargs: value\[0\]\[1\] \(type _thread.lock\)"
            ):
                pool.submit(abs, -1)


def test_many_executors_one_after_the_other_leave_nothing() -> None:
    """Law 27."""
    before, mapped = look(), sessions_of([os.getpid()])
    sessions: set[str] = set()
    for number in range(15):
        with OwnershipExecutor(2) as pool:
            view = pool.submit(tasks.make_bytes, number).result(PATIENCE_S)
            assert view[0] == number
            sessions |= sessions_of([os.getpid()]) - mapped
            del view
    assert len(sessions) == 15
    assert left_of(sessions, before) == {}


def test_an_executor_that_ends_without_wait_leaves_nothing(gate: Gate) -> None:
    """Law 27: it ends by itself when its last task does."""
    before = look()
    pool = OwnershipExecutor(2)
    last = pool.submit(tasks.pass_gate, gate.path, bytes(tasks.LARGE))
    pool.shutdown(wait=False)
    gate.open()
    assert len(last.result(PATIENCE_S)) == tasks.LARGE
    assert wait_until_gone(before, PATIENCE_S) == {}


# Law 29


@pytest.mark.slow
def test_workers_killed_at_random_points_leave_nothing(make_pool: MakePool, seed: int) -> None:
    """Law 29: while values are written, read, mapped, kept and freed."""
    pool = make_pool(3)
    view = pool.options(max_retries=1000)
    template = template_of(pool.submit(os.getpid).result(PATIENCE_S))
    with killing(template, seed, 0.005, 0.06) as killed:
        while len(killed) < 60:
            assert template.is_running(), "the template has died of it"
            values = [view.submit(tasks.make_bytes, n, 300_000) for n in range(6)]
            values += [view.submit(tasks.plus_one, value) for value in values]
            kept = [view.submit(tasks.keep, str(n), v) for n, v in enumerate(values[:4])]
            kept += [view.submit(tasks.keep, "b", view_of(pool, values)) for _ in range(2)]
            sums = [view.submit(tasks.total, value) for value in values]
            expected = [n * 300_000 for n in range(6)] + [(n + 1) * 300_000 for n in range(6)]
            assert [future.result(PATIENCE_S) for future in sums] == expected
            assert all(future.result(PATIENCE_S) for future in kept)
            assert tasks.total(values[7].result(PATIENCE_S)) == 600_000
            del values, kept, sums
    for child in live_children(template):  # with all that they kept
        kill(child.pid)
    at_rest(pool, 0)
    before_end = pool.statistics()
    assert before_end.tasks_failed == 0
    assert before_end.workers_died >= len(set(killed))  # one may be hit twice before it is gone


def view_of(pool: OwnershipExecutor, futures: list[Any]) -> Any:
    """Futures inside of an object, so that they are borrowed."""
    return tasks.Holder([pool.shared(future) for future in futures])


# Law 30


def test_many_dropped_futures_go_though_nothing_else_happens(
    pool: OwnershipExecutor, gate: Gate, bell: Bell
) -> None:
    """Law 30: a program that is done with its tasks may do nothing more for a long time."""
    futures = [pool.submit(tasks.add, 1, n) for n in range(3_000)]
    assert sum(future.result(PATIENCE_S) for future in futures) == sum(range(1, 3_001))
    # Nor does an idle worker say anything.
    busy = [pool.submit(tasks.ring_and_pass, bell.path, gate.path) for _ in range(2)]
    bell.wait(2)
    kept = machine_of(pool).references.entries  # looked at, so that the machine is told nothing
    del futures
    eventually(lambda: len(kept) < 500, "they stay until something else happens", SLACK)
    assert not any(future.done() for future in busy)


def test_many_futures_dropped_by_a_task_go_while_it_runs(single: OwnershipExecutor) -> None:
    """Law 30: a worker is an owner, too; it runs all that this task submits itself."""
    assert single.submit(nested.drop_many, 2_000).result(PATIENCE_S) < 500


def memory(process: psutil.Process) -> int:
    gc.collect()
    return int(process.memory_info().rss)


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(40_000, marks=pytest.mark.slow),
        pytest.param(1_000_000, marks=[pytest.mark.soak, pytest.mark.timeout(900)]),
    ],
)
def test_many_small_tasks_leave_the_owner_as_small_as_it_was(
    pool: OwnershipExecutor, count: int
) -> None:
    """Law 30: at the most 50 MB more on the way."""
    driver = psutil.Process()
    window: list[Any] = [pool.submit(tasks.add, 1, n) for n in range(2_000)]
    workers = live_children(template_of(pool.submit(os.getpid).result(PATIENCE_S)))
    baseline = memory(driver)
    baselines = {worker: memory(worker) for worker in workers}
    most = 0
    for number in range(count):
        window.append(pool.submit(tasks.add, 1, number))
        if len(window) == 4_000:
            assert window[0].result(PATIENCE_S) and window[1999].result(PATIENCE_S)
            del window[:2_000]
            most = max(most, int(driver.memory_info().rss))
    assert window[-1].result(PATIENCE_S) == count
    window.clear()
    at_rest(pool, 0)
    grown = {process.pid: memory(process) - size for process, size in baselines.items()}
    grown[driver.pid] = memory(driver) - baseline
    print(f"{count} tasks; at the most {most - baseline} bytes more; grown by {grown} bytes")
    assert most - baseline < 50 * MIB
    assert all(size < 10 * MIB for size in grown.values()), grown


# Law 31

NOISY_SCRIPT = """
import sys
import threading
import numpy as np
from owndist import OwnershipExecutor
from owndist.errors import NotSerializable

def make(n):
    return np.full(300_000, n % 256, np.uint8)

def grow(array):
    return array + 1

if __name__ == "__main__":
    pool = OwnershipExecutor(2)
    values = [pool.submit(make, n) for n in range(10)]
    values += [pool.submit(grow, value) for value in values]
    values += [pool.put(make(1))]
    views = [value.result() for value in values[::3]]
    unread = pool.submit(make, 3)
    failing = pool.submit(int, "no")
    lost = pool.options(max_retries=0).submit(__import__("os")._exit, 3)
    assert lost.exception() is not None
    {ending}
    print("end")
"""

ENDINGS = {
    "shutdown": "pool.shutdown()",
    "nothing": "pass",
    "dropped": "del pool, values",
    "no wait": "pool.shutdown(wait=False)",
    "error": "sys.excepthook = lambda *_: print('end'); raise ValueError",
}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_nothing_is_said_at_the_end(tmp_path: Path, ending: str, method: str) -> None:
    """Law 31: no tracker, no warning, no traceback, whatever is still alive."""
    script = tmp_path / "script.py"
    text = NOISY_SCRIPT.replace("{ending}", ENDINGS[ending]).replace(
        "OwnershipExecutor(2)",
        f"OwnershipExecutor(2, __import__('multiprocessing').get_context({method!r}))",
    )
    script.write_text(text)
    ended = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", str(script)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env={**os.environ, "PYTHONPATH": ROOT},
    )
    assert (ended.stdout, ended.stderr) == ("end\n", "")
    assert ended.returncode == (1 if ending == "error" else 0)


UNLINKING_SCRIPT = """
import os, re, sys
import _posixshmem
log = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
unlink = _posixshmem.shm_unlink
def told(name):
    unlink(name)  # one that is not there raises: that is a question, not an unlinking
    os.write(log, f"{name}\\n".encode())
_posixshmem.shm_unlink = told
import numpy as np
from owndist import OwnershipExecutor
from owndist.errors import NotSerializable

with OwnershipExecutor(2) as pool:
    values = [pool.submit(np.ones, 50_000 * (n + 1)) for n in range(20)]
    values += [pool.put(np.ones(50_000))]
    assert pool.options(max_retries=0).submit(os._exit, 1).exception() is not None
    views = [value.result() for value in values[::2]]
    (session,) = set(re.findall("/dev/shm/od-([a-z0-9]+)-", open("/proc/self/maps").read()))
    print(*[n for n in os.listdir("/dev/shm") if n.startswith(f"od-{session}-")])
"""


def test_each_segment_is_unlinked_once(tmp_path: Path) -> None:
    """Law 31: also those of a worker that died."""
    log = tmp_path / "log"
    log.touch()
    ended = subprocess.run(
        [sys.executable, "-c", UNLINKING_SCRIPT, str(log)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env={**os.environ, "PYTHONPATH": ROOT},
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    seen = {f"/{name}" for name in ended.stdout.split()}
    counts = Counter(log.read_text().split())
    assert seen and seen <= counts.keys()
    assert set(counts.values()) == {1}, counts
    eventually(lambda: not any(os.path.exists(f"/dev/shm{n}") for n in counts), "segments stay")
