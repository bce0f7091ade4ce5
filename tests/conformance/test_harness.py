"""The harness itself: what passes, fails, hangs or crashes is told as such."""

from __future__ import annotations

from pathlib import Path

import pytest

from .harness import Campaign, Case, list_cases

CASES, MISSING = list_cases()
ROOT = Path(__file__).parent

pytestmark = [
    pytest.mark.conformance,
    pytest.mark.skipif(bool(MISSING), reason=MISSING or "installed"),
]


def run(tmp_path: Path, standin: str, *chosen: str, limit_s: float = 30.0) -> dict[str, str]:
    """Run the tests so named on a stand-in; {name of the test: verdict}."""
    cases = [case for case in CASES if str(case) in chosen]
    assert len(cases) == len(chosen)
    campaign = Campaign(f"standins:{standin}", str(ROOT), tmp_path, limit_s=limit_s)
    campaign.run(cases)
    assert set(campaign.outcomes) == set(cases)
    return {str(case): outcome.verdict for case, outcome in campaign.outcomes.items()}


def test_a_subclass_of_the_stdlibs_executor_passes_under_every_start_method(
    tmp_path: Path,
) -> None:
    """Also in the interpreters that CPython's tests start."""
    chosen = [
        f"{method}-{test}"
        for method in ("fork", "forkserver", "spawn")
        for test in (
            "ProcessPoolExecutorTest.test_submit",
            "ProcessPoolExecutorTest.test_traceback",
            "ProcessPoolShutdownTest.test_submit_after_interpreter_shutdown",
        )
    ]
    assert run(tmp_path, "Trivial", *chosen) == dict.fromkeys(chosen, "passed")


def test_the_executor_under_test_is_the_one_that_runs(tmp_path: Path) -> None:
    chosen = ["fork-ProcessPoolExecutorTest.test_submit", "fork-WaitTest.test_all_completed"]
    assert run(tmp_path, "AnswersWrong", *chosen) == {chosen[0]: "failed", chosen[1]: "passed"}


@pytest.mark.parametrize(
    ("standin", "limit_s", "verdict"),
    [("HangsInMap", 2.0, "hung"), ("CrashesInMap", 30.0, "crashed")],
)
def test_a_hang_or_a_crash_costs_only_the_test_it_is_in(
    tmp_path: Path, standin: str, limit_s: float, verdict: str
) -> None:
    chosen = [
        "fork-ProcessPoolExecutorTest.test_map",
        "fork-ProcessPoolExecutorTest.test_submit",
        "fork-ProcessPoolExecutorTest.test_traceback",
    ]
    assert run(tmp_path, standin, *chosen, limit_s=limit_s) == {
        chosen[0]: verdict,
        chosen[1]: "passed",
        chosen[2]: "passed",
    }


def test_an_executor_that_cannot_be_loaded_fails_every_test(tmp_path: Path) -> None:
    chosen = "fork-ProcessPoolExecutorTest.test_submit"
    assert run(tmp_path, "NoSuchClass", chosen) == {chosen: "not run"}


def test_the_key_of_a_case_has_neither_module_nor_start_method() -> None:
    new = Case("test_wait.ProcessPoolForkserverWaitTest.test_timeout", "forkserver")
    old = Case("ProcessPoolForkWaitTest.test_timeout", "fork")
    double = Case("test_process_pool.ProcessPoolSpawnProcessPoolExecutorTest.test_map", "spawn")
    assert (new.key, old.key) == ("WaitTest.test_timeout",) * 2
    assert double.key == "ProcessPoolExecutorTest.test_map"
    assert str(new) == "forkserver-WaitTest.test_timeout"
