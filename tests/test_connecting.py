"""Connecting: several addresses beside each other, and Unix sockets whose backlog is full."""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from anyio_ws import connecting as module
from anyio_ws.connecting import connect_tcp, connect_unix

from .memory import settle
from .support import nothing_left, virtual

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup


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
