"""Functions that tasks run which submit tasks of their own."""

from __future__ import annotations

import ctypes
import logging
import os
import resource
import signal
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, as_completed, wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from owndist import current_executor


def square(x: int) -> int:
    return x * x


def add(a: Any, b: Any) -> Any:
    return a + b


def sum_of_squares(count: int) -> int:
    executor = current_executor()
    return sum(future.result() for future in [executor.submit(square, i) for i in range(count)])


def fib(n: int) -> int:
    if n < 2:
        return n
    executor = current_executor()
    one, two = executor.submit(fib, n - 1), executor.submit(fib, n - 2)
    return int(one.result() + two.result())


def depth(n: int) -> int:
    return 0 if n == 0 else 1 + int(current_executor().submit(depth, n - 1).result())


def gather(way: str, count: int) -> list[int]:
    executor = current_executor()
    futures = [executor.submit(square, i) for i in range(count)]
    if way == "wait":
        done, pending = wait(futures)
        assert not pending
        return sorted(future.result() for future in done)
    if way == "as_completed":
        return sorted(future.result() for future in as_completed(futures))
    if way == "first":
        left, found = set(futures), []
        while left:
            done, left = wait(left, return_when=FIRST_COMPLETED)
            found += [future.result() for future in done]
        return sorted(found)
    if way == "map":
        return list(executor.map(square, range(count)))
    if way == "thread":
        found = []
        thread = threading.Thread(target=lambda: found.extend(f.result() for f in futures))
        thread.start()
        thread.join()
        return found
    raise ValueError(way)


def executor_as_argument(executor: Any, n: int) -> int:
    return int(executor.submit(square, n).result())


def make_array(megabytes: float, value: int) -> Any:
    return np.full(int(megabytes * 131_072), value, np.int64)


def chain_of_arrays(length: int) -> Any:
    """A chain of children; the last one's future is returned, not its value."""
    executor = current_executor()
    future = executor.submit(make_array, 1, 0)
    for _ in range(length):
        future = executor.submit(add, future, 1)
    return future


def pass_on(future: Any) -> Any:
    """Return a future that this task only borrows."""
    return [future]


def read(future: Any) -> Any:
    assert isinstance(future, Future)
    return future.result()


def lend_to_child(future: Any) -> Any:
    """A borrower's child borrows, too."""
    return current_executor().submit(read, current_executor().shared(future)).result()


_kept: list[Any] = []


def keep(future: Any) -> int:
    _kept.append(future)
    return os.getpid()


def put_here(value: Any) -> Any:
    """The future of an object that this worker owns."""
    return current_executor().put(value)


def die(path: str) -> int:
    """The first time it kills its process."""
    try:
        Path(path).touch(exist_ok=False)
    except FileExistsError:
        return 7
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def note(path: str, text: str) -> str:
    with open(path, "a") as file:
        file.write(text + "\n")
    return text


def submit_and_die(diary: str, marker: str, gate: str) -> str:
    """Children wait at a gate (a named pipe); their owner is killed the first time."""
    executor = current_executor()
    running = executor.submit(wait_at, gate, diary)
    queued = [
        executor.submit(
            note,
            diary,
            f"queued {i}",
        )
        for i in range(3)
    ]
    try:
        Path(marker).touch(exist_ok=False)
    except FileExistsError:
        return "second attempt"
    deadline = time.monotonic() + 30
    while "running" not in Path(diary).read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    del queued, running
    os.kill(os.getpid(), signal.SIGKILL)
    return ""


def wait_at(gate: str, diary: str) -> str:
    note(diary, f"running {os.getpid()}")
    with open(gate) as pipe:
        pipe.read()
    return note(diary, "went through")


def log_of_a_retry(path: str, died: str) -> int:
    """A child is run again by another worker; what is logged here of that goes to a file."""
    handler = logging.FileHandler(path)
    logging.getLogger("owndist.worker").addHandler(handler)
    # With a timeout, so that it does not run here.
    return int(current_executor().submit(die, died).result(60))


def refused_streams(x: int) -> int:
    """A task asks for streams, with arguments of all sizes and kinds, and then goes on."""
    streams = current_executor().options(num_returns="stream")
    for argument in (x, bytes(1_000_000), threading.Lock()):
        with pytest.raises(RuntimeError, match="cannot open a stream"):
            streams.submit(iter, argument)
    return int(current_executor().submit(square, x).result())


_tried = []


def try_for_an_executor() -> None:
    """An initializer."""
    try:
        current_executor()
    except RuntimeError as error:
        _tried.append(str(error))


def what_was_tried() -> str:
    return str(_tried[0])


def hold_the_interpreter(diary: str) -> None:
    """Nothing else runs in this process from here on."""
    note(diary, f"stuck {os.getpid()}")
    ctypes.PyDLL(None).sleep(60)


def leave_one_stuck(diary: str, marker: str) -> str:
    """The first time, a child is stuck in another worker."""
    try:
        Path(marker).touch(exist_ok=False)
    except FileExistsError:
        return "second attempt"
    note(diary, f"parent {os.getpid()}")
    current_executor().submit(hold_the_interpreter, diary).result(60)
    return "first attempt"


def child_elsewhere(gate: str, x: int) -> int:
    """Once the gate is open, a child runs in another worker."""
    with open(gate) as pipe:
        pipe.read(1)
    return int(current_executor().submit(square, x).result(60))


def child_without_descriptors(marker: str) -> int:
    """The first time, this process cannot be given a link to the child's worker."""
    executor = current_executor()
    executor.put(1)  # what has to be imported is
    try:
        Path(marker).touch(exist_ok=False)
    except FileExistsError:
        pass  # not the first time
    else:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    return int(executor.submit(square, 5).result(60))


def map_reduce(depth_left: int, seed: int) -> int:
    """A tree of tasks whose sum does not depend on who dies on the way."""
    if depth_left == 0:
        return seed * seed % 1000
    executor = current_executor()
    children = [executor.submit(map_reduce, depth_left - 1, seed * 3 + i) for i in range(3)]
    return sum(child.result() for child in children) % 1_000_003


def map_reduce_serially(depth_left: int, seed: int) -> int:
    if depth_left == 0:
        return seed * seed % 1000
    return sum(map_reduce_serially(depth_left - 1, seed * 3 + i) for i in range(3)) % 1_000_003
