"""The testing kit: a connection to inject, a peer to ask, a server in memory, a clock that jumps."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from anyio_ws import ClientConfig, Config, HandshakeRejected, Reject, testing
from anyio_ws.closing import ConnectionBroken, ConnectionEnded, ConnectionShut
from anyio_ws.conn import Conn
from anyio_ws.events import Message, MessageType
from anyio_ws.protocol import Role, State
from anyio_ws.testing import (
    MemoryListener,
    MemoryStream,
    VirtualClockLoop,
    WebSocketTest,
    memory_stream_pair,
    virtual_clock,
)

from .memory import Stopwatch, settle
from .support import nothing_left, virtual


class Handler:
    """The handler under test: it says hello, and echoes with a mark."""

    def __init__(self, conn: Conn, app: Any = None) -> None:
        self.conn = conn
        self.app = app
        self.ends: list[str] = app if isinstance(app, list) else []

    async def client_message(self, data: Any, message_type: MessageType = MessageType.TEXT) -> None:
        if data == "hack":
            await self.conn.write("invalid message")
        elif data == "close":
            await self.conn.close(4000, "as you like")
        else:
            await self.conn.send(data)

    def close(self) -> None:
        self.ends.append("closed")


# --- T1: init() -----------------------------------------------------------------------------------------


async def test_init_gives_a_real_connection_to_inject() -> None:
    """T1: ``wt.conn`` is a connection of a server, open, and everything works on it."""
    async with nothing_left(), testing.init() as wt:
        assert type(wt.conn) is Conn
        assert wt.conn.state is State.OPEN
        handler = Handler(wt.conn)
        await handler.client_message("hack")
        await wt.expect_text("invalid message")
        assert await wt.conn.ping() >= 0
        await wt.expect_ping()
        await wt.conn.close(4001)
        await wt.expect_close(4001)
        assert wt.conn.close_code == 4001
        assert wt.conn.closed_by is Role.SERVER


async def test_init_takes_the_settings_of_the_connection() -> None:
    """The configuration is that of the connection; so a limit can be tested."""
    async with testing.init(Config(max_message_size=4)) as wt:
        await wt.deliver(wt.text_message("too long"))
        await wt.expect_close(1009)


@virtual
async def test_init_sends_keepalive_pings_as_the_configuration_says() -> None:
    """Time works as it does in a server; the peer of the kit answers pings."""
    async with testing.init(Config(ping_interval=10, ping_timeout=5)) as wt:
        for _ in range(3):
            await anyio.sleep(10)
            await wt.expect_ping()
        assert wt.conn.state is State.OPEN
        assert wt.conn.latency is not None


@pytest.mark.parametrize("error", [ValueError("ours"), KeyboardInterrupt()], ids=repr)
async def test_init_raises_what_its_block_raises(error: BaseException) -> None:
    """A failing test fails with its own error, not with a group."""
    with pytest.raises(type(error)) as caught:
        async with testing.init():
            raise error
    assert caught.value is error


async def test_init_aborts_the_connection_at_the_end() -> None:
    """Nothing outlives the block; what still uses the connection is told."""
    async with testing.init() as wt:
        conn = wt.conn
    assert conn.state is State.CLOSED
    with pytest.raises(ConnectionBroken):
        await conn.write("too late")


async def test_init_can_be_cancelled() -> None:
    """A cancelled block leaves nothing behind."""
    async with nothing_left():
        with anyio.CancelScope() as scope:
            async with testing.init() as wt:
                scope.cancel()
                await wt.conn.receive()
        assert scope.cancelled_caught
        assert wt.conn.state is State.CLOSED


# --- T2: messages ---------------------------------------------------------------------------------------


async def test_messages_are_built_to_hand_to_a_hook() -> None:
    """T2: text, binary and close messages, as a connection would give them."""
    assert WebSocketTest.text_message("hack") == Message(MessageType.TEXT, "hack")
    assert WebSocketTest.bin_message(b"\0") == Message(MessageType.BINARY, b"\0")
    close = WebSocketTest.close_message(4000, "why")
    assert (close.type, close.close_code, close.close_reason) == (MessageType.CLOSE, 4000, "why")
    assert WebSocketTest.close_message().close_code == 1000
    with pytest.raises(ValueError, match="code"):
        WebSocketTest.close_message(1006)
    async with testing.init() as wt:
        handler = Handler(wt.conn)
        await handler.client_message(wt.text_message("hack").data)
        await wt.expect_text("invalid message")


@pytest.mark.parametrize(
    ("message", "received"),
    [
        (WebSocketTest.text_message("grüße"), "grüße"),
        (WebSocketTest.bin_message(b"\0\xff"), b"\0\xff"),
        (WebSocketTest.text_message(""), ""),
    ],
)
async def test_deliver_has_the_peer_send_a_message(message: Message, received: str | bytes) -> None:
    """What is delivered arrives through the wire, and is received."""
    async with testing.init() as wt:
        await wt.deliver(message)
        assert await wt.conn.receive() == received


async def test_deliver_of_control_frames_is_answered_by_the_connection() -> None:
    """The peer can ping and close; a Pong that nobody asked for is no matter."""
    async with testing.init() as wt:
        await wt.deliver(Message(MessageType.PING, b"?"))
        await wt.expect_pong(b"?")
        await wt.deliver(Message(MessageType.PONG, b"unasked"))
        await wt.deliver(wt.close_message(4000, "bye"))
        await wt.expect_close(4000)
        with pytest.raises(ConnectionEnded):
            await wt.conn.receive()
        assert wt.conn.close_reason == "bye"


# --- T3: expect_* ---------------------------------------------------------------------------------------


async def test_expectations_that_are_met_pass_in_order() -> None:
    """T3: each ``expect_*`` takes the next frame."""
    async with testing.init() as wt:
        await wt.conn.write("text")
        await wt.conn.write_bin(b"data")
        await wt.conn.write_ping(b"?")
        await wt.conn.write_pong(b"!")
        await wt.conn.write("more")
        await wt.conn.write("even more")
        await wt.expect_text("text")
        await wt.expect_bin(b"data")
        await wt.expect_ping(b"?")
        await wt.expect_pong(b"!")
        await wt.expect_message(MessageType.TEXT, "more")
        await wt.expect_message(MessageType.TEXT)
        await wt.expect_nothing()
        wt.conn.close_nowait(4000, "done")
        await wt.expect_close(4000)
        assert wt.transcript == [
            "TEXT 'text'",
            "BINARY b'data'",
            "PING b'?'",
            "PONG b'!'",
            "TEXT 'more'",
            "TEXT 'even more'",
            "CLOSE 4000 done",
        ]


async def test_long_message_is_expected_as_one() -> None:
    """A message that went out in fragments is one message to who expects it. [T3]"""
    async with testing.init() as wt:
        await wt.conn.write("x" * 300_000)
        await wt.conn.write_bin(bytes(300_000))
        await wt.expect_text("x" * 300_000)
        await wt.expect_bin(bytes(300_000))
        await wt.expect_nothing()


EXPECTATIONS: dict[str, tuple[Callable[[WebSocketTest], Any], str]] = {
    "another text": (lambda wt: wt.expect_text("tex"), "expected TEXT 'tex', got TEXT 'text'"),
    "binary": (lambda wt: wt.expect_bin(b"text"), "expected BINARY b'text', got TEXT 'text'"),
    "a ping": (lambda wt: wt.expect_ping(), "expected PING, got TEXT 'text'"),
    "a pong": (lambda wt: wt.expect_pong(b"x"), "expected PONG b'x', got TEXT 'text'"),
    "a Close": (lambda wt: wt.expect_close(), "expected CLOSE, got TEXT 'text'"),
    "a certain Close": (lambda wt: wt.expect_close(1000), "expected CLOSE 1000, got TEXT 'text'"),
    "a type": (lambda wt: wt.expect_message(MessageType.BINARY), "expected BINARY, got TEXT 'text'"),
    "nothing": (lambda wt: wt.expect_nothing(), "expected nothing, got TEXT 'text'"),
}


@pytest.mark.parametrize(("expect", "said"), EXPECTATIONS.values(), ids=EXPECTATIONS)
async def test_expectation_that_is_not_met_fails_with_the_transcript(
    expect: Callable[[WebSocketTest], Any], said: str
) -> None:
    """T3: the ``AssertionError`` says what was wanted, what came, and every frame so far."""
    async with testing.init() as wt:
        await wt.conn.write("text")
        await wt.conn.write_bin(b"." * 300)
        with pytest.raises(AssertionError) as caught:
            await settle()
            await expect(wt)
        first, *transcript = str(caught.value).splitlines()
        assert first == f"{said}; the connection has sent:"
        assert transcript == ["  TEXT 'text'", f"  BINARY b'{'.' * 195}..."]


async def test_expectation_of_another_close_code_fails() -> None:
    """The code of a Close is compared, and its reason is shown."""
    async with testing.init() as wt:
        wt.conn.close_nowait(4000, "why")
        with pytest.raises(AssertionError, match="expected CLOSE 4001, got CLOSE 4000 why"):
            await wt.expect_close(4001)


async def test_expectation_of_any_close_passes() -> None:
    """Without a code any Close will do, one without a code as well."""
    async with testing.init() as wt:
        await wt.conn.write_frame(0x8)
        await wt.expect_close()


@virtual
@pytest.mark.parametrize(
    ("expect", "wanted"),
    [
        (lambda wt: wt.expect_text("text"), "TEXT 'text'"),
        (lambda wt: wt.expect_close(1000), "CLOSE 1000"),
        (lambda wt: wt.expect_close(), "CLOSE"),
    ],
)
async def test_expectation_waits_for_a_bounded_time(
    expect: Callable[[WebSocketTest], Any], wanted: str
) -> None:
    """When nothing comes an expectation fails after the timeout of the kit, exactly."""
    async with testing.init(timeout=3) as wt:
        clock = Stopwatch()
        with pytest.raises(AssertionError) as caught:
            await expect(wt)
        assert clock() == 3
        assert str(caught.value) == (
            f"expected {wanted}, got nothing within 3 seconds; the connection has sent: nothing"
        )


@virtual
async def test_expectation_is_met_by_a_frame_that_comes_in_time() -> None:
    """An expectation waits for what a hook does a little later."""
    async with testing.init(timeout=3) as wt, anyio.create_task_group() as tasks:

        async def write_later() -> None:
            await anyio.sleep(2)
            await wt.conn.write("here I am")

        tasks.start_soon(write_later)
        await wt.expect_text("here I am")


@virtual
async def test_expect_nothing_takes_no_time() -> None:
    """Silence is known once every task waits; no time has to pass, so timeouts are not disturbed."""
    async with testing.init() as wt:
        clock = Stopwatch()
        await wt.expect_nothing()
        assert clock() == 0


async def test_expect_nothing_waits_for_frames_that_are_under_way() -> None:
    """What has been written has arrived when ``expect_nothing`` looks."""
    async with testing.init() as wt:
        await wt.conn.write("under way")
        with pytest.raises(AssertionError, match="expected nothing, got TEXT 'under way'"):
            await wt.expect_nothing()


@virtual
async def test_broken_frames_are_in_the_transcript() -> None:
    """A connection that sent nonsense would be found out."""
    async with testing.init(timeout=3) as wt:
        wt.conn._transport.write(b"\xff\xff")
        await settle()
        wt.conn._transport.write(b"more of it")
        with pytest.raises(AssertionError, match="expected TEXT 'x', got nothing") as caught:
            await wt.expect_text("x")
        assert "a broken frame: " in str(caught.value)
        assert str(caught.value).count("a broken frame") == 1


# --- T4: client() ---------------------------------------------------------------------------------------


@virtual
async def test_client_does_the_whole_handshake_and_traffic_in_memory() -> None:
    """T4: a real client and a real server, no socket, and with a virtual clock no time."""
    clock, ends = Stopwatch(), list[str]()
    async with nothing_left(), testing.client(Handler, ends) as client:
        await client.write("hello")
        assert await client.receive() == "hello"
        await client.write_bin(b"\0")
        assert await client.receive() == b"\0"
        await client.write("close")
        with pytest.raises(ConnectionEnded):
            await client.receive()
        assert (client.close_code, client.close_reason) == (4000, "as you like")
    assert ends == ["closed"]
    assert clock() == 0


async def test_client_hands_path_headers_and_settings_to_both_ends() -> None:
    """Options go to ``connect``, the configuration to the server, the app to the handler."""
    seen: dict[str, Any] = {}

    class Curious:
        def __init__(self, handshake: Any, app: Any) -> None:
            seen.update(url=handshake.url, header=handshake.headers["x-colour"], app=app)

        def client_message(self, data: str) -> None: ...

    app = object()
    async with testing.client(
        Curious,
        app,
        config=Config(subprotocols=["b"], max_message_size=3),
        path="/chat?room=1",
        headers={"X-Colour": "Blue"},
        subprotocols=["a", "b"],
        max_size=100,
    ) as client:
        assert client.subprotocol == "b"
        assert client._config.max_message_size == 100
        await client.write("too long")
        with pytest.raises(ConnectionEnded):
            await client.receive()
        assert client.close_code == 1009
    assert seen == {"url": "/chat?room=1", "header": "Blue", "app": app}


async def test_client_takes_a_whole_configuration() -> None:
    """``config`` is the server's; the client's own may be given field by field."""
    async with testing.client(Handler, ping_interval=None) as client:
        assert isinstance(client._config, ClientConfig)
        assert client._config.ping_interval is None


async def test_client_raises_the_refusal_of_the_handler() -> None:
    """A refused handshake is a ``HandshakeRejected``, and nothing is left running."""

    def refuse(handshake: Any) -> None:
        raise Reject(403, body=b"no")

    async with nothing_left():
        with pytest.raises(HandshakeRejected) as caught:
            async with testing.client(refuse):
                pytest.fail("the block must not run")
        assert (caught.value.status, caught.value.body) == (403, b"no")


async def test_client_raises_what_its_block_raises() -> None:
    """A failing test fails with its own error; the handler is closed and everything gone."""
    ends: list[str] = []
    async with nothing_left():
        with pytest.raises(ZeroDivisionError):
            async with testing.client(Handler, ends):
                raise ZeroDivisionError
    assert ends == ["closed"]


async def test_client_can_be_cancelled() -> None:
    """A cancelled block says goodbye, and leaves nothing behind."""
    ends: list[str] = []
    async with nothing_left():
        with anyio.CancelScope() as scope:
            async with testing.client(Handler, ends) as client:
                scope.cancel()
                await client.receive()
        assert scope.cancelled_caught
    assert ends == ["closed"]
    with pytest.raises(ConnectionShut):
        await client.write("too late")


# --- streams in memory ----------------------------------------------------------------------------------


async def test_memory_stream_carries_bytes_both_ways() -> None:
    """Each end receives what the other sends, in order, at most as much as it asks for."""
    left, right = memory_stream_pair()
    await left.send(b"12345")
    await left.send(b"67")
    await right.send(b"back")
    assert await right.receive(3) == b"123"
    assert await right.receive() == b"4567"
    assert await left.receive() == b"back"


async def test_memory_stream_send_waits_at_its_capacity() -> None:
    """A peer that does not read holds up the sender, in each direction for itself."""
    left, right = memory_stream_pair(capacity=3)
    sent: list[str] = []

    async def send() -> None:
        await left.send(b"12345678")
        sent.append("all")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(send)
        await settle()
        assert await right.receive() == b"123"
        assert await right.receive() == b"456"
        assert await right.receive() == b"78"
        await settle()
        assert sent == ["all"]
        await right.send(b"123")
        assert await left.receive() == b"123"


async def test_memory_stream_that_is_closed_ends_the_other() -> None:
    """The other end reads what is there, then the end, and cannot send; this end is closed."""
    left, right = memory_stream_pair()
    await left.send(b"last")
    await left.aclose()
    assert await right.receive() == b"last"
    with pytest.raises(anyio.EndOfStream):
        await right.receive()
    with pytest.raises(anyio.BrokenResourceError):
        await right.send(b"for nobody")
    for call in (left.receive, lambda: left.send(b"x")):
        with pytest.raises(anyio.ClosedResourceError):
            await call()


async def test_memory_stream_send_eof_ends_one_direction() -> None:
    """After ``send_eof`` this end still receives."""
    left, right = memory_stream_pair()
    await left.send_eof()
    with pytest.raises(anyio.EndOfStream):
        await right.receive()
    with pytest.raises(anyio.ClosedResourceError):
        await left.send(b"x")
    await right.send(b"answer")
    assert await left.receive() == b"answer"


@pytest.mark.parametrize("close", ["left", "right"])
async def test_memory_stream_wakes_those_who_wait_when_it_is_closed(close: str) -> None:
    """Nobody waits for an end that is gone, whichever of the two it was."""
    left, right = memory_stream_pair(capacity=1)
    errors: dict[str, type[Exception]] = {}

    async def note(name: str, call: Any) -> None:
        try:
            await call
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError) as exc:
            errors[name] = type(exc)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(note, "receive", left.receive())
        tasks.start_soon(note, "send", left.send(b"12"))
        await settle()
        assert errors == {}
        await {"left": left, "right": right}[close].aclose()
    if close == "left":
        assert errors == {"receive": anyio.ClosedResourceError, "send": anyio.ClosedResourceError}
    else:
        assert errors == {"receive": anyio.EndOfStream, "send": anyio.BrokenResourceError}


async def test_memory_stream_receive_cancelled_loses_nothing() -> None:
    """A cancelled ``receive`` has taken nothing."""
    left, right = memory_stream_pair()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await right.receive()
    await left.send(b"still there")
    assert await right.receive() == b"still there"


async def test_memory_listener_accepts_its_connections() -> None:
    """What connects is accepted in order; a closed listener accepts nothing more."""
    listener = MemoryListener()
    first, second = listener.connect(), listener.connect(capacity=1)
    await (await listener.accept()).send(b"one")
    await (await listener.accept()).send(b"2")
    assert (await first.receive(), await second.receive()) == (b"one", b"2")
    assert listener.extra(anyio.abc.SocketAttribute.local_address, "none") == "none"
    await listener.aclose()
    with pytest.raises(anyio.ClosedResourceError):
        listener.connect()
    with pytest.raises(anyio.ClosedResourceError):
        await listener.accept()


async def test_memory_listener_that_is_closed_ends_connections_it_has_not_accepted() -> None:
    """Who waits in the backlog of a listener that goes away is not left waiting."""
    listener = MemoryListener()
    stream = listener.connect()
    await listener.aclose()
    with anyio.fail_after(60), pytest.raises(anyio.EndOfStream):
        await stream.receive()


def test_memory_stream_pair_is_unbounded_unless_told_otherwise() -> None:
    """Without a capacity a sender never waits."""
    left, right = memory_stream_pair()
    assert isinstance(left, MemoryStream)
    assert left._outgoing.capacity == right._outgoing.capacity == math.inf


# --- the clock that jumps -------------------------------------------------------------------------------


@virtual
async def test_virtual_clock_jumps_to_the_next_deadline() -> None:
    """A thousand hours pass at once, and everything happens at its time, in order."""
    clock, events = Stopwatch(), []

    async def sleep(hours: float) -> None:
        await anyio.sleep(hours * 3600)
        events.append((hours, clock() / 3600))

    async with anyio.create_task_group() as tasks:
        for hours in (1000, 1, 30, 0.5):
            tasks.start_soon(sleep, hours)
    assert events == [(0.5, 0.5), (1, 1), (30, 30), (1000, 1000)]


@virtual
async def test_virtual_clock_stands_while_a_task_can_run() -> None:
    """Work takes no time."""
    clock = Stopwatch()
    for _ in range(1000):
        await anyio.lowlevel.checkpoint()
    assert clock() == 0


async def in_a_thread() -> float:
    """Do something in a thread, and return the time."""
    await anyio.to_thread.run_sync(lambda: None)
    return anyio.current_time()


def test_virtual_clock_waits_for_a_thread_when_there_is_no_deadline() -> None:
    """Where only a thread can go on, the loop waits for it as any loop does."""
    assert anyio.run(in_a_thread, backend_options={"loop_factory": VirtualClockLoop}) == 0


def test_virtual_clock_loop_starts_at_zero() -> None:
    """Every run begins at the same time, so every run is the same."""
    loop = VirtualClockLoop()
    try:
        assert loop.time() == 0
        loop.run_until_complete(asyncio.sleep(5))
        assert loop.time() == 5
    finally:
        loop.close()


def test_virtual_clock_of_trio_starts_anew() -> None:
    """Each call gives Trio another clock."""
    options = virtual_clock("trio")
    assert options["clock"] is not virtual_clock("trio")["clock"]
    assert options["clock"].autojump_threshold == 0


def test_virtual_clock_of_another_backend_is_an_error() -> None:
    """uvloop, for example, has a clock of its own."""
    with pytest.raises(ValueError, match="backend"):
        virtual_clock("uvloop")


def test_virtual_clock_of_asyncio_does_not_need_trio(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has asyncio only can use the kit: Trio is imported where it is asked for."""
    monkeypatch.setitem(sys.modules, "trio.testing", None)
    assert virtual_clock("asyncio") == {"loop_factory": VirtualClockLoop}
