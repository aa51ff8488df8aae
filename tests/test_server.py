"""The server: what listens, who is let in, what is kept apart, and how everything ends.

Most of it runs in memory and on a clock that jumps. What is about sockets uses real ones: their
addresses, their files, what a peer still gets to read, and what is left over.
"""

from __future__ import annotations

import errno
import logging
import signal
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
import trustme
from anyio.abc import AnyByteStream, SocketAttribute
from anyio.streams.tls import TLSAttribute

from anyio_ws import (
    Client,
    Config,
    Conn,
    ConnectionClosed,
    ConnectionEnded,
    ConnectionShut,
    Handshake,
    HandshakeConfig,
    HandshakeRejected,
    Reject,
    Request,
    Response,
    Role,
    Server,
    State,
    connect,
    serve,
    testing,
)
from anyio_ws.handler import FunctionFactory

from . import support
from .support import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    TEXT,
    Peer,
    Serving,
    Stopwatch,
    build_request,
    listening,
    no_hang,
    nothing_left,
    serving,
    settle,
    take_log,
    virtual,
)

no_surprises = support.no_surprises
pytestmark = pytest.mark.usefixtures("no_surprises")

LOCAL = Config(port=0)


class Echo:
    """A handler that sends every message back, and writes what happens into the application, a list."""

    def __init__(self, conn: Conn, app: list[Any] | None) -> None:
        self.conn = conn
        self.diary = [] if app is None else app

    async def client_message(self, data: Any) -> None:
        """Send it back."""
        await self.conn.send(data)

    def close(self) -> None:
        """Note how it ended."""
        self.diary.append(self.conn.close_code)


@asynccontextmanager
async def tcp_peer(address: tuple[str, int]) -> AsyncIterator[Peer]:
    """Connect to a server as a peer that speaks bytes."""
    async with await anyio.connect_tcp(*address) as stream:
        yield Peer(stream)


def url_of(address: Any, scheme: str = "ws") -> str:
    """Return the URL of a server's address."""
    host, port = address
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/"


# --- listening ----------------------------------------------------------------------------------------


async def test_listen_gives_its_addresses_when_it_is_ready() -> None:
    """``start`` returns them, ``addresses`` has them while the server listens, and not after. [S2]"""
    server = Server(Echo, LOCAL)
    assert server.addresses == []
    async with listening(server) as addresses:
        assert server.addresses == addresses
        async with connect(url_of(addresses[0])) as client:
            await client.write("hello")
            assert await client.receive() == "hello"
    assert server.addresses == []
    with pytest.raises(OSError, match=r"[Cc]onnect|refused"):
        await anyio.connect_tcp(*addresses[0])


async def test_listen_can_be_called_again_when_it_has_ended() -> None:
    """A server is not used up by its end: it binds and serves anew. [S2]"""
    server = Server(Echo, LOCAL)
    for _ in range(2):
        async with listening(server) as addresses, connect(url_of(addresses[0])) as client:
            await client.write("hello")
            assert await client.receive() == "hello"


@virtual
async def test_listen_is_refused_while_the_server_listens() -> None:
    """Two at a time would not know which connections are whose. [S2]"""
    async with serving(Echo) as served:
        with pytest.raises(RuntimeError, match="this server is listening already"):
            await served.server.listen()
        peer = await served.open()
        await peer.close_handshake()


async def test_listen_fails_where_the_address_is_taken() -> None:
    """The error is the system's own, bare, and the server can be used afterwards. [S2]"""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        server = Server(Echo, Config(port=taken.getsockname()[1]))
        async with nothing_left():
            with pytest.raises(OSError, match=r"in use|EADDRINUSE") as caught:
                await server.listen()
            assert not isinstance(caught.value, ExceptionGroup)
        assert server.addresses == []
    async with listening(server) as addresses:
        assert len(addresses) == 1


@virtual
@pytest.mark.parametrize("app", [None, {"an": "object"}])
async def test_listen_hands_the_application_to_every_handler(app: Any) -> None:
    """``app`` is what ``listen`` was given, ``None`` by default. [S3]"""
    got: list[Any] = []

    class Noting:
        def __init__(self, app: Any) -> None:
            got.append(app)

        def client_message(self, data: Any) -> None: ...

    async with serving(Noting, app) as served:
        for _ in range(2):
            await (await served.open()).close_handshake()
    assert got == [app, app]
    assert got[0] is app


def test_server_has_its_config() -> None:
    """``config`` is what the server was made with, the default one otherwise. [S1]"""
    assert Server(Echo, LOCAL).config is LOCAL
    assert Server(Echo).config == Config()


@virtual
async def test_listen_accepts_from_listeners_that_it_is_given() -> None:
    """Any AnyIO listener will do; all of them are served, and closed at the end. [S2]"""
    listeners = [testing.MemoryListener(), testing.MemoryListener()]
    server = Server(Echo)
    async with no_hang(), anyio.create_task_group() as tasks:
        assert await tasks.start(partial(server.listen, listeners=listeners)) == ["", ""]
        for listener in listeners:
            peer = Peer(listener.connect())
            await peer.open()
            await peer.close_handshake()
        server.stop()
        await server.wait_stopped()
        for listener in listeners:
            with pytest.raises((anyio.ClosedResourceError, anyio.BrokenResourceError)):
                listener.connect()


async def test_wait_stopped_returns_when_everything_is_closed() -> None:
    """Whoever stops a server can wait for its end; that of one that does not listen has come. [S4]"""
    diary: list[Any] = []
    server = Server(Echo, LOCAL)
    await server.wait_stopped()
    async with listening(server, diary) as addresses, connect(url_of(addresses[0])) as client:
        server.stop()
        async for _ in client:
            raise AssertionError
        await server.wait_stopped()
        assert diary == [1001]


async def test_serve_serves_with_a_function() -> None:
    """The connection is the function's: it iterates, writes, and its return closes with 1000. [S7]"""

    async def echo(conn: Conn, app: str) -> None:
        async for message in conn:
            await conn.send(message)
            if message == app:
                return

    async with no_hang(), anyio.create_task_group() as tasks:
        addresses = await tasks.start(partial(serve, echo, LOCAL, app="enough"))
        async with connect(url_of(addresses[0])) as client:
            for message in ("one", b"two", "enough"):
                await client.send(message)
                assert await client.receive() == message
            with pytest.raises(ConnectionEnded) as caught:
                await client.receive()
            assert caught.value.code == 1000
        tasks.cancel_scope.cancel()


@virtual
async def test_function_that_returns_with_messages_unread_closes_in_order() -> None:
    """Whatever the peer still sends is discarded, and its Close is seen behind all of that. [S7]"""

    async def leave(conn: Conn) -> None:
        await conn.receive()

    async with serving(FunctionFactory(leave), config=Config(inbox_size=1_000)) as served:
        peer = served.connect(5_000)
        await peer.open()
        with Stopwatch(0):
            for _ in range(100):
                await peer.send_frame(BINARY, bytes(500))
            await peer.expect_close(1000)
            await peer.send_close(1000)
            await peer.expect_end()


@virtual
async def test_function_that_raises_closes_with_1011(caplog: pytest.LogCaptureFixture) -> None:
    """It is the same engine: the error is logged with the connection's id. [S6, S7]"""
    ids: list[int] = []

    async def fail(conn: Conn) -> None:
        ids.append(conn.id)
        raise ValueError

    async with serving(FunctionFactory(fail)) as served:
        peer = await served.open()
        await peer.expect_close(1011)
    (record,) = take_log(caplog)
    assert f"connection {ids[0]}" in record.getMessage()


# --- requests that ask for no WebSocket ---------------------------------------------------------------

HEALTH = b"GET /health?deep=1 HTTP/1.1\r\nHost: localhost\r\n\r\n"


def answer(request: Request) -> Response:
    """Answer with what was asked for."""
    return Response(200, f"path {request.path}", {"X-Served": "yes"})


async def answer_later(request: Request, app: str) -> Response:
    """Answer with the application, after a while."""
    await anyio.sleep(1)
    return Response(299, app.encode(), reason="Quite Fine")


@virtual
@pytest.mark.parametrize(
    ("http_handler", "line", "body"),
    [
        (answer, "HTTP/1.1 200 OK", b"path /health"),
        (answer_later, "HTTP/1.1 299 Quite Fine", b"the app"),
        (lambda: Response(204), "HTTP/1.1 204 No Content", b""),
        (lambda app: Response(200, app), "HTTP/1.1 200 OK", b"the app"),
    ],
)
async def test_http_handler_answers_requests_for_no_websocket(
    http_handler: Any, line: str, body: bytes
) -> None:
    """``def`` or ``async def``, it takes request and app or leaves them out; then the connection ends."""
    async with serving(Echo, "the app", http_handler=http_handler) as served:
        peer = served.connect()
        await peer.send(HEALTH)
        head = await peer.receive_head()
        assert (head.line, head.body) == (line, body)
        assert head.get("connection") == "close"
        await peer.expect_end()


@virtual
async def test_http_handler_is_not_asked_about_websockets() -> None:
    """A request that asks for the upgrade, well or badly, is not for it."""
    async with serving(Echo, [], http_handler=lambda: Response(200)) as served:
        peer = await served.open()
        await peer.close_handshake()
        bad = served.connect()
        await bad.send(build_request(headers={"Sec-WebSocket-Key": None}))
        assert (await bad.receive_head()).status == 400


@virtual
@pytest.mark.attack("H27")
@pytest.mark.parametrize("http_handler", [None, lambda: None])
async def test_http_request_without_an_answer_gets_426(http_handler: Any) -> None:
    """Without a handler, or when it has no answer, a plain request learns what is spoken here."""
    async with serving(Echo, http_handler=http_handler) as served:
        peer = served.connect()
        await peer.send(HEALTH)
        head = await peer.receive_head()
        assert head.status == 426
        assert head.get("upgrade") == "websocket"
        await peer.expect_end()


async def raise_later() -> Response:
    """Fail, after a while."""
    await anyio.lowlevel.checkpoint()
    raise ValueError("secret detail")


def raise_at_once() -> Response:
    """Fail."""
    raise OSError("secret detail")


@virtual
@pytest.mark.attack("H24")
@pytest.mark.parametrize(
    "http_handler",
    [
        raise_later,
        raise_at_once,
        lambda: Response(200, headers={"Connection": "keep-alive"}),
        lambda: Response(200, headers={"X": "a\r\nb: secret"}),
        lambda: Response(200, reason="line\nbreak"),
        lambda: "a text is no Response",
    ],
)
async def test_http_handler_that_fails_is_answered_with_500_and_logged_once(
    http_handler: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether it raises or returns what cannot be sent: 500 without detail, one line in the log."""
    async with serving(Echo, http_handler=http_handler) as served:
        peer = served.connect()
        await peer.send(HEALTH)
        head = await peer.receive_head()
        assert head.status == 500
        assert b"secret" not in head.body
        await peer.expect_end()
    (record,) = take_log(caplog)
    assert record.exc_info is not None


@virtual
async def test_http_handler_may_refuse() -> None:
    """``Reject`` is an answer here as well."""

    def refuse() -> Response:
        raise Reject(401, headers={"WWW-Authenticate": "Basic"})

    async with serving(Echo, http_handler=refuse) as served:
        peer = served.connect()
        await peer.send(HEALTH)
        head = await peer.receive_head()
        assert head.status == 401
        assert head.get("www-authenticate") == "Basic"


def test_http_handler_with_an_unknown_parameter_is_a_type_error() -> None:
    """Its parameters are checked when the server is made."""
    with pytest.raises(TypeError, match="unknown parameter 'conn'; it may take request, app"):
        Server(Echo, http_handler=lambda conn: Response(200))


# --- requests that are wrong --------------------------------------------------------------------------

WRONG = {
    "no Host": (build_request(headers={"Host": None}), 400),
    "two Hosts": (build_request(more="Host: localhost\r\n"), 400),
    "a malformed Host": (build_request(headers={"Host": "a b<>"}), 400),
    "no key": (build_request(headers={"Sec-WebSocket-Key": None}), 400),
    "a short key": (build_request(headers={"Sec-WebSocket-Key": "c2hvcnQ="}), 400),
    "two keys": (build_request(more=f"Sec-WebSocket-Key: {support.KEY}\r\n"), 400),
    "no version": (build_request(headers={"Sec-WebSocket-Version": None}), 426),
    "an old version": (build_request(headers={"Sec-WebSocket-Version": "8"}), 426),
    "two versions": (build_request(more="Sec-WebSocket-Version: 13\r\n"), 400),
    "another upgrade": (build_request(headers={"Upgrade": "websocket2"}), 426),
    "no connection option": (build_request(headers={"Connection": "notupgrade"}), 400),
    "another method": (build_request(line="POST / HTTP/1.1"), 405),
    "a method in lower case": (build_request(line="get / HTTP/1.1"), 405),
    "an old HTTP": (build_request(line="GET / HTTP/1.0"), 505),
    "a new HTTP": (build_request(line="GET / HTTP/2.0"), 505),
    "a NUL": (b"\0" + build_request(), 400),
    "a folded line": (build_request(more="X: a\r\n b\r\n"), 400),
    "a space before the colon": (build_request(more="X : a\r\n"), 400),
    "a body": (build_request(headers={"Content-Length": "5"}) + b"12345", 400),
    "a chunked body": (build_request(headers={"Transfer-Encoding": "chunked"}), 400),
    "a sign in the length": (build_request(headers={"Content-Length": "+0"}), 400),
    "bare line feeds": (build_request().replace(b"\r\n", b"\n"), 400),
    "a control character": (build_request(headers={"X": "a\x07b"}), 400),
    "a long line": (build_request("/" + "x" * 9_000), 414),
    "a long header": (build_request(headers={"X": "x" * 9_000}), 431),
    "many headers": (build_request(more="X: a\r\n" * 200), 431),
    "a fragment": (build_request("/#top"), 400),
    "no path": (build_request("*"), 400),
    "another host": (build_request("http://other/"), 400),
    "a broken subprotocol": (build_request(headers={"Sec-WebSocket-Protocol": "a b"}), 400),
    "a broken extension": (build_request(headers={"Sec-WebSocket-Extensions": 'x; y="'}), 400),
    "a foreign page": (build_request(headers={"Origin": "http://evil.example"}), 403),
    "no WebSocket": (HEALTH, 426),
    "TLS": (bytes.fromhex("1603010200010001fc0303") + bytes(range(200)), 400),
    "SSH": (b"SSH-2.0-OpenSSH_9.6\r\n", 400),
}


@pytest.fixture
def logged_quietly(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Check that nothing of a test is worth a warning or a traceback."""
    yield
    records = caplog.get_records("call")
    assert [each.getMessage() for each in records if each.levelno > logging.INFO or each.exc_info] == []


@pytest.mark.usefixtures("logged_quietly")
@pytest.mark.attack("H04", "H05", "H06", "H07", "H08", "H09", "H10", "H11", "H12", "H13", "H14", "H15")
@pytest.mark.attack("H16", "H17", "H18", "H19", "H20", "H21", "H23", "H25", "H27")
@pytest.mark.parametrize("unread", [0, 50_000, 1_000_000])
async def test_request_that_is_wrong_gets_its_status_whole_and_then_the_end(unread: int) -> None:
    """The whole answer can be read, however much the client had sent that nobody reads. [S6]"""

    async def check(name: str, request: bytes, status: int) -> None:
        async with tcp_peer(address) as peer, anyio.create_task_group() as tasks:
            tasks.start_soon(send_all, peer, request + bytes(unread))
            head = await peer.receive_head()
            assert (name, head.status) == (name, status)
            assert len(head.body) > 10
            # So much that nobody reads may end in a reset, but only behind the answer.
            tasks.start_soon(expect_any_end if unread > 64_000 else peer.expect_end, *[peer][: unread > 64_000])

    async with listening(Server(Echo, LOCAL)) as (address,), anyio.create_task_group() as tasks:
        for name, (request, status) in WRONG.items():
            tasks.start_soon(check, name, request, status)


async def send_all(peer: Peer, data: bytes) -> None:
    """Send what the other end takes."""
    try:
        await peer.send(data)
    except anyio.BrokenResourceError:
        pass


async def expect_any_end(peer: Peer) -> None:
    """Receive the end of the stream, in order or not, and nothing before it."""
    try:
        await peer.expect_end()
    except anyio.BrokenResourceError:
        assert peer.received == b""
