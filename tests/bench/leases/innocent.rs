//! What a user waits for while the grants of others wait for the kernel.
//!
//! The others ask for unbound sockets of one device, again and again: under placeholders each such grant waits until the
//! kernel has let go of those of the one before. The innocent one takes sockets of kind `bound` on other devices.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use e2e::broker::BrokerProcess;
use e2e::figures::Times;
use e2e::uids::Uid;
use e2e::world::{Side, World};
use serde::Serialize;

use crate::client::{Client, Slot};
use crate::{OTHERS, QUEUES};

/// Grants of the innocent one in each round.
const AT_A_TIME: usize = 50;

#[derive(Debug, Serialize)]
pub(crate) struct Innocent {
    /// Acquire, Bind and Activate together.
    pub(crate) alone: Times,
    pub(crate) beside_others: Times,
    pub(crate) others: usize,
    /// What all of the others were granted while the innocent one was measured.
    pub(crate) granted_to_others: u64,
    /// How often one of them had waited its time in vain.
    pub(crate) refused_to_others: u64,
}

/// Whether the others go on, and what they got.
#[derive(Debug, Default)]
struct Crowd {
    asking: AtomicBool,
    over: AtomicBool,
    granted: AtomicU64,
    refused: AtomicU64,
}

/// Says that it is over when dropped, by an error too: else the others would go on for ever.
struct Over<'a>(&'a Crowd);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Relaxed);
    }
}

pub(crate) fn measure(world: &World, broker: &BrokerProcess<'_>, rounds: u32) -> Result<Innocent> {
    let socket = broker.paths().socket();
    let innocent = Uid::take()?;
    let others: Vec<Uid> = (0..OTHERS).map(|_| Uid::take()).collect::<Result<_>>()?;
    let crowd = Crowd::default();
    let (alone, beside_others) = thread::scope(|scope| -> Result<_> {
        let over = Over(&crowd);
        let (crowd, socket) = (&crowd, &socket);
        let mut asking = Vec::new();
        for (number, uid) in others.iter().enumerate() {
            asking.push(scope.spawn(move || {
                world.run_as(Side::Host, &uid.user(), move || {
                    ask_again_and_again(Client::connect(socket)?, u32::try_from(number)?, crowd)
                })?
            }));
        }
        let measured = world.run_as(Side::Host, &innocent.user(), move || {
            in_turns(Client::connect(socket)?, crowd, rounds)
        })?;
        drop(over);
        for other in asking {
            let outcome = other.join().ok().context("one of the others panicked")?;
            outcome.context("one of the others")?;
        }
        measured
    })?;
    Ok(Innocent {
        alone: Times::of(alone.into_iter()),
        beside_others: Times::of(beside_others.into_iter()),
        others: OTHERS,
        granted_to_others: crowd.granted.into_inner(),
        refused_to_others: crowd.refused.into_inner(),
    })
}

fn in_turns(mut client: Client, crowd: &Crowd, rounds: u32) -> Result<(Vec<Duration>, Vec<Duration>)> {
    let (mut alone, mut beside_others) = (Vec::new(), Vec::new());
    let mut slots = Slot::all().filter(|slot| slot.device != 0).cycle();
    for round in 0..2 * rounds {
        let others = round % 2 == 1;
        crowd.asking.store(others, Ordering::Relaxed);
        // Until those who ask are in the middle of it, or those who asked have been answered.
        thread::sleep(Duration::from_millis(600));
        for _ in 0..AT_A_TIME {
            let (held, steps) = client.take(slots.next().context("no queue")?)?;
            client.give_back(held)?;
            if others { &mut beside_others } else { &mut alone }.push(steps.all());
            // It has other things to do, too: the others are not measured by what it leaves them.
            thread::sleep(Duration::from_millis(5));
        }
        if others {
            eprintln!("innocent user: round {} of {rounds}", round.div_ceil(2));
        }
    }
    Ok((alone, beside_others))
}

fn ask_again_and_again(mut client: Client, number: u32, crowd: &Crowd) -> Result<()> {
    let mut queues = (0..QUEUES)
        .filter(|queue| queue % u32::try_from(OTHERS).unwrap_or(1) == number)
        .cycle();
    while !crowd.over.load(Ordering::Relaxed) {
        if !crowd.asking.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(5));
            continue;
        }
        let queue = queues.next().context("no queue")?;
        match client.take_unbound(Slot { device: 0, queue })? {
            Some(lease) => {
                crowd.granted.fetch_add(1, Ordering::Relaxed);
                client.release(lease)?;
            }
            None => {
                crowd.refused.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    Ok(())
}
