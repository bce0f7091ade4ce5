"""What the user gets for tasks with several values: lists of futures, and streams."""

from __future__ import annotations

import os
from collections import deque
from typing import TYPE_CHECKING, Any

from ..core.commands import Delivered
from ..core.ids import DRIVER
from ..core.reports import Consumed, StreamClosed, Submitted
from ..core.returns import STREAM
from ..core.values import ERROR, READY, extent_of
from ..futures import Future

if TYPE_CHECKING:
    from ..config import TaskOptions
    from ..streams import Arrivals, FutureStream


class Streams:
    """The streams whose tasks are not over."""

    def __init__(self, shell: Any) -> None:
        self._shell = shell
        self._open: dict[int, Arrivals] = {}
        self._closed: deque[int] = deque()  # appended to from `__del__`

    def check(self, options: TaskOptions) -> None:
        """Raise if this process cannot take a task with several values."""
        if options.num_returns == "stream" and self._shell.number != DRIVER:
            raise RuntimeError(
                "a task cannot open a stream: num_returns='stream' is for the "
                "process that made the executor"
            )

    def open(self, end: Future[Any], name: str) -> FutureStream[Any]:
        """Lock held. A stream has been submitted; `end` is the future of its task."""
        from ..streams import Arrivals, FutureStream

        task: int = end._object  # type: ignore[assignment]
        self._open[task] = arrivals = Arrivals(name)

        def over(end: Future[Any]) -> None:
            self._open.pop(task, None)
            arrivals.finish(end)

        end._then(over)
        return FutureStream(self, task, name, arrivals)

    def several(self, first: Future[Any], report: Submitted, options: TaskOptions) -> Any:
        """Lock held. What the user gets for a task that is about to be submitted."""
        count, name = options.num_returns, report.name
        if not isinstance(count, int):
            report.returns, report.buffer = STREAM, options.stream_buffer
            return self.open(first, name)
        report.returns = count
        shell = self._shell
        futures = [first]
        for index in range(1, count):
            shell._last_id = object_id = shell._last_id + 1
            future: Future[Any] = Future(shell, object_id, f"{name}[{index}]")
            shell._pending[object_id] = future
            futures.append(future)
        return futures

    def task_of(self, object_id: int) -> int:
        """Lock held. The task that makes an object."""
        task = self._shell.machine.submission.task_of(object_id)
        return object_id if task is None else task.id

    def failed(self, error: Exception, name: str, options: TaskOptions) -> Any:
        """What the user gets for a task that cannot even be sent."""
        from ..wire.outcomes import dump_error

        failure = (ERROR, dump_error(error), name)
        count = options.num_returns
        failed_future = self._shell.failed_future
        if count == 1:
            return failed_future(failure, name)
        if isinstance(count, int):
            return [failed_future(failure, name) for _ in range(count)]
        end = failed_future(failure, name)
        with self._shell._lock:
            return self.open(end, name)

    def deliver(self, command: Delivered) -> None:
        """Lock held. A value has come; the reader passes it on, as it completes futures."""
        shell, value = self._shell, command.value
        arrivals = self._open.get(command.task)
        name = arrivals.next_name() if arrivals is not None else ""
        future: Future[Any] = Future(shell, command.object, name)
        if arrivals is not None:
            if command.status == READY and extent_of(value) is not None:
                shell._stored[command.object] = future
            future._then(arrivals.add)
            shell._completions.append((future, command.status, value))

    # -- what a stream needs of its process

    def take(self, task: int, arrivals: Arrivals) -> None:
        """Tell how many values have been taken."""
        shell = self._shell
        if task not in self._open or os.getpid() != shell.pid:
            return
        with shell._lock:
            if task in self._open and not shell.ended.is_set():
                with shell._change:
                    shell._feed(Consumed(task, arrivals.taken()))
                    shell._pool.flush()

    def wait(self, task: int, arrivals: Arrivals) -> None:
        """Wait until something has come."""
        shell = self._shell
        if os.getpid() != shell.pid:
            raise RuntimeError("this stream belongs to the process that this one was forked from")
        # Again: a Ctrl-C may have kept the last one from being told.
        self.take(task, arrivals)
        if shell._reader.is_current():
            shell._reader.pump(arrivals.is_ready, None)
            return
        if shell._reader.burst_until:
            shell.end_burst()
        if shell._change.halfway:
            shell._reader.poke()
        arrivals.block()

    def close(self, task: int) -> None:
        """Nobody takes any more of it."""
        if os.getpid() == self._shell.pid and task in self._open:
            self.note_dropped(task)

    def cancel(
        self, task: int, arrivals: Arrivals, running: bool, force: bool, recursive: bool
    ) -> bool:
        """Cancel its task, and drop what has come of it."""
        if task not in self._open or os.getpid() != self._shell.pid:
            return False
        end = self._shell._pending.get(task)
        if end is None or not end.cancel(running=running, force=force, recursive=recursive):
            return False
        arrivals.cancel()
        return True

    def note_dropped(self, task: int) -> None:
        """As `close`, for `__del__`: any thread, any time, any lock held."""
        self._closed.append(task)
        self._shell._wake()

    def catch_up(self) -> None:
        """Lock held. Close what was to be closed."""
        while self._closed:
            task = self._closed.popleft()
            arrivals = self._open.get(task)
            if arrivals is not None:
                arrivals.close()
                self._shell._feed(StreamClosed(task))
