"""The leak guard guards: each kind of leak fails its test by name, and clean tests pass."""

from __future__ import annotations

import os
import sys
import tempfile
import uuid
from functools import partial
from pathlib import Path

import psutil
import pytest

from tests import leaks

pytestmark = pytest.mark.slow  # each starts a pytest of its own

ROOT = Path(__file__).parents[1]
CONFTEST = """
    from tests import leaks
    from tests.leaks import leak_guard
    leaks.PATIENCE_S = {patience_s}
"""


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    """Runs a test module, given as text, under the guard in a pytest process of its own."""
    # Other runs on this machine do not see what leaks in there. Not below tmp_path: socket paths
    # have to be short.
    with tempfile.TemporaryDirectory(prefix="guard-") as directory:
        monkeypatch.setenv("TMPDIR", directory)
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        monkeypatch.delenv("CI", raising=False)  # pytest says everything twice there
        yield partial(run_guarded, pytester)


def run_guarded(
    pytester: pytest.Pytester, source: str, patience_s: float = 0.3
) -> pytest.RunResult:
    pytester.makeconftest(CONFTEST.format(patience_s=patience_s))
    pytester.makepyfile(source)
    return pytester.runpytest_subprocess("-p", "no:cacheprovider")


needs_shm = pytest.mark.skipif(
    not leaks.SEGMENT_DIRECTORY.is_dir(), reason="segments have no directory here"
)
needs_mark = pytest.mark.skipif(
    not hasattr(os, "memfd_create"), reason="orphans are recognised on Linux only"
)


def test_leaked_process_is_named_and_killed(run):
    result = run(
        """
        import subprocess, sys
        children = []
        def test_process():
            code = "input() # leaked child"
            children.append(subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE))
        def test_next():
            children[0].wait()
            children[0].stdin.close()
        """
    )
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["left behind by this test:", "  process: pid *# leaked child*"])


@needs_mark
@pytest.mark.parametrize("way", ["fork", "exec"])
def test_leaked_orphan_is_named_and_killed(run, way):
    result = run(
        f"""
        import os, signal, subprocess, sys
        def test_orphan():
            read, write = os.pipe()
            child = os.fork()
            if not child:
                if {way!r} == "exec":
                    code = "import signal; signal.pause()"
                    orphan = subprocess.Popen([sys.executable, "-c", code]).pid
                else:
                    orphan = os.fork()
                    if not orphan:
                        signal.pause()
                os.write(write, b"%d" % orphan)
                os._exit(0)
            os.waitpid(child, 0)
            print("orphan", os.read(read, 20).decode(), "end")
            os.close(read)
            os.close(write)
        """
    )
    result.assert_outcomes(passed=1, errors=1)
    words = result.stdout.str().split()
    pid = words[words.index("orphan") + 1]
    result.stdout.fnmatch_lines([f"  process: pid {pid},*"])
    assert not psutil.pid_exists(int(pid)) or psutil.Process(int(pid)).status() == "zombie"


def test_leaked_thread_is_named(run):
    result = run(
        """
        import threading
        event = threading.Event()
        def test_thread():
            threading.Thread(target=event.wait, name="pump", daemon=True).start()
        def test_next():
            pass  # what could not be removed is not held against the next test
        """
    )
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["  thread: 'pump' (daemon)"])


def test_leaked_descriptor_is_named(run):
    result = run(
        """
        import os
        pipe = []
        def test_descriptor():
            pipe.extend(os.pipe())
            os.close(pipe[1])
        def test_next():
            pass
        """
    )
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["  descriptor: * -> pipe:*"])
    assert result.stdout.str().count("descriptor: ") == 1


@needs_shm
def test_leaked_segment_is_named_and_unlinked(run):
    name = f"od-{uuid.uuid4().hex[:8]}-1-0"
    result = run(
        f"""
        from pathlib import Path
        def test_segment():
            Path("/dev/shm/{name}").write_bytes(b"leaked")
        def test_next():
            assert not Path("/dev/shm/{name}").exists()
        """
    )
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines([f"  segment: /dev/shm/{name}"])


@needs_shm
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc to see who holds a segment")
def test_segment_of_another_run_is_neither_blamed_nor_unlinked(run):
    session = uuid.uuid4().hex[:8]
    held = Path(f"/dev/shm/od-{session}-1-0")
    created_there = Path(f"/dev/shm/od-{session}-2-0")
    try:
        with held.open("wb"):  # by this process, which is outside the inner run
            result = run(
                f"""
                from pathlib import Path
                def test_something_else_meanwhile():
                    Path("{created_there}").touch()
                """
            )
        result.assert_outcomes(passed=1)
        assert created_there.exists()
    finally:
        held.unlink(missing_ok=True)
        created_there.unlink(missing_ok=True)


def test_leaked_temporary_file_and_directory_are_named_and_removed(run):
    result = run(
        """
        import tempfile
        from pathlib import Path
        there = Path(tempfile.gettempdir())
        def test_file():
            (there / "owndist-file").touch()
        def test_directory():
            (there / "owndist-directory").mkdir()
            (there / "owndist-directory" / "inner").touch()
        def test_next():
            assert not list(there.glob("owndist-*"))
        """
    )
    result.assert_outcomes(passed=3, errors=2)
    result.stdout.fnmatch_lines(
        ["  temporary file: */owndist-file", "  temporary file: */owndist-directory"]
    )


def test_executor_dropped_with_a_cycle_is_no_leak(run):
    """What a full collection frees is not left behind."""
    result = run(
        """
        import os
        class Holder:
            def __init__(self):
                self.me = self
                self.descriptors = os.pipe()
            def __del__(self):
                for descriptor in self.descriptors:
                    os.close(descriptor)
        def test_cycle():
            Holder()
        """
    )
    result.assert_outcomes(passed=1)


def test_what_ends_a_little_later_is_no_leak(run):
    result = run(
        """
        import subprocess, sys, threading
        def test_late():
            child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
            def end():
                child.communicate(b"go")
            timer = threading.Timer(0.2, end)
            timer.start()
        """,
        patience_s=30,
    )
    result.assert_outcomes(passed=1)


def test_unreaped_child_counts_as_gone(run):
    result = run(
        """
        import os
        def test_zombie():
            child = os.fork()
            if not child:
                os._exit(0)
            os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        """
    )
    result.assert_outcomes(passed=1)


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_stock_executor_leaves_only_known_helpers(run, method):
    """The resource tracker, the fork server and the heap of multiprocessing may stay."""
    result = run(
        f"""
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor
        import pytest
        def test_stock():
            context = multiprocessing.get_context("{method}")
            cell = context.Value("i")
            lock = context.Lock()
            with ProcessPoolExecutor(2, context) as executor:
                assert list(executor.map(abs, [-1, -2])) == [1, 2]
        """,
        patience_s=30,
    )
    result.assert_outcomes(passed=1)


def test_seed_is_shown_on_failure_and_can_be_given(pytester, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makeconftest("from tests.conftest import seed")
    pytester.makepyfile(
        """
        import random
        seeds = []
        def test_first(seed):
            seeds.append((seed, random.random()))
        def test_second(seed):
            seeds.append((seed, random.random()))
            assert seeds[0] == seeds[1]
        """
    )
    command = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider")
    monkeypatch.delenv("OWNDIST_SEED", raising=False)
    monkeypatch.delenv("CI", raising=False)
    different = pytester.run(*command)
    different.assert_outcomes(passed=1, failed=1)
    different.stdout.fnmatch_lines(["*Captured seed setup*", "OWNDIST_SEED=* repeats this run"])
    monkeypatch.setenv("CI", "true")
    again = [_seed_of(pytester.run(*command)) for _ in range(2)]
    assert again[0] == again[1]
    monkeypatch.setenv("OWNDIST_SEED", "17")
    pytester.run(*command).assert_outcomes(passed=2)


def _seed_of(result: pytest.RunResult) -> str:
    (line,) = [line for line in result.outlines if line.startswith("OWNDIST_SEED=")]
    return line
