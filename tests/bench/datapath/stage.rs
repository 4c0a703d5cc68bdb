//! The wire, the generator, the XDP programs at both ends, and one contestant at a time between them.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{ChildStdin, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use command_fds::{CommandFdExt, FdMapping};
use e2e::bpf::XdpAttach;
use e2e::generator::Generator;
use e2e::process::Process;
use e2e::queue_program::QueueProgram;
use e2e::raw_xsk::RawXsk;
use e2e::sink_program::{Fate, SinkProgram};
use e2e::uids::Uid;
use e2e::world::{Side, World};
use rustix::io::Errno;
use rustix::net::xdp::SocketAddrXdpFlags;
use rustix::process::{Pid, PidfdGetfdFlags, pidfd_getfd};
use rustix::thread::{CpuSet, sched_setaffinity};
use xsk_client::sys::{self, Ring};

use crate::contestant::{Contestant, Mode, SocketKind};
use crate::harness;

/// Where the contestant runs; the generator has the other one.
const CONTESTANT_CPU: usize = 0;
const GENERATOR_CPU: usize = 1;
/// The only one of the wire, so that every generator's packets arrive on it.
const QUEUE: u32 = 0;
/// As which fd a contestant finds its socket: beyond those that the fixture still needs between fork and exec.
const HANDED_OVER: i32 = 200;
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Stage {
    world: World,
    redirect: QueueProgram,
    generator: Generator,
}

/// What a contestant told of one order.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Done {
    pub(crate) packets: u64,
    pub(crate) elapsed: Duration,
    /// Turns that found nothing to do.
    pub(crate) empty: u64,
    pub(crate) median_ns: u64,
    pub(crate) p99_ns: u64,
}

/// A contestant that is bound and waits for orders.
pub(crate) struct Running<'s> {
    stage: &'s Stage,
    mode: Mode,
    sink: SinkProgram,
    process: Process,
    stdin: ChildStdin,
    orders: usize,
    _uid: Option<Uid>,
}

impl Stage {
    pub(crate) fn new() -> Result<Self> {
        let cpus = std::thread::available_parallelism()?.get();
        ensure!(
            cpus >= 2,
            "the generator and the contestant want a CPU each; there is one"
        );
        let world = World::builder().queues(1).build()?;
        let redirect = QueueProgram::attach(&world, Side::Host, XdpAttach::Native)?;
        let generator = Generator::new(&world, Side::PEER, GENERATOR_CPU, &harness::frame())?;
        Ok(Self {
            world,
            redirect,
            generator,
        })
    }

    /// Starts one, alone or inside of another program.
    pub(crate) fn start(&self, contestant: Contestant, mode: Mode, inside: &[&str]) -> Result<Running<'_>> {
        self.wait_until_the_queue_is_free()?;
        let sink = SinkProgram::attach(
            &self.world,
            Side::PEER,
            match mode {
                Mode::Pingpong => Fate::Reflect,
                _ => Fate::Drop,
            },
        )?;
        let (program, words) = contestant.program()?;
        let name = program.file_name().and_then(|name| name.to_str());
        let program = self
            .world
            .install(name.context("a program without a name")?, &program)?;
        let mut words_before: Vec<&str> = inside.to_vec();
        let program = program.display().to_string();
        words_before.push(&program);
        words_before.extend(words);
        let (first, rest) = words_before.split_first().context("no program")?;

        let device = self.world.device(Side::Host);
        let socket = self.socket(contestant.socket())?;
        // What is charged for a umem is given back later than its process ends: a uid for each.
        let uid = match &socket {
            Some(_) => Some(Uid::take()?),
            None => None,
        };
        let mut command = Command::new(first);
        command
            .env_clear()
            .args(rest)
            .args([mode.name(), &device.name])
            .arg(device.index.to_string())
            .arg(QUEUE.to_string())
            .arg(socket.as_ref().map_or(-1, |_| HANDED_OVER).to_string());
        if let Some(socket) = socket {
            command.fd_mappings(vec![FdMapping {
                parent_fd: socket,
                child_fd: HANDED_OVER,
            }])?;
        }
        let user = uid.as_ref().map(Uid::user);
        let (process, stdin) =
            Process::spawn_driven(self.world.namespace(Side::Host), user.as_ref(), command)?;
        let mut cpus = CpuSet::new();
        cpus.set(CONTESTANT_CPU);
        let pid = Pid::from_raw(i32::try_from(process.pid())?);
        sched_setaffinity(pid, &cpus).context("pinning the contestant")?;
        let fd: i32 = process
            .wait_stdout(PATIENCE, |line| line.strip_prefix("bound ")?.parse().ok())
            .with_context(|| format!("{} in {}", contestant.name(), mode.name()))?;
        let bound = pidfd_getfd(process.pidfd(), fd, PidfdGetfdFlags::empty()).context("pidfd_getfd")?;
        self.redirect.insert(QUEUE, &bound)?;
        Ok(Running {
            stage: self,
            mode,
            sink,
            process,
            stdin,
            orders: 0,
            _uid: uid,
        })
    }

    fn socket(&self, kind: SocketKind) -> Result<Option<OwnedFd>> {
        if kind == SocketKind::Own {
            return Ok(None);
        }
        let device = self.world.device(Side::Host);
        let socket = self.world.run_in(Side::Host, sys::xdp_socket)??;
        if kind == SocketKind::Prepared {
            for ring in Ring::ALL {
                sys::create_ring(&socket, ring, harness::RING_ENTRIES)?;
            }
        }
        sys::confine_to_device(socket.as_fd(), device.index)?;
        Ok(Some(socket))
    }

    /// A veth has no zero-copy: a bind that asks for it is EBUSY on a taken queue, and leaves a free one alone
    /// (`xp_assign_dev`, net/xdp/xsk_buff_pool.c).
    fn wait_until_the_queue_is_free(&self) -> Result<()> {
        let device = self.world.device(Side::Host);
        let begun = Instant::now();
        let probe = self.world.run_in(Side::Host, || RawXsk::new(1))??;
        loop {
            match probe.bind(device.index, QUEUE, SocketAddrXdpFlags::XDP_ZEROCOPY) {
                Err(Errno::OPNOTSUPP) => return Ok(()),
                Err(Errno::BUSY) if begun.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                other => bail!("asking whether the queue is free: {other:?}"),
            }
        }
    }
}

impl Running<'_> {
    /// Lets it run for a while, with traffic, and checks what it says by what arrived at the other end.
    pub(crate) fn for_a_while(&mut self, time: Duration) -> Result<Done> {
        let arrived_before = self.sink.arrived()?;
        let traffic = match self.mode.receives_in_bulk() {
            true => Some(self.stage.generator.start()?),
            false => None,
        };
        let done = self.order(0, time);
        if let Some(traffic) = traffic {
            traffic.stop()?;
        }
        let done = done?;
        ensure!(
            done.packets > 0,
            "not one packet in {time:?}: {}",
            self.process.last_words()
        );
        let arrived = self.sink.arrived()? - arrived_before;
        // Those in the rings at the end are not there yet.
        let missing = done.packets.saturating_sub(arrived);
        if self.mode != Mode::Rxdrop {
            ensure!(
                missing <= u64::from(2 * harness::RING_ENTRIES),
                "{} packets sent as it says, {arrived} arrived",
                done.packets
            );
        }
        Ok(done)
    }

    /// Has it do so many packets, in whole batches.
    pub(crate) fn packets(&mut self, packets: u32) -> Result<Done> {
        /// Half of what fits into the RX ring.
        const BURST: u32 = harness::RING_ENTRIES / 2;
        if !self.mode.receives_in_bulk() {
            return self.order(packets, Duration::ZERO);
        }
        let mut sum = Done {
            packets: 0,
            elapsed: Duration::ZERO,
            empty: 0,
            median_ns: 0,
            p99_ns: 0,
        };
        for _ in 0..packets / BURST {
            let before = self.stage.redirect.arrived(QUEUE)?;
            self.stage.generator.burst(BURST)?;
            let begun = Instant::now();
            while self.stage.redirect.arrived(QUEUE)? - before < u64::from(BURST) {
                ensure!(begun.elapsed() < PATIENCE, "a burst got lost");
                std::thread::sleep(Duration::from_micros(500));
            }
            // Counted before they are in the ring, which they are at the end of the poll.
            std::thread::sleep(Duration::from_millis(1));
            let done = self.order(BURST, Duration::ZERO)?;
            sum.packets += done.packets;
            sum.elapsed += done.elapsed;
            sum.empty += done.empty;
        }
        Ok(sum)
    }

    /// Ends it, and returns what it wrote to its standard error.
    pub(crate) fn end(self) -> Result<Vec<String>> {
        let Self {
            mut process, stdin, ..
        } = self;
        drop(stdin);
        let status = process.wait(PATIENCE)?;
        ensure!(status.success(), "{status}: {}", process.last_words());
        Ok(process.stderr())
    }

    fn order(&mut self, packets: u32, time: Duration) -> Result<Done> {
        writeln!(self.stdin, "{packets} {}", time.as_millis())
            .with_context(|| format!("it is gone: {}", self.process.last_words()))?;
        self.orders += 1;
        let mut seen = 0;
        let line = self.process.wait_stdout(PATIENCE + time, |line| {
            let numbers = line.strip_prefix("done ")?;
            seen += 1;
            (seen == self.orders).then(|| numbers.to_owned())
        })?;
        let numbers: Vec<u64> = line
            .split(' ')
            .map(str::parse)
            .collect::<Result<_, _>>()
            .with_context(|| line.clone())?;
        let [packets, nanoseconds, empty, median_ns, p99_ns] = numbers[..] else {
            bail!("not what a contestant answers: {line}");
        };
        Ok(Done {
            packets,
            elapsed: Duration::from_nanos(nanoseconds),
            empty,
            median_ns,
            p99_ns,
        })
    }
}
