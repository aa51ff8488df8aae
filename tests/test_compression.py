"""Compression from end to end: what is negotiated on the wire, and messages over whole connections.

The peer is made of bytes and ``zlib``: it offers, answers, compresses and inflates by RFC 7692 alone, and
knows nothing of the package.
"""

from __future__ import annotations

import gc
import json
import random
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import pytest

from anyio_ws import (
    Compression,
    Config,
    Conn,
    ConnectionBroken,
    InvalidResponse,
    LocalProtocolError,
    Opcode,
    Server,
    connect,
    deflate,
    frame_bin,
    frame_text,
    testing,
)
from anyio_ws.deflate import Parameters
from anyio_ws.handler import FunctionFactory

from . import support
from .memory import every_cut, swept
from .support import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    TEXT,
    Peer,
    listening,
    no_hang,
    open_end,
    serving,
    settle,
    virtual,
)

no_surprises = support.no_surprises
pytestmark = pytest.mark.usefixtures("no_surprises")

ROLES = pytest.mark.parametrize("role", ["server", "client"])
EXTENSIONS = "Sec-WebSocket-Extensions"
OFFER = "permessage-deflate; client_max_window_bits"  # what browsers offer
TAIL = b"\x00\x00\xff\xff"
KIB, MIB = 1_024, 1_048_576
PRICE = json.dumps({"id": 5701, "symbol": "AAPL", "price": 181.25, "side": "buy", "venue": "XNAS"}) * 2
BITS = "server_max_window_bits=12; client_max_window_bits=12"
NONE = "server_no_context_takeover; client_no_context_takeover"
CONTEXTS = {
    "contexts": (Compression(client_no_context_takeover=False), f"permessage-deflate; {BITS}"),
    "server's context": (Compression(), f"permessage-deflate; client_no_context_takeover; {BITS}"),
    "no contexts": (Compression(server_no_context_takeover=True), f"permessage-deflate; {NONE}; {BITS}"),
}
contexts = pytest.mark.parametrize("context", CONTEXTS)


class Zlib:
    """Compresses and inflates as RFC 7692 §7.2 describes it, for a peer made of bytes.

    :param answer: what was negotiated, the value of ``Sec-WebSocket-Extensions``
    :param role: the end that is tested; this is the other one
    """

    def __init__(self, peer: Peer, answer: str, role: str) -> None:
        self.peer = peer
        theirs = "server" if role == "client" else "client"
        self._forgets = f"{theirs}_no_context_takeover" in answer
        self._is_told_afresh = f"{role}_no_context_takeover" in answer
        self._compressor = zlib.compressobj(wbits=-12)
        self._decompressor = zlib.decompressobj(-15)

    def compress(self, data: bytes, *, fin: bool = True) -> bytes:
        """Compress a message, or a fragment of one."""
        payload = self._compressor.compress(data) + self._compressor.flush(zlib.Z_SYNC_FLUSH)
        if not fin:
            return payload
        if self._forgets:
            self._compressor = zlib.compressobj(wbits=-12)
        return payload.removesuffix(TAIL)

    def inflate(self, payload: bytes) -> bytes:
        """Inflate the payload of a message."""
        data = self._decompressor.decompress(payload + TAIL)
        if self._is_told_afresh:
            self._decompressor = zlib.decompressobj(-15)
        return data

    async def send(self, data: bytes, opcode: int = TEXT) -> None:
        """Send a compressed message."""
        await self.peer.send_frame(opcode, self.compress(data), rsv=4)

    async def receive(self) -> tuple[int, bytes, bool]:
        """Receive a message; return opcode, data, and whether it was compressed."""
        first = frame = await self.peer.frame()
        payload = frame.payload
        while not frame.fin:
            frame = await self.peer.frame()
            assert (frame.opcode, frame.rsv) == (0, 0)
            payload += frame.payload
        assert first.rsv in (0, 4)
        return first.opcode, self.inflate(payload) if first.rsv else payload, first.rsv == 4


@asynccontextmanager
async def compressing(
    role: str, context: str = "contexts", *, capacity: float = float("inf"), **fields: Any
) -> AsyncIterator[tuple[Conn, Zlib]]:
    """Open a connection in memory that compresses; one end is under test, the other made of zlib."""
    settings, answer = CONTEXTS[context]
    said = OFFER if role == "server" else answer
    fields = {"compression": settings, **fields}
    async with open_end(role, capacity, {EXTENSIONS: said}, **fields) as (conn, peer):
        yield conn, Zlib(peer, answer, role)


# --- what is negotiated: a server -----------------------------------------------------------------------


class Echo:
    """Sends back what comes."""

    def __init__(self, conn: Conn) -> None:
        self.conn = conn

    async def client_message(self, data: str | bytes) -> None:
        """Send it back."""
        await self.conn.send(data)


@pytest.mark.parametrize(
    ("offered", "answer"),
    [
        (OFFER, CONTEXTS["server's context"][1]),
        ("permessage-deflate", "permessage-deflate; client_no_context_takeover; server_max_window_bits=12"),
        (
            "permessage-deflate; server_no_context_takeover; client_max_window_bits=10",
            f"permessage-deflate; {NONE}; server_max_window_bits=12; client_max_window_bits=10",
        ),
        ("x-other, permessage-deflate; x, " + OFFER, CONTEXTS["server's context"][1]),
        ("permessage-bzip2", None),
        (None, None),
    ],
)
async def test_server_answers_the_offer(offered: str | None, answer: str | None) -> None:
    """The 101 says what was chosen of the offer, or nothing; and messages are compressed accordingly."""
    async with serving(Echo) as served:
        peer = served.connect()
        head = await peer.open(headers={EXTENSIONS: offered})
        assert head.get("sec-websocket-extensions") == answer
        wire = Zlib(peer, answer or "", "server")
        for _ in range(2):
            if answer:
                await wire.send(PRICE.encode())
            else:
                await peer.send_frame(TEXT, PRICE.encode())
            assert await wire.receive() == (TEXT, PRICE.encode(), answer is not None)
        await peer.close_handshake()


@virtual
async def test_server_without_compression_declines_every_offer() -> None:
    """With compression=None the 101 has no extension, nothing is compressed, and RSV1 is 1002."""
    async with serving(Echo, config=Config(compression=None)) as served:
        peer = served.connect()
        assert (await peer.open(headers={EXTENSIONS: OFFER})).get("sec-websocket-extensions") is None
        await peer.send_frame(TEXT, PRICE.encode())
        await peer.expect(TEXT, PRICE.encode())
        await peer.send_frame(TEXT, b"\x00", rsv=4)
        assert (await peer.frame()).payload[:2] == (1002).to_bytes(2, "big")


BAD_PARAMS = [
    *(f"{end}_max_window_bits={bits}" for end in ("server", "client") for bits in ("7", "16", "99", "08")),
    *("server_max_window_bits", "server_no_context_takeover=1", 'client_no_context_takeover="x"', "unknown"),
    *("server_no_context_takeover; server_no_context_takeover", 'client_max_window_bits="16"'),
    *(
        "server_max_window_bits=10; server_max_window_bits=10",
        "client_max_window_bits; client_max_window_bits",
    ),
]


@virtual
@pytest.mark.attack("C08")
@pytest.mark.parametrize("params", BAD_PARAMS)
async def test_server_declines_a_bad_offer_and_serves_the_client(params: str) -> None:
    """An offer with a bad parameter is declined, with 101: never a 400 or a 500, and nothing is logged."""
    async with serving(Echo) as served:
        peer = served.connect()
        head = await peer.open(headers={EXTENSIONS: f"permessage-deflate; {params}"})
        assert head.get("sec-websocket-extensions") is None
        await peer.send_frame(TEXT, PRICE.encode())
        await peer.expect(TEXT, PRICE.encode())
        await peer.close_handshake()
        again = served.connect()
        head = await again.open(headers={EXTENSIONS: f"permessage-deflate; {params}, permessage-deflate"})
        assert (head.get("sec-websocket-extensions") or "").startswith("permessage-deflate; client_no")
        await again.close_handshake()


@virtual
@pytest.mark.attack("C08")
@pytest.mark.parametrize(
    "header", ["", "permessage-deflate; client_max_window_bits=", "permessage-deflate; =8", "a;;b", 'a; b="']
)
async def test_server_refuses_an_offer_that_breaks_the_grammar(header: str) -> None:
    """What is no list of extensions at all is 400 (RFC 6455 §9.1)."""
    async with serving(Echo) as served:
        peer = served.connect()
        await peer.send(support.build_request(headers={EXTENSIONS: header}))
        assert (await peer.receive_head()).status == 400


# --- what is negotiated: a client -----------------------------------------------------------------------


@asynccontextmanager
async def scripted_server(answer: str | None) -> AsyncIterator[tuple[Any, list[Any]]]:
    """Give a stream to connect to, where a server answers with these extensions, and the requests it got."""
    ours, theirs = testing.memory_stream_pair()
    requests: list[Any] = []

    async def run() -> None:
        requests.append(await Peer(theirs, is_client=False).accept({EXTENSIONS: answer}))

    async with no_hang(), anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        yield ours, requests
        await theirs.aclose()


@virtual
@pytest.mark.parametrize(
    ("settings", "offered"),
    [
        (
            Compression(),
            CONTEXTS["server's context"][1],
        ),
        (
            Compression(
                server_max_window_bits=15, client_max_window_bits=15, client_no_context_takeover=False
            ),
            OFFER,
        ),
        (None, None),
    ],
    ids=["default", "all the RFC allows", "none"],
)
async def test_client_offers_what_its_settings_say(settings: Compression | None, offered: str | None) -> None:
    """The request has the offer, and a server that does not take it leaves all as it is."""
    async with scripted_server(None) as (stream, requests):
        async with connect("ws://localhost/", stream=stream, compression=settings, close_timeout=1) as client:
            assert client.compression is None
        assert [request.get("sec-websocket-extensions") for request in requests] == [offered]


@virtual
@pytest.mark.attack("C08")
@pytest.mark.parametrize(
    "answer",
    [
        *(f"permessage-deflate; {params}" for params in BAD_PARAMS),
        "permessage-deflate; client_max_window_bits",
        "permessage-deflate; server_max_window_bits=13",
        *("permessage-deflate, permessage-deflate", "permessage-bzip2", "permessage-deflate, x", "", "a;;b"),
    ],
)
async def test_client_refuses_an_answer_that_its_offer_does_not_allow(answer: str) -> None:
    """What was not offered, is there twice, or is wrong fails the handshake, and the stream is closed."""
    async with scripted_server(answer) as (stream, _):
        with pytest.raises(InvalidResponse, match=r"extension|Extensions|offer"):
            async with connect("ws://localhost/", stream=stream):
                pass
        with pytest.raises(anyio.ClosedResourceError):
            await stream.receive()


@virtual
@pytest.mark.attack("C08")
@pytest.mark.parametrize("answer", ["permessage-deflate", "x"])
async def test_client_that_offers_nothing_accepts_no_extension(answer: str) -> None:
    """With compression=None any extension in the 101 fails the handshake."""
    async with scripted_server(answer) as (stream, _):
        with pytest.raises(InvalidResponse, match="did not offer"):
            async with connect("ws://localhost/", stream=stream, compression=None):
                pass


@virtual
@ROLES
@contexts
async def test_connection_tells_what_was_negotiated(role: str, context: str) -> None:
    """Both ends know from conn.compression whether, and how, messages are compressed."""
    async with compressing(role, context) as (conn, _):
        assert conn.compression == Parameters(
            server_no_context_takeover=context == "no contexts",
            client_no_context_takeover=context != "contexts",
            server_max_window_bits=12,
            client_max_window_bits=12,
        )


# --- messages -------------------------------------------------------------------------------------------


@ROLES
@contexts
async def test_messages_pass_both_ways(role: str, context: str) -> None:
    """Text and binary, short and long, compressed and not, are understood by zlib and from zlib, in order."""
    sizes = [0, 1, 63, 64, 125, 126, 1_000, 65_536]
    async with compressing(role, context) as (conn, wire):
        for size in sizes * 2:
            text = ("café " * size)[: size // 2]
            await wire.send(text.encode())
            assert await conn.receive() == text
            await wire.peer.send_frame(BINARY, text.encode())
            assert await conn.receive() == text.encode()
            await conn.write(text)
            assert await wire.receive() == (TEXT, text.encode(), len(text.encode()) >= 64)
            await conn.write_bin(text.encode())
            assert await wire.receive() == (BINARY, text.encode(), len(text.encode()) >= 64)


@contexts
@pytest.mark.parametrize("backend", ["zlib", "isal"])
async def test_server_and_client_of_ours_understand_each_other(context: str, backend: Any) -> None:
    """Random messages over TCP come back as they were, whatever contexts are kept, whatever compresses."""
    if backend == "isal":
        pytest.importorskip("isal")
    settings = Compression(
        server_no_context_takeover=context == "no contexts",
        client_no_context_takeover=context != "contexts",
        backend=backend,
    )
    chance = random.Random(context)
    async with (
        listening(Server(Echo, Config(port=0, compression=settings))) as [(_, port)],
        connect(f"ws://127.0.0.1:{port}/", compression=settings) as client,
    ):
        assert client.compression is not None
        for _ in range(60):
            data = bytes(chance.choices(b"abc {}", k=chance.choice([10, 200, 3_000, 65_536])))
            message = data.decode() if chance.random() < 0.5 else data
            await client.send(message, compress=chance.random() < 0.8)
            assert await client.receive() == message


@virtual
@ROLES
@contexts
async def test_context_makes_the_second_message_small(role: str, context: str) -> None:
    """Where a context is kept an equal message is a few bytes, where none is kept it is as long again."""
    kept = context == "contexts" or (role == "server" and context == "server's context")
    async with compressing(role, context) as (conn, wire):
        sizes = []
        for _ in range(2):
            await conn.write(PRICE)
            sizes.append(len((await wire.peer.frame()).payload))
        assert sizes[0] < len(PRICE)
        assert sizes[1] < 15 if kept else sizes[1] == sizes[0]


WRITES: dict[str, Callable[[Conn], Awaitable[object]]] = {
    "write": lambda conn: conn.write(PRICE, compress=False),
    "write_text": lambda conn: conn.write_text(PRICE, compress=False),
    "write_bin": lambda conn: conn.write_bin(PRICE.encode(), compress=False),
    "send": lambda conn: conn.send(PRICE, compress=False),
    "send binary": lambda conn: conn.send(PRICE.encode(), compress=False),
    "write_framed": lambda conn: conn.write_framed(frame_text(PRICE, compress=False)),
    "write_framed binary": lambda conn: conn.write_framed(frame_bin(PRICE.encode(), compress=False)),
    "write_frame": lambda conn: conn.write_frame(Opcode.TEXT, PRICE.encode()),
}


@virtual
@pytest.mark.attack("C13")
@ROLES
@contexts
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
async def test_message_with_a_secret_can_be_kept_out_of_compression(
    role: str, context: str, write: Callable[[Conn], Awaitable[object]]
) -> None:
    """Every way to write can send one message as it is; those around it are compressed and understood."""
    async with compressing(role, context) as (conn, wire):
        await conn.write(PRICE)
        await write(conn)
        conn.write_nowait(PRICE, compress=False)
        conn.write_nowait(PRICE)
        assert [(await wire.receive())[1:] for _ in range(4)] == [
            (PRICE.encode(), True),
            (PRICE.encode(), False),
            (PRICE.encode(), False),
            (PRICE.encode(), True),
        ]


@pytest.mark.attack("C13")
@ROLES
async def test_thread_can_keep_a_message_out_of_compression(role: str) -> None:
    """Other threads have the same choice for each message."""
    async with compressing(role) as (conn, wire):

        def talk() -> None:
            for compress in (True, False):
                conn.from_thread.write(PRICE, compress=compress)
                conn.from_thread.write_bin(PRICE.encode(), compress=compress)
            conn.from_thread.write(PRICE)

        await anyio.to_thread.run_sync(talk)
        assert [(await wire.receive())[2] for _ in range(5)] == [True, True, False, False, True]


@virtual
@ROLES
@contexts
async def test_write_frame_compresses_a_fragmented_message(role: str, context: str) -> None:
    """Asked for with its first frame, a message is compressed in all its fragments; others are not."""
    async with compressing(role, context) as (conn, wire):
        for compress in (True, False, True):
            await conn.write_frame(Opcode.TEXT, PRICE.encode(), fin=False, compress=compress)
            await conn.write_frame(Opcode.CONTINUATION, b"", fin=False)
            with pytest.raises(LocalProtocolError):
                await conn.write("in between")
            await conn.write_frame(Opcode.CONTINUATION, PRICE.encode())
            await conn.write(PRICE)
            assert await wire.receive() == (TEXT, PRICE.encode() * 2, compress)
            assert await wire.receive() == (TEXT, PRICE.encode(), True)


@virtual
@contexts
async def test_broadcast_is_compressed_once_and_understood_by_all(context: str) -> None:
    """One frame written to many connections is the same bytes for each, between messages of their own."""
    settings, answer = CONTEXTS[context]
    conns: list[Conn] = []

    async def handler(conn: Conn) -> None:
        conns.append(conn)
        await conn.wait_gone()

    async with serving(FunctionFactory(handler), config=Config(compression=settings)) as served:
        wires = [Zlib(await served.open(headers={EXTENSIONS: OFFER}), answer, "server") for _ in range(5)]
        news = "".join(random.Random(9).choices("abcdefgh", k=1_000))  # unlike what the contexts hold
        frame = frame_text(news)
        for number in range(3):
            for conn in conns:
                await conn.write(f"{number} {PRICE} {conn.id}")
                await conn.write_framed(frame)
        payloads = set()
        for conn, wire in zip(conns, wires, strict=True):
            for number in range(3):
                assert await wire.receive() == (TEXT, f"{number} {PRICE} {conn.id}".encode(), True)
                sent = await wire.peer.frame()
                payloads.add(sent.payload)
                assert (sent.rsv, wire.inflate(sent.payload)) == (4, news.encode())
        assert len(payloads) == 1
        for wire in wires:
            await wire.peer.close_handshake()


# --- what a peer may do wrong, or well ------------------------------------------------------------------


def bomb(size: int) -> bytes:
    """Compress so many zero bytes."""
    compressor = zlib.compressobj(9, wbits=-15)
    pieces = [compressor.compress(bytes(MIB)) for _ in range(size // MIB)]
    return b"".join(pieces) + compressor.flush(zlib.Z_SYNC_FLUSH).removesuffix(TAIL)


BOMB = bomb(64 * MIB)
PAYLOAD = Zlib(Peer(testing.memory_stream_pair()[0]), "", "server").compress(PRICE.encode())
FAULTS = {
    "C01 RSV1 on a continuation": ([(TEXT, b"\x00", 4, False), (0, b"\x00", 4, True)], 1002),
    "C01 RSV1 on a continuation of plain text": (
        [(TEXT, b"a", 0, False), (0, b"\x00", 4, True)],
        1002,
    ),
    "C02 RSV1 on a ping": ([(PING, b"", 4, True)], 1002),
    "C02 RSV1 on a pong": ([(PONG, b"", 4, True)], 1002),
    "C02 RSV1 on a Close": ([(CLOSE, b"\x03\xe8", 4, True)], 1002),
    "C03 no DEFLATE data": ([(BINARY, b"\xff" * 10, 4, True)], 1007),
    "C03 truncated": ([(BINARY, b"\xf2\x48\xcd", 4, True)], 1007),
    "C03 empty payload": ([(BINARY, b"\xf2\x48\xcd", 4, False), (0, b"", 0, True)], 1007),
    "C03 not UTF-8": ([(TEXT, b"\x00\x01\x00\xfe\xff\xff\x00", 4, True)], 1007),
    "C04 bomb": ([(BINARY, BOMB, 4, True)], 1009),
    "C04 bomb in fragments": (
        [(0 if at else BINARY, BOMB[at : at + 50], 0 if at else 4, False) for at in range(0, 5_000, 50)],
        1009,
    ),
}


@pytest.mark.attack("C01", "C02", "C03", "C04")
@ROLES
@pytest.mark.parametrize(("frames", "code"), FAULTS.values(), ids=FAULTS)
@contexts
async def test_fault_of_the_peer_is_answered_with_its_code(
    role: str, context: str, frames: list[tuple[int, bytes, int, bool]], code: int
) -> None:
    """The peer sees the close code that RFC 6455 has for its fault; messages before it are received."""
    async with compressing(role, context) as (conn, wire):
        await wire.send(b"before")
        with anyio.move_on_after(5):
            await wire.peer.send(
                b"".join(wire.peer.build(op, data, rsv=rsv, fin=fin) for op, data, rsv, fin in frames)
            )
        assert await conn.receive() == "before"
        with pytest.raises(ConnectionBroken):
            await conn.receive()
        assert (await wire.peer.frame()).payload[:2] == code.to_bytes(2, "big")
        assert conn.close_code == code


@pytest.mark.attack("C04")
@pytest.mark.parametrize("form", ["whole", "fragments", "many small ones"])
async def test_bombs_take_bounded_memory(form: str) -> None:
    """A connection that is sent 64 MiB of zeros in 64 KiB takes no more than twice the limit and 256 KiB."""
    limit = 256 * KIB
    frames = {
        "whole": [(BINARY, BOMB, True)],
        "fragments": [(0 if at else BINARY, BOMB[at : at + 500], False) for at in range(0, len(BOMB), 500)],
        "many small ones": [(BINARY, bomb(MIB), True)] * 20,
    }[form]
    async with compressing("server", "no contexts", max_message_size=limit) as (conn, wire):
        attack = b"".join(wire.peer.build(op, data, rsv=4 if op else 0, fin=fin) for op, data, fin in frames)
        gc.collect()
        tracemalloc.start()
        try:
            for at in range(
                0, len(attack), 4 * KIB
            ):  # no more than is read: the memory of the pipe is not it
                await wire.peer.send(attack[at : at + 4 * KIB])
                await settle()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak <= 2 * limit + 256 * KIB
        assert (await wire.peer.frame()).payload[:2] == (1009).to_bytes(2, "big")
        assert conn.close_code == 1009


@ROLES
@contexts
@pytest.mark.attack("C06", "C07")
@pytest.mark.parametrize(
    "payloads",
    [
        ["f2 48 cd c9 c9 07 00", "f2 48 cd c9 c9 07 00"],
        ["00 05 00 fa ff 48 65 6c 6c 6f 00"],
        ["f3 48 cd c9 c9 07 00 00", "f3 48 cd c9 c9 07 00 00"],
        ["f2 48 05 00 00 00 ff ff ca c9 c9 07 00"],
    ],
    ids=["7.2.3.1", "7.2.3.3", "7.2.3.4 BFINAL", "7.2.3.5"],
)
async def test_examples_of_the_rfc_are_received(role: str, context: str, payloads: list[str]) -> None:
    """The examples of RFC 7692 §7.2.3 arrive, whole and in single bytes with empty fragments between."""
    async with compressing(role, context) as (conn, wire):
        for payload in map(bytes.fromhex, payloads):
            await wire.peer.send_frame(TEXT, payload, rsv=4)
            assert await conn.receive() == "Hello"
            await wire.peer.send_frame(TEXT, b"", rsv=4, fin=False)
            for byte in payload:
                await wire.peer.send_frame(0, bytes([byte]), fin=False)
            await wire.peer.send_frame(0)
            assert await conn.receive() == "Hello"
        await conn.write(PRICE)
        assert await wire.receive() == (TEXT, PRICE.encode(), True)


@pytest.mark.attack("C09")
async def test_server_keeps_to_a_window_of_256_bytes() -> None:
    """A client that can have a window of 256 bytes gets one, though zlib has none."""
    async with serving(Echo) as served:
        peer = served.connect()
        head = await peer.open(headers={EXTENSIONS: "permessage-deflate; server_max_window_bits=8"})
        assert "server_max_window_bits=8" in (head.get("sec-websocket-extensions") or "")
        inflater = zlib.decompressobj(-9)  # which no compressor that might have answered goes below
        for text in (PRICE * 5, "a" * 5_000, PRICE * 5):
            await peer.send_frame(TEXT, text.encode())
            sent = await peer.frame()
            data = inflater.decompress(sent.payload + TAIL) if sent.rsv else sent.payload
            assert data == text.encode()
        await peer.close_handshake()


@virtual
@pytest.mark.attack("C09")
async def test_client_takes_a_window_of_256_bytes() -> None:
    """A server that answers with a window of 256 bytes for either end is talked to."""
    answer = "permessage-deflate; server_max_window_bits=8; client_max_window_bits=8"
    async with open_end("client", headers={EXTENSIONS: answer}) as (conn, peer):
        wire = Zlib(peer, answer, "client")
        for text in (PRICE, "a" * 300, PRICE):
            await conn.write(text)
            assert (await wire.receive())[1] == text.encode()
            await wire.peer.send_frame(TEXT, b"\x00\x05\x00\xfa\xffHello\x00", rsv=4)
            assert await conn.receive() == "Hello"


@ROLES
@contexts
@pytest.mark.attack("C11")
async def test_control_frames_between_compressed_fragments(role: str, context: str) -> None:
    """Pings between fragments are answered at once, and disturb no message, compressed or not."""
    async with compressing(role, context) as (conn, wire):
        for number in range(4):
            parts = [wire.compress(PRICE.encode(), fin=False), wire.compress(PRICE.encode(), fin=False)]
            last = wire.compress(b"end")
            for index, part in enumerate(parts):
                await wire.peer.send_frame(0 if index else TEXT, part, rsv=0 if index else 4, fin=False)
                await wire.peer.send_frame(PING, b"%d" % index)
                await wire.peer.send_frame(PONG, b"unasked")
                await wire.peer.expect(PONG, b"%d" % index)
            await wire.peer.send_frame(0, last)
            assert await conn.receive() == PRICE * 2 + "end"
            await wire.peer.send_frame(TEXT, b"plain %d" % number)
            assert await conn.receive() == f"plain {number}"


# --- nothing is lost, nothing is out of step -------------------------------------------------------------


@swept
@ROLES
@pytest.mark.attack("C12")
async def test_cancelled_writes_leave_the_contexts_in_step(role: str, how: str) -> None:
    """However a writer is cancelled, the peer inflates what came through, and what is written after it."""
    async for cut in every_cut(how, at_least=3):
        async with compressing(role, capacity=30, outbox_size=30) as (conn, wire):
            written: list[bytes] = []
            heard: list[bytes] = []
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_hear_all, wire, heard, b"last" * 20)
                await cut(_write_all(conn, written))
                await conn.write("last" * 20)
            assert heard == [*written, b"last" * 20]


async def _write_all(conn: Conn, written: list[bytes]) -> None:
    """Write messages that refer to each other, and wait for room between them."""
    for number in range(20):
        await conn.write(f"{number} {PRICE}")
        written.append(f"{number} {PRICE}".encode())


async def _hear_all(wire: Zlib, heard: list[bytes], last: bytes) -> None:
    """Receive messages until the last one."""
    while heard[-1:] != [last]:
        heard.append((await wire.receive())[1])


@ROLES
@pytest.mark.attack("C12")
@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
async def test_error_between_compressing_and_sending_cuts_the_connection(
    role: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows what of it the peer has seen: nothing more is said, and the error is told as the cause."""
    async with compressing(role) as (conn, wire):
        await conn.write(PRICE)
        assert await wire.receive() == (TEXT, PRICE.encode(), True)
        with monkeypatch.context() as patch, pytest.raises(error):

            def refuse(data: bytes) -> None:
                raise error

            patch.setattr(conn._transport, "write", refuse)
            await conn.write(PRICE + "lost")
        with pytest.raises(ConnectionBroken) as caught:
            await conn.write(PRICE)
        assert caught.value.code == 1006
        assert isinstance(caught.value.__cause__, error if issubclass(error, Exception) else type(None))
        with pytest.raises(anyio.EndOfStream):
            await wire.receive()


@ROLES
@pytest.mark.attack("C12", "A08")
async def test_mistake_of_the_caller_leaves_contexts_and_connection_as_they_were(role: str) -> None:
    """What cannot be sent is found out before it is compressed; what comes next refers to what was sent."""
    async with compressing(role) as (conn, wire):
        await conn.write(PRICE)
        assert await wire.receive() == (TEXT, PRICE.encode(), True)
        text: Any = "x"
        mistakes: list[tuple[type[Exception], Awaitable[None]]] = [
            (UnicodeEncodeError, conn.write(PRICE + "\ud800")),
            (TypeError, conn.write_bin(text)),
            (ValueError, conn.write_frame(0x3, b"x", compress=True)),
            (LocalProtocolError, conn.write_frame(0x0, b"x", compress=True)),
        ]
        for error, mistake in mistakes:
            with pytest.raises(error):
                await mistake
        await conn.write(PRICE)
        assert await wire.receive() == (TEXT, PRICE.encode(), True)


@ROLES
@pytest.mark.attack("C12", "T07")
async def test_many_writers_share_a_context(role: str) -> None:
    """Messages of many tasks are compressed in the order in which they go out, so all are understood."""
    async with compressing(role, capacity=100, outbox_size=100) as (conn, wire):
        async with anyio.create_task_group() as tasks:
            for number in range(10):
                tasks.start_soon(partial(_write_some, conn, number))
            heard = [(await wire.receive())[1] for _ in range(50)]
        assert sorted(heard) == sorted(f"{a} {b} {PRICE}".encode() for a in range(10) for b in range(5))


async def _write_some(conn: Conn, number: int) -> None:
    for turn in range(5):
        await conn.write(f"{number} {turn} {PRICE}")


# --- memory ---------------------------------------------------------------------------------------------


@pytest.mark.attack("C10")
@pytest.mark.parametrize("message", [False, True], ids=["idle", "after a message each way"])
async def test_server_holds_contexts_for_few_of_its_connections(message: bool) -> None:
    """Connections that agreed on compression hold a few bytes for it, and 4 of 40 a context of 38 KiB."""
    settings = Compression(contexts=4, level=5)  # settings of its own: a process shares what equal ones hold
    async with serving(Echo, config=Config(compression=settings)) as served:
        gc.collect()
        tracemalloc.start()
        try:
            peers = [await served.open(headers={EXTENSIONS: OFFER}) for _ in range(40)]
            for peer in peers if message else ():
                await peer.send_frame(TEXT, PAYLOAD, rsv=4)
                assert (await peer.frame()).rsv == 4
            await settle()
            gc.collect()
            snapshot = tracemalloc.take_snapshot()
        finally:
            tracemalloc.stop()
        for peer in peers:
            await peer.stream.aclose()
    by_deflate = snapshot.filter_traces([tracemalloc.Filter(True, deflate.__file__)])
    held = sum(trace.size for trace in by_deflate.traces)
    contexts = 4 * 38 * KIB if message else 0
    assert contexts <= held <= contexts * 1.1 + 40 * 500
