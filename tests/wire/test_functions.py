"""Definitions of functions: what goes by reference, what is sent again, what is remembered."""

from __future__ import annotations

import functools
import gc
import logging
import math
import operator
import os
import subprocess
import sys
import textwrap
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from cloudpickle import cloudpickle as classes

from owndist.errors import NotSerializable
from owndist.wire import functions, namespace
from owndist.wire.functions import Decoder, Encoder
from owndist.wire.pickling import loads, reduce_future


class Future:
    def __init__(self, address: int) -> None:
        self._address = address

    def __reduce_ex__(self, protocol: Any) -> Any:
        return reduce_future(self)


class Callables:
    def __init__(self, base: int) -> None:
        self.base = base

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return True

    def __call__(self, x: int) -> int:
        return self.base + x

    @classmethod
    def made(cls) -> int:
        return cls(1)(1)


class Script:
    """A module that stands for `__main__`, into which a test writes its script bit by bit."""

    def __init__(self) -> None:
        self.module = types.ModuleType("__main__")
        self.space = vars(self.module)

    def run(self, source: str) -> None:
        exec(compile(textwrap.dedent(source), "script", "exec"), self.space)

    def __getattr__(self, name: str) -> Any:
        return self.space[name]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Script]:
    written = Script()
    monkeypatch.setitem(sys.modules, "__main__", written.module)
    monkeypatch.setattr(namespace, "here", namespace._Here())
    yield written


def names(encoder: Encoder, entries: tuple[int, ...]) -> list[str]:
    return [encoder.entry_name[key] for key in entries]


def run_elsewhere(encoder: Encoder, fn: Any, *args: Any) -> Any:
    """Call a function as a fresh worker would, in another `__main__` in this process."""
    key, entries, _ = encoder.function(fn)
    value = encoder.value((args, {}))
    ours = sys.modules["__main__"]
    by_class = classes._DYNAMIC_CLASS_TRACKER_BY_CLASS
    by_id = classes._DYNAMIC_CLASS_TRACKER_BY_ID
    # The classes made there are not to be taken for ours.
    classes._DYNAMIC_CLASS_TRACKER_BY_CLASS = weakref.WeakKeyDictionary()
    classes._DYNAMIC_CLASS_TRACKER_BY_ID = weakref.WeakValueDictionary()
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        decoder = Decoder()
        for entry in dict.fromkeys((*entries, *value.entries)):
            decoder.apply_entry(entry, encoder.definitions[entry])
        decoder.define(key, encoder.definitions[key])
        loaded_args, _ = loads(value.head, value.buffers)
        return decoder.function(key)(*loaded_args)
    finally:
        sys.modules["__main__"] = ours
        classes._DYNAMIC_CLASS_TRACKER_BY_CLASS = by_class
        classes._DYNAMIC_CLASS_TRACKER_BY_ID = by_id


# --- by reference


@pytest.mark.parametrize(
    "fn",
    [
        math.hypot,
        textwrap.dedent,
        len,
        int,
        operator.itemgetter(1),
        functools.partial(pow, 2),
        "abc".upper,
        [1, 2].count,
        Callables(3),
        Callables.made,
    ],
    ids=lambda fn: str(fn)[:30],
)
def test_importable_things_go_by_reference(fn: Any) -> None:
    encoder = Encoder()
    key, entries, futures = encoder.function(fn)
    assert entries == () and list(futures) == []
    assert encoder.function(fn) == (key, (), ())
    assert list(encoder.definitions) == [key]
    assert len(encoder.definitions[key]) < 250
    decoder = Decoder()
    decoder.define(key, encoder.definitions[key])
    assert decoder.function(key) is decoder.function(key)


def test_a_callable_that_compares_equal_to_another_is_not_taken_for_it() -> None:
    encoder = Encoder()
    one, two = encoder.function(Callables(1))[0], encoder.function(Callables(2))[0]
    assert one != two
    counted = [1]
    first = encoder.function(counted.count)[0]
    counted.append(1)
    assert encoder.function(counted.count)[0] != first


def test_no_more_than_so_many_functions_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functions, "_REMEMBER", 3)
    encoder = Encoder()
    for fn in (len, abs, min, max, sum):
        encoder.function(fn)
    assert len(encoder._remembered) <= 3
    assert len(encoder.definitions) == 5


def test_definitions_grow_only_with_distinct_functions(script: Script) -> None:
    encoder = Encoder()
    functions_made = [lambda x, n=n % 3: x + n for n in range(30)]
    keys = {encoder.function(fn)[0] for fn in functions_made}
    assert len(keys) == len(encoder.definitions) == 3


def test_the_key_of_the_same_function_is_the_same_in_another_encoder() -> None:
    for fn in (len, (lambda x: x + 1)):
        assert Encoder().function(fn)[0] == Encoder().function(fn)[0]


def test_what_was_inherited_goes_by_reference_and_what_changed_by_value(script: Script) -> None:
    script.run("""
        limit = 3
        def f(x): return x + limit
        class C:
            class Inner: pass
            def method(self): return limit
    """)
    encoder = Encoder(dict(script.space))
    old = script.f
    for fn in (script.f, script.C, script.C.Inner, script.C.method):
        assert encoder.function(fn)[1:] == ((), ())
    assert encoder.value(((script.C(),), {})).entries == ()
    assert len(encoder.definitions) == 4
    script.run("def f(x): return x - limit")
    _, entries, _ = encoder.function(script.f)
    assert names(encoder, entries) == ["f"]
    assert encoder.function(old)[1] == ()
    script.run("limit = 4")
    assert names(encoder, encoder.function(script.f)[1]) == ["limit", "f"] or names(
        encoder, encoder.function(script.f)[1]
    ) == ["f", "limit"]


# --- changes between submits: pickled, pickled again with a witness, remembered, then changed

CHANGES = {
    "code": ("def f(): return 1", "f.__code__ = (lambda: 2).__code__"),
    "defaults": ("def f(x=1): return x", "f.__defaults__ = (2,)"),
    "contents of a default": ("def f(x=[1]): return sum(x)", "f.__defaults__[0].append(1)"),
    "keyword defaults": ("def f(*, x=1): return x", "f.__kwdefaults__['x'] = 2"),
    "attribute": ("def f(): return f.x\nf.x = 1", "f.x = 2"),
    "global": ("a = 1\ndef f(): return a", "a = 2"),
    "contents of a global": ("a = [1]\ndef f(): return sum(a)", "a.append(1)"),
    "deep contents": ("a = {'k': [[1]]}\ndef f(): return len(a['k'][0])", "a['k'][0].append(1)"),
    "contents of a large global": ("a = [0] * 500\ndef f(): return sum(a) + 1", "a[77] = 1"),
    "array": ("import array\na = array.array('i', [1])\ndef f(): return sum(a)", "a[0] = 2"),
    "indirect global": ("a = 1\ndef g(): return a\ndef f(): return g()", "a = 2"),
    "function called": ("def g(): return 1\ndef f(): return g()", "def g(): return 2"),
    "global that comes": (
        "def f():\n    try: return a\n    except NameError: return 1",
        "a = 2",
    ),
    "class attribute": ("class C: x = 1\ndef f(): return C.x", "C.x = 2"),
    "method": (
        "class C:\n    def m(self): return 1\ndef f(): return C().m()",
        "C.m = lambda self: 2",
    ),
    "what a method uses": (
        "a = 1\nclass C:\n    def m(self): return a\ndef f(): return C().m()",
        "a = 2",
    ),
    "property": (
        "a = 1\nclass C:\n    @property\n    def p(self): return a\ndef f(): return C().p",
        "a = 2",
    ),
    "class method": (
        "a = 1\nclass C:\n    @classmethod\n    def p(cls): return a\ndef f(): return C.p()",
        "a = 2",
    ),
    "class method of an enum": (
        "import enum\na = 1\nclass E(enum.Enum):\n    X = 1\n    @classmethod\n"
        "    def _missing_(cls, v): return E.X if a == 2 else None\n"
        "def f():\n    try: return E(7).value + 1\n    except ValueError: return 1",
        "a = 2",
    ),
    "base class": ("class B: x = 1\nclass C(B): pass\ndef f(): return C.x", "B.x = 2"),
    "other base class": (
        "class A: x = 1\nclass B: x = 2\nclass C(A): pass\ndef f(): return C.x",
        "C.__bases__ = (B,)",
    ),
    "registration": (
        "import abc\nclass A(abc.ABC): pass\nclass B: pass\n"
        "def f(): return 2 if issubclass(B, A) else 1",
        "A.register(B)",
    ),
    "dataclass": (
        "import dataclasses\n@dataclasses.dataclass\nclass D:\n    x: int = 1\n"
        "def f(): return D().x",
        "@dataclasses.dataclass\nclass D:\n    x: int = 2",
    ),
    "cached function": (
        "import functools\na = 1\n@functools.lru_cache\ndef g(): return a\ndef f(): return g()",
        "a = 2",
    ),
    "wrapped function": (
        "import functools\na = 1\ndef wrap(fn):\n    @functools.wraps(fn)\n"
        "    def inner(): return fn()\n    return inner\n@wrap\ndef f(): return a",
        "a = 2",
    ),
    "instance of a class": (
        "class C:\n    def __init__(self): self.x = 1\nc = C()\ndef f(): return c.x",
        "c.x = 2",
    ),
    "module attribute by another name": (
        "import math, cmath\nm = math\ndef f(): return 1 if m is math else 2",
        "m = cmath",
    ),
    "alias": ("def g(): return 1\nh = g\ndef f(): return h()", "h = lambda: 2"),
}


@pytest.mark.parametrize("inherited", [False, True], ids=["fresh", "forked"])
@pytest.mark.parametrize("before, after", CHANGES.values(), ids=CHANGES.keys())
def test_every_change_is_seen(script: Script, before: str, after: str, inherited: bool) -> None:
    encoder = Encoder({} if inherited else None)
    script.run(before)
    first = encoder.function(script.f)
    for _ in range(3):
        assert encoder.function(script.f) == first
        assert run_elsewhere(encoder, script.f) == 1
    script.run(after)
    for _ in range(3):
        assert run_elsewhere(encoder, script.f) == 2
    assert encoder.function(script.f) != first


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_change_of_what_an_entry_of_another_function_uses_is_seen(
    script: Script, count: int
) -> None:
    encoder = Encoder()
    script.run("""
        a = 1
        class C:
            def m(self): return g()
        def g(): return a
    """)
    for _ in range(count):
        value = encoder.value(((script.C(),), {}))
        assert sorted(names(encoder, value.entries)) == ["C", "a", "g"]
    before = value.entries
    script.run("a = 2")
    changed = encoder.value(((script.C(),), {})).entries
    assert changed != before
    assert run_elsewhere(encoder, lambda c: c.m(), script.C()) == 2
    script.run("a = 1")
    assert set(encoder.value(((script.C(),), {})).entries) == set(before)


def test_an_unchanged_function_is_not_pickled_again(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    script.run("""
        import dataclasses, math
        @dataclasses.dataclass
        class P:
            x: int
            def norm(self): return math.sqrt(self.x)
        table = {"a": 1}
        def g(): return P(2), table
        def f(): return g()
    """)
    encoder = Encoder()
    first = [encoder.function(script.f) for _ in range(3)][-1]
    value = [encoder.value(((script.P(1),), {})).entries for _ in range(3)][-1]
    from owndist.wire import byvalue

    monkeypatch.setattr(byvalue.MainPickler, "_dynamic_function_reduce", None)
    assert encoder.function(script.f) == first
    assert encoder.value(((script.P(1),), {})).entries == value


def test_what_closures_hold_goes_when_they_go(script: Script) -> None:
    class Held:
        def __reduce__(self) -> Any:
            return Held, ()

    def make() -> tuple[Callable[[], Any], weakref.ref[Held]]:
        held = Held()
        return (lambda: held), weakref.ref(held)

    encoder = Encoder()
    fn, held = make()
    for _ in range(4):
        encoder.function(fn)
    del fn
    gc.collect()
    assert held() is None


# --- entries


def test_entries_come_in_an_order_that_can_be_loaded(script: Script) -> None:
    script.run("""
        class Meta(type):
            def __new__(meta, name, bases, space):
                made.append(name)
                return super().__new__(meta, name, bases, space)
        made = []
        class Base(metaclass=Meta):
            def __setstate__(self, state):
                self.x = helper(state["x"])
        def helper(x): return second(x) + 1
        def second(x): return x * FACTOR
        FACTOR = 10
        class Thing(Base): pass
        thing = Thing()
        thing.x = 1
        def f(): return thing.x
    """)
    assert run_elsewhere(Encoder(), script.f) == 11


def test_groups_of_names_that_refer_to_each_other(script: Script) -> None:
    script.run("""
        class Node:
            kinds = {}
            def __init_subclass__(cls):
                Node.kinds[cls.__name__] = cls
        class Branch(Node): pass
        class Aleaf(Branch): pass
        def f(x): return Node.kinds == {"Branch": Branch, "Aleaf": Aleaf} and type(x) is Aleaf
        def g(x): return isinstance(x, Node) and Aleaf.__mro__[1] is Branch
    """)
    encoder = Encoder()
    _, entries, _ = encoder.function(script.f)
    assert sorted(names(encoder, entries)) == ["Aleaf", "Branch", "Node", "f"]
    assert run_elsewhere(encoder, script.f, script.Aleaf())
    assert run_elsewhere(encoder, script.g, script.Aleaf())
    # The entries do not depend on where the circle was entered.
    for value in (script.Aleaf(), script.Node, [script.Branch, script.Node]):
        found = encoder.value(value).entries
        assert set(found) == {key for key in entries if encoder.entry_name[key] != "f"}


def test_complete_adds_what_entries_need(script: Script) -> None:
    script.run("""
        A = 1
        def f(): return A
        class Base:
            def m(self): return f()
        class C(Base): pass
    """)
    encoder = Encoder()
    (key,) = [k for k in encoder.value(script.C()).entries if encoder.entry_name[k] == "C"]
    complete = names(encoder, encoder.complete([key, key, 12345]))
    assert sorted(complete) == ["A", "Base", "C", "f"]
    assert complete.index("Base") < complete.index("C")


def test_forgotten_definitions_are_made_again(script: Script) -> None:
    script.run("A = 1\ndef g(): return A\ndef f(): return g()")
    encoder = Encoder()
    kept = encoder.function(lambda: 5)[0]
    by_reference = encoder.function(len)[0]
    for _ in range(3):
        first = encoder.function(script.f)
    encoder.forget({kept})
    assert set(encoder.definitions) == {kept, by_reference}
    assert not encoder.entry_name
    assert encoder.function(script.f) == first
    assert {first[0], *first[1]} <= set(encoder.definitions)
    assert run_elsewhere(encoder, script.f) == 1
    encoder.forget(set(encoder.definitions) - {first[1][0]})
    assert run_elsewhere(encoder, script.f) == 1


# --- futures


def test_futures_in_closures_and_globals_are_found_every_time(script: Script) -> None:
    encoder = Encoder()
    future = Future(4)

    def closure() -> Any:
        return future

    script.space["waiting"] = Future(5)
    script.run("def f(): return waiting")
    for _ in range(4):
        assert encoder.function(closure)[2] == (future,)
        assert encoder.function(functools.partial(pow, future))[2] == (future,)
        assert encoder.function(script.f)[2] == (script.waiting,)
    key, _, _ = encoder.function(closure)
    decoder = Decoder()
    decoder.define(key, encoder.definitions[key])
    assert decoder.function(key, lambda address: ("future", address))() == ("future", 4)


# --- errors and warnings


def test_a_function_that_cannot_be_pickled_names_the_variable() -> None:
    lock = threading.Lock()

    def fn() -> Any:
        return lock

    with pytest.raises(NotSerializable, match=r"fn': variable 'lock' of value \(type _thread"):
        Encoder().function(fn)


def test_a_function_that_cannot_be_loaded_raises_each_time() -> None:
    class Fails:
        def __reduce__(self) -> Any:
            return int, ("x",)

        def __call__(self) -> None: ...

    encoder, decoder = Encoder(), Decoder()
    key, _, _ = encoder.function(Fails())
    decoder.define(key, encoder.definitions[key])
    for _ in range(2):
        with pytest.raises(ValueError, match="invalid literal"):
            decoder.function(key)
    decoder.forget([key])
    with pytest.raises(KeyError):
        decoder.function(key)


def test_a_heavy_function_is_warned_about_once(
    script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    script.space["table"] = bytes(2 << 20)
    script.run("small = 1\ndef f(): return table, small")
    block = bytes(3 << 20)

    def closure() -> int:
        return len(block)

    encoder = Encoder()
    with caplog.at_level(logging.WARNING, "owndist.functions"):
        for _ in range(3):
            encoder.function(script.f)
            encoder.function(closure)
            encoder.function(lambda: 1)
    one, two = [record.getMessage() for record in caplog.records]
    assert "function 'f' takes 2.0 MiB" in one and "the global 'table'" in one
    assert "closure' takes 3.0 MiB" in two and "the variable 'block'" in two
    assert "executor.put()" in one


def test_another_cloudpickle_is_recognised(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    script.run("def f(): return 1")
    monkeypatch.setattr(
        cloudpickle.Pickler, "_dynamic_function_reduce", lambda self, fn: (types.FunctionType, ())
    )
    with pytest.raises(NotSerializable, match=f"cloudpickle {cloudpickle.__version__} describes"):
        Encoder().function(script.f)


def test_many_threads_may_encode_at_once(script: Script) -> None:
    """Law 69."""
    script.run("""
        A = 1
        class C: x = 3
        def g(x): return x + A
        def f(x): return g(x) + C.x
    """)
    encoder = Encoder()
    expected = encoder.function(script.f)
    results: list[Any] = []

    def work() -> None:
        for n in range(30):
            results.append(encoder.function(script.f) == expected)
            results.append(encoder.function(len)[1] == ())
            results.append(encoder.value(((n, script.C()), {})).entries != ())
            encoder.function(lambda x, n=n: x + n)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 * 90 and all(results)


def test_the_modules_import_little() -> None:
    """Only what every process has anyway; the rest comes when something goes by value."""
    code = """
import pickle, sys
before = set(sys.modules)
import owndist.wire.frames, owndist.wire.outcomes
from owndist.wire.functions import Decoder, Encoder
from owndist.wire.pickling import loads
before |= {name for name in sys.modules if name.startswith("owndist")}
encoder, decoder = Encoder({}), Decoder()
key, _, _ = encoder.function(len)
decoder.define(key, encoder.definitions[key])
value = encoder.value((((1, 2),), {}))
args, kwargs = loads(value.head)
owndist.wire.outcomes.dump_result(decoder.function(key)(*args, **kwargs))
print(*sorted(set(sys.modules) - before))
"""
    package = Path(functions.__file__).parents[2]
    ran = subprocess.run(
        [sys.executable, "-S", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(package)},
    )
    dear = (
        "cloudpickle concurrent dataclasses dis hashlib inspect logging numpy threading traceback"
    )
    assert not set(ran.stdout.split()) & set(dear.split())
