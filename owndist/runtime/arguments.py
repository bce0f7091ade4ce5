"""Futures among the arguments of a task.

A future at top level, or at any depth inside lists, tuples, sets and dicts, stands for its value.
It is pickled as a *slot*, which becomes the value when the worker unpickles the arguments. A future
held by anything else (an object, a closure), or wrapped by `shared`, stays a future.

Containers are walked only when there is reason to: a future at top level is seen at once, and one
deeper down is met by the pickler.
"""

from __future__ import annotations

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

    _active.loader = loader
    try:
        yield
    finally:
        del _active.loader
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
        """The object with slots in place of futures at any depth of the plain containers.

        Only exact lists, tuples, sets, frozensets and dicts are entered, and copied only where
        something inside was replaced, so identities elsewhere are kept.
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
        kind = type(obj)
        if kind not in _CONTAINERS:
            return obj
        if id(obj) in seen:
            return seen[id(obj)]
        seen[id(obj)] = obj  # a cycle leads back to the original; see below
        new: Any
        if kind is dict:
            new = {self._walk(k, seen): self._walk(v, seen) for k, v in obj.items()}
            same = all(
                nk is k and nv is v
                for (nk, nv), (k, v) in zip(new.items(), obj.items(), strict=False)
            )
        else:
            items = [self._walk(item, seen) for item in obj]
            same = all(new_item is item for new_item, item in zip(items, obj, strict=False))
            new = items if kind is list else kind(items)
        if same:
            return obj
        # A container that holds itself and a future would keep its futures in the inner copy;
        # pickling then meets them, and they arrive as futures. Nobody writes that.
        seen[id(obj)] = new
        return new


_CONTAINERS = frozenset([list, tuple, set, frozenset, dict])
