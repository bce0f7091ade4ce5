"""Values there and back: buffers, large bytes, futures, and errors that name the part at fault."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from owndist.errors import NotSerializable
from owndist.wire.explain import explain
from owndist.wire.functions import Encoder
from owndist.wire.outcomes import dump_result
from owndist.wire.pickling import LARGE, Encoded, loads, reduce_future


class Future:
    """As much of a future as pickling sees."""

    def __init__(self, address: int) -> None:
        self._address = address

    def __reduce_ex__(self, protocol: Any) -> Any:
        return reduce_future(self)


class Holder:
    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


class Slotted:
    __slots__ = ("inner",)

    def __init__(self, inner: Any) -> None:
        self.inner = inner


def as_value(obj: Any) -> Encoded:
    return Encoder().value(obj)


def as_result(obj: Any) -> Encoded:
    return dump_result(obj)


both_ways = pytest.mark.parametrize("dump", [as_value, as_result])


def back(encoded: Encoded) -> Any:
    return loads(encoded.head, [bytes(buffer) for buffer in encoded.buffers])


@both_ways
@pytest.mark.parametrize(
    "obj",
    [
        ((1,), {}),
        ((), {"a": [1, {"b": (2, 3)}]}),
        None,
        [1, 2.5, "x", b"y", {1, 2}],
        ("__main__", "a text that looks like a reference"),
    ],
    ids=repr,
)
def test_values_come_back_equal(dump: Callable[[Any], Encoded], obj: Any) -> None:
    """Law 7."""
    encoded = dump(obj)
    assert back(encoded) == obj
    assert encoded.entries == () and list(encoded.futures) == []


@both_ways
def test_arrays_go_out_of_band_and_keep_identity(dump: Callable[[Any], Encoded]) -> None:
    """Laws 6 and 7."""
    array = np.arange(1000.0)
    encoded = dump([array, array, array[::2]])
    assert len(encoded.head) < 5000
    assert encoded.size == len(encoded.head) + sum(b.raw().nbytes for b in encoded.buffers)
    one, two, half = back(encoded)
    assert one is two
    np.testing.assert_array_equal(one, array)
    np.testing.assert_array_equal(half, array[::2])


@both_ways
@pytest.mark.parametrize("kind", [bytes, bytearray])
@pytest.mark.parametrize("size", [0, 1, LARGE - 1, LARGE, LARGE + 1, 300_000])
def test_bytes_keep_their_type_at_any_size(
    dump: Callable[[Any], Encoded], kind: Any, size: int
) -> None:
    """Law 7: crossing the threshold cannot be seen."""
    content = kind(size)
    for obj in (content, (content,), [content, 1], ((content,), {}), ((), {"key": content})):
        encoded = dump(obj)
        assert len(encoded.buffers) == (size >= LARGE)
        loaded = back(encoded)
        assert loaded == obj
        assert type(loaded) is type(obj)
    assert type(back(dump((content,)))[0]) is kind


@both_ways
def test_large_bytes_stay_one_object(dump: Callable[[Any], Encoded]) -> None:
    """Law 6."""
    content = bytearray(LARGE)
    for obj in (
        (content, content),
        ((content, content), {"again": content}),
        (content, [content]),
        (content, {"key": (content,)}),
        (content, Holder(inside=content)),
    ):
        found: set[int] = set()

        def walk(part: Any, found: set[int] = found) -> None:
            if isinstance(part, bytearray):
                found.add(id(part))
            elif isinstance(part, dict):
                walk(tuple(part.values()))
            elif isinstance(part, (tuple, list)):
                for item in part:
                    walk(item)
            elif isinstance(part, Holder):
                walk(part.__dict__)

        loaded = back(dump(obj))
        walk(loaded)
        assert len(found) == 1, obj


def test_large_bytes_are_not_copied() -> None:
    content = bytes(LARGE)
    for obj in (((content, 1, "x"), {}), ((content, [1, 2], {"a": 1}), {"k": (1,)})):
        (buffer,) = as_value(obj).buffers
        assert buffer.raw().obj is content


def test_subclasses_of_bytes_are_left_alone() -> None:
    class Special(bytes):
        pass

    loaded = back(as_value(((Special(LARGE),), {})))
    assert isinstance(loaded[0][0], bytes)


def test_what_only_cloudpickle_can_do() -> None:
    offset = 3
    (function,), _ = back(as_value(((lambda x: x + offset,), {})))
    assert function(4) == 7


# --- futures


def test_futures_are_collected_and_made_again() -> None:
    one, two = Future(1), Future(2)
    encoded = as_value((({"deep": [one]}, one, (lambda: two)), {}))
    assert encoded.futures == [one, two]
    made: list[int] = []

    def factory(address: int) -> tuple[str, int]:
        made.append(address)
        return "future", address

    (deep, top, function), _ = loads(encoded.head, encoded.buffers, factory)
    assert deep["deep"][0] == top == ("future", 1)
    assert deep["deep"][0] is top
    assert function() == ("future", 2)
    assert made == [1, 2]


def test_a_future_outside_of_a_submit_says_what_to_do() -> None:
    """Law 22."""
    for dump in (pickle.dumps, as_result):
        with pytest.raises(NotSerializable, match=r"argument of submit|executor\.shared") as info:
            dump([Future(1)])
        assert isinstance(info.value, pickle.PicklingError)


def test_collecting_ends_with_the_call_also_when_it_fails() -> None:
    with pytest.raises(NotSerializable):
        as_value((Future(1), threading.Lock()))
    with pytest.raises(NotSerializable, match="submit"):
        pickle.dumps(Future(1))


def test_collecting_is_per_thread_and_nests() -> None:
    encoder = Encoder()
    inner: list[Any] = []

    class Nested:
        def __reduce__(self) -> Any:
            inner.append(encoder.value(((Future(7),), {})).futures)
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
            return list, ()

    failures: list[BaseException] = []

    def other() -> None:
        try:
            pickle.dumps(Future(8))
        except NotSerializable as error:
            failures.append(error)

    before, after = Future(1), Future(2)
    encoded = encoder.value(((before, Nested(), after), {}))
    assert encoded.futures == [before, after]
    assert [future._address for future in inner[0]] == [7]
    assert len(failures) == 1


def test_a_future_is_loaded_only_where_there_is_a_factory() -> None:
    encoded = as_value(Future(1))
    with pytest.raises(NotSerializable, match="only by a task"):
        loads(encoded.head)


def test_results_may_hold_futures_when_allowed() -> None:
    future = Future(5)
    encoded = dump_result([future], futures_allowed=True)
    assert encoded.futures == [future]
    assert loads(encoded.head, (), lambda address: address) == [5]


# --- errors

LOCK = threading.Lock()


class Refuses:
    """Says itself why it cannot be pickled; what it is made of does not matter."""

    def __init__(self, lock: Any) -> None:
        self.lock = lock

    def __reduce__(self) -> Any:
        raise TypeError("make one over there")


@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [
        ((1, LOCK), {}, "argument 2 (type _thread.lock): TypeError: cannot pickle"),
        ((1, Holder(lock=LOCK)), {}, "argument 2: value.lock (type _thread.lock)"),
        (([{"a": (0, LOCK)}],), {}, "argument 1: value[0]['a'][1] (type _thread.lock)"),
        ((), {"key": {3: LOCK}}, "argument 'key': value[3] (type _thread.lock)"),
        ((Slotted(Holder(x=[LOCK])),), {}, "argument 1: value.inner.x[0] (type _thread.lock)"),
        ((lambda: LOCK,), {}, "argument 1"),
        (((i for i in ()),), {}, "argument 1 (type generator)"),
        (
            ([Refuses(LOCK)],),
            {},
            f"argument 1: value[0] (type {__name__}.Refuses): TypeError: make one over there",
        ),
    ],
)
def test_errors_name_the_argument_and_the_part(
    args: tuple[Any, ...], kwargs: dict[str, Any], expected: str
) -> None:
    def describe(error: Exception) -> str:
        return explain(args, kwargs, error)

    if expected == "argument 1":
        lock = threading.Lock()
        args, expected = ((lambda: lock),), "argument 1: variable 'lock' of value (type _thread"
    with pytest.raises(NotSerializable) as info:
        Encoder().value((args, kwargs), describe)
    assert expected in str(info.value)
    assert isinstance(info.value, pickle.PicklingError)
    assert isinstance(info.value.__cause__, TypeError)


def test_a_value_that_cannot_be_pickled_is_described_without_help_too() -> None:
    with pytest.raises(NotSerializable, match=r"value\[0\]\.lock \(type _thread\.lock\)"):
        as_value([Holder(lock=LOCK)])


def test_an_unpicklable_result_names_the_task() -> None:
    """Law 67."""
    with pytest.raises(NotSerializable, match=r"result of task 'f': value\[1\] \(type _thread"):
        dump_result([1, LOCK], "f")


def test_what_the_users_reduce_raises_is_raised_by_submit_and_chained_by_results() -> None:
    class Refuses:
        def __reduce__(self) -> Any:
            raise ZeroDivisionError("no")

    with pytest.raises(ZeroDivisionError, match="no"):
        Encoder().value(((Refuses(),), {}), lambda error: explain((Refuses(),), {}, error))
    with pytest.raises(NotSerializable, match="ZeroDivisionError: no") as info:
        dump_result(Refuses(), "f")
    assert isinstance(info.value.__cause__, ZeroDivisionError)


def test_interrupts_pass_through() -> None:
    class Interrupts:
        def __reduce__(self) -> Any:
            raise KeyboardInterrupt

    for dump in (as_value, as_result):
        with pytest.raises(KeyboardInterrupt):
            dump([Interrupts()])


def test_the_search_for_the_part_at_fault_ends_on_large_and_cyclic_values() -> None:
    cyclic: list[Any] = [Holder(n=i) for i in range(5000)]
    cyclic.append(cyclic)
    cyclic.append(SimpleNamespace(lock=LOCK))
    with pytest.raises(NotSerializable, match=r"cannot pickle"):
        as_value(cyclic)


def test_a_value_nested_too_deeply_is_refused() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(NotSerializable):
        as_value(deep)
    while deep:  # taken apart by hand: letting go of it would recurse as deeply
        deep = deep.pop()


def test_a_value_that_cannot_be_loaded_raises_its_own_error() -> None:
    """Law 67."""

    class Breaks:
        def __reduce__(self) -> Any:
            return int, ("not a number",)

    encoded = as_value(Breaks())
    with pytest.raises(ValueError, match="not a number"):
        loads(encoded.head)
