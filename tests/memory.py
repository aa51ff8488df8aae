"""What the tests of a single connection share: one end of it, a peer made of bytes, things that go wrong.

The peer builds and parses frames without the package (``frames.py``), and :func:`judge` knows the rules
of RFC 6455 on the order of frames without it, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable
from functools import partial
from typing import Any, NamedTuple

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import TaskGroup

from anyio_ws.config import ClientConfig, Config
from anyio_ws.conn import Conn
from anyio_ws.deadlines import Deadlines
from anyio_ws.events import MessageType
from anyio_ws.exceptions import ConnectionClosed
from anyio_ws.protocol import Role
from anyio_ws.tasks import background
from anyio_ws.testing import FaultyStream, MemoryStream, memory_stream_pair
from anyio_ws.testing import settle as settle
from anyio_ws.transport import StreamTransport

from .conftest import BACKENDS
from .frames import parse_frames
from .support import CLOSE, Peer, clock_is_virtual, is_trio

CONTINUATION = 0x0
_STREAM_ERRORS = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream)
ROLES = [pytest.param(role, id=role.value) for role in Role]
both_roles = pytest.mark.parametrize("role", ROLES)
"""Run the test with a server's connection and with a client's."""

ON_ASYNCIO = [each for each in BACKENDS if each.id != "trio"]
on_asyncio = pytest.mark.parametrize("anyio_backend", ON_ASYNCIO)
"""Run the test on asyncio and uvloop only, because it uses what only asyncio has."""
on_trio = pytest.mark.parametrize("anyio_backend", [each for each in BACKENDS if each.id == "trio"])
"""Run the test on Trio only, because it is about what only Trio has."""


# --- time -----------------------------------------------------------------------------------------------


def shuffle(seed: int) -> None:
    """Choose the order in which Trio runs tasks that can run; asyncio has only one."""
    if is_trio():
        import trio._core._run

        trio._core._run._r.seed(seed)


class Stopwatch:
    """Tells the seconds since it was made, by the clock of the event loop."""

    def __init__(self) -> None:
        self._start = anyio.current_time()

    def __call__(self) -> float:
        """Return the seconds, rounded so that they can be compared."""
        return round(anyio.current_time() - self._start, 6)


def hold_up(seconds: float) -> None:
    """Have so much virtual time pass in which no task runs, as when a hook blocks the event loop."""
    loop: Any = None if is_trio() else asyncio.get_running_loop()
    if loop is None:
        import trio

        clock: Any = trio.lowlevel.current_clock()
        clock.jump(seconds)
    else:
        loop._clock.now += seconds


# --- one end of a connection ----------------------------------------------------------------------------


class WatchedConn(Conn):
    """A connection that notes how it was lost, each time."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.losses: list[Exception | None] = []

    def connection_lost(self, error: Exception | None) -> None:
        self.losses.append(error)
        super().connection_lost(error)


class Link(NamedTuple):
    """A connection and what is around it."""

    conn: WatchedConn
    peer: Peer
    stream: FaultyStream
    transport: StreamTransport
    tasks: TaskGroup

    @property
    def wire(self) -> MemoryStream:
        """The peer's end of the stream."""
        assert isinstance(self.peer.stream, MemoryStream)
        return self.peer.stream

    async def fill_outbox(self, mark: bytes = b"") -> bytes:
        """Write a message that is longer than the outbox, to a peer that does not read."""
        data = mark.ljust(self.conn._config.outbox_size + 100, b".")
        await self.conn.write_bin(data)
        await settle()
        assert self.transport.full
        return data

    def beside(self, call: Callable[..., Awaitable[object]], *arguments: Any) -> None:
        """Run a function in a task of its own, as long as there is a connection."""

        async def run() -> None:
            with contextlib.suppress(ConnectionClosed, *_STREAM_ERRORS):
                await call(*arguments)

        self.tasks.start_soon(run)

    def listen(self) -> None:
        """Have the peer read everything, in a task of its own; :meth:`judge` tells what it was."""
        self.beside(self._listen)

    async def _listen(self) -> None:
        while True:
            self.peer.received += await self.wire.receive()

    def judge(self) -> list[tuple[int, bytes]]:
        """Judge everything that the peer has read; see :func:`judge`."""
        return judge(bytes(self.peer.received), masked=self.conn._protocol.role is Role.CLIENT)


@contextlib.asynccontextmanager
async def connection(
    role: Role = Role.SERVER,
    *,
    capacity: float = math.inf,
    most: float = math.inf,
    manual: Iterable[MessageType] = (),
    early: bytes = b"",
    is_open: bool = True,
    **fields: Any,
) -> AsyncIterator[Link]:
    """Open one end of a connection in memory; keepalive is off unless *fields* say otherwise.

    :param capacity: unread bytes at which sending waits, in each direction
    :param most: how many bytes the connection receives at most at a time
    :param manual: the control frames that are not answered
    :param early: bytes that came with the opening handshake
    :param is_open: do not leave it in its opening handshake
    :param fields: fields of its configuration

    At the end it is aborted, and must have been lost exactly once and have left nothing behind. A block
    that does not end fails.
    """
    fields = {"ping_interval": None, **fields}
    config = Config(**fields) if role is Role.SERVER else ClientConfig(**fields)
    ours, theirs = memory_stream_pair(capacity)
    stream = FaultyStream(ours, most=most)
    deadlines = Deadlines()
    with anyio.fail_after(3600 if clock_is_virtual() else 60):
        async with background() as tasks:
            tasks.start_soon(deadlines.run)
            transport = StreamTransport(
                stream, tasks.start_soon, outbox_size=config.outbox_size, write_timeout=config.write_timeout
            )
            conn = WatchedConn(role, transport, deadlines, config)
            transport.start()
            if is_open:
                conn.open(None, manual=frozenset(manual), early=early)
            try:
                yield Link(conn, Peer(theirs, is_client=role is Role.SERVER), stream, transport, tasks)
            finally:
                conn.abort()
                with anyio.CancelScope(shield=True):
                    await conn.wait_gone()
    assert len(conn.losses) == 1
    assert stream.calls["aclose"] == 1
    assert transport.ended
    assert [deadline for *_, deadline in deadlines._heap if deadline.callback is not None] == []


def judge(wire: bytes, *, masked: bool) -> list[tuple[int, bytes]]:
    """Check everything that one end has sent against RFC 6455, and return its messages in order.

    :param wire: the bytes; a frame that is not complete is a ``ValueError``
    :param masked: whether it is a client that sent them
    """
    messages: list[tuple[int, bytes]] = []
    opcode, data = CONTINUATION, b""
    closed = False
    for frame in parse_frames(wire):
        assert not closed, "a frame after the Close (§5.5.1)"
        assert (frame.key is not None) is masked, "only a client masks (§5.1)"
        assert frame.rsv == 0, "no extension was agreed on (§5.2)"
        if frame.opcode >= CLOSE:
            assert frame.fin, "a control frame is whole (§5.5)"
            assert len(frame.payload) <= 125, "a control frame is short (§5.5)"
            messages.append((frame.opcode, frame.payload))
            closed = frame.opcode == CLOSE
            continue
        assert (frame.opcode == CONTINUATION) is (opcode != CONTINUATION), "fragments stay together (§5.4)"
        opcode, data = frame.opcode or opcode, data + frame.payload
        if frame.fin:
            messages.append((opcode, data))
            opcode, data = CONTINUATION, b""
    return messages


# --- cancellation at every point ------------------------------------------------------------------------


class Steps:
    """Awaits something, and calls a function when that waits for the *nth* time.

    :ivar count: how often it has waited
    """

    def __init__(self, call: Awaitable[Any], nth: float = math.inf, action: Callable[[], object] = int):
        self.count = 0
        self._call = call
        self._nth = nth
        self._action = action

    def __await__(self) -> Generator[Any, Any, Any]:
        inner: Any = self._call.__await__()
        go_on = partial(next, inner)
        while True:
            try:
                waits_for = go_on()
            except StopIteration as stop:
                return stop.value
            self.count += 1
            if self.count == self._nth:
                self._action()
            try:
                value = yield waits_for
            except BaseException as exc:  # noqa: BLE001 - it goes where it would have gone
                go_on = partial(inner.throw, exc)
            else:
                go_on = partial(inner.send, value)


class Cut:
    """Runs a call and cancels it at one point; :func:`every_cut` makes one for each point.

    :ivar happened: whether the call was cancelled
    """

    def __init__(self, how: str, nth: int) -> None:
        self.happened = False
        self._how = how
        self._nth = nth

    async def __call__(self, call: Awaitable[Any]) -> Any:
        """Run the call; return what it returned, ``None`` when it was cancelled."""
        result = await getattr(self, f"_{self._how}")(call)
        return None if self.happened else result

    async def _scope(self, call: Awaitable[Any]) -> Any:
        """Cancel a scope when the call waits for the nth time."""
        result = None
        with anyio.CancelScope() as scope:
            result = await Steps(call, self._nth, scope.cancel)
        self.happened = scope.cancelled_caught
        return result

    async def _ticks(self, call: Awaitable[Any]) -> Any:
        """Cancel a scope after n rounds of the event loop, whatever the call is doing then."""
        result, self.happened = None, True
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._tick, tasks.cancel_scope)
            result = await call
            self.happened = False
            tasks.cancel_scope.cancel()
        return result

    async def _tick(self, scope: anyio.CancelScope) -> None:
        for _ in range(self._nth):
            await anyio.lowlevel.checkpoint()
        scope.cancel()

    async def _native(self, call: Awaitable[Any]) -> Any:
        """Cancel an asyncio task when the call waits for the nth time."""

        async def run() -> Any:
            return await Steps(call, self._nth, lambda: task.cancel())

        task = asyncio.get_running_loop().create_task(run())
        await asyncio.wait([task])
        self.happened = task.cancelled()
        return None if self.happened else task.result()


async def every_cut(how: str, *, at_least: int) -> AsyncIterator[Cut]:
    """Make a :class:`Cut` for each point at which a call can be cancelled.

    The block runs again and again, and does its call with a cut that comes later each time, until the
    call is over before it is cut.

    :param how: ``"scope"``, ``"ticks"`` or ``"native"``; see :func:`swept`
    :param at_least: how many points there are at the least: a scenario that never waits proves nothing
    """
    nth = 1
    while True:
        cut = Cut(how, nth)
        yield cut
        if not cut.happened:
            break
        nth += 1
    assert nth > at_least, f"only {nth - 1} points were found"


swept = pytest.mark.parametrize(
    ("anyio_backend", "how"),
    [
        *(pytest.param(each.values[0], "scope", id=f"{each.id}-scope") for each in BACKENDS),
        *(pytest.param(each.values[0], "ticks", id=f"{each.id}-ticks") for each in BACKENDS),
        *(pytest.param(each.values[0], "native", id=f"{each.id}-native") for each in ON_ASYNCIO),
    ],
)
"""Run the test with each way of cancelling on each backend; asyncio has one more of its own."""
