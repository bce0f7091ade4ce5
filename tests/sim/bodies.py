"""How a simulated process runs a body: each `yield` is a place where other threads may come in.

A generator of a process's main thread yields a condition, to wait for it, or None.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

from owndist.core.ids import Address, ExtentKey
from owndist.core.values import ERROR, FAILED, LOST, READY, UNREAD, Failure, extent_of

from .memory import Gone
from .specs import ALIAS, PARTS, STORED
from .trees import CANCEL, DROP, KEEP, LOOK, PUT, READ, SUBMIT, Op, Plan

if TYPE_CHECKING:
    from .inside import Worker
    from .peer import Peer

Steps = Generator[Callable[[], bool] | None, None, Any]


class Handle:
    """A future; the process hears of it when it is collected."""

    def __init__(self, process: Peer, ref: int | Address) -> None:
        self.process = process
        self.ref = ref
        self.outcome: tuple[int, Any] | None = None
        self.loaded: Loaded | None = None

    @property
    def address(self) -> Address:
        if isinstance(self.ref, Address):
            return self.ref
        return Address(0, self.process.number, self.ref)

    def __del__(self) -> None:
        if self.process.alive:
            self.process.dropped.append(self.ref)


class View:
    """What somebody has made of a mapping; as long as it lives, the mapping does."""

    def __init__(self, process: Peer, key: ExtentKey) -> None:
        self.process = process
        self.key = key

    def __del__(self) -> None:
        if self.process.alive and self.process.memory.unmap(self.process.number, self.key):
            self.process.unmapped.append(self.key)


class Loaded:
    """An object in a process: what it says, the futures in it, and the memory that it looks at."""

    def __init__(self, text: str, handles: list[Handle], view: View | None, content: str) -> None:
        self.text = text
        self.handles = handles
        self.view = view
        self.content = content


class Failed(Exception):
    """What a body did has failed, and so the body does."""

    def __init__(self, failure: Failure | None) -> None:
        self.failure = failure


def encode(
    process: Peer, owner: int, text: str, refs: list[Address], way: int, view: View | None
) -> Any:
    """A value as it travels."""
    if way == ALIAS and view is not None:
        same, payload = process.memory.again(view.key)
        return (same[0], pickle.dumps((text, refs, payload[0])), same[2])
    if way == STORED:
        content = f"bytes of {text}"
        fresh = process.memory.write(process.number, (content, ()))
        process.session.keepers[fresh[0][0], fresh[0][1]] = owner
        return (fresh[0], pickle.dumps((text, refs, content)), fresh[2])
    head = pickle.dumps((text, refs, ""))
    return (head, (b"buffer",)) if way == PARTS else head


def decode(value: Any) -> tuple[str, list[Address], str]:
    """Text, references and content of a value."""
    if isinstance(value, bytes):
        head = value
    elif extent_of(value) is None:
        head = value[0]
    else:
        head = value[1]
    decoded: tuple[str, list[Address], str] = pickle.loads(head)
    return decoded


def error(*said: Any) -> Failure:
    """The failure of a task whose body raised."""
    return (ERROR, pickle.dumps(said), "")


class Body:
    """One execution of a plan in a process."""

    def __init__(self, process: Peer, plan: Plan) -> None:
        self.process = process
        self.plan = plan
        self.variables: list[Handle | None] = []
        self.strangers: list[Handle] = []  # futures that the plan knows nothing of
        self.values: list[Loaded] = []

    def run(self) -> Steps:
        """The statements; raises Failed."""
        for op in self.plan.ops:
            yield from self.do(op)
            yield None

    def start(self, arguments: Loaded, slots: list[Loaded]) -> None:
        plan = self.plan
        assert arguments.text == f"arguments of {plan.name}"
        for loaded, slot in zip(slots, plan.slots, strict=True):
            assert loaded.text == slot.text, f"{plan.name} got {loaded.text} as {slot.name}"
            self.variables += loaded.handles
            self.values.append(loaded)
        count = len(plan.nested)
        self.variables += arguments.handles[:count]
        self.strangers = arguments.handles[count:]

    def do(self, op: Op) -> Steps:
        """One of them."""
        process = self.process
        if op.kind == SUBMIT:
            nested = [self._var(v) for v in op.nested]
            # A task that is given a future of what will hold its own makes a circle, if its inputs
            # are kept for the case of a loss.
            strangers = 0 if process.session.lineage_bytes else op.strangers
            for _ in range(min(strangers, len(process.globals))):
                nested.append(process.session.rng.choice(process.globals))
            assert isinstance(op.thing, Plan)
            slots = [self._var(v) for v in op.slots]
            self.variables += process.submit(op.thing, slots, nested)
        elif op.kind == PUT:
            assert op.thing is not None
            nested = [self._var(v) for v in op.nested]
            self.variables.append(process.put(op.thing, nested, op.stored))
        elif op.kind == READ:
            assert op.thing is not None
            loaded = yield from process.result(self._var(op.var), op.helps)
            assert loaded.text == op.thing.text, f"{op.thing.name} is {loaded.text}"
            assert len(loaded.handles) == len(op.thing.refs)
            self.variables += loaded.handles
            self.values.append(loaded)
        elif op.kind == DROP:
            self.variables[op.var] = None
        elif op.kind == KEEP:
            process.globals.append(self._var(op.var))
        elif op.kind == CANCEL:
            yield from process.cancel(self._var(op.var), op.waits)
        else:
            assert op.kind == LOOK
            yield from self._look()

    def _var(self, index: int) -> Handle:
        handle = self.variables[index]
        assert handle is not None
        return handle

    def _look(self) -> Steps:
        """At what is in the globals: it may be read if it is there, and is dropped."""
        process = self.process
        if not process.globals:
            return
        handle = process.globals.pop(process.session.rng.randrange(len(process.globals)))
        # What is lost may be the looking task's own value, which it would wait for in vain.
        inline = handle.outcome is not None and extent_of(handle.outcome[1]) is None
        if handle.outcome is not None and (inline or not process.session.losing):
            try:
                loaded = yield from process.result(handle, False)
            except Failed:
                return  # nothing depends on it
            if process.session.rng.random() < 0.5:
                process.globals += loaded.handles

    def other(self, owner: int, index: int) -> tuple[Any, list[Handle]]:
        """One of several values, and the futures in it."""
        plan, process = self.plan, self.process
        thing = plan.others[index - 1]
        gives = [self._var(v) for v in plan.others_give[index - 1]]
        addresses = [handle.address for handle in gives]
        way = plan.way if index % 2 else STORED
        return encode(process, owner, thing.text, addresses, way, None), gives

    def result(self, owner: int) -> tuple[int, Any, list[Handle], View | None]:
        """status, value or failure, the futures in it, the view whose memory it names again."""
        plan, process = self.plan, self.process
        gives = [self._var(v) for v in plan.gives]
        views = [loaded.view for loaded in self.values if loaded.view is not None]
        views += process.kept_views
        view = views[0] if plan.way == ALIAS and views else None
        if view is not None and not process.machine.running.may_pass_on(view.key):
            view = None
        addresses = [handle.address for handle in gives]
        value = encode(process, owner, plan.text, addresses, plan.way, view)
        if plan.keeps_view and views:
            process.kept_views.append(views[-1])
        if plan.keeps_strangers:
            process.globals += self.strangers
        if view is not None and not process.machine.running.is_told(view.key):
            view = None  # something else keeps it
        return READY, value, gives, view


def call(process: Worker, owner: int, message: Any, plan: Plan, turn: int) -> Steps:
    """Run a task from its bytes to its outcome, as `usercode.call_task` does."""
    _, task, attempt, function, _, args, slots, _, returns, _ = message
    body = Body(process, plan)
    try:
        arguments = yield from process.load(args, owner, is_argument=True)
        loaded = []
        for value in slots or ():
            loaded.append((yield from process.load(value, owner, is_argument=True)))
        body.start(arguments, loaded)
        del arguments, loaded
        yield from body.run()
        if turn <= plan.raises:
            raise Failed(error("raised", owner, task))
        assert not plan.doomed, f"{plan.name} cannot come to its end"
        for index in range(returns[1], returns[0]) if returns is not None else ():
            value, gives = body.other(owner, index)
            yield from process.tell(task, attempt, index, value, gives)
            del gives
        outcome = body.result(owner)
    except Gone as gone:
        outcome = (UNREAD, gone.args, [], None)  # it has not begun
    except Failed as failed:
        said = failed.failure
        outcome = (FAILED, said if _raised(said) else error("read", said), [], None)
    if plan.lingers:
        process.lingering.append(body)
    return outcome


def _raised(failure: Failure | None) -> bool:
    return failure is not None and failure[0] == ERROR


def lost(text: str) -> Failed:
    """A value cannot be had any more."""
    return Failed((LOST, text, ""))
