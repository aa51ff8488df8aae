"""One connection: what it writes, receives and answers, when it waits, and every way in which it ends.

One end is a real connection; the other is bytes. Tests that need time run with a clock that jumps.
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from anyio_ws.conn import LINGER, Conn, ConnectionBroken, ConnectionEnded, ConnectionShut
from anyio_ws.events import Message, MessageType, Opcode
from anyio_ws.exceptions import ConnectionClosed, LocalProtocolError, RemoteProtocolError
from anyio_ws.framing import frame_bin, frame_text
from anyio_ws.protocol import Role, State
from anyio_ws.transport import SocketAttribute

from .frames import build_frame, parse_frames
from .memory import (
    CONTINUATION,
    Link,
    Steps,
    Stopwatch,
    both_roles,
    connection,
    every_cut,
    on_asyncio,
    settle,
    swept,
)
from .support import BINARY, CLOSE, PING, PONG, TEXT, virtual

Do = Callable[[Link], Awaitable[object]]
KIB = 1024


def code(number: int, reason: str = "") -> bytes:
    """Build the payload of a Close."""
    return number.to_bytes(2, "big") + reason.encode()


async def steps_of(call: Awaitable[Any]) -> int:
    """Await a call, and return how often it waited."""
    steps = Steps(call)
    await steps
    return steps.count


# --- writing --------------------------------------------------------------------------------------------

WRITES: dict[str, tuple[Do, tuple[int, bytes]]] = {
    "write": (lambda link: link.conn.write("grüße"), (TEXT, "grüße".encode())),
    "write_text": (lambda link: link.conn.write_text(""), (TEXT, b"")),
    "write_bin": (lambda link: link.conn.write_bin(b"\0\xff"), (BINARY, b"\0\xff")),
    "write_bin of a view": (lambda link: link.conn.write_bin(memoryview(b"a-b-c")[::2]), (BINARY, b"abc")),
    "send of text": (lambda link: link.conn.send("text"), (TEXT, b"text")),
    "send of bytes": (lambda link: link.conn.send(b"bytes"), (BINARY, b"bytes")),
    "write_framed of text": (lambda link: link.conn.write_framed(frame_text("text")), (TEXT, b"text")),
    "write_framed of bytes": (lambda link: link.conn.write_framed(frame_bin(b"data")), (BINARY, b"data")),
    "write_frame": (lambda link: link.conn.write_frame(Opcode.BINARY, b"data"), (BINARY, b"data")),
    "write_frame of a ping": (lambda link: link.conn.write_frame(Opcode.PING), (PING, b"")),
    "write_ping": (lambda link: link.conn.write_ping(b"are you there"), (PING, b"are you there")),
    "write_ping without data": (lambda link: link.conn.write_ping(), (PING, b"")),
    "write_pong": (lambda link: link.conn.write_pong(b"I am"), (PONG, b"I am")),
    "a long message": (lambda link: link.conn.write_bin(b"." * 70_000), (BINARY, b"." * 70_000)),
}


@both_roles
@pytest.mark.parametrize(("write", "message"), WRITES.values(), ids=WRITES)
async def test_write_sends_its_frame_and_does_not_yield(
    role: Role, write: Do, message: tuple[int, bytes]
) -> None:
    """Each way of writing sends exactly its frame, masked by a client, in the call itself."""
    async with connection(role) as link:
        assert await steps_of(write(link)) == 0
        await link.peer.expect(*message)
        await link.listen()
        await settle()
        assert link.peer.received == b""


@pytest.mark.attack("F28")
async def test_write_of_a_client_masks_each_frame_with_a_fresh_key() -> None:
    """The same message twice, or a prepared frame twice, is not the same bytes twice."""
    async with connection(Role.CLIENT) as link:
        for _ in range(50):
            await link.conn.write("same")
            await link.conn.write_framed(frame_text("same"))
        frames = [await link.peer.frame() for _ in range(100)]
        assert len({frame.key for frame in frames}) > 95
        assert {frame.payload for frame in frames} == {b"same"}


@pytest.mark.attack("F30")
@both_roles
async def test_write_bin_copies_its_data_before_it_returns(role: Role) -> None:
    """The caller's buffer is neither changed nor needed any more."""
    data = bytearray(b"before")
    async with connection(role) as link:
        await link.conn.write_bin(data)
        assert data == b"before"
        data[:] = b"after!"
        await link.peer.expect(BINARY, b"before")


@pytest.mark.parametrize(
    ("data", "message"),
    [("text", (TEXT, b"text")), (b"bytes", (BINARY, b"bytes")), (bytearray(b"more"), (BINARY, b"more"))],
)
async def test_write_nowait_sends_text_or_binary(data: Any, message: tuple[int, bytes]) -> None:
    """Synchronous code writes in one step: text for ``str``, binary for bytes-like objects."""
    async with connection() as link:
        link.conn.write_nowait(data)
        await link.peer.expect(*message)


async def test_write_nowait_would_block_when_the_outbox_is_full() -> None:
    """Above ``outbox_size`` nothing is taken; exactly at it, and again below it, there is room."""
    async with connection(capacity=100, outbox_size=50) as link:
        link.conn.write_nowait(b"." * 48)
        link.conn.write_nowait(b"one more")
        with pytest.raises(anyio.WouldBlock):
            link.conn.write_nowait(b"too much")
        await link.peer.expect(BINARY, b"." * 48)
        await link.peer.expect(BINARY, b"one more")
        await settle()
        link.conn.write_nowait(b"again")
        await link.peer.expect(BINARY, b"again")


@both_roles
async def test_write_frame_sends_fragments_with_control_frames_between_them(role: Role) -> None:
    """A message may go out in fragments; pings, pongs and answers to pings go between them."""
    async with connection(role) as link:
        await link.conn.write_frame(Opcode.TEXT, b"one, ", fin=False)
        await link.conn.write_ping(b"?")
        await link.conn.write_frame(Opcode.CONTINUATION, b"two, ", fin=False)
        await link.peer.send_frame(PING, b"!")
        await settle()
        await link.conn.write_frame(Opcode.CONTINUATION, b"three")
        await link.conn.write("next")
        await link.listen()
        await settle()
        frames = parse_frames(bytes(link.peer.received))
        assert [frame.opcode for frame in frames] == [TEXT, PING, CONTINUATION, PONG, CONTINUATION, TEXT]
        assert link.judge() == [(PING, b"?"), (PONG, b"!"), (TEXT, b"one, two, three"), (TEXT, b"next")]


MISTAKES: dict[str, tuple[Callable[[Conn], Any], type[Exception]]] = {
    "write of bytes": (lambda conn: conn.write(b"data"), TypeError),
    "write of nothing": (lambda conn: conn.write(None), TypeError),
    "write of a lone surrogate": (lambda conn: conn.write("\ud800"), UnicodeEncodeError),
    "write_bin of text": (lambda conn: conn.write_bin("text"), TypeError),
    "send of a number": (lambda conn: conn.send(5), TypeError),
    "write_nowait of a number": (lambda conn: conn.write_nowait(5), TypeError),
    "write_nowait of a lone surrogate": (lambda conn: conn.write_nowait("\ud800"), UnicodeEncodeError),
    "a long ping": (lambda conn: conn.write_ping(b"." * 126), ValueError),
    "a long pong": (lambda conn: conn.write_pong(b"." * 126), ValueError),
    "a ping of text": (lambda conn: conn.write_ping("text"), TypeError),
    "an unknown opcode": (lambda conn: conn.write_frame(3, b""), ValueError),
    "a fragmented ping": (lambda conn: conn.write_frame(Opcode.PING, b"", fin=False), ValueError),
    "a long control frame": (lambda conn: conn.write_frame(Opcode.PONG, b"." * 126), ValueError),
    "a Close of one byte": (lambda conn: conn.write_frame(Opcode.CLOSE, b"\x03"), ValueError),
    "a Close with a bad code": (lambda conn: conn.write_frame(Opcode.CLOSE, code(1006)), ValueError),
    "a Close with a bad reason": (lambda conn: conn.write_frame(Opcode.CLOSE, b"\x03\xe8\xff"), ValueError),
    "a continuation of nothing": (lambda conn: conn.write_frame(Opcode.CONTINUATION), LocalProtocolError),
    "close with a reserved code": (lambda conn: conn.close(1005), ValueError),
    "close with a small code": (lambda conn: conn.close_with_code(999), ValueError),
    "close with a long reason": (lambda conn: conn.close_with_reason(1000, "ü" * 62), ValueError),
    "close with a lone surrogate": (lambda conn: conn.close(1000, "\ud800"), UnicodeEncodeError),
    "close_nowait with a bad code": (lambda conn: conn.close_nowait(1015), ValueError),
}


@pytest.mark.attack("A07", "A08")
@both_roles
@pytest.mark.parametrize(("call", "error"), MISTAKES.values(), ids=MISTAKES)
async def test_mistake_raises_and_leaves_the_connection_usable(
    role: Role, call: Callable[[Conn], Any], error: type[Exception]
) -> None:
    """A wrong argument is refused before anything is sent, and changes nothing."""
    async with connection(role) as link:
        with pytest.raises(error):
            await call(link.conn)
        assert link.conn.state is State.OPEN
        await link.conn.write("fine")
        await link.peer.expect(TEXT, b"fine")
        await link.peer.send_frame(TEXT, b"fine, too")
        assert await link.conn.receive() == "fine, too"


@pytest.mark.parametrize(
    "call",
    [
        lambda conn: conn.write("text"),
        lambda conn: conn.write_bin(b"data"),
        lambda conn: conn.write_frame(Opcode.TEXT, b""),
        lambda conn: conn.write_framed(frame_text("text")),
    ],
)
async def test_write_inside_a_fragmented_message_is_refused(call: Callable[[Conn], Awaitable[None]]) -> None:
    """Another message may not begin between the fragments of one; the message can still be finished."""
    async with connection() as link:
        await link.conn.write_frame(Opcode.TEXT, b"one ", fin=False)
        with pytest.raises(LocalProtocolError, match="a fragmented message is open"):
            await call(link.conn)
        await link.conn.write_frame(Opcode.CONTINUATION, b"two")
        await link.listen()
        await settle()
        assert link.judge() == [(TEXT, b"one two")]


BEFORE_OPEN: dict[str, Callable[[Conn], Any]] = {
    "write": lambda conn: conn.write("text"),
    "write_nowait": lambda conn: conn.write_nowait("text"),
    "write_ping": lambda conn: conn.write_ping(),
    "write_frame": lambda conn: conn.write_frame(Opcode.TEXT, b""),
    "ping": lambda conn: conn.ping(),
    "send": lambda conn: conn.send("text"),
    "receive": lambda conn: conn.receive(),
    "read": lambda conn: conn.read(timeout=1),
    "iteration": lambda conn: conn.__anext__(),
    "close": lambda conn: conn.close(),
    "close_nowait": lambda conn: conn.close_nowait(),
    "send_eof": lambda conn: conn.send_eof(),
}


@both_roles
@pytest.mark.parametrize("call", BEFORE_OPEN.values(), ids=BEFORE_OPEN)
async def test_call_during_the_opening_handshake_is_refused(role: Role, call: Callable[[Conn], Any]) -> None:
    """Before the connection is open nothing can be written, received or closed, and the error says so."""
    async with connection(role, is_open=False) as link:
        assert link.conn.state is State.CONNECTING
        with pytest.raises(LocalProtocolError, match="the opening handshake is not done"):
            await call(link.conn)
        link.conn.open(None)
        await link.conn.write("text")
        await link.peer.expect(TEXT, b"text")


# --- waiting for room -----------------------------------------------------------------------------------

WAITING: dict[str, Do] = {
    "write": lambda link: link.conn.write("x"),
    "write_bin": lambda link: link.conn.write_bin(b"x"),
    "write_frame": lambda link: link.conn.write_frame(Opcode.BINARY, b"x"),
    "write_framed": lambda link: link.conn.write_framed(frame_text("x")),
    "write_ping": lambda link: link.conn.write_ping(b"x"),
    "write_pong": lambda link: link.conn.write_pong(b"x"),
    "send": lambda link: link.conn.send("x"),
    "ping": lambda link: link.conn.ping(),
}


@pytest.mark.attack("R01")
@pytest.mark.parametrize("write", WAITING.values(), ids=WAITING)
async def test_write_waits_while_the_outbox_is_full_and_then_goes_out(write: Do) -> None:
    """Above ``outbox_size`` every way of writing waits; what waited goes out when there is room."""
    async with connection(capacity=50, outbox_size=50) as link:
        await link.fill_outbox()
        link.tasks.start_soon(write, link)
        await settle()
        before = link.transport.buffered
        await settle()
        assert link.transport.buffered == before == 104
        await link.peer.frame()
        frame = await link.peer.frame()
        assert frame.payload == b"x" or len(frame.payload) == 8


@pytest.mark.attack("T01")
@swept
@pytest.mark.parametrize("write", WAITING.values(), ids=WAITING)
async def test_write_cancelled_while_it_waits_has_sent_nothing(how: str, write: Do) -> None:
    """Whenever a waiting write is cancelled, its frame is not on the wire, or it is whole."""
    async for cut in every_cut(how, at_least=1):
        async with connection(capacity=50, outbox_size=50) as link:
            first = await link.fill_outbox()
            if cut._nth > 1 or how == "ticks":
                await link.listen()
            await cut(answered(link, write))
            await link.listen()
            await settle()
            await link.conn.write("last")
            await settle()
            messages = link.judge()
            assert messages[0] == (BINARY, first)
            assert messages[-1] == (TEXT, b"last")
            assert len(messages) == (2 if cut.happened and how != "ticks" else len(messages))
            assert len(messages) <= 3


async def answered(link: Link, write: Do) -> None:
    """Write, and have pings answered so that :meth:`Conn.ping` returns, too."""

    async def answer() -> None:
        while True:
            await settle()
            for payload in list(link.conn._pings):
                await link.peer.send_frame(PONG, payload)

    link.tasks.start_soon(answer)
    await write(link)
