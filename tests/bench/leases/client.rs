//! An unprivileged client that takes one queue and gives it back, step by step.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use xsk_client::sys::{Mapping, Prefault};
use xsk_client::wire::{Acquire, BrokerError, RingSizes, SocketKind, Target, UmemShape};
use xsk_client::{Broker, CallError};

use crate::{DEVICES, QUEUES};

/// Least of all, so that the broker is measured and not the kernel's memory.
const UMEM: UmemShape = UmemShape {
    chunk_bytes: 4096,
    chunks: 2,
    headroom_bytes: 0,
    hugepages: false,
};
const RING_ENTRIES: u32 = 64;

/// A queue of a device.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot {
    pub(crate) device: usize,
    pub(crate) queue: u32,
}

impl Slot {
    /// All of them, those of one device never one after the other.
    pub(crate) fn all() -> impl Iterator<Item = Self> + Clone {
        (0..QUEUES).flat_map(|queue| (0..DEVICES).map(move |device| Self { device, queue }))
    }

    pub(crate) fn target(self) -> Result<Target> {
        Ok(format!("eth{}:{}", self.device, self.queue).parse()?)
    }
}

/// A lease that is active.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) slot: Slot,
    lease: u64,
    socket: OwnedFd,
}

/// What the steps of one grant took, and of its end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Steps {
    pub(crate) acquire: Duration,
    pub(crate) bind: Duration,
    pub(crate) activate: Duration,
}

impl Steps {
    pub(crate) fn all(&self) -> Duration {
        self.acquire + self.bind + self.activate
    }
}

pub(crate) struct Client {
    broker: Broker,
}

impl Client {
    pub(crate) fn connect(socket: &Path) -> Result<Self> {
        Ok(Self {
            broker: Broker::connect_to(socket)?,
        })
    }

    /// One queue by a socket of kind `bound`, active. Touching the umem is not in the times.
    pub(crate) fn take(&mut self, slot: Slot) -> Result<(Held, Steps)> {
        let request = Acquire {
            umem: Some(UMEM),
            rings: Some(RingSizes::all(RING_ENTRIES)),
            ..Acquire::new(slot.target()?, SocketKind::Bound)
        };
        let start = Instant::now();
        let (acquired, fds) = self.broker.acquire(&request)?;
        let acquire = start.elapsed();
        let umem = fds.first().context("a grant without a umem")?;
        drop(Mapping::new(
            umem,
            0,
            usize::try_from(UMEM.bytes())?,
            Prefault::Yes,
        )?);
        let start = Instant::now();
        let (_, sockets) = self.broker.bind(acquired.lease)?;
        let bind = start.elapsed();
        let start = Instant::now();
        self.broker.activate(acquired.lease)?;
        let activate = start.elapsed();
        let held = Held {
            slot,
            lease: acquired.lease,
            socket: sockets.into_iter().next().context("a lease without a socket")?,
        };
        let steps = Steps {
            acquire,
            bind,
            activate,
        };
        Ok((held, steps))
    }

    /// Its end: `Release`, and the socket closed, which is not in the time.
    pub(crate) fn give_back(&mut self, held: Held) -> Result<Duration> {
        let start = Instant::now();
        self.broker.release(held.lease)?;
        let release = start.elapsed();
        drop(held.socket);
        Ok(release)
    }

    /// An unbound socket of kind `prepared`; `None` where the queue was busy for as long as the broker waits for one.
    pub(crate) fn take_unbound(&mut self, slot: Slot) -> Result<Option<u64>> {
        let request = Acquire {
            rings: Some(RingSizes::all(RING_ENTRIES)),
            ..Acquire::new(slot.target()?, SocketKind::Prepared)
        };
        match self.broker.acquire(&request) {
            Ok((acquired, _)) => Ok(Some(acquired.lease)),
            Err(CallError::Refused { cause, .. }) if matches!(*cause, BrokerError::QueueBusy { .. }) => {
                Ok(None)
            }
            Err(error) => Err(error).with_context(|| format!("asking for {slot:?}")),
        }
    }

    pub(crate) fn release(&mut self, lease: u64) -> Result<()> {
        Ok(self.broker.release(lease)?)
    }
}
