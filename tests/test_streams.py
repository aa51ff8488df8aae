"""Connections behind AnyIO's own interfaces: typed attributes, a listener, a connectable."""

from __future__ import annotations

import logging
from typing import Any

import anyio
import pytest
from anyio.abc import Listener, ObjectStream, ObjectStreamConnectable, SocketAttribute
from anyio.streams.stapled import MultiListener
from anyio.streams.tls import TLSAttribute, TLSListener

import anyio_ws
from anyio_ws import ClientConfig, Config, Conn, ConnectionEnded, HandshakeRejected
from anyio_ws.streams import WebSocketAttribute, WebSocketConnectable, WebSocketListener
from anyio_ws.testing import MemoryListener

from .certificates import client_context, server_context
from .support import listening, no_hang, take_log


async def echo(conn: ObjectStream[str | bytes]) -> None:
    """Echo, knowing nothing but AnyIO."""
    async with conn:
        async for item in conn:
            await conn.send(item)


async def tcp() -> MultiListener[Any]:
    """Listen on a free port."""
    return await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)


def url_of(listener: Listener[Any], scheme: str = "ws") -> str:
    """Return where a listener is."""
    return f"{scheme}://127.0.0.1:{listener.extra(SocketAttribute.local_port)}/"


async def test_listener_serves_what_knows_only_anyio() -> None:
    """A handler for object streams serves WebSocket connections, and a connectable reaches it."""
    listener: Listener[Conn] = WebSocketListener(await tcp(), Config(subprotocols=["chat"]))
    async with no_hang(), anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, echo)
        there: ObjectStreamConnectable[str | bytes] = WebSocketConnectable(
            url_of(listener), subprotocols=["chat"], config=ClientConfig(max_size=1000)
        )
        async with await there.connect() as stream:
            await stream.send("text")
            await stream.send(b"bytes")
            assert [await stream.receive(), await stream.receive()] == ["text", b"bytes"]
            assert stream.extra(WebSocketAttribute.subprotocol) == "chat"
            assert stream.extra(WebSocketAttribute.close_code) is None
            assert stream.extra(SocketAttribute.remote_port) == listener.extra(SocketAttribute.local_port)
        assert stream.extra(WebSocketAttribute.close_code) == 1000
        assert stream.extra(WebSocketAttribute.close_reason) == ""
        await listener.aclose()


async def test_listener_runs_handlers_in_the_group_it_is_given() -> None:
    """With a task group, handlers are its tasks: what one raises is raised there."""
    listener = WebSocketListener(await tcp())

    async def fail(conn: Conn) -> None:
        raise KeyError("the handler's")

    async with no_hang(), anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, echo, tasks)
        async with anyio_ws.connect(url_of(listener)) as client:
            await client.write("hello")
            assert await client.receive() == "hello"
        await listener.aclose()
    listener = WebSocketListener(await tcp())
    with pytest.RaisesGroup(KeyError):
        async with no_hang(), anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, fail, tasks)
            async with anyio_ws.connect(url_of(listener)) as client:
                with anyio.CancelScope(shield=True), pytest.raises(ConnectionEnded) as caught:
                    await client.receive()
                assert caught.value.code == 1011
    await listener.aclose()


async def test_error_of_a_handler_stays_in_its_connection(caplog: pytest.LogCaptureFixture) -> None:
    """Without a task group an error closes its own connection with 1011; the next one is served."""
    listener = WebSocketListener(await tcp())

    async def handle(conn: Conn) -> None:
        if await conn.receive() == "fail":
            raise KeyError("the handler's")

    async with no_hang(), anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, handle)
        for word, code in (("fail", 1011), ("well", 1000)):
            async with anyio_ws.connect(url_of(listener)) as client:
                await client.write(word)
                with pytest.raises(ConnectionEnded) as caught:
                    await client.receive()
                assert caught.value.code == code
        await listener.aclose()
    assert len(take_log(caplog)) == 1


async def test_listener_over_tls_and_over_memory() -> None:
    """Any listener of byte streams will do: one that only calls a function, one that accepts."""
    below = await tcp()
    listener = WebSocketListener(TLSListener(below, server_context(), standard_compatible=False))
    async with no_hang(), anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, echo)
        # This server ends its streams without TLS's goodbye; the client must not wait for it.
        config = ClientConfig(tls=client_context(), close_timeout=3600)
        there = WebSocketConnectable(url_of(below, "wss"), config=config)
        async with await there.connect() as stream:
            await stream.send("secret")
            assert await stream.receive() == "secret"
            assert stream.extra(TLSAttribute.tls_version).startswith("TLS")
        await listener.aclose()

        memory: Any = MemoryListener()
        listener = WebSocketListener(memory)
        tasks.start_soon(listener.serve, echo)
        async with anyio_ws.connect("ws://localhost/", stream=memory.connect()) as client:
            await client.write("near")
            assert await client.receive() == "near"
        await listener.aclose()


async def test_cancelled_listener_says_goodbye() -> None:
    """Cancelling serve closes connections with 1001; a listener serves once at a time."""
    listener = WebSocketListener(await tcp())
    async with no_hang(), anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, echo)
        async with anyio_ws.connect(url_of(listener)) as client:
            with pytest.raises(RuntimeError, match="already"):
                await listener.serve(echo)
            tasks.cancel_scope.cancel()
            with anyio.CancelScope(shield=True), pytest.raises(ConnectionEnded) as caught:
                await client.receive()
            assert caught.value.code == 1001


async def test_listener_that_never_served_is_closed() -> None:
    """Closing a listener that does not serve closes the one below."""
    below = await tcp()
    await WebSocketListener(below).aclose()
    with pytest.RaisesGroup(anyio.ClosedResourceError, flatten_subgroups=True):
        await below.serve(echo)


async def test_failure_to_connect_is_anyios(caplog: pytest.LogCaptureFixture) -> None:
    """A refusal, and a port where nobody is, are ConnectionFailed; the cause tells which."""
    caplog.set_level(logging.CRITICAL)
    with pytest.raises(ValueError, match="url"):
        WebSocketConnectable("http://localhost/")
    below = await tcp()
    url = url_of(below)
    await below.aclose()
    with pytest.raises(anyio.ConnectionFailed) as caught:
        await WebSocketConnectable(url).connect()
    assert isinstance(caught.value.__cause__, OSError)

    class Refuses:
        def __init__(self) -> None:
            raise anyio_ws.Reject(403)

        def client_message(self, data: object) -> None:
            """Nobody gets here."""

    async with listening(anyio_ws.Server(Refuses, Config(port=0))) as addresses:
        host, port = addresses[0]
        with pytest.raises(anyio.ConnectionFailed, match="403") as caught:
            await WebSocketConnectable(f"ws://{host}:{port}").connect()
        assert isinstance(caught.value.__cause__, HandshakeRejected)
