"""The fast lane of plain sockets: that it is used, and that nobody can tell.

Most facts here are those of every connection; they are tested ``way`` by ``way``, with the fast lane and
without it, over real sockets. ``SOCK_SEQPACKET`` tells what left in one ``send``.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import importlib.util
import socket
import struct
import sys
import tracemalloc
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import Context, ContextVar, copy_context
from functools import partial
from types import ModuleType
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import SocketAttribute, TaskGroup
from hypothesis import given, settings
from hypothesis import strategies as st

from anyio_ws import ClientConfig, Config, Conn, ConnectionBroken, ConnectionClosed, framing
from anyio_ws.deadlines import Deadlines
from anyio_ws.deflate import Parameters
from anyio_ws.events import MessageType
from anyio_ws.lane import NO_LANE, Lane
from anyio_ws.poller import current_poller
from anyio_ws.protocol import Role, masking_key
from anyio_ws.sockets import ConnectedSocket, SocketTransport
from anyio_ws.tls import TlsTransport
from anyio_ws.transport import StreamTransport

from .frames import build_frame, parse_frames
from .memory import judge, on_asyncio, settle
from .support import is_trio, no_surprises, nothing_left, take_log
from .transports import contexts

NAME = "anyio_ws._lane_c"
HAS_LANE = framing.BUILD == "c" and importlib.util.find_spec(NAME) is not None
TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
MUCH = 400_000  # bytes: more than the kernel takes from one who has asked for little

pytestmark = [
    pytest.mark.skipif(not HAS_LANE, reason="the fast lane is not built"),
    pytest.mark.usefixtures(no_surprises.__name__),
]
ways = pytest.mark.parametrize("way", ["lane", "general"])
"""Run the test with the fast lane, and without it."""
shapes = pytest.mark.parametrize("shape", ["def", "async"])
"""Run the test with a ``def`` and with an ``async def`` hook."""


class WithLane(SocketTransport):
    """A transport that notes which steps were left to Python.

    :ivar left: ``"read"`` and ``"write"``
    """

    __slots__ = ("left",)

    def __init__(self, *arguments: Any, **limits: Any) -> None:
        super().__init__(*arguments, **limits)
        self.left: list[str] = []

    def _readable(self) -> bool:
        self.left.append("read")
        return super()._readable()

    def write(self, data: bytes) -> None:
        self.left.append("write")
        super().write(data)


class WithoutLane(WithLane):
    """The same without a fast lane."""

    __slots__ = ()

    @property
    def lane(self) -> Lane:
        return NO_LANE


class Ends:
    """A connection over a real socket, and the socket of its peer.

    :ivar raised: what calling hooks has ended with
    """

    def __init__(self, conn: Conn, transport: WithLane, peer: socket.socket, tasks: TaskGroup) -> None:
        self.conn = conn
        self.transport = transport
        self.peer = peer
        self.tasks = tasks
        self.raised: list[BaseException | None] = []
        self.scope = anyio.CancelScope()
        self.task: Any = None

    @property
    def lane(self) -> Any:
        """The transport, as what only the fast lane has."""
        return self.transport

    async def call(self, hook: Callable[[Any], Any], *, by_data: bool = True) -> None:
        """Have a hook called in a task of its own, which is parked when this returns."""
        self.tasks.start_soon(self._call, hook, by_data)
        await settle()

    async def _call(self, hook: Callable[[Any], Any], by_data: bool) -> None:
        self.task = current_poller().current_task()
        self.scope = anyio.CancelScope()
        try:
            with self.scope:
                await self.conn.dispatch_all(hook, by_data=by_data)
            self.raised.append(None)
        except anyio.get_cancelled_exc_class() as exc:
            self.raised.append(exc)
            if is_trio():
                raise
        except BaseException as exc:  # noqa: BLE001 - a hook may raise anything
            self.raised.append(exc)

    def build(self, opcode: int, payload: bytes = b"", **fields: Any) -> bytes:
        """Build a frame as the peer sends it."""
        is_server = self.conn._protocol.role is Role.SERVER
        return build_frame(opcode, payload, key=b"mask" if is_server else None, **fields)

    def send(self, *frames: tuple[int, bytes]) -> None:
        """Have the peer send frames at once."""
        self.peer.send(b"".join(self.build(opcode, payload) for opcode, payload in frames))

    async def get(self, *frames: tuple[int, bytes]) -> None:
        """Have frames come in with one read, and let everybody go on."""
        self.send(*frames)
        await settle()

    def records(self) -> list[bytes]:
        """Return what the peer got, one item for each receiving."""
        found: list[bytes] = []
        with contextlib.suppress(BlockingIOError):
            while data := self.peer.recv(1_000_000):
                found.append(data)
        return found

    def frames(self) -> list[tuple[int, bytes]]:
        """Return the frames that the peer got."""
        return [(each.opcode, each.payload) for each in parse_frames(b"".join(self.records()))]

    async def drain(self) -> bytes:
        """Have the peer take everything that waits to be sent."""
        data = b"".join(self.records())
        while self.transport.buffered:
            await settle()
            data += b"".join(self.records())
        return data


@contextlib.asynccontextmanager
async def opened(
    way: str = "lane",
    role: Role = Role.SERVER,
    *,
    pair: tuple[socket.socket, socket.socket] | None = None,
    compression: Parameters | None = None,
    **fields: Any,
) -> AsyncIterator[Ends]:
    """Open a connection over a real socket; at the end it is aborted, and leaves nothing behind.

    :param pair: the two sockets; packets unless they are given
    """
    config = (Config if role is Role.SERVER else ClientConfig)(**{"ping_interval": None, **fields})
    async with nothing_left():
        ours, theirs = pair or socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setblocking(False)
        deadlines = Deadlines()
        with anyio.fail_after(60), theirs:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(deadlines.run)
                transport = (WithLane if way == "lane" else WithoutLane)(
                    ConnectedSocket(ours), deadlines, outbox_size=config.outbox_size, write_timeout=20
                )
                conn = Conn(role, transport, deadlines, config)
                transport.start()
                conn.open(None, compression=compression)
                try:
                    yield Ends(conn, transport, theirs, tasks)
                finally:
                    conn.abort()
                    with anyio.CancelScope(shield=True):
                        await conn.wait_gone()
                    deadlines.stop()
        assert not current_poller().corked


def stream_pair(size: int | None = None) -> tuple[socket.socket, socket.socket]:
    """Make two connected sockets, of which the first one's kernel takes little if *size* says so."""
    ours, theirs = socket.socketpair()
    if size is not None:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
    return ours, theirs


def in_shape(shape: str, hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Make an ``async def`` hook of a ``def`` one, if that is asked for."""

    async def as_coroutine(data: Any) -> Any:
        return hook(data)

    return hook if shape == "def" else as_coroutine


def texts(*data: str) -> list[tuple[int, bytes]]:
    """Make the frames of text messages."""
    return [(TEXT, each.encode()) for each in data]


# --- that it is used ------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", Role)
@shapes
async def test_plain_messages_take_the_fast_lane(role: Role, shape: str) -> None:
    """A read, its hook and the reply leave nothing to Python."""
    async with opened(role=role) as ends:
        await ends.call(in_shape(shape, lambda data: ends.conn.write_nowait(data)))
        await ends.get(*texts("hello"))
        await ends.get((BINARY, b"\x00" * 200), *texts("", "caf\u00e9"))
        assert ends.frames() == [*texts("hello"), (BINARY, b"\x00" * 200), *texts("", "caf\u00e9")]
        assert ends.transport.reads == 2
        if not (is_trio() and shape == "async"):  # there they begin in their task
            assert ends.transport.left == []


async def test_lane_is_for_plain_sockets_alone() -> None:
    """TLS, streams and subclasses of sockets have none: what they add would be bypassed."""

    class Own(socket.socket):
        """What its methods do beyond those of a socket nobody knows."""

    def plain(sock: socket.socket) -> SocketTransport:
        return SocketTransport(ConnectedSocket(sock), deadlines, outbox_size=9, write_timeout=9)

    def custom(sock: socket.socket) -> SocketTransport:
        return plain(Own(fileno=sock.detach()))

    def encrypted(sock: socket.socket) -> SocketTransport:
        limits: Any = {"hostname": "localhost", "outbox_size": 9, "write_timeout": 9}
        return TlsTransport(ConnectedSocket(sock), deadlines, contexts()[0], **limits)

    deadlines = Deadlines()
    for make in (plain, custom, encrypted):
        ours, theirs = socket.socketpair()
        transport = make(ours)
        assert (transport.lane is NO_LANE) is (make is not plain)
        transport.abort()
        theirs.close()
    assert StreamTransport.lane is NO_LANE
    await settle()


async def test_custom_socket_makes_every_call_itself() -> None:
    """With a subclass of a socket each send and each receiving is one of its methods."""
    calls: list[str] = []

    class Noted(socket.socket):
        def send(self, *arguments: Any) -> int:
            calls.append("send")
            return super().send(*arguments)

        def recv_into(self, *arguments: Any) -> int:
            calls.append("recv")
            return super().recv_into(*arguments)

    ours, theirs = socket.socketpair()
    async with opened(pair=(Noted(fileno=ours.detach()), theirs)) as ends:
        await ends.call(lambda data: ends.conn.write_nowait(data))
        await ends.get(*texts("hello"))
        assert calls == ["recv", "send"]
        assert ends.frames() == texts("hello")


async def test_compressed_messages_are_inflated_and_replies_compressed() -> None:
    """What was negotiated holds: a message is read by the lane, and its reply left to Python."""
    async with opened(compression=Parameters()) as ends:
        await ends.call(lambda data: ends.conn.write_nowait(data))
        ends.peer.send(ends.build(TEXT, b"\xf2\x48\xcd\xc9\xc9\x07\x00", rsv=4))  # RFC 7692 §7.2.3.1
        ends.peer.send(ends.build(TEXT, b"a" * 1_000))
        await settle()
        first, second = parse_frames(b"".join(ends.records()))
        assert second.rsv == 4
        assert len(second.payload) < 100
        assert first.opcode == TEXT
        assert ends.transport.left == ["write", "write"]


@ways
async def test_message_view_is_lent_to_the_hook_and_taken_back(way: str) -> None:
    """With ``message_view`` a hook gets a view of the data, which is released when it is over."""
    views: list[memoryview] = []
    seen: list[bytes] = []

    def hook(data: memoryview) -> None:
        views.append(data)
        seen.append(bytes(data))

    async with opened(way, message_view=True) as ends:
        await ends.call(hook)
        await ends.get((BINARY, b"one"), (BINARY, b"two"))
    assert seen == [b"one", b"two"]
    for each in views:
        with pytest.raises(ValueError, match="released"):
            len(each)


# --- hooks: in whose name, and in whose context ---------------------------------------------------------


@ways
@on_asyncio
@shapes
async def test_hook_runs_in_the_name_of_its_task(way: str, shape: str) -> None:
    """``current_task`` is the task that has the hooks called; no task is running when they are over."""
    seen: list[Any] = []
    async with opened(way) as ends:
        await ends.call(in_shape(shape, lambda data: seen.append(asyncio.current_task())))
        ends.send(*texts("one", "two"))
        current_poller().call_soon(lambda: seen.append(asyncio.current_task()))
        await settle()
        assert sorted(seen, key=str) == sorted([ends.task, ends.task, None], key=str)


@ways
async def test_hook_may_use_cancel_scopes_and_timeouts(way: str) -> None:
    """A scope that a hook opens ends its wait, not its task's, and leaves the next message to it."""
    seen: list[str] = []

    async def hook(data: str) -> None:
        with anyio.move_on_after(0) as scope:
            await anyio.sleep_forever()
        with anyio.CancelScope() as other:
            other.cancel()
            await anyio.lowlevel.checkpoint()
        seen.append(f"{data} {scope.cancelled_caught} {other.cancelled_caught}")

    async with opened(way) as ends:
        await ends.call(hook)
        ends.send(*texts("one", "two"))
        while len(seen) < 2:
            await anyio.lowlevel.checkpoint()
        assert seen == ["one True True", "two True True"]
        assert ends.raised == []


@ways
@on_asyncio
@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.timeout() came with Python 3.11")
async def test_hook_may_use_asyncios_own_timeout(way: str) -> None:
    """``asyncio.timeout`` finds the task it is to end, and its end is the hook's."""
    seen: list[str] = []

    async def hook(data: str) -> None:
        try:
            async with asyncio.timeout(0):
                await asyncio.sleep(3600)
        except TimeoutError:
            seen.append(data)

    async with opened(way) as ends:
        await ends.call(hook)
        ends.send(*texts("one", "two"))
        while len(seen) < 2:
            await anyio.lowlevel.checkpoint()
        assert (seen, ends.raised) == (["one", "two"], [])


@ways
@shapes
async def test_hook_has_one_context_of_its_own(way: str, shape: str) -> None:
    """It sees what its task had set; what one hook sets the next one sees, and nobody else."""
    variable = ContextVar[str]("variable", default="nothing")
    seen: list[str] = []

    def hook(data: str) -> None:
        seen.append(variable.get())
        variable.set(data)

    async with opened(way) as ends:
        token = variable.set("outside")
        await ends.call(in_shape(shape, hook))
        variable.reset(token)
        await ends.get(*texts("one", "two"))
        await ends.get(*texts("three"))
        assert seen == ["outside", "one", "two"]
        assert variable.get() == "nothing"


@ways
async def test_hook_that_waits_at_times_has_its_context_all_the_time(way: str) -> None:
    """On Trio, too, where its task awaits the sockets itself once hooks have been over soon enough."""
    variable = ContextVar[int]("variable", default=-1)
    seen: list[int] = []

    def plain(number: int) -> None:
        seen.append(variable.get())
        variable.set(number)

    async def other(number: int) -> None:
        plain(number)

    def hook(data: str) -> Any:
        return (plain if int(data) % 3 else other)(int(data))

    async with opened(way) as ends:
        await ends.call(hook)
        for number in range(40):
            await ends.get((TEXT, b"%d" % number))
        assert (seen, ends.raised) == ([*range(-1, 39)], [])
        assert variable.get() == -1


# --- hooks: what they do --------------------------------------------------------------------------------


@ways
async def test_hook_that_sleeps_goes_on_with_what_it_waited_for(way: str) -> None:
    """It gets the very value; messages of the same read and of later ones wait for it, in order."""
    seen: list[object] = []
    send, receive = anyio.create_memory_object_stream[object](9)
    futures: list[asyncio.Future[object]] = []

    async def sleep() -> object:
        if is_trio():
            return await receive.receive()
        futures.append(asyncio.get_running_loop().create_future())  # AnyIO's waits begin with another one
        return await futures[-1]

    async def wake(value: object) -> None:
        if is_trio():
            send.send_nowait(value)
        else:
            futures[-1].set_result(value)
        await settle()

    async def hook(data: str) -> None:
        seen.append(data)
        if data.startswith("sleep"):
            seen.append(await sleep())

    async with opened(way) as ends:
        with send, receive:
            await ends.call(hook)
            await ends.get(*texts("before", "sleep", "behind"))
            await ends.get(*texts("later"))
            assert seen == ["before", "sleep"]
            await wake("woken")
            assert seen == ["before", "sleep", "woken", "behind", "later"]
            await ends.get(*texts("sleep again"))
            await wake("again")
            assert seen[5:] == ["sleep again", "again"]


ERRORS = [ValueError, KeyboardInterrupt, SystemExit, asyncio.CancelledError, GeneratorExit]


@ways
@shapes
@pytest.mark.parametrize("error", ERRORS)
async def test_hook_that_raises_raises_in_its_task(way: str, shape: str, error: type[BaseException]) -> None:
    """The very exception comes out of ``dispatch_all``; what was behind the message can be received."""
    if is_trio() and error is asyncio.CancelledError:
        pytest.skip("it is nothing to Trio")
    raised = error("by the hook")

    def hook(data: str) -> None:
        if data == "bad":
            raise raised

    async with opened(way) as ends:
        await ends.call(in_shape(shape, hook))
        await ends.get(*texts("good", "bad", "behind"))
        assert ends.raised == [raised]
        assert ends.raised[0] is raised
        assert await ends.conn.receive() == "behind"
        await ends.call(lambda data: ends.conn.write_nowait(data))
        await ends.get(*texts("on"))
        assert ends.frames() == texts("on")


@ways
async def test_hook_may_return_anything_that_can_be_awaited(way: str) -> None:
    """What has ``__await__`` is awaited, in order; what has not is ignored, whatever it is."""
    seen: list[object] = []

    class Later:
        def __init__(self, data: str) -> None:
            self._data = data

        def __await__(self) -> Any:
            yield from anyio.lowlevel.checkpoint().__await__()
            seen.append(self._data)

    class Strange:
        @property
        def __await__(self) -> Any:
            raise ValueError("nobody knows")

    def hook(data: str) -> object:
        return {"later": Later(data), "strange": Strange()}.get(data, data)

    async with opened(way) as ends:
        await ends.call(hook)
        await ends.get(*texts("ignored", "later", "ignored", "later"))
        assert seen == ["later", "later"]
        await ends.get(*texts("strange"))
        assert [str(each) for each in ends.raised] == ["nobody knows"]


@ways
@shapes
@pytest.mark.parametrize("by_data", [True, False])
async def test_hook_gets_the_message_or_its_data(way: str, shape: str, by_data: bool) -> None:
    """``by_data`` decides whether it is the data or the message with its type."""
    seen: list[Any] = []
    async with opened(way) as ends:
        await ends.call(in_shape(shape, seen.append), by_data=by_data)
        await ends.get((TEXT, b"text"), (BINARY, b"bytes"))
        wanted: list[Any] = [(MessageType.TEXT, "text"), (MessageType.BINARY, b"bytes")]
        assert seen == ([data for _, data in wanted] if by_data else wanted)
        assert {type(each).__name__ for each in seen} == ({"str", "bytes"} if by_data else {"Message"})


@ways
@shapes
async def test_replies_to_one_read_leave_in_one_send(way: str, shape: str) -> None:
    """Three messages of one read are answered by one packet, those of three reads by three."""
    async with opened(way) as ends:
        await ends.call(in_shape(shape, lambda data: ends.conn.write_nowait(data + "!")))
        await ends.get(*texts("one", "two", "three"))
        (record,) = ends.records()
        assert [each.payload for each in parse_frames(record)] == [b"one!", b"two!", b"three!"]
        for data in ("one", "two", "three"):
            await ends.get(*texts(data))
        assert len(ends.records()) == 3


@ways
async def test_other_connection_is_written_to_in_one_send_too(way: str) -> None:
    """What hooks of one read write to another connection leaves together when the read is dealt with."""
    async with opened(way) as other, opened(way) as one:
        await one.call(lambda data: other.conn.write_nowait(data))
        await one.get(*texts("one", "two"))
        (record,) = other.records()
        assert len(parse_frames(record)) == 2


@ways
@shapes
@pytest.mark.parametrize("ping", [False, True])
async def test_other_tasks_have_their_turn_after_256_messages(way: str, shape: str, ping: bool) -> None:
    """Of a thousand messages of one read at most 256 are handled before the event loop goes round."""
    rounds, seen, handled = 0, list[str](), list[int]()

    def go_round() -> None:
        nonlocal rounds
        rounds += 1
        if len(seen) < 1_000:
            current_poller().call_soon(go_round)

    def hook(data: str) -> None:
        seen.append(data)
        handled.append(rounds)

    async with opened(way) as ends:
        await ends.call(in_shape(shape, hook))
        frames = texts(*map(str, range(1_000)))
        frames[200:200] = [(PING, b"")] if ping else []
        go_round()
        ends.send(*frames)
        while len(seen) < 1_000:
            await anyio.lowlevel.checkpoint()
        assert seen == [str(number) for number in range(1_000)]
        # Trio runs those who can go on in any order; and there an async hook begins in its task.
        assert max(map(handled.count, {*handled})) <= (513 if is_trio() else 256)


# --- what comes between messages ------------------------------------------------------------------------


@ways
@shapes
async def test_control_frames_between_messages_keep_their_order(way: str, shape: str) -> None:
    """Each Ping is answered where it stands among the replies, and all leave together.

    On Trio the replies of an ``async def`` hook come later: no Pong waits for a hook.
    """
    async with opened(way) as ends:
        await ends.call(in_shape(shape, lambda data: ends.conn.write_nowait(data)))
        await ends.get((TEXT, b"a"), (PING, b"b"), (TEXT, b"c"), (TEXT, b"d"), (PONG, b""), (PING, b"e"))
        records = ends.records()
        frames = [(each.opcode, each.payload) for each in parse_frames(b"".join(records))]
        wanted = [(TEXT, b"a"), (PONG, b"b"), (TEXT, b"c"), (TEXT, b"d"), (PONG, b"e")]
        if is_trio() and shape == "async":
            assert frames == sorted(wanted, key=lambda frame: -frame[0])
        else:
            assert (frames, len(records)) == (wanted, 1)


@ways
async def test_hook_that_has_its_scope_cancelled_ends_at_its_next_wait(way: str) -> None:
    """It is the last one; what is behind its message in the same read can be received."""
    seen: list[str] = []

    async def hook(data: str) -> None:
        seen.append(data)
        ends.scope.cancel()
        await anyio.sleep_forever()

    async with opened(way) as ends:
        await ends.call(hook)
        await ends.get(*texts("one", "two", "three"))
        assert (seen, ends.raised) == (["one"], [None])
        assert [await ends.conn.receive(), await ends.conn.receive()] == ["two", "three"]


@ways
@on_asyncio
@pytest.mark.parametrize("sleeps", [False, True])
async def test_hook_that_cancels_its_own_task_is_told_where_it_waits(way: str, sleeps: bool) -> None:
    """``task.cancel()`` ends a hook at its next wait, and the task in any case."""
    seen: list[str] = []

    async def hook(data: str) -> None:
        seen.append(data)
        ends.task.cancel()
        if sleeps:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                seen.append("told")
                raise

    async with opened(way) as ends:
        await ends.call(hook)
        await ends.get(*texts("one", "two"))
        assert seen == (["one", "told"] if sleeps else ["one"])
        assert [type(each) for each in ends.raised] == [asyncio.CancelledError]
        assert await ends.conn.receive() == "two"


@ways
@shapes
async def test_hook_that_closes_gets_nothing_more(way: str, shape: str) -> None:
    """What is behind the message in the same read is discarded; replies before it and the Close go out."""
    seen: list[str] = []

    def hook(data: str) -> None:
        seen.append(data)
        ends.conn.write_nowait(data)
        if data == "two":
            ends.conn.close_nowait(4000, "enough")

    async with opened(way) as ends:
        await ends.call(in_shape(shape, hook))
        await ends.get(*texts("one", "two", "three"))
        assert (seen, ends.raised) == (["one", "two"], [None])
        assert ends.frames() == [*texts("one", "two"), (CLOSE, b"\x0f\xa0enough")]


@ways
@shapes
@pytest.mark.parametrize("behind", [PING, TEXT, CLOSE])
async def test_hook_that_aborts_ends_the_connection_without_a_fault(
    way: str, shape: str, behind: int
) -> None:
    """Whatever is behind the message in the same read, the connection is gone and nothing is logged."""
    async with opened(way) as ends:
        await ends.call(in_shape(shape, lambda data: ends.conn.abort()))
        await ends.get((TEXT, b"one"), (behind, b""), (behind, b""))
        assert ends.raised == [None]
        assert ends.conn.is_gone
        assert ends.conn.close_code == (1005 if behind == CLOSE else 1006)
        with pytest.raises(ConnectionClosed):
            await ends.conn.write("more")


@ways
async def test_hook_may_receive_the_next_message_itself(way: str) -> None:
    """``receive`` in a hook gives what is behind its message, of the same read or of a later one."""
    seen: list[Any] = []

    async def hook(data: str) -> None:
        seen.append((data, await ends.conn.receive()))

    async with opened(way) as ends:
        await ends.call(hook)
        await ends.get(*texts("a", "b", "c", "d"))
        assert seen == [("a", "b"), ("c", "d")]
        await ends.get(*texts("e"))
        await ends.get(*texts("f"))
        assert seen[2:] == [("e", "f")]


@ways
@shapes
async def test_close_behind_messages_comes_after_their_replies(way: str, shape: str) -> None:
    """The messages of the same read are handled and answered, then the Close is; what is behind is not."""
    async with opened(way) as ends:
        await ends.call(in_shape(shape, lambda data: ends.conn.write_nowait(data)))
        await ends.get(*texts("a", "b"), (CLOSE, b"\x0f\xa0bye"), *texts("never"))
        assert ends.frames() == [*texts("a", "b"), (CLOSE, b"\x0f\xa0")]
        assert ends.raised == [None]
        assert (ends.conn.close_code, ends.conn.close_reason) == (4000, "bye")


@ways
@shapes
async def test_violation_behind_messages_comes_after_their_replies(way: str, shape: str) -> None:
    """The messages before it are handled and answered, then the connection is failed with its code."""
    async with opened(way) as ends:
        await ends.call(in_shape(shape, lambda data: ends.conn.write_nowait(data)))
        ends.peer.send(ends.build(TEXT, b"a") + ends.build(TEXT, b"b") + ends.build(TEXT, b"\xff"))
        await settle()
        *replies, (opcode, payload) = ends.frames()
        assert replies == texts("a", "b")
        assert (opcode, payload[:2]) == (CLOSE, (1007).to_bytes(2, "big"))


@ways
async def test_messages_in_pieces_and_fragments_are_put_together(way: str) -> None:
    """A message that comes byte by byte, or in fragments with a Ping between, is handled once, whole."""
    seen: list[str] = []
    async with opened(way) as ends:
        await ends.call(seen.append)
        wire = ends.build(TEXT, b"first") + ends.build(TEXT, b"frag", fin=False)
        for byte in wire + ends.build(PING) + ends.build(0, b"ment"):
            ends.peer.send(bytes([byte]))
            await settle()
        assert seen == ["first", "fragment"]
        assert ends.frames() == [(PONG, b"")]


# --- a kernel that takes a part, and other ends ---------------------------------------------------------


@ways
@pytest.mark.parametrize("role", Role)
async def test_full_kernel_keeps_frames_whole_and_in_order(way: str, role: Role) -> None:
    """Whatever the kernel takes of each frame, and however many wait: all arrive, in order, once."""
    sent: list[bytes] = []
    async with opened(way, role, pair=stream_pair(4_096), outbox_size=10_000_000) as ends:
        for number in range(120):
            size = (0, 10, 2_000, 2_050, 70_000, 131_072)[number % 6]
            sent.append(b"%d" % number + bytes(size))
            await ends.conn.write_bin(sent[-1])
        assert ends.transport.buffered
        got = judge(await ends.drain(), masked=role is Role.CLIENT)
        assert got == [(BINARY, each) for each in sent]


@ways
async def test_cancelled_write_has_sent_its_message_whole_or_not_at_all(way: str) -> None:
    """Writes that wait for room and are cancelled have sent nothing; all others are there, whole."""
    sent: list[bytes] = []
    async with opened(way, pair=stream_pair(4_096), outbox_size=1_000) as ends:
        cancelled = 0
        data = b""
        for number in range(60):
            with anyio.CancelScope() as scope:
                if number % 3 == 1:
                    scope.cancel()
                message = b"%d" % number + bytes(90_000)
                if ends.transport.full and not scope.cancel_called:
                    data += await ends.drain()
                await ends.conn.write_bin(message)
                sent.append(message)
            cancelled += scope.cancelled_caught
        assert cancelled
        assert judge(data + await ends.drain(), masked=False) == [(BINARY, each) for each in sent]


@ways
async def test_many_writers_keep_their_frames_apart(way: str) -> None:
    """Tasks that write at the same time to a slow peer: each one's messages are whole and in its order."""
    async with opened(way, pair=stream_pair(4_096), outbox_size=1_000) as ends:

        async def write(name: int) -> None:
            for number in range(10):
                await ends.conn.write_bin(bytes([name, number]) * 5_000)

        data = b""
        async with anyio.create_task_group() as tasks:
            for name in range(5):
                tasks.start_soon(write, name)
            for _ in range(2_000):
                await settle()
                data += b"".join(ends.records())
                if not ends.transport.buffered and not ends.transport.full:
                    break
        got = [payload[:2] for _, payload in judge(data + await ends.drain(), masked=False)]
        assert sorted(got) == [bytes([name, number]) for name in range(5) for number in range(10)]
        for name in range(5):
            assert [each[1] for each in got if each[0] == name] == list(range(10))


@ways
async def test_gathered_replies_stop_at_the_outbox(way: str) -> None:
    """Replies to one read above ``outbox_size`` do not wait for its end, and keep their order."""
    async with opened(way, outbox_size=1_000) as ends:
        await ends.call(lambda data: ends.conn.write_nowait(data * 60))
        await ends.get(*texts(*map(str, range(10, 60))))
        records = ends.records()
        assert 1 < len(records) < 20
        assert b"".join(records) == b"".join(build_frame(TEXT, b"%d" % n * 60) for n in range(10, 60))


@ways
async def test_reset_by_the_peer_breaks_the_connection(way: str) -> None:
    """``ECONNRESET`` is the cause of what is raised; no Python of ours has a fault."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    async with opened(way, pair=(ours, theirs)) as ends:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()
        with pytest.raises(ConnectionBroken) as caught:
            await ends.conn.receive()
        assert isinstance(caught.value.__cause__, ConnectionResetError)
        assert ends.conn.close_code == 1006


@ways
@pytest.mark.parametrize("size", [10, 100_000])
async def test_broken_pipe_loses_nothing_that_came_before(way: str, size: int) -> None:
    """A write that finds the peer gone returns; what the peer had sent is received, then ``EPIPE``."""
    async with opened(way, pair=stream_pair()) as ends:
        ends.send(*texts("last words"))
        ends.peer.close()
        await ends.conn.write_bin(bytes(size))
        assert await ends.conn.receive() == "last words"
        with pytest.raises(ConnectionBroken) as caught:
            await ends.conn.receive()
        assert isinstance(caught.value.__cause__, BrokenPipeError)


@ways
async def test_descriptor_that_is_another_sockets_by_now_is_left_alone(way: str) -> None:
    """Who closes the socket below a connection breaks it; nothing goes to who has its number meanwhile."""
    async with opened(way, pair=stream_pair()) as ends:
        await ends.call(lambda data: None)
        await ends.get(*texts("one"))
        raw = ends.conn.extra(SocketAttribute.raw_socket)
        number = raw.fileno()
        raw.close()
        others = socket.socketpair()
        with others[0], others[1]:
            assert number in [each.fileno() for each in others]
            await ends.conn.write("a secret")
            for each in others:
                each.setblocking(False)
                with pytest.raises(BlockingIOError):
                    each.recv(100)
            await settle()
            with pytest.raises(ConnectionBroken) as caught:
                await ends.conn.write("another")
            assert isinstance(caught.value.__cause__, OSError)
            assert caught.value.__cause__.errno == errno.EBADF


@ways
async def test_end_of_the_stream_comes_behind_its_messages(way: str) -> None:
    """What was sent before the end is received; then the connection is broken, for want of a Close."""
    async with opened(way, pair=stream_pair()) as ends:
        ends.send(*texts("one", "two"))
        ends.peer.shutdown(socket.SHUT_WR)
        await settle()
        assert [await ends.conn.receive(), await ends.conn.receive()] == ["one", "two"]
        with pytest.raises(ConnectionBroken) as caught:
            await ends.conn.receive()
        assert isinstance(caught.value.__cause__, EOFError)


@ways
async def test_reading_stops_while_the_inbox_is_full(way: str) -> None:
    """What nobody receives stays with the kernel, and comes in order when somebody does."""
    async with opened(way, inbox_size=1_000) as ends:
        for number in range(50):
            await ends.get((BINARY, bytes([number]) * 500))
        assert ends.transport.reads < 5
        for number in range(50):
            assert await ends.conn.receive() == bytes([number]) * 500
        await settle()
        assert ends.transport.reads == 50


async def test_pause_and_resume_go_back_to_the_fast_lane() -> None:
    """A pause leaves one look at the socket to Python at most; after it reads are the lane's again."""
    async with opened() as ends:
        seen: list[str] = []
        await ends.call(seen.append)
        ends.transport.pause()
        await ends.get(*texts("waits"))
        assert (seen, ends.transport.left) == ([], ["read"])
        ends.transport.resume()
        await settle()
        await ends.get(*texts("goes"))
        assert (seen, ends.transport.left) == (["waits", "goes"], ["read"])


@ways
async def test_fault_of_the_receiver_cuts_its_connection_alone(
    way: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is raised where messages are dealt with, or the end is, is logged and ends that connection."""
    for call in ("take", "eof"):
        async with opened(way, pair=stream_pair()) as ends, opened(way) as other:

            def fail(*arguments: object) -> None:
                raise ValueError("a fault of ours")

            with monkeypatch.context() as patched:
                if call == "take":
                    patched.setattr(type(ends.conn._inbox), "take", fail)
                    await ends.get(*texts("hello"))
                else:
                    patched.setattr(Conn, "eof_received", fail)
                    ends.peer.close()
                    await settle()
            assert ends.conn.is_gone
            (record,) = take_log(caplog)
            assert str(record.exc_info[1]) == "a fault of ours"
            await other.call(lambda data: other.conn.write_nowait(data))
            await other.get(*texts("on"))
            assert other.frames() == texts("on")


# --- what is written ------------------------------------------------------------------------------------


class Text(str):
    """Text of a class of its own."""

    __slots__ = ()


@ways
@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize(
    "data",
    [
        "text",
        "",
        "caf\u00e9 \U0001f600",
        Text("subclass"),
        b"bytes",
        b"",
        bytearray(b"bytearray"),
        memoryview(b"memoryview"),
        memoryview(b"a strip")[::2].tobytes(),
        *(bytes(size) for size in (125, 126, 2_034, 2_048, 65_535, 65_536, 131_072, 131_073, 200_000)),
        "\u20ac" * 50_000,
    ],
    ids=lambda data: f"{type(data).__name__}-{len(data)}",
)
async def test_every_kind_of_data_arrives(way: str, role: Role, data: Any) -> None:
    """Each kind of text and of bytes, short or long, is one message of its type when it arrives."""
    is_text = isinstance(data, str)
    payload = data.encode() if is_text else bytes(data)
    async with opened(way, role, pair=stream_pair()) as ends:
        for write in ("write" if is_text else "write_bin", "write_nowait", "send"):
            result = getattr(ends.conn, write)(data)
            if result is not None:
                await result
            got = judge(await ends.drain(), masked=role is Role.CLIENT)
            assert got == [(TEXT if is_text else BINARY, payload)]


@ways
async def test_lone_surrogates_are_refused_and_nothing_is_sent(way: str) -> None:
    """Text that is not UTF-8 raises, and the connection goes on."""
    async with opened(way) as ends:
        for write in (ends.conn.write, ends.conn.send):
            with pytest.raises(UnicodeEncodeError):
                await write("\ud800")
        with pytest.raises(UnicodeEncodeError):
            ends.conn.write_nowait("\udfff")
        await ends.conn.write("good")
        assert ends.frames() == texts("good")


@ways
@pytest.mark.parametrize(
    ("write", "data"),
    [("write", b"bytes"), ("write", None), ("write_bin", "text"), ("write_bin", 3), ("send", None)],
)
async def test_data_of_the_wrong_type_is_refused_and_nothing_is_sent(way: str, write: str, data: Any) -> None:
    """It is a ``TypeError`` that names what is needed, and the connection goes on."""
    async with opened(way) as ends:
        with pytest.raises(TypeError, match=r"^data: "):
            await getattr(ends.conn, write)(data)
        await ends.conn.write("good")
        assert ends.frames() == texts("good")


@ways
async def test_client_masks_each_frame_with_a_fresh_key(way: str) -> None:
    """A hundred frames of a client, sent alone or together, have keys that are not those of the others."""
    async with opened(way, Role.CLIENT) as ends:
        await ends.call(lambda data: ends.conn.write_nowait(data))
        for _ in range(10):
            await ends.get(*texts("a", "b", "c", "d", "e"))
            for _ in range(5):
                await ends.conn.write("x" * 3_000)
        frames = parse_frames(await ends.drain())
        assert len(frames) == 100
        assert len({each.key for each in frames}) >= 99  # by chance two may be the same


@ways
async def test_nothing_is_sent_after_our_close(way: str) -> None:
    """The lane sends as long as the protocol allows it, and not a frame more."""
    async with opened(way) as ends:
        await ends.conn.write("before")
        await ends.conn.send_eof()
        with pytest.raises(ConnectionClosed):
            await ends.conn.write("after")
        assert ends.frames() == [*texts("before"), (CLOSE, b"\x03\xe8")]


@ways
async def test_message_does_not_come_between_fragments(way: str) -> None:
    """While a fragmented message is open another one is refused, and control frames are not."""
    async with opened(way) as ends:
        await ends.conn.write_frame(TEXT, b"frag", fin=False)
        with pytest.raises(Exception, match="a fragmented message is open"):
            await ends.conn.write("another")
        await ends.conn.write_frame(0, b"ment")
        await ends.conn.write("another")
        assert judge(b"".join(ends.records()), masked=False) == texts("fragment", "another")


# --- the two ways are one -------------------------------------------------------------------------------


PAYLOADS = st.one_of(st.binary(max_size=20), st.just(b"x" * 300), st.just(b"y" * 3_000))
COMING = st.one_of(
    st.tuples(st.sampled_from([TEXT, BINARY, PING, PONG]), st.text(max_size=9).map(str.encode)),
    st.tuples(st.just(BINARY), PAYLOADS),
    st.just((CLOSE, b"\x03\xe8")),
    st.just((3, b"reserved")),
)
STEPS = st.one_of(
    st.tuples(st.just("come"), st.lists(COMING, min_size=1, max_size=6), st.integers(0, 40)),
    st.tuples(st.just("text"), st.text(max_size=20), st.booleans()),
    st.tuples(st.just("bytes"), PAYLOADS, st.booleans()),
    st.tuples(st.just("part"), st.sampled_from(["pause", "resume", "drain"]), st.booleans()),
    st.tuples(st.just("ping"), st.just(b""), st.booleans()),
)


async def play(way: str, script: list[Any], hooks: str | None) -> tuple[list[object], bytes]:
    """Play a script, and return what the application has seen and what was on the wire."""
    seen: list[object] = []
    wire = b""
    async with opened(way, pair=stream_pair(4_096), outbox_size=5_000) as ends:

        def reply(data: Any) -> None:
            seen.append(data)
            with contextlib.suppress(anyio.WouldBlock, ConnectionClosed):
                ends.conn.write_nowait(data)

        async def sleepy(data: Any) -> None:
            if len(data) % 2:
                await anyio.lowlevel.checkpoint()
            reply(data)

        if hooks is not None:
            await ends.call(sleepy if hooks == "async" else reply)
        for what, value, more in script:
            if what == "come":
                data = b"".join(ends.build(opcode, payload) for opcode, payload in value)
                with contextlib.suppress(OSError):
                    for piece in (data[:more], data[more:]):
                        ends.peer.send(piece)
                        await settle()
                continue
            with contextlib.suppress(anyio.WouldBlock, ConnectionClosed):
                if what == "ping":
                    await ends.conn.write_ping(value)
                elif what != "part":
                    ends.conn.write_nowait(value)
                elif value == "drain":
                    wire += await ends.drain()
                else:
                    getattr(ends.transport, value)()
            if more:
                await settle()
        ends.transport.resume()
        wire += await ends.drain()
        await settle()
        with anyio.move_on_after(0):
            while hooks is None:
                try:
                    seen.append(await ends.conn.receive())
                except ConnectionClosed as exc:
                    seen.append((exc.code, exc.reason))
                    break
        seen.append((ends.conn.close_code, ends.conn.state.name))
        wire += await ends.drain()
    return seen, wire


@settings(max_examples=60, deadline=None)
@given(script=st.lists(STEPS, max_size=12), hooks=st.sampled_from([None, "def", "async"]))
async def test_both_ways_are_the_same_to_everybody(script: list[Any], hooks: str | None) -> None:
    """The same reads and writes give the same events and the same bytes, with the lane and without it."""
    assert await play("lane", script, hooks) == await play("general", script, hooks)


# --- what only the compiled module can get wrong --------------------------------------------------------


@pytest.fixture(scope="module")
def lane_c() -> ModuleType:
    """Take the compiled module."""
    module: ModuleType = pytest.importorskip(NAME, exc_type=ModuleNotFoundError)
    return module


async def test_wrong_arguments_are_errors_that_name_what_is_needed() -> None:
    """Each argument of ``attach`` and ``arm`` is looked at, and what serves a connection goes on."""
    async with opened() as ends:
        lane, reader, context = ends.lane, ends.conn._protocol.reader, copy_context()
        wrong: list[tuple[str, type[Exception], Callable[[], object]]] = [
            ("^reader: ", TypeError, lambda: lane.attach(None, None, 1)),
            ("masking_key: ", TypeError, lambda: lane.attach(reader, 3, 1)),
            ("longest: ", ValueError, lambda: lane.attach(reader, None, -1)),
            ("longest: ", TypeError, lambda: lane.attach(reader, None, "1")),
            (r"attach\(\) takes", TypeError, lambda: lane.attach(reader)),
            (r"attach\(\) takes", TypeError, lambda: lane.attach(reader, None, longest=1)),
            ("hook: ", TypeError, lambda: lane.arm(1, 2, 3, True, 5, context)),
            ("context: ", TypeError, lambda: lane.arm(1, 2, print, True, 5, 6)),
            (r"arm\(\) takes", TypeError, lambda: lane.arm(1, 2, print, True, 5)),
            (r"_readable|takes no", TypeError, lambda: lane.readable(1)),
        ]
        for message, error, call in wrong:
            with pytest.raises(error, match=message):
                call()
        await ends.call(lambda data: ends.conn.write_nowait(data))
        await ends.get(*texts("on"))
        assert (ends.frames(), ends.transport.left) == (texts("on"), [])


@ways
async def test_reading_tells_whether_it_took_little(way: str) -> None:
    """Fewer than 4,096 bytes are little; more are not, nor is the end, nor nothing."""
    async with opened(way) as ends:
        for size, was_little in ((1, True), (4_095, True), (4_096, False), (5_000, False)):
            frame = ends.build(TEXT, b"a" * (size if size < 126 else size - 8))
            ends.peer.send(frame)
            assert ends.transport.readable() is was_little
        assert [len(await ends.conn.receive()) for _ in range(4)] == [1, 4_087, 4_088, 4_992]
        assert ends.transport.readable() is False
        ends.peer.close()
        assert ends.transport.readable() is False


async def test_lane_that_was_never_made_ready_does_nothing(lane_c: ModuleType) -> None:
    """Objects without ``__init__``, or without their attributes, raise what Python would, or do nothing."""
    bare = lane_c.SocketLane()
    assert (bare.send_text("a"), bare.send_bin(b"a"), bare.is_running, bare.receiver) == (
        False,
        False,
        False,
        None,
    )
    bare.disarm()
    for call in (bare.readable, lambda: bare.reading, lambda: bare._outbox):
        with pytest.raises(AttributeError):
            call()
    poller = lane_c.PollerLane()
    assert poller.buffer is None
    for value in (b"read only", 3):
        with pytest.raises((TypeError, BufferError)):
            poller.buffer = value
    poller.buffer = memoryview(bytearray(9))
    with pytest.raises(AttributeError, match=r"^buffer: "):
        poller.buffer = memoryview(bytearray(9))
    with pytest.raises(AttributeError, match=r"^buffer: "):
        del poller.buffer
    with pytest.raises(BufferError):
        poller.buffer.release()
    transport: Any = object.__new__(SocketTransport)
    with pytest.raises(AttributeError):
        transport.readable()
    with pytest.raises(AttributeError):
        transport.attach(framing.MessageReader(masked=True, max_message_size=1), None, 1)


ATTRIBUTES = ("reading", "full", "_finishing", "_gathered", "_rest", "_outbox")
POLLERS = ("corked", "steps", "waiting", "enter", "leave")


@pytest.mark.parametrize("value", [None, 3, (), "gone"], ids=repr)
@pytest.mark.parametrize("name", [*ATTRIBUTES, *POLLERS])
@pytest.mark.parametrize("when", ["before", "in the hook", "for the key"])
async def test_attribute_of_the_wrong_type_does_no_harm(
    name: str, value: object, when: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever is put into an attribute, or taken out, and whenever: there are errors, and no crash."""

    def hook(data: str) -> None:
        spoil("in the hook")
        ends.conn.write_nowait(data)

    def spoil(now: str) -> None:
        if when == now and value == "gone":
            delattr(owner, name)
        elif when == now:
            setattr(owner, name, value)

    def key() -> bytes:
        spoil("for the key")
        return b"mask"

    async with opened(role=Role.CLIENT) as ends:
        await ends.call(hook)
        owner: Any = ends.transport if name in ATTRIBUTES else ends.transport._poller
        old = getattr(owner, name)
        ends.lane.attach(ends.conn._protocol.reader, key, 100_000)
        spoil("before")
        ends.send(*texts("one", "two", "three"))
        for _ in range(5 if name in ("_outbox", "waiting") else 0):  # what a hook's reply is gathered in
            await anyio.lowlevel.checkpoint()
        calls: list[tuple[Callable[..., object], tuple[object, ...]]] = [
            (ends.lane.readable, ()),
            (ends.lane.send_text, ("text",)),
            (ends.lane.send_bin, (bytes(3_000),)),
            (hook, ("data",)),
        ]
        for call, arguments in calls:
            with contextlib.suppress(Exception):
                call(*arguments)
        setattr(owner, name, old)
        ends.transport._poller.corked = False
        ends.transport._poller.waiting.clear()
        ends.conn.abort()
    take_log(caplog)


@pytest.mark.parametrize("what", ["receiver", "_poller", "disarm", "arm", "readable", "attach", "raise"])
@pytest.mark.parametrize("at", ["hook", "key", "waiter", "done", "dealloc"])
async def test_calls_from_inside_a_call_do_no_harm(
    what: str, at: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever is called may exchange, arm, detach and call everything again, and raise: nothing crashes."""
    async with opened(role=Role.CLIENT) as ends:
        lane, reader = ends.lane, ends.conn._protocol.reader
        depth = 0

        def act(here: str) -> None:
            nonlocal depth
            if here != at or depth > 3:
                return
            depth += 1
            if what in ("receiver", "_poller"):
                old = getattr(lane, what)
                setattr(lane, what, None)
                gc.collect(0)
                setattr(lane, what, old)
            elif what == "arm":
                arm()
            elif what == "attach":
                lane.attach(reader, Key(), 100)
            elif what == "raise":
                raise KeyError(at)
            else:
                getattr(lane, what)()

        class Key:
            def __call__(self) -> bytes:
                act("key")
                return b"mask"

            def __del__(self) -> None:
                with contextlib.suppress(Exception):
                    act("dealloc")

        class Waiter:
            def done(self) -> bool:
                act("done")
                return False

        class Bell:
            @property
            def waiter(self) -> Any:
                act("waiter")
                return Waiter()

        class Hook(Key):
            def __call__(self, data: object = None) -> Any:
                act("hook")
                lane.send_text("reply")

        class Box:
            def hand_on(self, *arguments: object) -> None:
                """Nothing sleeps here."""

            def hook_failed(self, error: BaseException) -> None:
                """Nobody waits for it."""

        def arm() -> None:
            lane.arm(Box(), Bell(), Hook(), True, task, copy_context())

        task: Any = object()
        if not is_trio():

            async def nothing() -> None:
                """Be a task."""

            task = asyncio.get_running_loop().create_task(nothing())
            await task
        lane.attach(reader, Key(), 100)
        arm()
        for _ in range(3):
            with contextlib.suppress(Exception):
                ends.send(*texts("one", "two", "three"))
                current_poller().call_soon(lane.readable)
                await settle()
            with contextlib.suppress(Exception):
                lane.send_bin(b"one")
        lane.disarm()
    take_log(caplog)


async def test_hook_that_is_armed_in_the_middle_of_a_read_waits_for_its_turn() -> None:
    """What another hook was armed for is not handled by the one before it."""
    seen: list[str] = []
    async with opened() as ends:
        await ends.call(seen.append)

        def first(data: str) -> None:
            seen.append(f"first {data}")
            ends.conn._inbox._hook = second
            ends.lane.arm(ends.conn._inbox, bell, second, True, ends.task, Context())

        def second(data: str) -> None:
            seen.append(f"second {data}")

        bell = ends.conn._inbox._hook_bell
        ends.lane.arm(ends.conn._inbox, bell, first, True, ends.task, Context())
        await ends.get(*texts("one", "two"))
        assert seen == ["first one", "second two"]


def do_everything(lane_c: ModuleType) -> None:
    """Run a loop in which everything happens: messages, errors of hooks, partial sends, ends of all kinds."""

    async def run() -> None:
        for role in Role:
            for reply in ("text", b"bytes", bytes(3_000), bytes(200_000)):
                pair = None if len(reply) < 99 else stream_pair(4_096)
                async with opened(role=role, pair=pair, outbox_size=1_000_000) as ends:
                    await ends.call(partial(reply_with, ends.conn, reply))
                    await ends.get(*texts("one", "two"), (PING, b""), *texts("three"))
                    with contextlib.suppress(UnicodeEncodeError):
                        await ends.conn.write("\ud800")
            for error in ERRORS[:3]:
                async with opened(role=role) as ends:
                    await ends.call(fail_with(error))
                    await ends.get(*texts("one", "two"))
            async with opened(role=role) as ends:
                await ends.call(lambda data: anyio.lowlevel.checkpoint())
                await ends.get(*texts("one", "two"), (CLOSE, b""))
            async with opened(role=role, pair=stream_pair()) as ends:
                for _ in range(100):
                    await ends.conn.write("each with a key")
                ends.peer.close()
                await ends.conn.write("nobody hears it")
                await settle()
        bare = lane_c.SocketLane()
        for wrong in (bare.attach, bare.arm):
            with contextlib.suppress(TypeError):
                wrong(1, 2, 3)

    anyio.run(run)


def reply_with(conn: Conn, reply: str | bytes, data: object) -> None:
    conn.write_nowait(reply)


def fail_with(error: type[BaseException]) -> Callable[[object], Awaitable[None]]:
    async def fail(data: object) -> None:
        raise error

    return fail


def test_no_reference_is_lost_or_kept(lane_c: ModuleType) -> None:
    """After everything that can happen the same objects and references exist as before, errors included."""
    shared: list[object] = [None, True, False, lane_c.SocketLane, WithLane, masking_key, ""]
    do_everything(lane_c)
    differences = []
    for _ in range(5):  # the interpreter may come to keep something of its own; not each time
        gc.collect()
        before = [len(gc.get_objects()), *map(sys.getrefcount, shared)]
        for _ in range(5):
            do_everything(lane_c)
        gc.collect()
        now = [len(gc.get_objects()), *map(sys.getrefcount, shared)]
        differences.append([abs(a - b) for a, b in zip(now, before, strict=True)])
        if max(differences[-1]) < 5:
            return
    pytest.fail(f"something was lost or kept each time: {differences}")


def test_memory_does_not_grow(lane_c: ModuleType) -> None:
    """As much memory is in use after twenty rounds of everything as after five."""

    def run(times: int) -> int:
        for _ in range(times):
            do_everything(lane_c)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = run(5)
        assert run(20) - before < 16_384
    finally:
        tracemalloc.stop()


async def test_lane_in_a_circle_is_collected() -> None:
    """A transport whose hook, inbox and receiver refer to it is found by the garbage collector."""

    class Marked(WithLane):
        __slots__ = ("__weakref__",)

    ours, theirs = socket.socketpair()
    transport: Any = Marked(ConnectedSocket(ours), deadlines := Deadlines(), outbox_size=9, write_timeout=9)
    transport.receiver = transport
    transport.reading = transport.full = [transport]
    transport.attach(framing.MessageReader(masked=True, max_message_size=9), partial(getattr, transport), 9)
    transport.arm(transport, transport, transport.write, True, transport, copy_context())
    gone = weakref.ref(transport)
    deadlines.poller.end()
    ours.close()
    theirs.close()
    del transport
    gc.collect()
    assert gone() is None
    await settle()


def test_module_can_be_loaded_again(lane_c: ModuleType) -> None:
    """Two copies of the module share nothing, and one can go: there is no state outside the module."""
    spec = importlib.util.find_spec(NAME)
    assert spec is not None
    assert spec.loader is not None
    other = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(other)
    assert other.SocketLane is not lane_c.SocketLane
    lane, gone = other.SocketLane(), weakref.ref(other)
    del other
    gc.collect()
    assert lane.send_text("text") is False
    with pytest.raises(TypeError, match=r"^reader: "):
        lane.attach(None, None, 1)
    del lane, spec
    gc.collect()
    assert gone() is None
