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
    if isinstance(fn, type):
        return True
    if kind is BuiltinFunctionType:
        return fn.__self__ is None or isinstance(fn.__self__, ModuleType)
    if kind is MethodType:
        return isinstance(fn.__self__, type) and is_stateless(fn.__func__)
    if kind is functools.partial:
        return (
            is_stateless(fn.func)
            and is_fixed(fn.args)
            and all(map(is_fixed, fn.keywords.values()))
            and all(map(is_fixed, vars(fn).values()))
        )
    return kind in _DESCRIPTORS


def is_fixed(value: Any) -> bool:
    """Say whether a value is small, and nobody can change it."""
    kind = type(value)
    if kind in ATOMS:
        return True
    if kind is str or kind is bytes:
        return len(value) <= _SHORT
    if kind is tuple or kind is frozenset:
        return len(value) <= _FEW and all(map(is_fixed, value))
    return kind is ModuleType or is_stateless(value)


def _is_fixed_cell(cell: Any) -> bool:
    try:
        content = cell.cell_contents
    except ValueError:
        return True  # empty
    return type(content) is not FunctionType and is_fixed(content) or _is_plain(content)


def _is_plain(fn: Any) -> bool:
    """A function without a closure; one with may lead back to where the question came from."""
    return type(fn) is FunctionType and fn.__closure__ is None


_DESCRIPTORS = frozenset({type(str.upper), type(str.__add__), type(dict.__dict__["fromkeys"])})
