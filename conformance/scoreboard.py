"""The scoreboard: the same cases for anyio_ws and for other libraries.

Those are installed, in their latest versions, in an environment of their own. Each is used as its
documentation shows it; see ``peers``. The results stand in ``results/``, the table in ``README.md``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from . import report
from .autobahn import RESULTS
from .cases import all_cases
from .echo import DEFAULT_LIMIT
from .examine import HANDSHAKE_TIMEOUT, PATIENCE, Start, examine_client, examine_server
from .processes import ROOT, Subject, start

PEERS = ("websockets", "aiohttp", "picows", "picows_frames", "tornado")
_TIMEOUT = 5.0  # seconds to wait for what must come, so that nobody fails for a busy machine
_REQUIREMENTS = ("websockets", "aiohttp", "picows", "tornado")
_PLACE = ROOT / "build" / "conformance"
_README = Path(__file__).parent / "README.md"
_MARKS = "<!-- scoreboard -->", "<!-- end of the scoreboard -->"
_TITLES = {"picows_frames": "picows (frames)"}


class Entry(NamedTuple):
    """One library, or one way to run it.

    :ivar name: how its files are named
    :ivar title: how it is named in the table
    :ivar versions: what was examined
    :ivar server: starts its server
    :ivar client: starts its client, given the URL, the number of cases, and how many at one time
    :ivar handshake_timeout: seconds that its server gives an opening handshake, 0 when that is not known
    :ivar faults: its server has code that errs when it is told to
    """

    name: str
    title: str
    versions: dict[str, str]
    server: Start
    client: Start
    handshake_timeout: float = 0
    faults: bool = False


def our_entries(framings: Sequence[str]) -> list[Entry]:
    """Return what is examined of anyio_ws."""
    return [_our_entry(backend, framing) for framing in framings for backend in ("asyncio", "trio")]


def _our_entry(backend: str, framing: str) -> Entry:
    versions = {
        name: version(name) for name in ("anyio_ws", "anyio", *(["trio"] if backend == "trio" else []))
    }

    def start_client(url: str, count: int, concurrency: int) -> subprocess.Popen[str]:
        subject = Subject("client", backend, framing)
        return subject.start("--timeout", str(PATIENCE), "--concurrency", str(concurrency), url)

    server = Subject("server", backend, framing)
    return Entry(
        f"anyio_ws-{backend}-{framing}",
        f"anyio_ws ({backend}, {framing})",
        versions,
        partial(server.start, "--faults", "--handshake-timeout", str(HANDSHAKE_TIMEOUT)),
        start_client,
        HANDSHAKE_TIMEOUT,
        faults=True,
    )


def peer_entries(names: Sequence[str]) -> list[Entry]:
    """Return the peers, installed if they are not yet."""
    python = _install() if names else Path()
    return [_peer_entry(name, python) for name in names]


def _peer_entry(name: str, python: Path) -> Entry:
    package = name.partition("_")[0]
    script = f"from importlib.metadata import version; print(version({package!r}))"
    said = subprocess.run([python, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
    command = [str(python), "-m", f"conformance.peers.peer_{name}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def start_end(end: str, *arguments: object) -> subprocess.Popen[str]:
        given = [end, *map(str, arguments)]
        return start([*command, *given], cwd=_PLACE, env=environment, stderr=subprocess.DEVNULL)

    title = f"{_TITLES.get(name, name)} {said}"
    return Entry(name, title, {package: said}, partial(start_end, "server"), partial(start_end, "client"))


def _install() -> Path:
    """Make the environment of the peers, or bring it up to date; return its Python."""
    python = _PLACE / "peers" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(_PLACE / "peers")], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade"]
    subprocess.run([*pip, *_REQUIREMENTS], check=True)
    return python


def main(names: Sequence[str], framings: Sequence[str]) -> int:
    """Examine everybody, write the results and the table.

    :return: the exit code: 1 when a case of ours is not passed
    """
    entries = [*our_entries(framings), *peer_entries(names)]
    passed = True
    for entry in entries:
        for end, examine in (("server", _examine_server), ("client", _examine_client)):
            print(f"{entry.title}, its {end}", file=sys.stderr, flush=True)
            cases = [case for case in all_cases(limit=DEFAULT_LIMIT) if end in case.ends]
            results = examine(entry, cases)
            head = {"end": end, "name": entry.title, "versions": entry.versions}
            report.save(RESULTS / f"suite-{end}-{entry.name}.json", head, results)
            complaints = report.complaints(results, cases)
            if entry.name.startswith("anyio_ws") and complaints:
                passed = False
                print("\n".join(complaints))
    text = tables()
    before, _, rest = _README.read_text().partition(_MARKS[0])
    _README.write_text(before + _MARKS[0] + "\n\n" + text + "\n\n" + _MARKS[1] + rest.partition(_MARKS[1])[2])
    print(text)
    return 0 if passed else 1


def _examine_server(entry: Entry, cases: Any) -> report.Results:
    return examine_server(
        entry.server,
        cases,
        limit=DEFAULT_LIMIT,
        handshake_timeout=entry.handshake_timeout,
        faults=entry.faults,
        timeout=_TIMEOUT,
    )


def _examine_client(entry: Entry, cases: Any) -> report.Results:
    return examine_client(entry.client, cases, limit=DEFAULT_LIMIT, timeout=_TIMEOUT)


def tables() -> str:
    """Return the tables of all committed results, as Markdown."""
    parts = []
    for end in ("server", "client"):
        files = sorted(RESULTS.glob(f"suite-{end}-*.json"), key=_place)
        loaded = [json.loads(file.read_text()) for file in files]
        if loaded:
            parts.append(_table(end, loaded))
    return "\n\n".join(parts)


def _place(file: Path) -> tuple[bool, str]:
    return "anyio_ws" not in file.name, file.name


def _table(end: str, loaded: list[dict[str, Any]]) -> str:
    sections = [name for name in report.SECTIONS if any(name in each["sections"] for each in loaded)]
    ours = [name for name in sections if name in report.POLICY]
    rows = [
        [f"as a {end}: passed, weak, failed", *(each["name"] for each in loaded)],
        *([name, *_cells(name, loaded)] for name in sections if name not in ours),
        ["**all of these**", *(f"**{_cell(each['total'])}**" for each in loaded)],
        *([f"*{name}*", *_cells(name, loaded)] for name in ours),
    ]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _cells(name: str, loaded: list[dict[str, Any]]) -> list[str]:
    return [_cell(each["sections"].get(name)) for each in loaded]


def _cell(counts: dict[str, int] | None) -> str:
    if not counts or counts["pass"] + counts["weak"] + counts["fail"] == 0:
        return "none"
    return f"{counts['pass']}, {counts['weak']}, {counts['fail']}"
