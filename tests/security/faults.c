/* Has one system call of the process fail, for tests: loaded before the C library (LD_PRELOAD), told what to do by
   fault_arm(). So the calls of compiled code fail as those of Python do. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

static char armed[32];
static int armed_port, armed_number, armed_nth, calls;
static bool fired;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* The nth call of this name is to fail with an error, on the socket whose peer has the port; 0 for any. */
void
fault_arm(const char *name, int port, int number, int nth)
{
    armed[0] = '\0';
    armed_port = port, armed_number = number, armed_nth = nth, calls = 0, fired = false;
    strncpy(armed, name, sizeof armed - 1);
}

int
fault_fired(void)
{
    return fired;
}

static bool
is_meant(int fd)
{
    struct sockaddr_in address;
    socklen_t size = sizeof address;
    return armed_port == 0
           || (REAL(getpeername)(fd, (struct sockaddr *)&address, &size) == 0 && address.sin_family == AF_INET
               && ntohs(address.sin_port) == armed_port);
}

static bool
fails(const char *name, int fd)
{
    const int before = errno;
    if (strcmp(name, armed) != 0 || fired || !is_meant(fd) || ++calls != armed_nth) {
        errno = before;
        return false;
    }
    fired = true;
    errno = armed_number;
    return true;
}

#define WRAP(type, name, parameters, fd, arguments)                                                           \
    type name parameters                                                                                      \
    {                                                                                                         \
        return fails(#name, fd) ? -1 : REAL(name) arguments;                                                  \
    }

WRAP(ssize_t, recv, (int fd, void *to, size_t size, int flags), fd, (fd, to, size, flags))
WRAP(ssize_t, send, (int fd, const void *from, size_t size, int flags), fd, (fd, from, size, flags))
WRAP(ssize_t, sendmsg, (int fd, const struct msghdr *message, int flags), fd, (fd, message, flags))
WRAP(int, shutdown, (int fd, int how), fd, (fd, how))
WRAP(int, setsockopt, (int fd, int level, int name, const void *value, socklen_t size), fd,
     (fd, level, name, value, size))
WRAP(int, getpeername, (int fd, struct sockaddr *restrict address, socklen_t *restrict size), fd,
     (fd, address, size))
WRAP(int, getsockname, (int fd, struct sockaddr *restrict address, socklen_t *restrict size), fd,
     (fd, address, size))
WRAP(int, accept4, (int fd, struct sockaddr *restrict address, socklen_t *restrict size, int flags), fd,
     (fd, address, size, flags))
WRAP(int, epoll_wait, (int epoll, struct epoll_event *events, int most, int timeout), epoll,
     (epoll, events, most, timeout))

int
epoll_ctl(int epoll, int what, int fd, struct epoll_event *event)
{
    /* What is known already takes no memory. */
    return what == EPOLL_CTL_ADD && fails("epoll_ctl", fd) ? -1 : REAL(epoll_ctl)(epoll, what, fd, event);
}

int
close(int fd)
{
    const bool failing = fails("close", fd);
    const int number = errno, status = REAL(close)(fd); /* it is closed all the same */
    if (failing) {
        errno = number;
        return -1;
    }
    return status;
}
