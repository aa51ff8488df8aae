"""Many connections through bad networks for as long as one wants, with an exact ledger of messages.

A server and so many clients talk through chaos proxies that delay, slice, reset, truncate, swallow, stall and
half-close. Each end writes a sequence of messages that both know in advance, and what a connection may do
to it is little: a message arrives once, in order, as it was sent. When an end has got the other's Close
nothing is missing. What is missing is missing at the end, of a connection that broke with 1006, and that
somebody broke: each fault is on record. ::

    python -m tests.soak --minutes 30 --connections 300 --backend trio

It prints how it goes, and exits with 1 when anything is left unexplained: a difference in a ledger, a
connection that broke by itself, a warning in the log, a task or descriptor that is left over.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import logging
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import anyio
from anyio.abc import ByteStream

from anyio_ws import ClientConfig, Config, Conn, Handshake, HandshakeError, Server, connect
from anyio_ws.config import HandshakeConfig
from anyio_ws.exceptions import ConnectionClosed
from anyio_ws.testing import ChaosProxy, Ending, MemoryListener, Weather, chaos_proxy

from .support import open_descriptors, running_tasks

_ON_THE_WAY = 20  # messages that wait in one direction, above which a client sends no more
_BEAT = 0.5  # seconds between two looks at how late the event loop is
_LATE = 0.25  # seconds; later than that it has too much to do
_FAULTS = [Ending.RESET, Ending.RESET, Ending.TRUNCATE, Ending.HALF_CLOSE, Ending.BLACK_HOLE, Ending.STALL]
_LONG = 140_000  # such a message goes out in fragments
_NOISE = random.Random(0).randbytes(20_000 + _LONG)
_TEXT = "".join(random.Random(0).choices("abcdefghij \u00e9\u20ac\U0001f600", k=20_000 + _LONG))


def build_message(number: int, side: str, index: int) -> str | bytes:
    """Return what one end of a connection sends as its message of this index; no two are the same."""
    dice = random.Random(f"{number} {side} {index}")
    head = f"{number} {side} {index} "
    size = dice.choice([0, 1, 9, 100, 100, 100, 126, 700, 700, 3_000, 20_000])
    if dice.random() < 0.01:
        size = _LONG
    start = dice.randrange(20_000)
    if dice.random() < 0.5:
        return head + _TEXT[start : start + size]
    return head.encode() + _NOISE[start : start + size]


@dataclass
class Side:
    """What one end of a connection has seen of it."""

    name: str
    tried: int = 0
    """How many messages were given to the connection."""
    sent: int = 0
    """How many of them it took."""
    received: int = 0
    code: int | None = None
    """The close code, when it has ended."""
    cause: str = ""
    """What broke it, as far as this end knows."""

    async def send(self, conn: Conn, number: int) -> None:
        """Send the next message."""
        message = build_message(number, self.name, self.tried)
        self.tried += 1
        await conn.send(message, compress=self.tried % 2 == 0)
        self.sent += 1


@dataclass
class Ledger:
    """One connection, as both ends have seen it."""

    number: int
    client: Side = field(default_factory=lambda: Side("client"))
    server: Side = field(default_factory=lambda: Side("server"))
    faults: list[str] = field(default_factory=list)
    accepted: bool = False
    """Whether the server has accepted it."""
    complaints: list[str] = field(default_factory=list)

    @property
    def is_served(self) -> bool:
        """Whether the server has it, and has not ended it."""
        return self.accepted and self.server.code is None

    @property
    def on_the_way(self) -> int:
        """How many messages have not arrived, in the direction that has more of them."""
        return max(self.client.sent - self.server.received, self.server.sent - self.client.received)

    def take(self, side: Side, message: str | bytes) -> None:
        """Enter a message that this side has received."""
        other = self.server if side is self.client else self.client
        if message != build_message(self.number, other.name, side.received):
            self.complaints.append(f"{side.name}: message {side.received} is another: {message[:80]!r}")
        side.received += 1
        if side.received > other.tried:
            self.complaints.append(f"{side.name}: got a message that nobody sent")

    def judge(self) -> list[str]:
        """Return all that cannot be explained."""
        for side, other in ((self.client, self.server), (self.server, self.client)):
            missing = other.sent - side.received
            if side.code == 1000 and missing:
                self.complaints.append(f"{side.name}: {missing} messages are missing before a Close")
            if side.code not in (None, 1000, 1006):
                self.complaints.append(f"{side.name}: ended with {side.code}")
            if side.code != 1000 and not self.faults:
                self.complaints.append(f"{side.name}: {side.code} {side.cause}, and nobody broke it")
        return self.complaints


class Soak:
    """A server, its clients, and their ledgers.

    :param seconds: how long new connections are made
    :param connections: how many there are at one time
    :param seed: what everything random is drawn from
    :param memory: connect in memory, not over sockets
    :param pause: seconds between two messages of a client, about
    :param patience: seconds that each end has for the other, in all its deadlines
    :param say: is told how it goes
    :param progress: seconds between two such lines
    """

    def __init__(
        self,
        seconds: float,
        connections: int,
        *,
        seed: int = 0,
        memory: bool = False,
        pause: float = 1.0,
        patience: float = 60.0,
        say: Callable[[str], None] = print,
        progress: float = 30.0,
    ) -> None:
        self.seconds = seconds
        self.connections = connections
        self.complaints: list[str] = []
        self.counts: Counter[str] = Counter()
        self.open: dict[int, Ledger] = {}
        self.pace: float = 1.0
        """How much longer all pauses are, because the machine is slow: see :meth:`_keep_pace`."""
        self._seed = seed
        self._pause = pause
        self._times: dict[str, Any] = {
            "ping_interval": patience / 3,
            "ping_timeout": patience,
            "write_timeout": patience,
            "close_timeout": patience,
        }
        self._patience = patience
        self._say = say
        self._progress = progress
        self._next = 0
        self._is_ending = False
        self._listener = MemoryListener() if memory else None
        self.server = Server(
            _Handler,
            Config(
                port=0,
                address="127.0.0.1",
                handshake=HandshakeConfig(timeout=patience / 2),
                max_message_size=2**20,
                **self._times,
            ),
        )

    async def run(self) -> None:
        """Run to the end; :attr:`complaints` is empty when all is well."""
        tasks_before, descriptors_before = running_tasks(), open_descriptors()
        self._start = anyio.current_time()
        self._all_settled = anyio.Event()
        listeners = None if self._listener is None else [self._listener]
        async with anyio.create_task_group() as tasks:
            await tasks.start(partial(self.server.listen, self, listeners=listeners))
            tasks.start_soon(self._report)
            tasks.start_soon(self._keep_pace)
            async with anyio.create_task_group() as clients:
                for slot in range(self.connections):
                    clients.start_soon(self._keep_talking, slot)
            self._is_ending = True
            self._note_if_settled()
            with anyio.move_on_after(2 * self._patience):
                await self._all_settled.wait()
            self._report_now()
            tasks.cancel_scope.cancel()
        for ledger in list(self.open.values()):
            self._settle(ledger)
        await anyio.sleep(0.1)
        for kind, before, now in (
            ("task", tasks_before, running_tasks()),
            ("descriptor", descriptors_before, open_descriptors()),
        ):
            self._say(f"{kind}s: {len(before)} before, {len(now)} after")
            self.complaints += [f"a {kind} is left over: {left}" for left in now - before]

    async def _keep_talking(self, slot: int) -> None:
        """Hold one connection after the other, through a proxy of one's own."""
        dice = random.Random(f"{self._seed} {slot}")
        ledger = Ledger(-1)

        async def reach() -> ByteStream:
            if self._listener is not None:
                return self._listener.connect(capacity=65_536)
            address: Any = self.server.addresses[0]
            return await anyio.connect_tcp(*address)

        def forecast(dice: random.Random) -> Weather:
            ending = dice.choice(_FAULTS) if dice.random() < 0.15 else None
            if ending is not None:
                ledger.faults.append(ending.name)
            return Weather(
                latency=dice.choice([0, 0.01, 0.1]),
                jitter=dice.choice([0, 0.05]),
                bandwidth=dice.choice([1e9, 1e6, 100_000]),
                most=dice.choice([None, None, 5_000, 1_400, 300]),
                ending=ending,
                after=dice.randrange(100, 20_000),
            )

        async with chaos_proxy(reach, up=forecast, down=forecast, seed=dice.randrange(2**40)) as proxy:
            address = None if self._listener is not None else await proxy.listen()
            await anyio.sleep(dice.uniform(0, min(self._patience, self.seconds / 10)))
            while anyio.current_time() - self._start < self.seconds:
                ledger = Ledger(self._next)
                self._next += 1
                self.open[ledger.number] = ledger
                await self._talk(ledger, proxy, address, dice)
                if ledger.server.code is not None:
                    self._settle(ledger)
                    proxy.strike(Ending.RESET)  # what is stalled would wait for ever

    async def _talk(
        self, ledger: Ledger, proxy: ChaosProxy, address: tuple[str, int] | None, dice: random.Random
    ) -> None:
        """Make a connection and hold it until it ends."""
        side = ledger.client
        stream = proxy.connect(65_536) if address is None else await anyio.connect_tcp(*address)
        url = f"ws://localhost/{ledger.number}"
        config = ClientConfig(max_size=2**20, **self._times)
        try:
            async with (
                connect(url, stream=stream, timeout=self._patience, config=config) as client,
                anyio.create_task_group() as tasks,
            ):
                tasks.start_soon(self._write, ledger, client, proxy, dice)
                side.cause = await self._read(ledger, client)
                tasks.cancel_scope.cancel()
            side.code = client.close_code
        except (OSError, anyio.BrokenResourceError, anyio.EndOfStream, HandshakeError) as exc:
            self.counts[f"not opened: {type(exc).__name__}"] += 1

    async def _read(self, ledger: Ledger, client: Conn) -> str:
        """Enter all messages until the connection ends, and tell why it did."""
        try:
            while True:
                ledger.take(ledger.client, await client.receive())
        except ConnectionClosed as exc:
            return f"{exc!r} from {exc.__cause__!r}"

    async def _write(self, ledger: Ledger, client: Conn, proxy: ChaosProxy, dice: random.Random) -> None:
        """Write the client's messages, and close in order; or let something happen."""
        length = dice.randrange(30)
        struck = dice.randrange(length) if length and dice.random() < 0.1 else None
        try:
            for index in range(length):
                if index == struck:
                    ending = dice.choice([Ending.RESET, Ending.TRUNCATE, Ending.BLACK_HOLE, Ending.STALL])
                    ledger.faults.append(f"{ending.name} at message {index}")
                    proxy.strike(ending)
                for _ in range(dice.choice([1, 1, 1, 1, 10])):
                    await ledger.client.send(client, ledger.number)
                await anyio.sleep(dice.uniform(0, 2 * self._pause) * self.pace)
                while ledger.on_the_way > _ON_THE_WAY:  # noqa: ASYNC110 - two ends, one process
                    await anyio.sleep(self._pause)
            await client.send_eof()
        except ConnectionClosed:
            self.counts["ended while writing"] += 1

    def ended(self, ledger: Ledger) -> None:
        """Note that the server's end is done."""
        if ledger.client.code is not None:
            self._settle(ledger)
        self._note_if_settled()

    def _note_if_settled(self) -> None:
        if self._is_ending and not any(ledger.is_served for ledger in self.open.values()):
            self._all_settled.set()

    def _settle(self, ledger: Ledger) -> None:
        """Close a ledger."""
        if self.open.pop(ledger.number, None) is None:
            return
        sides = (ledger.client, ledger.server)
        clean = all(side.code == 1000 for side in sides)
        self.counts["clean" if clean else "broken"] += 1
        self.counts["sent"] += sum(side.sent for side in sides)
        self.counts["received"] += sum(side.received for side in sides)
        for fault in ledger.faults:
            self.counts[f"fault {fault.split()[0]}"] += 1
        for complaint in ledger.judge():
            self.complaints.append(f"connection {ledger.number} {ledger.faults}: {complaint}")
            self._say(f"!! {self.complaints[-1]}")

    async def _keep_pace(self) -> None:
        """Send less while this process does not get the time for it.

        Its two ends and the network between them have their deadlines, which are real time. When the
        machine is busy elsewhere they must not expire for that: each would be a connection that broke by
        itself, which is what the soak looks for.
        """
        while True:
            due = anyio.current_time() + _BEAT
            await anyio.sleep_until(due)
            is_late = anyio.current_time() - due > _LATE
            self.pace = min(16.0, self.pace * 1.25) if is_late else max(1.0, self.pace * 0.95)

    async def _report(self) -> None:
        while True:
            await anyio.sleep(self._progress)
            self._report_now()

    def _report_now(self) -> None:
        counts = self.counts
        _give_back()
        self._say(
            f"{anyio.current_time() - self._start:6.0f} s  {self.server.statistics().connections.open} open, "
            f"{counts['clean']} ended in order, {counts['broken']} broke; "
            f"messages: {counts['sent']} sent, {counts['received']} received; "
            f"{resident() >> 20} MiB, {len(open_descriptors())} descriptors, pace 1/{self.pace:.1f}, "
            f"{len(self.complaints)} unexplained"
        )


class _Handler:
    """The server's end: enters each message in its ledger, and sends up to three for it.

    A Close waits only so long for a handler that is stuck in a write which nobody reads. The write fails
    then, and the messages before the Close are still handed over: nothing is missing.
    """

    def __init__(self, handshake: Handshake, conn: Conn, app: Soak) -> None:
        self.ledger = app.open[int(handshake.path[1:])]
        self.conn = conn
        self.app = app
        self.ledger.accepted = True

    async def client_message(self, data: Any) -> None:
        """Enter a message, and send some."""
        side = self.ledger.server
        self.ledger.take(side, data)
        with contextlib.suppress(ConnectionClosed):
            for _ in range(side.received % 4):
                await side.send(self.conn, self.ledger.number)

    def close(self) -> None:
        """Enter the end."""
        if self.ledger.server.code is not None:
            self.ledger.complaints.append("close was called twice")
        self.ledger.server.code = self.conn.close_code
        self.app.ended(self.ledger)


def _give_back() -> None:
    """Have the allocator give its free memory back to the system, where it can.

    asyncio reads into 256 KiB at a time, of which most reads keep little. The holes are used again, and
    nobody has them; yet without this they are what one sees of the memory, and they hide everything else.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def resident() -> int:
    """Return how many bytes of memory this process has."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


class _Warnings(logging.Handler):
    """Collects what the package warns of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname} {record.getMessage()} {record.exc_info}")


def main() -> int:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--connections", type=int, default=300)
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    parser.add_argument("--pause", type=float, default=4, help="seconds between messages, about")
    parser.add_argument("--patience", type=float, default=60, help="all deadlines; more on a busy machine")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**9)
    args = parser.parse_args()
    warnings = _Warnings()
    logging.getLogger("anyio_ws").addHandler(warnings)
    print(f"{args.connections} connections, {args.minutes} minutes, {args.backend}, --seed {args.seed}")
    soak = Soak(
        args.minutes * 60,
        args.connections,
        seed=args.seed,
        pause=args.pause,
        patience=args.patience,
        say=partial(print, flush=True),
    )
    before = resident()
    anyio.run(soak.run, backend=args.backend)
    gc.collect()
    _give_back()
    print(f"memory: {before >> 20} MiB before, {resident() >> 20} MiB after")
    for name, count in sorted(soak.counts.items()):
        print(f"{count:10} {name}")
    complaints = soak.complaints + [f"in the log: {line}" for line in warnings.lines]
    for complaint in complaints:
        print("UNEXPLAINED", complaint)
    print("all is explained" if not complaints else f"{len(complaints)} things are not explained")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
