//! Two holders share a device and see nothing of each other, nor of the host.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use e2e::broker::BrokerProcess;
use e2e::packet_socket::PacketSocket;
use e2e::packets;
use e2e::uids::Uid;
use e2e::world::{Side, World};
use serde_json::json;

use crate::lease_scene::{Traffic, allow, interface, payload, policy, port};
use crate::puppet::{Order, Puppet, Seen};

const IDLE: Duration = Duration::from_secs(5);

#[test]
fn holders_see_their_own_queue_only() {
    const FRAMES: u64 = 20_000;
    let world = World::new().unwrap();
    let [alice, bob] = [(); 2].map(|()| Uid::take().unwrap());
    let _broker =
        BrokerProcess::start(&world, &policy(&[(alice.number(), "3"), (bob.number(), "4")])).unwrap();
    let traffic = Traffic::new(&world);
    let mut holders = [(3, &alice), (4, &bob)].map(|(queue, uid)| {
        let mut puppet = Puppet::start(&world, Side::Host, &uid.user());
        let lease = puppet.hold(&format!("eth0:{queue}"));
        (queue, lease, puppet)
    });
    let senders = [3, 4].map(|_| PacketSocket::open(&world, Side::PEER).unwrap());
    let (from, to) = (world.device(Side::PEER).end(999), world.device(Side::Host));
    let over = AtomicBool::new(false);

    let seen = std::thread::scope(|scope| {
        for ((queue, ..), sender) in holders.iter().zip(&senders) {
            let (queue, over) = (*queue, &over);
            scope.spawn(move || {
                let mut number = 0;
                while !over.load(Ordering::Relaxed) {
                    let frame = packets::udp(from, to.end(port(queue)), &payload(queue, number, 64));
                    match sender.send(&frame) {
                        // At full rate the wire overflows; what is lost there was never sent.
                        Err(error) if error.raw_os_error() != Some(105) => panic!("{error}"),
                        _ => number += 1,
                    }
                }
            });
        }
        let receivers = holders
            .each_mut()
            .map(|(queue, lease, puppet)| scope.spawn(move || puppet.receive(*lease, *queue, FRAMES, IDLE)));
        // Meanwhile the reserved queue is the host's.
        traffic.expect_at_stack(0, 0..50);
        traffic.expect_at_stack(1, 0..50);
        let seen = receivers.map(|receiver| receiver.join().unwrap());
        over.store(true, Ordering::Relaxed);
        seen
    });
    for (queue, seen) in [3, 4].into_iter().zip(seen) {
        assert_eq!((seen.doubled, seen.strange), (0, 0));
        assert_eq!(Vec::from_iter(seen.frames.keys().copied()), [queue], "{seen:?}");
        assert!(seen.frames[&queue] >= FRAMES);
    }
}

#[test]
fn a_holder_is_confined_to_its_device() {
    const EINVAL: i32 = 22;
    let world = World::builder().peers(2).build().unwrap();
    let alice = Uid::take().unwrap();
    let text = interface("eth0", "") + &interface("eth1", "") + &allow(alice.number(), "1-7");
    let _broker = BrokerProcess::start(&world, &text).unwrap();
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let lease = holder.acquire("eth0:3").unwrap();
    let index = world.wire(1).host.index;
    let failure = holder
        .ask(&Order::BindTo {
            lease,
            index,
            queue: 3,
        })
        .unwrap_err();
    assert_eq!(failure.details, json!(EINVAL), "{failure:?}");
    // It is as good as before for its own.
    let index = world.wire(0).host.index;
    holder
        .ask(&Order::BindTo {
            lease,
            index,
            queue: 3,
        })
        .unwrap();
    holder.activate(lease).unwrap();
}

#[test]
fn a_holder_may_be_in_another_network_namespace() {
    let world = World::builder().peers(2).build().unwrap();
    let alice = Uid::take().unwrap();
    let _broker = BrokerProcess::start(&world, &policy(&[(alice.number(), "1-7")])).unwrap();
    let traffic = Traffic::new(&world);
    let mut holder = Puppet::start(&world, Side::Peer(1), &alice.user());
    let lease = holder.hold("eth0:3");
    traffic.send_all(3, 0..100);
    assert_eq!(holder.receive(lease, 3, 100, IDLE), Seen::only(3, 100));
}
