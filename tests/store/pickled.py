"""Values in and out of a store, as the rest of the library moves them; scripts beside the test."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

from owndist.store.local import Store, Stored

ROOT = Path(__file__).parents[2]
SHM = Path("/dev/shm")


def split(value: Any) -> tuple[bytes, list[pickle.PickleBuffer]]:
    """The pickle stream of a value, and its buffers."""
    buffers: list[pickle.PickleBuffer] = []
    return pickle.dumps(value, 5, buffer_callback=buffers.append), buffers


def put(store: Store, value: Any) -> Stored:
    return store.write(*split(value))


def get(store: Store, stored: Stored) -> Any:
    _, head, buffers = store.read(stored)
    return pickle.loads(head, buffers=buffers)


def alias(store: Store, value: Any) -> Stored | None:
    return store.alias(*split(value))


def segments(session: str) -> list[str]:
    """The names of a session's segments in shared memory."""
    if not SHM.is_dir():
        return []
    return sorted(name for name in os.listdir(SHM) if name.startswith(f"od-{session}-"))


def run_python(source: str, *arguments: str, prefix: tuple[str, ...] = (), **kw: Any) -> str:
    """Runs a script in a process of its own, where warnings are errors.

    Returns:
        What it wrote, errors included: a script that ends well in silence returns "".

    Raises:
        AssertionError: it failed.
    """
    done = subprocess.run(
        [*prefix, sys.executable, "-W", "error", "-c", source, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        **kw,
    )
    assert done.returncode == 0, f"exit code {done.returncode}:\n{done.stdout}"
    return done.stdout.strip()
