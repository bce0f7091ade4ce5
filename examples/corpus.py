"""Reads, parses and counts every Python file of this installation; merges in a tree of futures.

Run it: python examples/corpus.py [FOLDER ...]     # other folders than the installation's

Each file passes through three tasks (read, parse, count), each the argument of the next, so no
source and no outline ever comes to this process. Their reports are merged eight at a time, until
one is left. All of it is submitted at once, and nothing waits in between. The same functions, run
one after the other in this process, must give the same report.
"""

from __future__ import annotations

import ast
import io
import os
import re
import sys
import sysconfig
import time
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

from owndist import OwnershipExecutor

FAN_IN = 8
TOP = 10
ROWS = ["files", "files that do not decode", "files that do not parse"]
ROWS += ["lines", "classes", "functions", "decision points"]
DECISIONS = {ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.Assert}
DECISIONS |= {ast.comprehension, ast.match_case}


@dataclass
class Outline:
    """What counting needs of a parsed file: a tenth of the work of passing on its syntax tree."""

    failure: str = ""
    lines: int = 0
    imports: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    classes: int = 0
    functions: list[tuple[int, str]] = field(default_factory=list)  # (complexity, where)


@dataclass
class Report:
    totals: Counter[str] = field(default_factory=Counter)
    imports: Counter[str] = field(default_factory=Counter)
    names: Counter[str] = field(default_factory=Counter)
    most_complex: list[tuple[int, str]] = field(default_factory=list)


def read(path: str) -> bytes:
    return Path(path).read_bytes()


def parse(source: bytes, path: str) -> Outline:
    """The outline of one file; one that cannot be decoded or parsed says so."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(source).readline)
        text = source.decode(encoding)
    except (SyntaxError, UnicodeDecodeError, LookupError):
        return Outline(failure="files that do not decode")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes and the like are not our subject
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return Outline(failure="files that do not parse")
    outline = Outline(lines=text.count("\n"))
    functions = []  # [complexity, where]
    todo: list[tuple[ast.AST, str, list]] = [(tree, "", [0, ""])]
    while todo:
        node, prefix, function = todo.pop()
        kind = type(node)
        if kind is ast.Name:
            outline.names.append(node.id)
            continue
        if kind in DECISIONS:
            function[0] += 1
        elif kind is ast.BoolOp:
            function[0] += len(node.values) - 1
        elif kind is ast.ClassDef:
            prefix = f"{prefix}{node.name}."
            outline.classes += 1
        elif kind is ast.FunctionDef or kind is ast.AsyncFunctionDef:
            function = [1, f"{prefix}{node.name} ({path}:{node.lineno})"]
            functions.append(function)
            prefix = f"{prefix}{node.name}."
        elif kind is ast.Import:
            outline.imports += [alias.name.partition(".")[0] for alias in node.names]
        elif kind is ast.ImportFrom and not node.level:
            outline.imports.append(node.module.partition(".")[0])
        todo += [(child, prefix, function) for child in ast.iter_child_nodes(node)]
    outline.functions = [(complexity, where) for complexity, where in functions]
    return outline


def count(outline: Outline, path: str) -> Report:
    report = Report(Counter({"files": 1}))
    if outline.failure:
        report.totals[outline.failure] = 1
        return report
    report.totals["lines"] = outline.lines
    report.totals["classes"] = outline.classes
    report.totals["functions"] = len(outline.functions)
    report.totals["decision points"] = sum(c - 1 for c, _ in outline.functions)
    report.imports.update(set(outline.imports))  # so many files import it
    report.names.update(outline.names)
    report.most_complex = sorted(outline.functions, reverse=True)[:TOP]
    return report


def merge(*reports: Report) -> Report:
    merged = Report()
    for report in reports:
        merged.totals.update(report.totals)
        merged.imports.update(report.imports)
        merged.names.update(report.names)
        merged.most_complex += report.most_complex
    merged.most_complex = sorted(merged.most_complex, reverse=True)[:TOP]
    return merged


def total(reports: dict[str, Report]) -> dict[str, Report]:
    return {**reports, "together": merge(*reports.values())}


def python_files(folders: list[str]) -> dict[str, list[str]]:
    """{area: paths}: the folders; or all that the Python that runs this has installed."""
    stdlib = os.path.realpath(sysconfig.get_path("stdlib"))
    site = {os.path.realpath(sysconfig.get_path(name)) for name in ("purelib", "platlib")}

    def below(root: str, leave_out: str) -> Iterator[str]:
        for folder, folders, files in os.walk(root):
            folders[:] = [name for name in folders if name != leave_out]
            paths = (os.path.join(folder, name) for name in files if name.endswith(".py"))
            yield from (path for path in paths if os.path.isfile(path))

    if folders:
        return {folder: sorted(below(folder, leave_out="")) for folder in folders}
    return {
        "standard library": sorted(below(stdlib, leave_out="site-packages")),
        "site packages": sorted(path for root in site for path in below(root, leave_out="")),
    }


def in_parallel(areas: dict[str, list[str]]) -> dict[str, Report]:
    with OwnershipExecutor() as executor, progress_bar(sum(map(len, areas.values()))) as bar:

        def reports_of(paths: list[str]) -> Iterator[Future]:
            for path in paths:
                source = executor.submit(read, path)
                outline = executor.submit(parse, source, path)
                report = executor.submit(count, outline, path)
                report.add_done_callback(lambda _: bar.update())
                yield report

        merged = {}
        for area, paths in areas.items():
            level = list(reports_of(paths)) or [executor.submit(merge)]
            while len(level) > 1:
                groups = (level[i : i + FAN_IN] for i in range(0, len(level), FAN_IN))
                level = [executor.submit(merge, *group) for group in groups]
            merged[area] = level[0]
        return executor.submit(total, merged).result()  # futures in a dict are arguments too


def sequentially(areas: dict[str, list[str]]) -> dict[str, Report]:
    return total(
        {
            area: merge(*(count(parse(read(path), path), path) for path in paths))
            for area, paths in areas.items()
        }
    )


def progress_bar(files: int) -> AbstractContextManager:
    try:
        from tqdm import tqdm
    except ImportError:
        print("(no progress bar: it needs tqdm, see `pip install tqdm`)")
        return nullcontext(SimpleNamespace(update=lambda: None))
    return tqdm(total=files, unit=" files", disable=None)  # None: only where a terminal looks on


def show(reports: dict[str, Report]) -> None:
    together = reports["together"]
    print(f"\n{'':<28}" + "".join(f"{area:>18}" for area in reports))
    for name in ROWS:
        print(f"{name:<28}" + "".join(f"{r.totals[name]:>18,}" for r in reports.values()))
    for title, counter in (("imported modules", together.imports), ("names", together.names)):
        first = sorted(counter.items(), key=lambda item: (-item[1], item[0]))[:TOP]
        print(f"\nTop {TOP} {title}: " + ", ".join(f"{name} {n:,}" for name, n in first))
    print("\nMost complex functions (decision points + 1):")
    for complexity, where in together.most_complex:
        print(f"{complexity:>6}  " + re.sub(r"/\S*/(?:site-packages|python3[^/]*)/", "", where))


def main() -> None:
    areas = python_files(sys.argv[1:])
    paths = [path for paths in areas.values() for path in paths]
    size = sum(len(read(path)) for path in paths)  # from now on all are in the page cache
    print(f"{len(paths):,} files, {size / 1e6:.0f} MB, {3 * len(paths):,} tasks and their merging")

    start = time.perf_counter()
    parallel = in_parallel(areas)
    middle = time.perf_counter()
    sequential = sequentially(areas)
    end = time.perf_counter()

    show(parallel)
    assert parallel == sequential, "the reports differ"
    print("\nThe sequential run gives the same report.")
    print(f"parallel {middle - start:.1f} s, sequential {end - middle:.1f} s: ", end="")
    print(f"{(end - middle) / (middle - start):.2f} times as fast on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
