"""The settings: what they are when nothing is said, what is refused, and what each one does.

The second half gives every field one test that shows its effect on a connection, because a setting that
does nothing must not exist. Time is virtual there: 20 seconds take no time, and are 20 seconds exactly.
"""

from __future__ import annotations

import dataclasses
import math
import re
import socket
import ssl
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from anyio_ws import (
    BuffersConfig,
    ClientConfig,
    Compression,
    Config,
    ConnectionBroken,
    HandshakeConfig,
    Server,
    ThreadPoolConfig,
    buffer_provider,
    connect,
    testing,
)

from . import support
from .certificates import PEM, server_context
from .support import (
    BINARY,
    PING,
    PONG,
    TEXT,
    Peer,
    Stopwatch,
    build_request,
    listening,
    no_hang,
    open_end,
    serving,
    settle,
    virtual,
)

no_surprises = support.no_surprises
pytestmark = pytest.mark.usefixtures("no_surprises")

PREFIXES = {HandshakeConfig: "handshake.", BuffersConfig: "buffers.", ThreadPoolConfig: "thread_pool."}
KINDS: list[type[Any]] = [Config, ClientConfig, *PREFIXES]
BOTH = pytest.mark.parametrize("kind", [Config, ClientConfig])
AnyConfig = type[Config] | type[ClientConfig]

# --- what is said when nothing is said ----------------------------------------------------------------

SHARED = {
    "utf8": "strict",
    "ping_interval": 20.0,
    "ping_timeout": 20.0,
    "close_timeout": 5.0,
    "write_timeout": 20.0,
    "inbox_size": 32_768,
    "outbox_size": 65_536,
    "max_control_rate": 10_000,
    "message_view": False,
    "subprotocols": (),
    "compression": Compression(
        server_max_window_bits=12,
        client_max_window_bits=12,
        server_no_context_takeover=False,
        client_no_context_takeover=True,
        contexts=64,
        level=-1,
        memory_level=5,
        threshold=64,
        backend="zlib",
    ),
}
SERVER = {
    "port": 9882,
    "address": "127.0.0.1",
    "unix_path": None,
    "backlog": 2_048,
    "max_conn": 16_384,
    "max_message_size": 65_536,
    "handshake": HandshakeConfig(timeout=10.0, max_size=8_192, max_headers=100, count=32),
    "buffers": BuffersConfig(pool=None, size=2_048, large_count=8, large_size=None),
    "blocking": False,
    "thread_pool": ThreadPoolConfig(count=4, backlog=500, buffer_size=32_768),
    "shutdown_timeout": 10.0,
    "origins": None,
    "tls": None,
}
CLIENT = {
    "max_size": 65_536,
    "buffer_size": 4_096,
    "buffer_provider": None,
    "handle_ping": False,
    "handle_pong": False,
    "handle_close": False,
    "tls": False,
    "ca_bundle": None,
}


@pytest.mark.parametrize(("kind", "expected"), [(Config, SERVER), (ClientConfig, CLIENT)])
def test_config_defaults_are_those_of_the_contract(kind: AnyConfig, expected: dict[str, Any]) -> None:
    """Every field has the default that the documentation promises."""
    for name, value in (SHARED | expected).items():
        assert getattr(kind(), name) == value, name


@pytest.mark.parametrize("kind", KINDS)
def test_config_defaults_are_finite(kind: type[Any]) -> None:
    """No limit and no wait is infinite unless somebody says so."""
    for field in dataclasses.fields(kind):
        value = getattr(kind(), field.name)
        assert not isinstance(value, float) or value < math.inf, field.name


@pytest.mark.parametrize("config", [kind() for kind in KINDS])
def test_config_is_frozen(config: Any) -> None:
    """A configuration that is in use cannot be changed under the connections that use it."""
    for field in dataclasses.fields(config):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, field.name, getattr(config, field.name))


@pytest.mark.parametrize("kind", KINDS)
def test_config_has_no_field_of_another_name(kind: type[Any]) -> None:
    """A misspelt field is an error where the configuration is made."""
    with pytest.raises(TypeError, match="max_mesage_size"):
        kind(max_mesage_size=1)


@pytest.mark.parametrize("kind", KINDS)
def test_config_takes_no_positional_arguments(kind: type[Any]) -> None:
    """A value without a name is an error: nobody could read what it is."""
    with pytest.raises(TypeError):
        kind(1)


def test_client_config_calls_the_largest_message_by_both_names() -> None:
    """The client's ``max_size`` answers to the server's name for it as well."""
    assert ClientConfig(max_size=77).max_message_size == 77


# --- what is refused ----------------------------------------------------------------------------------

NO_DURATION = [0, -1, math.inf, -math.inf, math.nan, "10", True, b"1"]
NO_NUMBER = [-1, 1.0, "1", None, True, 2**62 + 1]


@BOTH
@pytest.mark.parametrize("value", NO_DURATION)
@pytest.mark.parametrize("name", ["ping_interval", "ping_timeout", "close_timeout", "write_timeout"])
def test_config_refuses_durations_that_are_none(kind: AnyConfig, name: str, value: Any) -> None:
    """A wait is a positive, finite number of seconds; the error names the field and shows the value."""
    with pytest.raises(ValueError, match=rf"^{name}: .*not {value!r}$"):
        kind(**{name: value})


@pytest.mark.parametrize("value", [*NO_DURATION, None])
@pytest.mark.parametrize(("kind", "name"), [(Config, "shutdown_timeout"), (HandshakeConfig, "timeout")])
def test_config_refuses_a_server_s_durations_that_are_none(kind: type[Any], name: str, value: Any) -> None:
    """So it is with the waits of a server alone."""
    with pytest.raises(ValueError, match=rf"^(handshake\.)?{name}: "):
        kind(**{name: value})


@BOTH
@pytest.mark.parametrize("name", ["ping_timeout", "close_timeout", "write_timeout"])
def test_config_refuses_to_wait_forever(kind: type[Any], name: str) -> None:
    """Keepalive can be switched off with ``ping_interval=None``; a wait for the peer cannot."""
    with pytest.raises(ValueError, match=rf"^{name}: .*every wait has an end$"):
        kind(**{name: None})


@pytest.mark.parametrize("value", NO_NUMBER)
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *((kind, name) for kind in (Config, ClientConfig) for name in ("inbox_size", "outbox_size")),
        *((Config, name) for name in ("port", "backlog", "max_conn", "max_message_size")),
        *((HandshakeConfig, name) for name in ("max_size", "max_headers", "count")),
        *((BuffersConfig, name) for name in ("size", "large_count")),
        *((ThreadPoolConfig, name) for name in ("count", "backlog", "buffer_size")),
        *((ClientConfig, name) for name in ("max_size", "buffer_size")),
    ],
)
def test_config_refuses_numbers_that_are_none(kind: type[Any], name: str, value: Any) -> None:
    """A size is a whole number; the error names the field, says the bounds, and shows the value."""
    prefix = re.escape(PREFIXES.get(kind, ""))
    with pytest.raises(ValueError, match=rf"^{prefix}{name}: a whole number .* not {value!r}$"):
        kind(**{name: value})


@pytest.mark.parametrize("kind", [Config, ClientConfig])
def test_max_control_rate_is_a_number_or_none(kind: type[Any]) -> None:
    """Without a limit it is ``None``; what is no number is refused by name."""
    assert kind(max_control_rate=None).max_control_rate is None
    for value in NO_NUMBER:
        if value is not None:
            with pytest.raises(
                ValueError, match=r"^max_control_rate: a whole number of at least 1 is needed"
            ):
                kind(max_control_rate=value)


@pytest.mark.parametrize(
    ("kind", "name", "least", "most"),
    [
        (Config, "inbox_size", 1, None),
        (Config, "outbox_size", 0, None),
        (Config, "max_control_rate", 1, None),
        (Config, "port", 0, 65_535),
        (Config, "backlog", 1, None),
        (Config, "max_conn", 1, None),
        (Config, "max_message_size", 1, None),
        (HandshakeConfig, "max_size", 128, None),
        (HandshakeConfig, "max_headers", 5, None),
        (HandshakeConfig, "count", 0, None),
        (BuffersConfig, "pool", 1, None),
        (BuffersConfig, "size", 1, None),
        (BuffersConfig, "large_count", 0, None),
        (BuffersConfig, "large_size", 2_048, None),
        (ThreadPoolConfig, "count", 1, None),
        (ThreadPoolConfig, "backlog", 1, None),
        (ThreadPoolConfig, "buffer_size", 1, None),
        (ClientConfig, "max_size", 1, None),
        (ClientConfig, "buffer_size", 256, None),
    ],
)
def test_config_takes_numbers_up_to_their_bounds(
    kind: type[Any], name: str, least: int, most: int | None
) -> None:
    """The bounds themselves are fine, one beyond is not."""
    assert getattr(kind(**{name: least}), name) == least
    with pytest.raises(ValueError, match=f"{least}.*, not {least - 1}$"):
        kind(**{name: least - 1})
    if most is not None:
        assert getattr(kind(**{name: most}), name) == most
        with pytest.raises(ValueError, match=f"{least} to {most} .*, not {most + 1}$"):
            kind(**{name: most + 1})


@BOTH
@pytest.mark.parametrize("value", ["loose", "", None, True, ["strict"]])
def test_config_refuses_other_ways_to_treat_utf8(kind: AnyConfig, value: Any) -> None:
    """UTF-8 is checked or it is not."""
    with pytest.raises(ValueError, match=r"^utf8: "):
        kind(utf8=value)


@BOTH
@pytest.mark.parametrize("value", ["chat", b"chat", None, ["a b"], [""], [b"chat"], ["a", "b", "a"], {"a"}])
def test_config_refuses_subprotocols_that_are_none(kind: AnyConfig, value: Any) -> None:
    """Subprotocols are a sequence of different tokens; one string is not taken for its letters."""
    with pytest.raises(ValueError, match=r"^subprotocols: "):
        kind(subprotocols=value)


@BOTH
def test_config_keeps_a_copy_of_the_subprotocols(kind: AnyConfig) -> None:
    """The caller's list may change later; the configuration does not."""
    names = ["v2", "v1"]
    config = kind(subprotocols=names)
    names.clear()
    assert config.subprotocols == ("v2", "v1")


@BOTH
@pytest.mark.parametrize("value", [True, False, "deflate", 6, {"level": 6}])
def test_config_refuses_a_compression_that_is_none(kind: AnyConfig, value: Any) -> None:
    """Compression is settled by a Compression, or not wanted; anything else is an error of that name."""
    with pytest.raises(ValueError, match=r"^compression: a Compression or None is needed"):
        kind(compression=value)
    assert kind(compression=None).compression is None


@pytest.mark.parametrize("value", ["", None, 5, b"127.0.0.1"])
def test_config_refuses_an_address_that_is_none(value: Any) -> None:
    """An address or a host name is text, and not empty: that would be all addresses, by accident."""
    with pytest.raises(ValueError, match=r"^address: "):
        Config(address=value)


@pytest.mark.parametrize("value", ["x" * 108, "a\0b", Path("/tmp", "x" * 103), "é" * 54, "", 5, b"/tmp/x"])
def test_config_refuses_a_unix_path_that_cannot_be_bound(value: Any) -> None:
    """A path that does not fit into a socket address, or is none, is refused before anything is bound."""
    with pytest.raises(ValueError, match=r"^unix_path: "):
        Config(unix_path=value)


@pytest.mark.parametrize("value", ["x" * 107, Path("/tmp", "x" * 102)])
def test_config_takes_a_unix_path_of_full_length(value: Any) -> None:
    """The 107 bytes that a socket address holds may be used."""
    assert Config(unix_path=value).unix_path == value


@pytest.mark.parametrize("value", [None, {}, {"timeout": 1.0}, 10])
def test_config_refuses_a_handshake_that_is_no_handshake_config(value: Any) -> None:
    """The limits on the opening handshake have a class of their own."""
    with pytest.raises(ValueError, match=r"^handshake: a HandshakeConfig is needed"):
        Config(handshake=value)


@pytest.mark.parametrize("value", [None, {}, HandshakeConfig(), 10])
@pytest.mark.parametrize(
    ("name", "kind"), [("buffers", "BuffersConfig"), ("thread_pool", "ThreadPoolConfig")]
)
def test_config_refuses_nested_settings_of_another_class(name: str, kind: str, value: Any) -> None:
    """The settings of the buffers and of the threads have classes of their own as well."""
    with pytest.raises(ValueError, match=rf"^{name}: a {kind} is needed"):
        Config(**{name: value})


def test_buffers_config_refuses_large_buffers_that_are_smaller() -> None:
    """A larger buffer that is smaller would never be used."""
    with pytest.raises(ValueError, match=r"^buffers.large_size: .* at least 4096 is needed, not 4095$"):
        BuffersConfig(size=4_096, large_size=4_095)


@pytest.mark.parametrize("value", [0, 1, "pool", object()])
def test_client_config_refuses_a_buffer_provider_that_is_none(value: Any) -> None:
    """A provider is what ``buffer_provider()`` makes."""
    with pytest.raises(ValueError, match=r"^buffer_provider: what buffer_provider\(\) makes"):
        ClientConfig(buffer_provider=value)


@pytest.mark.parametrize("value", [0, -1, 1.5, True, None, "1"])
@pytest.mark.parametrize("name", ["count", "size"])
def test_buffer_provider_refuses_numbers_that_are_none(name: str, value: Any) -> None:
    """The error names the argument where the provider is made."""
    with pytest.raises(ValueError, match=rf"^{name}: a whole number of at least 1 is needed"):
        buffer_provider(**{"count": 1, "size": 1, name: value})


@pytest.mark.parametrize(
    "value",
    [
        "example.com",
        "https://",
        "://example.com",
        "https://example.com/",
        "https://example.com/page",
        "https://Example.com",
        "HTTPS://example.com",
        "",
        5,
        b"https://example.com",
        None,
    ],
)
def test_config_refuses_origins_that_are_none(value: Any) -> None:
    """An origin has a scheme and a host, in lower case, and no path: anything else would match nothing."""
    with pytest.raises(ValueError, match=r"^origins: .*is no origin"):
        Config(origins=[value])


@pytest.mark.parametrize("value", [5, True, 1.5])
def test_config_refuses_origins_that_are_no_sequence(value: Any) -> None:
    """What cannot be iterated is an error that names the field, like every other."""
    with pytest.raises(ValueError, match=r"^origins: "):
        Config(origins=value)


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (None, None),
        ("*", ("*",)),
        ("https://example.com", ("https://example.com",)),
        (["https://example.com:8443", "null"], ("https://example.com:8443", "null")),
        ([], ()),
    ],
)
def test_config_keeps_origins_as_a_tuple(value: Any, kept: Any) -> None:
    """One origin may be given as it is; several are kept in a tuple of the configuration's own."""
    assert Config(origins=value).origins == kept


@pytest.mark.parametrize("value", [True, False, "cert.pem", ("cert", "key")])
def test_config_refuses_tls_that_is_no_context(value: Any) -> None:
    """A server needs a certificate: ``True`` cannot say which."""
    with pytest.raises(ValueError, match=r"^tls: an ssl.SSLContext or None is needed"):
        Config(tls=value)


@pytest.mark.parametrize("value", [None, 1, "yes"])
def test_client_config_refuses_tls_that_is_no_choice(value: Any) -> None:
    """A client says whether it wants TLS, or with which context."""
    with pytest.raises(ValueError, match=r"^tls: True, False or an ssl.SSLContext is needed"):
        ClientConfig(tls=value)


@pytest.mark.parametrize("value", ["bundle.pem", b"-----BEGIN", ssl.create_default_context()])
def test_client_config_refuses_a_ca_bundle_beside_a_context(value: Any) -> None:
    """Where a context decides whom to trust, a bundle would be a setting that does nothing."""
    with pytest.raises(ValueError, match=r"^ca_bundle: it has no effect"):
        ClientConfig(tls=ssl.create_default_context(), ca_bundle=value)


@pytest.mark.parametrize("value", [5, True, ["bundle.pem"]])
def test_client_config_refuses_a_ca_bundle_that_is_none(value: Any) -> None:
    """A bundle is a path, bytes, or a context; anything else is refused here and not by OpenSSL later."""
    with pytest.raises(ValueError, match=r"^ca_bundle: "):
        ClientConfig(ca_bundle=value)


@pytest.mark.parametrize("name", ["handle_ping", "handle_pong", "handle_close"])
@pytest.mark.parametrize("value", [None, 1, "no"])
def test_client_config_refuses_switches_that_are_no_bool(name: str, value: Any) -> None:
    """A switch is ``True`` or ``False``; the text ``"no"`` would be taken for yes."""
    with pytest.raises(ValueError, match=rf"^{name}: "):
        ClientConfig(**{name: value})


@pytest.mark.parametrize(
    ("kind", "name"), [(Config, "blocking"), (Config, "message_view"), (ClientConfig, "message_view")]
)
@pytest.mark.parametrize("value", [None, 1, "no"])
def test_config_refuses_switches_that_are_no_bool(kind: AnyConfig, name: str, value: Any) -> None:
    """So it is with the switches of both ends, and of a server."""
    with pytest.raises(ValueError, match=rf"^{name}: True or False is needed"):
        kind(**{name: value})


# --- what each field does -----------------------------------------------------------------------------


ROLES = pytest.mark.parametrize("role", ["server", "client"])


@virtual
@ROLES
@pytest.mark.parametrize(
    ("utf8", "received"), [("strict", "\N{BLACK HEART SUIT}"), ("off", "\N{BLACK HEART SUIT}".encode())]
)
async def test_utf8_decides_whether_text_is_str_or_bytes(role: str, utf8: str, received: str | bytes) -> None:
    """``"strict"`` delivers text as ``str``; ``"off"`` as the bytes that came."""
    async with open_end(role, utf8=utf8) as (conn, peer):
        await peer.send_frame(TEXT, "\N{BLACK HEART SUIT}".encode())
        assert await conn.receive() == received


@virtual
@ROLES
async def test_utf8_off_lets_invalid_text_pass(role: str) -> None:
    """``"off"`` checks nothing, as the documentation warns."""
    async with open_end(role, utf8="off") as (conn, peer):
        await peer.send_frame(TEXT, b"\xff\xc0")
        assert await conn.receive() == b"\xff\xc0"


@virtual
@ROLES
async def test_utf8_strict_fails_the_connection_on_invalid_text(role: str) -> None:
    """``"strict"`` answers text that is no UTF-8 with 1007."""
    async with open_end(role) as (conn, peer):
        await peer.send_frame(TEXT, b"\xff\xc0")
        assert (await peer.frame()).payload[:2] == (1007).to_bytes(2, "big")
        with pytest.raises(ConnectionBroken):
            await conn.receive()


@virtual
@ROLES
async def test_ping_interval_is_the_time_between_keepalive_pings(role: str) -> None:
    """A ping comes after every interval for as long as something is heard in between."""
    async with open_end(role, ping_interval=7.0, ping_timeout=3.0) as (_, peer):
        for _ in range(3):
            with Stopwatch(7):
                ping = await peer.frame()
            assert ping.opcode == PING
            await peer.send_frame(PONG, ping.payload)


@virtual
@ROLES
async def test_ping_interval_none_sends_no_pings(role: str) -> None:
    """``None`` switches keepalive off: nothing is sent in a day, and the connection stays open."""
    async with open_end(role, ping_interval=None) as (conn, peer):
        with anyio.move_on_after(86_400) as scope:
            await peer.frame()
        assert scope.cancelled_caught
        assert not conn.is_closed


@virtual
@ROLES
@pytest.mark.attack("R09")
async def test_ping_timeout_is_how_long_a_ping_may_stay_unanswered(role: str) -> None:
    """A peer of which nothing is heard is given up at interval and timeout, to the second."""
    async with open_end(role, ping_interval=7.0, ping_timeout=3.0) as (conn, _):
        with Stopwatch(10):
            await conn.wait_gone()
        assert conn.close_code == 1006


@virtual
@ROLES
async def test_close_timeout_is_how_long_the_peer_has_to_answer_a_close(role: str) -> None:
    """A peer that does not answer our Close is cut off after this time."""
    async with open_end(role, close_timeout=4.0) as (conn, peer):
        with Stopwatch(4):
            await conn.close()
        assert conn.close_code == 1006
        await peer.expect_close(1000)


@virtual
@ROLES
async def test_close_timeout_is_how_long_an_answer_waits_for_the_application(role: str) -> None:
    """The answer to a Close waits for messages before it to be handled, but not longer than this."""
    async with open_end(role, close_timeout=4.0) as (_, peer):
        await peer.send_frame(TEXT, b"nobody receives this")
        await peer.send_close(1000)
        with Stopwatch(4):
            await peer.expect_close(1000)


@virtual
@ROLES
@pytest.mark.attack("R01")
async def test_write_timeout_is_how_long_a_peer_may_read_nothing(role: str) -> None:
    """A peer that takes nothing of what is written is cut off after this time."""
    async with open_end(role, 1000, write_timeout=6.0, ping_interval=None) as (conn, _):
        await conn.write_bin(bytes(100_000))
        with Stopwatch(6):
            await conn.wait_gone()
        assert conn.close_code == 1006


@virtual
@ROLES
@pytest.mark.attack("R03")
async def test_inbox_size_stops_reading_until_half_of_it_is_handled(role: str) -> None:
    """A peer that sends faster than is received is slowed down, and nothing of what it sends is lost."""
    async with open_end(role, 200, inbox_size=1_000, ping_interval=None) as (conn, peer):
        taken = 0

        async def send_all() -> None:
            nonlocal taken
            for number in range(100):
                await peer.send_frame(BINARY, bytes([number]) * 100)
                taken += 1

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send_all)
            await settle()
            assert 1_000 // 164 <= taken <= 1_000 // 100
            before = taken
            await conn.receive()
            await settle()
            assert taken == before
            for number in range(1, 100):
                assert await conn.receive() == bytes([number]) * 100


@virtual
@ROLES
async def test_outbox_size_is_the_mark_above_which_writing_waits(role: str) -> None:
    """Up to the mark a write does not wait; above it, it waits until the peer has taken enough."""
    async with open_end(role, 200, outbox_size=1_000, ping_interval=None) as (conn, peer):
        while True:
            try:
                conn.write_nowait(bytes(300))
            except anyio.WouldBlock:
                break
        with anyio.move_on_after(1) as scope:
            await conn.write_bin(b"late")
        assert scope.cancelled_caught
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(conn.write_bin, b"in time")
            for _ in range(4):
                await peer.expect(BINARY, bytes(300))
            await peer.expect(BINARY, b"in time")


@virtual
async def test_subprotocols_of_a_server_are_chosen_in_its_own_order() -> None:
    """The server's order decides, whatever the client's is; what only one of them knows is left out."""
    config = Config(subprotocols=["v3", "v2", "v1"])
    async with testing.client(Idle, config=config, subprotocols=["v1", "v9", "v2"]) as client:
        assert client.subprotocol == "v2"
    async with testing.client(Idle, config=config, subprotocols=["v9"]) as client:
        assert client.subprotocol is None


@virtual
async def test_subprotocols_of_a_client_are_offered_in_order() -> None:
    """A client offers what its configuration says, preference first."""
    ours, theirs = testing.memory_stream_pair()
    peer = Peer(theirs, is_client=False)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(connect_and_leave, ours, ClientConfig(subprotocols=["v2", "v1"]))
        request = await peer.accept({"Sec-WebSocket-Protocol": "v1"})
        assert request.get("sec-websocket-protocol") == "v2, v1"
        await peer.expect_close(1000)
        await peer.send_close(1000)
        await peer.stream.aclose()


async def connect_and_leave(stream: Any, config: ClientConfig) -> None:
    """Connect as a client, and close at once."""
    async with connect("ws://localhost/", stream=stream, config=config):
        pass


class Idle:
    """A handler that does nothing."""

    def client_message(self, data: str | bytes) -> None:
        """Ignore it."""


@virtual
@pytest.mark.parametrize(("role", "field"), [("server", "max_message_size"), ("client", "max_size")])
async def test_max_message_size_is_the_longest_message(role: str, field: str) -> None:
    """A message of this size is received; one byte more fails the connection with 1009, before it is read."""
    fields: dict[str, Any] = {field: 300}
    async with open_end(role, **fields) as (conn, peer):
        await peer.send_frame(BINARY, bytes(300))
        assert await conn.receive() == bytes(300)
        await peer.send(peer.build(BINARY, bytes(301))[:8])
        assert (await peer.frame()).payload[:2] == (1009).to_bytes(2, "big")


@virtual
async def test_buffer_size_is_the_longest_request_of_a_client() -> None:
    """A request of this size is sent; one byte more is an error before anything is sent."""
    ours, theirs = testing.memory_stream_pair()
    peer = Peer(theirs, is_client=False)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(connect_and_leave, ours, ClientConfig())
        request = await peer.receive_head()
        size = len(request.line) + 2 + sum(len(f"{k}: {v}\r\n") for k, v in request.headers) + 2
        tasks.cancel_scope.cancel()
    fitting = {"X-Long": "x" * (1_000 - size - len("X-Long: \r\n"))}
    async with testing.client(Idle, headers=fitting, buffer_size=1_000):
        pass
    fitting["X-Long"] += "x"
    ours, theirs = testing.memory_stream_pair()
    with pytest.raises(ValueError, match=r"1001 bytes, more than buffer_size \(1000\)"):
        async with connect("ws://localhost/", stream=ours, headers=fitting, buffer_size=1_000):
            pass
    assert await Peer(theirs).rest() == b""


@virtual
async def test_max_conn_lets_further_connections_wait_until_another_ends() -> None:
    """At the limit a connection is neither refused nor served; when another ends its turn comes."""
    async with serving(Idle, config=Config(max_conn=2)) as served:
        first, second = await served.open(), await served.open()
        third = served.connect()
        await third.send(build_request())
        with anyio.move_on_after(8) as scope:
            await third.receive_head()
        assert scope.cancelled_caught
        await first.close_handshake()
        assert (await third.receive_head()).status == 101
        await second.close_handshake()
        await third.close_handshake()


@virtual
async def test_max_conn_is_for_all_listeners_together() -> None:
    """One connection on whichever listener is all that ``max_conn=1`` allows, and what it does allow."""
    listeners = [testing.MemoryListener(), testing.MemoryListener()]
    server = Server(Idle, Config(max_conn=1))
    async with no_hang(), anyio.create_task_group() as tasks:
        tasks.start_soon(partial(server.listen, listeners=listeners))
        for listener, other in (listeners, reversed(listeners)):
            peer = Peer(listener.connect())
            with anyio.fail_after(1):
                await peer.open()
            waiting = Peer(other.connect())
            await waiting.send(build_request())
            with anyio.move_on_after(8) as scope:
                await waiting.receive_head()
            assert scope.cancelled_caught
            await peer.close_handshake()
            assert (await waiting.receive_head()).status == 101
            await waiting.close_handshake()
        server.stop()


@virtual
@pytest.mark.attack("H01", "H02")
async def test_handshake_timeout_is_how_long_a_request_may_take() -> None:
    """A request that trickles in is answered with 408 at the deadline, however fresh its last byte is."""
    config = Config(handshake=HandshakeConfig(timeout=6.0))
    async with serving(Idle, config=config) as served:
        peer = served.connect()
        with Stopwatch(6):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(trickle, peer)
                head = await peer.receive_head()
                tasks.cancel_scope.cancel()
        assert head.status == 408
        await peer.expect_end()


async def trickle(peer: Peer) -> None:
    """Send a request, one byte every half second."""
    for byte in build_request():
        await peer.send(bytes([byte]))
        await anyio.sleep(0.5)


@virtual
@pytest.mark.attack("H17")
@pytest.mark.parametrize("whole", [True, False])
async def test_handshake_max_size_is_the_longest_request(whole: bool) -> None:
    """A request of this size is accepted; with one byte more it gets 431, whole or byte by byte."""
    fitting = build_request(headers={"X-Long": "x" * (500 - len(build_request()) - len("X-Long: \r\n"))})
    assert len(fitting) == 500
    too_long = fitting.replace(b"xxx", b"xxxx", 1)
    async with serving(Idle, config=Config(handshake=HandshakeConfig(max_size=500))) as served:
        for request, status in ((fitting, 101), (too_long, 431)):
            peer = served.connect()
            for piece in [request] if whole else [request[i : i + 1] for i in range(len(request))]:
                await peer.send(piece)
            assert (await peer.receive_head()).status == status
            await peer.stream.aclose()


@virtual
@pytest.mark.attack("H17")
async def test_handshake_max_size_without_a_line_end_is_a_too_long_target() -> None:
    """When the request line alone is longer than this, the answer is 414."""
    async with serving(Idle, config=Config(handshake=HandshakeConfig(max_size=500))) as served:
        peer = served.connect()
        await peer.send(build_request("/" + "x" * 600))
        assert (await peer.receive_head()).status == 414
        await peer.expect_end()


@virtual
@pytest.mark.attack("H18")
async def test_handshake_max_headers_is_the_largest_number_of_headers() -> None:
    """So many headers are accepted; one more gets 431, even when those that are needed come last."""
    async with serving(Idle, config=Config(handshake=HandshakeConfig(max_headers=8))) as served:
        for more, status in ((3, 101), (4, 431)):
            headers = dict.fromkeys((f"X-{number}" for number in range(more)), "1")
            peer = served.connect()
            await peer.send(build_request(headers=headers))
            assert (await peer.receive_head()).status == status
            await peer.stream.aclose()


@virtual
async def test_shutdown_timeout_is_how_long_hooks_may_go_on() -> None:
    """A hook that is at work when the server stops has this time to end; then it is cancelled."""
    ended: list[float] = []

    class Slow(Idle):
        async def after_init(self) -> None:
            try:
                await anyio.sleep(1_000)
            finally:
                ended.append(anyio.current_time())

    async with serving(Slow, config=Config(shutdown_timeout=3.0)) as served:
        await served.open()
        start = anyio.current_time()
    assert ended == [pytest.approx(start + 3)]


@virtual
@pytest.mark.attack("H23")
@pytest.mark.parametrize(
    ("origins", "origin", "status"),
    [
        (None, None, 101),
        (None, "http://localhost", 101),
        (None, "https://localhost", 101),  # the port of a Host without one is that of the page's scheme
        (None, "http://localhost:80", 101),
        (None, "http://localhost:8080", 403),
        (None, "http://evil.example", 403),
        (None, "http://localhost.evil.example", 403),
        (None, "null", 403),
        ("*", "http://evil.example", 101),
        (["https://good.example"], None, 101),
        (["https://good.example"], "https://good.example", 101),
        (["https://good.example"], "http://good.example", 403),
        (["https://good.example"], "https://good.example.evil", 403),
        (["https://good.example"], "https://good.example:8443", 403),
        (["https://good.example"], "http://localhost", 403),
        (["https://good.example", "null"], "null", 101),
        ([], "http://localhost", 403),
        ([], None, 101),
    ],
)
async def test_origins_are_those_whose_pages_may_connect(
    origins: Any, origin: str | None, status: int
) -> None:
    """A browser's page connects when its origin is one of these, by default that of the host itself."""
    async with serving(Idle, config=Config(origins=origins)) as served:
        peer = served.connect()
        await peer.send(build_request(headers={"Origin": origin}))
        assert (await peer.receive_head()).status == status
        await peer.stream.aclose()


# --- what needs sockets -------------------------------------------------------------------------------


async def test_port_0_lets_the_system_choose_one() -> None:
    """The port in ``addresses`` is the one that was chosen, and the server is there."""
    async with listening(Server(Idle, Config(port=0))) as addresses:
        ((host, port),) = addresses
        assert host == "127.0.0.1"
        assert port > 0
        async with connect(f"ws://127.0.0.1:{port}/") as client:
            assert client.remote_address == (host, port)


async def test_port_is_the_one_that_is_bound() -> None:
    """A port that is free now can be asked for, and is bound."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    async with listening(Server(Idle, Config(port=port))) as addresses:
        assert addresses == [("127.0.0.1", port)]


async def test_address_is_the_one_that_is_bound() -> None:
    """An IPv6 address is bound, and shown as host and port like any other."""
    async with listening(Server(Idle, Config(port=0, address="::1"))) as addresses:
        ((host, port),) = addresses
        assert host == "::1"
        async with connect(f"ws://[::1]:{port}/") as client:
            assert client.remote_address == ("::1", port)


async def test_address_of_several_addresses_binds_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host name with an IPv4 and an IPv6 address is bound to both, on the same port."""

    async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        assert host == "both.example"
        families = (socket.AF_INET6, "::1", (0, 0)), (socket.AF_INET, "127.0.0.1", ())
        return [(family, socket.SOCK_STREAM, 6, "", (ip, port, *rest)) for family, ip, rest in families]

    monkeypatch.setattr("anyio._core._sockets.getaddrinfo", getaddrinfo)
    async with listening(Server(Idle, Config(port=0, address="both.example"))) as addresses:
        assert {host for host, _ in addresses} == {"::1", "127.0.0.1"}
        for host, port in addresses:
            async with connect(f"ws://{f'[{host}]' if ':' in host else host}:{port}/") as client:
                assert client.remote_address == (host, port)


@pytest.mark.parametrize("kind", [str, Path])
async def test_unix_path_is_used_in_place_of_the_address(kind: type[Any], tmp_path: Path) -> None:
    """The socket file is bound, the TCP port is not, and ``addresses`` has the path."""
    path = tmp_path / "socket"
    async with listening(Server(Idle, Config(port=1, unix_path=kind(path)))) as addresses:
        assert addresses == [str(path)]
        async with connect("ws://localhost/", unix_path=path) as client:
            assert client.remote_address == str(path)


async def test_backlog_is_how_many_connections_wait_to_be_accepted(tmp_path: Path) -> None:
    """When the server takes no more, the kernel keeps so many connections for it, and then no more."""
    path = str(tmp_path / "socket")
    config = Config(unix_path=path, max_conn=1, backlog=3)
    async with listening(Server(Idle, config)), AsyncExitStack() as stack:
        await stack.enter_async_context(connect("ws://localhost/", unix_path=path))
        await settle()
        probes = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(5)]
        for probe in probes:
            probe.setblocking(False)
        for probe in probes[:4]:  # the kernel counts so: as many as the backlog says, and one
            probe.connect(path)
        with pytest.raises(BlockingIOError):
            probes[4].connect(path)


async def test_tls_of_a_server_is_what_its_connections_speak() -> None:
    """With a context the server speaks TLS with that certificate, and a request in clear gets nothing."""
    async with listening(Server(Idle, Config(port=0, tls=server_context()))) as addresses:
        port = addresses[0][1]
        async with connect(f"wss://127.0.0.1:{port}/", ca_bundle=PEM) as client:
            assert client.state.name == "OPEN"
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            peer = Peer(stream)
            await peer.send(build_request())
            assert not (await peer.rest()).startswith(b"HTTP")
