"""What this process and all below it have used, as the kernel tells it.

Of /proc, and not by psutil: that would be in every worker that is forked afterwards.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc")
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_SCHEDULED = 2  # which of a process's clocks: the time that it was on a core (CPUCLOCK_SCHED)


def tree() -> list[int]:
    """The pids of this process and of all below it."""
    found = [os.getpid()]
    for pid in found:  # grows meanwhile
        found += [child for task in _threads(pid) for child in _children(task)]
    return found


def _threads(pid: int) -> list[Path]:
    try:
        return list((_PROC / str(pid) / "task").iterdir())
    except FileNotFoundError:  # it has ended
        return []


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        return ""


def _children(task: Path) -> Iterator[int]:
    return map(int, _read(task / "children").split())


def cpu_seconds() -> float:
    """All the time that they, and those of them that have ended, were on a core.

    Processes that another one than this has reaped are counted in ticks of 10 ms.
    """
    reaped = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = time.process_time() + reaped.ru_utime + reaped.ru_stime
    for pid in tree()[1:]:
        fields = _read(_PROC / str(pid) / "stat").rpartition(")")[2].split()
        try:
            total += time.clock_gettime((~pid << 3) | _SCHEDULED)
        except OSError:  # it has ended
            continue
        if fields:
            total += (int(fields[13]) + int(fields[14])) * _TICK_S
    return total


def wake_ups() -> int:
    """How often they went to sleep, but for the calling thread: so often they were woken."""
    own = _PROC / str(os.getpid()) / "task" / str(os.getpid())
    return sum(
        int(line.split()[1])
        for pid in tree()
        for task in _threads(pid)
        if task != own
        for line in _read(task / "status").splitlines()
        if line.startswith("voluntary_ctxt_switches")
    )


def memory_mb(own: bool) -> float:
    """MB of all processes below this one, and of this one if asked.

    Shared pages are divided among those that share them (PSS), so what fork shares is not counted
    twice.
    """
    kilobytes = sum(
        int(line.split()[1])
        for pid in tree()[0 if own else 1 :]
        for line in _read(_PROC / str(pid) / "smaps_rollup").splitlines()
        if line.startswith("Pss:")
    )
    return kilobytes * 1024 / 1_000_000
