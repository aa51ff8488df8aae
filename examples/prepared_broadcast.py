import anyio
from anyio_ws import Config, Server, broadcast, frame_text


class Subscriber:
    def __init__(self, conn, app):
        self.conn, self.subscribers = conn, app

    def after_init(self):
        self.subscribers.add(self.conn)

    def client_message(self, data):
        pass

    def close(self):
        self.subscribers.discard(self.conn)


async def tick(subscribers, seconds):
    for number in range(1_000_000):
        await anyio.sleep(seconds)
        broadcast(subscribers, frame_text(f"tick {number}"))  # framed once, whoever listens


async def main(seconds=1.0, *, task_status=anyio.TASK_STATUS_IGNORED):
    subscribers = set()
    server = Server(Subscriber, Config(port=9882))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(tick, subscribers, seconds)
        await server.listen(subscribers, task_status=task_status)


anyio.run(main)
