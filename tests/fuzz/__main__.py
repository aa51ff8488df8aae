"""Let atheris look for bytes that break a target: ``python -m tests.fuzz --target request --seconds 60``.

Each target runs in a process of its own, and begins with ``tests/fuzz/corpus/NAME``. What breaks it is
written to ``crash-*``; put that into the corpus, under a name that says what it is, and
``tests/test_fuzz.py`` will always try it. It needs the dependency group ``fuzz``.
"""

from __future__ import annotations

import argparse
import importlib
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CORPUS = Path(__file__).parent / "corpus"
NAMES = ("request", "response", "header", "frames", "deflate", "connection", "lane")


def fuzz(name: str, arguments: list[str]) -> None:
    """Let atheris call one target; this ends the process."""
    atheris: Any = importlib.import_module("atheris")  # not there where the linter runs

    with atheris.instrument_imports(include=["anyio_ws"]):
        from .targets import TARGETS
    atheris.Setup([sys.argv[0], *arguments], TARGETS[name])
    atheris.Fuzz()


def run(name: str, limit: list[str], keep: str | None) -> int:
    """Fuzz one target in a process of its own, and say how often it was called."""
    with tempfile.TemporaryDirectory() as work:
        found = Path(keep, name) if keep else Path(work, "found")
        found.mkdir(parents=True, exist_ok=True)
        seeds = shutil.copytree(CORPUS / name, Path(work, "seeds"))
        arguments = [*limit, "-max_len=2048", "-timeout=20", "-rss_limit_mb=2048", "-print_final_stats=1"]
        command = [sys.executable, "-m", "tests.fuzz", "--child", name, *arguments, str(found), str(seeds)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    executions = re.findall(r"number_of_executed_units: (\d+)", done.stderr)
    print(f"{name:12} {int(executions[-1]) if executions else 0:12,} executions", flush=True)
    if done.returncode:
        print(done.stdout[-3_000:], done.stderr[-6_000:], sep="\n")
    return done.returncode


def main() -> int:
    """Run what the command line says."""
    if sys.argv[1:2] == ["--child"]:
        fuzz(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.split("\n")[0])
    parser.add_argument("--target", choices=NAMES, action="append", help="all but the lane when omitted")
    parser.add_argument("--seconds", type=int, help="how long in all")
    parser.add_argument("--runs", type=int, help="how often each target is called")
    parser.add_argument("--seed", type=int, help="of the choices it makes; others each time when omitted")
    parser.add_argument("--keep", help="a folder for what it learns, for a longer run")
    args = parser.parse_args()
    # Not the lane, unless it is asked for: two runs on Trio differ in the order of tasks, so that it finds
    # something to look at now and then, and the gate has its corpus.
    names = args.target or NAMES[:-1]
    seconds = 60 if args.seconds is None and args.runs is None else args.seconds
    limit = [f"-max_total_time={max(1, seconds // len(names))}"] if seconds else []
    limit += [f"-runs={args.runs}"] if args.runs else []
    limit += [f"-seed={args.seed}"] if args.seed else []
    return max(run(name, limit, args.keep) for name in names)


if __name__ == "__main__":
    sys.exit(main())
