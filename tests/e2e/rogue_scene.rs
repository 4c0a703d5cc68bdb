//! What the tests of rogues share: a rogue that may have queues 3 and 6, a victim with queue 4, and system calls on a granted
//! socket by the rogue's own hand. A rogue is a thread of an ordinary uid without a capability.
//!
//! Tests run for every kind whose holder binds ([`UNBOUND`]) under every queue lock that is to be had here; what only a
//! lock stops is for the tests of that lock. Under `lsm` it is the programs that refuse (EPERM) what else the kernel would
//! ([`Scene::refusal`]).

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use e2e::broker::BrokerProcess;
use e2e::uids::Uid;
use e2e::world::{Side, World};
use rustix::io::Errno;
use rustix::net::xdp::{SocketAddrXdp, SocketAddrXdpFlags, SocketAddrXdpWithSharedUmem};
use xsk_client::Broker;
use xsk_client::sys::{self, BindFlags, Mapping, Prefault, Ring};
use xsk_client::wire::{Acquire, SocketKind};

use crate::lease_scene::{PATIENCE, Traffic, allow_kinds};

/// Kinds of sockets that leave the broker unbound.
pub(crate) const UNBOUND: [SocketKind; 2] = [SocketKind::Prepared, SocketKind::Bare];
/// Queue locks that every kernel has.
const LOCKS: [&str; 2] = ["none", "placeholders"];

/// The queue that the rogue may have.
pub(crate) const ROGUES: u32 = 3;
/// And this one, which few tests want.
pub(crate) const SPARE: u32 = 6;
/// And the victim, who may have the rogue's as well when it is free.
pub(crate) const VICTIMS: u32 = 4;

/// A broker with a rogue, a victim, and two devices.
pub(crate) struct Scene<'w> {
    pub(crate) world: &'w World,
    pub(crate) broker: BrokerProcess<'w>,
    pub(crate) traffic: Traffic,
    pub(crate) rogue: Uid,
    pub(crate) victim: Uid,
    pub(crate) lock: &'static str,
    pub(crate) kind: SocketKind,
    /// Of eth0, which is granted, and of eth1 and lo, which are not.
    pub(crate) index: u32,
    pub(crate) others: [u32; 2],
}

/// The queue locks that are to be had here, and none.
pub(crate) fn locks() -> impl Iterator<Item = &'static str> {
    let lsm = match e2e::lsm::is_in_force() {
        Ok(()) => Some("lsm"),
        Err(skip) => {
            println!("not under queue-lock lsm: {skip:?}");
            None
        }
    };
    LOCKS.into_iter().chain(lsm)
}

/// Runs a test for every kind that is handed over unbound, under every lock.
pub(crate) fn for_each(test: impl Fn(&Scene<'_>)) {
    for lock in locks() {
        for kind in UNBOUND {
            println!("kind {kind}, queue-lock {lock}");
            let world = World::builder().peers(2).build().unwrap();
            test(&Scene::new(&world, lock, kind));
        }
    }
}

impl<'w> Scene<'w> {
    pub(crate) fn new(world: &'w World, lock: &'static str, kind: SocketKind) -> Self {
        let [rogue, victim] = [(); 2].map(|()| Uid::take().unwrap());
        let kinds = [kind.as_str()];
        let policy = format!("[interface.\"*\"]\nqueue-lock = \"{lock}\"\nreserved = \"0\"\n")
            + &allow_kinds(rogue.number(), "3,6", &kinds, "activate-within-ms = 60000")
            + &allow_kinds(victim.number(), "3-4", &["prepared"], "");
        let index = |name| world.netlink(Side::Host).link(name).unwrap().index;
        let broker = BrokerProcess::start(world, &policy).unwrap();
        // Now, since a rogue could not start it.
        broker.connector(&rogue).unwrap();
        Self {
            broker,
            traffic: Traffic::new(world),
            rogue,
            victim,
            lock,
            kind,
            index: index("eth0"),
            others: [index("eth1"), index("lo")],
            world,
        }
    }

    /// Does something as the rogue.
    pub(crate) fn as_rogue<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        self.world.run_as(Side::Host, &self.rogue.user(), act).unwrap()
    }

    /// What the rogue is told that asks for what it was not granted, and without the LSM would be told that by AF_XDP.
    pub(crate) fn refusal(&self, without: Errno) -> Errno {
        match self.lock {
            "lsm" => Errno::PERM,
            _ => without,
        }
    }

    /// That something is refused by AF_XDP; under the LSM by that or by the lock, which lets who was granted a bare socket
    /// make rings, until the broker has seen it bound.
    pub(crate) fn assert_refused(&self, result: Result<(), Errno>, by_xdp: Errno, what: &str) {
        let either = [Err(by_xdp), Err(self.refusal(by_xdp))];
        assert!(either.contains(&result), "{what}: {result:?}, not {either:?}");
    }

    /// Has the rogue acquire its queue, by a process of its own.
    pub(crate) fn acquire(&self) -> Granted {
        self.acquire_queue(ROGUES)
    }

    /// The same for a queue that it may have, waiting for the kernel as long as the broker says so.
    pub(crate) fn acquire_queue(&self, queue: u32) -> Granted {
        let mut broker = self.broker.client_of(&self.rogue).unwrap();
        let request = Acquire::new(format!("eth0:{queue}").parse().unwrap(), self.kind);
        let deadline = Instant::now() + PATIENCE;
        let (acquired, mut sockets) = loop {
            match broker.acquire(&request) {
                Err(error) if error.retry_after().is_some() && Instant::now() < deadline => {}
                acquired => break acquired.unwrap(),
            }
        };
        Granted {
            broker,
            lease: acquired.lease,
            kind: self.kind,
            socket: sockets.remove(0),
            memory: None,
        }
    }
}

/// A granted socket in the rogue's hand.
pub(crate) struct Granted {
    pub(crate) broker: Broker,
    pub(crate) lease: u64,
    pub(crate) socket: OwnedFd,
    kind: SocketKind,
    memory: Option<Mapping>,
}

impl Granted {
    /// Makes the rings that are its holder's to make.
    pub(crate) fn make_rings(&self) {
        if self.kind == SocketKind::Bare {
            for ring in Ring::ALL {
                sys::create_ring(&self.socket, ring, 64).unwrap();
            }
        }
    }

    /// Registers a umem.
    pub(crate) fn prepare_memory(&mut self) {
        let memory = memory(CHUNKS);
        sys::register_umem(&self.socket, &memory, CHUNK_BYTES, 0).unwrap();
        self.memory = Some(memory);
    }

    /// Does both: all that a bind needs.
    pub(crate) fn prepare(&mut self) {
        self.make_rings();
        self.prepare_memory();
    }

    /// Binds it over the umem of another one that is bound.
    pub(crate) fn bind_shared(&self, index: u32, queue: u32, with: &Self) -> Result<(), Errno> {
        let address = SocketAddrXdpWithSharedUmem {
            addr: SocketAddrXdp::new(SocketAddrXdpFlags::XDP_SHARED_UMEM, index, queue),
            shared_umem_fd: with.socket.as_fd(),
        };
        rustix::net::bind(&self.socket, &address)
    }

    /// Binds it in copy mode.
    pub(crate) fn bind(&self, index: u32, queue: u32) -> Result<(), Errno> {
        errno(sys::bind(&self.socket, index, queue, BindFlags::XDP_COPY))
    }
}

const CHUNK_BYTES: u32 = 4096;
const CHUNKS: u32 = 16;

/// Memory for that many chunks.
pub(crate) fn memory(chunks: u32) -> Mapping {
    let bytes = u64::from(chunks * CHUNK_BYTES);
    let file = rustix::fs::memfd_create("rogue", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, bytes).unwrap();
    Mapping::new(&file, 0, usize::try_from(bytes).unwrap(), Prefault::Yes).unwrap()
}

/// What the kernel said.
pub(crate) fn errno<T>(result: std::io::Result<T>) -> Result<T, Errno> {
    result.map_err(|error| Errno::from_io_error(&error).unwrap())
}
