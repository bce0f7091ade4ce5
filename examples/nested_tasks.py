"""Tasks that submit tasks: a tree of directories is counted by a tree of tasks.

Each directory is a task. It submits a task for every directory inside it, counts its own files
meanwhile, and adds up. The worker that runs a task owns the futures of the tasks it submits: they
go straight from worker to worker, and the driver sees one number in the end.

    python examples/nested_tasks.py [directory]
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter

from owndist import OwnershipExecutor, current_executor

# Others may write there meanwhile: that would be counted by one of the two ways only.
SKIPPED = ("__pycache__", "site-packages")


def count(path: str) -> Counter[str]:
    """Files and lines by suffix, in a directory and all below it."""
    with os.scandir(path) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    executor = current_executor()
    below = [
        executor.submit(count, entry.path)
        for entry in entries
        if entry.is_dir(follow_symlinks=False) and entry.name not in SKIPPED
    ]
    total = count_files(entries)
    for future in below:
        total += future.result()
    return total


def count_files(entries: list[os.DirEntry[str]]) -> Counter[str]:
    """Files and lines by suffix, of the files among these."""
    total: Counter[str] = Counter()
    for entry in entries:
        if entry.is_file(follow_symlinks=False):
            suffix = os.path.splitext(entry.name)[1] or "none"
            total[f"{suffix} files"] += 1
            with open(entry.path, "rb") as file:
                total[f"{suffix} lines"] += file.read().count(b"\n")
    return total


def count_sequentially(path: str) -> Counter[str]:
    """The same, by one process."""
    total: Counter[str] = Counter()
    for folder, below, _ in os.walk(path):
        below[:] = [name for name in below if name not in SKIPPED]
        with os.scandir(folder) as found:
            total += count_files(list(found))
    return total


def main() -> None:
    """Count in both ways, and compare."""
    path = sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.__file__)
    begun = time.perf_counter()
    expected = count_sequentially(path)
    sequential_s = time.perf_counter() - begun
    with OwnershipExecutor() as executor:
        executor.submit(count_files, []).result()  # the pool is there from here on
        begun = time.perf_counter()
        total = executor.submit(count, path).result()
        nested_s = time.perf_counter() - begun
        statistics = executor.statistics()
    files = sum(number for name, number in total.items() if name.endswith("files"))
    print(f"{path}: {files:,} files, {total['.py files']:,} of them Python")
    print(f"lines of Python: {total['.py lines']:,}")
    print(f"one process: {sequential_s * 1000:.0f} ms, a tree of tasks: {nested_s * 1000:.0f} ms")
    print(f"tasks that the driver submitted: {statistics.tasks_submitted}")
    assert total == expected, "the two ways disagree"
    print("Both ways give the same counts.")


if __name__ == "__main__":
    main()
