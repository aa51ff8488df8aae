/* The fast lane of plain sockets: what lane.py describes, from recv() to the hook and from a write to send().

   SocketLane is the base of SocketTransport, PollerLane that of the pollers. What is unusual is left to
   their Python: each function here either does the whole step, or nothing of it. Nothing blocks, so
   the interpreter is not let go for the system calls. All of it runs in the thread of one event loop. */

#include "_framing_api.h"

#include <errno.h>
#include <string.h>
#include <structmember.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>

#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0
#endif

enum { TEXT = 0x1, BINARY = 0x2 };
enum { COPY_MOST = 2048 }; /* a frame up to this size is put together on the stack */
enum { FAIR = 256 };       /* messages of one read after which other tasks get their turn */

#define NAMES(X)                                                                                             \
    X(_readable) X(_receive_failed) X(_receive_raised) X(_receive_ended) X(_wait_to_send) X(_break)          \
    X(flush) X(uncork) X(messages_received) X(hand_on) X(hook_failed) X(waiter) X(done) X(__await__)

typedef struct {
    const FramingApi *framing;
    PyObject *framing_module; /* which the above belongs to */
    PyTypeObject *poller_type;
    PyObject *complain; /* what is called with what a callback has raised */
#define X(name) PyObject *name;
    struct {
        NAMES(X)
    } names;
#undef X
} State;

/* --- the poller's side ------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    PyObject *corked; /* True or False; objects, because such slots are what Python reads fastest */
    PyObject *steps;
    PyObject *waiting;      /* a list */
    PyObject *enter, *leave; /* NULL where no identity is taken */
    PyObject *buffer;       /* NULL, or what the view is of */
    Py_buffer view;
} Poller;

static int
poller_traverse(PyObject *op, visitproc visit, void *arg)
{
    Poller *self = (Poller *)op;
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(self->corked);
    Py_VISIT(self->steps);
    Py_VISIT(self->waiting);
    Py_VISIT(self->enter);
    Py_VISIT(self->leave);
    Py_VISIT(self->buffer);
    return 0;
}

static void
drop_buffer(Poller *self)
{
    if (self->buffer != NULL) {
        PyBuffer_Release(&self->view);
        Py_CLEAR(self->buffer);
    }
}

static int
poller_clear(PyObject *op)
{
    Poller *self = (Poller *)op;
    Py_CLEAR(self->corked);
    Py_CLEAR(self->steps);
    Py_CLEAR(self->waiting);
    Py_CLEAR(self->enter);
    Py_CLEAR(self->leave);
    drop_buffer(self);
    return 0;
}

static void
free_object(PyObject *op, int (*clear)(PyObject *))
{
    PyTypeObject *type = Py_TYPE(op);
    PyObject_GC_UnTrack(op);
    clear(op);
    type->tp_free(op);
    Py_DECREF(type);
}

static void
poller_dealloc(PyObject *op)
{
    free_object(op, poller_clear);
}

static PyObject *
poller_get_buffer(PyObject *op, void *Py_UNUSED(closure))
{
    PyObject *buffer = ((Poller *)op)->buffer;
    return Py_NewRef(buffer == NULL ? Py_None : buffer);
}

static int
poller_set_buffer(PyObject *op, PyObject *value, void *Py_UNUSED(closure))
{
    Poller *self = (Poller *)op;
    Py_buffer view;
    if (value == NULL) {
        PyErr_SetString(PyExc_AttributeError, "buffer cannot be deleted");
        return -1;
    }
    if (PyObject_GetBuffer(value, &view, PyBUF_WRITABLE) < 0) {
        return -1;
    }
    drop_buffer(self);
    self->view = view;
    self->buffer = Py_NewRef(value);
    return 0;
}

static PyMemberDef poller_members[] = {
    {"corked", T_OBJECT_EX, offsetof(Poller, corked), 0, NULL},
    {"steps", T_OBJECT_EX, offsetof(Poller, steps), 0, NULL},
    {"waiting", T_OBJECT_EX, offsetof(Poller, waiting), 0, NULL},
    {"enter", T_OBJECT_EX, offsetof(Poller, enter), 0, NULL},
    {"leave", T_OBJECT_EX, offsetof(Poller, leave), 0, NULL},
    {NULL},
};

static PyGetSetDef poller_getset[] = {
    {"buffer", poller_get_buffer, poller_set_buffer, NULL, NULL},
    {NULL},
};

static PyType_Slot poller_slots[] = {
    {Py_tp_dealloc, poller_dealloc},   {Py_tp_traverse, poller_traverse}, {Py_tp_clear, poller_clear},
    {Py_tp_members, poller_members},   {Py_tp_getset, poller_getset},     {0, NULL},
};

static PyType_Spec poller_spec = {
    .name = "anyio_ws._lane_c.PollerLane",
    .basicsize = sizeof(Poller),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = poller_slots,
};

/* --- the socket's side ------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    /* What the transport's Python reads and writes as well. */
    PyObject *reading, *full, *finishing, *gathered; /* True or False */
    PyObject *rest;                                  /* what the kernel did not take */
    PyObject *outbox;                                /* a list of what was gathered */
    PyObject *poller, *receiver;
    Py_ssize_t buffered, outbox_size;
    unsigned long long reads;
    int fd;
    /* Set by attach(), gone with the receiver. */
    const State *state;
    PyObject *reader;     /* NULL while nothing is attached */
    PyObject *key_source; /* NULL at the server's end */
    Py_ssize_t longest;   /* of the messages that go out in one frame */
    /* Set by arm(). */
    PyObject *inbox, *bell, *hook, *task, *context; /* all NULL, or none */
    bool by_data, running;
} Lane;

static void
detach(Lane *self)
{
    self->state = NULL;
    Py_CLEAR(self->reader);
    Py_CLEAR(self->key_source);
}

static void
disarm(Lane *self)
{
    Py_CLEAR(self->hook); /* the first, because it says whether there are the others */
    Py_CLEAR(self->inbox);
    Py_CLEAR(self->bell);
    Py_CLEAR(self->task);
    Py_CLEAR(self->context);
}

static int
lane_traverse(PyObject *op, visitproc visit, void *arg)
{
    Lane *self = (Lane *)op;
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(self->rest);
    Py_VISIT(self->outbox);
    Py_VISIT(self->poller);
    Py_VISIT(self->receiver);
    Py_VISIT(self->reader);
    Py_VISIT(self->key_source);
    Py_VISIT(self->inbox);
    Py_VISIT(self->bell);
    Py_VISIT(self->hook);
    Py_VISIT(self->task);
    Py_VISIT(self->context);
    return 0;
}

static int
lane_clear(PyObject *op)
{
    Lane *self = (Lane *)op;
    detach(self);
    disarm(self);
    Py_CLEAR(self->reading);
    Py_CLEAR(self->full);
    Py_CLEAR(self->finishing);
    Py_CLEAR(self->gathered);
    Py_CLEAR(self->rest);
    Py_CLEAR(self->outbox);
    Py_CLEAR(self->poller);
    Py_CLEAR(self->receiver);
    return 0;
}

static void
lane_dealloc(PyObject *op)
{
    free_object(op, lane_clear);
}

/* Call a method that returns nothing; -1 when it raises. The reference to the argument is taken over. */
static int
tell(PyObject *object, PyObject *method, PyObject *argument)
{
    if (argument == NULL) {
        return -1;
    }
    PyObject *result = PyObject_CallMethodOneArg(object, method, argument);
    Py_DECREF(argument);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

static int
call(PyObject *object, PyObject *method)
{
    PyObject *result = PyObject_CallMethodNoArgs(object, method);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

static PyObject *
none_or_raise(int status)
{
    return status < 0 ? NULL : Py_NewRef(Py_None);
}

/* Take what was raised, as an object with its traceback. */
static PyObject *
take_raised(void)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    if (traceback != NULL) {
        PyException_SetTraceback(value, traceback);
    }
    Py_XDECREF(type);
    Py_XDECREF(traceback);
    return value;
}

static PyObject *
take_system_error(void)
{
    PyErr_SetFromErrno(PyExc_OSError);
    return take_raised();
}

static void
set_flag(PyObject **flag, bool value)
{
    PyObject *old = *flag;
    *flag = Py_NewRef(value ? Py_True : Py_False);
    Py_XDECREF(old);
}

/* -- what comes in -- */

/* Tell whether the task that calls hooks is parked; -1 for an error. */
static int
is_parked(const Lane *self, const State *state)
{
    if (self->hook == NULL) {
        return 0;
    }
    PyObject *waiter = PyObject_GetAttr(self->bell, state->names.waiter);
    if (waiter == NULL) {
        return -1;
    }
    int parked = waiter != Py_None;
    if (parked && ((Poller *)self->poller)->steps == Py_True) { /* a future, which may be done */
        PyObject *answer = PyObject_CallMethodNoArgs(waiter, state->names.done);
        parked = answer == NULL ? -1 : answer == Py_False;
        Py_XDECREF(answer);
    }
    Py_DECREF(waiter);
    return parked;
}

typedef enum { FAILED = -1, DONE, LEFT } Outcome; /* LEFT: the task has to go on with it */

/* Call the hook for a message, and run its coroutine if it does not wait. */
static Outcome
call_hook(const State *state, bool steps, PyObject *inbox, PyObject *hook, PyObject *argument)
{
    PyObject *result = PyObject_CallOneArg(hook, argument);
    if (result == Py_None) {
        Py_DECREF(result);
        return DONE;
    }
    PyObject *waits_for = NULL;
    if (result != NULL && steps && PyCoro_CheckExact(result)) {
        switch (PyIter_Send(result, Py_None, &waits_for)) {
        case PYGEN_RETURN:
            Py_DECREF(waits_for);
            Py_DECREF(result);
            return DONE;
        case PYGEN_ERROR:
            Py_CLEAR(result);
            break;
        case PYGEN_NEXT:
            break;
        }
    }
    else if (result != NULL) {
        PyObject *method = PyObject_GetAttr(result, state->names.__await__);
        if (method == NULL) {
            const bool is_plain = PyErr_ExceptionMatches(PyExc_AttributeError);
            Py_DECREF(result);
            if (is_plain) {
                PyErr_Clear();
                return DONE;
            }
            result = NULL;
        }
        Py_XDECREF(method);
    }
    if (result == NULL) {
        return tell(inbox, state->names.hook_failed, take_raised()) < 0 ? FAILED : LEFT;
    }
    PyObject *told = waits_for == NULL
                         ? PyObject_CallMethodOneArg(inbox, state->names.hand_on, result)
                         : PyObject_CallMethodObjArgs(inbox, state->names.hand_on, result, waits_for, NULL);
    Py_DECREF(result);
    Py_XDECREF(waits_for);
    Py_XDECREF(told);
    return told == NULL ? FAILED : LEFT;
}

/* Call the hook for data messages one after the other; return how many are dealt with, -1 for an error. */
static Py_ssize_t
call_hooks(Lane *self, const State *state, bool steps, PyObject *messages)
{
    Py_ssize_t position = 0;
    PyObject *inbox = Py_NewRef(self->inbox), *hook = Py_NewRef(self->hook);
    const bool by_data = self->by_data;
    while (position < PyList_GET_SIZE(messages) && position < FAIR) {
        PyObject *message = PyList_GET_ITEM(messages, position);
        if (PyLong_AsLong(PyTuple_GET_ITEM(message, 0)) > BINARY) {
            break;
        }
        if (position) { /* an earlier hook may have had the task woken */
            const int parked = is_parked(self, state);
            if (parked <= 0) {
                position = parked < 0 ? -1 : position;
                break;
            }
        }
        PyObject *argument = by_data ? PyTuple_GET_ITEM(message, 1) : message;
        const Outcome outcome = call_hook(state, steps, inbox, hook, argument);
        position = outcome == FAILED ? -1 : position + 1;
        if (outcome != DONE) {
            break;
        }
    }
    Py_DECREF(inbox);
    Py_DECREF(hook);
    return position;
}

/* Do the same in the name of the task that is parked, and in its context. */
static Py_ssize_t
call_hooks_for_task(Lane *self, const State *state, Poller *poller, PyObject *messages)
{
    const bool steps = poller->steps == Py_True;
    PyObject *task = Py_NewRef(self->task), *context = Py_NewRef(self->context);
    Py_ssize_t count = -1;
    PyObject *entered = steps ? PyObject_CallOneArg(poller->enter, task) : Py_NewRef(Py_None);
    if (entered != NULL && PyContext_Enter(context) == 0) {
        self->running = true;
        count = call_hooks(self, state, steps, messages);
        self->running = false;
        PyObject *raised = count < 0 ? take_raised() : NULL;
        if (PyContext_Exit(context) < 0) {
            count = -1;
        }
        else if (raised != NULL) {
            PyErr_SetObject((PyObject *)Py_TYPE(raised), raised);
        }
        Py_XDECREF(raised);
    }
    if (entered != NULL && steps) {
        PyObject *raised = count < 0 ? take_raised() : NULL;
        PyObject *left = PyObject_CallOneArg(poller->leave, task);
        if (left == NULL) {
            count = -1;
        }
        else if (raised != NULL) {
            PyErr_SetObject((PyObject *)Py_TYPE(raised), raised);
        }
        Py_XDECREF(left);
        Py_XDECREF(raised);
    }
    Py_XDECREF(entered);
    Py_DECREF(task);
    Py_DECREF(context);
    return count;
}

/* Have the messages of one read dealt with: by the hook, where its task is parked, or by the receiver. */
static int
deliver(Lane *self, const State *state, PyObject *messages)
{
    const Py_ssize_t size = PyList_GET_SIZE(messages);
    const bool is_over = state->framing->is_finished(self->reader);
    if (size == 0 && !is_over) {
        return 0;
    }
    const int parked = is_over ? 0 : is_parked(self, state);
    if (parked <= 0) {
        return parked < 0 ? -1 : tell(self->receiver, state->names.messages_received, Py_NewRef(messages));
    }
    PyObject *receiver = Py_NewRef(self->receiver), *keeps_poller = Py_NewRef(self->poller);
    Poller *poller = (Poller *)keeps_poller;
    const bool gathers = size > 1 && poller->corked == Py_False;
    if (gathers) {
        set_flag(&poller->corked, true);
    }
    const Py_ssize_t count = call_hooks_for_task(self, state, poller, messages);
    int status = count < 0 ? -1 : 0;
    if (status == 0 && count < size) {
        status = tell(receiver, state->names.messages_received, PyList_GetSlice(messages, count, size));
    }
    if (gathers) {
        PyObject *raised = status < 0 ? take_raised() : NULL;
        if (call(keeps_poller, state->names.uncork) < 0) {
            status = -1;
        }
        else if (raised != NULL) {
            PyErr_SetObject((PyObject *)Py_TYPE(raised), raised);
        }
        Py_XDECREF(raised);
    }
    Py_DECREF(receiver);
    Py_DECREF(keeps_poller);
    return status;
}

PyDoc_STRVAR(readable_doc,
"readable($self, /)\n--\n\n"
"Receive once, and deal with it; called whenever there is something.");

static PyObject *
lane_readable(PyObject *op, PyObject *Py_UNUSED(nothing))
{
    Lane *self = (Lane *)op;
    const State *state = self->state;
    if (state == NULL) {
        return PyObject_CallMethod(op, "_readable", NULL);
    }
    if (self->reading != Py_True || self->finishing != Py_False
        || state->framing->is_finished(self->reader)) {
        return PyObject_CallMethodNoArgs(op, state->names._readable);
    }
    const Py_buffer *into = &((Poller *)self->poller)->view;
    const ssize_t size = recv(self->fd, into->buf, (size_t)into->len, 0);
    if (size < 0) {
        if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) {
            Py_RETURN_NONE;
        }
        return none_or_raise(tell(op, state->names._receive_failed, take_system_error()));
    }
    if (size == 0) {
        return none_or_raise(call(op, state->names._receive_ended));
    }
    self->reads++;
    PyObject *keeps_self = Py_NewRef(op);
    PyObject *messages = state->framing->feed(self->reader, into->buf, (size_t)size);
    int status = messages == NULL ? -1 : deliver(self, state, messages);
    Py_XDECREF(messages);
    if (status < 0 && PyErr_ExceptionMatches(PyExc_Exception)) {
        status = tell(op, state->names._receive_raised, take_raised());
    }
    Py_DECREF(keeps_self);
    return none_or_raise(status);
}

/* -- what goes out -- */

static bool
is_empty(PyObject *rest)
{
    return rest != NULL && PyBytes_CheckExact(rest) && PyBytes_GET_SIZE(rest) == 0;
}

/* Put a frame together in one object. */
static PyObject *
build_frame(const FramingApi *framing, const uint8_t *header, size_t start, const uint8_t *payload,
            size_t size, const uint8_t *key)
{
    PyObject *frame = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(start + size));
    if (frame != NULL) {
        uint8_t *out = (uint8_t *)PyBytes_AS_STRING(frame);
        memcpy(out, header, start);
        if (key == NULL) {
            memcpy(out + start, payload, size);
        }
        else {
            framing->mask(out + start, payload, size, key);
        }
    }
    return frame;
}

/* Put a frame behind what was gathered; the reference to it is taken over. */
static int
gather(Lane *self, const State *state, PyObject *frame)
{
    if (frame == NULL) {
        return -1;
    }
    const Py_ssize_t size = PyBytes_GET_SIZE(frame);
    const int status = PyList_Append(self->outbox, frame);
    Py_DECREF(frame);
    if (status < 0) {
        return -1;
    }
    self->buffered += size;
    if (self->buffered > self->outbox_size) {
        set_flag(&self->full, true);
        return call((PyObject *)self, state->names.flush);
    }
    if (self->gathered == Py_True) {
        return 0;
    }
    set_flag(&self->gathered, true);
    return PyList_Append(((Poller *)self->poller)->waiting, (PyObject *)self);
}

/* Deal with what send() has told: a frame may have been taken in part, or not at all. */
static int
after_send(Lane *self, const State *state, ssize_t sent, PyObject *frame)
{
    if (frame == NULL) {
        return -1;
    }
    int status = 0;
    const Py_ssize_t size = PyBytes_GET_SIZE(frame);
    if (sent < size) {
        PyObject *rest = sent == 0 ? Py_NewRef(frame)
                                   : PyBytes_FromStringAndSize(PyBytes_AS_STRING(frame) + sent, size - sent);
        status = tell((PyObject *)self, state->names._wait_to_send, rest);
    }
    Py_DECREF(frame);
    return status;
}

/* Send one frame: a short one in one piece, a long one of a server from where its payload is. */
static int
send_frame(Lane *self, const State *state, const uint8_t *header, size_t start, const uint8_t *payload,
           size_t size, const uint8_t *key)
{
    const FramingApi *framing = state->framing;
    uint8_t whole[COPY_MOST];
    PyObject *frame = NULL;
    ssize_t sent;
    if (start + size <= COPY_MOST) {
        memcpy(whole, header, start);
        if (key == NULL) {
            memcpy(whole + start, payload, size);
        }
        else {
            framing->mask(whole + start, payload, size, key);
        }
        sent = send(self->fd, whole, start + size, MSG_NOSIGNAL);
    }
    else if (key == NULL) {
        struct iovec pieces[2] = {{(void *)header, start}, {(void *)payload, size}};
        struct msghdr message = {.msg_iov = pieces, .msg_iovlen = 2};
        sent = sendmsg(self->fd, &message, MSG_NOSIGNAL);
    }
    else {
        frame = build_frame(framing, header, start, payload, size, key);
        if (frame == NULL) {
            return -1;
        }
        sent = send(self->fd, PyBytes_AS_STRING(frame), start + size, MSG_NOSIGNAL);
    }
    if (sent < 0) {
        if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR) {
            PyObject *error = take_system_error();
            Py_XDECREF(frame);
            return tell((PyObject *)self, state->names._break, error);
        }
        sent = 0;
    }
    if ((size_t)sent == start + size) {
        Py_XDECREF(frame);
        return 0;
    }
    if (frame == NULL) {
        frame = build_frame(framing, header, start, payload, size, key);
    }
    return after_send(self, state, sent, frame);
}

/* Send a message, where nothing stands in its way; return whether that was so. */
static PyObject *
send_message(Lane *self, int opcode, PyObject *data)
{
    const State *state = self->state;
    if (state == NULL || self->finishing != Py_False || !is_empty(self->rest)) {
        Py_RETURN_FALSE;
    }
    const bool corked = ((Poller *)self->poller)->corked != Py_False;
    if (!PyList_CheckExact(self->outbox) || (!corked && PyList_GET_SIZE(self->outbox))) {
        Py_RETURN_FALSE;
    }
    const uint8_t *payload;
    size_t size;
    if (state->framing->get_payload(data, &payload, &size) < 0) {
        return NULL;
    }
    if (size > (size_t)self->longest) {
        Py_RETURN_FALSE;
    }
    PyObject *fresh_key = NULL;
    const uint8_t *key = NULL;
    if (self->key_source != NULL) {
        fresh_key = PyObject_CallNoArgs(self->key_source);
        if (fresh_key == NULL) {
            return NULL;
        }
        if (!PyBytes_CheckExact(fresh_key) || PyBytes_GET_SIZE(fresh_key) != 4) {
            Py_DECREF(fresh_key);
            PyErr_SetString(PyExc_TypeError, "masking_key: four bytes are needed");
            return NULL;
        }
        key = (const uint8_t *)PyBytes_AS_STRING(fresh_key);
    }
    uint8_t header[FRAMING_HEADER_MOST];
    const size_t start = state->framing->write_header(header, opcode, key, size);
    const int status
        = corked ? gather(self, state, build_frame(state->framing, header, start, payload, size, key))
                 : send_frame(self, state, header, start, payload, size, key);
    Py_XDECREF(fresh_key);
    if (status < 0) {
        return NULL;
    }
    Py_RETURN_TRUE;
}

PyDoc_STRVAR(send_text_doc,
"send_text($self, data, /)\n--\n\n"
"Send a text message, where nothing stands in its way; return whether that was so.");

static PyObject *
lane_send_text(PyObject *op, PyObject *data)
{
    if (!PyUnicode_CheckExact(data)) {
        Py_RETURN_FALSE;
    }
    return send_message((Lane *)op, TEXT, data);
}

PyDoc_STRVAR(send_bin_doc,
"send_bin($self, data, /)\n--\n\n"
"Send a binary message, where nothing stands in its way; return whether that was so.");

static PyObject *
lane_send_bin(PyObject *op, PyObject *data)
{
    if (!PyBytes_CheckExact(data)) {
        Py_RETURN_FALSE;
    }
    return send_message((Lane *)op, BINARY, data);
}

/* -- what it serves -- */

PyDoc_STRVAR(attach_doc,
"attach($self, reader, masking_key, longest, /)\n--\n\n"
"Serve a connection that is open, until there is another receiver.");

static PyObject *
lane_attach(PyObject *op, PyTypeObject *defining, PyObject *const *args, Py_ssize_t given, PyObject *kwnames)
{
    Lane *self = (Lane *)op;
    const State *state = PyType_GetModuleState(defining);
    if (given != 3 || (kwnames != NULL && PyTuple_GET_SIZE(kwnames))) {
        PyErr_SetString(PyExc_TypeError, "attach() takes reader, masking_key and longest");
        return NULL;
    }
    const Py_ssize_t longest = PyLong_AsSsize_t(args[2]);
    if (longest == -1 && PyErr_Occurred()) {
        return NULL;
    }
    if (!Py_IS_TYPE(args[0], state->framing->reader_type) || self->poller == NULL
        || !PyObject_TypeCheck(self->poller, state->poller_type)
        || ((Poller *)self->poller)->buffer == NULL || self->outbox == NULL || self->receiver == NULL) {
        PyErr_SetString(PyExc_TypeError, "attach() needs a receiver, and the compiled reader and poller");
        return NULL;
    }
    detach(self);
    self->reader = Py_NewRef(args[0]);
    self->key_source = args[1] == Py_None ? NULL : Py_NewRef(args[1]);
    self->longest = longest;
    self->state = state;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(arm_doc,
"arm($self, inbox, bell, hook, by_data, task, context, /)\n--\n\n"
"Have hooks called where their messages come in.");

static PyObject *
lane_arm(PyObject *op, PyObject *const *args, Py_ssize_t given)
{
    Lane *self = (Lane *)op;
    if (given != 6) {
        PyErr_SetString(PyExc_TypeError, "arm() takes inbox, bell, hook, by_data, task and context");
        return NULL;
    }
    const int by_data = PyObject_IsTrue(args[3]);
    if (by_data < 0) {
        return NULL;
    }
    disarm(self);
    self->inbox = Py_NewRef(args[0]);
    self->bell = Py_NewRef(args[1]);
    self->by_data = by_data;
    self->task = Py_NewRef(args[4]);
    self->context = Py_NewRef(args[5]);
    self->hook = Py_NewRef(args[2]);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(disarm_doc,
"disarm($self, /)\n--\n\n"
"Leave the hooks to their task again.");

static PyObject *
lane_disarm(PyObject *op, PyObject *Py_UNUSED(nothing))
{
    disarm((Lane *)op);
    Py_RETURN_NONE;
}

/* The receiver and the poller are what attach() relies on: another one detaches. */

static PyObject *
get_relied_on(PyObject *op, void *offset)
{
    PyObject *object = *(PyObject **)((char *)op + (size_t)offset);
    return Py_NewRef(object == NULL ? Py_None : object);
}

static int
set_relied_on(PyObject *op, PyObject *value, void *offset)
{
    PyObject **place = (PyObject **)((char *)op + (size_t)offset), *old = *place;
    detach((Lane *)op);
    *place = value == Py_None ? NULL : Py_XNewRef(value);
    Py_XDECREF(old);
    return 0;
}

static PyObject *
lane_get_running(PyObject *op, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(((Lane *)op)->running);
}

static PyMethodDef lane_methods[] = {
    {"readable", lane_readable, METH_NOARGS, readable_doc},
    {"send_text", lane_send_text, METH_O, send_text_doc},
    {"send_bin", lane_send_bin, METH_O, send_bin_doc},
    {"attach", (PyCFunction)(void (*)(void))lane_attach, METH_METHOD | METH_FASTCALL | METH_KEYWORDS,
     attach_doc},
    {"arm", (PyCFunction)(void (*)(void))lane_arm, METH_FASTCALL, arm_doc},
    {"disarm", lane_disarm, METH_NOARGS, disarm_doc},
    {NULL},
};

static PyMemberDef lane_members[] = {
    {"reading", T_OBJECT_EX, offsetof(Lane, reading), 0, NULL},
    {"full", T_OBJECT_EX, offsetof(Lane, full), 0, NULL},
    {"buffered", T_PYSSIZET, offsetof(Lane, buffered), 0, NULL},
    {"reads", T_ULONGLONG, offsetof(Lane, reads), 0, NULL},
    {"_finishing", T_OBJECT_EX, offsetof(Lane, finishing), 0, NULL},
    {"_gathered", T_OBJECT_EX, offsetof(Lane, gathered), 0, NULL},
    {"_rest", T_OBJECT_EX, offsetof(Lane, rest), 0, NULL},
    {"_outbox", T_OBJECT_EX, offsetof(Lane, outbox), 0, NULL},
    {"_outbox_size", T_PYSSIZET, offsetof(Lane, outbox_size), 0, NULL},
    {"_fd", T_INT, offsetof(Lane, fd), 0, NULL},
    {NULL},
};

static PyGetSetDef lane_getset[] = {
    {"receiver", get_relied_on, set_relied_on, NULL, (void *)offsetof(Lane, receiver)},
    {"_poller", get_relied_on, set_relied_on, NULL, (void *)offsetof(Lane, poller)},
    {"is_running", lane_get_running, NULL, NULL, NULL},
    {NULL},
};

static PyType_Slot lane_slots[] = {
    {Py_tp_dealloc, lane_dealloc}, {Py_tp_traverse, lane_traverse}, {Py_tp_clear, lane_clear},
    {Py_tp_methods, lane_methods}, {Py_tp_members, lane_members},   {Py_tp_getset, lane_getset},
    {0, NULL},
};

static PyType_Spec lane_spec = {
    .name = "anyio_ws._lane_c.SocketLane",
    .basicsize = sizeof(Lane),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = lane_slots,
};

/* --- watching sockets -------------------------------------------------------------------------- */

#ifdef __linux__

#include <sys/epoll.h>
#include <unistd.h>

enum { READ, WRITE, WAYS };
enum { BATCH = 128 }; /* sockets that are dealt with before other tasks get their turn */

typedef struct {
    PyObject *callbacks[WAYS]; /* NULL for what is not watched */
    uint32_t generation;       /* of the file descriptor's number, which may be given again */
} Watched;

typedef struct {
    PyObject_HEAD
    int epoll;        /* -1 when closed */
    Watched *watched; /* by file descriptor */
    size_t size;
} Watcher;

static int
watcher_traverse(PyObject *op, visitproc visit, void *arg)
{
    Watcher *self = (Watcher *)op;
    Py_VISIT(Py_TYPE(op));
    for (size_t fd = 0; fd < self->size; fd++) {
        Py_VISIT(self->watched[fd].callbacks[READ]);
        Py_VISIT(self->watched[fd].callbacks[WRITE]);
    }
    return 0;
}

static int
watcher_clear(PyObject *op)
{
    Watcher *self = (Watcher *)op;
    if (self->epoll >= 0) {
        close(self->epoll);
        self->epoll = -1;
    }
    Watched *watched = self->watched;
    const size_t size = self->size;
    self->watched = NULL;
    self->size = 0;
    for (size_t fd = 0; fd < size; fd++) {
        Py_XDECREF(watched[fd].callbacks[READ]);
        Py_XDECREF(watched[fd].callbacks[WRITE]);
    }
    PyMem_Free(watched);
    return 0;
}

static void
watcher_dealloc(PyObject *op)
{
    free_object(op, watcher_clear);
}

static PyObject *
watcher_new(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs))
{
    Watcher *self = (Watcher *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (self->epoll < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

/* Make room for a file descriptor; most are small, because the system gives the smallest. */
static int
make_room(Watcher *self, size_t fd)
{
    if (fd < self->size) {
        return 0;
    }
    const size_t size = fd + fd / 2 + 64;
    Watched *watched = PyMem_Realloc(self->watched, size * sizeof(Watched));
    if (watched == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    memset(watched + self->size, 0, (size - self->size) * sizeof(Watched));
    self->watched = watched;
    self->size = size;
    return 0;
}

/* Have the system watch what has callbacks, and nothing else; -1 with an OSError. */
static int
control(Watcher *self, int fd, bool was_watched)
{
    const Watched *entry = &self->watched[fd];
    struct epoll_event event = {.data.u64 = (uint64_t)entry->generation << 32 | (uint32_t)fd};
    event.events = (entry->callbacks[READ] ? EPOLLIN : 0) | (entry->callbacks[WRITE] ? EPOLLOUT : 0);
    const int how = !event.events ? EPOLL_CTL_DEL : was_watched ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    if (epoll_ctl(self->epoll, how, fd, &event) < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    return 0;
}

/* Exchange a callback, NULL for none; a watcher that is closed does nothing. */
static PyObject *
set_callback(Watcher *self, PyObject *number, int way, PyObject *callback)
{
    const int fd = PyObject_AsFileDescriptor(number);
    if (fd < 0) {
        return NULL;
    }
    if (self->epoll < 0 || (callback == NULL && (size_t)fd >= self->size)) {
        Py_RETURN_NONE;
    }
    if (make_room(self, (size_t)fd) < 0) {
        return NULL;
    }
    Watched *entry = &self->watched[fd];
    const bool was_watched = entry->callbacks[READ] != NULL || entry->callbacks[WRITE] != NULL;
    PyObject *old = entry->callbacks[way];
    if (!was_watched) {
        entry->generation++;
    }
    entry->callbacks[way] = Py_XNewRef(callback);
    int status = 0;
    if ((old == NULL) != (callback == NULL)) {
        status = control(self, fd, was_watched);
        if (status < 0 && callback != NULL) {
            entry->callbacks[way] = NULL;
            Py_DECREF(callback);
        }
    }
    Py_XDECREF(old);
    return none_or_raise(status);
}

static PyObject *
watch(PyObject *op, PyObject *const *args, Py_ssize_t given, int way)
{
    if (given != 2) {
        PyErr_SetString(PyExc_TypeError, "a file descriptor and a callback are needed");
        return NULL;
    }
    return set_callback((Watcher *)op, args[0], way, args[1]);
}

static PyObject *
watch_readable(PyObject *op, PyObject *const *args, Py_ssize_t given)
{
    return watch(op, args, given, READ);
}

static PyObject *
watch_writable(PyObject *op, PyObject *const *args, Py_ssize_t given)
{
    return watch(op, args, given, WRITE);
}

static PyObject *
unwatch_readable(PyObject *op, PyObject *fd)
{
    return set_callback((Watcher *)op, fd, READ, NULL);
}

static PyObject *
unwatch_writable(PyObject *op, PyObject *fd)
{
    return set_callback((Watcher *)op, fd, WRITE, NULL);
}

/* Call what watches a socket for an event, unless it was taken back a moment ago. */
static int
call_back(Watcher *self, const State *state, const struct epoll_event *event, int way)
{
    const uint32_t fd = (uint32_t)event->data.u64;
    if (fd >= self->size || self->watched[fd].generation != event->data.u64 >> 32
        || self->watched[fd].callbacks[way] == NULL) {
        return 0;
    }
    PyObject *callback = Py_NewRef(self->watched[fd].callbacks[way]);
    PyObject *result = PyObject_CallNoArgs(callback);
    Py_DECREF(callback);
    if (result == NULL && PyErr_ExceptionMatches(PyExc_Exception)) {
        PyObject *raised = take_raised();
        result = raised == NULL ? NULL : PyObject_CallOneArg(state->complain, raised);
        Py_XDECREF(raised);
    }
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

PyDoc_STRVAR(call_all_doc,
"call_all($self, /)\n--\n\n"
"Call what watches the sockets that are ready.");

static PyObject *
watcher_call_all(PyObject *op, PyTypeObject *defining, PyObject *const *Py_UNUSED(args), Py_ssize_t given,
                 PyObject *Py_UNUSED(kwnames))
{
    Watcher *self = (Watcher *)op;
    const State *state = PyType_GetModuleState(defining);
    struct epoll_event events[BATCH];
    if (given) {
        PyErr_SetString(PyExc_TypeError, "call_all() takes no arguments");
        return NULL;
    }
    if (self->epoll < 0) {
        Py_RETURN_NONE;
    }
    const int count = epoll_wait(self->epoll, events, BATCH, 0);
    if (count < 0 && errno != EINTR) {
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    for (int i = 0; i < count; i++) {
        /* An error or a hang-up is for both ways: what is tried then will tell. */
        if (((events[i].events & ~(uint32_t)EPOLLOUT) && call_back(self, state, &events[i], READ) < 0)
            || ((events[i].events & ~(uint32_t)EPOLLIN) && call_back(self, state, &events[i], WRITE) < 0)) {
            return NULL;
        }
    }
    Py_RETURN_NONE;
}

static PyObject *
watcher_fileno(PyObject *op, PyObject *Py_UNUSED(nothing))
{
    return PyLong_FromLong(((Watcher *)op)->epoll);
}

static PyObject *
watcher_close(PyObject *op, PyObject *Py_UNUSED(nothing))
{
    watcher_clear(op);
    Py_RETURN_NONE;
}

#define FAST(function) (PyCFunction)(void (*)(void))function

static PyMethodDef watcher_methods[] = {
    {"watch_readable", FAST(watch_readable), METH_FASTCALL, NULL},
    {"watch_writable", FAST(watch_writable), METH_FASTCALL, NULL},
    {"unwatch_readable", unwatch_readable, METH_O, NULL},
    {"unwatch_writable", unwatch_writable, METH_O, NULL},
    {"call_all", FAST(watcher_call_all), METH_METHOD | METH_FASTCALL | METH_KEYWORDS, call_all_doc},
    {"fileno", watcher_fileno, METH_NOARGS, NULL},
    {"close", watcher_close, METH_NOARGS, NULL},
    {NULL},
};

static PyType_Slot watcher_slots[] = {
    {Py_tp_new, watcher_new},           {Py_tp_dealloc, watcher_dealloc},
    {Py_tp_traverse, watcher_traverse}, {Py_tp_clear, watcher_clear},
    {Py_tp_methods, watcher_methods},   {0, NULL},
};

static PyType_Spec watcher_spec = {
    .name = "anyio_ws._lane_c.Watcher",
    .basicsize = sizeof(Watcher),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = watcher_slots,
};

#endif

/* --- the module -------------------------------------------------------------------------------- */

static PyObject *
add_type(PyObject *module, PyType_Spec *spec, const char *name)
{
    PyObject *type = PyType_FromModuleAndSpec(module, spec, NULL);
    if (type != NULL && PyModule_AddObjectRef(module, name, type) < 0) {
        Py_CLEAR(type);
    }
    return type;
}

static int
lane_exec(PyObject *module)
{
    State *state = PyModule_GetState(module);
#define X(name)                                                                                              \
    if ((state->names.name = PyUnicode_InternFromString(#name)) == NULL) {                                   \
        return -1;                                                                                           \
    }
    NAMES(X)
#undef X
    state->framing_module = PyImport_ImportModule("anyio_ws._framing_c");
    if (state->framing_module == NULL) {
        return -1;
    }
    PyObject *capsule = PyObject_GetAttrString(state->framing_module, "_api");
    state->framing = capsule == NULL ? NULL : PyCapsule_GetPointer(capsule, FRAMING_API_NAME);
    Py_XDECREF(capsule);
    if (state->framing == NULL) {
        return -1;
    }
    state->poller_type = (PyTypeObject *)add_type(module, &poller_spec, "PollerLane");
    PyObject *socket_type = state->poller_type == NULL ? NULL : add_type(module, &lane_spec, "SocketLane");
    Py_XDECREF(socket_type);
    if (socket_type == NULL) {
        return -1;
    }
    PyObject *twins = PyImport_ImportModule("anyio_ws._lane_py");
    state->complain = twins == NULL ? NULL : PyObject_GetAttrString(twins, "complain");
#ifdef __linux__
    PyObject *watcher_type = state->complain == NULL ? NULL : add_type(module, &watcher_spec, "Watcher");
#else
    PyObject *watcher_type = state->complain == NULL ? NULL : PyObject_GetAttrString(twins, "Watcher");
    if (watcher_type != NULL && PyModule_AddObjectRef(module, "Watcher", watcher_type) < 0) {
        Py_CLEAR(watcher_type);
    }
#endif
    Py_XDECREF(twins);
    Py_XDECREF(watcher_type);
    return watcher_type == NULL ? -1 : 0;
}

static int
module_traverse(PyObject *module, visitproc visit, void *arg)
{
    State *state = PyModule_GetState(module);
    Py_VISIT(state->framing_module);
    Py_VISIT(state->poller_type);
    Py_VISIT(state->complain);
    return 0;
}

static int
module_clear(PyObject *module)
{
    State *state = PyModule_GetState(module);
    Py_CLEAR(state->framing_module);
    Py_CLEAR(state->poller_type);
    Py_CLEAR(state->complain);
#define X(name) Py_CLEAR(state->names.name);
    NAMES(X)
#undef X
    return 0;
}

static void
module_free(void *module)
{
    module_clear(module);
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, lane_exec},
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "anyio_ws._lane_c",
    .m_doc = "The fast lane of plain sockets, which lane.py describes.",
    .m_size = sizeof(State),
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC
PyInit__lane_c(void)
{
    return PyModuleDef_Init(&module_definition);
}
