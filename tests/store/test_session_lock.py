"""What a session left of which no process lives is removed; nothing else is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from owndist.store.segments import SHM_DIRECTORY, lock_name, sweep
from owndist.store.session_lock import lock_session, sweep_dead_sessions

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="shared memory cannot be listed")


@pytest.fixture
def session(tmp_path: Path) -> Iterator[str]:
    """A session with a segment and a file, as its processes would leave them."""
    name = os.urandom(4).hex()
    Path(SHM_DIRECTORY, f"od-{name}-1-0").write_bytes(b"segment")
    spill = tmp_path / "spill"
    spill.mkdir()
    (spill / f"od-{name}-1-1").write_bytes(b"file")
    (spill / "other").write_bytes(b"somebody else's")
    yield name
    sweep(name, str(spill))


def left(session: str) -> list[str]:
    return sorted(name for name in os.listdir(SHM_DIRECTORY) if f"-{session}-" in name)


def lock(session: str, tmp_path: Path) -> int:
    fd = lock_session(session, str(tmp_path / "spill"))
    assert fd is not None
    return fd


def test_a_session_that_lives_is_left_alone(session: str, tmp_path: Path) -> None:
    """Law 28: only what is dead is removed, also by the process that holds the lock itself."""
    fd = lock(session, tmp_path)
    sweep_dead_sessions()
    assert left(session) == [f"od-{session}-1-0", lock_name(session)]
    os.close(fd)


def test_a_session_lives_as_long_as_any_of_its_processes(session: str, tmp_path: Path) -> None:
    """The first process is gone; a child that inherited the lock is not."""
    fd = lock(session, tmp_path)
    child = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(fd,)
    )
    os.close(fd)
    sweep_dead_sessions()
    assert len(left(session)) == 2
    child.communicate(b"\n")
    sweep_dead_sessions()
    assert not left(session)


def test_of_a_dead_session_all_is_removed(session: str, tmp_path: Path) -> None:
    """Its segments, its files, its lock; not what others put beside its files."""
    os.close(lock(session, tmp_path))
    sweep_dead_sessions()
    assert not left(session)
    assert [path.name for path in (tmp_path / "spill").iterdir()] == ["other"]


def test_segments_without_a_lock_are_left_alone(session: str, tmp_path: Path) -> None:
    """They belong to a session that could not make one: /dev/shm was full then."""
    sweep_dead_sessions()
    assert left(session) == [f"od-{session}-1-0"]


def test_a_lock_that_is_not_a_file_is_no_obstacle(session: str) -> None:
    """/dev/shm can be written to by everybody."""
    path = Path(SHM_DIRECTORY, lock_name(session))
    for make in (os.mkfifo, os.mkdir, lambda name: os.symlink("/etc/passwd", name)):
        make(path)
        try:
            sweep_dead_sessions()
            assert len(left(session)) == 2
        finally:
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink()
