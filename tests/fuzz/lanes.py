"""The fast lane against the long way: one script over two sockets, of which only one has the lane.

What the hooks were called with, what the peer has read, and how it ended must be the same, whatever the
peer sends, in whatever pieces, and whatever the hooks do.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio
import anyio.lowlevel

from anyio_ws import ClientConfig, Config, Conn
from anyio_ws.deadlines import Deadlines
from anyio_ws.exceptions import ConnectionClosed
from anyio_ws.lane import NO_LANE
from anyio_ws.protocol import Role
from anyio_ws.sockets import ConnectedSocket, SocketTransport
from anyio_ws.testing import WireOracle, build_frame, settle, virtual_clock

from .source import Source

_ERRORS = (ConnectionClosed, anyio.WouldBlock, UnicodeEncodeError)
_STEPS = 24
_LONG = 100_000  # virtual seconds: longer than all hooks of a run may sleep together
_PLENTY = 100_000_000  # bytes that may wait to be sent, so that nobody is told to wait


class LongWay(socket.socket):
    """A socket whose methods might do anything, and which therefore has no fast lane."""


def lane(data: bytes) -> None:
    """Play a script with the lane and without it.

    :raises AssertionError: when that makes a difference
    """
    backend = "trio" if data[:1] > b"\x7f" else "asyncio"
    played = [
        anyio.run(_play, data, has_lane, backend=backend, backend_options=virtual_clock(backend))
        for has_lane in (True, False)
    ]
    (*lists, code), (*other_lists, other_code) = played
    assert code == other_code, played
    for each, other in zip(lists, other_lists, strict=True):
        # How far a connection had come before it was cut is nobody's promise.
        size = min(len(each), len(other)) if code == 1006 else None
        assert each[:size] == other[:size], played


async def _play(data: bytes, has_lane: bool) -> tuple[list[Any], list[Any], list[Any], object]:
    source = Source(data)
    flags = source.byte()
    ours, theirs = socket.socketpair()
    if flags & 2:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2_304)
    theirs.setblocking(False)
    limits: dict[str, Any] = {"outbox_size": 3_000 if flags & 16 else _PLENTY, "ping_interval": None}
    config: Any = (
        ClientConfig(max_size=5_000, **limits) if flags & 1 else Config(max_message_size=5_000, **limits)
    )
    with theirs:
        async with anyio.create_task_group() as tasks:
            deadlines = Deadlines()
            tasks.start_soon(deadlines.run)
            sock = ours if has_lane else LongWay(fileno=ours.detach())
            transport = SocketTransport(
                ConnectedSocket(sock), deadlines, outbox_size=config.outbox_size, write_timeout=20
            )
            assert has_lane is (transport.lane is not NO_LANE)
            role = Role.CLIENT if flags & 1 else Role.SERVER
            end = _End(Conn(role, transport, deadlines, config), theirs, flags)
            end.conn.open(None)
            tasks.start_soon(end.dispatch)
            await settle()
            for step in end.steps(source):
                with contextlib.suppress(OSError):
                    step()
                await settle()
            await end.read_all()
            tasks.start_soon(end.keep_reading)
            await anyio.sleep(_LONG)  # now every hook has had its time
            with contextlib.suppress(OSError):
                theirs.shutdown(socket.SHUT_WR)
            await settle()
            end.conn.close_nowait(1000)
            await end.conn.wait_gone()
            await end.read_all()
            tasks.cancel_scope.cancel()
    if end.conn.close_code != 1006:
        end.oracle.check()
    if flags & 16:  # how much the system takes depends on the pieces, and who has to wait on that
        return end.calls, [], [], end.conn.close_code
    # A Pong goes before what waits: only among themselves are the two kinds in order.
    messages = [message for message in end.oracle.messages if message[0] < 8]
    control = [message for message in end.oracle.messages if message[0] >= 8]
    return end.calls, messages, control, end.conn.close_code


class _End:
    """A connection, what its hooks do, and the peer.

    :ivar calls: what the hooks were called with
    :ivar oracle: the judge of what the peer has read
    """

    def __init__(self, conn: Conn, peer: socket.socket, flags: int) -> None:
        self.conn = conn
        self.calls: list[Any] = []
        self._peer = peer
        self._flags = flags
        self.oracle = WireOracle(masked=bool(flags & 1))
        self._key = None if flags & 1 else b"mask"

    # --- the user's side ------------------------------------------------------------------------------

    async def dispatch(self) -> None:
        """Have the hooks called, and note how that ends."""
        by_data = bool(self._flags & 4)
        hook: Callable[[Any], Any] = self._hook if self._flags & 8 else self._slow_hook
        try:
            await self.conn.dispatch_all(hook, by_data=by_data)
        except (KeyError, ConnectionClosed):
            self.conn.fail(1011)

    def _hook(self, item: Any) -> Awaitable[None] | None:
        """Do what the message says; most often an echo."""
        data = getattr(item, "data", item)
        self.calls.append(data)
        kind = (ord(data[0]) if isinstance(data, str) else data[0]) % 16 if data else 0
        if kind == 13:
            raise KeyError(data)
        if kind == 14:
            self.conn.close_nowait(4000)
        elif kind == 15:
            self.conn.abort()
        elif kind == 12:
            self.write(data * 700)
        elif kind > 2:
            self.write(data)
        return self._sleep_and_write(data) if kind in (10, 11) else None

    async def _slow_hook(self, item: Any) -> None:
        waits = self._hook(item)
        data = getattr(item, "data", item)
        if waits is not None:
            await waits
        elif len(data) % 4 == 3:
            with contextlib.suppress(*_ERRORS):
                await self.conn.send(data)

    async def _sleep_and_write(self, data: Any) -> None:
        await anyio.lowlevel.checkpoint()
        self.write(data)
        if len(data) > 3:
            await anyio.sleep(0.7)  # never until the same moment as a deadline
            with contextlib.suppress(*_ERRORS):
                await (self.conn.write(data) if isinstance(data, str) else self.conn.write_bin(data))

    def write(self, data: Any) -> None:
        """Write a message if that is possible."""
        with contextlib.suppress(*_ERRORS):
            self.conn.write_nowait(data)

    # --- the peer's side ------------------------------------------------------------------------------

    def steps(self, source: Source) -> Iterator[Callable[[], object]]:
        """Draw what happens, step by step."""
        kinds: list[Callable[[], Callable[[], object]]] = [
            lambda: self.read,
            lambda: self._sending(b"".join(self._frame(source) for _ in range(source.byte() % 8 + 1))),
            lambda: self._sending(self._frame(source)),
            lambda: self._sending(self._frame(source)[: source.byte()]),
            lambda: self._sending(source.take(source.byte() % 8)),
            lambda: self._sending(self._frame(source) * (source.byte() + 200)),
            lambda: self._writing(source.take(source.byte() % 200).decode("latin-1")),
            lambda: self._writing(source.take(source.byte() % 16) * 2 * source.byte()),
        ]
        for _ in range(_STEPS):
            if source.is_empty:
                return
            yield kinds[source.byte() % len(kinds)]()

    def _frame(self, source: Source) -> bytes:
        first, size = source.byte(), source.byte()
        payload = source.take(size % 32) * (100 if size > 240 else 1)
        opcode = (1, 2, 1, 2, 9, 10, 1, 2)[first % 8] if first < 200 else first % 16
        return build_frame(opcode, payload, fin=first < 240, key=self._key)

    def _sending(self, data: bytes) -> Callable[[], object]:
        return lambda: self._peer.send(data)

    def _writing(self, data: str | bytes) -> Callable[[], object]:
        return lambda: self.write(data)

    def read(self) -> bool:
        """Read all that is there, and tell whether that was anything."""
        is_more = False
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            while got := self._peer.recv(65_536):
                self.oracle.feed(got)
                is_more = True
        return is_more

    async def keep_reading(self) -> None:
        """Read whenever there is something, as long as this runs."""
        while True:
            await anyio.wait_readable(self._peer)
            if not self.read():
                return

    async def read_all(self) -> None:
        """Read until nothing more comes."""
        await settle()
        while self.read():
            await settle()
