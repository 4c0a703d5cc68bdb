//! What came of it: as tables or as JSON.

use std::fmt;

use e2e::figures::Times;
use serde::Serialize;

use crate::innocent::Innocent;
use crate::killed::Killed;
use crate::levels::{Level, Way};
use crate::{DEVICES, QUEUES};

/// All that is printed.
#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    pub(crate) levels: Vec<Level>,
    pub(crate) innocent: Innocent,
    pub(crate) killed: Vec<Killed>,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{DEVICES} devices of {QUEUES} queues, one lease a queue, kind bound; one client's grants and ends, microseconds\n"
        )?;
        writeln!(
            f,
            "{:12}{:>16}{:>16}{:>16}{:>16}{:>9}{:>10}{:>10}{:>11}",
            "", "Acquire", "Bind", "Activate", "Release", "a second", "engine", "KiB of", "bytes a"
        )?;
        write!(f, "{:12}", "leases")?;
        for _ in 0..4 {
            write!(f, "{:>8}{:>8}", "median", "p99")?;
        }
        writeln!(f, "{:>9}{:>10}{:>10}{:>11}", "", "us CPU", "broker", "more lease")?;
        for level in &self.levels {
            let way = if level.way == Way::Up { "up" } else { "down" };
            write!(f, "{:>6} {way:5}", level.leases)?;
            for times in [level.acquire, level.bind, level.activate, level.release] {
                write!(f, "{:8.0}{:8.0}", times.median_us, times.p99_us)?;
            }
            write!(
                f,
                "{:9.0}{:10.1}{:10}",
                level.grants_and_ends_per_second, level.engine_cpu_us, level.broker_kib
            )?;
            match level.bytes_per_lease {
                Some(bytes) => writeln!(f, "{bytes:11.0}")?,
                None => writeln!(f, "{:>11}", "-")?,
            }
        }
        let idle = self.levels.iter().map(|level| level.engine_idle_cpu_us);
        writeln!(
            f,
            "\nin a second in which nobody does anything the engine spends {:.0} us at most",
            idle.fold(0.0, f64::max)
        )?;
        let Innocent {
            alone,
            beside_others,
            others,
            granted_to_others,
            refused_to_others,
        } = &self.innocent;
        writeln!(
            f,
            "\na whole grant of an innocent user: median {:.0}, p99 {:.0}; while {others} others ask for unbound sockets\n\
             under placeholders ({granted_to_others} granted, {refused_to_others} refused after their wait): median {:.0}, p99 {:.0}",
            alone.median_us, alone.p99_us, beside_others.median_us, beside_others.p99_us
        )?;
        write!(
            f,
            "\nfrom the SIGKILL of a holder to its queue granted again, milliseconds:"
        )?;
        for killed in &self.killed {
            let Times { median_us, p99_us } = killed.until_granted_again;
            write!(
                f,
                "\n  {:10} median {:.1}, p99 {:.1}",
                killed.sockets.as_str(),
                median_us / 1000.0,
                p99_us / 1000.0
            )?;
        }
        Ok(())
    }
}
