"""Whether a function of `__main__` is still what the forked workers inherited.

The function may be the same object while what it calls is not: a notebook redefines a helper, and
runs the cell that submits its caller again. Looked at are the globals that the function names, and
those of the functions among them: functions, classes, modules and plain numbers and texts must be
the very objects that were there when the workers' template was forked. Other data is not looked at:
forked workers keep what they inherited, as under the standard library's executor.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from types import CodeType, FunctionType, ModuleType
from typing import Any

_ATOMS = (int, float, complex, str, bytes, bool, type(None))
_MISSING = object()

# A name and what it is bound to.
Binding = tuple[str, Any]


def is_compared(value: object) -> bool:
    """Whether this global of `__main__` is compared with what was inherited."""
    return hasattr(value, "__qualname__") or isinstance(value, (ModuleType, *_ATOMS))


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


def _names(code: CodeType) -> set[str]:
    # Attributes are among them too. One of the same name as a global costs a look, no more.
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names(constant)
    return names
