"""`OwnershipExecutor`: the executor of `concurrent.futures`, with futures as arguments."""

from __future__ import annotations

import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from .config import TaskOptions, check_amount, resolve_options
from .futures import Future
from .runtime.arguments import Shared
from .runtime.current import here
from .wire.pickling import pickling_for

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext
    from types import TracebackType

    from .listing import References
    from .runtime.driver import Driver
    from .runtime.worker import Worker
    from .statistics import Statistics

T = TypeVar("T")

__all__ = ["OwnershipExecutor", "current_executor"]


class OwnershipExecutor(ProcessPoolExecutor):
    """A `ProcessPoolExecutor` whose futures may be arguments, and which survives its workers.

    Change the import, and a script for `ProcessPoolExecutor` works. Beyond it:

    * A future as an argument stands for its value. It goes from the worker that made it to the
      worker that takes it, large ones through shared memory, never through this process.
    * A worker that dies costs the task it ran a retry, and no other task anything.
    * Functions of `__main__`, lambdas and closures work under every start method, and no
      `if __name__ == "__main__"` guard is needed.

    Args:
        max_workers: how many worker processes at most; the number of usable processors by
            default. They are started as they are needed.
        mp_context: a `multiprocessing` context, for its start method; the default context's by
            default, or "spawn" with `max_tasks_per_child`, as in the standard library.
        initializer: called once in every worker before its first task.
        initargs: its arguments.
        max_tasks_per_child: after so many tasks a worker is replaced; not with "fork".
        max_retries: how often a task is run again after its worker died under it.
        retry_exceptions: exception types that a task is run again for, from the same budget.
        store_bytes: how much shared memory the values of this executor may take, in all processes
            together. When they fill four fifths of it, those that are longest unused and that
            nobody looks at move to files in the temporary directory; what finds no room goes there
            at once. By default nine tenths of `/dev/shm`, and at most half of the memory that the
            machine has or the control group allows.
        worker_memory_bytes: how much memory the workers may use together, besides that of values.
            When they use more, the task that began last, of those of the function that most of
            them run, is ended with its worker and run again, if it may be. By default nobody looks.
        lineage_bytes: how much memory each process that submits tasks may use to remember how its
            values were made, so that lost ones can be computed again; beyond it the oldest are
            forgotten. 0 for none.
        max_pending_tasks: while so many tasks have no outcome, `submit` waits. By default it never
            does. A callback's `submit` does not wait either, nor does any if no task could go on
            by itself.
        max_pending_bytes: the same, while the arguments of such tasks have so many bytes.

    Raises:
        ValueError: a number is out of range, or "fork" with `max_tasks_per_child`.
        TypeError: `initializer` cannot be called, or a number is none.

    Thread safety: any number of threads may use it at once. A process that is forked from this one
    cannot use it.

    Source: the design is that of "Ownership: A Distributed Futures System for Fine-Grained Tasks"
    (Wang et al., NSDI 2021).
    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: BaseContext | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = None,
        max_retries: int = 3,
        retry_exceptions: Iterable[type[BaseException]] = (),
        store_bytes: int | None = None,
        worker_memory_bytes: int | None = None,
        lineage_bytes: int = 64 << 20,
        max_pending_tasks: int | None = None,
        max_pending_bytes: int | None = None,
    ) -> None:
        # The parent's __init__ does not run: it would make the queues and threads of another
        # design. Everything public is overridden.
        if max_workers is None:
            from .runtime.cpus import usable_cpus

            max_workers = usable_cpus()
        elif not isinstance(max_workers, int):
            raise TypeError(f"max_workers must be an int or None, not {max_workers!r}")
        elif max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if mp_context is None:
            import multiprocessing

            mp_context = multiprocessing.get_context(
                "spawn" if max_tasks_per_child is not None else None
            )
        method = mp_context.get_start_method(allow_none=False)
        if max_tasks_per_child is not None:
            if not isinstance(max_tasks_per_child, int):
                raise TypeError("max_tasks_per_child must be an integer")
            if max_tasks_per_child <= 0:
                raise ValueError("max_tasks_per_child must be >= 1")
            if method == "fork":
                raise ValueError(
                    "max_tasks_per_child is incompatible with the 'fork' multiprocessing start "
                    "method; supply a different mp_context"
                )
        check_amount("store_bytes", store_bytes)
        check_amount("worker_memory_bytes", worker_memory_bytes)
        check_amount("lineage_bytes", lineage_bytes, least=0)
        check_amount("max_pending_tasks", max_pending_tasks)
        check_amount("max_pending_bytes", max_pending_bytes)
        self._max_workers = max_workers
        self._max_tasks_per_child = max_tasks_per_child
        self._mp_context = mp_context
        self._options = resolve_options(
            TaskOptions(), {"max_retries": max_retries, "retry_exceptions": retry_exceptions}
        )
        self._arguments = (
            max_workers,
            method,
            initializer,
            tuple(initargs),
            max_tasks_per_child,
            store_bytes,
            max_pending_tasks,
            max_pending_bytes,
            worker_memory_bytes,
            lineage_bytes,
            max_retries,
        )
        self._pid = os.getpid()
        self._making = threading.Lock()  # held while the driver is made
        self._begun = False  # a task has come; before that nothing runs, and little is imported

    # -- the driver

    _driver: Driver

    def __getattr__(self, name: str) -> Any:
        if name == "_driver":  # asked for before the first task: nothing need be started
            return self._make_driver(begin=False)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _begin(self) -> Driver:
        """The driver, of which a task is now wanted."""
        return self._driver if self._begun else self._make_driver(begin=True)

    def _make_driver(self, begin: bool) -> Driver:
        if os.getpid() != self._pid:
            # In a process forked from ours, where a thread that is not here may hold the lock.
            if "_driver" not in self.__dict__:
                self._driver = _new_driver(*self._arguments)
                self._driver.let_go_in_child()  # it tells whoever wants something of it
            return self._driver
        # A Ctrl-C in the middle waits until all is there, or undone.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            with self._making:
                if "_driver" not in self.__dict__:
                    self._driver = (_start_driver if begin else _new_driver)(*self._arguments)
                    # What the user gave us is not kept any longer than it is needed.
                    del self._arguments
                    # An executor that is garbage finishes its work and ends, as in the standard
                    # library.
                    self._finalizer = weakref.finalize(self, self._driver.ask_close)
                    self._finalizer.atexit = False  # the driver has a hook of its own
                self._begun = self._begun or begin
                return self._driver
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    @classmethod
    def _inside(cls, worker: Worker) -> OwnershipExecutor:
        """The executor as the tasks of a worker see it."""
        executor = cls.__new__(cls)
        setup = worker._setup
        executor._max_workers = setup.max_workers
        executor._max_tasks_per_child = None
        executor._options = TaskOptions(setup.max_retries)
        executor._begun = True
        executor._pid = os.getpid()
        executor._driver = worker  # type: ignore[assignment]  # it has all that tasks may call
        return executor

    # -- work

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Have `fn(*args, **kwargs)` called in a worker.

        A future among the arguments stands for its value, also inside lists, tuples, sets and
        dicts: the task starts when all are there. If one failed, the task does not run and its
        future raises the same error. Futures of other executors are waited for, too.

        Returns:
            A future for what `fn` returns.

        Raises:
            RuntimeError: the executor is shut down.
            BrokenProcessPool: no worker can be had (the initializer failed).
            NotSerializable: the function or an argument cannot be pickled (a
                `pickle.PicklingError`); the text names the part.

        Cost: about 10 µs. Arguments of more than 100 KiB in all are copied to shared memory.
        """
        driver = self._driver if self._begun else self._make_driver(begin=True)
        future: Future[T] = driver.submit(fn, args, kwargs, self._options)
        return future

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Call `fn` with the items of the iterables, in workers, and give the results in order.

        Args:
            timeout: seconds from now until which the results are waited for.
            chunksize: how many items make one task. By default, short items are sent many at a
                time and long ones singly, without a difference but in speed.
            buffersize: how many items may be submitted ahead of the one that is asked for, so
                that an endless iterable can be mapped. By default all are submitted at once.

        Raises:
            TimeoutError: a result is not there in time; raised by the iterator.
            ValueError: `chunksize` or `buffersize` is less than 1.
            Exception: what `fn` raised, when its result is due; raised by the iterator.
        """
        return _map(self.submit, self, self._options, fn, iterables, timeout, chunksize, buffersize)

    def options(self, **options: Any) -> OptionsView:
        """A view of this executor whose tasks have other options.

        Args:
            max_retries: how often a task runs again after its worker died under it; 0 for never.
            retry_exceptions: exception types that a task runs again for, from the same budget.
            name: what errors and logs call the task.
            num_returns: how many values the task has. With n, `submit` returns a list of n
                futures, and the function has to return a tuple or list of n values: each is
                stored, passed on and freed by itself. With "stream", the function is a generator
                function, or returns an iterable, and `submit` returns a `FutureStream`, which
                gives a future for each value as soon as it is yielded. Not for `map`.
            stream_buffer: how many values of a stream may be there that nobody has taken; beyond,
                the generator is paused.

        Raises:
            TypeError: there is no such option, or a value has the wrong type.
            ValueError: a value is out of range.

        Example:
            executor.options(max_retries=0, name="pay").submit(pay, order)
        """
        return OptionsView(self, resolve_options(self._options, options))

    def put(self, value: T) -> Future[T]:
        """Store a value once, to be an argument of many tasks.

        Returns:
            A future that is done.

        Raises:
            RuntimeError: the executor is shut down.
            NotSerializable: it cannot be pickled.
            StoreFull: there is no room for it.

        Cost: one copy, to shared memory if it is larger than 100 KiB.
        """
        return self._begin().put(value)

    def shared(self, future: Future[T]) -> Any:
        """Mark a future that is to reach a task as a future, not as its value.

        The task may ask for the value when it likes, keep the future or return it; as long as it
        is kept anywhere, so is the value. (The paper's `shared`, section 3.1.)

        Raises:
            TypeError: `future` is not a future of this executor.
        """
        if not isinstance(future, Future) or future._peer is not self._driver:
            raise TypeError(f"shared() takes a future that this executor made, not {future!r}")
        return Shared(future)

    # -- ending

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more tasks, and end the workers when those at hand are done.

        Args:
            wait: return only when all of it is over and every process has ended.
            cancel_futures: cancel what has not started.

        Results stay readable. Ctrl-C while it waits ends the workers at once.
        """
        self._driver.shutdown(wait, cancel_futures)

    def terminate_workers(self) -> None:
        """End the workers at once, with SIGTERM.

        Queued tasks are cancelled; the futures of running ones raise `BrokenProcessPool`. The
        executor is shut down. (In the standard library from Python 3.14 on.)
        """
        self._driver.abort("the workers were terminated", signal.SIGTERM)

    def kill_workers(self) -> None:
        """End the workers at once, with SIGKILL; else as `terminate_workers`."""
        self._driver.abort("the workers were killed", signal.SIGKILL)

    def __enter__(self) -> OwnershipExecutor:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        if exc_type is not None and issubclass(exc_type, KeyboardInterrupt):
            # Whoever presses Ctrl-C does not want to wait for what is queued.
            self._driver.abort("the program was interrupted")
        self.shutdown(wait=True)
        return None

    # -- looking

    def statistics(self) -> Statistics:
        """Counters since the start; exact at the moment of the call."""
        from .statistics import Statistics

        return Statistics(**self._driver.counters())

    def references(self) -> References:
        """Tell which objects this process knows, and why each of them is kept.

        Those that it owns, because it has submitted their tasks or `put` them, and those that it
        has borrowed. `print(executor.references())` shows a table, the largest values first.
        Inside a task it tells of that task's process. What a running task takes is its owner's
        pending argument; it is not said which processes map it meanwhile.
        """
        from .listing import describe

        return describe(*self._driver.list_objects())

    @property
    def _broken(self) -> bool:  # type: ignore[override]
        # Private in the standard library too, and yet programs look at it.
        return self._driver.machine.broken is not None

    def __repr__(self) -> str:
        return f"<OwnershipExecutor at {id(self):#x}: {self._driver.describe()}>"

    def __reduce__(self) -> Any:
        if pickling_for() is not self._driver:
            raise TypeError(
                "an OwnershipExecutor can be pickled only as an argument of its own tasks, which "
                "may submit tasks to it; anywhere else it belongs to the process that made it"
            )
        return current_executor, ()


def current_executor() -> OwnershipExecutor:
    """Return the executor that runs the calling task, for tasks that submit tasks.

    The task's worker owns the futures of what it submits. It sends the tasks straight to other
    workers, and gets the results straight from them. A task that waits for one of its own tasks
    runs that one itself if nobody has started it, or lends its worker's place to another worker.

    `submit`, `map`, `put`, `shared`, `options` and `statistics` work as in the driver; `map` makes
    one task of each item. An executor cannot be shut down from inside.

    Raises:
        RuntimeError: no task runs in this process, or it is being initialized.
    """
    worker = here.worker
    if worker is None or not worker._is_ours():
        raise RuntimeError("current_executor() is for tasks: this process runs none")
    if here.executor is None:
        here.executor = OwnershipExecutor._inside(worker)
    found: OwnershipExecutor = here.executor
    return found


class OptionsView:
    """An executor with other options for the tasks that are submitted through it.

    Made by `OwnershipExecutor.options`; it shares everything else with its executor.
    """

    def __init__(self, executor: OwnershipExecutor, options: TaskOptions) -> None:
        self._executor = executor
        self._options = options

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """As `OwnershipExecutor.submit`, with this view's options.

        Returns:
            A future; with `num_returns=n` a list of n futures; with "stream" a `FutureStream`.
        """
        submitted = self._executor._begin().submit(fn, args, kwargs, self._options)
        if self._options.num_returns == "stream":
            submitted._executor = self._executor
        return submitted

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """As `OwnershipExecutor.map`, with this view's options."""
        return _map(
            self.submit,
            self._executor,
            self._options,
            fn,
            iterables,
            timeout,
            chunksize,
            buffersize,
        )

    def options(self, **options: Any) -> OptionsView:
        """A view with still other options."""
        return OptionsView(self._executor, resolve_options(self._options, options))

    def __repr__(self) -> str:
        return f"<options {self._options} of {self._executor!r}>"


def _map(
    submit: Callable[..., Future[Any]],
    executor: OwnershipExecutor,
    options: TaskOptions,
    fn: Callable[..., Any],
    iterables: tuple[Iterable[Any], ...],
    timeout: float | None,
    chunksize: int | None,
    buffersize: int | None,
) -> Iterator[Any]:
    if options.num_returns != 1:
        raise ValueError("map gives one result for each item; num_returns is for submit")
    if chunksize is not None and chunksize < 1:
        raise ValueError("chunksize must be >= 1.")
    if buffersize is not None:
        if not isinstance(buffersize, int):
            raise TypeError("buffersize must be an integer or None")
        if buffersize < 1:
            raise ValueError("buffersize must be None or > 0")
    from .mapping import map_batched, map_in_chunks, map_one_by_one

    items = zip(*iterables, strict=False)
    if chunksize is not None and chunksize > 1:
        return map_in_chunks(submit, fn, items, timeout, chunksize, buffersize)
    if chunksize == 1 or buffersize is not None:
        return map_one_by_one(submit, fn, items, timeout, buffersize)
    if executor is here.executor:  # inside a task
        return map_one_by_one(submit, fn, items, timeout, None)
    if type(executor).submit is not OwnershipExecutor.submit or executor._max_tasks_per_child:
        # A subclass sees every item; and an item counts as a task.
        return map_one_by_one(submit, fn, items, timeout, None)
    return map_batched(submit, executor._begin, options, fn, items, timeout, executor._max_workers)


def _new_driver(*arguments: Any) -> Driver:
    # Half of the package, for those who need a driver and not for those who import it.
    from .runtime.driver import Driver

    return Driver(*arguments)


def _start_driver(max_workers: int, method: str, *arguments: Any) -> Driver:
    """Make a driver and start it, with its template process at the right moment.

    Most of the time that a first task takes goes into imports. Under fork all of them come before
    the fork: what is loaded then is loaded once for all processes, which share its pages; and
    after a fork the first write to each page costs some 4 µs, in either process. Under spawn and
    forkserver nothing is shared: there both processes import at the same time.
    """
    driver = _new_driver(max_workers, method, *arguments) if method == "fork" else None
    from .runtime.launch import launch

    initializer, initargs, _, store_bytes, *_, lineage_bytes, max_retries = arguments
    launched = launch(
        max_workers, method, initializer, initargs, store_bytes, lineage_bytes, max_retries
    )
    try:
        driver = driver or _new_driver(max_workers, method, *arguments)
    except BaseException:
        launched.undo()
        raise
    driver.start(launched)
    return driver


OwnershipExecutor.__module__ = OptionsView.__module__ = "owndist"
