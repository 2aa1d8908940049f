/* A slow disk: preloaded into all processes of a host. Each fsync and fdatasync takes as many milliseconds more as the
 * file that SLOW_DISK names says; without that file, none. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static void wait_for_the_disk(void) {
    const char *path = getenv("SLOW_DISK");
    int order = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (order < 0) return;
    char text[16] = {0};
    ssize_t length = read(order, text, sizeof text - 1);
    close(order);
    long millis = length > 0 ? atol(text) : 0;
    struct timespec wait = {.tv_sec = millis / 1000, .tv_nsec = millis % 1000 * 1000000};
    if (millis > 0) nanosleep(&wait, NULL);
}

int fsync(int fd) {
    wait_for_the_disk();
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    return real(fd);
}

int fdatasync(int fd) {
    wait_for_the_disk();
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    return real(fd);
}
