/* An HTTP load generator on one thread, and a server that costs next to nothing to find its ceiling with.
 *
 *   loadgen load ADDRESS PORT CLIENTS WARM_S SECONDS EVERY ANSWERS LATENCIES REQUEST...
 *     CLIENTS connections, each with one request at a time, for WARM_S uncounted and SECONDS counted. A REQUEST is a
 *     file of the bytes to send; they take turns. Every EVERY-th answer goes to the file ANSWERS as uint32 number of
 *     its request, uint32 length, bytes; every counted latency to the file LATENCIES as uint32, in units of 100 ns.
 *     One line of JSON at the end.
 *   loadgen serve ANSWER
 *     Answers every request with the bytes of the file ANSWER; prints the port it has taken, then serves until killed.
 *
 * Only what such a measurement needs of HTTP/1.1: kept connections, and bodies with a Content-Length.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define EVENTS 256
#define PIECE (1 << 18)

struct bytes {
    char *data;
    size_t length;
};

struct connection {
    int fd;
    int waits_to_write;
    size_t request; /* its number; the server has one answer only */
    size_t written; /* bytes of the message under way */
    char *in;
    size_t have, room, head, need; /* head and need: 0 until the head is whole */
    int64_t started_ns;
};

static int poller;

static void fail(const char *what) {
    fprintf(stderr, "loadgen: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int64_t now_ns(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (int64_t)at.tv_sec * 1000000000 + at.tv_nsec;
}

static double cpu_s(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

static struct bytes file_bytes(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) fail(path);
    fseek(file, 0, SEEK_END);
    struct bytes whole = {NULL, (size_t)ftell(file)};
    rewind(file);
    whole.data = malloc(whole.length + 1);
    if (!whole.data || fread(whole.data, 1, whole.length, file) != whole.length) fail(path);
    fclose(file);
    return whole;
}

static void watch(struct connection *peer, int operation) {
    struct epoll_event wanted = {.events = EPOLLIN | (peer->waits_to_write ? EPOLLOUT : 0), .data.ptr = peer};
    if (epoll_ctl(poller, operation, peer->fd, &wanted)) fail("epoll_ctl");
}

static void no_delay(int fd) {
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

/* Send what is left of the message. 0: the connection is gone. */
static int write_on(struct connection *peer, struct bytes message) {
    int waits = 0;
    while (peer->written < message.length) {
        ssize_t sent = send(peer->fd, message.data + peer->written, message.length - peer->written,
                            MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno == EAGAIN) {
            waits = 1;
            break;
        }
        if (sent <= 0) return 0;
        peer->written += (size_t)sent;
    }
    if (waits != peer->waits_to_write) {
        peer->waits_to_write = waits;
        watch(peer, EPOLL_CTL_MOD);
    }
    return 1;
}

/* Length of head and body once the head is whole; 0 before. A message without a Content-Length has no body. */
static void measure(struct connection *peer) {
    peer->in[peer->have] = 0;
    char *end = strstr(peer->in, "\r\n\r\n");
    if (!end) return;
    peer->head = (size_t)(end - peer->in) + 4;
    peer->need = peer->head;
    for (char *line = peer->in; line < end; line = strstr(line, "\r\n") + 2)
        if (!strncasecmp(line, "content-length:", 15)) peer->need += strtoul(line + 15, NULL, 10);
}

/* Take what has come. 1: the message is whole; 0: not yet; -1: the connection is gone. */
static int read_on(struct connection *peer) {
    for (;;) {
        if (peer->room < peer->have + PIECE + 1) {
            peer->room = (peer->have + PIECE + 1) * 2;
            peer->in = realloc(peer->in, peer->room);
            if (!peer->in) fail("realloc");
        }
        ssize_t got = recv(peer->fd, peer->in + peer->have, PIECE, MSG_DONTWAIT);
        if (got < 0 && errno == EAGAIN) return 0;
        if (got <= 0) return -1;
        peer->have += (size_t)got;
        if (!peer->need) measure(peer);
        if (peer->need && peer->have >= peer->need) return 1;
    }
}

static void next_message(struct connection *peer) {
    peer->have = peer->head = peer->need = peer->written = 0;
}

/* --- load ------------------------------------------------------------------------------------------------------- */

static struct sockaddr_in target;
static struct bytes *requests;
static size_t request_count, turn;

static void begin(struct connection *peer) {
    next_message(peer);
    peer->request = turn++ % request_count;
    peer->started_ns = now_ns();
}

static void connect_anew(struct connection *peer) {
    if (peer->fd) close(peer->fd);
    peer->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (peer->fd < 0 || connect(peer->fd, (struct sockaddr *)&target, sizeof target)) fail("connect");
    no_delay(peer->fd);
    peer->waits_to_write = 0;
    watch(peer, EPOLL_CTL_ADD);
    begin(peer);
    write_on(peer, requests[peer->request]);
}

static void keep(FILE *answers, struct connection *peer) {
    uint32_t head[2] = {(uint32_t)peer->request, (uint32_t)peer->need};
    fwrite(head, sizeof head, 1, answers);
    fwrite(peer->in, 1, peer->need, answers);
}

struct counts {
    uint64_t answered, failed, lost;
};

static void count(struct counts *counts, struct connection *peer, int64_t ended_ns, FILE *latencies) {
    if (strncmp(peer->in, "HTTP/1.1 200", 12)) {
        counts->failed++;
        return;
    }
    uint32_t units = (uint32_t)((ended_ns - peer->started_ns) / 100);
    fwrite(&units, sizeof units, 1, latencies);
    counts->answered++;
}

static int load(int argc, char **argv) {
    if (argc < 11) return 2;
    target.sin_family = AF_INET;
    target.sin_port = htons((uint16_t)atoi(argv[3]));
    if (inet_pton(AF_INET, argv[2], &target.sin_addr) != 1) fail(argv[2]);
    int clients = atoi(argv[4]);
    int64_t warm_ns = (int64_t)(atof(argv[5]) * 1e9), run_ns = (int64_t)(atof(argv[6]) * 1e9);
    uint64_t every = strtoull(argv[7], NULL, 10), seen = 0;
    FILE *answers = fopen(argv[8], "wb"), *latencies = fopen(argv[9], "wb");
    if (!answers || !latencies) fail("open");
    request_count = (size_t)(argc - 10);
    requests = calloc(request_count, sizeof *requests);
    for (size_t i = 0; i < request_count; i++) requests[i] = file_bytes(argv[10 + i]);

    struct connection *peers = calloc((size_t)clients, sizeof *peers);
    for (int i = 0; i < clients; i++) connect_anew(&peers[i]);
    struct counts counts = {0};
    int64_t begun_ns = now_ns() + warm_ns, now = 0;
    double cpu_before = -1;
    struct epoll_event events[EVENTS];
    while ((now = now_ns()) < begun_ns + run_ns) {
        if (cpu_before < 0 && now >= begun_ns) cpu_before = cpu_s();
        int ready = epoll_wait(poller, events, EVENTS, 10);
        for (int i = 0; i < ready; i++) {
            struct connection *peer = events[i].data.ptr;
            int state = events[i].events & EPOLLOUT && !write_on(peer, requests[peer->request]) ? -1 : 0;
            if (!state) state = read_on(peer);
            if (!state) continue;
            int64_t ended_ns = now_ns();
            /* By its end alone: else slow answers, under way when the time begins, would be missing. */
            int is_counted = ended_ns >= begun_ns && ended_ns < begun_ns + run_ns;
            if (state < 0) {
                counts.lost += (uint64_t)is_counted;
                connect_anew(peer);
                continue;
            }
            if (is_counted) count(&counts, peer, ended_ns, latencies);
            if (++seen % every == 0) keep(answers, peer);
            begin(peer);
            if (!write_on(peer, requests[peer->request])) connect_anew(peer);
        }
    }
    fclose(answers);
    fclose(latencies);
    printf("{\"answered\": %lu, \"failed\": %lu, \"lost\": %lu, \"finished\": %lu, \"seconds\": %.6f, \"cpu_s\": %.6f}\n",
           counts.answered, counts.failed, counts.lost, seen, run_ns / 1e9, cpu_s() - cpu_before);
    return 0;
}

/* --- serve ------------------------------------------------------------------------------------------------------ */

static void leave(struct connection *peer) {
    close(peer->fd);
    free(peer->in);
    free(peer);
}

static void answer(struct connection *peer, struct bytes message) {
    int state = peer->waits_to_write ? (write_on(peer, message) ? 0 : -1) : read_on(peer);
    if (state == 1) {
        next_message(peer);
        state = write_on(peer, message) ? 0 : -1;
    }
    if (state < 0) leave(peer);
}

_Noreturn static void serve(char **argv) {
    struct bytes message = file_bytes(argv[2]);
    struct sockaddr_in own = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof own;
    struct connection listener = {.fd = socket(AF_INET, SOCK_STREAM, 0)};
    if (bind(listener.fd, (struct sockaddr *)&own, sizeof own) || listen(listener.fd, 1024)) fail("listen");
    getsockname(listener.fd, (struct sockaddr *)&own, &length);
    watch(&listener, EPOLL_CTL_ADD);
    printf("%d\n", ntohs(own.sin_port));
    fflush(stdout);
    struct epoll_event events[EVENTS];
    for (;;) {
        int ready = epoll_wait(poller, events, EVENTS, -1);
        for (int i = 0; i < ready; i++) {
            struct connection *peer = events[i].data.ptr;
            if (peer != &listener) {
                answer(peer, message);
                continue;
            }
            struct connection *joined = calloc(1, sizeof *joined);
            joined->fd = accept(listener.fd, NULL, NULL);
            no_delay(joined->fd);
            watch(joined, EPOLL_CTL_ADD);
        }
    }
}

int main(int argc, char **argv) {
    poller = epoll_create1(0);
    if (argc > 2 && !strcmp(argv[1], "load")) return load(argc, argv);
    if (argc == 3 && !strcmp(argv[1], "serve")) serve(argv);
    fprintf(stderr, "usage: loadgen load … | serve …, see loadgen.c\n");
    return 2;
}
