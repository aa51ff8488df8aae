import anyio
from anyio_ws import testing


class Greeter:
    def __init__(self, conn):
        self.conn = conn

    async def client_message(self, data):
        await self.conn.write(f"hello {data}" if data else "invalid message")


async def main():
    async with testing.init() as wt:
        greeter = Greeter(wt.conn)
        await greeter.client_message(wt.text_message("").data)
        await wt.expect_text("invalid message")

    async with testing.client(Greeter) as client:
        await client.write("world")
        assert await client.receive() == "hello world"


anyio.run(main)
