"""Where to be: what the project sets out to reach, and whether a run shows it.

A goal is a limit on figures of one table: on ratios to peers, on the figure itself, or on its growth from
case to case. It is reached when every one of them keeps the limit; a figure that is missing is never good.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from .figures import Figures
from .subjects import ASYNCIO_LOOPS, LOOPS
from .tables import TABLES

Tables = Mapping[str, Figures]
CASES = {table.name: table.cases for table in TABLES}


class Outcome(NamedTuple):
    """One figure that a goal looks at; *value* is ``None`` when it was not measured."""

    label: str
    value: float | None


@dataclass(frozen=True)
class Goal:
    """A line of "Where to be".

    :ivar limit: what every outcome may be at most
    :ivar look: finds the outcomes in the tables of a run
    """

    text: str
    limit: float
    look: Callable[[Tables], Iterable[Outcome]]

    def judge(self, tables: Tables) -> Verdict:
        """Look at the tables of a run."""
        return Verdict(self, tuple(self.look(tables)))


@dataclass(frozen=True)
class Verdict:
    """What a run says about a goal."""

    goal: Goal
    outcomes: tuple[Outcome, ...]

    @property
    def measured(self) -> list[tuple[float, str]]:
        """Values with their labels, the best one first."""
        return sorted((o.value, o.label) for o in self.outcomes if o.value is not None)

    @property
    def missed(self) -> list[tuple[float, str]]:
        """Those over the limit, the worst one first."""
        return [pair for pair in reversed(self.measured) if pair[0] > self.goal.limit]

    @property
    def word(self) -> str:
        """Return ``reached`` only when everything was measured and keeps the limit."""
        if self.missed:
            return "not reached"
        if not self.measured:
            return "not measured"
        return "reached" if len(self.measured) == len(self.outcomes) else "in part"


def _against(
    table: str, pairs: Sequence[tuple[str, str]], cases: Sequence[str] = ()
) -> Callable[[Tables], Iterator[Outcome]]:
    """Look at the ratios of our subjects to peers, pair by pair, in all cases or in some."""

    def look(tables: Tables) -> Iterator[Outcome]:
        figures = tables.get(table, Figures())
        for ours, peer in pairs:
            for case in cases or CASES[table]:
                yield Outcome(f"{case} {ours} / {peer}", figures.ratio(case, ours, peer))

    return look


def _itself(
    table: str, subjects: Sequence[str], cases: Sequence[str]
) -> Callable[[Tables], Iterator[Outcome]]:
    """Look at figures as they are."""

    def look(tables: Tables) -> Iterator[Outcome]:
        figures = tables.get(table, Figures())
        for subject in subjects:
            for case in cases:
                yield Outcome(f"{case} {subject}", figures.get(case, subject))

    return look


def _growth(table: str, steps: Sequence[tuple[str, str]]) -> Callable[[Tables], Iterator[Outcome]]:
    """Look at the growth of our figures from one case to another."""

    def look(tables: Tables) -> Iterator[Outcome]:
        figures = tables.get(table, Figures())
        for subject in _ours(LOOPS):
            for smaller, larger in steps:
                ratio = figures.ratio(larger, subject, subject, peer_case=smaller)
                yield Outcome(f"{larger} / {smaller} {subject}", ratio)

    return look


def _ours(loops: Iterable[str], style: str = "") -> list[str]:
    return [f"ours-{loop}{style and '-' + style}" for loop in loops]


def _pairs(library: str, loops: Sequence[str], style: str = "") -> list[tuple[str, str]]:
    """Pair ours with a peer on the same loop."""
    return list(zip(_ours(loops, style), [f"{library}-{loop}" for loop in loops], strict=True))


def _from_first(cases: Sequence[str]) -> list[tuple[str, str]]:
    return [(cases[0], case) for case in cases[1:]]


_TRIO = [("ours-trio", "websockets-trio"), ("ours-trio", "trio-websocket")]
GOALS = (
    Goal(
        "asyncio and uvloop, async def hook, to picows",
        1.0,
        _against("echo", _pairs("picows", ASYNCIO_LOOPS)),
    ),
    Goal(
        "the same with 64 messages in flight",
        0.35,
        _against("echo", _pairs("picows", ASYNCIO_LOOPS), ["1x64x64"]),
    ),
    Goal(
        "asyncio and uvloop, plain def hook, to picows",
        0.9,
        _against("echo", _pairs("picows", ASYNCIO_LOOPS, "def")),
    ),
    Goal("Trio, async def hook, to websockets on Trio and to trio-websocket", 0.3, _against("echo", _TRIO)),
    Goal(
        "Trio, async def hook, to picows on asyncio", 1.5, _against("echo", [("ours-trio", "picows-asyncio")])
    ),
    Goal("pure-Python framing, to websockets", 1.0, _against("echo", _pairs("websockets", LOOPS, "python"))),
    Goal(
        "client, read_loop, to picows", 1.0, _against("clients", _pairs("picows", ASYNCIO_LOOPS, "read_loop"))
    ),
    Goal(
        "client, receive(), to aiohttp", 0.6, _against("clients", _pairs("aiohttp", ASYNCIO_LOOPS, "receive"))
    ),
    Goal(
        "client on Trio, every way, to websockets on Trio",
        0.3,
        _against(
            "clients",
            [(f"ours-trio-{way}", "websockets-trio") for way in ("read_loop", "receive", "iteration")],
        ),
    ),
    Goal("idle connection, KiB, plain", 6.0, _itself("memory", _ours(LOOPS), ["1000 plain", "8000 plain"])),
    Goal(
        "idle connection, KiB, after one compressed message",
        16.0,
        _itself("memory", _ours(LOOPS), ["1000 compressed", "8000 compressed"]),
    ),
    Goal("connect, handshake, echo, to picows", 0.9, _against("connect", _pairs("picows", ASYNCIO_LOOPS))),
    Goal("TLS, to websockets", 1.0, _against("tls", _pairs("websockets", LOOPS))),
    Goal(
        "broadcast to 1000 connections, to websockets",
        0.3,
        _against("broadcast", _pairs("websockets", LOOPS)),
    ),
    Goal(
        "cost per message with more connections, to that with 10",
        1.3,
        _growth("growth-connections", _from_first(CASES["growth-connections"])),
    ),
    Goal("time for 2n bytes to n", 2.3, _growth("growth-bytes", list(pairwise(CASES["growth-bytes"])))),
    Goal("time for 2n frames to n", 2.3, _growth("growth-frames", list(pairwise(CASES["growth-frames"])))),
)
