"""aiohttp, its client."""

from __future__ import annotations

from aiohttp import ClientSession

from benchmarks.programs.program import HOST, Window, parse_arguments, run


async def main() -> None:
    text = "x" * arguments.size
    url = f"http://{HOST}:{arguments.port}/"
    async with ClientSession() as session, session.ws_connect(url) as connection:
        window = Window(arguments.seconds)
        while window.step():
            await connection.send_str(text)
            await connection.receive()


arguments = parse_arguments()
run(main, arguments.loop)
