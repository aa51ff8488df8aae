"""The page of the documentation that shows what was measured, and whether it holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..environment import ROOT
from .attacks import ATTACKS, MAX_MESSAGE_SIZE, Attack
from .measure import Sample

PAGE = ROOT / "docs" / "security" / "resources.md"
RESULTS = Path(__file__).parent / "results.json"

MOST_MEMORY = (2 * MAX_MESSAGE_SIZE + 256 * 1024) / 1024  # KiB
MOST_P99 = 20.0  # milliseconds
MOST_RATIO = 2.3
LEAST_CPU = 5.0  # milliseconds: below that a ratio is one of two noises

_HEAD = """# What an attack costs

Written by `python -m benchmarks.resources`; do not edit it. Each line is an attack of
[attacks.md](attacks.md), with the ids of its rows there, on a server that echoes, as it comes, with a limit
of {size} KiB for a message. Each is held against three limits:

* **memory**: at its peak, the server has taken no more than {memory:.0f} KiB for each attacking connection:
  twice the longest message, and 256 KiB
* **bystander**: of the echoes that another connection gets meanwhile, 99 in 100 take at most {p99:.0f} ms
* **growth**: an attack of twice the size costs at most {ratio} times the CPU time

A cell gives the three figures in this order. What is beyond a limit is **bold**; `-` in the third place is
less than {cpu:.0f} ms of CPU for both sizes, too little to compare. The size in the table is that of the
larger attack, for each of its connections: 8 of them, or 32, or as many as the size says.

Of {rounds} rounds, each on a server begun anew, the table has the largest memory, the best bystander and the
least CPU time of each size: other programs on the machine make times longer and never shorter. The server has
a core of its own; the attackers share the other one with the bystander, which goes before them. The time in
which server or bystander were ready to run, and another program had their core, is not counted. Measured on
{date} at {commit}; {machine}; {versions}.
"""


class Figures(NamedTuple):
    """What the rounds have shown of one attack on one server.

    :ivar memory: KiB for each connection
    :ivar p99: milliseconds
    :ivar ratio: CPU time for *2n* to that for *n*; ``None`` when it was too little to tell
    """

    memory: float
    p99: float
    ratio: float | None

    @property
    def broken(self) -> list[str]:
        """The names of the limits that do not hold."""
        limits = {
            "memory": self.memory <= MOST_MEMORY,
            "bystander": self.p99 <= MOST_P99,
            "growth": self.ratio is None or self.ratio <= MOST_RATIO,
        }
        return [name for name, holds in limits.items() if not holds]

    def __str__(self) -> str:
        texts = {
            "memory": f"{self.memory:.0f} KiB" if self.memory < 10_000 else f"{self.memory / 1024:.0f} MiB",
            "bystander": f"{self.p99:.1f} ms" if self.p99 < 100 else f"{self.p99:.0f} ms",
            "growth": "-" if self.ratio is None else f"{self.ratio:.1f}",
        }
        return ", ".join(f"**{text}**" if name in self.broken else text for name, text in texts.items())


def conclude(samples: Sequence[Sample]) -> Figures:
    """Make one of several rounds: the most memory, the best of the times."""
    once, twice = min(sample.n for sample in samples), min(sample.twice for sample in samples)
    ratio = twice / once if max(once, twice) >= LEAST_CPU else None
    return Figures(max(sample.memory for sample in samples), min(sample.p99 for sample in samples), ratio)


def render(results: Mapping[str, Any]) -> str:
    """Write the page from the results, as ``results.json`` has them."""
    subjects: list[str] = results["subjects"]
    about = {key: results[key] for key in ("rounds", "date", "commit", "machine")}
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    lines = [
        _HEAD.format(
            size=MAX_MESSAGE_SIZE // 1024, memory=MOST_MEMORY, p99=MOST_P99, ratio=MOST_RATIO,
            cpu=LEAST_CPU, versions=versions, **about,
        ),
        f"| rows | what the peers do | size | {' | '.join(subjects)} |",
        "|---|---|---|" + "---|" * len(subjects),
    ]  # fmt: skip
    for attack in ATTACKS:
        cells = [_cell(results["samples"].get(attack.name, {}).get(subject)) for subject in subjects]
        size = f"{2 * attack.n:,} {attack.unit}"
        lines.append(f"| {', '.join(attack.rows)} | {attack.title} | {size} | {' | '.join(cells)} |")
    lines.append(f"| | **limits that hold** | | {' | '.join(_count(results, name) for name in subjects)} |")
    return "\n".join(lines) + "\n"


def _cell(found: Sequence[Sequence[float]] | str | None) -> str:
    if found is None:
        return "not measured"
    return found if isinstance(found, str) else str(conclude([Sample(*sample) for sample in found]))


def _count(results: Mapping[str, Any], subject: str) -> str:
    """Say how many of the limits hold for a server; an attack that it did not survive holds none."""
    found = [results["samples"].get(attack.name, {}).get(subject) for attack in ATTACKS]
    measured = [each for each in found if each is not None]
    holding = sum(
        3 - len(conclude([Sample(*sample) for sample in each]).broken)
        for each in measured
        if not isinstance(each, str)
    )
    return f"{holding} of {3 * len(measured)}"


def judge(attack: Attack, subject: str, figures: Figures) -> list[str]:
    """Say which limits do not hold."""
    return [f"{attack.name}, {subject}: {name} ({figures})" for name in figures.broken]
