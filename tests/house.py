"""The rules of the house, as functions from a tree of files to the list of its offenders.

Each rule can be tried on a small wrong tree before it is trusted on ours: `test_house` does both.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGE = "owndist"
TREES = (PACKAGE, "tests", "examples", "benchmarks", "docs", ".ci")

# The door to the protocol has one small handler for each report and each message.
ONE_METHOD_PER_INPUT = {("owndist/core/machine.py", "Machine")}

MODULE_LINES, CLASS_LINES, CLASS_METHODS, FUNCTION_LINES = 600, 440, 30, 80

# Imports go to the own ring or to one further down. "" is owndist/__init__.py.
RINGS: tuple[frozenset[str], ...] = (
    frozenset({"", "executor", "mapping", "statistics", "listing", "testing"}),
    frozenset({"runtime"}),
    frozenset({"futures", "settled", "streams"}),
    frozenset({"transport", "wire", "store"}),
    frozenset({"core"}),
    frozenset({"errors", "config"}),
)

# All that the core may import besides itself and what lies below it: nothing that acts, waits,
# looks at the clock, draws lots or logs.
PURE = frozenset(
    "__future__ abc bisect collections dataclasses enum functools heapq itertools math operator"
    " types typing typing_extensions".split()
)
IMPURE_BUILTINS = frozenset("open print input exec eval compile breakpoint __import__".split())

# Paths of somebody's own machine, and talk about how the work was organised, do not belong here.
FORBIDDEN = re.compile(
    r"(?<![\w.:/])/(?:work|root|Users/\w+|home/\w+)/|\bsession cut\b|\bsub-?agent\b", re.IGNORECASE
)


# --- reading the source --------------------------------------------------------------------------


def python_files(root: Path, *trees: str) -> Iterator[Path]:
    """The Python files of the project below `root`, or of some of its trees."""
    for tree in trees or TREES:
        yield from sorted(root.joinpath(tree).rglob("*.py"))


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


class Import(NamedTuple):
    line: int
    target: str  # dotted name of the module, absolute
    for_types_only: bool


def imports(path: Path, root: Path) -> list[Import]:
    """All imports of a file, also those inside functions, with the module each one means."""
    tree = parse(path)
    for_types: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for statement in node.body:
                for_types.update(ast.walk(statement))
    package = module_name(path.parent / "__init__.py", root)
    found = []
    for node in ast.walk(tree):
        targets: list[str] = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - (node.level - 1)]
                base = ".".join([*parents, *([base] if base else [])])
            for (
                alias
            ) in node.names:  # `from package import name`: a module of it, or something in it
                inner = f"{base}.{alias.name}"
                file = root.joinpath(*inner.split("."))
                is_module = file.with_suffix(".py").exists() or file.is_dir()
                targets.append(inner if is_module else base)
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found += [Import(node.lineno, target, node in for_types) for target in targets]
    return found


# --- the rules -----------------------------------------------------------------------------------


def oversized(root: Path) -> list[str]:
    offenders = []
    for path in python_files(root):
        where = path.relative_to(root)
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MODULE_LINES:
            offenders.append(f"{where}: {lines} lines, at most {MODULE_LINES}")
        if where.parts[0] != PACKAGE:
            continue  # tests and examples have a limit per file only
        for node in ast.walk(parse(path)):
            if not isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            limit = CLASS_LINES if isinstance(node, ast.ClassDef) else FUNCTION_LINES
            if length > limit:
                offenders.append(f"{where}: {node.name}: {length} lines, at most {limit}")
            methods = [
                item
                for item in node.body
                if isinstance(item, (ast.FunctionDef, ast.AsyncFunctionDef))
            ]
            if (where.as_posix(), node.name) in ONE_METHOD_PER_INPUT:
                continue
            if isinstance(node, ast.ClassDef) and len(methods) > CLASS_METHODS:
                offenders.append(
                    f"{where}: {node.name}: {len(methods)} methods, at most {CLASS_METHODS}"
                )
    return offenders


def ring_of(module: str) -> int | None:
    name = module.split(".")[1] if "." in module else ""
    return next((number for number, ring in enumerate(RINGS) if name in ring), None)


def wrong_direction(root: Path) -> list[str]:
    offenders = []
    for path in python_files(root, PACKAGE):
        module = module_name(path, root)
        here = ring_of(module)
        if here is None:
            offenders.append(f"{module} is in no ring: give it one in RINGS")
            continue
        for line, target, _ in imports(path, root):
            there = ring_of(target)
            if target.split(".")[0] == PACKAGE and there is not None and there < here:
                offenders.append(f"{module}:{line} imports {target}, which is further out")
    return offenders


def import_cycles(root: Path) -> list[str]:
    graph = {
        module_name(path, root): sorted(
            {i.target for i in imports(path, root) if not i.for_types_only}
        )
        for path in python_files(root, PACKAGE)
    }
    offenders: list[str] = []
    done: set[str] = set()

    def visit(module: str, way: list[str]) -> None:
        if module in way:
            offenders.append(" -> ".join([*way[way.index(module) :], module]))
        elif module in graph and module not in done:
            for target in graph[module]:
                visit(target, [*way, module])
            done.add(module)

    for module in graph:
        visit(module, [])
    return offenders


def impure_core(root: Path) -> list[str]:
    offenders = []
    allowed = ring_of(f"{PACKAGE}.core")
    for path in python_files(root, f"{PACKAGE}/core"):
        module = module_name(path, root)
        for line, target, for_types_only in imports(path, root):
            top = target.split(".")[0]
            inside = top == PACKAGE and (ring_of(target) or 0) >= (allowed or 0)
            if not inside and top not in PURE and not for_types_only:
                offenders.append(f"{module}:{line} imports {target}")
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                if node.func.id in IMPURE_BUILTINS:
                    offenders.append(f"{module}:{node.lineno} calls {node.func.id}()")
    return offenders


def global_statements(root: Path) -> list[str]:
    return [
        f"{path.relative_to(root)}:{node.lineno} global {', '.join(node.names)}"
        for path in python_files(root, PACKAGE)
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Global)
    ]


def swallowed_errors(root: Path) -> list[str]:
    """Bare excepts, and handlers that do nothing and do not say why."""
    offenders = []
    for path in python_files(root):
        text = path.read_text(encoding="utf-8")
        comments = {
            token.start[0]
            for token in tokenize.generate_tokens(io.StringIO(text).readline)
            if token.type == tokenize.COMMENT
        }
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.ExceptHandler):
                continue
            where = f"{path.relative_to(root)}:{node.lineno}"
            if node.type is None:
                offenders.append(f"{where} bare except")
            silent = all(
                isinstance(item, ast.Pass)
                or (isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant))
                for item in node.body
            )
            last = node.end_lineno or node.lineno
            if silent and comments.isdisjoint(range(node.lineno, last + 1)):
                offenders.append(f"{where} swallows errors without a comment that says why")
    return offenders


def forbidden_words(root: Path) -> list[str]:
    paths = [path for path in root.iterdir() if path.suffix in {".md", ".cfg", ".toml"}]
    for tree in TREES:
        paths += root.joinpath(tree).rglob("*")
    offenders = []
    for path in sorted(paths):
        if path.suffix == ".pyc" or not path.is_file():
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        for number, line in enumerate(text.splitlines(), 1):
            for match in FORBIDDEN.finditer(line):
                offenders.append(f"{path.relative_to(root)}:{number} {match.group()!r}")
    return offenders
