//! The peek: in zero-copy mode a device writes what arrives on a queue into the memory of whose socket is bound there,
//! redirected or not. Without a queue lock a holder reads the host's frames with that; under a lock it does not come to it.
//! And a holder whose lease was revoked goes on reading, which `revoke` says.

use std::fs::{self, File};
use std::net::UdpSocket;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use e2e::broker::BrokerProcess;
use e2e::lsm;
use e2e::nics::Nics;
use e2e::raw_xsk::{RawXsk, RingEntries};
use e2e::skip;
use e2e::skip::Skip;
use e2e::uids::Uid;
use e2e::world::{Side, World};
use rustix::io::Errno;
use rustix::net::xdp::SocketAddrXdpFlags;
use serde_json::Value;
use xsk_client::wire::{Acquire, RingSizes, SocketKind};

use crate::lease_scene::{PATIENCE, allow_kinds, allow_with, payload, port, wait_event};
use crate::puppet::Puppet;
use crate::rogue_scene::UNBOUND;
use crate::zero_copy_rule::zero_copy_nics;

/// The host's queue, and the one that is granted.
const HOSTS: u32 = 0;
const GRANTED: u32 = 1;
const ENTRIES: u32 = 64;

/// Datagrams from the peer to the host's stack.
struct Datagrams {
    peer: UdpSocket,
    host: UdpSocket,
    nics: Nics,
}

impl Datagrams {
    fn new(world: &World, nics: Nics) -> Self {
        let bind = |side, address| {
            world
                .run_in(side, || UdpSocket::bind((address, port(HOSTS))))
                .unwrap()
                .unwrap()
        };
        let host = bind(Side::Host, nics.host.address);
        host.set_read_timeout(Some(PATIENCE)).unwrap();
        Self {
            peer: bind(Side::PEER, nics.peer.address),
            host,
            nics,
        }
    }

    /// Sends some, one after the other, and sees each of them reach the host's stack, whole.
    fn reach_the_stack(&self, world: &World, numbers: Range<u64>) {
        self.nics.wait_carriers(world).unwrap();
        let mut buffer = [0; 2048];
        for number in numbers {
            let sent = payload(HOSTS, number, 64);
            self.peer
                .send_to(&sent, (self.nics.host.address, port(HOSTS)))
                .unwrap();
            let length = self.host.recv(&mut buffer).unwrap();
            assert_eq!(buffer[..length], sent, "datagram {number}");
        }
    }
}

/// How many of these are in that memory.
fn found(memory: &[u8], numbers: Range<u64>) -> usize {
    numbers
        .map(|number| payload(HOSTS, number, 64))
        .filter(|wanted| memory.windows(wanted.len()).any(|bytes| bytes == wanted))
        .count()
}

/// A rogue that was granted one queue binds its socket to the host's in zero-copy mode: what the kernel said, and how many
/// of the host's datagrams are in its memory.
fn peek(lock: &str, kind: SocketKind) -> Result<(Result<(), Errno>, usize), Skip> {
    const DATAGRAMS: Range<u64> = 0..50;
    let world = World::new().unwrap();
    let nics = zero_copy_nics(&world)?;
    if nics.host.queues <= GRANTED {
        return Err(Skip::PlaceLacks(
            "device with zero-copy and two queues: the machine 7-igb of `cargo xtask vm` has".to_owned(),
        ));
    }
    world
        .ethtool(Side::Host)
        .steer_all_to(&nics.host.name, HOSTS)
        .unwrap();
    let mallory = Uid::take().unwrap();
    let (device, index) = (nics.host.name.clone(), nics.host.index);
    let text = format!("[interface.{device}]\nqueue-lock = \"{lock}\"\n")
        + &allow_kinds(
            mallory.number(),
            "1",
            &[kind.as_str()],
            "activate-within-ms = 600000",
        );
    let broker = BrokerProcess::start(&world, &text).unwrap();
    let request = Acquire {
        rings: (kind == SocketKind::Prepared).then(|| RingSizes::all(ENTRIES)),
        ..Acquire::new(format!("{device}:{GRANTED}").parse().unwrap(), kind)
    };
    let mut client = broker.client_of(&mallory).unwrap();
    let (_, mut sockets) = client.acquire(&request).unwrap();
    let socket = sockets.remove(0);
    let xsk = match kind {
        SocketKind::Bare => RawXsk::with_socket(socket, ENTRIES),
        SocketKind::Prepared | SocketKind::Bound => {
            RawXsk::with_rings(socket, ENTRIES, RingEntries::all(ENTRIES))
        }
    };
    let xsk = xsk.unwrap();
    let bound = xsk.bind(index, HOSTS, SocketAddrXdpFlags::XDP_ZEROCOPY);
    let datagrams = Datagrams::new(&world, nics);
    datagrams.reach_the_stack(&world, DATAGRAMS);
    Ok((bound, found(&xsk.memory().unwrap(), DATAGRAMS)))
}

/// The same with each kind that leaves unbound, and what is to be of it.
fn expect_of_each(lock: &str, expected: impl Fn(Result<(), Errno>, usize)) {
    for kind in UNBOUND {
        match peek(lock, kind) {
            Ok((bound, seen)) => {
                println!("kind {kind}: {seen} of the host's datagrams are in the rogue's memory");
                expected(bound, seen);
            }
            Err(skip) => skip!(skip),
        }
    }
}

#[test]
fn without_a_lock_a_holder_reads_the_hosts_frames() {
    expect_of_each("none", |bound, seen| {
        assert_eq!(bound, Ok(()));
        assert!(seen > 0);
    });
}

#[test]
fn under_placeholders_it_does_not() {
    expect_of_each("placeholders", |bound, seen| {
        assert_eq!((bound, seen), (Err(Errno::BUSY), 0));
    });
}

#[test]
fn under_lsm_it_does_not() {
    if let Err(skip) = lsm::is_in_force() {
        skip!(skip);
    }
    expect_of_each("lsm", |bound, seen| {
        assert_eq!((bound, seen), (Err(Errno::PERM), 0));
    });
}

/// What of memory files a process has mapped, as root reads it.
fn shared_memory_of(pid: u32) -> Vec<u8> {
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut all = Vec::new();
    for line in fs::read_to_string(format!("/proc/{pid}/maps")).unwrap().lines() {
        if !line.contains("/memfd:") {
            continue;
        }
        let (range, _) = line.split_once(' ').unwrap();
        let (begin, end) = range.split_once('-').unwrap();
        let [begin, end] = [begin, end].map(|address| u64::from_str_radix(address, 16).unwrap());
        let mut bytes = vec![0; usize::try_from(end - begin).unwrap()];
        memory.read_exact_at(&mut bytes, begin).unwrap();
        all.extend(bytes);
    }
    all
}

#[test]
fn what_a_revoked_holders_memory_still_sees_is_told() {
    const DATAGRAMS: Range<u64> = 1000..1050;
    let world = World::new().unwrap();
    let nics = match zero_copy_nics(&world) {
        Ok(nics) => nics,
        Err(skip) => skip!(skip),
    };
    let alice = Uid::take().unwrap();
    let device = nics.host.name.clone();
    let text = format!("[interface.{device}]\nqueue-lock = \"none\"\n")
        + &allow_with(alice.number(), "0", "zero-copy = \"required\"");
    let broker = BrokerProcess::start(&world, &text).unwrap();
    let datagrams = Datagrams::new(&world, nics);
    let mut holder = Puppet::start(&world, Side::Host, &alice.user());
    let lease = holder.hold(&format!("{device}:{HOSTS}"));
    let revoke = |more: &[&str]| {
        let lease = lease.to_string();
        let output = broker.cli(&[&["revoke", &lease], more].concat()).unwrap();
        (output.code, output.stdout)
    };

    let (code, told) = revoke(&[]);
    assert_eq!(code, Some(75), "{told}");
    assert!(
        told.contains("whoever has it reads each frame of the queue") && !told.contains("RX stopped"),
        "{told}"
    );
    // So it is: each of them reaches the host's stack, by way of its memory.
    datagrams.reach_the_stack(&world, DATAGRAMS);
    let seen = found(&shared_memory_of(holder.pid()), DATAGRAMS);
    println!("{seen} of the host's datagrams are in the revoked holder's memory");
    assert!(seen > 0);
    let (code, told) = revoke(&["--json"]);
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!((code, &told["rxStopped"]), (Some(75), &false.into()), "{told}");

    let (code, told) = revoke(&["--kill"]);
    assert_eq!(code, Some(0), "{told}");
    assert!(
        told.contains("RX stopped") && told.contains("TX stopped"),
        "{told}"
    );
    wait_event(&broker, "freed", lease);
    datagrams.reach_the_stack(&world, 2000..2010);
}
