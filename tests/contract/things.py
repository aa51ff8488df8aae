"""What several rows use: handlers, and a server that does not wait for the peers of a test."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

from anyio_ws import Config, Conn

from .. import support


class Quiet:
    """A handler that says nothing."""

    def client_message(self, data: object) -> None:
        """Say nothing."""


class Base:
    """A handler that knows its connection."""

    client_message: Any

    def __init__(self, conn: Conn) -> None:
        self.conn = conn


class Echo(Base):
    """A handler that sends back what it gets."""

    async def client_message(self, data: Any) -> None:
        """Send it back."""
        await self.conn.send(data)


@contextlib.asynccontextmanager
async def serving(
    handler: Callable[..., Any], *, config: Config | None = None
) -> AsyncIterator[support.Serving]:
    """Serve in memory; peers that are open at the end are cut at once, unless *config* says otherwise."""
    config = config or Config()
    if config.shutdown_timeout == Config().shutdown_timeout:
        config = replace(config, shutdown_timeout=0.001)
    async with support.serving(handler, config=config) as served:
        yield served
