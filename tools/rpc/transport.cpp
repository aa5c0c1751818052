// In the place of ggml's transport.cpp: RPC over one socket that the process was given, as the endpoint `fd:NUMBER`.
//
// ggml's own listens and connects by TCP, where others of the machine could be first. A pair of sockets has no name that
// anybody else could use. The server serves the one client at the other end, and returns when that has left.
#include "transport.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <sys/socket.h>
#include <unistd.h>

struct socket_t::impl {
    explicit impl(int number) : fd(number) {}
    ~impl() {
        if (fd >= 0) close(fd);
    }
    int fd;
};

static int number_of(const char * host, int port) { return std::strcmp(host, "fd") == 0 && port >= 0 ? port : -1; }

socket_t::socket_t(std::unique_ptr<impl> p) : pimpl(std::move(p)) {}
socket_t::~socket_t() = default;

bool socket_t::send_data(const void * data, size_t size) {
    const char * rest = static_cast<const char *>(data);
    while (size > 0) {
        ssize_t n = send(pimpl->fd, rest, std::min(size, MAX_CHUNK_SIZE), MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return false;
        rest += n;
        size -= static_cast<size_t>(n);
    }
    return true;
}

bool socket_t::recv_data(void * data, size_t size) {
    char * rest = static_cast<char *>(data);
    while (size > 0) {
        ssize_t n = recv(pimpl->fd, rest, std::min(size, MAX_CHUNK_SIZE), 0);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        rest += n;
        size -= static_cast<size_t>(n);
    }
    return true;
}

bool socket_t::flush() { return true; }

socket_ptr socket_t::create_server(const char * host, int port) { return connect(host, port); }

socket_ptr socket_t::connect(const char * host, int port) {
    int fd = number_of(host, port);
    if (fd < 0) return nullptr;
    return socket_ptr(new socket_t(std::make_unique<impl>(fd)));
}

socket_ptr socket_t::accept() {
    int fd = pimpl->fd;
    pimpl->fd = -1;  // the one client has it
    if (fd < 0) return nullptr;
    return socket_ptr(new socket_t(std::make_unique<impl>(fd)));
}

// The other transports that two ends may agree on: there are none.
void socket_t::get_caps(uint8_t * local_caps) { std::memset(local_caps, 0, RPC_CONN_CAPS_SIZE); }
void socket_t::update_caps(const uint8_t *) {}

bool rpc_transport_init() { return true; }
void rpc_transport_shutdown() {}

// What GCC's crtbeginS.o does and zig's libraries do not: run, and forget, the library's exit handlers when it is closed.
extern "C" {
extern void * __dso_handle;
extern void __cxa_finalize(void *);
__attribute__((destructor)) static void forget_handlers() { __cxa_finalize(&__dso_handle); }
}
