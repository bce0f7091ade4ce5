"""Distributed futures for Python: an executor whose futures may be arguments of tasks.

    from owndist import OwnershipExecutor

    with OwnershipExecutor() as executor:
        a = executor.submit(load, "a.npy")
        b = executor.submit(load, "b.npy")
        c = executor.submit(add, a, b)      # futures as arguments
        print(c.result())

See `OwnershipExecutor`; the errors are in `owndist.errors`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .executor import OwnershipExecutor, current_executor
    from .futures import Future
    from .listing import Reference, References
    from .statistics import Statistics
    from .streams import FutureStream

__version__ = "0.1.0"

__all__ = [
    "Future",
    "FutureStream",
    "OwnershipExecutor",
    "Reference",
    "References",
    "Statistics",
    "__version__",
    "current_executor",
]

_HOMES = {
    "OwnershipExecutor": "executor",
    "current_executor": "executor",
    "Statistics": "statistics",
    "Reference": "listing",
    "References": "listing",
    "Future": "futures",
    "FutureStream": "streams",
}


def __getattr__(name: str) -> Any:
    # Loaded when first asked for (PEP 562): a worker imports this package and needs none of it.
    if name in _HOMES:
        from importlib import import_module

        value = getattr(import_module(f"owndist.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
