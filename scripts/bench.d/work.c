/* What the rows of scripts/bench do with a directory, each in a process of its own.
 *
 * usage: work OPERATION ARGUMENTS... (see the table at the end)
 * Prints one JSON object: {"ns": [..]}, the time of each operation, or {"mib_per_s": x}, {"per_s": x}.
 *
 * MODE says how an update is made atomic: plain (open, write, close: the file system does it), full (a temporary
 * file, fsync, rename, fsync of the directory), rename (without the last), none (without either), sync (in place,
 * fsync; not atomic), copy (a whole copy of the file with the change, then as full).
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <libgen.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { KIB = 1024, MIB = 1024 * 1024 };

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

static void must(int ok, const char *what) {
    if (!ok) err(1, "%s", what);
}

/* Memory that is there already: no page fault of ours is measured. */
static char *touched(size_t size) {
    char *memory = malloc(size + 16);
    must(memory != NULL, "malloc");
    memset(memory, 0xa5, size + 16);
    return memory;
}

/* A JSON document of about this many bytes: an array of numbers. */
static char *document(size_t *size) {
    char *memory = touched(*size);
    char *end = memory;
    for (*end++ = '['; end < memory + *size - 1;) end = stpcpy(end, "1234567.5,");
    end = stpcpy(end, "0]");
    *size = (size_t)(end - memory);
    return memory;
}

static void print_samples(const int64_t *samples, long count) {
    printf("{\"ns\": [");
    for (long i = 0; i < count; i++) printf("%s%lld", i ? "," : "", (long long)samples[i]);
    printf("]}\n");
}

static void print_rate(const char *unit, double amount, int64_t ns) {
    printf("{\"%s\": %.3f}\n", unit, amount * 1e9 / (double)ns);
}

static int opened(const char *path, int flags) {
    int fd = open(path, flags | O_CLOEXEC, 0644);
    must(fd >= 0, path);
    return fd;
}

static void write_all(int fd, const char *data, size_t size) {
    while (size > 0) {
        ssize_t n = write(fd, data, size);
        must(n > 0, "write");
        data += n, size -= (size_t)n;
    }
}

static void sync_directory_of(const char *path) {
    char *copy = strdup(path);
    int fd = opened(dirname(copy), O_RDONLY | O_DIRECTORY);
    must(fsync(fd) == 0, "fsync of the directory");
    close(fd);
    free(copy);
}

static void publish(const char *temporary, const char *path, int fd, const char *mode) {
    if (strcmp(mode, "none") != 0) must(fsync(fd) == 0, "fsync");
    must(close(fd) == 0, "close");
    must(rename(temporary, path) == 0, "rename");
    if (strcmp(mode, "rename") != 0 && strcmp(mode, "none") != 0) sync_directory_of(path);
}

static void update(const char *path, const char *data, size_t size, const char *mode) {
    if (strcmp(mode, "plain") == 0) {
        int fd = opened(path, O_WRONLY | O_CREAT | O_TRUNC);
        write_all(fd, data, size);
        must(close(fd) == 0, "close");
        return;
    }
    char temporary[4096];
    snprintf(temporary, sizeof temporary, "%s.tmp", path);
    int fd = opened(temporary, O_WRONLY | O_CREAT | O_TRUNC);
    write_all(fd, data, size);
    publish(temporary, path, fd, mode);
}

static void edit(const char *path, const char *data, size_t size, off_t at, const char *mode) {
    if (strcmp(mode, "copy") != 0) {
        int fd = opened(path, O_RDWR);
        must(pwrite(fd, data, size, at) == (ssize_t)size, "pwrite");
        if (strcmp(mode, "sync") == 0) must(fsync(fd) == 0, "fsync");
        must(close(fd) == 0, "close");
        return;
    }
    char temporary[4096];
    snprintf(temporary, sizeof temporary, "%s.tmp", path);
    int from = opened(path, O_RDONLY), to = opened(temporary, O_RDWR | O_CREAT | O_TRUNC);
    struct stat st;
    must(fstat(from, &st) == 0, "fstat");
    for (off_t left = st.st_size; left > 0;) {
        ssize_t n = copy_file_range(from, NULL, to, NULL, (size_t)left, 0);
        must(n > 0, "copy_file_range");
        left -= n;
    }
    close(from);
    must(pwrite(to, data, size, at) == (ssize_t)size, "pwrite");
    publish(temporary, path, to, "full");
}

/* Operations. argv[0] is the operation's name. */

static void open_read_close(char **argv) {
    long count = atol(argv[2]);
    int64_t *samples = calloc((size_t)count, sizeof *samples);
    char *buffer = touched(4 * KIB);
    for (long i = -100; i < count; i++) {
        int64_t began = now();
        int fd = opened(argv[1], O_RDONLY);
        must(read(fd, buffer, 4 * KIB) > 0, "read");
        close(fd);
        if (i >= 0) samples[i] = now() - began;
    }
    print_samples(samples, count);
}

/* Each file of a directory once: file0, file1, ... */
static void open_read_close_each(char **argv) {
    long count = atol(argv[2]);
    int64_t *samples = calloc((size_t)count, sizeof *samples);
    char *buffer = touched(4 * KIB), path[4096];
    for (long i = 0; i < count; i++) {
        snprintf(path, sizeof path, "%s/file%ld", argv[1], i);
        int64_t began = now();
        int fd = opened(path, O_RDONLY);
        must(read(fd, buffer, 4 * KIB) > 0, "read");
        close(fd);
        samples[i] = now() - began;
    }
    print_samples(samples, count);
}

static void stat_file(char **argv) {
    long count = atol(argv[2]);
    int64_t *samples = calloc((size_t)count, sizeof *samples);
    struct stat st;
    for (long i = -100; i < count; i++) {
        int64_t began = now();
        must(stat(argv[1], &st) == 0, "stat");
        if (i >= 0) samples[i] = now() - began;
    }
    print_samples(samples, count);
}

static off_t read_through(const char *path, char *buffer) {
    int fd = opened(path, O_RDONLY);
    off_t size = 0;
    for (ssize_t n; (n = read(fd, buffer, MIB)) > 0;) size += n;
    close(fd);
    return size;
}

static void read_file(char **argv) {
    char *buffer = touched(MIB);
    read_through(argv[1], buffer);
    int64_t began = now();
    off_t size = read_through(argv[1], buffer);
    print_rate("mib_per_s", (double)size / MIB, now() - began);
}

static void pread_file(char **argv) {
    long count = atol(argv[2]);
    int64_t *samples = calloc((size_t)count, sizeof *samples);
    char *buffer = touched(MIB);
    off_t pages = read_through(argv[1], buffer) / (4 * KIB);
    int fd = opened(argv[1], O_RDONLY);
    srandom(1);
    for (long i = -100; i < count; i++) {
        off_t at = random() % pages * (4 * KIB);
        int64_t began = now();
        must(pread(fd, buffer, 4 * KIB, at) == 4 * KIB, "pread");
        if (i >= 0) samples[i] = now() - began;
    }
    print_samples(samples, count);
}

static void mmap_file(char **argv) {
    off_t size = read_through(argv[1], touched(MIB));
    int fd = opened(argv[1], O_RDONLY);
    int64_t began = now();
    const volatile char *memory = mmap(NULL, (size_t)size, PROT_READ, MAP_SHARED, fd, 0);
    must(memory != MAP_FAILED, "mmap");
    for (off_t at = 0; at < size; at += 4096) (void)memory[at];
    print_rate("mib_per_s", (double)size / MIB, now() - began);
}

static void update_file(char **argv) {
    long count = atol(argv[3]);
    size_t size = (size_t)atol(argv[2]);
    int64_t *samples = calloc((size_t)count, sizeof *samples);
    char *data = document(&size);
    for (long i = -2; i < count; i++) {
        int64_t began = now();
        update(argv[1], data, size, argv[4]);
        if (i >= 0) samples[i] = now() - began;
    }
    print_samples(samples, count);
}

static void edit_file(char **argv) {
    long count = atol(argv[2]);
    int64_t *samples = calloc((size_t)count, sizeof *samples);
    char *data = touched(4 * KIB);
    struct stat st;
    must(stat(argv[1], &st) == 0, "stat");
    srandom(2);
    for (long i = -1; i < count; i++) {
        off_t at = random() % (st.st_size / (4 * KIB)) * (4 * KIB);
        int64_t began = now();
        edit(argv[1], data, 4 * KIB, at, argv[3]);
        if (i >= 0) samples[i] = now() - began;
    }
    print_samples(samples, count);
}

/* Opens to update, and writes nothing. */
static void open_to_update(char **argv) {
    long count = atol(argv[2]);
    int64_t *samples = calloc((size_t)count, sizeof *samples);
    for (long i = -10; i < count; i++) {
        int64_t began = now();
        must(close(opened(argv[1], O_RDWR)) == 0, "close");
        if (i >= 0) samples[i] = now() - began;
    }
    print_samples(samples, count);
}

/* A record of 100 bytes, to a file that is held open; `close`: that is opened and closed for each, and made durable
 * by its close or (`sync`) by fsync. */
static void append(char **argv) {
    long count = atol(argv[2]);
    int held = strcmp(argv[3], "held") == 0, sync = strcmp(argv[3], "sync") == 0;
    int64_t *samples = calloc((size_t)count, sizeof *samples);
    char *record = touched(100);
    record[99] = '\n';
    int fd = held ? opened(argv[1], O_WRONLY | O_CREAT | O_APPEND) : -1;
    for (long i = -10; i < count; i++) {
        int64_t began = now();
        if (!held) fd = opened(argv[1], O_WRONLY | O_CREAT | O_APPEND);
        write_all(fd, record, 100);
        if (sync) must(fsync(fd) == 0, "fsync");
        if (!held) must(close(fd) == 0, "close");
        if (i >= 0) samples[i] = now() - began;
    }
    print_samples(samples, count);
}

/* Until the last write has returned: without fsync and close. */
static void write_file(char **argv) {
    long size = atol(argv[2]) * MIB;
    char *data = touched(MIB);
    int fd = opened(argv[1], O_WRONLY | O_CREAT | O_TRUNC);
    int64_t began = now();
    for (long done = 0; done < size; done += MIB) write_all(fd, data, MIB);
    int64_t took = now() - began;
    must(close(fd) == 0, "close");
    print_rate("mib_per_s", (double)size / MIB, took);
}

struct writer {
    char path[4096];
    const char *data, *mode;
    size_t size;
    long count;
    int64_t *samples;
};

static void *write_on(void *argument) {
    struct writer *writer = argument;
    for (long i = 0; i < writer->count; i++) {
        int64_t began = now();
        update(writer->path, writer->data, writer->size, writer->mode);
        writer->samples[i] = now() - began;
    }
    return NULL;
}

/* Threads that each update a file of their own, again and again. */
static void writers(char **argv) {
    long threads = atol(argv[2]), count = atol(argv[3]), size = atol(argv[4]);
    struct writer *all = calloc((size_t)threads, sizeof *all);
    pthread_t *ids = calloc((size_t)threads, sizeof *ids);
    char *data = touched((size_t)size);
    int64_t *samples = calloc((size_t)(threads * count), sizeof *samples);
    for (long i = 0; i < threads; i++) {
        all[i] = (struct writer){.data = data, .mode = argv[5], .size = (size_t)size, .count = count,
                                 .samples = samples + i * count};
        if (strcmp(argv[0], "writers-apart") == 0) {
            snprintf(all[i].path, sizeof all[i].path, "%s/directory%ld", argv[1], i);
            must(mkdir(all[i].path, 0755) == 0, all[i].path);
            snprintf(all[i].path, sizeof all[i].path, "%s/directory%ld/writer", argv[1], i);
        } else {
            snprintf(all[i].path, sizeof all[i].path, "%s/writer%ld", argv[1], i);
        }
        update(all[i].path, data, (size_t)size, argv[5]);
    }
    int64_t began = now();
    for (long i = 0; i < threads; i++) must(pthread_create(&ids[i], NULL, write_on, &all[i]) == 0, "thread");
    for (long i = 0; i < threads; i++) pthread_join(ids[i], NULL);
    print_rate("per_s", (double)(threads * count), now() - began);
}

/* Is a process asleep? What it was woken for last is over then. */
static int asleep(pid_t pid) {
    char path[64], text[512];
    snprintf(path, sizeof path, "/proc/%d/wchan", pid);
    int fd = open(path, O_RDONLY);
    ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
    if (fd >= 0) close(fd);
    text[n > 0 ? n : 0] = 0;
    return strstr(text, "request_wait") != NULL;
}

/* Files that are not there yet, file0 and so on, each made like an update. */
static void create_files(char **argv) {
    long count = atol(argv[2]), size = atol(argv[3]);
    int64_t *samples = calloc((size_t)count, sizeof *samples);
    char *data = touched((size_t)size), path[4096];
    for (long i = 0; i < count; i++) {
        snprintf(path, sizeof path, "%s/file%ld", argv[1], i);
        int64_t began = now();
        update(path, data, (size_t)size, argv[4]);
        samples[i] = now() - began;
    }
    print_samples(samples, count);
}

/* From the close() of one process to the return of the open() of another that waited for it.
 * Two writers that are no relations: what a parent and its child share has to be looked for in more places. */
static void hand_over(char **argv) {
    long count = atol(argv[2]);
    int64_t *samples = calloc((size_t)count, sizeof *samples);
    struct { int64_t closes, opened; } *at = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    must(at != MAP_FAILED, "mmap");
    update(argv[1], "content", 7, "plain");
    int order[2][2], done[2];
    pid_t writers[2];
    must(pipe(done) == 0, "pipe");
    for (int w = 0; w < 2; w++) {
        must(pipe(order[w]) == 0, "pipe");
        writers[w] = fork();
        must(writers[w] >= 0, "fork");
        if (writers[w] > 0) continue;
        /* At the first order it opens the file, at the next it closes it. */
        for (char byte; read(order[w][0], &byte, 1) == 1;) {
            int fd = opened(argv[1], O_WRONLY);
            if (w == 1) at->opened = now();
            must(write(done[1], "", 1) == 1, "write");
            must(read(order[w][0], &byte, 1) == 1, "read");
            if (w == 0) at->closes = now();
            must(close(fd) == 0, "close");
            must(write(done[1], "", 1) == 1, "write");
        }
        _exit(0);
    }
    for (long i = 0; i < count; i++) {
        char byte;
        must(write(order[0][1], "", 1) == 1 && read(done[0], &byte, 1) == 1, "the first writer opens");
        must(write(order[1][1], "", 1) == 1, "the second waits");
        struct timespec pause = {.tv_nsec = 1000000};
        for (int calm = 0; calm < 5;) {
            nanosleep(&pause, NULL);
            calm = asleep(writers[1]) ? calm + 1 : 0;
        }
        must(write(order[0][1], "", 1) == 1, "the first closes");
        for (int got = 0; got < 2;) got += (int)read(done[0], &byte, 1);
        samples[i] = at->opened - at->closes;
        must(write(order[1][1], "", 1) == 1 && read(done[0], &byte, 1) == 1, "the second closes");
    }
    for (int w = 0; w < 2; w++) must(kill(writers[w], SIGKILL) == 0 && waitpid(writers[w], NULL, 0) > 0, "kill");
    print_samples(samples, count);
}

static const struct {
    const char *name;
    int arguments;
    void (*work)(char **);
} operations[] = {
    {"open-read-close", 2, open_read_close},           /* FILE TIMES */
    {"open-read-close-each", 2, open_read_close_each}, /* DIRECTORY FILES */
    {"stat", 2, stat_file},                            /* FILE TIMES */
    {"read", 1, read_file},                            /* FILE */
    {"pread", 2, pread_file},                          /* FILE TIMES */
    {"mmap", 1, mmap_file},                            /* FILE */
    {"update", 4, update_file},                        /* FILE SIZE TIMES MODE */
    {"edit", 3, edit_file},                            /* FILE TIMES MODE */
    {"open-to-update", 2, open_to_update},             /* FILE TIMES */
    {"append", 3, append},                             /* FILE TIMES held|close|sync */
    {"write", 2, write_file},                          /* FILE MIB */
    {"writers", 5, writers},                           /* DIRECTORY THREADS TIMES SIZE MODE */
    {"writers-apart", 5, writers},                     /* the same, in a directory each */
    {"create", 4, create_files},                       /* DIRECTORY FILES SIZE MODE */
    {"hand-over", 2, hand_over},                       /* FILE TIMES */
};

int main(int argc, char **argv) {
    for (size_t i = 0; argc > 1 && i < sizeof operations / sizeof *operations; i++) {
        if (strcmp(argv[1], operations[i].name) == 0 && argc == operations[i].arguments + 2) {
            operations[i].work(argv + 1);
            return 0;
        }
    }
    fprintf(stderr, "work: unknown operation, or not its arguments\n");
    return 2;
}
