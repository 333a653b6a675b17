/* mapper SOCKET IMAGE: a vhost-user back end for a disk, in dom0, that is built for Xen: it is given its guest's memory
 * (VHOST_USER_PROTOCOL_F_XEN_MMAP), maps it as it is at that moment, and serves the guest's own ring, in its order and
 * without a record of what is in flight. It goes on where the used ring ends, and says "begins at INDEX, COUNT wait"; of
 * memory it says "mapped COUNT pages, COUNT are not there". Memory that it lacks is its end, as it is that of others. It
 * ends with its front end's connection. */
#include <err.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <fcntl.h>
#include <unistd.h>

#include <linux/virtio_blk.h>
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
	GET_PROTOCOL_FEATURES = 15,
	GET_CONFIG = 24,
};
#define VERSION 1u
#define REPLY 4u
#define NEED_REPLY 8u
/* VIRTIO_F_VERSION_1, PROTOCOL_FEATURES, VIRTIO_BLK_F_SEG_MAX */
#define FEATURES (1ull << 32 | 1ull << 30 | 1ull << VIRTIO_BLK_F_SEG_MAX)
#define PROTOCOL_FEATURES (1ull << 3 | 1ull << 9 | 1ull << 17) /* REPLY_ACK, CONFIG, XEN_MMAP */
#define FOREIGN 1u
#define REGIONS 8
#define FDS 8
#define SEGMENTS 30
#define PAGE 4096ull

/* include/uapi/xen/privcmd.h */
struct mmapbatch {
	uint32_t num;
	uint16_t dom;
	uint64_t addr;
	const uint64_t *arr;
	int *err;
};
#define MMAPBATCH_V2 _IOC(_IOC_NONE, 'P', 4, sizeof(struct mmapbatch))

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
				uint32_t mapping, domain;
			} region[REGIONS];
		} memory;
		struct {
			uint32_t offset, size, flags;
			uint8_t bytes[256];
		} config;
		uint8_t bytes[1024];
	};
} __attribute__((packed));

static struct {
	uint64_t guest, size;
	uint8_t *at;
} regions[REGIONS];
static unsigned count;

static int image;
static struct virtio_blk_config config;
static struct vring ring;
static uint16_t seen;
static int kick = -1, call = -1;

/* where an address of the guest's is here; rings are told by them, too */
static void *place(uint64_t address, uint64_t len) {
	for (unsigned i = 0; i < count; i++)
		if (address >= regions[i].guest && address - regions[i].guest + len <= regions[i].size)
			return regions[i].at + (address - regions[i].guest);
	errx(1, "%llu bytes at %#llx are nowhere", (unsigned long long)len, (unsigned long long)address);
}

/* maps the frames of a region; how many are not there */
static unsigned map_frames(unsigned i, int privcmd, uint32_t domain) {
	unsigned frames = (unsigned)(regions[i].size / PAGE), missing = 0;
	uint64_t *arr = calloc(frames, sizeof *arr);
	int *errors = calloc(frames, sizeof *errors);
	struct mmapbatch batch = {frames, (uint16_t)domain, (uintptr_t)regions[i].at, arr, errors};
	if (!arr || !errors)
		err(1, "%u frames", frames);
	for (unsigned frame = 0; frame < frames; frame++)
		arr[frame] = regions[i].guest / PAGE + frame;
	if (ioctl(privcmd, MMAPBATCH_V2, &batch))
		err(1, "MMAPBATCH_V2");
	for (unsigned frame = 0; frame < frames; frame++)
		missing += errors[frame] != 0;
	free(arr);
	free(errors);
	return missing;
}

static void take_memory(const struct message *message, const int *fds) {
	unsigned long pages = 0, missing = 0;
	for (unsigned i = 0; i < count; i++)
		munmap(regions[i].at, regions[i].size);
	count = message->memory.count;
	if (count > REGIONS)
		errx(1, "%u regions", count);
	for (unsigned i = 0; i < count; i++) {
		if (message->memory.region[i].mapping != FOREIGN || message->memory.region[i].offset)
			errx(1, "region %u is no foreign memory", i);
		regions[i].guest = message->memory.region[i].guest;
		regions[i].size = message->memory.region[i].size;
		regions[i].at = mmap(NULL, regions[i].size, PROT_READ | PROT_WRITE, MAP_SHARED, fds[i], 0);
		if (regions[i].at == MAP_FAILED)
			err(1, "mmap");
		missing += map_frames(i, fds[i], message->memory.region[i].domain);
		pages += regions[i].size / PAGE;
		close(fds[i]);
	}
	printf("mapped %lu pages, %lu are not there\n", pages, missing);
}

/* moves one buffer; a page of it that is not there is the end */
static void move(int to_guest, const struct vring_desc *desc, off_t at) {
	void *buffer = place(desc->addr, desc->len);
	ssize_t moved = to_guest ? pread(image, buffer, desc->len, at) : pwrite(image, buffer, desc->len, at);
	if (moved != (ssize_t)desc->len)
		err(1, "%u bytes at %#llx", desc->len, (unsigned long long)desc->addr);
}

/* header, buffers, status (virtio 1.3, 5.2.6); returns the bytes written */
static uint32_t obey_request(uint16_t head) {
	const struct vring_desc *desc = &ring.desc[head];
	const struct virtio_blk_outhdr *header = place(desc->addr, sizeof *header);
	uint32_t type = header->type, written = 1;
	off_t at = (off_t)(header->sector * 512);
	for (desc = &ring.desc[desc->next]; desc->flags & VRING_DESC_F_NEXT; desc = &ring.desc[desc->next]) {
		if (type == VIRTIO_BLK_T_IN || type == VIRTIO_BLK_T_OUT)
			move(type == VIRTIO_BLK_T_IN, desc, at);
		at += desc->len;
		written += type == VIRTIO_BLK_T_IN ? desc->len : 0;
	}
	*(volatile uint8_t *)place(desc->addr, 1) =
	    type == VIRTIO_BLK_T_IN || type == VIRTIO_BLK_T_OUT ? VIRTIO_BLK_S_OK : VIRTIO_BLK_S_UNSUPP;
	return written;
}

static void serve(void) {
	uint64_t one = 1, kicks;
	if (read(kick, &kicks, sizeof kicks) < 0)
		err(1, "kick");
	for (; seen != __atomic_load_n(&ring.avail->idx, __ATOMIC_ACQUIRE); seen++) {
		uint16_t head = ring.avail->ring[seen % ring.num];
		uint32_t written = obey_request(head);
		ring.used->ring[seen % ring.num] = (struct vring_used_elem){.id = head, .len = written};
		__atomic_store_n(&ring.used->idx, (uint16_t)(seen + 1), __ATOMIC_RELEASE);
	}
	if (call >= 0 && write(call, &one, sizeof one) < 0)
		err(1, "call");
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

static void begin(int with) {
	replace(&kick, with);
	if (seen != ring.used->idx)
		errx(1, "told to begin at %u, and the used ring ends at %u", seen, ring.used->idx);
	printf("begins at %u, %u wait\n", seen, (uint16_t)(ring.avail->idx - seen));
}

static void give_config(struct message *message) {
	uint32_t offset = message->config.offset, size = message->config.size;
	memset(message->config.bytes, 0, sizeof message->config.bytes);
	if (offset < sizeof config && size <= sizeof message->config.bytes)
		memcpy(message->config.bytes, (uint8_t *)&config + offset,
		       size < sizeof config - offset ? size : sizeof config - offset);
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
	case GET_CONFIG:
		give_config(message);
		reply(connection, message, message->size);
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
		ring.desc = place(message->address.desc, 16ull * ring.num);
		ring.avail = place(message->address.avail, 4 + 2ull * ring.num);
		ring.used = place(message->address.used, 4 + 8ull * ring.num);
		break;
	case SET_VRING_KICK:
		begin(fds[0]);
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
	struct stat size;
	int fds[FDS], connection, listener = socket(AF_UNIX, SOCK_STREAM, 0);
	if (argc != 3)
		errx(2, "usage: mapper SOCKET IMAGE");
	setvbuf(stdout, NULL, _IOLBF, 0);
	image = open(argv[2], O_RDWR);
	if (image < 0 || fstat(image, &size))
		err(1, "%s", argv[2]);
	config.capacity = (uint64_t)size.st_size / 512;
	config.seg_max = SEGMENTS;
	strncpy(address.sun_path, argv[1], sizeof address.sun_path - 1);
	unlink(argv[1]);
	if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1))
		err(1, "%s", argv[1]);
	connection = accept(listener, NULL, NULL);
	if (connection < 0)
		err(1, "accept");
	for (;;) {
		struct pollfd polled[] = {{.fd = connection, .events = POLLIN}, {.fd = kick, .events = POLLIN}};
		if (poll(polled, 2, -1) < 0)
			err(1, "poll");
		if (polled[1].revents & POLLIN)
			serve();
		if (polled[0].revents) {
			if (!receive(connection, &message, fds))
				return 0;
			obey(connection, &message, fds);
		}
	}
}
