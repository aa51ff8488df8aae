"""How a neighbour and we meet: their client and our server, or our client and their server.

Both directions give the same thing, a :class:`Link`, so that an exchange is written once.
"""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import anyio
import pytest

from anyio_ws import (
    ClientConfig,
    Compression,
    Config,
    Conn,
    HandshakeRejected,
    Reject,
    Request,
    Response,
    Server,
    connect,
    serve,
)
from anyio_ws.protocol import Role

from .neighbours import (
    HERE,
    MAX_SIZE,
    Ask,
    Neighbour,
)
from .program import HOST, server_context

COMPRESSION = Compression()


class Certificates(NamedTuple):
    """Files: the authority's certificate; the server's certificate and key."""

    ca: str
    server: str


class Link(NamedTuple):
    """A connection.

    :ivar ours: our end of it
    :ivar ask: the function that theirs is asked with
    :ivar subprotocol: what was agreed on, as they see it
    """

    ours: Conn
    ask: Ask
    subprotocol: str | None


# --- the two directions -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Meeting(ABC):
    """Brings our end and a neighbour's together."""

    our_role: ClassVar[Role]
    neighbour: Neighbour
    certificates: Certificates

    @abstractmethod
    def meet(
        self,
        *,
        tls: bool = False,
        ours: Sequence[str] = (),
        theirs: Sequence[str] = (),
        compression: Compression | None = COMPRESSION,
    ) -> contextlib.AbstractAsyncContextManager[Link]:
        """Make a connection, and close it at the end of the block.

        :param ours: our subprotocols, in order of preference
        :param theirs: their subprotocols
        :param compression: our settings; theirs are what they have by default
        """

    @abstractmethod
    async def refuse(self) -> int:
        """Have the server refuse a connection with 403; return the status that the client reports."""


class TheirClient(Meeting):
    """Their client connects to our server; a browser does so from a page that our server serves."""

    our_role = Role.SERVER

    @contextlib.asynccontextmanager
    async def meet(
        self,
        *,
        tls: bool = False,
        ours: Sequence[str] = (),
        theirs: Sequence[str] = (),
        compression: Compression | None = COMPRESSION,
    ) -> AsyncIterator[Link]:
        """Make a connection to a server of ours."""
        arrive, arrivals = anyio.create_memory_object_stream[Conn](math.inf)

        async def handler(conn: Conn) -> None:
            await arrive.send(conn)
            await conn.wait_gone()

        config = Config(
            port=0,
            max_message_size=MAX_SIZE,
            subprotocols=ours,
            compression=compression,
            tls=server_context(self.certificates.server) if tls else None,
        )
        with arrive, arrivals:
            async with (
                listening(partial(serve, handler, config, http_handler=serve_page)) as port,
                self._open(port, tls=tls) as ask,
            ):
                answer = await self._connect(ask, port, theirs, tls=tls)
                conn = await arrivals.receive()
                yield Link(conn, ask, answer["subprotocol"])
                await conn.close()

    async def refuse(self) -> int:
        """Connect to a server of ours whose handler cannot be had."""
        server = Server(refuse, Config(port=0), http_handler=serve_page)
        async with listening(server.listen) as port, self._open(port) as ask:
            answer = await self._connect(ask, port)
        status: int = answer["status"]
        return status

    def _open(self, port: int, *, tls: bool = False) -> contextlib.AbstractAsyncContextManager[Ask]:
        page = f"{'https' if tls else 'http'}://{HOST}:{port}/"
        return self.neighbour.open(page)

    async def _connect(
        self, ask: Ask, port: int, subprotocols: Sequence[str] = (), *, tls: bool = False
    ) -> dict[str, Any]:
        url = f"{'wss' if tls else 'ws'}://{HOST}:{port}/"
        ca = self.certificates.ca if tls else None
        answer: dict[str, Any] = await ask("connect", url=url, subprotocols=list(subprotocols), ca=ca)
        return answer


class TheirServer(Meeting):
    """Our client connects to their server."""

    our_role = Role.CLIENT

    @contextlib.asynccontextmanager
    async def meet(
        self,
        *,
        tls: bool = False,
        ours: Sequence[str] = (),
        theirs: Sequence[str] = (),
        compression: Compression | None = COMPRESSION,
    ) -> AsyncIterator[Link]:
        """Make a connection to a server of theirs."""
        config = ClientConfig(max_size=MAX_SIZE, ca_bundle=self.certificates.ca, compression=compression)
        async with self._listen(theirs, tls=tls) as (ask, authority):
            url = f"{'wss' if tls else 'ws'}://{authority}/"
            async with connect(url, subprotocols=list(ours), config=config) as client:
                answer = await ask("accept")
                yield Link(client, ask, answer["subprotocol"])

    async def refuse(self) -> int:
        """Connect to a server of theirs that refuses everybody."""
        async with self._listen(refuse=True) as (_, authority):
            with pytest.raises(HandshakeRejected) as refusal:
                async with connect(f"ws://{authority}/"):
                    pass
        assert refusal.value.body == b"not you\n"
        return refusal.value.status

    @contextlib.asynccontextmanager
    async def _listen(
        self, subprotocols: Sequence[str] = (), *, tls: bool = False, refuse: bool = False
    ) -> AsyncIterator[tuple[Ask, str]]:
        async with self.neighbour.open() as ask:
            answer = await ask(
                "listen",
                subprotocols=list(subprotocols),
                certificate=self.certificates.server if tls else None,
                refuse=refuse,
            )
            yield ask, f"{HOST}:{answer['port']}"


@contextlib.asynccontextmanager
async def listening(listen: Callable[..., Coroutine[Any, Any, object]]) -> AsyncIterator[int]:
    """Run a server of ours during a block, and give its port."""
    async with anyio.create_task_group() as tasks:
        (_, port), *_ = await tasks.start(listen)
        yield port
        tasks.cancel_scope.cancel()


def refuse() -> Any:
    """Be the handler of a server that refuses everybody."""
    raise Reject(403, body=b"not you\n")


def serve_page(request: Request) -> Response:
    """Serve the page that is a browser's program."""
    name, kind = {
        "/": ("peer_page.html", "text/html"),
        "/link.mjs": ("link.mjs", "text/javascript"),
    }.get(request.path, ("", ""))
    if not name:
        return Response(404)
    return Response(200, (HERE / name).read_bytes(), {"Content-Type": f"{kind}; charset=utf-8"})


# --- what is said --------------------------------------------------------------------------------------

SIZES = (0, 1, 125, 126, 65_535, 65_536, 2**20)  # around the three forms of a length, RFC 6455 §5.2


def text_of(size: int) -> str:
    """Return text of so many bytes, its characters one to four bytes long."""
    return "aß€😀" * (size // 10) + "x" * (size % 10)


def binary_of(size: int) -> bytes:
    """Return so many bytes, of all values."""
    return (bytes(range(256)) * (size // 256 + 1))[:size]
