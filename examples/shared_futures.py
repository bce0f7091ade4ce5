"""Futures as values, options for some calls, one upload for many tasks, and asyncio.

Run it: python examples/shared_futures.py
"""

import asyncio
from concurrent.futures import Future

import numpy as np

from owndist import OwnershipExecutor


def simulate(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(1_000_000)


def mean(values: np.ndarray) -> float:
    return float(values.mean())


def mean_if_wanted(wanted: bool, simulation: Future) -> float | None:
    """A shared future arrives as a future: whoever never asks for the value never loads it."""
    return mean(simulation.result()) if wanted else None


def scaled(values: np.ndarray, factor: float) -> float:
    return float(values.sum() * factor)


async def from_asyncio(executor: OwnershipExecutor) -> list[float]:
    loop = asyncio.get_running_loop()
    simulation = loop.run_in_executor(executor, simulate, 3)
    chained = executor.submit(mean, executor.submit(simulate, 3))
    return [mean(await simulation), await asyncio.wrap_future(chained)]


with OwnershipExecutor(max_workers=2) as executor:
    simulation = executor.submit(simulate, 1)
    print("passed as its value: mean", round(executor.submit(mean, simulation).result(), 6))
    for wanted in (True, False):
        answer = executor.submit(mean_if_wanted, wanted, executor.shared(simulation)).result()
        print(f"passed as a future: wanted={wanted}, answer", answer and round(answer, 6))

    careful = executor.options(max_retries=10, retry_exceptions=(OSError,), name="careful")
    print("with its own options: mean", round(careful.submit(mean, simulation).result(), 6))

    table = executor.put(np.ones(1_000_000))  # written to shared memory once, read by 5 tasks
    sums = [executor.submit(scaled, table, factor) for factor in range(5)]
    print("one upload, five readers:", [future.result() for future in sums])

    awaited, chained = asyncio.run(from_asyncio(executor))
    print("awaited in asyncio:", round(awaited, 6), "and", round(chained, 6))
