"""Messages that a client masks where they are: what is sent, what is left of them, what is copied."""

from __future__ import annotations

import tracemalloc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import pytest

from anyio_ws import Client, Config, ConnectionClosed, LocalProtocolError, Opcode, Server, connect, testing
from anyio_ws.framing import BUILD
from anyio_ws.protocol import Role

from . import support
from .certificates import client_context, server_context
from .memory import connection
from .support import BINARY, PING, Peer, listening, no_hang, settle

no_surprises = support.no_surprises
pytestmark = pytest.mark.usefixtures("no_surprises")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"bytes", "a writable buffer without gaps is needed"),
        (memoryview(b"bytes"), "a writable buffer without gaps is needed"),
        (memoryview(bytearray(b"bytes"))[::2], "a writable buffer without gaps is needed"),
        ("text", "a writable buffer is needed, not str"),
        (None, "a writable buffer is needed, not NoneType"),
    ],
)
async def test_data_that_cannot_be_masked_in_place_is_a_type_error(value: Any, message: str) -> None:
    """``bytes`` are never changed; the error says what is needed, and nothing is sent. [K10]"""
    async with connection(Role.CLIENT) as link:
        with pytest.raises(TypeError, match=f"^data: {message}"):
            await link.conn.write_bin(value, mask_in_place=True)
        assert link.stream.sent == []


async def test_server_cannot_mask_in_place() -> None:
    """A server's frames are not masked; the setting would do nothing, and is refused. [K10]"""
    data = bytearray(b"data")
    async with connection(Role.SERVER) as link:
        with pytest.raises(ValueError, match=r"^mask_in_place: a server's frames are not masked"):
            await link.conn.write_bin(data, mask_in_place=True)
        assert link.stream.sent == []
    assert data == b"data"


@asynccontextmanager
async def open_client(**options: Any) -> AsyncIterator[tuple[Client, Peer]]:
    """Connect a client in memory to a peer that accepts compression."""
    ours, theirs = testing.memory_stream_pair()
    peer = Peer(theirs, is_client=False)
    async with no_hang(), anyio.create_task_group() as tasks:
        tasks.start_soon(peer.accept, {"Sec-WebSocket-Extensions": "permessage-deflate"})
        async with connect("ws://localhost/", stream=ours, **options) as client:
            yield client, peer
            await theirs.aclose()


async def test_client_masks_in_place_with_a_fresh_key_each_time() -> None:
    """The message is uncompressed on the wire, the buffer is scrambled, and other data is untouched. [K10]"""
    async with open_client() as (client, peer):
        keys = set()
        for _ in range(3):
            data = bytearray(b"x" * 5_000)
            await client.write_bin(data, mask_in_place=True)
            frame = await peer.frame()
            assert (frame.opcode, frame.rsv, frame.payload) == (BINARY, 0, b"x" * 5_000)
            assert data != b"x" * 5_000
            keys.add(frame.key)
        assert len(keys) == 3
        kept = bytearray(b"y" * 5_000)
        await client.write_bin(kept, compress=False)
        assert kept == b"y" * 5_000
        assert (await peer.frame()).payload == kept


async def test_data_may_be_used_again_when_the_write_has_returned() -> None:
    """What waits to be sent is not looked at in the caller's memory. [K10, C6]"""
    async with connection(Role.CLIENT, capacity=1, outbox_size=2**20) as link:
        data = bytearray(b"1" * 300)
        await link.conn.write_bin(data, mask_in_place=True)
        data[:] = b"0" * 300
        await link.conn.write_ping(b"end")
        link.listen()
        await settle()
        assert link.judge() == [(BINARY, b"1" * 300), (PING, b"end")]


async def test_data_is_scrambled_if_and_only_if_it_was_sent() -> None:
    """A write that is cancelled, or refused, leaves its data as it was. [K10, C6]"""
    async with connection(Role.CLIENT, capacity=1, outbox_size=10) as link:
        await link.conn.write_bin(b"x" * 100)
        data = bytearray(b"kept")
        async with anyio.create_task_group() as tasks:

            async def write() -> None:
                await link.conn.write_bin(data, mask_in_place=True)

            tasks.start_soon(write)
            await settle()
            tasks.cancel_scope.cancel()
        assert data == b"kept"
        link.listen()
        await settle()
        await link.conn.write_frame(Opcode.BINARY, b"begun", fin=False)
        with pytest.raises(LocalProtocolError):
            await link.conn.write_bin(data, mask_in_place=True)
        await link.conn.write_frame(Opcode.CONTINUATION)
        await settle()
        assert link.judge() == [(BINARY, b"x" * 100), (BINARY, b"begun")]
        link.conn.abort()
        with pytest.raises(ConnectionClosed):
            await link.conn.write_bin(data, mask_in_place=True)
    assert data == b"kept"


class Echo:
    """A handler that tells how much it got."""

    def __init__(self, conn: Any) -> None:
        self.conn = conn

    async def client_message(self, data: bytes) -> None:
        await self.conn.write(f"{len(data)} {len(set(data))}")


@pytest.mark.parametrize("tls", [False, True])
async def test_messages_of_every_size_arrive_over_sockets(tls: bool) -> None:
    """Masked in place, over plain sockets and TLS, whatever the kernel takes at once. [K10]"""
    ours, theirs = (server_context(), client_context()) if tls else (None, False)
    server = Server(Echo, Config(port=0, tls=ours, max_message_size=2**22))
    async with listening(server) as ((host, port),):
        url = f"{'wss' if tls else 'ws'}://localhost:{port}/"
        assert host
        async with connect(url, tls=theirs, outbox_size=2**23) as client:
            sizes = [1, 126, 70_000, 2**22, 5]
            for size in sizes:
                await client.write_bin(bytearray(b"z" * size), mask_in_place=True)
            assert [await client.receive() for _ in sizes] == [f"{size} 1" for size in sizes]


class Reluctant:
    """A socket whose ``sendmsg`` takes only a few bytes."""

    def __init__(self, sock: Any, takes: int) -> None:
        self._socket = sock
        self._takes = takes

    def sendmsg(self, buffers: tuple[Any, ...]) -> int:
        if not self._takes:
            raise BlockingIOError
        return int(self._socket.send(b"".join(buffers)[: self._takes]))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)


@pytest.mark.parametrize("takes", [0, 1, 7, 8, 9, 100])
async def test_what_the_kernel_does_not_take_is_sent_later(takes: int) -> None:
    """Wherever it stops, in the header or behind it, the rest follows from a copy. [K10]"""
    server = Server(Echo, Config(port=0))
    async with listening(server) as ((host, port),), connect(f"ws://{host}:{port}/") as client:
        transport: Any = client._transport
        transport._socket = Reluctant(transport._socket, takes)
        data = bytearray(b"z" * 1_000)
        await client.write_bin(data, mask_in_place=True)
        data[:] = b"0" * 1_000
        assert await client.receive() == "1000 1"


@pytest.mark.skipif(BUILD == "python", reason="masks by way of a copy; the compiled build does not")
@pytest.mark.parametrize(("in_place", "copies"), [(True, 0), (False, 2)])
async def test_masking_in_place_makes_no_copy(in_place: bool, copies: int) -> None:
    """A plain socket is given the caller's memory; without it there are a copy and its frame. [K10]"""
    size = 60_000  # what a socket takes at once
    peaks = []
    server = Server(Echo, Config(port=0))
    async with AsyncExitStack() as stack:
        ((host, port),) = await stack.enter_async_context(listening(server))
        url = f"ws://{host}:{port}/"
        client = await stack.enter_async_context(connect(url, compression=None))
        for _ in range(2):
            data = bytearray(b"z" * size)
            tracemalloc.start()
            try:
                await client.write_bin(data, mask_in_place=in_place)
                peaks.append(tracemalloc.get_traced_memory()[1])
            finally:
                tracemalloc.stop()
            assert await client.receive() == f"{size} 1"
    assert copies * size <= peaks[-1] <= (copies + 0.5) * size
