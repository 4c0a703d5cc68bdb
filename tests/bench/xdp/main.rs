//! What the XDP program costs a packet: `cargo xtask bench xdp` builds and starts it.
//!
//! The kernel runs each program a million times on one frame and says what a run took (BPF_PROG_TEST_RUN). The programs
//! take turns, and what counts is the median. Most of a run is the test itself: a program that only returns shows it.

use std::fmt::Write as _;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use aya::maps::XskMap;
use aya::programs::Xdp;
use aya::{Ebpf, EbpfLoader};
use e2e::bpf::{self, MapType, ProgramType, TestRun};
use e2e::figures::{Form, ended, tell};
use e2e::instructions::{Assembler, R0, R1, R2, R3, call, exit, load_word, mov_value};
use e2e::raw_xsk::bare_socket;
use e2e::world::{Side, World};
use rustix::thread::{CpuSet, sched_setaffinity};
use serde_json::json;
use xdp_ebpf::{OBJECT, PROGRAM, QUEUE_COUNTERS, XSKS_MAP};

/// Of one turn.
const RUNS: u32 = 1_000_000;
const FRAME: [u8; 64] = [0; 64];
const XDP_PASS: u32 = 2;
const XDP_REDIRECT: u32 = 4;

/// A loaded program, with a socket in the slot of queue 0, if it has slots.
struct Contestant {
    name: &'static str,
    program: OwnedFd,
    verdict: u32,
    nanoseconds: Vec<u32>,
    _keeps: Vec<Box<dyn std::any::Any + Send>>,
}

fn main() -> ExitCode {
    ended(bench(std::env::args().skip(1)))
}

fn bench(mut words: impl Iterator<Item = String>) -> Result<()> {
    let (mut rounds, mut as_json) = (51, false);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--json" => as_json = true,
            "--rounds" => {
                let value = words.next().context("--rounds wants a number")?;
                rounds = value.parse().context("--rounds wants a number")?;
            }
            other => bail!("{other}? Run `cargo xtask bench xdp`"),
        }
    }
    let world = World::builder().queues(1).build()?;
    let index = world.device(Side::Host).index;
    let mut contestants = world.run_in(Side::Host, || -> Result<_> {
        let mut contestants = vec![returns()?, bare_redirect()?, libxdp()?, ours()?];
        measure(&mut contestants, index, rounds)?;
        Ok(contestants)
    })??;
    for contestant in &mut contestants {
        contestant.nanoseconds.sort_unstable();
    }
    let test_itself = f64::from(contestants[0].at(50));
    let programs: Vec<_> = contestants
        .iter()
        .map(|it| json!({ "program": it.name, "medianNs": it.at(50), "p5Ns": it.at(5), "p95Ns": it.at(95) }))
        .collect();
    let json = json!({ "rounds": rounds, "runsEach": RUNS, "programs": programs });
    let mut table = format!("nanoseconds a run, {rounds} rounds of {RUNS} runs, in turns\n\n");
    writeln!(
        table,
        "{:34}{:>8}{:>8}{:>8}{:>22}",
        "", "median", "p5", "p95", "without the test's own"
    )?;
    for it in &contestants {
        let net = f64::from(it.at(50)) - test_itself;
        writeln!(
            table,
            "{:34}{:8}{:8}{:8}{net:22}",
            it.name,
            it.at(50),
            it.at(5),
            it.at(95)
        )?;
    }
    let [_, bare, libxdp, ours] = &contestants[..] else {
        bail!("four programs were loaded");
    };
    let above = |other: &Contestant| i64::from(ours.at(50)) - i64::from(other.at(50));
    write!(
        table,
        "\nours is {} ns above the bare redirect (the goal: 5 at most), {} ns above libxdp's default, whose dispatcher is not run here",
        above(bare),
        above(libxdp)
    )?;
    tell("xdp", Form::of(as_json), &table, &json)
}

impl Contestant {
    fn at(&self, percent: usize) -> u32 {
        let index = self.nanoseconds.len() * percent / 100;
        self.nanoseconds.get(index).copied().unwrap_or(0)
    }
}

fn measure(contestants: &mut [Contestant], interface_index: u32, rounds: u32) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(0);
    sched_setaffinity(None, &cpus).context("CPU 0")?;
    // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
    // (`xdp_convert_md_to_buff`, net/bpf/test_run.c).
    let context: Vec<u8> = [0, u32::try_from(FRAME.len())?, 0, interface_index, 0, 0]
        .into_iter()
        .flat_map(u32::to_ne_bytes)
        .collect();
    // The first round is not counted.
    for round in 0..=rounds {
        for it in contestants.iter_mut() {
            let run = TestRun::Dry {
                frame: &FRAME,
                context: &context,
                repeat: RUNS,
            };
            let (verdict, nanoseconds) = bpf::test_run(&it.program, run).context(it.name)?;
            ensure!(
                verdict == it.verdict,
                "{}: verdict {verdict}, not {}",
                it.name,
                it.verdict
            );
            if round > 0 {
                it.nanoseconds.push(nanoseconds);
            }
        }
    }
    Ok(())
}

fn returns() -> Result<Contestant> {
    let mut code = Assembler::default();
    code.push([mov_value(R0, 2), exit()]);
    let code = code.finish().context("there are no jumps")?;
    Ok(Contestant {
        name: "only returns: the test itself",
        program: bpf::load(ProgramType::Xdp, "bench_returns", &code)?,
        verdict: XDP_PASS,
        nanoseconds: Vec::new(),
        _keeps: Vec::new(),
    })
}

fn bare_redirect() -> Result<Contestant> {
    /// `bpf_redirect_map`, and `xdp_md.rx_queue_index`
    const REDIRECT_MAP: i32 = 51;
    const RX_QUEUE_INDEX: i16 = 16;
    let map = bpf::create_map(MapType::XskMap, "bench_xsks", 4, 1)?;
    let socket = bare_socket()?;
    bpf::insert_socket(&map, 0, &socket)?;
    let mut code = Assembler::default();
    code.push([load_word(R2, R1, RX_QUEUE_INDEX)]);
    code.load_map(R1, &map);
    code.push([mov_value(R3, 2), call(REDIRECT_MAP), exit()]);
    let code = code.finish().context("there are no jumps")?;
    Ok(Contestant {
        name: "bare redirect",
        program: bpf::load(ProgramType::Xdp, "bench_redirect", &code)?,
        verdict: XDP_REDIRECT,
        nanoseconds: Vec::new(),
        _keeps: vec![Box::new(map), Box::new(socket)],
    })
}

fn libxdp() -> Result<Contestant> {
    const VARIABLE: &str = "XSK_BENCH_LIBXDP_PROGRAM";
    let path = std::env::var_os(VARIABLE).with_context(|| format!("`cargo xtask bench` sets {VARIABLE}"))?;
    let object = std::fs::read(&path).with_context(|| path.display().to_string())?;
    loaded(
        "libxdp's default program",
        EbpfLoader::new().load(&object)?,
        "xsk_def_prog",
        "xsks_map",
    )
}

fn ours() -> Result<Contestant> {
    let ebpf = EbpfLoader::new()
        .map_max_entries(XSKS_MAP, 1)
        .map_max_entries(QUEUE_COUNTERS, 1)
        .load(OBJECT)?;
    loaded("ours, with its counters", ebpf, PROGRAM, XSKS_MAP)
}

fn loaded(name: &'static str, mut ebpf: Ebpf, program: &str, map: &str) -> Result<Contestant> {
    let socket = bare_socket()?;
    let mut sockets = XskMap::try_from(ebpf.map_mut(map).context("no map of sockets")?)?;
    sockets.set(0, socket.as_raw_fd(), 0)?;
    let xdp: &mut Xdp = ebpf.program_mut(program).context("no program")?.try_into()?;
    xdp.load()?;
    Ok(Contestant {
        name,
        program: xdp.fd()?.as_fd().try_clone_to_owned()?,
        verdict: XDP_REDIRECT,
        nanoseconds: Vec::new(),
        _keeps: vec![Box::new(ebpf), Box::new(socket)],
    })
}
