//! The service manager's fd store and sockets that are out unbound when the broker is killed: the lock goes on to hold for
//! them, they can be bound and activated afterwards, and nothing is tainted by them.

use std::time::Duration;

use e2e::broker::BrokerProcess;
use e2e::leaks::Leaks;
use e2e::service_manager::{ServiceManager, Tending};
use e2e::uids::Uid;
use e2e::world::{Side, World};
use rustix::process::Signal;
use xsk_client::wire::{LeaseState, SocketKind};

use crate::lease_scene::{PATIENCE, Traffic, allow_kinds, eth0, leases, state_of, wait_event, wait_until};
use crate::puppet::{Puppet, Seen};
use crate::rogue::{Race, Rogue};

const IDLE: Duration = Duration::from_secs(5);
/// All that eth0 has, but queue 3.
pub(crate) const OTHERS: [u32; 7] = [0, 1, 2, 4, 5, 6, 7];

/// A manager with a store of that size, and a broker that it has started.
pub(crate) struct Scene<'w> {
    pub(crate) world: &'w World,
    pub(crate) alice: Uid,
    pub(crate) broker: BrokerProcess<'w>,
    pub(crate) tending: Tending,
    pub(crate) manager: ServiceManager<'w>,
}

impl<'w> Scene<'w> {
    pub(crate) fn new(world: &'w World, lock: &str, room: &str) -> Self {
        let alice = Uid::take().unwrap();
        let manager = ServiceManager::new(world).unwrap();
        manager.set("FDSTORE", room);
        let tending = manager.tend().unwrap();
        let kinds = ["prepared", "bare", "bound"];
        let text = format!("[interface.eth0]\nqueue-lock = \"{lock}\"\nreserved = \"0\"\n")
            + &allow_kinds(alice.number(), "1-7", &kinds, "activate-within-ms = 60000");
        let broker = BrokerProcess::builder()
            .service(manager.service())
            .start(world, &text)
            .unwrap();
        Self {
            world,
            alice,
            broker,
            tending,
            manager,
        }
    }

    pub(crate) fn holder(&self) -> Puppet {
        Puppet::start(self.world, Side::Host, &self.alice.user())
    }

    /// SIGKILL; whatever the broker has said before is done, as a manager does it.
    pub(crate) fn kill(&mut self) {
        self.broker.kill().unwrap();
        self.tending.catch_up().unwrap();
    }

    /// SIGTERM; what the broker has said by then is done as well, before it is started again.
    pub(crate) fn stop(&mut self) {
        assert!(self.broker.stop().unwrap().success());
        self.tending.catch_up().unwrap();
    }

    /// As `systemctl restart` does it.
    pub(crate) fn restart_in_order(&mut self) {
        self.broker.process().signal(Signal::USR1).unwrap();
        assert!(self.broker.wait().unwrap().success());
        self.tending.catch_up().unwrap();
    }

    pub(crate) fn wait_told(&self, words: &str) {
        let process = self.broker.process();
        process
            .wait_stderr(PATIENCE, |line| line.contains(words).then_some(()))
            .unwrap();
    }

    pub(crate) fn wait_kept(&self, wanted: &[&str]) {
        self.tending.wait(PATIENCE, |names| names == wanted).unwrap();
    }

    pub(crate) fn placeholders(&self) -> usize {
        let names = self.manager.names();
        names
            .iter()
            .filter(|name| name.starts_with("placeholder-"))
            .count()
    }
}

#[test]
fn placeholders_go_on_to_stand_and_what_is_out_can_be_activated() {
    let world = World::new().unwrap();
    let mut leaks = Leaks::snapshot(&world).unwrap();
    let mut scene = Scene::new(&world, "placeholders", "64");
    leaks
        .expect_objects_gone(&world, scene.broker.process().pid())
        .unwrap();
    let traffic = Traffic::new(&world);
    for kind in [SocketKind::Prepared, SocketKind::Bare] {
        let mut holder = scene.holder();
        let lease = holder.acquire_kind("eth0:3", kind).unwrap();
        // What the client has, the next broker will find: whenever this one is killed.
        scene.kill();
        assert_eq!(scene.placeholders(), OTHERS.len());
        scene.broker.restart().unwrap();
        assert_eq!(state_of(&scene.broker, lease), Some(LeaseState::HandedOver));
        wait_event(&scene.broker, "taken-over", lease);
        let seen = eth0(&scene.broker);
        assert_eq!((seen.placeholders, seen.tainted_by), (OTHERS.to_vec(), None));
        for queue in [0, 7] {
            traffic.expect_at_stack(queue, 0..10);
        }
        if kind == SocketKind::Bare {
            holder.release(lease);
            continue;
        }
        holder.bind(lease).unwrap();
        holder.activate(lease).unwrap();
        traffic.send_all(3, 0..50);
        assert_eq!(holder.receive(lease, 3, 50, IDLE), Seen::only(3, 50));
        scene.wait_kept(&[&format!("xsk-{lease}-3")]);
        assert_eq!(eth0(&scene.broker).placeholders, Vec::<u32>::new());
    }
    scene.wait_kept(&[]);
    // The device is as any other: the next one gets its socket, unbound.
    let mut next = scene.holder();
    next.hold_when_free("eth0:5");
    drop(next);
    scene.wait_kept(&[]);
    // A stop leaves the program where the kernel has not let go of a queue yet.
    wait_until("its queue is free", || leases(&scene.broker).is_empty());
    scene.stop();
    drop(scene);
    leaks.wait_none(&world, PATIENCE).unwrap();
}

#[test]
fn while_no_broker_is_there_a_rogue_wins_nothing() {
    let world = World::new().unwrap();
    let mut scene = Scene::new(&world, "placeholders", "64");
    let mut rogue = Rogue::start(&world, &scene.alice.user(), 3, Race::WhileGranted);
    let lease = rogue.lease();
    for _ in 0..5 {
        scene.kill();
        std::thread::sleep(Duration::from_millis(200));
        scene.broker.restart().unwrap();
        std::thread::sleep(Duration::from_millis(100));
    }
    let tries = rogue.tries();
    println!("binds of a rogue while the broker was killed five times, by errno: {tries:?}");
    assert_eq!(Vec::from_iter(tries.keys().copied()), [libc::EBUSY], "{tries:?}");
    assert_eq!(state_of(&scene.broker, lease), Some(LeaseState::HandedOver));
    assert_eq!(eth0(&scene.broker).tainted_by, None);
    rogue.kill();
    wait_until("its queue is free", || state_of(&scene.broker, lease).is_none());
    scene.wait_kept(&[]);
}

/// Without the placeholders it would: which is why the test above means something.
#[test]
fn without_a_store_the_same_rogue_wins() {
    let world = World::new().unwrap();
    let mut scene = Scene::new(&world, "placeholders", "0");
    let rogue = Rogue::start(&world, &scene.alice.user(), 3, Race::WhileGranted);
    scene.broker.kill().unwrap();
    assert_ne!(rogue.has_won(), 3);
}

/// A lease whose socket was handed over and ended while the other one's was out unbound keeps its queue, over the crash too.
#[test]
fn what_ended_under_a_guard_goes_on_to_keep_its_queue() {
    let world = World::new().unwrap();
    let mut scene = Scene::new(&world, "placeholders", "64");
    let mut early = scene.holder();
    let ended = early.hold("eth0:5");
    let mut late = scene.holder();
    let out = late.acquire("eth0:3").unwrap();
    early.kill();
    wait_event(&scene.broker, "ended", ended);
    scene.kill();
    std::thread::sleep(Duration::from_millis(200));
    scene.broker.restart().unwrap();
    wait_until("it lingers", || {
        state_of(&scene.broker, ended) == Some(LeaseState::Lingering)
    });
    std::thread::sleep(Duration::from_millis(200));
    // Its holder is gone, and nobody else has its socket: it is the broker's fd that keeps the queue.
    assert_eq!(state_of(&scene.broker, ended), Some(LeaseState::Lingering));
    assert_eq!(state_of(&scene.broker, out), Some(LeaseState::HandedOver));
    late.bind(out).unwrap();
    late.activate(out).unwrap();
    wait_until("its queue is free", || state_of(&scene.broker, ended).is_none());
    scene.wait_kept(&[&format!("xsk-{out}-3")]);
}

/// The next broker has an fd of what was being retired, or is to be: nothing is tainted.
#[test]
fn a_holder_that_died_meanwhile_leaves_no_taint() {
    let world = World::new().unwrap();
    let mut scene = Scene::new(&world, "placeholders", "64");
    let mut holder = scene.holder();
    let lease = holder.acquire("eth0:3").unwrap();
    scene.kill();
    holder.kill();
    scene.broker.restart().unwrap();
    assert_eq!(
        wait_event(&scene.broker, "ended", lease)["reason"],
        "holder-exited"
    );
    scene.wait_kept(&[]);
    wait_until("its queue is free", || state_of(&scene.broker, lease).is_none());
    assert_eq!(eth0(&scene.broker).tainted_by, None);
    scene.holder().hold_when_free("eth0:3");
}

/// Then it is as without a store.
#[test]
fn a_store_without_room_for_all_of_it_is_told() {
    let world = World::new().unwrap();
    let mut scene = Scene::new(&world, "placeholders", "7");
    let mut holder = scene.holder();
    let lease = holder.acquire("eth0:3").unwrap();
    let words = format!("no room to keep xsk-{lease}-3");
    let process = scene.broker.process();
    process
        .wait_stderr(PATIENCE, |line| line.contains(&words).then_some(()))
        .unwrap();
    scene.kill();
    assert_eq!(scene.placeholders(), OTHERS.len());
    scene.broker.restart().unwrap();
    assert_eq!(wait_event(&scene.broker, "ended", lease)["reason"], "restarted");
    assert_eq!(eth0(&scene.broker).tainted_by, Some(holder.pid()));
    scene.wait_kept(&[]);
    assert_eq!(holder.acquire("eth0:4").unwrap_err().kind, "QueueBusy");
}

/// A manager that stops its service for good closes what it kept: so nothing is left out unbound by a stop.
#[test]
fn a_stop_in_order_retires_what_only_placeholders_confine() {
    let world = World::new().unwrap();
    let mut scene = Scene::new(&world, "placeholders", "64");
    let mut holder = scene.holder();
    let lease = holder.acquire("eth0:3").unwrap();
    scene.stop();
    scene.tending.catch_up().unwrap();
    scene.wait_kept(&[]);
    assert!(holder.bind(lease).is_err());
    scene.broker.restart().unwrap();
    assert_eq!(eth0(&scene.broker).tainted_by, None);
    assert_eq!(holder.activate(lease).unwrap_err().kind, "NoSuchLease");
    holder.hold("eth0:3");
}

/// One that restarts it says so by the signal, and keeps what it has: a rogue wins nothing meanwhile either.
#[test]
fn a_restart_in_order_keeps_what_is_out_as_a_kill_does() {
    let world = World::new().unwrap();
    let mut scene = Scene::new(&world, "placeholders", "64");
    let traffic = Traffic::new(&world);
    let mut rogue = Rogue::start(&world, &scene.alice.user(), 3, Race::WhileGranted);
    let lease = rogue.lease();
    scene.restart_in_order();
    assert_eq!(scene.placeholders(), OTHERS.len());
    std::thread::sleep(Duration::from_millis(200));
    scene.broker.restart().unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let tries = rogue.tries();
    assert_eq!(Vec::from_iter(tries.keys().copied()), [libc::EBUSY], "{tries:?}");
    assert_eq!(state_of(&scene.broker, lease), Some(LeaseState::HandedOver));
    rogue.kill();
    wait_until("its queue is free", || state_of(&scene.broker, lease).is_none());

    let mut holder = scene.holder();
    let lease = holder.acquire_kind_when_free("eth0:3", SocketKind::Prepared);
    scene.restart_in_order();
    scene.broker.restart().unwrap();
    let seen = eth0(&scene.broker);
    assert_eq!((seen.placeholders, seen.tainted_by), (OTHERS.to_vec(), None));
    holder.bind(lease).unwrap();
    holder.activate(lease).unwrap();
    traffic.send_all(3, 0..50);
    assert_eq!(holder.receive(lease, 3, 50, IDLE), Seen::only(3, 50));
    scene.wait_kept(&[&format!("xsk-{lease}-3")]);
}

#[test]
fn under_no_lock_a_stop_leaves_what_is_out() {
    let world = World::new().unwrap();
    let mut scene = Scene::new(&world, "none", "64");
    let mut holder = scene.holder();
    let lease = holder.acquire("eth0:3").unwrap();
    scene.stop();
    scene.broker.restart().unwrap();
    assert_eq!(state_of(&scene.broker, lease), Some(LeaseState::HandedOver));
    holder.bind(lease).unwrap();
    holder.activate(lease).unwrap();
}
