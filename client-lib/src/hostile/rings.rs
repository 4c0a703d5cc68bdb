//! The rings, and what an adversary does to them.
//!
//! They lie in a memfd, which can be mapped at the offsets at which a socket has them.

#![expect(unsafe_code, reason = "the adversary writes to mapped rings")]

use std::sync::atomic::{AtomicU32, Ordering};

use super::Script;
use crate::error::Queue;
use crate::memfd;
use crate::ring::Descriptor;
use crate::setup::{Opened, RingEntries, Rings};
use crate::sys::{Mapping, MmapOffsets, Prefault, Ring, RingOffset};

/// Of each ring.
pub(crate) const ENTRIES: u32 = 8;
const PRODUCER: usize = 0;
const CONSUMER: usize = 64;
const PART: RingOffset = RingOffset {
    producer: PRODUCER as u64,
    consumer: CONSUMER as u64,
    flags: Some(128),
    desc: 256,
};
const OFFSETS: MmapOffsets = MmapOffsets {
    rx: PART,
    tx: PART,
    fr: PART,
    cr: PART,
};
/// Of an entry; those of the fill and completion ring have half of it.
const ENTRY_BYTES: usize = 16;
const RING_BYTES: usize = 256 + ENTRIES as usize * ENTRY_BYTES;

/// The other side of a socket's rings.
pub(crate) struct OtherSide {
    /// In the order of `Ring::ALL`.
    rings: Vec<Mapping>,
    chunk_bytes: u32,
    chunks: u32,
}

impl OtherSide {
    /// A socket's rings from both sides, empty, with all their indexes at `start`. What the adversary names are addresses in
    /// and about such a umem.
    pub(crate) fn new(chunk_bytes: u32, chunks: u32, start: u32) -> (Opened, Rings, Self) {
        let file = memfd::empty(false).expect("memfd_create");
        let end = Ring::Completion.page_offset() + 4096;
        memfd::set_length(&file, end).expect("ftruncate");
        let map =
            |ring: Ring| Mapping::new(&file, ring.page_offset(), RING_BYTES, Prefault::No).expect("mmap");
        let rings = Ring::ALL.map(map).into();
        let opened = Opened {
            socket: file,
            queue: Queue {
                interface: "eth0".parse().expect("a name"),
                id: 0,
            },
            interface_index: 1,
            rings: RingEntries {
                fill: ENTRIES,
                completion: ENTRIES,
                rx: Some(ENTRIES),
                tx: Some(ENTRIES),
            },
        };
        let other = Self {
            rings,
            chunk_bytes,
            chunks,
        };
        for ring in Ring::ALL {
            other.producer(ring).store(start, Ordering::Release);
            other.consumer(ring).store(start, Ordering::Release);
        }
        let mapped = opened.map_rings_at(&OFFSETS).expect("rings");
        (opened, mapped, other)
    }

    fn word(&self, ring: Ring, offset: usize) -> &AtomicU32 {
        assert!(
            offset.is_multiple_of(4) && offset + 4 <= RING_BYTES,
            "in the ring"
        );
        let start = self.rings[ring as usize].start();
        // SAFETY: in the mapping, checked above.
        let word = unsafe { start.add(offset) }.cast::<AtomicU32>();
        // SAFETY: aligned, checked above; whoever else has it uses atomics or volatile accesses.
        unsafe { word.as_ref() }
    }

    /// The index of who writes entries.
    pub(crate) fn producer(&self, ring: Ring) -> &AtomicU32 {
        self.word(ring, PRODUCER)
    }

    /// The index of who reads them.
    pub(crate) fn consumer(&self, ring: Ring) -> &AtomicU32 {
        self.word(ring, CONSUMER)
    }

    /// What an entry of the RX or TX ring holds now.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn descriptor(&self, ring: Ring, index: u32) -> Descriptor {
        let part = |number: usize| {
            let position = (index % ENTRIES) as usize;
            let word = self.word(ring, 256 + position * ENTRY_BYTES + 4 * number);
            word.load(Ordering::Acquire)
        };
        Descriptor {
            address: u64::from(part(0)) | u64::from(part(1)) << 32,
            length: part(2),
            options: part(3),
        }
    }

    /// Writes an entry; of one that is an address, only that.
    pub(crate) fn write(&self, ring: Ring, index: u32, descriptor: Descriptor) {
        let Descriptor {
            address,
            length,
            options,
        } = descriptor;
        let (bytes, values) = match ring {
            Ring::Fill | Ring::Completion => (ENTRY_BYTES / 2, 2),
            Ring::Rx | Ring::Tx => (ENTRY_BYTES, 4),
        };
        let position = (index % ENTRIES) as usize;
        #[expect(clippy::cast_possible_truncation, reason = "the lower and the upper half")]
        let parts = [address as u32, (address >> 32) as u32, length, options];
        for (part, value) in parts.into_iter().enumerate().take(values) {
            self.word(ring, 256 + position * bytes + 4 * part)
                .store(value, Ordering::Release);
        }
    }

    /// Does one thing to the rings.
    pub(super) fn act(&self, script: &mut Script<'_>) {
        match script.byte() % 5 {
            0 | 1 => self.go_on(script),
            2 => self.write_index(script),
            _ => self.write_entry(script),
        }
    }

    /// As a kernel would: it takes or gives some entries.
    fn go_on(&self, script: &mut Script<'_>) {
        let ring = some_ring(script);
        let index = match ring {
            Ring::Fill | Ring::Tx => self.consumer(ring),
            Ring::Rx | Ring::Completion => self.producer(ring),
        };
        index.fetch_add(script.below(ENTRIES + 2), Ordering::Release);
    }

    /// As no kernel would.
    fn write_index(&self, script: &mut Script<'_>) {
        let (ring, offset) = (some_ring(script), 64 * script.below(3));
        self.word(ring, offset as usize)
            .store(script.any_u32(), Ordering::Release);
    }

    fn write_entry(&self, script: &mut Script<'_>) {
        let (ring, index) = (some_ring(script), script.below(ENTRIES));
        let chunk = u64::from(script.below(self.chunks + 1)) * u64::from(self.chunk_bytes);
        let (address, length) = match script.byte() % 4 {
            0 => (script.any_u64(), script.any_u32()),
            1 => (
                chunk + u64::from(script.any_u32() % 4096),
                script.any_u32() % 4096,
            ),
            // With the offset on top, as of unaligned chunks.
            2 => (chunk | u64::from(script.byte()) << 48, script.any_u32() % 4096),
            _ => (chunk + 256, u32::from(script.byte())),
        };
        let options = script.below(4);
        let descriptor = Descriptor {
            address,
            length,
            options,
        };
        self.write(ring, index, descriptor);
    }
}

fn some_ring(script: &mut Script<'_>) -> Ring {
    Ring::ALL[script.below(4) as usize]
}
