"""Running tasks that are stopped: interrupted where they block, or killed; and nobody else hit.

What has to happen within a second here is waited for without measuring; the calls that are
interrupted would block for minutes.
"""

from __future__ import annotations

import concurrent.futures
import gc
import multiprocessing
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from owndist import Future, OwnershipExecutor
from owndist.runtime.crash_record import CrashRecord, create_file
from tests.parity.conftest import Bell, Gate

from . import blocking
from .helpers import PATIENCE_S, at_rest, eventually, machine_of
from .tasks import echo, lines, make_bytes, pass_gate, write_down

MakePool = Callable[..., OwnershipExecutor]

HOW = [{"running": True}, {"force": True}, {"running": True, "force": True}]


def one_waits(pool: OwnershipExecutor) -> None:
    """Wait until a task waits for a future."""
    leases = machine_of(pool).leases
    eventually(lambda: any(w.waits for w in list(leases.workers.values())), "nobody waits")


# --- interrupts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("block", blocking.BLOCKING, ids=lambda block: block.__qualname__)
def test_a_running_task_is_interrupted_where_it_blocks(
    single: OwnershipExecutor, bell: Bell, block: Callable[[str], None]
) -> None:
    """Law 66; and its worker goes on with the next task."""
    worker = single.submit(os.getpid).result()
    future = single.submit(block, bell.path)
    bell.wait()
    assert not future.cancel()
    assert future.cancel(running=True)
    assert future.cancelled()
    with pytest.raises(concurrent.futures.CancelledError):
        future.result()
    assert single.submit(os.getpid).result(PATIENCE_S) == worker
    del future
    at_rest(single, 0)


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_tasks_are_stopped_under_every_start_method(
    make_pool: MakePool, bell: Bell, method: str
) -> None:
    """Law 66: interrupted, and killed; functions that go by value, too."""
    pool = make_pool(1, mp_context=multiprocessing.get_context(method))
    sleeper = pool.submit(lambda path: blocking.sleep(path), bell.path)
    bell.wait()
    assert sleeper.cancel(running=True)
    worker = pool.submit(os.getpid).result(PATIENCE_S)
    deaf = pool.submit(blocking.hold_the_interpreter, bell.path)
    bell.wait()
    assert deaf.cancel(force=True)
    assert pool.submit(os.getpid).result(PATIENCE_S) != worker
    assert pool.statistics().workers_died == 1


@pytest.mark.parametrize("way", ["result", "wait", "as_completed"])
def test_a_task_that_waits_for_a_future_is_interrupted(
    pool: OwnershipExecutor, bell: Bell, gate: Gate, diary: Path, way: str
) -> None:
    """Law 66; what it waits for goes on, and so does its worker."""
    slow = pool.submit(pass_gate, gate.path, "the value")
    asker = pool.submit(blocking.ask_and_tell, str(diary), bell.path, pool.shared(slow), way)
    bell.wait()
    one_waits(pool)
    assert asker.cancel(running=True)
    eventually(lambda: lines(diary) == 1, "its `finally` block does not run")
    assert pool.submit(echo, "next").result(PATIENCE_S) == "next"
    gate.open()
    assert slow.result(PATIENCE_S) == "the value"
    asker = pool.submit(blocking.ask_and_tell, str(diary), bell.path, pool.shared(slow), way)
    assert asker.result(PATIENCE_S)
    assert pool.statistics().workers_died == 0


def test_finally_blocks_run_and_arguments_stay_until_they_have(
    single: OwnershipExecutor, bell: Bell, gate: Gate, diary: Path
) -> None:
    """Laws 5, 15 and 66: nobody writes to the memory that a stopped task may still look at."""
    array = single.submit(make_bytes, 1)
    size = array.result().nbytes
    future = single.submit(blocking.clean_up, bell.path, str(diary), array, gate.path)
    bell.wait()
    assert future.cancel(running=True)
    del array, future
    gc.collect()
    kept = [single.put(np.full(size, 9, np.uint8)) for _ in range(3)]  # would take what is free
    gate.open()
    single.submit(echo, 0).result(PATIENCE_S)
    assert diary.read_text().split() == [str(size)]
    del kept
    at_rest(single, 0)


def test_a_task_that_goes_on_is_cancelled_all_the_same(
    single: OwnershipExecutor, bell: Bell, gate: Gate
) -> None:
    """Laws 1, 41 and 66: what it returns is dropped. It runs once, and the next task is not hit."""
    future = single.submit(blocking.carry_on, bell.path, gate.path)
    after = single.submit(echo, future)
    bell.wait()
    assert future.cancel(running=True)
    assert not future.running()
    with pytest.raises(concurrent.futures.CancelledError):
        after.result(PATIENCE_S)
    gate.open()
    assert single.submit(echo, "next").result(PATIENCE_S) == "next"
    assert future.cancelled()
    assert single.statistics().tasks_finished == 1


def test_imports_are_not_interrupted(
    single: OwnershipExecutor, bell: Bell, gate: Gate, tmp_path: Path
) -> None:
    """Law 66: tasks to come would find half a module. It is interrupted after that."""
    (tmp_path / "half_done.py").write_text(
        "from tests.parity.tasks import ring_and_pass\n"
        f"value = ring_and_pass({bell.path!r}, {gate.path!r}, 'all there')\n"
    )
    future = single.submit(blocking.import_and_sleep, str(tmp_path), "half_done")
    bell.wait()
    assert future.cancel(running=True)
    gate.open()
    assert single.submit(blocking.fetch, "half_done").result(PATIENCE_S) == "all there"


def test_an_interrupt_waits_until_the_arguments_are_loaded(
    single: OwnershipExecutor, bell: Bell, gate: Gate, diary: Path
) -> None:
    """Law 66: what keeps the arguments' memory in order is not left half done."""
    slow = blocking.SlowToLoad(bell.path, gate.path)
    future = single.submit(blocking.write_and_sleep, slow, str(diary))
    bell.wait()
    assert future.cancel(running=True)
    gate.open()
    assert single.submit(echo, 1).result(PATIENCE_S) == 1
    assert future.cancelled()
    eventually(lambda: not machine_of(single).submission.tasks, "a task is left")


def test_an_interrupt_is_not_lost_where_python_drops_errors(
    single: OwnershipExecutor, bell: Bell, gate: Gate
) -> None:
    """Law 66: it waits for the end of a `__del__`."""
    future = single.submit(blocking.drop_and_sleep, bell.path, gate.path)
    bell.wait()
    assert future.cancel(running=True)
    gate.open()
    assert single.submit(echo, 1).result(PATIENCE_S) == 1


# --- force --------------------------------------------------------------------------------------


@pytest.mark.parametrize("running", [False, True], ids=["at once", "after an interrupt"])
def test_force_kills_what_cannot_be_interrupted(
    single: OwnershipExecutor, bell: Bell, running: bool
) -> None:
    """Law 66: a call into C that holds the interpreter."""
    first = single.submit(os.getpid).result()
    future = single.submit(blocking.hold_the_interpreter, bell.path)
    bell.wait()
    assert future.cancel(running=running, force=True)
    assert single.submit(os.getpid).result(PATIENCE_S) != first
    assert single.statistics().workers_died == 1


def test_force_after_an_interrupt_spares_a_task_that_ends(
    single: OwnershipExecutor, bell: Bell
) -> None:
    """Law 66: nobody is killed who takes notice."""
    worker = single.submit(os.getpid).result()
    future = single.submit(blocking.sleep, bell.path)
    bell.wait()
    assert future.cancel(running=True, force=True)
    assert single.submit(os.getpid).result(PATIENCE_S) == worker
    assert single.statistics().workers_died == 0


def test_a_cancelled_task_that_goes_on_can_still_be_killed(
    single: OwnershipExecutor, bell: Bell, gate: Gate
) -> None:
    """Law 66: the next call is harder."""
    future = single.submit(blocking.carry_on, bell.path, gate.path)
    bell.wait()
    assert future.cancel(running=True)
    assert future.cancel(force=True)
    single.submit(echo, 1).result(PATIENCE_S)
    assert single.statistics().workers_died == 1


def test_tasks_behind_a_killed_one_run_elsewhere_uncharged(
    single: OwnershipExecutor, bell: Bell, diary: Path
) -> None:
    """Laws 32, 65 and 66: without retries they would fail if charged; each runs once."""
    once = single.options(max_retries=0)
    for number in range(1, 50):  # so that it counts as short, and the next ones are sent ahead
        once.submit(blocking.block_if, bell.path, number, str(diary)).result()
    blocks = single.submit(blocking.block_if, bell.path, 0, str(diary))
    behind = [once.submit(blocking.block_if, bell.path, 100 + n, str(diary)) for n in range(20)]
    bell.wait()
    assert blocks.cancel(force=True)
    assert [future.result(PATIENCE_S) for future in behind] == list(range(100, 120))
    assert lines(diary) == 49 + 20
    assert not bell.was_rung(), "a cancelled task is retried"
    assert single.statistics().tasks_retried == 0


def test_a_condemned_worker_starts_nothing_else_and_a_spared_one_does() -> None:
    """Law 66: a kill that is under way hits the execution that is meant, or nobody."""
    fd = create_file()
    ours, theirs = CrashRecord(fd), CrashRecord(fd)
    os.close(fd)
    try:
        assert theirs.start(7, 1)
        assert not ours.condemn(8, 1) and not ours.condemn(7, 2)
        theirs.finish()
        assert not ours.condemn(7, 1)
        assert theirs.start(8, 1)
        assert ours.condemn(8, 1)
        theirs.finish()
        assert not theirs.start(9, 1)
        assert ours.running == 0
    finally:
        ours.close()
        theirs.close()


# --- what is not stopped ------------------------------------------------------------------------


def test_queued_and_finished_tasks_are_as_with_a_plain_cancel(
    single: OwnershipExecutor, gate: Gate, diary: Path
) -> None:
    """Law 65: queued, waiting for an argument, finished."""
    done = single.submit(echo, 1)
    assert done.result() == 1
    held = single.submit(pass_gate, gate.path)
    for how in HOW:
        queued = single.submit(write_down, str(diary), 1)
        waits = single.submit(write_down, str(diary), held)
        assert not done.cancel(**how)
        assert queued.cancel(**how) and waits.cancel(**how)
    gate.open()
    held.result(PATIENCE_S)
    single.submit(echo, 1).result(PATIENCE_S)
    assert not lines(diary)
    assert single.statistics().workers_died == 0


# --- several values -----------------------------------------------------------------------------


def test_a_stopped_stream_drops_what_nobody_took_and_ends_cancelled(
    single: OwnershipExecutor, bell: Bell, diary: Path
) -> None:
    """Laws 13, 66 and 70: what was taken stays; the generator's `finally` block runs."""
    stream = single.options(num_returns="stream").submit(
        blocking.values_and_sleep, bell.path, str(diary), 3
    )
    bell.wait()
    first = next(stream)
    assert not stream.cancel()
    assert stream.cancel(running=True)
    assert first.result()[:1] == b"\0"
    left = list(stream)
    assert len(left) == 1 and left[0].cancelled()
    eventually(lambda: lines(diary) == 1, "its `finally` block does not run")
    assert not stream.cancel(running=True)
    del first, left, stream
    at_rest(single, 0)


def test_a_stopped_stream_that_is_paused_ends(
    single: OwnershipExecutor, bell: Bell, diary: Path
) -> None:
    """Laws 66 and 70: nobody takes its values, so it waits for that."""
    stream = single.options(num_returns="stream", stream_buffer=1).submit(
        blocking.values_and_sleep, bell.path, str(diary), 9
    )
    first = next(stream)
    assert stream.cancel(running=True)
    eventually(lambda: lines(diary) == 1, "its `finally` block does not run")
    assert not bell.was_rung()
    assert [future.cancelled() for future in stream] == [True]
    del first, stream
    at_rest(single, 0)


def test_all_futures_of_a_stopped_task_are_cancelled(single: OwnershipExecutor, bell: Bell) -> None:
    """Laws 1, 10 and 66."""
    futures = single.options(num_returns=3).submit(blocking.sleep, bell.path)
    bell.wait()
    assert futures[1].cancel(running=True)
    concurrent.futures.wait(futures, PATIENCE_S)
    assert all(future.cancelled() for future in futures)
    assert single.submit(echo, 1).result(PATIENCE_S) == 1
    del futures
    at_rest(single, 0)


# --- tasks of tasks -----------------------------------------------------------------------------


@pytest.mark.parametrize("how", HOW, ids=["interrupt", "kill", "interrupt, then kill"])
def test_a_task_stops_a_task_of_its_own(
    pool: OwnershipExecutor, bell: Bell, diary: Path, how: dict[str, bool]
) -> None:
    """Laws 11 and 66: it is the owner, wherever its child runs. Another child runs after that."""
    found = pool.submit(blocking.stop_child, how, bell.path, str(diary)).result(PATIENCE_S)
    assert found == (True, True, "next")


@pytest.mark.parametrize(
    ("how", "answer"),
    list(zip(HOW, [True, False, True], strict=True)),
    ids=["interrupt", "kill", "both"],
)
def test_a_task_on_top_of_its_parent_is_interrupted_and_never_killed(
    single: OwnershipExecutor, bell: Bell, how: dict[str, bool], answer: bool
) -> None:
    """Law 66: the parent goes on. To kill the child alone is impossible, and so it says."""
    worker = single.submit(os.getpid).result()
    parent = single.submit(blocking.stop_child_on_top, bell.path, how)
    assert parent.result(PATIENCE_S) == (answer, "cancelled")
    assert single.submit(os.getpid).result(PATIENCE_S) == worker


def test_a_task_is_interrupted_with_the_child_on_top_of_it(
    single: OwnershipExecutor, bell: Bell, diary: Path
) -> None:
    """Law 66: the child ends first, and each cleans up undisturbed."""
    parent = single.submit(blocking.wait_for_child, bell.path, str(diary), "")
    bell.wait()
    assert parent.cancel(running=True)
    assert single.submit(echo, 1).result(PATIENCE_S) == 1
    assert diary.read_text().split() == ["100", "1"]
    assert single.statistics().workers_died == 0
    del parent
    at_rest(single, 0)


@pytest.mark.parametrize("recursive", [False, True])
def test_a_task_is_interrupted_while_its_child_runs_elsewhere(
    pool: OwnershipExecutor, bell: Bell, gate: Gate, diary: Path, recursive: bool
) -> None:
    """Law 66: the child goes on, unless it is to be stopped, too."""
    parent = pool.submit(blocking.wait_for_child, bell.path, str(diary), gate.path)
    bell.wait()
    one_waits(pool)
    assert parent.cancel(running=True, recursive=recursive)
    told = {"1", "100"} if recursive else {"1"}
    eventually(lambda: diary.exists() and set(diary.read_text().split()) == told, "it goes on")
    gate.open()
    eventually(lambda: lines(diary) == 2, "the child does not end")
    assert pool.submit(echo, 1).result(PATIENCE_S) == 1
    assert pool.statistics().workers_died == 0
    del parent
    at_rest(pool, 0)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_children_and_their_children_are_stopped_where_that_is_asked_for(
    make_pool: MakePool, bell: Bell, diary: Path, workers: int
) -> None:
    """Laws 65 and 66: wherever they are, and none of them starts after that."""
    pool = make_pool(workers)
    root = pool.submit(blocking.tree, bell.path, str(diary), 2)
    bell.wait()
    assert root.cancel(running=True, recursive=True)
    eventually(lambda: not machine_of(pool).submission.tasks, "the root goes on")
    for _ in range(2 * workers):
        assert pool.submit(echo, 1).result(PATIENCE_S) == 1
    del root
    at_rest(pool, 0)


# --- many at random -----------------------------------------------------------------------------


def work(number: int, kind: int, duration_s: float) -> int:
    """Something short: it sleeps, computes, makes objects."""
    until = time.monotonic() + duration_s
    if kind == 0:
        time.sleep(duration_s)
    while time.monotonic() < until:
        if kind == 1:
            sorted(range(100), key=lambda n: -n)
        else:
            threading.Event().wait(0.0001)
    return number


def work_with(number: int, duration_s: float, future: Any) -> int:
    """The same with a borrowed future, which is asked in several ways."""
    until = time.monotonic() + duration_s
    while time.monotonic() < until:
        assert future.result()[0] == 1
        concurrent.futures.wait([future])
        assert next(concurrent.futures.as_completed([future])) is future
    return number


@contextmanager
def load(processes: int) -> Iterator[None]:
    """So many programs that only compute."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for program in busy:
            program.kill()
            program.wait()


@pytest.mark.slow
@pytest.mark.parametrize("busy", [0, 2], ids=["idle machine", "under load"])
def test_interrupts_hit_only_whom_they_are_meant_for(
    make_pool: MakePool, seed: int, busy: int
) -> None:
    """Laws 1 and 66: 200 interrupts at random moments among short tasks.

    An interrupt that struck a task which was not cancelled would be its error; one that struck a
    worker's own code would end or hang the worker.
    """
    chance = random.Random(seed)
    pool = make_pool(2)
    array = pool.put(np.ones(200_000, np.uint8))
    futures: list[tuple[int, Future[int]]] = []
    stopped: set[int] = set()
    with load(busy):
        for number in range(600):
            duration_s = chance.choice((0.0, 0.0005, 0.003))
            if chance.random() < 0.5:
                future = pool.submit(work, number, chance.randrange(3), duration_s)
            else:
                future = pool.submit(work_with, number, duration_s, pool.shared(array))
            futures.append((number, future))
            if number % 3 == 0:
                victim, future = futures[-chance.choice((1, 1, 2, 3, 5, 20)) :][0]
                if chance.random() < 0.5:
                    eventually(lambda f=future: f.running() or f.done(), "it never starts")
                if future.cancel(running=True):
                    stopped.add(victim)
        for number, future in futures:
            if number in stopped:
                assert future.cancelled()
            else:
                assert future.result(PATIENCE_S) == number
    statistics = pool.statistics()
    assert statistics.workers_died == 0 and statistics.tasks_failed == 0
    assert statistics.tasks_cancelled == len(stopped)
    del futures, future, array
    at_rest(pool, 0)


@pytest.mark.slow
def test_forced_kills_cost_nobody_else_anything(make_pool: MakePool, seed: int) -> None:
    """Laws 32 and 66: 40 kills at random moments; without retries, every other task runs once."""
    chance = random.Random(seed)
    pool = make_pool(2)
    once = pool.options(max_retries=0)
    futures: list[tuple[int, Future[int]]] = []
    stopped: set[int] = set()
    for number in range(240):
        future = once.submit(work, number, chance.randrange(3), chance.choice((0.0, 0.002)))
        futures.append((number, future))
        if number % 6 == 0:
            victim, future = futures[-chance.choice((1, 1, 2, 4)) :][0]
            if chance.random() < 0.5:
                eventually(lambda f=future: f.running() or f.done(), "it never starts")
            if future.cancel(force=True):
                stopped.add(victim)
    for number, future in futures:
        if number in stopped:
            assert future.cancelled()
        else:
            assert future.result(PATIENCE_S) == number
    assert pool.statistics().tasks_failed == 0
    del futures, future
    at_rest(pool, 0)
