//! What a broker with thousands of leases costs, and what its users wait for: `cargo xtask bench leases` builds and starts
//! it.
//!
//! One world with 64 devices of 64 queues each, one broker. The number of leases goes up and down again, so that what
//! changes with the time shows as a difference of the two ways; the innocent user is measured with and without the others
//! in turns.

mod broker;
mod client;
mod figures;
mod innocent;
mod killed;
mod levels;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use e2e::broker::BrokerProcess;
use e2e::figures::{Form, ended, tell};
use e2e::uids::Uid;
use e2e::world::{Side, World};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use figures::Figures;

/// Devices, and queues of each.
const DEVICES: usize = 64;
const QUEUES: u32 = 64;
/// How many leases there are while grants and ends are measured.
const LEVELS: [usize; 4] = [10, 100, 1000, 4000];
/// Users whose grants wait for the kernel.
const OTHERS: usize = 4;

struct Arguments {
    cycles: u32,
    kills: u32,
    rounds: u32,
    json: bool,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match words.split_first() {
        Some((first, rest)) if first == "holder" => killed::hold(rest),
        _ => Arguments::read(words).and_then(|arguments| bench(&arguments)),
    };
    ended(outcome)
}

impl Arguments {
    fn read(words: Vec<String>) -> Result<Self> {
        let mut arguments = Self {
            cycles: 200,
            kills: 100,
            rounds: 10,
            json: false,
        };
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            let mut number = || -> Result<u32> {
                let value = words.next().with_context(|| format!("{word} wants a number"))?;
                value.parse().with_context(|| format!("{word} wants a number"))
            };
            match word.as_str() {
                "--json" => arguments.json = true,
                "--cycles" => arguments.cycles = number()?,
                "--kills" => arguments.kills = number()?,
                "--rounds" => arguments.rounds = number()?,
                other => bail!("{other}? Run `cargo xtask bench leases`"),
            }
        }
        Ok(arguments)
    }
}

fn bench(arguments: &Arguments) -> Result<()> {
    // A lease is a socket for its holder too.
    let open_files = getrlimit(Resource::Nofile).maximum;
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: open_files,
            maximum: open_files,
        },
    )
    .context("raising RLIMIT_NOFILE")?;
    eprintln!("making {DEVICES} devices of {QUEUES} queues");
    let world = World::builder().peers(DEVICES).queues(QUEUES).build()?;
    let user = Uid::take()?;
    let mut broker = BrokerProcess::start(&world, POLICY)?;
    let levels = {
        let mut operator = broker::Operator::connect(&broker)?;
        let socket = broker.paths().socket();
        // A thread without a capability is what the kernel and the broker see; a process would measure nothing else.
        world.run_as(Side::Host, &user.user(), move || {
            levels::measure(&socket, &mut operator, arguments.cycles)
        })??
    };
    let innocent = innocent::measure(&world, &broker, arguments.rounds)?;
    let killed = killed::measure(&world, &broker, arguments.kills)?;
    broker.stop()?;

    let figures = Figures {
        levels,
        innocent,
        killed,
    };
    tell(
        "leases",
        Form::of(arguments.json),
        &figures.to_string(),
        &serde_json::to_value(&figures)?,
    )
}

/// Grants on the first device wait for the kernel, where sockets leave unbound; no limit is in anybody's way. (In all there
/// are no more leases than a quarter of RLIMIT_NOFILE, and where that cuts what the policy says, one user has less.)
const POLICY: &str = "\
[interface.eth0]
queue-lock = \"placeholders\"

[interface.\"eth*\"]
queue-lock = \"none\"

[[allow]]
name = \"bench\"
user = \"*\"
interface = \"*\"
queues = \"*\"
sockets = [\"prepared\", \"bound\"]
limits = { umem-bytes = 1_073_741_824 }

[limits.per-user]
leases = 4500
queues = 4500
abandoned-sockets = 16_777_216

[limits.in-all]
leases = 4500
queues = 4500
abandoned-sockets = 16_777_216
";
