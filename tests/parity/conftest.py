"""Fixtures: the executor classes under comparison, and signals between driver and tasks."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# Seconds that nothing may take. A test that works never waits for it.
PATIENCE_S = 60


@dataclass(frozen=True)
class Flavour:
    """One executor class under one start method."""

    library: str  # "stdlib" or "owndist"
    method: str

    def __str__(self) -> str:
        return f"{self.library}-{self.method}"

    @property
    def cls(self) -> type[ProcessPoolExecutor]:
        if self.library == "stdlib":
            return ProcessPoolExecutor
        from owndist import OwnershipExecutor

        return OwnershipExecutor

    @property
    def is_ours(self) -> bool:
        return self.library == "owndist"

    @property
    def context(self) -> Any:
        return multiprocessing.get_context(self.method)

    def make(self, max_workers: int | None = 2, **options: Any) -> ProcessPoolExecutor:
        return self.cls(max_workers, mp_context=self.context, **options)


FORK = [Flavour("stdlib", "fork"), Flavour("owndist", "fork")]
SPAWNING = [Flavour(lib, m) for m in ("spawn", "forkserver") for lib in ("stdlib", "owndist")]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test on both classes: under fork, and if marked so under every start method."""
    if "flavour" in metafunc.fixturenames:
        everywhere = metafunc.definition.get_closest_marker("every_start_method")
        flavours = FORK + (SPAWNING if everywhere else [])
        metafunc.parametrize("flavour", flavours, ids=str)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "every_start_method: parity under fork, spawn, forkserver")


class Gate:
    """Holds back tasks (`tasks.pass_gate`) until it is opened. Works under any start method."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        os.mkfifo(path)
        self._fd = os.open(path, os.O_RDWR)

    def open(self) -> None:
        os.write(self._fd, b".")

    def close_for_good(self) -> None:
        """Drop the descriptor; only when no task waits any more."""
        os.close(self._fd)


class Bell:
    """Tells the driver that a task (`tasks.ring`) has come to some point."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        os.mkfifo(path)
        self._fd = os.open(path, os.O_RDWR)

    def wait(self, times: int = 1) -> None:
        """Wait until it was rung so many times (each ring counts once)."""
        for _ in range(times):
            readable, _, _ = select.select([self._fd], [], [], PATIENCE_S)
            assert readable, "the bell was not rung"
            os.read(self._fd, 1)

    def was_rung(self) -> bool:
        readable, _, _ = select.select([self._fd], [], [], 0)
        return bool(readable)

    def close_for_good(self) -> None:
        os.close(self._fd)


@pytest.fixture
def signals(tmp_path: Path) -> Iterator[list[Gate | Bell]]:
    """The gates and bells of a test; closed after its executors are gone."""
    made: list[Gate | Bell] = []
    yield made
    for signal_ in made:
        signal_.close_for_good()


@pytest.fixture
def new_gate(tmp_path: Path, signals: list[Gate | Bell]) -> Callable[[], Gate]:
    """Makes closed gates."""

    def make() -> Gate:
        signals.append(made := Gate(tmp_path / f"gate-{len(signals)}"))
        return made

    return make


@pytest.fixture
def gate(new_gate: Callable[[], Gate]) -> Gate:
    """One closed gate."""
    return new_gate()


@pytest.fixture
def bell(tmp_path: Path, signals: list[Gate | Bell]) -> Bell:
    """One bell."""
    signals.append(made := Bell(tmp_path / f"bell-{len(signals)}"))
    return made


MakePool = Callable[..., ProcessPoolExecutor]


@pytest.fixture
def make_pool(flavour: Flavour, signals: list[Gate | Bell]) -> Iterator[MakePool]:
    """Makes executors; at the end every gate is opened, so that shutting down cannot hang."""
    pools: list[ProcessPoolExecutor] = []

    def make(max_workers: int | None = 2, **options: Any) -> ProcessPoolExecutor:
        pools.append(made := flavour.make(max_workers, **options))
        return made

    yield make
    for gate in signals:
        if isinstance(gate, Gate):
            gate.open()
    for made in pools:
        made.shutdown()
    pools.clear()  # pytest holds `make` a little longer, and the leak guard looks before that


@pytest.fixture
def pool(make_pool: MakePool) -> ProcessPoolExecutor:
    """An executor with two workers."""
    return make_pool(2)


@pytest.fixture
def single(make_pool: MakePool) -> ProcessPoolExecutor:
    """An executor with one worker."""
    return make_pool(1)


@pytest.fixture
def diary(tmp_path: Path) -> Path:
    """A file into which tasks write that they ran (`tasks.write_down`)."""
    path = tmp_path / "diary"
    path.touch()
    return path


ScriptRunner = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run_script(tmp_path: Path) -> ScriptRunner:
    """Runs a script in an interpreter of its own; one that does not end fails the test.

    Its text may use Executor, START_METHOD and make(max_workers, ...).
    """

    def run(
        flavour: Flavour, text: str, *, stdin: str = "", timeout_s: float = PATIENCE_S
    ) -> subprocess.CompletedProcess[str]:
        path = tmp_path / "script.py"
        source = (
            f"from {flavour.cls.__module__} import {flavour.cls.__name__} as Executor\n"
            f"import multiprocessing\n"
            f"START_METHOD = {flavour.method!r}\n"
            f"def make(*args, **kwargs):\n"
            f"    context = multiprocessing.get_context(START_METHOD)\n"
            f"    return Executor(*args, mp_context=context, **kwargs)\n"
        )
        path.write_text(source + text)
        process = subprocess.Popen(
            [sys.executable, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=_environment(),
            start_new_session=True,
        )
        try:
            out, err = process.communicate(stdin, timeout=timeout_s)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)  # its workers too
            out, err = process.communicate()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            pytest.fail(f"the script hangs; so far it said:\n{out}\n{err}")
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return run


def _environment() -> dict[str, str]:
    """Make owndist importable for a script, installed or not, and leave its output buffered."""
    spec = importlib.util.find_spec("owndist")
    roots = [str(Path(spec.origin).parent.parent)] if spec and spec.origin else []
    roots += [path for path in [os.environ.get("PYTHONPATH")] if path]
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return {**kept, "PYTHONPATH": os.pathsep.join(roots)}
