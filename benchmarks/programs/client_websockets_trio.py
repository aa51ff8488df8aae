"""websockets, its Trio client."""

from __future__ import annotations

from websockets.trio.client import connect

from benchmarks.programs.program import HOST, Window, parse_arguments, run


async def main() -> None:
    text = "x" * arguments.size
    async with connect(f"ws://{HOST}:{arguments.port}/", proxy=None) as connection:
        window = Window(arguments.seconds)
        while window.step():
            await connection.send(text)
            await connection.recv()


arguments = parse_arguments()
run(main, "trio")
