//! A holder with a user namespace has every capability over its own devices, and over the broker's none. What it can do is
//! keep its own memory registered, by sharing it with a socket on its own lo: that keeps no queue, and lets it see nothing.

use std::io::BufRead;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use e2e::holder::Holder;
use e2e::netlink::{LinkState, Netlink};
use e2e::raw_xsk::{CHUNK_BYTES, RawXsk, RingEntries, bind_to_device};
use e2e::skip::Skip;
use e2e::world::{Side, World};
use rustix::io::Errno;
use xsk_client::Broker;
use xsk_client::sys::{self, BindFlags, Ring};
use xsk_client::wire::{Acquire, DEFAULT_SOCKET, Direction, QueueLock, SocketKind};

use crate::bound_scene::{Held, needs_bound, wish};
use crate::lease_scene::{PATIENCE, SILENCE, wait_event};
use crate::puppet::{Puppet, Seen};
use crate::rogue_scene::{ROGUES, Scene, UNBOUND, errno, locks};

const LO: u32 = 1;
const CHUNKS: u32 = 64;

/// A socket that the rogue has from the broker, active, and the memory that is registered with it.
struct Registered {
    broker: Broker,
    lease: u64,
    socket: OwnedFd,
    memory: OwnedFd,
}

/// A body: the rogue's inside. Its arguments: the device's index, that of another one, and the kind of its socket.
pub(crate) fn keep_umem(arguments: &[String]) {
    let [eth0, eth1] = [0, 1].map(|place| arguments[place].parse::<u32>().unwrap());
    let mut granted = match UNBOUND.into_iter().find(|kind| kind.as_str() == arguments[2]) {
        Some(kind) => bound_by_hand(kind, eth0, eth1),
        None => bound_by_the_broker(),
    };
    // Root of its namespaces, and nobody to the broker's: neither its pin nor another device.
    let socket = granted.socket.as_fd();
    assert_eq!(
        bind_to_device(socket, "").unwrap_err().raw_os_error(),
        Some(Errno::PERM.raw_os_error())
    );
    assert_eq!(errno(sys::confine_to_device(socket, eth1)), Err(Errno::PERM));

    // Its own socket, which it may open here, on its own device, with the same memory.
    let netlink = Netlink::new().unwrap();
    netlink.set_link(LO, LinkState::Up).unwrap();
    let own = sys::xdp_socket().unwrap();
    for ring in Ring::ALL {
        sys::create_ring(&own, ring, CHUNKS).unwrap();
    }
    let mut own = RawXsk::over_bound(own, &granted.memory, 0..CHUNKS, RingEntries::all(CHUNKS)).unwrap();
    sys::bind_shared(&own, LO, 0, socket).unwrap();
    println!("shared {}", granted.lease);

    granted.broker.release(granted.lease).unwrap();
    drop(granted);
    println!("released");
    // Told to go on once the broker says that the queue is free.
    std::io::stdin().lock().read_line(&mut String::new()).unwrap();
    for number in 0..u8::try_from(CHUNKS).unwrap() * 2 {
        // More frames than it has for sending: the kernel has given some back, so the memory is still registered.
        own.send(&[number; 64]).unwrap();
    }
    // Of what came to the broker's device meanwhile, nothing is here.
    assert_eq!(own.receive(SILENCE).unwrap(), None);
    println!("kept");
}

/// Before it is bound: with the memory of one's own choice, and to the granted queue of the granted device only.
fn bound_by_hand(kind: SocketKind, eth0: u32, eth1: u32) -> Registered {
    let mut broker = Broker::connect().unwrap();
    let request = Acquire::new(format!("eth0:{ROGUES}").parse().unwrap(), kind);
    let (acquired, mut sockets) = broker.acquire(&request).unwrap();
    let socket = sockets.remove(0);
    let file = rustix::fs::memfd_create("umem", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, u64::from(CHUNKS * CHUNK_BYTES)).unwrap();
    let bytes = usize::try_from(CHUNKS * CHUNK_BYTES).unwrap();
    let memory = sys::Mapping::new(&file, 0, bytes, sys::Prefault::Yes).unwrap();
    sys::register_umem(&socket, &memory, CHUNK_BYTES, 0).unwrap();
    if kind == SocketKind::Bare {
        for ring in Ring::ALL {
            sys::create_ring(&socket, ring, CHUNKS).unwrap();
        }
    }
    let elsewhere = errno(sys::bind(&socket, eth1, ROGUES, BindFlags::XDP_COPY));
    let refusal = match acquired.queue_lock {
        QueueLock::Lsm => Errno::PERM,
        QueueLock::Placeholders | QueueLock::None => Errno::INVAL,
    };
    assert_eq!(elsewhere, Err(refusal));
    sys::bind(&socket, eth0, ROGUES, BindFlags::XDP_COPY).unwrap();
    broker.activate(acquired.lease).unwrap();
    Registered {
        broker,
        lease: acquired.lease,
        socket,
        memory: file,
    }
}

/// Where the broker registered the memory in the rogue's stead.
fn bound_by_the_broker() -> Registered {
    let wish = wish(&format!("eth0:{ROGUES}"), Direction::RxTx);
    let held = Held::new(Path::new(DEFAULT_SOCKET), &wish);
    Registered {
        socket: held.fd(ROGUES).try_clone_to_owned().unwrap(),
        broker: held.broker,
        lease: held.lease,
        memory: held.memfd,
    }
}

#[test]
fn it_keeps_its_own_memory_and_nothing_of_the_brokers() {
    for lock in locks() {
        for kind in UNBOUND {
            keeps_its_own_memory(lock, kind);
        }
    }
}

#[test]
fn it_keeps_what_the_broker_registered_and_nothing_else() {
    needs_bound!();
    keeps_its_own_memory("none", SocketKind::Bound);
}

fn keeps_its_own_memory(lock: &'static str, kind: SocketKind) {
    println!("kind {kind}, queue-lock {lock}");
    let world = World::builder().peers(2).build().unwrap();
    let scene = Scene::new(&world, lock, kind);
    let arguments = [scene.index, scene.others[0]].map(|index| index.to_string());
    let arguments = [arguments[0].as_str(), &arguments[1], kind.as_str()];
    let user = scene.rogue.user().in_own_namespaces();
    let started = Holder::driven_body(&world, Side::Host, &user, "keep_umem", &arguments);
    let (holder, mut strings) = match started {
        Ok(started) => started,
        Err(error) => e2e::skip!(Skip::KernelLacks {
            probe: format!("unshare(CLONE_NEWUSER) as an ordinary user: {error:#}")
        }),
    };
    let shared = holder.wait_line("shared", PATIENCE).unwrap();
    let lease = shared.strip_prefix("shared ").unwrap().parse().unwrap();
    holder.wait_line("released", PATIENCE).unwrap();
    // The queue is free though the memory is kept: granted anew, its packets are the new holder's.
    wait_event(&scene.broker, "freed", lease);
    let mut next = Puppet::start(&world, Side::Host, &scene.victim.user());
    let anew = next.hold(&format!("eth0:{ROGUES}"));
    scene.traffic.send_all(ROGUES, 0..100);
    assert_eq!(next.receive(anew, ROGUES, 100, PATIENCE), Seen::only(ROGUES, 100));
    std::io::Write::write_all(&mut strings, b"go on\n").unwrap();
    holder.wait_line("kept", Duration::from_secs(20)).unwrap();
}
