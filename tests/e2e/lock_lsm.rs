//! `queue-lock = "lsm"`, where BPF LSM is in force: the kernel refuses to bind a socket that was handed out to anything but
//! what was granted, for as long as the socket exists, and whatever becomes of the broker.

use std::os::fd::OwnedFd;

use e2e::broker::BrokerProcess;
use e2e::leaks::Leaks;
use e2e::lsm;
use e2e::raw_xsk::RawXsk;
use e2e::skip;
use e2e::uids::Uid;
use e2e::world::{Side, World};
use rustix::io::Errno;
use rustix::net::xdp::{SocketAddrXdp, SocketAddrXdpFlags, SocketAddrXdpWithSharedUmem};
use serde_json::{Value, json};
use xsk_client::Broker;
use xsk_client::sys::{self, BindFlags, Mapping, Ring};
use xsk_client::wire::{Acquire, LeaseState, QueueLock, SocketKind};

use crate::lease_scene::{PATIENCE, allow_kinds, eth0, operator, state_of, wait_event, wait_until};
use crate::puppet::{Order, Puppet};
use crate::rogue::{Race, Rogue};
use crate::rogue_scene::{errno, memory};

const QUEUES: u32 = 8;

fn policy(lock: &str, uids: &[&Uid], more: &str) -> String {
    let rules: String = uids
        .iter()
        .map(|uid| allow_kinds(uid.number(), "1-7", &["prepared", "bare"], more))
        .collect();
    format!("[interface.eth0]\nqueue-lock = \"{lock}\"\nreserved = \"0\"\n{rules}")
}

/// Leaves the test where the kernel asks no BPF LSM program.
macro_rules! needs_lsm {
    () => {
        if let Err(skip) = lsm::is_in_force() {
            skip!(skip);
        }
    };
}

/// What `GetStatus` says of BPF LSM.
fn probe(broker: &BrokerProcess<'_>) -> Value {
    let status: Value = operator(broker).call("GetStatus", &json!({})).unwrap();
    let probes = status["probes"].as_array().unwrap();
    probes
        .iter()
        .find(|probe| probe["name"] == "BPF LSM")
        .unwrap()
        .clone()
}

/// A socket that was handed over unbound, and its memory.
struct Granted {
    client: Broker,
    lease: u64,
    socket: OwnedFd,
    index: u32,
    _memory: Mapping,
}

impl Granted {
    fn new(broker: &BrokerProcess<'_>, uid: &Uid, queue: u32, kind: SocketKind) -> Self {
        let mut client = broker.client_of(uid).unwrap();
        let request = Acquire::new(format!("eth0:{queue}").parse().unwrap(), kind);
        let (acquired, mut sockets) = client.acquire(&request).unwrap();
        assert_eq!(acquired.queue_lock, QueueLock::Lsm);
        let socket = sockets.remove(0);
        if kind == SocketKind::Bare {
            for ring in Ring::ALL {
                sys::create_ring(&socket, ring, 64).unwrap();
            }
        }
        let memory = memory(16);
        sys::register_umem(&socket, &memory, 4096, 0).unwrap();
        Self {
            client,
            lease: acquired.lease,
            socket,
            index: acquired.interface_index,
            _memory: memory,
        }
    }

    fn bind(&self, queue: u32, flags: BindFlags) -> Result<(), Errno> {
        errno(sys::bind(&self.socket, self.index, queue, flags))
    }

    /// It can be bound to no queue of the device.
    fn assert_bound_to_nothing(&self) {
        for queue in 0..QUEUES {
            let bound = self.bind(queue, BindFlags::XDP_COPY);
            assert!(bound.is_err(), "queue {queue}");
        }
    }
}

#[test]
fn an_unbound_socket_kept_for_ever_never_wins_a_queue() {
    needs_lsm!();
    never_wins(SocketKind::Prepared);
}

#[test]
fn nor_does_one_whose_rings_are_its_holders() {
    needs_lsm!();
    never_wins(SocketKind::Bare);
}

fn never_wins(kind: SocketKind) {
    let world = World::new().unwrap();
    let [alice, mallory] = [(); 2].map(|()| Uid::take().unwrap());
    let mut leaks = Leaks::snapshot(&world).unwrap();
    let mut broker = BrokerProcess::start(&world, &policy("lsm", &[&alice, &mallory], "")).unwrap();
    leaks.expect_objects_gone(&world, broker.process().pid()).unwrap();
    let mut rogue = Rogue::start_with(&world, &mallory.user(), 1, kind, Race::AfterRelease);
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    rogue.lose_to(&mut holder, Puppet::hold);
    rogue.kill();
    drop(holder);
    assert!(broker.stop().unwrap().success());
    leaks.wait_none(&world, PATIENCE).unwrap();
}

#[test]
fn the_same_across_a_crash_of_the_broker() {
    needs_lsm!();
    never_wins_across_a_crash(SocketKind::Prepared);
}

#[test]
fn nor_across_a_crash_one_whose_rings_are_its_holders() {
    needs_lsm!();
    never_wins_across_a_crash(SocketKind::Bare);
}

fn never_wins_across_a_crash(kind: SocketKind) {
    let world = World::new().unwrap();
    let [alice, mallory] = [(); 2].map(|()| Uid::take().unwrap());
    // No deadline before the crash, on a slow machine.
    let more = "activate-within-ms = 60000\n";
    let mut broker = BrokerProcess::start(&world, &policy("lsm", &[&alice, &mallory], more)).unwrap();
    let granted = Granted::new(&broker, &mallory, 2, kind);
    let rogue = Rogue::start_with(&world, &mallory.user(), 1, kind, Race::WhileGranted);
    broker.kill().unwrap();
    // Nobody is there, and the kernel goes on asking.
    assert_eq!(granted.bind(5, BindFlags::XDP_COPY), Err(Errno::PERM));
    broker.restart().unwrap();
    // What was granted and not bound ended with its broker.
    granted.assert_bound_to_nothing();
    assert_eq!(eth0(&broker).tainted_by, None);
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let tries = rogue.lose_to(&mut holder, Puppet::hold);
    assert_eq!(Vec::from_iter(tries.keys().copied()), [libc::EPERM], "{tries:?}");
    drop(holder);
    // Nor when it is stopped in order: these two sockets are still there.
    assert!(broker.stop().unwrap().success());
    granted.assert_bound_to_nothing();
    rogue.tries();
}

/// What was bound needs no lock any more: it goes on, as under every lock, and the next broker has it.
#[test]
fn what_was_active_outlives_a_crash_and_what_was_not_ends() {
    needs_lsm!();
    let world = World::new().unwrap();
    let [alice, bob] = [(); 2].map(|()| Uid::take().unwrap());
    let mut broker = BrokerProcess::start(&world, &policy("lsm", &[&alice, &bob], "")).unwrap();
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let lease = holder.hold("eth0:2");
    let unbound = Granted::new(&broker, &bob, 3, SocketKind::Prepared);
    broker.kill().unwrap();
    broker.restart().unwrap();
    let leases = operator(&broker).list_leases().unwrap().leases;
    let seen: Vec<_> = leases
        .iter()
        .map(|lease| (lease.lease, lease.state, lease.queue_lock))
        .collect();
    assert_eq!(seen, [(lease, LeaseState::Active, QueueLock::Lsm)]);
    unbound.assert_bound_to_nothing();
    holder.ask(&Order::Reconnect).unwrap();
    holder.release(lease);
    holder.close(lease);
    wait_event(&broker, "freed", lease);
    // Both queues are to be had anew.
    let mut next = Puppet::start(&world, Side::Host, &bob.user());
    for queue in [2, 3] {
        next.hold(&format!("eth0:{queue}"));
    }
}

#[test]
fn several_leases_have_unbound_sockets_at_once_and_each_binds_to_its_own() {
    needs_lsm!();
    let world = World::new().unwrap();
    let [alice, bob, mallory] = [(); 3].map(|()| Uid::take().unwrap());
    let broker = BrokerProcess::start(
        &world,
        &policy("auto", &[&alice, &bob, &mallory], "activate-within-ms = 60000"),
    )
    .unwrap();
    // The strongest that there is.
    assert_eq!(eth0(&broker).queue_lock, Some(QueueLock::Lsm));
    let rogue = Rogue::start(&world, &mallory.user(), 1, Race::WhileGranted);
    let mut granted = [
        Granted::new(&broker, &alice, 2, SocketKind::Prepared),
        Granted::new(&broker, &bob, 3, SocketKind::Bare),
        Granted::new(&broker, &alice, 4, SocketKind::Bare),
    ];
    assert_eq!(eth0(&broker).placeholders, Vec::<u32>::new());
    for (granted, queue) in granted.iter_mut().zip(2..) {
        for other in (0..QUEUES).filter(|other| *other != queue) {
            assert_eq!(
                granted.bind(other, BindFlags::XDP_COPY),
                Err(Errno::PERM),
                "queue {other}"
            );
        }
        granted.bind(queue, BindFlags::XDP_COPY).unwrap();
        granted.client.activate(granted.lease).unwrap();
        assert_eq!(state_of(&broker, granted.lease), Some(LeaseState::Active));
        assert_eq!(wait_event(&broker, "granted", granted.lease)["queueLock"], "lsm");
    }
    rogue.tries();
}

#[test]
fn what_ended_unbound_is_bound_to_nothing_and_its_queue_is_free() {
    needs_lsm!();
    let world = World::new().unwrap();
    let [alice, mallory] = [(); 2].map(|()| Uid::take().unwrap());
    let mut broker = BrokerProcess::start(&world, &policy("lsm", &[&alice, &mallory], "")).unwrap();
    for kind in [SocketKind::Prepared, SocketKind::Bare] {
        let mut granted = Granted::new(&broker, &mallory, 3, kind);
        granted.client.release(granted.lease).unwrap();
        granted.assert_bound_to_nothing();
        for ring in Ring::ALL {
            assert!(sys::create_ring(&granted.socket, ring, 64).is_err());
        }
        wait_until("its queue is free", || state_of(&broker, granted.lease).is_none());
        let mut holder = Puppet::start(&world, Side::Host, &alice.user());
        let lease = holder.hold("eth0:3");
        granted.assert_bound_to_nothing();
        drop(holder);
        wait_event(&broker, "freed", lease);
        granted.assert_bound_to_nothing();
        if kind == SocketKind::Bare {
            // Retired, it needs no lock any more: an orderly stop leaves none behind.
            assert!(broker.stop().unwrap().success());
            granted.assert_bound_to_nothing();
        }
    }
}

#[test]
fn rings_that_were_not_granted_are_refused() {
    needs_lsm!();
    let world = World::new().unwrap();
    let mallory = Uid::take().unwrap();
    let broker = BrokerProcess::start(&world, &policy("lsm", &[&mallory], "")).unwrap();
    let prepared = Granted::new(&broker, &mallory, 3, SocketKind::Prepared);
    for ring in Ring::ALL {
        let made = errno(sys::create_ring(&prepared.socket, ring, 1 << 20));
        assert_eq!(made, Err(Errno::PERM), "{ring} ring");
    }
    let again = errno(sys::register_umem(&prepared.socket, &memory(1), 4096, 0));
    assert_eq!(again, Err(Errno::BUSY));
    // How much one call sends is its holder's business.
    let budget = errno(sys::set_tx_budget(&prepared.socket, 64));
    // Older kernels have no such option.
    assert!(matches!(budget, Ok(()) | Err(Errno::NOPROTOOPT)), "{budget:?}");
}

#[test]
fn memory_may_be_shared_and_the_queue_is_the_granted_one_all_the_same() {
    needs_lsm!();
    let world = World::new().unwrap();
    let mallory = Uid::take().unwrap();
    let broker = BrokerProcess::start(&world, &policy("lsm", &[&mallory], "")).unwrap();
    let first = Granted::new(&broker, &mallory, 3, SocketKind::Prepared);
    first.bind(3, BindFlags::XDP_COPY).unwrap();
    let mut client = broker.client_of(&mallory).unwrap();
    let request = Acquire::new("eth0:4".parse().unwrap(), SocketKind::Prepared);
    let (_, mut sockets) = client.acquire(&request).unwrap();
    let second = sockets.remove(0);
    let shared = |queue| {
        let address = SocketAddrXdpWithSharedUmem {
            addr: SocketAddrXdp::new(SocketAddrXdpFlags::XDP_SHARED_UMEM, first.index, queue),
            shared_umem_fd: std::os::fd::AsFd::as_fd(&first.socket),
        };
        rustix::net::bind(&second, &address)
    };
    for queue in [3, 5] {
        assert_eq!(shared(queue), Err(Errno::PERM), "queue {queue}");
    }
    assert_eq!(shared(4), Ok(()));
}

#[test]
fn where_zero_copy_is_forbidden_the_kernel_takes_no_bind_that_could_be_one() {
    needs_lsm!();
    let world = World::new().unwrap();
    let mallory = Uid::take().unwrap();
    let forbidden = policy("lsm", &[&mallory], "zero-copy = \"forbidden\"");
    let broker = BrokerProcess::start(&world, &forbidden).unwrap();
    let mut granted = Granted::new(&broker, &mallory, 3, SocketKind::Prepared);
    for flags in [
        BindFlags::empty(),
        BindFlags::XDP_USE_NEED_WAKEUP,
        BindFlags::XDP_ZEROCOPY,
        BindFlags::XDP_COPY | BindFlags::XDP_ZEROCOPY,
        BindFlags::XDP_SHARED_UMEM,
        BindFlags::XDP_COPY | BindFlags::XDP_SHARED_UMEM,
    ] {
        assert_eq!(granted.bind(3, flags), Err(Errno::PERM), "{flags:?}");
    }
    granted
        .bind(3, BindFlags::XDP_COPY | BindFlags::XDP_USE_NEED_WAKEUP)
        .unwrap();
    granted.client.activate(granted.lease).unwrap();
}

#[test]
fn other_programs_sockets_are_none_of_its_business() {
    needs_lsm!();
    let world = World::new().unwrap();
    let mallory = Uid::take().unwrap();
    let broker = BrokerProcess::start(&world, &policy("lsm", &[&mallory], "")).unwrap();
    let _granted = Granted::new(&broker, &mallory, 3, SocketKind::Prepared);
    let index = world.device(Side::Host).index;
    let stranger = world.run_in(Side::Host, || RawXsk::new(2)).unwrap().unwrap();
    stranger.bind_copy(index, 6).unwrap();
    world
        .run_in(Side::Host, || std::net::UdpSocket::bind("127.0.0.1:0").map(drop))
        .unwrap()
        .unwrap();
    // Two brokers are strangers to each other, too.
    let other = BrokerProcess::builder()
        .name("other")
        .start(&world, &policy("lsm", &[&mallory], ""))
        .unwrap();
    assert_eq!(probe(&other)["available"], true);
    assert_eq!(probe(&broker)["available"], true);
}

/// In force or not, `status` says the truth, and why not.
#[test]
fn status_says_whether_it_is_in_force() {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let mut broker = BrokerProcess::start(&world, &policy("lsm", &[&alice], "")).unwrap();
    let told = probe(&broker);
    println!("{told}");
    let status = broker.cli(&["status"]).unwrap().stdout;
    assert!(status.contains("BPF LSM"), "{status}");
    match lsm::is_in_force() {
        Ok(()) => {
            assert_eq!(told["available"], true);
            assert_eq!(eth0(&broker).queue_lock, Some(QueueLock::Lsm));
        }
        Err(_) => {
            assert_eq!(told["available"], false);
            assert_eq!(eth0(&broker).queue_lock, None);
            let note = told["note"].as_str().unwrap();
            assert!(note.contains("no BPF LSM: "), "{note}");
            if lsm::RefusesBinds::of_this_thread().is_ok() {
                assert!(note.contains("the kernel does not ask them"), "{note}");
            }
        }
    }
    // A policy that wants no such lock has nothing of it loaded.
    broker.stop().unwrap();
    broker
        .write_policy(&policy("placeholders", &[&alice], ""))
        .unwrap();
    broker.restart().unwrap();
    let told = probe(&broker);
    assert_eq!(told["available"], false);
    assert!(
        told["note"].as_str().unwrap().contains("wanted no such lock"),
        "{told}"
    );
}
