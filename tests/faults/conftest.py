"""Fixtures: executors, gates and bells, and scripts whose end is watched from outside."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.laws.conftest import bell, diary, gate, make_pool, new_gate, pool, signals, single
from tests.laws.helpers import PATIENCE_S, has_ended, segments_of

__all__ = ["bell", "diary", "gate", "make_pool", "new_gate", "pool", "signals", "single"]

ROOT = str(Path(__file__).resolve().parents[2])


class Script:
    """A program with an executor, in a session and a process group of its own.

    It prints lines of `KEY value`; the line `ready` says that it is where the test wants it.
    """

    def __init__(self, folder: Path, text: str, prefix: tuple[str, ...] = ()) -> None:
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        path = folder / "script.py"
        path.write_text(text)
        self.errors = folder / "stderr"
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, str(path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "PYTHONPATH": ROOT, "TMPDIR": str(self.temporary)},
                start_new_session=True,
                preexec_fn=_as_from_a_terminal,
            )
        self.said: dict[str, str] = {}
        self.family: list[psutil.Process] = []

    def wait_until_ready(self) -> None:
        """Read what it says until it is ready, and note all its processes."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            key, _, value = line.strip().partition(" ")
            self.said[key] = value
            if key == "ready":
                break
        else:
            pytest.fail(f"the script ended early:\n{self.errors.read_text()}")
        self.family = psutil.Process(self.process.pid).children(recursive=True)
        self.session = self._session()

    def _session(self) -> str:
        """The name in its segments, as the maps of its processes show it."""
        for process in [psutil.Process(self.process.pid), *self.family]:
            maps = Path(f"/proc/{process.pid}/maps").read_text()
            found = re.search(r"/dev/shm/od-([a-z0-9]+)-", maps)
            if found:
                return found[1]
        pytest.fail("the script has nothing mapped, so its session is not known")

    def go_on(self) -> None:
        """Let it read a line of its input."""
        assert self.process.stdin is not None
        self.process.stdin.write("go on\n")
        self.process.stdin.flush()

    def descendants_left(self) -> list[psutil.Process]:
        """Those of its workers and helpers that have not ended."""
        return [process for process in self.family if not has_ended(process.pid)]

    def files_left(self) -> list[str]:
        """Segments, and whatever is in its temporary folder."""
        left = segments_of(self.session)
        return left + sorted(str(path) for path in self.temporary.rglob("*"))

    def seconds_until_gone(self) -> tuple[float, float]:
        """How long it takes until no process is left, and no segment or file."""
        began = time.monotonic()
        processes = self._until_empty(self.descendants_left, began)
        return processes, self._until_empty(self.files_left, began)

    def seconds_until_no_process(self) -> float:
        """How long it takes until no process is left."""
        return self._until_empty(self.descendants_left, time.monotonic())

    def _until_empty(self, look: Callable[[], list[Any]], began: float) -> float:
        while found := look():
            if time.monotonic() - began > PATIENCE_S:
                pytest.fail(f"still there after {PATIENCE_S} s: {found}")
            time.sleep(0.005)  # nothing tells of it
        return time.monotonic() - began

    def end(self) -> None:
        """Kill what is left of it."""
        for process in self.descendants_left():
            process.kill()
        if self.process.poll() is None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it has just ended
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


StartScript = Callable[..., Script]


@pytest.fixture
def start_script(tmp_path: Path) -> Iterator[StartScript]:
    """Starts scripts; none outlives the test."""
    scripts: list[Script] = []

    def start(text: str, prefix: tuple[str, ...] = ()) -> Script:
        folder = tmp_path / f"script-{len(scripts)}"
        folder.mkdir()
        scripts.append(made := Script(folder, text, prefix))
        made.wait_until_ready()
        return made

    yield start
    for script in scripts:
        script.end()


def _as_from_a_terminal() -> None:
    """The tests may run in the background of a shell, or under nohup, with these ignored."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
