"""The tables: what is measured, and of whom."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from .measures import (
    Bench,
    Cases,
    measure_broadcast,
    measure_client,
    measure_connect,
    measure_echo,
    measure_frames,
    measure_memory,
    measure_sizes,
    measure_tls,
)
from .subjects import CLIENTS, COMPRESSING_PEERS, OURS, PEERS, PICOWS, SERVERS, WEBSOCKETS, Subject


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
        measure_echo,
    ),
    Table(
        "clients",
        "Clients, one request and one response at a time, by bytes of a message",
        "client CPU, us per round trip",
        CLIENTS,
        ("256", "8192", "100000"),
        measure_client,
    ),
    Table(
        "connect",
        "Connect, opening handshake, one echo",
        "server CPU, us per connection",
        (*OURS, *PEERS),
        ("connect",),
        measure_connect,
    ),
    Table(
        "tls",
        "TLS: handshakes (TLS, opening, one echo), echoes",
        "server CPU, us per connection or message",
        (*OURS, *WEBSOCKETS),
        ("handshake", "16x64x1", "4x65536x1"),
        measure_tls,
    ),
    Table(
        "memory",
        "Idle connections: after a plain echo; compression negotiated; after a compressed echo",
        "KiB per connection",
        (*OURS, *COMPRESSING_PEERS),
        tuple(f"{n} {what}" for n in (1000, 8000) for what in ("plain", "negotiated", "compressed")),
        measure_memory,
        most_rounds=2,
    ),
    Table(
        "memory-plain",
        "Idle connections of the servers that do not compress",
        "KiB per connection",
        tuple(subject for subject in PEERS if subject not in COMPRESSING_PEERS),
        ("1000 plain", "8000 plain"),
        measure_memory,
        most_rounds=2,
    ),
    Table(
        "memory-10000",
        "Ten thousand idle connections with compression negotiated",
        "KiB per connection",
        OURS,
        ("10000 negotiated",),
        measure_memory,
        most_rounds=2,
    ),
    Table(
        "compressed",
        "Echo servers, compressed messages of text",
        CPU_PER_MESSAGE,
        (*OURS, *COMPRESSING_PEERS),
        ("1x1024x1", "100x1024x1", "4x32768x1"),
        partial(measure_echo, deflate=True),
    ),
    Table(
        "broadcast",
        "Broadcast of one message to 1000 connections",
        "server CPU, us per message delivered",
        (*OURS, *WEBSOCKETS),
        ("1000x64 plain", "1000x1024 plain", "1000x1024 compressed"),
        measure_broadcast,
    ),
    Table(
        "growth-connections",
        "Growth: more connections, messages of 64 bytes",
        CPU_PER_MESSAGE,
        (*OURS, *WEBSOCKETS, *PICOWS),
        ("10x64x1", "100x64x1", "1000x64x1", "5000x64x1"),
        measure_echo,
    ),
    Table(
        "growth-bytes",
        "Growth: longer messages, one at a time",
        CPU_PER_MESSAGE,
        OURS,
        tuple(f"{n} MiB" for n in (1, 2, 4, 8, 16)),
        measure_sizes,
    ),
    Table(
        "growth-frames",
        "Growth: messages of more frames, each of 64 bytes",
        CPU_PER_MESSAGE,
        OURS,
        tuple(f"{n} frames" for n in (1024, 2048, 4096, 8192, 16384)),
        measure_frames,
    ),
)
