"""Classes of a script, their instances, and closures, in real worker processes."""

from __future__ import annotations

from collections.abc import Callable

Run = Callable[[str], str]


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


def test_classes_with_slots_have_them_in_the_workers(script: Run) -> None:
    script("""
        import dataclasses, sys, weakref

        class Two:
            __slots__ = ("a", "b")
            def __init__(self, a, b):
                self.a, self.b = a, b

        class Derived(Two):
            __slots__ = ("c", "__private")
            def __init__(self):
                super().__init__(1, 2)
                self.c, self.__private = 3, 4
            def private(self):
                return self.__private

        class Single:
            __slots__ = "a"

        class Weak:
            __slots__ = ("a", "__weakref__")

        class Open:
            __slots__ = ("a", "__dict__")

        @dataclasses.dataclass(slots=True)
        class Record:
            a: int
            b: list = dataclasses.field(default_factory=list)

        @dataclasses.dataclass(frozen=True, slots=True)
        class Frozen:
            a: int = 1

        def make():
            single, weak, open_ = Single(), Weak(), Open()
            single.a = weak.a = open_.a = 7
            open_.other = 8
            assert weakref.ref(weak)() is weak
            for closed in (single, weak, Two(1, 2), Derived(), Record(1), Frozen()):
                assert not hasattr(closed, "__dict__"), closed
            assert Two.__slots__ == ("a", "b") and Single.__slots__ == "a"
            return Two(1, 2), Derived(), single, weak, open_, Record(1, [2]), Frozen(5)

        def give_back(*values):
            return values

        worker = start()
        for _ in range(3):
            made = worker(give_back, *worker(make))
            two, derived, single, weak, open_, record, frozen = made
            assert [type(v) for v in made] == [Two, Derived, Single, Weak, Open, Record, Frozen]
            assert (two.a, two.b, single.a, weak.a, open_.a, open_.other) == (1, 2, 7, 7, 7, 8)
            assert (derived.a, derived.b, derived.c, derived.private()) == (1, 2, 3, 4)
            assert record == Record(1, [2]) and frozen == Frozen(5)

        def local():
            class Inner:
                __slots__ = ("x",)
            return Inner

        kind = local()
        one = kind()
        one.x = 5
        assert worker(lambda value: (value.x, hasattr(value, "__dict__")), one) == (5, False)
        worker.close()
    """)
