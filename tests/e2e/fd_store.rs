//! The service manager's fd store: what it keeps of leases over a SIGKILL of the broker, and that it keeps nothing longer
//! than that.

use std::time::{Duration, Instant};

use e2e::broker::BrokerProcess;
use e2e::service_manager::ServiceManager;
use e2e::uids::Uid;
use e2e::world::{Side, World};
use xsk_client::wire::{Counters, Lease, LeaseState};

use crate::lease_scene::{
    PATIENCE, Traffic, allow_kinds, interface, leases, state_of, wait_event, wait_until,
};
use crate::puppet::{Puppet, Seen};
use crate::restart_scene::wait_told;

const IDLE: Duration = Duration::from_secs(5);

/// A manager with a store, and a broker that it has started.
struct Scene<'w> {
    world: &'w World,
    traffic: Traffic,
    alice: Uid,
    manager: ServiceManager<'w>,
    broker: BrokerProcess<'w>,
}

impl<'w> Scene<'w> {
    fn new(world: &'w World, room: &str) -> Self {
        let alice = Uid::take().unwrap();
        let manager = ServiceManager::new(world).unwrap();
        manager.set("FDSTORE", room);
        let kinds = ["prepared", "bound", "bare"];
        let text =
            interface("eth0", "") + &allow_kinds(alice.number(), "1-7", &kinds, "activate-within-ms = 60000");
        let broker = BrokerProcess::builder()
            .service(manager.service())
            .start(world, &text)
            .unwrap();
        Self {
            world,
            traffic: Traffic::new(world),
            alice,
            manager,
            broker,
        }
    }

    fn holder(&self) -> Puppet {
        Puppet::start(self.world, Side::Host, &self.alice.user())
    }

    fn wait_kept(&self, names: &[&str]) {
        self.manager.wait_names(names, PATIENCE).unwrap();
    }

    /// SIGKILL, and another broker.
    fn crash(&mut self) {
        self.broker.kill().unwrap();
        self.broker.restart().unwrap();
    }

    fn find(&self, id: u64) -> Lease {
        let found = leases(&self.broker).into_iter().find(|lease| lease.lease == id);
        found.unwrap()
    }

    fn counters(&self, id: u64) -> Counters {
        self.find(id).queues[0].counters
    }
}

#[test]
fn a_lease_has_its_statistics_again() {
    let world = World::new().unwrap();
    let mut scene = Scene::new(&world, "16");
    let mut holder = scene.holder();
    let lease = holder.hold("eth0:3");
    scene.wait_kept(&[&format!("xsk-{lease}-3")]);
    // Nobody takes them out of the ring, until there is no more memory for them.
    let give_up = Instant::now() + PATIENCE;
    let mut number = 0;
    while scene.counters(lease).dropped() == 0 {
        assert!(Instant::now() < give_up);
        scene.traffic.send_all(3, number..number + 100);
        number += 100;
    }
    let before = scene.counters(lease);
    scene.crash();
    let after = scene.counters(lease);
    assert!(
        after.dropped() >= before.dropped() && after.dropped() > 0,
        "{before:?} {after:?}"
    );
    assert_eq!(scene.find(lease).state, LeaseState::Active);
    holder.activate(lease).unwrap();

    // The end is the store's, too: the queue is free again, which it would not be else.
    holder.release(lease);
    holder.close(lease);
    scene.wait_kept(&[]);
    assert_eq!(wait_event(&scene.broker, "freed", lease)["lease"], lease);
    let next = scene.holder().hold("eth0:3");
    scene.wait_kept(&[&format!("xsk-{next}-3")]);
    assert!(scene.broker.stop().unwrap().success());
}

#[test]
fn what_a_lease_needs_that_is_left_as_it_is_is_kept() {
    let world = World::new().unwrap();
    let mut scene = Scene::new(&world, "16");
    let mut holder = scene.holder();
    let lease = holder.acquire("eth0:3").unwrap();
    let name = format!("xsk-{lease}-3");
    scene.wait_kept(&[&name]);
    // Its program is pinned elsewhere, as that one sees it.
    scene.broker.will_pin_in("other");
    scene.crash();
    wait_told(
        &scene.broker,
        "was the broker before started with another --bpf-dir?",
    );
    assert_eq!(leases(&scene.broker).len(), 0);
    scene.broker.kill().unwrap();
    // What that one has said is done before another is started.
    scene.manager.tend().unwrap().catch_up().unwrap();
    scene.wait_kept(&[&name]);
    scene.broker.will_pin_in("xsk-broker");
    scene.broker.restart().unwrap();
    assert_eq!(scene.find(lease).state, LeaseState::HandedOver);
    holder.bind(lease).unwrap();
    holder.activate(lease).unwrap();
    assert_eq!(scene.find(lease).state, LeaseState::Active);
    scene.traffic.send_all(3, 0..10);
    assert_eq!(holder.receive(lease, 3, 10, IDLE), Seen::only(3, 10));
    assert!(scene.broker.stop().unwrap().success());
}

#[test]
fn a_grant_that_was_not_active_yet_can_be_activated_by_the_next_broker() {
    let world = World::new().unwrap();
    let mut scene = Scene::new(&world, "16");
    let (mut unbound, mut bound) = (scene.holder(), scene.holder());
    let first = unbound.acquire("eth0:3").unwrap();
    let second = bound.acquire("eth0:4").unwrap();
    bound.bind(second).unwrap();
    scene.wait_kept(&[&format!("xsk-{first}-3"), &format!("xsk-{second}-4")]);
    scene.crash();
    for lease in [first, second] {
        assert_eq!(scene.find(lease).state, LeaseState::HandedOver);
    }
    unbound.bind(first).unwrap();
    for (holder, lease, queue) in [(&mut unbound, first, 3), (&mut bound, second, 4)] {
        holder.activate(lease).unwrap();
        scene.traffic.send_all(queue, 0..50);
        assert_eq!(holder.receive(lease, queue, 50, IDLE), Seen::only(queue, 50));
    }
    // Once more, now that they are active.
    scene.crash();
    scene.traffic.send_all(3, 50..100);
    assert_eq!(unbound.receive(first, 3, 50, IDLE), Seen::only(3, 50));
    drop(unbound);
    scene.wait_kept(&[&format!("xsk-{second}-4")]);
    assert!(scene.broker.stop().unwrap().success());
}

#[test]
fn what_died_while_no_broker_was_there_is_let_go_of() {
    let world = World::new().unwrap();
    let mut scene = Scene::new(&world, "16");
    let mut holder = scene.holder();
    let lease = holder.hold("eth0:3");
    scene.wait_kept(&[&format!("xsk-{lease}-3")]);
    scene.broker.kill().unwrap();
    holder.kill();
    scene.broker.restart().unwrap();
    assert_eq!(
        wait_event(&scene.broker, "ended", lease)["reason"],
        "holder-exited"
    );
    scene.wait_kept(&[]);
    wait_until("its queue is free", || state_of(&scene.broker, lease).is_none());
    scene.holder().hold("eth0:3");
    assert!(scene.broker.stop().unwrap().success());
}

#[test]
fn a_stop_in_order_leaves_it_for_the_next_start() {
    let world = World::new().unwrap();
    let mut scene = Scene::new(&world, "16");
    let mut holder = scene.holder();
    let lease = holder.hold("eth0:3");
    let pending = scene.holder().acquire("eth0:4").unwrap();
    // The second one died with its process.
    scene.wait_kept(&[&format!("xsk-{lease}-3"), &format!("xsk-{pending}-4")]);
    scene.wait_kept(&[&format!("xsk-{lease}-3")]);
    assert!(scene.broker.stop().unwrap().success());
    scene.broker.restart().unwrap();
    assert_eq!(scene.find(lease).state, LeaseState::Active);
    holder.activate(lease).unwrap();
    assert_eq!(scene.manager.names(), [format!("xsk-{lease}-3")]);
    assert!(scene.broker.stop().unwrap().success());
}

#[test]
fn what_is_no_socket_of_the_lease_is_not_taken_for_one() {
    let world = World::new().unwrap();
    let mut scene = Scene::new(&world, "16");
    let mut holder = scene.holder();
    let lease = holder.hold("eth0:3");
    let name = format!("xsk-{lease}-3");
    scene.wait_kept(&[&name]);
    scene.broker.kill().unwrap();
    scene.manager.close_all();
    scene
        .manager
        .pass(&name, std::fs::File::open("/dev/null").unwrap().into());
    scene
        .manager
        .pass("xsk-77-1", std::fs::File::open("/dev/null").unwrap().into());
    scene.broker.restart().unwrap();
    scene.wait_kept(&[]);
    let refused = format!("{name} is not the socket of that lease");
    let process = scene.broker.process();
    process
        .wait_stderr(PATIENCE, |line| line.contains(&refused).then_some(()))
        .unwrap();
    // The lease goes on as it does without a store.
    assert_eq!(scene.find(lease).state, LeaseState::Active);
    scene.traffic.send_all(3, 0..50);
    assert_eq!(holder.receive(lease, 3, 50, IDLE), Seen::only(3, 50));
    assert!(scene.broker.stop().unwrap().success());
}

#[test]
fn a_full_store_and_none_at_all_are_no_obstacle() {
    let world = World::new().unwrap();
    let mut scene = Scene::new(&world, "1");
    let mut holder = scene.holder();
    let one = holder.hold("eth0:3");
    let two = holder.hold("eth0:4");
    scene.wait_kept(&[&format!("xsk-{one}-3")]);
    holder.release(one);
    holder.close(one);
    scene.wait_kept(&[]);
    // There is room again.
    let three = holder.hold("eth0:5");
    scene.wait_kept(&[&format!("xsk-{three}-5")]);
    scene.crash();
    for lease in [two, three] {
        assert_eq!(scene.find(lease).state, LeaseState::Active);
    }
    assert!(scene.broker.stop().unwrap().success());
}
