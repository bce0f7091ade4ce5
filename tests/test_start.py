"""An executor starts with its first task, and late: until then it is cheap to have one."""

from __future__ import annotations

import gc
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from owndist import OwnershipExecutor

FORK = multiprocessing.get_context("fork")
PATIENCE_S = 60


def test_an_executor_that_is_not_used_loads_little():
    code = (
        "import sys; from owndist import OwnershipExecutor\n"
        "with OwnershipExecutor(2):\n"
        "    print('owndist.core.machine' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)
    assert done.stdout == b"False\n"


@pytest.mark.parametrize(
    "use",
    [
        lambda executor: executor.submit(int),
        lambda executor: executor.put(1),
        lambda executor: executor.map(int, range(100)),
        lambda executor: executor.options(name="x").submit(int),
    ],
)
@pytest.mark.parametrize("asked_before", [False, True])
def test_in_a_forked_child_it_is_of_no_use_even_before_it_has_started(
    use: Callable[[OwnershipExecutor], object], asked_before: bool
) -> None:
    """The lock that guards its start may be held by a thread that the child does not have."""
    with OwnershipExecutor(1, FORK) as executor:
        if asked_before:
            assert "no workers yet" in repr(executor)
        executor._making.acquire()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                use(executor)
            except RuntimeError as error:
                executor.shutdown()
                status = 0 if "make another one here" in str(error) else 2
            finally:
                os._exit(status)
        executor._making.release()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert executor.submit(int).result(PATIENCE_S) == 0


@pytest.mark.parametrize("name", ["concurrent.futures.process", "owndist.errors", "tempfile"])
def test_a_worker_loads_nothing_dear(name: str) -> None:
    """What is loaded in a fresh interpreter before its first task is what that task waits for."""
    with OwnershipExecutor(1, multiprocessing.get_context("spawn")) as executor:
        loaded = executor.submit(eval, f"{name!r} in __import__('sys').modules")
        assert loaded.result(PATIENCE_S) is False


def pages_copied_by_a_collection() -> tuple[int, int]:
    """KiB that became this process's own, and KiB that it still shares."""

    def figure(name: str) -> int:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith(name))

    figure("Private_Dirty:")  # what this takes itself is there now
    before = figure("Private_Dirty:")
    gc.collect()
    return figure("Private_Dirty:") - before, figure("Shared_Dirty:")


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux tells")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_the_collector_of_a_worker_leaves_what_it_inherited(method: str) -> None:
    """It would write to every object, so that every worker had all of the driver's pages twice."""
    with OwnershipExecutor(1, multiprocessing.get_context(method)) as executor:
        copied, shared = executor.submit(pages_copied_by_a_collection).result(PATIENCE_S)
    assert shared > 1000
    assert copied < shared / 10
