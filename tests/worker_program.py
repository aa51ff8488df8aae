"""A program that serves with ``run``, for tests/test_workers.py: it is told what to do by its arguments.

It says on standard output where it listens and what its handlers see, one JSON value a line.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import anyio

from anyio_ws import Config, Conn, Server, run
from anyio_ws.protocol import Protocol, Role, State

listen = Server.listen


def say(value: object) -> None:
    """Print a line that stays whole whoever else prints."""
    os.write(1, json.dumps(value).encode() + b"\n")


class Handler:
    """Does what a message says."""

    def __init__(self, conn: Conn) -> None:
        self.conn = conn

    async def client_message(self, data: str) -> None:
        """Answer who serves, or get stuck."""
        if data == "key":
            protocol = Protocol(Role.CLIENT, max_message_size=10)
            protocol.opened()
            assert protocol.state is State.OPEN
            await self.conn.write(bytes(protocol.send_text(""))[2:6].hex())
        elif data == "wait":
            await anyio.sleep_forever()
        elif data == "block":
            say("blocked")
            threading.Event().wait()
        await self.conn.write(str(os.getpid()))

    def close(self) -> None:
        """Say that it was called."""
        say("closed")


async def signalled_listen(self: Server, *arguments: Any, **options: Any) -> None:
    """Send a signal to the process that the user knows, then listen."""
    worker = multiprocessing.current_process().name
    if worker == "MainProcess":
        os.kill(os.getpid(), signal.SIGTERM)
    elif worker.endswith(" 2"):
        os.kill(os.getppid(), signal.SIGTERM)
    await listen(self, *arguments, **options)


async def failing_listen(self: Server, app: Any, **options: Any) -> None:
    """Have the first three processes that get here die."""
    die_early(Path(app["deaths"]))
    await listen(self, app, **options)


def die_early(deaths: Path) -> None:
    """Leave a mark, and die if it is among the first three."""
    with deaths.open("ab", buffering=0) as file:
        file.write(b"x")
        if file.tell() <= 3:
            os._exit(3)


def main(options: dict[str, Any]) -> None:
    """Serve."""
    trouble = options.pop("trouble", None)
    server: Any = Server
    server.listen = {"signal": signalled_listen, "death": failing_listen, None: listen}[trouble]
    config = Config(**options.pop("config"))
    run(Handler, config, options.pop("app", None), ready=say, **options)
    say("returned")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
