"""The page of the contract is whole and fresh."""

from __future__ import annotations

import pytest

from .page import collect, complaints, main, render, row_of
from .rows import ROWS


def test_every_row_has_a_test_and_every_test_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    """No row is without proof, no test is named after nothing, and the committed page says so."""
    assert main(["--check"]) == 0, capsys.readouterr().out


def test_row_without_a_test_is_noticed() -> None:
    """The check complains about a row whose test is gone, about a test without a row, and shows the gap."""
    tests = collect()
    del tests["S1"]
    tests[""] = ["test_server.py::test_x9_nothing"]
    found = complaints(tests)
    assert [words.partition(":")[0] for words in found] == ["S1 has no test", "test_server.py"]
    assert found[1] == "test_server.py::test_x9_nothing is named after no row"
    assert "| `none` |" in render(tests)


def test_tests_find_their_rows() -> None:
    """A test belongs to the row with the longest name that it begins with; S1 does not take those of S10."""
    assert row_of("test_h1_refuses") == "H1"
    assert row_of("test_h13_views") == "H13"
    assert row_of("test_config_handshake_max_size_is_431") == "config.handshake.max_size"
    assert row_of("test_config_max_conn_waits") == "config.max_conn"
    assert row_of("test_nothing") is None
    assert len({row.id for row in ROWS}) == len(ROWS)
