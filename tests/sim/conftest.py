"""Nothing here starts a process or opens a file: no need to look for leaks after each test."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def leak_guard() -> None:
    """In the place of the one that looks at processes, segments and descriptors."""
