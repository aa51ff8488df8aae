"""trio-websocket, its client."""

from __future__ import annotations

from trio_websocket import open_websocket_url

from benchmarks.programs.program import HOST, Window, parse_arguments, run


async def main() -> None:
    text = "x" * arguments.size
    async with open_websocket_url(f"ws://{HOST}:{arguments.port}/") as connection:
        window = Window(arguments.seconds)
        while window.step():
            await connection.send_message(text)
            await connection.get_message()


arguments = parse_arguments()
run(main, "trio")
