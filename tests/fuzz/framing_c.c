/* libFuzzer's way into the compiled framing: any bytes are a stream, and options in front of it.

   What is checked besides the sanitizers: nothing but violations ends a reading; the same stream cut
   otherwise gives the same messages and the same error; every buffer that was lent comes back; a frame
   that is built from a payload is read as that payload. tests/fuzz/run builds it and runs it. */

#include "../../anyio_ws/_framing_c.c"
#include <stdio.h>

static PyObject *namespace; /* of SETUP below */

static const char SETUP[] =
    "import sys\n"
    "sys.path.insert(0, ROOT)\n"
    "import _framing_c\n"
    "from anyio_ws.deflate import Inflater\n"
    "class Lender:\n"
    "    def __init__(self, spare):\n"
    "        self.out = 0\n"
    "        self.spare = spare\n"
    "    def take(self, size):\n"
    "        self.out += 1\n"
    "        return bytearray(size + self.spare)\n"
    "    def give(self, buffer):\n"
    "        self.out -= 1\n"
    "        buffer.append(0)\n" /* a BufferError while there is a view of it */
    "def make(masked, limit, utf8, view, compression, spare):\n"
    "    lender = None if spare < 0 else Lender(spare)\n"
    "    inflater = Inflater(True, 15) if compression else None\n"
    "    return lender, _framing_c.MessageReader(masked=masked, max_message_size=limit, utf8=utf8,\n"
    "        view=view, inflater=inflater, buffers=lender)\n"
    "def finish(lender, reader, messages, limit):\n"
    "    error = reader.error and (reader.error.code, reader.error.reason)\n"
    "    assert error is None or (reader.finished and error[0] in (1002, 1007, 1008, 1009))\n"
    "    finished = reader.finished\n"
    "    reader.close()\n"
    "    said = []\n"
    "    for type_, data in messages:\n"
    "        said.append((type_, type(data), bytes(data) if type(data) is memoryview else data))\n"
    "        assert len(data) <= max(limit, 125)\n"
    "        if type(data) is memoryview:\n"
    "            buffer = data.obj\n"
    "            data.release()\n"
    "            if lender is not None:\n"
    "                lender.give(buffer)\n"
    "    assert lender is None or lender.out == 0\n"
    "    return said, error, finished\n";

/* Get something that must be there. */
static PyObject *
must(PyObject *object)
{
    if (object == NULL || PyErr_Occurred()) {
        PyErr_Print();
        abort();
    }
    return object;
}

int
LLVMFuzzerInitialize(int *argc, char ***argv)
{
    PyImport_AppendInittab("_framing_c", PyInit__framing_c);
    Py_InitializeEx(0);
    namespace = must(PyDict_New());
    PyObject *root = must(PyUnicode_FromString(FUZZ_ROOT));
    PyDict_SetItemString(namespace, "ROOT", root);
    PyDict_SetItemString(namespace, "__builtins__", PyEval_GetBuiltins());
    Py_DECREF(root);
    Py_DECREF(must(PyRun_String(SETUP, Py_file_input, namespace, namespace)));
    return 0;
}

typedef struct {
    bool masked, utf8, view, compression, as_views;
    int spare;
    long limit;
} Choice;

/* Read a stream in pieces of changing sizes, whole if *step* is 0; return what the reader says. */
static PyObject *
read_stream(const Choice *choice, const uint8_t *in, size_t size, unsigned step)
{
    PyObject *pair = must(PyObject_CallFunction(PyDict_GetItemString(namespace, "make"), "iliiii",
                                                choice->masked, choice->limit, choice->utf8, choice->view,
                                                choice->compression, choice->spare));
    PyObject *reader = PyTuple_GET_ITEM(pair, 1);
    PyObject *messages = must(PyList_New(0));
    do {
        size_t taken = step == 0 || step > size ? size : step;
        step = step * 5 % 61 + (step != 0);
        PyObject *piece = must(PyBytes_FromStringAndSize((const char *)in, (Py_ssize_t)taken));
        if (choice->as_views) {
            PyObject *bytes = piece;
            piece = must(PyMemoryView_FromObject(bytes));
            Py_DECREF(bytes);
        }
        PyObject *more = must(PyObject_CallMethod(reader, "feed", "O", piece));
        Py_DECREF(piece);
        PyObject *sum = must(PySequence_InPlaceConcat(messages, more));
        Py_DECREF(more);
        Py_DECREF(messages);
        messages = sum;
        in += taken, size -= taken;
    } while (size);
    PyObject *said = must(PyObject_CallFunction(PyDict_GetItemString(namespace, "finish"), "OOOl",
                                                PyTuple_GET_ITEM(pair, 0), reader, messages, choice->limit));
    Py_DECREF(messages);
    Py_DECREF(pair);
    return said;
}

static void
check_cuts(const Choice *choice, const uint8_t *in, size_t size, uint8_t step)
{
    PyObject *whole = read_stream(choice, in, size, 0);
    PyObject *cut = read_stream(choice, in, size, 1 + step);
    /* Of data that is invalid in more than one way zlib says first what it meets first in one call. */
    const bool same = choice->compression ? PyTuple_GET_ITEM(whole, 2) == PyTuple_GET_ITEM(cut, 2)
                                          : PyObject_RichCompareBool(whole, cut, Py_EQ) == 1;
    if (!same) {
        PyObject_Print(whole, stderr, 0);
        PyObject_Print(cut, stderr, 0);
        abort();
    }
    Py_DECREF(whole);
    Py_DECREF(cut);
}

/* Build a frame of the bytes, read it back, mask the bytes in place twice. */
static void
check_writing(const uint8_t *in, size_t size, const uint8_t *key)
{
    PyObject *payload = must(PyByteArray_FromStringAndSize((const char *)in, (Py_ssize_t)size));
    PyObject *module = PyDict_GetItemString(namespace, "_framing_c");
    PyObject *masking_key = must(PyBytes_FromStringAndSize((const char *)key, KEY_SIZE));
    PyObject *args = must(Py_BuildValue("(iO)", BINARY, payload));
    PyObject *kwargs = must(Py_BuildValue("{sO}", "masking_key", masking_key));
    PyObject *method = must(PyObject_GetAttrString(module, "frame"));
    PyObject *frame = must(PyObject_Call(method, args, kwargs));
    const Choice choice = {.masked = true, .spare = -1, .limit = 1 << 20};
    PyObject *said = read_stream(&choice, (const uint8_t *)PyBytes_AS_STRING(frame),
                                 (size_t)PyBytes_GET_SIZE(frame), 0);
    PyObject *message = PyList_GET_ITEM(PyTuple_GET_ITEM(said, 0), 0);
    if (PyObject_RichCompareBool(PyTuple_GET_ITEM(message, 2), payload, Py_EQ) != 1) {
        abort();
    }
    for (int i = 0; i < 2; i++) {
        PyObject *mask_args = must(Py_BuildValue("(OO)", payload, masking_key));
        PyObject *mask_kwargs = must(Py_BuildValue("{sO}", "in_place", Py_True));
        PyObject *mask_method = must(PyObject_GetAttrString(module, "mask"));
        Py_DECREF(must(PyObject_Call(mask_method, mask_args, mask_kwargs)));
        Py_DECREF(mask_method);
        Py_DECREF(mask_args);
        Py_DECREF(mask_kwargs);
    }
    if (memcmp(PyByteArray_AS_STRING(payload), in, size) != 0) {
        abort();
    }
    Py_DECREF(said);
    Py_DECREF(frame);
    Py_DECREF(method);
    Py_DECREF(kwargs);
    Py_DECREF(args);
    Py_DECREF(masking_key);
    Py_DECREF(payload);
}

int
LLVMFuzzerTestOneInput(const uint8_t *in, size_t size)
{
    static const long limits[] = {0, 20, 200, 100000};
    if (size < 3) {
        return 0;
    }
    const Choice choice = {
        .masked = in[0] & 1,
        .utf8 = !(in[0] & 2),
        .view = in[0] & 4,
        .compression = in[0] & 8,
        .as_views = in[0] & 16,
        .spare = in[0] & 32 ? (in[0] & 64 ? 0 : 7) : -1,
        .limit = limits[in[1] % 4],
    };
    check_cuts(&choice, in + 3, size - 3, in[2]);
    if (in[1] & 128 && size > 3 + KEY_SIZE) {
        check_writing(in + 3, size - 3, in + 3);
    }
    return 0;
}
