"""picows, its client: a listener with a callback for each frame; the payload is taken as bytes."""

from __future__ import annotations

from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

from benchmarks.programs.program import HOST, Window, parse_arguments, run


class Echo(WSListener):
    def on_ws_connected(self, transport: WSTransport) -> None:
        self.text = b"x" * arguments.size
        self.window = Window(arguments.seconds)
        transport.send(WSMsgType.TEXT, self.text)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        frame.get_payload_as_bytes()
        if self.window.step():
            transport.send(WSMsgType.TEXT, self.text)
        else:
            transport.disconnect()


async def main() -> None:
    transport, _ = await ws_connect(Echo, f"ws://{HOST}:{arguments.port}/")
    await transport.wait_disconnected()


arguments = parse_arguments()
run(main, arguments.loop)
