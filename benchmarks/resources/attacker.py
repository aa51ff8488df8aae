"""The attacking process: ``python -m benchmarks.resources.attacker PORT ATTACK PID``, that of the server.

A line ``N`` on its input makes one attack of that size, ``N SECONDS`` one after the other for that long;
each is answered with a line when it is over. Connections that the server does not end stay as they are until
the next line. The process is as nice as can be: who measures beside it goes first.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import sys
import time
from collections.abc import Callable

from benchmarks.processes import HOST, read_cpu_clock
from benchmarks.resources.attacks import ATTACKS, Plan, request

STUCK_SECONDS = 0.1  # without any progress, and hardly any work of the server; then nothing more will come
_UNREAD = 16_384  # bytes that may wait for who does not read
_HARDLY_ANY = 0.2  # of its CPU; a bystander may be there
MOST_SECONDS = 20.0  # of one attack; then it has failed
_OFFER = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"


class Attacker:
    """One connection of an attack, and those that come after it in its place."""

    def __init__(self, plan: Plan, port: int) -> None:
        self.is_over = False
        self._plan = plan
        self._port = port
        self._times = plan.times
        self._open()

    def _open(self) -> None:
        plan = self._plan
        self._rest = memoryview(plan.data)
        self.sock = socket.socket()
        self.sock.settimeout(MOST_SECONDS)
        if not plan.reads:  # or the kernel would read for us
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _UNREAD)
        self.sock.connect((HOST, self._port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if plan.is_open:
            self.sock.sendall(request(plan.path, *([_OFFER] if plan.offers else [])))
            answer = b""
            while b"\r\n\r\n" not in answer:
                more = self.sock.recv(1)
                if not more:
                    raise ConnectionError(f"the handshake was refused: {answer!r}")
                answer += more
            if not answer.startswith(b"HTTP/1.1 101"):
                raise ConnectionError(f"the handshake was refused: {answer!r}")
        self.sock.setblocking(False)

    @property
    def events(self) -> int:
        """What to wait for."""
        write = selectors.EVENT_WRITE if self._rest else 0
        return write | (selectors.EVENT_READ if self._plan.reads else 0)

    def step(self, events: int) -> int:
        """Send and receive what can be; return the number of bytes."""
        try:
            return self._receive(events) + self._send(events)
        except BlockingIOError:
            return 0
        except OSError:
            return self._end()

    def _send(self, events: int) -> int:
        if not events & selectors.EVENT_WRITE or self.is_over or not self._rest:
            return 0
        sent = self.sock.send(self._rest[: self._plan.piece or 1_000_000])
        self._rest = self._rest[sent:]
        return sent

    def _receive(self, events: int) -> int:
        if not events & selectors.EVENT_READ:
            return 0
        return len(self.sock.recv(1_000_000)) or self._end()

    def _end(self) -> int:
        self._rest = memoryview(b"")
        self._times -= 1
        self.is_over = True
        return 1

    def renew(self) -> bool:
        """Come again if there is still to be; tell whether that is so."""
        if self._times <= 0:
            return False
        self.sock.close()
        self.is_over = False
        self._open()
        return True


class Army:
    """All connections of one attack."""

    def __init__(self, plan: Plan, port: int, server: int) -> None:
        self._plan = plan
        self._port = port
        self._server = server
        self._attackers: list[Attacker] = []

    def attack(self) -> str:
        """Do what is planned; return "" or what went wrong."""
        begin = time.monotonic()
        with selectors.DefaultSelector() as selector:
            for _ in range(self._plan.connections):
                self._attackers.append(Attacker(self._plan, self._port))
            for attacker in self._attackers:
                self._watch(selector, attacker)
            progress, work = time.monotonic(), read_cpu_clock(self._server)
            while selector.get_map():
                now = time.monotonic()
                if sum(self._step(selector, key, events) for key, events in selector.select(0.02)):
                    progress = now
                elif now - progress > STUCK_SECONDS and not self._plan.ends:
                    before, work = work, read_cpu_clock(self._server)
                    if work - before < _HARDLY_ANY * (now - progress):
                        break
                    progress = now
                if now - begin > MOST_SECONDS:
                    return f"the server had not ended it after {MOST_SECONDS:.0f} s"
        return ""

    def _watch(self, selector: selectors.BaseSelector, attacker: Attacker) -> None:
        if attacker.events:
            selector.register(attacker.sock, attacker.events, attacker)

    def _step(self, selector: selectors.BaseSelector, key: selectors.SelectorKey, events: int) -> int:
        attacker: Attacker = key.data
        done = attacker.step(events)
        if attacker.is_over:
            selector.unregister(attacker.sock)
            if attacker.renew():
                self._watch(selector, attacker)
        elif attacker.events != key.events:
            selector.unregister(attacker.sock)
            self._watch(selector, attacker)
        return done

    def leave(self) -> None:
        """Close all connections."""
        for attacker in self._attackers:
            attacker.sock.close()
        self._attackers.clear()


def repeat(attack: Callable[[], str], seconds: float) -> str:
    """Attack again and again; return what went wrong first."""
    end = time.monotonic() + seconds
    while True:
        wrong = attack()
        if wrong or time.monotonic() >= end:
            return wrong


def main() -> None:
    port, server = int(sys.argv[1]), int(sys.argv[3])
    (chosen,) = (attack for attack in ATTACKS if attack.name == sys.argv[2])
    with contextlib.suppress(OSError):
        os.nice(19)
    army: Army | None = None

    def once() -> str:
        nonlocal army
        if army is not None:
            army.leave()
        army = Army(plan, port, server)
        return army.attack()

    for line in sys.stdin:
        n, *seconds = line.split()
        plan = chosen.build(int(n))
        wrong = repeat(once, float(seconds[0]) if seconds else 0.0)
        print(json.dumps({"wrong": wrong}), flush=True)


if __name__ == "__main__":
    main()
