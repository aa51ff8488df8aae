"""Our own conformance suite, run against both our ends; and that the suite finds fault with those who err."""

from __future__ import annotations

import functools
import subprocess

import pytest

from conformance import report
from conformance.case import Case
from conformance.cases import all_cases
from conformance.check import Results
from conformance.examine import HANDSHAKE_TIMEOUT, PATIENCE, examine_client, examine_server
from conformance.processes import Subject

LIMIT = 65_536
PATIENT = 20.0  # seconds: what must come does come; only a failing case waits for so long

# Each end on each backend, each framing build on each end; the gate runs the other combinations.
SUBJECTS = [
    Subject("server", "asyncio", "python"),
    Subject("server", "uvloop"),
    Subject("server", "trio"),
    Subject("client", "asyncio"),
    Subject("client", "trio", "python"),
]


@functools.cache
def everything() -> list[Case]:
    """Return all cases."""
    return all_cases(limit=LIMIT)


def cases_for(end: str) -> list[Case]:
    """Return the cases for servers, or those for clients."""
    return [case for case in everything() if end in case.ends]


@functools.cache
def examine(subject: Subject) -> Results:
    """Examine one of our ends, once."""
    cases = cases_for(subject.role)
    if subject.role == "client":

        def start(url: str, count: int) -> subprocess.Popen[str]:
            return subject.start("--timeout", str(PATIENCE), "--concurrency", "16", url)

        return examine_client(start, cases, limit=LIMIT, timeout=PATIENT)
    start_server = functools.partial(subject.start, "--handshake-timeout", str(HANDSHAKE_TIMEOUT))
    return examine_server(
        start_server, cases, limit=LIMIT, handshake_timeout=HANDSHAKE_TIMEOUT, timeout=PATIENT
    )


SECTIONS = [
    pytest.param(subject, section, id=f"{subject.name}-{section}")
    for subject in SUBJECTS
    for section in dict.fromkeys(case.section for case in cases_for(subject.role))
]


@pytest.mark.parametrize(("subject", "section"), SECTIONS)
def test_our_ends_pass_every_case(subject: Subject, section: str) -> None:
    """Each case of each section is passed, none weakly."""
    chosen = [case for case in cases_for(subject.role) if case.section == section]
    results = {case.id: examine(subject)[case.id] for case in chosen}
    assert report.complaints(results, chosen) == []
    not_run = [name for name, verdict in results.items() if verdict is None]
    # The one example that needs what we decline: a context that the client keeps.
    assert not_run in ([], ["deflate/example-shared-window"])


def test_there_are_more_than_600_cases() -> None:
    """The suite is as large as it claims; every case says what is right, and where that is said."""
    cases = everything()
    assert len(cases) > 1_000
    for case in cases:
        assert case.fact.endswith(".")
        assert case.source
        assert case.section in report.SECTIONS
        assert case.ends


@pytest.mark.parametrize("row", [f"F{number:02}" for number in range(1, 28) if number not in (16, 19, 20)])
def test_rows_of_framing_have_cases(row: str) -> None:
    """Each row of the table of attacks that is about frames on the wire has a case."""
    assert any(row in case.source for case in everything())


@pytest.mark.parametrize("row", [f"H{number:02}" for number in range(1, 28) if number not in (24, 26)])
def test_rows_of_the_handshake_have_cases(row: str) -> None:
    """Each row about the opening handshake has a case; what a server does inside itself cannot have one."""
    assert any(row in case.source for case in everything())
