"""What only sockets have: ``send`` within the call, errors with numbers, listeners, several addresses to
connect to. ``test_transport.py`` has what holds for every transport.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute

from anyio_ws import sockets as module
from anyio_ws.poller import current_poller
from anyio_ws.sockets import SocketListener, connect_tcp, connect_unix

from .memory import settle
from .support import nothing_left, virtual
from .transports import direct_transport, expect_logged, opened

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

BROKEN = [errno.EPIPE, errno.ECONNRESET, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENOBUFS]

# --- writing --------------------------------------------------------------------------------------------


@direct_transport
async def test_write_sends_at_once(kind: str) -> None:
    """A lone reply is with the kernel when ``write`` returns: no other task has to run for it."""
    async with opened(kind) as ends:
        sends = ends.below.sends
        ends.transport.write(b"hello")
        assert (ends.below.sends - sends, ends.transport.buffered) == (1, 0)
        assert await ends.peer.receive() == b"hello"


@direct_transport
async def test_write_is_gathered_while_the_poller_is_corked(kind: str) -> None:
    """All replies to one read leave in one ``send``, when the poller is uncorked."""
    async with opened(kind) as ends:
        sends = ends.below.sends
        current_poller().corked = True
        for piece in (b"one ", b"two ", b"three"):
            ends.transport.write(piece)
        assert (ends.below.sends - sends, ends.transport.buffered) == (0, 13)
        current_poller().uncork()
        assert (ends.below.sends - sends, ends.transport.buffered) == (1, 0)
        assert await ends.peer.receive() == b"one two three"
        ends.transport.write(b"four")
        assert await ends.peer.receive() == b"four"


@direct_transport
async def test_write_is_gathered_up_to_the_mark(kind: str) -> None:
    """More than ``outbox_size`` is not held back: it is sent, and the corking goes on."""
    async with opened(kind, outbox_size=10) as ends:
        sends = ends.below.sends
        current_poller().corked = True
        ends.transport.write(b"1234567890")
        assert ends.below.sends == sends
        ends.transport.write(b"-")
        assert (ends.below.sends - sends, ends.transport.full) == (1, False)
        ends.transport.write(b"more")
        current_poller().uncork()
        assert await ends.peer.read(15) == b"1234567890-more"


@direct_transport
async def test_write_that_was_gathered_goes_before_what_is_written_after_it(kind: str) -> None:
    """Also where the corking is over and the poller has not come to this transport yet."""
    async with opened(kind) as ends:
        current_poller().corked = True
        ends.transport.write(b"first ")
        current_poller().corked = False
        ends.transport.write(b"second")
        current_poller().uncork()
        assert await ends.peer.read(12) == b"first second"


# --- reading --------------------------------------------------------------------------------------------


@direct_transport
async def test_pause_holds_at_once(kind: str) -> None:
    """Not a byte is received between ``pause`` and ``resume``: they stay with the kernel."""
    async with opened(kind) as ends:
        ends.transport.pause()
        await ends.peer.send(b"later")
        await settle()
        assert ends.notes.events == []
        ends.transport.resume()
        await ends.notes.expect(b"later")


# --- the end --------------------------------------------------------------------------------------------


@direct_transport
async def test_abort_closes_within_the_call_and_tells_of_it_later(kind: str) -> None:
    """The socket is closed when ``abort`` returns; the receiver is called by the event loop, as ever."""
    async with opened(kind) as ends:
        await ends.fill()
        ends.transport.abort()
        assert (ends.transport.ended, ends.transport.buffered, ends.transport.full) == (True, 0, False)
        assert ends.below.fileno() == -1
        assert ends.notes.losses == []
        await ends.notes.expect(("lost", None))


@direct_transport
@pytest.mark.attack("O01")
@pytest.mark.parametrize("code", BROKEN)
async def test_error_of_receiving_ends_the_transport(kind: str, code: int) -> None:
    """Whatever the system says is handed on once, and goes nowhere else."""
    async with opened(kind) as ends:
        error = OSError(code, "the system's word")
        ends.below.receive_faults.append(error)
        await ends.peer.send(b".")
        await ends.notes.expect(("lost", error))


@pytest.mark.attack("O01")
@pytest.mark.parametrize("kind", ["socket-unix", "tls-unix"])  # over TCP they may be under way
@pytest.mark.parametrize("code", BROKEN)
@pytest.mark.parametrize("waiting", [False, True])
async def test_error_of_sending_ends_the_transport_when_what_came_before_was_read(
    kind: str, code: int, waiting: bool
) -> None:
    """A peer that closed may have said why before: that is still received, then the error is told."""
    async with opened(kind) as ends:
        written = await ends.fill() if waiting else b""
        await ends.peer.send(b"last words")
        error = OSError(code, "the system's word")
        ends.below.send_faults.append(error)
        if waiting:
            await ends.peer.read(len(written) // 2)
        else:
            ends.transport.write(b"anything")
        ends.transport.write(b"too late")
        await ends.notes.lost.wait()
        assert ends.notes.events == [b"last words", ("lost", error)]


@direct_transport
@pytest.mark.parametrize("code", BROKEN)
async def test_error_of_sending_ends_a_paused_transport_at_once(kind: str, code: int) -> None:
    """Nobody wants to receive, so there is nothing to wait for."""
    async with opened(kind, reading=False) as ends:
        error = OSError(code, "the system's word")
        ends.below.send_faults.append(error)
        ends.transport.write(b"anything")
        assert ends.transport.ended
        await ends.notes.expect(("lost", error))


@direct_transport
@pytest.mark.parametrize("error", [BlockingIOError(), InterruptedError()], ids=repr)
async def test_error_that_means_later_is_none(kind: str, error: OSError) -> None:
    """A call that was interrupted or would block is made again when the socket is ready."""
    async with opened(kind) as ends:
        ends.below.receive_faults.append(error)
        ends.below.send_faults += [error, error]
        ends.transport.write(b"hello")
        assert ends.transport.buffered >= 5
        await ends.peer.send(b"hello")
        assert await ends.peer.read(5) == b"hello"
        await ends.notes.expect(b"hello")
        assert ends.transport.buffered == 0


async def test_reset_is_told_as_the_systems_error() -> None:
    """A TCP reset is ``ConnectionResetError``, at once, and once."""
    async with opened("socket-tcp") as ends:
        ends.peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        ends.peer.socket.close()
        await ends.notes.lost.wait()
        [(_, error)] = ends.notes.events
        assert isinstance(error, ConnectionResetError)


@direct_transport
@pytest.mark.parametrize("call", ["data_received", "eof_received"])
async def test_error_of_the_receiver_is_logged(
    kind: str, call: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A receiver is called by the event loop, so what it raises would be heard by nobody."""
    async with opened(kind) as ends:
        ends.notes.faults[call] = error = ZeroDivisionError()
        await ends.have_called(call)
        await ends.notes.expect(("lost", error))
    expect_logged(caplog, error)


@direct_transport
async def test_error_of_the_receiver_is_logged_when_the_sending_has_broken(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where what came before a socket broke is read in the event loop's next turn."""
    async with opened(kind) as ends:
        ends.notes.faults["data_received"] = error = ZeroDivisionError()
        ends.below.send_faults.append(broken := OSError(errno.EPIPE, "gone"))
        await ends.peer.send(b"what came before")
        ends.transport.write(b".")
        await ends.notes.expect(("lost", broken))
    expect_logged(caplog, error)


@direct_transport
async def test_addresses_are_known_after_the_end(kind: str) -> None:
    """What a log or a handler's ``close`` wants to name can be asked for when the socket is closed."""
    async with opened(kind) as ends:
        before = ends.transport.remote_address, ends.transport.local_address
        ends.transport.abort()
        assert (ends.transport.remote_address, ends.transport.local_address) == before
        assert ends.transport.extra(SocketAttribute.remote_address) == before[0]


# --- listening ------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def listening() -> AsyncIterator[tuple[SocketListener, tuple[str, int]]]:
    """Listen on a port; at the end nothing may be left."""
    async with nothing_left():
        (listener,) = (await anyio.create_tcp_listener(local_host="127.0.0.1")).listeners
        acceptor = SocketListener(listener)
        with anyio.fail_after(60):
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
        with anyio.fail_after(60):
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
