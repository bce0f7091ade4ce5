"""All interleavings of tiny programs end well (Law 18)."""

from __future__ import annotations

import pytest

from .explorer import Exploration, OneAtATime, Script
from .specs import ALIAS, STORED, Spec
from .world import World


def world(max_workers: int, max_tasks_per_worker: int | None = None) -> World:
    made = World(OneAtATime(), max_workers, max_tasks_per_worker)
    # The function is known to be short, so that tasks are sent ahead.
    made.machine.submission.estimates[1] = 20_000
    return made


CHAIN: Script = [
    lambda w: w.submit(Spec(w.new_id(), returns=STORED)),
    lambda w: w.submit(Spec(w.new_id(), slots=(1,), returns=ALIAS)),
    lambda w: w.drop_handles([1]),
]

CANCEL: Script = [
    lambda w: w.submit(Spec(w.new_id())),
    lambda w: w.submit(Spec(w.new_id())),
    lambda w: w.cancel(2),
]

BORROW: Script = [
    lambda w: w.submit(Spec(w.new_id(), returns=STORED)),
    lambda w: w.submit(Spec(w.new_id(), nested=(1,), reads=1, keeps_futures=True)),
    lambda w: w.drop_handles([1]),
]

RETRY: Script = [
    lambda w: w.submit(Spec(w.new_id(), raises=1, judged=True, max_retries=1)),
    lambda w: w.cancel(1),
]


@pytest.mark.parametrize(
    ("script", "workers", "deaths", "max_tasks"),
    [
        pytest.param(CHAIN, 1, 1, None, id="chain-1-worker-1-death"),
        pytest.param(CANCEL[1:2] + [lambda w: w.cancel(1)], 1, 1, None, id="cancel-1-task-1-death"),
        pytest.param(CANCEL, 1, 0, None, id="cancel-1-worker"),
        pytest.param(CANCEL, 1, 1, None, id="cancel-1-worker-1-death", marks=pytest.mark.soak),
        pytest.param(CANCEL, 2, 0, None, id="cancel-2-workers", marks=pytest.mark.soak),
        pytest.param(BORROW, 1, 0, None, id="borrow-1-worker"),
        pytest.param(BORROW, 1, 0, 1, id="borrow-1-task-per-worker"),
        pytest.param(RETRY, 1, 1, None, id="retry-1-worker-1-death"),
    ],
)
def test_every_interleaving_ends_well(
    script: Script, workers: int, deaths: int, max_tasks: int | None
) -> None:
    """Law 18, 1, 14: in whichever order things happen, and whenever a worker dies."""
    done = Exploration(lambda: world(workers, max_tasks), script, deaths).run()
    assert done.ends >= 1
    print(f"{done.states} states, {done.ends} ends")
