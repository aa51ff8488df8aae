"""The tables: what is measured, of whom, and how.

A case of the servers reads ``connections x bytes of a message x messages in flight on each connection``.
Every measure starts its program, yields a figure for each case, and leaves nothing running.
"""

from __future__ import annotations

import contextlib
import json
import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from .environment import PLACE, ROOT, Environment
from .figures import to_number
from .processes import Cores, Program, find_free_port, start
from .subjects import CLIENTS, COMPRESSING_PEERS, OURS, PEERS, PICOWS, SERVERS, WEBSOCKETS, Subject

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
        command = self._command(subject, "server", port, *options)
        with start(
            command, self.cores.measured, name=f"server {subject.name}", environment=_environment(subject)
        ) as server:
            server.wait_until_listening(port)
            yield server, port

    def run_client(self, subject: Subject, port: int, size: str) -> dict[str, Any]:
        """Run the client of *subject* on the measured core; return what it printed."""
        command = self._command(subject, "client", port, "--size", size, "--seconds", str(self.seconds))
        with start(
            command, self.cores.measured, name=f"client {subject.name}", environment=_environment(subject)
        ) as client:
            return _read(client.finish(self.seconds + 60))

    def load(self, *words: object) -> dict[str, Any]:
        """Run the load generator on the other core until it ends; return what it printed."""
        with start([self.environment.wsload, *map(str, words)], self.cores.other) as load:
            return _read(load.finish(self.seconds + 120))

    def _command(self, subject: Subject, kind: str, port: int, *options: str) -> list[str]:
        style = ["--style", subject.style] if subject.style else []
        module = subject.get_module(kind)
        return [
            str(self.environment.python), "-m", module, str(port), "--loop", subject.loop, *style, *options
        ]  # fmt: skip


def _environment(subject: Subject) -> dict[str, str]:
    return {"PYTHONPATH": str(ROOT), **subject.environment}


def _read(line: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(line)
    return result


def _cost(result: dict[str, Any]) -> float:
    """Return microseconds of CPU per message."""
    return to_number(result["cpu"]) / to_number(result["messages"]) * MICRO


# --- how to measure -------------------------------------------------------------------------------------


def _measure_echo(bench: Bench, subject: Subject, cases: Sequence[str], *, deflate: bool = False) -> Cases:
    with bench.serve(subject) as (server, port):
        for case in cases:
            connections, size, depth = case.split("x")
            deflated = _make_deflated(int(size)) if deflate else "-"
            result = bench.load(
                "echo", port, connections, size, depth, 1, bench.seconds, server.pid, deflated
            )
            yield case, _cost(result)


def _measure_broadcast(bench: Bench, subject: Subject, cases: Sequence[str]) -> Cases:
    for case in cases:
        connections, size, how = case.split("x")[0], case.split("x")[1].split()[0], case.split()[-1]
        offer = _make_deflated(int(size)) if how == "compressed" else "-"
        with bench.serve(subject, "--job", "broadcast") as (server, port):
            result = bench.load("broadcast", port, connections, size, 1, 1, bench.seconds, server.pid, offer)
            yield case, _cost(result)


def _measure_client(bench: Bench, subject: Subject, cases: Sequence[str]) -> Cases:
    port = find_free_port()
    with start([bench.environment.wsecho, str(port)], bench.cores.other) as echo:
        echo.wait_until_listening(port)
        for case in cases:
            yield case, _cost(bench.run_client(subject, port, case))


def _measure_connect(bench: Bench, subject: Subject, cases: Sequence[str]) -> Cases:
    with bench.serve(subject) as (server, port), _hold(bench, port, 16, server, "-") as load:
        load.ask("100")
        for case in cases:
            yield case, _cost(_read(load.ask(str(max(1, round(1000 * bench.scale))))))


def _measure_memory(bench: Bench, subject: Subject, cases: Sequence[str]) -> Cases:
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


def _measure_tls(bench: Bench, subject: Subject, cases: Sequence[str]) -> Cases:
    environment = bench.environment
    with bench.serve(subject, "--tls", str(environment.certificate)) as (server, port):
        for case in cases:
            command = [
                environment.python, "-m", "benchmarks.programs.tls_load", port, case, bench.seconds,
                server.pid, environment.authority,
            ]  # fmt: skip
            with start(
                [str(word) for word in command],
                bench.cores.other,
                name="tls_load",
                environment=_environment(subject),
            ) as load:
                yield case, _cost(_read(load.finish(bench.seconds + 60)))


def _measure_sizes(bench: Bench, subject: Subject, cases: Sequence[str]) -> Cases:
    with bench.serve(subject, "--max-size", str(32 * MIB)) as (server, port):
        for case in cases:
            size = int(case.split()[0]) * MIB
            yield case, _cost(bench.load("echo", port, 1, size, 1, 1, bench.seconds, server.pid, "-"))


def _measure_frames(bench: Bench, subject: Subject, cases: Sequence[str]) -> Cases:
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
    path.write_bytes(data.removesuffix(b"\0\0\xff\xff"))
    return str(path)


# --- the tables -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """One table.

    :ivar unit: of its figures; less is better in all of them
    :ivar measure: runs one subject once, and yields the figure of each case
    :ivar most_rounds: more than that would say nothing new; memory does not depend on the machine's moods
    """

    name: str
    title: str
    unit: str
    subjects: tuple[Subject, ...]
    cases: tuple[str, ...]
    measure: Callable[[Bench, Subject, Sequence[str]], Cases]
    most_rounds: int = 100


CPU_PER_MESSAGE = "server CPU, us per message"
TABLES = (
    Table(
        "echo",
        "Echo servers",
        CPU_PER_MESSAGE,
        SERVERS,
        ("1x16x1", "1x1024x1", "100x64x1", "1x64x64", "4x65536x1", "1000x64x1"),
        _measure_echo,
    ),
    Table(
        "clients",
        "Clients, one request and one response at a time, by bytes of a message",
        "client CPU, us per round trip",
        CLIENTS,
        ("256", "8192", "100000"),
        _measure_client,
    ),
    Table(
        "connect",
        "Connect, opening handshake, one echo",
        "server CPU, us per connection",
        (*OURS, *PEERS),
        ("connect",),
        _measure_connect,
    ),
    Table(
        "tls",
        "TLS: handshakes (TLS, opening, one echo), echoes",
        "server CPU, us per connection or message",
        (*OURS, *WEBSOCKETS),
        ("handshake", "16x64x1", "4x65536x1"),
        _measure_tls,
    ),
    Table(
        "memory",
        "Idle connections: after a plain echo; compression negotiated; after a compressed echo",
        "KiB per connection",
        (*OURS, *COMPRESSING_PEERS),
        tuple(f"{n} {what}" for n in (1000, 8000) for what in ("plain", "negotiated", "compressed")),
        _measure_memory,
        most_rounds=2,
    ),
    Table(
        "memory-plain",
        "Idle connections of the servers that do not compress",
        "KiB per connection",
        tuple(subject for subject in PEERS if subject not in COMPRESSING_PEERS),
        ("1000 plain", "8000 plain"),
        _measure_memory,
        most_rounds=2,
    ),
    Table(
        "memory-10000",
        "Ten thousand idle connections with compression negotiated",
        "KiB per connection",
        OURS,
        ("10000 negotiated",),
        _measure_memory,
        most_rounds=2,
    ),
    Table(
        "compressed",
        "Echo servers, compressed messages of text",
        CPU_PER_MESSAGE,
        (*OURS, *COMPRESSING_PEERS),
        ("1x1024x1", "100x1024x1", "4x32768x1"),
        partial(_measure_echo, deflate=True),
    ),
    Table(
        "broadcast",
        "Broadcast of one message to 1000 connections",
        "server CPU, us per message delivered",
        (*OURS, *WEBSOCKETS),
        ("1000x64 plain", "1000x1024 plain", "1000x1024 compressed"),
        _measure_broadcast,
    ),
    Table(
        "growth-connections",
        "Growth: more connections, messages of 64 bytes",
        CPU_PER_MESSAGE,
        (*OURS, *WEBSOCKETS, *PICOWS),
        ("10x64x1", "100x64x1", "1000x64x1", "5000x64x1"),
        _measure_echo,
    ),
    Table(
        "growth-bytes",
        "Growth: longer messages, one at a time",
        CPU_PER_MESSAGE,
        OURS,
        tuple(f"{n} MiB" for n in (1, 2, 4, 8, 16)),
        _measure_sizes,
    ),
    Table(
        "growth-frames",
        "Growth: messages of more frames, each of 64 bytes",
        CPU_PER_MESSAGE,
        OURS,
        tuple(f"{n} frames" for n in (1024, 2048, 4096, 8192, 16384)),
        _measure_frames,
    ),
)
