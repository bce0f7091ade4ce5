"""The worker processes of a driver: their links, their crash records, the template they come from.

Everything here is called with the driver's lock held. What the links bring is handed to the
driver's `feed`, which takes it to the machine.
"""

from __future__ import annotations

import itertools
import logging
import os
import selectors
import signal
import socket
from collections.abc import Callable, Container
from typing import Any

from ..core import messages as m
from ..core.reports import Received, WorkerEnded
from ..store.ledger import Ledger
from ..store.segments import (
    segment_name,
    size_of_segment,
    sweep,
    unlink_segment,
    unlink_segments,
)
from ..transport.link import Link
from ..wire.frames import FrameDecoder
from ..wire.functions import Encoder
from .courier import Courier
from .crash_record import CrashRecord, create_file
from .nursery import Nursery, Started, fork_quietly
from .setup import WorkerSetup


class WorkerProcess:
    """What the driver keeps about one worker process."""

    __slots__ = (
        "at_end",
        "courier",
        "doomed",
        "link",
        "linked",
        "number",
        "nursery",
        "pid",
        "record",
        "signalled",
    )

    def __init__(
        self, number: int, link: Link, record: CrashRecord, nursery: Nursery, courier: Courier
    ) -> None:
        self.number = number
        self.link = link
        self.record = record
        self.nursery = nursery  # the template that forks it, and tells of its end
        self.pid: int | None = None
        self.courier = courier
        self.linked: set[int] = set()  # workers to which it was given a link of its own
        self.at_end = False  # nothing more comes by the link
        self.signalled = 0  # the last signal that it was sent
        # (execution, owner): for the sake of that one it is being killed.
        self.doomed: tuple[int, int] | None = None


class WorkerPool:
    """The processes that run an executor's tasks.

    Args:
        nursery: the template process.
        setup: what every worker is told.
        keep_fds: descriptors that a template in its place must be given.
        encoder: has the definitions of the functions that are submitted.
        selector: waits on the links and the template.
        feed: takes a report to the machine.
        log: takes level, text and arguments of what is to be logged.
        ledger: counts the shared memory of all of them.
    """

    def __init__(
        self,
        nursery: Nursery,
        setup: WorkerSetup,
        keep_fds: tuple[int, ...],
        encoder: Encoder,
        selector: selectors.BaseSelector,
        feed: Callable[[object], None],
        log: Callable[[int, str, tuple[Any, ...]], None],
        ledger: Ledger,
    ) -> None:
        self.processes: dict[int, WorkerProcess] = {}
        self._setup = setup
        self._keep_fds = keep_fds
        self._encoder = encoder
        self._selector = selector
        self._feed = feed
        self._log = log
        self._ledger = ledger
        self._left: dict[str, int] = {}  # {segment of a dead worker: its bytes of shared memory}
        self.unflushed: dict[int, Link] = {}  # links with messages posted and not sent
        self._blocked: dict[int, Link] = {}  # links whose socket is full
        # (worker, whom it wants a link to): there were no descriptors. See `make_late`.
        self.unlinked: list[tuple[WorkerProcess, int]] = []
        self._past_sent = self._past_received = 0  # bytes of links that are closed
        self._segments: dict[int, int] = {}  # how many a dead worker made, until they are swept
        self._slots: dict[int, int] = {}  # and their places in the ledger
        self._nursery: Nursery | None = nursery  # None: it died, and there cannot be another yet
        selector.register(nursery, selectors.EVENT_READ, nursery)

    # -- to the workers

    def spawn(self, number: int) -> None:
        """Have a worker started under this number.

        Raises:
            OSError: there are no descriptors, or there is no template. Nothing is left.
        """
        if self._nursery is None:
            self._start_nursery(late=True)
        if self._nursery is None:
            raise OSError("the template process died, and another one cannot be started")
        ours, theirs = socket.socketpair()
        record_fd = create_file()
        try:
            link = Link(ours)
            payload = self._setup.payload
            known = set(payload.definitions) if payload is not None else set()
            record = CrashRecord(record_fd)
            used = {*self._slots.values(), *(w.record.slot for w in self.processes.values())}
            record.slot = next(slot for slot in itertools.count(1) if slot not in used)
            entries = {}
            if payload is not None:
                entries = {self._encoder.entry_name[key]: key for key in payload.entries}
            courier = Courier(self._encoder, known, entries)
            worker = WorkerProcess(number, link, record, self._nursery, courier)
            self._selector.register(link, selectors.EVENT_READ, worker)
            try:
                self._nursery.start_worker(number, theirs, record_fd)
            except OSError:
                self._selector.unregister(link)
                raise
            self.processes[number] = worker
        finally:
            theirs.close()
            os.close(record_fd)

    def post(self, number: int, message: tuple[Any, ...]) -> None:
        """Have a message sent with the next `flush`, after the definitions that it needs."""
        worker = self.processes.get(number)
        if worker is None:
            return
        worker.courier.post(worker.link, message)
        self.unflushed[number] = worker.link

    def forget(self, kept: Container[int]) -> None:
        """Have workers drop all definitions but these."""
        for number, worker in self.processes.items():
            if worker.courier.forget(worker.link, kept):
                self.unflushed[number] = worker.link

    @property
    def is_short(self) -> bool:
        """Whether there is something that could not be made for want of descriptors or memory."""
        return bool(self.unlinked) or self._nursery is None

    def make_late(self) -> None:
        """Try once more to make what could not be made."""
        if self._nursery is None:
            self._start_nursery(late=True)
        if not self.unlinked:
            return
        waiting, self.unlinked = self.unlinked, []
        for worker, number in waiting:
            if not worker.at_end:
                self._connect(worker, number, late=True)

    def _connect(self, one: WorkerProcess, number: int, late: bool = False) -> None:
        """Give two workers a link of their own."""
        other = self.processes.get(number)
        if other is None:
            # Its end was told to all, but this one may be younger.
            self.post(one.number, (m.GONE, number, 0, 0, None, None, ""))
            return
        if number in one.linked or other.at_end:
            return  # there is one, or its end is about to be told
        try:
            ends = socket.socketpair()
        except OSError as error:
            self.unlinked.append((one, number))
            if not late:
                text = "workers %d and %d get their link later: %s"
                self._log(logging.WARNING, text, (one.number, number, error))
            return
        one.linked.add(number)
        other.linked.add(one.number)
        for worker, peer, end in ((one, number, ends[0]), (other, one.number, ends[1])):
            worker.link.post_with_fd((m.LINK, peer), end)
            self.unflushed[worker.number] = worker.link

    def flush(self) -> None:
        """Send what was posted."""
        for number, link in self.unflushed.items():
            if not link.flush() and number not in self._blocked:
                worker = self.processes[number]
                if not worker.at_end:
                    self._blocked[number] = link
                    both = selectors.EVENT_READ | selectors.EVENT_WRITE
                    self._selector.modify(link, both, worker)
        self.unflushed.clear()

    def kill_all(self, signum: int) -> None:
        """Send a signal to every worker."""
        for worker in self.processes.values():
            self._signal(worker, signum)

    def pids(self) -> list[int]:
        """The process ids of the workers, as far as they are known. Any thread."""
        return [w.pid for w in list(self.processes.values()) if w.pid is not None]

    def kill(self, number: int) -> None:
        """End one worker at once."""
        worker = self.processes.get(number)
        if worker is not None:
            self._signal(worker, signal.SIGKILL)

    def _signal(self, worker: WorkerProcess, signum: int) -> None:
        worker.signalled = signum
        if worker.nursery is self._nursery:
            worker.nursery.kill(worker.number, signum)
        elif worker.pid is not None and not worker.at_end:
            # Its template is dead, and somebody else reaps it.
            try:
                os.kill(worker.pid, signum)
            except ProcessLookupError:
                pass  # it has just ended: the link will tell

    def kill_if_running(self, number: int, owner: int, execution: int) -> None:
        """End one worker, if this execution of a task is what it runs."""
        worker = self.processes.get(number)
        one = (execution, owner)
        if worker is None:
            return
        if worker.doomed is None and worker.record.condemn(*one):
            worker.doomed = one
        if worker.doomed == one:
            self._signal(worker, signal.SIGKILL)

    def tell_of_laggards(self) -> None:
        """Log which workers were told to stop and have not."""
        for worker in self.processes.values():
            text = "worker %d (pid %s) does not end: it waits for its threads or finalizers"
            self._log(logging.WARNING, text, (worker.number, worker.pid))

    # -- from the workers

    def on_ready(self, data: object, events: int) -> None:
        """The selector has something for a worker or the template."""
        if type(data) is WorkerProcess:
            if data.at_end:
                return  # it ended earlier in this round
            if events & selectors.EVENT_WRITE and data.link.flush():
                self._blocked.pop(data.number, None)
                self._selector.modify(data.link, selectors.EVENT_READ, data)
            self.read(data)
        elif isinstance(data, Nursery) and data is self._nursery:
            self._hear_nursery(data)

    def read_all(self) -> None:
        """Take in what workers have sent."""
        for worker in list(self.processes.values()):
            self.read(worker)

    def read(self, worker: WorkerProcess) -> None:
        """Take in what one worker has sent."""
        if worker.at_end:
            return
        messages, alive = worker.link.receive()
        if messages:
            for message in messages:
                if message[0] == m.CONNECT:
                    self._connect(worker, message[1])
            self._feed(Received(worker.number, messages))
        if not alive:
            self._forget_link(worker)
            if worker.nursery is not self._nursery:
                # Its template is dead, so nobody will tell how it ended.
                self._ended(worker, None)
            else:
                # Nearly always it has just ended. If not, it has closed its end (a task that
                # makes itself a daemon does), and nobody would ever hear of it again.
                self._signal(worker, signal.SIGKILL)

    def _forget_link(self, worker: WorkerProcess) -> None:
        worker.at_end = True
        self._selector.unregister(worker.link)
        self._blocked.pop(worker.number, None)

    def _hear_nursery(self, nursery: Nursery) -> None:
        reports, alive = nursery.reports()
        for report in reports:
            worker = self.processes.get(report.worker)
            if worker is None:
                continue
            if isinstance(report, Started):
                worker.pid = report.pid
            else:
                self._ended(worker, report.exitcode)
        if not alive:
            self._replace_nursery(nursery)

    def _replace_nursery(self, old: Nursery) -> None:
        """The template was killed. Its workers live; they get a new one to end with."""
        self._nursery = None
        self._selector.unregister(old)
        old.close()
        text = "the template process (pid %d) died; starting another one"
        self._log(logging.WARNING, text, (old.pid,))
        self._start_nursery(late=False)
        for worker in list(self.processes.values()):
            if worker.at_end:
                self._ended(worker, None)
            elif worker.signalled:
                self._signal(worker, worker.signalled)  # it may have died before it did that

    def _start_nursery(self, late: bool) -> None:
        """Make a template in the place of the one that died; or try it again later.

        Until there is one no worker can be started, and nobody tells how one ended; that it did is
        told by its link.
        """
        try:
            made = fork_quietly(lambda: Nursery(self._setup, self._keep_fds))
        except OSError as error:
            if not late:
                text = "another template process cannot be started yet: %s"
                self._log(logging.WARNING, text, (error,))
            return
        self._nursery = made
        self._selector.register(made, selectors.EVENT_READ, made)
        for worker in self.processes.values():
            if worker.pid is not None and not worker.at_end:
                made.adopt(worker.pid)

    def _ended(self, worker: WorkerProcess, exitcode: int | None) -> None:
        """A worker process is gone: take in what it left."""
        number = worker.number
        self.read(worker)
        if self.processes.pop(number, None) is None:
            return
        if not worker.at_end:
            # Something that it forked still holds its end of the link.
            self._forget_link(worker)
        self.unflushed.pop(number, None)
        self._past_sent += worker.link.bytes_sent
        self._past_received += worker.link.bytes_received
        worker.link.close()
        record = worker.record
        unsent = FrameDecoder().feed(record.outbox())
        # What it gave back is nobody's now in any case. And the words may have been heard before;
        # a second time they would be taken for the answer to a later question.
        skipped = (m.SAY, m.CONNECT, m.RECALLED)
        mine = [message for message in unsent if message[0] not in skipped]
        if mine:
            self._feed(Received(number, mine))
        for message in unsent:
            if message[0] == m.SAY:
                self.post(message[1], (m.SAID, number, message[2]))
        running, owner, stack = record.running, record.owner, record.stack()
        self._segments[number] = record.segments
        self._slots[number] = record.slot
        record.close()
        self._feed(WorkerEnded(number, running, worker.pid, exitcode, stack, owner))

    def sweep(self, number: int, keep: frozenset[str]) -> None:
        """Unlink what a dead worker wrote, but these segments."""
        session, directory = self._setup.session, self._setup.spill_directory
        count = self._segments.pop(number, 0)
        if not keep:
            unlink_segments(session, number, count, directory)
        else:
            for k in range(count):
                name = segment_name(session, number, k)
                for place in (name, os.path.join(directory, name)):
                    if place not in keep:
                        unlink_segment(place)
        left = {name: size_of_segment(name) for name in keep if not os.path.isabs(name)}
        self._left.update(left)
        self._ledger.bury(self._slots.pop(number, 0), sum(left.values()))

    def unlink(self, segment: str) -> None:
        """Remove what a dead worker has left: nobody needs it any more."""
        unlink_segment(segment)
        self._ledger.give(self._left.pop(segment, 0))

    # -- both

    def traffic(self) -> tuple[int, int]:
        """Bytes sent and received by the driver so far."""
        links = [worker.link for worker in self.processes.values()]
        return (
            self._past_sent + sum(link.bytes_sent for link in links),
            self._past_received + sum(link.bytes_received for link in links),
        )

    def close(self) -> None:
        """All workers have ended: end the template, which cleans up what is left."""
        for worker in self.processes.values():
            worker.link.close()
        if self._nursery is not None:
            self._nursery.close()
        # It has cleaned up, unless it was killed.
        sweep(self._setup.session, self._setup.spill_directory)
        # What the user gave us is not kept any longer than it is needed.
        self._setup.initializer, self._setup.initargs = None, ()

    def let_go(self) -> None:
        """In a process forked from the driver: nothing here is ours."""
        for worker in self.processes.values():
            worker.link.close()
        if self._nursery is not None:
            self._nursery.abandon()
