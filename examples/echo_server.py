import anyio
from anyio_ws import Config, Server


class Echo:
    def __init__(self, conn):
        self.conn = conn

    async def client_message(self, data):
        await self.conn.send(data)


anyio.run(Server(Echo, Config(port=9882)).listen)  # backend="trio" runs it on Trio
