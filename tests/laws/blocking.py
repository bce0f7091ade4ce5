"""Tasks that block for minutes, unless they are stopped."""

from __future__ import annotations

import concurrent.futures
import ctypes
import importlib
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from owndist import current_executor
from owndist.errors import TaskCancelled
from tests.parity.tasks import echo, pass_gate, ring, write_down

from .tasks import total

MINUTES_S = 300


def sleep(bell: str) -> None:
    ring(bell)
    time.sleep(MINUTES_S)


def compute(bell: str) -> NoReturn:
    ring(bell)
    while True:
        pass


def wait_for_a_lock(bell: str) -> None:
    lock = threading.Lock()
    lock.acquire()
    ring(bell)
    lock.acquire()


def wait_in_select(bell: str) -> None:
    ring(bell)
    select.select([], [], [], MINUTES_S)


def wait_for_a_program(bell: str) -> None:
    with subprocess.Popen(["sleep", str(MINUTES_S)]) as program:
        try:
            ring(bell)
            program.wait()
        finally:
            program.kill()


def receive(bell: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ring(bell)
        ours.recv(1)


def join_a_thread(bell: str) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        ring(bell)
        thread.join()
    finally:
        stop.set()


def run_an_event_loop(bell: str) -> None:
    import asyncio

    async def main() -> None:
        ring(bell)
        await asyncio.sleep(MINUTES_S)

    asyncio.run(main())


class Sleeper:
    """Has a method that goes by value, and blocks."""

    def sleep(self, bell: str) -> None:
        sleep(bell)


BLOCKING: list[Callable[[str], None]] = [
    sleep,
    compute,
    wait_for_a_lock,
    wait_in_select,
    wait_for_a_program,
    receive,
    join_a_thread,
    run_an_event_loop,
    Sleeper().sleep,
]


def hold_the_interpreter(bell: str) -> None:
    """A call into C that neither ends nor looks for signals; also if it is interrupted before."""
    try:
        ring(bell)
    finally:
        ctypes.PyDLL(None).sleep(MINUTES_S)


def ask_and_tell(diary: str, bell: str, future: Any, way: str) -> Any:
    """Ask for a future in one of several ways, and tell of the end of that."""
    try:
        ring(bell)
        if way == "result":
            return future.result()
        if way == "wait":
            return len(concurrent.futures.wait([future]).done)
        return next(concurrent.futures.as_completed([future]))
    finally:
        write_down(diary, 1)


def clean_up(bell: str, diary: str, array: Any, gate: str) -> None:
    try:
        sleep(bell)
    except Exception:
        write_down(diary, -1)
    finally:
        pass_gate(gate)
        write_down(diary, total(array))


def carry_on(bell: str, gate: str) -> str:
    """Take no notice of an interrupt."""
    try:
        sleep(bell)
    except TaskCancelled:
        pass_gate(gate)
    return "all the same"


def import_and_sleep(folder: str, name: str) -> None:
    sys.path.insert(0, folder)
    try:
        importlib.import_module(name)
        time.sleep(MINUTES_S)
    finally:
        sys.path.remove(folder)


def fetch(name: str) -> Any:
    return sys.modules[name].value


class SlowToLoad:
    """Blocks when it is unpickled."""

    def __init__(self, bell: str, gate: str) -> None:
        self.paths = (bell, gate)

    def __reduce__(self) -> Any:
        return load_slowly, self.paths


def load_slowly(bell: str, gate: str) -> str:
    ring(bell)
    return pass_gate(gate, "loaded")  # type: ignore[no-any-return]


class SlowToDie:
    """Has a `__del__` in which Python drops what is raised."""

    def __init__(self, bell: str, gate: str) -> None:
        self.paths = (bell, gate)

    def __del__(self) -> None:
        ring(self.paths[0])
        pass_gate(self.paths[1])


def drop_and_sleep(bell: str, gate: str) -> None:
    dies = SlowToDie(bell, gate)
    del dies
    time.sleep(MINUTES_S)


def write_and_sleep(loaded: str, diary: str) -> None:
    write_down(diary, len(loaded))
    time.sleep(MINUTES_S)


def block_if(bell: str, number: int, diary: str) -> int:
    if number == 0:
        hold_the_interpreter(bell)
    return write_down(diary, number)  # type: ignore[no-any-return]


# -- several values


def values_and_sleep(bell: str, diary: str, count: int) -> Iterator[Any]:
    """So many values, and then none for minutes."""
    try:
        for number in range(count):
            yield bytes([number]) * 1_000_000
        sleep(bell)
    finally:
        write_down(diary, count)


# -- tasks that wait for their own


def wait_for_child(bell: str, diary: str, gate: str) -> Any:
    """Wait for a child that blocks: with a gate it runs elsewhere, else on top of this task."""
    executor = current_executor()
    try:
        if gate:
            child = executor.submit(pass_and_tell, bell, diary, gate)
            child_runs(child)  # it would run here if it were asked for before
        else:
            child = executor.submit(sleep_and_tell, bell, diary)
        return child.result()
    finally:
        write_down(diary, 1)


def child_runs(child: Any) -> None:
    while not child.running():
        time.sleep(0.001)


def sleep_and_tell(bell: str, diary: str) -> None:
    try:
        sleep(bell)
    finally:
        write_down(diary, 100)


def pass_and_tell(bell: str, diary: str, gate: str) -> None:
    try:
        ring(bell)
        pass_gate(gate)
    finally:
        write_down(diary, 100)


def tree(bell: str, diary: str, depth: int) -> Any:
    """Children of children; the last ones block, and so all wait."""
    if depth == 0:
        return sleep_and_tell(bell, diary)
    executor = current_executor()
    children = [executor.submit(tree, bell, diary, depth - 1) for _ in range(2)]
    try:
        return [child.result() for child in children]
    finally:
        write_down(diary, 1)


def stop_child(how: dict[str, bool], bell: str, diary: str) -> tuple[bool, bool, Any]:
    """Stop a child that runs in another worker; then another child runs."""
    executor = current_executor()
    block = hold_the_interpreter if how == {"force": True} else sleep
    child = executor.submit(block, bell)
    child_runs(child)
    return child.cancel(**how), child.cancelled(), executor.submit(echo, "next").result()


def stop_child_on_top(bell: str, how: dict[str, bool]) -> tuple[bool, str]:
    """A thread stops the child that runs on top of the task that waits for it."""
    child = current_executor().submit(sleep, bell)
    answers: list[bool] = []

    def stop() -> None:
        child_runs(child)
        answers.append(child.cancel(**how))
        if not answers[0]:
            answers[0] = not child.cancel(running=True)

    thread = threading.Thread(target=stop)
    thread.start()
    try:
        child.result()
    except concurrent.futures.CancelledError:
        return answers[0], "cancelled"
    finally:
        thread.join()
    return answers[0], "done"
