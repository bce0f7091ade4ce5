"""Workers that own objects: who keeps them, and what the death of owners and borrowers means.

Those that the driver owns are in `test_borrowing` and `test_lifetime`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future as AnyFuture
from pathlib import Path
from typing import Any

import pytest

from owndist import OwnershipExecutor
from owndist.errors import OwnerDied
from tests.parity.conftest import Bell, Gate

from . import nested, tasks
from .helpers import PATIENCE_S, at_rest, entries, eventually, has_ended, kill, sessions_of

MakePool = Callable[..., OwnershipExecutor]
Everywhere = Callable[..., list[Any]]

BYTES = bytes(tasks.LARGE)


@pytest.fixture
def everywhere(bell: Bell, new_gate: Callable[[], Gate]) -> Everywhere:
    """Calls a function in so many workers, each of which has nothing else to do meanwhile."""

    def call(pool: OwnershipExecutor, workers: int, fn: Any, *args: Any) -> list[Any]:
        gate = new_gate()
        calls = [pool.submit(nested.meet, bell.path, gate.path, fn, *args) for _ in range(workers)]
        bell.wait(workers)
        gate.open()
        return [call.result(PATIENCE_S) for call in calls]

    return call


@pytest.fixture
def nothing_is_left(everywhere: Everywhere) -> Callable[[OwnershipExecutor, int], None]:
    """Waits until neither the driver nor so many workers own or borrow anything."""

    def check(pool: OwnershipExecutor, workers: int) -> None:
        at_rest(pool, 0)
        empty = [(0, 0, 0)] * workers
        eventually(
            lambda: everywhere(pool, workers, nested.in_tables) == empty,
            "a worker keeps objects",
        )

    return check


def put_by_a_worker(pool: OwnershipExecutor, value: Any = BYTES) -> tuple[int, int, Any]:
    """The pid and the number of an owner, and the future of its object."""
    made: tuple[int, int, Any] = pool.submit(nested.put_and_tell, value).result(PATIENCE_S)
    return made


# Law 11


def test_every_handle_names_the_process_that_submitted(pool: OwnershipExecutor) -> None:
    """Law 11: in the driver, at a borrower and at the owner, by every path, and past its death."""
    pid, owner, theirs = put_by_a_worker(pool)
    mine = pool.submit(tasks.echo, 1)
    assert nested.owners_of(theirs, mine) == [owner, 0]
    for _ in range(4):
        asked = pool.submit(nested.owners_of, pool.shared(theirs), pool.shared(mine))
        assert asked.result(PATIENCE_S) == [owner, 0]
    back = pool.submit(nested.pass_on, pool.shared(theirs)).result(PATIENCE_S)
    assert nested.owners_of(back) == [owner]
    kill(pid)
    assert nested.owners_of(theirs, back) == [owner, owner]


def test_a_retry_does_not_change_the_owner(single: OwnershipExecutor, tmp_path: Path) -> None:
    """Law 11: whoever ran the task, and however often."""
    future = single.submit(nested.die, str(tmp_path / "died"))
    assert future.result(PATIENCE_S) == 7
    assert nested.owners_of(future) == [0]


# Laws 12 and 13


def test_the_owner_frees_when_the_last_borrower_lets_go(
    single: OwnershipExecutor, everywhere: Everywhere, nothing_is_left: Any
) -> None:
    """Laws 12, 13 and 14: the driver's handle is all that keeps what a worker has put."""
    _, _, future = put_by_a_worker(single)
    assert everywhere(single, 1, nested.in_tables) == [(1, 0, 1)]
    del future
    nothing_is_left(single, 1)


def test_a_pending_task_keeps_what_a_worker_owns(
    pool: OwnershipExecutor, gate: Gate, nothing_is_left: Any
) -> None:
    """Law 12: the driver's task, which waits for another argument; its handle is gone."""
    _, _, future = put_by_a_worker(pool)
    late = pool.submit(tasks.pass_gate, gate.path, b"late")
    both = pool.submit(nested.add, late, future)
    del late, future
    gate.open()
    assert both.result(PATIENCE_S) == b"late" + BYTES
    del both
    nothing_is_left(pool, 2)


# Law 17, one flow a test


def test_a_simple_borrow(
    pool: OwnershipExecutor, bell: Bell, gate: Gate, nothing_is_left: Any
) -> None:
    """Law 17: the borrower has begun when all others let go, and reads later."""
    _, _, future = put_by_a_worker(pool)
    reading = pool.submit(nested.meet_and_read, bell.path, gate.path, pool.shared(future))
    bell.wait()
    del future
    gate.open()
    assert reading.result(PATIENCE_S) == BYTES
    del reading
    nothing_is_left(pool, 2)


def test_a_tree_of_borrowers(pool: OwnershipExecutor, nothing_is_left: Any) -> None:
    """Law 17: children and grandchildren, in other processes than their parents."""
    _, _, future = put_by_a_worker(pool)
    tree = pool.submit(nested.read_at_every_leaf, pool.shared(future), 2)
    del future
    assert tree.result(PATIENCE_S) == 4 * len(BYTES)
    del tree
    nothing_is_left(pool, 2)


def test_a_future_inside_of_an_object(pool: OwnershipExecutor, nothing_is_left: Any) -> None:
    """Law 17: in an object of the driver's, then in one of a worker's; the inner one's is last."""
    _, _, inner = put_by_a_worker(pool)
    outer = pool.put(tasks.Holder(inner))
    del inner
    outermost = pool.submit(nested.hold_in_own_object, pool.shared(outer)).result(PATIENCE_S)
    del outer
    holder = outermost.result(PATIENCE_S).future.result(PATIENCE_S)
    del outermost
    assert pool.submit(nested.read, pool.shared(holder.future)).result(PATIENCE_S) == BYTES
    del holder
    nothing_is_left(pool, 2)


def test_returned_by_its_owner(pool: OwnershipExecutor, nothing_is_left: Any) -> None:
    """Law 17: the owner's own handle ends with the task that returns it."""
    _, _, future = put_by_a_worker(pool)
    assert pool.submit(len, future).result(PATIENCE_S) == len(BYTES)
    del future
    nothing_is_left(pool, 2)


def test_returned_by_a_borrower(
    pool: OwnershipExecutor, everywhere: Everywhere, nothing_is_left: Any
) -> None:
    """Law 17: two processes keep it, one at a time gives it up; the driver had let it go."""
    _, _, future = put_by_a_worker(pool)
    everywhere(pool, 2, tasks.keep, "borrowed", pool.shared(future))
    del future
    one, other = everywhere(pool, 2, tasks.give_up, "borrowed")
    del one
    assert other.result(PATIENCE_S) == BYTES
    del other
    nothing_is_left(pool, 2)


def test_back_and_forth_between_owner_and_borrower(
    single: OwnershipExecutor, everywhere: Everywhere, nothing_is_left: Any
) -> None:
    """Laws 17 and 23: each time the owner knows it for its own, and borrows nothing."""
    _, owner, future = put_by_a_worker(single)
    for _ in range(3):
        (future,) = single.submit(nested.pass_on, single.shared(future)).result(PATIENCE_S)
        assert nested.owners_of(future) == [owner]
    single.submit(tasks.keep, "borrowed", tasks.Holder([future])).result(PATIENCE_S)
    del future
    assert everywhere(single, 1, nested.in_tables) == [(1, 0, 1)]
    assert entries(single) == 0
    held = single.submit(tasks.give_up, "borrowed").result(PATIENCE_S)
    assert held.future[0].result(PATIENCE_S) == BYTES
    del held
    nothing_is_left(single, 1)


def test_the_same_reference_by_two_paths(
    pool: OwnershipExecutor, everywhere: Everywhere, nothing_is_left: Any
) -> None:
    """Laws 16 and 17: each process keeps it twice, by its argument and inside of an object."""
    _, _, future = put_by_a_worker(pool)
    everywhere(pool, 2, tasks.keep, "one", pool.shared(future))
    everywhere(pool, 2, tasks.keep, "two", tasks.Holder(pool.put(tasks.Holder(future))))
    del future
    everywhere(pool, 2, tasks.forget, "one")
    held = everywhere(pool, 2, tasks.give_up, "two")
    inner = [holder.future.result(PATIENCE_S).future for holder in held]
    del held
    assert [future.result(PATIENCE_S) for future in inner] == [BYTES] * 2
    del inner
    nothing_is_left(pool, 2)


# Laws 20 and 21


def test_what_a_dead_borrower_has_lent_can_be_read(
    make_pool: MakePool, everywhere: Everywhere, nothing_is_left: Any
) -> None:
    """Law 20: owner, lender and reader are three processes; nobody but the reader keeps it."""
    pool = make_pool(3)
    owner, lender, reader = pool.submit(nested.put_and_lend_twice, BYTES).result(PATIENCE_S)
    assert len({owner, lender, reader}) == 3
    kill(lender)
    found = eventually(
        lambda: [x for x in everywhere(pool, 3, nested.read_if_kept) if x], "nobody has kept it"
    )
    assert found == [BYTES]
    everywhere(pool, 3, nested.forget_all)
    nothing_is_left(pool, 3)


def test_what_a_dead_borrower_has_lent_of_the_drivers_can_be_read(
    pool: OwnershipExecutor, everywhere: Everywhere, nothing_is_left: Any
) -> None:
    """Law 20: the driver has let go, and lent it to the dead one only."""
    future = pool.put(BYTES)
    lending = pool.submit(nested.lend_to_one_that_keeps, pool.shared(future))
    lender, reader = lending.result(PATIENCE_S)
    assert lender != reader
    del future, lending
    kill(lender)
    found = eventually(
        lambda: [x for x in everywhere(pool, 2, nested.read_if_kept) if x], "nobody has kept it"
    )
    assert found == [BYTES]
    everywhere(pool, 2, nested.forget_all)
    nothing_is_left(pool, 2)


def test_what_a_dead_process_borrowed_from_a_worker_is_freed(
    pool: OwnershipExecutor, everywhere: Everywhere, nothing_is_left: Any
) -> None:
    """Law 21: its owner hears of the death, and lets go."""
    pid, _, future = put_by_a_worker(pool)
    keepers = everywhere(pool, 2, tasks.keep, "borrowed", pool.shared(future))
    del future
    everywhere(pool, 2, nested.forget_if, pid)
    assert (1, 0, 1) in everywhere(pool, 2, nested.in_tables)
    (borrower,) = set(keepers) - {pid}
    kill(borrower)
    nothing_is_left(pool, 2)


# Law 24


def test_a_circle_through_two_processes_ends_with_the_executor(
    make_pool: MakePool, everywhere: Everywhere
) -> None:
    """Law 24: the driver's object holds a worker's, and that one the driver's."""
    pool = make_pool(1)
    outside: AnyFuture[Any] = AnyFuture()
    mine = pool.submit(tasks.Holder, outside)
    theirs = pool.submit(nested.hold_in_own_object, pool.shared(mine)).result(PATIENCE_S)
    outside.set_result(theirs)
    assert mine.result(PATIENCE_S).future.result(PATIENCE_S).future.done()
    outside = AnyFuture()
    del mine, theirs
    assert everywhere(pool, 1, nested.in_tables)[0][:2] == (1, 1)
    assert entries(pool) > 0
    pool.shutdown()  # and the leak guard looks for what is left


# Law 26


def test_a_worker_that_owns_something_is_not_replaced_yet(make_pool: MakePool) -> None:
    """Law 26: it has done all its tasks, and others work in its place, until the value is gone."""
    pool = make_pool(1, max_tasks_per_child=1)
    pid, _, future = put_by_a_worker(pool, "small")
    assert pid not in {pool.submit(os.getpid).result(PATIENCE_S) for _ in range(3)}
    assert not has_ended(pid)
    assert pool.submit(tasks.echo, future).result(PATIENCE_S) == "small"
    del future
    eventually(lambda: has_ended(pid), "it does not end")


def test_a_worker_with_a_pending_child_is_not_replaced_yet(
    make_pool: MakePool, bell: Bell, gate: Gate
) -> None:
    """Law 26: its own task is over, and nobody waits for the child."""
    pool = make_pool(1, max_tasks_per_child=1)
    pid = pool.submit(nested.leave_a_child, bell.path, gate.path).result(PATIENCE_S)
    bell.wait()
    assert not has_ended(pid)
    gate.open()
    eventually(lambda: has_ended(pid), "it does not end")


# Laws 48 and 50


def test_no_child_of_a_dead_owner_starts_or_goes_on(
    pool: OwnershipExecutor, bell: Bell, gate: Gate, diary: Path
) -> None:
    """Laws 48 and 49: two run and eighteen are queued when it is killed; it runs again."""
    parent = pool.submit(nested.die_with_children, str(diary), bell.path, gate.path, 20)
    bell.wait(2)
    lines = [line.split() for line in diary.read_text().splitlines()]
    (owner,) = [int(pid) for who, pid in lines if who == "parent"]
    children = [int(pid) for who, pid in lines if who == "child"]
    kill(owner)
    assert parent.result(PATIENCE_S) == "second attempt"
    for pid in children:
        eventually(lambda pid=pid: has_ended(pid), "a child goes on")  # type: ignore[misc]
    pool.shutdown()  # the gate is still closed
    started = [line.split()[0] for line in diary.read_text().splitlines()]
    assert sorted(started) == ["child", "child", "parent", "parent"]


def test_the_values_of_a_dead_owner_are_freed(pool: OwnershipExecutor) -> None:
    """Law 48: also what lies in the memory of another process, which lives on."""
    size = 16 << 20
    pid, _, future = pool.submit(nested.own_what_another_wrote, size).result(PATIENCE_S)
    before = sessions_of([os.getpid()])
    _, view = future.result(PATIENCE_S)
    (session,) = sessions_of([os.getpid()]) - before
    del view
    assert bytes_of(session) >= size
    kill(pid)
    eventually(lambda: bytes_of(session) < size, "its value stays in memory")


def bytes_of(session: str) -> int:
    """The size of a session's segments."""
    return sum(path.stat().st_size for path in Path("/dev/shm").glob(f"od-{session}-*"))


def test_whoever_waits_for_a_dead_owners_task_is_told(
    pool: OwnershipExecutor, bell: Bell, gate: Gate
) -> None:
    """Law 50: the driver, a task that takes the value, and one that waits inside."""
    pid, future = pool.submit(nested.own_a_child_that_waits, bell.path, gate.path).result(
        PATIENCE_S
    )
    bell.wait()
    taking = pool.submit(tasks.echo, future)
    waiting = pool.submit(tasks.ring_and_ask, bell.path, pool.shared(future))
    bell.wait()
    kill(pid)
    for reader in (future, taking, waiting):
        with pytest.raises(OwnerDied):
            reader.result(PATIENCE_S)


def test_what_was_read_from_a_dead_owner_stays(pool: OwnershipExecutor) -> None:
    """Law 50: a view into the memory that it had written, and an object that came inline."""
    pid, _, future = put_by_a_worker(pool, tasks.make_bytes(7))
    view = future.result(PATIENCE_S)
    kill(pid)
    eventually(lambda: pool._driver.machine.borrowing.dead, "its death is not noticed")
    assert tasks.total(view) == 7 * tasks.LARGE
    assert tasks.total(future.result(PATIENCE_S)) == 7 * tasks.LARGE


def test_a_value_in_the_memory_of_its_dead_owner_is_known_as_that(
    pool: OwnershipExecutor,
) -> None:
    """Law 50: also if its reader has heard before that it is there."""
    pid, _, future = put_by_a_worker(pool)
    assert future.exception(PATIENCE_S) is None
    kill(pid)
    eventually(lambda: pool._driver.machine.borrowing.dead, "its death is not noticed")
    for reader in (pool.submit(len, future), future):
        with pytest.raises(OwnerDied):
            reader.result(PATIENCE_S)


# Law 53


def test_recursion_deeper_than_one_stack(single: OwnershipExecutor) -> None:
    """Law 53: beyond what one process runs on its own stack, others take over."""
    pids = single.submit(nested.pids_below, 600).result(PATIENCE_S)
    assert len(pids) == 601 and len(set(pids)) == 3
    assert single.statistics().workers <= 2 * 1 + 4
