//! What a holder's memory may be, and that frames of every length go through it both ways, hostile ones included.

use std::net::UdpSocket;
use std::time::Duration;

use e2e::broker::BrokerProcess;
use e2e::echo_loop::EchoLoop;
use e2e::holder::Holder;
use e2e::packet_socket::PacketSocket;
use e2e::packets::{self, Checksums, Mac, Parsed};
use e2e::uids::Uid;
use e2e::world::{Side, World};

use crate::lease_scene::{PATIENCE, Traffic, payload, policy, port};
use crate::puppet::{Order, Puppet, Seen};

const QUEUE: u32 = 3;
const IDLE: Duration = Duration::from_secs(5);

#[test]
fn a_umem_above_the_memlock_is_told_in_words() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let _broker = BrokerProcess::start(&world, &policy(&[(alice.number(), "1-7")])).unwrap();
    let traffic = Traffic::new(&world);
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let lease = holder.acquire("eth0:3").unwrap();
    let bind = |chunks| Order::Bind {
        lease,
        chunk_bytes: 4096,
        chunks,
    };
    let failure = holder.ask(&bind(2050)).unwrap_err();
    assert_eq!(failure.kind, "Error::MemlockTooLow");
    let words = format!(
        "a umem of 8200 KiB is above RLIMIT_MEMLOCK 8 MiB, which uid {} shares",
        alice.number()
    );
    assert!(failure.text.starts_with(&words), "{}", failure.text);
    // The lease lives on with what it has: exactly the limit is not too much.
    holder.ask(&bind(2048)).unwrap();
    holder.activate(lease).unwrap();
    traffic.send_all(QUEUE, 0..100);
    assert_eq!(holder.receive(lease, QUEUE, 100, IDLE), Seen::only(QUEUE, 100));
}

#[test]
fn frames_of_every_length_go_through_both_sizes_of_chunks() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let _broker = BrokerProcess::start(&world, &policy(&[(alice.number(), "1-7")])).unwrap();
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let peer = PacketSocket::open(&world, Side::PEER).unwrap();
    let (from, to) = (world.device(Side::PEER).end(999), world.device(Side::Host));
    for (queue, chunk_bytes) in [(3, 2048), (4, 4096)] {
        let lease = holder.acquire(&format!("eth0:{queue}")).unwrap();
        let bind = Order::Bind {
            lease,
            chunk_bytes,
            chunks: 512,
        };
        holder.ask(&bind).unwrap();
        holder.activate(lease).unwrap();
        peer.steer(queue).unwrap();

        let lengths = (60..=1514).step_by(13).chain([61, 1499, 1513, 1514]);
        let frames: Vec<Vec<u8>> = (0..)
            .zip(lengths)
            .map(|(number, length)| {
                packets::udp(from, to.end(port(queue)), &payload(queue, number, length - 42))
            })
            .collect();
        for frame in &frames {
            peer.send(frame).unwrap();
        }
        let count = u64::try_from(frames.len()).unwrap();
        let reflect = Order::Reflect {
            lease,
            queue,
            wanted: count,
            idle_ms: 5000,
        };
        let seen: Seen = serde_json::from_value(holder.ask(&reflect).unwrap()).unwrap();
        assert_eq!(seen, Seen::only(queue, count), "chunks of {chunk_bytes}");
        for frame in &frames {
            let back = peer.receive(PATIENCE).unwrap().expect("every frame comes back");
            assert_eq!((&back[..6], &back[6..12]), (&frame[6..12], &frame[..6]));
            assert_eq!(
                back[12..],
                frame[12..],
                "chunks of {chunk_bytes}, {} bytes",
                frame.len()
            );
        }
    }
}

#[test]
fn who_lost_its_sockets_by_that_releases_and_asks_again() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let _broker = BrokerProcess::start(&world, &policy(&[(alice.number(), "1-7")])).unwrap();
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let lease = holder.acquire("eth0:3").unwrap();
    let bind = Order::Bind {
        lease,
        chunk_bytes: 4096,
        chunks: 4096,
    };
    assert_eq!(holder.ask(&bind).unwrap_err().kind, "Error::MemlockTooLow");
    holder.close(lease);
    holder.release(lease);
    // It was never bound, so the kernel has nothing to let go of.
    holder.hold("eth0:3");
}

/// The echo example on queue 3, and somebody who talks to it past the peer's stack.
fn with_echo(test: impl FnOnce(&World, &PacketSocket, &mut Holder)) {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let _broker = BrokerProcess::start(&world, &policy(&[(alice.number(), "1-7")])).unwrap();
    let mut holder = Holder::example(&world, Side::Host, &alice.user(), "echo", &["eth0:3"]).unwrap();
    holder.wait_active().unwrap();
    let peer = PacketSocket::open(&world, Side::PEER).unwrap();
    peer.steer(QUEUE).unwrap();
    test(&world, &peer, &mut holder);
}

#[test]
fn the_example_answers_arp_and_echo_requests() {
    with_echo(|world, peer, _| {
        let (from, to) = (world.device(Side::PEER).end(77), world.device(Side::Host).end(0));
        peer.send(&packets::arp_request(from, to.address)).unwrap();
        let answer = peer.expect(PATIENCE, |frame| match packets::parse(frame)? {
            Parsed::Arp {
                operation: 2,
                sender,
                target,
            } => Some((sender, target)),
            _ => None,
        });
        let [a, b, c, d] = to.address.octets();
        let expected = ((Mac([2, 0, a, b, c, d]), to.address), (from.mac, from.address));
        assert_eq!(answer.unwrap(), Some(expected));

        for (sequence, bytes) in [(0, 0), (1, 56), (65535, 1472)] {
            let contents = payload(QUEUE, 1, bytes);
            peer.send(&packets::echo_request(from, to, sequence, &contents))
                .unwrap();
            let answer = peer.expect(PATIENCE, |frame| match packets::parse(frame)? {
                Parsed::Icmp {
                    kind: 0,
                    identifier,
                    sequence,
                    checksums,
                    payload,
                    ..
                } => Some((identifier, sequence, checksums, payload.to_vec())),
                _ => None,
            });
            assert_eq!(answer.unwrap(), Some((77, sequence, Checksums::Right, contents)));
        }
    });
}

#[test]
fn hostile_frames_crash_nobody() {
    with_echo(|world, peer, holder| {
        let (from, to) = (
            world.device(Side::PEER).end(77),
            world.device(Side::Host).end(port(QUEUE)),
        );
        let whole = [
            packets::udp(from, to, &payload(QUEUE, 0, 64)),
            packets::echo_request(from, to, 1, &[7; 40]),
            packets::arp_request(from, to.address),
            packets::ethernet(to.mac, from.mac, 0x86dd, &[0x60; 60]),
        ];
        let mut sent = 0;
        let mut send = |frame: &[u8]| {
            peer.send(frame).unwrap();
            sent += 1;
            // The wire holds 256 frames; let the holder see all of them.
            if sent % 128 == 0 {
                let probe = packets::echo_request(from, to, 4242, &[]);
                peer.send(&probe).unwrap();
                let seen = peer.expect(PATIENCE, |frame| match packets::parse(frame)? {
                    Parsed::Icmp {
                        kind: 0,
                        sequence: 4242,
                        ..
                    } => Some(()),
                    _ => None,
                });
                assert_eq!(seen.unwrap(), Some(()), "it answers no more after {sent} frames");
            }
        };
        for frame in &whole {
            // Cut short at every place: a sender needs an Ethernet header and nothing more.
            for length in 14..frame.len() {
                send(&frame[..length]);
            }
            // Every value of the bytes that are lengths, versions and offsets.
            for place in [12, 13, 14, 16, 17, 20, 21, 23, 34, 35, 38, 39] {
                for value in [0, 1, 0x0f, 0x40, 0x45, 0x4f, 0x7f, 0x80, 0xff] {
                    let mut garbled = frame.clone();
                    garbled[place] = value;
                    send(&garbled);
                }
            }
        }
        assert!(
            holder.wait(Duration::ZERO).is_err(),
            "{}",
            holder.process().last_words()
        );

        Traffic::new(world);
        let socket = world
            .run_in(Side::PEER, || UdpSocket::bind("0.0.0.0:0"))
            .unwrap()
            .unwrap();
        let count = EchoLoop::new((to.address, port(QUEUE)).into(), 1000)
            .run(&socket)
            .unwrap();
        assert!(count.is_perfect(), "{count:?}");
    });
}
