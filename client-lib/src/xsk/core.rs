//! A bound socket apart from the copies that a batch looks at: so a batch can borrow both.

use crate::chunks::Chunks;
use crate::error::Error;
use crate::pool::Share;
use crate::ring::{CorruptRing, Descriptor, Run};
use crate::setup::{Opened, Rings};
use crate::socket::Socket;
use crate::stamps::Stamps;
use crate::sys::Ring;
use crate::wire::BindMode;

#[derive(Debug)]
pub(crate) struct Core {
    /// Mappings of the socket, closed before it.
    pub(super) rings: Rings,
    pub(crate) chunks: Chunks,
    /// Chunks that are kept from the fill ring, so that a busy receiver can still make frames of its own.
    pub(super) reserve: usize,
    /// Frames published to the TX ring that have not come back.
    pub(super) in_flight: u32,
    /// The kernel may still have to be called for what was published.
    pub(super) kick_again: bool,
    /// What went wrong where no error can be returned; the next call that can returns it.
    pub(super) deferred: Option<Error>,
    /// Packets may be of several frames.
    pub(crate) multi_buffer: bool,
    /// The last frame that was sent is to be followed by another one of its packet.
    pub(super) packet_open: bool,
    /// Time stamps that were asked for; where the umem has room for requests.
    pub(crate) stamps: Option<Stamps>,
    pub(super) socket: Socket,
}

impl Core {
    /// With its fill ring filled, which the mode is not known for yet.
    pub(super) fn new(opened: Opened, share: Share) -> Result<Self, Error> {
        let rings = opened.map_rings()?;
        Self::over(opened, rings, share)
    }

    /// As [`Self::new`], with its rings mapped.
    pub(super) fn over(opened: Opened, rings: Rings, share: Share) -> Result<Self, Error> {
        let chunks = Chunks::new(share);
        let stamps = Stamps::new(chunks.umem());
        let free = chunks.free.len();
        let reserve = match (&rings.rx, &rings.tx) {
            (Some(_), Some(tx)) => (free / 4).min(tx.size() as usize),
            (Some(_), None) => 0,
            // Some zero-copy drivers want a filled fill ring of a socket that only sends.
            (None, _) => free / 2,
        };
        let mut core = Self {
            rings,
            chunks,
            reserve,
            in_flight: 0,
            kick_again: false,
            deferred: None,
            multi_buffer: false,
            packet_open: false,
            stamps,
            socket: Socket::new(opened.socket, opened.queue, BindMode::Copy),
        };
        core.refill().map_err(|cause| core.socket.corrupt(cause))?;
        Ok(core)
    }

    /// Up to `max` received frames.
    #[inline(always)]
    pub(super) fn ready_run(&mut self, max: u32) -> Result<Run<Descriptor>, Error> {
        self.upkeep()?;
        // Every frame of the batch must find room on the free list. Since chunks only go round, it has; a peer that
        // invents descriptors is held back by this.
        let room = self.chunks.free.room();
        let Some(rx) = &mut self.rings.rx else {
            return Err(self.socket.lacks(Ring::Rx));
        };
        rx.ready_run(max.min(room))
            .map_err(|cause| self.socket.corrupt(cause))
    }

    /// Whether there is anything to receive.
    pub(super) fn has_received(&mut self) -> Result<bool, Error> {
        let Some(rx) = &mut self.rings.rx else {
            return Err(self.socket.lacks(Ring::Rx));
        };
        let ready: Result<_, CorruptRing> = rx.ready_run(1);
        Ok(ready.map_err(|cause| self.socket.corrupt(cause))?.count > 0)
    }

    /// Up to `max` free entries of the TX ring.
    #[inline(always)]
    pub(super) fn free_run(&mut self, max: u32) -> Result<Run<Descriptor>, Error> {
        self.upkeep()?;
        let Some(tx) = &mut self.rings.tx else {
            return Err(self.socket.lacks(Ring::Tx));
        };
        tx.free_run(max).map_err(|cause| self.socket.corrupt(cause))
    }
}
