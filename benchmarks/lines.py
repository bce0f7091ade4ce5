"""The lines of the table: what is measured, with one body for all competitors.

A `Line` takes a sample from three functions: `prepare` (not timed), `run` (timed), `finish` (not
timed). `benchmarks.report` takes samples in a fresh interpreter for each line, competitor and
round; `benchmarks/test_lines.py` gives the same functions to pytest-benchmark.

This module imports little: it is in the interpreter whose start-up is measured, and forked workers
inherit what it holds.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass
from typing import Any

from benchmarks import tasks
from benchmarks.executors import COMPETITORS, Competitor

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


SCALES = {
    "full": Scale(),
    "quick": Scale(
        latencies=500, tasks=5_000, chain=500, passes=2, hops=2, arrays=100, items=20_000
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

    def made(self) -> Future[Any]:
        """A large value, made by a worker and complete."""
        future = self.submit(tasks.make, self.scale.megabytes)
        wait([future])
        return future


def _nothing(bench: Bench, state: Any = None) -> None:
    pass


def _once(scale: Scale) -> int:
    return 1


def _thrice(scale: Scale) -> int:
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
        operations: in one sample.
        shown: "ms", "rate" (operations/s) or "MB".
        opens: whether there is a warm executor before; not where making it is the subject.
        keeps: MB of the array that each worker holds from its start; 0 only loads numpy there.
    """

    name: str
    title: str
    run: Callable[[Bench, Any], float | None]
    prepare: Callable[[Bench], Any] = _nothing
    finish: Callable[[Bench, Any], None] = _nothing
    takes: int = 1
    samples: Callable[[Scale], int] = _once
    warm_runs: int = 0
    operations: Callable[[Scale], int] = _once
    shown: str = "ms"
    opens: bool = True
    keeps: Callable[[Scale], float] | None = None

    def open(self, bench: Bench) -> None:
        """Makes and warms up the executor."""
        if not self.opens:
            return
        if self.keeps is None:
            bench.open()
        else:
            bench.open(tasks.keep, self.keeps(bench.scale))
        bench.warm_up()


# --- start and end -------------------------------------------------------------------------------


def _close(bench: Bench) -> None:
    bench.close()


def _start(bench: Bench, _: None) -> None:
    bench.open()
    bench.submit(tasks.no_op).result()


def _start_and_stop(bench: Bench, _: None) -> None:
    _start(bench, None)
    bench.close()


# --- small tasks ---------------------------------------------------------------------------------


def _round_trip(bench: Bench, _: None) -> None:
    bench.submit(tasks.no_op).result()


def _no_ops(bench: Bench, _: None) -> None:
    futures = [bench.submit(tasks.no_op) for _ in range(bench.scale.tasks)]
    for future in futures:
        future.result()


def _chain_by_driver(bench: Bench, _: None) -> None:
    number = 0
    for _step in range(bench.scale.chain):
        number = bench.submit(tasks.add_one, number).result()
    assert number == bench.scale.chain


def _chain_by_futures(bench: Bench, _: None) -> None:
    number = bench.submit(tasks.add_one, 0)
    for _step in range(bench.scale.chain - 1):
        number = bench.submit(tasks.add_one, bench.link(number))
    assert number.result() == bench.scale.chain


def _map(bench: Bench, _: None, **options: int) -> None:
    results = bench.executor.map(tasks.add_one, range(bench.scale.items), **options)
    assert deque(results, maxlen=1) == deque([bench.scale.items])


def _map_in_chunks(bench: Bench, _: None) -> None:
    _map(bench, None, chunksize=100)


# --- large values --------------------------------------------------------------------------------


def _made(bench: Bench) -> Future[Any]:
    return bench.made()


def _look(bench: Bench, made: Future[Any]) -> None:
    assert bench.submit(tasks.look, bench.link(made)).result() == 2.0


def _sum(bench: Bench, made: Future[Any]) -> None:
    expected = bench.scale.megabytes * tasks.MB // 8
    assert bench.submit(tasks.total, bench.link(made)).result() == expected


def _made_by_the_other(bench: Bench) -> tuple[Future[Any], Hold]:
    """A value made by one worker, while only the other is free to read it."""
    reader = Hold(bench.executor)
    made = bench.made()
    producer = Hold(bench.executor)
    reader.release()
    return made, producer


def _look_by_the_other(bench: Bench, state: tuple[Future[Any], Hold]) -> None:
    _look(bench, state[0])


def _release(bench: Bench, state: tuple[Future[Any], Hold]) -> None:
    state[1].release()


def _hops(bench: Bench, made: Future[Any]) -> None:
    future = made
    for _hop in range(bench.scale.hops - 1):
        future = bench.submit(tasks.pass_on, bench.link(future))
    _look(bench, future)


def _hand_over(bench: Bench, _: None) -> None:
    _look(bench, bench.submit(tasks.kept))


def _get(bench: Bench, _: None) -> None:
    assert bench.submit(tasks.kept).result()[-1] == 1.0


def _many_consumed(bench: Bench, _: None) -> None:
    made = [bench.submit(tasks.make, 1.0, i) for i in range(bench.scale.arrays)]
    seen = [bench.submit(tasks.look, bench.link(future)) for future in made]
    assert [future.result() for future in seen] == [2.0 * i for i in range(bench.scale.arrays)]


def _many_fetched(bench: Bench, _: None) -> None:
    made = [bench.submit(tasks.make, 1.0, i) for i in range(bench.scale.arrays)]
    assert [future.result()[-1] for future in made] == list(range(bench.scale.arrays))


# --- memory and bytes ----------------------------------------------------------------------------


def _idle_memory(bench: Bench, _: None) -> float:
    """MB of all processes below this one, after each worker has run one task that does nothing.

    Shared pages are divided among those that share them (PSS), so what fork shares is not counted
    twice.
    """
    bench.open()
    for hold in [Hold(bench.executor) for _ in range(WORKERS)]:  # every worker has its own
        hold.release()
    import psutil  # after the workers were forked, so that it is not in them

    pages = [process.memory_full_info() for process in psutil.Process().children(recursive=True)]
    return sum(info.pss if hasattr(info, "pss") else info.uss for info in pages) / tasks.MB


def _driver_bytes(bench: Bench, _: None) -> float:
    """MB through this process while a value is made by one task and looked at by another."""
    before = _bytes_so_far(bench.executor)
    _look(bench, bench.made())
    return (_bytes_so_far(bench.executor) - before) / tasks.MB


def _bytes_so_far(executor: Executor) -> int:
    if hasattr(executor, "statistics"):
        # Its own count has the bytes in shared memory too, which no system call shows.
        seen = executor.statistics()
        return seen.bytes_sent + seen.bytes_received + seen.bytes_mapped + seen.bytes_put
    import psutil

    seen = psutil.Process().io_counters()
    return seen.read_chars + seen.write_chars


def _array_line(name: str, title: str, run: Callable[..., float | None], **more: Any) -> Line:
    defaults = {"samples": lambda scale: scale.passes, "warm_runs": 1, "keeps": lambda scale: 0}
    return Line(name, title, run, **{**defaults, **more})


_LINES = [
    Line("start", "start-up to the first result", _start, _close, takes=5, opens=False),
    Line("start_stop", "start-up, one result, shutdown", _start_and_stop, takes=5, opens=False),
    Line(
        "latency",
        "`submit(...).result()`, no-op",
        _round_trip,
        samples=lambda scale: scale.latencies,
    ),
    Line(
        "throughput",
        "no-op tasks: submit all, then all results",
        _no_ops,
        samples=_thrice,
        operations=lambda scale: scale.tasks,
        shown="rate",
    ),
    Line(
        "chain_by_driver",
        "chain of tasks, each result by the driver",
        _chain_by_driver,
        samples=_thrice,
        operations=lambda scale: scale.chain,
        shown="rate",
    ),
    Line(
        "chain_by_futures",
        "chain of tasks, futures as arguments where possible",
        _chain_by_futures,
        samples=_thrice,
        operations=lambda scale: scale.chain,
        shown="rate",
    ),
    _array_line(
        "pass_look", "pass 256 MB to the next task, which looks at it", _look, prepare=_made
    ),
    _array_line("pass_sum", "pass 256 MB to the next task, which sums it", _sum, prepare=_made),
    _array_line(
        "pass_other",
        "pass 256 MB to a task in the other worker",
        _look_by_the_other,
        prepare=_made_by_the_other,
        finish=_release,
    ),
    _array_line(
        "pass_chain",
        "256 MB handed on by a chain of tasks, each hop",
        _hops,
        prepare=_made,
        operations=lambda scale: scale.hops,
    ),
    _array_line(
        "hand_over",
        "return 256 MB, the next task looks at it",
        _hand_over,
        keeps=lambda scale: scale.megabytes,
    ),
    _array_line("get", "return 256 MB to the driver", _get, keeps=lambda scale: scale.megabytes),
    _array_line(
        "many_consumed",
        "arrays of 1 MB, each made by one task and read by another",
        _many_consumed,
        samples=_once,
        operations=lambda scale: scale.arrays,
    ),
    _array_line(
        "many_fetched",
        "arrays of 1 MB, each made by a task and fetched",
        _many_fetched,
        samples=_once,
        operations=lambda scale: scale.arrays,
    ),
    Line(
        "map",
        "`map` over short items, default arguments",
        _map,
        operations=lambda scale: scale.items,
        shown="rate",
    ),
    Line(
        "map_chunks",
        "`map` over short items, `chunksize=100`",
        _map_in_chunks,
        samples=_thrice,
        operations=lambda scale: scale.items,
        shown="rate",
    ),
    Line("idle_memory", "memory of the idle pool (PSS)", _idle_memory, opens=False, shown="MB"),
    _array_line(
        "driver_bytes",
        "bytes through the driver when 256 MB pass",
        _driver_bytes,
        samples=_once,
        shown="MB",
    ),
]
LINES: dict[str, Line] = {line.name: line for line in _LINES}


def samples(line: Line, competitor: Competitor, scale: Scale) -> list[float]:
    """Seconds of each sample (or MB, where the line counts memory)."""
    bench = Bench(competitor, scale)
    taken: list[float] = []
    try:
        line.open(bench)
        for _ in range(line.warm_runs + line.samples(scale)):
            state = line.prepare(bench)
            start = time.perf_counter()
            figure = line.run(bench, state)
            elapsed = time.perf_counter() - start
            line.finish(bench, state)
            del state  # or its array would be there twice while the next one is made
            taken.append(elapsed if figure is None else figure)
    finally:
        bench.close()
    return taken[line.warm_runs :]


def main() -> None:
    """Prints the samples of one (line, competitor, scale) as JSON: the child of the report."""
    name, label, scale = sys.argv[1:]
    print(json.dumps(samples(LINES[name], COMPETITORS[label], SCALES[scale])))


if __name__ == "__main__":
    main()
