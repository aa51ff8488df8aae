// wsload: a load generator for WebSocket servers, and the judge of what they cost.
//
// It opens connections over loopback, keeps messages in flight on them, reads every frame header that comes
// back, and reads the CPU clock of the server's process at the first and the last message that it counts.
// So the figure has no start-up, no opening handshakes, and nothing that the generator itself does.
//
// wsload echo PORT CONNECTIONS SIZE DEPTH FRAMES SECONDS PID DEFLATED
//     each connection sends DEPTH masked text messages of SIZE bytes, each in FRAMES frames, in one write,
//     waits for the DEPTH echoes, and begins again
// wsload broadcast PORT CONNECTIONS SIZE DEPTH FRAMES SECONDS PID DEFLATED
//     the first connection sends, every connection receives, then the next message is sent
// wsload hold PORT SIZE PID DEFLATED
//     for each line "N" on standard input opens N further connections, one after the other, and echoes one
//     message of SIZE bytes on each (none if SIZE is 0); keeps them open until standard input ends
//
// PID is the server's process. DEFLATED is "-", or a file with the payload of a message compressed as RFC 7692
// says, which is sent in place of a plain one; "offer" offers the extension and sends plain messages.
//
// It prints one line of JSON: messages (or connections), seconds, and cpu: seconds of the server's process.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define STALL_SECONDS 20
#define WARM_UP 0.2  // of the time, before anything is counted

typedef struct {
    int fd;
    unsigned char head[10];  // of the frame that is arriving
    size_t head_length;
    uint64_t payload_left;
    uint64_t message_length;
    size_t awaited;  // messages that are yet to come back
    size_t written;  // bytes of the batch
} Connection;

static int port;
static pid_t server;
static size_t message_size, depth = 1, frames = 1;
static const char *deflated_path;
static int offers, is_deflated;
static unsigned char *batch;
static size_t batch_length;
static unsigned char buffer[1 << 20];

static _Noreturn void die(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "wsload: ");
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\n");
    exit(1);
}

static double clock_seconds(clockid_t clock) {
    struct timespec t;
    if (clock_gettime(clock, &t)) die("the clock of the server's process: %s", strerror(errno));
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static double now(void) { return clock_seconds(CLOCK_MONOTONIC); }

// User and system time of all threads of the server; the clock id of a process is made as the kernel makes it
// (MAKE_PROCESS_CPUCLOCK with CPUCLOCK_SCHED), because clock_getcpuclockid() is the same with more words.
static double server_cpu(void) { return clock_seconds((clockid_t)(~(unsigned)server << 3 | 2)); }

// ---------------------------------------------------------------------------------------------- messages

static size_t put_frame(unsigned char *out, int first_byte, const unsigned char *payload, size_t length) {
    static const unsigned char key[4] = {0x37, 0xfa, 0x21, 0x3d};
    unsigned char *p = out;
    *p++ = first_byte;
    if (length < 126) {
        *p++ = 0x80 | length;
    } else if (length < 65536) {
        *p++ = 0x80 | 126;
        *p++ = length >> 8;
        *p++ = length;
    } else {
        *p++ = 0x80 | 127;
        for (int i = 7; i >= 0; i--) *p++ = (uint64_t)length >> (8 * i);
    }
    memcpy(p, key, 4);
    p += 4;
    for (size_t i = 0; i < length; i++) p[i] = payload[i] ^ key[i & 3];
    return p + length - out;
}

static unsigned char *make_payload(size_t *length) {
    if (!is_deflated) {
        unsigned char *payload = malloc(message_size + 1);
        for (size_t i = 0; i < message_size; i++) payload[i] = 'a' + i % 26;
        *length = message_size;
        return payload;
    }
    FILE *file = fopen(deflated_path, "rb");
    if (!file) die("%s: %s", deflated_path, strerror(errno));
    unsigned char *payload = malloc(1 << 20);
    *length = fread(payload, 1, 1 << 20, file);
    fclose(file);
    return payload;
}

static void make_batch(void) {
    size_t length, part;
    unsigned char *payload = make_payload(&length);
    part = frames > 1 ? length / frames : length;
    batch = malloc((length + 14 * frames) * depth + 1);
    for (size_t message = 0; message < depth; message++)
        for (size_t i = 0; i < frames; i++) {
            int last = i == frames - 1;
            int first_byte = (last ? 0x80 : 0) | (i == 0 ? (is_deflated ? 0x41 : 0x01) : 0);
            const unsigned char *from = payload + i * part;
            batch_length += put_frame(batch + batch_length, first_byte, from, last ? length - i * part : part);
        }
    free(payload);
}

// ------------------------------------------------------------------------------------------- connections

static void open_connection(Connection *c) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    memset(c, 0, sizeof *c);
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0 || connect(c->fd, (void *)&address, sizeof address)) die("connect: %s", strerror(errno));
    int one = 1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct timeval limit = {.tv_sec = STALL_SECONDS};
    setsockopt(c->fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    char request[512];
    int length = snprintf(request, sizeof request,
        "GET / HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n%s\r\n",
        port, offers ? "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n" : "");
    if (write(c->fd, request, length) != length) die("the request was not taken: %s", strerror(errno));
    char answer[4096];
    size_t got = 0;
    while (got < 4 || memcmp(answer + got - 4, "\r\n\r\n", 4)) {
        ssize_t n = read(c->fd, answer + got, sizeof answer - 1 - got);
        if (n <= 0) die("no answer to the handshake: %s", n ? strerror(errno) : "end of stream");
        got += n;
    }
    answer[got] = 0;
    if (memcmp(answer, "HTTP/1.1 101", 12)) die("refused: %.60s", answer);
    if (offers && !strcasestr(answer, "permessage-deflate")) die("the server does not compress");
}

static size_t header_size(const Connection *c) {
    int code = c->head[1];
    return c->head_length < 2 || code < 126 ? 2 : code == 126 ? 4 : 10;
}

static void begin_payload(Connection *c) {
    int opcode = c->head[0] & 15;
    if (c->head[1] & 0x80) die("the server masks its frames");
    if (opcode == 8) die("the server closes the connection");
    c->payload_left = c->head[1] & 127;
    if (c->head_length > 2) c->payload_left = 0;
    for (size_t i = 2; i < c->head_length; i++) c->payload_left = c->payload_left << 8 | c->head[i];
    if (is_deflated && (opcode == 1 || opcode == 2) && !(c->head[0] & 0x40)) die("the echo is not compressed");
    if (opcode < 8) c->message_length += c->payload_left;
}

// Return 1 if the frame that ends here ends a message.
static size_t end_frame(Connection *c) {
    c->head_length = 0;
    if (!(c->head[0] & 0x80) || (c->head[0] & 15) >= 8) return 0;
    if (!offers && c->message_length != message_size)
        die("a message of %llu bytes came back, not %zu", (unsigned long long)c->message_length, message_size);
    c->message_length = 0;
    return 1;
}

// Read the headers of the frames in buffer[0:length]; return the number of messages that ended there.
static size_t count_messages(Connection *c, size_t length) {
    size_t messages = 0, at = 0;
    while (at < length) {
        if (c->payload_left) {
            size_t n = length - at < c->payload_left ? length - at : c->payload_left;
            at += n;
            c->payload_left -= n;
        } else {
            c->head[c->head_length++] = buffer[at++];
            if (c->head_length < header_size(c)) continue;
            begin_payload(c);
        }
        if (!c->payload_left) messages += end_frame(c);
    }
    return messages;
}

static size_t receive(Connection *c) {
    ssize_t n = read(c->fd, buffer, sizeof buffer);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return 0;
    if (n <= 0) die("closed by the server: %s", n ? strerror(errno) : "end of stream");
    return count_messages(c, n);
}

// ------------------------------------------------------------------------------------- echo and broadcast

static int poller;

static void watch(Connection *c, size_t index, int operation, int writing) {
    struct epoll_event event = {.events = EPOLLIN | (writing ? EPOLLOUT : 0), .data.u64 = index};
    if (epoll_ctl(poller, operation, c->fd, &event)) die("epoll_ctl: %s", strerror(errno));
}

static void write_some(Connection *c, size_t index, int was_waiting) {
    ssize_t n = write(c->fd, batch + c->written, batch_length - c->written);
    if (n < 0 && errno != EAGAIN) die("write: %s", strerror(errno));
    if (n > 0) c->written += n;
    int waits = c->written < batch_length;
    if (waits != was_waiting) watch(c, index, EPOLL_CTL_MOD, waits);
}

static void begin_batch(Connection *c, size_t index) {
    c->written = 0;
    write_some(c, index, 0);
}

static void print_result(size_t messages, double seconds, double cpu) {
    printf("{\"messages\": %zu, \"seconds\": %.6f, \"cpu\": %.9f}\n", messages, seconds, cpu);
    fflush(stdout);
}

static Connection *connections;
static size_t connection_count, awaited_by_all;
static int is_broadcast;

static void open_all(void) {
    connections = calloc(connection_count, sizeof *connections);
    poller = epoll_create1(0);
    for (size_t i = 0; i < connection_count; i++) {
        open_connection(connections + i);
        fcntl(connections[i].fd, F_SETFL, O_NONBLOCK);
        watch(connections + i, i, EPOLL_CTL_ADD, 0);
    }
}

// The first connection sends to all, or this one to itself.
static void send_next(Connection *c) {
    if (is_broadcast) {
        for (size_t i = 0; i < connection_count; i++) connections[i].awaited = depth;
        awaited_by_all = connection_count * depth;
        c = connections;
    }
    c->awaited = depth;
    begin_batch(c, c - connections);
}

// Return the messages that came; *c has all that it waits for if they were the last ones.
static size_t handle_event(Connection *c, uint32_t events) {
    if (events & EPOLLOUT) write_some(c, c - connections, 1);
    size_t done = events & ~EPOLLOUT ? receive(c) : 0;
    if (done > c->awaited) die("more messages came back than were sent");
    c->awaited -= done;
    if (is_broadcast) awaited_by_all -= done;
    return done;
}

// The window of measurement begins when every connection had its answers and the warm-up is over; it ends when
// the connection whose answers began it has answers again. A server that reads from all and then writes to all
// is so measured in whole turns.
typedef struct {
    Connection *first;
    size_t answers, messages;
    double begin, end, since, cpu, last;
} Window;

// Note that *c has its answers; return 1 when that ends the window.
static int note_answers(Window *w, Connection *c) {
    w->last = now();
    w->answers++;
    if (w->first) {
        if ((!is_broadcast && c != w->first) || w->last < w->end) return 0;
        print_result(w->messages, w->last - w->since, server_cpu() - w->cpu);
        return 1;
    }
    if (w->last > w->begin && w->answers >= (is_broadcast ? 1 : connection_count)) {
        w->first = c;
        w->since = w->last;
        w->cpu = server_cpu();
        w->messages = 0;
    }
    return 0;
}

static void run(double seconds) {
    struct epoll_event events[1024];
    open_all();
    double start = now();
    Window window = {.begin = start + WARM_UP * seconds, .end = start + seconds, .last = start};
    for (size_t i = 0; i < (is_broadcast ? 1 : connection_count); i++) send_next(connections + i);
    for (;;) {
        int n = epoll_wait(poller, events, 1024, 1000);
        if (now() - window.last > STALL_SECONDS) die("no message came back for %d seconds", STALL_SECONDS);
        for (int i = 0; i < n; i++) {
            Connection *c = connections + events[i].data.u64;
            size_t done = handle_event(c, events[i].events);
            window.messages += done;
            if (!done || (is_broadcast ? awaited_by_all : c->awaited)) continue;
            if (note_answers(&window, c)) return;
            send_next(c);
        }
    }
}

// --------------------------------------------------------------------------------------------------- hold

static void echo_once(Connection *c) {
    if (!message_size) return;
    if (write(c->fd, batch, batch_length) != (ssize_t)batch_length) die("write: %s", strerror(errno));
    double begin = now();
    while (!receive(c))
        if (now() - begin > STALL_SECONDS) die("no message came back for %d seconds", STALL_SECONDS);
}

static void hold(void) {
    size_t count;
    while (scanf("%zu", &count) == 1) {
        double begin = now(), cpu = server_cpu();
        for (size_t i = 0; i < count; i++) {
            Connection c;
            open_connection(&c);
            echo_once(&c);  // the descriptor stays open; nothing else of the connection is needed
        }
        print_result(count, now() - begin, server_cpu() - cpu);
    }
}

static void set_deflated(const char *argument) {
    offers = strcmp(argument, "-") != 0;
    is_deflated = offers && strcmp(argument, "offer") != 0;
    deflated_path = argument;
}

int main(int argc, char **argv) {
    if (argc == 6 && !strcmp(argv[1], "hold")) {
        port = atoi(argv[2]);
        message_size = strtoul(argv[3], 0, 10);
        server = atoi(argv[4]);
        set_deflated(argv[5]);
        make_batch();
        hold();
        return 0;
    }
    is_broadcast = argc > 1 && !strcmp(argv[1], "broadcast");
    if (argc != 10 || !(is_broadcast || !strcmp(argv[1], "echo"))) {
        fprintf(stderr, "usage: wsload echo|broadcast PORT CONNECTIONS SIZE DEPTH FRAMES SECONDS PID DEFLATED\n"
                        "       wsload hold PORT SIZE PID DEFLATED\n");
        return 2;
    }
    port = atoi(argv[2]);
    message_size = strtoul(argv[4], 0, 10);
    depth = strtoul(argv[5], 0, 10);
    frames = strtoul(argv[6], 0, 10);
    server = atoi(argv[8]);
    set_deflated(argv[9]);
    make_batch();
    connection_count = strtoul(argv[3], 0, 10);
    run(atof(argv[7]));
    return 0;
}
