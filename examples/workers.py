import os
from anyio_ws import Config, run


class Who:
    def __init__(self, conn):
        self.conn = conn

    async def client_message(self, data):
        await self.conn.write(f"process {os.getpid()} got {data}")


if __name__ == "__main__":  # workers that are spawned import this file
    run(Who, Config(port=9882, worker_count=2), ready=lambda addresses: print("serving", *addresses))
