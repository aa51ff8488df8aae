"""The server: what listens, who is let in, what is kept apart, and how everything ends.

Most of it runs in memory and on a clock that jumps. What is about sockets uses real ones: their
addresses, their files, what a peer still gets to read, and what is left over.
"""

from __future__ import annotations

import errno
import logging
import signal
import socket
import struct
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from anyio.abc import SocketAttribute
from anyio.streams.tls import TLSAttribute, TLSStream

from anyio_ws import (
    Config,
    Conn,
    ConnectionClosed,
    ConnectionEnded,
    Handshake,
    HandshakeConfig,
    Reject,
    Request,
    Response,
    Server,
    State,
    connect,
    serve,
    testing,
)
from anyio_ws.handler import FunctionFactory
from anyio_ws.protocol import Role

from . import support
from .certificates import PEM, client_context, server_context
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

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

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
            if unread > 64_000:  # so much that nobody reads may end in a reset, but behind the answer
                await expect_any_end(peer)
            else:
                await peer.expect_end()

    async with listening(Server(Echo, LOCAL)) as (address,), anyio.create_task_group() as tasks:
        for name, (request, status) in WRONG.items():
            tasks.start_soon(check, name, request, status)


async def send_all(peer: Peer, data: bytes) -> None:
    """Send what the other end takes."""
    with suppress(anyio.BrokenResourceError):
        await peer.send(data)


async def expect_any_end(peer: Peer) -> None:
    """Receive the end of the stream, in order or not, and nothing before it."""
    try:
        await peer.expect_end()
    except anyio.BrokenResourceError:
        assert peer.received == b""


@virtual
@pytest.mark.usefixtures("logged_quietly")
@pytest.mark.attack("H01", "S03")
@pytest.mark.parametrize("tls", [False, True])
async def test_client_that_says_nothing_is_cut_off_without_an_answer(tls: bool) -> None:
    """There is nothing to answer; the place is free again after ``handshake.timeout``. [S6]"""
    config = Config(handshake=HandshakeConfig(timeout=6), max_conn=1, tls=server_context() if tls else None)
    async with serving(Echo, config=config) as served:
        for _ in range(2):
            with Stopwatch(6):
                await served.connect().expect_end()


@virtual
@pytest.mark.attack("H24", "H02")
async def test_init_that_takes_too_long_is_cancelled_and_answered_with_408() -> None:
    """``init`` is part of the opening handshake, and so under its deadline. [H1]"""
    ended: list[float] = []

    async def sleep() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(anyio.current_time() - start)

    async with serving(sleep, config=Config(handshake=HandshakeConfig(timeout=6))) as served:
        start = anyio.current_time()
        peer = served.connect()
        await peer.send(build_request())
        head = await peer.receive_head()
        assert head.status == 408
        assert head.get("connection") == "close"
        await peer.expect_end()
    assert ended == [pytest.approx(6)]


@virtual
@pytest.mark.attack("H03")
@pytest.mark.parametrize("size", [0, 1, 50, -1])
@pytest.mark.parametrize("ends", ["send_eof", "aclose"])
async def test_client_that_leaves_during_its_request_is_dropped_quietly(
    size: int, ends: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One line for whoever debugs, none for anybody else, and the place is free again. [S6]"""
    async with serving(Echo, config=Config(max_conn=1)) as served:
        caplog.clear()
        peer = served.connect()
        await peer.send(build_request()[:size])
        await getattr(peer.stream, ends)()
        other = await served.open()
        await other.close_handshake()
    (record,) = caplog.records
    assert record.levelno == logging.DEBUG
    assert record.exc_info is None


@pytest.mark.usefixtures("logged_quietly")
@pytest.mark.attack("H03", "O01", "O05")
@pytest.mark.parametrize("size", [0, 50, len(build_request()), len(build_request()) + 3])
async def test_client_that_resets_its_connection_disturbs_nobody(size: int) -> None:
    """A reset during the request, right behind it, or within a frame ends that connection alone. [S6]"""
    diary: list[Any] = []
    data = build_request() + b"\x81\x85mask"
    server = Server(Echo, Config(port=0, max_conn=2))
    async with listening(server, diary) as (address,), tcp_peer(address) as other:
        await other.open()
        for _ in range(5):
            with socket.create_connection(address) as victim:
                victim.sendall(data[:size])
                victim.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await other.send_frame(PING)
            await other.expect(PONG)
        await other.close_handshake()
    assert diary.count(1000) == 1
    assert diary.count(1006) == len(diary) - 1  # a reset that came early is seen before the request


@virtual
@pytest.mark.attack("H22", "T12", "S08")
@pytest.mark.parametrize("close", [False, True])
async def test_frames_behind_the_request_are_not_lost(close: bool) -> None:
    """What comes in the same bytes as the request is handled after the 101, a Close behind it too. [H3]"""
    async with serving(Echo) as served:
        peer = served.connect()
        frames = [peer.build(TEXT, b"%d" % number) for number in range(20)]
        if close:
            frames.append(peer.build(CLOSE, b"\x03\xe8"))
        await peer.send(build_request() + b"".join(frames))
        assert (await peer.receive_head()).status == 101
        for number in range(20):
            await peer.expect(TEXT, b"%d" % number)
        if close:
            await peer.expect_close(1000)
            await peer.expect_end()
        else:
            await peer.close_handshake()


@virtual
@pytest.mark.attack("H22")
async def test_frames_behind_the_request_may_be_cut_anywhere() -> None:
    """A frame that began with the request goes on with what comes after the 101. [H3]"""
    async with serving(Echo) as served:
        data = build_request() + served.connect().build(TEXT, b"a whole message")
        for position in range(len(build_request()) - 2, len(data)):
            peer = served.connect()
            await peer.send(data[:position])
            await settle()
            await peer.send(data[position:])
            assert (await peer.receive_head()).status == 101
            await peer.expect(TEXT, b"a whole message")
            await peer.close_handshake()


# --- TLS ----------------------------------------------------------------------------------------------


async def test_tls_carries_the_same_protocol() -> None:
    """Messages, attributes and the end are those of a connection without TLS. [S2, C8, C9]"""
    diary: list[Any] = []
    seen: list[Any] = []

    class Looking(Echo):
        def after_init(self) -> None:
            seen.append(self.conn.extra(TLSAttribute.tls_version))
            seen.append(self.conn.extra(SocketAttribute.remote_address))

    server = Server(Looking, Config(port=0, tls=server_context()))
    async with (
        nothing_left(),
        listening(server, diary) as (address,),
        connect(url_of(address, "wss"), ca_bundle=PEM) as client,
    ):
        await client.write_bin(bytes(60_000))
        assert await client.receive() == bytes(60_000)
        local_address = client.local_address
    assert seen == ["TLSv1.3", local_address]
    assert diary == [1000]


@pytest.mark.usefixtures("logged_quietly")
@pytest.mark.attack("S03", "S04", "H27")
@pytest.mark.parametrize("data", [b"", b"\x16\x03\x01", HEALTH, bytes(100)], ids=len)
async def test_tls_handshake_that_fails_disturbs_nobody(data: bytes) -> None:
    """Garbage, a request in clear, or the end in place of TLS: that connection alone, and quietly. [S6]"""
    async with nothing_left(), listening(Server(Echo, Config(port=0, tls=server_context()))) as (address,):
        for reset in (False, True):
            with socket.create_connection(address) as victim:
                victim.sendall(data)
                if reset:
                    victim.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        async with connect(url_of(address, "wss"), ca_bundle=PEM) as client:
            await client.write("hello")
            assert await client.receive() == "hello"


@pytest.mark.usefixtures("logged_quietly")
@pytest.mark.attack("S01")
async def test_tls_that_is_cut_off_is_no_orderly_end() -> None:
    """The end of the TCP connection without TLS's own goodbye is code 1006. [H9]"""
    diary: list[Any] = []
    async with listening(Server(Echo, Config(port=0, tls=server_context())), diary) as (address,):
        tcp = await anyio.connect_tcp(*address)
        stream = await TLSStream.wrap(tcp, hostname="localhost", ssl_context=client_context())
        await Peer(stream).open()
        await tcp.aclose()
    assert diary == [1006]


# --- the connection as a server hands it over ---------------------------------------------------------


async def test_conn_knows_its_ends() -> None:
    """Addresses as host and port, an id of its own, its state, and who closed with what. [C8]"""
    conns: list[Conn] = []

    class Keeping(Echo):
        def after_init(self) -> None:
            conns.append(self.conn)
            assert self.conn.state is State.OPEN

    async with listening(Server(Keeping, LOCAL)) as (address,):
        for _ in range(2):
            async with connect(url_of(address)) as client:
                await client.write("hello")
                await client.receive()
                assert conns[-1].remote_address == client.local_address
                assert conns[-1].local_address == client.remote_address == address
                assert conns[-1].extra(SocketAttribute.remote_address) == client.local_address
                assert conns[-1].latency is None
                assert 0 < await conns[-1].ping() == conns[-1].latency
                await client.close_with_reason(4000, "enough")
                await settle()
                assert conns[-1].remote_address == client.local_address
                assert conns[-1].local_address == client.remote_address == address
    assert conns[0].id != conns[1].id
    for conn in conns:
        assert conn.is_closed
        assert conn.state is State.CLOSED
        assert (conn.close_code, conn.close_reason, conn.closed_by) == (4000, "enough", Role.CLIENT)


async def test_conn_takes_writes_from_many_tasks_at_once() -> None:
    """Frames of any number of writers arrive whole, and each writer's in its order. [C6]"""

    async def write_all(conn: Conn) -> None:
        async def write(writer: int) -> None:
            for number in range(20):
                await conn.write_bin(bytes([writer, number]) * 5_000)

        async with anyio.create_task_group() as tasks:
            for writer in range(10):
                tasks.start_soon(write, writer)

    server = Server(FunctionFactory(write_all), LOCAL)
    async with listening(server) as (address,), connect(url_of(address)) as client:
        seen = dict.fromkeys(range(10), 0)
        async for message in client:
            assert isinstance(message, bytes)
            writer, number = message[:2]
            assert message == bytes([writer, number]) * 5_000
            assert number == seen[writer]
            seen[writer] += 1
    assert seen == dict.fromkeys(range(10), 20)


async def test_conn_is_an_object_stream() -> None:
    """``send``, ``receive``, ``send_eof`` and AnyIO's own exceptions work as in any AnyIO program. [C9]"""
    ends: list[type[BaseException]] = []

    async def talk(conn: Conn) -> None:
        await conn.send("text")
        await conn.send(b"binary")
        await conn.send_eof()
        with pytest.raises(anyio.ClosedResourceError):
            await conn.send("more")
        assert await conn.receive() == "answer"
        with pytest.raises(anyio.EndOfStream):
            await conn.receive()
        ends.append(anyio.EndOfStream)

    server = Server(FunctionFactory(talk), LOCAL)
    async with listening(server) as (address,), connect(url_of(address)) as client:
        assert await client.receive() == "text"
        assert await client.receive() == b"binary"
        assert not client.is_closed or client.state is State.CLOSE_RECEIVED
        await settle()
    assert len(ends) <= 1


# --- isolation ----------------------------------------------------------------------------------------


class Wild:
    """A handler that raises what the application says, in the hook that it says."""

    def __init__(self, conn: Conn, app: Any) -> None:
        self.conn = conn
        self.app = app

    async def client_message(self, data: str | bytes) -> None:
        """Raise, or echo."""
        if data == "raise":
            await anyio.lowlevel.checkpoint()
            raise self.app
        if data == "raise within a group":
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.fail)
                await anyio.sleep_forever()
        await self.conn.send(data)

    async def fail(self) -> None:
        """Raise, in a task of its own."""
        raise self.app


@virtual
@pytest.mark.attack("T13", "T14")
@pytest.mark.parametrize("message", [b"raise", b"raise within a group"])
@pytest.mark.parametrize(
    "error",
    [
        ValueError("detail"),
        ConnectionClosed(1000, "of another connection"),
        ConnectionEnded(1000, "of another connection"),
        ExceptionGroup("several", [ValueError(), KeyError()]),
        anyio.ClosedResourceError(),
        TimeoutError(),
        StopAsyncIteration(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_handler_that_fails_leaves_others_alone(
    error: Exception, message: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Its own connection gets 1011, the log gets it once, and other connections notice nothing. [S6]"""
    async with serving(Wild, error) as served:
        others = [await served.open() for _ in range(3)]
        victim = await served.open()
        await victim.send_frame(TEXT, message)
        await victim.expect_close(1011)
        await victim.send_close(1011)
        await victim.expect_end()
        others.append(await served.open())
        for other in others:
            await other.send_frame(TEXT, b"hello")
            await other.expect(TEXT, b"hello")
            await other.close_handshake()
    (record,) = take_log(caplog)
    assert record.exc_info is not None


@virtual
@pytest.mark.attack("T14", "T17")
@pytest.mark.parametrize("in_group", [False, True])
@pytest.mark.parametrize("how", ["peer", "server", "lost"])
async def test_handler_that_finds_its_own_connection_closed_is_no_failure(how: str, in_group: bool) -> None:
    """Writing to a peer that has left is everyday life: ``ConnectionClosed`` ends a handler quietly. [S6]"""
    ended = anyio.Event()

    class Writing(Echo):
        async def client_message(self, data: Any) -> None:
            if how == "server":
                self.conn.close_nowait()
            else:
                await ended.wait()
                await settle()
            if in_group:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self.conn.write, "one")
                    tasks.start_soon(self.conn.write, "two")
            await self.conn.write("three")
            raise AssertionError

    diary: list[Any] = []
    async with serving(Writing, diary, Config(close_timeout=3)) as served:
        peer = await served.open()
        await peer.send_frame(TEXT, b"go")
        if how == "peer":
            await peer.send_close(1000)
            await anyio.sleep(4)  # the answer has waited for the handler long enough
        if how == "lost":
            await peer.stream.aclose()
            ended.set()
        else:
            ended.set()
            await peer.rest()
    assert len(diary) == 1


@pytest.mark.attack("T14")
@pytest.mark.parametrize("place", ["init", "after_init", "client_message", "close", "http_handler"])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@virtual
async def test_server_stops_for_what_ends_a_program(kind: type[BaseException], place: str) -> None:
    """``KeyboardInterrupt`` and ``SystemExit`` come bare out of ``listen``, after peers saw 1001. [S4, S6]"""
    diary: list[Any] = []
    error = kind("enough")

    def end(*_: Any) -> Any:
        raise error

    async def end_later(*_: Any) -> None:
        await anyio.lowlevel.checkpoint()
        raise error

    victims: list[Any] = []

    class Ending(Echo):
        def __init__(self, handshake: Handshake, conn: Conn, app: list[Any]) -> None:
            super().__init__(conn, app)
            if handshake.path == "/victim":
                if place == "init":
                    end()
                setattr(self, place, end_later)

        async def after_init(self) -> None: ...

    async def talk() -> None:
        peer, victim = Peer(listener.connect()), Peer(listener.connect())
        await peer.open()
        if place == "http_handler":
            await victim.send(HEALTH)
        else:
            await victim.send(build_request("/victim"))
        if place in ("client_message", "close"):
            await victim.receive_head()
        if place == "client_message":
            await victim.send_frame(TEXT, b"end")
            await victim.expect_close(1001)
            await victim.send_close(1001)
        if place == "close":
            await victim.send_close(1000)
        with Stopwatch(0):
            await peer.expect_close(1001)
            await peer.send_close(1001)
            await peer.expect_end()
        victims.append(await victim.rest())

    listener = testing.MemoryListener()
    server = Server(Ending, http_handler=end)
    async with nothing_left(), no_hang(), anyio.create_task_group() as tasks:
        tasks.start_soon(talk)
        with pytest.raises(kind, match="enough") as caught:
            await server.listen(diary, listeners=[listener])
        assert caught.value is error
    assert diary.count(1001) >= 1
    assert server.addresses == []


# --- shutdown -----------------------------------------------------------------------------------------


@virtual
@pytest.mark.attack("O07", "T16")
@pytest.mark.parametrize("how", ["stop", "cancel"])
async def test_shutdown_says_1001_and_waits_for_the_answers(how: str) -> None:
    """Peers get a Close and time to answer; when all have, it is over, long before the timeout. [S4]"""
    diary: list[Any] = []
    async with serving(Echo, diary) as served:
        peers = [await served.open() for _ in range(3)]
        await end(served, how)
        with anyio.CancelScope(shield=True), Stopwatch(2):
            for peer in peers:
                await peer.expect_close(1001)
            await anyio.sleep(2)
            for peer in peers:
                await peer.send_close(1001)
                await peer.expect_end()
            await served.server.wait_stopped()
    assert diary == [1001] * 3


async def end(served: Serving, how: str) -> None:
    """End a server by ``stop()`` or by cancelling it, and let it take notice."""
    if how == "stop":
        served.server.stop()
    else:
        served.tasks.cancel_scope.cancel()
    with anyio.CancelScope(shield=True):
        await settle()


@virtual
@pytest.mark.attack("O07")
async def test_shutdown_has_the_code_and_reason_that_stop_was_given() -> None:
    """A restart can be told from an end. [S4]"""
    async with serving(Echo) as served:
        peer = await served.open()
        served.server.stop(1012, "back soon")
        await peer.expect_close(1012, "back soon")
        await peer.send_close(1012)
        await peer.expect_end()


@virtual
async def test_stop_twice_is_like_once() -> None:
    """The first call decides; later ones, also when all is over, change nothing. [S4]"""
    async with serving(Echo) as served:
        peer = await served.open()
        served.server.stop(4000, "first")
        served.server.stop(4001, "second")
        await peer.expect_close(4000, "first")
        served.server.stop(4002, "third")
        await peer.send_close(4000)
        await peer.expect_end()
        await served.server.wait_stopped()
        served.server.stop()
    served.server.stop()


@pytest.mark.parametrize(("code", "reason"), [(1005, ""), (1006, ""), (999, ""), (1000, "é" * 62)])
@virtual
async def test_stop_refuses_what_cannot_be_sent(code: int, reason: str) -> None:
    """A wrong code or a long reason is a ``ValueError``, and nothing has happened. [S4]"""
    async with serving(Echo) as served:
        peer = await served.open()
        with pytest.raises(ValueError, match=r"^(code|reason): "):
            served.server.stop(code, reason)
        await peer.close_handshake()


async def test_stop_works_from_another_thread() -> None:
    """No event loop is needed to call it. [S4]"""
    server = Server(Echo, LOCAL)
    async with listening(server) as (address,), connect(url_of(address)) as client:
        await anyio.to_thread.run_sync(server.stop, 4000, "from a thread")
        with pytest.raises(ConnectionEnded, match="from a thread"):
            await client.receive()
        await server.wait_stopped()


async def test_stop_works_from_a_signal_handler() -> None:
    """It may be called between any two instructions of the event loop. [S4]"""
    server = Server(Echo, LOCAL)
    before = signal.signal(signal.SIGUSR1, lambda *_: server.stop(4000, "from a signal"))
    try:
        async with listening(server) as (address,), connect(url_of(address)) as client:
            signal.raise_signal(signal.SIGUSR1)
            with pytest.raises(ConnectionEnded, match="from a signal"):
                await client.receive()
            await server.wait_stopped()
    finally:
        signal.signal(signal.SIGUSR1, before)


@virtual
async def test_stop_from_a_hook_closes_its_own_connection_too() -> None:
    """A handler may stop the server that it belongs to. [S4]"""

    class Stopping(Echo):
        async def client_message(self, data: Any) -> None:
            served.server.stop()
            await anyio.sleep(1)

    diary: list[Any] = []
    async with serving(Stopping, diary) as served:
        peer = await served.open()
        await peer.send_frame(TEXT, b"stop")
        await peer.expect_close(1001)
        await peer.send_close(1001)
        await peer.expect_end()
    assert diary == [1001]


@virtual
@pytest.mark.attack("O07", "T16")
@pytest.mark.parametrize("how", ["stop", "cancel", "stop, then cancel"])
async def test_shutdown_lets_hooks_finish_unless_it_is_a_cancellation(how: str) -> None:
    """``stop()`` waits for a hook that is at work; cancelling ``listen`` cancels it at once. [S4]"""
    diary: list[str] = []
    start = 0.0

    class Working(Echo):
        async def client_message(self, data: Any) -> None:
            try:
                await anyio.sleep(4)
            finally:
                diary.append(f"{data!r} {anyio.current_time() - start:.0f}")

    async with serving(Working, []) as served:
        peer = await served.open()
        await peer.send(peer.build(TEXT, b"one") + peer.build(TEXT, b"two"))
        await settle()
        start = anyio.current_time()
        for each in how.split(", then "):
            await end(served, each)
        with anyio.CancelScope(shield=True):
            await peer.expect_close(1001)
            await peer.expect_end()
    # Our Close is answered by nobody, so that the connection is cut after close_timeout: within "two".
    assert diary == (["'one' 4", "'two' 8"] if how == "stop" else ["'one' 0"])


@virtual
@pytest.mark.attack("O07")
@pytest.mark.parametrize("how", ["stop", "cancel"])
@pytest.mark.parametrize("stage", ["accepted", "started", "init", "http_handler", "answered"])
async def test_shutdown_refuses_opening_handshakes_with_503(how: str, stage: str) -> None:
    """Whoever has no answer yet gets one that says to come again later. [S4]"""

    async def sleep() -> None:
        await anyio.sleep_forever()

    data = {
        "accepted": b"",
        "started": build_request()[:50],
        "init": build_request(),
        "http_handler": HEALTH,
        "answered": build_request(headers={"Host": None}),
    }
    handler: Any = sleep
    async with serving(handler, http_handler=handler) as served:
        peer = served.connect()
        await peer.send(data[stage])
        await settle()
        with Stopwatch(0):
            await end(served, how)
            with anyio.CancelScope(shield=True):
                assert (await peer.receive_head()).status == (400 if stage == "answered" else 503)
                await peer.expect_end()
                await peer.stream.aclose()
                await served.server.wait_stopped()


@virtual
@pytest.mark.attack("O07")
@pytest.mark.parametrize("how", ["stop", "cancel"])
async def test_shutdown_finds_a_connection_whatever_it_is_doing(how: str) -> None:
    """However far a handshake has come in that moment, its peer sees 503 or a Close with 1001. [S4]"""

    class Slow(Echo):
        @classmethod
        async def init(cls, conn: Conn, app: list[Any]) -> Slow:
            for _ in range(10):
                await anyio.lowlevel.checkpoint()
            return cls(conn, app)

    seen: set[str] = set()
    for rounds in range(40):
        diary: list[Any] = []
        async with serving(Slow, diary) as served:
            peer = served.connect()
            await peer.send(build_request())
            for _ in range(rounds):
                await anyio.lowlevel.checkpoint()
            if how == "stop":
                served.server.stop()
            else:
                served.tasks.cancel_scope.cancel()
            with anyio.CancelScope(shield=True), Stopwatch(0):
                head = await peer.receive_head()
                if head.status == 101:
                    await peer.expect_close(1001)
                    await peer.send_close(1001)
                await peer.expect_end()
                await peer.stream.aclose()
                await served.server.wait_stopped()
        seen.add(f"{head.status} {diary}")
    assert seen == {"503 []", "101 [1001]"}


class Stuck(Echo):
    """A handler that keeps the server from ending as well as it can."""

    async def after_init(self) -> None:
        """Write more than the peer takes."""
        await self.conn.write_bin(bytes(100_000))

    async def client_message(self, data: Any) -> None:
        """Ignore the first cancellation."""
        try:
            await self.conn.write_bin(bytes(100_000))
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            await anyio.sleep_forever()
        except ConnectionClosed:
            await anyio.sleep_forever()


@virtual
@pytest.mark.attack("O07", "R01")
@pytest.mark.parametrize("how", ["stop", "cancel"])
async def test_shutdown_is_bounded_whatever_peers_and_hooks_do(how: str) -> None:
    """Fifty peers that read nothing and answer nothing are cut when ``shutdown_timeout`` is over. [S4]"""
    diary: list[Any] = []
    config = Config(shutdown_timeout=3, close_timeout=60, write_timeout=60, ping_interval=None)
    with Stopwatch(3):
        async with nothing_left(), serving(Stuck, diary, config) as served:
            for number in range(50):
                peer = served.connect(1_000)
                await peer.send(build_request()[: 20 if number % 10 == 0 else None])
                await settle()
                if number % 2:
                    await peer.send_frame(TEXT, b"work")
            await settle()
            await end(served, how)
    assert len(diary) == 45


@virtual
@pytest.mark.attack("O07", "R01")
async def test_shutdown_is_bounded_with_sockets_that_nobody_reads(tmp_path: Path) -> None:
    """With the kernel's buffers in between it is the same. [S4]"""

    class Flooding(Echo):
        async def after_init(self) -> None:
            while True:
                await self.conn.write_bin(bytes(100_000))

    diary: list[Any] = []
    config = Config(shutdown_timeout=3, close_timeout=60, write_timeout=60, ping_interval=None)
    server = Server(Flooding, config)
    async with nothing_left(), no_hang(), anyio.create_task_group() as tasks:
        bound = socket.socket(socket.AF_UNIX)  # whose bytes arrive when they are sent: time jumps
        bound.bind(str(tmp_path / "socket"))
        bound.listen(50)
        listener: Any = await anyio.abc.SocketListener.from_socket(bound)
        await tasks.start(partial(server.listen, diary, listeners=[listener]))
        victims = [socket.socket(socket.AF_UNIX) for _ in range(50)]
        for victim in victims:
            victim.connect(bound.getsockname())
            victim.sendall(build_request())
        for victim in victims:
            await anyio.wait_readable(victim)
        await settle()
        with Stopwatch(3):
            server.stop()
            await server.wait_stopped()
        for victim in victims:
            victim.close()
    assert len(diary) == 50


@virtual
@pytest.mark.attack("O07")
async def test_shutdown_ends_handlers_that_swallow_their_cancellation_once() -> None:
    """Who ignores a cancellation meets it again at the next point where it waits. [S4]"""
    diary: list[str] = []

    class Stubborn(Echo):
        async def client_message(self, data: Any) -> None:
            for _ in range(3):
                try:
                    await anyio.sleep_forever()
                except anyio.get_cancelled_exc_class():
                    diary.append("ignored")

    with Stopwatch(0):
        async with serving(Stubborn, []) as served:
            peer = await served.open()
            await peer.send_frame(TEXT, b"work")
            await settle()
            await end(served, "cancel")
            with anyio.CancelScope(shield=True):
                await peer.expect_close(1001)
                await peer.send_close(1001)
    assert diary == ["ignored"] * 3


@virtual
async def test_shutdown_comes_out_as_a_cancellation() -> None:
    """``listen`` that was cancelled raises the cancellation when all is closed, and nothing else. [S4]"""
    listener = testing.MemoryListener()
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(stop_at, scope, 2))
            await Server(Echo).listen(listeners=[listener])
    assert scope.cancelled_caught


async def stop_at(scope: anyio.CancelScope, seconds: float) -> None:
    """Cancel a scope after some seconds."""
    await anyio.sleep(seconds)
    scope.cancel()


# --- accepting ----------------------------------------------------------------------------------------


class FailingListener(testing.MemoryListener):
    """A listener whose ``accept`` raises what it is told to, one after the other, before it accepts."""

    def __init__(self, *errors: Exception) -> None:
        super().__init__()
        self.errors = list(errors)
        self.times: list[float] = []

    async def accept(self) -> testing.MemoryStream:
        """Raise, or accept."""
        await anyio.lowlevel.checkpoint()
        self.times.append(anyio.current_time())
        if self.errors:
            raise self.errors.pop(0)
        return await super().accept()


@virtual
@pytest.mark.attack("R13")
@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
async def test_accept_pauses_while_the_system_is_short_of_something(
    code: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The server goes on, does not spin, says so once a second at most, and recovers. [S6]"""
    good, failing = testing.MemoryListener(), FailingListener(*[OSError(code, "too many") for _ in range(50)])
    server = Server(Echo)
    async with no_hang(), anyio.create_task_group() as tasks:
        tasks.start_soon(partial(server.listen, listeners=[good, failing]))
        await settle()
        other = Peer(good.connect())
        await other.open()
        with Stopwatch(5):
            peer = Peer(failing.connect())
            await peer.open()
        for each in (peer, other):
            await each.close_handshake()
        server.stop()
    pauses = [after - before for before, after in zip(failing.times, failing.times[1:-1], strict=False)]
    assert min(pauses) == pytest.approx(0.1)
    records = take_log(caplog, "WARNING")
    assert 1 <= len(records) <= 6
    assert "too many" in records[0].getMessage()


@virtual
@pytest.mark.attack("R13", "O05")
@pytest.mark.parametrize("code", [errno.ECONNABORTED, errno.EPROTO, errno.EPERM])
async def test_accept_goes_on_at_once_after_a_connection_that_is_gone_already(code: int) -> None:
    """What happened to one connection is no reason to keep others waiting. [S6]"""
    failing = FailingListener(*[OSError(code, "gone") for _ in range(5)])
    server = Server(Echo)
    async with no_hang(), anyio.create_task_group() as tasks:
        tasks.start_soon(partial(server.listen, listeners=[failing]))
        with Stopwatch(0):
            peer = Peer(failing.connect())
            await peer.open()
        await peer.close_handshake()
        server.stop()


@virtual
@pytest.mark.attack("R13", "T16")
@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("broken for good"),
        OSError(errno.EBADF, "broken for good"),
        OSError(errno.EINVAL, "broken for good"),
        anyio.ClosedResourceError("broken for good"),
    ],
    ids=repr,
)
async def test_accept_that_breaks_for_good_ends_the_server_in_order(error: Exception) -> None:
    """A listener that is broken cannot be served; peers see 1001, and its error comes out bare. [S4]"""
    good, failing = testing.MemoryListener(), FailingListener()
    server = Server(Echo)

    async def talk() -> None:
        peer = Peer(good.connect())
        await peer.open()
        failing.errors.append(error)
        await Peer(failing.connect()).stream.aclose()  # accepted; the next one is not
        await peer.expect_close(1001)
        await peer.send_close(1001)
        await peer.expect_end()

    async with nothing_left(), no_hang(), anyio.create_task_group() as tasks:
        tasks.start_soon(talk)
        with pytest.raises(type(error), match="broken for good") as caught:
            await server.listen(listeners=[good, failing])
    assert caught.value is error
    assert server.addresses == []


@virtual
async def test_accept_waits_for_a_place_and_keeps_nothing_when_the_server_stops() -> None:
    """A connection that was accepted and never got a place is closed like the others. [S4]"""
    listeners = [testing.MemoryListener(), testing.MemoryListener()]
    server = Server(Echo, Config(max_conn=1))
    async with no_hang(), anyio.create_task_group() as tasks:
        tasks.start_soon(partial(server.listen, listeners=listeners))
        await settle()  # both listeners wait for a connection
        first, second = (Peer(listener.connect()) for listener in listeners)
        await settle()
        server.stop()
        for peer in (first, second):
            await peer.rest()


# --- Unix sockets -------------------------------------------------------------------------------------


@pytest.mark.attack("O13")
async def test_unix_socket_that_is_stale_is_replaced(tmp_path: Path) -> None:
    """A file that a dead server left is no obstacle; at the end there is no file. [S2]"""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    server = Server(Echo, Config(unix_path=path))
    async with listening(server) as addresses, connect("ws://localhost/", unix_path=path) as client:
        assert addresses == server.addresses == [str(path)]
        await client.write("hello")
        assert await client.receive() == "hello"
    assert not path.exists()


@pytest.mark.attack("O13")
@pytest.mark.parametrize("backlog", ["free", "full"])
async def test_unix_socket_that_is_alive_is_refused(backlog: str, tmp_path: Path) -> None:
    """A server that listens there keeps its file, even one too busy to accept; nothing waits for it. [S2]"""
    path = tmp_path / "socket"
    socket.setdefaulttimeout(1)
    try:
        with socket.socket(socket.AF_UNIX) as live, socket.socket(socket.AF_UNIX) as waiting:
            live.bind(str(path))
            live.listen(0)
            if backlog == "full":
                waiting.connect(str(path))
            with pytest.raises(OSError, match="a server is listening there") as caught:
                await Server(Echo, Config(unix_path=path)).listen()
            assert caught.value.errno == errno.EADDRINUSE
            assert path.is_socket()
    finally:
        socket.setdefaulttimeout(None)


@pytest.mark.attack("O13")
@pytest.mark.parametrize("kind", ["file", "directory", "link"])
async def test_unix_path_of_something_else_is_refused_and_left_alone(kind: str, tmp_path: Path) -> None:
    """Nothing but a socket is ever removed. [S2]"""
    path = tmp_path / "precious"
    (tmp_path / "target").write_text("data")
    if kind == "file":
        path.write_text("data")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "target")
    with pytest.raises(FileExistsError, match="no socket"):
        await Server(Echo, Config(unix_path=path)).listen()
    assert path.is_dir() or path.read_text() == "data"
    assert path.is_symlink() is (kind == "link")


@pytest.mark.attack("O13")
async def test_unix_socket_of_somebody_else_is_left_at_the_end(tmp_path: Path) -> None:
    """When another server has taken the path meanwhile, its file is not removed. [S2]"""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as other:
        async with listening(Server(Echo, Config(unix_path=path))):
            path.unlink()
            other.bind(str(path))
        assert path.is_socket()


@virtual
@pytest.mark.attack("O13")
async def test_unix_path_that_was_not_bound_is_not_removed(tmp_path: Path) -> None:
    """Listeners that were given are served in place of the configuration, which then names nothing. [S2]"""
    path = tmp_path / "precious"
    path.write_text("data")
    async with serving(Echo, config=Config(unix_path=path)) as served:
        await (await served.open()).close_handshake()
    assert path.read_text() == "data"


# --- what is left -------------------------------------------------------------------------------------


@pytest.mark.attack("R14", "T16")
async def test_nothing_outlives_listen(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever connections did, there are no more tasks and descriptors than before. [S2]"""

    async def endings(address: tuple[str, int]) -> None:
        async with tcp_peer(address) as peer:
            await peer.open()
            await peer.close_handshake()
        async with tcp_peer(address) as peer:
            await peer.open()
        async with tcp_peer(address) as peer:
            await peer.send(build_request()[:30])
        async with tcp_peer(address) as peer:
            await peer.send(HEALTH)
            await peer.receive_head()
        async with tcp_peer(address) as peer:
            await peer.open()
            await peer.send_frame(TEXT, b"raise")
            await peer.expect_close(1011)

    async with nothing_left():
        server = Server(Wild, LOCAL)
        async with listening(server, ValueError()) as (address,):
            await endings(address)
            async with tcp_peer(address) as idle, tcp_peer(address) as opening:
                await idle.open()
                await opening.send(build_request()[:30])
                await endings(address)
                server.stop()
                await idle.expect_close(1001)
                await idle.send_close(1001)
                assert (await opening.receive_head()).status == 503
            await server.wait_stopped()
    assert len(take_log(caplog)) == 2
