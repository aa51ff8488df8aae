"""Puts the rows of the security table and the tests that prove them into one page.

``python -m tests.security.page`` writes ``docs/security/attacks.md``; with ``--check`` it writes nothing,
and fails when the page is stale, a row has no test, or a test names a row that does not exist. The tests
are read, not run: what counts is ``@pytest.mark.attack("F19")`` on a test function or its parameters.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from ..tables import write_or_check
from .rows import GROUPS, ROWS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "security" / "attacks.md"
TESTS = ROOT / "tests"

_HEAD = """# What anyio_ws withstands, row by row

Written by `python -m tests.security.page` from the marks on the tests; do not edit it. Each row is a
promise, and each is proven by the tests named with it: they carry its id, and the suite fails when a row
has none. What is *not* promised stands in [promises.md](promises.md). Numbers such as 6455 §5.1 are RFCs.
"""


def marks_in(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the id of each row that a test in a file is marked with, and the name of the test."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            for decorator in node.decorator_list:
                for call in ast.walk(decorator):
                    if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.attack":
                        yield from ((text, node.name) for text in map(_text, call.args) if text)


def _text(node: ast.expr) -> str:
    """Return a literal string; what is computed, such as marks made from data, cannot be read."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def collect(root: Path = TESTS) -> dict[str, list[str]]:
    """Return the tests of each row: ``{"F19": ["tests/test_framing.py::test_..."]}``."""
    tests: dict[str, list[str]] = {}
    for path in sorted(root.rglob("test_*.py")):
        for row, name in marks_in(path):
            found = tests.setdefault(row, [])
            test = f"{path.relative_to(root.parent).as_posix()}::{name}"
            if test not in found:
                found.append(test)
    return tests


def complaints(tests: dict[str, list[str]]) -> list[str]:
    """Say which rows have no test, and which marks no row."""
    known = {row.id for row in ROWS}
    return [
        *(f"{row.id} has no test: {row.attack}" for row in ROWS if row.id not in tests),
        *(f"there is no row {name}, which marks {tests[name][0]}" for name in sorted(tests.keys() - known)),
    ]


def render(tests: dict[str, list[str]]) -> str:
    """Write the page."""
    lines = [_HEAD]
    for letter, title in GROUPS.items():
        lines += [
            f"\n## {letter}: {title}\n",
            "| id | what happens | what is promised | source | proven by |",
        ]
        lines.append("|---|---|---|---|---|")
        for row in ROWS:
            if row.id.startswith(letter):
                proof = "<br>".join(
                    f"`{test.removeprefix('tests/')}`" for test in tests.get(row.id, ["none"])
                )
                lines.append(f"| {row.id} | {row.attack} | {row.behaviour} | {row.source} | {proof} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Write or check the page; return the exit status."""
    tests = collect()
    status = write_or_check(PAGE, render(tests), complaints(tests), arguments)
    print(f"{len(ROWS)} rows, {sum(map(len, tests.values()))} proofs")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
