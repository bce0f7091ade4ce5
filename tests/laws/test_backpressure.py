"""Law 57: with a limit on what is pending, submission waits."""

from __future__ import annotations

import itertools
import signal
import threading
from concurrent.futures import Future
from typing import Any

import pytest

from owndist import OwnershipExecutor
from tests.parity.conftest import Bell, Gate

from . import tasks
from .conftest import MakePool
from .helpers import PATIENCE_S, eventually, machine_of


def pending(pool: OwnershipExecutor) -> int:
    return len(machine_of(pool).submission.tasks)


class Submitter(threading.Thread):
    """Submits until it is told to stop, and keeps what it got."""

    def __init__(self, pool: OwnershipExecutor, count: int, path: str, *args: Any) -> None:
        super().__init__()
        self.futures: list[Any] = []
        self.error: BaseException | None = None
        self._submit = lambda: pool.submit(tasks.pass_gate, path, *args)
        self._count = count

    def run(self) -> None:
        try:
            for _ in range(self._count):
                self.futures.append(self._submit())
        except BaseException as error:
            self.error = error


def test_submit_waits_for_room(make_pool: MakePool, gate: Gate) -> None:
    """Law 57: so many tasks and no more are pending, until one ends."""
    pool = make_pool(1, max_pending_tasks=5)
    thread = Submitter(pool, 20, gate.path)
    thread.start()
    eventually(lambda: pending(pool) == 5, "it does not come to five")
    thread.join(0.05)
    assert thread.is_alive() and len(thread.futures) == 5
    gate.open()
    thread.join(PATIENCE_S)
    assert not thread.is_alive() and len(thread.futures) == 20
    assert [future.exception(PATIENCE_S) for future in thread.futures] == [None] * 20


def test_many_short_tasks_pass_a_narrow_gate(make_pool: MakePool) -> None:
    """Law 57: memory stays bounded, and nothing is lost in a burst."""
    pool = make_pool(2, max_pending_tasks=10)
    most = 0
    futures = []
    for number in range(3000):
        futures.append(pool.submit(tasks.echo, number))
        most = max(most, pending(pool))
    assert [future.result(PATIENCE_S) for future in futures] == list(range(3000))
    assert most <= 10


def test_submit_waits_for_the_bytes_of_arguments(make_pool: MakePool, gate: Gate) -> None:
    """Law 57: a task of any size goes alone."""
    pool = make_pool(1, max_pending_bytes=1_000_000)
    blocker = pool.submit(tasks.pass_gate, gate.path)
    large = pool.submit(len, bytes(3_000_000))
    thread = threading.Thread(target=lambda: pool.submit(tasks.echo, 1).result(PATIENCE_S))
    thread.start()
    thread.join(0.05)
    assert thread.is_alive() and pending(pool) == 2
    gate.open()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert blocker.exception(PATIENCE_S) is None and large.result(PATIENCE_S) == 3_000_000


def test_a_callback_may_submit_at_any_time(make_pool: MakePool) -> None:
    """Law 57: it runs in the thread that would make room, so it does not wait."""
    pool = make_pool(1, max_pending_tasks=1)
    more: list[Future[int]] = []
    told = threading.Event()

    def submit_three(_: Any) -> None:
        more.extend(pool.submit(tasks.echo, number) for number in range(3))
        told.set()

    pool.submit(tasks.echo, 0).add_done_callback(submit_three)
    assert told.wait(PATIENCE_S)
    assert [future.result(PATIENCE_S) for future in more] == [0, 1, 2]


def test_what_only_the_submitter_can_bring_is_not_waited_for(make_pool: MakePool) -> None:
    """Law 57: all that is pending waits for a future that this very thread completes later."""
    pool = make_pool(1, max_pending_tasks=2)
    mine: Future[int] = Future()
    futures = [pool.submit(tasks.echo, mine) for _ in range(6)]
    mine.set_result(7)
    assert [future.result(PATIENCE_S) for future in futures] == [7] * 6


def test_a_shutdown_ends_the_waiting(make_pool: MakePool, gate: Gate) -> None:
    """Law 57: with the error that submit gives after a shutdown."""
    pool = make_pool(1, max_pending_tasks=2)
    thread = Submitter(pool, 5, gate.path)
    thread.start()
    eventually(lambda: pending(pool) == 2, "it does not come to two")
    pool.shutdown(wait=False)
    thread.join(PATIENCE_S)
    assert isinstance(thread.error, RuntimeError) and len(thread.futures) == 2
    gate.open()
    assert [future.exception(PATIENCE_S) for future in thread.futures] == [None, None]


def test_ctrl_c_ends_the_waiting(make_pool: MakePool, gate: Gate, bell: Bell) -> None:
    """Laws 57 and 68: and the executor is of use afterwards."""
    pool = make_pool(1, max_pending_tasks=1)
    running = pool.submit(tasks.ring_and_pass, bell.path, gate.path)
    bell.wait()
    own = threading.main_thread().ident
    assert own is not None
    waits = pool._driver._gate._waiting  # type: ignore[attr-defined]
    waits.clear()

    interrupted = threading.Event()

    def interrupt() -> None:
        eventually(lambda: len(waits) > 0, "nobody waits")
        # Again, if need be: one that comes just before the wait begins does not end it.
        while not interrupted.is_set():
            signal.pthread_kill(own, signal.SIGINT)
            interrupted.wait(1)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        try:
            pool.submit(tasks.echo, 1)
        finally:
            interrupted.set()
    thread.join(PATIENCE_S)
    gate.open()
    assert running.exception(PATIENCE_S) is None
    assert pool.submit(tasks.echo, 2).result(PATIENCE_S) == 2


def test_map_over_an_endless_iterable_is_bounded(make_pool: MakePool) -> None:
    """Law 57: by `buffersize`, whatever else is limited."""
    pool = make_pool(2, max_pending_tasks=4)
    drawn = itertools.count()
    results = pool.map(tasks.echo, drawn, buffersize=8)
    assert list(itertools.islice(results, 100)) == list(range(100))
    assert next(drawn) <= 110
    results.close()  # type: ignore[attr-defined]
    assert list(pool.map(tasks.echo, range(1000))) == list(range(1000))


@pytest.mark.parametrize("name", ["max_pending_tasks", "max_pending_bytes"])
@pytest.mark.parametrize("wrong", [0, -1, "1", 1.5, True])
def test_limits_are_numbers(name: str, wrong: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=name):
        OwnershipExecutor(1, **{name: wrong})
