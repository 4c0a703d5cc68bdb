//! One umem over several queues: what arrives on one of them leaves by the other without a copy, for as long as one
//! likes, and no chunk is lost on the way.

use std::collections::HashSet;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use e2e::broker::BrokerProcess;
use e2e::holder::Holder;
use e2e::packet_socket::PacketSocket;
use e2e::packets;
use e2e::uids::Uid;
use e2e::world::{Side, World};
use xsk_client::{BindOptions, Broker, Frame, Grant, Request, Umem, UmemOptions, Xsk};

use crate::lease_scene::{PATIENCE, payload, policy, port, read_frame};

/// Few chunks, so that they have to go round many times: 128 for each socket, of which it keeps 32 for sending.
const CHUNKS: u32 = 256;
const FRAMES: u64 = 20_000;
/// So many of a queue's are on the wire, and up to as many have come back whose chunks have not come home yet.
const WINDOW: u64 = 32;

/// A body: a bridge from queue 2 to queue 3 and back, on one thread or on two.
pub(crate) fn bridge(arguments: &[String]) {
    let mut broker = Broker::connect().unwrap();
    let grant = Grant::acquire(&mut broker, Request::new("eth0:2-3".parse().unwrap())).unwrap();
    let umem = Umem::new(&UmemOptions::new().chunks(CHUNKS)).unwrap();
    let bound = grant.bind_shared(umem, &BindOptions::new()).unwrap();
    let [two, three] = <[Xsk; 2]>::try_from(bound.activate(&mut broker).unwrap()).unwrap();
    println!("active");
    match arguments[0].as_str() {
        "one thread" => on_one_thread(two, three),
        _ => on_two_threads(two, three),
    }
}

fn on_one_thread(mut two: Xsk, mut three: Xsk) {
    let forward = |from: &mut Xsk, to: &mut Xsk| {
        let mut sending = to.transmit(64).unwrap();
        let mut received = from.receive(64).unwrap();
        let mut count = 0;
        while let Some(frame) = received.next_frame() {
            frame.forward(&mut sending).unwrap();
            count += 1;
        }
        count
    };
    loop {
        if forward(&mut two, &mut three) + forward(&mut three, &mut two) == 0 {
            two.wait(Some(Duration::from_millis(1))).unwrap();
        }
    }
}

/// Each thread has a socket; frames go by channel.
fn on_two_threads(two: Xsk, three: Xsk) {
    let (to_three, from_two) = mpsc::channel();
    let (to_two, from_three) = mpsc::channel();
    let run = |mut xsk: Xsk, others: mpsc::Sender<Frame>, ours: mpsc::Receiver<Frame>| {
        move || {
            loop {
                let mut received = xsk.receive(64).unwrap();
                while let Some(frame) = received.next_frame() {
                    others.send(frame.into_owned()).unwrap();
                }
                drop(received);
                for mut frame in ours.try_iter() {
                    while let Err(unsent) = xsk.send(frame) {
                        frame = unsent.frame;
                    }
                }
                xsk.wait(Some(Duration::from_millis(1))).unwrap();
            }
        }
    };
    // Either ends by a panic only, and that of a thread is seen by the other's channel.
    thread::spawn(run(three, to_two, from_two));
    run(two, to_three, from_three)();
}

#[test]
fn frames_are_forwarded_between_queues_without_a_copy() {
    forwards_all("one thread");
}

#[test]
fn frames_are_forwarded_between_threads() {
    forwards_all("two threads");
}

/// Numbered frames into both queues, and each comes back whole, once.
fn forwards_all(threads: &str) {
    let world = World::new().unwrap();
    let alice = Uid::take().unwrap();
    let _broker = BrokerProcess::start(&world, &policy(&[(alice.number(), "1-7")])).unwrap();
    let mut holder = Holder::body(&world, Side::Host, &alice.user(), "bridge", &[threads]).unwrap();
    holder.wait_active().unwrap();
    let (from, to) = (world.device(Side::PEER), world.device(Side::Host));
    let senders = [2, 3].map(|queue| {
        let sender = PacketSocket::open(&world, Side::PEER).unwrap();
        sender.steer(queue).unwrap();
        (queue, sender)
    });
    let mut back = [0_u64; 2];
    // In any order: a sender that moves to another CPU overtakes itself on the way to a device without XDP.
    let mut seen = HashSet::new();
    for number in 0..FRAMES {
        for (queue, sender) in &senders {
            let frame = packets::udp(
                from.end(1),
                to.end(port(*queue)),
                &payload(*queue, number, 64 + (number % 800) as usize),
            );
            sender.send(&frame).unwrap();
        }
        while number + 1 - back[0].min(back[1]) >= WINDOW || (number + 1 == FRAMES && back != [FRAMES; 2]) {
            let came = senders[0].1.expect(PATIENCE, read_frame).unwrap();
            let Some((queue, number)) = came else {
                panic!(
                    "{back:?} of {number} came back: {}",
                    holder.process().last_words()
                )
            };
            assert!(
                seen.insert((queue, number)),
                "frame {number} of queue {queue} came twice"
            );
            back[usize::from(queue == 3)] += 1;
        }
    }
    assert!(holder.wait(Duration::ZERO).is_err());
}
