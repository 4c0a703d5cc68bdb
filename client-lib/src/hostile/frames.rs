//! The frames layer: every slice that is lent lies in the umem, none overlaps an owned frame, or one that another socket
//! of the umem lends meanwhile, and nobody but its owner changes one.

use std::ops::Range;

use super::Script;
use super::rings::OtherSide;
use crate::bind::BindOptions;
use crate::frame::Frame;
use crate::pool::Pool;
use crate::receive::Received;
use crate::stamps::TxRequest;
use crate::transmit::Transmit;
use crate::umem::{Umem, UmemOptions};
use crate::wire::BindMode;
use crate::xsk::Xsk;

/// What is written to frames that are lent.
const LENT: u8 = 0xee;

struct Owned {
    frame: Frame,
    tag: u8,
}

struct Stage {
    xsk: Xsk,
    other: OtherSide,
    /// Another socket of the same umem.
    neighbour: Option<(Xsk, OtherSide)>,
    memory: Range<usize>,
    owned: Vec<Owned>,
    tags: u8,
}

pub(super) fn play(script: &mut Script<'_>) {
    let mut stage = Stage::new(script);
    while !script.is_over() {
        let step = script.byte();
        if step >= 128 {
            stage.change_places();
        }
        match step % 10 {
            0..=4 => stage.other.act(script),
            5 => stage.receive(script),
            6 => stage.transmit(script),
            7 => stage.receive_packets(script),
            8 => stage.transmit_packets(script),
            _ => stage.with_owned(script),
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

        let umem = Umem::new(&options).expect("a umem");
        let (chunk_bytes, start) = (umem.chunk_bytes(), umem.memory().start().addr().get());
        let memory = start..start + umem.memory().len();
        let sockets = if shape & 32 == 0 { 1 } else { 2 };
        let shares = Pool::divide(umem, sockets).expect("shares");
        let mut sockets = shares.into_iter().map(|share| {
            let (opened, rings, other) = OtherSide::new(chunk_bytes, chunks, 0);
            let xsk = Xsk::over(opened, rings, share, mode, &binding).expect("a socket");
            (xsk, other)
        });
        let (xsk, other) = sockets.next().expect("a socket");
        Self {
            xsk,
            other,
            neighbour: sockets.next(),
            memory,
            owned: Vec::new(),
            tags: 0,
        }
    }

    /// The other socket's turn.
    fn change_places(&mut self) {
        if let Some((xsk, other)) = &mut self.neighbour {
            std::mem::swap(xsk, &mut self.xsk);
            std::mem::swap(other, &mut self.other);
        }
    }

    fn receive(&mut self, script: &mut Script<'_>) {
        let Ok(mut batch) = self.xsk.receive(script.below(12)) else {
            return;
        };
        let mut beside = Beside::open(&mut self.neighbour, script);
        let mut forgotten = false;
        while let Some(mut frame) = batch.next_frame() {
            // While it is lent, too.
            self.other.act(script);
            check(&self.memory, &self.owned, &frame);
            beside.lend(|lent| {
                check(&self.memory, &self.owned, lent);
                apart(lent, &frame);
                lent.fill(LENT);
            });
            let choice = script.byte();
            if let (Beside::Transmit(to), 0..64) = (&mut beside, choice) {
                frame.forward(to).unwrap_or_else(drop);
                continue;
            }
            match choice % 8 {
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
            self.other.act(script);
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
            self.other.act(script);
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

/// A batch of the neighbour's, while one of ours is out.
enum Beside<'x> {
    Nothing,
    Receive(Received<'x>),
    Transmit(Transmit<'x>),
}

impl<'x> Beside<'x> {
    fn open(neighbour: &'x mut Option<(Xsk, OtherSide)>, script: &mut Script<'_>) -> Self {
        let Some((xsk, other)) = neighbour else {
            return Self::Nothing;
        };
        other.act(script);
        let batch = match script.byte() % 4 {
            0 => Ok(Self::Nothing),
            1 => xsk.receive(script.below(12)).map(Self::Receive),
            _ => xsk.transmit(script.below(12)).map(Self::Transmit),
        };
        batch.unwrap_or(Self::Nothing)
    }

    /// Looks at its next frame, if it has one, and gives it back.
    fn lend(&mut self, look: impl FnOnce(&mut [u8])) {
        match self {
            Self::Nothing => {}
            Self::Receive(batch) => {
                if let Some(mut frame) = batch.next_frame() {
                    look(&mut frame);
                }
            }
            Self::Transmit(batch) => {
                if let Some(mut frame) = batch.next_frame() {
                    look(&mut frame);
                }
            }
        }
    }
}

/// What is lent is in the umem, and nobody else's.
fn check(memory: &Range<usize>, owned: &[Owned], lent: &[u8]) {
    let range = range_of(lent);
    assert!(
        memory.start <= range.start && range.end <= memory.end,
        "beyond the umem"
    );
    for Owned { frame, .. } in owned {
        apart(lent, frame);
    }
}

/// Two that somebody has at once.
fn apart(one: &[u8], other: &[u8]) {
    let (one, other) = (range_of(one), range_of(other));
    assert!(
        one.is_empty() || other.is_empty() || one.end <= other.start || other.end <= one.start,
        "lent twice"
    );
}

fn range_of(bytes: &[u8]) -> Range<usize> {
    bytes.as_ptr().addr()..bytes.as_ptr().addr() + bytes.len()
}

/// Marks a frame as its owner's.
fn keep(owned: &mut Vec<Owned>, tags: &mut u8, mut frame: Frame) {
    *tags = (*tags + 1) % LENT;
    frame.fill(*tags);
    owned.push(Owned { frame, tag: *tags });
}
