import asyncio
import anyio
from anyio_ws import Config, Server
from same_handler import Counter


async def main():
    async with anyio.create_task_group() as tasks:  # AnyIO's task groups work in any asyncio program
        addresses = await tasks.start(Server(Counter, Config(port=0)).listen)
        print("on asyncio", *addresses)
        tasks.cancel_scope.cancel()


asyncio.run(main())
