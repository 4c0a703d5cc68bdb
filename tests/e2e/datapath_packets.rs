//! Packets of several frames: taken whole and sent whole, by a holder without a capability, over a jumbo MTU.

use std::time::Duration;

use e2e::packets;
use e2e::skip;
use e2e::skip::Skip;
use e2e::world::Side;
use xsk_client::{BindOptions, Broker, UmemOptions, UnsentReason, raw};

use crate::datapath_options::{grant, lacks, open, with};
use crate::lease_scene::{PATIENCE, payload, port};

const MTU: u32 = 9000;
const QUEUE: u32 = 3;

/// Sends packets back: every other one as it is, the rest as copies. It takes fewer frames at once than most packets are
/// of, and its rings' edges come by all the time.
pub(crate) fn reflect_packets() {
    let mut xsk = open(
        &UmemOptions::new().chunks(256),
        &BindOptions::new().multi_buffer(),
        64,
    );
    let mut number = 0_u64;
    loop {
        xsk.wait(Some(Duration::from_millis(100))).unwrap();
        let mut copies = Vec::new();
        let mut batch = xsk.receive_packets(3).unwrap();
        while let Some(packet) = batch.next_packet() {
            number += 1;
            let lengths: Vec<usize> = packet.frames().map(<[u8]>::len).collect();
            // Only the last is not full, as the kernel cuts them.
            assert!(lengths.is_sorted_by(|one, next| one >= next), "{lengths:?}");
            assert_eq!(lengths.iter().sum::<usize>(), packet.len());
            if number.is_multiple_of(2) {
                copies.push(packet.to_vec());
            } else {
                packet.send().unwrap();
            }
        }
        drop(batch);
        let mut batch = xsk.transmit_packets().unwrap();
        for packet in copies {
            batch.send(&packet).unwrap();
        }
    }
}

/// The same by the raw layer, which neither a batch of seven descriptors nor a reservation of as many ever cuts.
pub(crate) fn reflect_raw_packets() {
    let umem = raw::Umem::new(&UmemOptions::new().chunks(256)).unwrap();
    let mut broker = Broker::connect().unwrap();
    let bound = grant(&mut broker, 64).bind_raw(&umem, &BindOptions::new().multi_buffer());
    let mut bound = bound.unwrap_or_else(|error| lacks(&error));
    let mut free: Vec<u64> = (0..256).map(|chunk| chunk * 2048).collect();
    let filled = bound.sockets_mut()[0].fill.produce_last(&free).unwrap();
    free.truncate(free.len() - filled);
    let xsk = bound.activate(&mut broker).unwrap().pop().unwrap();
    let (mut rx, mut tx, mut fill, mut completion) =
        (xsk.rx.unwrap(), xsk.tx.unwrap(), xsk.fill, xsk.completion);
    println!("active");
    let mut copies = [raw::Descriptor::default(); 7];
    loop {
        xsk.socket.wait(Some(Duration::from_millis(1))).unwrap();
        if let Some(mut sent) = completion.peek(..=64).unwrap() {
            free.extend(&mut sent);
            sent.release();
        }
        let filled = fill.produce_last(&free).unwrap();
        free.truncate(free.len() - filled);
        xsk.socket.kick_fill(&fill).unwrap();
        if let Some(mut packets) = rx.peek_packets(&mut copies).unwrap()
            && let Some(mut entries) = tx.reserve(1..=7).unwrap()
        {
            while let Some(packet) = packets.next_within(entries.remaining()) {
                let lengths: Vec<u32> = packet.iter().map(|it| it.length).collect();
                // Only the last is not full, as the kernel cuts them.
                assert!(lengths.is_sorted_by(|one, next| one >= next), "{lengths:?}");
                assert!(packet.iter().all(|it| umem.frame(it).is_some()));
                entries.write_packet(packet).unwrap();
            }
            packets.release();
            entries.commit();
        }
        while xsk.socket.kick_tx(&mut tx).unwrap() == raw::Kick::Again {}
    }
}

/// Packets for which there is not enough of something: nothing of them is sent.
pub(crate) fn send_whole_packets() {
    // 32 chunks, of which four are kept for sending; four entries.
    let umem = UmemOptions::new().chunks(32);
    let mut xsk = open(&umem, &BindOptions::new().multi_buffer(), 4);
    let packet = |length: usize, first: u8| {
        let mut packet = vec![first; length];
        packet[..12].fill(0xff);
        packet[12..14].copy_from_slice(&[0x88, 0xb5]);
        packet
    };
    for turn in 0..100 {
        let mut batch = xsk.transmit_packets().unwrap();
        batch.send(&packet(5000, turn)).unwrap();
        assert_eq!(batch.send(&packet(5000, 200)), Err(UnsentReason::RingFull));
        assert_eq!(batch.send(&packet(40_000, 200)), Err(UnsentReason::TooManyFrames));
        batch.send(&packet(64, turn)).unwrap();
        assert_eq!(batch.send(&packet(64, 200)), Err(UnsentReason::RingFull));
        drop(batch);
        while xsk.in_flight() > 0 {
            xsk.wait(Some(Duration::from_millis(1))).unwrap();
        }
    }
    println!("sent");
    std::thread::sleep(Duration::from_secs(600));
}

/// Where one frame is a packet, it is told; and where the chunks are used up.
pub(crate) fn send_what_cannot_be() {
    let mut xsk = open(&UmemOptions::new().chunks(16), &BindOptions::new(), 64);
    let mut batch = xsk.transmit_packets().unwrap();
    assert_eq!(batch.send(&[0; 5000]), Err(UnsentReason::OneBuffer));
    let mut sent = 0;
    let reason = loop {
        match batch.send(&[0xff; 64]) {
            Ok(()) => sent += 1,
            Err(reason) => break reason,
        }
    };
    assert_eq!((sent, reason), (4, UnsentReason::NoChunk));
    println!("sent");
    std::thread::sleep(Duration::from_secs(600));
}

/// Jumbo packets in bursts, to a holder that sends each back.
fn jumbo_packets_come_back(what: &str) {
    let lacks = with(what, Some(MTU), |world, holder, peer| {
        let (from, to) = (
            world.device(Side::PEER).end(9),
            world.device(Side::Host).end(port(QUEUE)),
        );
        // Ten at once, of up to five frames each, so that they are cut by whatever cuts.
        for burst in 0..60 {
            let mut sent: Vec<Vec<u8>> = (0..10)
                .map(|position| {
                    let number: usize = burst * 10 + position;
                    let length = 64 + number * 211 % 8900;
                    packets::udp(from, to, &payload(QUEUE, number as u64, length))
                })
                .collect();
            for frame in &sent {
                peer.send(frame).unwrap();
            }
            while !sent.is_empty() {
                let came = peer.expect(PATIENCE, |bytes| sent.iter().position(|frame| frame == bytes));
                let position = came.unwrap().unwrap_or_else(|| {
                    panic!(
                        "burst {burst}: {} did not come back: {}",
                        sent.len(),
                        holder.process().last_words()
                    )
                });
                sent.remove(position);
            }
        }
    });
    if let Some(probe) = lacks {
        skip!(Skip::KernelLacks { probe });
    }
}

#[test]
fn jumbo_packets_are_taken_and_sent_whole() {
    jumbo_packets_come_back("packets");
}

#[test]
fn jumbo_packets_are_whole_in_the_raw_layer() {
    jumbo_packets_come_back("raw packets");
}

#[test]
fn a_packet_without_room_for_all_of_it_is_not_sent_at_all() {
    let lacks = with("whole packets", Some(MTU), |_, holder, peer| {
        for turn in 0..100 {
            for length in [5000, 64] {
                let came = peer.expect(PATIENCE, |bytes| {
                    (bytes.get(12..14)? == [0x88, 0xb5])
                        .then(|| (bytes.len(), bytes[14], bytes[bytes.len() - 1]))
                });
                let came = came.unwrap();
                assert_eq!(
                    came,
                    Some((length, turn, turn)),
                    "{}",
                    holder.process().last_words()
                );
            }
        }
    });
    if let Some(probe) = lacks {
        skip!(Skip::KernelLacks { probe });
    }
}

#[test]
fn what_cannot_be_a_packet_is_told() {
    let lacks = with("no packets", None, |_, holder, _| {
        let told = holder.wait_line("sent", PATIENCE);
        told.unwrap_or_else(|error| panic!("{error}: {}", holder.process().last_words()));
    });
    assert_eq!(lacks, None);
}
