"""Every system call that a server makes on a socket fails, with every plausible error, at every call.

The calls of one connection's socket, or of the listening one, are counted and made to fail; a bystander is
served throughout. Errors that mean "again" must not be noticed; all others end that connection alone.
"""

from __future__ import annotations

import _socket
import errno
import os
import socket
from collections import Counter
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from anyio_ws import Config
from anyio_ws.testing import Do, ScriptedPeer, Step, Until, build_frame

from ..support import BINARY, CLOSE, TEXT, Peer, build_request, nothing_left
from .arena import Arena, Diary, Echo, arena, bystander

KEY = b"mask"
LARGE = bytes(300_000) + b"the end"
AGAIN = (errno.EAGAIN, errno.EINTR)
BROKEN = (errno.ECONNRESET, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENOBUFS, errno.ENOMEM)
FAULTS = {
    "recv_into": (*AGAIN, *BROKEN),
    "send": (*AGAIN, errno.EPIPE, *BROKEN),
    "shutdown": (errno.ENOTCONN, errno.EINVAL),
    "setsockopt": (errno.EINVAL, errno.ENOTCONN, errno.ENOPROTOOPT),
    "getpeername": (errno.ENOTCONN, errno.EINVAL, errno.ENOBUFS),
    "getsockname": (errno.EINVAL, errno.ENOBUFS),
    "close": (errno.EIO, errno.EINTR),
}
ACCEPT = (*AGAIN, errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOBUFS)
SCRIPT: list[Step] = [
    build_request(),
    Until(b"\r\n\r\n"),
    build_frame(TEXT, b"hello", key=KEY),
    Until(b"hello"),
    build_frame(BINARY, LARGE, key=KEY),
    Until(b"the end"),
    build_frame(0x9, b"ping", key=KEY),
    Until(b"ping"),
    build_frame(CLOSE, b"\x03\xe8", key=KEY),
    Do.HALF_CLOSE,
]
EXPECTED = [(TEXT, b"hello"), (BINARY, LARGE), (0xA, b"ping"), (CLOSE, b"\x03\xe8")]


class Saboteur:
    """Has the nth call of one kind on one socket fail.

    :ivar fired: whether it has
    """

    def __init__(self) -> None:
        self.fired = False
        self._name = ""
        self._port = 0
        self._number = 0
        self._nth = 0
        self._calls = 0

    def arm(self, name: str, port: int, number: int, nth: int) -> None:
        """Choose what fails: the call, the port of the peer, the error, the how-manieth time."""
        self._name, self._port, self._number, self._nth = name, port, number, nth
        self._calls, self.fired = 0, False

    def check(self, name: str, sock: socket.socket) -> None:
        """Fail the call that was chosen."""
        if name != self._name or not self._is_meant(sock):
            return
        self._calls += 1
        if self._calls == self._nth:
            self.fired = True
            if name == "close":
                _socket.socket.close(sock)
            raise OSError(self._number, os.strerror(self._number))

    def _is_meant(self, sock: socket.socket) -> bool:
        if self._port == 0:
            return True
        try:
            return bool(_socket.socket.getpeername(sock)[1] == self._port)
        except (OSError, IndexError):
            return False


@pytest.fixture
def saboteur(monkeypatch: pytest.MonkeyPatch) -> Iterator[Saboteur]:
    """Put a saboteur into every socket of the process."""
    saboteur = Saboteur()
    for name in (*FAULTS, "accept"):
        original = getattr(socket.socket, name)

        def call(self: Any, *arguments: Any, name: str = name, original: Any = original) -> Any:
            saboteur.check(name, self)
            return original(self, *arguments)

        monkeypatch.setattr(socket.socket, name, call)
    yield saboteur
    saboteur.arm("", -1, 0, 0)


async def play(place: Arena, saboteur: Saboteur, name: str, number: int, nth: int) -> ScriptedPeer:
    """Be a client whose connection is sabotaged on the server's side."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    saboteur.arm(name, sock.getsockname()[1], number, nth)
    sock.setblocking(False)
    sock.connect_ex(place.server.addresses[0])
    await anyio.wait_writable(sock)
    peer = ScriptedPeer(await anyio.abc.SocketStream.from_socket(sock), SCRIPT)
    await peer.run()
    return peer


@pytest.mark.attack("O03", "O04", "O05", "O01", "R14", "T17")
@pytest.mark.parametrize("name", FAULTS)
async def test_system_call_that_fails_ends_its_own_connection_at_most(
    name: str, saboteur: Saboteur, cuts: Counter[str]
) -> None:
    """Whichever call on a socket fails, with whichever error: everybody else is served, nothing is left."""
    ends = Diary()
    config = Config(max_message_size=len(LARGE), compression=None)
    async with nothing_left(), arena("sockets", Echo, ends, config) as place, bystander(place) as echoed:
        for number in FAULTS[name]:
            nth = 0
            while True:
                nth += 1
                before, opened = len(echoed), len(ends)
                peer = await play(place, saboteur, name, number, nth)
                oracle = peer.oracle(masked=False)
                assert oracle.violation is None
                assert oracle.messages == EXPECTED[: len(oracle.messages)]
                if number in AGAIN and name != "close":
                    oracle.check()
                    assert oracle.messages == EXPECTED
                if not saboteur.fired:
                    assert oracle.messages == EXPECTED
                    break
                cuts["failed system calls"] += 1
                await echoed.wait(before + 2)
                assert len(ends) <= opened + 1
                assert nth < 100


@pytest.mark.attack("R13", "O05", "O04")
@pytest.mark.parametrize("number", ACCEPT, ids=errno.errorcode.get)
async def test_accept_that_fails_delays_others_at_most(number: int, saboteur: Saboteur) -> None:
    """The next client is served, whatever ``accept`` said to the one before it."""
    async with nothing_left(), arena("sockets", Echo) as place, bystander(place) as echoed:
        for nth in range(1, 3):
            before = len(echoed)
            saboteur.arm("accept", 0, number, nth)
            peers: list[Peer] = [await place.open() for _ in range(2)]
            for peer in peers:
                await peer.close_handshake()
            await echoed.wait(before + 2)
            assert saboteur.fired
