"""The settings of the contract: each is proven by its effect."""

from __future__ import annotations

import os
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import anyio
import pytest

import anyio_ws
from anyio_ws import (
    BuffersConfig,
    Compression,
    Config,
    Conn,
    ConnectionBroken,
    ConnectionEnded,
    HandshakeConfig,
    Scratch,
    Server,
    ThreadPoolConfig,
    blocking_mode,
    testing,
)
from anyio_ws.protocol import Role

from ..certificates import AUTHORITY, server_context
from ..memory import connection
from ..support import BINARY, CLOSE, PING, PONG, TEXT, Stopwatch, build_request, listening, settle, virtual
from ..test_workers import Start, start  # noqa: F401 - a fixture
from .things import Base, Echo, Quiet, serving


async def test_config_port_where_a_server_listens(tmp_path: Path) -> None:
    """The defaults are the contract's; a Unix socket wins, a stale one is replaced, others are errors."""
    assert (Config().port, Config().address, Config().unix_path) == (9882, "127.0.0.1", None)
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    server = Server(Echo, Config(unix_path=path))
    async with listening(server) as addresses:
        assert addresses == [str(path)]
        async with anyio_ws.connect("ws://localhost/", unix_path=path) as client:
            await client.write("hello")
            assert await client.receive() == "hello"
        with pytest.raises(OSError, match="is listening there"):
            await Server(Echo, Config(unix_path=path)).listen()
    assert not path.exists()
    path.write_text("a file")
    with pytest.raises(FileExistsError, match="unix_path"):
        await Server(Echo, Config(unix_path=path)).listen()
    assert path.read_text() == "a file"


def test_config_worker_count_processes(start: Start) -> None:  # noqa: F811 - the fixture
    """So many processes serve, and one that dies is replaced."""
    running = start(config={"worker_count": 3})
    workers = running.open_to_each(3)
    victim = next(iter(workers))
    os.kill(victim, signal.SIGKILL)
    workers[victim].expect_end()
    assert set(running.open_to_each(3)) & set(workers) == set(workers) - {victim}
    running.end(f"process {victim}, ended by signal 9")


async def test_config_max_conn_makes_others_wait() -> None:
    """At the limit a connection is not accepted; it is as soon as another ends."""
    async with serving(Echo, config=Config(max_conn=1)) as served:
        first = await served.open()
        second = served.connect()
        await second.send(build_request())
        await settle()
        assert served.server.statistics().connections.accepted == 1
        await first.close_handshake()
        assert (await second.receive_head()).status == 101


async def test_config_max_message_size_is_1009() -> None:
    """Longer is 1009: by its header, over fragments, and after inflation."""
    config = Config(max_message_size=100)
    async with serving(Echo, config=config) as served:
        peer = await served.open()
        await peer.send(peer.build(BINARY, bytes(101))[:8])
        assert (await peer.frame()).payload[:2] == (1009).to_bytes(2, "big")
        peer = await served.open()
        await peer.send_frame(BINARY, bytes(60), fin=False)
        await peer.send(peer.build(0, bytes(60))[:6])
        assert (await peer.frame()).payload[:2] == (1009).to_bytes(2, "big")
    async with testing.client(Echo, config=config) as client:
        await client.write("x" * 10_000)
        with pytest.raises(ConnectionEnded) as caught:
            await client.receive()
        assert caught.value.code == 1009


@virtual
async def test_config_handshake_timeout_is_408() -> None:
    """After exactly so many seconds a request that trickles is answered with 408."""
    async with serving(Echo, config=Config(handshake=HandshakeConfig(timeout=3))) as served:
        peer = served.connect()
        with Stopwatch(3):
            for byte in b"GET ":
                await peer.send(bytes([byte]))
                await anyio.sleep(0.5)
            assert (await peer.receive_head()).status == 408


async def test_config_handshake_max_size_is_431() -> None:
    """A request with more bytes is answered with 431."""
    async with serving(Echo, config=Config(handshake=HandshakeConfig(max_size=500))) as served:
        for size, status in ((100, 101), (500, 431)):
            peer = served.connect()
            await peer.send(build_request(headers={"X-Long": "x" * size}))
            assert (await peer.receive_head()).status == status


async def test_config_handshake_max_headers_is_431() -> None:
    """A request with more headers is answered with 431; the five that are needed count."""
    async with serving(Echo, config=Config(handshake=HandshakeConfig(max_headers=6))) as served:
        for count, status in ((1, 101), (2, 431)):
            peer = served.connect()
            await peer.send(build_request(headers={f"X-{number}": "x" for number in range(count)}))
            assert (await peer.receive_head()).status == status


async def test_config_handshake_count_pools_request_buffers() -> None:
    """The pool lends a buffer while a request is incomplete, and lends it again after the 101."""
    async with serving(Echo, config=Config(handshake=HandshakeConfig(count=1))) as served:
        peers = [served.connect(), served.connect()]
        for peer in peers:
            await peer.send(build_request()[:20])
        await settle()
        during = served.server.statistics().handshake
        assert (during.in_use, during.fallback) == (1, 1)
        for peer in peers:
            await peer.send(build_request()[20:])
            assert (await peer.receive_head()).status == 101
        await served.open()
        after = served.server.statistics().handshake
        assert (after.in_use, after.created) == (0, 1)


async def test_config_thread_pool_count_bounds_threads() -> None:
    """With blocking=True def hooks run in threads, so many at one time, and know it."""
    running, most = 0, 0
    lock = threading.Lock()
    at_work = threading.Barrier(2)

    class Works(Quiet):
        def __init__(self, conn: Conn) -> None:
            self.conn = conn

        def client_message(self, data: Any) -> None:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            at_work.wait(60)
            with lock:
                running -= 1
            self.conn.from_thread.write(f"{blocking_mode()} {threading.current_thread() is not main}")

    main = threading.current_thread()
    config = Config(blocking=True, thread_pool=ThreadPoolConfig(count=2))
    async with serving(Works, config=config) as served:
        peers = [await served.open() for _ in range(4)]
        for peer in peers:
            await peer.send_frame(TEXT, b"work")
        for peer in peers:
            await peer.expect(TEXT, b"True True")
            await peer.close_handshake()
    assert most == 2
    assert not blocking_mode()


async def test_config_thread_pool_backlog_pushes_back() -> None:
    """Past the backlog sockets are not read, and the peer has to wait; nothing is lost or reordered."""
    go_on = threading.Event()
    seen: list[bytes] = []

    class Slow(Quiet):
        def client_message(self, data: Any) -> None:
            go_on.wait(60)
            seen.append(data[:2])

    config = Config(
        blocking=True,
        thread_pool=ThreadPoolConfig(count=1, backlog=3),
        inbox_size=2**20,
        compression=None,
    )
    async with serving(Slow, config=config) as served:
        peer = served.connect(capacity=2000)
        await peer.open()
        sent = 0

        async def send_all() -> None:
            nonlocal sent
            for number in range(100):
                await peer.send_frame(BINARY, b"%02d" % number + bytes(998))
                sent += 1

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send_all)
            await settle()
            assert sent < 20
            go_on.set()
        await peer.close_handshake()
    assert seen == [b"%02d" % number for number in range(100)]


async def test_config_thread_pool_buffer_size_is_reused() -> None:
    """Scratch takes from one buffer of this size, call after call; more is fresh memory."""

    class Takes(Base):
        async def client_message(self, scratch: Scratch, data: str) -> None:
            scratch.alloc(int(data))
            await self.conn.write("done")

    config = Config(thread_pool=ThreadPoolConfig(count=1, buffer_size=1000))
    async with serving(Takes, config=config) as served:
        peer = await served.open()
        for size in (b"900", b"900", b"1100"):
            await peer.send_frame(TEXT, size)
            await peer.expect(TEXT, b"done")
        scratch = served.server.statistics().scratch
        assert (scratch.created, scratch.in_use) == (1, 0)
        await peer.close_handshake()


async def test_config_buffers_lend_storage_for_parts() -> None:
    """A message in parts takes from the pools while it is incomplete; when they are empty, fresh memory."""
    buffers = BuffersConfig(pool=1, size=500, large_count=1, large_size=2000)
    async with serving(Echo, config=Config(buffers=buffers, compression=None)) as served:
        peers = [await served.open() for _ in range(4)]
        whole = [
            peer.build(BINARY, bytes(size)) for peer, size in zip(peers, (400, 400, 1500, 1500), strict=True)
        ]
        for peer, frame in zip(peers, whole, strict=True):
            await peer.send(frame[: len(frame) // 2])
            await settle()
        during = served.server.statistics().buffers
        assert (during.small.in_use, during.large.in_use) == (1, 1)
        for peer, frame in zip(peers, whole, strict=True):
            await peer.send(frame[len(frame) // 2 :])
            assert (await peer.frame()).opcode == BINARY
        after = served.server.statistics().buffers
        assert (after.small.in_use, after.large.in_use) == (0, 0)
        assert after.small.fallback + after.large.fallback > 0


async def test_config_compression_is_on_by_default() -> None:
    """A client that offers compression gets it, small messages go as they are, and None turns it off."""
    offer = {"Sec-WebSocket-Extensions": "permessage-deflate"}
    async with serving(Echo) as served:
        peer = served.connect()
        head = await peer.open(headers=offer)
        assert str(head.get("sec-websocket-extensions")).startswith("permessage-deflate")
        await peer.send_frame(TEXT, b"x" * 1000)
        frame = await peer.frame()
        assert frame.rsv == 4
        assert len(frame.payload) < 100
    assert Config().compression == Compression()
    async with serving(Echo, config=Config(compression=None)) as served:
        peer = served.connect()
        assert (await peer.open(headers=offer)).get("sec-websocket-extensions") is None


@virtual
async def test_config_keepalive_finds_silent_peers() -> None:
    """A ping goes out after the interval; without an answer the connection is cut after the timeout."""
    async with connection(Role.SERVER, ping_interval=20.0, ping_timeout=7.0) as link:
        with Stopwatch(27):
            await link.conn.wait_gone()
        assert link.conn.close_code == 1006
        assert (await link.peer.frame()).opcode == PING


@virtual
async def test_config_shutdown_timeout_bounds_the_end() -> None:
    """A peer that does not answer the Close is cut when the time is over."""

    class Hangs(Echo):
        async def client_message(self, data: Any) -> None:
            await anyio.sleep_forever()

    config = Config(shutdown_timeout=8, close_timeout=3600, ping_interval=None)
    async with serving(Hangs, config=config) as served:
        peer = await served.open()
        await peer.send_frame(TEXT, b"x")
        await anyio.sleep(1)
        with Stopwatch(8):
            served.server.stop()
            await served.server.wait_stopped()


@virtual
async def test_config_close_timeout_bounds_the_closing_handshake() -> None:
    """A peer that does not answer our Close is cut after exactly so many seconds."""
    async with connection(Role.SERVER, close_timeout=4) as link:
        with Stopwatch(4):
            await link.conn.close()
        assert (await link.peer.frame()).opcode == CLOSE


@virtual
async def test_config_outbox_size_makes_writers_wait() -> None:
    """Above the mark a write waits; a peer that reads nothing is cut off by write_timeout."""
    async with connection(Role.SERVER, capacity=100, outbox_size=1000, write_timeout=6) as link:
        with Stopwatch(6):
            await link.conn.write_bin(bytes(2000))
            with pytest.raises(ConnectionBroken) as caught:
                await link.conn.write("more")
        assert isinstance(caught.value.__cause__, TimeoutError)


@virtual
async def test_config_max_control_rate_fails_a_connection_with_1008() -> None:
    """So many Pings in a second are answered, one more is too much."""
    async with connection(Role.SERVER, max_control_rate=5) as link:
        await link.peer.send(link.peer.build(PING) * 6)
        for _ in range(5):
            await link.peer.expect(PONG)
        assert (await link.peer.frame()).opcode == PONG  # those of one read are answered before the end
        await link.peer.expect_close(1008, "more than 5 control frames in a second")


async def test_config_origins_say_which_pages_may_connect() -> None:
    """By default only pages of the same host; others when they are named; programs send no Origin."""
    for origins, origin, status in (
        (None, None, 101),
        (None, "http://localhost", 101),
        (None, "http://evil.example", 403),
        (["https://good.example"], "https://good.example", 101),
        (["https://good.example"], "https://good.example.evil", 403),
        ("*", "https://anything.example", 101),
    ):
        async with serving(Echo, config=Config(origins=origins)) as served:
            peer = served.connect()
            await peer.send(build_request(headers={"Origin": origin}))
            assert (await peer.receive_head()).status == status, (origins, origin)


async def test_config_tls_serves_tls() -> None:
    """With a context the server speaks TLS, and nothing else."""
    with AUTHORITY.cert_pem.tempfile() as path:
        async with listening(Server(Echo, Config(port=0, tls=server_context()))) as ((host, port),):
            async with anyio_ws.connect(f"wss://{host}:{port}", ca_bundle=path) as client:
                await client.write("secret")
                assert await client.receive() == "secret"
            with pytest.raises((anyio_ws.HandshakeError, OSError)):
                async with anyio_ws.connect(f"ws://{host}:{port}"):
                    pass


@pytest.mark.parametrize(
    ("field", "value"),
    [("port", -1), ("worker_count", 0), ("max_conn", 0), ("max_message_size", "big"), ("origins", ["x"])],
)
def test_config_port_and_all_others_are_validated(field: str, value: Any) -> None:
    """A value that cannot work is a ValueError that names its field, an unknown field a TypeError."""
    unknown: dict[str, Any] = {"no_such_field": 1}
    with pytest.raises(ValueError, match=field):
        Config(**{field: value})
    with pytest.raises(TypeError, match="no_such_field"):
        Config(**unknown)
