//! A socket without a kernel, whose rings an adversary writes to: for a property test, and for `client-lib/fuzz`.
//!
//! Another process may have the socket too, and with it the rings. Whatever it writes there, safe code has to stay sound:
//! every slice that is lent lies in the umem, none overlaps an owned frame, and nobody but its owner changes one. Here both
//! sides are played by one string of bytes, and these three are looked at after each step.
//!
//! The rings lie in a memfd, which can be mapped at the offsets at which a socket has them.

#![expect(unsafe_code, reason = "the adversary writes to mapped rings")]
#![expect(clippy::expect_used, reason = "this is a test, for two that run it")]

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use crate::bind::BindOptions;
use crate::error::Queue;
use crate::frame::Frame;
use crate::pool::Pool;
use crate::setup::{Opened, RingEntries};
use crate::stamps::TxRequest;
use crate::sys::{Mapping, MmapOffsets, Prefault, Ring, RingOffset};
use crate::umem::{Umem, UmemOptions};
use crate::wire::BindMode;
use crate::xsk::Xsk;

const ENTRIES: u32 = 8;
const PART: RingOffset = RingOffset {
    producer: 0,
    consumer: 64,
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
/// What is written to frames that are lent.
const LENT: u8 = 0xee;

/// A string of bytes, taken apart; 0 where there are no more.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> u8 {
        let [value] = self.bytes();
        value
    }

    fn bytes<const COUNT: usize>(&mut self) -> [u8; COUNT] {
        let mut value = [0; COUNT];
        let (taken, rest) = self.0.split_at(self.0.len().min(COUNT));
        value[..taken.len()].copy_from_slice(taken);
        self.0 = rest;
        value
    }

    fn below(&mut self, end: u32) -> u32 {
        u32::from(self.byte()) % end.max(1)
    }

    fn any_u32(&mut self) -> u32 {
        u32::from_ne_bytes(self.bytes())
    }

    fn any_u64(&mut self) -> u64 {
        u64::from_ne_bytes(self.bytes())
    }
}

struct Owned {
    frame: Frame,
    tag: u8,
}

struct Stage {
    xsk: Xsk,
    rings: Vec<Mapping>,
    chunk_bytes: u32,
    chunks: u32,
    memory: Range<usize>,
    owned: Vec<Owned>,
    tags: u8,
}

/// Plays a string of bytes: which umem, and then what both sides do. Panics where something is wrong.
pub fn play(script: &[u8]) {
    let mut script = Script(script);
    let mut stage = Stage::new(&mut script);
    while !script.0.is_empty() {
        match script.byte() % 10 {
            0 | 1 => stage.kernel_goes_on(&mut script),
            2 => stage.write_index(&mut script),
            3 | 4 => stage.write_entry(&mut script),
            5 => stage.receive(&mut script),
            6 => stage.transmit(&mut script),
            7 => stage.receive_packets(&mut script),
            8 => stage.transmit_packets(&mut script),
            _ => stage.with_owned(&mut script),
        }
        stage.look();
    }
}

impl Stage {
    fn new(script: &mut Script<'_>) -> Self {
        let shape = script.byte();
        let chunks = if shape & 1 == 0 { 16 } else { 12 };
        let mut options = UmemOptions::new().chunks(chunks);
        if shape & 2 != 0 {
            options = options.unaligned().chunk_bytes(3000);
        }
        if shape & 4 != 0 {
            options = options.tx_metadata();
        }
        let mut binding = BindOptions::new();
        if shape & 8 != 0 {
            binding = binding.multi_buffer();
        }
        let mode = if shape & 16 == 0 {
            BindMode::Copy
        } else {
            BindMode::ZeroCopy
        };

        let file = memfd_create("hostile", MemfdFlags::CLOEXEC).expect("memfd_create");
        let end = Ring::Completion.page_offset() + 4096;
        ftruncate(&file, end).expect("ftruncate");
        let map =
            |ring: Ring| Mapping::new(&file, ring.page_offset(), RING_BYTES, Prefault::No).expect("mmap");
        let rings = Ring::ALL.map(map).into();
        let umem = Umem::new(&options).expect("a umem");
        let (chunk_bytes, start) = (umem.chunk_bytes(), umem.memory().start().addr().get());
        let memory = start..start + umem.memory().len();
        let share = Pool::divide(umem, 1)
            .and_then(|mut shares| shares.pop())
            .expect("a share");
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
        let mapped = opened.map_rings_at(&OFFSETS).expect("rings");
        Self {
            xsk: Xsk::over(opened, mapped, share, mode, &binding).expect("a socket"),
            rings,
            chunk_bytes,
            chunks,
            memory,
            owned: Vec::new(),
            tags: 0,
        }
    }

    fn word(&self, ring: usize, offset: usize) -> &AtomicU32 {
        assert!(
            offset.is_multiple_of(4) && offset + 4 <= RING_BYTES,
            "in the ring"
        );
        let start = self.rings[ring].start();
        // SAFETY: in the mapping, checked above.
        let word = unsafe { start.add(offset) }.cast::<AtomicU32>();
        // SAFETY: aligned, checked above; whoever else has it uses atomics or volatile accesses.
        unsafe { word.as_ref() }
    }

    /// As a kernel would: it takes or gives some entries.
    fn kernel_goes_on(&mut self, script: &mut Script<'_>) {
        let ring = script.below(4);
        let offset = match Ring::ALL[ring as usize] {
            Ring::Fill | Ring::Tx => 64,
            Ring::Rx | Ring::Completion => 0,
        };
        let index = self.word(ring as usize, offset);
        index.fetch_add(script.below(ENTRIES + 2), Ordering::Release);
    }

    /// As no kernel would.
    fn write_index(&mut self, script: &mut Script<'_>) {
        let (ring, offset) = (script.below(4), 64 * script.below(3));
        self.word(ring as usize, offset as usize)
            .store(script.any_u32(), Ordering::Release);
    }

    fn write_entry(&mut self, script: &mut Script<'_>) {
        let (ring, position) = (script.below(4) as usize, script.below(ENTRIES) as usize);
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
        let (bytes, values) = match Ring::ALL[ring] {
            Ring::Fill | Ring::Completion => (8, 2),
            Ring::Rx | Ring::Tx => (16, 4),
        };
        #[expect(clippy::cast_possible_truncation, reason = "the lower and the upper half")]
        let parts = [address as u32, (address >> 32) as u32, length, script.below(4)];
        for (part, value) in parts.into_iter().enumerate().take(values) {
            self.word(ring, 256 + position * bytes + 4 * part)
                .store(value, Ordering::Release);
        }
    }

    fn receive(&mut self, script: &mut Script<'_>) {
        let Ok(mut batch) = self.xsk.receive(script.below(12)) else {
            return;
        };
        let mut forgotten = false;
        while let Some(mut frame) = batch.next_frame() {
            check(&self.memory, &self.owned, &frame);
            match script.byte() % 8 {
                0 | 1 => frame.send().unwrap_or_else(drop),
                2 => keep(&mut self.owned, &mut self.tags, frame.into_owned()),
                3 => {
                    frame.grow_front(usize::from(script.byte()) * 8).ok();
                    check(&self.memory, &self.owned, &frame);
                    frame.fill(LENT);
                }
                4 => {
                    frame.shrink_front(usize::from(script.byte())).ok();
                    check(&self.memory, &self.owned, &frame);
                    frame.fill(LENT);
                    frame.send().ok();
                }
                5 => {
                    frame.resize(usize::from(script.byte()) * 16).ok();
                    check(&self.memory, &self.owned, &frame);
                    frame.fill(LENT);
                    frame.send().ok();
                }
                6 => {
                    forgotten = script.byte() > 240;
                    break;
                }
                _ => frame.fill(LENT),
            }
        }
        if forgotten {
            std::mem::forget(batch);
        }
    }

    fn transmit(&mut self, script: &mut Script<'_>) {
        let Ok(mut batch) = self.xsk.transmit(script.below(12)) else {
            return;
        };
        if script.byte() > 200 {
            let (memory, owned) = (&self.memory, &self.owned);
            batch.send_each(|frame| {
                check(memory, owned, frame);
                frame.fill(LENT);
                usize::from(script.byte()) * 16
            });
        }
        while let Some(mut frame) = batch.next_frame() {
            check(&self.memory, &self.owned, &frame);
            let length = usize::from(script.byte()) * 16;
            match script.byte() % 8 {
                0 | 1 => {
                    frame.fill(LENT);
                    frame.send(length).ok();
                }
                2 => keep(&mut self.owned, &mut self.tags, frame.into_owned()),
                3 => frame.send_more(length).unwrap_or_else(drop),
                4 => {
                    let request = TxRequest::new().timestamp(script.any_u64());
                    frame.send_with(length, request).ok();
                }
                5 => {
                    if let Some(Owned { frame, tag }) = self.owned.pop()
                        && let Err(unsent) = batch.send_owned(frame)
                    {
                        self.owned.push(Owned {
                            frame: unsent.frame,
                            tag,
                        });
                    }
                }
                6 => break,
                _ => frame.fill(LENT),
            }
        }
    }

    fn receive_packets(&mut self, script: &mut Script<'_>) {
        let Ok(mut batch) = self.xsk.receive_packets(script.below(12)) else {
            return;
        };
        let mut forgotten = false;
        while let Some(mut packet) = batch.next_packet() {
            for frame in packet.frames() {
                check(&self.memory, &self.owned, frame);
            }
            let index = usize::from(script.byte()) % 4;
            if let Some(frame) = packet.frame_mut(index) {
                frame.fill(LENT);
            }
            match script.byte() % 4 {
                0 => packet.send().unwrap_or_else(drop),
                1 => assert_eq!(packet.to_vec().len(), packet.len(), "all of its bytes"),
                2 => {
                    forgotten = script.byte() > 200;
                    break;
                }
                _ => {}
            }
        }
        if forgotten {
            std::mem::forget(batch);
        }
    }

    fn transmit_packets(&mut self, script: &mut Script<'_>) {
        let Ok(mut batch) = self.xsk.transmit_packets() else {
            return;
        };
        for _ in 0..script.below(4) {
            let (memory, owned) = (&self.memory, &self.owned);
            let length = usize::from(script.byte()) * 64;
            let sent = batch.send_with(length, |_, frame| {
                check(memory, owned, frame);
                frame.fill(LENT);
            });
            sent.ok();
        }
    }

    fn with_owned(&mut self, script: &mut Script<'_>) {
        let choice = script.byte();
        let Some(position) = self.owned.len().checked_sub(1) else {
            self.xsk.next_timestamp().ok();
            return;
        };
        let Owned { mut frame, tag } = self.owned.swap_remove(usize::from(choice) % (position + 1));
        match script.byte() % 4 {
            0 => drop(frame),
            1 => {
                if let Err(unsent) = self.xsk.send(frame) {
                    self.owned.push(Owned {
                        frame: unsent.frame,
                        tag,
                    });
                }
            }
            _ => {
                frame.resize(usize::from(script.byte()) * 16).ok();
                keep(&mut self.owned, &mut self.tags, frame);
            }
        }
    }

    /// Nobody has written to what is owned.
    fn look(&self) {
        for Owned { frame, tag } in &self.owned {
            assert!(frame.iter().all(|byte| byte == tag), "an owned frame has changed");
        }
    }
}

/// What is lent is in the umem, and nobody else's.
fn check(memory: &Range<usize>, owned: &[Owned], lent: &[u8]) {
    let range = |bytes: &[u8]| bytes.as_ptr().addr()..bytes.as_ptr().addr() + bytes.len();
    let lent = range(lent);
    assert!(
        memory.start <= lent.start && lent.end <= memory.end,
        "beyond the umem"
    );
    for Owned { frame, .. } in owned {
        let other = range(frame);
        assert!(
            lent.is_empty() || lent.end <= other.start || other.end <= lent.start,
            "lent and owned at once"
        );
    }
}

/// Marks a frame as its owner's.
fn keep(owned: &mut Vec<Owned>, tags: &mut u8, mut frame: Frame) {
    *tags = (*tags + 1) % LENT;
    frame.fill(*tags);
    owned.push(Owned { frame, tag: *tags });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn safe_code_stays_sound_whatever_the_rings_hold(script in prop::collection::vec(any::<u8>(), 0..600)) {
            super::play(&script);
        }
    }
}
