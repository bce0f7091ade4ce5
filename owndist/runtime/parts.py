"""What an executor has from its first task to its end, and how that is made."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

from ..core.ids import DRIVER
from ..store.ledger import Ledger
from ..store.local import Store
from ..wire.functions import Encoder
from .launch import Launched
from .pool import WorkerPool
from .reader import Owner, Reader
from .setup import ROOM_WAIT_S


class Parts:
    """All that is made when the first task comes."""

    def __init__(
        self,
        encoder: Encoder,
        store: Store,
        pool: WorkerPool,
        reader: Reader,
        ledger_fd: int,  # see `store.ledger`
        lock_fd: int | None,  # says that the session lives; see `store.session_lock`
    ) -> None:
        self.encoder = encoder
        self.store = store
        self.pool = pool
        self.reader = reader
        self.ledger_fd = ledger_fd
        self.lock_fd = lock_fd

    def close(self) -> None:
        """Every worker is gone: let go of all the rest."""
        self.store.close()
        self.pool.close()
        self.reader.close()
        os.close(self.ledger_fd)
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
    launched: Launched,
) -> Parts:
    """Start the reader thread, and make all between it and the template process.

    Args:
        owner: has the reader's thread.
        feed: takes a report to the machine.
        log: takes level, text and arguments of what is to be logged.
        launched: the template process; undone if the rest fails.

    Raises:
        OSError, RuntimeError: no descriptor or no thread can be had. Nothing is left.
    """
    setup, nursery = launched.setup, launched.nursery
    with contextlib.ExitStack() as undo:
        undo.callback(launched.undo)
        encoder = launched.encoder or Encoder()
        reader = Reader(owner)
        undo.callback(reader.close)
        ledger = Ledger(setup.ledger_fd, 0)
        undo.callback(ledger.close)
        pool = WorkerPool(
            nursery, setup, launched.keep_fds, encoder, reader.selector, feed, log, ledger
        )
        store = Store(
            setup.session,
            DRIVER,
            setup.spill_directory,
            cache_limit_bytes=setup.cache_limit_bytes,
            on_unmapped=reader.poke,
            ledger=ledger,
            room_wait_s=ROOM_WAIT_S,
            may_wait=lambda: not reader.is_current(),
        )
        reader.start()
        undo.pop_all()
    return Parts(encoder, store, pool, reader, setup.ledger_fd, launched.lock_fd)
