"""Whether a function of `__main__` is still what the forked workers inherited.

The function may be the same object while what it calls is not: a notebook redefines a helper, and
runs the cell that submits its caller again. Looked at are the globals that the function names, and
those of the functions among them: functions, classes, modules and plain numbers and texts must be
the very objects that were there when the workers' template was forked. Other data is not looked at:
forked workers keep what they inherited, as under the standard library's executor.

Functions that are pickled by value have their globals sent, and what is sent replaces what an
initializer or a task made of it in the worker. So small data is noted when the template is forked
(`small_data`), and not sent while it still is what it was.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Container, Mapping
from types import CodeType, FunctionType, ModuleType
from typing import Any

_ATOMS = (int, float, complex, str, bytes, bool, type(None))
_MISSING = object()
# How many items are noted of the data of a script (0.2 µs each), and how long texts may be: what
# is noted is kept in memory.
_MOST_ITEMS = 1000
_LONGEST = 4096
_DICTS = (dict, OrderedDict, Counter, defaultdict)
_LISTS = (list, tuple, set, frozenset, deque)

# A name and what it is bound to.
Binding = tuple[str, Any]


def is_compared(value: object) -> bool:
    """Whether this global of `__main__` is compared with what was inherited."""
    return (
        hasattr(value, "__qualname__")
        or type(value) is object  # made to be told apart by `is`
        or isinstance(value, (ModuleType, *_ATOMS))
    )


def inherited_bindings(
    fn: FunctionType, inherited: Mapping[str, Any], bound_since: Container[str]
) -> list[Binding] | None:
    """The globals that a function uses, if all are as inherited; None if one is not.

    Args:
        fn: a function of `__main__`.
        inherited: what of `__main__` was there when the template was forked.
        bound_since: names that have been sent to workers since; there they may be anything.
    """
    space = fn.__globals__
    bindings: list[Binding] = []
    todo, seen = [fn], {fn}
    while todo:
        for name in _names(todo.pop().__code__):
            value = space.get(name, _MISSING)
            if value is _MISSING or not is_compared(value):
                if name in inherited or name in bound_since:
                    return None
                continue
            if inherited.get(name, _MISSING) is not value or name in bound_since:
                return None
            bindings.append((name, value))
            if type(value) is FunctionType and value.__globals__ is space and value not in seen:
                seen.add(value)
                todo.append(value)
    return bindings


def still_bound(bindings: list[Binding], space: Mapping[str, Any]) -> bool:
    """Whether all these names are still bound to the same objects."""
    for name, value in bindings:
        if space.get(name, _MISSING) is not value:
            return False
    return True


def small_data(space: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Note the contents of the containers and simple instances among these globals.

    What is large, or holds anything that cannot be compared safely, is left out.
    """
    left = _MOST_ITEMS
    noted: dict[str, list[Any]] = {}
    for name, value in list(space.items()):
        if name[:2] != "__" and not is_compared(value):
            found = contents(value, left)
            if found is not None:
                noted[name] = found
                left -= len(found)
    return noted


def contents(value: Any, most: int = _MOST_ITEMS) -> list[Any] | None:
    """List what some data consists of: equal lists mean equal data. None if that is too much."""
    found: list[Any] = []
    waiting = [value]
    try:
        for part in waiting:  # grows on the way; what leads back to itself becomes too long
            kind = type(part)
            inner: Any = ()
            if kind in _ATOMS:
                if kind in (str, bytes) and len(part) > _LONGEST:
                    return None
                found += (kind, part)
            elif kind in _DICTS or kind in _LISTS:
                if len(part) > most:
                    return None
                found += (kind, len(part))
                inner = [*part, *part.values()] if kind in _DICTS else part
                if kind is defaultdict:
                    inner.append(part.default_factory)
            elif kind is type and part.__module__ == "builtins":
                found += (kind, part)
            elif _is_simple(kind):
                found += (kind, 1)
                inner = (vars(part),)
            else:
                return None
            waiting += inner
            if len(waiting) > most or len(found) > 2 * most:
                return None
    except RuntimeError:
        return None  # another thread changed it meanwhile
    return found


def _is_simple(kind: type) -> bool:
    """Whether instances are their attributes and nothing else."""
    return (
        type(kind) is type
        and kind.__mro__ == (kind, object)
        and "__slots__" not in vars(kind)
        and kind.__dictoffset__ != 0
        and kind.__module__ in ("__main__", "__mp_main__")
        and not {"__reduce__", "__reduce_ex__", "__getstate__"} & {*vars(kind)}
    )


def _names(code: CodeType) -> set[str]:
    # Attributes are among them too. One of the same name as a global costs a look, no more.
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names(constant)
    return names
