"""The leak guard: what a test leaves behind fails it.

Five kinds of things are looked at before and after a test: processes, threads, file descriptors,
shared-memory segments and temporary files. Whatever is new afterwards gets a few seconds to go
away, because ends are asynchronous; what is still there then is named, and removed where it can
be, so that the next test starts clean.

Several test runs may share one machine. So processes count only if they descend from this one (see
`_Mark` for orphans), and segments and files only if no process of another run is seen to use them.

An executor of a wider scope than a test must have all its workers started before the test begins.
"""

from __future__ import annotations

import gc
import mmap
import os
import shutil
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Hashable, Iterator
from pathlib import Path

import psutil
import pytest

PATIENCE_S = 5.0  # how long what is new may take to go away; the guard's own test shortens it
SEGMENT_PREFIX = "od-"
TEMPORARY_PREFIX = "owndist-"
SEGMENT_DIRECTORY = Path("/dev/shm")
PROC = Path("/proc")

Found = dict[str, dict[Hashable, str]]  # kind -> {identity: how to name it in a message}


class _Mark:
    """Something that every process below this one inherits, also when its parent dies.

    A child whose parent has died hangs below init and is no longer seen as a descendant. A child
    made by fork still has the memory mapping of the mark, one made by exec the variable in its
    first environment. Linux only; elsewhere orphans go unseen.
    """

    VARIABLE = "OWNDIST_LEAK_GUARD"

    def __init__(self) -> None:
        self._name = f"leak-guard-{uuid.uuid4().hex}"
        self._strangers: set[int] = set()  # pids known to be without the mark
        if not hasattr(os, "memfd_create"):
            return
        # A run inside a test of another run carries both marks.
        outer = os.environ.get(self.VARIABLE)
        os.environ[self.VARIABLE] = f"{outer} {self._name}" if outer else self._name
        descriptor = os.memfd_create(self._name)
        os.truncate(descriptor, mmap.PAGESIZE)
        self._mapping = mmap.mmap(descriptor, mmap.PAGESIZE)
        os.close(descriptor)  # mmap has made a duplicate of its own

    def carriers(self) -> list[int]:
        """All processes but this one that carry the mark."""
        if not hasattr(self, "_mapping"):
            return []
        pids = {int(name) for name in os.listdir(PROC) if name.isdigit()}
        self._strangers &= pids
        carriers = []
        for pid in sorted(pids - self._strangers - {os.getpid()}):
            if self._carries(pid):
                carriers.append(pid)
            else:
                self._strangers.add(pid)
        return carriers

    def _carries(self, pid: int) -> bool:
        name = self._name.encode()
        return name in _read(PROC / str(pid) / "environ") or name in _read(PROC / str(pid) / "maps")


_mark = _Mark()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""  # the process ended meanwhile, or is none of ours


def stdlib_helpers() -> tuple[set[int], set[str]]:
    """The processes and descriptor targets that multiprocessing keeps as long as this process.

    They belong to its resource tracker, its fork server and its heap of shared ctypes. Only those
    that multiprocessing itself names are meant, not all that look alike.
    """
    processes: set[int] = set()
    descriptors: set[int] = set()
    tracker = getattr(
        sys.modules.get("multiprocessing.resource_tracker"), "_resource_tracker", None
    )
    if tracker is not None and tracker._pid is not None:
        processes.add(tracker._pid)
        descriptors.add(tracker._fd)
    server = getattr(sys.modules.get("multiprocessing.forkserver"), "_forkserver", None)
    if server is not None and server._forkserver_pid is not None:
        processes.add(server._forkserver_pid)
        descriptors.add(server._forkserver_alive_fd)
    heap = sys.modules.get("multiprocessing.heap")
    if heap is not None:
        descriptors.update(arena.fd for arena in heap.BufferWrapper._heap._arenas)
    return processes, {_target(descriptor) for descriptor in descriptors} - {""}


def _target(descriptor: int) -> str:
    """What a descriptor is open on; "" when it is closed, or where there is no /proc."""
    try:
        return os.readlink(PROC / "self" / "fd" / str(descriptor)).removesuffix(" (deleted)")
    except FileNotFoundError:
        return ""


def _processes(benign: set[int]) -> dict[Hashable, str]:
    children = {child.pid: child for child in psutil.Process().children(recursive=True)}
    found: dict[Hashable, str] = {}
    for pid in {*children, *_mark.carriers()} - benign:
        try:
            process = children.get(pid) or psutil.Process(pid)
            if _has_ended(process):
                continue
            command = " ".join(process.cmdline())
            text = f"pid {pid}, child of {process.ppid()}: {command[:300]}"
            found[(pid, process.create_time())] = text
        except psutil.NoSuchProcess:
            continue
    return found


def _has_ended(process: psutil.Process) -> bool:
    """Gone, or a zombie: whoever started it may take its time to ask how it ended."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _threads() -> dict[Hashable, str]:
    # Keyed by the thread itself: a name or an ident may come again.
    return {
        thread: f"{thread.name!r}{' (daemon)' if thread.daemon else ''}"
        for thread in threading.enumerate()
    }


def _descriptors(benign: set[str]) -> dict[Hashable, str]:
    directory = PROC / "self" / "fd"
    if not directory.is_dir():  # at least the regular files
        files = psutil.Process().open_files()
        return {(file.fd, file.path): f"{file.fd} -> {file.path}" for file in files}
    found: dict[Hashable, str] = {}
    for descriptor in map(int, os.listdir(directory)):
        target = _target(descriptor)
        if target and target not in benign:  # "": the one that listdir itself had open
            found[(descriptor, target)] = f"{descriptor} -> {target}"
    return found


def _entries(directory: Path, prefix: str) -> dict[Hashable, str]:
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return {}
    paths = [directory / name for name in names if name.startswith(prefix)]
    return {path: str(path) for path in paths}


def look() -> Found:
    """Everything of the five kinds that is there now."""
    processes, descriptors = stdlib_helpers()
    return {
        "process": _processes(processes),
        "thread": _threads(),
        "descriptor": _descriptors(descriptors),
        "segment": _entries(SEGMENT_DIRECTORY, SEGMENT_PREFIX),
        "temporary file": _entries(Path(tempfile.gettempdir()), TEMPORARY_PREFIX),
    }


def _token(path: Path) -> str:
    """What the maps and descriptors of a process show if it has to do with a segment or a file.

    For segments that is the session, `od-<session>-` of `od-<session>-<number>-<k>`: not every
    segment of a session is in someone's hands at every moment, but its lock is, until its last
    process has ended.
    """
    if path.parent == SEGMENT_DIRECTORY:
        return "-".join(path.name.split("-")[:2]) + "-"
    return str(path)


_foreign_tokens: set[str] = set()  # those that were seen in the hands of another run


def _without_foreign(things: dict[Hashable, str]) -> dict[Hashable, str]:
    """Only the segments or files that no process outside this run has to do with."""
    tokens = {path: _token(path) for path in things if isinstance(path, Path)}
    unknown = set(tokens.values()) - _foreign_tokens
    if unknown and PROC.is_dir():
        own = {os.getpid(), *_mark.carriers()}
        for name in os.listdir(PROC):
            if name.isdigit() and int(name) not in own:
                held = _held(int(name))
                _foreign_tokens.update(token for token in unknown if token in held)
    return {path: things[path] for path in tokens if tokens[path] not in _foreign_tokens}


def _held(pid: int) -> str:
    """All that a process has mapped or open, as one text to search in."""
    held = [_read(PROC / str(pid) / "maps").decode(errors="replace")]
    try:
        for entry in os.listdir(PROC / str(pid) / "fd"):
            held.append(os.readlink(PROC / str(pid) / "fd" / entry))
    except OSError:
        pass  # the process, or this one descriptor, is gone meanwhile
    return "\n".join(held)


def left_since(before: Found) -> Found:
    """What is new compared with `before`; kinds with nothing new are left out."""
    left: Found = {}
    for kind, now in look().items():
        new = {identity: text for identity, text in now.items() if identity not in before[kind]}
        if new and kind in {"segment", "temporary file"}:
            new = _without_foreign(new)
        if new:
            left[kind] = new
    return left


def wait_until_gone(before: Found, patience_s: float) -> Found:
    """Wait until nothing new is left, at most `patience_s` seconds; returns what is left."""
    left = left_since(before)
    if not left:
        return left  # a full collection costs more than all the rest: only when there is a doubt
    gc.collect()
    deadline = time.monotonic() + patience_s
    pause_s = 0.001
    while (left := left_since(before)) and time.monotonic() < deadline:
        # Polling, because there is no one event for "the kernel has forgotten all of it".
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 0.1)
    return left


def remove(left: Found) -> None:
    """End the processes and delete the files. Threads and descriptors have to stay."""
    killed = []
    for identity in left.get("process", ()):
        assert isinstance(identity, tuple)
        pid, created = identity
        try:
            process = psutil.Process(pid)
            if process.create_time() == created:  # else the number has been given again
                process.kill()
                killed.append(process)
        except psutil.NoSuchProcess:
            continue
    deadline = time.monotonic() + 5
    while not all(map(_has_ended, killed)) and time.monotonic() < deadline:
        time.sleep(0.01)
    for path in [*left.get("segment", ()), *left.get("temporary file", ())]:
        assert isinstance(path, Path)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def describe(left: Found) -> str:
    """One line per thing, for the message of the failing test."""
    lines = [f"  {kind}: {text}" for kind, things in left.items() for text in things.values()]
    return "\n".join(["left behind by this test:", *lines])


@pytest.fixture(autouse=True)
def leak_guard() -> Iterator[None]:
    """Fails any test that leaves something behind."""
    before = look()
    yield
    left = wait_until_gone(before, PATIENCE_S)
    if left:
        remove(left)
        pytest.fail(describe(left), pytrace=False)
