"""Blocking servers: ``def`` hooks in worker threads, so many at a time, with so many messages waiting.

No test sleeps. A hook tells the test that it has begun, and goes on when the test says so.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest

from anyio_ws import (
    Config,
    Conn,
    Handshake,
    Reject,
    Request,
    Response,
    Scratch,
    Server,
    ThreadPoolConfig,
    blocking_mode,
    connect,
    serve,
)
from anyio_ws.backlog import Backlog
from anyio_ws.testing import MemoryListener
from anyio_ws.threads import ThreadPool, ThreadPoolStatistics, is_async
from anyio_ws.transport import READ_SIZE

from . import support
from .support import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    TEXT,
    Peer,
    Serving,
    build_request,
    listening,
    no_hang,
    serving,
    settle,
    take_log,
    virtual,
)

no_surprises = support.no_surprises
pytestmark = pytest.mark.usefixtures("no_surprises")


class Stage:
    """The application object: hooks that run in threads announce themselves, and wait until they may go on.

    :ivar begun: what was announced
    """

    def __init__(self) -> None:
        self.begun: list[Any] = []
        self._news, self._heard = anyio.create_memory_object_stream[Any](10_000)
        self._permits = threading.Semaphore(0)

    def enter(self, what: Any) -> None:
        """In a thread: announce something, and wait for :meth:`let`."""
        self.tell(what)
        self._permits.acquire()

    def tell(self, what: Any) -> None:
        """In a thread: announce something."""
        anyio.from_thread.run_sync(self._note, what)

    def _note(self, what: Any) -> None:
        self.begun.append(what)
        self._news.send_nowait(what)

    async def hear(self) -> Any:
        """Wait for the next announcement, and return it."""
        return await self._heard.receive()

    def let(self, count: int = 1) -> None:
        """Let so many go on."""
        self._permits.release(count)

    def close(self) -> None:
        """Let everybody go on."""
        self._permits.release(100_000)
        self._news.close()
        self._heard.close()


@contextmanager
def stage() -> Iterator[Stage]:
    """Make a stage on which nobody is left behind, whatever fails."""
    it = Stage()
    try:
        yield it
    finally:
        it.close()


@asynccontextmanager
async def on_stage(handler: Any, **fields: Any) -> AsyncIterator[tuple[Serving, Stage]]:
    """Serve with a blocking server, whose application is a stage."""
    threads = {name: fields.pop(name) for name in ("count", "backlog") if name in fields}
    config = Config(blocking=True, thread_pool=ThreadPoolConfig(**threads), **fields)
    with stage() as it:
        async with serving(handler, it, config, leave=True) as served:
            try:
                yield served, it
            finally:
                it.let(100_000)


def threads_of(served: Serving) -> ThreadPoolStatistics:
    """Return what the server says about its threads."""
    found = served.server.statistics().thread_pool
    assert found is not None
    return found


class Waiting:
    """A handler whose hook waits in its thread."""

    def __init__(self, app: Stage) -> None:
        self.app = app

    def client_message(self, data: str) -> None:
        self.app.enter(data)


class Telling(Waiting):
    """A handler whose hook only says what it got."""

    def client_message(self, data: str) -> None:
        self.app.tell(data)


# --- where hooks run ------------------------------------------------------------------------------------


class Everything:
    """A handler that notes for each hook in which mode and in which thread it ran."""

    def __init__(self, app: list[Any]) -> None:
        self.diary = app
        self.note("init")

    def note(self, name: str) -> None:
        self.diary.append((name, blocking_mode(), threading.get_ident()))

    def after_init(self) -> None:
        self.note("after_init")

    def client_message(self, data: Any) -> None:
        self.note("client_message")

    def client_ping(self, data: bytes) -> None:
        self.note("client_ping")

    def client_pong(self) -> None:
        self.note("client_pong")

    def client_close(self, data: bytes) -> None:
        self.note("client_close")

    def close(self) -> None:
        self.note("close")


class EverythingAsync(Everything):
    """The same with ``async def`` hooks."""

    @classmethod
    async def init(cls, app: list[Any]) -> EverythingAsync:
        return cls(app)

    async def after_init(self) -> None:  # type: ignore[override]
        self.note("after_init")

    async def client_message(self, data: Any) -> None:  # type: ignore[override]
        self.note("client_message")

    async def client_ping(self, data: bytes) -> None:  # type: ignore[override]
        self.note("client_ping")

    async def client_pong(self) -> None:  # type: ignore[override]
        self.note("client_pong")

    async def client_close(self, data: bytes) -> None:  # type: ignore[override]
        self.note("client_close")

    async def close(self) -> None:  # type: ignore[override]
        self.note("close")


@pytest.mark.parametrize(
    ("handler", "blocking", "in_thread"),
    [(Everything, True, True), (EverythingAsync, True, False), (Everything, False, False)],
)
async def test_def_hooks_of_a_blocking_server_run_in_worker_threads(
    handler: Any, blocking: bool, in_thread: bool
) -> None:
    """All of them, and only they; ``blocking_mode()`` tells each where it is."""
    diary: list[Any] = []
    async with serving(handler, diary, Config(blocking=blocking), leave=True) as served:
        peer = await served.open()
        for opcode in (TEXT, PING, PONG, CLOSE):
            await peer.send_frame(opcode, b"\x03\xe8" if opcode == CLOSE else b"data")
        await peer.expect_end()
    names = ["init", "after_init", "client_message", "client_ping", "client_pong", "client_close", "close"]
    assert [name for name, *_ in diary] == names
    assert {mode for _, mode, _ in diary} == {in_thread}
    assert all((ident != threading.get_ident()) is in_thread for *_, ident in diary)
    assert not blocking_mode()


async def test_http_handler_of_a_blocking_server_runs_in_a_thread() -> None:
    """An ordinary request must not hold up the connections either."""
    modes: list[bool] = []

    def answer(request: Request) -> Response:
        modes.append(blocking_mode())
        return Response(200, "hello")

    async with serving(Telling, config=Config(blocking=True), http_handler=answer, leave=True) as served:
        peer = served.connect()
        await peer.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await peer.receive_head()).body == b"hello"
    assert modes == [True]


async def test_init_of_a_blocking_server_may_block_and_refuse() -> None:
    """``__init__`` runs in a thread, where a look into a database may take its time."""

    class Refusing(Waiting):
        def __init__(self, handshake: Handshake, app: Stage) -> None:
            super().__init__(app)
            app.enter("judging")
            raise Reject(403)

    async with on_stage(Refusing) as (served, it):
        peer = served.connect()
        await peer.send(build_request())
        assert await it.hear() == "judging"
        it.let()
        assert (await peer.receive_head()).status == 403


async def test_hook_in_a_thread_writes_with_from_thread() -> None:
    """``conn.from_thread`` is how a hook in a thread answers."""

    class Echo:
        def __init__(self, conn: Conn) -> None:
            self.conn = conn

        def client_message(self, data: str) -> None:
            assert blocking_mode()
            self.conn.from_thread.write(data.upper())

    async with serving(Echo, config=Config(blocking=True), leave=True) as served:
        peer = await served.open()
        for text in (b"one", b"two"):
            await peer.send_frame(TEXT, text)
            await peer.expect(TEXT, text.upper())


async def test_error_of_a_hook_in_a_thread_closes_its_connection_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is as in the event loop: 1011, logged once, and nobody else is disturbed."""

    class Failing(Telling):
        def client_message(self, data: str) -> None:
            if data == "fail":
                raise ZeroDivisionError
            super().client_message(data)

    async with on_stage(Failing) as (served, it):
        one, other = await served.open(), await served.open()
        await one.send_frame(TEXT, b"fail")
        await one.expect_close(1011)
        await other.send_frame(TEXT, b"fine")
        assert await it.hear() == "fine"
    (record,) = take_log(caplog)
    assert record.exc_info[0] is ZeroDivisionError


async def test_hook_that_returns_an_awaitable_has_it_awaited_in_the_event_loop() -> None:
    """A ``def`` hook may hand on what the event loop is to do."""
    where: list[int] = []

    class Delegating:
        def client_message(self, data: str) -> Any:
            where.append(threading.get_ident())
            return self.go_on()

        async def go_on(self) -> None:
            where.append(threading.get_ident())

    async with serving(Delegating, config=Config(blocking=True), leave=True) as served:
        peer = await served.open()
        await peer.send(peer.build(TEXT, b"x") + peer.build(PING, b"x"))
        await peer.expect(PONG, b"x")
        await peer.close_handshake()
    assert where[0] != threading.get_ident()
    assert where[1] == threading.get_ident()


async def test_scratch_of_a_hook_in_a_thread_begins_and_ends_there() -> None:
    """What is to be done when the hook returns may block as well."""
    idents: list[int] = []
    views: list[memoryview] = []

    class Cleaning:
        def client_message(self, scratch: Scratch, data: Any, message_type: Any) -> None:
            views.append(scratch.alloc(10))
            scratch.callback(lambda: idents.append(threading.get_ident()))
            scratch.enter_context(pytest.raises(ZeroDivisionError))
            raise ZeroDivisionError

    async with serving(Cleaning, config=Config(blocking=True), leave=True) as served:
        peer = await served.open()
        await peer.send_frame(TEXT, b"x")
        await peer.close_handshake()
    assert len(idents) == 1
    assert idents[0] != threading.get_ident()
    with pytest.raises(ValueError, match="released"):
        views[0][0]


async def test_scratch_of_an_async_hook_of_a_blocking_server() -> None:
    """It is made in the event loop, as ever."""
    seen: list[Any] = []

    class Async:
        async def client_message(self, scratch: Scratch, data: Any) -> None:
            seen.append(bytes(scratch.alloc(3)))

    async with serving(Async, config=Config(blocking=True), leave=True) as served:
        peer = await served.open()
        await peer.send_frame(TEXT, b"x")
        await peer.close_handshake()
    assert seen == [bytes(3)]


async def test_message_view_is_valid_in_the_thread_and_no_longer() -> None:
    """A view lives as long as its hook, wherever that runs."""
    seen: list[Any] = []

    class Viewing:
        def client_message(self, data: Any) -> None:
            seen.append((data, bytes(data)))

    async with serving(Viewing, config=Config(blocking=True, message_view=True), leave=True) as served:
        peer = await served.open()
        await peer.send_frame(BINARY, b"data")
        await peer.close_handshake()
        assert seen[0][1] == b"data"
        with pytest.raises(ValueError, match="released"):
            seen[0][0][0]
        assert served.server.statistics().buffers.small.in_use == 0


@pytest.mark.parametrize("name", ["blocking", "message_view"])
async def test_function_takes_no_settings_for_hooks(name: str) -> None:
    """A setting that would do nothing is refused where the server is made."""

    async def handler(conn: Conn) -> None:
        raise AssertionError

    with pytest.raises(ValueError, match=rf"^{name}: it is for the hooks of a handler"):
        settings: dict[str, Any] = {name: True}
        await serve(handler, Config(**settings))


# --- thread_pool.count ----------------------------------------------------------------------------------


async def test_thread_pool_count_is_how_many_hooks_run_at_one_time() -> None:
    """With two threads a third hook waits until one of them is free, and says so in the statistics."""
    async with on_stage(Waiting, count=2) as (served, it):
        peers = [await served.open() for _ in range(5)]
        for number, peer in enumerate(peers):
            await peer.send_frame(TEXT, str(number).encode())
            await settle()
        assert {await it.hear(), await it.hear()} == {"0", "1"}
        assert threads_of(served) == ThreadPoolStatistics(
            count=2, running=2, queued=3, backlog=500, undispatched=3
        )
        for number in (2, 3, 4):
            it.let()
            assert await it.hear() == str(number)
            assert threads_of(served).running == 2
        assert threads_of(served) == ThreadPoolStatistics(
            count=2, running=2, queued=0, backlog=500, undispatched=0
        )


async def test_hooks_of_one_connection_run_one_at_a_time_and_in_order() -> None:
    """However many threads there are. [H4]"""
    overlaps: list[str] = []
    lock = threading.Lock()

    class Ordered(Telling):
        def client_message(self, data: str) -> None:
            if not lock.acquire(blocking=False):
                overlaps.append(data)
            super().client_message(data)
            lock.release()

    async with on_stage(Ordered, count=4) as (served, it):
        peer = await served.open()
        await peer.send(b"".join(peer.build(TEXT, str(number).encode()) for number in range(50)))
        assert [await it.hear() for _ in range(50)] == [str(number) for number in range(50)]
    assert overlaps == []


def test_statistics_have_no_thread_pool_when_there_are_no_threads() -> None:
    """A server that is not blocking, or does not listen, has none."""
    assert Server(Telling).statistics().thread_pool is None
    assert Server(Telling, Config(blocking=True)).statistics().thread_pool is None


# --- thread_pool.backlog --------------------------------------------------------------------------------


@pytest.fixture
def most(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note how many messages wait, each time that it changes."""
    noted: list[int] = [0]
    change = Backlog.change

    def noting(self: Backlog, difference: int) -> None:
        noted.append(self.count + difference)
        change(self, difference)

    monkeypatch.setattr(Backlog, "change", noting)
    return noted


async def flood(peer: Peer, name: str, count: int) -> None:
    """Send messages, each in a send of its own."""
    for number in range(count):
        await peer.send_frame(TEXT, f"{name}{number}".encode())


async def test_thread_pool_backlog_stops_the_reading_and_nothing_is_lost(most: list[int]) -> None:
    """While so many messages wait no peer is read: their sends wait; then everything arrives, in order."""
    async with on_stage(Waiting, count=1, backlog=10) as (served, it), anyio.create_task_group() as tasks:
        peers = {name: served.connect(capacity=100) for name in "abc"}
        for peer in peers.values():
            await peer.open()
        for name, peer in peers.items():
            tasks.start_soon(flood, peer, name, 200)
        first = await it.hear()
        await settle()
        assert threads_of(served).undispatched <= 10
        sent = sum(stream_size(peer) for peer in peers.values())
        await settle()
        assert sum(stream_size(peer) for peer in peers.values()) == sent
        assert not any(conn._transport.reading for conn in conns_of(served))
        it.let(10_000)
        heard = [first, *[await it.hear() for _ in range(599)]]
        for name in peers:
            assert [each for each in heard if each[0] == name] == [f"{name}{n}" for n in range(200)]
        assert threads_of(served).undispatched == 0
        assert 8 <= max(most) <= 10
        assert all(conn._transport.reading for conn in conns_of(served))


def conns_of(served: Serving) -> list[Any]:
    """Return the server's ends of all connections."""
    listening_ = served.server._listening
    assert listening_ is not None
    return [link._conn for link in listening_.links]


def stream_size(peer: Peer) -> int:
    """Return how many bytes that a peer has sent were not received."""
    stream: Any = peer.stream
    return len(stream._outgoing.data)


@pytest.mark.parametrize("backlog", [1, 2, 7])
async def test_thread_pool_backlog_holds_for_messages_that_come_in_one_read(
    most: list[int], backlog: int
) -> None:
    """Of one read no more messages are taken than may wait; the others are looked at later."""
    async with on_stage(Telling, count=1, backlog=backlog) as (served, it):
        peer = await served.open()
        texts = ["", "x" * 3_000, *[str(number) for number in range(100)]]
        await peer.send(b"".join(peer.build(TEXT, text.encode()) for text in texts))
        assert [await it.hear() for _ in texts] == texts
        assert max(most) <= backlog
        await peer.close_handshake()


async def test_no_more_is_read_as_long_as_something_was_not_looked_at() -> None:
    """However many messages one read holds: while they wait there is no further one."""
    async with on_stage(Waiting, count=1, backlog=2) as (served, it):
        peer = await served.open()
        await peer.send(peer.build(TEXT, b"abcd") * 50_000)
        (conn,) = conns_of(served)
        for _ in range(50):
            assert await it.hear() == "abcd"
            await settle()
            assert 0 < len(conn._unread) <= READ_SIZE
            assert not conn._transport.reading
            it.let()
        conn.abort()


async def test_messages_behind_the_opening_handshake_are_counted(most: list[int]) -> None:
    """What comes with the request waits like everything else."""
    async with on_stage(Telling, count=1, backlog=3) as (served, it):
        peer = served.connect()
        frames = [peer.build(TEXT, str(number).encode()) for number in range(50)]
        await peer.send(build_request() + b"".join(frames))
        assert (await peer.receive_head()).status == 101
        assert [await it.hear() for _ in frames] == [str(number) for number in range(50)]
        assert max(most) <= 3


async def test_connection_that_floods_leaves_room_for_others() -> None:
    """Of two that wait, the one with a single message does not wait behind all of the other's."""
    async with on_stage(Waiting, count=1, backlog=20) as (served, it), anyio.create_task_group() as tasks:
        greedy, modest = served.connect(capacity=100), await served.open()
        await greedy.open()
        tasks.start_soon(flood, greedy, "g", 500)
        await it.hear()
        await settle()
        assert 5 <= threads_of(served).undispatched <= 10
        await modest.send_frame(TEXT, b"modest")
        await settle()
        it.let(2)
        assert sorted([await it.hear(), await it.hear()]) == ["g1", "modest"]
        tasks.cancel_scope.cancel()


async def test_backlog_over_sockets_fills_the_peer_s_send_buffer() -> None:
    """With real sockets the peer's ``send`` waits, and everything arrives when hooks go on."""
    payload = b"x" * 10_000
    config = Config(port=0, blocking=True, thread_pool=ThreadPoolConfig(count=1, backlog=4))
    received = 0

    class Counting(Waiting):
        def client_message(self, data: str) -> None:
            nonlocal received
            received += 1
            super().client_message(data[:1])

    with stage() as it:
        server = Server(Counting, config)
        async with listening(server, it) as ((host, port),), connect(f"ws://{host}:{port}/") as client:
            sent = 0
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:

                    async def send_all() -> None:
                        nonlocal sent
                        while True:
                            await client.write_bin(payload, compress=False)
                            sent += 1

                    tasks.start_soon(send_all)
                    await it.hear()
                    await until_stuck(lambda: sent, server)
                    scope.cancel()
            assert received == 1
            found = server.statistics().thread_pool
            assert found is not None
            assert found.undispatched <= 4
            it.let(100_000)
            await client.write("the last")
            while await it.hear() != "t":
                pass
            assert received == sent + 1
            await client.close()


async def until_stuck(count: Any, server: Server[Any]) -> None:
    """Wait until the server reads nothing and the peer's sends wait."""
    last, calm = -1, 0
    while calm < 50:
        await anyio.lowlevel.checkpoint()
        found = server.statistics().thread_pool
        stuck = count() == last and found is not None and found.undispatched >= 2
        last, calm = count(), calm + 1 if stuck else 0


async def test_close_behind_messages_that_wait_is_answered_after_them() -> None:
    """The peer's Close is found when its messages are dispatched, and answered with its code."""
    async with on_stage(Telling, count=1, backlog=2) as (served, it):
        peer = await served.open()
        frames = [peer.build(TEXT, str(number).encode()) for number in range(20)]
        await peer.send(b"".join(frames) + peer.build(CLOSE, b"\x0f\xa0"))
        await peer.expect_close(4000)
        await peer.expect_end()
        assert it.begun == [str(number) for number in range(20)]


async def test_closing_finds_the_peer_s_close_behind_messages_that_wait() -> None:
    """A hook that closes is not kept waiting by what was received and not looked at."""

    class Closing(Waiting):
        def __init__(self, conn: Conn, app: Stage) -> None:
            super().__init__(app)
            self.conn = conn

        def client_message(self, data: str) -> None:
            self.app.enter(data)
            self.conn.from_thread.close(4001, "enough")
            self.app.tell((self.conn.close_code, self.conn.closed_by))

    async with on_stage(Closing, count=1, backlog=1) as (served, it):
        peer = await served.open()
        frames = [peer.build(TEXT, str(number).encode()) for number in range(20)]
        await peer.send(b"".join(frames) + peer.build(CLOSE, b"\x0f\xa0"))
        assert await it.hear() == "0"
        it.let()
        await peer.expect_close(4001, "enough")
        await peer.expect_end()
        assert (await it.hear())[0] == 4000
        assert threads_of(served).undispatched == 0


async def test_end_of_the_stream_comes_after_what_waits() -> None:
    """A peer that sends and leaves has its messages handled."""
    async with on_stage(Telling, count=1, backlog=1) as (served, it):
        peer = await served.open()
        await peer.send(b"".join(peer.build(TEXT, str(number).encode()) for number in range(20)))
        await peer.stream.send_eof()
        assert [await it.hear() for _ in range(20)] == [str(number) for number in range(20)]
        await settle()
        assert await peer.rest() == b""
        assert threads_of(served).undispatched == 0


async def test_connections_that_end_leave_the_backlog() -> None:
    """Messages whose connection is aborted wait no more, so that others go on."""
    async with on_stage(Waiting, count=1, backlog=4) as (served, it), anyio.create_task_group() as tasks:
        blocker, other = await served.open(), served.connect(capacity=50)
        await other.open()
        await blocker.send_frame(TEXT, b"blocker")
        await it.hear()
        tasks.start_soon(flood, other, "o", 30)
        await settle()
        assert threads_of(served).undispatched >= 2
        (conn,) = [conn for conn in conns_of(served) if not conn._transport.reading]
        conn.close_nowait()
        await settle()
        # Its hook waits for a thread; of the messages behind it nothing is left.
        assert threads_of(served).undispatched == 1
        it.let(2)
        assert await it.hear() == "o0"
        assert threads_of(served).undispatched == 0
        tasks.cancel_scope.cancel()


async def test_hook_that_receives_goes_on_with_messages_that_wait() -> None:
    """``conn.receive()`` in an ``async def`` hook takes messages out of the backlog as well."""
    got: list[Any] = []

    class Receiving:
        def __init__(self, conn: Conn) -> None:
            self.conn = conn

        async def client_message(self, data: str) -> None:
            got.append([data, await self.conn.receive(), await self.conn.receive()])

    config = Config(blocking=True, thread_pool=ThreadPoolConfig(backlog=1))
    async with serving(Receiving, config=config, leave=True) as served:
        peer = await served.open()
        await peer.send(b"".join(peer.build(TEXT, str(number).encode()) for number in range(9)))
        await settle()
        assert got == [["0", "1", "2"], ["3", "4", "5"], ["6", "7", "8"]]
        assert threads_of(served).undispatched == 0


async def test_async_hooks_that_have_begun_do_not_wait() -> None:
    """However long they take: the backlog is of messages whose hook has not begun."""
    release = anyio.Event()

    class Slow:
        async def client_message(self, data: str) -> None:
            await release.wait()

    config = Config(blocking=True, thread_pool=ThreadPoolConfig(backlog=2))
    async with serving(Slow, config=config, leave=True) as served:
        for _ in range(5):
            peer = await served.open()
            await peer.send_frame(TEXT, b"x")
        await settle()
        assert threads_of(served).undispatched == 0
        release.set()


@virtual
async def test_connection_that_is_not_read_is_not_taken_for_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keepalive does not blame a peer for what we do not read; its pings are answered later."""
    room = [0]
    monkeypatch.setattr(Backlog, "room_for", lambda self, own: room[0])
    got: list[str] = []

    class Collecting:
        async def client_message(self, data: str) -> None:
            got.append(data)

    config = Config(blocking=True, ping_interval=5.0, ping_timeout=5.0)
    async with serving(Collecting, config=config, leave=True) as served:
        peer = await served.open()
        await peer.send(peer.build(TEXT, b"one") + peer.build(PING, b"?") + peer.build(TEXT, b"two"))
        for _ in range(10):
            assert (await peer.frame()).opcode == PING
        assert got == []
        room[0] = 10
        conns_of(served)[0].go_on()
        await settle()
        assert got == ["one", "two"]
        await peer.expect(PONG, b"?")
        assert conns_of(served)[0]._transport.reading
        await peer.close_handshake()


@virtual
async def test_end_of_the_stream_that_is_seen_early_comes_after_what_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where it is noticed before what was received is looked at, it has to wait."""
    room = [0]
    monkeypatch.setattr(Backlog, "room_for", lambda self, own: room[0])
    got: list[str] = []

    class Collecting:
        async def client_message(self, data: str) -> None:
            got.append(data)

    async with serving(Collecting, config=Config(blocking=True), leave=True) as served:
        peer = await served.open()
        await peer.send(peer.build(TEXT, b"one") + peer.build(TEXT, b"two"))
        await settle()
        (conn,) = conns_of(served)
        await peer.stream.send_eof()
        conn._transport.resume()
        await settle()
        assert not conn.is_gone
        room[0] = 10
        conn.go_on()
        await settle()
        assert got == ["one", "two"]
        assert await peer.rest() == b""


@virtual
async def test_close_is_found_even_if_others_take_all_the_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once we are closing, what was received is looked at whoever waits: the peer's Close may be there."""
    monkeypatch.setattr(Backlog, "room_for", lambda self, own: 0)

    class Handler:
        async def client_message(self, data: str) -> None:
            raise AssertionError

    async with serving(Handler, config=Config(blocking=True), leave=True) as served:
        peer = await served.open()
        await peer.send(peer.build(TEXT, b"one") + peer.build(CLOSE, b"\x0f\xa0"))
        await settle()
        (conn,) = conns_of(served)
        conn.close_nowait(4001)
        await peer.expect_close(4001)
        await peer.expect_end()
        assert conn.close_code == 4000


# --- the way down ---------------------------------------------------------------------------------------


async def test_server_that_stops_lets_a_running_hook_finish() -> None:
    """The peer sees 1001 at once, and ``close`` comes after the hook."""

    class Closing(Waiting):
        def client_message(self, data: str) -> None:
            super().client_message(data)
            self.app.tell("done")

        def close(self) -> None:
            self.app.tell("close")

    async with on_stage(Closing) as (served, it):
        peer = await served.open()
        await peer.send_frame(TEXT, b"hook")
        assert await it.hear() == "hook"
        served.server.stop()
        await peer.expect_close(1001)
        await peer.send_close(1001)
        await peer.expect_end()
        assert it.begun == ["hook"]
        it.let()
        assert [await it.hear(), await it.hear()] == ["done", "close"]


async def test_server_that_is_cancelled_waits_for_a_running_hook(caplog: pytest.LogCaptureFixture) -> None:
    """A thread cannot be cancelled; one that ends in time is waited for, and ``close`` comes after it."""

    class Closing(Waiting):
        def client_message(self, data: str) -> None:
            self.app.enter(data)
            self.app.begun.append("done")

        async def close(self) -> None:
            self.app.begun.append("close")

    with stage() as it:
        server = Server(Closing, Config(blocking=True))
        listener = MemoryListener()
        async with no_hang(), anyio.create_task_group() as tasks:
            await tasks.start(partial(server.listen, it, listeners=[listener]))
            peer = Peer(listener.connect())
            await peer.open()
            await peer.send_frame(TEXT, b"hook")
            await it.hear()
            tasks.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await peer.expect_close(1001)
                await peer.send_close(1001)
                it.let()
        assert it.begun == ["hook", "done", "close"]


@pytest.mark.parametrize("close_in_thread", [False, True])
async def test_hook_that_does_not_end_is_left_behind(
    caplog: pytest.LogCaptureFixture, close_in_thread: bool
) -> None:
    """Nobody waits longer than ``close_timeout`` for it; then comes ``close``, and the log says so. [H9]"""

    class Stuck(Waiting):
        def close(self) -> Any:
            assert blocking_mode() is close_in_thread
            self.app.begun.append("close")

    if not close_in_thread:

        async def close(self: Any) -> None:
            self.app.begun.append("close")

        Stuck.close = close  # type: ignore[method-assign]

    with stage() as it:
        server = Server(Stuck, Config(blocking=True, close_timeout=60))
        listener = MemoryListener()
        async with no_hang(), anyio.create_task_group() as tasks:
            await tasks.start(partial(server.listen, it, listeners=[listener]))
            peer = Peer(listener.connect())
            await peer.open()
            await peer.send_frame(TEXT, b"hook")
            await it.hear()
            threads = server._listening.threads if server._listening else None
            assert threads is not None
            assert threads._grace == 60
            threads._grace = 0.05  # it is certain that this hook does not end; its close may take its time
            tasks.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await peer.stream.aclose()
        assert it.begun == ["hook", "close"]
    (record,) = take_log(caplog, "WARNING")
    assert "left behind in its thread after 0.05 seconds" in record.getMessage()


async def test_hook_that_waits_for_a_thread_never_runs_when_it_is_cancelled() -> None:
    """Its connection is gone when a thread is free, and so is the message."""
    with stage() as it:
        server = Server(Waiting, Config(blocking=True, thread_pool=ThreadPoolConfig(count=1)))
        listener = MemoryListener()
        async with no_hang(), anyio.create_task_group() as tasks:
            await tasks.start(partial(server.listen, it, listeners=[listener]))
            peers = [Peer(listener.connect()) for _ in range(2)]
            for peer in peers:
                await peer.open()
            for peer in peers:
                await peer.send_frame(TEXT, b"hook")
                await settle()
            await it.hear()
            found = server.statistics().thread_pool
            assert found is not None
            assert (found.running, found.queued) == (1, 1)
            tasks.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                for peer in peers:
                    await peer.stream.aclose()
                await settle()  # from now on nothing waits for a thread
                found = server.statistics().thread_pool
                assert found is not None
                assert (found.running, found.queued) == (1, 0)
                it.let()
        assert it.begun == ["hook"]


# --- the threads by themselves --------------------------------------------------------------------------


async def test_call_that_is_revoked_before_it_begins_never_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the cancellation and the thread one of them comes first, and the other knows."""
    pool = ThreadPool(1, 5.0)
    ran: list[str] = []
    late: list[Any] = []

    async def run_late(call: Any, **options: Any) -> None:
        late.append(call)
        await anyio.sleep_forever()

    monkeypatch.setattr(anyio.to_thread, "run_sync", run_late)
    async with no_hang(), anyio.create_task_group() as tasks:
        tasks.start_soon(partial(pool.run, ran.append, "ran"))
        await settle()
        tasks.cancel_scope.cancel()
    assert late[0]() == (None,)
    assert ran == []


async def test_pool_returns_and_raises_what_the_function_does() -> None:
    """Arguments and results go there and back, and the context is that of the caller."""
    pool = ThreadPool(1, 5.0)
    assert await pool.run(divmod, 7, 2) == (3, 1)
    assert await pool.run(sorted, [2, 1, 3], reverse=True) == [3, 2, 1]
    with pytest.raises(ZeroDivisionError):
        await pool.run(divmod, 1, 0)
    assert await pool.run(blocking_mode)
    assert not blocking_mode()
    assert (pool.running, pool.queued) == (0, 0)


def test_is_async_tells_what_makes_a_coroutine() -> None:
    """Functions, methods, partials and objects with ``async def __call__``; a class does not."""

    class Called:
        async def __call__(self) -> None: ...

        async def method(self) -> None: ...

        def plain(self) -> None: ...

    async def function() -> None: ...

    for each in (function, partial(partial(function)), Called(), Called().method):
        assert is_async(each)
    for other in (Called, Called().plain, print, partial(print), lambda: function()):
        assert not is_async(other)
