//! What a service manager has kept by whatever names, and is not what the broker gave it: it is looked at, told of, and closed.

use std::os::fd::AsFd;

use e2e::broker::BrokerProcess;
use e2e::raw_xsk::{self, RawXsk};
use e2e::service_manager::ServiceManager;
use e2e::uids::Uid;
use e2e::world::{Side, World};
use xsk_client::wire::LeaseState;

use crate::fd_store_unbound::{OTHERS, Scene};
use crate::lease_scene::{PATIENCE, eth0, policy, state_of, wait_event, wait_until};
use crate::puppet::Puppet;

/// An AF_XDP socket, but of another network namespace: it could be retired by nobody.
#[test]
fn a_strangers_socket_by_the_right_name_is_not_believed() {
    let world = World::new().unwrap();
    let mut scene = Scene::new(&world, "placeholders", "64");
    let mut holder = scene.holder();
    let lease = holder.acquire("eth0:3").unwrap();
    scene.kill();
    let name = format!("xsk-{lease}-3");
    let strange = world
        .run_in(Side::PEER, || raw_xsk::bare_socket().unwrap())
        .unwrap();
    scene.manager.replace(&name, strange);
    scene.broker.restart().unwrap();
    scene.wait_told(&format!("{name} is not the socket of that lease"));
    assert_eq!(wait_event(&scene.broker, "ended", lease)["reason"], "restarted");
    // As without a store.
    assert_eq!(eth0(&scene.broker).tainted_by, Some(holder.pid()));
    scene.wait_kept(&[]);
    drop(holder);
    wait_until("its process has gone", || {
        eth0(&scene.broker).tainted_by.is_none()
    });
    wait_until("its queue is free", || state_of(&scene.broker, lease).is_none());
    let stderr = scene.broker.process().stderr();
    assert!(
        !stderr.iter().any(|line| line.contains("cannot retire")),
        "{stderr:?}"
    );
    scene.holder().hold_when_free("eth0:3");
}

/// So that a queue which it does not keep has a placeholder all the same.
#[test]
fn a_placeholder_is_believed_where_its_queue_is_taken() {
    let world = World::builder().peers(2).build().unwrap();
    let mut scene = Scene::new(&world, "placeholders", "64");
    let mut holder = scene.holder();
    let lease = holder.acquire("eth0:3").unwrap();
    scene.kill();
    let name = format!("placeholder-{}-5", world.device(Side::Host).index);
    assert!(scene.manager.names().contains(&name));
    // Bound, as a placeholder is; to another device's queue.
    let elsewhere = world.wire(1).host.index;
    let strange = world
        .run_in(Side::Host, || {
            let xsk = RawXsk::new(4).unwrap();
            xsk.bind_copy(elsewhere, 0).unwrap();
            xsk
        })
        .unwrap();
    scene
        .manager
        .replace(&name, strange.as_fd().try_clone_to_owned().unwrap());
    drop(strange);
    scene.broker.restart().unwrap();
    scene.wait_told(&format!("{name} was not on that queue"));
    assert_eq!(eth0(&scene.broker).placeholders, OTHERS);
    assert_eq!(state_of(&scene.broker, lease), Some(LeaseState::HandedOver));
    holder.bind(lease).unwrap();
    holder.activate(lease).unwrap();
    scene.wait_kept(&[&format!("xsk-{lease}-3")]);
}

/// What strangers have left there is removed, though the manager keeps nothing of this broker's.
#[test]
fn without_a_store_strange_fds_alone_are_asked_to_be_removed() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let manager = ServiceManager::new(&world).unwrap();
    let tending = manager.tend().unwrap();
    let strange = std::fs::File::open("/dev/null").unwrap();
    manager.pass("of-another-version", strange.into());
    let mut broker = BrokerProcess::builder()
        .service(manager.service())
        .start(&world, &policy(&[(alice.number(), "1-7")]))
        .unwrap();
    tending.wait(PATIENCE, <[String]>::is_empty).unwrap();
    // Nor is it given anything to keep.
    Puppet::start(&world, Side::Host, &alice.user()).hold("eth0:3");
    assert!(broker.stop().unwrap().success());
    tending.catch_up().unwrap();
    assert_eq!(manager.names(), Vec::<String>::new());
}

#[test]
fn what_nobody_knows_and_what_no_lease_needs_is_closed_and_told() {
    let world = World::new().unwrap();
    let mut scene = Scene::new(&world, "placeholders", "64");
    scene.kill();
    let strange = || std::fs::File::open("/dev/null").unwrap().into();
    for name in ["of-another-version", "placeholder-2-5", "xsk-77-1"] {
        scene.manager.pass(name, strange());
    }
    scene.broker.restart().unwrap();
    scene.wait_kept(&[]);
    for told in [
        "\"of-another-version\", which is nothing of this broker's",
        "placeholder-2-5, which nothing needs",
        "xsk-77-1, which nothing needs",
    ] {
        let process = scene.broker.process();
        process
            .wait_stderr(PATIENCE, |line| line.contains(told).then_some(()))
            .unwrap();
    }
}
