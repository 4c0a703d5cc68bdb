//! The datapath beside its peers': `cargo xtask bench datapath` builds and starts it.
//!
//! One world, one veth of one queue, one generator, and the contestants in turns. What a contestant's user space costs is
//! counted by callgrind, over bursts that wait in the RX ring, so that every batch is whole and no turn is empty; what it
//! moves is measured by the clock, in rounds in which each contestant has its turn, and told by median and spread.

mod contestant;
mod figures;
#[path = "../contender/harness.rs"]
#[allow(dead_code, reason = "the constants are what is needed of it here")]
mod harness;
mod plot;
mod stage;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use e2e::figures::{Form, ended, tell};

use contestant::{Contestant, Mode, chosen};
use figures::{Figures, Instructions, Latencies, Rates};
use stage::Stage;

/// Packets, or round trips, that callgrind looks at.
const COUNTED_PACKETS: u32 = 1 << 16;
const COUNTED_PINGS: u32 = 2000;

struct Arguments {
    rounds: u32,
    milliseconds: u64,
    contestants: Vec<Contestant>,
    modes: Vec<Mode>,
    plot: Option<PathBuf>,
    profile: Option<PathBuf>,
    json: bool,
}

fn main() -> ExitCode {
    ended(Arguments::read(std::env::args().skip(1)).and_then(|arguments| bench(&arguments)))
}

impl Arguments {
    fn read(mut words: impl Iterator<Item = String>) -> Result<Self> {
        let (mut rounds, mut milliseconds, mut json) = (9, 500, false);
        let (mut plot, mut profile) = (None, None);
        let (mut contestants, mut modes) = (Vec::new(), Vec::new());
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("{word} wants a value"));
            match word.as_str() {
                "--json" => json = true,
                "--rounds" => rounds = value()?.parse().context("--rounds wants a number")?,
                "--milliseconds" => {
                    milliseconds = value()?.parse().context("--milliseconds wants a number")?;
                }
                "--contestant" => contestants.push(value()?),
                "--mode" => modes.push(value()?),
                "--plot" => plot = Some(value()?.into()),
                "--profile" => profile = Some(value()?.into()),
                other => bail!("{other}? Run `cargo xtask bench datapath`"),
            }
        }
        ensure!(milliseconds > 0, "--milliseconds wants a number above 0");
        Ok(Self {
            rounds,
            milliseconds,
            contestants: chosen(&Contestant::ALL, Contestant::name, &contestants)?,
            modes: chosen(&Mode::ALL, Mode::name, &modes)?,
            plot,
            profile,
            json,
        })
    }
}

fn bench(arguments: &Arguments) -> Result<()> {
    let stage = Stage::new()?;
    let mut figures = Figures::new(arguments.rounds, arguments.milliseconds);
    for &mode in &arguments.modes {
        for &contestant in &arguments.contestants {
            eprintln!("instructions: {} in {}", contestant.name(), mode.name());
            figures.instructions.push(instructions(
                &stage,
                contestant,
                mode,
                arguments.profile.as_deref(),
            )?);
        }
    }
    for round in 0..arguments.rounds {
        eprintln!("round {} of {}", round + 1, arguments.rounds);
        for &mode in &arguments.modes {
            // Who begins changes, so that nobody always follows the same one.
            let first = round as usize % arguments.contestants.len().max(1);
            let (last, start) = arguments.contestants.split_at(first);
            for &contestant in start.iter().chain(last) {
                let mut running = stage.start(contestant, mode, &[])?;
                let time = Duration::from_millis(arguments.milliseconds);
                let done = running.for_a_while(time).with_context(|| contestant.name())?;
                running.end()?;
                match mode {
                    Mode::Pingpong => Latencies::add(&mut figures.latencies, contestant, &done),
                    _ => Rates::add(&mut figures.rates, contestant, mode, &done),
                }
            }
        }
    }
    if let Some(path) = &arguments.plot {
        plot::draw(&figures, path)?;
        eprintln!("plot: {}", path.display());
    }
    tell(
        "datapath",
        Form::of(arguments.json),
        &figures.to_string(),
        &figures.as_json(),
    )
}

/// What user space executes for a packet.
fn instructions(
    stage: &Stage,
    contestant: Contestant,
    mode: Mode,
    profile: Option<&Path>,
) -> Result<Instructions> {
    let profile = match profile {
        None => "/dev/null".into(),
        Some(folder) => folder.join(format!("{}.{}", contestant.name(), mode.name())),
    };
    let profile = format!("--callgrind-out-file={}", profile.display());
    let callgrind = [
        "/usr/bin/valgrind",
        "--tool=callgrind",
        "--vgdb=no",
        "--dump-instr=yes",
        &profile,
        "--collect-atstart=no",
        "--toggle-collect=*measured*",
    ];
    let mut running = stage.start(contestant, mode, &callgrind)?;
    let packets = match mode {
        Mode::Pingpong => COUNTED_PINGS,
        _ => COUNTED_PACKETS,
    };
    let done = running.packets(packets)?;
    let told = running.end()?;
    let collected: u64 = told
        .iter()
        .find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok())
        .with_context(|| format!("callgrind told no sum: {}", told.join("\n")))?;
    Ok(Instructions::new(contestant, mode, collected, &done))
}
