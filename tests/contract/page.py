"""Puts the rows of the contract and the tests that prove them into one page.

``python -m tests.contract.page`` prints the table and writes ``docs/contract.md``; with ``--check`` it
writes nothing, and fails when the page is stale, a row has no test, or a test has no row. The tests are
read, not run.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

from ..tables import write_or_check
from .rows import ROWS, SECTIONS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "contract.md"
_HEAD = """# The contract, row by row

Written by `python -m tests.contract.page` from the tests in `tests/contract`; do not edit it. Each row is
proven by the tests that are named after it, on asyncio, uvloop and Trio; the suite fails when a row has
none. They are short and prove the row as it stands here; the tests of the modules go into the corners.
"""


def prefix_of(row_id: str) -> str:
    """Return how the tests of a row begin: ``test_s1_``, ``test_config_max_conn_``."""
    return f"test_{row_id.lower().replace('.', '_')}_"


def row_of(test: str) -> str | None:
    """Return the row that a test is named after: the longest name that fits."""
    fitting = [row.id for row in ROWS if test.startswith(prefix_of(row.id))]
    return max(fitting, key=len, default=None)


def collect() -> dict[str, list[str]]:
    """Return the tests of each row, and under ``""`` those that are named after none."""
    tests: dict[str, list[str]] = {}
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        if path.name == "test_page.py":
            continue
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                name = f"{path.name}::{node.name}"
                tests.setdefault(row_of(node.name) or "", []).append(name)
    return tests


def complaints(tests: dict[str, list[str]]) -> list[str]:
    """Say which rows have no test, and which tests no row."""
    return [
        *(f"{row.id} has no test: {row.promise}" for row in ROWS if row.id not in tests),
        *(f"{test} is named after no row" for test in tests.get("", ())),
    ]


def render(tests: dict[str, list[str]]) -> str:
    """Write the page."""
    lines = [_HEAD]
    for prefix, title in SECTIONS.items():
        lines += [f"\n## {title}\n", "| row | what | promise | proven by |", "|---|---|---|---|"]
        for row in ROWS:
            if row.id.startswith(prefix):
                proof = "<br>".join(f"`{test}`" for test in tests.get(row.id, ["none"]))
                what, promise = row.what.replace("|", r"\|"), row.promise.replace("|", r"\|")
                lines.append(f"| {row.id.removeprefix('config.')} | {what} | {promise} | {proof} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Print and write the table, or check it; return the exit status."""
    tests = collect()
    page = render(tests)
    status = write_or_check(PAGE, page, complaints(tests), arguments)
    print("" if "--check" in arguments else page)
    print(f"{len(ROWS)} rows, {sum(map(len, tests.values()))} tests")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
