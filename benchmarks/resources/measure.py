"""One attack on one server, measured: its memory, its time for *n* and *2n*, and a bystander's echoes.

The server is a process of its own, begun anew for each sample, on one core; whoever attacks it and the
bystander share the other one, where the bystander goes first. What is read from outside:

* memory: the peak of the resident memory while the first attack lasts, that for *2n*, which the kernel notes
  (``VmHWM``), above what it was before; by connection
* time: what the process has used of its CPU for *n* and then for *2n*, until it is at rest again, without
  the bystander
* the bystander: the 99th percentile of its echoes while the attack for *2n* is repeated
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..environment import ROOT, Environment
from ..processes import BenchmarkError, Cores, Program, find_free_port, read_cpu_clock, read_rss_kib, start
from ..subjects import Subject
from .attacks import MAX_MESSAGE_SIZE, Attack

_REST_SECONDS = 0.05  # without use of the CPU
_MOST_REST_SECONDS = 10.0
_FIRST_SECONDS = 0.3  # in which the bystander warms the server up
_AHEAD = -15  # the priority of whoever is measured, where the system lets us


@dataclass(frozen=True)
class Sample:
    """What one attack has cost one server.

    :ivar memory: KiB for each attacking connection, at the most
    :ivar p99: milliseconds, of the bystander
    :ivar n: CPU milliseconds of the attack for *n*
    :ivar twice: CPU milliseconds of the attack for *2n*
    """

    memory: float
    p99: float
    n: float
    twice: float


@dataclass(frozen=True)
class Field:
    """Where and for how long to measure.

    :ivar seconds: for which the bystander is watched
    :ivar scale: of the sizes of the attacks; 1 for all of it
    """

    environment: Environment
    cores: Cores
    seconds: float
    scale: float = 1.0

    def measure(self, subject: Subject, attack: Attack) -> Sample:
        """Measure once.

        :raises BenchmarkError: when something does not run, or the server does not survive
        """
        n = max(1, round(attack.n * self.scale))
        port = find_free_port()
        module, words = subject.get_module("target"), (port, "--loop", subject.loop)
        with self._start(module, self.cores.measured, *words, "--max-size", MAX_MESSAGE_SIZE) as server:
            server.wait_until_listening(port)
            put_ahead(server)
            self._watch(server, port, lambda: time.sleep(_FIRST_SECONDS))
            against = (port, attack.name, server.pid)
            with self._start("benchmarks.resources.attacker", self.cores.other, *against) as attacker:
                before = begin_peak(server.pid)
                self._attack(server, attacker, 2 * n)
                memory = (read_peak_kib(server.pid) - before) / attack.build(2 * n).connections
                once, twice = self._attack(server, attacker, n), self._attack(server, attacker, 2 * n)
                taken = self._watch(
                    server, port, lambda: check(server, attacker.ask(f"{2 * n} {self.seconds}"))
                )
        return Sample(memory, percentile(taken, 99) * 1e3, once * 1e3, twice * 1e3)

    def _start(self, module: str, core: int, *words: object) -> contextlib.AbstractContextManager[Program]:
        command = [str(self.environment.python), "-m", module, *map(str, words)]
        return start(command, core, name=module.split(".")[-1], environment={"PYTHONPATH": str(ROOT)})

    def _watch(self, server: Program, port: int, happens: Callable[[], object]) -> list[float]:
        """Return how long the echoes of a bystander take while something happens, in seconds."""
        with self._start("benchmarks.resources.bystander", self.cores.other, port, server.pid) as bystander:
            put_ahead(bystander)
            bystander.ask("begin")
            happens()
            taken: list[float] = read_json(bystander.ask("end"))
            return taken

    def _attack(self, server: Program, attacker: Program, n: int) -> float:
        """Return the CPU seconds that an attack of one size has cost."""
        before = read_cpu_clock(server.pid)
        check(server, attacker.ask(str(n)))
        wait_for_rest(server.pid)
        return read_cpu_clock(server.pid) - before


def put_ahead(program: Program) -> None:
    """Have a program go before others, those of other sessions included, where the system lets us."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, program.pid, _AHEAD)
        Path(f"/proc/{program.pid}/autogroup").write_text(str(_AHEAD))


def read_json(line: str) -> Any:
    """Read what a program has answered."""
    return json.loads(line)


def check(server: Program, line: str) -> None:
    """Check that an attack came to its end, and the server did not.

    :raises BenchmarkError: otherwise
    """
    wrong = read_json(line)["wrong"]
    if server.status is not None:
        raise server.fail(f"ended with status {server.status}")
    if wrong:
        raise BenchmarkError(f"{server.name}: {wrong}")


def wait_for_rest(pid: int) -> None:
    """Wait until a process does not use the CPU any more, within reason."""
    end = time.monotonic() + _MOST_REST_SECONDS
    while time.monotonic() < end:
        before = read_cpu_clock(pid)
        time.sleep(_REST_SECONDS)
        if read_cpu_clock(pid) - before < 0.001:
            return


def begin_peak(pid: int) -> int:
    """Have the kernel forget the peak of a process's memory; return what it uses now, in KiB."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return read_rss_kib(pid)


def read_peak_kib(pid: int) -> int:
    """Return the peak of a process's resident memory since :func:`begin_peak`."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    raise BenchmarkError(f"process {pid} has ended")


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value that so many per cent of the others do not exceed.

    :raises BenchmarkError: when there are none
    """
    if not values:
        raise BenchmarkError("the bystander has counted nothing")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]
