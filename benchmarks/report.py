"""What a run looks like: tables and verdicts as text, results as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .figures import Figures
from .goals import Verdict

_TRIO_ONLY = ("trio-websocket",)


def format_figure(value: float | None) -> str:
    """Write three significant digits, and no more decimals than mean something."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def render_table(title: str, unit: str, figures: Figures) -> str:
    """Render the medians of a table, and the ratios of ours to the best peer on the same event loop."""
    cases, subjects = figures.cases, figures.subjects
    rows = [[subject, *(format_figure(figures.get(case, subject)) for case in cases)] for subject in subjects]
    lines = [f"{title} ({unit}; medians)", *_align([["", *cases], *rows])]
    widest = figures.find_widest()
    if widest:
        lines.append(f"  (widest spread over the rounds: {widest[0]:.0%}, {widest[2]} {widest[1]})")
    ratios = [
        [subject, *(_render_best_ratio(figures, case, subject) for case in cases)]
        for subject in subjects
        if subject.startswith("ours-")
    ]
    if any(cell != "-" for row in ratios for cell in row[1:]):
        lines += ["", "ours to the best peer on the same event loop", *_align([["", *cases], *ratios])]
    return "\n".join(lines)


def _render_best_ratio(figures: Figures, case: str, subject: str) -> str:
    loop = subject.split("-")[1]
    costs = {
        peer: cost
        for peer in figures.subjects
        if not peer.startswith("ours-") and _loop_of(peer) == loop and (cost := figures.get(case, peer))
    }
    if not costs or figures.get(case, subject) is None:
        return "-"
    best = min(costs, key=lambda peer: costs[peer])
    return f"{figures.ratio(case, subject, best):.2f} {best.removesuffix('-' + loop)}"


def _loop_of(peer: str) -> str:
    last = peer.rsplit("-", 1)[-1]
    return "trio" if peer in _TRIO_ONLY else last if last in ("uvloop", "trio") else "asyncio"


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        f"  {row[0]:<{widths[0]}}"
        + "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]


def render_verdicts(verdicts: Iterable[Verdict]) -> str:
    """Render each goal with its range of outcomes, whether it is reached, and what misses it."""
    lines = ["Where to be (each is a limit: at most)"]
    for verdict in verdicts:
        lines.append(f"  {verdict.word:>12}  {verdict.goal.text}: {format_limit(verdict)}")
        lines += [f"  {'':>12}    {value:.2f}  {label}" for value, label in verdict.missed]
    return "\n".join(lines)


def format_limit(verdict: Verdict) -> str:
    """Return the limit of a goal and the range that was measured."""
    measured = verdict.measured
    found = f"{measured[0][0]:.2f} to {measured[-1][0]:.2f}" if measured else "nothing"
    return f"limit {verdict.goal.limit:g}, measured {found}"


def to_json(tables: Mapping[str, Mapping[str, Any]], verdicts: Iterable[Verdict]) -> str:
    """Return the results as text, diffable: one line for the samples of a subject in a case."""
    goals = [
        {
            "goal": verdict.goal.text,
            "limit": verdict.goal.limit,
            "verdict": verdict.word,
            "outcomes": {o.label: o.value and float(f"{o.value:.4g}") for o in verdict.outcomes},
        }
        for verdict in verdicts
    ]
    return dump({"tables": tables, "goals": goals}) + "\n"


def dump(value: Any, indent: int = 0) -> str:
    """Like ``json.dumps(indent=1)``, with lists of numbers, and lists of those, on one line."""
    pad, end = " " * (indent + 1), " " * indent
    if isinstance(value, Mapping) and value:
        inner = ",\n".join(f"{pad}{json.dumps(key)}: {dump(item, indent + 1)}" for key, item in value.items())
        return f"{{\n{inner}\n{end}}}"
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        inner = ",\n".join(f"{pad}{dump(item, indent + 1)}" for item in value)
        return f"[\n{inner}\n{end}]"
    return json.dumps(value)


def read_tables(path: Path) -> dict[str, dict[str, Any]]:
    """Return the tables of an earlier run, none if there was none."""
    if not path.exists():
        return {}
    tables: dict[str, dict[str, Any]] = json.loads(path.read_text())["tables"]
    return tables
