"""The neighbours: real programs that speak WebSocket, each reached through one function, ``ask``.

A neighbour runs in a process of its own, started when it is first needed and ended with the test
session, or when a test fails while talking to it. ``ask("echo", count=1)`` has it do a command of
README.md and returns the answer. A neighbour in a terminal gets the command as a line of JSON, the
browser as a call of a function on a page; the tests see no difference.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import subprocess
import sys
import tempfile
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO, Any, Protocol

import anyio
import anyio.to_thread

from anyio_ws import Client, Compression, connect

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PATIENCE = 60  # seconds in which a neighbour must do whatever it is asked to do
MAX_SIZE = 2**21  # bytes of a message in these tests


class Ask(Protocol):
    """Have a neighbour do something, and get its answer."""

    async def __call__(self, do: str, **arguments: Any) -> Any:
        """Raise ``AssertionError`` when the neighbour fails."""


class Neighbour(ABC):
    """Another implementation of WebSocket.

    :ivar name: what it is called
    :ivar version: what it says it is, once it has run
    :ivar lacks: the names of the exchanges that its public interface has no way to do
    """

    def __init__(self, name: str, *command: str, lacks: tuple[str, ...] = ()) -> None:
        self.name = name
        self.lacks = lacks
        self.version = ""
        self._command = command
        self._process: subprocess.Popen[str] | None = None
        self._resources = contextlib.ExitStack()

    def __str__(self) -> str:
        return self.name

    @contextlib.asynccontextmanager
    async def open(self, page: str = "about:blank") -> AsyncIterator[Ask]:
        """Have the neighbour ready for one connection; a browser opens a page first."""
        async with self.running(), self._open(page) as ask:
            yield ask

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Have the process running; it is ended when the block fails."""
        try:
            if self._process is None or self._process.poll() is not None:
                self.end()
                with anyio.fail_after(PATIENCE):
                    await self._start()
            yield
        except BaseException:
            self.end()  # nobody knows what it is waiting for
            raise

    def end(self) -> None:
        """End the process, if there is one."""
        self._process = None
        self._resources.close()

    @abstractmethod
    async def _start(self) -> None:
        """Start the process, and find out its version."""

    @abstractmethod
    def _open(self, page: str) -> contextlib.AbstractAsyncContextManager[Ask]:
        """Make the function that the process is asked with."""

    def _spawn(self, *more: str, **pipes: Any) -> subprocess.Popen[str]:
        command = [*self._command, *more]
        try:
            process = subprocess.Popen(command, cwd=ROOT, text=True, encoding="utf-8", **pipes)
        except FileNotFoundError as exc:
            raise AssertionError(self._missing(f"there is no {exc.filename}")) from exc
        self._process = self._resources.enter_context(process)  # waits for it, and closes its pipes
        self._resources.callback(process.kill)
        return process

    def _missing(self, symptom: str) -> str:
        return f"{self.name} does not run: {symptom}\ntests/interop/install installs the neighbours."


class ProgramNeighbour(Neighbour):
    """A neighbour that is a program with a line protocol."""

    async def _start(self) -> None:
        self._spawn(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.version = await self._ask("version")

    @contextlib.asynccontextmanager
    async def _open(self, page: str) -> AsyncIterator[Ask]:
        yield self._ask
        await self._ask("stop")

    async def _ask(self, do: str, **arguments: Any) -> Any:
        line = json.dumps({"do": do, **arguments})
        with anyio.fail_after(PATIENCE):
            answer = await anyio.to_thread.run_sync(self._exchange, line, abandon_on_cancel=True)
        assert answer, self._missing(f"when asked {line} it ended; its standard error tells why")
        return json.loads(answer)

    def _exchange(self, line: str) -> str:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            with contextlib.suppress(BrokenPipeError):  # what could not be written is still there
                self._process.stdin.close()
        return self._process.stdout.readline()


class DevTools:
    """The protocol with which a browser is remote-controlled, over our own client.

    Commands and their answers are text messages of JSON; events come between them.
    https://chromedevtools.github.io/devtools-protocol/ has the commands.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._ids = itertools.count(1)
        self._events: deque[dict[str, Any]] = deque()

    async def call(self, method: str, session: str | None = None, **params: Any) -> Any:
        """Have the browser, or the page of a session, do something; return the result."""
        number = next(self._ids)
        command = {"id": number, "method": method, "params": params}
        command |= {"sessionId": session} if session else {}
        await self._client.write(json.dumps(command, ensure_ascii=False))
        with anyio.fail_after(PATIENCE):
            while (message := await self._receive()).get("id") != number:
                self._events.append(message)
        assert "error" not in message, f"{method}: {message['error']}"
        return message["result"]

    async def event(self, method: str) -> Any:
        """Wait for an event; return its parameters. Events before it are forgotten."""
        with anyio.fail_after(PATIENCE):
            while True:
                message = self._events.popleft() if self._events else await self._receive()
                if message["method"] == method:
                    return message["params"]

    async def _receive(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(await self._client.receive())
        return message


class Page:
    """A page in the browser."""

    def __init__(self, devtools: DevTools, target: str, session: str) -> None:
        self._devtools = devtools
        self._target = target
        self._session = session

    async def call(self, method: str, **params: Any) -> Any:
        """Do a command of the DevTools protocol on this page."""
        return await self._devtools.call(method, self._session, **params)

    async def evaluate(self, expression: str) -> Any:
        """Evaluate an expression of JavaScript, await it when it is a promise, and return its value."""
        answer = await self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def until(self, condition: str) -> None:
        """Wait until a condition in JavaScript is true, looking again whenever the document changes."""
        await self.evaluate(
            f"""new Promise((resolve) => {{
              const look = () => {{ if ({condition}) resolve(); }};
              new MutationObserver(look).observe(
                document, {{ subtree: true, childList: true, attributes: true, characterData: true }});
              look();
            }})"""
        )

    async def ask(self, do: str, **arguments: Any) -> Any:
        """Have the program on the page do a command."""
        answer = await self.evaluate(f"ask({json.dumps({'do': do, **arguments})})")
        if do == "connect" and answer.get("refused"):  # a page is not told why, but DevTools is
            error = (await self._devtools.event("Network.webSocketFrameError"))["errorMessage"]
            return {"status": int(error.rpartition("Unexpected response code: ")[2])}
        return answer

    async def close(self) -> None:
        """Close the page."""
        await self._devtools.call("Target.closeTarget", targetId=self._target)


class Chromium(Neighbour):
    """A browser without a window.

    :ivar certificate: the file with the certificate of a server that it is to trust
    """

    certificate: str
    _address: str  # where it listens for DevTools clients

    async def _start(self) -> None:
        directory = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        process = self._spawn(
            f"--user-data-dir={self._resources.enter_context(directory)}",
            f"--ignore-certificate-errors-spki-list={key_hash(self.certificate)}",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        assert process.stderr is not None
        self._address = await anyio.to_thread.run_sync(
            self._read_address, process.stderr, abandon_on_cancel=True
        )
        # Somebody must read what it writes from now on, or it stops at a full pipe.
        threading.Thread(target=deque, args=(process.stderr, 0), daemon=True).start()
        async with self.devtools() as devtools:
            product = (await devtools.call("Browser.getVersion"))["product"]
            self.version = f"Chromium {product.partition('/')[2]}"

    def _read_address(self, stderr: IO[str]) -> str:
        lines = []
        for line in stderr:
            lines.append(line)
            if line.startswith("DevTools listening on "):
                return line.split()[-1]
        raise AssertionError(self._missing("".join(lines)))

    @contextlib.asynccontextmanager
    async def devtools_client(self) -> AsyncIterator[Client]:
        """Connect our client to the browser's own WebSocket server."""
        async with connect(self._address, max_size=2 * MAX_SIZE) as client:
            yield client

    @contextlib.asynccontextmanager
    async def devtools(self) -> AsyncIterator[DevTools]:
        """Connect to the browser, to control it."""
        async with self.devtools_client() as client:
            yield DevTools(client)

    @contextlib.asynccontextmanager
    async def page(self, devtools: DevTools, url: str) -> AsyncIterator[Page]:
        """Open a page in a tab of its own, and wait until it is there."""
        target = (await devtools.call("Target.createTarget", url="about:blank"))["targetId"]
        attached = await devtools.call("Target.attachToTarget", targetId=target, flatten=True)
        page = Page(devtools, target, attached["sessionId"])
        await page.call("Network.enable")
        await page.call("Page.enable")
        await page.call("Page.navigate", url=url)
        await devtools.event("Page.loadEventFired")
        yield page
        await page.close()

    @contextlib.asynccontextmanager
    async def _open(self, page: str) -> AsyncIterator[Ask]:
        async with self.devtools() as devtools, self.page(devtools, page) as opened:
            yield opened.ask


def key_hash(certificate: str) -> str:
    """Name the public key of a certificate as Chromium wants it: Base64 of its SHA-256."""
    from cryptography import x509  # trustme, which made the certificate, is built on it
    from cryptography.hazmat.primitives import hashes, serialization

    key = x509.load_pem_x509_certificate(Path(certificate).read_bytes()).public_key()
    digest = hashes.Hash(hashes.SHA256())
    digest.update(
        key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return base64.b64encode(digest.finalize()).decode()


FRAGMENTS_FROM_THEM = "fragments, from them"
PING_FROM_THEM = "ping, from them"
COMPRESSED = {
    "compressed, our defaults": Compression(),
    "compressed, with contexts": Compression(client_no_context_takeover=False),
    "compressed, without contexts": Compression(server_no_context_takeover=True),
    "compressed, windows of 512 B": Compression(server_max_window_bits=9, client_max_window_bits=9),
    "compressed, windows of 32 KiB": Compression(server_max_window_bits=15, client_max_window_bits=15),
}
CLOSE_WITHOUT_CODE = "close without a code, by them"

WEBSOCKETS = ProgramNeighbour(
    "websockets", sys.executable, "-m", "tests.interop.peer_websockets", lacks=(CLOSE_WITHOUT_CODE,)
)
TRIO_WEBSOCKET = ProgramNeighbour(
    "trio-websocket",
    sys.executable,
    "-m",
    "tests.interop.peer_trio_websocket",
    lacks=(FRAGMENTS_FROM_THEM, CLOSE_WITHOUT_CODE, *COMPRESSED),
)
AIOHTTP = ProgramNeighbour(
    "aiohttp",
    sys.executable,
    "-m",
    "tests.interop.peer_aiohttp",
    lacks=(FRAGMENTS_FROM_THEM, CLOSE_WITHOUT_CODE),
)
WS = ProgramNeighbour("ws", "node", str(HERE / "peer_ws.mjs"))
CHROMIUM = Chromium(
    "Chromium",
    "chromium",
    "--headless",
    "--no-sandbox",  # it runs as root; the pages are ours
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
    lacks=(FRAGMENTS_FROM_THEM, PING_FROM_THEM),
)
NEIGHBOURS = (WEBSOCKETS, TRIO_WEBSOCKET, AIOHTTP, WS, CHROMIUM)
