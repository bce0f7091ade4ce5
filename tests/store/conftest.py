"""A session of its own for every test of the store, and proof that nothing of it is left."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from owndist.store.local import Store
from tests.store.pickled import segments


@pytest.fixture
def session() -> Iterator[str]:
    """The name of a session; none of its segments may be left in the end."""
    name = uuid.uuid4().hex[:8]
    yield name
    assert segments(name) == []


@pytest.fixture
def spill(tmp_path: Path) -> Path:
    """Where values go that shared memory has no room for; not made yet."""
    return tmp_path / "spill"


@pytest.fixture
def make_store(session: str, spill: Path) -> Iterator[Callable[..., Store]]:
    """Makes a store of the test's session; all are closed in the end."""
    stores = []

    def make(number: int = 1, *, cache_limit_bytes: int = 1 << 30, **options: Any) -> Store:
        store = Store(session, number, str(spill), cache_limit_bytes=cache_limit_bytes, **options)
        stores.append(store)
        return store

    yield make
    for store in stores:
        store.close()


@pytest.fixture
def store(make_store: Callable[..., Store]) -> Store:
    return make_store()
