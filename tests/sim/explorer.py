"""Every interleaving of a tiny program: all that first-in-first-out wires and deaths allow.

Depth-first over the choices. A world is rebuilt by running its choices again from the start, which
takes a millisecond; states that look the same are explored once.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

from owndist.core.ids import DRIVER
from owndist.core.leasing import OVERDUE_NS, Worker
from owndist.core.machine import Machine
from owndist.core.records import Record

from .world import World

Choice = tuple[int, str]
Script = list[Callable[[World], Any]]  # the user program, one statement each

_PLAIN = (int, str, bytes, bool, float, type(None))


class OneAtATime(random.Random):
    """Makes every draw the smallest one: the explorer chooses, not the generator."""

    def randint(self, a: int, b: int) -> int:
        return a

    def randrange(self, *args: int) -> int:  # type: ignore[override]
        return 0

    def random(self) -> float:
        return 0.99


class Exploration:
    """All ends of one program.

    Args:
        make: a new world.
        script: the user program; its statements run in order, at any moment.
        deaths: how many workers may be killed, at any moment.
        ticks: how often time may pass while something else could happen. Without a bound a task
            could be called back and sent again for ever.
        most: give up (and fail) after so many states.
    """

    def __init__(
        self,
        make: Callable[[], World],
        script: Script,
        deaths: int = 0,
        ticks: int = 2,
        most: int = 30_000,
    ) -> None:
        self.states = self.ends = 0
        self._make, self._script, self._deaths, self._most = make, script, deaths, most
        self._ticks = ticks
        self._seen: set[int] = set()

    def run(self) -> Exploration:
        """Explore; raises the first AssertionError, with the choices that lead to it."""
        todo: list[tuple[Choice, ...]] = [()]
        while todo:
            path = todo.pop()
            try:
                world, said = self._replay(path)
                ticks = path.count((DRIVER, "tick"))
                key = hash(fingerprint((world.__dict__, said, ticks), {}, world.now))
                if key in self._seen:
                    continue
                self._seen.add(key)
                choices = self._choices(world, said, ticks)
                if not choices:
                    self.ends += 1
                    self._finish(world)
            except AssertionError as error:
                raise AssertionError(f"{error}\nafter {list(path)}") from error
            self.states += 1
            assert self.states < self._most, "too many states"
            todo.extend((*path, choice) for choice in choices)
        return self

    def _replay(self, path: Iterable[Choice]) -> tuple[World, int]:
        world = self._make()
        world.deaths_left = self._deaths
        said = 0
        for number, name in path:
            if name == "say":
                self._script[said](world)
                said += 1
            elif name == "tick":
                deadline = world.machine.next_deadline()
                assert deadline is not None
                world.now = max(world.now, deadline)
            else:
                world.do(number, name)
        return world, said

    def _choices(self, world: World, said: int, ticks: int) -> list[Choice]:
        for number, worker in world.workers.items():
            name = worker.private_action()
            if name is not None:
                # Nobody else can see whether it has happened: only a death can come between.
                return [(number, name), (number, "die")] if world.deaths_left else [(number, name)]
        found = [(number, name) for number, name, _ in world.actions()]
        found += [(number, name) for number, name, _ in world.idle_actions() if name == "die"]
        if said < len(self._script):
            found.append((DRIVER, "say"))
        deadline = world.machine.next_deadline()
        if deadline is not None and deadline > world.now and (ticks < self._ticks or not found):
            found.append((DRIVER, "tick"))
        # A death is no way on: where nothing else can happen, the program must have ended.
        return found if any(name != "die" for _, name in found) else []

    def _finish(self, world: World) -> None:
        world.check_outcomes()
        world.check_work_conserving()
        world.let_go()
        world.check_rest()


def fingerprint(thing: Any, ids: dict[int, int], now: int) -> Any:
    """A value that is equal for equal states, and can be hashed.

    Of a time only that counts by which the machine decides: whether it has come.
    """
    if isinstance(thing, _PLAIN):
        return thing
    known = ids.get(id(thing))
    if known is not None:
        return ("seen", known)
    if isinstance(thing, tuple):
        return tuple(fingerprint(item, ids, now) for item in thing)
    ids[id(thing)] = len(ids)
    if isinstance(thing, dict):
        return tuple((key, fingerprint(value, ids, now)) for key, value in thing.items())
    if isinstance(thing, OneAtATime):
        return "rng"
    if isinstance(thing, Machine):
        skipped = ("_on_report", "_on_message", "_deadline")
        state = {k: v for k, v in vars(thing).items() if k not in skipped}
        deadline = thing.next_deadline()
        state["due"] = None if deadline is None else deadline <= now
        return fingerprint(state, ids, now)
    if isinstance(thing, Worker):
        state = {k: getattr(thing, k) for k in thing.__slots__ if k != "progress_at"}
        state["overdue"] = thing.progress_at + OVERDUE_NS <= now
        return fingerprint(state, ids, now)
    if hasattr(thing, "__dict__"):
        state = {k: v for k, v in vars(thing).items() if k not in ("steps", "now")}
        return fingerprint(state, ids, now)
    slots = getattr(type(thing), "__slots__", None)
    if slots is not None and (isinstance(thing, Record) or slots):
        return tuple(fingerprint(getattr(thing, slot), ids, now) for slot in slots)
    return tuple(fingerprint(item, ids, now) for item in thing)
