//! Which packets arrive on a queue is the device's business: RSS, its filter of addresses, and a wire that goes down while
//! the driver takes an XDP program. The broker's view is right in each.

use std::net::UdpSocket;
use std::time::Duration;

use e2e::broker::BrokerProcess;
use e2e::echo_loop::EchoLoop;
use e2e::holder::Holder;
use e2e::nics::{NICS, Nics};
use e2e::packet_socket::PacketSocket;
use e2e::packets::{self, End, Mac};
use e2e::skip;
use e2e::skip::Skip;
use e2e::uids::Uid;
use e2e::world::{Side, World};
use xsk_client::wire::LeaseState;

use crate::lease_scene::{END, allow, leases, operator, payload, port, wait_until};
use crate::puppet::{Puppet, Seen};

const IDLE: Duration = Duration::from_secs(5);

/// Two devices, of that driver if that matters.
fn take(world: &World, driver: Option<&str>) -> Result<Nics, Skip> {
    let lacks = || {
        Skip::PlaceLacks(format!(
            "{} network devices ({NICS}): `cargo xtask vm` has",
            driver.unwrap_or("real")
        ))
    };
    if !Nics::are_there() {
        return Err(lacks());
    }
    let nics = Nics::take(world).unwrap();
    match driver.is_none_or(|driver| driver == nics.driver) {
        true => Ok(nics),
        false => Err(lacks()),
    }
}

fn policy(device: &str, uids: &[u32]) -> String {
    let rules: String = uids.iter().map(|uid| allow(*uid, "*")).collect();
    format!("[interface.{device}]\nqueue-lock = \"none\"\n{rules}")
}

/// What the XDP program has given to each queue, ascending.
fn redirected(broker: &BrokerProcess<'_>) -> Vec<u64> {
    let mut counts: Vec<_> = leases(broker)
        .iter()
        .flat_map(|lease| lease.queues.clone())
        .map(|queue| (queue.queue, queue.counters.redirected))
        .collect();
    counts.sort_unstable();
    counts.into_iter().map(|(_, count)| count).collect()
}

#[test]
fn rss_decides_who_gets_the_packets() {
    const COUNT: u32 = 500;
    let world = World::new().unwrap();
    let nics = match take(&world, Some("igb")) {
        Ok(nics) => nics,
        Err(skip) => skip!(skip),
    };
    let device = &nics.host.name;
    let [alice, bob] = [(); 2].map(|()| Uid::take().unwrap());
    let broker = BrokerProcess::start(&world, &policy(device, &[alice.number(), bob.number()])).unwrap();
    let mut holders = Vec::new();
    for (queue, uid) in [&alice, &bob].into_iter().enumerate() {
        let target = format!("{device}:{queue}");
        let holder = Holder::example(&world, Side::Host, &uid.user(), "echo", &[&target]).unwrap();
        holder.wait_active().unwrap();
        holders.push(holder);
    }
    let client = world
        .run_in(Side::PEER, || UdpSocket::bind("0.0.0.0:0"))
        .unwrap()
        .unwrap();
    let mut round = EchoLoop::new((nics.host.address, 7000).into(), COUNT);
    round.window = 16;
    for queue in [1usize, 0, 1] {
        let chosen = u32::try_from(queue).unwrap();
        world.ethtool(Side::Host).steer_all_to(device, chosen).unwrap();
        nics.wait_carriers(&world).unwrap();
        let before = redirected(&broker);
        let echoed = round.run(&client).unwrap();
        assert!(echoed.is_perfect(), "{echoed:?}");
        let after = redirected(&broker);
        assert!(
            after[queue] >= before[queue] + u64::from(COUNT),
            "{before:?} {after:?}"
        );
        // What else is on the wire goes there as well, so that the other one gets nothing at all.
        assert_eq!(after[1 - queue], before[1 - queue], "{before:?} {after:?}");
    }
}

#[test]
fn frames_for_another_address_come_to_a_promiscuous_device_only() {
    const FRAMES: u64 = 20;
    let world = World::new().unwrap();
    let nics = match take(&world, None) {
        Ok(nics) => nics,
        Err(skip) => skip!(skip),
    };
    let device = &nics.host.name;
    let alice = Uid::take().unwrap();
    let _broker = BrokerProcess::start(&world, &policy(device, &[alice.number()])).unwrap();
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let lease = holder.hold(&format!("{device}:0"));
    nics.wait_carriers(&world).unwrap();

    let packets = PacketSocket::on(&world, Side::PEER, nics.peer.index).unwrap();
    // Tagged by a queue that it is not about, so that they can be told from one another.
    let send = |mac: Mac, tag: u32, numbers: &[u64]| {
        let to = End {
            mac,
            ..nics.host.end(port(tag))
        };
        for number in numbers {
            let frame = packets::udp(nics.peer.end(9), to, &payload(tag, *number, 64));
            packets.send(&frame).unwrap();
        }
    };
    // Whatever else is on the wire comes as well, so that the end is a frame of its own.
    let mut seen = || {
        send(nics.host.mac, 0, &[END]);
        let mut seen = holder.receive(lease, 0, u64::MAX, IDLE);
        seen.strange = 0;
        seen
    };
    let numbers: Vec<u64> = (0..FRAMES).collect();
    let foreign = Mac([0x52, 0x54, 0, 0, 0, 0x77]);
    send(foreign, 5, &numbers);
    send(nics.host.mac, 1, &numbers);
    assert_eq!(seen(), Seen::only(1, FRAMES));
    world
        .netlink(Side::Host)
        .set_promiscuous(nics.host.index, true)
        .unwrap();
    // A driver may tell its device later, from a work queue (virtio_net since Linux 6.12).
    wait_until("the device is promiscuous", || {
        send(foreign, 2, &[0]);
        seen() == Seen::only(2, 1)
    });
    send(foreign, 6, &numbers);
    assert_eq!(seen(), Seen::only(6, FRAMES));
}

#[test]
fn a_device_that_resets_when_xdp_is_attached_is_granted_all_the_same() {
    let world = World::new().unwrap();
    let nics = match take(&world, Some("igb")) {
        Ok(nics) => nics,
        Err(skip) => skip!(skip),
    };
    let device = &nics.host.name;
    let alice = Uid::take().unwrap();
    let broker = BrokerProcess::start(&world, &policy(device, &[alice.number()])).unwrap();
    let link = || world.netlink(Side::Host).link(device).unwrap();
    let (before, queues) = (link(), nics.host.queues);
    let seen = || operator(&broker).list_interfaces().unwrap().interfaces.remove(0);
    assert!(seen().carrier);
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let lease = holder.hold(&format!("{device}:0"));
    // The driver takes seconds to get it back, in which the broker says why nothing arrives.
    assert!(!seen().carrier);
    nics.wait_carriers(&world).unwrap();
    // It did lose its carrier, and is the same device.
    let after = link();
    assert!(
        after.carrier_changes > before.carrier_changes,
        "{before:?} {after:?}"
    );
    assert_eq!(after.index, before.index);
    let listed = leases(&broker);
    assert_eq!((listed[0].lease, listed[0].state), (lease, LeaseState::Active));
    let interface = seen();
    assert_eq!((interface.queues, interface.held), (queues, vec![0]));
    assert!(interface.up && interface.carrier);
}
