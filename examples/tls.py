import ssl
import sys
import anyio
import anyio_ws


class Echo:
    def __init__(self, conn):
        self.conn = conn

    async def client_message(self, data):
        await self.conn.send(data)


async def main(certificate):
    """Serve and connect; *certificate* is a file with a certificate for localhost and its key."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    server = anyio_ws.Server(Echo, anyio_ws.Config(port=0, address="localhost", tls=context))
    async with anyio.create_task_group() as tasks:
        (_, port), *_ = await tasks.start(server.listen)
        async with anyio_ws.connect(f"wss://localhost:{port}/", ca_bundle=certificate) as client:
            await client.write("nobody else can read this")
            print(await client.receive())
        server.stop()


anyio.run(main, *sys.argv[1:])
