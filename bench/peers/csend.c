/* The floor: what a delivery costs when nothing but the kernel's `send` is left of it.
 *
 *     csend PORT
 *
 * Speaks just enough to sit at the other end of the load generator: any GET is answered as a WebSocket handshake (without
 * computing its key) and becomes a subscriber; the body of any POST is framed once and sent to every subscriber in a bare
 * loop; then the POST is answered. It expects each request in one piece and sockets that never fill, which holds for one
 * publish at a time.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int count, char **words) {
    static const char upgraded[] = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
    static const char published[] = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
    static int subscribers[1 << 17];
    static char request[65536];
    int one = 1, subscribed = 0, poller = epoll_create1(0), listener = socket(AF_INET, SOCK_STREAM, 0);
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    address.sin_port = htons((unsigned short)(count > 1 ? atoi(words[1]) : 0));
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 4096) < 0) {
        perror("csend");
        return 1;
    }
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &(struct epoll_event){.events = EPOLLIN, .data.fd = listener});
    for (;;) {
        struct epoll_event event;
        if (epoll_wait(poller, &event, 1, -1) < 1) continue;
        int fd = event.data.fd;
        if (fd == listener) {
            fd = accept(listener, NULL, NULL);
            setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
            epoll_ctl(poller, EPOLL_CTL_ADD, fd, &(struct epoll_event){.events = EPOLLIN, .data.fd = fd});
            continue;
        }
        ssize_t length = recv(fd, request, sizeof request - 1, 0);
        if (length <= 0) {
            close(fd);
            for (int i = 0; i < subscribed; i++)
                if (subscribers[i] == fd) subscribers[i--] = subscribers[--subscribed];
            continue;
        }
        request[length] = 0;
        if (!strncmp(request, "GET ", 4)) {
            subscribers[subscribed++] = fd;
            send(fd, upgraded, sizeof upgraded - 1, MSG_NOSIGNAL);
        } else if (!strncmp(request, "POST ", 5)) {
            char *body = strstr(request, "\r\n\r\n") + 4, *frame = body - 4;
            size_t size = (size_t)(request + length - body);
            frame[0] = (char)0x81; /* the frame's header takes the place of the blank line: RFC 6455 §5.2 */
            frame[1] = 126;
            frame[2] = (char)(size >> 8);
            frame[3] = (char)size;
            if (size < 126) {
                frame += 2;
                frame[0] = (char)0x81;
                frame[1] = (char)size;
            }
            size_t whole = (size_t)(body - frame) + size;
            for (int i = 0; i < subscribed; i++) send(subscribers[i], frame, whole, MSG_NOSIGNAL);
            send(fd, published, sizeof published - 1, MSG_NOSIGNAL);
        }
    }
}
