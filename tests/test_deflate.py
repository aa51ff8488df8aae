"""RFC 7692, permessage-deflate: what is negotiated, and messages through both directions.

The oracle is ``zlib``, used directly as §7.2 describes it. Whatever inflates is tested with every
backend that is installed, and with one that takes no notice of the limit on its output.
"""

from __future__ import annotations

import itertools
import random
import sys
import tracemalloc
import zlib
from collections.abc import Iterator
from dataclasses import FrozenInstanceError
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from anyio_ws.deflate import (
    Compression,
    Deflater,
    Inflater,
    Parameters,
    accept,
    build_codec,
    negotiate,
    offer,
)
from anyio_ws.events import CloseCode, Message, MessageType
from anyio_ws.exceptions import InvalidResponse, RemoteProtocolError
from anyio_ws.framing import MessageReader, frame
from anyio_ws.handshake import Extension, parse_extensions
from anyio_ws.http11 import Headers

TAIL = b"\x00\x00\xff\xff"
MAX = 65_536
KIB, MIB = 1_024, 1_048_576
PROPERTY = settings(deadline=None, derandomize=True, database=None)
INVALID, TOO_BIG = CloseCode.INVALID_FRAME_PAYLOAD_DATA, CloseCode.MESSAGE_TOO_BIG


class Boundless:
    """A decompressor that takes no notice of the limit on its output."""

    def __init__(self, wbits: int) -> None:
        self._inner = zlib.decompressobj(wbits)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def decompress(self, data: bytes, max_length: int = 0, /) -> bytes:
        return self._inner.decompress(data)


class Counting(Boundless):
    """A decompressor of zlib's that notes the sizes of what it takes and gives."""

    taken: list[int]
    given: list[int]

    def decompress(self, data: bytes, max_length: int = 0, /) -> bytes:
        piece = self._inner.decompress(data, max_length)
        self.taken.append(len(data))
        self.given.append(len(piece))
        return piece


boundless = SimpleNamespace(decompressobj=Boundless, error=zlib.error)
isal_zlib = import_module("isal.isal_zlib") if find_spec("isal") else None


def inflating_backends() -> Iterator[Any]:
    """Yield what can inflate, and whether it has to keep a context, which isal is not asked to."""
    for takeover, what in [(True, "takeover"), (False, "no takeover")]:
        yield pytest.param(zlib, takeover, id=f"zlib, {what}")
        yield pytest.param(boundless, takeover, id=f"boundless, {what}")
    if isal_zlib is not None:
        yield pytest.param(isal_zlib, False, id="isal, no takeover")


inflating = pytest.mark.parametrize(("backend", "takeover"), [*inflating_backends()])
kept = pytest.mark.parametrize("takeover", [True, False], ids=["takeover", "no takeover"])


@pytest.fixture
def isal(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Stand in for the package isal; the list notes with which options it was asked to compress."""
    asked: list[dict[str, Any]] = []

    def compressobj(**options: Any) -> Any:
        asked.append(options)
        return zlib.compressobj(**options)

    module = ModuleType("isal.isal_zlib")
    vars(module).update(compressobj=compressobj, decompressobj=zlib.decompressobj, error=zlib.error)
    monkeypatch.setitem(sys.modules, "isal", ModuleType("isal"))
    monkeypatch.setitem(sys.modules, "isal.isal_zlib", module)
    return asked


def extensions(header: str) -> list[Extension]:
    """Parse a ``Sec-WebSocket-Extensions`` header; none when it is empty."""
    return parse_extensions(Headers([("Sec-WebSocket-Extensions", header)] if header else []))


def keeping(**changes: Any) -> Compression:
    """Return settings with which both ends keep a context, as the RFC has it by default."""
    return Compression(client_no_context_takeover=False, **changes)


def deflate(*pieces: bytes) -> bytes:
    """Compress a message with zlib as §7.2.1 says: flush after each piece, and leave the tail out."""
    compressor = zlib.compressobj(wbits=-15)
    data = b"".join(compressor.compress(piece) + compressor.flush(zlib.Z_SYNC_FLUSH) for piece in pieces)
    return data.removesuffix(TAIL)


def finished(data: bytes) -> bytes:
    """Compress with BFINAL set on the last block (§7.2.3.4)."""
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


def inflate(inflater: Inflater, *pieces: bytes, limit: int = MAX) -> bytes:
    """Inflate a message as a ``MessageReader`` does: the room shrinks as the message grows."""
    message = bytearray()
    for piece in pieces:
        message += inflater.inflate(piece, limit - len(message))
        if len(message) > limit:
            raise RemoteProtocolError(TOO_BIG, "too long")
    message += inflater.finish(limit - len(message))
    return bytes(message)


def failure(inflater: Inflater, *pieces: bytes, limit: int = MAX) -> int:
    """Inflate a message that must fail, and return the close code."""
    with pytest.raises(RemoteProtocolError) as caught:
        inflate(inflater, *pieces, limit=limit)
    return caught.value.code


def inflate_strictly(window_bits: int, *payloads: bytes) -> list[bytes]:
    """Inflate messages with zlib one byte at a time, so that nothing outside the window is within reach."""
    decompressor, messages = zlib.decompressobj(-window_bits), []
    for payload in payloads:
        message, piece, rest = b"", b"", payload + TAIL
        while rest or piece:
            piece = decompressor.decompress(rest, 1)
            message, rest = message + piece, decompressor.unconsumed_tail
        messages.append(message)
    return messages


def cut(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    """Cut data into pieces of these sizes, repeated as often as needed."""
    position = 0
    for size in itertools.cycle([*sizes, len(data) // 8 + 1]):
        yield data[position : position + size]
        position += size
        if position >= len(data):
            return


some_data = st.one_of(
    st.binary(max_size=100),
    st.text("ab {}", max_size=300).map(str.encode),
    st.sampled_from(
        [
            bytes(200_000),  # many steps of output
            random.Random(7).randbytes(20_000),  # many steps of input
            random.Random(8).randbytes(600) * 2,  # a reference that is too far for the small windows
            TAIL * 5,
        ]
    ),
)
some_messages = st.lists(some_data, max_size=6)
some_cuts = st.lists(st.integers(0, 300), max_size=5)
some_levels = [
    st.fixed_dictionaries({"backend": st.just(name), "level": st.integers(-1, highest)})
    for name, highest in [("zlib", 9), *([("isal", 3)] if isal_zlib else [])]
]
some_settings = st.builds(
    lambda level, others: Compression(**level, **others),
    st.one_of(some_levels),
    st.fixed_dictionaries(
        {
            "server_max_window_bits": st.integers(9, 15),
            "client_max_window_bits": st.integers(9, 15),
            "server_no_context_takeover": st.booleans(),
            "client_no_context_takeover": st.booleans(),
            "memory_level": st.integers(1, 9),
        }
    ),
)


# --- settings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *itertools.product(["server_max_window_bits", "client_max_window_bits"], [8, 16, 12.0, True, None]),
        *itertools.product(["server_no_context_takeover", "client_no_context_takeover"], [1, None, "yes"]),
        *itertools.product(["level"], [-2, 10, "6"]),
        *itertools.product(["memory_level"], [0, 10]),
        *itertools.product(["threshold"], [-1, None, 0.5]),
        *itertools.product(["contexts"], [0, True, 1.5]),
        *itertools.product(["backend"], ["gzip", None]),
    ],
)
def test_compression_refuses_a_bad_value_and_names_the_field(field: str, value: object) -> None:
    """A value that cannot work is a ValueError whose text begins with the field's name."""
    with pytest.raises(ValueError, match=rf"^{field}: "):
        Compression(**{field: value})  # type: ignore[arg-type]


def test_compression_is_frozen() -> None:
    """Settings cannot be changed after they were checked."""
    with pytest.raises(FrozenInstanceError):
        Compression().level = 9  # type: ignore[misc]


@pytest.mark.usefixtures("isal")
def test_compression_knows_the_levels_of_isal() -> None:
    """The levels of isal are 0 to 3; one of zlib's above that is refused by name."""
    assert Compression(backend="isal", level=3).level == 3
    with pytest.raises(ValueError, match=r"^level: "):
        Compression(backend="isal", level=4)


def test_compression_refuses_a_backend_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing package is told where the settings are made, not at the first message."""
    monkeypatch.setitem(sys.modules, "isal", None)
    monkeypatch.delitem(sys.modules, "isal.isal_zlib", raising=False)
    with pytest.raises(ValueError, match=r"^backend: isal is not installed; pip install"):
        Compression(backend="isal")


# --- negotiation: the server ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "parameters", "answer"),
    [
        ("", (False, False, 12, 15), "; server_max_window_bits=12"),
        (
            "; client_max_window_bits",
            (False, False, 12, 12),
            "; server_max_window_bits=12; client_max_window_bits=12",
        ),
        (
            "; client_max_window_bits=10; server_max_window_bits=9",
            (False, False, 9, 10),
            "; server_max_window_bits=9; client_max_window_bits=10",
        ),
        (
            "; client_max_window_bits=15; server_max_window_bits=15",
            (False, False, 12, 12),
            "; server_max_window_bits=12; client_max_window_bits=12",
        ),
        (
            "; server_no_context_takeover; client_no_context_takeover",
            (True, True, 12, 15),
            "; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=12",
        ),
        ('; server_max_window_bits="10"', (False, False, 10, 15), "; server_max_window_bits=10"),
    ],
)
def test_negotiate_answers_what_was_offered(
    header: str, parameters: tuple[bool, bool, int, int], answer: str
) -> None:
    """The server confirms each wish, lowers windows to its settings, limits a client only by its leave."""
    assert negotiate(extensions("permessage-deflate" + header), keeping()) == (
        Parameters(*parameters),
        "permessage-deflate" + answer,
    )


@pytest.mark.parametrize(
    ("settings", "parameters", "answer"),
    [
        (keeping(server_max_window_bits=15), (False, False, 15, 15), ""),
        (
            Compression(server_no_context_takeover=True, client_no_context_takeover=True),
            (True, True, 12, 15),
            "; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=12",
        ),
    ],
)
def test_negotiate_tells_the_servers_own_settings(
    settings: Compression, parameters: tuple[bool, bool, int, int], answer: str
) -> None:
    """What the settings ask for is in the answer to an offer that says nothing about it."""
    assert negotiate(extensions("permessage-deflate"), settings) == (
        Parameters(*parameters),
        "permessage-deflate" + answer,
    )


def test_negotiate_confirms_even_the_largest_window() -> None:
    """A limit that was asked for is confirmed even where it limits nothing (§7.1.2.1)."""
    header = "permessage-deflate; server_max_window_bits=15"
    answer = negotiate(extensions(header), keeping(server_max_window_bits=15))
    assert answer == (Parameters(), header)


BAD_PARAMS = [
    *itertools.product(
        ["server_max_window_bits", "client_max_window_bits"],
        ["7", "16", "99", "08", "010", "", "-9", "+9", "9.0", "1_0", "\u0661\u0660", "9\n", "nine"],
    ),
    ("server_max_window_bits", None),
    *itertools.product(
        ["server_no_context_takeover", "client_no_context_takeover"],
        ["", "true", "1", "server_max_window_bits"],
    ),
    ("unknown", None),
    ("Server_max_window_bits", "10"),
    ("window_bits", "10"),
]
DUPLICATES = [
    (("server_no_context_takeover", None), ("server_no_context_takeover", None)),
    (("client_no_context_takeover", None), ("client_no_context_takeover", None)),
    (("server_max_window_bits", "10"), ("server_max_window_bits", "10")),
    (("client_max_window_bits", "10"), ("client_max_window_bits", "11")),
]
BAD_ANSWERS = [*(((name, value),) for name, value in BAD_PARAMS), *DUPLICATES]


@pytest.mark.attack("C08")
@pytest.mark.parametrize("params", BAD_ANSWERS)
def test_negotiate_declines_a_bad_offer_and_takes_the_next(
    params: tuple[tuple[str, str | None], ...],
) -> None:
    """An unknown, invalid or repeated parameter costs its own offer only, and raises nothing (§7.1)."""
    bad, good = Extension("permessage-deflate", params), Extension("permessage-deflate")
    assert negotiate([bad], Compression()) is None
    assert negotiate([bad, good], Compression()) == negotiate([good], Compression())


@pytest.mark.parametrize("header", ["", "permessage-bzip2", "x-webkit-deflate-frame", "Permessage-Deflate"])
def test_negotiate_leaves_other_extensions_alone(header: str) -> None:
    """Without an offer of permessage-deflate nothing is compressed."""
    assert negotiate(extensions(header), Compression()) is None


def test_negotiate_takes_the_first_good_offer() -> None:
    """Offers stand in the client's order of preference (§5.1)."""
    offers = extensions("x-other; a=1, permessage-deflate; server_max_window_bits=10, permessage-deflate")
    assert negotiate(offers, keeping()) == (
        Parameters(server_max_window_bits=10),
        "permessage-deflate; server_max_window_bits=10",
    )


@pytest.mark.attack("C08")
@PROPERTY
@given(
    st.lists(
        st.builds(
            Extension,
            st.sampled_from(["permessage-deflate", "other"]),
            st.lists(
                st.tuples(
                    st.sampled_from([*Parameters._fields, "unknown"]),
                    st.none() | st.integers(0, 20).map(str) | st.text(max_size=3),
                ),
                max_size=5,
            ).map(tuple),
        ),
        max_size=3,
    ),
    some_settings,
)
def test_negotiate_never_says_more_than_the_offer_allows(
    offers: list[Extension], settings: Compression
) -> None:
    """Whatever is offered, nothing is raised, and the answer stays within the offer and the settings."""
    negotiated = negotiate(offers, settings)
    if negotiated is None:
        return
    parameters, answer = negotiated
    (said,) = extensions(answer)
    names = [name for name, _ in said.params]
    asked = [{name for name, _ in o.params} for o in offers if o.name == "permessage-deflate"]
    assert len(set(names)) == len(names)
    assert "client_max_window_bits" not in names or any(
        "client_max_window_bits" in params for params in asked
    )
    assert parameters.server_max_window_bits <= settings.server_max_window_bits
    assert parameters.server_no_context_takeover >= settings.server_no_context_takeover
    assert parameters.client_no_context_takeover >= settings.client_no_context_takeover
    for name, value in said.params:
        assert getattr(parameters, name) == (True if value is None else int(value))


# --- negotiation: the client ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "header"),
    [
        (keeping(), "; server_max_window_bits=12; client_max_window_bits=12"),
        (
            keeping(server_max_window_bits=15, client_max_window_bits=15),
            "; client_max_window_bits",
        ),
        (
            Compression(
                server_no_context_takeover=True, client_no_context_takeover=True, server_max_window_bits=15
            ),
            "; server_no_context_takeover; client_no_context_takeover; client_max_window_bits=12",
        ),
    ],
)
def test_offer_says_what_the_settings_ask_for(settings: Compression, header: str) -> None:
    """The offer has the wishes that differ from the RFC's defaults, and allows to limit our window."""
    assert offer(settings) == "permessage-deflate" + header


@pytest.mark.parametrize(
    ("settings", "header", "parameters"),
    [
        (keeping(), "", (False, False, 15, 12)),
        (keeping(), "; server_max_window_bits=10", (False, False, 10, 12)),
        (keeping(), '; server_max_window_bits="8"', (False, False, 8, 12)),
        (keeping(), "; client_max_window_bits=9", (False, False, 15, 9)),
        (keeping(), "; client_max_window_bits=15", (False, False, 15, 12)),
        (keeping(), "; client_no_context_takeover", (False, True, 15, 12)),
        (keeping(), "; server_no_context_takeover", (True, False, 15, 12)),
        (Compression(client_no_context_takeover=True), "", (False, True, 15, 12)),
        (keeping(server_no_context_takeover=True), "", (False, False, 15, 12)),
        (keeping(server_max_window_bits=15), "; server_max_window_bits=15", (False, False, 15, 12)),
    ],
)
def test_accept_takes_what_the_server_chose(
    settings: Compression, header: str, parameters: tuple[bool, bool, int, int]
) -> None:
    """The server may limit both ends unasked; what it passes over has the RFC's default on its side.

    That it allows us a larger window than we offered changes nothing: ours is as large as we said.
    """
    assert accept(extensions("permessage-deflate" + header), settings) == Parameters(*parameters)


def test_accept_takes_a_servers_silence() -> None:
    """A 101 without the extension means that nothing is compressed (§5)."""
    assert accept([], Compression()) is None


@pytest.mark.attack("C08")
@pytest.mark.parametrize("params", [*BAD_ANSWERS, (("client_max_window_bits", None),)])
def test_accept_refuses_a_bad_answer(params: tuple[tuple[str, str | None], ...]) -> None:
    """An unknown, invalid or repeated parameter in the 101 fails the connection (§7.1)."""
    with pytest.raises(InvalidResponse, match="answer to our offer is invalid"):
        accept([Extension("permessage-deflate", params)], Compression())


@pytest.mark.attack("C08")
@pytest.mark.parametrize(
    "header",
    [
        "permessage-deflate; server_max_window_bits=13",
        "permessage-deflate, permessage-deflate",
        "permessage-deflate, permessage-bzip2",
        "x-webkit-deflate-frame",
    ],
)
def test_accept_refuses_what_was_not_offered(header: str) -> None:
    """Another extension, a second one, or a larger window of the server fails the connection (§5, §7.1.2)."""
    with pytest.raises(InvalidResponse, match="offer"):
        accept(extensions(header), Compression())


@PROPERTY
@given(some_settings, some_settings, some_messages, some_messages)
def test_both_ends_agree_whatever_their_settings(
    client: Compression, server: Compression, upward: list[bytes], downward: list[bytes]
) -> None:
    """The two ends negotiate the same parameters and understand each other's messages."""
    negotiated = negotiate(extensions(offer(client)), server)
    assert negotiated is not None
    parameters, answer = negotiated
    assert accept(extensions(answer), client) == parameters
    client_deflater, client_inflater = build_codec(parameters, client, client=True)
    server_deflater, server_inflater = build_codec(parameters, server, client=False)
    assert [inflate(server_inflater, client_deflater.compress(m), limit=MIB) for m in upward] == upward
    assert [inflate(client_inflater, server_deflater.compress(m), limit=MIB) for m in downward] == downward


@pytest.mark.parametrize("client", [True, False], ids=["client", "server"])
def test_codec_gives_each_side_its_own_parameters(client: bool) -> None:
    """What was negotiated for the server holds for what it sends and the client receives, and for no more."""
    far = random.Random(4).randbytes(1_000)  # a repetition of this is out of reach of 512 bytes
    compressor = zlib.compressobj(wbits=-15)
    once, again = (compressor.compress(far) + compressor.flush(zlib.Z_SYNC_FLUSH) for _ in range(2))
    assert len(again) < 100
    for parameters in (Parameters(server_no_context_takeover=True), Parameters(server_max_window_bits=9)):
        deflater, inflater = build_codec(parameters, Compression(), client=client)
        deflater.compress(far)
        reaches_far = len(deflater.compress(far)) < 100
        inflate(inflater, once.removesuffix(TAIL))
        if client:
            assert reaches_far
            assert failure(inflater, again.removesuffix(TAIL)) == INVALID
        else:
            assert not reaches_far
            assert inflate(inflater, again.removesuffix(TAIL)) == far


# --- the compressor ---------------------------------------------------------------------------------


@PROPERTY
@given(st.integers(8, 15), st.booleans(), some_settings, some_messages)
@pytest.mark.attack("C09")
def test_deflater_keeps_within_the_window(
    window_bits: int, takeover: bool, settings: Compression, messages: list[bytes]
) -> None:
    """A reader with a window of the negotiated size understands every message, even one of 256 bytes."""
    messages = [message[:2_000] for message in messages]
    deflater = Deflater(takeover, window_bits, settings)
    assert inflate_strictly(window_bits, *map(deflater.compress, messages)) == messages


@PROPERTY
@given(st.booleans(), some_settings, st.lists(st.lists(some_data, min_size=1, max_size=4), max_size=4))
@example(False, Compression(), [[b"Hello", b""], [b"Hello"]])
def test_deflater_compresses_fragments(
    takeover: bool, settings: Compression, messages: list[list[bytes]]
) -> None:
    """A message may be compressed in fragments, each of which can be read when it arrives."""
    deflater = Deflater(takeover, 15, settings)
    oracle = None
    for fragments in messages:
        if oracle is None or not takeover:
            oracle = zlib.decompressobj(-15)
        for fragment in fragments[:-1]:
            assert oracle.decompress(deflater.compress(fragment, fin=False)) == fragment
        assert oracle.decompress(deflater.compress(fragments[-1]) + TAIL) == fragments[-1]


@kept
def test_deflater_sends_an_empty_message_as_one_byte(takeover: bool) -> None:
    """An empty message is one zero byte, also after another message (§7.2.3.6)."""
    deflater = Deflater(takeover, 12, Compression())
    assert [deflater.compress(data) for data in (b"", b"x", b"", b"")][0::2] == [b"\x00", b"\x00"]
    assert deflater.compress(b"") == b"\x00"
    assert deflater.compress(b"", fin=False) == b""
    assert deflater.compress(b"") == b"\x00"


def test_deflater_gets_smaller_messages_from_a_kept_context() -> None:
    """With a context a repeated message shrinks; without one it is compressed as if it were the first."""
    data = b'{"id": 5701, "symbol": "AAPL", "price": 181.25, "side": "buy"}'
    with_context, without = Deflater(True, 12, Compression()), Deflater(False, 12, Compression())
    first = with_context.compress(data)
    assert without.compress(data) == without.compress(data) == first
    assert len(with_context.compress(data)) < len(first) // 4


@kept
def test_deflater_leaves_short_messages_alone(takeover: bool) -> None:
    """A message shorter than the threshold is not compressed, one of its length is."""
    deflater = Deflater(takeover, 12, Compression(threshold=100))
    assert deflater.shrink(b"a" * 99) is None
    assert len(deflater.shrink(b"a" * 100) or b"") in range(1, 100)


def test_deflater_without_a_context_leaves_alone_what_does_not_shrink() -> None:
    """Random bytes are better sent as they are, where no later message may refer to them."""
    data = random.Random(5).randbytes(1_000)
    assert Deflater(False, 12, Compression()).shrink(data) is None


def test_deflater_with_a_context_sends_all_that_went_into_it() -> None:
    """What was compressed with a context is sent even when it grew, so that later messages are understood."""
    data = random.Random(5).randbytes(1_000)
    deflater = Deflater(True, 12, Compression())
    first, second = deflater.shrink(data), deflater.shrink(data)
    assert first is not None
    assert second is not None
    assert len(second) < 20 < 1_000 < len(first)
    assert inflate_strictly(12, first, second) == [data, data]


@kept
@pytest.mark.parametrize("window_bits", [8, 9, 15])
def test_deflater_compresses_a_message_alone(takeover: bool, window_bits: int) -> None:
    """A message on its own comes out the same whatever was sent before, and takes part in no context."""
    settings, data = Compression(), b'{"id": 5701, "symbol": "AAPL", "price": 181.25, "side": "buy"}' * 4
    deflater = Deflater(takeover, window_bits, settings)
    first = deflater.shrink(data)
    assert first is not None
    alone = deflater.shrink_alone(data)
    assert alone == first
    deflater.reset()
    assert inflate_strictly(window_bits, first, alone, deflater.compress(data)) == [data] * 3
    assert deflater.shrink_alone(b"short") is None


def test_deflaters_of_one_kind_are_known_by_it() -> None:
    """Deflaters that would compress a message on its own to the same bytes have the same kind."""
    kind = Deflater(True, 12, Compression()).kind
    assert Deflater(False, 12, Compression()).kind == kind
    assert Deflater(True, 11, Compression()).kind != kind
    assert Deflater(True, 12, Compression(level=1)).kind != kind


@pytest.mark.attack("C10")
def test_contexts_are_bounded_for_the_whole_process() -> None:
    """Of more deflaters than there may be contexts the least recently used one starts afresh, and only it."""
    settings, data = Compression(contexts=2, threshold=1), random.Random(6).randbytes(300)
    first, second, third = deflaters = [Deflater(True, 12, settings) for _ in range(3)]
    sent: list[list[bytes]] = [[], [], []]

    def compress(deflater: Deflater) -> bool:
        payload = deflater.compress(data)
        sent[deflaters.index(deflater)].append(payload)
        return len(payload) < 100  # it knew these bytes

    assert [compress(each) for each in (first, second, first)] == [False, False, True]
    assert [compress(each) for each in (third, first, second)] == [False, True, False]
    assert [compress(each) for each in (third, second, first)] == [False, True, False]
    first.reset()
    assert [compress(each) for each in (second, third, second, first)] == [True, False, True, False]
    for payloads in sent:
        assert inflate_strictly(12, *payloads) == [data] * len(payloads)


@pytest.mark.parametrize("level", [0, 9])
def test_deflater_uses_the_level(level: int) -> None:
    """Level 0 stores what level 9 compresses."""
    deflater = Deflater(True, 15, Compression(level=level))
    assert (len(deflater.compress(bytes(1_000))) > 1_000) is (level == 0)


@pytest.mark.attack("C12")
@pytest.mark.parametrize("cause", ["reset", "error"])
def test_deflater_never_refers_to_what_was_not_sent(cause: str) -> None:
    """After a message that did not go out, or failed, the next one stands on its own."""
    deflater, inflater = Deflater(True, 12, Compression()), Inflater(True, 12)
    data = b"the same message each time" * 4
    assert inflate(inflater, deflater.compress(data)) == data
    if cause == "reset":
        deflater.compress(b"lost" + data)
        deflater.reset()
    else:
        with pytest.raises(TypeError):
            deflater.compress("no bytes")  # type: ignore[arg-type]
    payload = deflater.compress(data)
    assert inflate(Inflater(True, 12), payload) == data
    assert inflate(inflater, payload) == data


def test_deflater_compresses_with_isal(isal: list[dict[str, Any]]) -> None:
    """The backend isal is asked for the settings' window, memory and level, its own level by default."""
    settings = Compression(backend="isal", level=1), Compression(backend="isal")
    for each in settings:
        assert inflate(Inflater(False, 10), Deflater(False, 10, each).compress(b"Hello")) == b"Hello"
    assert isal == [{"wbits": -10, "memLevel": 5, "level": 1}, {"wbits": -10, "memLevel": 5}]


@pytest.mark.attack("C09")
def test_deflater_uses_only_run_lengths_in_a_window_of_256_bytes() -> None:
    """A window that no compressor has is kept within by references to the byte before, and no others."""
    deflater = Deflater(True, 8, Compression())
    assert len(deflater.compress(b"a" * 400)) < 20
    assert len(deflater.compress(b"abcdefgh" * 50)) > 100


@pytest.mark.attack("C09")
def test_deflater_compresses_with_zlib_where_isal_cannot(isal: list[dict[str, Any]]) -> None:
    """A window of 256 bytes takes a strategy that isal does not have."""
    payload = Deflater(False, 8, Compression(backend="isal")).compress(b"Hello" * 100)
    assert inflate_strictly(8, payload) == [b"Hello" * 100]
    assert isal == []


def test_codec_inflates_with_isal_only_without_a_context(isal: list[dict[str, Any]]) -> None:
    """A decompressor of isal cannot be copied, so zlib's serves where a context is kept."""
    settings = Compression(backend="isal")
    broken = SimpleNamespace(error=zlib.error)
    sys.modules["isal.isal_zlib"].__dict__["decompressobj"] = broken
    for_context = build_codec(Parameters(), settings, client=True)[1]
    assert inflate(for_context, deflate(b"Hello")) == b"Hello"
    without = build_codec(Parameters(server_no_context_takeover=True), settings, client=True)[1]
    with pytest.raises(TypeError):
        without.inflate(deflate(b"Hello"), MAX)
    assert isal == []


# --- the inflater -----------------------------------------------------------------------------------


@pytest.mark.attack("C06", "C07")
@inflating
@pytest.mark.parametrize(
    "payloads",
    [
        ["f2 48 cd c9 c9 07 00"],
        ["f2 48 cd c9 c9 07 00", "f2 48 cd c9 c9 07 00"],
        ["00 05 00 fa ff 48 65 6c 6c 6f 00"],
        ["f3 48 cd c9 c9 07 00 00"],
        ["f3 48 cd c9 c9 07 00 00", "f3 48 cd c9 c9 07 00 00"],
        ["f2 48 05 00 00 00 ff ff ca c9 c9 07 00"],
        ["f2 48 cd c9 c9 07 00 00 00 ff ff 00"],
    ],
    ids=["7.2.3.1", "twice", "7.2.3.3", "7.2.3.4", "7.2.3.4 twice", "7.2.3.5", "a block more"],
)
def test_inflater_reads_the_examples_of_the_rfc(backend: Any, takeover: bool, payloads: list[str]) -> None:
    """The examples of §7.2.3 are read whole, in single bytes, and with empty fragments between."""
    for cuts in ([1_000], [1], [1, 0]):
        inflater = Inflater(takeover, 15, backend)
        for payload in map(bytes.fromhex, payloads):
            assert inflate(inflater, *cut(payload, cuts)) == b"Hello"


def test_inflater_shares_the_window_between_messages() -> None:
    """The example of §7.2.3.2 refers to the message before it."""
    inflater = Inflater(True, 15)
    assert inflate(inflater, bytes.fromhex("f2 48 cd c9 c9 07 00")) == b"Hello"
    assert inflate(inflater, bytes.fromhex("f2 00 11 00 00")) == b"Hello"


@pytest.mark.attack("C09")
def test_inflater_bears_with_peers_that_cannot_have_256_bytes() -> None:
    """Where a window of 256 bytes was negotiated, one of 512 is understood as well."""
    data = random.Random(6).randbytes(400)
    compressor, inflater = zlib.compressobj(wbits=-10), Inflater(True, 8)
    for _ in range(2):
        payload = compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH)
        assert inflate(inflater, payload.removesuffix(TAIL)) == data
    assert len(payload) < 50


@pytest.mark.attack("C06")
@inflating
def test_inflater_reads_an_empty_message(backend: Any, takeover: bool) -> None:
    """An empty message is one zero byte, between other messages too (§7.2.3.6)."""
    inflater = Inflater(takeover, 15, backend)
    for data, payload in [(b"", b"\x00"), (b"Hello", deflate(b"Hello")), (b"", b"\x00"), (b"", b"\x00")]:
        assert inflate(inflater, payload) == data


@pytest.mark.attack("C07")
@inflating
@PROPERTY
@given(
    window_bits=st.integers(9, 15),
    level=st.integers(0, 9),
    modes=st.lists(st.sampled_from([zlib.Z_NO_FLUSH, zlib.Z_SYNC_FLUSH, zlib.Z_FULL_FLUSH]), min_size=1),
    messages=some_messages,
    cuts=some_cuts,
)
def test_inflater_reads_what_zlib_writes(
    backend: Any,
    takeover: bool,
    window_bits: int,
    level: int,
    modes: list[int],
    messages: list[bytes],
    cuts: list[int],
) -> None:
    """Any messages from zlib, with any blocks and cut anywhere, come out as they went in."""
    inflater = Inflater(takeover, window_bits, backend)
    compressor = zlib.compressobj(level, wbits=-window_bits)
    for message in messages:
        pieces = zip(cut(message, cuts), itertools.cycle(modes), strict=False)
        payload = b"".join(compressor.compress(piece) + compressor.flush(mode) for piece, mode in pieces)
        payload = (payload + compressor.flush(zlib.Z_SYNC_FLUSH)).removesuffix(TAIL) if message else b"\x00"
        assert inflate(inflater, *cut(payload, cuts), limit=len(message)) == message
        if not takeover:
            compressor = zlib.compressobj(level, wbits=-window_bits)


@pytest.mark.attack("C06")
@inflating
@PROPERTY
@given(messages=st.lists(st.lists(some_data, min_size=1, max_size=4), min_size=1, max_size=3), cuts=some_cuts)
def test_inflater_goes_on_after_a_final_block(
    backend: Any, takeover: bool, messages: list[list[bytes]], cuts: list[int]
) -> None:
    """Blocks with BFINAL set may stand anywhere in a message, and others follow them (§7.2.3.4)."""
    inflater = Inflater(takeover, 15, backend)
    for pieces in messages:
        ended = b"".join(map(finished, pieces))
        message = b"".join(pieces)
        assert inflate(inflater, *cut(ended + b"\x00", cuts), limit=len(message)) == message
        mixed = ended + deflate(pieces[0])
        assert inflate(inflater, *cut(mixed, cuts), limit=MIB) == message + pieces[0]


@pytest.mark.attack("C06")
@inflating
def test_inflater_takes_a_final_block_that_ends_with_the_message(backend: Any, takeover: bool) -> None:
    """The empty block at the end may have BFINAL set itself."""
    inflater = Inflater(takeover, 15, backend)
    for payload, data in [(b"\x01", b""), (b"\x00\x01\x00\xfe\xffx\x01", b"x"), (b"\x01", b"")]:
        assert inflate(inflater, payload) == data


@pytest.mark.attack("C03")
@inflating
@pytest.mark.parametrize(
    "data",
    [
        b"Hello",
        bytes(1_000),
        random.Random(1).randbytes(300),
        bytes(random.Random(2).choices(b"abcd ", k=700)),
    ],
    ids=["fixed", "run", "stored", "dynamic"],
)
def test_inflater_refuses_a_truncated_message(backend: Any, takeover: bool, data: bytes) -> None:
    """A message that breaks off before the empty block at its end fails with 1007, wherever it does."""
    payload = deflate(data)
    # One zero byte is what a stored block begins with, and an empty message.
    for part in {payload[:end] for end in range(len(payload))} - {b"\x00"}:
        assert failure(Inflater(takeover, 15, backend), part) == INVALID


@pytest.mark.attack("C03")
@inflating
@pytest.mark.parametrize(
    "payload",
    [
        b"\x07",
        b"\xff",
        b"\x00\x05\x00\x05\x00Hello",
        bytes.fromhex("f2 00 11 00 00"),
        b"Hello",
        deflate(b"Hello") + TAIL,
        b"\x01\x04\x00\xfb\xff",
        finished(b"Hello"),
    ],
    ids=[
        "block type 3",
        "ones",
        "length check",
        "too far back",
        "plain text",
        "tail not left out",
        "tail is data",
        "final block only",
    ],
)
def test_inflater_refuses_invalid_data(backend: Any, takeover: bool, payload: bytes) -> None:
    """What is not DEFLATE data, or does not end with an empty block, fails with 1007 (§6.2, §7.2.1)."""
    assert failure(Inflater(takeover, 15, backend), payload) == INVALID


@pytest.mark.attack("C03")
@pytest.mark.parametrize(("surplus", "unused"), [(b"x", b""), (b"", b"\x00")], ids=["output", "unused input"])
def test_inflater_sees_an_end_that_is_not_the_probes(surplus: bytes, unused: bytes) -> None:
    """A truncated last block might end in the probe for an end; then it gives something, or leaves some."""

    class Decompressor:
        eof, unused_data, unconsumed_tail = False, b"", b""

        def __init__(self, wbits: int) -> None: ...

        def decompress(self, data: bytes, max_length: int) -> bytes:
            if data == TAIL:
                return b""
            self.eof, self.unused_data = True, unused
            return surplus

    backend = SimpleNamespace(decompressobj=Decompressor, error=zlib.error)
    assert failure(Inflater(False, 15, backend)) == INVALID


@pytest.mark.attack("C03", "C04")
@inflating
@PROPERTY
@given(payloads=st.lists(st.binary(max_size=60), max_size=4), cuts=some_cuts, limit=st.integers(0, 100))
def test_inflater_survives_any_bytes(
    backend: Any, takeover: bool, payloads: list[bytes], cuts: list[int], limit: int
) -> None:
    """Whatever arrives, either at most the limit comes out, or the error says 1007 or 1009."""
    inflater, errors = Inflater(takeover, 15, backend), []
    try:
        for payload in payloads:
            assert len(inflate(inflater, *cut(payload, cuts), limit=limit)) <= limit
    except RemoteProtocolError as exc:
        errors.append(exc)
    assert all(error.code in (INVALID, TOO_BIG) and len(error.reason) <= 123 for error in errors)


@pytest.mark.attack("C04")
@inflating
@pytest.mark.parametrize("limit", [0, 1, 65_535, 65_536, 65_537, 200_000])
def test_inflater_takes_the_limit_and_no_byte_more(backend: Any, takeover: bool, limit: int) -> None:
    """A message of exactly the limit passes; one byte more is 1009."""
    for cuts in ([1_000_000], [7]):
        inflater = Inflater(takeover, 15, backend)
        payload = deflate(bytes(limit)) if limit else b"\x00"
        assert inflate(inflater, *cut(payload, cuts), limit=limit) == bytes(limit)
        over = cut(deflate(bytes(limit + 1)), cuts)
        assert failure(Inflater(takeover, 15, backend), *over, limit=limit) == TOO_BIG


BOMB = deflate(bytes(64 * MIB))
BOMBS = {
    "one block after another": [BOMB],
    "fragments": [BOMB[start : start + 100] for start in range(0, len(BOMB), 100)],
    "flushed": [deflate(*[bytes(MIB)] * 64)],
    "final blocks": [finished(bytes(MIB)) * 64],
}


@pytest.mark.attack("C04")
@inflating
def test_inflater_gives_what_fits_before_it_gives_up(backend: Any, takeover: bool) -> None:
    """What exceeds the limit begins with what does not, so that it can be judged first, and ends soon."""
    piece = Inflater(takeover, 15, backend).inflate(deflate(b"Hello" * 100_000), 7)
    assert piece.startswith(b"HelloHel")
    assert len(piece) == 8 or backend is boundless


@pytest.mark.attack("C04", "C05")
@inflating
@pytest.mark.parametrize("bomb", BOMBS)
def test_inflater_takes_little_memory_for_a_bomb(backend: Any, takeover: bool, bomb: str) -> None:
    """A bomb of 64 MiB costs at most twice the limit, and one step of a backend that ignores the limit."""
    limit = 3 * MIB // 2
    inflater = Inflater(takeover, 15, backend)
    tracemalloc.start()
    try:
        assert failure(inflater, *BOMBS[bomb], limit=limit) == TOO_BIG
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # A step is there twice while zlib joins the blocks that it collected it in.
    overshoot = 2 * 1_032 * 4 * KIB if backend is boundless else 0
    assert peak <= 2 * limit + 256 * KIB + overshoot


def test_inflater_takes_little_memory_for_a_message_at_the_limit() -> None:
    """A message that just fits costs at most twice its size while it is put together."""
    payload, size = deflate(bytes(8 * MIB)), 8 * MIB
    tracemalloc.start()
    try:
        assert len(Inflater(False, 15).inflate(payload, size)) == size
        assert tracemalloc.get_traced_memory()[1] <= 2 * size + 256 * KIB
    finally:
        tracemalloc.stop()


def counting() -> Any:
    """Return a backend of zlib's that notes what goes through all its decompressors."""
    taken: list[int] = []
    given: list[int] = []
    kind = type("Noting", (Counting,), {"taken": taken, "given": given})
    return SimpleNamespace(decompressobj=kind, error=zlib.error, taken=taken, given=given)


@pytest.mark.attack("C04")
def test_inflater_works_no_longer_than_the_limit() -> None:
    """A bomb is given up one byte past the limit, after as few steps as the limit takes."""
    backend = counting()
    assert failure(Inflater(False, 15, backend), BOMB, limit=200_000) == TOO_BIG
    assert backend.given == [65_536, 65_536, 65_536, 200_001 - 3 * 65_536]
    assert max(backend.taken) <= 4 * KIB


@pytest.mark.attack("C04", "C06")
def test_inflater_works_linearly_on_empty_final_blocks() -> None:
    """Many short streams in a message cost one short step each, not a copy of all that follows."""
    backend = counting()
    assert inflate(Inflater(False, 15, backend), FINAL_64 * 10_000 + b"\x00", limit=MAX_PAID) == bytes(
        590_000
    )
    assert len(backend.taken) <= 10_000 + 200
    assert max(backend.taken) <= 4 * KIB


MAX_PAID = 10_000_000
FINAL_64 = b"\x01\x3b\x00\xc4\xff" + bytes(59)
"""A stream of 64 bytes: one stored block with BFINAL set."""


@pytest.mark.attack("C06", "R12")
def test_inflater_refuses_more_final_blocks_than_bytes_pay_for() -> None:
    """Streams of two bytes end a message when there are hundreds: each needs a decompressor of its own."""
    with pytest.raises(RemoteProtocolError, match="too many final blocks for their size") as caught:
        inflate(Inflater(False, 15), b"\x03\x00" * 300 + b"\x00")
    assert caught.value.code == 1008
    assert inflate(Inflater(False, 15), b"\x03\x00" * 256 + b"\x00") == b""


@pytest.mark.attack("C06")
def test_any_number_of_messages_may_end_with_a_final_block() -> None:
    """Who ends each message with BFINAL, as some senders do, is never refused."""
    inflater = Inflater(False, 15)
    assert all(inflate(inflater, b"\x03\x00\x00") == b"" for _ in range(2_000))


@pytest.mark.attack("C06")
def test_bytes_do_not_pay_for_more_than_some_hundred_final_blocks_ahead() -> None:
    """Whoever has sent megabytes cannot have a hundred thousand streams opened at once for them."""
    inflater = Inflater(False, 15)
    assert inflate(inflater, FINAL_64 * 10_000 + b"\x00", limit=MAX_PAID) == bytes(590_000)
    with pytest.raises(RemoteProtocolError, match="too many final blocks"):
        inflate(inflater, b"\x03\x00" * 300 + b"\x00")


# --- memory -----------------------------------------------------------------------------------------


@pytest.mark.attack("C10")
def test_codec_costs_nothing_before_it_is_used() -> None:
    """A connection that negotiated compression and never used it pays for two small objects."""
    settings = Compression()
    pairs: list[tuple[Deflater, Inflater]] = []
    tracemalloc.start()
    try:
        pairs += [build_codec(Parameters(), settings, client=False) for _ in range(100)]
        for deflater, inflater in pairs:
            deflater.compress(b"")
            assert not hasattr(deflater, "__dict__")
            assert not hasattr(inflater, "__dict__")
        assert tracemalloc.get_traced_memory()[0] <= 100 * 320
    finally:
        tracemalloc.stop()


@pytest.mark.attack("C10")
@pytest.mark.parametrize(
    ("takeover", "least", "most"),
    [(True, 40 * KIB, 56 * KIB), (False, 0, KIB)],
    ids=["takeover", "no takeover"],
)
def test_codec_keeps_memory_only_with_a_context(takeover: bool, least: int, most: int) -> None:
    """After a message each way the defaults hold about 49 KiB with contexts, and nothing without."""
    settings, data = Compression(), bytes(random.Random(3).choices(b"abcdefgh", k=5_000))
    payload = deflate(data)
    tracemalloc.start()
    try:
        parameters = Parameters(not takeover, not takeover, 12, 12)
        deflater, inflater = build_codec(parameters, settings, client=False)
        deflater.compress(data)
        inflate(inflater, payload)
        del data
        assert least <= tracemalloc.get_traced_memory()[0] <= most
    finally:
        tracemalloc.stop()


# --- with a reader ----------------------------------------------------------------------------------


def reader_and_deflater(takeover: bool = True) -> tuple[MessageReader, Deflater]:
    """Return a client's reader and the deflater of the server that it reads from."""
    parameters = Parameters(server_no_context_takeover=not takeover, server_max_window_bits=12)
    deflater = build_codec(parameters, Compression(), client=False)[0]
    inflater = build_codec(parameters, Compression(), client=True)[1]
    return MessageReader(masked=False, max_message_size=MAX, inflater=inflater), deflater


@pytest.mark.attack("C11")
@kept
@PROPERTY
@given(
    messages=st.lists(
        st.tuples(
            st.lists(st.text(max_size=40), min_size=1, max_size=4),
            st.sampled_from(["whole", "fragments", "plain"]),
        ),
        max_size=6,
    ),
    pings=st.lists(st.binary(max_size=5), max_size=4),
    cuts=some_cuts,
)
def test_reader_keeps_the_context_through_whatever_lies_between(
    takeover: bool, messages: list[tuple[list[str], str]], pings: list[bytes], cuts: list[int]
) -> None:
    """Control frames between compressed fragments, and uncompressed messages, do not disturb the context."""
    reader, deflater = reader_and_deflater(takeover)
    stream, expected = b"", []
    for parts, form in messages:
        text = "".join(parts)
        if form == "plain":
            stream += frame(1, text.encode())
        elif form == "whole":
            stream += frame(1, deflater.compress(text.encode()), rsv1=True)
        else:
            for index, part in enumerate(parts):
                fin = index == len(parts) - 1
                payload = deflater.compress(part.encode(), fin=fin)
                stream += frame(0 if index else 1, payload, fin=fin, rsv1=not index)
                if not fin:
                    stream += b"".join(frame(9, ping) for ping in pings)
                    expected += [Message(MessageType.PING, ping) for ping in pings]
        expected.append(Message(MessageType.TEXT, text))
    received = [message for piece in cut(stream, cuts) for message in reader.feed(piece)]
    assert reader.error is None
    assert received == expected


@pytest.mark.attack("C03", "C04")
@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (BOMB, TOO_BIG),
        (deflate(b"Hello")[:-1], INVALID),
        (deflate(b"\xff"), INVALID),
        (deflate(b"\xff" + bytes(MAX)), INVALID),
        (deflate(bytes(MAX) + b"\xff"), TOO_BIG),
    ],
    ids=["bomb", "truncated", "not UTF-8", "not UTF-8 within the limit", "not UTF-8 behind the limit"],
)
def test_reader_reports_what_is_wrong_with_a_compressed_message(payload: bytes, code: int) -> None:
    """The reader fails with 1009 or 1007, wherever the data is cut, and delivers the messages before."""
    for cuts in ([1_000_000], [1], [100]):
        reader, deflater = reader_and_deflater()
        data = frame(1, deflater.compress(b"before"), rsv1=True) + frame(1, payload, rsv1=True)
        heard = [message for piece in cut(data, cuts) for message in reader.feed(piece)]
        assert heard == [Message(MessageType.TEXT, "before")]
        assert reader.error is not None
        assert reader.error.code == code
