"""Every scenario is cancelled at every point at which it waits, until it is over before it is cancelled.

After each cut: no frame is torn, nothing that was written is missing or there twice, nothing that the
peer has sent is lost, the connection ends once, and no task and no descriptor is left.
"""

from __future__ import annotations

import ssl
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from itertools import product
from pathlib import Path
from typing import Any

import anyio
import pytest

from anyio_ws import Client, connect
from anyio_ws.exceptions import ConnectionClosed, HandshakeRejected
from anyio_ws.protocol import Role

from ..conftest import BACKENDS
from ..memory import ROLES, Cut, shuffle
from ..support import is_trio, nothing_left
from .arena import Arena, Diary, Echo, arena, tls_contexts
from .scenarios import MESSAGES, SCENARIOS, TRANSPORTS, Rig, rig

MOST_CUTS = 400  # a scenario that has not ended by then would never end

every_transport = pytest.mark.parametrize("transport", TRANSPORTS)


async def cut_at(nth: int, how: str, name: str, role: Role, transport: str) -> bool:
    """Run a scenario, cancel it when it waits for the nth time, and judge; tell whether it was cancelled."""
    cut = Cut(how, nth)
    async with nothing_left():
        async with rig(role, transport) as place:
            await cut(tolerant(SCENARIOS[name], place))
            await come_to_an_end(place)
            judge(place)
        assert len(place.conn.losses) == 1
    return cut.happened


async def tolerant(scenario: Any, place: Rig) -> None:
    """Run a scenario; that its connection was closed is no failure of the sweep."""
    try:
        await scenario(place)
    except ConnectionClosed:
        if not place.conn.is_closed:
            raise


async def come_to_an_end(place: Rig) -> None:
    """Receive what is left, and have the connection end in order."""
    place.robot.finish()
    with anyio.fail_after(60):
        try:
            while True:
                await place.take()
        except ConnectionClosed:
            pass
        await place.conn.wait_gone()
        await place.robot.done.wait()


def judge(place: Rig) -> None:
    """Compare what was noted with what was on the wire."""
    oracle, conn = place.robot.oracle, place.conn
    assert oracle.violation is None, oracle.violation
    data = [message for message in oracle.messages if message[0] < 0x8]
    if conn.close_code == 1006:  # it was cut: what was on its way may be lost, from the end
        assert data == place.wrote[: len(data)]
    else:
        oracle.check()
        assert data == place.wrote
        assert [opcode for opcode, _ in oracle.messages if opcode == 0x8] == [0x8]
    if conn._discarding or conn.close_code == 1006:  # we wanted no more
        assert place.got == MESSAGES[: len(place.got)]
    else:
        assert place.got == MESSAGES


@pytest.mark.attack("T01", "T02", "T03", "T04", "T05", "T07", "T09", "T10", "T11", "R14")
@every_transport
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("name", SCENARIOS)
async def test_scenario_that_is_cancelled_anywhere_leaves_everything_whole(
    name: str, role: Role, transport: str, full_sweep: bool, cuts: Counter[str]
) -> None:
    """Whatever a program does with a connection, and wherever that is cancelled, nothing is torn or lost."""
    hows = ["scope", "ticks", *([] if is_trio() else ["native"])] if full_sweep else ["scope"]
    seeds = range(4 if full_sweep and is_trio() else 1)  # Trio shuffles its tasks; asyncio has one order
    for how, seed in product(hows, seeds):
        nth = 1
        shuffle(seed)
        while await cut_at(nth, how, name, role, transport):
            nth += 1
            assert nth < MOST_CUTS
        cuts[f"cancellations ({how})"] += nth - 1


def test_sweep_is_as_wide_as_is_said() -> None:
    """There are forty scenarios or more, on each event loop, and what is promised names their number."""
    promises = Path(__file__).parents[2] / "docs" / "security" / "promises.md"
    assert len(SCENARIOS) >= 40
    assert BACKENDS
    assert f"{len(SCENARIOS)} scenarios are cancelled at every point" in promises.read_text("utf-8")


# --- whole clients and servers ---------------------------------------------------------------------------


Opened = AbstractAsyncContextManager[Client]


async def converse(opened: Opened) -> None:
    """Talk, and close."""
    async with opened as client:
        await client.write("hello")
        assert await client.receive() == "hello"
        await client.ping()


async def leave(opened: Opened) -> None:
    """Close at once."""
    async with opened:
        pass


async def be_refused(opened: Opened) -> None:
    """Meet a server that wants none of us."""
    with pytest.raises(HandshakeRejected):
        async with opened:
            raise AssertionError


async def open_client(place: Arena, way: str, **options: Any) -> Opened:
    """Prepare a client; what can be cancelled begins when its block is entered."""
    if way == "memory":
        return connect("ws://localhost/", stream=await place.connect(), **options)
    (address,) = place.server.addresses
    if way == "tls":
        return connect(f"wss://localhost:{address[1]}/", tls=tls_contexts()[1], **options)
    return connect(f"ws://127.0.0.1:{address[1]}/", **options)


@pytest.mark.attack("T06", "T16", "R14")
@pytest.mark.parametrize("way", ["memory", "sockets", "tls"])
@pytest.mark.parametrize("program", [converse, leave, be_refused])
async def test_client_that_is_cancelled_anywhere_leaves_nothing(
    program: Callable[[Opened], Awaitable[None]], way: str, full_sweep: bool, cuts: Counter[str]
) -> None:
    """From the first step of connecting to the last of closing; the server notices one end at most."""
    options: Any = {"origin": "http://evil.example"} if program is be_refused else {}
    nth = 1
    while True:
        ends = Diary()
        cut = Cut("scope", nth)
        async with nothing_left(), arena(way, Echo, ends) as place:
            await cut(program(await open_client(place, way, **options)))
        assert len(ends) <= 1
        if not cut.happened:
            break
        cuts["cancellations of whole clients"] += 1
        nth += 1 if full_sweep else 2
        assert nth < MOST_CUTS


@pytest.mark.attack("S02", "T06")
@pytest.mark.parametrize("fault", ["untrusted", "another host"])
async def test_server_that_cannot_prove_who_it_is_is_not_talked_to(fault: str) -> None:
    """A certificate that is not trusted, or for another host, is an error, and nothing stays open."""
    async with nothing_left(), arena("tls", Echo) as place:
        (address,) = place.server.addresses
        host = "localhost" if fault == "untrusted" else "other.example"
        options: Any = {} if fault == "untrusted" else {"tls": tls_contexts()[1]}
        stream = await anyio.connect_tcp(*address)
        with pytest.raises(ssl.SSLError):
            async with connect(f"wss://{host}/", stream=stream, **options):
                raise AssertionError
