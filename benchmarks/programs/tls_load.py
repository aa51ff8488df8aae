"""A load over TLS: blocking sockets of the standard library, which do for a server that does TLS in Python.

``tls_load PORT CASE SECONDS PID CA``; CASE is ``handshake`` or connections x bytes x 1. It prints what wsload
prints.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import sys
import time
from collections.abc import Callable

from benchmarks.processes import read_cpu_clock
from benchmarks.programs.program import HOST, WARM_UP

REQUEST = (
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def build_frame(size: int) -> tuple[bytes, int]:
    """Return a masked text frame, and the length of its echo; the masking key is zero, which is legal."""
    if size < 126:
        head = bytes([0x81, 0x80 | size])
    elif size < 65536:
        head = bytes([0x81, 0x80 | 126]) + size.to_bytes(2, "big")
    else:
        head = bytes([0x81, 0x80 | 127]) + size.to_bytes(8, "big")
    return head + bytes(4) + b"x" * size, len(head) + size


def receive(connection: ssl.SSLSocket, length: int) -> None:
    while length:
        data = connection.recv(min(length, 1 << 18))
        if not data:
            sys.exit("closed by the server")
        length -= len(data)


def connect() -> ssl.SSLSocket:
    raw = socket.create_connection((HOST, port), 20)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection = context.wrap_socket(raw, server_hostname=HOST)
    connection.sendall(REQUEST)
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        data = connection.recv(4096)
        if not data:
            sys.exit(f"no answer to the opening handshake: {answer!r}")
        answer += data
    if not answer.startswith(b"HTTP/1.1 101"):
        sys.exit(f"refused: {answer!r}")
    return connection


def shake_hands() -> int:
    connection = connect()
    connection.sendall(frame)
    receive(connection, echo_length)
    connection.close()
    return 1


def echo() -> int:
    for connection in connections:
        connection.sendall(frame)
    for connection in connections:
        receive(connection, echo_length)
    return len(connections)


def measure(step: Callable[[], int]) -> None:
    begin = since = time.monotonic()
    cpu, messages, is_warm = read_cpu_clock(server), 0, False
    while time.monotonic() - begin < seconds or not messages:
        messages += step()
        if not is_warm and time.monotonic() - begin > WARM_UP * seconds:
            since, cpu, messages, is_warm = time.monotonic(), read_cpu_clock(server), 0, True
    used = read_cpu_clock(server) - cpu
    print(json.dumps({"messages": messages, "seconds": time.monotonic() - since, "cpu": used}), flush=True)


port, case, seconds, server = int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
context = ssl.create_default_context(cafile=sys.argv[5])
if case == "handshake":
    frame, echo_length = build_frame(16)
    measure(shake_hands)
else:
    count, size = map(int, case.split("x")[:2])
    frame, echo_length = build_frame(size)
    connections = [connect() for _ in range(count)]
    measure(echo)
os._exit(0)  # no farewells: the server ends next
