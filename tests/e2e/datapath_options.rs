//! What a holder without a capability can ask of its sockets, each tried with real packets.

use std::time::Duration;

use e2e::broker::BrokerProcess;
use e2e::holder::Holder;
use e2e::huge_pages::HugePages;
use e2e::packet_socket::PacketSocket;
use e2e::packets::{self, Checksums, Parsed};
use e2e::skip;
use e2e::skip::Skip;
use e2e::uids::Uid;
use e2e::world::{Side, World};
use xsk_client::sys::TxChecksums;
use xsk_client::wire::RingSizes;
use xsk_client::{BindOptions, Bound, Broker, Error, Grant, Request, TxRequest, Umem, UmemOptions, Xsk, raw};

use crate::lease_scene::{PATIENCE, allow_with, interface, payload, port, read_frame};
use crate::{datapath_kicks, datapath_packets};

const QUEUE: u32 = 3;

/// A body: asks for what it is told, and sends back what arrives, in the way that goes with it.
pub(crate) fn asks_for(arguments: &[String]) {
    match arguments[0].as_str() {
        "headroom" => encapsulate(&UmemOptions::new().chunks(64).headroom_bytes(64)),
        "unaligned" => reflect(
            &UmemOptions::new().chunk_bytes(3000).chunks(100).unaligned(),
            &BindOptions::new(),
        ),
        "multi-buffer" => reflect(
            &UmemOptions::new().chunks(256),
            &BindOptions::new().multi_buffer(),
        ),
        "packets" => datapath_packets::reflect_packets(),
        "raw packets" => datapath_packets::reflect_raw_packets(),
        "whole packets" => datapath_packets::send_whole_packets(),
        "no packets" => datapath_packets::send_what_cannot_be(),
        "huge pages" => reflect(
            &UmemOptions::new().chunks(1024).on_hugepages(),
            &BindOptions::new(),
        ),
        "metadata" => sums_and_stamps(),
        "small rings" => small_rings(),
        "raw" => raw_reflect(),
        "budget" => datapath_kicks::send_within_budgets(),
        "a task" => datapath_kicks::reflect_in_a_task(),
        "busy poll" => datapath_kicks::poll_busily(),
        other => panic!("{other}"),
    }
}

pub(crate) fn grant(broker: &mut Broker, rings: u32) -> Grant {
    let request = Request::new("eth0:3".parse().unwrap()).rings(RingSizes::all(rings));
    Grant::acquire(broker, request).unwrap()
}

pub(crate) fn open(umem: &UmemOptions, options: &BindOptions, rings: u32) -> Xsk {
    let mut broker = Broker::connect().unwrap();
    let umem = match Umem::new(umem) {
        Ok(umem) => umem,
        Err(error) => {
            println!("lacks {error}");
            std::process::exit(0)
        }
    };
    let bound = grant(&mut broker, rings).bind_one(umem, options);
    let bound: Bound<Xsk> = bound.unwrap_or_else(|error| lacks(&error));
    let xsk = bound.activate(&mut broker).unwrap();
    // It lives as long as we do.
    std::mem::forget(broker);
    println!("active");
    xsk
}

/// Tells that this kernel cannot bind like that, if it is so.
pub(crate) fn lacks(error: &Error) -> ! {
    // The kernel says that of flags which it does not know.
    let is_unknown = matches!(error, Error::Socket { .. }) && error.to_string().contains("os error 22");
    assert!(is_unknown, "{error}");
    println!("lacks {error}");
    std::process::exit(0)
}

fn reflect(umem: &UmemOptions, options: &BindOptions) {
    let mut xsk = open(umem, options, 256);
    loop {
        xsk.wait(Some(Duration::from_millis(100))).unwrap();
        let mut batch = xsk.receive(64).unwrap();
        while let Some(frame) = batch.next_frame() {
            frame.send().unwrap();
        }
    }
}

/// Puts the frame's own Ethernet header before it once more.
fn encapsulate(umem: &UmemOptions) {
    let mut xsk = open(umem, &BindOptions::new(), 64);
    loop {
        xsk.wait(Some(Duration::from_millis(100))).unwrap();
        let mut batch = xsk.receive(64).unwrap();
        while let Some(mut frame) = batch.next_frame() {
            let header: [u8; 14] = *frame.first_chunk().unwrap();
            assert_eq!(frame.grow_front(256 + 65), Err(256 + 64));
            frame.grow_front(256 + 64).unwrap();
            frame.shrink_front(256 + 64 - 14).unwrap();
            frame[..14].copy_from_slice(&header);
            frame.send().unwrap();
        }
    }
}

/// Takes the checksum out of each datagram, and has it made again; tells when it was sent.
fn sums_and_stamps() {
    let umem = UmemOptions::new()
        .chunks(64)
        .tx_metadata()
        .tx_checksums(TxChecksums::Software);
    let mut xsk = open(&umem, &BindOptions::new(), 64);
    let mut tag = 100;
    loop {
        xsk.wait(Some(Duration::from_millis(10))).unwrap();
        let mut frames = Vec::new();
        let mut batch = xsk.receive(64).unwrap();
        while let Some(frame) = batch.next_frame() {
            frames.push(frame.to_vec());
        }
        drop(batch);
        let mut batch = xsk.transmit(64).unwrap();
        for mut bytes in frames {
            if read_frame(&bytes).is_none() {
                continue;
            }
            let pseudo = [&bytes[26..34], &[0, 17], &bytes[38..40]].concat();
            bytes[40..42].copy_from_slice(&(!packets::checksum(&pseudo)).to_be_bytes());
            let mut frame = batch.next_frame().unwrap();
            frame[..bytes.len()].copy_from_slice(&bytes);
            frame
                .send_with(bytes.len(), TxRequest::new().checksum(34, 6).timestamp(tag))
                .unwrap();
            tag += 1;
        }
        drop(batch);
        while let Some(stamp) = xsk.next_timestamp().unwrap() {
            println!("stamp {} {}", stamp.tag, stamp.nanoseconds);
        }
    }
}

fn small_rings() {
    let mut xsk = open(&UmemOptions::new().chunks(64), &BindOptions::new(), 2);
    send_numbered(&mut xsk);
}

/// A thousand frames of a type of their own.
fn send_numbered(xsk: &mut Xsk) {
    let mut number = 0_u32;
    while number < 1000 {
        let mut batch = xsk.transmit(200).unwrap();
        while number < 1000
            && let Some(mut frame) = batch.next_frame()
        {
            frame[..64].fill(0);
            frame[..6].fill(0xff);
            frame[12..14].copy_from_slice(&[0x88, 0xb5]);
            frame[14..18].copy_from_slice(&number.to_be_bytes());
            frame.send(64).unwrap();
            number += 1;
        }
        drop(batch);
        xsk.wait_to_send(Duration::from_millis(10)).unwrap();
    }
    while xsk.in_flight() > 0 {
        xsk.wait(Some(Duration::from_millis(1))).unwrap();
    }
    println!("sent");
    std::thread::sleep(Duration::from_secs(600));
}

/// The raw layer over memory that is this process's, as a VMM's would be: halves on two threads, chunks by channel.
#[expect(unsafe_code, reason = "memory of one's own is what the raw layer is for")]
fn raw_reflect() {
    const CHUNKS: u64 = 128;
    let bytes = usize::try_from(CHUNKS * 2048).unwrap();
    let protection = rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE;
    // SAFETY: a new mapping, at an address of the kernel's choice.
    let memory = unsafe {
        rustix::mm::mmap_anonymous(
            std::ptr::null_mut(),
            bytes,
            protection,
            rustix::mm::MapFlags::SHARED,
        )
    };
    let start = std::ptr::NonNull::new(memory.unwrap().cast()).unwrap();
    // SAFETY: it stays mapped for as long as this process lives, and nothing here refers to it.
    let umem = unsafe { raw::Umem::from_raw(start, bytes, &raw::UmemLayout::chunks(2048)) };
    let mut broker = Broker::connect().unwrap();
    let mut bound = grant(&mut broker, 128)
        .bind_raw(&umem, &BindOptions::new())
        .unwrap();
    let chunks: Vec<u64> = (0..CHUNKS).map(|chunk| chunk * 2048).collect();
    assert_eq!(
        bound.sockets_mut()[0].fill.produce(&chunks).unwrap(),
        chunks.len()
    );
    let xsk = bound.activate(&mut broker).unwrap().pop().unwrap();
    let (mut rx, mut tx, mut fill, mut completion) =
        (xsk.rx.unwrap(), xsk.tx.unwrap(), xsk.fill, xsk.completion);
    println!("active");
    let socket = xsk.socket.clone();
    let (frames, to_send) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        loop {
            let Ok(frame) = to_send.recv() else { return };
            loop {
                if let Some(mut free) = tx.reserve(1).unwrap() {
                    free.write(frame).unwrap();
                    free.commit();
                    break;
                }
            }
            while socket.kick_tx(&mut tx).unwrap() == raw::Kick::Again {}
        }
    });
    loop {
        xsk.socket.wait(Some(Duration::from_millis(1))).unwrap();
        if let Some(received) = rx.peek(..=64).unwrap() {
            let mut received = received;
            for frame in &mut received {
                assert!(umem.frame(&frame).is_some());
                frames.send(frame).unwrap();
            }
            received.release();
        }
        if let Some(mut sent) = completion.peek(..=64).unwrap()
            && let Some(mut free) = fill.reserve(1..=sent.remaining()).unwrap()
        {
            sent.transfer(&mut free, |chunk| chunk);
            sent.release();
            free.commit();
            xsk.socket.kick_fill(&fill).unwrap();
        }
    }
}

/// A holder that asks for `what`, and a peer past whose stack frames go. `None`: it said what it lacks.
pub(crate) fn with(
    what: &str,
    mtu: Option<u32>,
    test: impl FnOnce(&World, &Holder, &PacketSocket),
) -> Option<String> {
    let world = World::new().unwrap();
    for (side, bytes) in [Side::Host, Side::PEER].into_iter().zip([mtu, mtu]) {
        if let Some(bytes) = bytes {
            world
                .netlink(side)
                .set_mtu(world.device(side).index, bytes)
                .unwrap();
        }
    }
    let alice = Uid::take().unwrap();
    let rule = allow_with(alice.number(), "1-7", "limits = { busy-poll-budget = 64 }");
    let _broker = BrokerProcess::start(&world, &(interface("eth0", "") + &rule)).unwrap();
    let peer = PacketSocket::open(&world, Side::PEER).unwrap();
    peer.steer(QUEUE).unwrap();
    let holder = Holder::body(&world, Side::Host, &alice.user(), "asks_for", &[what]).unwrap();
    let first = holder.process().wait_stdout(PATIENCE, |line| {
        (line.starts_with("active") || line.starts_with("lacks")).then(|| line.to_owned())
    });
    let first = first.unwrap_or_else(|error| panic!("{error}: {}", holder.process().last_words()));
    if first.starts_with("lacks") {
        return Some(first);
    }
    test(&world, &holder, &peer);
    None
}

/// Datagrams of these lengths, one after another, and what comes back.
pub(crate) fn exchange(
    world: &World,
    holder: &Holder,
    peer: &PacketSocket,
    lengths: impl IntoIterator<Item = usize>,
    mut back: impl FnMut(&[u8], &[u8]) -> bool,
) {
    let (from, to) = (
        world.device(Side::PEER).end(9),
        world.device(Side::Host).end(port(QUEUE)),
    );
    for (number, length) in (0..).zip(lengths) {
        let frame = packets::udp(from, to, &payload(QUEUE, number, length));
        peer.send(&frame).unwrap();
        let came = peer.expect(PATIENCE, |bytes| back(bytes, &frame).then_some(()));
        assert_eq!(
            came.unwrap(),
            Some(()),
            "{length} bytes did not come back: {}",
            holder.process().last_words()
        );
    }
}

pub(crate) fn lengths() -> impl Iterator<Item = usize> {
    (0..400).map(|number| 64 + number * 37 % 1400)
}

#[test]
fn headroom_takes_another_header() {
    let lacks = with("headroom", None, |world, holder, peer| {
        exchange(
            world,
            holder,
            peer,
            lengths().map(|length| length.min(1400)),
            |came, sent| came.len() == sent.len() + 14 && came[..14] == sent[..14] && came[14..] == *sent,
        );
    });
    assert_eq!(lacks, None);
}

#[test]
fn unaligned_chunks_go_round() {
    let lacks = with("unaligned", Some(2600), |world, holder, peer| {
        let lengths = (0..400).map(|number| 64 + number * 37 % 2500);
        exchange(world, holder, peer, lengths, |came, sent| came == sent);
    });
    assert_eq!(lacks, None);
}

#[test]
fn jumbo_frames_come_and_go_in_several_buffers() {
    let lacks = with("multi-buffer", Some(9000), |world, holder, peer| {
        let lengths = (0..400).map(|number| 64 + number * 211 % 8900);
        exchange(world, holder, peer, lengths, |came, sent| came == sent);
    });
    if let Some(probe) = lacks {
        skip!(Skip::KernelLacks { probe });
    }
}

#[test]
fn a_umem_of_huge_pages_is_as_good() {
    let pool = match HugePages::add(2) {
        Ok(pool) => pool,
        Err(why) => skip!(Skip::PlaceLacks(why)),
    };
    let lacks = with("huge pages", None, |world, holder, peer| {
        assert_eq!(pool.free(), 1, "2 MiB are one of the two");
        exchange(world, holder, peer, lengths(), |came, sent| came == sent);
    });
    assert_eq!(lacks, None);
}

#[test]
fn checksums_and_time_stamps_are_made_on_request() {
    let lacks = with("metadata", None, |world, holder, peer| {
        exchange(world, holder, peer, lengths(), |came, sent| {
            matches!(
                packets::parse(came),
                Some(Parsed::Udp {
                    checksums: Checksums::Right,
                    ..
                })
            ) && came == sent
        });
        for tag in 100..110 {
            let line = holder.wait_line(&format!("stamp {tag} "), PATIENCE).unwrap();
            let nanoseconds: u64 = line.rsplit(' ').next().unwrap().parse().unwrap();
            assert!(nanoseconds > 1_000_000_000, "{line}");
        }
    });
    if let Some(probe) = lacks {
        skip!(Skip::KernelLacks { probe });
    }
}

#[test]
fn rings_of_two_entries_lose_nothing() {
    assert_eq!(
        with("small rings", None, |_, holder, peer| expect_numbered(
            holder, peer
        )),
        None
    );
}

#[test]
fn the_raw_layer_works_over_memory_of_ones_own_on_several_threads() {
    let lacks = with("raw", None, |world, holder, peer| {
        exchange(world, holder, peer, lengths(), |came, sent| came == sent);
    });
    assert_eq!(lacks, None);
}

fn expect_numbered(holder: &Holder, peer: &PacketSocket) {
    let mut seen = std::collections::HashSet::new();
    while seen.len() < 1000 {
        let number = peer.expect(PATIENCE, |frame| {
            (frame.get(12..14)? == [0x88, 0xb5]).then(|| frame.get(14..18).unwrap().to_vec())
        });
        let number = number.unwrap();
        let number =
            number.unwrap_or_else(|| panic!("{} came: {}", seen.len(), holder.process().last_words()));
        assert!(seen.insert(number), "a frame came twice");
    }
}
