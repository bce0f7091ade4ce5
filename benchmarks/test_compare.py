"""What `python -m benchmarks.compare --check` calls worse, on figures made up for it."""

from __future__ import annotations

import subprocess

import pytest

from benchmarks.compare import Pair, complaints, markdown, trees
from benchmarks.rounds import ROOT, Measured

LINE = "latency", "owndist-fork"


def pair(old: list[float], new: list[float], cpu: float = 1.0) -> Pair:
    return Pair(Measured(old, [], [1.0] * len(old)), Measured(new, [], [cpu] * len(new)))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ([1.0, 1.0, 1.0], [1.04, 1.04, 1.04]),
        ([1.0, 1.0, 1.0], [1.5, 1.5, 1.0]),  # the best round is as fast: noise
        ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]),  # the machine became slower, for both
        ([0.0], [0.0]),
    ],
)
def test_nothing_is_worse(old: list[float], new: list[float]) -> None:
    assert complaints({LINE: pair(old, new)}) == []


@pytest.mark.parametrize(
    ("made", "what"),
    [
        (pair([1.0, 2.0, 3.0], [1.1, 2.2, 3.3]), "takes 1.10 [1.10 to 1.10], best 1.10 times"),
        (pair([1.0], [1.0], cpu=2.0), "uses CPU for 2.00 [2.00 to 2.00], best 2.00 times"),
        (Pair(Measured([1.0], [], [1.0]), Measured([], ["it broke"])), "fails"),
    ],
)
def test_worse(made: Pair, what: str) -> None:
    (complaint,) = complaints({LINE: made})
    assert complaint.startswith("latency on owndist-fork: ") and what in complaint


def test_table_has_both_ratios() -> None:
    made = {LINE: pair([0.001, 0.001], [0.002, 0.001], cpu=0.5)}
    expected = "| 1.50 [1.00 to 2.00], best 1.00 | 0.50 [0.50 to 0.50], best 0.50 |"
    assert markdown(made).splitlines()[-1].endswith(expected)


def test_trees_hold_the_revision_and_these_lines_and_then_are_gone() -> None:
    if subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True).returncode:
        pytest.skip("not a git checkout")
    with trees(["HEAD"]) as (tree,):
        assert (tree / "owndist" / "executor.py").exists()
        lines = (tree / "benchmarks" / "lines.py").read_text()
        assert lines == (ROOT / "benchmarks" / "lines.py").read_text()
    assert not tree.exists()
    listed = subprocess.run(
        ["git", "-C", ROOT, "worktree", "list"], capture_output=True, text=True, check=True
    )
    assert str(tree) not in listed.stdout
