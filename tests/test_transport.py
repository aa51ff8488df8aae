"""A transport moves bytes: what it sends in which pieces, when it reads, and every way in which it ends."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import anyio
import pytest
from anyio.abc import SocketAttribute, TaskGroup

from anyio_ws.testing import FaultyStream, MemoryStream, memory_stream_pair
from anyio_ws.transport import Farewell, StreamTransport, address_of, receive_head

from .memory import Stopwatch, on_asyncio, settle
from .support import virtual

PIECE = 65_536
ENDINGS = [
    pytest.param(half_close, await_eof, id=f"half_close={half_close}, await_eof={await_eof}")
    for half_close in (False, True)
    for await_eof in (False, True)
]
ERRORS = [
    pytest.param(error, id=type(error).__name__)
    for error in (
        OSError("a foreign error"),
        ValueError("a foreign error"),
        anyio.BrokenResourceError(),
        anyio.ClosedResourceError(),
        anyio.EndOfStream(),
        TimeoutError(),
        StopAsyncIteration(),
        LookupError(),
    )
]


class Notes:
    """A receiver that notes what it is called with.

    :ivar events: the calls in order; the bytes of adjacent reads are one
    :ivar fault: what ``data_received`` raises
    """

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.fault: Exception | None = None
        self.lost = anyio.Event()

    def data_received(self, data: bytes | memoryview) -> None:
        if self.fault is not None:
            raise self.fault
        if self.events and isinstance(self.events[-1], bytes):
            self.events[-1] += data
        else:
            self.events.append(bytes(data))

    def eof_received(self) -> None:
        self.events.append("eof")

    def room_made(self) -> None:
        self.events.append("room")

    def connection_lost(self, error: Exception | None) -> None:
        self.events.append(("lost", error))
        self.lost.set()


class Ends(NamedTuple):
    """A transport, what it calls, its stream, and the peer's end of that."""

    transport: StreamTransport
    notes: Notes
    stream: FaultyStream
    peer: MemoryStream
    tasks: TaskGroup

    async def read(self) -> bytes:
        """Read everything that the peer can read up to the end of the stream."""
        data = b""
        with contextlib.suppress(anyio.EndOfStream):
            while True:
                data += await self.peer.receive()
        return data


@contextlib.asynccontextmanager
async def opened(
    *, capacity: float = math.inf, outbox_size: int = 100, write_timeout: float = 20, reading: bool = True
) -> AsyncIterator[Ends]:
    """Start a transport; at the end it is aborted, and must have ended exactly once."""
    ours, theirs = memory_stream_pair(capacity)
    stream, notes = FaultyStream(ours), Notes()
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            transport = StreamTransport(
                stream, tasks.start_soon, outbox_size=outbox_size, write_timeout=write_timeout
            )
            transport.receiver = notes
            transport.start()
            if reading:
                transport.resume()
            try:
                yield Ends(transport, notes, stream, theirs, tasks)
            finally:
                transport.abort()
    assert transport.ended
    assert stream.calls["aclose"] == 1
    if transport.receiver is notes:
        assert [event for event in notes.events if event[:1] == ("lost",)] == notes.events[-1:]


# --- writing --------------------------------------------------------------------------------------------


async def test_write_joins_what_waits_into_one_send() -> None:
    """Everything written in one step goes out in one send: one packet for all replies to one read."""
    async with opened() as ends:
        for piece in (b"one ", b"two ", b"three"):
            ends.transport.write(piece)
        assert await ends.peer.receive() == b"one two three"
        assert ends.stream.sent == [b"one two three"]


async def test_write_takes_everything_at_once() -> None:
    """Bytes are taken in the call itself, without a step of any other task."""
    async with opened() as ends:
        ends.transport.write(b"12345")
        assert ends.transport.buffered == 5
        await settle()
        assert ends.transport.buffered == 0


@pytest.mark.parametrize("size", [PIECE - 1, PIECE, PIECE + 1, 5 * PIECE // 2])
async def test_write_sends_in_pieces_of_64_kib(size: int) -> None:
    """No send is longer than a piece, so that the write timeout is about a bounded amount."""
    data = bytes(range(256)) * (size // 256 + 1)
    async with opened() as ends:
        ends.transport.write(data[:size])
        ends.transport.finish()
        assert await ends.read() == data[:size]
        assert [len(piece) for piece in ends.stream.sent[:-1]] == [PIECE] * (len(ends.stream.sent) - 1)
        assert 0 < len(ends.stream.sent[-1]) <= PIECE


async def test_write_joins_at_most_a_piece_and_one_write() -> None:
    """Joining stops at a piece: a long queue is not copied into one long string."""
    async with opened() as ends:
        for _ in range(100):
            ends.transport.write(b"." * 1000)
        await settle()
        assert [len(piece) for piece in ends.stream.sent] == [PIECE, 66_000 - PIECE, 34_000]


async def test_write_of_nothing_sends_nothing() -> None:
    """An empty write does not become an empty send, which ends a TLS stream on some systems."""
    async with opened() as ends:
        ends.transport.write(b"")
        await settle()
        assert ends.stream.sent == []


@pytest.mark.attack("O03")
@pytest.mark.parametrize("capacity", [1, 3, 7])
async def test_write_survives_a_peer_that_takes_few_bytes_at_a_time(capacity: int) -> None:
    """Short writes are no concern: everything arrives, in order, once."""
    data = bytes(range(256))
    async with opened(capacity=capacity) as ends:
        ends.transport.write(data)
        ends.transport.write(data)
        ends.transport.finish()
        assert await ends.read() == data + data


@pytest.mark.attack("R01")
async def test_full_is_true_above_the_mark_and_room_made_is_called_below_it() -> None:
    """Exactly ``outbox_size`` waiting bytes are not full, one more is; the way back is told once."""
    async with opened(capacity=1, outbox_size=100) as ends:
        ends.transport.write(b"." * 100)
        assert not ends.transport.full
        ends.transport.write(b".")
        assert ends.transport.full
        await settle()
        assert ends.transport.buffered == 101
        for _ in range(101):
            await ends.peer.receive(1)
        await settle()
        assert not ends.transport.full
        assert ends.notes.events == ["room"]


async def test_room_made_is_not_called_for_an_outbox_that_was_never_full() -> None:
    """Without writers that could wait there is nothing to tell."""
    async with opened() as ends:
        ends.transport.write(b"." * 100)
        await settle()
        assert ends.notes.events == []


async def test_room_made_is_called_as_soon_as_a_piece_has_gone() -> None:
    """A long write makes room piece by piece, not at its end."""
    async with opened(capacity=PIECE, outbox_size=PIECE // 2) as ends:
        ends.transport.write(b"." * (PIECE + 100))
        await settle()
        assert ends.transport.buffered == 100
        assert ends.notes.events == ["room"]


@virtual
@pytest.mark.attack("R01")
async def test_write_timeout_ends_a_peer_that_reads_nothing_exactly_in_time() -> None:
    """A piece that is not taken within ``write_timeout`` seconds ends the transport, and not before."""
    async with opened(capacity=10, write_timeout=7) as ends:
        await anyio.sleep(30)
        clock = Stopwatch()
        ends.transport.write(b"." * 50)
        await ends.notes.lost.wait()
        assert clock() == 7
        [(_, error)] = ends.notes.events
        assert isinstance(error, TimeoutError)


@virtual
async def test_write_timeout_begins_anew_with_each_piece() -> None:
    """A peer that is slow but reads is not cut off: the timeout is for one piece, not for the whole."""
    async with opened(capacity=PIECE, outbox_size=4 * PIECE, write_timeout=7) as ends:
        ends.transport.write(b"." * 4 * PIECE)
        ends.transport.finish()
        size = 0
        for _ in range(4):
            await anyio.sleep(6)
            size += len(await ends.peer.receive())
        assert size == 4 * PIECE
        await ends.notes.lost.wait()
        assert ends.notes.events == [("lost", None)]


# --- reading --------------------------------------------------------------------------------------------


async def test_reading_begins_with_resume() -> None:
    """Nothing is read before there is somebody who wants it."""
    async with opened(reading=False) as ends:
        await ends.peer.send(b"early")
        await settle()
        assert (ends.notes.events, ends.stream.calls["receive"]) == ([], 0)
        ends.transport.resume()
        await settle()
        assert ends.notes.events == [b"early"]


@pytest.mark.attack("R03")
async def test_pause_stops_reading_and_resume_goes_on_without_a_loss() -> None:
    """While paused the peer's bytes stay where they are; then they arrive, in order."""
    async with opened() as ends:
        for _ in range(3):
            ends.transport.pause()
            assert not ends.transport.reading
            await ends.peer.send(b"1")  # a read that has begun already still delivers
            await settle()
            before = list(ends.notes.events)
            await ends.peer.send(b"2")
            await settle()
            assert ends.notes.events == before
            ends.transport.resume()
            ends.transport.resume()
            assert ends.transport.reading
            await settle()
        assert ends.notes.events == [b"121212"]


async def test_receiver_may_be_exchanged_at_any_time() -> None:
    """Whoever is the receiver when bytes arrive gets them; so one connection follows its handshake."""
    async with opened() as ends:
        await ends.peer.send(b"first")
        await settle()
        other = Notes()
        ends.transport.receiver = other
        await ends.peer.send(b"second")
        await settle()
        ends.transport.abort()
        await settle()
        assert ends.notes.events == [b"first"]
        assert other.events == [b"second", ("lost", None)]


async def test_transport_without_a_receiver_discards_and_ends() -> None:
    """Bytes, room and the end are nobody's concern when there is no receiver."""
    async with opened(capacity=200) as ends:
        ends.transport.receiver = None
        ends.transport.write(b"." * 150)
        await ends.peer.send(b"for nobody")
        assert len(await ends.peer.receive()) == 150
        await ends.peer.send_eof()
        await settle()
        assert not ends.transport.ended
        ends.transport.abort()
        await settle()
        assert ends.transport.ended
        assert ends.notes.events == []


@pytest.mark.attack("O02")
async def test_eof_is_told_after_the_bytes_before_it_and_does_not_end_the_writing() -> None:
    """A peer that sends no more can still read: what the end of the stream means is not decided here."""
    async with opened() as ends:
        await ends.peer.send(b"last words")
        await ends.peer.send_eof()
        await settle()
        assert ends.notes.events == [b"last words", "eof"]
        ends.transport.write(b"answer")
        ends.transport.finish()
        assert await ends.read() == b"answer"


# --- ending in order: finish ----------------------------------------------------------------------------


@pytest.mark.parametrize(("half_close", "await_eof"), ENDINGS)
@pytest.mark.parametrize("waiting", [b"", b"last words", b"." * 3 * PIECE], ids=["nothing", "little", "much"])
async def test_finish_sends_what_waits_and_then_ends(
    half_close: bool, await_eof: bool, waiting: bytes
) -> None:
    """The peer reads all that was written before, then the end of the stream; nobody is to blame."""
    async with opened(outbox_size=4 * PIECE) as ends:
        ends.transport.write(waiting)
        ends.transport.finish(half_close=half_close, await_eof=await_eof)
        ends.transport.write(b"too late")
        if half_close or not await_eof:
            assert await ends.read() == waiting
        await settle()
        await ends.peer.aclose()
        await ends.notes.lost.wait()
        assert b"".join(ends.stream.sent) == waiting
        assert ends.notes.events == [("lost", None)]
        assert ends.stream.calls["send_eof"] == half_close


@pytest.mark.parametrize(("half_close", "await_eof"), ENDINGS)
async def test_finish_waits_for_the_peer_only_when_told_to(half_close: bool, await_eof: bool) -> None:
    """With ``await_eof`` it is the peer that closes first, without it we do."""
    async with opened() as ends:
        ends.transport.finish(half_close=half_close, await_eof=await_eof)
        await settle()
        assert ends.transport.ended is not await_eof
        await ends.peer.aclose()
        await settle()
        assert ends.transport.ended


@pytest.mark.parametrize(("half_close", "await_eof"), ENDINGS)
async def test_finish_after_the_end_of_the_peers_stream_needs_nothing_more(
    half_close: bool, await_eof: bool
) -> None:
    """A peer that has sent its end already is not waited for a second time."""
    async with opened() as ends:
        await ends.peer.send_eof()
        await settle()
        ends.transport.write(b"answer")
        ends.transport.finish(half_close=half_close, await_eof=await_eof)
        assert await ends.read() == b"answer"
        await settle()
        assert ends.notes.events == ["eof", ("lost", None)]


async def test_finish_lets_the_peer_end_while_the_last_words_are_sent() -> None:
    """The end of the peer's stream does not cut short what is still to be sent."""
    async with opened(capacity=10) as ends:
        ends.transport.write(b"." * 50)
        ends.transport.finish(await_eof=True)
        await ends.peer.send_eof()
        await settle()
        assert await ends.read() == b"." * 50


@pytest.mark.attack("F27")
@pytest.mark.parametrize("paused", [False, True])
@pytest.mark.parametrize(("size", "ended"), [(PIECE, False), (PIECE + 1, True)])
async def test_finish_discards_64_kib_and_then_ends(size: int, ended: bool, paused: bool) -> None:
    """What still arrives is read and thrown away, because unread it would destroy our last words; an
    endless sender is not read for ever.
    """
    async with opened() as ends:
        if paused:
            ends.transport.pause()
        ends.transport.write(b"last words")
        ends.transport.finish(half_close=True, await_eof=True)
        await settle()
        await ends.peer.send(b"." * size)
        await settle()
        assert ends.transport.ended is ended
        assert ends.stream.received == size
        assert await ends.peer.receive() == b"last words"
        assert [event for event in ends.notes.events if isinstance(event, bytes)] == []


@pytest.mark.attack("F27")
@pytest.mark.parametrize("capacity", [math.inf, 4000])
@pytest.mark.parametrize(("half_close", "await_eof"), ENDINGS)
async def test_finish_says_its_last_words_to_a_peer_that_has_sent_too_much(
    half_close: bool, await_eof: bool, capacity: float
) -> None:
    """The peer may have sent any amount before our last words reach it; that does not silence them."""
    async with opened(capacity=capacity) as ends:
        ends.transport.write(b"w" * 5000)
        ends.transport.finish(half_close=half_close, await_eof=await_eof)
        with contextlib.suppress(anyio.BrokenResourceError):
            await ends.peer.send(b"." * 2 * PIECE)
        words = b""
        while len(words) < 5000:
            words += await ends.peer.receive()
        assert words == b"w" * 5000


async def test_finish_twice_keeps_the_first() -> None:
    """Who finishes first decides how."""
    async with opened() as ends:
        ends.transport.finish(await_eof=True)
        ends.transport.finish(half_close=True)
        await settle()
        assert not ends.transport.ended
        assert ends.stream.calls["send_eof"] == 0


async def test_finish_does_without_a_half_close_where_the_stream_has_none() -> None:
    """TLS cannot close one direction only; that is no error."""
    async with opened() as ends:
        ends.stream.faults["send_eof", 1] = NotImplementedError()
        ends.transport.finish(half_close=True)
        await ends.notes.lost.wait()
        assert ends.notes.events == [("lost", None)]


async def test_finish_before_the_transport_has_begun_still_sends_what_waits() -> None:
    """Whatever is asked for before the first step of its task is done in that step."""
    async with opened() as ends:
        ends.transport.write(b"all")
        ends.transport.finish()
        assert await ends.read() == b"all"


# --- ending at once: abort and faults -------------------------------------------------------------------


@pytest.mark.parametrize("error", [None, OSError("why")])
async def test_abort_ends_at_once_and_drops_what_waits(error: Exception | None) -> None:
    """Whatever waits is not sent any more, nothing more is taken, and the reason is handed on."""
    async with opened(capacity=10) as ends:
        ends.transport.write(b"." * 50)
        await settle()
        ends.transport.abort(error)
        ends.transport.write(b"too late")
        await ends.notes.lost.wait()
        assert await ends.read() == b"." * 10
        assert ends.notes.events == [("lost", error)]


async def test_abort_keeps_the_first_reason() -> None:
    """Of several reasons the first is the one that counts; what follows is a consequence."""
    first = OSError("first")
    async with opened() as ends:
        ends.transport.abort()
        ends.transport.abort(first)
        ends.transport.abort(OSError("second"))
        await ends.notes.lost.wait()
        ends.transport.abort(OSError("third"))
        ends.transport.finish()
        assert ends.notes.events == [("lost", first)]


async def test_abort_ends_a_finish_that_takes_too_long() -> None:
    """``finish`` waits for the peer; ``abort`` is how that is bounded."""
    async with opened(capacity=10) as ends:
        ends.transport.write(b"." * 50)
        ends.transport.finish(half_close=True, await_eof=True)
        await settle()
        assert not ends.transport.ended
        ends.transport.abort()
        await ends.notes.lost.wait()


@virtual
async def test_abort_does_not_wait_for_a_stream_that_closes_slowly() -> None:
    """To cut a connection takes no time, even when nothing was waiting to be sent."""
    async with opened() as ends:
        ends.stream.stuck.add("aclose")
        await settle()
        clock = Stopwatch()
        ends.transport.abort()
        await ends.notes.lost.wait()
        assert clock() == 0


@virtual
async def test_finish_gives_a_stream_one_second_to_close_in_order() -> None:
    """TLS says goodbye when a stream is closed; a peer that does not take that cannot hold us up."""
    async with opened() as ends:
        ends.stream.stuck.add("aclose")
        clock = Stopwatch()
        ends.transport.finish()
        await ends.notes.lost.wait()
        assert clock() == 1


@pytest.mark.attack("O01")
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("nth", [1, 2, 3])
async def test_error_of_receive_ends_the_transport_and_nothing_else(error: Exception, nth: int) -> None:
    """Whatever a stream raises from its nth ``receive`` is handed on once and goes nowhere else."""
    async with opened() as ends:
        ends.stream.faults["receive", nth] = error
        for _ in range(nth - 1):
            await settle()
            await ends.peer.send(b".")
        await settle()
        if isinstance(error, anyio.EndOfStream):
            assert ends.notes.events[-1] == "eof"
        else:
            assert ends.notes.events[-1] == ("lost", error)


@pytest.mark.attack("O01")
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.parametrize("finishing", [False, True])
async def test_error_of_send_ends_the_transport_and_nothing_else(
    error: Exception, nth: int, finishing: bool
) -> None:
    """Whatever a stream raises from its nth ``send`` is handed on once and goes nowhere else."""
    async with opened() as ends:
        ends.stream.faults["send", nth] = error
        ends.transport.write(b"." * 3 * PIECE)
        if finishing:
            ends.transport.finish(half_close=True, await_eof=True)
        await ends.notes.lost.wait()
        assert ends.notes.events[-1] == ("lost", error)
        assert ends.stream.calls["send"] == nth
        assert len(await ends.read()) == (nth - 1) * PIECE


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("await_eof", [False, True])
async def test_error_of_send_eof_ends_the_transport_and_nothing_else(
    error: Exception, await_eof: bool
) -> None:
    """Whatever a stream raises from ``send_eof`` is handed on once and goes nowhere else."""
    async with opened() as ends:
        ends.stream.faults["send_eof", 1] = error
        ends.transport.finish(half_close=True, await_eof=await_eof)
        await ends.notes.lost.wait()
        assert ends.notes.events == [("lost", error)]


@pytest.mark.parametrize("error", ERRORS)
async def test_error_of_aclose_is_nobodys_concern(error: Exception) -> None:
    """A stream that cannot be closed in order is gone all the same; the end was in order."""
    async with opened() as ends:
        ends.stream.faults["aclose", 1] = error
        ends.transport.finish()
        await ends.notes.lost.wait()
        assert ends.notes.events == [("lost", None)]


async def test_error_of_the_receiver_ends_its_own_transport_only() -> None:
    """A receiver that raises loses its connection, and no other task is disturbed."""
    async with opened() as ends:
        ends.notes.fault = ZeroDivisionError()
        await ends.peer.send(b".")
        await ends.notes.lost.wait()
        assert ends.notes.events == [("lost", ends.notes.fault)]


async def test_cancelled_task_of_a_transport_closes_its_stream() -> None:
    """When whoever owns the task cancels it the stream is closed and the receiver told, as ever."""
    async with opened(capacity=10) as ends:
        ends.transport.write(b"." * 50)
        await settle()
        ends.tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await ends.notes.lost.wait()
        assert ends.notes.events == [("lost", None)]
        assert ends.stream.calls["aclose"] == 1


@on_asyncio
async def test_cancelled_asyncio_task_of_a_transport_closes_its_stream() -> None:
    """An event loop that is shut down cancels the tasks that it has; that is an end like any other."""
    ours, theirs = memory_stream_pair(10)
    stream, notes, spawned = FaultyStream(ours), Notes(), list[asyncio.Future[None]]()

    def spawn(function: Any) -> None:
        spawned.append(asyncio.ensure_future(function()))

    transport = StreamTransport(stream, spawn, outbox_size=100, write_timeout=20)
    transport.receiver = notes
    transport.start()
    transport.resume()
    transport.write(b"." * 50)
    await settle()
    spawned[0].cancel()
    await asyncio.wait(spawned)
    assert notes.events == [("lost", None)]
    assert transport.ended
    with pytest.raises(anyio.BrokenResourceError):
        await theirs.send(b"for nobody")


# --- addresses and attributes ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "ours"),
    [
        (("127.0.0.1", 80), ("127.0.0.1", 80)),
        (("::1", 80, 0, 0), ("::1", 80)),
        ("/run/socket", "/run/socket"),
        (b"\0abstract", "\0abstract"),
        ("", ""),
    ],
)
async def test_address_has_one_form_for_each_family(address: Any, ours: Any) -> None:
    """IPv4 and IPv6 give host and port, Unix sockets a path, in memory there is nothing: ``""``."""
    assert address_of(address) == ours
    async with opened() as ends:
        assert (ends.transport.remote_address, ends.transport.local_address) == ("", "")

        class Addressed(FaultyStream):
            extra_attributes = {  # noqa: RUF012 - an attribute in place of a property
                SocketAttribute.remote_address: lambda: address,
                SocketAttribute.local_address: lambda: address,
            }

        ends.transport._stream = stream = Addressed(ends.stream)
        assert (ends.transport.remote_address, ends.transport.local_address) == (ours, ours)
        assert ends.transport.extra(SocketAttribute.remote_address) == address
        assert ends.transport.extra(SocketAttribute.family, "none") == "none"
        assert ends.transport.extra_attributes is stream.extra_attributes
        ends.transport._stream = ends.stream


# --- the head of an opening handshake -------------------------------------------------------------------


class Line:
    """Reads a line; the stream may end before its end, an exclamation mark is an error."""

    def __init__(self) -> None:
        self.data = b""

    def feed(self, data: bytes | memoryview) -> bytes | None:
        self.data += data
        if b"!" in self.data:
            raise ValueError("an exclamation mark")
        return self.data if self.data.endswith(b"\n") else None

    def feed_eof(self) -> bytes:
        if not self.data:
            raise EOFError("nothing came")
        return self.data


async def test_receive_head_returns_the_head_and_stops_reading() -> None:
    """The reader gets the bytes as they come; behind the head nothing is read before it is wanted."""
    async with opened(reading=False) as ends:
        heads = []

        async def receive() -> None:
            heads.append(await receive_head(ends.transport, Line()))

        ends.tasks.start_soon(receive)
        for piece in (b"he", b"ad\n"):
            await settle()
            assert heads == []
            await ends.peer.send(piece)
        await settle()
        assert heads == [b"head\n"]
        await ends.peer.send(b"a frame")
        await settle()
        assert ends.notes.events == []
        ends.transport.resume()
        await settle()
        assert ends.notes.events == [b"a frame"]


async def test_receive_head_raises_what_its_reader_finds_wrong() -> None:
    """The error of the reader is raised where the head is waited for; the transport lives on."""
    async with opened(reading=False) as ends:
        await ends.peer.send(b"oh!")
        with pytest.raises(ValueError, match="an exclamation mark"):
            await receive_head(ends.transport, Line())
        assert not ends.transport.reading
        ends.transport.write(b"bad request")
        assert await ends.peer.receive() == b"bad request"


@pytest.mark.parametrize("data", [b"half a line", b""])
@pytest.mark.attack("H03")
async def test_receive_head_hands_the_end_of_the_stream_to_its_reader(data: bytes) -> None:
    """Whether the end of the stream completes a head, or is an error, is for the reader to say."""
    async with opened(reading=False) as ends:
        await ends.peer.send(data)
        await ends.peer.send_eof()
        if data:
            assert await receive_head(ends.transport, Line()) == data
        else:
            with pytest.raises(EOFError):
                await receive_head(ends.transport, Line())


@pytest.mark.parametrize("has_receiver", [True, False])
@pytest.mark.attack("H03")
async def test_receive_head_raises_when_the_transport_is_lost(has_receiver: bool) -> None:
    """A connection that breaks in its handshake is a broken resource, and its receiver is told, too."""
    error = OSError("reset by the peer")
    async with opened(reading=False) as ends:
        ends.stream.faults["receive", 2] = error
        if not has_receiver:
            ends.transport.receiver = None
        await ends.peer.send(b"half a line")
        with pytest.raises(anyio.BrokenResourceError) as caught:
            await receive_head(ends.transport, Line())
        assert caught.value.__cause__ is error
        assert ends.notes.events == [("lost", error)] * has_receiver


async def test_receive_head_raises_when_the_transport_was_lost_before() -> None:
    """On a transport that has ended there is nothing to wait for."""
    async with opened() as ends:
        ends.transport.abort()
        await ends.notes.lost.wait()
        with pytest.raises(anyio.BrokenResourceError, match="before the opening handshake"):
            await receive_head(ends.transport, Line())


async def test_receive_head_is_whole_when_the_connection_is_lost_right_behind_it() -> None:
    """A head that has arrived is returned, whatever becomes of the connection in the same moment."""
    async with opened(reading=False) as ends:
        heads = []

        async def receive() -> None:
            heads.append(await receive_head(ends.transport, Line()))

        ends.tasks.start_soon(receive)
        await settle()
        receiver: Any = ends.transport.receiver
        receiver.data_received(b"head\n")
        receiver.room_made()
        ends.transport.abort()
        await settle()
        assert heads == [b"head\n"]
        assert ends.notes.events == [("lost", None)]


async def test_farewell_ignores_everything_but_the_end() -> None:
    """A connection that only waits to be closed cares about nothing else."""
    async with opened() as ends:
        ends.transport.receiver = farewell = Farewell()
        await ends.peer.send(b"hello?")
        await settle()
        farewell.room_made()
        await ends.peer.send_eof()
        await settle()
        assert not farewell.gone.is_set()
        ends.transport.abort()
        await farewell.gone.wait()
