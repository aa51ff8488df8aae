import anyio
import anyio_ws


async def main():
    async with anyio_ws.connect("ws://127.0.0.1:9882/") as client:
        await client.write("hello")
        print(await client.receive())


anyio.run(main)
