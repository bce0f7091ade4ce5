"""The same lines through pytest-benchmark, in their quick form.

    python -m pytest benchmarks/test_lines.py --benchmark-only --benchmark-group-by=param:name

Here all runs share one interpreter, so start-up is without imports; the figures for the README
come from `benchmarks.report`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.bench import SCALES, Bench
from benchmarks.executors import COMPETITORS
from benchmarks.lines import LINES

pytest.importorskip("pytest_benchmark")

TIMED = [name for name, line in LINES.items() if line.is_timed]
FORKED = ["owndist-fork", "ppe-fork"]


@pytest.fixture
def bench(label: str) -> Iterator[Bench]:
    try:
        COMPETITORS[label].version()
    except ImportError as error:
        pytest.skip(f"{label}: {error}")
    bench = Bench(COMPETITORS[label], SCALES["quick"])
    yield bench
    bench.close()


@pytest.mark.parametrize("label", [label for label in FORKED if label in COMPETITORS])
@pytest.mark.parametrize("name", TIMED)
def test_line(name: str, label: str, bench: Bench, benchmark: Any) -> None:
    line = LINES[name]
    if why_not := COMPETITORS[label].why_not(line.needs):
        pytest.skip(f"{label}: {why_not}")
    line.open(bench)
    states: list[Any] = []

    def setup() -> tuple[tuple[Any, ...], dict[str, Any]]:
        states.append(line.prepare(bench))
        return (bench, states[-1]), {}

    def teardown(*_: Any) -> None:
        line.finish(bench, states.pop())

    benchmark.group = line.title
    rounds = line.samples(bench.scale)
    benchmark.pedantic(
        line.run, setup=setup, teardown=teardown, rounds=rounds, warmup_rounds=line.warm_runs
    )
