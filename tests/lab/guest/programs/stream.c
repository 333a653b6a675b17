/* stream ADDRESS MIB [COUNT [whole|idle]]: COUNT connections (one), each in a process of its own; over each MIB MiB of noise go
 * both ways at once, and each side ends its direction when it has sent everything.
 * ADDRESS is vsock:CID:PORT, vsock-listen:PORT, tcp:IP:PORT, tcp-listen:PORT, unix-listen:PATH, or host:PATH:PORT (the
 * guest's PORT, asked for at the unix socket PATH). "listening" is said once others can connect.
 * What has no end that the other side would see is file:PATH (a port of a console) and unix:PATH (its socket in dom0).
 * With "whole" no direction is ended before the other, and no write is above 16 KiB: for vsock's peers that know no
 * half-closed connections, drop packets whose payload Linux gives in more than one piece, and reset a connection that
 * is spoken on from the host before its answer has reached the guest: who connects says the first byte.
 * With "idle" nothing is sent: each side says "held", waits, and says "ended HOW" when the connection is over.
 * Says "sent SUM", "received SUM" for each connection and "took SECONDS"; ends with status 1 where one fails. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#define CHUNK 8192 /* words */

#define SMALL 16384 /* bytes that are one piece in any packet */

static uint64_t words; /* of each direction */
static uint64_t chunk[CHUNK];
static bool endless; /* neither side ends its direction */
static bool whole;   /* both sides say when everything has come */
static bool idle;    /* both sides say nothing */

static double now(void) {
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static uint64_t mix(uint64_t sum, uint64_t word) { return (sum ^ word) * 0x9e3779b97f4a7c15u + 1; }

static void send_noise(int fd) {
	uint64_t state, sum = 0, left = words;
	if (getentropy(&state, sizeof state))
		err(1, "getentropy");
	state |= 1;
	while (left) {
		size_t count = left < CHUNK ? left : CHUNK;
		for (size_t i = 0; i < count; i++) {
			state ^= state << 13;
			state ^= state >> 7;
			state ^= state << 17;
			chunk[i] = state;
			sum = mix(sum, state);
		}
		for (size_t at = 0, len = count * 8; at < len;) {
			size_t size = whole && len - at > SMALL ? SMALL : len - at;
			ssize_t sent = write(fd, (char *)chunk + at, size);
			if (sent <= 0)
				err(1, "write");
			at += (size_t)sent;
		}
		left -= count;
	}
	if (!endless && shutdown(fd, SHUT_WR))
		err(1, "shutdown");
	printf("sent %016jx\n", (uintmax_t)sum);
}

static void receive_noise(int fd) {
	uint64_t sum = 0, count = 0;
	size_t have = 0;
	ssize_t got = 0;
	size_t room = sizeof chunk;
	while (!(endless && count == words)) {
		if (endless && (words - count) * 8 < sizeof chunk)
			room = (size_t)(words - count) * 8; /* not what follows */
		if ((got = read(fd, (char *)chunk + have, room - have)) <= 0)
			break;
		have += (size_t)got;
		for (size_t i = 0; i < have / 8; i++)
			sum = mix(sum, chunk[i]);
		count += have / 8;
		memmove(chunk, (char *)chunk + have / 8 * 8, have % 8);
		have %= 8;
	}
	if (got < 0)
		err(1, "read");
	if (count != words || have)
		errx(1, "%ju words and %zu bytes came instead of %ju words", (uintmax_t)count, have, (uintmax_t)words);
	printf("received %016jx\n", (uintmax_t)sum);
}

static void hold(int fd) {
	char byte;
	printf("held\n");
	ssize_t got = read(fd, &byte, 1);
	printf("ended %s\n", got < 0 ? strerror(errno) : got ? "with a byte" : "in order");
}

/* both directions, in a process each */
static void exchange(int fd, bool caller) {
	char byte = 0;
	int status;
	if (idle) {
		hold(fd);
		return;
	}
	if (whole && (caller ? write(fd, &byte, 1) : read(fd, &byte, 1)) != 1)
		err(1, "the first byte");
	pid_t child = fork();
	if (child < 0)
		err(1, "fork");
	if (child == 0) {
		send_noise(fd);
		exit(0);
	}
	receive_noise(fd);
	if (waitpid(child, &status, 0) < 0 || status)
		exit(1);
	if (whole && (write(fd, &byte, 1) != 1 || read(fd, &byte, 1) != 1))
		err(1, "the last byte");
}

static struct sockaddr_un unix_address(const char *path) {
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	if (strlen(path) >= sizeof address.sun_path)
		errx(2, "%s is too long", path);
	strcpy(address.sun_path, path);
	return address;
}

static int open_file(const char *path) {
	int fd = open(path, O_RDWR);
	if (fd < 0)
		err(1, "%s", path);
	return fd;
}

static int socket_of(int family) {
	int fd = socket(family, SOCK_STREAM, 0);
	if (fd < 0)
		err(1, "socket");
	return fd;
}

static int connect_vsock(unsigned cid, unsigned port) {
	struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_cid = cid, .svm_port = port};
	int fd = socket_of(AF_VSOCK);
	if (connect(fd, (struct sockaddr *)&address, sizeof address))
		err(1, "connect");
	return fd;
}

static int connect_tcp(const char *host, unsigned port) {
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
	int fd = socket_of(AF_INET);
	if (inet_pton(AF_INET, host, &address.sin_addr) != 1)
		errx(2, "%s is no address", host);
	if (connect(fd, (struct sockaddr *)&address, sizeof address))
		err(1, "connect");
	return fd;
}

static int connect_unix(const char *path) {
	struct sockaddr_un address = unix_address(path);
	int fd = socket_of(AF_UNIX);
	if (connect(fd, (struct sockaddr *)&address, sizeof address))
		err(1, "%s", path);
	return fd;
}

static int connect_host(const char *path, unsigned port) {
	char byte, line[32];
	size_t length = 0;
	int fd = connect_unix(path);
	dprintf(fd, "CONNECT %u\n", port);
	while (read(fd, &byte, 1) == 1 && byte != '\n' && length < sizeof line - 1)
		line[length++] = byte;
	line[length] = 0;
	if (strncmp(line, "OK ", 3))
		errx(1, "the answer is '%s'", line);
	return fd;
}

static int listen_on(int fd, const void *address, socklen_t size) {
	if (bind(fd, address, size) || listen(fd, 64))
		err(1, "listen");
	printf("listening\n");
	return fd;
}

static int listen_unix(const char *path) {
	struct sockaddr_un address = unix_address(path);
	return listen_on(socket_of(AF_UNIX), &address, sizeof address);
}

static int listen_vsock(unsigned port) {
	struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = port};
	return listen_on(socket_of(AF_VSOCK), &address, sizeof address);
}

static int listen_tcp(unsigned port) {
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
	int fd = socket_of(AF_INET), yes = 1;
	if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes))
		err(1, "setsockopt");
	return listen_on(fd, &address, sizeof address);
}

int main(int argc, char **argv) {
	char path[108];
	unsigned cid, port;
	int listener = -1, status, failed = 0;
	if (argc < 3 || argc > 5)
		errx(2, "usage: stream ADDRESS MIB [COUNT [whole|idle]]");
	unsigned long count = argc > 3 ? strtoul(argv[3], NULL, 10) : 1;
	words = strtoull(argv[2], NULL, 10) << 17;
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (!strncmp(argv[1], "unix-listen:", 12))
		listener = listen_unix(argv[1] + 12);
	else if (sscanf(argv[1], "vsock-listen:%u", &port) == 1)
		listener = listen_vsock(port);
	else if (sscanf(argv[1], "tcp-listen:%u", &port) == 1)
		listener = listen_tcp(port);
	whole = argc > 4 && !strcmp(argv[4], "whole");
	idle = argc > 4 && !strcmp(argv[4], "idle");
	endless = whole || !strncmp(argv[1], "file:", 5) || !strncmp(argv[1], "unix:", 5);

	double began = now();
	for (unsigned long i = 0; i < count; i++) {
		int fd = -1;
		if (listener >= 0 && (fd = accept(listener, NULL, NULL)) < 0)
			err(1, "accept");
		if (i == 0)
			began = now();
		pid_t child = fork();
		if (child < 0)
			err(1, "fork");
		if (child == 0) {
			if (listener >= 0)
				close(listener);
			else if (sscanf(argv[1], "vsock:%u:%u", &cid, &port) == 2)
				fd = connect_vsock(cid, port);
			else if (sscanf(argv[1], "tcp:%107[^:]:%u", path, &port) == 2)
				fd = connect_tcp(path, port);
			else if (sscanf(argv[1], "host:%107[^:]:%u", path, &port) == 2)
				fd = connect_host(path, port);
			else if (!strncmp(argv[1], "file:", 5))
				fd = open_file(argv[1] + 5);
			else if (!strncmp(argv[1], "unix:", 5))
				fd = connect_unix(argv[1] + 5);
			else
				errx(2, "%s is no address", argv[1]);
			exchange(fd, listener < 0);
			exit(0);
		}
		if (fd >= 0)
			close(fd);
	}
	while (wait(&status) > 0)
		failed |= status;
	if (failed)
		return 1;
	printf("took %.1f\n", now() - began);
	return 0;
}
