"""All orders in which owners, lenders and borrowers may hear of each other."""

from __future__ import annotations

import pytest

from owndist.core import messages as m
from owndist.core.ids import DRIVER
from owndist.core.reports import Received, Stored
from owndist.core.values import PENDING, READY
from tests.core.door import extent

from .owners import A, B, Net, Program, explore, own


def put(net: Net, number: int, object_id: int) -> None:
    net.feed(number, Stored(object_id, extent(number, object_id), ()))
    net.handles[number].append(object_id)


def lent_by_a_borrower() -> Program:
    """The driver's object goes to A, from A to B; everybody but B lets go at any time."""
    x = own(DRIVER, 1)

    def begin(net: Net) -> None:
        put(net, DRIVER, 1)
        net.submit(DRIVER, 2, 1)
        net.settle()
        net.take(A)
        net.hold(A, x, DRIVER)
        net.settle()

    def lend(net: Net) -> None:
        net.submit(A, 1, x)
        net.feed(A, Received(DRIVER, [(m.GRANT, B, None)]))

    return {
        DRIVER: [begin, lambda net: net.drop(DRIVER, 1)],
        A: [
            lend,
            lambda net: net.drop(A, x),
            lambda net: net.end_task(A),
        ],
        B: [
            lambda net: net.take(B) and net.hold(B, x, A),
            lambda net: net.answered(B) and net.end_task(B),
        ],
    }


def returned_by_a_borrower() -> Program:
    """B has kept A's object since an earlier task, and returns it to the driver, which drops its
    own handle at any time."""
    y = own(A, 1)

    def begin(net: Net) -> None:
        net.submit(DRIVER, 2)
        net.settle()
        net.take(A)
        put(net, A, 1)
        net.give(A, 1)
        net.end_task(A)
        net.settle()
        net.hold(DRIVER, y, A)
        net.feed(DRIVER, Received(A, [(m.BLOCKED,)]))  # so that the next tasks go to B
        net.submit(DRIVER, 3, y)
        net.settle()
        net.take(B)
        net.hold(B, y, DRIVER)
        net.end_task(B)
        net.settle()
        net.drop(DRIVER, 2, 3)
        net.submit(DRIVER, 4)

    return {
        DRIVER: [begin, lambda net: net.drop(DRIVER, y)],
        A: [lambda net: net.drop(A, 1)],
        B: [
            lambda net: net.take(B) and net.give(B, y),
            lambda net: net.answered(B) and net.end_task(B),
            lambda net: net.drop(B, y),
        ],
    }


@pytest.mark.parametrize("mortal", [(), (A,), (B,)])
def test_what_a_borrower_lends_is_there_for_the_reader(mortal: tuple[int, ...]) -> None:
    """Laws 12, 14, 18 and 20: once its task is over the reader has it, whoever else is dead."""

    def see(net: Net) -> None:
        if B not in net.dead and net.position[B] == 2:
            entry = net.machines[B].references.entries[own(DRIVER, 1)]
            assert (entry.status, entry.value) == (READY, extent(DRIVER, 1)), "it is lost"
        assert mortal or net.position[B] == 2

    _, ends = explore(lent_by_a_borrower(), mortal, see)
    assert ends > len(mortal)


@pytest.mark.parametrize("mortal", [(), (A,), (B,)])
def test_what_a_borrower_returns_is_kept_by_its_owner(mortal: tuple[int, ...]) -> None:
    """Laws 14, 17, 18 and 50: or its owner is dead, and whoever asks is told so."""
    y = own(A, 1)

    def see(net: Net) -> None:
        result = net.machines[DRIVER].references.entries[4]
        assert mortal or result.nested == (y,)
        if result.nested:
            net.hold(DRIVER, y, None)  # the user takes it out of the result
            net.settle()
            entry = net.machines[DRIVER].references.entries[y]
            assert entry.status != PENDING, "the driver waits"
            assert A in net.dead or entry.value == extent(A, 1), "it is lost"

    _, ends = explore(returned_by_a_borrower(), mortal, see)
    assert ends > len(mortal)
