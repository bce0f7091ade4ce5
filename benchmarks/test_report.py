"""What `python -m benchmarks.report --check` calls slow, on figures made up for it."""

from __future__ import annotations

import pytest

from benchmarks.report import Measured, complaints, markdown, ratio

LABELS = ["owndist-fork", "ppe-fork"]


def results(line: str, own: list[float], base: list[float]) -> dict[str, dict[str, Measured]]:
    return {line: {"owndist-fork": Measured(own, []), "ppe-fork": Measured(base, [])}}


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


def test_table_has_medians_and_ratios() -> None:
    made = results("latency", [0.0001, 0.0002, 0.0003], [0.001])
    assert ratio(made, "latency", "owndist-fork") == pytest.approx(5.0)
    assert markdown(made, LABELS).splitlines()[-1].endswith("| 0.200 ms (×5.0) | 1.000 ms |")
