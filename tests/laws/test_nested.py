"""Tasks that submit tasks: each worker owns what it submits."""

from __future__ import annotations

import gc
import os
import pickle
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from owndist import OwnershipExecutor, current_executor
from owndist.errors import ObjectLost, OwnerDied, WorkerDied
from tests.parity.conftest import Gate

from . import nested
from .helpers import PATIENCE_S, eventually, has_ended

MakePool = Callable[..., OwnershipExecutor]


def test_a_task_submits_tasks_and_waits_for_them(pool: OwnershipExecutor) -> None:
    """Law 53: the worker that submits them owns them."""
    assert pool.submit(nested.sum_of_squares, 100).result(PATIENCE_S) == 328_350


@pytest.mark.parametrize("way", ["wait", "as_completed", "first", "map", "thread"])
@pytest.mark.parametrize("workers", [1, 2])
def test_every_way_of_waiting_ends(make_pool: MakePool, way: str, workers: int) -> None:
    """Laws 8 and 53: with one worker, too."""
    executor = make_pool(max_workers=workers)
    squares = [i * i for i in range(20)]
    assert executor.submit(nested.gather, way, 20).result(PATIENCE_S) == squares


def test_naive_recursion_with_one_worker(make_pool: MakePool) -> None:
    """Law 53: no deadlock, and no more processes than the cap allows."""
    executor = make_pool(max_workers=1)
    assert executor.submit(nested.fib, 12).result(PATIENCE_S) == 144
    assert executor.statistics().workers <= 2 * 1 + 4


def test_recursion_two_hundred_deep(make_pool: MakePool) -> None:
    """Law 53: on one stack, with the recursion limit raised by what is below."""
    executor = make_pool(max_workers=1)
    assert executor.submit(nested.depth, 200).result(PATIENCE_S) == 200
    assert executor.statistics().workers <= 2 * 1 + 4


def test_the_executor_may_be_an_argument(make_pool: MakePool) -> None:
    """It reaches the task as the executor that runs it; another one's tasks do not get it."""
    one, other = make_pool(max_workers=1), make_pool(max_workers=1)
    assert one.submit(nested.executor_as_argument, one, 5).result(PATIENCE_S) == 25
    with pytest.raises(pickle.PicklingError, match="own tasks"):
        one.submit(nested.executor_as_argument, other, 5).result(PATIENCE_S)
    with pytest.raises(TypeError, match="own tasks"):
        pickle.dumps(one)


def test_outside_of_tasks_there_is_no_current_executor() -> None:
    """The error says what it is for."""
    with pytest.raises(RuntimeError, match="for tasks"):
        current_executor()


def test_children_go_from_worker_to_worker_and_not_through_the_driver(make_pool: MakePool) -> None:
    """Law 9: the driver hears of a thousand children nothing but who leases which worker."""
    executor = make_pool(max_workers=2)
    executor.submit(nested.sum_of_squares, 10).result(PATIENCE_S)
    before = executor.statistics()
    executor.submit(nested.sum_of_squares, 1000).result(PATIENCE_S)
    after = executor.statistics()
    assert after.tasks_submitted == before.tasks_submitted + 1
    received = after.bytes_received - before.bytes_received
    assert received < 20 * 1000, "fewer bytes than the shortest reply of each child would take"


def test_a_future_of_a_child_outlives_the_task_that_made_it(pool: OwnershipExecutor) -> None:
    """Law 17: returned by its owner."""
    future = pool.submit(nested.chain_of_arrays, 3).result(PATIENCE_S)
    assert future.result(PATIENCE_S)[0] == 3
    total = pool.submit(np.sum, future)
    assert total.result(PATIENCE_S) == 3 * 131_072


def test_futures_travel_in_every_direction(pool: OwnershipExecutor) -> None:
    """Laws 17 and 23: simple, returned by a borrower, back to the owner, a borrower's child."""
    mine = pool.submit(nested.make_array, 1, 5)
    (again,) = pool.submit(nested.pass_on, pool.shared(mine)).result(PATIENCE_S)
    assert again.result(PATIENCE_S)[0] == 5
    assert pool.submit(nested.lend_to_child, pool.shared(mine)).result(PATIENCE_S)[0] == 5
    theirs = pool.submit(nested.chain_of_arrays, 1).result(PATIENCE_S)
    (back,) = pool.submit(nested.pass_on, pool.shared(theirs)).result(PATIENCE_S)
    assert back.result(PATIENCE_S)[0] == 1
    assert pool.submit(nested.lend_to_child, pool.shared(theirs)).result(PATIENCE_S)[0] == 1
    put = pool.submit(nested.put_here, list(range(50_000))).result(PATIENCE_S)
    assert pool.submit(nested.lend_to_child, pool.shared(put)).result(PATIENCE_S)[-1] == 49_999


def test_nothing_is_left_when_all_futures_are_dropped(pool: OwnershipExecutor) -> None:
    """Laws 13, 14 and 17: with values that workers own, and borrowers on both sides."""
    for _ in range(3):
        future = pool.submit(nested.chain_of_arrays, 2).result(PATIENCE_S)
        (back,) = pool.submit(nested.pass_on, pool.shared(future)).result(PATIENCE_S)
        back.result(PATIENCE_S)
        del future, back
    gc.collect()
    machine = pool._driver.machine
    eventually(
        lambda: not machine.references.entries and not machine.references.extents,
        "nothing is left in the tables",
    )


def test_a_value_whose_owner_died_says_so(make_pool: MakePool) -> None:
    """Law 50: it never hangs; a view that was read before stays readable."""
    executor = make_pool(max_workers=2)
    read = executor.submit(nested.chain_of_arrays, 0).result(PATIENCE_S)
    view = read.result(PATIENCE_S)
    unread = executor.submit(nested.put_here, b"x" * 200_000).result(PATIENCE_S)
    owners = {read._address.owner, unread._address.owner}
    assert 0 not in owners
    processes = executor._driver._pool.processes
    for number in owners:
        os.kill(processes[number].pid, signal.SIGKILL)
    eventually(lambda: not owners & set(processes), "the owners are gone")
    assert executor.submit(np.sum, view).result(PATIENCE_S) == 0
    with pytest.raises(ObjectLost):  # OwnerDied, or its memory is gone
        unread.result(PATIENCE_S)


def test_a_worker_that_is_younger_than_an_owners_death_hears_of_it(make_pool: MakePool) -> None:
    """Law 50: it meets a future of a process that had ended before it was started."""
    executor = make_pool(max_workers=1)
    future = executor.submit(nested.put_here, b"x" * 200_000).result(PATIENCE_S)
    processes = executor._driver._pool.processes
    owner = future._address.owner
    os.kill(processes[owner].pid, signal.SIGKILL)
    eventually(lambda: owner not in processes, "the owner is gone")
    later = executor.submit(nested.read, executor.shared(future))
    with pytest.raises(OwnerDied):
        later.result(PATIENCE_S)


def test_children_of_a_dead_owner_stop_and_its_task_runs_again(
    make_pool: MakePool, tmp_path: Path
) -> None:
    """Laws 48 and 49: the running one ends with its process."""
    executor = make_pool(max_workers=2)
    diary, gate = tmp_path / "diary", tmp_path / "gate"
    diary.touch()
    os.mkfifo(gate)
    marker = str(tmp_path / "marker")
    future = executor.submit(nested.submit_and_die, str(diary), marker, str(gate))
    eventually(lambda: "running" in diary.read_text(), "a child runs")
    first = int(diary.read_text().split("running ")[1].split()[0])
    eventually(lambda: has_ended(first), "the running child has ended")
    # The second attempt submits its own; nobody waits for them, but shutdown does.
    with open(gate, "w") as pipe:
        pipe.write("open")
    assert future.result(PATIENCE_S) == "second attempt"
    assert executor.statistics().tasks_retried == 1


def test_a_child_that_kills_its_worker_costs_a_retry(make_pool: MakePool, tmp_path: Path) -> None:
    """Laws 32 and 49: of the child, or of the task that ran it on its own stack."""
    executor = make_pool(max_workers=2)
    child = executor.submit(nested.executor_as_argument, executor, 3)
    assert child.result(PATIENCE_S) == 9
    path = str(tmp_path / "died")
    assert executor.submit(_parent_of_one_that_dies, path).result(PATIENCE_S) == 7


def _parent_of_one_that_dies(path: str) -> int:
    return int(current_executor().submit(nested.die, path).result())


def test_a_retry_in_a_worker_is_logged_there(make_pool: MakePool, tmp_path: Path) -> None:
    """Law 32: its owner is a worker, and says so."""
    executor = make_pool(max_workers=2)
    log = tmp_path / "log"
    future = executor.submit(nested.log_of_a_retry, str(log), str(tmp_path / "died"))
    assert future.result(PATIENCE_S) == 7
    eventually(lambda: "running it again" in log.read_text(), "it was logged")


def test_a_refused_stream_leaves_the_worker_as_it_was(pool: OwnershipExecutor) -> None:
    """Law 70: streams are for the driver; other tasks can be submitted afterwards."""
    assert pool.submit(nested.refused_streams, 5).result(PATIENCE_S) == 25


def test_an_initializer_has_no_executor(make_pool: MakePool) -> None:
    """With one worker nobody would run what it submits."""
    executor = make_pool(max_workers=1, initializer=nested.try_for_an_executor)
    assert "for tasks" in executor.submit(nested.what_was_tried).result(PATIENCE_S)


@contextmanager
def no_descriptors() -> Iterator[None]:
    """This process can open nothing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_driver_without_descriptors_makes_links_later(make_pool: MakePool, gate: Gate) -> None:
    """Law 46: a worker wants one, and there is none; nobody hangs, nothing breaks."""
    executor = make_pool(max_workers=2)
    future = executor.submit(nested.child_elsewhere, gate.path, 5)
    assert executor.submit(nested.square, 2).result(PATIENCE_S) == 4  # the other worker is there
    with no_descriptors():
        gate.open()
        eventually(lambda: executor._driver._pool.unlinked, "the link could not be made")
    assert future.result(PATIENCE_S) == 25


def test_a_worker_without_descriptors_ends_when_it_is_given_a_link(
    make_pool: MakePool, tmp_path: Path
) -> None:
    """Laws 32 and 46: its task runs again in another one; the error says why, if it may not."""
    executor = make_pool(max_workers=2)
    first, other = str(tmp_path / "first"), str(tmp_path / "other")
    with pytest.raises(WorkerDied, match="no file descriptor left"):
        once = executor.options(max_retries=0)
        once.submit(nested.child_without_descriptors, first).result(PATIENCE_S)
    assert executor.submit(nested.child_without_descriptors, other).result(PATIENCE_S) == 25


@pytest.mark.slow
def test_an_orphan_can_be_killed_when_its_template_is_dead(
    make_pool: MakePool, tmp_path: Path
) -> None:
    """Laws 48 and 49: it runs a dead owner's task, holds the interpreter, and has to be killed."""
    executor = make_pool(max_workers=2)
    diary = tmp_path / "diary"
    diary.touch()
    future = executor.submit(nested.leave_one_stuck, str(diary), str(tmp_path / "marker"))
    eventually(lambda: "stuck" in diary.read_text(), "the child is stuck")
    parent, child = (int(line.split()[1]) for line in diary.read_text().splitlines())
    template = executor._driver._pool._nursery
    os.kill(template.pid, signal.SIGKILL)
    eventually(lambda: executor._driver._pool._nursery is not template, "there is another one")
    os.kill(parent, signal.SIGKILL)
    eventually(lambda: has_ended(child), "the orphan has ended")
    assert future.result(PATIENCE_S) == "second attempt"


def test_two_owners_both_progress(make_pool: MakePool) -> None:
    """Both come to an end; how they share is shown by the tests of the lessor."""
    executor = make_pool(max_workers=2)
    one = executor.submit(nested.sum_of_squares, 400)
    other = executor.submit(nested.sum_of_squares, 400)
    assert one.result(PATIENCE_S) == other.result(PATIENCE_S)


@pytest.mark.slow
def test_trees_of_tasks_are_right_under_random_kills(make_pool: MakePool, seed: int) -> None:
    """Laws 29 and 49: equal to the serial result, whoever dies."""
    import random

    chance = random.Random(seed)
    executor = make_pool(max_workers=2, max_retries=1000)
    executor.submit(os.getpid).result(PATIENCE_S)
    stop = threading.Event()

    def kill_now_and_then() -> None:
        while not stop.wait(chance.uniform(0.05, 0.2)):
            processes = executor._driver._pool.processes
            victims = [worker.pid for worker in list(processes.values()) if worker.pid]
            if victims:
                try:
                    os.kill(chance.choice(victims), signal.SIGKILL)
                except ProcessLookupError:
                    pass  # it had ended

    killer = threading.Thread(target=kill_now_and_then)
    killer.start()
    try:
        for _ in range(5):
            start = chance.randrange(1000)
            got = executor.submit(nested.map_reduce, 4, start).result(PATIENCE_S)
            assert got == nested.map_reduce_serially(4, start)
    finally:
        stop.set()
        killer.join()


def test_shutdown_waits_for_children_that_nobody_waits_for(
    make_pool: MakePool, tmp_path: Path
) -> None:
    """Law 8: as it waits for all that was submitted."""
    executor = make_pool(max_workers=1)
    path = tmp_path / "diary"
    executor.submit(_leave_children, str(path)).result(PATIENCE_S)
    executor.shutdown()
    assert sorted(path.read_text().split()) == [f"child{i}" for i in range(5)]


def _leave_children(path: str) -> None:
    for i in range(5):
        current_executor().submit(nested.note, path, f"child{i}")
