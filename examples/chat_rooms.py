import anyio
from anyio_ws import Config, Reject, Server, broadcast, frame_text


class Member:
    """Whoever connects to /rooms/<name> talks with everybody else there."""

    def __init__(self, handshake, conn, app):
        _, _, room = handshake.path.partition("/rooms/")
        if not room:
            raise Reject(404)
        self.conn = conn
        self.rooms, self.room = app, room

    def after_init(self):
        self.rooms.setdefault(self.room, set()).add(self.conn)

    def client_message(self, data):
        broadcast(self.rooms[self.room], frame_text(data))

    def close(self):
        members = self.rooms.get(self.room, set())
        members.discard(self.conn)
        if not members:
            self.rooms.pop(self.room, None)


anyio.run(Server(Member, Config(port=9882)).listen, {})
