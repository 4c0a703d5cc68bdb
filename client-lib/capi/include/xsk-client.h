/* AF_XDP sockets from xsk-broker, for programs without a capability.
 *
 * This library asks the broker for sockets and hands over their file descriptors. The rings are libxdp's business, which
 * takes a descriptor by xsk_umem__create_with_fd() (1.4 and later) or the member `fd` of struct xsk_umem_opts:
 *
 *     xsk_client_connect(NULL, &client);
 *     xsk_client_acquire(client, &request, &grant);
 *     fd = xsk_grant_take_fd(grant, 0);
 *     xsk_umem__create_with_fd(&umem, fd, memory, bytes, &fill, &completion, NULL);
 *     xsk_socket__create(&socket, xsk_grant_interface(grant), xsk_grant_queue(grant, 0), umem, &rx, &tx, &config);
 *     xsk_client_activate(client, xsk_grant_lease(grant));
 *
 * with XSK_LIBXDP_FLAGS__INHIBIT_PROG_LOAD and XDP_COPY (or XDP_ZEROCOPY) in the config. The lease lives as long as the
 * process does, whatever becomes of the connection.
 *
 * Sockets of kind XSK_CLIENT_BOUND come registered and bound, which libxdp has no function for. Their umem and rings are
 * mapped by hand, and then libxdp's inline functions for rings work as ever:
 *
 *     xsk_client_acquire(client, &request, &grant);
 *     memory = mmap(NULL, xsk_grant_umem_bytes(grant), PROT_READ | PROT_WRITE, MAP_SHARED, xsk_grant_umem_fd(grant), 0);
 *     memset(memory, 0, xsk_grant_umem_bytes(grant));
 *     xsk_client_bind(client, grant);
 *     fd = xsk_grant_fd(grant, 0);        and mmap() of its rings
 *     xsk_client_activate(client, xsk_grant_lease(grant));
 *
 * Functions that can fail return 0 or a negative enum xsk_client_status, and xsk_client_error() then has a sentence for
 * people. A null pointer is XSK_CLIENT_USAGE where an object is needed, and nothing to do where one is freed. Nothing here
 * is safe to call on one object from two threads at a time; different objects are independent.
 */

#ifndef XSK_CLIENT_H
#define XSK_CLIENT_H

#include <stddef.h>
#include <stdint.h>

/**
 * What functions return that can fail.
 */
enum xsk_client_status {
  /**
   * It worked.
   */
  XSK_CLIENT_OK = 0,
  /**
   * Called in a wrong way: a null pointer, text that is not UTF-8, a name or a set of queues that cannot be.
   */
  XSK_CLIENT_USAGE = -1,
  /**
   * The broker cannot be reached, or the connection broke.
   */
  XSK_CLIENT_UNREACHABLE = -2,
  /**
   * The broker's policy says no.
   */
  XSK_CLIENT_DENIED = -3,
  /**
   * Not now: a queue is busy or a quota used up; see xsk_client_retry_after_ms().
   */
  XSK_CLIENT_BUSY = -4,
  /**
   * The broker refused for another reason: there is no such lease, the socket is not bound.
   */
  XSK_CLIENT_REFUSED = -5,
  /**
   * Sockets were to be inherited, and there are none, or not those that the environment describes.
   */
  XSK_CLIENT_NOT_INHERITED = -6,
  /**
   * A fault of this library.
   */
  XSK_CLIENT_FAULT = -7,
};

/**
 * In which state a socket is handed over.
 */
enum xsk_client_kind {
  /**
   * Without rings, as libxdp wants it, which makes them itself. The policy has to allow `bare`.
   */
  XSK_CLIENT_BARE = 0,
  /**
   * With rings, for who maps them by hand. The policy has to allow `prepared`.
   */
  XSK_CLIENT_PREPARED = 1,
  /**
   * Registered and bound by the broker, for who maps rings and memory by hand: nothing is left of it that could be
   * changed, it needs no RLIMIT_MEMLOCK, and it can be had for one direction. The policy has to allow `bound`; from
   * about Linux 6.4. See xsk_client_bind().
   */
  XSK_CLIENT_BOUND = 2,
};

/**
 * Which way frames go. Less than both for XSK_CLIENT_BOUND only.
 */
enum xsk_client_direction {
  /**
   * Both.
   */
  XSK_CLIENT_RX_TX = 0,
  /**
   * The socket receives, and has no TX ring.
   */
  XSK_CLIENT_RX = 1,
  /**
   * The socket sends, and has no RX ring.
   */
  XSK_CLIENT_TX = 2,
};

/**
 * One of a socket's rings.
 */
enum xsk_client_ring {
  /**
   * Chunks to receive into: XDP_UMEM_PGOFF_FILL_RING.
   */
  XSK_CLIENT_FILL_RING = 0,
  /**
   * Chunks that were sent: XDP_UMEM_PGOFF_COMPLETION_RING.
   */
  XSK_CLIENT_COMPLETION_RING = 1,
  /**
   * Frames received: XDP_PGOFF_RX_RING.
   */
  XSK_CLIENT_RX_RING = 2,
  /**
   * Frames to send: XDP_PGOFF_TX_RING.
   */
  XSK_CLIENT_TX_RING = 3,
};

/**
 * A connection to the broker, from xsk_client_connect() to xsk_client_close().
 */
struct xsk_client;

/**
 * Sockets of one lease.
 */
struct xsk_grant;

/**
 * What to ask for. Zeroed, it asks for sockets of kind XSK_CLIENT_BARE; interface and queues are needed.
 */
struct xsk_client_request {
  /**
   * The device's name in the broker's network namespace: "eth0".
   */
  const char *interface;
  /**
   * Which of its queues: "4", "2-4", "1,3". All of them, or none.
   */
  const char *queues;
  /**
   * An enum xsk_client_kind.
   */
  uint32_t kind;
  /**
   * Entries of each ring, a power of two; 0 is the broker's default. Not for XSK_CLIENT_BARE.
   */
  uint32_t ring_entries;
  /**
   * An enum xsk_client_direction. For XSK_CLIENT_BOUND.
   */
  uint32_t direction;
  /**
   * The umem's chunks, an even number; 0 is 2048. For XSK_CLIENT_BOUND.
   */
  uint32_t chunks;
  /**
   * The size of a chunk, 2048 or 4096; 0 is 2048. For XSK_CLIENT_BOUND.
   */
  uint32_t chunk_bytes;
  /**
   * A text for the broker's log and list, or NULL.
   */
  const char *label;
};

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * What went wrong in this thread's last call that returned a status: a sentence in English, without a newline; the empty
 * string after a call that worked. It belongs to the library and is good until this thread's next such call.
 */
const char *xsk_client_error(void);

/**
 * After XSK_CLIENT_BUSY: when it makes sense to try again, in milliseconds; 0 where waiting alone will not help.
 */
uint32_t xsk_client_retry_after_ms(void);

/**
 * Connects to the broker's socket at `path`. NULL is the path that the variable XSK_BROKER_SOCKET names, else
 * /run/xsk-broker/broker.sock. `*client` is set if 0 is returned, to be given to xsk_client_close(), and to NULL else.
 *
 * Errors: XSK_CLIENT_UNREACHABLE, XSK_CLIENT_USAGE.
 */
int xsk_client_connect(const char *path,
                       struct xsk_client **client);

/**
 * Closes a connection. The leases that were acquired over it go on: they live as long as the process.
 */
void xsk_client_close(struct xsk_client *client);

/**
 * Asks for sockets. `*grant` is set if 0 is returned, to be given to xsk_grant_free(), and to NULL else. Bind them (or
 * call xsk_client_bind(), for XSK_CLIENT_BOUND), then call xsk_client_activate(), within the time that the broker gives
 * (five seconds, if the policy says nothing else): the lease ends by itself otherwise.
 *
 * Errors: XSK_CLIENT_DENIED, XSK_CLIENT_BUSY, XSK_CLIENT_REFUSED, XSK_CLIENT_UNREACHABLE, XSK_CLIENT_USAGE.
 */
int xsk_client_acquire(struct xsk_client *client,
                       const struct xsk_client_request *request,
                       struct xsk_grant **grant);

/**
 * Has the broker bind the sockets of a grant of kind XSK_CLIENT_BOUND, once; the grant has them from then on. Before, map
 * xsk_grant_umem_fd() with MAP_SHARED and write to every page: all have to be there, so that your own cgroup pays for them,
 * and the kernel drops again what was only read (MAP_POPULATE).
 * After it, map the rings of each socket (XDP_MMAP_OFFSETS, XDP_PGOFF_RX_RING and so on; xsk_grant_ring_entries() tells
 * their sizes), fill the fill ring, and call xsk_client_activate(). The sockets share the umem: each needs chunks of its
 * own, and libxdp's functions for rings work on what was mapped, once its structs are set.
 *
 * Errors: XSK_CLIENT_BUSY, XSK_CLIENT_REFUSED where a page is missing, the kernel is too old, or it was called before;
 * XSK_CLIENT_UNREACHABLE, XSK_CLIENT_USAGE.
 */
int xsk_client_bind(struct xsk_client *client,
                    struct xsk_grant *grant);

/**
 * Has packets redirected to the sockets of a lease, once they are bound. It may be called again.
 *
 * Errors: XSK_CLIENT_REFUSED where a socket is not bound, is bound to another queue, or the lease has ended;
 * XSK_CLIENT_UNREACHABLE, XSK_CLIENT_USAGE.
 */
int xsk_client_activate(struct xsk_client *client, uint64_t lease);

/**
 * Ends a lease: no more packets are redirected to its sockets. Close them too. It is no error where the lease has ended.
 *
 * Errors: XSK_CLIENT_UNREACHABLE, XSK_CLIENT_USAGE.
 */
int xsk_client_release(struct xsk_client *client,
                       uint64_t lease);

/**
 * Takes the sockets that `xsk-broker grant IF:QUEUES -- COMMAND` has left to this process, once, before anything else
 * could use their fds. `*grant` is set if 0 is returned, to be given to xsk_grant_free(), and to NULL else.
 *
 * Errors: XSK_CLIENT_NOT_INHERITED, XSK_CLIENT_USAGE.
 */
int xsk_client_inherit(struct xsk_grant **grant);

/**
 * Frees a grant and closes the fds that were not taken. The lease goes on if a socket is bound and active; see
 * xsk_client_release().
 */
void xsk_grant_free(struct xsk_grant *grant);

/**
 * The lease's number, which xsk_client_activate() and xsk_client_release() want; 0 for NULL.
 */
uint64_t xsk_grant_lease(const struct xsk_grant *grant);

/**
 * The device's name in the broker's network namespace; NULL for NULL. It belongs to the grant.
 */
const char *xsk_grant_interface(const struct xsk_grant *grant);

/**
 * The device's index there, with which a socket is bound by hand; 0 for NULL.
 */
uint32_t xsk_grant_interface_index(const struct xsk_grant *grant);

/**
 * The fd of the umem of a grant of kind XSK_CLIENT_BOUND, to be mapped before xsk_client_bind(); the mapping stays when the
 * grant closes it. -1 for other kinds and for NULL.
 */
int xsk_grant_umem_fd(const struct xsk_grant *grant);

/**
 * The length of that umem in bytes; 0 where there is none.
 */
size_t xsk_grant_umem_bytes(const struct xsk_grant *grant);

/**
 * How many entries each socket's ring has that an enum xsk_client_ring names; 0 where there is no such ring: of
 * XSK_CLIENT_BARE, and of a direction that was not granted.
 */
uint32_t xsk_grant_ring_entries(const struct xsk_grant *grant,
                                uint32_t ring);

/**
 * How many sockets there are; 0 for NULL, and before xsk_client_bind() for XSK_CLIENT_BOUND.
 */
size_t xsk_grant_count(const struct xsk_grant *grant);

/**
 * The queue of the socket at `index`, ascending from 0; UINT32_MAX where there is none.
 */
uint32_t xsk_grant_queue(const struct xsk_grant *grant, size_t index);

/**
 * The fd of the socket at `index`, which the grant goes on owning: it is closed by xsk_grant_free(). -1 where there is
 * none, or it was taken.
 */
int xsk_grant_fd(const struct xsk_grant *grant,
                 size_t index);

/**
 * The fd of the socket at `index`, which is the caller's from now on, to be closed or to be given to libxdp, which
 * closes it in xsk_umem__delete(), and when xsk_umem__create_with_fd() fails. It is close-on-exec. -1 where there is
 * none, or it was taken before.
 */
int xsk_grant_take_fd(struct xsk_grant *grant,
                      size_t index);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* XSK_CLIENT_H */
