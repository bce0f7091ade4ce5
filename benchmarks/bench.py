"""What a line of the table is, and one competitor at work on it.

This module and those with the bodies import little: they are in the interpreter whose start-up is
measured, and forked workers inherit what it holds.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks import tasks
from benchmarks.executors import Competitor

WORKERS = 2
WARM_UP_TASKS = 200  # enough to start every worker, and for each to have met the function


@dataclass(frozen=True)
class Scale:
    """How much of each; the large values stay 256 MB in the quick form, as the checks name them."""

    latencies: int = 2_000
    tasks: int = 20_000
    chain: int = 2_000
    megabytes: int = 256
    passes: int = 3
    hops: int = 4
    arrays: int = 500
    items: int = 100_000
    singly: int = 20_000
    readers: int = 64
    leaves: int = 512
    spins: int = 1_000
    fanout: int = 20_000
    grown: int = 100_000
    pauses: int = 200
    rest_s: float = 10.0


SCALES = {
    "full": Scale(),
    "quick": Scale(
        latencies=500,
        tasks=5_000,
        chain=500,
        passes=2,
        hops=2,
        arrays=100,
        items=20_000,
        singly=5_000,
        readers=16,
        spins=400,
        fanout=2_000,
        grown=50_000,
        rest_s=6.0,
    ),
}


class Hold:
    """One worker is busy from here until `release`."""

    def __init__(self, executor: Executor) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="bench-")
        started, self._until = (os.path.join(self._folder.name, name) for name in ("a", "b"))
        os.mkfifo(started)
        os.mkfifo(self._until)
        self._future = executor.submit(tasks.hold, started, self._until)
        os.close(os.open(started, os.O_RDONLY))

    def release(self) -> None:
        os.close(os.open(self._until, os.O_WRONLY))
        self._future.result()
        self._folder.cleanup()


class Bench:
    """One competitor at work on one line."""

    def __init__(self, competitor: Competitor, scale: Scale) -> None:
        self.competitor = competitor
        self.scale = scale
        self._executor: Executor | None = None

    @property
    def executor(self) -> Executor:
        assert self._executor is not None
        return self._executor

    def open(self, initializer: Callable[..., Any] | None = None, *initargs: Any) -> None:
        self.close()
        self._executor = self.competitor.make(WORKERS, initializer, initargs)

    def warm_up(self) -> None:
        wait([self.executor.submit(tasks.no_op) for _ in range(WARM_UP_TASKS)])

    def close(self) -> None:
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None

    def submit(self, fn: Callable[..., Any], *args: Any) -> Future[Any]:
        return self.executor.submit(fn, *args)

    def link(self, future: Future[Any]) -> Any:
        return self.competitor.link(future)

    def give(self, value: Any) -> Any:
        """What many tasks get as their argument: the value, stored once where that is possible."""
        return self.executor.put(value) if self.competitor.can("link") else value

    def made(self) -> Future[Any]:
        """A large value, made by a worker and complete."""
        future = self.submit(tasks.make, self.scale.megabytes)
        wait([future])
        return future


def nothing(bench: Bench, state: Any = None) -> None:
    pass


def once(scale: Scale) -> int:
    return 1


def thrice(scale: Scale) -> int:
    return 3


@dataclass(frozen=True)
class Line:
    """One line of the table.

    Attributes:
        name: on the command line and in JSON.
        title: in the table.
        run: the body that is timed, on what `prepare` returned. It returns None, or the figure
            itself where that is not its duration.
        prepare, finish: before and after each sample.
        takes: how many interpreters in a round, for what each can do but once.
        samples: how many in one interpreter.
        warm_runs: samples that are taken and dropped first.
        digest: makes one figure of the samples of one interpreter.
        operations: in one sample.
        shown: "ms", "rate" (operations/s), or what is counted: "MB", "bytes", "messages" or "/s".
        needs: what the competitor must be able to do, keys of `executors.LACKS`.
        limit: the bare limit that it is held against, a key of `limits.LIMITS`.
        opens: whether there is a warm executor before; not where making it is the subject.
        keeps: MB of the array that each worker holds from its start; 0 only loads numpy there.
    """

    name: str
    title: str
    run: Callable[[Bench, Any], float | None]
    prepare: Callable[[Bench], Any] = nothing
    finish: Callable[[Bench, Any], None] = nothing
    takes: int = 1
    samples: Callable[[Scale], int] = once
    warm_runs: int = 0
    digest: Callable[[Sequence[float]], float] = median
    operations: Callable[[Scale], int] = once
    shown: str = "ms"
    needs: tuple[str, ...] = ()
    limit: str | None = None
    opens: bool = True
    keeps: Callable[[Scale], float] | None = None

    @property
    def is_timed(self) -> bool:
        """Whether the figure is how long it takes."""
        return self.shown in ("ms", "rate")

    def open(self, bench: Bench) -> None:
        """Makes and warms up the executor."""
        if not self.opens:
            return
        if self.keeps is None:
            bench.open()
        else:
            bench.open(tasks.keep, self.keeps(bench.scale))
        bench.warm_up()
