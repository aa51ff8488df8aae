"""Section S of the contract: the server."""

from __future__ import annotations

import re
import socket
from functools import partial

import anyio
import anyio.to_thread
import pytest

import anyio_ws
from anyio_ws import Config, Conn, ConnectionEnded, Server, serve, testing

from ..support import TEXT, Stopwatch, listening, no_hang, settle, take_log, virtual
from ..test_workers import Start, start  # noqa: F401 - a fixture
from .things import Echo, Quiet, serving


def test_s1_hooks_are_checked_once() -> None:
    """A missing client_message, or a hook with wrong parameters, is a TypeError that shows the shapes."""

    class Wrong(Quiet):
        def client_ping(self, code: int) -> None:
            """There is no such shape."""

    for handler, words in ((object, "client_message(self, data)"), (Wrong, "client_ping(self, data)")):
        with pytest.raises(TypeError, match=re.escape(words)):
            Server(handler)
    Server(lambda conn: Echo(conn))
    Server(Echo)


async def test_s2_listen_gives_addresses_and_closes_everything() -> None:
    """Port 0 works, the address is told twice, and after the end the port is free."""
    server = Server(Echo, Config(port=0))
    async with listening(server) as addresses:
        assert server.addresses == addresses
        host, port = addresses[0]
        async with anyio_ws.connect(f"ws://{host}:{port}") as client:
            await client.write("hello")
            assert await client.receive() == "hello"
    assert server.addresses == []
    with pytest.raises(ConnectionRefusedError), socket.socket() as probe:
        probe.connect((host, port))


async def test_s2_listening_sockets_are_taken_over() -> None:
    """A socket that listens already is served from, and closed at the end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        server = Server(Echo)
        async with no_hang(), anyio.create_task_group() as tasks:
            addresses = await tasks.start(partial(server.listen, listeners=[listener]))
            assert addresses == [address]
            async with anyio_ws.connect(f"ws://{address[0]}:{address[1]}") as client:
                await client.write("hello")
                assert await client.receive() == "hello"
            server.stop()
        assert listener.fileno() == -1


@pytest.mark.parametrize("app", [None, {"an": "app"}])
async def test_s3_app_reaches_every_handler(app: object) -> None:
    """The handler gets the very object that listen got, or None."""
    seen: list[object] = []

    class Notes(Quiet):
        def __init__(self, app: object) -> None:
            seen.append(app)

    for _ in range(2):
        async with testing.client(Notes, app):
            pass
    assert seen == [app, app]


@pytest.mark.parametrize("how", ["stop", "thread", "cancel"])
async def test_s4_stop_and_cancel_are_a_goodbye(how: str) -> None:
    """However the server is stopped, peers get a Close in order; stopping twice does no harm."""
    server = Server(Echo, Config(port=0))
    async with no_hang(), anyio.create_task_group() as tasks:
        ((host, port),) = await tasks.start(server.listen)
        with anyio.CancelScope(shield=True):
            async with anyio_ws.connect(f"ws://{host}:{port}") as client:
                if how == "cancel":
                    tasks.cancel_scope.cancel()
                elif how == "thread":
                    await anyio.to_thread.run_sync(partial(server.stop, 1012, "restart"))
                else:
                    server.stop(1012, "restart")
                    server.stop(1012, "restart")
                with pytest.raises(ConnectionEnded) as caught:
                    await client.receive()
    expected = (1001, "") if how == "cancel" else (1012, "restart")
    assert (caught.value.code, caught.value.reason) == expected


@virtual
async def test_s4_abort_cuts_at_once() -> None:
    """After abort nobody has time: peers are cut, hooks cancelled, close is called all the same."""
    events: list[str] = []

    class Hangs(Echo):
        async def client_message(self, data: object) -> None:
            try:
                await anyio.sleep_forever()
            finally:
                events.append("cancelled")

        def close(self) -> None:
            events.append("closed")

    async with serving(Hangs, config=Config(shutdown_timeout=3600, close_timeout=3600)) as served:
        peer = await served.open()
        await peer.send_frame(TEXT, b"x")
        await settle()
        with Stopwatch(0):
            served.server.abort()
            await served.server.wait_stopped()
    assert events == ["cancelled", "closed"]


def test_s5_run_serves_with_processes_until_a_signal(start: Start) -> None:  # noqa: F811 - the fixture
    """run() starts two workers, ends on SIGTERM, and returns."""
    running = start(config={"worker_count": 2})
    workers = running.open_to_each(2)
    assert running.process.pid not in workers
    running.end()


async def test_s6_error_stays_in_its_connection(caplog: pytest.LogCaptureFixture) -> None:
    """A hook that raises is 1011 for its peer, one line with a traceback in the log, nothing for others."""

    class Fragile(Echo):
        async def client_message(self, data: str) -> None:
            if data == "fail":
                raise KeyError(data)
            await super().client_message(data)

    server = Server(Fragile, Config(port=0))
    async with listening(server) as ((host, port),), anyio_ws.connect(f"ws://{host}:{port}") as bystander:
        async with anyio_ws.connect(f"ws://{host}:{port}") as client:
            await client.write("fail")
            with pytest.raises(ConnectionEnded) as caught:
                await client.receive()
        await bystander.write("well")
        assert await bystander.receive() == "well"
    assert caught.value.code == 1011
    (record,) = take_log(caplog)
    assert record.exc_info[0] is KeyError
    assert re.search(r"connection \d+", record.getMessage())


async def test_s7_function_serves() -> None:
    """An async function that iterates over its connection is a server; its return closes with 1000."""

    async def handler(conn: Conn) -> None:
        async for message in conn:
            await conn.send(message)
            if message == "last":
                return

    async with no_hang(), anyio.create_task_group() as tasks:
        ((host, port),) = await tasks.start(partial(serve, handler, Config(port=0)))
        async with anyio_ws.connect(f"ws://{host}:{port}") as client:
            for message in ("first", "last"):
                await client.write(message)
                assert await client.receive() == message
            assert [item async for item in client] == []
            assert client.close_code == 1000
        tasks.cancel_scope.cancel()
