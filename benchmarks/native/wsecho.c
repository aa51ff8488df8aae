// wsecho: a WebSocket echo server that costs as little as one can, so that a client is what is measured.
//
// wsecho PORT
//
// One thread, epoll, no checks beyond what keeps it in its bounds: messages in one frame, of at most 16 MiB.
// A Close is answered, a Ping gets its Pong. It is a fixture of the benchmarks, not a server for anything.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define MAX_FRAME (16 << 20)

typedef struct {
    int fd, is_open;
    unsigned char *data;
    size_t length, capacity;
} Connection;

// ------------------------------------------------------------------------------ SHA-1 (RFC 3174) and base64

static uint32_t rotate(uint32_t x, int n) { return x << n | x >> (32 - n); }

static void sha1_block(uint32_t h[5], const unsigned char *p) {
    uint32_t w[80], a = h[0], b = h[1], c = h[2], d = h[3], e = h[4];
    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)p[4 * i] << 24 | p[4 * i + 1] << 16 | p[4 * i + 2] << 8 | p[4 * i + 3];
    for (int i = 16; i < 80; i++) w[i] = rotate(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
    for (int i = 0; i < 80; i++) {
        uint32_t f = i < 20 ? ((b & c) | (~b & d)) : i < 40 || i >= 60 ? (b ^ c ^ d) : ((b & c) | (b & d) | (c & d));
        static const uint32_t k[4] = {0x5a827999, 0x6ed9eba1, 0x8f1bbcdc, 0xca62c1d6};
        uint32_t next = rotate(a, 5) + f + e + w[i] + k[i / 20];
        e = d, d = c, c = rotate(b, 30), b = a, a = next;
    }
    h[0] += a, h[1] += b, h[2] += c, h[3] += d, h[4] += e;
}

// The key and the GUID of RFC 6455 §4.2.2 have 60 bytes together, which is two blocks.
static void accept_key(const char *key, char out[29]) {
    uint32_t h[5] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0};
    unsigned char message[128] = {0}, digest[21] = {0};
    memcpy(message, key, 24);
    memcpy(message + 24, "258EAFA5-E914-47DA-95CA-C5AB0DC85B11", 36);
    message[60] = 0x80;
    message[126] = 480 >> 8;
    message[127] = 480 & 255;
    sha1_block(h, message);
    sha1_block(h, message + 64);
    for (int i = 0; i < 20; i++) digest[i] = h[i / 4] >> (24 - 8 * (i % 4));
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (int i = 0; i < 7; i++) {
        uint32_t bits = digest[3 * i] << 16 | digest[3 * i + 1] << 8 | digest[3 * i + 2];
        for (int j = 0; j < 4; j++) out[4 * i + j] = letters[bits >> (18 - 6 * j) & 63];
    }
    out[27] = '=';
    out[28] = 0;
}

// ----------------------------------------------------------------------------------------------- connection

static void drop(Connection *c) {
    close(c->fd);
    free(c->data);
    free(c);
}

// Write everything, waiting where the peer is slow: there is one client at a time.
static int write_all(Connection *c, const unsigned char *data, size_t length) {
    while (length) {
        ssize_t n = send(c->fd, data, length, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN) {
            struct pollfd writable = {.fd = c->fd, .events = POLLOUT};
            if (poll(&writable, 1, 20000) <= 0) return -1;
            continue;
        }
        if (n < 0) return -1;
        data += n;
        length -= n;
    }
    return 0;
}

// Answer the opening handshake when it is whole; return the bytes used, or -1.
static ssize_t shake_hands(Connection *c) {
    unsigned char *end = memmem(c->data, c->length, "\r\n\r\n", 4);
    if (!end) return 0;
    *end = 0;
    char *key = strcasestr((char *)c->data, "\r\nSec-WebSocket-Key:");
    char accept[29], answer[256];
    if (!key) return -1;
    key += 20;
    while (*key == ' ') key++;
    accept_key(key, accept);
    int length = snprintf(answer, sizeof answer,
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Accept: %s\r\n\r\n", accept);
    c->is_open = 1;
    return write_all(c, (unsigned char *)answer, length) ? -1 : end + 4 - c->data;
}

// Unmask in place, eight bytes at a time.
static void unmask(unsigned char *payload, size_t length, const unsigned char *key) {
    uint64_t wide, word;
    memcpy(&wide, key, 4);
    memcpy((unsigned char *)&wide + 4, key, 4);
    size_t i = 0;
    for (; i + 8 <= length; i += 8) {
        memcpy(&word, payload + i, 8);
        word ^= wide;
        memcpy(payload + i, &word, 8);
    }
    for (; i < length; i++) payload[i] ^= ((unsigned char *)&wide)[i & 7];
}

// Echo the first frame at data[0:length] if it is whole; return the bytes used, or -1 at the end.
static ssize_t echo_frame(Connection *c, unsigned char *data, size_t length) {
    if (length < 2) return 0;
    size_t extended = (data[1] & 127) < 126 ? 0 : (data[1] & 127) == 126 ? 2 : 8;
    if (length < 6 + extended) return 0;
    uint64_t size = data[1] & 127;
    if (extended) size = 0;
    for (size_t i = 0; i < extended; i++) size = size << 8 | data[2 + i];
    if (size > MAX_FRAME || !(data[1] & 128)) return -1;
    if (length < 6 + extended + size) return 0;
    unsigned char *payload = data + 6 + extended, *out = data + 4;
    unsigned char first = (data[0] & 15) == 9 ? 0x8a : data[0];
    unmask(payload, size, payload - 4);
    memmove(out + 2, data + 2, extended);  // the header moves to where the masking key was
    out[1] = data[1] & 127;
    out[0] = first;
    if ((first & 15) != 10 || (data[0] & 15) == 9)
        if (write_all(c, out, 2 + extended + size)) return -1;
    return (first & 15) == 8 ? -1 : (ssize_t)(6 + extended + size);
}

static int handle_data(Connection *c) {
    size_t used = 0;
    for (;;) {
        ssize_t n = c->is_open ? echo_frame(c, c->data + used, c->length - used) : shake_hands(c);
        if (n < 0) return -1;
        if (n == 0) break;
        used += n;
    }
    memmove(c->data, c->data + used, c->length - used);
    c->length -= used;
    return 0;
}

static int read_more(Connection *c) {
    if (c->capacity - c->length < 65536) {
        c->capacity = c->capacity ? c->capacity * 2 : 1 << 18;
        if (c->capacity > 4 * (size_t)MAX_FRAME || !(c->data = realloc(c->data, c->capacity))) return -1;
    }
    ssize_t n = recv(c->fd, c->data + c->length, c->capacity - c->length - 1, MSG_DONTWAIT);
    if (n < 0) return errno == EAGAIN ? 0 : -1;
    c->length += n;
    return n == 0 ? -1 : handle_data(c);
}

static void accept_one(int listener, int poller) {
    int one = 1;
    Connection *c = calloc(1, sizeof *c);
    c->fd = accept4(listener, 0, 0, SOCK_NONBLOCK);
    if (c->fd < 0) {
        free(c);
        return;
    }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &event);
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: wsecho PORT\n");
        return 2;
    }
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int listener = socket(AF_INET, SOCK_STREAM, 0), poller = epoll_create1(0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (void *)&address, sizeof address) || listen(listener, 1024)) {
        perror("wsecho");
        return 1;
    }
    struct epoll_event event = {.events = EPOLLIN}, events[64];
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int n = epoll_wait(poller, events, 64, -1);
        for (int i = 0; i < n; i++) {
            Connection *c = events[i].data.ptr;
            if (!c) accept_one(listener, poller);
            else if (read_more(c)) drop(c);
        }
    }
}
