//! A batch of packets made here.

#![expect(unsafe_code, reason = "slices over chunks that were taken for a packet")]

use std::{fmt, slice};

use super::MOST_FRAMES;
use crate::cast;
use crate::chunks::Chunks;
use crate::frame::UnsentReason;
use crate::ring::Descriptor;
use crate::xsk::Core;

/// Packets to be made and sent, each of as many frames as it takes; from
/// [`Xsk::transmit_packets`](crate::Xsk::transmit_packets). The kernel is called when the batch is dropped.
pub struct TransmitPackets<'x> {
    core: &'x mut Core,
}

impl<'x> TransmitPackets<'x> {
    pub(crate) fn new(core: &'x mut Core) -> Self {
        Self { core }
    }

    /// Sends a copy of these bytes, as a whole or not at all.
    ///
    /// # Errors
    ///
    /// As [`Self::send_with`].
    pub fn send(&mut self, packet: &[u8]) -> Result<(), UnsentReason> {
        self.send_with(packet.len(), |from, frame| {
            let bytes = packet.get(from..).unwrap_or_default();
            for (to, from) in frame.iter_mut().zip(bytes) {
                *to = *from;
            }
        })
    }

    /// Sends a packet of `length` bytes, as a whole or not at all. `fill` is called for each of its frames, in order, with
    /// how many bytes of the packet are before it, and with the frame's bytes, which are as they were left.
    ///
    /// # Errors
    ///
    /// Nothing was sent then: [`UnsentReason::RingFull`], [`UnsentReason::NoChunk`]: later;
    /// [`UnsentReason::TooManyFrames`]; [`UnsentReason::OneBuffer`]: more than one, and the socket was not
    /// bound for such.
    pub fn send_with(
        &mut self,
        length: usize,
        mut fill: impl FnMut(usize, &mut [u8]),
    ) -> Result<(), UnsentReason> {
        let umem = self.core.chunks.umem();
        let frame_bytes = cast::offset(u64::from(umem.chunk_bytes() - umem.tx_offset()));
        let count = length.div_ceil(frame_bytes).max(1);
        if count > MOST_FRAMES as usize {
            return Err(UnsentReason::TooManyFrames);
        }
        self.core.room_for_packet(cast::count(count))?;

        let mut taken = Taken::new(&mut self.core.chunks);
        let mut before = 0;
        while taken.count < count {
            let address = taken.take_one().ok_or(UnsentReason::NoChunk)?;
            let bytes = frame_bytes.min(length - before);
            let start = taken.chunks.umem().memory().start().as_ptr();
            // SAFETY: `admit_free` has found that a frame which begins there lies in a chunk of the umem that is here.
            let start = unsafe { start.add(cast::offset(address)) };
            // SAFETY: that chunk is off the free list and in no ring, so that nobody else looks at it; one at a time is
            // lent, should a hostile ring have named it twice. It has `frame_bytes`, and a memfd's bytes are initialised.
            fill(before, unsafe { slice::from_raw_parts_mut(start, bytes) });
            taken.set_length(cast::count(bytes));
            before += bytes;
        }
        let (mut frames, count) = taken.keep();
        self.core
            .publish_packet(frames.get_mut(..count).unwrap_or_default());
        Ok(())
    }
}

impl Drop for TransmitPackets<'_> {
    fn drop(&mut self) {
        self.core.finish_packets();
    }
}

impl fmt::Debug for TransmitPackets<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransmitPackets").finish_non_exhaustive()
    }
}

/// Chunks that were taken for a packet. Dropping it gives them back: where there are not enough, and where `fill` panics.
struct Taken<'c> {
    chunks: &'c mut Chunks,
    frames: [Descriptor; MOST_FRAMES as usize],
    count: usize,
}

impl<'c> Taken<'c> {
    fn new(chunks: &'c mut Chunks) -> Self {
        Self {
            chunks,
            frames: [Descriptor::default(); MOST_FRAMES as usize],
            count: 0,
        }
    }

    /// Where the frame of another chunk begins.
    fn take_one(&mut self) -> Option<u64> {
        let place = self.frames.get_mut(self.count)?;
        place.address = self.chunks.take()?;
        self.count += 1;
        Some(place.address)
    }

    /// The length of the frame that was taken last.
    fn set_length(&mut self, length: u32) {
        if let Some(last) = self.frames[..self.count].last_mut() {
            last.length = length;
        }
    }

    /// They are the caller's for good.
    fn keep(mut self) -> ([Descriptor; MOST_FRAMES as usize], usize) {
        let kept = (self.frames, self.count);
        self.count = 0;
        kept
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let taken = self.frames[..self.count].iter().rev();
        self.chunks.take_back(taken.map(|frame| frame.address));
    }
}
