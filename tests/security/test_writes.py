"""Writing to peers that are slow, stuck, or gone: nothing is torn, nothing waits for ever."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import SocketAttribute
from anyio.streams.tls import TLSStream

from anyio_ws import ClientConfig, Config, Conn, Handshake, broadcast, connect, frame_text
from anyio_ws.framing import FRAGMENT
from anyio_ws.testing import WireOracle, memory_stream_pair

from ..support import BINARY, CLOSE, PING, PONG, TEXT, Peer, no_hang, nothing_left, settle
from .arena import Arena, Diary, Echo, arena, bystander, every_way, tls_contexts

MANY = 120


class Holder(Echo):
    """Hands its connection to the test."""

    def __init__(self, handshake: Handshake, conn: Conn, app: Any) -> None:
        super().__init__(handshake, conn, app)
        app.append(self)

    def close(self) -> None:
        """Note nothing."""


async def open_pair(place: Arena, app: list[Any]) -> tuple[Conn, Peer]:
    """Open a connection, and return both of its ends."""
    peer = await place.open()
    await settle()
    return app[-1].conn, peer


# --- cancelled writes -------------------------------------------------------------------------------------


async def fill(conn: Conn) -> list[bytes]:
    """Write until neither the system nor the outbox takes more; return what was taken."""
    taken: list[bytes] = []
    with contextlib.suppress(anyio.WouldBlock):
        while True:
            conn.write_nowait(bytes(100_000))
            taken.append(bytes(100_000))
            await settle()
    return taken


async def write_and_cancel(conn: Conn, seed: int, taken: list[bytes]) -> None:
    """Write from several tasks, and cancel many of the writes; note the messages that were taken."""
    draw = random.Random(seed)

    async def write(data: bytes, patience: int) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(cancel_after, patience, tasks.cancel_scope)
            await conn.write_bin(data)
            taken.append(data)
            tasks.cancel_scope.cancel()

    async def write_some(first: int) -> None:
        for number in range(first, MANY, 4):
            size = draw.choice([0, 10, 1_000, 40_000, 70_000])
            patience = draw.choice([0, 1, 2, 5, 10_000_000, 10_000_000])
            await write(b"%6d" % number + bytes(size), patience)

    async with anyio.create_task_group() as writers:
        for first in range(4):
            writers.start_soon(write_some, first)


async def cancel_after(rounds: int, scope: anyio.CancelScope) -> None:
    """Cancel a scope after some rounds of the event loop; after very many, never."""
    if rounds > 1000:
        await anyio.sleep_forever()
    for _ in range(rounds):
        await anyio.lowlevel.checkpoint()
    scope.cancel()


async def read_slowly(peer: Peer, oracle: WireOracle) -> None:
    """Read a little, let the others go on for a while, and so on to the end."""
    draw = random.Random(0)
    oracle.feed(peer.received)
    try:
        while True:
            oracle.feed(await peer.stream.receive(draw.choice([100, 5_000, 65_536])))
            for _ in range(draw.randrange(6)):
                await anyio.lowlevel.checkpoint()
    except anyio.EndOfStream:
        pass


@pytest.mark.attack("T01", "T07")
@every_way
@pytest.mark.parametrize("seed", range(2))
async def test_writes_of_a_server_that_are_cancelled_tear_no_frame(way: str, seed: int) -> None:
    """Under back-pressure every write that returned is on the wire, whole and in order, and no other is."""
    app: list[Any] = []
    async with arena(way, Holder, app, Config(outbox_size=100_000)) as place:
        conn, peer = await open_pair(place, app)
        oracle = WireOracle(masked=False)
        taken = await fill(conn)
        filled = len(taken)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read_slowly, peer, oracle)
            await write_and_cancel(conn, seed, taken)
            conn.close_nowait(1000)
            await settle()
            await peer.send_close(1000)
    oracle.check()
    assert oracle.messages == [*((BINARY, data) for data in taken), (CLOSE, b"\x03\xe8")]
    assert 10 < len(taken) - filled < MANY


@pytest.mark.attack("T01", "T07")
@pytest.mark.parametrize("seed", range(2))
async def test_writes_of_a_client_that_are_cancelled_tear_no_frame(seed: int) -> None:
    """The same for a client, whose frames are masked."""
    ours, theirs = memory_stream_pair(capacity=65_536)
    peer, oracle = Peer(theirs, is_client=False), WireOracle(masked=True)
    async with no_hang(), anyio.create_task_group() as tasks:
        tasks.start_soon(peer.accept)
        config = ClientConfig(outbox_size=100_000)
        async with connect("ws://localhost/", stream=ours, config=config) as client:
            taken = await fill(client)
            filled = len(taken)
            tasks.start_soon(read_slowly, peer, oracle)
            await write_and_cancel(client, seed, taken)
            client.close_nowait(1000)
            await peer.send_close(1000)
            await theirs.send_eof()
    oracle.check()
    assert oracle.messages == [*((BINARY, data) for data in taken), (CLOSE, b"\x03\xe8")]
    assert 10 < len(taken) - filled < MANY


# --- peers that never read ----------------------------------------------------------------------------------


class Flooding(Echo):
    """Writes without end to whoever asks for it."""

    async def after_init(self) -> None:
        """Write until that is not possible any more."""
        while self.path == "/flood":
            await self.conn.write_bin(bytes(100_000))


QUICK = {
    "write_timeout": Config(write_timeout=0.3, ping_interval=None, close_timeout=60),
    "keepalive": Config(write_timeout=60, ping_interval=0.2, ping_timeout=0.2, close_timeout=60),
}


@pytest.mark.attack("R01", "R09", "R10")
@every_way
@pytest.mark.parametrize("deadline", QUICK)
async def test_peer_that_never_reads_is_cut_while_others_are_served(way: str, deadline: str) -> None:
    """The write deadline and keepalive each cut it, though the write path is stuck; others notice nothing."""
    ends = Diary()
    async with nothing_left(), arena(way, Flooding, ends, QUICK[deadline]) as place, bystander(place):
        await place.open("/flood")
        await ends.wait()
        assert ends == [1006]


@pytest.mark.attack("R01", "T10")
@every_way
async def test_close_gives_up_on_a_peer_that_never_reads(way: str) -> None:
    """``close`` does not wait behind what cannot be written: ``close_timeout`` cuts the connection."""
    config = Config(write_timeout=60, ping_interval=None, close_timeout=0.2)
    app: list[Any] = []
    async with nothing_left(), arena(way, Holder, app, config) as place:
        conn, _ = await open_pair(place, app)
        await fill(conn)
        await conn.close(4000)
        assert conn.close_code == 1006


HUGE = bytes(16_000_000)


async def read_huge(peer: Peer) -> list[int]:
    """Read fragments up to the last one; return how many bytes of them came behind each Pong."""
    position, pongs, fin = 0, [], False
    while not fin:
        frame = await peer.frame()
        if frame.opcode == PONG:
            pongs.append(position)
            assert frame.payload == b"still there?"
        else:
            assert frame.opcode == (0x0 if position else BINARY)
            assert frame.fin or len(frame.payload) == FRAGMENT
            position, fin = position + len(frame.payload), frame.fin
    assert position == len(HUGE)
    return [position - each for each in pongs]


async def ping_during_a_huge_message(conn: Conn, peer: Peer) -> None:
    """Have a Ping come while a huge message waits; its Pong must come before what waited."""
    transport: Any = conn._transport
    sock = peer.stream.extra(SocketAttribute.raw_socket, None)
    if sock is not None:  # the system would take the whole of it otherwise, now and then
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    await conn.write_bin(HUGE)
    await settle()
    reads = transport.reads
    await peer.send_frame(PING, b"still there?")
    while transport.reads == reads:
        await anyio.lowlevel.checkpoint()
    waiting = transport.buffered
    assert waiting > 2_000_000, "the message is larger than what the system takes"
    (behind,) = await read_huge(peer)
    assert behind > waiting - 2 * 131_072


@pytest.mark.attack("R15", "R04")
@every_way
async def test_control_frames_of_a_server_do_not_wait_for_a_huge_message(way: str) -> None:
    """A Ping during a message of 16 MB is answered inside of it, before what waits; a Close comes last."""
    app: list[Any] = []
    async with arena(way, Holder, app) as place:
        conn, peer = await open_pair(place, app)
        await ping_during_a_huge_message(conn, peer)
        await conn.write_bin(HUGE)
        await peer.send_close(1000)
        await settle()
        assert await peer.message() == (BINARY, HUGE)
        await peer.expect_close(1000)


@contextlib.asynccontextmanager
async def client_over(way: str) -> AsyncIterator[tuple[Conn, Peer]]:
    """Connect a client in one way to a server made of bytes; the block gets both ends."""
    async with no_hang(), anyio.create_task_group() as tasks:
        if way == "memory":
            stream, theirs = memory_stream_pair(capacity=65_536)
            peer = Peer(theirs, is_client=False)
            tasks.start_soon(peer.accept)
            connecting = connect("ws://localhost/", stream=stream)
        else:
            peers: list[Peer] = []
            listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
            port = listener.extra(SocketAttribute.local_port)
            tasks.start_soon(accept_one, listener, way, peers)
            scheme = "wss" if way == "tls" else "ws"
            below = await anyio.connect_tcp("127.0.0.1", port) if way == "streams" else None
            tls = tls_contexts()[1] if way == "tls" else False
            connecting = connect(f"{scheme}://localhost:{port}/", stream=below, tls=tls)
        async with connecting as client:
            peer = peer if way == "memory" else peers[0]
            yield client, peer
            await peer.stream.aclose()
        tasks.cancel_scope.cancel()


async def accept_one(listener: Any, way: str, peers: list[Peer]) -> None:
    """Accept clients, and do the opening handshake."""

    async def handle(stream: Any) -> None:
        if way == "tls":
            context = tls_contexts()[0]
            stream = await TLSStream.wrap(
                stream, server_side=True, ssl_context=context, standard_compatible=False
            )
        async with stream:
            peers.append(Peer(stream, is_client=False))
            await peers[0].accept()
            await anyio.sleep_forever()

    async with listener:
        await listener.serve(handle)


@pytest.mark.attack("R15", "R04")
@every_way
async def test_pong_of_a_client_does_not_wait_for_a_huge_message(way: str) -> None:
    """A client that uploads 16 MB answers a Ping inside of it, too: its server goes on to hear it."""
    async with client_over(way) as (client, peer):
        await ping_during_a_huge_message(client, peer)
        client.close_nowait(1000)
        await peer.expect_close(1000)
        await peer.send_close(1000)


# --- violations and other last words ------------------------------------------------------------------------


@pytest.mark.attack("F27", "H17")
@every_way
@pytest.mark.parametrize("backlog", [0, 60_000, 1_000_000])
async def test_violation_is_told_however_much_is_unread(way: str, backlog: int) -> None:
    """A peer that breaks the protocol and has sent a megabyte behind it still reads the Close with 1002."""
    ends = Diary()
    async with arena(way, Echo, ends) as place, bystander(place):
        peer = await place.open()
        with contextlib.suppress(anyio.BrokenResourceError):  # the server reads 64 KiB more, and no further
            await peer.send(b"\xf3" + bytes(backlog))
        frame = await peer.frame()
        assert (frame.opcode, frame.payload[:2]) == (CLOSE, b"\x03\xea")
        await peer.stream.aclose()
        await ends.wait()
        assert ends == [1002]


# --- broadcast ----------------------------------------------------------------------------------------------


@pytest.mark.attack("R02")
@every_way
@pytest.mark.parametrize("close_code", [None, 1013])
async def test_broadcast_leaves_out_those_that_do_not_read(way: str, close_code: int | None) -> None:
    """It never waits, buffers no more than the outbox for anybody, and everybody else gets everything."""
    app: list[Any] = []
    config = Config(outbox_size=200_000, write_timeout=60, ping_interval=None, close_timeout=60)
    async with nothing_left(), arena(way, Holder, app, config) as place:
        peers = [await place.open() for _ in range(5)]
        slow = app[0].conn
        slow._config = replace(config, close_timeout=0.2)  # the others may be as slow as the machine
        conns = [holder.conn for holder in app]
        others = peers[1:]
        missed_by: list[Conn] = []
        got = 0
        while len(missed_by) < 3:
            missed_by += broadcast(conns, b"news" + bytes(40_000), close_code=close_code)
            assert slow._transport.buffered <= 200_000 + 41_000
            if slow.is_closed:
                missed_by += [slow] * 3
            got += 1
            for peer in others:
                await peer.expect(BINARY, b"news" + bytes(40_000))
        assert set(missed_by) == {slow}
        assert slow.is_closed is (close_code is not None)
        for conn in conns:
            conn.close_nowait(1000)
        for peer in others:
            await peer.expect_close(1000)
            await peer.send_close(1000)
        if close_code is None:
            await slow.wait_gone()  # it does not read its Close either
    assert slow.close_code == 1006


async def test_broadcast_frames_once_and_passes_over_the_closed() -> None:
    """Text, bytes and prepared frames arrive as they are; who has gone is nobody's problem."""
    app: list[Any] = []
    async with arena("memory", Holder, app) as place:
        peers = [await place.open() for _ in range(3)]
        await settle()
        conns = [holder.conn for holder in app]
        await peers[0].close_handshake()
        assert broadcast(iter(conns), "text") == []
        assert broadcast(set(conns), bytearray(b"bytes")) == []
        assert broadcast(conns, frame_text("prepared")) == []
        for peer in peers[1:]:
            await peer.expect(TEXT, b"text")
            await peer.expect(BINARY, b"bytes")
            await peer.expect(TEXT, b"prepared")


@every_way
async def test_broadcast_passes_over_who_was_closed_for_being_slow(way: str) -> None:
    """It is told once, though its outbox stays full."""
    app: list[Any] = []
    async with arena(way, Holder, app, Config(outbox_size=1_000, ping_interval=None)) as place:
        conn, _ = await open_pair(place, app)
        while not (missed := broadcast([conn], bytes(100_000), close_code=1013)):
            pass
        assert missed == [conn]
        assert conn._transport.full
        assert broadcast([conn], "news", close_code=1013) == []


async def test_broadcast_leaves_out_who_is_inside_a_fragmented_message() -> None:
    """Between fragments nothing may stand; the caller is told who missed the message."""
    app: list[Any] = []
    async with arena("memory", Holder, app) as place:
        conn, peer = await open_pair(place, app)
        await conn.write_frame(TEXT, b"begun", fin=False)
        assert broadcast([conn], "not now", close_code=1013) == [conn]
        await conn.write_frame(0x0, b", done")
        assert broadcast([conn], "now") == []
        assert [(await peer.frame()).payload for _ in range(3)] == [b"begun", b", done", b"now"]


async def test_broadcast_refuses_a_close_that_may_not_be_sent() -> None:
    """Before anything is sent."""
    app: list[Any] = []
    async with arena("memory", Holder, app) as place:
        conn, peer = await open_pair(place, app)
        with pytest.raises(ValueError, match="code"):
            broadcast([conn], "x", close_code=1006)
        with pytest.raises(TypeError, match="bytes-like"):
            broadcast([conn], 5)  # type: ignore[arg-type]  # a mistake on purpose
        await peer.close_handshake()
