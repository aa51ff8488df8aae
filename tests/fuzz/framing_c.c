/* libFuzzer's way into the compiled framing: any bytes are a stream, with three bytes of options before it.

   What is checked besides the sanitizers: nothing but a violation ends a reading; the same stream cut
   otherwise gives the same messages and the same error; no message is longer than the limit; every buffer
   that was lent comes back; a frame that is built from a payload is read as that payload. No Python code
   runs, so that there are many executions in a second. tests/fuzz/run builds it and runs it. */

#include "../../anyio_ws/_framing_c.c"
#include <stdio.h>

static PyObject *module, *reader_type, *buffers, *inflater, *no_args;
static Py_ssize_t lent, spare; /* buffers that are out; what they are larger than they have to be */

static void
check(bool holds, const char *what)
{
    if (!holds) {
        fprintf(stderr, "%s\n", what);
        if (PyErr_Occurred()) {
            PyErr_Print();
        }
        abort();
    }
}

static PyObject *
must(PyObject *object)
{
    check(object != NULL && !PyErr_Occurred(), "an exception");
    return object;
}

/* Buffers, and an inflater that makes many bytes of some, none of others, and one of most. */

static PyObject *
lend(PyObject *self, PyObject *size)
{
    lent++;
    PyObject *buffer = must(PyByteArray_FromStringAndSize(NULL, PyLong_AsSsize_t(size) + spare));
    memset(PyByteArray_AS_STRING(buffer), 0xEE, (size_t)PyByteArray_GET_SIZE(buffer));
    return buffer;
}

static PyObject *
take_back(PyObject *self, PyObject *buffer)
{
    lent--;
    check(PyByteArray_Resize(buffer, 1000) == 0, "somebody still looks at a buffer that was given back");
    Py_RETURN_NONE;
}

static PyObject *
blow_up(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    const Py_ssize_t room = PyLong_AsSsize_t(args[1]);
    const uint8_t *in = (const uint8_t *)PyBytes_AS_STRING(args[0]);
    const Py_ssize_t size = PyBytes_GET_SIZE(args[0]);
    check(given == 2 && room >= 0 && size > 0, "inflate() is called with room, and data");
    PyObject *out = must(PyBytes_FromStringAndSize(NULL, Py_MIN(16 * size, room + 1)));
    uint8_t *bytes = (uint8_t *)PyBytes_AS_STRING(out);
    Py_ssize_t made = 0;
    for (Py_ssize_t i = 0; i < size; i++) {
        for (int times = in[i] < 8 ? 0 : in[i] < 16 ? 16 : 1; times && made <= room; times--) {
            bytes[made++] = in[i];
        }
    }
    check(_PyBytes_Resize(&out, made) == 0, "resized");
    return out;
}

static PyObject *
end_message(PyObject *self, PyObject *room)
{
    check(PyLong_AsSsize_t(room) >= 0, "finish() is called with room");
    return PyBytes_FromStringAndSize("!", PyLong_AsSsize_t(room) > 9);
}

static PyMethodDef methods[] = {
    {"take", lend, METH_O},
    {"give", take_back, METH_O},
    {"inflate", (PyCFunction)(void (*)(void))blow_up, METH_FASTCALL},
    {"finish", end_message, METH_O},
};

/* Make an object with two of the methods. */
static PyObject *
make_namespace(const PyMethodDef *first)
{
    PyObject *types = must(PyImport_ImportModule("types"));
    PyObject *class = must(PyObject_GetAttrString(types, "SimpleNamespace"));
    PyObject *object = must(PyObject_CallNoArgs(class));
    for (int i = 0; i < 2; i++) {
        PyObject *method = must(PyCFunction_New((PyMethodDef *)first + i, NULL));
        check(PyObject_SetAttrString(object, first[i].ml_name, method) == 0, "attribute");
        Py_DECREF(method);
    }
    Py_DECREF(class);
    Py_DECREF(types);
    return object;
}

int
LLVMFuzzerInitialize(int *argc, char ***argv)
{
    PyImport_AppendInittab("_framing_c", PyInit__framing_c);
    Py_InitializeEx(0);
    check(PyRun_SimpleString("import sys; sys.path.insert(0, '" FUZZ_ROOT "')") == 0, "path");
    module = must(PyImport_ImportModule("_framing_c"));
    reader_type = must(PyObject_GetAttrString(module, "MessageReader"));
    buffers = make_namespace(&methods[0]);
    inflater = make_namespace(&methods[2]);
    no_args = must(PyTuple_New(0));
    return 0;
}

typedef struct {
    bool masked, utf8, view, compression, lends, as_views;
    long limit;
} Options;

typedef struct {
    PyObject *reader, *messages;
} Reading;

static PyObject *
make_reader(const Options *options)
{
    PyObject *kwargs = must(Py_BuildValue(
        "{sOsOsOslsOsO}", "masked", options->masked ? Py_True : Py_False, "utf8",
        options->utf8 ? Py_True : Py_False, "view", options->view ? Py_True : Py_False, "max_message_size",
        options->limit, "inflater", options->compression ? inflater : Py_None, "buffers",
        options->lends ? buffers : Py_None));
    PyObject *reader = must(PyObject_Call(reader_type, no_args, kwargs));
    Py_DECREF(kwargs);
    return reader;
}

/* Read a stream in pieces of changing sizes, or whole if *step* is 0. Each piece is a block of memory of its
   own, so that reading beyond it is found. */
static Reading
read_stream(const Options *options, const uint8_t *in, size_t size, unsigned step)
{
    Reading reading = {make_reader(options), must(PyList_New(0))};
    do {
        const size_t taken = step == 0 || step > size ? size : step;
        step = step * 5 % 61 + (step != 0);
        uint8_t *block = malloc(taken + !taken);
        memcpy(block, in, taken);
        PyObject *more;
        if (options->as_views) {
            PyObject *piece = must(PyMemoryView_FromMemory((char *)block, (Py_ssize_t)taken, PyBUF_READ));
            more = must(reader_feed(reading.reader, piece));
            Py_DECREF(piece);
        }
        else if (((Reader *)reading.reader)->finished == Py_False) {
            more = must(feed_bytes((Reader *)reading.reader, block, taken));
        }
        else {
            free(block);
            break;
        }
        free(block);
        if (PyList_GET_SIZE(more)) {
            const Py_ssize_t end = PyList_GET_SIZE(reading.messages);
            check(PyList_SetSlice(reading.messages, end, end, more) == 0, "appended");
        }
        Py_DECREF(more);
        in += taken, size -= taken;
    } while (size);
    return reading;
}

/* Two errors, or None, have the same code and reason; the code is one of four. */
static void
compare_errors(PyObject *error, PyObject *other)
{
    if (error == Py_None) {
        check(other == Py_None, "another error");
        return;
    }
    PyObject *args = must(PyObject_GetAttrString(error, "args"));
    PyObject *other_args = must(PyObject_GetAttrString(other, "args"));
    check(PyObject_RichCompareBool(args, other_args, Py_EQ) == 1, "another error");
    const long code = PyLong_AsLong(PyTuple_GET_ITEM(args, 0));
    check(code == 1002 || (code >= 1007 && code <= 1009), "an error has one of four codes");
    Py_DECREF(args);
    Py_DECREF(other_args);
}

/* Two readings of one stream said the same. */
static void
compare(const Reading *one, const Reading *other)
{
    const Reader *a = (Reader *)one->reader, *b = (Reader *)other->reader;
    compare_errors(a->error, b->error);
    check(a->finished == b->finished, "another end");
    check(a->error == Py_None || a->finished == Py_True, "an error is the end");
    check(PyObject_RichCompareBool(one->messages, other->messages, Py_EQ) == 1, "other messages");
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(one->messages); i++) {
        check(Py_TYPE(PyTuple_GET_ITEM(PyList_GET_ITEM(one->messages, i), 1))
                  == Py_TYPE(PyTuple_GET_ITEM(PyList_GET_ITEM(other->messages, i), 1)),
              "another type");
    }
}

/* Do what a consumer has to do, and lose the connection: then nothing is lent any more. */
static void
finish_reading(Reading *reading, const Options *options)
{
    const Py_ssize_t most = Py_MAX(options->limit, CONTROL_MOST);
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(reading->messages); i++) {
        PyObject *data = PyTuple_GET_ITEM(PyList_GET_ITEM(reading->messages, i), 1);
        check(PyObject_Size(data) <= most, "a message is longer than the limit");
        if (PyMemoryView_Check(data)) {
            PyObject *buffer = Py_NewRef(PyMemoryView_GET_BASE(data));
            Py_DECREF(must(PyObject_CallMethod(data, "release", NULL)));
            if (options->lends) {
                Py_DECREF(take_back(NULL, buffer));
            }
            Py_DECREF(buffer);
        }
    }
    Py_DECREF(must(reader_close(reading->reader, NULL)));
    check(lent == 0, "a buffer was kept");
    Py_DECREF(reading->messages);
    Py_DECREF(reading->reader);
}

/* Build a frame of the bytes, read it back, and mask the bytes in place twice. */
static void
check_writing(const uint8_t *in, size_t size)
{
    PyObject *payload = must(PyByteArray_FromStringAndSize((const char *)in, (Py_ssize_t)size));
    PyObject *key = must(PyBytes_FromStringAndSize((const char *)in, KEY_SIZE));
    PyObject *frame = must(build_frame(FIN | BINARY, in, size, in));
    const Options options = {.masked = true, .limit = 1 << 20};
    Reading reading = read_stream(&options, (const uint8_t *)PyBytes_AS_STRING(frame),
                                  (size_t)PyBytes_GET_SIZE(frame), 0);
    check(PyList_GET_SIZE(reading.messages) == 1, "one message");
    PyObject *data = PyTuple_GET_ITEM(PyList_GET_ITEM(reading.messages, 0), 1);
    check(PyObject_RichCompareBool(data, payload, Py_EQ) == 1, "what was framed is read");
    finish_reading(&reading, &options);
    State *state = PyModule_GetState(module);
    PyObject *const args[] = {payload, key, Py_True};
    PyObject *kwnames = must(PyTuple_Pack(1, state->mask_names[NAME_IN_PLACE]));
    for (int i = 0; i < 2; i++) {
        Py_DECREF(must(framing_mask(module, args, 2, kwnames)));
    }
    check(memcmp(PyByteArray_AS_STRING(payload), in, size) == 0, "masked twice is not masked");
    Py_DECREF(kwnames);
    Py_DECREF(frame);
    Py_DECREF(key);
    Py_DECREF(payload);
}

int
LLVMFuzzerTestOneInput(const uint8_t *in, size_t size)
{
    static const long limits[] = {0, 20, 200, 100000};
    if (size < 3) {
        return 0;
    }
    const Options options = {
        .masked = in[0] & 1,
        .utf8 = !(in[0] & 2),
        .view = in[0] & 4,
        .compression = in[0] & 8,
        .lends = in[0] & 16,
        .as_views = in[0] & 64,
        .limit = limits[in[1] % 4],
    };
    spare = in[0] & 32 ? 7 : 0;
    const bool writes = in[1] & 128 && size > 3 + KEY_SIZE;
    const unsigned step = 1 + in[2] % 61;
    in += 3, size -= 3;
    Reading whole = read_stream(&options, in, size, 0), cut = read_stream(&options, in, size, step);
    compare(&whole, &cut);
    /* Both at once, because each counts what is lent. */
    PyObject *cut_messages = cut.messages;
    cut.messages = must(PyList_New(0));
    const Py_ssize_t end = PyList_GET_SIZE(whole.messages);
    check(PyList_SetSlice(whole.messages, end, end, cut_messages) == 0, "joined");
    Py_DECREF(cut_messages);
    Py_DECREF(must(reader_close(cut.reader, NULL)));
    finish_reading(&whole, &options);
    finish_reading(&cut, &options);
    if (writes) {
        check_writing(in, size);
    }
    return 0;
}
