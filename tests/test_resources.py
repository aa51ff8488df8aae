"""The table of what attacks cost: its attacks, its limits, its page, and one tiny run of it.

Nothing here asserts a time; what was measured stands in docs/security/resources.md.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from anyio_ws.testing import read_frame
from benchmarks.environment import Environment
from benchmarks.processes import BenchmarkError, Cores
from benchmarks.resources import __main__ as command
from benchmarks.resources.attacks import ATTACKS, Attack
from benchmarks.resources.measure import Field, Sample, percentile
from benchmarks.resources.page import PAGE, RESULTS, Figures, conclude, judge, render
from benchmarks.subjects import Subject

from .security.rows import ROWS

OURS = Subject("ours", "asyncio")
GOOD = Sample(memory=100.0, p99=5.0, n=10.0, twice=20.0)
every_attack = pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)


def make_field(seconds: float = 0.0, scale: float = 0.001) -> Field:
    """Return the place to measure in that this interpreter is."""
    return Field(Environment(Path(sys.executable), Path(), Path(), Path()), Cores(), seconds, scale)


# --- the attacks ----------------------------------------------------------------------------------------


def test_attacks_belong_to_rows_of_the_security_table() -> None:
    """Each attack has a name of its own, and rows that exist."""
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)
    assert {row for attack in ATTACKS for row in attack.rows} <= {row.id for row in ROWS}


@every_attack
def test_attack_of_twice_the_size_is_twice_as_much(attack: Attack) -> None:
    """What is sent grows with *n*, in bytes or in connections, and is hardly more than that."""
    sent = [
        plan.connections * plan.times * (len(plan.data) + 150)
        for plan in (attack.build(attack.n), attack.build(2 * attack.n))
    ]
    assert 1.5 < sent[1] / sent[0] < 2.1


@every_attack
def test_attack_on_an_open_connection_is_made_of_frames(attack: Attack) -> None:
    """What comes behind the handshake is frames to the last byte, unless it is cut off on purpose."""
    plan = attack.build(10)
    position = 0
    while plan.is_open and position < len(plan.data) and attack.name != "backlog":
        found = read_frame(plan.data[position : position + 200_000])
        if found is None:
            assert attack.name in ("announced", "stalled")
            break
        position += found[1]


# --- figures --------------------------------------------------------------------------------------------


def test_rounds_give_the_most_memory_and_the_best_times() -> None:
    """Another program makes times longer, never shorter; memory has no such excuse."""
    rounds = [GOOD, Sample(memory=300.0, p99=2.0, n=9.0, twice=40.0), Sample(1.0, 9.0, 15.0, 18.0)]
    assert conclude(rounds) == Figures(memory=300.0, p99=2.0, ratio=2.0)


@pytest.mark.parametrize(
    ("change", "broken", "text"),
    [
        ({}, [], "100 KiB, 5.0 ms, 2.0"),
        ({"memory": 384.0, "p99": 20.0, "twice": 23.0}, [], "384 KiB, 20.0 ms, 2.3"),
        ({"memory": 384.5}, ["memory"], "**384 KiB**, 5.0 ms, 2.0"),
        ({"memory": 20_480.0}, ["memory"], "**20 MiB**, 5.0 ms, 2.0"),
        ({"p99": 120.0}, ["bystander"], "100 KiB, **120 ms**, 2.0"),
        ({"twice": 24.0}, ["growth"], "100 KiB, 5.0 ms, **2.4**"),
        ({"n": 1.0, "twice": 4.9}, [], "100 KiB, 5.0 ms, -"),
    ],
)
def test_limit_that_does_not_hold_is_told(change: dict[str, float], broken: list[str], text: str) -> None:
    """Each limit is judged at its bound; a cell shows in bold what is beyond it."""
    figures = conclude([Sample(**{**vars(GOOD), **change})])
    assert figures.broken == broken
    assert str(figures) == text
    told = [f"messages, ours-asyncio: {name} ({text})" for name in broken]
    assert judge(next(a for a in ATTACKS if a.name == "messages"), "ours-asyncio", figures) == told


def test_percentile_is_one_of_the_values() -> None:
    """Of a hundred values the 99th percentile is the largest but none; of nothing there is none."""
    assert percentile(list(range(1000)), 99) == 990
    assert percentile([3.0], 99) == 3.0
    with pytest.raises(BenchmarkError, match="counted nothing"):
        percentile([], 99)


# --- the page -------------------------------------------------------------------------------------------


def test_page_is_that_of_the_results() -> None:
    """The page in the documentation shows the results that are kept, of every attack and both libraries."""
    results = json.loads(RESULTS.read_text())
    assert PAGE.read_text() == render(results)
    assert {*results["samples"]} == {attack.name for attack in ATTACKS}
    assert {name.split("-")[0] for name in results["subjects"]} == {"ours", "websockets"}


def test_page_shows_what_failed_and_what_was_not_measured() -> None:
    """A server that did not withstand an attack holds none of its limits, and no cell is left out."""
    good = [[100.0, 5.0, 10.0, 20.0]]
    results: dict[str, Any] = {
        "rounds": 1, "date": "today", "commit": "abc", "machine": "one", "versions": {"python": "3"},
        "subjects": ["ours-asyncio", "websockets-asyncio"],
        "samples": {
            "messages": {"ours-asyncio": good, "websockets-asyncio": "did not withstand it"},
            "pings": {"ours-asyncio": good},
        },
    }  # fmt: skip
    lines = render(results).splitlines()
    assert next(line for line in lines if "Messages of one byte" in line).endswith(
        "| 20,000 messages | 100 KiB, 5.0 ms, 2.0 | did not withstand it |"
    )
    assert lines[-1] == "| | **limits that hold** | | 6 of 6 | 0 of 3 |"
    assert sum("not measured" in line for line in lines) == len(ATTACKS) - 1


# --- the command ----------------------------------------------------------------------------------------


def test_command_chooses_by_name_row_and_server() -> None:
    """Attacks are chosen by their name or by their row; by default all, on the servers of two loops."""
    attacks, subjects = command.choose(command.parse_arguments([]))
    assert len(attacks) == len(ATTACKS)
    assert [subject.name for subject in subjects] == [
        "ours-asyncio", "ours-trio", "websockets-asyncio", "websockets-trio",
    ]  # fmt: skip
    words = ["--only", "C04", "messages", "--servers", "ours-uvloop"]
    attacks, subjects = command.choose(command.parse_arguments(words))
    assert [attack.name for attack in attacks] == ["bombs", "small-bombs", "bomb-fragments", "messages"]
    assert [subject.name for subject in subjects] == ["ours-uvloop"]


@pytest.mark.parametrize("words", [["--only", "C99"], ["--servers", "nginx"]])
def test_command_names_what_it_does_not_know(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A name that does not exist is an error that names the option and the list."""
    assert command.main(words) == 1
    assert f"{words[0]}: there is no {words[1]!r}; see --list" in capsys.readouterr().err


def test_command_lists_attacks_and_servers(capsys: pytest.CaptureFixture[str]) -> None:
    """The list has every attack with its rows and its size."""
    assert command.main(["--list"]) == 0
    printed = capsys.readouterr().out
    assert all(attack.name in printed and attack.title in printed for attack in ATTACKS)
    assert "websockets-trio" in printed


# --- a run ----------------------------------------------------------------------------------------------


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it reads Linux's process clocks")
@pytest.mark.parametrize("name", ["messages", "stalled", "bombs", "pings-unread"])
def test_attack_is_measured(name: str) -> None:
    """A server, an attacker and a bystander run, and each figure is there."""
    attack = next(attack for attack in ATTACKS if attack.name == name)
    sample = make_field().measure(OURS, attack)
    assert min(sample.p99, sample.n, sample.twice) >= 0
    assert sample.n + sample.twice > 0
    assert sample.memory >= 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it reads Linux's process clocks")
def test_server_that_does_not_run_is_told() -> None:
    """What fails is in the table as such, a complaint where it is ours, and its reason is said."""
    table = command.Table({"messages": {"websockets-trio": [[1.0, 1.0, 1.0, 1.0]]}})
    attack = next(attack for attack in ATTACKS if attack.name == "messages")
    said = table.measure(make_field(), attack, Subject("ours", "no-such-loop"), 1)
    assert said.startswith("FAILED: target_ours: ended with status 2 before it listened")
    assert table.samples["messages"]["ours-no-such-loop"] == "did not withstand it"
    assert table.samples["messages"]["websockets-trio"] == [[1.0, 1.0, 1.0, 1.0]]
    assert table.complaints[0].startswith("messages, ours-no-such-loop: target_ours")
