import zlib
import anyio
from anyio_ws import Config, Server, ThreadPoolConfig


class Compress:
    """A handler of plain functions: each call has a thread, and may block it."""

    def __init__(self, conn):
        self.conn = conn

    def client_message(self, data):
        packed = zlib.compress(data, level=9)
        self.conn.from_thread.write_bin(packed)


config = Config(port=9882, blocking=True, thread_pool=ThreadPoolConfig(count=4, backlog=100))
anyio.run(Server(Compress, config).listen)
