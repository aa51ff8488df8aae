"""Scores: how many cases of each section an end passed, on the screen and in a file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from .case import Case, Grade, Verdict

Results = Mapping[str, "Verdict | None"]  # None: not run, the examined end lacks what the case needs

SECTIONS = {
    "handshake": "opening handshake, as RFC 6455 §4 decides it",
    "http": "HTTP around it, as RFC 9110 and RFC 9112 decide it",
    "policy": "what anyio_ws decided where the RFCs leave a choice; others may differ for good reasons",
    "answers": "a server's bad or odd answer to the opening handshake",
    "frames": "framing",
    "fragments": "fragmented messages",
    "control": "Ping and Pong",
    "utf8": "text is UTF-8, and judged as it comes",
    "close": "closing handshake, close codes",
    "negotiation": "offers of permessage-deflate",
    "deflate": "compressed messages",
    "limits": "messages and announcements that are too long",
}
POLICY = frozenset({"policy"})


def count(results: Results) -> dict[str, dict[str, int]]:
    """Return for each section how many cases passed, were weak, failed and were not run."""
    counts: dict[str, dict[str, int]] = {}
    for name, verdict in results.items():
        section = counts.setdefault(name.partition("/")[0], {"pass": 0, "weak": 0, "fail": 0, "not run": 0})
        section[verdict.grade.name.lower() if verdict else "not run"] += 1
    return {name: counts[name] for name in SECTIONS if name in counts}


def total(counts: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Return the sum over all sections but those of policy."""
    chosen = [each for name, each in counts.items() if name not in POLICY]
    return {kind: sum(each[kind] for each in chosen) for kind in ("pass", "weak", "fail", "not run")}


def table(results: Results) -> str:
    """Return the score of one end: a row for each section."""
    counts = count(results)
    rows = [["section", "pass", "weak", "fail", "not run", ""]]
    for name, numbers in counts.items():
        rows.append([name, *map(str, numbers.values()), SECTIONS[name]])
    rows.append(["all but policy", *map(str, total(counts).values()), ""])
    return align(rows)


def align(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as columns: the first to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if i > 0 and len(cell) < 12 else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def complaints(results: Results, cases: Sequence[Case]) -> list[str]:
    """Return a line for each case that is not passed."""
    facts = {case.id: case for case in cases}
    lines = []
    for name, verdict in results.items():
        if verdict and verdict.grade is not Grade.PASS:
            case = facts[name]
            lines.append(f"{verdict.grade.name} {name}: {verdict.detail}\n     {case.fact} [{case.source}]")
    return lines


def save(path: Path, head: Mapping[str, Any], results: Results) -> None:
    """Write results as JSON: what was examined, the score, and a line for each case that is not passed."""
    counts = count(results)
    failed = {
        name: [verdict.grade.name.lower(), verdict.detail]
        for name, verdict in results.items()
        if verdict and verdict.grade is not Grade.PASS
    }
    text = json.dumps({**head, "total": total(counts)}, indent=1)[:-2]
    for title, entries in (("sections", counts), ("not passed", failed)):
        lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in entries.items()]
        text += f',\n "{title}": {{\n' + ",\n".join(lines) + "\n }"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n}\n")


def export(cases: Sequence[Case]) -> str:
    """Return cases as JSON, for other programs: bytes as hexadecimal digits, each step with its kind."""
    return json.dumps([_plain(case) for case in cases], indent=1, ensure_ascii=False)


def _plain(value: Any) -> Any:
    """Return a value as what JSON has."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Grade):
        return value.name.lower()
    if is_dataclass(value):
        named = {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
        return {"kind": type(value).__name__.lower(), **named}
    if isinstance(value, frozenset):
        return sorted(value, key=str)
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return value
