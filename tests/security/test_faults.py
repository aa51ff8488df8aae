"""Every system call that a server makes on a socket fails, with every plausible error, at every call.

The calls of one connection's socket, or of the listening one, are counted and made to fail; a bystander is
served throughout. Errors that mean "again" must not be noticed; all others end that connection alone.

There are two saboteurs. One replaces the methods of Python's sockets. The other one is a library that is
loaded before that of C, so that compiled code meets the errors as well: it needs a process of its own, in
which :func:`test_compiled_code_withstands_the_same` runs this file again.
"""

from __future__ import annotations

import _socket
import ctypes
import errno
import os
import re
import shutil
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from anyio_ws import Config, connect
from anyio_ws.lane import NO_LANE
from anyio_ws.sockets import SocketTransport
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
COMPILED = {  # what no Python calls
    "sendmsg": FAULTS["send"],
    "epoll_ctl": (errno.ENOMEM, errno.ENOSPC),
    "epoll_wait": (errno.EINTR,),
}
CALLED = ("recv_into", "send", "setsockopt", "close", "epoll_ctl")  # for every connection
NAMES = {"recv_into": "recv", "accept": "accept4"}  # of the C library's functions, where they are others
SHIM: Any = getattr(ctypes.CDLL(None), "fault_arm", None)  # where faults.c is loaded
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


class LoadedSaboteur:
    """The same for all code of the process, by the library that is loaded before that of C."""

    @property
    def fired(self) -> bool:
        """Whether the call has failed."""
        return bool(ctypes.CDLL(None).fault_fired())

    def arm(self, name: str, port: int, number: int, nth: int) -> None:
        """Choose what fails; of what no connection is known, that of any."""
        SHIM(NAMES.get(name, name).encode(), 0 if name == "epoll_wait" else port, number, nth)


@pytest.fixture
def saboteur(monkeypatch: pytest.MonkeyPatch) -> Iterator[Saboteur | LoadedSaboteur]:
    """Put a saboteur into every socket of the process."""
    if SHIM is not None:
        loaded = LoadedSaboteur()
        yield loaded
        loaded.arm("", -1, 0, 0)
        return
    monkeypatch.setattr(SocketTransport, "lane", NO_LANE)  # which calls past Python's sockets
    saboteur = Saboteur()
    for name in (*FAULTS, "accept"):
        original = getattr(socket.socket, name)

        def call(self: Any, *arguments: Any, name: str = name, original: Any = original) -> Any:
            saboteur.check(name, self)
            return original(self, *arguments)

        monkeypatch.setattr(socket.socket, name, call)
    yield saboteur
    saboteur.arm("", -1, 0, 0)


async def play(
    place: Arena, saboteur: Saboteur | LoadedSaboteur, name: str, number: int, nth: int
) -> ScriptedPeer:
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
@pytest.mark.parametrize("name", [*FAULTS, *(COMPILED if SHIM else ())])
async def test_system_call_that_fails_ends_its_own_connection_at_most(
    name: str, saboteur: Saboteur | LoadedSaboteur, cuts: Counter[str]
) -> None:
    """Whichever call on a socket fails, with whichever error: everybody else is served, nothing is left."""
    faults = {**FAULTS, **COMPILED}
    ends = Diary()
    config = Config(max_message_size=len(LARGE), compression=None)
    async with nothing_left(), arena("sockets", Echo, ends, config) as place, bystander(place) as echoed:
        for number in faults[name]:
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
                    assert nth > 1 or name not in CALLED  # else nothing was shown
                    break
                if name == "epoll_wait" and nth == 20:  # it is called for ever
                    break
                cuts["failed system calls"] += 1
                await echoed.wait(before + 2)
                assert len(ends) <= opened + 1
                assert nth < 100


@pytest.mark.attack("R13", "O05", "O04")
@pytest.mark.parametrize("number", ACCEPT, ids=errno.errorcode.get)
async def test_accept_that_fails_delays_others_at_most(
    number: int, saboteur: Saboteur | LoadedSaboteur
) -> None:
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


@pytest.mark.attack("O04", "O03", "R14")
@pytest.mark.skipif(SHIM is not None, reason="it is loaded")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the library is Linux's")
def test_compiled_code_withstands_the_same(tmp_path: Path, cuts: Counter[str]) -> None:
    """With the library in between the C of the fast lane and of the watcher meets each error, too."""
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("gcc is needed to build faults.c")
    library, here = tmp_path / "faults.so", Path(__file__)
    source = here.with_name("faults.c")
    build = [gcc, "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]
    subprocess.run(build, check=True)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(here)]
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    run = subprocess.run(
        command,
        env=environment,
        cwd=here.parents[2],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-5000:]
    counted = re.search(r"(\d+) failed system calls", run.stdout)
    assert counted is not None
    cuts["failed system calls of compiled code"] += int(counted[1])


REFUSALS = (
    errno.ECONNREFUSED, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EADDRNOTAVAIL,
    errno.EPERM, errno.ENOBUFS, errno.ENOMEM,
)  # fmt: skip


@pytest.mark.attack("O04", "T06")
@pytest.mark.parametrize("number", REFUSALS, ids=errno.errorcode.get)
@pytest.mark.parametrize("name", ["socket", "connect_ex", "SO_ERROR", "getsockopt", "setsockopt"])
async def test_system_call_of_a_client_that_fails_is_its_error(
    name: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fails while it connects is an OSError with its number, and no descriptor stays open."""

    def refuse(*arguments: Any) -> Any:
        raise OSError(number, os.strerror(number))

    def tell(*arguments: Any) -> int:
        return number

    def begin(*arguments: Any) -> int:
        original(*arguments)
        return errno.EINPROGRESS

    original = socket.socket.connect_ex
    async with nothing_left(), arena("sockets", Echo) as place:
        port = place.server.addresses[0][1]
        with monkeypatch.context() as patch:
            if name == "socket":
                patch.setattr(socket.socket, "__init__", refuse)
            elif name == "connect_ex":
                patch.setattr(socket.socket, "connect_ex", tell)
            elif name == "setsockopt":
                patch.setattr(socket.socket, "setsockopt", refuse)
            else:
                patch.setattr(socket.socket, "connect_ex", begin)
                patch.setattr(socket.socket, "getsockopt", tell if name == "SO_ERROR" else refuse)
            with pytest.raises(OSError, match=re.escape(os.strerror(number))) as caught:
                async with connect(f"ws://127.0.0.1:{port}/"):
                    raise AssertionError
        assert caught.value.errno == number
