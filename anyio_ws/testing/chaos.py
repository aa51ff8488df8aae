"""A proxy that is a bad network: slow, narrow, bumpy, deaf, and gone at the worst moment.

It stands between a client and a server, on loopback sockets or in memory. Everything it does at random
it draws from a seed, for each connection and direction on its own; in memory and under a virtual clock
every run is therefore the same.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from enum import Enum

import anyio
from anyio.abc import ByteStream, Listener, SocketAttribute, SocketStream, TaskGroup
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from ..tasks import background
from .faults import reset
from .memory import memory_stream_pair

_STREAM_ERRORS = (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError)
_PIECES_ON_THE_WAY = 1_024
_BEHIND = 0.25  # seconds; what is overdue by more is delivered together, so much at a time:
_JOINED = 65_536  # bytes


class Ending(Enum):
    """What becomes of a direction, or of the whole connection."""

    BLACK_HOLE = "this direction swallows everything from then on, and nobody is told"
    STALL = "this direction is not read any more, so that its sender cannot send"
    HALF_CLOSE = "this direction ends in order; the other goes on"
    TRUNCATE = "both ends get an orderly end of the stream, wherever they are"
    RESET = "both ends get a reset"


@dataclass(frozen=True, kw_only=True)
class Weather:
    """How one direction of a connection is treated; by default, well.

    :ivar latency: seconds that everything takes
    :ivar jitter: further seconds, at most, at random for each piece; pieces stay in order
    :ivar bandwidth: bytes per second
    :ivar most: bytes in a piece at most; the real size is drawn from 1 to this. ``None`` cuts nothing.
    :ivar ending: what happens in the end, ``None`` for nothing
    :ivar after: how many bytes of this direction are carried before that
    """

    latency: float = 0.0
    jitter: float = 0.0
    bandwidth: float = math.inf
    most: int | None = None
    ending: Ending | None = None
    after: int = 0


Forecast = Weather | Callable[[random.Random], Weather]
_FAIR = Weather()


class ChaosProxy:
    """Stands between clients and a server; :func:`chaos_proxy` opens one.

    :ivar up: the weather from client to server, for connections made from now on: a :class:`Weather`,
        or a function that draws one from a ``random.Random``
    :ivar down: the weather from server to client
    :ivar connections: how many connections there were
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[ByteStream]],
        up: Forecast,
        down: Forecast,
        seed: int,
        tasks: TaskGroup,
    ) -> None:
        self.up = up
        self.down = down
        self.connections: int = 0
        self._connect = connect
        self._seed = seed
        self._links: set[_Link] = set()
        self._tasks = tasks

    def connect(self, capacity: float = math.inf) -> ByteStream:
        """Connect in memory, and return the client's end.

        :param capacity: unread bytes at which sending waits, in each direction
        """
        ours, theirs = memory_stream_pair(capacity)
        self._tasks.start_soon(self._serve, theirs)
        return ours

    async def listen(self) -> tuple[str, int]:
        """Listen on a free port of the loopback interface, and return host and port."""
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        self._tasks.start_soon(self._accept_all, listener)
        address = listener.extra(SocketAttribute.local_address)
        return str(address[0]), int(address[1])

    def strike(self, ending: Ending) -> None:
        """Let all connections that there are now come to an ending, in both directions.

        :raises ValueError: for ``HALF_CLOSE``, which is about one direction
        """
        if ending is Ending.HALF_CLOSE:
            raise ValueError("ending: HALF_CLOSE is about one direction; give it to that one's weather")
        for link in self._links:
            for direction in link.directions:
                direction.end(ending)

    async def _accept_all(self, listener: Listener[SocketStream]) -> None:
        async with listener:
            await listener.serve(self._serve)

    async def _serve(self, client: ByteStream) -> None:
        number, self.connections = self.connections, self.connections + 1
        try:
            server = await self._connect()
        except _STREAM_ERRORS:
            await reset(client)
            return
        link = _Link(client, server)
        for name, forecast, way in (("up", self.up, link.up), ("down", self.down, link.down)):
            way.random = random.Random(f"{self._seed} {number} {name}")
            way.weather = forecast if isinstance(forecast, Weather) else forecast(way.random)
        self._links.add(link)
        try:
            await link.run()
        finally:
            self._links.discard(link)


@contextlib.asynccontextmanager
async def chaos_proxy(
    connect: Callable[[], Awaitable[ByteStream]],
    *,
    up: Forecast = _FAIR,
    down: Forecast = _FAIR,
    seed: int = 0,
) -> AsyncIterator[ChaosProxy]:
    """Open a proxy to a server, for the time of a block.

    ::

        async with chaos_proxy(lambda: anyio.connect_tcp(*address), up=Weather(most=3)) as proxy:
            host, port = await proxy.listen()
            async with anyio_ws.connect(f"ws://{host}:{port}/") as client:
                ...

    :param connect: connects to the server, for each connection of a client
    :param up: the weather from client to server: a :class:`Weather`, or a function that draws one for
        each connection from a ``random.Random``
    :param down: the weather from server to client
    :param seed: what everything random is drawn from

    At the end of the block every connection is cut. What the block raises is raised as it is.
    """
    async with background() as tasks:
        yield ChaosProxy(connect, up, down, seed, tasks)


class _Link:
    """One connection of a client, carried to the server."""

    def __init__(self, client: ByteStream, server: ByteStream) -> None:
        self.up = _Direction(self, client, server)
        self.down = _Direction(self, server, client)
        self.directions = (self.up, self.down)
        self.scope = anyio.CancelScope()
        self.ending: Ending | None = None
        self._streams = (client, server)

    async def run(self) -> None:
        """Carry both ways until both have ended, or something ends them."""
        try:
            with self.scope:
                async with anyio.create_task_group() as tasks:
                    for direction in self.directions:
                        tasks.start_soon(direction.run)
        finally:
            with anyio.CancelScope(shield=True):
                for stream in self._streams:
                    await (reset(stream) if self.ending is Ending.RESET else stream.aclose())

    def cut(self, ending: Ending) -> None:
        """End both directions at once."""
        self.ending = self.ending or ending
        self.scope.cancel()


class _Direction:
    """One direction of a connection.

    What is read waits until it is due, in a channel; ``b""`` in it stands for the end.
    """

    def __init__(self, link: _Link, source: ByteStream, sink: ByteStream) -> None:
        self.weather = Weather()
        self.random = random.Random(0)
        self._link = link
        self._source = source
        self._sink = sink
        self._carried = 0
        self._free_at = -math.inf  # when the bandwidth is free for another piece
        self._last_due = -math.inf
        self._ending: Ending | None = None
        self._receiving = anyio.CancelScope()

    async def run(self) -> None:
        """Carry until the end."""
        send, receive = anyio.create_memory_object_stream[tuple[float, bytes]](_PIECES_ON_THE_WAY)
        with receive, send:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._write, receive)
                try:
                    await self._read(send)
                except _STREAM_ERRORS:
                    self._link.cut(Ending.RESET)
                send.close()

    def end(self, ending: Ending) -> None:
        """Come to an ending, now."""
        if ending in (Ending.TRUNCATE, Ending.RESET):
            self._link.cut(ending)
        self._ending = self._ending or ending
        if ending is Ending.STALL:
            self._receiving.cancel()

    async def _read(self, send: MemoryObjectSendStream[tuple[float, bytes]]) -> None:
        """Read, cut into pieces, and say when each is due."""
        await self._check_end(send)
        while True:
            data = b""
            try:
                with anyio.CancelScope() as self._receiving:
                    data = await self._source.receive()
            except anyio.EndOfStream:
                if self._ending is None:
                    await _put(send, self._due(0), b"")
                return
            if self._ending is Ending.STALL:
                await anyio.sleep_forever()
            while data and self._ending is None:
                size = min(len(data), self._size(), self._left())
                await _put(send, self._due(size), data[:size])
                self._carried += size
                data = data[size:]
                await self._check_end(send)

    async def _check_end(self, send: MemoryObjectSendStream[tuple[float, bytes]]) -> None:
        """See whether so much was carried that the weather's ending has come."""
        ending = self.weather.ending
        if ending is None or self._ending is not None or self._carried < self.weather.after:
            return
        self._ending = ending
        if ending is Ending.STALL:
            await anyio.sleep_forever()
        if ending is not Ending.BLACK_HOLE:
            await _put(send, self._due(0), b"")

    def _size(self) -> int:
        return 65_536 if self.weather.most is None else self.random.randint(1, self.weather.most)

    def _left(self) -> int:
        return 65_536 if self.weather.ending is None else max(1, self.weather.after - self._carried)

    def _due(self, size: int) -> float:
        """Tell when a piece that was read now arrives."""
        weather, now = self.weather, anyio.current_time()
        self._free_at = max(self._free_at, now) + size / weather.bandwidth
        due = self._free_at + weather.latency + self.random.uniform(0, weather.jitter)
        self._last_due = max(self._last_due, due)
        return self._last_due

    async def _write(self, receive: MemoryObjectReceiveStream[tuple[float, bytes]]) -> None:
        async for first in receive:
            due, data = await self._catch_up(first, receive)
            if due > anyio.current_time():
                await anyio.sleep_until(due)
            if data:
                await self._deliver(data)
            elif self._ending in (Ending.TRUNCATE, Ending.RESET):
                self._link.cut(self._ending)
            else:
                with contextlib.suppress(*_STREAM_ERRORS):
                    await self._sink.send_eof()

    async def _catch_up(
        self, first: tuple[float, bytes], receive: MemoryObjectReceiveStream[tuple[float, bytes]]
    ) -> tuple[float, bytes]:
        """Deliver together what is long overdue, and return the next piece.

        On a busy machine each piece would wait for its turn in the event loop, one after the other, and
        the way would take minutes. A system joins what nobody has read, too.
        """
        overdue: list[bytes] = []
        (due, data), size = first, 0
        while data and size < _JOINED and anyio.current_time() - due > _BEHIND:
            if not receive.statistics().current_buffer_used:
                break
            overdue.append(data)
            size += len(data)
            due, data = receive.receive_nowait()
        if overdue:
            await self._deliver(b"".join(overdue))
        return due, data

    async def _deliver(self, data: bytes) -> None:
        try:
            await self._sink.send(data)
        except _STREAM_ERRORS:
            self._link.cut(Ending.RESET)


async def _put(send: MemoryObjectSendStream[tuple[float, bytes]], due: float, data: bytes) -> None:
    """Put a piece on its way; that takes no turn of the event loop while there is room."""
    try:
        send.send_nowait((due, data))
    except anyio.WouldBlock:
        await send.send((due, data))
