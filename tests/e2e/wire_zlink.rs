//! A Varlink library that is not ours gets a working socket, in a process without any right.

use std::os::fd::OwnedFd;
use std::time::Duration;

use e2e::holder::Holder;
use e2e::raw_xsk::is_bound;
use e2e::status::{Capabilities, Status};
use e2e::world::{Side, World};
use rustix::net::{AddressFamily, sockopt};
use serde::{Deserialize, Serialize};

use crate::scene::Scene;

const PATIENCE: Duration = Duration::from_secs(20);

#[zlink::proxy("org.xskbroker.Broker")]
trait BrokerProxy {
    #[zlink(return_fds)]
    async fn acquire(
        &mut self,
        interface: &str,
        queues: &[u32],
        sockets: &str,
    ) -> zlink::Result<(Result<Acquired, Refused>, Vec<OwnedFd>)>;

    async fn list_leases(&mut self) -> zlink::Result<Result<Leases, Refused>>;
}

#[derive(Debug, Serialize, Deserialize)]
struct Acquired {
    lease: u64,
    sockets: Vec<Socket>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Socket {
    queue: u32,
    socket_file_descriptor: usize,
}

#[derive(Debug, Serialize, Deserialize)]
struct Leases {
    leases: Vec<Lease>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Lease {
    lease: u64,
}

#[derive(Debug, PartialEq, zlink::ReplyError)]
#[zlink(interface = "org.xskbroker.Broker")]
enum Refused {
    Denied {
        interface: String,
        queues: Vec<u32>,
        message: String,
    },
}

#[test]
fn zlink_gets_a_working_socket() {
    let world = World::new().unwrap();
    let scene = Scene::new(&world);
    let mut client = Holder::body(&world, Side::Host, &scene.uid.user(), "zlink_client", &[]).unwrap();
    let lease = client.wait_line("lease", PATIENCE).unwrap();
    assert_eq!(lease, "lease 1 queues 2-3 AF_XDP not bound");
    assert_eq!(Status::of(client.pid()).unwrap().capabilities, Capabilities::NONE);
    let refused = client.wait_line("refused", PATIENCE).unwrap();
    assert!(
        refused.starts_with("refused eth0 [7]: eth0:7: rule tenant gives queues 1-3"),
        "{refused}"
    );
    assert!(client.wait(PATIENCE).unwrap().success());
    scene.finish();
}

/// Runs as a process of the tenant's.
pub(crate) fn zlink_client(_arguments: &[String]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.unwrap().block_on(async {
        let mut connection = zlink::tokio::unix::connect("/run/xsk-broker/broker.sock")
            .await
            .unwrap();
        let (reply, fds) = connection.acquire("eth0", &[2, 3], "prepared").await.unwrap();
        let acquired = reply.unwrap();
        assert_eq!(fds.len(), 2);
        for (queue, socket) in [2, 3].into_iter().zip(&acquired.sockets) {
            let fd = &fds[socket.socket_file_descriptor];
            assert_eq!(socket.queue, queue);
            assert_eq!(sockopt::socket_domain(fd).unwrap(), AddressFamily::XDP);
            assert!(!is_bound(fd).unwrap());
            sockopt::xdp_statistics(fd).unwrap();
        }
        println!("lease {} queues 2-3 AF_XDP not bound", acquired.lease);

        let leases = connection.list_leases().await.unwrap().unwrap();
        assert_eq!(leases.leases[0].lease, acquired.lease);
        let (reply, fds) = connection.acquire("eth0", &[7], "prepared").await.unwrap();
        let Err(Refused::Denied {
            interface,
            queues,
            message,
        }) = reply
        else {
            panic!("{reply:?}");
        };
        assert!(fds.is_empty());
        println!("refused {interface} {queues:?}: {message}");
    });
}
