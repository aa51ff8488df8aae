"""picows, its server: a listener with a callback for each frame."""

from __future__ import annotations

from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_create_server

from benchmarks.programs.program import HOST, parse_arguments, run


class Echo(WSListener):
    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()
        else:
            transport.send(frame.msg_type, frame.get_payload_as_memoryview())


async def main() -> None:
    server = await ws_create_server(lambda request: Echo(), HOST, arguments.port)
    await server.serve_forever()


arguments = parse_arguments()
run(main, arguments.loop)
