"""The ends of anyio_ws that are examined: an echo server, and a client that echoes what it is sent.

Each runs in a process of its own, so that a hang or a crash is seen for what it is:

* ``python -m conformance.echo server`` prints its URL and serves until its standard input ends.
* ``python -m conformance.echo client URL CASE:LIMIT ...`` goes through cases as the Autobahn Testsuite
  numbers them (``/runCase?case=1``), all of them if none is named, and asks for the reports at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import anyio.to_thread

from anyio_ws import (
    Client,
    Config,
    ConnectionClosed,
    Handshake,
    HandshakeConfig,
    HandshakeError,
    Server,
    connect,
    framing,
)

from .case import DETAIL

BACKENDS = ("asyncio", "uvloop", "trio")
SUBPROTOCOLS = ("conformance-a", "conformance-b")
DEFAULT_LIMIT = Config().max_message_size
# Some cases flood with control frames as fast as both ends can: whether that is more than the default allows
# in a second would be up to the machine.
_CONTROL_RATE = None


class Echo:
    """Sends every message back."""

    def __init__(self, conn: Any) -> None:
        self._conn = conn

    async def client_message(self, data: str | bytes) -> None:
        """Send it back as what it came."""
        await self._conn.send(data)


class FaultyEcho(Echo):
    """Sends every message back, and errs during the opening handshake if the query says how."""

    @classmethod
    async def init(cls, handshake: Handshake, conn: Any) -> FaultyEcho:
        """Do what ``?fault=`` asks for; see :mod:`conformance.cases.faults`."""
        fault = handshake.query.get("fault")
        if fault == "error":
            raise RuntimeError(DETAIL)
        if fault == "header":
            handshake.response_headers["X-Fault"] = f"value\r\nX-Injected: {DETAIL}"
        elif fault == "accept":
            handshake.response_headers["Sec-WebSocket-Accept"] = DETAIL
        elif fault == "never":
            await anyio.sleep_forever()
        return cls(conn)


async def serve_echo(limit: int, handshake_timeout: float, *, faults: bool = False) -> None:
    """Serve until standard input ends.

    :param limit: bytes of the longest message
    :param handshake_timeout: seconds that an opening handshake may take
    :param faults: err during an opening handshake whose query asks for that, and log nothing
    """
    if faults:
        logging.disable()
    config = Config(
        port=0,
        max_message_size=limit,
        handshake=HandshakeConfig(timeout=handshake_timeout),
        max_control_rate=_CONTROL_RATE,
    )
    server = Server(FaultyEcho if faults else Echo, config)
    async with anyio.create_task_group() as tasks:
        ((host, port),) = await tasks.start(server.listen)
        print(f"ws://{host}:{port}", flush=True)
        await anyio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        server.stop()


async def run_cases(
    url: str, agent: str, cases: list[tuple[int, int]], *, timeout: float = 10.0, concurrency: int = 1
) -> None:
    """Connect to each case of a fuzzing server and echo until it is over.

    :param cases: numbers of cases, each with the bytes of its longest message; all when empty
    :param timeout: seconds for an opening handshake
    :param concurrency: cases at one time
    """
    if not cases:
        async with connect(f"{url}/getCaseCount") as client:
            count = await client.receive()
        cases = [(number, DEFAULT_LIMIT) for number in range(1, int(count) + 1)]
    todo = iter(cases)

    async def work() -> None:
        for number, limit in todo:
            print(f"case {number}", flush=True)
            await _run_case(f"{url}/runCase?case={number}&agent={agent}", limit, timeout)

    async with anyio.create_task_group() as tasks:
        for _ in range(concurrency):
            tasks.start_soon(work)
    async with connect(f"{url}/updateReports?agent={agent}", timeout=60) as client:
        await _echo(client)


async def _run_case(url: str, limit: int, timeout: float) -> None:
    with contextlib.suppress(ConnectionClosed, HandshakeError, TimeoutError, OSError):
        async with connect(
            url,
            max_size=limit,
            timeout=timeout,
            subprotocols=SUBPROTOCOLS,
            max_control_rate=_CONTROL_RATE,
        ) as client:
            await _echo(client)


async def _echo(client: Client) -> None:
    async for message in client:
        await client.send(message)


def main(arguments: list[str] | None = None) -> None:
    """Run one of the two ends."""
    parser = argparse.ArgumentParser(prog="python -m conformance.echo", description=__doc__)
    parser.add_argument("--backend", choices=BACKENDS, default="asyncio")
    ends = parser.add_subparsers(dest="end", required=True)
    server = ends.add_parser("server")
    server.add_argument("--limit", type=int, default=DEFAULT_LIMIT)
    server.add_argument("--handshake-timeout", type=float, default=HandshakeConfig().timeout)
    server.add_argument("--faults", action="store_true")
    client = ends.add_parser("client")
    client.add_argument("--agent", default="anyio_ws")
    client.add_argument("--timeout", type=float, default=10.0)
    client.add_argument("--concurrency", type=int, default=1)
    client.add_argument("url")
    client.add_argument("cases", nargs="*", metavar="CASE:LIMIT")
    options = parser.parse_args(arguments)
    print("framing", framing.BUILD, flush=True)
    if options.end == "server":
        how = {"faults": options.faults}
        _run(options.backend, lambda: serve_echo(options.limit, options.handshake_timeout, **how))
    else:
        cases = [(int(number), int(limit)) for number, limit in (each.split(":") for each in options.cases)]
        how = {"timeout": options.timeout, "concurrency": options.concurrency}
        _run(options.backend, lambda: run_cases(options.url, options.agent, cases, **how))


def _run(backend: str, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
    if backend == "uvloop":
        anyio.run(function, backend="asyncio", backend_options={"use_uvloop": True})
    else:
        anyio.run(function, backend=backend)


if __name__ == "__main__":
    main()
