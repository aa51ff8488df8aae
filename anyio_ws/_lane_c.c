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

enum { CONTINUATION = 0x0, TEXT = 0x1, BINARY = 0x2, FIN = 0x80 };
enum { FRAGMENT = 65535 };     /* as in framing.py */
enum { MOST_FRAGMENTS = 512 }; /* that are sent in one call; the system takes 1024 pieces */
enum { COPY_MOST = 2048 };     /* a frame up to this size is put together on the stack */
enum { PIECE = 65536 };        /* bytes that are gathered at most, as in transport.py */
enum { BRIEF = 4096 };         /* a read of fewer bytes took little time, as in sockets.py */

#define NAMES(X)                                                                                             \
    X(_readable) X(_receive_failed) X(_receive_raised) X(_receive_ended) X(_wait_to_send) X(_keep)           \
    X(_break) X(flush) X(uncork) X(messages_received) X(put_off) X(hand_on) X(hook_failed) X(waiter)         \
    X(done) X(__await__) X(_socket) X(fileno)

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
    PyObject *calling;       /* NULL, or the task that runs */
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
    Py_VISIT(self->calling);
    Py_VISIT(self->buffer);
    return 0;
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
    Py_CLEAR(self->calling);
    if (self->buffer != NULL) {
        PyBuffer_Release(&self->view);
        Py_CLEAR(self->buffer);
    }
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

/* It is set once: what was received into it may be in use. */
static int
poller_set_buffer(PyObject *op, PyObject *value, void *Py_UNUSED(closure))
{
    Poller *self = (Poller *)op;
    Py_buffer view = {0};
    if (value != NULL && PyObject_GetBuffer(value, &view, PyBUF_WRITABLE) < 0) {
        return -1;
    }
    if (value == NULL || self->buffer != NULL) {
        PyBuffer_Release(&view);
        PyErr_SetString(PyExc_AttributeError, "buffer: a poller keeps the one that it has");
        return -1;
    }
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
    {"calling", T_OBJECT_EX, offsetof(Poller, calling), 0, NULL},
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
    Py_ssize_t buffered, outbox_size, read_size;
    unsigned long long reads;
    int fd;
    /* Set by attach(), gone with the receiver. */
    const State *state;   /* NULL while nothing is attached */
    PyObject *reader;
    PyObject *key_source; /* NULL at the server's end */
    PyObject *socket;     /* see is_still_open() */
    Py_ssize_t longest;   /* of the messages that go out in one frame */
    /* Set by arm(). */
    PyObject *inbox, *bell, *hook, *task, *context; /* all NULL, or none */
    bool by_data, running;
} Lane;

/* Whatever is let go may run Python that calls us again: it finds all of the old, or nothing of it. */

static void
detach(Lane *self)
{
    PyObject *const old[] = {self->reader, self->key_source, self->socket};
    self->state = NULL;
    self->reader = self->key_source = self->socket = NULL;
    for (size_t i = 0; i < Py_ARRAY_LENGTH(old); i++) {
        Py_XDECREF(old[i]);
    }
}

static void
disarm(Lane *self)
{
    PyObject *const old[] = {self->hook, self->inbox, self->bell, self->task, self->context};
    self->hook = self->inbox = self->bell = self->task = self->context = NULL;
    for (size_t i = 0; i < Py_ARRAY_LENGTH(old); i++) {
        Py_XDECREF(old[i]);
    }
}

static int
lane_traverse(PyObject *op, visitproc visit, void *arg)
{
    Lane *self = (Lane *)op;
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(self->reading);
    Py_VISIT(self->full);
    Py_VISIT(self->finishing);
    Py_VISIT(self->gathered);
    Py_VISIT(self->rest);
    Py_VISIT(self->outbox);
    Py_VISIT(self->poller);
    Py_VISIT(self->receiver);
    Py_VISIT(self->reader);
    Py_VISIT(self->key_source);
    Py_VISIT(self->socket);
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

/* Raise an exception again, unless there is another one by now; the reference to it is taken over. */
static void
raise_again(PyObject *raised)
{
    if (raised != NULL && !PyErr_Occurred()) {
        PyErr_SetObject((PyObject *)Py_TYPE(raised), raised);
    }
    Py_XDECREF(raised);
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

/* Get the file descriptor that a socket.socket has now: it is the first that there is of one. attach()
   makes sure of that. */
static int
get_fd(PyObject *socket)
{
    int fd;
    memcpy(&fd, (const char *)socket + sizeof(PyObject), sizeof fd);
    return fd;
}

/* Tell whether the socket has our file descriptor still. Who has closed it himself, or detached it, may
   have made it another's; the socket's own methods fail then. */
static bool
is_still_open(const Lane *self)
{
    return get_fd(self->socket) == self->fd;
}

/* -- what comes in -- */

/* Tell whether the task that calls hooks is parked; -1 for an error. */
static int
is_parked(const Lane *self, const State *state, bool steps)
{
    if (self->hook == NULL) {
        return 0;
    }
    PyObject *bell = Py_NewRef(self->bell);
    PyObject *waiter = PyObject_GetAttr(bell, state->names.waiter);
    Py_DECREF(bell);
    if (waiter == NULL) {
        return -1;
    }
    int parked = waiter != Py_None;
    if (parked && steps) { /* a future, which may be done */
        PyObject *answer = PyObject_CallMethodNoArgs(waiter, state->names.done);
        parked = answer == NULL ? -1 : answer == Py_False;
        Py_XDECREF(answer);
    }
    Py_DECREF(waiter);
    return parked > 0 && self->hook == NULL ? 0 : parked;
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
call_hooks(const Lane *self, const State *state, bool steps, PyObject *inbox, PyObject *hook, bool by_data,
           PyObject *messages)
{
    Py_ssize_t position = 0;
    while (position < PyList_GET_SIZE(messages)) {
        PyObject *message = PyList_GET_ITEM(messages, position);
        if (PyLong_AsLong(PyTuple_GET_ITEM(message, 0)) > BINARY) {
            break;
        }
        if (position) { /* an earlier hook may have had the task woken, or another one called */
            const int parked = self->hook == hook ? is_parked(self, state, steps) : 0;
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
    return position;
}

/* Do the same in the name of the task that is parked, and in its context. */
static Py_ssize_t
call_hooks_for_task(Lane *self, const State *state, Poller *poller, PyObject *messages)
{
    const bool steps = poller->steps == Py_True, by_data = self->by_data;
    PyObject *const used[] = {self->inbox,   self->hook,    self->task,
                              self->context, poller->enter, poller->leave};
    for (size_t i = 0; i < Py_ARRAY_LENGTH(used); i++) { /* any of them may be replaced meanwhile */
        Py_INCREF(used[i]);
    }
    PyObject *const inbox = used[0], *const hook = used[1], *const task = used[2];
    PyObject *const context = used[3], *const enter = used[4], *const leave = used[5];
    Py_ssize_t count = -1;
    PyObject *entered = steps ? PyObject_CallOneArg(enter, task) : Py_NewRef(Py_None);
    const bool is_own = task == poller->calling;
    if (entered != NULL && (is_own || PyContext_Enter(context) == 0)) {
        self->running = true;
        count = call_hooks(self, state, steps, inbox, hook, by_data, messages);
        self->running = false;
        PyObject *raised = count < 0 ? take_raised() : NULL;
        if (!is_own && PyContext_Exit(context) < 0) {
            count = -1;
        }
        raise_again(raised);
    }
    if (entered != NULL && steps) {
        PyObject *raised = count < 0 ? take_raised() : NULL;
        PyObject *left = PyObject_CallOneArg(leave, task);
        if (left == NULL) {
            count = -1;
        }
        raise_again(raised);
        Py_XDECREF(left);
    }
    Py_XDECREF(entered);
    for (size_t i = 0; i < Py_ARRAY_LENGTH(used); i++) {
        Py_DECREF(used[i]);
    }
    return count;
}

/* Have the hook called for the messages of one read, and the receiver for those that are left then; the
   replies leave together. */
static int
call_hooks_and_receiver(Lane *self, const State *state, Poller *poller, PyObject *receiver,
                        PyObject *messages)
{
    const Py_ssize_t size = PyList_GET_SIZE(messages);
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
        if (call((PyObject *)poller, state->names.uncork) < 0) {
            status = -1;
        }
        raise_again(raised);
    }
    return status;
}

/* Hand over what the reader has not looked at; the receiver has nothing more be read then. */
static int
put_off_rest(const State *state, PyObject *reader, PyObject *receiver, const uint8_t *in, size_t size)
{
    const size_t left = state->framing->get_left(reader);
    if (left == 0) {
        return 0;
    }
    PyObject *rest = PyBytes_FromStringAndSize((const char *)in + size - left, (Py_ssize_t)left);
    return tell(receiver, state->names.put_off, rest);
}

/* Have received bytes dealt with. */
static int
deliver(Lane *self, const State *state, PyObject *reader, Poller *poller, PyObject *receiver, size_t received)
{
    PyObject *messages = state->framing->feed(reader, poller->view.buf, received);
    if (messages == NULL) {
        return -1;
    }
    const Py_ssize_t size = PyList_GET_SIZE(messages);
    const bool is_over = state->framing->is_finished(reader);
    /* First, because hooks may end or close the connection. */
    int status = put_off_rest(state, reader, receiver, poller->view.buf, received);
    if (status == 0 && (size || is_over)) {
        const bool steps = poller->steps == Py_True;
        const int parked = is_over ? 0 : is_parked(self, state, steps);
        if (parked < 0) {
            status = -1;
        }
        else if (parked && poller->enter != NULL && poller->leave != NULL) {
            status = call_hooks_and_receiver(self, state, poller, receiver, messages);
        }
        else {
            status = tell(receiver, state->names.messages_received, Py_NewRef(messages));
        }
    }
    Py_DECREF(messages);
    return status;
}

PyDoc_STRVAR(readable_doc,
"readable($self, /)\n--\n\n"
"Receive once, and deal with it; return whether that was little. Called whenever there is something.");

static PyObject *
lane_readable(PyObject *op, PyObject *Py_UNUSED(nothing))
{
    Lane *self = (Lane *)op;
    const State *state = self->state;
    if (state == NULL) {
        return PyObject_CallMethod(op, "_readable", NULL);
    }
    Poller *poller = (Poller *)self->poller;
    if (self->reading != Py_True || self->finishing != Py_False || poller->buffer == NULL || self->read_size <= 0
        || state->framing->is_finished(self->reader) || !is_still_open(self)) {
        return PyObject_CallMethodNoArgs(op, state->names._readable);
    }
    const Py_ssize_t room = self->read_size < poller->view.len ? self->read_size : poller->view.len;
    const ssize_t size = recv(self->fd, poller->view.buf, (size_t)room, 0);
    if (size < 0) {
        if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) {
            Py_RETURN_FALSE;
        }
        return tell(op, state->names._receive_failed, take_system_error()) < 0 ? NULL : Py_NewRef(Py_False);
    }
    int status;
    if (size == 0) {
        status = call(op, state->names._receive_ended);
    }
    else {
        self->reads++;
        /* Any of them may be replaced by what is called now. */
        PyObject *reader = Py_NewRef(self->reader), *receiver = Py_NewRef(self->receiver);
        Py_INCREF(poller);
        status = deliver(self, state, reader, poller, receiver, (size_t)size);
        Py_DECREF(poller);
        Py_DECREF(receiver);
        Py_DECREF(reader);
    }
    if (status < 0 && PyErr_ExceptionMatches(PyExc_Exception)) {
        status = tell(op, state->names._receive_raised, take_raised());
    }
    return status < 0 ? NULL : PyBool_FromLong(size > 0 && size < BRIEF);
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
    const bool is_full = self->buffered + size > self->outbox_size;
    const bool flushes = is_full || self->buffered + size >= PIECE;
    int status = 0;
    if (!flushes && self->gathered != Py_True) { /* before the frame, which would stay for ever without it */
        status = PyList_Append(((Poller *)self->poller)->waiting, (PyObject *)self);
        if (status == 0) {
            set_flag(&self->gathered, true);
        }
    }
    if (status == 0) {
        status = PyList_Append(self->outbox, frame);
    }
    Py_DECREF(frame);
    if (status < 0) {
        return -1;
    }
    self->buffered += size;
    if (is_full) {
        set_flag(&self->full, true);
    }
    return flushes ? call((PyObject *)self, state->names.flush) : 0;
}

/* Deal with a frame of which send() has taken a part, or nothing: NULL if there was no memory for it. The
   reference to it is taken over. */
static int
after_send(Lane *self, const State *state, ssize_t sent, PyObject *frame)
{
    PyObject *rest = frame;
    if (frame != NULL && sent) {
        rest = PyBytes_FromStringAndSize(PyBytes_AS_STRING(frame) + sent, PyBytes_GET_SIZE(frame) - sent);
        Py_DECREF(frame);
    }
    if (rest == NULL && sent) { /* the peer would take the next frame for the rest of this one */
        return tell((PyObject *)self, state->names._break, take_raised());
    }
    return tell((PyObject *)self, state->names._wait_to_send, rest);
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

/* Put pieces together in one object, without the first *skip* bytes, which are of the first two. */
static PyObject *
join(const struct iovec *pieces, size_t count, size_t skip)
{
    size_t size = 0;
    for (size_t i = 0; i < count; i++) {
        size += pieces[i].iov_len;
    }
    PyObject *joined = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(size - skip));
    if (joined != NULL) {
        char *out = PyBytes_AS_STRING(joined);
        for (size_t i = 0; i < count; i++) {
            const size_t left_out = skip < pieces[i].iov_len ? skip : pieces[i].iov_len;
            memcpy(out, (const char *)pieces[i].iov_base + left_out, pieces[i].iov_len - left_out);
            out += pieces[i].iov_len - left_out;
            skip -= left_out;
        }
    }
    return joined;
}

/* Keep what was not taken of fragments. What is left of the one that was begun waits on its own, so that
   a control frame may go behind it. */
static int
keep_fragments(Lane *self, const State *state, const struct iovec *pieces, size_t count, size_t sent)
{
    const bool is_begun = sent > 0;
    size_t first = 0;
    while (sent >= pieces[first].iov_len + pieces[first + 1].iov_len) {
        sent -= pieces[first].iov_len + pieces[first + 1].iov_len;
        first += 2;
    }
    PyObject *rest = join(pieces + first, 2, sent);
    PyObject *behind = rest == NULL ? NULL : join(pieces + first + 2, count - first - 2, 0);
    if (behind == NULL) {
        Py_XDECREF(rest);
        /* The peer would take the next frame for the rest of this message. */
        return is_begun ? tell((PyObject *)self, state->names._break, take_raised()) : -1;
    }
    int status = tell((PyObject *)self, state->names._wait_to_send, rest);
    if (status == 0 && PyBytes_GET_SIZE(behind)) {
        return tell((PyObject *)self, state->names._keep, behind);
    }
    Py_DECREF(behind);
    return status;
}

/* Send a long message of a server in fragments (RFC 6455 section 5.4), from where its payload is. */
static int
send_fragments(Lane *self, const State *state, int opcode, const uint8_t *payload, size_t size)
{
    const size_t fragments = (size + FRAGMENT - 1) / FRAGMENT;
    struct iovec *pieces = PyMem_Malloc(fragments * (2 * sizeof(struct iovec) + FRAMING_HEADER_MOST));
    if (pieces == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    uint8_t *header = (uint8_t *)(pieces + 2 * fragments);
    size_t total = 0;
    for (size_t i = 0; i < fragments; i++) {
        const bool is_last = i == fragments - 1;
        const size_t length = is_last ? size - i * FRAGMENT : FRAGMENT;
        const uint8_t first = (uint8_t)((i ? CONTINUATION : opcode) | (is_last ? FIN : 0));
        const size_t start = state->framing->write_header(header, first, NULL, length);
        pieces[2 * i] = (struct iovec){header, start};
        pieces[2 * i + 1] = (struct iovec){(void *)(payload + i * FRAGMENT), length};
        total += start + length;
        header += start;
    }
    const struct msghdr message = {.msg_iov = pieces, .msg_iovlen = 2 * fragments};
    ssize_t sent = sendmsg(self->fd, &message, MSG_NOSIGNAL);
    int status = 0;
    if (sent < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR) {
        status = tell((PyObject *)self, state->names._break, take_system_error());
    }
    else if (sent < 0 || (size_t)sent < total) {
        status = keep_fragments(self, state, pieces, 2 * fragments, sent < 0 ? 0 : (size_t)sent);
    }
    PyMem_Free(pieces);
    return status;
}

static bool
is_list(PyObject *object)
{
    return object != NULL && PyList_CheckExact(object);
}

/* Tell whether nothing stands in the way of a message. */
static bool
may_send(const Lane *self)
{
    if (self->state == NULL || self->finishing != Py_False || !is_empty(self->rest) || !is_list(self->outbox)
        || !is_still_open(self)) {
        return false;
    }
    const Poller *poller = (Poller *)self->poller;
    return poller->corked == Py_False ? !PyList_GET_SIZE(self->outbox) : is_list(poller->waiting);
}

/* Send a message, where nothing stands in its way; return whether that was so. */
static PyObject *
send_message(Lane *self, int opcode, PyObject *data)
{
    if (!may_send(self)) {
        Py_RETURN_FALSE;
    }
    const State *state = self->state;
    const uint8_t *payload;
    size_t size;
    if (state->framing->get_payload(data, &payload, &size) < 0) {
        return NULL;
    }
    if (size > (size_t)self->longest) {
        if (self->key_source != NULL || ((Poller *)self->poller)->corked != Py_False
            || size > (size_t)MOST_FRAGMENTS * FRAGMENT) {
            Py_RETURN_FALSE;
        }
        if (send_fragments(self, state, opcode, payload, size) < 0) {
            return NULL;
        }
        Py_RETURN_TRUE;
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
        if (!may_send(self)) { /* it is Python: a signal's handler may have run, or a finalizer */
            Py_DECREF(fresh_key);
            Py_RETURN_FALSE;
        }
    }
    uint8_t header[FRAMING_HEADER_MOST];
    const size_t start = state->framing->write_header(header, (uint8_t)(FIN | opcode), key, size);
    const int status
        = ((Poller *)self->poller)->corked != Py_False
              ? gather(self, state, build_frame(state->framing, header, start, payload, size, key))
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

PyDoc_STRVAR(send_framed_doc,
"send_framed($self, frame, /)\n--\n\n"
"Send the bytes of a frame made ahead of time, where nothing stands in its way; return whether that was so.");

static PyObject *
lane_send_framed(PyObject *op, PyObject *frame)
{
    Lane *self = (Lane *)op;
    if (!PyBytes_CheckExact(frame) || !may_send(self) || self->key_source != NULL
        || PyBytes_GET_SIZE(frame) - FRAMING_HEADER_MOST > self->longest
        || ((Poller *)self->poller)->corked != Py_False) {
        Py_RETURN_FALSE;
    }
    const State *state = self->state;
    const Py_ssize_t size = PyBytes_GET_SIZE(frame);
    ssize_t sent = send(self->fd, PyBytes_AS_STRING(frame), (size_t)size, MSG_NOSIGNAL);
    if (sent != size) {
        PyObject *keeps_self = Py_NewRef(op);
        const int status = sent < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR
                               ? tell(op, state->names._break, take_system_error())
                               : after_send(self, state, sent < 0 ? 0 : sent, Py_NewRef(frame));
        Py_DECREF(keeps_self);
        if (status < 0) {
            return NULL;
        }
    }
    Py_RETURN_TRUE;
}

/* -- what it serves -- */

PyDoc_STRVAR(attach_doc,
"attach($self, reader, masking_key, longest, /)\n--\n\n"
"Serve a connection that is open, until there is another receiver.");

static const char *
name_of_type(PyObject *object)
{
    return Py_TYPE(object)->tp_name;
}

/* Get the transport's socket; NULL, with or without an exception, if the fast lane is not for it. */
static PyObject *
get_socket(Lane *self, const State *state)
{
    PyObject *socket = PyObject_GetAttr((PyObject *)self, state->names._socket);
    PyObject *answer = socket == NULL ? NULL : PyObject_CallMethodNoArgs(socket, state->names.fileno);
    const long fd = answer == NULL ? -1 : PyLong_AsLong(answer);
    Py_XDECREF(answer);
    if (PyErr_Occurred() || fd != self->fd
        || (size_t)Py_TYPE(socket)->tp_basicsize < sizeof(PyObject) + sizeof(int) || get_fd(socket) != fd) {
        Py_CLEAR(socket);
    }
    return socket;
}

static PyObject *
lane_attach(PyObject *op, PyTypeObject *defining, PyObject *const *args, Py_ssize_t given, PyObject *kwnames)
{
    Lane *self = (Lane *)op;
    const State *state = PyType_GetModuleState(defining);
    if (given != 3 || (kwnames != NULL && PyTuple_GET_SIZE(kwnames))) {
        PyErr_SetString(PyExc_TypeError, "attach() takes reader, masking_key and longest");
        return NULL;
    }
    if (!Py_IS_TYPE(args[0], state->framing->reader_type)) {
        return PyErr_Format(PyExc_TypeError, "reader: a compiled MessageReader is needed, not %s",
                            name_of_type(args[0]));
    }
    if (args[1] != Py_None && !PyCallable_Check(args[1])) {
        return PyErr_Format(PyExc_TypeError, "masking_key: a function or None is needed, not %s",
                            name_of_type(args[1]));
    }
    if (!PyLong_Check(args[2])) {
        return PyErr_Format(PyExc_TypeError, "longest: an int is needed, not %s", name_of_type(args[2]));
    }
    const Py_ssize_t longest = PyLong_AsSsize_t(args[2]);
    if (longest < 0) {
        return PyErr_Occurred() ? NULL
                                : PyErr_Format(PyExc_ValueError, "longest: 0 bytes or more, not %zd", longest);
    }
    PyObject *socket = get_socket(self, state);
    if (socket == NULL) {
        return none_or_raise(PyErr_Occurred() ? -1 : 0);
    }
    if (self->poller == NULL || !PyObject_TypeCheck(self->poller, state->poller_type)
        || ((Poller *)self->poller)->buffer == NULL || self->receiver == NULL) {
        Py_DECREF(socket);
        PyErr_SetString(PyExc_TypeError, "attach() needs a receiver and a poller's buffer");
        return NULL;
    }
    Py_INCREF(op);
    detach(self);
    if (self->reader == NULL) { /* as it is, unless another attach() was called by what was let go */
        self->reader = Py_NewRef(args[0]);
        self->key_source = args[1] == Py_None ? NULL : Py_NewRef(args[1]);
        self->socket = Py_NewRef(socket);
        self->longest = longest;
        self->state = state;
    }
    Py_DECREF(socket);
    Py_DECREF(op);
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
    if (!PyCallable_Check(args[2])) {
        return PyErr_Format(PyExc_TypeError, "hook: a function is needed, not %s", name_of_type(args[2]));
    }
    if (!PyContext_CheckExact(args[5])) {
        return PyErr_Format(PyExc_TypeError, "context: a contextvars.Context is needed, not %s",
                            name_of_type(args[5]));
    }
    const int by_data = PyObject_IsTrue(args[3]);
    if (by_data < 0) {
        return NULL;
    }
    disarm(self);
    if (self->hook == NULL) { /* as it is, unless another arm() was called by what was let go */
        self->inbox = Py_NewRef(args[0]);
        self->bell = Py_NewRef(args[1]);
        self->hook = Py_NewRef(args[2]);
        self->by_data = by_data;
        self->task = Py_NewRef(args[4]);
        self->context = Py_NewRef(args[5]);
    }
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
    *place = value == Py_None ? NULL : Py_XNewRef(value);
    detach((Lane *)op);
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
    {"send_framed", lane_send_framed, METH_O, send_framed_doc},
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
    {"read_size", T_PYSSIZET, offsetof(Lane, read_size), 0, NULL},
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
enum { TIMES_ALONE = 8, TRIES = 8 }; /* as in _lane_py.py */

typedef struct {
    PyObject *callbacks[WAYS]; /* NULL for what is not watched */
    uint32_t generation;       /* of the file descriptor's number, which may be given again */
} Watched;

typedef struct {
    PyObject_HEAD
    int epoll;        /* -1 when closed */
    Watched *watched; /* by file descriptor */
    size_t size;
    uint64_t alone;  /* which socket was ready alone when the system was asked last, as an event's data */
    int times_alone; /* how often one after the other */
    int tries;       /* how often it may still be tried before the system is asked */
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

/* Have the system watch what has callbacks, and nothing else; -1 with errno. */
static int
control(const Watcher *self, int fd, bool was_watched)
{
    const Watched *entry = &self->watched[fd];
    struct epoll_event event = {.data.u64 = (uint64_t)entry->generation << 32 | (uint32_t)fd};
    event.events = (entry->callbacks[READ] ? EPOLLIN : 0) | (entry->callbacks[WRITE] ? EPOLLOUT : 0);
    const int how = !event.events ? EPOLL_CTL_DEL : was_watched ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    int status = epoll_ctl(self->epoll, how, fd, &event);
    if (status < 0 && how == EPOLL_CTL_MOD && errno == ENOENT) { /* it was closed, and is another's by now */
        status = epoll_ctl(self->epoll, EPOLL_CTL_ADD, fd, &event);
    }
    return status;
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
    if (callback == NULL) {
        if (old != NULL) {
            control(self, fd, was_watched); /* it fails for what is closed, which nothing watches any more */
        }
    }
    else if (control(self, fd, was_watched) < 0) {
        entry->callbacks[way] = old;
        Py_DECREF(callback);
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_XDECREF(old);
    Py_RETURN_NONE;
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

/* Call what watches a socket, unless it was taken back a moment ago; return whether it found little to do. */
static int
call_back(Watcher *self, const State *state, uint64_t data, int way)
{
    const uint32_t fd = (uint32_t)data;
    if (fd >= self->size || self->watched[fd].generation != data >> 32
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
    return result == NULL ? -1 : result == Py_True;
}

PyDoc_STRVAR(call_all_doc,
"call_all($self, /)\n--\n\n"
"Call what watches the sockets that are ready; what a callback raises is logged.");

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
    if (self->tries > 0) {
        self->tries--;
        const int was_brief = call_back(self, state, self->alone, READ);
        if (was_brief || self->epoll < 0) {
            return none_or_raise(was_brief);
        }
    }
    self->tries = 0;
    const int count = epoll_wait(self->epoll, events, BATCH, 0);
    if (count < 0 && errno != EINTR) {
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    bool is_alone = false;
    for (int i = 0; i < count; i++) {
        /* An error or a hang-up is for both ways: what is tried then will tell. */
        const uint64_t data = events[i].data.u64;
        const int was_brief = events[i].events & ~(uint32_t)EPOLLOUT ? call_back(self, state, data, READ) : 0;
        if (was_brief < 0
            || ((events[i].events & ~(uint32_t)EPOLLIN) && call_back(self, state, data, WRITE) < 0)) {
            return NULL;
        }
        is_alone = was_brief && count == 1;
        if (is_alone && self->alone != data) {
            self->alone = data;
            self->times_alone = 0;
        }
    }
    self->times_alone = !is_alone ? 0 : self->times_alone < TIMES_ALONE ? self->times_alone + 1 : TIMES_ALONE;
    self->tries = self->times_alone == TIMES_ALONE ? TRIES : 0;
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
