"""Workers that take more memory than they may (Law 47)."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest

from owndist.errors import WorkerDied

from .conftest import MakePool

MIB = 1 << 20


def _hog(log: Path, times: int) -> int:
    """Takes 200 MiB and keeps it for ever, but not after so many runs."""
    with open(log, "a") as file:
        file.write("x")
    runs = len(log.read_text())
    if runs <= times:
        data = bytearray(200 * MIB)
        threading.Event().wait()
        del data
    return runs


def test_a_task_that_takes_too_much_is_ended_and_run_again(
    make_pool: MakePool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It takes less the second time; one line says what was done."""
    pool = make_pool(max_workers=2, worker_memory_bytes=150 * MIB)
    with caplog.at_level(logging.WARNING, "owndist"):
        assert pool.submit(_hog, tmp_path / "log", 1).result() == 2
    lines = [r.getMessage() for r in caplog.records if "worker_memory_bytes" in r.getMessage()]
    assert len(lines) == 1 and "'_hog'" in lines[0]


def test_a_task_that_always_takes_too_much_fails_in_the_end(
    make_pool: MakePool, tmp_path: Path
) -> None:
    """Its retries are used up; the pool goes on."""
    pool = make_pool(max_workers=2, worker_memory_bytes=150 * MIB)
    hog = pool.options(max_retries=1).submit(_hog, tmp_path / "log", 1 << 30)
    with pytest.raises(WorkerDied):
        hog.result()
    assert len((tmp_path / "log").read_text()) == 2
    assert pool.submit(abs, -1).result() == 1


def test_the_limit_is_checked(make_pool: MakePool) -> None:
    with pytest.raises(ValueError, match="worker_memory_bytes must be 1 or more"):
        make_pool(worker_memory_bytes=0)
