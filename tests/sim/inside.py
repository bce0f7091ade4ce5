"""A simulated worker that owns: its main thread, and what `mailbox` and `links` do for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from owndist.core import messages as m
from owndist.core.commands import Interrupt
from owndist.core.ids import DRIVER, execution_id
from owndist.core.machine import Machine
from owndist.core.reports import (
    Received,
    Returning,
    TaskEnded,
    WaitBegun,
    WaitEnded,
    Yielded,
)
from owndist.core.values import FAILED, READY, UNREAD

from .bodies import Handle, Steps, call
from .peer import Ended, Peer
from .trees import Plan

if TYPE_CHECKING:
    from .session import Session

_RESULTS = (m.DONE, m.YIELD)


class Worker(Peer):
    """A worker process, from its fork to its end."""

    def __init__(self, session: Session, number: int) -> None:
        super().__init__(session, number, Machine(number))
        self.linked = {DRIVER: None}
        self.outbox: list[Any] = []  # unsent, to the driver
        self.record: list[Any] = []  # frames in the crash record
        self.running = (0, 0)  # there too: owner and execution
        self.unsent: dict[int, list[Any]] = {}  # posted to other workers
        self.waiting: dict[int, list[Any]] = {}  # for links
        self.gone: dict[int, None] = {}
        self.nested = 0
        self.left = False

    # -- the main thread

    def _main(self) -> Steps:
        self.queue((m.ALIVE, 1000 + self.number))
        self.flush()
        execution = self.machine.execution
        while True:
            item = self.machine.take()
            if item is not None:
                yield from self._run_task(*item)
                continue
            self.flush()
            if self.machine.may_leave():
                break
            yield lambda: bool(execution.queue) or self.machine.may_leave()
        for number in list(self.unsent):
            self.session.send(self.number, number, self.unsent.pop(number))
        self.flush()

    def stop(self) -> None:
        self.alive = False
        self.left = True

    def _run_task(self, owner: int, message: Any) -> Steps:
        _, task, attempt, *_ = message
        session = self.session
        outermost = not self.nested
        if outermost:
            self.running = (owner, execution_id(task, attempt))
        plan = session.things[owner, task]
        assert isinstance(plan, Plan)
        turn = session.started(self, owner, task, plan)
        yield None
        outcome = yield from call(self, owner, message, plan, turn)
        status, value, handles, view = outcome
        if status == FAILED:
            session.raised[owner, task] = session.raised.get((owner, task), 0) + 1
        del outcome
        if status == UNREAD:
            session.starts[owner, task] -= 1
        if handles:
            yield from self._announce(handles)
        else:
            yield None
        mapped = tuple(self.memory.mapped(self.number))
        self.feed(TaskEnded(task, attempt, status, value, plan.elapsed_ns, mapped))
        handles.clear()
        self.forget()
        self.locked = True
        yield None
        self.locked = False
        if outermost:
            self.running = (0, 0)
        if session.rng.random() < 0.5:
            self.flush()
        del view

    def _announce(self, handles: list[Handle]) -> Steps:
        self.feed(Returning(tuple([handle.ref for handle in handles])))
        self.flush()
        unanswered = self.machine.borrowing.unanswered
        yield lambda: not unanswered

    def tell(self, task: int, attempt: int, index: int, value: Any, handles: list[Handle]) -> Steps:
        """The running task has one of several values; as in `Deliveries`."""
        if handles:
            yield from self._announce(handles)
        mapped = tuple(self.memory.mapped(self.number))
        self.feed(Yielded(task, attempt, index, READY, value, mapped))
        handles.clear()
        self.forget()
        yield None

    def perform(self, command: object) -> None:
        """A task takes no notice of an interrupt: that is the hard case."""
        if not isinstance(command, Interrupt):
            super().perform(command)
            return
        owner, task, attempt = command.execution
        assert (owner, task) in self.session.cancelled, f"task {task} is hit by mistake"
        if command.force:
            assert self.running == (owner, execution_id(task, attempt)), "another one is killed"
            self.alive = False
            raise Ended

    def wait_for(self, handle: Handle, helps: bool) -> Steps:
        refs = (handle.ref,)
        while helps and handle.outcome is None:
            item = self.machine.take_awaited(refs)
            if item is None:
                break
            self.nested += 1
            yield from self._run_task(*item)
            self.nested -= 1
            self.judge()
            self.complete()
        if handle.outcome is None:
            task = self.machine.execution.running
            self.feed(WaitBegun(refs))
            self.flush()
            yield lambda: handle.outcome is not None
            self.feed(WaitEnded(task))
            self.flush()

    # -- messages out, as `runtime.mailbox` and `runtime.links`

    def post(self, peer: int, message: Any) -> None:
        self.session.perhaps_kill(self)
        if peer == DRIVER:
            self.queue(message)
            if message[0] != m.DONE:
                self.flush()
            return
        if message[0] in _RESULTS:
            self.record.append((m.SAY, peer, [message]))
        if peer in self.linked:
            self.unsent.setdefault(peer, []).append(message)
        elif peer not in self.gone:
            first = peer not in self.waiting
            self.waiting.setdefault(peer, []).append(message)
            if first:
                self.queue((m.CONNECT, peer))
                self.flush()
                return
        if message[0] not in _RESULTS or not self.machine.execution.queue:
            self._flush_links()

    def queue(self, message: Any) -> None:
        self.record.append(message)
        self.outbox.append(message)

    def flush(self) -> None:
        outbox, self.outbox = self.outbox, []
        self.session.send(self.number, DRIVER, outbox)
        self.session.perhaps_kill(self)
        if self._flush_links():
            self.record.clear()

    def _flush_links(self) -> bool:
        for number in list(self.unsent):
            if self.session.rng.random() < self.session.full:
                continue  # no room in the socket
            self.session.send(self.number, number, self.unsent.pop(number))
        return not self.unsent and not self.waiting

    # -- messages in, as `runtime.worker`

    def actions(self) -> list[tuple[str, int, int]]:
        found = super().actions()
        if (self.outbox or self.unsent) and not self.locked:
            found.append(("flush", 0, 4))
        return found

    def hear(self, number: int) -> None:
        messages, alive = self.session.receive(number, self.number)
        self.take_in(number, messages)
        if not alive:
            self._close(number)
        self._flush_links()

    def take_in(self, number: int, messages: list[Any]) -> None:
        rest: list[Any] = []
        for message in messages:
            if message[0] == m.LINK:
                self._link(message[1])
            elif message[0] in (m.SAID, m.GONE):
                self._hand_in(number, rest)
                rest = []
                other = message[1]
                if other in self.linked:
                    self.take_in(other, self.session.receive(other, self.number, True)[0])
                if message[0] == m.GONE:
                    self.gone[other] = None
                    self.waiting.pop(other, None)
                    self._close(other)
                rest.append(message)
            else:
                rest.append(message)
        self._hand_in(number, rest)

    def _hand_in(self, number: int, messages: list[Any]) -> None:
        if messages:
            self.feed(Received(number, messages))

    def _link(self, number: int) -> None:
        if number not in self.gone:
            self.linked[number] = None
            waiting = self.waiting.pop(number, [])
            if waiting:
                self.unsent[number] = waiting

    def _close(self, number: int) -> None:
        self.linked.pop(number, None)
        self.unsent.pop(number, None)
        self.gone[number] = None
