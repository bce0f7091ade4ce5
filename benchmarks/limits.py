"""Bare limits of the machine, which no executor gets below; measured in the same run."""

from __future__ import annotations

import mmap
import os
import pickle
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.tasks import MB, no_op

_HEADER_BYTES = 4


@dataclass(frozen=True)
class Limit:
    """Seconds that something takes without any executor.

    Attributes:
        title: in the table.
        samples: yields the durations.
    """

    title: str
    samples: Callable[[], Iterator[float]]


def _round_trips() -> Iterator[float]:
    """A pickled call to another process, and its pickled result: two messages."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if not pid:
        ours.close()
        while call := theirs.recv(1 << 16):
            fn, args = pickle.loads(call)
            theirs.send(pickle.dumps((1, fn(*args))))
        os._exit(0)
    theirs.close()
    for _ in range(2_000):
        start = time.perf_counter()
        ours.send(pickle.dumps((no_op, ())))
        pickle.loads(ours.recv(1 << 16))
        yield time.perf_counter() - start
    ours.close()
    os.waitpid(pid, 0)


def _copies(cold: bool) -> Iterator[float]:
    source = mmap.mmap(-1, 256 * MB)
    source[:] = bytes(256 * MB)
    target = mmap.mmap(-1, 256 * MB)
    if not cold:
        target[:] = source
    for _ in range(5):
        start = time.perf_counter()
        target[:] = source
        yield time.perf_counter() - start
        if cold:
            target.close()
            target = mmap.mmap(-1, 256 * MB)


def _forks() -> Iterator[float]:
    for _ in range(20):
        start = time.perf_counter()
        pid = os.fork()
        if not pid:
            os._exit(0)
        os.waitpid(pid, 0)
        yield time.perf_counter() - start


LIMITS = {
    "round_trip": Limit("a pickled call and its result through a socket", _round_trips),
    "copy": Limit("a copy of 256 MB to memory that was used before", lambda: _copies(cold=False)),
    "cold_copy": Limit("a copy of 256 MB to fresh memory", lambda: _copies(cold=True)),
    "fork": Limit("a fork, the child's end and a wait for it", _forks),
}
