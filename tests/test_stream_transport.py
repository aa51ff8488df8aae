"""What is particular to the transport over a stream: what it sends in which pieces, and whatever a foreign
stream may raise. ``test_transport.py`` has what holds for every transport.
"""

from __future__ import annotations

import asyncio
import math
from functools import partial
from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute

from anyio_ws.testing import FaultyStream, memory_stream_pair
from anyio_ws.transport import StreamTransport

from . import transports
from .memory import Stopwatch, on_asyncio, settle
from .support import virtual
from .transports import ENDINGS, PIECE, Notes

opened = partial(transports.opened, "stream-memory", capacity=math.inf)

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


# --- writing --------------------------------------------------------------------------------------------


async def test_write_joins_what_waits_into_one_send() -> None:
    """Everything written in one step goes out in one send: one packet for all replies to one read."""
    async with opened() as ends:
        for piece in (b"one ", b"two ", b"three"):
            ends.transport.write(piece)
        assert await ends.peer.receive() == b"one two three"
        assert ends.below.sent == [b"one two three"]


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
        assert await ends.peer.read() == data[:size]
        assert [len(piece) for piece in ends.below.sent[:-1]] == [PIECE] * (len(ends.below.sent) - 1)
        assert 0 < len(ends.below.sent[-1]) <= PIECE


async def test_write_joins_at_most_a_piece_and_one_write() -> None:
    """Joining stops at a piece: a long queue is not copied into one long string."""
    async with opened() as ends:
        for _ in range(100):
            ends.transport.write(b"." * 1000)
        await settle()
        assert [len(piece) for piece in ends.below.sent] == [PIECE, 66_000 - PIECE, 34_000]


async def test_write_of_nothing_sends_nothing() -> None:
    """An empty write does not become an empty send, which ends a TLS stream on some systems."""
    async with opened() as ends:
        ends.transport.write(b"")
        await settle()
        assert ends.below.sent == []


@pytest.mark.attack("O03")
@pytest.mark.parametrize("capacity", [1, 3, 7])
async def test_write_survives_a_peer_that_takes_few_bytes_at_a_time(capacity: int) -> None:
    """Short writes are no concern: everything arrives, in order, once."""
    data = bytes(range(256))
    async with opened(capacity=capacity) as ends:
        ends.transport.write(data)
        ends.transport.write(data)
        ends.transport.finish()
        assert await ends.peer.read() == data + data


async def test_room_made_is_called_as_soon_as_a_piece_has_gone() -> None:
    """A long write makes room piece by piece, not at its end."""
    async with opened(capacity=PIECE, outbox_size=PIECE // 2) as ends:
        ends.transport.write(b"." * (PIECE + 100))
        await settle()
        assert ends.transport.buffered == 100
        assert ends.notes.events == ["room"]


# --- reading --------------------------------------------------------------------------------------------


async def test_reading_begins_with_resume_and_not_before() -> None:
    """A stream that nobody wants to read is not asked."""
    async with opened(reading=False) as ends:
        await ends.peer.send(b"early")
        await settle()
        assert ends.below.calls["receive"] == 0


async def test_read_that_has_begun_still_delivers_after_a_pause() -> None:
    """What a stream is about to return is not thrown away; it is the last for now."""
    async with opened() as ends:
        await settle()
        ends.transport.pause()
        for _ in range(2):
            await ends.peer.send(b"1")
            await settle()
        assert (ends.notes.events, ends.below.calls["receive"]) == ([b"1"], 1)


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


# --- ending in order: finish ----------------------------------------------------------------------------


@pytest.mark.parametrize(("half_close", "await_eof"), ENDINGS)
async def test_finish_ends_the_sending_of_the_stream_only_when_told_to(
    half_close: bool, await_eof: bool
) -> None:
    """``half_close`` is the stream's ``send_eof``, once, after everything was sent."""
    async with opened() as ends:
        ends.transport.write(b"last words")
        ends.transport.finish(half_close=half_close, await_eof=await_eof)
        await settle()
        assert (ends.below.sent, ends.below.calls["send_eof"]) == ([b"last words"], half_close)


async def test_finish_does_without_a_half_close_where_the_stream_has_none() -> None:
    """TLS cannot close one direction only; that is no error."""
    async with opened() as ends:
        ends.below.faults["send_eof", 1] = NotImplementedError()
        ends.transport.finish(half_close=True)
        await ends.notes.lost.wait()
        assert ends.notes.events == [("lost", None)]


# --- ending at once: abort and faults -------------------------------------------------------------------


async def test_abort_without_a_reason_leaves_that_to_the_next() -> None:
    """An end that was not explained is explained by whoever does so before it is told."""
    async with opened() as ends:
        why = OSError("why")
        ends.transport.abort()
        ends.transport.abort(why)
        await ends.notes.expect(("lost", why))


@virtual
async def test_abort_does_not_wait_for_a_stream_that_closes_slowly() -> None:
    """To cut a connection takes no time, even when nothing was waiting to be sent."""
    async with opened() as ends:
        ends.below.stuck.add("aclose")
        await settle()
        clock = Stopwatch()
        ends.transport.abort()
        await ends.notes.lost.wait()
        assert clock() == 0


@virtual
async def test_finish_gives_a_stream_one_second_to_close_in_order() -> None:
    """TLS says goodbye when a stream is closed; a peer that does not take that cannot hold us up."""
    async with opened() as ends:
        ends.below.stuck.add("aclose")
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
        ends.below.faults["receive", nth] = error
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
        ends.below.faults["send", nth] = error
        ends.transport.write(b"." * 3 * PIECE)
        if finishing:
            ends.transport.finish(half_close=True, await_eof=True)
        await ends.notes.lost.wait()
        assert ends.notes.events[-1] == ("lost", error)
        assert ends.below.calls["send"] == nth
        assert len(await ends.peer.read()) == (nth - 1) * PIECE


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("await_eof", [False, True])
async def test_error_of_send_eof_ends_the_transport_and_nothing_else(
    error: Exception, await_eof: bool
) -> None:
    """Whatever a stream raises from ``send_eof`` is handed on once and goes nowhere else."""
    async with opened() as ends:
        ends.below.faults["send_eof", 1] = error
        ends.transport.finish(half_close=True, await_eof=await_eof)
        await ends.notes.lost.wait()
        assert ends.notes.events == [("lost", error)]


@pytest.mark.parametrize("error", ERRORS)
async def test_error_of_aclose_is_nobodys_concern(error: Exception) -> None:
    """A stream that cannot be closed in order is gone all the same; the end was in order."""
    async with opened() as ends:
        ends.below.faults["aclose", 1] = error
        ends.transport.finish()
        await ends.notes.lost.wait()
        assert ends.notes.events == [("lost", None)]


async def test_cancelled_task_of_a_transport_closes_its_stream() -> None:
    """When whoever owns the task cancels it the stream is closed and the receiver told, as ever."""
    async with opened(capacity=10) as ends:
        ends.transport.write(b"." * 50)
        await settle()
        ends.tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await ends.notes.lost.wait()
        assert ends.notes.events == [("lost", None)]
        assert ends.below.calls["aclose"] == 1


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


# --- attributes -----------------------------------------------------------------------------------------


async def test_attributes_and_addresses_are_those_of_the_stream() -> None:
    """Whatever a stream says of itself can be asked for; its addresses come in our form."""

    class Addressed(FaultyStream):
        extra_attributes = {  # noqa: RUF012 - an attribute in place of a property
            SocketAttribute.remote_address: lambda: ("::1", 80, 0, 0),
            SocketAttribute.local_address: lambda: ("::1", 81, 0, 0),
        }

    async with opened() as ends:
        ends.transport._stream = stream = Addressed(ends.below)
        assert (ends.transport.remote_address, ends.transport.local_address) == (("::1", 80), ("::1", 81))
        assert ends.transport.extra(SocketAttribute.remote_address) == ("::1", 80, 0, 0)
        assert ends.transport.extra(SocketAttribute.family, "none") == "none"
        assert ends.transport.extra_attributes is stream.extra_attributes
        ends.transport._stream = ends.below
