"""Bugs planted on purpose, one at a time: does the simulator find each?

Every mutation is a replacement of a few words in a copy of `owndist/core`. A simulator that misses
one says nothing about that part of the protocol. `python -m tests.sim.mutations [most seeds]`
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

_ROOT = Path(__file__).parents[2]

# (what is wrong, file, these words, are replaced by those)
MUTATIONS = [
    (
        "a stale attempt is believed, and a result that comes twice",
        "submission.py",
        "            or task.worker is not worker\n            or task.attempt != attempt\n"
        "            or task.state != T_SENT\n",
        "",
    ),
    (
        "a borrower's token is not registered",
        "submission.py",
        "self.references.add_borrower(object_id, worker.number, token)",
        "pass",
    ),
    (
        "borrowers are told apart by token alone",
        "references.py",
        "entry.borrowers[process, token] = None",
        "entry.borrowers = {(process, token): None}",
    ),
    (
        "a dead worker's mappings are never forgotten",
        "references.py",
        "            self.unpin(process, key)\n",
        "            pass\n",
    ),
    (
        "a dead worker's registrations are never forgotten",
        "references.py",
        "                    if number == process:",
        "                    if False:",
    ),
    (
        "a task that only waited on a dead worker is charged",
        "submission.py",
        "            if execution_id(task.id, task.attempt) != running or",
        "            if not running or",
    ),
    (
        "a task that killed its worker is not charged",
        "submission.py",
        "            task.charged += 1\n            if task.charged <=",
        "            if task.charged <=",
    ),
    (
        "pins do not keep memory",
        "references.py",
        "if not record.holders and not record.pins:",
        "if not record.holders:",
    ),
    (
        "a second name for an extent does not hold it",
        "references.py",
        "            record.holders += 1",
        "            record.holders = 1",
    ),
    (
        "arguments are let go of at dispatch",
        "submission.py",
        "            leasing.assign(worker, task, now)\n",
        "            leasing.assign(worker, task, now)\n"
        "            if type(task.args) is tuple:\n"
        "                self.references.drop(task.args)\n"
        "                task.args = b''\n",
    ),
    (
        "release overtakes the running task's result",
        "machine.py",
        "if self._releases and self.execution.running is None:",
        "if self._releases:",
    ),
    (
        "what stands behind a waiting task is not recalled",
        "machine.py",
        "            self.submission.recall(worker)\n",
        "            pass\n",
    ),
    (
        "a cancelled task that comes back runs all the same",
        "submission.py",
        "        task.worker = None\n        if task.cancel_asked:\n",
        "        task.worker = None\n        if False:\n",
    ),
    (
        "a task is cancelled although `cancel` has given up",
        "cancelling.py",
        "        if task is not None and not self._submission.cancelling_all:\n"
        "            task.cancel_asked = False",
        "",
    ),
    (
        "futures inside a value do not keep their objects",
        "references.py",
        "                found.contained += 1\n                entry.nested += (inner,)",
        "                pass",
    ),
    (
        "a segment of a dead worker is unlinked with its first value",
        "machine.py",
        "                if not segments[segment]:",
        "                if True:",
    ),
    (
        "an outcome is asked for only once",
        "borrowing.py",
        "        borrowed.asked = False\n        return True",
        "        return True",
    ),
    (
        "a raised error is judged again when the retries are used up",
        "submission.py",
        "value[0] == ERROR and task.charged < task.max_retries",
        "value[0] == ERROR",
    ),
    (
        "a worker that is back from waiting does not get its slot",
        "leasing.py",
        "            self.slots_used += 1\n\n    def remove",
        "\n    def remove",
    ),
    (
        "a value is moved to disk while a process maps it",
        "spilling.py",
        "record.pins or record.told",
        "record.told",
    ),
    (
        "a value is moved to disk while a worker has a task that takes it",
        "spilling.py",
        " or extent_key(record.extent) in busy",
        "",
    ),
    (
        "a value is moved to disk that a borrower may read at any time",
        "spilling.py",
        "record.pins or record.told",
        "record.pins",
    ),
    (
        "what is wanted while it is being copied is moved all the same",
        "spilling.py",
        "taken = not self._is_wanted(record, self._busy())",
        "taken = True",
    ),
    (
        "a task is told where its argument lay before it was moved",
        "submission.py",
        "slots = tuple([current(entry.value) for entry in objects])",
        "slots = tuple([entry.value for entry in objects])",
    ),
    (
        "what a dead writer was to copy is waited for",
        "spilling.py",
        "            self._moving_bytes -= self.moving.pop(key)\n",
        "            pass\n",
    ),
]


def seeds_until_found(file: str, old: str, new: str, most: int) -> tuple[int | None, str]:
    """Run the simulator on a mutated copy: how many seeds it took, and what was said."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as directory:
        copy = Path(directory)
        ignored = shutil.ignore_patterns("__pycache__", "results", ".git")
        shutil.copytree(_ROOT / "owndist", copy / "owndist", ignore=ignored)
        shutil.copytree(_ROOT / "tests" / "sim", copy / "tests" / "sim", ignore=ignored)
        path = copy / "owndist" / "core" / file
        text = path.read_text()
        if text.count(old) != 1:
            raise ValueError(f"{file}: {text.count(old)} places for {old!r}")
        path.write_text(text.replace(old, new))
        code = (
            "from tests.sim.programs import simulate\n"
            f"for seed in range({most}):\n"
            "    try:\n"
            "        simulate(seed)\n"
            "    except Exception as error:\n"
            "        print(seed + 1, f'{type(error).__name__}: {error}'.splitlines()[0])\n"
            "        break\n"
        )
        environment = {**os.environ, "PYTHONPATH": directory}
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=directory,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
    if not done.stdout:
        return None, ""
    count, _, said = done.stdout.partition(" ")
    return int(count), said.strip()


def main() -> int:
    most = int(sys.argv[1]) if len(sys.argv) > 1 else 4000
    missed = 0
    for what, file, old, new in MUTATIONS:
        count, said = seeds_until_found(file, old, new, most)
        missed += count is None
        print(f"{count or 'MISSED':>6}  {what}: {said[:90]}", flush=True)
    print(f"{len(MUTATIONS) - missed} of {len(MUTATIONS)} found (the number: seeds it took)")
    return missed


if __name__ == "__main__":
    sys.exit(main())
