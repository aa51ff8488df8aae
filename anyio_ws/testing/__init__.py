"""Tools for testing handlers and programs that speak WebSocket, without a network or with a bad one."""

from .chaos import ChaosProxy, Ending, Weather, chaos_proxy
from .clock import VirtualClockLoop, settle, virtual_clock
from .faults import FaultyStream, reset
from .kit import WebSocketTest, client, init
from .memory import MemoryListener, MemoryStream, memory_stream_pair
from .peer import OPENING_REQUEST, Answer, Do, Pause, ScriptedPeer, Step, Until, accept_handshake
from .wire import WireFrame, WireOracle, build_frame, read_frame

__all__ = [
    "OPENING_REQUEST",
    "Answer",
    "ChaosProxy",
    "Do",
    "Ending",
    "FaultyStream",
    "MemoryListener",
    "MemoryStream",
    "Pause",
    "ScriptedPeer",
    "Step",
    "Until",
    "VirtualClockLoop",
    "Weather",
    "WebSocketTest",
    "WireFrame",
    "WireOracle",
    "accept_handshake",
    "build_frame",
    "chaos_proxy",
    "client",
    "init",
    "memory_stream_pair",
    "read_frame",
    "reset",
    "settle",
    "virtual_clock",
]
