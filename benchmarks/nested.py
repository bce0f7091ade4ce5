"""Lines of tasks that submit tasks, and of what passes through the busiest process meanwhile.

The fan-out is that of the Ownership paper's borrowing experiment (Wang et al., NSDI 2021): many
tasks take one value of 1 MiB. They are submitted by the process that has put it, or by 1, 2 or 4
tasks that borrow it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks import tasks
from benchmarks.bench import Bench, Line, Scale, thrice
from benchmarks.traffic import Tap

MANY, FEW = 1_000, 200
MIB = 1 << 20


def _children(count: int) -> Callable[[Bench, Any], None]:
    def run(bench: Bench, _: Any) -> None:
        assert bench.submit(tasks.submit_all, tasks.no_op, count).result() == count

    return run


def _given(bench: Bench) -> Any:
    return bench.give(bytes(MIB))


def _by_the_driver(bench: Bench, given: Any) -> None:
    futures = [bench.submit(tasks.length, given) for _ in range(bench.scale.fanout)]
    assert all(future.result() == MIB for future in futures)


def _by_borrowers(count: int) -> Callable[[Bench, Any], None]:
    def run(bench: Bench, given: Any) -> None:
        share = bench.scale.fanout // count
        lent = [bench.executor.shared(given)]  # type: ignore[attr-defined]
        futures = [bench.submit(tasks.borrow, lent, share) for _ in range(count)]
        assert [future.result() for future in futures] == [share] * count

    return run


def _fanout(scale: Scale) -> int:
    return scale.fanout


def _no_ops(bench: Bench) -> int:
    futures = [bench.submit(tasks.no_op) for _ in range(bench.scale.tasks)]
    for future in futures:
        future.result()
    return len(futures)


def _no_ops_by_tasks(bench: Bench) -> int:
    """Two tasks submit them, so there are two owners."""
    share = bench.scale.tasks // 2
    owners = [bench.submit(tasks.submit_all, tasks.no_op, share) for _ in range(2)]
    return sum(owner.result() for owner in owners)


def _busiest(work: Callable[[Bench], int], which: int) -> Callable[[Bench, Any], float]:
    """Messages (0) or bytes (1) for each task, through the process that has had most of them."""

    def run(bench: Bench, _: Any) -> float:
        tap = Tap()
        bench.open()
        bench.warm_up()
        tap.clear()
        count = work(bench)
        return tap.busiest()[which] / count

    return run


def _busiest_lines(prefix: str, who: str, work: Callable[[Bench], int], *needs: str) -> list[Line]:
    return [
        Line(
            f"{prefix}busiest_{what}",
            f"{what} for each no-op task {who}, through the busiest process",
            _busiest(work, which),
            opens=False,
            shown=what,
            needs=(*needs, "tap"),
        )
        for which, what in enumerate(("messages", "bytes"))
    ]


NESTED = [
    Line(
        "nested",
        "one task submits 1,000 no-op tasks and waits for them",
        _children(MANY),
        samples=thrice,
        warm_runs=1,
        operations=lambda scale: MANY,
        shown="rate",
        needs=("nest",),
    ),
    Line(
        "nested_few",
        "one task submits 200 no-op tasks and waits for them",
        _children(FEW),
        samples=lambda scale: 10,
        warm_runs=1,
        operations=lambda scale: FEW,
        shown="rate",
        needs=("nest",),
    ),
    Line(
        "fanout_0",
        "tasks that take one value of 1 MiB, submitted by the driver",
        _by_the_driver,
        prepare=_given,
        operations=_fanout,
        shown="rate",
    ),
    *(
        Line(
            f"fanout_{count}",
            f"tasks that take one value of 1 MiB, submitted by borrowing tasks, {count} in number",
            _by_borrowers(count),
            prepare=_given,
            operations=_fanout,
            shown="rate",
            needs=("nest",),
        )
        for count in (1, 2, 4)
    ),
    *_busiest_lines("", "that the driver submits", _no_ops),
    *_busiest_lines("nested_", "that two tasks submit", _no_ops_by_tasks, "nest"),
]
