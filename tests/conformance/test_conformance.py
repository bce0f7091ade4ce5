"""CPython's own tests of ProcessPoolExecutor, one by one, on OwnershipExecutor (Law 8).

Nothing of them is copied: the installed ``test.test_concurrent_futures`` is loaded, and run in
child processes, one per start method. All of them run when the first item here is set up; the
items then tell what became of each test. See left_out.py for those that do not apply.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from .harness import Campaign, Case, list_cases
from .left_out import LEFT_OUT

CASES, MISSING = list_cases()
TESTS = Path(__file__).parent.parent

# The three children together take about 45 s; a hanging test costs the harness's limit.
pytestmark = [pytest.mark.conformance, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def campaign(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    """Runs those of CPython's tests that pytest was asked for."""
    chosen = [
        item.callspec.params["case"]
        for item in request.session.items
        if isinstance(item, pytest.Function)
        and item.module is request.module
        and "case" in getattr(getattr(item, "callspec", None), "params", {})
    ]
    spec = importlib.util.find_spec("owndist")
    assert spec is not None
    assert spec.origin is not None
    made = Campaign(
        "owndist:OwnershipExecutor",
        root=str(Path(spec.origin).parent.parent),
        scratch=tmp_path_factory.mktemp("conformance"),
    )
    made.run([case for case in chosen if case.key not in LEFT_OUT])
    return made


@pytest.mark.skipif(bool(MISSING), reason=MISSING or "installed")
def test_cpythons_tests_are_installed() -> None:
    """Skipped, with the reason, where this Python comes without its test suite."""
    assert len(CASES) > 100


@pytest.mark.parametrize("case", CASES, ids=str)
def test_cpython(case: Case, campaign: Campaign) -> None:
    """Law 8: as the stdlib."""
    if case.key in LEFT_OUT:
        pytest.skip(LEFT_OUT[case.key].reason)
    outcome = campaign.outcomes[case]
    if outcome.verdict == "skipped":
        pytest.skip(outcome.detail)
    if outcome.verdict != "passed":
        text = f"{case.id}: {outcome.verdict}\n{outcome.detail}\n--- stderr ---\n{outcome.log}"
        pytest.fail(text, pytrace=False)
    if outcome.altered:
        text = f"{case.id} left threads or children behind\n--- stderr ---\n{outcome.log}"
        pytest.fail(text, pytrace=False)


@pytest.mark.skipif(bool(MISSING), reason=MISSING or "installed")
def test_nothing_remains_of_the_children(campaign: Campaign) -> None:
    """Laws 27 and 31: no process is left, and the children end as they should."""
    assert {method: remarks for method, remarks in campaign.remarks.items() if remarks} == {}


@pytest.mark.skipif(bool(MISSING), reason=MISSING or "installed")
def test_the_table_of_left_out_tests_is_up_to_date() -> None:
    """Each entry names a test that this Python has, and each counterpart exists."""
    known = {case.key for case in CASES}
    for key, entry in LEFT_OUT.items():
        if sys.version_info >= entry.since:
            assert key in known
        if entry.instead:
            path, _, name = entry.instead.partition("::")
            assert f"def {name}(" in (TESTS / path).read_text(), f"no such test: {entry.instead}"
