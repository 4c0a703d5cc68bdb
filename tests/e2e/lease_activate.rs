//! Packets go to a socket when it is seen bound to what was granted, not before, so that none is lost on the way.

use std::time::Duration;

use e2e::broker::BrokerProcess;
use e2e::uids::Uid;
use e2e::world::{Side, World};
use serde_json::json;
use xsk_client::wire::LeaseState;

use crate::lease_scene::{
    SILENCE, Traffic, allow, allow_with, interface, leases, policy, state_of, wait_event,
};
use crate::puppet::{Order, Puppet, Seen};

const IDLE: Duration = Duration::from_secs(5);

#[test]
fn activate_waits_for_the_bind() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let broker = BrokerProcess::start(&world, &policy(&[(alice.number(), "1-7")])).unwrap();
    let traffic = Traffic::new(&world);
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());

    let lease = holder.acquire("eth0:3-4").unwrap();
    let failure = holder.activate(lease).unwrap_err();
    assert_eq!(
        (failure.kind.as_str(), &failure.details["queue"]),
        ("NotBound", &json!(3))
    );
    assert!(
        failure.text.contains("bind it, then activate again"),
        "{}",
        failure.text
    );
    assert_eq!(state_of(&broker, lease), Some(LeaseState::HandedOver));

    holder.bind(lease).unwrap();
    // Any connection of the process will do.
    holder.ask(&Order::Reconnect).unwrap();
    let first = holder.activate(lease).unwrap();
    holder.ask(&Order::Reconnect).unwrap();
    assert_eq!(holder.activate(lease).unwrap(), first, "once more is fine");
    wait_event(&broker, "activated", lease);
    let activated = broker
        .audit()
        .unwrap()
        .iter()
        .filter(|line| line["event"] == "activated")
        .count();
    assert_eq!(activated, 1);
    for queue in [3, 4] {
        traffic.send_all(queue, 0..50);
        assert_eq!(holder.receive(lease, queue, 50, IDLE), Seen::only(queue, 50));
    }
}

#[test]
fn another_process_activates_nothing() {
    let world = World::new().unwrap();
    let [alice, bob] = [(); 2].map(|()| Uid::take().unwrap());
    let broker =
        BrokerProcess::start(&world, &policy(&[(alice.number(), "1-7"), (bob.number(), "1-7")])).unwrap();
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let lease = holder.acquire("eth0:3").unwrap();
    holder.bind(lease).unwrap();
    let mut failures = Vec::new();
    for user in [alice.user(), bob.user()] {
        let mut other = Puppet::start(&world, Side::Host, &user);
        failures.push(other.activate(lease).unwrap_err());
        // What there is not looks the same.
        let none = other.activate(4711).unwrap_err();
        assert_eq!(none.text.replace("4711", &lease.to_string()), failures[0].text);
    }
    assert_eq!(failures[0].kind, "NoSuchLease");
    assert_eq!(failures[0], failures[1]);
    assert_eq!(state_of(&broker, lease), Some(LeaseState::HandedOver));
    holder.activate(lease).unwrap();
}

#[test]
fn bound_elsewhere_ends_the_lease() {
    let world = World::new().unwrap();
    let [alice, bob] = [(); 2].map(|()| Uid::take().unwrap());
    let broker =
        BrokerProcess::start(&world, &policy(&[(alice.number(), "1-7"), (bob.number(), "1-7")])).unwrap();
    let traffic = Traffic::new(&world);
    let mut rogue = Puppet::start(&world, Side::Host, &alice.user());
    let lease = rogue.acquire("eth0:3").unwrap();
    let index = world.device(Side::Host).index;
    rogue
        .ask(&Order::BindTo {
            lease,
            index,
            queue: 5,
        })
        .unwrap();
    let failure = rogue.activate(lease).unwrap_err();
    assert_eq!(
        (failure.kind.as_str(), &failure.details["queue"]),
        ("BoundElsewhere", &json!(3))
    );
    let line = wait_event(&broker, "rogue-bind", lease);
    assert_eq!(
        (&line["uid"], &line["queues"]),
        (&json!(alice.number()), &json!([3]))
    );
    assert_eq!(wait_event(&broker, "ended", lease)["reason"], "rogue-bind");
    assert_eq!(rogue.activate(lease).unwrap_err().kind, "NoSuchLease");

    // The queue that it was granted is free, and of the one that it took it receives nothing.
    let mut other = Puppet::start(&world, Side::Host, &bob.user());
    other.hold("eth0:3");
    traffic.expect_at_stack(5, 0..10);
}

#[test]
fn no_packet_is_lost_on_the_way_to_the_holder() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let _broker = BrokerProcess::start(&world, &policy(&[(alice.number(), "1-7")])).unwrap();
    let traffic = Traffic::new(&world);
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    traffic.expect_at_stack(3, 0..10);
    let lease = holder.acquire("eth0:3").unwrap();
    traffic.expect_at_stack(3, 10..110);
    holder.bind(lease).unwrap();
    traffic.expect_at_stack(3, 110..210);
    holder.activate(lease).unwrap();
    traffic.send_all(3, 210..310);
    assert_eq!(holder.receive(lease, 3, 100, IDLE), Seen::only(3, 100));
    assert_eq!(traffic.stack_gets(3, SILENCE), None);
    holder.release(lease);
    traffic.expect_at_stack(3, 310..320);
}

#[test]
fn inserted_at_grant_the_queue_is_a_black_hole_until_the_bind() {
    let world = World::new().unwrap();
    let [alice, bob] = [(); 2].map(|()| Uid::take().unwrap());
    let text = interface("eth0", "")
        + &allow_with(alice.number(), "1-7", "insert = \"at-grant\"")
        + &allow(bob.number(), "1-7");
    let broker = BrokerProcess::start(&world, &text).unwrap();
    let traffic = Traffic::new(&world);
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    traffic.expect_at_stack(3, 0..10);
    let lease = holder.acquire("eth0:3").unwrap();
    traffic.send_all(3, 10..60);
    assert_eq!(traffic.stack_gets(3, SILENCE), None, "the stack gets nothing");
    let counters = leases(&broker)[0].queues[0].counters;
    assert_eq!(
        (counters.redirected, counters.dropped()),
        (50, 0),
        "and no socket counts it"
    );

    // Bound it receives without a word to the broker.
    holder.bind(lease).unwrap();
    traffic.send_all(3, 60..110);
    assert_eq!(holder.receive(lease, 3, 50, IDLE), Seen::only(3, 50));
    holder.activate(lease).unwrap();
    traffic.send_all(3, 110..160);
    assert_eq!(holder.receive(lease, 3, 50, IDLE), Seen::only(3, 50));
}
