"""A message written like a file: what is sent, and when, and what its memory is."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import anyio
import pytest

from anyio_ws import (
    BuffersConfig,
    Client,
    Config,
    Conn,
    LocalProtocolError,
    MessageType,
    Opcode,
    connect,
    testing,
)
from anyio_ws.handler import FunctionFactory

from . import support
from .memory import connection, judge
from .support import BINARY, TEXT, Peer, Serving, no_hang, serving, settle

no_surprises = support.no_surprises
pytestmark = pytest.mark.usefixtures("no_surprises")


class End(NamedTuple):
    """A server, a connection of it, and its peer."""

    served: Serving
    conn: Conn
    peer: Peer


@asynccontextmanager
async def open_end(**fields: Any) -> AsyncIterator[End]:
    """Serve, and open a connection."""
    conns: list[Conn] = []

    async def handler(conn: Conn) -> None:
        conns.append(conn)
        await conn.wait_gone()

    async with serving(FunctionFactory(handler), config=Config(**fields), leave=True) as served:
        peer = await served.open()
        await settle()
        yield End(served, conns[0], peer)


async def sent(peer: Peer) -> list[tuple[int, bytes]]:
    """Return the messages that a server has sent so far."""
    await settle()
    while isinstance(peer.stream, testing.MemoryStream) and peer.stream._incoming.data:
        peer.received += await peer.stream.receive()
    messages = judge(bytes(peer.received), masked=False)
    peer.received.clear()
    return messages


async def test_nothing_is_sent_before_flush() -> None:
    """Writing is synchronous, and one flush is one message. [C4]"""
    async with open_end() as (_, conn, peer):
        async with conn.write_buffer(MessageType.TEXT) as wb:
            assert wb.write("hello ") == 6
            assert wb.write("wörld") == 5
            assert await sent(peer) == []
            await wb.flush()
            assert await sent(peer) == [(TEXT, "hello wörld".encode())]
        assert await sent(peer) == []


async def test_print_and_json_write_to_it() -> None:
    """Whatever writes text to a file writes a message. [C4]"""
    async with open_end() as (_, conn, peer), conn.write_buffer() as wb:
        print("line", 1, file=wb)
        json.dump({"a": [1, "é"]}, wb)
        await wb.flush()
        assert await sent(peer) == [(TEXT, b'line 1\n{"a": [1, "\\u00e9"]}')]


async def test_binary_message_takes_bytes_and_text() -> None:
    """Bytes are written as they are, text as UTF-8. [C4]"""
    async with open_end() as (_, conn, peer), conn.write_buffer(MessageType.BINARY) as wb:
        wb.write(b"\xff\x00")
        wb.write(bytearray(b"ab"))
        wb.write(memoryview(b"0123")[::2])
        wb.write("é")
        await wb.flush()
        assert await sent(peer) == [(BINARY, b"\xff\x00ab02" + "é".encode())]


async def test_leaving_without_flush_discards() -> None:
    """What was not flushed is not sent, whether the block ends or raises. [C4]"""
    async with open_end() as (_, conn, peer):
        async with conn.write_buffer() as wb:
            wb.write("forgotten")
        with pytest.raises(KeyError):
            async with conn.write_buffer() as wb:
                wb.write("half")
                raise KeyError
        async with conn.write_buffer() as wb:
            wb.write("sent")
            await wb.flush()
            wb.write("forgotten")
        assert await sent(peer) == [(TEXT, b"sent")]


async def test_each_flush_sends_a_message_of_what_was_written_since() -> None:
    """Nothing written, nothing sent; an empty text that was written is an empty message. [C4]"""
    async with open_end() as (_, conn, peer), conn.write_buffer() as wb:
        await wb.flush()
        for text in ("one", "", "three"):
            wb.write(text)
            await wb.flush()
            await wb.flush()
        assert await sent(peer) == [(TEXT, b"one"), (TEXT, b""), (TEXT, b"three")]


async def test_text_written_as_bytes_must_be_utf8_as_a_whole() -> None:
    """A character may be cut between two writes; what is no text is refused, and nothing is sent. [C4]"""
    async with open_end() as (_, conn, peer), conn.write_buffer() as wb:
        heart = "\N{BLACK HEART SUIT}".encode()
        wb.write(heart[:1])
        wb.write(heart[1:])
        await wb.flush()
        wb.write(heart[:1])
        wb.write("x")
        with pytest.raises(UnicodeDecodeError):
            await wb.flush()
        assert await sent(peer) == [(TEXT, heart)]


async def test_it_can_be_used_only_inside_of_its_block() -> None:
    """Before and after it, writing and flushing are errors. [C4]"""
    async with open_end() as (_, conn, peer):
        wb = conn.write_buffer()
        for _ in range(2):
            with pytest.raises(ValueError, match=r"^write_buffer: .* only inside"):
                wb.write("x")
            with pytest.raises(ValueError, match=r"^write_buffer: .* only inside"):
                await wb.flush()
            async with wb:
                pass
        assert await sent(peer) == []


@pytest.mark.parametrize("value", [MessageType.CLOSE, MessageType.PING, 0, None, "TEXT"])
async def test_only_text_and_binary_messages_can_be_written(value: Any) -> None:
    """Another type is refused where the buffer is made. [C4]"""
    async with connection() as link:
        with pytest.raises(ValueError, match=r"^message_type: MessageType.TEXT or .BINARY is needed"):
            link.conn.write_buffer(value)


@pytest.mark.parametrize("pool", [None, 2])
async def test_its_memory_is_of_the_pools_and_grows_past_them(pool: int | None) -> None:
    """It takes a shared buffer, then a larger one, then fresh memory, and gives all of it back. [C4]"""
    buffers = BuffersConfig(pool=pool, size=100, large_count=1, large_size=1_000)
    async with open_end(buffers=buffers, compression=None) as (served, conn, peer):
        async with conn.write_buffer(MessageType.BINARY) as wb:
            before = served.server.statistics().buffers
            assert before.small.in_use + before.large.in_use == 0
            wb.write(b"x" * 90)
            found = served.server.statistics().buffers
            assert (found.small if pool else found.large).in_use == 1
            wb.write(b"x" * 900)
            found = served.server.statistics().buffers
            assert (found.small.in_use, found.large.in_use) == (0, 1)
            wb.write(b"x" * 9_000)
            found = served.server.statistics().buffers
            assert (found.small.in_use, found.large.in_use, found.large.fallback) == (0, 0, 1)
            await wb.flush()
            assert await sent(peer) == [(BINARY, b"x" * 9_990)]
        async with conn.write_buffer() as wb:
            wb.write("again")
        found = served.server.statistics().buffers
        assert (found.small.in_use, found.large.in_use) == (0, 0)
        assert (found.small if pool else found.large).reused == 1


async def test_flush_waits_for_room_and_loses_nothing_when_cancelled() -> None:
    """A flush that waits has sent nothing, and can be tried again. [C4, C6]"""
    async with connection(capacity=1, outbox_size=10, compression=None) as link:
        await link.conn.write_bin(b"x" * 100)
        async with link.conn.write_buffer() as wb:
            wb.write("kept")
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(wb.flush)
                    await settle()
                    scope.cancel()
            assert scope.cancelled_caught
            link.listen()
            await wb.flush()
        await settle()
        assert link.judge() == [(BINARY, b"x" * 100), (TEXT, b"kept")]


async def test_two_flushes_at_one_time_send_one_message() -> None:
    """What another task has flushed in the meantime is not sent twice. [C4]"""
    async with connection(capacity=1, outbox_size=10, compression=None) as link:
        await link.conn.write_bin(b"x" * 100)
        async with link.conn.write_buffer() as wb, anyio.create_task_group() as tasks:
            wb.write("once")
            tasks.start_soon(wb.flush)
            tasks.start_soon(wb.flush)
            await settle()
            link.listen()
        await settle()
        assert link.judge() == [(BINARY, b"x" * 100), (TEXT, b"once")]


async def test_flush_inside_a_fragmented_message_is_an_error() -> None:
    """It raises like any other write. [C4]"""
    async with open_end() as (_, conn, peer):
        await conn.write_frame(Opcode.TEXT, b"begun", fin=False)
        async with conn.write_buffer() as wb:
            wb.write("other")
            with pytest.raises(LocalProtocolError):
                await wb.flush()
        await conn.write_frame(Opcode.CONTINUATION)
        assert await sent(peer) == [(TEXT, b"begun")]


async def test_client_writes_masked_and_compressed_messages_with_it() -> None:
    """It is the same on a client; ``compress=False`` sends a message as it is. [C4]"""
    got: list[Any] = []

    class Collecting:
        def client_message(self, data: Any) -> None:
            got.append(data)

    async with no_hang(), testing.client(Collecting) as client, client.write_buffer() as wb:
        assert isinstance(client, Client)
        for compress in (True, False):
            wb.write("x" * 5_000)
            await wb.flush(compress=compress)
        await settle()
        assert got == ["x" * 5_000] * 2
    ours, theirs = testing.memory_stream_pair()
    peer = Peer(theirs, is_client=False)
    async with no_hang(), anyio.create_task_group() as tasks:
        answer = {"Sec-WebSocket-Extensions": "permessage-deflate"}
        tasks.start_soon(peer.accept, answer)
        async with connect("ws://localhost/", stream=ours) as client, client.write_buffer() as wb:
            for compress in (True, False):
                wb.write("x" * 5_000)
                await wb.flush(compress=compress)
            frames = [await peer.frame() for _ in range(2)]
            await theirs.aclose()
    assert [frame.rsv for frame in frames] == [4, 0]
    assert len(frames[0].payload) < 100
    assert frames[1].payload == b"x" * 5_000
    assert all(frame.key for frame in frames)
