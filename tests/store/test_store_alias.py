"""Returning what one got: proof from the kernel, and none where there is any doubt."""

from __future__ import annotations

import os
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from owndist.store.local import INLINE_HEAD_BYTES, Store
from tests.store.pickled import ROOT, alias, get, put, run_python, split

MakeStore = Callable[..., Store]

pytestmark = pytest.mark.skipif(
    not os.access("/proc/self/pagemap", os.R_OK), reason="the kernel tells nothing about pages"
)

PAGE = 4096
SIZE = 64 * PAGE


@pytest.fixture
def array() -> np.ndarray[Any, Any]:
    return np.random.default_rng(1).integers(0, 256, SIZE, dtype=np.uint8)


def test_what_was_not_touched_is_known_again(
    make_store: MakeStore, array: np.ndarray[Any, Any]
) -> None:
    writer, reader, third = make_store(1), make_store(2), make_store(3)
    stored = put(writer, array)
    assert alias(reader, get(reader, stored)) == stored
    value = get(reader, stored)
    assert value.sum() == array.sum()  # reading is not writing
    again = alias(reader, value)
    assert again == stored
    assert reader.live_values == 0, "nothing was copied"
    del value
    assert np.array_equal(get(third, again), array)


@pytest.mark.parametrize("where", [0, 1, PAGE - 1, PAGE, SIZE // 2 + 17, SIZE - PAGE, SIZE - 1])
def test_a_single_written_byte_prevents_it(
    store: Store, array: np.ndarray[Any, Any], where: int
) -> None:
    value = get(store, put(store, array))
    assert alias(store, value) is not None
    value[where] = value[where]  # even if the bytes are the same: a write is a write
    assert alias(store, value) is None


def test_a_single_written_byte_anywhere_prevents_it(store: Store, seed: int) -> None:
    """Law 5: what a task returns is what its array holds then, and not what it once got."""
    rng = random.Random(seed)
    stored = put(store, np.zeros(1 << 20, np.uint8))
    for _ in range(200):
        value = get(store, stored)
        where = rng.randrange(1 << 20)
        if rng.random() < 0.5:
            value.sum()
        value[where] ^= 1
        assert alias(store, value) is None, where


def test_a_change_is_seen_also_after_a_fork_and_in_a_read_only_view(
    store: Store, array: np.ndarray[Any, Any]
) -> None:
    value = get(store, put(store, array))
    value[5] += 1
    pid = os.fork()  # both processes now share the changed page
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    value.setflags(write=False)
    assert alias(store, value) is None


def test_parts_of_a_value_are_parts_of_its_extent(store: Store) -> None:
    array = np.arange(200_000, dtype=np.int64).reshape(400, 500)
    stored = put(store, array)
    value = get(store, stored)
    part = value[100:300]
    again = alias(store, part)
    assert again is not None
    assert again[0] == stored[0]
    assert again[2] == ((100 * 500 * 8, 200 * 500 * 8),)
    assert np.array_equal(get(store, again), array[100:300])
    # A part of a part, read by way of the alias.
    deeper = alias(store, get(store, again)[50:60])
    assert deeper is not None and np.array_equal(get(store, deeper), array[150:160])
    # Other types and shapes over the same bytes.
    other = alias(store, value.view(np.uint8).reshape(-1)[12345:99999])
    assert other is not None
    assert np.array_equal(get(store, other), array.view(np.uint8).reshape(-1)[12345:99999])


def test_a_write_elsewhere_does_not_prevent_it(store: Store) -> None:
    value = get(store, put(store, np.arange(SIZE, dtype=np.uint8)))
    value[0] = 1
    assert alias(store, value[PAGE:]) is not None
    assert alias(store, value[PAGE - 1 :]) is None
    value[-1] = 1
    assert alias(store, value[PAGE:-PAGE]) is not None


def test_a_value_of_several_buffers_is_known_again_in_any_order(store: Store) -> None:
    parts = {name: np.full(100_000, number) for number, name in enumerate("abc")}
    stored = put(store, parts)
    value = get(store, stored)
    again = alias(store, {"c": value["c"], "a": value["a"], "x": np.zeros(0), "a2": value["a"]})
    assert again is not None and again[0] == stored[0]
    assert again[2][2] == (0, 0), "the empty one"
    result = get(store, again)
    assert result["x"].size == 0
    assert all(np.array_equal(result[name], parts[name[0]]) for name in ("c", "a", "a2"))
    # Large buffers share no page: a write to one leaves the others provable.
    value["b"][:] = 9
    assert alias(store, [value["a"], value["c"]]) is not None
    assert alias(store, value) is None


def test_anything_from_elsewhere_prevents_it(store: Store, array: np.ndarray[Any, Any]) -> None:
    one, two = get(store, put(store, array)), get(store, put(store, array))
    assert alias(store, one) is not None and alias(store, two) is not None
    assert alias(store, [one, two]) is None, "two mappings"
    assert alias(store, [one, array]) is None, "a buffer of its own"
    assert alias(store, array) is None
    assert alias(store, np.zeros(0)) is None, "no bytes at all"
    assert alias(store, "no buffers") is None
    assert alias(store, one.copy()) is None


def test_another_store_s_mapping_is_not_ours(make_store: MakeStore) -> None:
    one, two = make_store(1), make_store(2)
    value = get(one, put(one, np.zeros(SIZE)))
    assert alias(two, value) is None


def test_a_long_stream_prevents_it(store: Store, array: np.ndarray[Any, Any]) -> None:
    value = get(store, put(store, array))
    assert alias(store, [value, bytes(INLINE_HEAD_BYTES - 1000)]) is not None
    assert alias(store, [value, bytes(INLINE_HEAD_BYTES)]) is None


def test_a_dead_mapping_is_not_found_at_its_old_address(store: Store) -> None:
    """The address of a mapping that has died soon belongs to something else."""
    stored = put(store, np.zeros(1 << 20, np.uint8))
    addresses = set()
    for _ in range(20):
        value = get(store, stored)
        addresses.add(value.__array_interface__["data"][0])
        assert alias(store, value) == stored
        del value
        own = np.frombuffer(bytearray(1 << 20), np.uint8)
        assert alias(store, own) is None
        other = get(store, put(store, np.ones(1 << 20, np.uint8)))
        again = alias(store, other)
        assert again is not None and again[0][1] != stored[0][1]
        del other
    assert len(addresses) < 20, "this test needs an address to come back"


def test_a_large_value_is_checked_in_several_steps(store: Store) -> None:
    """More pages than are asked about at once."""
    from owndist.store import pages

    size = (pages._CHUNK_PAGES + 10) * PAGE
    if size > 1 << 30:
        pytest.skip("pages are large here")
    # As a spill file with a hole in it this needs neither memory nor time.
    path = os.path.join(os.path.dirname(store._allocator.spill_directory), "hole")
    with open(path, "wb") as file:
        file.truncate(size)
    stored = ((1, 0, path, 0, size), b"", ((0, size),))
    _, _, (view,) = store.read(stored)
    value = np.frombuffer(view, np.uint8)
    assert store.alias(b"", [value]) == stored
    value[-1] = 1
    assert store.alias(b"", [value]) is None
    assert store.alias(b"", [value[: -8 * PAGE]]) is not None


def test_a_chain_of_aliases_costs_no_memory(make_store: MakeStore) -> None:
    """A value handed through ten processes is stored once."""
    stores = [make_store(number) for number in range(1, 11)]
    stored = put(stores[0], np.arange(100_000))
    for store in stores:
        again = alias(store, get(store, stored))
        assert again == stored
        stored = again
    assert [store.live_values for store in stores] == [1] + [0] * 9


def test_without_numpy_or_permission_there_is_no_alias(session: str, tmp_path: Any) -> None:
    """Both mean that it cannot be told; the caller copies then."""
    output = run_python(
        """
import os, sys
from owndist.store.local import Store
store = Store(sys.argv[1], 1, sys.argv[2], cache_limit_bytes=0)
stored = store.write(b"h", [bytes(200_000)])
_, head, buffers = store.read(stored)
print("numpy" in sys.modules, store.alias(head, buffers))
import numpy
print(store.alias(head, buffers) == stored)
if os.geteuid() == 0:
    os.setresuid(65534, 65534, 0)  # such a process may not look into itself
    print(store.alias(head, buffers))
    os.seteuid(0)
else:
    print(None)
store.close()
""",
        session,
        str(tmp_path),
    )
    assert output.split("\n") == ["False None", "True", "None"]


def test_pickled_arguments_and_results_make_the_round(
    make_store: MakeStore, session: str, array: np.ndarray[Any, Any]
) -> None:
    """As in a worker: load, work, return, in a process of its own."""
    store = make_store(1)
    stored = put(store, {"image": array, "name": "x"})
    child = """
import pickle, sys, numpy
from tests.store.pickled import alias, get
from owndist.store.local import Store
stored = pickle.load(sys.stdin.buffer)
store = Store(sys.argv[1], 2, "unused", cache_limit_bytes=0)
value = get(store, stored)
value["mean"] = float(value["image"].mean())
kept = alias(store, value)
value["image"][7] = 0
pickle.dump([kept, alias(store, value)], sys.stdout.buffer)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", child, session],
        input=pickle.dumps(stored),
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=60,
    )
    assert done.stderr == b""
    kept, changed = pickle.loads(done.stdout)
    assert changed is None
    value = get(store, kept)
    assert np.array_equal(value["image"], array) and value["mean"] == array.mean()
    assert len(split(value)[1]) == 1
