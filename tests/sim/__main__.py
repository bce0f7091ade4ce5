"""Run many seeds: `python -m tests.sim N [first seed]`. A failing seed is printed."""

from __future__ import annotations

import sys
import time
import traceback

from .programs import simulate


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    first = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    failures = 0
    begun = time.monotonic()
    steps = 0
    for seed in range(first, first + count):
        try:
            steps += simulate(seed).steps
        except Exception as error:
            failures += 1
            if failures <= 5:
                traceback.print_exc(limit=-4)
            print(f"seed {seed}: {type(error).__name__}: {error}", flush=True)
            if failures >= 40:
                break
    elapsed = time.monotonic() - begun
    print(f"{count} seeds, {steps} steps, {failures} failures, {elapsed:.1f} s")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
