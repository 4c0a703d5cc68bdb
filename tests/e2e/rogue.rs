//! A holder that keeps its socket unbound and tries to bind it to what it was not granted, without pause, for ever.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use e2e::holder::Holder;
use e2e::uids::User;
use e2e::world::{Side, World};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use xsk_client::Broker;
use xsk_client::sys::{self, BindFlags, Mapping, Prefault, Ring};
use xsk_client::wire::{Acquire, SocketKind};

use crate::lease_scene::PATIENCE;
use crate::puppet::Puppet;
use crate::rogue_scene::UNBOUND;

/// More than there are CPUs: some are preempted anywhere in a bind.
const THREADS: usize = 16;

/// Of eth0.
const QUEUES: u32 = 8;
/// How often a queue is granted to somebody while it tries.
const GRANTS: u32 = 200;

/// A rogue in a test's hand.
pub(crate) struct Rogue {
    holder: Holder,
}

/// What it races for.
#[derive(Clone, Copy)]
pub(crate) enum Race {
    /// Everything but what it was granted, while its lease lives.
    WhileGranted,
    /// Everything, once it has released its lease.
    AfterRelease,
}

impl Rogue {
    /// Has it acquire that queue of eth0, and race for the eight that there are.
    pub(crate) fn start(world: &World, user: &User, queue: u32, race: Race) -> Self {
        Self::start_with(world, user, queue, SocketKind::Prepared, race)
    }

    /// The same with a socket of another kind.
    pub(crate) fn start_with(world: &World, user: &User, queue: u32, kind: SocketKind, race: Race) -> Self {
        let race = match race {
            Race::WhileGranted => "while-granted",
            Race::AfterRelease => "after-release",
        };
        let queue = queue.to_string();
        let arguments = [queue.as_str(), kind.as_str(), race];
        let holder = Holder::body(world, Side::Host, user, "race_to_bind", &arguments).unwrap();
        holder.wait_line("racing", PATIENCE).unwrap();
        if race == "after-release" {
            holder.wait_line("released", PATIENCE).unwrap();
        }
        Self { holder }
    }

    /// What its tries came to so far, by errno; the test fails if one came to something.
    pub(crate) fn tries(&self) -> BTreeMap<i32, u64> {
        let lines = self.holder.process().stdout();
        let won: Vec<&String> = lines.iter().filter(|line| line.starts_with("won")).collect();
        assert!(won.is_empty(), "the rogue has won: {won:?}");
        let last = lines.iter().rev().find_map(|line| line.strip_prefix("tries "));
        serde_json::from_str(last.unwrap_or("{}")).unwrap()
    }

    /// Has somebody hold the queues that it races for, one after another, and lose none of them to it. Gives what its tries
    /// came to, by errno.
    pub(crate) fn lose_to(
        &self,
        holder: &mut Puppet,
        hold: impl Fn(&mut Puppet, &str) -> u64,
    ) -> BTreeMap<i32, u64> {
        for number in 0..GRANTS {
            let queue = 1 + number % (QUEUES - 1);
            let lease = hold(holder, &format!("eth0:{queue}"));
            holder.release(lease);
            holder.close(lease);
            self.tries();
        }
        let tries = self.tries();
        println!("{GRANTS} grants while the rogue's binds failed, by errno: {tries:?}");
        assert!(tries.values().sum::<u64>() > 1000, "it hardly tried: {tries:?}");
        tries
    }

    /// The queue that it won.
    pub(crate) fn has_won(&self) -> u32 {
        let line = self.holder.wait_line("won", PATIENCE).unwrap();
        line.split(' ').nth(1).unwrap().parse().unwrap()
    }

    /// The number of its lease.
    pub(crate) fn lease(&self) -> u64 {
        let line = self.holder.wait_line("racing", PATIENCE).unwrap();
        line.split(' ').nth(1).unwrap().parse().unwrap()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.holder.pid()
    }

    /// SIGKILL, and its end.
    pub(crate) fn kill(&mut self) {
        self.holder.kill().unwrap();
    }
}

/// A body: the rogue's inside.
pub(crate) fn race_to_bind(arguments: &[String]) {
    let [queue, kind, race] = arguments else {
        panic!("{arguments:?}")
    };
    let granted: u32 = queue.parse().unwrap();
    let mut broker = Broker::connect().unwrap();
    let kind = UNBOUND.into_iter().find(|each| each.as_str() == kind).unwrap();
    let request = Acquire::new(format!("eth0:{granted}").parse().unwrap(), kind);
    let (acquired, mut sockets) = broker.acquire(&request).unwrap();
    let socket = sockets.remove(0);
    if kind == SocketKind::Bare {
        for ring in Ring::ALL {
            sys::create_ring(&socket, ring, 64).unwrap();
        }
    }
    let _memory = give_memory(&socket);

    let released = AtomicBool::new(false);
    let tries = Mutex::new(BTreeMap::<i32, u64>::new());
    let queues = |all: bool| (0..QUEUES).filter(move |queue| all || *queue != granted);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let mut failed = Vec::new();
                    for queue in queues(released.load(Ordering::Relaxed)) {
                        match sys::bind(&socket, acquired.interface_index, queue, BindFlags::XDP_COPY) {
                            Ok(()) => println!("won {queue}"),
                            Err(error) => failed.push(error.raw_os_error().unwrap()),
                        }
                    }
                    let mut tries = tries.lock().unwrap();
                    failed
                        .into_iter()
                        .for_each(|errno| *tries.entry(errno).or_default() += 1);
                }
            });
        }
        println!("racing {}", acquired.lease);
        if race == "after-release" {
            std::thread::sleep(Duration::from_millis(50));
            broker.release(acquired.lease).unwrap();
            // Until its end is over, its own queue is its own: it may still bind to that.
            let is_listed = |broker: &mut Broker| {
                let leases = broker.list_leases().unwrap().leases;
                leases.iter().any(|lease| lease.lease == acquired.lease)
            };
            while is_listed(&mut broker) {
                std::thread::sleep(Duration::from_millis(2));
            }
            released.store(true, Ordering::Relaxed);
            println!("released");
        }
        loop {
            std::thread::sleep(Duration::from_millis(50));
            println!(
                "tries {}",
                serde_json::to_string(&*tries.lock().unwrap()).unwrap()
            );
        }
    });
}

/// What a bind takes and the broker leaves to the holder.
pub(crate) fn give_memory(socket: &OwnedFd) -> (Mapping, OwnedFd) {
    const BYTES: u32 = 4096;
    let file = memfd_create("rogue", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, u64::from(BYTES)).unwrap();
    let mapping = Mapping::new(&file, 0, usize::try_from(BYTES).unwrap(), Prefault::Yes).unwrap();
    sys::register_umem(socket.as_fd(), &mapping, BYTES, 0).unwrap();
    (mapping, file)
}
