"""A transport moves bytes: when they go out, when it reads, and every way in which it ends.

These facts hold over whatever is below: streams in memory and over sockets, sockets, and TLS.
"""

from __future__ import annotations

import contextlib
import random
from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute

from anyio_ws.framing import frame_message
from anyio_ws.protocol import Protocol, Role
from anyio_ws.testing import WireOracle
from anyio_ws.transport import Farewell, address_of, receive_head

from .frames import build_frame
from .memory import Stopwatch, settle
from .support import BINARY, virtual
from .transports import (
    ENDINGS,
    MUCH,
    PIECE,
    Notes,
    direct_transport,
    every_transport,
    opened,
    timed_transport,
)

PONG = b"\x8a\x04pong"


# --- writing --------------------------------------------------------------------------------------------


@every_transport
@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 5 * PIECE // 2])
async def test_write_arrives_whole(kind: str, size: int) -> None:
    """Bytes of any number arrive, in order and once; none are none, before others and behind them."""
    data = (bytes(range(251)) * (size // 251 + 1))[:size]
    async with opened(kind, outbox_size=4 * PIECE) as ends:
        for each in (b"", data, b"", b"behind it"):
            ends.transport.write(each)
        ends.transport.finish()
        assert await ends.peer.read() == data + b"behind it"


@every_transport
@pytest.mark.attack("O03")
async def test_write_keeps_the_order_while_the_peer_is_slow(kind: str) -> None:
    """What could not be sent goes first, then what was written behind it: all, in order, once."""
    async with opened(kind) as ends:
        written = await ends.fill()
        for number in range(200):
            written += b"%d," % number
            ends.transport.write(b"%d," % number)
        ends.transport.write(MUCH)
        assert await ends.peer.read(len(written) + len(MUCH)) == written + MUCH
        await settle()
        assert ends.transport.buffered == 0
        assert ends.notes.events == ["room"]


@every_transport
async def test_write_from_takes_a_body_that_may_change_afterwards(kind: str) -> None:
    """Head and body arrive as they were, also where they have to wait."""
    async with opened(kind) as ends:
        for size in (4, len(MUCH), 4):
            body = bytearray(MUCH[:size])
            ends.transport.write_from(b"head ", memoryview(body))
            body[:] = bytes(size)
        rest = MUCH[:4] + b"head " + MUCH + b"head " + MUCH[:4]
        assert await ends.peer.read(5 + len(rest)) == b"head " + rest


@every_transport
@pytest.mark.parametrize(("count", "size"), [(1, 300_000), (20, 65_535), (600, 100)])
async def test_write_from_takes_frames_between_which_others_may_go(kind: str, count: int, size: int) -> None:
    """Any number of headers and payloads arrives as if it was one, and a control frame goes between two."""
    body = bytearray(range(251)) * (size // 251 + 1)
    header = build_frame(BINARY, bytes(size))[:-size]
    parts = (header, memoryview(body)[:size]) * count
    frames = b"".join(parts)
    async with opened(kind, outbox_size=2 * len(frames)) as ends:
        ends.transport.write_from(*parts)
        body[:] = bytes(len(body))
        ends.transport.write_soon(PONG)
        ends.transport.finish()
        wire = await ends.peer.read()
        at = wire.index(PONG)
        assert at % (len(header) + size) == 0
        assert wire == frames[:at] + PONG + frames[at:]


@every_transport
@pytest.mark.attack("R01")
async def test_full_is_true_above_the_mark_and_room_made_is_called_below_it(kind: str) -> None:
    """Exactly ``outbox_size`` waiting bytes are not full, one more is; the way back is told once."""
    async with opened(kind, outbox_size=2 * len(MUCH)) as ends:
        written = len(await ends.fill())
        rest = 2 * len(MUCH) - ends.transport.buffered
        ends.transport.write(b"." * rest)
        assert not ends.transport.full
        ends.transport.write(b".")
        assert ends.transport.full
        await ends.peer.read(written + rest + 1)
        await settle()
        assert not ends.transport.full
        assert ends.notes.events == ["room"]


@every_transport
@pytest.mark.parametrize("outbox_size", [1_000, 4_000, 16_000])
@pytest.mark.parametrize("behind", [1, 4, 16])
async def test_room_made_is_called_whenever_full_is_over(kind: str, outbox_size: int, behind: int) -> None:
    """However much is taken at a time, whoever waits for room hears of it."""
    async with opened(kind, outbox_size=outbox_size) as ends:
        written = len(await ends.fill())
        for _ in range(behind):
            ends.transport.write(b"." * 1_000)
        assert ends.transport.full
        await ends.peer.read(written - 20_000)
        await settle()
        while ends.transport.full:
            await ends.peer.receive(3_000)
            await settle()
        assert ends.notes.events == ["room"]


@every_transport
async def test_room_made_is_not_called_for_an_outbox_that_was_never_full(kind: str) -> None:
    """Without writers that could wait there is nothing to tell."""
    async with opened(kind) as ends:
        ends.transport.write(b"." * 100)
        await ends.peer.read(100)
        await settle()
        assert ends.notes.events == []


@every_transport
async def test_room_made_is_called_while_the_rest_still_waits(kind: str) -> None:
    """A long write makes room as it goes, not at its end."""

    class Watching(Notes):
        def room_made(self) -> None:
            super().room_made()
            waited.append(ends.transport.buffered)

    waited: list[int] = []
    async with opened(kind, outbox_size=len(MUCH) // 2) as ends:
        ends.transport.receiver = notes = Watching()
        await ends.peer.read(len(await ends.fill()))
        await notes.expect("room")
        assert len(MUCH) // 3 < waited[0] <= len(MUCH) // 2


@every_transport
async def test_taken_grows_with_what_had_to_wait(kind: str) -> None:
    """What the peer takes of a long write is a sign that it lives; what goes out at once is none."""
    async with opened(kind) as ends:
        ends.transport.write(b"hello")
        assert await ends.peer.read(5) == b"hello"
        await settle()
        assert ends.transport.taken == 0
        written = len(await ends.fill())
        before = ends.transport.taken
        await ends.peer.read(written)
        await settle()
        assert before < ends.transport.taken


@virtual
@timed_transport
@pytest.mark.attack("R01")
async def test_write_timeout_ends_a_peer_that_reads_nothing_exactly_in_time(kind: str) -> None:
    """Bytes that are not taken within ``write_timeout`` seconds end the transport, and not before."""
    async with opened(kind, write_timeout=7) as ends:
        await anyio.sleep(30)
        clock = Stopwatch()
        await ends.fill()
        await ends.notes.lost.wait()
        assert clock() == 7
        [(_, error)] = ends.notes.events
        assert isinstance(error, TimeoutError)


@virtual
@timed_transport
async def test_write_timeout_begins_anew_with_each_piece(kind: str) -> None:
    """A peer that is slow but reads is not cut off: 64 KiB within the timeout are enough."""
    async with opened(kind, write_timeout=7) as ends:
        written = len(await ends.fill())
        ends.transport.finish()
        while written:
            await anyio.sleep(6)
            written -= len(await ends.peer.read(min(2 * PIECE, written)))
            await settle()
        assert await ends.peer.receive() == b""
        await ends.notes.lost.wait()
        assert ends.notes.events == ["room", ("lost", None)]


@virtual
@timed_transport
async def test_write_timeout_is_over_when_everything_was_taken(kind: str) -> None:
    """A peer that took everything may be silent as long as it likes."""
    async with opened(kind, write_timeout=7) as ends:
        await ends.peer.read(len(await ends.fill()))
        await anyio.sleep(100)
        assert not ends.transport.ended


# --- control frames that go before what waits -----------------------------------------------------------


@every_transport
async def test_write_soon_sends_like_write_when_nothing_waits(kind: str) -> None:
    """Without a crowd there is nothing to overtake: the order is that of the calls."""
    async with opened(kind, outbox_size=PIECE) as ends:
        written = b""
        for number in range(2):
            written += PONG + b"\x82\x01%c" % number
            ends.transport.write_soon(PONG)
            ends.transport.write(b"\x82\x01%c" % number)
        assert await ends.peer.read(len(written)) == written


@every_transport
@pytest.mark.attack("R15")
@pytest.mark.parametrize("full", [False, True])
async def test_write_soon_sends_before_what_waits(kind: str, full: bool) -> None:
    """The frame that is being sent is sent to its end; then the control frame goes, then all the rest."""
    message = frame_message(BINARY, MUCH)
    async with opened(kind, outbox_size=100 if full else 4 * len(message)) as ends:
        for _ in range(3):
            ends.transport.write(message)
        await settle()
        waiting = ends.transport.buffered
        assert ends.transport.full is full
        ends.transport.write_soon(PONG)
        assert ends.transport.buffered == waiting + len(PONG)
        ends.transport.finish()
        oracle = WireOracle(masked=False)
        oracle.feed(await ends.peer.read())
        oracle.check()
        assert [data for opcode, data in oracle.messages if opcode == BINARY] == [MUCH] * 3
        at = [frame.opcode for frame in oracle.frames].index(0xA)
        behind = sum(len(frame.payload) for frame in oracle.frames[at:])
        assert behind > waiting - 2 * PIECE - 1_000  # what encryption and headers add


@every_transport
@pytest.mark.attack("R04", "R15")
@pytest.mark.parametrize("full", [False, True])
async def test_write_soon_replaces_only_where_there_is_no_room(kind: str, full: bool) -> None:
    """Every control frame goes out, in order, while there is room; above the mark the last of each opcode."""
    message = frame_message(BINARY, MUCH)
    async with opened(kind, outbox_size=100 if full else 6 * len(message)) as ends:
        for _ in range(5):
            ends.transport.write(message)
        await settle()
        before = ends.transport.buffered
        assert ends.transport.full is full
        numbers = [b"%02d" % number for number in range(20)]
        for number in numbers:
            ends.transport.write_soon(build_frame(0xA if int(number) % 2 else 0x9, number))
        left = numbers[-2:] if full else numbers
        assert ends.transport.buffered == before + 4 * len(left)
        ends.transport.finish()
        oracle = WireOracle(masked=False)
        oracle.feed(await ends.peer.read())
        oracle.check()
        assert [data for _, data in oracle.messages if data != MUCH] == left


class Talk:
    """Writes messages and control frames as a connection does, and knows what must be on the wire.

    :ivar messages: what was written, in order
    :ivar controls: opcode, payload, and whether there was no room, of each control frame
    """

    def __init__(self, transport: Any, role: Role, draw: random.Random) -> None:
        self.messages: list[bytes] = []
        self.controls: list[tuple[int, bytes, bool]] = []
        self._until: list[int] = []  # where on the wire each of them must be at the latest
        self._written = 0
        self._transport = transport
        self._draw = draw
        self._role = role
        self._protocol = Protocol(role, max_message_size=0)
        self._protocol.opened()

    def write(self) -> None:
        """Write a message."""
        size = self._draw.choice([0, 5, 5, 3_000, 40_000, 131_072, 131_073, 400_000])
        self.messages.append(self._draw.randbytes(4) * (size // 4))
        self._write(self._transport.write, self._protocol.send_bin(self.messages[-1]))

    def write_soon(self) -> None:
        """Write a Pong or a Ping."""
        opcode, payload = self._draw.choice([0x9, 0xA, 0xA]), b"%d" % len(self.controls)
        gone = self._written - self._transport.buffered
        self.controls.append((opcode, payload, self._transport.full))
        self._until.append(gone + 2 * 131_072 + 2_000)
        self._write(self._transport.write_soon, self._protocol.send_frame(opcode, payload))

    def close(self) -> None:
        """Write a Close, and end."""
        self._write(self._transport.write, self._protocol.send_close())
        self._transport.finish()

    def _write(self, write: Any, data: bytes) -> None:
        self._written += len(data)
        write(data)

    def judge(self, wire: bytes) -> None:
        """Check what the peer has received."""
        oracle = WireOracle(masked=self._role is Role.CLIENT)
        oracle.feed(wire)
        oracle.check()
        assert [data for opcode, data in oracle.messages if opcode == BINARY] == self.messages
        assert oracle.messages[-1][0] == 0x8
        position, arrived = 0, {}
        for frame in oracle.frames:
            position += len(frame.payload) + frame.length_form // 8 + (6 if frame.key else 2)
            if frame.opcode in (0x9, 0xA):
                arrived[frame.payload] = position
        assert sorted(arrived, key=int) == [*arrived]
        for number, (opcode, payload, _) in enumerate(self.controls):
            if payload in arrived:
                assert arrived[payload] <= self._until[number]
            else:  # one of the same kind that came when there was no room has taken its place
                others = [each for each in self.controls[number + 1 :] if each[0] == opcode]
                assert next(full for _, other, full in others if other in arrived)


@every_transport
@pytest.mark.attack("R15", "R04", "T07")
@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("seed", range(6))
async def test_messages_and_control_frames_in_any_order_keep_the_rules(
    kind: str, role: Role, seed: int
) -> None:
    """Whatever is written and read, messages are whole, and control frames where they may and should be."""
    draw = random.Random(seed)
    wire = b""
    async with opened(kind, outbox_size=draw.choice([100, 70_000, 1_000_000])) as ends:
        talk = Talk(ends.transport, role, draw)
        for _ in range(100):
            step = draw.randrange(10)
            if step < 2:
                talk.write()
            elif step < 6:
                talk.write_soon()
            else:
                await settle()
                if step < 8 and ends.transport.buffered:
                    wire += await ends.peer.receive(draw.choice([1, 1_000, 30_000, 100_000]))
        talk.close()
        talk.judge(wire + await ends.peer.read())


# --- reading --------------------------------------------------------------------------------------------


@every_transport
async def test_reading_begins_with_resume(kind: str) -> None:
    """Nothing is handed on before there is somebody who wants it."""
    async with opened(kind, reading=False) as ends:
        await ends.peer.send(b"early")
        await settle()
        assert ends.notes.events == []
        ends.transport.resume()
        await ends.notes.expect(b"early")


@every_transport
async def test_read_size_is_the_most_that_is_received_at_a_time(kind: str) -> None:
    """What comes in at once is handed over in pieces of that size, and nothing is lost."""
    async with opened(kind) as ends:
        ends.transport.read_size = 100
        await ends.peer.send(b"\0")  # for a read that has begun already
        await ends.notes.expect(b"\0")
        await ends.peer.send(bytes(250))
        await ends.notes.expect(bytes(251))
        assert max(ends.notes.sizes) <= 100


@every_transport
@pytest.mark.attack("R03")
async def test_pause_stops_reading_and_resume_goes_on_without_a_loss(kind: str) -> None:
    """While paused the peer's bytes stay where they are; then they arrive, in order."""
    async with opened(kind) as ends:
        for number in (1, 2, 3):
            ends.transport.pause()
            assert not ends.transport.reading
            await ends.peer.send(b"1")  # a read that has begun already may still deliver
            await settle()
            before = list(ends.notes.events)
            await ends.peer.send(b"2")
            await settle()
            assert ends.notes.events == before
            ends.transport.resume()
            ends.transport.resume()
            assert ends.transport.reading
            await ends.notes.expect(b"12" * number)


@every_transport
async def test_receiver_may_be_exchanged_at_any_time(kind: str) -> None:
    """Whoever is the receiver when bytes arrive gets them; so one connection follows its handshake."""
    async with opened(kind) as ends:
        await ends.peer.send(b"first")
        await ends.notes.expect(b"first")
        ends.transport.receiver = other = Notes()
        await ends.peer.send(b"second")
        await other.expect(b"second")
        ends.transport.abort()
        await other.expect(b"second", ("lost", None))
        assert ends.notes.events == [b"first"]


@every_transport
@pytest.mark.attack("O02")
@pytest.mark.parametrize("paused", [False, True])
async def test_eof_is_told_once_after_the_bytes_before_it(kind: str, paused: bool) -> None:
    """While paused neither arrives; then both do. What the end of the stream means is not decided here:
    a peer that sends no more can still read.
    """
    async with opened(kind, reading=not paused) as ends:
        await ends.peer.send(b"last words")
        await ends.peer.send_eof()
        if paused:
            await settle()
            assert ends.notes.events == []
            ends.transport.resume()
        await ends.notes.expect(b"last words", "eof")
        ends.transport.pause()
        ends.transport.resume()
        await settle()
        ends.transport.write(b"answer")
        ends.transport.finish(await_eof=True)
        assert await ends.peer.read() == b"answer"
        await ends.notes.expect(b"last words", "eof", ("lost", None))


@every_transport
@pytest.mark.attack("O02")
async def test_eof_right_behind_data_is_told_when_reading_goes_on(kind: str) -> None:
    """The receiver that pauses at the data, or the one it gives way to, hears of the end after ``resume``."""

    class Pausing(Notes):
        def data_received(self, data: bytes | memoryview) -> None:
            super().data_received(data)
            ends.transport.pause()

    async with opened(kind, reading=False) as ends:
        ends.transport.receiver = first = Pausing()
        await ends.peer.send(b"all there is")
        await ends.peer.send_eof()
        ends.transport.resume()
        await first.expect(b"all there is")
        await settle()
        ends.transport.receiver = second = Notes()
        ends.transport.resume()
        await second.expect("eof")
        ends.transport.resume()
        await settle()
        assert (first.events, second.events) == ([b"all there is"], ["eof"])


# --- ending in order: finish ----------------------------------------------------------------------------


@every_transport
@pytest.mark.parametrize(("half_close", "await_eof"), ENDINGS)
@pytest.mark.parametrize("waiting", [b"", b"last words", MUCH], ids=["nothing", "little", "much"])
async def test_finish_sends_what_waits_and_then_ends(
    kind: str, half_close: bool, await_eof: bool, waiting: bytes
) -> None:
    """The peer reads all that was written before; then it closes first with ``await_eof``, without it we
    do. Nobody is to blame.
    """
    async with opened(kind, outbox_size=len(MUCH)) as ends:
        ends.transport.write(waiting)
        ends.transport.finish(half_close=half_close, await_eof=await_eof)
        ends.transport.write(b"too late")
        assert await ends.peer.read(len(waiting) if await_eof else len(MUCH) + 1) == waiting
        await settle()
        assert ends.transport.ended is not await_eof
        await ends.peer.send_eof()
        await ends.notes.expect(("lost", None))


@every_transport
@pytest.mark.parametrize("half_close", [False, True])
async def test_finish_tells_the_peer_that_nothing_more_comes_when_told_to(
    kind: str, half_close: bool
) -> None:
    """With ``half_close`` the peer reads the end of the stream before it has to close; TLS always says it."""
    async with opened(kind) as ends:
        ends.transport.write(b"last words")
        ends.transport.finish(half_close=half_close, await_eof=True)
        assert await ends.peer.read(10) == b"last words"
        if half_close or kind == "tls-unix":
            assert await ends.peer.receive() == b""
        else:
            assert await ends.peer.is_silent()
        assert not ends.transport.ended


@every_transport
@pytest.mark.parametrize(("half_close", "await_eof"), ENDINGS)
async def test_finish_after_the_end_of_the_peers_stream_needs_nothing_more(
    kind: str, half_close: bool, await_eof: bool
) -> None:
    """A peer that has sent its end already is not waited for a second time."""
    async with opened(kind) as ends:
        await ends.peer.send_eof()
        await ends.notes.expect("eof")
        ends.transport.write(b"answer")
        ends.transport.finish(half_close=half_close, await_eof=await_eof)
        assert await ends.peer.read() == b"answer"
        await ends.notes.expect("eof", ("lost", None))


@every_transport
async def test_finish_lets_the_peer_end_while_the_last_words_are_sent(kind: str) -> None:
    """The end of the peer's stream does not cut short what is still to be sent."""
    async with opened(kind) as ends:
        written = await ends.fill()
        ends.transport.finish(await_eof=True)
        await ends.peer.send_eof()
        await settle()
        assert await ends.peer.read() == written


@every_transport
@pytest.mark.attack("F27")
@pytest.mark.parametrize("paused", [False, True])
@pytest.mark.parametrize(("size", "ended"), [(PIECE, False), (PIECE + 1, True)])
async def test_finish_discards_64_kib_and_then_ends(kind: str, size: int, ended: bool, paused: bool) -> None:
    """What still arrives is read and thrown away, because unread it would destroy our last words; an
    endless sender is not read for ever.
    """
    async with opened(kind, reading=not paused) as ends:
        ends.transport.write(b"last words")
        ends.transport.finish(half_close=True, await_eof=True)
        await settle()
        await ends.peer.wire.send(b"." * size)
        if ended:
            await ends.notes.lost.wait()
        await settle()
        assert ends.transport.ended is ended
        assert await ends.peer.receive() == b"last words"
        assert ends.notes.events == [("lost", None)] * ended


@every_transport
@pytest.mark.attack("F27")
@pytest.mark.parametrize(("half_close", "await_eof"), ENDINGS)
async def test_finish_says_its_last_words_to_a_peer_that_sends_and_reads_nothing(
    kind: str, half_close: bool, await_eof: bool
) -> None:
    """What comes before our last words are sent is read without a limit: it may be what keeps them."""
    async with opened(kind) as ends:
        written = await ends.fill()
        ends.transport.finish(half_close=half_close, await_eof=await_eof or kind.endswith("tcp"))
        await ends.peer.send(b"." * 4 * PIECE)
        await settle()
        assert await ends.peer.read(len(written)) == written


@every_transport
async def test_finish_twice_keeps_the_first(kind: str) -> None:
    """Who finishes first decides how."""
    async with opened(kind) as ends:
        ends.transport.finish(await_eof=True)
        ends.transport.finish(half_close=True)
        await settle()
        assert not ends.transport.ended
        assert kind == "tls-unix" or await ends.peer.is_silent()


@every_transport
async def test_finish_before_the_transport_has_begun_still_sends_what_waits(kind: str) -> None:
    """Whatever is asked for before the first step of its task is done in that step."""
    async with opened(kind) as ends:
        ends.transport.write(b"all")
        ends.transport.finish()
        assert await ends.peer.read() == b"all"


# --- ending at once: abort and faults -------------------------------------------------------------------


@every_transport
@pytest.mark.parametrize("error", [None, OSError("why")])
async def test_abort_ends_at_once_and_drops_what_waits(kind: str, error: Exception | None) -> None:
    """Whatever waits is not sent any more, nothing more is taken, and the reason is handed on."""
    async with opened(kind) as ends:
        written = await ends.fill()
        ends.transport.abort(error)
        ends.transport.write(b"too late")
        ends.transport.finish()
        ends.transport.resume()
        await ends.notes.expect(("lost", error))
        sent = await ends.peer.read()
        assert len(sent) < len(written)
        assert written.startswith(sent)


@every_transport
async def test_abort_keeps_the_first_reason(kind: str) -> None:
    """Of several reasons the first is the one that counts; what follows is a consequence."""
    first = OSError("first")
    async with opened(kind) as ends:
        ends.transport.abort(first)
        ends.transport.abort(OSError("second"))
        await ends.notes.lost.wait()
        ends.transport.abort(OSError("third"))
        ends.transport.finish()
        await settle()
        assert ends.notes.events == [("lost", first)]


@every_transport
async def test_abort_ends_a_finish_that_takes_too_long(kind: str) -> None:
    """``finish`` waits for the peer; ``abort`` is how that is bounded."""
    async with opened(kind) as ends:
        await ends.fill()
        ends.transport.finish(half_close=True, await_eof=True)
        await settle()
        assert not ends.transport.ended
        ends.transport.abort()
        await ends.notes.lost.wait()


@every_transport
async def test_abort_within_a_call_of_the_receiver_is_the_end(kind: str) -> None:
    """A receiver may end the transport while it is being called; nothing comes behind that but the end."""

    class Ending(Notes):
        def data_received(self, data: bytes | memoryview) -> None:
            super().data_received(data)
            ends.transport.abort()

    async with opened(kind) as ends, anyio.create_task_group() as tasks:
        ends.transport.receiver = notes = Ending()

        async def pour() -> None:
            with contextlib.suppress(OSError, anyio.BrokenResourceError):
                while True:
                    await ends.peer.send(b"." * 1_000)

        tasks.start_soon(pour)
        await notes.lost.wait()
        assert [type(event) for event in notes.events] == [bytes, tuple]


@every_transport
@pytest.mark.parametrize("call", ["data_received", "eof_received"])
async def test_error_of_the_receiver_ends_its_own_transport_only(kind: str, call: str) -> None:
    """A receiver that raises has lost its place in the stream: its connection is cut, and no other."""
    async with opened(kind) as ends, opened(kind) as other:
        ends.notes.faults[call] = error = ZeroDivisionError()
        await ends.have_called(call)
        await ends.notes.expect(("lost", error))
        await other.peer.send(b"hello")
        await other.notes.expect(b"hello")


# --- addresses ------------------------------------------------------------------------------------------


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
def test_address_has_one_form_for_each_family(address: Any, ours: Any) -> None:
    """IPv4 and IPv6 give host and port, Unix sockets a path, in memory there is nothing: ``""``."""
    assert address_of(address) == ours


@every_transport
async def test_addresses_are_those_of_what_is_below(kind: str) -> None:
    """TCP gives host and port, an unnamed Unix socket and memory ``""``; attributes say the same."""
    async with opened(kind) as ends:
        remote, local = ("", "")
        if kind.endswith("tcp"):
            remote, local = ends.peer.socket.getsockname(), ends.peer.socket.getpeername()
        assert (ends.transport.remote_address, ends.transport.local_address) == (remote, local)
        assert ends.transport.extra(SocketAttribute.remote_address, "") == remote
        assert ends.transport.extra(SocketAttribute.local_address, "") == local
        port = remote[1] if remote else "none"
        assert ends.transport.extra(SocketAttribute.remote_port, "none") == port


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


either_way = pytest.mark.parametrize("at_once", [False, True])


@every_transport
@either_way
async def test_receive_head_returns_the_head_and_stops_reading(kind: str, at_once: bool) -> None:
    """The reader gets the bytes as they come; behind the head nothing is read before it is wanted."""
    async with opened(kind, reading=False) as ends:
        heads = []

        async def receive() -> None:
            heads.append(await receive_head(ends.transport, Line(), at_once=at_once))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receive)
            for piece in (b"he", b"ad\n"):
                await settle()
                assert heads == []
                await ends.peer.send(piece)
        assert heads == [b"head\n"]
        await ends.peer.send(b"a frame")
        await settle()
        assert ends.notes.events == []
        ends.transport.resume()
        await ends.notes.expect(b"a frame")


@pytest.mark.parametrize("kind", ["socket-unix", "tls-unix"])
async def test_receive_head_at_once_takes_what_has_come(kind: str) -> None:
    """A head that is there before it is asked for costs no turn of the event loop."""
    async with opened(kind, reading=False) as ends:
        await ends.peer.send(b"head\n")
        reads = ends.transport.reads
        with pytest.raises(StopIteration) as returned:
            receive_head(ends.transport, Line(), at_once=True).send(None)
        assert returned.value.value == b"head\n"
        assert (ends.transport.reading, ends.transport.reads - reads) == (False, 1)
        await ends.peer.send(b"a frame")
        ends.transport.resume()
        await ends.notes.expect(b"a frame")


@direct_transport
async def test_receive_head_at_once_can_be_cancelled(kind: str) -> None:
    """Who is cancelled gets no head, though it may be there: a server that stops begins nothing new."""
    async with opened(kind, reading=False) as ends:
        await ends.peer.send(b"head\n")
        with anyio.CancelScope() as scope:
            scope.cancel()
            await receive_head(ends.transport, Line(), at_once=True)
        assert scope.cancelled_caught


@every_transport
@either_way
async def test_receive_head_raises_what_its_reader_finds_wrong(kind: str, at_once: bool) -> None:
    """The error of the reader is raised where the head is waited for; the transport lives on."""
    async with opened(kind, reading=False) as ends:
        await ends.peer.send(b"oh!")
        with pytest.raises(ValueError, match="an exclamation mark"):
            await receive_head(ends.transport, Line(), at_once=at_once)
        assert not ends.transport.reading
        ends.transport.write(b"bad request")
        assert await ends.peer.receive() == b"bad request"


@every_transport
@either_way
@pytest.mark.parametrize("data", [b"half a line", b""])
@pytest.mark.attack("H03")
async def test_receive_head_hands_the_end_of_the_stream_to_its_reader(
    kind: str, data: bytes, at_once: bool
) -> None:
    """Whether the end of the stream completes a head, or is an error, is for the reader to say."""
    async with opened(kind, reading=False) as ends:
        if data:
            await ends.peer.send(data)
        await ends.peer.send_eof()
        if data:
            assert await receive_head(ends.transport, Line(), at_once=at_once) == data
        else:
            with pytest.raises(EOFError):
                await receive_head(ends.transport, Line(), at_once=at_once)


@direct_transport
@pytest.mark.attack("H03")
async def test_receive_head_at_once_raises_when_receiving_fails(kind: str) -> None:
    """An error that is there before the head is asked for breaks the resource as a later one does."""
    error = OSError("reset by the peer")
    async with opened(kind, reading=False) as ends:
        ends.below.receive_faults.append(error)
        with pytest.raises(anyio.BrokenResourceError) as caught:
            await receive_head(ends.transport, Line(), at_once=True)
        assert caught.value.__cause__ is error
        assert ends.notes.events == [("lost", error)]


@every_transport
@pytest.mark.parametrize("has_receiver", [True, False])
@pytest.mark.attack("H03")
async def test_receive_head_raises_when_the_transport_is_lost(kind: str, has_receiver: bool) -> None:
    """A connection that breaks in its handshake is a broken resource, and its receiver is told, too."""
    error = OSError("reset by the peer")
    async with opened(kind, reading=False) as ends:
        if not has_receiver:
            ends.transport.receiver = None

        async def break_off() -> None:
            await settle()
            ends.transport.abort(error)

        await ends.peer.send(b"half a line")
        ends.tasks.start_soon(break_off)
        with pytest.raises(anyio.BrokenResourceError) as caught:
            await receive_head(ends.transport, Line())
        assert caught.value.__cause__ is error
        assert ends.notes.events == [("lost", error)] * has_receiver


@every_transport
async def test_receive_head_raises_when_the_transport_was_lost_before(kind: str) -> None:
    """On a transport that has ended there is nothing to wait for."""
    async with opened(kind) as ends:
        ends.transport.abort()
        await ends.notes.lost.wait()
        with pytest.raises(anyio.BrokenResourceError, match="before the opening handshake"):
            await receive_head(ends.transport, Line())


@every_transport
async def test_receive_head_is_whole_when_the_connection_is_lost_right_behind_it(kind: str) -> None:
    """A head that has arrived is returned, whatever becomes of the connection in the same moment."""
    async with opened(kind, reading=False) as ends:
        heads = []

        async def receive() -> None:
            heads.append(await receive_head(ends.transport, Line()))

        ends.tasks.start_soon(receive)
        await settle()
        ends.transport.receiver.data_received(b"head\n")
        ends.transport.receiver.room_made()
        ends.transport.abort()
        await settle()
        assert heads == [b"head\n"]
        assert ends.notes.events == [("lost", None)]


@every_transport
async def test_farewell_ignores_everything_but_the_end(kind: str) -> None:
    """A connection that only waits to be closed cares about nothing else."""
    async with opened(kind) as ends:
        ends.transport.receiver = farewell = Farewell()
        await ends.peer.send(b"hello?")
        await settle()
        farewell.room_made()
        await ends.peer.send_eof()
        await settle()
        assert not farewell.gone.is_set()
        ends.transport.abort()
        await farewell.gone.wait()
