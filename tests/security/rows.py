"""The rows of the security table: what may happen to a connection, and what is promised for it.

A test proves a row by carrying its id: ``@pytest.mark.attack("F19")``. ``page.py`` puts rows and tests
together into ``docs/security/attacks.md``, and a row without a test fails the suite.
"""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """One promise.

    :ivar id: a letter for the group, and a number
    :ivar attack: what a peer, the network, the system or the caller does
    :ivar behaviour: what happens then
    :ivar source: where that is written, such as ``6455 §5.1`` for a section of an RFC; often nowhere
    """

    id: str
    attack: str
    behaviour: str
    source: str = ""


GROUPS = {
    "H": "The opening handshake, server",
    "F": "Framing and closing",
    "C": "Compression",
    "R": "Resources and flow control",
    "T": "Cancellation and concurrency",
    "O": "Transport, process, operations",
    "S": "TLS and client",
    "A": "Arguments",
    "L": "Logs and errors",
}

ROWS = (
    # --- the opening handshake -------------------------------------------------------------------------
    Row(
        "H01",
        "A client connects and says nothing",
        "It is cut off after `handshake.timeout` without an answer; 408 once a byte has come",
        "9110 §15.5.9",
    ),
    Row(
        "H02",
        "A client sends its request one byte at a time, with pauses",
        "The deadline counts from the accepted connection, not from the last byte",
    ),
    Row(
        "H03",
        "A client leaves in the middle of its request, in order or by a reset",
        "Its connection ends, one line is logged at debug level, and its place is free again",
    ),
    Row("H04", "A request without Host", "400", "9112 §3.2"),
    Row("H05", "A request with two Host headers", "400", "9112 §3.2"),
    Row(
        "H06",
        "A Host that is none: spaces, user information, bytes beyond ASCII, a bad port",
        "400",
        "9112 §3.2, 3986 §3.2.2",
    ),
    Row(
        "H07",
        "Sec-WebSocket-Key missing, twice, not Base64, or not of 16 bytes",
        "400",
        "6455 §4.2.1, §11.3.1",
    ),
    Row(
        "H08",
        "Another Sec-WebSocket-Version than 13, none, or two",
        "426 that names version 13; 400 for two",
        "6455 §4.2.2, §4.4",
    ),
    Row(
        "H09",
        "Connection and Upgrade that only look right: `notupgrade`, `websocket2`",
        "They are compared as lists of tokens, in any case; 426 or 400",
        "6455 §4.2.1",
    ),
    Row(
        "H10",
        "Another method than GET, another version than HTTP/1.1",
        "405 with Allow; 505",
        "6455 §4.1, 9110 §15.6.6",
    ),
    Row(
        "H11",
        "Empty lines, NUL or other control bytes before the request line",
        "400; nothing of it comes back in the answer",
        "9112 §2.2",
    ),
    Row(
        "H12",
        "Folded headers, a space before the colon, an empty name, a name that is no token",
        "400",
        "9112 §5.1, §5.2",
    ),
    Row(
        "H13",
        "A body: Content-Length, Transfer-Encoding, or both",
        "400 and the end; a body is never read as frames",
        "9112 §6.1, §6.3, 9110 §7.8",
    ),
    Row(
        "H14",
        "A Content-Length of `+0`, `0x0`, `1_0`, `00`, digits of other scripts, a list",
        "400; only `0` is let pass",
        "9110 §8.6",
    ),
    Row("H15", "Lines that end with LF or CR alone", "400 at that byte, without waiting", "9112 §2.2"),
    Row("H16", "NUL, CR, DEL or another control byte in a header's value", "400", "9110 §5.5"),
    Row(
        "H17",
        "A request line or headers beyond `handshake.max_size`, at once or byte by byte",
        "414 or 431, which the client gets to read; time grows with the bytes and no faster",
        "6585 §5, 9110 §15.5.15",
    ),
    Row("H18", "More headers than `handshake.max_headers`", "431", "6585 §5"),
    Row(
        "H19",
        "A target with bytes beyond ASCII, control bytes or `#`; empty, `*` or an authority",
        "400",
        "9112 §3.2",
    ),
    Row(
        "H20",
        "A target in absolute form for another host than Host says",
        "400; an equal one is fine",
        "9112 §3.2.2",
    ),
    Row(
        "H21",
        "Sec-WebSocket-Protocol that is empty, repeats a name, is no list of tokens, or is endless",
        "400; only what was offered can be selected",
        "6455 §4.2.1, §11.3.4",
    ),
    Row(
        "H22",
        "Frames right behind the request",
        "They are kept and read after the 101; behind any other answer they are discarded",
        "6455 §4.1",
    ),
    Row(
        "H23",
        "A page of another site connects: another host, scheme, port or case, `null`, look-alikes",
        "403 unless `origins` names it; the page's own host is what is allowed by default",
        "6455 §4.2.2, §10.2",
    ),
    Row(
        "H24",
        "The user's code fails, sets a bad header, or never returns, during the handshake",
        "500 without a detail, logged once; the deadline covers it",
    ),
    Row(
        "H25",
        "Headers that are hard to parse: open quotes, thousands of tokens, parameters or offers",
        "An answer in time: twice the bytes take at most 2.3 times the work",
        "6455 §9.1",
    ),
    Row(
        "H26",
        "Header names chosen to collide in a hash table",
        "The limits on bytes and headers apply first; work stays linear",
        "6455 §10.4",
    ),
    Row(
        "H27",
        "A plain HTTP request, a TLS greeting on a plain port, another protocol's banner",
        "426 or your `http_handler`; 400; no traceback in the log",
        "9110 §15.5.22",
    ),
    # --- framing ---------------------------------------------------------------------------------------
    Row("F01", "A client's frame is not masked", "1002 at its second byte", "6455 §5.1"),
    Row("F02", "A server's frame is masked", "1002 at its second byte", "6455 §5.1"),
    Row("F03", "RSV1 without compression, RSV2 or RSV3", "1002 at the first byte", "6455 §5.2"),
    Row("F04", "A reserved opcode", "1002 at the first byte", "6455 §5.2"),
    Row("F05", "A fragmented control frame", "1002", "6455 §5.5"),
    Row(
        "F06",
        "A control frame of more than 125 bytes",
        "1002 at its second byte; its payload is not waited for",
        "6455 §5.5",
    ),
    Row("F07", "A length that is not in its shortest form", "1002", "6455 §5.2"),
    Row(
        "F08",
        "A length with the most significant bit set",
        "1002, before the limit is looked at",
        "6455 §5.2",
    ),
    Row(
        "F09",
        "A length near 2^63, 2^64, 2^32, or just beyond the limit",
        "1009 from the header alone; no arithmetic overflows",
        "6455 §7.4.1, §10.4",
    ),
    Row("F10", "A continuation without a message", "1002", "6455 §5.4"),
    Row("F11", "A new message inside a fragmented one", "1002", "6455 §5.4"),
    Row(
        "F12",
        "Control frames between the fragments of a message",
        "Dealt with at once; the message arrives whole",
        "6455 §5.4",
    ),
    Row(
        "F13",
        "Text that is not UTF-8: overlong, surrogates, beyond U+10FFFF, cut off",
        "1007",
        "6455 §8.1",
    ),
    Row(
        "F14", "A character cut by frames or reads at any byte", "Accepted if the whole is valid", "6455 §5.6"
    ),
    Row("F15", "The first bad byte of a long text", "1007 when that byte arrives", "6455 §8.1"),
    Row("F16", "Fragments of text with many pings between them", "Work is linear in the bytes"),
    Row(
        "F17",
        "A header that announces a huge frame, and then nothing",
        "Refused when beyond the limit; otherwise memory is taken as bytes arrive",
        "6455 §10.4",
    ),
    Row(
        "F18",
        "Fragments that add up to more than `max_message_size`",
        "1009 at the header of the frame that would exceed it",
        "6455 §7.4.1",
    ),
    Row(
        "F19",
        "Empty fragments without end",
        "A fragment keeps nothing, and fragments are budgeted against bytes: 1008 in the end. A message "
        "of 4 MiB in fragments of 64 bytes passes",
        "6455 §5.4, §10.4",
    ),
    Row(
        "F20",
        "Fragments of one byte up to the limit",
        "One buffer per message: memory stays near the bytes received",
    ),
    Row("F21", "A frame that arrives byte by byte", "Memory at most twice the payload; work is linear"),
    Row(
        "F22",
        "A Close with a code that may not be sent",
        "1002; all 65,536 codes are judged by the registry",
        "6455 §7.4",
    ),
    Row(
        "F23",
        "A Close of one byte, with a reason that is not UTF-8, or too long",
        "1002, 1007, 1002",
        "6455 §5.5.1",
    ),
    Row("F24", "A Close inside a fragmented message", "Answered with its code", "6455 §5.4, §5.5.1"),
    Row("F25", "Frames after a Close", "Discarded; there is never a second Close", "6455 §5.5.1, §1.4"),
    Row("F26", "A Close, with or without a code", "Answered with the same code, or with none", "6455 §5.5.1"),
    Row(
        "F27",
        "A violation with a megabyte of unread bytes behind it",
        "The Close that says why reaches the peer; no reset destroys it",
        "6455 §7.1.1, §7.1.7",
    ),
    Row(
        "F28",
        "A guess at masking keys",
        "Each is four fresh bytes of the system's generator; forked processes share none",
        "6455 §5.3, §10.3",
    ),
    Row(
        "F29",
        "Payloads of every length and alignment",
        "Masked and unmasked exactly, by every build",
        "6455 §5.3",
    ),
    Row(
        "F30",
        "The caller changes its buffer while it is being sent",
        "What was handed over is sent; the caller's bytes are never changed",
    ),
    # --- compression -----------------------------------------------------------------------------------
    Row("C01", "RSV1 on a continuation", "1002", "7692 §6.1"),
    Row("C02", "RSV1 on a control frame", "1002", "7692 §6"),
    Row("C03", "Compressed data that is invalid or cut off", "1007", "7692 §6.2"),
    Row(
        "C04",
        "A small message that inflates to a huge one, whole, in fragments, or many of them",
        "Inflated by no more than one byte beyond `max_message_size`: 1009. Of many small ones, 16 KiB at a "
        "time; the rest waits as it came",
        "6455 §10.4",
    ),
    Row(
        "C05",
        "An inflating library that returns more than it was allowed",
        "It is fed in small steps, so that the excess is bounded, and counted",
    ),
    Row(
        "C06",
        "Final blocks, empty fragments, several blocks in a message",
        "Accepted; the context starts anew after a final block. Each message may have one, and one more for "
        "every 64 bytes of it; past that, and a few hundred saved up: 1008",
        "7692 §7.2.3",
    ),
    Row("C07", "Bytes left over, and `00 00 ff ff` inside of a payload", "Handled exactly", "7692 §7.2.2"),
    Row(
        "C08",
        "Parameters that are unknown, repeated, quoted, or out of range",
        "A server declines that offer; a client fails the connection",
        "7692 §7.1",
    ),
    Row(
        "C09",
        "A window of 8 bits, which zlib cannot compress with",
        "It is kept to: runs of one byte are compressed, which refer no farther back than it",
        "7692 §7.1.2",
    ),
    Row(
        "C10",
        "Thousands of connections that negotiate compression",
        "A context is made at the first compressed message; a process keeps few, whoever connects",
        "7692 §7.1.1",
    ),
    Row(
        "C11",
        "Control frames between the fragments of compressed messages, in any order",
        "Every message arrives as it was",
        "7692 §6.1",
    ),
    Row(
        "C12",
        "An error or a cancellation between compressing and sending",
        "The two are one step, which no cancellation comes between; after an error in it nobody knows what "
        "the peer has seen, and the connection is cut: 1006",
    ),
    Row(
        "C13",
        "A secret and an attacker's text in one compressed message",
        "Documented; a message can be sent with `compress=False`",
        "7692 §8",
    ),
    # --- resources -------------------------------------------------------------------------------------
    Row(
        "R01",
        "A peer that never reads while we send",
        "Writing waits at `outbox_size`; the connection is cut after `write_timeout`: 1006",
    ),
    Row(
        "R02",
        "A broadcast with consumers that are too slow",
        "It never waits and never buffers beyond `outbox_size`; those without room are dropped or told so",
    ),
    Row(
        "R03",
        "A peer that sends faster than the handler works",
        "The inbox is bounded in bytes; at its mark the socket is not read, nor looked at what was read",
    ),
    Row(
        "R04",
        "A flood of pings by a peer that does not read",
        "At most one pong waits, the latest; memory stays flat",
        "6455 §5.5.3",
    ),
    Row(
        "R05",
        "A flood of pings by a peer that reads",
        "One pong for each at most, no larger than it; handlers go on. More than `max_control_rate` control "
        "frames in a second (10,000 unless set): 1008",
    ),
    Row(
        "R06",
        "Pongs that nobody asked for, pings that nobody answers",
        "Ignored; what is kept of them is bounded",
        "6455 §5.5.3",
    ),
    Row(
        "R07",
        "A flood of connections",
        "At `max_conn` further ones wait in the backlog, without spinning; a place that is free is used",
    ),
    Row("R08", "A flood of messages", "One handler call at a time per connection, no task per message"),
    Row(
        "R09",
        "A peer that is gone without a word, while nothing is sent",
        "Found out within `ping_interval + ping_timeout`, whatever waits to be written",
    ),
    Row("R10", "A peer that is gone without a word, while we write", "Found out within `write_timeout`"),
    Row("R11", "A peer that stops in the middle of a frame", "Keepalive finds it out like any other silence"),
    Row(
        "R12",
        "Ten thousand frames, or a megabyte to unmask, in one burst",
        "Other connections are served in between, after 16 KiB of messages, each counted with 128 bytes "
        "more; [resources.md](resources.md) has the time that their echoes take",
    ),
    Row(
        "R13",
        "No free descriptor, no memory, or a dead connection at accept",
        "Logged at most once a second, tried again after 100 ms; the server recovers by itself",
    ),
    Row("R14", "Every way in which a connection can fail", "No task and no descriptor is left"),
    Row(
        "R15",
        "A huge message is being sent when a ping or a Close arrives",
        "It goes out in fragments, 64 KiB within each `write_timeout`, and the pong between them, behind "
        "128 KiB at most; a Close, which has a deadline of its own, comes last",
        "6455 §5.4, §5.5",
    ),
    # --- cancellation ----------------------------------------------------------------------------------
    Row(
        "T01",
        "A write is cancelled, anywhere",
        "Nothing of it was sent, or all of it is; a stream that breaks inside a frame ends the connection",
    ),
    Row("T02", "A receive is cancelled, anywhere", "No message is lost, repeated or out of order"),
    Row(
        "T03",
        "Iteration, or a fragmented message, is abandoned half-way",
        "The next receive goes on with the next message; the fragmented message can be continued",
    ),
    Row("T04", "A close is cancelled", "The connection is closed all the same, in bounded time"),
    Row("T05", "A ping is cancelled, and then its pong comes", "The pong is ignored"),
    Row("T06", "Connecting is cancelled, anywhere", "Nothing stays open"),
    Row(
        "T07",
        "Many tasks write at once: messages, fragments, pings, a close",
        "Frames are whole, each task's in order; only control frames stand between fragments",
    ),
    Row("T08", "Two tasks receive at once", "`BusyResourceError` for the second"),
    Row("T09", "Both ends close at the same time", "Both are done, with one Close each"),
    Row(
        "T10",
        "Closing twice, inside a hook, while another task writes",
        "The handler's `close` is called exactly once",
    ),
    Row("T11", "Hooks that write, ping and close from the inside", "No deadlock"),
    Row(
        "T12",
        "Messages and a Close in the same instant as the 101",
        "The messages are delivered, the Close is answered",
    ),
    Row("T13", "A handler raises", "1011 without a detail, logged once; nobody else is disturbed"),
    Row(
        "T14",
        "A handler raises a closed connection, a cancellation, a group, KeyboardInterrupt or SystemExit",
        "No failure; goes on; 1011; the server stops in order and raises it",
    ),
    Row("T15", "`close` hooks, loggers and callbacks that raise", "They end nothing but themselves"),
    Row(
        "T16",
        "The task group of a server or client is cancelled",
        "Close with 1001, a bounded wait, then the cut",
    ),
    Row("T17", "Sending after the end, or while the end comes", "`ConnectionClosed`, never a bare OSError"),
    # --- transport, process, operations ----------------------------------------------------------------
    Row("O01", "A reset in the middle of a frame", "1006; half a message is never delivered"),
    Row(
        "O02",
        "The end of the stream without a Close, between or inside of frames",
        "1006; messages that were complete are still received",
    ),
    Row("O03", "Short reads and writes, EAGAIN, interrupted calls", "Nobody notices"),
    Row(
        "O04",
        "Any system call fails with any error at any time",
        "One connection ends; the server goes on, without a leak",
    ),
    Row(
        "O05",
        "A peer that is gone between accept and the first call on its socket",
        "Only its connection ends",
    ),
    Row(
        "O06",
        "Many tenants in one process, under a bad network",
        "Each gets its own messages, in order, and nobody else's",
    ),
    Row(
        "O07",
        "Shutdown with idle, sending, stuck and half-open connections",
        "No accept, 503 for handshakes, 1001 for the rest; over within `shutdown_timeout` and half a second",
    ),
    Row(
        "O08",
        "SIGINT and SIGTERM, once and twice, at any time",
        "The first stops in order, the second at once; no traceback, no socket file left",
    ),
    Row("O09", "A worker process dies", "It is replaced; the connections of others go on"),
    Row(
        "O10",
        "Hundreds of thousands of connections, failed or not, without garbage collection",
        "Memory stays flat",
    ),
    Row("O11", "The wall clock jumps", "Only monotonic time is used"),
    Row("O12", "The process forks after the import", "No shared random state, no shared poller"),
    Row(
        "O13",
        "A Unix socket path that is stale, alive, too long, or another file",
        "Replaced; refused; refused; left alone. Only our own file is removed at the end",
    ),
    Row("O14", "One of several addresses cannot be bound", "An error that says so, and no listener left"),
    Row("O15", "Memory runs out", "A clean error of one connection; no leak, no crash"),
    Row(
        "O16",
        "A connection that was never closed is collected, or the interpreter ends",
        "A ResourceWarning at most; the socket is closed",
    ),
    # --- TLS and client --------------------------------------------------------------------------------
    Row("S01", "TLS that ends without its goodbye", "1006, not an orderly end"),
    Row(
        "S02",
        "A certificate that is untrusted, expired, or for another host",
        "An error; verification is on by default",
    ),
    Row(
        "S03", "A TLS handshake that is silent, slow, or garbage", "It is inside of the handshake's deadline"
    ),
    Row("S04", "The end of a connection during a TLS handshake or write", "Bounded; nothing crashes"),
    Row(
        "S05",
        "A 101 that is wrong: no or another Accept, twice, something that was not offered, HTTP/1.0",
        "`InvalidResponse`",
        "6455 §4.1",
    ),
    Row(
        "S06",
        "Redirects: loops, other hosts, from wss to ws, to files",
        "Not followed: `HandshakeRejected` tells where they point",
    ),
    Row(
        "S07",
        "A server that answers without end, or not at all, or leaves in the middle",
        "Bytes and time are bounded, whatever it sends",
    ),
    Row("S08", "Frames in the same segment as the 101", "They are delivered"),
    Row(
        "S09",
        "A server that is away, and all its clients come back at once",
        "Nothing reconnects by itself; the documented way waits at random, longer each time",
        "6455 §7.2.3",
    ),
    Row(
        "S10",
        "A proxy between",
        "There is no proxy support, hence no CONNECT to inject into: bytes of an URL never reach a header",
    ),
    # --- arguments -------------------------------------------------------------------------------------
    Row("A01", "CR, LF, NUL in the value of a header", "`ValueError` before a byte is written"),
    Row("A02", "CR, LF, NUL or a bad token as the name of a header", "`ValueError` before a byte is written"),
    Row("A03", "A subprotocol that is no token", "`ValueError` before a byte is written"),
    Row("A04", "CR, LF, NUL in the origin", "`ValueError` before a byte is written"),
    Row(
        "A05",
        "CR, LF, NUL or bytes beyond ASCII in a URL's host, path or query",
        "`ValueError` before a byte is written",
    ),
    Row("A06", "Headers that would replace those of the handshake", "`ValueError`"),
    Row("A07", "A close code or reason that may not be sent", "`ValueError`; the connection is as before"),
    Row("A08", "Text with a lone surrogate", "`UnicodeEncodeError`; the connection is as before"),
    Row(
        "A15",
        "Buffers that are not contiguous, of wide items, multi-dimensional, released, empty, read-only",
        "Exactly their bytes are sent, or it is an error; never uninitialised memory",
    ),
    Row("A16", "A guess at secrets by timing", "Nothing in the package compares a secret"),
    Row(
        "A17",
        "A guess at the accept key",
        "It is no secret (RFC 6455 §10.8); it is compared whole",
        "6455 §10.8",
    ),
    # --- logs ------------------------------------------------------------------------------------------
    Row(
        "L01",
        "Line breaks, escapes, bidirectional marks in anything that is logged",
        "Escaped, and at most 256 characters",
    ),
    Row(
        "L02",
        "Secrets in headers, queries and bodies",
        "They stand in no log line, `repr` or message of an error",
    ),
    Row(
        "L03",
        "A flood of bad clients",
        "A bounded number of log lines per second, no traceback for what a peer did",
    ),
    Row("L06", "`str` and `repr` of anything a peer has sent", "Never an error, and bounded in length"),
)
