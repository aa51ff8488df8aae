"""Messages and a Close in the same instant as the 101: nothing of them is lost, whoever runs first."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute

from anyio_ws import Config, Conn, connect
from anyio_ws.handler import FunctionFactory
from anyio_ws.testing import (
    Answer,
    Do,
    MemoryListener,
    ScriptedPeer,
    Step,
    Until,
    WireOracle,
    accept_handshake,
    build_frame,
)

from ..memory import shuffle
from ..support import BINARY, CLOSE, TEXT, build_request, is_trio, no_hang
from .arena import Diary, Echo, arena, every_way

COUNT = 40
KEY = b"mask"
CLOSE_1000 = b"\x03\xe8"


def messages(key: bytes | None) -> bytes:
    """Build forty messages and a Close."""
    frames = [build_frame(BINARY if n % 2 else TEXT, b"%d" % n, key=key) for n in range(COUNT)]
    return b"".join(frames) + build_frame(CLOSE, CLOSE_1000, key=key)


EXPECTED = [*((BINARY if n % 2 else TEXT, b"%d" % n) for n in range(COUNT)), (CLOSE, CLOSE_1000)]


def seeds(full: bool) -> range:
    """Return the scheduler seeds to try: Trio shuffles its tasks, asyncio has one order."""
    return range((1_000 if full else 12) if is_trio() else 1)


async def echo(conn: Conn) -> None:
    """Echo everything, in the other style of handlers."""
    async for message in conn:
        await conn.send(message)


@pytest.mark.attack("T12", "H22")
@every_way
@pytest.mark.parametrize("handler", [Echo, FunctionFactory(echo)], ids=["hooks", "function"])
async def test_server_echoes_what_came_with_the_request_and_answers_the_close(
    way: str, handler: Any, full_sweep: bool
) -> None:
    """Forty messages and a Close behind the request: all come back, in every order of tasks."""
    async with arena(way, handler) as place:
        for seed in seeds(full_sweep):
            shuffle(seed)
            script = [build_request() + messages(KEY)]
            peer = ScriptedPeer(await place.connect(), script)
            await peer.run()
            oracle = peer.oracle(masked=False)
            oracle.check()
            assert (seed, oracle.messages) == (seed, EXPECTED)
            assert peer.ending == "end"


@pytest.mark.attack("T12", "S08")
@pytest.mark.parametrize("transport", ["memory", "sockets"])
@pytest.mark.parametrize("style", ["receive", "read_loop"])
async def test_client_gets_what_came_with_the_answer(style: str, transport: str, full_sweep: bool) -> None:
    """The same for a client: forty messages and a Close behind the 101 are received, and answered."""
    script: list[Step] = [
        Until(b"\r\n\r\n"),
        Answer(accept_and_send),
        Do.HALF_CLOSE,
    ]
    listener = MemoryListener() if transport == "memory" else await listen_on_loopback()
    played = Diary()
    async with no_hang(), anyio.create_task_group() as tasks:
        tasks.start_soon(play, listener, script, played)
        for seed in seeds(full_sweep):
            shuffle(seed)
            received = Diary()
            async with connect(target(listener), **options(listener)) as client:
                if style == "receive":
                    async for message in client:
                        received.append(message)
                else:
                    await client.read_loop(Collector(received))
            assert received == [b"%d" % n if n % 2 else str(n) for n in range(COUNT)]
            assert client.close_code == 1000
            await played.wait(seed + 1)
            oracle: WireOracle = played[seed].oracle(masked=True)
            oracle.check()
            assert oracle.messages == [(CLOSE, CLOSE_1000)]
        tasks.cancel_scope.cancel()
    await listener.aclose()


async def listen_on_loopback() -> Any:
    """Listen on a free port."""
    return (await anyio.create_tcp_listener(local_host="127.0.0.1")).listeners[0]


async def play(listener: Any, script: list[Step], played: Diary) -> None:
    """Be a server that plays a script with each client, one after the other."""
    while True:
        peer = ScriptedPeer(await listener.accept(), script)
        await peer.run()
        played.append(peer)


def target(listener: Any) -> str:
    """Return the URL of a listener."""
    return f"ws://127.0.0.1:{listener.extra(SocketAttribute.local_port, 80)}/"


def options(listener: Any) -> dict[str, Any]:
    """Return how else to connect to it."""
    return {"stream": listener.connect()} if isinstance(listener, MemoryListener) else {}


def accept_and_send(received: bytes) -> bytes:
    """Answer the opening handshake, and send everything with it."""
    return accept_handshake(received) + messages(None)


class Collector:
    """Collects what a read loop gives it."""

    def __init__(self, received: Diary) -> None:
        self.received = received

    def handle(self, message: Any) -> None:
        """Note the data."""
        self.received.append(message.data)


@pytest.mark.attack("T12", "T09")
@every_way
async def test_both_ends_may_close_in_the_first_instant(way: str, full_sweep: bool) -> None:
    """A server that closes in its first hook, and a client that closed with its request: one Close each."""

    class Closing(Echo):
        async def after_init(self) -> None:
            await self.conn.close(1000)

    async with arena(way, Closing, None, Config()) as place:
        for seed in seeds(full_sweep):
            shuffle(seed)
            peer = ScriptedPeer(
                await place.connect(), [build_request() + build_frame(CLOSE, CLOSE_1000, key=KEY)]
            )
            await peer.run()
            oracle = peer.oracle(masked=False)
            oracle.check()
            assert oracle.messages == [(CLOSE, CLOSE_1000)]
