"""Everything at once: nested tasks, futures that travel, streams and cancelling, while workers are
killed and shared memory is removed."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from owndist import OwnershipExecutor
from tests.laws.conftest import MakePool
from tests.laws.helpers import PATIENCE_S, at_rest, killing, template_of

from .everything import Program

SHM = Path("/dev/shm")

pytestmark = pytest.mark.skipif(not SHM.is_dir(), reason="shared memory cannot be listed here")


@contextmanager
def losing(pool: OwnershipExecutor, seed: int, least: float, most: float) -> Iterator[None]:
    """While in this context, a random segment is removed every `least` to `most` seconds."""
    chance = random.Random(seed)
    done = threading.Event()
    prefix = f"od-{pool._driver._store.session}-"

    def strike() -> None:
        while not done.wait(chance.uniform(least, most)):
            names = [path for path in SHM.glob(f"{prefix}*") if "lock" not in path.name]
            if names:
                chance.choice(sorted(names)).unlink(missing_ok=True)

    thread = threading.Thread(target=strike)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def run(pool: OwnershipExecutor, seed: int, steps: int) -> None:
    template = template_of(pool.submit(os.getpid).result(PATIENCE_S))
    program = Program(pool, seed)
    logging.getLogger("owndist").setLevel(logging.ERROR)  # retries are what this is about
    try:
        with killing(template, seed, 0.03, 0.3), losing(pool, seed, 0.05, 0.5):
            program.run(steps)
    finally:
        logging.getLogger("owndist").setLevel(logging.NOTSET)
    assert program.seen["right"] > steps // 20
    gc.collect()
    at_rest(pool, 0)


@pytest.mark.slow
@pytest.mark.parametrize("store_bytes", [None, 6_000_000], ids=["memory", "disk"])
def test_a_program_that_uses_everything_is_right(
    make_pool: MakePool, seed: int, store_bytes: int | None
) -> None:
    """Laws 14, 17, 29, 33, 39, 46, 49 and 65: right or a typed error, and nothing is left."""
    run(make_pool(2, store_bytes=store_bytes), seed, 800)


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
@pytest.mark.parametrize("number", range(5))
def test_long_programs_that_use_everything_are_right(
    make_pool: MakePool, number: int, method: str
) -> None:
    """The same, longer, under every start method."""
    context = multiprocessing.get_context(method)
    run(
        make_pool(2, mp_context=context, store_bytes=6_000_000 * (number % 2) or None), number, 4000
    )
