"""Where a server accepts connections: listening sockets, and the file of a Unix socket.

What is accepted is a plain socket where the event loop can watch one (:class:`SocketListener`), and an
AnyIO stream elsewhere.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import stat
from pathlib import Path
from typing import Any, Protocol

import anyio
import anyio.abc
import anyio.lowlevel
from anyio.abc import AnyByteStream, SocketAttribute

from .config import Config
from .poller import current_poller
from .sockets import ConnectedSocket

_FAIR = 32  # connections that are accepted before other tasks get their turn


class Acceptor(Protocol):
    """What a server accepts from; AnyIO's socket listeners are such."""

    async def accept(self) -> AnyByteStream | ConnectedSocket:
        """Wait for a connection."""

    async def aclose(self) -> None:
        """Stop listening."""

    def extra(self, attribute: Any, default: Any) -> Any:
        """Return a typed attribute; the local address is asked for."""


async def discard(accepted: AnyByteStream | ConnectedSocket) -> None:
    """Close a connection of which no transport was made."""
    if isinstance(accepted, ConnectedSocket):
        accepted.close()
    else:
        with contextlib.suppress(Exception):
            await anyio.aclose_forcefully(accepted)


async def bind(config: Config) -> list[Acceptor]:
    """Bind what the configuration says, and listen.

    :raises OSError: when the address cannot be bound, or the Unix path is taken
    """
    if config.unix_path is not None:
        clear_unix_path(Path(config.unix_path))
        listener = await anyio.create_unix_listener(config.unix_path, backlog=config.backlog)
        return [_directly(listener)]
    multi = await anyio.create_tcp_listener(
        local_host=config.address, local_port=config.port, backlog=config.backlog
    )
    return [_directly(listener) for listener in multi.listeners]


async def as_acceptor(listener: Acceptor | socket.socket) -> Acceptor:
    """Make what a user gives into what is accepted from; a listening socket is such."""
    if isinstance(listener, socket.socket):
        return _directly(await anyio.abc.SocketListener.from_socket(listener))
    return listener


def _directly(listener: Any) -> Acceptor:
    """Accept plain sockets from a listener where the event loop can watch them."""
    acceptor: Acceptor = SocketListener(listener) if current_poller().watches_sockets else listener
    return acceptor


class SocketListener:
    """Accepts plain sockets from a listening one.

    :param listener: an AnyIO listener over a socket; it is closed with this one
    """

    def __init__(self, listener: Any) -> None:
        self._listener = listener
        self._socket: socket.socket = listener.extra(SocketAttribute.raw_socket)
        self._poller = current_poller()
        self._bell = self._poller.bell()
        self._is_watched = False
        self._accepted = 0  # since another task had its turn

    async def accept(self) -> ConnectedSocket:
        """Wait for a connection.

        :raises OSError: when one cannot be accepted; the next call may well succeed
        """
        while True:
            if self._accepted == _FAIR:
                self._accepted = 0
                await anyio.lowlevel.checkpoint()
            try:
                sock, address = self._socket.accept()
            except (BlockingIOError, InterruptedError):
                await self._wait()
                continue
            self._accepted += 1
            try:
                return ConnectedSocket(sock, address)
            except OSError:  # its peer is gone; on some systems that is an EINVAL, which is no fault of ours
                with contextlib.suppress(OSError):
                    sock.close()

    async def _wait(self) -> None:
        self._accepted = 0
        if not self._is_watched:
            self._is_watched = True
            self._poller.begin()
            self._poller.watch_readable(self._socket.fileno(), self._readable)
        await self._bell.wait()

    def _readable(self) -> None:
        if self._bell.is_parked:
            self._bell.ring()
        else:  # nobody accepts now: there may be no place for another connection
            self._unwatch()

    def _unwatch(self) -> None:
        if self._is_watched:
            self._is_watched = False
            self._poller.unwatch_readable(self._socket.fileno())
            self._poller.end()

    async def aclose(self) -> None:
        """Stop listening."""
        self._unwatch()
        await self._listener.aclose()

    def extra(self, attribute: Any, default: Any) -> Any:
        """Return a typed attribute of the listening socket."""
        return self._listener.extra(attribute, default)


class BoundPath:
    """The file of a Unix socket that is bound, and is ours as long as nobody puts another in its place.

    :param path: the path, which a socket that is still open was bound to a moment ago
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path).absolute()
        self._identity = self._identify()

    def remove(self) -> None:
        """Remove the file if it is still ours; call it before the socket is closed.

        While that is open its file's number is not given to another file.
        """
        if self._identity is not None and self._identify() == self._identity:
            self._path.unlink(missing_ok=True)
        self._identity = None

    def _identify(self) -> tuple[int, int] | None:
        try:
            found = self._path.lstat()
        except OSError:
            return None
        return found.st_dev, found.st_ino


def clear_unix_path(path: Path) -> None:
    """Remove a socket that nobody listens on any more.

    :raises OSError: when something else is there, or somebody listens
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(errno.EEXIST, "unix_path: there is a file that is no socket", str(path))
    if _somebody_listens(path):
        raise OSError(errno.EADDRINUSE, "unix_path: a server is listening there", str(path))
    path.unlink(missing_ok=True)


def _somebody_listens(path: Path) -> bool:
    """Tell whether a server is behind a socket's file, even one that is too busy to accept.

    :raises OSError: when that cannot be told
    """
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # a full backlog is an answer, and none to wait for
        try:
            probe.connect(str(path))
        except BlockingIOError:
            return True
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError as exc:
            raise OSError(exc.errno, f"unix_path: cannot be probed: {exc.strerror}", str(path)) from exc
        return True
