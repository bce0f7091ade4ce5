"""Failures, as the tables and messages have them, as exceptions for the user."""

from __future__ import annotations

from typing import Any

from ..core.values import BROKEN, DIED, ERROR, LOST, OWNER_DIED, Failure


def exception_of(failure: Failure, asker: str | None = None) -> BaseException:
    """A new exception for a failure; every future gets one of its own.

    Args:
        failure: as in the tables.
        asker: the task whose future raises it; not the one that failed, if that was an argument.
    """
    from concurrent.futures.process import BrokenProcessPool

    from ..errors import InternalError, ObjectLost, OwnerDied, WorkerDied
    from .outcomes import load_error

    kind, detail, task = failure
    if kind == ERROR:
        error = load_error(detail)
        if asker is not None and task and asker != task:
            remote: Any = error.__cause__
            remote.tb += f"\ntask {asker!r} did not run: its argument, task {task!r}, raised this\n"
        return error
    if kind == DIED:
        pid, exitcode, attempts, stack = detail
        return WorkerDied(task, pid, exitcode, attempts, stack)
    if kind == BROKEN:
        text, error = detail
        broken = BrokenProcessPool(f"no task can run any more: {text}")
        if error is not None:
            broken.__cause__ = load_error(error)
        return broken
    if kind == LOST:
        return ObjectLost(f"the value of {task or 'this future'} is gone: {detail}")
    if kind == OWNER_DIED:
        return OwnerDied(f"the value of {task or asker or 'this future'} is gone: {detail}")
    return InternalError(f"unknown kind of failure {kind!r}")
