//! Packets of several descriptors in the raw layer: looked at whole, and written whole.
//!
//! Where a socket is bound for them ([`BindOptions::multi_buffer`](crate::BindOptions::multi_buffer), Linux 6.6), a packet
//! that is longer than a chunk is several descriptors one behind the other, all but the last with [`PACKET_CONTINUES`].
//! [`RxRing::peek_packets`] and [`Reserved::write_packet`] never cut one, wherever a batch or a ring ends.
//!
//! What is looked at are copies, which nobody else can change: an entry that turned from a packet's last into one that
//! goes on, between two looks, would move every packet behind it. They are made in bulk (`bulk.rs`), so that packets of
//! one descriptor cost little more than entries do.

use std::slice;

use super::cursor::CorruptRing;
use super::{Descriptor, PACKET_CONTINUES, Reserved, RxRing};
use crate::cast;

#[cfg(all(test, not(loom)))]
mod tests;

/// Of how many descriptors a packet may be that is sent: what a socket buffer has room for (`MAX_SKB_FRAGS`, which is 17,
/// and the first; `xsk_build_skb`, net/xdp/xsk.c). The kernel drops longer ones. A device in zero-copy mode may take fewer:
/// its `xdp-zc-max-segs` (Documentation/netlink/specs/netdev.yaml) says how many.
pub const MOST_PACKET_FRAMES: u32 = 18;

/// Why there are no packets to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PeekPacketsError {
    /// The ring's indexes cannot be right.
    #[error(transparent)]
    Corrupt(#[from] CorruptRing),
    /// The first packet does not end within as many descriptors as could be copied: give room for more. Where that is as
    /// many as the ring has entries, another process writes to it.
    #[error(
        "no packet ends within {descriptors} descriptors of the RX ring: too few copies, or a corrupt ring"
    )]
    NoEnd {
        /// How many were looked at.
        descriptors: u32,
    },
}

/// Why a packet was not written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnfitPacket {
    /// Not as many entries are left of what was reserved: commit, and reserve more.
    #[error("fewer entries are reserved than the packet has descriptors")]
    NoRoom,
    /// The kernel would drop it: there are more than [`MOST_PACKET_FRAMES`].
    #[error("the packet is of more than {MOST_PACKET_FRAMES} descriptors")]
    TooManyFrames,
}

impl RxRing {
    /// Looks at whole packets: as many as there are and fit into `copies`, to which their descriptors are copied. A packet
    /// whose end is not there yet stays in the ring, and is none of them. `None` where there is no whole one.
    ///
    /// With room for as many copies as the ring has entries, every packet fits. The longest that can come is of
    /// `packet bytes / (chunk bytes - 256 - headroom bytes)` descriptors, rounded up: six for 9000 bytes in chunks of 2048.
    ///
    /// ```no_run
    /// use xsk_client::raw::{Descriptor, PeekPacketsError, RxRing, TxRing, UnfitPacket};
    ///
    /// /// Sends packets back, each whole. `copies` is for more calls than this.
    /// fn reflect(rx: &mut RxRing, tx: &mut TxRing, copies: &mut [Descriptor]) -> Result<(), PeekPacketsError> {
    ///     let Some(mut packets) = rx.peek_packets(copies)? else { return Ok(()) };
    ///     let Some(mut free) = tx.reserve(1..=packets.remaining())? else { return Ok(()) };
    ///     // One for which there is no room now stays in the RX ring.
    ///     while let Some(packet) = packets.next_within(free.remaining()) {
    ///         match free.write_packet(packet) {
    ///             Ok(()) => {}
    ///             Err(unfit) => eprintln!("its chunks are for the fill ring: {unfit}"),
    ///         }
    ///     }
    ///     packets.release();
    ///     free.commit();
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// [`PeekPacketsError::Corrupt`]; [`PeekPacketsError::NoEnd`], without which a packet that never fits would be waited for
    /// for ever.
    pub fn peek_packets<'r, 'c>(
        &'r mut self,
        copies: &'c mut [Descriptor],
    ) -> Result<Option<PeekedPackets<'r, 'c>>, PeekPacketsError> {
        let most = cast::count(copies.len().min(self.size() as usize));
        let count = self.copy_ready(copies)?;
        let copies: &'c [Descriptor] = copies.get(..count as usize).unwrap_or_default();
        let whole = whole_packets(copies);
        match (whole.is_empty(), count == most) {
            (true, true) if most > 0 => Err(PeekPacketsError::NoEnd { descriptors: most }),
            (true, _) => Ok(None),
            (false, _) => Ok(Some(PeekedPackets {
                ring: self,
                count: cast::count(whole.len()),
                left: whole,
            })),
        }
    }
}

/// Those that are not of a packet whose end is missing.
fn whole_packets(descriptors: &[Descriptor]) -> &[Descriptor] {
    let last = descriptors.iter().rposition(|descriptor| !goes_on(descriptor));
    last.and_then(|last| descriptors.get(..=last)).unwrap_or_default()
}

#[inline]
fn goes_on(descriptor: &Descriptor) -> bool {
    descriptor.options & PACKET_CONTINUES != 0
}

/// Whole packets, in order, each as a slice of its descriptors. [`Self::release`] gives the entries of those that were
/// taken back to the kernel, at once; dropping it instead leaves them all in the ring.
///
/// The slices are copies that the caller has made room for, and may be kept when the entries are given back.
#[derive(Debug)]
pub struct PeekedPackets<'r, 'c> {
    ring: &'r mut RxRing,
    count: u32,
    /// Copies of those that were not taken; the last one ends its packet.
    left: &'c [Descriptor],
}

impl<'c> Iterator for PeekedPackets<'_, 'c> {
    type Item = &'c [Descriptor];

    #[inline]
    fn next(&mut self) -> Option<&'c [Descriptor]> {
        self.next_within(u32::MAX)
    }
}

impl<'c> PeekedPackets<'_, 'c> {
    /// The next packet, if it is of so many descriptors at most; else it stays, and is the next one still. For who has no
    /// more room than that.
    #[inline]
    pub fn next_within(&mut self, descriptors: u32) -> Option<&'c [Descriptor]> {
        let (first, rest) = self.left.split_first()?;
        let (packet, left) = match goes_on(first) {
            false => (slice::from_ref(first), rest),
            true => {
                let further = rest.iter().position(|descriptor| !goes_on(descriptor))?;
                self.left.split_at_checked(further + 2)?
            }
        };
        if packet.len() > descriptors as usize {
            return None;
        }
        self.left = left;
        Some(packet)
    }

    /// How many descriptors are left, of all packets.
    #[inline]
    pub fn remaining(&self) -> u32 {
        cast::count(self.left.len())
    }

    /// Lets the kernel use the entries again of the packets that were taken, and says how many entries that is.
    #[inline]
    pub fn release(self) -> u32 {
        let taken = self.count - self.remaining();
        self.ring.release(taken);
        taken
    }

    /// Lets the kernel use the entries again of all packets, taken or not, and says how many entries that is.
    #[inline]
    pub fn release_all(self) -> u32 {
        self.ring.release(self.count);
        self.count
    }
}

impl Reserved<'_, Descriptor> {
    /// Writes a packet, all of its descriptors or none: sets [`PACKET_CONTINUES`] of all but the last, and leaves other
    /// options as they are. No descriptors are no packet, and nothing is written.
    ///
    /// # Errors
    ///
    /// Nothing was written: [`UnfitPacket::NoRoom`], [`UnfitPacket::TooManyFrames`].
    #[inline]
    pub fn write_packet(&mut self, frames: &[Descriptor]) -> Result<(), UnfitPacket> {
        let Some((last, others)) = frames.split_last() else {
            return Ok(());
        };
        if frames.len() > MOST_PACKET_FRAMES as usize {
            return Err(UnfitPacket::TooManyFrames);
        }
        if frames.len() > self.remaining() as usize {
            return Err(UnfitPacket::NoRoom);
        }
        let mut write = |frame: &Descriptor, options| {
            let written = self.write(Descriptor { options, ..*frame });
            debug_assert!(written.is_ok(), "there is room for all");
        };
        for frame in others {
            write(frame, frame.options | PACKET_CONTINUES);
        }
        write(last, last.options & !PACKET_CONTINUES);
        Ok(())
    }
}
