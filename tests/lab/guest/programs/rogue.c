/* rogue SOCKET MODE: a vhost-user back end for a device of random numbers, in dom0, that breaks the rules as MODE says:
 *   honest    fills what it declares, 16 bytes of each buffer, with 0x11
 *   scribble  does so, too, after it has written 0xee everywhere but into the rings
 *   wrong-id  uses a descriptor that is not in flight
 *   far-id    uses a descriptor that no ring has
 *   twice     uses each descriptor twice
 *   ahead     moves the used index by more than there is
 *   long      declares more bytes than a buffer has
 *   silent    takes requests and never answers
 *   mute      takes the connection, never says a word on it, and says "left" when it has ended
 * It says "served COUNT" after each batch of requests. Ends with its front end's connection. */
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

/* Documentation of vhost-user: numbers of messages, and features */
enum {
	GET_FEATURES = 1,
	SET_MEM_TABLE = 5,
	SET_VRING_NUM = 8,
	SET_VRING_ADDR = 9,
	SET_VRING_BASE = 10,
	GET_VRING_BASE = 11,
	SET_VRING_KICK = 12,
	SET_VRING_CALL = 13,
	SET_VRING_ERR = 14,
	GET_PROTOCOL_FEATURES = 15,
	GET_QUEUE_NUM = 17,
};
#define VERSION 1u
#define REPLY 4u
#define NEED_REPLY 8u
#define FEATURES ((1ull << 32) | (1ull << 30)) /* VIRTIO_F_VERSION_1, PROTOCOL_FEATURES */
#define PROTOCOL_FEATURES 9ull                  /* MQ, REPLY_ACK */
#define REGIONS 8
#define FDS 8
#define DECLARED 16

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
			struct {
				uint64_t guest, size, user, offset;
			} region[REGIONS];
		} memory;
		uint8_t bytes[1024];
	};
} __attribute__((packed));

static struct {
	uint64_t guest, size, user;
	uint8_t *at;
} regions[REGIONS];
static unsigned count;

static const char *mode;
static struct vring ring;
static uint16_t seen, used;
static int kick = -1, call = -1;

static int is(const char *word) { return !strcmp(mode, word); }

/* where an address is here, of the front end's own (USER) or of the guest's */
static void *place(uint64_t address, int user) {
	for (unsigned i = 0; i < count; i++) {
		uint64_t start = user ? regions[i].user : regions[i].guest;
		if (address >= start && address - start < regions[i].size)
			return regions[i].at + (address - start);
	}
	errx(1, "address %#llx is nowhere", (unsigned long long)address);
}

static void take_memory(const struct message *message, const int *fds) {
	count = message->memory.count;
	if (count > REGIONS)
		errx(1, "%u regions", count);
	for (unsigned i = 0; i < count; i++) {
		uint64_t offset = message->memory.region[i].offset;
		regions[i].guest = message->memory.region[i].guest;
		regions[i].size = message->memory.region[i].size;
		regions[i].user = message->memory.region[i].user;
		regions[i].at = mmap(NULL, regions[i].size + offset, PROT_READ | PROT_WRITE, MAP_SHARED, fds[i], 0);
		if (regions[i].at == MAP_FAILED)
			err(1, "mmap");
		regions[i].at += offset;
	}
}

/* the rings lie together */
static void scribble(void) {
	uint8_t *from = (uint8_t *)ring.desc;
	uint8_t *to = (uint8_t *)&ring.used->ring[ring.num] + sizeof(uint16_t);
	for (unsigned i = 0; i < count; i++) {
		uint8_t *end = regions[i].at + regions[i].size;
		if (from < regions[i].at || to > end) {
			memset(regions[i].at, 0xee, regions[i].size);
			continue;
		}
		memset(regions[i].at, 0xee, (size_t)(from - regions[i].at));
		memset(to, 0xee, (size_t)(end - to));
	}
}

static void put(uint32_t id, uint32_t len) {
	ring.used->ring[used % ring.num] = (struct vring_used_elem){.id = id, .len = len};
	used++;
}

static void answer(uint16_t head) {
	const struct vring_desc *desc = &ring.desc[head];
	uint32_t room = desc->len;
	if (is("scribble"))
		scribble();
	memset(place(desc->addr, 0), 0x11, room < DECLARED ? room : DECLARED);
	put(is("wrong-id") ? (head + 1u) % ring.num : is("far-id") ? 0x12345u : head,
	    is("long") ? room + 1 : room < DECLARED ? room : DECLARED);
	if (is("twice"))
		put(head, DECLARED);
	if (is("ahead"))
		used += 7;
}

static void serve(void) {
	uint64_t one = 1, kicks;
	unsigned served = 0;
	if (read(kick, &kicks, sizeof kicks) < 0)
		err(1, "kick");
	for (; seen != __atomic_load_n(&ring.avail->idx, __ATOMIC_ACQUIRE); seen++, served++)
		if (!is("silent"))
			answer(ring.avail->ring[seen % ring.num]);
	__atomic_store_n(&ring.used->idx, used, __ATOMIC_RELEASE);
	if (call >= 0 && write(call, &one, sizeof one) < 0)
		err(1, "call");
	printf("served %u\n", served);
	fflush(stdout);
}

static void reply(int connection, struct message *message, uint32_t size) {
	message->flags = VERSION | REPLY;
	message->size = size;
	if (write(connection, message, 12 + size) != (ssize_t)(12 + size))
		err(1, "a reply");
}

static void replace(int *fd, int with) {
	if (*fd >= 0)
		close(*fd);
	*fd = with;
}

/* what a message asks for; those that set something only are answered by their acknowledgement */
static void obey(int connection, struct message *message, const int *fds) {
	int acknowledge = (message->flags & NEED_REPLY) != 0;
	switch (message->request) {
	case GET_FEATURES:
		message->number = FEATURES;
		reply(connection, message, 8);
		return;
	case GET_PROTOCOL_FEATURES:
		message->number = PROTOCOL_FEATURES;
		reply(connection, message, 8);
		return;
	case GET_QUEUE_NUM:
		message->number = 1;
		reply(connection, message, 8);
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
		seen = used = (uint16_t)message->state.value;
		break;
	case SET_VRING_ADDR:
		ring.desc = place(message->address.desc, 1);
		ring.avail = place(message->address.avail, 1);
		ring.used = place(message->address.used, 1);
		break;
	case SET_VRING_KICK:
		replace(&kick, fds[0]);
		break;
	case SET_VRING_CALL:
		replace(&call, fds[0]);
		break;
	}
	if (acknowledge) {
		message->number = 0;
		reply(connection, message, 8);
	}
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

int main(int argc, char **argv) {
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct message message;
	int fds[FDS], connection, listener = socket(AF_UNIX, SOCK_STREAM, 0);
	if (argc != 3)
		errx(2, "usage: rogue SOCKET MODE");
	mode = argv[2];
	strncpy(address.sun_path, argv[1], sizeof address.sun_path - 1);
	if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1))
		err(1, "%s", argv[1]);
	connection = accept(listener, NULL, NULL);
	if (connection < 0)
		err(1, "accept");
	if (!strcmp(mode, "mute")) {
		while (read(connection, &message, sizeof message) > 0)
			;
		printf("left\n");
		return 0;
	}
	for (;;) {
		struct pollfd polled[] = {{.fd = connection, .events = POLLIN}, {.fd = kick, .events = POLLIN}};
		if (poll(polled, 2, -1) < 0)
			err(1, "poll");
		if (polled[1].revents)
			serve();
		if (polled[0].revents) {
			if (!receive(connection, &message, fds))
				return 0;
			obey(connection, &message, fds);
		}
	}
}
