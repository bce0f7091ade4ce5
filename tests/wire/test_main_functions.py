"""Functions and classes of a script, in real worker processes, forked and fresh."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from .workbench import run_script

Run = Callable[[str], str]


@pytest.fixture(params=["forked", "fresh"])
def script(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    """Run a script with workers of either kind; it fails where an assertion of it does."""
    return lambda source: run_script(tmp_path, request.param, source)


@pytest.fixture
def fresh(tmp_path: Path) -> Run:
    return lambda source: run_script(tmp_path, "fresh", source)


@pytest.fixture
def forked(tmp_path: Path) -> Run:
    return lambda source: run_script(tmp_path, "forked", source)


def test_an_initializer_sets_a_global_that_tasks_use(script: Run) -> None:
    script("""
        model = None

        def init(bias):
            global model
            model = lambda x: x + bias

        def work(x):
            return model(x)

        worker = start()
        worker(init, 100)
        assert worker(work, 1) == 101
        assert worker(work, 2) == 102
        assert worker.sent == []
        assert worker(lambda: model(5)) == 105
        worker.close()
    """)


def test_a_global_that_a_task_changed_stays_changed(script: Run) -> None:
    script("""
        count = 0

        def step():
            global count
            count += 1
            return count

        worker = start()
        assert [worker(step) for _ in range(3)] == [1, 2, 3]
        worker.close()
    """)


def test_functions_that_call_each_other(script: Run) -> None:
    script("""
        import functools, math
        from os import path

        def even(n):
            return n == 0 or odd(n - 1)

        def odd(n):
            return n > 0 and even(n - 1)

        @functools.lru_cache(maxsize=None)
        def fib(n):
            return n if n < 2 else fib(n - 1) + fib(n - 2)

        def traced(fn):
            @functools.wraps(fn)
            def wrapper(*args):
                wrapper.calls += 1
                return fn(*args), wrapper.calls
            wrapper.calls = 0
            return wrapper

        @traced
        def area(r, digits=3, *, factor=1.0):
            return round(math.pi * r * r * factor, digits)

        def local():
            def down(n):
                return 0 if n == 0 else 1 + down(n - 1)
            return down

        worker = start()
        assert worker(even, 10) is True and worker(odd, 4) is False
        assert worker(fib, 50) == 12586269025
        assert worker(area, 1) == (3.142, 1)
        assert worker(area, 1) == (3.142, 2)
        assert worker(local(), 7) == 7
        assert worker(lambda *parts: path.join(*parts), "a", "b") == "a/b"
        assert worker(functools.partial(even), 3) is False
        assert worker(map_all, even, [1, 2]) == [False, True] if "map_all" in globals() else True
        worker.close()
    """)


def test_a_function_or_global_that_changed_between_two_calls_is_seen_changed(script: Run) -> None:
    script("""
        import functools

        worker = start()
        scale = 2

        def scaled(x):
            return x * scale

        def through(fn, x):
            return fn(x)

        assert worker(scaled, 4) == 8
        scale = 3
        assert worker(scaled, 4) == 12
        assert worker.sent == ["scale"]
        assert worker(scaled, 5) == 15
        assert worker.sent == []
        scale = 2
        assert worker(scaled, 4) == 8
        assert worker(functools.partial(scaled, 5)) == 10
        assert worker(through, scaled, 5) == 10

        old = scaled

        def scaled(x):
            return -x * scale

        assert worker(scaled, 4) == -8
        assert worker(functools.partial(scaled, 5)) == -10
        assert worker(through, scaled, 5) == -10
        assert worker(through, old, 5) == 10
        assert worker(old, 5) == 10
        scaled = old
        assert worker(scaled, 4) == 8
        assert worker(lambda x: scaled(x), 4) == 8

        table = {"a": 1}
        look = lambda key: table[key]
        assert worker(look, "a") == 1
        table["a"] = 2
        assert worker(look, "a") == 2
        worker.close()
    """)


def test_a_global_bound_again_to_what_the_workers_began_with(forked: Run) -> None:
    forked("""
        import threading

        lock = inherited = threading.Lock()
        big = list(range(5))
        worker = start()
        use = lambda: (type(lock).__name__, big)
        assert worker(use) == ("lock", [0, 1, 2, 3, 4])
        assert worker.sent == ["function"]
        lock = None
        assert worker(use) == ("NoneType", [0, 1, 2, 3, 4])
        lock = inherited
        assert worker(use) == ("lock", [0, 1, 2, 3, 4])
        assert worker.sent == ["lock"]
        worker.close()
    """)


def test_what_existed_at_the_fork_goes_by_reference(forked: Run) -> None:
    forked("""
        import dataclasses, enum, sys, threading

        @dataclasses.dataclass
        class Point:
            x: int
            class Kind(enum.Enum):
                A = 1

        guarded = threading.Lock()

        def locked(point):
            with guarded:
                return Point(point.x + 1)

        worker = start()
        made = worker(locked, Point(1))
        assert made == Point(2) and type(made) is Point
        assert worker(lambda k: k, Point.Kind.A) is Point.Kind.A
        assert worker.sent == ["function"]
        worker.close()
    """)


def test_no_cloudpickle_for_what_existed_at_the_fork(forked: Run) -> None:
    forked("""
        import sys

        class Point:
            def __init__(self, x):
                self.x = x

        def move(point):
            return Point(point.x + 1), "cloudpickle" in sys.modules

        worker = start()
        point, loaded = worker(move, Point(1))
        assert point.x == 2 and not loaded and "cloudpickle" not in sys.modules
        worker.close()
    """)


def test_instances_of_the_scripts_classes_keep_their_class(script: Run) -> None:
    script("""
        import abc, collections, dataclasses, enum, math, typing

        UserId = typing.NewType("UserId", int)
        T = typing.TypeVar("T")

        @dataclasses.dataclass(frozen=True)
        class Point:
            x: float
            y: float = 0.0
            def norm(self) -> float:
                return math.hypot(self.x, self.y)
            def twin(self) -> "Point":
                return Point(self.x, self.y)

        class Colour(enum.Enum):
            RED = 1
            BLUE = 2

        class Shape(abc.ABC):
            registry = {}
            def __init_subclass__(cls):
                Shape.registry[cls.__name__] = cls
            @abc.abstractmethod
            def area(self): ...

        class Square(Shape):
            __slots__ = ("side",)
            def __init__(self, side: UserId):
                super().__init__()
                self.side = side
            @property
            def double(self):
                return type(self)(self.side * 2)
            @classmethod
            def unit(cls):
                return cls(1)
            @staticmethod
            def name():
                return "square"
            def area(self):
                return self.side ** 2

        class Tree(typing.Generic[T]):
            children: "list[Tree[T]]"
            def __init__(self, value: T, *children):
                self.value, self.children = value, list(children)
            def total(self):
                return self.value + sum(child.total() for child in self.children)

        Pair = collections.namedtuple("Pair", "left right")

        def check(point, colour, square, pair):
            assert isinstance(point, Point) and point.twin() == point
            assert colour is Colour.RED and isinstance(square, Square) and type(pair) is Pair
            assert Shape.registry == {"Square": Square} and square.double.area() == 36
            return point, colour, Square.unit(), Pair(point, colour), Colour

        def make(kind, *args):
            return kind(*args)

        worker, other = start(2)
        for one in (worker, other, worker):
            point, colour, square, pair, kind = one(
                check, Point(3.0, 4.0), Colour.RED, Square(3), Pair(1, 2)
            )
            assert point == Point(3.0, 4.0) and type(point) is Point
            assert colour is Colour.RED and kind is Colour
            assert type(square) is Square and square.area() == 1
            assert type(pair) is Pair
        assert worker(Point(3.0, 4.0).norm) == 5.0
        assert worker(Square.unit).area() == 1
        assert worker(make, Point, 1.0) == Point(1.0)
        assert worker(Point, 1.0) == Point(1.0)
        assert worker(Square.name) == "square"
        assert worker(Tree.total, Tree(1, Tree(2), Tree(3))) == 6
        worker.close(); other.close()
    """)


def test_a_result_of_the_scripts_class_is_loaded_by_another_worker(script: Run) -> None:
    script("""
        import math

        UNIT = 10

        def scaled(value):
            return math.floor(value * UNIT)

        class Base:
            def norm(self):
                return scaled(self.x)

        class Point(Base):
            def __init__(self, x):
                self.x = x

        def make(x):
            return Point(x)

        def make_function(y):
            return lambda x: scaled(x + y)

        worker, other = start(2)
        kept = worker.keep(make, 1.5)
        assert other.give(lambda point: point.norm(), kept) == 15
        kept = worker.keep(make_function, 1)
        third = other.give(lambda fn: fn(2), kept)
        assert third == 30
        worker.close(); other.close()
    """)


def test_closures_lambdas_local_classes_and_bound_methods(script: Run) -> None:
    script("""
        import operator

        def adder(n):
            return lambda x: x + n

        def counter():
            count = 0
            def step():
                nonlocal count
                count += 1
                return count
            return step

        def local_class(base):
            class Local(base):
                def value(self):
                    return super().value() + 1
                def same(self):
                    return type(self) is Local
            return Local

        class Base:
            def value(self):
                return 41
            def __call__(self, x):
                return x * 2

        Local = local_class(Base)
        worker = start()
        assert worker(adder(3), 4) == 7 and worker(adder(4), 4) == 8
        assert worker(counter()) == 1
        assert worker(lambda o: (o.value(), o.same()), Local()) == (42, True)
        back = worker(lambda o: o, Local())
        assert type(back) is Local
        assert type(worker(lambda cls: cls(), Local)) is Local
        assert worker(Base(), 4) == 8
        assert worker([3, 1, 2].index, 1) == 1
        assert worker(operator.itemgetter(1), [5, 6]) == 6
        assert worker(adder, 1)(2) == 3
        worker.close()
    """)


def test_aliases_cycles_and_attributes_of_functions(script: Run) -> None:
    script("""
        worker = start()

        def f():
            return f.twin is g and g.twin is f

        def g():
            return g.twin is f

        f.twin, g.twin = g, f
        h = f

        class Node:
            kinds = {}
            def kin(self):
                return sorted(Node.kinds), Leaf.__mro__[1] is Node

        class Leaf(Node):
            pass

        class Twig(Leaf):
            pass

        Node.kinds.update(leaf=Leaf, twig=Twig)
        assert worker(lambda: f is h)
        assert worker(lambda: h.__name__) == "f"
        assert worker(Twig().kin) == (["leaf", "twig"], True)
        assert worker(lambda: Node.kinds["twig"] is Twig and Node.kinds["leaf"] is Leaf)
        assert worker(lambda x: type(x) is Node.kinds["twig"], Twig())
        worker.close()
    """)


def test_a_class_that_changed_is_seen_changed_and_stays_one(script: Run) -> None:
    script("""
        worker = start()

        class Plan:
            steps = 1
            def total(self):
                return self.steps * 10

        plan = Plan()
        keep = lambda obj: globals().setdefault("kept", obj) and None
        assert worker(lambda p: p.total(), plan) == 10
        Plan.steps = 2
        assert worker(lambda p: p.total(), plan) == 20
        assert worker(lambda p: type(p) is Plan, plan)

        old = Plan

        class Plan:
            def total(self):
                return -1

        assert worker(lambda p, q: (p.total(), q.total(), type(q) is Plan), plan, Plan()) == (
            20, -1, True
        )
        back = worker(lambda p: p, plan)
        assert type(back) is old
        worker.close()
    """)


def test_a_global_that_cannot_be_pickled_is_named(fresh: Run) -> None:
    fresh("""
        import threading
        from owndist.errors import NotSerializable

        lock = threading.Lock()

        def inner():
            return lock.locked()

        def outer():
            return inner()

        worker = start()
        try:
            worker(outer)
        except NotSerializable as error:
            text = str(error)
            assert "the global 'lock' of __main__" in text and "'outer'" in text, text
            assert "_thread.lock" in text
            assert isinstance(error.__cause__, TypeError)
        else:
            raise AssertionError
        worker.close()
    """)


def test_a_global_that_cannot_be_loaded_fails_only_the_tasks_that_use_it(script: Run) -> None:
    script("""
        worker = start()

        def refuse(text):
            raise SystemExit(text)

        class Stubborn:
            def __reduce__(self):
                return refuse, ("not here",)

        stubborn = Stubborn()

        def use():
            return stubborn

        def use_indirectly():
            return use()

        for fn in (use, use_indirectly, use):
            try:
                worker(fn)
            except SystemExit as error:
                assert error.code == "not here"
            else:
                raise AssertionError(fn)
        assert worker(lambda: 5) == 5
        stubborn = 7
        assert worker(use) == 7 and worker(use_indirectly) == 7
        worker.close()
    """)


def test_the_scripts_exceptions_keep_their_class(script: Run) -> None:
    """Law 67: errors keep their type, whatever their `__init__` asks for."""
    script("""
        class Refused(Exception):
            def __init__(self, who, why):
                super().__init__(f"{who}: {why}")
                self.who = who

        def refuse():
            try:
                1 / 0
            except ZeroDivisionError as error:
                raise Refused("me", "no") from error

        worker = start()
        try:
            worker(refuse)
        except Refused as error:
            assert error.who == "me" and error.args == ("me: no",)
            assert "in refuse" in str(error.__cause__)
            assert type(error.__cause__.__cause__) is ZeroDivisionError
        else:
            raise AssertionError
        worker.close()
    """)


def test_file_name_and_module_names_of_the_script(script: Run) -> None:
    script("""
        import os

        def where():
            return os.path.basename(__file__), __name__

        worker = start()
        assert worker(where) == ("script.py", "__main__")
        worker.close()
    """)


def test_a_module_that_is_registered_with_cloudpickle_goes_by_value(
    script: Run, tmp_path: Path
) -> None:
    (tmp_path / "helpers.py").write_text(
        "FACTOR = 3\ndef triple(x):\n    return x * FACTOR\nclass Box:\n    size = 4\n"
    )
    script("""
        import os, sys
        import cloudpickle, helpers
        cloudpickle.register_pickle_by_value(helpers)
        worker = start()
        gone = lambda: __import__("sys").path.remove(os.path.dirname(__file__))
        if sys.argv[1] == "fresh":
            assert worker(lambda: "helpers" in sys.modules) is False
        assert worker(helpers.triple, 2) == 6
        assert worker(lambda b: b.size, helpers.Box()) == 4
        assert worker(lambda: helpers.triple(3)) == 9
        if sys.argv[1] == "fresh":
            assert worker(lambda: "helpers" in sys.modules) is False
        worker.close()
    """)


def test_annotations_defaults_and_recursion_through_a_class(script: Run) -> None:
    script("""
        import typing

        class Item:
            def __init__(self, n):
                self.n = n

        Alias = typing.Optional[Item]
        Id = typing.NewType("Id", int)
        V = typing.TypeVar("V")

        worker = start()

        def use(item: Alias, first: Item = Item(1), *, key: Id = Id(3)) -> "Item":
            return Item(item.n + first.n + key)

        def generic(values: "typing.List[V]", kind: typing.Type[V] = Item) -> V:
            return kind(len(values))

        assert worker(use, Item(5)).n == 9
        assert type(worker(use, Item(5))) is Item
        assert worker(lambda: use.__annotations__["first"] is Item)
        assert type(worker(generic, [1, 2])) is Item
        worker.close()
    """)
