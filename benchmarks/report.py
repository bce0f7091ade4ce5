"""Measures every line on every competitor and prints the table for the README.

    python -m benchmarks.report                                    # all of it: about half an hour
    python -m benchmarks.report --quick --lines latency,get --only owndist-fork,ppe-fork
    python -m benchmarks.report --check                            # quick; exit status 1 if slower

Each sample is taken in an interpreter of its own, the competitors by turns (A B A B ...), so that
what else the machine does falls on all of them. The raw samples go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.bench import SCALES, WORKERS, Line
from benchmarks.executors import COMPETITORS
from benchmarks.limits import LIMITS
from benchmarks.lines import LINES
from benchmarks.rounds import ROOT, Measured, end_on_sigterm, progress, take, with_bytecode

RESULTS = ROOT / "benchmarks" / "results"

# What `--check` asks for. Two runs of the same code on a shared machine differ by this much.
NOISE = 0.15
FLOORS = {"throughput": 3.0, "pass_look": 100.0}  # times the baseline; for all others: as fast


Results = dict[str, dict[str, Measured]]  # {line: {competitor: Measured}}
Limits = dict[str, Measured]  # {bare limit: Measured}
_SECONDS = Line("", "", lambda *_: None)  # how a limit is shown


def measure(
    lines: Sequence[str], labels: Sequence[str], scale: str, rounds: int
) -> tuple[Results, Limits]:
    results: Results = {}
    limits: Limits = {name: Measured() for name in LIMITS}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        environment = with_bytecode(folder)
        for label in labels:
            progress(f"compiling for {label}")
            # What fails here fails again below, and is told there.
            with contextlib.suppress(RuntimeError):
                take("start_stop", label, scale, environment=environment)
        for number in range(rounds):
            for name, measured in limits.items():
                progress(f"{name} {number + 1}/{rounds}")
                measured.add(name, name, environment=environment)
        for name in lines:
            line = LINES[name]
            results[name] = {
                label: Measured(why_not=COMPETITORS[label].why_not(line.needs)) for label in labels
            }
            for number in range(rounds):
                for label, measured in results[name].items():
                    # Once is enough: a hang costs minutes.
                    if not measured.failures and not measured.why_not:
                        progress(f"{name} {number + 1}/{rounds} {label}")
                        what = f"{name} on {label}"
                        place = {"takes": line.takes, "environment": environment}
                        measured.add(what, name, label, scale, **place)
    progress("")
    return results, limits


def ratio(results: Results, name: str, label: str, figure: str = "median") -> float | None:
    """How many times better than its baseline on this line; None when one of them is missing."""
    own = results[name].get(label)
    base = results[name].get(COMPETITORS[label].baseline)
    if own is None or base is None or not own.figures or not base.figures:
        return None
    if not getattr(own, figure):  # no byte at all
        return float("inf")
    return getattr(base, figure) / getattr(own, figure)


def figure_text(line: Line, figure: float) -> str:
    if line.shown == "rate":
        return f"{1 / figure:,.0f}/s"
    if line.shown == "MB":
        return f"{figure:,.1f} MB" if figure >= 0.1 else f"{figure * 1000:,.1f} KB"
    if line.shown == "/s":
        return f"{figure:,.1f}/s"
    if not line.is_timed:
        return f"{figure:,.{0 if figure >= 10 else 1}f} {line.shown}"
    milliseconds = figure * 1000
    return f"{milliseconds:,.{0 if milliseconds >= 100 else 1 if milliseconds >= 10 else 3}f} ms"


def ratio_text(value: float | None) -> str:
    if value is None:
        return ""
    if value == float("inf"):
        return " (it has none)"
    return f" (×{value:,.{0 if value >= 10 else 1 if value >= 2 else 2}f})"


def range_text(line: Line, measured: Measured) -> str:
    """The median, and the range of all rounds."""
    low, high = min(measured.figures), max(measured.figures)
    text = figure_text(line, measured.median)
    if len(measured.figures) == 1:
        return text
    return f"{text} [{figure_text(line, low)} to {figure_text(line, high)}]"


def markdown(results: Results, labels: Sequence[str]) -> str:
    """The table: median [range], and in brackets how many times better than the baseline."""
    rows = ["| | " + " | ".join(labels) + " |", "|---|" + "---:|" * len(labels)]
    for name, by_label in results.items():
        cells = []
        for label in labels:
            measured = by_label[label]
            if not measured.figures:
                cells.append(measured.why_not or "failed")
                continue
            is_baseline = COMPETITORS[label].baseline == label
            note = "" if is_baseline else ratio_text(ratio(results, name, label))
            cells.append(range_text(LINES[name], measured) + note)
        rows.append(f"| {LINES[name].title} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def limits_markdown(results: Results, limits: Limits, labels: Sequence[str]) -> str:
    """The bare limits, and how many times as long the lines take that are held against them."""
    rows = ["| bare limit | | line | " + " | ".join(labels) + " |"]
    rows += ["|---|---:|---|" + "---:|" * len(labels)]
    for limit, bare in limits.items():
        names = [name for name in results if LINES[name].limit == limit] or [None]
        for name in names if bare.figures else []:
            cells = [
                f"{results[name][label].median / bare.median:,.2f} times"
                if name and results[name][label].figures
                else ""
                for label in labels
            ]
            row = [LIMITS[limit].title, range_text(_SECONDS, bare), name and LINES[name].title]
            rows.append("| " + " | ".join([*(text or "" for text in row), *cells]) + " |")
    return "\n".join(rows)


def complaints(results: Results, labels: Sequence[str]) -> list[str]:
    """What falls short of the floors.

    A line is called slow only when both the median and the best round say so: one of them alone
    is often the machine.
    """
    found = []
    for name in results:
        for label in labels:
            baseline = results[name].get(COMPETITORS[label].baseline)
            cannot = results[name][label].why_not or (baseline and baseline.why_not)
            if not label.startswith("owndist") or cannot:
                continue
            by_median, by_best = (ratio(results, name, label, f) for f in ("median", "best"))
            if by_median is None or by_best is None:
                found.append(f"{name}: no figure for {label} or its baseline")
                continue
            floor = FLOORS.get(name, 1 - NOISE)
            if max(by_median, by_best) < floor:
                found.append(
                    f"{name}: {label} is {by_median:.2f} times {COMPETITORS[label].baseline} "
                    f"(best rounds: {by_best:.2f}), not {floor:g}"
                )
    return found


def save(
    results: Results, limits: Limits, versions: dict[str, str], scale: str, part: bool
) -> Path:
    """Writes the JSON; part of the lines or competitors never overwrites the whole."""
    now = datetime.datetime.now(datetime.timezone.utc)
    suffix = ("" if scale == "full" else f"-{scale}") + ("-part" if part else "")
    path = RESULTS / f"{now:%Y-%m-%d}-{platform.python_version()}{suffix}.json"
    about = {
        "taken": f"{now:%Y-%m-%dT%H:%M:%SZ}",
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "workers": WORKERS,
        "load_average": os.getloadavg(),
        "scale": asdict(SCALES[scale]),
        "versions": versions,
    }
    lines = {
        name: {
            label: {**asdict(measured), "ratio": ratio(results, name, label)}
            for label, measured in by_label.items()
        }
        for name, by_label in results.items()
    }
    path.parent.mkdir(exist_ok=True)
    bare = {name: asdict(measured) for name, measured in limits.items()}
    whole = {"about": about, "limits": bare, "lines": lines}
    path.write_text(json.dumps(whole, indent=1) + "\n")
    return path


def chosen(text: str | None, known: Sequence[str], what: str) -> list[str]:
    if text is None:
        return list(known)
    names = text.split(",")
    for name in names:
        if name not in known:
            raise SystemExit(f"no such {what}: {name!r}; there are {', '.join(known)}")
    return names


def installed(labels: Sequence[str]) -> dict[str, str]:
    """{label: version} of the competitors that are there."""
    found = {}
    for label in labels:
        try:
            found[label] = COMPETITORS[label].version()
        except ImportError as error:
            print(f"left out: {label} ({error})", file=sys.stderr)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", help=f"some of: {','.join(LINES)}")
    parser.add_argument("--only", help=f"some of: {','.join(COMPETITORS)}")
    parser.add_argument("--quick", action="store_true", help="fewer and smaller samples")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--check", action="store_true", help="--quick; exit status 1 if slower")
    arguments = parser.parse_args()
    end_on_sigterm()

    lines = chosen(arguments.lines, list(LINES), "line")
    labels = chosen(arguments.only, list(COMPETITORS), "competitor")
    if arguments.check:
        labels = [label for label in labels if label.startswith(("owndist-", "ppe-"))]
    versions = installed(labels)
    labels = [label for label in labels if label in versions]
    scale = "quick" if arguments.quick or arguments.check else "full"

    results, limits = measure(lines, labels, scale, arguments.rounds)
    path = save(results, limits, versions, scale, bool(arguments.lines or arguments.only))
    print(markdown(results, labels))
    print("\n" + limits_markdown(results, limits, labels))
    print(
        f"\nPython {platform.python_version()}, {os.cpu_count()} cores, {WORKERS} workers; "
        f"median [range] of {arguments.rounds} rounds; in round brackets: how many times better "
        "than ProcessPoolExecutor (ppe) under the same start method."
    )
    print(f"Saved as {path.relative_to(ROOT)}", file=sys.stderr)
    if not arguments.check:
        return 0
    found = complaints(results, labels)
    for complaint in found:
        print(f"SLOW {complaint}")
    if not any(label.startswith("owndist-") for label in labels):
        print("owndist is not among the competitors")
        return 1
    if not found:
        print(f"owndist keeps up on every line (noise margin {NOISE:.0%}).")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
