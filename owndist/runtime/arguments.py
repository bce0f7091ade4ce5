"""Futures among the arguments of a task.

A future at top level, or at any depth inside the containers of the standard library (`_BUILDERS`),
stands for its value. It is pickled as a *slot*, which becomes the value when the worker unpickles
the arguments. A future held by anything else (an object, a closure), or wrapped by `shared`, stays
a future.

Containers are walked only when there is reason to: a future at top level is seen at once, and one
deeper down is met by the pickler.
"""

from __future__ import annotations

import collections
import functools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future as AnyFuture
from contextlib import contextmanager
from typing import Any

_active = threading.local()


class Slot:
    """Stands for the value of the i-th of a task's futures."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index

    def __reduce__(self) -> tuple[Callable[[int], Any], tuple[int]]:
        return load_slot, (self.index,)

    def __hash__(self) -> int:
        return hash(self.index)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Slot) and other.index == self.index


def load_slot(index: int) -> Any:
    """Called by unpickling, in the worker: the slot's value."""
    return _active.loader(index)


@contextmanager
def filling_slots(load: Callable[[Any], Any], values: tuple[Any, ...]) -> Iterator[None]:
    """While in this context, slots become the objects that these values stand for."""
    loaded: dict[int, Any] = {}

    def loader(index: int) -> Any:
        # Once for each future: two places with one future get one object.
        if index not in loaded:
            loaded[index] = load(values[index])
        return loaded[index]

    outer = getattr(_active, "loader", None)
    _active.loader = loader
    try:
        yield
    finally:
        _active.loader = outer
        loaded.clear()


def call_carried(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call a function that came with its arguments; see `wire.stateless`."""
    return function(*args, **kwargs)


class Shared:
    """A future that is to reach the task as a future. Made by `OwnershipExecutor.shared`."""

    __slots__ = ("_future",)

    def __init__(self, future: AnyFuture[Any]) -> None:
        self._future = future

    def __reduce_ex__(self, protocol: object) -> Any:
        return self._future.__reduce_ex__(5)

    def __repr__(self) -> str:
        return f"shared({self._future!r})"


class Slots:
    """Collects the futures that are to be given as values."""

    def __init__(self) -> None:
        self.futures: list[AnyFuture[Any]] = []
        self._indices: dict[int, int] = {}  # {id of the future: index}

    def replace_top_level(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with slots in place of the futures that are arguments themselves."""
        if any(isinstance(arg, AnyFuture) for arg in args):
            args = tuple([self._slot(a) if isinstance(a, AnyFuture) else a for a in args])
        if kwargs and any(isinstance(arg, AnyFuture) for arg in kwargs.values()):
            kwargs = {
                k: self._slot(v) if isinstance(v, AnyFuture) else v for k, v in kwargs.items()
            }
        return args, kwargs

    def replace_all(self, obj: Any) -> Any:
        """The object with slots in place of futures at any depth of the containers.

        They are copied only where something inside was replaced, so identities elsewhere are kept.
        """
        return self._walk(obj, {})

    def _slot(self, future: AnyFuture[Any]) -> Slot:
        index = self._indices.get(id(future))
        if index is None:
            index = self._indices[id(future)] = len(self.futures)
            self.futures.append(future)
        return Slot(index)

    def _walk(self, obj: Any, seen: dict[int, Any]) -> Any:
        if isinstance(obj, AnyFuture):
            return self._slot(obj)
        build = _builder(type(obj))
        if build is None:
            return obj
        if id(obj) in seen:
            return seen[id(obj)]
        seen[id(obj)] = obj  # a cycle leads back to the original; see below
        old = _items(obj)
        items = [self._walk(item, seen) for item in old]
        if all(item is before for item, before in zip(items, old, strict=True)):
            return obj
        # A container that holds itself and a future would keep its futures in the inner copy;
        # pickling then meets them, and they arrive as futures. Nobody writes that.
        new = seen[id(obj)] = build(obj, items)
        return new


def _items(container: Any) -> list[Any]:
    """What is inside; of a dict, keys and values by turns."""
    if isinstance(container, dict):
        return [part for pair in container.items() for part in pair]
    if isinstance(container, functools.partial):
        return [container.func, *container.args, *container.keywords.values()]
    return list(container)


def _pairs(items: list[Any]) -> list[tuple[Any, Any]]:
    return list(zip(items[::2], items[1::2], strict=True))


def _build_partial(old: functools.partial[Any], items: list[Any]) -> functools.partial[Any]:
    function, *rest = items
    args, values = rest[: len(old.args)], rest[len(old.args) :]
    return functools.partial(function, *args, **dict(zip(old.keywords, values, strict=True)))


# How a container of a type is made again, from the old one and its new items. Only of exactly these
# types is known what they are made of, and of named tuples.
_BUILDERS: dict[type, Callable[[Any, list[Any]], Any]] = {
    list: lambda old, items: items,
    tuple: lambda old, items: tuple(items),
    set: lambda old, items: set(items),
    frozenset: lambda old, items: frozenset(items),
    dict: lambda old, items: dict(_pairs(items)),
    collections.OrderedDict: lambda old, items: collections.OrderedDict(_pairs(items)),
    collections.defaultdict: lambda old, items: collections.defaultdict(
        old.default_factory, _pairs(items)
    ),
    collections.deque: lambda old, items: collections.deque(items, old.maxlen),
    functools.partial: _build_partial,
}


def _builder(kind: type) -> Callable[[Any, list[Any]], Any] | None:
    known = _BUILDERS.get(kind)
    if known is None and issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return lambda old, items: kind._make(items)  # type: ignore[attr-defined]
    return known
