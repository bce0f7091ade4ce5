"""One round: a line on a competitor, or a bare limit, in a fresh interpreter."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_S = 300  # for one sample: the slowest of them takes about 100 s when it is alone
CHILD = "from benchmarks.lines import main; main()"


class Round(NamedTuple):
    """What one interpreter has measured, of one operation.

    Attributes:
        figure: seconds, or what the line counts.
        cpu_s: seconds on a core, of all processes together.
    """

    figure: float
    cpu_s: float


@dataclass
class Measured:
    """One competitor on one line: a figure per round. Less is better.

    Attributes:
        figures: seconds per operation, or what the line counts.
        failures: what rounds without a figure have printed.
        cpu_s: CPU seconds per operation.
        why_not: why there is no figure, if the competitor cannot do it.
    """

    figures: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    why_not: str | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.figures)

    @property
    def best(self) -> float:
        return min(self.figures)

    def add(self, what: str, *arguments: str, takes: int = 1, **place: object) -> None:
        """Take a round: the median of so many interpreters. One that fails is told and kept."""
        try:
            rounds = [take(*arguments, **place) for _ in range(takes)]  # type: ignore[arg-type]
        except RuntimeError as error:
            self.failures.append(str(error))
            print(f"\n{what} failed:\n{error}", file=sys.stderr)
        else:
            self.figures.append(statistics.median(one.figure for one in rounds))
            self.cpu_s.append(statistics.median(one.cpu_s for one in rounds))


def take(*arguments: str, environment: dict[str, str], root: Path = ROOT) -> Round:
    """One round, in a fresh interpreter.

    Args:
        arguments: of `benchmarks.lines.main`.
        environment: of the interpreter.
        root: where `owndist` and `benchmarks` are imported from.

    Raises:
        RuntimeError: it failed or took too long; nothing that it started is left.
    """
    with subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-c", CHILD, *arguments],
        cwd=root,
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
    return Round(**json.loads(printed.splitlines()[-1]))


def end_on_sigterm() -> None:
    """Have SIGTERM end this process as Ctrl-C does: nothing that it started or made is left."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))


def with_bytecode(folder: str) -> dict[str, str]:
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
