"""What a server accepts plain sockets from. ``test_server.py`` has the rest of binding."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator

import anyio
from anyio.abc import SocketAttribute

from anyio_ws.binding import SocketListener

from .memory import settle
from .support import nothing_left


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
