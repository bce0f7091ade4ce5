"""c = add(a(), b()) in four ways: the same answer, and ever fewer bytes through this process.

Run it: python examples/quickstart.py
No `if __name__ == "__main__"` guard is needed, under any start method.
"""

from concurrent.futures import Future
from time import perf_counter

import numpy as np

from owndist import OwnershipExecutor

SIZE = 8_000_000  # float64 numbers in each array: 64 MB


def a() -> np.ndarray:
    return np.random.default_rng(seed=1).standard_gamma(0.7, SIZE)


def b() -> np.ndarray:
    return np.random.default_rng(seed=2).standard_gamma(0.7, SIZE)


def add(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return x + y


def checksum(x: np.ndarray) -> int:
    return int(x.view(np.uint64).sum())  # of the bits: exact, whatever the order of adding


executor = OwnershipExecutor(max_workers=2)


def sequential() -> np.ndarray:
    return add(a(), b())


def both_through_the_driver() -> Future:
    x, y = executor.submit(a), executor.submit(b)
    return executor.submit(add, x.result(), y.result())


def one_through_the_driver() -> Future:
    x, y = executor.submit(a), executor.submit(b)
    return executor.submit(add, x, y.result())


def worker_to_worker() -> Future:
    return executor.submit(add, executor.submit(a), executor.submit(b))


def driver_bytes() -> int:
    seen = executor.statistics()
    return seen.bytes_sent + seen.bytes_received + seen.bytes_mapped + seen.bytes_put


ways = [sequential, both_through_the_driver, one_through_the_driver, worker_to_worker]
for way in ways:  # start-up, and the first touch of memory, stay out of the figures
    executor.submit(checksum, way()).result()
print("c = add(a(), b()) with arrays of 64 MB; the pool was warmed up before\n")
print(f"{'way':<24} {'time':>9} {'bytes through the driver':>27}   checksum of c")
sums, values = [], []
for way in ways:
    bytes_before, start = driver_bytes(), perf_counter()
    c = way()
    sums.append(checksum(c) if way is sequential else executor.submit(checksum, c).result())
    elapsed, crossed = perf_counter() - start, driver_bytes() - bytes_before
    print(f"{way.__name__:<24} {elapsed * 1000:>6.0f} ms {crossed:>27,}   {sums[-1]:016x}")
    values.append(c)

assert len(set(sums)) == 1, "the checksums differ"
assert all(np.array_equal(c.result(), values[0]) for c in values[1:]), "the arrays differ"
executor.shutdown()
print("\nAll four agree: the checksums are equal, and so are the arrays, number by number.")
