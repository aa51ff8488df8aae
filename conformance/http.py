"""The opening handshake on the wire: sending a request, reading heads, judging the answer.

As strict as what it judges has to be: an answer to an opening handshake is only a 101 if everything that
RFC 6455 §4.1 demands of it is there, once.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import NamedTuple

from .case import Answer, Grade, Judged
from .wire import KEY, Codec, Line, accept_of

DEFLATE = "permessage-deflate"
_BITS = ("server_max_window_bits", "client_max_window_bits")
_FLAGS = ("server_no_context_takeover", "client_no_context_takeover")
_MOST = 131_072  # bytes of a head; nobody needs more


class Head(NamedTuple):
    """A request or a response.

    :ivar line: its first line
    :ivar fields: names in lower case, with values
    :ivar rest: what came after it
    """

    line: str
    fields: list[tuple[str, str]]
    rest: bytes

    def values(self, name: str) -> list[str]:
        """Return the values of a field."""
        return [value for key, value in self.fields if key == name]

    @property
    def status(self) -> int:
        """The status of a response; 0 when there is none."""
        match = re.fullmatch(r"HTTP/1\.[01] (\d{3})(?: .*)?", self.line)
        return int(match[1]) if match else 0


NOTHING = Head("", [], b"")


def parse(data: bytes) -> Head | None:
    """Parse a head; ``None`` while it is not complete."""
    head, end, rest = data.partition(b"\r\n\r\n")
    if not end:
        return None
    line, *lines = head.decode("latin-1").split("\r\n")
    pairs = (each.partition(":") for each in lines)
    return Head(line, [(name.lower(), value.strip(" \t")) for name, _, value in pairs], rest)


def fill(request: bytes, host: str, port: int, path: str) -> bytes:
    """Fill in what a case leaves open."""
    name = f"[{host}]" if ":" in host else host
    for mark, value in (("{host}", f"{name}:{port}"), ("{name}", name), ("{path}", path)):
        request = request.replace(mark.encode(), value.encode())
    return request


async def exchange(
    line: Line, data: bytes, timeout: float, *, bytewise: bool, cut: int | None, hangs_up: bool
) -> Head | None:
    """Send a request, with the end of the stream where it *hangs_up*, and wait for the head of the answer.

    :return: :data:`NOTHING` when the connection ends first, ``None`` when nothing happens
    """
    sending = asyncio.create_task(_send(line, data, bytewise, cut, hangs_up))
    try:
        return await asyncio.wait_for(receive(line), timeout)
    except (TimeoutError, asyncio.TimeoutError):
        return None
    finally:
        sending.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sending


async def _send(line: Line, data: bytes, bytewise: bool, cut: int | None, hangs_up: bool) -> None:
    if bytewise:
        await line.send_bytewise(data)
    elif cut:
        await line.send(data[:cut])
        await asyncio.sleep(0.002)
        await line.send(data[cut:])
    else:
        await line.send(data)
    if hangs_up:
        line.end()


async def receive(line: Line) -> Head:
    """Read a head; :data:`NOTHING` when the connection ends first."""
    data = b""
    while len(data) < _MOST:
        try:
            more = await line.receive()
        except OSError:
            return NOTHING
        data += more
        if (head := parse(data)) is not None:
            return head
        if not more:
            return NOTHING
    return NOTHING


async def receive_rest(line: Line, head: Head, timeout: float) -> Head:
    """Read on to the end of the stream, or until nothing more comes: what follows a refusal is its body."""
    data = head.rest
    with contextlib.suppress(OSError, TimeoutError, asyncio.TimeoutError):
        while len(data) < _MOST and (more := await asyncio.wait_for(line.receive(), timeout)):
            data += more
    return head._replace(rest=data)


# --- judging ------------------------------------------------------------------------------------------


def judge(head: Head | None, request: bytes, answer: Answer) -> Codec | None:
    """Judge the answer to a request; return what was negotiated for compression.

    :param head: ``None`` when there was none, and the connection did not end
    :raises Judged: when the case ends here
    """
    if head is None:
        raise Judged(answer.silent, "there was no answer, and the connection did not end")
    if answer.hidden and answer.hidden in f"{head.line}{head.fields}{head.rest.decode('latin-1')}":
        raise Judged(Grade.FAIL, f"the answer tells {answer.hidden!r}, which is the server's own affair")
    if head.status != 101:
        _judge_refusal(head, answer)
    if answer.opened is not Grade.PASS:
        raise Judged(answer.opened, "the request was accepted")
    sent = parse(request.lstrip(b"\r\n")) or NOTHING
    for what, wrong in _faults(head, sent, answer):
        if wrong:
            raise Judged(Grade.FAIL, f"the 101 {what}")
    return _judge_extension(head, sent, answer)


def _judge_refusal(head: Head, answer: Answer) -> None:
    if not head.status:
        if answer.refused is Grade.FAIL:
            raise Judged(Grade.FAIL, "the connection ended without an answer")
        # 0 stands for no answer at all, where that is right.
        if 0 in answer.statuses:
            raise Judged(answer.refused, "")
        raise Judged(Grade.WEAK, "the connection ended without an answer")
    grade: Grade = answer.refused
    detail = ""
    if head.status not in answer.statuses:
        grade, detail = max(grade, Grade.WEAK), f"the status is {head.status}"
    for name, part in answer.headers:
        if part.lower() not in ", ".join(head.values(name)).lower():
            grade, detail = max(grade, Grade.WEAK), f"the status is {head.status}, without {name}: {part}"
    if answer.refused is Grade.FAIL:
        detail = f"the request was refused with {head.status}"
    raise Judged(grade, detail)


def _faults(head: Head, sent: Head, answer: Answer) -> list[tuple[str, bool]]:
    """Return what can be wrong with a 101, and whether it is (RFC 6455 §4.1)."""
    (key, *_) = [*sent.values("sec-websocket-key"), KEY]  # unless cases change it, it is always this
    connection = ",".join(head.values("connection")).lower().split(",")
    protocols = head.values("sec-websocket-protocol")
    return [
        ("is not of HTTP/1.1", not head.line.startswith("HTTP/1.1 ")),
        ("has no Upgrade: websocket", [each.lower() for each in head.values("upgrade")] != ["websocket"]),
        ("has no Connection: Upgrade", "upgrade" not in [each.strip() for each in connection]),
        ("has not the right Sec-WebSocket-Accept", head.values("sec-websocket-accept") != [accept_of(key)]),
        ("names a subprotocol that was not offered", ", ".join(protocols) not in answer.subprotocols),
        (
            "has a body",
            bool(head.values("transfer-encoding")) or head.values("content-length") not in ([], ["0"]),
        ),
    ]


Params = dict[str, str | None]


def parse_extensions(values: list[str]) -> list[tuple[str, Params | None]]:
    """Parse ``Sec-WebSocket-Extensions`` as far as comparing takes; ``None`` for a parameter said twice."""
    extensions: list[tuple[str, Params | None]] = []
    for element in ",".join(values).split(","):
        name, *params = (part.strip() for part in element.split(";"))
        pairs = [param.partition("=") for param in params]
        parsed: Params = {
            key.strip(): value.strip().strip('"') if is_pair else None for key, is_pair, value in pairs
        }
        extensions.append((name, parsed if len(parsed) == len(pairs) else None))
    return [each for each in extensions if each[0]]


def _judge_extension(head: Head, sent: Head, answer: Answer) -> Codec | None:
    """Judge what a 101 says about extensions (RFC 7692 §7.1); return what was negotiated."""
    chosen = parse_extensions(head.values("sec-websocket-extensions"))
    if not chosen:
        if answer.extension:
            raise Judged(Grade.WEAK, "permessage-deflate was not accepted")
        return None
    if answer.extension is False:
        raise Judged(Grade.FAIL, f"accepted {chosen[0][0]}, which was not offered correctly")
    offers = [
        params
        for name, params in parse_extensions(sent.values("sec-websocket-extensions"))
        if name == DEFLATE
    ]
    if len(chosen) > 1 or chosen[0][0] != DEFLATE or not offers or chosen[0][1] is None:
        raise Judged(Grade.FAIL, f"accepted extensions that were not offered: {chosen}")
    params = chosen[0][1]
    _judge_params(params, offers, answer)
    return Codec(
        send_bits=int(params.get("client_max_window_bits") or 15),
        receive_bits=int(params.get("server_max_window_bits") or 15),
        send_takeover="client_no_context_takeover" not in params,
        receive_takeover="server_no_context_takeover" not in params,
    )


def _judge_params(params: Params, offers: list[Params | None], answer: Answer) -> None:
    for name, value in params.items():
        is_flag = name in _FLAGS and value is None
        is_bits = name in _BITS and value is not None and re.fullmatch(r"[89]|1[0-5]", value)
        if not is_flag and not is_bits:
            raise Judged(Grade.FAIL, f"accepted with the parameter {name}={value}, which is not valid")
    limits = [
        offer["client_max_window_bits"] for offer in offers if offer and "client_max_window_bits" in offer
    ]
    if "client_max_window_bits" in params and not limits:
        raise Judged(
            Grade.FAIL, "limited the client's window, which the offer does not allow (RFC 7692 §7.1.2.2)"
        )
    for wanted in answer.params:
        name, _, bits = wanted.partition("=")
        if name not in params or (bits and int(params[name] or 0) > int(bits)):
            raise Judged(Grade.FAIL, f"accepted without confirming {wanted} (RFC 7692 §7.1)")
