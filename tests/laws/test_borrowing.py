"""Laws of borrowing for futures that go to workers as futures, and come back."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from concurrent.futures import Future as AnyFuture
from pathlib import Path
from typing import Any

import pytest

from owndist import OwnershipExecutor
from owndist.errors import ObjectLost
from tests.parity.conftest import Bell, Gate

from . import tasks
from .conftest import MakePool
from .helpers import (
    PATIENCE_S,
    at_rest,
    entries,
    eventually,
    kill,
    live_children,
    segments_of,
    sessions_of,
    template_of,
)

LARGE = tasks.LARGE


def test_a_borrowed_future_is_kept_by_the_worker_that_keeps_it(single: OwnershipExecutor) -> None:
    """Laws 2, 12, 13 and 17: past its task and the driver's handle, until the worker drops it."""
    future = single.submit(tasks.make_bytes, 1)
    single.submit(tasks.keep, "borrowed", single.shared(future)).result(PATIENCE_S)
    del future
    for fill in (7, 8, 9):
        single.submit(tasks.make_bytes, fill).result(PATIENCE_S)
    assert entries(single) == 1
    asked = single.submit(lambda: tasks.total(tasks.ask_kept("borrowed")))
    assert asked.result(PATIENCE_S) == LARGE
    del asked
    single.submit(tasks.forget, "borrowed").result(PATIENCE_S)
    at_rest(single, 0)


def test_a_borrow_of_what_is_still_to_come_ends_too(pool: OwnershipExecutor, gate: Gate) -> None:
    """Laws 2 and 14: nobody ever asks, and everybody has let go when it comes."""
    future = pool.submit(tasks.pass_gate, gate.path, bytes(LARGE))
    pool.submit(tasks.is_future, pool.shared(future)).result(PATIENCE_S)
    pool.submit(tasks.is_future, tasks.Holder(future)).result(PATIENCE_S)
    del future
    assert entries(pool) == 1
    gate.open()
    at_rest(pool, 0)


def test_a_dead_borrowers_references_are_dropped(single: OwnershipExecutor) -> None:
    """Laws 13, 14 and 21: its owner stops keeping what only it kept."""
    futures = [single.submit(tasks.make_bytes, fill) for fill in range(5)]
    kept = [tasks.Holder(future) for future in futures]
    pid = single.submit(tasks.keep, "borrowed", kept).result(PATIENCE_S)
    del futures, kept
    assert entries(single) == 5
    kill(pid)
    at_rest(single, 0)
    assert single.submit(tasks.add, 1, 2).result(PATIENCE_S) == 3


def test_a_borrowed_future_comes_back_as_the_owners(pool: OwnershipExecutor) -> None:
    """Laws 2, 14, 17 and 23: returned as it came, and from within a value."""
    future = pool.submit(tasks.make_bytes, 1)
    back = pool.submit(tasks.echo, pool.shared(future)).result(PATIENCE_S)
    held = pool.submit(tasks.echo, tasks.Holder([future])).result(PATIENCE_S)
    assert isinstance(back, AnyFuture)
    assert tasks.total(back.result(PATIENCE_S)) == LARGE
    # It is an own future again: a value for other tasks, and counted like any other handle.
    assert pool.submit(tasks.total, back).result(PATIENCE_S) == LARGE
    assert pool.submit(tasks.total, held.future[0]).result(PATIENCE_S) == LARGE
    del future, back
    eventually(lambda: entries(pool) == 1, "the last handle does not count alone")
    assert tasks.total(held.future[0].result(PATIENCE_S)) == LARGE
    del held
    at_rest(pool, 0)


def test_a_borrower_hands_on_what_it_kept(single: OwnershipExecutor) -> None:
    """Laws 2, 14 and 17: kept by one task, returned by another, when the owner had dropped it."""
    future = single.submit(tasks.make_bytes, 1)
    single.submit(tasks.keep, "borrowed", single.shared(future)).result(PATIENCE_S)
    del future
    back = single.submit(tasks.read_kept, "borrowed").result(PATIENCE_S)
    single.submit(tasks.forget, "borrowed").result(PATIENCE_S)
    assert entries(single) == 1
    assert tasks.total(back.result(PATIENCE_S)) == LARGE
    del back
    at_rest(single, 0)


def test_a_nested_value_goes_through_many_hands(pool: OwnershipExecutor) -> None:
    """Laws 12, 14 and 17: wrapped again by task after task; only the outermost is held."""
    inner = pool.submit(tasks.make_bytes, 1)
    for _ in range(20):
        inner = pool.submit(tasks.Holder, pool.shared(inner))
    assert inner.exception(PATIENCE_S) is None
    eventually(lambda: entries(pool) == 21, "a link of the chain is not kept, or kept twice")
    value: Any = inner
    while isinstance(value, AnyFuture):
        value = value.result(PATIENCE_S)
        value = getattr(value, "future", value)
    assert tasks.total(value) == LARGE
    del value, inner
    at_rest(pool, 0)


def test_the_same_reference_by_two_paths_counts_twice(single: OwnershipExecutor) -> None:
    """Laws 14, 16 and 17."""
    future = single.submit(tasks.make_bytes, 1)
    single.submit(tasks.keep, "one", single.shared(future)).result(PATIENCE_S)
    single.submit(tasks.keep, "two", tasks.Holder(future)).result(PATIENCE_S)
    del future
    single.submit(tasks.forget, "one").result(PATIENCE_S)
    single.submit(tasks.make_bytes, 9).result(PATIENCE_S)
    assert entries(single) == 1
    asked = single.submit(lambda: tasks.total(tasks.read_kept("two").future.result()))
    assert asked.result(PATIENCE_S) == LARGE
    del asked
    single.submit(tasks.forget, "two").result(PATIENCE_S)
    at_rest(single, 0)


def test_a_closure_that_borrows_lets_go(pool: OwnershipExecutor) -> None:
    """Laws 2 and 14: when the function is gone in the driver, so is the future that it holds."""

    def ask_by_closure() -> Any:
        future = pool.submit(tasks.make_bytes, 1)
        return pool.submit(lambda: tasks.total(future.result()))

    assert ask_by_closure().result(PATIENCE_S) == LARGE
    at_rest(pool, 0)


def test_a_borrower_sees_the_error_of_what_it_borrowed(pool: OwnershipExecutor) -> None:
    """Law 46."""
    bad = pool.submit(tasks.fail, ValueError, "no")
    asking = pool.submit(tasks.ask, pool.shared(bad))
    with pytest.raises(ValueError, match="no"):
        asking.result(PATIENCE_S)
    dead = pool.options(max_retries=0).submit(tasks.die)
    asking = pool.submit(tasks.ask, pool.shared(dead))
    assert "SIGKILL" in str(asking.exception(PATIENCE_S))


def test_a_borrower_that_waits_when_its_worker_dies_is_run_again(
    pool: OwnershipExecutor, gate: Gate, bell: Bell
) -> None:
    """Laws 14 and 32."""

    def tell_and_ask(path: str, future: Any) -> tuple[int, Any]:
        tasks.ring(path)
        return os.getpid(), future.result()

    slow = pool.submit(tasks.pass_gate, gate.path, "value")
    blocked = pool.submit(tell_and_ask, bell.path, pool.shared(slow))
    bell.wait()
    pids = {pool.submit(os.getpid).result(PATIENCE_S) for _ in range(3)}
    for child in live_children(template_of(pids.pop())):
        kill(child.pid)
    bell.wait()  # it has started again
    gate.open()
    pid, value = blocked.result(PATIENCE_S)
    assert value == "value"
    del blocked, slow
    gc.collect()
    at_rest(pool, 0)


def test_an_object_whose_segment_was_removed_is_a_typed_loss(make_pool: MakePool) -> None:
    """Law 46: for the driver, for a task and for a borrower; and the pool lives on."""
    pool = make_pool(2, lineage_bytes=0)
    future = pool.submit(tasks.make_bytes, 1)
    before = sessions_of([os.getpid()])
    other = pool.submit(tasks.make_bytes, 2)
    view = other.result(PATIENCE_S)  # mapped here, so the name of the session can be seen
    (session,) = sessions_of([os.getpid()]) - before
    assert future.exception(PATIENCE_S) is None
    for name in segments_of(session):
        os.unlink(f"/dev/shm/{name}")
    reading = pool.options(max_retries=0).submit(tasks.total, future)
    borrowing = pool.options(max_retries=0).submit(tasks.ask, pool.shared(future))
    outcomes = [type(task.exception(PATIENCE_S)) for task in (reading, borrowing)]
    try:
        future.result(PATIENCE_S)
    except ObjectLost:
        outcomes.append(ObjectLost)
    # Who mapped the segment before it went, and still does, may read on.
    assert tasks.total(view) == 2 * LARGE
    assert set(outcomes) <= {ObjectLost, type(None)} and ObjectLost in outcomes
    assert pool.submit(tasks.add, 1, 2).result(PATIENCE_S) == 3


def test_a_lost_value_that_was_put_is_a_typed_loss(pool: OwnershipExecutor) -> None:
    """Laws 43 and 46: nothing could make it again; whoever reads it is told, and nobody hangs."""
    before = sessions_of([os.getpid()])
    put = pool.put(bytes(LARGE))
    made = pool.submit(tasks.make_bytes, 1)
    view = made.result(PATIENCE_S)
    (session,) = sessions_of([os.getpid()]) - before
    for name in segments_of(session):
        os.unlink(f"/dev/shm/{name}")
    once = pool.options(max_retries=0)
    for reading in (put, once.submit(len, put), once.submit(tasks.ask, pool.shared(put))):
        with pytest.raises(ObjectLost):
            reading.result(PATIENCE_S)
    assert tasks.total(view) == LARGE


@pytest.mark.parametrize(
    "waiting", [tasks.ring_and_ask, tasks.ring_and_await, tasks.ring_and_ask_in_a_thread]
)
def test_a_task_that_waits_lends_its_place(
    single: OwnershipExecutor, bell: Bell, waiting: Any
) -> None:
    """Laws 2 and 53: whatever way it waits; else what it waits for could never run."""
    outside: AnyFuture[int] = AnyFuture()
    awaited = single.submit(tasks.echo, outside)
    asking = single.submit(waiting, bell.path, single.shared(awaited))
    bell.wait()
    outside.set_result(5)
    assert asking.result(PATIENCE_S) == 5
    assert single.submit(tasks.add, 1, 2).result(PATIENCE_S) == 3
    del awaited, asking
    at_rest(single, 0)


def test_a_callback_that_a_task_leaves_behind_keeps_nobody_waiting(
    single: OwnershipExecutor, bell: Bell
) -> None:
    """Law 2: with its task's end its worker is free again, and takes the next task."""
    outside: AnyFuture[int] = AnyFuture()
    awaited = single.submit(tasks.echo, outside)
    leaving = single.submit(tasks.leave_a_callback, bell.path, single.shared(awaited))
    leaving.result(PATIENCE_S)
    assert single.submit(tasks.add, 1, 2).result(PATIENCE_S) == 3
    outside.set_result(5)
    assert awaited.result(PATIENCE_S) == 5
    eventually(
        lambda: single.submit(tasks.read_kept, "callback").result(PATIENCE_S) == 5,
        "the callback is not called",
    )


ASKING_FOR_WHAT_IS_NEW = """
import multiprocessing, sys
from owndist import OwnershipExecutor

def ask(future):
    global assigned
    assigned = 1
    return future.result().x

def look(_):
    return assigned

if __name__ == "__main__":
    with OwnershipExecutor(1, multiprocessing.get_context(sys.argv[1])) as pool:
        pool.submit(int).result()
        assigned = 0
        pool.submit(look, 0).result()

        class New:
            x = 8

            def __reduce__(self):
                return New, (), {"y": assigned}

        print(pool.submit(ask, pool.shared(pool.put(New()))).result(60))
        print(pool.submit(ask, pool.shared(pool.submit(New))).result(60))
        print(pool.submit(look, New()).result(60))
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_borrower_gets_the_classes_that_a_value_needs(tmp_path: Path, method: str) -> None:
    """Law 2: also those that `__main__` has defined since the workers were started."""
    path = tmp_path / "script.py"
    path.write_text(ASKING_FOR_WHAT_IS_NEW)
    script = subprocess.run(
        [sys.executable, str(path), method],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert (script.stdout, script.stderr) == ("8\n8\n1\n", "")
