//! What a grant costs, beside the same socket made directly as root with libxdp: `cargo xtask bench grants` builds and
//! starts it.
//!
//! One world, one veth, one run: the contenders take turns, each on queues of its own. A queue is busy for up to 50 ms
//! after its socket was closed (`xdp_put_umem` and `xsk_destruct` end in a work queue), so each contender goes round
//! over many queues, and after every turn there is a pause in which the kernel and the broker clean up. Neither is
//! measured.

mod figures;
mod footprint;
mod libxdp;
mod ours;

use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use e2e::broker::BrokerProcess;
use e2e::figures::{Form, ended, tell};
use e2e::uids::Uid;
use e2e::world::{Side, World};
use xsk_client::wire::{QueueLock, RingSizes, SocketKind};

use figures::{Figures, Rounds};
use footprint::Footprint;
use libxdp::Libxdp;
use ours::Ours;

/// The queues of each contender: ours are the first half of the device's.
const QUEUES: u32 = 32;
/// As the broker makes rings where it is told no size.
const RINGS: RingSizes = RingSizes::all(2048);
/// 4 MiB in all: of the default RLIMIT_MEMLOCK, 8 MiB, a umem that the kernel has not let go of leaves room for one.
const CHUNKS: u32 = 2048;
const CHUNK_BYTES: u32 = 2048;
/// Rounds before the first that counts. The very first grant loads and attaches the XDP program.
const WARM_UP: u32 = 10;
/// Between turns.
const PAUSE: Duration = Duration::from_millis(30);
/// After a turn under placeholders: until the kernel has let go of all of them, which takes the longer the more queues a
/// device has, so that this is in nobody's time. What it takes is a figure of its own.
const PLACEHOLDERS_GO: Duration = Duration::from_millis(300);

/// A device of its own for each queue lock.
const LOCKS: [(&str, QueueLock); 3] = [
    ("eth0", QueueLock::None),
    ("eth1", QueueLock::Placeholders),
    ("eth2", QueueLock::Lsm),
];
/// What leaves the broker unbound, and so needs a lock.
const UNBOUND: [SocketKind; 2] = [SocketKind::Prepared, SocketKind::Bare];

struct Arguments {
    rounds: u32,
    json: bool,
}

fn main() -> ExitCode {
    ended(Arguments::read(std::env::args().skip(1)).and_then(|arguments| bench(&arguments)))
}

impl Arguments {
    fn read(mut words: impl Iterator<Item = String>) -> Result<Self> {
        let mut arguments = Self {
            rounds: 200,
            json: false,
        };
        while let Some(word) = words.next() {
            match word.as_str() {
                "--json" => arguments.json = true,
                "--rounds" => {
                    let rounds = words.next().context("--rounds wants a number")?;
                    arguments.rounds = rounds.parse().context("--rounds wants a number")?;
                }
                other => bail!("{other}? Run `cargo xtask bench grants`"),
            }
        }
        anyhow::ensure!(arguments.rounds > 0, "--rounds wants a number above 0");
        Ok(arguments)
    }
}

fn bench(arguments: &Arguments) -> Result<()> {
    let world = World::builder().queues(2 * QUEUES).peers(LOCKS.len()).build()?;
    let lsm = e2e::lsm::is_in_force();
    if let Err(skip) = &lsm {
        eprintln!("without the queue lock lsm: {skip:?}");
    }
    let locks: Vec<_> = LOCKS
        .into_iter()
        .filter(|(_, lock)| *lock != QueueLock::Lsm || lsm.is_ok())
        .collect();
    let uid = Uid::take()?;
    let sections: String = locks
        .iter()
        .map(|(device, lock)| format!("[interface.{device}]\nqueue-lock = \"{lock}\"\n"))
        .collect();
    let policy = sections
        + &format!(
            "[[allow]]\nname = \"bench\"\nuser = {}\ninterface = \"*\"\nqueues = \"0-{}\"\n\
             sockets = [\"prepared\", \"bound\", \"bare\"]\n[limits.per-user]\nabandoned-sockets = 1_000_000\n\
             [limits.in-all]\nabandoned-sockets = 1_000_000\n",
            uid.number(),
            QUEUES - 1
        );
    let mut broker = BrokerProcess::start(&world, &policy)?;
    let footprint = Footprint::of_idle(broker.process().pid())?;
    let libxdp = Libxdp::start(&world)?;
    let socket = broker.paths().socket();

    // A thread without a capability is what the kernel and the broker see; a process would measure nothing else.
    let rounds = world.run_as(Side::Host, &uid.user(), move || {
        measure(Ours::connect(&socket)?, libxdp, &locks, arguments.rounds)
    })??;
    broker.stop()?;

    let figures = Figures::new(&rounds, footprint);
    tell(
        "grants",
        Form::of(arguments.json),
        &figures.to_string(),
        &serde_json::to_value(&figures)?,
    )
}

fn measure(
    mut ours: Ours,
    mut libxdp: Libxdp,
    locks: &[(&'static str, QueueLock)],
    count: u32,
) -> Result<Rounds> {
    let mut rounds = Rounds::default();
    for round in 0..WARM_UP + count {
        let queue = round % QUEUES;
        let empty = ours.empty_calls()?;
        thread::sleep(PAUSE);
        let steps = ours.by_steps("eth0", SocketKind::Prepared, queue)?;
        thread::sleep(PAUSE);
        let theirs = libxdp.turn(QUEUES + queue)?;
        thread::sleep(PAUSE);
        let library = ours.by_library((queue + QUEUES / 2) % QUEUES)?;
        thread::sleep(PAUSE);
        let bound = ours.by_broker((queue + QUEUES / 4) % QUEUES)?;
        thread::sleep(PAUSE);
        let mut locked = Vec::new();
        for (device, lock) in locks {
            for kind in UNBOUND {
                // The first of all is measured beside libxdp.
                if (*lock, kind) == (QueueLock::None, SocketKind::Prepared) {
                    continue;
                }
                // Elsewhere on eth0: this is the fourth user of its queues.
                let queue = (queue + QUEUES * 3 / 4) % QUEUES;
                locked.push(((kind, *lock), ours.by_steps(device, kind, queue)?));
                thread::sleep(if *lock == QueueLock::Placeholders {
                    PLACEHOLDERS_GO
                } else {
                    PAUSE
                });
            }
        }
        let behind = ours.right_behind("eth1", queue)?;
        thread::sleep(PLACEHOLDERS_GO);

        if round >= WARM_UP {
            rounds.empty.push(empty);
            rounds.ours.push(steps);
            rounds.libxdp.push(theirs);
            rounds.library.push(library);
            rounds.bound.push(bound);
            for (what, steps) in locked {
                rounds.locked.entry(what).or_default().push(steps);
            }
            rounds.behind.push(behind);
        }
        if round % 100 == 99 {
            eprintln!("round {} of {}", round + 1, WARM_UP + count);
        }
    }
    Ok(rounds)
}
