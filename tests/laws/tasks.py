"""What the tests of the laws submit."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from tests.parity.tasks import add, echo, fail, pass_gate, ring, ring_and_pass, write_down

__all__ = ["add", "echo", "fail", "pass_gate", "ring", "ring_and_pass", "write_down"]

LARGE = 1_000_000  # bytes: ten times what goes inline

kept: dict[str, Any] = {}  # what a worker holds on to between tasks


def capture(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs


def make_bytes(fill: int, size: int = LARGE) -> np.ndarray[Any, Any]:
    """An array of bytes that are all the same."""
    return np.full(size, fill, np.uint8)


def plus_one(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return array + 1


def total(array: Any) -> int:
    return int(np.sum(array, dtype=np.int64))


def sum_of(*values: int) -> int:
    return sum(values)


def make_and_tell(fill: int, size: int = LARGE) -> tuple[int, np.ndarray[Any, Any]]:
    return os.getpid(), make_bytes(fill, size)


def overwrite(array: np.ndarray[Any, Any], fill: int) -> int:
    """Write to the argument, all of it."""
    array[:] = fill
    return total(array)


def is_future(value: Any) -> bool:
    return isinstance(value, Future)


def ask(future: Any) -> Any:
    """The value of a future that came as a future."""
    assert isinstance(future, Future), future
    return future.result()


def ring_and_ask(path: str, future: Any) -> Any:
    ring(path)
    return ask(future)


def ring_and_await(path: str, future: Any) -> Any:
    """The value of a future, by an event loop."""
    import asyncio

    async def wait_for_it() -> Any:
        ring(path)
        return await future

    return asyncio.run(wait_for_it())


def ring_and_ask_in_a_thread(path: str, future: Any) -> Any:
    ring(path)
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(ask(future)))
    thread.start()
    thread.join()
    return found[0]


def leave_a_callback(path: str, future: Any) -> None:
    """Let go of the future, but for what is to be done when it comes."""
    ring(path)
    kept["callback"] = future
    future.add_done_callback(lambda done: kept.update(callback=done.result()))


def ask_inside(holder: Any) -> Any:
    return ask(holder.future)


class Holder:
    """An object of a user's with a future in a field."""

    def __init__(self, future: Any) -> None:
        self.future = future


def keep(name: str, value: Any) -> int:
    """Hold on to something in this worker; returns its pid."""
    kept[name] = value
    return os.getpid()


def ask_kept(name: str) -> Any:
    return kept[name].result()


def read_kept(name: str) -> Any:
    return kept[name]


def give_up(name: str) -> Any:
    """Return what `keep` has kept, and keep it no more."""
    return kept.pop(name)


def forget(name: str) -> None:
    """Let go of what `keep` has kept."""
    import gc

    del kept[name]
    gc.collect()


def write_down_and(diary: str, number: int, what: Any) -> Any:
    write_down(diary, number)
    return what


def write_down_and_fail(diary: str, number: int, error: type[BaseException]) -> NoReturn:
    write_down(diary, number)
    raise error(f"number {number}")


def write_down_and_die(diary: str, number: int = 0) -> NoReturn:
    write_down(diary, number)
    die()


def die() -> NoReturn:
    """End as under the out-of-memory killer."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


def die_until(diary: str, times: int) -> int:
    """Die on the first so many executions; returns how many there were."""
    write_down(diary, 0)
    runs = lines(diary)
    if runs <= times:
        die()
    return runs


def die_if_zero(diary: str, number: int) -> int:
    write_down(diary, number)
    if number == 0:
        die()
    return number


def segfault() -> NoReturn:
    ctypes.string_at(0)
    raise AssertionError("still alive")


def lines(diary: str | Path) -> int:
    """How many lines the diary has."""
    return len(Path(diary).read_text().splitlines())


class BadOnArrival:
    """Can be pickled, and raises when it is unpickled in a process with that pid."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def __reduce__(self) -> tuple[Any, ...]:
        return arrive_badly, (self.pid,)


def arrive_badly(pid: int) -> str:
    if os.getpid() == pid:
        raise ValueError("broken on arrival")
    return "arrived"


def make_bad_on_arrival(pid: int) -> BadOnArrival:
    return BadOnArrival(pid)


class OddError(Exception):
    """Its `__init__` takes other arguments than it hands on."""

    def __init__(self, code: int, *, place: str) -> None:
        super().__init__(f"code {code} at {place}")
        self.code = code
        self.place = place


class Unpicklable(Exception):
    """Cannot be brought to anybody."""

    def __reduce__(self) -> NoReturn:
        raise TypeError("never")


def raise_odd() -> NoReturn:
    try:
        raise KeyError("the inner one")
    except KeyError as error:
        raise OddError(7, place="the cellar") from error


def raise_unpicklable() -> NoReturn:
    raise Unpicklable("stays at home")


def return_unpicklable() -> Any:
    return threading.Lock()


class Pair(NamedTuple):
    """A named tuple."""

    first: Any
    second: Any
