"""What an executor has from its first task to its end, and how that is made."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable
from types import ModuleType
from typing import Any

from ..core.ids import DRIVER
from ..store.local import Store
from ..store.session_lock import lock_session, sweep_dead_sessions
from ..wire.functions import Encoder
from ..wire.inherited import is_compared
from .nursery import Nursery
from .pool import WorkerPool
from .reader import Owner, Reader
from .setup import InitPayload, WorkerSetup, cache_limit_bytes, new_session


class Parts:
    """All that is made when the first task comes."""

    def __init__(
        self,
        encoder: Encoder,
        store: Store,
        pool: WorkerPool,
        reader: Reader,
        lock_fd: int | None,  # says that the session lives; see `store.session_lock`
    ) -> None:
        self.encoder = encoder
        self.store = store
        self.pool = pool
        self.reader = reader
        self.lock_fd = lock_fd

    def close(self) -> None:
        """Every worker is gone: let go of all the rest."""
        self.store.close()
        self.pool.close()
        self.reader.close()
        if self.lock_fd is not None:
            os.close(self.lock_fd)

    def let_go(self) -> None:
        """In a process forked from the driver: nothing here is ours."""
        self.pool.let_go()
        self.reader.close()
        # The lock stays: this may be a template in the place of one that was killed.


def make_parts(
    owner: Owner,
    feed: Callable[[object], None],
    log: Callable[[int, str, tuple[Any, ...]], None],
    method: str,
    max_workers: int,
    initializer: Callable[..., object] | None,
    initargs: tuple[Any, ...],
) -> Parts:
    """Start the template process and the reader thread, and all between them.

    Args:
        owner: has the reader's thread.
        feed: takes a report to the machine.
        log: takes level, text and arguments of what is to be logged.
        method: "fork", "forkserver" or "spawn".
        max_workers: how many there will be, at most.
        initializer, initargs: run in every worker before its first task.

    Raises:
        OSError, RuntimeError: no process, no descriptor or no thread can be had. Nothing is left.
        Exception: the initializer or its arguments cannot be pickled.
    """
    inherits = method == "fork"
    sweep_dead_sessions()
    session = new_session()
    spill_directory = os.path.join(tempfile.gettempdir(), f"owndist-{session}")
    with contextlib.ExitStack() as undo:
        lock_fd = lock_session(session, spill_directory)
        if lock_fd is not None:
            undo.callback(os.close, lock_fd)
        encoder = Encoder(_what_is_inherited(sys.modules["__main__"]) if inherits else None)
        payload: InitPayload | None = None
        keep_fds: tuple[int, ...] = ()
        if not inherits:
            if initializer is not None:
                payload, keep_fds = _pack_initializer(encoder, initializer, initargs)
            if lock_fd is not None:
                keep_fds = (*keep_fds, lock_fd)
        setup = WorkerSetup(
            session=session,
            spill_directory=spill_directory,
            cache_limit_bytes=cache_limit_bytes(max_workers),
            threads_per_worker=max(1, (os.cpu_count() or 1) // max_workers),
            process_group=os.getpgrp(),
            initializer=initializer if inherits else None,
            initargs=initargs if inherits else (),
            payload=payload,
            method=method,
        )
        # First of all: under fork it inherits no thread and, but for the lock, no descriptor.
        nursery = Nursery(setup, keep_fds)
        undo.callback(nursery.close)
        reader = Reader(owner)
        undo.callback(reader.close)
        pool = WorkerPool(nursery, setup, keep_fds, encoder, reader.selector, feed, log)
        store = Store(
            session,
            DRIVER,
            spill_directory,
            cache_limit_bytes=setup.cache_limit_bytes,
            on_unmapped=reader.poke,
        )
        reader.start()
        undo.pop_all()
    return Parts(encoder, store, pool, reader, lock_fd)


def _what_is_inherited(main: ModuleType) -> dict[str, Any]:
    """What of `__main__` forked workers will have, and tasks may refer to by name.

    Functions, classes, modules and numbers; not the script's data, which this would keep alive.
    """
    return {name: value for name, value in vars(main).items() if is_compared(value)}


def _pack_initializer(
    encoder: Encoder, initializer: Callable[..., object], initargs: tuple[Any, ...]
) -> tuple[InitPayload, tuple[int, ...]]:
    from .initargs import pack_arguments

    key, entries, _ = encoder.function(initializer)
    encoded, fds = pack_arguments(encoder, initargs)
    wanted = dict.fromkeys([*entries, *encoded.entries])
    definitions = {k: encoder.definitions[k] for k in [*wanted, key]}
    payload = InitPayload(
        key,
        tuple(wanted),
        definitions,
        encoded.head,
        [bytes(part.raw()) for part in encoded.buffers],
    )
    return payload, fds
