"""Which callables a worker may keep from one task to the next.

A bound method, a `partial` or an object with `__call__` carries things that a call may change. With
`ProcessPoolExecutor` every task gets a copy of its own, so here, too: such a callable travels with
the task's arguments. What cannot carry anything from call to call is sent to a worker once.

A plain function counts as one that cannot: that of a module, and of `__main__` under fork, is one
object in each process with the standard library's executor, too, defaults and all.
"""

from __future__ import annotations

import functools
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

#: Types all of whose values are small and cannot change. More such values: see `is_fixed`.
ATOMS = frozenset({int, float, bool, complex, type(None), type(Ellipsis), range, object})
# Longer texts, and tuples of more items, travel with the arguments: kept, they would pile up.
_SHORT = 4096
_FEW = 100


def is_stateless(fn: Any) -> bool:
    """Say whether all calls of this function object are alike, whatever calls went before."""
    kind = type(fn)
    if kind is FunctionType:
        return fn.__closure__ is None or all(map(_is_fixed_cell, fn.__closure__))
    if kind is MethodType:
        return isinstance(fn.__self__, type) and is_stateless(fn.__func__)
    if kind is functools.partial:
        bound = (*fn.args, *fn.keywords.values(), *vars(fn).values())
        return type(fn.func) is not functools.partial and is_stateless(fn.func) and is_fixed(bound)
    return _is_plain(fn)


def is_fixed(value: Any) -> bool:
    """Say whether a value is small, and nobody can change it."""
    kind = type(value)
    if kind in ATOMS:
        return True
    if kind is str or kind is bytes:
        return len(value) <= _SHORT
    if kind is tuple or kind is frozenset:
        return len(value) <= _FEW and all(map(is_fixed, value))
    return kind is ModuleType or _is_plain(value)


def _is_fixed_cell(cell: Any) -> bool:
    try:
        return is_fixed(cell.cell_contents)
    except ValueError:
        return True  # empty


def _is_plain(fn: Any) -> bool:
    """Whether it is a callable with nothing inside, so that asking cannot go round in circles."""
    kind = type(fn)
    if kind is FunctionType:
        return fn.__closure__ is None
    if kind is BuiltinFunctionType:
        return fn.__self__ is None or isinstance(fn.__self__, ModuleType)
    return isinstance(fn, type) or kind in _DESCRIPTORS


_DESCRIPTORS = frozenset({type(str.upper), type(str.__add__), type(dict.__dict__["fromkeys"])})
