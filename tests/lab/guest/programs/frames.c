/* frames INTERFACE COUNT: sends COUNT frames of 60 to 1514 bytes, and wants each back, in order, with its two addresses
 * changed for each other and everything else the same; says "1000 frames, 787000 bytes". */
#include <err.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>

enum { PROTOCOL = 0x88b5, /* IEEE 802: for local experiments */ WINDOW = 16, SECONDS = 60 };

static const unsigned char OTHER[ETH_ALEN] = {2, 0, 0, 0, 0, 2};

/* the same for whoever asks for frame number NUMBER; gives its length */
static size_t make(unsigned char *frame, unsigned number, const unsigned char *to, const unsigned char *from) {
	size_t length = ETH_ZLEN + number * 37 % (ETH_FRAME_LEN - ETH_ZLEN + 1);
	unsigned state = number * 2654435761u + 1;
	memcpy(frame, to, ETH_ALEN);
	memcpy(frame + ETH_ALEN, from, ETH_ALEN);
	frame[12] = PROTOCOL >> 8;
	frame[13] = PROTOCOL & 0xff;
	for (size_t i = ETH_HLEN; i < length; i++) {
		state = state * 1664525 + 1013904223;
		frame[i] = (unsigned char)(state >> 24);
	}
	return length;
}

int main(int argc, char **argv) {
	unsigned char ours[ETH_ALEN], wanted[ETH_FRAME_LEN], found[ETH_FRAME_LEN + 1];
	unsigned count, sent = 0, received = 0;
	unsigned long bytes = 0;
	struct sockaddr_ll here = {.sll_family = AF_PACKET, .sll_protocol = htons(PROTOCOL)};
	struct ifreq card = {0};
	int wire = socket(AF_PACKET, SOCK_RAW, htons(PROTOCOL));
	if (argc != 3 || !(count = (unsigned)atoi(argv[2])) || strlen(argv[1]) >= IFNAMSIZ)
		errx(2, "usage: frames INTERFACE COUNT");
	strcpy(card.ifr_name, argv[1]);
	here.sll_ifindex = (int)if_nametoindex(argv[1]);
	if (wire < 0 || ioctl(wire, SIOCGIFHWADDR, &card) || bind(wire, (struct sockaddr *)&here, sizeof here))
		err(1, "%s", argv[1]);
	memcpy(ours, card.ifr_hwaddr.sa_data, ETH_ALEN);
	while (received < count) {
		if (sent < count && sent < received + WINDOW) {
			size_t length = make(wanted, sent++, OTHER, ours);
			if (write(wire, wanted, length) != (ssize_t)length)
				err(1, "frame %u cannot be sent", sent - 1);
			continue;
		}
		struct pollfd event = {.fd = wire, .events = POLLIN};
		if (poll(&event, 1, SECONDS * 1000) != 1)
			errx(1, "frame %u does not come back", received);
		ssize_t length = read(wire, found, sizeof found);
		if (length < 0)
			err(1, "frame %u cannot be read", received);
		if (make(wanted, received, ours, OTHER) != (size_t)length || memcmp(wanted, found, (size_t)length))
			errx(1, "frame %u comes back as another one, of %zd bytes", received, length);
		received++;
		bytes += (unsigned long)length;
	}
	printf("%u frames, %lu bytes\n", received, bytes);
	return 0;
}
