"""picows with its own interface, which hands over frames; putting messages together is up to the program."""

from __future__ import annotations

from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect, ws_create_server

from conformance.peers.program import HOST, LIMIT, SUBPROTOCOLS, TIMEOUT, main


class Echo(WSListener):
    """Sends each message back once its last frame has come."""

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.type = WSMsgType.TEXT
        self.parts: list[bytes] = []

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()
        elif frame.msg_type in (WSMsgType.TEXT, WSMsgType.BINARY, WSMsgType.CONTINUATION):
            if frame.msg_type != WSMsgType.CONTINUATION:
                self.type = frame.msg_type
            self.parts.append(frame.get_payload_as_bytes())
            if frame.fin:
                transport.send(self.type, b"".join(self.parts))
                self.parts.clear()


async def start() -> int:
    server = await ws_create_server(lambda request: Echo(), HOST, 0, max_frame_size=LIMIT)
    port: int = server.sockets[0].getsockname()[1]
    return port


async def echo(url: str) -> None:
    transport, _ = await ws_connect(
        Echo,
        url,
        max_frame_size=LIMIT,
        websocket_handshake_timeout=TIMEOUT,
        max_redirects=0,
        extra_headers={"Sec-WebSocket-Protocol": ", ".join(SUBPROTOCOLS)},
    )
    await transport.wait_disconnected()


main(start, echo)
