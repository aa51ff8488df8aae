"""A server that stops is gone in time, whatever a thousand peers do or do not do."""

from __future__ import annotations

import socket
import time
from typing import Any

import anyio
import pytest

from anyio_ws import Config, Server
from anyio_ws.testing import MemoryListener

from ..support import CLOSE, Peer, Stopwatch, build_request, listening, no_hang, nothing_left, settle, virtual
from .arena import Diary, Echo, arena, every_way
from .test_writes import Flooding

GRACE = 2.0
CONFIG = Config(shutdown_timeout=GRACE, close_timeout=60, write_timeout=60, ping_interval=None)


@virtual
@pytest.mark.attack("O07", "T16")
@pytest.mark.parametrize("how", ["stop", "cancel"])
async def test_thousand_stuck_peers_are_cut_exactly_in_time(how: str) -> None:
    """Idle, never reading, in the middle of a frame or of the handshake: over when the grace is."""
    ends = Diary()
    listener = MemoryListener()
    server = Server(Flooding, CONFIG)
    async with nothing_left(), no_hang(), anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: server.listen(ends, listeners=[listener]))
        peers = [Peer(listener.connect(5_000)) for _ in range(1_000)]
        for number, peer in enumerate(peers):
            path, cut = [("/", None), ("/flood", None), ("/", 30), ("/", 0)][number % 4]
            await peer.send(build_request(path)[:cut])
            if number % 8 == 0:
                await peer.send(b"\x81\xfe\xff\xff")
        await settle()
        with anyio.CancelScope(shield=True), Stopwatch(GRACE):
            if how == "stop":
                server.stop()
            else:
                tasks.cancel_scope.cancel()
            await server.wait_stopped()
    assert len(ends) == 500  # those whose handshake was done; the handler of each was told


@pytest.mark.attack("O07")
async def test_sockets_that_are_stuck_are_cut_in_time(full_sweep: bool) -> None:
    """The same with the kernel in between: the grace and half a second for hundreds of sockets."""
    count = 1_000 if full_sweep else 200
    ends = Diary()
    server = Server(Flooding, Config(port=0, shutdown_timeout=0.5, close_timeout=60, write_timeout=60))
    async with nothing_left():
        async with listening(server, ends) as (address,):
            victims = [socket.create_connection(address) for _ in range(count)]
            for number, victim in enumerate(victims):
                victim.setblocking(False)
                victim.send(build_request("/flood" if number % 2 else "/")[: 40 if number % 5 == 0 else None])
            waiting = [victim for number, victim in enumerate(victims) if number % 5]
            for victim in waiting:
                await anyio.wait_readable(victim)
            await settle()
            async with anyio.create_task_group() as tasks:
                late: list[float] = [0.0]
                tasks.start_soon(measure_lateness, late)
                start, work = anyio.current_time(), time.process_time()
                server.stop()
                await server.wait_stopped()
                work = time.process_time() - work
                seconds = anyio.current_time() - start
                tasks.cancel_scope.cancel()
            assert work <= 0.5
            assert seconds <= 0.5 + 0.5 + late[0]
        for victim in victims:
            victim.close()
    assert len(ends) == count * 4 // 5


async def measure_lateness(late: list[float]) -> None:
    """Add up by how much a busy machine has delayed this task."""
    while True:
        before = anyio.current_time()
        await anyio.sleep(0.01)
        late[0] += max(0.0, anyio.current_time() - before - 0.02)


@pytest.mark.attack("O07", "S04")
@every_way
async def test_shutdown_says_1001_and_503_over_every_transport(way: str) -> None:
    """Open connections get 1001, a handshake that is under way 503, a TLS handshake is dropped."""
    ends = Diary()
    async with nothing_left(), arena(way, Echo, ends) as place:
        opened, opening = await place.open(), await place.peer()
        await opening.send(build_request()[:50])
        silent: Any = await anyio.connect_tcp(*place.server.addresses[0]) if way == "tls" else None
        await settle()
        place.server.stop(1001, "restart")
        await opened.expect(CLOSE, b"\x03\xe9restart")
        await opened.send_close(1001)
        await opened.expect_end()
        assert (await opening.receive_head()).status == 503
        if silent is not None:
            with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                await silent.receive()
            await silent.aclose()
        await opening.stream.aclose()
        await place.server.wait_stopped()
    assert ends == [1001]
