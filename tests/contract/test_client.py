"""Section K of the contract: the client."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import pytest

import anyio_ws
from anyio_ws import (
    Client,
    ClientConfig,
    Config,
    ConnectionEnded,
    Handshake,
    HandshakeRejected,
    Message,
    MessageType,
    Opcode,
    Reject,
    Server,
    blocking,
    buffer_provider,
    testing,
)
from anyio_ws.protocol import Role
from anyio_ws.testing import memory_stream_pair

from ..certificates import AUTHORITY, PEM, client_context, server_context
from ..memory import connection
from ..support import CLOSE, PING, PONG, TEXT, Peer, listening, no_hang, settle
from .things import Echo


class Tells(Echo):
    """Tells what was asked for, and refuses one path."""

    def __init__(self, conn: Any, handshake: Handshake) -> None:
        super().__init__(conn)
        self.handshake = handshake
        if handshake.path == "/no":
            raise Reject(402, headers={"X-Price": "1"}, body=b"pay")

    async def after_init(self) -> None:
        """Tell it."""
        headers = self.handshake.headers
        await self.conn.write(f"{self.handshake.url} {headers['host']} {headers.get('a')} {headers.get('x')}")


@contextlib.asynccontextmanager
async def at_server(handler: Any = Echo, **fields: Any) -> AsyncIterator[tuple[str, int]]:
    """Serve, and give host and port."""
    async with listening(Server(handler, Config(port=0, **fields))) as (address,):
        yield address


class Collector:
    """Collects what a read loop gives it."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.closes = 0

    async def handle(self, message: Message) -> None:
        """Collect."""
        self.messages.append(message)

    def close(self) -> None:
        """Count."""
        self.closes += 1


@contextlib.asynccontextmanager
async def read_loop(**fields: Any) -> AsyncIterator[tuple[Client, Peer, Collector]]:
    """Connect to a peer made of bytes, and run a read loop."""
    ours, theirs = memory_stream_pair()
    peer = Peer(theirs, is_client=False)
    collector = Collector()
    config = ClientConfig(ping_interval=None, **fields)
    async with no_hang(), anyio.create_task_group() as tasks:
        tasks.start_soon(peer.accept)
        async with anyio_ws.connect("ws://localhost/", stream=ours, config=config) as client:
            tasks.start_soon(client.read_loop, collector)
            yield client, peer, collector
            client.abort()


@pytest.mark.parametrize("headers", [{"A": "b"}, "A: b\r\nHost: elsewhere"])
async def test_k1_two_steps(headers: Any) -> None:
    """connect, then handshake: headers as mapping or text, Host filled in, the request within buffer_size."""
    async with at_server(Tells) as (host, port):
        client = await Client.connect(host, port, ClientConfig(buffer_size=400))
        with pytest.raises(ValueError, match="buffer_size"):
            await client.handshake("/", headers={"X": "x" * 400})
        await client.handshake("/path", timeout=5.0, headers=headers)
        named = "elsewhere" if isinstance(headers, str) else f"{host}:{port}"
        assert await client.receive() == f"/path {named} b None"
        await client.close()


async def test_k2_one_block() -> None:
    """connect() takes any field as a keyword, and raises a refusal with all that it was."""
    async with at_server(Tells, subprotocols=["chat"]) as (host, port):
        url = f"ws://{host}:{port}"
        async with anyio_ws.connect(
            f"{url}/p?q", headers={"X": "y"}, subprotocols=["chat"], timeout=5, max_size=1000
        ) as client:
            assert await client.receive() == f"/p?q {host}:{port} None y"
            assert client.subprotocol == "chat"
        assert client.close_code == 1000
        with pytest.raises(HandshakeRejected) as caught:
            async with anyio_ws.connect(f"{url}/no"):
                pass
        assert (caught.value.status, caught.value.headers["x-price"], caught.value.body) == (402, "1", b"pay")
        with pytest.raises(TypeError, match="no_such_field"):
            async with anyio_ws.connect(url, no_such_field=1):
                pass


async def test_k3_read_loop_hands_over_and_closes_once() -> None:
    """Handle gets each message in order, close is called once, and the loop ends with the connection."""
    async with read_loop() as (client, peer, collector):
        await peer.send_frame(TEXT, b"one")
        await peer.send_frame(TEXT, b"two")
        await peer.send_close(1000)
        await peer.expect_close(1000)
        await peer.stream.aclose()
        await client.wait_gone()
    assert collector.messages == [Message(MessageType.TEXT, "one"), Message(MessageType.TEXT, "two")]
    assert collector.closes == 1


async def test_k4_writing_goes_on_beside_the_loop() -> None:
    """Everything can be written from other tasks and threads while the loop reads."""
    async with read_loop() as (client, peer, _):
        await client.write("a")
        await client.write_text("b")
        await client.write_bin(b"c")
        await client.write_ping(b"d")
        await client.write_pong(b"e")
        await client.write_frame(Opcode.TEXT, b"f")
        await anyio.to_thread.run_sync(client.from_thread.write, "g")
        frames = [await peer.frame() for _ in range(7)]
        assert b"".join(frame.payload for frame in frames) == b"abcdefg"
        client.close_nowait(4000)
        await peer.expect_close(4000)


async def test_k5_messages_have_a_type() -> None:
    """A message is its type and its data."""
    assert {type_.name for type_ in MessageType} == {"TEXT", "BINARY", "PING", "PONG", "CLOSE"}
    async with testing.client(Echo) as client:
        await client.write_bin(b"x")
        message = await client.read()
        assert message == Message(MessageType.BINARY, b"x")
        assert message is not None
        assert (message.type, message.data) == (MessageType.BINARY, b"x")


async def test_k6_control_frames_off_and_on() -> None:
    """Off, pings and closes are answered and not handed over; on, they are, and nothing is automatic."""
    async with read_loop() as (client, peer, collector):
        await peer.send_frame(PING, b"p")
        await peer.expect(PONG, b"p")
        await peer.send_frame(PONG, b"q")
        await peer.send_close(4000)
        await peer.expect_close(4000)
        await peer.stream.aclose()
        await client.wait_gone()
    assert collector.messages == []
    async with read_loop(handle_ping=True, handle_pong=True, handle_close=True) as (client, peer, collector):
        await peer.send_frame(PING, b"p")
        await peer.send_frame(PONG, b"q")
        await peer.send_close(4000)
        await client.wait_gone()
        assert await peer.rest() == b""
    types = [message.type for message in collector.messages]
    assert types == [MessageType.PING, MessageType.PONG, MessageType.CLOSE]
    assert (collector.messages[-1].close_code, collector.closes) == (4000, 1)


async def test_k7_limits_of_a_message() -> None:
    """max_size is the longest message; with buffer_size equal to it, parts take no other memory."""
    pool = buffer_provider(4, 1000)
    async with connection(Role.CLIENT, max_size=1000) as link:
        await link.peer.send(link.peer.build(TEXT, b"x" * 1001)[:4])
        assert (await link.peer.frame()).payload[:2] == (1009).to_bytes(2, "big")
    options: Any = {"max_size": 1000, "buffer_size": 1000, "buffer_provider": pool}
    async with testing.client(Echo, config=Config(compression=None), **options) as client:
        for size in (1000, 999, 1000):
            await client.write_frame(Opcode.BINARY, bytes(size // 2), fin=False)
            await client.write_frame(Opcode.CONTINUATION, bytes(size - size // 2))
            assert len(await client.receive()) == size
    statistics = pool.statistics()
    assert (statistics.created, statistics.fallback) == (0, 0)


@pytest.mark.parametrize("how", ["path", "bytes", "context", "tls"])
async def test_k8_tls_and_whom_to_trust(how: str) -> None:
    """Authorities come as path, bytes or context, or TLS as a context; without them a stranger is refused."""
    trusting = client_context()
    with AUTHORITY.cert_pem.tempfile() as path:
        choices: dict[str, dict[str, Any]] = {
            "path": {"ca_bundle": path},
            "bytes": {"ca_bundle": PEM},
            "context": {"ca_bundle": trusting},
            "tls": {"tls": trusting},
        }
        async with at_server(tls=server_context()) as (host, port):
            async with anyio_ws.connect(f"wss://{host}:{port}", **choices[how]) as client:
                await client.write("secret")
                assert await client.receive() == "secret"
            with pytest.raises(ssl.SSLCertVerificationError):
                async with anyio_ws.connect(f"wss://{host}:{port}"):
                    pass


async def test_k9_clients_share_a_pool() -> None:
    """A pool lends buffers to many clients for longer messages, and fresh memory when it has none."""
    pool = buffer_provider(1, 2000)
    async with no_hang(), anyio.create_task_group() as tasks, contextlib.AsyncExitStack() as stack:
        pairs = []
        for _ in range(2):
            near, far = memory_stream_pair()
            peer = Peer(far, is_client=False)
            tasks.start_soon(peer.accept)
            options: Any = {"buffer_provider": pool, "buffer_size": 500, "close_timeout": 0.001}
            connecting = anyio_ws.connect("ws://localhost/", stream=near, **options)
            pairs.append((peer, await stack.enter_async_context(connecting)))
        frame = pairs[0][0].build(Opcode.BINARY, b"x" * 1500)
        for peer, _ in pairs:
            await peer.send(frame[:1000])
        await settle()
        assert (pool.statistics().in_use, pool.statistics().fallback) == (1, 1)
        for peer, client in pairs:
            await peer.send(frame[1000:])
            assert await client.receive() == b"x" * 1500
            client.abort()
    assert (pool.statistics().created, pool.statistics().in_use) == (1, 0)


async def test_k10_every_frame_is_masked() -> None:
    """Keys differ from frame to frame; the caller's bytes stay, unless masking in place is asked for."""
    data = bytearray(b"a message that is long enough to see")
    async with connection(Role.CLIENT) as link:
        keys = set()
        for _ in range(50):
            await link.conn.write_bin(data)
            frame = await link.peer.frame()
            assert frame.payload == data == b"a message that is long enough to see"
            keys.add(frame.key)
        assert len(keys) == 50
        assert None not in keys
        await link.conn.write_bin(data, mask_in_place=True)
        frame = await link.peer.frame()
        assert frame.payload == b"a message that is long enough to see"
        assert data != frame.payload


async def test_k11_client_without_an_event_loop() -> None:
    """A thread connects, writes, reads and iterates, with no await in sight."""

    def talk(url: str) -> list[Any]:
        with blocking.connect(url) as client:
            client.write("one")
            first = client.read(timeout=10)
            assert client.read(timeout=0) is None
            client.write("two")
            return [first, next(iter(client))]

    async with at_server() as (host, port):
        said = await anyio.to_thread.run_sync(partial(talk, f"ws://{host}:{port}"))
    assert said == [Message(MessageType.TEXT, "one"), "two"]


async def test_k2_block_ends_with_a_code_that_tells() -> None:
    """The end of the block closes with 1000, an error in it with 1011."""
    codes: list[int | None] = []

    class Notes(Echo):
        def close(self) -> None:
            codes.append(self.conn.close_code)

    with pytest.raises(KeyError):
        async with testing.client(Notes):
            raise KeyError
    async with testing.client(Notes) as client:
        client.close_nowait()
        with pytest.raises(anyio.ClosedResourceError):
            await client.receive()
    assert codes == [1011, 1000]
    assert CLOSE == Opcode.CLOSE
    assert issubclass(ConnectionEnded, anyio.EndOfStream)
