"""Lines of what is lost: a worker that is killed, and values that must be computed again."""

from __future__ import annotations

import os
import signal
from concurrent.futures import Future
from typing import Any

from benchmarks import tasks
from benchmarks.bench import Bench, Line, nothing

PAUSE_S = 0.02
STEPS = 10


def _pauses(bench: Bench, pid: int | None) -> None:
    """Tasks that wait; a worker is killed when a quarter of them are done, if one is named."""
    futures = [bench.submit(tasks.pause, PAUSE_S) for _ in range(bench.scale.pauses)]
    if pid is not None:
        futures[len(futures) // 4].result()
        os.kill(pid, signal.SIGKILL)
    for future in futures:
        future.result()


def _victim(bench: Bench) -> int:
    return int(bench.submit(os.getpid).result())


def _lost_chain(bench: Bench) -> list[Future[Any]]:
    """Arrays of 1 MB, each made from the one before; the memory of all of them is gone."""
    from owndist.testing import lose_value

    chain = [bench.submit(tasks.make, 1.0, 0.0)]
    while len(chain) < STEPS:
        chain.append(bench.submit(tasks.more, bench.link(chain[-1])))
    assert bench.submit(tasks.look, bench.link(chain[-1])).result() == 2.0 * (STEPS - 1)
    for future in chain:  # some share a piece of memory: then it is gone with the first of them
        lose_value(future)
    return chain


def _recompute(bench: Bench, chain: list[Future[Any]]) -> None:
    assert bench.submit(tasks.look, bench.link(chain[-1])).result() == 2.0 * (STEPS - 1)


LOSSES = [
    Line("pauses", "200 tasks that wait for 20 ms", _pauses, nothing),
    Line(
        "killed",
        "200 tasks that wait for 20 ms, and a worker is killed",
        _pauses,
        _victim,
        needs=("survive",),
    ),
    Line(
        "recompute",
        "a lost chain of 10 arrays of 1 MB, computed again",
        _recompute,
        _lost_chain,
        needs=("recompute",),
    ),
]
