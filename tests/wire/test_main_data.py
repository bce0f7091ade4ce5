"""The data that a script keeps in globals, with real executors."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
START = """
import multiprocessing, sys, threading
from owndist import OwnershipExecutor

def start(workers=1, **options):
    context = multiprocessing.get_context(sys.argv[1])
    return OwnershipExecutor(workers, mp_context=context, **options)
"""
Run = Callable[[str], None]


@pytest.fixture(params=["fork", "spawn"])
def script(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    """Run a script that makes an executor with `start()`; it fails where an assertion does."""

    def run(source: str) -> None:
        file = tmp_path / "script.py"
        file.write_text(START + textwrap.dedent(source))
        done = subprocess.run(
            [sys.executable, str(file), request.param],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout

    return run


def test_what_an_initializer_put_into_a_container_stays(script: Run) -> None:
    script("""
        class Config:
            def __init__(self):
                self.mode = None

        STATE, CONFIG, ROWS = {}, Config(), [{"a": 1}]

        def init():
            STATE["m"] = 42
            CONFIG.mode = "fast"
            ROWS.append(2)

        def task():
            return STATE.get("m"), CONFIG.mode, len(ROWS)

        with start(initializer=init) as pool:
            for _ in range(3):
                assert pool.submit(task).result() == (42, "fast", 2)
                seen = pool.submit(lambda: (STATE.get("m"), CONFIG.mode, len(ROWS))).result()
                assert seen == (42, "fast", 2), seen
            assert pool.submit(lambda: STATE.update(m=43)).result() is None
            assert pool.submit(task).result() == (43, "fast", 2)
            STATE["new"] = 1
            for _ in range(2):
                seen = pool.submit(lambda: (dict(STATE), CONFIG.mode, len(ROWS))).result()
                assert seen == ({"new": 1}, "fast", 2), seen
            assert pool.submit(lambda: STATE.update(m=44)).result() is None
            assert pool.submit(lambda: dict(STATE)).result() == {"new": 1, "m": 44}
            ROWS[0]["a"] = 5
            assert pool.submit(lambda: ROWS).result() == [{"a": 5}]
    """)


def test_large_data_is_sent_when_its_name_is_bound_anew(script: Run) -> None:
    script("""
        import pickle

        class Point:
            def __init__(self, x):
                self.x = x

        pickled = 0

        class Heavy:
            def __getstate__(self):
                global pickled
                pickled += 1
                return vars(self)

        HEAVY = Heavy()
        HEAVY.data = bytes(100_000)
        TABLE = {i: str(i) for i in range(20_000)}
        POINTS = [Point(i) for i in range(10_000)]

        def look(k):
            return TABLE[k], POINTS[k].x, type(POINTS[k]) is Point, HEAVY.data[0]

        with start() as pool:
            other = lambda k: look(k)
            for _ in range(5):
                assert pool.submit(look, 7).result() == ("7", 7, True, 0)
                assert pool.submit(other, 8).result() == ("8", 8, True, 0)
            before = pickled
            for _ in range(20):
                pool.submit(other, 8).result()
            assert pickled == before, (pickled, before)
            for n in range(300):  # definitions that nobody needs are forgotten meanwhile
                pool.submit(lambda n=n: n).result()
            look2 = lambda k: (TABLE[k], POINTS[k].x)
            assert pool.submit(look2, 7).result() == ("7", 7)
            TABLE[7], POINTS[7].x = "changed", "changed"
            for _ in range(3):
                assert pool.submit(look2, 7).result() == ("7", 7)
            TABLE = dict(TABLE)
            POINTS = list(POINTS)
            for _ in range(3):
                assert pool.submit(look2, 7).result() == ("changed", "changed")
    """)


def test_an_instance_is_the_same_as_a_global_and_elsewhere(script: Run) -> None:
    script("""
        class Config:
            pass

        MISSING = object()
        CONFIG = Config()
        Config.default = CONFIG

        def get(d, k, default=MISSING, *, config=CONFIG):
            value = d.get(k, default)
            return value is MISSING, config is CONFIG, Config.default is CONFIG

        def closure():
            missing = MISSING
            return lambda: missing is MISSING

        class Uses:
            missing = MISSING
            def same(self):
                return self.missing is MISSING

        def is_the_global(value):
            return value is CONFIG

        with start() as pool:
            for _ in range(4):
                assert pool.submit(get, {}, 1).result() == (True, True, True)
                inner = lambda: get({}, 1)
                assert pool.submit(inner).result() == (True, True, True)
                assert pool.submit(closure()).result() is True
                assert pool.submit(lambda m=MISSING: m is MISSING).result() is True
                assert pool.submit(Uses().same).result() is True
                assert pool.submit(is_the_global, CONFIG).result() is False  # a copy
            MISSING = object()
            for _ in range(4):
                assert pool.submit(get, {}, 1).result() == (False, True, True)
                assert pool.submit(lambda m=MISSING: m is MISSING).result() is True
    """)


def test_locks_are_fresh_ones_in_the_workers(script: Run) -> None:
    script("""
        LOCK, AGAIN, EVENT = threading.Lock(), threading.RLock(), threading.Event()
        CONDITION, LOCAL = threading.Condition(), threading.local()
        SEMAPHORE, BOUNDED = threading.Semaphore(3), threading.BoundedSemaphore(2)
        LOCAL.value = 1
        total = 0

        def work():
            global total
            with LOCK, AGAIN, AGAIN, CONDITION, SEMAPHORE, BOUNDED:
                total += 1
            assert hasattr(LOCAL, "value") == (total > 1 or sys.argv[1:] == ["fork"])
            LOCAL.value = 2
            EVENT.set()
            return total

        with start() as pool:
            assert [pool.submit(work).result() for _ in range(3)] == [1, 2, 3]
            LOCK.acquire()
            assert pool.submit(lambda: LOCK.locked()).result() is False
            LOCK.release()
    """)


def test_what_cannot_be_pickled_may_be_made_by_the_initializer(script: Run) -> None:
    script("""
        connection = (n for n in [])  # a generator cannot be pickled

        def connect():
            global connection
            connection = "a connection"

        def use():
            return connection

        with start(initializer=connect) as pool:
            assert pool.submit(connect).result() is None
            for _ in range(3):
                assert pool.submit(use).result() == "a connection"
                assert pool.submit(lambda: connection).result() == "a connection"
    """)
