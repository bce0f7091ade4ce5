"""Where this process is a worker: its peer, for `current_executor`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .worker import Worker


class _Here:
    """A worker process has one, and serves one executor for all its life."""

    worker: Worker | None = None
    executor: Any = None  # made when a task first asks


here = _Here()
