//! A batch of received packets.

#![expect(unsafe_code, reason = "slices over chunks that this batch alone holds")]

use std::cell::Cell;
use std::{fmt, slice};

use crate::cast;
use crate::chunks::REFUSED;
use crate::frame::Unsent;
use crate::receive::mark;
use crate::ring::{Descriptor, PACKET_CONTINUES};
use crate::xsk::Core;

/// Received packets, from [`Xsk::receive_packets`](crate::Xsk::receive_packets).
///
/// One packet at a time. Those that were not looked at stay in the ring.
pub struct ReceivedPackets<'x> {
    core: &'x mut Core,
    /// Copies of the ring's entries, of whole packets. Whoever keeps a frame's chunk marks it.
    frames: &'x [Cell<Descriptor>],
    /// How many were looked at, and how many of these the ring has back.
    looked_at: usize,
    given_back: usize,
    /// How many of those in between are marked.
    kept: u32,
}

impl<'x> ReceivedPackets<'x> {
    /// `frames` are copies of the RX ring's next entries; the free list has room for as many.
    pub(crate) fn new(core: &'x mut Core, frames: &'x mut [Descriptor]) -> Self {
        Self {
            core,
            frames: Cell::from_mut(frames).as_slice_of_cells(),
            looked_at: 0,
            given_back: 0,
            kept: 0,
        }
    }

    /// Whether no packet is left to look at.
    pub fn is_empty(&self) -> bool {
        self.looked_at == self.frames.len()
    }

    /// The next packet. Dropping it recycles its frames. `None` at the batch's end.
    ///
    /// A packet with an entry that names memory which it may not name is passed over, and its entries are counted
    /// ([`Xsk::refused_descriptors`](crate::Xsk::refused_descriptors)).
    pub fn next_packet(&mut self) -> Option<RxPacket<'_, 'x>> {
        loop {
            let left = self.frames.get(self.looked_at..)?;
            let is_last = |frame: &Cell<Descriptor>| frame.get().options & PACKET_CONTINUES == 0;
            let count = left
                .iter()
                .position(is_last)
                .map_or(left.len(), |position| position + 1);
            let frames = left.get(..count).filter(|frames| !frames.is_empty())?;
            self.looked_at += count;
            if self.admit(frames) {
                return Some(RxPacket { batch: self, frames });
            }
        }
    }

    fn admit(&mut self, frames: &[Cell<Descriptor>]) -> bool {
        let mut are_admitted = true;
        for frame in frames {
            let Descriptor { address, length, .. } = frame.get();
            if self.core.chunks.admit(address, length.into()) == REFUSED {
                mark(frame);
                self.kept += 1;
                are_admitted = false;
            }
        }
        are_admitted
    }

    /// Gives the ring back what was looked at. No packet of it is lent any more.
    fn give_back(&mut self) {
        if let Some(frames) = self.frames.get(self.given_back..self.looked_at)
            && !frames.is_empty()
        {
            self.core.give_back(frames, self.kept);
        }
        self.given_back = self.looked_at;
        self.kept = 0;
    }
}

impl Drop for ReceivedPackets<'_> {
    fn drop(&mut self) {
        self.give_back();
        self.core.finish_packets();
    }
}

impl fmt::Debug for ReceivedPackets<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReceivedPackets")
            .field("frames_left", &(self.frames.len() - self.looked_at))
            .finish_non_exhaustive()
    }
}

/// A received packet: all of its frames, in order. Dropping it recycles them.
pub struct RxPacket<'b, 'x> {
    batch: &'b mut ReceivedPackets<'x>,
    frames: &'x [Cell<Descriptor>],
}

impl RxPacket<'_, '_> {
    /// Its length in bytes, over all frames.
    #[expect(clippy::len_without_is_empty, reason = "no device passes an empty packet")]
    pub fn len(&self) -> usize {
        let lengths = self.frames.iter().map(|frame| frame.get().length as usize);
        lengths.sum()
    }

    /// The bytes of its frames, one slice for each.
    pub fn frames(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.frames.iter().map(|frame| {
            let (start, length) = self.place(frame);
            // SAFETY: all frames of the packet were admitted: they lie in chunks of the umem that are here, and so no
            // owned frame's and no other socket's, and the kernel does not write to them until they are recycled. Who
            // has one of them mutably has borrowed the packet mutably. A memfd's bytes are initialised.
            unsafe { slice::from_raw_parts(start, length) }
        })
    }

    /// The bytes of one frame, to be changed where they are: one at a time, since a hostile ring may name a chunk twice.
    pub fn frame_mut(&mut self, index: usize) -> Option<&mut [u8]> {
        let (start, length) = self.place(self.frames.get(index)?);
        // SAFETY: as in `frames`, and `&mut self` is the only borrow of the packet.
        Some(unsafe { slice::from_raw_parts_mut(start, length) })
    }

    /// Copies its bytes to the front of `to`, as many as both have, and says how many.
    pub fn copy_to(&self, to: &mut [u8]) -> usize {
        let mut copied = 0;
        for frame in self.frames() {
            let rest = to.get_mut(copied..).unwrap_or_default();
            let count = rest.len().min(frame.len());
            for (to, from) in rest.iter_mut().zip(frame) {
                *to = *from;
            }
            copied += count;
        }
        copied
    }

    /// Its bytes, copied to memory of their own.
    pub fn to_vec(&self) -> Vec<u8> {
        self.frames().flatten().copied().collect()
    }

    /// Sends it as it is now, all frames or none: a turn-round without a copy. The kernel is called when the batch is
    /// dropped.
    ///
    /// # Errors
    ///
    /// Gives it back whole where the TX ring has no room for all of its frames; where it is of more frames than a packet
    /// to send may be, which is 18; where it is of several and the socket was not bound for such.
    pub fn send(self) -> Result<(), Unsent<Self>> {
        let count = cast::count(self.frames.len());
        if let Err(reason) = self.batch.core.room_for_packet(count) {
            return Err(Unsent { frame: self, reason });
        }
        let mut descriptors = [Descriptor::default(); super::MOST_FRAMES as usize];
        for (descriptor, frame) in descriptors.iter_mut().zip(self.frames) {
            *descriptor = frame.get();
            descriptor.address = self.batch.core.chunks.umem().flat(descriptor.address);
            // The chunk is the kernel's now.
            mark(frame);
        }
        self.batch.kept += count;
        self.batch.give_back();
        let sent = descriptors.get_mut(..self.frames.len()).unwrap_or_default();
        self.batch.core.publish_packet(sent);
        Ok(())
    }

    /// Where a frame of it is.
    fn place(&self, frame: &Cell<Descriptor>) -> (*mut u8, usize) {
        let Descriptor { address, length, .. } = frame.get();
        let umem = self.batch.core.chunks.umem();
        let offset = cast::offset(umem.flat(address));
        // SAFETY: `ReceivedPackets::admit` has found that it lies in the umem, which the socket keeps mapped.
        let start = unsafe { umem.memory().start().add(offset) };
        (start.as_ptr(), length as usize)
    }
}

impl fmt::Debug for RxPacket<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RxPacket")
            .field("frames", &self.frames.len())
            .field("length", &self.len())
            .finish_non_exhaustive()
    }
}
