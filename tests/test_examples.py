"""The README's code and the examples do what they say, on every backend."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import random
import re
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

import anyio_ws
import anyio_ws.testing
from anyio_ws import blocking

from .certificates import AUTHORITY, PEM

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.partition("\n")[0])
def test_readme_code_is_that_of_an_example(block: str) -> None:
    """Every Python block of the README names the example that it is, and is it to the letter."""
    first, _, code = block.partition("\n")
    assert first.startswith("# examples/")
    assert (ROOT / first[2:]).read_text() == code


def execute(name: str) -> None:
    """Execute an example as a program."""
    code = compile((ROOT / "examples" / name).read_text(), name, "exec")
    exec(code, {"__name__": "__main__"})


class Loaded:
    """An example that was executed up to its ``anyio.run``, which was noted and not done."""

    def __init__(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        runs: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []
        with monkeypatch.context() as patch:
            patch.setattr(anyio, "run", lambda function, *arguments: runs.append((function, arguments)))
            execute(name)
        ((self.function, self.arguments),) = runs

    async def __call__(self, **options: Any) -> Any:
        return await self.function(*self.arguments, **options)


@pytest.fixture
def any_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have whoever asks for a port get a free one, and whoever connects to it find it."""
    ports: dict[int, int] = {}
    listen, look_up = anyio.create_tcp_listener, anyio.getaddrinfo

    async def create_tcp_listener(*, local_port: int, **options: Any) -> Any:
        listener = await listen(local_port=0, **options)
        ports[local_port] = listener.extra(anyio.abc.SocketAttribute.local_port)
        return listener

    async def getaddrinfo(host: str, port: int, **options: Any) -> Any:
        return await look_up(host, ports.get(port, port), **options)

    monkeypatch.setattr(anyio, "create_tcp_listener", create_tcp_listener)
    monkeypatch.setattr(anyio, "getaddrinfo", getaddrinfo)


@pytest.mark.usefixtures("any_port")
@pytest.mark.parametrize("server", ["echo_server.py", "echo_function.py"])
async def test_example_echo_answers_the_example_client(
    server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both echo servers send the example client its greeting back."""
    async with anyio.create_task_group() as tasks:
        await tasks.start(_started, Loaded(server, monkeypatch))
        await Loaded("echo_client.py", monkeypatch)()
        tasks.cancel_scope.cancel()
    assert capsys.readouterr().out == "hello\n"


@pytest.mark.usefixtures("any_port")
async def test_example_read_loop_prints_until_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The client in two steps prints what comes back, and that the connection has ended."""
    async with anyio.create_task_group() as tasks:
        await tasks.start(_started, Loaded("echo_server.py", monkeypatch))
        await Loaded("read_loop.py", monkeypatch)()
        tasks.cancel_scope.cancel()
    assert capsys.readouterr().out == "TEXT hello\nthe connection has ended\n"


@pytest.mark.usefixtures("any_port")
async def test_example_page_answers_http(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server with a page answers ordinary requests, and refuses what it does not know."""
    async with anyio.create_task_group() as tasks:
        await tasks.start(_started, Loaded("http_page.py", monkeypatch))
        for path, status in (("/health", b"200 OK"), ("/other", b"404 Not Found")):
            ((*_, address), *_) = await anyio.getaddrinfo("127.0.0.1", 9882)
            async with await anyio.connect_tcp(*address) as stream:
                await stream.send(b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path.encode())
                assert (await stream.receive()).startswith(b"HTTP/1.1 " + status)
        tasks.cancel_scope.cancel()


@pytest.mark.usefixtures("any_port")
async def test_example_reconnects_until_it_is_stopped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The client that reconnects prints what each connection brings."""
    greeted: list[anyio_ws.Conn] = []

    async def greet(conn: anyio_ws.Conn) -> None:
        greeted.append(conn)
        if len(greeted) == 4:
            tasks.cancel_scope.cancel()
        await conn.write(f"hello {len(greeted)}")

    monkeypatch.setattr("random.uniform", lambda low, high: 0)
    async with anyio.create_task_group() as tasks:
        await tasks.start(anyio_ws.serve, greet)
        await Loaded("reconnect.py", monkeypatch)()
    assert capsys.readouterr().out.startswith("hello 1\nhello 2\nhello 3\n")


async def test_example_of_testing_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests that the README shows pass."""
    await Loaded("testing_a_handler.py", monkeypatch)()


@pytest.fixture
def url(any_port: None) -> str:
    """Where the examples serve."""
    return "ws://127.0.0.1:9882"


@contextlib.asynccontextmanager
async def serving(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> AsyncIterator[None]:
    """Run an example that serves during a block."""
    example = Loaded(name, monkeypatch)
    example.arguments += arguments
    async with anyio.create_task_group() as tasks:
        await tasks.start(_started, example)
        yield
        tasks.cancel_scope.cancel()


async def test_example_chat_rooms(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody in a room hears what is said there, nobody else does; other paths are 404."""
    async with serving("chat_rooms.py", monkeypatch), contextlib.AsyncExitStack() as stack:
        rooms = ("red", "red", "blue")
        one, two, other = [
            await stack.enter_async_context(anyio_ws.connect(f"{url}/rooms/{room}")) for room in rooms
        ]
        await one.write("hello red")
        await other.write("hello blue")
        assert [await one.receive(), await two.receive()] == ["hello red"] * 2
        assert await other.receive() == "hello blue"
        with pytest.raises(anyio_ws.HandshakeRejected, match="404"):
            async with anyio_ws.connect(url):
                pass


async def test_example_token_authentication(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The right token connects as its user, a wrong one is refused with 401."""
    async with serving("token_auth.py", monkeypatch):
        async with anyio_ws.connect(url, headers={"Authorization": "Bearer secret"}) as client:
            await client.write("hi")
            assert await client.receive() == "ada said hi"
        for headers in ({}, {"Authorization": "Bearer guess"}):
            with pytest.raises(anyio_ws.HandshakeRejected) as caught:
                async with anyio_ws.connect(url, headers=headers):
                    pass
            assert (caught.value.status, caught.value.headers["www-authenticate"]) == (401, "Bearer")


async def test_example_upload(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each upload is answered with its digest, and a text with the report on all of them."""
    async with serving("upload.py", monkeypatch), anyio_ws.connect(url) as client:
        for data in (b"a", b"b" * 200_000):
            await client.write_bin(data)
            assert await client.receive() == b"sha256:" + hashlib.sha256(data).digest()
        await client.write("report")
        assert await client.receive() == '{"files": 2, "bytes": 200001}'


async def test_example_prepared_broadcast(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every subscriber gets the ticks, in order."""
    program = serving("prepared_broadcast.py", monkeypatch, 0.001)
    async with program, anyio_ws.connect(url) as one, anyio_ws.connect(url) as two:
        for client in (one, two):
            first, second = str(await client.receive()), str(await client.receive())
            assert int(first.removeprefix("tick ")) + 1 == int(second.removeprefix("tick "))


async def test_example_blocking_handler(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain functions in threads compress what they get."""
    async with serving("blocking_handler.py", monkeypatch), anyio_ws.connect(url) as client:
        for data in (b"x" * 10_000, b"y" * 10_000):
            await client.write_bin(data)
            answer = await client.receive()
            assert zlib.decompress(str(answer).encode() if isinstance(answer, str) else answer) == data


async def test_example_reconnect(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The client comes back after the server has closed the connection, and after one that broke."""
    monkeypatch.setattr(random, "uniform", lambda low, high: 0)
    everything = anyio.Event()
    count = 0

    async def greet(conn: anyio_ws.Conn) -> None:
        nonlocal count
        count += 1
        await conn.write(f"hello {count}")
        if count == 2:
            conn.abort()
        elif count == 4:
            everything.set()
            await conn.receive()

    async with anyio.create_task_group() as tasks:
        await tasks.start(anyio_ws.serve, greet)
        tasks.start_soon(Loaded("reconnect.py", monkeypatch))
        await everything.wait()
        tasks.cancel_scope.cancel()
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "hello 1"
    assert "hello 3" in said


async def test_example_tls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Server and client talk over TLS, with a certificate from a file."""
    certificate = AUTHORITY.issue_cert("localhost")
    path = tmp_path / "certificate.pem"
    path.write_bytes(certificate.private_key_and_cert_chain_pem.bytes() + PEM)
    monkeypatch.setattr(sys, "argv", ["tls.py", str(path)])
    await Loaded("tls.py", monkeypatch)()
    assert capsys.readouterr().out == "nobody else can read this\n"


async def test_example_unix_socket(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Server and client talk over a Unix socket."""
    await Loaded("unix_socket.py", monkeypatch)()
    assert capsys.readouterr().out == "no network\n"


async def test_example_blocking_client(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A script without an event loop talks to a server."""
    async with serving("echo_server.py", monkeypatch):
        await anyio.to_thread.run_sync(execute, "blocking_client.py")
    assert capsys.readouterr().out == "hello\n"


async def test_example_handler_for_both_event_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """The handler that both programs serve, "same_handler.py", counts on every event loop."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    counter = importlib.import_module("same_handler").Counter
    async with anyio_ws.testing.client(counter) as client:
        await client.write("3")
        assert [await client.receive() for _ in range(3)] == ["0", "1", "2"]


@pytest.mark.parametrize("name", ["same_handler_trio.py", "same_handler_asyncio.py"])
def test_example_serves_on_its_event_loop(name: str) -> None:
    """A Trio program and an asyncio program serve the same handler."""
    run = subprocess.run(
        [sys.executable, ROOT / "examples" / name], capture_output=True, text=True, check=True, timeout=120
    )
    assert re.fullmatch(r"on (Trio|asyncio) \('127.0.0.1', \d+\)\n", run.stdout)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="its signals are POSIX's")
def test_example_workers() -> None:
    """Two processes serve until the program is told to end."""
    program = f"""
import dataclasses, runpy, anyio_ws
run = anyio_ws.run
anyio_ws.run = lambda handler, config, **options: run(handler, dataclasses.replace(config, port=0), **options)
runpy.run_path({str(ROOT / "examples" / "workers.py")!r}, run_name="__main__")
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            match = re.fullmatch(r"serving \('127.0.0.1', (\d+)\)\n", process.stdout.readline())
            assert match is not None
            with blocking.connect(f"ws://127.0.0.1:{match[1]}/") as client:
                client.write("hello")
                answer = re.fullmatch(r"process (\d+) got hello", str(client.receive()))
                assert answer is not None
                assert int(answer[1]) != process.pid
        finally:
            process.terminate()
    assert process.returncode == 0


def test_every_example_is_run_here() -> None:
    """No example is left that the tests above do not run."""
    source = Path(__file__).read_text()
    assert [path.name for path in EXAMPLES if f'"{path.name}"' not in source] == []


async def _started(example: Loaded, *, task_status: Any) -> None:
    await example(task_status=task_status)
