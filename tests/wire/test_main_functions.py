"""Functions of a script and their globals, in real worker processes, forked and fresh."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Run = Callable[[str], str]


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


def test_a_global_that_cannot_be_pickled_is_named(fresh: Run) -> None:
    fresh("""
        from owndist.errors import NotSerializable

        numbers = (n for n in range(3))

        def inner():
            return next(numbers)

        def outer():
            return inner()

        worker = start()
        try:
            worker(outer)
        except NotSerializable as error:
            text = str(error)
            assert "the global 'numbers' of __main__" in text and "'outer'" in text, text
            assert "generator" in text
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
        import sys
        import cloudpickle, helpers
        cloudpickle.register_pickle_by_value(helpers)
        worker = start()
        if sys.argv[1] == "fresh":
            assert worker(lambda: "helpers" in sys.modules) is False
        assert worker(helpers.triple, 2) == 6
        assert worker(lambda b: b.size, helpers.Box()) == 4
        assert worker(lambda: helpers.triple(3)) == 9
        if sys.argv[1] == "fresh":
            assert worker(lambda: "helpers" in sys.modules) is False
        worker.close()
    """)


def test_the_script_in_a_child_of_multiprocessing(fresh: Run) -> None:
    """There its module goes by the name of `__mp_main__`, which no worker knows."""
    fresh("""
        import multiprocessing, sys

        LIMIT = 10

        class Point:
            def __init__(self, x):
                self.x = x
            def capped(self):
                return min(self.x, LIMIT)

        def use(point):
            return Point(point.capped()), type(point) is Point

        def in_child():
            assert Point.__module__ == "__mp_main__"
            sys.argv = ["script", "fresh"]
            worker = start()
            for _ in range(3):
                point, same = worker(use, Point(11))
                assert type(point) is Point and point.x == 10 and same
                assert worker(lambda: LIMIT) == 10
            worker.close()

        if __name__ == "__main__":
            child = multiprocessing.get_context("spawn").Process(target=in_child)
            child.start()
            child.join()
            assert child.exitcode == 0
    """)
