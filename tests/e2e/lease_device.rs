//! Devices that go, that are somebody else's, that the host needs, and that want another XDP mode.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use e2e::bpf::XdpAttach;
use e2e::broker::BrokerProcess;
use e2e::netlink::LinkState;
use e2e::queue_program::QueueProgram;
use e2e::uids::Uid;
use e2e::world::{Side, World};
use xsk_client::wire::XdpMode;

use crate::lease_scene::{
    PATIENCE, Traffic, allow, allow_with, interface, leases, policy, wait_event, wait_until,
};
use crate::puppet::{Order, Puppet, Seen};

const IDLE: Duration = Duration::from_secs(5);

/// Waits for a packet that cannot come.
fn receive(lease: u64, queue: u32) -> Order {
    Order::Receive {
        lease,
        queue,
        wanted: 1,
        idle_ms: 20_000,
    }
}

fn xdp_of(world: &World, device: &str) -> Option<u32> {
    world.netlink(Side::Host).link(device).unwrap().xdp
}

#[test]
fn a_deleted_device_takes_its_leases_along() {
    let world = World::builder().peers(2).build().unwrap();
    let alice = Uid::take().unwrap();
    let text = interface("eth0", "")
        + &interface("eth1", "")
        + &allow_with(alice.number(), "1-7", "activate-within-ms = 60000");
    let mut broker = BrokerProcess::start(&world, &text).unwrap();
    let [mut active, mut unbound, mut elsewhere] =
        [(); 3].map(|()| Puppet::start(&world, Side::Host, &alice.user()));
    let one = active.hold("eth0:3");
    let two = unbound.acquire("eth0:4").unwrap();
    let three = elsewhere.hold("eth1:3");

    world
        .netlink(Side::Host)
        .delete(world.wire(0).host.index)
        .unwrap();
    for lease in [one, two] {
        assert_eq!(wait_event(&broker, "ended", lease)["reason"], "device-gone");
    }
    let left: Vec<u64> = leases(&broker).iter().map(|lease| lease.lease).collect();
    assert_eq!(left, [three]);
    let asked = Instant::now();
    let failure = active.ask(&receive(one, 3)).unwrap_err();
    assert_eq!(failure.kind, "Error::DeviceGone", "{failure:?}");
    assert!(asked.elapsed() < PATIENCE, "it is told, not waited for");
    assert_eq!(active.activate(one).unwrap_err().kind, "NoSuchLease");
    let failure = unbound.acquire("eth0:3").unwrap_err();
    assert_eq!(failure.kind, "DeviceUnavailable", "{failure:?}");
    assert!(
        failure.text.contains("there is no interface eth0"),
        "{}",
        failure.text
    );

    // The other device serves on.
    elsewhere.activate(three).unwrap();
    unbound.hold("eth1:4");
    assert!(broker.stop().unwrap().success());
}

#[test]
fn a_device_that_comes_back_is_served_anew() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let broker = BrokerProcess::start(&world, &policy(&[(alice.number(), "1-7")])).unwrap();
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let lease = holder.hold("eth0:3");
    let index = world.device(Side::Host).index;
    world
        .netlink(Side::Host)
        .move_to(index, world.namespace(Side::PEER).net())
        .unwrap();
    assert_eq!(wait_event(&broker, "ended", lease)["reason"], "device-gone");
    let away = world.netlink(Side::PEER).link("eth0").unwrap();
    wait_until("its program is taken down", || {
        world.netlink(Side::PEER).link("eth0").unwrap().xdp.is_none()
    });
    world
        .netlink(Side::PEER)
        .move_to(away.index, world.namespace(Side::Host).net())
        .unwrap();
    let back = world.netlink(Side::Host).link("eth0").unwrap();
    world
        .netlink(Side::Host)
        .set_link(back.index, LinkState::Up)
        .unwrap();
    let mut other = Puppet::start(&world, Side::Host, &alice.user());
    other.hold("eth0:3");
    assert!(xdp_of(&world, "eth0").is_some());
}

#[test]
fn a_device_may_go_at_any_moment() {
    const ROUNDS: u32 = 25;
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let broker = BrokerProcess::start(&world, &policy(&[(alice.number(), "1-7")])).unwrap();
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let over = AtomicBool::new(false);
    let kinds = std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let mut kinds = BTreeMap::<String, u32>::new();
            while !over.load(Ordering::Relaxed) {
                let steps = holder.acquire("eth0:3-4").and_then(|lease| {
                    let done = holder.bind(lease).and_then(|_| holder.activate(lease));
                    holder.close(lease);
                    holder.release(lease);
                    done
                });
                let kind = steps.map_or_else(|failure| failure.kind, |_| "fine".to_owned());
                *kinds.entry(kind).or_default() += 1;
            }
            kinds
        });
        let [host, peer] =
            [Side::Host, Side::PEER].map(|side| (world.netlink(side), world.namespace(side).net()));
        for _ in 0..ROUNDS {
            let index = host.0.link("eth0").unwrap().index;
            host.0.move_to(index, peer.1).unwrap();
            let index = peer.0.link("eth0").unwrap().index;
            peer.0.move_to(index, host.1).unwrap();
            let index = host.0.link("eth0").unwrap().index;
            host.0.set_link(index, LinkState::Up).unwrap();
        }
        over.store(true, Ordering::Relaxed);
        asking.join().unwrap()
    });
    println!("{kinds:?}");
    // Whatever it was told, it was told why: nothing is a failure of the broker's.
    assert!(
        !kinds.contains_key("Failed"),
        "{kinds:?}, {}",
        broker.process().last_words()
    );
    wait_until("no lease is left", || leases(&broker).is_empty());
    // Nor has it left a program there, which would look like somebody else's.
    wait_until("the device is served again", || holder.acquire("eth0:3").is_ok());
}

#[test]
fn a_foreign_xdp_program_stays() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let foreign = QueueProgram::attach(&world, Side::Host, XdpAttach::Native).unwrap();
    let program = xdp_of(&world, "eth0").unwrap();
    let broker = BrokerProcess::start(&world, &policy(&[(alice.number(), "1-7")])).unwrap();
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let failure = holder.acquire("eth0:3").unwrap_err();
    assert_eq!(failure.kind, "DeviceUnavailable");
    assert!(
        failure.text.contains(&format!("XDP program {program} ")),
        "{}",
        failure.text
    );
    assert_eq!(xdp_of(&world, "eth0"), Some(program), "it is still there");
    assert!(leases(&broker).is_empty());
    drop(foreign);
    wait_until("it is detached", || xdp_of(&world, "eth0").is_none());
    holder.hold("eth0:3");
}

#[test]
fn the_program_stays_for_the_next_grant_and_goes_with_the_broker() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let mut broker = BrokerProcess::start(&world, &policy(&[(alice.number(), "1-7")])).unwrap();
    assert_eq!(xdp_of(&world, "eth0"), None, "nothing before the first grant");
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let lease = holder.hold("eth0:3");
    let program = xdp_of(&world, "eth0");
    assert!(program.is_some());
    holder.release(lease);
    holder.close(lease);
    wait_until("the lease is gone", || leases(&broker).is_empty());
    assert_eq!(xdp_of(&world, "eth0"), program);
    let lease = holder.hold("eth0:4");
    assert_eq!(xdp_of(&world, "eth0"), program);
    holder.release(lease);
    holder.close(lease);
    wait_until("the lease is gone", || leases(&broker).is_empty());
    broker.stop().unwrap();
    assert_eq!(xdp_of(&world, "eth0"), None);
}

#[test]
fn xdp_runs_where_the_policy_says() {
    let world = World::builder().peers(2).build().unwrap();
    let alice = Uid::take().unwrap();
    let rules = allow(alice.number(), "0-7");
    let text = |lo: &str| {
        interface("eth0", "xdp = \"generic\"")
            + &interface("eth1", "xdp = \"auto\"")
            + &format!("[interface.lo]\nqueue-lock = \"none\"\nxdp = \"{lo}\"\n")
            + &rules
    };
    let mut broker = BrokerProcess::start(&world, &text("auto")).unwrap();
    // Generic XDP on a veth counts queues one too low, which a fixture's test shows.
    let traffic = Traffic::with_offset(&world, 1);
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let lease = holder.hold("eth0:3");
    traffic.send_all(3, 0..100);
    assert_eq!(holder.receive(lease, 3, 100, IDLE), Seen::only(3, 100));
    traffic.expect_at_stack(4, 0..10);
    holder.hold("eth1:3");
    // The loopback's driver has no XDP.
    holder.hold("lo:0");
    let modes: Vec<XdpMode> = leases(&broker).iter().map(|lease| lease.xdp).collect();
    assert_eq!(modes, [XdpMode::Generic, XdpMode::Native, XdpMode::Generic]);
    // A program that nobody needs is not taken over where the policy wants another one.
    broker.kill().unwrap();
    drop(holder);
    broker.write_policy(&text("native")).unwrap();
    broker.restart().unwrap();
    wait_until("the leases are gone", || leases(&broker).is_empty());
    broker.kill().unwrap();
    broker.restart().unwrap();
    assert_eq!(xdp_of(&world, "lo"), None);
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let failure = holder.acquire("lo:0").unwrap_err();
    assert_eq!(failure.kind, "DeviceUnavailable");
    assert!(
        failure.text.contains("takes no native XDP program"),
        "{}",
        failure.text
    );
}

#[test]
fn an_uplink_must_be_called_one() {
    let world = World::builder().peers(4).build().unwrap();
    let alice = Uid::take().unwrap();
    let text = (0..4)
        .map(|number| {
            let uplink = if number % 2 == 1 { "uplink = true" } else { "" };
            interface(&format!("eth{number}"), uplink)
        })
        .collect::<String>()
        + &allow(alice.number(), "1-7");
    let _broker = BrokerProcess::start(&world, &text).unwrap();
    let netlink = world.netlink(Side::Host);
    for (wire, metric) in [(0, 10), (1, 20)] {
        world.add_default_route(wire, metric).unwrap();
    }
    netlink.add_bridge("br0").unwrap();
    let bridge = netlink.link("br0").unwrap().index;
    for wire in [2, 3] {
        netlink
            .set_controller(world.wire(wire).host.index, bridge)
            .unwrap();
    }

    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    for (target, why) in [
        ("eth0:3", "carries a default route"),
        ("eth2:3", "is a port of a bridge"),
    ] {
        let failure = holder.acquire(target).unwrap_err();
        assert_eq!(failure.kind, "DeviceUnavailable", "{failure:?}");
        assert!(
            failure.text.contains(why) && failure.text.contains("`uplink = true`"),
            "{}",
            failure.text
        );
    }
    assert_eq!((xdp_of(&world, "eth0"), xdp_of(&world, "eth2")), (None, None));
    holder.hold("eth1:3");
    holder.hold("eth3:3");
}
