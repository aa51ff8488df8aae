"""The same facts as in ``test_transport.py`` over real sockets, and what only sockets have: a kernel that
takes a part, errors with numbers, listeners, and several addresses to connect to.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import pytest
from anyio.abc import SocketAttribute

from anyio_ws import sockets as module
from anyio_ws.deadlines import Deadlines
from anyio_ws.poller import current_poller
from anyio_ws.sockets import ConnectedSocket, SocketListener, SocketTransport, connect_tcp, connect_unix

from .memory import Stopwatch, settle
from .support import nothing_left, virtual
from .test_transport import ENDINGS, PIECE, Notes

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

BROKEN = [errno.EPIPE, errno.ECONNRESET, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENOBUFS]
MUCH = bytes(range(256)) * 4_000  # more than the kernel takes from one who has asked for little


class FaultySocket(socket.socket):
    """A socket whose calls fail as they are told to, one after the other, and are counted."""

    receive_faults: list[OSError]
    send_faults: list[OSError]
    sends: int

    def recv_into(self, *arguments: Any) -> int:
        if self.receive_faults:
            raise self.receive_faults.pop(0)
        return super().recv_into(*arguments)

    def send(self, *arguments: Any) -> int:
        self.sends += 1
        if self.send_faults:
            raise self.send_faults.pop(0)
        return super().send(*arguments)


class Peer:
    """The other end, as a program that uses the socket itself."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        sock.setblocking(False)

    async def receive(self, most: int = PIECE) -> bytes:
        """Receive once, ``b""`` at the end of the stream."""
        while True:
            with contextlib.suppress(BlockingIOError):
                return self.socket.recv(most)
            await anyio.wait_readable(self.socket)

    async def read(self, size: int | None = None) -> bytes:
        """Receive so many bytes, or everything up to the end of the stream."""
        data = bytearray()
        while size is None or len(data) < size:
            got = await self.receive(PIECE if size is None else size - len(data))
            if not got:
                break
            data += got
        return bytes(data)

    async def send(self, data: bytes) -> None:
        """Send all of it."""
        while data:
            try:
                data = data[self.socket.send(data) :]
            except BlockingIOError:
                await anyio.wait_writable(self.socket)


class Ends(NamedTuple):
    """A transport, what it calls, its socket, and the peer."""

    transport: SocketTransport
    notes: Notes
    socket: FaultySocket
    peer: Peer


def socket_pair(kind: str) -> tuple[socket.socket, socket.socket]:
    """Make two connected sockets; the first one's kernel takes little at a time."""
    if kind == "unix":
        first, second = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            second = socket.create_connection(listener.getsockname())
            first, _ = listener.accept()
    first.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
    return first, second


@contextlib.asynccontextmanager
async def opened(
    kind: str = "unix", *, outbox_size: int = 100, write_timeout: float = 20, reading: bool = True
) -> AsyncIterator[Ends]:
    """Open a transport; at the end it is aborted, must have ended exactly once, and leaves nothing."""
    async with nothing_left():
        ours, theirs = socket_pair(kind)
        sock, peer, notes = FaultySocket(fileno=ours.detach()), Peer(theirs), Notes()
        sock.receive_faults, sock.send_faults, sock.sends = [], [], 0
        deadlines = Deadlines()
        with anyio.fail_after(864_000), theirs:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(deadlines.run)
                transport = SocketTransport(
                    ConnectedSocket(sock), deadlines, outbox_size=outbox_size, write_timeout=write_timeout
                )
                transport.receiver = notes
                transport.start()
                if reading:
                    transport.resume()
                try:
                    yield Ends(transport, notes, sock, peer)
                finally:
                    transport.abort()
                    with anyio.CancelScope(shield=True):
                        await settle()
                    tasks.cancel_scope.cancel()
        assert transport.ended
        assert sock.fileno() == -1
        assert len([event for event in notes.events if event[:1] == ("lost",)]) <= 1
        assert [event for event in notes.events[:-1] if event[:1] == ("lost",)] == []


kinds = pytest.mark.parametrize("kind", ["unix", "tcp"])


def fill(ends: Ends) -> bytes:
    """Write until the kernel takes no more, and return what was written."""
    written = b""
    while not ends.transport.buffered:
        written += MUCH
        ends.transport.write(MUCH)
    return written


# --- writing --------------------------------------------------------------------------------------------


async def test_write_sends_at_once() -> None:
    """A lone reply is with the kernel when ``write`` returns: no other task has to run for it."""
    async with opened() as ends:
        ends.transport.write(b"hello")
        assert ends.transport.buffered == 0
        assert ends.peer.socket.recv(100) == b"hello"


@kinds
@pytest.mark.attack("O03")
async def test_write_keeps_the_order_while_the_kernel_is_full(kind: str) -> None:
    """What the kernel did not take goes first, then what was written behind it: all, in order, once."""
    async with opened(kind) as ends:
        written = fill(ends)
        for number in range(200):
            written += b"%d," % number
            ends.transport.write(b"%d," % number)
        ends.transport.write(MUCH)
        assert await ends.peer.read(len(written) + len(MUCH)) == written + MUCH
        await settle()
        assert ends.transport.buffered == 0
        assert ends.notes.events == ["room"]


@pytest.mark.attack("R01")
async def test_write_is_full_above_the_mark_and_tells_of_room_below_it() -> None:
    """Exactly ``outbox_size`` waiting bytes are not full, one more is; the way back is told once."""
    async with opened(outbox_size=2 * len(MUCH)) as ends:
        written = len(fill(ends))
        rest = 2 * len(MUCH) - ends.transport.buffered
        ends.transport.write(b"." * rest)
        assert not ends.transport.full
        ends.transport.write(b".")
        assert ends.transport.full
        await ends.peer.read(written + rest + 1)
        await settle()
        assert not ends.transport.full
        assert ends.notes.events == ["room"]


@virtual
@pytest.mark.attack("R01")
async def test_write_timeout_ends_a_peer_that_reads_nothing_exactly_in_time() -> None:
    """Bytes that are not taken within ``write_timeout`` seconds end the transport, and not before."""
    async with opened(write_timeout=7) as ends:
        await anyio.sleep(30)
        clock = Stopwatch()
        fill(ends)
        await ends.notes.lost.wait()
        assert clock() == 7
        [(_, error)] = ends.notes.events
        assert isinstance(error, TimeoutError)


@virtual
async def test_write_timeout_begins_anew_with_each_piece() -> None:
    """A peer that is slow but reads is not cut off: 64 KiB within the timeout are enough."""
    async with opened(write_timeout=7) as ends:
        written = fill(ends)
        ends.transport.finish()
        size = 0
        while size < len(written):
            await anyio.sleep(6)
            size += len(await ends.peer.read(min(2 * PIECE, len(written) - size)))
            await settle()
        assert await ends.peer.receive() == b""
        assert ends.notes.events[-1] == ("lost", None)


@virtual
async def test_write_timeout_is_over_when_everything_was_taken() -> None:
    """A peer that took everything may be silent as long as it likes."""
    async with opened(write_timeout=7) as ends:
        written = fill(ends)
        await ends.peer.read(len(written))
        await anyio.sleep(100)
        assert not ends.transport.ended


async def test_write_is_gathered_while_the_poller_is_corked() -> None:
    """All replies to one read leave in one ``send``, when the poller is uncorked."""
    async with opened() as ends:
        current_poller().corked = True
        for piece in (b"one ", b"two ", b"three"):
            ends.transport.write(piece)
        assert (ends.socket.sends, ends.transport.buffered) == (0, 13)
        current_poller().uncork()
        assert (ends.socket.sends, ends.transport.buffered) == (1, 0)
        assert ends.peer.socket.recv(100) == b"one two three"
        ends.transport.write(b"four")
        assert ends.peer.socket.recv(100) == b"four"


async def test_write_is_gathered_up_to_the_mark() -> None:
    """More than ``outbox_size`` is not held back: it is sent, and the corking goes on."""
    async with opened(outbox_size=10) as ends:
        current_poller().corked = True
        ends.transport.write(b"1234567890")
        assert ends.socket.sends == 0
        ends.transport.write(b"-")
        assert (ends.socket.sends, ends.transport.full) == (1, False)
        ends.transport.write(b"more")
        current_poller().uncork()
        assert await ends.peer.read(15) == b"1234567890-more"


async def test_write_that_was_gathered_goes_before_what_is_written_after_it() -> None:
    """Also where the corking is over and the poller has not come to this transport yet."""
    async with opened() as ends:
        current_poller().corked = True
        ends.transport.write(b"first ")
        current_poller().corked = False
        ends.transport.write(b"second")
        current_poller().uncork()
        assert ends.peer.socket.recv(100) == b"first second"


async def test_write_from_takes_a_body_that_may_change_afterwards() -> None:
    """Head and body go out together, and whatever has to wait is a copy."""
    async with opened() as ends:
        body = bytearray(b"body")
        ends.transport.write_from(b"head ", memoryview(body))
        assert ends.peer.socket.recv(100) == b"head body"
        body = bytearray(MUCH * 3)
        ends.transport.write_from(b"head ", memoryview(body))
        assert ends.transport.buffered
        body[:] = bytes(len(body))
        assert await ends.peer.read(5 + len(body)) == b"head " + MUCH * 3


# --- reading --------------------------------------------------------------------------------------------


@kinds
async def test_reading_begins_with_resume_and_pauses_without_a_loss(kind: str) -> None:
    """Nothing is read before somebody wants it; while paused the bytes stay where they are."""
    async with opened(kind, reading=False) as ends:
        await ends.peer.send(b"early ")
        await settle()
        assert ends.notes.events == []
        for piece in (b"one ", b"two "):
            ends.transport.resume()
            ends.transport.resume()
            await settle()
            ends.transport.pause()
            assert not ends.transport.reading
            before = list(ends.notes.events)
            await ends.peer.send(piece)
            await settle()
            assert ends.notes.events == before
        ends.transport.resume()
        await settle()
        assert ends.notes.events == [b"early one two "]


@pytest.mark.attack("O02")
@pytest.mark.parametrize("paused", [False, True])
async def test_eof_is_told_once_after_the_bytes_before_it(paused: bool) -> None:
    """While paused neither arrives; then both do, and the writing goes on."""
    async with opened() as ends:
        if paused:
            ends.transport.pause()
        await ends.peer.send(b"last words")
        ends.peer.socket.shutdown(socket.SHUT_WR)
        await settle()
        if paused:
            assert ends.notes.events == []
            ends.transport.resume()
            await settle()
        assert ends.notes.events == [b"last words", "eof"]
        ends.transport.pause()
        ends.transport.resume()
        await settle()
        ends.transport.write(b"answer")
        ends.transport.finish(await_eof=True)
        assert await ends.peer.read() == b"answer"
        await settle()
        assert ends.notes.events == [b"last words", "eof", ("lost", None)]


async def test_receiver_may_be_exchanged_at_any_time() -> None:
    """Whoever is the receiver when bytes arrive gets them; so one connection follows its handshake."""
    async with opened() as ends:
        await ends.peer.send(b"first")
        await settle()
        ends.transport.receiver = other = Notes()
        await ends.peer.send(b"second")
        await settle()
        ends.transport.abort()
        await settle()
        assert ends.notes.events == [b"first"]
        assert other.events == [b"second", ("lost", None)]


# --- ending in order: finish ----------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize(("half_close", "await_eof"), ENDINGS)
@pytest.mark.parametrize("waiting", [b"", b"last words", MUCH], ids=["nothing", "little", "much"])
async def test_finish_sends_what_waits_and_then_ends(
    kind: str, half_close: bool, await_eof: bool, waiting: bytes
) -> None:
    """The peer reads all that was written before, then the end of the stream; nobody is to blame."""
    async with opened(kind) as ends:
        if waiting:
            ends.transport.write(waiting)
        ends.transport.finish(half_close=half_close, await_eof=await_eof)
        ends.transport.write(b"too late")
        if half_close or not await_eof:
            assert await ends.peer.read() == waiting
        else:
            assert await ends.peer.read(len(waiting)) == waiting
        await settle()
        assert ends.transport.ended is not await_eof
        ends.peer.socket.shutdown(socket.SHUT_WR)
        await settle()
        assert [event for event in ends.notes.events if event != "room"] == [("lost", None)]


@pytest.mark.parametrize(("half_close", "await_eof"), ENDINGS)
async def test_finish_after_the_end_of_the_peers_stream_needs_nothing_more(
    half_close: bool, await_eof: bool
) -> None:
    """A peer that has sent its end already is not waited for a second time."""
    async with opened() as ends:
        ends.peer.socket.shutdown(socket.SHUT_WR)
        await settle()
        ends.transport.write(b"answer")
        ends.transport.finish(half_close=half_close, await_eof=await_eof)
        assert await ends.peer.read() == b"answer"
        await settle()
        assert ends.notes.events == ["eof", ("lost", None)]


@pytest.mark.attack("F27")
@pytest.mark.parametrize("paused", [False, True])
@pytest.mark.parametrize(("size", "ended"), [(PIECE, False), (PIECE + 1, True)])
async def test_finish_discards_64_kib_and_then_ends(size: int, ended: bool, paused: bool) -> None:
    """What still arrives is thrown away; an endless sender is not read for ever."""
    async with opened() as ends:
        if paused:
            ends.transport.pause()
        ends.transport.write(b"last words")
        ends.transport.finish(half_close=True, await_eof=True)
        await ends.peer.send(b"." * size)
        await settle()
        assert ends.transport.ended is ended
        assert ends.peer.socket.recv(100) == b"last words"
        assert [event for event in ends.notes.events if isinstance(event, bytes)] == []


async def test_finish_says_its_last_words_to_a_peer_that_sends_and_reads_nothing() -> None:
    """What comes before our last words are sent is read without a limit: it may be what keeps them."""
    async with opened() as ends:
        written = fill(ends)
        ends.transport.finish(half_close=True, await_eof=True)
        await ends.peer.send(b"." * 4 * PIECE)
        assert await ends.peer.read() == written


async def test_finish_twice_keeps_the_first() -> None:
    """Who finishes first decides how."""
    async with opened() as ends:
        ends.transport.finish(await_eof=True)
        ends.transport.finish(half_close=True)
        await settle()
        assert not ends.transport.ended
        with pytest.raises(BlockingIOError):
            ends.peer.socket.recv(1)


# --- ending at once: abort and faults -------------------------------------------------------------------


@pytest.mark.parametrize("error", [None, OSError("why")])
async def test_abort_ends_at_once_and_keeps_the_first_reason(error: OSError | None) -> None:
    """Whatever waits is not sent any more, nothing more is taken, and the receiver is told later, once."""
    async with opened() as ends:
        written = fill(ends)
        ends.transport.abort(error)
        assert (ends.transport.ended, ends.transport.buffered, ends.transport.full) == (True, 0, False)
        assert ends.notes.events == []
        ends.transport.abort(OSError("a consequence"))
        ends.transport.write(b"too late")
        ends.transport.finish()
        ends.transport.resume()
        await settle()
        assert ends.notes.events == [("lost", error)]
        assert len(await ends.peer.read()) < len(written)


async def test_abort_within_a_call_of_the_receiver_is_the_end() -> None:
    """A receiver may end the transport while it is being called; nothing comes behind that but the end."""
    async with opened() as ends:

        class Ending(Notes):
            def data_received(self, data: bytes | memoryview) -> None:
                super().data_received(data)
                ends.transport.abort()

        ends.transport.receiver = notes = Ending()
        await ends.peer.send(b"one")
        await settle()
        with contextlib.suppress(OSError):
            await ends.peer.send(b"two")
        await settle()
        assert notes.events == [b"one", ("lost", None)]


@pytest.mark.attack("O01")
@pytest.mark.parametrize("code", BROKEN)
async def test_error_of_receiving_ends_the_transport(code: int) -> None:
    """Whatever the system says is handed on once, and goes nowhere else."""
    async with opened() as ends:
        error = OSError(code, "the system's word")
        ends.socket.receive_faults.append(error)
        await ends.peer.send(b".")
        await settle()
        assert ends.notes.events == [("lost", error)]


@pytest.mark.attack("O01")
@pytest.mark.parametrize("code", BROKEN)
@pytest.mark.parametrize("waiting", [False, True])
async def test_error_of_sending_ends_the_transport_when_what_came_before_was_read(
    code: int, waiting: bool
) -> None:
    """A peer that closed may have said why before: that is still received, then the error is told."""
    async with opened() as ends:
        written = fill(ends) if waiting else b""
        await ends.peer.send(b"last words")
        error = OSError(code, "the system's word")
        ends.socket.send_faults.append(error)
        if waiting:
            await ends.peer.read(len(written) // 2)
        else:
            ends.transport.write(b"anything")
        ends.transport.write(b"too late")
        await settle()
        events = [event for event in ends.notes.events if event != "room"]
        assert events == [b"last words", ("lost", error)]


@pytest.mark.parametrize("code", BROKEN)
async def test_error_of_sending_ends_a_paused_transport_at_once(code: int) -> None:
    """Nobody wants to receive, so there is nothing to wait for."""
    async with opened(reading=False) as ends:
        error = OSError(code, "the system's word")
        ends.socket.send_faults.append(error)
        ends.transport.write(b"anything")
        assert ends.transport.ended
        await settle()
        assert ends.notes.events == [("lost", error)]


@pytest.mark.parametrize("error", [BlockingIOError(), InterruptedError()], ids=repr)
async def test_error_that_means_later_is_none(error: OSError) -> None:
    """A call that was interrupted or would block is made again when the socket is ready."""
    async with opened() as ends:
        ends.socket.receive_faults.append(error)
        ends.socket.send_faults += [error, error]
        ends.transport.write(b"hello")
        assert ends.transport.buffered == 5
        await ends.peer.send(b"hello")
        assert await ends.peer.read(5) == b"hello"
        await settle()
        assert ends.notes.events == [b"hello"]
        assert ends.transport.buffered == 0


@pytest.mark.parametrize("eof", [False, True])
async def test_error_of_the_receiver_ends_its_own_transport_only(
    eof: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A receiver that raises has lost its place in the stream: its connection is cut, which is logged."""
    async with opened() as ends, opened() as other:
        error = ZeroDivisionError()

        class Failing(Notes):
            def eof_received(self) -> None:
                raise error

        ends.transport.receiver = notes = Failing()
        if eof:
            ends.peer.socket.shutdown(socket.SHUT_WR)
        else:
            notes.fault = error
            await ends.peer.send(b".")
        await other.peer.send(b"hello")
        await settle()
        assert notes.events == [("lost", error)]
        assert other.notes.events == [b"hello"]
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[1] is error


async def test_reset_is_told_as_the_systems_error() -> None:
    """A TCP reset is ``ConnectionResetError``, at once, and once."""
    async with opened("tcp") as ends:
        ends.peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        ends.peer.socket.close()
        await ends.notes.lost.wait()
        [(_, error)] = ends.notes.events
        assert isinstance(error, ConnectionResetError)


# --- addresses and attributes ---------------------------------------------------------------------------


@kinds
async def test_addresses_are_known_after_the_end(kind: str) -> None:
    """TCP gives host and port, an unnamed Unix socket ``""``, also when the socket is closed."""
    async with opened(kind) as ends:
        name = ends.peer.socket.getsockname() if kind == "tcp" else ""
        for _ in range(2):
            assert ends.transport.remote_address == ends.transport.extra(SocketAttribute.remote_address)
            assert ends.transport.remote_address == name
            assert ends.transport.local_address == ends.transport.extra(SocketAttribute.local_address)
            port = name[1] if kind == "tcp" else "none"
            assert ends.transport.extra(SocketAttribute.remote_port, "none") == port
            ends.transport.abort()


# --- listening ------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def listening() -> AsyncIterator[tuple[SocketListener, tuple[str, int]]]:
    """Listen on a port; at the end nothing may be left."""
    async with nothing_left():
        (listener,) = (await anyio.create_tcp_listener(local_host="127.0.0.1")).listeners
        acceptor = SocketListener(listener)
        with anyio.fail_after(10):
            yield acceptor, acceptor.extra(SocketAttribute.local_address, None)
        await acceptor.aclose()


async def test_listener_accepts_those_that_wait_and_those_that_come() -> None:
    """Connections of the backlog come at once, later ones wake who accepts; both know their peer."""
    async with listening() as (listener, address), anyio.create_task_group() as tasks:
        with socket.create_connection(address) as first:
            accepted = await listener.accept()
            assert accepted.remote_address == first.getsockname()
            accepted.close()

        async def come() -> None:
            await settle()
            socket.create_connection(address).close()

        tasks.start_soon(come)
        (await listener.accept()).close()


async def test_listener_that_is_cancelled_loses_no_connection() -> None:
    """An ``accept`` that was cancelled has taken nothing; the next one gets it."""
    async with listening() as (listener, address):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await listener.accept()
        assert scope.cancelled_caught
        with socket.create_connection(address) as peer:
            await settle()
            accepted = await listener.accept()
            assert accepted.remote_address == peer.getsockname()
            accepted.close()


async def test_listener_lets_others_run_while_connections_pour_in() -> None:
    """However many wait, every so often another task has its turn."""
    async with listening() as (listener, address), anyio.create_task_group() as tasks:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await anyio.lowlevel.checkpoint()

        peers = [socket.create_connection(address) for _ in range(100)]
        tasks.start_soon(count)
        for peer in peers:
            (await listener.accept()).close()
            peer.close()
        assert turns >= 2
        tasks.cancel_scope.cancel()


# --- connecting -----------------------------------------------------------------------------------------


class Net:
    """Addresses that answer as they are told to, in place of the network.

    :ivar tried: the addresses in the order in which they were tried, each with the time
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **answers: str) -> None:
        self.tried: list[tuple[str, float]] = []
        self.made: list[socket.socket] = []
        self._answers = answers
        self._start = 0.0
        monkeypatch.setattr(anyio, "getaddrinfo", self._resolve)
        monkeypatch.setattr(module, "_connect", self._connect)

    async def _resolve(self, host: str, port: int, **_: Any) -> list[Any]:
        self._start = anyio.current_time()
        families = {"v4": socket.AF_INET, "v6": socket.AF_INET6}
        return [(families[name[:2]], 0, 0, "", (name, port)) for name in self._answers]

    async def _connect(self, family: int, address: Any) -> socket.socket:
        self.tried.append((address[0], round(anyio.current_time() - self._start, 3)))
        answer = self._answers[address[0]]
        if answer == "hangs":
            await anyio.sleep_forever()
        if answer == "refuses":
            raise ConnectionRefusedError(errno.ECONNREFUSED, "refused", address)
        await anyio.sleep(float(answer))
        sock, other = socket.socketpair()
        other.close()
        self.made.append(sock)
        return sock


@virtual
@pytest.mark.parametrize(
    ("answers", "tried"),
    [
        ({"v6a": "0", "v4a": "0"}, [("v6a", 0)]),
        ({"v6a": "hangs", "v4a": "0"}, [("v6a", 0), ("v4a", 0.25)]),
        ({"v6a": "refuses", "v4a": "0"}, [("v6a", 0), ("v4a", 0)]),
        ({"v6a": "hangs", "v6b": "hangs", "v4a": "1"}, [("v6a", 0), ("v4a", 0.25), ("v6b", 0.5)]),
        ({"v6a": "0.5", "v4a": "5"}, [("v6a", 0), ("v4a", 0.25)]),
        ({"v6a": "0.5", "v4a": "0.25"}, [("v6a", 0), ("v4a", 0.25)]),  # both at once: one is closed
        ({"v4a": "refuses", "v4b": "hangs", "v4c": "0"}, [("v4a", 0), ("v4b", 0), ("v4c", 0.25)]),
    ],
)
async def test_connect_tcp_tries_addresses_beside_each_other(
    answers: dict[str, str], tried: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next address is tried when one has failed, or after 250 ms; the families take turns."""
    async with nothing_left():
        net = Net(monkeypatch, **answers)
        (await connect_tcp("host", 80)).close()
        assert net.tried == tried
        assert [sock.fileno() for sock in net.made] == [-1] * len(net.made)


@virtual
async def test_connect_tcp_says_what_was_wrong_with_each_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """One address: its own error. Several: an error that names host and port, with all of them behind it."""
    Net(monkeypatch, v4a="refuses")
    with pytest.raises(ConnectionRefusedError, match="refused"):
        await connect_tcp("host", 80)
    Net(monkeypatch, v6a="refuses", v4a="refuses")
    with pytest.raises(OSError, match="host port 80: none of 2 addresses") as caught:
        await connect_tcp("host", 80)
    assert caught.value.errno == errno.ECONNREFUSED
    assert isinstance(caught.value.__cause__, ExceptionGroup)
    assert len(caught.value.__cause__.exceptions) == 2


@virtual
async def test_connect_tcp_that_is_cancelled_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts under way end with it, and a connection of that very moment is closed."""
    async with nothing_left():
        net = Net(monkeypatch, v6a="hangs", v4a="2")
        for seconds in (0, 0.1, 1, 2.25):
            with anyio.move_on_after(seconds) as scope:
                (await connect_tcp("host", 80)).close()
            assert scope.cancelled_caught or seconds == 2.25
        assert [sock.fileno() for sock in net.made] == [-1] * len(net.made)


@pytest.fixture
def busy_server(tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """Listen on a Unix socket whose backlog is full."""
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as waiting:
        listener.bind(path)
        listener.listen(0)
        waiting.connect(path)
        yield path, listener


async def test_connect_unix_waits_for_a_place_in_the_backlog(busy_server: Any) -> None:
    """A server that is busy is no error: the connection is made when it accepts."""
    path, listener = busy_server
    async with nothing_left(), anyio.create_task_group() as tasks:
        with anyio.move_on_after(0) as scope:
            await connect_unix(path)
        assert scope.cancelled_caught

        async def accept() -> None:
            await settle()
            listener.accept()[0].close()

        tasks.start_soon(accept)
        with anyio.fail_after(10):
            connected = await connect_unix(path)
        assert connected.remote_address == path
        connected.close()


async def test_connect_unix_to_nobody_is_the_systems_error(tmp_path: Path) -> None:
    """No file, or one that nobody listens on: the error says which, and nothing is left."""
    path = tmp_path / "socket"
    async with nothing_left():
        with pytest.raises(FileNotFoundError):
            await connect_unix(path)
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        with pytest.raises(ConnectionRefusedError):
            await connect_unix(path)
