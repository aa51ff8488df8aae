"""The words of RFC 6455 that every other module speaks: opcodes, close codes, messages.

Nothing here does anything; what is done with these words starts in ``framing.py``.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class Opcode(IntEnum):
    """What a frame's payload is (RFC 6455 §5.2, §11.8)."""

    CONTINUATION = 0x0
    TEXT = 0x1
    BINARY = 0x2
    CLOSE = 0x8
    PING = 0x9
    PONG = 0xA


class MessageType(IntEnum):
    """What a :class:`Message` is; each has its opcode's value."""

    TEXT = 0x1
    BINARY = 0x2
    CLOSE = 0x8
    PING = 0x9
    PONG = 0xA


class CloseCode(IntEnum):
    """The registered close codes (RFC 6455 §7.4.1 and the IANA registry that it founded)."""

    NORMAL_CLOSURE = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    NO_STATUS_RCVD = 1005
    ABNORMAL_CLOSURE = 1006
    INVALID_FRAME_PAYLOAD_DATA = 1007
    POLICY_VIOLATION = 1008
    MESSAGE_TOO_BIG = 1009
    MANDATORY_EXT = 1010
    INTERNAL_ERROR = 1011
    SERVICE_RESTART = 1012
    TRY_AGAIN_LATER = 1013
    BAD_GATEWAY = 1014
    TLS_HANDSHAKE = 1015


_NEVER_ON_THE_WIRE = frozenset({1004, 1005, 1006})


def may_be_sent(code: int) -> bool:
    """Tell whether a close code may appear in a Close frame.

    1004 to 1006 and 1015 are reserved for reports to the application, 1016 to 2999 for future
    standards; 3000 to 4999 belong to libraries and applications (RFC 6455 §7.4).
    """
    return (1000 <= code <= 1014 and code not in _NEVER_ON_THE_WIRE) or 3000 <= code <= 4999


class Message(NamedTuple):
    """A complete message or control frame, as it was received.

    ``data`` is ``str`` for text (``bytes`` when UTF-8 checking is off) and ``bytes`` for everything
    else; for a Close it is the frame's payload, of which :attr:`close_code` and :attr:`close_reason`
    are the parts.
    """

    type: MessageType
    data: str | bytes | memoryview

    @property
    def close_code(self) -> int:
        """The code in a Close; 1005 when it has none (RFC 6455 §7.1.5)."""
        if self.type is not MessageType.CLOSE:
            raise AttributeError(f"a {self.type.name} message has no close code")
        return parse_close(self.data)[0]

    @property
    def close_reason(self) -> str:
        """The reason in a Close, ``""`` when it has none (RFC 6455 §7.1.6)."""
        if self.type is not MessageType.CLOSE:
            raise AttributeError(f"a {self.type.name} message has no close reason")
        return parse_close(self.data)[1]


def parse_close(payload: str | bytes | memoryview) -> tuple[int, str]:
    """Split the payload of a Close frame that was found valid into code and reason (RFC 6455 §5.5.1)."""
    data = payload.encode() if isinstance(payload, str) else bytes(payload)
    if not data:
        return CloseCode.NO_STATUS_RCVD, ""
    return int.from_bytes(data[:2], "big"), data[2:].decode()


def build_close(code: int, reason: str = "") -> bytes:
    """Build the payload of a Close frame (RFC 6455 §5.5.1).

    :raises ValueError: when the code may not be sent, or the reason is longer than 123 bytes of UTF-8
    """
    if not may_be_sent(code):
        raise ValueError(f"code: {int(code)} may not be sent in a Close frame (RFC 6455 §7.4)")
    data = reason.encode()
    if len(data) > 123:
        raise ValueError(f"reason: {len(data)} bytes of UTF-8, a Close frame holds at most 123")
    return code.to_bytes(2, "big") + data
