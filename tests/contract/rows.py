"""The rows of the feature contract, in our own words.

A row is proven by the tests in this folder that are named after it: ``test_s1_...`` proves S1,
``test_config_port_...`` proves ``config.port``. ``page.py`` puts rows and tests together into
``docs/contract.md``; a row without a test, and a test without a row, fail the suite.
"""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """One promise.

    :ivar id: a letter for the section, and a number; of a setting, its name
    :ivar what: the name of the thing
    :ivar promise: what it does
    """

    id: str
    what: str
    promise: str


SECTIONS = {
    "S": "Server",
    "H": "Handler",
    "C": "Connection",
    "config.": "Settings",
    "T": "Testing kit",
    "K": "Client",
    "A": "Conformance",
}

ROWS = (
    Row(
        "S1",
        "`Server(Handler, config)`",
        "hooks are checked once, when the server is made; a `TypeError` names the hook and shows "
        "the accepted shapes",
    ),
    Row(
        "S2",
        "`await server.listen(app)`",
        "binds, serves until stopped or cancelled, then has closed everything; `task_group.start`"
        " gives the bound addresses",
    ),
    Row("S3", "`app`", "an object of the application, handed to every handler; `None` without one"),
    Row(
        "S4",
        "`server.stop(code, reason)`",
        "from any thread, any number of times: peers get the code and have `shutdown_timeout` "
        "seconds; cancelling `listen` does the same with 1001",
    ),
    Row(
        "S5",
        "`anyio_ws.run(Handler, config, app)`",
        "the blocking entry point: worker processes, SIGINT and SIGTERM, returns when all is closed",
    ),
    Row(
        "S6",
        "isolation",
        "a handler that raises closes its own connection with 1011, is logged once, and disturbs nobody",
    ),
    Row("S7", "`serve(handler)`", "a function in place of a class, with `async for message in conn`"),
    Row(
        "H1",
        "`__init__` or `init`",
        "runs before the 101; `Reject` refuses with its response, any other error with 500; "
        "writing is an error; it may add headers and choose the subprotocol",
    ),
    Row(
        "H2",
        "`handshake`",
        "url, method, headers in any case, raw headers, path, query, cookies, subprotocols, "
        "origin, remote address",
    ),
    Row("H3", "`after_init`", "right after the 101: the first moment to write"),
    Row("H4", "`client_message(data)`", "`str` for text, `bytes` for binary; one at a time, in order"),
    Row("H5", "`client_message(data, message_type)`", "tells text from binary"),
    Row(
        "H6", "`client_message(scratch, data)`", "memory for the length of the call, from one reusable buffer"
    ),
    Row("H7", "`client_message(scratch, data, message_type)`", "both"),
    Row(
        "H8",
        "an error in `client_message`",
        "closes that connection with 1011; `conn.close()` works inside a hook",
    ),
    Row("H9", "`close`", "exactly once for every handler that was made, whatever ended the connection"),
    Row(
        "H10",
        "`client_close(data)`",
        "without it the peer's code is echoed; with it nothing is answered but by the handler",
    ),
    Row(
        "H11",
        "`client_ping(data)`",
        "without it a pong is sent at once, also while a hook is busy; with it nothing is automatic",
    ),
    Row("H12", "`client_pong`", "told of pongs, with their data if it asks for it"),
    Row(
        "H13",
        "`Config(message_view=True)`",
        "binary data is a `memoryview` without a copy, valid inside the call only",
    ),
    Row(
        "H14",
        "`Config(utf8=...)`",
        "`strict` fails bad text with 1007; `off` delivers it as `bytes`, unchecked",
    ),
    Row(
        "C1",
        "`write`, `write_text`, `write_bin`, `write_nowait`",
        "text and binary; without waiting it is `anyio.WouldBlock` when the outbox is full",
    ),
    Row(
        "C2",
        "`write_ping`, `write_pong`, `write_frame`, `ping`",
        "on both sides; `ping` returns the round-trip time",
    ),
    Row(
        "C3",
        "`close`, `close_with_code`, `close_with_reason`",
        "what may not be sent is a `ValueError` before anything is written",
    ),
    Row(
        "C4",
        "`write_buffer`",
        "a file-like writer; nothing is sent before `flush`, nothing at all without it",
    ),
    Row("C5", "`frame_text`, `frame_bin`, `write_framed`", "framed once, written many times"),
    Row(
        "C6",
        "concurrency",
        "any number of tasks write; frames never interleave; a cancelled write is whole or not at all",
    ),
    Row("C7", "`conn.from_thread`", "write and close from any thread"),
    Row("C8", "introspection", "id, state, addresses, subprotocol, close code, reason and side, latency"),
    Row("C9", "AnyIO", "an `ObjectStream[str | bytes]` with AnyIO's exceptions and typed attributes"),
    Row(
        "config.port",
        "`port`, `address`, `unix_path`",
        "9882 on 127.0.0.1; a Unix socket wins, a stale one is replaced, a live one or a file is an error",
    ),
    Row(
        "config.worker_count", "`worker_count`", "that many processes share the port; a dead one is replaced"
    ),
    Row("config.max_conn", "`max_conn`", "at the limit further connections wait"),
    Row(
        "config.max_message_size",
        "`max_message_size`",
        "over all fragments and after inflation, before memory is taken: 1009",
    ),
    Row("config.handshake.timeout", "`handshake.timeout`", "the whole opening handshake; then 408"),
    Row("config.handshake.max_size", "`handshake.max_size`", "a larger request is answered with 431"),
    Row("config.handshake.max_headers", "`handshake.max_headers`", "more headers are answered with 431"),
    Row(
        "config.handshake.count",
        "`handshake.count`",
        "a pool of request buffers, held by requests that do not arrive whole",
    ),
    Row(
        "config.thread_pool.count",
        "`blocking`, `thread_pool.count`",
        "`def` hooks run in threads, so many at a time; `blocking_mode()` tells a hook",
    ),
    Row(
        "config.thread_pool.backlog",
        "`thread_pool.backlog`",
        "so many messages wait for their hook; then sockets are not read, and nothing is lost",
    ),
    Row(
        "config.thread_pool.buffer_size",
        "`thread_pool.buffer_size`",
        "the reusable memory of `scratch`; more is fresh memory",
    ),
    Row(
        "config.buffers",
        "`buffers`",
        "storage for messages in parts: of each connection or pooled, larger ones, and fresh "
        "memory when all are taken; statistics tell",
    ),
    Row("config.compression", "`compression`", "RFC 7692, on by default"),
    Row("config.keepalive", "`ping_interval`, `ping_timeout`", "a peer that is silent is found out"),
    Row(
        "config.shutdown_timeout",
        "`shutdown_timeout`",
        "how long connections have when the server stops; then they are cut",
    ),
    Row("config.close_timeout", "`close_timeout`", "how long a peer has to answer a Close"),
    Row(
        "config.outbox_size",
        "`outbox_size`, `write_timeout`",
        "above the mark writing waits; a peer that does not read is cut off",
    ),
    Row(
        "config.max_control_rate",
        "`max_control_rate`",
        "more control frames in a second fail the connection with 1008",
    ),
    Row(
        "config.origins",
        "`origins`",
        "which pages may connect: those of the same host, or those that are named",
    ),
    Row("config.tls", "`tls`", "serves TLS"),
    Row("T1", "`testing.init()`", "a real connection over memory, to inject into a handler"),
    Row("T2", "`text_message`, `bin_message`, `close_message`", "messages to hand to a hook"),
    Row("T3", "`expect_*`", "what the connection sent; a failure is an `AssertionError` with the transcript"),
    Row(
        "T4",
        "`testing.client(Handler, app)`",
        "handshake and traffic through memory, deterministic with a virtual clock",
    ),
    Row(
        "K1",
        "`Client.connect` and `handshake`",
        "two steps; headers as mapping or text; `Host` is filled in; the request must fit `buffer_size`",
    ),
    Row(
        "K2",
        "`anyio_ws.connect(url)`",
        "TCP, TLS, handshakes in one block; any field as a keyword; a refusal is "
        "`HandshakeRejected` with status, headers, body",
    ),
    Row("K3", "`client.read_loop(handler)`", "`handle` for each message, `close` exactly once"),
    Row("K4", "writing beside the read loop", "from other tasks and threads"),
    Row("K5", "`Message(type, data)`", "text, binary, ping, pong, close"),
    Row(
        "K6",
        "`handle_ping`, `handle_pong`, `handle_close`",
        "off: automatic; on: handed over, and nothing is automatic",
    ),
    Row(
        "K7",
        "`max_size`, `buffer_size`",
        "the longest message; with both equal, a message in parts takes no other memory",
    ),
    Row(
        "K8",
        "`tls`, `ca_bundle`",
        "a flag or a context; authorities as path, bytes or context; the default context is made once",
    ),
    Row("K9", "`buffer_provider`", "one pool for many clients; fresh memory when it is empty or too small"),
    Row(
        "K10",
        "masking",
        "every frame with an unpredictable key; the caller's bytes stay as they are, unless "
        "`mask_in_place` is asked for",
    ),
    Row("K11", "`anyio_ws.blocking`", "the same client for programs without an event loop"),
    Row("A1", "Autobahn Testsuite", "every case OK or informational, as server and as client"),
)
