//! What a grant and an end cost while there are many other leases.

use std::collections::VecDeque;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use e2e::figures::Times;
use serde::Serialize;

use crate::LEVELS;
use crate::broker::Operator;
use crate::client::{Client, Held, Slot, Steps};

/// What was measured while there were so many leases.
#[derive(Debug, Serialize)]
pub(crate) struct Level {
    pub(crate) leases: usize,
    pub(crate) way: Way,
    pub(crate) acquire: Times,
    pub(crate) bind: Times,
    pub(crate) activate: Times,
    pub(crate) release: Times,
    /// One client's, one after the other, by the time that its four calls take. (Closing the socket is the client's, and
    /// waits for all CPUs in the kernel, some 10 ms.)
    pub(crate) grants_and_ends_per_second: f64,
    /// Of the engine's thread, for one grant and one end.
    pub(crate) engine_cpu_us: f64,
    /// The same for a second in which nobody does anything.
    pub(crate) engine_idle_cpu_us: f64,
    pub(crate) broker_kib: u64,
    /// What it took more for each lease since the level before. Only on the way up: an allocator keeps what it has.
    pub(crate) bytes_per_lease: Option<f64>,
}

/// Whether the number of leases grew or shrank before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Way {
    Up,
    Down,
}

struct Crowd<'a> {
    client: Client,
    operator: &'a mut Operator,
    held: VecDeque<Held>,
    free: VecDeque<Slot>,
}

pub(crate) fn measure(socket: &Path, operator: &mut Operator, cycles: u32) -> Result<Vec<Level>> {
    let mut crowd = Crowd {
        client: Client::connect(socket)?,
        operator,
        held: VecDeque::new(),
        free: Slot::all().collect(),
    };
    // The first grant of each device loads and attaches the XDP program; and an allocator has its first pages.
    crowd.grow_to(crate::DEVICES * 2)?;
    crowd.shrink_to(0)?;
    crowd.wait_until_there_are_only(0)?;
    let mut before = (0, crowd.operator.memory_kib()?);
    let mut levels = Vec::new();
    let up = LEVELS.iter().map(|level| (*level, Way::Up));
    let down = LEVELS.iter().rev().skip(1).map(|level| (*level, Way::Down));
    for (count, way) in up.chain(down) {
        match way {
            Way::Up => crowd.grow_to(count)?,
            Way::Down => crowd.shrink_to(count)?,
        }
        let mut level = crowd.level(count, way, cycles)?;
        if way == Way::Up {
            let (fewer, less_kib) = std::mem::replace(&mut before, (count, level.broker_kib));
            let more = u32::try_from(level.broker_kib.saturating_sub(less_kib) * 1024)?;
            level.bytes_per_lease = Some(f64::from(more) / f64::from(u32::try_from(count - fewer)?));
        }
        levels.push(level);
        eprintln!("{count} leases: {cycles} grants and ends measured");
    }
    crowd.shrink_to(0)?;
    crowd.wait_until_there_are_only(0)?;
    Ok(levels)
}

impl Crowd<'_> {
    fn grow_to(&mut self, count: usize) -> Result<()> {
        while self.held.len() < count {
            let slot = self.free.pop_front().context("no queue is free")?;
            self.held.push_back(self.client.take(slot)?.0);
        }
        Ok(())
    }

    fn shrink_to(&mut self, count: usize) -> Result<()> {
        while self.held.len() > count {
            let held = self.held.pop_front().context("there is no lease")?;
            self.free.push_back(held.slot);
            self.client.give_back(held)?;
        }
        Ok(())
    }

    /// The kernel lets go of queues some time after their sockets are gone.
    fn wait_until_there_are_only(&mut self, count: usize) -> Result<()> {
        const PATIENCE: Duration = Duration::from_secs(60);

        let deadline = Instant::now() + PATIENCE;
        while self.operator.leases()? > u64::try_from(count)? {
            anyhow::ensure!(
                Instant::now() < deadline,
                "leases that have ended are still there"
            );
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn level(&mut self, count: usize, way: Way, cycles: u32) -> Result<Level> {
        self.wait_until_there_are_only(count)?;
        let broker_kib = self.operator.memory_kib()?;
        let idle_before = self.operator.engine_cpu()?;
        thread::sleep(Duration::from_secs(1));
        let before = self.operator.engine_cpu()?;
        let (mut steps, mut ends) = (Vec::new(), Vec::new());
        for _ in 0..cycles {
            let slot = self.free.pop_front().context("no queue is free")?;
            let (held, taken) = self.client.take(slot)?;
            self.free.push_back(slot);
            steps.push(taken);
            ends.push(self.client.give_back(held)?);
        }
        let calls: Duration = steps.iter().map(Steps::all).chain(ends.iter().copied()).sum();
        // What was ended is looked after until the kernel has let go of it: that is a part of what an end costs.
        self.wait_until_there_are_only(count)?;
        let cpu = self.operator.engine_cpu()? - before;
        Ok(Level {
            leases: count,
            way,
            acquire: Times::of(steps.iter().map(|it| it.acquire)),
            bind: Times::of(steps.iter().map(|it| it.bind)),
            activate: Times::of(steps.iter().map(|it| it.activate)),
            release: Times::of(ends.iter().copied()),
            grants_and_ends_per_second: f64::from(cycles) / calls.as_secs_f64(),
            engine_cpu_us: cpu.as_secs_f64() * 1e6 / f64::from(cycles),
            engine_idle_cpu_us: (before - idle_before).as_secs_f64() * 1e6,
            broker_kib,
            bytes_per_lease: None,
        })
    }
}
