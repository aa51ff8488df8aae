# examples/reconnect.py
import random

import anyio
import anyio_ws


async def listen_for_ever(url):
    pause = 1.0
    while True:
        try:
            async with anyio_ws.connect(url) as client:
                async for message in client:
                    pause = 1.0  # it works: the next pause is short again
                    print(message)
        except (OSError, anyio_ws.HandshakeError, anyio_ws.ConnectionClosed):
            pass
        await anyio.sleep(random.uniform(0, pause))  # not all clients at once
        pause = min(2 * pause, 60.0)


anyio.run(listen_for_ever, "ws://127.0.0.1:9882/")
