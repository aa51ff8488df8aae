import hashlib
import json
import anyio
from anyio_ws import Config, MessageType, Server


class Upload:
    """Takes binary messages, and sends a report that is written like a file."""

    def __init__(self, conn):
        self.conn = conn
        self.sizes = []

    async def client_message(self, data, message_type):
        if message_type is MessageType.BINARY:
            self.sizes.append(len(data))
            async with self.conn.write_buffer(MessageType.BINARY) as receipt:
                receipt.write(b"sha256:")
                receipt.write(hashlib.sha256(data).digest())
                await receipt.flush()
        else:
            async with self.conn.write_buffer(MessageType.TEXT) as report:
                json.dump({"files": len(self.sizes), "bytes": sum(self.sizes)}, report)
                await report.flush()


anyio.run(Server(Upload, Config(port=9882, max_message_size=1_000_000)).listen)
