"""RFC 6455 §4, the opening handshake: what a request and an answer must say, and what is built.

Requests and answers go through the readers of ``http11.py`` in every delivery that ``test_http11.py``
tries, so a verdict here is what the peer gets. What one end builds, the other end checks.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyio_ws.exceptions import HandshakeRejected, InvalidRequest, InvalidResponse
from anyio_ws.handshake import (
    Extension,
    Handshake,
    Url,
    accept,
    accept_key,
    build_authority,
    build_key,
    build_request,
    check_origin,
    check_request,
    check_response,
    check_target,
    is_upgrade,
    parse_extensions,
    parse_header_block,
    parse_url,
)
from anyio_ws.http11 import Headers, Request, RequestReader, Response, build_refusal

from .frames import cut
from .test_http11 import (
    BAD_HOSTS,
    GOOD_HOSTS,
    LARGE,
    Answer,
    Pairs,
    Read,
    Refused,
    cuts,
    header_sets,
    heard,
    judge,
    names,
    read_request,
    read_response,
)

KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # the example of RFC 6455 §1.3, and its answer
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

REQUEST = {
    "Host": "example.com",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": KEY,
    "Sec-WebSocket-Version": "13",
}
ANSWER = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Accept": ACCEPT}

Changes = dict[str, str | list[str] | None]


def head(line: str, fields: dict[str, str], changes: Changes) -> bytes:
    """Build a head, correct or not.

    :param fields: the headers of a correct one
    :param changes: other values or further headers; a list repeats a header, ``None`` leaves it out
    """
    lines = [line]
    for name, values in {**fields, **changes}.items():
        lines += [f"{name}: {value}" for value in ([values] if isinstance(values, str) else values or ())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def request(changes: Changes | None = None) -> bytes:
    """Build an opening handshake, correct or not."""
    return head("GET /chat HTTP/1.1", REQUEST, changes or {})


def facts(request: Request) -> tuple[str, tuple[str, ...]]:
    """Check an opening handshake; return what it asks for."""
    handshake = check_request(request)
    return handshake.key, handshake.subprotocols


def offered(changes: Changes) -> tuple[str, ...]:
    """Check an opening handshake that must be correct; return the subprotocols it offers."""
    outcome = judge(request(changes), facts)
    assert isinstance(outcome, Read), outcome
    key, subprotocols = outcome.judged
    assert key == KEY
    return tuple(subprotocols)


def refused(changes: Changes) -> Refused:
    """Check an opening handshake that must be refused."""
    outcome = judge(request(changes), facts)
    assert isinstance(outcome, Refused), outcome
    return outcome


def ask(*headers: tuple[str, str]) -> Request:
    """Make a request without reading it."""
    return Request("GET", "/chat", Headers(headers))


# --- a server's part: §4.2 --------------------------------------------------------------------------


def test_accept_key_is_that_of_the_rfc() -> None:
    """The example of RFC 6455 §1.3 has the answer that it has there."""
    assert accept_key(KEY) == ACCEPT


def test_correct_request_becomes_a_handshake() -> None:
    """A correct request is a handshake with the request's parts, which has chosen nothing yet."""
    received = RequestReader(8_192, 100).feed(request({"Cookie": "a=b"}))
    assert received is not None
    received.remote_address = ("::1", 5)
    handshake = check_request(received)
    assert isinstance(handshake, Handshake)
    assert (handshake.method, handshake.url, handshake.key) == ("GET", "/chat", KEY)
    assert handshake.headers is received.headers
    assert handshake.remote_address == ("::1", 5)
    assert handshake.cookies == {"a": "b"}
    assert (handshake.subprotocols, handshake.subprotocol) == ((), None)
    assert handshake.response_headers.pairs() == []


@pytest.mark.attack("L02")
def test_handshake_is_shown_without_secrets() -> None:
    """The representation of a handshake has neither query nor headers nor key."""
    handshake = Handshake(Request("GET", "/a?token=s3cret", Headers({"A": "s3cret"})), KEY, ["s3cret"])
    assert repr(handshake) == "<Handshake GET '/a'>"


@pytest.mark.attack("H07")
@pytest.mark.parametrize(
    "key",
    [
        pytest.param(None, id="missing"),
        pytest.param([KEY, KEY], id="twice the same"),
        pytest.param([KEY, "AQIDBAUGBwgJCgsMDQ4PEA=="], id="two"),
        pytest.param(f"{KEY}, {KEY}", id="list"),
        pytest.param("", id="empty"),
        pytest.param("==", id="no bytes"),
        pytest.param(base64.b64encode(b"x" * 15).decode(), id="15 bytes"),
        pytest.param(base64.b64encode(b"x" * 17).decode(), id="17 bytes"),
        pytest.param(base64.b64encode(b"x" * 18).decode(), id="18 bytes"),
        pytest.param(base64.b64encode(b"x" * 400).decode(), id="400 bytes"),
        pytest.param(KEY[:-1], id="short padding"),
        pytest.param(KEY[:-2], id="no padding"),
        pytest.param(KEY + "=", id="long padding"),
        pytest.param("d" + KEY, id="longer"),
        pytest.param("_-" + KEY[2:], id="URL alphabet"),
        pytest.param(KEY[:10] + " " + KEY[10:], id="space"),
        pytest.param(KEY[:10] + "=" + KEY[11:], id="padding inside"),
        pytest.param(KEY[:-3] + "\xe9==", id="not ASCII"),
        pytest.param(f'"{KEY}"', id="quoted"),
        pytest.param("x" * 24, id="24 characters"),
    ],
)
def test_key_that_is_not_one_of_16_bytes_is_refused(key: str | list[str] | None) -> None:
    """Anything but exactly one key of 16 bytes in base64 gets 400 (§4.2.1 step 5, §11.3.1)."""
    outcome = refused({"Sec-WebSocket-Key": key})
    assert outcome.status == 400
    assert "Sec-WebSocket-Key" in outcome.detail


@given(st.binary(min_size=16, max_size=16))
def test_any_key_of_16_bytes_is_accepted(raw: bytes) -> None:
    """Every 16 bytes make a good key."""
    key = base64.b64encode(raw).decode()
    assert check_request(ask(*{**REQUEST, "Sec-WebSocket-Key": key}.items())).key == key


@pytest.mark.attack("H08")
@pytest.mark.parametrize(
    "version",
    [None, *("", "8", "12", "14", "0", "13.0", "013", "+13", "0xd", "13;", "13a", "1 3", "-13", "8, 7")],
)
def test_version_other_than_13_is_refused(version: str | None) -> None:
    """Another version than 13 gets 426 and learns that 13 is spoken (§4.4)."""
    outcome = refused({"Sec-WebSocket-Version": version})
    assert (outcome.status, outcome.headers) == (426, (("Sec-WebSocket-Version", "13"),))
    refusal = heard(build_refusal(InvalidRequest(*outcome)))
    assert refusal.status == 426
    assert ("sec-websocket-version", "13") in refusal.headers
    assert ("upgrade", "websocket") in refusal.headers


@pytest.mark.attack("H08")
@pytest.mark.parametrize("versions", [["13", "13"], ["8", "13"], ["13", "8"], ["", "13"]])
def test_version_that_is_repeated_is_refused(versions: list[str]) -> None:
    """More than one version gets 400 (§11.3.5)."""
    outcome = refused({"Sec-WebSocket-Version": versions})
    assert (outcome.status, outcome.headers) == (400, ())
    assert "Sec-WebSocket-Version" in outcome.detail


NOT_WEBSOCKET = [
    *("", "websocket2", "notwebsocket", "web socket", "websocket/13", "websocket;v=13", '"websocket"', "h2c"),
    *("web, socket", "websocket websocket", "TLS/1.0, HTTP/2", "websocke\xf4", "\xa0websocket"),
    "websoc\u212aet",
]


@pytest.mark.attack("H09", "H27")
@pytest.mark.parametrize("upgrade", [None, *NOT_WEBSOCKET[:-1]])
def test_request_for_no_websocket_is_told_to_upgrade(upgrade: str | None) -> None:
    """A request that names no websocket to upgrade to, such as a health check, gets 426."""
    outcome = refused({"Upgrade": upgrade})
    assert outcome.status == 426
    refusal = heard(build_refusal(InvalidRequest(*outcome)))
    assert ("upgrade", "websocket") in refusal.headers
    assert not is_upgrade(ask(("Upgrade", upgrade or "")))


@pytest.mark.attack("H27")
def test_plain_request_is_told_to_upgrade() -> None:
    """A plain GET gets 426 whatever else it lacks."""
    plain = dict.fromkeys(name for name in REQUEST if name != "Host")
    assert refused({**plain}).status == 426
    assert refused({**plain, "Connection": "keep-alive"}).status == 426


@pytest.mark.attack("H09")
@pytest.mark.parametrize(
    "connection",
    [
        *(None, "", "notupgrade", "upgrades", "keep-alive", "close", "up grade", "keep-alive upgrade"),
        *("upgrade;q=1", '"upgrade"'),
    ],
)
def test_connection_that_does_not_say_upgrade_is_refused(connection: str | None) -> None:
    """A Connection without the token Upgrade gets 400 (§4.2.1 step 4)."""
    outcome = refused({"Connection": connection})
    assert outcome.status == 400
    assert "Connection" in outcome.detail


@pytest.mark.attack("H09")
@pytest.mark.parametrize(
    "change",
    [
        {"Upgrade": "WebSocket"},
        {"Upgrade": "h2c, WEBSOCKET\t,x"},
        {"Upgrade": ["h2c", "websocket"]},
        {"Connection": "upgrade"},
        {"Connection": "keep-alive, UPGRADE"},
        {"Connection": "keep-alive,Upgrade , close"},
        {"Connection": ["keep-alive", "Upgrade"]},
    ],
)
def test_upgrade_is_found_in_lists_without_regard_to_case(change: Changes) -> None:
    """Upgrade and Connection are lists of tokens, which compare without case (§4.2.1 steps 3 and 4)."""
    assert offered(change) == ()


@pytest.mark.attack("H09")
@given(st.lists(names, max_size=5), st.lists(names, max_size=5), st.sampled_from(["", " ", "\t "]))
def test_upgrade_is_a_token_of_the_list_or_is_not_there(
    before: list[str], after: list[str], space: str
) -> None:
    """Among any other tokens the one that is looked for is found, and no part of one is taken for it."""
    others = [name for name in before + after if name.lower() != "websocket"]
    without, with_it = (f"{space},{space}".join(items) for items in (others, [*before, "websocket", *after]))
    assert is_upgrade(ask(("Upgrade", with_it)))
    assert not is_upgrade(ask(("Upgrade", without)))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (None, ()),
        ("chat", ("chat",)),
        ("superchat,chat", ("superchat", "chat")),
        ("b ,\ta , c", ("b", "a", "c")),
        (["b", "a, c"], ("b", "a", "c")),
        ("chat, Chat, CHAT", ("chat", "Chat", "CHAT")),
        ("v1.example.com, !#$%&'*+-.^_`|~", ("v1.example.com", "!#$%&'*+-.^_`|~")),
        (", ".join(f"p{number}" for number in range(100)), tuple(f"p{number}" for number in range(100))),
    ],
)
def test_subprotocols_are_offered_in_their_order(
    values: str | list[str] | None, expected: tuple[str, ...]
) -> None:
    """The subprotocols are had as the client orders them, from all headers, with their case (§11.3.4)."""
    assert offered({"Sec-WebSocket-Protocol": values}) == expected


@pytest.mark.attack("H21")
@pytest.mark.parametrize(
    "values",
    [
        *("", ",", "a,", ",a", "a,,b", "a b", "a;b", '"a"', "a/b", "a=b", "\xe9", "a, \xff", "a\x80b"),
        "a(b)",
        *("a, a", "a,b,c,a", "a\tb", "\xa0a", "{a}", ["a", "a"], ["a", ""], ["a, b", "c, b"]),
    ],
)
def test_subprotocols_that_are_malformed_are_refused(values: str | list[str]) -> None:
    """Subprotocols that are not up to 100 different tokens get 400 (§4.1 step 10)."""
    outcome = refused({"Sec-WebSocket-Protocol": values})
    assert outcome.status == 400
    assert "Sec-WebSocket-Protocol" in outcome.detail


@pytest.mark.attack("H21")
@pytest.mark.parametrize("number", [101, 1_000])
@pytest.mark.parametrize("separator", [", ", "\n"])
def test_subprotocols_over_their_number_are_refused(number: int, separator: str) -> None:
    """More than 100 subprotocols get 400, whether one header has them or each has its own."""
    values = separator.join(f"p{each}" for each in range(number)).split("\n")
    with pytest.raises(InvalidRequest, match="Sec-WebSocket-Protocol") as caught:
        check_request(ask(*REQUEST.items(), *(("Sec-WebSocket-Protocol", value) for value in values)))
    assert caught.value.status == 400


@pytest.mark.attack("H21")
@pytest.mark.parametrize("name", ["c", "A", "a, b", "", "a\r\nb: c"])
def test_subprotocol_is_selected_from_the_offer_only(name: str) -> None:
    """A subprotocol that the client did not offer cannot be selected, and nothing is then (§4.2.2)."""
    handshake = check_request(ask(*REQUEST.items(), ("Sec-WebSocket-Protocol", "a, b")))
    with pytest.raises(ValueError, match="did not offer"):
        handshake.select_subprotocol(name)
    assert handshake.subprotocol is None
    handshake.select_subprotocol("b")
    assert handshake.subprotocol == "b"
    handshake.select_subprotocol(None)
    assert handshake.subprotocol is None


# --- extensions: §9.1 -------------------------------------------------------------------------------


def extensions(*values: str) -> list[Extension]:
    """Parse the values of Sec-WebSocket-Extensions."""
    return parse_extensions(Headers([("Sec-WebSocket-Extensions", value) for value in values]))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], []),
        (["deflate-stream"], [Extension("deflate-stream")]),
        (
            ["mux; max-channels=4; flow-control, deflate-stream"],
            [Extension("mux", (("max-channels", "4"), ("flow-control", None))), Extension("deflate-stream")],
        ),
        (["a", "b;c"], [Extension("a"), Extension("b", (("c", None),))]),
        (["a\t;\tb\t=\tc ,\t d"], [Extension("a", (("b", "c"),)), Extension("d")]),
        (['a;b="c";d="\\e\\f"'], [Extension("a", (("b", "c"), ("d", "ef")))]),
        (["a;b=1;b=2, a"], [Extension("a", (("b", "1"), ("b", "2"))), Extension("a")]),
        (["A; B=C"], [Extension("A", (("B", "C"),))]),
    ],
)
def test_extensions_are_parsed(values: list[str], expected: list[Extension]) -> None:
    """Extensions are parsed with their parameters, in order, from all headers; nothing is lost (§9.1)."""
    assert extensions(*values) == expected
    assert offered({"Sec-WebSocket-Extensions": values}) == ()


spaces = st.text(" \t", max_size=2)
extension_params = st.lists(st.tuples(names, st.none() | names), max_size=3).map(tuple)
QUOTINGS: list[Callable[[str], str]] = [
    lambda value: value,
    lambda value: f'"{value}"',
    lambda value: '"' + "".join(f"\\{character}" for character in value) + '"',
]


@st.composite
def extension_lists(draw: st.DrawFn) -> tuple[str, list[Extension]]:
    """Make extensions, and write them as the grammar allows: with spaces and quotes here and there."""
    made = [
        Extension(*each)
        for each in draw(st.lists(st.tuples(names, extension_params), min_size=1, max_size=4))
    ]
    written = []
    for extension in made:
        text = extension.name
        for name, value in extension.params:
            text += f"{draw(spaces)};{draw(spaces)}{name}"
            if value is not None:
                text += f"{draw(spaces)}={draw(spaces)}{draw(st.sampled_from(QUOTINGS))(value)}"
        written.append(f"{draw(spaces)}{text}{draw(spaces)}")
    return ",".join(written).strip(" \t"), made


@settings(deadline=None, max_examples=50)
@given(extension_lists())
def test_extensions_that_are_written_are_parsed_back(case: tuple[str, list[Extension]]) -> None:
    """Whatever valid extensions are written, with spaces and quotes, the parser gives back."""
    text, expected = case
    assert extensions(text) == expected


BAD_EXTENSIONS = [
    *("", ",", "a,", ",a", "a,,b", ";", "a;", "a;;b", "a; ;b", ";a", "a b", "a=b", "a; b c", "a; b="),
    *("a; =c", "a;="),
    *('"a"', 'a; "b"', 'a; b=""', 'a; b="c d"', 'a; b="c', 'a; b="c\\', 'a; b="', 'a; b="c"d', 'a; b="c""d"'),
    *('a; b="\\""', 'a; b="\xe9"', "a; b=c d", "a; b=c=d", "a/b", "a; b/c", "\xe9", "a; b=\xe9", "a\xa0"),
    "a(b)",
    *('a; b="c,d"', 'a; b="\\\\"', "a; b=(c)", "a; b=c, ;d"),
]


@pytest.mark.attack("H25")
@pytest.mark.parametrize("text", BAD_EXTENSIONS)
def test_extensions_that_are_malformed_are_refused(text: str) -> None:
    """Extensions that do not follow the grammar get 400, alone and beside good ones."""
    outcome = refused({"Sec-WebSocket-Extensions": text})
    assert outcome.status == 400
    assert "Sec-WebSocket-Extensions" in outcome.detail
    for values in (["good", text], [text, "good; a=b"], [f"good,{text}"], [f"{text},good; a=b"]):
        with pytest.raises(InvalidRequest, match="Sec-WebSocket-Extensions"):
            extensions(*values)


@pytest.mark.attack("H25", "H26", "H21")
@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("Extensions", 'a; b="' + "\\c" * (LARGE // 2), 400),
        ("Extensions", 'a; b="' + "\\c" * (LARGE // 2) + '" c', 400),
        ("Extensions", 'a; b="' + "c" * LARGE, 400),
        ("Extensions", "a; b=" + '"c' * (LARGE // 2), 400),
        ("Extensions", "b" + " " * LARGE + "c", 400),
        ("Extensions", "a; b" + " " * (LARGE // 2) + "=" + " " * (LARGE // 2) + "(", 400),
        ("Extensions", "a" + " ;\t" * (LARGE // 3) + "b", 400),
        ("Extensions", "a" + ";b" * (LARGE // 2) + "=", 400),
        ("Extensions", "a" + ";b=c" * (LARGE // 4) + ";", 400),
        ("Extensions", "," * LARGE, 400),
        ("Extensions", "a," * (LARGE // 2), 400),
        ("Extensions", ", ".join(["permessage-deflate"] * 10_000), 400),
        ("Extensions", ", ".join(f"x{number}; a=b" for number in range(10_000)), 400),
        ("Extensions", "x; " + "; ".join(f"a{number}=b" for number in range(10_000)), 400),
        ("Protocol", ", ".join(f"p{number}" for number in range(10_000)), 400),
        ("Protocol", "," * LARGE, 400),
        ("Protocol", "a" * LARGE + "(", 400),
        ("Version", "1" * LARGE, 426),
        ("Key", "A" * LARGE + "==", 400),
    ],
    ids=itertools.count(),
)
def test_large_list_is_refused_in_linear_time(name: str, value: str, status: int) -> None:
    """Lists of 100 kB and of 10,000 elements, whatever their grammar, are refused in linear time."""
    data = request({f"Sec-WebSocket-{name}": value})
    received = RequestReader(4 * LARGE, 100).feed(data)
    assert received is not None
    with pytest.raises(InvalidRequest, match=f"Sec-WebSocket-{name}|version") as caught:
        check_request(received)
    assert caught.value.status == status


@pytest.mark.attack("H25")
@pytest.mark.parametrize(("name", "status"), [("Upgrade", 426), ("Connection", 400)])
@pytest.mark.parametrize("item", ["a, ", ",", "websocket2,upgrade2,", " ", "upgradewebsocket"])
def test_large_list_of_tokens_is_searched_in_linear_time(name: str, status: int, item: str) -> None:
    """A list of 100 kB in Upgrade or Connection does not make up for the one token that is not there."""
    received = RequestReader(2 * LARGE, 100).feed(request({name: f"a{item * (LARGE // len(item))}b"}))
    assert received is not None
    with pytest.raises(InvalidRequest) as caught:
        check_request(received)
    assert caught.value.status == status


# --- origins: §10.2 ---------------------------------------------------------------------------------


def origin_is_accepted(origin: str | list[str] | None, origins: Sequence[str] | None, host: str) -> bool:
    """Read a request with this origin, and judge it."""
    outcome = judge(request({"Host": host, "Origin": origin}), lambda request: check_origin(request, origins))
    if isinstance(outcome, Read):
        return True
    assert (outcome.status, outcome.detail) == (403, "the origin is not accepted")
    return False


HOST = "example.com"


@pytest.mark.attack("H23")
@pytest.mark.parametrize(
    ("origin", "host", "expected"),
    [
        (None, HOST, True),
        ("http://example.com", HOST, True),
        ("https://example.com", HOST, True),
        ("https://example.com", "EXAMPLE.com", True),
        ("https://EXAMPLE.COM", HOST, True),
        ("https://example.com:443", HOST, True),
        ("https://example.com", "example.com:443", True),
        ("http://example.com:8080", "example.com:8080", True),
        ("http://[::1]:9882", "[::1]:9882", True),
        ("http://127.0.0.1:9882", "127.0.0.1:9882", True),
        ("https://good.com", HOST, False),
        ("null", HOST, False),
        ("", HOST, False),
        ("https://example.com.evil.com", HOST, False),
        ("https://evil-example.com", HOST, False),
        ("https://www.example.com", HOST, False),
        ("https://example.co", HOST, False),
        ("https://example.com.", HOST, False),
        ("https://example.com:8443", HOST, False),
        ("https://example.com:80", HOST, False),
        ("http://example.com", "example.com:443", False),
        ("http://example.com", "example.com:8080", False),
        ("https://user@example.com", HOST, False),
        ("https://example.com@evil.com", HOST, False),
        ("https://example.com/", HOST, False),
        ("https://example.com#", HOST, False),
        ("https://example.com https://evil.com", HOST, False),
        ("https://evil.com, https://example.com", HOST, False),
        ("example.com", HOST, False),
        ("//example.com", HOST, False),
        ("https:example.com", HOST, False),
        ("file://example.com", HOST, False),
        ("chrome-extension://example.com", HOST, False),
        ("https://ex\xe4mple.com", HOST, False),
        ("https://", HOST, False),
        (["https://example.com", "https://example.com"], HOST, False),
        (["https://example.com", "https://evil.com"], HOST, False),
    ],
)
def test_origin_must_be_that_of_the_host(origin: str | list[str] | None, host: str, expected: bool) -> None:
    """Without a list of origins, a page may connect to its own host and port only; the others get 403."""
    assert origin_is_accepted(origin, None, host) is expected


@pytest.mark.attack("H23")
@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        (None, True),
        ("https://good.com", True),
        ("http://localhost:8000", True),
        ("https://example.com", False),
        ("http://good.com", False),
        ("https://good.com:443", False),
        ("https://good.com.evil.com", False),
        ("https://good.co", False),
        ("https://xgood.com", False),
        ("https://good.com/", False),
        ("https://sub.good.com", False),
        ("http://localhost", False),
        ("http://localhost:80000", False),
        ("null", False),
        ("", False),
        ("*", False),
        (["https://good.com", "http://localhost:8000"], False),
    ],
)
def test_origin_must_be_in_the_list(origin: str | list[str] | None, expected: bool) -> None:
    """With a list of origins, a page of an origin in it may connect, the host's own page included or not."""
    assert origin_is_accepted(origin, ["https://good.com", "http://localhost:8000"], HOST) is expected


@pytest.mark.attack("H23")
@pytest.mark.parametrize("origin", [None, "https://evil.com", "null", "", ["a", "b"]])
def test_any_origin_is_accepted_when_that_is_asked_for(origin: str | list[str] | None) -> None:
    """The origin ``*`` in the list accepts every page, and ``null`` and no origin are what they say."""
    assert origin_is_accepted(origin, ["*"], HOST)
    assert origin_is_accepted(origin, ["https://good.com", "*"], HOST)
    assert origin_is_accepted(origin, [], HOST) is (origin is None)
    assert origin_is_accepted(origin, ["null"], HOST) is (origin in (None, "null"))


@pytest.mark.attack("H23")
@settings(deadline=None, max_examples=50)
@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=20))
def test_origin_with_anything_added_is_another_one(more: str) -> None:
    """Nothing that is added to a good origin, before or behind, leaves it good, its own port excepted."""
    for origin in (f"https://example.com{more}", f"{more}https://example.com", f"https://{more}example.com"):
        good = re.fullmatch(r"https://example\.com(:0{0,2}443|:)?", origin, re.IGNORECASE)
        with contextlib.nullcontext() if good else pytest.raises(InvalidRequest, match="origin"):
            check_origin(ask(("Host", HOST), ("Origin", origin)), None)


# --- the answer: §4.2.2 and §4.1 --------------------------------------------------------------------


def handshake_for(*subprotocols: str) -> Handshake:
    """Make a handshake of a client that offers these subprotocols."""
    return Handshake(ask(*REQUEST.items()), KEY, subprotocols)


def test_answer_is_built_as_the_rfc_says() -> None:
    """The 101 has the headers of §4.2.2 step 5, then those that were added."""
    handshake = handshake_for("chat")
    assert accept(handshake) == head("HTTP/1.1 101 Switching Protocols", ANSWER, {})
    handshake.select_subprotocol("chat")
    handshake.response_headers.add("Set-Cookie", "a=1")
    handshake.response_headers.add("Set-Cookie", "b=2")
    changes: Changes = {"Sec-WebSocket-Protocol": "chat", "Set-Cookie": ["a=1", "b=2"]}
    assert accept(handshake) == head("HTTP/1.1 101 Switching Protocols", ANSWER, changes)


def test_answer_names_the_extensions() -> None:
    """The 101 says what was chosen of the extensions, and nothing about them where nothing was."""
    changes: Changes = {"Sec-WebSocket-Extensions": "x; a=1"}
    assert accept(handshake_for(), "x; a=1") == head("HTTP/1.1 101 Switching Protocols", ANSWER, changes)


def check(
    changes: Changes, subprotocols: Sequence[str] = ("chat", "super")
) -> tuple[str | None, list[Extension]]:
    """Read and check an answer in all deliveries; return the subprotocol and the extensions it chose."""
    answer = heard(head("HTTP/1.1 101 Switching Protocols", ANSWER, changes))
    return check_response(Response(answer.status, answer.body, answer.headers), KEY, subprotocols)


free_headers = header_sets(
    "upgrade", "connection", "content-length", "transfer-encoding", "host", "origin"
).map(lambda pairs: [pair for pair in pairs if not pair[0].lower().startswith("sec-websocket-")])


@settings(deadline=None, max_examples=50)
@given(st.binary(min_size=16, max_size=16), st.lists(names, unique=True, max_size=4), free_headers, st.data())
def test_answer_that_is_built_passes_the_clients_check(
    raw: bytes, subprotocols: list[str], pairs: Pairs, data: st.DataObject
) -> None:
    """Whatever the key, the subprotocols and further headers, a client accepts what a server answers."""
    key = base64.b64encode(raw).decode()
    handshake = Handshake(ask(*REQUEST.items()), key, subprotocols)
    handshake.select_subprotocol(data.draw(st.sampled_from([None, *subprotocols])))
    for name, value in pairs:
        handshake.response_headers.add(name, value)
    answer = read_response(cut(accept(handshake) + b"\x81\x00", data.draw(cuts)))
    assert isinstance(answer, Answer)
    assert answer.rest == b"\x81\x00"
    assert answer.headers[len(answer.headers) - len(pairs) :] == [
        (name.lower(), value) for name, value in pairs
    ]
    response = Response(answer.status, answer.body, Headers(answer.headers))
    assert check_response(response, key, subprotocols) == (handshake.subprotocol, [])


@pytest.mark.attack("A06")
@pytest.mark.parametrize(
    "name",
    [
        "Upgrade",
        "connection",
        "Content-Length",
        "Transfer-Encoding",
        "Sec-WebSocket-Accept",
        "sec-websocket-x",
    ],
)
def test_answer_with_a_reserved_header_is_not_built(name: str) -> None:
    """A header that the handshake itself writes cannot be added to the 101."""
    handshake = handshake_for()
    handshake.response_headers[name] = "x"
    with pytest.raises(ValueError, match=name.lower()):
        accept(handshake)


@pytest.mark.attack("A01", "A02", "A03")
@pytest.mark.parametrize("text", ["a\r\nb: c", "a\n", "\x00", "a b", "", "\xe9", "a, b"])
def test_answer_with_an_injection_is_not_built(text: str) -> None:
    """Neither a header nor a subprotocol gets into the 101 with what would break out of its place."""
    handshake = handshake_for("chat")
    with pytest.raises(ValueError, match="header name"):
        handshake.response_headers[text] = "x"
    if any(ord(character) < 32 for character in text):
        with pytest.raises(ValueError, match="header A"):
            handshake.response_headers["A"] = text
    handshake.subprotocol = text
    with pytest.raises(ValueError, match="subprotocol"):
        accept(handshake)


@pytest.mark.parametrize(
    ("changes", "subprotocol"),
    [
        ({}, None),
        ({"Sec-WebSocket-Extensions": ["permessage-deflate", "x; a=1"]}, None),
        ({"Upgrade": "WebSocket", "Connection": "upgrade"}, None),
        ({"Connection": "keep-alive, UPGRADE"}, None),
        ({"Connection": ["keep-alive", "Upgrade"]}, None),
        ({"Sec-WebSocket-Protocol": "super"}, "super"),
        ({"Sec-WebSocket-Accept": f"  {ACCEPT}\t", "Server": "x", "Content-Length": "0"}, None),
    ],
)
def test_answer_that_is_correct_opens_the_connection(changes: Changes, subprotocol: str | None) -> None:
    """A correct 101 is accepted, and the subprotocol and the extensions it chose are returned."""
    chosen = (
        [("permessage-deflate", ()), ("x", (("a", "1"),))] if "Sec-WebSocket-Extensions" in changes else []
    )
    assert check(changes) == (subprotocol, chosen)


@pytest.mark.attack("A17")
@pytest.mark.attack("S05")
@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"Sec-WebSocket-Accept": None}, "does not answer our key"),
        ({"Sec-WebSocket-Accept": ""}, "does not answer our key"),
        ({"Sec-WebSocket-Accept": KEY}, "does not answer our key"),
        ({"Sec-WebSocket-Accept": ACCEPT.lower()}, "does not answer our key"),
        ({"Sec-WebSocket-Accept": ACCEPT[:-1]}, "does not answer our key"),
        ({"Sec-WebSocket-Accept": f'"{ACCEPT}"'}, "does not answer our key"),
        ({"Sec-WebSocket-Accept": f"{ACCEPT}, {ACCEPT}"}, "does not answer our key"),
        ({"Sec-WebSocket-Accept": [ACCEPT, ACCEPT]}, "does not answer our key"),
        ({"Sec-WebSocket-Accept": [ACCEPT, "x"]}, "does not answer our key"),
        *(({"Upgrade": value}, "Upgrade header") for value in (None, *NOT_WEBSOCKET[:-1])),
        ({"Upgrade": "h2c, websocket"}, "Upgrade header"),
        ({"Upgrade": "websocket, h2c"}, "Upgrade header"),
        ({"Upgrade": ["websocket", "h2c"]}, "Upgrade header"),
        *(
            ({"Connection": value}, "Connection header")
            for value in (None, "", "close", "upgrades", "notupgrade")
        ),
        *(({"Sec-WebSocket-Extensions": value}, "Extensions is malformed") for value in ("", "x; =1", "x,")),
        *(
            ({"Sec-WebSocket-Protocol": value}, "subprotocol")
            for value in ("Chat", "x", "", "chat, super", "chat;")
        ),
        ({"Sec-WebSocket-Protocol": ["chat", "chat"]}, "subprotocol"),
        ({"Sec-WebSocket-Protocol": ["chat", "super"]}, "subprotocol"),
    ],
)
def test_answer_that_is_wrong_is_refused(changes: Changes, error: str) -> None:
    """A 101 that lacks, repeats or invents something is no answer to our handshake (§4.1)."""
    with pytest.raises(InvalidResponse, match=error):
        check(changes)


@pytest.mark.attack("S05")
def test_answer_with_a_subprotocol_that_was_not_asked_for_is_refused() -> None:
    """A server cannot choose from an offer that was not made (§4.1 step 6)."""
    with pytest.raises(InvalidResponse, match="subprotocol"):
        check({"Sec-WebSocket-Protocol": "chat"}, ())


@pytest.mark.attack("S06")
@pytest.mark.parametrize("status", [200, 204, 301, 401, 403, 426, 500, 999])
@pytest.mark.parametrize("body", [b"n\xc3\xb6", "nö"])
def test_answer_of_another_status_is_a_rejection(status: int, body: bytes | str) -> None:
    """Another status than 101 is a rejection with the status, the headers and the body of the answer."""
    headers = [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), *ANSWER.items()]
    with pytest.raises(HandshakeRejected, match=str(status)) as caught:
        check_response(Response(status, body, Headers(headers)), KEY, ())
    assert (caught.value.status, caught.value.body) == (status, b"n\xc3\xb6")
    assert isinstance(caught.value.headers, Headers)
    assert caught.value.headers.get_all("set-cookie") == ["a=1", "b=2"]


# --- URLs: §3 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected", "authority"),
    [
        ("ws://example.com", Url(False, "example.com", 80, "/"), "example.com"),
        ("wss://example.com/", Url(True, "example.com", 443, "/"), "example.com"),
        ("ws://example.com:80/a", Url(False, "example.com", 80, "/a"), "example.com"),
        ("ws://example.com:443/a", Url(False, "example.com", 443, "/a"), "example.com:443"),
        ("wss://example.com:80/a", Url(True, "example.com", 80, "/a"), "example.com:80"),
        ("WSS://Example.COM:/A?B=c", Url(True, "example.com", 443, "/A?B=c"), "example.com"),
        ("ws://localhost?a=b/c?d", Url(False, "localhost", 80, "/?a=b/c?d"), "localhost"),
        ("ws://127.0.0.1:9882//a/../b;c", Url(False, "127.0.0.1", 9882, "//a/../b;c"), "127.0.0.1:9882"),
        ("ws://[::1]", Url(False, "::1", 80, "/"), "[::1]"),
        ("wss://[2001:DB8::1]:8443/", Url(True, "2001:db8::1", 8443, "/"), "[2001:db8::1]:8443"),
        ("ws://münchen.de:8080/", Url(False, "xn--mnchen-3ya.de", 8080, "/"), "xn--mnchen-3ya.de:8080"),
        ("ws://xn--mnchen-3ya.de/", Url(False, "xn--mnchen-3ya.de", 80, "/"), "xn--mnchen-3ya.de"),
        ("ws://日本\u3002jp/", Url(False, "xn--wgv71a.jp", 80, "/"), "xn--wgv71a.jp"),
        ("ws://a/ü?ö=%C3%A4", Url(False, "a", 80, "/%C3%BC?%C3%B6=%C3%A4"), "a"),
        ("ws://a/\u3000\U0001f600", Url(False, "a", 80, "/%E3%80%80%F0%9F%98%80"), "a"),
        ("ws://a:65535/b:c@d", Url(False, "a", 65535, "/b:c@d"), "a:65535"),
    ],
)
def test_url_is_parsed(text: str, expected: Url, authority: str) -> None:
    """A URL is parsed into what is connected to and what is asked for; the authority is what Host says."""
    parts = parse_url(text)
    assert parts == expected
    assert parts.authority == authority
    assert build_authority(parts.host, parts.port, parts.secure) == authority


@pytest.mark.attack("S10")
@pytest.mark.attack("A05")
@pytest.mark.parametrize(
    "text",
    [
        *("", "ws", "ws:", "ws:/a", "ws://", "ws:///a", "ws://:80/", "ws:example.com", "//example.com/"),
        *("/a", "ws:?"),
        *("http://a/", "https://a/", "ftp://a/", "file:///a", "wsx://a/", "w s://a/", "unix:/a"),
        "example.com:80",
        *("ws://a/#", "ws://a/#b", "ws://a#b", "ws://a?b#", "ws://user@a/", "ws://user:s3cret@a/"),
        *("ws://user:s3cret@exa\u2100mple/", "ws://user:s3cret@[a/", "ws://a:s3cret@b:c/"),
        "ws://@a/",
        *("ws://a:b/", "ws://a:-1/", "ws://a:65536/", "ws://a:0/", "ws://a:+80/", "ws://a:8_0/"),
        "ws://a:8:0/",
        *("ws://a:\u0661/", "ws://a:\xb2/", "ws://::1/", "ws://[::1/", "ws://::1]/", "ws://[::1]x/"),
        "ws://[::g]/",
        *("ws://[]/", "ws://[a]/", "ws://[1.2.3.4]/", "ws://[fe80::1%eth0]/", "ws://[v1.fe]/"),
        "ws://[::1][::2]/",
        *("ws://a\r\nb: c/", "ws://a/\r\nb: c", "ws://a/?\r\nb", "ws://a/\x00", "ws://a\x00/", "ws://a/\x7f"),
        *("ws://a/\n", "\nws://a/", "ws://a /", "ws://a/b c", " ws://a/", "ws://a/ ", "ws://a/\tb"),
        "w\ts://a/",
        *("ws://a\\b/", "ws://a|b/", "ws://a^b/", 'ws://a"b/', "ws://<a>/", "ws://a`/", "ws://{a}/"),
        "ws://%zz/",
        *("ws://ü..com/", "ws://\xad/", "ws://\u3000/", "ws://a\u3000b/", "ws://exa\u2100mple/"),
        "ws://a\uff0fb/",
        *("ws://a\uff20b/", "ws://a\u2044b\r\n/", "ws://\ud800/", "ws://a/\ud800", "ws://a\uff03/"),
        pytest.param(f"ws://{'ü' * 80}.com/", id="long label"),
    ],
)
def test_url_that_is_wrong_is_refused(text: str) -> None:
    """What is no ws or wss URL, or would not survive the wire, is a ValueError that keeps its password."""
    with pytest.raises(ValueError, match=r".") as caught:
        parse_url(text)
    assert "s3cret" not in str(caught.value)


@pytest.mark.attack("A05")
@settings(deadline=None, max_examples=200)
@given(st.text(st.characters(), max_size=20), st.text(st.characters(), max_size=20))
def test_url_of_random_text_is_parsed_or_refused(host: str, path: str) -> None:
    """Random text in a URL is a ValueError, or ends up in a request that a server accepts."""
    for text in (host + path, f"ws://{host}/{path}", f"wss://a:{path}", f"ws://[{host}]:80?{path}"):
        try:
            parts = parse_url(text)
        except ValueError:
            continue
        sent = build_request(parts.target, parts.authority, KEY, headers=Headers())
        received = RequestReader(8_192, 100).feed(sent)
        assert received is not None
        assert check_request(received).url == parts.target


@pytest.mark.attack("A05")
def test_long_url_is_judged_in_linear_time() -> None:
    """A URL of 100 kB is judged in a time that is linear in it."""
    long = "a" * LARGE
    for good in (f"ws://a/{long}", f"ws://a?{long}", f"ws://a/{'ü' * LARGE}"):
        assert len(parse_url(good).target) > LARGE
    for bad in (
        f"ws://{long}@/",
        f"ws://a:{long}",
        f"ws://{long}|/",
        f"ws://[{'1:' * LARGE}]/",
        f"ws://{long}ü/",
    ):
        with pytest.raises(ValueError, match=r"."):
            parse_url(bad)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/", "/"),
        ("/a?b=c&d", "/a?b=c&d"),
        ("/%20%zz?'\"<>[]|", "/%20%zz?'\"<>[]|"),
        ("/é€\U0001f600", "/%C3%A9%E2%82%AC%F0%9F%98%80"),
        ("/\x80\xa0", "/%C2%80%C2%A0"),
        ("//a", "//a"),
    ],
)
def test_target_is_made_fit_for_the_wire(target: str, expected: str) -> None:
    """A path with query is sent as it is, but what is not ASCII is percent-encoded."""
    assert check_target(target) == expected


BAD_TARGETS = [
    *("", "a", "*", "?a", "http://a/", "/ ", "/a b", "/a\tb", "/a\r\nb: c", "/\n", "/\x00", "/\x7f", "/a#b"),
    "/#",
    *(" /", "\r\n/", "é/", "/\ud800"),
]


@pytest.mark.attack("A05")
@pytest.mark.parametrize("target", BAD_TARGETS)
def test_target_that_is_wrong_is_refused(target: str) -> None:
    """What cannot stand in a request line as a path is a ValueError before anything is built."""
    with pytest.raises(ValueError, match=r"path|surrogates"):
        check_target(target)
    with pytest.raises(ValueError, match=r"path|surrogates"):
        build_request(target, HOST, KEY, headers=Headers())


# --- a client's request: §4.1 -----------------------------------------------------------------------


def test_key_is_16_bytes_and_never_the_same() -> None:
    """Each key has 16 bytes in base64, and no two of them are equal (§4.1 step 7)."""
    keys = {build_key() for _ in range(100)}
    assert len(keys) == 100
    assert {len(base64.b64decode(key, validate=True)) for key in keys} == {16}


def test_request_is_built_as_the_rfc_says() -> None:
    """The request has the headers of §4.1, then those that were added."""
    built = build_request(
        "/chat?ä",
        "example.com:8000",
        KEY,
        headers=Headers([("Cookie", "a=b"), ("X-A", "1"), ("x-a", "2")]),
        subprotocols=["chat", "super"],
        origin="https://example.com",
        extensions="x; a=1, y",
    )
    assert built == (
        b"GET /chat?%C3%A4 HTTP/1.1\r\n"
        b"Host: example.com:8000\r\n"
        b"Upgrade: websocket\r\n"
        b"Connection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        b"Sec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Protocol: chat, super\r\n"
        b"Sec-WebSocket-Extensions: x; a=1, y\r\n"
        b"Origin: https://example.com\r\n"
        b"Cookie: a=b\r\n"
        b"X-A: 1\r\n"
        b"x-a: 2\r\n"
        b"\r\n"
    )


def test_request_takes_the_host_it_is_given() -> None:
    """A Host among the headers takes the place of the authority; nothing is sent without need."""
    built = build_request("/", "example.com", KEY, headers=Headers({"HOST": "other.example:1"}))
    outcome = judge(built, facts)
    assert dict(outcome.headers)["host"] == "other.example:1"
    assert sorted(dict(outcome.headers)) == sorted(name.lower() for name in REQUEST)


@settings(deadline=None, max_examples=50)
@given(
    target=st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters=" #"), max_size=20),
    authority=st.sampled_from([text for text, _ in GOOD_HOSTS]),
    pairs=free_headers,
    subprotocols=st.lists(names, unique=True, max_size=4),
    origin=st.none() | st.sampled_from(["https://example.com", "null"]),
    positions=cuts,
)
def test_request_that_is_built_passes_the_servers_check(
    target: str,
    authority: str,
    pairs: Pairs,
    subprotocols: list[str],
    origin: str | None,
    positions: list[int],
) -> None:
    """Whatever valid parts a client builds its request from, a server accepts it and has them back."""
    target, key = "/" + target, build_key()
    built = build_request(
        target,
        authority,
        key,
        headers=Headers(pairs),
        subprotocols=subprotocols,
        origin=origin,
        extensions=", ".join(subprotocols),
    )
    outcome = read_request(cut(built, positions), check_request)
    assert isinstance(outcome, Read), outcome
    handshake = outcome.judged
    assert (handshake.key, handshake.subprotocols, handshake.origin) == (key, tuple(subprotocols), origin)
    assert handshake.extensions == tuple(map(Extension, subprotocols))
    assert handshake.url == check_target(target)
    assert handshake.headers["host"] == authority
    assert outcome.headers[len(outcome.headers) - len(pairs) :] == [(n.lower(), v) for n, v in pairs]


@pytest.mark.attack("A06")
@pytest.mark.parametrize(
    "headers",
    [
        *([("Upgrade", "h2c")], [("connection", "close")], [("Sec-WebSocket-Key", KEY)]),
        [("Content-Length", "5")],
        *([("Transfer-Encoding", "chunked")], [("sec-websocket-version", "8")]),
        [("Sec-WebSocket-Protocol", "a")],
        *([("Sec-WebSocket-Extensions", "a")], [("Host", "a"), ("Host", "a")]),
        [("host", "a"), ("HOST", "b")],
        [("Origin", "https://other.example")],
    ],
)
def test_request_with_a_reserved_header_is_not_built(headers: Pairs) -> None:
    """A header that the handshake writes itself, or that may be there once only, cannot be added to it."""
    with pytest.raises(ValueError, match=f"(?i){headers[0][0]}"):
        build_request("/", HOST, KEY, headers=Headers(headers), origin="https://example.com")


@pytest.mark.attack("A03")
@pytest.mark.parametrize(
    "subprotocols",
    [
        [""],
        ["a b"],
        ["a,b"],
        ["a", "a"],
        ["a\r\nb: c"],
        ["a", "\x00"],
        ["\xe9"],
        ["\ud800"],
        ["a", None],
        [b"a"],
    ],
)
def test_request_with_bad_subprotocols_is_not_built(subprotocols: list[Any]) -> None:
    """Subprotocols that are not different tokens are a ValueError before anything is built."""
    with pytest.raises(ValueError, match="subprotocols"):
        build_request("/", HOST, KEY, headers=Headers(), subprotocols=subprotocols)


@pytest.mark.attack("A04")
@pytest.mark.parametrize("origin", ["https://a\r\nb: c", "\n", "a\x00", "\x7f", " a", "\ud800", "\u20ac"])
def test_request_with_a_bad_origin_is_not_built(origin: str) -> None:
    """An origin, and any header such as User-Agent, that would not survive the wire is a ValueError."""
    with pytest.raises(ValueError, match="Origin"):
        build_request("/", HOST, KEY, headers=Headers(), origin=origin)
    with pytest.raises(ValueError, match="User-Agent"):
        build_request("/", HOST, KEY, headers=Headers({"User-Agent": origin}))


@pytest.mark.attack("A05")
@pytest.mark.parametrize("authority", [*BAD_HOSTS, "a\r\nb: c", "a\x00", "\u20ac", "\ud800", "a\n"])
def test_request_to_a_bad_host_is_not_built(authority: str) -> None:
    """A host that no server would accept is a ValueError before anything is built."""
    with pytest.raises(ValueError, match=r"(?i)host"):
        build_request("/", authority, KEY, headers=Headers())
    with pytest.raises(ValueError, match=r"(?i)host"):
        build_request("/", HOST, KEY, headers=Headers({"Host": authority}))


@pytest.mark.parametrize(
    ("block", "pairs"),
    [
        ("", []),
        ("Host: x\r\nA: b", [("Host", "x"), ("A", "b")]),
        ("A:b\r\nA: \tc d \r\n", [("A", "b"), ("A", "c d")]),
        ("A:\r\n\r\nB: c:d\r\n\r\n", [("A", ""), ("B", "c:d")]),
    ],
)
def test_header_block_is_parsed(block: str, pairs: Pairs) -> None:
    """Headers that are given as text are those of its lines, in order, without the white space around."""
    assert parse_header_block(block).pairs() == pairs


@pytest.mark.attack("A01", "A02")
@pytest.mark.parametrize(
    "block",
    [
        *("A", "A: b\r\nC", "A b: c", ": b", "A: b\nC: d", "A: b\rC: d", " A: b", "A : b", "A: \x00"),
        *("A: \u20ac", "A\n: b", "\n", "A:\r\n b: c"),
    ],
)
def test_header_block_that_is_malformed_is_refused(block: str) -> None:
    """Text that is not lines of name and value is a ValueError, whatever its line ends."""
    with pytest.raises(ValueError, match="header"):
        parse_header_block(block)
