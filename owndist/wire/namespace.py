"""The namespace of `__main__`, as the driver and its workers share it.

Functions and classes of a script live in `__main__`, which no other process can import. Three
ways lead to them, and pickles made by owndist name them by one of two functions of this file:

* `inherited_object(name)`: under fork, what `__main__` held when the workers' template was
  forked. Every worker has it, and nothing that happens later in either process changes it, for
  each process keeps the namespace it began with (`keep_inherited`).
* `main_object(name, key)`: what a *namespace entry* put there later. An entry is a name, the
  pickled value and a key made from both. `set_entry` binds the name in `__main__`; the key says
  which version of it a pickle means, so that pickles which mean different versions differ.
* What no name leads to any more (lambdas, classes made in functions, earlier versions) is
  pickled whole, by `owndist.wire.byvalue`.

In the driver both functions find what `__main__` holds at the time, as stock pickle would.
"""

from __future__ import annotations

import copyreg
import functools
import pickle
import sys
from collections.abc import Callable, Collection, Container, Mapping
from types import FunctionType
from typing import Any

from .inherited import inherited_bindings

# Occurs in a pickle whenever it names something of `__main__`, or of `__mp_main__`, as the same
# module is called in the children of multiprocessing.
MAIN_MARK = b"_main__"
MAIN_NAMES = frozenset({"__main__", "__mp_main__"})

# What the machinery of modules put there, which means the process it is in: never sent.
MODULE_NAMES = frozenset(
    {
        "__annotations__",
        "__builtins__",
        "__cached__",
        "__doc__",
        "__loader__",
        "__name__",
        "__package__",
        "__path__",
        "__spec__",
    }
)

CachedFunction = type(functools.lru_cache(lambda: None))
_MISSING = object()


class _Here:
    """What this process knows of the namespaces it shares with others."""

    def __init__(self) -> None:
        # What `__main__` held when this worker began; empty in the driver.
        self.inherited: Mapping[str, Any] = {}
        # {name: (key, value)} of the entry applied last for each name.
        self.entries: dict[str, tuple[int, Any]] = {}
        # {first name: (key, {name: value})} of the groups applied last.
        self.groups: dict[str, tuple[int, dict[str, Any]]] = {}
        # {name: (key, error)} of the entries that could not be loaded and were not replaced yet.
        self.failed: dict[str, tuple[int, BaseException]] = {}


here = _Here()


def main_namespace() -> dict[str, Any]:
    """Return the namespace of `__main__` in this process."""
    return sys.modules["__main__"].__dict__


def keep_inherited() -> None:
    """Remember what `__main__` holds now; a worker does so before it runs anything."""
    here.inherited = dict(main_namespace())


def set_entry(name: str, key: int, load: Callable[[], Any]) -> None:
    """Bind a global name of `__main__` to a value; an error of `load` is kept for who needs it."""
    try:
        value = load()
    except BaseException as error:
        # Contained whatever it is: the code that ran belongs to the user's classes. It is raised
        # by `check_names` and `main_object`, in the tasks that need the name.
        here.failed[name] = (key, error)
        return
    here.failed.pop(name, None)
    if type(value) is Group:
        here.groups[name] = (key, value.members)
        value = value.members[name]
    here.entries[name] = (key, value)
    main_namespace()[name] = value


def check_names(names: tuple[str, ...]) -> None:
    """Raise the error of the first of these globals that could not be loaded here."""
    for name in names:
        if name in here.failed:
            raise here.failed[name][1].with_traceback(None)


def inherited_object(name: str) -> Any:
    """Return what `__main__` held under this dotted name when the workers were forked."""
    first, _, rest = name.partition(".")
    value = here.inherited.get(first, _MISSING)
    if value is _MISSING:
        value = getattr(sys.modules["__main__"], first)
    return _attribute(value, rest)


def main_object(name: str, key: int) -> Any:
    """Return what the entry of this key put under this dotted name of `__main__`."""
    first, _, rest = name.partition(".")
    failed = here.failed.get(first)
    if failed is not None and failed[0] == key:
        raise failed[1].with_traceback(None)
    entry = here.entries.get(first)
    if entry is not None and entry[0] == key:
        return _attribute(entry[1], rest)
    return _attribute(getattr(sys.modules["__main__"], first), rest)


class Call:
    """Pickles as the call of a function."""

    def __init__(self, call: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._reduced = call, args

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._reduced


class Group:
    """The values of global names that refer to each other in a circle."""

    def __init__(self, members: dict[str, Any]) -> None:
        self.members = members

    def __reduce__(self) -> tuple[type, tuple[dict[str, Any]]]:
        return Group, (self.members,)


def group_member(first: str, key: int, name: str) -> Any:
    """Return the value of one name of the group that was applied under its first name."""
    failed = here.failed.get(first)
    if failed is not None and failed[0] == key:
        raise failed[1].with_traceback(None)
    applied, members = here.groups[first]
    if applied != key:
        raise LookupError(f"the group of {name!r} under {first!r} was replaced meanwhile")
    return members[name]


def name_in(space: Mapping[str, Any], obj: Any) -> str | None:
    """Return the dotted name under which this function or class is found in `space`, or None.

    It is the object's own qualified name, if that leads, starting in `space`, to this very object.
    """
    name = getattr(obj, "__qualname__", None)
    if type(name) is not str or "<" in name:
        return None
    first, _, rest = name.partition(".")
    try:
        found = _attribute(space[first], rest)
    except (KeyError, AttributeError):
        return None
    return name if found is obj else None


def global_instances() -> dict[int, str]:
    """Return {id: name} of the instances that globals of `__main__` are bound to.

    Those that pickle by their attributes: what says itself how it is pickled is left to that.
    """
    plain: Any = object
    return {
        id(value): name
        for name, value in list(main_namespace().items())
        if type(value).__reduce_ex__ is plain.__reduce_ex__
        and type(value).__reduce__ is plain.__reduce__
        and (type(value).__module__ != "builtins" or type(value) is object)
        and not isinstance(value, type)
        and type(value) not in copyreg.dispatch_table
        and name not in MODULE_NAMES
    }


class PlainSession:
    """The part of a session (`byvalue.Session`) that sends instances as copies."""

    def assigns(self, names: Collection[str]) -> None:
        """Nobody asks."""

    def instances(self, making: Any) -> dict[int, str]:
        """All are copied."""
        return {}

    def instance(self, name: str, obj: Any, making: Any) -> tuple[Any, ...] | None:
        """It is copied."""
        return None


def may_be_by_value(plain: bytes) -> bool:
    """Say whether a pickle may name a module that the user has cloudpickle pickle by value."""
    cloudpickle = sys.modules.get("cloudpickle.cloudpickle")
    if cloudpickle is None:
        return False
    modules = cloudpickle._PICKLE_BY_VALUE_MODULES
    if not modules:
        return False
    return any(name.encode() in plain for name in list(modules))


def _attribute(value: Any, path: str) -> Any:
    if path:
        for part in path.split("."):
            value = getattr(value, part)
    return value


class NeedsByValue(Exception):
    """The pickle would name something of `__main__` that the other end does not have."""


class InheritedPickler(pickle.Pickler):
    """Plain pickle, with what was inherited from `__main__` by reference.

    It spares a forked pool the import of cloudpickle in the common case: instances of the
    script's classes as arguments and results.
    """

    def __init__(
        self,
        file: Any,
        buffer_callback: Callable[[pickle.PickleBuffer], Any] | None,
        inherited: Mapping[str, Any],
        bound_since: Container[str] | None = None,
    ) -> None:
        super().__init__(file, 5, buffer_callback=buffer_callback)
        self._inherited = inherited
        # In the driver, names that workers may have rebound; None in a worker, whose own is right.
        self._bound_since = bound_since

    def reducer_override(self, obj: Any) -> Any:
        """Reduce what belongs to `__main__`; leave the rest to stock pickle."""
        if (
            isinstance(obj, (type, FunctionType, CachedFunction))
            and getattr(obj, "__module__", None) in MAIN_NAMES
        ):
            name = name_in(self._inherited, obj)
            if name is None or (
                self._bound_since is not None
                and type(obj) is FunctionType
                and inherited_bindings(obj, self._inherited, self._bound_since) is None
            ):
                raise NeedsByValue(obj)
            return inherited_object, (name,)
        return NotImplemented
