//! One socket of a lease, with its slot.

use xsk_client::wire::{BindMode, Counters, LeaseQueue};

use crate::error::Failure;
use crate::fd_store::Kept;
use crate::kernel::queue_probe::{QueueProbe, QueueUse};
use crate::kernel::redirect::Slot;
use crate::kernel::xsk::Xsk;
use crate::record::RecordedSocket;

/// The socket of one queue.
#[derive(Debug)]
pub struct LeasedSocket {
    /// Its slot in `xsks_map`, once filled. Dropped before the socket.
    pub slot: Option<Slot>,
    /// Its queue.
    pub queue: u32,
    /// Our own fd of it: for statistics, and to see whether it is bound. None of a lease that another broker granted: its
    /// fd died with that one, and the socket is its holder's alone.
    pub socket: Option<Xsk>,
    /// Copy or zero-copy, once it was seen bound.
    pub mode: Option<BindMode>,
    /// The inode of the socket.
    pub inode: Option<u64>,
    /// Another fd of it, which the service manager keeps for the next broker.
    pub kept: Option<Kept>,
}

impl LeasedSocket {
    /// One that was just made.
    pub fn new(socket: Xsk, slot: Option<Slot>, mode: Option<BindMode>) -> Self {
        Self {
            slot,
            queue: socket.queue(),
            inode: socket.inode(),
            socket: Some(socket),
            mode,
            kept: None,
        }
    }

    /// With another fd of it, which somebody keeps.
    #[must_use]
    pub fn kept_by(self, kept: Option<Kept>) -> Self {
        Self { kept, ..self }
    }

    /// One that another broker made, with its slot if it has one, and with the socket if somebody has kept it.
    pub fn taken_over(recorded: &RecordedSocket, slot: Option<Slot>, stored: Option<(Xsk, Kept)>) -> Self {
        let (socket, kept) = stored.unzip();
        Self {
            slot,
            queue: recorded.queue,
            inode: recorded.inode.or_else(|| socket.as_ref().and_then(Xsk::inode)),
            socket,
            mode: recorded.mode,
            kept,
        }
    }

    /// Whether it is bound, to whatever queue. Of one that another broker made it is seen by its queue alone.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn is_bound(&self, probe: &mut QueueProbe, interface_index: u32) -> Result<bool, Failure> {
        match &self.socket {
            Some(socket) => socket.is_bound(),
            None => Ok(probe.queue_use(interface_index, self.queue)? == QueueUse::Taken),
        }
    }

    /// Learns the mode of a socket that its holder has bound and not reported: whether the device writes into its memory is
    /// to be told all the same.
    pub fn see_mode(&mut self) {
        if let (Some(socket), None) = (&self.socket, self.mode)
            && socket.is_bound().is_ok_and(|bound| bound)
        {
            self.mode = socket.mode().ok();
        }
    }

    /// As it is written down.
    pub fn recorded(&self) -> RecordedSocket {
        RecordedSocket {
            queue: self.queue,
            mode: self.mode,
            inode: self.inode,
            redirected_before: self.slot.as_ref().map(Slot::redirected_before),
        }
    }

    /// What is to be told of it.
    pub(super) fn seen(&self) -> LeaseQueue {
        let redirected = self.slot.as_ref().map_or(0, Slot::redirected);
        LeaseQueue {
            queue: self.queue,
            mode: self.mode,
            socket_inode: self.inode,
            // Reading them takes the socket's mutex, which the holder of an unbound one could keep from us for ever.
            counters: match (&self.socket, self.mode) {
                (Some(socket), Some(_)) => Counters {
                    redirected,
                    ..socket.counters()
                },
                _ => Counters {
                    redirected,
                    ..Counters::default()
                },
            },
        }
    }
}
