//! How long after the SIGKILL of a holder its queue is granted again.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use e2e::binaries;
use e2e::broker::BrokerProcess;
use e2e::figures::Times;
use e2e::holder::Holder;
use e2e::uids::Uid;
use e2e::world::{Side, World};
use rustix::process::Signal;
use serde::Serialize;
use xsk_client::wire::{RingSizes, SocketKind, Target};
use xsk_client::{BindOptions, Broker, Grant, Request, Umem, UmemOptions};

use crate::QUEUES;
use crate::client::{Client, Slot};

const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, Serialize)]
pub(crate) struct Killed {
    pub(crate) sockets: SocketKind,
    /// From the signal to the reply that grants the queue to somebody who asks at once.
    pub(crate) until_granted_again: Times,
}

pub(crate) fn measure(world: &World, broker: &BrokerProcess<'_>, kills: u32) -> Result<Vec<Killed>> {
    const KINDS: [SocketKind; 2] = [SocketKind::Prepared, SocketKind::Bound];

    let socket = broker.paths().socket();
    let (victim, heir) = (Uid::take()?, Uid::take()?);
    let mut heir = world.run_as(Side::Host, &heir.user(), || Client::connect(&socket))??;
    let mut times = KINDS.map(|_| Vec::new());
    for kill in 0..kills {
        for (kind, times) in KINDS.into_iter().zip(&mut times) {
            // Without placeholders, whose own time is not what this is about.
            let slot = Slot {
                device: 1,
                queue: kill % QUEUES,
            };
            times.push(once(world, &victim, &mut heir, kind, slot)?);
        }
        if kill % 25 == 24 {
            eprintln!("{} of {kills} holders of each kind killed", kill + 1);
        }
    }
    Ok(KINDS
        .into_iter()
        .zip(times)
        .map(|(sockets, times)| Killed {
            sockets,
            until_granted_again: Times::of(times.into_iter()),
        })
        .collect())
}

fn once(world: &World, victim: &Uid, heir: &mut Client, kind: SocketKind, slot: Slot) -> Result<Duration> {
    let program = binaries::this_program()?;
    let target = slot.target()?.to_string();
    let mut holder = Holder::program(world, Side::Host, &victim.user(), &program, |command| {
        command.args(["holder", kind.as_str(), &target]);
    })?;
    holder.wait_active()?;
    let start = Instant::now();
    holder.process().signal(Signal::KILL)?;
    let lease = loop {
        if let Some(lease) = heir.take_unbound(slot)? {
            break lease;
        }
        anyhow::ensure!(
            start.elapsed() < PATIENCE,
            "the queue of a holder that was killed is not free"
        );
    };
    let elapsed = start.elapsed();
    heir.release(lease)?;
    holder.kill()?;
    Ok(elapsed)
}

/// The holder: `KIND TARGET`.
pub(crate) fn hold(words: &[String]) -> Result<()> {
    let [kind, target] = words else {
        bail!("this is run by `cargo xtask bench leases`");
    };
    let target: Target = target.parse()?;
    let mut broker = Broker::connect()?;
    let (umem, rings) = (UmemOptions::new().chunks(64), RingSizes::all(64));
    let xsk = if kind == SocketKind::Bound.as_str() {
        let grant = Grant::acquire(&mut broker, Request::bound(target, &umem).rings(rings))?;
        grant.bind_by_broker(&mut broker)?.one()?.activate(&mut broker)?
    } else {
        let grant = Grant::acquire(&mut broker, Request::new(target).rings(rings))?;
        let bound = grant.bind_one(Umem::new(&umem)?, &BindOptions::new())?;
        bound.activate(&mut broker)?
    };
    println!("active");
    thread::sleep(Duration::from_secs(3600));
    drop(xsk);
    Ok(())
}
