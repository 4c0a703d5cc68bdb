//! However a lease ends, its packets go to the host again at once, and its queue to the next holder as soon as the
//! kernel lets go of it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use e2e::broker::BrokerProcess;
use e2e::uids::Uid;
use e2e::world::{Side, World};
use serde_json::json;
use xsk_client::wire::{LeaseState, Status};

use crate::lease_scene::{
    PATIENCE, SILENCE, Traffic, allow_with, interface, leases, operator, policy, state_of, wait_event,
    wait_until,
};
use crate::puppet::{Failure, Order, Puppet, Seen};

const IDLE: Duration = Duration::from_secs(5);

/// A world, its traffic, and two users who may have every queue.
struct Scene {
    world: World,
    traffic: Traffic,
    alice: Uid,
    bob: Uid,
}

impl Scene {
    fn new() -> Self {
        let world = World::new().unwrap();
        Self {
            traffic: Traffic::new(&world),
            world,
            alice: Uid::take().unwrap(),
            bob: Uid::take().unwrap(),
        }
    }

    fn broker(&self) -> BrokerProcess<'_> {
        let rules = [(self.alice.number(), "1-7"), (self.bob.number(), "1-7")];
        BrokerProcess::start(&self.world, &policy(&rules)).unwrap()
    }

    fn puppet(&self, uid: &Uid) -> Puppet {
        Puppet::start(&self.world, Side::Host, &uid.user())
    }

    /// Real packets reach that lease's holder, all of them.
    fn expect_packets(&self, puppet: &mut Puppet, lease: u64, queue: u32) {
        self.traffic.send_all(queue, 0..100);
        assert_eq!(puppet.receive(lease, queue, 100, IDLE), Seen::only(queue, 100));
    }
}

/// Asks until it is granted: the kernel takes its time.
fn acquire_at_last(puppet: &mut Puppet, target: &str) -> u64 {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match puppet.acquire(target) {
            Ok(lease) => return lease,
            Err(failure) if is_worth_asking_again(&failure) => {}
            Err(failure) => panic!("{failure:?}"),
        }
        assert!(Instant::now() < deadline, "{target} is never free");
    }
}

fn is_worth_asking_again(failure: &Failure) -> bool {
    failure.kind == "QueueBusy" && failure.details["retryAfterMs"].is_u64()
}

#[test]
fn a_killed_holders_queue_is_granted_anew() {
    let scene = Scene::new();
    let broker = scene.broker();
    let (mut first, mut second) = (scene.puppet(&scene.alice), scene.puppet(&scene.bob));
    let lease = first.hold("eth0:3");
    scene.expect_packets(&mut first, lease, 3);
    assert_eq!(second.acquire("eth0:3").unwrap_err().kind, "QueueBusy");

    let killed = Instant::now();
    first.kill();
    let deadline = Instant::now() + PATIENCE;
    // The broker may not have heard of the death yet.
    let anew = loop {
        match second.acquire("eth0:3") {
            Ok(lease) => break lease,
            Err(failure) => assert_eq!(failure.kind, "QueueBusy"),
        }
        assert!(Instant::now() < deadline, "never free");
    };
    second.bind(anew).unwrap();
    second.activate(anew).unwrap();
    println!("SIGKILL to active again: {} ms", killed.elapsed().as_millis());
    scene.expect_packets(&mut second, anew, 3);
    assert_eq!(wait_event(&broker, "ended", lease)["reason"], "holder-exited");
    assert_eq!(leases(&broker).len(), 1);
}

#[test]
fn a_release_gives_the_queue_back() {
    let scene = Scene::new();
    let broker = scene.broker();
    let (mut first, mut second) = (scene.puppet(&scene.alice), scene.puppet(&scene.bob));
    let lease = first.hold("eth0:3");
    first.release(lease);
    first.release(lease);
    assert_eq!(wait_event(&broker, "ended", lease)["reason"], "released");
    // Its packets are the host's, though the holder has the socket still.
    scene.traffic.expect_at_stack(3, 0..10);
    assert!(is_worth_asking_again(&second.acquire("eth0:3").unwrap_err()));
    first.close(lease);
    let anew = acquire_at_last(&mut second, "eth0:3");
    // Somebody else's lease cannot be released.
    first.release(anew);
    second.bind(anew).unwrap();
    second.activate(anew).unwrap();
    scene.expect_packets(&mut second, anew, 3);
}

#[test]
fn a_lease_outlives_its_connection() {
    let scene = Scene::new();
    let broker = scene.broker();
    let mut holder = scene.puppet(&scene.alice);
    let lease = holder.hold("eth0:3");
    holder.ask(&Order::Disconnect).unwrap();
    wait_until("the connection is gone", || {
        // The one that asks is an operator's, which are not counted.
        operator(&broker).get_status().unwrap().connections == 0
    });
    scene.expect_packets(&mut holder, lease, 3);
    assert_eq!(state_of(&broker, lease), Some(LeaseState::Active));
}

#[test]
fn a_lease_that_is_not_activated_ends() {
    let scene = Scene::new();
    let rule = |uid: &Uid| allow_with(uid.number(), "1-7", "activate-within-ms = 200");
    let text = interface("eth0", "") + &rule(&scene.alice) + &rule(&scene.bob);
    let broker = BrokerProcess::start(&scene.world, &text).unwrap();
    let (mut idler, mut other) = (scene.puppet(&scene.alice), scene.puppet(&scene.bob));

    let unbound = idler.acquire("eth0:3").unwrap();
    assert_eq!(wait_event(&broker, "ended", unbound)["reason"], "not-activated");
    assert_eq!(idler.activate(unbound).unwrap_err().kind, "NoSuchLease");
    let anew = other.hold("eth0:3");
    scene.expect_packets(&mut other, anew, 3);

    let bound = idler.acquire("eth0:4").unwrap();
    idler.bind(bound).unwrap();
    assert_eq!(wait_event(&broker, "ended", bound)["reason"], "not-activated");
    scene.traffic.expect_at_stack(4, 0..10);
    idler.close(bound);
    acquire_at_last(&mut other, "eth0:4");
}

#[test]
fn a_reply_that_nobody_takes_is_no_lease() {
    let scene = Scene::new();
    let rule = interface("eth0", "") + &allow_with(0, "1-7", "");
    let broker = BrokerProcess::start(&scene.world, &rule).unwrap();
    let acquire = |more: &str| {
        format!(
            "{{\"method\":\"org.xskbroker.Broker.Acquire\",\"parameters\":{{\"interface\":\"eth0\",\"queues\":[3],\
             \"sockets\":\"prepared\"}}{more}}}\0"
        )
    };

    // A reply that was not read holds up the one with fds; then the client hangs up.
    let mut client = UnixStream::connect(broker.socket()).unwrap();
    client
        .write_all(b"{\"method\":\"org.varlink.service.GetInfo\"}\0")
        .unwrap();
    client.write_all(acquire("").as_bytes()).unwrap();
    wait_event(&broker, "granted", 1);
    assert_eq!(state_of(&broker, 1), Some(LeaseState::HandedOver));
    drop(client);
    assert_eq!(wait_event(&broker, "ended", 1)["reason"], "not-delivered");

    // A client that wants no reply at all, and lives on.
    let mut client = UnixStream::connect(broker.socket()).unwrap();
    client.write_all(acquire(",\"oneway\":true").as_bytes()).unwrap();
    client
        .write_all(b"{\"method\":\"org.varlink.service.GetInfo\"}\0")
        .unwrap();
    client.read_exact(&mut [0]).unwrap();
    // It was refused: the first is all that was ever granted.
    wait_until("no lease is left", || leases(&broker).is_empty());
    let audit = broker.audit().unwrap();
    let granted = audit.iter().filter(|line| line["event"] == "granted");
    assert_eq!(granted.count(), 1, "{audit:?}");
}

#[test]
fn a_revoke_stops_receiving_at_once() {
    let scene = Scene::new();
    let broker = scene.broker();
    let (mut holder, mut other) = (scene.puppet(&scene.alice), scene.puppet(&scene.bob));
    let lease = holder.hold("eth0:3");
    scene.expect_packets(&mut holder, lease, 3);

    let revoked = broker.cli(&["revoke", &lease.to_string()]).unwrap();
    assert_eq!(revoked.code, Some(75), "{}", revoked.stderr);
    assert!(
        revoked.stdout.contains("can go on transmitting"),
        "{}",
        revoked.stdout
    );
    scene.traffic.expect_at_stack(3, 1000..1020);
    assert_eq!(holder.receive(lease, 3, 1, SILENCE), Seen::default());
    assert_eq!(wait_event(&broker, "ended", lease)["reason"], "revoked");
    assert_eq!(state_of(&broker, lease), Some(LeaseState::Lingering));
    let failure = other.acquire("eth0:3").unwrap_err();
    assert!(is_worth_asking_again(&failure), "{failure:?}");
    assert!(
        failure.text.contains("whose socket is still bound to it"),
        "{}",
        failure.text
    );
    assert_eq!(holder.activate(lease).unwrap_err().kind, "NoSuchLease");
    let again = broker.cli(&["revoke", &lease.to_string()]).unwrap();
    assert_eq!(again.code, Some(75), "{}", again.stderr);
    let not_root = broker.cli_as(&scene.bob.user(), &["revoke", "1"]).unwrap();
    assert_eq!(not_root.code, Some(77), "{}", not_root.stderr);

    holder.kill();
    wait_event(&broker, "freed", lease);
    let anew = other.hold("eth0:3");
    scene.expect_packets(&mut other, anew, 3);
}

/// How many queues a uid is charged for.
fn queues_of(broker: &BrokerProcess<'_>, uid: u32) -> u64 {
    let status: Status = operator(broker).call("GetStatus", &json!({})).unwrap();
    let queues = status
        .quotas
        .iter()
        .find(|quota| quota.resource == "queues")
        .unwrap();
    let used = queues.users.iter().find(|used| used.uid == uid);
    used.map_or(0, |used| used.in_use)
}

#[test]
fn a_child_that_keeps_the_socket_keeps_the_queue() {
    let scene = Scene::new();
    let broker = scene.broker();
    let (mut holder, mut other) = (scene.puppet(&scene.alice), scene.puppet(&scene.bob));
    let lease = holder.hold("eth0:3");
    let mut child = holder.beget(&scene.world, lease);
    assert_eq!(
        child.activate(lease).unwrap_err().kind,
        "NoSuchLease",
        "a child is another process"
    );

    holder.kill();
    assert_eq!(wait_event(&broker, "ended", lease)["reason"], "holder-exited");
    scene.traffic.expect_at_stack(3, 0..10);
    assert_eq!(state_of(&broker, lease), Some(LeaseState::Lingering));
    assert!(is_worth_asking_again(&other.acquire("eth0:3").unwrap_err()));
    // So long it is charged, too.
    let alice = scene.alice.number();
    assert_eq!(queues_of(&broker, alice), 1);

    drop(child);
    wait_until("it is charged no more", || queues_of(&broker, alice) == 0);
    let anew = acquire_at_last(&mut other, "eth0:3");
    other.bind(anew).unwrap();
    other.activate(anew).unwrap();
    scene.expect_packets(&mut other, anew, 3);
}
