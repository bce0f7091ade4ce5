"""The initializer's arguments, for workers that inherit nothing.

Locks, queues and pipes of `multiprocessing` may be pickled only while a process is being
started: they look for the process that is being spawned, and hand it their descriptors. Under
`spawn` and `forkserver` the standard library's executor passes them in `initargs`, so scripts do.
"""

from __future__ import annotations

import contextlib
import copyreg
from collections.abc import Iterator
from typing import Any

from ..wire.functions import Encoder
from ..wire.pickling import Encoded


class _Spawning:
    """What multiprocessing sees as the process being spawned: it collects descriptors.

    They keep their numbers: the template is started with them, and the workers inherit them.
    """

    def __init__(self) -> None:
        from multiprocessing import popen_spawn_posix

        self.fds: list[int] = []
        self.DupFd = popen_spawn_posix._DupFd

    def duplicate_for_child(self, fd: int) -> int:
        """Called for each descriptor; returns its number in the child."""
        self.fds.append(fd)
        return fd


@contextlib.contextmanager
def _spawning() -> Iterator[_Spawning]:
    from multiprocessing import context

    popen: Any = _Spawning()
    context.set_spawning_popen(popen)
    try:
        yield popen
    finally:
        context.set_spawning_popen(None)


def pack_arguments(encoder: Encoder, initargs: tuple[Any, ...]) -> tuple[Encoded, tuple[int, ...]]:
    """The arguments as bytes, and the descriptors that must be passed on with them."""
    from multiprocessing.reduction import ForkingPickler

    with _spawning() as popen:
        try:
            head = bytes(ForkingPickler.dumps(initargs))
            if b"__main__" not in head:
                return Encoded(head, [], (), []), tuple(popen.fds)
        except Exception:
            # Something that goes only by value, such as a lambda; if not, the next try says so.
            pass
        from ..wire.explain import explain_value

        del popen.fds[:]
        # Connections and the like have reducers that only multiprocessing's own pickler knows:
        # pickle would send their descriptor's number and not the descriptor. Lend them.
        extra: dict[type, Any] = ForkingPickler._extra_reducers  # type: ignore[attr-defined]
        lent = [kind for kind in extra if kind not in copyreg.dispatch_table]
        copyreg.dispatch_table.update({kind: extra[kind] for kind in lent})
        try:
            encoded = encoder.value(
                initargs, lambda error: explain_value(initargs, error, "initargs")
            )
        finally:
            for kind in lent:
                del copyreg.dispatch_table[kind]
        return encoded, tuple(popen.fds)
