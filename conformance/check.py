"""The client that examines servers: ``python -m conformance check ws://host:port``.

The server must send every message back. Each case has a TCP connection of its own; many run at once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from . import http
from .case import Answer, Case, Grade, Judged, NotRun, Step, Verdict, echoed, request, text, worst
from .cases.deflate import PLAIN
from .play import Player
from .progress import Progress
from .wire import Line, Receiver


@dataclass(frozen=True)
class Target:
    """The server to examine, and what has to be known about it.

    :ivar echoes: it sends messages back
    :ivar limit: bytes of the longest message it takes, 0 when that is not known
    :ivar handshake_timeout: seconds an opening handshake may take, 0 when that is not known
    :ivar faults: its code errs during an opening handshake whose query asks for that
    :ivar timeout: seconds to wait for what must come
    :ivar concurrency: how many cases may run at once
    """

    host: str
    port: int
    path: str = "/"
    echoes: bool = True
    limit: int = 65_536
    handshake_timeout: float = 0
    faults: bool = False
    timeout: float = 2.0
    concurrency: int = 24


def parse_target(url: str) -> Target:
    """Parse a ``ws://`` address.

    :raises ValueError: when it is not one
    """
    parts = urlsplit(url)
    if parts.scheme != "ws" or not parts.hostname:
        raise ValueError(f"{url}: a ws:// address is needed")
    return Target(parts.hostname, parts.port or 80, parts.path or "/")


Results = dict[str, Verdict | None]  # None: the case could not be run, the server lacks what it needs


async def check(target: Target, cases: Sequence[Case], *, show: bool = False) -> Results:
    """Run cases against a server.

    :param show: show progress on standard error
    :return: the verdict of each case
    :raises OSError: when nobody listens
    :raises ValueError: when the server cannot be examined, because it refuses or does not echo
    """
    (await Line.connect(target.host, target.port)).close()
    await _probe(target)
    has_deflate = await _has_deflate(target)
    results: Results = {}
    room = asyncio.Semaphore(target.concurrency)
    progress = Progress("", len(cases))

    async def run(case: Case) -> None:
        async with room:
            results[case.id] = await run_case(target, case) if _possible(target, case, has_deflate) else None
        if show:
            progress.add()

    await asyncio.gather(*map(run, cases))
    progress.end()
    return {case.id: results[case.id] for case in cases}


def _possible(target: Target, case: Case, has_deflate: bool) -> bool:
    lacking = set() if target.echoes else {"echo"}
    if not has_deflate:
        lacking.add("deflate")
        if case.deflate:
            return False
    if not target.limit:
        lacking.add("limit")
    if not target.handshake_timeout:
        lacking.add("timeout")
    if not target.faults:
        lacking.add("faults")
    return not case.needs & lacking


async def run_case(target: Target, case: Case) -> Verdict | None:
    """Run a case in all its variants and cuts; the worst counts.

    :return: ``None`` if the server lacks what it needs
    """
    verdicts: list[Verdict] = []
    for steps in case.variants or (case.steps,):
        for cut in _cuts(case, steps):
            verdict = await _run_once(target, case, steps, cut)
            if verdict is None:
                return None
            if verdict.grade is not Grade.PASS and (case.variants or case.cuts == "each"):
                verdict = replace(verdict, detail=f"{verdict.detail} (variant {len(verdicts) + 1})")
            verdicts.append(verdict)
            if verdict.grade is Grade.FAIL:
                return verdict
    return worst(verdicts)


def _cuts(case: Case, steps: tuple[Step, ...]) -> Iterable[int | None]:
    if case.cuts != "each":
        return [None]
    size = len(case.request) if not steps else 60
    return range(1, size, 1 if size <= 60 else 3)


async def _run_once(target: Target, case: Case, steps: tuple[Step, ...], cut: int | None) -> Verdict | None:
    request = _offering(case.deflate) if case.deflate else case.request
    try:
        return await _play(target, case, request, steps, cut)
    except Judged as judged:
        return judged.verdict
    except NotRun:
        return None
    except OSError as exc:
        return Verdict(Grade.FAIL, f"connecting failed: {exc}")


async def _play(
    target: Target, case: Case, request: bytes, steps: tuple[Step, ...], cut: int | None
) -> Verdict:
    sent = http.fill(request, target.host, target.port, target.path)
    timeout = target.timeout + (target.handshake_timeout if "timeout" in case.needs else 0)
    line = await Line.connect(target.host, target.port)
    with contextlib.closing(line):
        bytewise, on_request = case.cuts == "bytes", not steps
        head = await http.exchange(
            line,
            sent,
            timeout,
            bytewise=bytewise and on_request,
            cut=cut if on_request else None,
            hangs_up=case.hangs_up,
        )
        if case.answer.hidden and head is not None and head.status != 101:
            head = await http.receive_rest(line, head, target.timeout)
        answer = replace(case.answer, extension=True) if case.deflate else case.answer
        codec = http.judge(head, sent, answer)
        assert head is not None
        if "context" in case.needs and not (codec and codec.send_takeover):
            raise NotRun
        player = Player(
            line,
            Receiver(from_client=False, codec=codec),
            is_client=True,
            timeout=target.timeout,
            bytewise=bytewise and not on_request,
            cut=None if on_request else cut,
        )
        return await player.play(steps, head.rest)


async def _probe(target: Target) -> None:
    """Find out whether a server can be examined at all.

    :raises ValueError: when it cannot, with what it did
    """
    steps = echoed(text("are you there?")) if target.echoes else ()
    verdict = await _run_once(target, Case("probe", "", ""), steps, None)
    if verdict is not None and verdict.grade is Grade.FAIL:
        hint = "; --no-echo leaves out the cases that need that" if target.echoes else ""
        raise ValueError(f"a plain connection to the server fails: {verdict.detail}{hint}")


async def _has_deflate(target: Target) -> bool:
    """Find out whether the server accepts permessage-deflate."""
    case = Case("probe", "", "", request=OFFERING, answer=Answer(extension=True))
    verdict = await _run_once(target, case, (), None)
    return verdict is not None and verdict.grade is Grade.PASS


def _offering(offer: str) -> bytes:
    return request(more=f"Sec-WebSocket-Extensions: {offer}\r\n")


OFFERING = _offering(PLAIN)
