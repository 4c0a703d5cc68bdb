//! What happens to a device happens to its leases in one defined way, which `list` and `Monitor` show.

use std::time::Duration;

use e2e::broker::{BrokerProcess, start_cli};
use e2e::netlink::{LinkState as Set, Netlink};
use e2e::uids::Uid;
use e2e::world::{Side, World};
use xsk_client::Monitor;
use xsk_client::wire::{Change, EndReason, Lease, LeaseEvent, LeaseState};

use crate::lease_monitor::{event, operators};
use crate::lease_scene::{Traffic, allow, interface, leases, policy, state_of, wait_event, wait_until};
use crate::puppet::{Puppet, Seen};

const IDLE: Duration = Duration::from_secs(5);

struct Scene {
    world: World,
    alice: Uid,
}

impl Scene {
    fn new() -> Self {
        Self {
            world: World::new().unwrap(),
            alice: Uid::take().unwrap(),
        }
    }

    fn broker(&self) -> BrokerProcess<'_> {
        BrokerProcess::start(&self.world, &policy(&[(self.alice.number(), "1-7")])).unwrap()
    }

    fn holder(&self) -> Puppet {
        Puppet::start(&self.world, Side::Host, &self.alice.user())
    }

    fn netlink(&self) -> &Netlink {
        self.world.netlink(Side::Host)
    }

    fn index(&self) -> u32 {
        self.world.device(Side::Host).index
    }
}

/// The event of a device that is so; others of that kind may come before it.
fn device_event(monitor: &mut Monitor, so: impl Fn(&LeaseEvent) -> bool) -> LeaseEvent {
    loop {
        let event = event(monitor);
        assert_eq!(event.change, Change::Device, "{event:?}");
        if so(&event) {
            return event;
        }
    }
}

fn only(broker: &BrokerProcess<'_>) -> Lease {
    let mut leases = leases(broker);
    assert_eq!(leases.len(), 1, "{leases:?}");
    leases.remove(0)
}

#[test]
fn down_and_up_again_the_lease_goes_on() {
    let scene = Scene::new();
    let broker = scene.broker();
    let traffic = Traffic::new(&scene.world);
    let mut holder = scene.holder();
    let lease = holder.hold("eth0:3");
    let (mut monitor, _) = operators(&broker);
    assert!(only(&broker).up);

    scene.netlink().set_link(scene.index(), Set::Down).unwrap();
    let down = device_event(&mut monitor, |event| !event.up);
    assert_eq!((down.lease, down.state), (lease, LeaseState::Active));
    assert!(!only(&broker).up);
    scene.netlink().set_link(scene.index(), Set::Up).unwrap();
    assert_eq!(device_event(&mut monitor, |event| event.up).lease, lease);
    assert!(only(&broker).up);
    // Setting it down took its neighbours along, which are the fixture's matter: the peer has its own still.
    traffic.send_all(3, 0..100);
    assert_eq!(holder.receive(lease, 3, 100, IDLE), Seen::only(3, 100));
    assert_eq!(state_of(&broker, lease), Some(LeaseState::Active));
}

/// As a driver does that resets its device, or a cable that is pulled: a veth loses its carrier when its peer is set down.
#[test]
fn without_a_carrier_the_lease_goes_on_and_says_so() {
    let scene = Scene::new();
    let broker = scene.broker();
    let traffic = Traffic::new(&scene.world);
    let mut holder = scene.holder();
    let lease = holder.hold("eth0:3");
    let (mut monitor, _) = operators(&broker);
    let said = |verb| broker.cli(&[verb]).unwrap().stdout;
    assert!(only(&broker).carrier);
    assert!(!said("list").contains("carrier"));

    let peer = scene.world.device(Side::PEER).index;
    let wire = scene.world.netlink(Side::PEER);
    wire.set_link(peer, Set::Down).unwrap();
    let lost = device_event(&mut monitor, |event| !event.carrier);
    assert_eq!(
        (lost.lease, lost.state, lost.up),
        (lease, LeaseState::Active, true)
    );
    assert!(!only(&broker).carrier);
    assert!(said("list").contains("eth0: no carrier, so that nothing arrives"));
    assert!(said("status").contains("no carrier"));
    wire.set_link(peer, Set::Up).unwrap();
    assert_eq!(device_event(&mut monitor, |event| event.carrier).lease, lease);
    assert!(only(&broker).carrier);
    traffic.send_all(3, 0..100);
    assert_eq!(holder.receive(lease, 3, 100, IDLE), Seen::only(3, 100));
}

#[test]
fn renamed_the_lease_goes_on_under_the_new_name() {
    let scene = Scene::new();
    // The new name is another device to the policy: one that this rule's queues are not reserved on.
    let text = interface("eth0", "") + &interface("wan0", "") + &allow(scene.alice.number(), "1-7");
    let broker = BrokerProcess::start(&scene.world, &text).unwrap();
    let traffic = Traffic::new(&scene.world);
    let mut holder = scene.holder();
    let lease = holder.hold("eth0:3");
    let (mut monitor, _) = operators(&broker);
    let people = start_cli(&scene.world, None, &["monitor"]).unwrap();
    let begun = |line: &str| line.contains(" eth0:3 active").then_some(());
    people.wait_stdout(IDLE, begun).unwrap();
    scene.netlink().rename(scene.index(), "wan0").unwrap();
    let renamed = device_event(&mut monitor, |event| {
        event.up && event.interface.as_str() == "wan0"
    });
    assert_eq!((renamed.lease, renamed.state), (lease, LeaseState::Active));
    let words = format!("lease {lease} wan0:3 device: renamed from eth0 to wan0, down, MTU ");
    let told = |line: &str| line.starts_with(&words).then_some(());
    people.wait_stdout(IDLE, told).unwrap();
    assert_eq!(only(&broker).interface.as_str(), "wan0");
    traffic.send_all(3, 0..100);
    assert_eq!(holder.receive(lease, 3, 100, IDLE), Seen::only(3, 100));

    // What is asked for from now on goes by the new name, to the same program and the same book of queues.
    assert_eq!(holder.acquire("eth0:4").unwrap_err().kind, "DeviceUnavailable");
    assert_eq!(holder.acquire("wan0:3").unwrap_err().kind, "QueueBusy");
    let second = holder.hold("wan0:4");
    traffic.send_all(4, 0..100);
    assert_eq!(holder.receive(second, 4, 100, IDLE), Seen::only(4, 100));
    holder.release(lease);
    assert_eq!(wait_event(&broker, "ended", lease)["interface"], "wan0");
}

#[test]
fn another_mtu_is_shown() {
    let scene = Scene::new();
    let broker = scene.broker();
    let mut holder = scene.holder();
    let lease = holder.hold("eth0:3");
    let (mut monitor, _) = operators(&broker);
    assert_eq!(only(&broker).mtu, 1500);
    scene.netlink().set_mtu(scene.index(), 1400).unwrap();
    let changed = device_event(&mut monitor, |event| event.mtu == 1400);
    assert_eq!(
        (changed.lease, changed.state, changed.up),
        (lease, LeaseState::Active, true)
    );
    assert_eq!(only(&broker).mtu, 1400);
    let said = broker.cli(&["status"]).unwrap();
    assert_eq!(said.code, Some(0), "{said:?}");
}

#[test]
fn fewer_queues_end_what_is_not_bound_and_the_kernel_keeps_what_is() {
    let scene = Scene::new();
    let broker = scene.broker();
    let (mut bound, mut unbound) = (scene.holder(), scene.holder());
    let kept = bound.hold("eth0:3");
    let lost = unbound.acquire("eth0:6").unwrap();
    let (mut monitor, _) = operators(&broker);
    scene.world.set_queues(0, 5).unwrap();
    let ended = event(&mut monitor);
    assert_eq!((ended.lease, ended.state), (lost, LeaseState::Freed), "{ended:?}");
    assert_eq!(ended.reason, Some(EndReason::QueueGone));
    assert_eq!(wait_event(&broker, "ended", lost)["reason"], "queue-gone");
    assert_eq!(unbound.acquire("eth0:6").unwrap_err().kind, "NoSuchQueue");

    // ethnl_set_channels (net/ethtool/channels.c) refuses what would take a bound socket's queue.
    scene.world.set_queues(0, 2).unwrap_err();
    assert_eq!(state_of(&broker, kept), Some(LeaseState::Active));
    // More can be had at once.
    scene.world.set_queues(0, 8).unwrap();
    unbound.hold("eth0:6");
}

#[test]
fn gone_the_lease_is_over_and_nothing_of_it_can_send() {
    let scene = Scene::new();
    let broker = scene.broker();
    let mut holder = scene.holder();
    let lease = holder.hold("eth0:3");
    let (mut monitor, _) = operators(&broker);
    let away = scene.world.namespace(Side::PEER).net();
    scene.netlink().move_to(scene.index(), away).unwrap();
    let freed = loop {
        let event = event(&mut monitor);
        if event.state == LeaseState::Freed {
            break event;
        }
    };
    assert_eq!((freed.lease, freed.reason), (lease, Some(EndReason::DeviceGone)));
    assert!(freed.rx_stopped && !freed.tx_may_continue, "{freed:?}");
    wait_until("it is not listed", || leases(&broker).is_empty());
}
