"""Our own conformance suite, run against both our ends; and that the suite finds fault with those who err."""

from __future__ import annotations

import functools
import importlib.util
import json
import re
import subprocess

import pytest

from conformance import report
from conformance.case import Case
from conformance.cases import all_cases
from conformance.check import Results
from conformance.examine import HANDSHAKE_TIMEOUT, PATIENCE, examine_client, examine_server
from conformance.processes import Subject

from ..security.rows import ROWS

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
if importlib.util.find_spec("uvloop") is None:
    SUBJECTS = [subject for subject in SUBJECTS if subject.backend != "uvloop"]


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

        def start(url: str, count: int, concurrency: int) -> subprocess.Popen[str]:
            return subject.start("--timeout", str(PATIENCE), "--concurrency", str(concurrency), url)

        return examine_client(start, cases, limit=LIMIT, timeout=PATIENT)
    start_server = functools.partial(subject.start, "--faults", "--handshake-timeout", str(HANDSHAKE_TIMEOUT))
    return examine_server(
        start_server, cases, limit=LIMIT, handshake_timeout=HANDSHAKE_TIMEOUT, faults=True, timeout=PATIENT
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


def rows() -> list[str]:
    """Return the rows of the table of attacks that have cases."""
    return sorted({row for case in everything() for row in re.findall(r"\b[A-Z]\d\d\b", case.source)})


@pytest.mark.parametrize("row", [pytest.param(row, marks=pytest.mark.attack(row)) for row in rows()])
def test_row_of_the_table_of_attacks_holds(row: str) -> None:
    """All cases of a row are passed by both our ends, on each backend."""
    for subject in SUBJECTS:
        chosen = [case for case in cases_for(subject.role) if row in case.source]
        results = {case.id: examine(subject)[case.id] for case in chosen}
        assert report.complaints(results, chosen) == []


def test_every_row_about_handshakes_and_frames_has_a_case() -> None:
    """Every row of the table about the opening handshake and about frames has a case.

    All but F30, the caller's own buffers, which nobody sees from outside. Of the rows about clients those on
    the server's answer have some.
    """
    table = {row.id for row in ROWS if re.fullmatch(r"[FH]\d\d|S0[5-8]", row.id)}
    assert {"F01", "F27", "H01", "H27", "S05", "S08"} <= table
    assert table - {"F30"} - set(rows()) == set()


def test_cases_can_be_exported() -> None:
    """As JSON the cases are whole, for programs in other languages."""
    cases = [case for case in everything() if case.section in ("answers", "control", "http")]
    exported = json.loads(report.export(cases))
    assert [each["id"] for each in exported] == [case.id for case in cases]
    (ping,) = (each for each in exported if each["id"] == "control/ping-1")
    step, pong = ping["steps"]
    assert (step["kind"], step["items"][0]["kind"], step["items"][0]["opcode"]) == ("send", "frame", 9)
    assert (pong["kind"], pong["data"]) == ("pong", "00")
