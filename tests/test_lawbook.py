"""The book of laws agrees with the tests; and the one who checks that is checked on wrong books."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.lawbook import BEGIN, END, ROOT, WHOLE_FILE, complaints, laws_in, named_in, with_table
from tests.lawbook import laws as laws_of
from tests.lawbook import proofs as proofs_of

BOOK = f"""
# Laws

## Values

1. First
   of two lines.
2. Second. *Not built yet.*
3. Third. *Not built yet: the
   better half.*

## Proofs

{BEGIN}
{END}
"""


def plant(root: Path, book: str, **tests: str) -> list[str]:
    """A small tree with a fresh table, and what is wrong with it."""
    for name, source in tests.items():
        path = root / "tests" / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)
    (root / "docs").mkdir(exist_ok=True)
    (root / "docs/laws.md").write_text(with_table(book, proofs_of(root)))
    return complaints(root)


def a_test(docstring: str, name: str = "test_x") -> str:
    return f'def {name}():\n    """{docstring}"""\n'


def test_the_book_and_the_tests_agree() -> None:
    wrong = complaints(ROOT)
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    ("docstring", "laws"),
    [
        ("Law 39.", [39]),
        ("`submit(f)` (Law 3)", [3]),
        ("Laws 2, 9, 31 and 36 as users meet them.", [2, 9, 31, 36]),
        ("Laws 48-50: all of them.", [48, 49, 50]),
        ("Laws 12 to 14, and 17", [12, 13, 14, 17]),
        ("Laws 5,\n    7, and Law 5 again", [5, 7]),
        ("Law 9: 100 of them, in 3 ways.", [9]),
        ("By law, in-laws and Lawrence 7 prove nothing.", []),
    ],
)
def test_laws_are_read_from_a_docstring(docstring: str, laws: list[int]) -> None:
    assert laws_in(docstring) == laws


def test_tests_come_before_the_docstring_of_their_module() -> None:
    """What only the module names is proved by all of it; what helpers name is not proved."""
    source = textwrap.dedent(
        '''
        """Laws 1 and 2."""
        def test_x():
            """Law 1."""
        class TestIt:
            """Law 3."""
            async def test_y(self):
                """Law 4."""
        def helper():
            """Law 5."""
        '''
    )
    assert sorted(named_in(source)) == [
        (1, "test_x"),
        (2, WHOLE_FILE),
        (3, "TestIt"),
        (4, "test_y"),
    ]


def test_statements_may_have_several_lines() -> None:
    assert laws_of(BOOK) == {
        1: "First of two lines.",
        2: "Second. *Not built yet.*",
        3: "Third. *Not built yet: the better half.*",
    }


def test_a_good_book_is_not_complained_of(tmp_path: Path) -> None:
    """A law that is built in part may have tests, or none."""
    assert plant(tmp_path, BOOK, test_a=a_test("Law 1.")) == []
    assert plant(tmp_path, BOOK, test_a=a_test("Laws 1 and 3.")) == []
    book = (tmp_path / "docs/laws.md").read_text()
    assert "| 3 | [test_a.py](../tests/test_a.py) | `test_x` |" in book


def test_a_law_without_a_test_and_without_an_excuse_is_found(tmp_path: Path) -> None:
    (wrong,) = plant(tmp_path, BOOK, test_a=a_test("It works."))
    assert wrong.startswith("Law 1 is named by no test")
    assert plant(tmp_path, BOOK.replace("lines.", "lines. *Not testable because slow.*")) == []


def test_a_law_that_does_not_exist_is_found(tmp_path: Path) -> None:
    wrong = plant(tmp_path, BOOK, test_a=a_test("Laws 1 and 4."))
    assert wrong == ["Law 4 does not exist, but is named by tests/test_a.py: test_x"]


def test_an_excuse_that_is_no_longer_true_is_found(tmp_path: Path) -> None:
    wrong = plant(tmp_path, BOOK, test_a=a_test("Laws 1 and 2."))
    assert wrong == ['Law 2 has tests, but docs/laws.md says "Not built yet"']


def test_a_table_that_is_out_of_date_is_found(tmp_path: Path) -> None:
    plant(tmp_path, BOOK, test_a=a_test("Law 1."))
    (tmp_path / "tests/test_b.py").write_text(a_test("Law 1.", "test_new"))
    (wrong,) = complaints(tmp_path)
    assert "out of date: run python -m tests.lawbook" in wrong


def test_a_gap_in_the_numbers_is_found(tmp_path: Path) -> None:
    (wrong,) = plant(tmp_path, BOOK.replace("3. Third", "4. Third"), test_a=a_test("Law 1."))
    assert "not numbered 1, 2, 3" in wrong


def test_the_command_says_what_is_wrong() -> None:
    """The exit status is for scripts, the text for people."""
    command = [sys.executable, "-m", "tests.lawbook"]
    checked = subprocess.run([*command, "--check"], cwd=ROOT, capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, ""), checked.stdout
    asked = subprocess.run([*command, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert asked.returncode == 2 and "--check" in asked.stdout
