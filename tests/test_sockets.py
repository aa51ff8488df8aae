"""What only sockets have: ``send`` within the call, errors with numbers. ``test_transport.py`` has what
holds for every transport.
"""

from __future__ import annotations

import errno
import socket

import pytest
from anyio.abc import SocketAttribute

from anyio_ws.poller import current_poller

from .memory import settle
from .transports import direct_transport, expect_logged, opened

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
