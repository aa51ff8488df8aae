import anyio
from anyio_ws import serve


async def echo(conn):
    async for message in conn:
        await conn.send(message)


anyio.run(serve, echo)
