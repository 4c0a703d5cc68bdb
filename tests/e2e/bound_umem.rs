//! The memory of a lease of kind `bound`: the broker makes it, the holder touches and pays for it, and what a holder does
//! to it hurts nobody else.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use e2e::broker::BrokerProcess;
use e2e::holder::Holder;
use e2e::memory_cgroup::MemoryCgroup;
use e2e::packet_socket::PacketSocket;
use e2e::packets;
use e2e::raw_xsk::CHUNK_BYTES;
use e2e::skip;
use e2e::skip::Skip;
use e2e::uids::{Uid, User};
use e2e::world::{Side, World};
use rustix::fs::{FallocateFlags, SealFlags, fallocate, fcntl_add_seals, fcntl_get_seals, ftruncate};
use rustix::io::Errno;
use xsk_client::sys::{Mapping, Prefault};
use xsk_client::wire::{Acquire, BrokerError, DEFAULT_SOCKET, Direction, ModeWish, SocketKind, UmemShape};

use crate::bound_scene::{Acquisition, CHUNKS, Held, allow, needs_bound, policy, refusal, wish};
use crate::lease_scene::{
    PATIENCE, Traffic, interface, operator, payload, port, read_frame, wait_event, wait_until,
};

fn punch(memfd: impl AsFd, offset: u64, length: u64) -> Result<(), Errno> {
    fallocate(
        memfd,
        FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        offset,
        length,
    )
}

/// What the broker's own process has in memory (`RssShmem`, `RssAnon`), in bytes.
fn resident_bytes(broker: &BrokerProcess<'_>) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", broker.process().pid())).unwrap();
    let kib = |line: &str| -> u64 { line.split_whitespace().nth(1).unwrap().parse().unwrap() };
    let parts = status
        .lines()
        .filter(|line| line.starts_with("RssAnon:") || line.starts_with("RssShmem:"));
    parts.map(kib).sum::<u64>() * 1024
}

#[test]
fn a_sparse_umem_is_refused_until_it_is_whole() {
    needs_bound!();
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let broker = BrokerProcess::start(&world, &policy(&[(alice.number(), "1-7")])).unwrap();
    let socket = broker.paths().socket();
    world
        .run_as(Side::Host, &alice.user(), || {
            let mut acquisition = Acquisition::new(&socket, &wish("eth0:3", Direction::RxTx)).unwrap();
            let bytes = acquisition.bytes();
            let populated =
                |acquisition: &mut Acquisition, bytes_expected: usize| match refusal(acquisition.bind()) {
                    BrokerError::UmemNotPopulated {
                        populated_bytes,
                        umem_bytes,
                        ..
                    } => {
                        assert_eq!(usize::try_from(populated_bytes).unwrap(), bytes_expected);
                        assert_eq!(usize::try_from(umem_bytes).unwrap(), bytes);
                    }
                    other => panic!("{other}"),
                };
            populated(&mut acquisition, 0);
            // Mapped is not touched; half is not all.
            let lazy = Mapping::new(&acquisition.memfd, 0, bytes, Prefault::No).unwrap();
            populated(&mut acquisition, 0);
            drop(Mapping::new(&acquisition.memfd, 0, bytes / 2, Prefault::Yes).unwrap());
            populated(&mut acquisition, bytes / 2);
            drop(lazy);
            // One page short.
            drop(acquisition.populate());
            punch(&acquisition.memfd, 4096, 4096).unwrap();
            populated(&mut acquisition, bytes - 4096);
            // The lease has lived on.
            let mut held = acquisition.hold();
            held.broker.activate(held.lease).unwrap();
        })
        .unwrap();
}

#[test]
fn its_length_is_for_good_and_holes_hurt_its_holder_only() {
    needs_bound!();
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let broker = BrokerProcess::start(&world, &policy(&[(alice.number(), "1-7")])).unwrap();
    let traffic = Traffic::new(&world);
    let socket = broker.paths().socket();
    world
        .run_as(Side::Host, &alice.user(), || {
            let acquisition = Acquisition::new(&socket, &wish("eth0:3", Direction::RxTx)).unwrap();
            let bytes = u64::try_from(acquisition.bytes()).unwrap();
            let sealed = SealFlags::SHRINK | SealFlags::GROW;
            assert!(fcntl_get_seals(&acquisition.memfd).unwrap().contains(sealed));
            let resize = |memfd: &std::os::fd::OwnedFd| {
                for length in [0, 4096, bytes - 1, bytes + 1, bytes * 2] {
                    assert_eq!(ftruncate(memfd, length), Err(Errno::PERM), "{length}");
                }
            };
            resize(&acquisition.memfd);
            let mut held = acquisition.hold();
            resize(&held.memfd);
            held.broker.activate(held.lease).unwrap();

            // Every page is taken out of the file; the kernel keeps those that it has pinned, and frames that come are
            // written there: lost to its holder, if it maps anew, and to nobody else.
            punch(&held.memfd, 0, bytes).unwrap();
            traffic.send(3, 1);
            let frame = held.socket(3).receive(PATIENCE).unwrap().expect("a descriptor");
            assert_eq!(read_frame(&frame), None, "an empty page is in its place");
            // More seals are its own affair, too.
            fcntl_add_seals(&held.memfd, SealFlags::FUTURE_WRITE | SealFlags::SEAL).unwrap();
            held.broker.release(held.lease).unwrap();
            let lease = held.lease;
            drop(held);
            wait_event(&broker, "freed", lease);
            // And the broker goes on.
            let mut held = Held::new(&socket, &wish("eth0:3", Direction::RxTx));
            traffic.send(3, 2);
            let frame = held.socket(3).receive(PATIENCE).unwrap().expect("a frame");
            assert_eq!(read_frame(&frame), Some((3, 2)));
        })
        .unwrap();
}

/// Holes are punched as fast as a thread can, while the broker looks at the memory and registers it. That the kernel fills
/// none of them in the broker's name is a test of its own, beside the guard that keeps it from that.
#[test]
fn a_hole_that_is_punched_in_the_middle_is_told_and_harms_nobody() {
    needs_bound!();
    const ROUNDS: u32 = 200;
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let broker = BrokerProcess::start(&world, &policy(&[(alice.number(), "1-7")])).unwrap();
    let socket = broker.paths().socket();
    let (refused, bound) = (AtomicU64::new(0), AtomicU64::new(0));
    world
        .run_as(Side::Host, &alice.user(), || {
            for _ in 0..ROUNDS {
                let mut acquisition = Acquisition::when_free(&socket, &wish("eth0:3", Direction::Rx));
                let memory = acquisition.populate();
                let over = AtomicBool::new(false);
                let memfd = acquisition.memfd.try_clone().unwrap();
                std::thread::scope(|scope| {
                    scope.spawn(|| {
                        // The last page, again and again: there, and gone.
                        let last = u64::try_from(memory.len()).unwrap() - 4096;
                        while !over.load(Ordering::Relaxed) {
                            punch(&memfd, last, 4096).unwrap();
                            rustix::io::pwrite(&memfd, b"x", last).unwrap();
                        }
                    });
                    let result = acquisition.bind();
                    // Before anything is asserted: the thread goes on until then.
                    over.store(true, Ordering::Relaxed);
                    match result {
                        Ok(_) => bound.fetch_add(1, Ordering::Relaxed),
                        refused_bind => {
                            let reason = refusal(refused_bind);
                            assert!(matches!(reason, BrokerError::UmemNotPopulated { .. }), "{reason}");
                            refused.fetch_add(1, Ordering::Relaxed)
                        }
                    };
                });
                let lease = acquisition.acquired.lease;
                acquisition.broker.release(lease).unwrap();
            }
        })
        .unwrap();
    let (refused, bound) = (refused.into_inner(), bound.into_inner());
    assert_eq!(refused + bound, u64::from(ROUNDS));
    assert!(refused > 0, "no hole was ever met");
    println!("{refused} of {ROUNDS} rounds met a hole");
}

#[test]
fn a_memlock_of_nothing_is_enough() {
    needs_bound!();
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let broker = BrokerProcess::start(&world, &policy(&[(alice.number(), "1-7")])).unwrap();
    let peer = PacketSocket::open(&world, Side::PEER).unwrap();
    peer.steer(3).unwrap();
    // Four times what Linux gives by default.
    let user = alice.user().memlock_bytes(0);
    let holder = reflector(&world, &user, 32 << 20, "");
    assert_eq!(holder.wait_line("memlock", PATIENCE).unwrap(), "memlock 0");
    holder.wait_active().unwrap();
    let frame = frame_for(&world, 3);
    for _ in 0..100 {
        peer.send(&frame).unwrap();
        peer.expect(PATIENCE, |seen| (seen[6..12] == frame[..6]).then_some(()))
            .unwrap()
            .expect("it is on the wire");
    }
    drop(broker);
}

/// Whoever touches a page first pays for it: the holder does, the broker never.
#[test]
fn its_holders_cgroup_pays() {
    needs_bound!();
    const BYTES: u64 = 32 << 20;
    const SLACK: u64 = 4 << 20;
    let groups = ["holder", "broker"].map(|name| MemoryCgroup::new(name).unwrap());
    let [Ok(of_holder), Ok(of_broker)] = groups else {
        skip!(Skip::PlaceLacks(
            "memory controller under /sys/fs/cgroup".to_owned()
        ));
    };
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let broker = BrokerProcess::start(&world, &policy(&[(alice.number(), "1-7")])).unwrap();
    of_broker.add(broker.process().pid()).unwrap();
    let before = of_broker.usage_bytes().unwrap();
    let resident = resident_bytes(&broker);

    let mut holder = reflector(&world, &alice.user(), BYTES, of_holder.name());
    of_holder.add(holder.pid()).unwrap();
    let lease: u64 = holder
        .wait_active()
        .unwrap()
        .rsplit(' ')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    let of_holder_now = of_holder.usage_bytes().unwrap();
    assert!(of_holder_now >= BYTES, "{of_holder_now} bytes");
    let of_broker_now = of_broker.usage_bytes().unwrap();
    assert!(
        of_broker_now < before + SLACK,
        "{before}, then {of_broker_now} bytes"
    );
    assert!(resident_bytes(&broker) < resident + SLACK);

    holder.kill().unwrap();
    wait_event(&broker, "freed", lease);
    wait_until("the memory is given back", || {
        of_holder.usage_bytes().unwrap() < SLACK
    });
}

/// A holder of queue 3 that sends everything back, with a umem of so many bytes. It touches none of it before it is in the
/// memory cgroup of that name.
fn reflector(world: &World, user: &User, umem_bytes: u64, cgroup: &str) -> Holder {
    let arguments = [&umem_bytes.to_string(), cgroup];
    Holder::body(world, Side::Host, user, "reflect_as_bound", &arguments).unwrap()
}

/// The body of a [`reflector`].
pub(crate) fn reflect_as_bound(arguments: &[String]) {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
    println!(
        "memlock {}",
        limit.map_or("unlimited".to_owned(), |bytes| bytes.to_string())
    );
    let umem_bytes: u32 = arguments[0].parse().unwrap();
    let wish = Acquire {
        umem: Some(UmemShape {
            chunk_bytes: 4096,
            chunks: umem_bytes / 4096,
            ..UmemShape::default()
        }),
        ..wish("eth0:3", Direction::RxTx)
    };
    let acquisition = Acquisition::new(Path::new(DEFAULT_SOCKET), &wish).unwrap();
    wait_until("it is in its cgroup", || {
        let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        groups.contains(&arguments[1])
    });
    let mut held = acquisition.hold();
    held.broker.activate(held.lease).unwrap();
    println!("active lease {}", held.lease);
    loop {
        if let Some(mut frame) = held.socket(3).receive(PATIENCE).unwrap() {
            let (to, from) = frame.split_at_mut(6);
            to.swap_with_slice(&mut from[..6]);
            held.socket(3).send(&frame).unwrap();
        }
    }
}

fn frame_for(world: &World, queue: u32) -> Vec<u8> {
    let (from, to) = (
        world.device(Side::PEER).end(1),
        world.device(Side::Host).end(port(queue)),
    );
    packets::udp(from, to, &payload(queue, 1, 64))
}

#[test]
fn umem_bytes_are_counted_for_each_uid_and_rule() {
    needs_bound!();
    let world = World::new().unwrap();
    let [alice, bob] = [(); 2].map(|()| Uid::take().unwrap());
    // Room for three times what the tests ask for.
    let limit = 3 * u64::from(CHUNKS * CHUNK_BYTES);
    let rule = |uid: &Uid| {
        allow(
            uid.number(),
            "1-7",
            &format!("limits = {{ umem-bytes = {limit} }}"),
        )
    };
    let text = interface("eth0", "") + &rule(&alice) + &rule(&bob);
    let broker = BrokerProcess::start(&world, &text).unwrap();
    let socket = broker.paths().socket();
    let as_user = |uid: &Uid, f: &mut (dyn FnMut() + Send)| world.run_as(Side::Host, &uid.user(), f).unwrap();
    let mut held = Vec::new();
    as_user(&alice, &mut || {
        held.push(Held::new(&socket, &wish("eth0:1-2", Direction::RxTx)));
        // Before Bind, it counts as well.
        let third = Acquisition::new(&socket, &wish("eth0:3", Direction::Tx)).unwrap();
        match refusal(Acquisition::new(&socket, &wish("eth0:4", Direction::RxTx))) {
            BrokerError::QuotaExceeded {
                resource,
                limit: told,
                in_use,
                message,
            } => {
                assert_eq!((resource.as_str(), told, in_use), ("umem-bytes", limit, limit));
                assert!(message.contains(&limit.to_string()), "{message}");
            }
            other => panic!("{other}"),
        }
        let Acquisition {
            mut broker, acquired, ..
        } = third;
        broker.release(acquired.lease).unwrap();
        held.push(Held::new(&socket, &wish("eth0:4", Direction::RxTx)));
        // One that is above the limit by itself is denied by the policy.
        assert!(matches!(
            refusal(Acquisition::new(&socket, &wish("eth0:3-7", Direction::RxTx))),
            BrokerError::Denied { .. }
        ));
    });
    as_user(&bob, &mut || {
        held.push(Held::new(&socket, &wish("eth0:5-7", Direction::RxTx)));
    });
    // Given back when the kernel has let go.
    let lease = held[0].lease;
    held.remove(0);
    operator(&broker).revoke(lease).unwrap();
    wait_event(&broker, "freed", lease);
    as_user(&alice, &mut || {
        drop(Held::new(&socket, &wish("eth0:1-2", Direction::RxTx)));
    });
}

#[test]
fn shapes_and_promises_that_cannot_be_are_refused_in_words() {
    needs_bound!();
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let broker = BrokerProcess::start(&world, &policy(&[(alice.number(), "1-7")])).unwrap();
    let socket = broker.paths().socket();
    let shape = |chunk_bytes, chunks, headroom_bytes| {
        Some(UmemShape {
            chunk_bytes,
            chunks,
            headroom_bytes,
            hugepages: false,
        })
    };
    let base = wish("eth0:3", Direction::RxTx);
    let with_umem = |umem| Acquire { umem, ..base.clone() };
    let prepared = Acquire {
        sockets: SocketKind::Prepared,
        umem: None,
        ..base.clone()
    };
    world
        .run_as(Side::Host, &alice.user(), || {
            for (wish, words) in [
                (with_umem(shape(1024, 64, 0)), "chunks are of 2048 or 4096 bytes"),
                (with_umem(shape(2048, 3, 0)), "a multiple of 4096 bytes"),
                (with_umem(shape(2048, 64, 1792)), "1791 is the most"),
                (
                    Acquire {
                        direction: Some(Direction::Rx),
                        ..prepared.clone()
                    },
                    "direction: rx cannot be promised for sockets of kind prepared",
                ),
                (
                    Acquire {
                        umem: shape(2048, 64, 0),
                        ..prepared.clone()
                    },
                    "only bound has it here",
                ),
                (
                    Acquire {
                        mode: Some(ModeWish::Copy),
                        ..prepared.clone()
                    },
                    "only bound has it here",
                ),
                (
                    Acquire {
                        mode: Some(ModeWish::ZeroCopy),
                        direction: Some(Direction::Tx),
                        ..base.clone()
                    },
                    "in copy mode",
                ),
            ] {
                match refusal(Acquisition::new(&socket, &wish)) {
                    BrokerError::InvalidRequest { message } => assert!(message.contains(words), "{message}"),
                    other => panic!("{wish:?}: {other}"),
                }
            }
            // With as much headroom as there can be, frames still fit.
            let wish = with_umem(shape(4096, CHUNKS, 2000));
            drop(Held::new(&socket, &wish));
        })
        .unwrap();
}
