"""A server and a way to it: in memory, over the package's own sockets, over AnyIO's, over TLS.

What must hold on every transport is tested through :func:`arena`, and each way to a server is one line in
:data:`WAYS`.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from typing import Any, NamedTuple

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import ByteStream, SocketAttribute, TaskGroup
from anyio.streams.tls import TLSStream

from anyio_ws import Config, Conn, Handshake, Server
from anyio_ws.binding import Acceptor
from anyio_ws.testing import MemoryListener

from ..certificates import client_context, server_context
from ..support import Peer, no_hang

Connect = Callable[[], Awaitable[ByteStream]]


class Diary(list[Any]):
    """A list that one can wait for."""

    async def wait(self, size: int = 1) -> None:
        """Wait until so much is in it."""
        while len(self) < size:
            self._more = anyio.Event()
            await self._more.wait()

    def append(self, item: Any) -> None:
        """Append an item, and wake who waits."""
        super().append(item)
        more: anyio.Event | None = getattr(self, "_more", None)
        if more is not None:
            more.set()


class Arena(NamedTuple):
    """A server that listens, and the way to it."""

    server: Server
    connect: Connect
    tasks: TaskGroup

    async def peer(self) -> Peer:
        """Connect, and say nothing."""
        return Peer(await self.connect())

    async def open(self, path: str = "/") -> Peer:
        """Connect, and do the opening handshake."""
        return await self.open_with(path, {})

    async def open_with(self, path: str, headers: Mapping[str, str]) -> Peer:
        """Do it with further headers."""
        peer = await self.peer()
        await peer.open(path, headers)
        return peer


class Way(NamedTuple):
    """How a server listens, and how one connects to it."""

    config: Callable[[Config], Config]
    listeners: Callable[[], Awaitable[list[Acceptor] | None]]
    connector: Callable[[Server, list[Acceptor] | None], Connect]


async def _memory() -> list[Acceptor]:
    return [MemoryListener()]


async def _own_sockets() -> None:
    return None


async def _anyio_sockets() -> list[Acceptor]:
    listeners: list[Any] = list((await anyio.create_tcp_listener(local_host="127.0.0.1")).listeners)
    return listeners


def _to_memory(server: Server, listeners: list[Acceptor] | None) -> Connect:
    assert listeners
    (listener,) = listeners
    assert isinstance(listener, MemoryListener)

    async def connect() -> ByteStream:
        # Not unbounded: a peer that does not read is to be noticed, as on a socket.
        return listener.connect(capacity=65_536)

    return connect


def _to_socket(server: Server, listeners: list[Acceptor] | None) -> Connect:
    async def connect() -> ByteStream:
        if listeners is None:
            address: Any = server.addresses[0]
        else:
            address = listeners[0].extra(SocketAttribute.local_address, None)
        return await anyio.connect_tcp(address[0], address[1])

    return connect


def _to_tls(server: Server, listeners: list[Acceptor] | None) -> Connect:
    async def connect() -> ByteStream:
        stream = await _to_socket(server, listeners)()
        return await TLSStream.wrap(
            stream, hostname="localhost", ssl_context=tls_contexts()[1], standard_compatible=False
        )

    return connect


@cache
def tls_contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Make a server's context, and a client's that trusts it."""
    return server_context(), client_context()


def _as_it_is(config: Config) -> Config:
    return config


def _with_tls(config: Config) -> Config:
    return replace(config, tls=tls_contexts()[0])


WAYS = {
    "memory": Way(_as_it_is, _memory, _to_memory),
    "sockets": Way(_as_it_is, _own_sockets, _to_socket),
    "streams": Way(_as_it_is, _anyio_sockets, _to_socket),
    "tls": Way(_with_tls, _own_sockets, _to_tls),
}

every_way = pytest.mark.parametrize("way", WAYS)
"""Run the test over each transport."""


@contextlib.asynccontextmanager
async def arena(
    way: str, handler: Callable[..., Any], app: object = None, config: Config | None = None
) -> AsyncIterator[Arena]:
    """Serve during a block; at its end the server is stopped and every stream to it closed."""
    how = WAYS[way]
    server = Server(handler, how.config(replace(config or Config(), port=0)))
    listeners = await how.listeners()
    async with no_hang(), anyio.create_task_group() as tasks:
        await tasks.start(partial(server.listen, app, listeners=listeners))
        connect = how.connector(server, listeners)
        streams: list[ByteStream] = []

        async def connect_and_keep() -> ByteStream:
            streams.append(await connect())
            return streams[-1]

        try:
            yield Arena(server, connect_and_keep, tasks)
        finally:
            server.stop()
            with anyio.CancelScope(shield=True):
                for stream in streams:
                    await anyio.aclose_forcefully(stream)


class Echo:
    """Echoes everything; *app*, when it is a list, gets the close code of each connection at its end."""

    def __init__(self, handshake: Handshake, conn: Conn, app: Any) -> None:
        self.path = handshake.path
        self.conn = conn
        self.app = app

    async def client_message(self, data: Any) -> None:
        """Echo it."""
        await self.conn.send(data)

    def close(self) -> None:
        """Note how it ended."""
        if isinstance(self.app, list):
            self.app.append(self.conn.close_code)


@contextlib.asynccontextmanager
async def bystander(place: Arena) -> AsyncIterator[Diary]:
    """Have a connection echo one message after the other during a block, each of which must come back.

    The block gets the list of what has come back so far, and must have left time for some of it.
    """
    echoed = Diary()
    peer = await place.open()

    async def echo() -> None:
        while True:
            number = len(echoed)
            await peer.send_frame(0x1, b"%d" % number)
            frame = await peer.frame()
            while frame.opcode == 0x9:  # keepalive of the server
                await peer.send_frame(0xA, frame.payload)
                frame = await peer.frame()
            assert (frame.opcode, frame.payload) == (0x1, b"%d" % number)
            echoed.append(number)
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(echo)
        yield echoed
        tasks.cancel_scope.cancel()
    assert echoed
