import anyio
from anyio_ws import Client, ClientConfig


class Printer:
    def __init__(self, client):
        self.client = client

    async def handle(self, message):
        print(message.type.name, message.data)
        await self.client.close()

    def close(self):
        print("the connection has ended")


async def main():
    client = await Client.connect("127.0.0.1", 9882, ClientConfig(max_size=1_000_000))
    await client.handshake("/", timeout=5)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.read_loop, Printer(client))
        await client.write("hello")


anyio.run(main)
