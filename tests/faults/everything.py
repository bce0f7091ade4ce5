"""A program that uses all that an executor can do, in random order; and its tasks."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from typing import Any

import numpy as np

from owndist import Future, OwnershipExecutor, current_executor
from owndist.errors import ObjectLost, WorkerDied
from tests.laws.helpers import PATIENCE_S

LENGTH = 40_000  # numbers; 320 kB, so that each value is in shared memory

# What may become of a task while workers are killed, memory is removed, and tasks are cancelled.
ALLOWED = (WorkerDied, ObjectLost, CancelledError)


def make(number: int) -> Any:
    return np.full(LENGTH, number, np.int64)


def add(left: Any, right: Any) -> Any:
    return left + right


def tree(depth: int, number: int) -> Any:
    """A binary tree of tasks; 2**depth times the number."""
    if not depth:
        return make(number)
    executor = current_executor()
    halves = [executor.submit(tree, depth - 1, number) for _ in range(2)]
    return executor.submit(add, *halves).result()


def add_futures(left: Future[Any], right: Future[Any]) -> Any:
    return left.result() + right.result()


def give(number: int) -> list[Future[Any]]:
    """Futures that the worker owns."""
    executor = current_executor()
    return [executor.submit(make, number), executor.put(make(number))]


def count_up(number: int) -> Iterator[Any]:
    for step in range(4):
        yield make(number + step)


def three(number: int) -> tuple[Any, ...]:
    return tuple(make(number + index) for index in range(3))


class Program:
    """Submits, passes on, cancels and reads, and knows what each value should be."""

    def __init__(self, pool: OwnershipExecutor, seed: int) -> None:
        self._pool = pool.options(max_retries=1000)
        self._shared = pool.shared
        self._chance = random.Random(seed)
        self._known: list[tuple[Future[Any], int]] = []
        self.seen: Counter[str] = Counter()
        self._steps: list[Callable[[int], None]] = [
            *[self._make] * 6,
            *[self._add] * 5,
            *[self._tree] * 2,
            *[self._borrow] * 2,
            self._give,
            self._several,
            self._stream,
            self._cancel,
            *[self._read] * 2,
        ]

    def run(self, count: int) -> None:
        """So many steps, then read all that is left."""
        for _ in range(count):
            self._chance.choice(self._steps)(self._chance.randrange(9))
            if len(self._known) > 80:
                del self._known[:30]
        for future, expected in self._known:
            self._check(future, expected)
        self._known.clear()

    def _pick(self) -> tuple[Future[Any], int]:
        if not self._known:
            self._make(1)
        return self._chance.choice(self._known[-30:])

    def _make(self, number: int) -> None:
        self._known.append((self._pool.submit(make, number), number))

    def _add(self, number: int) -> None:
        (left, one), (right, other) = self._pick(), self._pick()
        self._known.append((self._pool.submit(add, left, right), one + other))

    def _tree(self, number: int) -> None:
        depth = self._chance.randrange(4)
        self._known.append((self._pool.submit(tree, depth, number), number * 2**depth))

    def _borrow(self, number: int) -> None:
        (left, one), (right, other) = self._pick(), self._pick()
        future = self._pool.submit(add_futures, self._shared(left), self._shared(right))
        self._known.append((future, one + other))

    def _give(self, number: int) -> None:
        try:
            given = self._pool.submit(give, number).result(PATIENCE_S)
        except ALLOWED as error:
            self.seen[type(error).__name__] += 1
        else:
            self._known += [(future, number) for future in given]

    def _several(self, number: int) -> None:
        futures = self._pool.options(num_returns=3).submit(three, number)
        for index in self._chance.sample(range(3), 2):  # the third is dropped
            self._known.append((futures[index], number + index))

    def _stream(self, number: int) -> None:
        with self._pool.options(num_returns="stream").submit(count_up, number) as stream:
            for index, future in enumerate(stream):
                self._known.append((future, number + index))

    def _cancel(self, number: int) -> None:
        running, force, recursive = number & 1, number & 2, number & 4
        future, _ = self._pick()
        future.cancel(running=bool(running), force=bool(force), recursive=bool(recursive))

    def _read(self, number: int) -> None:
        self._check(*self._pick())

    def _check(self, future: Future[Any], expected: int) -> None:
        try:
            value = future.result(PATIENCE_S)
        except ALLOWED as error:
            self.seen[type(error).__name__] += 1
        else:
            assert (value == expected).all(), f"{future!r}: {value[0]}, not {expected}"
            self.seen["right"] += 1
