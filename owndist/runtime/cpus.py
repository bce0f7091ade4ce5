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
    try:
        with open("/proc/self/cgroup") as file:
            lines = file.read().splitlines()
    except OSError:
        return None
    quotas = []
    for line in lines:
        hierarchy, controllers, path = line.split(":", 2)
        if hierarchy == "0":
            # Version 2. The limit may be set on any ancestor, and a container sees its own group
            # as the root.
            parts = path.strip("/").split("/")
            for depth in range(len(parts) + 1):
                place = "/".join(["/sys/fs/cgroup", *parts[:depth]]).rstrip("/")
                quotas.append(_ratio(_read(f"{place}/cpu.max").split()))
        elif "cpu" in controllers.split(","):
            for place in (f"/sys/fs/cgroup/cpu{path}", "/sys/fs/cgroup/cpu"):
                figures = [
                    _read(f"{place}/cpu.cfs_quota_us").strip(),
                    _read(f"{place}/cpu.cfs_period_us").strip(),
                ]
                quotas.append(_ratio(figures))
    limits = [quota for quota in quotas if quota is not None]
    return min(limits) if limits else None


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
