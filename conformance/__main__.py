"""The command line: ``python -m conformance``."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import socket
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from . import autobahn, check, report, scoreboard, serve
from .case import Case, Grade
from .cases import all_cases
from .echo import BACKENDS
from .processes import Stalled, Subject
from .wstest import Missing


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code.

    :param arguments: those of the process when ``None``
    """
    parser = argparse.ArgumentParser(prog="python -m conformance", description="WebSocket conformance.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_autobahn(commands.add_parser("autobahn", help="run the Autobahn Testsuite against anyio_ws"))
    _add_serve(commands.add_parser("serve", help="examine a client that sends messages back"))
    _add_check(commands.add_parser("check", help="examine any server that sends messages back"))
    _add_scoreboard(commands.add_parser("scoreboard", help="examine anyio_ws and other libraries"))
    _add_list(commands.add_parser("list", help="show the cases"))
    options = parser.parse_args(arguments)
    try:
        code: int = options.run(options)
    except (Missing, Stalled, ValueError, OSError) as exc:
        print(f"conformance: {exc}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return code


def _add_autobahn(command: argparse.ArgumentParser) -> None:
    command.description = "Run wstest against both ends of anyio_ws and compare with the committed results."
    command.epilog = "exit codes: 0 as expected, 1 a case is worse or not OK, 2 it could not be run"
    which = command.add_mutually_exclusive_group()
    which.add_argument("--quick", action="store_true", help="373 cases: few of sections 12, 13 (the default)")
    which.add_argument("--full", action="store_true", help="all 517 cases; takes 20 minutes and more")
    which.add_argument("--cases", nargs="+", metavar="CASE", help="these cases or sections: 7.1.5 6.4 10")
    command.add_argument("--role", choices=("server", "client", "both"), default="both")
    command.add_argument("--backend", nargs="+", choices=BACKENDS, default=["asyncio", "trio"])
    command.add_argument("--framing", nargs="+", choices=("python", "c"), default=[""])
    command.add_argument("--accept", action="store_true", help="make worse results the expected ones")
    command.set_defaults(run=_run_autobahn)


def _run_autobahn(options: argparse.Namespace) -> int:
    roles = ["server", "client"] if options.role == "both" else [options.role]
    subjects = itertools.starmap(Subject, itertools.product(roles, options.backend, options.framing))
    if options.cases:
        cases = autobahn.choose_cases(options.cases)
    else:
        cases = autobahn.all_cases() if options.full else autobahn.quick_cases()
    return autobahn.main(list(subjects), cases, accept=options.accept)


# --- check --------------------------------------------------------------------------------------------


def _add_check(command: argparse.ArgumentParser) -> None:
    command.description = "Examine a WebSocket server that sends every message back as it came."
    command.epilog = "exit codes: 0 no case failed, 1 some did, 2 the server cannot be examined"
    command.add_argument("url", help="its address: ws://host:port/path")
    _add_choice(command)
    command.add_argument("--no-echo", action="store_true", help="it does not send messages back")
    command.add_argument(
        "--handshake-timeout",
        type=float,
        default=0,
        metavar="SECONDS",
        help="how long its opening handshake may take; cases about that are left out without",
    )
    command.add_argument(
        "--faults",
        action="store_true",
        help="its own code errs when a query asks for that, see README.md; else those cases are left out",
    )
    command.add_argument(
        "--concurrency", type=int, default=24, help="cases at one time (default: %(default)s)"
    )
    command.set_defaults(run=_run_check)


def _add_choice(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--section",
        action="append",
        choices=report.SECTIONS,
        metavar="SECTION",
        help=f"only this one, and others given the same way: {' '.join(report.SECTIONS)}",
    )
    command.add_argument(
        "--case", action="append", default=[], metavar="ID", help="only this case, and others"
    )
    command.add_argument(
        "--exhaustive", action="store_true", help="each of the 65,536 close codes, not samples"
    )
    command.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    command.add_argument(
        "--limit",
        type=int,
        default=65_536,
        metavar="BYTES",
        help="the longest message it takes; 0 if there is no limit (default: %(default)s)",
    )
    command.add_argument(
        "--timeout",
        type=float,
        default=2.0,
        metavar="SECONDS",
        help="how long to wait for what must come (default: %(default)s)",
    )


def _chosen(options: argparse.Namespace, end: str) -> list[Case]:
    cases = all_cases(limit=options.limit or 65_536, exhaustive=options.exhaustive)
    chosen = [
        case
        for case in cases
        if end in case.ends
        and (not options.section or case.section in options.section)
        and (not options.case or case.id in options.case)
    ]
    if not chosen:
        raise ValueError(f"no case for a {end} has been chosen")
    return chosen


def _run_check(options: argparse.Namespace) -> int:
    target = replace(
        check.parse_target(options.url),
        echoes=not options.no_echo,
        limit=options.limit,
        handshake_timeout=options.handshake_timeout,
        faults=options.faults,
        timeout=options.timeout,
        concurrency=options.concurrency,
    )
    cases = _chosen(options, "server")
    results = asyncio.run(check.check(target, cases, show=True))
    return _report(options, cases, results, {"end": "server"})


def _add_serve(command: argparse.ArgumentParser) -> None:
    command.description = serve.__doc__
    command.formatter_class = argparse.RawDescriptionHelpFormatter
    command.epilog = "exit codes: 0 no case failed, 1 some did, 2 the address cannot be used"
    command.add_argument("--address", default="127.0.0.1", help="(default: %(default)s)")
    command.add_argument("--port", type=int, default=9001, help="0 takes any free one (default: %(default)s)")
    command.add_argument(
        "--patience",
        type=float,
        default=2.0,
        metavar="SECONDS",
        help="how long the client waits for an opening handshake (default: %(default)s)",
    )
    _add_choice(command)
    command.set_defaults(run=_run_serve)


def _run_serve(options: argparse.Namespace) -> int:
    cases = _chosen(options, "client")
    results = asyncio.run(_serve(options, cases))
    return _report(options, cases, results, {"end": "client"})


async def _serve(options: argparse.Namespace, cases: list[Case]) -> report.Results:
    examiner = serve.Examiner(cases, limit=options.limit, patience=options.patience, timeout=options.timeout)
    with socket.create_server((options.address, options.port)) as sock:
        print("ws://{}:{}".format(*sock.getsockname()), flush=True)
        serving = asyncio.create_task(examiner.serve(sock))
        await examiner.finished.wait()
        await examiner.settle()
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
    return examiner.results


def _add_scoreboard(command: argparse.ArgumentParser) -> None:
    command.description = scoreboard.__doc__
    command.formatter_class = argparse.RawDescriptionHelpFormatter
    command.epilog = (
        "exit codes: 0 anyio_ws passed every case, 1 it did not, 2 somebody could not be examined"
    )
    command.add_argument("--peer", nargs="*", choices=scoreboard.PEERS, default=scoreboard.PEERS)
    command.add_argument("--framing", nargs="+", choices=("python", "c"), default=["python", "c"])
    command.set_defaults(run=lambda options: scoreboard.main(options.peer, options.framing))


def _add_list(command: argparse.ArgumentParser) -> None:
    command.description = (
        "Show the cases: what each demands and where that is said; with --json all they consist of."
    )
    command.add_argument(
        "--section", action="append", choices=report.SECTIONS, metavar="SECTION", help="only this one"
    )
    command.add_argument("--json", action="store_true", help="as JSON, bytes as hexadecimal digits")
    command.set_defaults(run=_run_list)


def _run_list(options: argparse.Namespace) -> int:
    cases = [case for case in all_cases() if not options.section or case.section in options.section]
    if options.json:
        print(report.export(cases))
    else:
        for case in cases:
            print(f"{case.id}\n    {case.fact} [{case.source}]")
    return 0


def _report(
    options: argparse.Namespace, cases: list[Case], results: report.Results, head: dict[str, str]
) -> int:
    for line in report.complaints(results, cases):
        print(line)
    print(report.table(results))
    if options.json:
        report.save(options.json, head, results)
    return int(any(verdict and verdict.grade is Grade.FAIL for verdict in results.values()))


if __name__ == "__main__":
    sys.exit(main())
