"""Law 28: the driver is killed, and leaves nothing: no process, no segment, no file."""

from __future__ import annotations

import os
import signal

import pytest

from owndist import OwnershipExecutor
from tests.laws.helpers import PATIENCE_S, SLACK
from tests.store.test_store_full import needs_mounts

from .conftest import StartScript

PREAMBLE = """
import multiprocessing, os, re, sys, threading, time
import numpy as np
from owndist import OwnershipExecutor

def tell(path):
    fd = os.open(path, os.O_WRONLY)
    os.write(fd, b".")
    os.close(fd)

def hold(path):
    tell(path)
    {hold}

if __name__ == "__main__":
    context = multiprocessing.get_context({method!r})
    pool = OwnershipExecutor(3, context)
    values = [pool.submit(np.ones, 100_000 * n) for n in range(1, 6)]
    values.append(pool.put(np.ones(100_000)))
    views = [value.result() for value in values]
    bell = os.path.join(os.environ["TMPDIR"], "bell")
    os.mkfifo(bell)
    opened = os.open(bell, os.O_RDWR)
    held = [pool.submit(hold, bell) for _ in range(2)]
    queued = [pool.submit(time.sleep, 1000) for _ in range(100)]
    os.read(opened, 1)
    os.read(opened, 1)
    os.unlink(bell)
    print("ready", flush=True)
    {then}
"""

# What two of the workers are doing when it happens.
HOLDS = {
    "sleeping": "time.sleep(1000)",
    "computing": "while True: pass",
    "in a long call of C": "re.match('(a+)+$', 'a' * 64 + 'b')",
    "sorting": "[sorted(bytes(20_000_000)) for _ in range(1000)]",
    "in a user thread that never ends": (
        "threading.Thread(target=time.sleep, args=(1000,)).start(); time.sleep(1000)"
    ),
    "ignoring signals": (
        "import signal; [signal.signal(n, signal.SIG_IGN) for n in (2, 15, 1)]; time.sleep(1000)"
    ),
    "writing values": "[np.save('/dev/null', np.ones(10**6)) for _ in range(10**6)]",
}


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("hold", HOLDS)
def test_sigkill_of_the_driver_leaves_nothing(
    start_script: StartScript, hold: str, method: str
) -> None:
    """Law 28: no process within 1 s, no segment and no file within 2 s."""
    text = PREAMBLE.format(hold=HOLDS[hold], method=method, then="time.sleep(1000)")
    script = start_script(text)
    assert len(script.family) >= 3  # the template and the two workers that are held
    assert script.files_left()
    os.kill(script.process.pid, signal.SIGKILL)
    processes, files = script.seconds_until_gone()
    assert processes < 1 * SLACK
    assert files < 2 * SLACK
    assert script.errors.read_text() == ""


@pytest.mark.parametrize("victim", ["SIGTERM", "SIGHUP", "os._exit", "segfault"])
def test_other_sudden_ends_of_the_driver_leave_nothing(
    start_script: StartScript, victim: str
) -> None:
    """Law 28: signals whose default is to end the process, and ends from within."""
    then = {
        "os._exit": "sys.stdin.readline(); os._exit(3)",
        "segfault": "sys.stdin.readline(); import ctypes; ctypes.string_at(0)",
    }.get(victim, "time.sleep(1000)")
    script = start_script(PREAMBLE.format(hold=HOLDS["computing"], method="fork", then=then))
    if victim.startswith("SIG"):
        os.kill(script.process.pid, getattr(signal, victim))
    else:
        script.go_on()
    processes, files = script.seconds_until_gone()
    assert processes < 1 * SLACK
    assert files < 2 * SLACK
    assert script.errors.read_text() == ""


def test_sigkill_of_driver_and_template_leaves_no_process(start_script: StartScript) -> None:
    """Law 28: the janitor dies first; the workers see for themselves that the driver is gone.

    Nobody is left who could remove its shared memory: the next executor of the user does.
    """
    script = start_script(
        PREAMBLE.format(hold=HOLDS["computing"], method="fork", then="time.sleep(1000)")
    )
    (template,) = [p for p in script.family if p.ppid() == script.process.pid]
    os.kill(script.process.pid, signal.SIGSTOP)  # so that it makes no other template
    template.kill()
    os.kill(script.process.pid, signal.SIGKILL)
    assert script.seconds_until_no_process() < 1 * SLACK
    assert script.files_left()
    with OwnershipExecutor(1) as pool:
        assert pool.submit(abs, -1).result(PATIENCE_S) == 1
    assert not script.files_left()


@needs_mounts
def test_sigkill_of_a_driver_that_spills_leaves_no_file(start_script: StartScript) -> None:
    """Law 28: where /dev/shm is small, values go to files; these go with the driver, too."""
    script = start_script(
        SPILLING, prefix=("unshare", "-m", "sh", "-c",
                          'mount -t tmpfs -o size=4m tmpfs /dev/shm && exec "$@"', "sh"),
    )  # fmt: skip
    assert [path for path in script.files_left() if "owndist-" in path]
    os.kill(int(script.said["pid"]), signal.SIGKILL)
    processes, files = script.seconds_until_gone()
    assert processes < 1 * SLACK
    assert files < 2 * SLACK


SPILLING = """
import os, time
import numpy as np
from owndist import OwnershipExecutor

if __name__ == "__main__":
    pool = OwnershipExecutor(2)
    values = [pool.submit(np.ones, 300_000) for n in range(10)]
    values.append(pool.put(np.ones(300_000)))
    views = [value.result() for value in values]
    print("pid", os.getpid())
    print("ready", flush=True)
    time.sleep(1000)
"""
