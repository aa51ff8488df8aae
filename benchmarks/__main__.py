"""``python -m benchmarks``: build, measure, print, keep."""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import resource
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .chart import draw, make_panels
from .environment import make_environment, read_commit, read_versions
from .figures import Figures
from .goals import GOALS
from .measures import Bench
from .processes import BenchmarkError, Cores
from .report import read_tables, render_table, render_verdicts, to_json
from .runner import Run
from .subjects import Subject
from .tables import TABLES, Table

HERE = Path(__file__).parent
RESULTS, CHART = HERE / "results.json", HERE / "results.svg"


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="What anyio_ws and its peers cost."
    )
    parser.add_argument("--list", action="store_true", help="print the tables with their subjects and cases")
    parser.add_argument("--only", nargs="+", default=[], metavar="TABLE", help="these tables")
    parser.add_argument("--cases", default="", metavar="CASE,...", help="these cases, as --list prints them")
    parser.add_argument(
        "--peers", nargs="*", metavar="LIBRARY", help="ours and these peers; none of them: ours alone"
    )
    parser.add_argument(
        "--servers",
        "--subjects",
        default="",
        metavar="NAME,...",
        help="these subjects, as --list prints them",
    )
    parser.add_argument("--rounds", type=int, default=5, help="of each table (default: 5)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a sample (default: 2)")
    parser.add_argument(
        "--quick", action="store_true", help="one short round, fewer connections; to see that it runs"
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="keep the results in this file, however partial (default: whole tables, in results.json)",
    )
    return parser.parse_args(words)


def choose(arguments: argparse.Namespace) -> list[Run]:
    """Return what is asked for.

    :raises BenchmarkError: when a name is unknown, or nothing is left
    """
    names = [table.name for table in TABLES]
    _check_known("--only", arguments.only, names)
    tables = [table for table in TABLES if table.name in (arguments.only or names)]
    cases = [case for case in arguments.cases.split(",") if case]
    servers = [name for name in arguments.servers.split(",") if name]
    _check_known("--cases", cases, [case for table in tables for case in table.cases])
    _check_known("--servers", servers, [subject.name for table in tables for subject in table.subjects])
    libraries = [subject.library for table in TABLES for subject in table.subjects]
    _check_known("--peers", arguments.peers or [], libraries)
    runs = [
        Run(
            table,
            [subject for subject in table.subjects if _is_wanted(subject, servers, arguments.peers)],
            [case for case in table.cases if case in (cases or table.cases)],
        )
        for table in tables
    ]
    runs = [run for run in runs if run.subjects and run.cases]
    if not runs:
        raise BenchmarkError("no table has both one of these subjects and one of these cases; see --list")
    return runs


def _is_wanted(subject: Subject, servers: Sequence[str], peers: Sequence[str] | None) -> bool:
    if servers:
        return subject.name in servers
    return peers is None or subject.is_ours or subject.library in peers


def _check_known(option: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise BenchmarkError(
                f"{option}: there is no {name!r}; choose from {', '.join(dict.fromkeys(known))}"
            )


def describe_machine() -> str:
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    return f"{model}, {os.cpu_count()} cores, Linux {platform.release().split('-')[0]}"


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status, 1 when something did not run."""
    arguments = parse_arguments(words)
    try:
        if arguments.list:
            print_list()
            return 0
        return measure(arguments, choose(arguments))
    except BenchmarkError as exc:
        print(f"benchmarks: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("benchmarks: stopped", file=sys.stderr)
        return 130


def print_list() -> None:
    for table in TABLES:
        print(f"{table.name}: {table.title} ({table.unit})")
        print(f"  cases: {', '.join(table.cases)}")
        print(f"  subjects: {', '.join(subject.name for subject in table.subjects)}")


def measure(arguments: argparse.Namespace, runs: Sequence[Run]) -> int:
    open_more_files()
    environment = make_environment()
    versions, cores = read_versions(environment), Cores()
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    if not cores.are_apart:
        print(
            "There is one core only: what is measured shares it with its load, and costs more than it should."
        )
    rounds, seconds, scale = (1, 0.5, 0.1) if arguments.quick else (arguments.rounds, arguments.seconds, 1.0)
    bench = Bench(environment, cores, seconds, scale)
    about = {
        "commit": read_commit(), "machine": describe_machine(), "versions": versions,
        "rounds": rounds, "seconds": seconds,
    }  # fmt: skip
    path = arguments.output or (None if arguments.quick else RESULTS)
    tables = read_tables(path) if path == RESULTS else {}
    for run in runs:
        print(f"\n{run.table.name}: {len(run.subjects)} subjects, {len(run.cases)} cases", flush=True)
        run.measure(bench, min(rounds, run.table.most_rounds), lambda line: print(line, flush=True))
        print(f"\n{render_table(run.table.title, run.table.unit, run.figures)}", flush=True)
        if path and (run.is_whole or arguments.output):
            tables[run.table.name] = _describe(run.table, run.figures, about)
            _keep(path, tables)
        elif path:
            print("(a part of the table, which is not kept)")
    return _conclude(runs)


def _describe(table: Table, figures: Figures, about: dict[str, Any]) -> dict[str, Any]:
    day = time.strftime("%Y-%m-%d", time.gmtime())
    return {"title": table.title, "unit": table.unit, "date": day, **about, "samples": figures.to_json()}


def _keep(path: Path, tables: dict[str, dict[str, Any]]) -> None:
    """Write the results, and the chart beside them."""
    figures = {name: Figures(table["samples"]) for name, table in tables.items()}
    path.write_text(to_json(tables, [goal.judge(figures) for goal in GOALS]))
    panels = make_panels(figures, {table.name: table.unit for table in TABLES})
    if panels:
        last = next(reversed(tables.values()))
        path.with_suffix(".svg").write_text(
            draw(panels, f"{last['machine']}; Python {last['versions']['python']}")
        )


def _conclude(runs: Sequence[Run]) -> int:
    figures = {run.table.name: run.figures for run in runs}
    verdicts = [verdict for goal in GOALS if (verdict := goal.judge(figures)).measured]
    if verdicts:
        print(f"\n{render_verdicts(verdicts)}")
    failures = [failure for run in runs for failure in run.failures]
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    return 1 if failures else 0


def open_more_files() -> None:
    """Raise the limit of open files to what is allowed; the programs inherit it."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, interrupt)
    sys.exit(main())
