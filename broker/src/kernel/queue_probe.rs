//! Whether some socket is bound to a queue: asked by trying to bind one of ours.
//!
//! **Invariant**: the socket that is kept is unbound. A bind that fails leaves it so (`xsk_bind`, net/xdp/xsk.c), and
//! it can try again; one that succeeds was its last.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;

use caps::Capability;
use xsk_client::sys::{self, BindFlags, Mapping, Prefault, Ring};

use super::netlink;
use crate::error::Failure;
use crate::privileges;

/// What the broker asks with.
#[derive(Debug, Default)]
pub struct QueueProbe {
    socket: Option<OwnedFd>,
    /// Whether a driver may do zero-copy, by the index of its device.
    may_zero_copy: HashMap<u32, bool>,
}

/// Whether some socket is bound to a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueUse {
    /// One is, or one was and the kernel has not let go yet.
    Taken,
    /// None is.
    Free,
}

impl QueueProbe {
    /// Asks whether a queue is taken.
    ///
    /// Where the driver has no zero-copy the try asks for zero-copy: `xp_assign_dev` (net/xdp/xsk_buff_pool.c) says
    /// EBUSY for a taken queue before it says EOPNOTSUPP, and the queue is as it was. Elsewhere the try must be one that
    /// succeeds, in copy mode, and then the queue is busy for the 16 to 50 ms that the kernel takes to let go (F34).
    ///
    /// Either try tells the truth whatever the driver can do, so that what is remembered of it decides the cost alone.
    ///
    /// # Errors
    ///
    /// What the kernel says, by the call that said it.
    pub fn queue_use(&mut self, index: u32, queue: u32) -> Result<QueueUse, Failure> {
        let failed = |call, source: io::Error| {
            Failure::kernel(call, format!("ifindex {index}, queue {queue}"), source)
        };
        let may_zero_copy = self.may_zero_copy(index);
        let probe = match self.socket.take() {
            Some(probe) => probe,
            None => privileges::with(
                &[Capability::CAP_NET_RAW, Capability::CAP_IPC_LOCK],
                unbound_socket,
            )?
            .map_err(|source| failed("making of a probe socket", source))?,
        };
        let flags = if may_zero_copy {
            BindFlags::XDP_COPY
        } else {
            BindFlags::XDP_ZEROCOPY
        };
        let error = match sys::bind(&probe, index, queue, flags) {
            Ok(()) => return Ok(QueueUse::Free),
            Err(error) => error,
        };
        self.socket = Some(probe);
        match error.raw_os_error() {
            Some(libc::EOPNOTSUPP) if !may_zero_copy => Ok(QueueUse::Free),
            Some(libc::EBUSY) => Ok(QueueUse::Taken),
            // There is no such queue any more, so nothing holds it (`xsk_reg_pool_at_qid`, net/xdp/xsk.c).
            Some(libc::EINVAL) => Ok(QueueUse::Free),
            _ => Err(failed("bind(AF_XDP)", error)),
        }
    }

    /// The same, unless asking would disturb a free queue.
    ///
    /// # Errors
    ///
    /// As above.
    pub fn queue_use_untouched(&mut self, index: u32, queue: u32) -> Result<Option<QueueUse>, Failure> {
        if self.may_zero_copy(index) {
            return Ok(None);
        }
        self.queue_use(index, queue).map(Some)
    }

    fn may_zero_copy(&mut self, index: u32) -> bool {
        let ask = || netlink::may_do_zero_copy(index);
        // Unknown (before Linux 6.3) counts as "it may": then the try is the one that is always right.
        *self
            .may_zero_copy
            .entry(index)
            .or_insert_with(|| ask().unwrap_or(true))
    }

    /// Forgets a device that is gone: its index may be another's one day.
    pub fn forget(&mut self, index: u32) {
        self.may_zero_copy.remove(&index);
    }
}

/// A socket that is ready to be bound and good for nothing else: one page of umem, rings of one entry.
fn unbound_socket() -> io::Result<OwnedFd> {
    const PAGE_BYTES: usize = 4096;
    const CHUNK_BYTES: u32 = 4096;

    let memory = rustix::fs::memfd_create("xsk-broker probe", rustix::fs::MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&memory, u64::from(CHUNK_BYTES))?;
    let mapping = Mapping::new(&memory, 0, PAGE_BYTES, Prefault::No)?;
    let socket = sys::xdp_socket()?;
    sys::register_umem(&socket, &mapping, CHUNK_BYTES)?;
    for ring in [Ring::Fill, Ring::Completion, Ring::Rx] {
        sys::create_ring(&socket, ring, 1)?;
    }
    Ok(socket)
}
