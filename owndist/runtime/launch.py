"""Starting the template process of an executor, and what goes with it."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..store.ledger import create_ledger
from ..store.segments import sweep
from ..store.session_lock import lock_session
from ..wire.inherited import is_compared
from . import template
from .memory import default_store_bytes
from .nursery import Nursery
from .setup import InitPayload, WorkerSetup, cache_limit_bytes, new_session

if TYPE_CHECKING:
    from ..wire.functions import Encoder


class Launched:
    """A template process on its way, and what goes with it."""

    def __init__(
        self,
        nursery: Nursery,
        setup: WorkerSetup,
        keep_fds: tuple[int, ...],  # that a template in its place must be given
        encoder: Encoder | None,  # knows what was inherited, or has packed the initializer
        lock_fd: int | None,  # says that the session lives; see `store.session_lock`
        store_bytes: int,  # the limit of the session's shared memory
    ) -> None:
        self.nursery = nursery
        self.setup = setup
        self.keep_fds = keep_fds
        self.encoder = encoder
        self.lock_fd = lock_fd
        self.store_bytes = store_bytes

    def undo(self) -> None:
        """It came to nothing: nothing is left."""
        self.nursery.close()
        sweep(self.setup.session, self.setup.spill_directory)
        os.close(self.setup.ledger_fd)
        if self.lock_fd is not None:
            os.close(self.lock_fd)


def launch(
    max_workers: int,
    method: str,
    initializer: Callable[..., object] | None,
    initargs: tuple[Any, ...],
    store_bytes: int | None,
    lineage_bytes: int,
    max_retries: int,
) -> Launched:
    """Start a template process.

    Args:
        max_workers: how many there will be, at most.
        method: "fork", "forkserver" or "spawn".
        initializer, initargs: run in every worker before its first task.
        store_bytes: the limit of shared memory; None to choose one.
        lineage_bytes: the limit of lineage, in workers whose tasks submit tasks.
        max_retries: of tasks that tasks submit, unless they say otherwise.

    Raises:
        OSError: no process or no descriptor can be had. Nothing is left.
        Exception: the initializer or its arguments cannot be pickled.
    """
    session = new_session()
    spill_directory = os.path.join(tempfile.gettempdir(), f"owndist-{session}")
    if store_bytes is None:
        store_bytes = default_store_bytes()
    ledger_fd = create_ledger(store_bytes)
    lock_fd = lock_session(session, spill_directory)
    try:
        inherits = method == "fork"
        encoder: Encoder | None = None
        payload: InitPayload | None = None
        keep_fds: tuple[int, ...] = ()
        if not inherits:
            if initializer is not None:
                from ..wire.functions import Encoder

                encoder = Encoder()
                payload, keep_fds = _pack_initializer(encoder, initializer, initargs)
            if lock_fd is not None:
                keep_fds = (*keep_fds, lock_fd)
            keep_fds = (*keep_fds, ledger_fd)
        setup = WorkerSetup(
            session=session,
            spill_directory=spill_directory,
            cache_limit_bytes=cache_limit_bytes(max_workers, store_bytes),
            ledger_fd=ledger_fd,
            threads_per_worker=max(1, (os.cpu_count() or 1) // max_workers),
            process_group=os.getpgrp(),
            initializer=initializer if inherits else None,
            initargs=initargs if inherits else (),
            payload=payload,
            method=method,
            max_workers=max_workers,
            lineage_bytes=lineage_bytes,
            max_retries=max_retries,
        )
        if inherits:
            from ..wire.functions import Encoder

            encoder = Encoder(_what_is_inherited(sys.modules["__main__"]))
            # Never left to the template: what another thread is importing at the moment of the
            # fork stays locked there for ever.
            template.load_what_workers_need()
        # Under fork it inherits no thread of ours and, but for lock and ledger, no descriptor.
        return Launched(Nursery(setup, keep_fds), setup, keep_fds, encoder, lock_fd, store_bytes)
    except BaseException:
        sweep(session, spill_directory)
        os.close(ledger_fd)
        if lock_fd is not None:
            os.close(lock_fd)
        raise


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
