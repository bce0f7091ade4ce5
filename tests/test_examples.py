"""Every example runs as its reader would run it, ends well, and says what it promises."""

from __future__ import annotations

import asyncio
import email
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
TIMEOUT_S = 240  # the slowest needs 30 s on two idle cores, but they may be busy

# {example: regular expressions, each of which must match somewhere in its output}
PROMISES = {
    "quickstart.py": [
        r"(?m)^sequential +\d+ ms +0 ",
        r"(?m)^both_through_the_driver +\d+ ms +\d{3},\d{3},\d{3} ",
        r"(?m)^one_through_the_driver +\d+ ms +\d{3},\d{3},\d{3} ",
        r"(?m)^worker_to_worker +\d+ ms +(\d{1,2},)?\d{1,3} ",  # orders, not arrays
        r"All four agree",
    ],
    "corpus.py": [
        r"(?m)^\d{2,3} files, \d+ MB",
        r"Top 10 imported modules: .*\bos \d",
        r"(?m)^files that do not parse +\d",
        r"The sequential run gives the same report\.",
        r"parallel [\d.]+ s, sequential [\d.]+ s: [\d.]+ times as fast",
    ],
    "nested_tasks.py": [
        r": [\d,]+ files, [\d,]+ of them Python\n",
        r"(?m)^lines of Python: \d{1,3}(,\d{3})+$",
        r"(?m)^tasks that the driver submitted: 2$",
        r"Both ways give the same counts\.",
    ],
    "survive_a_crash.py": [
        r"workers that died: 1, tasks that ran again: 1",
        r"(?m)^  WorkerDied: .+",
        r"The pool still works: 12 squared is 144",
    ],
    "streaming.py": [
        r": \d{1,3}(,\d{3}){2} bytes in \d+ chunks, ",
        r"bytes of them that this process saw: 0\n",
        r"One after the other, they give the same\.",
    ],
    "shared_futures.py": [
        r"passed as its value: mean (0\.\d+)\n.* wanted=True, answer \1\n",
        r"wanted=False, answer None",
        r"with its own options: mean 0\.\d+",
        r"one upload, five readers: \[0\.0, 1000000\.0, 2000000\.0, 3000000\.0, 4000000\.0\]",
        r"awaited in asyncio: (0\.\d+) and \1",
    ],
}


# Of its thousands of files a test takes some dozens.
ARGUMENTS = {"corpus.py": [os.path.dirname(package.__file__) for package in (asyncio, email)]}


def run(example: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs it in an empty folder, so that it leans on nothing of this checkout but the package."""
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))
    return subprocess.run(
        [sys.executable, str(example), *ARGUMENTS.get(example.name, ())],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


@pytest.mark.timeout(TIMEOUT_S + 30)
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_example_keeps_its_promises(example: Path, tmp_path: Path) -> None:
    """Laws 2, 9, 31 and 36 as users meet them: right values, few bytes, no noise, a pool alive."""
    done = run(example, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    for promise in PROMISES[example.name]:
        assert re.search(promise, done.stdout), f"{promise!r} is not in:\n{done.stdout}"
    assert list(tmp_path.iterdir()) == []


def test_examples_and_promises_match() -> None:
    """An example nobody checks would rot."""
    assert [path.name for path in EXAMPLES] == sorted(PROMISES)
