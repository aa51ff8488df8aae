"""The machine of RFC 6455 §6 and §7: what may be said and heard in each state, and how it ends.

What the machine receives is built, and what it sends is taken apart, by ``frames.py``, which shares
nothing with the framing that the machine uses.
"""

from __future__ import annotations

import array
import ast
import ctypes
import itertools
import random
import struct
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from anyio_ws import protocol as module
from anyio_ws.deflate import Compression, Parameters, build_codec
from anyio_ws.events import CloseCode, Message, MessageType, Opcode
from anyio_ws.exceptions import LocalProtocolError, RemoteProtocolError
from anyio_ws.framing import Frame, end_of_frame, frame_bin, frame_text
from anyio_ws.protocol import TRANSITIONS, Move, Protocol, Role, State

from .frames import build_frame, cut, parse_frames

PACKAGE = Path(module.__file__).parent

PEER = {Role.CLIENT: Role.SERVER, Role.SERVER: Role.CLIENT}

# --- the wire -------------------------------------------------------------------------------------


def build(role: Role, opcode: int, payload: bytes = b"", *, fin: bool = True) -> bytes:
    """Build a frame of one end; the key with which the client masks has no merit."""
    return build_frame(opcode, payload, fin=fin, key=b"\x01\x02\x03\x04" if role is Role.CLIENT else None)


def sent(data: bytes) -> tuple[int, bytes]:
    """Take apart one whole frame, and return its opcode and payload."""
    (wire,) = parse_frames(data)
    assert (wire.fin, wire.rsv) == (True, 0)
    return wire.opcode, wire.payload


def close_payload(code: int, reason: str = "") -> bytes:
    """Build the payload of a Close, valid or not."""
    return code.to_bytes(2, "big") + reason.encode()


# --- machines -------------------------------------------------------------------------------------


@pytest.fixture(params=list(Role), ids=[role.value for role in Role])
def role(request: pytest.FixtureRequest) -> Role:
    """Run a test for both ends of a connection."""
    result: Role = request.param
    return result


def hear(protocol: Protocol, opcode: int, payload: bytes = b"", *, fin: bool = True) -> list[Message]:
    """Let a machine receive one frame of its peer."""
    return protocol.receive_data(build(PEER[protocol.role], opcode, payload, fin=fin))


def machine(role: Role, state: State = State.OPEN, *, size: int = 1000, utf8: bool = True) -> Protocol:
    """Make a machine and bring it into a state; the Close on the way there has code 3000, reason "why"."""
    protocol = Protocol(role, max_message_size=size, utf8=utf8)
    if state is not State.CONNECTING:
        protocol.opened()
    if state is State.CLOSE_SENT:
        protocol.send_close(3000, "why")
    if state in {State.CLOSE_RECEIVED, State.CLOSED}:
        hear(protocol, Opcode.CLOSE, close_payload(3000, "why"))
    if state is State.CLOSED:
        protocol.answer_close()
    assert protocol.state is state
    return protocol


class Report(NamedTuple):
    """All that a machine tells about the end of its connection."""

    state: State
    code: int | None
    reason: str
    closed_by: Role | None
    error: RemoteProtocolError | None


def report(protocol: Protocol) -> Report:
    """Return all that a machine tells."""
    return Report(
        protocol.state, protocol.close_code, protocol.close_reason, protocol.closed_by, protocol.error
    )


# --- the table ------------------------------------------------------------------------------------

PERFORM: dict[Move, Callable[[Protocol], object]] = {
    Move.OPENED: lambda protocol: protocol.opened(),
    Move.SEND: lambda protocol: protocol.send_bin(b""),
    Move.RECEIVE: lambda protocol: hear(protocol, Opcode.BINARY),
    Move.SEND_CLOSE: lambda protocol: protocol.send_close(),
    Move.RECEIVE_CLOSE: lambda protocol: hear(protocol, Opcode.CLOSE),
    Move.LOSE: lambda protocol: protocol.lost(),
}
OURS = [Move.OPENED, Move.SEND, Move.SEND_CLOSE]  # moves that a caller asks for; the rest happens to it
EVERY = [pytest.param(state, move, id=f"{state.name}-{move.name}") for state in State for move in Move]


def test_transitions_name_every_state_and_every_move() -> None:
    """Every state has its row in the table, and every move its place in some row."""
    assert list(TRANSITIONS) == list(State)
    assert {move for moves in TRANSITIONS.values() for move in moves} == set(Move) == set(PERFORM)


@pytest.mark.parametrize("state", State, ids=lambda state: state.name)
def test_transitions_lead_from_every_state_to_closed(state: State) -> None:
    """From every state CLOSED can be reached, at once by LOSE, and no way leads back."""
    assert TRANSITIONS[state][Move.LOSE] is State.CLOSED
    assert all(following >= state for following in TRANSITIONS[state].values())


def test_transitions_lead_from_connecting_to_every_state() -> None:
    """Every state can be reached from CONNECTING."""
    reached, new = set(), {State.CONNECTING}
    while new:
        reached |= new
        new = {following for state in new for following in TRANSITIONS[state].values()} - reached
    assert reached == set(State)


def test_transitions_end_in_closed_only() -> None:
    """CLOSED is the one state that nothing leaves."""
    assert [state for state in State if set(TRANSITIONS[state].values()) <= {state}] == [State.CLOSED]


@pytest.mark.parametrize(("state", "move"), EVERY)
def test_transitions_are_what_happens(role: Role, state: State, move: Move) -> None:
    """A move of the table is possible and leads where the table says, and ``can`` knows it beforehand."""
    protocol = machine(role, state)
    assert protocol.can(move) is (move in TRANSITIONS[state])
    if protocol.can(move):
        PERFORM[move](protocol)
        assert protocol.state is TRANSITIONS[state][move]


@pytest.mark.parametrize(("state", "move"), [param for param in EVERY if param.values[1] in OURS])
def test_transitions_missing_key_is_an_error_that_names_move_and_state(
    role: Role, state: State, move: Move
) -> None:
    """What the table does not have is a LocalProtocolError that names both, and changes nothing."""
    protocol = machine(role, state)
    before = report(protocol)
    if move not in TRANSITIONS[state]:
        with pytest.raises(LocalProtocolError, match=f"^{move.name} is not possible when {state.name}$"):
            PERFORM[move](protocol)
        assert report(protocol) == before


@pytest.mark.parametrize("move", [Move.RECEIVE, Move.RECEIVE_CLOSE], ids=lambda move: move.name)
def test_receive_data_before_the_connection_is_open_is_an_error(role: Role, move: Move) -> None:
    """Bytes that came behind the opening handshake have to wait for ``opened``, a Close among them."""
    protocol = machine(role, State.CONNECTING)
    with pytest.raises(LocalProtocolError, match=r"^RECEIVE is not possible when CONNECTING$"):
        PERFORM[move](protocol)
    protocol.opened()
    PERFORM[move](protocol)
    assert protocol.state is TRANSITIONS[State.OPEN][move]


def find_state_assignments(source: str) -> list[int]:
    """Find the lines that change the state of a protocol, or have something change it."""
    tree = ast.parse(source)
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    heirs = [node for node in classes if any(ast.unparse(base).endswith("Protocol") for base in node.bases)]
    in_heirs = {part for heir in heirs for part in ast.walk(heir)}
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in {"state", "_moves"}:
            # Any other class may have a state of its own, and assigns that of its self.
            own = ast.unparse(node.value) == "self" and node not in in_heirs
            if not own and not isinstance(node.ctx, ast.Load):
                lines.append(node.lineno)
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            names = {part.value for part in node.args if isinstance(part, ast.Constant)}
            if called.endswith("._move") or ("attr" in called and names & {"state", "_moves"}):
                lines.append(node.lineno)
    return lines


def test_state_is_assigned_by_protocol_alone() -> None:
    """No other module of the package assigns the state of a protocol or moves it by hand."""
    paths = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "protocol.py"]
    assert len(paths) > 3
    assert not [
        f"{path.name}:{line}" for path in paths for line in find_state_assignments(path.read_text("utf-8"))
    ]


@pytest.mark.parametrize(
    "source",
    [
        "conn._protocol.state = 1",
        "a, protocol.state = 1, 2",
        "del self.protocol.state",
        "for self.protocol.state in (): pass",
        "setattr(protocol, 'state', 1)",
        "object.__setattr__(protocol, 'state', 1)",
        "protocol._moves = {}",
        "protocol._move(Move.LOSE)",
        "class Mine(Protocol):\n def f(self): self.state = 1",
        "class Mine(protocol.Protocol):\n def f(self): self._moves = {}",
    ],
)
def test_state_assignment_is_found(source: str) -> None:
    """The search above finds every way to change the state of a protocol from outside."""
    assert find_state_assignments(source)


@pytest.mark.parametrize(
    "source", ["class Conn:\n def f(self): self.state = 1", "a = protocol.state", "setattr(conn, 'id', 1)"]
)
def test_state_assignment_is_not_found_where_there_is_none(source: str) -> None:
    """The search above minds neither reading nor the state of somebody else."""
    assert not find_state_assignments(source)


# --- sending --------------------------------------------------------------------------------------


class Sender(NamedTuple):
    """A call that sends one frame, and the frame that it should be."""

    call: Callable[[Protocol], bytes]
    opcode: Opcode
    payload: bytes


SENDERS = {
    "send_text": Sender(lambda p: p.send_text("é€"), Opcode.TEXT, "é€".encode()),
    "send_bin": Sender(lambda p: p.send_bin(b"\x00\xff"), Opcode.BINARY, b"\x00\xff"),
    "send_message": Sender(
        lambda p: p.send_message(MessageType.TEXT, memoryview(b"text")), Opcode.TEXT, b"text"
    ),
    "send_prepared text": Sender(lambda p: p.send_prepared(frame_text("é€")), Opcode.TEXT, "é€".encode()),
    "send_prepared binary": Sender(lambda p: p.send_prepared(frame_bin(b"\xfe")), Opcode.BINARY, b"\xfe"),
    "send_frame text": Sender(lambda p: p.send_frame(1, b"text"), Opcode.TEXT, b"text"),
    "send_frame binary": Sender(lambda p: p.send_frame(Opcode.BINARY, b"\xfd"), Opcode.BINARY, b"\xfd"),
    "send_ping": Sender(lambda p: p.send_ping(b"a" * 125), Opcode.PING, b"a" * 125),
    "send_ping empty": Sender(lambda p: p.send_ping(), Opcode.PING, b""),
    "send_frame ping": Sender(lambda p: p.send_frame(9, b"ping"), Opcode.PING, b"ping"),
    "send_pong": Sender(lambda p: p.send_pong(b"a" * 125), Opcode.PONG, b"a" * 125),
    "send_pong empty": Sender(lambda p: p.send_pong(), Opcode.PONG, b""),
    "send_frame pong": Sender(lambda p: p.send_frame(10, b"pong"), Opcode.PONG, b"pong"),
    "send_close": Sender(lambda p: p.send_close(), Opcode.CLOSE, close_payload(1000)),
    "send_close with reason": Sender(
        lambda p: p.send_close(4999, "é"), Opcode.CLOSE, close_payload(4999, "é")
    ),
    "send_close without code": Sender(lambda p: p.send_close(1005), Opcode.CLOSE, b""),
    "send_frame close": Sender(
        lambda p: p.send_frame(8, close_payload(1001, "bye")), Opcode.CLOSE, close_payload(1001, "bye")
    ),
    "send_frame close without code": Sender(lambda p: p.send_frame(8, b""), Opcode.CLOSE, b""),
}
DATA_SENDERS = {name: sender for name, sender in SENDERS.items() if sender.opcode < Opcode.CLOSE}


def test_senders_are_all_there() -> None:
    """The table of senders that the tests below walk has every ``send_`` method."""
    assert {name.split()[0] for name in SENDERS} == {
        name for name in vars(Protocol) if name.startswith("send_")
    }


@pytest.mark.parametrize("sender", SENDERS.values(), ids=SENDERS)
@pytest.mark.parametrize("state", State, ids=lambda state: state.name)
def test_send_frames_where_the_table_allows_it(role: Role, state: State, sender: Sender) -> None:
    """In OPEN and CLOSE_RECEIVED every sender returns its one frame, elsewhere it is an error."""
    protocol = machine(role, state)
    before = report(protocol)
    move = Move.SEND_CLOSE if sender.opcode is Opcode.CLOSE else Move.SEND
    if state in {State.OPEN, State.CLOSE_RECEIVED}:
        (wire,) = parse_frames(sender.call(protocol))
        assert wire[:4] == (sender.opcode, sender.payload, True, 0)
        assert (wire.key is None) is (role is Role.SERVER)
        assert protocol.state is TRANSITIONS[state][move]
    else:
        with pytest.raises(LocalProtocolError, match=f"^{move.name} is not possible when {state.name}$"):
            sender.call(protocol)
        assert report(protocol) == before


@pytest.mark.parametrize("length", [0, 1, 125, 126, 65535, 65536])
def test_send_keeps_the_payload_of_every_length_class(role: Role, length: int) -> None:
    """A message arrives whole whichever of the three forms its length takes (§5.2)."""
    data = random.Random(length).randbytes(length)
    frame = machine(role).send_bin(data)
    assert sent(frame) == (Opcode.BINARY, data)
    assert machine(PEER[role], size=length).receive_data(frame) == [Message(MessageType.BINARY, data)]


def test_send_frame_refuses_opcodes_that_are_not_defined(role: Role) -> None:
    """An opcode that RFC 6455 does not define is a ValueError that says so."""
    protocol = machine(role)
    for opcode in {*range(-1, 257)} - {0, 1, 2, 8, 9, 10}:
        with pytest.raises(ValueError, match=f"^opcode: {opcode} is not defined by RFC 6455$"):
            protocol.send_frame(opcode, b"")
    assert sent(protocol.send_frame(1, b"ok")) == (Opcode.TEXT, b"ok")


@pytest.mark.parametrize("opcode", [Opcode.CLOSE, Opcode.PING, Opcode.PONG])
def test_send_frame_refuses_fragments_of_control_frames(role: Role, opcode: Opcode) -> None:
    """A control frame without FIN is a ValueError, and a Close so refused does not close (§5.5)."""
    protocol = machine(role)
    with pytest.raises(ValueError, match=r"^fin: a control frame cannot be fragmented"):
        protocol.send_frame(opcode, b"", fin=False)
    assert report(protocol) == report(machine(role))


@pytest.mark.attack("A08")
@pytest.mark.parametrize("state", [State.CONNECTING, State.OPEN, State.CLOSED], ids=lambda state: state.name)
@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "\udc80" * 40])
def test_lone_surrogates_are_an_error_that_changes_nothing(role: Role, state: State, text: str) -> None:
    """Text or a reason with a lone surrogate is a UnicodeEncodeError, and the machine stays as it was."""
    protocol = machine(role, state)
    before = report(protocol)
    for send in (protocol.send_text, lambda text: protocol.send_close(1000, text)):
        with pytest.raises(UnicodeEncodeError):
            send(text)
    with pytest.raises(UnicodeEncodeError):
        frame_text(text)
    assert report(protocol) == before
    if state is State.OPEN:
        assert sent(protocol.send_text("next")) == (Opcode.TEXT, b"next")


@pytest.mark.parametrize("data", [b"bytes", bytearray(b"bytes"), memoryview(b"bytes"), 5, None])
def test_send_text_takes_text_only(role: Role, data: Any) -> None:
    """What is not ``str`` is a TypeError and not a text message."""
    with pytest.raises(TypeError, match=r"^data: .*str"):
        machine(role).send_text(data)


# --- bytes-like arguments -------------------------------------------------------------------------


class Blob(bytes):
    """A subclass of bytes with opinions of its own."""

    def __bytes__(self) -> bytes:
        return b"lies"

    def __len__(self) -> int:
        return 1


GRID = (ctypes.c_short * 2 * 2).from_buffer_copy(struct.pack("=4h", 1, 2, 3, 4))

Way = Callable[[Protocol, Any], bytes]
# Every way to send bytes, and the opcode that goes out.
BINARY_SENDERS: dict[str, tuple[Way, Opcode]] = {
    "send_bin": (Protocol.send_bin, Opcode.BINARY),
    "send_prepared": (lambda p, data: p.send_prepared(frame_bin(data)), Opcode.BINARY),
    "send_frame": (lambda p, data: p.send_frame(Opcode.BINARY, data), Opcode.BINARY),
    "send_ping": (Protocol.send_ping, Opcode.PING),
    "send_pong": (Protocol.send_pong, Opcode.PONG),
    "send_frame ping": (lambda p, data: p.send_frame(Opcode.PING, data), Opcode.PING),
    "send_frame pong": (lambda p, data: p.send_frame(Opcode.PONG, data), Opcode.PONG),
}
any_way = pytest.mark.parametrize(("send", "opcode"), BINARY_SENDERS.values(), ids=BINARY_SENDERS)


@pytest.mark.attack("A15")
@any_way
@pytest.mark.parametrize(
    ("data", "payload"),
    [
        pytest.param(b"abc", b"abc", id="bytes"),
        pytest.param(Blob(b"abc"), b"abc", id="subclass"),
        pytest.param(bytearray(b"abc"), b"abc", id="bytearray"),
        pytest.param(memoryview(b"abc"), b"abc", id="read-only"),
        pytest.param(memoryview(bytearray(b"abc")), b"abc", id="writable"),
        pytest.param(memoryview(b"abcdef")[1:3], b"bc", id="slice"),
        pytest.param(memoryview(b"a-b-c-")[::2], b"abc", id="non-contiguous"),
        pytest.param(memoryview(b"abc")[::-1], b"cba", id="reversed"),
        pytest.param(memoryview(b"abcdef").cast("B", (2, 3)), b"abcdef", id="multi-dimensional"),
        pytest.param(memoryview(ctypes.c_ubyte(7)), b"\x07", id="no dimensions"),
        pytest.param(array.array("d", [1.5, -2.0]), struct.pack("=dd", 1.5, -2.0), id="floats"),
        pytest.param(
            memoryview(array.array("d", [1.5, -2.0])), struct.pack("=dd", 1.5, -2.0), id="float view"
        ),
        pytest.param(
            memoryview(array.array("i", [1, 2, 3, 4]))[::2], struct.pack("=ii", 1, 3), id="strided integers"
        ),
        pytest.param(GRID, struct.pack("=4h", 1, 2, 3, 4), id="ctypes"),
        pytest.param(b"", b"", id="no bytes"),
        pytest.param(bytearray(), b"", id="no bytearray"),
        pytest.param(memoryview(b"abc")[3:], b"", id="zero-length view"),
        pytest.param(memoryview(b"")[::2], b"", id="zero-length strided view"),
        pytest.param(array.array("d"), b"", id="no floats"),
    ],
)
def test_bytes_like_data_is_sent_byte_by_byte(
    role: Role, send: Way, opcode: Opcode, data: object, payload: bytes
) -> None:
    """Whatever the buffer's shape, the bytes it stands for go out, no more and no fewer."""
    assert sent(send(machine(role), data)) == (opcode, payload)


@pytest.mark.attack("A15")
@any_way
@pytest.mark.parametrize("data", ["text", 5, 1.5, None, [1, 2], ()], ids=repr)
def test_data_that_is_not_bytes_like_is_a_type_error(
    role: Role, send: Way, opcode: Opcode, data: object
) -> None:
    """What has no bytes is refused, and the machine stays as it was; 5 in particular is not five zeros."""
    protocol = machine(role)
    with pytest.raises(TypeError, match=f"^data: a bytes-like object is needed, not {type(data).__name__}$"):
        send(protocol, data)
    assert report(protocol) == report(machine(role))
    assert sent(send(protocol, b"next")) == (opcode, b"next")


@pytest.mark.attack("A15")
@any_way
def test_released_view_is_a_value_error(role: Role, send: Way, opcode: Opcode) -> None:
    """A view that was released is refused, as Python itself does, and nothing of its memory is sent."""
    protocol = machine(role)
    view = memoryview(bytearray(b"secret"))
    view.release()
    with pytest.raises(ValueError, match="released"):
        send(protocol, view)
    assert sent(send(protocol, b"next")) == (opcode, b"next")


@pytest.mark.attack("A15")
def test_refused_first_fragment_does_not_begin_a_message(role: Role) -> None:
    """When a fragment's data is refused no message was begun, so that the next may begin."""
    protocol = machine(role)
    refused: Any = "text"
    with pytest.raises(TypeError):
        protocol.send_frame(Opcode.BINARY, refused, fin=False)
    assert sent(protocol.send_bin(b"next")) == (Opcode.BINARY, b"next")


@any_way
@pytest.mark.parametrize("data", [bytes(126), array.array("d", [0.0] * 16)], ids=["bytes", "floats"])
def test_control_frame_holds_at_most_125_bytes(role: Role, send: Way, opcode: Opcode, data: Any) -> None:
    """More than 125 bytes for a control frame are a ValueError, however few items they are (§5.5)."""
    protocol = machine(role)
    if opcode < Opcode.CLOSE:
        assert sent(send(protocol, data)) == (opcode, bytes(memoryview(data)))
    else:
        with pytest.raises(ValueError, match=r"^data: 12[68] bytes, a control frame holds at most 125"):
            send(protocol, data)
    assert protocol.state is State.OPEN


@pytest.mark.attack("F30")
@any_way
@pytest.mark.parametrize("length", [7, 125, 5000])
@pytest.mark.parametrize("view", [False, True], ids=["bytearray", "memoryview"])
def test_caller_keeps_its_buffer(role: Role, send: Way, opcode: Opcode, length: int, view: bool) -> None:
    """A sent buffer is not altered by masking, nor the frame by what the caller does with it later."""
    length = min(length, 125) if opcode > Opcode.CLOSE else length
    data = bytearray(random.Random(length).randbytes(length))
    original = bytes(data)
    with memoryview(data) as exported:
        frame = send(machine(role), exported if view else data)
    assert data == original
    data[:] = bytes(length)
    data.clear()  # a BufferError if something still held the buffer
    assert sent(frame) == (opcode, original)


def test_receive_data_does_not_refer_to_its_argument_afterwards(role: Role) -> None:
    """The caller may read into one buffer again and again: half a message is not lost by it."""
    protocol = machine(role)
    shared = bytearray(64)
    messages = []
    stream = b"".join(build(PEER[role], opcode, b"0123456789") for opcode in (1, 2, 9))
    stream += build(PEER[role], Opcode.CLOSE, close_payload(1000, "bye"))
    for position in range(0, len(stream), 5):
        chunk = stream[position : position + 5]
        shared[: len(chunk)] = chunk
        messages += protocol.receive_data(memoryview(shared)[: len(chunk)])
    assert [(message.type, message.data) for message in messages] == [
        (MessageType.TEXT, "0123456789"),
        (MessageType.BINARY, b"0123456789"),
        (MessageType.PING, b"0123456789"),
        (MessageType.CLOSE, close_payload(1000, "bye")),
    ]
    shared.clear()
    assert report(protocol)[:3] == (State.CLOSE_RECEIVED, 1000, "bye")


# --- masking --------------------------------------------------------------------------------------


def keys_of(protocol: Protocol, count: int) -> list[bytes | None]:
    """Return the masking keys of frames of every kind, ``None`` for each that is not masked."""
    calls = itertools.cycle(sender.call for sender in SENDERS.values() if sender.opcode is not Opcode.CLOSE)
    return [wire.key for call in itertools.islice(calls, count) for wire in parse_frames(call(protocol))]


@pytest.mark.attack("F28")
def test_masking_key_of_a_client_is_fresh_for_every_frame() -> None:
    """A client's keys are all different, and each of their bits is set about half of the time."""
    keys = [key for key in keys_of(machine(Role.CLIENT), 480) if key is not None]
    assert len(keys) == 480
    assert len(set(keys)) >= 478  # a collision by chance happens once in 40,000 runs
    numbers = [int.from_bytes(key, "big") for key in keys]
    for bit in range(32):  # 120 and 360 are eleven standard deviations from the middle
        assert 120 < sum(number >> bit & 1 for number in numbers) < 360


@pytest.mark.attack("F28")
def test_masking_key_does_not_come_from_a_seeded_generator() -> None:
    """Who knows the state of ``random`` does not know the keys (§5.3: "strong source of entropy")."""
    remembered = random.getstate()
    try:
        runs = []
        for _ in range(2):
            random.seed(6455)
            runs.append(set(keys_of(machine(Role.CLIENT), 20)))
    finally:
        random.setstate(remembered)
    assert not runs[0] & runs[1]


@pytest.mark.attack("F28")
def test_masking_keys_are_made_where_processes_do_not_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nothing to register then, and keys are forgotten when they are told to be (§5.3)."""
    monkeypatch.delattr("os.register_at_fork", raising=False)
    pool = module._KeyPool()
    keys = [pool(), pool()]
    pool._forget()
    keys.append(pool())
    assert {len(key) for key in keys} == {4}
    assert len(set(keys)) == 3


def test_masking_key_of_a_client_is_on_its_close_too() -> None:
    """Every way to send a Close masks it with a key of its own."""
    keys = set()
    for _ in range(10):
        started, answered = machine(Role.CLIENT), machine(Role.CLIENT, State.CLOSE_RECEIVED)
        failed, framed = machine(Role.CLIENT), machine(Role.CLIENT)
        for data in (started.send_close(), answered.answer_close(), failed.fail(1002)):
            keys |= {wire.key for wire in parse_frames(data)}
        keys |= {wire.key for wire in parse_frames(framed.send_frame(Opcode.CLOSE, b""))}
    assert len(keys - {None}) == 40


@pytest.mark.attack("F28")
def test_masking_key_of_a_server_does_not_exist() -> None:
    """A server never masks (§5.1)."""
    assert set(keys_of(machine(Role.SERVER), 50)) == {None}
    assert [wire.key for wire in parse_frames(machine(Role.SERVER).send_close())] == [None]


if sys.platform != "win32":  # which has no fork

    @pytest.mark.attack("F28")
    def test_masking_keys_of_a_forked_process_are_its_own() -> None:
        """After ``os.fork`` parent and child do not go on with the same keys."""
        script = """
import os
from anyio_ws.protocol import Protocol, Role

client = Protocol(Role.CLIENT, max_message_size=1)
client.opened()
client.send_ping()
reader, writer = os.pipe()
child = os.fork()
keys = b"".join(client.send_ping()[2:6] for _ in range(8))
if not child:
    os.write(writer, keys)
    os._exit(0)
os.waitpid(child, 0)
print(keys.hex(), os.read(reader, 100).hex())
"""
        run = subprocess.run(
            [sys.executable, "-c", script], cwd=PACKAGE.parent, capture_output=True, text=True, check=True
        )
        parent, child = (bytes.fromhex(line) for line in run.stdout.split())
        keys = [source[i : i + 4] for source in (parent, child) for i in range(0, 32, 4)]
        assert len(set(keys)) == len(keys) == 16


# --- frames made ahead of time --------------------------------------------------------------------


def test_prepared_frame_goes_out_from_a_server_as_it_is() -> None:
    """A server writes the very bytes that were prepared, however often."""
    server = machine(Role.SERVER)
    frame = frame_text("hello")
    assert [server.send_prepared(frame) for _ in range(2)] == [bytes(frame)] * 2 == [b"\x81\x05hello"] * 2


@pytest.mark.attack("F28")
def test_prepared_frame_is_masked_anew_by_a_client() -> None:
    """A client masks each sending of one prepared frame with another key."""
    client = machine(Role.CLIENT)
    frame = frame_bin(b"\x00\xff")
    wires = [wire for _ in range(8) for wire in parse_frames(client.send_prepared(frame))]
    assert {wire[:3] for wire in wires} == {(Opcode.BINARY, b"\x00\xff", True)}
    assert len({wire.key for wire in wires} - {None}) == 8
    assert bytes(frame) == b"\x82\x02\x00\xff"


@pytest.mark.parametrize("opcode", [Opcode.CONTINUATION, Opcode.CLOSE, Opcode.PING, Opcode.PONG])
def test_prepared_frame_is_a_message(role: Role, opcode: Opcode) -> None:
    """Only text and binary can be prepared: a prepared Close would close behind the machine's back."""
    with pytest.raises(ValueError, match="opcode"):
        machine(role).send_prepared(Frame(opcode, b""))


# --- compression: RFC 7692 ------------------------------------------------------------------------

KEPT, ALONE = Parameters(), Parameters(server_no_context_takeover=True, client_no_context_takeover=True)
PRICE = '{"id": 5701, "symbol": "AAPL", "price": 181.25, "side": "buy", "venue": "XNAS", "quantity": 100}'
parameters_kept_or_not = pytest.mark.parametrize("parameters", [KEPT, ALONE], ids=["context", "no context"])


def compressing(role: Role, parameters: Parameters = KEPT, *, size: int = 1000) -> Protocol:
    """Make an open machine that compresses."""
    protocol = Protocol(role, max_message_size=size)
    protocol.opened(build_codec(parameters, Compression(), client=role is Role.CLIENT))
    return protocol


class Wire(NamedTuple):
    """What was sent of a message: whether it is compressed, and how long it is."""

    compressed: bool
    size: int


def wire_of(data: bytes) -> Wire:
    """Take apart one whole data frame."""
    (frame,) = parse_frames(data)
    assert frame.fin
    assert frame.rsv in (0, 4)
    return Wire(frame.rsv == 4, len(frame.payload))


@parameters_kept_or_not
def test_compressed_messages_arrive(role: Role, parameters: Parameters) -> None:
    """Messages of either type are compressed, RSV1 says so, and the peer has them back."""
    protocol, peer = compressing(role, parameters), compressing(PEER[role], parameters)
    for _ in range(3):
        for data, message in (
            (protocol.send_text(PRICE), Message(MessageType.TEXT, PRICE)),
            (protocol.send_bin(PRICE.encode()), Message(MessageType.BINARY, PRICE.encode())),
        ):
            assert wire_of(data).compressed
            assert wire_of(data).size < len(PRICE)
            assert peer.receive_data(data) == [message]
    assert peer.error is None


def test_compressed_messages_refer_to_each_other_where_a_context_is_kept(role: Role) -> None:
    """With a context the second of two equal messages is a few bytes, without one it is like the first."""
    for parameters, longest in ((KEPT, 15), (ALONE, len(PRICE))):
        protocol = compressing(role, parameters)
        first, second = (wire_of(protocol.send_text(PRICE)).size for _ in range(2))
        assert second <= longest
        assert (second == first) is (parameters is ALONE)


def test_short_messages_are_not_compressed(role: Role) -> None:
    """Below the threshold a message is sent as it is, from its length alone."""
    protocol = compressing(role)
    assert [wire_of(protocol.send_text("a" * size)).compressed for size in (0, 63, 64)] == [
        False,
        False,
        True,
    ]


@pytest.mark.attack("C13")
@parameters_kept_or_not
def test_message_is_not_compressed_against_the_callers_will(role: Role, parameters: Parameters) -> None:
    """With compress=False a message goes out as it is, and takes no part in the context of others."""
    protocol, peer = compressing(role, parameters), compressing(PEER[role], parameters)
    for data in (protocol.send_text(PRICE, False), protocol.send_bin(PRICE.encode(), False)):
        assert wire_of(data) == (False, len(PRICE))
        assert len(peer.receive_data(data)) == 1
    data = protocol.send_text(PRICE)
    assert wire_of(data) == wire_of(compressing(role, parameters).send_text(PRICE))
    assert peer.receive_data(data) == [Message(MessageType.TEXT, PRICE)]


@parameters_kept_or_not
def test_prepared_frame_is_compressed(role: Role, parameters: Parameters) -> None:
    """A frame made ahead of time arrives among other compressed messages, however often it is sent."""
    protocol, peer = compressing(role, parameters), compressing(PEER[role], parameters)
    frame, message = frame_text(PRICE), Message(MessageType.TEXT, PRICE)
    for _ in range(3):
        for data in (protocol.send_text(PRICE), protocol.send_prepared(frame), protocol.send_prepared(frame)):
            assert wire_of(data).compressed
            assert peer.receive_data(data) == [message]
    assert bytes(frame) == build_frame(Opcode.TEXT, PRICE.encode())


def test_prepared_frame_is_compressed_once_for_all_connections_of_a_server() -> None:
    """All connections alike write the very same bytes, whether they keep a context or not."""
    frame = frame_text(PRICE)
    servers = [compressing(Role.SERVER, parameters) for parameters in (KEPT, ALONE, KEPT)]
    servers[0].send_text(PRICE)
    first, *others = (server.send_prepared(frame) for server in servers)
    assert all(each is first for each in others)


@pytest.mark.attack("C12")
def test_prepared_frame_ends_the_context_of_a_server() -> None:
    """After a frame that was compressed elsewhere the next message refers to nothing before it."""
    server = compressing(Role.SERVER)
    first = server.send_text(PRICE)
    server.send_prepared(frame_text(PRICE))
    assert server.send_text(PRICE) == first


@pytest.mark.attack("C13")
def test_prepared_frame_that_stays_as_it_is_leaves_the_context_alone(role: Role) -> None:
    """A frame that is too short, or must not be compressed, goes out as it is, and ends no context."""
    protocol = compressing(role)
    protocol.send_text(PRICE)
    for frame in (frame_text("short"), frame_text(PRICE, compress=False)):
        assert wire_of(protocol.send_prepared(frame)) == (False, len(frame.payload))
    assert wire_of(protocol.send_text(PRICE)).size <= 15


@parameters_kept_or_not
def test_frame_is_not_compressed_unless_that_is_asked_for(role: Role, parameters: Parameters) -> None:
    """What is given to send_frame is the payload of the frame, whole message or fragment."""
    protocol, peer = compressing(role, parameters), compressing(PEER[role], parameters)
    peer.receive_data(protocol.send_text(PRICE))
    for data in (
        protocol.send_frame(Opcode.TEXT, PRICE.encode()),
        protocol.send_frame(Opcode.TEXT, PRICE.encode(), fin=False),
        protocol.send_frame(Opcode.CONTINUATION, PRICE.encode(), compress=True),
    ):
        (frame,) = parse_frames(data)
        assert (frame.rsv, frame.payload) == (0, PRICE.encode())
        peer.receive_data(data)
    assert peer.receive_data(protocol.send_text(PRICE)) == [Message(MessageType.TEXT, PRICE)]


@pytest.mark.attack("C11")
@parameters_kept_or_not
def test_fragments_are_compressed_as_one_message(role: Role, parameters: Parameters) -> None:
    """RSV1 is on the first fragment only, pings may come between, empty fragments too (RFC 7692 §6.1)."""
    protocol, peer = compressing(role, parameters), compressing(PEER[role], parameters)
    for parts in ([PRICE, PRICE, "", PRICE], ["", ""], [PRICE, ""]):
        heard, signs = [], []
        for number, part in enumerate(parts):
            opcode = Opcode.CONTINUATION if number else Opcode.TEXT
            data = protocol.send_frame(
                opcode, part.encode(), fin=number == len(parts) - 1, compress=not number
            )
            signs.append(parse_frames(data)[0].rsv)
            heard += peer.receive_data(data + protocol.send_ping(b"between"))
        assert signs == [4, *[0] * (len(parts) - 1)]
        assert [m for m in heard if m.type is not MessageType.PING] == [
            Message(MessageType.TEXT, "".join(parts))
        ]
        assert sum(m.type is MessageType.PING for m in heard) == len(parts)
    assert peer.error is None


def test_without_compression_nothing_asks_for_it(role: Role) -> None:
    """Where nothing was negotiated all of it is sent as it is, whatever the caller allows."""
    protocol = machine(role)
    for data in (
        protocol.send_text(PRICE, True),
        protocol.send_prepared(frame_text(PRICE)),
        protocol.send_frame(Opcode.TEXT, PRICE.encode(), compress=True),
    ):
        assert wire_of(data) == (False, len(PRICE))
    protocol.forget_context()


@pytest.mark.attack("C12")
def test_forget_context_makes_up_for_a_message_that_was_not_sent(role: Role) -> None:
    """When a framed message got lost, the next ones are understood all the same."""
    protocol, peer = compressing(role), compressing(PEER[role])
    message = Message(MessageType.TEXT, PRICE)
    assert peer.receive_data(protocol.send_text(PRICE)) == [message]
    protocol.send_text(PRICE + "lost")
    protocol.forget_context()
    assert [peer.receive_data(protocol.send_text(PRICE)) for _ in range(2)] == [[message]] * 2


@pytest.mark.attack("C10")
@pytest.mark.parametrize(
    "end", [lambda protocol: protocol.send_close(), lambda protocol: protocol.lost()], ids=["close", "lost"]
)
def test_context_is_given_back_when_nothing_more_can_be_sent(
    role: Role, end: Callable[[Protocol], object]
) -> None:
    """After our Close, and when the connection is lost, no memory is held to compress with."""
    deflater, inflater = build_codec(KEPT, Compression(), client=role is Role.CLIENT)
    protocol = Protocol(role, max_message_size=1000)
    protocol.opened((deflater, inflater))
    first = protocol.send_text(PRICE)
    end(protocol)
    assert wire_of(first).size == len(deflater.compress(PRICE.encode()))


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        pytest.param([(9, b"", 4)], "RSV1", marks=pytest.mark.attack("C02")),
        pytest.param([(8, b"", 4)], "RSV1", marks=pytest.mark.attack("C02")),
        pytest.param([(1, b"", 6)], "RSV2", marks=pytest.mark.attack("F01")),
    ],
)
def test_compression_allows_rsv1_where_a_message_begins(
    role: Role, frames: list[tuple[int, bytes, int]], reason: str
) -> None:
    """RSV1 on a control frame, or beside another bit, is 1002 (RFC 7692 §6.1)."""
    protocol = compressing(role)
    key = b"\x01\x02\x03\x04" if role is Role.SERVER else None
    for opcode, payload, rsv in frames:
        protocol.receive_data(build_frame(opcode, payload, rsv=rsv, key=key))
    assert protocol.error is not None
    assert (protocol.error.code, protocol.error.reason[:4]) == (CloseCode.PROTOCOL_ERROR, reason)


# --- fragments ------------------------------------------------------------------------------------


@pytest.mark.parametrize("opcode", [Opcode.TEXT, Opcode.BINARY])
def test_fragments_form_one_message(role: Role, opcode: Opcode) -> None:
    """Frames sent with ``fin=False`` and their continuation arrive as one message (§5.4)."""
    end, peer = machine(role), machine(PEER[role])
    pieces = [b"caf\xc3", b"", b"\xa9", b"!"]
    messages, wires = [], []
    for number, piece in enumerate(pieces):
        last = number == len(pieces) - 1
        data = end.send_frame(opcode if number == 0 else Opcode.CONTINUATION, piece, fin=last)
        wires += [wire[:3] for wire in parse_frames(data)]
        messages += peer.receive_data(data)
    assert wires == [(opcode, b"caf\xc3", False), (0, b"", False), (0, b"\xa9", False), (0, b"!", True)]
    text = opcode is Opcode.TEXT
    assert messages == [Message(MessageType(opcode), "café!" if text else "café!".encode())]
    assert sent(end.send_text("next")) == (Opcode.TEXT, b"next")


LONG = [131_073, 2 * 65_535, 3 * 65_535, 300_000]  # bytes; one of them is not long, and some end evenly


def frames_of_long(data: bytes, opcode: Opcode, payload: bytes, role: Role, rsv: int = 0) -> None:
    """Check that a message is cut as it should be, and that its frames hold what it should."""
    frames = parse_frames(data)
    sizes = [65_535] * (len(payload) // 65_535) + [len(payload) % 65_535]
    if len(payload) <= 131_072:
        sizes = [len(payload)]
    assert [len(frame.payload) for frame in frames] == [size for size in sizes if size]
    assert b"".join(frame.payload for frame in frames) == payload
    first, *others = frames
    assert (first.opcode, first.rsv) == (opcode, rsv)
    assert {(frame.opcode, frame.rsv) for frame in others} <= {(0, 0)}
    assert [frame.fin for frame in frames] == [False] * (len(frames) - 1) + [True]
    keys = {frame.key for frame in frames}
    assert (keys == {None}) if role is Role.SERVER else (len(keys - {None}) == len(frames))


@pytest.mark.attack("R15", "F28")
@pytest.mark.parametrize("size", [131_072, *LONG])
@pytest.mark.parametrize("way", ["text", "bin", "view", "message", "prepared", "in place"])
def test_long_message_is_cut_into_fragments(role: Role, size: int, way: str) -> None:
    """More than 128 KiB go out in frames of 65,535 bytes, each with a key of its own; less in one."""
    payload = random.Random(size).randbytes(size // 2 + 1).hex()[:size].encode()
    end, peer = machine(role), machine(PEER[role], size=size)
    if way == "in place" and role is Role.SERVER:
        return
    ways: dict[str, Callable[[], bytes]] = {
        "text": lambda: end.send_text(payload.decode()),
        "bin": lambda: end.send_bin(payload),
        "view": lambda: end.send_bin(memoryview(payload)),
        "message": lambda: end.send_message(MessageType.TEXT, memoryview(payload)),
        "prepared": lambda: end.send_prepared(frame_bin(payload)),
        "in place": lambda: b"".join(end.frame_in_place(bytearray(payload))),
    }
    data = ways[way]()
    opcode = Opcode.TEXT if way in ("text", "message") else Opcode.BINARY
    frames_of_long(data, opcode, payload, role)
    assert peer.receive_data(data) == [
        Message(MessageType(opcode), payload.decode() if opcode is Opcode.TEXT else payload)
    ]


@pytest.mark.attack("R15")
@pytest.mark.parametrize("character", ["a", "ä", "€", "𝄞"])
@pytest.mark.parametrize("size", [32_768, 32_769, 43_691, 65_536, 65_537, 131_072, 131_073])
def test_long_text_is_counted_in_bytes(role: Role, character: str, size: int) -> None:
    """A text is cut where its UTF-8 is longer than 128 KiB; fragments may end inside a character (§5.4)."""
    text = character * size
    data = machine(role).send_text(text)
    frames_of_long(data, Opcode.TEXT, text.encode(), role)
    peer = machine(PEER[role], size=len(text.encode()))
    assert peer.receive_data(data) == [Message(MessageType.TEXT, text)]


@pytest.mark.attack("R15", "C11")
@parameters_kept_or_not
@pytest.mark.parametrize("prepared", [False, True])
def test_long_message_is_compressed_before_it_is_cut(
    role: Role, parameters: Parameters, prepared: bool
) -> None:
    """RSV1 is on the first fragment only, and what compresses to little is one frame (RFC 7692 §6.1)."""
    end, peer = compressing(role, parameters), compressing(PEER[role], parameters, size=500_000)
    payload = random.Random(0).randbytes(200_000)
    for message in (payload, bytes(400_000), payload[:150_000]):
        data = end.send_prepared(frame_bin(message)) if prepared else end.send_bin(message)
        (first, *others) = parse_frames(data)
        is_compressed = first.rsv == 4
        assert {frame.rsv for frame in others} <= {0}
        assert len(others) == (0 if message == bytes(400_000) else len(message) // 65_535)
        assert is_compressed or (message != bytes(400_000) and parameters is ALONE) or prepared
        assert peer.receive_data(data) == [Message(MessageType.BINARY, message)]


@pytest.mark.attack("R15")
def test_long_message_takes_control_frames_between_its_fragments(role: Role) -> None:
    """Wherever :func:`end_of_frame` points a Pong may go, and the peer has the message and the Pong."""
    end, peer = machine(role), machine(PEER[role], size=200_000)
    data = end.send_bin(bytes(200_000))
    cut_at = end_of_frame(data, 1)
    assert 0 < cut_at < len(data)
    got = peer.receive_data(data[:cut_at] + end.send_pong(b"here") + data[cut_at:])
    assert got == [Message(MessageType.PONG, b"here"), Message(MessageType.BINARY, bytes(200_000))]


def test_frame_that_the_caller_makes_is_one_frame_however_long(role: Role) -> None:
    """Who makes frames decides on their size."""
    data = machine(role).send_frame(Opcode.BINARY, bytes(200_000))
    assert [len(frame.payload) for frame in parse_frames(data)] == [200_000]


@pytest.mark.parametrize("sender", DATA_SENDERS.values(), ids=DATA_SENDERS)
def test_fragments_allow_no_other_message_between_them(role: Role, sender: Sender) -> None:
    """Inside a fragmented message a new one is an error, and the first can still be finished (§5.4)."""
    protocol = machine(role)
    protocol.send_frame(Opcode.TEXT, b"a", fin=False)
    with pytest.raises(LocalProtocolError, match=r"^a fragmented message is open; only its continuation"):
        sender.call(protocol)
    assert sent(protocol.send_frame(Opcode.CONTINUATION, b"b")) == (Opcode.CONTINUATION, b"b")
    assert sent(sender.call(protocol)) == (sender.opcode, sender.payload)


@pytest.mark.parametrize("fin", [True, False])
def test_fragments_need_a_beginning(role: Role, fin: bool) -> None:
    """A continuation of nothing is an error, and begins nothing (§5.4)."""
    protocol = machine(role)
    for _ in range(2):
        with pytest.raises(LocalProtocolError, match=r"^there is no fragmented message to continue$"):
            protocol.send_frame(Opcode.CONTINUATION, b"", fin=fin)
    assert sent(protocol.send_text("next")) == (Opcode.TEXT, b"next")


@pytest.mark.parametrize("state", [State.CONNECTING, State.CLOSE_SENT, State.CLOSED], ids=lambda s: s.name)
@pytest.mark.parametrize("opcode", [Opcode.CONTINUATION, Opcode.TEXT])
def test_fragments_are_refused_for_the_state_first(role: Role, state: State, opcode: Opcode) -> None:
    """A fragment where nothing may be sent names the state, and begins no message."""
    protocol = machine(role, state)
    for _ in range(2):
        with pytest.raises(LocalProtocolError, match=f"^SEND is not possible when {state.name}$"):
            protocol.send_frame(opcode, b"", fin=False)
    if state is State.CONNECTING:
        protocol.opened()
        assert sent(protocol.send_text("first")) == (Opcode.TEXT, b"first")


@pytest.mark.attack("F12")
def test_fragments_take_control_frames_between_them(role: Role) -> None:
    """Pings and pongs may stand between fragments, are received at once and leave the message whole."""
    end, peer = machine(role), machine(PEER[role])
    parts = [
        (end.send_frame(Opcode.TEXT, b"a", fin=False), []),
        (end.send_ping(b"1"), [Message(MessageType.PING, b"1")]),
        (end.send_frame(Opcode.CONTINUATION, b"b", fin=False), []),
        (end.send_pong(b"2"), [Message(MessageType.PONG, b"2")]),
        (end.send_frame(Opcode.CONTINUATION, b"c"), [Message(MessageType.TEXT, "abc")]),
    ]
    for data, messages in parts:
        assert peer.receive_data(data) == messages


@pytest.mark.attack("F24")
def test_close_inside_a_fragmented_message_is_sent_and_answered(role: Role) -> None:
    """A Close may stand between fragments; the message is dropped and the Close answered as any other."""
    end, peer = machine(role), machine(PEER[role])
    data = end.send_frame(Opcode.TEXT, b"never finished", fin=False) + end.send_close(3001, "enough")
    assert peer.receive_data(data) == [Message(MessageType.CLOSE, close_payload(3001, "enough"))]
    assert report(peer) == (State.CLOSE_RECEIVED, 3001, "enough", role, None)
    answer = peer.answer_close()
    assert sent(answer) == (Opcode.CLOSE, close_payload(3001))
    end.receive_data(answer)
    assert (end.state, end.close_code) == (peer.state, peer.close_code) == (State.CLOSED, 3001)


@pytest.mark.attack("F24")
def test_close_of_the_peer_inside_our_fragmented_message_lets_us_finish_it(role: Role) -> None:
    """After the peer's Close the rest of a begun message may still be sent, and is received."""
    end, peer = machine(role), machine(PEER[role])
    data = end.send_frame(Opcode.TEXT, b"to be ", fin=False)
    end.receive_data(peer.send_close())
    with pytest.raises(LocalProtocolError):
        end.send_text("not now")
    data += end.send_frame(Opcode.CONTINUATION, b"continued") + end.answer_close()
    assert [message.data for message in peer.receive_data(data)] == ["to be continued", close_payload(1000)]
    assert report(end).state is report(peer).state is State.CLOSED


# --- receiving ------------------------------------------------------------------------------------


def test_receive_data_returns_what_came_before_a_violation(role: Role) -> None:
    """Messages before a violation are returned, the violation is kept, and nothing after it is read."""
    protocol = machine(role)
    data = build(PEER[role], 1, b"good") + build(PEER[role], 3, b"bad") + build(PEER[role], 1, b"unread")
    assert protocol.receive_data(data) == [Message(MessageType.TEXT, "good")]
    error = protocol.error
    assert isinstance(error, RemoteProtocolError)
    assert (protocol.state, protocol.close_code, error.code) == (State.OPEN, None, 1002)
    assert hear(protocol, Opcode.TEXT, b"more") == hear(protocol, Opcode.CLOSE) == []
    assert protocol.error is error
    assert sent(protocol.fail(error.code, error.reason)) == (Opcode.CLOSE, close_payload(1002, error.reason))
    assert hear(protocol, Opcode.CLOSE, close_payload(1000)) == []
    protocol.lost()
    assert report(protocol) == (State.CLOSED, 1002, error.reason, role, error)


@pytest.mark.parametrize("state", [State.OPEN, State.CLOSE_SENT], ids=lambda state: state.name)
@pytest.mark.parametrize(
    ("opcode", "payload", "code"),
    [
        pytest.param(Opcode.BINARY, b"12345", CloseCode.MESSAGE_TOO_BIG, id="too long"),
        pytest.param(Opcode.TEXT, b"\xff", CloseCode.INVALID_FRAME_PAYLOAD_DATA, id="not UTF-8"),
        pytest.param(Opcode.CONTINUATION, b"", CloseCode.PROTOCOL_ERROR, id="continues nothing"),
        pytest.param(Opcode.CLOSE, b"\x03", CloseCode.PROTOCOL_ERROR, id="half a code"),
    ],
)
def test_receive_data_judges_what_may_still_arrive(
    role: Role, state: State, opcode: Opcode, payload: bytes, code: int
) -> None:
    """A violation is found before and after our own Close, with the code that names it."""
    protocol = machine(role, state, size=4)
    assert hear(protocol, opcode, payload) == []
    assert protocol.error is not None
    assert (protocol.state, protocol.error.code) == (state, code)


@pytest.mark.attack("F01", "F02")
def test_receive_data_refuses_the_masking_of_our_own_role(role: Role) -> None:
    """A server refuses frames that are not masked, a client those that are (§5.1)."""
    protocol = machine(role)
    assert protocol.receive_data(build(role, Opcode.TEXT, b"text")) == []
    assert protocol.error is not None
    assert protocol.error.code == CloseCode.PROTOCOL_ERROR


def test_receive_data_without_utf8_leaves_text_as_bytes(role: Role) -> None:
    """With checking off text arrives as the bytes it is, valid or not."""
    protocol = machine(role, utf8=False)
    assert hear(protocol, Opcode.TEXT, b"\xff") == [Message(MessageType.TEXT, b"\xff")]
    assert protocol.error is None


def test_receive_data_takes_messages_after_our_close(role: Role) -> None:
    """After our Close the peer's data still counts, until its own Close (§1.4)."""
    protocol = machine(role, State.CLOSE_SENT)
    assert hear(protocol, Opcode.TEXT, b"last") == [Message(MessageType.TEXT, "last")]
    assert hear(protocol, Opcode.PING, b"?") == [Message(MessageType.PING, b"?")]
    assert report(protocol).state is State.CLOSE_SENT
    assert hear(protocol, Opcode.CLOSE) == [Message(MessageType.CLOSE, b"")]
    assert protocol.state is State.CLOSED


@pytest.mark.attack("F25")
@pytest.mark.parametrize("together", [True, False], ids=["in one read", "in another read"])
@pytest.mark.parametrize("state", [State.OPEN, State.CLOSE_SENT], ids=lambda state: state.name)
def test_receive_data_discards_what_comes_after_a_close(role: Role, state: State, together: bool) -> None:
    """Data, pings, garbage and further Closes after the peer's Close are neither received nor judged."""
    protocol = machine(role, state)
    peer = PEER[role]
    close = build(peer, Opcode.CLOSE, close_payload(3000, "first"))
    after = [build(peer, Opcode.TEXT, b"late"), build(peer, Opcode.PING, b"late")]
    after += [build(peer, Opcode.CLOSE, close_payload(4000, "second")), b"\xff" * 20]
    messages = protocol.receive_data(close + b"".join(after) if together else close)
    assert messages == [Message(MessageType.CLOSE, close_payload(3000, "first"))]
    before = report(protocol)
    assert before[1:3] == (3000, "first")
    assert [protocol.receive_data(data) for data in after] == [[]] * 4
    if protocol.state is State.CLOSE_RECEIVED:
        protocol.answer_close()
        assert [protocol.receive_data(data) for data in after] == [[]] * 4
    assert report(protocol) == before._replace(state=State.CLOSED)


@pytest.mark.parametrize("state", State, ids=lambda state: state.name)
def test_receive_data_discards_what_comes_after_the_loss(role: Role, state: State) -> None:
    """Nothing is received on a connection that was declared lost, and its end stays what it was."""
    protocol = machine(role, state)
    protocol.lost()
    before = report(protocol)
    assert hear(protocol, Opcode.TEXT, b"late") == hear(protocol, Opcode.CLOSE, close_payload(1000)) == []
    assert report(protocol) == before


class Kind(NamedTuple):
    """A kind of frame; the text ones are valid in some orders and not in others."""

    opcode: int
    fin: bool
    payload: bytes


# Half of an "é", its other half before another first half, its other half, and something invalid.
KINDS = [
    Kind(Opcode.TEXT, True, "é".encode()),
    Kind(Opcode.TEXT, False, b"\xc3"),
    Kind(Opcode.BINARY, True, b"\xc3"),
    Kind(Opcode.BINARY, False, b""),
    Kind(Opcode.CONTINUATION, False, b"\xa9\xc3"),
    Kind(Opcode.CONTINUATION, True, b"\xa9"),
    Kind(Opcode.CONTINUATION, True, b"A"),
    Kind(Opcode.PING, True, b"ping"),
    Kind(Opcode.PONG, True, b""),
    Kind(Opcode.CLOSE, True, close_payload(1001, "é")),
    Kind(Opcode.PING, False, b""),  # a control frame cannot be fragmented
    Kind(0x3, True, b""),  # a reserved opcode
]
WIRES = {role: [build(PEER[role], k.opcode, k.payload, fin=k.fin) for k in KINDS] for role in Role}


class Expected(NamedTuple):
    """What a sequence of frames comes to; ``violation`` is the close code that names what was wrong."""

    messages: list[Message]
    state: State
    violation: int | None


def expect(frames: list[Kind]) -> Expected:
    """Receive frames by the book: §5.4, §5.5 and §8.1, in as few lines as they take."""
    messages: list[Message] = []
    message: tuple[int, bytes] | None = None
    for opcode, fin, payload in frames:
        if opcode not in set(Opcode) or (opcode >= Opcode.CLOSE and not fin):
            return Expected(messages, State.OPEN, 1002)
        if opcode >= Opcode.CLOSE:
            messages.append(Message(MessageType(opcode), payload))
            if opcode == Opcode.CLOSE:
                return Expected(messages, State.CLOSE_RECEIVED, None)
            continue
        if (opcode == Opcode.CONTINUATION) != (message is not None):
            return Expected(messages, State.OPEN, 1002)
        kind, data = (message[0], message[1] + payload) if message else (opcode, payload)
        message = None if fin else (kind, data)
        if kind == Opcode.TEXT:
            # Nothing may be wrong yet: a last fragment must end a character, another need not.
            try:
                text = data.decode() if fin else ""
                (data + b"\xa9").decode() if data[-1:] == b"\xc3" else data.decode()
            except UnicodeDecodeError:
                return Expected(messages, State.OPEN, 1007)
            if fin:
                messages.append(Message(MessageType.TEXT, text))
        elif fin:
            messages.append(Message(MessageType.BINARY, data))
    return Expected(messages, State.OPEN, None)


@pytest.mark.attack("F10", "F11", "F12", "F24", "F25")
@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_receive_data_follows_the_rules_for_every_sequence(length: int) -> None:
    """Every sequence of up to four frames comes to what the rules say, in one read or one per frame."""
    for sequence in itertools.product(range(len(KINDS)), repeat=length):
        expected = expect([KINDS[number] for number in sequence])
        server, client = machine(Role.SERVER), machine(Role.CLIENT)
        whole = server.receive_data(b"".join([WIRES[Role.SERVER][number] for number in sequence]))
        parts = [client.receive_data(WIRES[Role.CLIENT][number]) for number in sequence]
        for protocol, messages in ((server, whole), (client, list(itertools.chain(*parts)))):
            violation = protocol.error.code if protocol.error else None
            assert Expected(messages, protocol.state, violation) == expected, sequence


@pytest.mark.attack("R12")
@pytest.mark.parametrize("role", Role)
def test_rest_of_what_was_received_is_kept_for_the_next_turn(role: Role) -> None:
    """What is more than a turn is kept; it comes before what is received later, and goes with the end."""
    protocol = Protocol(role, max_message_size=1000, turn=256)
    protocol.opened()
    wire = [build(PEER[role], Opcode.TEXT, b"%d" % number) for number in range(6)]
    texts = [Message(MessageType.TEXT, str(number)) for number in range(6)]
    assert protocol.receive_data(b"".join(wire[:4])) == texts[:2]
    assert protocol.rest == b"".join(wire[2:4])
    assert protocol.receive_data(memoryview(b"".join(wire[4:]))) == texts[2:4]
    assert protocol.receive_data(b"") == texts[4:]
    assert protocol.rest == b""
    protocol.receive_data(b"".join(wire))
    protocol.lost()
    assert protocol.rest == b""


@pytest.mark.attack("R05")
@pytest.mark.parametrize("role", Role)
def test_refusal_is_a_violation_like_others(role: Role) -> None:
    """What frames do not show can be held against the peer: it is told, and nothing more is read."""
    protocol = machine(role)
    protocol.refuse(1008, "too much")
    assert (protocol.input_ended, str(protocol.error)) == (True, "too much (close code 1008)")
    assert protocol.receive_data(build(PEER[role], Opcode.TEXT, b"x")) == []
    assert protocol.fail(1008, "too much") == machine(role).fail(1008, "too much") or role is Role.CLIENT
    assert protocol.close_code == 1008
    error = protocol.error
    protocol.refuse(1011, "again")
    assert protocol.error is error


# --- the closing handshake ------------------------------------------------------------------------

# RFC 6455 §7.4.1 and §7.4.2 with what IANA has registered since: all that may stand in a Close.
SENDABLE = {*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)}


@pytest.mark.attack("A07")
@pytest.mark.parametrize("way", ["send_close", "fail", "send_frame"])
@pytest.mark.parametrize("state", [State.OPEN, State.CLOSE_RECEIVED], ids=lambda state: state.name)
def test_close_code_that_may_not_be_sent_is_a_value_error(role: Role, state: State, way: str) -> None:
    """Of all codes exactly those that may be sent are, the others are ValueErrors that change nothing."""

    def close(protocol: Protocol, code: int) -> bytes:
        if way == "send_frame":
            return protocol.send_frame(Opcode.CLOSE, close_payload(code))
        return protocol.send_close(code) if way == "send_close" else protocol.fail(code)

    def refusal(code: int) -> str | None:
        try:
            close(protocol, code)
        except ValueError as exc:
            return str(exc)
        return None

    protocol = machine(role, state)
    before = report(protocol)
    codes = {*range(65536)} if way == "send_frame" else {*range(-1, 65538), 2**32 + 1000} - {1005}
    for code in codes - SENDABLE:
        assert (refusal(code) or "").startswith(f"code: {code} may not be sent"), code
    assert report(protocol) == before
    for code in SENDABLE:
        assert sent(close(machine(role, state), code)) == (Opcode.CLOSE, close_payload(code))


def test_close_code_1005_asks_for_a_close_without_one(role: Role) -> None:
    """1005 is never sent: to close or fail with it sends an empty Close (§7.4.1)."""
    for close in (machine(role).send_close, machine(role).fail):
        assert sent(close(CloseCode.NO_STATUS_RCVD)) == (Opcode.CLOSE, b"")


@pytest.mark.attack("A07")
@pytest.mark.parametrize(
    "reason", ["a" * 124, "é" * 62, "€" * 42], ids=["one byte", "two bytes", "three bytes"]
)
@pytest.mark.parametrize("state", [State.OPEN, State.CLOSE_RECEIVED], ids=lambda state: state.name)
def test_close_reason_holds_at_most_123_bytes(role: Role, state: State, reason: str) -> None:
    """A reason that is too long in UTF-8 is a ValueError that changes nothing; one character less is fine."""
    protocol = machine(role, state)
    before = report(protocol)
    close: Callable[[], bytes]
    for close in (
        lambda: protocol.send_close(1000, reason),
        lambda: protocol.fail(1000, reason),
        lambda: protocol.send_frame(Opcode.CLOSE, close_payload(1000, reason)),
    ):
        with pytest.raises(ValueError, match=r"^reason: 12[46] bytes of UTF-8"):
            close()
        assert report(protocol) == before
    assert sent(protocol.send_close(1000, reason[:-1])) == (Opcode.CLOSE, close_payload(1000, reason[:-1]))


@pytest.mark.attack("A07")
def test_close_without_a_code_has_no_reason(role: Role) -> None:
    """A reason cannot stand without a code before it (§5.5.1)."""
    protocol = machine(role)
    for close in (protocol.send_close, protocol.fail):
        with pytest.raises(ValueError, match=r"^code: 1005 may not be sent"):
            close(1005, "why")
    assert report(protocol) == report(machine(role))


@pytest.mark.attack("A07")
@pytest.mark.parametrize(
    ("payload", "error"),
    [(b"\x03", "^code: "), (b"\x03\xe8\xff", "codec can't decode"), (b"\x03\xe8\xc3", "codec can't decode")],
    ids=["half a code", "invalid reason", "cut reason"],
)
def test_send_frame_refuses_a_close_that_is_malformed(role: Role, payload: bytes, error: str) -> None:
    """Half a code, or a reason that is not UTF-8, is a ValueError that changes nothing (§5.5.1)."""
    protocol = machine(role)
    with pytest.raises(ValueError, match=error):
        protocol.send_frame(Opcode.CLOSE, payload)
    assert report(protocol) == report(machine(role))


@pytest.mark.attack("F26")
@pytest.mark.parametrize("reason", ["", "gone fishing", "é" * 61])
@pytest.mark.parametrize("code", [1000, 1001, 1011, 1014, 3000, 4999])
def test_answer_close_echoes_the_code(role: Role, code: int, reason: str) -> None:
    """The peer's Close is answered with its own code, and both report that code (§5.5.1)."""
    end, peer = machine(role), machine(PEER[role])
    end.receive_data(peer.send_close(code, reason))
    assert report(end) == (State.CLOSE_RECEIVED, code, reason, PEER[role], None)
    answer = end.answer_close()
    assert sent(answer) == (Opcode.CLOSE, close_payload(code))
    assert report(end) == (State.CLOSED, code, reason, PEER[role], None)
    peer.receive_data(answer)
    assert report(peer) == (State.CLOSED, code, "", PEER[role], None)


@pytest.mark.attack("F26")
def test_answer_close_without_a_code_has_none(role: Role) -> None:
    """An empty Close is answered with an empty one, and both report 1005, which is never sent (§7.1.5)."""
    end, peer = machine(role), machine(PEER[role])
    end.receive_data(peer.send_close(CloseCode.NO_STATUS_RCVD))
    answer = end.answer_close()
    assert sent(answer) == (Opcode.CLOSE, b"")
    peer.receive_data(answer)
    assert report(end) == report(peer) == (State.CLOSED, 1005, "", PEER[role], None)


def test_answer_close_may_have_another_code(role: Role) -> None:
    """Whoever answers may say something else; each end reports the code that it received (§7.1.5)."""
    end, peer = machine(role), machine(PEER[role])
    end.receive_data(peer.send_close(1000, "bye"))
    peer.receive_data(end.send_close(4001, "not yet"))
    assert report(end) == (State.CLOSED, 1000, "bye", PEER[role], None)
    assert report(peer) == (State.CLOSED, 4001, "not yet", PEER[role], None)


@pytest.mark.parametrize(
    "state", [state for state in State if state is not State.CLOSE_RECEIVED], ids=lambda state: state.name
)
def test_answer_close_needs_a_close(role: Role, state: State) -> None:
    """There is nothing to answer unless the peer's Close is the only one so far."""
    protocol = machine(role, state)
    before = report(protocol)
    with pytest.raises(LocalProtocolError, match=f"^there is no Close to answer when {state.name}$"):
        protocol.answer_close()
    assert report(protocol) == before


@pytest.mark.parametrize(
    "order", list(itertools.permutations(Role)), ids=lambda order: order[0].value + " first"
)
def test_close_from_both_sides_at_once_ends_both(order: tuple[Role, Role]) -> None:
    """Closes that cross are each other's answer: no third is sent, and each end reports the other's code."""
    ends = {role: machine(role) for role in Role}
    codes = {Role.CLIENT: (3001, "client"), Role.SERVER: (3002, "server")}
    wires = {role: ends[role].send_close(*codes[role]) for role in Role}
    for receiver in order:
        assert len(ends[receiver].receive_data(wires[PEER[receiver]])) == 1
    for role, end in ends.items():
        assert report(end) == (State.CLOSED, *codes[PEER[role]], role, None)
        assert end.fail(1002) == b""


@pytest.mark.attack("F25")
@pytest.mark.parametrize("state", [State.CLOSE_SENT, State.CLOSED], ids=lambda state: state.name)
def test_close_is_sent_once(role: Role, state: State) -> None:
    """After our Close no call sends another (§5.5.1: "MUST NOT send any more data frames after")."""
    protocol = machine(role, state)
    for name, sender in SENDERS.items():
        with pytest.raises(LocalProtocolError):
            pytest.fail(f"{name} sent {sender.call(protocol)!r}")
    with pytest.raises(LocalProtocolError):
        protocol.answer_close()
    assert protocol.fail(1011) == b""
    assert protocol.state is state


@pytest.mark.parametrize("code", [1005, 1000, 4000])
def test_send_frame_close_is_like_send_close(role: Role, code: int) -> None:
    """A Close sent as a frame leaves the same trace in the machine as one sent by name."""
    framed, named = machine(role), machine(role)
    payload = b"" if code == 1005 else close_payload(code, "bye")
    frame = framed.send_frame(Opcode.CLOSE, payload)
    assert sent(frame) == sent(named.send_close(code, "" if code == 1005 else "bye"))
    assert report(framed) == report(named) == (State.CLOSE_SENT, None, "", role, None)


# --- failing and losing ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "is_sent", "after"),
    [
        (State.CONNECTING, False, (State.CONNECTING, None, "", None)),
        (State.OPEN, True, (State.CLOSE_SENT, 1011, "oops", "us")),
        (State.CLOSE_SENT, False, (State.CLOSE_SENT, None, "", "us")),
        (State.CLOSE_RECEIVED, True, (State.CLOSED, 3000, "why", "peer")),
        (State.CLOSED, False, (State.CLOSED, 3000, "why", "peer")),
    ],
    ids=lambda value: value.name if isinstance(value, State) else "",
)
def test_fail_sends_a_close_where_one_may_be_sent(
    role: Role, state: State, is_sent: bool, after: tuple[State, int | None, str, str | None]
) -> None:
    """Failing sends the one Close there is room for, and sets the code unless the peer's came first."""
    protocol = machine(role, state)
    data = protocol.fail(1011, "oops")
    assert [wire[:2] for wire in parse_frames(data)] == [
        (Opcode.CLOSE, close_payload(1011, "oops"))
    ] * is_sent
    closed_by = {"us": role, "peer": PEER[role], None: None}[after[3]]
    assert report(protocol) == (*after[:3], closed_by, None)
    assert protocol.fail(1002, "again") == b""
    assert report(protocol) == (*after[:3], closed_by, None)


def test_fail_sets_the_code_whatever_the_peer_answers(role: Role) -> None:
    """The code that we fail with is the one reported, whether the peer answers or is lost."""
    answered, lost = machine(role), machine(role)
    for protocol in (answered, lost):
        protocol.fail(1008, "too much")
    hear(answered, Opcode.CLOSE, close_payload(1000, "fine"))
    lost.lost()
    assert report(answered) == report(lost) == (State.CLOSED, 1008, "too much", role, None)


def test_fail_inside_a_fragmented_message_sends_the_close(role: Role) -> None:
    """An unfinished message of ours does not keep us from failing the connection."""
    protocol = machine(role)
    protocol.send_frame(Opcode.TEXT, b"unfinished", fin=False)
    assert sent(protocol.fail(1011)) == (Opcode.CLOSE, close_payload(1011))


@pytest.mark.parametrize(
    ("state", "after"),
    [
        (State.CONNECTING, (1006, "", None)),
        (State.OPEN, (1006, "", None)),
        (State.CLOSE_SENT, (1006, "", "us")),
        (State.CLOSE_RECEIVED, (3000, "why", "peer")),
        (State.CLOSED, (3000, "why", "peer")),
    ],
    ids=lambda value: value.name if isinstance(value, State) else "",
)
def test_lost_without_a_close_received_is_1006(
    role: Role, state: State, after: tuple[int, str, str | None]
) -> None:
    """A lost connection is closed; its code is that of the Close received, otherwise 1006 (§7.1.5)."""
    protocol = machine(role, state)
    expected = (State.CLOSED, *after[:2], {"us": role, "peer": PEER[role], None: None}[after[2]], None)
    for _ in range(2):
        protocol.lost()
        assert report(protocol) == expected
    assert protocol.fail(1011) == b""


def test_frame_in_place_masks_with_a_fresh_key() -> None:
    """A message can be masked where it is; two of the same are different on the wire. [K10]"""
    protocol = machine(Role.CLIENT)
    wires = []
    for _ in range(2):
        wires.append(b"".join(protocol.frame_in_place(bytearray(b"data"))))
        (frame,) = parse_frames(wires[-1])
        assert (frame.opcode, frame.payload, frame.fin) == (Opcode.BINARY, b"data", True)
    assert wires[0] != wires[1]


def test_protocol_refuses_before_it_scrambles() -> None:
    """The machine looks at its state first. [K10]"""
    protocol = machine(Role.CLIENT, State.CONNECTING)
    data = bytearray(b"data")
    with pytest.raises(LocalProtocolError):
        protocol.frame_in_place(data)
    assert data == b"data"


class Lender:
    """Lends storage and knows what has not come back."""

    def __init__(self) -> None:
        self.lent: list[bytearray] = []

    def take(self, size: int) -> bytearray:
        self.lent.append(bytearray(size))
        return self.lent[-1]

    def give(self, buffer: bytearray) -> None:
        self.lent = [each for each in self.lent if each is not buffer]


@pytest.mark.parametrize("end", [Protocol.lost, lambda protocol: hear(protocol, Opcode.CLOSE)])
def test_storage_of_an_unfinished_message_is_given_back_at_the_end(
    role: Role, end: Callable[[Protocol], object]
) -> None:
    """What the machine's reader had borrowed comes back with the peer's Close, or when all is lost."""
    lender = Lender()
    protocol = Protocol(role, max_message_size=1000, buffers=lender)
    protocol.opened()
    assert hear(protocol, Opcode.TEXT, b"unfinished", fin=False) == []
    assert len(lender.lent) == 1
    end(protocol)
    assert lender.lent == []


def test_views_are_delivered_where_they_are_asked_for(role: Role) -> None:
    """With ``view`` a binary message is a view of borrowed storage, and whoever has it gives that back."""
    lender = Lender()
    protocol = Protocol(role, max_message_size=1000, buffers=lender, view=True)
    protocol.opened()
    (message,) = hear(protocol, Opcode.BINARY, b"data")
    assert isinstance(message.data, memoryview)
    assert bytes(message.data) == b"data"
    assert message.data.obj is lender.lent[0]


def test_new_machine_reports_nothing(role: Role) -> None:
    """Before anything has happened there is no code, no reason, nobody who closed and no error."""
    protocol = machine(role, State.CONNECTING)
    assert protocol.role is role
    assert report(protocol) == (State.CONNECTING, None, "", None, None)
    protocol.opened()
    assert report(protocol) == (State.OPEN, None, "", None, None)


# --- two machines ---------------------------------------------------------------------------------

roles = st.sampled_from(Role)
messages_ = st.one_of(
    st.builds(Message, st.just(MessageType.TEXT), st.text(max_size=200)),
    st.builds(Message, st.just(MessageType.BINARY), st.binary(max_size=200)),
    st.builds(Message, st.sampled_from([MessageType.PING, MessageType.PONG]), st.binary(max_size=125)),
)


class Conversation(RuleBasedStateMachine):
    """A client and a server that say what they like, over a wire that delivers when it likes.

    ``wires``, ``said`` and ``heard`` go by the role of the speaker.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ends = {role: machine(role) for role in Role}
        self.wires = {role: bytearray() for role in Role}
        self.said: dict[Role, list[Message]] = defaultdict(list)
        self.heard: dict[Role, list[Message]] = defaultdict(list)
        self.pieces: dict[Role, list[bytes]] = {role: [] for role in Role}  # of a begun message
        self.begun: dict[Role, Message] = {}
        self.closes: dict[Role, tuple[int, str]] = {}
        self.started: set[Role] = set()

    def may_send(self, role: Role) -> bool:
        return role not in self.closes

    @rule(role=roles, message=messages_, prepared=st.booleans())
    def say(self, role: Role, message: Message, prepared: bool) -> None:
        end, data = self.ends[role], message.data
        calls: dict[MessageType, Callable[[Any], bytes]] = {
            MessageType.TEXT: (lambda data: end.send_prepared(frame_text(data)))
            if prepared
            else end.send_text,
            MessageType.BINARY: (lambda data: end.send_prepared(frame_bin(data)))
            if prepared
            else end.send_bin,
            MessageType.PING: end.send_ping,
            MessageType.PONG: end.send_pong,
        }
        if self.may_send(role) and (message.type >= MessageType.CLOSE or not self.pieces[role]):
            self.wires[role] += calls[message.type](data)
            self.said[role].append(message)
        else:
            with pytest.raises(LocalProtocolError):
                calls[message.type](data)

    @rule(role=roles, message=messages_, cuts=st.lists(st.integers(0, 200), min_size=1, max_size=5))
    def begin(self, role: Role, message: Message, cuts: list[int]) -> None:
        if not self.may_send(role) or self.pieces[role] or message.type >= MessageType.CLOSE:
            return
        data = message.data.encode() if isinstance(message.data, str) else bytes(message.data)
        first, *self.pieces[role] = cut(data, [min(position, len(data)) for position in cuts])
        self.begun[role] = message
        self.wires[role] += self.ends[role].send_frame(message.type, first, fin=False)

    @rule(role=roles)
    def go_on(self, role: Role) -> None:
        if not self.pieces[role] or not self.may_send(role):
            with pytest.raises(LocalProtocolError):
                self.ends[role].send_frame(Opcode.CONTINUATION, b"")
            return
        piece, *self.pieces[role] = self.pieces[role]
        last = not self.pieces[role]
        self.wires[role] += self.ends[role].send_frame(Opcode.CONTINUATION, piece, fin=last)
        if last:
            self.said[role].append(self.begun[role])

    @rule(role=roles, count=st.integers(1, 300))
    def deliver(self, role: Role, count: int) -> None:
        data = bytes(self.wires[role][:count])
        del self.wires[role][:count]
        self.heard[role] += self.ends[PEER[role]].receive_data(data)

    @rule(
        role=roles,
        code=st.sampled_from([1000, 1001, 1005, 1011, 3000, 4999]),
        reason=st.text(max_size=20),
    )
    def close(self, role: Role, code: int, reason: str) -> None:
        reason = "" if code == 1005 else reason
        if self.ends[role].state is State.CLOSE_RECEIVED:
            self.answer(role)
        elif self.may_send(role):
            self.wires[role] += self.ends[role].send_close(code, reason)
            self.closes[role] = code, reason
            self.started.add(role)
        else:
            with pytest.raises(LocalProtocolError):
                self.ends[role].send_close(code, reason)

    def answer(self, role: Role) -> None:
        self.wires[role] += self.ends[role].answer_close()
        self.closes[role] = self.closes[PEER[role]][0], ""

    @invariant()
    def everything_arrives_in_order(self) -> None:
        for role in Role:
            heard = [message for message in self.heard[role] if message.type is not MessageType.CLOSE]
            assert heard == self.said[role][: len(heard)]
            assert self.ends[role].error is None

    def teardown(self) -> None:
        """Close if nobody has, deliver the rest, and see that all has arrived and both have ended."""
        if not self.closes:
            self.close(Role.CLIENT, 1000, "")
        for role in [*Role, *Role, *Role]:
            self.deliver(role, len(self.wires[role]))
            if self.ends[role].state is State.CLOSE_RECEIVED:
                self.answer(role)
        for role, end in self.ends.items():
            assert end.state is State.CLOSED
            assert (end.close_code, end.close_reason) == self.closes[PEER[role]]
            assert end.closed_by is (role if role in self.started else PEER[role])
            *said, close = self.heard[role]
            assert said == self.said[role]
            assert (close.type, close.close_code, close.close_reason) == (
                MessageType.CLOSE,
                *self.closes[role],
            )
        if len(self.started) == 1:
            assert self.ends[Role.CLIENT].close_code == self.ends[Role.SERVER].close_code


@pytest.mark.attack("F12", "F24", "F26")
def test_conversation_arrives_whole_and_ends_on_both_sides() -> None:
    """All that is sent before a Close arrives once, in order and equal, however it is cut on the way.

    Both ends are CLOSED afterwards, with the same code unless their Closes crossed.
    """
    run_state_machine_as_test(
        Conversation,
        settings=settings(
            max_examples=100, stateful_step_count=30, deadline=None, derandomize=True, database=None
        ),
    )
