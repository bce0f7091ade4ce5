"""Random programs under random deaths, on machines that share one simulated host.

`python -m tests.sim N` runs more seeds. A seed that fails is named by the test; once its cause is
found, it is added to `REGRESSIONS` with a word on what it shows.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from . import session
from .mutations import MUTATIONS, seeds_until_found
from .planted import OWNERS_MUTATIONS
from .programs import simulate

# {seed: the fault that it shows when it is planted, see `mutations`}. Most had been there.
REGRESSIONS = {
    269: "what stood behind a task that waits was not called back: for ever, if it waits for that",
    35: "two borrowers of one object were taken for one",
    219: "memory was freed under a view, because a release overtook the news of the view",
    218: "a borrowed future that was made again never heard its outcome",
    11: "an object was freed while a worker kept a handle",
    1288906080: "no fault of the machine's: the checker took it for that death, too",
    2835938462: "who had cancelled a task whose argument was lost never heard so",
    3321931192: "a death was charged to the next attempt, which had not started",
    3031706803: "no fault of the machine's: the checker thought that a copy goes with its memory",
}

# The same for sessions in which every process owns.
OWNERS_REGRESSIONS = {
    146: "memory was used again under a view, of which a dead borrower alone had known",
    283: "a value was freed by a second owner, who had got it by its name and did not know it",
    284: "a value was given up with an owner that had only passed it on",
    3839246570: "what was given back came twice: the second time for the answer to another recall",
    1494: "of two workers that were granted at once, one was neither used nor given back",
}

STOPS_REGRESSIONS = {
    1759126594: "the same where another owner has the input",
    2494086071: "a segment was unlinked twice, since its holder's last words came twice",
    2793639365: "all processes waited, and a lost input of what they waited for got no worker",
}

_ROOT = Path(__file__).parents[2]
_BUDGET_S = 6.0


@pytest.mark.parametrize("number", REGRESSIONS, ids=str)
def test_seeds_that_tell_faults_end_well(number: int) -> None:
    """Laws 1, 14, 32, 33, 41: see `REGRESSIONS`."""
    simulate(number)


def test_random_programs_end_well(seed: int) -> None:
    """Laws 1, 13, 14, 17, 18, 29, 32, 33, 52: as many programs as fit into a few seconds."""
    rng = random.Random(seed)
    until = time.monotonic() + _BUDGET_S
    while time.monotonic() < until:
        number = rng.getrandbits(32)
        try:
            simulate(number)
        except Exception as error:
            raise AssertionError(f"simulate({number}) failed: {error}") from error


@pytest.mark.parametrize("number", OWNERS_REGRESSIONS, ids=str)
def test_seeds_of_many_owners_end_well(number: int) -> None:
    """Laws 14, 15, 48, 52: see `OWNERS_REGRESSIONS`."""
    session.simulate(number, losses=False)


@pytest.mark.parametrize("number", STOPS_REGRESSIONS, ids=str)
def test_seeds_in_which_tasks_are_stopped_end_well(number: int) -> None:
    """Laws 39, 52: see `STOPS_REGRESSIONS`."""
    session.simulate(number, stops=True)


def test_random_programs_of_many_owners_end_well(seed: int) -> None:
    """Laws 1, 14, 17 to 21, 29, 33, 48 to 53: every process submits, lends and borrows."""
    rng = random.Random(seed)
    until = time.monotonic() + _BUDGET_S
    while time.monotonic() < until:
        number = rng.getrandbits(32)
        try:
            session.simulate(number)
        except Exception as error:
            raise AssertionError(f"session.simulate({number}) failed: {error}") from error


def test_random_programs_of_many_owners_whose_memory_is_removed_end_well(seed: int) -> None:
    """Laws 33, 37 to 40, 42, 43, 46: tasks have several values, and run again for lost ones."""
    rng = random.Random(seed)
    until = time.monotonic() + _BUDGET_S
    recomputed = 0
    while time.monotonic() < until or not recomputed:
        number = rng.getrandbits(32)
        try:
            recomputed += sum(session.simulate(number, losses=True).recomputed.values())
        except Exception as error:
            raise AssertionError(f"session.simulate({number}, losses=True): {error}") from error


def test_random_programs_in_which_tasks_are_stopped_end_well(seed: int) -> None:
    """Laws 1, 14, 32, 41, 65, 66: a task that is stopped takes no notice, or is killed."""
    rng = random.Random(seed)
    until = time.monotonic() + _BUDGET_S
    while time.monotonic() < until:
        number = rng.getrandbits(32)
        try:
            session.simulate(number, stops=True)
        except Exception as error:
            raise AssertionError(f"session.simulate({number}, stops=True): {error}") from error


def test_one_seed_gives_one_log_whatever_the_hash_seed() -> None:
    """The machine never iterates over a set: two interpreters give the same commands."""
    code = (
        "from tests.sim import programs, session\n"
        "print([programs.simulate(seed, record=True).log.hexdigest() for seed in range(40)])\n"
        "print([session.simulate(seed, record=True).told for seed in range(10)])"
    )
    logs = []
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(_ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            cwd=_ROOT,
            check=True,
            capture_output=True,
            text=True,
        )
        logs.append(done.stdout)
    assert logs[0] == logs[1]


@pytest.mark.soak
@pytest.mark.parametrize("mutation", MUTATIONS, ids=[what for what, *_ in MUTATIONS])
def test_planted_bugs_are_found(mutation: tuple[str, str, str, str]) -> None:
    """A simulator that finds nothing in broken code proves nothing about the right one."""
    count, _ = seeds_until_found(*mutation[1:], most=3000)
    assert count is not None, f"not found: {mutation[0]}"


@pytest.mark.soak
@pytest.mark.parametrize("mutation", OWNERS_MUTATIONS, ids=[what for what, *_ in OWNERS_MUTATIONS])
def test_bugs_planted_between_owners_are_found(mutation: tuple[str, str, str, str]) -> None:
    """The same for what owners, borrowers and the lessor tell each other."""
    count, _ = seeds_until_found(*mutation[1:], most=4000, program="session")
    assert count is not None, f"not found: {mutation[0]}"
