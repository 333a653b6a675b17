/* chips scan: addresses of /dev/i2c-0 from 0x08 to 0x77 at which something answers, "0x48 0x50".
 * chips set ADDRESS REGISTER=VALUE…: writes registers of a chip; those of two bytes have a value of four digits, 0x1234.
 * chips get ADDRESS REGISTER…: reads them, "0x12 0x34"; of two bytes where a register ends in "w".
 * The transactions are SMBus's: quick, byte data and word data. */
#include <err.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include <linux/i2c-dev.h>
#include <linux/i2c.h>

static int adapter;

static int transfer(unsigned long address, char direction, unsigned char command, unsigned int size,
	union i2c_smbus_data *data) {
	struct i2c_smbus_ioctl_data transaction = {
		.read_write = (unsigned char)direction, .command = command, .size = size, .data = data};
	if (ioctl(adapter, I2C_SLAVE, address))
		err(1, "address 0x%02lx", address);
	return ioctl(adapter, I2C_SMBUS, &transaction);
}

static void scan(void) {
	const char *before = "";
	for (unsigned long address = 0x08; address <= 0x77; address++)
		if (!transfer(address, I2C_SMBUS_WRITE, 0, I2C_SMBUS_QUICK, NULL)) {
			printf("%s0x%02lx", before, address);
			before = " ";
		}
	puts("");
}

static void set(unsigned long address, const char *argument) {
	char *value;
	union i2c_smbus_data data = {0};
	unsigned char command = (unsigned char)strtoul(argument, &value, 0);
	if (*value++ != '=')
		errx(2, "'%s' is no REGISTER=VALUE", argument);
	int is_word = strlen(value) > strlen("0x12");
	if (is_word)
		data.word = (unsigned short)strtoul(value, NULL, 0);
	else
		data.byte = (unsigned char)strtoul(value, NULL, 0);
	if (transfer(address, I2C_SMBUS_WRITE, command, is_word ? I2C_SMBUS_WORD_DATA : I2C_SMBUS_BYTE_DATA, &data))
		err(1, "register %s of 0x%02lx", argument, address);
}

static void get(unsigned long address, const char *argument) {
	char *suffix;
	union i2c_smbus_data data = {0};
	unsigned char command = (unsigned char)strtoul(argument, &suffix, 0);
	int is_word = *suffix == 'w';
	if (transfer(address, I2C_SMBUS_READ, command, is_word ? I2C_SMBUS_WORD_DATA : I2C_SMBUS_BYTE_DATA, &data))
		err(1, "register %s of 0x%02lx", argument, address);
	if (is_word)
		printf("0x%04x", data.word);
	else
		printf("0x%02x", data.byte);
}

int main(int argc, char **argv) {
	adapter = open("/dev/i2c-0", O_RDWR);
	if (adapter < 0)
		err(1, "/dev/i2c-0");
	if (argc == 2 && !strcmp(argv[1], "scan")) {
		scan();
		return 0;
	}
	int is_get = argc > 3 && !strcmp(argv[1], "get");
	if (argc < 4 || (!is_get && strcmp(argv[1], "set")))
		errx(2, "usage: chips scan | chips set ADDRESS REGISTER=VALUE... | chips get ADDRESS REGISTER...");
	for (int i = 3; i < argc; i++) {
		if (is_get) {
			get(strtoul(argv[2], NULL, 0), argv[i]);
			putchar(i + 1 < argc ? ' ' : '\n');
		} else {
			set(strtoul(argv[2], NULL, 0), argv[i]);
		}
	}
	return 0;
}
