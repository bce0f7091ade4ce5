"""How many processors this process may use."""

from __future__ import annotations

import math
import os


def usable_cpus() -> int:
    """The smallest of: processors, this process's affinity, its control group's quota.

    `os.cpu_count` knows none but the first, so a container with a quota of two processors on a
    machine with 64 would get 64 workers.
    """
    count = os.cpu_count() or 1
    override = os.environ.get("PYTHON_CPU_COUNT", "")
    if override.isdigit() and int(override) > 0:
        return int(override)  # as os.process_cpu_count does from Python 3.13 on
    if hasattr(os, "sched_getaffinity"):
        count = min(count, len(os.sched_getaffinity(0)) or 1)
    quota = _cgroup_quota()
    if quota is not None:
        count = min(count, max(1, math.ceil(quota)))
    return count


def _cgroup_quota() -> float | None:
    """Processors' worth of time that the control group allows, or None for no limit."""
    quotas = [_ratio(text.split()) for text in control_group_files("cpu", "cpu.max")]
    names = "cpu.cfs_quota_us", "cpu.cfs_period_us"
    figures = [control_group_files("cpu", None, name) for name in names]
    quotas += [_ratio([a.strip(), b.strip()]) for a, b in zip(*figures, strict=True)]
    limits = [quota for quota in quotas if quota is not None]
    return min(limits) if limits else None


def control_group_files(
    controller: str, name: str | None, old_name: str | None = None
) -> list[str]:
    """What files of this process's control group hold, and of those around it; "" where missing.

    Args:
        controller: such as "cpu".
        name: of the file in version 2 of control groups, if it is wanted.
        old_name: in version 1.
    """
    try:
        with open("/proc/self/cgroup") as file:
            lines = file.read().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        hierarchy, controllers, path = line.split(":", 2)
        if hierarchy == "0" and name is not None:
            # Version 2. The limit may be set on any ancestor, and a container sees its own group
            # as the root.
            parts = path.strip("/").split("/")
            for depth in range(len(parts) + 1):
                place = "/".join(["/sys/fs/cgroup", *parts[:depth]]).rstrip("/")
                found.append(_read(f"{place}/{name}"))
        elif controller in controllers.split(",") and old_name is not None:
            for place in (f"/sys/fs/cgroup/{controller}{path}", f"/sys/fs/cgroup/{controller}"):
                found.append(_read(f"{place}/{old_name}"))
    return found


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""  # no such controller here


def _ratio(figures: list[str]) -> float | None:
    """quota / period; None where it says "max", -1 or nothing (an empty cpu.max exists)."""
    if len(figures) != 2 or not figures[0].isdigit() or not figures[1].isdigit():
        return None
    quota, period = int(figures[0]), int(figures[1])
    return quota / period if quota and period else None
