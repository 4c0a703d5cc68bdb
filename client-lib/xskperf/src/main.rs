//! `xskperf`: what xdpsock's users know, without root. One queue, four modes, rates while it runs, and who dropped what.
//!
//! It is a program of the library's users: safe code over the frames layer, and nothing that they could not write.

mod arguments;
mod latency;
mod modes;
mod report;
mod socket;
mod xdpsock;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use clap::{CommandFactory, Parser};
use xsk_client::Broker;

use arguments::{Arguments, Mode};
use latency::Latencies;
use modes::Worker;
use report::Report;

fn main() -> ExitCode {
    let words = xdpsock::translated(std::env::args_os().collect());
    let words = words.unwrap_or_else(|wrong| {
        let kind = clap::error::ErrorKind::InvalidValue;
        Arguments::command().error(kind, wrong).exit()
    });
    match run(&Arguments::parse_from(words)) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read has had enough, as in `| head`: the end that SIGPIPE is to others.
        Err(error) if is_broken_pipe(&error) => ExitCode::from(128 + 13),
        Err(error) => {
            eprintln!("xskperf: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let cause = error.downcast_ref::<std::io::Error>();
    cause.is_some_and(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe)
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).context("catching a signal")?;
    }
    let (mode, options) = arguments.mode.parts();
    let socket::Active {
        broker,
        lease,
        xsk,
        described,
    } = socket::open(options, mode)?;
    let mut report = Report::new(mode, options, &described)?;
    let mut worker = Worker::new(xsk, options);
    let mut latencies = Latencies::default();
    while !stop.load(Ordering::Relaxed) && !report.is_over(worker.done(mode)) {
        match mode {
            Mode::Rxdrop => worker.receive_and_drop()?,
            Mode::Txonly => worker.send()?,
            Mode::L2fwd => worker.forward()?,
            Mode::Pingpong => worker.ping(&mut latencies)?,
        }
        if report.is_due(worker.has_waited()) {
            report.print(&worker, &mut latencies)?;
        }
    }
    report.print_sums(&worker, &mut latencies)?;
    release(broker, lease);
    Ok(())
}

/// Gives the lease back a moment before it ends with this process. It makes no difference to a run that is over whether
/// somebody is there to hear it.
fn release(mut broker: Broker, lease: u64) {
    /// For the reply of a broker that is there; one that is not is not waited for any longer.
    const PATIENCE: Duration = Duration::from_millis(200);
    broker.set_timeout(PATIENCE);
    let _unheard = broker.release(lease);
}
