//! What came of it: medians and 99th percentiles, as a table or as JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use e2e::figures::Times;
use serde::Serialize;
use xsk_client::wire::{QueueLock, SocketKind};

use crate::footprint::Footprint;
use crate::{CHUNK_BYTES, CHUNKS, QUEUES, RINGS, libxdp, ours};

/// What was measured, round by round.
#[derive(Debug, Default)]
pub(crate) struct Rounds {
    pub(crate) empty: Vec<ours::EmptyCalls>,
    pub(crate) ours: Vec<ours::Steps>,
    pub(crate) libxdp: Vec<libxdp::Steps>,
    pub(crate) library: Vec<Duration>,
    pub(crate) bound: Vec<ours::BoundSteps>,
    /// Kinds that leave unbound, under each lock that there is.
    pub(crate) locked: BTreeMap<(SocketKind, QueueLock), Vec<ours::Steps>>,
    /// `Acquire` right behind another lease's end, under placeholders.
    pub(crate) behind: Vec<Duration>,
}

/// All that is printed.
#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    rounds: usize,
    queues_each: u32,
    ring_entries: u32,
    umem_bytes: u64,
    steps: Vec<Row>,
    /// Ours divided by libxdp's, of the row "without memory and umem".
    ratio: Ratio,
    /// Each kind under each lock.
    locks: Vec<Locked>,
    /// An `Acquire` under placeholders that comes right behind the end of another lease.
    right_behind: Times,
    broker: Footprint,
}

/// A kind of sockets under a queue lock.
#[derive(Debug, Serialize)]
struct Locked {
    sockets: SocketKind,
    queue_lock: Option<QueueLock>,
    acquire: Times,
    /// The holder's bind, its rings included where it makes them; or `Bind`.
    bind: Times,
    activate: Times,
    all: Times,
    /// `all` divided by libxdp's creation and insert, medians.
    ratio: f64,
}

/// A step, or a sum of steps, of each round.
#[derive(Debug, Serialize)]
struct Row {
    step: &'static str,
    ours: Option<Times>,
    libxdp: Option<Times>,
}

#[derive(Debug, Serialize)]
struct Ratio {
    of_medians: f64,
    of_p99: f64,
}

impl Figures {
    pub(crate) fn new(rounds: &Rounds, broker: Footprint) -> Self {
        type Ours = fn(&ours::Steps) -> Duration;
        type Libxdp = fn(&libxdp::Steps) -> Duration;
        let ours = |step: Ours| Times::of(rounds.ours.iter().map(step));
        let libxdp = |step: Libxdp| Times::of(rounds.libxdp.iter().map(step));
        let both = |step, one: Ours, other: Libxdp| Row {
            step,
            ours: Some(ours(one)),
            libxdp: Some(libxdp(other)),
        };
        let only_ours = |step, times| Row {
            step,
            ours: Some(times),
            libxdp: None,
        };

        let (socket_ours, socket_libxdp) = (
            ours(|it| it.acquire + it.bind + it.activate),
            libxdp(|it| it.socket + it.insert),
        );
        type Bound = fn(&ours::BoundSteps) -> Duration;
        let bound = |step, times: Bound| only_ours(step, Times::of(rounds.bound.iter().map(times)));
        let empty = |step, time: fn(&ours::EmptyCalls) -> Duration| {
            only_ours(step, Times::of(rounds.empty.iter().map(time)))
        };
        let steps = vec![
            empty("GetInfo: a call, answered at once", |it| it.get_info),
            empty("ListLeases of none: asks the engine", |it| it.list_leases),
            both("memory: map and prefault", |it| it.memory, |it| it.memory),
            only_ours("Acquire", ours(|it| it.acquire)),
            both("umem: register | xsk_umem__create", |it| it.umem, |it| it.umem),
            both(
                "map rings, bind | xsk_socket__create",
                |it| it.bind,
                |it| it.socket,
            ),
            both("Activate | map insert", |it| it.activate, |it| it.insert),
            Row {
                step: "without memory and umem",
                ours: Some(socket_ours),
                libxdp: Some(socket_libxdp),
            },
            both(
                "all of these",
                |it| it.memory + it.acquire + it.umem + it.bind + it.activate,
                |it| it.memory + it.umem + it.socket + it.insert,
            ),
            only_ours(
                "all, through Grant and Umem",
                Times::of(rounds.library.iter().copied()),
            ),
            both("release and close", |it| it.close, |it| it.close),
            bound("kind bound: Acquire", |it| it.acquire),
            bound("kind bound: memory, prefaulted", |it| it.memory),
            bound("kind bound: Bind and map", |it| it.bind),
            bound("kind bound: Activate", |it| it.activate),
            bound("kind bound: all of these", |it| {
                it.acquire + it.memory + it.bind + it.activate
            }),
        ];
        let locked = |(sockets, lock): (SocketKind, QueueLock), steps: &[ours::Steps]| {
            let times = |step: Ours| Times::of(steps.iter().map(step));
            let all = times(|it| it.acquire + it.bind + it.activate);
            Locked {
                sockets,
                queue_lock: Some(lock),
                acquire: times(|it| it.acquire),
                bind: times(|it| it.bind),
                activate: times(|it| it.activate),
                all,
                ratio: all.median_us / socket_libxdp.median_us,
            }
        };
        let mut locks = vec![locked((SocketKind::Prepared, QueueLock::None), &rounds.ours)];
        locks.extend(rounds.locked.iter().map(|(what, steps)| locked(*what, steps)));
        let times = |step: Bound| Times::of(rounds.bound.iter().map(step));
        let all = times(|it| it.acquire + it.bind + it.activate);
        locks.push(Locked {
            sockets: SocketKind::Bound,
            queue_lock: None,
            acquire: times(|it| it.acquire),
            bind: times(|it| it.bind),
            activate: times(|it| it.activate),
            all,
            ratio: all.median_us / socket_libxdp.median_us,
        });
        Self {
            rounds: rounds.ours.len(),
            queues_each: QUEUES,
            ring_entries: RINGS.largest(),
            umem_bytes: u64::from(CHUNKS) * u64::from(CHUNK_BYTES),
            steps,
            ratio: Ratio {
                of_medians: socket_ours.median_us / socket_libxdp.median_us,
                of_p99: socket_ours.p99_us / socket_libxdp.p99_us,
            },
            locks,
            right_behind: Times::of(rounds.behind.iter().copied()),
            broker,
        }
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} rounds, in turns; veth, copy mode, rings of {}, umem of {} KiB; microseconds\n",
            self.rounds,
            self.ring_entries,
            self.umem_bytes / 1024
        )?;
        writeln!(
            f,
            "{:38}{:>20}{:>20}",
            "", "ours, unprivileged", "libxdp, as root"
        )?;
        writeln!(
            f,
            "{:38}{:>10}{:>10}{:>10}{:>10}",
            "step", "median", "p99", "median", "p99"
        )?;
        for row in &self.steps {
            write!(f, "{:38}", row.step)?;
            for times in [row.ours, row.libxdp] {
                match times {
                    Some(Times { median_us, p99_us }) => write!(f, "{median_us:10.1}{p99_us:10.1}")?,
                    None => write!(f, "{:>10}{:>10}", "-", "-")?,
                }
            }
            writeln!(f)?;
        }
        let Ratio { of_medians, of_p99 } = self.ratio;
        writeln!(
            f,
            "\nAcquire + bind + Activate is {of_medians:.2} times libxdp's creation and insert (medians; p99 {of_p99:.2})"
        )?;
        writeln!(
            f,
            "\n{:10}{:14}{:>20}{:>20}{:>20}{:>20}{:>10}",
            "kind", "lock", "Acquire", "bind | Bind", "Activate", "together", "x libxdp"
        )?;
        for locked in &self.locks {
            let lock = locked.queue_lock.map_or("needs none", QueueLock::as_str);
            write!(f, "{:10}{lock:14}", locked.sockets.as_str())?;
            for Times { median_us, p99_us } in [locked.acquire, locked.bind, locked.activate, locked.all] {
                write!(f, "{median_us:10.1}{p99_us:10.1}")?;
            }
            writeln!(f, "{:10.2}", locked.ratio)?;
        }
        writeln!(
            f,
            "under placeholders an Acquire right behind the end of another lease waits until the kernel has let go: median \
             {:.1}, p99 {:.1}\n",
            self.right_behind.median_us, self.right_behind.p99_us
        )?;
        let Footprint {
            binary_bytes,
            resident_kib,
            anonymous_kib,
        } = self.broker;
        write!(
            f,
            "xsk-broker: {} KiB on disk; idle {resident_kib} KiB resident, of which {anonymous_kib} KiB are its own",
            binary_bytes / 1024
        )
    }
}
