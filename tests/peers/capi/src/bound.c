/* Sends so many packets of one queue back where they came from, over a socket that the broker has bound: the umem is a
 * memfd of the broker's, the rings are mapped by hand, and libxdp's inline functions run them.
 *
 * Usage: bound INTERFACE QUEUE PACKETS, or started by `xsk-broker grant INTERFACE:QUEUE --kind bound --`: bound PACKETS
 */

#define _GNU_SOURCE
#include <errno.h>
#include <linux/if_xdp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <xdp/xsk.h>

#include "xsk-client.h"

#define CHUNKS 256
#define CHUNK_BYTES 2048
#define RING_ENTRIES 128

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static void check_client(int status, const char *what)
{
	if (status != XSK_CLIENT_OK) {
		fprintf(stderr, "%s: status %d: %s\n", what, status, xsk_client_error());
		exit(100 - status);
	}
}

static char *map(int fd, const struct xdp_ring_offset *offsets, __u32 entries, size_t entry_bytes, off_t page)
{
	size_t bytes = offsets->desc + entries * entry_bytes;
	char *ring = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, page);

	if (ring == MAP_FAILED)
		fail("mmap of a ring");
	return ring;
}

/* As xsk_setup_xdp_prog() and its kin leave them: a producer counts what is free, so its copy of the consumer's index is
 * a ring's length ahead. */
static void map_producer(struct xsk_ring_prod *ring, int fd, const struct xdp_ring_offset *offsets, __u32 entries,
			 size_t entry_bytes, off_t page)
{
	char *memory = map(fd, offsets, entries, entry_bytes, page);

	ring->mask = entries - 1;
	ring->size = entries;
	ring->producer = (__u32 *)(memory + offsets->producer);
	ring->consumer = (__u32 *)(memory + offsets->consumer);
	ring->flags = (__u32 *)(memory + offsets->flags);
	ring->ring = memory + offsets->desc;
	ring->cached_prod = *ring->producer;
	ring->cached_cons = *ring->consumer + entries;
}

static void map_consumer(struct xsk_ring_cons *ring, int fd, const struct xdp_ring_offset *offsets, __u32 entries,
			 size_t entry_bytes, off_t page)
{
	char *memory = map(fd, offsets, entries, entry_bytes, page);

	ring->mask = entries - 1;
	ring->size = entries;
	ring->producer = (__u32 *)(memory + offsets->producer);
	ring->consumer = (__u32 *)(memory + offsets->consumer);
	ring->flags = (__u32 *)(memory + offsets->flags);
	ring->ring = memory + offsets->desc;
	ring->cached_prod = *ring->producer;
	ring->cached_cons = *ring->consumer;
}

int bound_main(int argc, char **argv)
{
	struct xsk_ring_prod fill = { 0 }, tx = { 0 };
	struct xsk_ring_cons completion = { 0 }, rx = { 0 };
	struct rlimit none = { 0, 0 };
	struct xdp_mmap_offsets offsets;
	socklen_t length = sizeof(offsets);
	struct xsk_client *client;
	struct xsk_grant *grant;
	unsigned long left, i;
	__u32 from, to = 0;
	char *memory;
	int fd;

	/* The memory is the broker's to register: none of it counts here. */
	if (setrlimit(RLIMIT_MEMLOCK, &none))
		fail("setrlimit");
	check_client(xsk_client_connect(NULL, &client), "connect");
	if (argc == 4) {
		struct xsk_client_request request = {
			.interface = argv[1],
			.queues = argv[2],
			.kind = XSK_CLIENT_BOUND,
			.ring_entries = RING_ENTRIES,
			.chunks = CHUNKS,
			.chunk_bytes = CHUNK_BYTES,
			.label = "bound",
		};

		check_client(xsk_client_acquire(client, &request, &grant), "acquire");
	} else if (argc == 2) {
		check_client(xsk_client_inherit(&grant), "inherit");
	} else {
		fprintf(stderr, "usage: %s [INTERFACE QUEUE] PACKETS\n", argv[0]);
		return 2;
	}
	left = strtoul(argv[argc - 1], NULL, 10);
	if (xsk_grant_count(grant) != 0 || xsk_grant_fd(grant, 0) != -1) {
		fprintf(stderr, "there is no socket before it is bound\n");
		return 1;
	}
	/* A page that is missing is told, and nothing is lost by that. */
	if (xsk_client_bind(client, grant) != XSK_CLIENT_REFUSED || !strstr(xsk_client_error(), "write to every page")) {
		fprintf(stderr, "a sparse umem: %s\n", xsk_client_error());
		return 1;
	}
	memory = mmap(NULL, xsk_grant_umem_bytes(grant), PROT_READ | PROT_WRITE, MAP_SHARED, xsk_grant_umem_fd(grant), 0);
	if (memory == MAP_FAILED)
		fail("mmap of the umem");
	memset(memory, 0, xsk_grant_umem_bytes(grant));
	check_client(xsk_client_bind(client, grant), "bind");
	fd = xsk_grant_fd(grant, 0);
	if (getsockopt(fd, SOL_XDP, XDP_MMAP_OFFSETS, &offsets, &length))
		fail("XDP_MMAP_OFFSETS");
	map_producer(&fill, fd, &offsets.fr, xsk_grant_ring_entries(grant, XSK_CLIENT_FILL_RING), sizeof(__u64),
		     XDP_UMEM_PGOFF_FILL_RING);
	map_consumer(&completion, fd, &offsets.cr, xsk_grant_ring_entries(grant, XSK_CLIENT_COMPLETION_RING),
		     sizeof(__u64), XDP_UMEM_PGOFF_COMPLETION_RING);
	map_consumer(&rx, fd, &offsets.rx, xsk_grant_ring_entries(grant, XSK_CLIENT_RX_RING), sizeof(struct xdp_desc),
		     XDP_PGOFF_RX_RING);
	map_producer(&tx, fd, &offsets.tx, xsk_grant_ring_entries(grant, XSK_CLIENT_TX_RING), sizeof(struct xdp_desc),
		     XDP_PGOFF_TX_RING);
	/* Half of what there are in chunks fills it, whatever the sizes are. */
	for (i = 0; i < fill.size / 2; i++) {
		xsk_ring_prod__reserve(&fill, 1, &to);
		*xsk_ring_prod__fill_addr(&fill, to) = i * CHUNK_BYTES;
	}
	xsk_ring_prod__submit(&fill, fill.size / 2);
	check_client(xsk_client_activate(client, xsk_grant_lease(grant)), "activate");
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("active lease %llu\n", (unsigned long long)xsk_grant_lease(grant));

	while (left) {
		struct pollfd ready = { .fd = fd, .events = POLLIN };

		while (xsk_ring_cons__peek(&completion, 1, &from) && xsk_ring_prod__reserve(&fill, 1, &to)) {
			*xsk_ring_prod__fill_addr(&fill, to) = *xsk_ring_cons__comp_addr(&completion, from);
			xsk_ring_prod__submit(&fill, 1);
			xsk_ring_cons__release(&completion, 1);
		}
		if (!xsk_ring_cons__peek(&rx, 1, &from)) {
			poll(&ready, 1, 100);
			continue;
		}
		if (xsk_ring_prod__reserve(&tx, 1, &to)) {
			const struct xdp_desc *in = xsk_ring_cons__rx_desc(&rx, from);
			char *frame = xsk_umem__get_data(memory, in->addr), mac[6];

			memcpy(mac, frame, 6);
			memcpy(frame, frame + 6, 6);
			memcpy(frame + 6, mac, 6);
			*xsk_ring_prod__tx_desc(&tx, to) = *in;
			xsk_ring_prod__submit(&tx, 1);
		}
		xsk_ring_cons__release(&rx, 1);
		while (sendto(fd, NULL, 0, MSG_DONTWAIT, NULL, 0) < 0 && (errno == EAGAIN || errno == EBUSY))
			;
		left--;
	}
	check_client(xsk_client_release(client, xsk_grant_lease(grant)), "release");
	xsk_grant_free(grant);
	xsk_client_close(client);
	printf("done\n");
	return 0;
}
