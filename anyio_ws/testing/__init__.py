"""Tools for testing handlers and programs that speak WebSocket, without a network."""

from .clock import VirtualClockLoop, virtual_clock
from .kit import WebSocketTest, client, init
from .memory import MemoryListener, MemoryStream, memory_stream_pair

__all__ = [
    "MemoryListener",
    "MemoryStream",
    "VirtualClockLoop",
    "WebSocketTest",
    "client",
    "init",
    "memory_stream_pair",
    "virtual_clock",
]
