"""The bystander: a process with one connection that has a small message echoed every few milliseconds.

``python -m benchmarks.resources.bystander PORT PID``: the line ``begin`` on its input has it count from then
on, and ``end`` has it print how long each echo took, in seconds.

The time in which the server (whose id is *PID*) or this process was ready to run, and other programs had its
core, is not counted: it tells of the machine, and not of the server.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import time

from anyio_ws.testing import build_frame, read_frame
from benchmarks.processes import HOST
from benchmarks.resources.attacks import request

PAUSE_SECONDS = 0.002
_PING = build_frame(0x1, b"bystander", key=b"mask")


class Waits:
    """How long processes were ready to run and did not: the kernel counts it in nanoseconds."""

    def __init__(self, *pids: int) -> None:
        self._files = [os.open(f"/proc/{pid}/schedstat", os.O_RDONLY) for pid in pids]

    def read(self) -> float:
        """Return the sum of it so far, in seconds."""
        return sum(int(os.pread(file, 100, 0).split()[1]) for file in self._files) / 1e9


class Bystander:
    """The connection."""

    def __init__(self, port: int, server: int) -> None:
        self._waits = Waits(server, os.getpid())
        self._sock = socket.create_connection((HOST, port), 60.0)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = b""
        self._sock.sendall(request())
        while b"\r\n\r\n" not in self._received:
            self._more()
        self._received = self._received.partition(b"\r\n\r\n")[2]

    def _more(self) -> None:
        data = self._sock.recv(65_536)
        if not data:
            raise ConnectionError("the server has closed the bystander's connection")
        self._received += data

    def echo(self) -> float:
        """Have a message echoed; return the seconds that it took."""
        begin, waited = time.perf_counter(), self._waits.read()
        self._sock.sendall(_PING)
        while True:
            found = read_frame(self._received)
            if found is None:
                self._more()
                continue
            frame, end = found
            self._received = self._received[end:]
            if frame.opcode == 0x1:
                taken = time.perf_counter() - begin
                return max(0.0, taken - (self._waits.read() - waited))


def main() -> None:
    bystander = Bystander(int(sys.argv[1]), int(sys.argv[2]))
    taken: list[float] = []
    while True:
        ready, _, _ = select.select([sys.stdin], [], [], PAUSE_SECONDS)
        if ready:
            line = sys.stdin.readline().strip()
            if not line:
                return
            if line == "end":
                print(json.dumps(taken), flush=True)
            else:
                print("{}", flush=True)
            taken = []
        taken.append(bystander.echo())


if __name__ == "__main__":
    main()
