"""Section H of the contract: the hooks."""

from __future__ import annotations

import contextlib
from typing import Any

import anyio
import pytest

from anyio_ws import (
    Config,
    Conn,
    ConnectionEnded,
    Handshake,
    HandshakeRejected,
    LocalProtocolError,
    MessageType,
    Opcode,
    Reject,
    Scratch,
    testing,
)

from ..support import BINARY, CLOSE, PING, PONG, TEXT, take_log
from .things import Base, Echo, Quiet, serving


async def test_h1_init_decides_before_the_101(caplog: pytest.LogCaptureFixture) -> None:
    """Reject answers with its response, another error with 500; headers and a subprotocol may be added."""

    class Gate(Quiet):
        @classmethod
        async def init(cls, handshake: Handshake, conn: Conn) -> Gate:
            await anyio.lowlevel.checkpoint()
            if handshake.path == "/no":
                raise Reject(403, headers={"X-Why": "because"}, body=b"no")
            if handshake.path == "/fail":
                raise KeyError
            with pytest.raises(LocalProtocolError, match="after_init"):
                await conn.write("too early")
            handshake.response_headers["X-Extra"] = "yes"
            handshake.select_subprotocol("b")
            return cls()

    with pytest.raises(HandshakeRejected) as caught:
        async with testing.client(Gate, path="/no"):
            pass
    assert (caught.value.status, caught.value.headers["x-why"], caught.value.body) == (403, "because", b"no")
    with pytest.raises(HandshakeRejected) as caught:
        async with testing.client(Gate, path="/fail"):
            pass
    assert caught.value.status == 500
    assert len(take_log(caplog)) == 1
    async with serving(Gate) as served:
        peer = served.connect()
        head = await peer.open(headers={"Sec-WebSocket-Protocol": "a, b"})
        assert (head.get("x-extra"), head.get("sec-websocket-protocol")) == ("yes", "b")


async def test_h2_handshake_tells_the_request() -> None:
    """Everything about the request can be read, names of headers in any case, values as they were."""
    seen: list[Handshake] = []

    class Looks(Quiet):
        def __init__(self, handshake: Handshake) -> None:
            seen.append(handshake)

    async with serving(Looks) as served:
        await served.open(
            "/Path?q=1",
            {"Authorization": "Basic ABC", "Cookie": "a=1; b=2", "Sec-WebSocket-Protocol": "x, y"},
        )
    (handshake,) = seen
    assert (handshake.url, handshake.method) == ("/Path?q=1", "GET")
    assert (handshake.path, handshake.query) == ("/Path", {"q": "1"})
    assert handshake.headers.get("AUTHORIZATION") == handshake.headers.get("authorization") == "Basic ABC"
    assert "host" in [name.lower() for name in handshake.headers]
    assert b"authorization: Basic ABC\r\n" in handshake.raw_headers
    assert handshake.cookies == {"a": "1", "b": "2"}
    assert list(handshake.subprotocols) == ["x", "y"]
    assert handshake.origin is None
    assert handshake.remote_address == ""


async def test_h3_after_init_may_write() -> None:
    """What after_init writes is the first that the client receives; it gets the app if it asks."""

    class Greets(Echo):
        async def after_init(self, app: str) -> None:
            await self.conn.write(app)

    async with testing.client(Greets, "welcome") as client:
        assert await client.receive() == "welcome"


async def test_h4_messages_come_one_at_a_time_and_in_order() -> None:
    """A hook that waits holds up the next message; text is str, binary is bytes."""
    running = 0
    seen: list[Any] = []

    class Slow(Echo):
        async def client_message(self, data: Any) -> None:
            nonlocal running
            running += 1
            assert running == 1
            await anyio.lowlevel.checkpoint()
            seen.append(data)
            running -= 1
            await self.conn.send(data)

    sent: list[str | bytes] = ["a", b"b", "c", b"", ""]
    async with testing.client(Slow) as client:
        for data in sent:
            await client.send(data)
        for data in sent:
            assert await client.receive() == data
    assert seen == sent


async def test_h5_message_type_is_told() -> None:
    """A hook that asks for the type gets TEXT or BINARY."""

    class Types(Base):
        async def client_message(self, data: Any, message_type: MessageType) -> None:
            await self.conn.write(f"{message_type.name} {data!r}")

    async with testing.client(Types) as client:
        await client.write("a")
        await client.write_bin(b"b")
        assert [await client.receive(), await client.receive()] == ["TEXT 'a'", "BINARY b'b'"]


async def test_h6_scratch_lasts_as_long_as_the_call() -> None:
    """Scratch gives memory, a writer, contexts and callbacks; all of it is over when the hook returns."""
    kept: list[Any] = []

    class Works(Base):
        async def client_message(self, scratch: Scratch, data: str) -> None:
            memory = scratch.alloc(len(data))
            memory[:] = data.upper().encode()
            writer = scratch.writer()
            writer.write("<")
            writer.write(memory)
            scratch.callback(kept.append, "called back")
            scratch.enter_context(contextlib.closing(Closes(kept)))
            await self.conn.write_bin(writer.getbuffer())
            kept.append(memory)

    async with testing.client(Works) as client:
        await client.write("hello")
        assert await client.receive() == b"<HELLO"
        await client.ping()
    memory, closed, called = kept
    assert (closed, called) == ("closed", "called back")
    with pytest.raises(ValueError, match="released"):
        bytes(memory)


class Closes:
    """Notes that it was closed."""

    def __init__(self, notes: list[Any]) -> None:
        self.notes = notes

    def close(self) -> None:
        """Note it."""
        self.notes.append("closed")


async def test_h7_scratch_and_type() -> None:
    """The fourth shape has both."""

    class Both(Base):
        async def client_message(self, scratch: Scratch, data: Any, message_type: MessageType) -> None:
            await self.conn.write(f"{len(scratch.alloc(3))} {message_type.name}")

    async with testing.client(Both) as client:
        await client.write_bin(b"b")
        assert await client.receive() == "3 BINARY"


async def test_h8_error_closes_and_close_works(caplog: pytest.LogCaptureFixture) -> None:
    """An error in a hook is 1011; conn.close in a hook is the code that it gives."""

    class Ends(Echo):
        async def client_message(self, data: str) -> None:
            if data == "close":
                await self.conn.close(4000, "bye")
            raise KeyError

    for word, code in (("close", 4000), ("fail", 1011)):
        async with testing.client(Ends) as client:
            await client.write(word)
            with pytest.raises(ConnectionEnded) as caught:
                await client.receive()
            assert caught.value.code == code
    take_log(caplog)


@pytest.mark.parametrize("end", ["peer", "us", "error", "cut", "stop", "refused"])
async def test_h9_close_is_called_once(end: str, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever ends a connection, close is called once for a handler that was made, and never for another."""
    closes: list[str] = []

    class Counts(Echo):
        def __init__(self, conn: Conn) -> None:
            super().__init__(conn)
            if end == "refused":
                raise Reject(403)

        async def client_message(self, data: Any) -> None:
            if end == "error":
                raise KeyError
            await self.conn.close()

        async def close(self) -> None:
            await anyio.lowlevel.checkpoint()
            closes.append("closed")

    async with serving(Counts) as served:
        peer = served.connect()
        if end == "refused":
            with pytest.raises(AssertionError, match="403"):
                await peer.open()
        else:
            await peer.open()
        if end == "peer":
            await peer.close_handshake()
        elif end == "cut":
            await peer.stream.aclose()
        elif end in ("us", "error"):
            await peer.send_frame(TEXT, b"x")
            assert (await peer.frame()).opcode == CLOSE
            await peer.send_close(1000)
        elif end == "stop":
            served.server.stop()
            await peer.expect_close(1001)
            await peer.send_close(1001)
    assert closes == ([] if end == "refused" else ["closed"])
    take_log(caplog)


async def test_h10_close_is_echoed_or_handed_over() -> None:
    """Without client_close the peer's code comes back; with it the handler gets the payload and answers."""

    class Answers(Echo):
        async def client_close(self, data: bytes) -> None:
            assert data == (4001).to_bytes(2, "big")
            await self.conn.write_frame(Opcode.CLOSE, (4002).to_bytes(2, "big"))

    for handler, code in ((Echo, 4001), (Answers, 4002)):
        async with serving(handler) as served:
            peer = await served.open()
            await peer.send_close(4001)
            await peer.expect_close(code)
            await peer.expect_end()


async def test_h11_ping_is_answered_at_once_or_handed_over() -> None:
    """Without client_ping a pong comes while a hook is busy; with it nothing comes but from the handler."""
    go_on = anyio.Event()

    class Busy(Echo):
        async def client_message(self, data: Any) -> None:
            await go_on.wait()
            await self.conn.send(data)

    async with serving(Busy) as served:
        peer = await served.open()
        await peer.send_frame(TEXT, b"work")
        await peer.send_frame(PING, b"there?")
        await peer.expect(PONG, b"there?")
        go_on.set()
        await peer.expect(TEXT, b"work")
        await peer.close_handshake()

    class Answers(Echo):
        async def client_ping(self, data: bytes) -> None:
            await self.conn.write_bin(data)

    async with serving(Answers) as served:
        peer = await served.open()
        await peer.send_frame(PING, b"there?")
        await peer.expect(BINARY, b"there?")
        await peer.close_handshake()


async def test_h12_pong_is_told() -> None:
    """client_pong is called for a pong, with its data if it asks for it."""

    class Told(Echo):
        async def client_pong(self, data: bytes) -> None:
            await self.conn.write_bin(data)

    class ToldThat(Echo):
        async def client_pong(self) -> None:
            await self.conn.write_bin(b"a pong")

    for handler, answer in ((Told, b"data"), (ToldThat, b"a pong")):
        async with serving(handler) as served:
            peer = await served.open()
            await peer.send_frame(PONG, b"data")
            await peer.expect(BINARY, answer)
            await peer.close_handshake()


async def test_h13_views_are_valid_inside_the_call() -> None:
    """With message_view binary data is a memoryview, and released after the call; text is still str."""
    kept: list[memoryview] = []

    class Keeps(Echo):
        async def client_message(self, data: Any) -> None:
            if isinstance(data, memoryview):
                kept.append(data)
            await self.conn.send(data if isinstance(data, str) else bytes(data))

    async with testing.client(Keeps, config=Config(message_view=True)) as client:
        await client.write_bin(b"binary")
        assert await client.receive() == b"binary"
        await client.write("text")
        assert await client.receive() == "text"
    with pytest.raises(ValueError, match="released"):
        bytes(kept[0])


async def test_h14_bad_text_fails_or_is_delivered() -> None:
    """Strict: 1007 as soon as the bad byte is there, before the message is whole. Off: bytes, unchecked."""
    async with serving(Echo) as served:
        peer = await served.open()
        await peer.send(peer.build(TEXT, b"\xff" + b"x" * 100)[:8])
        assert (await peer.frame()).payload[:2] == (1007).to_bytes(2, "big")

    class Types(Echo):
        async def client_message(self, data: Any) -> None:
            await self.conn.write_bin(repr(data).encode())

    async with serving(Types, config=Config(utf8="off")) as served:
        peer = await served.open()
        await peer.send_frame(TEXT, b"\xff")
        await peer.expect(BINARY, b"b'\\xff'")
        await peer.close_handshake()
