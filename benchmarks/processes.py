"""Processes that are measured: pinned to a core, ended with the run whatever happens, read from outside.

The figure that a shared machine leaves steady is CPU time. It is read from the CPU clock of the process
(all its threads, user and system), which the kernel counts in nanoseconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

HOST = "127.0.0.1"
START_SECONDS = 20.0
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


class BenchmarkError(Exception):
    """Something that was to be measured did not run; the message says what, and what it printed."""


class Cores:
    """The core of what is measured, and the core of what drives it; the same one where there is only one."""

    def __init__(self) -> None:
        allowed = sorted(os.sched_getaffinity(0))
        self.measured, self.other = allowed[0], allowed[-1]

    @property
    def are_apart(self) -> bool:
        return self.measured != self.other


def find_free_port() -> int:
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        port: int = sock.getsockname()[1]
        return port


def read_cpu_clock(pid: int) -> float:
    """Return the CPU seconds of a process; the id is what clock_getcpuclockid(3) makes of *pid*."""
    return time.clock_gettime(~pid << 3 | 2)


def read_rss_kib(pid: int) -> int:
    """Return the resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise BenchmarkError(f"process {pid} has ended")


class Program:
    """A running process."""

    def __init__(self, process: subprocess.Popen[str], name: str, errors: IO[str]) -> None:
        self._process = process
        self._errors = errors
        self.name = name

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Its exit status, that of a signal negative; ``None`` while it runs."""
        return self._process.poll()

    def fail(self, what: str) -> BenchmarkError:
        """Return an error that says what is wrong, with the last lines that the program printed."""
        self._errors.seek(0)
        tail = self._errors.read()[-2000:].strip()
        return BenchmarkError(f"{self.name}: {what}{f'; it says:{chr(10)}{tail}' if tail else ''}")

    def wait_until_listening(self, port: int) -> None:
        """Return when the port accepts connections.

        :raises BenchmarkError: when the program ends, or does not listen in time
        """
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.status is not None:
                raise self.fail(f"ended with status {self.status} before it listened")
            with contextlib.suppress(OSError), socket.create_connection((HOST, port), 1.0):
                return
            time.sleep(0.02)
        raise self.fail(f"does not listen after {START_SECONDS:.0f} s")

    def read_settled_rss_kib(self) -> int:
        """Wait until the program is at rest, and return its resident memory."""
        rss = -1
        for _ in range(20):
            cpu, last = read_cpu_clock(self.pid), rss
            time.sleep(0.25)
            rss = read_rss_kib(self.pid)
            if rss == last and read_cpu_clock(self.pid) - cpu < 0.01:
                break
        return rss

    def ask(self, line: str) -> str:
        """Write a line to the program, and return the line that it answers.

        :raises BenchmarkError: when it ends in place of answering
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            print(line, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise self.fail("gave no answer")
        return answer

    def finish(self, seconds: float) -> str:
        """Wait for the end of the program, and return what it printed.

        :raises BenchmarkError: when it fails, or takes longer
        """
        try:
            output, _ = self._process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise self.fail(f"did not end in {seconds:.0f} s") from None
        if self.status != 0:
            raise self.fail(f"ended with status {self.status}")
        return output


@contextlib.contextmanager
def start(
    command: Sequence[str | Path], core: int, *, name: str = "", environment: dict[str, str] | None = None
) -> Iterator[Program]:
    """Run a program on one core for the length of the block.

    It ends with the block, and with this process, even if that is killed.
    """

    def prepare() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        os.sched_setaffinity(0, {core})

    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | (environment or {}),
            preexec_fn=prepare,
            start_new_session=True,  # an interrupt at the terminal is ours to pass on
        )
        try:
            yield Program(process, name or Path(command[0]).name, errors)
        finally:
            process.kill()
            process.communicate()
