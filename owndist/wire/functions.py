"""What a task calls, as bytes: by reference where the worker can import it, by value else.

A submitting process has one `Encoder`, an executing process one `Decoder`. A function becomes a
*definition*: some bytes and a key made from them. A worker is sent a definition once, however
often the function is submitted. What the function uses of `__main__` are more definitions, the
*namespace entries* (see `owndist.wire.namespace`). The runtime

* sends the body of a function's key to a worker that does not have it (`Decoder.define`), and
* sends an entry to a worker whose last entry of that name (`Encoder.entry_name`) was another one
  (`Decoder.apply_entry`), in the order given, before the task that needs it and after the tasks
  before it. So a worker's own later assignment to that name stays, but a change in the driver is
  seen.

By-value functions are pickled again at every submit, so that a change of them or of a global they
use is seen.
"""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

from . import namespace
from .definitions import Definitions
from .inherited import Binding, inherited_bindings, small_data, still_bound
from .namespace import (
    MAIN_MARK,
    MAIN_NAMES,
    Call,
    InheritedPickler,
    inherited_object,
    may_be_by_value,
    name_in,
)
from .pickling import Encoded, here, lift_large

# How many by-reference functions are remembered with their key: a program submits few.
_REMEMBER = 1000
# Above this many bytes, a by-value function and its globals are worth a warning (1 MiB).
_HEAVY = 1 << 20

if TYPE_CHECKING:
    from .session import Large, Remembered, Session
    from .unchanged import Witness

_dumps = pickle.dumps
_modules = sys.modules


# What pickling raises by itself when something cannot be pickled.
_PICKLES_OWN = (
    pickle.PicklingError,
    TypeError,
    AttributeError,
    NotImplementedError,
    RecursionError,
)


class Encoder:
    """Turns functions and arguments into bytes; one per submitting process.

    Args:
        inherited: what `__main__` held when the workers' template was forked; None when the
            workers are fresh interpreters, which have nothing of it.

    Thread safety: every method may be called from any thread.
    """

    def __init__(self, inherited: Mapping[str, Any] | None = None) -> None:
        self._inherited = inherited
        self._data = small_data(namespace.main_namespace()) if inherited is not None else {}
        self._definitions = Definitions()
        # key -> body of every definition made so far (and not yet forgotten).
        self.definitions = self._definitions.bodies
        # key -> the global name that a namespace entry sets.
        self.entry_name = self._definitions.entry_name
        # What `function` returned for functions that go by reference and so cannot change.
        self._remembered: dict[Any, tuple[int, tuple[int, ...], tuple[Any, ...]]] = {}
        # What sessions remember of the functions and classes of `__main__`.
        self._memory: dict[str, Remembered] = {}
        # The large data of `__main__` that was sent.
        self._large: dict[str, Large] = {}
        # What `function` returned for by-value functions, with a witness that they did not
        # change. Weak, for closures hold what the user wants gone. Made when first needed.
        self._witnessed: MutableMapping[FunctionType, Remembered] | None = None
        # Functions of `__main__` that forked workers have inherited: their key, the globals they
        # use, and how many names had been sent to workers by then.
        self._as_inherited: dict[FunctionType, tuple[int, list[Binding], int]] = {}
        # (module, qualified name) of the functions that were warned about.
        self._warned: set[tuple[str, str]] = set()

    def function(self, fn: Callable[..., Any]) -> tuple[int, tuple[int, ...], tuple[Any, ...]]:
        """Make sure that there is a definition of a function.

        Returns:
            The key of the function, the keys of the namespace entries it needs in the order in
            which to apply them, and the futures found in it (in its closure, or in the globals
            it uses).

        Raises:
            NotSerializable: the function, or a global it uses, cannot be pickled.

        Cost: 0.1 µs for an importable function submitted before; for others they are pickled.
        """
        try:
            known = self._remembered.get(fn)
        except TypeError:
            known = None  # it has no hash
        return known or self._define(fn)

    def value(self, obj: Any, describe: Callable[[Exception], str] | None = None) -> Encoded:
        """Pickle a value, such as the `(args, kwargs)` of a task.

        Args:
            obj: the value.
            describe: makes the text of the error from what went wrong; see
                `owndist.wire.explain.explain`.

        Raises:
            NotSerializable: the value cannot be pickled.
        """
        buffers: list[pickle.PickleBuffer] = []
        futures: list[Any] = []
        outer = here.futures
        here.futures = futures
        try:
            head = _dumps(lift_large(obj), 5, buffer_callback=buffers.append)
            # `find` takes half the time of `in` here, on every Python supported.
            if head.find(MAIN_MARK) < 0 and (
                "cloudpickle.cloudpickle" not in _modules or not may_be_by_value(head)
            ):
                return Encoded(head, buffers, (), futures)
        except Exception:
            # Tried again below with cloudpickle, which can do more, and whose error is reported.
            pass
        finally:
            here.futures = outer
        return self._value_slowly(obj, describe)

    def complete(self, entries: Iterable[int]) -> tuple[int, ...]:
        """Return these entries with all that they need, in the order in which to apply them.

        The entries that a worker names with a result (`owndist.wire.outcomes.dump_result`) are
        only those the value itself refers to; before another worker loads it, complete them.
        Keys that are not known here are left out.
        """
        return self._definitions.complete(entries)

    def forget(self, in_use: Collection[int]) -> None:
        """Drop the definitions of by-value functions and entries that are not in `in_use`.

        A loop that submits a new closure each time makes a new definition each time; this keeps
        them from piling up. A dropped function gets its definition again when it is submitted
        again.

        Args:
            in_use: the keys that unfinished tasks and kept values need, as `function`, `value`
                and `complete` returned them.
        """
        keep = {key for key, _, _ in list(self._remembered.values())}
        keep.update(in_use)
        # Made again, it would show what was changed in it since.
        keep.update([large.key for large in list(self._large.values())])
        self._definitions.forget(keep)

    def _define(self, fn: Any) -> tuple[int, tuple[int, ...], tuple[Any, ...]]:
        as_inherited = self._as_inherited.get(fn) if type(fn) is FunctionType else None
        if as_inherited is not None:
            key, bindings, bound = as_inherited
            if (
                bound == len(self._definitions.bound_names)
                and key in self.definitions
                and still_bound(bindings, fn.__globals__)
            ):
                return key, (), ()
            del self._as_inherited[fn]
        known = self._recall(fn)
        if known is not None and known.witness is not None and known.witness.holds():
            return known.key, known.entries, ()
        futures: list[Any] = []
        outer = here.futures
        here.futures = futures
        try:
            plain = self._by_reference(fn)
            if plain is not None:
                key = self._definitions.add_function(plain, ())
                if type(fn) is FunctionType and fn.__module__ in MAIN_NAMES:
                    found = self._inherited_bindings(fn)
                    if found is not None:
                        self._as_inherited[fn] = key, found, len(self._definitions.bound_names)
                elif _cannot_change(fn):
                    if len(self._remembered) >= _REMEMBER:
                        self._remembered.clear()
                    self._remembered[fn] = key, (), ()
                return key, (), tuple(futures)
            futures.clear()
            witness = self._witness(fn, known)
            session = self._session()
            body = session.dump(fn)
        except Exception as error:
            _refuse(error, None, fn)
        finally:
            here.futures = outer
        key = self._definitions.add_function(body, session.names)
        entries = session.keys
        self._warn_if_heavy(fn, len(body), entries)
        if witness is not None and self._witnessed is not None:
            from .session import Remembered

            self._witnessed[fn] = Remembered(
                None, witness, False, key, entries, len(self._definitions.bound_names)
            )
        return key, entries, tuple(futures)

    def _dump_inherited(
        self, obj: Any, buffer_callback: Callable[[pickle.PickleBuffer], Any] | None
    ) -> bytes:
        assert self._inherited is not None
        file = io.BytesIO()
        had = self._definitions.bound_names
        InheritedPickler(file, buffer_callback, self._inherited, had).dump(obj)
        return file.getvalue()

    def _inherited_bindings(self, fn: FunctionType) -> list[Binding] | None:
        if self._inherited is None:
            return None
        return inherited_bindings(fn, self._inherited, self._definitions.bound_names)

    def _recall(self, fn: Any) -> Remembered | None:
        """Return what is remembered of a by-value function, if it is still to be had."""
        if type(fn) is not FunctionType or self._witnessed is None:
            return None
        known = self._witnessed.get(fn)
        if known is not None and known.witness is not None:
            had = self.definitions
            if (
                known.bound != len(self._definitions.bound_names)
                or known.key not in had
                or not all(map(had.__contains__, known.entries))
            ):
                return known._replace(witness=None)
        return known

    def _witness(self, fn: Any, known: Remembered | None) -> Witness | None:
        """Return a witness of a by-value function, from the second time it is submitted."""
        if type(fn) is not FunctionType:
            return None
        if self._witnessed is None:
            from weakref import WeakKeyDictionary

            self._witnessed = WeakKeyDictionary()
        if len(self._witnessed) >= _REMEMBER:
            # Functions that lead back to themselves are kept by their own witness.
            self._witnessed.clear()
        from .session import Remembered

        if known is None:
            self._witnessed[fn] = Remembered(None, None, False)
            return None
        if known.hopeless:
            return None
        from .unchanged import witness

        found = witness(fn)
        if found is None:
            self._witnessed[fn] = Remembered(None, None, True)
        return found

    def _session(self) -> Session:
        # What a session needs is loaded only where something goes by value.
        from .session import Session

        return Session(self._definitions, self._inherited, self._memory, self._data, self._large)

    def _by_reference(self, fn: Any) -> bytes | None:
        """Return the plain pickle of what the workers can import or have inherited, else None."""
        if type(fn) is FunctionType:
            # A plain function is either there by its name or it is not: no need to try.
            if "<" in fn.__qualname__:
                return None
            if fn.__module__ in MAIN_NAMES:
                name = None if self._inherited is None else name_in(self._inherited, fn)
                if name is None or self._inherited_bindings(fn) is None:
                    return None
                return _dumps(Call(inherited_object, (name,)), 5)
        try:
            plain = _dumps(fn, 5)
            if MAIN_MARK not in plain:
                return None if may_be_by_value(plain) else plain
            if self._inherited is not None:
                return self._dump_inherited(fn, None)
        except Exception:
            # What plain pickle cannot do goes by value; if that fails too, its error is reported.
            pass
        return None

    def _value_slowly(self, obj: Any, describe: Callable[[Exception], str] | None) -> Encoded:
        """Pickle a value that refers to `__main__`, or that plain pickle cannot do."""
        lifted = lift_large(obj)
        futures: list[Any] = []
        outer = here.futures
        here.futures = futures
        try:
            if self._inherited is not None:
                buffers: list[pickle.PickleBuffer] = []
                try:
                    head = self._dump_inherited(lifted, buffers.append)
                    if not may_be_by_value(head):
                        return Encoded(head, buffers, (), futures)
                except Exception:
                    # By value, then, as above.
                    pass
                futures.clear()
            buffers = []
            session = self._session()
            head = session.dump(lifted, buffers.append)
            return Encoded(head, buffers, session.keys, futures)
        except Exception as error:
            _refuse(error, describe, obj)
        finally:
            here.futures = outer

    def _warn_if_heavy(self, fn: Any, size: int, entries: tuple[int, ...]) -> None:
        """Warn once per function about a definition that is large, and say why it is."""
        total = size + sum(len(self.definitions[key]) for key in entries)
        if total < _HEAVY:
            return
        identity = (str(getattr(fn, "__module__", "")), _name_of(fn))
        if identity in self._warned:
            return
        self._warned.add(identity)
        from .explain import warn_heavy

        sizes = {self.entry_name[key]: len(self.definitions[key]) for key in entries}
        warn_heavy(fn, total, sizes)


class Decoder:
    """Turns definitions back into functions; one per executing process.

    Make it before anything of the user runs: what `__main__` holds then is what the process
    inherited.
    """

    def __init__(self) -> None:
        namespace.keep_inherited()
        self._bodies: dict[int, bytes] = {}
        # key -> the function and the globals of `__main__` that it needs.
        self._functions: dict[int, tuple[Callable[..., Any], tuple[str, ...]]] = {}

    def define(self, key: int, body: bytes) -> None:
        """Take the definition of a function; it is loaded when first used."""
        self._bodies[key] = body

    def apply_entry(
        self, key: int, body: bytes, future_factory: Callable[[Any], Any] | None = None
    ) -> None:
        """Bind a global of `__main__`; call it in order, just before the task that needs it.

        It never raises because of what the entry holds: `function` and the loading of values
        raise it, in the tasks that need this global.
        """
        outer = here.future_factory
        here.future_factory = future_factory
        try:
            name, content = pickle.loads(body)
            namespace.set_entry(name, key, lambda: pickle.loads(content))
        finally:
            here.future_factory = outer

    def function(
        self, key: int, future_factory: Callable[[Any], Any] | None = None
    ) -> Callable[..., Any]:
        """Return the function of this key.

        Args:
            key: the key of a definition that is here.
            future_factory: makes a future from its address, for futures in closures.

        Raises:
            BaseException: what loading the function, or a global it needs, raised; each time.
        """
        known = self._functions.get(key)
        if known is None:
            known = self._load(key, future_factory)
        if namespace.here.failed:
            namespace.check_names(known[1])
        return known[0]

    def has(self, key: int) -> bool:
        """Whether the definition of this key is here."""
        return key in self._functions or key in self._bodies

    def forget(self, keys: Iterable[int]) -> None:
        """Drop definitions; the sender must send them again before it uses them again."""
        for key in keys:
            self._bodies.pop(key, None)
            self._functions.pop(key, None)

    def _load(
        self, key: int, future_factory: Callable[[Any], Any] | None
    ) -> tuple[Callable[..., Any], tuple[str, ...]]:
        names, body = pickle.loads(self._bodies[key])
        if namespace.here.failed:
            namespace.check_names(names)
        futures = 0

        def make_future(address: Any) -> Any:
            nonlocal futures
            futures += 1
            assert future_factory is not None
            return future_factory(address)

        outer = here.future_factory
        here.future_factory = make_future if future_factory is not None else None
        try:
            known = pickle.loads(body), names
        finally:
            here.future_factory = outer
        if futures:
            # It lives as long as the task, and is loaded anew for the next one: what is kept here
            # would keep its futures, and with them their values.
            return known
        self._functions[key] = known
        # The bytes have done their work.
        del self._bodies[key]
        return known


def _cannot_change(fn: Any) -> bool:
    """Say whether what goes by reference is the same for good, and can be a key of a dict."""
    kind = type(fn)
    return (
        kind is FunctionType
        or isinstance(fn, type)
        or (kind is BuiltinFunctionType and isinstance(fn.__self__, (ModuleType, type(None))))
    )


def _name_of(fn: Any) -> str:
    return str(getattr(fn, "__qualname__", None) or type(fn).__qualname__)


def _refuse(error: Exception, describe: Callable[[Exception], str] | None, obj: Any) -> NoReturn:
    """Raise the error for what cannot be pickled, with the original one as its cause."""
    from ..errors import NotSerializable
    from . import explain
    from .session import GlobalFails

    if isinstance(error, NotSerializable):
        raise error
    if isinstance(error, GlobalFails):
        user = f"function {_name_of(obj)!r}" if callable(obj) else "an argument"
        text = explain.explain_global(user, error.name, error.value, error.error)
        raise NotSerializable(text) from error.error
    if not isinstance(error, _PICKLES_OWN):
        # The user's own code raised while it was pickled: that error says most.
        raise error
    text = describe(error) if describe is not None else explain.explain_value(obj, error)
    raise NotSerializable(text) from error
