/* banks DEVICE MIB: a disk's requests from and to pages of both banks of a guest's RAM.
 * Takes MIB of memory, looks where its pages are (/proc/self/pagemap), and for SAMPLES pages of each bank writes
 * the page to the disk and reads it back into a page of the other bank. Each page holds its own physical address.
 * Says "LOW HIGH", the pages it found in each; ends with status 1 and a reason where anything is wrong. */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096
#define SAMPLES 512
#define SECOND_BANK 0x200000000 /* GUEST_RAM1_BASE, xen/include/public/arch-arm.h */

static uint64_t address_of(int pagemap, const void *page) {
	uint64_t entry;
	off_t place = (off_t)((uintptr_t)page / PAGE * sizeof entry);
	if (pread(pagemap, &entry, sizeof entry, place) != sizeof entry)
		err(1, "pagemap");
	if (!(entry >> 63) || !(entry & ((UINT64_C(1) << 55) - 1)))
		errx(1, "pagemap does not tell where a page is");
	return (entry & ((UINT64_C(1) << 55) - 1)) * PAGE;
}

int main(int argc, char **argv) {
	if (argc != 3)
		errx(2, "usage: banks DEVICE MIB");
	size_t size = strtoull(argv[2], NULL, 10) << 20, found[2] = {0, 0};
	int disk = open(argv[1], O_RDWR | O_DIRECT), pagemap = open("/proc/self/pagemap", O_RDONLY);
	if (disk < 0 || pagemap < 0)
		err(1, "%s or pagemap", argv[1]);
	char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (memory == MAP_FAILED)
		err(1, "no memory");

	static uint64_t *sample[2][SAMPLES];
	for (size_t offset = 0; offset < size; offset += PAGE) {
		uint64_t *page = (uint64_t *)(memory + offset), address = address_of(pagemap, page);
		size_t bank = address >= SECOND_BANK;
		page[0] = address;
		page[PAGE / sizeof *page - 1] = ~address;
		/* spread over the bank: the later ones go in the place of earlier ones */
		sample[bank][found[bank]++ / 7 % SAMPLES] = page;
	}
	for (size_t bank = 0; bank < 2; bank++)
		if (!sample[bank][SAMPLES - 1])
			errx(1, "only %zu pages of bank %zu", found[bank], bank);

	for (size_t i = 0; i < SAMPLES; i++)
		for (size_t bank = 0; bank < 2; bank++) {
			uint64_t *from = sample[bank][i], *to = sample[!bank][i], address = from[0], kept = to[0];
			off_t place = (off_t)((i * 2 + bank) * PAGE);
			if (pwrite(disk, from, PAGE, place) != PAGE)
				err(1, "write from %#jx", (uintmax_t)address);
			if (pread(disk, to, PAGE, place) != PAGE)
				err(1, "read to %#jx", (uintmax_t)kept);
			if (to[0] != address || to[PAGE / sizeof *to - 1] != ~address)
				errx(1, "what was written from %#jx came back to %#jx as %#jx", (uintmax_t)address,
				     (uintmax_t)kept, (uintmax_t)to[0]);
			to[0] = kept;
			to[PAGE / sizeof *to - 1] = ~kept;
		}
	printf("%zu %zu\n", found[0], found[1]);
	return 0;
}
