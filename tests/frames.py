"""A second opinion on RFC 6455 §5: frames built and parsed in the most literal way.

The tests compare the package with these functions. Therefore nothing here comes from the package, is
clever, or is fast; and the builder refuses nothing that bytes can express, because a frame that breaks
the protocol is what half of the tests are about.

A frame is, in this order (RFC 6455 §5.2)::

    byte 1    FIN (1 bit), RSV1, RSV2, RSV3 (1 bit each), opcode (4 bits)
    byte 2    MASK (1 bit), length (7 bits): 0 to 125, or 126 or 127 for one of the longer forms
    length    2 bytes after 126, 8 bytes after 127
    key       4 bytes when MASK is set
    payload   masked with the key when there is one
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple


class WireFrame(NamedTuple):
    """A frame as it was on the wire, except that its payload is unmasked."""

    opcode: int
    payload: bytes
    fin: bool = True
    rsv: int = 0
    """The three bits as one number: RSV1 is 4, RSV2 is 2, RSV3 is 1."""
    key: bytes | None = None
    """The masking key, ``None`` when the frame is not masked."""
    length_form: int = 7
    """How many bits hold the length: 7, 16 or 64."""


def build_frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    key: bytes | None = None,
    length_form: int | None = None,
    length: int | None = None,
) -> bytes:
    """Build one frame, correct or not.

    :param opcode: 0 to 15, known or reserved
    :param payload: the payload before masking
    :param rsv: the three bits as one number: RSV1 is 4, RSV2 is 2, RSV3 is 1
    :param key: the masking key; ``None`` leaves the frame unmasked
    :param length_form: 7, 16 or 64 bits of length, needed or not; the shortest that fits when omitted
    :param length: the length to declare when it is not the payload's

    :raises ValueError: when *length_form* cannot hold the length
    """
    if length is None:
        length = len(payload)
    if length_form is None:
        length_form = 7 if length <= 125 else 16 if length <= 0xFFFF else 64
    if length >= {7: 126, 16: 2**16, 64: 2**64}[length_form]:
        raise ValueError(f"{length_form} bits do not hold a length of {length}")
    mask_bit = 0 if key is None else 128
    wire = bytes([(128 if fin else 0) + rsv * 16 + opcode])
    if length_form == 7:
        wire += bytes([mask_bit + length])
    elif length_form == 16:
        wire += bytes([mask_bit + 126]) + length.to_bytes(2, "big")
    else:
        wire += bytes([mask_bit + 127]) + length.to_bytes(8, "big")
    return wire + (payload if key is None else key + xor(payload, key))


def parse_frames(wire: bytes) -> list[WireFrame]:
    """Parse bytes that hold whole frames and nothing else.

    :raises ValueError: when the last frame is not complete; it says at which byte that frame starts
    """
    frames: list[WireFrame] = []
    rest = wire
    while rest:
        start = len(wire) - len(rest)
        first, rest = _take(1, rest, start)
        second, rest = _take(1, rest, start)
        length, length_form, key = second[0] % 128, 7, None
        if length >= 126:
            length_form = 16 if length == 126 else 64
            extended, rest = _take(length_form // 8, rest, start)
            length = int.from_bytes(extended, "big")
        if second[0] >= 128:
            key, rest = _take(4, rest, start)
        payload, rest = _take(length, rest, start)
        if key is not None:
            payload = xor(payload, key)
        frames.append(
            WireFrame(
                opcode=first[0] % 16,
                payload=payload,
                fin=first[0] >= 128,
                rsv=first[0] // 16 % 8,
                key=key,
                length_form=length_form,
            )
        )
    return frames


def xor(data: bytes, key: bytes) -> bytes:
    """Mask or unmask: byte *i* of the data with byte *i* modulo 4 of the key (RFC 6455 §5.3)."""
    return bytes([byte ^ key[i % 4] for i, byte in enumerate(data)])


def cut(data: bytes, positions: list[int]) -> list[bytes]:
    """Cut data at some positions, given in any order; equal positions give empty pieces."""
    borders = [0, *sorted(positions), len(data)]
    return [data[start:end] for start, end in pairwise(borders)]


def _take(size: int, rest: bytes, start: int) -> tuple[bytes, bytes]:
    if len(rest) < size:
        raise ValueError(f"the frame that starts at byte {start} is not complete")
    return rest[:size], rest[size:]
