"""Options: what can be set, for an executor and for single calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["TaskOptions", "resolve_options"]


class TaskOptions:
    """How a task is run; see `OwnershipExecutor.options`. Not to be changed once made.

    A class with slots: a named tuple takes 0.7 ms to define, every time the program starts.
    """

    __slots__ = ("max_retries", "retry_exceptions", "name", "num_returns", "stream_buffer")

    def __init__(
        self,
        max_retries: int = 3,
        retry_exceptions: tuple[type[BaseException], ...] = (),
        name: str | None = None,
        num_returns: int | str = 1,
        stream_buffer: int = 16,
    ) -> None:
        self.max_retries = max_retries
        self.retry_exceptions = retry_exceptions
        self.name = name
        self.num_returns = num_returns
        # Large enough to hide the way of a message, 0.1 ms, from a task that makes a value in
        # 10 µs; and 16 values of a few MB are no burden.
        self.stream_buffer = stream_buffer

    def changed(self, **changes: Any) -> TaskOptions:
        """The same options but for these."""
        return TaskOptions(**{key: getattr(self, key) for key in self.__slots__} | changes)


def resolve_options(base: TaskOptions, changes: Mapping[str, Any]) -> TaskOptions:
    """The options `base` with some changed.

    Raises:
        TypeError: there is no such option (the nearest name is suggested), or a value has the
            wrong type.
        ValueError: a value is out of range.
    """
    for key in changes:
        if key not in TaskOptions.__slots__:
            import difflib  # for people who mistype only

            near = difflib.get_close_matches(key, TaskOptions.__slots__, 1, 0.5)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            known = ", ".join(TaskOptions.__slots__)
            raise TypeError(f"there is no option {key!r}{hint} The options are: {known}.")
    checked = dict(changes)
    if "max_retries" in checked:
        retries = checked["max_retries"]
        if isinstance(retries, bool) or not isinstance(retries, int):
            raise TypeError(
                f"max_retries is how often a task may run again, an int, not {retries!r}"
            )
        if retries < 0:
            raise ValueError(f"max_retries must be 0 or more, not {retries}")
    if "retry_exceptions" in checked:
        checked["retry_exceptions"] = _exception_types(checked["retry_exceptions"])
    if "name" in checked:
        name = checked["name"]
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name is what messages call the task, a str, not {name!r}")
    if checked.get("num_returns") != "stream":
        _check_count("num_returns", checked, "a number of values, or 'stream'")
    _check_count("stream_buffer", checked, "a number of values")
    return base.changed(**checked)


def check_amount(name: str, value: Any, least: int = 1) -> None:
    """Check an argument that says how much of something there may be; None for any amount.

    Raises:
        TypeError: it is no number.
        ValueError: it is less than that.
    """
    if value is None and least:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int{' or None' * least}, not {value!r}")
    if value < least:
        raise ValueError(f"{name} must be {least} or more, not {value}")


def _check_count(key: str, options: Mapping[str, Any], meaning: str) -> None:
    count = options.get(key, 1)
    if isinstance(count, str) and key == "num_returns":
        raise ValueError(f"num_returns must be {meaning}, not {count!r}")
    if isinstance(count, bool) or not isinstance(count, int):
        raise TypeError(f"{key} must be {meaning}, not {count!r}")
    if count < 1:
        raise ValueError(f"{key} must be at least 1, not {count}")


def _exception_types(value: Any) -> tuple[type[BaseException], ...]:
    if isinstance(value, type) and issubclass(value, BaseException):
        return (value,)
    try:
        types = tuple(value)
    except TypeError:
        types = (value,)
    for item in types:
        if not (isinstance(item, type) and issubclass(item, BaseException)):
            raise TypeError(
                "retry_exceptions is an exception class or several, such as "
                f"(ConnectionError, TimeoutError), not {value!r}"
            )
    return types
