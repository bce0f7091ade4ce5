"""Segments by themselves: names, memory behind them, and getting rid of them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from owndist.store.segments import (
    GRANULE,
    MAX_NAME,
    PIECE_BYTES,
    Segment,
    open_segment,
    segment_name,
    sweep,
    unlink_segment,
    unlink_segments,
)
from tests.store.pickled import SHM, run_python, segments

needs_dev_shm = pytest.mark.skipif(not SHM.is_dir(), reason="shared memory cannot be listed here")


@pytest.fixture
def segment(session: str) -> Iterator[Segment]:
    segment = Segment(segment_name(session, 1, 0), 4 * GRANULE)
    yield segment
    segment.unlink()


def content(segment: Segment) -> bytes:
    fd = open_segment(segment.name, os.O_RDONLY)
    with os.fdopen(fd, "rb") as file:
        return file.read()


def test_the_name_fits_every_system() -> None:
    assert len(segment_name("0123456789ab", 99999, 999999)) <= MAX_NAME


def test_the_standard_library_can_open_a_segment(session: str) -> None:
    """Our segments are what `multiprocessing.shared_memory` makes, under a name of ours."""
    output = run_python(
        """
import sys
from multiprocessing.shared_memory import SharedMemory
from owndist.store.segments import Segment
name = sys.argv[1]
segment = Segment(name, 8192)
segment.reserve(8192)
segment.write([(5000, memoryview(b"hello"))])
shared = SharedMemory(name)
print(shared.size, bytes(shared.buf[5000:5005]))
shared.close()
shared.unlink()  # also takes it from the list of what the standard library would clean up
""",
        segment_name(session, 1, 0),
    )
    assert output == "8192 b'hello'"


def test_a_segment_is_for_its_user_alone(segment: Segment) -> None:
    fd = open_segment(segment.name, os.O_RDONLY)
    try:
        assert os.fstat(fd).st_mode & 0o777 == 0o600
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


def test_an_existing_name_is_not_taken_over(segment: Segment) -> None:
    segment.reserve(GRANULE)
    segment.write([(0, memoryview(b"mine"))])
    with pytest.raises(FileExistsError):
        Segment(segment.name, GRANULE)
    assert content(segment)[:4] == b"mine"


def test_a_new_segment_takes_no_memory_until_it_is_reserved(segment: Segment) -> None:
    fd = open_segment(segment.name, os.O_RDONLY)
    try:
        assert os.fstat(fd).st_blocks == 0
        segment.reserve(GRANULE + 1)
        assert os.fstat(fd).st_blocks * 512 >= GRANULE + 1
        assert os.fstat(fd).st_size == 4 * GRANULE
        segment.reserve(GRANULE)  # less than there is: nothing to do
        assert segment.reserved == GRANULE + 1
        assert segment.shrink(GRANULE) == 1
        assert segment.shrink(GRANULE) == 0
        assert segment.shrink(0) == GRANULE
        assert os.fstat(fd).st_blocks == 0
        assert os.fstat(fd).st_size == 4 * GRANULE
    finally:
        os.close(fd)


def test_first_and_later_writes_give_the_same_bytes(segment: Segment) -> None:
    """The two ways of writing, by descriptor and by mapping."""
    segment.reserve(segment.size)
    for filling in (b"a", b"b", b"c"):
        parts = [(10, filling * 100), (GRANULE, filling * GRANULE), (4 * GRANULE - 1, filling)]
        segment.write([(offset, memoryview(data)) for offset, data in parts])
        segment.written = segment.size
        expected = bytearray(4 * GRANULE)
        for offset, data in parts:
            expected[offset : offset + len(data)] = data
        assert content(segment) == expected


def test_more_than_a_piece_arrives_whole(session: str) -> None:
    size = PIECE_BYTES + 3 * GRANULE
    segment = Segment(segment_name(session, 1, 0), size)
    try:
        segment.reserve(size)
        for seed in (1, 2):
            data = bytes(range(seed, 252)) * (size // (252 - seed) + 1)
            segment.write([(0, memoryview(data)[:size])])
            segment.written = size
            assert content(segment) == data[:size]
    finally:
        segment.unlink()


def test_no_descriptor_is_kept(segment: Segment) -> None:
    """Law 27: the leak guard counts descriptors, but only at the end."""
    before = psutil.Process().num_fds()
    segment.reserve(GRANULE)
    segment.write([(0, memoryview(b"x"))])
    assert psutil.Process().num_fds() == before


def test_memory_that_was_given_back_can_be_reserved_and_written_again(segment: Segment) -> None:
    for filling in (b"1", b"2", b"3"):
        segment.reserve(segment.size)
        segment.write([(0, memoryview(filling * segment.size))])
        segment.written = segment.size
        segment.write([(GRANULE, memoryview(filling * GRANULE))])
        assert content(segment) == filling * segment.size
        segment.shrink(GRANULE)
        assert segment.written == GRANULE
        assert content(segment) == filling * GRANULE + bytes(3 * GRANULE)


def test_unlinking_a_missing_segment_says_so(session: str, tmp_path: Path) -> None:
    assert unlink_segment(segment_name(session, 1, 0)) is False
    assert unlink_segment(str(tmp_path / "missing")) is False


@needs_dev_shm
def test_the_segments_of_a_dead_process_are_unlinked_by_counting(
    session: str, tmp_path: Path
) -> None:
    """Law 29: what a killed process made goes away, and nothing of anyone else."""
    for number, k in [(1, 0), (1, 2), (1, 3), (2, 0), (11, 0)]:
        Segment(segment_name(session, number, k), GRANULE)
    Segment(str(tmp_path / segment_name(session, 1, 1)), GRANULE)
    unlink_segments(session, 1, 3, str(tmp_path))
    assert segments(session) == [segment_name(session, n, k) for n, k in [(1, 3), (11, 0), (2, 0)]]
    assert os.listdir(tmp_path) == []
    unlink_segments(session, 1, 4)
    unlink_segments(session, 2, 1)
    unlink_segments(session, 11, 1)


@needs_dev_shm
def test_the_sweep_takes_all_of_its_session_and_nothing_else(session: str, spill: Path) -> None:
    """Law 28: the janitor leaves no segment, no spill file and no spill directory."""
    spill.mkdir()
    for number, k in [(0, 0), (1, 0), (1, 17)]:
        Segment(segment_name(session, number, k), GRANULE)
        Segment(str(spill / segment_name(session, number, k + 1)), GRANULE)
    other = Segment(segment_name(session + "x", 1, 0), GRANULE)
    try:
        sweep(session, str(spill))
        assert segments(session) == []
        assert not spill.exists()
        assert segments(session + "x") == [other.name]
    finally:
        other.unlink()
    sweep(session, str(spill))  # nothing there: no harm


def test_the_sweep_spares_files_that_are_not_the_session_s(session: str, spill: Path) -> None:
    """A user may name any directory as the spill directory."""
    spill.mkdir()
    (spill / "thesis.txt").write_text("years of work")
    sweep(session, str(spill))
    assert (spill / "thesis.txt").read_text() == "years of work"


def test_reserving_under_a_storm_of_signals_ends(session: str) -> None:
    """tmpfs undoes a reservation that a signal interrupts; in one piece it would never end."""
    output = run_python(
        """
import signal, sys
from owndist.store.segments import Segment
caught = []
signal.signal(signal.SIGALRM, lambda *_: caught.append(1))
segment = Segment(sys.argv[1], 192 << 20)
try:
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    segment.reserve(192 << 20)
    segment.write([(0, memoryview(bytes(1 << 20)))])
    signal.setitimer(signal.ITIMER_REAL, 0)
finally:
    segment.unlink()
print(segment.reserved, len(caught) > 0)
""",
        segment_name(session, 1, 0),
    )
    assert output == f"{192 << 20} True"


def test_a_segment_may_shrink_while_it_is_mapped_for_writing(segment: Segment) -> None:
    """A reader thread frees and gives pages back, the main thread writes for the first time."""
    start = segment.size // 2
    errors: list[BaseException] = []
    done = threading.Event()

    def shrink() -> None:
        while not done.is_set():
            segment.shrink(start)
            segment.reserve(segment.size)

    thread = threading.Thread(target=shrink)
    segment.reserve(segment.size)
    thread.start()
    try:
        for _ in range(2_000):
            segment._mapping = None  # as in a segment of which nothing was used twice yet
            segment.written = start
            segment.write([(0, memoryview(b"head"))])
    except ValueError as error:
        errors.append(error)
    finally:
        done.set()
        thread.join()
    assert errors == []
