//! The raw layer: what is given back or published is what was taken or written, packets are whole, and whatever a
//! descriptor says, [`raw::Umem::frame`] leads into the umem.

use std::sync::atomic::Ordering;

use super::Script;
use super::rings::{ENTRIES, OtherSide};
use crate::cast;
use crate::raw;
use crate::ring::{Descriptor, MOST_PACKET_FRAMES, PACKET_CONTINUES, PeekPacketsError, UnfitPacket};
use crate::setup::{Opened, Rings};
use crate::sys::Ring;
use crate::umem::UmemOptions;

const CHUNKS: u32 = 12;

struct Stage {
    rings: Rings,
    other: OtherSide,
    umem: raw::Umem,
    /// Keeps the file that the rings lie in.
    _socket: Opened,
}

pub(super) fn play(script: &mut Script<'_>) {
    let mut options = UmemOptions::new().chunks(CHUNKS);
    if script.byte().is_multiple_of(2) {
        options = options.unaligned().chunk_bytes(3000);
    }
    let umem = raw::Umem::new(&options).expect("a umem");
    let (socket, rings, other) = OtherSide::new(umem.layout().chunk_bytes, CHUNKS, script.any_u32());
    let mut stage = Stage {
        rings,
        other,
        umem,
        _socket: socket,
    };
    while !script.is_over() {
        match script.byte() % 8 {
            0..=3 => stage.other.act(script),
            4 | 5 => stage.receive_packets(script),
            6 => stage.send_packets(script),
            _ => stage.move_entries(script),
        }
    }
}

impl Stage {
    fn receive_packets(&mut self, script: &mut Script<'_>) {
        let Rings { rx: Some(rx), .. } = &mut self.rings else {
            return;
        };
        let mut copies = [Descriptor::default(); ENTRIES as usize + 4];
        let copies = &mut copies[..script.below(ENTRIES + 4) as usize];
        let room = cast::count(copies.len()).min(ENTRIES);
        let before = self.other.consumer(Ring::Rx).load(Ordering::Acquire);
        let mut packets = match rx.peek_packets(copies) {
            Ok(Some(packets)) => packets,
            Err(PeekPacketsError::NoEnd { descriptors }) => return assert_eq!(descriptors, room),
            Ok(None) | Err(PeekPacketsError::Corrupt(_)) => return,
        };
        let there = packets.remaining();
        assert!((1..=room).contains(&there), "packets that there is no room for");
        let mut taken = Vec::new();
        loop {
            // While we look at it, too.
            self.other.act(script);
            let most = match script.byte() % 4 {
                0 => script.below(4),
                _ => u32::MAX,
            };
            let left = packets.remaining();
            let Some(packet) = packets.next_within(most) else {
                assert_eq!(packets.remaining(), left, "what was not taken is left");
                assert!(left == 0 || most < left, "a packet without its end");
                break;
            };
            let (last, others) = packet.split_last().expect("a packet of nothing");
            assert!(packet.len() <= most as usize, "a longer packet");
            assert_eq!(last.options & PACKET_CONTINUES, 0, "a packet without its end");
            assert!(
                others.iter().all(|it| it.options & PACKET_CONTINUES != 0),
                "two in one"
            );
            for descriptor in packet {
                check(&self.umem, descriptor);
            }
            taken.extend_from_slice(packet);
        }
        let given_back = match script.byte() % 4 {
            0 => {
                let index = self.other.consumer(Ring::Rx);
                index.store(before, Ordering::Release);
                let _not_released = packets;
                return assert_eq!(index.load(Ordering::Acquire), before, "given back all the same");
            }
            1 => {
                assert_eq!(packets.release_all(), there);
                there
            }
            _ => packets.release(),
        };
        if given_back != there {
            assert_eq!(given_back as usize, taken.len(), "given back and not taken");
        }
    }

    fn send_packets(&mut self, script: &mut Script<'_>) {
        let Rings { tx: Some(tx), .. } = &mut self.rings else {
            return;
        };
        let most = script.below(12);
        let Ok(Some(mut free)) = tx.reserve(script.below(3)..=most) else {
            return;
        };
        let free_at_first = free.remaining();
        let mut written = 0;
        for _ in 0..script.below(6) {
            self.other.act(script);
            let packet: Vec<Descriptor> = (0..script.byte() % 20)
                .map(|_| Descriptor {
                    address: script.any_u64(),
                    length: script.any_u32(),
                    options: script.below(4),
                })
                .collect();
            let room = free.remaining();
            let expected = match packet.len() {
                length if length > MOST_PACKET_FRAMES as usize => Err(UnfitPacket::TooManyFrames),
                length if length > room as usize => Err(UnfitPacket::NoRoom),
                _ => Ok(()),
            };
            assert_eq!(free.write_packet(&packet), expected);
            if expected.is_ok() {
                written += cast::count(packet.len());
            }
            assert_eq!(free.remaining(), free_at_first - written, "a part of a packet");
        }
        assert_eq!(free.commit(), written, "published and not written");
    }

    /// Whole batches from ring to ring, and entries one by one.
    fn move_entries(&mut self, script: &mut Script<'_>) {
        let max = script.below(12);
        let Rings {
            fill,
            completion,
            rx: Some(rx),
            tx: Some(tx),
        } = &mut self.rings
        else {
            return;
        };
        let moved = match script.byte() % 5 {
            0 => rx.recycle(fill, max),
            1 => completion.recycle(fill, max),
            2 => rx.transfer(tx, max, |frame| frame),
            3 => fill.produce(&[0; 12][..max as usize]).map(cast::count),
            _ => {
                let mut read = 0;
                if let Ok(Some(mut received)) = rx.peek(1..=max) {
                    for descriptor in &mut received {
                        self.other.act(script);
                        check(&self.umem, &descriptor);
                        read += 1;
                    }
                    assert_eq!(received.release(), read);
                }
                Ok(read)
            }
        };
        assert!(moved.is_err() || moved.is_ok_and(|moved| moved <= max.min(ENTRIES)));
    }
}

/// What it names is in the umem, or nowhere.
fn check(umem: &raw::Umem, descriptor: &Descriptor) {
    if let Some(start) = umem.frame(descriptor) {
        let offset = start.addr().get() - umem.start().addr().get();
        assert!(
            offset + descriptor.length as usize <= umem.len(),
            "beyond the umem"
        );
    }
}
