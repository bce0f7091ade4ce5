"""Laws 13 to 16 and 22: how long values live."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest

from owndist import OwnershipExecutor
from tests.parity.conftest import Bell, Gate

from . import tasks
from .conftest import MakePool
from .helpers import PATIENCE_S, SLACK, at_rest, entries, eventually, kill, store_bytes

LARGE = tasks.LARGE


# Law 13


def test_what_is_refused_is_not_stored(make_pool: MakePool) -> None:
    """Law 13: a future of another executor, beside a large value."""
    pool, other = make_pool(1), make_pool(1)
    foreign = other.submit(abs, -1)
    assert len(pool.put(tasks.make_bytes(1)).result(PATIENCE_S))  # the store is there
    eventually(lambda: pool._driver._store.live_bytes == 0, "it is freed")  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="another executor"):
        pool.put([foreign, tasks.make_bytes(1)])
    failed = pool.submit(lambda data: foreign.result(), tasks.make_bytes(1))
    assert "another executor" in str(failed.exception(PATIENCE_S))
    assert pool._driver._store.live_bytes == 0  # type: ignore[attr-defined]
    assert pool.submit(abs, foreign).result(PATIENCE_S) == 1


def test_a_value_is_released_soon_after_its_last_handle(pool: OwnershipExecutor) -> None:
    """Law 13: within 100 ms, ten times that on a busy machine."""
    for make in (lambda: pool.submit(tasks.make_bytes, 1), lambda: pool.put(tasks.make_bytes(1))):
        future = make()
        assert future.exception(PATIENCE_S) is None
        assert store_bytes(pool) >= LARGE
        del future
        began = time.monotonic()
        eventually(lambda: store_bytes(pool) == 0, "the value is kept")
        assert time.monotonic() - began < 0.1 * SLACK


def test_a_value_nobody_waits_for_is_released_when_it_comes(
    pool: OwnershipExecutor, gate: Gate
) -> None:
    """Law 13."""
    future = pool.submit(lambda path: (tasks.pass_gate(path), tasks.make_bytes(1))[1], gate.path)
    del future
    gate.open()
    eventually(lambda: pool.statistics().tasks_finished == 1, "the task does not end")
    at_rest(pool, 0)


def test_a_pending_task_keeps_its_arguments(
    pool: OwnershipExecutor, gate: Gate, bell: Bell
) -> None:
    """Laws 12 and 13: also while it only waits for another argument, and while it runs."""
    large = pool.submit(tasks.make_bytes, 1)
    slow = pool.submit(tasks.ring_and_pass, bell.path, gate.path)
    sum_ = pool.submit(lambda array, _: tasks.total(array), large, slow)
    assert large.exception(PATIENCE_S) is None
    del large
    bell.wait()
    pool.submit(tasks.make_bytes, 9).result(PATIENCE_S)  # would take the place of what is freed
    assert store_bytes(pool) >= LARGE
    gate.open()
    assert sum_.result(PATIENCE_S) == LARGE
    del slow
    at_rest(pool, 1)
    assert store_bytes(pool) == 0


def test_a_value_with_a_future_inside_keeps_what_that_stands_for(pool: OwnershipExecutor) -> None:
    """Laws 12, 13 and 17: until the outer one goes."""
    inner = pool.submit(tasks.make_bytes, 1)
    outer = pool.submit(tasks.echo, tasks.Holder(inner))
    assert outer.exception(PATIENCE_S) is None
    del inner
    eventually(lambda: entries(pool) == 2, "the inner object is not kept once")
    pool.submit(tasks.make_bytes, 9).result(PATIENCE_S)
    assert tasks.total(outer.result().future.result(PATIENCE_S)) == LARGE
    del outer
    at_rest(pool, 0)


# Law 14


def test_the_table_holds_what_is_held_and_nothing_else(pool: OwnershipExecutor, seed: int) -> None:
    """Law 14: after any mix of tasks, failures, nests and drops."""
    chance = random.Random(seed)
    held: list[Any] = []
    for number in range(400):
        given = chance.sample(held, min(len(held), chance.randrange(3)))
        match chance.randrange(6):
            case 0:
                held.append(pool.put(tasks.make_bytes(number % 256, chance.choice([10, LARGE]))))
            case 1:
                held.append(pool.submit(tasks.make_bytes, 1, chance.choice([10, 200_000])))
            case 2:
                held.append(pool.submit(tasks.capture, given))
            case 3:
                held.append(pool.submit(tasks.capture, *[pool.shared(f) for f in given]))
            case 4:
                held.append(pool.submit(tasks.fail, ValueError, "no"))
            case 5:
                held.append(pool.submit(tasks.echo, number))
                held[-1].cancel()
        chance.shuffle(held)
        while len(held) > 40:
            held.pop()
    assert wait(held, PATIENCE_S).not_done == set()
    # What futures inside of values stand for is kept beside what is held.
    chance.shuffle(held)
    while held:
        held.pop()
        assert entries(pool) >= len(held)
    del given
    at_rest(pool, 0)


def test_the_table_is_exact_while_handles_live(pool: OwnershipExecutor) -> None:
    """Law 14."""
    futures = [pool.submit(tasks.echo, n) for n in range(100)]
    assert [future.result(PATIENCE_S) for future in futures] == list(range(100))
    at_rest(pool, 100)
    del futures[::2]
    at_rest(pool, 50)
    futures.clear()
    at_rest(pool, 0)


# Law 15


def test_a_view_keeps_its_bytes_when_every_handle_is_gone(pool: OwnershipExecutor) -> None:
    """Law 15: in the driver, while others use the memory around it."""
    views = []
    for fill in (1, 2, 3):
        future = pool.submit(tasks.make_bytes, fill)
        views.append(future.result(PATIENCE_S)[10:-10])
        del future
    for _ in range(30):
        pool.submit(tasks.make_bytes, 255).result(PATIENCE_S)
        del views[3:]
    assert [(view[0], view[-1], len(set(view.tolist()))) for view in views] == [
        (1, 1, 1),
        (2, 2, 1),
        (3, 3, 1),
    ]
    assert entries(pool) == 0
    assert store_bytes(pool) >= 3 * LARGE  # they are what is kept
    views.clear()
    at_rest(pool, 0)


def test_a_view_in_a_worker_keeps_its_bytes(pool: OwnershipExecutor) -> None:
    """Law 15: an argument that the task has put away outlives the task and every handle."""
    pool.submit(tasks.echo, 1).result(PATIENCE_S)
    single = OwnershipExecutor(1)
    with single:
        future = single.submit(tasks.make_bytes, 1)
        pid = single.submit(tasks.keep, "array", future).result(PATIENCE_S)
        del future
        for fill in range(100, 130):
            single.submit(tasks.make_bytes, fill).result(PATIENCE_S)
        assert entries(single) == 0
        kept = single.submit(lambda: (os.getpid(), tasks.total(tasks.read_kept("array"))))
        assert kept.result(PATIENCE_S) == (pid, LARGE)
        del kept
        assert store_bytes(single) >= LARGE
        single.submit(tasks.forget, "array").result(PATIENCE_S)
        at_rest(single, 0)


def test_what_a_worker_kept_can_be_passed_on(single: OwnershipExecutor) -> None:
    """Law 15: its last mapping there ends with the task that returns it."""
    for fill in range(200):
        made = single.submit(tasks.make_bytes, fill)
        single.submit(tasks.keep, "array", made).result(PATIENCE_S)
        del made
        passed_on = single.submit(tasks.give_up, "array")
        assert passed_on.exception(PATIENCE_S) is None
        # These take the place of whatever is freed.
        others = [single.submit(tasks.make_bytes, 255) for _ in range(2)]
        assert [other.exception(PATIENCE_S) for other in others] == [None, None]
        assert tasks.total(passed_on.result()) == fill * LARGE
    del passed_on, others
    at_rest(single, 0)


def test_a_view_in_a_worker_that_died_keeps_nothing(single: OwnershipExecutor) -> None:
    """Laws 13 and 15."""
    pid = single.submit(tasks.keep, "array", single.submit(tasks.make_bytes, 1)).result(PATIENCE_S)
    assert store_bytes(single) >= LARGE
    kill(pid)
    at_rest(single, 0)


def test_a_view_outlives_its_executor(single: OwnershipExecutor) -> None:
    """Law 15."""
    view = single.submit(tasks.make_bytes, 1).result(PATIENCE_S)
    asked_late = single.submit(tasks.make_bytes, 2)
    single.shutdown()
    assert tasks.total(view) == LARGE
    assert tasks.total(asked_late.result()) == 2 * LARGE


# Law 16


def test_copies_of_a_handle_count(pool: OwnershipExecutor, seed: int) -> None:
    """Law 16: in any order of deletes."""
    for _ in range(5):
        first = pool.submit(tasks.make_bytes, 1)
        copies = [first] + [
            pool.submit(tasks.echo, tasks.Holder(first)).result(PATIENCE_S).future for _ in range(4)
        ]
        del first
        random.Random(seed).shuffle(copies)
        while copies:
            assert tasks.total(copies[-1].result(PATIENCE_S)) == LARGE
            copies.pop()
        at_rest(pool, 0)


def test_handles_die_in_any_thread_and_inside_any_allocation(pool: OwnershipExecutor) -> None:
    """Law 16: dropped by six threads and by the collector, while two more submit."""
    errors: list[Any] = []
    unraisable, sys.unraisablehook = sys.unraisablehook, errors.append
    threshold = gc.get_threshold()
    gc.set_threshold(5)
    futures = [pool.submit(tasks.echo, bytes(size)) for size in (1, 200_000) * 300]

    def drop() -> None:
        while True:
            try:
                cycle: list[Any] = [futures.pop()]
            except IndexError:
                return
            cycle.append(cycle)  # only the collector can free it, wherever that runs

    def submit() -> None:
        for number in range(200):
            assert pool.submit(tasks.echo, number).result(PATIENCE_S) == number

    try:
        threads = [threading.Thread(target=t) for t in [drop] * 6 + [submit] * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
    finally:
        gc.set_threshold(*threshold)
        sys.unraisablehook = unraisable
    assert errors == []
    at_rest(pool, 0)


@pytest.mark.parametrize("shut", ["pool.shutdown()", "pool.shutdown(wait=False)", "pass"])
def test_handles_die_quietly_while_the_interpreter_ends(tmp_path: Path, shut: str) -> None:
    """Laws 16 and 31: in cycles, in globals, in threads, with views of shared memory."""
    script = tmp_path / "script.py"
    script.write_text(
        f"""
import threading
import time
import numpy as np
from owndist import OwnershipExecutor

class Node:
    def __del__(self):
        self.future  # dropped while the module is torn down

if __name__ == "__main__":
    pool = OwnershipExecutor(2)
    nodes = []
    for number in range(20):
        node = Node()
        node.me = node
        node.future = pool.submit(np.ones, 20_000 * (number + 1))
        nodes.append(node)
    view = nodes[-1].future.result()
    local = threading.local()
    local.future = pool.submit(int)
    slow = pool.submit(time.sleep, 0.2)
    threading.Thread(target=slow.result, daemon=True).start()
    {shut}
    print("end")
"""
    )
    root = str(Path(__file__).resolve().parents[2])
    ended = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", str(script)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "end\n", "")


# Law 22


def test_a_future_cannot_be_pickled_by_others(pool: OwnershipExecutor) -> None:
    """Law 22: and the error says what to do instead."""
    future = pool.submit(tasks.echo, 1)
    for dump in (pickle.dumps, lambda f: pickle.dumps([{"a": f}], 5), copy.deepcopy):
        with pytest.raises((TypeError, pickle.PicklingError), match=r"submit|argument|result\(\)"):
            dump(future)
    with pytest.raises((TypeError, pickle.PicklingError), match="process that made it"):
        pickle.dumps(pool)
    assert future.result(PATIENCE_S) == 1
