"""OwnershipExecutor and its futures look like the stdlib's, and none of the stdlib's code runs."""

from __future__ import annotations

import concurrent.futures
import inspect
import multiprocessing
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from typing import Any

import pytest

from . import tasks
from .conftest import PATIENCE_S, Flavour

OURS = Flavour("owndist", "fork")

# Parameters whose default differs on purpose: (method, parameter).
OTHER_DEFAULTS = {
    ("map", "chunksize"),  # the stdlib's 1 sends items one by one; ours chooses by itself
}


def public_methods(cls: type) -> list[str]:
    return [n for n in dir(cls) if not n.startswith("_") and callable(getattr(cls, n))]


def test_the_executor_is_a_subclass() -> None:
    """Law 8."""
    assert issubclass(OURS.cls, ProcessPoolExecutor)
    assert OURS.cls is not ProcessPoolExecutor


@pytest.mark.parametrize("name", public_methods(ProcessPoolExecutor))
def test_every_public_method_is_our_own(name: str) -> None:
    """Found in a class of ours before any of the stdlib's."""
    for cls in OURS.cls.__mro__:
        if name in vars(cls):
            assert cls not in (ProcessPoolExecutor, Executor)
            return
    pytest.fail(f"{name} is nowhere")


@pytest.mark.parametrize("name", ["__init__", *public_methods(ProcessPoolExecutor)])
def test_every_call_of_the_stdlib_is_a_call_of_ours(name: str) -> None:
    """Law 8: same names, kinds and order of parameters; what is new is optional."""
    theirs = inspect.signature(getattr(ProcessPoolExecutor, name)).parameters
    ours = inspect.signature(getattr(OURS.cls, name)).parameters
    for parameter in theirs.values():
        assert parameter.name in ours
        own = ours[parameter.name]
        assert own.kind is parameter.kind
        if (name, parameter.name) not in OTHER_DEFAULTS:
            assert own.default == parameter.default
    positional = [
        p.name for p in theirs.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    assert [n for n in ours if n in positional] == positional
    for own in ours.values():
        if own.name not in theirs:
            assert own.kind in (own.KEYWORD_ONLY, own.VAR_KEYWORD)
            assert own.default is not own.empty or own.kind is own.VAR_KEYWORD


@pytest.mark.parametrize("name", public_methods(Future))
def test_every_call_of_a_stdlib_future_is_a_call_of_ours(name: str) -> None:
    """Law 8."""
    with OURS.make(1) as pool:
        future_class = type(pool.submit(tasks.add, 1, 2))
    assert issubclass(future_class, Future)
    theirs = inspect.signature(getattr(Future, name)).parameters
    ours = inspect.signature(getattr(future_class, name)).parameters
    for parameter in theirs.values():
        assert ours[parameter.name].kind is parameter.kind
        assert ours[parameter.name].default == parameter.default


def test_no_code_of_the_stdlibs_executor_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its __init__ would make queues, semaphores and a thread that nobody uses."""

    def trap(name: str) -> Callable[..., Any]:
        def trapped(*args: Any, **kwargs: Any) -> Any:
            raise AssertionError(f"ProcessPoolExecutor.{name} was called")

        return trapped

    with OURS.make(1) as started:  # whatever is imported lazily is imported now
        started.submit(tasks.add, 1, 2).result(PATIENCE_S)
    for name, value in list(vars(ProcessPoolExecutor).items()):
        if inspect.isfunction(value):
            monkeypatch.setattr(ProcessPoolExecutor, name, trap(name))
    with OURS.cls(2, multiprocessing.get_context("fork")) as pool:
        assert pool.submit(tasks.add, 1, 2).result(PATIENCE_S) == 3
        assert list(pool.map(tasks.add, [1, 2], [3, 4], chunksize=2)) == [4, 6]
        done, _ = concurrent.futures.wait([pool.submit(tasks.add, 1, 1)], PATIENCE_S)
        assert len(done) == 1
        pool.shutdown(wait=True, cancel_futures=True)
    for private in ("_call_queue", "_result_queue", "_pending_work_items", "_work_ids"):
        assert private not in vars(pool)
