"""RFC 7692, permessage-deflate: the parameters, the compressor and the bounded inflater.

A server answers an offer with :func:`negotiate`; a client makes one with :func:`offer` and checks the
answer with :func:`accept`. Both get :class:`Parameters`, from which :func:`build_codec` makes the two
halves that a connection needs: a :class:`Deflater` for what it sends and an :class:`Inflater` for its
``MessageReader``. Neither takes memory before the first compressed message.

What comes out of :class:`Inflater` is bounded before memory is taken for it. Compression has one more
danger, which no limit cures: who can mix guesses into a message beside a secret, and sees how long the
frames are, can find the secret out (the CRIME attack; §8). Such a message has to be sent uncompressed.
"""

from __future__ import annotations

import re
import zlib
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, Literal, NamedTuple

from .events import CloseCode
from .exceptions import InvalidResponse, RemoteProtocolError
from .handshake import Extension
from .http11 import shown

NAME = "permessage-deflate"

_FLAGS = frozenset({"server_no_context_takeover", "client_no_context_takeover"})
_WINDOW_BITS = frozenset({"server_max_window_bits", "client_max_window_bits"})
_window_bits = re.compile(r"[89]|1[0-5]")  # §7.1.2: "a decimal integer value without leading zeroes"

_TAIL = b"\x00\x00\xff\xff"  # the end of an empty block, which a sender leaves out (§7.2.1)
_EMPTY = b"\x00"  # an empty message: the start of that block (§7.2.3.6)
_LAST_BLOCK = b"\x03\x00"  # an empty block with BFINAL set, complete in two bytes (RFC 1951 §3.2.3)

# One call to a decompressor takes and gives no more than this. One that overshoots, or takes no notice
# of the limit on its output, still gives at most 1032 times a step of input, the most DEFLATE can.
_INPUT_STEP = 4_096
_OUTPUT_STEP = 65_536

# A block with BFINAL set ends a DEFLATE stream, and what follows needs a decompressor of its own: half a
# microsecond or more for two bytes. A message may end so, and bytes pay for the others, so many each; those
# that were paid and not spent are kept up to this many.
_BYTES_PER_FINAL_BLOCK = 64
_MOST_SAVED = 256 * _BYTES_PER_FINAL_BLOCK


# --- settings ---------------------------------------------------------------------------------------

_MODULES = {"zlib": "zlib", "isal": "isal.isal_zlib"}
_HIGHEST_LEVELS = {"zlib": 9, "isal": 3}


def _load(backend: str) -> Any:
    return import_module(_MODULES[backend])


@dataclass(frozen=True, kw_only=True)
class Compression:
    """How messages are compressed, and what an end asks of its peer (RFC 7692 §7.1).

    A context kept from one message to the next makes small, similar messages several times smaller, and
    takes memory until it is given up. What this end keeps to compress with is bounded for the whole
    process by *contexts*; what it keeps to inflate with is not its own to give up. So by default servers
    keep a context and clients do not: a server holds nothing for an idle connection but the contexts that
    it bounds itself, 38 KiB each. ``docs/compression.md`` has the figures.

    :ivar server_max_window_bits: the server compresses with a window of at most 2 to this power bytes,
        9 to 15
    :ivar client_max_window_bits: the same of the client; a client that does not offer to limit its
        window keeps to 15
    :ivar server_no_context_takeover: the server keeps no context between messages
    :ivar client_no_context_takeover: the client keeps no context between messages
    :ivar contexts: how many connections of a process, among those with these settings, keep a context
        to compress with; of more, the one that sent least recently starts afresh, which it may: no
        message has to refer to those before it
    :ivar level: 0 for the fastest to 9 for the smallest, -1 for what the backend takes for balanced
    :ivar memory_level: the compressor's memory, 1 for the least to 9 for the fastest
    :ivar threshold: bytes below which a message is sent uncompressed. Under 64 a message on its own
        does not get smaller, and a context saves less than the headers of the packet that carries it.
    :ivar backend: ``"isal"`` compresses with the package of that name: up to ten times faster at 64 KiB,
        no faster under 200 bytes, for 100 to 360 KiB of memory. Its levels are 0 to 3.
    """

    server_max_window_bits: int = 12
    client_max_window_bits: int = 12
    server_no_context_takeover: bool = False
    client_no_context_takeover: bool = True
    contexts: int = 64
    level: int = -1
    memory_level: int = 5
    threshold: int = 64
    backend: Literal["zlib", "isal"] = "zlib"

    def __post_init__(self) -> None:
        if self.backend not in _MODULES:
            raise ValueError(f'backend: "zlib" or "isal" is needed, not {self.backend!r}')
        try:
            _load(self.backend)
        except ModuleNotFoundError as exc:
            raise ValueError(f"backend: {self.backend} is not installed; pip install anyio-ws[isal]") from exc
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}: True or False is needed, not {getattr(self, name)!r}")
        for name in _WINDOW_BITS:
            self._check(name, 9, 15)
        self._check("contexts", 1, 2**62)
        self._check("level", -1, _HIGHEST_LEVELS[self.backend])
        self._check("memory_level", 1, 9)
        self._check("threshold", 0, 2**62)

    def _check(self, name: str, least: int, most: int) -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError(f"{name}: a whole number from {least} to {most} is needed, not {value!r}")


# --- negotiation: §5, §7.1 --------------------------------------------------------------------------


class Parameters(NamedTuple):
    """What was negotiated (§7.1).

    :ivar server_no_context_takeover: the server starts each message with an empty window
    :ivar client_no_context_takeover: the client starts each message with an empty window
    :ivar server_max_window_bits: the server's window is at most 2 to this power bytes, 8 to 15
    :ivar client_max_window_bits: the client's window is at most 2 to this power bytes, 8 to 15
    """

    server_no_context_takeover: bool = False
    client_no_context_takeover: bool = False
    server_max_window_bits: int = 15
    client_max_window_bits: int = 15


def negotiate(offers: Iterable[Extension], settings: Compression | None) -> tuple[Parameters, str] | None:
    """Answer a client's offers: take the first that is correct (§5, §7.1).

    :param offers: what ``Sec-WebSocket-Extensions`` of the request says
    :param settings: ``None`` declines them all
    :return: what is negotiated, and the value of ``Sec-WebSocket-Extensions`` for the 101; ``None``
        when messages will not be compressed
    """
    for extension in offers:
        if settings is not None and extension.name == NAME:
            try:
                return _answer(_parse(extension, offered=True), settings)
            except ValueError:  # §7.1: "A server MUST decline an extension negotiation offer"
                continue
    return None


def _answer(asked: dict[str, int], settings: Compression) -> tuple[Parameters, str]:
    # §7.1.2.2: without the client's leave nothing may be said about its window.
    limits_client = "client_max_window_bits" in asked
    parameters = Parameters(
        settings.server_no_context_takeover or "server_no_context_takeover" in asked,
        settings.client_no_context_takeover or "client_no_context_takeover" in asked,
        min(settings.server_max_window_bits, asked.get("server_max_window_bits", 15)),
        min(settings.client_max_window_bits, asked["client_max_window_bits"]) if limits_client else 15,
    )
    # §7.1.2.1: a limit that was asked for must be confirmed; a lower one may be told unasked.
    limits_server = "server_max_window_bits" in asked or parameters.server_max_window_bits < 15
    said = parameters._asdict() | {
        "server_max_window_bits": limits_server and parameters.server_max_window_bits,
        "client_max_window_bits": limits_client and parameters.client_max_window_bits,
    }
    return parameters, _build(said)


def offer(settings: Compression) -> str:
    """Build a client's offer, the value of ``Sec-WebSocket-Extensions`` (§7.1).

    It always allows the server to limit the client's window.
    """
    server_bits, client_bits = settings.server_max_window_bits, settings.client_max_window_bits
    return _build(
        {
            "server_no_context_takeover": settings.server_no_context_takeover,
            "client_no_context_takeover": settings.client_no_context_takeover,
            "server_max_window_bits": server_bits < 15 and server_bits,
            "client_max_window_bits": client_bits == 15 or client_bits,
        }
    )


def accept(extensions: Iterable[Extension], settings: Compression | None) -> Parameters | None:
    """Check a server's answer to what :func:`offer` built from the same settings (§5, §7.1).

    Where the server passes over a wish of the offer its window may be larger than we asked for, or be
    kept; that costs memory and breaks nothing.

    :param extensions: what ``Sec-WebSocket-Extensions`` of the 101 says
    :param settings: ``None`` when nothing was offered
    :return: what is negotiated; ``None`` when messages will not be compressed
    :raises InvalidResponse: when it names anything that was not offered, or says it wrongly
    """
    answers = list(extensions)
    if not answers:
        return None
    if settings is None or len(answers) > 1 or answers[0].name != NAME:
        raise InvalidResponse("the server chose an extension that we did not offer, or one twice")
    try:
        said = _parse(answers[0], offered=False)
    except ValueError as exc:
        raise InvalidResponse(f"the server's answer to our offer is invalid: {exc}") from exc
    if said.get("server_max_window_bits", 0) > settings.server_max_window_bits:
        raise InvalidResponse("the server answered with a larger server_max_window_bits than we offered")
    return Parameters(
        "server_no_context_takeover" in said,
        # §7.1.1.2, §7.1.2.2: what a client offers for its own side, it keeps to in any case.
        settings.client_no_context_takeover or "client_no_context_takeover" in said,
        said.get("server_max_window_bits", 15),
        # §7.1.2.2: "the server may either ignore this value" of our own window and allow a larger one.
        min(said.get("client_max_window_bits", 15), settings.client_max_window_bits),
    )


def _parse(extension: Extension, *, offered: bool) -> dict[str, int]:
    """Read the parameters of an offer or of an answer (§7.1).

    :raises ValueError: when one is unknown, has an invalid value, or is there twice
    """
    params: dict[str, int] = {}
    for name, value in extension.params:
        if name in params:
            raise ValueError(f"{name} is there twice")
        if name in _FLAGS and value is None:
            params[name] = True
        elif name in _WINDOW_BITS and value is not None and _window_bits.fullmatch(value):
            params[name] = int(value)
        elif name == "client_max_window_bits" and value is None and offered:
            params[name] = 15  # §7.1.2.2: only a client may leave the value to the server
        else:
            raise ValueError(f"{shown(name)} is unknown, or {shown(value)} is no value for it")
    return params


def _build(params: dict[str, int]) -> str:
    said = [name if value is True else f"{name}={value}" for name, value in params.items() if value]
    return "; ".join([NAME, *said])


# --- the two directions: §7.2 -----------------------------------------------------------------------


def build_codec(parameters: Parameters, settings: Compression, *, client: bool) -> tuple[Deflater, Inflater]:
    """Make what one end of a connection compresses and inflates with.

    :param client: whether it is the client's end
    """
    by_server = not parameters.server_no_context_takeover, parameters.server_max_window_bits
    by_client = not parameters.client_no_context_takeover, parameters.client_max_window_bits
    sent, received = (by_client, by_server) if client else (by_server, by_client)
    # To see that a message with a context is complete takes a copy, which isal cannot make; and it
    # would hold 86 KiB for each connection.
    backend = zlib if received[0] else _load(settings.backend)
    return Deflater(*sent, settings), Inflater(*received, backend)


class _Contexts:
    """The deflaters that keep a context, the least recently used first; beyond a limit that one forgets it.

    Connections of several threads may meet here: each step is one operation of the dictionary, and a
    deflater that loses its context while it compresses has only taken one message more out of it.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: OrderedDict[Deflater, None] = OrderedDict()

    def keep(self, deflater: Deflater) -> None:
        """Note that a deflater was used, and that it keeps a context."""
        self._kept.pop(deflater, None)
        self._kept[deflater] = None
        if len(self._kept) > self._limit:
            self._kept.popitem(last=False)[0].reset()

    def drop(self, deflater: Deflater) -> None:
        """Note that a deflater keeps no context any more."""
        self._kept.pop(deflater, None)


@cache
def _contexts_of(settings: Compression) -> _Contexts:
    """Return what all connections of the process with these settings share."""
    return _Contexts(settings.contexts)


class Deflater:
    """Compresses the messages that one end sends (§7.2.1).

    :param takeover: whether the context is kept from one message to the next
    :param window_bits: the window is at most 2 to this power bytes, 8 to 15
    :param settings: level, memory, backend, and how many contexts there may be

    :ivar kind: the same for deflaters that compress a message on its own to the same bytes
    """

    __slots__ = ("_compressor", "_contexts", "_settings", "_takeover", "_window_bits", "kind")

    def __init__(self, takeover: bool, window_bits: int, settings: Compression) -> None:
        self._contexts = _contexts_of(settings)
        self.kind: tuple[_Contexts, int] = self._contexts, window_bits
        self._takeover = takeover
        self._window_bits = window_bits
        self._settings = settings
        self._compressor: zlib._Compress | None = None

    def shrink(self, data: bytes) -> bytes | None:
        """Compress a message if that is worth it.

        :param data: the message
        :return: the payload of the frame, whose RSV1 must be set; it has to be sent, or :meth:`reset`
            to be called. ``None`` when the message is better sent as it is.
        """
        if len(data) < self._settings.threshold:
            return None
        compressed = self.compress(data)
        # With a context what was compressed must be sent: later messages may refer to it.
        return compressed if self._takeover or len(compressed) < len(data) else None

    def shrink_alone(self, data: bytes) -> bytes | None:
        """Compress a message as any deflater of this :attr:`kind` would, were it the first.

        After one that came from elsewhere, :meth:`reset` has to be called: the peer's window has moved.
        """
        return Deflater(False, self._window_bits, self._settings).shrink(data)

    def compress(self, data: bytes, *, fin: bool = True) -> bytes:
        """Compress a message, or one fragment of it.

        A fragment comes out whole, so that it can be sent at once.

        :param data: the message, or the next piece of it
        :param fin: whether this is the end of the message
        :return: the payload of the frame, whose message needs RSV1 set; it has to be sent, or
            :meth:`reset` to be called
        """
        compressed = self._compress(data) if data else b""
        if not fin:
            return compressed
        if not self._takeover:
            self._compressor = None
        elif self._compressor is not None:
            self._contexts.keep(self)
        return compressed[: -len(_TAIL)] or _EMPTY

    def _compress(self, data: bytes) -> bytes:
        try:
            compressor = self._compressor or _build_compressor(self._window_bits, self._settings)
            compressed = compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH)
        except BaseException:
            self.reset()
            raise
        self._compressor = compressor
        return compressed

    def reset(self) -> None:
        """Forget the context: what was compressed last is not going to be sent, or nothing more is.

        What comes next refers to nothing that the peer might lack.
        """
        self._compressor = None
        self._contexts.drop(self)


def _build_compressor(window_bits: int, settings: Compression) -> zlib._Compress:
    options = {"wbits": -max(window_bits, 9), "memLevel": settings.memory_level}
    if settings.level >= 0:
        options["level"] = settings.level
    backend = _load(settings.backend)
    if window_bits == 8:
        # No compressor has a window of 256 bytes; but run lengths refer to the byte before only.
        backend, options["strategy"] = zlib, zlib.Z_RLE
    compressor: zlib._Compress = backend.compressobj(**options)
    return compressor


class Inflater:
    """Inflates the messages that one end receives (§7.2.2), for a ``MessageReader``.

    After an error it must not be used any more; the connection fails.

    :param takeover: whether the peer keeps its context from one message to the next
    :param window_bits: the peer's window is at most 2 to this power bytes, 8 to 15
    :param backend: ``zlib``, or a module with the same ``decompressobj`` and ``error``
    """

    __slots__ = ("_backend", "_decompressor", "_saved", "_takeover", "_window_bits")

    def __init__(self, takeover: bool, window_bits: int, backend: Any = zlib) -> None:
        self._takeover = takeover
        self._window_bits = max(window_bits, 9)  # what a peer may use that cannot have 8
        self._backend = backend
        self._saved = _MOST_SAVED
        self._decompressor: zlib._Decompress | None = None

    def inflate(self, data: bytes, max_length: int) -> bytes:
        """Inflate one piece of a message; empty pieces and any cuts are allowed.

        :param data: the next bytes of the message's payload
        :param max_length: how many bytes may come out, 0 or more
        :return: the bytes; when there are more of them than that, the message is too long and must be
            refused, and nothing more inflated
        :raises RemoteProtocolError: 1007 when the data is not DEFLATE's, 1008 when it consists of too many
            streams for its size
        """
        self._saved += len(data)
        inflated: list[bytes] = []
        room = max_length
        for start in range(0, len(data), _INPUT_STEP):
            rest = data[start : start + _INPUT_STEP]
            more = True
            while more:
                if self._decompressor is None:
                    self._decompressor = self._backend.decompressobj(wbits=-self._window_bits)
                step = min(room + 1, _OUTPUT_STEP)
                piece = self._decompress(self._decompressor, rest, step)
                room -= len(piece)
                inflated.append(piece)
                if room < 0:
                    return b"".join(inflated)
                if self._decompressor.eof:
                    # §7.2.3.4: blocks with BFINAL set are valid, and others may follow them.
                    rest = self._decompressor.unused_data
                    self._decompressor = None
                    self._pay_for_final_block()
                    more = bool(rest)
                else:
                    rest = self._decompressor.unconsumed_tail
                    more = bool(rest) or len(piece) >= step
        return b"".join(inflated)

    def finish(self, max_length: int) -> bytes:
        """Check that a message is complete, and be ready for the next.

        :param max_length: how many bytes may come out; none will, as a complete message has come out
            already
        :raises RemoteProtocolError: 1007 when the message breaks off before the empty block at its end
        """
        surplus = self.inflate(_TAIL, max_length)
        if surplus or not self._is_between_blocks():
            raise RemoteProtocolError(
                CloseCode.INVALID_FRAME_PAYLOAD_DATA, "a compressed message is not complete"
            )
        if not self._takeover:
            self._decompressor = None
        self._saved = min(self._saved + _BYTES_PER_FINAL_BLOCK, _MOST_SAVED)
        return surplus

    def _pay_for_final_block(self) -> None:
        self._saved -= _BYTES_PER_FINAL_BLOCK
        if self._saved < 0:
            raise RemoteProtocolError(
                CloseCode.POLICY_VIOLATION, "compressed messages have too many final blocks for their size"
            )

    def _is_between_blocks(self) -> bool:
        """Tell whether the last block may begin here: that spends a decompressor, so a copy of one."""
        if self._decompressor is None:
            return True
        probe = self._decompressor.copy() if self._takeover else self._decompressor
        surplus = self._decompress(probe, _LAST_BLOCK, 1)
        return probe.eof and not surplus and not probe.unused_data

    def _decompress(self, decompressor: zlib._Decompress, data: bytes, max_length: int) -> bytes:
        try:
            return decompressor.decompress(data, max_length)
        except self._backend.error as exc:
            raise RemoteProtocolError(
                CloseCode.INVALID_FRAME_PAYLOAD_DATA, "a compressed message is not valid DEFLATE data"
            ) from exc
