//! What the queue lock `lsm` costs is for `cargo xtask bench grants` to measure, where the kernel has it; here, that it stays
//! what it is: two changes of a map for each grant, and nothing to wait for.

use std::io::Write;
use std::time::Instant;

use e2e::broker::BrokerProcess;
use e2e::lsm;
use e2e::skip;
use e2e::uids::Uid;
use e2e::world::World;
use xsk_client::sys::{self, BindFlags};
use xsk_client::wire::{Acquire, SocketKind};

use crate::lease_scene::allow_kinds;
use crate::rogue_scene::memory;

const QUEUES: u32 = 8;

#[test]
fn a_grant_takes_little_longer_than_without_it() {
    const ROUNDS: u32 = 140;
    if let Err(skip) = lsm::is_in_force() {
        skip!(skip);
    }
    let world = World::builder().peers(2).build().unwrap();
    let alice = Uid::take().unwrap();
    let devices = [("eth0", "none"), ("eth1", "lsm")];
    let sections = devices.map(|(name, lock)| format!("[interface.{name}]\nqueue-lock = \"{lock}\"\n"));
    let limits =
        "[limits.per-user]\nabandoned-sockets = 100000\n[limits.in-all]\nabandoned-sockets = 100000\n";
    let rule = allow_kinds(alice.number(), "*", &["prepared"], "");
    let broker = BrokerProcess::start(&world, &(sections.concat() + &rule + limits)).unwrap();
    let mut client = broker.client_of(&alice).unwrap();
    let mut times = devices.map(|_| Vec::new());
    for round in 0..ROUNDS {
        for ((device, _), times) in devices.iter().zip(&mut times) {
            let target = format!("{device}:{}", round % QUEUES).parse().unwrap();
            let request = Acquire::new(target, SocketKind::Prepared);
            let (taken, acquired, socket) = loop {
                let begun = Instant::now();
                match client.acquire(&request) {
                    Ok((acquired, mut sockets)) => break (begun.elapsed(), acquired, sockets.remove(0)),
                    // The kernel has not let go of the queue since the last round.
                    Err(error) => std::thread::sleep(error.retry_after().unwrap()),
                }
            };
            let memory = memory(16);
            sys::register_umem(&socket, &memory, 4096, 0).unwrap();
            sys::bind(
                &socket,
                acquired.interface_index,
                round % QUEUES,
                BindFlags::XDP_COPY,
            )
            .unwrap();
            let begun = Instant::now();
            client.activate(acquired.lease).unwrap();
            times.push(taken + begun.elapsed());
            client.release(acquired.lease).unwrap();
        }
    }
    let [without, with] = times.map(|mut times| {
        times.sort_unstable();
        times[times.len() / 2]
    });
    let told = format!("median without a lock {without:?}, under lsm {with:?}, {ROUNDS} rounds in turn");
    // Past libtest's capturing.
    writeln!(std::io::stderr(), "Acquire and Activate: {told}").unwrap();
    assert!(with < without * 2, "{told}");
}
