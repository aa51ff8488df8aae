"""What the neighbours' programs in Python have in common: they do what they are told, line by line.

Each line of standard input is a JSON object ``{"do": name, ...}`` with the arguments of a command, each
line of standard output is its answer; README.md has the commands. One connection is open at a time.
A program knows nothing of anyio_ws: the bytes on the wire are all that the two have in common.
"""

from __future__ import annotations

import hashlib
import json
import ssl
import sys
from abc import ABC, abstractmethod
from typing import Any

import anyio.to_thread

HOST = "127.0.0.1"
MAX_SIZE = 2**21  # bytes of a message; the defaults of some neighbours are just what is sent here

Answer = dict[str, Any]


def digest(message: str | bytes) -> str:
    """Tell messages apart: by type, size and SHA-256."""
    kind, data = ("text", message.encode()) if isinstance(message, str) else ("binary", message)
    return f"{kind} {len(data)} {hashlib.sha256(data).hexdigest()}"


def client_context(ca: str | None) -> ssl.SSLContext | None:
    """Return the context of a client that trusts one authority."""
    return ssl.create_default_context(cafile=ca) if ca else None


def server_context(certificate: str | None) -> ssl.SSLContext | None:
    """Return the context of a server whose key and certificate are in one file."""
    if certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    return context


class Program(ABC):
    """A neighbour's program; each public coroutine method is a command."""

    async def run(self) -> None:
        """Obey until standard input ends."""
        while line := await anyio.to_thread.run_sync(sys.stdin.readline):
            command = json.loads(line)
            answer = await getattr(self, command.pop("do"))(**command)
            print(json.dumps(answer), flush=True)

    @abstractmethod
    async def version(self) -> str:
        """Tell what this is."""

    @abstractmethod
    async def connect(self, url: str, subprotocols: list[str], ca: str | None) -> Answer:
        """Connect; answer ``subprotocol``, or the ``status`` of a refusal."""

    @abstractmethod
    async def listen(self, subprotocols: list[str], certificate: str | None, refuse: bool) -> Answer:
        """Listen on any port, and answer it; refuse connections with 403 if asked to."""

    @abstractmethod
    async def accept(self) -> Answer:
        """Wait for a connection; answer its ``subprotocol``."""

    @abstractmethod
    async def receive(self) -> str | bytes:
        """Receive a message."""

    @abstractmethod
    async def send(self, message: str | bytes) -> None:
        """Send a message."""

    async def echo(self, count: int) -> list[str]:
        """Receive messages and send each back; answer their digests."""
        digests = []
        for _ in range(count):
            message = await self.receive()
            digests.append(digest(message))
            await self.send(message)
        return digests

    async def fragments(self, parts: list[str], binary: bool) -> None:
        """Send one message as so many fragments, where the neighbour's interface can."""
        raise NotImplementedError

    @abstractmethod
    async def ping(self, data: str) -> str:
        """Send a Ping, and answer the data of the Pong that comes."""

    @abstractmethod
    async def close(self, code: int, reason: str) -> Answer:
        """Start the closing handshake; answer ``code`` and ``reason`` of the other end's Close."""

    @abstractmethod
    async def closed(self) -> Answer:
        """Wait until the other end has closed; answer ``code`` and ``reason`` of its Close."""

    @abstractmethod
    async def stop(self) -> None:
        """Close the connection and the listener, if there are any."""
