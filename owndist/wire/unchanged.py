"""Tells whether a by-value function or class is still what it was when it was last pickled.

Pickling by value costs 20 to 200 µs; looking at everything it was made of, a few. A `Witness`
holds what can be compared by identity (code, defaults, closure variables, globals, attributes of
classes, items of small containers) for the function and for all that it leads to. What else may
change inside is pickled and compared. Where neither is possible there is no witness, and the
function is pickled again.
"""

from __future__ import annotations

import functools
import operator
import pickle
import sys
import types
import typing
from abc import get_cache_token
from collections.abc import Callable
from enum import EnumMeta
from types import FunctionType
from typing import Any

from cloudpickle.cloudpickle import _extract_code_globals

from .namespace import MAIN_MARK, CachedFunction, main_namespace, may_be_by_value, name_in
from .pickling import here

# How much one witness looks at before it would be no cheaper than pickling: functions, classes
# and containers; items of one container; bytes of other values that may change.
_MOST_WALKED = 200
_MOST_ITEMS = 64
_MOST_BYTES = 64 * 1024

# Objects of these types never change, and what they refer to does not matter.
_FIXED = frozenset(
    {
        type(None),
        type(Ellipsis),
        type(NotImplemented),
        bool,
        bytes,
        complex,
        float,
        int,
        str,
        range,
        types.CodeType,
        types.GetSetDescriptorType,
        types.MemberDescriptorType,
        types.MethodDescriptorType,
        types.ModuleType,
        types.WrapperDescriptorType,
    }
)
# Attributes of classes that are made with the class and by contract stay as they are.
_MADE_WITH_CLASS = frozenset({"__dataclass_fields__", "__dataclass_params__", "_abc_impl"})
_WITH_CODE = frozenset({FunctionType, classmethod, staticmethod, property})
_MISSING = object()


class _CannotTell(Exception):
    """There is something whose changes would go unseen."""


class Witness:
    """What a function or class was made of.

    Make it before the object is pickled, so that a change on the way is noticed the next time.
    """

    __slots__ = ("_abc_token", "_content", "_modules", "_mutable", "_names", "_walked")

    def __init__(self, root: Any) -> None:
        """Look at an object. Raises an exception when its changes could go unseen."""
        # Functions and classes, with the parts they had.
        self._walked: list[tuple[Any, Callable[[Any], list[Any]], list[Any]]] = []
        # Values that may change inside, and their pickle.
        self._mutable: list[Any] = []
        self._content = b""
        # The globals they are bound to: pickles refer to instances by name.
        self._names: list[str] = []
        # More modules: cloudpickle may find more submodules that a function uses.
        self._modules = len(sys.modules)
        # Changes when a class is registered with an abstract base class.
        self._abc_token = get_cache_token()
        seen: set[int] = set()
        waiting = [root]
        for value in waiting:  # grows on the way
            if type(value) not in _FIXED and id(value) not in seen:
                seen.add(id(value))
                waiting += self._look(value)
        if self._mutable:
            self._content = self._dump_mutable()
            self._names = self._names_of_mutable()
            if (
                len(self._content) > _MOST_BYTES
                or MAIN_MARK in self._content
                or may_be_by_value(self._content)
            ):
                raise _CannotTell(root)

    def holds(self) -> bool:
        """Say whether pickling would give the same again."""
        if len(sys.modules) != self._modules or get_cache_token() != self._abc_token:
            return False
        try:
            for obj, parts_of, before in self._walked:
                now = parts_of(obj)
                if len(now) != len(before) or any(map(operator.is_not, now, before)):
                    return False
            if not self._mutable:
                return True
            return self._names_of_mutable() == self._names and self._dump_mutable() == self._content
        except Exception:
            # Something is there now that cannot be told or compared.
            return False

    def _dump_mutable(self) -> bytes:
        # Outside of any collecting: futures must be found anew each time.
        outer, here.futures = here.futures, None
        try:
            return pickle.dumps(self._mutable, 5)
        finally:
            here.futures = outer

    def _names_of_mutable(self) -> list[str]:
        found = set(map(id, self._mutable))
        return [name for name, value in list(main_namespace().items()) if id(value) in found]

    def _look(self, value: Any) -> list[Any]:
        """Take note of one object; return those it leads to."""
        kind = type(value)
        if kind is tuple or kind is frozenset:
            return list(value)
        if kind is FunctionType or isinstance(value, (type, CachedFunction)):
            if _is_importable(value):
                return []
            parts_of: Callable[[Any], list[Any]] = _class_parts
            if kind is FunctionType:
                # The names stay as long as the code does, which is compared too.
                names = tuple(_extract_code_globals(value.__code__))
                parts_of = functools.partial(_function_parts, names)
            elif not isinstance(value, type):
                parts_of = _cached_function_parts
            parts = self._walk(value, parts_of)
            if isinstance(value, EnumMeta):
                # Members stay; their values are looked at, the tables that lead to them not.
                members: list[Any] = list(value.__members__.values())
                skipped = {id(part) for name, part in vars(value).items() if name[:1] == "_"}
                skipped.update(map(id, members))
                looked = [p for p in parts if id(p) not in skipped or type(p) in _WITH_CODE]
                return looked + [vars(member)["_value_"] for member in members]
            if isinstance(value, type):
                made = {id(vars(value).get(name)) for name in _MADE_WITH_CLASS}
                return [part for part in parts if id(part) not in made]
            return parts
        if kind in _CONTAINERS and len(value) <= _MOST_ITEMS:
            return self._walk(value, _CONTAINERS[kind])
        if kind is classmethod or kind is staticmethod:
            return [value.__func__]
        if kind is property:
            return [value.fget, value.fset, value.fdel]
        if kind is types.BuiltinFunctionType and isinstance(
            value.__self__, (type, types.ModuleType)
        ):
            return []
        if kind is typing.TypeVar:
            return [value.__bound__, *value.__constraints__]
        if kind.__module__ == "typing" or kind in (types.GenericAlias, types.UnionType):
            inner = [getattr(value, name, None) for name in ("__origin__", "__supertype__")]
            return [*inner, *getattr(value, "__args__", ())]
        if value is not _MISSING:
            self._mutable.append(value)
        return []

    def _walk(self, value: Any, parts_of: Callable[[Any], list[Any]]) -> list[Any]:
        parts = parts_of(value)
        self._walked.append((value, parts_of, parts))
        if len(self._walked) > _MOST_WALKED:
            raise _CannotTell(value)
        return parts


def _dict_parts(items: Any) -> list[Any]:
    return [*items, *items.values()]


def _function_parts(names: tuple[str, ...], function: Any) -> list[Any]:
    parts = [
        function.__code__,
        function.__defaults__,
        function.__doc__,
        function.__name__,
        function.__qualname__,
        function.__module__,
        name_in(main_namespace(), function),
    ]
    for cell in function.__closure__ or ():
        try:
            content = cell.cell_contents
        except ValueError:
            content = _MISSING
        parts.append(content)
    for items in (function.__kwdefaults__, function.__annotations__, function.__dict__):
        if items:
            parts += items
            parts += items.values()
    if names:
        space = function.__globals__
        parts += [space.get(name, _MISSING) for name in names]
    return parts


def _class_parts(cls: Any) -> list[Any]:
    parts = [type(cls), name_in(main_namespace(), cls), *cls.__bases__]
    for name, value in vars(cls).items():
        if name == "__annotations__":
            parts += value
            parts += value.values()
        elif name != "__slotnames__":  # a trace of pickling, see `byvalue`
            parts += (name, value)
    return parts


def _cached_function_parts(function: Any) -> list[Any]:
    attributes = vars(function)
    parts = [name_in(main_namespace(), function)]
    for name, value in attributes.items():
        if name == "__annotations__":
            parts += value
            parts += value.values()
        elif name != "cache_parameters":
            parts += (name, value)
    return parts


_CONTAINERS: dict[type, Callable[[Any], list[Any]]] = {dict: _dict_parts, list: list, set: list}


def _is_importable(obj: Any) -> bool:
    """Say whether a function or class goes by reference, so that what it is made of is no matter.

    Modules that are pickled by value are not among the importable ones.
    """
    module = sys.modules.get(getattr(obj, "__module__", None) or "")
    if module is None or module is sys.modules["__main__"]:
        return False
    if name_in(vars(module), obj) is None:
        return False
    if may_be_by_value(module.__name__.encode()):
        raise _CannotTell(obj)
    return True


def witness(obj: Any) -> Witness | None:
    """Return a witness of a function or class, or None where it could not tell."""
    try:
        return Witness(obj)
    except Exception:
        # Not only `_CannotTell`: what cannot be pickled plainly cannot be compared either.
        return None
