"""Child side: run CPython's process pool tests on one executor class.

The installed modules of ``test.test_concurrent_futures`` are loaded as they are. Then the executor
class is swapped in where they name ``ProcessPoolExecutor``, and unittest runs the tests asked for.
Each test leaves a "start" and an "end" line of JSON in a file, so the parent knows after a hang or
a crash which test it was.

This is a script of its own process, because the tests count threads, reap children, change
signal handlers and may hang.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import json
import os
import pkgutil
import sys
import time
import traceback
import unittest
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, TextIO

PACKAGE = "test.test_concurrent_futures"

# These tests skip themselves when `executor_type` is the class that `concurrent.futures` names,
# because the stdlib's executor hangs there. They run when only `executor_type` is swapped.
KEEP_STOCK_NAME = frozenset({"test_hang_gh83386"})

# Put before the scripts that CPython's tests give to a fresh interpreter: those run isolated
# (-I), and take the executor by its name from `concurrent.futures`.
SCRIPT_PRELUDE = """\
import sys
sys.path.insert(0, {root!r})
import multiprocessing
import concurrent.futures
from {module} import {name} as _swapped_in
concurrent.futures.{name} = concurrent.futures.ProcessPoolExecutor = _swapped_in
"""


def load_modules() -> list[ModuleType]:
    """Import the test module, or the modules of the test package (since 3.13)."""
    top = importlib.import_module(PACKAGE)
    if not hasattr(top, "__path__"):
        return [top]
    names = sorted(info.name for info in pkgutil.iter_modules(top.__path__))
    return [importlib.import_module(f"{PACKAGE}.{n}") for n in names if n.startswith("test_")]


def start_method_of(case: type[unittest.TestCase], method_name: str) -> str | None:
    """Tell which start method a test is about; None when it is not about processes."""
    if hasattr(case, "ctx"):
        return str(case.ctx)
    if case.__name__ == "FailingInitializerResourcesTest":
        return method_name.removeprefix("test_")
    return None


def list_tests() -> list[dict[str, str]]:
    """List every process pool test as {"id": ..., "method": ...}."""
    found = []
    loader = unittest.TestLoader()
    for module in load_modules():
        for case in vars(module).values():
            if not (isinstance(case, type) and issubclass(case, unittest.TestCase)):
                continue
            if case.__module__ != module.__name__:
                continue
            for name in loader.getTestCaseNames(case):
                method = start_method_of(case, name)
                if method is not None:
                    test_id = f"{module.__name__}.{case.__name__}.{name}"
                    found.append({"id": test_id.removeprefix(PACKAGE + "."), "method": method})
    return found


def load_executor(spec: str) -> type:
    """Load "module:Class"."""
    module, _, name = spec.partition(":")
    loaded = getattr(importlib.import_module(module), name)
    assert isinstance(loaded, type)
    return loaded


class Swap:
    """Puts one executor class in the place of ProcessPoolExecutor."""

    def __init__(self, executor: type, root: str) -> None:
        import concurrent.futures.process

        self.stock = concurrent.futures.process.ProcessPoolExecutor
        self.executor = executor
        self.prelude = SCRIPT_PRELUDE.format(
            root=root, module=executor.__module__, name=executor.__name__
        )

    def into_tests(self, modules: list[ModuleType]) -> None:
        """Swap the class attribute of the mixins, and the helper that starts interpreters."""
        for module in modules:
            for value in vars(module).values():
                if isinstance(value, type) and vars(value).get("executor_type") is self.stock:
                    value.executor_type = self.executor  # type: ignore[attr-defined]
            if hasattr(module, "assert_python_ok"):
                module.assert_python_ok = self.script_helper(  # type: ignore[attr-defined]
                    module.assert_python_ok
                )

    def into_stdlib(self, wanted: bool) -> None:
        """Swap the public names, or put the stdlib's back."""
        import concurrent.futures.process

        chosen = self.executor if wanted else self.stock
        concurrent.futures.ProcessPoolExecutor = chosen  # type: ignore[misc]
        concurrent.futures.process.ProcessPoolExecutor = chosen  # type: ignore[misc]

    def script_helper(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap assert_python_ok so that its scripts see the swapped class."""

        def assert_python_ok(*args: str, **env_vars: Any) -> Any:
            *options, script = args
            return original(*options, self.prelude + script, **env_vars)

        return assert_python_ok


def be_patient_with_threads() -> None:
    """Count a thread as left behind only if it still runs after CPython's second of grace.

    Before 3.13 the check complains at its first look, also of the object of a thread that has
    ended and waits for the garbage collector.
    """
    import _thread

    from test import support
    from test.support import threading_helper

    check = threading_helper.threading_cleanup

    def threading_cleanup(*before: Any) -> None:
        altered = support.environment_altered
        check(*before)
        support.environment_altered = altered or _thread._count() > before[0]

    threading_helper.threading_cleanup = threading_cleanup


class Recorder(unittest.TestResult):
    """Writes one line of JSON when a test starts, and one when it ends."""

    def __init__(self, records: TextIO, swap: Swap | None, limit_s: float) -> None:
        super().__init__()
        from test import support

        self.records = records
        self.swap = swap
        self.limit_s = limit_s
        self.support: Any = support
        self.outcome = "passed"
        self.detail = ""
        self.started = 0.0

    def write(self, **fields: Any) -> None:
        self.records.write(json.dumps(fields) + "\n")
        self.records.flush()

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        self.outcome, self.detail, self.started = "passed", "", time.monotonic()
        self.support.environment_altered = False
        if self.swap is not None:
            self.swap.into_stdlib(test.id().rpartition(".")[2] not in KEEP_STOCK_NAME)
        sys.stderr.flush()
        self.write(event="start", id=short_id(test), log=os.fstat(2).st_size)
        # A little before the parent gives up: the stacks are then in the log it shows.
        faulthandler.dump_traceback_later(self.limit_s * 0.9, file=sys.__stderr__)

    def stopTest(self, test: unittest.TestCase) -> None:
        faulthandler.cancel_dump_traceback_later()
        super().stopTest(test)
        sys.stderr.flush()
        self.write(
            event="end",
            id=short_id(test),
            outcome=self.outcome,
            detail=self.detail,
            seconds=time.monotonic() - self.started,
            log=os.fstat(2).st_size,
            # CPython's own leak check: threads or children that outlive the test.
            altered=bool(self.support.environment_altered),
        )

    def note(self, outcome: str, err: Any) -> None:
        self.outcome = outcome
        self.detail += "".join(traceback.format_exception(*err))

    def addError(self, test: Any, err: Any) -> None:
        super().addError(test, err)
        self.note("failed", err)
        if not isinstance(test, unittest.TestCase):  # setUpModule, tearDownModule
            self.write(event="fixture", id=str(test), detail=self.detail)

    def addFailure(self, test: Any, err: Any) -> None:
        super().addFailure(test, err)
        self.note("failed", err)

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        super().addSubTest(test, subtest, err)
        if err is not None:
            self.note("failed", err)

    def addSkip(self, test: Any, reason: str) -> None:
        super().addSkip(test, reason)
        self.outcome, self.detail = "skipped", reason


def short_id(test: unittest.TestCase) -> str:
    return test.id().removeprefix(PACKAGE + ".")


def suite_of(ids: Iterator[str]) -> unittest.TestSuite:
    loader = unittest.TestLoader()
    return unittest.TestSuite(loader.loadTestsFromName(f"{PACKAGE}.{test_id}") for test_id in ids)


def run(spec: str, root: str, ids: list[str], records: TextIO, limit_s: float) -> None:
    """Run the tests on the executor that spec names."""
    executor = load_executor(spec)
    modules = load_modules()
    be_patient_with_threads()
    swap = Swap(executor, root)
    stock = executor is swap.stock
    if not stock:
        swap.into_tests(modules)
    suite_of(iter(ids)).run(Recorder(records, None if stock else swap, limit_s))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", action="store_true", help="print the tests as JSON and stop")
    parser.add_argument("--executor", default="concurrent.futures:ProcessPoolExecutor")
    parser.add_argument("--root", action="append", default=[], help="put first on sys.path")
    parser.add_argument("--ids", help="a file with one test id a line")
    parser.add_argument("--records", help="the file that gets the lines of JSON")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds for one test")
    options = parser.parse_args()
    # The directory of this script is no place to import from.
    sys.path[0:1] = options.root
    if options.list:
        try:
            print(json.dumps({"tests": list_tests()}))
        except (ImportError, unittest.SkipTest) as exc:
            print(json.dumps({"missing": f"{type(exc).__name__}: {exc}"}))
        return
    with open(options.ids) as file:
        ids = file.read().split()
    with open(options.records, "a") as records:
        run(options.executor, (options.root or [""])[0], ids, records, options.limit)


if __name__ == "__main__":
    main()
