"""Run many seeds: `python -m tests.sim N [first seed]`. A failing seed is printed.

With `--owners` all processes own and borrow (`session`), else only the driver does (`programs`).
In half of the programs memory is removed; with `--losses` in all of those with many owners.
With `--story` what happens is printed, if it fails.
"""

from __future__ import annotations

import functools
import sys
import time
import traceback

from . import programs, session


def main() -> int:
    numbers = [int(argument) for argument in sys.argv[1:] if not argument.startswith("-")]
    count, first = (*numbers, *(1000, 0)[len(numbers) :])
    simulate = session.simulate if "--owners" in sys.argv else programs.simulate
    if "--losses" in sys.argv:
        simulate = functools.partial(session.simulate, losses=True)
    record = "--story" in sys.argv
    failures = 0
    begun = time.monotonic()
    steps = 0
    for seed in range(first, first + count):
        try:
            steps += simulate(seed, record).steps
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
