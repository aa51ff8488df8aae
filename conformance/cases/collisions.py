"""Names chosen to fall into one place of a hash table: RFC 6455 §10.4.

A table that nobody seeds takes time in proportion to the square of such names. Two of the hashes that are in
use without a seed, ``h * 31 + c`` and ``h * 33 + c``, are met here; the names differ in lower case, too.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from ..case import (
    Answer,
    Case,
    Message,
    Response,
    Step,
    accept,
    either,
    exactly,
    refuse,
    request,
    response,
    send,
    text,
)
from ..wire import TEXT

_BLOCKS = {31: ("a~", "b_", "d!"), 33: ("ac", "c!")}  # of one hash each
_FEW, _SOME, _MANY = 40, 200, 100_000  # everybody takes the first number, nobody needs the last
_SOURCE = "RFC 6455 §10.4; H26"


def colliding(factor: int, count: int) -> Iterator[str]:
    """Yield names, all of one length, that have the same hash if that is ``h * factor + c``."""
    blocks = _BLOCKS[factor]
    length = next(n for n in itertools.count(1) if len(blocks) ** n >= count)
    return itertools.islice(map("".join, itertools.product(blocks, repeat=length)), count)


def _lines(factor: int, count: int) -> str:
    return "".join(f"{name}:\r\n" for name in colliding(factor, count))


def cases() -> Iterator[Case]:
    """Yield the cases of several sections."""
    for factor in _BLOCKS:
        yield from _servers(factor)
        yield from _offers(factor)
        yield from _clients(factor)
    lines = _lines(31, _MANY)
    fact = f"A request with {_MANY} headers whose names collide is answered, whatever the answer is."
    yield _server("http/colliding-many", fact, lines, either())
    fact = f"An answer with {_MANY} headers whose names collide is accepted or refused, in time."
    yield _client("answers/colliding-many", fact, lines, either())


def _servers(factor: int) -> Iterator[Case]:
    fact = f"An opening handshake with {_FEW} more headers, whose names collide, is accepted."
    yield _server(f"handshake/good-colliding-{factor}", fact, _lines(factor, _FEW), accept())
    fact = f"{_SOME} headers are too many, and no less so because their names collide."
    yield _server(f"policy/status-431-colliding-{factor}", fact, _lines(factor, _SOME), exactly(431))


def _server(name: str, fact: str, lines: str, answer: Answer) -> Case:
    return Case(name, fact, _SOURCE, request=request(more=lines), answer=answer, ends=("server",))


def _offers(factor: int) -> Iterator[Case]:
    """Yield the cases of extensions and their parameters."""
    few, some = (list(colliding(factor, count)) for count in (_FEW, _SOME))
    fact = f"permessage-deflate is accepted behind {_FEW} other offers, whose names collide."
    offers = ", ".join([*few, "permessage-deflate"])
    yield _offer(f"negotiation/colliding-{factor}", fact, offers, Answer(extension=True), "deflate")
    fact = f"An offer with {_FEW} unknown parameters, whose names collide, is declined."
    offers = "; ".join(["permessage-deflate", *few])
    declined = Answer(extension=False)
    yield _offer(f"negotiation/colliding-parameters-{factor}", fact, offers, declined, "deflate")
    fact = f"{_SOME} offers are too many, and no less so because their names collide."
    yield _offer(f"policy/status-400-colliding-offers-{factor}", fact, ", ".join(some), exactly(400))
    fact = f"{_SOME} parameters are too many, and no less so because their names collide."
    yield _offer(
        f"policy/status-400-colliding-parameters-{factor}", fact, "; ".join(["a", *some]), exactly(400)
    )


def _offer(name: str, fact: str, offers: str, answer: Answer, *needs: str) -> Case:
    return Case(
        name,
        fact,
        _SOURCE,
        request=request(more=f"Sec-WebSocket-Extensions: {offers}\r\n"),
        answer=answer,
        needs=frozenset(needs),
        ends=("server",),
    )


def _clients(factor: int) -> Iterator[Case]:
    steps = (send(text("hello")), Message(TEXT, b"hello"))
    fact = f"An answer with {_FEW} more headers, whose names collide, is accepted."
    yield _client(f"answers/good-colliding-{factor}", fact, _lines(factor, _FEW), accept(), *steps)
    fact = f"An answer with {_SOME} headers has too many, and no less so because their names collide."
    yield _client(f"policy/answer-colliding-{factor}", fact, _lines(factor, _SOME), refuse())


def _client(name: str, fact: str, lines: str, answer: Answer, *steps: Step) -> Case:
    return Case(
        name,
        fact,
        _SOURCE,
        steps,
        response=Response(response(more=lines)),
        answer=answer,
        ends=("client",),
    )
