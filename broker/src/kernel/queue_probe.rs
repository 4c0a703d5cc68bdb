//! Whether some socket is bound to a queue: asked by trying to bind one of ours.
//!
//! **Invariant**: the socket that is kept is unbound. A bind that fails leaves it so (`xsk_bind`, net/xdp/xsk.c), and
//! it can try again; one that succeeds was its last.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use caps::Capability;
use xsk_client::sys::{self, BindFlags, Mapping, Prefault, Ring};

use super::netlink;
use crate::error::Failure;
use crate::privileges;

/// What the broker asks with.
#[derive(Debug, Default)]
pub struct QueueProbe {
    socket: Option<OwnedFd>,
    /// What is known of drivers, by the indexes of their devices.
    zero_copy: HashMap<u32, DriverZeroCopy>,
}

/// Whether a driver has zero-copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DriverZeroCopy {
    /// It has none, for certain.
    Never,
    /// It says that it has. (A virtio-net without IOMMU says so too, and has none.)
    Maybe,
    /// Linux before 6.3 does not tell, and no bind has shown it yet.
    Unknown,
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
    /// Where the kernel does not tell what the driver has, the first try that finds a free queue shows it.
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
        let driver = self.driver(index);
        let probe = match self.socket.take() {
            Some(probe) => probe,
            None => privileges::with(
                &[Capability::CAP_NET_RAW, Capability::CAP_IPC_LOCK],
                unbound_socket,
            )?
            .map_err(|source| failed("making of a probe socket", source))?,
        };
        let flags = match driver {
            DriverZeroCopy::Maybe => BindFlags::XDP_COPY,
            DriverZeroCopy::Never | DriverZeroCopy::Unknown => BindFlags::XDP_ZEROCOPY,
        };
        let error = match sys::bind(&probe, index, queue, flags) {
            Ok(()) => {
                self.zero_copy.insert(index, DriverZeroCopy::Maybe);
                return Ok(QueueUse::Free);
            }
            Err(error) => error,
        };
        self.socket = Some(probe);
        match error.raw_os_error() {
            Some(libc::EOPNOTSUPP) if driver != DriverZeroCopy::Maybe => {
                self.zero_copy.insert(index, DriverZeroCopy::Never);
                Ok(QueueUse::Free)
            }
            Some(libc::EBUSY) => Ok(QueueUse::Taken),
            // There is no such queue any more, so nothing holds it (`xsk_reg_pool_at_qid`, net/xdp/xsk.c).
            Some(libc::EINVAL) => Ok(QueueUse::Free),
            _ => Err(failed("bind(AF_XDP)", error)),
        }
    }

    /// The same, unless asking would disturb a free queue. (Where the kernel does not tell what the driver has, the first
    /// look at a device may: so it is known from then on.)
    ///
    /// # Errors
    ///
    /// As above.
    pub fn queue_use_untouched(&mut self, index: u32, queue: u32) -> Result<Option<QueueUse>, Failure> {
        match self.driver(index) {
            DriverZeroCopy::Never | DriverZeroCopy::Unknown => self.queue_use(index, queue).map(Some),
            DriverZeroCopy::Maybe => Ok(None),
        }
    }

    /// Whether the driver says that it has zero-copy. A "no" is certain, a "yes" shows at a bind only. Where the kernel
    /// does not tell it is tried on this queue, which should be free; one that is not free answers "yes".
    ///
    /// # Errors
    ///
    /// As [`QueueProbe::queue_use`].
    pub fn driver_has_zero_copy(&mut self, index: u32, queue: u32) -> Result<bool, Failure> {
        if self.driver(index) == DriverZeroCopy::Unknown {
            self.queue_use(index, queue)?;
        }
        Ok(self.driver(index) != DriverZeroCopy::Never)
    }

    /// The same without trying it on a queue; `None` where only that would tell.
    pub fn driver_has_zero_copy_untouched(&mut self, index: u32) -> Option<bool> {
        match self.driver(index) {
            DriverZeroCopy::Never => Some(false),
            DriverZeroCopy::Maybe => Some(true),
            DriverZeroCopy::Unknown => None,
        }
    }

    fn driver(&mut self, index: u32) -> DriverZeroCopy {
        let ask = || match netlink::may_do_zero_copy(index) {
            Ok(true) => DriverZeroCopy::Maybe,
            Ok(false) => DriverZeroCopy::Never,
            Err(_) => DriverZeroCopy::Unknown,
        };
        *self.zero_copy.entry(index).or_insert_with(ask)
    }

    /// Forgets a device that is gone: its index may be another's one day.
    pub fn forget(&mut self, index: u32) {
        self.zero_copy.remove(&index);
    }
}

/// A socket that is ready to be bound and good for nothing else: one page of umem, rings of one entry. Takes CAP_NET_RAW,
/// and CAP_IPC_LOCK where RLIMIT_MEMLOCK is used up.
///
/// # Errors
///
/// What the kernel says.
pub fn unbound_socket() -> io::Result<OwnedFd> {
    let socket = sys::xdp_socket()?;
    register_one_page(&socket)?;
    for ring in [Ring::Fill, Ring::Completion, Ring::Rx] {
        sys::create_ring(&socket, ring, 1)?;
    }
    Ok(socket)
}

/// Registers the least umem that there is.
///
/// # Errors
///
/// EBUSY where the socket has one, or is bound.
pub fn register_one_page(socket: impl AsFd) -> io::Result<()> {
    const PAGE_BYTES: usize = 4096;
    const CHUNK_BYTES: u32 = 4096;

    let memory = rustix::fs::memfd_create("xsk-broker page", rustix::fs::MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&memory, u64::from(CHUNK_BYTES))?;
    let mapping = Mapping::new(&memory, 0, PAGE_BYTES, Prefault::No)?;
    sys::register_umem(socket, &mapping, CHUNK_BYTES, 0)
}
