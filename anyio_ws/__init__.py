"""A WebSocket server and client for Trio and asyncio, on AnyIO."""

from ._version import __version__
from .broadcast import broadcast
from .client import Client, connect
from .closing import ConnectionBroken, ConnectionEnded, ConnectionShut
from .config import (
    BuffersConfig,
    ClientConfig,
    Config,
    HandshakeConfig,
    ThreadPoolConfig,
    buffer_provider,
)
from .conn import Conn
from .deflate import Compression
from .events import CloseCode, Message, MessageType, Opcode
from .exceptions import (
    ConnectionClosed,
    HandshakeError,
    HandshakeRejected,
    InvalidResponse,
    LocalProtocolError,
    Reject,
    RemoteProtocolError,
    WebSocketError,
)
from .framing import frame_bin, frame_text
from .handshake import Handshake
from .http11 import Headers, Request, Response
from .protocol import State
from .scratch import Scratch
from .server import Server, serve
from .threads import blocking_mode
from .workers import run

__all__ = [
    "BuffersConfig",
    "Client",
    "ClientConfig",
    "CloseCode",
    "Compression",
    "Config",
    "Conn",
    "ConnectionBroken",
    "ConnectionClosed",
    "ConnectionEnded",
    "ConnectionShut",
    "Handshake",
    "HandshakeConfig",
    "HandshakeError",
    "HandshakeRejected",
    "Headers",
    "InvalidResponse",
    "LocalProtocolError",
    "Message",
    "MessageType",
    "Opcode",
    "Reject",
    "RemoteProtocolError",
    "Request",
    "Response",
    "Scratch",
    "Server",
    "State",
    "ThreadPoolConfig",
    "WebSocketError",
    "__version__",
    "blocking_mode",
    "broadcast",
    "buffer_provider",
    "connect",
    "frame_bin",
    "frame_text",
    "run",
    "serve",
]
