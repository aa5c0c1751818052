// What ggml uses of OpenMP (`parallel num_threads`, `single`, `barrier`): zig's clang compiles the directives and has no
// runtime library for them. These are the entry points that LLVM's runtime has (__kmpc_*, openmp/runtime/src/kmp.h).
//
// A thread looks GOMP_SPINCOUNT times whether its fellows are there and then sleeps, as with GCC's libgomp; each thread
// that opens regions keeps the threads that helped it. Where no thread sleeps, no system call is made.
#define _GNU_SOURCE
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__x86_64__)
#define relax() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define relax() __asm__ __volatile__("yield" ::: "memory")
#else
#define relax() __asm__ __volatile__("" ::: "memory")
#endif

#define ALIGNED __attribute__((aligned(64)))

typedef struct { ALIGNED _Atomic uint32_t value; _Atomic uint32_t sleepers; } word;
typedef void (*body)(void * context);

typedef struct team {
    word start;                      // generation << 12 | number of threads; 0 threads: end
    word passed;                     // the barrier's generation
    ALIGNED _Atomic uint32_t waiting;
    ALIGNED _Atomic uint32_t single; // 1 when a thread has taken it
    uint32_t n;
    body run;
    void * context;
    uint32_t n_spawned;
} team;

typedef struct { team * of; uint32_t id; } member;

#define N_MAX 4095u

static __thread team * own;            // whose master this thread is
static __thread team * current;        // the region it runs
static __thread uint32_t rank;
static __thread uint32_t asked;
static pthread_key_t key;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static uint64_t spins = 300000, spins_crowded = 1000;
static uint32_t n_processors;

static void end(void * data) {
    team * t = data;
    uint32_t start = atomic_load(&t->start.value);
    atomic_store(&t->start.value, ((start >> 12) + 1) << 12);
    syscall(SYS_futex, &t->start.value, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
    // Its threads still look at it; it stays.
}

static void begin(void) {
    const char * text = getenv("GOMP_SPINCOUNT");
    if (text && *text) {
        spins = strtoull(text, NULL, 10);
    }
    const char * policy = getenv("OMP_WAIT_POLICY");
    if (policy && (*policy == 'p' || *policy == 'P') && !(text && *text)) {
        spins = 0;
    }
    if (spins_crowded > spins) {
        spins_crowded = spins;
    }
    pthread_key_create(&key, end);
    cpu_set_t set;
    n_processors = sched_getaffinity(0, sizeof(set), &set) == 0 ? (uint32_t) CPU_COUNT(&set) : 1;
}

// Returns when the word is not `old`.
static inline uint32_t wait_for_other(word * w, uint32_t old, uint32_t n) {
    uint32_t now;
    const uint64_t limit = n > n_processors ? spins_crowded : spins;
    for (uint64_t i = 0; i < limit; ++i) {
        if ((now = atomic_load_explicit(&w->value, memory_order_acquire)) != old) {
            return now;
        }
        relax();
    }
    atomic_fetch_add(&w->sleepers, 1);
    while ((now = atomic_load(&w->value)) == old) {
        syscall(SYS_futex, &w->value, FUTEX_WAIT_PRIVATE, old, NULL, NULL, 0);
    }
    atomic_fetch_sub(&w->sleepers, 1);
    return now;
}

static inline void set(word * w, uint32_t value) {
    atomic_store(&w->value, value);
    if (atomic_load(&w->sleepers) != 0) {
        syscall(SYS_futex, &w->value, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
    }
}

static inline void barrier(team * t) {
    const uint32_t generation = atomic_load_explicit(&t->passed.value, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&t->waiting, 1, memory_order_acq_rel) == t->n - 1) {
        atomic_store_explicit(&t->waiting, 0, memory_order_relaxed);
        atomic_store_explicit(&t->single, 0, memory_order_relaxed);
        set(&t->passed, generation + 1);
    } else {
        wait_for_other(&t->passed, generation, t->n);
    }
}

static void * work(void * data) {
    member me = *(member *) data;
    free(data);
    team * t = me.of;
    rank = me.id;
    current = t;
    uint32_t seen = 0;
    for (;;) {
        seen = wait_for_other(&t->start, seen, (uint32_t) t->n_spawned + 1);
        const uint32_t n = seen & N_MAX;
        if (n == 0) {
            return NULL;
        }
        if (me.id < n) {
            t->run(t->context);
            barrier(t);
        }
    }
}

static void parallel(body run, void * context, uint32_t n) {
    pthread_once(&once, begin);
    team * t = own;
    if (!t) {
        if (posix_memalign((void **) &t, 64, sizeof(*t)) != 0) {
            abort();
        }
        *t = (team) {0};
        own = t;
        pthread_setspecific(key, t);
    }
    if (n < 1 || current) {  // one inside another
        n = 1;
    }
    if (n > N_MAX) {
        n = N_MAX;
    }
    while (t->n_spawned + 1 < n) {
        member * m = malloc(sizeof(*m));
        if (!m) {
            break;
        }
        *m = (member) {t, t->n_spawned + 1};
        pthread_t thread;
        pthread_attr_t attr;
        pthread_attr_init(&attr);
        pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
        // A thread that begins late looks for a start other than 0, and finds this region's or none.
        if (pthread_create(&thread, &attr, work, m) != 0) {
            free(m);
            pthread_attr_destroy(&attr);
            break;
        }
        pthread_attr_destroy(&attr);
        t->n_spawned++;
    }
    if (n > t->n_spawned + 1) {
        n = t->n_spawned + 1;
    }
    t->n = n;
    t->run = run;
    t->context = context;
    const uint32_t generation = (atomic_load_explicit(&t->start.value, memory_order_relaxed) >> 12) + 1;
    if (n > 1) {
        set(&t->start, generation << 12 | n);
    }
    team * outer = current;
    uint32_t outer_rank = rank;
    current = t;
    rank = 0;
    run(context);
    if (n > 1) {
        barrier(t);
    } else {
        atomic_store(&t->single, 0);
    }
    current = outer;
    rank = outer_rank;
}

int omp_get_num_threads(void) { return current ? (int) current->n : 1; }
int omp_get_thread_num(void) { return (int) rank; }
static bool take_single(void) { return !current || current->n == 1 || atomic_exchange(&current->single, 1) == 0; }
static void meet(void) {
    if (current && current->n > 1) {
        barrier(current);
    }
}

// LLVM's

typedef struct { void (*task)(int32_t *, int32_t *, ...); int n; void * args[8]; } kmpc_region;

static void kmpc_run(void * data) {
    kmpc_region * r = data;
    int32_t id = (int32_t) rank;
    void ** a = r->args;
    switch (r->n) {
        case 0: r->task(&id, &id); break;
        case 1: r->task(&id, &id, a[0]); break;
        case 2: r->task(&id, &id, a[0], a[1]); break;
        case 3: r->task(&id, &id, a[0], a[1], a[2]); break;
        case 4: r->task(&id, &id, a[0], a[1], a[2], a[3]); break;
        default: abort();
    }
}

int32_t __kmpc_global_thread_num(void * where) { (void) where; return (int32_t) rank; }
void __kmpc_push_num_threads(void * where, int32_t id, int32_t n) { (void) where; (void) id; asked = (uint32_t) n; }
void __kmpc_fork_call(void * where, int32_t n_args, void (*task)(int32_t *, int32_t *, ...), ...) {
    (void) where;
    kmpc_region r = {task, n_args, {0}};
    va_list list;
    va_start(list, task);
    for (int i = 0; i < n_args && i < 8; ++i) {
        r.args[i] = va_arg(list, void *);
    }
    va_end(list);
    uint32_t n = asked;
    asked = 0;
    pthread_once(&once, begin);
    parallel(kmpc_run, &r, n ? n : n_processors);
}
void __kmpc_barrier(void * where, int32_t id) { (void) where; (void) id; meet(); }
int32_t __kmpc_single(void * where, int32_t id) { (void) where; (void) id; return take_single(); }
void __kmpc_end_single(void * where, int32_t id) { (void) where; (void) id; }

// GCC's

void GOMP_parallel(void (*run)(void *), void * context, unsigned n, unsigned flags) {
    (void) flags;
    pthread_once(&once, begin);
    parallel(run, context, n ? n : n_processors);
}
void GOMP_barrier(void) { meet(); }
bool GOMP_single_start(void) { return take_single(); }
