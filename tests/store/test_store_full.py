"""Too little shared memory, none at all, and no disk either."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

from owndist.store.ledger import Ledger, create_ledger
from owndist.store.local import Store
from tests.store.pickled import run_python, segments

MakeStore = Callable[..., Store]


def _may_mount() -> bool:
    """Whether this user may make mounts that only one process and its children see."""
    try:
        return (
            sys.platform == "linux"
            and subprocess.run(
                ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"],
                capture_output=True,
            ).returncode
            == 0
        )
    except FileNotFoundError:
        return False


needs_mounts = pytest.mark.skipif(not _may_mount(), reason="needs root, unshare and mount")

# Run before each script: a store, what it logged, and a round trip.
PREAMBLE = """
import logging, os, resource, sys
from owndist.errors import StoreFull
from owndist.store.local import Store, sweep
session, spill = sys.argv[1:3]
lines = []
class Keep(logging.Handler):
    def emit(self, record):
        lines.append((record.name, record.levelname, record.getMessage()))
logging.getLogger("owndist.store").addHandler(Keep())
logging.getLogger("owndist.store").propagate = False
counts = []
store = Store(session, 1, spill, cache_limit_bytes=1 << 30, on_segment=counts.append)
def put(size, byte=b"a"):
    return store.write(b"head", [byte * size])
def same(stored, size, byte=b"a"):
    _, head, (view,) = store.read(stored)
    assert head == b"head" and bytes(view) == byte * size
    view[:1] = b"!"
    assert bytes(store.read(stored)[2][0]) == byte * size
def in_file(stored):
    return stored[0][2].startswith(spill + "/")
def used():
    room = os.statvfs("/dev/shm")
    return (room.f_blocks - room.f_bfree) * room.f_frsize
"""


def run_small(script: str, session: str, spill: Path, *, shm: str, disk: str = "") -> str:
    """Runs a script where /dev/shm has that size, and the spill directory's file system too."""
    mounts = f"mount -t tmpfs -o size={shm} tmpfs /dev/shm"
    if disk:
        mounts += f" && mount -t tmpfs -o size={disk} tmpfs {spill.parent}"
    prefix = ("unshare", "-m", "sh", "-c", f'{mounts} && exec "$@"', "sh")
    return run_python(PREAMBLE + script, session, str(spill), prefix=prefix)


@needs_mounts
def test_values_that_do_not_fit_go_to_files(session: str, spill: Path) -> None:
    """A stock container has 64 MB, here it is 1 MiB. No SIGBUS, one warning, every value whole."""
    output = run_small(
        """
stored = {size: put(size) for size in (300_000, 3_000_000, 2_000_000, 200_000, 900_000, 150_000)}
for size, one in stored.items():
    same(one, size)
print([in_file(one) for one in stored.values()])
print(oct(os.stat(spill).st_mode & 0o777), oct(os.stat(stored[3_000_000][0][2]).st_mode & 0o777))
print(len(lines), *lines[0][:2])
print(lines[0][2])
for one in stored.values():
    store.free(one[0][1])
print(store.live_bytes, os.listdir(spill))
# What was freed is room again: for these it is made by giving back what the arena keeps.
one = put(1_000_000, b"b")
print(in_file(one), used() >= 1_000_000)
same(one, 1_000_000, b"b")
two = put(500_000)
print(in_file(two), len(lines))
store.close()
print(os.listdir("/dev/shm"), os.listdir(spill))
sweep(session, spill)
print(os.path.exists(spill))
""",
        session,
        spill,
        shm="1m",
    )
    lines = output.split("\n")
    # The arena's first values fit; then 150,000 fits into what is left.
    assert lines[0] == "[False, True, True, False, True, False]"
    assert lines[1:3] == ["0o700 0o600", "1 owndist.store WARNING"]
    warning = lines[3]
    assert "3,002,368 bytes" in warning and "--shm-size" in warning and str(spill) in warning
    assert "of 1,048,576 bytes free in /dev/shm" in warning
    assert lines[4:] == ["0 []", "False True", "True 1", "[] []", "False"]


@needs_mounts
def test_memory_that_is_kept_makes_room_before_files_are_used(session: str, spill: Path) -> None:
    output = run_small(
        """
for size in (3 << 20, 5 << 20, 7 << 20, 4 << 20, 1 << 20, 7 << 20):
    one = put(size)
    assert not in_file(one), size
    same(one, size)
    store.free(one[0][1])
print(lines)
store.close()
""",
        session,
        spill,
        shm="8m",
    )
    assert output == "[]"


@needs_mounts
def test_full_memory_makes_neither_segments_nor_pages_pile_up(session: str, spill: Path) -> None:
    """Law 27: what was tried in vain leaves nothing."""
    output = run_small(
        """
keep = [put(900_000), put(400_000)]  # the second one finds no room, and makes the arena tight
before = sorted(os.listdir("/dev/shm")), used()
spilled = [put(size) for size in (500_000, 400_000, 4_000_000) * 5]
assert all(map(in_file, spilled))
assert (sorted(os.listdir("/dev/shm")), used()) == before
assert counts == list(range(1, len(counts) + 1))
for one in keep + spilled:
    store.free(one[0][1])
print(os.listdir(spill))
store.close()
""",
        session,
        spill,
        shm="1m",
    )
    assert output == "[]"


@needs_mounts
def test_a_memory_that_others_have_filled_is_left_alone(session: str, spill: Path) -> None:
    """Not even the first arena fits: no segment stays behind, and later there is room again."""
    output = run_small(
        """
with open("/dev/shm/foreign", "wb") as file:
    file.write(bytes(1 << 20))
stored = [put(size) for size in (150_000, 2_500_000) * 3]
print(all(map(in_file, stored)), os.listdir("/dev/shm"))
os.unlink("/dev/shm/foreign")
print(in_file(put(150_000)))
store.close()
print(os.listdir("/dev/shm"), os.listdir(spill))
""",
        session,
        spill,
        shm="1m",
    )
    assert output.split("\n") == ["True ['foreign']", "False", "[] []"]


@needs_mounts
def test_no_room_anywhere_is_an_error_that_says_so_and_passes(session: str, spill: Path) -> None:
    output = run_small(
        """
one = put(600_000)
two = put(1_500_000, b"b")
try:
    put(3_000_000)
except StoreFull as error:
    print(isinstance(error, MemoryError), error)
print(len(os.listdir(spill)), len(lines))
same(one, 600_000)
same(two, 1_500_000, b"b")
store.free(two[0][1])
three = put(1_800_000)  # there is room again
same(three, 1_800_000)
store.close()
""",
        session,
        spill,
        shm="1m",
        disk="2m",
    )
    first, second = output.split("\n")
    assert first.startswith("True no room for a value of 3,002,368 bytes")
    assert f"bytes free in {spill}" in first and "bytes free in /dev/shm" in first
    assert second == "1 1"


@needs_mounts
def test_many_processes_fill_a_small_memory_without_a_crash(session: str, spill: Path) -> None:
    """The way to SIGBUS: all map, none reserves. Here nobody dies, and no value is wrong."""
    output = run_small(
        """
import random
children = []
for number in range(4):
    pid = os.fork()
    if not pid:
        code = 1
        try:
            rng = random.Random(number)
            store = Store(session, 2 + number, spill, cache_limit_bytes=1 << 20)
            live = []
            for step in range(150):
                size, byte = rng.choice([110_000, 500_000, 3_000_000]), bytes([step])
                live.append((put(size, byte), size, byte))
                if len(live) > 4:
                    same(*live[0])
                    store.free(live.pop(rng.randrange(4))[0][0][1])
            for one in live:
                same(*one)
            store.close()
            code = 0
        finally:
            os._exit(code)
    children.append(pid)
print([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children])
print(os.listdir("/dev/shm"), os.listdir(spill))
""",
        session,
        spill,
        shm="6m",
    )
    assert output.split("\n") == ["[0, 0, 0, 0]", "[] []"]


def test_without_shared_memory_every_value_is_a_file(session: str, spill: Path) -> None:
    """A Python without `_posixshmem`: as where the system has no shm_open."""
    output = run_python(
        "import sys; sys.modules['_posixshmem'] = None\n"
        + PREAMBLE
        + """
stored = [put(size) for size in (150_000, 9_000_000)]
print([in_file(one) for one in stored])
for one, size in zip(stored, (150_000, 9_000_000)):
    same(one, size)
store.free(stored[0][0][1])
print(len(os.listdir(spill)), len(lines))
store.close()
sweep(session, spill)
print(os.path.exists(spill))
""",
        session,
        str(spill),
    )
    assert output.split("\n") == ["[True, True]", "1 1", "False"]
    assert segments(session) == []


@needs_mounts
def test_a_missing_dev_shm_means_files(session: str, spill: Path) -> None:
    """As in some sandboxes: the call is there, the file system is not, or may not be written."""
    output = run_python(
        PREAMBLE + "print(in_file(put(150_000)))\nprint(lines[0][2])\nstore.close()\n",
        session,
        str(spill),
        prefix=(
            "unshare",
            "-m",
            "sh",
            "-c",
            'mount -t proc proc /dev/shm && exec "$@"',  # not a place for files
            "sh",
        ),
    )
    assert output.startswith("True\nno room for a value of 151,552 bytes")


def test_a_spill_directory_that_others_may_write_to_is_refused(session: str, spill: Path) -> None:
    spill.mkdir()
    spill.chmod(0o777)
    output = run_python(
        "import sys; sys.modules['_posixshmem'] = None\n"
        + PREAMBLE
        + """
try:
    put(150_000)
except StoreFull as error:
    print("others may write to it" in str(error), os.listdir(spill))
""",
        session,
        str(spill),
    )
    assert output == "True []"


def test_a_spill_directory_behind_a_link_is_refused(session: str, spill: Path) -> None:
    real = spill.with_name("real")
    real.mkdir(mode=0o700)
    spill.symlink_to(real)
    output = run_python(
        "import sys; sys.modules['_posixshmem'] = None\n"
        + PREAMBLE
        + """
try:
    put(150_000)
except StoreFull:
    print(os.listdir(spill))
""",
        session,
        str(spill),
    )
    assert output == "[]"


def test_a_limit_on_file_size_is_no_crash(session: str, spill: Path) -> None:
    """RLIMIT_FSIZE counts for shared memory too: EFBIG, as Python ignores the signal."""
    output = run_python(
        PREAMBLE
        + """
resource.setrlimit(resource.RLIMIT_FSIZE, (9 << 20, 9 << 20))
same(put(8 << 20), 8 << 20)
same(put(200_000), 200_000)
try:
    put(10 << 20)
except StoreFull as error:
    print("too large" in str(error))
print([name for name in os.listdir(spill)] if os.path.isdir(spill) else [])
store.close()
""",
        session,
        str(spill),
    )
    assert output.split("\n") == ["True", "[]"]


def test_a_write_that_finds_no_room_leaves_no_garbage(make_store: MakeStore) -> None:
    """Law 13: what the writer's callers hold goes at once, not with the next collection.

    A traceback holds all callers' frames. An error that is kept while other places are tried must
    not be part of a circle with one of them.
    """

    class Local:
        """Stands for what a task has: futures, arrays."""

    ledger_fd = create_ledger(1 << 20)
    store = make_store(ledger=Ledger(ledger_fd, 0))

    def write(size: int) -> tuple[weakref.ref[Local], bool]:
        local = Local()
        stored = store.write(b"head", [b"a" * size])
        return weakref.ref(local), os.path.isabs(stored[0][2])

    gc.collect()
    gc.disable()
    try:
        for size in (300_000, 300_000, 300_000, 300_000, 3_000_000, 300_000):
            left, in_file = write(size)
            assert left() is None, f"a write of {size} bytes left garbage (in a file: {in_file})"
        assert in_file
    finally:
        gc.enable()
        os.close(ledger_fd)
