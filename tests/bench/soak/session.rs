//! One holder's life, seen from the other end of the wire, where every frame is numbered and waited for.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use e2e::binaries;
use e2e::holder::Holder;
use e2e::packet_socket::PacketSocket;
use e2e::patience::stretched;
use e2e::uids::Uid;
use e2e::world::{Side, World};

use crate::Totals;
use crate::holder::{Shape, Sleep};
use crate::numbered::{self, Ask, Counted, LEAST_BYTES, Random};

/// A frame that is not back after this time, while the holder lives, was lost or waits for a wake-up that was missed.
const LOST_AFTER: Duration = Duration::from_secs(10);
/// In a session that overloads the holder on purpose, what is not back by then was dropped: the counters must agree.
const DROPPED_AFTER: Duration = Duration::from_millis(500);
/// How long the holder sleeps while it is found out how much it can take.
const PROBE_PAUSE_MS: u32 = 400;

pub(crate) struct Session<'w> {
    wire: &'w PacketSocket,
    holder: Holder,
    shape: Shape,
    /// Numbers that are on their way, and since when.
    on_their_way: BTreeMap<u64, Instant>,
    /// Numbers that were given up on, in a session in which frames may be dropped.
    given_up: BTreeMap<u64, ()>,
    next_number: u64,
    sent: u64,
    echoed: u64,
    /// By the kernel, for want of room, as of the last time that both ends agreed.
    dropped: u64,
    slowest: Duration,
    _uid: Uid,
}

impl<'w> Session<'w> {
    /// Starts a holder of a random shape.
    pub(crate) fn start(
        world: &World,
        wire: &'w PacketSocket,
        random: &mut Random,
        first_number: u64,
    ) -> Result<Self> {
        let rings = random
            .among(&[64, 64, 128, 256, 1024, 2048])
            .context("no ring size")?;
        // From a umem that is nearly always exhausted to one with a chunk for every ring entry.
        let chunks = random
            .among(&[16, 32, rings / 2, rings, 2 * rings])
            .context("no umem size")?
            .clamp(16, 2048);
        // Completions wake nobody (see `Xsk::wait`), so that who polls by itself needs chunks to spare.
        let sleeps: &[Sleep] = if chunks >= 2 * rings {
            &[Sleep::Wait, Sleep::Poll, Sleep::Spin]
        } else {
            &[Sleep::Wait, Sleep::Wait, Sleep::Spin]
        };
        let shape = Shape {
            target: "eth0:0".to_owned(),
            rings,
            chunks,
            seed: random.next(),
            sleep: random.among(sleeps).context("no way to sleep")?,
        };
        let uid = Uid::take()?;
        let program = binaries::this_program()?;
        let holder = Holder::program(world, Side::Host, &uid.user(), &program, |command| {
            command.arg("holder").args(shape.words());
        })?;
        holder.wait_active().with_context(|| format!("{shape:?}"))?;
        Ok(Self {
            wire,
            holder,
            shape,
            on_their_way: BTreeMap::new(),
            given_up: BTreeMap::new(),
            next_number: first_number,
            sent: 0,
            echoed: 0,
            dropped: 0,
            slowest: Duration::ZERO,
            _uid: uid,
        })
    }

    /// Traffic for a while, then one of the ends that holders have. Returns the next number to use.
    pub(crate) fn run(mut self, random: &mut Random, totals: &mut Totals) -> Result<u64> {
        let outcome = self.live(random, totals);
        totals.sent += self.sent;
        totals.echoed += self.echoed;
        totals.slowest = totals.slowest.max(self.slowest);
        totals.sessions += 1;
        outcome.with_context(|| {
            let counts = self.counts();
            format!(
                "{:?}, {} sent, {} echoed, {counts}; {}",
                self.shape,
                self.sent,
                self.echoed,
                self.holder.process().last_words()
            )
        })?;
        Ok(self.next_number)
    }

    fn live(&mut self, random: &mut Random, totals: &mut Totals) -> Result<()> {
        let room = self.room()?;
        ensure!(room > 0, "a fresh holder received nothing while it paused");
        let overload = random.one_in(4);
        let window = if overload {
            2 * room + 8
        } else {
            // An eighth of its chunks may be held, and as many be on their way out.
            (room / 2).max(1)
        };
        let end = Instant::now() + Duration::from_millis(u64::from(500 + random.below(4000)));
        while Instant::now() < end {
            while self.on_their_way.len() < window {
                let ask = if random.one_in(500) {
                    Ask::Pause(random.below(30))
                } else {
                    Ask::Echo
                };
                self.send(ask, LEAST_BYTES + random.below(1400) as usize)?;
            }
            self.receive(Duration::from_millis(20))?;
            self.look_for_lost(overload)?;
        }
        if random.one_in(3) {
            // In the middle of it: what is on its way goes with the holder.
            totals.killed += 1;
            totals.written_off += self.on_their_way.len() as u64 + self.given_up.len() as u64;
            self.holder.kill()?;
            return Ok(());
        }
        self.settle(overload)?;
        self.agree()?;
        // A chunk that is lost stays so, whatever else makes it fewer for once.
        let mut room_now = self.room()?;
        for _ in 0..3 {
            room_now = match room_now < room {
                true => self.room()?,
                false => room_now,
            };
        }
        ensure!(
            room_now >= room,
            "the holder could take {room} frames at first, and {room_now} now: chunks got lost"
        );
        totals.dropped_by_the_kernel += self.dropped;
        self.send(Ask::End, LEAST_BYTES)?;
        // Nobody sends that one back.
        self.sent -= 1;
        let status = self.holder.wait(Duration::from_secs(20))?;
        ensure!(status.success(), "the holder ended with {status}");
        Ok(())
    }

    /// How many frames it can take while it looks at none: they come back when it does again.
    fn room(&mut self) -> Result<usize> {
        let echoed = self.echoed;
        self.send(Ask::Pause(PROBE_PAUSE_MS), LEAST_BYTES)?;
        let begun = Instant::now();
        while self.echoed == echoed {
            self.receive(Duration::from_millis(20))?;
            self.look_for_lost(false)?;
        }
        // The kernel gives the last frame's chunk back some time after it was seen here.
        std::thread::sleep(Duration::from_millis(u64::from(PROBE_PAUSE_MS / 4)));
        let before = self.echoed;
        for _ in 0..self.shape.rings.max(self.shape.chunks) + 8 {
            self.send(Ask::Echo, LEAST_BYTES)?;
        }
        let in_time = begun.elapsed() < Duration::from_millis(u64::from(PROBE_PAUSE_MS));
        self.settle(true)?;
        // On a busy machine frames come back after they were given up on; the holder knows what it has received.
        self.agree()?;
        if !in_time {
            // The machine was too busy to send all of them in that time: once more.
            return self.room();
        }
        // Without the frame that asked for the counts.
        Ok(usize::try_from(self.echoed - before - 1)?)
    }

    /// Waits until nothing is on its way any more.
    fn settle(&mut self, may_drop: bool) -> Result<()> {
        while !self.on_their_way.is_empty() {
            self.receive(Duration::from_millis(20))?;
            self.look_for_lost(may_drop)?;
        }
        Ok(())
    }

    /// Both ends' counts: every frame that was sent was received, or dropped by the kernel for want of room, and counted;
    /// and all that were received are back.
    fn agree(&mut self) -> Result<()> {
        let expected = self.sent + 1;
        let number = self.send(Ask::Count, LEAST_BYTES)?;
        let begun = Instant::now();
        let counted = loop {
            if let Some(counted) = self
                .receive(Duration::from_millis(20))?
                .filter(|_| !self.on_their_way.contains_key(&number))
            {
                break counted;
            }
            ensure!(
                begun.elapsed() < stretched(LOST_AFTER),
                "the counts did not come back"
            );
        };
        let Counted {
            received,
            dropped,
            ring_full,
            refused,
        } = counted;
        ensure!(refused == 0, "{refused} descriptors were refused");
        ensure!(
            received + dropped + ring_full == expected,
            "sent {expected}; received {received}, dropped for want of chunks {dropped}, of ring entries {ring_full}"
        );
        // One that was given up on may still come.
        while self.echoed < received && begun.elapsed() < stretched(LOST_AFTER) {
            self.receive(Duration::from_millis(20))?;
        }
        ensure!(
            self.echoed == received,
            "the holder received {received} frames, {} came back",
            self.echoed
        );
        self.dropped = dropped + ring_full;
        Ok(())
    }

    /// For who looks for the cause of a failure: what the holder has counted, if it still answers.
    fn counts(&mut self) -> String {
        let counted = self.send(Ask::Count, LEAST_BYTES).and_then(|_| {
            let end = Instant::now() + Duration::from_secs(1);
            let mut counted = None;
            while counted.is_none() && Instant::now() < end {
                counted = self.receive(Duration::from_millis(20))?;
            }
            counted.context("no answer")
        });
        format!("the holder's counts: {counted:?}")
    }

    fn send(&mut self, ask: Ask, bytes: usize) -> Result<u64> {
        let number = self.next_number;
        self.next_number += 1;
        let frame = numbered::frame(number, ask, bytes);
        loop {
            match self.wire.send(&frame) {
                Ok(()) => break,
                // The veth's ring is full: its softirq has not run yet.
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NOBUFS.raw_os_error()) => {
                    std::thread::yield_now();
                }
                Err(error) => return Err(error).context("sending a frame"),
            }
        }
        self.sent += 1;
        self.on_their_way.insert(number, Instant::now());
        Ok(number)
    }

    /// Takes all frames that are there, and waits for the first one.
    fn receive(&mut self, patience: Duration) -> Result<Option<Counted>> {
        let mut timeout = patience;
        let mut counted = None;
        while let Some(frame) = self.wire.receive(timeout).or_else(|error| match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
            _ => Err(error),
        })? {
            timeout = Duration::ZERO;
            let Some(read) = numbered::read(&frame) else {
                continue;
            };
            let (number, ask) = read.map_err(|damage| anyhow::anyhow!("a frame came back {damage}"))?;
            match self.on_their_way.remove(&number) {
                Some(since) => self.slowest = self.slowest.max(since.elapsed()),
                None if self.given_up.remove(&number).is_some() => {}
                // Of the holder before, which was killed.
                None if number + self.sent < self.next_number => continue,
                None => bail!("frame {number} came back twice"),
            }
            self.echoed += 1;
            if ask == Ask::Count {
                counted = numbered::read_counted(&frame);
            }
        }
        Ok(counted)
    }

    fn look_for_lost(&mut self, may_drop: bool) -> Result<()> {
        let patience = stretched(if may_drop { DROPPED_AFTER } else { LOST_AFTER });
        while let Some((&number, since)) = self.on_their_way.first_key_value() {
            if since.elapsed() < patience {
                return Ok(());
            }
            ensure!(
                may_drop,
                "frame {number} is not back after {patience:?}: lost, or a wake-up was missed"
            );
            self.on_their_way.remove(&number);
            self.given_up.insert(number, ());
        }
        Ok(())
    }
}
