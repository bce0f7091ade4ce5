"""One object on its way to bytes, with the namespace entries of `__main__` that it needs.

What an entry refers to is of two kinds. Some must be there when it is loaded: the class of an
instance, the base of a class. These are pickled as references and made into entries first, by a
pickler inside the pickler. Others are only used when its functions are called: globals that they
name. These are made into entries afterwards, so functions may call each other in circles.

References in a circle (a base class that keeps a table of its subclasses) cannot be put in order.
The names in such a circle become a *group*: one pickle, under the first of the names, and for
each other name an entry that takes its part out of the group.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Collection, Mapping
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from .definitions import Definitions
from .inherited import contents, inherited_bindings
from .namespace import (
    MAIN_MARK,
    Call,
    Group,
    global_instances,
    group_member,
    inherited_object,
    main_namespace,
    main_object,
    may_be_by_value,
    name_in,
)
from .pickling import here

if TYPE_CHECKING:
    from .unchanged import Witness

_dumps = pickle.dumps
_MISSING = object()
# Data above this size, pickled, is sent again only when its name is bound to another object. To
# look for changes inside would take milliseconds at every submit.
_LARGE = 64 * 1024


class Making:
    """An entry in the making: the value of one global name, or of a group of them."""

    __slots__ = ("first", "later", "names")

    def __init__(self, names: frozenset[str]) -> None:
        self.names = names
        # Names that it refers to: they must be there when it is loaded.
        self.first: dict[str, None] = {}
        # Names that its functions use when they are called.
        self.later: dict[str, None] = {}


class GlobalFails(Exception):
    """A global that a function uses cannot be pickled."""

    def __init__(self, name: str, value: Any, error: Exception) -> None:
        super().__init__(name, value, error)
        self.name = name
        self.value = value
        self.error = error


class _Circle(Exception):
    """These names refer to each other in a circle and must be made together."""

    def __init__(self, names: frozenset[str]) -> None:
        super().__init__(names)
        self.names = names


class Remembered(NamedTuple):
    """How a function or class was last made into a definition."""

    value: Any  # the function or class, where the key of the memory is not the object itself
    witness: Witness | None  # None the first time, and where there can be none
    hopeless: bool  # there can be none
    key: int = 0
    entries: tuple[int, ...] = ()
    bound: int = 0  # how many global names had an entry by then


class Large(NamedTuple):
    """Data that is large when pickled: not looked at again while its name is bound to it."""

    value: Any  # kept, so that no other object gets its identity
    making: Making
    needs: dict[str, int]  # the entries that it was made with
    key: int


class Session:
    """Makes the pickle of one object, and the entries it needs.

    Args:
        definitions: where to put the entries.
        inherited: what `__main__` held when the workers' template was forked, or None.
        memory: what sessions remember of functions and classes, by global name.
        data: what small data of `__main__` consisted of then (see `inherited.small_data`).
        large: the large data that was sent last, by global name.
    """

    def __init__(
        self,
        definitions: Definitions,
        inherited: Mapping[str, Any] | None,
        memory: dict[str, Remembered],
        data: Mapping[str, list[Any]],
        large: dict[str, Large],
    ) -> None:
        self._definitions = definitions
        self._memory = memory
        self._inherited = inherited
        self._data = data
        self._large = large
        self._main = main_namespace()
        self._instances: dict[int, str] | None = None
        self._is_function = False  # or a value
        # Global name -> key of its entry, for the entries that are finished.
        self._done: dict[str, int] = {}
        # The entries in the making; each but the first is referred to by the one before.
        self._stack: list[Making] = []
        # Name -> the group it is in. Names that are in none are left out.
        self._groups: dict[str, frozenset[str]] = {}
        # The globals that functions use, with their values: made into entries last.
        self._used: dict[str, Any] = {}
        # First name of an entry -> the names that its functions use.
        self._later: dict[str, dict[str, None]] = {}

    def dump(
        self,
        obj: Any,
        buffer_callback: Callable[[pickle.PickleBuffer], Any] | None = None,
    ) -> bytes:
        """Return the pickle of the session's object, and make all entries it needs."""
        from . import byvalue

        self._is_function = isinstance(obj, FunctionType)
        head = byvalue.dump(obj, self, None, buffer_callback)
        theirs: set[str] = set()
        while waiting := [n for n in self._used if n not in theirs and self._needs_entry(n)]:
            for name in waiting:
                try:
                    self._entry(name)
                except GlobalFails as error:
                    if error.name != name or name not in self._definitions.assigned:
                        raise
                    # An initializer, say, makes the workers' own.
                    theirs.add(name)
        for name, uses in self._later.items():
            later = tuple([self._done[use] for use in uses if use in self._done])
            self._definitions.set_needs_later(self._done[name], later)
        return head

    @property
    def keys(self) -> tuple[int, ...]:
        """The keys of the entries, in the order in which to apply them."""
        if not self._done:
            return ()
        return self._definitions.complete([self._done[name] for name in self.names])

    @property
    def names(self) -> tuple[str, ...]:
        """The global names that the entries bind, sorted, so that keys stay the same."""
        return tuple(sorted(self._done))

    def reference(self, obj: Any, making: Making | None) -> tuple[Any, ...] | None:
        """Refer to a function or class of `__main__`, or return None to have it pickled whole."""
        if self._inherited is not None:
            name = name_in(self._inherited, obj)
            had = self._definitions.bound_names
            if name is not None and (
                type(obj) is not FunctionType
                or inherited_bindings(obj, self._inherited, had) is not None
            ):
                return inherited_object, (name,)
        name = name_in(self._main, obj)
        if name is None:
            return None
        first = name.partition(".")[0]
        if making is not None:
            if first in making.names:
                return None
            making.first[first] = None
        return main_object, (name, self._entry_before(first))

    def instances(self, making: Making | None) -> dict[int, str]:
        """Return {id: name} of the instances that are referred to by the name of their global.

        So `if value is MISSING` is true for a default that is MISSING. Arguments are copies.
        """
        if making is None and not self._is_function:
            return {}
        if self._instances is None:
            self._instances = global_instances()
        return self._instances

    def instance(self, name: str, obj: Any, making: Making | None) -> tuple[Any, ...] | None:
        """Refer to an instance by the name of its global, or return None to have it copied."""
        if making is not None and name in making.names:
            return None
        if self._inherited is not None and name not in self._definitions.bound_names:
            if self._inherited.get(name, _MISSING) is obj or (
                name in self._data and contents(obj) == self._data[name]
            ):
                return inherited_object, (name,)
            if type(obj) is not object:
                return None  # to send it would undo what was made of it in the workers
        if making is not None:
            making.first[name] = None
        return main_object, (name, self._entry_before(name))

    def _entry_before(self, first: str) -> int:
        """Make the entry of a name that the one in the making refers to; return its key."""
        for index, outer in enumerate(self._stack):
            if first in outer.names:
                names = frozenset().union(*[inner.names for inner in self._stack[index:]])
                self._groups.update(dict.fromkeys(names, names))
                raise _Circle(names)
        return self._entry(first)

    def use_global(self, name: str, value: Any, making: Making | None) -> None:
        """Note that a function uses a global: it must be there when the function is called.

        What it only assigns is sent too, where that is possible: before, and not after it.
        """
        self._used.setdefault(name, value)
        if making is not None:
            making.later[name] = None

    def assigns(self, names: Collection[str]) -> None:
        """Note that a function assigns these globals and does not read them."""
        self._definitions.assigned.update(names)

    def _needs_entry(self, name: str) -> bool:
        """Say whether the workers must be told of a global: not if they began with it."""
        if name in self._done:
            return False
        if name in self._definitions.bound_names:
            return True
        value = self._used[name]
        if self._is_as_inherited(name, value):
            return False
        return name not in self._data or contents(value) != self._data[name]

    def _is_as_inherited(self, name: str, value: Any) -> bool:
        """Say whether a global is what forked workers began with, and so is what it uses."""
        if self._inherited is None or self._inherited.get(name, _MISSING) is not value:
            return False
        had = self._definitions.bound_names
        return (
            type(value) is not FunctionType
            or inherited_bindings(value, self._inherited, had) is not None
        )

    def _entry(self, name: str) -> int:
        """Make the entry that binds `name`, and before it those it refers to; return its key."""
        if name in self._done or self._recall(name):
            return self._done[name]
        while name not in self._done:
            making = Making(self._groups.get(name, frozenset((name,))))
            self._stack.append(making)
            witness = self._witness(name)
            futures = here.futures
            had = len(futures) if futures is not None else 0
            try:
                if self._is_known_large(name, making):
                    break
                body = self._body(making)
            except _Circle as circle:
                # Tried again by the outermost entry of the circle, as a group.
                if any(not circle.names.isdisjoint(outer.names) for outer in self._stack[:-1]):
                    raise
                continue
            finally:
                self._stack.pop()
            self._add(making, body)
            # Futures must be found anew each time.
            if len(body) > _LARGE and (futures is None or len(futures) == had):
                self._keep_large(name, making)
            if witness is not None:
                self._memory[name] = Remembered(
                    self._value(name), witness, False, self._done[name], (), self._bound
                )
        return self._done[name]

    def _is_known_large(self, name: str, making: Making) -> bool:
        """Take the entry of large data that was sent before; only its identity is looked at."""
        known = self._large.get(name)
        if (
            known is None
            or known.value is not self._value(name)
            or len(making.names) > 1
            or known.key not in self._definitions.bodies
        ):
            return False
        for need, key in known.needs.items():
            if self._entry_before(need) != key:
                return False
        for use in known.making.later:
            if use in self._main:
                self.use_global(use, self._main[use], None)
        self._done[name] = known.key
        self._later[name] = known.making.later
        return True

    def _keep_large(self, name: str, making: Making) -> None:
        value = self._value(name)
        if len(making.names) == 1 and not isinstance(value, (type, FunctionType)):
            needs = {need: self._done[need] for need in making.first}
            self._large[name] = Large(value, making, needs, self._done[name])

    def _recall(self, name: str) -> bool:
        """Take the entry of a function or class that did not change, with all that it needs."""
        known = self._memory.get(name)
        if known is None or known.witness is None or known.value is not self._value(name):
            return False
        # A name that was bound since then may have been taken for inherited, and is not any more.
        if known.bound != self._bound:
            return False
        needs = self._definitions.reached(known.key)
        if not needs or not known.witness.holds():
            return False
        found = {self._definitions.entry_name[key]: key for key in needs}
        if any(not making.names.isdisjoint(found) for making in self._stack):
            # Perhaps a circle, which is to be found the slow way.
            return False
        self._done = found | self._done
        return True

    def _witness(self, name: str) -> Witness | None:
        """Return a witness of a function or class, from the second time it is made.

        The first time it would be wasted on those that are sent once.
        """
        value = self._value(name)
        if not isinstance(value, (type, FunctionType)):
            return None
        known = self._memory.get(name)
        if known is None or known.value is not value:
            self._memory[name] = Remembered(value, None, False)
            return None
        if known.hopeless:
            return None
        from .unchanged import witness

        found = witness(value)
        if found is None:
            self._memory[name] = Remembered(value, None, True)
        return found

    @property
    def _bound(self) -> int:
        return len(self._definitions.bound_names)

    def _body(self, making: Making) -> bytes:
        from . import byvalue

        names = self._in_order(making.names)
        name = names[0]
        value = self._value(name)
        if len(names) > 1:
            value = Group({name: self._value(name) for name in names})
        elif self._is_as_inherited(name, value):
            # Bound again to what it was at first: only its name is sent.
            return _dumps(Call(inherited_object, (name,)), 5)
        elif not isinstance(value, (type, FunctionType, ModuleType)):
            lock = _fresh_lock(value)
            if lock is not None:
                return _dumps(lock, 5)
            try:
                plain = _dumps(value, 5)
                if MAIN_MARK not in plain and not may_be_by_value(plain):
                    return plain
            except Exception:
                # Tried again with cloudpickle, whose error is reported.
                pass
        try:
            return byvalue.dump(value, self, making)
        except (_Circle, GlobalFails):
            raise
        except Exception as error:
            raise GlobalFails(name, value, error) from error

    def _add(self, making: Making, body: bytes) -> None:
        first, *others = self._in_order(making.names)
        needs = tuple([self._done[need] for need in making.first])
        key = self._done[first] = self._definitions.add_entry(first, body, needs)
        self._later[first] = making.later
        for name in others:
            making.later[name] = None  # where one of a group is needed, all are
            part = _dumps(Call(group_member, (first, key, name)), 5)
            self._done[name] = self._definitions.add_entry(name, part, (key,))

    def _value(self, name: str) -> Any:
        return self._used[name] if name in self._used else self._main[name]

    def _in_order(self, names: frozenset[str]) -> list[str]:
        """Sort names so that base classes come before their subclasses, always the same way.

        A class is made as an empty skeleton and filled later. If its base is only a skeleton at
        that time, the `__init_subclass__` of the base does not run a second time.
        """
        if len(names) == 1:
            return list(names)
        return sorted(
            names, key=lambda name: (len(getattr(self._value(name), "__mro__", ())), name)
        )


def _fresh_lock(value: Any) -> Call | None:
    """Return what makes a fresh lock of the same kind, as importing the script again would.

    None if the value is not a lock. Locks are for the threads of one process and never travel.
    """
    if type(value).__module__ not in ("_thread", "threading"):
        return None
    import threading

    kind: Any = type(value)
    if kind is type(threading.Lock()):
        return Call(threading.Lock, ())
    if kind is threading.Semaphore:
        return Call(kind, (value._value,))
    if kind is threading.BoundedSemaphore:
        return Call(kind, (value._initial_value,))
    if kind in (threading.Event, threading.Condition, threading.local):
        return Call(kind, ())
    return Call(kind, ()) if kind is type(threading.RLock()) else None
