"""The security table is whole: every row has a test, every mark a row, and the page is that of the tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from .page import PAGE, collect, complaints, main, render
from .rows import GROUPS, ROWS


def test_every_row_has_a_test_and_every_mark_a_row() -> None:
    """A promise that nothing proves, or a proof of nothing, is found here."""
    assert complaints(collect()) == []


def test_page_is_not_stale(capsys: pytest.CaptureFixture[str]) -> None:
    """The page in the documentation is what the marks say; ``python -m tests.security.page`` writes it."""
    assert main(["--check"]) == 0, capsys.readouterr().out


def test_rows_are_well_formed() -> None:
    """Each id is there once, in a group, in order, and has something to promise."""
    ids = [row.id for row in ROWS]
    assert len(set(ids)) == len(ids)
    assert [each[0] for each in ids] == sorted((each[0] for each in ids), key=list(GROUPS).index)
    assert all(row.attack and row.behaviour and "|" not in row.attack + row.behaviour for row in ROWS)


def test_marks_are_read_from_tests_only(tmp_path: Path) -> None:
    """Marks on functions and on their parameters count, once per test; others do not."""
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "test_x.py").write_text(
        "@pytest.mark.attack('F01', 'F02')\n"
        "@pytest.mark.attack('F01')\n"
        "def test_a(): ...\n"
        "@pytest.mark.parametrize('a', [pytest.param(1, marks=pytest.mark.attack('F03'))])\n"
        "async def test_b(a): ...\n"
        "@pytest.mark.attack('F04')\n"
        "def helper(): ...\n"
    )
    assert collect(folder) == {
        "F01": ["tests/test_x.py::test_a"],
        "F02": ["tests/test_x.py::test_a"],
        "F03": ["tests/test_x.py::test_b"],
    }


def test_complaints_name_what_is_missing() -> None:
    """A row without a test and a mark without a row are both told."""
    tests = {row.id: ["tests/test_x.py::test_a"] for row in ROWS if row.id != "F19"}
    found = complaints({**tests, "X99": ["tests/test_x.py::test_b"]})
    assert [line.split(":")[0] for line in found] == [
        "F19 has no test",
        "there is no row X99, which marks tests/test_x.py",
    ]
    assert "| F19 |" in render(tests)


def test_page_is_written_where_it_belongs() -> None:
    """It is part of the documentation."""
    assert PAGE.parts[-3:] == ("docs", "security", "attacks.md")
