"""What is left when the event loop ends is ended with it: nothing hangs, and Trio does not break.

Each program runs in a process of its own, because it is the event loop's end that is looked at.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_PROGRAM = """
import asyncio, socket, sys
import anyio, anyio.lowlevel
from anyio_ws import Client, Config, Server, connect
from tests.support import build_request

class Handler:
    def client_message(self, data):
        raise AssertionError

    def close(self):
        print("closed")

async def receive_head(sock):
    head = b""
    sock.setblocking(False)
    while b"\\r\\n\\r\\n" not in head:
        await anyio.wait_readable(sock)
        head += sock.recv(4096)
    return head

def show_end(sock):
    sock.settimeout(20)
    received = b""
    while data := sock.recv(4096):
        received += data
    print(received.hex())

async def silent_server(listener, sockets):
    await anyio.wait_readable(listener)
    sock, _ = listener.accept()
    sockets.append(sock)
    request = await receive_head(sock)
    key = request.lower().split(b"sec-websocket-key: ")[1]
    key = request[len(request) - len(key):].split(b"\\r\\n")[0]
    import base64, hashlib
    digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    sock.sendall(b"HTTP/1.1 101 S\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\n"
                 b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\\r\\n\\r\\n")

async def two_steps(listener, sockets, keep):
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(silent_server, listener, sockets)
        client = await Client.connect("127.0.0.1", listener.getsockname()[1])
        await client.handshake("/")
    keep.append(client)

async def block(listener, sockets, keep):
    async def use():
        async with connect(f"ws://127.0.0.1:{listener.getsockname()[1]}") as client:
            opened.set()
            await client.receive()
    opened = anyio.Event()
    keep.append(asyncio.create_task(use()))
    await silent_server(listener, sockets)
    await opened.wait()

async def server(listener, sockets, keep):
    class Started:
        def started(self, addresses):
            started.set()
    started = anyio.Event()
    server = Server(Handler)
    keep.append(asyncio.create_task(server.listen(listeners=[listener], task_status=Started())))
    await started.wait()
    sockets.append(socket.create_connection(server.addresses[0]))
    sockets[0].sendall(build_request())
    await receive_head(sockets[0])

async def unix_server(listener, sockets, keep):
    server = Server(Handler, Config(unix_path=sys.argv[3]))
    keep.append(asyncio.create_task(server.listen()))
    while not server.addresses:
        await anyio.lowlevel.checkpoint()

async def main(program):
    await program(listener, sockets, keep)

name, backend = sys.argv[1:3]
options = {"use_uvloop": True} if backend == "uvloop" else {}
sockets, keep = [], []
listener = socket.create_server(("127.0.0.1", 0))
anyio.run(main, globals()[name], backend="asyncio" if options else backend, backend_options=options)
if sockets:
    show_end(sockets[0])
"""


def _run(name: str, backend: str, *arguments: str) -> list[str]:
    command = [sys.executable, "-W", "error", "-c", _PROGRAM, name, backend, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
def test_client_that_nobody_closed_says_goodbye_when_the_event_loop_ends(backend: str) -> None:
    """A two-step client is closed with 1001, and the event loop ends as if it had not been there."""
    (received,) = _run("two_steps", backend)
    assert received.startswith("8882")


@pytest.mark.parametrize("backend", ["asyncio", "uvloop"])
@pytest.mark.parametrize("name", ["block", "server"])
def test_event_loop_that_cancels_all_tasks_does_not_wait_for_a_silent_peer(name: str, backend: str) -> None:
    """What cancels all tasks cancels the clock too, and those it gives time; each peer gets its 1001."""
    *closed, received = _run(name, backend)
    if name == "server":
        assert (closed, received) == (["closed"], "880203e9")
    else:
        assert (closed, received[:4]) == ([], "8882")


@pytest.mark.parametrize("backend", ["asyncio", "uvloop"])
def test_event_loop_that_cancels_all_tasks_leaves_no_listener(backend: str, tmp_path: Path) -> None:
    """The listening socket is closed and its file removed, as when the server stops."""
    path = tmp_path / "socket"
    assert _run("unix_server", backend, str(path)) == []
    assert not path.exists()
