/* keys press COUNT: an input device of uinput's with COUNT random keys, each pressed and released once a line has come
 * on standard input; the device stays until the next line or its end. Says "ready NODE" (/dev/input/event3) before, and
 * "sent SUM" afterwards.
 * keys hear NODE COUNT: reads as many keys of an input device. Says "hearing NAME" and "heard SUM". */
#include <dirent.h>
#include <err.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include <linux/input.h>
#include <linux/uinput.h>

#define KEYS 200 /* codes 1 to 200 */

static uint64_t mix(uint64_t sum, uint64_t word) { return (sum ^ word) * 0x9e3779b97f4a7c15u + 1; }

static void emit(int fd, int type, int code, int value) {
	struct input_event event = {.type = (uint16_t)type, .code = (uint16_t)code, .value = value};
	if (write(fd, &event, sizeof event) != sizeof event)
		err(1, "write");
}

/* how it can be read, once the kernel has made that */
static void say_node(int fd) {
	char name[32], path[64];
	if (ioctl(fd, UI_GET_SYSNAME(sizeof name), name) < 0)
		err(1, "UI_GET_SYSNAME");
	snprintf(path, sizeof path, "/sys/devices/virtual/input/%s", name);
	DIR *directory = opendir(path);
	if (!directory)
		err(1, "%s", path);
	for (struct dirent *entry; (entry = readdir(directory));)
		if (!strncmp(entry->d_name, "event", 5))
			printf("ready /dev/input/%s\n", entry->d_name);
	closedir(directory);
}

static void press(unsigned long count) {
	/* so slow that no queue is ever full: nobody waits for events that found no room */
	const struct timespec pause = {.tv_nsec = 2000000};
	struct uinput_setup setup = {.id = {.bustype = BUS_VIRTUAL, .vendor = 0x5e, .product = 0xd, .version = 1},
	    .name = "keys of dom0"};
	uint64_t sum = 0;
	unsigned seed;
	int fd = open("/dev/uinput", O_WRONLY);
	if (fd < 0 || ioctl(fd, UI_SET_EVBIT, EV_KEY))
		err(1, "/dev/uinput");
	for (int code = 1; code <= KEYS; code++)
		if (ioctl(fd, UI_SET_KEYBIT, code))
			err(1, "UI_SET_KEYBIT");
	if (ioctl(fd, UI_DEV_SETUP, &setup) || ioctl(fd, UI_DEV_CREATE) || getentropy(&seed, sizeof seed))
		err(1, "UI_DEV_CREATE");
	say_node(fd);
	if (getchar() == EOF)
		errx(1, "nobody wants any");
	srandom(seed);
	for (unsigned long i = 0; i < count; i++) {
		int code = (int)(random() % KEYS) + 1;
		for (int value = 1; value >= 0; value--) {
			emit(fd, EV_KEY, code, value);
			emit(fd, EV_SYN, SYN_REPORT, 0);
			nanosleep(&pause, NULL);
		}
		sum = mix(sum, (uint64_t)code);
	}
	printf("sent %016jx\n", (uintmax_t)sum);
	getchar();
}

static void hear(const char *node, unsigned long count) {
	struct input_event event;
	char name[64];
	uint64_t sum = 0;
	int down = 0, fd = open(node, O_RDONLY);
	if (fd < 0 || ioctl(fd, EVIOCGNAME(sizeof name), name) < 0)
		err(1, "%s", node);
	printf("hearing %s\n", name);
	while (count) {
		if (read(fd, &event, sizeof event) != sizeof event)
			err(1, "read");
		if (event.type != EV_KEY)
			continue;
		if (event.value == 1) {
			down = event.code;
			continue;
		}
		if (event.value != 0 || event.code != down)
			errx(1, "key %d has value %d after key %d", event.code, event.value, down);
		sum = mix(sum, event.code);
		count--;
	}
	printf("heard %016jx\n", (uintmax_t)sum);
}

int main(int argc, char **argv) {
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc == 3 && !strcmp(argv[1], "press"))
		press(strtoul(argv[2], NULL, 10));
	else if (argc == 4 && !strcmp(argv[1], "hear"))
		hear(argv[2], strtoul(argv[3], NULL, 10));
	else
		errx(2, "usage: keys press COUNT | keys hear NODE COUNT");
	return 0;
}
