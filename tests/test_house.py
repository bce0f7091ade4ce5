"""The rules of `tests/house.py`, on our tree and on small wrong ones; and the public names."""

from __future__ import annotations

import importlib
import inspect
import pickle
import textwrap
import types
import typing
from pathlib import Path
from typing import Any

import pytest

from tests.house import (
    CLASS_LINES,
    FUNCTION_LINES,
    MODULE_LINES,
    PACKAGE,
    forbidden_words,
    global_statements,
    import_cycles,
    impure_core,
    oversized,
    swallowed_errors,
    wrong_direction,
)

ROOT = Path(__file__).parents[1]
RULES = [
    oversized,
    wrong_direction,
    import_cycles,
    impure_core,
    global_statements,
    swallowed_errors,
    forbidden_words,
]


# --- the rules on our tree -----------------------------------------------------------------------


def report(offenders: list[str]) -> None:
    assert not offenders, "\n" + "\n".join(offenders)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_our_tree_keeps_the_rule(rule):
    report(rule(ROOT))


# --- the public names ----------------------------------------------------------------------------


def public_objects() -> dict[str, Any]:
    package = importlib.import_module(PACKAGE)
    return {name: getattr(package, name) for name in package.__all__}


def test_public_names_have_docstrings():
    missing = []
    for name, thing in public_objects().items():
        if not (inspect.isclass(thing) or callable(thing)):
            continue
        if not inspect.getdoc(thing):
            missing.append(name)
        members = vars(thing).items() if inspect.isclass(thing) else ()
        for member, value in members:
            function = getattr(value, "fget", value)
            if isinstance(function, types.FunctionType) and not member.startswith("_"):
                if not inspect.getdoc(getattr(thing, member)):
                    missing.append(f"{name}.{member}")
    report([f"{name} has no docstring" for name in missing])


def test_public_classes_say_that_they_live_where_users_import_them_from():
    homes = {PACKAGE, f"{PACKAGE}.errors"}
    report(
        [
            f"{name}.__module__ is {thing.__module__!r}"
            for name, thing in public_objects().items()
            if inspect.isclass(thing)
            and thing.__module__.split(".")[0] == PACKAGE
            and thing.__module__ not in homes
        ]
    )


def error_classes() -> list[type[BaseException]]:
    module = importlib.import_module(f"{PACKAGE}.errors")
    return [
        thing
        for thing in vars(module).values()
        if inspect.isclass(thing)
        and issubclass(thing, BaseException)
        and thing.__module__ == module.__name__
    ]


def sample(annotation: Any) -> Any:
    """A value of the annotated type that is no default anywhere."""
    for kind, value in {str: "a text", int: 7, float: 1.5, bytes: b"bytes", bool: True}.items():
        if annotation is kind:
            return value
    alternatives = [a for a in typing.get_args(annotation) if a is not type(None)]
    if typing.get_origin(annotation) in {typing.Union, types.UnionType} and alternatives:
        return sample(alternatives[0])
    raise NotImplementedError(f"no sample of {annotation}; add one")


def sample_error(cls: type[BaseException]) -> BaseException:
    if not inspect.isfunction(cls.__init__):
        return cls("a text")
    hints = typing.get_type_hints(cls.__init__)
    positional, keywords = [], {}
    for name, parameter in list(inspect.signature(cls.__init__).parameters.items())[1:]:
        if parameter.kind is parameter.VAR_POSITIONAL:
            positional.append("a text")
        elif parameter.kind is parameter.KEYWORD_ONLY:
            keywords[name] = sample(hints[name])
        elif parameter.kind is not parameter.VAR_KEYWORD:
            positional.append(sample(hints[name]))
    return cls(*positional, **keywords)


def test_every_error_survives_pickling_with_its_attributes():
    for cls in error_classes():
        error = sample_error(cls)
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
            again = pickle.loads(pickle.dumps(error, protocol))
            assert type(again) is cls
            assert again.args == error.args
            assert vars(again) == vars(error)
            assert str(again) == str(error) != ""


# --- the rules on wrong trees --------------------------------------------------------------------


@pytest.fixture
def plant(tmp_path):
    """Makes a tree from {path: source}."""

    def plant(files: dict[str, str]) -> Path:
        for name, source in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(source), encoding="utf-8")
        return tmp_path

    return plant


def test_oversized_names_module_class_and_function(plant):
    long_function = "def long():\n" + "    x = 1\n" * FUNCTION_LINES
    many = "class Many:\n" + "".join(f"    def m{n}(self): ...\n" for n in range(31))
    root = plant(
        {
            "owndist/a.py": long_function + many,
            "owndist/b.py": "class Big:\n" + "    x = 1\n" * CLASS_LINES,
            "owndist/c.py": "x = 1\n" * (MODULE_LINES + 1),
            "owndist/fine.py": "x = 1\n" * MODULE_LINES,
            "tests/test_d.py": long_function,
        }
    )
    found = "\n".join(oversized(root))
    assert "a.py: long: 81 lines" in found
    assert "a.py: Many: 31 methods" in found
    assert f"b.py: Big: {CLASS_LINES + 1} lines" in found
    assert "c.py: 601 lines" in found
    assert found.count("\n") == 3


def test_wrong_direction_sees_every_form_of_import(plant):
    root = plant(
        {
            "owndist/__init__.py": "from .executor import Executor",
            "owndist/executor.py": "from owndist.runtime import peer; from . import futures",
            "owndist/futures.py": "",
            "owndist/errors.py": "",
            "owndist/stray.py": "",
            "owndist/runtime/__init__.py": "",
            "owndist/runtime/peer.py": "from ..core import machine; from .. import errors",
            "owndist/wire/frames.py": "from ..store import local",
            "owndist/store/local.py": "def late():\n    from .. import futures",
            "owndist/core/machine.py": "import owndist.wire.frames",
            "owndist/core/ids.py": "from ..runtime.peer import Peer",
            "owndist/core/up.py": "from owndist import Executor",
        }
    )
    assert wrong_direction(root) == [
        "owndist.core.ids:1 imports owndist.runtime.peer, which is further out",
        "owndist.core.machine:1 imports owndist.wire.frames, which is further out",
        "owndist.core.up:1 imports owndist, which is further out",
        "owndist.store.local:2 imports owndist.futures, which is further out",
        "owndist.stray is in no ring: give it one in RINGS",
    ]


def test_import_cycle_is_drawn(plant):
    root = plant(
        {
            "owndist/core/a.py": "from .b import x",
            "owndist/core/b.py": "def f():\n    from .c import x",
            "owndist/core/c.py": "from . import a",
            "owndist/core/d.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n"
            "    from .e import E",
            "owndist/core/e.py": "from . import d",
        }
    )
    assert import_cycles(root) == [
        "owndist.core.a -> owndist.core.b -> owndist.core.c -> owndist.core.a"
    ]


def test_impure_core_sees_imports_and_calls(plant):
    root = plant(
        {
            "owndist/errors.py": "",
            "owndist/core/good.py": """
                from collections.abc import Iterator
                from typing import TYPE_CHECKING
                from ..errors import InternalError
                from .bad import f
                if TYPE_CHECKING:
                    import random
                """,
            "owndist/core/bad.py": """
                def f():
                    import time, concurrent.futures
                    print(time)
                """,
        }
    )
    assert impure_core(root) == [
        "owndist.core.bad:3 imports time",
        "owndist.core.bad:3 imports concurrent.futures",
        "owndist.core.bad:4 calls print()",
    ]


def test_global_and_swallowed_errors_are_found(plant):
    root = plant(
        {
            "owndist/a.py": """
                def f():
                    global x
                    try:
                        x = 1
                    except:
                        raise
                    try:
                        x = 2
                    except OSError:
                        pass
                    try:
                        x = 3
                    except OSError:
                        pass  # it may be gone already, which is what we want
                    try:
                        x = 4
                    except OSError:
                        # a reason on a line of its own
                        pass
                """
        }
    )
    assert global_statements(root) == ["owndist/a.py:3 global x"]
    assert swallowed_errors(root) == [
        "owndist/a.py:6 bare except",
        "owndist/a.py:10 swallows errors without a comment that says why",
    ]


def test_forbidden_words_are_found(plant):
    home = "/" + "home/ann/"
    root = plant(
        {
            "docs/a.md": f"see {home}notes and .{home}x\nhttps://x.org{home}y",
            "setup.cfg": f"place = {home}",
            ".git/b.md": home,
        }
    )
    assert forbidden_words(root) == [f"docs/a.md:1 {home!r}", f"setup.cfg:1 {home!r}"]
