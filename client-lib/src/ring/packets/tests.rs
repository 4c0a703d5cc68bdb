//! Packets of any lengths through a real mapping, from any index on, against a list of what was sent.

use proptest::prelude::*;

use super::super::TX_METADATA;
use super::*;
use crate::hostile::cases;

fn descriptor(number: u64, options: u32) -> Descriptor {
    Descriptor {
        address: number,
        length: 60,
        options,
    }
}

/// A packet of so many descriptors, numbered from there on.
fn packet(first: u64, length: usize) -> Vec<Descriptor> {
    let last = length as u64 - 1;
    (0..=last)
        .map(|position| {
            descriptor(
                first + position,
                if position < last { PACKET_CONTINUES } else { 0 },
            )
        })
        .collect()
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn what_is_cut_is_left_out(lengths in prop::collection::vec(1..6_usize, 0..12), cut in 0..60_usize) {
        let mut descriptors = Vec::new();
        let mut ends = vec![0];
        for length in lengths {
            descriptors.extend(packet(descriptors.len() as u64, length));
            ends.push(descriptors.len());
        }
        let there = &descriptors[..cut.min(descriptors.len())];
        let end = ends.into_iter().rfind(|end| *end <= there.len()).unwrap();
        prop_assert_eq!(whole_packets(there), &descriptors[..end]);
    }
}

mod over_a_mapping {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::hostile::rings::{ENTRIES, OtherSide};
    use crate::setup::{Opened, Rings};
    use crate::sys::Ring;

    #[derive(Debug, Clone)]
    enum Step {
        /// The kernel publishes so many descriptors.
        Receive(u32),
        /// We look, with room for so many copies, and take packets of at most so many descriptors.
        Look {
            copies: usize,
            within: u32,
            packets: usize,
        },
    }

    fn step() -> impl Strategy<Value = Step> {
        let look = (0..12_usize, 1..9_u32, 0..6_usize);
        prop_oneof![
            (1..9_u32).prop_map(Step::Receive),
            look.prop_map(|(copies, within, packets)| Step::Look {
                copies,
                within,
                packets
            }),
        ]
    }

    fn start() -> impl Strategy<Value = u32> {
        prop_oneof![any::<u32>(), u32::MAX - 64..=u32::MAX]
    }

    /// The socket, its rings, and their other side.
    fn rings(start: u32) -> (Opened, Rings, OtherSide) {
        OtherSide::new(2048, 16, start)
    }

    proptest! {
        #![proptest_config(cases(256))]

        /// The kernel publishes packets in pieces of any size; each arrives once, whole, and in order, and the entries that
        /// are given back are those of the packets that were taken.
        #[test]
        fn packets_arrive_whole(
            start in start(),
            lengths in prop::collection::vec(1..=ENTRIES as usize, 1..40),
            steps in prop::collection::vec(step(), 1..80),
        ) {
            let (_socket, mut rings, kernel) = rings(start);
            let rx = rings.rx.as_mut().unwrap();
            let (mut sent, mut ends) = (Vec::new(), Vec::new());
            for length in &lengths {
                sent.extend(packet(sent.len() as u64, *length));
                ends.push(sent.len());
            }
            let (mut published, mut taken, mut next) = (0_u32, 0_u32, 0);
            for step in steps {
                match step {
                    Step::Receive(count) => {
                        let room = ENTRIES - (published - taken);
                        let left = u32::try_from(sent.len()).unwrap() - published;
                        for _ in 0..count.min(room).min(left) {
                            kernel.write(Ring::Rx, start.wrapping_add(published), sent[published as usize]);
                            published += 1;
                        }
                        kernel.producer(Ring::Rx).store(start.wrapping_add(published), Ordering::Release);
                    }
                    Step::Look { copies, within, packets: most } => {
                        let mut copies = vec![Descriptor::default(); copies];
                        let there = &sent[taken as usize..published as usize];
                        let seen = &there[..there.len().min(copies.len())];
                        let first = taken as usize;
                        let end = ends.iter().rfind(|end| (first..=first + seen.len()).contains(*end));
                        let whole = end.map_or(0, |end| end - first);
                        let room = copies.len().min(ENTRIES as usize);
                        let packets = rx.peek_packets(&mut copies);
                        if whole == 0 {
                            let is_too_long = room > 0 && seen.len() == room;
                            prop_assert_eq!(packets.is_err(), is_too_long);
                            prop_assert!(packets.is_err() || packets.is_ok_and(|packets| packets.is_none()));
                            continue;
                        }
                        let mut packets = packets.unwrap().unwrap();
                        prop_assert_eq!(packets.remaining() as usize, whole);
                        let mut count = 0;
                        for _ in 0..most {
                            let Some(packet) = packets.next_within(within) else { break };
                            prop_assert_eq!(packet.len(), lengths[next]);
                            let first = (taken + count) as usize;
                            prop_assert_eq!(packet, &sent[first..first + packet.len()]);
                            count += u32::try_from(packet.len()).unwrap();
                            next += 1;
                        }
                        prop_assert_eq!(packets.release(), count);
                        taken += count;
                        let given_back = kernel.consumer(Ring::Rx).load(Ordering::Acquire);
                        prop_assert_eq!(given_back, start.wrapping_add(taken));
                    }
                }
            }
        }

        /// What the kernel sees are whole packets, whatever was reserved.
        #[test]
        fn packets_are_sent_whole(
            start in start(),
            batches in prop::collection::vec((1..9_u32, prop::collection::vec(0..10_usize, 0..5)), 1..30),
        ) {
            let (_socket, mut rings, kernel) = rings(start);
            let tx = rings.tx.as_mut().unwrap();
            let (mut number, mut index) = (0, start);
            for (most, lengths) in batches {
                let Some(mut free) = tx.reserve(..=most).unwrap() else { continue };
                let mut expected = Vec::new();
                for length in lengths {
                    let room = free.remaining() as usize;
                    // With an option of another kind, and with the one that is set here the wrong way.
                    let given: Vec<_> = (number..)
                        .take(length)
                        .zip([PACKET_CONTINUES, TX_METADATA].into_iter().cycle())
                        .map(|(number, options)| descriptor(number, options))
                        .collect();
                    let written = free.write_packet(&given);
                    prop_assert_eq!(written.is_ok(), length <= room);
                    if written.is_ok() && length > 0 {
                        let whole = packet(number, length).into_iter();
                        expected.extend(whole.zip(&given).map(|(it, given)| Descriptor {
                            options: it.options | given.options & TX_METADATA,
                            ..it
                        }));
                    }
                    number += length as u64;
                }
                prop_assert_eq!(free.commit() as usize, expected.len());
                let end = kernel.producer(Ring::Tx).load(Ordering::Acquire);
                for wanted in expected {
                    prop_assert_eq!(kernel.descriptor(Ring::Tx, index), wanted);
                    index = index.wrapping_add(1);
                }
                prop_assert_eq!(index, end);
                // It sends all of it.
                kernel.consumer(Ring::Tx).store(end, Ordering::Release);
            }
        }
    }

    #[test]
    fn a_packet_that_is_longer_than_the_copies_is_told() {
        let (_socket, mut rings, kernel) = rings(0);
        let rx = rings.rx.as_mut().unwrap();
        for (index, descriptor) in (0..).zip(packet(0, 5)) {
            kernel.write(Ring::Rx, index, descriptor);
        }
        let mut copies = [Descriptor::default(); 5];
        assert!(
            rx.peek_packets(&mut copies).unwrap().is_none(),
            "nothing is there"
        );
        kernel.producer(Ring::Rx).store(4, Ordering::Release);
        assert!(
            rx.peek_packets(&mut copies).unwrap().is_none(),
            "its end is not there"
        );
        let too_long = rx.peek_packets(&mut copies[..4]).unwrap_err();
        assert_eq!(too_long, PeekPacketsError::NoEnd { descriptors: 4 });
        kernel.producer(Ring::Rx).store(5, Ordering::Release);
        assert!(rx.peek_packets(&mut []).unwrap().is_none());
        let whole = rx.peek_packets(&mut copies).unwrap().unwrap();
        assert_eq!(whole.release_all(), 5);
        assert_eq!(kernel.consumer(Ring::Rx).load(Ordering::Acquire), 5);
        // A ring that is full, and no end: whoever has room for all of it is told.
        for index in 5..5 + ENTRIES {
            kernel.write(Ring::Rx, index, descriptor(0, PACKET_CONTINUES));
        }
        kernel.producer(Ring::Rx).store(5 + ENTRIES, Ordering::Release);
        let endless = rx.peek_packets(&mut [Descriptor::default(); 64]).unwrap_err();
        assert_eq!(endless, PeekPacketsError::NoEnd { descriptors: ENTRIES });
    }

    #[test]
    fn a_packet_that_the_kernel_would_drop_is_not_written() {
        let (_socket, mut rings, _kernel) = rings(0);
        let mut free = rings.tx.as_mut().unwrap().reserve(4).unwrap().unwrap();
        let long = packet(0, MOST_PACKET_FRAMES as usize + 1);
        assert_eq!(free.write_packet(&long), Err(UnfitPacket::TooManyFrames));
        assert_eq!(free.write_packet(&long[1..]), Err(UnfitPacket::NoRoom));
        assert_eq!(free.write_packet(&[]), Ok(()));
        assert_eq!(free.remaining(), 4);
    }
}
