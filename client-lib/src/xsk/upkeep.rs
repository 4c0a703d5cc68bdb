//! What keeps a socket going between batches: chunks taken back and given to the kernel, and the kernel called where it
//! asks for it.

use std::cell::Cell;
use std::time::Duration;

use rustix::io::Errno;

use crate::cast;
use crate::error::Error;
use crate::packet::MOST_FRAMES;
use crate::receive::KEPT;
use crate::ring::{CorruptRing, Descriptor, PACKET_CONTINUES, Run, TxRing};
use crate::socket::Kick;
use crate::wire::BindMode;
use crate::xsk::Core;

/// How long `wait` sleeps at most before it looks whether the device is still there: poll() does not tell
/// (`xsk_poll`, net/xdp/xsk.c).
pub(crate) const DEVICE_CHECK: Duration = Duration::from_secs(1);

impl Core {
    /// Gives the kernel what a batch leaves behind: entries of the RX ring, the chunks of frames that were dropped, frames
    /// that were sent. Of `frames`, which were looked at, so many are marked as kept.
    #[inline]
    pub(crate) fn finish_receive(&mut self, frames: &[Cell<Descriptor>], kept: u32, sent: u32) {
        if !frames.is_empty() {
            self.give_back(frames, kept);
        }
        if (sent > 0 || self.kick_again) && self.finish_send(sent) {
            self.kick_once();
        }
    }

    /// Gives the ring back these entries, and the chunks of those that are not marked to the kernel.
    #[inline(never)]
    pub(crate) fn give_back(&mut self, frames: &[Cell<Descriptor>], kept: u32) {
        let count = cast::count(frames.len());
        if kept < count
            && let Err(cause) = self.recycle(frames, kept)
        {
            self.deferred = Some(self.socket.corrupt(cause));
        }
        if let Some(rx) = &mut self.rings.rx {
            rx.release(count);
        }
        if self.socket.mode != BindMode::Copy
            && let Err(error) = self.kick_fill()
        {
            self.deferred = Some(error);
        }
    }

    /// The chunks of frames that were dropped go to the fill ring, by the free list where that has fewer than are kept
    /// for sending, or where others are in between.
    #[inline]
    fn recycle(&mut self, frames: &[Cell<Descriptor>], kept: u32) -> Result<(), CorruptRing> {
        let mut left = frames;
        if kept == 0 && self.chunks.free.len() >= self.reserve {
            let written = self.rings.fill.produce_addresses(frames)?;
            left = frames.get(written..).unwrap_or_default();
            if left.is_empty() {
                return Ok(());
            }
        }
        let addresses = left.iter().map(|frame| frame.get().address);
        self.chunks
            .take_back(addresses.filter(|address| *address != KEPT));
        self.refill()
    }

    /// More TX entries for a batch that has written all of the last ones.
    #[cold]
    pub(crate) extern "C" fn more_tx(&mut self, written: u32, wanted: u32) -> Run<Descriptor> {
        self.stage(written);
        let Some(tx) = &mut self.rings.tx else {
            return Run::NONE;
        };
        match tx.free_run(wanted) {
            Ok(run) => run,
            Err(cause) => {
                self.deferred = Some(self.socket.corrupt(cause));
                Run::NONE
            }
        }
    }

    /// As [`Self::more_tx`], for frames that were received. Where packets may be of several frames, it is one entry at a
    /// time, and a packet's first only where there is room for all: `options` tells whether more are to follow.
    #[cold]
    pub(crate) extern "C" fn tx_for_received(
        &mut self,
        written: u32,
        wanted: u32,
        options: u32,
    ) -> Run<Descriptor> {
        if !self.multi_buffer {
            return self.more_tx(written, wanted);
        }
        self.stage(written);
        let continues = options & PACKET_CONTINUES != 0;
        let has_room = |tx: &mut TxRing| tx.free_entries(MOST_FRAMES) == MOST_FRAMES;
        if continues && !self.packet_open && !self.rings.tx.as_mut().is_some_and(has_room) {
            return Run::NONE;
        }
        let run = self.more_tx(0, 1);
        if run.count > 0 {
            self.packet_open = continues;
        }
        run
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

    /// What a batch of frames made here leaves behind: of the topmost `count` chunks all but the last `left` were used, and
    /// so many entries were written. Says whether to [`Self::kick_once`].
    #[inline(never)]
    pub(crate) extern "C" fn finish_transmit(&mut self, count: u32, left: u32, written: u32) -> bool {
        self.chunks.take_from_top(count, left);
        self.publish(written)
    }

    /// Publishes TX entries. Says whether to [`Self::kick_once`].
    #[inline(never)]
    pub(crate) extern "C" fn finish_send(&mut self, count: u32) -> bool {
        self.publish(count)
    }

    /// Publishes TX entries, and calls the kernel where it asks for it; but where one call is enough, it says so, and that
    /// is for the caller.
    #[inline(always)]
    fn publish(&mut self, count: u32) -> bool {
        self.stage(count);
        let Some(tx) = self.rings.tx.as_mut().filter(|_| self.kick_again) else {
            return false;
        };
        tx.publish();
        if self.in_flight < self.socket.kick_frames() {
            self.kick_again = false;
            return tx.needs_wakeup() && !tx.is_drained();
        }
        if let Err(error) = self.kick_tx() {
            self.deferred = Some(error);
        }
        false
    }

    /// Calls the kernel for a few frames, in the loop of who sends them: that makes a round trip a fifth shorter on some
    /// processors ([`Socket::kick_tx`]).
    ///
    /// [`Socket::kick_tx`]: crate::socket::Socket::kick_tx
    #[inline(always)]
    pub(crate) fn kick_once(&mut self) {
        if let Err(errno) = self.socket.kick_tx_once() {
            self.not_kicked(errno.raw_os_error());
        }
    }

    #[cold]
    extern "C" fn not_kicked(&mut self, errno: i32) {
        match self.socket.not_kicked(Errno::from_raw_os_error(errno)) {
            Ok(kick) => self.kick_again = kick == Kick::Again,
            Err(error) => self.deferred = Some(error),
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
        while self.in_flight > 0 {
            let taken = self.reap().map_err(|cause| self.socket.corrupt(cause))?;
            // Once more behind the ring's end: with a small umem the next packets need those chunks.
            if taken == 0 || !self.rings.completion.is_at_start() {
                break;
            }
        }
        if self.kick_again {
            self.kick_tx()?;
        }
        Ok(())
    }

    /// Takes back what the kernel has sent, up to the ring's end, and says how much that is.
    #[inline(always)]
    fn reap(&mut self) -> Result<u32, CorruptRing> {
        let run = self.rings.completion.ready_run(self.chunks.free.room())?;
        if run.count == 0 {
            return Ok(0);
        }
        let taken = self.chunks.take_sent(&run, self.stamps.as_mut());
        self.rings.completion.release(taken);
        self.in_flight = self.in_flight.saturating_sub(taken);
        self.refill()?;
        Ok(taken)
    }

    /// Moves free chunks to the fill ring, as many as fit and are not kept for sending.
    #[inline]
    pub(super) fn refill(&mut self) -> Result<(), CorruptRing> {
        match self.chunks.free.len() > self.reserve {
            true => self.fill_up(),
            false => Ok(()),
        }
    }

    fn fill_up(&mut self) -> Result<(), CorruptRing> {
        let free = self.chunks.free.as_slice();
        if let Some(usable) = free.get(self.reserve..) {
            let left = free.len() - self.rings.fill.produce_last(usable)?;
            self.chunks.free.set_len(left);
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
