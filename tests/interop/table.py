"""The interop table: what was exchanged with whom, on which backends, and whether it worked.

Tests fill it through their marker, ``@pytest.mark.interop(row=..., column=...)``; one without a column
belongs to no neighbour's client or server and is listed below the table.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib import metadata
from typing import NamedTuple

HEAD = """\
# Interoperability

Programs of other projects that talk to anyio_ws, in the tests under `tests/interop`. A column is a
neighbour and the role that it plays; anyio_ws plays the other one. Messages are compared byte for byte
at both ends. "-" means that the neighbour's interface has no way to do this; "pass" stands for all of
these backends: {backends}.

This file is written by `pytest -m interop tests/interop --write-interop-table`.
"""


class Cell(NamedTuple):
    """One test, as the table sees it."""

    row: str
    column: str | None
    backend: str


class Table:
    """Collects outcomes. Rows, columns and backends stand in the order in which tests are collected."""

    def __init__(self) -> None:
        self._outcomes: dict[Cell, bool | None] = {}

    def expect(self, cell: Cell) -> None:
        """Make room for a test."""
        self._outcomes.setdefault(cell, None)

    def record(self, cell: Cell, *, passed: bool) -> None:
        """Take an outcome; a failure stays one."""
        self._outcomes[cell] = passed and self._outcomes[cell] is not False

    @property
    def is_started(self) -> bool:
        """Whether there is anything to show."""
        return any(outcome is not None for outcome in self._outcomes.values())

    @property
    def is_complete(self) -> bool:
        """Whether every test has run and passed."""
        return self.is_started and all(self._outcomes.values())

    def render(self) -> str:
        """Write what has run as a table with a list below it, in Markdown."""
        cells = [cell for cell, outcome in self._outcomes.items() if outcome is not None]
        columns = _unique(cell.column for cell in cells if cell.column)
        rows = _unique(cell.row for cell in cells if cell.column)
        further = _unique(cell.row for cell in cells if not cell.column)
        table = [[row, *(self._show(row, column) for column in columns)] for row in rows]
        listed = [[row, self._show(row, None)] for row in further]
        return "\n".join(
            [*_lines(["Exchange", *columns], table), "", *_lines(["Further", "Outcome"], listed)]
        )

    def render_document(self, versions: Iterable[str]) -> str:
        """Write the whole file: what it is, the table, and the versions of everything that took part."""
        backends = _unique(cell.backend for cell in self._outcomes)
        distributions = ["anyio", *(name for name in backends if name != "asyncio")]
        ours = [f"Python {platform.python_version()}"]
        ours += [f"{name} {metadata.version(name)}" for name in distributions]
        head = HEAD.format(backends=", ".join(backends))
        return f"{head}\n{self.render()}\n\nVersions: {', '.join([*versions, *ours])}.\n"

    def _show(self, row: str, column: str | None) -> str:
        outcomes = {cell.backend: out for cell, out in self._outcomes.items() if cell[:2] == (row, column)}
        ran = {backend: outcome for backend, outcome in outcomes.items() if outcome is not None}
        failed = [backend for backend, outcome in ran.items() if not outcome]
        if not outcomes:
            return "-"
        if failed:
            return f"FAIL: {', '.join(failed)}"
        if ran == outcomes:
            return "pass"
        return f"pass: {', '.join(ran)}" if ran else "not run"


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _lines(head: list[str], rows: list[list[str]]) -> list[str]:
    if not rows:
        return []
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [head, ["-" * width for width in widths], *rows]
    return [
        "| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |"
        for line in lines
    ]
