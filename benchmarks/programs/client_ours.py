"""anyio_ws, its client: a read loop with a handler, ``receive()``, or iteration."""

from __future__ import annotations

import anyio

from anyio_ws import Client, Message, connect
from benchmarks.programs.program import HOST, Window, parse_arguments


class Handler:
    def __init__(self, client: Client) -> None:
        self.client = client

    async def handle(self, message: Message) -> None:
        if window.step():
            await self.client.write(text)
        else:
            await self.client.close()


async def read_loop(client: Client) -> None:
    await client.write(text)
    await client.read_loop(Handler(client))


async def receive(client: Client) -> None:
    await client.write(text)
    while await client.receive() and window.step():
        await client.write(text)


async def iteration(client: Client) -> None:
    await client.write(text)
    async for _ in client:
        if not window.step():
            break
        await client.write(text)


async def main() -> None:
    ways = {"read_loop": read_loop, "receive": receive, "iteration": iteration}
    async with connect(f"ws://{HOST}:{arguments.port}/", max_size=2**24) as client:
        await ways[arguments.style](client)


arguments = parse_arguments()
text = "x" * arguments.size
window = Window(arguments.seconds)
anyio.run(
    main,
    backend="trio" if arguments.loop == "trio" else "asyncio",
    backend_options={"use_uvloop": True} if arguments.loop == "uvloop" else {},
)
