//! What came of it: a table with medians and spreads, and what the goals make of it; or the same as JSON.

use std::fmt;

use serde::Serialize;
use serde_json::{Value, json};

use crate::contestant::{Contestant, Mode};
use crate::stage::Done;

/// All that was measured.
#[derive(Debug)]
pub(crate) struct Figures {
    rounds: u32,
    milliseconds: u64,
    pub(crate) instructions: Vec<Instructions>,
    pub(crate) rates: Vec<Rates>,
    pub(crate) latencies: Vec<Latencies>,
}

/// User-space instructions of one contestant in one mode.
#[derive(Debug, Serialize)]
pub(crate) struct Instructions {
    pub(crate) contestant: Contestant,
    pub(crate) mode: Mode,
    /// For each packet, or each round trip.
    pub(crate) per_packet: f64,
    packets: u64,
    /// Turns that found nothing, whose instructions are counted too: as good as none but for `pingpong`.
    empty_turns: u64,
}

/// Packets per second of one contestant in one mode, one number a round.
#[derive(Debug, Serialize)]
pub(crate) struct Rates {
    pub(crate) contestant: Contestant,
    pub(crate) mode: Mode,
    packets_per_second: Vec<f64>,
}

/// Round trips of one contestant, two numbers a round.
#[derive(Debug, Serialize)]
pub(crate) struct Latencies {
    pub(crate) contestant: Contestant,
    median_ns: Vec<f64>,
    p99_ns: Vec<f64>,
}

/// The middle, and both ends.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Spread {
    pub(crate) lowest: f64,
    pub(crate) median: f64,
    pub(crate) highest: f64,
}

/// One of the project's goals, as a ratio: met where it is not above `at_most`.
#[derive(Debug, Serialize)]
struct Goal {
    what: String,
    ratio: f64,
    at_most: f64,
    outcome: Outcome,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum Outcome {
    Met,
    /// Above, and the rounds of both overlap: no difference that could be claimed.
    WithinNoise,
    Missed,
}

impl Instructions {
    pub(crate) fn new(contestant: Contestant, mode: Mode, collected: u64, done: &Done) -> Self {
        Self {
            contestant,
            mode,
            per_packet: ratio(collected, done.packets),
            packets: done.packets,
            empty_turns: done.empty,
        }
    }
}

impl Rates {
    pub(crate) fn add(all: &mut Vec<Self>, contestant: Contestant, mode: Mode, done: &Done) {
        #[expect(clippy::cast_precision_loss, reason = "a count of packets of some seconds")]
        let rate = done.packets as f64 / done.elapsed.as_secs_f64();
        match all
            .iter_mut()
            .find(|it| (it.contestant, it.mode) == (contestant, mode))
        {
            Some(it) => it.packets_per_second.push(rate),
            None => all.push(Self {
                contestant,
                mode,
                packets_per_second: vec![rate],
            }),
        }
    }

    pub(crate) fn spread(&self) -> Spread {
        Spread::of(&self.packets_per_second)
    }
}

impl Latencies {
    pub(crate) fn add(all: &mut Vec<Self>, contestant: Contestant, done: &Done) {
        let index = match all.iter().position(|it| it.contestant == contestant) {
            Some(index) => index,
            None => {
                all.push(Self {
                    contestant,
                    median_ns: Vec::new(),
                    p99_ns: Vec::new(),
                });
                all.len() - 1
            }
        };
        all[index].median_ns.push(ratio(done.median_ns, 1));
        all[index].p99_ns.push(ratio(done.p99_ns, 1));
    }

    pub(crate) fn spreads(&self) -> [Spread; 2] {
        [Spread::of(&self.median_ns), Spread::of(&self.p99_ns)]
    }
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn ratio(of: u64, by: u64) -> f64 {
    of as f64 / by as f64
}

impl Spread {
    /// Of a figure that does not spread.
    fn exactly(value: f64) -> Self {
        Self {
            lowest: value,
            median: value,
            highest: value,
        }
    }

    fn reciprocal(self) -> Self {
        Self {
            lowest: 1.0 / self.highest,
            median: 1.0 / self.median,
            highest: 1.0 / self.lowest,
        }
    }

    fn of(values: &[f64]) -> Self {
        let mut values = values.to_vec();
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        Self {
            lowest: at(0),
            median: at(values.len() / 2),
            highest: at(values.len().saturating_sub(1)),
        }
    }
}

impl Figures {
    pub(crate) fn new(rounds: u32, milliseconds: u64) -> Self {
        Self {
            rounds,
            milliseconds,
            instructions: Vec::new(),
            rates: Vec::new(),
            latencies: Vec::new(),
        }
    }

    pub(crate) fn as_json(&self) -> Value {
        let rates: Vec<_> = self
            .rates
            .iter()
            .map(|it| json!({ "of": it, "spread": it.spread() }))
            .collect();
        let latencies: Vec<_> = self
            .latencies
            .iter()
            .map(|it| {
                let [median, p99] = it.spreads();
                json!({ "of": it, "median": median, "p99": p99 })
            })
            .collect();
        json!({
            "rounds": self.rounds,
            "millisecondsEach": self.milliseconds,
            "sockets": Contestant::ALL.map(|it| json!({ "contestant": it, "socket": it.socket().title() })),
            "instructions": self.instructions,
            "rates": rates,
            "latencies": latencies,
            "goals": self.goals(),
        })
    }

    pub(crate) fn instructions(&self, contestant: Contestant, mode: Mode) -> Option<f64> {
        let found = self
            .instructions
            .iter()
            .find(|it| (it.contestant, it.mode) == (contestant, mode));
        found.map(|it| it.per_packet)
    }

    pub(crate) fn rate(&self, contestant: Contestant, mode: Mode) -> Option<Spread> {
        let found = self
            .rates
            .iter()
            .find(|it| (it.contestant, it.mode) == (contestant, mode));
        found.map(Rates::spread)
    }

    pub(crate) fn latency(&self, contestant: Contestant) -> Option<[Spread; 2]> {
        let found = self.latencies.iter().find(|it| it.contestant == contestant);
        found.map(Latencies::spreads)
    }

    /// Those whose figures there are.
    fn goals(&self) -> Vec<Goal> {
        let mut goals = Vec::new();
        for mode in Mode::RATES {
            let of = |contestant| self.instructions(contestant, mode).map(Spread::exactly);
            let best_peer = Contestant::ALL
                .into_iter()
                .filter(|it| it.is_peer())
                .filter_map(of)
                .min_by(|one, other| one.median.total_cmp(&other.median));
            let name = mode.name();
            goals.extend(Goal::new(
                format!("{name}: instructions of raw by the floor's"),
                of(Contestant::Raw),
                of(Contestant::Floor),
                1.05,
            ));
            goals.extend(Goal::new(
                format!("{name}: instructions of frames by the best peer's"),
                of(Contestant::Frames),
                best_peer,
                1.0,
            ));
            for contestant in [Contestant::Raw, Contestant::Frames] {
                // Nanoseconds a packet, so that smaller is better here too.
                let of = |contestant| self.rate(contestant, mode).map(Spread::reciprocal);
                goals.extend(Goal::new(
                    format!("{name}: time per packet of {} by libxdp's", contestant.name()),
                    of(contestant),
                    of(Contestant::Libxdp),
                    1.0,
                ));
            }
        }
        for (index, what) in ["median", "p99"].into_iter().enumerate() {
            for contestant in [Contestant::Raw, Contestant::Frames] {
                let of = |contestant| Some(self.latency(contestant)?[index]);
                goals.extend(Goal::new(
                    format!("pingpong: {what} of {} by libxdp's", contestant.name()),
                    of(contestant),
                    of(Contestant::Libxdp),
                    1.0,
                ));
            }
        }
        goals
    }
}

impl Goal {
    fn new(what: String, one: Option<Spread>, other: Option<Spread>, at_most: f64) -> Option<Self> {
        let (one, other) = (one?, other?);
        let ratio = one.median / other.median;
        let outcome = if ratio <= at_most {
            Outcome::Met
        } else if one.lowest <= other.highest && one.lowest < one.highest {
            Outcome::WithinNoise
        } else {
            Outcome::Missed
        };
        Some(Self {
            what,
            ratio,
            at_most,
            outcome,
        })
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let header = |f: &mut fmt::Formatter<'_>, columns: &[Mode], width: usize| {
            write!(f, "{:20}{:33}", "", "socket")?;
            for mode in columns {
                write!(f, "{:>width$}", mode.name())?;
            }
            writeln!(f)
        };
        let first = |f: &mut fmt::Formatter<'_>, it: Contestant| {
            write!(f, "{:20}{:33}", it.title(), it.socket().title())
        };

        writeln!(
            f,
            "user-space instructions per packet of 64 bytes (callgrind, batches of 64)"
        )?;
        header(f, &Mode::ALL, 10)?;
        for contestant in Contestant::ALL {
            first(f, contestant)?;
            for mode in Mode::ALL {
                match self.instructions(contestant, mode) {
                    Some(figure) => write!(f, "{figure:10.2}")?,
                    None => write!(f, "{:>10}", "-")?,
                }
            }
            writeln!(f)?;
        }
        if self.rounds == 0 {
            return self.write_goals(f);
        }
        let rounds = format!("{} rounds of {} ms, in turns", self.rounds, self.milliseconds);
        writeln!(
            f,
            "\nthousands of packets per second: median (lowest-highest of {rounds})"
        )?;
        header(f, &Mode::RATES, 20)?;
        for contestant in Contestant::ALL {
            first(f, contestant)?;
            for mode in Mode::RATES {
                let text = self.rate(contestant, mode).map(|it| it.in_words(1e-3, 0));
                write!(f, "{:>20}", text.as_deref().unwrap_or("-"))?;
            }
            writeln!(f)?;
        }
        writeln!(
            f,
            "\nmicroseconds of a round trip (pingpong): median (lowest-highest of {rounds})"
        )?;
        writeln!(f, "{:20}{:33}{:>22}{:>22}", "", "socket", "median", "p99")?;
        for contestant in Contestant::ALL {
            first(f, contestant)?;
            for index in 0..2 {
                let text = self.latency(contestant).map(|it| it[index].in_words(1e-3, 2));
                write!(f, "{:>22}", text.as_deref().unwrap_or("-"))?;
            }
            writeln!(f)?;
        }
        self.write_goals(f)
    }
}

impl Figures {
    fn write_goals(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{:56}{:>8}{:>10}", "goals, as ratios", "ratio", "at most")?;
        for goal in self.goals() {
            let met = if goal.ratio <= goal.at_most {
                "met"
            } else {
                "MISSED"
            };
            writeln!(
                f,
                "{:56}{:8.3}{:10.2}  {met}",
                goal.what, goal.ratio, goal.at_most
            )?;
        }
        Ok(())
    }
}

impl Spread {
    fn in_words(self, unit: f64, digits: usize) -> String {
        let [median, lowest, highest] = [self.median, self.lowest, self.highest].map(|it| it * unit);
        format!("{median:.digits$} ({lowest:.digits$}-{highest:.digits$})")
    }
}
