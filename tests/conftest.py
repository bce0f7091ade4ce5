"""What every test gets without asking: the leak guard and a random seed."""

from __future__ import annotations

import os
import random
import zlib

import pytest

from tests.leaks import leak_guard

__all__ = ["leak_guard", "seed"]

pytest_plugins = ["pytester"]


@pytest.fixture(autouse=True)
def seed(request: pytest.FixtureRequest) -> int:
    """A fresh random seed, or the one in `OWNDIST_SEED`; a failing test shows it.

    With `CI` set each test has one of its own that stays, so that a run there judges the change
    and not the draw, as in Hypothesis's profile for CI. The module-level generator of `random`
    is set to it too.
    """
    given = os.environ.get("OWNDIST_SEED")
    if given:
        value = int(given)
    elif os.environ.get("CI"):
        value = zlib.crc32(request.node.nodeid.encode())
    else:
        value = random.SystemRandom().getrandbits(32)
    random.seed(value)
    request.node.add_report_section("setup", "seed", f"OWNDIST_SEED={value} repeats this run")
    return value
