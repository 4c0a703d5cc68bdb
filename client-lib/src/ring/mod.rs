//! The four rings of a socket: the raw layer, for those who manage their memory themselves.
//!
//! [`FillRing`] and [`TxRing`] are produced here and consumed by the kernel, [`CompletionRing`] and [`RxRing`] the
//! other way round. A batch is a guard: it publishes once, on `commit` or `release`, and dropping it takes
//! everything back. Descriptors are numbers, and nothing here knows who owns the memory that they name: that is
//! why mapping a ring is unsafe, while using it is not.
//!
//! Whatever the other side writes into the shared indexes, nothing outside of a ring is ever touched; an index that
//! cannot be right is [`CorruptRing`].

use std::ops::{RangeInclusive, RangeToInclusive};

pub mod cursor;

mod bulk;
mod consumer;
mod map;
mod packets;
mod producer;
mod run;

pub use consumer::{ConsumerRing, Peeked};
pub use cursor::CorruptRing;
pub use map::Entry;
pub use packets::{MOST_PACKET_FRAMES, PeekPacketsError, PeekedPackets, UnfitPacket};
pub use producer::{ProducerRing, Reserved};

pub(crate) use run::{Access, Run, transfer};

/// Chunks for the kernel to receive into: addresses in the umem.
pub type FillRing = ProducerRing<u64>;
/// Chunks that the kernel has sent: addresses in the umem.
pub type CompletionRing = ConsumerRing<u64>;
/// Frames received.
pub type RxRing = ConsumerRing<Descriptor>;
/// Frames to send.
pub type TxRing = ProducerRing<Descriptor>;

/// `XDP_PKT_CONTD`, an option of a descriptor: the packet goes on with the next one (include/uapi/linux/if_xdp.h,
/// Linux 6.6). [`RxRing::peek_packets`] and [`Reserved::write_packet`] keep such packets whole; all other calls count
/// descriptors, and may end in the middle of a packet.
pub const PACKET_CONTINUES: u32 = 1 << 0;
/// `XDP_TX_METADATA`, an option of a descriptor to send: there is a `TxMetadata` before the frame (Linux 6.8).
pub const TX_METADATA: u32 = 1 << 1;

/// A frame in a ring (`struct xdp_desc`, include/uapi/linux/if_xdp.h).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Descriptor {
    /// Where the frame begins, in bytes from the start of the umem. In the RX ring of a umem with unaligned chunks the upper
    /// 16 bits are an offset that is to be added to the lower 48 ([`raw::Umem::frame`](crate::raw::Umem::frame) does so).
    pub address: u64,
    /// Its length in bytes, to its chunk's end at most: a longer packet is several descriptors.
    pub length: u32,
    /// [`PACKET_CONTINUES`] and [`TX_METADATA`], together; 0 for a packet of one chunk. The kernel refuses a descriptor with
    /// any other bit, and counts it (`tx_invalid_descs`).
    pub options: u32,
}

/// How many entries a batch is to have: `64`, all of them or none; `16..=64`, at least and at most; `..=64`, at least
/// one.
pub trait Wanted {
    /// At least and at most.
    fn bounds(self) -> RangeInclusive<u32>;
}

impl Wanted for u32 {
    #[inline]
    fn bounds(self) -> RangeInclusive<u32> {
        self..=self
    }
}

impl Wanted for RangeInclusive<u32> {
    #[inline]
    fn bounds(self) -> RangeInclusive<u32> {
        self
    }
}

impl Wanted for RangeToInclusive<u32> {
    #[inline]
    fn bounds(self) -> RangeInclusive<u32> {
        1..=self.end
    }
}
