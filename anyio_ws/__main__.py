"""The command line: ``python -m anyio_ws demo``."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from functools import partial

from . import __version__, demo

_DEMO = """\
Serve a chat: a page to open in a browser, and everything said there goes over WebSocket. With --connect,
join a chat from the terminal: the lines of standard input are said, and what others say is printed."""
_EXIT_CODES = """\
exit codes: 0 after Ctrl-C, SIGTERM, the end of the input, or when the server closed the connection with
1000 or 1001; 1 when the address cannot be used or the connection failed; 2 for wrong arguments; 130 for
Ctrl-C before anything ran."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    :param arguments: those of the process when ``None``
    :return: the exit code
    """
    parser = _build_parser()
    options = parser.parse_args(arguments)
    if options.name is not None and options.connect is None:
        parser.error("--name is for --connect; on the page the name is chosen there")
    if importlib.util.find_spec(options.backend) is None:
        parser.error(f"the backend {options.backend} is not installed: pip install {options.backend}")
    if options.connect is None:
        return demo.run(partial(demo.serve_chat, options.address, options.port), options.backend)
    url = options.connect or f"ws://{demo.authority(options.address, options.port)}/"
    return demo.run(partial(demo.join_chat, url, options.name, _STDIN), options.backend)


_STDIN = 0


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m anyio_ws", description="WebSockets on AnyIO.")
    parser.add_argument("--version", action="version", version=f"anyio_ws {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    command = commands.add_parser(
        "demo",
        help="serve a chat to try out, or join one",
        description=_DEMO,
        epilog=_EXIT_CODES,
    )
    command.add_argument("--address", default="127.0.0.1", help="address to serve on (default: %(default)s)")
    command.add_argument(
        "--port",
        type=_port,
        default=9882,
        help="port to serve on; 0 takes any free one (default: %(default)s)",
    )
    command.add_argument(
        "--backend",
        choices=("asyncio", "trio"),
        default="asyncio",
        help="what to run on (default: %(default)s)",
    )
    command.add_argument(
        "--connect",
        nargs="?",
        const="",
        metavar="URL",
        help="join the chat at this URL in place of serving one (default: ws://ADDRESS:PORT/)",
    )
    command.add_argument("--name", help="the name to join with (default: a guest's name)")
    return parser


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, a number from 0 to 65535")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
