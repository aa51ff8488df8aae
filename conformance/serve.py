"""The server that examines clients: ``python -m conformance serve``.

It speaks the protocol of Autobahn's fuzzing server, so that a client with a harness for that one needs no
other:

* ``/getCaseCount`` sends the number of cases as a text message, and closes;
* ``/runCase?case=N&agent=NAME`` runs case N, from 1: the client sends every message back as it came, until
  the connection ends, whatever it is that ends it;
* ``/updateReports?agent=NAME`` closes at once: the client has finished.

For all cases to be run a client offers permessage-deflate and the subprotocols ``conformance-a`` and
``conformance-b``, takes messages up to the limit, and gives up an opening handshake after ``--patience``.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import Sequence
from dataclasses import replace
from urllib.parse import parse_qs, urlsplit

from . import http
from .case import Answer, Case, Grade, Judged, NotRun, Response, Step, Verdict, refuse, response, send, worst
from .cases.client import FRESH_KEY, FRESH_MASKS
from .cases.deflate import PLAIN
from .check import Results
from .play import Player
from .wire import TEXT, Codec, Frame, Line, Receiver, accept_of

_FLOOD = 16 * 1024 * 1024  # bytes after which a client that still reads has no limit
_MARGIN = 5.0  # seconds beyond its own timeout that a client on a busy machine may take
_PROBE = b"is this open?"
_MASKS = 100  # of each connection that are compared: among a hundred thousand in all, chance repeats some


class Examiner:
    """Runs cases on the clients that connect.

    :param cases: the cases, in the order in which they are numbered from 1
    :param limit: bytes of the longest message that the client takes, 0 when that is not known
    :param patience: seconds after which the client gives up an opening handshake
    :param timeout: seconds to wait for what must come

    :ivar finished: set when a client has asked for the reports
    """

    def __init__(
        self, cases: Sequence[Case], *, limit: int = 65_536, patience: float = 2.0, timeout: float = 2.0
    ) -> None:
        self._cases = cases
        self._limit, self._patience, self._timeout = limit, patience, timeout
        self._runs = [(case, steps) for case in cases for steps in case.variants or (case.steps,)]
        self._verdicts: Results = {}
        self._keys: set[str] = set()
        self._masks: set[bytes] = set()
        self._repeated = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.finished = asyncio.Event()

    @property
    def count(self) -> int:
        """How many runs there are: a case with variants takes several."""
        return len(self._runs)

    @property
    def results(self) -> Results:
        """The verdict of each case, ``None`` for those that were not run."""
        return {case.id: self._verdicts.get(case.id) for case in self._cases}

    async def serve(self, sock: socket.socket) -> None:
        """Accept connections on a listening socket until cancelled."""
        loop = asyncio.get_running_loop()
        sock.setblocking(False)
        try:
            while True:
                accepted, _ = await loop.sock_accept(sock)
                task = asyncio.create_task(self._serve_one(Line(accepted)))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        finally:
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def settle(self) -> None:
        """Wait until the cases that run have their verdicts; to be called when the client is through."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._patience + _MARGIN)

    async def _serve_one(self, line: Line) -> None:
        with contextlib.closing(line), contextlib.suppress(TimeoutError, asyncio.TimeoutError):
            request = await asyncio.wait_for(http.receive(line), self._timeout)
            url = urlsplit(request.line.split(" ")[1] if request.line.count(" ") == 2 else "")
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            if url.path == "/getCaseCount":
                await self._talk(line, request, (send(Frame(TEXT, str(len(self._runs)).encode())),))
            elif url.path == "/updateReports":
                await self._talk(line, request, ())
                self.finished.set()
            elif url.path == "/runCase" and query.get("case", "").isdecimal():
                await self._run(line, request, int(query["case"]))
            else:
                await line.send(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    async def _talk(self, line: Line, request: http.Head, steps: tuple[Step, ...]) -> None:
        await line.send(_fill(response(), request))
        receiver = Receiver(from_client=True)
        await Player(line, receiver, is_client=False, timeout=self._timeout).play(steps, request.rest)

    async def _run(self, line: Line, request: http.Head, number: int) -> None:
        if not 1 <= number <= len(self._runs):
            return
        case, steps = self._runs[number - 1]
        verdict: Verdict | None
        try:
            self._check_request(request)
            verdict = await self._examine(line, request, case, steps)
        except Judged as judged:
            verdict = judged.verdict
        except NotRun:
            verdict = None
        if verdict is not None:
            before = self._verdicts.get(case.id)
            self._verdicts[case.id] = worst([before, verdict]) if before else verdict

    def _check_request(self, request: http.Head) -> None:
        """Check the client's own part of the opening handshake (RFC 6455 §4.1)."""
        one = {
            name: request.values(name)
            for name in ("host", "upgrade", "sec-websocket-key", "sec-websocket-version")
        }
        for name, values in one.items():
            if len(values) != 1:
                raise Judged(Grade.FAIL, f"the request has {name} {len(values)} times")
        key = one["sec-websocket-key"][0]
        wrong = [
            ("its line", not request.line.startswith("GET /") or not request.line.endswith(" HTTP/1.1")),
            ("Upgrade", one["upgrade"][0].lower() != "websocket"),
            ("Connection", "upgrade" not in ", ".join(request.values("connection")).lower()),
            ("Sec-WebSocket-Version", one["sec-websocket-version"] != ["13"]),
            ("a key that is not 16 bytes in base64", not re.fullmatch(r"[A-Za-z0-9+/]{22}==", key)),
            ("bytes that do not wait for the answer", request.rest != b""),
        ]
        if key in self._keys:
            self._verdicts[FRESH_KEY] = Verdict(Grade.FAIL, "two requests have the same key")
        self._keys.add(key)
        for what, is_wrong in wrong:
            if is_wrong:
                raise Judged(Grade.FAIL, f"the request is wrong: {what}")

    async def _examine(
        self, line: Line, request: http.Head, case: Case, steps: tuple[Step, ...]
    ) -> Verdict | None:
        """Run a case; ``None`` when the client lacks what it needs."""
        offers = [
            params
            for name, params in http.parse_extensions(request.values("sec-websocket-extensions"))
            if name == PLAIN and params is not None
        ]
        protocols = ", ".join(request.values("sec-websocket-protocol")).split(", ")
        lacking = {"timeout", "faults"} | ({"limit"} if not self._limit else set())
        lacking |= (set() if offers else {"deflate"}) | (set() if protocols[0] else {"subprotocol"})
        if not any("client_max_window_bits" in offer for offer in offers):
            lacking.add("client_max_window_bits")
        extension = _confirm(case.deflate, offers) if case.deflate else ""
        if case.needs & lacking or extension is None:
            await self._talk(line, request, ())
            return None
        data = case.response
        if extension:
            data = Response(response(more=f"Sec-WebSocket-Extensions: {extension}\r\n"))
        data = replace(data, data=_fill(data.data, request))
        answer = case.answer
        if answer.extension and not offers:
            answer = refuse()
        if answer.refused is Grade.FAIL:
            return await self._play(line, case, steps, request, data)
        return await self._see(line, data, answer)

    async def _play(
        self, line: Line, case: Case, steps: tuple[Step, ...], request: http.Head, data: Response
    ) -> Verdict:
        """Send a good answer and go through the steps."""
        await line.send(data.data)
        if data.ends:
            line.end()
        codec = _codec(data.data)
        if "context" in case.needs and not (codec and codec.send_takeover):
            raise NotRun
        receiver = Receiver(from_client=True, codec=codec)
        player = Player(line, receiver, is_client=False, timeout=self._timeout, bytewise=case.cuts != "whole")
        verdict = await player.play(steps, request.rest)
        self._check_masks(receiver.masks[:_MASKS])
        return verdict

    def _check_masks(self, masks: list[bytes]) -> None:
        """Check that masking keys are fresh (RFC 6455 §5.3); chance repeats one of 32 bits once at most."""
        self._repeated += sum(mask in self._masks for mask in masks) + len(masks) - len(set(masks))
        self._masks.update(masks)
        if self._repeated > 1:
            detail = f"{self._repeated} masking keys were there before"
            self._verdicts[FRESH_MASKS] = Verdict(Grade.FAIL, detail)

    async def _see(self, line: Line, data: Response, answer: Answer) -> Verdict:
        """Send an answer that may be refused, and see whether it is: no message must come back."""
        sending = asyncio.create_task(_send(line, data))
        try:
            watching = asyncio.create_task(_watch(line))
            done, _ = await asyncio.wait({watching}, timeout=self._patience + _MARGIN)
            if not done:
                watching.cancel()
                return Verdict(Grade.FAIL, f"the client did not give up within {self._patience} seconds")
            if data.flood and sending.done() and sending.result():
                return Verdict(Grade.FAIL, f"the client read {_FLOOD} bytes")
            opened = watching.result()
        finally:
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sending
        if opened:
            return Verdict(answer.opened, "the client took this for a connection" if answer.opened else "")
        return Verdict(answer.refused)


async def _send(line: Line, data: Response) -> bool:
    """Send an answer and what comes with it, and a message for those who take it for a connection.

    :return: whether the client took all
    """
    if data.drip:
        for i in range(len(data.data)):
            await line.send(data.data[i : i + 1])
            await asyncio.sleep(0.25)
        return True
    probe = b"" if data.flood or data.ends else b"".join(Frame(TEXT, _PROBE).encode(False))
    complete = data.data.endswith(b"\r\n\r\n") or data.data.endswith(b"\n\n")
    await line.send(data.data + (probe if complete else b""))
    for _ in range(_FLOOD // len(data.flood) if data.flood else 0):
        if not await line.send(data.flood):
            return False
    if data.ends:
        line.end()
    return True


async def _watch(line: Line) -> bool:
    """Wait until the client has gone, or has sent a message; tell whether it has."""
    receiver = Receiver(from_client=True, codec=Codec())
    while True:
        try:
            data = await line.receive()
        except OSError:
            return False
        if data.startswith(b"GET "):  # it follows a redirect
            return False
        receiver.feed(data)
        if receiver.messages or receiver.violation:  # one that is compressed, for example
            return True
        if not data or receiver.closes:
            return False


def _fill(data: bytes, request: http.Head) -> bytes:
    """Fill in what an answer takes from the request."""
    key = (*request.values("sec-websocket-key"), "")[0]
    accept = accept_of(key)
    protocol = ", ".join(request.values("sec-websocket-protocol")).split(", ")[0]
    for mark, value in {
        "{accept}": accept,
        "{accept-lower}": accept.lower(),
        "{accept-cut}": accept[:-1],
        "{key}": key,
        "{protocol}": protocol,
        "{protocol-upper}": protocol.upper(),
    }.items():
        data = data.replace(mark.encode(), value.encode())
    return data


def _codec(answer: bytes) -> Codec | None:
    """Return what an answer of ours has confirmed."""
    head = http.parse(answer)
    chosen = http.parse_extensions(head.values("sec-websocket-extensions")) if head else []
    if not chosen or chosen[0][1] is None:
        return None
    params = chosen[0][1]
    return Codec(
        send_bits=int(params.get("server_max_window_bits") or 15),
        receive_bits=int(params.get("client_max_window_bits") or 15),
        send_takeover="server_no_context_takeover" not in params,
        receive_takeover="client_no_context_takeover" not in params,
    )


def _confirm(wanted: str, offers: list[http.Params]) -> str | None:
    """Return an answer to a client's offers that has the parameters of a case, ``None`` if they forbid it."""
    ((_, params),) = http.parse_extensions([wanted])
    assert params is not None
    for offer in offers:
        answer = {**offer, **params}
        answer = {
            name: value for name, value in answer.items() if name in params or name.startswith("server")
        }
        open_bits = answer.pop("client_max_window_bits", None)
        if open_bits is not None and "client_max_window_bits" in offer:
            answer["client_max_window_bits"] = str(
                min(int(open_bits), int(offer["client_max_window_bits"] or 15))
            )
        elif open_bits is not None:
            continue
        said = [name if value is None else f"{name}={value}" for name, value in answer.items()]
        return "; ".join([PLAIN, *said])
    return None
