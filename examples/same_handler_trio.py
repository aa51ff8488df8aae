import trio
from anyio_ws import Config, Server
from same_handler import Counter


async def main():
    async with trio.open_nursery() as nursery:
        addresses = await nursery.start(Server(Counter, Config(port=0)).listen)
        print("on Trio", *addresses)
        nursery.cancel_scope.cancel()


trio.run(main)
