//! A soak of the frames layer: `cargo xtask bench soak` builds and starts it.
//!
//! Holders come and go, each an unprivileged process with rings from 64 entries up and a umem that may be nearly exhausted
//! all the time; they pause, hold frames back, send them in another order, end by themselves or are killed. The other end
//! of the wire numbers every frame, waits for it, and compares both ends' counts: a frame that was lost without the kernel
//! having counted it, a chunk that did not come back, a wake-up that was missed, a byte that changed: each ends the soak
//! as failed. The seed that is printed repeats its choices, not its timing.

mod holder;
mod numbered;
mod session;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use e2e::broker::BrokerProcess;
use e2e::figures::{Form, ended, tell};
use e2e::packet_socket::PacketSocket;
use e2e::world::{Side, World};
use serde_json::json;

use numbered::Random;
use session::Session;

/// What all sessions add up to.
#[derive(Debug, Default)]
struct Totals {
    sessions: u64,
    killed: u64,
    sent: u64,
    echoed: u64,
    /// For want of a chunk or of a ring entry, and counted by the kernel.
    dropped_by_the_kernel: u64,
    /// On their way when the holder was killed, or dropped before.
    written_off: u64,
    slowest: Duration,
}

struct Arguments {
    minutes: f64,
    seed: u64,
    json: bool,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match words.split_first() {
        Some((first, rest)) if first == "holder" => holder::run(rest),
        _ => Arguments::read(words).and_then(|arguments| soak(&arguments)),
    };
    ended(outcome)
}

impl Arguments {
    fn read(words: Vec<String>) -> Result<Self> {
        let mut arguments = Self {
            minutes: 10.0,
            seed: u64::from(std::process::id()),
            json: false,
        };
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("{word} wants a number"));
            match word.as_str() {
                "--json" => arguments.json = true,
                "--minutes" => arguments.minutes = value()?.parse().context("--minutes wants a number")?,
                "--seed" => arguments.seed = value()?.parse().context("--seed wants a number")?,
                other => bail!("{other}? Run `cargo xtask bench soak`"),
            }
        }
        Ok(arguments)
    }
}

fn soak(arguments: &Arguments) -> Result<()> {
    let world = World::builder().queues(1).build()?;
    let policy = "[interface.eth0]\nqueue-lock = \"none\"\n\
                  [[allow]]\nname = \"soak\"\nuser = \"*\"\ninterface = \"eth0\"\nqueues = \"0\"\n\
                  sockets = [\"prepared\"]\n";
    let mut broker = BrokerProcess::start(&world, policy)?;
    let wire = PacketSocket::open(&world, Side::PEER)?;
    eprintln!("seed {}", arguments.seed);
    let mut random = Random(arguments.seed);
    let mut totals = Totals::default();
    let begun = Instant::now();
    let mut number = 0;
    let mut told = Instant::now();
    while begun.elapsed().as_secs_f64() < arguments.minutes * 60.0 {
        let session = Session::start(&world, &wire, &mut random, number)?;
        number = session
            .run(&mut random, &mut totals)
            .with_context(|| format!("after {} sessions, seed {}", totals.sessions, arguments.seed))?;
        if told.elapsed() > Duration::from_secs(30) {
            told = Instant::now();
            eprintln!(
                "{:.1} of {} minutes: {} sessions, {} frames",
                begun.elapsed().as_secs_f64() / 60.0,
                arguments.minutes,
                totals.sessions,
                totals.sent
            );
        }
    }
    broker.stop()?;
    let accounted = totals.echoed + totals.dropped_by_the_kernel + totals.written_off;
    ensure!(
        totals.sent == accounted,
        "{} frames were sent and {accounted} accounted for: {totals:?}",
        totals.sent
    );
    report(&totals, begun.elapsed(), arguments)
}

fn report(totals: &Totals, elapsed: Duration, arguments: &Arguments) -> Result<()> {
    let Totals {
        sessions,
        killed,
        sent,
        echoed,
        dropped_by_the_kernel,
        written_off,
        slowest,
    } = totals;
    let json = json!({
        "seconds": elapsed.as_secs_f64(),
        "seed": arguments.seed,
        "sessions": sessions,
        "killed": killed,
        "sent": sent,
        "echoed": echoed,
        "droppedByTheKernel": dropped_by_the_kernel,
        "writtenOff": written_off,
        "slowestMs": slowest.as_secs_f64() * 1e3,
        "violations": 0,
    });
    let table = format!(
        "{:.1} minutes, seed {}: no frame lost to the library, no wake-up missed\n\
         {sessions:>12} holders, of which {killed} were killed in the middle of it\n\
         {sent:>12} frames sent\n\
         {echoed:>12} came back, once and unchanged; the slowest after {:.1} ms\n\
         {dropped_by_the_kernel:>12} dropped by the kernel for want of room, on purpose, and counted by it\n\
         {written_off:>12} on their way to a holder that was killed, or dropped before that",
        elapsed.as_secs_f64() / 60.0,
        arguments.seed,
        slowest.as_secs_f64() * 1e3
    );
    tell("soak", Form::of(arguments.json), &table, &json)
}
