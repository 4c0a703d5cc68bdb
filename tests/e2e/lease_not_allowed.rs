//! Whether the policy in force would give a lease is told as it is now: when its device has another name, becomes an
//! uplink, when its socket is bound, and when the policy is put back; by `list`, by `Monitor` and in the audit log alike.

use e2e::broker::BrokerProcess;
use e2e::netlink::LinkState as Set;
use e2e::uids::Uid;
use e2e::world::{Side, World};
use serde_json::Value;
use xsk_client::Monitor;
use xsk_client::wire::{Change, EndReason, LeaseEvent, LeaseState};

use crate::lease_monitor::{event, operators};
use crate::lease_scene::{
    PATIENCE, allow, allow_with, eth0, interface, leases, policy, wait_event, wait_until,
};
use crate::puppet::Puppet;
use crate::reload::{find, reload, reloaded};

/// The next event about the policy; those of the device may come before it.
fn policy_event(monitor: &mut Monitor) -> LeaseEvent {
    loop {
        let event = event(monitor);
        if event.change == Change::Policy {
            return event;
        }
        assert_eq!(event.change, Change::Device, "{event:?}");
    }
}

/// What an operator hears by each of the three ways, which is the same; `None`: that it is given again.
fn told(broker: &BrokerProcess<'_>, monitor: &mut Monitor, lease: u64) -> Option<String> {
    let event = policy_event(monitor);
    assert_eq!(event.lease, lease);
    assert_eq!(find(broker, lease).not_allowed, event.not_allowed);
    let why = event.not_allowed.as_deref();
    let word = why.map_or("allowed-again", |_| "not-allowed");
    let wanted =
        |line: &Value| line["event"] == word && line["lease"] == lease && line["message"].as_str() == why;
    broker.wait_audit(PATIENCE, wanted).unwrap();
    event.not_allowed
}

fn rename(world: &World, name: &str) {
    let index = world.device(Side::Host).index;
    world.netlink(Side::Host).rename(index, name).unwrap();
}

#[test]
fn a_device_that_is_renamed_is_another_one_to_the_policy() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    // wan0 is a device of this policy as well, whose queue 3 is the host's.
    let text = interface("eth0", "")
        + &interface("wan0", "").replace("\"0\"", "\"0,3\"")
        + &allow(alice.number(), "1-7");
    let broker = BrokerProcess::start(&world, &text).unwrap();
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let lease = holder.hold("eth0:3");
    let (mut monitor, _) = operators(&broker);

    rename(&world, "wan0");
    let why = told(&broker, &mut monitor, lease).unwrap();
    assert!(why.contains("reserved") && why.contains("wan0"), "{why}");
    rename(&world, "eth0");
    assert_eq!(told(&broker, &mut monitor, lease), None);
    // To one that the policy does not know: nothing more is granted there.
    rename(&world, "lan0");
    let why = told(&broker, &mut monitor, lease).unwrap();
    assert!(why.contains("lan0"), "{why}");
}

#[test]
fn a_device_that_becomes_an_uplink_says_so_until_it_is_none() {
    let world = World::builder().peers(2).build().unwrap();
    let alice = Uid::take().unwrap();
    let text = interface("eth0", "") + &interface("eth1", "") + &allow(alice.number(), "1-7");
    let broker = BrokerProcess::start(&world, &text).unwrap();
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let lease = holder.hold("eth0:3");
    // Of nobody any more: its program has nobody to go on for.
    let unused = holder.hold("eth1:3");
    holder.release(unused);
    holder.close(unused);
    wait_event(&broker, "freed", unused);
    let (mut monitor, seen) = operators(&broker);
    assert_eq!(seen, 1);
    let netlink = world.netlink(Side::Host);

    for (wire, metric) in [(0, 10), (1, 20)] {
        world.add_default_route(wire, metric).unwrap();
    }
    let why = told(&broker, &mut monitor, lease).unwrap();
    assert!(why.contains("eth0: it carries a default route"), "{why}");
    assert!(eth0(&broker).misfit.is_some());
    let detached = |line: &Value| line["event"] == "detached" && line["interface"] == "eth1";
    broker.wait_audit(PATIENCE, detached).unwrap();
    assert_eq!(holder.acquire("eth0:4").unwrap_err().kind, "DeviceUnavailable");
    // With the device go its routes, of which the kernel says nothing.
    let index = world.device(Side::Host).index;
    netlink.set_link(index, Set::Down).unwrap();
    assert_eq!(told(&broker, &mut monitor, lease), None);
    netlink.set_link(index, Set::Up).unwrap();

    // A port of a bridge, and none any more.
    netlink.add_bridge("br0").unwrap();
    let bridge = netlink.link("br0").unwrap().index;
    netlink.set_controller(index, bridge).unwrap();
    let why = told(&broker, &mut monitor, lease).unwrap();
    assert!(why.contains("port of a bridge"), "{why}");
    netlink.set_controller(index, 0).unwrap();
    assert_eq!(told(&broker, &mut monitor, lease), None);
    assert_eq!(eth0(&broker).misfit, None);
    holder.hold("eth0:4");
}

#[test]
fn bound_it_is_what_a_stricter_lock_would_give() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let text = interface("eth0", "") + &allow_with(alice.number(), "1-7", "activate-within-ms = 60000");
    let broker = BrokerProcess::start(&world, &text).unwrap();
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let lease = holder.acquire("eth0:4").unwrap();
    let (mut monitor, _) = operators(&broker);
    reloaded(
        &broker,
        &text.replace("queue-lock = \"none\"", "queue-lock = \"placeholders\""),
    );
    let why = told(&broker, &mut monitor, lease).unwrap();
    assert!(why.contains("left unbound under queue-lock none"), "{why}");
    holder.bind(lease).unwrap();
    holder.activate(lease).unwrap();
    assert_eq!(event(&mut monitor).change, Change::State);
    assert_eq!(told(&broker, &mut monitor, lease), None);
}

#[test]
fn put_back_a_policy_has_nothing_against_what_it_has_ended() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let (open, closed) = (policy(&[(alice.number(), "1-7")]), interface("eth0", ""));
    let broker = BrokerProcess::start(&world, &open).unwrap();
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let lease = holder.hold("eth0:3");
    let output = reload(&broker, &closed, &["--revoke"]);
    assert_eq!(output.code, Some(75), "{output:?}");
    let stands = find(&broker, lease);
    assert_eq!(stands.state, LeaseState::Lingering);
    assert!(stands.not_allowed.is_some());

    let (mut monitor, _) = operators(&broker);
    reloaded(&broker, &open);
    assert_eq!(told(&broker, &mut monitor, lease), None);
    let stands = find(&broker, lease);
    assert_eq!(stands.ended.unwrap().reason, EndReason::NotAllowed);
    // Nor is there anything to tell of it.
    let output = broker.cli(&["reload", "--revoke"]).unwrap();
    assert_eq!(output.code, Some(0), "{output:?}");
    assert!(!output.stdout.contains(&format!("lease {lease}")), "{output:?}");
    // By the former one there is.
    let output = reload(&broker, &closed, &["--revoke"]);
    assert_eq!(output.code, Some(75), "{output:?}");
    assert!(told(&broker, &mut monitor, lease).is_some());
    holder.close(lease);
    wait_until("its queue is free", || leases(&broker).is_empty());
}
