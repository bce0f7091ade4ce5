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
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.executors import COMPETITORS
from benchmarks.lines import LINES, SCALES, WORKERS, Line

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
TIMEOUT_S = 300  # for one sample: the slowest of them takes about 40 s when it is alone
CHILD = "from benchmarks.lines import main; main()"

# What `--check` asks for. Two runs of the same code on a shared machine differ by this much.
NOISE = 0.15
FLOORS = {"throughput": 3.0, "pass_look": 100.0}  # times the baseline; for all others: as fast


@dataclass
class Measured:
    """One competitor on one line: a figure per round, each the median of that round's samples.

    Seconds per operation, or MB: less is better.
    """

    figures: list[float]
    failures: list[str]

    @property
    def median(self) -> float:
        return statistics.median(self.figures)

    @property
    def best(self) -> float:
        return min(self.figures)


Results = dict[str, dict[str, Measured]]  # {line: {competitor: Measured}}


def take(line: Line, label: str, scale: str, environment: dict[str, str]) -> float:
    """One round of one competitor, in a fresh interpreter.

    Raises:
        RuntimeError: it failed or took too long; nothing that it started is left.
    """
    with subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-c", CHILD, line.name, label, scale],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as child:
        try:
            printed, complaints = child.communicate(timeout=TIMEOUT_S)
        except BaseException as error:  # Ctrl-C too: its workers are in the same group
            late = isinstance(error, subprocess.TimeoutExpired)
            if late:
                child.send_signal(signal.SIGABRT)  # faulthandler shows where it stands
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(10)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            if not late:
                raise
            _, complaints = child.communicate()
            raise RuntimeError(f"nothing after {TIMEOUT_S} s\n{complaints}") from None
    if child.returncode:
        raise RuntimeError(complaints.strip() or f"exit status {child.returncode}")
    samples = json.loads(printed.splitlines()[-1])
    return statistics.median(samples) / line.operations(SCALES[scale])


def measure(lines: Sequence[str], labels: Sequence[str], scale: str, rounds: int) -> Results:
    results: Results = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        environment = _with_bytecode(folder)
        for label in labels:
            progress(f"compiling for {label}")
            # What fails here fails again below, and is told there.
            with contextlib.suppress(RuntimeError):
                take(LINES["start_stop"], label, scale, environment)
        for name in lines:
            results[name] = {label: Measured([], []) for label in labels}
            for number in range(rounds):
                for label, measured in results[name].items():
                    if not measured.failures:  # once is enough: a hang costs minutes
                        progress(f"{name} {number + 1}/{rounds} {label}")
                        _add_round(measured, LINES[name], label, scale, environment)
    progress("")
    return results


def _add_round(
    measured: Measured, line: Line, label: str, scale: str, environment: dict[str, str]
) -> None:
    try:
        figures = [take(line, label, scale, environment) for _ in range(line.takes)]
    except RuntimeError as error:
        measured.failures.append(str(error))
        print(f"\n{line.name} on {label} failed:\n{error}", file=sys.stderr)
    else:
        measured.figures.append(statistics.median(figures))


def _with_bytecode(folder: str) -> dict[str, str]:
    """Compiled modules are kept in the folder: an installed package is not compiled at each start.

    Without it, a checkout that Python may not write to would look slow to start.
    """
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": folder}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return environment


def progress(text: str) -> None:
    """One line that is written over, where a person looks on; nothing in a log."""
    if sys.stderr.isatty():
        print(f"\r{text:<60}" if text else f"\r{'':<60}\r", end="", file=sys.stderr, flush=True)


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
    milliseconds = figure * 1000
    return f"{milliseconds:,.{0 if milliseconds >= 100 else 1 if milliseconds >= 10 else 3}f} ms"


def ratio_text(value: float | None) -> str:
    if value is None:
        return ""
    return f" (×{value:,.{0 if value >= 10 else 1 if value >= 2 else 2}f})"


def markdown(results: Results, labels: Sequence[str]) -> str:
    """The table: medians, and in brackets how many times better than the baseline."""
    rows = ["| | " + " | ".join(labels) + " |", "|---|" + "---:|" * len(labels)]
    for name, by_label in results.items():
        cells = []
        for label in labels:
            measured = by_label[label]
            if not measured.figures:
                cells.append("failed")
                continue
            is_baseline = COMPETITORS[label].baseline == label
            note = "" if is_baseline else ratio_text(ratio(results, name, label))
            cells.append(figure_text(LINES[name], measured.median) + note)
        rows.append(f"| {LINES[name].title} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def complaints(results: Results, labels: Sequence[str]) -> list[str]:
    """What falls short of the floors.

    A line is called slow only when both the median and the best round say so: one of them alone
    is often the machine.
    """
    found = []
    for name in results:
        for label in labels:
            if not label.startswith("owndist"):
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


def save(results: Results, versions: dict[str, str], scale: str, part: bool) -> Path:
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
    path.write_text(json.dumps({"about": about, "lines": lines}, indent=1) + "\n")
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

    lines = chosen(arguments.lines, list(LINES), "line")
    labels = chosen(arguments.only, list(COMPETITORS), "competitor")
    if arguments.check:
        labels = [label for label in labels if label.startswith(("owndist-", "ppe-"))]
    versions = installed(labels)
    labels = [label for label in labels if label in versions]
    scale = "quick" if arguments.quick or arguments.check else "full"

    results = measure(lines, labels, scale, arguments.rounds)
    path = save(results, versions, scale, bool(arguments.lines or arguments.only))
    print(markdown(results, labels))
    print(
        f"\nPython {platform.python_version()}, {os.cpu_count()} cores, {WORKERS} workers; "
        f"median of {arguments.rounds} rounds; in brackets: how many times better than "
        "ProcessPoolExecutor (ppe) under the same start method."
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
