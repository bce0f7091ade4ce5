"""`map`, with short items sent to the workers many at a time.

A user cannot tell batched items from single ones, except by the speed. So only such items are sent
together that cannot tell each other anything: the function keeps nothing from call to call, the
arguments are small and cannot change (numbers, short texts, tuples of such). Each item has its own
outcome; a chunk ends early at the first value that is not of that kind, or after `CHUNK_S`, and the
rest runs one by one; so do all items of a chunk whose worker died, with one retry less.
"""

from __future__ import annotations

import functools
import itertools
import pickle
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from concurrent.futures import Future as AnyFuture
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TYPE_CHECKING, Any

from .futures import Future
from .runtime.chunks import Outcome, chunk_call
from .wire.stateless import ATOMS, is_fixed, is_stateless

if TYPE_CHECKING:
    from .config import TaskOptions
    from .runtime.driver import Driver

Submit = Callable[..., AnyFuture[Any]]

# How long a chunk may run, in seconds: much longer than it takes to send it, short enough that
# nobody misses the items in it.
CHUNK_S = 0.01

_LARGEST_CHUNK = 1000
_LARGEST_CHUNK_BYTES = 1 << 20  # of arguments
_LEAST_ITEMS = 16  # below, there is nothing to gain


def map_one_by_one(
    submit: Submit,
    fn: Callable[..., Any],
    items: Iterable[tuple[Any, ...]],
    timeout: float | None,
    buffersize: int | None,
) -> Iterator[Any]:
    """One task for each item; `buffersize` of them ahead of the reader at most."""
    end = None if timeout is None else timeout + time.monotonic()
    source = iter(items)
    first = source if buffersize is None else itertools.islice(source, buffersize)
    futures = deque([submit(fn, *item) for item in first])

    def results() -> Iterator[Any]:
        try:
            while futures:
                if buffersize is not None:
                    # Before waiting, so that the workers have something to do meanwhile.
                    for item in itertools.islice(source, 1):
                        futures.append(submit(fn, *item))
                yield _result_of(futures.popleft(), end)
        finally:
            cancel_all(futures)

    return results()


def cancel_all(futures: Iterable[AnyFuture[Any]]) -> None:
    """Nobody wants these results: what has not started need not run."""
    by_driver: dict[Any, list[Future[Any]]] = {}
    for future in futures:
        cancel_soon = getattr(getattr(future, "_peer", None), "cancel_soon", None)
        if cancel_soon is not None and isinstance(future, Future):
            by_driver.setdefault(cancel_soon, []).append(future)
        else:
            future.cancel()  # made by somebody else's `submit`
    for cancel_soon, own in by_driver.items():
        cancel_soon(own)


def _result_of(future: AnyFuture[Any], end: float | None) -> Any:
    try:
        return future.result(None if end is None else end - time.monotonic())
    except BaseException:
        future.cancel()
        raise
    finally:
        # The frame of a raised exception must not keep the future, and with it the value.
        del future


def run_chunk(fn: Callable[..., Any], chunk: list[tuple[Any, ...]]) -> list[Any]:
    """In the worker, for an explicit chunksize: all items of a chunk, as the stdlib does it."""
    return [fn(*item) for item in chunk]


def map_in_chunks(
    submit: Submit,
    fn: Callable[..., Any],
    items: Iterable[tuple[Any, ...]],
    timeout: float | None,
    chunksize: int,
    buffersize: int | None,
) -> Iterator[Any]:
    """Chunks of a given size."""
    source = iter(items)
    chunks = iter(lambda: list(itertools.islice(source, chunksize)), [])
    results = map_one_by_one(
        submit,
        functools.partial(run_chunk, fn),
        ((chunk,) for chunk in chunks),
        timeout,
        buffersize,
    )
    return _chain(results)


def _chain(results: Iterator[list[Any]]) -> Iterator[Any]:
    for chunk in results:
        chunk.reverse()
        while chunk:
            yield chunk.pop()


def map_batched(
    submit: Submit,
    begin: Callable[[], Driver],
    options: TaskOptions,
    fn: Callable[..., Any],
    items: Iterable[tuple[Any, ...]],
    timeout: float | None,
    workers: int,
) -> Iterator[Any]:
    """Items one by one or many at a time, whatever is faster."""
    listed = list(items)
    largest = _largest_chunk(fn, listed, options, workers)
    if largest <= 1:
        return map_one_by_one(submit, fn, listed, timeout, None)
    end = None if timeout is None else timeout + time.monotonic()
    run = _Run(begin(), options, fn, listed)
    run.begin(largest, workers)
    return run.results(end)


def _largest_chunk(
    fn: Callable[..., Any], items: list[tuple[Any, ...]], options: TaskOptions, workers: int
) -> int:
    """How many items may share a task; 1 where batching could be told from single tasks."""
    if len(items) < _LEAST_ITEMS or options.max_retries == 0 or options.retry_exceptions:
        # Without retries, an item must not be run again because of its neighbour's crash.
        return 1
    if not is_stateless(fn):
        return 1
    for item in items:
        for argument in item:
            if type(argument) not in ATOMS and not is_fixed(argument):
                return 1
    sample = items[:: max(1, len(items) // 8)]
    try:
        size = max(len(pickle.dumps(item, 5)) for item in sample)
    except Exception:
        return 1  # a function that goes by value, perhaps
    largest = min(_LARGEST_CHUNK, len(items) // (4 * workers), _LARGEST_CHUNK_BYTES // size)
    return max(1, largest)


class _Run:
    """One call of `map` whose items are batched."""

    def __init__(
        self,
        driver: Driver,
        options: TaskOptions,
        fn: Callable[..., Any],
        items: list[tuple[Any, ...]],
    ) -> None:
        self._driver = driver
        self._options = options
        self._fn = fn
        self._call = chunk_call(fn, CHUNK_S)
        self._once = options.changed(max_retries=0, name=options.name)
        self._items = items
        # Guards what follows. User code does not run under it.
        self._changed = threading.Condition(threading.Lock())
        self._chunks: dict[AnyFuture[Any], None] = {}  # the futures that bring several items
        self._outcomes: list[Outcome | None] = [None] * len(items)
        self._futures: list[AnyFuture[Any] | None] = [None] * len(items)  # who brings each item
        self._open = 0  # chunks whose futures have not been taken in
        self._cancelled = False

    def begin(self, largest: int, workers: int) -> None:
        """Submit all items: singly at first, then in growing chunks."""
        self._driver.open_run()
        start, size, count = 0, 1, 0
        try:
            self._open += 1  # the run itself, until all is submitted
            while start < len(self._items):
                stop = min(start + size, len(self._items))
                self._send(start, stop, self._options, continued=False)
                start, count = stop, count + 1
                if count % (2 * workers) == 0:
                    size = min(2 * size, largest)
        except BaseException:
            self.cancel()
            raise
        finally:
            self._close_one()

    def _send(self, start: int, stop: int, options: TaskOptions, continued: bool) -> None:
        if stop - start == 1:
            future = self._driver.submit(self._fn, self._items[start], {}, options, continued)
        else:
            chunk = self._items[start:stop]
            future = self._driver.submit(self._call, (chunk,), {}, self._once, continued)
        with self._changed:
            self._open += 1
            if stop - start > 1:
                self._chunks[future] = None
            for index in range(start, stop):
                self._futures[index] = future
        future._then(functools.partial(self._take_in, start, stop))

    def _take_in(self, start: int, stop: int, future: AnyFuture[Any]) -> None:
        """A chunk is done, at least its first items. Runs in the reader, for each future once."""
        try:
            if stop - start > 1:
                self._take_chunk(start, stop, future)
        finally:
            with self._changed:
                self._chunks.pop(future, None)
            self._close_one()

    def _take_chunk(self, start: int, stop: int, future: AnyFuture[Any]) -> None:
        done = start
        try:
            result = future.result(0)
            done += len(result.outcomes)
            with self._changed:
                self._outcomes[start:done] = result.outcomes
                self._futures[start:done] = [None] * (done - start)
                self._changed.notify_all()
            if done < stop and self._cancelled:
                self._fail(done, stop, CancelledError())
            else:
                self._send_singly(done, stop, self._options)
        except BaseException as error:
            from .errors import WorkerDied

            if not isinstance(error, WorkerDied):
                self._fail(done, stop, error)
                return
            # One of them killed the worker. Each for itself now, and that was one of its tries.
            fewer = self._options.changed(max_retries=self._options.max_retries - 1)
            try:
                self._send_singly(start, stop, fewer)
            except BaseException as another:
                self._fail(start, stop, another)

    def _send_singly(self, start: int, stop: int, options: TaskOptions) -> None:
        for index in range(start, stop):
            self._send(index, index + 1, options, continued=True)
        with self._changed:
            self._changed.notify_all()

    def _fail(self, start: int, stop: int, error: BaseException) -> None:
        with self._changed:
            for index in range(start, stop):
                future: AnyFuture[Any] = AnyFuture()
                future.set_exception(error)
                self._futures[index] = future
            self._changed.notify_all()

    def _close_one(self) -> None:
        with self._changed:
            self._open -= 1
            last = not self._open
        if last:
            self._driver.close_run()

    def results(self, end: float | None) -> Iterator[Any]:
        """The values in order."""
        try:
            for index in range(len(self._items)):
                yield self._result(index, end)
        finally:
            self.cancel()

    def _result(self, index: int, end: float | None) -> Any:
        outcomes, futures = self._outcomes, self._futures
        while True:
            with self._changed:
                outcome, future = outcomes[index], futures[index]
                outcomes[index] = None
            if outcome is not None:
                fine, value = outcome
                if fine:
                    return value
                from .wire.outcomes import load_error

                raise load_error(value)
            assert future is not None
            if future not in self._chunks:
                futures[index] = None  # as soon as it is given out, its value is the caller's alone
                return _result_of(future, end)
            left = None if end is None else end - time.monotonic()
            # The reader takes the chunk in when it is done.
            if not self._driver.wait_until(
                self._changed,
                lambda: outcomes[index] is not None or futures[index] is not future,  # noqa: B023
                left,
            ):
                raise FutureTimeoutError()

    def cancel(self) -> None:
        """Whatever has not started need not run."""
        self._cancelled = True
        with self._changed:
            futures = dict.fromkeys(f for f in self._futures if f is not None)
        cancel_all(futures)
