//! Our side: an unprivileged client of the real broker.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::xdp::{
    XDP_PGOFF_RX_RING, XDP_PGOFF_TX_RING, XDP_UMEM_PGOFF_COMPLETION_RING, XDP_UMEM_PGOFF_FILL_RING, XdpDesc,
    XdpRingOffset,
};
use xsk_client::sys::{self, BindFlags, Mapping, Prefault, Ring};
use xsk_client::wire::{Acquire, SocketKind, Target};
use xsk_client::{BindOptions, Broker, Grant, Request, Umem, UmemOptions};

use crate::{CHUNK_BYTES, CHUNKS, QUEUES, RINGS};

/// What the steps of one grant took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Steps {
    /// `Acquire`, from the request to the fd.
    pub(crate) acquire: Duration,
    /// A memfd, mapped and prefaulted.
    pub(crate) memory: Duration,
    /// Registering it.
    pub(crate) umem: Duration,
    /// Mapping the rings, and the bind.
    pub(crate) bind: Duration,
    /// `Activate`.
    pub(crate) activate: Duration,
    /// `Release`, and closing and unmapping everything.
    pub(crate) close: Duration,
}

/// What the steps of one grant of kind `bound` took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BoundSteps {
    /// `Acquire`, from the request to the memfd.
    pub(crate) acquire: Duration,
    /// It mapped and prefaulted.
    pub(crate) memory: Duration,
    /// Mapping the memory, `Bind`, and mapping the rings.
    pub(crate) bind: Duration,
    /// `Activate`.
    pub(crate) activate: Duration,
}

/// What calls take that do nothing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EmptyCalls {
    /// `GetInfo`, which the broker's first thread answers: a round trip between two processes.
    pub(crate) get_info: Duration,
    /// `ListLeases` where there are none: to the engine's thread, and back. A grant takes two calls of this way.
    pub(crate) list_leases: Duration,
}

pub(crate) struct Ours {
    broker: Broker,
}

impl Ours {
    pub(crate) fn connect(socket: &Path) -> Result<Self> {
        Ok(Self {
            broker: Broker::connect_to(socket)?,
        })
    }

    /// One grant as the library makes it, with its system calls in its order, so that each step can be timed. Rings that
    /// are the holder's to make count as a part of the bind.
    pub(crate) fn by_steps(&mut self, device: &str, kind: SocketKind, queue: u32) -> Result<Steps> {
        let request = acquire_of(target_on(device, queue)?, kind);
        let mut lap = Lap::start();
        let (acquired, sockets) = self.broker.acquire(&request)?;
        let acquire = lap.next();
        let socket = sockets.into_iter().next().context("a grant without a socket")?;

        let memfd = memfd_create("bench", MemfdFlags::CLOEXEC)?;
        let bytes = u64::from(CHUNKS) * u64::from(CHUNK_BYTES);
        ftruncate(&memfd, bytes)?;
        let mapping = Mapping::new(&memfd, 0, usize::try_from(bytes)?, Prefault::Yes)?;
        let memory = lap.next();
        sys::register_umem(&socket, &mapping, CHUNK_BYTES, 0)?;
        let umem = lap.next();

        if kind == SocketKind::Bare {
            for (ring, entries) in [
                (Ring::Fill, RINGS.fill),
                (Ring::Completion, RINGS.completion),
                (Ring::Rx, RINGS.rx),
                (Ring::Tx, RINGS.tx),
            ] {
                sys::create_ring(&socket, ring, entries)?;
            }
        }
        let at = sys::mmap_offsets(&socket)?;
        let ring = |page, offset: &XdpRingOffset, entries: u32, entry_bytes| -> Result<Mapping> {
            let bytes = usize::try_from(offset.desc)? + usize::try_from(entries)? * entry_bytes;
            Ok(Mapping::new(&socket, page, bytes, Prefault::Yes)?)
        };
        let rings = [
            ring(XDP_UMEM_PGOFF_FILL_RING, &at.fr, RINGS.fill, size_of::<u64>())?,
            ring(
                XDP_UMEM_PGOFF_COMPLETION_RING,
                &at.cr,
                RINGS.completion,
                size_of::<u64>(),
            )?,
            ring(XDP_PGOFF_RX_RING, &at.rx, RINGS.rx, size_of::<XdpDesc>())?,
            ring(XDP_PGOFF_TX_RING, &at.tx, RINGS.tx, size_of::<XdpDesc>())?,
        ];
        let flags = BindFlags::XDP_COPY | BindFlags::XDP_USE_NEED_WAKEUP;
        sys::bind(&socket, acquired.interface_index, queue, flags)?;
        let bind = lap.next();
        self.broker.activate(acquired.lease)?;
        let activate = lap.next();

        self.broker.release(acquired.lease)?;
        drop((rings, socket, mapping, memfd));
        let close = lap.next();
        Ok(Steps {
            acquire,
            memory,
            umem,
            bind,
            activate,
            close,
        })
    }

    /// Calls for which there is nothing to do but to answer them.
    pub(crate) fn empty_calls(&mut self) -> Result<EmptyCalls> {
        let mut lap = Lap::start();
        self.broker.get_info()?;
        let get_info = lap.next();
        self.broker.list_leases()?;
        let list_leases = lap.next();
        Ok(EmptyCalls {
            get_info,
            list_leases,
        })
    }

    /// How long an `Acquire` takes that comes right behind the end of another lease of the same device, by the broker's own
    /// wait: under placeholders the kernel has to let go of those of the one before.
    pub(crate) fn right_behind(&mut self, device: &str, queue: u32) -> Result<Duration> {
        let (first, sockets) = self
            .broker
            .acquire(&acquire_of(target_on(device, queue)?, SocketKind::Prepared))?;
        self.broker.release(first.lease)?;
        drop(sockets);
        let request = acquire_of(target_on(device, (queue + 1) % QUEUES)?, SocketKind::Prepared);
        let mut lap = Lap::start();
        let (second, _) = self.broker.acquire(&request)?;
        let acquire = lap.next();
        self.broker.release(second.lease)?;
        Ok(acquire)
    }

    /// One grant of kind `bound` through the library's own types, as far as they can be parted.
    pub(crate) fn by_broker(&mut self, queue: u32) -> Result<BoundSteps> {
        let shape = UmemOptions::new().chunks(CHUNKS).chunk_bytes(CHUNK_BYTES);
        let request = Request::bound(target(queue)?, &shape).rings(RINGS);
        let mut lap = Lap::start();
        let grant = Grant::acquire(&mut self.broker, request)?;
        let acquire = lap.next();
        // What `bind_by_broker` does first, done here so that it is not in its time.
        let (acquired, fds) = grant.into_parts();
        let umem = fds.first().context("a grant without a umem")?;
        let bytes = usize::try_from(u64::from(CHUNKS) * u64::from(CHUNK_BYTES))?;
        drop(Mapping::new(umem, 0, bytes, Prefault::Yes)?);
        let memory = lap.next();
        let bound = Grant::from_parts(acquired, fds)?
            .bind_by_broker(&mut self.broker)?
            .one()?;
        let bind = lap.next();
        let lease = bound.lease();
        let xsk = bound.activate(&mut self.broker)?;
        let activate = lap.next();
        self.broker.release(lease)?;
        drop(xsk);
        Ok(BoundSteps {
            acquire,
            memory,
            bind,
            activate,
        })
    }

    /// One grant through the library's own types, from the request to the active socket.
    pub(crate) fn by_library(&mut self, queue: u32) -> Result<Duration> {
        let request = Request::new(target(queue)?).rings(RINGS);
        let mut lap = Lap::start();
        let grant = Grant::acquire(&mut self.broker, request)?;
        let umem = Umem::new(&UmemOptions::new().chunks(CHUNKS).chunk_bytes(CHUNK_BYTES))?;
        let bound = grant.bind_one(umem, &BindOptions::new())?;
        let lease = bound.lease();
        let xsk = bound.activate(&mut self.broker)?;
        let all = lap.next();
        self.broker.release(lease)?;
        drop(xsk);
        Ok(all)
    }
}

fn target(queue: u32) -> Result<Target> {
    target_on("eth0", queue)
}

fn target_on(device: &str, queue: u32) -> Result<Target> {
    Ok(format!("{device}:{queue}").parse()?)
}

fn acquire_of(target: Target, kind: SocketKind) -> Acquire {
    Acquire {
        // Of kind `bare` its holder makes them.
        rings: (kind != SocketKind::Bare).then_some(RINGS),
        ..Acquire::new(target, kind)
    }
}

/// A stop-watch.
struct Lap(Instant);

impl Lap {
    fn start() -> Self {
        Self(Instant::now())
    }

    /// Since the start, or since the last call.
    fn next(&mut self) -> Duration {
        let last = std::mem::replace(&mut self.0, Instant::now());
        self.0 - last
    }
}
