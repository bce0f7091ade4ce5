"""What `python -m benchmarks.report --check` calls slow, on figures made up for it."""

from __future__ import annotations

import pytest

from benchmarks.report import complaints, limits_markdown, markdown, ratio
from benchmarks.rounds import Measured

LABELS = ["owndist-fork", "ppe-fork"]


def results(line: str, own: list[float], base: list[float]) -> dict[str, dict[str, Measured]]:
    return {line: {"owndist-fork": Measured(own), "ppe-fork": Measured(base)}}


@pytest.mark.parametrize(
    ("line", "own", "base"),
    [
        ("latency", [1.0, 1.1, 1.0], [1.0, 1.0, 1.0]),
        ("latency", [9.0, 9.0, 1.0], [1.0, 1.0, 1.0]),  # the best round is as fast: noise
        ("throughput", [1.0], [3.0]),
        ("pass_look", [1.0], [100.0]),
        ("driver_bytes", [0.0], [512.0]),
    ],
)
def test_nothing_to_complain_of(line: str, own: list[float], base: list[float]) -> None:
    assert complaints(results(line, own, base), LABELS) == []


@pytest.mark.parametrize(
    ("line", "own", "base"),
    [
        ("latency", [1.2, 1.3, 1.2], [1.0, 1.0, 1.0]),
        ("throughput", [1.0], [2.9]),
        ("pass_look", [1.0], [99.0]),
        ("get", [], [1.0]),  # it failed or hung
        ("get", [1.0], []),
    ],
)
def test_complaint(line: str, own: list[float], base: list[float]) -> None:
    (complaint,) = complaints(results(line, own, base), LABELS)
    assert complaint.startswith(f"{line}: ")
    assert "owndist-fork" in complaint


def test_table_has_medians_ranges_and_ratios() -> None:
    made = results("latency", [0.0001, 0.0002, 0.0003], [0.001])
    assert ratio(made, "latency", "owndist-fork") == pytest.approx(5.0)
    cells = "| 0.200 ms [0.100 ms to 0.300 ms] (×5.0) | 1.000 ms |"
    assert markdown(made, LABELS).splitlines()[-1].endswith(cells)


def test_a_line_that_a_competitor_cannot_do_says_why_and_is_no_complaint() -> None:
    made = results("nested", [0.001], [])
    made["nested"]["ppe-fork"].why_not = "tasks cannot submit tasks"
    assert (
        markdown(made, LABELS).splitlines()[-1].endswith("| 1,000/s | tasks cannot submit tasks |")
    )
    assert complaints(made, LABELS) == []


def test_lines_are_held_against_bare_limits() -> None:
    made = results("latency", [0.0003], [0.001])
    table = limits_markdown(made, {"round_trip": Measured([0.0002])}, LABELS).splitlines()
    assert table[-1].endswith(
        "| 0.200 ms | `submit(...).result()`, no-op | 1.50 times | 5.00 times |"
    )
