"""A generator task reads a file chunk by chunk; other tasks work on the chunks meanwhile.

    python examples/streaming.py [file]

One task reads, as it would from a camera or a socket: nobody else can get at the next chunk. It is
never more than four chunks ahead. Each chunk goes from its worker to the workers that compress and
digest it through shared memory; this process sees only the numbers.
"""

from __future__ import annotations

import hashlib
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy

from owndist import OwnershipExecutor

CHUNK = 1 << 20


def read(path: str) -> Iterator[bytes]:
    """The file, chunk by chunk."""
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


def examine(chunk: bytes) -> tuple[int, int, str]:
    """Its length, its length when compressed, and its digest."""
    return len(chunk), len(zlib.compress(chunk, 1)), hashlib.sha256(chunk).hexdigest()


def main() -> None:
    if len(sys.argv) > 1:
        path = sys.argv[1]
    else:
        libraries = Path(numpy.__file__).parent.rglob("*.so")
        path = str(max(libraries, key=lambda library: library.stat().st_size))
    with OwnershipExecutor() as executor:
        chunks = executor.options(num_returns="stream", stream_buffer=4).submit(read, path)
        tasks = [executor.submit(examine, chunk) for chunk in chunks]
        found = [task.result() for task in tasks]
        mapped = executor.statistics().bytes_mapped
    size = sum(length for length, _, _ in found)
    small = sum(length for _, length, _ in found)
    print(f"{path}: {size:,} bytes in {len(found)} chunks, {small:,} when compressed")
    print(f"bytes of them that this process saw: {mapped:,}")

    assert found == [examine(chunk) for chunk in read(path)], "not as one after the other"
    print("One after the other, they give the same.")


if __name__ == "__main__":
    main()
