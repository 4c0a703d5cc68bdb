/* Wrong use of the library, which it must survive, and tell about. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "xsk-client.h"

#define EXPECT(condition) \
	do { \
		if (!(condition)) { \
			fprintf(stderr, "line %d: %s; %s\n", __LINE__, #condition, xsk_client_error()); \
			return 1; \
		} \
	} while (0)

int main(void)
{
	struct xsk_client *client = (struct xsk_client *)&client;
	struct xsk_grant *grant = (struct xsk_grant *)&grant;
	struct xsk_client_request request;

	memset(&request, 0, sizeof(request));
	EXPECT(!*xsk_client_error());
	EXPECT(xsk_client_connect(NULL, NULL) == XSK_CLIENT_USAGE && strstr(xsk_client_error(), "NULL"));
	EXPECT(xsk_client_connect(NULL, &client) == XSK_CLIENT_UNREACHABLE && !client);
	EXPECT(strstr(xsk_client_error(), "/nonexistent/broker.sock"));
	EXPECT(xsk_client_connect("\xff", &client) == XSK_CLIENT_USAGE);
	EXPECT(xsk_client_acquire(NULL, &request, &grant) == XSK_CLIENT_USAGE && !grant);
	EXPECT(xsk_client_activate(NULL, 1) == XSK_CLIENT_USAGE);
	EXPECT(xsk_client_release(NULL, 1) == XSK_CLIENT_USAGE);
	EXPECT(xsk_client_inherit(NULL) == XSK_CLIENT_USAGE);
	EXPECT(xsk_client_inherit(&grant) == XSK_CLIENT_NOT_INHERITED && !grant);
	EXPECT(strstr(xsk_client_error(), "xsk-broker grant"));
	EXPECT(xsk_client_retry_after_ms() == 0);
	EXPECT(xsk_grant_lease(NULL) == 0 && xsk_grant_count(NULL) == 0);
	EXPECT(!xsk_grant_interface(NULL) && xsk_grant_interface_index(NULL) == 0);
	EXPECT(xsk_client_bind(NULL, NULL) == XSK_CLIENT_USAGE && strstr(xsk_client_error(), "NULL"));
	EXPECT(xsk_grant_umem_fd(NULL) == -1 && xsk_grant_umem_bytes(NULL) == 0);
	EXPECT(xsk_grant_ring_entries(NULL, XSK_CLIENT_RX_RING) == 0);
	EXPECT(xsk_grant_queue(NULL, 0) == UINT32_MAX);
	EXPECT(xsk_grant_fd(NULL, 0) == -1 && xsk_grant_take_fd(NULL, 0) == -1);
	xsk_grant_free(NULL);
	xsk_client_close(NULL);
	return 0;
}
