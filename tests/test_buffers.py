"""Memory that is used again: what is lent, what comes back, and that nobody sees another one's data.

The first part is the pools by themselves. The second shows each setting by what the statistics of a server
or client say about messages that arrive in pieces, and by the memory that is held.
"""

from __future__ import annotations

import gc
import threading
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from random import Random
from typing import Any

import anyio
import pytest

from anyio_ws import (
    BuffersConfig,
    Client,
    ClientConfig,
    Config,
    HandshakeConfig,
    Message,
    MessageType,
    Server,
    buffer_provider,
    connect,
    testing,
)
from anyio_ws.buffers import (
    BufferPool,
    BufferWriter,
    ConnectionBuffers,
    MessageStorage,
    PoolStatistics,
    is_exported,
)

from . import support
from .frames import cut
from .support import BINARY, CLOSE, TEXT, Peer, Serving, build_request, no_hang, serving, settle, virtual

no_surprises = support.no_surprises
pytestmark = pytest.mark.usefixtures("no_surprises")


def counts(pool: PoolStatistics) -> tuple[int, int, int, int]:
    """Return what changes: in use, created, reused, fallback."""
    return pool.in_use, pool.created, pool.reused, pool.fallback


# --- a pool by itself -----------------------------------------------------------------------------------


def test_pool_makes_buffers_when_they_are_needed_and_lends_them_again() -> None:
    """Nothing is made ahead; what came back is lent before another is made."""
    pool = BufferPool(2, 100)
    assert pool.statistics() == PoolStatistics(100, 2, 0, 0, 0, 0)
    first = pool.take(1)
    assert len(first) == 100
    pool.give(first)
    assert pool.take(100) is first
    second = pool.take(50)
    assert second is not first
    assert pool.statistics() == PoolStatistics(100, 2, in_use=2, created=2, reused=1, fallback=0)


def test_pool_that_is_empty_lends_fresh_memory_of_the_size_asked_for() -> None:
    """Nobody waits: past ``count`` the memory is fresh, and is nothing to the pool when it comes back."""
    pool = BufferPool(1, 100)
    lent = pool.take(10)
    fresh = pool.take(10)
    assert len(fresh) == 10
    pool.give(fresh)
    assert counts(pool.statistics()) == (1, 1, 0, 1)
    pool.give(lent)
    assert pool.take(10) is lent


def test_pool_lends_fresh_memory_for_more_than_its_size() -> None:
    """A buffer that is too small is not lent."""
    pool = BufferPool(1, 100)
    assert len(pool.take(101)) == 101
    assert counts(pool.statistics()) == (0, 0, 0, 1)


def test_pool_of_none_lends_fresh_memory_only() -> None:
    """``count=0`` is a pool that has nothing."""
    pool = BufferPool(0, 100)
    pool.give(pool.take(10))
    assert counts(pool.statistics()) == (0, 0, 0, 1)


def test_pool_takes_a_buffer_back_once() -> None:
    """A buffer that is given twice, or belongs to another pool, is not lent twice."""
    pool, other = BufferPool(2, 100), BufferPool(1, 100)
    lent = pool.take(1)
    pool.give(lent)
    pool.give(lent)
    pool.give(other.take(1))
    assert pool.take(1) is lent
    assert pool.take(1) is not lent
    assert pool.statistics().in_use == 2


@pytest.mark.parametrize("hold", [memoryview, lambda buffer: memoryview(buffer)[10:20]])
def test_pool_does_not_lend_what_somebody_still_looks_at(hold: Any) -> None:
    """A buffer with a view on it is dropped and replaced: its next user's data would be seen there."""
    pool = BufferPool(1, 100)
    lent = pool.take(1)
    view = hold(lent)
    pool.give(lent)
    assert pool.take(1) is not lent
    assert counts(pool.statistics()) == (1, 2, 0, 0)
    del view


def test_pool_does_not_lend_a_buffer_that_was_resized() -> None:
    """What comes back shorter than it was lent is dropped."""
    pool = BufferPool(1, 100)
    lent = pool.take(1)
    del lent[50:]
    pool.give(lent)
    assert len(pool.take(1)) == 100


def test_pool_keeps_one_longer_buffer_and_lends_it_again() -> None:
    """Whoever needs more than ``size`` gets it, as far as it reaches; past ``longest`` memory is fresh."""
    pool = BufferPool(1, 100, longest=1_000)
    long = pool.take(500)
    assert len(long) == 500
    pool.give(long)
    assert pool.take(101) is long
    pool.give(long)
    assert len(pool.take(100)) == 100
    too_long = pool.take(1_001)
    pool.give(too_long)
    assert pool.take(500) is long
    assert counts(pool.statistics()) == (1, 1, 2, 2)


def test_pool_replaces_its_longer_buffer_by_one_that_is_needed() -> None:
    """While it is lent, or too short, a new one takes its place, and is the one that is kept."""
    pool = BufferPool(1, 100, longest=1_000)
    first, second = pool.take(500), pool.take(400)
    pool.give(second)
    pool.give(first)
    assert pool.take(300) is second
    pool.give(second)
    third = pool.take(401)
    assert len(third) == 401
    pool.give(third)
    assert pool.take(400) is third
    assert counts(pool.statistics()) == (0, 0, 2, 3)


def test_pool_takes_its_longer_buffer_back_once() -> None:
    """Given twice it is lent to one only; and it is dropped while somebody looks at it."""
    pool = BufferPool(1, 100, longest=1_000)
    long = pool.take(500)
    pool.give(long)
    pool.give(long)
    assert pool.take(500) is long
    other = pool.take(500)
    assert other is not long
    with memoryview(other):
        pool.give(other)
    assert pool.take(500) is not other


def test_pool_counts_right_when_many_threads_use_it() -> None:
    """Each of its threads has a buffer to itself, and the numbers add up."""
    pool = BufferPool(3, 64)
    start = threading.Barrier(8)
    mixed: list[bytes] = []

    def use(mark: int) -> None:
        start.wait()
        for _ in range(300):
            buffer = pool.take(64)
            buffer[:] = bytes([mark]) * 64
            if buffer.count(mark) != 64:
                mixed.append(bytes(buffer))
            pool.give(buffer)

    threads = [threading.Thread(target=use, args=(mark,)) for mark in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert mixed == []
    found = pool.statistics()
    assert found.in_use == 0
    assert found.created <= 3
    assert found.created + found.reused + found.fallback == 8 * 300


def test_pool_says_what_it_is() -> None:
    """Its ``repr`` names number and size."""
    assert repr(buffer_provider(3, 64)) == "<BufferPool of 3 with 64 bytes>"


def test_is_exported_tells_whether_a_buffer_is_looked_at_and_changes_nothing() -> None:
    """A view counts as long as it lives; the buffer is the same afterwards, an empty one, too."""
    buffer = bytearray(b"abc")
    assert not is_exported(buffer)
    with memoryview(buffer):
        assert is_exported(buffer)
    assert not is_exported(buffer)
    assert buffer == b"abc"
    assert not is_exported(bytearray())


# --- what a connection keeps messages in ----------------------------------------------------------------


def test_connection_has_one_buffer_of_its_own_made_at_the_first_need() -> None:
    """It is kept and used again; while it is in use a second message of its size has fresh memory."""
    storage = MessageStorage(100, None, BufferPool(1, 200))
    buffers = ConnectionBuffers(storage)
    assert counts(storage.statistics().small) == (0, 0, 0, 0)
    own = buffers.take(100)
    assert len(own) == 100
    assert len(buffers.take(60)) == 60
    assert storage.statistics().small == PoolStatistics(100, None, 1, 1, 0, 1)
    buffers.give(own)
    buffers.give(own)
    assert counts(storage.statistics().small) == (0, 1, 0, 1)
    assert buffers.take(7) is own
    assert ConnectionBuffers(storage).take(7) is not own
    assert counts(storage.statistics().small) == (2, 2, 1, 1)


def test_connection_replaces_its_own_buffer_when_somebody_looks_at_it() -> None:
    """A view that was kept never shows a later message."""
    buffers = ConnectionBuffers(MessageStorage(100, None, BufferPool(1, 200)))
    own = buffers.take(100)
    view = memoryview(own)
    buffers.give(own)
    assert buffers.take(100) is not own
    del view


@pytest.mark.parametrize("pool", [None, 1])
def test_connection_takes_a_large_buffer_for_more_than_its_size(pool: int | None) -> None:
    """The larger ones are shared, and go back to where they came from."""
    storage = MessageStorage(100, pool, BufferPool(1, 200))
    one, other = ConnectionBuffers(storage), ConnectionBuffers(storage)
    large = one.take(101)
    assert len(large) == 200
    assert len(other.take(150)) == 150
    assert counts(storage.statistics().large) == (1, 1, 0, 1)
    one.give(large)
    assert other.take(150) is large


def test_connections_share_buffers_when_there_is_a_pool() -> None:
    """A shared buffer goes from one connection to the other."""
    storage = MessageStorage(100, 1, BufferPool(0, 200))
    one, other = ConnectionBuffers(storage), ConnectionBuffers(storage)
    lent = one.take(100)
    assert len(other.take(9)) == 9
    one.give(lent)
    assert other.take(9) is lent
    assert storage.statistics().small == PoolStatistics(100, 1, 1, 1, 1, 1)


@pytest.mark.parametrize("pool", [None, 1])
def test_connection_lends_for_writing_what_it_does_not_receive_into(pool: int | None) -> None:
    """Its own buffer stays free for the next message."""
    storage = MessageStorage(100, pool, BufferPool(1, 200))
    buffers = ConnectionBuffers(storage)
    assert len(buffers.take_shared(10)) == (200 if pool is None else 100)
    assert len(buffers.take_shared(150)) == (150 if pool is None else 200)
    assert storage.own_in_use == 0


# --- a writer over lent memory --------------------------------------------------------------------------


def test_writer_takes_text_and_bytes_and_grows() -> None:
    """Text is UTF-8; what was there moves along into larger memory, and the smaller goes back."""
    pool = BufferPool(1, 8)
    writer = BufferWriter(pool.take, pool.give, 4)
    assert pool.statistics().in_use == 0
    assert writer
    assert writer.write("é") == 1
    assert writer.write(b"abc") == 3
    assert pool.statistics().in_use == 1
    assert writer.write(memoryview(b"0123456789")[::2]) == 5
    assert writer.write("") == 0
    assert writer.getvalue() == "éabc02468".encode()
    assert len(writer) == 10
    assert bytes(writer.getbuffer()) == writer.getvalue()
    assert counts(pool.statistics()) == (0, 1, 0, 1)


def test_writer_that_was_not_written_to_is_empty() -> None:
    """It has no memory, and nothing in it."""
    writer = BufferWriter(bytearray, id, 4)
    assert writer.getvalue() == bytes(writer.getbuffer()) == b""
    assert len(writer) == 0


@pytest.mark.parametrize("value", [None, 5, ["a"]])
def test_writer_refuses_what_is_neither_text_nor_bytes(value: Any) -> None:
    """The error says what is needed, and nothing is written."""
    writer = BufferWriter(bytearray, id, 4)
    with pytest.raises(TypeError, match="text or bytes are needed, not"):
        writer.write(value)
    with pytest.raises(UnicodeEncodeError):
        writer.write("\ud800")
    assert len(writer) == 0


def test_writer_takes_items_of_any_size_as_their_bytes() -> None:
    """An array of 16-bit numbers is what it is in memory."""
    writer = BufferWriter(bytearray, id, 4)
    assert writer.write(memoryview(b"abcd").cast("H")) == 4
    assert writer.getvalue() == b"abcd"


# --- a server's settings --------------------------------------------------------------------------------


class Collecting:
    """A handler that puts what it gets into the application."""

    def __init__(self, app: list[Any]) -> None:
        self.got = app

    def client_message(self, data: str | bytes) -> None:
        self.got.append(data)


@asynccontextmanager
async def collecting(**fields: Any) -> AsyncIterator[tuple[Serving, list[Any]]]:
    """Serve with these settings of the buffers."""
    got: list[Any] = []
    async with serving(Collecting, got, Config(buffers=BuffersConfig(**fields)), leave=True) as served:
        yield served, got


async def send_half(peer: Peer, payload: bytes, opcode: int = BINARY) -> bytes:
    """Send the first half of a message in a fragment of its own; return the frame that completes it."""
    half = len(payload) // 2
    await peer.send_frame(opcode, payload[:half], fin=False)
    await settle()
    return peer.build(0, payload[half:])


async def test_message_that_arrives_whole_needs_no_buffer() -> None:
    """The pools are for messages that do not."""
    async with collecting() as (served, got):
        peer = await served.open()
        await peer.send_frame(TEXT, b"whole")
        await settle()
        buffers = served.server.statistics().buffers
        assert counts(buffers.small) == counts(buffers.large) == (0, 0, 0, 0)
        assert got == ["whole"]


@pytest.mark.parametrize("cut", [1, 5, 7, 8, 50, 105])
async def test_message_that_arrives_cut_anywhere_is_the_same(cut: int) -> None:
    """What is collected in a used buffer is the message, and nothing of the one before it."""
    async with collecting() as (served, got):
        peer = await served.open()
        for payload in (b"x" * 100, b"y" * 100):
            wire = peer.build(BINARY, payload)
            await peer.send(wire[:cut])
            await settle()
            await peer.send(wire[cut:])
            await settle()
        assert got == [b"x" * 100, b"y" * 100]
        assert served.server.statistics().buffers.small.in_use == 0


async def test_buffers_of_connections_are_their_own_without_a_pool() -> None:
    """``pool=None``: each connection with an incomplete message has a buffer of ``size``, and keeps it."""
    async with collecting(size=100) as (served, got):
        peers = [await served.open() for _ in range(5)]
        for round_ in range(2):
            rests = [await send_half(peer, b"hello world") for peer in peers]
            small = served.server.statistics().buffers.small
            assert small == PoolStatistics(100, None, 5, 5, 5 * round_, 0)
            for peer, rest in zip(peers, rests, strict=True):
                await peer.send(rest)
            await settle()
            assert served.server.statistics().buffers.small.in_use == 0
        assert got == [b"hello world"] * 10


async def test_buffers_pool_is_shared_and_held_only_while_a_message_is_incomplete() -> None:
    """``pool=2``: two connections have a buffer, the third has fresh memory, the next use them again."""
    async with collecting(pool=2, size=100) as (served, got):
        peers = [await served.open() for _ in range(3)]
        rests = [await send_half(peer, b"hello world") for peer in peers]
        assert served.server.statistics().buffers.small == PoolStatistics(100, 2, 2, 2, 0, 1)
        for peer, rest in zip(peers, rests, strict=True):
            await peer.send(rest)
            await settle()
            await peer.send(await send_half(peer, b"again"))
        await settle()
        # The third moves from its fresh memory to a buffer when it grows: that is a use, too.
        assert counts(served.server.statistics().buffers.small) == (0, 2, 4, 1)
        assert sorted(got) == [b"again"] * 3 + [b"hello world"] * 3


async def test_buffers_large_count_and_size_are_for_longer_messages() -> None:
    """A message longer than ``size`` takes one of ``large_count``, a still longer one fresh memory."""
    async with collecting(size=100, large_count=1, large_size=300) as (served, got):
        one, other = await served.open(), await served.open()
        await one.send_frame(BINARY, b"x" * 200, fin=False)
        await settle()
        assert served.server.statistics().buffers.large == PoolStatistics(300, 1, 1, 1, 0, 0)
        await other.send_frame(BINARY, b"y" * 200, fin=False)
        await settle()
        assert counts(served.server.statistics().buffers.large) == (1, 1, 0, 1)
        await one.send_frame(0, b"x" * 101)
        await settle()
        assert counts(served.server.statistics().buffers.large) == (0, 1, 0, 2)
        await other.send_frame(0, b"y")
        await settle()
        assert got == [b"x" * 301, b"y" * 201]


@pytest.mark.parametrize(("large_count", "expected"), [(1, (0, 0, 2, 2)), (0, (0, 0, 0, 6))])
async def test_buffer_that_a_long_message_has_grown_into_is_kept_for_the_next(
    large_count: int, expected: tuple[int, int, int, int]
) -> None:
    """The first takes fresh memory and more of it, those behind it nothing; ``large_count=0`` keeps none."""
    async with collecting(size=100, large_count=large_count, large_size=100) as (served, got):
        peer = await served.open()
        for byte in (b"x", b"y", b"z"):
            await peer.send(await send_half(peer, byte * 40_000))
            await settle()
        assert got == [b"x" * 40_000, b"y" * 40_000, b"z" * 40_000]
        assert counts(served.server.statistics().buffers.large) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [({}, 4_096), ({"size": 600}, 1_200), ({"size": 40_000}, 65_536), ({"large_size": 2**20}, 65_536)],
)
def test_buffers_large_size_is_twice_the_size_and_at_most_the_longest_message(
    fields: dict[str, int], expected: int
) -> None:
    """More than ``max_message_size`` would be memory that no message can use."""
    server = Server(Collecting, Config(buffers=BuffersConfig(**fields)))
    assert server.statistics().buffers.large.size == expected


async def end_by_reset(peer: Peer) -> None:
    await peer.stream.aclose()


async def end_by_close(peer: Peer) -> None:
    await peer.send_close(1000)


async def end_by_violation(peer: Peer) -> None:
    await peer.send_frame(0x3, b"no such opcode")


@pytest.mark.parametrize("pool", [None, 4])
@pytest.mark.parametrize("end", [end_by_reset, end_by_close, end_by_violation])
@pytest.mark.parametrize("size", [20, 300])
async def test_buffer_of_a_message_that_is_never_completed_comes_back(
    pool: int | None, end: Any, size: int
) -> None:
    """Whatever ends a connection in the middle of a message, its buffer is free afterwards."""
    async with collecting(pool=pool, size=100, large_size=300) as (served, got):
        peer = await served.open()
        await send_half(peer, b"x" * 2 * size)
        buffers = served.server.statistics().buffers
        assert buffers.small.in_use + buffers.large.in_use == 1
        await end(peer)
        await settle()
        buffers = served.server.statistics().buffers
        assert buffers.small.in_use + buffers.large.in_use == 0
        assert got == []
        await peer.stream.aclose()


@contextmanager
def memory_taken(most: float, least: float = 0) -> Iterator[None]:
    """Check how much more memory is in use after a block than before it."""
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        yield
        gc.collect()
        assert least <= tracemalloc.get_traced_memory()[0] - before <= most
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("pool", "least", "most"), [(None, 20 * 50_000, 25 * 50_000), (2, 0, 5 * 50_000)])
async def test_buffers_pool_bounds_the_memory_of_idle_connections(
    pool: int | None, least: int, most: int
) -> None:
    """20 connections that had an incomplete message keep 20 buffers of their own, or share 2."""
    async with collecting(pool=pool, size=50_000) as (served, got):
        peers = [await served.open() for _ in range(20)]
        await settle()
        with memory_taken(most, least):
            for peer in peers:
                await peer.send(await send_half(peer, b"hello"))
            await settle()
        assert got == [b"hello"] * 20


@pytest.mark.parametrize("view", [False, True])
@pytest.mark.parametrize("seed", range(3))
async def test_no_connection_sees_anything_of_another(view: bool, seed: int) -> None:
    """Many connections send messages cut anywhere, through few buffers; each gets back its own, whole."""
    random = Random(seed)
    wrong: list[str] = []
    sent = received = 0

    class Checking:
        def __init__(self) -> None:
            self.mark: int | None = None

        async def client_message(self, data: bytes | memoryview) -> None:
            nonlocal received
            received += 1
            await anyio.lowlevel.checkpoint()  # while others receive
            if data:
                self.mark = data[0] if self.mark is None else self.mark
                if bytes(data) != bytes([self.mark]) * len(data):
                    wrong.append(f"connection {self.mark} got {set(data)}")

    buffers = BuffersConfig(pool=2, size=100, large_count=1, large_size=1_000)
    async with serving(Checking, config=Config(buffers=buffers, message_view=view), leave=True) as served:
        peers = [await served.open() for _ in range(10)]
        waiting: list[list[bytes]] = []
        for mark, peer in enumerate(peers):
            wire = b""
            for _ in range(10):
                size = random.choice([0, 1, 50, 99, 100, 101, 999, 1_001, 3_000])
                at = random.randint(0, size)
                wire += peer.build(BINARY, bytes([mark]) * at, fin=False)
                wire += peer.build(0, bytes([mark]) * (size - at))
                sent += 1
            waiting.append(cut(wire, [random.randint(0, len(wire)) for _ in range(20)]))
        while any(waiting):
            number = random.choice([number for number, pieces in enumerate(waiting) if pieces])
            if piece := waiting[number].pop(0):
                await peers[number].send(piece)
            if random.random() < 0.3:
                await settle()
        await settle()
        found = served.server.statistics().buffers
        assert (received, wrong) == (sent, [])
        assert found.small.in_use == found.large.in_use == 0
        assert found.small.created <= 2
        assert found.large.created <= 1
        assert found.small.reused > 0
        assert found.small.fallback + found.large.fallback > 0


# --- the opening handshake ------------------------------------------------------------------------------


async def test_handshake_count_is_how_many_buffers_are_kept_for_requests() -> None:
    """A request in pieces holds a buffer until it is complete; past ``count`` the memory is fresh."""
    config = Config(handshake=HandshakeConfig(count=2, max_size=500))
    request = build_request()
    async with serving(Collecting, [], config, leave=True) as served:
        peers = [served.connect() for _ in range(3)]
        for peer in peers:
            await peer.send(request[:40])
            await settle()
        found = served.server.statistics()
        assert found.handshake == PoolStatistics(500, 2, in_use=2, created=2, reused=0, fallback=1)
        assert (found.connections.accepted, found.connections.in_handshake) == (3, 3)
        for peer in peers:
            await peer.send(request[40:])
            assert (await peer.receive_head()).status == 101
        await settle()
        found = served.server.statistics()
        assert found.handshake.in_use == 0
        assert (found.connections.in_handshake, found.connections.open) == (0, 3)
        again = await served.open()
        # One that arrives whole takes none. The third one found a buffer when it outgrew its fresh memory.
        assert counts(served.server.statistics().handshake) == (0, 2, 1, 1)
        for peer in (*peers, again):
            await peer.close_handshake()
        await settle()
        connections = served.server.statistics().connections
        assert (connections.accepted, connections.in_handshake, connections.open) == (4, 0, 0)


async def test_request_buffer_is_free_while_init_runs() -> None:
    """It is given back as soon as the request is read, however long the application thinks about it."""
    release = anyio.Event()

    class Slow(Collecting):
        @classmethod
        async def init(cls, app: list[Any]) -> Slow:
            await release.wait()
            return cls(app)

    async with serving(Slow, [], leave=True) as served:
        peer = served.connect()
        await peer.send(build_request())
        await settle()
        found = served.server.statistics()
        assert (found.handshake.in_use, found.connections.in_handshake) == (0, 1)
        release.set()
        assert (await peer.receive_head()).status == 101
        await peer.close_handshake()


@virtual
@pytest.mark.parametrize("last", [b"", b"\0", b"x" * 600], ids=["timeout", "malformed", "too long"])
async def test_request_buffer_comes_back_from_a_request_that_is_refused(last: bytes) -> None:
    """A request that is too slow, wrong or too long gives its buffer back like a good one."""
    config = Config(handshake=HandshakeConfig(max_size=500))
    async with serving(Collecting, [], config, leave=True) as served:
        peer = served.connect()
        await peer.send(build_request()[:40])
        await settle()
        assert served.server.statistics().handshake.in_use == 1
        if last:
            await peer.send(last)
        assert (await peer.receive_head()).status in (400, 408, 414, 431)
        assert counts(served.server.statistics().handshake) == (0, 1, 0, 0)
        await peer.stream.aclose()


async def test_request_buffer_comes_back_from_a_peer_that_leaves() -> None:
    """A peer that goes away in the middle of its request holds nothing."""
    async with serving(Collecting, [], leave=True) as served:
        peer = served.connect()
        await peer.send(build_request()[:40])
        await settle()
        await peer.stream.aclose()
        await settle()
        assert counts(served.server.statistics().handshake) == (0, 1, 0, 0)


def test_statistics_of_a_server_that_has_not_begun_are_zero() -> None:
    """They may be asked for at any time."""
    found = Server(Collecting).statistics()
    assert (found.connections.accepted, found.connections.in_handshake, found.connections.open) == (0, 0, 0)
    assert found.handshake == PoolStatistics(8_192, 32)
    assert found.buffers.small == PoolStatistics(2_048, None)
    assert found.buffers.large == PoolStatistics(4_096, 8)
    assert found.scratch == PoolStatistics(32_768, 4)


# --- a client's settings --------------------------------------------------------------------------------


@asynccontextmanager
async def open_client(**fields: Any) -> AsyncIterator[tuple[Client, Peer]]:
    """Connect a client in memory to a peer."""
    ours, theirs = testing.memory_stream_pair()
    peer = Peer(theirs, is_client=False)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(no_hang())
        tasks = await stack.enter_async_context(anyio.create_task_group())
        tasks.start_soon(peer.accept)
        connecting = connect("ws://localhost/", stream=ours, config=ClientConfig(**fields))
        client = await stack.enter_async_context(connecting)
        yield client, peer
        await theirs.aclose()


async def send_in_fragments(peer: Peer, size: int, count: int = 10) -> None:
    """Send a binary message of *size* bytes in *count* fragments."""
    each = size // count
    for number in range(count - 1):
        await peer.send_frame(BINARY if not number else 0, b"x" * each, fin=False)
        await settle()
    await peer.send_frame(0, b"x" * (size - each * (count - 1)))


async def test_client_with_max_size_equal_to_buffer_size_takes_no_further_memory() -> None:
    """Every message, up to the longest, is collected in the connection's own buffer. [K7]"""
    async with open_client(max_size=10_000, buffer_size=10_000) as (client, peer):
        for size in (10, 9_999, 10_000, 10_000):
            await send_in_fragments(peer, size)
            assert await client.receive() == b"x" * size
        found = client.statistics()
        assert found.small == PoolStatistics(10_000, None, in_use=0, created=1, reused=3, fallback=0)
        assert counts(found.large) == (0, 0, 0, 0)


async def test_client_with_a_larger_max_size_takes_fresh_memory_for_longer_messages() -> None:
    """What does not fit into ``buffer_size`` is counted as a fallback. [K7]"""
    async with open_client(max_size=10_000, buffer_size=1_000) as (client, peer):
        await send_in_fragments(peer, 1_000)
        await client.receive()
        assert client.statistics().large.fallback == 0
        await send_in_fragments(peer, 2_000, 2)
        assert await client.receive() == b"x" * 2_000
        found = client.statistics()
        assert counts(found.small) == (0, 1, 1, 0)
        assert counts(found.large) == (0, 0, 0, 1)


async def test_buffer_provider_is_shared_by_clients() -> None:
    """Each takes a buffer for a long message; past ``count`` and ``size`` there is fresh memory. [K9]"""
    provider = buffer_provider(1, 5_000)
    fields = {"buffer_size": 1_000, "buffer_provider": provider}
    async with open_client(**fields) as (one, peer), open_client(**fields) as (other, other_peer):
        await peer.send_frame(BINARY, b"x" * 2_000, fin=False)
        await settle()
        assert provider.statistics() == PoolStatistics(5_000, 1, in_use=1, created=1, reused=0, fallback=0)
        assert one.statistics().large == other.statistics().large == provider.statistics()
        await send_in_fragments(other_peer, 4_000, 2)
        assert len(await other.receive()) == 4_000
        assert counts(provider.statistics()) == (1, 1, 0, 2)  # once more when it grew
        await peer.send_frame(0, b"x")
        assert len(await one.receive()) == 2_001
        await send_in_fragments(other_peer, 4_000, 2)
        assert len(await other.receive()) == 4_000
        assert counts(provider.statistics()) == (0, 1, 1, 2)
        await send_in_fragments(other_peer, 12_000, 2)
        assert len(await other.receive()) == 12_000
        assert counts(provider.statistics()) == (0, 1, 1, 4)


async def test_buffer_of_a_client_comes_back_when_the_connection_is_lost() -> None:
    """A provider does not lose a buffer to a connection that ends in the middle of a message. [K9]"""
    provider = buffer_provider(1, 5_000)
    async with open_client(buffer_size=1_000, buffer_provider=provider) as (client, peer):
        await peer.send_frame(BINARY, b"x" * 2_000, fin=False)
        await settle()
        assert provider.statistics().in_use == 1
        await peer.stream.aclose()
        await client.wait_gone()
        assert provider.statistics().in_use == 0


# --- views ----------------------------------------------------------------------------------------------


class Viewing:
    """A handler that keeps the views that it gets, and what was in them."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def client_message(self, data: Any) -> None:
        self.app.append((data, bytes(data) if isinstance(data, memoryview) else data))
        await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("cut", [None, 6, 40])
async def test_message_view_hands_binary_messages_over_as_views_that_end_with_the_call(
    cut: int | None,
) -> None:
    """``message_view=True``: a ``memoryview``, a ``ValueError`` after the hook, whole or in pieces. [H13]"""
    kept: list[Any] = []
    async with serving(Viewing, kept, Config(message_view=True), leave=True) as served:
        peer = await served.open()
        for payload in (b"x" * 100, b"y" * 50):
            wire = peer.build(BINARY, payload)
            for piece in (wire[:cut], wire[cut:] if cut else b""):
                await peer.send(piece)
                await settle()
        await peer.send_frame(TEXT, b"text")
        await settle()
        assert [content for _, content in kept] == [b"x" * 100, b"y" * 50, "text"]
        assert kept[2][0] == "text"
        for view, _ in kept[:2]:
            with pytest.raises(ValueError, match="released"):
                view[0]
        small = served.server.statistics().buffers.small
        assert counts(small) == (0, 1, 1, 0)


async def test_message_view_without_it_delivers_bytes() -> None:
    """``bytes`` may be kept. [H4]"""
    kept: list[Any] = []
    async with serving(Viewing, kept, leave=True) as served:
        peer = await served.open()
        await peer.send_frame(BINARY, b"data")
        await settle()
        assert kept == [(b"data", b"data")]
        assert type(kept[0][0]) is bytes


async def test_message_view_that_was_sliced_is_never_overwritten() -> None:
    """A slice that a hook keeps holds on to its memory, which is given to nobody else then. [H13]"""
    kept: list[memoryview] = []

    class Slicing:
        def client_message(self, data: memoryview) -> None:
            kept.append(data[1:])

    config = Config(message_view=True, buffers=BuffersConfig(pool=1))
    async with serving(Slicing, config=config, leave=True) as served:
        peer = await served.open()
        for payload in (b"first", b"other"):
            await peer.send_frame(BINARY, payload)
            await settle()
        assert [bytes(each) for each in kept] == [b"irst", b"ther"]
        assert counts(served.server.statistics().buffers.small) == (0, 2, 0, 0)


async def test_message_view_is_released_when_the_hook_raises(caplog: pytest.LogCaptureFixture) -> None:
    """An error is no way to keep a view. [H13]"""
    kept: list[memoryview] = []

    class Raising:
        def client_message(self, data: memoryview) -> None:
            kept.append(data)
            raise RuntimeError

    config = Config(message_view=True, buffers=BuffersConfig(pool=4))
    async with serving(Raising, config=config, leave=True) as served:
        peer = await served.open()
        await peer.send(peer.build(BINARY, b"one") + peer.build(BINARY, b"two"))
        await peer.expect_close(1011)
        await peer.stream.aclose()
        await settle()
        with pytest.raises(ValueError, match="released"):
            kept[0][0]
        assert served.server.statistics().buffers.small.in_use == 0
    assert len(support.take_log(caplog)) == 1


async def test_message_view_of_a_client_is_for_the_read_loop() -> None:
    """``handle`` gets a view that ends with the call; what can be kept is ``bytes`` as ever. [H13]"""
    kept: list[tuple[Message, bytes]] = []

    class Handler:
        def handle(self, message: Message) -> None:
            assert isinstance(message.data, memoryview)
            kept.append((message, bytes(message.data)))

    async with open_client(message_view=True) as (client, peer):
        for payload in (b"received", b"read", b"iterated"):
            await peer.send_frame(BINARY, payload)
        assert await client.receive() == b"received"
        assert await client.read() == Message(MessageType.BINARY, b"read")
        async for data in client:
            assert data == b"iterated"
            break
        assert client.statistics().small.in_use == 0
        await peer.send_frame(BINARY, b"handled")
        await peer.send_close(1000)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.read_loop, Handler())
            await settle()
            await peer.stream.aclose()
        assert [content for _, content in kept] == [b"handled"]
        with pytest.raises(ValueError, match="released"):
            bytes(kept[0][0].data)  # type: ignore[arg-type]
        assert client.statistics().small.in_use == 0


@pytest.mark.parametrize(("view", "copies"), [(True, 0), (False, 1)])
async def test_message_view_makes_no_copy_of_a_message(view: bool, copies: int) -> None:
    """With it a message is in memory once when the hook runs, without it twice. [H13]"""
    size = 2**20
    peaks: list[int] = []

    class Measuring:
        def client_message(self, data: Any) -> None:
            if tracemalloc.is_tracing():
                assert len(data) == size
                peaks.append(tracemalloc.get_traced_memory()[1])

    config = Config(
        message_view=view,
        max_message_size=size,
        inbox_size=2 * size,
        buffers=BuffersConfig(pool=1, size=size),
        compression=None,
    )
    async with serving(Measuring, config=config, leave=True) as served:
        peer = await served.open()
        await peer.send(await send_half(peer, bytes(2)))  # from now on there is a buffer
        await settle()
        piece = bytes(65_536)
        frames = [peer.build(BINARY, b"", fin=False), *[peer.build(0, piece, fin=False)] * (size // 65_536)]
        frames.append(peer.build(0))
        tracemalloc.start()
        try:
            for frame in frames:
                await peer.send(frame)
                await settle()
        finally:
            tracemalloc.stop()
        assert copies * size <= peaks[0] <= (copies + 0.5) * size


async def test_message_view_left_in_the_inbox_gives_its_buffer_back() -> None:
    """Messages that nobody receives any more hold nothing. [H13]"""
    provider = buffer_provider(2, 5_000)
    fields = {"buffer_size": 1_000, "buffer_provider": provider, "message_view": True}
    async with open_client(**fields) as (client, peer):
        await peer.send_frame(BINARY, b"x" * 2_000)
        await peer.send_frame(BINARY, b"x" * 2_000)
        await settle()
        assert provider.statistics().in_use == 2
        client.close_nowait()
        assert provider.statistics().in_use == 0
        await peer.send_frame(BINARY, b"x" * 2_000)
        await settle()
        assert provider.statistics().in_use == 0
        assert (await peer.frame()).opcode == CLOSE
        await peer.stream.aclose()


async def test_message_view_behind_a_failed_one_gives_its_buffer_back() -> None:
    """When ``handle`` raises, the messages behind it hold nothing either. [H13]"""
    provider = buffer_provider(2, 5_000)
    fields = {"buffer_size": 1_000, "buffer_provider": provider, "message_view": True}

    class Failing:
        def handle(self, message: Message) -> None:
            raise ZeroDivisionError

    async with open_client(**fields) as (client, peer):
        for _ in range(2):
            await peer.send_frame(BINARY, b"x" * 2_000)
        await settle()
        assert provider.statistics().in_use == 2
        async with anyio.create_task_group() as tasks:

            async def read() -> None:
                with pytest.raises(ZeroDivisionError):
                    await client.read_loop(Failing())

            tasks.start_soon(read)
            await settle()
            await peer.stream.aclose()
        assert provider.statistics().in_use == 0
