"""Compares two revisions of owndist in one run, by turns, line by line.

    python -m benchmarks.compare HEAD~5 HEAD
    python -m benchmarks.compare v0.1 main --lines latency,throughput --rounds 9 --check

Both are measured by the lines of this checkout, each round in a fresh interpreter: old, new, new,
old, ... so that what else the machine does falls on both. A ratio is that of two rounds which stand
next to each other; its median and its range are shown, and the ratio of the best rounds, which is
what the rest of the machine disturbs least. CPU time is that of all processes: it counts what a
change costs also where the other core hides it.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks.executors import COMPETITORS
from benchmarks.lines import LINES
from benchmarks.report import chosen, range_text
from benchmarks.rounds import ROOT, Measured, end_on_sigterm, progress, with_bytecode

TOLERANCE = 0.05  # what `--check` lets pass
OWN = [label for label in COMPETITORS if label.startswith("owndist-")]


class Ratios(NamedTuple):
    """New divided by old: above 1 is worse. Of each pair of rounds, and of the best of all."""

    median: float
    low: float
    high: float
    best: float

    @property
    def is_worse(self) -> bool:
        """Both the median and the best rounds say so: one of them alone is often the machine."""
        return min(self.median, self.best) > 1 + TOLERANCE

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f} to {self.high:.2f}], best {self.best:.2f}"


class Pair(NamedTuple):
    """One line and competitor under both revisions."""

    old: Measured
    new: Measured

    def ratios(self, figure: str) -> Ratios | None:
        """Of "figures" or "cpu_s"; None if a round has failed, or there is nothing to divide by."""
        old, new = getattr(self.old, figure), getattr(self.new, figure)
        if self.old.failures or self.new.failures or not all(old):
            return None
        each = [after / before for before, after in zip(old, new, strict=True)]
        return Ratios(statistics.median(each), min(each), max(each), min(new) / min(old))


Pairs = dict[tuple[str, str], Pair]  # {(line, competitor): Pair}


@contextmanager
def trees(revisions: Sequence[str]) -> Iterator[list[Path]]:
    """Worktrees of the revisions in a temporary directory, with this checkout's benchmarks."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        made: list[Path] = []
        try:
            for number, revision in enumerate(revisions):
                made.append(tree := Path(folder, str(number)))
                _git("worktree", "add", "--quiet", "--detach", str(tree), revision)
                shutil.rmtree(tree / "benchmarks", ignore_errors=True)
                left_out = shutil.ignore_patterns("results", "__pycache__")
                shutil.copytree(ROOT / "benchmarks", tree / "benchmarks", ignore=left_out)
            yield made
        finally:
            for tree in made:
                _git("worktree", "remove", "--force", str(tree), check=False)


def _git(*arguments: str, check: bool = True) -> str:
    done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True)
    if check and done.returncode:
        raise SystemExit(done.stderr.strip())
    return done.stdout.strip()


def measure(
    roots: Sequence[Path], lines: Sequence[str], labels: Sequence[str], scale: str, rounds: int
) -> Pairs:
    pairs: Pairs = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        environment = with_bytecode(folder)
        for root in roots:
            for label in labels:
                Measured().add("compiling", "start_stop", label, scale, **_at(root, environment))
        for name in lines:
            for label in labels:
                if COMPETITORS[label].why_not(LINES[name].needs):
                    continue
                pair = pairs[name, label] = Pair(Measured(), Measured())
                for number in range(rounds):
                    turns = list(zip(("old", "new"), pair, roots, strict=True))
                    for which, measured, root in turns[:: 1 if number % 2 == 0 else -1]:
                        if not measured.failures:
                            progress(f"{name} {number + 1}/{rounds} {label} {which}")
                            what = f"{name} on {label}, {which},"
                            takes = LINES[name].takes
                            place = _at(root, environment)
                            measured.add(what, name, label, scale, takes=takes, **place)
    progress("")
    return pairs


def _at(root: Path, environment: dict[str, str]) -> dict[str, object]:
    return {"root": root, "environment": environment}


def markdown(pairs: Pairs) -> str:
    """The table. Below 1 is better, whatever the line counts."""
    rows = ["| line | | old | new | new / old | CPU time, new / old |"]
    rows += ["|---|---|---:|---:|---:|---:|"]
    for (name, label), pair in pairs.items():
        cells = [
            range_text(LINES[name], measured) if measured.figures else "failed" for measured in pair
        ]
        cells += [str(pair.ratios(figure) or "") for figure in ("figures", "cpu_s")]
        rows.append(f"| {LINES[name].title} | {label} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def complaints(pairs: Pairs) -> list[str]:
    """What is slower now, or takes more CPU time, or works no longer."""
    found = []
    for (name, label), pair in pairs.items():
        if pair.new.failures:
            found.append(f"{name} on {label}: the new revision fails")
        for figure, what in (("figures", "takes"), ("cpu_s", "uses CPU for")):
            ratios = pair.ratios(figure)
            if ratios is not None and ratios.is_worse:
                found.append(f"{name} on {label}: {what} {ratios} times as long")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", help="a git revision")
    parser.add_argument("new", help="a git revision")
    parser.add_argument("--lines", help=f"some of: {','.join(LINES)}")
    parser.add_argument("--only", default=OWN[0], help=f"some of: {','.join(OWN)}")
    parser.add_argument("--quick", action="store_true", help="fewer and smaller samples")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--check", action="store_true", help="exit status 1 if new is worse")
    arguments = parser.parse_args()
    end_on_sigterm()

    lines = chosen(arguments.lines, list(LINES), "line")
    labels = chosen(arguments.only, OWN, "competitor")
    names = [_git("log", "-1", "--format=%h %s", one) for one in (arguments.old, arguments.new)]
    with trees([arguments.old, arguments.new]) as roots:
        scale = "quick" if arguments.quick else "full"
        pairs = measure(roots, lines, labels, scale, arguments.rounds)
    print(f"old: {names[0]}\nnew: {names[1]}\n\n{markdown(pairs)}")
    found = complaints(pairs)
    for complaint in found:
        print(f"WORSE {complaint}")
    if not found:
        print(f"\nNothing is worse by more than {TOLERANCE:.0%}.")
    return 1 if found and arguments.check else 0


if __name__ == "__main__":
    sys.exit(main())
