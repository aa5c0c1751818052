/* What `dist/shimmy` does otherwise than PyInstaller's bootloader, whose sources stay as they are: the linker puts the
 * functions below in front of its own (`--wrap`). Built by tools/bootloader.py; part of a work under PyInstaller's
 * licence (GPL 2 or later, with its exception for what the bootloader is put in front of).
 *
 * - The program is the file that was started, whatever happens to its name afterwards: it is read through a descriptor.
 * - It is unpacked where there is room and where programs may run, if need be into memory, and a start that fails leaves
 *   nothing behind.
 * - The folder is locked while the program runs, and says whose it is: see shimmy/system/frozen_program.py.
 * - A file that was cut off says so, and how much of it is there.
 * - Signals that come while it unpacks or tidies up do not keep it from tidying up.
 * - Libraries of others, to which LD_LIBRARY_PATH leads, are not used.
 *
 * The portable file has two of it. The outer one (SHIMMY_OUTER) is linked with nothing, so that it starts on any Linux; it
 * unpacks and becomes the inner one (SHIMMY_INNER), which the system's C library runs where there is one that will do, and
 * else the one that the file brings along.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "libdeflate.h"

#include "pyi_global.h"
#include "pyi_archive.h"
#include "pyi_main.h"
#include "pyi_utils.h"

/* shimmy/system/unpacked_folder.py has the same three. */
#define LIBC_FOLDER "libc/"
#define MARKER "shimmy.home"
#define MARKER_TEXT "unpacked by shimmy\n"

#define LOWEST_FD 10 /* those below have meanings for shells, and for systemd */

/* Beside the numbers of errno. */
#define NO_EXECUTION -1
#define DAMAGED -2 /* the program's file, whatever folder it is unpacked to */

#define MAX_REPORT 4096
#define PIECE_BYTES 16384
#define LARGE_PAGE_BYTES ((uintptr_t)2 << 20)


/* -- the program as a file that is open ------------------------------------------------------------------------- */

char *__real_realpath(const char *path, char *resolved);

static int is_loader(void)
{
    char target[PYI_PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", target, sizeof(target) - 1);
    const char *name;

    if (length < 0) {
        return 1;
    }
    target[length] = 0;
    name = strrchr(target, '/');
    return name != NULL && strncmp(name, "/ld-", 4) == 0;
}

/* The running program's path, for which the bootloader asks first, becomes one that leads to its very file for as long
 * as this process lives. A process that was started by the same file belongs to the unpacked folder of the one that
 * started it; the bootloader tells so by the path, which is another one in each process. */
char *__wrap_realpath(const char *path, char *resolved)
{
    struct stat status;
    char identity[64];
    const char *inherited = getenv("_SHIMMY_PROGRAM");
    int first, fd;

#ifdef SHIMMY_INNER
    const char *outer = getenv("_SHIMMY_FILE");

    if (strcmp(path, "/proc/self/exe") == 0 && resolved != NULL && outer != NULL) {
        snprintf(resolved, PYI_PATH_MAX, "%s", outer);
        unsetenv("_SHIMMY_FILE");
        if (sscanf(resolved, "/proc/self/fd/%d", &fd) == 1) {
            fcntl(fd, F_SETFD, FD_CLOEXEC);
        }
        return resolved;
    }
#endif
    if (strcmp(path, "/proc/self/exe") != 0 || resolved == NULL || is_loader()) {
        return __real_realpath(path, resolved);
    }
    first = open(path, O_RDONLY | O_CLOEXEC);
    fd = fcntl(first, F_DUPFD_CLOEXEC, LOWEST_FD);
    close(first);
    if (fd < 0 || fstat(fd, &status) < 0) {
        return __real_realpath(path, resolved);
    }
    snprintf(resolved, PYI_PATH_MAX, "/proc/self/fd/%d", fd);
    snprintf(
        identity, sizeof(identity), "%llx-%llx-%llx",
        (unsigned long long)status.st_dev, (unsigned long long)status.st_ino, (unsigned long long)status.st_mtime
    );
    if (inherited != NULL && strcmp(inherited, identity) == 0) {
        setenv("_PYI_ARCHIVE_FILE", resolved, 1);
    } else {
        unsetenv("_PYI_ARCHIVE_FILE");
        setenv("_SHIMMY_PROGRAM", identity, 1);
    }
    return resolved;
}


/* -- a file that was cut off -------------------------------------------------------------------------------------- */

/* tools/bootloader.py writes the size of the finished file behind these words; 0 in the inner one, which lies in it. */
__attribute__((used)) static const volatile struct {
    char words[24];
    uint64_t n_bytes;
} WHOLE = {"size of the whole file:", 0};

struct ARCHIVE *__real_pyi_archive_open(const char *filename);

/* The archive ends with what describes it, which a file that was not fetched to its end lacks. */
struct ARCHIVE *__wrap_pyi_archive_open(const char *filename)
{
    struct stat status;

    if (stat(filename, &status) == 0 && (uint64_t)status.st_size < WHOLE.n_bytes) {
        fprintf(
            stderr, "shimmy: this file is incomplete, %lld of %llu bytes are there: fetch it again\n",
            (long long)status.st_size, (unsigned long long)WHOLE.n_bytes
        );
        exit(3);
    }
    return __real_pyi_archive_open(filename);
}


/* -- the folder it is unpacked to ------------------------------------------------------------------------------- */

/* In pieces: the kernel would keep what comes at once in large pages, of which it maps more than is used. */
static int write_all(int target, const unsigned char *data, size_t size)
{
    while (size > 0) {
        ssize_t n = write(target, data, size < PIECE_BYTES ? size : PIECE_BYTES);

        if (n < 0 && errno != EINTR) {
            return errno;
        }
        data += n > 0 ? n : 0;
        size -= n > 0 ? (size_t)n : 0;
    }
    return 0;
}

static int read_all(int source, unsigned char *data, size_t size, off_t place)
{
    while (size > 0) {
        ssize_t n = pread(source, data, size, place);

        if (n == 0) {
            return DAMAGED; /* it was cut off */
        }
        if (n < 0 && errno != EINTR) {
            return errno;
        }
        data += n > 0 ? n : 0;
        size -= n > 0 ? (size_t)n : 0;
        place += n > 0 ? n : 0;
    }
    return 0;
}

static int inflate_all(const unsigned char *packed, size_t n_packed, unsigned char *plain, size_t n_plain)
{
    struct libdeflate_decompressor *decompressor = libdeflate_alloc_decompressor();
    enum libdeflate_result result;

    if (decompressor == NULL) {
        return ENOMEM;
    }
    result = libdeflate_zlib_decompress(decompressor, packed, n_packed, plain, n_plain, NULL);
    libdeflate_free_decompressor(decompressor);
    return result == LIBDEFLATE_SUCCESS ? 0 : DAMAGED;
}

/* Write a file of the archive, whose bytes begin at `place` of another, to `target`; returns 0 or what failed. The memory
 * for that is given back, which that of malloc need not be. */
static int fill(int target, int source, off_t place, const struct TOC_ENTRY *entry)
{
    size_t n_packed = entry->compression_flag ? entry->length : 0;
    size_t n_plain = entry->uncompressed_length;
    size_t n_bytes = n_plain + n_packed + LARGE_PAGE_BYTES;
    unsigned char *memory = mmap(NULL, n_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    unsigned char *plain = (unsigned char *)(((uintptr_t)memory + LARGE_PAGE_BYTES - 1) & -LARGE_PAGE_BYTES);
    unsigned char *packed = plain + n_plain;
    int error;

    if (memory == MAP_FAILED) {
        return errno;
    }
    madvise(plain, n_plain + n_packed, MADV_HUGEPAGE); /* 3 ms less */
    if (entry->compression_flag) {
        error = read_all(source, packed, n_packed, place);
        error = error ? error : inflate_all(packed, n_packed, plain, n_plain);
    } else {
        error = read_all(source, plain, n_plain, place);
    }
    error = error ? error : write_all(target, plain, n_plain);
    munmap(memory, n_bytes);
    return error;
}

static int copy(const char *path, mode_t mode, int source, off_t place, const struct TOC_ENTRY *entry)
{
    int target = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);
    int error;

    if (target < 0) {
        return errno;
    }
    error = fill(target, source, place, entry);
    if (fchmod(target, mode) < 0 && error == 0) {
        error = errno;
    }
    if (close(target) < 0 && error == 0) {
        error = errno;
    }
    return error;
}

/* The same as a file in memory, which this process holds as long as the program runs, and a link to it. */
static int copy_to_memory(const char *path, int source, off_t place, const struct TOC_ENTRY *entry)
{
    char target[64];
    int fd = (int)syscall(SYS_memfd_create, "shimmy", MFD_CLOEXEC);
    int error;

    if (fd < 0) {
        return errno;
    }
    error = fill(fd, source, place, entry);
    snprintf(target, sizeof(target), "/proc/%d/fd/%d", getpid(), fd);
    if (error == 0 && (symlink(target, path) < 0 || access(path, R_OK) < 0)) {
        error = errno;
    }
    if (error) {
        close(fd);
    }
    return error;
}

static int write_marker(const char *path)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    int error = 0;

    if (fd < 0) {
        return errno;
    }
    if (write(fd, MARKER_TEXT, strlen(MARKER_TEXT)) != (ssize_t)strlen(MARKER_TEXT)) {
        error = errno ? errno : ENOSPC;
    }
    return close(fd) < 0 && error == 0 ? errno : error;
}

/* Make the folders above a file of the folder. */
static int make_parents(char *path, size_t home_length)
{
    char *slash = path + home_length;

    while ((slash = strchr(slash + 1, '/')) != NULL) {
        int failed;

        *slash = 0;
        failed = mkdir(path, 0700) < 0 && errno != EEXIST;
        *slash = '/';
        if (failed) {
            return -1;
        }
    }
    return 0;
}

#ifdef SHIMMY_OUTER

#if defined(__x86_64__)
#define SYSTEM_LOADER "/lib64/ld-linux-x86-64.so.2"
#define MUSL_LOADER "/lib/ld-musl-x86_64.so.1"
#elif defined(__aarch64__)
#define SYSTEM_LOADER "/lib/ld-linux-aarch64.so.1"
#define MUSL_LOADER "/lib/ld-musl-aarch64.so.1"
#endif

/* Whether the program runs with the C library of the file: where the system's is not glibc (Alpine), where it has none (an
 * empty container), or only something in its name that says so (NixOS). SHIMMY_LIBC=own asks for it elsewhere. */
static int brings_libc(void)
{
    char target[PYI_PATH_MAX];
    const char *wish = getenv("SHIMMY_LIBC");
    ssize_t length;

    if ((wish != NULL && strcmp(wish, "own") == 0) || access(SYSTEM_LOADER, X_OK) != 0 || access(MUSL_LOADER, F_OK) == 0) {
        return 1;
    }
    length = readlink(SYSTEM_LOADER, target, sizeof(target) - 1);
    target[length > 0 ? length : 0] = 0;
    return strstr(target, "stub-ld") != NULL || strstr(target, "musl") != NULL || strstr(target, "gcompat") != NULL;
}

#else

static int brings_libc(void)
{
    return 0;
}

#endif

/* Data is what few processes need: shimmy/system/unpacked_folder.py unpacks it when one does. */
static int is_unpacked(const struct TOC_ENTRY *entry)
{
    return (entry->typecode == ARCHIVE_ITEM_BINARY || entry->typecode == ARCHIVE_ITEM_ZIPFILE)
        && (strncmp(entry->name, LIBC_FOLDER, strlen(LIBC_FOLDER)) != 0 || brings_libc());
}

static int unpack(const struct ARCHIVE *archive, const char *home, int may_run)
{
    const struct TOC_ENTRY *entry;
    char path[PYI_PATH_MAX];
    int source = open(archive->filename, O_RDONLY | O_CLOEXEC);
    int error = source < 0 ? errno : 0;

    for (entry = archive->toc; entry < archive->toc_end && !error; entry = pyi_archive_next_toc_entry(archive, entry)) {
        int is_code = entry->typecode == ARCHIVE_ITEM_BINARY;
        off_t place = (off_t)archive->pkg_offset + entry->offset;

        if (!is_unpacked(entry)) {
            continue;
        }
        if (snprintf(path, sizeof(path), "%s/%s", home, entry->name) >= (int)sizeof(path)) {
            error = ENAMETOOLONG;
        } else if (make_parents(path, strlen(home)) < 0) {
            error = errno;
        } else if (is_code && !may_run) {
            error = copy_to_memory(path, source, place, entry);
        } else {
            error = copy(path, is_code ? 0700 : 0600, source, place, entry);
        }
    }
    if (source >= 0) {
        close(source);
    }
    return error;
}

/* Whether code in the folder may run, which a file system that is mounted `noexec` does not let it: 0 or NO_EXECUTION. */
static int run_error(const char *marker)
{
    int fd = open(marker, O_RDONLY | O_CLOEXEC);
    void *page = mmap(NULL, 1, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0);

    close(fd);
    if (page != MAP_FAILED) {
        munmap(page, 1);
    }
    return page == MAP_FAILED ? NO_EXECUTION : 0;
}

/* Unpack into a new folder in `parent`; returns 0, or what failed, and then nothing is left there. With `in_memory`, the
 * libraries are not in the folder, where they might not run. The folder is locked before it can be told as ours, until
 * this process and the one that it starts have ended. */
static int settle(struct PYI_CONTEXT *pyi_ctx, const char *parent, int in_memory)
{
    char marker[PYI_PATH_MAX];
    char *home = pyi_ctx->application_home_dir;
    int error, first, lock;

    if (snprintf(marker, PYI_PATH_MAX, "%s/_MEI%08xXXXXXX/%s", parent, getpid(), MARKER) >= PYI_PATH_MAX) {
        return ENAMETOOLONG;
    }
    snprintf(home, strlen(marker) - strlen(MARKER), "%s", marker);
    if (mkdtemp(home) == NULL) {
        return errno;
    }
    memcpy(marker, home, strlen(home));
    first = open(home, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    lock = fcntl(first, F_DUPFD, LOWEST_FD); /* the program inherits this one */
    close(first);
    flock(lock, LOCK_SH); /* where there are no locks, nobody can be told to stay out */
    error = write_marker(marker);
    if (error == 0 && !in_memory) {
        error = run_error(marker);
    }
    if (error == 0) {
        error = unpack(pyi_ctx->archive, home, !in_memory);
    }
    if (error) {
        pyi_recursive_rmdir(home);
        close(lock);
    }
    return error;
}

static double unpacked_mb(const struct ARCHIVE *archive)
{
    const struct TOC_ENTRY *entry;
    double n_bytes = 0;

    for (entry = archive->toc; entry < archive->toc_end; entry = pyi_archive_next_toc_entry(archive, entry)) {
        n_bytes += is_unpacked(entry) ? entry->uncompressed_length : 0;
    }
    return n_bytes / 1e6;
}

/* Where to look for room: what a variable says, if there is one, and a folder below. */
static const struct {
    const char *variable;
    const char *below;
} PLACES[] = {
    {"TMPDIR", ""}, {"TEMP", ""}, {"TMP", ""}, {NULL, "/tmp"}, {NULL, "/var/tmp"}, {"XDG_RUNTIME_DIR", ""},
    {"XDG_CACHE_HOME", "/shimmy"}, {"HOME", "/.cache/shimmy"}, {NULL, "/dev/shm"},
};

#define N_PLACES (sizeof(PLACES) / sizeof(PLACES[0]))

/* Write the real path of a place; what a variable says need not have the folder below yet. Returns whether it is one. */
static int find_place(size_t index, char *path)
{
    const char *base = PLACES[index].variable ? getenv(PLACES[index].variable) : "";
    const char *below = PLACES[index].below;
    char wanted[PYI_PATH_MAX];

    if (base == NULL || (base[0] == 0 && PLACES[index].variable != NULL)
        || snprintf(wanted, sizeof(wanted), "%s%s/", base, below) >= (int)sizeof(wanted)) {
        return 0;
    }
    if (below[0] != 0 && base[0] != 0) {
        make_parents(wanted, strlen(base));
    }
    wanted[strlen(base) + strlen(below)] = 0;
    if (__real_realpath(wanted, path) == NULL) {
        snprintf(path, PYI_PATH_MAX, "%s", wanted);
    }
    return 1;
}

/* Signals that end a program wait while it is unpacked, until they can be passed on to the process that is started then:
 * a folder that is half there would stay behind. */
static sigset_t mask_before;
static int are_signals_held = 0;

static void hold_signals(void)
{
    sigset_t held;

    sigemptyset(&held);
    sigaddset(&held, SIGTERM);
    sigaddset(&held, SIGINT);
    sigaddset(&held, SIGHUP);
    sigaddset(&held, SIGQUIT);
    are_signals_held = sigprocmask(SIG_BLOCK, &held, &mask_before) == 0;
}

static void release_signals(void)
{
    if (are_signals_held) {
        are_signals_held = 0;
        sigprocmask(SIG_SETMASK, &mask_before, NULL);
    }
}

int __real_execvp(const char *file, char *const arguments[]);
pid_t __real_waitpid(pid_t pid, int *status, int options);

/* Called in the new process, which waits until the outer one can pass on signals. */
int __wrap_execvp(const char *file, char *const arguments[])
{
    release_signals();
    return __real_execvp(file, arguments);
}

/* Called by the outer process, which passes on signals from now on. */
pid_t __wrap_waitpid(pid_t pid, int *status, int options)
{
    release_signals();
    return __real_waitpid(pid, status, options);
}

/* Called by the bootloader's outer process, which has opened the archive and unpacks it next: that is done here
 * as well, so that another folder can be tried. Where code may run from none of them, it may from memory. Ends the
 * process where nothing will do. */
int __wrap_pyi_create_temporary_application_directory(struct PYI_CONTEXT *pyi_ctx)
{
    char report[MAX_REPORT] = "";
    char places[N_PLACES][PYI_PATH_MAX];
    size_t i, j, n_places = 0, length = 0;

    hold_signals();
    for (i = 0; i < N_PLACES; i++) {
        char *place = places[n_places];
        const char *reason;
        int error;

        if (!find_place(i, place)) {
            continue;
        }
        for (j = 0; strcmp(places[j], place) != 0; j++) {
        }
        if (j < n_places) {
            continue; /* it has been tried */
        }
        n_places++;
        error = settle(pyi_ctx, place, 0);
        if (error == 0) {
            return 0;
        }
        if (error == DAMAGED) {
            fputs("shimmy: this file is damaged, perhaps it was not fetched to its end: fetch it again\n", stderr);
            exit(3);
        }
        reason = error == NO_EXECUTION ? "it is mounted `noexec`" : strerror(error);
        if (length < sizeof(report)) {
            length += (size_t)snprintf(report + length, sizeof(report) - length, "  `%s`: %s\n", place, reason);
        }
    }
    for (i = 0; i < n_places; i++) {
        if (settle(pyi_ctx, places[i], 1) == 0) {
            return 0;
        }
    }
    fprintf(
        stderr,
        "shimmy: there is no folder to unpack to:\n%sset `TMPDIR` to a folder that has %.0f MB of room, may be written "
        "to, and is not mounted `noexec`\n", report, unpacked_mb(pyi_ctx->archive) + 0.5
    );
    exit(3);
}

/* It has been done. */
int __wrap_pyi_launch_extract_files_from_archive(struct PYI_CONTEXT *pyi_ctx)
{
    (void)pyi_ctx;
    return 0;
}


/* -- its end ---------------------------------------------------------------------------------------------------- */

void (*__real_signal(int number, void (*handler)(int)))(int);
int __real_raise(int number);

/* The bootloader's outer process passes signals on to the inner one. After that one's end it would die of them itself,
 * before it has removed the folder: it goes on to take them, and there is nobody left to pass them on to. */
void (*__wrap_signal(int number, void (*handler)(int)))(int)
{
    return handler == SIG_DFL ? SIG_DFL : __real_signal(number, handler);
}

/* Called when the folder is gone, where the inner process died of a signal. */
int __wrap_raise(int number)
{
    __real_signal(number, SIG_DFL);
    return __real_raise(number);
}


/* -- the libraries it uses -------------------------------------------------------------------------------------- */

/* The bootloader's own would leave the user's folders behind ours, for libraries that it does not know of: the engine's
 * lie elsewhere. */
int __wrap_pyi_utils_set_library_search_path(const char *path)
{
    return setenv("LD_LIBRARY_PATH", path, 1);
}


/* -- the program itself ----------------------------------------------------------------------------------------- */

#ifdef SHIMMY_OUTER

/* Called where the bootloader would load Python into its process, which a program without libraries cannot: becomes the
 * inner one, for which everything is as it was for this process. Ends the process where that cannot be. */
void __wrap_pyi_launch_initialize(struct PYI_CONTEXT *pyi_ctx)
{
    char inner[PYI_PATH_MAX + 16], loader[PYI_PATH_MAX + 16], folders[2 * PYI_PATH_MAX + 16], level[16];
    const char *home = pyi_ctx->application_home_dir;
    char **arguments = calloc((size_t)pyi_ctx->argc + 5, sizeof(char *));
    int i, fd, n = 0;

    snprintf(inner, sizeof(inner), "%s/shimmy.inner", home);
    snprintf(loader, sizeof(loader), "%s/libc/ld.so", home);
    snprintf(folders, sizeof(folders), "%s/libc:%s", home, home);
    snprintf(level, sizeof(level), "%d", pyi_ctx->parent_process_level);
    setenv("_PYI_PARENT_PROCESS_LEVEL", level, 1);
    setenv("_SHIMMY_FILE", pyi_ctx->executable_filename, 1);
    if (sscanf(pyi_ctx->executable_filename, "/proc/self/fd/%d", &fd) == 1) {
        fcntl(fd, F_SETFD, 0);
    }
    if (access(loader, F_OK) == 0) {
        setenv("_SHIMMY_LIBC", "own", 1); /* shimmy/system/unpacked_folder.py reads this */
        arguments[n++] = loader;
        arguments[n++] = "--library-path";
        arguments[n++] = folders;
        arguments[n++] = inner;
    } else {
        unsetenv("_SHIMMY_LIBC");
        arguments[n++] = pyi_ctx->argv[0];
    }
    for (i = 1; i < pyi_ctx->argc; i++) {
        arguments[n++] = pyi_ctx->argv[i];
    }
    execv(arguments[0] == loader ? loader : inner, arguments);
    fprintf(stderr, "shimmy: the program cannot be started from `%s`: %s\n", home, strerror(errno));
    exit(3);
}

#endif
