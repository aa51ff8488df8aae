/* What _framing_c gives to other modules written in C; they get it from its capsule FRAMING_API_NAME. */

#ifndef ANYIO_WS_FRAMING_API_H
#define ANYIO_WS_FRAMING_API_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FRAMING_API_NAME "anyio_ws._framing_c._api"

enum { FRAMING_HEADER_MOST = 2 + 8 + 4 };

typedef struct {
    PyTypeObject *reader_type;
    /* What MessageReader.feed, .left and .finished are to Python. */
    PyObject *(*feed)(PyObject *reader, const uint8_t *in, size_t size);
    size_t (*get_left)(PyObject *reader);
    bool (*is_finished)(PyObject *reader);
    /* Write a header with this first byte, with its masking key where that is not NULL; return its size. */
    size_t (*write_header)(uint8_t *out, uint8_t first, const uint8_t *key, size_t length);
    /* Get the bytes of a str or bytes; -1 when it is neither, or the text has a lone surrogate. */
    int (*get_payload)(PyObject *payload, const uint8_t **bytes, size_t *size);
    void (*mask)(uint8_t *out, const uint8_t *in, size_t size, const uint8_t key[4]);
} FramingApi;

#endif
