"""Says in words what cannot be pickled, or is too large. Loaded only when there is cause."""

from __future__ import annotations

import functools
import logging
import pickle
from collections.abc import Iterator, Mapping
from types import FunctionType, MethodType
from typing import Any

from .namespace import PlainSession, main_object

logger = logging.getLogger("owndist.functions")

# How many objects are tried before the search for the part at fault gives up.
_TRIES = 1000
_LONGEST_KEY = 40
_LONGEST_PATH = 120


def explain(
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    error: BaseException,
    carried: bool = False,
) -> str:
    """Name the argument, and the part of it, that cannot be pickled.

    Args:
        args: the positional arguments of the task.
        kwargs: its keyword arguments.
        error: what pickling them together raised.
        carried: the first of them is what is to be called with the others.

    Returns:
        A text such as `cannot pickle argument 2: value.lock (type _thread.lock): ...`.
        Arguments are counted from 1.
    """
    search = _Search()
    for position, value in enumerate(args, 0 if carried else 1):
        if search.fails(value) is not None:
            return search.tell(value, f"argument {position}" if position else _name(value))
    for name, value in kwargs.items():
        if search.fails(value) is not None:
            return search.tell(value, f"argument {name!r}")
    return f"cannot pickle the arguments: {_line(error)}"


def explain_value(value: Any, error: BaseException, what: str = "") -> str:
    """Name the part of a value that cannot be pickled."""
    search = _Search()
    if not what:
        what = _name(value) if callable(value) else "the value"
    if search.fails(value) is None:
        return f"cannot pickle {what} (type {_type_name(value)}): {_line(error)}"
    return search.tell(value, what)


def explain_global(user: str, name: str, value: Any, error: BaseException) -> str:
    """Name a global of `__main__` that cannot be pickled."""
    search = _Search()
    what = f"the global {name!r} of __main__, which {user} uses"
    if search.fails(value) is None:
        told = f"cannot pickle {what} (type {_type_name(value)}): {_line(error)}"
    else:
        told = search.tell(value, what)
    return (
        f"{told}. Pass it as an argument, make it in an initializer, or move the function to a "
        "module, which every worker imports for itself"
    )


def warn_heavy(fn: Any, total: int, globals_sizes: Mapping[str, int]) -> None:
    """Log that a function is large to send, and what makes it so."""
    sizes = {f"the global {name!r}": size for name, size in globals_sizes.items()}
    for label, part in _parts(fn):
        size = _size(part)
        if size is not None:
            sizes[f"the {label}" if " " in label else label] = size
    biggest = max(sizes, key=lambda name: sizes[name], default="the function itself")
    logger.warning(
        "%s takes %.1f MiB to send to each worker, and is pickled again at every submit; most of "
        "it is %s (%.1f MiB). Hand it over as an argument made by executor.put(), load it in an "
        "initializer, or keep it in a module",
        _name(fn),
        total / 2**20,
        biggest,
        sizes.get(biggest, total) / 2**20,
    )


class _Naming(PlainSession):
    """A session that takes everything of `__main__` for granted: it looks at one object only."""

    def reference(self, obj: Any, making: Any) -> tuple[Any, ...] | None:
        name = getattr(obj, "__qualname__", "<")
        return None if "<" in name else (main_object, (name, 0))

    def use_global(self, name: str, value: Any, making: Any) -> None:
        """Globals are explained one by one."""


class _Search:
    """Looks for the part of a value that makes its pickling fail."""

    def __init__(self) -> None:
        self._tries_left = _TRIES
        self._seen: set[int] = set()

    def fails(self, value: Any) -> BaseException | None:
        """Return the error of pickling this alone; None if that works or was tried already."""
        if self._tries_left <= 0 or id(value) in self._seen:
            return None
        self._tries_left -= 1
        self._seen.add(id(value))
        return _pickling_error(value)

    def tell(self, value: Any, what: str) -> str:
        """Return the text for a value that failed, going down to the part at fault."""
        error = _pickling_error(value)
        path = "value"
        deeper = True
        while deeper:
            deeper = False
            for label, part in _parts(value):
                failure = self.fails(part)
                if failure is not None:
                    path = f"{path}{label}" if label[0] in ".[" else f"{label} of {path}"
                    value, error, deeper = part, failure, True
                    break
        if len(path) > _LONGEST_PATH:
            path = f"{path[: _LONGEST_PATH // 2]}...{path[-_LONGEST_PATH // 2 :]}"
        where = what if path == "value" else f"{what}: {path}"
        return f"cannot pickle {where} (type {_type_name(value)}): {_line(error)}"


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Give the parts of a value with the text that leads to each."""
    if _refuses(value):
        return
    if isinstance(value, dict):
        for key, item in value.items():
            yield f"[{_short(key)}]", item
            yield "a key", key
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield f"[{index}]", item
    elif isinstance(value, (set, frozenset)):
        for item in value:
            yield "an element", item
    elif isinstance(value, FunctionType):
        names = value.__code__.co_freevars
        for name, cell in zip(names, value.__closure__ or (), strict=True):
            try:
                yield f"variable {name!r}", cell.cell_contents
            except ValueError:
                continue  # an empty cell holds nothing that could fail
        for item in value.__defaults__ or ():
            yield "a default", item
        for name, item in (value.__kwdefaults__ or {}).items():
            yield f"default {name!r}", item
    elif isinstance(value, MethodType):
        yield ".__self__", value.__self__
    elif isinstance(value, functools.partial):
        yield ".func", value.func
        yield ".args", value.args
        yield ".keywords", value.keywords
    if isinstance(value, type):
        return
    for name, item in getattr(value, "__dict__", {}).items():
        yield f".{name}", item
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else tuple(slots):
            if hasattr(value, name):
                yield f".{name}", getattr(value, name)


def _refuses(value: Any) -> bool:
    """Whether the class itself says that its objects cannot be pickled, and so knows best why."""
    kind: Any = type(value)
    if kind.__reduce__ is object.__reduce__ and kind.__reduce_ex__ is object.__reduce_ex__:
        return False
    try:
        value.__reduce_ex__(5)
    except Exception:
        return True
    return False


def _dump_alone(value: Any) -> int:
    """Pickle a value by itself; return its size in bytes."""
    try:
        sizes: list[int] = []
        head = pickle.dumps(value, 5, buffer_callback=lambda b: sizes.append(b.raw().nbytes))
        return len(head) + sum(sizes)
    except Exception:
        # cloudpickle can do more; its error is the one that counts.
        from . import byvalue

        return len(byvalue.dump(value, _Naming()))


def _pickling_error(value: Any) -> BaseException | None:
    try:
        _dump_alone(value)
    except Exception as error:
        return error
    return None


def _size(value: Any) -> int | None:
    try:
        return _dump_alone(value)
    except Exception:
        # It is not what makes the function large: the function was pickled.
        return None


def _line(error: BaseException | None) -> str:
    """Return the error in one line, with its type where the text alone says little."""
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _short(key: Any) -> str:
    text = repr(key) if isinstance(key, (str, int, float, bytes, tuple)) else _type_name(key)
    return text if len(text) <= _LONGEST_KEY else text[: _LONGEST_KEY - 3] + "..."


def _name(fn: Any) -> str:
    name = getattr(fn, "__qualname__", None)
    return f"function {name!r}" if isinstance(name, str) else f"a {_type_name(fn)}"


def _type_name(value: Any) -> str:
    kind = type(value)
    if kind.__module__ in ("builtins", "__main__"):
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"
