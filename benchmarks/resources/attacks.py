"""The attacks: what a connection sends, of which size, and whether it reads what comes back.

Each is built for a size *n*; the one for *2n* may cost at most 2.3 times as much. An attack has the id of its
row in ``docs/security/attacks.md``.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

from anyio_ws.testing import build_frame

MAX_MESSAGE_SIZE = 65_536  # of every server that is attacked
_KEY = b"mask"
_CONTINUATION, _TEXT, _BINARY, _PING, _PONG = 0x0, 0x1, 0x2, 0x9, 0xA
_CLOSE = build_frame(0x8, b"\x03\xe8", key=_KEY)


@dataclass(frozen=True)
class Plan:
    """What the attackers do.

    :ivar data: what each connection sends
    :ivar connections: how many there are at one time
    :ivar times: how many each of them makes, one after the other
    :ivar is_open: do the opening handshake first; otherwise *data* begins with the first byte
    :ivar path: where to
    :ivar offers: offer compression
    :ivar piece: bytes of one send; 0 for as many as the socket takes
    :ivar reads: read what comes back
    :ivar ends: the server ends the connection in the end; otherwise it stays until the attack is over
    """

    data: bytes
    connections: int = 8
    times: int = 1
    is_open: bool = True
    path: str = "/"
    offers: bool = False
    piece: int = 0
    reads: bool = True
    ends: bool = True


@dataclass(frozen=True)
class Attack:
    """One line of the table.

    :ivar name: how ``--only`` calls it
    :ivar rows: the rows of the security table that it belongs to
    :ivar title: what the peers do
    :ivar unit: what *n* counts
    :ivar build: makes the plan for a size
    """

    name: str
    rows: tuple[str, ...]
    title: str
    unit: str
    n: int
    build: Callable[[int], Plan]


def request(path: str = "/", *lines: str, end: str = "\r\n") -> bytes:
    """Build an opening handshake, with further header lines."""
    head = [
        f"GET {path} HTTP/1.1",
        "Host: localhost",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
        *lines,
    ]
    return ("\r\n".join(head) + "\r\n" + end).encode("latin-1")


def _frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0) -> bytes:
    return build_frame(opcode, payload, fin=fin, rsv=rsv, key=_KEY)


def _deflated(data: bytes) -> bytes:
    compressor = zlib.compressobj(9, wbits=-15)
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH)).removesuffix(b"\0\0\xff\xff")


# --- the opening handshake -------------------------------------------------------------------------------


def _silent(n: int) -> Plan:
    return Plan(request(end="")[:100], connections=n, is_open=False, ends=False)


def _dribbled_head(n: int) -> Plan:
    return Plan(request("/", "X: " + "x" * (n - 300)) + _CLOSE, is_open=False, piece=1)


def _endless_head(n: int) -> Plan:
    return Plan(request(end="X: ") + b"x" * n, is_open=False)


def _many_headers(n: int) -> Plan:
    lines = [f"X-{number}: y" for number in range(n)]
    return Plan(request("/", *lines) + _CLOSE, times=50, is_open=False)


def _open_quote(n: int) -> Plan:
    return Plan(
        request("/", 'Sec-WebSocket-Extensions: x; y="' + "\\c" * (n // 2)) + _CLOSE, times=50, is_open=False
    )


def _many_offers(n: int) -> Plan:
    offers = ",".join(["permessage-deflate;a"] * (n // 21))
    return Plan(request("/", f"Sec-WebSocket-Extensions: {offers}") + _CLOSE, times=50, is_open=False)


def _early_data(n: int) -> Plan:
    return Plan(request() + _frame(_BINARY, bytes(1_000)) * (n // 1_008) + _CLOSE, is_open=False)


def _bad_requests(n: int) -> Plan:
    return Plan(request("/ \x01\x02"), times=n, is_open=False)


def _come_and_go(n: int) -> Plan:
    return Plan(_CLOSE, times=n)


def _crowd(n: int) -> Plan:
    return Plan(b"", connections=n, ends=False)


# --- frames -----------------------------------------------------------------------------------------------


def _fragments(n: int, size: int, between: bytes = b"") -> bytes:
    part = _frame(_CONTINUATION, b"x" * size, fin=False) + between
    return _frame(_TEXT, b"x" * size, fin=False) + part * (n - 1)


def _fragments_and_pings(n: int) -> Plan:
    data = _fragments(n, 64, _frame(_PING, b"ping") * 4)
    return Plan(data + _frame(_CONTINUATION) + _CLOSE)


def _empty_fragments(n: int) -> Plan:
    return Plan(_fragments(n, 0) + _CLOSE)


def _one_byte_fragments(n: int) -> Plan:
    return Plan(_fragments(n, 1) + _CLOSE)


def _unfinished_fragments(n: int) -> Plan:
    return Plan(_fragments(n, 64), connections=32, ends=False)


def _announced(n: int) -> Plan:
    header = build_frame(_BINARY, b"", key=_KEY, length=MAX_MESSAGE_SIZE, length_form=64)
    return Plan(header, connections=n, ends=False)


def _stalled(n: int) -> Plan:
    return Plan(_frame(_BINARY, bytes(MAX_MESSAGE_SIZE))[:-100], connections=n, ends=False)


def _too_long(n: int) -> Plan:
    return Plan(_frame(_BINARY, bytes(60_000), fin=False) * (n // 60_000) + _CLOSE)


def _dribbled_frame(n: int) -> Plan:
    return Plan(_frame(_BINARY, bytes(n)) + _CLOSE, piece=1)


def _violation_and_backlog(n: int) -> Plan:
    return Plan(_frame(0x3) + bytes(n))


# --- compression ------------------------------------------------------------------------------------------


def _bombs(n: int) -> Plan:
    return Plan(_frame(_BINARY, _BOMB, rsv=4), times=n, offers=True)


def _small_bombs(n: int) -> Plan:
    return Plan(_frame(_BINARY, _SMALL_BOMB, rsv=4) * n + _CLOSE, offers=True)


def _bomb_in_fragments(n: int) -> Plan:
    half = len(_SMALL_BOMB) // 2
    first = _frame(_BINARY, _SMALL_BOMB[:half], fin=False, rsv=4)
    return Plan((first + _frame(_CONTINUATION, _SMALL_BOMB[half:])) * n + _CLOSE, offers=True)


def _final_blocks(n: int) -> Plan:
    return Plan(_frame(_BINARY, b"\x03\x00" * n + b"\0", rsv=4) + _CLOSE, offers=True)


def _contexts(n: int) -> Plan:
    return Plan(_frame(_TEXT, _deflated(b"0123456789" * 200), rsv=4), connections=n, offers=True, ends=False)


_BOMB = _deflated(bytes(32 * 2**20))
_SMALL_BOMB = _deflated(bytes(MAX_MESSAGE_SIZE))


# --- resources --------------------------------------------------------------------------------------------


def _never_reads(n: int) -> Plan:
    return Plan(_frame(_BINARY, bytes(60_000)) * n, reads=False, ends=False)


def _never_reads_small(n: int) -> Plan:
    return Plan(_frame(_BINARY, bytes(1)) * n, reads=False, ends=False)


def _broadcast(n: int) -> Plan:
    return Plan(_frame(_TEXT, b"x") * n, path="/tell", reads=False, ends=False)


def _slow_handler(n: int) -> Plan:
    return Plan(_frame(_BINARY, bytes(60_000)) * n, path="/sleep", ends=False)


def _slow_handler_small(n: int) -> Plan:
    return Plan(_frame(_TEXT, b"x") * n, path="/sleep", ends=False)


def _pings_unread(n: int) -> Plan:
    return Plan(_frame(_PING, bytes(125)) * n, reads=False, ends=False)


def _pings(n: int) -> Plan:
    return Plan(_frame(_PING, bytes(125)) * n + _CLOSE)


def _pongs(n: int) -> Plan:
    return Plan(_frame(_PONG, bytes(125)) * n + _CLOSE)


def _messages(n: int) -> Plan:
    return Plan(_frame(_TEXT, b"x") * n + _CLOSE)


def _large_texts(n: int) -> Plan:
    return Plan(_frame(_TEXT, "ж€😀".encode() * (MAX_MESSAGE_SIZE // 9)) * n + _CLOSE)


ATTACKS = (
    Attack("silent", ("H01", "H02"), "Half a request, and then nothing", "connections", 200, _silent),
    Attack("dribbled-head", ("H17",), "A request, one byte in a segment", "bytes", 3_500, _dribbled_head),
    Attack("endless-head", ("H17",), "A header without end", "bytes", 500_000, _endless_head),
    Attack("many-headers", ("H18", "H26"), "Headers, 400 requests", "headers", 45, _many_headers),
    Attack("open-quote", ("H25",), "A quote that is never closed, 400 requests", "bytes", 3_500, _open_quote),
    Attack("many-offers", ("H25",), "Offers of extensions, 400 requests", "bytes", 3_500, _many_offers),
    Attack("early-data", ("H22",), "Messages right behind the request", "bytes", 1_000_000, _early_data),
    Attack("bad-requests", ("H19", "L03"), "Malformed requests from 8 peers", "requests", 150, _bad_requests),
    Attack("come-and-go", ("R07", "O10"), "Open and close, 8 peers", "connections", 150, _come_and_go),
    Attack("crowd", ("R07", "C10"), "Connections that say nothing", "connections", 200, _crowd),
    Attack(
        "fragments-pings", ("F16", "F12"), "Fragments with pings between", "fragments", 500,
        _fragments_and_pings,
    ),
    Attack("announced", ("F17",), "A header of a 64 KiB frame, then nothing", "connections", 100, _announced),
    Attack("stalled", ("F17", "R11"), "All but the end of 64 KiB", "connections", 100, _stalled),
    Attack("too-long", ("F18",), "Fragments beyond the limit", "bytes", 1_000_000, _too_long),
    Attack("empty-fragments", ("F19",), "Empty fragments without end", "frames", 50_000, _empty_fragments),
    Attack("one-byte-fragments", ("F20",), "Fragments of one byte", "frames", 30_000, _one_byte_fragments),
    Attack(
        "unfinished", ("F20",), "Fragments of 64 bytes, never the last", "frames", 500, _unfinished_fragments
    ),
    Attack("dribbled-frame", ("F21",), "A frame, one byte in a segment", "bytes", 3_500, _dribbled_frame),
    Attack("backlog", ("F27",), "A violation, and unread bytes behind it", "bytes", 500_000,
           _violation_and_backlog),
    Attack("bombs", ("C04",), "32 MiB in 32 KB, from 8 peers", "connections", 20, _bombs),
    Attack("small-bombs", ("C04",), "64 KiB in 90 bytes", "messages", 500, _small_bombs),
    Attack("bomb-fragments", ("C04",), "64 KiB in two fragments of 45 bytes", "messages", 500,
           _bomb_in_fragments),
    Attack("final-blocks", ("C06",), "A message of final blocks", "blocks", 15_000, _final_blocks),
    Attack("contexts", ("C10",), "One compressed message each", "connections", 100, _contexts),
    Attack("never-reads", ("R01",), "Echoes of 60 KB that are not read", "messages", 200, _never_reads),
    Attack("never-reads-small", ("R01", "R08"), "Echoes of a byte that are not read", "messages", 400_000,
           _never_reads_small),
    Attack("broadcast", ("R02",), "Broadcasts of 32 KiB that are not read", "messages", 100, _broadcast),
    Attack("slow-handler", ("R03",), "Messages of 60 KB to a handler that sleeps", "messages", 200,
           _slow_handler),
    Attack("slow-handler-small", ("R03", "R08"), "Messages of a byte to a handler that sleeps", "messages",
           400_000, _slow_handler_small),
    Attack("pings-unread", ("R04",), "Pings; pongs are not read", "pings", 100_000, _pings_unread),
    Attack("pings", ("R05",), "Pings; pongs are read", "pings", 4_500, _pings),
    Attack("pongs", ("R06",), "Pongs that nobody asked for", "pongs", 4_500, _pongs),
    Attack("messages", ("R08", "R12"), "Messages of one byte", "messages", 10_000, _messages),
    Attack("large-texts", ("R12", "F13"), "Texts of 64 KB", "messages", 100, _large_texts),
)  # fmt: skip
