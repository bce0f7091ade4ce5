"""What the tests of the laws share: patience, a look at the tables, and the pool's processes."""

from __future__ import annotations

import gc
import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psutil

from owndist import OwnershipExecutor

T = TypeVar("T")

# Seconds that nothing may take. A test that works never waits for it.
PATIENCE_S = 60

# The laws' bounds are for a machine with nothing else to do. Ours may have a lot.
SLACK = 10


def eventually(condition: Callable[[], T], what: str, patience_s: float = PATIENCE_S) -> T:
    """Look until the condition holds, where nothing tells of it; returns what it gave."""
    deadline = time.monotonic() + patience_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"after {patience_s} s: {what}"
        time.sleep(0.002)
    return value


def machine_of(pool: OwnershipExecutor) -> Any:
    """The protocol state of the driver, for its invariants and the size of its tables."""
    return pool._driver.machine  # type: ignore[attr-defined]


def entries(pool: OwnershipExecutor) -> int:
    """How many objects the driver keeps, once all that was dropped is accounted for."""
    gc.collect()
    pool.statistics()  # takes in what has been dropped
    return len(machine_of(pool).references.entries)


def store_bytes(pool: OwnershipExecutor) -> int:
    """Shared memory that holds values, and files that do."""
    gc.collect()
    figures = pool.statistics()
    return figures.store_bytes + figures.spilled_bytes


def at_rest(pool: OwnershipExecutor, objects: int) -> None:
    """Wait until the table holds so many objects and nothing more, and check it."""
    eventually(
        lambda: entries(pool) == objects,
        f"the table does not come to {objects} objects",
        SLACK,
    )
    if objects == 0:
        eventually(lambda: store_bytes(pool) == 0, "values stay in shared memory", SLACK)
    machine_of(pool).check()


def template_of(worker_pid: int) -> psutil.Process:
    """The process that this worker was forked from."""
    parent = psutil.Process(worker_pid).parent()
    assert parent is not None and parent.ppid() == os.getpid(), "not a child of a child of ours"
    return parent


def live_children(process: psutil.Process) -> list[psutil.Process]:
    """Its children that have not ended."""
    alive = []
    for child in process.children():
        try:
            if child.status() != psutil.STATUS_ZOMBIE:
                alive.append(child)
        except psutil.NoSuchProcess:
            continue
    return alive


def has_ended(pid: int) -> bool:
    """Gone, or a zombie that only waits to be asked how it ended."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def kill(pid: int, signum: int = signal.SIGKILL) -> None:
    """Send a signal and wait until the process has ended, if it had not already."""
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        return
    eventually(lambda: has_ended(pid), f"process {pid} does not end")


def sessions_of(pids: list[int]) -> set[str]:
    """The sessions whose segments these processes have mapped."""
    found: set[str] = set()
    for pid in pids:
        try:
            maps = Path(f"/proc/{pid}/maps").read_text()
        except OSError:
            continue  # it has ended
        found.update(re.findall(r"/dev/shm/od-([a-z0-9]+)-", maps))
    return found


def segments_of(session: str) -> list[str]:
    """The names of a session's segments that exist."""
    return sorted(n for n in os.listdir("/dev/shm") if n.startswith(f"od-{session}-"))


@contextmanager
def killing(template: psutil.Process, seed: int, least: float, most: float) -> Iterator[list[int]]:
    """While in this context, a random worker is killed every `least` to `most` seconds."""
    chance = random.Random(seed)
    done = threading.Event()
    killed: list[int] = []

    def strike() -> None:
        while not done.wait(chance.uniform(least, most)):
            victims = live_children(template)
            if victims:
                victim = chance.choice(victims)
                try:
                    victim.kill()
                except psutil.NoSuchProcess:
                    continue  # it was quicker
                killed.append(victim.pid)

    thread = threading.Thread(target=strike)
    thread.start()
    try:
        yield killed
    finally:
        done.set()
        thread.join()
