//! Packets in bulk: a live test run of an XDP program that redirects each copy of a frame to a device, which transmits it.
//! Some two million a second, on one CPU.
//!
//! On a veth the receiver's queue is the CPU of the sender modulo the receiver's queues (`veth_select_rxq`,
//! drivers/net/veth.c), and the receiving softirq runs on the CPU of the sender. So a generator has a CPU of its own, and
//! the receiver at the other end another one.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::bpf::{self, ProgramType, TestRun};
use crate::instructions::{Assembler, R1, R2, call, exit, mov_value};
use crate::namespace::Namespace;
use crate::world::{Side, World};

/// Copies of one frame in a call of the kernel: enough that making its page pool is nothing, and few enough that it
/// stops soon.
const AT_ONCE: u32 = 1 << 16;

/// A frame, and the device that sends it.
#[derive(Debug, Clone)]
pub struct Generator {
    program: Arc<OwnedFd>,
    frame: Vec<u8>,
    namespace: Namespace,
    cpu: usize,
}

impl Generator {
    /// For the device on that side of the first wire, on that CPU.
    pub fn new(world: &World, side: Side, cpu: usize, frame: &[u8]) -> Result<Self> {
        const REDIRECT: i32 = 23;
        let mut code = Assembler::default();
        let index = i32::try_from(world.device(side).index)?;
        code.push([mov_value(R1, index), mov_value(R2, 0), call(REDIRECT), exit()]);
        let code = code.finish().context("the generator has no jumps")?;
        let program = bpf::load(ProgramType::Xdp, "test_generate", &code)?;
        Ok(Self {
            program: Arc::new(program),
            frame: frame.to_vec(),
            namespace: world.namespace(side).clone(),
            cpu,
        })
    }

    /// Sends so many copies, and returns when all were given to the device.
    pub fn burst(&self, count: u32) -> Result<()> {
        self.namespace.run(|| {
            self.pin()?;
            self.send(count)
        })?
    }

    /// Sends until it is stopped.
    pub fn start(&self) -> Result<Running> {
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let (stopped, counter, this) = (Arc::clone(&stop), Arc::clone(&sent), self.clone());
        let thread = thread::Builder::new()
            .name("generator".to_owned())
            .spawn(move || -> Result<()> {
                this.namespace.enter().context("entering the namespace")?;
                this.pin()?;
                while !stopped.load(Ordering::Relaxed) {
                    this.send(AT_ONCE)?;
                    counter.fetch_add(u64::from(AT_ONCE), Ordering::Relaxed);
                }
                Ok(())
            })?;
        Ok(Running { stop, sent, thread })
    }

    fn pin(&self) -> Result<()> {
        let mut cpus = CpuSet::new();
        cpus.set(self.cpu);
        sched_setaffinity(None, &cpus).with_context(|| format!("CPU {}", self.cpu))
    }

    fn send(&self, count: u32) -> Result<()> {
        let run = TestRun::Live {
            frame: &self.frame,
            repeat: count,
        };
        bpf::test_run(&self.program, run).context("a live test run")?;
        Ok(())
    }
}

/// A generator at work.
#[derive(Debug)]
pub struct Running {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: JoinHandle<Result<()>>,
}

impl Running {
    /// Ends it, and says how many it has sent in all.
    pub fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .map_err(|_| anyhow!("the generator panicked"))??;
        Ok(self.sent.load(Ordering::Relaxed))
    }
}
