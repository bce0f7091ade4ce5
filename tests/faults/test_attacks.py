"""What hostile or unlucky programs do; each of these once hung, lost a task or ran for ever."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, wait
from pathlib import Path

import pytest

from owndist import OwnershipExecutor
from owndist.errors import WorkerDied

FORK = multiprocessing.get_context("fork")
PATIENCE_S = 60


def identity(value):  # type: ignore[no-untyped-def]
    return value


def close_everything(path: str) -> str:
    """As programs do that make themselves daemons."""
    os.closerange(3, 256)
    return path


def close_everything_and_stay(path: str) -> None:
    os.closerange(3, 256)
    fd = os.open(path, os.O_RDONLY)
    os.read(fd, 1)  # nobody ever writes


def leave_a_child_and_die(path: str) -> None:
    if os.fork() == 0:
        fd = os.open(path, os.O_RDONLY)
        os.read(fd, 1)  # until the test lets it go
        os._exit(0)
    os.kill(os.getpid(), 9)


def fork_and_come_back(how: str) -> int:
    """The child comes back from the task, which tells how the child ended."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(2)
    signal.alarm(PATIENCE_S)
    if how == "raise":
        raise ValueError("in the child")
    if how == "exit":
        sys.exit(3)
    return -1


def fork_in_a_stream():  # type: ignore[no-untyped-def]
    yield 1
    yield fork_and_come_back("return")
    yield 2


def end_a_stream_in_a_child():  # type: ignore[no-untyped-def]
    """The child ends the generator, which the worker goes on with once the child has ended."""
    yield 1
    pid = os.fork()
    if not pid:
        os.close(2)
        signal.alarm(PATIENCE_S)
        return
    yield os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    yield from range(2, 20)


def use_the_executor_in_a_child(executor) -> list[str]:  # type: ignore[no-untyped-def]
    future = executor.submit(identity, 1)
    reading, writing = os.pipe()
    if os.fork() == 0:
        for use in (
            lambda: executor.submit(identity, 2),
            lambda: future.result(),
            lambda: wait([future]),  # would run it here, and a second time in the worker
        ):
            try:
                use()
            except RuntimeError as error:
                os.write(writing, f"{error}\n".encode())
        os._exit(0)
    os.close(writing)
    with open(reading) as told:
        return told.read().splitlines()


def ask(future) -> int:  # type: ignore[no-untyped-def]
    return future.result() + 1


@pytest.fixture
def fifo(tmp_path):  # type: ignore[no-untyped-def]
    path = tmp_path / "fifo"
    os.mkfifo(path)
    # Held open for writing, so that readers wait; closed at the end, so that they go.
    fd = os.open(path, os.O_RDWR)
    yield str(path)
    os.close(fd)


def test_the_last_task_of_a_burst_runs_although_nobody_asks_for_results() -> None:
    """Law 52: a task left unsent in a burst is sent when the burst is over."""
    with OwnershipExecutor(2, FORK) as pool:
        for _ in range(40):
            futures = [pool.submit(identity, number) for number in range(96)]
            wait(futures, timeout=PATIENCE_S)
            last = pool.submit(identity, -1)
            assert wait([last], timeout=PATIENCE_S).done == {last}


def test_a_steady_flow_of_submissions_keeps_nobody_else_waiting() -> None:
    """Law 52: the reader sleeps while somebody submits without end, but not for ever."""
    with OwnershipExecutor(3, FORK) as pool:
        done = threading.Event()

        def wait_now_and_then() -> None:
            for _ in range(4):
                pool.submit(time.sleep, 0.02).result(PATIENCE_S)
            done.set()

        waiter = threading.Thread(target=wait_now_and_then)
        waiter.start()
        submitted = 0
        while submitted < 60_000 and not done.is_set():
            pool.submit(identity, submitted)
            submitted += 1
            sum(range(1_500))
        assert done.is_set()
        waiter.join(PATIENCE_S)


def test_a_task_that_closes_all_descriptors_is_not_run_for_ever() -> None:
    """Law 33: its reply is found in the crash record, or each try is charged."""
    with OwnershipExecutor(1, FORK) as pool:
        closing = pool.submit(close_everything, "x")
        error = closing.exception(PATIENCE_S)
        assert error is None or isinstance(error, WorkerDied)
        assert pool.statistics().workers_died <= 4
        assert pool.submit(identity, 1).result(PATIENCE_S) == 1


def test_a_task_that_closes_all_descriptors_and_stays_is_ended(fifo: str) -> None:
    """Law 46: nobody would ever hear of it again."""
    with OwnershipExecutor(2, FORK) as pool:
        deaf = pool.options(max_retries=0).submit(close_everything_and_stay, fifo)
        with pytest.raises(WorkerDied):
            deaf.result(PATIENCE_S)
        assert pool.submit(identity, 1).result(PATIENCE_S) == 1


def test_a_death_is_noticed_although_a_child_of_the_task_lives_on(fifo: str) -> None:
    """Laws 32 and 36: the child holds the dead worker's pipes open."""
    with OwnershipExecutor(1, FORK) as pool:
        died = pool.options(max_retries=0).submit(leave_a_child_and_die, fifo)
        with pytest.raises(WorkerDied):
            died.result(PATIENCE_S)
        assert pool.submit(identity, 2).result(PATIENCE_S) == 2
        with open(fifo, "wb", buffering=0) as writer:
            writer.write(b"x")  # lets the child go


@pytest.mark.parametrize(("how", "status"), [("return", 0), ("raise", 1), ("exit", 3)])
def test_a_child_that_comes_back_from_a_task_ends(how: str, status: int) -> None:
    """Law 69: it would take messages from the worker, and run its tasks a second time."""
    with OwnershipExecutor(1, FORK) as pool:
        assert pool.submit(fork_and_come_back, how).result(PATIENCE_S) == status
        again = [pool.submit(identity, number) for number in range(40)]
        assert [future.result(PATIENCE_S) for future in again] == list(range(40))


def test_a_child_that_goes_on_with_a_stream_ends() -> None:
    """Law 69: its values would come twice."""
    with OwnershipExecutor(1, FORK) as pool:
        values = pool.options(num_returns="stream").submit(fork_in_a_stream)
        assert [value.result(PATIENCE_S) for value in values] == [1, 0, 2]


def test_a_child_that_ends_a_stream_ends_alone() -> None:
    """Law 69: the stream goes on in the worker, and so do the tasks after it."""
    with OwnershipExecutor(1, FORK) as pool:
        values = pool.options(num_returns="stream").submit(end_a_stream_in_a_child)
        assert [value.result(PATIENCE_S) for value in values] == [1, 0, *range(2, 20)]
        again = [pool.submit(identity, number) for number in range(40)]
        assert [future.result(PATIENCE_S) for future in again] == list(range(40))


def test_a_child_of_a_task_cannot_use_the_executor() -> None:
    """Law 69: it is told so, and does not wait for a lock that nobody there will release."""
    with OwnershipExecutor(2, FORK) as pool:
        told = pool.submit(use_the_executor_in_a_child, pool).result(PATIENCE_S)
        assert len(told) == 3
        assert all("belongs to the process that this one was forked from" in text for text in told)


def test_more_waiting_tasks_than_processes_are_allowed_do_not_hang(fifo: str) -> None:
    """Law 53: a task that another one waits for can always run."""
    with OwnershipExecutor(1, FORK) as pool:
        first = pool.submit(identity, 1)
        wanted = pool.submit(identity, first)
        asking = [pool.submit(ask, pool.shared(wanted)) for _ in range(12)]
        assert [future.result(PATIENCE_S) for future in asking] == [2] * 12


def test_many_callbacks_that_wait_for_another_future_all_run() -> None:
    """Each one reads on for itself; they do not nest."""
    with OwnershipExecutor(2, FORK) as pool:
        gate: Future[int] = Future()  # none may be done before its callback is there
        futures = [pool.submit(identity, gate) for _ in range(1500)]
        last = pool.submit(identity, gate)
        seen: list[int] = []
        for future in futures:
            future.add_done_callback(lambda _: seen.append(last.result(PATIENCE_S)))
        gate.set_result(7)
        wait(futures, timeout=PATIENCE_S)
    assert seen == [7] * 1500


def test_executors_that_start_at_the_same_time_all_end() -> None:
    """Laws 27 and 64: none keeps a copy of another's control socket."""
    for _ in range(10):
        pools = [OwnershipExecutor(1, FORK) for _ in range(3)]
        barrier = threading.Barrier(3)

        def use(pool: OwnershipExecutor, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            assert pool.submit(identity, 1).result(PATIENCE_S) == 1

        threads = [threading.Thread(target=use, args=(pool,)) for pool in pools]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for pool in pools:
            pool.shutdown()


REDEFINED = """
import multiprocessing
from owndist import OwnershipExecutor
def helper(): return "old"
K = 1
def f(): return helper(), K
with OwnershipExecutor(2, multiprocessing.get_context("fork")) as pool:
    print(pool.submit(f).result())
    def helper(): return "new"
    K = 2
    print({pool.submit(f).result() for _ in range(20)}, set(pool.map(lambda _: f(), range(40))))
"""

FEW_DESCRIPTORS = """
import multiprocessing, resource
from concurrent.futures.process import BrokenProcessPool
from owndist import OwnershipExecutor
pool = OwnershipExecutor(8, multiprocessing.get_context("fork"))
assert pool.submit(abs, -1).result() == 1
resource.setrlimit(resource.RLIMIT_NOFILE, (12, 12))
futures = []
try:
    futures = [pool.submit(abs, n) for n in range(100)]
    print([f.result(60) for f in futures] == list(range(100)) or "broken")
except (BrokenProcessPool, OSError) as error:
    print("broken")
pool.shutdown()
print("ended")
"""

# Without privileges, and with more descriptors on their way in sockets than it may have open, a
# process can send no more: ETOOMANYREFS.
NO_SENDING = """
import ctypes, multiprocessing, resource, socket
from concurrent.futures.process import BrokenProcessPool
from owndist import OwnershipExecutor
pool = OwnershipExecutor(4, multiprocessing.get_context("fork"))
assert pool.submit(abs, -1).result() == 1
header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
assert ctypes.CDLL(None).capset(header, none) == 0
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
one, other = socket.socketpair()
socket.send_fds(one, [b"x"], [one.fileno()] * 100)
try:
    futures = [pool.submit(abs, -n) for n in range(100)]
    print([f.result(60) for f in futures] == list(range(100)))
except BrokenProcessPool as error:
    print("Too many references" in str(error))
pool.shutdown()
print("ended")
"""

TEMPLATE_GONE = """
import multiprocessing, os, resource, signal, sys, time
from owndist import OwnershipExecutor
def fill(limit):
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        while True:
            yield os.open("/dev/null", os.O_RDONLY)
    except OSError:
        pass
_, hard = soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
pool = OwnershipExecutor(1, multiprocessing.get_context("fork"))
template = pool.submit(os.getppid).result()
taken = list(fill(64))
os.kill(template, signal.SIGKILL)
while pool.submit(os.getppid).result(60) == template:  # its worker works on
    pass
if sys.argv[1:] == ["late"]:
    for fd in taken:
        os.close(fd)
    assert isinstance(pool.options(max_retries=9).submit(os._exit, 1).exception(60), Exception)
    print(pool.submit(abs, -1).result(60))
pool.shutdown()
print("ended")
"""

NO_THREAD = """
import multiprocessing, resource, threading
from owndist import OwnershipExecutor
pool = OwnershipExecutor(1, multiprocessing.get_context("fork"), store_bytes=20 << 20)
assert pool.submit(abs, -1).result() == 1
pages = int(open("/proc/self/statm").read().split()[0])
threading.stack_size(1 << 40)
resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + (1 << 30), resource.RLIM_INFINITY))
values = [pool.put(bytes(1 << 20)) for _ in range(30)]
print({len(value.result()) for value in values}, pool.statistics().spills)
pool.shutdown()
print("ended")
"""

NO_MAPPING = """
import asyncio, multiprocessing, os, resource
from owndist import OwnershipExecutor
async def wait_for(future):
    return len(await asyncio.wait_for(asyncio.wrap_future(future), 60))
pool = OwnershipExecutor(1, multiprocessing.get_context("fork"))
assert len(pool.put(bytes(1 << 20)).result()) == 1 << 20  # all is imported
value = pool.submit(bytes, 1 << 20)
assert value.exception() is None
loop = asyncio.new_event_loop()
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
taken = []
try:
    while True:
        taken.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
for ask in (value.result, lambda: loop.run_until_complete(wait_for(value))):
    try:
        ask()
    except OSError as error:
        print(error.strerror)
os.closerange(taken[-2], taken[-1] + 1)
print(len(value.result()))
loop.close()
pool.shutdown()
"""


def run(script: str, *arguments: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-", *arguments],
        input=script,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_redefined_helper_is_seen_by_its_unchanged_caller() -> None:
    """A notebook redefines helpers all day; forked workers have the old ones."""
    assert run(REDEFINED) == ["('old', 1)", "{('new', 2)} {('new', 2)}"]


def test_a_process_without_descriptors_ends_with_an_error_and_not_never() -> None:
    """Law 46: workers that cannot be started break the pool after a few tries."""
    lines = run(FEW_DESCRIPTORS)
    assert lines[-1] == "ended" and lines[0] in ("True", "broken")


def test_a_worker_whose_descriptors_cannot_be_sent_is_not_waited_for() -> None:
    """Laws 27 and 46: nobody would ever tell of its end."""
    assert run(NO_SENDING) == ["True", "ended"]


@pytest.mark.parametrize("late", [(), ("late",)])
def test_a_template_is_replaced_when_there_are_descriptors_again(late: tuple[str, ...]) -> None:
    """Laws 27 and 36: until then its workers work on."""
    assert run(TEMPLATE_GONE, *late) == ["1", "ended"] if late else ["ended"]


def test_values_are_written_although_no_thread_can_be_had_to_spill() -> None:
    """Law 46: they go to files."""
    assert run(NO_THREAD) == ["{1048576} 0", "ended"]


def test_a_value_that_cannot_be_mapped_now_can_be_later() -> None:
    """Law 67: a want of descriptors is not the value's outcome."""
    assert run(NO_MAPPING) == ["Too many open files"] * 2 + ["1048576"]


DEAF_TO_CHILDREN = """
import multiprocessing, os, signal, sys
from owndist import OwnershipExecutor
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
with OwnershipExecutor(1, multiprocessing.get_context("fork")) as pool:
    template = pool.submit(os.getppid).result()
    assert pool.options(max_retries=0).submit(os._exit, 3).exception().exitcode == 3
    print(pool.submit(os.getppid).result() == template)
"""

ALARMED = """
import random, signal, time
from owndist import OwnershipExecutor
class Alarm(Exception): pass
def ring(*_): raise Alarm
signal.signal(signal.SIGALRM, ring)
until = time.monotonic() + 3
while time.monotonic() < until:
    pool = OwnershipExecutor(2)
    signal.setitimer(signal.ITIMER_REAL, random.uniform(0.001, 0.03))
    futures = []
    try:
        for _ in range(3000):  # the alarm may also be lost, in a finalizer
            futures.append(pool.submit(abs, -1))
    except (Alarm, RuntimeError):  # RuntimeError: the executor noticed before
        pass
    signal.setitimer(signal.ITIMER_REAL, 0)
    for future in futures:
        try:
            assert future.result(30) == 1
        except Exception as error:
            # An Alarm while the arguments are pickled cannot be told from an error of theirs.
            fine = ("BrokenProcessPool", "CancelledError", "Alarm")
            assert type(error).__name__ in fine, repr(error)
    pool.kill_workers()
print("ended")
"""


def test_a_program_that_ignores_sigchld_still_hears_how_workers_end() -> None:
    """And its template, which reaps them, lives on."""
    assert run(DEAF_TO_CHILDREN) == ["True"]


def test_an_exception_out_of_a_signal_handler_leaves_no_half_done_tables() -> None:
    """Law 27: it strikes anywhere in `submit`, in many rounds; every future still has an end."""
    assert run(ALARMED) == ["ended"]


PACKAGE_SCRIPT = """
import multiprocessing
from owndist import OwnershipExecutor

def task():
    from .helper import VALUE
    return VALUE

if __name__ == "__main__":
    for method in ("fork", "spawn"):
        with OwnershipExecutor(1, multiprocessing.get_context(method)) as pool:
            print(pool.submit(task).result())
"""


def test_tasks_of_a_package_run_as_a_script_may_import_from_it(tmp_path: Path) -> None:
    """`python -m package.script`, and a relative import inside a task."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "helper.py").write_text("VALUE = 5")
    (package / "script.py").write_text(PACKAGE_SCRIPT)
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-m", "package.script"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert (done.stdout, done.stderr) == ("5\n5\n", "")
