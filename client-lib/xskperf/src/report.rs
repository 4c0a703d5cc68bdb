//! What is printed: a line when it is due, and the sums.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;
use xsk_client::sys::Statistics;
use xsk_client::wire::BindMode;

use crate::arguments::{Mode, Options};
use crate::latency::{Latencies, Percentiles};
use crate::modes::{Counts, Worker};
use crate::socket::Described;

/// Lines between two headings.
const LINES: u32 = 20;

pub(crate) struct Report {
    mode: Mode,
    json: bool,
    interval: Duration,
    begun: Instant,
    end: Option<Instant>,
    packets: Option<u64>,
    last: Instant,
    last_counts: Counts,
    /// Asking the clock for every batch would cost more than the batch.
    turns: u32,
    lines: u32,
}

/// A line, or the sums.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    event: &'static str,
    /// Since the beginning.
    seconds: f64,
    rx_packets: u64,
    tx_packets: u64,
    rx_bytes: u64,
    tx_bytes: u64,
    rx_packets_per_second: f64,
    tx_packets_per_second: f64,
    /// All six, since the socket was made.
    kernel: Statistics,
    refused_by_library: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    lost: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    round_trip: Option<Percentiles>,
}

impl Report {
    /// Begins now, with a line that says what was opened.
    pub(crate) fn new(mode: Mode, options: &Options, described: &Described) -> Result<Self> {
        let mut out = std::io::stdout().lock();
        if options.json {
            let line = serde_json::json!({ "event": "active", "test": mode.name(), "socket": described });
            writeln!(out, "{line}")?;
        } else {
            let copying = match described.mode {
                BindMode::Copy => "copy mode: the kernel copies each packet",
                BindMode::ZeroCopy => "zero-copy mode: the device uses this program's memory",
            };
            writeln!(
                out,
                "{} on {} in {copying}\nlease {} by rule {}, {}; XDP {}, queue lock {}, rx ring of {}, {} chunks",
                mode.name(),
                described.queue,
                described.lease,
                described.rule,
                if described.inherited {
                    "inherited"
                } else {
                    "acquired"
                },
                described.xdp,
                described.queue_lock,
                described.rings.rx,
                described.chunks
            )?;
        }
        out.flush()?;
        let now = Instant::now();
        let seconds = |seconds: f64| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
        Ok(Self {
            mode,
            json: options.json,
            interval: seconds(options.interval).max(Duration::from_millis(10)),
            begun: now,
            end: options.seconds.and_then(|it| now.checked_add(seconds(it))),
            packets: options.packets,
            last: now,
            last_counts: Counts::default(),
            turns: 0,
            lines: 0,
        })
    }

    pub(crate) fn is_over(&self, packets: u64) -> bool {
        self.packets.is_some_and(|most| packets >= most)
            || (self.turns == 0 && self.end.is_some_and(|end| Instant::now() >= end))
    }

    /// Whether a line is due. Asks the clock after each turn that waited, which takes up to half a second where a packet is
    /// lost, and now and then after turns that work: those take some microseconds.
    pub(crate) fn is_due(&mut self, has_waited: bool) -> bool {
        self.turns = if has_waited { 0 } else { (self.turns + 1) % 16 };
        self.turns == 0 && self.last.elapsed() >= self.interval
    }

    pub(crate) fn print(&mut self, worker: &Worker, latencies: &mut Latencies) -> Result<()> {
        let (now, counts) = (Instant::now(), worker.counts());
        let line = self.line("interval", worker, (self.last_counts, now - self.last), latencies)?;
        self.last = now;
        self.last_counts = counts;
        self.write(&line)
    }

    /// Of all the time.
    pub(crate) fn print_sums(&mut self, worker: &Worker, latencies: &mut Latencies) -> Result<()> {
        let since = (Counts::default(), self.begun.elapsed());
        let line = self.line("sum", worker, since, latencies)?;
        if !self.json {
            writeln!(std::io::stdout(), "in all:")?;
            self.lines = 0;
        }
        self.write(&line)
    }

    fn line(
        &self,
        event: &'static str,
        worker: &Worker,
        (before, elapsed): (Counts, Duration),
        latencies: &Latencies,
    ) -> Result<Line> {
        let counts = worker.counts();
        #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
        let rate = |count: u64| count as f64 / elapsed.as_secs_f64().max(1e-9);
        let is_pingpong = self.mode == Mode::Pingpong;
        Ok(Line {
            event,
            seconds: self.begun.elapsed().as_secs_f64(),
            rx_packets: counts.rx_packets,
            tx_packets: counts.tx_packets,
            rx_bytes: counts.rx_bytes,
            tx_bytes: counts.tx_bytes,
            rx_packets_per_second: rate(counts.rx_packets - before.rx_packets),
            tx_packets_per_second: rate(counts.tx_packets - before.tx_packets),
            kernel: worker.statistics()?,
            refused_by_library: worker.refused(),
            lost: is_pingpong.then_some(counts.lost),
            round_trip: latencies.percentiles().filter(|_| is_pingpong),
        })
    }

    fn write(&mut self, line: &Line) -> Result<()> {
        let mut out = std::io::stdout().lock();
        if self.json {
            writeln!(out, "{}", serde_json::to_string(line)?)?;
            return Ok(out.flush()?);
        }
        if self.lines.is_multiple_of(LINES) {
            write!(
                out,
                "{:>8}{:>12}{:>12}{:>14}{:>14}{:>11}{:>11}{:>9}",
                "seconds", "rx/s", "tx/s", "rx", "tx", "ring full", "no chunk", "refused"
            )?;
            if self.mode == Mode::Pingpong {
                write!(
                    out,
                    "{:>7}{:>11}{:>9}{:>9}",
                    "lost", "median us", "p99 us", "p99.9 us"
                )?;
            }
            writeln!(out)?;
        }
        self.lines += 1;
        let kernel = &line.kernel;
        write!(
            out,
            "{:8.1}{:12.0}{:12.0}{:14}{:14}{:11}{:11}{:9}",
            line.seconds,
            line.rx_packets_per_second,
            line.tx_packets_per_second,
            line.rx_packets,
            line.tx_packets,
            kernel.rx_ring_full,
            kernel.rx_dropped,
            kernel.rx_invalid_descs + kernel.tx_invalid_descs + line.refused_by_library
        )?;
        if let Some(lost) = line.lost {
            write!(out, "{lost:7}")?;
        }
        if let Some(it) = line.round_trip {
            write!(out, "{:11.2}{:9.2}{:9.2}", it.median_us, it.p99_us, it.p999_us)?;
        }
        writeln!(out)?;
        Ok(out.flush()?)
    }
}
