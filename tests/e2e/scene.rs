//! A broker with one tenant, and what must hold after whatever was done to it.

use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use e2e::broker::BrokerProcess;
use e2e::leaks::{Fds, Leaks};
use e2e::raw_client::{INTERFACE, PATIENCE, RawClient};
use e2e::uids::Uid;
use e2e::world::World;
use serde_json::json;

/// Sections for whatever devices the world has.
pub(crate) const EVERY_INTERFACE: &str = "[interface.\"*\"]\nqueue-lock = \"none\"\n";

/// Queues 1 to 3 of eth0 for that uid.
pub(crate) fn tenant_rule(uid: u32) -> String {
    allow("tenant", uid, "eth0", "1-3")
}

/// A rule.
pub(crate) fn allow(name: &str, uid: u32, interface: &str, queues: &str) -> String {
    format!(
        "[[allow]]\nname = \"{name}\"\nuser = {uid}\ninterface = \"{interface}\"\nqueues = \"{queues}\"\n\
         sockets = [\"prepared\"]\n"
    )
}

/// A world, a broker, and its tenant.
pub(crate) struct Scene<'w> {
    pub(crate) world: &'w World,
    pub(crate) broker: BrokerProcess<'w>,
    pub(crate) uid: Uid,
    leaks: Leaks,
    fds: Fds,
}

impl<'w> Scene<'w> {
    /// The tenant may have queues 1 to 3 of eth0.
    pub(crate) fn new(world: &'w World) -> Self {
        Self::with_policy(world, |tenant| tenant_rule(tenant) + EVERY_INTERFACE)
    }

    /// What the tenant may have is for the caller to say.
    pub(crate) fn with_policy(world: &'w World, policy: impl FnOnce(u32) -> String) -> Self {
        let uid = Uid::take().unwrap();
        let policy = policy(uid.number());
        let leaks = Leaks::snapshot(world).unwrap();
        let broker = BrokerProcess::start(world, &policy).unwrap();
        let fds = quiet_fds(broker.process().pid());
        Self {
            world,
            broker,
            uid,
            leaks,
            fds,
        }
    }

    /// A connection of somebody's.
    pub(crate) fn client_of(&self, uid: &Uid) -> RawClient {
        let connector = self.broker.connector(uid).unwrap();
        RawClient::connect(&connector, &self.broker.paths().socket()).unwrap()
    }

    /// An operator's connection.
    pub(crate) fn operator(&self) -> RawClient {
        RawClient::over(UnixStream::connect(self.broker.control_socket()).unwrap()).unwrap()
    }

    /// A connection of the tenant's.
    pub(crate) fn client(&self) -> RawClient {
        self.client_of(&self.uid)
    }

    /// The same broker still serves, it has no fd more than at first, and nothing in it panicked.
    pub(crate) fn finish(mut self) {
        let pid = self.broker.process().pid();
        assert!(is_served(&mut self.client()));
        let log = self.broker.process().stderr();
        assert!(log.iter().all(|line| !line.contains("panic")), "{log:?}");
        // What is attached at a device's first grant stays until the broker ends.
        let stays = |line: &String| line.contains("anon_inode:bpf");
        // And the socket that the broker asks with whether a queue is taken, from its first question on.
        let with_probe = self.fds.clone().with_one_more("socket");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = Fds::of(pid).unwrap();
            let more =
                |than: &Fds| -> Vec<String> { now.more_than(than).filter(|line| !stays(line)).collect() };
            if more(&self.fds).is_empty() || more(&with_probe).is_empty() {
                break;
            }
            assert!(Instant::now() < deadline, "{:?}", more(&self.fds));
            thread::sleep(Duration::from_millis(10));
        }
        self.broker.dismiss_connectors();
        self.leaks.expect_objects_gone(self.world, pid).unwrap();
        assert!(self.broker.stop().unwrap().success());
        self.leaks.wait_none(self.world, Duration::from_secs(10)).unwrap();
    }
}

/// A broker's fds once it has closed the connection that the fixture saw it start by.
fn quiet_fds(pid: u32) -> Fds {
    /// A look is no snapshot, and a connection that was just accepted has no pidfd yet.
    const EQUAL_LOOKS: u32 = 4;

    let deadline = Instant::now() + PATIENCE;
    let (mut last, mut equal) = (Fds::of(pid).unwrap(), 1);
    while equal < EQUAL_LOOKS {
        assert!(Instant::now() < deadline, "{last:?}");
        thread::sleep(Duration::from_millis(5));
        let fds = Fds::of(pid).unwrap();
        // Each connection has one.
        let quiet = fds == last && !format!("{fds:?}").contains("pidfd");
        equal = if quiet { equal + 1 } else { 1 };
        last = fds;
    }
    last
}

/// A request that changes nothing; queues 1 to 3 are granted to the tenant.
pub(crate) fn explain(queue: u32) -> Vec<u8> {
    let parameters = json!({ "interface": "eth0", "queues": [queue] });
    json!({ "method": format!("{INTERFACE}.Explain"), "parameters": parameters })
        .to_string()
        .into_bytes()
}

/// Whether this connection is answered as the tenant's.
pub(crate) fn is_served(client: &mut RawClient) -> bool {
    let reply = client.exchange(&explain(1)).unwrap();
    reply.is_some_and(|reply| reply["parameters"]["granted"] == true)
}
