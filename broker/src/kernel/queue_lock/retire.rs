//! Retiring sockets: what its holder never bound can be bound to nothing any more, though the holder keeps it for ever.
//!
//! Another fd of the socket is ours. Through it the socket is confined to a scratch device, bound there, and the device
//! deleted (F38). The bind is what counts: it is made with the socket's mutex, under which every bind looks at the
//! socket's state (`xsk_bind`, net/xdp/xsk.c). To confine it anew alone would let a bind of its holder's through that had
//! passed the look at the device already, and been preempted there.
//!
//! Under `lsm` the kernel refuses every new bind by then; what it had admitted before may be at the same place. The socket
//! is given a permit for the scratch device, and for nothing else.
//!
//! That mutex can be held by the holder for as long as it likes (by registering memory that it serves itself), so this
//! runs on a thread of its own: nobody waits for it, until it is done the lease has not ended.

use std::io;
use std::os::fd::OwnedFd;
use std::thread::JoinHandle;

use caps::Capability;
use xsk_client::sys::{self, BindFlags, Ring};

use super::lsm::Lsm;
use super::scratch::Scratch;
use crate::error::Failure;
use crate::kernel::queue_probe;
use crate::kernel::xsk::Xsk;
use crate::privileges;

/// Sockets that are being retired.
#[derive(Debug)]
pub struct Retirement(JoinHandle<Result<Retired, Failure>>);

/// What became of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retired {
    /// None is bound to anything, and none can be.
    All,
    /// At least one had been bound in time, to whatever queue; the others cannot be any more.
    SomeBound,
}

impl Retirement {
    /// Begins with it; `lsm` is what confines them, if that does. The caller keeps its own fds of the sockets until it is
    /// over.
    ///
    /// # Errors
    ///
    /// EMFILE, and as clone(2).
    pub fn begin<'s>(
        sockets: impl Iterator<Item = &'s Xsk>,
        scratch: Scratch,
        lsm: Option<Lsm>,
    ) -> Result<Self, Failure> {
        let sockets = sockets.map(Xsk::duplicate).collect::<Result<Vec<_>, _>>()?;
        std::thread::Builder::new()
            .name("retirement".into())
            .spawn(move || retire(&sockets, &scratch, lsm.as_ref()))
            .map(Self)
            .map_err(|source| Failure::kernel("clone", "a thread to retire sockets", source))
    }

    /// Whether [`Retirement::outcome`] would not wait.
    pub fn is_over(&self) -> bool {
        self.0.is_finished()
    }

    /// What became of the sockets.
    ///
    /// # Errors
    ///
    /// What the kernel says. Some may still be bound then, and it is to be tried again.
    pub fn outcome(self) -> Result<Retired, Failure> {
        let panicked = |_| Failure::kernel("retirement", "sockets", io::Error::other("its thread panicked"));
        self.0.join().map_err(panicked)?
    }
}

fn retire(sockets: &[OwnedFd], scratch: &Scratch, lsm: Option<&Lsm>) -> Result<Retired, Failure> {
    let count = u32::try_from(sockets.len()).unwrap_or(u32::MAX);
    let device = scratch.device(count)?;
    let mut retired = Retired::All;
    for (queue, socket) in (0..).zip(sockets) {
        if let Some(lsm) = lsm {
            lsm.permit_retirement(socket, &device, queue)?;
        }
        if let One::Bound = retire_one(socket, device.index(), queue)? {
            retired = Retired::SomeBound;
        }
    }
    Ok(retired)
}

enum One {
    Retired,
    Bound,
}

fn retire_one(socket: &OwnedFd, device: u32, queue: u32) -> Result<One, Failure> {
    let failed = |call, source: io::Error| Failure::kernel(call, "a socket to be retired", source);
    // From here on its holder can begin no bind that leads anywhere.
    privileges::with(&[Capability::CAP_NET_RAW], || {
        sys::confine_to_device(socket, device)
    })?
    .map_err(|source| failed("setsockopt(SO_BINDTOIFINDEX)", source))?;
    // What its holder has not made: a bind takes a umem, a ring to receive or send with, and the two of the umem. What
    // is there already is EBUSY or EINVAL, and whether it was enough is for the bind to say.
    if let Err(error) = privileges::with(&[Capability::CAP_IPC_LOCK], || {
        queue_probe::register_one_page(socket)
    })? {
        tracing::trace!(%error, "the socket has a umem");
    }
    for ring in [Ring::Fill, Ring::Completion, Ring::Rx] {
        if let Err(error) = sys::create_ring(socket, ring, 1) {
            tracing::trace!(%error, %ring, "the socket has this ring");
        }
    }
    match sys::bind(socket, device, queue, BindFlags::XDP_COPY) {
        Ok(()) => Ok(One::Retired),
        // It was bound before: by its holder, in time; or here, in an earlier try, to a device that is gone, which shows
        // as not bound.
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            match sys::is_bound(socket).map_err(|source| failed("recv", source))? {
                true => Ok(One::Bound),
                false => Ok(One::Retired),
            }
        }
        Err(error) => Err(failed("bind(AF_XDP) to a scratch device", error)),
    }
}
