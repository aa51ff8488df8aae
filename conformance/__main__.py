"""The command line: ``python -m conformance``."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence

from . import autobahn
from .echo import BACKENDS
from .wstest import Missing


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code.

    :param arguments: those of the process when ``None``
    """
    parser = argparse.ArgumentParser(prog="python -m conformance", description="WebSocket conformance.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_autobahn(commands.add_parser("autobahn", help="run the Autobahn Testsuite against anyio_ws"))
    options = parser.parse_args(arguments)
    try:
        code: int = options.run(options)
    except (Missing, autobahn.Stalled, ValueError) as exc:
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
    subjects = itertools.starmap(autobahn.Subject, itertools.product(roles, options.backend, options.framing))
    if options.cases:
        cases = autobahn.choose_cases(options.cases)
    else:
        cases = autobahn.all_cases() if options.full else autobahn.quick_cases()
    return autobahn.main(list(subjects), cases, accept=options.accept)


if __name__ == "__main__":
    sys.exit(main())
