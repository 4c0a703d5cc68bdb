/* Sends so many packets of one queue back where they came from, without a capability: the socket comes from xsk-broker,
 * the rings are libxdp's.
 *
 * Usage: reflect INTERFACE QUEUE PACKETS, or started by `xsk-broker grant INTERFACE:QUEUE --kind bare --`: reflect PACKETS
 */

#define _GNU_SOURCE
#include <errno.h>
#include <linux/if_xdp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include <xdp/xsk.h>

#include "xsk-client.h"

#define CHUNKS 512
#define CHUNK_BYTES 2048
#define RING_ENTRIES 256

static void check(int result, const char *what)
{
	if (result) {
		fprintf(stderr, "%s: %s\n", what, strerror(result < 0 ? -result : errno));
		exit(1);
	}
}

static void check_client(int status, const char *what)
{
	if (status != XSK_CLIENT_OK) {
		fprintf(stderr, "%s: status %d: %s\n", what, status, xsk_client_error());
		exit(100 - status);
	}
}

int reflect_main(int argc, char **argv)
{
	struct xsk_umem_config umem_config = {
		.fill_size = RING_ENTRIES,
		.comp_size = RING_ENTRIES,
		.frame_size = CHUNK_BYTES,
	};
	struct xsk_socket_config socket_config = {
		.rx_size = RING_ENTRIES,
		.tx_size = RING_ENTRIES,
		.libxdp_flags = XSK_LIBXDP_FLAGS__INHIBIT_PROG_LOAD,
		.bind_flags = XDP_COPY | XDP_USE_NEED_WAKEUP,
	};
	size_t bytes = (size_t)CHUNKS * CHUNK_BYTES;
	/* libxdp sets some of their members and takes the others to be 0. */
	struct xsk_ring_prod fill = { 0 }, tx = { 0 };
	struct xsk_ring_cons completion = { 0 }, rx = { 0 };
	struct xsk_socket *socket;
	struct xsk_umem *umem;
	struct xsk_client *client;
	struct xsk_grant *grant;
	unsigned long left, i;
	__u32 from, to;
	char *memory;
	int fd;

	check_client(xsk_client_connect(NULL, &client), "connect");
	if (argc == 4) {
		struct xsk_client_request request = {
			.interface = argv[1],
			.queues = argv[2],
			.kind = XSK_CLIENT_BARE,
			.label = "reflect",
		};

		check_client(xsk_client_acquire(client, &request, &grant), "acquire");
	} else if (argc == 2) {
		check_client(xsk_client_inherit(&grant), "inherit");
	} else {
		fprintf(stderr, "usage: %s [INTERFACE QUEUE] PACKETS\n", argv[0]);
		return 2;
	}
	left = strtoul(argv[argc - 1], NULL, 10);

	memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	check(memory == MAP_FAILED ? -errno : 0, "mmap");
	fd = xsk_grant_take_fd(grant, 0);
	if (fd < 0 || xsk_grant_take_fd(grant, 0) != -1 || xsk_grant_fd(grant, 0) != -1) {
		fprintf(stderr, "the fd can be taken once, and then it is gone\n");
		return 1;
	}
	check(xsk_umem__create_with_fd(&umem, fd, memory, bytes, &fill, &completion, &umem_config),
	      "xsk_umem__create_with_fd");
	check(xsk_ring_prod__reserve(&fill, RING_ENTRIES, &to) == RING_ENTRIES ? 0 : -ENOSPC, "the fill ring");
	for (i = 0; i < RING_ENTRIES; i++)
		*xsk_ring_prod__fill_addr(&fill, to++) = i * CHUNK_BYTES;
	xsk_ring_prod__submit(&fill, RING_ENTRIES);
	check(xsk_socket__create(&socket, xsk_grant_interface(grant), xsk_grant_queue(grant, 0), umem, &rx, &tx,
				 &socket_config),
	      "xsk_socket__create");
	check_client(xsk_client_activate(client, xsk_grant_lease(grant)), "activate");
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("active lease %llu\n", (unsigned long long)xsk_grant_lease(grant));

	while (left) {
		struct pollfd ready = { .fd = fd, .events = POLLIN };
		__u32 sent, received;

		sent = xsk_ring_cons__peek(&completion, 64, &from);
		if (sent) {
			check(xsk_ring_prod__reserve(&fill, sent, &to) == sent ? 0 : -ENOSPC, "the fill ring");
			for (i = 0; i < sent; i++)
				*xsk_ring_prod__fill_addr(&fill, to++) = *xsk_ring_cons__comp_addr(&completion, from++);
			xsk_ring_prod__submit(&fill, sent);
			xsk_ring_cons__release(&completion, sent);
		}
		received = xsk_ring_cons__peek(&rx, left < 32 ? left : 32, &from);
		if (!received) {
			poll(&ready, 1, 100);
			continue;
		}
		check(xsk_ring_prod__reserve(&tx, received, &to) == received ? 0 : -ENOSPC, "the tx ring");
		for (i = 0; i < received; i++) {
			const struct xdp_desc *in = xsk_ring_cons__rx_desc(&rx, from++);
			struct xdp_desc *out = xsk_ring_prod__tx_desc(&tx, to++);
			char *frame = xsk_umem__get_data(memory, in->addr), mac[6];

			memcpy(mac, frame, 6);
			memcpy(frame, frame + 6, 6);
			memcpy(frame + 6, mac, 6);
			*out = *in;
		}
		xsk_ring_prod__submit(&tx, received);
		xsk_ring_cons__release(&rx, received);
		while (sendto(fd, NULL, 0, MSG_DONTWAIT, NULL, 0) < 0 && (errno == EAGAIN || errno == EBUSY))
			;
		left -= received;
	}
	check_client(xsk_client_release(client, xsk_grant_lease(grant)), "release");
	xsk_grant_free(grant);
	xsk_client_close(client);
	xsk_socket__delete(socket);
	printf("done\n");
	return 0;
}
