"""What a program does with one connection, in more than forty ways, each to be cancelled at every point.

A scenario works on a :class:`Rig`: a connection with an outbox that is soon full, and a robot at the other
end that sends numbered messages, reads slowly, and answers pings and closes. A scenario notes what it has
received and what it has written; :func:`tests.security.test_sweep` compares that with the wire.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, NamedTuple

import anyio
import anyio.lowlevel
from anyio.abc import ByteStream, TaskGroup, UNIXSocketStream
from anyio.streams.tls import TLSStream

from anyio_ws import ClientConfig, Config, MessageType, Opcode, broadcast, frame_bin, frame_text
from anyio_ws.deadlines import Deadlines
from anyio_ws.exceptions import ConnectionClosed
from anyio_ws.protocol import Role
from anyio_ws.sockets import ConnectedSocket, SocketTransport
from anyio_ws.tasks import background
from anyio_ws.testing import FaultyStream, WireOracle, build_frame, memory_stream_pair
from anyio_ws.tls import over_socket
from anyio_ws.transport import StreamTransport

from ..memory import WatchedConn
from .arena import tls_contexts

SENT = 6  # messages of the robot
_ENDS = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError)
_LIMITS: Any = {"outbox_size": 150, "ping_interval": None}


class Robot:
    """The other end: sends numbered messages, reads slowly, answers pings and closes.

    :ivar oracle: the judge of what it has read
    :ivar done: set when it has read everything, and its stream is closed
    """

    def __init__(self, stream: ByteStream, role: Role) -> None:
        self.oracle = WireOracle(masked=role is Role.CLIENT)
        self.done = anyio.Event()
        self._stream = stream
        self._key = b"mask" if role is Role.SERVER else None
        self._finishing = anyio.Event()
        self._all_sent = anyio.Event()
        self._closed = False
        self._sending = anyio.Lock()

    def finish(self) -> None:
        """Send a Close when everything is sent."""
        self._finishing.set()

    async def run(self) -> None:
        """Send and read until the connection ends."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._send_all)
            await self._read_all()
            tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await anyio.aclose_forcefully(self._stream)
        self.done.set()

    async def _send(self, opcode: int, payload: bytes = b"") -> None:
        async with self._sending:
            if not self._closed:
                self._closed = opcode == 0x8
                with contextlib.suppress(*_ENDS):
                    await self._stream.send(build_frame(opcode, payload, key=self._key))

    async def _end(self) -> None:
        try:
            await self._stream.send_eof()
        except NotImplementedError:  # TLS has no half-closed state
            await self._stream.aclose()

    async def _send_all(self) -> None:
        for number in range(SENT):
            await self._send(0x1, str(number).rjust(20).encode())
            await anyio.lowlevel.checkpoint()
        self._all_sent.set()
        await self._finishing.wait()
        await self._send(0x8, b"\x03\xe8")

    async def _read_all(self) -> None:
        with contextlib.suppress(*_ENDS):
            while True:
                for frame in self.oracle.feed(await self._stream.receive(100)):
                    if frame.opcode == 0x9:
                        await self._send(0xA, frame.payload)
                    elif frame.opcode == 0x8:
                        await self._all_sent.wait()
                        await self._send(0x8, frame.payload)
                        with contextlib.suppress(*_ENDS):
                            await self._end()
                await anyio.lowlevel.checkpoint()


MESSAGES = [str(number).rjust(20) for number in range(SENT)]


class Rig(NamedTuple):
    """A connection that a scenario works with.

    :ivar got: what was received, in order
    :ivar wrote: opcode and data of every message whose write has returned, in order
    """

    conn: WatchedConn
    robot: Robot
    got: list[Any]
    wrote: list[tuple[int, bytes]]

    async def write(self, size: int = 40) -> None:
        """Write a text that is unlike all others."""
        text = f"{len(self.wrote):4d}".ljust(size, "x")
        await self.conn.write(text)
        self.wrote.append((0x1, text.encode()))

    async def take(self) -> None:
        """Receive a message."""
        self.got.append(await self.conn.receive())


async def _over_memory(
    role: Role, deadlines: Deadlines, tasks: TaskGroup, options: Any
) -> tuple[Any, ByteStream]:
    near, stream = memory_stream_pair(capacity=120)
    return StreamTransport(FaultyStream(near, most=30, most_sent=50), tasks.start_soon, **options), stream


async def _over_sockets(
    role: Role, deadlines: Deadlines, tasks: TaskGroup, options: Any
) -> tuple[Any, ByteStream]:
    ours, theirs = _small_sockets()
    return (
        SocketTransport(ConnectedSocket(ours), deadlines, **options),
        await UNIXSocketStream.from_socket(theirs),
    )


async def _over_tls(
    role: Role, deadlines: Deadlines, tasks: TaskGroup, options: Any
) -> tuple[Any, ByteStream]:
    ours, theirs = _small_sockets()
    is_server = role is Role.SERVER
    contexts = tls_contexts()
    wrapped: list[ByteStream] = []

    async def wrap() -> None:
        inner = await UNIXSocketStream.from_socket(theirs)
        wrapped.append(
            await TLSStream.wrap(
                inner,
                server_side=not is_server,
                hostname="localhost" if is_server else None,
                ssl_context=contexts[is_server],
                standard_compatible=False,
            )
        )

    async with anyio.create_task_group() as handshakes:
        handshakes.start_soon(wrap)
        below = await over_socket(
            ConnectedSocket(ours),
            deadlines,
            contexts[not is_server],
            hostname=None if is_server else "localhost",
            **options,
        )
    return below, wrapped[0]


def _small_sockets() -> tuple[socket.socket, socket.socket]:
    """Make a pair of sockets of which the system holds as little as it can."""
    pair = socket.socketpair()
    for sock in pair:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2_304)
    return pair


TRANSPORTS = {"memory": _over_memory, "sockets": _over_sockets, "tls": _over_tls}


@contextlib.asynccontextmanager
async def rig(role: Role, transport: str) -> AsyncIterator[Rig]:
    """Set up a connection over one of :data:`TRANSPORTS`; at the end it is gone."""
    config = Config(**_LIMITS) if role is Role.SERVER else ClientConfig(**_LIMITS)
    deadlines = Deadlines()
    options: Any = {"outbox_size": config.outbox_size, "write_timeout": config.write_timeout}
    async with background() as tasks:
        tasks.start_soon(deadlines.run)
        below, stream = await TRANSPORTS[transport](role, deadlines, tasks, options)
        conn = WatchedConn(role, below, deadlines, config)
        below.start()
        conn.open(None)
        robot = Robot(stream, role)
        tasks.start_soon(robot.run)
        try:
            yield Rig(conn, robot, [], [])
        finally:
            conn.abort()
            with anyio.fail_after(60, shield=True):
                await conn.wait_gone()
                await robot.done.wait()


# --- the scenarios ----------------------------------------------------------------------------------------

Scenario = Callable[[Rig], Coroutine[Any, Any, None]]
SCENARIOS: dict[str, Scenario] = {}


def scenario(function: Scenario) -> Scenario:
    """Add a scenario to the list."""
    SCENARIOS[function.__name__] = function
    return function


@scenario
async def write_a_little(rig: Rig) -> None:
    for _ in range(3):
        await rig.write()


@scenario
async def write_more_than_fits(rig: Rig) -> None:
    for _ in range(8):
        await rig.write(90)


@scenario
async def write_large_messages(rig: Rig) -> None:
    for _ in range(3):
        await rig.write(5_000)


@scenario
async def write_bytes(rig: Rig) -> None:
    for number in range(6):
        await rig.conn.write_bin(bytes([number]) * 100)
        rig.wrote.append((0x2, bytes([number]) * 100))


@scenario
async def send_as_an_object_stream(rig: Rig) -> None:
    for number in range(6):
        await rig.conn.send(str(number) * 100)
        rig.wrote.append((0x1, str(number).encode() * 100))


@scenario
async def write_framed_messages(rig: Rig) -> None:
    frame = frame_text("framed" * 20)
    for _ in range(6):
        await rig.conn.write_framed(frame)
        rig.wrote.append((0x1, b"framed" * 20))


@scenario
async def write_fragments(rig: Rig) -> None:
    for _ in range(3):
        await rig.conn.write_frame(Opcode.TEXT, b"a" * 90, fin=False)
        with anyio.CancelScope(shield=True):  # whoever begins a message in fragments finishes it
            await rig.conn.write_frame(Opcode.CONTINUATION, b"b" * 90, fin=False)
            await rig.conn.write_frame(Opcode.CONTINUATION, b"c" * 90)
        rig.wrote.append((0x1, b"a" * 90 + b"b" * 90 + b"c" * 90))


@scenario
async def write_what_a_buffer_holds(rig: Rig) -> None:
    for number in range(4):
        async with rig.conn.write_buffer(MessageType.TEXT) as buffer:
            buffer.write(str(number) * 100)
            await buffer.flush()
            rig.wrote.append((0x1, str(number).encode() * 100))


@scenario
async def write_pings_and_pongs(rig: Rig) -> None:
    for _ in range(5):
        await rig.conn.write_ping(b"p" * 60)
        await rig.conn.write_pong(b"q" * 60)


@scenario
async def broadcast_and_write(rig: Rig) -> None:
    for number in range(6):
        if not broadcast([rig.conn], frame_bin(b"%d" % number * 100)):
            rig.wrote.append((0x2, b"%d" % number * 100))
        await rig.write(60)


@scenario
async def ping_once(rig: Rig) -> None:
    await rig.conn.ping()


@scenario
async def ping_behind_writes(rig: Rig) -> None:
    for _ in range(3):
        await rig.write(200)
        await rig.conn.ping()


@scenario
async def ping_from_many_tasks(rig: Rig) -> None:
    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(rig.conn.ping)


@scenario
async def receive_once(rig: Rig) -> None:
    await rig.take()


@scenario
async def receive_everything(rig: Rig) -> None:
    for _ in range(SENT):
        await rig.take()


@scenario
async def iterate(rig: Rig) -> None:
    async for message in rig.conn:
        rig.got.append(message)
        if len(rig.got) == SENT:
            break


@scenario
async def iterate_in_two_loops(rig: Rig) -> None:
    for size in (2, SENT):
        async for message in rig.conn:
            rig.got.append(message)
            if len(rig.got) == size:
                break


@scenario
async def read_with_a_timeout(rig: Rig) -> None:
    while len(rig.got) < SENT:
        message = await rig.conn.read(0.001)
        if message is not None:
            rig.got.append(message.data)


@scenario
async def read_without_a_timeout(rig: Rig) -> None:
    for _ in range(SENT):
        message = await rig.conn.read()
        assert message is not None
        rig.got.append(message.data)


@scenario
async def receive_under_deadlines(rig: Rig) -> None:
    while len(rig.got) < SENT:
        with anyio.move_on_after(0.001):
            await rig.take()


@scenario
async def dispatch(rig: Rig) -> None:
    async def hook(message: Any) -> None:
        rig.got.append(message.data)
        if len(rig.got) == SENT:
            rig.robot.finish()

    await rig.conn.dispatch_all(hook)


@scenario
async def dispatch_to_a_plain_function(rig: Rig) -> None:
    def hook(message: Any) -> None:
        rig.got.append(message.data)
        if len(rig.got) == SENT:
            rig.robot.finish()

    await rig.conn.dispatch_all(hook)


@scenario
async def dispatch_to_a_hook_that_waits(rig: Rig) -> None:
    async def hook(message: Any) -> None:
        rig.got.append(message.data)
        await anyio.lowlevel.checkpoint()
        await rig.write(90)
        if len(rig.got) == SENT:
            rig.robot.finish()

    await rig.conn.dispatch_all(hook)


@scenario
async def echo(rig: Rig) -> None:
    while len(rig.got) < SENT:
        await rig.take()
        await rig.write(70)


@scenario
async def receive_and_write_at_once(rig: Rig) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write_more_than_fits, rig)
        tasks.start_soon(receive_everything, rig)


@scenario
async def write_from_many_tasks(rig: Rig) -> None:
    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(write_in_one_step, rig)


async def write_in_one_step(rig: Rig) -> None:
    """Write several times; what was taken is noted before another task can write."""
    for _ in range(3):
        await rig.write(80)


@scenario
async def write_and_ping_from_many_tasks(rig: Rig) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write_in_one_step, rig)
        tasks.start_soon(write_pings_and_pongs, rig)
        tasks.start_soon(rig.conn.ping)
        tasks.start_soon(write_in_one_step, rig)


@scenario
async def give_up_on_writes(rig: Rig) -> None:
    for _ in range(10):
        with anyio.move_on_after(0):
            await rig.write(90)
        await anyio.lowlevel.checkpoint()


@scenario
async def write_nowait_when_there_is_room(rig: Rig) -> None:
    for number in range(10):
        with contextlib.suppress(anyio.WouldBlock):
            rig.conn.write_nowait(str(number) * 60)
            rig.wrote.append((0x1, str(number).encode() * 60))
        await anyio.lowlevel.checkpoint()


@scenario
async def close(rig: Rig) -> None:
    await rig.conn.close()


@scenario
async def close_with_a_reason(rig: Rig) -> None:
    await rig.conn.close_with_reason(4000, "why")


@scenario
async def close_twice(rig: Rig) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(rig.conn.close)
        tasks.start_soon(rig.conn.close, 4000)


@scenario
async def close_behind_writes(rig: Rig) -> None:
    await rig.write(90)
    await rig.write(300)
    await rig.conn.close()


@scenario
async def close_while_others_write(rig: Rig) -> None:
    async def write() -> None:
        with contextlib.suppress(ConnectionClosed):
            await write_more_than_fits(rig)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write)
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        await rig.conn.close()


@scenario
async def close_while_another_receives(rig: Rig) -> None:
    async def receive() -> None:
        with contextlib.suppress(ConnectionClosed):
            await receive_everything(rig)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(receive)
        await anyio.lowlevel.checkpoint()
        await rig.conn.close()


@scenario
async def close_a_resource(rig: Rig) -> None:
    await rig.write()
    await rig.conn.aclose()


@scenario
async def close_at_the_end_of_a_block(rig: Rig) -> None:
    async with rig.conn:
        await rig.write()
        await rig.take()


@scenario
async def send_eof_and_receive_the_rest(rig: Rig) -> None:
    await rig.write()
    await rig.conn.send_eof()
    await receive_everything(rig)


@scenario
async def answer_the_close_of_the_peer(rig: Rig) -> None:
    rig.robot.finish()
    with contextlib.suppress(anyio.EndOfStream):
        while True:
            await rig.take()
    await rig.conn.wait_gone()


@scenario
async def meet_the_close_of_the_peer(rig: Rig) -> None:
    rig.robot.finish()
    await rig.write(90)
    await rig.conn.close()


@scenario
async def write_until_the_peer_closes(rig: Rig) -> None:
    await receive_everything(rig)
    rig.robot.finish()
    with contextlib.suppress(ConnectionClosed):
        while True:
            await rig.write(90)
            await anyio.lowlevel.checkpoint()


@scenario
async def abort(rig: Rig) -> None:
    await rig.write(90)
    await anyio.lowlevel.checkpoint()
    rig.conn.abort()
    await rig.conn.wait_gone()


@scenario
async def do_everything(rig: Rig) -> None:
    await rig.write()
    await rig.take()
    await rig.conn.ping()
    await write_fragments(rig)
    await rig.take()
    await rig.write(400)
    await rig.conn.close(4001, "done")
