/* lines count: how many lines /dev/gpiochip0 has.
 * lines set NUMBER=VALUE…: sets them, says "set", and keeps them so until it is ended.
 * lines get NUMBER…: what they are, "1 0 1". */
#include <err.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <linux/gpio.h>

int main(int argc, char **argv) {
	struct gpio_v2_line_request request = {.consumer = "lab"};
	struct gpio_v2_line_values values = {0};
	struct gpiochip_info info;
	int is_set, chip = open("/dev/gpiochip0", O_RDWR);
	if (chip < 0 || ioctl(chip, GPIO_GET_CHIPINFO_IOCTL, &info))
		err(1, "/dev/gpiochip0");
	if (argc == 2 && !strcmp(argv[1], "count")) {
		printf("%u\n", info.lines);
		return 0;
	}
	if (argc < 3 || argc > 2 + GPIO_V2_LINES_MAX || ((is_set = strcmp(argv[1], "get")) && strcmp(argv[1], "set")))
		errx(2, "usage: lines count | lines set NUMBER=VALUE... | lines get NUMBER...");
	request.num_lines = (uint32_t)argc - 2;
	for (int i = 2; i < argc; i++) {
		const char *value = strchr(argv[i], '=');
		request.offsets[i - 2] = (uint32_t)atoi(argv[i]);
		values.mask |= 1ull << (i - 2);
		if (value && atoi(value + 1))
			values.bits |= 1ull << (i - 2);
	}
	request.config.flags = is_set ? GPIO_V2_LINE_FLAG_OUTPUT : GPIO_V2_LINE_FLAG_INPUT;
	if (ioctl(chip, GPIO_V2_GET_LINE_IOCTL, &request))
		err(1, "the lines cannot be had");
	if (is_set) {
		if (ioctl(request.fd, GPIO_V2_LINE_SET_VALUES_IOCTL, &values))
			err(1, "the lines cannot be set");
		puts("set");
		fflush(stdout);
		for (;;)
			pause();
	}
	if (ioctl(request.fd, GPIO_V2_LINE_GET_VALUES_IOCTL, &values))
		err(1, "the lines cannot be read");
	for (uint32_t i = 0; i < request.num_lines; i++)
		printf("%s%d", i ? " " : "", (int)(values.bits >> i & 1));
	puts("");
	return 0;
}
