"""Connect, echo, close, again and again, without the garbage collector: what stays is a leak.

Server and clients share a process and a Unix socket. After a tenth of the cycles the memory is measured, and
again at the end; tasks and descriptors must be those of the beginning. ::

    python -m tests.leaks --cycles 200000 --backend trio
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import anyio
import anyio.lowlevel

from anyio_ws import Config, Conn, Server, connect
from anyio_ws.handler import FunctionFactory

from .soak import resident
from .support import open_descriptors, running_tasks


class Growth(NamedTuple):
    """What so many cycles have left behind."""

    cycles: int
    """How many were measured, after those that warm up."""
    memory: int
    """Bytes of resident memory that came in them."""
    objects: int
    """How many objects that the collector knows came in them."""
    left: set[str]
    """Tasks and descriptors that were not there at the beginning."""


async def _echo(conn: Conn) -> None:
    async for message in conn:
        await conn.send(message)


async def run(cycles: int, say: Callable[[str], None] = lambda _: None) -> Growth:
    """Do so many cycles after a tenth as many to warm up, one after the other."""
    before = running_tasks() | open_descriptors()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "socket")
        server = Server(FunctionFactory(_echo), Config(unix_path=path))
        async with anyio.create_task_group() as tasks:
            await tasks.start(server.listen, None)
            await _cycle(path, max(cycles // 10, 100), say)
            gc.collect()
            gc.disable()
            try:
                memory, objects = resident(), len(gc.get_objects())
                await _cycle(path, cycles, say)
                memory, objects = resident() - memory, len(gc.get_objects()) - objects
            finally:
                gc.enable()
            server.stop()
    await anyio.lowlevel.checkpoint()
    return Growth(cycles, memory, objects, (running_tasks() | open_descriptors()) - before)


async def _cycle(path: Path, count: int, say: Callable[[str], None]) -> None:
    for number in range(count):
        async with connect("ws://localhost/", unix_path=path) as client:
            await client.write("hello")
            assert await client.receive() == "hello"
        if number % 10_000 == 9_999:
            say(f"{number + 1} cycles, {resident() >> 10} KiB")


def main() -> int:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.leaks", description=__doc__.split("\n")[0])
    parser.add_argument("--cycles", type=int, default=200_000)
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    args = parser.parse_args()
    grown = anyio.run(run, args.cycles, partial(print, flush=True), backend=args.backend)
    print(f"{args.backend}: {grown.memory / grown.cycles:.2f} bytes for each of {grown.cycles} cycles")
    print(f"{grown.objects} objects; left over: {sorted(grown.left) or 'nothing'}")
    return 1 if grown.left or grown.memory > 64 * grown.cycles + 1_000_000 else 0


if __name__ == "__main__":
    sys.exit(main())
