/* sizes DEVICE: writes and reads requests of many sizes, from 512 bytes to 1 MiB, past the caches, out of memory that
 * begins at a page and out of memory that does not. What is read into other memory is compared with what was
 * written. Each request has a place of its own, so that the device holds all of them at the end.
 * Says "COUNT requests, BYTES bytes"; ends with status 1 and a reason where anything is wrong. */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define PAGE 4096
#define LARGEST (1 << 20)

static uint64_t state = 0x9e3779b97f4a7c15;

static uint64_t next(void) {
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

int main(int argc, char **argv) {
	if (argc != 2)
		errx(2, "usage: sizes DEVICE");
	int disk = open(argv[1], O_RDWR | O_DIRECT), block;
	uint64_t size;
	if (disk < 0 || ioctl(disk, BLKGETSIZE64, &size) || ioctl(disk, BLKSSZGET, &block))
		err(1, "%s", argv[1]);
	unsigned char *out = aligned_alloc(PAGE, LARGEST + PAGE), *in = aligned_alloc(PAGE, LARGEST + PAGE);
	if (!out || !in)
		errx(1, "no memory");

	uint64_t place = 0, count = 0;
	for (size_t base = (size_t)block; base <= LARGEST; base *= 2)
		for (size_t extra = 0; extra < 3; extra++) {
			size_t length = base + extra * (size_t)block * (base >= 8 * (size_t)block ? 3 : 1);
			/* memory is aligned to 512 bytes at least: Linux' dma_alignment of virtio disks */
			for (size_t offset = 0; offset < PAGE; offset += 1536) {
				if (length > LARGEST || place + length > size)
					continue;
				unsigned char *from = out + offset, *to = in + (PAGE - offset) % PAGE / 512 * 512;
				for (size_t i = 0; i + 8 <= length; i += 8) {
					uint64_t word = next();
					memcpy(from + i, &word, 8);
				}
				memset(to, 0, length);
				if (pwrite(disk, from, length, (off_t)place) != (ssize_t)length)
					err(1, "write of %zu at %ju from offset %zu", length, (uintmax_t)place, offset);
				if (pread(disk, to, length, (off_t)place) != (ssize_t)length)
					err(1, "read of %zu at %ju", length, (uintmax_t)place);
				if (memcmp(from, to, length))
					errx(1, "%zu bytes at %ju read back otherwise", length, (uintmax_t)place);
				place += length;
				count += 2;
			}
		}
	printf("%ju requests, %ju bytes\n", (uintmax_t)count, (uintmax_t)place * 2);
	return 0;
}
