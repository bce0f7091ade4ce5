"""Values as bytes: pickle protocol 5 with large buffers aside, and futures met on the way.

A value becomes an `Encoded`: the pickle (`head`), the buffers that are not copied into it, the
futures that were found inside, and the definitions of `__main__` that it needs at the other end.
`loads` is the way back.

A future may be pickled only while a task is being submitted. `reduce_future` is what the future
class calls from its `__reduce_ex__`; it looks whether this thread is collecting futures, which
`collecting` arranges.
"""

from __future__ import annotations

import pickle
from _thread import _local
from collections.abc import Callable, Iterable
from typing import Any

# From this size on, in bytes, `bytes` and `bytearray` objects are moved out of the pickle. The
# same as the limit for values inside messages: what is larger goes to shared memory, and one copy
# less is worth having there.
LARGE = 102_400

_ATOMS = frozenset({int, float, str, bool, complex, bytes, bytearray, type(None)})
_LIFTABLE = frozenset({bytes, bytearray})
_CONTAINERS = frozenset({tuple, list, dict, set, frozenset})
# How many items of neighbouring containers are looked at before giving up on moving a large
# object aside (see `lift_large`). Checking 64 items costs about 5 µs, the copy saved 10 or more.
_LOOK_AT = 64


class _ThreadState(_local):
    """What this thread is doing right now."""

    # The futures met so far by the pickling that this thread is in; None outside of one.
    futures: list[Any] | None = None
    # The peer that submits the task which is pickled; None outside of that.
    submitter: Any = None
    # Makes a future from its address in the unpickling that this thread is in.
    future_factory: Callable[[Any], Any] | None = None


here = _ThreadState()


class Encoded:
    """A pickled value, in the parts that travel in different ways.

    Attributes:
        head: the pickle stream.
        buffers: what the stream refers to but does not hold, in order. They are views of the
            caller's own objects: copy them before the caller goes on.
        entries: keys of the definitions (see `owndist.wire.functions`) that must have been
            applied, in this order, where the value is loaded.
        futures: the futures found inside, once per object, in the order they were met.
    """

    __slots__ = ("buffers", "entries", "futures", "head")

    def __init__(
        self,
        head: bytes,
        buffers: list[pickle.PickleBuffer],
        entries: tuple[int, ...],
        futures: list[Any],
    ) -> None:
        self.head = head
        self.buffers = buffers
        self.entries = entries
        self.futures = futures

    @property
    def size(self) -> int:
        """The bytes of the head and all buffers together."""
        size = len(self.head)
        for buffer in self.buffers:
            size += buffer.raw().nbytes
        return size

    def __repr__(self) -> str:
        return (
            f"<Encoded {len(self.head)} bytes, {len(self.buffers)} buffers, "
            f"{len(self.entries)} entries>"
        )


def loads(
    head: bytes | memoryview,
    buffers: Iterable[Any] = (),
    future_factory: Callable[[Any], Any] | None = None,
) -> Any:
    """Load a value from its parts.

    Args:
        head: the pickle stream.
        buffers: objects with the buffer protocol, as many as the value had, in the same order.
            The value keeps them alive and looks into them.
        future_factory: makes a future from its address, for futures inside the value.

    Raises:
        BaseException: whatever the classes inside the value raise.
    """
    if future_factory is None:
        return pickle.loads(head, buffers=buffers)
    outer = here.future_factory
    here.future_factory = future_factory
    try:
        return pickle.loads(head, buffers=buffers)
    finally:
        here.future_factory = outer


def reduce_future(future: Any) -> tuple[Callable[[Any], Any], tuple[Any]]:
    """Reduce a future for pickling; call it from the future class's `__reduce_ex__`.

    Args:
        future: the future; its `_address` is what is pickled in its stead.

    Raises:
        NotSerializable: no task is being submitted in this thread.
    """
    futures = here.futures
    if futures is None:
        from ..errors import NotSerializable

        raise NotSerializable(
            "a future cannot be pickled: it means something only as an argument of submit() or "
            "map(), where the task gets its value, or through executor.shared(future), where the "
            "task gets the future; anywhere else pickle future.result()"
        )
    futures.append(future)
    return load_future, (future._address,)


def load_future(address: Any) -> Any:
    """Make the future of this address again; called by pickle."""
    factory = here.future_factory
    if factory is None:
        from ..errors import NotSerializable

        raise NotSerializable("a pickled future can be loaded only by a task of its executor")
    return factory(address)


def pickling_for() -> Any:
    """The peer for whose task this thread pickles something; None if it does not."""
    return here.submitter


class _Lifted:
    """Stands in a pickle for a large bytes or bytearray, whose content goes out of band."""

    __slots__ = ("_content",)

    def __init__(self, content: bytes | bytearray) -> None:
        self._content = content

    def __reduce_ex__(self, protocol: Any) -> tuple[type, tuple[pickle.PickleBuffer]]:
        return type(self._content), (pickle.PickleBuffer(self._content),)


def lift_large(obj: Any) -> Any:
    """Return `obj` with large bytes at its top level replaced so that they go out of band.

    Stock pickle copies `bytes` and `bytearray` into the stream. Looked at are the object itself,
    the items of a tuple or list, and for the `(args, kwargs)` of a task the items of these two.
    An object that may also be reachable by another path stays as it is, for then it would arrive
    as two objects.
    """
    kind = type(obj)
    if kind is tuple and len(obj) == 2 and type(obj[0]) is tuple and type(obj[1]) is dict:
        args, kwargs = obj
        # The fast path: nearly always there is nothing to do.
        for item in args:
            if type(item) in _LIFTABLE and len(item) >= LARGE:
                break
        else:
            for item in kwargs.values():
                if type(item) in _LIFTABLE and len(item) >= LARGE:
                    break
            else:
                return obj
        stand_ins = _stand_ins([*args, *kwargs.values()])
        if not stand_ins:
            return obj
        return (
            tuple([stand_ins.get(id(item), item) for item in args]),
            {name: stand_ins.get(id(item), item) for name, item in kwargs.items()},
        )
    if kind in _LIFTABLE:
        return _Lifted(obj) if len(obj) >= LARGE else obj
    if kind is not tuple and kind is not list:
        return obj
    stand_ins = _stand_ins(obj)
    if not stand_ins:
        return obj
    return kind([stand_ins.get(id(item), item) for item in obj])


def _stand_ins(items: Iterable[Any]) -> dict[int, _Lifted]:
    """Return the stand-ins of the large items by their id; none when that might not be right."""
    large: dict[int, _Lifted] = {}
    others: list[Any] = []
    for item in items:
        kind = type(item)
        if kind in _LIFTABLE and len(item) >= LARGE:
            if id(item) not in large:
                large[id(item)] = _Lifted(item)
        elif kind not in _ATOMS:
            others.append(item)
    if large and others and not _are_flat(others):
        return {}
    return large


def _are_flat(others: list[Any]) -> bool:
    """Say whether these containers hold nothing but small plain values, seen at a glance."""
    budget = _LOOK_AT
    for other in others:
        kind = type(other)
        if kind not in _CONTAINERS:
            return False
        budget -= len(other)
        if budget < 0:
            return False
        for item in (*other, *other.values()) if kind is dict else other:
            kind = type(item)
            if kind not in _ATOMS or (kind in _LIFTABLE and len(item) >= LARGE):
                return False
    return True
