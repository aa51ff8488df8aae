"""A sample of what ``python -m tests.leaks`` does for longer."""

from __future__ import annotations

import gc
import types
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import pytest

import anyio_ws
from anyio_ws import Config, Conn, Server

from . import leaks
from .support import TEXT, Peer, listening, settle

PACKAGE = str(Path(anyio_ws.__file__).parent)


class Echo:
    """Sends back what it gets."""

    def __init__(self, conn: Conn) -> None:
        self.conn = conn

    async def client_message(self, data: str) -> None:
        await self.conn.write(data)


def of_ours(each: Any) -> str | None:
    """Say what an object that the collector knows is, if it is of the package, and not a bell."""
    if isinstance(each, types.MethodType | types.BuiltinMethodType):
        kind, name = type(each.__self__), f".{each.__name__}"
    elif isinstance(each, types.CoroutineType):
        is_ours = each.cr_code.co_filename.startswith(PACKAGE)
        return each.__qualname__ if is_ours else None
    else:
        kind, name = type(each), ""
    module = str(kind.__module__)  # some types have something else there
    is_ours = module.startswith("anyio_ws.") and module != "anyio_ws.poller"
    return f"{kind.__name__}{name}" if is_ours else None


def count_ours() -> Counter[str]:
    gc.collect()
    return Counter(filter(None, map(of_ours, gc.get_objects())))


@pytest.mark.attack("R14", "O10")
async def test_connections_leave_nothing_behind() -> None:
    """After some hundred connections, without the collector, there is as much as before them."""
    grown = await leaks.run(300)
    assert grown.left == set()
    assert grown.objects < 300  # a connection that stayed would be dozens
    assert grown.memory < 2_000_000


async def test_idle_connection_holds_one_of_each_part_and_nothing_of_its_handshake() -> None:
    """All of ours that the collector has to look at for each of many thousand connections."""
    async with listening(Server(Echo, Config(port=0, compression=None))) as addresses:

        async def open_and_echo() -> Peer:
            peer = Peer(await anyio.connect_tcp(*addresses[0]))
            await peer.open()
            await peer.send_frame(TEXT, b"hello")
            await peer.expect(TEXT, b"hello")
            return peer

        peers = [await open_and_echo()]
        await settle()
        before = count_ours()
        peers += [await open_and_echo() for _ in range(3)]
        await settle()
        grown = count_ours() - before
        assert grown == dict.fromkeys(
            (
                "Conn",
                "Conn._keep_alive",
                "ConnectedSocket",
                "ConnectionBuffers",
                "Deadline",
                "Inbox",
                "Inbox.dispatch_all",
                "Link",
                "Link._serve",
                "MessageReader",
                "Protocol",
                "SocketTransport",
                "SocketTransport.readable",
                "_HandlerSession",
            ),
            3,
        )
        for peer in peers:
            await peer.stream.aclose()
