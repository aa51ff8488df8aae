"""Connecting to a server: TCP to whichever address of a host answers first, and Unix sockets.

This is for event loops that can watch sockets; elsewhere AnyIO connects.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from itertools import zip_longest
from pathlib import Path
from typing import Any

import anyio

from .sockets import ConnectedSocket

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

_STAGGER = 0.25  # seconds before the next address is tried beside the last one (RFC 8305 §5)
_FULL_BACKLOG_PAUSE = 0.01  # seconds; nothing tells when a Unix socket's backlog has room again


async def connect_tcp(host: str, port: int) -> ConnectedSocket:
    """Connect to whichever of a host's addresses answers first (RFC 8305, "Happy Eyeballs").

    :param host: host name or address
    :param port: the TCP port
    :raises OSError: when no address can be connected to; what was wrong with each is its cause

    Cancellation: no socket stays open.
    """
    found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = _by_turns([(family, address) for family, _, _, _, address in found])
    errors: list[OSError] = []
    connected: list[socket.socket] = []
    try:
        async with anyio.create_task_group() as tasks:

            async def attempt(family: int, address: Any, failed: anyio.Event) -> None:
                try:
                    sock = await _connect(family, address)
                except OSError as exc:
                    errors.append(exc)
                    failed.set()
                else:
                    connected.append(sock)
                    tasks.cancel_scope.cancel()

            for family, address in addresses:
                failed = anyio.Event()
                tasks.start_soon(attempt, family, address, failed)
                with anyio.move_on_after(_STAGGER):
                    await failed.wait()
        if connected:
            return ConnectedSocket(connected.pop(0), addresses[0][1] if len(addresses) == 1 else None)
    finally:
        for sock in connected:
            sock.close()
    raise _connect_error(host, port, errors)


def _by_turns(addresses: list[tuple[int, Any]]) -> list[tuple[int, Any]]:
    """Let the families take turns, the first one first (RFC 8305 §4)."""
    first = [each for each in addresses if each[0] == addresses[0][0]]
    others = [each for each in addresses if each[0] != addresses[0][0]]
    pairs = zip_longest(first, others)
    return [each for pair in pairs for each in pair if each is not None]


def _connect_error(host: str, port: int, errors: list[OSError]) -> OSError:
    """Tell what was wrong: the one error, or all of them under one."""
    if len(errors) == 1:
        return errors[0]
    error = OSError(
        errors[0].errno, f"{host} port {port}: none of {len(errors)} addresses accepts a connection"
    )
    error.__cause__ = ExceptionGroup("one error for each address", errors)
    return error


async def connect_unix(path: str | Path) -> ConnectedSocket:
    """Connect to a Unix socket.

    :raises OSError: when that is not possible

    Cancellation: no socket stays open.
    """
    return ConnectedSocket(await _connect(socket.AF_UNIX, os.fspath(path)), os.fspath(path))


async def _connect(family: int, address: Any) -> socket.socket:
    """Connect one socket, and return it; it is closed when that fails.

    :raises OSError: when the address cannot be connected to
    """
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        code = sock.connect_ex(address)
        while code == errno.EAGAIN:
            await anyio.sleep(_FULL_BACKLOG_PAUSE)
            code = sock.connect_ex(address)
        if code == errno.EINPROGRESS:
            await anyio.wait_writable(sock)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code), address)
    except BaseException:
        sock.close()
        raise
    return sock
