"""The exchanges: what every neighbour and we say to each other, each as neighbour and in both directions.

An exchange is a function of a :class:`Meeting`, which makes connections: ``meet()`` gives our end of one
and the function that theirs is asked with. Nothing here knows which neighbour it is.
"""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import anyio

from anyio_ws import (
    ClientConfig,
    Config,
    Conn,
    HandshakeRejected,
    Opcode,
    Reject,
    Request,
    Response,
    Role,
    Server,
    connect,
    serve,
)

from .neighbours import (
    CLOSE_WITHOUT_CODE,
    FRAGMENTS_FROM_THEM,
    HERE,
    MAX_SIZE,
    NEIGHBOURS,
    Ask,
    Chromium,
    Neighbour,
)
from .program import digest

HOST = "127.0.0.1"
SIZES = (0, 1, 125, 126, 65_535, 65_536, 2**20)  # around the three forms of a length, RFC 6455 §5.2
CODE, REASON = 4321, "enough — genug — достаточно"


class Certificates(NamedTuple):
    """The files of the tests' certificates: the authority's, and the server's with its key."""

    ca: str
    server: str


# --- meeting ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Meeting(ABC):
    """Brings our end and a neighbour's together."""

    neighbour: Neighbour
    certificates: Certificates

    @abstractmethod
    def meet(
        self, *, tls: bool = False, ours: Sequence[str] = (), theirs: Sequence[str] = ()
    ) -> contextlib.AbstractAsyncContextManager[tuple[Conn, Ask, str | None]]:
        """Make a connection: our end, theirs, and the subprotocol in their opinion.

        :param ours: our subprotocols, in order of preference
        :param theirs: theirs
        """

    @abstractmethod
    async def refuse(self) -> int:
        """Have the server refuse the connection; return the status that the client sees."""


class WithTheirClient(Meeting):
    """Their client connects to our server."""

    @contextlib.asynccontextmanager
    async def meet(
        self, *, tls: bool = False, ours: Sequence[str] = (), theirs: Sequence[str] = ()
    ) -> AsyncIterator[tuple[Conn, Ask, str | None]]:
        """Make a connection to a server of ours."""
        arrive, arrivals = anyio.create_memory_object_stream[Conn](math.inf)

        async def handler(conn: Conn) -> None:
            await arrive.send(conn)
            await conn.wait_gone()

        config = Config(
            port=0,
            max_message_size=MAX_SIZE,
            subprotocols=ours,
            tls=server_context(self.certificates) if tls else None,
            origins=["*"] if tls else None,  # the page is served without TLS, so from another origin
        )
        with arrive, arrivals:
            async with serving(partial(serve, handler, config)) as port, self._open(port, tls=tls) as ask:
                opened = await ask(
                    "connect",
                    url=f"{'wss' if tls else 'ws'}://{HOST}:{port}/",
                    subprotocols=list(theirs),
                    ca=self.certificates.ca if tls else None,
                )
                conn = await arrivals.receive()
                yield conn, ask, opened["subprotocol"]
                await conn.close()

    @contextlib.asynccontextmanager
    async def _open(self, port: int, *, tls: bool = False) -> AsyncIterator[Ask]:
        """Open their end, a browser on a page of the server at *port* if the page can be read there."""
        async with contextlib.AsyncExitStack() as stack:
            if tls:
                port = await stack.enter_async_context(serving(partial(serve, _refuse_all, Config(port=0))))
            page = f"http://{HOST}:{port}/"
            yield await stack.enter_async_context(
                self.neighbour.open(page, certificate=self.certificates.server)
            )

    async def refuse(self) -> int:
        """Connect to a server of ours whose handlers refuse."""
        server = Server(Refusing, Config(port=0), http_handler=serve_page)
        async with serving(server.listen) as port, self._open(port) as ask:
            answer = await ask("connect", url=f"ws://{HOST}:{port}/", subprotocols=[], ca=None)
        status: int = answer["status"]
        return status
