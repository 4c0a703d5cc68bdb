/* The peer of `cargo xtask bench grants`: creates an AF_XDP socket directly, as root, with libxdp.
 *
 * Usage: libxdp_socket INTERFACE RING_ENTRIES CHUNKS CHUNK_BYTES
 *
 * Each line on standard input is a queue. For each it maps memory, makes a umem, a socket on that queue in copy mode
 * with all four rings of that size, and puts it into an XSKMAP of its own; then it takes all of that down, and prints
 * what each step took, in nanoseconds: memory, umem, socket, insert, close.
 *
 * No XDP program is loaded by it: the insert costs the same whether or not a program uses the map.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <linux/if_xdp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include <bpf/bpf.h>
#include <xdp/xsk.h>

#define MAX_QUEUES 4096

struct shape {
	const char *interface;
	unsigned int entries;
	unsigned int chunk_bytes;
	size_t bytes;
};

static void check(int result, const char *what)
{
	if (result) {
		fprintf(stderr, "%s: %s\n", what, strerror(result < 0 ? -result : errno));
		exit(1);
	}
}

static unsigned int number(const char *text)
{
	char *end;
	unsigned long value = strtoul(text, &end, 10);

	if (!*text || (*end && *end != '\n') || value > 1u << 30) {
		fprintf(stderr, "not a number: %s\n", text);
		exit(2);
	}
	return value;
}

/* Nanoseconds since *last, which becomes now. */
static long long lap(struct timespec *last)
{
	struct timespec now;
	long long elapsed;

	clock_gettime(CLOCK_MONOTONIC, &now);
	elapsed = (now.tv_sec - last->tv_sec) * 1000000000LL + (now.tv_nsec - last->tv_nsec);
	*last = now;
	return elapsed;
}

static void one(const struct shape *shape, unsigned int queue, int map)
{
	struct xsk_umem_config umem_config = {
		.fill_size = shape->entries,
		.comp_size = shape->entries,
		.frame_size = shape->chunk_bytes,
	};
	struct xsk_socket_config socket_config = {
		.rx_size = shape->entries,
		.tx_size = shape->entries,
		.libxdp_flags = XSK_LIBXDP_FLAGS__INHIBIT_PROG_LOAD,
		.bind_flags = XDP_COPY | XDP_USE_NEED_WAKEUP,
	};
	long long memory_ns, umem_ns, socket_ns, insert_ns, close_ns;
	struct xsk_ring_prod fill, tx;
	struct xsk_ring_cons completion, rx;
	struct xsk_socket *socket;
	struct xsk_umem *umem;
	struct timespec last;
	void *memory;

	clock_gettime(CLOCK_MONOTONIC, &last);
	memory = mmap(NULL, shape->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	check(memory == MAP_FAILED ? -errno : 0, "mmap");
	memory_ns = lap(&last);
	check(xsk_umem__create(&umem, memory, shape->bytes, &fill, &completion, &umem_config), "xsk_umem__create");
	umem_ns = lap(&last);
	check(xsk_socket__create(&socket, shape->interface, queue, umem, &rx, &tx, &socket_config),
	      "xsk_socket__create");
	socket_ns = lap(&last);
	check(xsk_socket__update_xskmap(socket, map), "xsk_socket__update_xskmap");
	insert_ns = lap(&last);
	xsk_socket__delete(socket);
	check(xsk_umem__delete(umem), "xsk_umem__delete");
	munmap(memory, shape->bytes);
	close_ns = lap(&last);
	printf("%lld %lld %lld %lld %lld\n", memory_ns, umem_ns, socket_ns, insert_ns, close_ns);
}

int main(int argc, char **argv)
{
	struct shape shape;
	char line[32];
	int map;

	if (argc != 5) {
		fprintf(stderr, "usage: %s INTERFACE RING_ENTRIES CHUNKS CHUNK_BYTES\n", argv[0]);
		return 2;
	}
	shape.interface = argv[1];
	shape.entries = number(argv[2]);
	shape.chunk_bytes = number(argv[4]);
	shape.bytes = (size_t)number(argv[3]) * shape.chunk_bytes;

	map = bpf_map_create(BPF_MAP_TYPE_XSKMAP, "peer_xsks", sizeof(int), sizeof(int), MAX_QUEUES, NULL);
	check(map < 0 ? map : 0, "bpf_map_create");

	setvbuf(stdout, NULL, _IOLBF, 0);
	while (fgets(line, sizeof(line), stdin))
		one(&shape, number(line), map);
	return 0;
}
