//! A holder with a user namespace has every capability over its own devices, and over the broker's none. What it can do is
//! keep its own memory registered, by sharing it with a socket on its own lo: that keeps no queue, and lets it see nothing.

use std::io::BufRead;
use std::os::fd::AsFd;
use std::time::Duration;

use e2e::holder::Holder;
use e2e::netlink::{LinkState, Netlink};
use e2e::raw_xsk::{CHUNK_BYTES, RawXsk, RingEntries, bind_to_device};
use e2e::skip::Skip;
use e2e::world::{Side, World};
use rustix::io::Errno;
use xsk_client::Broker;
use xsk_client::sys::{self, BindFlags, Ring};
use xsk_client::wire::{Acquire, QueueLock, SocketKind};

use crate::lease_scene::{PATIENCE, SILENCE, wait_event};
use crate::puppet::{Puppet, Seen};
use crate::rogue_scene::{ROGUES, Scene, errno, locks};

const LO: u32 = 1;
const CHUNKS: u32 = 64;

/// A body: the rogue's inside. Its arguments: the device's index, and that of another one.
pub(crate) fn keep_umem(arguments: &[String]) {
    let [eth0, eth1] = [0, 1].map(|place| arguments[place].parse::<u32>().unwrap());
    let mut broker = Broker::connect().unwrap();
    let request = Acquire::new(format!("eth0:{ROGUES}").parse().unwrap(), SocketKind::Prepared);
    let (acquired, mut sockets) = broker.acquire(&request).unwrap();
    let granted = sockets.remove(0);

    // Root of its namespaces, and nobody to the broker's: neither its pin nor another device.
    assert_eq!(
        bind_to_device(&granted, "").unwrap_err().raw_os_error(),
        Some(Errno::PERM.raw_os_error())
    );
    assert_eq!(errno(sys::confine_to_device(&granted, eth1)), Err(Errno::PERM));

    let file = rustix::fs::memfd_create("umem", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, u64::from(CHUNKS * CHUNK_BYTES)).unwrap();
    let bytes = usize::try_from(CHUNKS * CHUNK_BYTES).unwrap();
    let memory = sys::Mapping::new(&file, 0, bytes, sys::Prefault::Yes).unwrap();
    sys::register_umem(&granted, &memory, CHUNK_BYTES, 0).unwrap();
    let elsewhere = errno(sys::bind(&granted, eth1, ROGUES, BindFlags::XDP_COPY));
    let refusal = match acquired.queue_lock {
        QueueLock::Lsm => Errno::PERM,
        QueueLock::Placeholders | QueueLock::None => Errno::INVAL,
    };
    assert_eq!(elsewhere, Err(refusal));
    sys::bind(&granted, eth0, ROGUES, BindFlags::XDP_COPY).unwrap();
    broker.activate(acquired.lease).unwrap();

    // Its own socket, which it may open here, on its own device, with the same memory.
    let netlink = Netlink::new().unwrap();
    netlink.set_link(LO, LinkState::Up).unwrap();
    let own = sys::xdp_socket().unwrap();
    for ring in Ring::ALL {
        sys::create_ring(&own, ring, CHUNKS).unwrap();
    }
    let mut own = RawXsk::over_bound(own, &file, 0..CHUNKS, RingEntries::all(CHUNKS)).unwrap();
    sys::bind_shared(&own, LO, 0, granted.as_fd()).unwrap();
    println!("shared {}", acquired.lease);

    broker.release(acquired.lease).unwrap();
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

#[test]
fn it_keeps_its_own_memory_and_nothing_of_the_brokers() {
    for lock in locks() {
        println!("queue-lock {lock}");
        keeps_its_own_memory(lock);
    }
}

fn keeps_its_own_memory(lock: &'static str) {
    let world = World::builder().peers(2).build().unwrap();
    let scene = Scene::new(&world, lock, SocketKind::Prepared);
    let arguments = [scene.index, scene.others[0]].map(|index| index.to_string());
    let arguments = [arguments[0].as_str(), &arguments[1]];
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
    let mut next = Puppet::start(&world, Side::Host, &scene.rogue.user());
    let anew = next.hold(&format!("eth0:{ROGUES}"));
    scene.traffic.send_all(ROGUES, 0..100);
    assert_eq!(next.receive(anew, ROGUES, 100, PATIENCE), Seen::only(ROGUES, 100));
    std::io::Write::write_all(&mut strings, b"go on\n").unwrap();
    holder.wait_line("kept", Duration::from_secs(20)).unwrap();
}
