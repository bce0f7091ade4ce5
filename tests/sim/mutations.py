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

from .planted import OWNERS_MUTATIONS

_ROOT = Path(__file__).parents[2]

# (what is wrong, file, these words, are replaced by those)
MUTATIONS = [
    (
        "a stale attempt is believed, and a result that comes twice",
        "task.py",
        "        if self.worker is not worker or self.attempt != attempt:\n"
        "            return False\n",
        "",
    ),
    (
        "a borrower's token is not registered",
        "borrowing.py",
        "self.references.add_borrower(entry, process, token, peer)",
        "pass",
    ),
    (
        "borrowers are told apart by token alone",
        "references.py",
        "entry.borrowers[process, token] = sponsor",
        "entry.borrowers = {(process, token): sponsor}",
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
        "            self._commands.append(Send(worker.number, self.start(task, worker)))\n",
        "            self._commands.append(Send(worker.number, self.start(task, worker)))\n"
        "            if type(task.args) is tuple:\n"
        "                self.references.drop(task.args)\n"
        "                task.args = b''\n",
    ),
    (
        "what stands behind a waiting task is not recalled",
        "submission.py",
        "        if self.leases.block(worker) and len(worker.queue) > 1:\n",
        "        if self.leases.block(worker) and False:\n",
    ),
    (
        "a cancelled task that comes back runs all the same",
        "submission.py",
        "        if task.cancel_asked or (task.returns",
        "        if False and (task.returns",
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
        "inheritance.py",
        "        if segments[segment]:\n            return\n",
        "",
    ),
    (
        "a raised error is judged again when the retries are used up",
        "submission.py",
        "value[0] == ERROR and task.charged < task.max_retries",
        "value[0] == ERROR",
    ),
    (
        "a worker that is back from waiting does not get its slot",
        "lessor.py",
        "            self.slots_used += 1\n            if process.holder is None:",
        "            if process.holder is None:",
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
        "slots = tuple([self.references.current(entry.value) for entry in objects])",
        "slots = tuple([entry.value for entry in objects])",
    ),
    (
        "what a dead writer was to copy is waited for",
        "spilling.py",
        "            self._moving_bytes -= self.moving.pop(key)\n",
        "            pass\n",
    ),
]


def seeds_until_found(
    file: str, old: str, new: str, most: int, program: str = "programs"
) -> tuple[int | None, str]:
    """Run a simulator on a mutated copy: how many seeds it took, and what was said."""
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
            f"from tests.sim.{program} import simulate\n"
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
    both = [("programs", mutation) for mutation in MUTATIONS]
    both += [("session", mutation) for mutation in OWNERS_MUTATIONS]
    missed = 0
    for program, (what, file, old, new) in both:
        count, said = seeds_until_found(file, old, new, most, program)
        missed += count is None
        print(f"{count or 'MISSED':>6}  {what}: {said[:90]}", flush=True)
    print(f"{len(both) - missed} of {len(both)} found (the number: seeds it took)")
    return missed


if __name__ == "__main__":
    sys.exit(main())
