"""How much memory there is for values."""

from __future__ import annotations

import os

from .cpus import control_group_files

# Unless the user says so, values take no more of shared memory, which others use too.
_SHARE_OF_SHM = 0.9

# And no more of the memory that the control group, or the machine, gives to all: it is the same
# memory that tasks need, and shared memory cannot be swapped out where there is no swap.
_SHARE_OF_MEMORY = 0.5


def default_store_bytes() -> int:
    """The limit of shared memory for values, where the user has set none."""
    limits = []
    memory = memory_limit_bytes()
    if memory is not None:
        limits.append(int(memory * _SHARE_OF_MEMORY))
    try:
        status = os.statvfs("/dev/shm")
        limits.append(int(status.f_blocks * status.f_frsize * _SHARE_OF_SHM))
    except OSError:
        pass  # there is none: every value goes to a file anyway
    return min(limits) if limits else 1 << 30


def memory_limit_bytes() -> int | None:
    """What the control group allows, or the machine has; None where nobody says."""
    found = []
    for text in control_group_files("memory", "memory.max", "memory.limit_in_bytes"):
        if text.strip().isdigit():  # not "max"
            found.append(int(text))
    try:
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (OSError, ValueError):
        pass  # not on this system
    return min(found) if found else None
