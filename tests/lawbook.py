"""Which tests prove which law: reads `docs/laws.md` and the tests, and writes the table of proofs.

    python -m tests.lawbook            writes the table into docs/laws.md
    python -m tests.lawbook --check    says what is wrong, and exits with 1 if anything is

A law is an item of a numbered list in `docs/laws.md`. A test proves a law by naming it in its
docstring: `Law 5`, `Laws 5, 7 and 13`, `Laws 27-29`. Where only a module's docstring names a law,
all of its tests are the proof.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
BOOK = Path("docs/laws.md")
BEGIN, END = "<!-- proofs: begin -->", "<!-- proofs: end -->"
COMMAND = "python -m tests.lawbook"
WHOLE_FILE = "all of its tests"

NAMED = re.compile(r"\bLaws?\s+(\d+(?:\s*(?:,\s*and|,|and|to|-|–)\s*\d+)*)")
ONE_OR_RANGE = re.compile(r"(\d+)(?:\s*(?:to|-|–)\s*(\d+))?")
ITEM = re.compile(r"^(\d+)\. (.+(?:\n {2,}\S.*)*)", re.MULTILINE)
# The reason why no test proves a law. "Not built yet: ..." says which part is missing.
EXCUSE = re.compile(r"\*(Not built yet(?::\s[^*]+)?|Not testable because\s[^*]+)\.\*")

# {law: {path of a test file: names of its tests}}
Proofs = dict[int, dict[str, list[str]]]


def laws_in(text: str) -> list[int]:
    """The laws that a docstring names, each once."""
    found: dict[int, None] = {}
    for listed in NAMED.findall(text):
        for first, last in ONE_OR_RANGE.findall(listed):
            found.update(dict.fromkeys(range(int(first), int(last or first) + 1)))
    return list(found)


def named_in(source: str) -> Iterator[tuple[int, str]]:
    """(law, test) for every law that a test, or only the file itself, names."""
    tree = ast.parse(source)
    by_tests: set[int] = set()
    for node in ast.walk(tree):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        if node.name.lower().startswith("test"):
            for law in laws_in(ast.get_docstring(node) or ""):
                by_tests.add(law)
                yield law, node.name
    for law in laws_in(ast.get_docstring(tree) or ""):
        if law not in by_tests:
            yield law, WHOLE_FILE


def proofs(root: Path) -> Proofs:
    """What all files of tests name."""
    found: Proofs = defaultdict(lambda: defaultdict(list))
    for path in sorted(root.joinpath("tests").rglob("test_*.py")):
        where = path.relative_to(root).as_posix()
        for law, name in named_in(path.read_text(encoding="utf-8")):
            found[law][where].append(name)
    return found


def laws(book: str) -> dict[int, str]:
    """{number: statement} of a book of laws."""
    return {int(number): " ".join(text.split()) for number, text in ITEM.findall(book)}


def table(found: Proofs) -> str:
    """One row for a law and a file, so that two who add tests seldom change the same line."""
    rows = ["| law | file | tests |", "|---|---|---|"]
    for law in sorted(found):
        for path, names in found[law].items():
            listed = ", ".join(name if name == WHOLE_FILE else f"`{name}`" for name in names)
            rows.append(f"| {law} | [{path.removeprefix('tests/')}](../{path}) | {listed} |")
    return "\n".join(rows)


def with_table(book: str, found: Proofs) -> str:
    """The book with a fresh table between its two marks."""
    before, mark, rest = book.partition(BEGIN)
    _, other_mark, after = rest.partition(END)
    if not (mark and other_mark):
        raise ValueError(f"{BOOK} has no place for the table: {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{table(found)}\n{END}{after}"


def complaints(root: Path) -> list[str]:
    """What is wrong with the book, the tests, or between them."""
    book = root.joinpath(BOOK).read_text(encoding="utf-8")
    known, found = laws(book), proofs(root)
    wrong = []
    numbers = [int(number) for number, _ in ITEM.findall(book)]
    if numbers != list(range(1, len(numbers) + 1)):
        wrong.append(f"{BOOK}: the laws are not numbered 1, 2, 3 and so on: {numbers}")
    for law in sorted(found.keys() - known.keys()):
        tests = [f"{path}: {name}" for path, names in found[law].items() for name in names]
        wrong.append(f"Law {law} does not exist, but is named by {'; '.join(tests)}")
    for law, statement in known.items():
        excuse = EXCUSE.search(statement)
        if excuse is None and law not in found:
            wrong.append(
                f"Law {law} is named by no test; write one, or say in {BOOK} *Not built yet.* or "
                f"*Not testable because ...*"
            )
        elif excuse is not None and ":" not in excuse[1] and law in found:
            wrong.append(f'Law {law} has tests, but {BOOK} says "{excuse[1]}"')
    if with_table(book, found) != book:
        wrong.append(f"{BOOK} is out of date: run {COMMAND}")
    return wrong


def main(arguments: list[str]) -> int:
    if arguments == ["--check"]:
        wrong = complaints(ROOT)
        print("\n".join(wrong) or f"{BOOK} and the tests agree")
        return 1 if wrong else 0
    if arguments:
        print(__doc__)
        return 2
    book = ROOT / BOOK
    book.write_text(with_table(book.read_text(encoding="utf-8"), proofs(ROOT)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
