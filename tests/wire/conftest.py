"""Fixtures for scripts that run as `__main__` with real workers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from .workbench import run_script

Run = Callable[[str], str]


@pytest.fixture(params=["forked", "fresh"])
def script(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    """Run a script with workers of either kind; it fails where an assertion of it does."""
    return lambda source: run_script(tmp_path, request.param, source)


@pytest.fixture
def fresh(tmp_path: Path) -> Run:
    return lambda source: run_script(tmp_path, "fresh", source)


@pytest.fixture
def forked(tmp_path: Path) -> Run:
    return lambda source: run_script(tmp_path, "forked", source)
