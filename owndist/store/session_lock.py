"""Which sessions still live, so that the shared memory of dead ones can be removed.

The template removes what a session leaves when the driver dies. If both are killed at once (a
`pkill`, the kernel's out-of-memory killer, a container's end), nobody is left to do it, and shared
memory outlives all processes. So every session has a small file beside its segments on which its
processes hold a lock, and which says where its spill directory is. The kernel lets a lock go when
the last process that holds it is gone. Each new session looks for such files without a lock, and
removes what those sessions left.

Only where shared memory can be listed, that is on Linux.
"""

from __future__ import annotations

import fcntl
import os
import sys

from .segments import SHM_DIRECTORY, lock_name, sweep

_PREFIX, _SUFFIX = lock_name("*").split("*")


def lock_session(session: str, spill_directory: str) -> int | None:
    """Say that a session lives: as long as any process has the descriptor that is returned.

    Args:
        session: its name.
        spill_directory: where its files are, if it has any.

    Returns:
        A descriptor, to be inherited by forks, or None where there is no shared memory to list,
        or no room in it.
    """
    if sys.platform != "linux":
        return None
    path = os.path.join(SHM_DIRECTORY, lock_name(session))
    # It gets its name when it is locked, so that nobody takes it for that of a dead session.
    unnamed = f"{path}-made"
    try:
        fd = os.open(unnamed, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:
        return None  # no shared memory here, or it is full: all values go to files
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.pwrite(fd, os.fsencode(spill_directory), 0)
        os.rename(unnamed, path)
    except OSError:
        os.close(fd)
        os.unlink(unnamed)
        return None  # no room for a page of text, or no locks here
    return fd


def sweep_dead_sessions() -> None:
    """Remove what sessions of this user have left of which no process lives."""
    if sys.platform != "linux":
        return
    try:
        names = os.listdir(SHM_DIRECTORY)
    except OSError:
        return  # there is none
    for name in names:
        if name.startswith(_PREFIX) and name.endswith(_SUFFIX):
            _sweep_if_dead(name[len(_PREFIX) : -len(_SUFFIX)])


def _sweep_if_dead(session: str) -> None:
    path = os.path.join(SHM_DIRECTORY, lock_name(session))
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return  # gone meanwhile, or another user's
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        spill_directory = os.fsdecode(os.pread(fd, 4096, 0))
        if spill_directory and os.fstat(fd).st_uid == os.geteuid():
            sweep(session, spill_directory)
    except OSError:
        pass  # it lives, or something in there is not ours to remove
    finally:
        os.close(fd)
