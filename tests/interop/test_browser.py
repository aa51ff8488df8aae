"""What only a browser does: pages of other origins, tabs that are closed, a chat between two tabs."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import sys
from collections.abc import AsyncIterator
from functools import partial

import anyio
import pytest
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from anyio_ws import Config, Conn, Opcode, Server, State, serve

from .meeting import SIZES, listening, serve_page, text_of
from .neighbours import CHROMIUM, PATIENCE, ROOT, DevTools, Page
from .program import HOST


@pytest.mark.interop(row="Chromium's DevTools server: text of 0 B to 1 MiB, fragments, ping, close")
async def test_devtools_server_understands_our_client() -> None:
    """The browser's own WebSocket server takes what our client sends, and our client its answers."""
    async with CHROMIUM.running(), CHROMIUM.devtools_client() as client:
        command = json.dumps({"id": 0, "method": "Browser.getVersion"}).encode()
        await client.write_frame(Opcode.TEXT, command[:9], fin=False)
        assert await client.ping() > 0
        await client.write_frame(Opcode.CONTINUATION, command[9:])
        assert json.loads(await client.receive())["result"]["product"].startswith("Chrome/")
        async with CHROMIUM.page(DevTools(client), "about:blank") as page:
            for size in SIZES:
                text = text_of(size)
                assert await page.evaluate(json.dumps(text, ensure_ascii=False)) == text
        await client.close(1000, "enough")
        assert (client.close_code, client.state) == (1000, State.CLOSED)


@pytest.mark.parametrize(
    ("origins", "status"),
    [
        pytest.param(None, 403, marks=pytest.mark.interop(row="Chromium: page of another origin, refused")),
        pytest.param(["*"], None, marks=pytest.mark.interop(row="Chromium: page of another origin, allowed")),
    ],
)
async def test_page_of_another_origin_needs_permission(origins: list[str] | None, status: int | None) -> None:
    """A page may connect to a server of another origin only where ``origins`` says so."""
    config = Config(port=0, origins=origins)
    async with (
        listening(partial(serve, stay, Config(port=0), http_handler=serve_page)) as page_port,
        listening(partial(serve, stay, config)) as port,
        CHROMIUM.open(f"http://{HOST}:{page_port}/") as ask,
    ):
        answer = await ask("connect", url=f"ws://{HOST}:{port}/", subprotocols=[], ca=None)
        assert answer.get("status") == status


async def stay(conn: Conn) -> None:
    """Be a handler that waits for the end."""
    await conn.wait_gone()


@pytest.mark.interop(row="Chromium: a closed tab is 1001 for the server")
async def test_closed_tab_is_going_away() -> None:
    """When a tab is closed, the server sees close code 1001."""
    arrive, arrivals = anyio.create_memory_object_stream[Conn](math.inf)

    async def handler(conn: Conn) -> None:
        await arrive.send(conn)
        await conn.wait_gone()

    with arrive, arrivals:
        async with listening(partial(serve, handler, Config(port=0), http_handler=serve_page)) as port:
            async with CHROMIUM.open(f"http://{HOST}:{port}/") as ask:
                await ask("connect", url=f"ws://{HOST}:{port}/", subprotocols=[], ca=None)
                conn = await arrivals.receive()
            await conn.wait_gone()
    assert conn.close_code == 1001


@pytest.mark.interop(row="Chromium: the code and reason of Server.stop reach the page")
async def test_page_learns_why_a_server_stops() -> None:
    """A page reports the code and reason with which its server was stopped."""
    server = Server(partial(Nothing), Config(port=0), http_handler=serve_page)
    async with listening(server.listen) as port, CHROMIUM.open(f"http://{HOST}:{port}/") as ask:
        await ask("connect", url=f"ws://{HOST}:{port}/", subprotocols=[], ca=None)
        server.stop(1012, "back in a minute")
        assert await ask("closed") == {"code": 1012, "reason": "back in a minute"}
        await server.wait_stopped()


class Nothing:
    """A handler that does nothing."""

    def client_message(self, data: str | bytes) -> None:
        """Do nothing."""


# --- the demo -----------------------------------------------------------------------------------------


class Tab:
    """A tab with the demo's page, used as a person uses it: reading and typing."""

    def __init__(self, page: Page) -> None:
        self._page = page

    async def reads(self, element: str, text: str) -> None:
        """Wait until an element of the page has this text in it."""
        await self._page.until(f"document.getElementById({element!r}).textContent.includes({text!r})")

    async def types(self, element: str, text: str) -> None:
        """Replace what stands in a field, and press Enter."""
        await self._page.evaluate(f"document.getElementById({element!r}).select()")
        await self._page.call("Input.insertText", text=text)
        for kind in ("keyDown", "keyUp"):
            await self._page.call("Input.dispatchKeyEvent", type=kind, key="Enter", text="\r")


@contextlib.asynccontextmanager
async def demo(backend: str) -> AsyncIterator[tuple[Process, str]]:
    """Run ``python -m anyio_ws demo`` on a free port, and find the address of its page."""
    command = [sys.executable, "-m", "anyio_ws", "demo", "--port", "0", "--backend", backend]
    async with await anyio.open_process(command, cwd=ROOT, stderr=None) as process:
        try:
            assert process.stdout is not None
            with anyio.fail_after(PATIENCE):
                line = await BufferedByteReceiveStream(process.stdout).receive_until(b"\n", 200)
            yield process, line.decode().split()[-1]
        finally:
            if process.returncode is None:
                process.kill()


@pytest.mark.interop(row="Chromium: two tabs talk on the page of python -m anyio_ws demo")
async def test_tabs_talk_on_the_page_of_the_demo(anyio_backend_name: str) -> None:
    """Two tabs on the demo's page see each other, talk, change a name, and see the server stop."""
    async with (
        demo(anyio_backend_name) as (process, url),
        CHROMIUM.running(),
        CHROMIUM.devtools() as devtools,
        CHROMIUM.page(devtools, url) as first,
        CHROMIUM.page(devtools, url) as second,
    ):
        one, two = Tab(first), Tab(second)
        await one.reads("state", "Connected")
        await two.reads("here", "Guest 2you")
        await one.reads("log", "Guest 2 is here.")
        await one.types("text", "Grüße, 🌍 <b>")
        await two.reads("log", "Grüße, 🌍 <b>")
        await two.types("name", "Ada")
        await one.reads("log", "Guest 2 is now called Ada.")
        await two.types("text", "hello")
        await one.reads("log", "Ada")
        await one.reads("log", "hello")
        process.send_signal(signal.SIGINT)
        await one.reads("closed", "1001")
        await two.reads("closed", "1001")
        assert await process.wait() == 0
