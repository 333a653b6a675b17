/* submit DEVICE KIND COUNT [JOBS]: COUNT requests of one kind, one after the other in each of JOBS processes (one).
 * With one job each request is a kick and an interrupt of its own.
 * KIND is read, write, flush, discard, zeroes or id. Reads and writes are of one page, past the caches; what is
 * written stands in the page's first bytes and is read back at the end.
 * Says "KIND COUNT in SECONDS s"; ends with status 1 and a reason where a request fails. */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096

static int disk;
static uint64_t first, pages; /* this job's part of the disk */
static uint64_t *buffer;
static char serial_path[256];

static uint64_t place(uint64_t number) { return (first + number % pages) * PAGE; }

static void read_page(uint64_t number) {
	if (pread(disk, buffer, PAGE, (off_t)place(number)) != PAGE)
		err(1, "read %ju", (uintmax_t)number);
}

static void write_page(uint64_t number) {
	buffer[0] = number;
	buffer[1] = ~place(number);
	if (pwrite(disk, buffer, PAGE, (off_t)place(number)) != PAGE)
		err(1, "write %ju", (uintmax_t)number);
}

/* A page holds the last number that was written to it, and its own place. */
static void verify_writes(uint64_t count) {
	for (uint64_t number = count > pages ? count - pages : 0; number < count; number++) {
		read_page(number);
		if (buffer[0] != number || buffer[1] != ~place(number))
			errx(1, "the page at %ju holds number %ju instead of %ju", (uintmax_t)place(number),
			     (uintmax_t)buffer[0], (uintmax_t)number);
	}
}

static void flush(uint64_t number) {
	if (fsync(disk))
		err(1, "flush %ju", (uintmax_t)number);
}

static void range(unsigned long request, const char *name, uint64_t number) {
	uint64_t range[2] = {place(number), PAGE};
	if (ioctl(disk, request, range))
		err(1, "%s %ju", name, (uintmax_t)number);
}
static void discard(uint64_t number) { range(BLKDISCARD, "discard", number); }
static void zeroes(uint64_t number) { range(BLKZEROOUT, "zeroes", number); }

static void id(uint64_t number) {
	char text[32];
	int file = open(serial_path, O_RDONLY);
	if (file < 0 || read(file, text, sizeof text) < 0)
		err(1, "id %ju", (uintmax_t)number);
	close(file);
}

static const struct kind {
	const char *name;
	void (*request)(uint64_t);
} KINDS[] = {{"read", read_page}, {"write", write_page}, {"flush", flush},
	     {"discard", discard}, {"zeroes", zeroes},   {"id", id}};

static double now(void) {
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void run(const struct kind *kind, uint64_t count) {
	buffer = aligned_alloc(PAGE, PAGE);
	if (!buffer)
		errx(1, "no memory");
	memset(buffer, 0, PAGE);
	for (uint64_t number = 0; number < count; number++)
		kind->request(number);
	if (kind->request == write_page)
		verify_writes(count);
}

int main(int argc, char **argv) {
	if (argc != 4 && argc != 5)
		errx(2, "usage: submit DEVICE KIND COUNT [JOBS]");
	uint64_t count = strtoull(argv[3], NULL, 10), jobs = argc > 4 ? strtoull(argv[4], NULL, 10) : 1, size;
	const struct kind *kind = NULL;
	for (size_t i = 0; i < sizeof KINDS / sizeof *KINDS; i++)
		if (!strcmp(KINDS[i].name, argv[2]))
			kind = &KINDS[i];
	if (!kind || jobs == 0)
		errx(2, "no such kind, or no jobs");
	disk = open(argv[1], O_RDWR | O_DIRECT);
	if (disk < 0 || ioctl(disk, BLKGETSIZE64, &size))
		err(1, "%s", argv[1]);
	snprintf(serial_path, sizeof serial_path, "/sys/block/%s/serial", strrchr(argv[1], '/') + 1);
	pages = size / PAGE / jobs;
	if (pages == 0)
		errx(2, "the disk has no page for each job");

	double began = now();
	for (uint64_t job = 0; job < jobs; job++) {
		pid_t child = fork();
		if (child < 0)
			err(1, "fork");
		if (child == 0) {
			first = job * pages;
			run(kind, count / jobs + (job < count % jobs));
			_exit(0);
		}
	}
	int status, failed = 0;
	while (wait(&status) > 0)
		failed |= status;
	if (failed)
		return 1;
	printf("%s %ju in %.3f s\n", argv[2], (uintmax_t)count, now() - began);
	return 0;
}
