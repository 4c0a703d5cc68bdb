//! The service manager's fd store and sockets that left under the lock `lsm`, which outlives the broker by itself.

use std::time::Duration;

use e2e::lsm;
use e2e::skip;
use e2e::world::{Side, World};
use xsk_client::wire::{LeaseState, QueueLock};

use crate::fd_store_unbound::Scene;
use crate::lease_scene::{Traffic, eth0, state_of, wait_event, wait_until};
use crate::puppet::Seen;
use crate::rogue::{Race, Rogue};

const IDLE: Duration = Duration::from_secs(5);

#[test]
fn under_lsm_what_is_out_goes_on_over_a_crash_and_a_stop() {
    if let Err(skip) = lsm::is_in_force() {
        skip!(skip);
    }
    let world = World::new().unwrap();
    let mut scene = Scene::new(&world, "lsm", "64");
    let traffic = Traffic::new(&world);
    let rogue = Rogue::start(&world, &scene.alice.user(), 2, Race::WhileGranted);
    let mut holder = scene.holder();
    for in_order in [false, true] {
        let lease = holder.acquire("eth0:3").unwrap();
        match in_order {
            true => scene.stop(),
            false => scene.kill(),
        }
        scene.broker.restart().unwrap();
        assert_eq!(state_of(&scene.broker, lease), Some(LeaseState::HandedOver));
        assert_eq!(eth0(&scene.broker).queue_lock, Some(QueueLock::Lsm));
        holder.bind(lease).unwrap();
        holder.activate(lease).unwrap();
        traffic.send_all(3, 0..50);
        assert_eq!(holder.receive(lease, 3, 50, IDLE), Seen::only(3, 50));
        holder.release(lease);
        holder.close(lease);
        wait_event(&scene.broker, "freed", lease);
    }
    let tries = rogue.tries();
    assert_eq!(Vec::from_iter(tries.keys().copied()), [libc::EPERM], "{tries:?}");
    let rogues = rogue.lease();
    assert_eq!(state_of(&scene.broker, rogues), Some(LeaseState::HandedOver));
    drop(rogue);
    wait_until("its queue is free", || state_of(&scene.broker, rogues).is_none());
    // No ticket is left: an orderly stop takes the lock down.
    scene.stop();
    assert_eq!(pins(&world), Vec::<String>::new());
}

/// What is in the private directory in bpffs.
fn pins(world: &World) -> Vec<String> {
    let pins = || {
        let names = std::fs::read_dir("/run/bpf/xsk-broker").unwrap();
        names
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    };
    world.run_in(Side::Host, pins).unwrap()
}

/// It is active, and the broker was killed before it had said that nothing has to confine it: the next one does.
#[test]
fn under_lsm_a_kill_just_after_it_is_active_leaves_no_ticket() {
    if let Err(skip) = lsm::is_in_force() {
        skip!(skip);
    }
    let world = World::new().unwrap();
    let mut scene = Scene::new(&world, "lsm", "64");
    scene.kill();
    scene
        .broker
        .relaunch_with("XSK_BROKER_FAIL_POINT", "activate: written down")
        .unwrap();
    scene.broker.wait_until_it_answers().unwrap();
    let mut holder = scene.holder();
    let lease = holder.acquire("eth0:3").unwrap();
    holder.bind(lease).unwrap();
    assert!(holder.activate(lease).is_err());
    assert!(!scene.broker.wait().unwrap().success());
    scene.tending.catch_up().unwrap();
    scene.broker.restart().unwrap();
    assert_eq!(state_of(&scene.broker, lease), Some(LeaseState::Active));
    holder.release(lease);
    holder.close(lease);
    wait_event(&scene.broker, "freed", lease);
    let left = |line: &String| line.contains("may still be unbound");
    assert!(!scene.broker.process().stderr().iter().any(left));
    scene.stop();
    assert_eq!(pins(&world), Vec::<String>::new());
}

/// The kernel goes on to confine it, and nobody can activate it: its holder is told, and acquires again.
#[test]
fn under_lsm_without_a_store_what_was_not_active_ends_and_its_holder_is_told() {
    if let Err(skip) = lsm::is_in_force() {
        skip!(skip);
    }
    let world = World::new().unwrap();
    let mut scene = Scene::new(&world, "lsm", "0");
    let mut holder = scene.holder();
    let [bound, unbound] = ["eth0:3", "eth0:4"].map(|target| holder.acquire(target).unwrap());
    holder.bind(bound).unwrap();
    scene.kill();
    scene.broker.restart().unwrap();
    for lease in [bound, unbound] {
        assert_eq!(wait_event(&scene.broker, "ended", lease)["reason"], "restarted");
        assert_eq!(holder.activate(lease).unwrap_err().kind, "NoSuchLease");
    }
    assert!(holder.bind(unbound).is_err());
    holder.close(bound);
    for target in ["eth0:3", "eth0:4"] {
        holder.hold_when_free(target);
    }
}
