"""What a server's own code does wrong during the opening handshake, seen from the other end of the wire.

Nobody can make the code of a foreign server err, so these cases need one that errs when it is told to: when
the query of the opening handshake is

* ``?fault=error``, it raises an error whose text is ``conformance-detail``,
* ``?fault=header``, it adds a header ``X-Fault: value``, and in the same value, after a line end,
  ``X-Injected: conformance-detail``,
* ``?fault=accept``, it adds a header ``Sec-WebSocket-Accept: conformance-detail``,
* ``?fault=never``, it does not return.

The server that the suite starts itself does so; another one says that it does with ``--faults``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ..case import DETAIL, Answer, Case, exactly, request


def cases() -> Iterator[Case]:
    """Yield the cases; they belong to the section of policy."""
    failing = {
        "error": "An error in the server's own code is answered with 500, and nothing of it is told.",
        "header": "A header of the server's own code that would smuggle in another one is not sent.",
        "accept": "A second Sec-WebSocket-Accept, which the server's own code adds, is not sent.",
    }
    for fault, fact in failing.items():
        answer = replace(exactly(500), hidden=DETAIL)
        yield _case(fault, fact, "RFC 9110 §15.6.1; H24", answer)
    fact = "The server's own code has no more time than the opening handshake: 408 when it does not return."
    yield _case("never", fact, "RFC 9110 §15.5.9; H24, H02", exactly(408), "timeout")


def _case(fault: str, fact: str, source: str, answer: Answer, *needs: str) -> Case:
    return Case(
        f"policy/fault-{fault}",
        fact,
        source,
        request=request(f"GET {{path}}?fault={fault} HTTP/1.1"),
        answer=answer,
        needs=frozenset({"faults", *needs}),
        ends=("server",),
    )
