"""The documentation says what the code says, and its links lead somewhere."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import anyio_ws

from .pages import DOCS, NAMES, PAGES

ROOT = DOCS.parent
TEXTS = sorted([ROOT / "README.md", *DOCS.rglob("*.md")])
each_text = pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())


@pytest.mark.parametrize("name", PAGES)
def test_page_is_fresh(name: str) -> None:
    """What is generated was generated from the code as it is: else run python -m tests.pages."""
    assert (DOCS / name).read_text("utf-8") == PAGES[name]()


def test_public_names_have_a_reason() -> None:
    """The names of the package are these, fewer than forty, and each says why it is public."""
    assert list(NAMES) == anyio_ws.__all__
    assert len(NAMES) < 40
    assert all(NAMES.values())


@each_text
def test_links_lead_somewhere(path: Path) -> None:
    """A link to a file leads to one that is there, and to a heading that it has."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", path.read_text("utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        there = (path.parent / name).resolve() if name else path
        assert there.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", there.read_text("utf-8"), re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings]
            assert anchor in anchors, target


@each_text
def test_code_can_be_parsed(path: Path) -> None:
    """Every Python block is Python."""
    for block in re.findall(r"```python\n(.*?)```", path.read_text("utf-8"), re.DOTALL):
        ast.parse(block)


def test_index_leads_to_every_page() -> None:
    """No page is hidden: the index has a link to each."""
    index = (DOCS / "index.md").read_text("utf-8")
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")} - {"index.md"}
    assert pages <= set(re.findall(r"\]\(([^)#\s]+)", index))
