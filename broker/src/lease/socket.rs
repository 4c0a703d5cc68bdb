//! One socket of a lease, with its slot.

use xsk_client::wire::{BindMode, Counters, LeaseQueue};

use crate::kernel::redirect::Slot;
use crate::kernel::xsk::Xsk;

/// The socket of one queue.
#[derive(Debug)]
pub struct LeasedSocket {
    /// Its slot in `xsks_map`, once filled. Dropped before the socket.
    pub slot: Option<Slot>,
    /// Our own fd of it: for statistics, and to see whether it is bound.
    pub socket: Xsk,
    /// Copy or zero-copy, once it was seen bound.
    pub mode: Option<BindMode>,
}

impl LeasedSocket {
    /// What is to be told of it.
    pub(super) fn seen(&self) -> LeaseQueue {
        let redirected = self.slot.as_ref().map_or(0, Slot::redirected);
        LeaseQueue {
            queue: self.socket.queue(),
            mode: self.mode,
            socket_inode: self.socket.inode(),
            // Reading them takes the socket's mutex, which the holder of an unbound one could keep from us for ever.
            counters: match self.mode {
                Some(_) => Counters {
                    redirected,
                    ..self.socket.counters()
                },
                None => Counters {
                    redirected,
                    ..Counters::default()
                },
            },
        }
    }
}
