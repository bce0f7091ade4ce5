"""Functions that tasks run which submit tasks of their own."""

from __future__ import annotations

import ctypes
import gc
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
from owndist.runtime.current import here

from . import tasks
from .helpers import PATIENCE_S, SLACK, eventually, machine_of


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


def pids_below(n: int) -> list[int]:
    """In which processes a chain of so many tasks runs, each of which waits for the next."""
    below = [] if n == 0 else current_executor().submit(pids_below, n - 1).result()
    return [os.getpid(), *below]


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


def meet(bell: str, gate: str, fn: Any, *args: Any) -> Any:
    """Run a function in a worker that has no other task: all wait until all have come."""
    tasks.ring_and_pass(bell, gate)
    return fn(*args)


def in_tables() -> tuple[int, int, int]:
    """How many objects this worker owns and borrows, and how many extents it keeps."""
    gc.collect()
    table = here.worker.machine.references  # type: ignore[union-attr]
    own = sum(type(ref) is int for ref in table.entries)
    return own, len(table.entries) - own, len(table.extents)


def process_number() -> int:
    return here.worker.machine.number  # type: ignore[union-attr]


def put_and_tell(value: Any) -> tuple[int, int, Any]:
    """The pid and the number of the owner, and the future of an object of its own."""
    return os.getpid(), process_number(), current_executor().put(value)


def owners_of(*things: Any) -> list[int]:
    """Who owns the futures, also those inside of lists."""
    return [(thing[0] if isinstance(thing, list) else thing)._address.owner for thing in things]


def meet_and_read(bell: str, gate: str, future: Any) -> Any:
    return meet(bell, gate, read, future)


def read_at_every_leaf(future: Any, depth_left: int) -> int:
    """A tree of borrowers, each in a process of its own; the size of what each leaf read."""
    if depth_left == 0:
        return len(read(future))
    executor = current_executor()
    lent = executor.shared(future)
    children = [executor.submit(read_at_every_leaf, lent, depth_left - 1) for _ in range(2)]
    # With a timeout, a task does not run its children on its own stack.
    return sum(child.result(PATIENCE_S) for child in children)


def lend_to_one_that_keeps(future: Any) -> tuple[int, int]:
    """The pids of this process, and of another one that keeps the future."""
    executor = current_executor()
    keeping = executor.submit(tasks.keep, "borrowed", executor.shared(future))
    return os.getpid(), keeping.result(PATIENCE_S)


def put_and_lend_twice(value: Any) -> tuple[int, int, int]:
    """The pids of an owner, of one that borrowed from it, and of one that borrowed from that."""
    executor = current_executor()
    future = executor.put(value)
    lending = executor.submit(lend_to_one_that_keeps, executor.shared(future))
    return (os.getpid(), *lending.result(PATIENCE_S))


def read_if_kept() -> Any:
    """What the future stands for that this process keeps, or None."""
    return tasks.kept["borrowed"].result() if "borrowed" in tasks.kept else None


def forget_all() -> None:
    tasks.kept.clear()
    gc.collect()


def hold_in_own_object(future: Any) -> Any:
    """An object of this process's, with somebody else's future inside."""
    return current_executor().put(tasks.Holder(future))


def leave_a_child(bell: str, gate: str) -> int:
    """Submit a task that nobody waits for; returns the owner's pid."""
    current_executor().submit(tasks.ring_and_pass, bell, gate)
    return os.getpid()


def own_what_another_wrote(size: int) -> tuple[int, int, Any]:
    """As `put_and_tell`, of a value that is in the memory of another process."""
    child = current_executor().submit(tasks.make_and_tell, 1, size)
    assert child.result(PATIENCE_S)[0] != os.getpid()  # with a timeout, it runs elsewhere
    return os.getpid(), process_number(), child


def die_with_children(diary: str, bell: str, gate: str, count: int) -> str:
    """The first time: own so many children, and wait for one that never ends."""
    first = not Path(diary).read_text()
    note(diary, f"parent {os.getpid()}")
    if not first:
        return "second attempt"
    executor = current_executor()
    children = [executor.submit(note_and_wait, diary, bell, gate) for _ in range(count)]
    return str(children[0].result(PATIENCE_S))


def note_and_wait(diary: str, bell: str, gate: str) -> None:
    note(diary, f"child {os.getpid()}")
    tasks.ring_and_pass(bell, gate)
    note(diary, "went on")


def own_a_child_that_waits(bell: str, gate: str) -> tuple[int, Any]:
    """The owner's pid, and the future of a child that waits at a gate."""
    return os.getpid(), current_executor().submit(tasks.ring_and_pass, bell, gate)


def forget_if(pid: int) -> None:
    """In that process only: let go of what was kept."""
    if os.getpid() == pid:
        forget_all()


def drop_many(count: int) -> int:
    """Submit tasks, drop all their futures, and see how many objects this worker keeps."""
    executor = current_executor()
    futures = [executor.submit(add, number, 1) for number in range(count)]
    for future in futures:
        future.result()
    kept = machine_of(executor).references.entries  # looked at, so that the machine is told nothing
    del futures, future
    eventually(lambda: len(kept) < count // 4, "they stay until something else happens", SLACK)
    return len(kept)
