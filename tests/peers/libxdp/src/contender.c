/* A contender of `cargo xtask bench datapath`: the loops of a plain C program with libxdp, in the manner of xdpsock.
 *
 * How it is called, and what it answers, is told in tests/bench/contender/harness.rs, which has the same around the
 * contenders in Rust.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <linux/if_xdp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>

#include <xdp/xsk.h>

#define BATCH 64
#define FRAME_BYTES 64
#define RING_ENTRIES 2048
#define CHUNKS 2048
#define CHUNK_BYTES 2048
#define LOST_AFTER_NS 200000000ull

struct contender {
	struct xsk_ring_prod fill, tx;
	struct xsk_ring_cons completion, rx;
	struct xsk_umem *umem;
	struct xsk_socket *socket;
	int fd;
	void *memory;
	unsigned int next;
};

static volatile sig_atomic_t stop;

static void on_alarm(int signal)
{
	(void)signal;
	stop = 1;
}

static void check(int result, const char *what)
{
	if (result) {
		fprintf(stderr, "%s: %s\n", what, strerror(result < 0 ? -result : errno));
		exit(1);
	}
}

static unsigned long long now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ull + now.tv_nsec;
}

static void kick(struct contender *c)
{
	int i;

	if (!xsk_ring_prod__needs_wakeup(&c->tx))
		return;
	/* In copy mode a call sends 32 frames, and says EAGAIN where there are more. */
	for (i = 0; i < BATCH / 32; i++) {
		int result = sendto(c->fd, NULL, 0, MSG_DONTWAIT, NULL, 0);

		if (result >= 0)
			return;
		if (errno == EAGAIN)
			continue;
		if (errno == EBUSY || errno == ENOBUFS || errno == ENETDOWN)
			return;
		check(-errno, "sendto");
	}
}

static void forget_completed(struct contender *c)
{
	__u32 index, sent = xsk_ring_cons__peek(&c->completion, BATCH, &index);

	if (sent)
		xsk_ring_cons__release(&c->completion, sent);
}

static unsigned int rxdrop(struct contender *c)
{
	__u32 from = 0, to = 0, count, i;

	count = xsk_ring_cons__peek(&c->rx, BATCH, &from);
	if (!count)
		return 0;
	while (xsk_ring_prod__reserve(&c->fill, count, &to) != count)
		;
	for (i = 0; i < count; i++) {
		__u64 address = xsk_ring_cons__rx_desc(&c->rx, from++)->addr;

		*xsk_ring_prod__fill_addr(&c->fill, to++) = xsk_umem__extract_addr(address);
	}
	xsk_ring_prod__submit(&c->fill, count);
	xsk_ring_cons__release(&c->rx, count);
	return count;
}

static unsigned int txonly(struct contender *c)
{
	__u32 to = 0, i, count = xsk_ring_prod__reserve(&c->tx, BATCH, &to);

	for (i = 0; i < count; i++) {
		struct xdp_desc *frame = xsk_ring_prod__tx_desc(&c->tx, to + i);

		frame->addr = (__u64)(c->next + i) * CHUNK_BYTES;
		frame->len = FRAME_BYTES;
		frame->options = 0;
	}
	if (count) {
		xsk_ring_prod__submit(&c->tx, count);
		c->next = (c->next + count) % CHUNKS;
	}
	kick(c);
	forget_completed(c);
	return count;
}

static void swap_addresses(void *frame)
{
	unsigned char to[6], from[6];

	memcpy(to, frame, 6);
	memcpy(from, (char *)frame + 6, 6);
	memcpy(frame, from, 6);
	memcpy((char *)frame + 6, to, 6);
}

static unsigned int l2fwd(struct contender *c)
{
	__u32 from = 0, to = 0, count, i;

	/* What was sent goes back to where frames are received. */
	count = xsk_ring_cons__peek(&c->completion, BATCH, &from);
	if (count) {
		while (xsk_ring_prod__reserve(&c->fill, count, &to) != count)
			;
		for (i = 0; i < count; i++)
			*xsk_ring_prod__fill_addr(&c->fill, to++) = *xsk_ring_cons__comp_addr(&c->completion, from++);
		xsk_ring_prod__submit(&c->fill, count);
		xsk_ring_cons__release(&c->completion, count);
	}

	count = xsk_ring_cons__peek(&c->rx, BATCH, &from);
	if (!count)
		return 0;
	while (xsk_ring_prod__reserve(&c->tx, count, &to) != count)
		kick(c);
	for (i = 0; i < count; i++) {
		const struct xdp_desc *received = xsk_ring_cons__rx_desc(&c->rx, from++);
		struct xdp_desc *sent = xsk_ring_prod__tx_desc(&c->tx, to++);
		__u64 address = xsk_umem__add_offset_to_addr(received->addr);

		swap_addresses(xsk_umem__get_data(c->memory, address));
		sent->addr = received->addr;
		sent->len = received->len;
		sent->options = 0;
	}
	xsk_ring_prod__submit(&c->tx, count);
	xsk_ring_cons__release(&c->rx, count);
	kick(c);
	return count;
}

static inline __attribute__((always_inline)) void ping(struct contender *c)
{
	__u32 to;

	forget_completed(c);
	if (xsk_ring_prod__reserve(&c->tx, 1, &to) == 1) {
		struct xdp_desc *frame = xsk_ring_prod__tx_desc(&c->tx, to);

		frame->addr = 0;
		frame->len = FRAME_BYTES;
		frame->options = 0;
		xsk_ring_prod__submit(&c->tx, 1);
	}
	kick(c);
}

static inline __attribute__((always_inline)) bool pong(struct contender *c)
{
	__u32 from, to;

	if (!xsk_ring_cons__peek(&c->rx, 1, &from))
		return false;
	while (xsk_ring_prod__reserve(&c->fill, 1, &to) != 1)
		;
	*xsk_ring_prod__fill_addr(&c->fill, to) = xsk_umem__extract_addr(xsk_ring_cons__rx_desc(&c->rx, from)->addr);
	xsk_ring_prod__submit(&c->fill, 1);
	xsk_ring_cons__release(&c->rx, 1);
	return true;
}

/* Callgrind counts what runs inside of the functions that are named so. */
#define MEASURED(mode) \
	static __attribute__((noinline)) unsigned long long measured_##mode( \
		struct contender *c, unsigned long long packets, unsigned long long *empty) \
	{ \
		unsigned long long done = 0; \
\
		while (done < packets && !stop) { \
			unsigned int count = mode(c); \
\
			done += count; \
			*empty += count == 0; \
		} \
		return done; \
	}

MEASURED(rxdrop)
MEASURED(txonly)
MEASURED(l2fwd)

static int compare(const void *one, const void *other)
{
	unsigned long long a = *(const unsigned long long *)one, b = *(const unsigned long long *)other;

	return (a > b) - (a < b);
}

#define MOST_PINGS (1u << 22)

static __attribute__((noinline)) unsigned long long measured_pings(struct contender *c, unsigned long long packets,
								    unsigned long long *empty,
								    unsigned long long *times)
{
	unsigned long long done = 0;

	while (done < packets && done < MOST_PINGS && !stop) {
		unsigned long long sent = now_ns();
		bool arrived = true;

		ping(c);
		while (!pong(c))
			if (++*empty % 1024 == 0 && now_ns() - sent > LOST_AFTER_NS) {
				arrived = false;
				break;
			}
		if (arrived)
			times[done++] = now_ns() - sent;
	}
	return done;
}

static void set_up(struct contender *c, const char *mode, const char *interface, unsigned int queue, int fd)
{
	static const unsigned char header[14] = { 2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x88, 0xb5 };
	size_t bytes = (size_t)CHUNKS * CHUNK_BYTES;
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
	unsigned int receiving = CHUNKS, chunk;
	__u32 to;

	c->memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	check(c->memory == MAP_FAILED ? -errno : 0, "mmap");
	for (chunk = 0; chunk < CHUNKS; chunk++)
		memcpy((char *)c->memory + (size_t)chunk * CHUNK_BYTES, header, sizeof(header));
	if (fd >= 0)
		check(xsk_umem__create_with_fd(&c->umem, fd, c->memory, bytes, &c->fill, &c->completion, &umem_config),
		      "xsk_umem__create_with_fd");
	else
		check(xsk_umem__create(&c->umem, c->memory, bytes, &c->fill, &c->completion, &umem_config),
		      "xsk_umem__create");

	/* Who only sends uses all chunks for that. */
	if (!strcmp(mode, "txonly"))
		receiving = 0;
	else if (!strcmp(mode, "pingpong"))
		receiving = CHUNKS / 2;
	if (receiving) {
		check(xsk_ring_prod__reserve(&c->fill, receiving, &to) == receiving ? 0 : -ENOSPC, "the fill ring");
		for (chunk = CHUNKS - receiving; chunk < CHUNKS; chunk++)
			*xsk_ring_prod__fill_addr(&c->fill, to++) = (__u64)chunk * CHUNK_BYTES;
		xsk_ring_prod__submit(&c->fill, receiving);
	}
	check(xsk_socket__create(&c->socket, interface, queue, c->umem, &c->rx, &c->tx, &socket_config),
	      "xsk_socket__create");
	c->fd = xsk_socket__fd(c->socket);
}

int contender_main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = on_alarm };
	static struct contender c;
	unsigned long long *times;
	char line[64];

	if (argc != 6) {
		fprintf(stderr, "this is run by `cargo xtask bench datapath`\n");
		return 2;
	}
	set_up(&c, argv[1], argv[2], strtoul(argv[4], NULL, 10), atoi(argv[5]));
	times = malloc(MOST_PINGS * sizeof(*times));
	check(times ? 0 : -ENOMEM, "malloc");
	sigaction(SIGALRM, &action, NULL);
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("bound %d\n", c.fd);

	while (fgets(line, sizeof(line), stdin)) {
		unsigned long long packets, milliseconds, begun, elapsed, done, empty = 0, median = 0, p99 = 0;
		struct itimerval timer = { 0 };

		if (sscanf(line, "%llu %llu", &packets, &milliseconds) != 2) {
			fprintf(stderr, "no order: %s", line);
			return 1;
		}
		if (!packets)
			packets = ~0ull;
		stop = 0;
		timer.it_value.tv_sec = milliseconds / 1000;
		timer.it_value.tv_usec = milliseconds % 1000 * 1000;
		setitimer(ITIMER_REAL, &timer, NULL);
		begun = now_ns();
		if (!strcmp(argv[1], "rxdrop")) {
			done = measured_rxdrop(&c, packets, &empty);
		} else if (!strcmp(argv[1], "txonly")) {
			done = measured_txonly(&c, packets, &empty);
		} else if (!strcmp(argv[1], "l2fwd")) {
			done = measured_l2fwd(&c, packets, &empty);
		} else if (!strcmp(argv[1], "pingpong")) {
			done = measured_pings(&c, packets, &empty, times);
		} else {
			fprintf(stderr, "no mode: %s\n", argv[1]);
			return 1;
		}
		elapsed = now_ns() - begun;
		if (!strcmp(argv[1], "pingpong") && done) {
			qsort(times, done, sizeof(*times), compare);
			median = times[done * 50 / 100];
			p99 = times[done * 99 / 100];
		}
		printf("done %llu %llu %llu %llu %llu\n", done, elapsed, empty, median, p99);
	}
	return 0;
}
