"""The client: how it connects, what it believes, how it reads in a loop, and what it leaves behind.

Its server is a peer made of bytes wherever the server matters, so that it can be as wrong as needed. In
memory the clock jumps; TLS, addresses and descriptors are looked at on real sockets.
"""

from __future__ import annotations

import gc
import socket
import ssl
import sys
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import ByteStream

from anyio_ws import (
    Client,
    ClientConfig,
    Config,
    Conn,
    ConnectionBroken,
    ConnectionEnded,
    ConnectionShut,
    HandshakeRejected,
    InvalidResponse,
    LocalProtocolError,
    Message,
    MessageType,
    Opcode,
    Server,
    State,
    connect,
    testing,
)
from anyio_ws import client as module
from anyio_ws.handler import FunctionFactory
from anyio_ws.protocol import Role

from . import support
from .certificates import PEM, client_context, server_context
from .memory import every_cut, swept
from .support import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    TEXT,
    Head,
    Peer,
    Stopwatch,
    accept_of,
    build_answer,
    listening,
    no_hang,
    nothing_left,
    settle,
    virtual,
)

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup, ExceptionGroup

no_surprises = support.no_surprises
pytestmark = pytest.mark.usefixtures("no_surprises")

URL = "ws://localhost/"
Talk = Callable[[Peer], Awaitable[object]]


@asynccontextmanager
async def against(talk: Talk) -> AsyncIterator[testing.MemoryStream]:
    """Have a server made of bytes talk at the other end of a stream, and see that end closed at last."""
    ours, theirs = testing.memory_stream_pair(100_000)
    peer = Peer(theirs, is_client=False)

    async def run() -> None:
        await talk(peer)
        with suppress(anyio.EndOfStream, anyio.ClosedResourceError):  # unless it has closed it itself
            while True:
                await theirs.receive()

    async with no_hang(), anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        yield ours


@asynccontextmanager
async def open_client(**options: Any) -> AsyncIterator[tuple[Client, Peer]]:
    """Connect a client to a peer that plays the server; the peer is gone when the block ends."""
    ours, theirs = testing.memory_stream_pair()
    peer = Peer(theirs, is_client=False)
    async with no_hang(), anyio.create_task_group() as tasks:
        tasks.start_soon(peer.accept)
        async with connect(URL, stream=ours, **options) as client:
            try:
                yield client, peer
            finally:
                await theirs.aclose()


@asynccontextmanager
async def flooded(code: int) -> AsyncIterator[testing.MemoryStream]:
    """Have a server send more than is read, and then answer a Close with this code."""
    ours, theirs = testing.memory_stream_pair(5_000)
    peer = Peer(theirs, is_client=False)

    async def talk() -> None:
        await peer.accept()
        for _ in range(100):
            await peer.send_frame(BINARY, bytes(500))
        await peer.expect_close(code)
        await peer.send_close(code)
        await theirs.aclose()

    async with no_hang(), anyio.create_task_group() as tasks:
        tasks.start_soon(talk)
        yield ours


# --- the opening handshake ----------------------------------------------------------------------------


async def request_of(url: str = URL, **options: Any) -> Head:
    """Return the request with which a client opens a connection."""
    requests: list[Head] = []

    async def talk(peer: Peer) -> None:
        head = await peer.receive_head()
        requests.append(head)
        offered = (head.get("sec-websocket-protocol") or "").split(", ")[0]
        headers = {"Sec-WebSocket-Protocol": offered or None}
        await peer.send(build_answer(headers=headers, accept=accept_of(head)))
        await peer.send_close(1000)

    async with against(talk) as stream, connect(url, stream=stream, **options):
        pass
    return requests[0]


@virtual
async def test_request_is_the_one_that_rfc_6455_asks_for() -> None:
    """Each header of §4.1 is there once, the key is new each time, and nothing is said that need not. [K2]"""
    request = await request_of("ws://example.com/chat?room=1")
    assert request.line == "GET /chat?room=1 HTTP/1.1"
    names = ["host", "upgrade", "connection", "sec-websocket-key", "sec-websocket-version"]
    assert [name for name, _ in request.headers] == [*names, "sec-websocket-extensions"]
    assert [name for name, _ in (await request_of(compression=None)).headers] == names
    assert request.get("host") == "example.com"
    assert request.get("upgrade") == "websocket"
    assert request.get("connection") == "Upgrade"
    assert request.get("sec-websocket-version") == "13"
    assert request.get("sec-websocket-key") != (await request_of()).get("sec-websocket-key")


@virtual
@pytest.mark.parametrize(
    ("url", "host", "target"),
    [
        ("ws://example.com", "example.com", "/"),
        ("ws://example.com:80/", "example.com", "/"),
        ("ws://example.com:8080/a%20b", "example.com:8080", "/a%20b"),
        ("ws://EXAMPLE.com?a=b", "example.com", "/?a=b"),
        ("ws://[::1]:9882/", "[::1]:9882", "/"),
        ("ws://127.0.0.1/é", "127.0.0.1", "/%C3%A9"),
    ],
)
async def test_request_names_host_and_path_of_the_url(url: str, host: str, target: str) -> None:
    """The port is named where it is not the default one; what is not ASCII is encoded. [K2]"""
    request = await request_of(url)
    assert (request.get("host"), request.line) == (host, f"GET {target} HTTP/1.1")


@virtual
@pytest.mark.parametrize(
    "headers",
    [
        {"X-One": "1", "Host": "other.example"},
        [("X-One", "1"), ("Host", "other.example")],
        "X-One: 1\r\nHost: other.example",
        "X-One:1\r\nHost: other.example\r\n",
    ],
)
async def test_request_has_the_headers_that_are_given(headers: Any) -> None:
    """Headers are a mapping, pairs, or text; a ``Host`` among them takes the place of ours. [K1, K2]"""
    request = await request_of(headers=headers)
    assert request.get("x-one") == "1"
    assert request.get("host") == "other.example"


@virtual
async def test_request_repeats_a_header_that_is_given_twice() -> None:
    """Pairs may name a header more than once. [K1]"""
    request = await request_of(headers=[("X-One", "1"), ("X-One", "2")])
    assert [value for name, value in request.headers if name == "x-one"] == ["1", "2"]


@virtual
async def test_request_offers_subprotocols_and_names_an_origin() -> None:
    """What ``subprotocols`` says counts, and not the configuration beside it. [K2]"""
    request = await request_of(subprotocols=["v2", "v1"], origin="https://example.com")
    assert request.get("sec-websocket-protocol") == "v2, v1"
    assert request.get("origin") == "https://example.com"
    config = ClientConfig(subprotocols=["v3"])
    assert (await request_of(config=config)).get("sec-websocket-protocol") == "v3"
    assert (await request_of(config=config, subprotocols=())).get("sec-websocket-protocol") is None


CRLF = "a\r\nX-Injected: 1"


@virtual
@pytest.mark.attack("A01", "A02", "A03", "A04", "A05", "A06")
@pytest.mark.parametrize(
    "options",
    [
        {"url": f"ws://localhost/{CRLF}"},
        {"url": "ws://localhost/a b"},
        {"url": "ws://local\r\nhost/"},
        {"url": "http://localhost/"},
        {"url": "ws://localhost/#fragment"},
        {"url": "ws://user:secret@localhost/"},
        {"url": "ws:///path"},
        {"url": "ws://localhost:99999/"},
        {"url": "ws://localhost:0/"},
        {"headers": {"X": CRLF}},
        {"headers": {CRLF: "x"}},
        {"headers": {"X": "a\0"}},
        {"headers": {"X": "☃"}},
        {"headers": {"": "x"}},
        {"headers": {"X Y": "x"}},
        {"headers": "no colon"},
        {"headers": "X: a\nY: b"},
        {"headers": [("X", CRLF)]},
        {"headers": [("Host", "a"), ("host", "b")]},
        *(
            {"headers": {name: "x"}}
            for name in ("Upgrade", "connection", "Content-Length", "Transfer-Encoding")
        ),
        *(
            {"headers": {f"Sec-WebSocket-{name}": "x"}}
            for name in ("Key", "Version", "Protocol", "Extensions")
        ),
        {"headers": "Sec-WebSocket-Key: x"},
        {"origin": CRLF},
        {"headers": {"Origin": "https://a.example"}, "origin": "https://b.example"},
        {"subprotocols": [CRLF]},
        {"subprotocols": ["a", "a"]},
        {"subprotocols": ["a b"]},
        {"subprotocols": "chat"},
        {"tls": True},
        {"headers": {"X": "x" * 4_096}},
    ],
    ids=repr,
)
async def test_request_that_cannot_be_sent_is_a_value_error_before_anything_is(options: Any) -> None:
    """No argument can smuggle in what is not its own; the peer sees the end of an empty stream. [K1, K2]"""
    ours, theirs = testing.memory_stream_pair()
    async with no_hang():
        with pytest.raises(ValueError, match=r"\S"):
            async with connect(**{"url": URL, **options}, stream=ours):
                raise AssertionError
        assert await Peer(theirs).rest() == b""


@virtual
async def test_connect_knows_the_fields_of_its_configuration() -> None:
    """Any field may be given as a keyword, and goes before the configuration's; others do not exist. [K2]"""
    config = ClientConfig(max_size=1, ping_interval=7)
    async with open_client(config=config, max_size=5) as (client, peer):
        await peer.send_frame(TEXT, b"12345")
        assert await client.receive() == "12345"
        with Stopwatch(7):
            assert (await peer.frame()).opcode == PING
    with pytest.raises(TypeError, match="max_conn"):
        async with connect(URL, max_conn=1):
            raise AssertionError


# --- the answer ---------------------------------------------------------------------------------------


@virtual
@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"headers": {"Upgrade": "WebSocket", "Connection": "keep-alive, upgrade"}},
        {"status": "101 Whatever You Say"},
        {"status": "101 "},
        {"headers": {"X-More": "1", "Set-Cookie": "a=b"}},
        {"headers": {"Sec-WebSocket-Protocol": "v1"}},
    ],
)
async def test_answer_that_is_right_opens_the_connection(answer: Any) -> None:
    """Tokens compare without case, the reason phrase means nothing, further headers are ignored. [K2]"""

    async def talk(peer: Peer) -> None:
        head = await peer.receive_head()
        await peer.send(build_answer(**answer, accept=accept_of(head)))
        await peer.expect_close(1000)
        await peer.send_close(1000)

    async with (
        against(talk) as stream,
        connect(URL, stream=stream, subprotocols=["v2", "v1"], close_timeout=1) as client,
    ):
        assert client.state is State.OPEN
        assert client.subprotocol == (answer.get("headers") or {}).get("Sec-WebSocket-Protocol")


@virtual
async def test_answer_may_come_after_interim_ones_and_in_pieces() -> None:
    """100 and 103 are not the answer yet (RFC 9110 §15.2); bytes may come one by one. [K2]"""

    async def talk(peer: Peer) -> None:
        head = await peer.receive_head()
        interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n"
        for byte in interim + build_answer(accept=accept_of(head)):
            await peer.send(bytes([byte]))
        await peer.expect_close(1000)
        await peer.send_close(1000)
        await peer.stream.aclose()

    async with against(talk) as stream, connect(URL, stream=stream) as client:
        assert client.state is State.OPEN


WRONG: dict[str, dict[str, Any]] = {
    "another accept": {"accept": support.ACCEPT},
    "no accept": {"headers": {"Sec-WebSocket-Accept": None}},
    "two accepts": {"more": "Sec-WebSocket-Accept: {accept}\r\n"},
    "no upgrade": {"headers": {"Upgrade": None}},
    "another upgrade": {"headers": {"Upgrade": "websocket2"}},
    "no connection": {"headers": {"Connection": None}},
    "another connection": {"headers": {"Connection": "close"}},
    "another subprotocol": {"headers": {"Sec-WebSocket-Protocol": "v9"}},
    "a subprotocol in another case": {"headers": {"Sec-WebSocket-Protocol": "V1"}},
    "two subprotocols": {"headers": {"Sec-WebSocket-Protocol": "v1, v2"}},
    "a subprotocol twice": {"more": "Sec-WebSocket-Protocol: v1\r\nSec-WebSocket-Protocol: v1\r\n"},
    "an extension": {"headers": {"Sec-WebSocket-Extensions": "permessage-gzip"}},
    "an old HTTP": {"line": "HTTP/1.0 101 Switching Protocols"},
    "a new HTTP": {"line": "HTTP/2.0 101 Switching Protocols"},
    "no HTTP": {"line": "SSH-2.0-OpenSSH_9.6"},
    "a long status": {"status": "1010 Switching Protocols"},
    "a status in words": {"status": "abc Switching Protocols"},
    "a folded line": {"more": "X: a\r\n b\r\n"},
    "a space before the colon": {"more": "X : a\r\n"},
    "a NUL": {"headers": {"X": "a\0"}},
    "a bare line feed": {"more": "X: a\nY: b\r\n"},
    "no colon": {"more": "X\r\n"},
}


@virtual
@pytest.mark.attack("S05")
@pytest.mark.parametrize("answer", WRONG.values(), ids=WRONG)
async def test_answer_that_is_wrong_is_an_invalid_response(answer: dict[str, Any]) -> None:
    """A 101 that is not a right answer to this request opens nothing: the stream is closed. [K2]"""

    async def talk(peer: Peer) -> None:
        head = await peer.receive_head()
        accept = accept_of(head)
        options = {"accept": accept, **answer}
        options["more"] = options.get("more", "").format(accept=accept)
        await peer.send(build_answer(**options))
        await peer.expect_end()

    async with nothing_left(), against(talk) as stream:
        with pytest.raises(InvalidResponse):
            async with connect(URL, stream=stream, subprotocols=["v1", "v2"]):
                raise AssertionError


@virtual
@pytest.mark.attack("S05", "S06")
@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\nX-Why: a\r\n\r\nnomore", b"no"),
        (b"HTTP/1.1 301 Moved\r\nLocation: file:///etc/passwd\r\nX-Why: a\r\n\r\n", b""),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Why: a\r\n\r\n2\r\nno\r\n0\r\n\r\n", b"no"),
        (b"HTTP/1.1 500 Oops\r\nX-Why: a\r\n\r\nuntil the end", b"until the end"),
        (b"HTTP/1.1 502 Oops\r\nContent-Length: 100\r\nX-Why: a\r\n\r\ncut off", b"cut off"),
        (b"HTTP/1.1 204 No Content\r\nX-Why: a\r\n\r\n", b""),
    ],
)
async def test_answer_that_refuses_has_status_headers_and_body(answer: bytes, body: bytes) -> None:
    """Any status but 101 is a refusal; a redirect is not followed, and the stream is closed. [K2]"""

    async def talk(peer: Peer) -> None:
        await peer.receive_head()
        await peer.send(answer)
        await peer.stream.send_eof()
        await peer.expect_end()

    async with nothing_left(), against(talk) as stream:
        with pytest.raises(HandshakeRejected) as caught:
            async with connect(URL, stream=stream):
                raise AssertionError
    assert caught.value.status == int(answer[9:12])
    assert caught.value.headers["X-WHY"] == "a"
    assert caught.value.body == body


async def say_nothing(peer: Peer) -> None:
    """Take the request."""
    await peer.receive_head()


async def stop_within(peer: Peer, size: int) -> None:
    """Send only a part of the answer, and go on being there."""
    await peer.send(build_answer(accept=accept_of(await peer.receive_head()))[:size])


@virtual
@pytest.mark.attack("S07")
@pytest.mark.parametrize("talk", [say_nothing, partial(stop_within, size=1), partial(stop_within, size=-1)])
async def test_answer_that_does_not_come_is_a_timeout(talk: Talk) -> None:
    """``timeout`` is for the whole opening handshake; then the stream is closed. [K2]"""
    async with nothing_left(), against(talk) as stream:
        with Stopwatch(6), pytest.raises(TimeoutError):
            async with connect(URL, stream=stream, timeout=6):
                raise AssertionError


async def send_forever(peer: Peer, start: bytes, more: bytes, *, pause: float = 0) -> None:
    """Answer without end; the client must have had enough before too much was sent."""
    await peer.receive_head()
    await peer.send(start)
    sent = 0
    with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
        while sent < 1_000_000:
            await peer.send(more)
            sent += len(more)
            await anyio.sleep(pause)
    assert sent < 300_000


@virtual
@pytest.mark.attack("S07")
@pytest.mark.parametrize(
    ("start", "more", "error"),
    [
        (b"", b"x", InvalidResponse),
        (b"HTTP/1.1 101 ", b"x" * 1_000, InvalidResponse),
        (b"HTTP/1.1 101 Switching Protocols\r\n", b"X: y\r\n", InvalidResponse),
        (b"HTTP/1.1 101 Switching Protocols\r\nX: ", b"y" * 1_000, InvalidResponse),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n", InvalidResponse),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", b"x" * 1_000, HandshakeRejected),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 9999999\r\n\r\n", b"x" * 1_000, HandshakeRejected),
        (
            b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"3e8\r\n" + b"x" * 1_000 + b"\r\n",
            HandshakeRejected,
        ),
        (
            b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n3e8;",
            b"x" * 1_000,
            HandshakeRejected,
        ),
    ],
    ids=range(9),
)
async def test_answer_without_end_is_cut_off(start: bytes, more: bytes, error: type[Exception]) -> None:
    """Neither status line nor headers, interim answers or body are read without a limit. [K2]"""
    async with nothing_left(), against(partial(send_forever, start=start, more=more)) as stream:
        with Stopwatch(0), pytest.raises(error) as caught:
            async with connect(URL, stream=stream):
                raise AssertionError
        if isinstance(caught.value, HandshakeRejected):
            assert len(caught.value.body) <= 65_536


@virtual
@pytest.mark.attack("S07")
async def test_answer_that_trickles_is_under_the_same_deadline() -> None:
    """A byte now and then does not make the wait longer. [K2]"""
    talk = partial(send_forever, start=b"HTTP/1.1 404 No\r\n\r\n", more=b"x", pause=1)
    async with nothing_left(), against(talk) as stream:
        with Stopwatch(6), pytest.raises((TimeoutError, HandshakeRejected)):
            async with connect(URL, stream=stream, timeout=6):
                raise AssertionError


@virtual
@pytest.mark.attack("S07", "H03")
@pytest.mark.parametrize("size", [0, 1, 60, -1])
@pytest.mark.parametrize("ends", ["send_eof", "aclose"])
async def test_answer_that_ends_too_early_is_an_invalid_response(size: int, ends: str) -> None:
    """A server that closes before its answer is complete is found out at once. [K2]"""

    async def talk(peer: Peer) -> None:
        await stop_within(peer, size)
        await getattr(peer.stream, ends)()

    async def run(peer: Peer) -> None:
        with suppress(anyio.ClosedResourceError):
            await talk(peer)

    async with nothing_left():
        ours, theirs = testing.memory_stream_pair()
        async with no_hang(), anyio.create_task_group() as tasks:
            tasks.start_soon(run, Peer(theirs, is_client=False))
            with Stopwatch(0), pytest.raises(InvalidResponse):
                async with connect(URL, stream=ours):
                    raise AssertionError


@virtual
@pytest.mark.attack("S08", "T12")
@pytest.mark.parametrize("close", [False, True])
async def test_frames_behind_the_answer_are_not_lost(close: bool) -> None:
    """What comes in the same bytes as the 101 is received, although a Close may follow at once. [K2]"""

    async def talk(peer: Peer) -> None:
        early = b"".join(peer.build(TEXT, b"%d" % number) for number in range(20))
        await peer.accept(early=early + (peer.build(CLOSE, b"\x03\xe8") if close else b""))
        await peer.expect_close(1000)
        if not close:
            await peer.send_close(1000)
        await peer.stream.aclose()

    async with against(talk) as stream, connect(URL, stream=stream) as client:
        assert [await client.receive() for _ in range(20)] == [str(number) for number in range(20)]
        if close:
            with pytest.raises(ConnectionEnded):
                await client.receive()


# --- the block of connect() ---------------------------------------------------------------------------


class Marker(Exception):
    """What the blocks of these tests raise."""


@virtual
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, 1000),
        (Marker("mine"), 1011),
        (ExceptionGroup("mine", [Marker()]), 1011),
        (anyio.EndOfStream(), 1011),
        (StopAsyncIteration("mine"), 1011),
        (KeyboardInterrupt("mine"), 1001),
        (SystemExit("mine"), 1001),
        (BaseExceptionGroup("mine", [KeyboardInterrupt()]), 1001),
    ],
    ids=repr,
)
async def test_connect_block_closes_with_the_code_that_tells_how_it_ended(
    error: BaseException | None, code: int
) -> None:
    """1000, or 1011 and 1001; what the block raised comes out itself, and never in a group. [K2]"""
    codes: list[int] = []

    async def talk(peer: Peer) -> None:
        await peer.accept()
        frame = await peer.frame()
        assert frame.opcode == CLOSE
        codes.append(int.from_bytes(frame.payload, "big"))
        await peer.send_frame(CLOSE, frame.payload)
        await peer.stream.aclose()

    async with nothing_left(), against(talk) as stream:
        caught = None
        try:
            async with connect(URL, stream=stream):
                if error is not None:
                    raise error
        except BaseException as exc:  # noqa: BLE001  # it is looked at
            caught = exc
        assert caught is error
    assert codes == [code]


@virtual
@pytest.mark.attack("T04")
async def test_connect_block_that_is_cancelled_closes_with_1001() -> None:
    """The cancellation goes on when the peer has answered. [K2]"""

    async def talk(peer: Peer) -> None:
        await peer.accept()
        await peer.expect_close(1001)
        await anyio.sleep(3)
        await peer.send_close(1001)
        await peer.stream.aclose()

    async with nothing_left(), against(talk) as stream:
        with Stopwatch(2 + 3), anyio.move_on_after(2) as scope:
            async with connect(URL, stream=stream):
                await anyio.sleep_forever()
        assert scope.cancelled_caught


@virtual
@pytest.mark.attack("T04")
@pytest.mark.parametrize("cancelled", [False, True])
async def test_connect_block_does_not_wait_for_ever_for_the_peer(cancelled: bool) -> None:
    """A peer that never answers the Close has ``close_timeout``, also when the block is cancelled. [K2]"""

    async def talk(peer: Peer) -> None:
        await peer.accept()

    async with nothing_left(), against(talk) as stream:
        with Stopwatch(4), anyio.CancelScope() as scope:
            async with connect(URL, stream=stream, close_timeout=4) as client:
                if cancelled:
                    scope.cancel()
                    await anyio.lowlevel.checkpoint()
        assert client.close_code == 1006


@virtual
@pytest.mark.parametrize("how", ["closed", "aborted", "by the peer", "lost"])
async def test_connect_block_may_end_with_a_connection_that_is_gone(how: str) -> None:
    """Whatever became of the connection, the end of the block is no error. [K2]"""
    async with nothing_left(), open_client() as (client, peer):
        if how == "closed":
            await peer.send_close(1000)
            await client.close()
        elif how == "aborted":
            client.abort()
        elif how == "by the peer":
            await peer.send_close(4000)
            await settle()
        else:
            await peer.stream.aclose()
            await settle()
        assert client.is_closed


@virtual
async def test_connect_block_discards_what_nobody_received() -> None:
    """Messages that wait in the inbox, however many, do not hold up the closing handshake. [K2]"""
    async with flooded(1000) as ours:
        with Stopwatch(0):
            async with connect(URL, stream=ours, inbox_size=1_000):
                await settle()


@virtual
async def test_connect_gives_up_a_tcp_connection_that_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """``timeout`` counts from the start: TCP, TLS and opening handshake together. [K2]"""

    async def connect_tcp(host: str, port: int) -> ByteStream:
        assert (host, port) == ("localhost", 80)
        await anyio.sleep(4)
        return stream

    monkeypatch.setattr(module, "connect_tcp", connect_tcp)
    async with nothing_left(), against(say_nothing) as stream:
        with Stopwatch(6), pytest.raises(TimeoutError):
            async with connect(URL, timeout=6):
                raise AssertionError


@virtual
@pytest.mark.attack("S07", "S03")
async def test_connect_gives_up_a_tls_handshake_that_takes_too_long() -> None:
    """A server that says nothing to TLS is given up in time, and the stream is closed. [K2, K8]"""

    async def talk(peer: Peer) -> None:
        await peer.stream.receive()

    async with nothing_left(), against(talk) as stream:
        with Stopwatch(6), pytest.raises(TimeoutError):
            async with connect("wss://localhost/", stream=stream, timeout=6):
                raise AssertionError


@virtual
@pytest.mark.attack("S04")
@pytest.mark.parametrize("answer", [b"", b"\x16\x03\x01", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
async def test_connect_finds_out_that_a_server_speaks_no_tls(answer: bytes) -> None:
    """The end of the stream, or something else in place of TLS, is an ``OSError`` at once. [K2, K8]"""

    async def talk(peer: Peer) -> None:
        await peer.stream.receive()
        await peer.send(answer)
        await peer.stream.send_eof()

    async with nothing_left(), against(talk) as stream:
        with Stopwatch(0), pytest.raises(OSError, match=r"TLS|SSL|ssl"):
            async with connect("wss://localhost/", stream=stream):
                raise AssertionError


async def test_connect_to_nobody_is_an_os_error() -> None:
    """The system's error comes out itself, and nothing is left. [K2]"""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        async with nothing_left():
            with pytest.raises(OSError, match=r"\S") as caught:
                async with connect(f"ws://127.0.0.1:{port}/"):
                    raise AssertionError
            assert not isinstance(caught.value, ExceptionGroup)
            with pytest.raises(OSError, match=r"\S"):
                await Client.connect("127.0.0.1", port)
            with pytest.raises(OSError, match=r"\S"):
                async with connect(URL, unix_path="/nonexistent/socket"):
                    raise AssertionError


# --- the two steps ------------------------------------------------------------------------------------


async def echo(conn: Conn) -> None:
    """Serve by sending every message back; say where a message came from when asked."""
    async for message in conn:
        await conn.send(message)


@asynccontextmanager
async def echo_server(**fields: Any) -> AsyncIterator[Any]:
    """Serve on a real socket, and give its address."""
    async with listening(Server(FunctionFactory(echo), Config(port=0, **fields))) as (address,):
        yield address


async def test_client_connects_and_shakes_hands_in_two_steps() -> None:
    """After both it is a connection like any other, which its owner must close. [K1]"""
    async with nothing_left(), echo_server(subprotocols=["v1"]) as (host, port):
        client = await Client.connect(host, port)
        assert (client.state, client.remote_address) == (State.CONNECTING, (host, port))
        await client.handshake(
            "/path", timeout=5, headers={"X": "1"}, subprotocols=["v1"], origin=f"http://{host}:{port}"
        )
        assert client.state is State.OPEN
        assert client.subprotocol == "v1"
        await client.write("hello")
        assert await client.receive() == "hello"
        await client.close()
        assert (client.state, client.close_code, client.closed_by) == (State.CLOSED, 1000, Role.CLIENT)


async def test_client_takes_the_origin_s_raw_headers() -> None:
    r"""``"Host: x\r\nA: b"`` is what a port of the origin's programs passes. [K1]"""
    seen: list[Any] = []

    async def look(conn: Conn, handshake: Any) -> None:
        seen.append((handshake.url, handshake.headers["host"], handshake.headers["a"]))

    async with listening(Server(FunctionFactory(look), Config(port=0))) as ((host, port),):
        client = await Client.connect(host, port, ClientConfig())
        await client.handshake("/ws", headers="Host: x\r\nA: b")
        await client.wait_gone()
    assert seen == [("/ws", "x", "b")]


async def test_client_that_is_not_open_yet_can_do_nothing_but_shake_hands() -> None:
    """Before the handshake everything else is an error that says so, and does no harm. [K1]"""
    handler = Collector()
    async with nothing_left(), echo_server() as address:
        client = await Client.connect(*address)
        with pytest.raises(LocalProtocolError, match="opening handshake is not done"):
            await client.write("early")
        with pytest.raises(LocalProtocolError, match="opening handshake is not done"):
            await client.receive()
        with pytest.raises(LocalProtocolError, match="opening handshake is not done"):
            await client.close()
        with pytest.raises(LocalProtocolError, match="opening handshake is not done"):
            await client.read_loop(handler)
        assert handler.seen == []
        await client.handshake()
        await client.write("hello")
        assert await client.receive() == "hello"
        await client.close()


async def test_client_can_try_again_when_a_request_could_not_be_sent() -> None:
    """A ``ValueError`` comes before anything is sent, and the connection is as it was. [K1]"""
    async with nothing_left(), echo_server() as address:
        client = await Client.connect(address[0], address[1], ClientConfig(buffer_size=512))
        wrong: list[Any] = [{"path": "no/slash"}, {"headers": {"X": CRLF}}, {"headers": {"X": "x" * 512}}]
        for options in wrong:
            with pytest.raises(ValueError, match=r"^(path|header X|headers): "):
                await client.handshake(**options)
            assert not client.is_closed or client.state is State.CONNECTING
        await client.handshake()
        await client.close()


async def test_client_shakes_hands_once() -> None:
    """A second handshake, after a good or a bad one, is an error and changes nothing. [K1]"""
    async with nothing_left(), echo_server() as address:
        client = await Client.connect(*address)
        await client.handshake()
        with pytest.raises(LocalProtocolError, match="was done already"):
            await client.handshake()
        await client.write("hello")
        assert await client.receive() == "hello"
        await client.close()
        with pytest.raises(LocalProtocolError, match="was done already"):
            await client.handshake()


@pytest.mark.attack("R14", "T06")
async def test_client_that_was_refused_is_closed() -> None:
    """After a refused handshake nothing is left, whether its owner closes it or not. [K1]"""
    async with nothing_left(), echo_server() as address:
        client = await Client.connect(*address)
        with pytest.raises(HandshakeRejected, match="403"):
            await client.handshake(origin="https://evil.example")
        await client.wait_gone()
        assert client.state is State.CLOSED
        with pytest.raises(ConnectionBroken):
            await client.write("late")
        await client.aclose()
        with pytest.raises(ConnectionShut):
            await client.write("late")


async def test_client_that_never_shook_hands_can_be_closed() -> None:
    """``aclose`` and ``abort`` need no opening handshake. [K1, C9]"""
    async with nothing_left(), echo_server() as address:
        for close in (Client.aclose, abort):
            client = await Client.connect(*address)
            await close(client)
            assert client.state is State.CLOSED


async def abort(client: Client) -> None:
    """Abort a connection, and wait for its end."""
    client.abort()
    await client.wait_gone()


async def test_client_lives_outside_of_the_task_that_made_it() -> None:
    """It belongs to no block: a task may connect and end, and another go on with the connection. [K1]"""
    clients: list[Client] = []

    async def make() -> None:
        client = await Client.connect(*address)
        await client.handshake()
        clients.append(client)

    async with nothing_left(), echo_server() as address:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(make)
            scope.cancel()
        (client,) = clients
        await client.write("hello")
        assert await client.receive() == "hello"
        await client.close()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("open_it", [False, True])
@pytest.mark.attack("O16")
def test_client_that_is_never_closed_ends_with_the_event_loop(backend: str, open_it: bool) -> None:
    """A forgotten connection costs nothing but its peer's patience: no warning, no descriptor. [K1]"""
    before = support.open_descriptors()

    async def forget() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = await Client.connect(*listener.getsockname())
            conn, _ = await anyio.to_thread.run_sync(listener.accept)
            with conn:
                if open_it:
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(client.handshake)
                        conn.setblocking(False)
                        await anyio.wait_readable(conn)
                        request = conn.recv(4_096).decode().split("\r\n")
                        head = Head("", [tuple(line.split(": ")) for line in request[1:-2]])  # type: ignore[misc]
                        key = Head("", [(name.lower(), value) for name, value in head.headers])
                        conn.sendall(build_answer(accept=accept_of(key)))
                    assert client.state is State.OPEN

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        anyio.run(forget, backend=backend)
        gc.collect()
    assert support.open_descriptors() - before == set()


# --- reading ------------------------------------------------------------------------------------------


class Collector:
    """A handler of a read loop that keeps what it is given, and notes its end."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def handle(self, message: Message) -> None:
        """Keep it."""
        self.seen.append(message)

    def close(self) -> None:
        """Note it."""
        self.seen.append("closed")


class SlowCollector(Collector):
    """The same with ``async def``."""

    async def handle(self, message: Message) -> None:  # type: ignore[override]
        """Keep it, after a while."""
        self.seen.append("begin")
        await anyio.sleep(1)
        self.seen.append(message)

    async def close(self) -> None:  # type: ignore[override]
        """Note it, after a while."""
        await anyio.sleep(1)
        self.seen.append("closed")


@virtual
async def test_read_returns_messages_with_their_type() -> None:
    """``read`` is ``receive`` with the type; after the end it raises like that. [K5]"""
    async with open_client() as (client, peer):
        await peer.send_frame(TEXT, b"text")
        await peer.send_frame(BINARY, b"binary")
        await peer.send_close(4000)
        assert await client.read() == Message(MessageType.TEXT, "text")
        assert await client.read(timeout=1) == Message(MessageType.BINARY, b"binary")
        with pytest.raises(ConnectionEnded) as caught:
            await client.read()
        assert caught.value.code == 4000


@virtual
@pytest.mark.attack("T02")
async def test_read_returns_none_when_nothing_comes_in_time() -> None:
    """Nothing is lost by that: the next call has what came afterwards. [K5]"""
    async with open_client() as (client, peer):
        with Stopwatch(3):
            assert await client.read(timeout=3) is None
        await peer.send_frame(TEXT, b"late")
        assert await client.read(timeout=1) == Message(MessageType.TEXT, "late")
        await peer.send_frame(TEXT, b"later")
        await settle()
        assert await client.read(timeout=0) == Message(MessageType.TEXT, "later")


@virtual
@pytest.mark.parametrize("kind", [Collector, SlowCollector])
async def test_read_loop_hands_over_messages_in_order_and_one_at_a_time(kind: type[Collector]) -> None:
    """``handle`` gets each message, ``close`` comes once at the end, ``def`` or ``async def``. [K3]"""
    handler = kind()
    async with open_client() as (client, peer):
        await peer.send_frame(TEXT, b"before the loop")
        await settle()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.read_loop, handler)
            await peer.send(peer.build(TEXT, b"one") + peer.build(BINARY, b"two"))
            await peer.send_close(1000)
            await peer.expect_close(1000)
    messages = [Message(MessageType.TEXT, "before the loop"), Message(MessageType.TEXT, "one")]
    messages.append(Message(MessageType.BINARY, b"two"))
    begin = ["begin"] if kind is SlowCollector else []
    assert handler.seen == [each for message in messages for each in (*begin, message)] + ["closed"]


@virtual
async def test_read_loop_needs_no_close_hook() -> None:
    """A handler without ``close`` is fine. [K3]"""

    class Short:
        def handle(self, message: Message) -> None: ...

    async with open_client() as (client, peer):
        await peer.send_close(1000)
        await client.read_loop(Short())


@virtual
@pytest.mark.parametrize("handler", [object(), None, type("Wrong", (), {"handle": 5})()])
async def test_read_loop_refuses_a_handler_without_handle(handler: Any) -> None:
    """It is said before anything is read, and the connection goes on. [K3]"""
    async with open_client() as (client, peer):
        with pytest.raises(TypeError, match=r"has no handle\(message\)"):
            await client.read_loop(handler)
        await peer.send_frame(TEXT, b"hello")
        assert await client.receive() == "hello"


async def peer_closes(client: Client, peer: Peer) -> None:
    await peer.send_close(1000)


async def peer_fails(client: Client, peer: Peer) -> None:
    await peer.send_frame(TEXT, b"masked", key=b"mask")


async def peer_leaves(client: Client, peer: Peer) -> None:
    await peer.stream.aclose()


async def peer_falls_silent(client: Client, peer: Peer) -> None:
    await anyio.sleep(41)


async def we_close(client: Client, peer: Peer) -> None:
    client.close_nowait()
    await peer.expect_close(1000)
    await peer.send_close(1000)
    await peer.stream.aclose()


async def we_close_in_vain(client: Client, peer: Peer) -> None:
    await client.close()


async def we_abort(client: Client, peer: Peer) -> None:
    client.abort()


@virtual
@pytest.mark.attack("T10", "O02")
@pytest.mark.parametrize(
    ("ending", "code"),
    [
        (peer_closes, 1000),
        (peer_fails, 1002),
        (peer_leaves, 1006),
        (peer_falls_silent, 1006),
        (we_close, 1000),
        (we_close_in_vain, 1006),
        (we_abort, 1006),
    ],
)
@pytest.mark.parametrize("kind", [Collector, SlowCollector])
async def test_read_loop_ends_with_the_connection_whatever_the_cause(
    ending: Any, code: int, kind: type[Collector]
) -> None:
    """It returns, raises nothing, and has called ``close`` exactly once; the code tells how it was. [K3]"""
    handler = kind()
    async with open_client() as (client, peer):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.read_loop, handler)
            await settle()
            await ending(client, peer)
        assert client.close_code == code
    assert handler.seen == ["closed"]


@virtual
@pytest.mark.attack("T13")
@pytest.mark.parametrize("is_async", [False, True])
async def test_read_loop_raises_what_handle_raises(is_async: bool) -> None:
    """The peer sees 1011, ``close`` is called, and the error comes out itself. [K3]"""
    error = Marker("mine")

    class Failing(SlowCollector if is_async else Collector):  # type: ignore[misc]
        if is_async:

            async def handle(self, message: Message) -> None:
                await anyio.lowlevel.checkpoint()
                raise error

        else:

            def handle(self, message: Message) -> None:  # type: ignore[misc]
                raise error

    handler = Failing()
    async with open_client() as (client, peer):
        await peer.send(peer.build(TEXT, b"one") + peer.build(TEXT, b"two"))
        with pytest.raises(Marker) as caught:
            await client.read_loop(handler)
        assert caught.value is error
        await peer.expect_close(1011)
    assert handler.seen == ["closed"]


@virtual
@pytest.mark.attack("T15")
async def test_read_loop_raises_what_close_raises() -> None:
    """An error in ``close`` is not lost; that of ``handle`` is its context. [K3]"""

    class Failing(Collector):
        def handle(self, message: Message) -> None:
            raise ValueError("in handle")

        def close(self) -> None:
            raise Marker("in close")

    async with open_client() as (client, peer):
        await peer.send_frame(TEXT, b"one")
        with pytest.raises(Marker) as caught:
            await client.read_loop(Failing())
        assert isinstance(caught.value.__context__, ValueError)


@virtual
@pytest.mark.attack("T16")
@pytest.mark.parametrize("kind", [Collector, SlowCollector])
@pytest.mark.parametrize("message", [None, b"work"])
async def test_read_loop_that_is_cancelled_closes_with_1001(
    kind: type[Collector], message: bytes | None
) -> None:
    """``close`` is called all the same, and the cancellation goes on. [K3]"""
    handler = kind()
    async with open_client() as (client, peer):
        if message is not None:
            await peer.send_frame(TEXT, message)
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(client.read_loop, handler)
                await settle()
                scope.cancel()
                with anyio.CancelScope(shield=True):
                    await peer.expect_close(1001)
                    await peer.send_close(1001)
                    await peer.stream.aclose()
        assert scope.cancelled_caught
        assert client.state is State.CLOSED
    assert handler.seen[-1] == "closed"
    assert handler.seen.count("closed") == 1


@virtual
@pytest.mark.attack("T16")
async def test_read_loop_that_is_cancelled_sees_the_peer_s_close_behind_a_backlog() -> None:
    """What nobody will read any more is discarded, so that the closing handshake is not held up. [K3]"""
    async with flooded(1001) as ours, connect(URL, stream=ours, inbox_size=1_000) as client:
        with Stopwatch(2):
            with anyio.move_on_after(1):
                await client.read_loop(SlowCollector())
        assert client.close_code == 1001


@virtual
@pytest.mark.attack("T08")
async def test_read_loop_is_refused_while_another_task_receives() -> None:
    """The second reader gets the error; the first goes on, and so does the connection. [K3]"""
    first, second = Collector(), Collector()
    async with open_client() as (client, peer), anyio.create_task_group() as tasks:
        tasks.start_soon(client.read_loop, first)
        await settle()
        with pytest.raises(anyio.BusyResourceError):
            await client.read_loop(second)
        await peer.send_frame(TEXT, b"one")
        await peer.send_close(1000)
    assert first.seen == [Message(MessageType.TEXT, "one"), "closed"]
    assert second.seen == []


@virtual
@pytest.mark.attack("T11")
async def test_read_loop_lets_its_handler_and_other_tasks_write_and_close() -> None:
    """Everything that writes may be used within ``handle`` and beside the loop. [K4]"""

    class Answering(Collector):
        async def handle(self, message: Message) -> None:  # type: ignore[override]
            self.seen.append(message.data)
            await client.write(f"got {message.data!r}")
            if message.data == "last":
                await client.close_with_code(4000)

    handler = Answering()
    async with open_client() as (client, peer), anyio.create_task_group() as tasks:
        tasks.start_soon(client.read_loop, handler)
        await client.write("text")
        await client.write_text("text")
        await client.write_bin(b"binary")
        await client.write_ping(b"ping")
        await client.write_pong(b"pong")
        await client.write_frame(Opcode.TEXT, b"frag", fin=False)
        await client.write_frame(Opcode.CONTINUATION, b"ment")
        for opcode, payload in (
            (TEXT, b"text"),
            (TEXT, b"text"),
            (BINARY, b"binary"),
            (PING, b"ping"),
            (PONG, b"pong"),
            (TEXT, b"frag"),
            (0, b"ment"),
        ):
            frame = await peer.frame()
            assert (frame.opcode, frame.payload) == (opcode, payload)
            assert frame.key is not None
        await peer.send(peer.build(TEXT, b"first") + peer.build(TEXT, b"last") + peer.build(TEXT, b"late"))
        await peer.expect(TEXT, b"got 'first'")
        await peer.expect(TEXT, b"got 'last'")
        await peer.expect_close(4000)
        await peer.send_close(4000)
        await peer.stream.aclose()
    assert handler.seen == ["first", "last", "closed"]


CONTROL = [
    ("handle_ping", PING, b"ping"),
    ("handle_pong", PONG, b"pong"),
    ("handle_close", CLOSE, b"\x03\xe8bye"),
]


@virtual
@pytest.mark.parametrize(("field", "opcode", "payload"), CONTROL)
async def test_control_frames_do_not_reach_the_handler_by_default(
    field: str, opcode: int, payload: bytes
) -> None:
    """Pings and closes are answered, pongs matched, and the handler hears nothing of it. [K6]"""
    handler = Collector()
    async with open_client(**{field: False}) as (client, peer), anyio.create_task_group() as tasks:
        tasks.start_soon(client.read_loop, handler)
        await peer.send_frame(opcode, payload)
        if opcode == PING:
            await peer.expect(PONG, payload)
        if opcode != CLOSE:
            await peer.send_close(1000)
        await peer.expect_close(1000)
        await peer.stream.aclose()
    assert handler.seen == ["closed"]


@virtual
@pytest.mark.parametrize(("field", "opcode", "payload"), CONTROL)
async def test_control_frames_reach_the_handler_that_wants_them(
    field: str, opcode: int, payload: bytes
) -> None:
    """Then nothing is automatic; after a Close the loop ends all the same. [K6]"""
    handler = Collector()
    async with open_client(**{field: True}) as (client, peer), anyio.create_task_group() as tasks:
        tasks.start_soon(client.read_loop, handler)
        await peer.send_frame(TEXT, b"before")
        await peer.send_frame(opcode, payload)
        if opcode == CLOSE:
            with Stopwatch(0):
                await peer.expect_end()
        else:
            await peer.send_close(1000)
            await peer.expect_close(1000)
            await peer.stream.aclose()
    message = Message(MessageType(opcode), payload)
    assert handler.seen == [Message(MessageType.TEXT, "before"), message, "closed"]


@virtual
async def test_control_frames_can_be_answered_by_the_handler() -> None:
    """A handler that takes pings and closes over answers them as it likes. [K6]"""

    class Answering(Collector):
        async def handle(self, message: Message) -> None:  # type: ignore[override]
            if message.type is MessageType.PING:
                await client.write_pong(b"mine")
            else:
                await client.close(4001, "mine")

    async with (
        open_client(handle_ping=True, handle_close=True) as (client, peer),
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(client.read_loop, Answering())
        await peer.send_frame(PING, b"theirs")
        await peer.expect(PONG, b"mine")
        await peer.send_close(1000)
        await peer.expect_close(4001, "mine")
        await peer.stream.aclose()


@virtual
async def test_control_frames_that_are_wanted_come_out_of_read() -> None:
    """Outside of a read loop ``read`` returns them; ``receive`` passes over them. [K6]"""
    async with open_client(handle_ping=True, handle_close=True) as (client, peer):
        await peer.send_frame(PING, b"one")
        assert await client.read() == Message(MessageType.PING, b"one")
        await peer.send(peer.build(PING, b"two") + peer.build(TEXT, b"text"))
        assert await client.receive() == "text"
        await peer.send_close(4000)
        message = await client.read()
        assert message is not None
        assert (message.type, message.close_code) == (MessageType.CLOSE, 4000)
        with pytest.raises(ConnectionEnded):
            await client.read()


@virtual
async def test_client_iterates_until_the_end() -> None:
    """``async for`` ends with an orderly end; a broken connection raises. [C9]"""
    async with open_client() as (client, peer):
        await peer.send(
            peer.build(TEXT, b"one") + peer.build(BINARY, b"two") + peer.build(CLOSE, b"\x03\xe8")
        )
        assert [message async for message in client] == ["one", b"two"]
    async with open_client() as (client, peer):
        await peer.send_frame(TEXT, b"one")
        await peer.stream.aclose()
        with pytest.raises(anyio.BrokenResourceError):
            [message async for message in client]


@virtual
async def test_client_says_who_closed() -> None:
    """Closed by us and used again is ``ClosedResourceError``; the codes are those of the Close. [C3, C8]"""
    async with open_client() as (client, peer):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.close, 4000, "mine")
            await peer.expect_close(4000, "mine")
            await peer.send_close(4000)
            await peer.stream.aclose()
        assert (client.close_code, client.closed_by) == (4000, Role.CLIENT)
        with pytest.raises(ConnectionShut):
            await client.write("late")
        with pytest.raises(anyio.ClosedResourceError):
            await client.receive()
        await client.close()


# --- TLS ----------------------------------------------------------------------------------------------


def bundle_file(path: Path) -> Path:
    """Write the certificates to trust into a file."""
    path.write_bytes(PEM)
    return path


@pytest.mark.attack("S02")
@pytest.mark.parametrize(
    "fields",
    [
        lambda path: {"ca_bundle": PEM},
        lambda path: {"ca_bundle": ssl.PEM_cert_to_DER_cert(PEM.decode())},
        lambda path: {"ca_bundle": bundle_file(path)},
        lambda path: {"ca_bundle": str(bundle_file(path))},
        lambda path: {"ca_bundle": client_context()},
        lambda path: {"tls": client_context()},
        lambda path: {"tls": True, "ca_bundle": PEM},
    ],
    ids=["PEM", "DER", "Path", "path", "bundle context", "tls context", "tls"],
)
async def test_tls_trusts_what_it_is_told_to_trust(fields: Any, tmp_path: Path) -> None:
    """A bundle as path, PEM, DER or context, or a context in ``tls``: each makes the server trusted. [K8]"""
    options = fields(tmp_path / "bundle.pem")
    async with nothing_left(), echo_server(tls=server_context()) as (host, port):
        async with connect(f"wss://localhost:{port}/", **options) as client:
            await client.write("hello")
            assert await client.receive() == "hello"
        client = await Client.connect(host, port, ClientConfig(**{"tls": True, **options}))
        await client.handshake()
        await client.write("hello")
        assert await client.receive() == "hello"
        await client.close()


@pytest.mark.attack("S02")
@pytest.mark.parametrize(
    ("names", "past", "options", "reason"),
    [
        (["localhost"], None, {}, r"unable to get local issuer|self.signed|verify failed"),
        (["other.example"], None, {"ca_bundle": PEM}, r"[Hh]ostname mismatch"),
        (["localhost"], datetime.now(timezone.utc) - timedelta(days=1), {"ca_bundle": PEM}, r"expired"),
    ],
    ids=["untrusted", "another host", "expired"],
)
async def test_tls_verifies_the_server_by_default(
    names: list[str], past: datetime | None, options: Any, reason: str
) -> None:
    """An unknown authority, another host's certificate, an old one: no connection, nothing left. [K8]"""
    async with nothing_left(), echo_server(tls=server_context(*names, not_after=past)) as (_, port):
        with pytest.raises(ssl.SSLCertVerificationError, match=reason):
            async with connect(f"wss://localhost:{port}/", **options):
                raise AssertionError
        with pytest.raises(ssl.SSLCertVerificationError, match=reason):
            await Client.connect("localhost", port, ClientConfig(tls=True, **options))


def test_tls_default_context_is_made_once() -> None:
    """It is shared by all clients of the process, and verifies. [K8]"""
    context = module._context(ClientConfig(tls=True))
    assert module._context(ClientConfig(tls=True)) is context
    assert context is not None
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED


async def test_tls_bundle_that_is_missing_is_an_os_error(tmp_path: Path) -> None:
    """The error is the system's, it comes before anything is opened, and nothing is left. [K8]"""
    config = ClientConfig(tls=True, ca_bundle=tmp_path / "missing.pem")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
        listener.setblocking(False)
        async with nothing_left():
            with pytest.raises(FileNotFoundError):
                async with connect(f"wss://{host}:{port}/", config=config):
                    raise AssertionError
            with pytest.raises(FileNotFoundError):
                await Client.connect(host, port, config)
        with pytest.raises(BlockingIOError):
            listener.accept()


async def test_tls_client_needs_a_secure_url() -> None:
    """``tls`` with a ``ws://`` URL is a contradiction, and refused before anything is opened. [K8]"""
    with pytest.raises(ValueError, match=r"^url: tls is configured"):
        async with connect("ws://127.0.0.1:1/", tls=client_context()):
            raise AssertionError


# --- cancellation -------------------------------------------------------------------------------------


@swept
@pytest.mark.attack("T06", "R14")
async def test_connect_that_is_cancelled_anywhere_leaves_nothing(how: str) -> None:
    """At whatever point it is cut, the stream is closed and no task goes on. [K2]"""

    async def talk(peer: Peer) -> None:
        with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            await peer.accept()
            while (frame := await peer.frame()).opcode != CLOSE:
                await peer.send_frame(PONG, frame.payload)
            await peer.send_frame(CLOSE, frame.payload)
        await peer.stream.aclose()

    async def use(stream: ByteStream) -> None:
        async with connect(URL, stream=stream, close_timeout=1) as client:
            await client.ping()

    async with nothing_left():
        async for cut in every_cut(how, at_least=5):
            ours, theirs = testing.memory_stream_pair()
            async with no_hang(), anyio.create_task_group() as tasks:
                tasks.start_soon(talk, Peer(theirs, is_client=False))
                await cut(use(ours))
            assert ours._closed


@swept
@pytest.mark.attack("T06", "R14")
async def test_connect_over_a_socket_that_is_cancelled_anywhere_leaves_nothing(how: str) -> None:
    """So it is with name resolution, TCP, TLS and the two steps. [K1, K2, K8]"""
    config = ClientConfig(tls=True, ca_bundle=client_context())

    async def use_block() -> None:
        async with connect(f"wss://localhost:{port}/", config=config):
            pass

    async def use_steps() -> None:
        client = await Client.connect("127.0.0.1", port, config)
        try:
            await client.handshake()
        finally:
            await client.aclose()

    async with nothing_left(), echo_server(tls=server_context(), close_timeout=0.1) as (_, port):
        for use in (use_block, use_steps):
            async for cut in every_cut(how, at_least=4):
                await cut(use())
