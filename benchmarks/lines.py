"""The lines of the table: what is measured, with one body for all competitors.

A `Line` takes a sample from three functions: `prepare` (not timed), `run` (timed), `finish` (not
timed). `benchmarks.report` takes samples in a fresh interpreter for each line, competitor and
round; `benchmarks/test_lines.py` gives the same functions to pytest-benchmark. Lines of tasks that
submit tasks, or that are lost, are in `nested` and `losses`.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, wait
from typing import Any

from benchmarks import processes, tasks
from benchmarks.bench import SCALES, WORKERS, Bench, Hold, Line, Scale, once, thrice
from benchmarks.executors import COMPETITORS, Competitor
from benchmarks.limits import LIMITS
from benchmarks.losses import LOSSES
from benchmarks.nested import NESTED

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


def _no_ops_waited_for(bench: Bench, _: None) -> None:
    wait([bench.submit(tasks.no_op) for _ in range(bench.scale.tasks)])


def _submit(bench: Bench, futures: list[Future[Any]]) -> None:
    futures += [bench.submit(tasks.no_op) for _ in range(bench.scale.tasks)]


def _wait(bench: Bench, futures: list[Future[Any]]) -> None:
    wait(futures)


def _spin(bench: Bench, _: None) -> None:
    wait([bench.submit(tasks.spin, 0.001) for _ in range(bench.scale.spins)])


def _tree(bench: Bench, _: None) -> None:
    level = [bench.submit(tasks.add_one, 0) for _ in range(bench.scale.leaves)]
    while len(level) > 1:
        pairs = zip(level[::2], level[1::2], strict=True)
        level = [bench.submit(tasks.add, bench.link(a), bench.link(b)) for a, b in pairs]
    assert level[0].result() == bench.scale.leaves


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


def _map_singly(bench: Bench, _: None) -> None:
    results = bench.executor.map(tasks.add_one, range(bench.scale.singly), chunksize=1)
    assert deque(results, maxlen=1) == deque([bench.scale.singly])


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


def _array(bench: Bench) -> Any:
    return tasks.make(64.0)


def _many_readers(bench: Bench, array: Any) -> None:
    given = bench.give(array)
    seen = [bench.submit(tasks.look, given) for _ in range(bench.scale.readers)]
    assert [future.result() for future in seen] == [2.0] * bench.scale.readers


def _many_consumed(bench: Bench, _: None) -> None:
    made = [bench.submit(tasks.make, 1.0, i) for i in range(bench.scale.arrays)]
    seen = [bench.submit(tasks.look, bench.link(future)) for future in made]
    assert [future.result() for future in seen] == [2.0 * i for i in range(bench.scale.arrays)]


def _many_fetched(bench: Bench, _: None) -> None:
    made = [bench.submit(tasks.make, 1.0, i) for i in range(bench.scale.arrays)]
    assert [future.result()[-1] for future in made] == list(range(bench.scale.arrays))


# --- memory and bytes ----------------------------------------------------------------------------


def _meet_all(bench: Bench) -> None:
    """Every worker is there, and has run a task that does nothing."""
    for hold in [Hold(bench.executor) for _ in range(WORKERS)]:  # every worker has its own
        hold.release()


def _idle_memory(bench: Bench, _: None) -> float:
    """MB of all processes below this one, after each worker has run one task."""
    bench.open()
    _meet_all(bench)
    return processes.memory_mb(own=False)


def _idle_wake_ups(bench: Bench, _: None) -> float:
    """A second, of all threads but this one, once all is quiet."""
    _meet_all(bench)
    time.sleep(bench.scale.rest_s)
    before = processes.wake_ups()
    time.sleep(bench.scale.rest_s)
    return (processes.wake_ups() - before) / bench.scale.rest_s


def _growth(bench: Bench, _: None) -> float:
    """MB more in all processes when many tasks are over and their futures are dropped."""
    _meet_all(bench)
    before = processes.memory_mb(own=True)
    wait([bench.submit(tasks.no_op) for _ in range(bench.scale.grown)])
    time.sleep(1.0)  # what is dropped may take a moment to go
    return max(0.0, processes.memory_mb(own=True) - before)


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
        limit="round_trip",
    ),
    Line(
        "latency_p99",
        "`submit(...).result()`, no-op, the slowest of a hundred",
        _round_trip,
        samples=lambda scale: scale.latencies,
        digest=lambda samples: statistics.quantiles(samples, n=100)[98],
    ),
    Line(
        "submit",
        "`submit` itself, no-op",
        _submit,
        prepare=lambda bench: [],
        finish=_wait,
        samples=thrice,
        operations=lambda scale: scale.tasks,
    ),
    Line(
        "throughput",
        "no-op tasks: submit all, then all results",
        _no_ops,
        samples=thrice,
        operations=lambda scale: scale.tasks,
        shown="rate",
    ),
    Line(
        "waited_for",
        "no-op tasks: submit all, then `wait` for all",
        _no_ops_waited_for,
        samples=thrice,
        operations=lambda scale: scale.tasks,
        shown="rate",
    ),
    Line(
        "spin",
        "tasks that use 1 ms of CPU",
        _spin,
        operations=lambda scale: scale.spins,
        shown="rate",
    ),
    Line(
        "chain_by_driver",
        "chain of tasks, each result by the driver",
        _chain_by_driver,
        samples=thrice,
        operations=lambda scale: scale.chain,
        shown="rate",
    ),
    Line(
        "chain_by_futures",
        "chain of tasks, futures as arguments where possible",
        _chain_by_futures,
        samples=thrice,
        operations=lambda scale: scale.chain,
        shown="rate",
    ),
    Line("tree", "512 numbers added in a tree of 1,023 tasks", _tree, samples=thrice),
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
        limit="copy",
    ),
    _array_line(
        "hand_over_first",
        "return 256 MB for the first time, the next task looks at it",
        _hand_over,
        samples=once,
        warm_runs=0,
        keeps=lambda scale: scale.megabytes,
        limit="cold_copy",
    ),
    _array_line(
        "get",
        "return 256 MB to the driver",
        _get,
        keeps=lambda scale: scale.megabytes,
        limit="copy",
    ),
    _array_line(
        "many_readers",
        "give 64 MB to many tasks, each of them",
        _many_readers,
        prepare=_array,
        samples=once,
        operations=lambda scale: scale.readers,
    ),
    _array_line(
        "many_consumed",
        "arrays of 1 MB, each made by one task and read by another",
        _many_consumed,
        samples=once,
        operations=lambda scale: scale.arrays,
    ),
    _array_line(
        "many_fetched",
        "arrays of 1 MB, each made by a task and fetched",
        _many_fetched,
        samples=once,
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
        samples=thrice,
        operations=lambda scale: scale.items,
        shown="rate",
    ),
    Line(
        "map_singly",
        "`map` over short items, `chunksize=1`",
        _map_singly,
        operations=lambda scale: scale.singly,
        shown="rate",
    ),
    *NESTED,
    *LOSSES,
    Line("idle_memory", "memory of the idle pool (PSS)", _idle_memory, opens=False, shown="MB"),
    Line("idle_wake_ups", "wake-ups of the idle pool", _idle_wake_ups, shown="/s"),
    Line("growth", "memory that no-op tasks leave behind (PSS)", _growth, shown="MB"),
    _array_line(
        "driver_bytes",
        "bytes through the driver when 256 MB pass",
        _driver_bytes,
        samples=once,
        shown="MB",
    ),
]
LINES: dict[str, Line] = {line.name: line for line in _LINES}


def samples(line: Line, competitor: Competitor, scale: Scale) -> tuple[list[float], float]:
    """The figure of each sample (seconds, or what the line counts), and CPU seconds of one.

    The CPU time is that of all processes, and includes the preparing and finishing.
    """
    bench = Bench(competitor, scale)
    taken: list[float] = []
    used = 0.0
    count = line.samples(scale)
    try:
        line.open(bench)
        for number in range(line.warm_runs + count):
            if number == line.warm_runs:
                used = processes.cpu_seconds()
            state = line.prepare(bench)
            start = time.perf_counter()
            figure = line.run(bench, state)
            elapsed = time.perf_counter() - start
            line.finish(bench, state)
            del state  # or its array would be there twice while the next one is made
            taken.append(elapsed if figure is None else figure)
        used = processes.cpu_seconds() - used
    finally:
        bench.close()
    return taken[line.warm_runs :], used / count


def main() -> None:
    """Prints what one interpreter has measured, as JSON: the child of the report.

    Arguments: line, competitor, scale; or the name of a bare limit.
    """
    name, *rest = sys.argv[1:]
    if not rest:
        figure, cpu_s = statistics.median(LIMITS[name].samples()), 0.0
    else:
        label, scale = rest
        line = LINES[name]
        taken, used = samples(line, COMPETITORS[label], SCALES[scale])
        operations = line.operations(SCALES[scale])
        figure, cpu_s = line.digest(taken) / operations, used / operations
    print(json.dumps({"figure": figure, "cpu_s": cpu_s}))


if __name__ == "__main__":
    main()
