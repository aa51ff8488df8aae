"""The evil tools of the testing kit do what they say: faults, a bad network, a script, a strict judge."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

import anyio
import pytest
from anyio.abc import ByteStream, SocketAttribute

from anyio_ws import Config, Conn, Server, connect
from anyio_ws.testing import (
    OPENING_REQUEST,
    Answer,
    Do,
    Ending,
    FaultyStream,
    MemoryListener,
    Pause,
    ScriptedPeer,
    Step,
    Until,
    Weather,
    WireOracle,
    accept_handshake,
    build_frame,
    chaos_proxy,
    memory_stream_pair,
    read_frame,
    reset,
    settle,
)

from .memory import Stopwatch
from .support import ACCEPT, listening, no_hang, nothing_left, virtual

KEY = b"mask"
HEAD_END = b"\r\n\r\n"


async def echo(conn: Conn) -> None:
    """Echo everything."""
    async for message in conn:
        await conn.send(message)


# --- FaultyStream -----------------------------------------------------------------------------------------


async def test_faulty_stream_is_transparent_by_default() -> None:
    """Nothing goes wrong unless somebody asked for it, and everything is counted."""
    ours, theirs = memory_stream_pair()
    stream = FaultyStream(ours)
    await stream.send(b"one")
    await theirs.send(b"two")
    assert await theirs.receive() == b"one"
    assert await stream.receive() == b"two"
    await stream.send_eof()
    await stream.aclose()
    assert stream.calls == {"send": 1, "piece": 1, "receive": 1, "send_eof": 1, "aclose": 1}
    assert (stream.sent, stream.received) == ([b"one"], 3)
    assert stream.extra(SocketAttribute.remote_address, "none") == "none"
    with pytest.raises(anyio.BrokenResourceError):
        await theirs.send(b"closed")


async def test_faulty_stream_makes_reads_and_writes_short() -> None:
    """A read returns at most so much, and a write is cut into pieces that others can see arrive."""
    ours, theirs = memory_stream_pair(capacity=2)
    stream = FaultyStream(ours, most=1, most_sent=2)
    await theirs.send(b"ab")
    assert [await stream.receive(), await stream.receive()] == [b"a", b"b"]
    pieces: list[bytes] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stream.send, b"12345")
        while sum(map(len, pieces)) < 5:
            pieces.append(await theirs.receive())
    assert pieces == [b"12", b"34", b"5"]
    assert (stream.calls["send"], stream.calls["piece"], stream.sent) == (1, 3, [b"12345"])


async def test_faulty_stream_sends_an_empty_item_without_a_piece() -> None:
    """There is nothing to cut in nothing."""
    stream = FaultyStream(memory_stream_pair()[0], most_sent=3)
    await stream.send(b"")
    assert stream.calls == {"send": 1}


@pytest.mark.parametrize("name", ["receive", "send", "send_eof", "aclose"])
async def test_faulty_stream_fails_at_the_nth_call(name: str) -> None:
    """The nth call of an operation raises, those before and after it do not."""
    ours, theirs = memory_stream_pair()
    await theirs.send(b"1")
    stream = FaultyStream(ours, most=1)
    stream.faults[name, 2] = OSError("the second one")
    arguments = (b"x",) if name == "send" else ()
    operation: Callable[..., Any] = getattr(stream, name)
    await operation(*arguments)
    with pytest.raises(OSError, match="the second one"):
        await operation(*arguments)
    assert stream.calls[name] == 2
    if name == "aclose":
        with pytest.raises(anyio.EndOfStream):  # it is closed all the same
            await theirs.receive()


async def test_faulty_stream_breaks_in_the_middle_of_a_send() -> None:
    """An error at a piece leaves the pieces before it sent: a torn frame."""
    ours, theirs = memory_stream_pair()
    stream = FaultyStream(ours, most_sent=2)
    stream.faults["piece", 3] = anyio.BrokenResourceError()
    with pytest.raises(anyio.BrokenResourceError):
        await stream.send(b"abcdefgh")
    assert await theirs.receive() == b"abcd"


async def test_faulty_stream_cancels_in_the_middle_of_a_send() -> None:
    """A fault may be a call, such as the cancellation of a scope; the operation goes on into it."""
    ours, theirs = memory_stream_pair()
    stream = FaultyStream(ours, most_sent=1)
    with anyio.CancelScope() as scope:
        stream.faults["piece", 3] = scope.cancel
        await stream.send(b"abcdef")
    assert scope.cancelled_caught
    assert await theirs.receive() == b"ab"


@virtual
async def test_faulty_stream_stalls_and_delays() -> None:
    """A stuck operation waits for ever; a delay is spent before each operation."""
    clock = Stopwatch()
    ours, theirs = memory_stream_pair()
    stream = FaultyStream(ours, delay=3)
    await stream.send_eof()
    assert clock() == 3
    await theirs.send(b"unread")
    stream.stuck.add("receive")
    with anyio.move_on_after(1000) as scope:
        await stream.receive()
    assert scope.cancelled_caught
    assert stream.received == 0
    stream.stuck.clear()
    assert await stream.receive() == b"unread"


# --- reset --------------------------------------------------------------------------------------------------


async def test_reset_of_a_memory_stream_loses_what_was_not_read() -> None:
    """As with TCP: the other end gets an error, and the unread bytes are gone; this end is closed."""
    ours, theirs = memory_stream_pair()
    await ours.send(b"never read")
    await reset(ours)
    for call in (theirs.receive(), theirs.send(b"x")):
        with pytest.raises(anyio.BrokenResourceError):
            await call
    with pytest.raises(anyio.ClosedResourceError):
        await ours.receive()


async def test_reset_of_a_memory_stream_wakes_its_other_end() -> None:
    """Who waits for bytes of a stream that is reset is told."""
    ours, theirs = memory_stream_pair()
    async with no_hang(), anyio.create_task_group() as tasks:
        with pytest.raises(anyio.BrokenResourceError):
            tasks.start_soon(reset, ours)
            await theirs.receive()


async def test_reset_of_a_socket_is_a_reset() -> None:
    """The peer of a TCP connection gets ECONNRESET, not the end of the stream."""
    async with no_hang(), anyio.create_task_group() as tasks:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        tasks.start_soon(listener.serve, reset)
        stream = await anyio.connect_tcp(*listener.extra(SocketAttribute.local_address)[:2])
        async with stream:
            with pytest.raises(anyio.BrokenResourceError) as caught:
                await stream.receive()
            assert isinstance(caught.value.__cause__, ConnectionResetError)
        tasks.cancel_scope.cancel()
    await listener.aclose()


async def test_reset_of_another_stream_closes_it() -> None:
    """Where nothing can be reset the stream is closed."""
    ours, theirs = memory_stream_pair()
    await reset(FaultyStream(ours))
    with pytest.raises(anyio.EndOfStream):
        await theirs.receive()


# --- WireOracle ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("step", [1, 3, 10_000])
def test_oracle_reads_a_good_conversation_however_it_is_cut(masked: bool, step: int) -> None:
    """Frames, fragments with control frames between them, every form of length, a Close."""
    key = KEY if masked else None
    wire = b"".join(
        [
            build_frame(0x1, "grüße".encode(), key=key),
            build_frame(0x2, b"ab", key=key, fin=False),
            build_frame(0x9, b"ping", key=key),
            build_frame(0x0, b"c", key=key),
            build_frame(0x2, bytes(126), key=key),
            build_frame(0x2, bytes(65_536), key=key),
            build_frame(0x8, b"\x03\xe8bye", key=key),
        ]
    )
    oracle = WireOracle(masked=masked)
    frames = []
    for start in range(0, len(wire), step):
        frames += oracle.feed(wire[start : start + step])
    oracle.check()
    assert oracle.frames == frames
    assert [(frame.opcode, frame.length_form) for frame in frames][4:6] == [(0x2, 16), (0x2, 64)]
    assert oracle.messages == [
        (0x1, "grüße".encode()),
        (0x9, b"ping"),
        (0x2, b"abc"),
        (0x2, bytes(126)),
        (0x2, bytes(65_536)),
        (0x8, b"\x03\xe8bye"),
    ]


@pytest.mark.parametrize(
    ("wire", "complaint"),
    [
        pytest.param(build_frame(0x3), "reserved", id="opcode"),
        pytest.param(build_frame(0xF), "reserved", id="control opcode"),
        pytest.param(build_frame(0x1, b"x", key=KEY), "masks", id="masked"),
        pytest.param(build_frame(0x1, rsv=1), "reserved bit", id="RSV3"),
        pytest.param(build_frame(0x1, rsv=4), "reserved bit", id="RSV1"),
        pytest.param(build_frame(0x9, fin=False), "fragmented", id="fragmented control"),
        pytest.param(build_frame(0x9, bytes(126)), "longer than 125", id="long control"),
        pytest.param(build_frame(0x2, bytes(125), length_form=16), "shortest", id="length in 16 bits"),
        pytest.param(build_frame(0x2, bytes(65_535), length_form=64), "shortest", id="length in 64 bits"),
        pytest.param(build_frame(0x0), "continuation without", id="continuation"),
        pytest.param(build_frame(0x1, fin=False) + build_frame(0x2), "inside a fragmented", id="interleaved"),
        pytest.param(build_frame(0x1, b"\xff"), "UTF-8", id="text"),
        pytest.param(build_frame(0x1, b"\xc3", fin=False) + build_frame(0x0), "UTF-8", id="cut text"),
        pytest.param(build_frame(0x8, b"\x03"), "code", id="Close of 1 byte"),
        pytest.param(build_frame(0x8, (1005).to_bytes(2, "big")), "code", id="Close with 1005"),
        pytest.param(build_frame(0x8, (5000).to_bytes(2, "big")), "code", id="Close with 5000"),
        pytest.param(build_frame(0x8, b"\x03\xe8\xff"), "reason", id="reason"),
        pytest.param(build_frame(0x8) + build_frame(0x9), "after the Close", id="after the Close"),
    ],
)
def test_oracle_finds_the_first_violation(wire: bytes, complaint: str) -> None:
    """Each rule of RFC 6455 on frames is judged; the violation is told with its frame, and stays."""
    oracle = WireOracle(masked=False)
    oracle.feed(build_frame(0xA) + wire)
    assert oracle.violation is not None
    assert complaint in oracle.violation
    first = oracle.violation
    oracle.feed(build_frame(0x7))
    assert oracle.violation == first
    with pytest.raises(AssertionError, match="frames so far"):
        oracle.check()


def test_oracle_finds_an_unmasked_frame_of_a_client() -> None:
    """A client masks everything."""
    oracle = WireOracle(masked=True)
    oracle.feed(build_frame(0x1, b"x"))
    assert "masks" in str(oracle.violation)


@pytest.mark.parametrize("size", range(1, 10))
def test_oracle_finds_a_torn_frame(size: int) -> None:
    """Bytes that end inside a frame are no violation yet, and do not pass :meth:`check`."""
    frame = build_frame(0x1, b"four", key=KEY)
    oracle = WireOracle(masked=True)
    oracle.feed(frame[:size])
    assert (oracle.violation, oracle.torn) == (None, frame[:size])
    with pytest.raises(AssertionError, match="inside a frame"):
        oracle.check()


def test_oracle_keeps_the_head_apart() -> None:
    """The opening handshake is not judged, and may come in pieces, with frames behind it."""
    oracle = WireOracle(masked=False, head=True)
    assert oracle.feed(b"HTTP/1.1 101 Switching Protocols\r\n") == []
    with pytest.raises(AssertionError, match="frame or head"):
        oracle.check()
    assert [frame.payload for frame in oracle.feed(b"A: b\r\n\r\n" + build_frame(0x1, b"first"))] == [
        b"first"
    ]
    oracle.check()
    assert oracle.head == b"HTTP/1.1 101 Switching Protocols\r\nA: b\r\n\r\n"


@pytest.mark.parametrize("takeover", [True, False])
def test_oracle_inflates_where_it_was_agreed(takeover: bool) -> None:
    """RSV1 is the start of a compressed message (RFC 7692), with or without the context before it."""
    compressor = zlib.compressobj(wbits=-15)
    oracle = WireOracle(masked=False, deflate=True, takeover=takeover)
    for text in (b"hello hello hello", b"hello hello hello"):
        if not takeover:
            compressor = zlib.compressobj(wbits=-15)
        data = (compressor.compress(text) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]
        oracle.feed(build_frame(0x1, data[:3], rsv=4, fin=False) + build_frame(0x0, data[3:]))
    final = zlib.compressobj(wbits=-15)
    blocks = final.compress(b"BFINAL") + final.flush()
    oracle.feed(build_frame(0x2, blocks + b"\0", rsv=4) + build_frame(0x2, b"plain"))
    oracle.check()
    assert oracle.messages == [(0x1, b"hello hello hello")] * 2 + [(0x2, b"BFINAL"), (0x2, b"plain")]


@pytest.mark.parametrize(
    ("wire", "complaint"),
    [
        pytest.param(build_frame(0x1, b"\xff\xff", rsv=4), "inflated", id="garbage"),
        pytest.param(build_frame(0x9, rsv=4), "reserved bit", id="control"),
        pytest.param(
            build_frame(0x1, fin=False) + build_frame(0x0, rsv=4), "reserved bit", id="continuation"
        ),
    ],
)
def test_oracle_judges_compressed_messages(wire: bytes, complaint: str) -> None:
    """RSV1 stands on the first frame of a data message only, and what it announces can be inflated."""
    oracle = WireOracle(masked=False, deflate=True)
    oracle.feed(wire)
    assert complaint in str(oracle.violation)


def test_read_frame_gives_nothing_of_an_incomplete_frame() -> None:
    """A frame is there when its last byte is, and no byte earlier."""
    frame = build_frame(0x2, bytes(300), key=KEY)
    assert [size for size in range(len(frame) + 1) if read_frame(frame[:size])] == [len(frame)]


def test_build_frame_refuses_a_length_that_does_not_fit() -> None:
    """What bytes cannot express is an error."""
    with pytest.raises(ValueError, match="length_form"):
        build_frame(0x2, length=126, length_form=7)


# --- ScriptedPeer -------------------------------------------------------------------------------------------


@virtual
async def test_scripted_client_plays_its_script_and_records() -> None:
    """Bytes, pauses and waiting, in order, against a server; what came back is judged."""
    clock = Stopwatch()
    listener = MemoryListener()
    script: list[Step] = [
        OPENING_REQUEST,
        Until(HEAD_END),
        build_frame(0x1, b"one", key=KEY),
        Until(b"one"),
        Pause(7),
        build_frame(0x1, b"two", key=KEY),
        Until(b"two"),
        build_frame(0x8, b"\x03\xe8", key=KEY),
    ]
    async with anyio.create_task_group() as tasks:
        server = Server(_Echo)
        tasks.start_soon(lambda: server.listen(listeners=[listener]))
        peer = ScriptedPeer(listener.connect(), script)
        await peer.run()
        server.stop()
    assert clock() == 7
    oracle = peer.oracle(masked=False)
    oracle.check()
    assert ACCEPT.encode() in oracle.head
    assert oracle.messages == [(0x1, b"one"), (0x1, b"two"), (0x8, b"\x03\xe8")]
    assert peer.ending == "end"


class _Echo:
    def __init__(self, conn: Conn) -> None:
        self.conn = conn

    async def client_message(self, data: Any) -> None:
        await self.conn.send(data)


async def test_scripted_server_accepts_a_client() -> None:
    """The peer can be a server too: it answers the key that it got."""
    ours, theirs = memory_stream_pair()
    script: list[Step] = [
        Until(HEAD_END),
        Answer(accept_handshake),
        build_frame(0x1, b"hello"),
        Do.HALF_CLOSE,
    ]
    async with no_hang(), anyio.create_task_group() as tasks:
        peer = ScriptedPeer(theirs, script)
        tasks.start_soon(peer.run)
        async with connect("ws://localhost/", stream=ours) as client:
            assert await client.receive() == "hello"
            with pytest.raises(anyio.BrokenResourceError):
                await client.receive()
    peer.oracle(masked=True).check()


@pytest.mark.parametrize(
    ("step", "error"), [(Do.RESET, anyio.BrokenResourceError), (Do.CLOSE, anyio.EndOfStream)]
)
async def test_scripted_peer_leaves_without_waiting(step: Do, error: type[Exception]) -> None:
    """A reset or a close is the last step, whatever the other end does."""
    ours, theirs = memory_stream_pair()
    async with no_hang():
        peer = ScriptedPeer(ours, [b"last", step])
        await peer.run()
    with pytest.raises(error):
        while True:
            await theirs.receive()
    assert peer.ending == ""


async def test_scripted_peer_stops_reading_and_reads_again() -> None:
    """A peer that does not read takes nothing out of the stream, even when it was waiting for something."""
    ours, theirs = memory_stream_pair(capacity=4)
    async with no_hang(), anyio.create_task_group() as tasks:
        script: list[Step] = [Until(b"go"), Do.STOP_READING, b"stopped", Pause(0), Until(b"go"), Do.CLOSE]
        peer = ScriptedPeer(ours, script)
        tasks.start_soon(peer.run)
        await theirs.send(b"go")
        assert await theirs.receive() == b"stop"
        with anyio.CancelScope() as scope:
            tasks.start_soon(_cancel_when_settled, scope)
            await theirs.send(b"12345678")
        assert scope.cancelled_caught
        assert bytes(peer.received) == b"go"
        tasks.cancel_scope.cancel()


async def test_scripted_peer_reads_again_when_told() -> None:
    """``Do.READ`` takes up reading where it was stopped."""
    ours, theirs = memory_stream_pair()
    await theirs.send(b"late")
    async with no_hang(), anyio.create_task_group() as tasks:
        peer = ScriptedPeer(ours, [Do.STOP_READING, b"x", Do.READ, Until(b"late"), Do.CLOSE])
        tasks.start_soon(peer.run)
    assert bytes(peer.received) == b"late"


async def _cancel_when_settled(scope: anyio.CancelScope) -> None:
    await settle()
    scope.cancel()


@pytest.mark.parametrize("by", ["end", "error"])
async def test_scripted_peer_is_done_when_the_other_end_leaves(by: str) -> None:
    """A script that waits for what will never come is over, and the ending is told."""
    ours, theirs = memory_stream_pair()
    await theirs.send(b"no")
    async with no_hang(), anyio.create_task_group() as tasks:
        peer = ScriptedPeer(ours, [Until(b"yes"), b"never sent"])
        tasks.start_soon(peer.run)
        await settle()
        if by == "end":
            await theirs.aclose()
        else:
            theirs.reset()
    assert (bytes(peer.received), peer.ending) == (b"no", by)


async def test_scripted_peer_that_is_cancelled_closes_its_stream() -> None:
    """Nothing is left of a peer that is given up."""
    ours, theirs = memory_stream_pair()
    async with nothing_left(), no_hang(), anyio.create_task_group() as tasks:
        tasks.start_soon(ScriptedPeer(ours, [Pause(1000)]).run)
        await settle()
        tasks.cancel_scope.cancel()
    with pytest.raises(anyio.EndOfStream):
        await theirs.receive()


# --- ChaosProxy ---------------------------------------------------------------------------------------------


@pytest.fixture
async def upstream() -> Any:
    """Give a listener in memory, and the function that connects to it."""
    listener = MemoryListener()

    async def connect_to_it() -> ByteStream:
        return listener.connect()

    yield listener, connect_to_it
    await listener.aclose()


async def test_proxy_carries_both_ways_and_ends_in_order(upstream: Any) -> None:
    """In good weather nobody notices it, not even at the end."""
    listener, to_server = upstream
    async with nothing_left(), no_hang(), chaos_proxy(to_server) as proxy:
        client = proxy.connect()
        server = await listener.accept()
        await client.send(b"up")
        assert await server.receive() == b"up"
        await server.send(b"down")
        assert await client.receive() == b"down"
        await client.send_eof()
        with pytest.raises(anyio.EndOfStream):
            await server.receive()
        await server.send(b"still")
        assert await client.receive() == b"still"
        await server.aclose()
        with pytest.raises(anyio.EndOfStream):
            await client.receive()
        assert proxy.connections == 1


@virtual
async def test_proxy_takes_time(upstream: Any) -> None:
    """Latency delays everything alike, and bandwidth spreads it, in both directions for themselves."""
    listener, to_server = upstream
    weather = Weather(latency=2, bandwidth=10, most=10)
    async with chaos_proxy(to_server, up=weather, down=Weather(latency=5), seed=1) as proxy:
        client = proxy.connect()
        server = await listener.accept()
        clock = Stopwatch()
        await client.send(bytes(100))
        received, times = 0, []
        while received < 100:
            received += len(await server.receive())
            times.append(clock())
        assert times[-1] == 12  # 100 bytes at 10 per second, and 2 seconds
        assert times[0] > 2
        assert len(times) > 10
        await server.send(b"x")
        await client.receive()
        assert clock() == 17


@virtual
async def test_proxy_is_the_same_in_every_run_of_a_seed(upstream: Any) -> None:
    """Pieces and their times depend on the seed, on nothing else."""
    listener, to_server = upstream

    async def run(seed: int) -> list[tuple[float, int]]:
        weather = Weather(jitter=3, most=50)
        async with chaos_proxy(to_server, up=weather, seed=seed) as proxy:
            client = proxy.connect()
            server = await listener.accept()
            clock = Stopwatch()
            await client.send(bytes(1000))
            arrivals: list[tuple[float, int]] = []
            while sum(size for _, size in arrivals) < 1000:
                arrivals.append((clock(), len(await server.receive())))
            return arrivals

    first = await run(1)
    assert first == await run(1)
    assert first != await run(2)
    assert len(first) > 10


@virtual
async def test_proxy_keeps_the_order_whatever_the_jitter(upstream: Any) -> None:
    """TCP delivers in order, and so does the proxy."""
    listener, to_server = upstream
    async with chaos_proxy(to_server, up=Weather(jitter=10, most=3), seed=3) as proxy:
        client = proxy.connect()
        server = await listener.accept()
        data = bytes(range(256))
        await client.send(data)
        received = b""
        while len(received) < len(data):
            received += await server.receive()
        assert received == data


@virtual
@pytest.mark.parametrize("ends", [False, True])
async def test_proxy_that_is_held_up_delivers_together_what_is_overdue(ends: bool) -> None:
    """Pieces that could not go on their way in time wait for no turns of their own; none is lost."""
    ours, server = memory_stream_pair(capacity=10)
    stream = FaultyStream(ours)

    async def to_server() -> ByteStream:
        return stream

    async with chaos_proxy(to_server, up=Weather(most=3)) as proxy:
        client = proxy.connect()
        data = bytes(range(256))
        await client.send(data)
        if ends:
            await client.send_eof()
        await settle()
        before = stream.calls["send"]
        await anyio.sleep(1)
        received = b""
        while len(received) < len(data):
            received += await server.receive()
        assert received == data
        assert stream.calls["send"] <= before + 2
        if ends:
            with pytest.raises(anyio.EndOfStream):
                await server.receive()


async def test_proxy_draws_the_weather_of_each_connection(upstream: Any) -> None:
    """A forecast is asked once for each connection and direction, with a generator of its own."""
    listener, to_server = upstream
    draws: list[float] = []

    def draw(random: Random) -> Weather:
        draws.append(random.random())
        return Weather()

    async with chaos_proxy(to_server, up=draw, down=draw, seed=9) as proxy:
        for _ in range(2):
            proxy.connect()
            await listener.accept()
        await settle()
        assert len(set(draws)) == 4


@virtual
@pytest.mark.parametrize("after", [0, 5])
@pytest.mark.parametrize("ending", list(Ending), ids=lambda ending: ending.name)
async def test_proxy_comes_to_its_ending_after_exactly_so_many_bytes(
    ending: Ending, after: int, upstream: Any
) -> None:
    """Each ending does what it says, at its byte."""
    listener, to_server = upstream
    async with chaos_proxy(to_server, up=Weather(ending=ending, after=after)) as proxy:
        client = proxy.connect(capacity=100)
        server = await listener.accept()
        with anyio.move_on_after(10) as sending, contextlib.suppress(anyio.BrokenResourceError):
            for _ in range(30):
                await client.send(b"0123456789")
        got = b""
        with anyio.move_on_after(10) as silence:
            while True:
                try:
                    got += await server.receive()
                except (anyio.EndOfStream, anyio.BrokenResourceError) as exc:
                    how = type(exc)
                    break
        if ending is Ending.RESET:
            assert how is anyio.BrokenResourceError  # which may have destroyed what was carried
            return
        assert got == b"0123456789"[:after]
        if ending in (Ending.BLACK_HOLE, Ending.STALL):
            assert silence.cancelled_caught
            assert sending.cancelled_caught is (ending is Ending.STALL)
            await server.send(b"back")  # the other direction goes on
            assert await client.receive() == b"back"
        else:
            assert how is anyio.EndOfStream
        if ending is Ending.HALF_CLOSE:
            await server.send(b"back")
            assert await client.receive() == b"back"


@virtual
@pytest.mark.parametrize(
    "ending", [each for each in Ending if each is not Ending.HALF_CLOSE], ids=lambda ending: ending.name
)
async def test_proxy_strikes_all_connections_at_once(ending: Ending, upstream: Any) -> None:
    """A strike hits the connections that there are, in both directions, and no later one."""
    listener, to_server = upstream
    async with chaos_proxy(to_server) as proxy:
        client = proxy.connect(capacity=10)
        server = await listener.accept()
        await client.send(b"before")
        assert await server.receive() == b"before"
        await settle()
        proxy.strike(ending)
        for stream in (client, server):
            with anyio.move_on_after(10) as silence:
                if ending is Ending.TRUNCATE:
                    with pytest.raises(anyio.EndOfStream):
                        await stream.receive()
                elif ending is Ending.RESET:
                    with pytest.raises(anyio.BrokenResourceError):
                        await stream.receive()
                else:
                    await stream.receive()
            assert silence.cancelled_caught is (ending in (Ending.BLACK_HOLE, Ending.STALL))
        with anyio.move_on_after(10) as stalled:
            try:
                await client.send(bytes(1000))
            except anyio.BrokenResourceError:
                assert ending in (Ending.TRUNCATE, Ending.RESET)
        assert stalled.cancelled_caught is (ending is Ending.STALL)
        later = proxy.connect()
        other = await listener.accept()
        await later.send(b"fine")
        assert await other.receive() == b"fine"


async def test_proxy_cannot_strike_with_half_a_close(upstream: Any) -> None:
    """Half a close has a direction; a strike has none."""
    async with chaos_proxy(upstream[1]) as proxy:
        with pytest.raises(ValueError, match="HALF_CLOSE"):
            proxy.strike(Ending.HALF_CLOSE)


@pytest.mark.parametrize("who", ["client", "server"])
async def test_proxy_passes_a_reset_on(who: str, upstream: Any) -> None:
    """When one end resets its connection the other end's is reset."""
    listener, to_server = upstream
    async with no_hang(), chaos_proxy(to_server) as proxy:
        client = proxy.connect()
        server = await listener.accept()
        ends = {"client": client, "server": server}
        await settle()
        await reset(ends.pop(who))
        (other,) = ends.values()
        with pytest.raises(anyio.BrokenResourceError):
            await other.receive()


async def test_proxy_resets_clients_of_a_server_that_is_not_there() -> None:
    """When the server cannot be reached the client's connection is reset."""

    async def fail() -> ByteStream:
        raise ConnectionRefusedError

    async with no_hang(), chaos_proxy(fail) as proxy:
        with pytest.raises(anyio.BrokenResourceError):
            await proxy.connect().receive()


async def test_proxy_raises_what_its_block_raises(upstream: Any) -> None:
    """No exception group comes out of it, and nothing is left."""
    async with nothing_left():
        with pytest.raises(LookupError, match="mine"):
            async with chaos_proxy(upstream[1]) as proxy:
                proxy.connect()
                await settle()
                raise LookupError("mine")


async def test_proxy_listens_on_a_socket_between_a_real_client_and_server() -> None:
    """Everything comes through cut into pieces of one to three bytes, through sockets."""
    async with nothing_left(), listening(Server(_Echo, Config(port=0))) as addresses:
        weather = Weather(most=3)
        to_server = _connector(addresses[0])
        async with chaos_proxy(to_server, up=weather, down=weather) as proxy:
            host, port = await proxy.listen()
            async with connect(f"ws://{host}:{port}/") as client:
                for text in ("", "grüße", "x" * 1000):
                    await client.write(text)
                    assert await client.receive() == text
            assert client.close_code == 1000


async def test_proxy_resets_a_real_client() -> None:
    """On sockets a reset is a reset: the client's connection breaks."""
    server = Server(_Echo, Config(port=0))
    async with listening(server) as addresses, chaos_proxy(_connector(addresses[0])) as proxy:
        host, port = await proxy.listen()
        async with connect(f"ws://{host}:{port}/") as client:
            proxy.strike(Ending.RESET)
            with pytest.raises(anyio.BrokenResourceError):
                await client.receive()
        assert client.close_code == 1006


def _connector(address: tuple[str, int]) -> Callable[[], Any]:
    return lambda: anyio.connect_tcp(*address)
