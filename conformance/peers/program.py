"""What the programs have in common: the command line, and going through the cases as a client."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import sys
from collections.abc import Awaitable, Callable

HOST = "127.0.0.1"
LIMIT = 65_536  # bytes of the longest message
TIMEOUT = 4.0  # seconds for an opening handshake as a client
SUBPROTOCOLS = ["conformance-a", "conformance-b"]


def main(serve: Callable[[], Awaitable[int]], echo: Callable[[str], Awaitable[None]]) -> None:
    """Run as a server until standard input ends, or as a client until all cases are done.

    :param serve: starts to serve, and returns the port
    :param echo: connects to a URL, and sends messages back until the connection ends
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("end", choices=("server", "client"))
    parser.add_argument("url", nargs="?")
    parser.add_argument("count", nargs="?", type=int, help="how many cases there are")
    parser.add_argument("concurrency", nargs="?", type=int, help="how many to run at one time")
    options = parser.parse_args()
    logging.disable()
    if options.end == "server":
        asyncio.run(_serve(serve))
    else:
        asyncio.run(_run_cases(echo, options.url, options.count, options.concurrency))


async def _serve(serve: Callable[[], Awaitable[int]]) -> None:
    print(f"ws://{HOST}:{await serve()}", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


async def _run_cases(echo: Callable[[str], Awaitable[None]], url: str, count: int, concurrency: int) -> None:
    todo = iter(range(1, count + 1))

    async def work() -> None:
        for number in todo:
            await _attempt(echo, f"{url}/runCase?case={number}&agent=peer")

    await asyncio.gather(*(work() for _ in range(concurrency)))
    await _attempt(echo, f"{url}/updateReports?agent=peer")


async def _attempt(echo: Callable[[str], Awaitable[None]], url: str) -> None:
    """Echo; whatever a library raises when a connection fails is right, and the end of this case."""
    with contextlib.suppress(Exception):
        await asyncio.wait_for(echo(url), 30)
