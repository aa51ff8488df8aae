"""The processes that a run starts: the examined ends, wstest. None of them outlives the run."""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
_STALL = 300  # seconds in which a process must say something, or the run is given up


@dataclass(frozen=True)
class Subject:
    """What is examined.

    :ivar role: ``"server"`` or ``"client"``
    :ivar backend: ``"asyncio"``, ``"uvloop"`` or ``"trio"``
    :ivar framing: ``"python"``, ``"c"``, or ``""`` for the one that is there
    """

    role: str
    backend: str
    framing: str = ""

    @property
    def name(self) -> str:
        """How it is named in tables and files."""
        return "-".join(filter(None, (self.role, self.backend, self.framing)))

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start the end of anyio_ws in a process of its own; it reads nothing until it is to end."""
        environment = {**os.environ, **({"ANYIO_WS_FRAMING": self.framing} if self.framing else {})}
        command = [sys.executable, "-m", "conformance.echo", "--backend", self.backend, self.role]
        return start([*command, *arguments], cwd=ROOT, env=environment)


class Stalled(Exception):
    """A run made no progress and was given up."""


def start(command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
    """Start a process whose input and output are pipes."""
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options)


def drain(process: subprocess.Popen[str]) -> None:
    """Read what a process says, and forget it."""
    assert process.stdout is not None
    with contextlib.suppress(ValueError):  # it was ended and closed meanwhile
        process.stdout.read()


@contextlib.contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """End a process of ours at the end of a block: by the end of its input, else by force."""
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


def lines_of(process: subprocess.Popen[str]) -> Iterator[str]:
    """Yield the lines of a process until it ends.

    :raises Stalled: when none comes for too long
    """
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        assert process.stdout is not None
        with contextlib.suppress(ValueError):  # it was ended and closed meanwhile
            for line in process.stdout:
                lines.put(line)
        lines.put("")

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=_STALL)
        except queue.Empty:
            raise Stalled(f"nothing happened for {_STALL} seconds") from None
        if not line:
            return
        yield line.rstrip()


def first_words(process: subprocess.Popen[str], *prefixes: str) -> list[str]:
    """Read what a process says first: a line for each prefix; ``"name "`` is cut off, ``"ws://"`` is not."""
    words = []
    assert process.stdout is not None
    for prefix in prefixes:
        line = process.stdout.readline().strip()
        if not line.startswith(prefix):
            raise Stalled(f"the examined end did not start: {line or 'it printed nothing'}")
        words.append(line.removeprefix(prefix) if prefix.endswith(" ") else line)
    return words
