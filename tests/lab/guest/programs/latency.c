/* latency DEVICE KIND BYTES COUNT: how long a request of BYTES takes, one after the other and past the caches.
 * KIND is read or write; the requests go through the device from its beginning, again and again.
 * Says the microseconds of a request: the mean of COUNT of them, or of as many as three seconds hold, without those
 * that took more than twice the median. These have lost an emulated processor to somebody else; a request that only
 * went a dearer way counts as it is. Ends with status 1 and a reason where a request fails. */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096
#define MOST 3e6 /* microseconds */

static double now(void) {
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec * 1e6 + (double)time.tv_nsec / 1e3;
}

static int compare(const void *a, const void *b) {
	double first = *(const double *)a, second = *(const double *)b;
	return (first > second) - (first < second);
}

/* Of the `count` times, which are sorted. */
static double mean(double *times, size_t count) {
	qsort(times, count, sizeof *times, compare);
	double most = 2 * times[count / 2], sum = 0;
	size_t taken = 0;
	while (taken < count && times[taken] <= most)
		sum += times[taken++];
	return sum / (double)taken;
}

int main(int argc, char **argv) {
	if (argc != 5 || (strcmp(argv[2], "read") && strcmp(argv[2], "write")))
		errx(2, "usage: latency DEVICE read|write BYTES COUNT");
	int disk = open(argv[1], O_RDWR | O_DIRECT), writes = !strcmp(argv[2], "write");
	uint64_t bytes = strtoull(argv[3], NULL, 10), count = strtoull(argv[4], NULL, 10), size;
	if (disk < 0 || ioctl(disk, BLKGETSIZE64, &size))
		err(1, "%s", argv[1]);
	if (bytes == 0 || bytes > size || count == 0)
		errx(2, "no bytes, no requests, or larger than the device");
	void *buffer = aligned_alloc(PAGE, (bytes + PAGE - 1) / PAGE * PAGE);
	double *times = calloc(count, sizeof *times);
	if (!buffer || !times)
		errx(1, "no memory");
	memset(buffer, 0x5a, bytes);

	size_t done = 0;
	for (double end = now() + MOST; done < count && now() < end; done++) {
		off_t place = (off_t)(done % (size / bytes) * bytes);
		double began = now();
		ssize_t moved = writes ? pwrite(disk, buffer, bytes, place) : pread(disk, buffer, bytes, place);
		times[done] = now() - began;
		if (moved != (ssize_t)bytes)
			err(1, "%s of %ju at %jd: %zd", argv[2], (uintmax_t)bytes, (intmax_t)place, moved);
	}
	printf("%.1f\n", mean(times, done));
	return 0;
}
