"""Section A of the contract: what the committed runs of the Autobahn Testsuite say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

RESULTS = sorted((Path(__file__).parents[2] / "conformance" / "results").glob("autobahn-*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a1_every_case_is_ok_or_informational(path: Path) -> None:
    """No case is failed, non-strict or unimplemented; in Python, those on compression are left out."""
    cases = json.loads(path.read_text())["cases"]
    assert len(cases) == (517 if path.stem.endswith("-c") else 301)
    assert {case["behavior"] for case in cases.values()} <= {"OK", "INFORMATIONAL"}
    assert {case["behaviorClose"] for case in cases.values()} <= {"OK", "INFORMATIONAL"}


def test_a1_both_roles_on_both_backends() -> None:
    """The runs are of the server and of the client, on asyncio and on Trio."""
    runs = {tuple(path.stem.split("-")[1:3]) for path in RESULTS}
    assert runs >= {(role, backend) for role in ("server", "client") for backend in ("asyncio", "trio")}
