//! What every contender of `cargo xtask bench datapath` has around its loops: the same for all of them, in Rust here, and
//! in C in `tests/peers/libxdp`.
//!
//! ```text
//! PROGRAM [CONTENDER] MODE INTERFACE INTERFACE_INDEX QUEUE FD
//! ```
//!
//! FD is an unbound socket that was handed over, or -1: then the program makes its own. It prints `bound FD` when it is
//! bound. Each line on its standard input is an order, `PACKETS MILLISECONDS`: it runs until so many packets are done
//! (0: no matter how many) or so much time has passed (0: no matter how much), and prints
//! `done PACKETS NANOSECONDS EMPTY MEDIAN P99`: EMPTY turns found nothing to do; the last two are nanoseconds of a
//! round trip, and 0 in every mode but `pingpong`.
//!
//! Callgrind counts what runs inside of [`measured`], and nothing else.

use std::io::BufRead;
use std::os::fd::RawFd;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Frames that a turn looks at or makes, at most.
pub(crate) const BATCH: u32 = 64;
/// Of a frame, without the checksum that the wire would have.
pub(crate) const FRAME_BYTES: u32 = 64;
/// Entries of each of the four rings.
pub(crate) const RING_ENTRIES: u32 = 2048;
/// Chunks of the umem: 4 MiB in all.
pub(crate) const CHUNKS: u32 = 2048;
/// The size of a chunk.
pub(crate) const CHUNK_BYTES: u32 = 2048;

/// How often a frame is waited for before it counts as lost.
const LOST_AFTER: Duration = Duration::from_millis(200);

/// A program under test, bound.
pub(crate) trait Contender {
    /// The socket, to be put into the map.
    fn fd(&self) -> RawFd;
    /// One turn each: up to [`BATCH`] frames, and how many it were.
    fn rxdrop(&mut self) -> u32;
    fn txonly(&mut self) -> u32;
    fn l2fwd(&mut self) -> u32;
    /// Sends one frame.
    fn ping(&mut self);
    /// Whether one has come back, which it takes.
    fn pong(&mut self) -> bool;
}

/// What to bind, as told on the command line.
pub(crate) struct Place {
    pub(crate) mode: String,
    #[allow(dead_code, reason = "some find the device by its name, others by its index")]
    pub(crate) interface: String,
    #[allow(dead_code, reason = "as above")]
    pub(crate) interface_index: u32,
    pub(crate) queue: u32,
    #[allow(dead_code, reason = "not everybody takes one")]
    pub(crate) fd: Option<RawFd>,
}

impl Place {
    /// Reads MODE and what follows.
    pub(crate) fn read(words: &[String]) -> Option<Self> {
        let [mode, interface, interface_index, queue, fd] = words else {
            return None;
        };
        Some(Self {
            mode: mode.clone(),
            interface: interface.clone(),
            interface_index: interface_index.parse().ok()?,
            queue: queue.parse().ok()?,
            fd: Some(fd.parse().ok()?).filter(|fd| *fd >= 0),
        })
    }
}

/// The frame that everybody sends: two addresses, a type for local experiments, zeroes.
pub(crate) fn frame() -> [u8; FRAME_BYTES as usize] {
    let mut frame = [0; FRAME_BYTES as usize];
    frame[..14].copy_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x88, 0xb5]);
    frame
}

/// Takes orders until there are no more.
pub(crate) fn serve<C: Contender>(mode: &str, contender: &mut C) -> ExitCode {
    println!("bound {}", contender.fd());
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let mut numbers = line.split(' ').map(str::parse::<u64>);
        let (Some(Ok(packets)), Some(Ok(milliseconds))) = (numbers.next(), numbers.next()) else {
            eprintln!("no order: {line}");
            return ExitCode::FAILURE;
        };
        let order = Order {
            packets: if packets == 0 { u64::MAX } else { packets },
            time: Duration::from_millis(milliseconds),
        };
        match mode {
            "rxdrop" => order.run(contender, C::rxdrop),
            "txonly" => order.run(contender, C::txonly),
            "l2fwd" => order.run(contender, C::l2fwd),
            "pingpong" => order.run_pings(contender),
            _ => {
                eprintln!("no mode: {mode}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

struct Order {
    packets: u64,
    time: Duration,
}

impl Order {
    fn run<C>(&self, contender: &mut C, turn: fn(&mut C) -> u32) {
        let (packets, empty, elapsed) = self.timed(|stop| measured(contender, turn, self.packets, stop));
        println!("done {packets} {} {empty} 0 0", elapsed.as_nanos());
    }

    fn run_pings<C: Contender>(&self, contender: &mut C) {
        let mut times = Vec::new();
        let (packets, empty, elapsed) =
            self.timed(|stop| measured_pings(contender, &mut times, self.packets, stop));
        times.sort_unstable();
        let at = |percent: usize| times.get(times.len() * percent / 100).copied().unwrap_or(0);
        println!(
            "done {packets} {} {empty} {} {}",
            elapsed.as_nanos(),
            at(50),
            at(99)
        );
    }

    fn timed(&self, run: impl FnOnce(&AtomicBool) -> (u64, u64)) -> (u64, u64, Duration) {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            if !self.time.is_zero() {
                scope.spawn(|| {
                    std::thread::sleep(self.time);
                    stop.store(true, Ordering::Relaxed);
                });
            }
            let begun = Instant::now();
            let (packets, empty) = run(&stop);
            (packets, empty, begun.elapsed())
        })
    }
}

/// The loop. How many packets were done, and how many turns found none.
#[inline(never)]
fn measured<C>(
    contender: &mut C,
    turn: impl Fn(&mut C) -> u32,
    packets: u64,
    stop: &AtomicBool,
) -> (u64, u64) {
    let (mut done, mut empty) = (0, 0);
    while done < packets && !stop.load(Ordering::Relaxed) {
        let count = turn(contender);
        done += u64::from(count);
        empty += u64::from(count == 0);
    }
    (done, empty)
}

/// One frame at a time, round and round. Every contender has its two halves inlined here, and with them its system call
/// if it is no function of libc's: a return right after that takes 0.45 microseconds of 2.25 where the kernel's own are
/// guarded ("Safe RET").
#[inline(never)]
fn measured_pings<C: Contender>(
    contender: &mut C,
    times: &mut Vec<u64>,
    packets: u64,
    stop: &AtomicBool,
) -> (u64, u64) {
    let (mut done, mut empty) = (0, 0);
    while done < packets && !stop.load(Ordering::Relaxed) {
        let sent = Instant::now();
        contender.ping();
        let arrived = loop {
            if contender.pong() {
                break true;
            }
            empty += 1;
            if empty % 1024 == 0 && sent.elapsed() > LOST_AFTER {
                break false;
            }
        };
        if arrived {
            times.push(u64::try_from(sent.elapsed().as_nanos()).unwrap_or(u64::MAX));
            done += 1;
        }
    }
    (done, empty)
}
