"""What the process and the system do: no descriptors, no memory, forks, clocks, ports that are taken."""

from __future__ import annotations

import ast
import contextlib
import errno
import gc
import os
import random
import socket
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import anyio_ws
from anyio_ws import Client, Compression, Config, Server, frame_text, framing
from anyio_ws.deflate import Deflater, Inflater
from anyio_ws.handler import FunctionFactory
from anyio_ws.http11 import RequestReader
from anyio_ws.inbox import Inbox
from anyio_ws.protocol import Protocol
from anyio_ws.testing import build_frame

from ..support import Peer, nothing_left, settle, virtual
from .arena import Diary, Echo, arena, bystander, every_way

PACKAGE = Path(anyio_ws.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
ROOT = PACKAGE.parent


# What CPython itself says of a bytearray for which there was no memory: it looks at a field not set yet.
_OF_CPYTHON = "SystemError: deallocated bytearray object has exported buffers\n"


def run_script(script: str, *arguments: str) -> str:
    """Run a script in an interpreter of its own; it must not fail, and what it prints is returned."""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=ROOT,
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr.replace(_OF_CPYTHON, "") == ""
    return run.stdout.strip()


# --- descriptors --------------------------------------------------------------------------------------

STARVED = """
    import logging, resource, socket, sys, time
    import anyio
    from anyio_ws import Config, Server
    from tests.security.arena import Echo
    from tests.support import Peer

    lines = []

    class Handler(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())

    logging.getLogger("anyio_ws").addHandler(Handler())

    async def main():
        server = Server(Echo, Config(port=0))
        async with anyio.create_task_group() as tasks:
            (address,) = await tasks.start(server.listen)
            peer = Peer(await anyio.connect_tcp(*address))
            await peer.open()
            waiting = [socket.create_connection(address) for _ in range(3)]
            await anyio.sleep(0.05)
            resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
            hoard = []
            try:
                while True:
                    hoard.append(socket.socket())
            except OSError:
                pass
            hoard.pop().close()
            late = socket.create_connection(address)  # takes the last one: accept has none
            start, work = time.monotonic(), time.process_time()
            while time.monotonic() < start + 1.2:  # everybody who is there is served
                await peer.send_frame(0x1, b"still")
                await peer.expect(0x1, b"still")
                await anyio.sleep(0.05)
            seconds = time.monotonic() - start
            busy = (time.process_time() - work) / seconds
            for each in hoard:
                each.close()
            late.setblocking(False)
            late.send(b"GET / HTTP/1.1\\r\\n\\r\\n")
            with anyio.fail_after(60):
                await anyio.wait_readable(late)  # an answer: it was accepted after all
            answer = late.recv(12)
            for each in (*waiting, late):
                each.close()
            await peer.close_handshake()
            await peer.stream.aclose()
            server.stop()
        assert answer == b"HTTP/1.1 400", answer
        assert busy < 0.5, busy
        assert 1 <= len(lines) <= seconds + 2, lines
        assert "Too many open files" in lines[0], lines
        print("well")

    anyio.run(main, backend=sys.argv[1])
"""


@pytest.mark.attack("R13")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_server_without_descriptors_serves_on_and_recovers(backend: str) -> None:
    """Without a free descriptor accepting pauses; it does not spin, logs once a second, and comes back."""
    assert run_script(STARVED, backend) == "well"


@pytest.mark.attack("O14", "R14")
async def test_address_that_is_partly_taken_leaves_no_listener(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name with two addresses, one of which is taken: an error, and nothing listens on the other."""
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::1", 0))
        port = taken.getsockname()[1]
        taken.listen()
        look_up = anyio.getaddrinfo

        async def both(host: Any, *arguments: Any, **options: Any) -> Any:
            if host != "both":
                return await look_up(host, *arguments, **options)
            stream = socket.SOCK_STREAM
            return [
                (socket.AF_INET, stream, 6, "", ("127.0.0.1", port)),
                (socket.AF_INET6, stream, 6, "", ("::1", port, 0, 0)),
            ]

        monkeypatch.setattr("anyio._core._sockets.getaddrinfo", both)
        async with nothing_left():
            with pytest.raises(OSError, match="in use"):
                await Server(Echo, Config(address="both", port=port)).listen()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


# --- forks and clocks ---------------------------------------------------------------------------------


@pytest.mark.attack("F28", "O12")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_forked_processes_draw_different_masking_keys() -> None:
    """Parent and child, forked after masking has begun, share no key, and no key comes twice."""
    output = run_script(
        """
        import os
        from anyio_ws.protocol import Protocol, Role
        protocol = Protocol(Role.CLIENT, max_message_size=100)
        protocol.opened()
        draw = lambda: [protocol.send_bin(b"").hex()[4:] for _ in range(100)]
        keys = draw()
        child = os.fork()
        if child:
            os.waitpid(child, 0)  # two processes that print at once print into each other
            print(*keys, flush=True)
        print(*draw(), flush=True)
        """
    )
    keys = output.split()
    assert len(keys) == len(set(keys)) == 300


def names_in(path: Path) -> set[str]:
    """Return every attribute and name that a module uses, dotted as far as it goes."""
    tree = ast.parse(path.read_text("utf-8"))
    return {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute | ast.Name)}


@pytest.mark.attack("O11")
def test_wall_clock_is_not_read() -> None:
    """Only monotonic clocks are used; the ``Date`` header of an HTTP answer is the one exception."""
    wall = {"time.time", "time.time_ns", "datetime", "time.localtime", "time.gmtime", "time.ctime"}
    assert {path.name: sorted(names_in(path) & wall) for path in SOURCES if names_in(path) & wall} == {}


@virtual
@pytest.mark.attack("O11")
async def test_wall_clock_that_jumps_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Years forward and back: no deadline expires, and none is put off."""
    ends = Diary()
    config = Config(ping_interval=10, ping_timeout=10)
    async with arena("memory", Echo, ends, config) as place:
        peer = await place.open()
        for jump in (1e9, -1e9):
            monkeypatch.setattr(time, "time", lambda jump=jump: jump)
            await anyio.sleep(5)
            assert ends == []
        start = anyio.current_time()
        await peer.frame()
        await ends.wait()
        assert anyio.current_time() - start == pytest.approx(10)
        assert ends == [1006]


# --- memory -------------------------------------------------------------------------------------------

NO_MEMORY = """
    import _testcapi, gc, sys
    from anyio_ws.framing import BUILD, MessageReader, frame, mask
    key = b"mask"
    wire = (frame(1, "grüße".encode(), masking_key=key) + frame(2, bytes(300), fin=False, masking_key=key)
            + frame(9, b"x", masking_key=key) + frame(0, bytes(70_000), masking_key=key))
    expected = MessageReader(masked=True, max_message_size=100_000).feed(wire)
    half = len(wire) // 2

    def feed():
        reader = MessageReader(masked=True, max_message_size=100_000)
        out = reader.feed(wire[:half])
        out += reader.feed(wire[half:])
        return out

    def build():
        return frame(2, bytes(70_000), masking_key=key), mask(bytes(1000), key)

    failures = 0
    for job in (feed, build):
        wanted = job()
        nth = 0
        while True:
            nth += 1
            _testcapi.set_nomemory(nth, nth + 1)
            try:
                result = job()
            except MemoryError:
                failures += 1
                continue
            finally:
                _testcapi.remove_mem_hooks()
            assert result == wanted
            break
    assert expected == feed()
    print(BUILD, failures)
"""


@pytest.mark.attack("O15")
@pytest.mark.parametrize("build", ["python", "c"])
def test_memory_that_runs_out_anywhere_is_an_error_and_nothing_worse(
    build: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each allocation of the framing fails once: ``MemoryError``, no crash, and the next try is right."""
    pytest.importorskip("_testcapi")
    if build == "c" and framing.BUILD != "c":
        pytest.skip("the compiled framing is not built")
    monkeypatch.setenv("ANYIO_WS_FRAMING", build)
    used, failures = run_script(NO_MEMORY).split()
    assert used == build
    assert int(failures) > 3


@pytest.mark.attack("O15", "T13")
async def test_handler_without_memory_fails_alone(caplog: pytest.LogCaptureFixture) -> None:
    """A ``MemoryError`` in one connection is that connection's: 1011, and the others go on."""

    class Hungry(Echo):
        async def client_message(self, data: Any) -> None:
            if data == "more":
                raise MemoryError
            await super().client_message(data)

    ends = Diary()
    async with arena("sockets", Hungry, ends) as place, bystander(place):
        peer = await place.open()
        await peer.send_frame(0x1, b"more")
        await peer.expect_close(1011)
        await peer.send_close(1011)
        await peer.expect_end()
        await peer.stream.aclose()
        await ends.wait()
    assert len(caplog.records) == 1


# Where memory may run out for one connection: a class, its method, and whether every way leads there.
PLACES = {
    "its request": (RequestReader, "feed", True),
    "its machine": (Protocol, "opened", True),
    "its frames": (Protocol, "receive_data", False),  # the fast lane leads past it
    "its messages": (Inbox, "take", False),
    "its answer": (Protocol, "send_text", False),
    "its pong": (Protocol, "send_pong", True),
    "its compressor": (Deflater, "shrink", True),
    "its inflater": (Inflater, "inflate", True),
    "its end": (Protocol, "send_close", True),
}


@pytest.mark.attack("O15", "R14")
@every_way
@pytest.mark.parametrize("place", PLACES)
async def test_memory_that_runs_out_for_one_connection_is_no_matter_of_others(
    place: str, way: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Wherever it happens, that connection ends, the others go on, the next one is served."""
    owner, name, is_always_met = PLACES[place]
    original, known, failed = getattr(owner, name), set[int](), list[str]()
    armed = False

    def fail_for_new_ones(self: Any, *arguments: Any, **options: Any) -> Any:
        if not armed:
            known.add(id(self))
        elif id(self) not in known and not failed:
            failed.append(name)
            raise MemoryError
        return original(self, *arguments, **options)

    compressed = frame_text("x" * 500).compressed(Deflater(False, 15, Compression()))
    assert compressed is not None

    async def talk(peer: Peer) -> None:
        await peer.open("/", {"Sec-WebSocket-Extensions": "permessage-deflate"})
        await peer.send_frame(0x1, b"hello")
        await peer.send_frame(0x9, b"ping")
        await peer.send_frame(0x1, compressed[2:], rsv=4)
        await peer.send_close(1000)
        while True:
            await peer.frame()

    monkeypatch.setattr(owner, name, fail_for_new_ones)
    async with nothing_left(), arena(way, Echo) as there, bystander(there) as echoed:
        await echoed.wait(2)
        armed = True
        victim = await there.peer()
        with contextlib.suppress(Exception):  # each stream has its own for an end that comes so soon
            await talk(victim)
        await victim.stream.aclose()
        assert failed or (way == "sockets" and not is_always_met)
        failed.append("once is enough")
        await echoed.wait(len(echoed) + 2)
        peer = await there.open()
        await peer.send_frame(0x1, b"hello")
        await peer.expect(0x1, b"hello")
        await peer.close_handshake()
    assert len(caplog.records) <= 2


# --- what nobody closed -------------------------------------------------------------------------------


@pytest.mark.attack("O16")
async def test_client_that_is_forgotten_is_closed_with_its_event_loop() -> None:
    """A client that nobody closed and nobody refers to raises no error, and leaves no deadlock."""
    async with arena("sockets", Echo, None, Config(shutdown_timeout=0.1)) as place:
        address: Any = place.server.addresses[0]

        async def forget() -> None:
            client = await Client.connect(*address)
            await client.handshake("/")
            await client.write("x")

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            await forget()
            gc.collect()
            await anyio.lowlevel.checkpoint()
            place.server.stop()
            await place.server.wait_stopped()
            gc.collect()


@pytest.mark.attack("O16")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_program_that_closes_nothing_ends_all_the_same(backend: str) -> None:
    """The interpreter ends without a hang and without a traceback, whatever is left open."""
    script = """
        import socket, sys, threading, warnings
        import anyio
        from anyio_ws import Client
        warnings.simplefilter("ignore", ResourceWarning)
        listener = socket.create_server(("127.0.0.1", 0))

        async def main():
            client = await Client.connect(*listener.getsockname())
            sys.modules["kept"] = client

        anyio.run(main, backend=sys.argv[1])
        print("ended")
    """
    assert run_script(script, backend) == "ended"


# --- connections without end --------------------------------------------------------------------------


@pytest.mark.attack("O10", "R14")
@pytest.mark.parametrize("way", ["memory", "sockets"])
async def test_connections_leave_no_objects_behind_without_the_collector(way: str) -> None:
    """Good, refused, broken, cut: the counts are those of before, without ``gc``."""

    async def rounds(count: int) -> None:
        for _ in range(count):
            peer = await place.open()
            await peer.send_frame(0x1, b"x")
            await peer.expect(0x1, b"x")
            await peer.close_handshake()
            peer = await place.peer()
            await peer.send(b"nonsense\r\n\r\n")
            await peer.rest()
            await peer.stream.aclose()
            peer = await place.open()
            await peer.send(b"\xff")
            await peer.rest()
            await peer.stream.aclose()
            peer = await place.open()
            await peer.stream.aclose()
        await ends.wait(3 * count)  # the refused have no handler
        await settle()
        ends.clear()

    ends = Diary()
    gc.collect()
    gc.disable()
    try:
        async with arena(way, Echo, ends) as place:
            await rounds(20)
            kinds = ("Conn", "Protocol", "SocketTransport", "Link", "Inbox", "Request", "MessageReader")
            before = count_of(kinds)
            await rounds(60)
            assert count_of(kinds) == before
    finally:
        gc.enable()


def count_of(kinds: tuple[str, ...]) -> dict[str, int]:
    """Count the living objects of some classes."""
    counts = dict.fromkeys(kinds, 0)
    for each in gc.get_objects():
        name = type(each).__name__
        if name in counts:
            counts[name] += 1
    return counts


# --- secrets and reconnecting -------------------------------------------------------------------------


@pytest.mark.attack("A16")
def test_nothing_compares_a_secret() -> None:
    """No comparison in the package is about a password, a token, or an authorization."""
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Compare):
                text = ast.unparse(node).lower()
                if any(word in text for word in ("password", "secret", "authorization", "credential")):
                    found.append(f"{path.name}:{node.lineno} {text}")
    assert found == []


@virtual
@pytest.mark.attack("S09")
async def test_reconnecting_as_the_example_does_waits_at_random_and_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The pauses are drawn from 0 to 1, 2, 4 ... 60 seconds, and begin anew once a message has come."""
    namespace: dict[str, Any] = {}
    with monkeypatch.context() as patch:
        patch.setattr(anyio, "run", lambda *arguments: None)
        exec((ROOT / "examples" / "reconnect.py").read_text(), namespace)
    bounds: list[float] = []
    attempts: list[int] = []

    def uniform(low: float, high: float) -> float:
        assert low == 0
        bounds.append(high)
        return high

    class Messages:
        def __init__(self, url: str) -> None:
            attempts.append(len(attempts))

        async def __aenter__(self) -> Any:
            if attempts[-1] != 9:
                raise OSError(errno.ECONNREFUSED, "away")
            return self

        async def __aexit__(self, *exc_info: object) -> None:
            return None

        async def __aiter__(self) -> Any:
            yield "it works"

    monkeypatch.setattr(random, "uniform", uniform)
    monkeypatch.setattr(anyio_ws, "connect", Messages)
    monkeypatch.setattr("builtins.print", lambda *arguments: None)
    with anyio.move_on_after(400), contextlib.suppress(StopAsyncIteration):
        await namespace["listen_for_ever"]("ws://localhost/")
    assert bounds[:9] == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert bounds[9] == 1
    assert bounds[10] == 2


@pytest.mark.attack("T03", "T02")
async def test_iteration_that_is_left_goes_on_where_it_was() -> None:
    """Leaving ``async for`` loses nothing: another loop, or ``receive``, gets the next message."""
    got: list[Any] = []

    async def handler(conn: anyio_ws.Conn) -> None:
        async for message in conn:
            got.append(message)
            break
        got.append(await conn.receive())
        with anyio.move_on_after(0):
            got.append(await conn.receive())
        got.extend([message async for message in conn])

    async with arena("sockets", FunctionFactory(handler)) as place:
        peer = await place.open()
        await peer.send(b"".join(build_frame(0x1, b"%d" % n, key=b"mask") for n in range(10)))
        await peer.close_handshake()
    assert got == [str(n) for n in range(10)]
