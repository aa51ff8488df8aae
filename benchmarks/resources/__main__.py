"""``python -m benchmarks.resources``: attack, measure, judge, write the page."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

from ..__main__ import describe_machine, interrupt, open_more_files
from ..environment import make_environment, read_commit, read_versions
from ..processes import BenchmarkError, Cores
from ..report import dump
from ..subjects import OURS, WEBSOCKETS, Subject
from .attacks import ATTACKS, Attack
from .measure import Field, Sample
from .page import PAGE, RESULTS, conclude, judge, render

SUBJECTS = (*OURS, *WEBSOCKETS)
_BY_DEFAULT = [subject.name for subject in SUBJECTS if subject.loop != "uvloop"]


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.resources",
        description="What attacks cost a server: its memory, its time, and a bystander's time.",
        epilog="It ends with 1 when a limit does not hold for a server of ours. Interrupt it when you like.",
    )
    parser.add_argument("--list", action="store_true", help="print the attacks and the servers")
    parser.add_argument("--only", nargs="+", default=[], metavar="ATTACK", help="these, by name or row")
    parser.add_argument("--servers", default="", metavar="NAME,...", help="these, as --list prints them")
    parser.add_argument("--rounds", type=int, default=3, help="of each attack on each server (default: 3)")
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="for which a bystander is watched (default: 2)"
    )
    parser.add_argument("--quick", action="store_true", help="one small round, to see that it runs")
    parser.add_argument(
        "--page", action="store_true", help="only write the page from the results that are kept"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="keep the results there, and leave the page alone"
    )
    return parser.parse_args(words)


def choose(arguments: argparse.Namespace) -> tuple[list[Attack], list[Subject]]:
    """Return what is asked for.

    :raises BenchmarkError: when a name is unknown
    """
    known = {name for attack in ATTACKS for name in (attack.name, *attack.rows)}
    wanted = [name for name in arguments.servers.split(",") if name] or _BY_DEFAULT
    for option, names, all_names in (
        ("--only", arguments.only, known),
        ("--servers", wanted, {subject.name for subject in SUBJECTS}),
    ):
        for name in names:
            if name not in all_names:
                raise BenchmarkError(f"{option}: there is no {name!r}; see --list")
    only = set(arguments.only) or known
    return (
        [attack for attack in ATTACKS if only & {attack.name, *attack.rows}],
        [subject for subject in SUBJECTS if subject.name in wanted],
    )


def print_list() -> None:
    for attack in ATTACKS:
        print(f"{attack.name:<20} {', '.join(attack.rows):<10} {attack.title} ({attack.n:,} {attack.unit})")
    print(f"servers: {', '.join(subject.name for subject in SUBJECTS)}")


class Table:
    """The samples, as they come in.

    :ivar samples: by attack and server; a text where something did not run
    :ivar complaints: the limits that do not hold for servers of ours
    """

    def __init__(self, known: Mapping[str, Any]) -> None:
        self.samples: dict[str, dict[str, Any]] = {name: dict(cells) for name, cells in known.items()}
        self.complaints: list[str] = []

    def measure(self, field: Field, attack: Attack, subject: Subject, rounds: int) -> str:
        """Measure one attack on one server, and say what came out."""
        cells = self.samples.setdefault(attack.name, {})
        found: list[Sample] = []
        try:
            for _ in range(rounds):
                found.append(field.measure(subject, attack))  # noqa: PERF401 - an error keeps those before
        except (BenchmarkError, OSError, ValueError) as exc:
            cells[subject.name] = "did not withstand it"
            if subject.is_ours:
                self.complaints.append(f"{attack.name}, {subject.name}: {exc}")
            return f"FAILED: {exc}"
        cells[subject.name] = [[float(f"{value:.5g}") for value in astuple(sample)] for sample in found]
        figures = conclude(found)
        if subject.is_ours:
            self.complaints += judge(attack, subject.name, figures)
        return str(figures)


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status, 1 when a limit does not hold for a server of ours."""
    arguments = parse_arguments(words)
    try:
        if arguments.list:
            print_list()
        elif arguments.page:
            PAGE.write_text(render(json.loads(RESULTS.read_text())))
        else:
            return measure(arguments, *choose(arguments))
    except BenchmarkError as exc:
        print(f"resources: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("resources: stopped", file=sys.stderr)
        return 130
    return 0


def measure(arguments: argparse.Namespace, attacks: Sequence[Attack], subjects: Sequence[Subject]) -> int:
    open_more_files()
    environment = make_environment()
    versions = read_versions(environment)
    wanted = {name: versions[name] for name in ("python", "anyio_ws", "websockets", "anyio", "trio")}
    rounds, seconds, scale = (1, 0.2, 0.1) if arguments.quick else (arguments.rounds, arguments.seconds, 1.0)
    field = Field(environment, Cores(), seconds, scale)
    path = arguments.output or (None if arguments.quick else RESULTS)
    known = json.loads(path.read_text()) if path == RESULTS and RESULTS.exists() else {"samples": {}}
    table = Table(known["samples"])
    begin, done, total = time.monotonic(), 0, len(attacks) * len(subjects)
    for attack in attacks:
        for subject in subjects:
            said = table.measure(field, attack, subject, rounds)
            done += 1
            left = (time.monotonic() - begin) / done * (total - done) / 60
            print(
                f"[{done}/{total}, {left:.0f} min to go] {attack.name:<20} {subject.name:<20} {said}",
                flush=True,
            )
        if path:
            results = {
                "date": time.strftime("%Y-%m-%d", time.gmtime()), "commit": read_commit(),
                "machine": describe_machine(), "versions": wanted, "rounds": rounds,
                "subjects": _BY_DEFAULT, "samples": table.samples,
            }  # fmt: skip
            path.write_text(dump(results) + "\n")
            if path == RESULTS:
                PAGE.write_text(render(results))
    for complaint in table.complaints:
        print(f"DOES NOT HOLD: {complaint}", file=sys.stderr)
    return 1 if table.complaints else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, interrupt)
    sys.exit(main())
