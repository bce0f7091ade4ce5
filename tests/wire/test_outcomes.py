"""Errors there and back: type, arguments, attributes, notes, causes and the traceback's text."""

from __future__ import annotations

import sys
import threading
import traceback
from concurrent.futures.process import _RemoteTraceback
from typing import Any

import pytest

from owndist.errors import RemoteError
from owndist.wire.outcomes import dump_error, load_error


class NeedsTwo(Exception):
    def __init__(self, who: str, why: str) -> None:
        super().__init__(f"{who}: {why}")
        self.who = who


class Carries(Exception):
    def __init__(self, text: str, **attributes: Any) -> None:
        super().__init__(text)
        self.__dict__.update(attributes)


class Frozen(Exception):
    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("frozen")


class BreaksAtLoad(Exception):
    def __reduce__(self) -> Any:
        return _exit, ("at load",)


class BreaksAtDump(Exception):
    def __reduce__(self) -> Any:
        raise SystemExit("at dump")


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class PickyOSError(OSError):
    def __init__(self, code: int) -> None:
        super().__init__(code, "picky")
        self.extra = code + 1


def _exit(text: str) -> None:
    raise SystemExit(text)


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def around(error: BaseException) -> BaseException:
    return load_error(dump_error(raised(error)))


@pytest.mark.parametrize(
    "error",
    [
        ValueError("text", 3),
        KeyError("k"),
        SystemExit(4),
        KeyboardInterrupt(),
        FileNotFoundError(2, "nothing there", "/some/file"),
        UnicodeDecodeError("utf8", b"abc", 0, 1, "why"),
        StopIteration(5),
    ],
    ids=lambda error: type(error).__name__,
)
def test_type_arguments_and_text_stay(error: BaseException) -> None:
    """Law 67."""
    loaded = around(error)
    assert type(loaded) is type(error)
    assert loaded.args == error.args and str(loaded) == str(error)


def test_the_cause_is_the_remote_traceback_as_in_the_standard_library() -> None:
    loaded = around(ValueError("oops"))
    cause = loaded.__cause__
    assert type(cause) is _RemoteTraceback
    assert str(cause).startswith('\n"""\nTraceback (most recent call last):\n')
    assert str(cause).endswith('ValueError: oops\n"""')
    assert "in raised" in str(cause)
    shown = "".join(traceback.format_exception(type(loaded), loaded, None))
    assert "ValueError: oops" in shown and "in raised" in shown


def test_causes_and_contexts_hang_behind_the_remote_traceback() -> None:
    def fail() -> None:
        try:
            try:
                raise KeyError("first")
            except KeyError:
                raise IndexError("second")  # noqa: B904  # the context is what is tested
        except IndexError as error:
            raise ValueError("third") from error

    with pytest.raises(ValueError, match="third") as info:
        fail()
    loaded = load_error(dump_error(info.value))
    assert loaded.__cause__ is not None
    second = loaded.__cause__.__cause__
    assert type(second) is IndexError and second.args == ("second",)
    assert second.__cause__ is None and type(second.__context__) is KeyError
    assert loaded.__context__ is second


def test_a_context_that_was_suppressed_stays_so() -> None:
    try:
        try:
            raise KeyError("hidden")
        except KeyError:
            raise ValueError("shown") from None
    except ValueError as caught:
        outer = RuntimeError("outer")
        outer.__cause__ = caught
    loaded = load_error(dump_error(outer)).__cause__
    assert loaded is not None and loaded.__cause__ is not None
    assert loaded.__cause__.__suppress_context__
    assert type(loaded.__cause__.__context__) is KeyError


def test_chains_in_a_circle_and_very_long_ones_end() -> None:
    one, two = ValueError("one"), KeyError("two")
    one.__cause__, two.__context__ = two, one
    loaded = load_error(dump_error(one))
    assert loaded.__cause__ is not None and type(loaded.__cause__.__cause__) is KeyError
    error: BaseException = ValueError("innermost")
    for i in range(1000):
        outer = ValueError(i)
        outer.__cause__ = error
        error = outer
    assert load_error(dump_error(error)).args == (999,)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have notes from 3.11 on")
def test_notes_stay() -> None:
    error = ValueError("x")
    error.add_note("a note")
    assert around(error).__notes__ == ["a note"]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups came with 3.11")
def test_groups_stay() -> None:
    group = ExceptionGroup("several", [ValueError(1), NeedsTwo("a", "b")])  # noqa: F821
    loaded = around(group)
    assert type(loaded) is type(group)
    assert [type(inner) for inner in loaded.exceptions] == [ValueError, NeedsTwo]


def test_attributes_stay_and_unpicklable_ones_are_left_out() -> None:
    loaded = around(Carries("text", code=5, lock=threading.Lock(), inner=lambda: 7))
    assert type(loaded) is Carries and loaded.args == ("text",)
    assert loaded.code == 5 and loaded.inner() == 7
    assert not hasattr(loaded, "lock")


def test_an_init_that_needs_more_than_args_does_no_harm() -> None:
    """Law 67."""
    loaded = around(NeedsTwo("me", "no"))
    assert type(loaded) is NeedsTwo
    assert loaded.args == ("me: no",) and loaded.who == "me"
    loaded = around(PickyOSError(5))
    assert type(loaded) is PickyOSError and loaded.errno == 5 and loaded.extra == 6
    assert str(loaded) == "[Errno 5] picky"


def test_local_exception_classes_stay() -> None:
    class Local(Exception):
        pass

    assert type(around(Local("x"))) is Local


def test_a_class_that_forbids_attributes_gets_its_cause() -> None:
    loaded = around(Frozen("x"))
    assert type(loaded) is Frozen and type(loaded.__cause__) is _RemoteTraceback


@pytest.mark.parametrize("kind", [BreaksAtLoad, BreaksAtDump])
def test_what_cannot_be_pickled_becomes_a_stand_in(kind: type[Exception]) -> None:
    """Law 67: also when the class raises SystemExit."""
    loaded = around(kind("some text"))
    assert type(loaded) is RemoteError
    assert loaded.type_name.endswith(kind.__name__)
    assert kind.__name__ in str(loaded) and "some text" in str(loaded)
    assert "in raised" in str(loaded.__cause__)


def test_arguments_that_cannot_be_pickled_make_a_stand_in() -> None:
    loaded = around(ValueError("text", threading.Lock()))
    assert type(loaded) is RemoteError and loaded.type_name == "ValueError"
    assert "text" in str(loaded)


def test_an_error_without_text() -> None:
    loaded = around(Mute("x"))
    assert type(loaded) is Mute and loaded.args == ("x",)


def test_an_error_that_fails_to_load_here_only_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    data = dump_error(raised(Carries("some text")))
    monkeypatch.delattr(sys.modules[__name__], "Carries")
    loaded = load_error(data)
    assert type(loaded) is RemoteError
    assert "Carries: some text" in str(loaded) and "cannot be loaded" in str(loaded)


def test_a_failing_link_of_the_chain_leaves_the_others_alone() -> None:
    error = ValueError("outer")
    error.__cause__ = BreaksAtLoad("inner")
    loaded = load_error(dump_error(error))
    assert type(loaded) is ValueError
    assert loaded.__cause__ is not None and type(loaded.__cause__.__cause__) is RemoteError


def test_the_same_bytes_give_a_new_exception_each_time() -> None:
    data = dump_error(raised(ValueError("x")))
    assert load_error(data) is not load_error(data)
