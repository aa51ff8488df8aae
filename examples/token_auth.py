import anyio
from anyio_ws import Config, Reject, Server
import anyio.lowlevel


class Account:
    @classmethod
    async def init(cls, handshake, conn, app):
        """Runs before the connection is accepted; what it raises refuses it."""
        scheme, _, token = handshake.headers.get("authorization", "").partition(" ")
        user = await look_up(app, token)
        if scheme.lower() != "bearer" or user is None:
            raise Reject(401, headers={"WWW-Authenticate": "Bearer"})
        return cls(conn, user)

    def __init__(self, conn, user):
        self.conn, self.user = conn, user

    async def client_message(self, data):
        await self.conn.write(f"{self.user} said {data}")


async def look_up(tokens, token):
    await anyio.lowlevel.checkpoint()  # a database would be asked here
    return tokens.get(token)


anyio.run(Server(Account, Config(port=9882)).listen, {"secret": "ada"})
