"""The competitors: one table; every measured body runs on each of them unchanged."""

from __future__ import annotations

import multiprocessing
import platform
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any

# {what a line may need: what its cell says where the competitor cannot do it}
LACKS = {
    "link": "a future cannot be an argument",
    "nest": "tasks cannot submit tasks",
    "survive": "a killed worker breaks it",
    "recompute": "nothing is computed again",
    "tap": "counted under fork only",  # the counters are inherited
}
OWNDIST = frozenset({"link", "nest", "survive", "recompute"})


@dataclass(frozen=True)
class Competitor:
    """One executor under one start method.

    Attributes:
        label: what tables and the command line call it.
        start_method: of `multiprocessing`; "loky" has one of its own.
        make: makes the executor from (max_workers, initializer, initargs). What it needs is
            imported inside: the start-up line counts that too.
        version: of the package, or of Python; raises when the package is not there.
        baseline: the label of the competitor that ratios are taken to.
        abilities: what it can do, of the keys of `LACKS`.
    """

    label: str
    start_method: str
    make: Callable[..., Executor]
    version: Callable[[], str]
    baseline: str
    abilities: frozenset[str] = frozenset()

    def can(self, need: str) -> bool:
        return need in self.abilities or (need == "tap" and self.start_method == "fork")

    def why_not(self, needs: Iterable[str]) -> str | None:
        """Why it has no figure on a line that needs these; None if it has one."""
        return next((LACKS[need] for need in needs if not self.can(need)), None)

    def link(self, future: Future[Any]) -> Any:
        """What the next task gets as its argument: the future, where that is possible."""
        return future if self.can("link") else future.result()


def _owndist(start_method: str) -> Callable[..., Executor]:
    def make(workers: int, initializer: Any = None, initargs: tuple[Any, ...] = ()) -> Executor:
        from owndist import OwnershipExecutor

        context = multiprocessing.get_context(start_method)
        return OwnershipExecutor(workers, context, initializer, initargs)

    return make


def _process_pool_executor(start_method: str) -> Callable[..., Executor]:
    def make(workers: int, initializer: Any = None, initargs: tuple[Any, ...] = ()) -> Executor:
        from concurrent.futures import ProcessPoolExecutor

        context = multiprocessing.get_context(start_method)
        return ProcessPoolExecutor(workers, context, initializer, initargs)

    return make


class PoolExecutor(Executor):
    """`multiprocessing.Pool` with the methods of an executor."""

    def __init__(self, workers: int, initializer: Any, initargs: tuple[Any, ...]) -> None:
        context = multiprocessing.get_context("fork")
        self._pool = context.Pool(workers, initializer, initargs)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._pool.apply_async(fn, args, kwargs, future.set_result, future.set_exception)
        return future

    def map(  # type: ignore[override]  # its own default for chunksize, and no timeout
        self, fn: Callable[..., Any], *iterables: Iterable[Any], chunksize: int | None = None
    ) -> Iterator[Any]:
        if len(iterables) == 1:
            return iter(self._pool.map(fn, iterables[0], chunksize))
        return iter(self._pool.starmap(fn, zip(*iterables, strict=False), chunksize))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._pool.close()
        if wait:
            self._pool.join()


def _loky(workers: int, initializer: Any = None, initargs: tuple[Any, ...] = ()) -> Executor:
    from loky import ProcessPoolExecutor

    return ProcessPoolExecutor(workers, initializer=initializer, initargs=initargs)


def _pool(workers: int, initializer: Any = None, initargs: tuple[Any, ...] = ()) -> Executor:
    return PoolExecutor(workers, initializer, initargs)


def _version_of(package: str) -> Callable[[], str]:
    def version() -> str:
        from importlib import import_module, metadata

        import_module(package)
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:  # run from a checkout
            return "checkout"

    return version


def _competitors() -> Iterator[Competitor]:
    known = multiprocessing.get_all_start_methods()
    methods = [method for method in ("fork", "forkserver", "spawn") if method in known]
    for method in methods:
        baseline = f"ppe-{method}"
        version = _version_of("owndist")
        yield Competitor(f"owndist-{method}", method, _owndist(method), version, baseline, OWNDIST)
        make = _process_pool_executor(method)
        yield Competitor(baseline, method, make, platform.python_version, baseline)
    if "fork" in methods:
        yield Competitor("pool-fork", "fork", _pool, platform.python_version, "ppe-fork")
    # loky starts a fresh interpreter for each worker: spawn is its nearest relative.
    yield Competitor("loky", "loky", _loky, _version_of("loky"), "ppe-spawn")


COMPETITORS: dict[str, Competitor] = {one.label: one for one in _competitors()}
