"""aiohttp, its server."""

from __future__ import annotations

import asyncio

from aiohttp import WSMsgType, web

from benchmarks.programs.program import HOST, parse_arguments, run


async def echo(request: web.Request) -> web.WebSocketResponse:
    response = web.WebSocketResponse()
    await response.prepare(request)
    async for message in response:
        if message.type == WSMsgType.TEXT:
            await response.send_str(message.data)
    return response


async def main() -> None:
    application = web.Application()
    application.router.add_get("/", echo)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, HOST, arguments.port, backlog=2048).start()
    await asyncio.Event().wait()


arguments = parse_arguments()
run(main, arguments.loop)
