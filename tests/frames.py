"""A second opinion on RFC 6455 §5: frames built and parsed in the most literal way.

The functions stand in ``anyio_ws.testing.wire``, which uses nothing of what it judges; here is what the
tests want beside them.
"""

from __future__ import annotations

from itertools import pairwise

from anyio_ws.testing.wire import WireFrame, build_frame, read_frame, xor

__all__ = ["WireFrame", "build_frame", "cut", "parse_frames", "xor"]


def parse_frames(wire: bytes) -> list[WireFrame]:
    """Parse bytes that hold whole frames and nothing else.

    :raises ValueError: when the last frame is not complete; it says at which byte that frame starts
    """
    frames: list[WireFrame] = []
    start = 0
    while start < len(wire):
        found = read_frame(wire[start:])
        if found is None:
            raise ValueError(f"the frame that starts at byte {start} is not complete")
        frames.append(found[0])
        start += found[1]
    return frames


def cut(data: bytes, positions: list[int]) -> list[bytes]:
    """Cut data at some positions, given in any order; equal positions give empty pieces."""
    borders = [0, *sorted(positions), len(data)]
    return [data[start:end] for start, end in pairwise(borders)]
