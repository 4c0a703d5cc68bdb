//! A flood of slow requests by some users costs another at most one of each.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use e2e::broker::BrokerProcess;
use e2e::connector::Connector;
use e2e::raw_client::RawClient;
use e2e::uids::Uid;
use e2e::world::World;
use serde_json::{Value, json};
use xsk_client::Broker;

use crate::lease_scene::{allow_kinds, wait_until};

const USERS: u64 = 3;
const CONNECTIONS_EACH: u64 = 6;
const GRANTS: u64 = 30;

fn acquire(client: &mut RawClient, interface: &str, queue: u32) -> Value {
    let parameters = json!({ "interface": interface, "queues": [queue], "sockets": "prepared" });
    client.call("Acquire", &parameters).unwrap()
}

fn release(client: &mut RawClient, granted: &Value) {
    let lease = granted["parameters"]["lease"]
        .as_u64()
        .unwrap_or_else(|| panic!("{granted}"));
    client.call("Release", &json!({ "lease": lease })).unwrap();
}

/// Says so when dropped, by a panic too.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Under placeholders a grant waits until the kernel has let go of those of the one before. Three users with six connections
/// each ask for nothing else. Were the broker to wait for the kernel, or to serve whoever came first, the innocent one would
/// wait for eighteen of theirs each time.
#[test]
fn an_innocent_user_has_its_turn_while_others_wait_for_the_kernel() {
    let world = World::builder().peers(2).build().unwrap();
    let others: Vec<Uid> = (0..USERS).map(|_| Uid::take().unwrap()).collect();
    let innocent = Uid::take().unwrap();
    let rules: String = others
        .iter()
        .chain([&innocent])
        .map(|uid| allow_kinds(uid.number(), "*", &["prepared"], ""))
        .collect();
    let policy = "[interface.eth0]\nqueue-lock = \"placeholders\"\n[interface.eth1]\nqueue-lock = \"none\"\n".to_owned()
        + &rules
        // None of them binds anything, which is not what this is about.
        + "[limits.per-user]\nabandoned-sockets = 100000\n[limits.in-all]\nabandoned-sockets = 100000\n";
    let broker = BrokerProcess::start(&world, &policy).unwrap();
    let socket = broker.paths().socket();
    let connect = |uid: &Uid| {
        let connector = Arc::new(Connector::start(&world, &uid.user()).unwrap());
        let socket = socket.clone();
        move || RawClient::connect(&connector, &socket).unwrap()
    };
    let connect_innocent = connect(&innocent);
    let connect_others: Vec<_> = others.iter().map(&connect).collect();
    let (over, granted) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut operator = Broker::connect_to(broker.control_socket()).unwrap();
    std::thread::scope(|scope| {
        for connect in &connect_others {
            for connection in 0..CONNECTIONS_EACH {
                let (over, granted, mut client) = (&over, &granted, connect());
                scope.spawn(move || {
                    let queue = u32::try_from(connection).unwrap();
                    while !over.load(Ordering::Relaxed) {
                        let reply = acquire(&mut client, "eth0", queue);
                        match reply["error"].as_str() {
                            None => {
                                granted.fetch_add(1, Ordering::Relaxed);
                                release(&mut client, &reply);
                            }
                            Some(error) => assert!(error.ends_with(".QueueBusy"), "{reply}"),
                        }
                    }
                });
            }
        }
        let _over = Over(&over);
        // They wait, all of them but those who are just being answered.
        wait_until("the others wait", || {
            let quotas = operator.get_status().unwrap().quotas;
            let requests = quotas.iter().find(|quota| quota.resource == "requests").unwrap();
            requests.in_use > USERS * CONNECTIONS_EACH / 2 && granted.load(Ordering::Relaxed) > 0
        });
        let mut client = connect_innocent();
        let before = granted.load(Ordering::Relaxed);
        for grant in 0..GRANTS {
            let reply = acquire(&mut client, "eth1", u32::try_from(grant % 8).unwrap());
            release(&mut client, &reply);
        }
        let others = granted.load(Ordering::Relaxed) - before;
        println!("{GRANTS} grants, {others} of the others meanwhile");
        assert!(
            others <= GRANTS * USERS,
            "{others} grants of others came before {GRANTS}"
        );
    });
}
