"""How to measure: each function runs one subject once and yields a figure for each case.

A case of the servers reads ``connections x bytes of a message x messages in flight on each connection``.
Every measure starts its program, and leaves nothing running.
"""

from __future__ import annotations

import contextlib
import json
import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .environment import PLACE, ROOT, Environment
from .figures import to_number
from .processes import Cores, Program, find_free_port, start
from .subjects import Subject

Cases = Iterator[tuple[str, float]]
MICRO = 1e6
MIB = 2**20


@dataclass(frozen=True)
class Bench:
    """Where and for how long to measure.

    :ivar seconds: of each sample that is limited by time
    :ivar scale: of each sample that is limited by count, 1.0 for all of it
    """

    environment: Environment
    cores: Cores
    seconds: float
    scale: float = 1.0

    @contextlib.contextmanager
    def serve(self, subject: Subject, *options: str) -> Iterator[tuple[Program, int]]:
        """Run the server of *subject* on the measured core; yield it with its port."""
        port = find_free_port()
        with self._start_subject(subject, "server", port, *options) as server:
            server.wait_until_listening(port)
            yield server, port

    def run_client(self, subject: Subject, port: int, size: str) -> dict[str, Any]:
        """Run the client of *subject* on the measured core; return what it printed."""
        options = ("--size", size, "--seconds", str(self.seconds))
        with self._start_subject(subject, "client", port, *options) as client:
            return read_result(client.finish(self.seconds + 60))

    def load(self, *words: object) -> dict[str, Any]:
        """Run the load generator on the other core until it ends; return what it printed."""
        return self.drive([self.environment.wsload, *words])

    def drive(self, command: Sequence[object]) -> dict[str, Any]:
        """Run a program on the other core until it ends; return what it printed."""
        paths = {"PYTHONPATH": str(ROOT)}
        with start([str(word) for word in command], self.cores.other, environment=paths) as program:
            return read_result(program.finish(self.seconds + 120))

    def _start_subject(
        self, subject: Subject, kind: str, port: int, *options: str
    ) -> contextlib.AbstractContextManager[Program]:
        style = ["--style", subject.style] if subject.style else []
        words = ["-m", subject.get_module(kind), str(port), "--loop", subject.loop, *style, *options]
        return start(
            [self.environment.python, *words],
            self.cores.measured,
            name=f"{kind} {subject.name}",
            environment={"PYTHONPATH": str(ROOT), **subject.environment},
        )


def read_result(line: str) -> dict[str, Any]:
    """Return the line of JSON that a load generator or a client prints."""
    result: dict[str, Any] = json.loads(line)
    return result


def _cost(result: dict[str, Any]) -> float:
    """Return microseconds of CPU per message."""
    return to_number(result["cpu"]) / to_number(result["messages"]) * MICRO


def measure_echo(bench: Bench, subject: Subject, cases: Sequence[str], *, deflate: bool = False) -> Cases:
    with bench.serve(subject) as (server, port):
        for case in cases:
            connections, size, depth = case.split("x")
            deflated = _make_deflated(int(size)) if deflate else "-"
            result = bench.load(
                "echo", port, connections, size, depth, 1, bench.seconds, server.pid, deflated
            )
            yield case, _cost(result)


def measure_broadcast(bench: Bench, subject: Subject, cases: Sequence[str]) -> Cases:
    for case in cases:
        numbers, how = case.split()
        connections, size = numbers.split("x")
        offer = _make_deflated(int(size)) if how == "compressed" else "-"
        with bench.serve(subject, "--job", "broadcast") as (server, port):
            result = bench.load("broadcast", port, connections, size, 1, 1, bench.seconds, server.pid, offer)
            yield case, _cost(result)


def measure_client(bench: Bench, subject: Subject, cases: Sequence[str]) -> Cases:
    port = find_free_port()
    with start([bench.environment.wsecho, str(port)], bench.cores.other) as echo:
        echo.wait_until_listening(port)
        for case in cases:
            yield case, _cost(bench.run_client(subject, port, case))


def measure_connect(bench: Bench, subject: Subject, cases: Sequence[str]) -> Cases:
    with bench.serve(subject) as (server, port), _hold(bench, port, 16, server, "-") as load:
        load.ask("100")
        for case in cases:
            yield case, _cost(read_result(load.ask(str(max(1, round(1000 * bench.scale))))))


def measure_memory(bench: Bench, subject: Subject, cases: Sequence[str]) -> Cases:
    for case in cases:
        count, what = case.split(maxsplit=1)
        connections = max(100, round(int(count) * bench.scale))
        size, deflated = {
            "plain": (16, "-"),
            "negotiated": (0, "offer"),
            "compressed": (1024, _make_deflated(1024)),
        }[what]
        with bench.serve(subject) as (server, port), _hold(bench, port, size, server, deflated) as load:
            load.ask("100")
            before = server.read_settled_rss_kib()
            load.ask(str(connections))
            yield case, to_number((server.read_settled_rss_kib() - before) / connections)


def measure_tls(bench: Bench, subject: Subject, cases: Sequence[str]) -> Cases:
    environment = bench.environment
    command = [environment.python, "-m", "benchmarks.programs.tls_load"]
    with bench.serve(subject, "--tls", str(environment.certificate)) as (server, port):
        for case in cases:
            words = [port, case, bench.seconds, server.pid, environment.authority]
            yield case, _cost(bench.drive([*command, *words]))


def measure_sizes(bench: Bench, subject: Subject, cases: Sequence[str]) -> Cases:
    with bench.serve(subject, "--max-size", str(32 * MIB)) as (server, port):
        for case in cases:
            size = int(case.split()[0]) * MIB
            yield case, _cost(bench.load("echo", port, 1, size, 1, 1, bench.seconds, server.pid, "-"))


def measure_frames(bench: Bench, subject: Subject, cases: Sequence[str]) -> Cases:
    with bench.serve(subject, "--max-size", str(32 * MIB)) as (server, port):
        for case in cases:
            frames = int(case.split()[0])
            result = bench.load("echo", port, 1, frames * 64, 1, frames, bench.seconds, server.pid, "-")
            yield case, _cost(result)


@contextlib.contextmanager
def _hold(bench: Bench, port: int, size: int, server: Program, deflated: str) -> Iterator[Program]:
    """Run the load generator, which opens as many connections as it is asked for, and keeps them."""
    command = [str(bench.environment.wsload), "hold", str(port), str(size), str(server.pid), deflated]
    with start(command, bench.cores.other) as load:
        yield load


def _make_deflated(size: int) -> str:
    """Write the payload of a compressed message of *size* characters; return the file.

    It looks back 512 bytes at most and never at an earlier message, so it can be sent again and again
    whatever window was agreed on (RFC 7692 §7.2.1).
    """
    rng = random.Random(6455)
    words = [f'"{name}": {rng.randrange(10_000)}, ' for name in ("id", "price", "amount", "level", "time")]
    text = "".join(rng.choice(words) + f'"n": {rng.randrange(100)}, ' for _ in range(size // 16 + 1))[:size]
    compressor = zlib.compressobj(wbits=-9)
    data = compressor.compress(text.encode()) + compressor.flush(zlib.Z_SYNC_FLUSH)
    path = PLACE / f"deflated-{size}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.removesuffix(b"\0\0\xff\xff"))
    return str(path)
