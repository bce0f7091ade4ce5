"""Random programs: what a user of an executor may do, in any order, at any moment."""

from __future__ import annotations

import random

from owndist.core.values import CANCELLED, FAILED, READY

from .specs import ALIAS, INLINE, PARTS, STORED, Spec
from .world import World


def simulate(seed: int, record: bool = False) -> World:
    """Run one random program to its end; raises AssertionError where something is wrong."""
    rng = random.Random(seed)
    world = World(
        rng,
        max_workers=rng.choice((1, 1, 2, 2, 3)),
        max_tasks_per_worker=rng.choice((None, None, None, 1, 2, 5)),
        deaths=rng.choice((0, 0, 1, 3, 8)),
        record=record,
    )
    # Draws of their own, so that the programs of known seeds stay what they are.
    ends = random.Random(f"{seed} the end")
    world.initializer_fails = ends.random() < 0.02
    passes_on = random.Random(f"{seed} passes on")
    gives_up = random.Random(f"{seed} gives up")
    store = random.Random(f"{seed} store")
    world.disk = random.Random(f"{seed} disk")
    if store.random() < 0.5:
        world.machine.spilling.set_limit(store.choice((0, 64, 200, 640)))
    losses = random.Random(f"{seed} losses")
    world.thief = losses
    if losses.random() < 0.5:
        world.machine.references.lineage.limit_bytes = losses.choice((1 << 20, 1 << 20, 4_000))
        world.losses_left = losses.choice((0, 0, 1, 3, 10))
    abort_at = ends.randint(0, 29) if ends.random() < 0.04 else None  # operations before the end
    operations = rng.randint(3, 30)
    borrows = rng.choice((0.1, 0.4, 0.9))  # how much of it is about futures that stay futures
    short = rng.choice((0.3, 0.9))  # how many tasks are known to be short: those are sent ahead
    idle_chance = rng.choice((0.02, 0.1, 0.3))
    busy = rng.choice((0.05, 0.2, 0.6))  # how fast the program goes on
    shutdown_early = rng.random() < 0.2
    while operations:
        if rng.random() < busy or not world.choose(idle_chance):
            operations -= 1
            last = len(world.specs)
            _operate(world, rng, borrows, short)
            for spec in list(world.specs.values())[last:]:
                spec.passes_on = passes_on.random() < 0.2
            if world.cancels and gives_up.random() < 0.1:
                world.withdraw_cancel(gives_up.choice(world.cancels))
            if operations == abort_at:
                world.abort()
                break
    shutdown_early |= world.aborted
    if shutdown_early and not world.aborted:
        world.shutdown(cancel=rng.random() < 0.5)
    for object_id in list(world.promises):
        world.fulfil(object_id, READY, stored=True)
    for _ in range(rng.randint(0, 200)):
        world.choose(idle_chance)
    world.deaths_left = world.losses_left = 0
    world.settle()
    world.check_outcomes()
    for object_id in dict.fromkeys(world.handles):
        while not world.read(object_id):
            world.settle()
    world.check_outcomes()
    world.let_go()
    if not shutdown_early:
        world.check_rest()
        world.shutdown(cancel=False)
        world.settle()
    world.check_rest()
    assert world.drained and not world.workers and not world.machine.lessor.processes
    submission = world.machine.submission
    ended = submission.finished + submission.failed + submission.cancelled
    assert submission.submitted == ended, "the statistics do not add up"
    return world


def _operate(world: World, rng: random.Random, borrows: float, short: float) -> None:
    """One statement of the program."""
    draw = rng.random()
    done = [handle for handle in world.handles if handle in world.outcomes]
    if draw < 0.55 or not world.handles:
        for _ in range(rng.choice((1, 1, 1, 4))):
            _submit(world, rng, borrows, short)
    elif draw < 0.63:
        nested = _some(world, rng, 1) if rng.random() < 0.4 else ()
        world.put(rng.random() < 0.6, nested)
    elif draw < 0.66:
        world.promise()
    elif draw < 0.69 and world.promises:
        status = rng.choice((READY, READY, FAILED, CANCELLED))
        world.fulfil(rng.choice(world.promises), status, rng.random() < 0.5)
    elif draw < 0.77:
        task = rng.choice(world.handles)
        if task in world.specs:
            world.cancel(task)
    elif draw < 0.86 and done:
        world.read(rng.choice(done))
    else:
        world.drop_handles(rng.sample(world.handles, rng.randint(1, len(world.handles)) // 2))


def _some(world: World, rng: random.Random, most: int) -> tuple[int, ...]:
    recent = world.handles[-6:]
    return tuple(rng.choice(recent) for _ in range(rng.randint(0, most))) if recent else ()


def _submit(world: World, rng: random.Random, borrows: float, short: float) -> None:
    function = 1 if rng.random() < short else rng.choice((2, 3))
    raises = rng.choice((0, 0, 0, 1, 99)) if rng.random() < 0.4 else 0
    judged = rng.random() < (0.6 if raises else 0.1)
    spec = Spec(
        world.new_id(),
        slots=_some(world, rng, 2),
        nested=_some(world, rng, 2) if rng.random() < borrows else (),
        reads=rng.choice((0, 0, 1, 2)),
        uses_globals=rng.random() < borrows,
        returns=rng.choice((INLINE, PARTS, STORED, STORED, ALIAS)),
        returns_futures=rng.random() < 0.3,
        keeps_futures=rng.random() < borrows,
        keeps_views=rng.random() < 0.2,
        raises=raises,
        judged=judged,
        retried=judged and rng.random() < 0.8,
        max_retries=rng.choice((0, 1, 3)),
        function=function,
        elapsed_ns=(1_000, 1_000, 500_000, 30_000_000)[function],
    )
    world.submit(spec, args_stored=rng.random() < 0.4)
