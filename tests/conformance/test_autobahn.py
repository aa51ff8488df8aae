"""The Autobahn runner, apart from wstest itself, which the gate runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from conformance import autobahn, wstest
from conformance.autobahn import Outcomes
from conformance.processes import Subject

GOOD = {"behavior": "OK", "behaviorClose": "OK", "remoteCloseCode": 1000}


def outcomes(**changes: str) -> Outcomes:
    """Return the outcomes of one case."""
    return {"7.1.5": {**GOOD, **changes}}


def test_cases_are_those_of_the_testsuite() -> None:
    """There are 517 cases, each section as large as the Testsuite says, and 72 of two sections are quick."""
    sections = [case.split(".")[0] for case in autobahn.all_cases()]
    counts = {name: sections.count(name) for name in dict.fromkeys(sections)}
    expected = [("1", 16), ("2", 11), ("3", 7), ("4", 10), ("5", 20), ("6", 145), ("7", 37), ("9", 54)]
    assert list(counts.items()) == [*expected, ("10", 1), ("12", 90), ("13", 126)]
    assert len(set(autobahn.all_cases())) == 517
    assert len(autobahn.quick_cases()) == 517 - 90 - 126 + 72


def test_patterns_name_cases_and_sections() -> None:
    """A pattern is a case or a section, never the beginning of another number."""
    assert autobahn.choose_cases(["7.1.5", "10", "1.1.*"])[:3] == ["1.1.1", "1.1.2", "1.1.3"]
    assert autobahn.choose_cases(["10"]) == ["10.1.1"]
    assert len(autobahn.choose_cases(["1", "1.1"])) == 16
    with pytest.raises(ValueError, match=r"8: the Autobahn Testsuite has no such case"):
        autobahn.choose_cases(["8"])


def test_limits_are_the_default_where_messages_fit() -> None:
    """Only section 9 and messages of more than 64 KiB get a larger ``max_message_size``."""
    raised = [case for case in autobahn.all_cases() if autobahn.limit_of(case) > 65_536]
    assert len(raised) == 54 + 12 * 5 + 2
    assert autobahn.limit_of("12.1.9") == autobahn.limit_of("6.1.1") == 65_536


@pytest.mark.parametrize("name", ["behavior", "behaviorClose"])
def test_worse_is_found(name: str) -> None:
    """A case that is worse than before, or not good for the first time, is named with what it was."""
    assert not autobahn.find_worse(outcomes(), outcomes())
    assert not autobahn.find_worse({}, outcomes(behavior="INFORMATIONAL"))
    assert not autobahn.find_worse(outcomes(behavior="INFORMATIONAL"), outcomes())
    (worse,) = autobahn.find_worse(outcomes(), outcomes(**{name: "INFORMATIONAL"}))
    assert worse == f"7.1.5: {name} is INFORMATIONAL, expected was OK"
    assert autobahn.find_worse({}, outcomes(**{name: "NON-STRICT"}))
    assert autobahn.find_worse(outcomes(**{name: "FAILED"}), outcomes(**{name: "FAILED"}))
    assert autobahn.find_worse({}, outcomes(**{name: "SOMETHING NEW"}))


def test_results_survive_the_file(tmp_path: Path) -> None:
    """What is saved is loaded as it was, and saving it again changes no byte."""
    path = tmp_path / "results" / "file.json"
    results = {"10.1.1": GOOD, "9.1.1": {**GOOD, "remoteCloseCode": None}}
    autobahn.save(path, Subject("server", "trio"), "python", results)
    text = path.read_text()
    assert autobahn.load(path) == results
    assert list(autobahn.load(path)) == ["9.1.1", "10.1.1"]
    assert '"trio": "' in text
    autobahn.save(path, Subject("server", "trio"), "python", autobahn.load(path))
    assert path.read_text() == text
    assert autobahn.load(tmp_path / "none.json") == {}


def test_table_counts_the_worse_of_both_outcomes() -> None:
    """A case counts with its behavior or how it closed, whichever is worse."""
    lines = autobahn.table(
        {"server trio": {**outcomes(behaviorClose="UNCLEAN"), "10.1.1": GOOD}}
    ).splitlines()
    assert [line.split(maxsplit=1) for line in lines] == [
        ["section", "server trio"],
        ["7", "1 UNCLEAN"],
        ["10", "1 OK"],
        ["all", "1 OK, 1 UNCLEAN"],
    ]


def test_committed_results_are_good() -> None:
    """There are committed results of both ends on both backends, and every case in them is good."""
    for role in ("server", "client"):
        for backend in ("asyncio", "trio"):
            results = autobahn.load(autobahn.results_path(Subject(role, backend), "c"))
            assert set(autobahn.quick_cases()) <= set(results) <= set(autobahn.all_cases())
    for file in autobahn.RESULTS.glob("autobahn-*.json"):
        assert not autobahn.find_worse({}, autobahn.load(file)), file


def test_missing_wstest_says_what_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Python 2.7 and without Docker the error lists each way out."""
    monkeypatch.delenv("WSTEST", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    with pytest.raises(wstest.Missing, match=r"(?s)pyenv install 2\.7.*apt-get.*Docker.*WSTEST"):
        wstest.find_wstest(tmp_path)


def test_given_wstest_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``WSTEST`` goes before everything else."""
    monkeypatch.setenv("WSTEST", sys.executable)
    assert wstest.find_wstest(tmp_path) == [sys.executable]
