"""Write streams for libFuzzer to begin with, into a folder; this knows the standard library only."""

from __future__ import annotations

import sys
import zlib
from pathlib import Path

KEY = b"\x37\xfa\x21\x3d"


def build_frame(first: int, payload: bytes, *, masked: bool) -> bytes:
    """Build a short frame from its first byte and its payload."""
    head = bytes([first, len(payload) + 128 * masked])
    return head + (KEY + bytes(b ^ KEY[i % 4] for i, b in enumerate(payload)) if masked else payload)


def main(folder: Path) -> None:
    """Write each stream for both roles, with options that suit it."""
    deflater = zlib.compressobj(wbits=-15)
    deflated = (deflater.compress(b"compressed " * 9) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]
    streams = [
        [
            (0x81, "caf\u00e9 \u20ac \U0001f600".encode()),
            (0x82, bytes(range(100))),
            (0x89, b"ping"),
            (0x8A, b""),
        ],
        [(0x01, b"caf\xc3"), (0x89, b"between"), (0x00, b"\xa9 \xf0\x9f"), (0x80, b"\x98\x80"), (0x82, b"")],
        [(0xC1, deflated), (0x42, deflated[:9]), (0x80, deflated[9:])],
        [(0x02, b"never"), (0x88, b"\x03\xe8bye")],
        [
            (0x81, "\x7f\x80\u07ff\u0800\ucfff\ud000\ud7ff\ue000\uffff\U00010000\U0010ffff".encode()),
            (0x81, b"bad \xff"),
        ],
        [(0x81, b"\xed\xa0\x80")],
        [(0x81, b"\xe0\x9f\xbf")],
        [(0x81, b"\xf4\x90\x80\x80")],
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for number, stream in enumerate(streams):
        for masked in (False, True):
            for options in (0x00, 0x04, 0x08, 0x1C, 0x34):
                wire = b"".join(build_frame(first, payload, masked=masked) for first, payload in stream)
                name = f"{number}-{masked:d}-{options:02x}"
                (folder / name).write_bytes(bytes([options | masked, 0x83, 4]) + wire)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
