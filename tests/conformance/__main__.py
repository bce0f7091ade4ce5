"""Run CPython's tests on any executor class by hand, and print a table.

    python -m tests.conformance [module:Class [substring of test ids]]

Without arguments the stdlib's own executor is run, with nothing left out: so one sees which tests
fail or are flaky on this machine by themselves.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from .harness import Campaign, list_cases


def main(executor: str = "concurrent.futures:ProcessPoolExecutor", substring: str = "") -> int:
    """Run the tests whose id holds the substring; 0 if none failed."""
    cases, missing = list_cases()
    if missing:
        print(missing)
        return 0
    chosen = [case for case in cases if substring in str(case)]
    with tempfile.TemporaryDirectory() as scratch:
        campaign = Campaign(executor, os.getcwd(), Path(scratch))
        began = time.monotonic()
        campaign.run(chosen)
        took = time.monotonic() - began
    for case in chosen:
        outcome = campaign.outcomes[case]
        mark = " (threads or children left)" if outcome.altered else ""
        print(f"{outcome.verdict:8} {outcome.seconds:6.2f} s  {case}{mark}")
        if outcome.verdict not in ("passed", "skipped"):
            print(outcome.detail, outcome.log, sep="\n")
        elif outcome.verdict == "skipped":
            print(f"         {outcome.detail}")
    for method, remarks in campaign.remarks.items():
        for remark in remarks:
            print(f"{method}: {remark}")
    verdicts = Counter(outcome.verdict for outcome in campaign.outcomes.values())
    print(f"{dict(verdicts)} in {took:.0f} s")
    return int(not set(verdicts) <= {"passed", "skipped"})


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
