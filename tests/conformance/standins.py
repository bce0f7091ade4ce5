"""Executor classes that stand in for the one under test, to test the harness itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from threading import Event
from typing import Any


class Trivial(ProcessPoolExecutor):
    """Behaves as the stdlib's."""


class HangsInMap(ProcessPoolExecutor):
    """Never comes back from map."""

    def map(self, *args: Any, **kwargs: Any) -> Iterator[Any]:  # type: ignore[override]
        Event().wait()
        raise AssertionError("not reached")


class CrashesInMap(ProcessPoolExecutor):
    """Takes the interpreter down in map."""

    def map(self, *args: Any, **kwargs: Any) -> Iterator[Any]:  # type: ignore[override]
        os._exit(70)


class AnswersWrong(ProcessPoolExecutor):
    """Computes nothing at all."""

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:  # type: ignore[override]
        future: Future[Any] = Future()
        future.set_result(None)
        return future
