//! The holder: an unprivileged process that sends back every frame, with pauses and in odd orders.
//!
//! It sleeps without a time-out of its own: in `Xsk::wait`, or in poll() for as long as it takes, so that a wake-up that
//! is missed is a frame that never comes back.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, poll};
use xsk_client::wire::RingSizes;
use xsk_client::{BindOptions, Broker, Frame, Grant, Request, Umem, UmemOptions, Xsk};

use crate::numbered::{self, Ask, Counted, Random};

/// What it is told: `TARGET RINGS CHUNKS SEED SLEEP`.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    pub(crate) target: String,
    pub(crate) rings: u32,
    pub(crate) chunks: u32,
    pub(crate) seed: u64,
    pub(crate) sleep: Sleep,
}

/// How it waits for frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sleep {
    /// `Xsk::wait`
    Wait,
    /// poll(2) on the socket, without a time-out.
    Poll,
    /// Not at all.
    Spin,
}

impl Shape {
    pub(crate) fn words(&self) -> [String; 5] {
        let sleep = match self.sleep {
            Sleep::Wait => "wait",
            Sleep::Poll => "poll",
            Sleep::Spin => "spin",
        };
        [
            self.target.clone(),
            self.rings.to_string(),
            self.chunks.to_string(),
            self.seed.to_string(),
            sleep.to_owned(),
        ]
    }

    pub(crate) fn read(words: &[String]) -> Result<Self> {
        let [target, rings, chunks, seed, sleep] = words else {
            bail!("this is run by `cargo xtask bench soak`");
        };
        Ok(Self {
            target: target.clone(),
            rings: rings.parse()?,
            chunks: chunks.parse()?,
            seed: seed.parse()?,
            sleep: match sleep.as_str() {
                "wait" => Sleep::Wait,
                "poll" => Sleep::Poll,
                "spin" => Sleep::Spin,
                other => bail!("no way to sleep: {other}"),
            },
        })
    }
}

/// Frames that were taken from the socket and are not sent yet.
#[derive(Debug, Default)]
struct Held(VecDeque<Frame>);

/// The holder before may have ended just now, and a busy kernel takes its time to let go of its socket.
fn acquire(broker: &mut Broker, request: &Request) -> Result<Grant> {
    const PATIENCE: Duration = Duration::from_secs(15);

    let begun = Instant::now();
    loop {
        match Grant::acquire(broker, request.clone()) {
            Ok(grant) => return Ok(grant),
            Err(error) => match error.retry_after() {
                Some(pause) if begun.elapsed() < PATIENCE => sleep(pause),
                _ => return Err(error.into()),
            },
        }
    }
}

pub(crate) fn run(words: &[String]) -> Result<()> {
    let shape = Shape::read(words)?;
    let mut broker = Broker::connect()?;
    let request = Request::new(shape.target.parse()?).rings(RingSizes::all(shape.rings));
    let grant = acquire(&mut broker, &request)?;
    let umem = Umem::new(&UmemOptions::new().chunks(shape.chunks))?;
    let options = BindOptions::new().busy_timeout(Duration::from_secs(10));
    let mut xsk = grant.bind_one(umem, &options)?.activate(&mut broker)?;
    println!("active");

    let mut random = Random(shape.seed);
    let mut held = Held::default();
    let mut received = 0;
    loop {
        let told = turn(&mut xsk, &mut held, &mut received, &mut random, shape.chunks)?;
        match told {
            Some(Ask::Pause(milliseconds)) => {
                held.send_all(&mut xsk)?;
                // So that all chunks but those are in the fill ring that are kept for sending: what it can take while it
                // pauses is then the same each time. On a busy machine the kernel sends some time after the call.
                while xsk.in_flight() > 0 {
                    xsk.wait(Some(Duration::from_millis(1)))?;
                }
                sleep(Duration::from_millis(u64::from(milliseconds)));
            }
            Some(Ask::End) => {
                held.send_all(&mut xsk)?;
                return Ok(());
            }
            Some(Ask::Echo | Ask::Count) => {
                if random.one_in(200) {
                    sleep(Duration::from_micros(u64::from(random.below(3000))));
                }
            }
            None => {
                // Nobody else would send them.
                held.send_all(&mut xsk)?;
                match shape.sleep {
                    Sleep::Wait => drop(xsk.wait(None)?),
                    Sleep::Poll => {
                        poll(&mut [PollFd::new(&xsk.as_fd(), PollFlags::IN)], None).context("poll")?;
                    }
                    Sleep::Spin => {}
                }
            }
        }
    }
}

/// One batch of any size. What the last frame asked for; `None` where there was none.
fn turn(
    xsk: &mut Xsk,
    held: &mut Held,
    received: &mut u64,
    random: &mut Random,
    chunks: u32,
) -> Result<Option<Ask>> {
    let statistics = xsk.statistics()?;
    let refused = xsk.refused_descriptors() + statistics.rx_invalid_descs + statistics.tx_invalid_descs;
    let most_held = usize::try_from(chunks / 8)?;
    let mut last = None;
    let mut batch = xsk.receive(1 + random.below(64))?;
    while let Some(mut frame) = batch.next_frame() {
        let Some(read) = numbered::read(&frame) else {
            continue;
        };
        *received += 1;
        let (_, ask) = read.map_err(|damage| anyhow::anyhow!("received a frame {damage}"))?;
        if ask == Ask::Count {
            let counted = Counted {
                received: *received,
                dropped: statistics.rx_dropped,
                ring_full: statistics.rx_ring_full,
                refused,
            };
            numbered::write_counted(&mut frame, counted);
        }
        last = Some(ask);
        if held.0.len() < most_held && random.one_in(4) {
            held.0.push_back(frame.into_owned());
        } else if let Err(unsent) = frame.send() {
            held.0.push_back(unsent.frame.into_owned());
        }
        if matches!(ask, Ask::Pause(_) | Ask::End) {
            break;
        }
    }
    drop(batch);
    if random.one_in(8) {
        held.send_all(xsk)?;
    }
    Ok(last)
}

impl Held {
    /// Sends all of them, from either end.
    fn send_all(&mut self, xsk: &mut Xsk) -> Result<()> {
        while let Some(frame) = self.0.pop_back() {
            let mut batch = xsk.transmit(64)?;
            let mut next = Some(frame);
            while let Some(frame) = next {
                if let Err(unsent) = batch.send_owned(frame) {
                    self.0.push_back(unsent.frame);
                    break;
                }
                next = self.0.pop_front();
            }
        }
        Ok(())
    }
}
