"""Section T of the contract: the testing kit."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from anyio_ws import Conn, HandshakeRejected, Message, MessageType, Reject, testing

from ..support import Stopwatch, virtual
from .things import Echo


async def test_t1_connection_to_inject() -> None:
    """init() gives a real connection over memory, which a handler may be made with."""
    async with testing.init() as wt:
        handler = Echo(wt.conn)
        await handler.client_message("hello")
        await wt.expect_text("hello")
        assert isinstance(wt.conn, Conn)


async def test_t2_messages_to_hand_to_a_hook() -> None:
    """Messages are made by kind; the data of one goes into a hook."""
    async with testing.init() as wt:
        assert wt.text_message("hack") == Message(MessageType.TEXT, "hack")
        assert wt.bin_message(b"\x00") == Message(MessageType.BINARY, b"\x00")
        assert wt.close_message(4000).close_code == 4000
        await Echo(wt.conn).client_message(wt.text_message("hack").data)
        await wt.expect_text("hack")


@virtual
async def test_t3_expectations_fail_with_the_transcript() -> None:
    """Every kind of frame can be expected; what differs is an AssertionError that shows what was sent."""
    async with testing.init() as wt:
        await wt.conn.write("text")
        await wt.expect_text("text")
        await wt.conn.write_bin(b"bytes")
        await wt.expect_bin(b"bytes")
        await wt.conn.write("again")
        await wt.expect_message(MessageType.TEXT, "again")
        await wt.conn.write_ping(b"p")
        await wt.expect_ping(b"p")
        await wt.conn.write_pong(b"q")
        await wt.expect_pong(b"q")
        await wt.expect_nothing()
        await wt.conn.write("this")
        with pytest.raises(AssertionError, match=r"(?s)that.*this"):
            await wt.expect_text("that")
        with pytest.raises(AssertionError, match="nothing within"):
            await wt.expect_text("more")
        wt.conn.close_nowait(4000)
        await wt.expect_close(4000)


@virtual
async def test_t4_whole_traffic_in_memory() -> None:
    """A client and a server talk through memory, refusals included; time passes only when all wait."""

    class Waits(Echo):
        def __init__(self, conn: Conn, handshake: Any) -> None:
            super().__init__(conn)
            if handshake.path != "/":
                raise Reject(404)

        async def client_message(self, data: Any) -> None:
            await anyio.sleep(3600)
            await self.conn.send(data)

    with Stopwatch(3600):
        async with testing.client(Waits) as client:
            await client.write("hello")
            assert await client.receive() == "hello"
    with pytest.raises(HandshakeRejected, match="404"):
        async with testing.client(Waits, path="/nowhere"):
            pass
