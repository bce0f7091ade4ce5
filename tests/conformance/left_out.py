"""CPython's tests that are not run on OwnershipExecutor, each with the reason.

Two kinds only: tests that look into private parts of the stdlib's implementation (its process
table, its manager thread, its queues), and tests that demand what owndist changes on purpose: one
bad task or one dead worker must not take the pool with it, and a task can be cancelled as long as
no worker has begun with it.

Most have a counterpart among our own tests, which checks the behaviour from outside.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LeftOut:
    """Why a test is not run.

    Args:
        reason: Shown when pytest skips it.
        instead: Our own test of the behaviour, as "file::test" below tests/; empty if there is
            none because there is no such behaviour.
        since: The first Python whose suite has the test.
    """

    reason: str
    instead: str
    since: tuple[int, int] = (3, 10)


_PROCESSES = "counts or joins the stdlib's private table of processes (_processes)"
_MANAGER = "joins the stdlib's private manager thread and queues (_executor_manager_thread)"
_ONE_TASK = "wants the whole pool broken by one task; here only that task fails, with its own error"

LIFECYCLE = "parity/test_lifecycle.py"
EXECUTOR = "parity/test_executor.py"
ENDINGS = "parity/test_endings.py"

LEFT_OUT = {
    "ProcessPoolExecutorTest.test_killed_child": LeftOut(
        "kills a worker by way of _processes and wants the whole pool broken by it",
        f"{EXECUTOR}::test_a_worker_that_exits_is_a_broken_process_pool_to_its_task",
    ),
    "ProcessPoolExecutorTest.test_saturation": LeftOut(
        _PROCESSES, f"{EXECUTOR}::test_there_are_no_more_processes_than_workers"
    ),
    "ProcessPoolExecutorTest.test_idle_process_reuse_one": LeftOut(
        _PROCESSES, f"{EXECUTOR}::test_there_are_no_more_processes_than_workers"
    ),
    "ProcessPoolExecutorTest.test_idle_process_reuse_multiple": LeftOut(
        _PROCESSES, f"{EXECUTOR}::test_there_are_no_more_processes_than_workers"
    ),
    "ProcessPoolExecutorTest.test_max_tasks_per_child": LeftOut(
        _PROCESSES,
        f"{LIFECYCLE}::test_a_worker_is_replaced_after_its_number_of_tasks",
        since=(3, 11),
    ),
    "ProcessPoolExecutorTest.test_python_finalization_error": LeftOut(
        "lets the stdlib's queue feeder thread fail to start; there is no such thread here",
        "",
        since=(3, 12),
    ),
    "ProcessPoolShutdownTest.test_processes_terminate": LeftOut(
        _PROCESSES, f"{LIFECYCLE}::test_shutdown_ends_every_worker"
    ),
    "ProcessPoolShutdownTest.test_context_manager_shutdown": LeftOut(
        _PROCESSES, f"{LIFECYCLE}::test_leaving_the_context_waits_for_the_results"
    ),
    "ProcessPoolShutdownTest.test_del_shutdown": LeftOut(
        _MANAGER, f"{ENDINGS}::test_an_executor_nobody_holds_finishes_its_work_and_ends"
    ),
    "ProcessPoolShutdownTest.test_shutdown_no_wait": LeftOut(
        _MANAGER, f"{LIFECYCLE}::test_shutdown_without_waiting_lets_the_tasks_finish"
    ),
    "ProcessPoolShutdownTest.test_cancel_futures": LeftOut(
        "wants that at least one of the tasks submitted a moment ago can no longer be cancelled, "
        "because the stdlib counts those in its queue as running; here a task can be cancelled "
        "until a worker begins with it",
        f"{LIFECYCLE}::test_shutdown_with_cancel_drops_what_has_not_begun",
    ),
    "ExecutorDeadlockTest.test_shutdown_deadlock_pickle": LeftOut(
        _MANAGER, f"{EXECUTOR}::test_an_argument_that_cannot_be_pickled_fails_only_its_task"
    ),
    "ExecutorDeadlockTest.test_error_at_task_unpickle": LeftOut(
        _ONE_TASK, f"{EXECUTOR}::test_an_argument_that_cannot_be_unpickled_fails_only_its_task"
    ),
    "ExecutorDeadlockTest.test_exit_at_task_unpickle": LeftOut(
        _ONE_TASK, f"{EXECUTOR}::test_an_argument_that_cannot_be_unpickled_fails_only_its_task"
    ),
    "ExecutorDeadlockTest.test_error_during_result_unpickle_in_result_handler": LeftOut(
        _ONE_TASK, f"{EXECUTOR}::test_a_result_that_cannot_be_unpickled_fails_only_its_reader"
    ),
    "ExecutorDeadlockTest.test_exit_during_result_unpickle_in_result_handler": LeftOut(
        _ONE_TASK, f"{EXECUTOR}::test_a_result_that_cannot_be_unpickled_fails_only_its_reader"
    ),
}
