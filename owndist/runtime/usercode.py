"""Calling the user's functions: everything that they may do wrong is contained here."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pickle import PicklingError
from typing import TYPE_CHECKING, Any

from ..core.values import CANCELLED, ERROR, FAILED, READY, UNREAD, extent_key
from ..wire.functions import Decoder
from ..wire.outcomes import dump_error, dump_result
from ..wire.pickling import Encoded, loads
from .arguments import filling_slots
from .copies import end_copy
from .setup import WorkerSetup

if TYPE_CHECKING:
    from .worker import Worker

# status, value or failure, the futures inside the value, keys of namespace entries it needs, and
# what keeps the mapping alive whose bytes the value names again, if it does
TaskOutcome = tuple[int, Any, list[Any], tuple[int, ...], list[Any]]


class Cut(Exception):
    """A stream's task is not to go on to its end; its generator is closed."""


def call_user(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call a function of the user's. Between here and there the task can be interrupted."""
    return function(*args, **kwargs)


def call_task(
    worker: Worker,
    owner: int,
    key: int,
    args: Any,
    slots: Any,
    name: str,
    deliver: Callable[[Any], Any] | None = None,
) -> TaskOutcome:
    """Run one task of an owner's from its bytes to its outcome. Raises nothing.

    Args:
        deliver: takes the result of a task with several values; returns the one that is left.
    """
    try:
        try:
            function = worker.function(key, owner)
        except BaseException as error:
            raise _cannot_load("function", name, error) from error
        try:
            if slots is None:
                positional, keywords = worker.load_argument(args, owner)
            else:
                with filling_slots(lambda slot: worker.load_argument(slot, owner), slots):
                    positional, keywords = worker.load_argument(args, owner)
        except BaseException as error:
            from ..errors import ObjectLost

            extent = error.extent if isinstance(error, ObjectLost) else None
            if extent is not None:
                return UNREAD, (extent[2], extent_key(extent)), [], (), []
            raise _cannot_load("arguments", name, error) from error
        del args, slots
        result = call_user(function, *positional, **keywords)
        if worker.copied:
            end_copy()
        if deliver is not None:
            result = deliver(result)
            if worker.copied:
                end_copy()  # the user's generator has forked
        # The arguments' mappings should be gone, if they can be, when the owner hears of the
        # outcome; but not before the result is written: it may be one of them.
        return _store(worker, result, name)
    except Cut:
        if worker.copied:
            end_copy()
        return CANCELLED, None, [], (), []
    except BaseException as error:
        if worker.copied:
            end_copy(error)
        # Also SystemExit and KeyboardInterrupt: as in the standard library they are the task's
        # outcome, not the worker's end.
        try:
            return FAILED, (ERROR, dump_error(error), name), [], (), []
        finally:
            # The traceback holds this frame and the user's: break the cycle now, so that the
            # arguments go with it.
            error.__traceback__ = None
            del error


def store_one(worker: Worker, value: object, name: str) -> TaskOutcome:
    """One of several values of a task, as `call_task` has them. Raises nothing."""
    if worker.copied:
        end_copy()
    try:
        return _store(worker, value, name)
    except BaseException as error:
        try:
            return FAILED, (ERROR, dump_error(error), name), [], (), []
        finally:
            error.__traceback__ = None
            del error


def _store(worker: Worker, result: object, name: str) -> TaskOutcome:
    try:
        try:
            encoded = dump_result(result, name, futures_allowed=True)
        except Exception:
            encoded = _dump_again(result, name)
        value = worker.store_result(encoded.head, encoded.buffers, encoded.size)
        return READY, value, encoded.futures, encoded.entries, encoded.buffers
    except BaseException as error:
        told = _cannot_dump(result, name, error)
        if told is error:
            raise
        raise told from error


def _dump_again(result: Any, name: str) -> Encoded:
    """It could not be pickled; in a chunk that may be for one of its results."""
    from .chunks import ChunkResult

    if type(result) is not ChunkResult:
        raise
    result.isolate()
    return dump_result(result, name, futures_allowed=True)


def _cannot_load(what: str, name: str, error: BaseException) -> BaseException:
    from ..errors import NotSerializable, ObjectLost

    if isinstance(error, ObjectLost):
        return error
    return NotSerializable(
        f"the {what} of task {name!r} could not be unpickled in the worker: "
        f"{type(error).__name__}: {error}"
    )


def _cannot_dump(result: object, name: str, error: BaseException) -> BaseException:
    from ..errors import NotSerializable, StoreFull

    if isinstance(error, (StoreFull, NotSerializable)):
        return error
    if not isinstance(error, (PicklingError, TypeError, AttributeError, RecursionError)):
        return error  # raised by the user's own code, which says most
    return NotSerializable(
        f"the result of task {name!r}, a {type(result).__qualname__}, cannot be pickled: "
        f"{type(error).__name__}: {error}"
    )


def initialize(setup: WorkerSetup, decoder: Decoder) -> bytes | None:
    """Run the initializer. Returns the pickled exception if it raised."""
    try:
        payload = setup.payload
        if payload is None:
            if setup.initializer is not None:
                setup.initializer(*setup.initargs)
            return None
        for key, body in payload.definitions.items():
            if key in payload.entries:
                decoder.apply_entry(key, body)
            else:
                decoder.define(key, body)
        function = decoder.function(payload.function)
        function(*loads(payload.head, payload.buffers))
        return None
    except BaseException as error:
        # Said under the standard library's name, where users of executors look for it.
        logging.getLogger("concurrent.futures").critical("Exception in initializer:", exc_info=True)
        return dump_error(error)


def end_multiprocessing() -> None:
    """Run what multiprocessing runs at the end of a process. It does nothing the second time."""
    from multiprocessing import util

    finalize: Any = util._exit_function  # type: ignore[attr-defined]
    try:
        finalize()
    except BaseException:
        logging.getLogger("owndist.worker").warning("a finalizer failed", exc_info=True)
