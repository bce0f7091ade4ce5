"""A store with a limit: what is counted, and values that are moved to files."""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from owndist.errors import StoreFull
from owndist.store.ledger import SLOTS, Ledger, create_ledger
from owndist.store.local import Store

MakeStore = Callable[..., Store]
MB = 1 << 20


@pytest.fixture
def ledger_fd() -> Iterator[int]:
    """The ledger of a session with a limit of 16 MiB."""
    fd = create_ledger(16 * MB)
    yield fd
    os.close(fd)


def content(store: Store, stored: Any) -> bytes:
    _, _, (view,) = store.read(stored)
    return bytes(view)


def moved(stored: Any, file: str) -> Any:
    """The description of a value in its new place."""
    (number, serial, _, _, size), head, spans = stored
    return (number, serial, file, 0, size), head, spans


# -- the ledger


def test_all_processes_together_stay_below_the_limit(ledger_fd: int) -> None:
    one, two = Ledger(ledger_fd, 0), Ledger(ledger_fd, 1)
    assert one.take(10 * MB) and two.take(5 * MB)
    assert not one.take(2 * MB) and one.taken_bytes == 15 * MB
    assert one.is_tight
    two.give(5 * MB)
    assert one.take(6 * MB) and not two.take(1)


def test_what_a_dead_process_has_left_is_counted_by_its_heir(ledger_fd: int) -> None:
    heir, dead = Ledger(ledger_fd, 0), Ledger(ledger_fd, 3)
    assert dead.take(12 * MB)
    heir.bury(3, 4 * MB)
    assert heir.taken_bytes == 4 * MB
    heir.give(4 * MB)
    assert heir.taken_bytes == 0


def test_a_process_without_a_slot_takes_nothing(ledger_fd: int) -> None:
    assert not Ledger(ledger_fd, SLOTS).take(1)


def _take_and_give(fd: int, slot: int, worst: Any) -> None:
    ledger = Ledger(fd, slot)
    for _ in range(3000):
        if ledger.take(6 * MB):
            worst.value = max(worst.value, sum(1 for w in ledger._words[2:5] if w))
            ledger.give(6 * MB)


def test_processes_that_take_at_once_never_pass_the_limit_together(ledger_fd: int) -> None:
    """Each may have seen another's claim that was taken back; but what is granted is bounded."""
    context = multiprocessing.get_context("fork")
    worst = [context.Value("i", 0) for _ in range(3)]
    crowd = [
        context.Process(target=_take_and_give, args=(ledger_fd, slot, worst[slot]))
        for slot in range(3)
    ]
    for process in crowd:
        process.start()
    for process in crowd:
        process.join()
        assert process.exitcode == 0
        process.close()
    assert all(value.value >= 1 for value in worst)  # each got something
    assert Ledger(ledger_fd, 0).taken_bytes == 0


# -- the store


def test_values_beyond_the_limit_go_to_files(
    make_store: MakeStore, ledger_fd: int, spill: Path
) -> None:
    """Law 47: of small ones and of large ones."""
    ledger = Ledger(ledger_fd, 0)
    store = make_store(ledger=ledger)
    stored = [store.write(b"h", [bytes([n]) * (MB - 9)]) for n in range(20)]
    stored += [store.write(b"h", [bytes([n]) * (5 * MB)]) for n in range(20, 23)]
    assert ledger.taken_bytes <= 16 * MB
    in_files = [s for s in stored if s[0][2].startswith("/")]
    assert 7 <= len(in_files) <= 12
    assert [content(store, s)[:1] for s in stored] == [bytes([n]) for n in range(23)]
    for one in stored:
        store.free(one[0][1])
    assert os.listdir(spill) == []
    store.trim()
    assert ledger.taken_bytes == 0


def test_nothing_is_kept_free_when_the_limit_is_near(make_store: MakeStore, ledger_fd: int) -> None:
    """What one process keeps for later, another could use now."""
    one, two = (make_store(n, ledger=Ledger(ledger_fd, n)) for n in (1, 2))
    mine = one.write(b"h", [b"a" * (8 * MB)])
    two.write(b"h", [b"a" * (7 * MB)])
    one.free(mine[0][1])
    assert one.cached_bytes == 0
    assert not two.write(b"h", [b"a" * (8 * MB)])[0][2].startswith("/")


@pytest.mark.parametrize("size", [200_000, 20 * MB])
def test_a_value_moves_to_a_file_and_is_the_same(
    make_store: MakeStore, spill: Path, size: int
) -> None:
    store = make_store()
    data = os.urandom(size)
    stored = store.write(b"h", [data])
    live = store.live_bytes
    file = store.spill(stored[0][1])
    assert file is not None and os.path.dirname(file) == str(spill)
    store.choose(stored[0][1], copy=True)
    assert content(store, moved(stored, file)) == data
    assert store.live_bytes <= live
    assert store.spill(stored[0][1]) is None  # it is there already
    store.free(stored[0][1])
    assert os.listdir(spill) == [] and store.live_bytes == 0


def test_the_memory_of_a_moved_value_is_used_again(make_store: MakeStore, spill: Path) -> None:
    store = make_store()
    stored = store.write(b"h", [b"a" * 300_000])
    file = store.spill(stored[0][1])
    store.choose(stored[0][1], copy=True)
    again = store.write(b"h", [b"b" * 300_000])
    assert again[0][2:4] == stored[0][2:4]
    assert content(store, moved(stored, file)) == b"a" * 300_000


def test_a_copy_that_is_not_wanted_goes(make_store: MakeStore, spill: Path) -> None:
    store = make_store()
    stored = store.write(b"h", [b"a" * 300_000])
    assert store.spill(stored[0][1]) is not None
    store.choose(stored[0][1], copy=False)
    assert os.listdir(spill) == []
    assert content(store, stored) == b"a" * 300_000


@pytest.mark.parametrize("way", ["free", "abandon"])
def test_a_value_that_is_freed_or_given_up_with_its_copy_leaves_nothing(
    make_store: MakeStore, spill: Path, way: str
) -> None:
    store = make_store()
    stored = store.write(b"h", [b"a" * 300_000])
    assert store.spill(stored[0][1]) is not None
    getattr(store, way)(stored[0][1])
    store.choose(stored[0][1], copy=True)  # said before the owner let go: too late
    assert os.listdir(spill) == [] and store.live_values == 0
    assert store.spill(stored[0][1]) is None


def test_a_disk_that_takes_nothing_is_told_and_leaves_nothing(
    make_store: MakeStore, spill: Path
) -> None:
    spill.mkdir(mode=0o777)
    spill.chmod(0o777)  # others may write to it, so it is not used
    store = make_store()
    stored = store.write(b"h", [b"a" * 300_000])
    assert store.spill(stored[0][1]) is None
    assert content(store, stored) == b"a" * 300_000
    assert os.listdir(spill) == []


@pytest.fixture
def no_disk(spill: Path) -> None:
    """A spill directory that others may write to: it is not used."""
    spill.mkdir()
    spill.chmod(0o777)


def test_a_write_waits_until_another_value_is_freed(
    make_store: MakeStore, ledger_fd: int, no_disk: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Law 47: neither memory nor disk has room; one line tells of it."""
    store = make_store(ledger=Ledger(ledger_fd, 0), room_wait_s=60)
    first = store.write(b"h", [b"a" * (10 * MB)])

    def free_it() -> None:
        while not store._waiting:
            assert waiter.is_alive()
        store.free(first[0][1])

    results: list[Any] = []
    waiter = threading.Thread(target=lambda: results.append(store.write(b"h", [b"b" * 10 * MB])))
    with caplog.at_level(logging.WARNING, "owndist.store"):
        waiter.start()
        free_it()
        waiter.join()
    assert content(store, results[0]) == b"b" * 10 * MB
    (line,) = [r.getMessage() for r in caplog.records if "waiting up to" in r.getMessage()]
    assert f"pid {os.getpid()} (10,485,760 bytes)" in line


def test_a_write_that_waited_in_vain_names_the_holders(
    make_store: MakeStore, ledger_fd: int, no_disk: None
) -> None:
    """Law 47."""
    store = make_store(ledger=Ledger(ledger_fd, 0), room_wait_s=0.3)
    store.write(b"h", [b"a" * (10 * MB)])
    with pytest.raises(StoreFull) as told:
        store.write(b"h", [b"b" * (10 * MB)])
    assert "limit of 16,777,216 bytes" in str(told.value)
    assert "1 values that are kept, the largest of 10,485,760 bytes" in str(told.value)
    assert f"pid {os.getpid()} (10,485,760 bytes)" in str(told.value)


def test_a_thread_that_makes_room_itself_does_not_wait(
    make_store: MakeStore, ledger_fd: int, no_disk: None
) -> None:
    store = make_store(ledger=Ledger(ledger_fd, 0), room_wait_s=3600, may_wait=lambda: False)
    with pytest.raises(StoreFull):
        store.write(b"h", [b"b" * (20 * MB)])
