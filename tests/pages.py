"""Writes the pages of ``docs/`` that say again what the code says: settings, public names, the machine.

``python -m tests.pages`` writes them; a test compares them with what is committed.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

from anyio_ws.config import BuffersConfig, ClientConfig, Config, HandshakeConfig, ThreadPoolConfig
from anyio_ws.deflate import Compression
from anyio_ws.protocol import TRANSITIONS, State

DOCS = Path(__file__).parents[1] / "docs"
_GENERATED = "Written by `python -m tests.pages`; do not edit it."

# Why each public name is one. Under forty; what is not for every program lives in a module of its own.
NAMES = {
    "BuffersConfig": "what `Config(buffers=...)` takes",
    "Client": "the two-step client: `Client.connect`, then `handshake`; what `connect` gives",
    "ClientConfig": "a client's settings",
    "CloseCode": "the registered close codes by name",
    "Compression": "what `compression=` takes, of both ends",
    "Config": "a server's settings",
    "Conn": "a connection, to annotate with",
    "ConnectionBroken": "caught: the connection broke; also an `anyio.BrokenResourceError`",
    "ConnectionClosed": "caught: the connection is over, whatever the cause; has `code` and `reason`",
    "ConnectionEnded": "caught: the peer closed in order; also an `anyio.EndOfStream`",
    "ConnectionShut": "caught: this side closed; also an `anyio.ClosedResourceError`",
    "Handshake": "the request of a handler's `__init__`, to annotate with",
    "HandshakeConfig": "what `Config(handshake=...)` takes",
    "HandshakeError": "caught: no connection came about",
    "HandshakeRejected": "caught: the server answered with another status; has `status`, `headers`, `body`",
    "Headers": "headers as they are read, and as they may be given",
    "InvalidResponse": "caught: the server's answer was wrong",
    "LocalProtocolError": "caught: this call is not allowed in this state",
    "Message": "what `read` and a read loop's handler get",
    "MessageType": "text, binary, ping, pong, close",
    "Opcode": "what `write_frame` takes",
    "Reject": "raised in `__init__` or `init` to refuse a connection",
    "RemoteProtocolError": "found as the cause: the peer broke the protocol",
    "Request": "what an `http_handler` gets, to annotate with",
    "Response": "what an `http_handler` returns",
    "Scratch": "the memory of a hook's call, to annotate with",
    "Server": "a server with a handler class",
    "State": "what `conn.state` is compared with",
    "ThreadPoolConfig": "what `Config(thread_pool=...)` takes",
    "WebSocketError": "caught: any error of this package",
    "__version__": "the version, as packages say it",
    "blocking_mode": "asked by a hook that runs in either mode",
    "broadcast": "one message to many connections, waiting for none",
    "buffer_provider": "a pool for `ClientConfig(buffer_provider=...)`",
    "connect": "the everyday client",
    "frame_bin": "a binary message, framed once and sent many times",
    "frame_text": "a text message, framed once and sent many times",
    "run": "the blocking entry point of a program, with workers and signals",
    "serve": "a server with a function",
}
MODULES = {
    "anyio_ws.blocking": "`connect` and `Client` for programs without an event loop",
    "anyio_ws.streams": "AnyIO's interfaces: `WebSocketListener`, `WebSocketConnectable`, and attributes",
    "anyio_ws.testing": "the testing kit; see [testing](testing.md)",
    "anyio_ws.protocol": "the protocol without I/O: `Protocol`, `Role`, `State`, `TRANSITIONS`",
}

_SETTINGS = """\
All settings are frozen dataclasses. A value that cannot work is a `ValueError` that names its field, an
unknown field a `TypeError`. Durations are seconds, sizes are bytes, and every limit is finite by default.
What each field does is shown by a test: [the contract](contract.md).
"""
_ORIGIN = """\
The origin of this design allows requests of 1,024 bytes and keeps no headers. A browser with cookies sends
more; so `handshake.max_size` is 8,192 here, and `handshake.max_headers` 100.
"""


def api() -> str:
    """Write the table of the public names."""
    lines = [
        "# Public names\n",
        f"{_GENERATED} A name is public because programs write it.\n",
        "| name | why it is there |",
        "|---|---|",
        *(f"| `{name}` | {why} |" for name, why in NAMES.items()),
        "\nModules of their own:\n",
        "| module | what is there |",
        "|---|---|",
        *(f"| `{name}` | {what} |" for name, what in MODULES.items()),
    ]
    return "\n".join(lines) + "\n"


def _meanings(kind: type) -> dict[str, str]:
    """Return what the docstrings of a class and its bases say of each field."""
    meanings: dict[str, str] = {}
    for each in kind.__mro__:
        text = inspect.cleandoc(each.__doc__ or "")
        for name, meaning in re.findall(r":ivar (\w+): (.*?)(?=\n:|\n\n|\Z)", text, re.DOTALL):
            meanings.setdefault(name, " ".join(meaning.split()))
    return meanings


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default
    if value is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
        return f"{getattr(field.default_factory, '__name__', '')}()"
    return f"{value:,}" if type(value) is int and value >= 10_000 else repr(value).replace("'", '"')


def _in_markdown(text: str) -> str:
    """Turn the markup of docstrings into that of Markdown."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text).replace("``", "`")
    text = re.sub(r"(?<!\*)\*(\w+)\*(?!\*)", r"`\1`", text)
    return text.replace("|", r"\|")


def table_of(kind: type) -> str:
    """Write the table of a configuration: each field, its default, what it means."""
    meanings = _meanings(kind)
    rows = [
        f"| `{field.name}` | `{_default(field)}` | {_in_markdown(meanings[field.name])} |"
        for field in dataclasses.fields(kind)
    ]
    return "\n".join(["| field | default | meaning |", "|---|---|---|", *rows])


def configuration() -> str:
    """Write the page of the settings, from the docstrings."""
    parts = [
        "# Settings\n",
        f"{_GENERATED} It is made of the docstrings and defaults of the classes.\n",
        _SETTINGS,
    ]
    for title, kind in (
        ("A server: `Config`", Config),
        ("Its opening handshake: `Config(handshake=HandshakeConfig(...))`", HandshakeConfig),
        ("Its memory: `Config(buffers=BuffersConfig(...))`", BuffersConfig),
        ("Its threads: `Config(thread_pool=ThreadPoolConfig(...))`", ThreadPoolConfig),
        ("A client: `ClientConfig`", ClientConfig),
        ("Compression of either: `compression=Compression(...)`", Compression),
    ):
        parts += [f"## {title}\n", table_of(kind) + "\n"]
    parts.append(_ORIGIN)
    return "\n".join(parts)


def machine() -> str:
    """Draw the machine of the protocol."""
    arrows: dict[tuple[State, State], list[str]] = {}
    for state, moves in TRANSITIONS.items():
        for move, then in moves.items():
            arrows.setdefault((state, then), []).append(move.name.lower().replace("_", " "))
    lines = [
        f"    {state.name} --> {then.name}: {', '.join(moves)}" for (state, then), moves in arrows.items()
    ]
    return "\n".join(["```mermaid", "stateDiagram-v2", "    [*] --> CONNECTING", *lines, "```"])


def internals() -> str:
    """Put the drawing into its page, between two marks; the rest of the page is written by hand."""
    page = (DOCS / "internals.md").read_text("utf-8")
    before, _, rest = page.partition("<!-- machine -->\n")
    _, mark, after = rest.partition("\n<!-- end of machine -->")
    assert mark, "the marks for the drawing are gone"
    return f"{before}<!-- machine -->\n{machine()}{mark}{after}"


PAGES = {"api.md": api, "configuration.md": configuration, "internals.md": internals}

if __name__ == "__main__":
    for name, write in PAGES.items():
        (DOCS / name).write_text(write(), "utf-8")
