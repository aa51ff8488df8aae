"""Starts an end in a process of its own, and examines it: what the scoreboard and the tests do."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace

from .case import Case
from .check import Results, check, parse_target
from .processes import Stalled, ended, lines_of
from .serve import Examiner

HANDSHAKE_TIMEOUT = 4.0  # seconds, where the examined server can be told
PATIENCE = 4.0  # seconds for which an examined client waits for an opening handshake
_CONCURRENCY = 16
_LONGEST = 900.0  # seconds for all cases of a client

Start = Callable[..., "subprocess.Popen[str]"]


def examine_server(
    start: Start,
    cases: Sequence[Case],
    *,
    limit: int,
    handshake_timeout: float = 0,
    faults: bool = False,
    timeout: float = 2.0,
) -> Results:
    """Start a server and run cases against it.

    :param start: starts it; it prints its URL on a line of its own
    :param limit: bytes of the longest message it takes
    :param handshake_timeout: seconds that it gives an opening handshake, 0 when that is not known
    :param faults: its code errs during an opening handshake whose query asks for that
    :param timeout: seconds to wait for what must come
    :raises Stalled: when it does not start
    """
    with ended(start()) as process:
        url = next((line for line in lines_of(process) if line.startswith("ws://")), "")
        if not url:
            raise Stalled("the examined server did not start")
        target = replace(
            parse_target(url),
            limit=limit,
            handshake_timeout=handshake_timeout,
            faults=faults,
            timeout=timeout,
        )
        return asyncio.run(check(target, cases))


def examine_client(start: Start, cases: Sequence[Case], *, limit: int, timeout: float = 2.0) -> Results:
    """Start a client and run cases against it.

    It is started a second time, for those cases that may keep a whole process busy: one at a time.

    :param start: called with the URL, the number of runs, and how many at one time; starts the client,
        which ends when it is through
    :param limit: bytes of the longest message it takes
    :param timeout: seconds to wait for what must come
    """
    results: Results = {}
    for alone in (False, True):
        chosen = [case for case in cases if bool(case.response.flood) is alone]
        if chosen:
            concurrency = 1 if alone else _CONCURRENCY
            results |= asyncio.run(_examine_client(start, chosen, limit, timeout, concurrency))
    return {case.id: results[case.id] for case in cases}


async def _examine_client(
    start: Start, cases: Sequence[Case], limit: int, timeout: float, concurrency: int
) -> Results:
    examiner = Examiner(cases, limit=limit, patience=PATIENCE, timeout=timeout)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        serving = asyncio.create_task(examiner.serve(sock))
        host, port = sock.getsockname()
        with ended(start(f"ws://{host}:{port}", examiner.count, concurrency)) as process:
            assert process.stdout is not None
            ending = asyncio.get_running_loop().run_in_executor(None, process.stdout.read)
            await asyncio.wait({ending}, timeout=_LONGEST)
            await examiner.settle()
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
    return examiner.results
