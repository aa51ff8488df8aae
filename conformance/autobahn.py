"""The Autobahn Testsuite against both ends of anyio_ws.

A run is one end on one backend with one framing build. Its results stand in ``results/`` and are
committed; a new run is compared with them. It fails when a case got worse, and when a case is anything
but OK or INFORMATIONAL (which wstest says where the RFC leaves the outcome open).
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .echo import DEFAULT_LIMIT
from .processes import Stalled, Subject, drain, ended, first_words, lines_of, start
from .progress import Progress
from .wstest import VERSION, find_wstest

RESULTS = Path(__file__).parent / "results"
_AGENT = "anyio_ws"
_LARGE_LIMIT = 16 * 1024 * 1024  # the longest messages of section 9

# The 517 cases: "6.1.3" stands for 6.1.1 to 6.1.3.
_RANGES = """
1.1.8 1.2.8 2.11 3.7 4.1.5 4.2.5 5.20 6.1.3 6.2.4 6.3.2 6.4.4 6.5.5 6.6.11 6.7.4 6.8.2 6.9.4 6.10.3
6.11.5 6.12.8 6.13.5 6.14.10 6.15.1 6.16.3 6.17.5 6.18.5 6.19.5 6.20.7 6.21.8 6.22.34 6.23.7 7.1.6
7.3.6 7.5.1 7.7.13 7.9.9 7.13.2 9.1.6 9.2.6 9.3.9 9.4.9 9.5.6 9.6.6 9.7.6 9.8.6 10.1.1 12.1.18 12.2.18
12.3.18 12.4.18 12.5.18 13.1.18 13.2.18 13.3.18 13.4.18 13.5.18 13.6.18 13.7.18"""
# From better to worse, as wstest names the outcomes.
_OUTCOMES = ("OK", "INFORMATIONAL", "NON-STRICT", "UNIMPLEMENTED", "UNCLEAN", "WRONG CODE", "FAILED")
GOOD = frozenset({"OK", "INFORMATIONAL"})


def all_cases() -> list[str]:
    """Return the ids of the 517 cases, in order."""
    ranges = (each.rsplit(".", 1) for each in _RANGES.split())
    return [f"{group}.{number}" for group, last in ranges for number in range(1, int(last) + 1)]


def quick_cases() -> list[str]:
    """Return all cases but those of sections 12 and 13, of which 72 that differ most."""
    return [case for case in all_cases() if not _is_compressed(case) or _is_quick(case)]


def _is_compressed(case: str) -> bool:
    return case.startswith(("12.", "13."))


def _is_quick(case: str) -> bool:
    return case.rsplit(".", 1)[1] in ("1", "2", "3", "4", "5", "11")


def choose_cases(patterns: Sequence[str]) -> list[str]:
    """Return the cases that patterns name: ``7.1.5`` is one case, ``7`` and ``7.*`` are a section.

    :raises ValueError: when a pattern matches no case
    """
    chosen = []
    for pattern in patterns:
        prefix = pattern.removesuffix("*").rstrip(".")
        matches = [case for case in all_cases() if f"{case}.".startswith(f"{prefix}.")]
        if not matches:
            raise ValueError(f"{pattern}: the Autobahn Testsuite has no such case")
        chosen += matches
    return sorted(set(chosen), key=_order)


def _order(case: str) -> list[int]:
    return [int(part) for part in case.split(".")]


def limit_of(case: str) -> int:
    """Return the ``max_message_size`` for a case: the default wherever its messages fit."""
    section, *_, number = case.split(".")
    is_long = _is_compressed(case) and number in ("10", "15", "16", "17", "18")
    is_text = case in ("12.4.9", "12.4.14")  # 65,536 characters, which are more bytes
    return _LARGE_LIMIT if section == "9" or is_long or is_text else DEFAULT_LIMIT


Outcome = dict[str, Any]
Outcomes = dict[str, Outcome]


# --- running ------------------------------------------------------------------------------------------


def run(subject: Subject, cases: Sequence[str]) -> tuple[Outcomes, str]:
    """Run cases; return their outcomes, and the framing build that was examined.

    :raises Missing: when there is no wstest
    :raises Stalled: when nothing happens any more
    """
    outcomes: Outcomes = {}
    framing = ""
    groups = [[case for case in cases if limit_of(case) == limit] for limit in (DEFAULT_LIMIT, _LARGE_LIMIT)]
    if subject.role == "client":  # it is told the limit of each case
        groups = [list(cases)]
    progress = Progress(subject.name, len(cases))
    for group in filter(None, groups):
        with tempfile.TemporaryDirectory(prefix="wstest-") as name:
            run_group = _run_server if subject.role == "server" else _run_client
            framing = run_group(subject, group, Path(name), progress)
            (report,) = json.loads((Path(name) / "reports" / "index.json").read_text()).values()
        outcomes |= {case: _outcome(report[case]) for case in group if case in report}
    progress.end()
    missing = {"behavior": "FAILED", "behaviorClose": "FAILED", "remoteCloseCode": None}  # it never ran
    return {case: outcomes.get(case, missing) for case in cases}, framing


def _outcome(report: dict[str, Any]) -> Outcome:
    return {name: report[name] for name in ("behavior", "behaviorClose", "remoteCloseCode")}


def _run_server(subject: Subject, cases: list[str], directory: Path, progress: Progress) -> str:
    """Have wstest connect to our server for each case."""
    with ended(subject.start("--limit", str(limit_of(cases[0])))) as server:
        framing, url = first_words(server, "framing ", "ws://")
        spec = {"servers": [{"agent": _AGENT, "url": url}], "cases": cases}
        command = _wstest(directory, "fuzzingclient", spec)
        with ended(start(command, stderr=subprocess.DEVNULL)) as wstest:
            for line in lines_of(wstest):
                progress.add(line.startswith("Running test case"))
    return framing


def _run_client(subject: Subject, cases: list[str], directory: Path, progress: Progress) -> str:
    """Have our client connect to wstest for each case."""
    port = _free_port()
    url = f"ws://127.0.0.1:{port}"
    command = [*_wstest(directory, "fuzzingserver", {"url": url, "cases": cases}), "--webport", "0"]
    with ended(start(command, stderr=subprocess.DEVNULL)) as wstest:
        _wait_for_port(port, wstest)
        threading.Thread(target=drain, args=(wstest,), daemon=True).start()
        limits = [f"{number}:{limit_of(case)}" for number, case in enumerate(cases, 1)]
        with ended(subject.start("--agent", _AGENT, url, *limits)) as client:
            (framing,) = first_words(client, "framing ")
            for line in lines_of(client):
                progress.add(line.startswith("case "))
    return framing


def _wstest(directory: Path, mode: str, spec: dict[str, Any]) -> list[str]:
    file = directory / "spec.json"
    file.write_text(json.dumps({"outdir": str(directory / "reports"), **spec}))
    return [*find_wstest(directory), "--mode", mode, "--spec", str(file)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for_port(port: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise Stalled("wstest did not start to listen") from None
            time.sleep(0.1)
        else:
            return


# --- results ------------------------------------------------------------------------------------------


def results_path(subject: Subject, framing: str) -> Path:
    """Return the file with the committed results of a subject."""
    return RESULTS / f"autobahn-{subject.role}-{subject.backend}-{framing}.json"


def load(path: Path) -> Outcomes:
    """Return committed results, none where there are none yet."""
    if not path.exists():
        return {}
    outcomes: Outcomes = json.loads(path.read_text())["cases"]
    return outcomes


def save(path: Path, subject: Subject, framing: str, outcomes: Outcomes) -> None:
    """Write results: one line for each case, in their order, and nothing that differs without a reason."""
    packages = [
        "anyio_ws",
        "anyio",
        *({"asyncio": [], "uvloop": ["uvloop"], "trio": ["trio"]}[subject.backend]),
    ]
    head = {
        "suite": f"autobahntestsuite {VERSION}",
        "role": subject.role,
        "backend": subject.backend,
        "framing": framing,
        "versions": {
            "python": ".".join(map(str, sys.version_info[:2])),
            **{name: version(name) for name in packages},
        },
    }
    lines = [f'  "{case}": {json.dumps(outcomes[case])}' for case in sorted(outcomes, key=_order)]
    text = json.dumps(head, indent=1)[:-2] + ',\n "cases": {\n' + ",\n".join(lines) + "\n }\n}\n"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)


def find_worse(expected: Outcomes, outcomes: Outcomes) -> list[str]:
    """Return a sentence for each case that got worse, or is not good."""
    sentences = []
    for case, outcome in outcomes.items():
        for name in ("behavior", "behaviorClose"):
            before = expected.get(case, {}).get(name, "INFORMATIONAL")
            if _rank(outcome[name]) > _rank(before) or outcome[name] not in GOOD:
                sentences.append(f"{case}: {name} is {outcome[name]}, expected was {before}")
    return sentences


def _rank(outcome: str) -> int:
    return _OUTCOMES.index(outcome) if outcome in _OUTCOMES else len(_OUTCOMES)


def table(runs: dict[str, Outcomes]) -> str:
    """Return a table: a row for each section, a column for each run, and the totals."""
    sections = sorted({case.split(".")[0] for outcomes in runs.values() for case in outcomes}, key=int)
    rows = [["section", *runs]]
    for section in [*sections, "all"]:
        chosen = [
            [outcome for case, outcome in outcomes.items() if section in ("all", case.split(".")[0])]
            for outcomes in runs.values()
        ]
        rows.append([section, *map(_summary, chosen)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _summary(outcomes: list[Outcome]) -> str:
    words = [max((each["behavior"], each["behaviorClose"]), key=_rank) for each in outcomes]
    counts = ((words.count(name), name) for name in dict.fromkeys((*_OUTCOMES, *words)))
    return ", ".join(f"{count} {name}" for count, name in counts if count) or "none"


def main(subjects: Sequence[Subject], cases: Sequence[str], *, accept: bool = False) -> int:
    """Run cases on each subject, print the table, and compare with the committed results.

    :param accept: make worse results the expected ones
    :return: the exit code: 1 when a case got worse or is not good
    """
    runs: dict[str, Outcomes] = {}
    complaints = []
    for subject in subjects:
        outcomes, framing = run(subject, cases)
        path = results_path(subject, framing)
        expected = load(path)
        worse = find_worse(expected, outcomes)
        if accept or not worse:
            save(path, subject, framing, expected | outcomes)
        name = f"{subject.role} {subject.backend} {framing}"
        runs[name] = outcomes
        complaints += [f"{name}: {sentence}" for sentence in worse]
    print(table(runs))
    for complaint in complaints:
        print(re.sub(r"\s+", " ", complaint))
    print("worse than it should be" if complaints else "as it should be: every case is OK or INFORMATIONAL")
    return 1 if complaints else 0
