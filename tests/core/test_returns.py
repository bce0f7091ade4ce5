"""Tasks with several values, and streams: delivery, credit, deaths, closing."""

from __future__ import annotations

from typing import Any

from owndist.core import messages as m
from owndist.core.commands import Delivered
from owndist.core.ids import DRIVER, streamed_id
from owndist.core.machine import Machine
from owndist.core.reports import (
    Consumed,
    Received,
    ShutdownAsked,
    StreamClosed,
    StreamsCut,
    TaskEnded,
    Yielded,
)
from owndist.core.returns import STREAM
from owndist.core.values import CANCELLED, FAILED, READY

from .door import Door, extent, only, sends, yielded


def stream(buffer: int = 2, **fields: Any) -> Door:
    """A stream, task 1, that worker 1 runs."""
    door = Door()
    door.submit(1, returns=STREAM, buffer=buffer, **fields)
    door.up(1)
    return door


def delivered(door: Door) -> list[tuple[int, int]]:
    """(object, status) of what the stream's reader was given so far, in order."""
    return [(c.object, c.status) for _, cs in door.story for c in only(cs, Delivered)]


def test_each_value_is_there_before_the_task_is_over_and_freed_by_itself() -> None:
    """`a, b = options(num_returns=2).submit(f); submit(g, b); del b` (Law 13)."""
    door = Door(2)
    door.submit(1, returns=2)
    door.submit(3, slots=(2,))
    door.up(1)
    door.say(1, yielded(1, 1, extent(1, 5)))
    door.up(2)
    assert door.tasks_sent() == [(1, 1, 1), (2, 3, 1)]
    assert set(door.outcomes()) == {2}
    door.drop(2)
    door.done(2, 3)
    assert door.freed() == [(1, 5)]
    door.done(1, 1)
    door.drop(1, 3)
    door.assert_empty()


def test_an_error_fails_all_values() -> None:
    """Law 10: the function returns another number of values, and raises."""
    door = Door()
    door.submit(1, returns=3)
    door.submit(4, slots=(3,))
    door.up(1)
    door.raised(1, 1)
    assert {k: s for k, (s, _) in door.outcomes().items()} == dict.fromkeys((1, 2, 3, 4), FAILED)
    door.drop(1, 2, 3, 4)
    door.assert_empty()


def test_cancel_through_any_value_cancels_all() -> None:
    """`futures[1].cancel()` (Law 65)."""
    door = Door()
    door.submit(1, returns=2)
    door.cancel(2)
    assert door.answers() == [(1, True)]
    assert door.outcomes() == {1: (CANCELLED, None), 2: (CANCELLED, None)}


def test_a_worker_that_dies_between_two_values_delivers_none_twice() -> None:
    """The second execution is told where to go on (Laws 1 and 37)."""
    door = Door()
    door.submit(1, returns=3)
    door.up(1)
    door.say(1, yielded(1, 1, b"one"))
    door.say(1, yielded(1, 1, b"one"))  # its outbox was sent, and found in its crash record
    door.end(1, running=1)
    door.up(2)
    assert door.sent(m.TASK)[-1][8][:2] == (3, 2)
    door.say(1, yielded(1, 2, b"late"))  # of the dead one
    door.say(2, yielded(1, 2, b"two", attempt=2))
    door.done(2, 1, b"zero", attempt=2)
    assert {k: v for k, (_, v) in door.outcomes().items()} == {1: b"zero", 2: b"one", 3: b"two"}


def test_stream_gets_credit_as_values_are_taken() -> None:
    """Law 70: at most `buffer` values exist that nobody has taken."""
    door = stream(buffer=4)
    assert door.sent(m.TASK)[0][8] == (STREAM, 0, 4, False)
    door.say(1, *[yielded(1, index) for index in range(4)])
    assert delivered(door) == [(streamed_id(1, index), READY) for index in range(4)]
    assert not door.feed(Consumed(1, 1))
    assert sends(door.feed(Consumed(1, 2)), m.CREDIT) == [(m.CREDIT, 1, 1, 6, False)]
    assert not door.feed(Consumed(1, 2))  # twice is as once
    door.done(1, 1)
    assert door.outcomes()[1][0] == READY
    door.drop(1, *[streamed_id(1, index) for index in range(4)])
    door.assert_empty()


def test_stream_goes_on_where_the_dead_worker_stopped() -> None:
    """Laws 1 and 51: what was delivered is not delivered again; credit is not lost either."""
    door = stream(buffer=2)
    door.say(1, yielded(1, 0), yielded(1, 1))
    door.feed(Consumed(1, 2))
    door.end(1, running=1)
    door.up(2)
    assert door.sent(m.TASK)[-1][8] == (STREAM, 2, 4, False)
    door.say(1, yielded(1, 2))
    door.say(2, yielded(1, 2, attempt=2))
    assert [object_id for object_id, _ in delivered(door)] == [streamed_id(1, i) for i in range(3)]


def test_closed_stream_takes_no_more_and_is_not_run_again() -> None:
    """`stream.close()`: what comes late is freed, and the task is not retried (Law 70)."""
    door = stream()
    assert sends(door.feed(StreamClosed(1)), m.CREDIT) == [(m.CREDIT, 1, 1, 0, True)]
    door.say(1, yielded(1, 0, extent(1, 7)))
    assert not delivered(door) and door.freed() == [(1, 7)]
    door.end(1, running=1)
    assert door.outcomes()[1] == (CANCELLED, None) and len(door.tasks_sent()) == 1
    door.drop(1)
    door.assert_empty()


def test_stream_that_is_closed_before_it_runs() -> None:
    """Its body runs 0 times (Law 65)."""
    door = Door()
    door.submit(1, returns=STREAM, buffer=2)
    door.feed(StreamClosed(1))
    door.up(1)
    assert door.outcomes() == {1: (CANCELLED, None)} and not door.tasks_sent()


def test_shutdown_lets_a_stream_use_up_its_credit_only() -> None:
    """`with` ends, and nobody takes the stream's values: it ends nevertheless."""
    door = stream()
    door.feed(ShutdownAsked(False))
    assert sends(door.feed(StreamsCut()), m.CREDIT) == [(m.CREDIT, 1, 1, 2, True)]
    door.say(1, yielded(1, 0), yielded(1, 1))
    assert not door.feed(Consumed(1, 2))
    door.done(1, 1, None, status=CANCELLED)
    assert door.outcomes()[1] == (CANCELLED, None) and door.machine.drained


def test_worker_knows_how_far_it_may_go() -> None:
    """Credit that comes before the task has started counts; that of another attempt does not."""
    machine = Machine(3)
    work = (m.TASK, 1, 2, 1, (), b"args", None, "gen", (STREAM, 0, 1, False))
    machine.handle(Received(DRIVER, [work, (m.CREDIT, 1, 2, 2, False)]), 0)
    machine.take()
    may = machine.execution.may_yield
    assert [may(index) for index in range(3)] == [True, True, None]
    machine.handle(Received(DRIVER, [(m.CREDIT, 1, 1, 9, True)]), 0)
    assert may(2) is None
    [told] = machine.handle(Yielded(1, 2, 0, READY, b"value", (), ()), 0)
    assert told.message == (m.YIELD, 1, 2, 0, READY, b"value", None)  # type: ignore[union-attr]
    machine.handle(Received(DRIVER, [(m.CREDIT, 1, 2, 0, True)]), 0)
    assert may(0) is False
    machine.handle(TaskEnded(1, 2, CANCELLED, None, 1, (), ()), 0)
    machine.handle(Received(DRIVER, [(m.CREDIT, 1, 2, 5, False)]), 0)
    assert not machine.execution.credits


def test_recalled_stream_leaves_no_credit_behind() -> None:
    """A stream that was sent ahead, and called back."""
    machine = Machine(3)
    work = (m.TASK, 1, 1, 1, (), b"args", None, "gen", (STREAM, 0, 1, False))
    machine.handle(Received(DRIVER, [work, (m.CREDIT, 1, 1, 2, False)]), 0)
    machine.handle(Received(DRIVER, [(m.RECALL, (1,))]), 0)
    assert not machine.execution.credits
