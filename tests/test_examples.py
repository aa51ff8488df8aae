"""The README's code and the examples do what they say, on every backend."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

import anyio_ws

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.partition("\n")[0])
def test_readme_code_is_that_of_an_example(block: str) -> None:
    """Every Python block of the README names the example that it is, and is it to the letter."""
    first, _, code = block.partition("\n")
    assert first.startswith("# examples/")
    assert (ROOT / first[2:]).read_text() == code


class Loaded:
    """An example that was executed up to its ``anyio.run``, which was noted and not done."""

    def __init__(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        runs: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []
        with monkeypatch.context() as patch:
            patch.setattr(anyio, "run", lambda function, *arguments: runs.append((function, arguments)))
            code = compile((ROOT / "examples" / name).read_text(), name, "exec")
            exec(code, {"__name__": "__main__"})
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


async def test_example_of_testing_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests that the README shows pass."""
    await Loaded("testing_a_handler.py", monkeypatch)()


def test_every_example_is_run_here() -> None:
    """No example is left that the tests above do not run."""
    source = Path(__file__).read_text()
    assert [path.name for path in EXAMPLES if f'"{path.name}"' not in source] == []


async def _started(example: Loaded, *, task_status: Any) -> None:
    await example(task_status=task_status)


def test_public_names_are_frozen() -> None:
    """The public names are these, fewer than forty; a new one needs a sentence of why in the changelog."""
    assert anyio_ws.__all__ == [
        "BuffersConfig",
        "Client",
        "ClientConfig",
        "CloseCode",
        "Compression",
        "Config",
        "Conn",
        "ConnectionBroken",
        "ConnectionClosed",
        "ConnectionEnded",
        "ConnectionShut",
        "Handshake",
        "HandshakeConfig",
        "HandshakeError",
        "HandshakeRejected",
        "Headers",
        "InvalidResponse",
        "LocalProtocolError",
        "Message",
        "MessageType",
        "Opcode",
        "Reject",
        "RemoteProtocolError",
        "Request",
        "Response",
        "Scratch",
        "Server",
        "State",
        "ThreadPoolConfig",
        "WebSocketError",
        "__version__",
        "blocking_mode",
        "broadcast",
        "buffer_provider",
        "connect",
        "frame_bin",
        "frame_text",
        "run",
        "serve",
    ]
