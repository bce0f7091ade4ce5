"""Fixtures: executors, and signals between driver and tasks that need no sleeping."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from owndist import OwnershipExecutor
from tests.parity.conftest import Bell, Gate, bell, diary, gate, new_gate, signals

__all__ = ["bell", "diary", "gate", "new_gate", "signals"]

MakePool = Callable[..., OwnershipExecutor]


@pytest.fixture
def make_pool(signals: list[Gate | Bell]) -> Iterator[MakePool]:
    """Makes executors; at the end every gate is opened, so that shutting down cannot hang."""
    pools: list[OwnershipExecutor] = []

    def make(max_workers: int | None = 2, **options: Any) -> OwnershipExecutor:
        pools.append(made := OwnershipExecutor(max_workers, **options))
        return made

    yield make
    for signal_ in signals:
        if isinstance(signal_, Gate):
            signal_.open()
    for made in pools:
        made.shutdown()
    pools.clear()  # pytest holds `make` a little longer, and the leak guard looks before that


@pytest.fixture
def pool(make_pool: MakePool) -> OwnershipExecutor:
    """An executor with two workers."""
    return make_pool(2)


@pytest.fixture
def single(make_pool: MakePool) -> OwnershipExecutor:
    """An executor with one worker."""
    return make_pool(1)
