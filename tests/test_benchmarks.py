"""The benchmarks: their statistics, their goals, their pictures, and one tiny run of them.

Nothing here asserts a time; what a figure is good for is said in benchmarks/README.md.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.__main__ import choose, main, parse_arguments
from benchmarks.chart import draw, make_panels
from benchmarks.environment import Environment, build_native
from benchmarks.figures import Figures, to_number
from benchmarks.goals import GOALS, Goal, Outcome
from benchmarks.measures import Bench
from benchmarks.processes import BenchmarkError, Cores, find_free_port, start
from benchmarks.report import format_figure, render_table, render_verdicts, to_json
from benchmarks.runner import Run
from benchmarks.subjects import Subject
from benchmarks.tables import TABLES, Table

OURS, PEER = "ours-uvloop", "picows-uvloop"


def make_figures() -> Figures:
    figures = Figures()
    for ours, theirs in [(10.0, 20.0), (30.0, 40.0), (8.0, 80.0)]:
        figures.add("100x64x1", OURS, ours)
        figures.add("100x64x1", PEER, theirs)
    return figures


def make_bench(native: Path) -> Bench:
    """Return the place to measure in that this interpreter is, without any peer; samples are tiny."""
    return Bench(Environment(Path(sys.executable), native, Path(), Path()), Cores(), 0.05, 0.0)


# --- figures ------------------------------------------------------------------------------------------


def test_figure_is_the_median_over_the_rounds() -> None:
    """One round that went wrong does not move a figure."""
    assert make_figures().get("100x64x1", OURS) == 10.0


def test_ratio_is_taken_within_each_round() -> None:
    """A ratio is the median of the ratios of each round, not the ratio of two medians."""
    assert make_figures().ratio("100x64x1", OURS, PEER) == 0.5  # the medians would give 10 / 40


def test_figure_that_was_not_measured_is_none() -> None:
    """What is missing is told from what is zero."""
    figures = make_figures()
    assert figures.get("1x16x1", OURS) is None
    assert figures.ratio("100x64x1", OURS, "tornado") is None


def test_spread_over_the_rounds_is_known() -> None:
    """The widest spread is told with its case and subject, so that one sees which figure to doubt."""
    assert make_figures().find_widest() == (2.2, "100x64x1", OURS)  # 8 to 30, in terms of 10
    assert "widest spread over the rounds: 220%, ours-uvloop 100x64x1" in render_table(
        "T", "us", make_figures()
    )
    assert Figures({"case": {OURS: [1.0]}}).find_widest() is None


def test_figures_survive_json() -> None:
    """Samples are read from the results as they were written."""
    figures = Figures(json.loads(json.dumps(make_figures().to_json())))
    assert figures.to_json() == make_figures().to_json()
    assert (figures.cases, figures.subjects) == (["100x64x1"], [OURS, PEER])


def test_figures_forget_a_subject_that_failed() -> None:
    """A subject that failed in one round is in no figure, so that rounds stay paired."""
    figures = make_figures()
    figures.drop(OURS)
    assert figures.get("100x64x1", OURS) is None
    assert figures.get("100x64x1", PEER) == 40.0


@pytest.mark.parametrize("value", [0, -1.0, float("nan")])
def test_figure_of_nothing_is_an_error(value: float) -> None:
    """A server that seems to cost nothing was not measured."""
    with pytest.raises(ValueError, match="nothing was measured"):
        to_number(value)


# --- goals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ([0.5, 1.0], "reached"),
        ([0.5, 1.01], "not reached"),
        ([0.5, None], "in part"),
        ([None, 1.01], "not reached"),
        ([], "not measured"),
    ],
)
def test_goal_is_reached_when_every_figure_keeps_its_limit(values: list[float | None], word: str) -> None:
    """One figure over the limit misses a goal, and a figure that is missing is never good."""
    goal = Goal("speed", 1.0, lambda tables: [Outcome("case", value) for value in values])
    verdict = goal.judge({})
    assert verdict.word == word
    assert [value for value, _ in verdict.missed] == [v for v in values if v is not None and v > 1.0]
    assert word in render_verdicts([verdict])


@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: goal.text)
def test_goal_looks_at_figures_that_are_measured(goal: Goal) -> None:
    """Every figure that a goal looks at is a subject and a case of a table: a full run judges all goals."""
    tables = {
        table.name: Figures({case: {s.name: [1.0] for s in table.subjects} for case in table.cases})
        for table in TABLES
    }
    outcomes = goal.judge(tables).outcomes
    assert outcomes
    assert all(outcome.value == 1.0 for outcome in outcomes)


# --- what a run shows ---------------------------------------------------------------------------------


def test_table_shows_medians_and_ratios() -> None:
    """A printed table has the medians, and the ratio of ours to the best peer on the same loop."""
    text = render_table("Echo servers", "us", make_figures())
    assert "Echo servers (us; medians)" in text
    assert "0.50 picows" in text


@pytest.mark.parametrize(("value", "text"), [(None, "-"), (0.123, "0.12"), (12.34, "12.3"), (123.4, "123")])
def test_figure_is_written_with_three_digits(value: float | None, text: str) -> None:
    """More digits than that would be noise."""
    assert format_figure(value) == text


def test_results_are_json_with_a_line_for_each_subject() -> None:
    """A change of one figure is a change of one line, and the text is JSON."""
    goal = Goal("speed", 1.0, lambda tables: [Outcome("case", 0.5)])
    text = to_json({"echo": {"samples": make_figures().to_json()}}, [goal.judge({})])
    assert '"ours-uvloop": [10.0, 30.0, 8.0]' in text
    assert json.loads(text)["goals"][0]["verdict"] == "reached"


def test_chart_is_well_formed_and_follows_the_mode() -> None:
    """The chart is XML with one bar per subject, has a dark style, and escapes its text."""
    panels = make_panels({"echo": make_figures()}, {"echo": "us <per> message"})
    svg = draw(panels, "a machine & its cores")
    root = ElementTree.fromstring(svg)
    bars = [e for e in root.iter() if e.tag.endswith("rect") and e.get("class") in ("ours", "peer")]
    assert [bar.get("class") for bar in bars] == ["ours", "peer"]
    assert "prefers-color-scheme: dark" in svg
    assert [text for text in root.itertext() if "machine & its" in text]


# --- the command --------------------------------------------------------------------------------------


def test_command_lists_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    """``--list`` names every table and runs nothing."""
    assert main(["--list"]) == 0
    out = capsys.readouterr().out
    assert all(f"{table.name}: " in out for table in TABLES)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--only", "ecko"], "--only: there is no 'ecko'; choose from echo,"),
        (["--cases", "1x1"], "--cases: there is no '1x1'"),
        (["--servers", "nginx"], "--servers: there is no 'nginx'"),
        (["--peers", "nginx"], "--peers: there is no 'nginx'"),
        (["--only", "echo", "tls", "--servers", "tornado", "--cases", "handshake"], "see --list"),
    ],
)
def test_command_names_what_it_does_not_know(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong name is an error that shows the right ones, before anything is built."""
    assert main(words) == 1
    assert complaint in capsys.readouterr().err


def test_command_chooses_peers_and_cases() -> None:
    """``--peers`` leaves ours and the peers that are named; a part of a table is known to be one."""
    (run,) = choose(parse_arguments(["--only", "echo", "--peers", "tornado", "--cases", "1x16x1,4x65536x1"]))
    assert {s.library for s in run.subjects} == {"ours", "tornado"}
    assert run.cases == ["1x16x1", "4x65536x1"]
    assert not run.is_whole
    (whole,) = choose(parse_arguments(["--only", "echo"]))
    assert whole.is_whole


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put tables that cost nothing to measure in place of all; return where results are kept."""

    def measure(bench: Bench, subject: Subject, cases: Sequence[str]) -> Iterator[tuple[str, float]]:
        for case in cases:
            if case == "bad" and subject.library == "tornado":
                raise BenchmarkError("it fell over")
            yield case, 2.0 if subject.is_ours else 4.0

    subjects = (Subject("ours", "asyncio"), Subject("picows", "asyncio"), Subject("tornado", "asyncio"))
    tables = [
        Table(name, name, "us", subjects, cases, measure)
        for name, cases in {"echo": ("1x16x1", "100x64x1"), "broken": ("bad",)}.items()
    ]
    path = tmp_path / "results.json"
    monkeypatch.setattr("benchmarks.__main__.TABLES", tables)
    monkeypatch.setattr("benchmarks.__main__.RESULTS", path)
    monkeypatch.setattr("benchmarks.__main__.make_environment", lambda: make_bench(tmp_path).environment)
    monkeypatch.setattr(
        "benchmarks.__main__.read_versions", lambda environment: {"python": "3", "picows": "2"}
    )
    return path


def test_whole_table_is_kept_with_what_it_was_measured_on(
    kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The results have samples, versions, rounds and verdicts; the chart stands beside them."""
    assert main(["--only", "echo", "--rounds", "2"]) == 0
    results = json.loads(kept.read_text())
    table = results["tables"]["echo"]
    assert table["samples"]["100x64x1"] == {
        "ours-asyncio": [2.0, 2.0],
        "picows-asyncio": [4.0, 4.0],
        "tornado": [4.0, 4.0],
    }
    assert table["versions"]["picows"] == "2"
    assert (table["rounds"], table["seconds"]) == (2, 2.0)
    assert "anyio_ws on asyncio" in kept.with_suffix(".svg").read_text()
    goal = next(g for g in results["goals"] if g["goal"].startswith("Trio, async def hook, to picows"))
    assert goal["verdict"] == "not measured"
    assert "0.50 picows" in capsys.readouterr().out


def test_part_of_a_table_is_not_kept(kept: Path, tmp_path: Path) -> None:
    """Some cases or some peers do not take the place of a whole table; they are kept where one says."""
    assert main(["--only", "echo", "--rounds", "1"]) == 0
    whole = kept.read_text()
    assert main(["--only", "echo", "--rounds", "1", "--cases", "1x16x1"]) == 0
    assert main(["--only", "echo", "--rounds", "1", "--peers", "picows"]) == 0
    assert main(["--only", "echo", "--quick"]) == 0
    assert kept.read_text() == whole
    assert (
        main(
            ["--only", "echo", "--rounds", "1", "--cases", "1x16x1", "--output", str(tmp_path / "part.json")]
        )
        == 0
    )
    assert list(json.loads((tmp_path / "part.json").read_text())["tables"]["echo"]["samples"]) == ["1x16x1"]


def test_peer_that_fails_makes_the_command_fail(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A peer that cannot be measured is named, the exit status says so, and its table is not kept."""
    assert main(["--rounds", "1"]) == 1
    assert "FAILED broken, tornado: it fell over" in capsys.readouterr().err
    assert list(json.loads(kept.read_text())["tables"]) == ["echo"]


# --- processes ----------------------------------------------------------------------------------------


def test_program_that_fails_says_why() -> None:
    """A program that ends before it listens is an error with its name and its last words."""
    command = [sys.executable, "-c", "import sys; sys.exit('no such peer')"]
    complaint = pytest.raises(BenchmarkError, match=r"the peer: ended with status 1(.|\n)*no such peer")
    with start(command, Cores().measured, name="the peer") as program, complaint:
        program.wait_until_listening(find_free_port())


def test_program_ends_with_its_block() -> None:
    """Whatever happens in the block, the process is ended and gone after it."""
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with pytest.raises(KeyboardInterrupt), start(command, Cores().measured) as program:
        raise KeyboardInterrupt
    assert program.status == -signal.SIGKILL


def test_failure_of_a_subject_is_kept_and_told() -> None:
    """A subject that fails is reported once and in no figure; the others are measured."""

    def measure(bench: Bench, subject: Subject, cases: Sequence[str]) -> Iterator[tuple[str, float]]:
        yield "case", 1.0
        if subject.library == "tornado":
            raise BenchmarkError("it is broken")

    subjects = (Subject("tornado", "asyncio"), Subject("ours", "trio"))
    run = Run(Table("t", "T", "us", subjects, ("case",), measure), subjects, ["case"])
    said: list[str] = []
    run.measure(make_bench(Path()), 2, said.append)
    assert run.failures == ["t, tornado: it is broken"]
    assert len([line for line in said if "FAILED" in line]) == 1
    assert run.figures.to_json() == {"case": {"ours-trio": [1.0, 1.0]}}
    assert not run.is_whole


def test_missing_compiler_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without gcc the command says what is needed, for what, and how to get it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BenchmarkError, match=r"gcc is needed .*apt-get install gcc"):
        build_native(tmp_path / "place")


@pytest.mark.skipif(shutil.which("gcc") is None, reason="the load generator is C; there is no gcc")
def test_one_case_runs_whole(tmp_path: Path) -> None:
    """The C programs build, and measure our server, our client and our memory."""
    bench = make_bench(build_native(tmp_path))
    tables = {table.name: table for table in TABLES}
    ours = Subject("ours", "asyncio")
    client = Subject("ours", "asyncio", "receive")
    for name, subject, case in [
        ("echo", ours, "1x1024x1"),
        ("clients", client, "256"),
        ("memory", ours, "1000 plain"),
    ]:
        ((measured, cost),) = tables[name].measure(bench, subject, [case])
        assert measured == case
        assert cost > 0
