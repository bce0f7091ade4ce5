"""What the parity tests submit: functions that a worker can import under every start method."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

INHERITED = "as imported"  # a test changes it before the first submit, under fork
from_initializer: Any = None  # what an initializer of ours left behind in the worker


def add(x: int, y: int) -> int:
    return x + y


def echo(value: Any) -> Any:
    return value


def capture(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs


def pass_gate(path: str, value: Any = None) -> Any:
    """Block until the gate is open, then return the value."""
    fd = os.open(path, os.O_RDWR)
    try:
        os.write(fd, os.read(fd, 1))  # put the byte back: an open gate lets everybody through
    finally:
        os.close(fd)
    return value


def ring_and_pass(bell: str, gate: str, value: Any = None) -> Any:
    """Tell that the body has started, then block until the gate is open."""
    ring(bell)
    return pass_gate(gate, value)


def ring(bell: str, value: Any = None) -> Any:
    """Write one byte into the bell."""
    fd = os.open(bell, os.O_WRONLY)
    try:
        os.write(fd, b".")
    finally:
        os.close(fd)
    return value


def pass_gate_unless_zero(gate: str, diary: str, number: int) -> int:
    """Write the number down; all but the first one wait at the gate before that."""
    if number:
        pass_gate(gate)
    return write_down(diary, number)


def write_down(diary: str, number: int) -> int:
    """Append a line to the diary: a trace that the body ran."""
    with Path(diary).open("a") as file:
        file.write(f"{number}\n")
    return number


def fail(error: type[BaseException], *args: Any) -> NoReturn:
    raise error(*args)  # the line that the remote traceback shows


def fail_with_cause() -> NoReturn:
    try:
        raise KeyError("the inner one")
    except KeyError as exc:
        raise ValueError("the outer one") from exc


def fail_with_note() -> NoReturn:
    error = ValueError("noted")
    error.add_note("in the cellar")  # type: ignore[attr-defined]  # since 3.11
    raise error


def return_unpicklable() -> Any:
    return threading.Lock()


def set_first(items: Any, value: Any) -> Any:
    items[0] = value
    return items


def raise_if_three(number: int) -> int:
    if number == 3:
        raise ValueError("three")
    return number


def keep(*values: Any) -> None:
    """Initializer: keep its arguments for read_kept."""
    global from_initializer
    from_initializer = (os.getpid(), *values)


def read_kept() -> Any:
    return from_initializer


def read_kept_at(gate: str) -> Any:
    return pass_gate(gate, from_initializer)


def count_up(times: int) -> None:
    """Add to the shared counter without losing any: initargs held (lock, raw counter)."""
    _, lock, counter = from_initializer
    for _ in range(times):
        with lock:
            counter.value += 1


def put_into_queue(item: Any) -> None:
    from_initializer[1].put(item)


def put_all(queue: Any, count: int) -> None:
    """Initializer: put numbers into the queue, and keep nothing."""
    for number in range(count):
        queue.put(number)


def put_and_fail(queue: Any, item: Any) -> NoReturn:
    """Initializer: put the item into the queue, and raise."""
    queue.put(item)
    raise ValueError("no start")


def get_inherited() -> str:
    return INHERITED


def describe_process() -> dict[str, Any]:
    process, parent = multiprocessing.current_process(), multiprocessing.parent_process()
    return {
        "pid": os.getpid(),
        "process_pid": process.pid,
        "name": process.name,
        "daemon": process.daemon,
        "has_parent": parent is not None,
        "on_main_thread": threading.current_thread() is threading.main_thread(),
    }


def sum_in_child_process(numbers: list[int]) -> int:
    """Start a process of our own and take its answer over a pipe."""
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.Process(target=_send_sum, args=(theirs, numbers))
    child.start()
    try:
        assert ours.poll(30), "the child process said nothing"
        total = ours.recv()
    finally:
        child.join()
        ours.close()
        theirs.close()
    return int(total)


def _send_sum(connection: Any, numbers: list[int]) -> None:
    connection.send(sum(numbers))


class Box:
    """A picklable object with a method, a class method and a call operator."""

    def __init__(self, content: int) -> None:
        self.content = content

    def __call__(self, more: int) -> int:
        return self.content + more

    def plus(self, more: int) -> int:
        return self.content + more

    @classmethod
    def name(cls) -> str:
        return cls.__name__

    @staticmethod
    def double(number: int) -> int:
        return 2 * number


class BadArgument:
    """Raises while the driver pickles it."""

    def __reduce__(self) -> NoReturn:
        raise ValueError("not today")


class BadOnArrival:
    """Can be pickled, and raises when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return fail, (ValueError, "broken on arrival")


class SlowToPickle:
    """What a queue's thread sends a moment later than `put` has returned."""

    def __reduce__(self) -> tuple[Any, ...]:
        if multiprocessing.parent_process() is not None:
            time.sleep(0.1)
            return str, ("pickled slowly",)
        return SlowToPickle, ()


class Counter:
    """An object whose method changes it."""

    def __init__(self) -> None:
        self.count = 0

    def up(self, _: object = None) -> int:
        """Count one more."""
        self.count += 1
        return self.count

    __call__ = up


def append_and_count(seen: list[Any], item: object) -> int:
    """Change an argument."""
    seen.append(item)
    return len(seen)


_buffer = bytearray(8)


def reuse_a_buffer(number: int) -> bytearray:
    """Return an object that the next call changes."""
    _buffer[:] = number.to_bytes(8, "little")
    return _buffer


def write_when_open(gate: str, path: str) -> None:
    """Leave a thread behind that writes a file once the gate is open."""

    def write() -> None:
        pass_gate(gate)
        Path(path).write_text("written")

    threading.Thread(target=write).start()


def pid_of(_: object) -> int:
    return os.getpid()
