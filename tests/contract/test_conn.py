"""Section C of the contract: the connection."""

from __future__ import annotations

import json
from functools import partial

import anyio
import anyio.to_thread
import pytest
from anyio.abc import ObjectStream, SocketAttribute

import anyio_ws
from anyio_ws import (
    Config,
    Conn,
    ConnectionClosed,
    MessageType,
    Opcode,
    Server,
    State,
    frame_bin,
    frame_text,
    testing,
)
from anyio_ws.protocol import Role
from anyio_ws.streams import WebSocketAttribute

from ..memory import connection
from ..support import BINARY, CLOSE, PING, PONG, TEXT, listening, settle
from .things import Echo

both = pytest.mark.parametrize("role", [Role.SERVER, Role.CLIENT])


@both
async def test_c1_text_and_binary(role: Role) -> None:
    """write, write_text, write_bin and write_nowait send what they say; a full outbox is WouldBlock."""
    async with connection(role, capacity=100, outbox_size=1000) as link:
        await link.conn.write("one")
        await link.conn.write_text("two")
        await link.conn.write_bin(memoryview(b"three"))
        link.conn.write_nowait("four")
        link.conn.write_nowait(b"five")
        for opcode, data in (
            (TEXT, b"one"),
            (TEXT, b"two"),
            (BINARY, b"three"),
            (TEXT, b"four"),
            (BINARY, b"five"),
        ):
            await link.peer.expect(opcode, data)
        await link.fill_outbox()
        with pytest.raises(anyio.WouldBlock):
            link.conn.write_nowait("more")


@both
async def test_c2_control_frames_and_fragments(role: Role) -> None:
    """Pings, pongs and single frames go out on both sides; ping waits for its pong and returns the time."""
    async with connection(role) as link:
        await link.conn.write_ping(b"a")
        await link.conn.write_pong(b"b")
        await link.conn.write_frame(Opcode.TEXT, b"frag", fin=False)
        await link.conn.write_frame(Opcode.CONTINUATION, b"ment")
        await link.peer.expect(PING, b"a")
        await link.peer.expect(PONG, b"b")
        first, second = await link.peer.frame(), await link.peer.frame()
        assert (first.fin, first.payload, second.fin, second.payload) == (False, b"frag", True, b"ment")

        async def answer() -> None:
            await link.peer.send_frame(PONG, (await link.peer.frame()).payload)

        link.tasks.start_soon(answer)
        assert await link.conn.ping() == link.conn.latency


@both
async def test_c3_close_is_checked_and_done(role: Role) -> None:
    """A code or reason that may not be sent is a ValueError before anything is written."""
    async with connection(role) as link:
        for code in (999, 1005, 1006, 1015, 5000):
            with pytest.raises(ValueError, match="code"):
                await link.conn.close_with_code(code)
        with pytest.raises(ValueError, match="reason"):
            await link.conn.close_with_reason(1000, "x" * 124)
        assert link.conn.state is State.OPEN
        link.tasks.start_soon(partial(link.conn.close_with_reason, 4000, "bye"))
        await link.peer.expect_close(4000, "bye")
        await link.peer.send_close(4000)
        await link.peer.stream.aclose()
        await link.conn.wait_gone()


async def test_c4_write_buffer_sends_on_flush() -> None:
    """A message is written like a file; without flush nothing is sent."""
    async with testing.init() as wt:
        async with wt.conn.write_buffer(MessageType.TEXT) as wb:
            json.dump({"a": 1}, wb)
            print("!", end="", file=wb)
            await wt.expect_nothing()
            await wb.flush()
        await wt.expect_text('{"a": 1}!')
        async with wt.conn.write_buffer(MessageType.BINARY) as wb:
            wb.write(b"discarded")
        await wt.expect_nothing()


async def test_c5_frames_are_made_once() -> None:
    """A frame is the bytes on the wire, and may be sent to many connections, many times."""
    assert bytes(frame_text("hello")) == b"\x81\x05hello"
    assert bytes(frame_bin(b"hello")) == b"\x82\x05hello"
    frame = frame_text("hello")
    for _ in range(2):
        async with testing.init() as wt:
            await wt.conn.write_framed(frame)
            await wt.conn.write_framed(frame)
            await wt.expect_text("hello")
            await wt.expect_text("hello")


async def test_c6_frames_stay_whole() -> None:
    """Messages of many tasks, some of them cancelled while they wait, arrive whole, in order of return."""
    async with connection(Role.SERVER, capacity=500, outbox_size=300) as link:
        done: list[str] = []

        async def write(number: int, patience: float) -> None:
            text = f"{number:02}" * 40
            with anyio.move_on_after(patience):
                await link.conn.write(text)
                done.append(text)

        received: list[str] = []

        async def read_to_the_end() -> None:
            while (text := (await link.peer.frame()).payload.decode()) != "end":
                received.append(text)

        link.tasks.start_soon(read_to_the_end)
        async with anyio.create_task_group() as tasks:
            for number in range(40):
                tasks.start_soon(write, number, 0 if number % 4 == 3 else 100)
        await link.conn.write("end")
        await settle()
        assert received == done
        assert len(done) >= 30


async def test_c7_threads_write() -> None:
    """Other threads write and close, and block until it is done."""
    async with connection(Role.SERVER) as link:
        await anyio.to_thread.run_sync(link.conn.from_thread.write, "text")
        await anyio.to_thread.run_sync(link.conn.from_thread.write_bin, b"bytes")
        await link.peer.expect(TEXT, b"text")
        await link.peer.expect(BINARY, b"bytes")
        link.beside(anyio.to_thread.run_sync, link.conn.from_thread.close, 4000)
        await link.peer.expect_close(4000)
        await link.peer.send_close(4000)
        await link.conn.wait_gone()


async def test_c8_connection_tells_what_it_is() -> None:
    """Before the end and after it, both ends say the same of it."""
    conns: list[Conn] = []

    class Keeps(Echo):
        def __init__(self, conn: Conn) -> None:
            super().__init__(conn)
            conns.append(conn)

    server = Server(Keeps, Config(port=0, subprotocols=["chat"]))
    async with listening(server) as ((host, port),):
        async with anyio_ws.connect(f"ws://{host}:{port}", subprotocols=["chat"]) as client:
            (conn,) = conns
            assert conn.id != client.id
            assert (conn.state, conn.is_closed, conn.close_code) == (State.OPEN, False, None)
            assert client.remote_address == conn.local_address == (host, port)
            assert client.local_address == conn.remote_address
            assert conn.subprotocol == client.subprotocol == "chat"
            assert (client.latency is None, await client.ping() == client.latency) == (True, True)
            await client.close_with_reason(4000, "bye")
        await conn.wait_gone()
        for end in (client, conn):
            assert (end.state, end.is_closed, end.close_code) == (State.CLOSED, True, 4000)
            assert end.closed_by is Role.CLIENT
    assert conn.close_reason == "bye"


async def test_c9_connection_is_an_object_stream() -> None:
    """send, receive, iteration, send_eof, aclose and typed attributes are AnyIO's, and so are the errors."""
    async with testing.client(Echo) as client:
        stream: ObjectStream[str | bytes] = client
        assert isinstance(stream, ObjectStream)
        await stream.send("text")
        await stream.send(b"bytes")
        assert [await stream.receive(), await stream.receive()] == ["text", b"bytes"]
        assert stream.extra(WebSocketAttribute.subprotocol) is None
        assert stream.extra(SocketAttribute.remote_port, None) is None
        await stream.send_eof()
        with pytest.raises(anyio.EndOfStream) as caught:
            await stream.receive()
        assert isinstance(caught.value, ConnectionClosed)
        await stream.aclose()
        with pytest.raises(anyio.ClosedResourceError):
            await stream.send("too late")
    async with testing.client(Echo) as client:
        client.abort()
        await client.wait_gone()
        with pytest.raises(anyio.BrokenResourceError):
            await client.receive()


def test_c2_close_is_a_frame_like_others() -> None:
    """The opcode of a Close is 8, of a Ping 9, of a Pong 10 (RFC 6455 §5.2)."""
    assert (Opcode.CLOSE, Opcode.PING, Opcode.PONG) == (CLOSE, PING, PONG)
