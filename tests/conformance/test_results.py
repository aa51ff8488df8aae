"""The committed results of our own suite: of the cases that there are now, and as the table shows them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from conformance import scoreboard
from conformance.cases import all_cases

FOLDER = Path(scoreboard.__file__).parent
RESULTS = sorted((FOLDER / "results").glob("suite-*.json"))
CASES = all_cases()
OURS = [path for path in RESULTS if "anyio_ws" in path.name]


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_results_are_of_the_cases_that_there_are(path: Path) -> None:
    """Each section has as many cases in the results as there are; else the scoreboard is to be run again."""
    results = json.loads(path.read_text())
    cases = Counter(case.section for case in CASES if results["end"] in case.ends)
    assert {name: sum(counts.values()) for name, counts in results["sections"].items()} == cases
    assert set(results["not passed"]) <= {case.id for case in CASES}


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_our_ends_passed_every_case(path: Path) -> None:
    """Both our ends passed what was run; left out is the one example for those who keep a context."""
    results = json.loads(path.read_text())
    assert results["not passed"] == {}
    assert sum(counts["not run"] for counts in results["sections"].values()) <= 1


def test_both_ends_are_there_on_both_backends_with_both_builds() -> None:
    """The results are of server and client, on asyncio and on Trio, with the framing in C and in Python."""
    assert len(OURS) == 2 * 2 * 2


def test_table_shows_the_results() -> None:
    """The scoreboard of the README is what the results say."""
    assert f"\n{scoreboard.tables()}\n" in (FOLDER / "README.md").read_text()
