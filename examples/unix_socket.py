import tempfile
import anyio
import anyio_ws


class Echo:
    def __init__(self, conn):
        self.conn = conn

    async def client_message(self, data):
        await self.conn.send(data)


async def main():
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/socket"
        server = anyio_ws.Server(Echo, anyio_ws.Config(unix_path=path))
        async with anyio.create_task_group() as tasks:
            await tasks.start(server.listen)
            async with anyio_ws.connect("ws://localhost/", unix_path=path) as client:
                await client.write("no network")
                print(await client.receive())
            server.stop()


anyio.run(main)
