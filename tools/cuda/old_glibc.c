/* What objects of this system's GCC, and its library for C++, ask of a C library that is newer than glibc 2.17; and what
 * GCC's crtbeginS.o does and zig's libraries do not. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define INNER __attribute__((visibility("hidden")))

enum { NS_IN_S = 1000000000 };

INNER char __libc_single_threaded = 0; /* since 2.32: that threads may be there is always right */

INNER uint32_t arc4random(void) { /* since 2.36 */
    uint32_t value = 0;
    while (syscall(SYS_getrandom, &value, sizeof value, 0) < 0 && errno == EINTR) {
    }
    return value;
}

INNER int getentropy(void *to, size_t n) { /* since 2.25 */
    return syscall(SYS_getrandom, to, n, 0) == (long)n ? 0 : -1;
}

INNER int pthread_cond_clockwait(pthread_cond_t *condition, pthread_mutex_t *mutex, clockid_t clock,
                                 const struct timespec *until) { /* since 2.30 */
    struct timespec now, end;
    clock_gettime(clock, &now);
    clock_gettime(CLOCK_REALTIME, &end);
    end.tv_sec += until->tv_sec - now.tv_sec;
    end.tv_nsec += until->tv_nsec - now.tv_nsec;
    if (end.tv_nsec < 0) {
        end.tv_nsec += NS_IN_S;
        end.tv_sec--;
    }
    if (end.tv_nsec >= NS_IN_S) {
        end.tv_nsec -= NS_IN_S;
        end.tv_sec++;
    }
    return pthread_cond_timedwait(condition, mutex, &end);
}

/* A library that ggml closes again must not be called at exit: as GCC's crtbeginS.o would, its handlers are run, and
 * forgotten, when it is closed (as in tools/vulkan/loader.c). They are CUDA's runtime library's, by `atexit`; glibc's own
 * would take the handle's value for the library, which is right where GCC's file defines it, but not where zig does. */
extern void *__dso_handle;
extern int __cxa_atexit(void (*)(void *), void *, void *);
extern void __cxa_finalize(void *);

static void call(void *handler) { ((void (*)(void))handler)(); }

INNER int atexit(void (*handler)(void)) { return __cxa_atexit(call, (void *)handler, &__dso_handle); }

__attribute__((destructor)) static void forget_handlers(void) { __cxa_finalize(&__dso_handle); }
