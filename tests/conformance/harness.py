"""Parent side: run CPython's tests in child processes, and contain those that hang or crash.

``Campaign.run`` starts one ``runner.py`` per start method, all at once. When a test takes longer
than the limit, or takes its interpreter down, the whole process tree is ended, the test is noted,
and a new child goes on with the tests that are left.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

RUNNER = Path(__file__).with_name("runner.py")
START_METHODS = ("fork", "forkserver", "spawn")

# Seconds for one test. The longest of CPython's take about 8 s on an idle machine, their own
# deadlock alarm would ring after 300 s.
LIMIT_S = 60.0

# Hangs or crashes of one start method after which the rest is not tried: the limit times this
# bounds the time of a run with a broken executor.
MAX_RESTARTS = 4

# How often the parent looks at the records; only the reaction to a hang depends on it.
POLL_S = 0.2


@dataclass(frozen=True)
class Case:
    """One test of CPython for one start method."""

    id: str  # "test_wait.ProcessPoolForkWaitTest.test_timeout"; before 3.13 without the module
    method: str

    @property
    def key(self) -> str:
        """The test without module and start method: "WaitTest.test_timeout"."""
        _, cls, name = f".{self.id}".rsplit(".", 2)
        for mixin in ("ProcessPoolForkserver", "ProcessPoolFork", "ProcessPoolSpawn"):
            if cls.startswith(mixin):
                cls = cls.removeprefix(mixin)
                break
        return f"{cls}.{name}"

    def __str__(self) -> str:
        return f"{self.method}-{self.key}"


@dataclass(frozen=True)
class Outcome:
    """What became of one test.

    verdict is one of passed, failed, skipped, hung, crashed, "not run".
    """

    verdict: str
    detail: str = ""
    seconds: float = 0.0
    altered: bool = False  # CPython's own check saw a thread or child outlive the test
    log: str = ""  # what the test and its workers wrote to stderr


@functools.lru_cache(maxsize=1)
def list_cases() -> tuple[tuple[Case, ...], str]:
    """List CPython's tests; or none, and the reason why this Python has none."""
    listing = subprocess.run(
        [sys.executable, str(RUNNER), "--list"], capture_output=True, text=True, timeout=60
    )
    if listing.returncode != 0:
        raise RuntimeError(f"cannot list CPython's tests:\n{listing.stderr}")
    # The test modules may print while they are loaded; the listing is the last line.
    answer = json.loads(listing.stdout.splitlines()[-1])
    if "missing" in answer:
        return (), f"this Python is installed without test_concurrent_futures ({answer['missing']})"
    return tuple(Case(**test) for test in answer["tests"]), ""


@dataclass
class Campaign:
    """Runs a choice of CPython's tests on one executor class.

    Args:
        executor: The class under test as "module:Class".
        root: The directory that holds its module.
        scratch: A directory for lists, records and logs.
        limit_s: Seconds for one test.
    """

    executor: str
    root: str
    scratch: Path
    limit_s: float = LIMIT_S
    outcomes: dict[Case, Outcome] = field(default_factory=dict)
    # Things that belong to no single test: errors of module fixtures, processes left behind.
    remarks: dict[str, list[str]] = field(default_factory=dict)

    def run(self, cases: list[Case]) -> None:
        """Run the cases, the start methods at the same time; fills outcomes and remarks."""
        by_method: dict[str, list[Case]] = {}
        for case in cases:
            by_method.setdefault(case.method, []).append(case)
        with ThreadPoolExecutor(max_workers=len(START_METHODS)) as pool:
            for done in [pool.submit(self._run_method, m, c) for m, c in by_method.items()]:
                done.result()

    def _run_method(self, method: str, cases: list[Case]) -> None:
        left = {case.id: case for case in cases}
        self.remarks[method] = []
        for turn in range(MAX_RESTARTS):
            if not left:
                return
            child = _Child(self, method, turn, list(left))
            for test_id, outcome in child.run():
                self.outcomes[left.pop(test_id)] = outcome
            self.remarks[method] += child.remarks
            if not child.started_any:
                break
        for case in left.values():
            self.outcomes[case] = Outcome("not run", f"the runner gave up, see {self.scratch}")


class _Child:
    """One runner process from start to end."""

    def __init__(self, campaign: Campaign, method: str, turn: int, ids: list[str]) -> None:
        stem = campaign.scratch / f"{method}-{turn}"
        self.records = stem.with_suffix(".jsonl")
        self.log = stem.with_suffix(".log")
        id_list = stem.with_suffix(".ids")
        id_list.write_text("\n".join(ids))
        self.records.touch()
        self.limit_s = campaign.limit_s
        self.remarks: list[str] = []
        self.started_any = False
        self.command = [sys.executable, str(RUNNER), "--executor", campaign.executor]
        self.command += ["--root", campaign.root, "--limit", str(campaign.limit_s)]
        self.command += ["--ids", str(id_list), "--records", str(self.records)]

    def run(self) -> Iterator[tuple[str, Outcome]]:
        """Run the child to its end, and yield (test id, outcome)."""
        with open(self.log, "ab") as log:
            # A session of its own: whatever is left in it afterwards was left by the tests.
            process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        hung = self._wait(process)
        self._end_session(process.pid, expected_clean=not hung and process.returncode == 0)
        yield from self._read(hung, process.returncode)

    def _wait(self, process: subprocess.Popen[bytes]) -> bool:
        """Wait for the end; True when the child had to be killed because a test hung."""
        size, since = -1, time.monotonic()
        while True:
            try:
                process.wait(POLL_S)
                return False
            except subprocess.TimeoutExpired:
                if self.records.stat().st_size != size:
                    size, since = self.records.stat().st_size, time.monotonic()
                elif time.monotonic() - since > self.limit_s:
                    _kill_tree(process)
                    return True

    def _end_session(self, session: int, expected_clean: bool) -> None:
        """Kill what the tests left; a remark if nothing should have been there."""
        deadline = time.monotonic() + 3.0
        while (left := _members_of(session)) and time.monotonic() < deadline:
            time.sleep(0.05)
        for process in left:
            if expected_clean:
                self.remarks.append(f"left behind: {process!r}")
            _kill(process)

    def _read(self, hung: bool, returncode: int) -> Iterator[tuple[str, Outcome]]:
        log = self.log.read_bytes()
        start: dict[str, Any] | None = None
        for line in self.records.read_text().splitlines():
            record = json.loads(line)
            if record["event"] == "start":
                start, self.started_any = record, True
            elif record["event"] == "fixture":
                self.remarks.append(f"{record['id']}: {record['detail']}")
            else:
                assert start is not None and start["id"] == record["id"]
                yield (
                    record["id"],
                    Outcome(
                        record["outcome"],
                        record["detail"],
                        record["seconds"],
                        record["altered"],
                        _tail(log[start["log"] : record["log"]]),
                    ),
                )
                start = None
        if start is not None:
            stopped_by = f"no progress for {self.limit_s:g} s" if hung else f"exit {returncode}"
            verdict = "hung" if hung else "crashed"
            yield start["id"], Outcome(verdict, stopped_by, log=_tail(log[start["log"] :]))
        elif hung or returncode != 0:
            how = "it hung after its last test" if hung else f"it ended with code {returncode}"
            self.remarks.append(f"runner: {how}\n{_tail(log)}")


def _tail(log: bytes, limit: int = 6000) -> str:
    return log[-limit:].decode(errors="replace")


def _members_of(session: int) -> list[psutil.Process]:
    members = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                members.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue  # it ended while we looked
    return members


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return  # it was quicker


def _kill_tree(process: subprocess.Popen[bytes]) -> None:
    descendants = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    for child in descendants:
        _kill(child)
    process.wait()
