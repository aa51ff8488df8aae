"""One connection: what it writes, receives and answers, when it waits, and every way in which it ends.

One end is a real connection; the other is bytes. Tests that need time run with a clock that jumps.
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from anyio_ws.conn import LINGER, Conn, ConnectionBroken, ConnectionEnded, ConnectionShut
from anyio_ws.events import Message, MessageType, Opcode
from anyio_ws.exceptions import ConnectionClosed, LocalProtocolError, RemoteProtocolError
from anyio_ws.framing import frame_bin, frame_text
from anyio_ws.protocol import Role, State
from anyio_ws.transport import SocketAttribute

from .frames import build_frame, parse_frames
from .memory import (
    CONTINUATION,
    Link,
    Steps,
    Stopwatch,
    both_roles,
    connection,
    every_cut,
    on_asyncio,
    settle,
    swept,
)
from .support import BINARY, CLOSE, PING, PONG, TEXT, virtual

Do = Callable[[Link], Awaitable[object]]
KIB = 1024


def code(number: int, reason: str = "") -> bytes:
    """Build the payload of a Close."""
    return number.to_bytes(2, "big") + reason.encode()


async def steps_of(call: Awaitable[Any]) -> int:
    """Await a call, and return how often it waited."""
    steps = Steps(call)
    await steps
    return steps.count


# --- writing --------------------------------------------------------------------------------------------

WRITES: dict[str, tuple[Do, tuple[int, bytes]]] = {
    "write": (lambda link: link.conn.write("grüße"), (TEXT, "grüße".encode())),
    "write_text": (lambda link: link.conn.write_text(""), (TEXT, b"")),
    "write_bin": (lambda link: link.conn.write_bin(b"\0\xff"), (BINARY, b"\0\xff")),
    "write_bin of a view": (lambda link: link.conn.write_bin(memoryview(b"a-b-c")[::2]), (BINARY, b"abc")),
    "send of text": (lambda link: link.conn.send("text"), (TEXT, b"text")),
    "send of bytes": (lambda link: link.conn.send(b"bytes"), (BINARY, b"bytes")),
    "write_framed of text": (lambda link: link.conn.write_framed(frame_text("text")), (TEXT, b"text")),
    "write_framed of bytes": (lambda link: link.conn.write_framed(frame_bin(b"data")), (BINARY, b"data")),
    "write_frame": (lambda link: link.conn.write_frame(Opcode.BINARY, b"data"), (BINARY, b"data")),
    "write_frame of a ping": (lambda link: link.conn.write_frame(Opcode.PING), (PING, b"")),
    "write_ping": (lambda link: link.conn.write_ping(b"are you there"), (PING, b"are you there")),
    "write_ping without data": (lambda link: link.conn.write_ping(), (PING, b"")),
    "write_pong": (lambda link: link.conn.write_pong(b"I am"), (PONG, b"I am")),
    "a long message": (lambda link: link.conn.write_bin(b"." * 70_000), (BINARY, b"." * 70_000)),
}


@both_roles
@pytest.mark.parametrize(("write", "message"), WRITES.values(), ids=WRITES)
async def test_write_sends_its_frame_and_does_not_yield(
    role: Role, write: Do, message: tuple[int, bytes]
) -> None:
    """Each way of writing sends exactly its frame, masked by a client, in the call itself."""
    async with connection(role) as link:
        assert await steps_of(write(link)) == 0
        await link.peer.expect(*message)
        link.listen()
        await settle()
        assert link.peer.received == b""


@pytest.mark.attack("F28")
async def test_write_of_a_client_masks_each_frame_with_a_fresh_key() -> None:
    """The same message twice, or a prepared frame twice, is not the same bytes twice."""
    async with connection(Role.CLIENT) as link:
        for _ in range(50):
            await link.conn.write("same")
            await link.conn.write_framed(frame_text("same"))
        frames = [await link.peer.frame() for _ in range(100)]
        assert len({frame.key for frame in frames}) > 95
        assert {frame.payload for frame in frames} == {b"same"}


@pytest.mark.attack("F30")
@both_roles
async def test_write_bin_copies_its_data_before_it_returns(role: Role) -> None:
    """The caller's buffer is neither changed nor needed any more."""
    data = bytearray(b"before")
    async with connection(role) as link:
        await link.conn.write_bin(data)
        assert data == b"before"
        data[:] = b"after!"
        await link.peer.expect(BINARY, b"before")


@pytest.mark.parametrize(
    ("data", "message"),
    [("text", (TEXT, b"text")), (b"bytes", (BINARY, b"bytes")), (bytearray(b"more"), (BINARY, b"more"))],
)
async def test_write_nowait_sends_text_or_binary(data: Any, message: tuple[int, bytes]) -> None:
    """Synchronous code writes in one step: text for ``str``, binary for bytes-like objects."""
    async with connection() as link:
        link.conn.write_nowait(data)
        await link.peer.expect(*message)


async def test_write_nowait_would_block_when_the_outbox_is_full() -> None:
    """Above ``outbox_size`` nothing is taken; exactly at it, and again below it, there is room."""
    async with connection(capacity=100, outbox_size=50) as link:
        link.conn.write_nowait(b"." * 48)
        link.conn.write_nowait(b"one more")
        with pytest.raises(anyio.WouldBlock):
            link.conn.write_nowait(b"too much")
        await link.peer.expect(BINARY, b"." * 48)
        await link.peer.expect(BINARY, b"one more")
        await settle()
        link.conn.write_nowait(b"again")
        await link.peer.expect(BINARY, b"again")


@both_roles
async def test_write_frame_sends_fragments_with_control_frames_between_them(role: Role) -> None:
    """A message may go out in fragments; pings, pongs and answers to pings go between them."""
    async with connection(role) as link:
        await link.conn.write_frame(Opcode.TEXT, b"one, ", fin=False)
        await link.conn.write_ping(b"?")
        await link.conn.write_frame(Opcode.CONTINUATION, b"two, ", fin=False)
        await link.peer.send_frame(PING, b"!")
        await settle()
        await link.conn.write_frame(Opcode.CONTINUATION, b"three")
        await link.conn.write("next")
        link.listen()
        await settle()
        frames = parse_frames(bytes(link.peer.received))
        assert [frame.opcode for frame in frames] == [TEXT, PING, CONTINUATION, PONG, CONTINUATION, TEXT]
        assert link.judge() == [(PING, b"?"), (PONG, b"!"), (TEXT, b"one, two, three"), (TEXT, b"next")]


MISTAKES: dict[str, tuple[Callable[[Conn], Any], type[Exception]]] = {
    "write of bytes": (lambda conn: conn.write(b"data"), TypeError),
    "write of nothing": (lambda conn: conn.write(None), TypeError),
    "write of a lone surrogate": (lambda conn: conn.write("\ud800"), UnicodeEncodeError),
    "write_bin of text": (lambda conn: conn.write_bin("text"), TypeError),
    "send of a number": (lambda conn: conn.send(5), TypeError),
    "write_nowait of a number": (lambda conn: conn.write_nowait(5), TypeError),
    "write_nowait of a lone surrogate": (lambda conn: conn.write_nowait("\ud800"), UnicodeEncodeError),
    "a long ping": (lambda conn: conn.write_ping(b"." * 126), ValueError),
    "a long pong": (lambda conn: conn.write_pong(b"." * 126), ValueError),
    "a ping of text": (lambda conn: conn.write_ping("text"), TypeError),
    "an unknown opcode": (lambda conn: conn.write_frame(3, b""), ValueError),
    "a fragmented ping": (lambda conn: conn.write_frame(Opcode.PING, b"", fin=False), ValueError),
    "a long control frame": (lambda conn: conn.write_frame(Opcode.PONG, b"." * 126), ValueError),
    "a Close of one byte": (lambda conn: conn.write_frame(Opcode.CLOSE, b"\x03"), ValueError),
    "a Close with a bad code": (lambda conn: conn.write_frame(Opcode.CLOSE, code(1006)), ValueError),
    "a Close with a bad reason": (lambda conn: conn.write_frame(Opcode.CLOSE, b"\x03\xe8\xff"), ValueError),
    "a continuation of nothing": (lambda conn: conn.write_frame(Opcode.CONTINUATION), LocalProtocolError),
    "close with a reserved code": (lambda conn: conn.close(1005), ValueError),
    "close with a small code": (lambda conn: conn.close_with_code(999), ValueError),
    "close with a long reason": (lambda conn: conn.close_with_reason(1000, "ü" * 62), ValueError),
    "close with a lone surrogate": (lambda conn: conn.close(1000, "\ud800"), UnicodeEncodeError),
    "close_nowait with a bad code": (lambda conn: conn.close_nowait(1015), ValueError),
}


@pytest.mark.attack("A07", "A08")
@both_roles
@pytest.mark.parametrize(("call", "error"), MISTAKES.values(), ids=MISTAKES)
async def test_mistake_raises_and_leaves_the_connection_usable(
    role: Role, call: Callable[[Conn], Any], error: type[Exception]
) -> None:
    """A wrong argument is refused before anything is sent, and changes nothing."""
    async with connection(role) as link:
        with pytest.raises(error):
            await call(link.conn)
        assert link.conn.state is State.OPEN
        await link.conn.write("fine")
        await link.peer.expect(TEXT, b"fine")
        await link.peer.send_frame(TEXT, b"fine, too")
        assert await link.conn.receive() == "fine, too"


@pytest.mark.parametrize(
    "call",
    [
        lambda conn: conn.write("text"),
        lambda conn: conn.write_bin(b"data"),
        lambda conn: conn.write_frame(Opcode.TEXT, b""),
        lambda conn: conn.write_framed(frame_text("text")),
    ],
)
async def test_write_inside_a_fragmented_message_is_refused(call: Callable[[Conn], Awaitable[None]]) -> None:
    """Another message may not begin between the fragments of one; the message can still be finished."""
    async with connection() as link:
        await link.conn.write_frame(Opcode.TEXT, b"one ", fin=False)
        with pytest.raises(LocalProtocolError, match="a fragmented message is open"):
            await call(link.conn)
        await link.conn.write_frame(Opcode.CONTINUATION, b"two")
        link.listen()
        await settle()
        assert link.judge() == [(TEXT, b"one two")]


BEFORE_OPEN: dict[str, Callable[[Conn], Any]] = {
    "write": lambda conn: conn.write("text"),
    "write_nowait": lambda conn: conn.write_nowait("text"),
    "write_ping": lambda conn: conn.write_ping(),
    "write_frame": lambda conn: conn.write_frame(Opcode.TEXT, b""),
    "ping": lambda conn: conn.ping(),
    "send": lambda conn: conn.send("text"),
    "receive": lambda conn: conn.receive(),
    "read": lambda conn: conn.read(timeout=1),
    "iteration": lambda conn: conn.__anext__(),
    "close": lambda conn: conn.close(),
    "close_nowait": lambda conn: conn.close_nowait(),
    "send_eof": lambda conn: conn.send_eof(),
}


@both_roles
@pytest.mark.parametrize("call", BEFORE_OPEN.values(), ids=BEFORE_OPEN)
async def test_call_during_the_opening_handshake_is_refused(role: Role, call: Callable[[Conn], Any]) -> None:
    """Before the connection is open nothing can be written, received or closed, and the error says so."""
    async with connection(role, is_open=False) as link:
        assert link.conn.state is State.CONNECTING
        with pytest.raises(LocalProtocolError, match="the opening handshake is not done"):
            await call(link.conn)
        link.conn.open(None)
        await link.conn.write("text")
        await link.peer.expect(TEXT, b"text")


# --- waiting for room -----------------------------------------------------------------------------------

WAITING: dict[str, Do] = {
    "write": lambda link: link.conn.write("x"),
    "write_bin": lambda link: link.conn.write_bin(b"x"),
    "write_frame": lambda link: link.conn.write_frame(Opcode.BINARY, b"x"),
    "write_framed": lambda link: link.conn.write_framed(frame_text("x")),
    "write_ping": lambda link: link.conn.write_ping(b"x"),
    "write_pong": lambda link: link.conn.write_pong(b"x"),
    "send": lambda link: link.conn.send("x"),
}


@pytest.mark.attack("R01")
@pytest.mark.parametrize("write", [*WAITING.values(), lambda link: link.conn.ping()], ids=[*WAITING, "ping"])
async def test_write_waits_while_the_outbox_is_full_and_then_goes_out(write: Do) -> None:
    """Above ``outbox_size`` every way of writing waits; what waited goes out when there is room."""
    async with connection(capacity=50, outbox_size=50) as link:
        await link.fill_outbox()
        before = link.transport.buffered
        link.beside(write, link)
        await settle()
        assert link.transport.buffered == before
        await link.peer.frame()
        frame = await link.peer.frame()
        assert frame.payload == b"x" or (frame.opcode == PING and len(frame.payload) == 8)


@pytest.mark.attack("T01")
@swept
@pytest.mark.parametrize("write", WAITING.values(), ids=WAITING)
async def test_write_cancelled_while_it_waits_has_sent_nothing(how: str, write: Do) -> None:
    """Whenever a waiting write is cancelled its frame is not sent, and the frames around it are whole."""
    async for cut in every_cut(how, at_least=1):
        async with connection(capacity=50, outbox_size=50) as link:
            first = await link.fill_outbox()
            link.listen()
            await cut(write(link))
            await link.conn.write("last")
            await settle()
            middle = [data for _, data in link.judge()[1:-1]]
            assert middle == ([] if cut.happened else [b"x"])
            assert link.judge()[0] == (BINARY, first)
            assert link.judge()[-1] == (TEXT, b"last")


@pytest.mark.attack("T01")
@swept
@both_roles
async def test_writes_that_returned_are_on_the_wire_and_no_others(how: str, role: Role) -> None:
    """However a writer is cancelled, the peer gets whole frames: those whose ``write`` returned."""
    async for cut in every_cut(how, at_least=10):
        async with connection(role, capacity=30, outbox_size=30) as link:
            written = []

            async def write_all(link: Link, written: list[tuple[int, bytes]]) -> None:
                for number in range(20):
                    data = b"%02d" % number * 10
                    await link.conn.write_bin(data)
                    written.append((BINARY, data))

            link.listen()
            await cut(write_all(link, written))
            await link.conn.write("last")
            await settle()
            assert link.judge() == [*written, (TEXT, b"last")]


@pytest.mark.attack("T01")
@swept
async def test_fragmented_message_can_be_finished_after_a_cancellation(how: str) -> None:
    """A cancelled fragment is not sent; the message can go on where it stands."""
    async for cut in every_cut(how, at_least=5):
        async with connection(capacity=10, outbox_size=10) as link:
            fragments = [b"%d" % number * 9 for number in range(10)]
            written = []

            async def write_fragments(link: Link, fragments: list[bytes], written: list[bytes]) -> None:
                for number, data in enumerate(fragments):
                    opcode = Opcode.CONTINUATION if number else Opcode.BINARY
                    await link.conn.write_frame(opcode, data, fin=False)
                    written.append(data)

            link.listen()
            await cut(write_fragments(link, fragments, written))
            await link.conn.write_frame(Opcode.CONTINUATION if written else Opcode.BINARY, b"end")
            await settle()
            assert link.judge() == [(BINARY, b"".join(written) + b"end")]
            assert cut.happened or written == fragments


@pytest.mark.attack("T07")
@both_roles
@pytest.mark.parametrize("outbox_size", [0, 100, 65_536])
async def test_many_writers_never_interleave_and_each_keeps_its_order(role: Role, outbox_size: int) -> None:
    """Frames of many tasks arrive whole, each task's in the order of its writes, control frames too."""
    async with connection(role, capacity=64, outbox_size=outbox_size) as link:

        async def write_all(writer: int) -> None:
            for number in range(20):
                data = b"%d:%d:" % (writer, number) + b"." * (writer * number % 90)
                if writer % 3 == 0:
                    await link.conn.write_ping(data)
                elif writer % 3 == 1:
                    await link.conn.write_bin(data)
                else:
                    await link.conn.write(data.decode())

        link.listen()
        async with anyio.create_task_group() as writers:
            for writer in range(9):
                writers.start_soon(write_all, writer)
        await settle()
        messages = link.judge()
        assert len(messages) == 9 * 20
        for writer in range(9):
            mine = [data.split(b":") for _, data in messages if data.startswith(b"%d:" % writer)]
            assert [int(number) for _, number, _ in mine] == list(range(20))
            assert [len(dots) for _, _, dots in mine] == [writer * number % 90 for number in range(20)]


@pytest.mark.attack("T07")
@both_roles
async def test_fragments_of_one_task_let_only_control_frames_of_others_between_them(role: Role) -> None:
    """Tasks that agree on turns may fragment; pings need no turn; every message arrives whole."""
    async with connection(role, capacity=64, outbox_size=100) as link:
        turn = anyio.Lock()

        async def write_fragmented(writer: int) -> None:
            for number in range(10):
                async with turn:
                    await link.conn.write_frame(Opcode.BINARY, b"%d:" % writer, fin=False)
                    await anyio.lowlevel.checkpoint()
                    await link.conn.write_frame(Opcode.CONTINUATION, b"%d:" % number, fin=False)
                    await link.conn.write_frame(Opcode.CONTINUATION, b"." * number)

        async def write_whole(writer: int) -> None:
            for number in range(10):
                async with turn:
                    await link.conn.write(f"{writer}:{number}:" + "." * number)

        async def write_pings(writer: int) -> None:
            for number in range(10):
                await link.conn.write_ping(b"%d:%d:" % (writer, number) + b"." * number)
                await anyio.lowlevel.checkpoint()

        link.listen()
        async with anyio.create_task_group() as writers:
            for writer in range(9):
                writers.start_soon((write_fragmented, write_whole, write_pings)[writer % 3], writer)
        await settle()
        messages = [data for _, data in link.judge()]
        for writer in range(9):
            mine = [data for data in messages if data.startswith(b"%d:" % writer)]
            assert mine == [b"%d:%d:" % (writer, number) + b"." * number for number in range(10)]


async def test_all_writers_that_wait_go_on_when_there_is_room() -> None:
    """Room wakes every waiting writer, those for whom it suffices write, and none is forgotten."""
    async with connection(capacity=50, outbox_size=50) as link:
        await link.fill_outbox()
        for number in range(20):
            link.beside(link.conn.write, f"writer {number}" + "." * 30)
        await settle()
        link.listen()
        await settle()
        wanted = {f"writer {number}".encode() for number in range(20)}
        assert {data.rstrip(b".") for _, data in link.judge()[1:]} == wanted


# --- receiving ------------------------------------------------------------------------------------------


@both_roles
@pytest.mark.parametrize("most", [math.inf, 1])
async def test_receive_returns_text_and_binary_messages_in_order(role: Role, most: float) -> None:
    """Text is ``str``, binary ``bytes``; fragments are joined; however the bytes are cut."""
    async with connection(role, most=most) as link:
        build = link.peer.build
        await link.peer.send(
            build(TEXT, "grüße".encode())
            + build(BINARY, b"")
            + build(TEXT, b"one ", fin=False)
            + build(PING, b"!")
            + build(CONTINUATION, b"two")
            + build(BINARY, b"." * 300)
        )
        assert [await link.conn.receive() for _ in range(4)] == ["grüße", b"", "one two", b"." * 300]
        await link.peer.expect(PONG, b"!")


async def test_receive_returns_text_unchecked_as_bytes_where_the_configuration_says_so() -> None:
    """With ``utf8="off"`` text is ``bytes``, valid or not."""
    async with connection(utf8="off") as link:
        await link.peer.send_frame(TEXT, b"\xff")
        assert await link.conn.receive() == b"\xff"


async def test_iteration_gives_the_messages_and_ends_with_the_connection() -> None:
    """``async for`` gives what arrives, and is over when the peer closes in order."""
    async with connection() as link:
        for data in (b"one", b"two", b"three"):
            await link.peer.send_frame(TEXT, data)
        await link.peer.send_close(1000)
        assert [message async for message in link.conn] == ["one", "two", "three"]


@virtual
async def test_read_returns_a_message_with_its_type_or_none_in_time() -> None:
    """``read`` tells text from binary, and gives up exactly after its timeout."""
    async with connection(utf8="off") as link:
        clock = Stopwatch()
        assert await link.conn.read(timeout=3) is None
        assert clock() == 3
        await link.peer.send_frame(TEXT, b"one")
        await link.peer.send_frame(BINARY, b"two")
        assert await link.conn.read(timeout=3) == Message(MessageType.TEXT, b"one")
        assert await link.conn.read() == Message(MessageType.BINARY, b"two")
        assert clock() == 3
        await link.peer.send_close(1000)
        with pytest.raises(ConnectionEnded):
            await link.conn.read(timeout=3)


@pytest.mark.attack("T02")
@virtual
async def test_read_that_times_out_as_a_message_arrives_loses_nothing() -> None:
    """At the very moment of the timeout a message is returned by this call or by the next."""
    async with connection() as link:

        async def send_at_each_second() -> None:
            for number in range(20):
                await anyio.sleep(1)
                await link.peer.send_frame(BINARY, b"%d" % number)
            await link.peer.send_close(1000)

        link.beside(send_at_each_second)
        received = []
        with pytest.raises(ConnectionEnded):
            while True:
                message = await link.conn.read(timeout=1)
                if message is not None:
                    received.append(message.data)
        assert received == [b"%d" % number for number in range(20)]


RECEIVERS: dict[str, Callable[[Conn], Awaitable[Any]]] = {
    "receive": lambda conn: conn.receive(),
    "read": lambda conn: conn.read(timeout=1),
    "iteration": lambda conn: conn.__anext__(),
    "dispatch_all": lambda conn: conn.dispatch_all(lambda message: None),
}


@pytest.mark.attack("T08")
@pytest.mark.parametrize("receive", RECEIVERS.values(), ids=RECEIVERS)
async def test_second_receiver_is_refused(receive: Callable[[Conn], Awaitable[Any]]) -> None:
    """While one task waits for a message another gets ``BusyResourceError``, and the first its message."""
    async with connection() as link:
        received: list[Any] = []

        async def first() -> None:
            received.append(await link.conn.receive())

        link.beside(first)
        await settle()
        with pytest.raises(anyio.BusyResourceError):
            await receive(link.conn)
        await link.peer.send_frame(TEXT, b"for the first")
        await settle()
        assert received == ["for the first"]


@pytest.mark.attack("T08")
async def test_second_receiver_is_refused_between_the_arrival_and_the_first_one() -> None:
    """A message that has arrived for a waiting task is not given to one that comes later."""
    async with connection() as link:
        received: list[Any] = []

        async def first() -> None:
            received.append(await link.conn.receive())

        link.beside(first)
        await settle()
        link.conn.data_received(link.peer.build(TEXT, b"for the first"))
        with pytest.raises(anyio.BusyResourceError):
            await link.conn.receive()
        await settle()
        assert received == ["for the first"]


@pytest.mark.attack("T02", "T08")
async def test_receiver_that_was_cancelled_makes_place_for_another() -> None:
    """After a cancellation the next task may receive, and gets what the first would have got."""
    async with connection() as link:
        with anyio.CancelScope() as scope:
            link.beside(settle_and, scope.cancel)
            await link.conn.receive()
        await link.peer.send_frame(TEXT, b"for the second")
        assert await link.conn.receive() == "for the second"


async def settle_and(call: Callable[[], object]) -> None:
    """Call something once every other task waits."""
    await settle()
    call()


@pytest.mark.attack("T02")
@swept
async def test_receive_cancelled_anywhere_loses_duplicates_and_reorders_nothing(how: str) -> None:
    """Whenever a receiving task is cancelled, the next one goes on with the very next message."""
    wanted = [b"%d" % number for number in range(12)]
    async for cut in every_cut(how, at_least=5):
        async with connection(most=10, inbox_size=100) as link:
            received: list[Any] = []

            async def send_all(link: Link) -> None:
                for data in wanted:
                    await link.peer.send_frame(BINARY, data)
                    for _ in range(8 * (len(data) == 1)):  # some one by one, some in a rush
                        await anyio.lowlevel.checkpoint()
                await link.peer.send_close(1000)

            async def receive_all(link: Link, received: list[Any]) -> None:
                async for data in link.conn:
                    received.append(data)  # noqa: PERF401 - one by one is what is tested

            link.beside(send_all, link)
            await cut(receive_all(link, received))
            await receive_all(link, received)
            assert received == wanted


@pytest.mark.attack("T02")
@on_asyncio
async def test_receive_in_a_task_cancelled_right_after_the_arrival_loses_nothing() -> None:
    """asyncio's own ``task.cancel()`` after the message has arrived, before the task ran: it stays."""
    async with connection() as link:
        task = asyncio.ensure_future(link.conn.receive())
        await settle()
        link.conn.data_received(link.peer.build(TEXT, b"one") + link.peer.build(TEXT, b"two"))
        task.cancel()
        await asyncio.wait([task])
        received = [] if task.cancelled() else [task.result()]
        while len(received) < 2:
            received.append(await link.conn.receive())
        assert received == ["one", "two"]


@pytest.mark.attack("T02")
@pytest.mark.parametrize("anyio_backend", [virtual.args[1][0]])
async def test_receive_in_wait_for_that_times_out_at_the_arrival_loses_nothing() -> None:
    """``asyncio.wait_for(conn.receive(), 1)`` with a message each second: all arrive, once, in order."""
    async with connection() as link:

        async def send_at_each_second() -> None:
            for number in range(20):
                await anyio.sleep(1)
                await link.peer.send_frame(BINARY, b"%d" % number)

        link.beside(send_at_each_second)
        received: list[Any] = []
        while len(received) < 20:
            try:
                received.append(await asyncio.wait_for(link.conn.receive(), 1))
            except asyncio.TimeoutError:  # noqa: UP041 - another class on Python 3.10
                continue
        assert received == [b"%d" % number for number in range(20)]


# --- the inbox ------------------------------------------------------------------------------------------


@pytest.mark.attack("R03")
async def test_inbox_stops_reading_at_its_size_and_resumes_at_half_of_it() -> None:
    """A peer that is faster than the application is slowed down by its own stream; nothing is lost."""
    cost = 64 + 36  # what a message of 36 bytes counts
    async with connection(most=42, inbox_size=10 * cost) as link:
        for number in range(30):
            await link.peer.send_frame(BINARY, b"%36d" % number)
        await settle()
        assert not link.transport.reading
        assert link.stream.received == 10 * 42  # a frame of 36 bytes has 42
        for number in range(4):
            assert await link.conn.receive() == b"%36d" % number
            await settle()
            assert not link.transport.reading
        assert await link.conn.receive() == b"%36d" % 4
        await settle()
        assert link.stream.received == 15 * 42
        for number in range(5, 30):
            assert await link.conn.receive() == b"%36d" % number
        assert link.transport.reading


@pytest.mark.attack("R03")
async def test_inbox_counts_empty_messages_too() -> None:
    """A message without data takes memory as well; endless empty ones stop the reading."""
    async with connection(most=6, inbox_size=640) as link:
        await link.peer.send(link.peer.build(TEXT) * 1000)
        await settle()
        assert link.stream.received == 6 * 10


@pytest.mark.attack("R03")
async def test_ping_behind_a_full_inbox_is_answered_when_reading_goes_on() -> None:
    """What is not read cannot be answered; it is, as soon as the application catches up."""
    async with connection(most=42, inbox_size=100) as link:
        await link.peer.send_frame(BINARY, b"." * 36)
        await link.peer.send_frame(PING, b"?")
        await settle()
        assert link.stream.sent == []
        await link.conn.receive()
        await link.peer.expect(PONG, b"?")


# --- what the opening handshake hands on ----------------------------------------------------------------


@both_roles
async def test_early_data_is_received_first(role: Role) -> None:
    """Bytes that came behind the opening handshake are the first of the connection."""
    key = b"mask" if role is Role.SERVER else None
    early = build_frame(TEXT, b"early", key=key) + build_frame(TEXT, b"half", key=key)[:-2]
    async with connection(role, early=early) as link:
        assert await link.conn.receive() == "early"
        await link.peer.send(build_frame(TEXT, b"half", key=key)[-2:])
        assert await link.conn.receive() == "half"


@pytest.mark.attack("T12")
async def test_early_close_is_answered_and_the_messages_before_it_are_received() -> None:
    """A message and a Close right behind the opening handshake: one is received, the other answered."""
    early = build_frame(TEXT, b"early", key=b"mask") + build_frame(CLOSE, code(1000), key=b"mask")
    async with connection(early=early) as link:
        assert await link.conn.receive() == "early"
        await link.conn.write("echo")
        with pytest.raises(ConnectionEnded):
            await link.conn.receive()
        await link.peer.expect(TEXT, b"echo")
        await link.peer.expect_close(1000)
        await link.peer.expect_end()


async def test_early_data_that_fills_the_inbox_stops_the_reading() -> None:
    """Early data counts like any other: reading begins when there is room."""
    early = build_frame(BINARY, b"." * 36, key=b"mask") * 10
    async with connection(inbox_size=1000, early=early) as link:
        await link.peer.send_frame(TEXT, b"later")
        await settle()
        assert link.stream.calls["receive"] == 0
        for _ in range(10):
            await link.conn.receive()
        assert await link.conn.receive() == "later"


async def test_open_tells_the_subprotocol() -> None:
    """What the opening handshake agreed on is there from then on."""
    async with connection(is_open=False) as link:
        assert link.conn.subprotocol is None
        link.conn.open("chat")
        assert link.conn.subprotocol == "chat"


async def test_open_of_a_connection_that_was_lost_is_refused() -> None:
    """A connection that has gone in its opening handshake cannot be opened any more."""
    async with connection(is_open=False) as link:
        link.conn.abort()
        await link.conn.wait_gone()
        with pytest.raises(LocalProtocolError):
            link.conn.open(None)


# --- pings ----------------------------------------------------------------------------------------------


async def test_ping_returns_when_its_pong_comes_and_notes_the_latency() -> None:
    """``ping`` waits for the Pong with its own payload; ``latency`` is what it returned."""
    async with connection() as link:
        assert link.conn.latency is None
        results = []

        async def ping() -> None:
            results.append(await link.conn.ping())

        link.beside(ping)
        frame = await link.peer.frame()
        assert frame.opcode == PING
        await link.peer.send_frame(PONG, b"something else")
        await settle()
        assert results == []
        await link.peer.send_frame(PONG, frame.payload)
        await settle()
        assert results == [link.conn.latency]
        assert results[0] >= 0


@virtual
async def test_ping_returns_the_round_trip_time() -> None:
    """The time is that of the event loop's clock, from the Ping to the arrival of its Pong."""
    async with connection() as link:

        async def answer() -> None:
            frame = await link.peer.frame()
            await anyio.sleep(0.25)
            await link.peer.send_frame(PONG, frame.payload)

        link.beside(answer)
        assert await link.conn.ping() == pytest.approx(0.25)
        assert link.conn.latency == pytest.approx(0.25)


async def test_pings_of_several_tasks_each_get_their_own_pong() -> None:
    """Pongs find the Ping with their payload, in whatever order they come."""
    async with connection() as link:
        done: list[int] = []

        async def ping(number: int) -> None:
            await link.conn.ping()
            done.append(number)

        payloads = []
        for number in range(3):
            link.beside(ping, number)
            payloads.append((await link.peer.frame()).payload)
        await link.peer.send_frame(PONG, payloads[0])
        await settle()
        assert done == [0]
        await link.peer.send_frame(PONG, payloads[1])
        await settle()
        assert done == [0, 1]
        await link.peer.send_frame(PONG, payloads[2])
        await settle()
        assert done == [0, 1, 2]


@pytest.mark.attack("R04")
async def test_ping_is_answered_by_the_pong_of_a_later_ping() -> None:
    """"If an endpoint receives a Ping frame and has not yet sent Pong frame(s) in response to previous
    Ping frame(s), [it] MAY elect to send a Pong frame for only the most recently processed Ping frame"
    (RFC 6455 §5.5.3): the Pong of the last Ping returns all that were sent before."""
    async with connection() as link:
        done: list[int] = []

        async def ping(number: int) -> None:
            await link.conn.ping()
            done.append(number)

        payloads = []
        for number in range(4):
            link.beside(ping, number)
            payloads.append((await link.peer.frame()).payload)
        await link.peer.send_frame(PONG, payloads[2])
        await settle()
        assert sorted(done) == [0, 1, 2]
        await link.peer.send_frame(PONG, payloads[3])
        await settle()
        assert sorted(done) == [0, 1, 2, 3]


@pytest.mark.attack("R06")
@pytest.mark.parametrize("payload", [b"", b"unknown", b"." * 125])
async def test_pong_without_a_ping_is_ignored(payload: bytes) -> None:
    """A Pong that answers nothing is fine: "A response to an unsolicited Pong frame is not expected"."""
    async with connection() as link:
        await link.peer.send_frame(PONG, payload)
        await link.peer.send_frame(TEXT, b"go on")
        assert await link.conn.receive() == "go on"
        assert link.conn.latency is None
        assert link.stream.sent == []


@pytest.mark.attack("T05", "R06")
@swept
async def test_ping_cancelled_anywhere_leaves_nothing_behind(how: str) -> None:
    """Whenever a ping is cancelled, its Pong is ignored when it comes, and is not remembered."""
    async for cut in every_cut(how, at_least=1):
        async with connection(capacity=50, outbox_size=50) as link:
            await link.fill_outbox()

            async def answer(link: Link) -> None:
                while True:
                    frame = await link.peer.frame()
                    if frame.opcode == PING:
                        await link.peer.send_frame(PONG, frame.payload)

            link.beside(answer, link)
            await cut(link.conn.ping())
            await settle()
            assert link.conn._pings == {}
            await link.peer.send_frame(TEXT, b"go on")
            assert await link.conn.receive() == "go on"


@both_roles
async def test_ping_of_the_peer_is_answered_at_once_and_not_received(role: Role) -> None:
    """Its Pong has the same payload, whatever the application is doing."""
    async with connection(role) as link:
        for payload in (b"", b"payload", b"." * 125):
            await link.peer.send_frame(PING, payload)
            await link.peer.expect(PONG, payload)
        await link.peer.send_frame(TEXT, b"a message")
        assert await link.conn.receive() == "a message"


@pytest.mark.attack("T11")
async def test_ping_is_answered_while_a_hook_is_busy() -> None:
    """A hook that takes long holds up messages, and no answers to pings."""
    async with connection() as link:
        go_on = anyio.Event()

        async def hook(message: Message) -> None:
            await go_on.wait()
            await link.conn.write("done")

        link.beside(link.conn.dispatch_all, hook)
        await link.peer.send_frame(TEXT, b"work")
        await settle()
        await link.peer.send_frame(PING, b"?")
        await link.peer.expect(PONG, b"?")
        go_on.set()
        await link.peer.expect(TEXT, b"done")


@pytest.mark.attack("R04")
async def test_pings_of_a_peer_that_reads_nothing_get_one_pong_the_latest() -> None:
    """While the outbox is full one Pong waits at most, for the latest Ping; memory does not grow."""
    async with connection(capacity=1000, outbox_size=100) as link:
        await link.conn.write_bin(b"." * 1200)
        await settle()
        assert link.transport.full
        before = link.transport.buffered
        for number in range(1000):
            await link.peer.send_frame(PING, b"%d" % number)
        await settle()
        assert link.transport.buffered == before
        await link.peer.expect(BINARY, b"." * 1200)
        await link.peer.expect(PONG, b"999")
        await link.peer.send_frame(PING, b"now")
        await link.peer.expect(PONG, b"now")


@pytest.mark.attack("R04")
async def test_pong_that_waits_goes_out_before_the_writers_that_wait() -> None:
    """When there is room the Pong is not behind a crowd of writers."""
    async with connection(capacity=50, outbox_size=50) as link:
        await link.fill_outbox()
        for _ in range(5):
            link.beside(link.conn.write_bin, b"." * 60)
        await link.peer.send_frame(PING, b"?")
        await settle()
        await link.peer.frame()
        await link.peer.expect(PONG, b"?")


async def test_ping_after_our_close_is_not_answered() -> None:
    """After our Close nothing may be sent any more (RFC 6455 §5.5.1)."""
    async with connection() as link:
        await link.conn.send_eof()
        await link.peer.send_frame(PING, b"?")
        await link.peer.send_close(1000)
        await link.peer.expect_close(1000)
        await link.peer.expect_end()


PING_ENDS: dict[str, Do] = {
    "the peer closes": lambda link: link.peer.send_close(1000),
    "the stream ends": lambda link: link.wire.aclose(),
    "we close": lambda link: link.conn.send_eof(),
    "abort": lambda link: run(link.conn.abort),
}


async def run(call: Callable[[], object]) -> None:
    """Call a function where an awaitable is needed."""
    call()


@pytest.mark.parametrize("end", PING_ENDS.values(), ids=PING_ENDS)
async def test_ping_raises_when_the_connection_ends_first(end: Do) -> None:
    """A ping does not wait for a Pong that cannot come any more."""
    async with connection() as link:
        link.listen()
        link.beside(settle_then, link, end)
        with pytest.raises(ConnectionClosed):
            await link.conn.ping()
        assert link.conn._pings == {}


async def settle_then(link: Link, do: Do) -> None:
    """Do something once every other task waits, and have the peer answer a Close."""
    await settle()
    await do(link)
    if link.conn.state is State.CLOSE_SENT:
        await link.peer.send_close(1000)
