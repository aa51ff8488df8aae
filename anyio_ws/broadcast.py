"""One message to many connections, without waiting for any of them.

Waiting for the slowest would let one peer hold up all others; buffering without bound would let it take
all memory. So a connection without room does not get the message, and the caller learns which.
"""

from __future__ import annotations

from collections.abc import Iterable

import anyio

from .conn import Conn
from .events import build_close
from .exceptions import ConnectionClosed, LocalProtocolError
from .framing import Frame, frame_bin, frame_text


def broadcast(
    conns: Iterable[Conn],
    message: str | bytes | bytearray | memoryview | Frame,
    *,
    close_code: int | None = None,
    close_reason: str = "",
) -> list[Conn]:
    """Send a message to every open connection that has room for it, at once.

    The message is framed once for all of them. Connections that are closed are passed over.

    :param conns: the connections
    :param message: text for ``str``, binary for a bytes-like object, or a message framed ahead of time
    :param close_code: close those without room with this code, such as 1013 (try again later) or 1008
        (policy violation); ``None`` only leaves them out
    :param close_reason: the reason that comes with it
    :return: the connections that did not get the message: more than ``outbox_size`` bytes wait to be sent
        to them, or they are inside a fragmented message or their opening handshake
    :raises ValueError: when code or reason may not be sent; nothing has been sent then
    :raises TypeError: when *message* is none of these
    """
    if close_code is not None:
        build_close(close_code, close_reason)
    if not isinstance(message, Frame):
        message = frame_text(message) if isinstance(message, str) else frame_bin(message)
    missed: list[Conn] = []
    for conn in conns:
        try:
            conn.write_nowait(message)
        except ConnectionClosed:  # to ask each one before would cost as much as the writing
            pass
        except anyio.WouldBlock:
            missed.append(conn)
            if close_code is not None:
                conn.close_nowait(close_code, close_reason)
        except LocalProtocolError:
            missed.append(conn)
    return missed
