/* What the vhost-user back ends in dom0 have in common, each of which includes this behind its FEATURES and
 * PROTOCOL_FEATURES: the messages, one ring, and one connection, whose end is theirs. */
#include <err.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <linux/virtio_ring.h>

/* Documentation of vhost-user: numbers of messages, and flags */
enum {
	GET_FEATURES = 1,
	SET_MEM_TABLE = 5,
	SET_VRING_NUM = 8,
	SET_VRING_ADDR = 9,
	SET_VRING_BASE = 10,
	GET_VRING_BASE = 11,
	SET_VRING_KICK = 12,
	SET_VRING_CALL = 13,
	GET_PROTOCOL_FEATURES = 15,
	GET_QUEUE_NUM = 17,
	GET_CONFIG = 24,
};
#define VERSION 1u
#define REPLY 4u
#define NEED_REPLY 8u
#define REGIONS 8
#define FDS 8

struct message {
	uint32_t request, flags, size;
	union {
		uint64_t number;
		struct {
			uint32_t index, value;
		} state;
		struct {
			uint32_t index, flags;
			uint64_t desc, used, avail, log;
		} address;
		struct {
			uint32_t count, padding;
			union {
				struct {
					uint64_t guest, size, user, offset;
				} region[REGIONS];
				struct {
					uint64_t guest, size, user, offset;
					uint32_t mapping, domain;
				} xen_region[REGIONS];
			};
		} memory;
		struct {
			uint32_t offset, size, flags;
			uint8_t bytes[256];
		} config;
		uint8_t bytes[1024];
	};
} __attribute__((packed));

static struct vring ring;
static uint16_t seen; /* available entries that were taken */
static int kick = -1, call = -1;

/* SET_MEM_TABLE */
static void take_memory(const struct message *message, const int *fds);
/* where a part of a ring is here, by the address that the front end told */
static void *ring_part(uint64_t address, uint64_t len);
/* the ring is about to be served, from entry seen on */
static void begin(void);
/* serves what is available */
static void serve(void);
/* answers another message; returns the bytes of the answer, or 0 */
static uint32_t answer_other(struct message *message);

static void reply(int connection, struct message *message, uint32_t size) {
	message->flags = VERSION | REPLY;
	message->size = size;
	if (write(connection, message, 12 + size) != (ssize_t)(12 + size))
		err(1, "a reply");
}

static void reply_number(int connection, struct message *message, uint64_t number) {
	message->number = number;
	reply(connection, message, 8);
}

static void replace(int *fd, int with) {
	if (*fd >= 0)
		close(*fd);
	*fd = with;
}

/* what a message asks for; those that set something only are answered by their acknowledgement */
static void obey(int connection, struct message *message, const int *fds) {
	int acknowledge = (message->flags & NEED_REPLY) != 0;
	uint32_t size;
	switch (message->request) {
	case GET_FEATURES:
		reply_number(connection, message, FEATURES);
		return;
	case GET_PROTOCOL_FEATURES:
		reply_number(connection, message, PROTOCOL_FEATURES);
		return;
	case GET_VRING_BASE:
		message->state.value = seen;
		replace(&kick, -1);
		reply(connection, message, 8);
		return;
	case SET_MEM_TABLE:
		take_memory(message, fds);
		break;
	case SET_VRING_NUM:
		ring.num = message->state.value;
		break;
	case SET_VRING_BASE:
		seen = (uint16_t)message->state.value;
		break;
	case SET_VRING_ADDR:
		ring.desc = ring_part(message->address.desc, 16ull * ring.num);
		ring.avail = ring_part(message->address.avail, 4 + 2ull * ring.num);
		ring.used = ring_part(message->address.used, 4 + 8ull * ring.num);
		break;
	case SET_VRING_KICK:
		replace(&kick, fds[0]);
		begin();
		break;
	case SET_VRING_CALL:
		replace(&call, fds[0]);
		break;
	default:
		size = answer_other(message);
		if (size) {
			reply(connection, message, size);
			return;
		}
	}
	if (acknowledge)
		reply_number(connection, message, 0);
}

/* a message with its descriptors; false at the end of the connection */
static int receive(int connection, struct message *message, int *fds) {
	char control[CMSG_SPACE(sizeof(int) * FDS)];
	struct iovec iov = {.iov_base = message, .iov_len = 12};
	struct msghdr header = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
	ssize_t got = recvmsg(connection, &header, MSG_WAITALL);
	if (got <= 0)
		return 0;
	if (got != 12 || message->size > sizeof message->bytes)
		errx(1, "no message");
	memset(fds, -1, sizeof(int) * FDS);
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&header);
	if (cmsg && cmsg->cmsg_type == SCM_RIGHTS)
		memcpy(fds, CMSG_DATA(cmsg), cmsg->cmsg_len - CMSG_LEN(0));
	return !message->size || recv(connection, message->bytes, message->size, MSG_WAITALL) == (ssize_t)message->size;
}

/* the one connection of a socket that is made, in place of what an earlier process left */
static int accept_at(const char *path) {
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int connection, listener = socket(AF_UNIX, SOCK_STREAM, 0);
	strncpy(address.sun_path, path, sizeof address.sun_path - 1);
	unlink(path);
	if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1))
		err(1, "%s", path);
	connection = accept(listener, NULL, NULL);
	if (connection < 0)
		err(1, "accept");
	return connection;
}

/* takes the kicks; then serves what there is */
static void on_kick(void) {
	uint64_t kicks;
	if (read(kick, &kicks, sizeof kicks) < 0)
		err(1, "kick");
	serve();
}

static void interrupt(void) {
	uint64_t one = 1;
	if (call >= 0 && write(call, &one, sizeof one) < 0)
		err(1, "call");
}

/* until the connection ends */
static void run(int connection) {
	struct message message;
	int fds[FDS];
	for (;;) {
		struct pollfd polled[] = {{.fd = connection, .events = POLLIN}, {.fd = kick, .events = POLLIN}};
		if (poll(polled, 2, -1) < 0)
			err(1, "poll");
		if (polled[1].revents & POLLIN)
			on_kick();
		if (polled[0].revents) {
			if (!receive(connection, &message, fds))
				return;
			obey(connection, &message, fds);
		}
	}
}
