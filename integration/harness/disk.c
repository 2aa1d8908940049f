/*
 * A disk that fails on command, between one process and libc: preloaded, for the files of one directory.
 *
 * DISK_DIRECTORY  the files that are meant; every other call passes.
 * DISK_CONTROL    a directory of ours:
 *   order    one line "SERIAL ACTION CALLS N": what to do to the named calls ("fdatasync+fsync", "rename", ...).
 *            Calls are counted from the moment a new order is seen.
 *              kill    the process ends before its N-th such call
 *              eio     the N-th fails with EIO
 *              enospc  from the N-th on all fail with ENOSPC
 *              hang    from the N-th on they do not return while the order stands
 *              delay   each takes N milliseconds longer
 *   done     a line "ACTION CALL FILE" for each call that the order hit, and for every later one that it names
 *   journal  how to undo what is not synced
 *   kept/    what was replaced or removed and is needed for that
 *
 * What is not synced is what a power cut may take: data until fsync or fdatasync of its file, names until fsync
 * of their directory. Before each change the journal gets what was there. With DISK_CUT set the library does nothing
 * but undo it, latest first: that is the state after a cut which took everything that it may.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#define NAME 64

enum kind { WROTE = 1, MADE, RENAMED, REMOVED };

struct entry {
    uint32_t kind;
    uint32_t pending;
    uint64_t inode;
    uint64_t offset;      /* WROTE */
    uint64_t size_before; /* WROTE */
    uint32_t length;      /* WROTE: so many old bytes follow */
    uint32_t kept;        /* RENAMED, REMOVED: the file kept/<this>, if not 0 */
    char from[NAME];
    char to[NAME];
};

struct known {
    uint32_t kind;
    uint64_t inode;
    uint64_t number; /* rising */
    off_t at;
};

static char directory[4096], control[4096];
static int armed;
static int journal = -1;
static struct known *pending;
static size_t pending_count, pending_room;
static uint64_t last_number;
static off_t journal_end;
static uint32_t kept_count;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static int (*real_fsync)(int);
static int (*real_fdatasync)(int);
static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
static int (*real_rename)(const char *, const char *);
static int (*real_unlink)(const char *);
static int (*real_open)(const char *, int, ...);

static void die(const char *what) {
    fprintf(stderr, "the faulty disk: %s: %s\n", what, strerror(errno));
    abort();
}

static void join(char *out, const char *dir, const char *name) {
    if (snprintf(out, 4096 + 2 * NAME, "%s/%s", dir, name) < 0) die("path");
}

/* The name of a file that is directly in the directory, "" for the directory itself, NULL for all else. */
static const char *below(const char *path) {
    size_t length = strlen(directory);
    if (strncmp(path, directory, length) != 0) return NULL;
    if (path[length] == 0) return "";
    if (path[length] != '/' || strchr(path + length + 1, '/')) return NULL;
    return strlen(path + length + 1) < NAME ? path + length + 1 : NULL;
}

static const char *name_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, 4095);
    if (length < 0) return NULL;
    path[length] = 0;
    return below(path);
}

static void note(const char *action, const char *call, const char *name) {
    char path[4096 + 2 * NAME], line[256];
    join(path, control, "done");
    int fd = real_open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
    int length = snprintf(line, sizeof line, "%s %s %s\n", action, call, *name ? name : ".");
    if (fd < 0 || real_write(fd, line, (size_t)length) < 0) die("done");
    close(fd);
}

struct order {
    long serial, n;
    char action[16], calls[64];
};

static int read_order(struct order *order) {
    char path[4096 + 2 * NAME], text[256];
    join(path, control, "order");
    int fd = real_open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    ssize_t length = read(fd, text, sizeof text - 1);
    close(fd);
    if (length <= 0) return 0;
    text[length] = 0;
    return sscanf(text, "%ld %15s %63s %ld", &order->serial, order->action, order->calls, &order->n) == 4;
}

static int named(const char *calls, const char *call) {
    size_t length = strlen(call);
    for (const char *at = calls; *at;) {
        size_t part = strcspn(at, "+");
        if (part == length && strncmp(at, call, part) == 0) return 1;
        at += part + (at[part] == '+');
    }
    return 0;
}

/* The error that the call is to have, or 0. */
static int obey(const char *call, const char *name) {
    static long serial, count;
    struct order order;
    if (!read_order(&order) || !named(order.calls, call)) return 0;
    pthread_mutex_lock(&lock);
    if (order.serial != serial) serial = order.serial, count = 0;
    long n = ++count;
    pthread_mutex_unlock(&lock);
    if (strcmp(order.action, "delay") == 0) {
        usleep((useconds_t)order.n * 1000);
        return 0;
    }
    if (n < order.n) return 0;
    note(order.action, call, name);
    if (strcmp(order.action, "kill") == 0) {
        kill(getpid(), SIGKILL);
        for (;;) pause();
    }
    if (strcmp(order.action, "eio") == 0) return n == order.n ? EIO : 0;
    if (strcmp(order.action, "enospc") == 0) return ENOSPC;
    if (strcmp(order.action, "hang") == 0) {
        struct order now;
        while (read_order(&now) && now.serial == order.serial) usleep(2000);
    }
    return 0;
}

static void remember(const struct entry *entry, off_t at) {
    if (pending_count == pending_room) {
        pending_room = pending_room ? 2 * pending_room : 1024;
        pending = realloc(pending, pending_room * sizeof *pending);
        if (!pending) die("memory");
    }
    pending[pending_count++] = (struct known){entry->kind, entry->inode, ++last_number, at};
}

static void record(const struct entry *entry, const void *old) {
    if (real_pwrite(journal, entry, sizeof *entry, journal_end) != sizeof *entry) die("journal");
    remember(entry, journal_end);
    journal_end += sizeof *entry;
    if (entry->length) {
        if (real_pwrite(journal, old, entry->length, journal_end) != (ssize_t)entry->length) die("journal");
        journal_end += entry->length;
    }
}

static void forget_all(void) {
    if (ftruncate(journal, 0) < 0) die("journal");
    journal_end = 0;
    pending_count = 0;
    for (; kept_count > 0; kept_count--) {
        char path[4096 + 2 * NAME], name[NAME];
        snprintf(name, sizeof name, "kept/%u", kept_count);
        join(path, control, name);
        real_unlink(path);
    }
}

/* What was pending up to entry `number` is synced: the data of one file, or the names (inode 0). */
static void synced(uint64_t inode, uint64_t number) {
    size_t left = 0;
    uint32_t no = 0;
    for (size_t i = 0; i < pending_count; i++) {
        struct known known = pending[i];
        int its = inode ? known.kind == WROTE && known.inode == inode : known.kind != WROTE;
        if (!its || known.number > number) {
            pending[left++] = known;
            continue;
        }
        off_t at = known.at + (off_t)offsetof(struct entry, pending);
        if (real_pwrite(journal, &no, sizeof no, at) != sizeof no) die("journal");
    }
    pending_count = left;
    if (left == 0) forget_all();
}

/* Another name for the file, so that it outlives its own; 0 when there is no such file. */
static uint32_t keep(const char *path) {
    char other[4096 + 2 * NAME], name[NAME];
    if (access(path, F_OK) != 0) return 0;
    snprintf(name, sizeof name, "kept/%u", ++kept_count);
    join(other, control, name);
    if (link(path, other) < 0) die(other);
    return kept_count;
}

static uint64_t inode_of(const char *path) {
    struct stat status;
    return stat(path, &status) == 0 ? status.st_ino : 0;
}

static void before_write(int fd, off_t offset, size_t length) {
    struct stat status;
    if (fstat(fd, &status) < 0) die("fstat");
    struct entry entry = {.kind = WROTE, .pending = 1, .inode = status.st_ino, .offset = (uint64_t)offset};
    entry.size_before = (uint64_t)status.st_size;
    size_t old = offset < status.st_size ? (size_t)(status.st_size - offset) : 0;
    old = old < length ? old : length;
    char *bytes = malloc(old + 1), path[64];
    if (!bytes) die("memory");
    if (old) {
        /* The descriptor may be for writing only. */
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        int again = real_open(path, O_RDONLY | O_CLOEXEC);
        if (again < 0 || pread(again, bytes, old, offset) != (ssize_t)old) die("what was there");
        close(again);
    }
    entry.length = (uint32_t)old;
    record(&entry, bytes);
    free(bytes);
}

/* The path under which the file with this inode is now. */
static int find(const char *dir, uint64_t inode, char *path) {
    DIR *listing = opendir(dir);
    struct dirent *file;
    int found = 0;
    while (listing && !found && (file = readdir(listing))) {
        if (file->d_ino == inode) join(path, dir, file->d_name), found = 1;
    }
    if (listing) closedir(listing);
    return found;
}

static void undo(const struct entry *entry, off_t old) {
    char from[4096 + 2 * NAME], to[4096 + 2 * NAME], other[4096 + 2 * NAME], name[NAME];
    join(from, directory, entry->from);
    join(to, directory, entry->to);
    snprintf(name, sizeof name, "kept/%u", entry->kept);
    join(other, control, name);
    switch (entry->kind) {
    case WROTE: {
        char kept[4096 + 2 * NAME];
        join(kept, control, "kept");
        if (!find(directory, entry->inode, from) && !find(kept, entry->inode, from)) return;
        int fd = real_open(from, O_RDWR | O_CLOEXEC);
        char *bytes = malloc(entry->length + 1);
        if (fd < 0 || !bytes || pread(journal, bytes, entry->length, old) != (ssize_t)entry->length) die(from);
        if (real_pwrite(fd, bytes, entry->length, (off_t)entry->offset) < 0) die(from);
        if (ftruncate(fd, (off_t)entry->size_before) < 0) die(from);
        close(fd);
        free(bytes);
        return;
    }
    case MADE:
        real_unlink(from);
        return;
    case RENAMED:
        /* Killed in between: it was not renamed. */
        if (access(from, F_OK) == 0 || inode_of(to) != entry->inode) return;
        if (real_rename(to, from) < 0) die(from);
        if (entry->kept && real_rename(other, to) < 0) die(to);
        return;
    case REMOVED:
        if (real_rename(other, from) < 0) die(from);
        return;
    }
}

static void load(int cut) {
    struct entry entry;
    off_t end = lseek(journal, 0, SEEK_END), *places = NULL;
    size_t count = 0;
    for (off_t at = 0; at + (off_t)sizeof entry <= end;) {
        if (pread(journal, &entry, sizeof entry, at) != sizeof entry) break;
        off_t next = at + (off_t)sizeof entry + entry.length;
        /* Killed while it was written: what it is about was not done. */
        if (next > end) break;
        if (entry.kept > kept_count) kept_count = entry.kept;
        if (entry.pending) {
            remember(&entry, at);
            places = realloc(places, (count + 1) * sizeof *places);
            if (!places) die("memory");
            places[count++] = at;
        }
        at = journal_end = next;
    }
    while (cut && count-- > 0) {
        if (pread(journal, &entry, sizeof entry, places[count]) != sizeof entry) die("journal");
        undo(&entry, places[count] + (off_t)sizeof entry);
    }
    free(places);
    if (cut) forget_all();
}

__attribute__((constructor)) static void begin(void) {
    real_fsync = dlsym(RTLD_NEXT, "fsync");
    real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
    real_write = dlsym(RTLD_NEXT, "write");
    real_pwrite = dlsym(RTLD_NEXT, "pwrite64");
    real_rename = dlsym(RTLD_NEXT, "rename");
    real_unlink = dlsym(RTLD_NEXT, "unlink");
    real_open = dlsym(RTLD_NEXT, "open64");
    const char *of = getenv("DISK_DIRECTORY"), *by = getenv("DISK_CONTROL");
    if (!of || !by) return;
    snprintf(directory, sizeof directory, "%s", of);
    snprintf(control, sizeof control, "%s", by);
    char path[4096 + 2 * NAME];
    join(path, control, "journal");
    journal = real_open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (journal < 0) die(path);
    load(getenv("DISK_CUT") != NULL);
    /* The servers that this process starts have a disk of their own. */
    unsetenv("LD_PRELOAD");
    armed = 1;
}

static int sync_file(const char *call, int (*real)(int), int fd) {
    char path[4096];
    const char *name = armed ? name_of(fd, path) : NULL;
    if (!name) return real(fd);
    pthread_mutex_lock(&lock);
    uint64_t number = last_number;
    pthread_mutex_unlock(&lock);
    int error = obey(call, name);
    if (error) {
        errno = error;
        return -1;
    }
    int result = real(fd);
    struct stat status;
    if (result == 0 && fstat(fd, &status) == 0) {
        pthread_mutex_lock(&lock);
        synced(*name ? status.st_ino : 0, number);
        pthread_mutex_unlock(&lock);
    }
    return result;
}

int fsync(int fd) { return sync_file("fsync", real_fsync, fd); }
int fdatasync(int fd) { return sync_file("fdatasync", real_fdatasync, fd); }

static int is_file(int fd) {
    struct stat status;
    return armed && fstat(fd, &status) == 0 && S_ISREG(status.st_mode);
}

ssize_t write(int fd, const void *bytes, size_t length) {
    char path[4096];
    const char *name = is_file(fd) ? name_of(fd, path) : NULL;
    if (!name) return real_write(fd, bytes, length);
    int error = obey("write", name);
    if (error) {
        errno = error;
        return -1;
    }
    pthread_mutex_lock(&lock);
    before_write(fd, lseek(fd, 0, SEEK_CUR), length);
    ssize_t result = real_write(fd, bytes, length);
    pthread_mutex_unlock(&lock);
    return result;
}

ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t offset) {
    char path[4096];
    const char *name = is_file(fd) ? name_of(fd, path) : NULL;
    if (!name) return real_pwrite(fd, bytes, length, offset);
    int error = obey("pwrite", name);
    if (error) {
        errno = error;
        return -1;
    }
    pthread_mutex_lock(&lock);
    before_write(fd, offset, length);
    ssize_t result = real_pwrite(fd, bytes, length, offset);
    pthread_mutex_unlock(&lock);
    return result;
}

/* Of programs that are built without large files by name. */
ssize_t pwrite(int fd, const void *bytes, size_t length, off_t offset) {
    return pwrite64(fd, bytes, length, offset);
}

int rename(const char *from, const char *to) {
    const char *old = armed ? below(from) : NULL, *new = armed ? below(to) : NULL;
    if (!old || !new) return real_rename(from, to);
    int error = obey("rename", old);
    if (error) {
        errno = error;
        return -1;
    }
    pthread_mutex_lock(&lock);
    struct entry entry = {.kind = RENAMED, .pending = 1, .inode = inode_of(from), .kept = keep(to)};
    snprintf(entry.from, NAME, "%s", old);
    snprintf(entry.to, NAME, "%s", new);
    record(&entry, NULL);
    int result = real_rename(from, to);
    pthread_mutex_unlock(&lock);
    return result;
}

int unlink(const char *path) {
    const char *name = armed ? below(path) : NULL;
    if (!name) return real_unlink(path);
    int error = obey("unlink", name);
    if (error) {
        errno = error;
        return -1;
    }
    pthread_mutex_lock(&lock);
    struct entry entry = {.kind = REMOVED, .pending = 1, .inode = inode_of(path), .kept = keep(path)};
    snprintf(entry.from, NAME, "%s", name);
    if (entry.kept) record(&entry, NULL);
    int result = real_unlink(path);
    pthread_mutex_unlock(&lock);
    return result;
}

int open64(const char *path, int flags, ...) {
    __builtin_va_list arguments;
    __builtin_va_start(arguments, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? __builtin_va_arg(arguments, mode_t) : 0;
    __builtin_va_end(arguments);
    if (!real_open) real_open = dlsym(RTLD_NEXT, "open64");
    const char *name = armed && (flags & O_CREAT) ? below(path) : NULL;
    if (!name || access(path, F_OK) == 0) return real_open(path, flags, mode);
    int error = obey("create", name);
    if (error) {
        errno = error;
        return -1;
    }
    pthread_mutex_lock(&lock);
    struct entry entry = {.kind = MADE, .pending = 1};
    snprintf(entry.from, NAME, "%s", name);
    record(&entry, NULL);
    int fd = real_open(path, flags, mode);
    pthread_mutex_unlock(&lock);
    return fd;
}
