"""What all programs share: their arguments, their event loop, the window that a client measures."""

from __future__ import annotations

import argparse
import asyncio
import json
import ssl
import time
from collections.abc import Callable, Coroutine
from typing import Any

HOST = "127.0.0.1"
WARM_UP = 0.2  # of the time, before anything is counted
BULK = bytes(32_768)  # what a target of attacks sends to everybody


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--loop", choices=["asyncio", "uvloop", "trio"], default="asyncio")
    parser.add_argument("--style", default="")  # which of a library's ways
    parser.add_argument("--job", choices=["echo", "broadcast"], default="echo")
    parser.add_argument("--max-size", type=int)
    parser.add_argument("--tls", help="a PEM file with the key and the certificate")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=1.0)
    return parser.parse_args()


def run(main: Callable[[], Coroutine[Any, Any, None]], loop: str) -> None:
    """Run *main* on the event loop of this name; nothing is imported that the program does not use."""
    if loop == "trio":
        import trio

        trio.run(main)
    elif loop == "uvloop":
        import uvloop

        uvloop.run(main())
    else:
        asyncio.run(main())


def make_server_context(path: str | None) -> ssl.SSLContext | None:
    if path is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


class Window:
    """Counts round trips and the CPU time of this process, after a warm-up.

    Call :meth:`step` after each round trip; it returns False when the time is over.
    """

    def __init__(self, seconds: float) -> None:
        self._count = 0
        self._begin = self._since = time.perf_counter()
        self._cpu = time.process_time()
        self._seconds = seconds
        self._is_warm = False

    def step(self) -> bool:
        self._count += 1
        if self._count % 50:
            return True
        now = time.perf_counter()
        if not self._is_warm and now - self._begin > WARM_UP * self._seconds:
            self._is_warm, self._count, self._since, self._cpu = True, 0, now, time.process_time()
        if now - self._begin < self._seconds or not self._count:
            return True
        self._print(now)
        return False

    def _print(self, now: float) -> None:
        cpu = time.process_time() - self._cpu
        print(json.dumps({"messages": self._count, "seconds": now - self._since, "cpu": cpu}))
