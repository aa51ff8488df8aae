/* RFC 6455 section 5 in C: the twin of _framing_py.py, where the rules are explained.

   The same three names, the same messages, the same errors with the same reasons; tests/test_framing.py
   takes both, tests/test_framing_builds.py compares them. What is different is where bytes go: a frame
   that arrives whole is unmasked into the very object that is delivered, and a message that arrives in
   pieces is collected in one that is.

   There is no state outside the module object and the readers. A reader is used by one call at a time,
   on interpreters without a global lock as well: a second one is a RuntimeError. No length is trusted:
   they are 64 bits wide, unsigned, and compared before they are added. */

#include "_framing_api.h"

#include <stdarg.h>
#include <string.h>
#include <structmember.h>

#ifndef Py_BEGIN_CRITICAL_SECTION /* before Python 3.13 */
#define Py_BEGIN_CRITICAL_SECTION(object) {
#define Py_END_CRITICAL_SECTION() }
#endif

enum { FIN = 0x80, RSV1 = 0x40, RSV2_RSV3 = 0x30, OPCODE = 0x0F, MASK = 0x80, LENGTH = 0x7F };
enum { CONTINUATION = 0x0, TEXT = 0x1, BINARY = 0x2, CLOSE = 0x8, PING = 0x9, PONG = 0xA };
enum { MESSAGE_COST = 128 }; /* what a message is counted with beside its bytes */
enum { KEY_SIZE = 4, CONTROL_MOST = 125, HEADER_MOST = 2 + 8 + KEY_SIZE };
enum { PENDING_MOST = HEADER_MOST + CONTROL_MOST }; /* a control frame is awaited whole */

#define MOST INT64_MAX /* the longest payload that a frame can declare */
#define HIGH_BITS UINT64_C(0x8080808080808080)

/* --- the module's state ------------------------------------------------------------------------ */

enum { NAME_OPCODE, NAME_PAYLOAD, NAME_FIN, NAME_RSV1, NAME_MASKING_KEY, FRAME_NAMES };
enum { NAME_DATA, NAME_KEY, NAME_IN_PLACE, MASK_NAMES };

typedef struct {
    PyTypeObject *message;
    PyObject *remote_protocol_error;
    PyObject *message_types[OPCODE + 1]; /* by opcode; NULL where there is none */
    PyObject *protocol_error, *invalid_data, *policy_violation, *message_too_big; /* close codes */
    PyObject *inflate, *finish, *take, *give, *code, *reason; /* names of methods and attributes */
    PyObject *frame_names[FRAME_NAMES], *mask_names[MASK_NAMES];
    FramingApi api;
} State;

/* --- bytes ------------------------------------------------------------------------------------- */

static inline size_t
smaller(uint64_t a, size_t b)
{
    return a < b ? (size_t)a : b;
}

/* Mask or unmask; return what the results have in common with HIGH_BITS: nothing when all is ASCII.
   The two places may be the same. Written so that compilers make vector instructions of it. */
static uint64_t
mask_bytes(uint8_t *out, const uint8_t *in, size_t size, const uint8_t key[KEY_SIZE])
{
    uint32_t half;
    memcpy(&half, key, sizeof half);
    const uint64_t whole = (uint64_t)half << 32 | half;
    uint64_t seen = 0;
    while (size >= 4 * sizeof(uint64_t)) {
        uint64_t words[4];
        memcpy(words, in, sizeof words);
        for (int i = 0; i < 4; i++) {
            words[i] ^= whole;
        }
        seen |= words[0] | words[1] | words[2] | words[3];
        memcpy(out, words, sizeof words);
        in += sizeof words, out += sizeof words, size -= sizeof words;
    }
    while (size >= sizeof whole) {
        uint64_t word;
        memcpy(&word, in, sizeof word);
        word ^= whole;
        seen |= word;
        memcpy(out, &word, sizeof word);
        in += sizeof word, out += sizeof word, size -= sizeof word;
    }
    for (size_t i = 0; i < size; i++) {
        out[i] = in[i] ^ key[i % KEY_SIZE];
        seen |= out[i];
    }
    return seen & HIGH_BITS;
}

static void
turn_key(uint8_t key[KEY_SIZE], size_t bytes)
{
    uint8_t old[KEY_SIZE];
    memcpy(old, key, KEY_SIZE);
    for (size_t i = 0; i < KEY_SIZE; i++) {
        key[i] = old[(bytes + i) % KEY_SIZE];
    }
}

/* How far a text has come: how many bytes its last character still needs, and what the next may be.
   RFC 3629 section 4 has the table. */
typedef struct {
    uint8_t needed, low, high;
} Utf8;

static const uint8_t *
skip_ascii(const uint8_t *in, const uint8_t *end)
{
    uint64_t words[4];
    while ((size_t)(end - in) >= sizeof words) {
        memcpy(words, in, sizeof words);
        if ((words[0] | words[1] | words[2] | words[3]) & HIGH_BITS) {
            break;
        }
        in += sizeof words;
    }
    while (in < end && *in < 0x80) {
        in++;
    }
    return in;
}

/* Take a piece of a text; false at the first byte that cannot be there. */
static bool
utf8_goes_on(Utf8 *text, const uint8_t *in, size_t size)
{
    const uint8_t *const end = in + size;
    Utf8 at = *text;
    while (in < end) {
        const uint8_t byte = *in;
        if (at.needed) {
            if (byte < at.low || byte > at.high) {
                return false;
            }
            in++;
            at = (Utf8){at.needed - 1, 0x80, 0xBF};
            continue;
        }
        if (byte < 0x80) {
            in = skip_ascii(in, end);
            continue;
        }
        in++;
        if (byte < 0xC2 || byte > 0xF4) {
            return false; /* a continuation, an overlong form, or beyond U+10FFFF */
        }
        at.needed = byte < 0xE0 ? 1 : byte < 0xF0 ? 2 : 3;
        at.low = byte == 0xE0 ? 0xA0 : byte == 0xF0 ? 0x90 : 0x80;  /* no overlong forms */
        at.high = byte == 0xED ? 0x9F : byte == 0xF4 ? 0x8F : 0xBF; /* no surrogates, no U+110000 */
    }
    *text = at;
    return true;
}

/* What Python calls __name__: without the module, which some types have in their name in C. */
static const char *
name_of_type(PyObject *object)
{
    const char *name = Py_TYPE(object)->tp_name;
    const char *dot = strrchr(name, '.');
    return dot == NULL ? name : dot + 1;
}

/* Get the bytes of any bytes-like object that is contiguous; the caller releases the view. */
static int
get_bytes(PyObject *data, const char *name, Py_buffer *view)
{
    if (!PyObject_CheckBuffer(data)) {
        PyErr_Format(PyExc_TypeError, "%s: a bytes-like object is needed, not %s", name,
                     name_of_type(data));
        return -1;
    }
    if (PyObject_GetBuffer(data, view, PyBUF_SIMPLE) < 0) {
        if (PyErr_ExceptionMatches(PyExc_BufferError)) {
            PyErr_Format(PyExc_TypeError, "%s: a contiguous bytes-like object is needed", name);
        }
        return -1;
    }
    return 0;
}

static const uint8_t *
get_key(PyObject *key, const char *name)
{
    if (!PyBytes_Check(key)) {
        PyErr_Format(PyExc_TypeError, "%s: bytes are needed, not %s", name, name_of_type(key));
        return NULL;
    }
    if (PyBytes_GET_SIZE(key) != KEY_SIZE) {
        PyErr_Format(PyExc_ValueError, "%s: 4 bytes are needed, not %zd", name, PyBytes_GET_SIZE(key));
        return NULL;
    }
    return (const uint8_t *)PyBytes_AS_STRING(key);
}

/* --- the reader -------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    PyObject *error;    /* a RemoteProtocolError, or None */
    PyObject *finished; /* True or False; an object, because slots are what the interpreter reads fastest */
    PyObject *inflater; /* NULL when there is none */
    PyObject *buffers;  /* NULL when there are none */
    /* The message that its fragments form; opcode is CONTINUATION between messages. */
    PyObject *storage; /* the first *size* bytes of it have arrived; see reserve() for what it is */
    uint64_t max_message_size, size, received, fragments;
    uint64_t remaining; /* of the payload of the frame that is being read */
    uint64_t turn, spent; /* bytes of messages that one call may give; those that this one has given */
    Py_ssize_t left;      /* bytes that the last call has not looked at */
    uint8_t *pending;   /* the start of a header or of a control frame; NULL when there is none */
    uint8_t pending_size, opcode, key[KEY_SIZE];
    Utf8 text;
    bool masked : 1, utf8 : 1, view : 1; /* what this reader is for */
    bool busy : 1;                       /* a call is using it */
    bool in_frame : 1, fin : 1;          /* of the data frame whose payload is arriving */
    bool compressed : 1, is_text : 1;    /* of the message: RSV1; text that must be UTF-8 */
} Reader;

typedef struct {
    uint64_t length; /* of the payload */
    size_t size;     /* of the header */
    uint8_t first;
    uint8_t key[KEY_SIZE];
} Header;

/* Raise a violation: it becomes the reader's error at the end of feed(). Always -1. */
static int
violate(State *state, PyObject *code, const char *format, ...)
{
    va_list values;
    va_start(values, format);
    PyObject *reason = PyUnicode_FromFormatV(format, values);
    va_end(values);
    if (reason == NULL) {
        return -1;
    }
    PyObject *error = PyObject_CallFunctionObjArgs(state->remote_protocol_error, code, reason, NULL);
    if (error != NULL) {
        PyErr_SetObject(state->remote_protocol_error, error);
        Py_DECREF(error);
    }
    Py_DECREF(reason);
    return -1;
}

static int
violate_protocol(State *state, const char *reason)
{
    return violate(state, state->protocol_error, "%s", reason);
}

static int
violate_utf8(State *state)
{
    return violate(state, state->invalid_data, "text is not valid UTF-8");
}

static int
violate_size(State *state, const Reader *reader)
{
    return violate(state, state->message_too_big, "a message is longer than %llu bytes",
                   (unsigned long long)reader->max_message_size);
}

/* Text that could not be decoded broke the protocol; an error of another kind is not the peer's. */
static int
judge_decoding(State *state)
{
    if (!PyErr_ExceptionMatches(PyExc_UnicodeDecodeError)) {
        return -1;
    }
    PyErr_Clear();
    return violate_utf8(state);
}

/* Storage. Without buffers it is the bytes object that will be delivered, or the bytearray if a view of
   it will be; with buffers it is a bytearray of theirs. */

static bool
delivers_view(const Reader *reader)
{
    return reader->view && reader->opcode == BINARY;
}

static PyObject *
take(State *state, const Reader *reader, uint64_t size)
{
    PyObject *wanted = PyLong_FromUnsignedLongLong(size);
    if (wanted == NULL) {
        return NULL;
    }
    PyObject *buffer = PyObject_CallMethodObjArgs(reader->buffers, state->take, wanted, NULL);
    Py_DECREF(wanted);
    if (buffer == NULL) {
        return NULL;
    }
    if (!PyByteArray_Check(buffer)) {
        PyErr_Format(PyExc_TypeError, "buffers: take() returned no bytearray but %s",
                     name_of_type(buffer));
        Py_CLEAR(buffer);
    }
    else if ((uint64_t)PyByteArray_GET_SIZE(buffer) < size) {
        PyErr_Format(PyExc_ValueError, "buffers: take(%llu) returned a buffer of %zd bytes",
                     (unsigned long long)size, PyByteArray_GET_SIZE(buffer));
        Py_CLEAR(buffer);
    }
    return buffer;
}

static int
give(State *state, const Reader *reader, PyObject *buffer)
{
    PyObject *nothing = PyObject_CallMethodObjArgs(reader->buffers, state->give, buffer, NULL);
    Py_XDECREF(nothing);
    return nothing == NULL ? -1 : 0;
}

/* Copy the stored bytes; the view keeps others from resizing the buffer in the meantime. */
static int
copy_storage(PyObject *from, PyObject *to, uint64_t size)
{
    Py_buffer source, target;
    if (PyObject_GetBuffer(from, &source, PyBUF_SIMPLE) < 0) {
        return -1;
    }
    if (PyObject_GetBuffer(to, &target, PyBUF_WRITABLE) < 0) {
        PyBuffer_Release(&source);
        return -1;
    }
    const size_t both = smaller((uint64_t)target.len, (size_t)source.len);
    memcpy(target.buf, source.buf, smaller(size, both));
    PyBuffer_Release(&target);
    PyBuffer_Release(&source);
    return 0;
}

/* Take a buffer of at least twice the size, and give back the one before it. */
static int
reserve_borrowed(State *state, Reader *reader, uint64_t size)
{
    PyObject *old = reader->storage;
    const uint64_t capacity = old == NULL ? 0 : (uint64_t)PyByteArray_GET_SIZE(old);
    if (size <= capacity) {
        return 0;
    }
    const uint64_t twice = Py_MIN(2 * capacity, reader->max_message_size);
    PyObject *larger = take(state, reader, Py_MAX(size, twice));
    if (larger == NULL) {
        return -1;
    }
    if (old != NULL && copy_storage(old, larger, reader->size) < 0) {
        Py_DECREF(larger);
        return -1;
    }
    reader->storage = larger;
    if (old == NULL) {
        return 0;
    }
    const int status = give(state, reader, old);
    Py_DECREF(old);
    return status;
}

/* Grow by an eighth, in place where the allocator can, and not beyond what the message may become: so
   there is little to spare and hardly ever a second copy. */
static int
reserve_bytes(Reader *reader, uint64_t size)
{
    const uint64_t capacity = reader->storage == NULL ? 0 : (uint64_t)PyBytes_GET_SIZE(reader->storage);
    if (size <= capacity) {
        return 0;
    }
    const bool known = reader->fin && !reader->compressed;
    const uint64_t most = known ? reader->size + reader->remaining : reader->max_message_size;
    const uint64_t wanted = Py_MAX(size, Py_MIN(size + size / 8, most));
    if (wanted > PY_SSIZE_T_MAX - 64) {
        PyErr_NoMemory();
        return -1;
    }
    if (reader->storage != NULL) {
        return _PyBytes_Resize(&reader->storage, (Py_ssize_t)wanted);
    }
    reader->storage = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)wanted);
    return reader->storage == NULL ? -1 : 0;
}

static int
reserve_bytearray(Reader *reader, uint64_t size)
{
    if (reader->storage == NULL) {
        /* Not of its size at once: CPython looks at what it has not set when there is no memory for that. */
        reader->storage = PyByteArray_FromStringAndSize(NULL, 0);
    }
    return reader->storage == NULL ? -1 : PyByteArray_Resize(reader->storage, (Py_ssize_t)size);
}

/* See to it that the storage holds *more* bytes behind those that have arrived. */
static int
reserve(State *state, Reader *reader, size_t more)
{
    if (more > PY_SSIZE_T_MAX - 64 || reader->size > PY_SSIZE_T_MAX - 64 - more) {
        PyErr_NoMemory();
        return -1;
    }
    const uint64_t size = reader->size + more;
    if (reader->buffers != NULL) {
        return reserve_borrowed(state, reader, size);
    }
    return delivers_view(reader) ? reserve_bytearray(reader, size) : reserve_bytes(reader, size);
}

/* Put a piece behind what is stored of the message, unmasked with *key* unless that is NULL; text must be
   UTF-8 as far as it has come (RFC 6455 section 8.1). */
static int
store(State *state, Reader *reader, const uint8_t *piece, size_t size, const uint8_t *key)
{
    if (size == 0) {
        return 0;
    }
    if (reserve(state, reader, size) < 0) {
        return -1;
    }
    Py_buffer pinned = {0};
    uint8_t *out;
    if (PyBytes_CheckExact(reader->storage)) {
        out = (uint8_t *)PyBytes_AS_STRING(reader->storage) + reader->size;
    }
    else {
        if (PyObject_GetBuffer(reader->storage, &pinned, PyBUF_WRITABLE) < 0) {
            return -1;
        }
        if ((uint64_t)pinned.len < reader->size + size) {
            PyBuffer_Release(&pinned);
            PyErr_SetString(PyExc_RuntimeError, "buffers: a buffer was resized while it was lent");
            return -1;
        }
        out = (uint8_t *)pinned.buf + reader->size;
    }
    if (key != NULL) {
        mask_bytes(out, piece, size, key);
    }
    else {
        memcpy(out, piece, size);
    }
    reader->size += size;
    const bool valid = !reader->is_text || utf8_goes_on(&reader->text, out, size);
    if (pinned.obj != NULL) {
        PyBuffer_Release(&pinned);
    }
    return valid ? 0 : violate_utf8(state);
}

/* Have no storage any more. */
static int
release_storage(State *state, Reader *reader)
{
    PyObject *storage = reader->storage;
    reader->storage = NULL;
    reader->size = 0;
    if (storage == NULL) {
        return 0;
    }
    const int status = reader->buffers == NULL ? 0 : give(state, reader, storage);
    Py_DECREF(storage);
    return status;
}

/* Return the storage as a view of the message that it holds; it is not the reader's any more. */
static PyObject *
hand_over(State *state, Reader *reader)
{
    if (reader->storage == NULL) {
        reader->storage = reader->buffers == NULL ? PyByteArray_FromStringAndSize(NULL, 0)
                                                  : take(state, reader, 0);
        if (reader->storage == NULL) {
            return NULL;
        }
    }
    PyObject *view = PyMemoryView_FromObject(reader->storage);
    if (view != NULL && PyMemoryView_GET_BUFFER(view)->len != (Py_ssize_t)reader->size) {
        PyObject *whole = view;
        view = PySequence_GetSlice(whole, 0, (Py_ssize_t)reader->size);
        Py_DECREF(whole);
    }
    if (view != NULL) {
        Py_CLEAR(reader->storage);
        reader->size = 0;
    }
    return view;
}

static void
drop_pending(Reader *reader)
{
    PyMem_Free(reader->pending);
    reader->pending = NULL;
    reader->pending_size = 0;
}

static int
keep_pending(Reader *reader, const uint8_t *bytes, size_t size)
{
    uint8_t *pending = PyMem_Realloc(reader->pending, size);
    if (pending == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    memcpy(pending, bytes, size);
    reader->pending = pending;
    reader->pending_size = (uint8_t)size;
    return 0;
}

static int
close_reader(State *state, Reader *reader)
{
    PyObject *old = reader->finished;
    reader->finished = Py_NewRef(Py_True);
    Py_DECREF(old);
    drop_pending(reader);
    return release_storage(state, reader);
}

/* Messages. */

/* Append a message of so many bytes to the list; the reference to *data* is taken over. */
static int
append_message(State *state, Reader *reader, PyObject *messages, int opcode, PyObject *data, uint64_t size)
{
    if (data == NULL) {
        return -1;
    }
    reader->spent += MESSAGE_COST + size;
    /* What Message(type, data) does, without its arguments and its Python frame. */
    PyObject *message = state->message->tp_alloc(state->message, 2);
    if (message == NULL) {
        Py_DECREF(data);
        return -1;
    }
    PyTuple_SET_ITEM(message, 0, Py_NewRef(state->message_types[opcode]));
    PyTuple_SET_ITEM(message, 1, data);
#if PY_VERSION_HEX >= 0x030E0000
    ((PyTupleObject *)message)->ob_hash = -1; /* not known yet */
#endif
    const int status = PyList_Append(messages, message);
    Py_DECREF(message);
    return status;
}

static PyObject *
new_bytes(const uint8_t *payload, size_t size, const uint8_t *key)
{
    PyObject *data = PyBytes_FromStringAndSize(key == NULL ? (const char *)payload : NULL, (Py_ssize_t)size);
    if (data != NULL && key != NULL && size) {
        mask_bytes((uint8_t *)PyBytes_AS_STRING(data), payload, size, key);
    }
    return data;
}

static PyObject *
new_text(State *state, const uint8_t *payload, size_t size, const uint8_t *key)
{
    PyObject *text;
    if (key == NULL || size == 0) {
        text = PyUnicode_DecodeUTF8((const char *)payload, (Py_ssize_t)size, NULL);
    }
    else {
        /* Most text is ASCII: so it is unmasked into a str of ASCII, and decoded from there if it is not. */
        PyObject *ascii = PyUnicode_New((Py_ssize_t)size, 127);
        if (ascii == NULL) {
            return NULL;
        }
        uint8_t *bytes = PyUnicode_1BYTE_DATA(ascii);
        if (!mask_bytes(bytes, payload, size, key) && size > 1) {
            return ascii;
        }
        text = PyUnicode_DecodeUTF8((const char *)bytes, (Py_ssize_t)size, NULL);
        Py_DECREF(ascii);
    }
    if (text == NULL) {
        judge_decoding(state);
    }
    return text;
}

/* Deliver an unfragmented, uncompressed frame that arrived in one read. */
static int
finish_whole(State *state, Reader *reader, int opcode, const uint8_t *payload, size_t size,
             const uint8_t *key, PyObject *messages)
{
    PyObject *data;
    if (opcode == TEXT && reader->utf8) {
        data = new_text(state, payload, size, key);
    }
    else if (opcode == BINARY && reader->view) {
        reader->opcode = BINARY; /* what is stored is kept as a view's */
        data = store(state, reader, payload, size, key) < 0 ? NULL : hand_over(state, reader);
        reader->opcode = CONTINUATION;
    }
    else {
        data = new_bytes(payload, size, key);
    }
    return append_message(state, reader, messages, opcode, data, size);
}

/* A Close must be valid (RFC 6455 sections 5.5.1 and 7.4). */
static int
judge_close(State *state, const uint8_t *payload, size_t size)
{
    if (size == 0) {
        return 0;
    }
    if (size == 1) {
        return violate_protocol(state, "a Close frame has a payload of one byte");
    }
    const int code = payload[0] << 8 | payload[1];
    const bool registered = code >= 1000 && code <= 1014 && !(code >= 1004 && code <= 1006);
    if (!registered && !(code >= 3000 && code <= 4999)) {
        return violate(state, state->protocol_error, "close code %d may not be sent", code);
    }
    Utf8 reason = {0};
    if (!utf8_goes_on(&reason, payload + 2, size - 2) || reason.needed) {
        return violate_utf8(state);
    }
    return 0;
}

static int
finish_control(State *state, Reader *reader, const Header *header, const uint8_t *payload,
               PyObject *messages)
{
    const int opcode = header->first & OPCODE;
    uint8_t plain[CONTROL_MOST];
    const size_t size = (size_t)header->length;
    if (reader->masked) {
        mask_bytes(plain, payload, size, header->key);
        payload = plain;
    }
    if (opcode == CLOSE && (judge_close(state, payload, size) < 0 || close_reader(state, reader) < 0)) {
        return -1;
    }
    return append_message(state, reader, messages, opcode, new_bytes(payload, size, NULL), size);
}

/* Add what came out of the inflater, as far as the message may be long (RFC 7692 section 8); the
   reference to *piece* is taken over. */
static int
store_inflated(State *state, Reader *reader, PyObject *piece)
{
    if (piece == NULL) {
        return -1;
    }
    if (!PyBytes_Check(piece)) {
        PyErr_Format(PyExc_TypeError, "inflater: bytes are needed, not %s", name_of_type(piece));
        Py_DECREF(piece);
        return -1;
    }
    const uint64_t room = reader->max_message_size - reader->size;
    const size_t size = (size_t)PyBytes_GET_SIZE(piece);
    const uint8_t *bytes = (const uint8_t *)PyBytes_AS_STRING(piece);
    int status;
    if (size <= room) {
        status = store(state, reader, bytes, size, NULL);
    }
    else if (reader->is_text && !utf8_goes_on(&reader->text, bytes, (size_t)room)) {
        status = violate_utf8(state);
    }
    else {
        status = violate_size(state, reader);
    }
    Py_DECREF(piece);
    return status;
}

/* Call a method of the inflater with the room that is left, and with data unless that is NULL. */
static PyObject *
call_inflater(Reader *reader, PyObject *method, PyObject *data)
{
    PyObject *room = PyLong_FromUnsignedLongLong(reader->max_message_size - reader->size);
    if (room == NULL) {
        return NULL;
    }
    PyObject *piece = data == NULL
                          ? PyObject_CallMethodObjArgs(reader->inflater, method, room, NULL)
                          : PyObject_CallMethodObjArgs(reader->inflater, method, data, room, NULL);
    Py_DECREF(room);
    return piece;
}

static int
inflate(State *state, Reader *reader, const uint8_t *payload, size_t size, const uint8_t *key)
{
    PyObject *data = new_bytes(payload, size, key);
    if (data == NULL) {
        return -1;
    }
    PyObject *piece = call_inflater(reader, state->inflate, data);
    Py_DECREF(data);
    return store_inflated(state, reader, piece);
}

/* Make bytes or text of what is stored, and give the storage back. */
static PyObject *
take_out(State *state, Reader *reader, bool is_text)
{
    PyObject *data;
    const Py_ssize_t size = (Py_ssize_t)reader->size;
    if (size == 0) {
        data = is_text ? PyUnicode_New(0, 0) : PyBytes_FromStringAndSize(NULL, 0);
    }
    else if (reader->buffers == NULL && !is_text) {
        if (PyBytes_GET_SIZE(reader->storage) != size && _PyBytes_Resize(&reader->storage, size) < 0) {
            return NULL;
        }
        data = reader->storage;
        reader->storage = NULL;
    }
    else {
        Py_buffer whole;
        if (PyObject_GetBuffer(reader->storage, &whole, PyBUF_SIMPLE) < 0) {
            return NULL;
        }
        const Py_ssize_t there = Py_MIN(size, whole.len);
        data = is_text ? PyUnicode_DecodeUTF8(whole.buf, there, NULL)
                       : PyBytes_FromStringAndSize(whole.buf, there);
        PyBuffer_Release(&whole);
        if (data == NULL && is_text) {
            judge_decoding(state);
        }
    }
    if (data != NULL && release_storage(state, reader) < 0) {
        Py_CLEAR(data);
    }
    return data;
}

/* Build the message whose last frame is complete, and be ready for the next. */
static int
finish_message(State *state, Reader *reader, PyObject *messages)
{
    if (reader->compressed
        && store_inflated(state, reader, call_inflater(reader, state->finish, NULL)) < 0) {
        return -1;
    }
    const int opcode = reader->opcode;
    const uint64_t size = reader->size;
    PyObject *data = delivers_view(reader) ? hand_over(state, reader)
                                           : take_out(state, reader, reader->is_text);
    reader->opcode = CONTINUATION;
    reader->compressed = reader->is_text = false;
    return append_message(state, reader, messages, opcode, data, size);
}

/* Frames. */

/* Judge FIN, RSV and opcode (RFC 6455 sections 5.2, 5.4, 5.5; RFC 7692 section 6). */
static int
judge_first_byte(State *state, const Reader *reader, uint8_t first)
{
    const int opcode = first & OPCODE;
    if (first & RSV2_RSV3) {
        return violate_protocol(state, "RSV2 or RSV3 is set without an extension that defines it");
    }
    if (opcode > PONG || (opcode > BINARY && opcode < CLOSE)) {
        return violate(state, state->protocol_error, "opcode 0x%x is reserved", opcode);
    }
    if (opcode >= CLOSE) {
        if (!(first & FIN)) {
            return violate_protocol(state, "a control frame is fragmented");
        }
    }
    else if (opcode == CONTINUATION) {
        if (reader->opcode == CONTINUATION) {
            return violate_protocol(state, "a continuation frame without a message to continue");
        }
    }
    else if (reader->opcode != CONTINUATION) {
        return violate_protocol(state, "a new message begins inside a fragmented one");
    }
    if (first & RSV1) {
        if (reader->inflater == NULL) {
            return violate_protocol(state, "RSV1 is set without an extension that defines it");
        }
        if (opcode == CONTINUATION || opcode >= CLOSE) {
            return violate_protocol(state, "RSV1 is set on a frame that does not start a data message");
        }
    }
    return 0;
}

/* Judge MASK (RFC 6455 section 5.1) and the length of a control frame (section 5.5). */
static int
judge_second_byte(State *state, const Reader *reader, uint8_t second, int opcode)
{
    if (!(second & MASK) == reader->masked) {
        return violate_protocol(state, reader->masked ? "a client's frame is not masked"
                                                      : "a server's frame is masked");
    }
    if (opcode >= CLOSE && (second & LENGTH) > CONTROL_MOST) {
        return violate_protocol(state, "a control frame is longer than 125 bytes");
    }
    return 0;
}

/* Read the 16- or 64-bit length (RFC 6455 section 5.2): 1, or 0 when it is not all there. */
static int
read_extended_length(State *state, const uint8_t *in, size_t available, bool is_short, uint64_t *length)
{
    const size_t size = is_short ? 2 : 8;
    if (!is_short && available && in[0] & 0x80) {
        return violate_protocol(state, "a frame's length has its most significant bit set");
    }
    if (available < size) {
        return 0;
    }
    uint64_t value = 0;
    for (size_t i = 0; i < size; i++) {
        value = value << 8 | in[i];
    }
    if (value <= (is_short ? CONTROL_MOST : 0xFFFF)) {
        return violate_protocol(state, "a frame's length is not encoded in the minimal number of bytes");
    }
    *length = value;
    return 1;
}

/* Read a header: 1 when it is there, and of a control frame the payload as well; 0 when more bytes are
   needed. Every byte is judged as soon as it is there. */
static int
read_header(State *state, const Reader *reader, const uint8_t *in, size_t available, Header *header)
{
    const uint8_t first = in[0];
    const int opcode = first & OPCODE;
    if (judge_first_byte(state, reader, first) < 0) {
        return -1;
    }
    if (available < 2) {
        return 0;
    }
    if (judge_second_byte(state, reader, in[1], opcode) < 0) {
        return -1;
    }
    uint64_t length = in[1] & LENGTH;
    size_t size = 2;
    if (length > CONTROL_MOST) {
        const bool is_short = length == 126;
        const int there = read_extended_length(state, in + 2, available - 2, is_short, &length);
        if (there <= 0) {
            return there;
        }
        size += is_short ? 2 : 8;
    }
    if (opcode < CLOSE && !(first & RSV1) && !reader->compressed
        && (length > reader->max_message_size || reader->size > reader->max_message_size - length)) {
        return violate_size(state, reader);
    }
    if (reader->masked) {
        if (available < size + KEY_SIZE) {
            return 0;
        }
        memcpy(header->key, in + size, KEY_SIZE);
        size += KEY_SIZE;
    }
    header->first = first;
    header->length = length;
    header->size = size;
    return opcode < CLOSE || available - size >= length;
}

/* Note the data frame whose payload comes next, and begin a message if it begins one. */
static int
start_frame(State *state, Reader *reader, const Header *header)
{
    const uint8_t opcode = header->first & OPCODE;
    if (opcode != CONTINUATION) {
        reader->opcode = opcode;
        reader->compressed = header->first & RSV1;
        reader->is_text = opcode == TEXT && reader->utf8;
        reader->text = (Utf8){0};
        reader->fragments = reader->received = 0;
    }
    reader->fragments++;
    reader->received += Py_MIN(header->length, UINT64_MAX - reader->received);
    if (reader->fragments > 1024 + reader->received / 32) {
        return violate(state, state->policy_violation, "a message has too many fragments for its size");
    }
    reader->fin = header->first & FIN;
    reader->remaining = header->length;
    reader->in_frame = true;
    memcpy(reader->key, header->key, KEY_SIZE);
    return 0;
}

/* Take what is there of a data frame's payload; return how much that was, -1 on failure. */
static Py_ssize_t
read_payload(State *state, Reader *reader, const uint8_t *in, size_t available, PyObject *messages)
{
    const size_t taken = smaller(reader->remaining, available);
    if (taken) {
        const uint8_t *key = reader->masked ? reader->key : NULL;
        if ((reader->compressed ? inflate : store)(state, reader, in, taken, key) < 0) {
            return -1;
        }
        turn_key(reader->key, taken);
        reader->remaining -= taken;
    }
    if (!reader->remaining) {
        reader->in_frame = false;
        if (reader->fin && finish_message(state, reader, messages) < 0) {
            return -1;
        }
    }
    return (Py_ssize_t)taken;
}

/* Read a header, and what it stands for when that is all there: a control frame, or an unfragmented,
   uncompressed message. Return how many bytes were used, -1 on failure; all of them are when more are
   needed. */
static Py_ssize_t
read_frame(State *state, Reader *reader, const uint8_t *in, size_t available, PyObject *messages)
{
    uint8_t joined[PENDING_MOST];
    const uint8_t *start = in;
    const size_t before = reader->pending_size;
    size_t size = available;
    if (before) {
        const size_t more = smaller(available, sizeof joined - before);
        memcpy(joined, reader->pending, before);
        memcpy(joined + before, in, more);
        start = joined;
        size = before + more;
    }
    Header header = {0};
    const int there = read_header(state, reader, start, size, &header);
    if (there < 0) {
        return -1;
    }
    if (!there) {
        return keep_pending(reader, start, size) < 0 ? -1 : (Py_ssize_t)available;
    }
    if (before) {
        drop_pending(reader);
    }
    const int opcode = header.first & OPCODE;
    if (opcode >= CLOSE) {
        if (finish_control(state, reader, &header, start + header.size, messages) < 0) {
            return -1;
        }
        return (Py_ssize_t)(header.size + (size_t)header.length - before);
    }
    const size_t used = header.size - before; /* a data frame's header is never pending whole */
    if (header.first == (FIN | opcode) && opcode != CONTINUATION && header.length <= available - used) {
        const size_t length = (size_t)header.length;
        const uint8_t *key = reader->masked ? header.key : NULL;
        if (finish_whole(state, reader, opcode, in + used, length, key, messages) < 0) {
            return -1;
        }
        return (Py_ssize_t)(used + length);
    }
    return start_frame(state, reader, &header) < 0 ? -1 : (Py_ssize_t)used;
}

static int
read_frames(State *state, Reader *reader, const uint8_t *in, size_t available, PyObject *messages)
{
    while (reader->finished == Py_False) {
        if (!reader->in_frame) {
            if (!available || reader->spent >= reader->turn) {
                reader->left = (Py_ssize_t)available;
                return 0;
            }
            const Py_ssize_t used = read_frame(state, reader, in, available, messages);
            if (used < 0) {
                return -1;
            }
            in += used, available -= (size_t)used;
        }
        if (reader->in_frame) {
            const Py_ssize_t used = read_payload(state, reader, in, available, messages);
            if (used < 0) {
                return -1;
            }
            in += used, available -= (size_t)used;
            if (reader->in_frame) {
                return 0;
            }
        }
    }
    return 0;
}

/* Make the violation that was raised the reader's error; anything else that was raised goes on. */
static int
note_error(State *state, Reader *reader)
{
    if (!PyErr_ExceptionMatches(state->remote_protocol_error)) {
        return -1;
    }
    PyObject *type, *raised, *traceback;
    PyErr_Fetch(&type, &raised, &traceback);
    PyErr_NormalizeException(&type, &raised, &traceback);
    PyObject *code = PyObject_GetAttr(raised, state->code);
    PyObject *reason = code == NULL ? NULL : PyObject_GetAttr(raised, state->reason);
    Py_XDECREF(type);
    Py_XDECREF(raised);
    Py_XDECREF(traceback);
    /* A new one, because the traceback of the one that was raised may hold the caller's buffer. */
    PyObject *error = reason == NULL ? NULL
                                     : PyObject_CallFunctionObjArgs(state->remote_protocol_error, code,
                                                                    reason, NULL);
    Py_XDECREF(code);
    Py_XDECREF(reason);
    if (error == NULL) {
        return -1;
    }
    PyObject *none = reader->error;
    reader->error = error;
    Py_DECREF(none);
    return close_reader(state, reader);
}

/* End the reading because of an exception, which stays the one that is raised unless this raises, too. */
static void
close_after_exception(State *state, Reader *reader)
{
    PyObject *type, *raised, *traceback;
    PyErr_Fetch(&type, &raised, &traceback);
    if (close_reader(state, reader) == 0) {
        PyErr_Restore(type, raised, traceback);
        return;
    }
    Py_XDECREF(type);
    Py_XDECREF(raised);
    Py_XDECREF(traceback);
}

/* A reader is used by one call at a time: not by two threads, and not by its own inflater or buffers. */
static int
begin_use(Reader *reader)
{
    bool busy;
    Py_BEGIN_CRITICAL_SECTION(reader);
    busy = reader->busy;
    reader->busy = true;
    Py_END_CRITICAL_SECTION();
    if (busy) {
        PyErr_SetString(PyExc_RuntimeError, "the reader is in use by another call");
        return -1;
    }
    return 0;
}

static void
end_use(Reader *reader)
{
    Py_BEGIN_CRITICAL_SECTION(reader);
    reader->busy = false;
    Py_END_CRITICAL_SECTION();
}

static PyObject *
feed_bytes(Reader *reader, const uint8_t *in, size_t size)
{
    State *state = PyType_GetModuleState(Py_TYPE(reader));
    PyObject *messages = PyList_New(0);
    if (messages == NULL || begin_use(reader) < 0) {
        Py_XDECREF(messages);
        return NULL;
    }
    reader->spent = 0;
    reader->left = 0;
    if (read_frames(state, reader, in, size, messages) < 0 && note_error(state, reader) < 0) {
        close_after_exception(state, reader);
        Py_CLEAR(messages);
    }
    end_use(reader);
    return messages;
}

PyDoc_STRVAR(feed_doc,
"feed($self, data, /)\n--\n\n"
"Take the bytes of one read and return the messages that they complete, in order.");

static PyObject *
reader_feed(PyObject *self, PyObject *data)
{
    Reader *reader = (Reader *)self;
    if (reader->finished == Py_True) {
        return PyList_New(0);
    }
    if (PyBytes_CheckExact(data)) {
        return feed_bytes(reader, (const uint8_t *)PyBytes_AS_STRING(data), (size_t)PyBytes_GET_SIZE(data));
    }
    Py_buffer view;
    if (get_bytes(data, "data", &view) < 0) {
        return NULL;
    }
    PyObject *messages = feed_bytes(reader, view.buf, (size_t)view.len);
    PyBuffer_Release(&view);
    return messages;
}

PyDoc_STRVAR(close_doc,
"close($self, /)\n--\n\n"
"End the reading, and give back what an unfinished message has of *buffers*.");

static PyObject *
reader_close(PyObject *self, PyObject *Py_UNUSED(nothing))
{
    Reader *reader = (Reader *)self;
    if (begin_use(reader) < 0) {
        return NULL;
    }
    const int status = close_reader(PyType_GetModuleState(Py_TYPE(self)), reader);
    end_use(reader);
    if (status < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

/* Get a limit of 0 to MOST; -1 when it is none. */
static int64_t
get_limit(PyObject *size)
{
    PyObject *number = PyNumber_Index(size);
    if (number == NULL) {
        return -1;
    }
    int overflow;
    int64_t limit = PyLong_AsLongLongAndOverflow(number, &overflow);
    if (overflow || limit < 0) {
        PyErr_Format(PyExc_ValueError, "max_message_size: 0 to 2**63 - 1 bytes, not %S", number);
        limit = -1;
    }
    Py_DECREF(number);
    return limit;
}

static PyObject *
reader_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"masked", "max_message_size", "utf8", "inflater", "buffers", "view", "turn", NULL};
    PyObject *size = NULL, *inflater = Py_None, *buffers = Py_None;
    int masked = -1, utf8 = 1, view = 0;
    Py_ssize_t turn = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$pOpOOpn:MessageReader", names, &masked, &size, &utf8,
                                     &inflater, &buffers, &view, &turn)) {
        return NULL;
    }
    if (masked < 0 || size == NULL) {
        PyErr_Format(PyExc_TypeError, "MessageReader() needs the argument '%s'",
                     masked < 0 ? "masked" : "max_message_size");
        return NULL;
    }
    const int64_t limit = get_limit(size);
    if (limit < 0) {
        return NULL;
    }
    Reader *reader = (Reader *)type->tp_alloc(type, 0);
    if (reader == NULL) {
        return NULL;
    }
    reader->error = Py_NewRef(Py_None);
    reader->finished = Py_NewRef(Py_False);
    reader->inflater = inflater == Py_None ? NULL : Py_NewRef(inflater);
    reader->buffers = buffers == Py_None ? NULL : Py_NewRef(buffers);
    reader->max_message_size = (uint64_t)limit;
    reader->turn = turn > 0 ? (uint64_t)turn : UINT64_MAX;
    reader->masked = masked;
    reader->utf8 = utf8;
    reader->view = view;
    return (PyObject *)reader;
}

static int
reader_traverse(PyObject *self, visitproc visit, void *arg)
{
    Reader *reader = (Reader *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(reader->error);
    Py_VISIT(reader->inflater);
    Py_VISIT(reader->buffers);
    if (reader->buffers != NULL) { /* our own storage is nobody else's: it has no references to visit */
        Py_VISIT(reader->storage);
    }
    return 0;
}

static int
reader_clear(PyObject *self)
{
    Reader *reader = (Reader *)self;
    PyObject *old = reader->finished; /* what uses it after this finds it closed */
    reader->finished = Py_NewRef(Py_True);
    Py_XDECREF(old);
    Py_CLEAR(reader->inflater);
    Py_CLEAR(reader->buffers);
    Py_CLEAR(reader->storage);
    return 0;
}

static void
reader_dealloc(PyObject *self)
{
    Reader *reader = (Reader *)self;
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    reader_clear(self);
    Py_CLEAR(reader->error);
    Py_CLEAR(reader->finished);
    PyMem_Free(reader->pending);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef reader_methods[] = {
    {"feed", reader_feed, METH_O, feed_doc},
    {"close", reader_close, METH_NOARGS, close_doc},
    {NULL},
};

static PyMemberDef reader_members[] = {
    {"error", T_OBJECT_EX, offsetof(Reader, error), READONLY, "the first violation that was met"},
    {"finished", T_OBJECT_EX, offsetof(Reader, finished), READONLY, "nothing more will be read"},
    {"left", T_PYSSIZET, offsetof(Reader, left), READONLY, "bytes that the last call has not looked at"},
    {NULL},
};

PyDoc_STRVAR(reader_doc,
"MessageReader(*, masked, max_message_size, utf8=True, inflater=None, buffers=None, view=False, "
"turn=0)\n--\n\n"
"Reassembles messages from the bytes of one direction of a connection.");

static PyType_Slot reader_slots[] = {
    {Py_tp_doc, (void *)reader_doc},
    {Py_tp_new, reader_new},
    {Py_tp_dealloc, reader_dealloc},
    {Py_tp_traverse, reader_traverse},
    {Py_tp_clear, reader_clear},
    {Py_tp_methods, reader_methods},
    {Py_tp_members, reader_members},
    {0, NULL},
};

static PyType_Spec reader_spec = {
    .name = "anyio_ws._framing_c.MessageReader",
    .basicsize = sizeof(Reader),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = reader_slots,
};

/* --- frame and mask ---------------------------------------------------------------------------- */

/* Sort the arguments of a call by their names. The first *placed* may come without a name, and the first
   *required* must come; those that do not are NULL in *values*. */
static int
sort_arguments(const char *function, PyObject *const *names, int count, int placed, int required,
               PyObject *const *args, Py_ssize_t given, PyObject *kwnames, PyObject **values)
{
    if (given > placed) {
        PyErr_Format(PyExc_TypeError, "%s() takes %d arguments without a name, not %zd", function, placed,
                     given);
        return -1;
    }
    for (Py_ssize_t i = 0; i < given; i++) {
        values[i] = args[i];
    }
    const Py_ssize_t named = kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames);
    for (Py_ssize_t i = 0; i < named; i++) {
        PyObject *name = PyTuple_GET_ITEM(kwnames, i);
        int place = 0;
        while (place < count && names[place] != name) {
            place++;
        }
        if (place == count) { /* names are interned, all but those of a ** call */
            place = 0;
            while (place < count && PyUnicode_Compare(names[place], name) != 0) {
                place++;
            }
        }
        if (place == count || values[place] != NULL) {
            PyErr_Format(PyExc_TypeError, "%s() got %s argument '%U'", function,
                         place == count ? "an unexpected" : "twice the", name);
            return -1;
        }
        values[place] = args[given + i];
    }
    for (int i = 0; i < required; i++) {
        if (values[i] == NULL) {
            PyErr_Format(PyExc_TypeError, "%s() needs the argument '%U'", function, names[i]);
            return -1;
        }
    }
    return 0;
}

/* Take an argument that is true or false; -1 when it cannot be said. */
static int
get_flag(PyObject *value, bool omitted)
{
    return value == NULL ? omitted : value == Py_True ? 1 : value == Py_False ? 0 : PyObject_IsTrue(value);
}

static int
get_opcode(PyObject *value)
{
    int overflow;
    const long opcode = PyLong_AsLongAndOverflow(value, &overflow);
    if (opcode == -1 && !overflow && PyErr_Occurred()) {
        return -1;
    }
    if (overflow || opcode < 0 || opcode > OPCODE) {
        PyErr_Format(PyExc_ValueError, "opcode: 0 to 15, not %S", value);
        return -1;
    }
    return (int)opcode;
}

static size_t
write_header(uint8_t *out, uint8_t first, uint8_t masked, uint64_t length)
{
    out[0] = first;
    if (length <= CONTROL_MOST) {
        out[1] = masked | (uint8_t)length;
        return 2;
    }
    const size_t size = length <= 0xFFFF ? 2 : 8;
    out[1] = masked | (size == 2 ? 126 : 127);
    for (size_t i = 0; i < size; i++) {
        out[2 + i] = (uint8_t)(length >> 8 * (size - 1 - i));
    }
    return 2 + size;
}

static PyObject *
build_frame(uint8_t first, const uint8_t *payload, size_t size, const uint8_t *key)
{
    uint8_t header[HEADER_MOST];
    size_t start = write_header(header, first, key == NULL ? 0 : MASK, size);
    if (key != NULL) {
        memcpy(header + start, key, KEY_SIZE);
        start += KEY_SIZE;
    }
    if (size > PY_SSIZE_T_MAX - 64 - sizeof header) {
        return PyErr_NoMemory();
    }
    PyObject *frame = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(start + size));
    if (frame == NULL) {
        return NULL;
    }
    uint8_t *out = (uint8_t *)PyBytes_AS_STRING(frame);
    memcpy(out, header, start);
    if (key != NULL) {
        mask_bytes(out + start, payload, size, key);
    }
    else if (size) {
        memcpy(out + start, payload, size);
    }
    return frame;
}

/* Get a payload's bytes, of which *view* may have to be released: text in UTF-8, or what is bytes-like. */
static int
get_payload(PyObject *payload, Py_buffer *view)
{
    if (PyBytes_CheckExact(payload)) {
        view->buf = PyBytes_AS_STRING(payload);
        view->len = PyBytes_GET_SIZE(payload);
        return 0;
    }
    if (PyUnicode_Check(payload)) {
        view->buf = (void *)PyUnicode_AsUTF8AndSize(payload, &view->len);
        return view->buf == NULL ? -1 : 0;
    }
    return get_bytes(payload, "payload", view);
}

PyDoc_STRVAR(frame_doc,
"frame($module, /, opcode, payload, *, fin=True, rsv1=False, masking_key=None)\n--\n\n"
"Build one frame (RFC 6455 section 5.2).");

static PyObject *
framing_frame(PyObject *module, PyObject *const *args, Py_ssize_t given, PyObject *kwnames)
{
    State *state = PyModule_GetState(module);
    PyObject *values[FRAME_NAMES] = {NULL};
    if (sort_arguments("frame", state->frame_names, FRAME_NAMES, NAME_FIN, NAME_FIN, args, given, kwnames,
                       values) < 0) {
        return NULL;
    }
    const int opcode = get_opcode(values[NAME_OPCODE]);
    const int fin = opcode < 0 ? -1 : get_flag(values[NAME_FIN], true);
    const int rsv1 = fin < 0 ? -1 : get_flag(values[NAME_RSV1], false);
    Py_buffer payload = {0};
    if (rsv1 < 0 || get_payload(values[NAME_PAYLOAD], &payload) < 0) {
        return NULL;
    }
    PyObject *masking_key = values[NAME_MASKING_KEY];
    const uint8_t *key = NULL;
    PyObject *frame = NULL;
    if (masking_key == NULL || masking_key == Py_None
        || (key = get_key(masking_key, "masking_key")) != NULL) {
        const uint8_t first = (uint8_t)(opcode | (fin ? FIN : 0) | (rsv1 ? RSV1 : 0));
        frame = build_frame(first, payload.buf, (size_t)payload.len, key);
    }
    if (payload.obj != NULL) {
        PyBuffer_Release(&payload);
    }
    return frame;
}

PyDoc_STRVAR(fragments_doc,
"fragments($module, opcode, payload, size, rsv1, keys, /)\n--\n\n"
"Build the frames of a message that is cut into fragments (RFC 6455 section 5.4).");

/* Write the frames of a message, each with at most *most* bytes of it, behind each other. */
static void
write_fragments(uint8_t *out, uint8_t first, const uint8_t *payload, size_t size, size_t most,
                const uint8_t *key)
{
    for (;;) {
        const size_t piece = size < most ? size : most;
        out += write_header(out, first | (piece == size ? FIN : 0), key == NULL ? 0 : MASK, piece);
        if (key != NULL) {
            memcpy(out, key, KEY_SIZE);
            out += KEY_SIZE;
            mask_bytes(out, payload, piece, key);
            key += KEY_SIZE;
        }
        else if (piece) {
            memcpy(out, payload, piece);
        }
        if (piece == size) {
            return;
        }
        out += piece;
        payload += piece;
        size -= piece;
        first = 0; /* a continuation */
    }
}

static PyObject *
build_fragments(uint8_t first, const Py_buffer *payload, size_t most, PyObject *keys)
{
    const size_t size = (size_t)payload->len, count = size == 0 ? 1 : (size - 1) / most + 1;
    const uint8_t *key = NULL;
    if (keys != Py_None) {
        if (!PyBytes_CheckExact(keys) || (size_t)PyBytes_GET_SIZE(keys) != count * KEY_SIZE) {
            PyErr_Format(PyExc_ValueError, "keys: %zu of 4 bytes are needed, one for each frame", count);
            return NULL;
        }
        key = (const uint8_t *)PyBytes_AS_STRING(keys);
    }
    if (size > (PY_SSIZE_T_MAX - 64) / (HEADER_MOST + 1) - 1) {
        return PyErr_NoMemory();
    }
    uint8_t header[HEADER_MOST];
    const size_t last = size - (count - 1) * most;
    const size_t start = write_header(header, first, 0, most) + (key == NULL ? 0 : KEY_SIZE);
    const size_t last_start = write_header(header, first, 0, last) + (key == NULL ? 0 : KEY_SIZE);
    PyObject *frames = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(size + (count - 1) * start + last_start));
    if (frames != NULL) {
        write_fragments((uint8_t *)PyBytes_AS_STRING(frames), first, payload->buf, size, most, key);
    }
    return frames;
}

static PyObject *
framing_fragments(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t given)
{
    if (given != 5) {
        PyErr_Format(PyExc_TypeError, "fragments() takes 5 arguments, not %zd", given);
        return NULL;
    }
    const int opcode = get_opcode(args[0]);
    const Py_ssize_t most = opcode < 0 ? -1 : PyLong_AsSsize_t(args[2]);
    if (opcode < 0 || (most == -1 && PyErr_Occurred())) {
        return NULL;
    }
    if (most < 1) {
        PyErr_Format(PyExc_ValueError, "size: 1 byte or more, not %zd", most);
        return NULL;
    }
    const int rsv1 = get_flag(args[3], false);
    Py_buffer payload = {0};
    if (rsv1 < 0 || get_payload(args[1], &payload) < 0) {
        return NULL;
    }
    PyObject *frames = build_fragments((uint8_t)(opcode | (rsv1 ? RSV1 : 0)), &payload, (size_t)most, args[4]);
    if (payload.obj != NULL) {
        PyBuffer_Release(&payload);
    }
    return frames;
}

PyDoc_STRVAR(mask_doc,
"mask($module, /, data, key, *, in_place=False)\n--\n\n"
"Apply a masking key of four bytes; doing it twice gives the data back (RFC 6455 section 5.3).");

static PyObject *
framing_mask(PyObject *module, PyObject *const *args, Py_ssize_t given, PyObject *kwnames)
{
    State *state = PyModule_GetState(module);
    PyObject *values[MASK_NAMES] = {NULL};
    if (sort_arguments("mask", state->mask_names, MASK_NAMES, NAME_IN_PLACE, NAME_IN_PLACE, args, given,
                       kwnames, values) < 0) {
        return NULL;
    }
    PyObject *data = values[NAME_DATA];
    const uint8_t *key = get_key(values[NAME_KEY], "key");
    const int in_place = key == NULL ? -1 : get_flag(values[NAME_IN_PLACE], false);
    Py_buffer view;
    if (in_place < 0 || get_bytes(data, "data", &view) < 0) {
        return NULL;
    }
    PyObject *result;
    if (!in_place) {
        result = new_bytes(view.buf, (size_t)view.len, key);
    }
    else if (view.readonly) {
        PyErr_Format(PyExc_TypeError, "data: it is to be masked in place, and %s is not writable",
                     name_of_type(data));
        result = NULL;
    }
    else {
        mask_bytes(view.buf, view.buf, (size_t)view.len, key);
        result = Py_NewRef(data);
    }
    PyBuffer_Release(&view);
    return result;
}

/* --- for other modules written in C ------------------------------------------------------------ */

static PyObject *
api_feed(PyObject *reader, const uint8_t *in, size_t size)
{
    return feed_bytes((Reader *)reader, in, size);
}

static size_t
api_get_left(PyObject *reader)
{
    return (size_t)((Reader *)reader)->left;
}

static bool
api_is_finished(PyObject *reader)
{
    return ((Reader *)reader)->finished == Py_True;
}

static size_t
api_write_header(uint8_t *out, uint8_t first, const uint8_t *key, size_t length)
{
    const size_t size = write_header(out, first, key == NULL ? 0 : MASK, length);
    if (key == NULL) {
        return size;
    }
    memcpy(out + size, key, KEY_SIZE);
    return size + KEY_SIZE;
}

static int
api_get_payload(PyObject *payload, const uint8_t **bytes, size_t *size)
{
    Py_buffer view;
    if (!PyBytes_CheckExact(payload) && !PyUnicode_Check(payload)) {
        PyErr_Format(PyExc_TypeError, "payload: str or bytes are needed, not %s", name_of_type(payload));
        return -1;
    }
    if (get_payload(payload, &view) < 0) {
        return -1;
    }
    *bytes = view.buf;
    *size = (size_t)view.len;
    return 0;
}

static void
api_mask(uint8_t *out, const uint8_t *in, size_t size, const uint8_t key[KEY_SIZE])
{
    mask_bytes(out, in, size, key);
}

static int
add_api(PyObject *module, State *state, PyObject *reader_type)
{
    state->api = (FramingApi){
        .reader_type = (PyTypeObject *)Py_NewRef(reader_type),
        .feed = api_feed,
        .get_left = api_get_left,
        .is_finished = api_is_finished,
        .write_header = api_write_header,
        .get_payload = api_get_payload,
        .mask = api_mask,
    };
    PyObject *capsule = PyCapsule_New(&state->api, FRAMING_API_NAME, NULL);
    const int status = capsule == NULL ? -1 : PyModule_AddObjectRef(module, "_api", capsule);
    Py_XDECREF(capsule);
    return status;
}

/* --- the module -------------------------------------------------------------------------------- */

/* Note an attribute of a module or a class in the state; -1 when there is none. */
static int
note_attribute(PyObject *owner, const char *name, PyObject **place)
{
    *place = owner == NULL ? NULL : PyObject_GetAttrString(owner, name);
    return *place == NULL ? -1 : 0;
}

static int
note_name(const char *name, PyObject **place)
{
    *place = PyUnicode_InternFromString(name);
    return *place == NULL ? -1 : 0;
}

static int
note_events(State *state, PyObject *events)
{
    PyObject *types = NULL, *codes = NULL;
    int status = -1;
    if (note_attribute(events, "Message", (PyObject **)&state->message) < 0
        || note_attribute(events, "MessageType", &types) < 0
        || note_attribute(types, "TEXT", &state->message_types[TEXT]) < 0
        || note_attribute(types, "BINARY", &state->message_types[BINARY]) < 0
        || note_attribute(types, "CLOSE", &state->message_types[CLOSE]) < 0
        || note_attribute(types, "PING", &state->message_types[PING]) < 0
        || note_attribute(types, "PONG", &state->message_types[PONG]) < 0
        || note_attribute(events, "CloseCode", &codes) < 0
        || note_attribute(codes, "PROTOCOL_ERROR", &state->protocol_error) < 0
        || note_attribute(codes, "INVALID_FRAME_PAYLOAD_DATA", &state->invalid_data) < 0
        || note_attribute(codes, "POLICY_VIOLATION", &state->policy_violation) < 0
        || note_attribute(codes, "MESSAGE_TOO_BIG", &state->message_too_big) < 0) {
        goto done;
    }
    if (!PyType_Check(state->message) || !PyType_IsSubtype(state->message, &PyTuple_Type)) {
        PyErr_SetString(PyExc_TypeError, "anyio_ws.events.Message is not a class of tuples");
        goto done;
    }
    status = 0;
done:
    Py_XDECREF(types);
    Py_XDECREF(codes);
    return status;
}

static int
note_names(State *state)
{
    static const char *const of_frame[] = {"opcode", "payload", "fin", "rsv1", "masking_key"};
    static const char *const of_mask[] = {"data", "key", "in_place"};
    for (int i = 0; i < FRAME_NAMES; i++) {
        if (note_name(of_frame[i], &state->frame_names[i]) < 0) {
            return -1;
        }
    }
    for (int i = 0; i < MASK_NAMES; i++) {
        if (note_name(of_mask[i], &state->mask_names[i]) < 0) {
            return -1;
        }
    }
    return note_name("inflate", &state->inflate) < 0 || note_name("finish", &state->finish) < 0
                   || note_name("take", &state->take) < 0 || note_name("give", &state->give) < 0
                   || note_name("code", &state->code) < 0 || note_name("reason", &state->reason) < 0
               ? -1
               : 0;
}

static int
framing_exec(PyObject *module)
{
    State *state = PyModule_GetState(module);
    if (note_names(state) < 0) {
        return -1;
    }
    PyObject *events = PyImport_ImportModule("anyio_ws.events");
    int status = events == NULL ? -1 : note_events(state, events);
    Py_XDECREF(events);
    if (status < 0) {
        return -1;
    }
    PyObject *exceptions = PyImport_ImportModule("anyio_ws.exceptions");
    status = note_attribute(exceptions, "RemoteProtocolError", &state->remote_protocol_error);
    Py_XDECREF(exceptions);
    if (status < 0) {
        return -1;
    }
    PyObject *reader = PyType_FromModuleAndSpec(module, &reader_spec, NULL);
    status = reader == NULL ? -1 : PyModule_AddObjectRef(module, "MessageReader", reader);
    if (status == 0) {
        status = add_api(module, state, reader);
    }
    Py_XDECREF(reader);
    return status;
}

static int
framing_traverse(PyObject *module, visitproc visit, void *arg)
{
    State *state = PyModule_GetState(module);
    Py_VISIT(state->api.reader_type);
    Py_VISIT(state->message);
    Py_VISIT(state->remote_protocol_error);
    for (int i = 0; i <= OPCODE; i++) {
        Py_VISIT(state->message_types[i]);
    }
    Py_VISIT(state->protocol_error);
    Py_VISIT(state->invalid_data);
    Py_VISIT(state->policy_violation);
    Py_VISIT(state->message_too_big);
    return 0;
}

static int
framing_clear(PyObject *module)
{
    State *state = PyModule_GetState(module);
    Py_CLEAR(state->api.reader_type);
    Py_CLEAR(state->message);
    Py_CLEAR(state->remote_protocol_error);
    for (int i = 0; i <= OPCODE; i++) {
        Py_CLEAR(state->message_types[i]);
    }
    Py_CLEAR(state->protocol_error);
    Py_CLEAR(state->invalid_data);
    Py_CLEAR(state->policy_violation);
    Py_CLEAR(state->message_too_big);
    Py_CLEAR(state->inflate);
    Py_CLEAR(state->finish);
    Py_CLEAR(state->take);
    Py_CLEAR(state->give);
    Py_CLEAR(state->code);
    Py_CLEAR(state->reason);
    for (int i = 0; i < FRAME_NAMES; i++) {
        Py_CLEAR(state->frame_names[i]);
    }
    for (int i = 0; i < MASK_NAMES; i++) {
        Py_CLEAR(state->mask_names[i]);
    }
    return 0;
}

static void
framing_free(void *module)
{
    framing_clear(module);
}

static PyMethodDef framing_methods[] = {
    {"frame", (PyCFunction)(void (*)(void))framing_frame, METH_FASTCALL | METH_KEYWORDS, frame_doc},
    {"fragments", (PyCFunction)(void (*)(void))framing_fragments, METH_FASTCALL, fragments_doc},
    {"mask", (PyCFunction)(void (*)(void))framing_mask, METH_FASTCALL | METH_KEYWORDS, mask_doc},
    {NULL},
};

static PyModuleDef_Slot framing_slots[] = {
    {Py_mod_exec, framing_exec},
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef framing_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "anyio_ws._framing_c",
    .m_doc = "RFC 6455 section 5, compiled: the twin of _framing_py, which explains it.",
    .m_size = sizeof(State),
    .m_methods = framing_methods,
    .m_slots = framing_slots,
    .m_traverse = framing_traverse,
    .m_clear = framing_clear,
    .m_free = framing_free,
};

PyMODINIT_FUNC
PyInit__framing_c(void)
{
    return PyModuleDef_Init(&framing_module);
}
