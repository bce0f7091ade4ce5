"""A cloudpickle that keeps the functions of `__main__` in one namespace.

Imported only when something must be pickled by value, because cloudpickle costs some 20 ms.

cloudpickle gives each by-value function a dict of its own as its globals, filled with copies. But
scripts rely on one: `def init(): global model; model = load()` as the initializer and
`def work(x): return model(x)` as the task. So functions whose globals are those of `__main__` are
rewritten on the way: at the other end they get the namespace of `__main__` there, and the globals
they use are not part of them but asked for by name (`Session.use_global`). Functions and classes
that can be found in `__main__` by name are asked for by name too (`Session.reference`).
"""

from __future__ import annotations

import dis
import functools
import io
import marshal
import pickle
import typing
from collections.abc import Callable, Collection
from types import CodeType, FunctionType, MemberDescriptorType
from typing import Any, Protocol

from cloudpickle import Pickler, __version__, cloudpickle

from .namespace import (
    MAIN_MARK,
    MAIN_NAMES,
    MODULE_NAMES,
    CachedFunction,
    group_member,
    inherited_object,
    main_namespace,
    main_object,
)

__all__ = ["MainPickler", "Session", "dump"]

_STORE_GLOBAL = dis.opmap["STORE_GLOBAL"]
_READ_GLOBAL = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS", "DELETE_GLOBAL"})


class Session(Protocol):
    """Decides what a by-value pickle says about `__main__`."""

    def reference(self, obj: Any, making: Any) -> tuple[Any, ...] | None:
        """Return how to refer to a function or class of `__main__`, or None to pickle it whole.

        Args:
            obj: the function or class.
            making: what was given to `dump`: whatever the session knows this pickle by.
        """

    def use_global(self, name: str, value: Any, making: Any) -> None:
        """Note that a function in the pickle uses this global of `__main__`."""

    def assigns(self, names: Collection[str]) -> None:
        """Note that a function in the pickle assigns these globals and does not read them."""

    def instances(self, making: Any) -> dict[int, str]:
        """Return {id: name} of the instances about which to ask `instance`."""

    def instance(self, name: str, obj: Any, making: Any) -> tuple[Any, ...] | None:
        """Return how to refer to an instance that a global is bound to, or None to copy it."""


def dump(
    obj: Any,
    session: Session,
    making: Any = None,
    buffer_callback: Callable[[pickle.PickleBuffer], Any] | None = None,
) -> bytes:
    """Pickle an object with everything by value that cannot go by reference."""
    file = io.BytesIO()
    MainPickler(file, buffer_callback, session, making).dump(obj)
    return file.getvalue()


class MainPickler(Pickler):  # type: ignore[misc]  # cloudpickle has no type hints
    """Pickles functions and classes of `__main__` as the session says, all else as cloudpickle."""

    def __init__(
        self,
        file: io.BytesIO,
        buffer_callback: Callable[[pickle.PickleBuffer], Any] | None,
        session: Session,
        making: Any,
    ) -> None:
        super().__init__(file, 5, buffer_callback=buffer_callback)
        self._session = session
        self._making = making
        self._main = main_namespace()
        self._instances = session.instances(making)

    def reducer_override(self, obj: Any) -> Any:
        """Reduce what belongs to `__main__`; leave the rest to cloudpickle."""
        kind = type(obj)
        if kind is CodeType:
            return _reduce_code(obj)
        if kind is FunctionType and obj in _OWN_FUNCTIONS:
            return NotImplemented
        if isinstance(obj, (type, FunctionType, CachedFunction, typing.NewType)):
            if getattr(obj, "__module__", None) in MAIN_NAMES:
                reference = self._session.reference(obj, self._making)
                if reference is not None:
                    return reference
                # Said outright, for cloudpickle takes `__mp_main__` for an importable module.
                if isinstance(obj, FunctionType):
                    return self._dynamic_function_reduce(obj)
                if isinstance(obj, type):
                    return _tidy_class(obj, cloudpickle._dynamic_class_reduce(obj))
            if isinstance(obj, CachedFunction):
                return _reduce_cached_function(obj)
            if isinstance(obj, typing.NewType) and obj.__module__ in MAIN_NAMES:
                return _make_new_type, (obj.__name__, obj.__supertype__, obj.__module__)
            reduced = super().reducer_override(obj)
            return _tidy_class(obj, reduced) if isinstance(obj, type) else reduced
        name = self._instances.get(id(obj))
        if name is not None:
            reference = self._session.instance(name, obj, self._making)
            if reference is not None:
                return reference
        return NotImplemented  # where cloudpickle has nothing special either

    def _dynamic_function_reduce(self, func: FunctionType) -> tuple[Any, ...]:
        reduced: tuple[Any, ...] = super()._dynamic_function_reduce(func)
        if func.__globals__ is not self._main:
            return reduced
        try:
            _, (code, _, _, _, closure), (attributes, slots), _, _, _ = reduced
            used = slots.pop("__globals__")
            cells = slots.pop("__closure__")
            submodules = slots.pop("_cloudpickle_submodules")
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise pickle.PicklingError(
                f"cloudpickle {__version__} describes functions in a way that this "
                "version of owndist does not know; use cloudpickle 3.1 or move the function to "
                "a module"
            ) from error
        assigned = only_assigned(func.__code__)
        if assigned:
            self._session.assigns(assigned)
        for name, value in used.items():
            if name not in MODULE_NAMES:
                self._session.use_global(name, value, self._making)
        state = (attributes, slots, cells, submodules)
        return _make_main_function, (code, closure), state, None, None, _set_function_state


def only_assigned(code: CodeType) -> Collection[str]:
    """Return the global names that code assigns and does not read."""
    parts = [code]
    for part in parts:  # grows on the way
        parts += [constant for constant in part.co_consts if type(constant) is CodeType]
    if not any(_STORE_GLOBAL in part.co_code for part in parts):
        return ()  # as nearly always
    stored: set[str] = set()
    read: set[str] = set()
    for part in parts:
        for step in dis.get_instructions(part):
            if step.opname == "STORE_GLOBAL":
                stored.add(step.argval)
            elif step.opname in _READ_GLOBAL:
                read.add(step.argval)
    return stored - read


def _reduce_code(code: CodeType) -> Any:
    """Reduce a code object to the bytes of `marshal`; three times as fast as by its parts.

    Both ends run the same Python, or no code could be shared. In version 0 of the format the bytes
    depend on the code alone; in later ones also on how many references there are to its parts.
    """
    try:
        return _load_code, (marshal.dumps(code, 0),)
    except ValueError:
        # A constant of a kind that the format does not know; cloudpickle takes it apart.
        return NotImplemented


def _load_code(data: bytes) -> Any:
    return marshal.loads(data)


def _tidy_class(cls: type, reduced: Any) -> Any:
    """Mend what cloudpickle says of a class that goes by value; leave alone what goes by name."""
    if type(reduced) is not tuple or len(reduced) != 6:
        return reduced
    attributes = reduced[2][0]
    # What pickling instances leaves there (see `copyreg`). Otherwise a class would be another one
    # after the first of its instances was pickled.
    attributes.pop("__slotnames__", None)
    if reduced[0] is cloudpickle._make_skeleton_class and "__slots__" in vars(cls):
        # The slots are made with the class: without them its instances would have a `__dict__`
        # instead, and their state would not fit those of the original.
        slots = [name for name, value in vars(cls).items() if type(value) is MemberDescriptorType]
        for name in slots:
            attributes.pop(name, None)
        slots += [name for name in ("__dict__", "__weakref__") if name in vars(cls)]
        reduced[1][3]["__slots__"] = tuple(slots)
    return reduced


def _make_main_function(code: CodeType, closure: tuple[Any, ...] | None) -> FunctionType:
    """Make a function whose globals are those of `__main__` here."""
    return FunctionType(code, main_namespace(), None, None, closure)


def _set_function_state(function: FunctionType, state: tuple[Any, ...]) -> None:
    """Give a new function the rest of what it had; a separate step, so that cycles work."""
    attributes, slots, cells, _ = state
    function.__dict__.update(attributes)
    for cell, old in zip(function.__closure__ or (), cells or (), strict=True):
        try:
            cell.cell_contents = old.cell_contents
        except ValueError:
            continue  # an empty cell: a variable that had no value yet, or no longer
    for name, value in slots.items():
        setattr(function, name, value)


def _reduce_cached_function(obj: Any) -> Any:
    """Reduce a function wrapped by `functools.cache` or `lru_cache`; the cache starts empty.

    By itself it pickles by name only, which does not lead anywhere when it is not importable.
    """
    try:
        plain = pickle.dumps(obj, 5)
    except (pickle.PicklingError, AttributeError, ImportError):
        plain = MAIN_MARK
    if MAIN_MARK not in plain:
        return NotImplemented
    remade = ("__wrapped__", "cache_parameters")  # what lru_cache itself sets
    state = {name: value for name, value in vars(obj).items() if name not in remade}
    return _make_cached_function, (obj.__wrapped__, obj.cache_parameters()), state


def _make_cached_function(wrapped: Callable[..., Any], parameters: dict[str, Any]) -> Any:
    return functools.lru_cache(**parameters)(wrapped)


def _make_new_type(name: str, supertype: Any, module: str) -> Any:
    new_type: Any = typing.NewType  # a checker wants the name as a literal
    made = new_type(name, supertype)
    made.__module__ = module
    return made


# Functions that nearly every by-value pickle refers to: spared the question whether they are
# importable, which costs as much as the rest.
_OWN_FUNCTIONS = frozenset(
    {
        _load_code,
        _make_main_function,
        _set_function_state,
        cloudpickle._builtin_type,
        cloudpickle._class_setstate,
        cloudpickle._function_setstate,
        cloudpickle._make_cell,
        cloudpickle._make_empty_cell,
        cloudpickle._make_function,
        cloudpickle._make_skeleton_class,
        group_member,
        inherited_object,
        main_object,
    }
)
