//! A socket of kind `bound` is sealed: whatever its holder tries to change, the kernel refuses; and it goes one way only,
//! if only one was granted.

use std::time::Duration;

use e2e::broker::BrokerProcess;
use e2e::packet_socket::PacketSocket;
use e2e::packets;
use e2e::uids::Uid;
use e2e::world::{Side, World};
use rustix::io::Errno;
use rustix::net::SendFlags;
use rustix::net::xdp::{SocketAddrXdp, SocketAddrXdpFlags, SocketAddrXdpWithSharedUmem};
use xsk_client::sys::{self, BindFlags, Mapping, Prefault, Ring};
use xsk_client::wire::{BindMode, Direction, LeaseState};

use crate::bound_scene::{Acquisition, Held, digest, errno, needs_bound, policy, wish};
use crate::lease_scene::{PATIENCE, SILENCE, Traffic, payload, port, read_frame, wait_event};

/// A world, a broker, and somebody who may have queues 1 to 7.
fn with_tenant(test: impl FnOnce(&World, &BrokerProcess<'_>, &Uid)) {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let broker = BrokerProcess::start(&world, &policy(&[(alice.number(), "1-7")])).unwrap();
    test(&world, &broker, &alice);
}

#[test]
fn frames_go_both_ways_over_several_queues_and_one_umem() {
    needs_bound!();
    with_tenant(|world, broker, alice| {
        let traffic = Traffic::new(world);
        let peer = PacketSocket::open(world, Side::PEER).unwrap();
        let socket = broker.paths().socket();
        world
            .run_as(Side::Host, &alice.user(), || {
                let mut held = Held::new(&socket, &wish("eth0:3-5", Direction::RxTx));
                for queue in 3..=5 {
                    for number in 0..1000 {
                        traffic.send(queue, number);
                        let frame = held.socket(queue).receive(PATIENCE).unwrap().expect("a frame");
                        assert_eq!(read_frame(&frame), Some((queue, number)));
                        let mut back = frame.clone();
                        back[..6].copy_from_slice(&frame[6..12]);
                        back[6..12].copy_from_slice(&frame[..6]);
                        held.socket(queue).send(&back).unwrap();
                        peer.expect(PATIENCE, |seen| (seen == back).then_some(()))
                            .unwrap()
                            .expect("it is on the wire");
                    }
                }
            })
            .unwrap();
    });
}

#[test]
fn nothing_about_it_can_be_changed() {
    needs_bound!();
    with_tenant(|world, broker, alice| {
        let (socket, index) = (broker.paths().socket(), world.device(Side::Host).index);
        let traffic = Traffic::new(world);
        world
            .run_as(Side::Host, &alice.user(), || {
                for direction in [Direction::RxTx, Direction::Rx, Direction::Tx] {
                    let mut held = Held::new(&socket, &wish("eth0:3", direction));
                    let fd = held.fd(3);
                    // A second bind, wherever.
                    for queue in [3, 4, 0] {
                        let again = sys::bind(fd, index, queue, BindFlags::XDP_COPY);
                        assert_eq!(errno(again), Some(Errno::BUSY), "{direction}, queue {queue}");
                    }
                    // The umem on another queue, by itself.
                    let shared = SocketAddrXdpWithSharedUmem {
                        addr: SocketAddrXdp::new(SocketAddrXdpFlags::XDP_SHARED_UMEM, index, 4),
                        shared_umem_fd: fd,
                    };
                    assert_eq!(rustix::net::bind(fd, &shared), Err(Errno::BUSY));
                    // Another memory, and more or other rings.
                    let memory = rustix::fs::memfd_create("more", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
                    rustix::fs::ftruncate(&memory, 4096).unwrap();
                    let memory = Mapping::new(&memory, 0, 4096, Prefault::Yes).unwrap();
                    assert_eq!(errno(sys::register_umem(fd, &memory, 4096, 0)), Some(Errno::BUSY));
                    for ring in Ring::ALL {
                        for entries in [1, 2048, 1 << 20] {
                            assert_eq!(
                                errno(sys::create_ring(fd, ring, entries)),
                                Some(Errno::BUSY),
                                "{direction}, {ring} ring"
                            );
                        }
                    }
                    let confined = sys::confine_to_device(fd, index + 1);
                    assert_eq!(errno(confined), Some(Errno::PERM));
                    // A ring that it was not given cannot be mapped either.
                    for (ring, given) in [(Ring::Rx, direction.receives()), (Ring::Tx, direction.sends())] {
                        let mapped = Mapping::new(fd, ring.page_offset(), 4096, Prefault::No);
                        assert_eq!(mapped.is_ok(), given, "{direction}, {ring} ring: {mapped:?}");
                    }
                    // And it still works.
                    if direction.receives() {
                        traffic.send(3, 7);
                        let frame = held.socket(3).receive(PATIENCE).unwrap().expect("a frame");
                        assert_eq!(read_frame(&frame), Some((3, 7)));
                    }
                    held.broker.release(held.lease).unwrap();
                }
                // A socket of its own it cannot make.
                assert_eq!(errno(sys::xdp_socket()), Some(Errno::PERM));
            })
            .unwrap();
    });
}

#[test]
fn who_only_receives_cannot_send() {
    needs_bound!();
    with_tenant(|world, broker, alice| {
        let traffic = Traffic::new(world);
        let peer = PacketSocket::open(world, Side::PEER).unwrap();
        let socket = broker.paths().socket();
        world
            .run_as(Side::Host, &alice.user(), || {
                let mut held = Held::new(&socket, &wish("eth0:3", Direction::Rx));
                let lease = held.broker.list_leases().unwrap().leases.remove(0);
                assert_eq!(
                    (lease.direction, lease.state),
                    (Direction::Rx, LeaseState::Active)
                );
                // From its side.
                let frame = packets::udp(
                    world.device(Side::Host).end(1),
                    world.device(Side::PEER).end(2),
                    b"not to be",
                );
                assert!(held.socket(3).send(&frame).is_err());
                for flags in [SendFlags::DONTWAIT, SendFlags::empty()] {
                    let sent = rustix::net::send(held.fd(3), &[], flags);
                    assert!(matches!(sent, Err(Errno::NOBUFS | Errno::OPNOTSUPP)), "{sent:?}");
                }
                assert_eq!(
                    rustix::net::send(held.fd(3), &[], SendFlags::DONTWAIT),
                    Err(Errno::NOBUFS)
                );
                // It receives all the same.
                for number in 0..500 {
                    traffic.send(3, number);
                    let frame = held.socket(3).receive(PATIENCE).unwrap().expect("a frame");
                    assert_eq!(read_frame(&frame), Some((3, number)));
                }
            })
            .unwrap();
        // From the wire's: nothing came, whatever it was.
        assert_eq!(peer.receive(SILENCE).unwrap(), None);
    });
}

#[test]
fn who_only_sends_receives_nothing() {
    needs_bound!();
    const FRAMES: u64 = 500;
    with_tenant(|world, broker, alice| {
        let traffic = Traffic::new(world);
        let peer = PacketSocket::open(world, Side::PEER).unwrap();
        let socket = broker.paths().socket();
        let (from, to) = (world.device(Side::Host).end(1), world.device(Side::PEER));
        world
            .run_as(Side::Host, &alice.user(), || {
                let acquisition = Acquisition::new(&socket, &wish("eth0:3", Direction::Tx)).unwrap();
                let mut held = acquisition.hold();
                let activated = held.broker.activate(held.lease).unwrap();
                assert_eq!(activated.sockets[0].mode, BindMode::Copy);
                for number in 0..FRAMES {
                    let frame = packets::udp(from, to.end(port(3)), &payload(3, number, 64));
                    held.socket(3).send(&frame).unwrap();
                    peer.expect(PATIENCE, |seen| (seen == frame).then_some(()))
                        .unwrap()
                        .expect("it is on the wire");
                }
                // What arrives at its queue goes to the host's stack, and nowhere else.
                let before = digest(&held.memfd);
                traffic.expect_at_stack(3, 0..FRAMES);
                assert_eq!(digest(&held.memfd), before, "its memory has changed");
                assert!(held.socket(3).receive(Duration::ZERO).is_err());
                let mut byte = [0];
                let received = rustix::net::recv(held.fd(3), &mut byte, rustix::net::RecvFlags::DONTWAIT);
                assert_eq!(received.map(|(bytes, _)| bytes), Err(Errno::NOBUFS));
                let counters = held.broker.list_leases().unwrap().leases[0].queues[0].counters;
                assert_eq!((counters.redirected, counters.rx_dropped), (0, 0));
            })
            .unwrap();
    });
}

#[test]
fn an_ended_lease_gets_its_queue_back() {
    needs_bound!();
    with_tenant(|world, broker, alice| {
        let socket = broker.paths().socket();
        world
            .run_as(Side::Host, &alice.user(), || {
                let mut held = Held::new(&socket, &wish("eth0:3-4", Direction::RxTx));
                let lease = held.lease;
                held.broker.release(lease).unwrap();
                // Its sockets are bound to the queues, as long as it keeps them.
                assert_eq!(
                    held.broker.list_leases().unwrap().leases[0].state,
                    LeaseState::Lingering
                );
                drop(held);
                wait_event(broker, "freed", lease);
                drop(Held::new(&socket, &wish("eth0:4-5", Direction::Rx)));
            })
            .unwrap();
    });
}
