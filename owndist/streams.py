"""The values of a generator task, one by one: an iterator of futures."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .futures import Future

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Protocol

    class StreamPeer(Protocol):
        """What a stream needs of the process it lives in."""

        def take(self, task: int, arrivals: Arrivals) -> None: ...
        def wait(self, task: int, arrivals: Arrivals) -> None: ...
        def close(self, task: int) -> None: ...
        def cancel(
            self, task: int, arrivals: Arrivals, running: bool, force: bool, recursive: bool
        ) -> bool: ...
        def note_dropped(self, task: int) -> None: ...


T = TypeVar("T")

__all__ = ["FutureStream"]


class Arrivals:
    """What has come of a stream and was not taken yet.

    One thread adds, any take. There is no lock that a Ctrl-C could leave locked: who waits puts
    its waker down, and looks again before it sleeps.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._futures: deque[Future[Any]] = deque()
        self._wakers: deque[Callable[[], None]] = deque()
        self._named = self._added = 0
        self.ended = False  # nothing is added any more
        self.closed = False  # nobody takes any more
        self.cancelled = False  # nothing is taken but the end

    def next_name(self) -> str:
        """What the next value's future is called."""
        self._named += 1
        return f"{self._name}[{self._named - 1}]"

    def taken(self) -> int:
        """How many have been taken."""
        # In this order: one that is added in between must not look like one that was taken.
        added = self._added
        return added - len(self._futures)

    def is_ready(self) -> bool:
        """Whether there is something, or nothing to wait for."""
        return bool(self._futures) or self.ended or self.closed

    def add(self, future: Future[Any]) -> None:
        """A value is there."""
        if not self.closed and not self.cancelled:
            self._futures.append(future)
            self._added += 1
            self._wake()

    def finish(self, end: Future[Any]) -> None:
        """The task is over. If it has failed, its own future is the last that is taken."""
        if not self.closed and not end._is_ready():
            self._futures.append(end)
        self.ended = True
        self._wake()

    def close(self) -> None:
        """Drop what nobody has taken."""
        self.closed = True
        self._futures.clear()
        self._wake()

    def cancel(self) -> None:
        """The task was cancelled, and its end has come: drop what nobody has taken."""
        self.cancelled = True
        for _ in range(len(self._futures)):
            try:
                future = self._futures.popleft()
            except IndexError:
                return
            if future.cancelled():
                self._futures.append(future)

    def pop(self) -> Future[Any] | None:
        """The next future; None if there is none yet.

        Raises:
            StopIteration: there will be none.
        """
        over = self.ended or self.closed  # before looking: what is added comes before the end
        try:
            future = self._futures.popleft()
            while self.cancelled and not future.cancelled():
                future = self._futures.popleft()  # it was added at that moment
        except IndexError:
            if over:
                raise StopIteration from None
            return None
        return future

    def call_when_ready(self, waker: Callable[[], None]) -> None:
        """Have something called, in any thread, once there is something to take."""
        self._wakers.append(waker)
        if self.is_ready():
            self._wake()

    def block(self) -> None:
        """Sleep until there is something to take."""
        gate = threading.Lock()
        gate.acquire()
        self.call_when_ready(gate.release)
        gate.acquire()

    def _wake(self) -> None:
        while self._wakers:
            try:
                waker = self._wakers.popleft()
            except IndexError:
                return  # another thread was faster
            waker()


class FutureStream(Generic[T]):
    """The values of a task, each as a future, in the order in which the task yields them.

    `OwnershipExecutor.options(num_returns="stream").submit(generator_function, ...)` makes one.
    `next` waits until the task has yielded another value, and returns its future, which is done and
    can be an argument of other tasks while the generator goes on.

    If the task raises, its error comes in its place: as one more future, whose `result()` raises
    it; then the stream ends. So it is if the task cannot be run, or was cancelled.

    At most `stream_buffer` values (16 by default) exist that nobody has taken: beyond, the
    generator is paused, and its worker's place is lent to another worker. It is closed (its
    `finally` blocks run) when the stream is closed or garbage; what nobody took is freed then.

    If the worker dies, the task runs again from its start, and what was yielded before is passed
    over: no value comes twice. So the generator should yield the same values again.

    It is an iterator, also an asynchronous one, and a context manager that closes it. Threads may
    share it: each future goes to one of them.
    """

    def __init__(self, peer: StreamPeer, task: int, name: str, arrivals: Arrivals) -> None:
        self._peer = peer
        self._task = task
        self._name = name
        self._arrivals = arrivals
        # The executor, once it is known: it is not garbage while values are to come.
        self._executor: object = None

    def __iter__(self) -> Iterator[Future[T]]:
        return self

    def __next__(self) -> Future[T]:
        """Wait for the next value and return its future."""
        while (future := self._arrivals.pop()) is None:
            self._peer.wait(self._task, self._arrivals)
        self._peer.take(self._task, self._arrivals)
        return future

    def __aiter__(self) -> FutureStream[T]:
        return self

    async def __anext__(self) -> Future[T]:
        """As `next`, without blocking the event loop."""
        import asyncio

        while True:
            try:
                future = self._arrivals.pop()
            except StopIteration:
                raise StopAsyncIteration from None
            self._peer.take(self._task, self._arrivals)
            if future is not None:
                return future
            loop = asyncio.get_running_loop()
            arrived = asyncio.Event()

            def wake(
                loop: asyncio.AbstractEventLoop = loop, arrived: asyncio.Event = arrived
            ) -> None:
                try:
                    loop.call_soon_threadsafe(arrived.set)
                except RuntimeError:
                    pass  # the loop is closed: nobody waits there any more

            self._arrivals.call_when_ready(wake)
            await arrived.wait()

    def close(self) -> None:
        """Take no more: free what is there, and have the generator closed.

        It returns at once. A generator that runs is closed when it yields its next value. What was
        taken before stays as it is.
        """
        self._arrivals.close()
        self._peer.close(self._task)

    def cancel(
        self, *, running: bool = False, force: bool = False, recursive: bool = False
    ) -> bool:
        """Keep the task from running, or stop it; see `Future.cancel`.

        What nobody has taken is freed. The stream ends with a future that is cancelled.
        """
        return self._peer.cancel(self._task, self._arrivals, running, force, recursive)

    def __enter__(self) -> FutureStream[T]:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        arrivals = self._arrivals
        if arrivals.closed:
            state = "closed"
        else:
            state = f"{len(arrivals._futures)} to take" + (", ended" if arrivals.ended else "")
        return f"<FutureStream {self._name}: {state}>"

    def __reduce__(self) -> Any:
        raise TypeError(
            "a stream cannot be pickled: it is for one reader; hand on the futures that it gives"
        )

    def __del__(self) -> None:
        # Any thread, any time, any lock held: the peer only makes a note of it.
        try:
            if not self._arrivals.ended:
                self._peer.note_dropped(self._task)
        except AttributeError:
            pass  # `__init__` did not get far


FutureStream.__module__ = "owndist"
