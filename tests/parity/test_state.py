"""What tasks may, and may not, notice of each other: the stdlib and owndist side by side."""

from __future__ import annotations

import functools
import logging
import os
import random
import sys
import threading
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest

from . import tasks
from .conftest import PATIENCE_S, Flavour, Gate, MakePool
from .test_executor import Pool

CALLABLES = {
    "a partial with a list": functools.partial(tasks.append_and_count, []),
    "a bound method": tasks.Counter().up,
    "an object with __call__": tasks.Counter(),
    "a builtin bound to an object": [1, 2, 3].pop,
}


@pytest.mark.every_start_method
@pytest.mark.parametrize("kind", CALLABLES)
def test_every_task_gets_a_copy_of_what_it_calls(make_pool: MakePool, kind: str) -> None:
    """Laws 5 and 8: what one task does to the function's own state, no other one sees."""
    call = CALLABLES[kind]
    argument = (-1,)  # the last one of the list
    pool = make_pool(1)
    first = pool.submit(call, *argument).result(PATIENCE_S)
    assert [pool.submit(call, *argument).result(PATIENCE_S) for _ in range(3)] == [first] * 3
    assert list(pool.map(call, argument * 50)) == [first] * 50


def test_items_of_a_map_that_share_an_argument_do_not_share_it_over_there(pool: Pool) -> None:
    """Laws 5 and 8: each item has its own copy, as in a task of its own."""
    shared: list[int] = []
    assert set(pool.map(tasks.append_and_count, [shared] * 200, range(200))) == {1}


def test_a_value_is_what_it_was_when_its_item_ended(pool: Pool) -> None:
    """Laws 7 and 8: a later item of the same worker may change the object."""
    values = [
        int.from_bytes(value, "little") for value in pool.map(tasks.reuse_a_buffer, range(200))
    ]
    assert values == list(range(200))


def test_items_of_a_map_count_as_tasks_for_max_tasks_per_child(flavour: Flavour) -> None:
    """Law 8."""
    if sys.version_info < (3, 11) and not flavour.is_ours:
        pytest.skip("the stdlib has it since 3.11")
    with flavour.cls(1, max_tasks_per_child=1) as pool:
        assert len(set(pool.map(tasks.pid_of, range(20)))) == 20


def test_a_thread_of_a_task_goes_on_while_the_executor_shuts_down(
    flavour: Flavour, gate: Gate, tmp_path: Path
) -> None:
    """Its work would be lost without a word. It is waited for longer than the patience."""
    path = tmp_path / "file"
    pool = flavour.make(1)
    pool.submit(tasks.write_when_open, gate.path, str(path)).result(PATIENCE_S)
    opener = threading.Timer(6.0, gate.open)
    opener.start()
    pool.shutdown()
    assert path.read_text() == "written"
    opener.join()


def test_two_threads_may_wait_for_futures_in_any_order(pool: Pool, gate: Gate) -> None:
    """Law 8: `wait` locks all its futures, done or not, one after the other."""
    done = [pool.submit(tasks.echo, number) for number in range(100)]
    assert done[-1].result(PATIENCE_S) == 99
    held = [pool.submit(tasks.pass_gate, gate.path) for _ in range(100)]
    rounds = [0, 0]
    enough = threading.Event()

    def look(index: int) -> None:
        draw = random.Random(index)
        while not enough.is_set():
            wait(draw.sample(done, 50) + draw.sample(held, 50), timeout=0)
            rounds[index] += 1
            if min(rounds) > 200:
                enough.set()

    threads = [threading.Thread(target=look, args=(index,), daemon=True) for index in range(2)]
    for thread in threads:
        thread.start()
    assert enough.wait(PATIENCE_S)
    for thread in threads:
        thread.join()
    gate.open()


def test_a_map_in_a_callback_gives_its_results(pool: Pool) -> None:
    """Law 8: the thread that runs callbacks also takes in what the map waits for."""
    got: list[Any] = []
    done = threading.Event()

    def callback(_: object) -> None:
        got.extend(pool.map(tasks.echo, range(100)))
        done.set()

    if type(pool).__name__ != "OwnershipExecutor":
        pytest.skip("the stdlib's executor waits for itself here, for ever")
    pool.submit(tasks.echo, 1).add_done_callback(callback)
    assert done.wait(PATIENCE_S)
    assert got == list(range(100))


def test_a_log_handler_may_look_at_futures(
    make_pool: MakePool, gate: Gate, flavour: Flavour
) -> None:
    """Law 8: handlers hold locks of their own, and a repr asks the executor."""
    if not flavour.is_ours:
        pytest.skip("the stdlib's executor breaks when a worker dies")
    pool: Any = make_pool(2)
    held = pool.submit(tasks.pass_gate, gate.path)
    logger = logging.getLogger("owndist")
    lock = threading.RLock()
    seen: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            with lock:
                seen.append(f"{record.getMessage()} {held!r}")

    handler = Handler()
    logger.addHandler(handler)
    try:
        dying = pool.options(max_retries=20).submit(os._exit, 1)
        while not dying.done():
            with lock:
                repr(held)
        assert dying.exception() is not None
    finally:
        logger.removeHandler(handler)
    assert len(seen) >= 20
    gate.open()
