//! A slot of a device's map of sockets.

use super::Redirect;

/// A filled slot of the map, emptied when dropped: RX of its socket stops at once (F18).
#[derive(Debug)]
pub struct Slot {
    pub(super) redirect: Redirect,
    pub(super) queue: u32,
    pub(super) redirected_before: u64,
}

impl Slot {
    /// What its queue had counted when it was filled.
    pub fn redirected_before(&self) -> u64 {
        self.redirected_before
    }

    /// Packets handed to the socket since the slot was filled.
    pub fn redirected(&self) -> u64 {
        self.redirect
            .counters(self.queue)
            .redirected
            .saturating_sub(self.redirected_before)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let attached = &self.redirect.0;
        match attached.sockets.borrow_mut().unset(self.queue) {
            Ok(()) => {}
            // The kernel empties the slot itself when the socket or the device goes (F12): ENOENT or EINVAL then.
            Err(error) => {
                tracing::debug!(interface = %attached.interface, queue = self.queue, %error, "slot was empty");
            }
        }
    }
}
