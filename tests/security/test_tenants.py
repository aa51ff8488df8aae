"""Many connections in one process under a bad network: each gets what is its own, in order, or its end."""

from __future__ import annotations

import contextlib
from functools import partial
from random import Random

import anyio
import pytest
from anyio.abc import ByteStream

from anyio_ws import Client, Server, connect
from anyio_ws.closing import ConnectionBroken
from anyio_ws.exceptions import HandshakeError
from anyio_ws.testing import ChaosProxy, Ending, MemoryListener, Weather, chaos_proxy

from ..support import no_hang, virtual
from .arena import Diary, Echo

TENANTS = 25
MESSAGES = 40
SEEDS = 1


def draw(random: Random) -> Weather:
    """Draw the weather of one direction: always slow and in pieces, and often with an end to it."""
    ending = random.choice([None, None, None, *Ending])
    return Weather(
        latency=random.uniform(0, 0.5),
        jitter=random.uniform(0, 0.2),
        bandwidth=random.choice([2_000, 50_000, 10_000_000]),
        most=random.choice([1, 7, 500, 20_000]),
        ending=ending,
        after=random.randrange(4_000) if ending else 0,
    )


@virtual
@pytest.mark.attack("O06", "O03", "O01", "O02", "R09", "R10", "R14")
async def test_tenants_never_see_each_other_whatever_the_network_does(full_sweep: bool) -> None:
    """Every message that comes back is the tenant's own next one; every connection has exactly one end."""
    results: list[bool] = []
    for seed in range(SEEDS * (10 if full_sweep else 1)):
        ends = Diary()
        listener = MemoryListener()
        server = Server(Echo)
        async with no_hang(), anyio.create_task_group() as tasks:
            tasks.start_soon(partial(server.listen, ends, listeners=[listener]))
            to_server = partial(connect_to, listener)
            async with (
                chaos_proxy(to_server, up=draw, down=draw, seed=seed) as proxy,
                anyio.create_task_group() as tenants,
            ):
                for number in range(TENANTS):
                    tenants.start_soon(tenant, proxy, f"{seed}/{number}", Random(number), results)
            server.stop()
        assert len(results) == TENANTS * (seed + 1)
    assert results.count(True) > 3
    assert results.count(False) > 3


async def connect_to(listener: MemoryListener) -> ByteStream:
    """Connect to a server in memory."""
    return listener.connect()


async def tenant(proxy: ChaosProxy, name: str, random: Random, results: list[bool]) -> None:
    """Send messages through a proxy and check each echo; note whether all came back."""
    sent = [f"{name}:{n}:" + "." * random.choice([0, 10, 3_000]) for n in range(MESSAGES)]
    received: list[str | bytes] = []
    try:
        async with (
            connect("ws://localhost/", stream=proxy.connect()) as client,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(send_all, client, sent)
            with contextlib.suppress(ConnectionBroken):
                while len(received) < len(sent):
                    received.append(await client.receive())
                    assert received[-1] == sent[len(received) - 1]
    except (HandshakeError, TimeoutError):
        assert received == []
    results.append(len(received) == len(sent))


async def send_all(client: Client, sent: list[str]) -> None:
    """Send messages as long as that is possible."""
    with contextlib.suppress(ConnectionBroken):
        for message in sent:
            await client.write(message)
