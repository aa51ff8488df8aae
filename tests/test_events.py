"""The words of RFC 6455: their numbers, and what a Close frame holds."""

from __future__ import annotations

from enum import IntEnum

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyio_ws.events import CloseCode, Message, MessageType, Opcode, build_close, may_be_sent, parse_close

PROPERTY = settings(deadline=None, derandomize=True, database=None)

SENDABLE = {*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)}
"""RFC 6455 §7.4.1 and §7.4.2, with the codes that the IANA registry has added since."""


@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        (Opcode, {"CONTINUATION": 0, "TEXT": 1, "BINARY": 2, "CLOSE": 8, "PING": 9, "PONG": 10}),
        (MessageType, {"TEXT": 1, "BINARY": 2, "CLOSE": 8, "PING": 9, "PONG": 10}),
        (
            CloseCode,
            {
                "NORMAL_CLOSURE": 1000,
                "GOING_AWAY": 1001,
                "PROTOCOL_ERROR": 1002,
                "UNSUPPORTED_DATA": 1003,
                "NO_STATUS_RCVD": 1005,
                "ABNORMAL_CLOSURE": 1006,
                "INVALID_FRAME_PAYLOAD_DATA": 1007,
                "POLICY_VIOLATION": 1008,
                "MESSAGE_TOO_BIG": 1009,
                "MANDATORY_EXT": 1010,
                "INTERNAL_ERROR": 1011,
                "SERVICE_RESTART": 1012,
                "TRY_AGAIN_LATER": 1013,
                "BAD_GATEWAY": 1014,
                "TLS_HANDSHAKE": 1015,
            },
        ),
    ],
)
def test_words_have_the_numbers_of_the_registry(words: type[IntEnum], numbers: dict[str, int]) -> None:
    """Opcodes, message types and close codes have the numbers that IANA registered, and no others exist."""
    assert {word.name: word.value for word in words} == numbers


@pytest.mark.attack("F22")
def test_close_code_may_be_sent_only_if_the_rfc_lets_it() -> None:
    """Of all 65,536 codes exactly 1000-1003, 1007-1014 and 3000-4999 may be on the wire."""
    assert {code for code in range(65536) if may_be_sent(code)} == SENDABLE


@pytest.mark.parametrize("code", [-1000, -1, 65536 + 1000, 2**64 + 1000])
def test_close_code_outside_two_bytes_may_not_be_sent(code: int) -> None:
    """A number that two bytes do not hold is no close code, whatever its last two bytes are."""
    assert not may_be_sent(code)


@pytest.mark.parametrize(
    ("code", "reason", "payload"),
    [
        (1000, "", b"\x03\xe8"),
        (CloseCode.GOING_AWAY, "bye", b"\x03\xe9bye"),
        (3000, "\u20ac", b"\x0b\xb8\xe2\x82\xac"),
        (4999, "x" * 123, b"\x13\x87" + b"x" * 123),
    ],
)
def test_close_payload_is_two_bytes_of_code_and_the_reason(code: int, reason: str, payload: bytes) -> None:
    """The payload of a Close is the code in network byte order, then the reason in UTF-8; and back."""
    assert build_close(code, reason) == payload
    assert parse_close(payload) == (code, reason)


@PROPERTY
@given(st.sampled_from(sorted(SENDABLE)), st.text(max_size=30))
def test_close_payload_is_parsed_into_what_it_was_built_of(code: int, reason: str) -> None:
    """Whatever code and reason make up a Close, parsing its payload gives them back."""
    assert parse_close(build_close(code, reason)) == (code, reason)


@pytest.mark.parametrize("payload", ["", b"", memoryview(b"")])
def test_close_without_payload_has_code_1005(payload: str | bytes | memoryview) -> None:
    """A Close without a payload reads as 1005, the code that says there was none (RFC 6455 §7.1.5)."""
    assert parse_close(payload) == (1005, "")


@pytest.mark.parametrize("payload", [b"\x03\xe8ok", memoryview(b"\x03\xe8ok")])
def test_close_payload_is_parsed_from_any_type_of_message_data(payload: bytes | memoryview) -> None:
    """A Close is parsed from bytes and from a view of them alike."""
    assert parse_close(payload) == (1000, "ok")


def test_close_payload_is_parsed_from_text() -> None:
    """A Close whose payload was given as text is parsed from the bytes of its UTF-8."""
    assert parse_close("\x0c\x1cok") == (0x0C1C, "ok")


def test_close_code_that_may_not_be_sent_is_refused() -> None:
    """Building a Close with any code that may not be on the wire is a ValueError that names the code."""

    def outcome(code: int) -> str:
        try:
            return build_close(code).hex()
        except ValueError as exc:
            return str(exc)

    codes = [-1, *range(65536), 65536, 2**70]
    assert {code: outcome(code) for code in codes} == {
        code: f"{code:04x}"
        if code in SENDABLE
        else f"code: {code} may not be sent in a Close frame (RFC 6455 §7.4)"
        for code in codes
    }


@pytest.mark.parametrize(("reason", "size"), [("x" * 124, 124), ("\u20ac" * 42, 126), ("x" * 70_000, 70_000)])
def test_close_reason_over_123_bytes_is_refused(reason: str, size: int) -> None:
    """A reason is measured in bytes of UTF-8, and one that a control frame cannot hold is a ValueError."""
    with pytest.raises(ValueError, match=f"^reason: {size} bytes of UTF-8"):
        build_close(1000, reason)


def test_close_reason_with_a_lone_surrogate_is_refused() -> None:
    """A reason that has no UTF-8 is a UnicodeEncodeError."""
    with pytest.raises(UnicodeEncodeError):
        build_close(1000, "\ud800")


def test_message_has_the_code_and_reason_of_its_close() -> None:
    """A Close message gives its code and its reason; without a payload they are 1005 and empty."""
    message = Message(MessageType.CLOSE, b"\x03\xf3sorry")
    assert (message.close_code, message.close_reason) == (1011, "sorry")
    empty = Message(MessageType.CLOSE, b"")
    assert (empty.close_code, empty.close_reason) == (1005, "")


@pytest.mark.parametrize("type_", [type_ for type_ in MessageType if type_ is not MessageType.CLOSE])
def test_message_other_than_close_has_no_close_code(type_: MessageType) -> None:
    """Asking any other message for a close code or reason is an AttributeError that names its type."""
    message = Message(type_, b"\x03\xe8")
    with pytest.raises(AttributeError, match=f"^a {type_.name} message has no close code$"):
        _ = message.close_code
    with pytest.raises(AttributeError, match=f"^a {type_.name} message has no close reason$"):
        _ = message.close_reason


@pytest.mark.attack("L06")
@PROPERTY
@given(
    st.sampled_from(MessageType),
    st.one_of(st.text(st.characters()), st.binary(), st.binary().map(lambda data: memoryview(data))),
)
def test_message_is_represented_in_proportion_to_its_data(
    type_: MessageType, data: str | bytes | memoryview
) -> None:
    """The repr and str of any message exist, and are no longer than ten characters per item of data."""
    message = Message(type_, data)
    assert max(len(repr(message)), len(str(message))) <= 10 * len(data) + 100
