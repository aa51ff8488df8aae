"""TLS over a watched socket: what ``sockets.py`` receives is decrypted before it is dealt with.

The TLS engine is the standard library's, between two buffers in memory. It is driven where bytes come in
and go out, so that a connection over TLS has no task either. A message that begins and ends the same read
costs one decryption and one encryption, and all replies to one read share a record where they fit.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import anyio
from anyio.streams.tls import TLSAttribute

from .deadlines import Deadlines
from .framing import WHOLE, end_of_frame
from .lane import NO_LANE, Lane
from .sockets import ConnectedSocket, SocketTransport
from .transport import without_frames


async def over_socket(
    connected: ConnectedSocket,
    deadlines: Deadlines,
    context: ssl.SSLContext | None,
    *,
    hostname: str | None = None,
    outbox_size: int,
    write_timeout: float,
) -> SocketTransport:
    """Make the transport over a socket, and do its TLS handshake where there is a context.

    The parameters are those of :class:`TlsTransport`; raises like its ``handshake``, and closes the
    socket then.
    """
    if context is None:
        return SocketTransport(connected, deadlines, outbox_size=outbox_size, write_timeout=write_timeout)
    try:
        transport = TlsTransport(
            connected,
            deadlines,
            context,
            hostname=hostname,
            outbox_size=outbox_size,
            write_timeout=write_timeout,
        )
    except BaseException:  # such as a host name that no certificate can be for
        connected.close()
        raise
    await transport.handshake()
    return transport


class TlsTransport(SocketTransport):
    """A :class:`SocketTransport` that speaks TLS; :meth:`handshake` comes before everything else.

    :param connected: the socket
    :param deadlines: the clock
    :param context: certificates, and how strict to be
    :param hostname: whom a client wants to talk to; ``None`` makes it the server's end
    :param outbox_size: bytes above which :attr:`full` is true
    :param write_timeout: seconds in which the peer must take 64 KiB of what waits
    """

    __slots__ = (
        "_hands_shaken",
        "_incoming",
        "_outgoing",
        "_over",
        "_owes_end",
        "_said_goodbye",
        "_tls",
        "_told_end",
    )

    def __init__(
        self,
        connected: ConnectedSocket,
        deadlines: Deadlines,
        context: ssl.SSLContext,
        *,
        hostname: str | None,
        outbox_size: int,
        write_timeout: float,
    ) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=hostname is None, server_hostname=hostname
        )
        super().__init__(connected, deadlines, outbox_size=outbox_size, write_timeout=write_timeout)
        self._hands_shaken = False
        self._over = anyio.Event()  # the handshake, well or badly
        self._said_goodbye = False
        self._owes_end = False  # the receiver was given data, and the end came right behind it
        self._told_end = False

    @property
    def lane(self) -> Lane:
        """None: what is on the wire is encrypted."""
        return NO_LANE

    async def handshake(self) -> None:
        """Do the TLS handshake; reading is paused again afterwards.

        :raises ssl.SSLError: when TLS cannot be agreed on, or the certificate is not good
        :raises OSError: when the connection is lost first

        Cancellation, and every error, close the socket.
        """
        try:
            self.resume()
            self._pump()
            await self._over.wait()
        except BaseException:
            self.abort()
            raise
        if self._hands_shaken and not self.ended:
            return
        error, self._error = self._error, None
        try:
            raise error or ConnectionAbortedError("the connection was lost during the TLS handshake")
        finally:
            del error  # it refers to this frame

    # --- receiving --------------------------------------------------------------------------------

    def resume(self) -> None:
        """Read again, what was received before included."""
        super().resume()
        if self._hands_shaken and (self._incoming.pending or self._tls.pending() or self._owes_end):
            self._poller.call_soon(partial(self._guard, self._pump))

    def _take(self, data: memoryview) -> None:
        self._incoming.write(data)
        self._pump()

    def _take_eof(self) -> None:
        if self._finishing:  # nothing is decrypted any more, and the end is the end with or without a goodbye
            super()._take_eof()
            return
        self._incoming.write_eof()
        self._pump()

    def _pump(self) -> None:
        """Go on with the handshake, or decrypt what was received, as long as it is wanted."""
        if self._hands_shaken:
            while self.reading and not self._finishing and self._decrypt():
                pass
        elif not self.ended:
            self._shake_hands()

    def _shake_hands(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._send_sealed()
        except (ssl.SSLError, ssl.CertificateError) as exc:
            self._send_sealed()  # the alert that tells the peer why
            self._close(without_frames(exc))
        else:
            self._hands_shaken = True
            self._send_sealed()
            self.pause()
            self._over.set()

    def _decrypt(self) -> bool:
        """Hand one buffer full of decrypted bytes to the receiver; return whether there may be more."""
        buffer, size, more, ended = self._poller.buffer[: self.read_size], 0, True, False
        try:
            while size < len(buffer):
                count: Any = self._tls.read(len(buffer) - size, buffer[size:])  # typeshed knows bytes only
                if not count:
                    ended = True
                    break
                size += count
        except ssl.SSLWantReadError:
            more = False
        except ssl.SSLEOFError:  # RFC 8446 §6.1: without the goodbye the end may be an attacker's
            ended = True
        except ssl.SSLError as exc:
            self._send_sealed()
            self._close(without_frames(exc))
            return False
        self._send_sealed()  # an answer of TLS itself, to a key update for example
        assert self.receiver is not None
        self._owes_end = ended and size > 0  # the receiver may first want to pause, or be another one then
        if size:
            self.receiver.data_received(buffer[:size])
        elif ended and not self._told_end:
            self._told_end = True
            super()._take_eof()
        return more and (size > 0 or not ended)

    # --- sending ----------------------------------------------------------------------------------

    def write_from(self, *parts: bytes | memoryview) -> None:
        """Take bytes like :meth:`write`, in a copy: what is encrypted must not change meanwhile."""
        self.write(b"".join(parts))

    def _send(self, data: bytes | memoryview) -> None:
        if len(data) > WHOLE:
            self._send_frames(memoryview(data))
        else:
            self._seal_and_send(data)

    def _send_frames(self, rest: memoryview) -> None:
        """Send one frame after the other: what is sealed cannot be parted, and nothing go between."""
        while rest and not self._rest and self._error is None:
            end = end_of_frame(rest, 1)
            self._seal_and_send(rest[:end])
            rest = rest[end:]
        if rest and self._error is None:
            self._keep(rest, 0)

    def _seal_and_send(self, data: bytes | memoryview) -> None:
        try:
            sealed = self._tls.write(data)
            while sealed < len(data):
                sealed += self._tls.write(memoryview(data)[sealed:])
        except ssl.SSLError as exc:
            self._close(without_frames(exc))
            return
        super()._send(self._outgoing.read())

    def _part_entry(self) -> None:
        """Leave it as it is: what the kernel did not take is sealed, and ends with a frame."""

    def _send_sealed(self) -> None:
        """Send what TLS itself has to say."""
        if self._outgoing.pending:
            self._send_behind(self._outgoing.read())

    def _finish_sending(self) -> None:
        if not self._said_goodbye:
            self._said_goodbye = True
            with contextlib.suppress(ssl.SSLError):  # it wants to read the peer's goodbye; we do not wait
                self._tls.unwrap()
            self._send_sealed()
        if not self._rest:
            super()._finish_sending()

    def _tell_lost(self) -> None:
        self._over.set()
        super()._tell_lost()

    # --- what it is -------------------------------------------------------------------------------

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """AnyIO's typed attributes of a socket and of TLS."""
        tls = self._tls
        return {
            **super().extra_attributes,
            TLSAttribute.alpn_protocol: tls.selected_alpn_protocol,
            TLSAttribute.cipher: tls.cipher,
            TLSAttribute.peer_certificate: lambda: tls.getpeercert(binary_form=False),
            TLSAttribute.peer_certificate_binary: lambda: tls.getpeercert(binary_form=True),
            TLSAttribute.server_side: lambda: tls.server_side,
            TLSAttribute.shared_ciphers: tls.shared_ciphers,
            TLSAttribute.ssl_object: lambda: tls,
            TLSAttribute.standard_compatible: lambda: False,
            TLSAttribute.tls_version: tls.version,
        }
