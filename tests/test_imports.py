"""Importing owndist is cheap and has no effects."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
FORMS = ["import owndist", "from owndist import OwnershipExecutor"]

# Each is loaded when it is first needed, or by the user; numpy alone takes longer than all we do.
TOO_DEAR = {"numpy", "cloudpickle", "psutil", "asyncio", "ctypes", "ssl"}

PROBE = """
import json, os, signal, sys, threading, time
before = set(sys.modules)
def state():
    proc = os.path.isdir("/proc/self/fd")
    return {
        "threads": len(os.listdir("/proc/self/task") if proc else threading.enumerate()),
        "descriptors": sorted(os.listdir("/proc/self/fd")) if proc else [],
        "environment": dict(os.environ),
        "handlers": [str(signal.getsignal(number)) for number in sorted(signal.valid_signals())],
        "directory": sorted(os.listdir(".")),
    }
at_first = state()
begin = time.process_time()
exec(sys.argv[1])
cost_s = time.process_time() - begin
print(json.dumps({
    "cost_s": cost_s,
    "loaded": sorted(set(sys.modules) - before),
    "at_first": at_first,
    "afterwards": state(),
}))
"""


@pytest.fixture(scope="module")
def bytecode(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place for compiled files, which the environment may have switched off elsewhere."""
    return tmp_path_factory.mktemp("bytecode")


@pytest.fixture
def probe(tmp_path: Path, bytecode: Path) -> Callable[[str], dict[str, Any]]:
    """Runs one import in a fresh interpreter, and tells what it cost and changed."""

    def probe(statement: str) -> dict[str, Any]:
        changes = {"PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": str(bytecode)}
        changes["PYTHONDONTWRITEBYTECODE"] = ""
        done = subprocess.run(
            [sys.executable, "-c", PROBE, statement],
            cwd=tmp_path,
            env=os.environ | changes,
            stdout=subprocess.PIPE,
            check=True,
        )
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    return probe


@pytest.mark.parametrize("statement", FORMS)
def test_import_loads_nothing_dear(statement, probe):
    loaded = probe(statement)["loaded"]
    assert TOO_DEAR.isdisjoint(name.split(".")[0] for name in loaded)


@pytest.mark.parametrize("statement", FORMS)
def test_import_changes_nothing(statement, probe):
    """Law 64: no thread, no descriptor, no file, no signal handler, no environment variable."""
    result = probe(statement)
    assert result["afterwards"] == result["at_first"]


@pytest.mark.parametrize("statement", FORMS)
def test_import_costs_little_more_than_the_stock_executor(statement, probe):
    """At most 1.6 times its processor time, by the cheapest of runs that take turns.

    Where the stock executor takes 17 ms that is 10 ms more. The cheapest, because other programs
    on the machine can only add to what an import costs.
    """
    stock = "from concurrent.futures import ProcessPoolExecutor"
    probe(statement), probe(stock)  # compiles what was not compiled yet
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(6):  # on a busy machine more runs tell more
        for _ in range(5):
            ours.append(probe(statement)["cost_s"])
            theirs.append(probe(stock)["cost_s"])
        ratio = min(ours) / min(theirs)
        if ratio <= 1.6:
            return
    pytest.fail(f"importing owndist costs {ratio:.2f} times what {stock!r} costs")
