"""websockets, its clients for asyncio and for Trio."""

from __future__ import annotations

from benchmarks.programs.program import HOST, Window, parse_arguments, run

arguments = parse_arguments()
if arguments.loop == "trio":
    from websockets.trio.client import connect
else:
    from websockets.asyncio.client import connect


async def main() -> None:
    text = "x" * arguments.size
    async with connect(f"ws://{HOST}:{arguments.port}/", proxy=None) as connection:
        window = Window(arguments.seconds)
        while window.step():
            await connection.send(text)
            await connection.recv()


run(main, arguments.loop)
