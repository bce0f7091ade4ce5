"""Random programs in which every task may do what the driver may: submit, put, wait, pass on.

A program is made before it runs, with what each of its objects will hold: so whatever is read,
anywhere and in whichever attempt, can be compared with what a serial run would have given.

What cannot be foretold is kept out of the values: what tasks find in the globals of a process, and
tasks that are cancelled. Nothing waits for these; they are there to make references travel.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field

from .specs import ALIAS, INLINE, PARTS, STORED

SUBMIT, PUT, READ, DROP, KEEP, LOOK, CANCEL = range(7)


@dataclass(eq=False)
class Thing:
    """What an object holds, whoever makes it and however often."""

    name: str
    text: str = ""
    refs: tuple[Thing, ...] = ()
    doomed: bool = False  # it fails in a serial run too


@dataclass(eq=False)
class Op:
    """One statement; variables go by their index among all that the body has had."""

    kind: int
    thing: Thing | None = None
    var: int = 0
    slots: tuple[int, ...] = ()
    nested: tuple[int, ...] = ()
    strangers: int = 0  # futures from the process's globals that go along
    stored: bool = False
    helps: bool = True
    waits: bool = True


@dataclass(eq=False)
class Plan(Thing):
    """What a task does. Its first variables are the futures inside its slots and arguments."""

    slots: tuple[Thing, ...] = ()
    nested: tuple[Thing, ...] = ()
    ops: list[Op] = field(default_factory=list)
    gives: tuple[int, ...] = ()  # variables that are in the result
    others: list[Thing] = field(default_factory=list)  # of a task with several values, the rest
    others_give: list[tuple[int, ...]] = field(default_factory=list)
    way: int = INLINE
    args_stored: bool = False
    keeps_strangers: bool = False
    keeps_view: bool = False
    lingers: bool = False  # its variables live on for a while, in a cycle or a traceback
    raises: int = 0  # so many of its executions raise
    judged: bool = False
    max_retries: int = 3
    function: int = 1
    elapsed_ns: int = 20_000

    def known(self) -> list[Thing]:
        """The things that its first variables stand for."""
        return [ref for slot in self.slots for ref in slot.refs] + list(self.nested)


class Author:
    """Writes one program.

    Args:
        most: how many tasks it may have, about.
        several: decides which tasks have several values; without it none has.
    """

    def __init__(
        self, rng: random.Random, most: int, depth: int, several: random.Random | None = None
    ) -> None:
        self.rng = rng
        self.several = several
        self.left = most
        self.count = 0
        self.passing = rng.choice((0.1, 0.5, 0.9))  # how much of it is about futures
        self.failing = rng.choice((0.0, 0.0, 0.1))
        self.retries = rng.choice(((3,), (0, 1, 3), (3, 5)))
        self.depth = depth
        self.root = self._plan(depth, (), (), rng.choice((3, 8, 16, 30)))

    def _plan(
        self, depth: int, slots: tuple[Thing, ...], nested: tuple[Thing, ...], length: int
    ) -> Plan:
        rng = self.rng
        self.count += 1
        function = rng.choice((1, 1, 2, 3))
        plan = Plan(
            f"t{self.count}",
            slots=slots,
            nested=nested,
            way=rng.choice((INLINE, PARTS, STORED, STORED, ALIAS)),
            args_stored=rng.random() < 0.3,
            keeps_strangers=rng.random() < 0.5,
            keeps_view=rng.random() < 0.15,
            lingers=rng.random() < 0.2,
            max_retries=rng.choice(self.retries),
            function=function,
            elapsed_ns=(1_000, 1_000, 500_000, 30_000_000)[function],
        )
        if rng.random() < self.failing:
            plan.judged = rng.random() < 0.6
            plan.raises = 99 if not plan.judged else rng.choice((1, 2, 99))
        things = plan.known()
        texts = [slot.text for slot in slots]
        live = list(range(len(things)))
        plan.doomed = any(slot.doomed for slot in slots) or plan.raises > plan.max_retries
        for _ in range(length):
            if plan.doomed and not rng.randrange(3):
                break
            if not self._statement(plan, depth, things, texts, live):
                plan.doomed = True
                break
        gives = [v for v in live if rng.random() < self.passing / 2][:3]
        plan.gives = tuple(gives)
        plan.refs = tuple(things[v] for v in gives)
        said = f"{plan.name}({','.join(texts)})"
        plan.text = said if len(said) < 40 else hashlib.md5(said.encode()).hexdigest()[:8]
        if self.several is not None and depth < self.depth and self.several.random() < 0.3:
            for index in range(1, self.several.choice((2, 2, 3, 4))):
                given = tuple(v for v in live if self.several.random() < self.passing / 2)[:2]
                refs = tuple(things[v] for v in given)
                name, text = f"{plan.name}[{index}]", f"{plan.text}[{index}]"
                plan.others.append(Thing(name, text, refs, plan.doomed))
                plan.others_give.append(given)
        return plan

    def _some(self, live: list[int], most: int) -> tuple[int, ...]:
        recent = live[-5:]
        return tuple(self.rng.choice(recent) for _ in range(self.rng.randint(0, most) * bool(live)))

    def _statement(
        self, plan: Plan, depth: int, things: list[Thing], texts: list[str], live: list[int]
    ) -> bool:
        """One more statement. False: it raises."""
        rng = self.rng
        draw = rng.random()
        ops = plan.ops
        if draw < 0.45 and depth and self.left > 0:
            self.left -= 1
            slots = self._some(live, 2) if rng.random() < 0.5 else ()
            nested = self._some(live, 2) if rng.random() < self.passing else ()
            cancelled = rng.random() < 0.08
            child = self._plan(
                depth - 1,
                tuple(things[v] for v in slots),
                tuple(things[v] for v in nested),
                rng.choice((0, 1, 3, 6, 9)),
            )
            strangers = rng.choice((0, 0, 1, 2)) if rng.random() < self.passing else 0
            ops.append(Op(SUBMIT, child, slots=slots, nested=nested, strangers=strangers))
            var = len(things)
            things.append(child)
            things += child.others
            values = range(var, var + 1 + len(child.others))
            if cancelled:
                ops.append(Op(CANCEL, var=var, waits=rng.random() < 0.5))
                ops += [Op(rng.choice((DROP, KEEP)), var=value) for value in values]
            else:
                live += values
        elif draw < 0.55:
            nested = self._some(live, 2) if rng.random() < self.passing else ()
            self.count += 1
            name = f"p{self.count}"
            thing = Thing(name, name, tuple(things[v] for v in nested))
            ops.append(Op(PUT, thing, nested=nested, stored=rng.random() < 0.6))
            live.append(len(things))
            things.append(thing)
        elif draw < 0.75 and live:
            var = rng.choice(live)
            ops.append(Op(READ, things[var], var=var, helps=rng.random() < 0.8))
            if things[var].doomed:
                return False
            texts.append(things[var].text)
            for ref in things[var].refs:
                live.append(len(things))
                things.append(ref)
        elif draw < 0.85 and live:
            var = live.pop(rng.randrange(len(live)))
            ops.append(Op(DROP, var=var))
        elif draw < 0.92 and live:
            ops.append(Op(KEEP, var=rng.choice(live)))
        else:
            ops.append(Op(LOOK))
        return True
