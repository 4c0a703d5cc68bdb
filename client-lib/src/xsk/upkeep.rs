//! What keeps a socket going between batches: chunks taken back and given to the kernel, and the kernel called where it
//! asks for it.

use std::time::Duration;

use crate::entries::TxRun;
use crate::error::Error;
use crate::ring::{CorruptRing, Descriptor, Run};
use crate::socket::Kick;
use crate::wire::BindMode;
use crate::xsk::Xsk;

/// How long `wait` sleeps at most before it looks whether the device is still there: poll() does not tell
/// (`xsk_poll`, net/xdp/xsk.c).
const DEVICE_CHECK: Duration = Duration::from_secs(1);

impl Xsk {
    /// Gives the kernel what a batch leaves behind: entries of the RX ring, the chunks of frames that were dropped, frames
    /// that were sent.
    #[inline]
    pub(crate) fn finish_receive(&mut self, looked_at: u32, dropped: Run<Descriptor>, sent: u32) {
        if looked_at > 0 {
            self.give_back(looked_at, dropped);
        }
        if sent > 0 || self.kick_again {
            self.finish_send(sent);
        }
    }

    #[inline(never)]
    extern "C" fn give_back(&mut self, looked_at: u32, dropped: Run<Descriptor>) {
        if let Err(cause) = self.recycle(&dropped) {
            self.deferred = Some(self.socket.corrupt(cause));
        }
        if let Some(rx) = &mut self.rings.rx {
            rx.release(looked_at);
        }
        if self.socket.mode != BindMode::Copy
            && let Err(error) = self.kick_fill()
        {
            self.deferred = Some(error);
        }
    }

    /// The chunks of frames that were dropped go to the fill ring, by the free list where that has fewer than are kept
    /// for sending. What is read of the ring once more here is believed no more than it was before: by nobody.
    #[inline]
    fn recycle(&mut self, dropped: &Run<Descriptor>) -> Result<(), CorruptRing> {
        let mut written = 0;
        if self.chunks.free_count() >= self.reserve {
            written = self.rings.fill.produce_addresses(dropped)?;
        }
        if written < dropped.count {
            self.chunks.take_back(dropped.skip(written));
        }
        // More than are kept: a part of this batch that was given back before, or what the fill ring had no room for.
        match self.chunks.free_count() > self.reserve {
            true => self.refill(),
            false => Ok(()),
        }
    }

    /// More TX entries for a batch that has written all of the last ones.
    #[cold]
    pub(crate) extern "C" fn more_tx(&mut self, written: u32, wanted: u32) -> TxRun {
        self.stage(written);
        let Some(tx) = &mut self.rings.tx else {
            return TxRun::NONE;
        };
        match tx.free_run(wanted) {
            Ok(run) => TxRun::new(run),
            Err(cause) => {
                self.deferred = Some(self.socket.corrupt(cause));
                TxRun::NONE
            }
        }
    }

    /// Whether so many TX entries are free, apart from those that are written and not counted yet.
    pub(crate) extern "C" fn has_room(&mut self, written: u32, wanted: u32) -> bool {
        let entries = written + wanted;
        match &mut self.rings.tx {
            Some(tx) => tx.free_entries(entries) >= entries,
            None => false,
        }
    }

    /// Whether it has a TX ring.
    pub(crate) fn sends(&self) -> bool {
        self.rings.tx.is_some()
    }

    /// Counts TX entries as written.
    fn stage(&mut self, count: u32) {
        if let Some(tx) = &mut self.rings.tx {
            tx.advance(count);
        }
        self.in_flight = self.in_flight.saturating_add(count);
        self.kick_again |= count > 0;
    }

    /// Publishes TX entries, and calls the kernel where it asks for it.
    pub(crate) extern "C" fn finish_send(&mut self, count: u32) {
        self.stage(count);
        if self.kick_again {
            if let Some(tx) = &self.rings.tx {
                tx.publish();
            }
            if let Err(error) = self.kick_tx() {
                self.deferred = Some(error);
            }
        }
    }

    /// How long `wait` may sleep without looking. Completions and frames that come back from their owners do not wake
    /// it, and a small umem may need just those to receive anything.
    pub(super) fn longest_pause(&self) -> Duration {
        if self.kick_again {
            Duration::from_millis(1)
        } else if self.in_flight > 0 || self.chunks.any_away() {
            Duration::from_millis(10)
        } else {
            DEVICE_CHECK
        }
    }

    /// What is done before each batch: errors told, chunks collected, the kernel called again where it had no room.
    #[inline]
    pub(super) fn upkeep(&mut self) -> Result<(), Error> {
        if self.in_flight > 0 || self.kick_again || self.chunks.any_away() || self.deferred.is_some() {
            return self.keep_up();
        }
        Ok(())
    }

    #[inline(never)]
    fn keep_up(&mut self) -> Result<(), Error> {
        if let Some(error) = self.deferred.take() {
            return Err(error);
        }
        if self.chunks.any_away() {
            self.chunks.collect();
            self.refill().map_err(|cause| self.socket.corrupt(cause))?;
        }
        if self.in_flight > 0 {
            self.reap().map_err(|cause| self.socket.corrupt(cause))?;
        }
        if self.kick_again {
            self.kick_tx()?;
        }
        Ok(())
    }

    /// Takes back what the kernel has sent.
    fn reap(&mut self) -> Result<(), CorruptRing> {
        let taken = self.rings.completion.consume(self.chunks.spare())?;
        if taken > 0 {
            self.in_flight = self
                .in_flight
                .saturating_sub(u32::try_from(taken).unwrap_or(u32::MAX));
            if let Some(stamps) = &mut self.stamps {
                self.chunks.collect_stamps(taken, stamps);
            }
            self.chunks.sent(taken);
            self.refill()?;
        }
        Ok(())
    }

    /// Moves free chunks to the fill ring, as many as fit and are not kept for sending.
    pub(super) fn refill(&mut self) -> Result<(), CorruptRing> {
        let free = self.chunks.free();
        if let Some(usable) = free.get(self.reserve..) {
            let left = free.len() - self.rings.fill.produce_last(usable)?;
            self.chunks.set_free_count(left);
        }
        Ok(())
    }

    pub(super) fn kick_fill(&self) -> Result<(), Error> {
        self.socket.kick_fill(&self.rings.fill)
    }

    fn kick_tx(&mut self) -> Result<(), Error> {
        self.kick_again = false;
        if let Some(tx) = &mut self.rings.tx {
            self.kick_again = self.socket.kick_tx(tx, self.in_flight)? == Kick::Again;
        }
        Ok(())
    }
}
