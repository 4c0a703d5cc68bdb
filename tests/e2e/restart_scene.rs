//! What the tests of restarts share: four holders under a steady stream that is counted at both ends, and what must be true
//! of a broker that has taken over.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use e2e::bpf;
use e2e::broker::{BrokerProcess, Output, cli};
use e2e::raw_xsk::RawXsk;
use e2e::uids::Uid;
use e2e::world::{Side, World};
use serde_json::Value;
use xsk_client::wire::{Lease, LeaseState};

use crate::lease_scene::{END, PATIENCE, Traffic, leases};
use crate::puppet::{Order, Puppet, Seen};

/// The queues of the holders that go on whatever happens.
pub(crate) const HELD: [u32; 4] = [1, 2, 3, 4];
/// Long enough for a process that is not given the CPU.
const IDLE_MS: u64 = 20_000;
/// Between one queue and the next. At some 750 packets a second for each, a holder may be away for 2 s before its own rings
/// lose anything.
const PAUSE: Duration = Duration::from_micros(250);

/// A holder of one queue.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) queue: u32,
    pub(crate) lease: u64,
    pub(crate) puppet: Puppet,
}

/// Four holders, each with a queue of eth0.
pub(crate) fn four_holders(world: &World, uids: &[Uid; 4]) -> Vec<Held> {
    let hold = |(queue, uid): (u32, &Uid)| {
        let mut puppet = Puppet::start(world, Side::Host, &uid.user());
        let lease = puppet.acquire(&format!("eth0:{queue}")).unwrap();
        let bind = Order::Bind {
            lease,
            chunk_bytes: 2048,
            chunks: 2048,
        };
        puppet.ask(&bind).unwrap();
        puppet.activate(lease).unwrap();
        Held { queue, lease, puppet }
    };
    HELD.into_iter().zip(uids).map(hold).collect()
}

/// Keeps a stream up to all four holders while `f` runs, and shows that every one of its packets has arrived. Gives how
/// many these were, and what `f` gave.
pub(crate) fn under_a_stream<T>(traffic: &Traffic, holders: &mut [Held], f: impl FnOnce() -> T) -> (u64, T) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let sender = scope.spawn(|| send(traffic, &stop));
        let receivers: Vec<ScopedJoinHandle<'_, (u32, Seen)>> = holders
            .iter_mut()
            .map(|held| {
                scope.spawn(|| {
                    let idle = Duration::from_millis(IDLE_MS);
                    let seen = held.puppet.receive(held.lease, held.queue, u64::MAX, idle);
                    (held.queue, seen)
                })
            })
            .collect();
        // Set by a panic, too, so that the others end.
        let stopping = Stopping(&stop);
        let result = f();
        drop(stopping);
        let sent = sender.join().unwrap();
        for receiver in receivers {
            let (queue, seen) = receiver.join().unwrap();
            assert_eq!(seen, Seen::only(queue, sent), "queue {queue}: {sent} were sent");
        }
        (sent * u64::try_from(HELD.len()).unwrap(), result)
    })
}

struct Stopping<'a>(&'a AtomicBool);

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Numbered datagrams to each queue in turn. Gives how many each got, without the one that ends it.
fn send(traffic: &Traffic, stop: &AtomicBool) -> u64 {
    const AT_ONCE: u64 = 4;

    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        for queue in HELD {
            traffic.send_all(queue, number..number + AT_ONCE);
            thread::sleep(PAUSE);
        }
        number += AT_ONCE;
    }
    for queue in HELD {
        traffic.send(queue, END);
    }
    number
}

/// What must be true once a broker serves: the holders' leases are there and active, no queue is granted twice, no slot is
/// filled but for a lease that lives, and each lease has its record.
pub(crate) fn check(world: &World, broker: &BrokerProcess<'_>, holders: &[Held]) -> Vec<Lease> {
    let now = leases(broker);
    for held in holders {
        let found = now.iter().find(|lease| lease.lease == held.lease);
        let found = found.unwrap_or_else(|| panic!("lease {} is gone: {now:?}", held.lease));
        assert_eq!(found.state, LeaseState::Active, "{found:?}");
        assert_eq!(found.holder.pid, held.puppet.pid(), "{found:?}");
        assert_eq!(found.queues[0].queue, held.queue, "{found:?}");
    }
    let mut owners = BTreeMap::new();
    for lease in &now {
        for queue in &lease.queues {
            let other = owners.insert((lease.interface_index, queue.queue), lease);
            assert!(other.is_none(), "granted twice: {other:?} and {lease:?}");
        }
    }
    for device in &world_devices(world) {
        let live = |lease: &&Lease| {
            lease.interface_index == *device
                && matches!(lease.state, LeaseState::Active | LeaseState::HandedOver)
        };
        let expected: BTreeSet<u32> = now
            .iter()
            .filter(live)
            .filter(|lease| lease.state == LeaseState::Active)
            .flat_map(|lease| lease.queues.iter().map(|queue| queue.queue))
            .collect();
        if let Some(map) = pinned_map(world, broker, *device) {
            assert_eq!(filled_slots(world, &map), expected, "ifindex {device}: {now:?}");
        } else {
            assert_eq!(expected, BTreeSet::new(), "ifindex {device} has no map: {now:?}");
        }
    }
    let recorded = records(world, broker);
    let listed: BTreeSet<u64> = now.iter().map(|lease| lease.lease).collect();
    assert_eq!(recorded, listed, "records and leases");
    now
}

fn world_devices(world: &World) -> Vec<u32> {
    let links = world.netlink(Side::Host).links().unwrap();
    links
        .iter()
        .filter(|link| link.name != "lo")
        .map(|link| link.index)
        .collect()
}

/// The leases that are written down.
pub(crate) fn records(world: &World, broker: &BrokerProcess<'_>) -> BTreeSet<u64> {
    let directory = world.path(broker.paths().run_dir().strip_prefix("/run").unwrap());
    let names = std::fs::read_dir(directory).unwrap();
    names
        .filter_map(|entry| {
            let name = entry.unwrap().file_name().into_string().unwrap();
            name.strip_prefix("lease-")?.strip_suffix(".json")?.parse().ok()
        })
        .collect()
}

/// Where something is pinned, as this process can reach it.
pub(crate) fn pin(world: &World, broker: &BrokerProcess<'_>, name: &str) -> PathBuf {
    let directory = broker.paths().bpf_dir();
    world.path(directory.strip_prefix("/run").unwrap()).join(name)
}

/// The map of sockets of a device.
pub(crate) fn pinned_map(world: &World, broker: &BrokerProcess<'_>, index: u32) -> Option<OwnedFd> {
    bpf::open_pinned(&pin(world, broker, &format!("xsks-{index}"))).ok()
}

/// The queues whose slots are filled. A map does not tell: but an empty slot takes a socket.
pub(crate) fn filled_slots(world: &World, map: &OwnedFd) -> BTreeSet<u32> {
    let probe = world.run_in(Side::Host, || RawXsk::new(1)).unwrap().unwrap();
    let is_filled = |queue: &u32| match bpf::insert_new_socket(map, *queue, &probe) {
        Ok(()) => {
            bpf::delete(map, *queue).unwrap();
            false
        }
        Err(error) => {
            assert_eq!(error.raw_os_error(), Some(libc::EEXIST), "queue {queue}: {error}");
            true
        }
    };
    (0..8).filter(is_filled).collect()
}

/// What is to be done about each piece: by kind and name.
pub(crate) fn pieces(output: &Output) -> BTreeMap<(String, String), (String, String)> {
    assert_eq!(output.code, Some(0), "{output:?}");
    let pieces: Vec<Value> = serde_json::from_str(&output.stdout).unwrap();
    let text = |piece: &Value, member: &str| piece[member].as_str().unwrap().to_owned();
    pieces
        .iter()
        .map(|piece| {
            (
                (text(piece, "kind"), text(piece, "name")),
                (text(piece, "action"), text(piece, "why")),
            )
        })
        .collect()
}

/// A file of the run directory, as this process can reach it.
pub(crate) fn file(world: &World, name: &str) -> PathBuf {
    world.path("xsk-broker").join(name)
}

/// The record of a lease.
pub(crate) fn record(world: &World, lease: u64) -> PathBuf {
    file(world, &format!("lease-{lease}.json"))
}

/// `serve --dry-run` as that broker would be started.
pub(crate) fn dry_run(world: &World, broker: &BrokerProcess<'_>, more: &[&str]) -> Output {
    dry_run_by(world, broker, "/run/bpf/xsk-broker", more)
}

/// The same with another `--bpf-dir`.
pub(crate) fn dry_run_by(world: &World, broker: &BrokerProcess<'_>, bpf_dir: &str, more: &[&str]) -> Output {
    let uid = broker.uid().to_string();
    let arguments = [
        "serve",
        "--dry-run",
        "--policy",
        "/run/xsk-broker.toml",
        "--run-dir",
        "/run/xsk-broker",
        "--bpf-dir",
        bpf_dir,
        "--user",
        &uid,
    ];
    cli(world, None, &[&arguments, more].concat()).unwrap()
}

/// `purge` of what a broker with the default paths has left.
pub(crate) fn purge(world: &World, more: &[&str]) -> Output {
    purge_by(world, "/run/bpf/xsk-broker", more)
}

/// The same with another `--bpf-dir`.
pub(crate) fn purge_by(world: &World, bpf_dir: &str, more: &[&str]) -> Output {
    let arguments = ["purge", "--run-dir", "/run/xsk-broker", "--bpf-dir", bpf_dir];
    cli(world, None, &[&arguments, more].concat()).unwrap()
}

/// Waits for words in the broker's log.
pub(crate) fn wait_told(broker: &BrokerProcess<'_>, words: &str) {
    let told = |line: &str| line.contains(words).then_some(());
    broker.process().wait_stderr(PATIENCE, told).unwrap();
}
