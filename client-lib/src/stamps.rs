//! Time stamps of frames that were sent, between the completion ring and who asked for them.

use crate::metadata::{TX_METADATA_CHECKSUM, TX_METADATA_TIMESTAMP, TxMetadata};
use crate::umem::Umem;

/// When a frame left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TxTimestamp {
    /// What the frame was tagged with.
    pub tag: u64,
    /// In nanoseconds: of the device's clock, or in copy mode of CLOCK_TAI.
    pub nanoseconds: u64,
}

/// Tags of frames on their way, and stamps that nobody has taken yet. All memory is there from the start.
#[derive(Debug)]
pub(crate) struct Stamps {
    tags: Box<[Option<u64>]>,
    taken: Box<[TxTimestamp]>,
    first: usize,
    count: usize,
}

impl Stamps {
    /// For a umem in which frames have room for requests.
    pub(crate) fn new(umem: &Umem) -> Option<Self> {
        const NONE: TxTimestamp = TxTimestamp {
            tag: 0,
            nanoseconds: 0,
        };
        (umem.tx_offset() > 0).then(|| Self {
            tags: (0..umem.chunks()).map(|_| None).collect(),
            taken: (0..umem.chunks()).map(|_| NONE).collect(),
            first: 0,
            count: 0,
        })
    }

    /// The frame in that chunk goes out with a tag.
    pub(crate) fn expect(&mut self, chunk: usize, tag: Option<u64>) {
        if let Some(place) = self.tags.get_mut(chunk) {
            *place = tag;
        }
    }

    /// The tag of the frame in that chunk, which has come back.
    pub(crate) fn arrived(&mut self, chunk: usize) -> Option<u64> {
        self.tags.get_mut(chunk)?.take()
    }

    /// Keeps a stamp; the oldest one goes where there is no room.
    pub(crate) fn keep(&mut self, stamp: TxTimestamp) {
        let size = self.taken.len();
        let position = (self.first + self.count) % size;
        if let Some(place) = self.taken.get_mut(position) {
            *place = stamp;
        }
        match self.count < size {
            true => self.count += 1,
            false => self.first = (self.first + 1) % size,
        }
    }

    /// The oldest one.
    pub(crate) fn next(&mut self) -> Option<TxTimestamp> {
        if self.count == 0 {
            return None;
        }
        let stamp = self.taken.get(self.first).copied();
        self.first = (self.first + 1) % self.taken.len();
        self.count -= 1;
        stamp
    }
}

/// What is asked of the device for one frame (`struct xsk_tx_metadata`, Linux 6.8), with
/// [`TxFrame::send_with`](crate::TxFrame::send_with). What the device does not have it leaves undone, without a word: its
/// `xsk-features` (Documentation/netlink/specs/netdev.yaml) say what it has. In copy mode the kernel does both.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[must_use]
pub struct TxRequest {
    checksum: Option<(u16, u16)>,
    pub(crate) tag: Option<u64>,
}

impl TxRequest {
    /// Nothing.
    pub const fn new() -> Self {
        Self {
            checksum: None,
            tag: None,
        }
    }

    /// A checksum over everything from byte `start` on, put at `offset` bytes from there; the bytes there hold the sum of
    /// the pseudo header. For UDP over IPv4 without options: 34 and 6.
    pub const fn checksum(mut self, start: u16, offset: u16) -> Self {
        self.checksum = Some((start, offset));
        self
    }

    pub(crate) fn metadata(self) -> TxMetadata {
        let mut metadata = TxMetadata::default();
        if self.tag.is_some() {
            metadata.flags |= TX_METADATA_TIMESTAMP;
        }
        if let Some((start, offset)) = self.checksum {
            metadata.flags |= TX_METADATA_CHECKSUM;
            (metadata.checksum_start, metadata.checksum_offset) = (start, offset);
        }
        metadata
    }

    /// When it left: [`Xsk::next_timestamp`](crate::Xsk::next_timestamp) tells it by this tag.
    pub const fn timestamp(mut self, tag: u64) -> Self {
        self.tag = Some(tag);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::umem::UmemOptions;

    #[test]
    fn the_latest_are_kept_in_order() {
        let umem = Umem::new(&UmemOptions::new().chunks(4).tx_metadata()).unwrap();
        let mut stamps = Stamps::new(&umem).unwrap();
        assert_eq!(stamps.next(), None);
        stamps.expect(2, Some(9));
        assert_eq!(stamps.arrived(2), Some(9));
        assert_eq!(stamps.arrived(2), None);
        for tag in 0..6 {
            stamps.keep(TxTimestamp {
                tag,
                nanoseconds: tag,
            });
        }
        let tags: Vec<_> = std::iter::from_fn(|| stamps.next().map(|stamp| stamp.tag)).collect();
        assert_eq!(tags, [2, 3, 4, 5]);
    }
}
