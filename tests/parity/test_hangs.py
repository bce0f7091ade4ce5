"""Scripts that hang ProcessPoolExecutor on 3.11, 3.12 and 3.13, and must end with ours."""

from __future__ import annotations

import pytest

from .conftest import SPAWNING, Flavour, ScriptRunner

OURS = [Flavour("owndist", "fork")] + [f for f in SPAWNING if f.is_ours]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("ours", OURS, ids=str)


def test_more_tasks_than_the_workers_of_max_tasks_per_child_may_run(
    ours: Flavour, run_script: ScriptRunner
) -> None:
    """gh-115634: the stdlib starts no replacement. It takes spawn here; so do we."""
    ended = run_script(
        ours,
        """
if __name__ == "__main__":
    with Executor(2, max_tasks_per_child=2) as pool:
        print(sum(f.result() for f in [pool.submit(pow, n, 2) for n in range(10)]))
""",
    )
    assert (ended.stdout, ended.stderr, ended.returncode) == ("285\n", "", 0)


def test_shutdown_with_cancel_inside_an_as_completed_loop(
    ours: Flavour, run_script: ScriptRunner
) -> None:
    """gh-136655: the stdlib's waiters are never told that the rest was cancelled."""
    ended = run_script(
        ours,
        """
from concurrent.futures import as_completed
import time

if __name__ == "__main__":
    pool = make(2)
    futures = [pool.submit(time.sleep, 0.01) for _ in range(50)]
    seen = 0
    for future in as_completed(futures):
        seen += 1
        pool.shutdown(wait=False, cancel_futures=True)
    print(seen, all(f.done() for f in futures), any(f.cancelled() for f in futures))
""",
    )
    assert (ended.stdout, ended.stderr, ended.returncode) == ("50 True True\n", "", 0)


def test_lambdas_then_shutdown_with_wait_and_cancel(
    ours: Flavour, run_script: ScriptRunner
) -> None:
    """gh-116685: in the stdlib the lambdas fail to be pickled while the pool goes down."""
    ended = run_script(
        ours,
        """
if __name__ == "__main__":
    pool = make(2)
    futures = [pool.submit(lambda: "ran") for _ in range(10)]
    pool.shutdown(wait=True, cancel_futures=True)
    print(all(f.cancelled() or f.result(0) == "ran" for f in futures))
""",
    )
    assert (ended.stdout, ended.stderr, ended.returncode) == ("True\n", "", 0)
