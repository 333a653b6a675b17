/* hostile ADDRESS KIND SECONDS SEED: abuses the virtio device at ADDRESS, which no driver may be bound to.
 * KIND is plain (memory is named by its address) or grants (by references that this program gives and takes away).
 * In rounds: registers written with random values and sizes, then the device brought up with rings of random
 * content in memory that is lent, kicked, and sometimes taken away under it. No address names RAM other than this
 * program's, so that the guest itself lives on.
 * Says "ROUNDS rounds, WRITES writes, KICKS kicks, BROKEN times broken", the last being how often the device asked
 * for a reset. */
#include <err.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include <xen/gntalloc.h>

#define PAGE 4096
#define PAGES 32                            /* the lent memory: rings, then buffers */
#define WINDOW 0x200                        /* a device's registers, as libxl lays them out */
#define SIZE 16                             /* of each queue */
#define RING 512                            /* no part of such a queue is larger */
#define GRANT_ADDRESS (UINT64_C(1) << 63)   /* XEN_GRANT_DMA_ADDR_OFF, Linux drivers/xen/grant-dma-ops.c */
#define BEYOND_RAM UINT64_C(0x700000000000) /* no guest of the lab has memory there */

/* virtio 1.3 §4.2.2, §2.1, §2.7.5 */
enum { DRIVER_FEATURES = 0x20, DRIVER_FEATURES_SEL = 0x24, QUEUE_SEL = 0x30, QUEUE_NUM = 0x38, QUEUE_READY = 0x44,
       QUEUE_NOTIFY = 0x50, STATUS = 0x70, QUEUE_DESC = 0x80, QUEUE_DRIVER = 0x90, QUEUE_DEVICE = 0xa0 };
enum { ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8, NEEDS_RESET = 64 };
struct descriptor { uint64_t address; uint32_t length; uint16_t flags, next; };

static volatile uint8_t *registers;
static uint8_t *memory;
static uint64_t address[PAGES]; /* what the device is told */
static int gntalloc = -1;
static uint64_t lent; /* gntalloc's index of the references; 0 with plain addresses */
static uint64_t rounds, writes, kicks, broken, state;

static uint64_t any(void) { /* xorshift64 */
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}
static bool one_in(unsigned n) { return any() % n == 0; }

static void put(unsigned offset, uint32_t value) {
	*(volatile uint32_t *)(registers + offset) = value;
	writes++;
}
static uint32_t get(unsigned offset) { return *(volatile uint32_t *)(registers + offset); }
static void put_address(unsigned offset, uint64_t value) {
	put(offset, (uint32_t)value);
	put(offset + 4, (uint32_t)(value >> 32));
}

static void lend_grants(void) {
	/* the structure ends in an array of one */
	static uint64_t space[(sizeof(struct ioctl_gntalloc_alloc_gref) + PAGES * sizeof(uint32_t)) / sizeof(uint64_t) + 1];
	struct ioctl_gntalloc_alloc_gref *request = (void *)space;
	memset(space, 0, sizeof space);
	request->flags = GNTALLOC_FLAG_WRITABLE;
	request->count = PAGES;
	if (ioctl(gntalloc, IOCTL_GNTALLOC_ALLOC_GREF, request))
		err(1, "granting %d pages", PAGES);
	lent = request->index;
	memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, gntalloc, (off_t)lent);
	if (memory == MAP_FAILED)
		err(1, "mapping the granted pages");
	for (unsigned i = 0; i < PAGES; i++)
		address[i] = GRANT_ADDRESS | (uint64_t)request->gref_ids[i] * PAGE;
}

/* Whatever the device still does with them. */
static void take_grants_away(void) {
	struct ioctl_gntalloc_dealloc_gref request = {.index = lent, .count = PAGES};
	munmap(memory, PAGES * PAGE);
	if (ioctl(gntalloc, IOCTL_GNTALLOC_DEALLOC_GREF, &request))
		err(1, "taking the granted pages away");
}

static void lend_plain(void) {
	memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	int pagemap = open("/proc/self/pagemap", O_RDONLY);
	if (memory == MAP_FAILED || mlock(memory, PAGES * PAGE) || pagemap < 0)
		err(1, "memory or pagemap");
	for (unsigned i = 0; i < PAGES; i++) {
		uint64_t entry;
		if (pread(pagemap, &entry, sizeof entry, (off_t)((uintptr_t)(memory + i * PAGE) / PAGE * sizeof entry)) != sizeof entry)
			err(1, "pagemap");
		address[i] = (entry & ((UINT64_C(1) << 55) - 1)) * PAGE;
	}
	close(pagemap);
}

/* An address for a descriptor or a ring: lent memory with `room` bytes of its page left, or nobody's. */
static uint64_t some_address(uint64_t room) {
	uint64_t page = address[any() % PAGES], offset = any() % (PAGE - room + 1);
	switch (any() % 6) {
	case 0: return BEYOND_RAM + any() % BEYOND_RAM;
	case 1: return GRANT_ADDRESS | any() % (1 << 20) << 24; /* a reference that was never given */
	case 2: return ~offset;
	case 3: return page | offset;
	default: return page;
	}
}

static void random_registers(unsigned count) {
	while (count--) {
		unsigned offset = any() % WINDOW;
		uint64_t value = one_in(2) ? any() % 32 : any();
		/* addresses are set by known registers alone: random ones might name the kernel's own memory */
		if ((offset & ~7u) >= QUEUE_DESC && (offset & ~7u) < QUEUE_DEVICE + 8)
			continue;
		writes++;
		switch (any() % 4) {
		case 0: registers[offset] = (uint8_t)value; break;
		case 1: *(volatile uint16_t *)(registers + (offset & ~1u)) = (uint16_t)value; break;
		case 2: (void)get(offset & ~3u); *(volatile uint64_t *)(registers + (offset & ~7u & 0x178)) = value; break;
		default: *(volatile uint32_t *)(registers + (offset & ~3u)) = (uint32_t)value;
		}
	}
}

static void fill_rings(void) {
	struct descriptor *table = (void *)memory;
	uint16_t *avail = (void *)(memory + PAGE);
	for (unsigned i = 0; i < SIZE; i++) {
		/* with plain addresses the next page is somebody else's */
		uint64_t room = any() % PAGE;
		table[i].address = some_address(room);
		table[i].length = gntalloc < 0 ? (uint32_t)room : one_in(4) ? (uint32_t)any() : (uint32_t)(any() % (2 * PAGE));
		table[i].flags = one_in(4) ? (uint16_t)any() : (uint16_t)(any() % 8);
		table[i].next = one_in(4) ? (uint16_t)any() : (uint16_t)(any() % SIZE);
	}
	avail[0] = (uint16_t)(any() % 2);
	for (unsigned i = 0; i < SIZE; i++)
		avail[2 + i] = one_in(4) ? (uint16_t)any() : (uint16_t)(any() % SIZE);
	/* a request's header, as a disk would take it */
	for (unsigned page = 3; page < PAGES; page++) {
		uint32_t *header = (void *)(memory + page * PAGE);
		header[0] = (uint32_t)(any() % 16);
		header[2] = (uint32_t)(any() % 65536);
	}
	__sync_synchronize();
	avail[1] = (uint16_t)(one_in(4) ? any() : avail[1] + any() % SIZE);
}

static void bring_up(unsigned queues) {
	put(STATUS, 0);
	put(STATUS, ACKNOWLEDGE);
	put(STATUS, ACKNOWLEDGE | DRIVER);
	for (uint32_t word = 0; word < 2; word++) {
		put(DRIVER_FEATURES_SEL, word);
		/* VERSION_1, and ACCESS_PLATFORM where grants are used */
		put(DRIVER_FEATURES, word == 0 ? 0 : gntalloc < 0 ? 1 : 3);
	}
	put(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
	for (unsigned queue = 0; queue < queues; queue++) {
		put(QUEUE_SEL, queue);
		put(QUEUE_NUM, !one_in(8) ? SIZE : gntalloc < 0 ? (uint32_t)any() | 1 << 16 : (uint32_t)any());
		put_address(QUEUE_DESC, one_in(8) ? some_address(RING) : address[0]);
		put_address(QUEUE_DRIVER, one_in(8) ? some_address(RING) : address[1]);
		put_address(QUEUE_DEVICE, one_in(8) ? some_address(RING) : address[2]);
		put(QUEUE_READY, 1);
	}
	put(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
}

static void one_round(void) {
	if (gntalloc >= 0)
		lend_grants();
	random_registers(64);
	bring_up(2);
	for (unsigned kick = 0; kick < 8; kick++) {
		fill_rings();
		put(QUEUE_NOTIFY, one_in(4) ? (uint32_t)any() : kick % 2);
		kicks++;
		if (one_in(4))
			random_registers(4);
	}
	broken += (get(STATUS) & NEEDS_RESET) != 0;
	if (gntalloc >= 0 && one_in(2)) {
		take_grants_away(); /* the device still has them */
		put(QUEUE_NOTIFY, 0);
		put(STATUS, 0);
	} else {
		put(STATUS, 0);
		if (gntalloc >= 0)
			take_grants_away();
	}
	rounds++;
}

int main(int argc, char **argv) {
	if (argc != 5)
		errx(2, "usage: hostile ADDRESS plain|grants SECONDS SEED");
	uint64_t base = strtoull(argv[1], NULL, 0), seconds = strtoull(argv[3], NULL, 10);
	state = strtoull(argv[4], NULL, 10) * 2 + 1;
	int file = open("/dev/mem", O_RDWR | O_SYNC);
	if (file < 0)
		err(1, "/dev/mem");
	uint8_t *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, (off_t)(base & ~UINT64_C(0xfff)));
	if (page == MAP_FAILED)
		err(1, "the device's registers");
	registers = page + (base & 0xfff);
	if (!strcmp(argv[2], "grants")) {
		gntalloc = open("/dev/xen/gntalloc", O_RDWR);
		if (gntalloc < 0)
			err(1, "/dev/xen/gntalloc");
	} else {
		lend_plain();
	}
	time_t end = time(NULL) + (time_t)seconds;
	while (time(NULL) < end)
		one_round();
	printf("%ju rounds, %ju writes, %ju kicks, %ju times broken\n", (uintmax_t)rounds, (uintmax_t)writes,
	       (uintmax_t)kicks, (uintmax_t)broken);
	return 0;
}
