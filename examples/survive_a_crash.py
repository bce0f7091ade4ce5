"""A task kills its own worker process; the pool lives on, and nothing else is lost.

A program that sets logging up is told of the worker that died: the logger "owndist" warns.
Run it: python examples/survive_a_crash.py
"""

import os
import signal
import tempfile
from pathlib import Path

from owndist import OwnershipExecutor
from owndist.errors import WorkerDied


def square(number: int) -> int:
    return number * number


def die_the_first_time(marker: Path) -> int:
    """The marker file tells the second attempt that there was a first."""
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


def die_always() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


with tempfile.TemporaryDirectory() as folder, OwnershipExecutor(max_workers=2) as executor:
    fragile = executor.submit(die_the_first_time, Path(folder) / "tried")
    squares = [executor.submit(square, number) for number in range(1000)]

    fragile.result()
    assert [future.result() for future in squares] == [number**2 for number in range(1000)]
    seen = executor.statistics()
    print("A worker was killed in the middle of a task:")
    print(f"  workers that died: {seen.workers_died}, tasks that ran again: {seen.tasks_retried}")
    print("  the task came to its end in another worker, and 1,000 others are all right")

    doomed = executor.options(max_retries=0).submit(die_always)
    try:
        doomed.result()
    except WorkerDied as error:  # also a concurrent.futures.process.BrokenProcessPool
        print("\nWith max_retries=0 the caller is told:")
        print(f"  {type(error).__name__}: {error}")
    else:
        raise AssertionError("a task that kills its worker has a result")

    print(f"\nThe pool still works: 12 squared is {executor.submit(square, 12).result()}")
