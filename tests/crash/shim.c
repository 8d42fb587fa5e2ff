/* Records what a program does to the files of one folder, and makes chosen calls fail. Loaded by LD_PRELOAD.
 *
 * Every call that changes or syncs a file or a name below CRASH_FOLDER is appended to CRASH_LOG, in the order in which
 * the calls ended. The test replays that log onto a simulated disk. The calls themselves are raw system calls, so one
 * hook never calls another.
 *
 * Environment:
 *   CRASH_FOLDER     the folder, as an absolute path without symbolic links and without a slash at its end
 *   CRASH_LOG        the log; records are appended, so several processes can share one
 *   CRASH_EXISTING   if set, the files that exist at the start are logged with their content
 *   CRASH_FAIL       kind:n:errno[:times], kind fsync, write or rename: from the n-th call of that kind on, this many
 *                    calls (1) do nothing and fail
 *   CRASH_KILL       n[@mark]: the process ends just before its n-th call that changes or syncs something, counted
 *                    from the mark with this prefix, or from the start
 *   CRASH_SWALLOW    all, wal or a number: these syncs (those of -wal files, the one with this number from 1) are not
 *                    done, and succeed; the log does not contain them as syncs
 *
 * Two kinds of files are special. `acknowledged` is not part of the disk: what is written to it becomes a mark in the
 * log. Files that end in -shm never outlive the processes that use them: they are not watched.
 *
 * A record of the log is a header and the bytes of a name and of data, see `struct header`. Numbers are of the
 * machine's own byte order. What cannot be recorded, such as a folder in the folder, is logged as UNSUPPORTED, and the
 * test fails. System calls that do not use the C library are not recorded. */

#undef _FORTIFY_SOURCE
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum operation {
    CREATE = 1,   /* inode, name */
    WRITE,        /* inode, offset, data */
    TRUNCATE,     /* inode, length */
    ALLOCATE,     /* inode, length: the file has at least this length afterwards */
    RENAME,       /* inode, name, new name as data */
    UNLINK,       /* inode, name */
    SYNC_BEGIN,   /* inode or FOLDER, number */
    SYNC_END,     /* inode or FOLDER, number, error */
    MARK,         /* data */
    FAILED,       /* name, error: a write or rename that was made to fail */
    START,        /* number: that of the process */
    EXISTING,     /* inode, name, data */
    SWALLOWED,    /* name */
    UNSUPPORTED,  /* name */
};

struct header {
    uint32_t operation;
    int32_t error;
    uint64_t inode;
    uint64_t number; /* offset, length or number */
    uint32_t name_bytes;
    uint32_t data_bytes;
};

/* The folder itself, instead of an inode. */
#define FOLDER 0

enum kind { OTHER, FSYNC, DATA, NAME };

struct file {
    char is_watched, is_folder, is_mark;
    uint64_t inode;
    char name[80]; /* the name with which it was opened */
};

#define MAX_FILES 65536
static struct file files[MAX_FILES];

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static char folder[PATH_MAX];
static size_t folder_bytes;
static int log_file = -1;

static enum kind fail_kind = OTHER;
static long fail_from, fail_times;
static int fail_error;
static long failable[NAME + 1];

static long kill_at, calls;
static char kill_mark[64];
static int is_counting = 1;

static enum { NONE, ALL, WAL, ONE } swallow = NONE;
static long swallow_at, syncs_seen;
static uint64_t sync_number;

static void die(const char *what) {
    dprintf(2, "the recorder: %s: %s\n", what, strerror(errno));
    _exit(99);
}

static void record(enum operation operation, int error, uint64_t inode, uint64_t number, const char *name,
                   const void *data, size_t data_bytes) {
    struct header header = {operation, error, inode, number, name ? strlen(name) : 0, data_bytes};
    struct iovec parts[3] = {{&header, sizeof header}, {(void *)name, header.name_bytes}, {(void *)data, data_bytes}};
    size_t all = sizeof header + header.name_bytes + data_bytes;
    if (syscall(SYS_writev, log_file, parts, 3) != (long)all) die("the log cannot be written");
}

static int ends_with(const char *text, const char *end) {
    size_t text_bytes = strlen(text), end_bytes = strlen(end);
    return text_bytes >= end_bytes && strcmp(text + text_bytes - end_bytes, end) == 0;
}

/* Finds whether a path is in the folder; `absolute` then contains the absolute path. Returns the name in the folder,
 * "" for the folder itself, NULL for other paths. */
static const char *watched(int at, const char *path, char absolute[PATH_MAX]) {
    if (log_file < 0 || !path) return NULL;
    if (path[0] == '/') {
        if (snprintf(absolute, PATH_MAX, "%s", path) >= PATH_MAX) return NULL;
    } else {
        char base[PATH_MAX], link[64];
        snprintf(link, sizeof link, at == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", at);
        long bytes = syscall(SYS_readlinkat, AT_FDCWD, link, base, sizeof base - 1);
        if (bytes < 0) return NULL;
        base[bytes] = 0;
        if (snprintf(absolute, PATH_MAX, "%s/%s", base, path) >= PATH_MAX) return NULL;
    }
    if (strncmp(absolute, folder, folder_bytes) != 0) return NULL;
    const char *rest = absolute + folder_bytes;
    while (rest[0] == '/' && (rest[1] == '/' || rest[1] == 0)) rest++;
    if (rest[0] == 0) return "";
    if (rest[0] != '/' || ends_with(rest, "-shm")) return NULL;
    return rest + 1;
}

/* Counts a call that changes or syncs something, and ends the process if this is the chosen call. */
static void step(void) {
    if (kill_at && is_counting && ++calls == kill_at) _exit(137);
}

/* Whether this call must fail. */
static int fails(enum kind kind) {
    long call = ++failable[kind];
    return kind == fail_kind && call >= fail_from && call < fail_from + fail_times;
}

__attribute__((constructor)) static void begin(void) {
    const char *wanted = getenv("CRASH_FOLDER"), *log = getenv("CRASH_LOG");
    if (!wanted || !log) return;
    snprintf(folder, sizeof folder, "%s", wanted);
    folder_bytes = strlen(folder);
    const char *fail = getenv("CRASH_FAIL");
    if (fail) {
        char kind[16] = "";
        fail_times = 1;
        if (sscanf(fail, "%15[a-z]:%ld:%d:%ld", kind, &fail_from, &fail_error, &fail_times) < 3) die("CRASH_FAIL");
        fail_kind = !strcmp(kind, "fsync") ? FSYNC : !strcmp(kind, "write") ? DATA : NAME;
    }
    const char *kill = getenv("CRASH_KILL");
    if (kill && sscanf(kill, "%ld@%63s", &kill_at, kill_mark) == 2) is_counting = 0;
    const char *swallowed = getenv("CRASH_SWALLOW");
    if (swallowed) {
        swallow = !strcmp(swallowed, "all") ? ALL : !strcmp(swallowed, "wal") ? WAL : ONE;
        swallow_at = atol(swallowed);
    }
    log_file = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (log_file < 0) die(log);
    record(START, 0, 0, (uint64_t)getpid(), NULL, NULL, 0);
    if (!getenv("CRASH_EXISTING")) return;
    DIR *list = opendir(folder);
    if (!list) die(folder);
    for (struct dirent *entry; (entry = readdir(list));) {
        char path[PATH_MAX];
        struct stat status;
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        if (stat(path, &status) != 0 || !S_ISREG(status.st_mode)) continue;
        if (ends_with(path, "-shm") || !strcmp(entry->d_name, "acknowledged")) continue;
        char *content = malloc(status.st_size + 1);
        long file = syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
        if (!content || file < 0 || syscall(SYS_read, file, content, status.st_size) != status.st_size) die(path);
        record(EXISTING, 0, status.st_ino, 0, entry->d_name, content, status.st_size);
        syscall(SYS_close, file);
        free(content);
    }
    closedir(list);
}

/* The end of the process must not come between a call and its record. */
__attribute__((destructor)) static void end(void) {
    if (log_file >= 0) pthread_mutex_lock(&mutex);
}

static struct file *find(int fd) {
    return log_file >= 0 && fd >= 0 && fd < MAX_FILES && files[fd].is_watched ? &files[fd] : NULL;
}

static int open_it(int at, const char *path, int flags, mode_t mode) {
    char absolute[PATH_MAX];
    const char *name = watched(at, path, absolute);
    if (!name) return (int)syscall(SYS_openat, at, path, flags, mode);
    pthread_mutex_lock(&mutex);
    struct stat status = {0};
    int is_mark = !strcmp(name, "acknowledged");
    int was_there = stat(absolute, &status) == 0;
    int creates = (flags & O_CREAT) && !was_there && !is_mark;
    int cuts = (flags & O_TRUNC) && was_there && status.st_size > 0 && !is_mark;
    if (creates || cuts) step();
    int fd = (int)syscall(SYS_openat, at, path, flags, mode);
    int error = errno;
    if (fd >= MAX_FILES) die("too many open files");
    if (fd >= 0) {
        if (fstat(fd, &status) != 0) die(path);
        files[fd] = (struct file){1, name[0] == 0, is_mark, status.st_ino, ""};
        snprintf(files[fd].name, sizeof files[fd].name, "%s", name);
        if (creates) record(CREATE, 0, status.st_ino, 0, name, NULL, 0);
        if (cuts) record(TRUNCATE, 0, status.st_ino, 0, NULL, NULL, 0);
        if ((flags & O_TMPFILE) == O_TMPFILE) record(UNSUPPORTED, 0, 0, 0, "O_TMPFILE", NULL, 0);
        if (flags & (O_DSYNC | O_DIRECT)) record(UNSUPPORTED, 0, 0, 0, "O_DSYNC or O_DIRECT", NULL, 0);
    }
    pthread_mutex_unlock(&mutex);
    errno = error;
    return fd;
}

#define MODE_OF(flags)                                                                                                 \
    mode_t mode = 0;                                                                                                   \
    if ((flags) & (O_CREAT | O_TMPFILE)) {                                                                             \
        va_list more;                                                                                                  \
        va_start(more, flags);                                                                                         \
        mode = va_arg(more, mode_t);                                                                                   \
        va_end(more);                                                                                                  \
    }

int open(const char *path, int flags, ...) {
    MODE_OF(flags)
    return open_it(AT_FDCWD, path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    MODE_OF(flags)
    return open_it(AT_FDCWD, path, flags, mode);
}

int openat(int at, const char *path, int flags, ...) {
    MODE_OF(flags)
    return open_it(at, path, flags, mode);
}

int openat64(int at, const char *path, int flags, ...) {
    MODE_OF(flags)
    return open_it(at, path, flags, mode);
}

int __open_2(const char *path, int flags) { return open_it(AT_FDCWD, path, flags, 0); }
int __open64_2(const char *path, int flags) { return open_it(AT_FDCWD, path, flags, 0); }
int creat(const char *path, mode_t mode) { return open_it(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return open_it(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

int close(int fd) {
    struct file *file = find(fd);
    if (!file) return (int)syscall(SYS_close, fd);
    pthread_mutex_lock(&mutex);
    file->is_watched = 0;
    int result = (int)syscall(SYS_close, fd);
    pthread_mutex_unlock(&mutex);
    return result;
}

/* Remembers that a descriptor refers to the same file as another one. */
static int same(int old, int new) {
    if (new >= 0 && new < MAX_FILES && old >= 0 && old < MAX_FILES && new != old) files[new] = files[old];
    return new;
}

int dup(int fd) { return same(fd, (int)syscall(SYS_dup, fd)); }
int dup2(int fd, int to) { return fd == to ? fd : same(fd, (int)syscall(SYS_dup3, fd, to, 0)); }
int dup3(int fd, int to, int flags) { return same(fd, (int)syscall(SYS_dup3, fd, to, flags)); }

static int control(int fd, int command, void *argument) {
    int result = (int)syscall(SYS_fcntl, fd, command, argument);
    return command == F_DUPFD || command == F_DUPFD_CLOEXEC ? same(fd, result) : result;
}

#define ARGUMENT_OF(command)                                                                                           \
    va_list more;                                                                                                      \
    va_start(more, command);                                                                                           \
    void *argument = va_arg(more, void *);                                                                             \
    va_end(more);

int fcntl(int fd, int command, ...) {
    ARGUMENT_OF(command)
    return control(fd, command, argument);
}

int fcntl64(int fd, int command, ...) {
    ARGUMENT_OF(command)
    return control(fd, command, argument);
}

/* Writes at an offset, or at the current position. */
static ssize_t write_it(struct file *file, int fd, const void *data, size_t bytes, off_t at, int is_placed) {
    pthread_mutex_lock(&mutex);
    if (file->is_mark) {
        record(MARK, 0, 0, 0, NULL, data, bytes);
        if (kill_mark[0] && bytes >= strlen(kill_mark) && !memcmp(data, kill_mark, strlen(kill_mark))) is_counting = 1;
        ssize_t written = syscall(SYS_write, fd, data, bytes);
        pthread_mutex_unlock(&mutex);
        return written;
    }
    step();
    ssize_t written = -1;
    int error = 0;
    if (fails(DATA)) {
        record(FAILED, fail_error, file->inode, 0, "write", NULL, 0);
        error = fail_error;
    } else {
        if (!is_placed) {
            int is_appending = (int)syscall(SYS_fcntl, fd, F_GETFL) & O_APPEND;
            at = syscall(SYS_lseek, fd, 0, is_appending ? SEEK_END : SEEK_CUR);
        }
        written = is_placed ? syscall(SYS_pwrite64, fd, data, bytes, at) : syscall(SYS_write, fd, data, bytes);
        error = errno;
        if (written > 0) record(WRITE, 0, file->inode, (uint64_t)at, NULL, data, written);
    }
    pthread_mutex_unlock(&mutex);
    errno = error;
    return written;
}

ssize_t write(int fd, const void *data, size_t bytes) {
    struct file *file = find(fd);
    return file ? write_it(file, fd, data, bytes, 0, 0) : syscall(SYS_write, fd, data, bytes);
}

ssize_t pwrite(int fd, const void *data, size_t bytes, off_t at) {
    struct file *file = find(fd);
    return file ? write_it(file, fd, data, bytes, at, 1) : syscall(SYS_pwrite64, fd, data, bytes, at);
}

ssize_t pwrite64(int fd, const void *data, size_t bytes, off64_t at) { return pwrite(fd, data, bytes, at); }

/* Several pieces as one write. */
static ssize_t write_pieces(struct file *file, int fd, const struct iovec *pieces, int count, off_t at, int is_placed) {
    size_t bytes = 0, end = 0;
    for (int piece = 0; piece < count; piece++) bytes += pieces[piece].iov_len;
    char *all = malloc(bytes + 1);
    if (!all) die("memory");
    for (int piece = 0; piece < count; end += pieces[piece++].iov_len)
        memcpy(all + end, pieces[piece].iov_base, pieces[piece].iov_len);
    ssize_t written = write_it(file, fd, all, bytes, at, is_placed);
    int error = errno;
    free(all);
    errno = error;
    return written;
}

ssize_t writev(int fd, const struct iovec *pieces, int count) {
    struct file *file = find(fd);
    return file ? write_pieces(file, fd, pieces, count, 0, 0) : syscall(SYS_writev, fd, pieces, count);
}

ssize_t pwritev(int fd, const struct iovec *pieces, int count, off_t at) {
    struct file *file = find(fd);
    return file ? write_pieces(file, fd, pieces, count, at, 1) : syscall(SYS_pwritev, fd, pieces, count, at, 0);
}

ssize_t pwritev64(int fd, const struct iovec *pieces, int count, off64_t at) { return pwritev(fd, pieces, count, at); }

/* Copies inside the kernel cannot be recorded. After these errors, callers continue with reads and writes. */
ssize_t copy_file_range(int from, off64_t *from_at, int to, off64_t *to_at, size_t bytes, unsigned flags) {
    if (!find(to)) return syscall(SYS_copy_file_range, from, from_at, to, to_at, bytes, flags);
    errno = ENOSYS;
    return -1;
}

ssize_t sendfile(int to, int from, off_t *at, size_t bytes) {
    if (!find(to)) return syscall(SYS_sendfile, to, from, at, bytes);
    errno = EINVAL;
    return -1;
}

ssize_t sendfile64(int to, int from, off64_t *at, size_t bytes) { return sendfile(to, from, at, bytes); }

/* Sets the length of a file, or its minimum length. */
static int resize(uint64_t inode, int fd, off_t length, enum operation operation, int mode, off_t from) {
    pthread_mutex_lock(&mutex);
    step();
    int result = -1, error = 0;
    if (fails(DATA)) {
        record(FAILED, fail_error, inode, 0, operation == TRUNCATE ? "truncate" : "allocate", NULL, 0);
        error = fail_error;
    } else {
        result = (int)(operation == TRUNCATE ? syscall(SYS_ftruncate, fd, length)
                                             : syscall(SYS_fallocate, fd, mode, from, length - from));
        error = errno;
        if (result == 0 && operation == ALLOCATE && mode & ~FALLOC_FL_KEEP_SIZE)
            record(UNSUPPORTED, 0, inode, 0, "fallocate that changes content", NULL, 0);
        if (result == 0 && !(mode & FALLOC_FL_KEEP_SIZE)) record(operation, 0, inode, (uint64_t)length, NULL, NULL, 0);
    }
    pthread_mutex_unlock(&mutex);
    errno = error;
    return result;
}

int ftruncate(int fd, off_t length) {
    struct file *file = find(fd);
    return file ? resize(file->inode, fd, length, TRUNCATE, 0, 0) : (int)syscall(SYS_ftruncate, fd, length);
}

int ftruncate64(int fd, off64_t length) { return ftruncate(fd, length); }

int truncate(const char *path, off_t length) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    int result = ftruncate(fd, length), error = errno;
    close(fd);
    errno = error;
    return result;
}

int truncate64(const char *path, off64_t length) { return truncate(path, length); }

int fallocate(int fd, int mode, off_t from, off_t bytes) {
    struct file *file = find(fd);
    if (!file) return (int)syscall(SYS_fallocate, fd, mode, from, bytes);
    return resize(file->inode, fd, from + bytes, ALLOCATE, mode, from);
}

int fallocate64(int fd, int mode, off64_t from, off64_t bytes) { return fallocate(fd, mode, from, bytes); }

int posix_fallocate(int fd, off_t from, off_t bytes) {
    int before = errno, result = fallocate(fd, 0, from, bytes) ? errno : 0;
    errno = before;
    return result;
}

int posix_fallocate64(int fd, off64_t from, off64_t bytes) { return posix_fallocate(fd, from, bytes); }

/* A sync covers what was written before it began, and takes effect when it ends: both are logged. */
static int sync_it(struct file *file, int fd, long call) {
    pthread_mutex_lock(&mutex);
    long seen = ++syncs_seen;
    if (swallow == ALL || (swallow == WAL && ends_with(file->name, "-wal")) || (swallow == ONE && seen == swallow_at)) {
        record(SWALLOWED, 0, 0, 0, file->name, NULL, 0);
        pthread_mutex_unlock(&mutex);
        return 0;
    }
    step();
    uint64_t inode = file->is_folder ? FOLDER : file->inode, number = ++sync_number;
    record(SYNC_BEGIN, 0, inode, number, NULL, NULL, 0);
    if (fails(FSYNC)) {
        record(SYNC_END, fail_error, inode, number, NULL, NULL, 0);
        pthread_mutex_unlock(&mutex);
        errno = fail_error;
        return -1;
    }
    pthread_mutex_unlock(&mutex);
    int result = (int)syscall(call, fd), error = errno;
    pthread_mutex_lock(&mutex);
    record(SYNC_END, result == 0 ? 0 : error, inode, number, NULL, NULL, 0);
    pthread_mutex_unlock(&mutex);
    errno = error;
    return result;
}

int fsync(int fd) {
    struct file *file = find(fd);
    return file ? sync_it(file, fd, SYS_fsync) : (int)syscall(SYS_fsync, fd);
}

int fdatasync(int fd) {
    struct file *file = find(fd);
    return file ? sync_it(file, fd, SYS_fdatasync) : (int)syscall(SYS_fdatasync, fd);
}

int renameat2(int from_at, const char *from, int to_at, const char *to, unsigned flags) {
    char from_absolute[PATH_MAX], to_absolute[PATH_MAX];
    const char *old = watched(from_at, from, from_absolute), *new = watched(to_at, to, to_absolute);
    if (!old && !new) return (int)syscall(SYS_renameat2, from_at, from, to_at, to, flags);
    pthread_mutex_lock(&mutex);
    step();
    struct stat status = {0};
    int result = -1, error = 0;
    if (fails(NAME)) {
        record(FAILED, fail_error, 0, 0, "rename", NULL, 0);
        error = fail_error;
    } else {
        int was_there = old && stat(from_absolute, &status) == 0;
        result = (int)syscall(SYS_renameat2, from_at, from, to_at, to, flags);
        error = errno;
        if (result == 0 && (!was_there || !new || flags))
            record(UNSUPPORTED, 0, 0, 0, "rename out of the folder, into it, or with flags", NULL, 0);
        else if (result == 0)
            record(RENAME, 0, status.st_ino, 0, old, new, strlen(new));
    }
    pthread_mutex_unlock(&mutex);
    errno = error;
    return result;
}

int rename(const char *from, const char *to) { return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0); }
int renameat(int from_at, const char *from, int to_at, const char *to) {
    return renameat2(from_at, from, to_at, to, 0);
}

int unlinkat(int at, const char *path, int flags) {
    char absolute[PATH_MAX];
    const char *name = watched(at, path, absolute);
    if (!name || flags & AT_REMOVEDIR) return (int)syscall(SYS_unlinkat, at, path, flags);
    pthread_mutex_lock(&mutex);
    struct stat status = {0};
    int was_there = lstat(absolute, &status) == 0;
    if (was_there) step();
    int result = (int)syscall(SYS_unlinkat, at, path, flags), error = errno;
    if (result == 0) record(UNLINK, 0, status.st_ino, 0, name, NULL, 0);
    pthread_mutex_unlock(&mutex);
    errno = error;
    return result;
}

int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }

int remove(const char *path) {
    int result = unlinkat(AT_FDCWD, path, 0);
    return result != 0 && errno == EISDIR ? (int)syscall(SYS_unlinkat, AT_FDCWD, path, AT_REMOVEDIR) : result;
}

/* Calls that the simulated disk does not support. */
static void unsupported(const char *path, int at, const char *what) {
    char absolute[PATH_MAX];
    const char *name = watched(at, path, absolute);
    if (!name || !name[0]) return;
    pthread_mutex_lock(&mutex);
    record(UNSUPPORTED, 0, 0, 0, what, NULL, 0);
    pthread_mutex_unlock(&mutex);
}

int mkdir(const char *path, mode_t mode) {
    unsupported(path, AT_FDCWD, "mkdir");
    return (int)syscall(SYS_mkdirat, AT_FDCWD, path, mode);
}

int mkdirat(int at, const char *path, mode_t mode) {
    unsupported(path, at, "mkdir");
    return (int)syscall(SYS_mkdirat, at, path, mode);
}

int linkat(int from_at, const char *from, int to_at, const char *to, int flags) {
    unsupported(to, to_at, "link");
    return (int)syscall(SYS_linkat, from_at, from, to_at, to, flags);
}

int link(const char *from, const char *to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }

int symlink(const char *target, const char *path) {
    unsupported(path, AT_FDCWD, "symlink");
    return (int)syscall(SYS_symlinkat, target, AT_FDCWD, path);
}

/* A shared mapping that can be written changes the file without a call. */
void *mmap(void *at, size_t bytes, int protection, int flags, int fd, off_t from) {
    if (find(fd) && flags & MAP_SHARED && protection & PROT_WRITE) {
        pthread_mutex_lock(&mutex);
        record(UNSUPPORTED, 0, files[fd].inode, 0, "mmap", NULL, 0);
        pthread_mutex_unlock(&mutex);
    }
    return (void *)syscall(SYS_mmap, at, bytes, protection, flags, fd, from);
}

void *mmap64(void *at, size_t bytes, int protection, int flags, int fd, off64_t from) {
    return mmap(at, bytes, protection, flags, fd, from);
}
