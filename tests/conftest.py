"""What every test gets without asking: the leak guard and a random seed."""

from __future__ import annotations

import os
import random

import pytest

from tests.leaks import leak_guard

__all__ = ["leak_guard", "seed"]

pytest_plugins = ["pytester"]


@pytest.fixture(autouse=True)
def seed(request: pytest.FixtureRequest) -> int:
    """A fresh random seed, or the one in `OWNDIST_SEED`; a failing test shows it.

    The module-level generator of `random` is set to it too.
    """
    given = os.environ.get("OWNDIST_SEED")
    value = int(given) if given else random.SystemRandom().getrandbits(32)
    random.seed(value)
    request.node.add_report_section("setup", "seed", f"OWNDIST_SEED={value} repeats this run")
    return value
