"""The client for threads: the same connection, without an event loop in sight."""

from __future__ import annotations

import gc
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal

from anyio_ws import (
    Config,
    Conn,
    ConnectionBroken,
    ConnectionEnded,
    ConnectionShut,
    HandshakeRejected,
    Message,
    MessageType,
    Opcode,
    Reject,
    Server,
    State,
    blocking,
    buffer_provider,
    frame_text,
)
from anyio_ws.deflate import Deflater
from anyio_ws.protocol import Role

TIMEOUT = 60.0  # seconds after which a test has hung


class Obedient:
    """Does what a message says; an echo otherwise."""

    def __init__(self, handshake: Any, conn: Conn, app: Served) -> None:
        if handshake.path == "/no":
            raise Reject(403)
        self.conn = conn
        self.served = app
        app.begin()

    async def client_message(self, data: str | bytes) -> None:
        """Obey."""
        command, _, rest = str(data).partition(" ")
        if command == "count":
            for number in range(int(rest)):
                await self.conn.write(str(number))
        elif command == "close":
            await self.conn.close(int(rest), "as you wish")
        elif command == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
        elif command == "abort":
            self.conn.abort()
        else:
            await self.conn.send(data)

    def close(self) -> None:
        """Note how it ended."""
        self.served.end(self.conn.close_code)


class Served:
    """A server in a thread of its own, and what its handlers have seen.

    :ivar url: where it is
    """

    def __init__(self) -> None:
        self.url = ""
        self._handlers = 0
        self._codes: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._ended = 0

    def begin(self) -> None:
        """Note that there is one more handler."""
        self._handlers += 1

    def end(self, code: int | None) -> None:
        """Note how the connection of a handler ended."""
        self._ended += 1
        self._codes.put(code)

    def close_code(self) -> int | None:
        """Return how the next connection ended, which the server may see later than the client."""
        return self._codes.get(timeout=TIMEOUT)

    def check(self) -> None:
        """Check that every handler has been closed once."""
        assert self._ended == self._handlers


@pytest.fixture
def served() -> Iterator[Served]:
    """Serve while a test runs, and check that it leaves no threads."""
    served = Served()
    server = Server(Obedient, Config(port=0, subprotocols=["chat"], shutdown_timeout=0.1))
    with start_blocking_portal() as portal:
        listening, addresses = portal.start_task(server.listen, served)
        before = set(threading.enumerate())
        host, port = addresses[0]
        served.url = f"ws://{host}:{port}/"
        yield served
        for thread in set(threading.enumerate()) - before:
            thread.join(TIMEOUT)
        left = set(threading.enumerate()) - before
        server.stop()
        listening.result()
    assert not left
    served.check()


@pytest.fixture(params=["asyncio", "trio"])
def connect(request: pytest.FixtureRequest, served: Served) -> Callable[..., blocking.Client]:
    """Connect to the server, on each backend."""
    return lambda path="", **options: blocking.connect(served.url + path, backend=request.param, **options)


Connect = Callable[..., blocking.Client]


def test_client_talks(connect: Connect, served: Served) -> None:
    """Everything that a connection can do blocks until it is done, and the block closes it with 1000."""
    with connect(subprotocols=["chat"]) as client:
        client.write("text")
        assert client.receive() == "text"
        client.write_text("more")
        assert client.read() == Message(MessageType.TEXT, "more")
        client.write_bin(bytearray(b"bytes"))
        assert client.receive() == b"bytes"
        scrambled = bytearray(b"a message of some length")
        client.write_bin(scrambled, mask_in_place=True)
        assert client.receive() == b"a message of some length" != scrambled
        assert client.statistics().small.in_use == 0
        client.send(b"sent")
        client.write_framed(frame_text("framed"))
        client.write_frame(Opcode.TEXT, b"frag", fin=False)
        client.write_frame(Opcode.CONTINUATION, b"ment")
        assert [client.receive() for _ in range(3)] == [b"sent", "framed", "fragment"]
        client.write_ping(b"unheeded")
        client.write_pong()
        assert client.ping() == client.latency
    assert served.close_code() == 1000


@pytest.mark.attack("C13")
def test_client_can_keep_a_message_out_of_compression(
    connect: Connect, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each message can be sent uncompressed; the echo of the server is compressed in any case."""
    compressed = []
    compress = Deflater.compress

    def note(deflater: Deflater, data: bytes, **options: Any) -> bytes:
        compressed.append(data)
        return compress(deflater, data, **options)

    monkeypatch.setattr(Deflater, "compress", note)
    text = "a" * 100
    with connect() as client:
        writes: list[Callable[..., None]] = [
            client.write,
            lambda text, **options: client.write_bin(text.encode(), **options),
            client.send,
            lambda text, **options: client.write_frame(Opcode.TEXT, text.encode(), **options),
        ]
        for write in writes:
            for choice in (True, False):
                compressed.clear()
                write(text, compress=choice)
                assert client.receive() in (text, text.encode())
                assert len(compressed) == 1 + choice


def test_write_buffer_sends_what_was_written_like_a_file(connect: Connect) -> None:
    """Each flush sends one message, text or binary; what was not flushed is never sent."""
    with connect() as client:
        with client.write_buffer() as wb:
            json.dump({"a": [1, 2]}, wb)
            assert client.read(timeout=0) is None
            wb.flush()
            print("a line", "é", file=wb, flush=True)
            wb.flush()
            assert wb.write("discarded") == 9
        with client.write_buffer(MessageType.BINARY) as wb:
            for _ in range(3):
                assert wb.write(b"." * 1_000) == 1_000
            wb.flush(compress=False)
        received = [client.receive() for _ in range(3)]
        assert received == ['{"a": [1, 2]}', "a line é\n", b"." * 3_000]
        assert client.read(timeout=0) is None


def test_write_buffer_has_its_memory_from_the_pools(connect: Connect) -> None:
    """A provider lends it to the thread that writes, and has it back at the end of the block."""
    provider = buffer_provider(1, 60_000)
    with connect(buffer_provider=provider) as client:
        with client.write_buffer() as wb:
            wb.write("." * 30_000)
            assert provider.statistics().in_use == 1
            wb.flush()
        assert provider.statistics().in_use == 0
        assert client.receive() == "." * 30_000


def test_write_buffer_says_what_is_wrong(connect: Connect) -> None:
    """Mistakes are the errors of the asynchronous one, and leave what was written as it is."""
    with connect() as client:
        with pytest.raises(ValueError, match="MessageType"):
            client.write_buffer(MessageType.PING)
        with client.write_buffer() as wb:
            wb.write(b"caf\xc3")
            with pytest.raises(UnicodeDecodeError):
                wb.flush()
            wb.write(b"\xa9")
            wb.flush()
            assert client.receive() == "café"
        for call in (wb.flush, lambda: wb.write("x")):
            with pytest.raises(ValueError, match="inside of its"):
                call()
        with client.write_buffer() as wb:
            wb.write("too late")
            client.close()
            with pytest.raises(ConnectionShut):
                wb.flush()


def test_client_tells_what_it_is(connect: Connect, served: Served) -> None:
    """The properties are those of the connection behind, before and after the end."""
    with connect(subprotocols=["chat"]) as client:
        assert "{}:{}".format(*client.remote_address) in served.url
        assert client.local_address[0] == client.remote_address[0]
        assert client.subprotocol == "chat"
        assert client.id > 0
        assert client.latency is None
        assert (client.state, client.is_closed, client.close_code) == (State.OPEN, False, None)
        assert repr(client) == f"<blocking <Client {client.id} OPEN>>"
    assert (client.state, client.is_closed, client.close_code) == (State.CLOSED, True, 1000)
    assert (client.closed_by, client.close_reason) == (Role.CLIENT, "")


def test_read_with_a_timeout_returns_none_and_loses_nothing(connect: Connect) -> None:
    """When nothing comes in time read returns None; what comes later is returned later."""
    with connect() as client:
        assert client.read(timeout=0) is None
        assert client.read(timeout=0.01) is None
        client.write("late")
        assert client.read(timeout=10) == Message(MessageType.TEXT, "late")
        client.write("count 2")
        assert client.receive() == "0"
        client.ping()  # the next message has arrived before the Pong
        assert client.read(timeout=0) == Message(MessageType.TEXT, "1")


def test_iteration_ends_with_the_connection(connect: Connect, served: Served) -> None:
    """Iterating gives every message, and ends when the peer closes in order."""
    with connect() as client:
        client.write("count 5")
        client.write("close 1000")
        assert list(client) == ["0", "1", "2", "3", "4"]
        with pytest.raises(ConnectionEnded):
            client.receive()
        with pytest.raises(ConnectionBroken):
            client.write("too late")
    assert client.closed_by is Role.SERVER
    assert client.close_reason == "as you wish"


def test_connection_that_breaks_ends_an_iteration_with_an_error(connect: Connect) -> None:
    """A connection that is lost without a Close raises ConnectionBroken."""
    with connect() as client:
        client.write("abort")
        with pytest.raises(ConnectionBroken):
            list(client)


@pytest.mark.parametrize(
    ("error", "code"), [(KeyError("mine"), 1011), (KeyboardInterrupt(), 1001), (SystemExit(3), 1001)]
)
def test_block_that_raises_closes_with_a_code_that_tells(
    connect: Connect, served: Served, error: BaseException, code: int
) -> None:
    """What the block raises is raised as it is; the peer sees 1011 for an error and 1001 for Ctrl-C."""
    with pytest.raises(type(error)) as caught, connect():
        raise error
    assert caught.value is error
    assert served.close_code() == code


def test_closed_client_says_so(connect: Connect, served: Served) -> None:
    """After close everything raises ConnectionShut, and closing again does nothing."""
    client = connect()
    with pytest.raises(ValueError, match="1005"):
        client.close(1005)
    client.close_with_reason(4000, "enough")
    client.close()
    client.close_with_code(1011)
    for call in (client.receive, client.ping, lambda: client.write("x"), lambda: client.read(timeout=0)):
        with pytest.raises(ConnectionShut):
            call()
    assert list(client) == []
    assert served.close_code() == 4000


def test_failure_to_connect_is_raised_as_it_is(connect: Connect) -> None:
    """A refusal, wrong arguments and a port where nobody is are the errors of the async client."""
    with pytest.raises(HandshakeRejected) as caught:
        connect("no")
    assert caught.value.status == 403
    with pytest.raises(TypeError, match="unknown_field"):
        connect(unknown_field=1)
    with pytest.raises(ValueError, match="max_size"):
        connect(max_size=0)


def test_clients_share_one_thread(connect: Connect) -> None:
    """However many clients there are, there is one thread behind them, and none when all are closed."""
    before = _portals()
    with connect() as one, connect() as two:
        assert _portals() == before + 1
        one.close()
        two.write("still here")
        assert two.receive() == "still here"
    assert _portals() == before


def _portals() -> int:
    """Count the threads that run an event loop; they may have more that look up names."""
    return sum("portal" in thread.name for thread in threading.enumerate())


def test_threads_read_each_message_once(connect: Connect) -> None:
    """Of several threads that read, each message reaches exactly one."""
    with connect() as client:
        found: list[Any] = []

        def read() -> None:
            while len(found) < 100:
                message = client.read(timeout=0.05)
                if message is not None:
                    found.append(message.data)

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        client.write("count 100")
        for thread in threads:
            thread.join()
    assert sorted(map(int, found)) == list(range(100))


# --- Ctrl-C -------------------------------------------------------------------------------------------


def test_interrupted_read_loses_nothing(connect: Connect) -> None:
    """Ctrl-C interrupts a read; the messages that come then are received by the next reads."""
    with connect() as client:
        for number in range(20):
            with pytest.raises(KeyboardInterrupt):
                client.write("interrupt")
                client.receive()
            client.write(str(number))
            assert client.receive() == str(number)


def test_message_of_an_interrupted_read_is_kept(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that arrives in the very moment of Ctrl-C is returned by the next read."""
    with connect() as client:
        whole = client._call

        def interrupted(function: Any) -> Any:
            whole(function)
            raise KeyboardInterrupt

        client.write("count 2")
        monkeypatch.setattr(client, "_call", interrupted)
        with pytest.raises(KeyboardInterrupt):
            client.read()
        monkeypatch.undo()
        assert [client.receive(), client.receive()] == ["0", "1"]


def test_interrupted_close_aborts(connect: Connect, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while close waits for the peer cuts the connection; the thread behind it ends."""

    def interrupted(function: Any) -> Any:
        raise KeyboardInterrupt

    client = connect()
    monkeypatch.setattr(client, "_call", interrupted)
    with pytest.raises(KeyboardInterrupt):
        client.close()
    assert client.close_code == 1006
    client.close()


# --- the read loop --------------------------------------------------------------------------------------


class Collector:
    """Notes what it is given, in which thread, and how often it is closed."""

    def __init__(self, client: blocking.Client, wanted: int = 0) -> None:
        self.client = client
        self.wanted = wanted
        self.messages: list[Any] = []
        self.threads: set[int] = set()
        self.closes = 0

    def handle(self, message: Message) -> None:
        """Note a message, and answer the last."""
        self.messages.append(message.data)
        self.threads.add(threading.get_ident())
        if message.data == "fail":
            raise KeyError("the handler's")
        if message.data == "stop me":
            raise KeyboardInterrupt
        if len(self.messages) == self.wanted:
            self.client.write("close 1000")

    def close(self) -> None:
        """Count."""
        self.closes += 1
        self.threads.add(threading.get_ident())


def test_read_loop_in_a_new_thread(connect: Connect) -> None:
    """The handler works in the new thread, gets every message, and is closed once; the thread then ends."""
    with connect() as client:
        handler = Collector(client, wanted=10)
        thread = client.read_loop_in_new_thread(handler)
        client.write("count 10")
        thread.join()
    assert handler.messages == [str(number) for number in range(10)]
    assert handler.threads == {thread.ident}
    assert handler.closes == 1


def test_read_loop_in_this_thread(connect: Connect) -> None:
    """read_loop blocks until the connection has ended; a handler without close is fine."""

    class Simple:
        def handle(self, message: Message) -> None:
            client.close_with_code(4001)

    with connect() as client:
        client.write("go")
        client.read_loop(Simple())
    assert client.close_code == 4001


@pytest.mark.parametrize(("word", "code"), [("fail", 1011), ("stop me", 1001)])
def test_handler_that_fails_ends_the_connection(
    connect: Connect, served: Served, word: str, code: int
) -> None:
    """What the handler raises is raised by read_loop, after the peer was told and the handler closed."""
    with connect() as client:
        handler = Collector(client)
        client.write(word)
        with pytest.raises((KeyError, KeyboardInterrupt)):
            client.read_loop(handler)
    assert handler.closes == 1
    assert handler.threads == {threading.get_ident()}
    assert served.close_code() == code


def test_handler_must_be_made_for_threads(connect: Connect) -> None:
    """A handler without handle, or with one that is async def, is a TypeError, and nothing else happens."""

    class Async:
        async def handle(self, message: Message) -> None:
            """Nobody would await this."""

    with connect() as client:
        for handler in (Async(), object()):
            with pytest.raises(TypeError, match=r"handle\(message\)"):
                client.read_loop(handler)
        client.write("still here")
        assert client.receive() == "still here"


# --- what may be forgotten ------------------------------------------------------------------------------


def test_client_that_is_dropped_warns_and_is_cut(connect: Connect, served: Served) -> None:
    """A client that nobody closed is a ResourceWarning; its connection and its thread end."""
    clients = [connect()]
    gc.collect()
    with pytest.warns(ResourceWarning, match="was not closed"):
        clients.clear()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_fork_starts_afresh(served: Served) -> None:
    """In a forked process a client from before is refused, and a new one works."""
    script = """
import os, sys, warnings
from anyio_ws import blocking

warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads
with blocking.connect(sys.argv[1]) as client:
    if os.fork() == 0:
        try:
            client.write("x")
        except RuntimeError as exc:
            print(exc, flush=True)
        with blocking.connect(sys.argv[1]) as other:
            other.write("hello from the child")
            print(other.receive(), flush=True)
        os._exit(0)
    os.wait()
    client.write("hello from the parent")
    print(client.receive())
"""
    run = subprocess.run(
        [sys.executable, "-c", script, served.url],
        capture_output=True,
        text=True,
        check=True,
        timeout=TIMEOUT,
    )
    assert run.stdout.splitlines() == [
        "this client belongs to the process that forked; connect again in this one",
        "hello from the child",
        "hello from the parent",
    ]
