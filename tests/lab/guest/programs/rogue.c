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
#define FEATURES (1ull << 32 | 1ull << 30)      /* VIRTIO_F_VERSION_1, PROTOCOL_FEATURES */
#define PROTOCOL_FEATURES (1ull << 0 | 1ull << 3) /* MQ, REPLY_ACK */

#include "back-end.h"

#define DECLARED 16

static struct {
	uint64_t guest, size, user;
	uint8_t *at;
} regions[REGIONS];
static unsigned count;

static const char *mode;
static uint16_t used;

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

static void *ring_part(uint64_t address, uint64_t len) {
	(void)len;
	return place(address, 1);
}

static void begin(void) { used = seen; }

static void serve(void) {
	unsigned served = 0;
	for (; seen != __atomic_load_n(&ring.avail->idx, __ATOMIC_ACQUIRE); seen++, served++)
		if (!is("silent"))
			answer(ring.avail->ring[seen % ring.num]);
	__atomic_store_n(&ring.used->idx, used, __ATOMIC_RELEASE);
	interrupt();
	printf("served %u\n", served);
	fflush(stdout);
}

static uint32_t answer_other(struct message *message) {
	if (message->request != GET_QUEUE_NUM)
		return 0;
	message->number = 1;
	return 8;
}

/* says nothing, whatever is said */
static void be_mute(int connection) {
	struct message message;
	while (read(connection, &message, sizeof message) > 0)
		;
	printf("left\n");
}

int main(int argc, char **argv) {
	if (argc != 3)
		errx(2, "usage: rogue SOCKET MODE");
	mode = argv[2];
	int connection = accept_at(argv[1]);
	if (is("mute"))
		be_mute(connection);
	else
		run(connection);
	return 0;
}
