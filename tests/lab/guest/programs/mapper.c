/* mapper SOCKET IMAGE: a vhost-user back end for a disk, in dom0, that is built for Xen: it is given its guest's memory
 * (VHOST_USER_PROTOCOL_F_XEN_MMAP), maps it as it is at that moment, and serves the guest's own ring, in its order and
 * without a record of what is in flight. It goes on where the used ring ends, and says "begins at INDEX, COUNT wait"; of
 * memory it says "mapped COUNT pages, COUNT are not there". Memory that it lacks is its end, as it is that of others. It
 * ends with its front end's connection. */
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <fcntl.h>

#include <linux/virtio_blk.h>

/* VIRTIO_F_VERSION_1, PROTOCOL_FEATURES, VIRTIO_BLK_F_SEG_MAX */
#define FEATURES (1ull << 32 | 1ull << 30 | 1ull << VIRTIO_BLK_F_SEG_MAX)
#define PROTOCOL_FEATURES (1ull << 3 | 1ull << 9 | 1ull << 17) /* REPLY_ACK, CONFIG, XEN_MMAP */

#include "back-end.h"

#define FOREIGN 1u
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

static struct {
	uint64_t guest, size;
	uint8_t *at;
} regions[REGIONS];
static unsigned count;

static int image;
static struct virtio_blk_config config;

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
		if (message->memory.xen_region[i].mapping != FOREIGN || message->memory.xen_region[i].offset)
			errx(1, "region %u is no foreign memory", i);
		regions[i].guest = message->memory.xen_region[i].guest;
		regions[i].size = message->memory.xen_region[i].size;
		regions[i].at = mmap(NULL, regions[i].size, PROT_READ | PROT_WRITE, MAP_SHARED, fds[i], 0);
		if (regions[i].at == MAP_FAILED)
			err(1, "mmap");
		missing += map_frames(i, fds[i], message->memory.xen_region[i].domain);
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

static void *ring_part(uint64_t address, uint64_t len) { return place(address, len); }

static void begin(void) {
	if (seen != ring.used->idx)
		errx(1, "told to begin at %u, and the used ring ends at %u", seen, ring.used->idx);
	printf("begins at %u, %u wait\n", seen, (uint16_t)(ring.avail->idx - seen));
}

static void serve(void) {
	for (; seen != __atomic_load_n(&ring.avail->idx, __ATOMIC_ACQUIRE); seen++) {
		uint16_t head = ring.avail->ring[seen % ring.num];
		uint32_t written = obey_request(head);
		ring.used->ring[seen % ring.num] = (struct vring_used_elem){.id = head, .len = written};
		__atomic_store_n(&ring.used->idx, (uint16_t)(seen + 1), __ATOMIC_RELEASE);
	}
	interrupt();
}

static uint32_t answer_other(struct message *message) {
	uint32_t offset = message->config.offset, size = message->config.size;
	if (message->request != GET_CONFIG)
		return 0;
	memset(message->config.bytes, 0, sizeof message->config.bytes);
	if (offset < sizeof config && size <= sizeof message->config.bytes)
		memcpy(message->config.bytes, (uint8_t *)&config + offset,
		       size < sizeof config - offset ? size : sizeof config - offset);
	return message->size;
}

int main(int argc, char **argv) {
	struct stat size;
	if (argc != 3)
		errx(2, "usage: mapper SOCKET IMAGE");
	setvbuf(stdout, NULL, _IOLBF, 0);
	image = open(argv[2], O_RDWR);
	if (image < 0 || fstat(image, &size))
		err(1, "%s", argv[2]);
	config.capacity = (uint64_t)size.st_size / 512;
	config.seg_max = SEGMENTS;
	run(accept_at(argv[1]));
	return 0;
}
