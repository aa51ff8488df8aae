"""What the fuzzer begins with, and what it has found, without the fuzzer."""

from __future__ import annotations

from pathlib import Path

import pytest

from .fuzz.__main__ import CORPUS, NAMES
from .fuzz.targets import TARGETS


@pytest.mark.parametrize(
    "path", sorted(CORPUS.glob("*/*")), ids=lambda path: f"{path.parent.name}-{path.name}"
)
def test_fuzz_target_keeps_its_promises(path: Path) -> None:
    """Each target holds for everything in its corpus."""
    TARGETS[path.parent.name](path.read_bytes())


def test_fuzz_corpus_has_something_for_each_target() -> None:
    """No target begins with nothing."""
    assert tuple(TARGETS) == NAMES
    assert {path.parent.name for path in CORPUS.glob("*/*")} == set(NAMES)
