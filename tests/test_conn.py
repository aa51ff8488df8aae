"""One connection: what it writes, receives and answers, when it waits, and every way in which it ends.

One end is a real connection; the other is bytes. Tests that need time run with a clock that jumps.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import ObjectStream, SocketAttribute

from anyio_ws.closing import LINGER, ConnectionBroken, ConnectionEnded, ConnectionShut
from anyio_ws.conn import Conn
from anyio_ws.events import Message, MessageType, Opcode
from anyio_ws.exceptions import ConnectionClosed, LocalProtocolError, RemoteProtocolError
from anyio_ws.framing import frame_bin, frame_text
from anyio_ws.protocol import Role, State

from .frames import build_frame, parse_frames
from .memory import (
    CONTINUATION,
    Link,
    Steps,
    Stopwatch,
    both_roles,
    connection,
    every_cut,
    hold_up,
    judge,
    on_asyncio,
    settle,
    shuffle,
    swept,
)
from .support import BINARY, CLOSE, PING, PONG, TEXT, virtual

Do = Callable[[Link], Awaitable[object]]


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


MISTAKES: dict[str, tuple[Callable[[Any], Any], type[Exception]]] = {
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
    async for cut in every_cut(how, at_least=8):
        async with connection(role, capacity=30, outbox_size=30) as link:
            written: list[Any] = []

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
            written: list[Any] = []

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

        link.beside(send_at_each_second)
        received: list[Any] = []
        while len(received) < 20:
            message = await link.conn.read(timeout=1)
            received += [] if message is None else [message.data]
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
    wanted = [b"%d" % number for number in range(7, 13)]
    async for cut in every_cut(how, at_least=3):
        async with connection(most=10, inbox_size=100) as link:
            received: list[Any] = []

            async def send_all(link: Link) -> None:
                for data in wanted:
                    await link.peer.send_frame(BINARY, data)
                    for _ in range(6 * (len(data) == 1)):  # some one by one, some in a rush
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
    """With asyncio's own ``task.cancel()`` after the message has arrived, before the task ran: it stays."""
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
            except (asyncio.TimeoutError, TimeoutError):  # two classes on Python 3.10
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


@pytest.mark.attack("T12")
@pytest.mark.parametrize("last", [build_frame(CLOSE, code(1000), key=b"mask"), b"\xff\xff"])
async def test_early_last_word_is_the_last_that_is_read(last: bytes) -> None:
    """Behind an early Close or violation nothing is read, the end of the stream included."""
    async with connection(early=build_frame(TEXT, b"early", key=b"mask") + last) as link:
        await link.peer.send(b"ignored")
        await link.wire.send_eof()
        await settle()
        link.conn.eof_received()  # a transport that reads ahead may tell it all the same
        assert link.stream.calls["receive"] == 0
        assert await link.conn.receive() == "early"
        await link.conn.write("echo")
        await link.peer.expect(TEXT, b"echo")
        with pytest.raises(ConnectionClosed):
            await link.conn.receive()
        assert (await link.peer.frame()).opcode == CLOSE
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


async def send_pings(link: Link, count: int) -> tuple[list[int], list[bytes]]:
    """Have so many tasks send a Ping; return who has its Pong, which grows, and the payloads in order."""
    done: list[int] = []

    async def ping(number: int) -> None:
        await link.conn.ping()
        done.append(number)

    payloads = []
    for number in range(count):
        link.beside(ping, number)
        payloads.append((await link.peer.frame()).payload)
    return done, payloads


async def test_pings_of_several_tasks_each_get_their_own_pong() -> None:
    """Pongs find the Ping with their payload, in whatever order they come."""
    async with connection() as link:
        done, payloads = await send_pings(link, 3)
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
    """A peer may answer "only the most recently processed Ping frame" (RFC 6455 §5.5.3)."""
    async with connection() as link:
        done, payloads = await send_pings(link, 4)
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
            assert link.conn._need_pings()._waiting == {}
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


async def busy_hook(link: Link) -> anyio.Event:
    """Have a hook at work on a message until the event is set; then it writes "done"."""
    go_on = anyio.Event()

    async def hook(message: Message) -> None:
        await go_on.wait()
        await link.conn.write("done")

    link.beside(link.conn.dispatch_all, hook)
    await link.peer.send_frame(TEXT, b"work")
    await settle()
    return go_on


@pytest.mark.attack("T11")
async def test_ping_is_answered_while_a_hook_is_busy() -> None:
    """A hook that takes long holds up messages, and no answers to pings."""
    async with connection() as link:
        go_on = await busy_hook(link)
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
        assert link.transport.buffered == before + len(b"..999")
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
        assert link.conn._need_pings()._waiting == {}


async def settle_then(link: Link, do: Do) -> None:
    """Do something once every other task waits, and have the peer answer a Close."""
    await settle()
    await do(link)
    if link.conn.state is State.CLOSE_SENT:
        await link.peer.send_close(1000)


@virtual
@pytest.mark.attack("R05")
@pytest.mark.parametrize("role", Role)
async def test_control_frames_are_counted_second_by_second(role: Role) -> None:
    """``max_control_rate`` frames in each second are fine for ever; one more within it is 1008."""
    async with connection(role, max_control_rate=3) as link:
        for _ in range(4):
            for opcode in (PING, PONG, PING):
                await link.peer.send_frame(opcode)
            await link.peer.expect(PONG)
            await link.peer.expect(PONG)
            await anyio.sleep(1)
        await link.peer.send(link.peer.build(PING) * 3)
        for _ in range(3):
            await link.peer.expect(PONG)
        await anyio.sleep(0.99)
        await link.peer.send_frame(PONG)
        await link.peer.expect_close(1008, "more than 3 control frames in a second")


@pytest.mark.attack("R05")
async def test_control_frames_are_not_counted_where_that_is_not_wanted() -> None:
    """With ``max_control_rate=None`` any number of them is answered."""
    async with connection(max_control_rate=None) as link:
        await link.peer.send(link.peer.build(PING) * 20_000)
        for _ in range(20_000):
            await link.peer.expect(PONG)


# --- keepalive ------------------------------------------------------------------------------------------


async def note_pings(link: Link, times: list[float], *, answer: bool = True) -> None:
    """Be a peer that notes when it is pinged, and answers."""
    clock = Stopwatch()
    while True:
        frame = await link.peer.frame()
        assert frame.opcode == PING
        times.append(clock())
        if answer:
            await link.peer.send_frame(PONG, frame.payload)


@virtual
@both_roles
@pytest.mark.parametrize("timeout", [3, 10, 25])
async def test_keepalive_pings_at_each_interval(role: Role, timeout: float) -> None:
    """A Ping goes out every ``ping_interval`` seconds, whatever ``ping_timeout`` is."""
    async with connection(role, ping_interval=10, ping_timeout=timeout) as link:
        times: list[float] = []
        link.beside(partial(note_pings, link, times))
        await anyio.sleep(45)
        assert times == [10, 20, 30, 40]
        assert link.conn.state is State.OPEN


@virtual
@pytest.mark.parametrize("timeout", [3, 10, 25])
async def test_keepalive_has_one_deadline_however_many_pings_there_were(timeout: float) -> None:
    """What an idle connection takes does not grow with its age."""
    async with connection(ping_interval=10, ping_timeout=timeout) as link:
        link.beside(partial(note_pings, link, []))
        counts = []
        for _ in range(4):
            waiting = [each for each in link.conn._deadlines._heap if each[2].callback is not None]
            counts.append(len(waiting))
            await anyio.sleep(11)
        assert counts == [1, 1, 1, 1]


@virtual
async def test_keepalive_can_be_switched_off() -> None:
    """With ``ping_interval=None`` nothing is sent, and silence is fine."""
    async with connection(ping_interval=None) as link:
        await anyio.sleep(1000)
        assert link.stream.sent == []
        await link.peer.send_frame(TEXT, b"still here")
        assert await link.conn.receive() == "still here"


@virtual
@both_roles
@pytest.mark.attack("R09")
@pytest.mark.parametrize("interval", [5, 10, 30])
async def test_keepalive_aborts_a_silent_peer_in_time(role: Role, interval: float) -> None:
    """Without a word from the peer ``ping_timeout`` seconds after a Ping the connection is broken: 1006."""
    async with connection(role, ping_interval=interval, ping_timeout=10) as link:
        link.listen()
        clock = Stopwatch()
        with pytest.raises(ConnectionBroken) as caught:
            await link.conn.receive()
        assert clock() == interval + 10
        assert caught.value.code == 1006
        assert isinstance(caught.value.__cause__, TimeoutError)


@virtual
@pytest.mark.attack("R09")
@pytest.mark.parametrize("timeout", [5, 10, 20])
async def test_keepalive_notices_within_interval_and_timeout_that_a_peer_has_gone_silent(
    timeout: float,
) -> None:
    """A peer that dies right after its last Pong is noticed after interval + timeout seconds at most."""
    async with connection(ping_interval=10, ping_timeout=timeout) as link:
        frame = await link.peer.frame()
        await link.peer.send_frame(PONG, frame.payload)
        clock = Stopwatch()
        link.listen()
        with pytest.raises(ConnectionBroken):
            await link.conn.receive()
        assert clock() <= 10 + timeout


@virtual
@pytest.mark.attack("R09", "R01")
async def test_keepalive_aborts_a_peer_that_reads_nothing_while_the_outbox_is_full() -> None:
    """A stuck write does not hold up keepalive: the deadline is no part of the writing."""
    async with connection(
        capacity=50, outbox_size=50, ping_interval=10, ping_timeout=5, write_timeout=1000
    ) as link:
        clock = Stopwatch()
        await link.fill_outbox()
        with pytest.raises(ConnectionBroken) as caught:
            await link.conn.write("this waits")
        assert clock() == 15
        assert caught.value.code == 1006


@virtual
@pytest.mark.attack("R09", "R11")
@pytest.mark.parametrize("heard", ["a pong", "a message", "one byte"])
async def test_keepalive_is_content_with_anything_that_is_heard(heard: str) -> None:
    """Whoever sends anything is alive, even if it is not the Pong; a stalled frame is not for ever."""
    async with connection(ping_interval=10, ping_timeout=5) as link:
        link.listen()
        pong = link.peer.build(PONG, b"of another ping")
        data = {"a pong": pong, "a message": link.peer.build(TEXT, b"hello"), "one byte": pong[:1]}[heard]
        await anyio.sleep(14)
        await link.peer.send(data)
        await anyio.sleep(10)
        assert not link.conn.is_closed
        await anyio.sleep(2)
        assert link.conn.is_closed


@virtual
@both_roles
@pytest.mark.attack("R09", "R15")
async def test_keepalive_does_not_take_a_slow_reader_for_a_silent_peer(role: Role) -> None:
    """A peer that takes a long message slowly, and says nothing meanwhile, is not cut off."""
    async with connection(role, capacity=1_000, ping_interval=10, ping_timeout=5) as link:
        data = bytes(1_000_000)
        link.beside(link.conn.write_bin, data)
        for _ in range(950):  # a thousand bytes at a time
            link.peer.received += await link.wire.receive()
            await anyio.sleep(0.04)
        assert anyio.current_time() > 30
        assert link.conn.state is State.OPEN
        link.listen()
        await settle()
        assert [message for message in link.judge() if message[0] != PING] == [(BINARY, data)]


@virtual
@both_roles
@pytest.mark.attack("R09", "R15")
async def test_keepalive_ping_does_not_wait_for_the_rest_of_a_long_message(role: Role) -> None:
    """It goes where the frame that is being sent ends: the peer has it, and can answer, in good time."""
    async with connection(role, capacity=1_000, ping_interval=10, ping_timeout=5) as link:
        await link.conn.write_bin(bytes(1_000_000))
        await anyio.sleep(11)
        link.listen()
        await settle()
        assert [message for message in link.judge() if message[0] != PING] == [(BINARY, bytes(1_000_000))]
        opcodes = [frame.opcode for frame in parse_frames(bytes(link.peer.received))]
        assert opcodes.count(PING) == 1
        assert opcodes.index(PING) <= 3


@virtual
@pytest.mark.attack("R09")
@pytest.mark.parametrize("busy", [14.0, 15.0, 16.0, 40.0])
async def test_keepalive_does_not_take_our_own_slowness_for_a_silent_peer(busy: float) -> None:
    """While a full inbox stops the reading the peer's Pong cannot be heard; that is not its fault."""
    async with connection(most=42, inbox_size=100, ping_interval=10, ping_timeout=5) as link:
        times: list[float] = []
        link.beside(partial(note_pings, link, times))
        await link.peer.send_frame(BINARY, b"." * 36)
        await settle()
        assert not link.transport.reading
        await anyio.sleep(busy)
        assert await link.conn.receive() == b"." * 36
        await anyio.sleep(1)
        assert link.conn.state is State.OPEN
        await link.peer.send_frame(TEXT, b"I was here all the time")
        assert await link.conn.receive() == "I was here all the time"


@virtual
@both_roles
@pytest.mark.attack("R09")
async def test_keepalive_does_not_count_the_time_in_which_the_event_loop_was_held_up(role: Role) -> None:
    """While a hook blocks, the peer's Pong waits in the kernel: the check comes later by as much."""
    async with connection(role, ping_interval=10, ping_timeout=5) as link:
        frame = await link.peer.frame()
        hold_up(60)
        await anyio.sleep(4)
        assert link.conn.state is State.OPEN
        await link.peer.send_frame(PONG, frame.payload)
        await settle()
        await anyio.sleep(10)
        assert link.conn.state is State.OPEN


@virtual
@pytest.mark.attack("R09")
async def test_keepalive_waits_once_for_an_event_loop_that_was_held_up() -> None:
    """However often it is held up: a peer that stays silent is cut off."""
    async with connection(ping_interval=10, ping_timeout=5) as link:
        clock = Stopwatch()
        await link.peer.frame()
        hold_up(7)  # the check is 2 seconds late, so the next is in 2 seconds
        await anyio.sleep(1)
        assert link.conn.state is State.OPEN
        hold_up(60)
        await link.conn.wait_gone()
        assert link.conn.close_code == 1006
        assert clock() == 10 + 7 + 1 + 60


@virtual
@pytest.mark.attack("R09")
async def test_keepalive_does_not_disturb_the_answer_to_a_close_that_waits() -> None:
    """After its Close a peer sends no Pongs; while its last message is handled that is its right."""
    async with connection(ping_interval=1, ping_timeout=1, close_timeout=60) as link:

        async def hook(message: Message) -> None:
            await anyio.sleep(30)
            await link.conn.write("done")

        link.beside(link.conn.dispatch_all, hook)
        await link.peer.send_frame(TEXT, b"work")
        await link.peer.send_close(1000)
        link.listen()
        await link.conn.wait_gone()
        data = [message for message in link.judge() if message[0] != PING]
        assert data == [(TEXT, b"done"), (CLOSE, code(1000))]


@virtual
async def test_keepalive_notes_the_latency_once() -> None:
    """The Pong of a keepalive Ping tells the latency; the same Pong again tells nothing."""
    async with connection(ping_interval=10, ping_timeout=10) as link:
        frame = await link.peer.frame()
        await anyio.sleep(0.5)
        await link.peer.send_frame(PONG, frame.payload)
        await settle()
        assert link.conn.latency == pytest.approx(0.5)
        await anyio.sleep(2)
        await link.peer.send_frame(PONG, frame.payload)
        await settle()
        assert link.conn.latency == pytest.approx(0.5)


# --- closing: our Close ---------------------------------------------------------------------------------

CLOSES: dict[str, tuple[Do, tuple[int, str]]] = {
    "close": (lambda link: link.conn.close(), (1000, "")),
    "close with code and reason": (lambda link: link.conn.close(4000, "grüße"), (4000, "grüße")),
    "close_with_code": (lambda link: link.conn.close_with_code(1001), (1001, "")),
    "close_with_reason": (lambda link: link.conn.close_with_reason(3000, "b" * 123), (3000, "b" * 123)),
    "close_nowait": (lambda link: run(partial(link.conn.close_nowait, 1011, "oh")), (1011, "oh")),
    "aclose": (lambda link: link.conn.aclose(), (1000, "")),
    "send_eof": (lambda link: link.conn.send_eof(), (1000, "")),
    "go_away": (lambda link: run(partial(link.conn.go_away, 1001, "bye")), (1001, "bye")),
    "write_frame": (lambda link: link.conn.write_frame(Opcode.CLOSE, code(4001, "x")), (4001, "x")),
}


@both_roles
@pytest.mark.parametrize(("close", "said"), CLOSES.values(), ids=CLOSES)
async def test_close_sends_its_close_and_ends_when_the_peer_answers(
    role: Role, close: Do, said: tuple[int, str]
) -> None:
    """After the peer's answer the server ends the stream, and the client waits for that (§7.1.1)."""
    async with connection(role) as link:
        link.beside(close, link)
        await link.peer.expect_close(*said)
        assert link.conn.state is State.CLOSE_SENT
        assert link.conn.is_closed
        assert link.conn.close_code is None
        await link.peer.send_frame(CLOSE, code(*said))
        await settle()
        assert link.conn.close_code == said[0]
        assert link.transport.ended is (role is Role.SERVER)
        if role is Role.SERVER:
            await link.peer.expect_end()
        else:
            await link.wire.aclose()
        await link.conn.wait_gone()
        assert (link.conn.close_code, link.conn.close_reason, link.conn.closed_by) == (*said, role)


async def test_close_returns_when_the_connection_is_gone() -> None:
    """``close`` waits for the end, and a second one finds it and returns at once."""
    async with connection(Role.CLIENT) as link:
        done: list[str] = []

        async def close() -> None:
            await link.conn.close()
            done.append("closed")

        link.beside(close)
        await link.peer.expect_close(1000)
        await link.peer.send_close(1000)
        await settle()
        assert done == []
        await link.wire.aclose()
        await settle()
        assert done == ["closed"]
        assert await steps_of(link.conn.close()) <= 1


async def test_close_code_is_the_one_the_peer_answers_with() -> None:
    """§7.1.5: the code is that of the Close that was received, whatever ours was."""
    async with connection() as link:
        link.conn.close_nowait(1000)
        await link.peer.send_frame(CLOSE, code(4000, "why"))
        await link.conn.wait_gone()
        assert (link.conn.close_code, link.conn.close_reason) == (4000, "why")
        assert link.conn.closed_by is Role.SERVER


@virtual
@both_roles
@pytest.mark.parametrize("reads", [True, False])
async def test_close_gives_up_on_a_peer_that_does_not_answer_exactly_in_time(role: Role, reads: bool) -> None:
    """After ``close_timeout`` seconds the connection is aborted, full outbox or not: 1006."""
    async with connection(role, capacity=50, outbox_size=50, close_timeout=3) as link:
        if reads:
            link.listen()
        else:
            await link.fill_outbox()
        clock = Stopwatch()
        await link.conn.close(4000)
        assert clock() == 3
        assert link.conn.close_code == 1006
        assert isinstance(link.conn._cause, TimeoutError)


@virtual
async def test_close_of_a_client_gives_up_on_a_server_that_keeps_the_stream_open() -> None:
    """A server that answers the Close and does not close the stream is left after ``close_timeout``."""
    async with connection(Role.CLIENT, close_timeout=3) as link:
        clock = Stopwatch()
        link.beside(link.peer.send_close, 1000)
        await link.conn.close()
        assert clock() == 3
        assert link.conn.close_code == 1000


@pytest.mark.attack("T10")
@both_roles
async def test_close_from_many_tasks_sends_one_close(role: Role) -> None:
    """Whoever closes first decides; all others only wait for the end, which comes once."""
    async with connection(role) as link:
        done: list[int] = []

        async def close(number: int) -> None:
            await link.conn.close(4000 + number)
            done.append(number)

        for number in range(5):
            link.beside(close, number)
        await settle()
        link.conn.close_nowait(4999)
        await link.conn.send_eof()
        frame = await link.peer.frame()
        await link.peer.send_frame(CLOSE, frame.payload)
        await link.wire.send_eof()
        assert await link.peer.rest() == b""
        await settle()
        assert sorted(done) == [0, 1, 2, 3, 4]


@both_roles
async def test_close_discards_messages_from_then_on(role: Role) -> None:
    """What waited to be received, and what still comes, is not given to anybody."""
    async with connection(role) as link:
        await link.peer.send_frame(TEXT, b"before")
        await settle()
        link.conn.close_nowait()
        await link.peer.send_frame(TEXT, b"after")
        with pytest.raises(ConnectionShut):
            await link.conn.receive()
        assert [message async for message in link.conn] == []
        await link.peer.send_close(1000)
        await settle()
        assert link.conn.state is State.CLOSED


@pytest.mark.attack("R03")
async def test_close_reads_on_although_the_inbox_was_full() -> None:
    """The peer's answer may be behind messages that nobody received; they do not block the close."""
    async with connection(most=42, inbox_size=100) as link:
        for _ in range(10):
            await link.peer.send_frame(BINARY, b"." * 36)
        await link.peer.send_close(1000)
        await settle()
        assert not link.transport.reading
        await link.conn.close()
        assert link.conn.close_code == 1000


async def test_close_after_send_eof_reads_on_although_the_inbox_was_full() -> None:
    """Our Close may be out already, as when the server stops: who forgets messages makes room to read on."""
    async with connection(most=42, inbox_size=100) as link:
        await link.conn.send_eof()
        for _ in range(10):
            await link.peer.send_frame(BINARY, b"." * 36)
        await link.peer.send_close(1000)
        await settle()
        assert not link.transport.reading
        await link.conn.close()
        assert link.conn.close_code == 1000


async def test_send_eof_lets_the_peer_finish() -> None:
    """After ``send_eof`` nothing can be sent, and what the peer still sends is received."""
    async with connection() as link:
        await link.conn.send_eof()
        await link.conn.send_eof()
        with pytest.raises(ConnectionShut):
            await link.conn.send("more")
        await link.peer.send_frame(TEXT, b"last words")
        await link.peer.send_close(1000)
        assert await link.conn.receive() == "last words"
        with pytest.raises(ConnectionEnded):
            await link.conn.receive()
        await link.peer.expect_close(1000)
        await link.peer.expect_end()


@pytest.mark.attack("R03")
async def test_send_eof_reads_on_although_the_inbox_was_full() -> None:
    """Our Close resumes the reading, and a bounded inbox still loses nothing."""
    async with connection(most=42, inbox_size=100) as link:
        for number in range(10):
            await link.peer.send_frame(BINARY, b"%36d" % number)
        await link.peer.send_close(1000)
        await settle()
        await link.conn.send_eof()
        assert [int(data) async for data in link.conn] == list(range(10))


async def test_async_with_closes_in_order() -> None:
    """``async with conn`` closes at the end of the block, as with every AnyIO resource."""
    async with connection() as link:
        link.beside(link.peer.send_close, 1000)
        async with link.conn as conn:
            assert conn is link.conn
        assert link.conn.close_code == 1000
        await link.peer.expect_close(1000)


@pytest.mark.attack("T04")
@swept
@both_roles
async def test_close_cancelled_anywhere_closes_all_the_same(how: str, role: Role) -> None:
    """Cancelling ``close`` ends the waiting and not the closing."""
    async for cut in every_cut(how, at_least=1):
        async with connection(role, capacity=20) as link:
            await link.conn.write("a message of more than twenty bytes")
            link.beside(answer_close, link)
            await cut(link.conn.close(4000))
            await link.conn.wait_gone()
            assert link.conn.close_code == 4000
            assert link.conn.losses == [None]
            await link.peer.expect_end()


async def answer_close(link: Link) -> None:
    """Be a peer that reads everything up to a Close, answers it, and then ends the stream."""
    opcode = TEXT
    while opcode != CLOSE:
        frame = await link.peer.frame()
        opcode = frame.opcode
    await link.peer.send_close(4000)
    await link.wire.send_eof()


@virtual
@pytest.mark.attack("T04")
async def test_close_cancelled_is_still_bounded() -> None:
    """A cancelled ``close`` leaves no connection to a peer that never answers."""
    async with connection(close_timeout=3) as link:
        clock = Stopwatch()
        with anyio.move_on_after(1):
            await link.conn.close()
        assert clock() == 1
        await link.conn.wait_gone()
        assert clock() == 3


@virtual
@pytest.mark.attack("T04")
async def test_aclose_cancelled_aborts() -> None:
    """AnyIO: "If aclose() is cancelled, the resource is closed forcefully": at once, without a peer."""
    async with connection(close_timeout=3) as link:
        clock = Stopwatch()
        with anyio.move_on_after(1):
            await link.conn.aclose()
        await link.conn.wait_gone()
        assert clock() == 1
        assert link.conn.close_code == 1006


async def test_aclose_in_a_cancelled_scope_aborts_at_once() -> None:
    """``anyio.aclose_forcefully`` works as it does everywhere."""
    async with connection() as link:
        await anyio.aclose_forcefully(link.conn)
        await link.conn.wait_gone()
        assert link.conn.close_code == 1006
        with pytest.raises(ConnectionShut):
            await link.conn.write("too late")


async def test_aclose_twice_is_harmless() -> None:
    """A resource may be closed again."""
    async with connection() as link:
        link.beside(link.peer.send_close, 1000)
        await link.conn.aclose()
        await link.conn.aclose()


@both_roles
async def test_aclose_during_the_opening_handshake_cuts_the_connection(role: Role) -> None:
    """Where no Close can be sent yet the stream is closed, and the call returns when it is."""
    async with connection(role, is_open=False) as link:
        await link.conn.aclose()
        assert link.transport.ended
        assert link.stream.sent == []


# --- closing: the peer's Close --------------------------------------------------------------------------


@both_roles
@pytest.mark.attack("F26")
@pytest.mark.parametrize(
    ("payload", "number", "reason"),
    [(b"", 1005, ""), (code(1000), 1000, ""), (code(4999, "grüße"), 4999, "grüße")],
)
async def test_close_of_the_peer_is_answered_with_its_code(
    role: Role, payload: bytes, number: int, reason: str
) -> None:
    """An idle connection answers at once, nobody needs to receive: the code comes back, none for none."""
    async with connection(role) as link:
        await link.peer.send_frame(CLOSE, payload)
        frame = await link.peer.frame()
        assert (frame.opcode, frame.payload) == (CLOSE, payload[:2])
        await link.wire.send_eof()
        await link.conn.wait_gone()
        assert (link.conn.close_code, link.conn.close_reason) == (number, reason)
        assert link.conn.closed_by is not role
        assert link.conn.closed_by is not None


@pytest.mark.attack("F25")
async def test_frames_behind_the_close_of_the_peer_are_discarded() -> None:
    """After a Close nothing counts: no message, no Ping, no second Close."""
    async with connection() as link:
        build = link.peer.build
        await link.peer.send(
            build(TEXT, b"before")
            + build(CLOSE, code(1000))
            + build(TEXT, b"after")
            + build(PING, b"?")
            + build(CLOSE, code(4000))
        )
        assert [message async for message in link.conn] == ["before"]
        await link.peer.expect_close(1000)
        await link.peer.expect_end()
        assert link.conn.close_code == 1000


@pytest.mark.attack("T12")
@both_roles
@pytest.mark.parametrize("hook", [True, False])
async def test_messages_and_close_in_one_read_are_all_delivered_and_can_be_echoed(
    role: Role, hook: bool
) -> None:
    """Messages right before a Close are received, and their echoes sent, whoever runs when."""
    for seed in range(40):
        shuffle(seed)
        async with connection(role) as link:
            messages = [b"%d" % number for number in range(seed % 5 + 1)]
            data = b"".join(link.peer.build(TEXT, data) for data in messages)
            link.beside(link.peer.send, data + link.peer.build(CLOSE, code(1000)))
            link.listen()
            for _ in range(seed % 7):  # the application comes early or late
                await anyio.lowlevel.checkpoint()
            if hook:
                await link.conn.dispatch_all(partial(echo_one, link))
            else:
                with pytest.raises(ConnectionEnded):
                    await echo(link)
            await link.wire.send_eof()
            await link.conn.wait_gone()
            await settle()
            assert link.judge() == [*((TEXT, data) for data in messages), (CLOSE, code(1000))]


@pytest.mark.attack("T12")
async def test_close_that_comes_before_the_first_hook_waits_for_it() -> None:
    """A handler that is busy before its first message may write, although the peer closes meanwhile."""
    async with connection(is_open=False) as link:
        link.conn.open(None, busy=True)
        await link.peer.send_close(1000)
        await settle()
        await link.conn.write("welcome")
        await link.conn.dispatch_all(lambda message: None)
        await link.peer.expect(TEXT, b"welcome")
        await link.peer.expect_close(1000)
        await link.peer.expect_end()


@pytest.mark.attack("R12")
@pytest.mark.parametrize("hook", [True, False])
async def test_receiving_lets_other_tasks_run_every_256_messages(hook: bool) -> None:
    """However many messages one read has brought, no other connection waits for all of them."""
    async with connection() as link:
        handled: list[int] = [0]
        bystander: list[int] = []

        async def watch() -> None:
            while handled[0] < 5000:
                bystander.append(handled[0])
                await anyio.lowlevel.checkpoint()

        def count(message: object) -> None:
            handled[0] += 1

        await link.peer.send(link.peer.build(TEXT) * 5000)
        await link.peer.send_close(1000)
        await settle()
        link.beside(watch)
        if hook:
            await link.conn.dispatch_all(count)
        else:
            async for message in link.conn:
                count(message)
        assert handled == [5000]
        # Trio shuffles: a task may run first in one round and last in the next.
        assert max(b - a for a, b in pairwise([*bystander, 5000])) <= 2 * 256


@pytest.mark.attack("T12")
async def test_close_of_the_peer_is_answered_when_the_hook_is_done() -> None:
    """While a hook handles a message the Close behind it waits; what the hook writes is sent."""
    async with connection() as link:
        go_on = await busy_hook(link)
        await link.peer.send_close(1000)
        await settle()
        assert link.conn.state is State.CLOSE_RECEIVED
        assert not link.conn.is_closed
        assert link.stream.sent == []
        go_on.set()
        await link.peer.expect(TEXT, b"done")
        await link.peer.expect_close(1000)
        await link.peer.expect_end()


@virtual
@pytest.mark.parametrize("received", [False, True])
async def test_close_of_the_peer_is_answered_in_time_whatever_the_application_does(received: bool) -> None:
    """Messages that nobody takes, or a hook that hangs, hold it up for ``close_timeout`` seconds."""
    async with connection(close_timeout=4) as link:
        clock = Stopwatch()
        if received:
            link.beside(link.conn.dispatch_all, lambda message: anyio.sleep_forever())
        await link.peer.send_frame(TEXT, b"work")
        await settle()
        await link.peer.send_close(1000)
        await link.peer.expect_close(1000)
        assert clock() == 4
        await link.peer.expect_end()
        if not received:
            assert [message async for message in link.conn] == ["work"]


@virtual
async def test_close_of_the_peer_goes_no_further_when_it_does_not_read() -> None:
    """Our answer to a peer that reads nothing is given up after ``close_timeout`` seconds."""
    async with connection(capacity=50, outbox_size=50, close_timeout=4) as link:
        await link.fill_outbox()
        clock = Stopwatch()
        await link.peer.send_close(1000)
        await link.conn.wait_gone()
        assert clock() == 4
        assert link.conn.close_code == 1000


@virtual
async def test_messages_before_a_close_reach_a_hook_whose_writes_were_given_up() -> None:
    """A hook stuck in a write when the peer's Close is answered may go on: nothing before it is lost."""
    async with connection(capacity=50, outbox_size=50, close_timeout=4) as link:
        received, failed = [], []

        async def hook(message: Message) -> None:
            received.append(message.data)
            try:
                await link.conn.write("an answer that the peer does not read")
            except ConnectionBroken as exc:
                failed.append(exc.code)

        link.beside(link.conn.dispatch_all, hook)
        messages = [f"message {number}" for number in range(20)]
        for message in messages:
            await link.peer.send_frame(TEXT, message.encode())
        await link.peer.send_close(1000)
        await link.conn.wait_gone()
        await settle()
        assert received == messages
        assert len(failed) > 10
        assert set(failed) == {1000}


@pytest.mark.attack("T10", "T11")
@both_roles
async def test_close_inside_a_hook_is_the_answer_to_a_close_that_waits(role: Role) -> None:
    """A hook that closes while the peer's Close waits answers it, with its own code, once."""
    async with connection(role) as link:

        async def hook(message: Message) -> None:
            await link.peer.send_close(1000)
            await settle()
            await link.wire.send_eof()
            await link.conn.close(4000, "enough")

        link.beside(link.conn.dispatch_all, hook)
        await link.peer.send_frame(TEXT, b"work")
        await link.peer.expect_close(4000, "enough")
        await link.peer.expect_end()
        assert link.conn.close_code == 1000


@pytest.mark.attack("T09")
async def test_close_on_both_sides_in_any_order_ends_with_one_close_each() -> None:
    """A client and a server that close at about the same moment both complete, with the same codes."""
    for delay in range(-8, 9):
        async with connection(Role.SERVER) as server, connection(Role.CLIENT) as client:
            sent: dict[Link, bytes] = {server: b"", client: b""}

            async def carry(source: Link, target: Link, sent: dict[Link, bytes]) -> None:
                """Be the network from one end to the other."""
                try:
                    while True:
                        data = await source.wire.receive()
                        sent[source] += data
                        await target.wire.send(data)
                except anyio.EndOfStream:
                    await target.wire.send_eof()

            async def close(link: Link, ticks: int) -> None:
                for _ in range(ticks):
                    await anyio.lowlevel.checkpoint()
                await link.conn.close(4000)

            server.beside(carry, server, client, sent)
            client.beside(carry, client, server, sent)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(close, server, max(delay, 0))
                tasks.start_soon(close, client, max(-delay, 0))
            assert server.conn.close_code == client.conn.close_code == 4000
            assert judge_of(sent[server], Role.SERVER) == judge_of(sent[client], Role.CLIENT)
            assert judge_of(sent[server], Role.SERVER) == [(CLOSE, code(4000))]


def judge_of(wire: bytes, role: Role) -> list[tuple[int, bytes]]:
    """Judge what an end with this role has sent."""
    return judge(wire, masked=role is Role.CLIENT)


# --- control frames that are handed over ----------------------------------------------------------------


async def test_manual_ping_is_handed_over_and_not_answered() -> None:
    """Whoever asks for pings answers them, or not; ``receive`` gives messages only."""
    async with connection(manual=[MessageType.PING]) as link:
        await link.peer.send_frame(PING, b"1")
        assert await link.conn.read() == Message(MessageType.PING, b"1")
        await link.peer.send_frame(PING, b"2")
        await link.peer.send_frame(TEXT, b"text")
        assert await link.conn.receive() == "text"
        assert link.stream.sent == []


@pytest.mark.attack("R04")
async def test_manual_pings_are_bounded_by_the_inbox() -> None:
    """A flood of pings that are handed over stops the reading like one of messages."""
    async with connection(most=6, inbox_size=640, manual=[MessageType.PING]) as link:
        await link.peer.send(link.peer.build(PING) * 1000)
        await settle()
        assert link.stream.received == 6 * 10


async def test_manual_pong_is_handed_over_and_still_matched() -> None:
    """``ping`` works for those who ask for pongs, too."""
    async with connection(manual=[MessageType.PONG]) as link:
        link.beside(link.conn.ping)
        frame = await link.peer.frame()
        await link.peer.send_frame(PONG, frame.payload)
        assert await link.conn.read() == Message(MessageType.PONG, frame.payload)
        assert link.conn.latency is not None
        await link.peer.send_frame(PING, b"?")
        await link.peer.expect(PONG, b"?")


@both_roles
async def test_manual_close_is_handed_over_and_not_answered(role: Role) -> None:
    """Whoever asks for the Close may still write, and answer it; nothing is answered for it."""
    async with connection(role, manual=[MessageType.CLOSE]) as link:
        await link.peer.send_frame(CLOSE, code(4000, "bye"))
        message = await link.conn.read()
        assert message == Message(MessageType.CLOSE, code(4000, "bye"))
        await link.conn.write("wait")
        await link.conn.write_frame(Opcode.CLOSE, code(4001))
        await link.peer.expect(TEXT, b"wait")
        await link.peer.expect_close(4001)
        await link.wire.send_eof()
        await link.peer.expect_end()
        assert link.conn.close_code == 4000


async def test_manual_close_that_is_not_answered_ends_without_one() -> None:
    """When the application receives on, it has nothing to answer: the stream ends without a Close."""
    async with connection(manual=[MessageType.CLOSE]) as link:
        await link.peer.send_frame(CLOSE, code(4000))
        assert [message async for message in link.conn] == []
        await link.peer.expect_end()
        assert link.conn.close_code == 4000


@virtual
async def test_manual_close_that_nobody_receives_ends_in_time() -> None:
    """An application that looks away for ``close_timeout`` seconds does not keep the connection."""
    async with connection(close_timeout=4, manual=[MessageType.CLOSE]) as link:
        clock = Stopwatch()
        await link.peer.send_close(1000)
        await link.peer.expect_end()
        assert clock() == 4


# --- violations -----------------------------------------------------------------------------------------

VIOLATIONS: dict[str, tuple[bytes, int]] = {
    "a reserved opcode": (build_frame(3, key=b"mask"), 1002),
    "a frame without a mask": (build_frame(TEXT, b"x"), 1002),
    "text that is not UTF-8": (build_frame(TEXT, b"\xff", key=b"mask"), 1007),
    "a message that is too long": (build_frame(BINARY, b"." * 1001, key=b"mask"), 1009),
    "a Close with a bad code": (build_frame(CLOSE, code(1006), key=b"mask"), 1002),
}


@pytest.mark.attack("F27")
@pytest.mark.parametrize(("data", "number"), VIOLATIONS.values(), ids=VIOLATIONS)
async def test_violation_is_told_to_the_peer_before_the_stream_ends(data: bytes, number: int) -> None:
    """An idle connection fails at once: the peer reads a Close that says why, then the end."""
    async with connection(max_message_size=1000) as link:
        await link.peer.send(data + link.peer.build(TEXT, b"ignored"))
        frame = await link.peer.frame()
        assert (frame.opcode, frame.payload[:2]) == (CLOSE, code(number))
        assert 0 < len(frame.payload[2:].decode()) <= 123
        await link.peer.expect_end()
        await link.wire.aclose()
        await link.conn.wait_gone()
        with pytest.raises(ConnectionBroken) as caught:
            await link.conn.receive()
        assert caught.value.code == link.conn.close_code == number
        assert isinstance(caught.value.__cause__, RemoteProtocolError)
        assert link.conn.closed_by is Role.SERVER


@pytest.mark.attack("F27")
@pytest.mark.parametrize("hook", [True, False])
async def test_violation_waits_for_the_messages_before_it(hook: bool) -> None:
    """Good messages in the same read are received, and answered, before the failing Close."""
    async with connection() as link:
        good = [b"one", b"two", b"three"]
        await link.peer.send(b"".join(link.peer.build(TEXT, data) for data in good) + b"\xff\xff")
        link.listen()
        if hook:
            await link.conn.dispatch_all(partial(echo_one, link))
        else:
            with pytest.raises(ConnectionBroken):
                await echo(link)
        await settle()
        *echoes, (opcode, payload) = link.judge()
        assert echoes == [(TEXT, data) for data in good]
        assert (opcode, payload[:2]) == (CLOSE, code(1002))


@virtual
@pytest.mark.attack("F27")
async def test_violation_is_told_in_time_whatever_the_application_does() -> None:
    """A hook that hangs holds up the failing Close for ``close_timeout`` seconds."""
    async with connection(close_timeout=4) as link:
        clock = Stopwatch()
        link.beside(link.conn.dispatch_all, lambda message: anyio.sleep_forever())
        await link.peer.send_frame(TEXT, b"work")
        await link.peer.send(b"\xff\xff")
        frame = await link.peer.frame()
        assert frame.payload[:2] == code(1002)
        assert clock() == 4


@virtual
@pytest.mark.attack("F27")
async def test_violation_by_a_peer_that_does_not_close_is_cut_after_two_seconds() -> None:
    """A peer that reads our Close and does nothing has had its time."""
    async with connection() as link:
        await link.peer.send(b"\xff\xff")
        clock = Stopwatch()
        await link.peer.frame()
        await link.conn.wait_gone()
        assert clock() == LINGER == 2


@virtual
@pytest.mark.attack("F27")
async def test_violation_is_not_prolonged_by_receiving_again_and_again() -> None:
    """However often the application asks, the connection of a violating peer is gone after two seconds."""
    async with connection() as link:
        await link.peer.send(b"\xff\xff")
        await settle()
        clock = Stopwatch()
        while not link.transport.ended:
            with pytest.raises(ConnectionBroken):
                await link.conn.receive()
            await anyio.sleep(0.3)
        assert clock() < LINGER + 0.3


@pytest.mark.attack("F27")
@pytest.mark.parametrize("busy", [False, True])
async def test_violation_by_a_peer_that_keeps_sending_is_cut_after_64_kib(busy: bool) -> None:
    """Behind a violation nothing is read but to let our Close through; not even while a hook is busy."""
    async with connection(capacity=100_000) as link:
        go_on = anyio.Event()
        if busy:
            link.beside(link.conn.dispatch_all, lambda message: go_on.wait())
            await link.peer.send_frame(TEXT, b"work")
            await settle()
        link.beside(link.peer.send, b"\xff\xff" + b"." * 10_000_000)
        await settle()
        assert link.stream.received < 1_000_000
        go_on.set()
        await settle()
        assert link.transport.ended
        assert link.stream.received < 1_000_000
        frame = await link.peer.frame()
        assert frame.payload[:2] == code(1002)


@virtual
@pytest.mark.parametrize("close", [lambda conn: conn.close(), lambda conn: conn.aclose()])
async def test_close_after_a_violation_does_not_wait_for_an_answer(close: Callable[[Conn], Any]) -> None:
    """A violating peer is not listened to any more, so it cannot answer; it is told what was wrong."""
    async with connection(close_timeout=60) as link:
        await link.peer.send(link.peer.build(TEXT, b"good") + b"\xff\xff")
        await settle()
        clock = Stopwatch()
        await close(link.conn)
        assert clock() == LINGER
        frame = await link.peer.frame()
        assert frame.payload[:2] == code(1002)


@virtual
@pytest.mark.parametrize("close", [lambda conn: conn.close_nowait(), lambda conn: conn.send_eof()])
async def test_violation_after_our_close_ends_the_waiting_for_an_answer(close: Callable[[Conn], Any]) -> None:
    """Instead of its answer the peer violates the protocol: there is nothing to wait for any more."""
    async with connection(close_timeout=60) as link:
        result = close(link.conn)
        if result is not None:
            await result
        await link.peer.send(b"\xff\xff")
        clock = Stopwatch()
        await link.conn.wait_gone()
        assert clock() == LINGER
        await link.peer.expect_close(1000)
        await link.peer.expect_end()


@virtual
async def test_violation_after_our_close_does_not_prolong_it() -> None:
    """Messages that nobody receives do not hold up the end of a connection that we have closed."""
    async with connection(close_timeout=4) as link:
        await link.conn.send_eof()
        clock = Stopwatch()
        await anyio.sleep(3)
        await link.peer.send(link.peer.build(TEXT, b"good") + b"\xff\xff")
        await link.conn.wait_gone()
        assert clock() == 4
        assert await link.conn.receive() == "good"


# --- every way in which a connection ends ---------------------------------------------------------------


async def end_by_peer(link: Link) -> None:
    await link.peer.send_frame(CLOSE, code(4000, "bye"))


async def end_by_us(link: Link) -> None:
    link.conn.close_nowait(4000, "bye")


async def end_by_us_answered(link: Link) -> None:
    link.conn.close_nowait(4000, "bye")
    await link.peer.send_frame(CLOSE, code(4000, "bye"))


async def end_by_send_eof(link: Link) -> None:
    await link.conn.send_eof()
    await link.peer.send_frame(CLOSE, code(1000))


async def end_by_failing(link: Link) -> None:
    link.conn.fail(1011, "oh")


async def end_without_close(link: Link) -> None:
    await link.wire.send_eof()


async def end_in_a_frame(link: Link) -> None:
    await link.peer.send(link.peer.build(TEXT, b"half of this")[:-6])
    await link.wire.send_eof()


async def end_by_reset(link: Link) -> None:
    link.stream.faults["receive", link.stream.calls["receive"] + 1] = anyio.BrokenResourceError()
    await link.peer.send_frame(PONG)


async def end_by_an_error_of_writing(link: Link) -> None:
    link.stream.faults["send", link.stream.calls["send"] + 1] = OSError("no route to host")
    await link.peer.send_frame(PING)


async def end_by_violation(link: Link) -> None:
    await link.peer.send(b"\xff\xff")


async def end_by_keepalive(link: Link) -> None:
    await anyio.sleep(30)


async def end_by_write_timeout(link: Link) -> None:
    link.stream.stuck.add("send")
    await link.conn.write("stuck")
    await anyio.sleep(30)


async def end_by_abort(link: Link) -> None:
    link.conn.abort()


async def end_by_abort_with_a_cause(link: Link) -> None:
    link.conn.abort(ZeroDivisionError())


class Ending(NamedTuple):
    """How a connection ends, and what is told about it afterwards."""

    end: Do
    receiving: type[ConnectionClosed]
    sending: type[ConnectionClosed]
    code: int
    reason: str = ""
    cause: type[Exception] | None = None

    def check(self, error: ConnectionClosed) -> None:
        """Check what an error says about the end, and that it is AnyIO's as well."""
        assert (error.code, error.reason) == (self.code, self.reason)
        assert type(error.__cause__) is (self.cause or type(None))
        anyios = {
            ConnectionEnded: anyio.EndOfStream,
            ConnectionShut: anyio.ClosedResourceError,
            ConnectionBroken: anyio.BrokenResourceError,
        }
        assert isinstance(error, anyios[type(error)])


ENDED, SHUT, BROKEN = ConnectionEnded, ConnectionShut, ConnectionBroken
ENDINGS = {
    "the peer's Close": Ending(end_by_peer, ENDED, BROKEN, 4000, "bye"),
    "our Close": Ending(end_by_us, SHUT, SHUT, 4000, "bye"),
    "our Close, answered": Ending(end_by_us_answered, SHUT, SHUT, 4000, "bye"),
    "send_eof, answered": Ending(end_by_send_eof, ENDED, SHUT, 1000),
    "our failure": Ending(end_by_failing, SHUT, SHUT, 1011, "oh"),
    "the end of the stream": Ending(end_without_close, BROKEN, BROKEN, 1006, "", EOFError),
    "the end inside a frame": Ending(end_in_a_frame, BROKEN, BROKEN, 1006, "", EOFError),
    "a reset": Ending(end_by_reset, BROKEN, BROKEN, 1006, "", anyio.BrokenResourceError),
    "an error of writing": Ending(end_by_an_error_of_writing, BROKEN, BROKEN, 1006, "", OSError),
    "abort": Ending(end_by_abort, BROKEN, BROKEN, 1006),
    "abort with a cause": Ending(end_by_abort_with_a_cause, BROKEN, BROKEN, 1006, "", ZeroDivisionError),
    "keepalive": Ending(end_by_keepalive, BROKEN, BROKEN, 1006, "", TimeoutError),
    "the write timeout": Ending(end_by_write_timeout, BROKEN, BROKEN, 1006, "", TimeoutError),
}
every_ending = pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
TIMES: dict[str, Any] = {"ping_interval": 20, "ping_timeout": 5, "write_timeout": 10}
SENDS: list[Callable[[Conn], Any]] = [
    lambda conn: conn.write("x"),
    lambda conn: conn.write_bin(b"x"),
    lambda conn: conn.write_nowait("x"),
    lambda conn: conn.write_framed(frame_text("x")),
    lambda conn: conn.write_frame(Opcode.TEXT, b"x"),
    lambda conn: conn.write_frame(Opcode.CLOSE, code(1000)),
    lambda conn: conn.write_ping(),
    lambda conn: conn.write_pong(),
    lambda conn: conn.send(b"x"),
    lambda conn: conn.ping(),
]


@virtual
@every_ending
@pytest.mark.attack("T17", "O01", "O02")
async def test_sending_on_a_connection_that_has_ended_raises_why(ending: Ending) -> None:
    """Every way of writing raises the documented class, with code, reason and cause; never another."""
    async with connection(**TIMES) as link:
        await ending.end(link)
        await settle()
        assert link.conn.is_closed
        for call in SENDS:
            with pytest.raises(ending.sending) as caught:
                await call(link.conn)
            ending.check(caught.value)


@virtual
@every_ending
@pytest.mark.attack("T17", "O01", "O02")
@pytest.mark.parametrize("waits", [True, False])
async def test_receiving_on_a_connection_that_has_ended_raises_why(waits: bool, ending: Ending) -> None:
    """A task that receives gets the documented class, an iteration ends or raises, hooks just end."""
    for receive in (Conn.receive, Conn.read, Conn.__anext__):
        async with connection(**TIMES) as link:
            if waits:
                link.beside(settle_then, link, ending.end)
            else:
                await ending.end(link)
                await settle()
            ended = ending.receiving is not ConnectionBroken and receive is Conn.__anext__
            with pytest.raises(StopAsyncIteration if ended else ending.receiving) as caught:
                await receive(link.conn)
            if isinstance(caught.value, ConnectionClosed):
                ending.check(caught.value)
            await link.conn.dispatch_all(lambda message: None)


@virtual
@every_ending
async def test_writers_that_wait_are_woken_by_the_end(ending: Ending) -> None:
    """All tasks that wait for room get the error as soon as nothing can be written any more."""
    async with connection(capacity=50, outbox_size=50, **TIMES) as link:
        await link.fill_outbox()
        errors: list[Any] = []

        async def write() -> None:
            try:
                await link.conn.write("waits")
            except ConnectionClosed as exc:
                errors.append(exc)

        for _ in range(3):
            link.beside(write)
        await settle()
        if ending.end in (end_by_write_timeout, end_by_an_error_of_writing, end_by_keepalive):
            await anyio.sleep(10)  # the full outbox is what ends it here, whatever comes later
            ending = ENDINGS["the write timeout"]
        else:
            await ending.end(link)
        await settle()
        assert link.conn.is_closed
        assert [type(error) for error in errors] == [ending.sending] * 3
        for error in errors:
            ending.check(error)


@virtual
@every_ending
@pytest.mark.attack("O02")
async def test_messages_that_had_arrived_are_received_after_the_end(ending: Ending) -> None:
    """Complete messages outlive a connection that this side did not close; half a message does not."""
    async with connection(**TIMES) as link:
        await link.peer.send_frame(TEXT, b"one")
        await link.peer.send_frame(TEXT, b"two")
        await settle()
        await ending.end(link)
        await settle()
        if ending.end not in (end_by_us, end_by_us_answered):
            assert await link.conn.receive() == "one"
            assert await link.conn.receive() == "two"
        with pytest.raises(ending.receiving):
            await link.conn.receive()


@virtual
@every_ending
async def test_state_after_the_end_says_what_happened(ending: Ending) -> None:
    """Once it is gone a connection is CLOSED, and its code and reason are those of its errors."""
    async with connection(close_timeout=1, **TIMES) as link:
        link.listen()
        await ending.end(link)
        await link.conn.wait_gone()
        assert link.conn.state is State.CLOSED
        assert link.conn.is_closed
        if ending.end is end_by_us:  # nobody has answered
            ending = ending._replace(code=1006, reason="")
        assert (link.conn.close_code, link.conn.close_reason) == (ending.code, ending.reason)


@pytest.mark.attack("O04")
@both_roles
@pytest.mark.parametrize("error", [OSError("x"), ValueError("x"), anyio.ClosedResourceError()], ids=repr)
@pytest.mark.parametrize("method", ["receive", "send", "send_eof", "aclose"])
async def test_stream_that_raises_at_any_call_breaks_its_connection_only(
    role: Role, error: Exception, method: str
) -> None:
    """Whatever the stream raises, at whichever call, the application sees only ``ConnectionClosed``."""
    for nth in range(1, 6):
        async with connection(role, most=10) as link:
            link.stream.faults[method, nth] = error
            link.listen()
            link.beside(echo, link)
            link.beside(converse_and_violate, link)
            await settle()
            await link.wire.aclose()
            await link.conn.wait_gone()
            assert len(link.conn.losses) == 1


async def converse_and_violate(link: Link) -> None:
    """Be a peer that sends a few messages, one by one, and then something that is wrong."""
    for number in range(4):
        await link.peer.send_frame(TEXT, b"%d" % number)
        for _ in range(10):
            await anyio.lowlevel.checkpoint()
    await link.peer.send(b"\xff\xff")


async def echo_one(link: Link, message: Message) -> None:
    """Be a hook that echoes its message."""
    assert not isinstance(message.data, memoryview)
    await link.conn.send(message.data)


async def echo(link: Link) -> None:
    """Echo messages; the end must be a ``ConnectionClosed``, which :meth:`Link.beside` expects."""
    while True:
        await link.conn.send(await link.conn.receive())


# --- abort, fail, go_away -------------------------------------------------------------------------------


@virtual
@pytest.mark.parametrize("full", [False, True])
async def test_abort_cuts_the_connection_at_once(full: bool) -> None:
    """No closing handshake, no waiting, not even for a stream that closes slowly."""
    async with connection(capacity=50, outbox_size=50) as link:
        link.stream.stuck.add("aclose")
        if full:
            await link.fill_outbox()
        clock = Stopwatch()
        link.conn.abort()
        with pytest.raises(ConnectionBroken):
            await link.conn.write("too late")
        await link.conn.wait_gone()
        assert clock() == 0
        assert link.conn.close_code == 1006


async def test_abort_after_the_end_changes_nothing() -> None:
    """A connection that has ended in order stays so, whatever is called afterwards."""
    async with connection() as link:
        await link.peer.send_close(1000)
        await link.conn.wait_gone()
        link.conn.abort(ZeroDivisionError())
        link.conn.fail(1011)
        link.conn.go_away(1001, "")
        link.conn.close_nowait()
        assert link.conn.close_code == 1000
        assert link.conn.closed_by is Role.CLIENT


async def test_fail_after_an_abort_changes_nothing() -> None:
    """There is nobody left to be told."""
    async with connection() as link:
        link.conn.abort()
        await link.conn.wait_gone()
        link.conn.fail(1011)
        link.conn.go_away(1001, "")
        assert link.conn.close_code == 1006
        assert link.stream.sent == []


async def test_abort_with_a_cause_after_the_end_does_not_become_its_cause() -> None:
    """What errors say about an orderly end is not changed by a late ``abort``."""
    async with connection() as link:
        await link.peer.send_close(1000)
        await link.conn.wait_gone()
        link.conn.abort(ZeroDivisionError())
        with pytest.raises(ConnectionEnded) as caught:
            await link.conn.receive()
        assert caught.value.__cause__ is None


async def test_go_away_still_hands_over_what_was_received() -> None:
    """A connection that this end leaves has time for the messages that are there."""
    async with connection() as link:
        await link.peer.send_frame(TEXT, b"one")
        await settle()
        link.conn.go_away(1001, "restart")
        link.conn.go_away(1000, "a second time")
        await link.peer.send_frame(TEXT, b"two")
        await link.peer.expect_close(1001, "restart")
        await link.peer.send_close(1001)
        assert [message async for message in link.conn] == ["one", "two"]
        await link.peer.expect_end()


async def test_fail_says_why_and_drops_what_comes_later() -> None:
    """*Fail the connection*: a Close with the code, then the end; what was there can still be received."""
    async with connection() as link:
        await link.peer.send_frame(TEXT, b"one")
        await settle()
        link.conn.fail(1011, "oh")
        await link.peer.send_frame(TEXT, b"two")
        await link.peer.expect_close(1011, "oh")
        await link.peer.expect_end()
        assert await link.conn.receive() == "one"
        with pytest.raises(ConnectionClosed):
            await link.conn.receive()
        assert link.conn.close_code == 1011


# --- hooks ----------------------------------------------------------------------------------------------


async def test_dispatch_all_calls_the_hook_in_order_one_at_a_time() -> None:
    """The next message is given when the hook is done with the last, be it ``def`` or ``async def``."""
    async with connection() as link:
        events: list[str] = []

        async def slow(message: Message) -> None:
            events.append(f"begin {message.data!r}")
            await anyio.lowlevel.checkpoint()
            events.append(f"end {message.data!r}")

        def dispatch(message: Message) -> Any:
            if message.type is MessageType.TEXT:
                return slow(message)
            events.append(f"def {message.data!r}")
            return None

        build = link.peer.build
        await link.peer.send(build(TEXT, b"1") + build(BINARY, b"2") + build(TEXT, b"3"))
        await link.peer.send_close(1000)
        await link.conn.dispatch_all(dispatch)
        assert events == ["begin '1'", "end '1'", "def b'2'", "begin '3'", "end '3'"]


async def test_dispatch_all_raises_what_the_hook_raises() -> None:
    """An error of the hook goes to whoever runs it; the connection can still be used."""
    async with connection() as link:
        await link.peer.send_frame(TEXT, b"one")
        await link.peer.send_frame(TEXT, b"two")
        with pytest.raises(ZeroDivisionError):
            await link.conn.dispatch_all(lambda message: 1 // 0)
        assert await link.conn.receive() == "two"
        await link.peer.send_close(1000)
        await link.peer.expect_close(1000)


async def test_dispatch_all_takes_a_closed_connection_of_the_hook_for_an_error() -> None:
    """A ``ConnectionClosed`` that the hook raises may be about another connection; it is not swallowed."""
    async with connection() as link:

        def hook(message: Message) -> None:
            raise ConnectionBroken(1006)

        await link.peer.send_frame(TEXT, b"one")
        with pytest.raises(ConnectionBroken):
            await link.conn.dispatch_all(hook)


@pytest.mark.attack("T10", "T11")
async def test_hook_may_receive_write_and_close() -> None:
    """Inside a hook everything works: the next message can be received, and the connection closed."""
    async with connection() as link:
        received: list[Any] = []

        async def hook(message: Message) -> None:
            received.extend((message.data, await link.conn.receive()))
            await link.conn.write("enough")
            link.beside(link.peer.send_close, 4000)
            await link.conn.close(4000)
            received.append("closed")

        for data in (b"one", b"two", b"three"):
            await link.peer.send_frame(TEXT, data)
        await link.conn.dispatch_all(hook)
        assert received == ["one", "two", "closed"]
        await link.peer.expect(TEXT, b"enough")
        await link.peer.expect_close(4000)


@pytest.mark.attack("T02")
@swept
async def test_dispatch_all_cancelled_anywhere_gives_each_message_to_one_hook(how: str) -> None:
    """Whenever the dispatching is cancelled, a message is with a hook or still there, never both."""
    wanted = [b"%d" % number for number in range(8)]
    async for cut in every_cut(how, at_least=5):
        async with connection() as link:
            given: list[Any] = []

            async def hook(message: Message, given: list[Any]) -> None:
                given.append(message.data)
                await anyio.lowlevel.checkpoint()

            async def dispatch(link: Link, given: list[Any]) -> None:
                await link.conn.dispatch_all(lambda message: hook(message, given))

            for data in wanted:
                await link.peer.send_frame(BINARY, data)
            await link.peer.send_close(1000)
            await cut(dispatch(link, given))
            await dispatch(link, given)
            assert given == wanted
            await link.peer.expect_close(1000)


@pytest.mark.attack("T01", "T02", "T04", "T07")
@swept
@both_roles
async def test_conversation_cancelled_anywhere_stays_whole(how: str, role: Role) -> None:
    """Pings and fragments through small buffers, cut anywhere and then closed, are whole on the wire."""
    async for cut in every_cut(how, at_least=5):
        async with connection(role, capacity=40, outbox_size=40, inbox_size=100, most=7) as link:
            received: list[Any] = []

            async def converse(link: Link, received: list[Any]) -> None:
                with contextlib.suppress(ConnectionClosed):  # the peer closes when it likes
                    async for data in link.conn:
                        assert isinstance(data, bytes)
                        received.append(data)
                        await link.conn.write_frame(Opcode.BINARY, data[:1], fin=False)
                        await link.conn.write_ping(data)
                        await link.conn.write_frame(Opcode.CONTINUATION, data[1:] * 20)

            async def send_all(link: Link) -> None:
                for number in range(6):
                    await link.peer.send_frame(BINARY, b"%d" % number * 3)
                    await link.peer.send_frame(PING, b"?")
                await link.peer.send_close(4000)
                await link.wire.send_eof()

            link.listen()
            link.beside(send_all, link)
            await cut(converse(link, received))
            link.conn.close_nowait(4000)
            await link.conn.wait_gone()
            await settle()
            frames = parse_frames(bytes(link.peer.received))
            assert frames[-1].opcode == CLOSE
            opcodes = [frame.opcode for frame in frames if frame.opcode in (BINARY, CONTINUATION, PING)]
            whole, rest = divmod(len(opcodes), 3)
            assert opcodes == [BINARY, PING, CONTINUATION] * whole + [BINARY, PING][:rest]
            assert len(received) in (whole, whole + 1)
            assert received == [b"%d" % number * 3 for number in range(len(received))]


# --- what it is -----------------------------------------------------------------------------------------


async def test_conn_has_an_id_and_a_repr() -> None:
    """Connections can be told apart, and a log line shows their state."""
    async with connection() as first, connection() as second:
        assert first.conn.id != second.conn.id
        assert repr(first.conn) == f"<WatchedConn {first.conn.id} OPEN>"
        first.conn.abort()
        await first.conn.wait_gone()
        assert repr(first.conn) == f"<WatchedConn {first.conn.id} CLOSED>"


async def test_conn_is_closed_only_after_it_was_open() -> None:
    """During the opening handshake nothing can be written *yet*; that is not closed."""
    async with connection(is_open=False) as link:
        assert not link.conn.is_closed
        link.conn.open(None)
        assert not link.conn.is_closed
        link.conn.close_nowait()
        assert link.conn.is_closed


async def test_conn_has_the_addresses_and_attributes_of_its_stream() -> None:
    """The typed attributes of AnyIO go through, and the addresses have one form."""
    async with connection() as link:
        assert (link.conn.remote_address, link.conn.local_address) == ("", "")
        assert link.conn.extra(SocketAttribute.remote_address, "none") == "none"

        class Addressed:
            extra_attributes = {  # noqa: RUF012 - an attribute in place of a property
                SocketAttribute.remote_address: lambda: ("::1", 1, 0, 0),
                SocketAttribute.local_address: lambda: ("127.0.0.1", 2),
            }

            def extra(self, attribute: Any, default: Any) -> Any:
                attributes: dict[Any, Callable[[], Any]] = self.extra_attributes
                return attributes[attribute]()

        other: Any = Addressed()
        stream, link.transport._stream = link.transport._stream, other
        assert (link.conn.remote_address, link.conn.local_address) == (("::1", 1), ("127.0.0.1", 2))
        remote: Any = link.conn.extra(SocketAttribute.remote_address)
        assert remote == ("::1", 1, 0, 0)
        link.transport._stream = stream


async def test_conn_is_an_object_stream() -> None:
    """Code that is written for any AnyIO object stream works with a connection."""
    async with connection() as link:
        stream: ObjectStream[str | bytes] = link.conn
        assert isinstance(stream, ObjectStream)
        await stream.send("out")
        await link.peer.expect(TEXT, b"out")
        await link.peer.send_frame(BINARY, b"in")
        assert await stream.receive() == b"in"
        await stream.send_eof()
        await link.peer.send_close(1000)
        with pytest.raises(anyio.EndOfStream):
            await stream.receive()
        await stream.aclose()
        with pytest.raises(anyio.ClosedResourceError):
            await stream.send("more")


async def test_fault_behind_a_turn_ends_its_connection_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What goes wrong when more of a burst is looked at is logged, and cuts that connection."""

    def fail(conn: Conn) -> None:
        raise MemoryError("no memory for more")

    async with connection() as link:
        monkeypatch.setattr(type(link.conn), "catch_up", fail)
        link.conn.put_off(b"\x81\x80\0\0\0\0")
        with pytest.raises(ConnectionBroken) as caught:
            await link.conn.receive()
    assert isinstance(caught.value.__cause__, MemoryError)
    assert "could not be dealt with" in caplog.text


@pytest.mark.parametrize(("most", "size"), [(100, 69_632), (100_000, 104_096), (2**24, 262_144)])
async def test_read_takes_a_little_more_than_a_message(most: int, size: int) -> None:
    """What one read has may have to be kept, so it follows ``max_message_size``, within bounds."""
    async with connection(max_message_size=most) as link:
        assert link.transport.read_size == size
