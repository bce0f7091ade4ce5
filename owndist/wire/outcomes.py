"""What a task gives back, as bytes: its result, or the error it raised.

A result goes by plain pickle where that is enough. An error keeps its type, arguments,
attributes, notes, causes and its traceback as text. Whatever the user's classes do when they are
pickled or loaded touches only this one outcome.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

from . import namespace
from .namespace import (
    MAIN_MARK,
    Call,
    InheritedPickler,
    PlainSession,
    inherited_object,
    main_object,
    name_in,
)
from .pickling import Encoded, here, lift_large

# How many exceptions of a chain of causes and contexts travel.
_LONGEST_CHAIN = 50
# The bit of `type.__flags__` that classes made by a `class` statement have (Py_TPFLAGS_HEAPTYPE).
_MADE_BY_CLASS_STATEMENT = 1 << 9


def dump_result(obj: Any, task: str = "", futures_allowed: bool = False) -> Encoded:
    """Pickle what a task returned.

    Args:
        obj: the result.
        task: the name of the task, for the error.
        futures_allowed: whether the result may hold futures; they are then in
            `Encoded.futures`.

    Returns:
        The value. Its `entries` are not needed by the driver, which has everything of
        `__main__`; another worker needs them, completed by `Encoder.complete`.

    Raises:
        NotSerializable: it cannot be pickled.
        BaseException: what the user's classes raised that is not an `Exception`.
    """
    buffers: list[pickle.PickleBuffer] = []
    futures: list[Any] | None = [] if futures_allowed else None
    outer = here.futures
    here.futures = futures
    try:
        lifted = lift_large(obj)
        try:
            head = pickle.dumps(lifted, 5, buffer_callback=buffers.append)
            if MAIN_MARK not in head:
                return Encoded(head, buffers, (), futures or [])
        except Exception:
            # Tried again below with cloudpickle, whose error is reported.
            pass
        return _dump_slowly(lifted, futures)
    except Exception as error:
        from ..errors import NotSerializable
        from .explain import explain_value

        what = f"the result of task {task!r}" if task else "the result"
        raise NotSerializable(explain_value(obj, error, what)) from error
    finally:
        here.futures = outer


def _dump_slowly(obj: Any, futures: list[Any] | None) -> Encoded:
    """Pickle a result that refers to `__main__`, or that plain pickle cannot do."""
    if futures:
        futures.clear()
    buffers: list[pickle.PickleBuffer] = []
    file = io.BytesIO()
    try:
        InheritedPickler(file, buffers.append, namespace.here.inherited).dump(obj)
        return Encoded(file.getvalue(), buffers, (), futures or [])
    except Exception:
        # By value, then; if that fails too, its error is reported.
        pass
    if futures:
        futures.clear()
    from . import byvalue

    buffers = []
    session = _WorkerSession()
    head = byvalue.dump(obj, session, None, buffers.append)
    return Encoded(head, buffers, tuple(session.keys), futures or [])


class _WorkerSession(PlainSession):
    """Says of `__main__` in a worker: what came as an entry goes back as its name and key."""

    def __init__(self) -> None:
        self.keys: dict[int, None] = {}
        self._entries = {name: value for name, (_, value) in namespace.here.entries.items()}

    def reference(self, obj: Any, making: Any) -> tuple[Any, ...] | None:
        name = name_in(namespace.here.inherited, obj)
        if name is not None:
            return inherited_object, (name,)
        name = name_in(self._entries, obj)
        if name is None:
            return None
        key = namespace.here.entries[name.partition(".")[0]][0]
        self.keys[key] = None
        return main_object, (name, key)

    def use_global(self, name: str, value: Any, making: Any) -> None:
        entry = namespace.here.entries.get(name)
        if entry is not None:
            self.keys[entry[0]] = None


def dump_error(error: BaseException) -> bytes:
    """Pickle an exception for `load_error`; works for every exception.

    Each exception of the chain of causes and contexts is loaded here for a trial. One that does
    not survive it arrives as an `owndist.errors.RemoteError` which names its type.
    """
    chain: list[BaseException] = []
    indexes: dict[int, int] = {}

    def index(link: BaseException | None) -> int:
        if link is None:
            return -1
        known = indexes.get(id(link))
        if known is None:
            if len(chain) >= _LONGEST_CHAIN:
                return -1
            known = indexes[id(link)] = len(chain)
            chain.append(link)
        return known

    index(error)
    links: list[tuple[str, str, bytes, int, int, bool]] = []
    for link in chain:  # grows on the way
        links.append(
            (
                _type_name(link),
                _text(link),
                _dump_link(link),
                index(link.__cause__),
                index(link.__context__),
                link.__suppress_context__,
            )
        )
    return pickle.dumps((_format(error), links), 5)


def load_error(data: bytes | memoryview) -> BaseException:
    """Load an exception that `dump_error` pickled.

    Returns:
        The exception. Its `__cause__` is a `concurrent.futures.process._RemoteTraceback` with
        the traceback of the worker, as under `ProcessPoolExecutor`, and the cause it had is that
        one's `__cause__`. What cannot be loaded here is an `owndist.errors.RemoteError`.
    """
    from concurrent.futures import process

    # As in the standard library; typeshed has the type of the argument wrong.
    remote_traceback: Any = process._RemoteTraceback
    traceback, links = pickle.loads(data)
    chain = [_load_link(type_name, text, body) for type_name, text, body, _, _, _ in links]
    for error, (_, _, _, cause, context, suppress) in zip(chain, links, strict=True):
        _chain(
            error,
            chain[cause] if cause >= 0 else None,
            chain[context] if context >= 0 else None,
            suppress,
        )
    remote = remote_traceback(f'\n"""\n{traceback}"""')
    _chain(remote, chain[0].__cause__, None, True)
    _chain(chain[0], remote, chain[0].__context__, True)
    return chain[0]


def _chain(
    error: BaseException,
    cause: BaseException | None,
    context: BaseException | None,
    suppress: bool,
) -> None:
    """Set what an exception follows; past any `__setattr__` of its class."""
    base: Any = BaseException
    base.__cause__.__set__(error, cause)
    base.__context__.__set__(error, context)
    base.__suppress_context__.__set__(error, suppress)


def _dump_link(error: BaseException) -> bytes:
    """Return a pickle of one exception that loads here as the same type; b"" if there is none."""
    for dump in (_dump_plainly, _dump_by_value, _dump_rebuilt):
        try:
            body = dump(error)
            if type(pickle.loads(body)) is type(error):
                return body
        except BaseException:
            # The class of the exception may do anything. The next way is tried; the last resort
            # is the stand-in, which needs no pickle.
            continue
    return b""


def _dump_plainly(error: BaseException) -> bytes:
    return pickle.dumps(error, 5)


def _dump_by_value(error: BaseException) -> bytes:
    from . import byvalue

    return byvalue.dump(error, _WorkerSession())


def _dump_rebuilt(error: BaseException) -> bytes:
    """Pickle an exception so that it is made again without a call of its `__init__`.

    This saves the many whose `__init__` takes other arguments than they hand on to
    `Exception.__init__`, those with an attribute that cannot be pickled, which is left out, and
    groups of exceptions.
    """
    kind = type(error)
    built_in = _first_built_in(kind)
    own_way = [
        name
        for name in ("__reduce__", "__reduce_ex__", "__setstate__")
        if getattr(kind, name) is not getattr(built_in, name)
    ]
    if own_way:
        raise pickle.PicklingError(f"the class has its own {own_way[0]}")
    from . import byvalue

    session = _WorkerSession()
    _, args, *more = built_in.__reduce__(error)
    state = {}
    for name, value in (more[0] if more and more[0] else {}).items():
        try:
            pickle.loads(byvalue.dump(value, session))
        except Exception:
            # Left out: the type and the text of an error matter more than all its attributes.
            continue
        state[name] = value
    inner = tuple([_with_inner_errors(arg) for arg in args])
    return byvalue.dump(Call(_rebuild, (kind, inner, state)), session)


def _with_inner_errors(arg: Any) -> Any:
    """Return an argument with exceptions in it (those of a group) replaced by what makes them."""
    if isinstance(arg, BaseException):
        return Call(_load_link, (_type_name(arg), _text(arg), _dump_link(arg)))
    if type(arg) in (list, tuple):
        return type(arg)([_with_inner_errors(item) for item in arg])
    return arg


def _rebuild(
    kind: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]
) -> BaseException:
    """Make an exception from its parts, by the constructor of its first built-in base class."""
    error = kind.__new__(kind, *args)
    built_in = _first_built_in(kind)
    built_in.__init__(error, *args)
    built_in.__setstate__(error, state)
    return error


def _first_built_in(kind: type) -> Any:
    return next(base for base in kind.__mro__ if not base.__flags__ & _MADE_BY_CLASS_STATEMENT)


def _load_link(type_name: str, text: str, body: bytes) -> BaseException:
    if body:
        try:
            error = pickle.loads(body)
        except BaseException as failure:
            # Contained: it was the user's class that raised it, and the reader is to learn of
            # the error of the task.
            return _stand_in(type_name, text, f"it cannot be loaded here: {_text(failure)}")
        if isinstance(error, BaseException):
            return error
    return _stand_in(type_name, text, "it cannot be pickled")


def _stand_in(type_name: str, text: str, why: str) -> BaseException:
    from ..errors import RemoteError

    return RemoteError(f"{type_name}: {text} ({why})", type_name)


def _type_name(error: BaseException) -> str:
    kind = type(error)
    module = kind.__module__
    return kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException:
        # Some classes cannot even tell what they are.
        return "<no text: its __str__ fails>"


def _format(error: BaseException) -> str:
    import traceback

    try:
        return "".join(traceback.format_exception(type(error), error, error.__traceback__))
    except BaseException:
        # As above.
        return f"{_type_name(error)}: {_text(error)}\n"
