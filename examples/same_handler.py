"""A handler that knows neither Trio nor asyncio; two programs beside this one serve it."""

import anyio
import anyio.lowlevel


class Counter:
    def __init__(self, conn):
        self.conn = conn

    async def client_message(self, data):
        for number in range(int(data)):
            await self.conn.write(str(number))
            await anyio.lowlevel.checkpoint()  # let others have their turn
