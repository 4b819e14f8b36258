/* The load generator: many WebSocket or MQTT subscribers and a few HTTP or MQTT publishers in one epoll thread, which counts frames.
 *
 *     load MODE name=value …          prints one JSON line, and what went wrong on stderr
 *
 *   publish   subscribe everybody, then post the requests of a file again and again, in one of two ways:
 *             closed loop (`rate=0`): each of `publishers` connections posts as soon as its last post was answered, while at
 *             most `backlog` publishes are still on their way to subscribers (1: one publish at a time);
 *             open loop (`rate=50`): 50 posts a second whatever happens, and a histogram of the time from the moment a post
 *             was due to the moment each subscriber had it.
 *   hold      connect `n` clients as fast as the server takes them, then read what the server's memory grew by.
 *   churn     `n` places; `rate` times a second one client leaves (saying so, closing, or resetting) and another comes.
 *   resume    `n` pages; one connection publishes `rate` events a second. After `warm` seconds the processes `kill=1:2` are
 *             killed. A page whose connection is lost connects again after a second, as pusher-js does, at most `burst` under way
 *             at a time. Ends when all pages have resumed, and counts missed and repeated events of each page.
 *   presence  `n` connections are there; then all join one presence channel, at most `burst` under way at a time, each signed
 *             ahead with `key` and `secret`. Ends when everybody knows everybody: the members in a client's own answer and
 *             the member_added behind it are `n` together. Or when nothing has come for three seconds: then some know too
 *             few or too many (`uneven`), and the time is that of the last frame. Done twice, on two channels: the first
 *             time warms up, the second counts.
 *
 * The clients are Pusher clients, or with `pusher=0` clients that are subscribed when they are connected. With `page=1` they are
 * pages: `%p` in `path` stands for a page's name, and a client is ready when each channel has resumed, or has not. With `sse=1`
 * they read server-sent events: a client is ready after the first block, and an event is a block of at least `least` bytes with
 * a `~`. With `each=20`, each client subscribes to 20 of the channels, and receives a publish on each of them.
 *
 * With `mqtt=4` (3.1.1) or `mqtt=5`, the clients speak MQTT: a client is ready when its SUBSCRIBE for `filter` with `qos` is
 * acknowledged, and an event is a PUBLISH of at least `least` bytes. A client acknowledges the events of one read with one write.
 * With `clean=0`, its session is persistent. `absent=10000` more clients with such sessions connect and leave before the run.
 * `user` and `password` are in each CONNECT.
 * With `publish_mqtt=4` or 5, the publishers speak MQTT, and the file has PUBLISH packets. With `qos=0` only `backlog` holds them
 * back; with `qos=1` each has at most `window` unacknowledged publishes too.
 *
 * `port` and `api` may be several, 1:2:3, of several nodes: clients and publishers take them in turn.
 *
 * The file of requests comes from bench.py, which knows how each server wants to be asked (and signs ahead of time): each is
 * its length in decimal, a newline, and its bytes. Request i publishes to channel i mod `channels`, client i subscribes to
 * that channel too, so every publish has n*each/channels receivers. For latency, request i carries `~i~` (eight digits) in its
 * data. A subscriber's frame counts when it is a whole text frame of at least `least` bytes: pings and replies are shorter.
 *
 * Server figures come from /proc, summed over `pids=1:2:3`: CPU time from stat, memory (PSS) from smaps_rollup.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum stage { ABSENT, CONNECTING, UPGRADING, GREETING, SUBSCRIBING, READY, LEAVING };

struct client {
    int fd;
    uint16_t generation;    /* tells an event of this connection from one of the place's last */
    uint8_t stage, matched; /* bytes of the blank line that ends the handshake's answer */
    uint8_t header[10], headers, inside;
    uint8_t kept;
    char head[128]; /* the first bytes of a frame, where event names and `~id~` are */
    uint64_t length, left;
    uint64_t seen;
    uint32_t answers; /* confirmed subscriptions, and with pages the `resumed` after each of them */
    uint32_t expected, repeats; /* in the run of resuming pages: the number of the next event, and of events that came again */
    uint64_t again; /* when to connect again, ns */
};

struct member { /* a client's part in the run of joins */
    char subscribe[512], socket_id[40];
    char tail[65]; /* the last bytes of a frame, where the count of members is */
    size_t length, kept;
    uint64_t listed, added; /* members in the answer, and those that came behind it */
};

struct publisher {
    int fd, busy; /* requests without an answer */
    size_t have;
    uint16_t packet_id;
    size_t unsent; /* bytes in `rest`, which the socket did not take yet */
    char answer[8192], rest[1024];
};

struct request {
    char *bytes;
    size_t length;
    uint64_t due; /* when it was last to be sent, ns */
};

struct mark { /* everything counted, at one moment */
    uint64_t at, received, published, answered;
    double server_cpu, load_cpu;
};

/* What may be said on the command line. */
static const char *host = "127.0.0.1", *path = "/", *file = NULL, *pids = "", *ports = "", *apis = "", *key = "", *secret = "";
static const char *victims = "", *filter = "%s", *user = "", *password = "";
static long page, sse, each = 1;
static long mqtt, publish_mqtt, qos, clean = 1, absent, window = 1;
static long pusher = 1, n = 1, channels = 1, publishers = 1, backlog = 1, rate, least = 1, burst = 64, base = 100;
static double seconds = 5, warm = 0.5, patience = 60;
static const struct { const char *name; long *number; double *real; const char **text; } OPTIONS[] = {
    {"host", 0, 0, &host},         {"path", 0, 0, &path},       {"file", 0, 0, &file},       {"pids", 0, 0, &pids},
    {"port", 0, 0, &ports},        {"api", 0, 0, &apis},        {"key", 0, 0, &key},         {"secret", 0, 0, &secret},
    {"pusher", &pusher, 0, 0},     {"n", &n, 0, 0},             {"page", &page, 0, 0},       {"sse", &sse, 0, 0},
    {"each", &each, 0, 0},         {"kill", 0, 0, &victims},
    {"mqtt", &mqtt, 0, 0},         {"publish_mqtt", &publish_mqtt, 0, 0}, {"qos", &qos, 0, 0}, {"clean", &clean, 0, 0},
    {"filter", 0, 0, &filter},     {"user", 0, 0, &user},       {"password", 0, 0, &password}, {"absent", &absent, 0, 0},
    {"window", &window, 0, 0},
    {"channels", &channels, 0, 0}, {"publishers", &publishers, 0, 0}, {"backlog", &backlog, 0, 0}, {"rate", &rate, 0, 0},
    {"least", &least, 0, 0},       {"burst", &burst, 0, 0},     {"base", &base, 0, 0},       {"seconds", 0, &seconds, 0},
    {"warm", 0, &warm, 0},         {"patience", 0, &patience, 0},
};

static int poller, timer = -1;
static struct client *clients;
static struct member *members; /* in the run of joins only */
static struct publisher *posts;
static struct request *requests;
static size_t request_count, next_request;
static uint64_t *published_on; /* publishes a channel */
static uint64_t published, answered, refused, redialled, received, ready, connecting, failed, closed, ticks;
static uint64_t pongs, recovered, unrecovered, missed; /* answered pusher:ping events; outcomes of resuming */
static int resuming; /* the run of pages that resume is on */
static uint64_t joined, listed, added, last_came; /* in the run of joins: answers, members in them, members told of, when */
static uint64_t count_from = UINT64_MAX, count_to; /* latencies of publishes due in this span are kept */
static uint32_t *histogram;                        /* one bucket a microsecond, the last one for everything above */
enum { BUCKETS = 2000000 };
static unsigned char buffer[1 << 18];

static void die(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    exit(1);
}

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ---- the server's and our own use of the machine ------------------------------------------------------------------- */

static double server_sum(int memory) { /* CPU seconds, or KiB of memory, over all of the server's processes */
    double sum = 0;
    for (const char *at = pids; *at; at += strcspn(at, ":"), at += *at == ':') {
        char name[64], text[4096], *found;
        snprintf(name, sizeof name, "/proc/%d/%s", atoi(at), memory ? "smaps_rollup" : "stat");
        FILE *stream = fopen(name, "r");
        if (!stream) continue;
        text[fread(text, 1, sizeof text - 1, stream)] = 0;
        fclose(stream);
        unsigned long user = 0, system = 0;
        if (memory) {
            if ((found = strstr(text, "\nPss:"))) sum += strtod(found + 5, NULL);
        } else if ((found = strrchr(text, ')')) &&
                   sscanf(found + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system) == 2) {
            sum += (double)(user + system) / (double)sysconf(_SC_CLK_TCK);
        }
    }
    return sum;
}

static double self_cpu(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) + (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

static struct mark mark(void) {
    return (struct mark){now(), received, published, answered, server_sum(0), self_cpu()};
}

/* ---- sockets ------------------------------------------------------------------------------------------------------- */

enum { CLIENT, POST, TIMER };

static void watch(int operation, int fd, uint32_t events, int kind, uint16_t generation, size_t index) {
    struct epoll_event event = {.events = events};
    event.data.u64 = (uint64_t)kind << 56 | (uint64_t)generation << 32 | (uint32_t)index;
    if (epoll_ctl(poller, operation, fd, &event) < 0) die("epoll_ctl: %s", strerror(errno));
}

static long in_turn(const char *list, size_t number) { /* of 1:2:3 */
    size_t count = 1;
    for (const char *at = list; *at; at++) count += *at == ':';
    for (number %= count; number; number--) list = strchr(list, ':') + 1;
    return atol(list);
}

static int dial(long to, int blocking) {
    static uint32_t dialled;
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | (blocking ? 0 : SOCK_NONBLOCK), 0);
    if (fd < 0) die("socket: %s (ulimit -n?)", strerror(errno));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct sockaddr_in address = {.sin_family = AF_INET};
    /* From 64 source addresses in turn: the ports of one would run out, with those that still wait out their last close. */
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
    address.sin_addr.s_addr = htonl(0x7f000002u + dialled++ % 64);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0) die("bind: %s", strerror(errno));
    address.sin_port = htons((uint16_t)to);
    inet_pton(AF_INET, host, &address.sin_addr);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0 && errno != EINPROGRESS) {
        if (blocking) die("connect to port %ld: %s", to, strerror(errno));
        close(fd);
        return -1;
    }
    if (blocking) fcntl(fd, F_SETFL, O_NONBLOCK);
    return fd;
}

/* ---- one subscriber ------------------------------------------------------------------------------------------------ */

static void drop(struct client *c, int reset) {
    if (reset) setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &(struct linger){1, 0}, sizeof(struct linger));
    close(c->fd);
    if (c->stage == READY) ready--;
    else if (c->stage != LEAVING) connecting--;
    c->stage = ABSENT;
}

static void fail(struct client *c, const char *why) {
    if (resuming) { /* a client tries again */
        c->again = now() + 1000000000u;
        drop(c, 0);
        return;
    }
    if (failed++ < 3) fprintf(stderr, "load: client %zu: %s: %.*s\n", (size_t)(c - clients), why, c->kept, c->head);
    drop(c, 0);
}

static void come(struct client *c) {
    size_t index = (size_t)(c - clients);
    uint16_t generation = (uint16_t)(c->generation + 1);
    *c = (struct client){.fd = dial(in_turn(ports, index), 0), .generation = generation, .stage = CONNECTING, .seen = c->seen,
                         .expected = c->expected, .repeats = c->repeats};
    if (c->fd < 0) {
        if (resuming) c->again = now() + 1000000000u;
        else failed++;
        c->stage = ABSENT;
        return;
    }
    connecting++;
    watch(EPOLL_CTL_ADD, c->fd, EPOLLOUT, CLIENT, generation, index);
}

static void write_frame(struct client *c, unsigned opcode, const char *text, size_t length) {
    unsigned char frame[600] = {(unsigned char)(0x80 | opcode), (unsigned char)(0x80 | length)}; /* masked, as RFC 6455 §5.3 wants, with zeros */
    size_t head = 6;
    if (length > 125) {
        frame[1] = 0x80 | 126;
        frame[2] = (unsigned char)(length >> 8);
        frame[3] = (unsigned char)length;
        head = 8;
    }
    memcpy(frame + head, text, length);
    if (send(c->fd, frame, length + head, MSG_NOSIGNAL) != (ssize_t)(length + head) && c->stage != LEAVING) fail(c, "cannot send");
}

/* The number of the channels among which the clients are distributed; a client subscribes to `each` channels: its own, its own plus
 * this number, and so on. */
static size_t groups(void) { return (size_t)(channels / each); }

static void place(const struct client *c, const char *form, char *where, size_t room) { /* with the channel and the page's name */
    size_t index = (size_t)(c - clients), length = 0;
    for (const char *at = form; *at && length + 1 < room; at++) {
        if (at[0] == '%' && at[1] == 's') length += (size_t)snprintf(where + length, room - length, "bench-%zu", index % groups()), at++;
        else if (at[0] == '%' && at[1] == 'p') length += (size_t)snprintf(where + length, room - length, "bench-page-%012zu", index), at++;
        else where[length++] = *at;
        if (length >= room) die("a path or filter of more than %zu bytes", room);
    }
    where[length] = 0;
}

static void upgrade(struct client *c) {
    char where[256], text[512];
    place(c, path, where, sizeof where);
    int length = sse ? snprintf(text, sizeof text, "GET %s HTTP/1.1\r\nHost: %s\r\nAccept: text/event-stream\r\n\r\n", where, host)
                     : snprintf(text, sizeof text,
                          "GET %s HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                          "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n", where, host);
    c->stage = UPGRADING;
    if (send(c->fd, text, (size_t)length, MSG_NOSIGNAL) != length) fail(c, "cannot send");
}

static void settle(struct client *c) {
    c->stage = READY;
    connecting--;
    ready++;
}

static void note_latency(struct client *c) {
    char *start = memchr(c->head, '~', c->kept);
    if (!start || start + 9 > c->head + c->kept) return;
    uint64_t due = requests[strtoul(start + 1, NULL, 10) % request_count].due, took = (now() - due) / 1000;
    if (due >= count_from && due < count_to) histogram[took < BUCKETS ? took : BUCKETS - 1]++;
}

static void member_frame(struct client *c) {
    struct member *m = &members[c - clients];
    if (memmem(c->head, c->kept, "member_added", 12)) m->added++, added++;
    else if (memmem(c->head, c->kept, "subscription_succeeded", 22)) {
        m->tail[m->kept] = 0;
        const char *count = strstr(m->tail, "count");
        if (!count) die("an answer without a count of members: %s", m->tail);
        m->listed = strtoul(count + strcspn(count, "0123456789"), NULL, 10);
        listed += m->listed;
        joined++;
    } else if (memmem(c->head, c->kept, "error", 5)) die("instead of a member's place: %.*s", c->kept, c->head);
    else return; /* a ping */
    last_came = now();
}

static void keep_tail(struct member *m, const unsigned char *at, size_t count) {
    size_t room = sizeof m->tail - 1;
    if (count > room) at += count - room, count = room;
    size_t old = m->kept + count > room ? room - count : m->kept;
    memmove(m->tail, m->tail + m->kept - old, old);
    memcpy(m->tail + old, at, count);
    m->kept = old + count;
}

static void note_order(struct client *c) { /* events of a channel are numbered in steps of `channels` */
    char *start = memchr(c->head, '~', c->kept);
    if (!start || start + 9 > c->head + c->kept) die("an event without a number");
    uint32_t number = (uint32_t)strtoul(start + 1, NULL, 10);
    if (number < c->expected) {
        c->repeats++;
        return;
    }
    missed += (number - c->expected) / (uint32_t)channels;
    c->expected = number + (uint32_t)channels;
}

static void event(struct client *c) {
    received++;
    c->seen++;
    if (histogram) note_latency(c);
    if (resuming) note_order(c);
}

static void text_frame(struct client *c) {
    if (c->stage == READY) {
        if (members) {
            member_frame(c);
            return;
        }
        if (c->length >= (uint64_t)least) event(c);
        else if (page && memmem(c->head, c->kept, "pusher:ping", 11)) {
            static const char pong[] = "{\"event\":\"pusher:pong\",\"data\":{}}";
            write_frame(c, 1, pong, sizeof pong - 1);
            pongs++;
        }
    } else if (c->stage == GREETING) {
        if (!memmem(c->head, c->kept, "connection_established", 22)) {
            fail(c, "instead of a greeting");
            return;
        }
        if (members) { /* it joins later */
            const char *id = memmem(c->head, c->kept, "socket_id", 9);
            if (!id) die("a greeting without a socket_id");
            id += strcspn(id, "0123456789");
            snprintf(members[c - clients].socket_id, sizeof members->socket_id, "%.*s", (int)strspn(id, "0123456789."), id);
            settle(c);
            return;
        }
        c->stage = SUBSCRIBING;
        for (size_t i = 0; i < (size_t)each && c->stage == SUBSCRIBING; i++) {
            char text[125];
            int length = snprintf(text, sizeof text, "{\"event\":\"pusher:subscribe\",\"data\":{\"channel\":\"bench-%zu\"}}",
                                  (size_t)(c - clients) % groups() + i * groups());
            write_frame(c, 1, text, (size_t)length);
        }
    } else if (c->stage == SUBSCRIBING) {
        if (memmem(c->head, c->kept, "subscription_succeeded", 22)) c->answers++;
        else if (page && memmem(c->head, c->kept, "pusher:resumed", 14)) {
            c->answers++;
            if (memmem(c->head, c->kept, "true", 4)) recovered++;
            else unrecovered++;
        } else if (memmem(c->head, c->kept, "error", 5)) fail(c, "not subscribed");
        else if (c->length >= (uint64_t)least) event(c); /* on a channel that is already subscribed */
        if (c->stage == SUBSCRIBING && c->answers == (uint32_t)(each * (1 + page))) settle(c);
    }
}

static void whole_frame(struct client *c) {
    switch (c->header[0] & 15) {
    case 1: case 2: text_frame(c); break;
    case 8:
        if (c->stage == READY) closed++;
        if (c->stage == READY || c->stage == LEAVING) drop(c, 0);
        else fail(c, "closed by the server");
        break;
    case 9: write_frame(c, 10, c->head, c->kept < 125 ? c->kept : 125); break;
    }
}

/* ---- server-sent events -------------------------------------------------------------------------------------------- */

static void blocks(struct client *c, const unsigned char *at, size_t count) {
    const unsigned char *end = at + count;
    while (at < end && c->stage != ABSENT) {
        const unsigned char *line = memchr(at, '\n', (size_t)(end - at)), *next = line ? line + 1 : end;
        size_t take = (size_t)(next - at), room = sizeof c->head - c->kept, copy = take < room ? take : room;
        int blank = line == at && c->inside; /* `inside`: the last byte was a line's end */
        c->inside = line != NULL;
        memcpy(c->head + c->kept, at, copy);
        c->kept += (uint8_t)copy;
        c->length += take;
        at = next;
        if (!blank) continue;
        if (c->stage != READY) settle(c);
        else if (c->length >= (uint64_t)least && memchr(c->head, '~', c->kept)) event(c);
        c->kept = 0;
        c->length = 0;
    }
}

static void feed(struct client *c, const unsigned char *at, size_t count) {
    if (c->stage == UPGRADING) {
        for (; count && c->matched < 4; at++, count--) {
            if (c->kept < 100) c->head[c->kept++] = (char)*at;
            c->matched = *at == (unsigned char)"\r\n\r\n"[c->matched] ? c->matched + 1 : *at == '\r';
        }
        if (c->matched < 4) return;
        if (memcmp(c->head + 8, sse ? " 200" : " 101", 4)) {
            fail(c, sse ? "no stream" : "no WebSocket");
            return;
        }
        c->kept = 0;
        if (sse) c->stage = SUBSCRIBING;
        else if (pusher) c->stage = GREETING;
        else settle(c);
    }
    if (sse) {
        blocks(c, at, count);
        return;
    }
    int keep = histogram || members || resuming || c->stage != READY;
    while (count && c->stage != ABSENT) {
        if (!c->inside) { /* RFC 6455 §5.2: two bytes, then two or eight more of length */
            c->header[c->headers++] = *at++;
            count--;
            if (c->headers < 2) continue;
            unsigned short_length = c->header[1] & 127u, whole = short_length == 126 ? 4 : short_length == 127 ? 10 : 2;
            if (c->headers < whole) continue;
            c->left = whole == 2 ? short_length : 0;
            for (unsigned i = 2; i < whole; i++) c->left = c->left << 8 | c->header[i];
            c->length = c->left;
            c->inside = 1;
            c->headers = c->kept = 0;
            if (members) members[c - clients].kept = 0;
        } else {
            size_t take = count < c->left ? count : c->left;
            if (keep || (c->header[0] & 8) || (page && c->length < (uint64_t)least)) {
                size_t room = sizeof c->head - c->kept, copy = take < room ? take : room;
                memcpy(c->head + c->kept, at, copy);
                c->kept += (uint8_t)copy;
            }
            if (members) keep_tail(&members[c - clients], at, take);
            at += take;
            count -= take;
            c->left -= take;
        }
        if (c->inside && !c->left) {
            c->inside = 0;
            whole_frame(c);
            keep = histogram || members || resuming || c->stage != READY;
        }
    }
}

/* ---- MQTT ---------------------------------------------------------------------------------------------------------- */

enum { KEEP_ALIVE = 600 /* s, more than a run: no client sends PINGREQ */, MQTT_ROOM = 2048 };
static unsigned char acknowledgements[sizeof buffer]; /* of what was read last */
static size_t acknowledgements_length;

static size_t put_text(unsigned char *out, const char *text) { /* §1.5.4 of 5.0, §1.5.3 of 3.1.1 */
    size_t length = strlen(text);
    if (length > MQTT_ROOM / 2) die("a text of %zu bytes", length);
    out[0] = (unsigned char)(length >> 8);
    out[1] = (unsigned char)length;
    memcpy(out + 2, text, length);
    return length + 2;
}

static void send_packet(int fd, unsigned char first, const unsigned char *body, size_t length) {
    unsigned char packet[MQTT_ROOM + 8];
    size_t head = 1;
    packet[0] = first;
    for (size_t left = length;; left >>= 7) {
        packet[head++] = (unsigned char)((left & 127) | (left > 127 ? 128 : 0));
        if (left < 128) break;
    }
    memcpy(packet + head, body, length);
    if (send(fd, packet, head + length, MSG_NOSIGNAL) != (ssize_t)(head + length)) die("cannot send: %s", strerror(errno));
}

static void send_connect(int fd, long level, const char *id, int lasting) { /* §3.1 */
    unsigned char body[MQTT_ROOM];
    size_t length = put_text(body, "MQTT");
    body[length++] = (unsigned char)level;
    body[length++] = (unsigned char)((lasting ? 0 : 2) | (*user ? 0x80 : 0) | (*password ? 0x40 : 0));
    body[length++] = KEEP_ALIVE >> 8;
    body[length++] = KEEP_ALIVE & 255;
    if (level == 5) {
        static const unsigned char expiry[] = {5, 0x11, 0, 0, 0x0e, 0x10}; /* an hour */
        memcpy(body + length, lasting ? expiry : (const unsigned char *)"", lasting ? sizeof expiry : 1);
        length += lasting ? sizeof expiry : 1;
    }
    length += put_text(body + length, id);
    if (*user) length += put_text(body + length, user);
    if (*password) length += put_text(body + length, password);
    send_packet(fd, 0x10, body, length);
}

static void send_subscribe(struct client *c) { /* §3.8 */
    unsigned char body[MQTT_ROOM] = {0, 1};
    char where[256];
    size_t length = 2 + (mqtt == 5);
    place(c, filter, where, sizeof where);
    length += put_text(body + length, where);
    body[length++] = (unsigned char)qos;
    send_packet(c->fd, 0x82, body, length);
}

static void greet(struct client *c) {
    char id[32];
    snprintf(id, sizeof id, "bench-%06zu", (size_t)(c - clients));
    c->stage = GREETING;
    send_connect(c->fd, mqtt, id, !clean || (c - clients) >= n);
}

static void whole_packet(struct client *c) {
    char why[64];
    unsigned code = c->kept > 1 ? (unsigned char)c->head[1] : 255;
    switch (c->header[0] >> 4) {
    case 2: /* CONNACK: flags, the code, and properties in 5.0 */
        if (c->stage == GREETING && !code) {
            c->stage = SUBSCRIBING;
            send_subscribe(c);
            return;
        }
        snprintf(why, sizeof why, "a CONNACK with code %02x", code);
        break;
    case 3:
        if (c->length >= (uint64_t)least) event(c);
        if (c->header[0] & 6) { /* the packet id follows the topic; QoS 2 is not subscribed to */
            size_t at = 2 + ((size_t)(unsigned char)c->head[0] << 8 | (unsigned char)c->head[1]);
            if (at + 2 > c->kept) die("a topic of %zu bytes", at - 2);
            const unsigned char ack[] = {0x40, 2, (unsigned char)c->head[at], (unsigned char)c->head[at + 1]};
            memcpy(acknowledgements + acknowledgements_length, ack, sizeof ack);
            acknowledgements_length += sizeof ack;
        }
        return;
    case 9: /* SUBACK: the packet id, properties in 5.0, and the code */
        code = c->kept ? (unsigned char)c->head[c->kept - 1] : 255;
        if (c->stage == SUBSCRIBING && code == (unsigned)qos) {
            settle(c);
            return;
        }
        snprintf(why, sizeof why, "a SUBACK with code %02x", code);
        break;
    default: snprintf(why, sizeof why, "a packet of type %d", c->header[0] >> 4);
    }
    c->kept = 0;
    if (c->stage == READY) closed++;
    fail(c, why);
}

static void packets(struct client *c, const unsigned char *at, size_t count) {
    acknowledgements_length = 0;
    while (count && c->stage != ABSENT) {
        if (!c->inside) { /* §2.1.4: the first byte, then up to four bytes with 7 bits of the length each */
            c->header[c->headers++] = *at++;
            count--;
            if (c->headers < 2) continue;
            if (c->headers == 2) c->length = 0;
            c->length |= (uint64_t)(c->header[c->headers - 1] & 127) << (7 * (c->headers - 2));
            if (c->header[c->headers - 1] & 128) {
                if (c->headers == 5) die("a length of more than four bytes");
                continue;
            }
            c->left = c->length;
            c->inside = 1;
            c->headers = c->kept = 0;
        } else {
            size_t take = count < c->left ? count : c->left;
            if (qos || histogram || c->stage != READY) {
                size_t room = sizeof c->head - c->kept, copy = take < room ? take : room;
                memcpy(c->head + c->kept, at, copy);
                c->kept += (uint8_t)copy;
            }
            at += take;
            count -= take;
            c->left -= take;
        }
        if (c->inside && !c->left) {
            c->inside = 0;
            whole_packet(c);
        }
    }
    size_t length = acknowledgements_length;
    if (length && c->stage != ABSENT && send(c->fd, acknowledgements, length, MSG_NOSIGNAL) != (ssize_t)length) fail(c, "cannot acknowledge");
}

static void leave_session(struct client *c) {
    send_packet(c->fd, 0xe0, (const unsigned char *)"", 0);
    drop(c, 0);
}

static void client_event(struct client *c) {
    if (c->stage == CONNECTING) {
        int error = 0;
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &(socklen_t){sizeof error});
        if (error) {
            fail(c, strerror(error));
            return;
        }
        watch(EPOLL_CTL_MOD, c->fd, EPOLLIN | EPOLLET, CLIENT, c->generation, (size_t)(c - clients));
        if (mqtt) greet(c);
        else upgrade(c);
        return;
    }
    ssize_t count;
    do { /* edge-triggered: once more only if there may be more than fitted */
        count = recv(c->fd, buffer, sizeof buffer, 0);
        if (count > 0 && mqtt) packets(c, buffer, (size_t)count);
        else if (count > 0) feed(c, buffer, (size_t)count);
    } while (count == sizeof buffer && c->stage != ABSENT);
    if (count == 0 || (count < 0 && errno != EAGAIN)) {
        if (c->stage == READY) closed++;
        if (!resuming && (c->stage == READY || c->stage == LEAVING)) drop(c, 0);
        else fail(c, "connection lost");
    }
}

/* ---- one publisher ------------------------------------------------------------------------------------------------- */

static void dial_publisher(struct publisher *p) {
    p->fd = dial(in_turn(apis, (size_t)(p - posts)), 1);
    watch(EPOLL_CTL_ADD, p->fd, EPOLLIN, POST, 0, (size_t)(p - posts));
    if (publish_mqtt) {
        char id[40];
        snprintf(id, sizeof id, "bench-publisher-%zu", (size_t)(p - posts));
        send_connect(p->fd, publish_mqtt, id, 0);
        p->busy = (int)window; /* until CONNACK */
    }
}

static void number_packet(struct publisher *p, unsigned char *packet) { /* the packet id follows the topic (§3.3.2) */
    size_t at = 1;
    while (packet[at++] & 128);
    at += 2 + ((size_t)packet[at] << 8 | packet[at + 1]);
    if (!++p->packet_id) p->packet_id = 1;
    packet[at] = (unsigned char)(p->packet_id >> 8);
    packet[at + 1] = (unsigned char)p->packet_id;
}

static void send_rest(struct publisher *p, const char *bytes, size_t length) {
    ssize_t sent = send(p->fd, bytes, length, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) die("cannot publish: %s", strerror(errno));
    if (sent < 0) sent = 0;
    if (length - (size_t)sent > sizeof p->rest) die("a packet of %zu bytes", length);
    size_t before = p->unsent;
    p->unsent = length - (size_t)sent;
    memmove(p->rest, bytes + sent, p->unsent);
    uint32_t events = p->unsent ? EPOLLIN | EPOLLOUT : EPOLLIN;
    if (!before != !p->unsent) watch(EPOLL_CTL_MOD, p->fd, events, POST, 0, (size_t)(p - posts));
}

static void post(struct publisher *p, uint64_t due) {
    struct request *request = &requests[next_request];
    published_on[next_request % (size_t)channels]++;
    next_request = (next_request + 1) % request_count;
    request->due = due;
    published++;
    if (publish_mqtt) {
        if (qos) number_packet(p, (unsigned char *)request->bytes), p->busy++;
        else answered++; /* nothing answers a publish with QoS 0 */
        send_rest(p, request->bytes, request->length);
        return;
    }
    p->busy = 1;
    if (send(p->fd, request->bytes, request->length, MSG_NOSIGNAL) != (ssize_t)request->length) die("cannot post: %s", strerror(errno));
}

static void mqtt_answers(struct publisher *p) {
    if (p->unsent) send_rest(p, p->rest, p->unsent);
    ssize_t count = recv(p->fd, p->answer + p->have, sizeof p->answer - p->have, 0);
    if (count < 0 && errno == EAGAIN) return;
    if (count <= 0) die("a publisher's connection was closed, after %lu answers", (unsigned long)answered);
    p->have += (size_t)count;
    size_t at = 0, whole;
    for (; p->have - at >= 2; at += whole) {
        const unsigned char *packet = (const unsigned char *)p->answer + at;
        whole = 2u + packet[1];
        if (packet[1] & 128) die("an answer of more than 127 bytes");
        if (p->have - at < whole) break;
        unsigned code = packet[0] >> 4 == 2 && whole > 3 ? packet[3] : packet[0] >> 4 == 4 && whole > 4 ? packet[4] : 0;
        if (packet[0] >> 4 == 2 && !code) p->busy = 0;
        else if (packet[0] >> 4 == 4) {
            if (code >= 0x80 && refused++ < 3) fprintf(stderr, "load: refused: code %02x\n", code);
            answered++;
            p->busy--;
        } else die("a publisher got a packet of type %d with code %02x", packet[0] >> 4, code);
    }
    memmove(p->answer, p->answer + at, p->have -= at);
}

static void post_event(struct publisher *p) {
    if (publish_mqtt) {
        mqtt_answers(p);
        return;
    }
    ssize_t count = recv(p->fd, p->answer + p->have, sizeof p->answer - 1 - p->have, 0);
    if (count < 0 && errno == EAGAIN) return;
    if (count <= 0) {
        if (resuming) { /* the only publisher tries again, with the same event */
            close(p->fd);
            p->fd = -1;
            return;
        }
        if (p->busy) die("a publisher's connection was closed instead of an answer, after %lu answers", (unsigned long)answered);
        close(p->fd);
        dial_publisher(p);
        redialled++;
        return;
    }
    p->have += (size_t)count;
    p->answer[p->have] = 0;
    char *end = strstr(p->answer, "\r\n\r\n"), *length = strcasestr(p->answer, "\r\nContent-Length:");
    if (!end) return;
    size_t whole = (size_t)(end + 4 - p->answer) + (length && length < end ? strtoul(length + 17, NULL, 10) : 0);
    if (whole >= sizeof p->answer) die("an answer of %zu bytes", whole);
    if (p->have < whole) return;
    if (resuming && p->answer[9] != '2') { /* perhaps not published: it tries again */
        refused++;
        close(p->fd);
        p->fd = -1;
        return;
    }
    if (p->answer[9] != '2' && refused++ < 3) fprintf(stderr, "load: refused: %.300s\n", p->answer);
    char *closing = strcasestr(p->answer, "\r\nConnection: close");
    answered++;
    p->have = 0;
    p->busy = 0;
    if (closing && closing < end) { /* soketi says so every time */
        close(p->fd);
        dial_publisher(p);
        redialled++;
    }
}

static void read_requests(void) {
    FILE *stream = file ? fopen(file, "rb") : NULL;
    if (!stream) die("cannot read requests from '%s'", file ? file : "");
    size_t room = 0, length;
    while (fscanf(stream, "%zu", &length) == 1 && fgetc(stream) == '\n') {
        if (request_count == room) requests = realloc(requests, (room = room ? room * 2 : 64) * sizeof *requests);
        char *bytes = malloc(length);
        if (fread(bytes, 1, length, stream) != length) die("%s: cut short", file);
        requests[request_count++] = (struct request){bytes, length, 0};
    }
    fclose(stream);
    if (!request_count || request_count % (size_t)channels) die("%s: %zu requests for %ld channels", file, request_count, channels);
}

static void dial_publishers(void) {
    posts = calloc((size_t)publishers, sizeof *posts);
    for (long i = 0; i < publishers; i++) dial_publisher(&posts[i]);
}

/* ---- signatures ---------------------------------------------------------------------------------------------------- */

struct sha { /* SHA-256 (FIPS 180-4) of what was added */
    uint32_t state[8];
    uint64_t length;
    unsigned char block[64];
};

static uint32_t constants[64];

static uint32_t turned(uint32_t word, int bits) { return word >> bits | word << (32 - bits); }

static uint32_t root_bits(unsigned prime, int cubic) { /* the first 32 bits behind the point of its square or cube root */
    unsigned __int128 wanted = (unsigned __int128)prime << (cubic ? 96 : 64), root = 0;
    for (int bit = 35; bit >= 0; bit--) {
        unsigned __int128 trial = root | (unsigned __int128)1 << bit;
        if ((cubic ? trial * trial * trial : trial * trial) <= wanted) root = trial;
    }
    return (uint32_t)root;
}

static struct sha sha_begin(void) {
    struct sha sha = {.length = 0};
    int found = 0;
    for (unsigned number = 2; found < 64; number++) {
        unsigned factor = 2;
        while (number % factor) factor++;
        if (factor != number) continue;
        if (found < 8) sha.state[found] = root_bits(number, 0);
        constants[found++] = root_bits(number, 1);
    }
    return sha;
}

static void sha_block(struct sha *sha) {
    uint32_t words[64], v[8];
    for (int i = 0; i < 16; i++)
        words[i] = (uint32_t)sha->block[4 * i] << 24 | (uint32_t)sha->block[4 * i + 1] << 16 | (uint32_t)sha->block[4 * i + 2] << 8 | sha->block[4 * i + 3];
    for (int i = 16; i < 64; i++) {
        uint32_t a = words[i - 15], b = words[i - 2];
        words[i] = words[i - 16] + words[i - 7] + (turned(a, 7) ^ turned(a, 18) ^ a >> 3) + (turned(b, 17) ^ turned(b, 19) ^ b >> 10);
    }
    memcpy(v, sha->state, sizeof v);
    for (int i = 0; i < 64; i++) {
        uint32_t one = v[7] + (turned(v[4], 6) ^ turned(v[4], 11) ^ turned(v[4], 25)) + ((v[4] & v[5]) ^ (~v[4] & v[6])) + constants[i] + words[i];
        uint32_t two = (turned(v[0], 2) ^ turned(v[0], 13) ^ turned(v[0], 22)) + ((v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]));
        memmove(v + 1, v, 7 * sizeof *v);
        v[4] += one;
        v[0] = one + two;
    }
    for (int i = 0; i < 8; i++) sha->state[i] += v[i];
}

static void sha_add(struct sha *sha, const void *bytes, size_t count) {
    for (const unsigned char *at = bytes; count; count--) {
        sha->block[sha->length++ % 64] = *at++;
        if (sha->length % 64 == 0) sha_block(sha);
    }
}

static void sha_end(struct sha *sha, unsigned char digest[32]) {
    uint64_t bits = sha->length * 8;
    unsigned char length[8];
    for (int i = 0; i < 8; i++) length[i] = (unsigned char)(bits >> (56 - 8 * i));
    sha_add(sha, "\x80", 1);
    while (sha->length % 64 != 56) sha_add(sha, "", 1);
    sha_add(sha, length, 8);
    for (int i = 0; i < 32; i++) digest[i] = (unsigned char)(sha->state[i / 4] >> (24 - i % 4 * 8));
}

static void sign(const char *text, char hex[65]) { /* HMAC-SHA256 (RFC 2104) with the secret */
    unsigned char inner[64] = {0}, outer[64], digest[32];
    if (strlen(secret) > sizeof inner) die("a secret of more than 64 bytes");
    memcpy(inner, secret, strlen(secret));
    for (int i = 0; i < 64; i++) outer[i] = inner[i] ^ 0x5c, inner[i] ^= 0x36;
    struct sha sha = sha_begin();
    sha_add(&sha, inner, 64);
    sha_add(&sha, text, strlen(text));
    sha_end(&sha, digest);
    sha = sha_begin();
    sha_add(&sha, outer, 64);
    sha_add(&sha, digest, 32);
    sha_end(&sha, digest);
    for (int i = 0; i < 32; i++) snprintf(hex + 2 * i, 3, "%02x", digest[i]);
}

/* ---- the loop ------------------------------------------------------------------------------------------------------ */

static void turn(int milliseconds) {
    static struct epoll_event events[1024];
    int count = epoll_wait(poller, events, 1024, milliseconds);
    for (int i = 0; i < count; i++) {
        uint64_t data = events[i].data.u64, fired;
        size_t index = data & 0xffffffffu;
        switch (data >> 56) {
        case CLIENT:
            if (clients[index].stage != ABSENT && clients[index].generation == (uint16_t)(data >> 32)) client_event(&clients[index]);
            break;
        case POST: post_event(&posts[index]); break;
        case TIMER:
            if (read(timer, &fired, sizeof fired) == sizeof fired) ticks += fired;
        }
    }
}

static void connect_up_to(size_t target) { /* clients below `target` become ready, at most `burst` at a time under way */
    static size_t started;
    uint64_t deadline = now() + (uint64_t)(patience * 1e9);
    while (ready < target) {
        while (started < target && connecting < (uint64_t)burst) come(&clients[started++]);
        turn(20);
        if (failed || closed) die("%lu of %zu clients ready, %lu failed", (unsigned long)ready, target, (unsigned long)(failed + closed));
        if (now() > deadline) die("%lu of %zu clients ready after %.0f s", (unsigned long)ready, target, patience);
    }
}

static void rest(double how_long) {
    for (uint64_t end = now() + (uint64_t)(how_long * 1e9); now() < end;) turn(10);
}

static uint64_t start_timer(void) { /* fires `rate` times a second; returns when it fires first */
    uint64_t first = now() + 1000000, every = 1000000000u / (uint64_t)rate;
    struct itimerspec when = {.it_interval = {(time_t)(every / 1000000000u), (long)(every % 1000000000u)},
                              .it_value = {(time_t)(first / 1000000000u), (long)(first % 1000000000u)}};
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL);
    watch(EPOLL_CTL_ADD, timer, EPOLLIN, TIMER, 0, 0);
    return first;
}

static struct publisher *idle(void) { /* in turn: a server may end a connection without a request */
    static long next;
    for (long i = 0; i < publishers; i++, next = (next + 1) % publishers)
        if (posts[next].busy < window && !posts[next].unsent) {
            struct publisher *found = &posts[next];
            next = (next + 1) % publishers;
            return found;
        }
    return NULL;
}

static double percentile(double share) {
    uint64_t total = 0, sum = 0;
    for (size_t i = 0; i < BUCKETS; i++) total += histogram[i];
    for (size_t i = 0; i < BUCKETS; i++) if ((sum += histogram[i]) >= share * (double)total && sum) return (double)i;
    return 0;
}

static void report_publish(struct mark from, struct mark to, uint64_t fan) {
    double wall = (double)(to.at - from.at) / 1e9, deliveries = (double)(to.received - from.received);
    size_t uneven = 0; /* subscribers that did not get exactly what was published on their channel */
    for (size_t i = 0; i < (size_t)n; i++) {
        uint64_t due = 0;
        for (size_t channel = i % groups(); channel < (size_t)channels; channel += groups()) due += published_on[channel];
        uneven += clients[i].seen != due;
    }
    printf("{\"subscribers\":%ld,\"seconds\":%.3f,\"publishes_per_s\":%.1f,\"deliveries_per_s\":%.1f,\"server_us_per_delivery\":%.3f,"
           "\"server_us_per_publish\":%.3f,\"pongs_per_s\":%.1f,\"server_cpu\":%.4f,\"load_cpu\":%.3f,\"published\":%lu,\"lost\":%ld,\"uneven\":%zu,\"refused\":%lu,\"closed\":%lu,\"redialled\":%lu",
           n, wall, (double)(to.answered - from.answered) / wall, deliveries / wall, (to.server_cpu - from.server_cpu) * 1e6 / deliveries,
           (to.server_cpu - from.server_cpu) * 1e6 / (double)(to.answered - from.answered), (double)pongs / wall,
           (to.server_cpu - from.server_cpu) / wall, (to.load_cpu - from.load_cpu) / wall, (unsigned long)published,
           (long)(published * fan - received), uneven, (unsigned long)refused, (unsigned long)closed,
           (unsigned long)redialled);
    if (histogram) printf(",\"p50_us\":%.0f,\"p99_us\":%.0f,\"p999_us\":%.0f", percentile(.5), percentile(.99), percentile(.999));
    puts("}");
}

static void run_publish(void) {
    uint64_t fan = (uint64_t)(n * each / channels), start, warmed, end, ticked = 0, rated_from = 0;
    read_requests();
    if (rate) histogram = calloc(BUCKETS, sizeof *histogram);
    connect_up_to((size_t)(n + absent));
    for (long i = n; i < n + absent; i++) leave_session(&clients[i]);
    if (absent) rest(3); /* until the server has stored their sessions */
    dial_publishers();
    rest(0.3);
    start = rate ? (rated_from = start_timer()) : now();
    count_from = warmed = start + (uint64_t)(warm * 1e9);
    count_to = end = warmed + (uint64_t)(seconds * 1e9);
    struct mark from = {0}, to;
    for (uint64_t at = now(); at < end; at = now()) {
        if (!from.at && at >= warmed) from = mark(), pongs = 0;
        for (struct publisher *p; (p = idle());) {
            if (rate) {
                if (ticked == ticks) break;
                post(p, rated_from + ticked++ * 1000000000u / (uint64_t)rate);
            } else if (published * fan > received + (uint64_t)(backlog - 1) * fan) break;
            else post(p, at);
        }
        turn(10);
    }
    to = mark();
    for (uint64_t deadline = now() + 5000000000u; now() < deadline && (published * fan > received || answered < published);) turn(10);
    rest(0.1); /* what comes now was sent twice */
    report_publish(from, to, fan);
}

/* ---- pages that resume ---------------------------------------------------------------------------------------------- */

static void post_again(void) { /* the publisher's connection was lost */
    struct publisher *p = &posts[0];
    int fd = dial(in_turn(apis, 0), 0);
    if (fd < 0) return;
    struct request *request = &requests[(next_request + request_count - 1) % request_count];
    p->fd = fd;
    p->have = 0;
    for (uint64_t until = now() + 200000000u; now() < until;) { /* connected within this time, or the caller tries again */
        if (!p->busy || send(fd, request->bytes, request->length, MSG_NOSIGNAL) == (ssize_t)request->length) {
            watch(EPOLL_CTL_ADD, fd, EPOLLIN, POST, 0, 0);
            redialled++;
            return;
        }
        usleep(1000);
    }
    close(fd);
    p->fd = -1;
}

static void run_resume(void) {
    uint64_t started, killed, all = 0, half = 0, limit, first_back = 0;
    read_requests();
    publishers = 1;
    connect_up_to((size_t)n);
    for (size_t i = 0; i < (size_t)n; i++) clients[i].expected = (uint32_t)(i % groups());
    resuming = 1;
    recovered = unrecovered = 0;
    dial_publishers();
    started = start_timer();
    for (uint64_t until = started + (uint64_t)(warm * 1e9); now() < until; turn(10))
        if (posts[0].fd >= 0 && !posts[0].busy && published < ticks) post(&posts[0], 0);
    struct mark from = mark();
    for (const char *at = victims; *at; at += strcspn(at, ":"), at += *at == ':') kill(atoi(at), SIGKILL);
    killed = now();
    limit = killed + (uint64_t)(patience * 1e9);
    uint64_t lost = 0, settled = killed + 500000000u, over = killed + (uint64_t)(seconds * 1e9);
    while (now() < limit && (now() < over || !all)) {
        uint64_t at = now();
        for (size_t i = 0; i < (size_t)n && connecting < (uint64_t)burst; i++)
            if (clients[i].stage == ABSENT && at >= clients[i].again) come(&clients[i]);
        if (posts[0].fd < 0) post_again();
        else if (!posts[0].busy && published < ticks && published < request_count) post(&posts[0], 0);
        turn(10);
        lost = closed;
        if (!first_back && recovered + unrecovered) first_back = now();
        if (!half && lost && (recovered + unrecovered) * 2 >= lost) half = now();
        if (!all && now() > settled && ready == (uint64_t)n) all = now();
    }
    struct mark to = mark();
    for (uint64_t until = now() + 3000000000u; now() < until;) { /* the last events */
        if (posts[0].fd < 0) post_again();
        turn(10);
    }
    uint64_t repeats = 0, most = 0, behind = 0;
    for (size_t i = 0; i < (size_t)n; i++) {
        repeats += clients[i].repeats;
        if (clients[i].repeats > most) most = clients[i].repeats;
        size_t on = i % groups();
        behind += clients[i].expected != on + published_on[on] * (uint64_t)channels;
    }
    printf("{\"pages\":%ld,\"lost\":%lu,\"recovered\":%lu,\"unrecovered\":%lu,\"all_s\":%.3f,\"half_s\":%.3f,\"first_s\":%.3f,"
           "\"published\":%lu,\"missed\":%lu,\"behind\":%lu,\"repeats\":%lu,\"most_repeats\":%lu,\"absent\":%ld,"
           "\"load_cpu\":%.3f,\"refused\":%lu,\"redialled\":%lu}\n",
           n, (unsigned long)lost, (unsigned long)recovered, (unsigned long)unrecovered, all ? (double)(all - killed) / 1e9 : -1,
           half ? (double)(half - killed) / 1e9 : -1, first_back ? (double)(first_back - killed) / 1e9 : -1, (unsigned long)published,
           (unsigned long)missed, (unsigned long)behind, (unsigned long)repeats, (unsigned long)most, n - (long)ready,
           (to.load_cpu - from.load_cpu) * 1e9 / (double)(to.at - from.at), (unsigned long)refused, (unsigned long)redialled);
}

static void run_hold(void) {
    size_t few = base < n ? (size_t)base : 0; /* these pay for what a server allocates once */
    connect_up_to(few);
    rest(0.5);
    double before = server_sum(1);
    struct mark from = mark();
    connect_up_to((size_t)n);
    struct mark to = mark();
    rest(1);
    double grown = server_sum(1) - before, wall = (double)(to.at - from.at) / 1e9, came = (double)n - (double)few;
    printf("{\"connections\":%ld,\"connects_per_s\":%.1f,\"server_us_per_connect\":%.1f,\"kib_per_connection\":%.3f,\"base_kib\":%.0f,"
           "\"server_cpu\":%.3f,\"load_cpu\":%.3f,\"closed\":%lu}\n",
           n, came / wall, (to.server_cpu - from.server_cpu) * 1e6 / came, grown / came, before,
           (to.server_cpu - from.server_cpu) / wall, (to.load_cpu - from.load_cpu) / wall,
           (unsigned long)closed);
}

static void join_all(const char *channel, struct mark *from, struct mark *to) {
    for (size_t i = 0; i < (size_t)n; i++) {
        struct member *m = &members[i];
        char told[160], escaped[200], text[400], hex[65];
        snprintf(told, sizeof told, "{\"user_id\":\"user-%06zu\",\"user_info\":{\"name\":\"Somebody %zu\",\"role\":\"member\"}}", i, i);
        char *out = escaped;
        for (const char *at = told; *at; at++) {
            if (*at == '"') *out++ = '\\';
            *out++ = *at;
        }
        *out = 0;
        snprintf(text, sizeof text, "%s:%s:%s", m->socket_id, channel, told);
        sign(text, hex);
        m->length = (size_t)snprintf(m->subscribe, sizeof m->subscribe,
                                     "{\"event\":\"pusher:subscribe\",\"data\":{\"channel\":\"%s\",\"auth\":\"%s:%s\",\"channel_data\":\"%s\"}}",
                                     channel, key, hex, escaped);
        m->listed = m->added = 0;
    }
    joined = listed = added = 0;
    *from = mark();
    last_came = from->at;
    uint64_t whole = (uint64_t)n * (uint64_t)n, asked = 0, deadline = from->at + (uint64_t)(patience * 1e9);
    while (listed + added < whole || joined < (uint64_t)n) {
        while (asked < (uint64_t)n && asked - joined < (uint64_t)burst) {
            write_frame(&clients[asked], 1, members[asked].subscribe, members[asked].length);
            asked++;
        }
        turn(10);
        if (failed || closed) die("%lu connections lost", (unsigned long)(failed + closed));
        if (now() > deadline) die("%lu of %ld members joined after %.0f s", (unsigned long)joined, n, patience);
        if (now() > last_came + 3000000000u) break;
    }
    *to = mark();
    to->at = last_came;
    rest(0.2);
}

static void run_presence(void) {
    struct mark from, to;
    members = calloc((size_t)n, sizeof *members);
    connect_up_to((size_t)n);
    join_all("presence-warm", &from, &to);
    rest(1);
    join_all("presence-bench", &from, &to);
    double wall = (double)(to.at - from.at) / 1e9;
    size_t uneven = 0;
    for (size_t i = 0; i < (size_t)n; i++) uneven += members[i].listed + members[i].added != (uint64_t)n;
    printf("{\"members\":%ld,\"seconds\":%.3f,\"joins_per_s\":%.1f,\"server_us_per_join\":%.1f,\"server_cpu\":%.3f,\"load_cpu\":%.3f,"
           "\"joined\":%lu,\"listed\":%lu,\"added\":%lu,\"uneven\":%zu,\"closed\":%lu}\n",
           n, wall, (double)joined / wall, (to.server_cpu - from.server_cpu) * 1e6 / (double)n, (to.server_cpu - from.server_cpu) / wall,
           (to.load_cpu - from.load_cpu) / wall, (unsigned long)joined, (unsigned long)listed, (unsigned long)added, uneven,
           (unsigned long)closed);
}

static void leave(struct client *c, uint64_t how) {
    static const char unsubscribe[] = "{\"event\":\"pusher:unsubscribe\",\"data\":{\"channel\":\"bench-%zu\"}}";
    if (how % 3) { /* gone without a word: half of them by FIN, half by RST */
        drop(c, how % 3 == 2);
        return;
    }
    char text[125];
    int length = snprintf(text, sizeof text, unsubscribe, (size_t)(c - clients) % (size_t)channels);
    ready--;
    c->stage = LEAVING;
    if (pusher) write_frame(c, 1, text, (size_t)length);
    write_frame(c, 8, "\x03\xe8", 2); /* 1000; the server's own close frame ends it */
}

static void run_churn(void) {
    uint64_t end, came = 0, late = 0, unanswered = 0, done = 0;
    read_requests();
    connect_up_to((size_t)n);
    dial_publishers();
    start_timer();
    end = now() + (uint64_t)(seconds * 1e9);
    size_t place = 0, empty = (size_t)n / 8; /* one place in eight stays empty: who leaves has that long to say goodbye */
    while (now() < end) {
        turn(20);
        for (; done < ticks; done++, place = (place + 1) % (size_t)n) {
            struct client *c = &clients[place], *next = &clients[(place + (size_t)n - empty) % (size_t)n];
            if (c->stage == READY) leave(c, done);
            else late++;
            if (next->stage == LEAVING) unanswered++, drop(next, 1);
            if (next->stage == ABSENT) come(next), came++;
            struct publisher *p = idle();
            if (p) post(p, 0);
        }
    }
    printf("{\"places\":%ld,\"seconds\":%.0f,\"came\":%lu,\"published\":%lu,\"answered\":%lu,\"received\":%lu,\"refused\":%lu,"
           "\"failed\":%lu,\"closed\":%lu,\"late\":%lu,\"unanswered_close\":%lu}\n",
           n, seconds, (unsigned long)came, (unsigned long)published, (unsigned long)answered, (unsigned long)received,
           (unsigned long)refused, (unsigned long)failed, (unsigned long)closed, (unsigned long)late, (unsigned long)unanswered);
}

int main(int count, char **words) {
    if (count < 2) die("usage: load publish|hold|churn|resume|presence name=value …");
    for (int i = 2; i < count; i++) {
        char *value = strchr(words[i], '=');
        size_t option = 0, known = sizeof OPTIONS / sizeof *OPTIONS;
        while (option < known && (!value || strlen(OPTIONS[option].name) != (size_t)(value - words[i]) ||
                                  memcmp(OPTIONS[option].name, words[i], (size_t)(value - words[i])))) option++;
        if (option == known) die("unknown option '%s'", words[i]);
        if (OPTIONS[option].number) *OPTIONS[option].number = strtol(value + 1, NULL, 10);
        else if (OPTIONS[option].real) *OPTIONS[option].real = strtod(value + 1, NULL);
        else *OPTIONS[option].text = value + 1;
    }
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    if ((rlim_t)(n + absent) + (rlim_t)publishers + 16 > limit.rlim_max) die("%ld connections, but ulimit -n is %lu", n, (unsigned long)limit.rlim_max);
    if (each < 1 || channels % each) die("%ld channels cannot be distributed on clients with %ld each", channels, each);
    poller = epoll_create1(0);
    if ((mqtt && each != 1) || (absent && !mqtt)) die("only MQTT clients are absent, and an MQTT client has one filter");
    clients = calloc((size_t)(n + absent), sizeof *clients);
    published_on = calloc((size_t)channels, sizeof *published_on);
    if (!strcmp(words[1], "publish")) run_publish();
    else if (!strcmp(words[1], "hold")) run_hold();
    else if (!strcmp(words[1], "churn")) run_churn();
    else if (!strcmp(words[1], "presence")) run_presence();
    else if (!strcmp(words[1], "resume")) run_resume();
    else die("unknown mode '%s'", words[1]);
    return 0;
}
