"""A program with types that uses the whole public API; type checkers find nothing wrong with it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import partial

import anyio
from anyio.abc import Listener, ObjectStream, ObjectStreamConnectable
from typing_extensions import assert_type

import anyio_ws
from anyio_ws import (
    Client,
    ClientConfig,
    CloseCode,
    Config,
    Conn,
    ConnectionClosed,
    Handshake,
    HandshakeConfig,
    HandshakeRejected,
    Headers,
    Message,
    MessageType,
    Opcode,
    Reject,
    Request,
    Response,
    Scratch,
    Server,
    State,
    blocking,
    broadcast,
    buffer_provider,
    frame_bin,
    frame_text,
    run,
    serve,
    testing,
)
from anyio_ws.streams import WebSocketAttribute, WebSocketConnectable, WebSocketListener


@dataclass
class App:
    """An application object."""

    members: set[Conn] = field(default_factory=set[Conn])


class Handler:
    """A handler whose application object has a type."""

    def __init__(self, handshake: Handshake, conn: Conn, app: App) -> None:
        self.conn = conn
        self.members = app.members
        if handshake.path == "/no":
            raise Reject(403, headers={"X-Why": "because"}, body=b"no")
        assert_type(handshake.headers, Headers)
        assert_type(handshake.cookies.get("session"), "str | None")

    async def after_init(self) -> None:
        """Say hello."""
        self.members.add(self.conn)
        await self.conn.write("hello")

    async def client_message(self, scratch: Scratch, data: str | bytes, message_type: MessageType) -> None:
        """Use everything that can be written."""
        memory = scratch.alloc(100)
        assert_type(memory, memoryview)
        await self.conn.write_bin(memory[:10])
        await self.conn.write_frame(Opcode.TEXT, b"x", fin=False)
        await self.conn.write_frame(Opcode.CONTINUATION, b"y")
        await self.conn.write_framed(frame_text("framed"))
        async with self.conn.write_buffer(MessageType.TEXT) as wb:
            json.dump({"a": 1}, wb)
            print("!", file=wb)
            await wb.flush()
        broadcast(self.members, frame_bin(b"x"))
        assert_type(await self.conn.ping(), float)
        assert_type(self.conn.state, State)
        assert_type(self.conn.close_code, "int | None")

    def close(self) -> None:
        """Leave."""
        self.members.discard(self.conn)


class FromInit(Handler):
    """A handler that is made by a classmethod."""

    @classmethod
    async def init(cls, handshake: Handshake, conn: Conn, app: App) -> FromInit:
        """Make it."""
        return cls(handshake, conn, app)


class Simple:
    """A handler that takes its connection only."""

    def __init__(self, conn: Conn) -> None:
        self.conn = conn

    async def client_message(self, data: str) -> None:
        """Echo."""
        await self.conn.send(data)


class Takes:
    """A handler of messages for a client."""

    async def handle(self, message: Message) -> None:
        """Look at it."""
        assert_type(message.type, MessageType)

    def close(self) -> None:
        """Do nothing."""


def answer(request: Request) -> Response | None:
    """Answer ordinary requests."""
    return Response(200, "well\n") if request.path == "/health" else None


async def function(conn: Conn) -> None:
    """Serve with a function."""
    async for item in conn:
        assert_type(item, "str | bytes")
        await conn.send(item)


async def servers() -> None:
    """Serve in every way."""
    server = Server(Handler, Config(port=0, handshake=HandshakeConfig(timeout=5)), http_handler=answer)
    assert_type(server, Server[App])
    explicit = Server[App](FromInit)
    async with anyio.create_task_group() as tasks:
        await tasks.start(server.listen, App())
        assert_type(server.addresses, "list[tuple[str, int] | str]")
        await explicit.listen(App())
        await Server(Simple).listen()
        await serve(function, Config())
        server.stop(CloseCode.SERVICE_RESTART, "soon back")


async def clients() -> None:
    """Connect in every way."""
    config = ClientConfig(buffer_provider=buffer_provider(4, 10_000))
    try:
        async with anyio_ws.connect("ws://localhost/", headers={"A": "b"}, max_size=1000) as client:
            assert_type(client, Client)
            assert_type(await client.receive(), "str | bytes")
            assert_type(await client.read(timeout=1), "Message | None")
            client.from_thread.write("from a thread")
    except HandshakeRejected as exc:
        assert_type(exc.status, int)
    except ConnectionClosed as exc:
        assert_type(exc.code, int)
    two_steps = await Client.connect("localhost", 80, config)
    await two_steps.handshake("/", timeout=5, headers="A: b")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(two_steps.read_loop, Takes())


async def citizens() -> None:
    """Be AnyIO's."""
    connectable: ObjectStreamConnectable[str | bytes] = WebSocketConnectable("ws://localhost/")
    stream: ObjectStream[str | bytes] = await connectable.connect()
    assert_type(stream.extra(WebSocketAttribute.subprotocol), "str | None")
    below = await anyio.create_tcp_listener(local_port=0)
    listener: Listener[Conn] = WebSocketListener(below)
    await listener.serve(function)


async def tests() -> None:
    """Test a handler."""
    async with testing.init() as wt:
        await wt.expect_text("hello")
    async with testing.client(Handler, App()) as client:
        assert_type(client, Client)


def threads() -> None:
    """Do without an event loop."""
    with blocking.connect("ws://localhost/") as client:
        client.write("hello")
        assert_type(client.read(timeout=1), "Message | None")
        for item in client:
            assert_type(item, "str | bytes")


if __name__ == "__main__":
    run(Handler, Config(worker_count=2), App(), backend="trio")
    anyio.run(partial(servers))
    for program in (clients, citizens, tests):
        anyio.run(program)
    threads()
